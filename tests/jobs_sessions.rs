//! Real databases in every shape the LangGraph checkpointer ever wrote, and applications' own tables: what a run deletes,
//! what it never touches, and what a living application notices of it.
#![expect(clippy::disallowed_methods, reason = "a real application at work: threads, clocks, and processes to be killed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use plimsoll::config::jobs::{Format, Sessions, Table};
use plimsoll::host::clock::Moment;
use plimsoll::jobs::plan::Totals;
use plimsoll::jobs::run::{End, Foreman, Order, Outcome, Report};
use plimsoll::jobs::sessions;
use plimsoll::jobs::sessions::age::Stamp;
use proptest::prelude::*;
use rusqlite::types::Value;
use rusqlite::{Connection, params};

const DAY: i64 = 86_400 * 10_000_000;
const YES: Order = Order { dry_run: false, yes: true, free_bytes: None, clock_jumped: false };
const PLAIN: Order = Order { yes: false, ..YES };
const DRY: Order = Order { dry_run: true, ..PLAIN };

/// Follows a run, waits for real, and does something of its own at the second look.
struct Boss<'a> {
    reports: Vec<Report>,
    at_second_look: Option<Box<dyn FnOnce() + 'a>>,
    is_patient: bool,
}

impl<'a> Boss<'a> {
    fn new() -> Boss<'a> {
        Boss { reports: Vec::new(), at_second_look: None, is_patient: true }
    }

    fn planned(&self) -> BTreeSet<String> {
        let name = |report: &Report| if let Report::Planned(item) = report { Some(item.name.clone()) } else { None };
        self.reports.iter().filter_map(name).collect()
    }

    fn totals(&self) -> Totals {
        self.reports.iter().find_map(|report| if let Report::Plan(totals) = report { Some(totals.clone()) } else { None }).unwrap()
    }

    fn event(&self, name: &str) -> serde_json::Map<String, serde_json::Value> {
        let fields = |report: &Report| match report {
            Report::Event { event, fields } if event == name => Some(fields.clone()),
            _ => None,
        };
        self.reports.iter().find_map(fields).unwrap_or_else(|| panic!("no event {name}"))
    }
}

/// Nothing a run waits for in a transaction's pause is longer.
const SECOND_LOOK: Duration = Duration::from_secs(600);

impl Foreman for Boss<'_> {
    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn tell(&mut self, report: Report) {
        self.reports.push(report);
    }

    fn wait(&mut self, time: Duration) -> bool {
        if time == SECOND_LOOK {
            if let Some(act) = self.at_second_look.take() {
                act();
            }
            return self.is_patient;
        }
        std::thread::sleep(time);
        true
    }

    fn at_safe_point(&mut self) -> bool {
        true
    }
}

fn settings(database: &Path) -> Sessions {
    Sessions {
        database: database.to_path_buf(),
        format: Format::Auto,
        keep: Duration::from_secs(7 * 86_400),
        second_look: SECOND_LOOK,
        longest_lock: Duration::from_millis(10),
        archive: None,
        archive_keep: Duration::from_secs(7 * 86_400),
        backed_up_in: None,
    }
}

fn now() -> Stamp {
    Stamp::of(SystemTime::now())
}

/// An id as the library makes it.
fn id(days: f64, step: i64, node: u64) -> String {
    let ticks = (now().0 - (days * DAY as f64) as i64 + 0x01B2_1DD2_1381_4000) as u128;
    let sequence = (step & 0x3FFF) as u128 | 0x8000;
    let all = (ticks >> 12) << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | sequence << 48 | u128::from(node & 0xFFFF_FFFF_FFFF);
    let hex = format!("{all:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The columns of both tables in one shape of the checkpointer.
struct Shape {
    name: &'static str,
    schema: &'static str,
    id: &'static str,
    has_namespace: bool,
    has_type: bool,
    has_metadata: bool,
    has_writes: bool,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "March 2024",
        schema: "CREATE TABLE checkpoints (thread_id TEXT, thread_ts TEXT, parent_ts TEXT, checkpoint BLOB, PRIMARY KEY (thread_id, thread_ts))",
        id: "thread_ts",
        has_namespace: false,
        has_type: false,
        has_metadata: false,
        has_writes: false,
    },
    Shape {
        name: "May 2024",
        schema: "PRAGMA journal_mode = WAL;
            CREATE TABLE checkpoints (thread_id TEXT, thread_ts TEXT, parent_ts TEXT, checkpoint BLOB, metadata BLOB,
            PRIMARY KEY (thread_id, thread_ts))",
        id: "thread_ts",
        has_namespace: false,
        has_type: false,
        has_metadata: true,
        has_writes: false,
    },
    Shape {
        name: "August 2024, before 1.0",
        schema: "PRAGMA journal_mode = WAL;
            CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL, checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
            CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL, checkpoint_id TEXT NOT NULL, task_id TEXT NOT NULL,
            idx INTEGER NOT NULL, channel TEXT NOT NULL, value BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx))",
        id: "checkpoint_id",
        has_namespace: true,
        has_type: false,
        has_metadata: true,
        has_writes: true,
    },
    Shape {
        name: "1.0 to 3.1.1",
        schema: "PRAGMA journal_mode = WAL;
            CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
            CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            task_id TEXT NOT NULL, idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx))",
        id: "checkpoint_id",
        has_namespace: true,
        has_type: true,
        has_metadata: true,
        has_writes: true,
    },
    Shape {
        name: "3.1.1 altered by 3.1.2",
        schema: "PRAGMA journal_mode = WAL;
            CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
            CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            task_id TEXT NOT NULL, idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));
            ALTER TABLE writes ADD COLUMN task_path TEXT NOT NULL DEFAULT ''",
        id: "checkpoint_id",
        has_namespace: true,
        has_type: true,
        has_metadata: true,
        has_writes: true,
    },
    CURRENT,
];

const CURRENT: Shape = Shape {
    name: "3.1.2",
    schema: "PRAGMA journal_mode = WAL;
        CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
        parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
        CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
        task_id TEXT NOT NULL, task_path TEXT NOT NULL DEFAULT '', idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB,
        PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx))",
    id: "checkpoint_id",
    has_namespace: true,
    has_type: true,
    has_metadata: true,
    has_writes: true,
};

const MEMORY: &str = "
    CREATE TABLE store (prefix TEXT NOT NULL, key TEXT NOT NULL, value TEXT, PRIMARY KEY (prefix, key));
    CREATE TABLE store_vectors (prefix TEXT NOT NULL, key TEXT NOT NULL, embedding BLOB, PRIMARY KEY (prefix, key),
        FOREIGN KEY (prefix, key) REFERENCES store (prefix, key) ON DELETE CASCADE);
    INSERT INTO store VALUES ('old-1', 'name', 'Ada'), ('old-2', 'name', 'Bob');
    INSERT INTO store_vectors VALUES ('old-1', 'name', x'00'), ('old-2', 'name', x'01');";

struct Stage {
    folder: tempfile::TempDir,
    app: Connection,
    shape: &'static Shape,
}

impl Stage {
    fn new(shape: &'static Shape) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let app = Connection::open(folder.path().join("memory.db")).unwrap();
        app.execute_batch(shape.schema).unwrap();
        app.busy_timeout(Duration::from_secs(5)).unwrap();
        Stage { folder, app, shape }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("memory.db")
    }

    fn settings(&self) -> Sessions {
        settings(&self.path())
    }

    /// One checkpoint, and a write with it.
    fn put(&self, thread: &str, namespace: &str, days: f64, step: i64, size: usize) {
        put(&self.app, self.shape, thread, namespace, &id(days, step, 7), step, size).unwrap();
    }

    fn session(&self, thread: &str, days: f64, rows: i64, size: usize) {
        for step in 0..rows {
            self.put(thread, "", days + (rows - step) as f64 * 1e-5, step, size);
        }
    }

    fn run(&self, settings: &Sessions, order: &Order, boss: &mut Boss<'_>) -> Outcome {
        sessions::run(settings, order, boss).unwrap()
    }

    fn threads(&self) -> BTreeSet<String> {
        let mut statement = self.app.prepare("SELECT DISTINCT thread_id FROM checkpoints WHERE typeof(thread_id) = 'text'").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Every row of both tables.
    fn content(&self) -> Vec<Vec<Value>> {
        let tables: &[&str] = if self.shape.has_writes { &["checkpoints", "writes"] } else { &["checkpoints"] };
        tables.iter().flat_map(|table| rows(&self.app, &format!("SELECT * FROM {table} ORDER BY 1, 2, 3, 4"))).collect()
    }
}

fn put(app: &Connection, shape: &Shape, thread: &str, namespace: &str, id: &str, step: i64, size: usize) -> rusqlite::Result<()> {
    let mut values = vec![("thread_id", Value::Text(thread.to_owned())), (shape.id, Value::Text(id.to_owned()))];
    values.push(("checkpoint", Value::Blob(vec![step as u8; size])));
    if shape.has_namespace {
        values.push(("checkpoint_ns", Value::Text(namespace.to_owned())));
    }
    if shape.has_type {
        values.push(("type", Value::Text("msgpack".to_owned())));
    }
    if shape.has_metadata {
        values.push(("metadata", Value::Blob(format!("{{\"source\":\"loop\",\"step\":{step},\"parents\":{{}}}}").into_bytes())));
    }
    insert(app, "checkpoints", &values)?;
    if shape.has_writes {
        let mut values = vec![("thread_id", Value::Text(thread.to_owned())), ("checkpoint_ns", Value::Text(namespace.to_owned()))];
        values.push(("checkpoint_id", Value::Text(id.to_owned())));
        values.push(("task_id", Value::Text("task".to_owned())));
        values.push(("idx", Value::Integer(0)));
        values.push(("channel", Value::Text("messages".to_owned())));
        values.push(("value", Value::Blob(vec![1; size / 4 + 1])));
        insert(app, "writes", &values)?;
    }
    Ok(())
}

fn insert(app: &Connection, table: &str, values: &[(&str, Value)]) -> rusqlite::Result<()> {
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let sql = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), vec!["?"; names.len()].join(", "));
    app.prepare_cached(&sql)?.execute(rusqlite::params_from_iter(values.iter().map(|(_, value)| value)))?;
    Ok(())
}

fn rows(app: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = app.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column)).collect();
    statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn old_sessions_go_whole_in_every_shape_and_memory_stays() {
    for shape in &SHAPES {
        let stage = Stage::new(shape);
        stage.app.execute_batch(MEMORY).unwrap();
        stage.session("old-1", 8.0, 3, 100);
        stage.session("old-2", 30.0, 3, 6000);
        for young in ["young-1", "young-2", "young-3", "50%_"] {
            stage.session(young, 1.0, 3, 4000);
        }
        if shape.has_namespace {
            stage.put("old-1", "node:5|deep:6", 8.0, 1, 10);
            stage.put("young below", "", 20.0, 1, 10);
            stage.put("young below", "node:5", 2.0, 2, 10);
        }
        let memory = |app: &Connection| (rows(app, "SELECT * FROM store"), rows(app, "SELECT * FROM store_vectors"));
        let (before, all) = (memory(&stage.app), stage.content());

        let mut boss = Boss::new();
        let outcome = stage.run(&stage.settings(), &DRY, &mut boss);
        assert_eq!((outcome.end, &stage.content()), (End::Planned, &all), "{}", shape.name);
        let planned = ["sessions_planned", "checkpoints_planned", "rows_planned"].map(|name| outcome.figures[name]);
        let expected = match (shape.has_metadata, shape.has_writes) {
            (false, _) => [0.0; 3],
            (true, false) => [2.0, 6.0, 6.0],
            (true, true) => [2.0, 7.0, 14.0],
        };
        assert_eq!(planned, expected, "{}", shape.name);
        let planned = boss.planned();
        if !shape.has_metadata {
            // Nothing confirms what the ids say.
            assert_eq!((planned, boss.totals().kept["unverified-step"].count), (names(&[]), 2), "{}", shape.name);
            continue;
        }
        assert_eq!(planned, names(&["old-1", "old-2"]), "{}", shape.name);

        let mut boss = Boss::new();
        let outcome = stage.run(&stage.settings(), &PLAIN, &mut boss);
        assert_eq!((outcome.end, boss.planned()), (End::Done, planned), "{}", shape.name);
        assert_eq!(outcome.deleted["session"], 2, "{}", shape.name);
        let gone = |row: &&Vec<Value>| matches!(&row[0], Value::Text(thread) if thread.starts_with("old-"));
        let left: Vec<Vec<Value>> = all.iter().filter(|row| !gone(row)).cloned().collect();
        assert_eq!(stage.content(), left, "{}", shape.name);
        assert_eq!(memory(&stage.app), before, "{}", shape.name);

        let mut boss = Boss::new();
        let outcome = stage.run(&stage.settings(), &PLAIN, &mut boss);
        assert_eq!((outcome.end, boss.planned(), outcome.deleted.len()), (End::Done, names(&[]), 0), "{}: a second run", shape.name);
    }
}

#[test]
fn hostile_ids_stay_and_are_counted_by_reason() {
    let stage = Stage::new(&CURRENT);
    let put = |thread: &str, id: &str, step: i64| put(&stage.app, &CURRENT, thread, "", id, step, 10).unwrap();
    let old = id(30.0, 1, 9);
    put("v4", &format!("{}4{}", &old[..14], &old[15..]), 1);
    put("v7", &format!("019{}7{}", &old[3..14], &old[15..]), 1);
    put("mixed", &old, 1);
    put("mixed", "019aa111-1111-7111-8111-111111111111", 2);
    put("upper", &old.to_uppercase(), 1);
    put("step", &old, 7);
    put("none", "", 1);
    for young in ["y1", "y2", "y3", "%", "old%", "old_"] {
        stage.session(young, 1.0, 2, 10);
    }
    stage.session("old1", 30.0, 2, 10);
    let odd = "INSERT INTO checkpoints (thread_id, checkpoint_id, metadata) VALUES (?1, ?2, '{\"step\":1}')";
    stage.app.execute(odd, params![b"old1".to_vec(), old]).unwrap();
    insert(
        &stage.app,
        "writes",
        &[
            ("thread_id", Value::Text("late".to_owned())),
            ("checkpoint_id", Value::Text(old.clone())),
            ("task_id", Value::Text("t".to_owned())),
            ("idx", Value::Integer(0)),
            ("channel", Value::Text("c".to_owned())),
        ],
    )
    .unwrap();
    let mut boss = Boss::new();
    let before = stage.content().len();
    let outcome = stage.run(&stage.settings(), &PLAIN, &mut boss);
    assert_eq!((outcome.deleted["session"], outcome.deleted["checkpoint"], outcome.deleted["write"]), (1, 2, 2));
    assert_eq!(stage.content().len(), before - 4);
    let kept: BTreeMap<String, u64> = boss.totals().kept.into_iter().map(|(reason, tally)| (reason, tally.count)).collect();
    let expected = [("no-checkpoint", 1), ("odd-id", 1), ("unverified-age", 5), ("unverified-step", 1), ("young", 6)];
    assert_eq!(kept, expected.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect());

    // One id of the future holds everything until somebody has looked.
    stage.session("old2", 30.0, 2, 10);
    stage.session("future", -2.0, 1, 10);
    let mut boss = Boss::new();
    assert_eq!(stage.run(&stage.settings(), &PLAIN, &mut boss).end, End::Held);
    assert!(boss.totals().brake.unwrap().contains("the session future is dated"));
    assert_eq!(boss.totals().kept["future"].count, 1);
    let outcome = stage.run(&stage.settings(), &YES, &mut Boss::new());
    assert_eq!((outcome.end, outcome.deleted["session"]), (End::Done, 1));
    assert!(stage.threads().contains("future"));
}

#[test]
fn whoever_is_touched_between_the_looks_stays() {
    for touch in [
        "INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel) VALUES ('old-1', 'c', 'resume', 0, 'm')",
        "INSERT OR REPLACE INTO writes SELECT * FROM writes WHERE thread_id = 'old-1' LIMIT 1",
        "DELETE FROM checkpoints WHERE thread_id = 'old-1' AND checkpoint_id = (SELECT min(checkpoint_id) FROM checkpoints WHERE thread_id = 'old-1')",
    ] {
        let stage = Stage::new(&CURRENT);
        stage.session("old-1", 9.0, 2, 10);
        stage.session("old-2", 8.0, 2, 10);
        for young in 0..4 {
            stage.session(&format!("young-{young}"), 1.0, 2, 10);
        }
        let mut boss = Boss::new();
        // By a connection of its own: the job has closed its one meanwhile.
        let path = stage.path();
        boss.at_second_look = Some(Box::new(move || Connection::open(path).unwrap().execute_batch(touch).unwrap()));
        let outcome = stage.run(&stage.settings(), &PLAIN, &mut boss);
        assert_eq!((outcome.deleted["session"], outcome.figures["sessions_touched"]), (1, 1.0), "{touch}");
        assert!(stage.threads().contains("old-1") && !stage.threads().contains("old-2"), "{touch}");
        assert_eq!(boss.event("session_cleanup_result")["sessions_touched"], 1, "{touch}");
    }
}

/// An application that has its database for itself alone, again and again, wherever the run may meet it: every other time
/// the run asks whether it may go on, the application lets go only once the run has waited.
struct Hog<'a> {
    app: &'a Connection,
    turn: u32,
    met: u32,
    is_patient: bool,
}

impl Hog<'_> {
    fn hold(&mut self) {
        // A reader of the run's own may be at work; then it is not the application's turn.
        let _ = self.app.execute_batch("BEGIN EXCLUSIVE");
    }
}

impl Foreman for Hog<'_> {
    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn tell(&mut self, _: Report) {
        if self.app.is_autocommit() {
            self.hold();
        }
    }

    fn wait(&mut self, time: Duration) -> bool {
        if time == SECOND_LOOK {
            self.hold();
            return true;
        }
        if !self.app.is_autocommit() {
            self.met += 1;
            self.app.execute_batch("COMMIT").unwrap();
        }
        self.is_patient
    }

    fn at_safe_point(&mut self) -> bool {
        self.turn += 1;
        if self.turn.is_multiple_of(2) && self.app.is_autocommit() {
            self.hold();
        }
        true
    }
}

#[test]
fn whoever_holds_the_database_is_waited_for_wherever_the_run_is() {
    let setup = format!("PRAGMA auto_vacuum = INCREMENTAL; {}; PRAGMA journal_mode = DELETE", CURRENT.schema);
    for is_archived in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let app = Connection::open(folder.path().join("memory.db")).unwrap();
        app.execute_batch(&setup).unwrap();
        let stage = Stage { folder, app, shape: &CURRENT };
        for old in 0..3 {
            stage.session(&format!("old-{old}"), 9.0, 2, 5000);
        }
        for young in 0..5 {
            stage.session(&format!("young-{young}"), 1.0, 2, 5000);
        }
        let settings = Sessions { archive: is_archived.then(|| stage.folder.path().join("archive")), ..stage.settings() };
        let mut hog = Hog { app: &stage.app, turn: 0, met: 0, is_patient: false };
        hog.hold();
        assert_eq!(sessions::run(&settings, &PLAIN, &mut hog).unwrap().end, End::Stopped);
        let mut hog = Hog { is_patient: true, ..hog };
        hog.hold();
        let outcome = sessions::run(&settings, &PLAIN, &mut hog).unwrap();
        let met = hog.met;
        if !stage.app.is_autocommit() {
            stage.app.execute_batch("COMMIT").unwrap();
        }
        assert_eq!((outcome.end, outcome.deleted["session"], outcome.errors.len()), (End::Done, 3, 0));
        assert!(met > 5, "met {met} times");
        assert_eq!(stage.threads().len(), 5);
    }
}

#[test]
fn a_run_that_is_stopped_or_finds_another_database_deletes_nothing() {
    let stage = Stage::new(&CURRENT);
    stage.session("old", 9.0, 2, 10);
    stage.session("young-1", 1.0, 2, 10);
    let before = stage.content();
    let mut boss = Boss { is_patient: false, ..Boss::new() };
    assert_eq!(stage.run(&stage.settings(), &PLAIN, &mut boss).end, End::Stopped);
    let (path, aside) = (stage.path(), stage.folder.path().join("aside.db"));
    let mut boss = Boss::new();
    boss.at_second_look = Some(Box::new(|| {
        std::fs::copy(&path, &aside).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }));
    let error = sessions::run(&stage.settings(), &PLAIN, &mut boss).unwrap_err();
    assert!(error.0.contains("another database"), "{error}");
    assert_eq!(stage.content(), before);
}

#[test]
fn the_record_has_the_names_people_look_for() {
    let stage = Stage::new(&CURRENT);
    for large in 0..12 {
        stage.session(&format!("s{large:02}"), if large < 2 { 9.0 } else { 1.0 }, 2, 100 * (large + 1));
    }
    let mut boss = Boss::new();
    let outcome = stage.run(&stage.settings(), &PLAIN, &mut boss);
    let analysis = boss.event("session_cleanup_analysis");
    assert_eq!((&analysis["total_sessions"], &analysis["total_checkpoints"]), (&12.into(), &24.into()));
    assert_eq!(analysis["retention_days"], 7.0);
    assert!(analysis["cutoff_date"].as_str().unwrap().ends_with('Z'), "{analysis:?}");
    let largest = boss.event("session_cleanup_largest")["sessions"].clone();
    let largest: Vec<&str> = largest.as_array().unwrap().iter().map(|one| one["session"].as_str().unwrap()).collect();
    assert_eq!(largest, ["s11", "s10", "s09", "s08", "s07", "s06", "s05", "s04", "s03", "s02"]);
    let result = boss.event("session_cleanup_result");
    assert_eq!((&result["sessions_deleted"], &result["checkpoints_deleted"], &result["errors"]), (&2.into(), &4.into(), &0.into()));
    assert_eq!((outcome.figures["sessions"], outcome.figures["checkpoints_deleted"]), (10.0, 4.0));
    for figure in ["database_size_bytes", "database_wal_bytes", "database_free_bytes", "sessions_deleted", "errors"] {
        assert!(outcome.figures.contains_key(figure), "{figure}");
    }
    assert!(outcome.figures["database_wal_bytes"] > 0.0 && outcome.figures["database_size_bytes"] >= 4096.0);
}

/// A line of a run's may have a mebibyte, an id any length.
#[test]
fn an_id_of_any_length_is_told_in_short_and_used_whole() {
    let stage = Stage::new(&CURRENT);
    let long = |end: &str| "ä".repeat(1_000_000) + end;
    for (end, days) in [("old", 9.0), ("young", 1.0), ("future", -1.0)] {
        stage.session(&long(end), days, 2, 10);
    }
    let archive = stage.folder.path().join("archive");
    let settings = Sessions { archive: Some(archive), ..stage.settings() };
    for (order, end) in [(PLAIN, End::Held), (YES, End::Done)] {
        let mut boss = Boss::new();
        let outcome = stage.run(&settings, &order, &mut boss);
        assert_eq!(outcome.end, end);
        assert_eq!(boss.planned(), names(&[&("ä".repeat(200) + "…")]));
        let lines = boss.reports.iter().map(|report| serde_json::to_vec(report).unwrap().len());
        let longest = lines.chain([serde_json::to_vec(&outcome).unwrap().len()]).max();
        assert!(longest < Some(16 * 1024), "{longest:?}");
    }
    // Too long for an archive, and therefore still there.
    assert_eq!(stage.threads().len(), 3);
    let error = sessions::restore(&settings, &long("old"), Moment::now()).unwrap_err();
    assert!(error.0.len() < 2000, "{} bytes", error.0.len());
    stage.run(&stage.settings(), &YES, &mut Boss::new());
    assert_eq!(stage.threads(), [long("young"), long("future")].into());
}

#[test]
fn what_was_archived_comes_back_byte_for_byte_and_stays() {
    let stage = Stage::new(&CURRENT);
    for old in 0..5 {
        stage.session(&format!("old-{old}"), 9.0 + f64::from(old), 3, 5000);
    }
    stage.session("young", 1.0, 2, 10);
    let before = stage.content();
    let settings = Sessions { archive: Some(stage.folder.path().join("archive")), ..stage.settings() };
    // More than half: it may go because it can be brought back.
    let outcome = stage.run(&settings, &PLAIN, &mut Boss::new());
    assert_eq!((outcome.end, outcome.deleted["session"], outcome.errors.len()), (End::Done, 5, 0));
    assert_eq!(stage.threads(), names(&["young"]));

    let error = sessions::restore(&settings, "young", Moment::now()).unwrap_err();
    assert!(error.0.contains("none of the 1 archives"), "{error}");
    for old in 0..5 {
        let outcome = sessions::restore(&settings, &format!("old-{old}"), Moment::now()).unwrap();
        assert_eq!(outcome.figures["rows_restored"], 6.0);
    }
    assert_eq!(stage.content(), before);
    let error = sessions::restore(&settings, "old-0", Moment::now()).unwrap_err();
    assert!(error.0.contains("holds rows of it"), "{error}");
    assert_eq!(stage.content(), before);

    let mut boss = Boss::new();
    stage.run(&settings, &PLAIN, &mut boss);
    assert_eq!((stage.content(), boss.totals().kept["restored"].count), (before, 5));
    // No archive, no way back.
    let error = sessions::restore(&stage.settings(), "old-0", Moment::now()).unwrap_err();
    assert!(error.0.contains("keeps no archive"), "{error}");
}

#[test]
fn an_archive_that_cannot_be_written_keeps_every_session() {
    let stage = Stage::new(&CURRENT);
    stage.session("old", 9.0, 3, 5000);
    stage.session("young", 1.0, 2, 10);
    let before = stage.content();
    let file = stage.folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for archive in [file.join("below"), PathBuf::from("/dev/full"), file] {
        let settings = Sessions { archive: Some(archive.clone()), ..stage.settings() };
        let error = sessions::run(&settings, &YES, &mut Boss::new()).unwrap_err();
        assert!(error.0.contains("archive"), "{error}");
        assert_eq!(stage.content(), before, "{}", archive.display());
    }
}

fn table(children: &[(&str, &str)]) -> Format {
    Format::Table(Table {
        table: "sessions".to_owned(),
        id: "id".to_owned(),
        time: "seen".to_owned(),
        children: children.iter().map(|(table, column)| ((*table).to_owned(), (*column).to_owned())).collect(),
    })
}

#[test]
fn sessions_in_tables_of_the_application_go_with_their_children() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(
        "CREATE TABLE sessions (id TEXT COLLATE NOCASE, seen, note TEXT);
         CREATE INDEX by_id ON sessions (id);
         CREATE TABLE messages (session TEXT COLLATE NOCASE, body TEXT);
         CREATE TABLE files (n INTEGER, session TEXT, PRIMARY KEY (session, n)) WITHOUT ROWID;",
    )
    .unwrap();
    let seconds = now().unix_seconds() as i64;
    let ago = |days: i64| Value::Integer(seconds - days * 86_400);
    let rows: [(&str, Value); 11] = [
        ("old", ago(9)),
        // The same id to a column that does not regard case, another session to us.
        ("OLD", ago(1)),
        ("several", ago(30)),
        ("several", ago(2)),
        ("several-old", ago(30)),
        ("several-old", ago(20)),
        ("no time", Value::Null),
        ("half a time", ago(30)),
        ("half a time", Value::Text("soon".to_owned())),
        ("naive", Value::Text("2020-01-01 00:00:00".to_owned())),
        ("milliseconds", Value::Integer((seconds - 86_400) * 1000)),
    ];
    for (id, seen) in rows {
        app.execute("INSERT INTO sessions VALUES (?1, ?2, 'note')", params![id, seen]).unwrap();
        app.execute("INSERT INTO messages VALUES (?1, 'hello')", [id]).unwrap();
        app.execute("INSERT OR REPLACE INTO files VALUES (1, ?1)", [id]).unwrap();
    }
    app.execute("INSERT INTO sessions VALUES (NULL, ?1, '')", [ago(30)]).unwrap();
    let archive = folder.path().join("archive");
    let settings = Sessions { format: table(&[("messages", "session"), ("files", "session")]), archive: Some(archive), ..settings(&path) };
    let mut boss = Boss::new();
    let touched = path.clone();
    // In place: count and numbers of the rows stay as they are.
    boss.at_second_look = Some(Box::new(move || {
        let app = Connection::open(touched).unwrap();
        app.execute("UPDATE sessions SET note = 'read again' WHERE id = 'naive'", []).unwrap();
    }));
    let everything = ["sessions", "messages", "files"]
        .map(|table| self::rows(&app, &format!("SELECT * FROM {table} ORDER BY 1 COLLATE BINARY, 2 COLLATE BINARY")));
    let outcome = sessions::run(&settings, &PLAIN, &mut boss).unwrap();
    assert_eq!(boss.planned(), names(&["old", "several-old", "naive"]));
    assert_eq!((outcome.deleted["session"], outcome.figures["sessions_touched"]), (2, 1.0));
    let ids = |table: &str, column: &str| -> BTreeSet<String> {
        let mut statement = app.prepare(&format!("SELECT {column} FROM {table} WHERE {column} IS NOT NULL")).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let left = names(&["OLD", "several", "no time", "half a time", "naive", "milliseconds"]);
    assert_eq!(ids("sessions", "id"), left);
    assert_eq!((ids("messages", "session"), ids("files", "session")), (left.clone(), left));
    for id in ["old", "several-old"] {
        sessions::restore(&settings, id, Moment::now()).unwrap();
    }
    app.execute("UPDATE sessions SET note = 'note' WHERE id = 'naive'", []).unwrap();
    let again = ["sessions", "messages", "files"]
        .map(|table| self::rows(&app, &format!("SELECT * FROM {table} ORDER BY 1 COLLATE BINARY, 2 COLLATE BINARY")));
    assert_eq!(again, everything);
}

#[test]
fn free_pages_are_given_back_where_the_database_is_set_up_for_it() {
    for (setup, is_given) in [("PRAGMA auto_vacuum = INCREMENTAL;", true), ("", false)] {
        let folder = tempfile::tempdir().unwrap();
        let app = Connection::open(folder.path().join("memory.db")).unwrap();
        app.execute_batch(&format!("{setup}{}", CURRENT.schema)).unwrap();
        let stage = Stage { folder, app, shape: &CURRENT };
        stage.app.execute_batch("BEGIN").unwrap();
        for old in 0..40 {
            stage.session(&format!("old-{old}"), 9.0, 5, 20_000);
        }
        stage.session("young", 1.0, 2, 10);
        stage.app.execute_batch("COMMIT").unwrap();
        let pages = || stage.app.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0)).unwrap();
        let before = pages();
        let outcome = stage.run(&stage.settings(), &YES, &mut Boss::new());
        assert!(outcome.reclaimed_bytes > 4_000_000, "{outcome:?}");
        assert_eq!(pages() < before / 10, is_given, "{before} pages, then {}", pages());
        let free = outcome.figures["database_free_bytes"];
        assert_eq!(free == 0.0, is_given, "{free}");
        let check: String = stage.app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
}

#[test]
fn the_owner_of_the_database_owns_everything_beside_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const OWNER: u32 = 54_321;
    let stage = Stage::new(&CURRENT);
    if std::fs::metadata(stage.path()).unwrap().uid() != 0 {
        println!("skipped: only root can give a file away");
        return;
    }
    stage.session("old", 9.0, 2, 10);
    stage.session("young", 1.0, 2, 10);
    let Stage { folder, app, .. } = stage;
    // The application closes its database in order: nothing stays but the file.
    drop(app);
    let path = folder.path().join("memory.db");
    chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    let run = |uid: u32| {
        let mut child = Command::new("/proc/self/exe");
        child.args(["--exact", "child", "--ignored"]).env("PLIMSOLL_TEST_DATABASE", &path).uid(uid).gid(uid).output().unwrap()
    };
    // Everybody may write, and yet nobody else can use the database without leaving files of his own.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let refused = run(OWNER + 1);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains(&format!("belongs to user {OWNER} and we are user {}", OWNER + 1)), "{said}");
    let beside = || -> BTreeSet<String> {
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(beside(), names(&["memory.db"]));
    // Root leaves them with the owner of the database.
    let done = run(0);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    assert!(beside().contains("memory.db-wal"), "{:?}", beside());
    for file in beside().iter().filter(|name| name.starts_with("memory.db")) {
        assert_eq!(std::fs::metadata(folder.path().join(file)).unwrap().uid(), OWNER, "{file}");
    }
    let app = Connection::open(&path).unwrap();
    assert_eq!(app.query_row("SELECT count(DISTINCT thread_id) FROM checkpoints", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}

/// Commits every 10 ms until it is told to stop; answers with how long each took, the longest last.
fn write_steadily(path: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<Duration>> {
    std::thread::spawn(move || {
        let app = Connection::open(path).unwrap();
        app.busy_timeout(Duration::from_secs(5)).unwrap();
        let mut took = Vec::new();
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let begun = Instant::now();
            app.execute_batch("BEGIN IMMEDIATE").unwrap();
            put(&app, &CURRENT, "live", "", &id(0.0, turn, turn as u64), turn, 2000).unwrap();
            app.execute_batch("COMMIT").unwrap();
            took.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        took.sort();
        took
    })
}

/// Heavy: `cargo test --test jobs_sessions -- --ignored`. Prints what a writer notices of a large cleanup.
#[test]
#[ignore = "takes a minute and 700 MB of disk"]
fn a_writer_hardly_notices_that_400_000_rows_go() {
    let stage = Stage::new(&CURRENT);
    stage.app.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
    for step in 0..100 {
        for thread in 0..4000 {
            let days = if thread < 2000 { 9.0 } else { 1.0 };
            stage.put(&format!("thread-{thread:05}"), "", days + f64::from(100 - step) * 1e-5, i64::from(step), 600);
        }
    }
    stage.app.execute_batch("COMMIT; PRAGMA synchronous = FULL; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let beside = |work: &dyn Fn()| {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = write_steadily(stage.path(), stop.clone());
        let begun = Instant::now();
        work();
        let took = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        let stalls = writer.join().unwrap();
        let (p50, p99, max) = (stalls[stalls.len() / 2], stalls[stalls.len() * 99 / 100], stalls[stalls.len() - 1]);
        println!("{took:?}: writer of {} commits: p50 {p50:?}, p99 {p99:?}, max {max:?}", stalls.len());
        max
    };
    let alone = beside(&|| std::thread::sleep(Duration::from_secs(5)));
    let outcome = std::cell::RefCell::new(Outcome::default());
    let settings = Sessions { second_look: Duration::ZERO, ..stage.settings() };
    let max = beside(&|| drop(outcome.replace(stage.run(&settings, &YES, &mut Boss::new()))));
    let outcome = outcome.into_inner();
    let (lock, wal) = (outcome.figures["longest_lock_seconds"], outcome.figures["database_wal_bytes"]);
    println!("400,000 rows: longest lock {lock} s, log {wal} bytes");
    assert_eq!((outcome.deleted["session"], outcome.deleted["checkpoint"], outcome.deleted["write"]), (2000, 200_000, 200_000));
    assert!(max < Duration::from_millis(60).max(alone), "the writer stood still for {max:?}, alone for {alone:?}");
}

/// Heavy: `cargo test --release --test jobs_sessions -- --ignored`. Prints how long it takes to find the old among many.
#[test]
#[ignore = "takes a minute and 600 MB of disk"]
fn candidates_among_two_million_rows_are_found_at_once() {
    let stage = Stage::new(&CURRENT);
    stage.app.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -400000; BEGIN").unwrap();
    let sql = "INSERT INTO checkpoints (thread_id, checkpoint_id, type, checkpoint, metadata) VALUES (?1, ?2, 'msgpack', zeroblob(60), '{\"step\":1}')";
    let mut insert = stage.app.prepare(sql).unwrap();
    for step in 0..100 {
        for thread in 0..20_000 {
            let days = if thread % 10 == 0 { 9.0 } else { 1.0 };
            let id = id(days + f64::from(100 - step) * 1e-5, i64::from(step), 7);
            insert.execute(params![format!("0c9d3a52-77aa-4ff0-b0b1-{thread:012}"), id]).unwrap();
        }
    }
    drop(insert);
    stage.app.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let database = plimsoll::jobs::sqlite::Database::open(&stage.path()).unwrap();
    let layout = sessions::layout::Layout::detect(&database, &Format::Auto).unwrap();
    let limits = sessions::survey::Limits::new(now(), Duration::from_secs(7 * 86_400));
    let mut took = Duration::MAX;
    for _ in 0..3 {
        let mut survey = sessions::survey::Survey::default();
        let begun = Instant::now();
        assert!(sessions::survey::find_candidates(&database, &layout, &mut survey, &mut Boss::new()).unwrap());
        took = took.min(begun.elapsed());
        let old = survey.sessions.iter().filter(|seen| sessions::survey::is_old(seen.age, &limits)).count();
        assert_eq!((survey.sessions.len(), old), (20_000, 2000));
    }
    let begun = Instant::now();
    let survey = sessions::survey::take(&database, &layout, &limits, &mut Boss::new()).unwrap().unwrap();
    println!("2,000 old of 20,000 sessions among 2,000,000 rows: {took:?}; verified and weighed: {:?}", begun.elapsed());
    assert_eq!(survey.checkpoints, 2_000_000);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

/// Rows of each session in both tables.
fn counts(app: &Connection) -> BTreeMap<String, (i64, i64)> {
    let mut counts = BTreeMap::new();
    for (place, table) in ["checkpoints", "writes"].iter().enumerate() {
        for row in rows(app, &format!("SELECT thread_id, count(*) FROM {table} GROUP BY thread_id")) {
            let [Value::Text(thread), Value::Integer(count)] = row.as_slice() else { panic!("{row:?}") };
            let entry: &mut (i64, i64) = counts.entry(thread.clone()).or_default();
            if place == 0 { entry.0 = *count } else { entry.1 = *count }
        }
    }
    counts
}

/// A disk that takes no more, at whatever write: the database, its log or the archive. Played by a limit on the size of files.
#[test]
fn a_full_disk_leaves_no_half_session_and_loses_none() {
    const OLD: usize = 20;
    for blocks in [0, 8, 20, 40, 80, 160, 400, 1000] {
        let stage = Stage::new(&CURRENT);
        stage.app.execute_batch("BEGIN").unwrap();
        for old in 0..OLD {
            stage.session(&format!("old-{old:02}"), 9.0, 10, 3000);
        }
        stage.session("young", 1.0, 2, 10);
        stage.app.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let all = stage.content();
        let limited = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" --exact child --ignored");
        let mut child = Command::new("sh");
        child.args(["-c", &limited]).arg(std::env::current_exe().unwrap()).env("PLIMSOLL_TEST_DATABASE", stage.path());
        let ended = child.output().unwrap();
        let left = counts(&stage.app);
        for (thread, counts) in &left {
            assert_eq!(*counts, if thread == "young" { (2, 2) } else { (10, 10) }, "{thread} at {blocks} blocks");
        }
        assert!(ended.status.success() || left.len() > 1, "{blocks} blocks: it failed after everything was done");
        assert!(blocks > 0 || (!ended.status.success() && left.len() == OLD + 1), "nothing can be done with no room at all");
        let check: String = stage.app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "{blocks} blocks");
        let settings = Sessions { archive: Some(stage.folder.path().join("archive")), ..stage.settings() };
        stage.run(&settings, &YES, &mut Boss::new());
        assert_eq!(stage.threads(), names(&["young"]));
        for old in 0..OLD {
            sessions::restore(&settings, &format!("old-{old:02}"), Moment::now()).unwrap();
        }
        assert_eq!(stage.content(), all, "{blocks} blocks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is in a database: what the dry run lists is what goes, everything else stays as it was, and the next run finds nothing.
    #[test]
    fn the_plan_is_exactly_what_is_done(
        sessions in proptest::collection::btree_map("[a-cA-C%_' ]{0,3}", (0_u32..20, 1_i64..5, 0_u8..8), 0..12),
        is_archived: bool,
    ) {
        let stage = Stage::new(&CURRENT);
        for (thread, (days, rows, flaw)) in &sessions {
            for step in 0..*rows {
                let mut id = id(f64::from(*days) + 0.5 - step as f64 * 1e-5, step, 7);
                if step == rows - 1 {
                    match flaw {
                        0 => id.replace_range(14..15, "7"),
                        1 => id.replace_range(19..23, "9999"),
                        2 => id.make_ascii_uppercase(),
                        _ => {}
                    }
                }
                put(&stage.app, &CURRENT, thread, if step == 1 { "below:1" } else { "" }, &id, step, 100).unwrap();
            }
        }
        let settings = Sessions { archive: is_archived.then(|| stage.folder.path().join("archive")), ..stage.settings() };
        let all = stage.content();
        let mut dry = Boss::new();
        stage.run(&settings, &DRY, &mut dry);
        prop_assert_eq!(&stage.content(), &all);
        let expected: BTreeSet<String> =
            sessions.iter().filter(|(_, (days, _, flaw))| *days >= 7 && *flaw > 2).map(|(thread, _)| thread.clone()).collect();
        prop_assert_eq!(&dry.planned(), &expected);
        let mut boss = Boss::new();
        let outcome = stage.run(&settings, &YES, &mut boss);
        prop_assert_eq!(boss.planned(), dry.planned());
        prop_assert_eq!(outcome.deleted.get("session").copied().unwrap_or(0), expected.len() as u64);
        let stays = |row: &&Vec<Value>| matches!(&row[0], Value::Text(thread) if !expected.contains(thread));
        let left: Vec<Vec<Value>> = all.iter().filter(stays).cloned().collect();
        prop_assert_eq!(&stage.content(), &left);
        let mut again = Boss::new();
        stage.run(&settings, &YES, &mut again);
        prop_assert_eq!(again.planned(), names(&[]));
        prop_assert_eq!(&stage.content(), &left);
    }
}

/// The job in a process of its own, to be killed: not a test of its own.
#[test]
#[ignore = "started by another test"]
fn child() {
    let path = PathBuf::from(std::env::var("PLIMSOLL_TEST_DATABASE").unwrap());
    let archive = path.with_file_name("archive");
    let settings =
        Sessions { second_look: Duration::ZERO, archive: Some(archive), longest_lock: Duration::from_millis(1), ..settings(&path) };
    sessions::run(&settings, &YES, &mut Boss::new()).unwrap();
}

/// Killed at any moment, a run leaves every session whole or gone, the gone ones in the archive, and the next run ends the work.
#[test]
fn killed_at_any_moment_it_leaves_no_half_session() {
    const OLD: usize = 60;
    let stage = Stage::new(&CURRENT);
    stage.app.execute_batch("BEGIN").unwrap();
    for step in 0..10 {
        for old in 0..OLD {
            stage.put(&format!("old-{old:02}"), "", 9.0 + f64::from(10 - step) * 1e-5, i64::from(step), 3000);
        }
    }
    stage.session("young", 1.0, 2, 10);
    stage.app.execute_batch("COMMIT").unwrap();
    let start = |database: &Path| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child", "--ignored", "--nocapture"]).env("PLIMSOLL_TEST_DATABASE", database);
        child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let copy = || {
        let folder = tempfile::tempdir().unwrap();
        stage.app.execute("VACUUM INTO ?1", [folder.path().join("memory.db").to_str().unwrap()]).unwrap();
        let app = Connection::open(folder.path().join("memory.db")).unwrap();
        Stage { folder, app, shape: &CURRENT }
    };
    // How long the whole of it takes.
    let first = copy();
    let begun = Instant::now();
    assert!(start(&first.path()).wait().unwrap().success());
    let whole = begun.elapsed();
    let (mut kills, mut partly, mut seed) = (0, 0, 0x9E37_79B9_7F4A_7C15_u64);
    // Each round to its end; as many as it takes to have met the run at work a few times.
    for round in 0..20 {
        let mode = if round % 2 == 0 { "wal" } else { "delete" };
        if partly >= 4 && round >= 2 {
            break;
        }
        let stage = copy();
        stage.app.execute_batch(&format!("PRAGMA journal_mode = {mode}")).unwrap();
        let all = stage.content();
        while stage.threads().len() > 1 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let delay = if kills < 100 { whole.mul_f64((seed >> 33) as f64 / f64::from(1_u32 << 31)) } else { Duration::from_secs(60) };
            let mut child = start(&stage.path());
            let begun = Instant::now();
            while begun.elapsed() < delay && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            kills += usize::from(child.try_wait().unwrap().is_none());
            let _ = child.kill();
            child.wait().unwrap();
            let left = counts(&stage.app);
            for (thread, counts) in &left {
                assert_eq!(*counts, if thread == "young" { (2, 2) } else { (10, 10) }, "{thread} after {delay:?} in {mode}");
            }
            partly += usize::from(left.len() > 1 && left.len() <= OLD);
            assert!(kills < 110, "it never comes to its end");
        }
        let check: String = stage.app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
        let settings = Sessions { archive: Some(stage.folder.path().join("archive")), ..stage.settings() };
        for old in 0..OLD {
            sessions::restore(&settings, &format!("old-{old:02}"), Moment::now()).unwrap();
        }
        assert_eq!(stage.content(), all, "what was deleted is in the archives");
    }
    println!("killed {kills} times, {partly} times in the middle of the work");
    assert!(partly > 0, "no kill met the run at work: {kills}");
}
