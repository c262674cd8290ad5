//! Backups of real databases, with a real writer in another process: what is copied is one state, what is not proven counts for nothing,
//! and nothing that goes wrong at any moment takes a good copy away.
//!
//! The writer and the runs that are killed are this test program once more: SQLite's locks belong to a process.

#![expect(clippy::disallowed_methods, reason = "a test starts processes and has clocks")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll::config::jobs::{Backup, Compress, Verify};
use plimsoll::host::clock::Moment;
use plimsoll::jobs::backup::{self, Copy, Proof, Request, State, restore};
use plimsoll::jobs::plan::{Deed, Item, Totals};
use plimsoll::jobs::run::{End, Failure, Foreman, Order, Outcome, Report};
use rusqlite::Connection;

/// What the program is to be instead of a test, and on what.
const PART: &str = "PLIMSOLL_TEST_PART";
const DATABASE: &str = "PLIMSOLL_TEST_DATABASE";
const FOLDER: &str = "PLIMSOLL_TEST_FOLDER";

/// Past the capture of the test harness: a skip that nobody sees is a lie.
fn skip(reason: &str) {
    let shown = format!("skipped: {reason}\n");
    let stderr = File::options().append(true).open("/dev/stderr").and_then(|mut stderr| stderr.write_all(shown.as_bytes()));
    assert!(stderr.is_ok() && std::env::var_os("CI").is_none(), "{shown}");
}

/// Follows a run: real time, moved by so much on the wall clock.
#[derive(Default)]
struct Follower {
    later: Duration,
    reports: Vec<Report>,
}

impl Follower {
    fn planned(&self) -> Vec<Item> {
        let planned = self.reports.iter().filter_map(|report| match report {
            Report::Planned(item) => Some(item.clone()),
            _ => None,
        });
        planned.collect()
    }

    fn totals(&self) -> Totals {
        let totals = self.reports.iter().find_map(|report| match report {
            Report::Plan(totals) => Some(totals.clone()),
            _ => None,
        });
        totals.expect("a plan")
    }

    fn warnings(&self) -> Vec<String> {
        let warnings = self.reports.iter().filter_map(|report| match report {
            Report::Warning { text } => Some(text.clone()),
            _ => None,
        });
        warnings.collect()
    }

    fn event(&self) -> serde_json::Value {
        let event = self.reports.iter().find_map(|report| match report {
            Report::Event { event, fields } if event == "backup_verified" => Some(serde_json::Value::Object(fields.clone())),
            _ => None,
        });
        event.expect("backup_verified")
    }
}

impl Foreman for Follower {
    fn now(&mut self) -> Moment {
        let now = Moment::now();
        Moment { wall: now.wall + self.later, ..now }
    }

    fn tell(&mut self, report: Report) {
        self.reports.push(report);
    }

    fn wait(&mut self, time: Duration) -> bool {
        std::thread::sleep(time);
        true
    }

    fn at_safe_point(&mut self) -> bool {
        true
    }
}

struct Stage {
    base: tempfile::TempDir,
    database: PathBuf,
    settings: Backup,
}

impl Stage {
    /// A database in this mode, with pages of this size and so many checkpoints of about 2 KB.
    fn new(mode: &str, page_size: u32, checkpoints: u32) -> Stage {
        let base = tempfile::tempdir().unwrap();
        let base_path = base.path().canonicalize().unwrap();
        let database = base_path.join("memory.db");
        fill(&database, mode, page_size, checkpoints);
        let settings = settings(&database, &base_path.join("backups"));
        Stage { base, database, settings }
    }

    fn run(&self) -> Result<(Outcome, Follower), Failure> {
        let mut follower = Follower::default();
        backup::run(&self.settings, &Order::default(), &mut follower).map(|outcome| (outcome, follower))
    }

    fn copies(&self) -> Vec<Copy> {
        if self.settings.to.exists() { backup::list(&self.settings.to).unwrap() } else { Vec::new() }
    }

    /// Every file in the folder of copies.
    fn files(&self) -> Vec<String> {
        names(&self.settings.to)
    }

    fn restore_elsewhere(&self, name: &str) -> PathBuf {
        let to = self.base.path().join("restored.db");
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", to.display()));
        }
        let request = Request { name: name.to_owned(), to: Some(to.clone()), force: false, key_file: None };
        backup::restore(&self.settings.to, &request, &mut Follower::default()).unwrap();
        to
    }
}

fn settings(database: &Path, to: &Path) -> Backup {
    Backup {
        job: "backup".to_owned(),
        databases: vec![database.to_owned()],
        to: to.to_owned(),
        keep: Duration::from_secs(7 * 86400),
        keep_last: 1,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
        compress: Compress::Zstd(3),
        verify: Verify::Quick,
        key_file: None,
        longest_wal: 64 << 20,
        longest_lock: Duration::from_millis(10),
    }
}

const SCHEMA: &str = "
    CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
        parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
    CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_id TEXT NOT NULL, idx INTEGER NOT NULL, value BLOB,
        PRIMARY KEY (thread_id, checkpoint_id, idx));";

fn fill(database: &Path, mode: &str, page_size: u32, checkpoints: u32) {
    let connection = Connection::open(database).unwrap();
    connection.execute_batch(&format!("PRAGMA page_size = {page_size}; PRAGMA journal_mode = {mode}; {SCHEMA}")).unwrap();
    connection
        .execute_batch(&format!(
            "BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {checkpoints})
                INSERT INTO checkpoints SELECT 'thread-' || (i % 37), '', printf('1ef%09d', i), NULL, 'msgpack', hex(randomblob(900)), '{{}}' FROM n;
             INSERT INTO writes SELECT thread_id, checkpoint_id, 0, randomblob(100) FROM checkpoints;
             COMMIT"
        ))
        .unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Everything in it, as one number, and that SQLite finds nothing wrong.
fn digest(database: &Path) -> (i64, i64, String) {
    let connection = Connection::open(database).unwrap();
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "{}", database.display());
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let newest = connection.query_row("SELECT max(checkpoint_id) FROM checkpoints", [], |row| row.get(0)).unwrap();
    (one("SELECT count(*) FROM checkpoints"), one("SELECT count(*) FROM writes"), newest)
}

/// This program once more, as something else than a test.
fn part(part: &str, database: &Path, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_another_process", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env(DATABASE, database).env(FOLDER, folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
#[ignore = "no test: what the tests start"]
fn as_another_process() {
    let variable = |name: &str| PathBuf::from(std::env::var_os(name).expect("started by a test"));
    let (database, folder) = (variable(DATABASE), variable(FOLDER));
    match std::env::var(PART).expect("started by a test").as_str() {
        "writer" => write_until_told(&database),
        "locker" => lock_for_a_while(&database),
        "changer" => change_until_killed(&database),
        "run" => {
            backup::run(&settings(&database, &folder), &Order::default(), &mut Follower::default()).expect("a run");
        }
        other => panic!("{other}"),
    }
}

/// One commit every 10 ms, as an application: a checkpoint and a write in each. Ends when its standard input does.
fn write_until_told(database: &Path) {
    let connection = Connection::open(database).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    // So that the log of changes grows from the beginning on and nobody is kept waiting for the disk.
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF").unwrap();
    let first: i64 = connection.query_row("SELECT count(*) FROM checkpoints", [], |row| row.get(0)).unwrap();
    let told = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut longest = Duration::ZERO;
    let mut written = 0;
    while !told.is_finished() {
        let begun = Instant::now();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let id = format!("1ef{:09}", first + written + 1);
        connection.execute("INSERT INTO checkpoints VALUES ('live', '', ?1, NULL, 'msgpack', randomblob(2000), '{}')", [&id]).unwrap();
        connection.execute("INSERT INTO writes VALUES ('live', ?1, 0, 'x')", [&id]).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        longest = longest.max(begun.elapsed());
        written += 1;
        if written == 3 {
            println!("writing");
        }
        std::thread::sleep(Duration::from_millis(10).saturating_sub(begun.elapsed()));
    }
    println!("written {written} longest {}", longest.as_millis());
}

/// Has the database to itself for longer than one look at it waits.
fn lock_for_a_while(database: &Path) {
    let connection = Connection::open(database).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    println!("locked");
    std::thread::sleep(Duration::from_secs(7));
    connection.execute_batch("COMMIT").unwrap();
}

/// In the middle of a change that is on the disk in part, and its journal with it.
fn change_until_killed(database: &Path) {
    let connection = Connection::open(database).unwrap();
    connection.execute_batch("PRAGMA cache_size = 5; BEGIN IMMEDIATE; UPDATE checkpoints SET metadata = 'changed'").unwrap();
    println!("changed");
    std::thread::sleep(Duration::from_secs(600));
}

struct Writer {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Writer {
    /// Returns once it has written.
    fn start(database: &Path) -> Writer {
        Writer::start_as("writer", "writing", database)
    }

    /// As another part; returns once it has said this.
    fn start_as(name: &str, wanted: &str, database: &Path) -> Writer {
        let mut child = part(name, database, Path::new("/")).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut writer = Writer { child, out };
        writer.line(wanted);
        writer
    }

    /// The next line that has this in it: the test harness prints on the same line.
    fn line(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the writer has ended before it said {wanted:?}");
            if let Some(at) = line.find(wanted) {
                return line[at..].trim().to_owned();
            }
        }
    }

    /// How often it wrote, and the longest it took in milliseconds.
    fn end(mut self) -> (u64, u64) {
        drop(self.child.stdin.take());
        let line = self.line("written");
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(self.child.wait().unwrap().success());
        (numbers[0], numbers[1])
    }
}

#[test]
fn a_live_database_is_copied_as_one_state_and_proven() {
    let stage = Stage::new("wal", 4096, 6000);
    let writer = Writer::start(&stage.database);
    let (outcome, follower) = stage.run().unwrap();
    let (written, longest) = writer.end();
    let event = follower.event();
    println!("{event}; the writer wrote {written} times, the longest took {longest} ms");
    assert_eq!((outcome.end, outcome.errors), (End::Done, vec![]));
    assert_eq!(
        (event["method"].as_str(), event["verified_by"].as_str(), event["check"].as_str()),
        (Some("pages"), Some("stream"), Some("quick_check"))
    );
    let copies = stage.copies();
    assert_eq!((copies.len(), &copies[0].state), (1, &State::Good));
    assert_eq!(outcome.figures["backup_size_bytes"], copies[0].bytes() as f64);
    let restored = digest(&stage.restore_elsewhere(&copies[0].name));
    let now = digest(&stage.database);
    // The writer was in the middle of its work, and each of its transactions is there whole or not at all.
    assert!(restored.0 > 6000 && restored.0 < now.0, "{restored:?} of {now:?}");
    assert_eq!((restored.0, restored.2.clone()), (restored.1, format!("1ef{:09}", restored.0)));
    let manifest = copies[0].manifest.clone().unwrap();
    assert_eq!(
        (manifest.content.tables["checkpoints"].rows, manifest.content.newest_checkpoint),
        (Some(restored.0 as u64), Some(restored.2))
    );
    // Other programs can make sense of it: `sha256sum` and `zstd -d`.
    let file = stage.settings.to.join(&copies[0].name);
    if let Ok(sum) = Command::new("sha256sum").arg(&file).output() {
        assert!(String::from_utf8_lossy(&sum.stdout).starts_with(&manifest.file_sha256));
    }
    // Nothing of ours is left beside the database, and nothing but the copy and its manifest is in the folder.
    assert_eq!(stage.files(), [manifest.file.clone(), format!("{}.json", manifest.file)]);
}

#[test]
fn pages_of_any_size_and_any_journal_come_back_as_they_were() {
    for page_size in [512, 1024, 4096, 16384, 65536] {
        for mode in ["wal", "delete", "truncate", "persist"] {
            for (compress, verify) in
                [(Compress::Zstd(1), Verify::Quick), (Compress::None, Verify::Full), (Compress::Zstd(3), Verify::None)]
            {
                let mut stage = Stage::new(mode, page_size, 300);
                (stage.settings.compress, stage.settings.verify) = (compress, verify);
                let before = (fs::read(&stage.database).unwrap(), names(stage.base.path()));
                let (_, follower) = stage.run().unwrap_or_else(|failure| panic!("{page_size} {mode}: {failure}"));
                let method = if mode == "wal" { "pages" } else { "pages-between-locks" };
                assert_eq!(follower.event()["method"], method, "{page_size} {mode}");
                assert!(fs::read(&stage.database).unwrap() == before.0, "the database was changed");
                assert_eq!(names(stage.base.path()).iter().filter(|name| *name != "backups").count(), before.1.len());
                let restored = stage.restore_elsewhere(&stage.copies()[0].name);
                assert!(fs::read(&restored).unwrap() == before.0, "{page_size} {mode}");
                assert_eq!(digest(&restored), digest(&stage.database));
            }
        }
    }
}

#[test]
fn a_busy_database_without_a_log_of_changes_is_given_up_in_time_and_its_writer_is_not_held_up() {
    let mut stage = Stage::new("delete", 4096, 6000);
    stage.settings.longest_lock = Duration::from_millis(2);
    let writer = Writer::start(&stage.database);
    let begun = Instant::now();
    let failure = stage.run().err().expect("it changes all the time");
    let took = begun.elapsed();
    let (written, longest) = writer.end();
    println!("{failure}\nafter {took:?}; the writer wrote {written} times, the longest took {longest} ms");
    assert!(failure.0.contains("changed under the reader 5 times") && failure.0.contains("longest_lock"), "{failure}");
    assert!(took < Duration::from_secs(60));
    assert_eq!(stage.files(), [""; 0]);
    // At rest it is copied.
    stage.run().unwrap();
    assert_eq!(stage.copies()[0].state, State::Good);
}

#[test]
fn a_database_that_is_locked_for_a_while_is_waited_for() {
    let stage = Stage::new("delete", 4096, 50);
    let mut locker = Writer::start_as("locker", "locked", &stage.database);
    let begun = Instant::now();
    stage.run().unwrap();
    assert!(begun.elapsed() > Duration::from_secs(5), "it was not locked");
    assert!(locker.child.wait().unwrap().success());
    assert_eq!(stage.copies()[0].state, State::Good);
}

#[test]
fn a_change_whose_application_died_is_told_as_such() {
    let stage = Stage::new("delete", 4096, 2000);
    let mut changer = Writer::start_as("changer", "changed", &stage.database);
    changer.child.kill().unwrap();
    changer.child.wait().unwrap();
    let failure = stage.run().err().expect("a journal nobody may roll back");
    assert!(failure.0.contains("its application died in the middle of a change"), "{failure}");
    // Opened once it is whole again.
    digest(&stage.database);
    stage.run().unwrap();
}

#[test]
fn a_log_that_grows_too_long_behind_the_snapshot_ends_the_run_cleanly() {
    let mut stage = Stage::new("wal", 4096, 20_000);
    stage.settings.longest_wal = 1;
    let writer = Writer::start(&stage.database);
    let failure = stage.run().err().expect("the log grows");
    writer.end();
    assert!(failure.0.contains("the log of changes has grown by") && failure.0.contains("longest_wal"), "{failure}");
    assert_eq!(stage.files(), [""; 0]);
}

#[test]
fn a_changed_byte_anywhere_in_a_copy_is_found() {
    let stage = Stage::new("wal", 4096, 500);
    stage.run().unwrap();
    let copy = stage.copies().remove(0);
    let path = stage.settings.to.join(&copy.name);
    let size = copy.bytes();
    for place in [0, 5, size / 3, size / 2, size - 5, size - 1] {
        let flip = || {
            let mut file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.seek(SeekFrom::Start(place)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(place)).unwrap();
            file.write_all(&[byte[0] ^ 0x20]).unwrap();
        };
        let verify = || backup::verify(&stage.settings.to, &copy.name, Verify::Quick, None, None, &mut Follower::default()).unwrap();
        flip();
        let proof = verify();
        assert!(matches!(proof, Proof::Damaged(_)), "a changed byte at {place}: {proof:?}");
        // It counts for nothing now, and nobody brings it back.
        assert!(matches!(stage.copies()[0].state, State::Damaged(_)));
        let request = Request { name: copy.name.clone(), to: Some(stage.base.path().join("x.db")), force: false, key_file: None };
        assert!(backup::restore(&stage.settings.to, &request, &mut Follower::default()).is_err());
        assert!(!stage.base.path().join("x.db").exists());
        flip();
        assert_eq!(verify(), Proof::Good("quick_check".into()));
        assert_eq!(stage.copies()[0].state, State::Good);
    }
    assert_eq!(stage.files().len(), 2);
}

#[test]
fn a_damaged_database_makes_no_copy_and_the_good_one_stays() {
    let mut stage = Stage::new("wal", 4096, 2000);
    stage.run().unwrap();
    stage.settings.keep = Duration::ZERO;
    let good = stage.copies();
    let pages = fs::metadata(&stage.database).unwrap().len() / 4096;
    let mut file = File::options().write(true).open(&stage.database).unwrap();
    for page in (pages / 3)..(pages / 3 + 20) {
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0x55; 4096]).unwrap();
    }
    drop(file);
    for verify in [Verify::Quick, Verify::Full] {
        stage.settings.verify = verify;
        let failure = stage.run().err().expect("a damaged database");
        assert!(failure.0.contains("_check"), "{failure}");
        assert_eq!(stage.copies(), good);
        assert_eq!(stage.files().len(), 2);
    }
}

#[test]
fn a_database_that_needs_what_only_its_application_has_is_copied_and_comes_back() {
    // Made with what is there and written down by another name: the same bytes as an application's own function makes.
    let cases = [
        ("a check", "CREATE TABLE t (a INTEGER CHECK (abs(a) > 0))", "abs(", "application("),
        ("an expression", "CREATE TABLE t (a INTEGER); CREATE INDEX i ON t (abs(a))", "abs(", "application("),
        ("a part", "CREATE TABLE t (a INTEGER); CREATE INDEX i ON t (a) WHERE abs(a) > 1", "abs(", "application("),
        (
            "a tokenizer",
            "CREATE TABLE t (a INTEGER); CREATE VIRTUAL TABLE f USING fts5(b, tokenize = unicode61); INSERT INTO f VALUES ('a b')",
            "unicode61",
            "application",
        ),
        ("a module", "CREATE TABLE t (a INTEGER); CREATE VIRTUAL TABLE f USING fts5(b)", "fts5", "application"),
    ];
    for (what, schema, known, application) in cases {
        let (mut told, mut told_at_restore) = (false, false);
        for mode in ["wal", "delete"] {
            for verify in [Verify::Quick, Verify::Full, Verify::None] {
                let mut stage = Stage::new(mode, 4096, 50);
                stage.settings.verify = verify;
                let connection = Connection::open(&stage.database).unwrap();
                connection.execute_batch(&format!("{schema}; INSERT INTO t VALUES (-3), (1), (2)")).unwrap();
                let rename =
                    format!("UPDATE sqlite_schema SET sql = replace(sql, '{known}', '{application}') WHERE name IN ('t', 'i', 'f')");
                connection.execute_batch(&format!("PRAGMA writable_schema = 1; {rename}")).unwrap();
                drop(connection);
                let (_, follower) = stage.run().unwrap_or_else(|failure| panic!("{what} {mode} {verify:?}: {failure}"));
                let check = follower.event()["check"].as_str().unwrap().to_owned();
                told |= check.contains("not possible");
                let copy = stage.copies().remove(0);
                assert_eq!(copy.state, State::Good);
                let proof = backup::verify(&stage.settings.to, &copy.name, Verify::Full, None, None, &mut Follower::default()).unwrap();
                assert!(matches!(proof, Proof::Good(_)), "{what}: {proof:?}");
                let to = stage.base.path().join("back.db");
                let request = Request { name: copy.name, to: Some(to.clone()), force: false, key_file: None };
                let restored = backup::restore(&stage.settings.to, &request, &mut Follower::default()).unwrap();
                told_at_restore |= restored.notes.iter().any(|note| note.contains("not possible"));
                assert!(fs::read(&to).unwrap() == fs::read(&stage.database).unwrap(), "{what} {mode} {verify:?}");
            }
        }
        // SQLite leaves a table whose module is missing out of its check, looks at indexes in the full one alone, and at no `CHECK` of a
        // file that it may not write.
        assert_eq!((told, told_at_restore), (what != "a module", what == "a tokenizer"), "{what}");
    }
}

#[test]
fn restore_overwrites_nothing_unless_it_is_forced_and_then_keeps_it_aside() {
    let stage = Stage::new("wal", 4096, 400);
    stage.run().unwrap();
    let copied = digest(&stage.database);
    let name = stage.copies()[0].name.clone();
    // The application goes on, and dies with changes that are in its log alone.
    let mut writer = Writer::start(&stage.database);
    writer.child.kill().unwrap();
    writer.child.wait().unwrap();
    let wal = stage.base.path().join("memory.db-wal");
    assert!(fs::metadata(&wal).unwrap().len() > 0);
    let before = (fs::read(&stage.database).unwrap(), fs::read(&wal).unwrap());
    let restore = |force| {
        let request = Request { name: name.clone(), to: None, force, key_file: None };
        backup::restore(&stage.settings.to, &request, &mut Follower::default())
    };
    let failure = restore(false).unwrap_err();
    assert!(failure.0.contains("is there already; --force"), "{failure}");
    assert!((fs::read(&stage.database).unwrap(), fs::read(&wal).unwrap()) == before);
    let restored = restore(true).unwrap();
    assert!(!wal.exists(), "the old log would be applied to the new file");
    assert_eq!(digest(&stage.database), copied);
    let aside = restored.aside.unwrap();
    assert!(fs::read(&aside).unwrap() == before.0);
    let kept = digest(&aside);
    assert!(kept.0 > copied.0, "what was in the log alone is lost: {kept:?}");
    // Nothing to replace: no force is needed, nothing is kept.
    for name in names(stage.base.path()).iter().filter(|name| *name != "backups") {
        fs::remove_file(stage.base.path().join(name)).unwrap();
    }
    assert_eq!(restore(false).unwrap().aside, None);
    assert_eq!(digest(&stage.database), copied);
    // A log alone, without its database, is something too.
    fs::remove_file(&stage.database).unwrap();
    fs::write(&wal, "left over").unwrap();
    assert!(restore(false).is_err());
}

#[test]
fn a_lost_database_is_found_by_the_name_it_is_known_by() {
    let stage = Stage::new("wal", 4096, 50);
    let base = stage.base.path().canonicalize().unwrap();
    stage.run().unwrap();
    let copied = digest(&stage.database);
    let link = base.join("link.db");
    std::os::unix::fs::symlink("memory.db", &link).unwrap();
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{ending}", stage.database.display()));
    }
    let copies = stage.copies();
    assert_eq!(restore::newest(&copies, Some(&backup::resolved(&link))), Ok(copies[0].name.clone()));
    let error = restore::newest(&copies, Some(Path::new("/other.db"))).unwrap_err();
    assert_eq!(error, format!("there is no verified copy of /other.db; there are copies of {}", stage.database.display()));
    // What a link leads to is brought back, and the link stays.
    let request = Request { name: copies[0].name.clone(), to: Some(link.clone()), force: false, key_file: None };
    backup::restore(&stage.settings.to, &request, &mut Follower::default()).unwrap();
    assert_eq!((digest(&stage.database), link.read_link().unwrap()), (copied, PathBuf::from("memory.db")));
}

#[test]
fn a_run_that_is_killed_at_any_moment_leaves_no_half_copy_that_counts() {
    let stage = Stage::new("wal", 4096, 3000);
    let begun = Instant::now();
    stage.run().unwrap();
    let whole = begun.elapsed();
    let mut outcomes = BTreeMap::new();
    for round in 0..40_u32 {
        let mut child = part("run", &stage.database, &stage.settings.to).spawn().unwrap();
        std::thread::sleep(whole * round / 25);
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is there is good or does not count.
        for copy in stage.copies() {
            assert_eq!(copy.state, State::Good, "round {round}: {}", copy.name);
        }
        let left = stage.files().iter().filter(|name| name.contains(".partial")).count();
        *outcomes.entry(if left > 0 { "left something" } else { "left nothing" }).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes.contains_key("left something"), "no run was killed in the middle: {outcomes:?}");
    let (_, follower) = stage.run().unwrap();
    println!("{:?}", follower.warnings());
    assert!(stage.files().iter().all(|name| !name.contains(".partial")), "{:?}", stage.files());
    for copy in stage.copies() {
        let proof = backup::verify(&stage.settings.to, &copy.name, Verify::Full, None, None, &mut Follower::default()).unwrap();
        assert_eq!(proof, Proof::Good("integrity_check".into()));
    }
    assert_eq!(stage.files().len(), 2 * stage.copies().len());
}

#[test]
fn a_dry_run_makes_nothing_and_the_run_does_exactly_what_it_said() {
    let mut stage = Stage::new("wal", 4096, 50);
    let dry = Order { dry_run: true, ..Order::default() };
    let mut follower = Follower::default();
    let outcome = backup::run(&stage.settings, &dry, &mut follower).unwrap();
    assert_eq!((outcome.end, follower.planned().len()), (End::Planned, 1));
    assert!(!stage.settings.to.exists());
    stage.settings.keep_last = 2;
    let mut kept = Vec::new();
    for day in 0..20 {
        let later = Duration::from_secs(day * 86400);
        let mut said = Follower { later, ..Follower::default() };
        backup::run(&stage.settings, &dry, &mut said).unwrap();
        let before: Vec<String> = stage.copies().into_iter().map(|copy| copy.name).collect();
        let mut follower = Follower { later, ..Follower::default() };
        let outcome = backup::run(&stage.settings, &Order::default(), &mut follower).unwrap();
        assert_eq!((said.planned(), said.totals()), (follower.planned(), follower.totals()));
        let gone: Vec<String> = said.planned().into_iter().filter(|item| item.deed == Deed::Delete).map(|item| item.name).collect();
        let after: Vec<String> = stage.copies().into_iter().map(|copy| copy.name).collect();
        assert_eq!(before.into_iter().filter(|name| !after.contains(name)).collect::<Vec<_>>(), gone);
        assert_eq!(outcome.deleted.get("backup").copied().unwrap_or(0), gone.len() as u64);
        kept.push(after.len());
    }
    assert_eq!(kept, [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    // The clock goes back: the newest copies are dated in the future, and nothing goes.
    let mut follower = Follower { later: Duration::from_secs(10 * 86400), ..Follower::default() };
    backup::run(&stage.settings, &Order::default(), &mut follower).unwrap();
    assert_eq!(stage.copies().len(), 8);
    assert!(follower.warnings().iter().any(|text| text.contains("dated in the future")), "{:?}", follower.warnings());
    // A jump forward ages everything at once: nothing goes before somebody has looked.
    let mut follower = Follower { later: Duration::from_secs(4000 * 86400), ..Follower::default() };
    let jumped = Order { clock_jumped: true, ..Order::default() };
    backup::run(&stage.settings, &jumped, &mut follower).unwrap();
    assert_eq!(stage.copies().len(), 9);
}

#[test]
fn one_database_that_fails_keeps_no_other_from_being_copied() {
    let mut stage = Stage::new("wal", 4096, 50);
    stage.settings.databases.insert(0, stage.base.path().join("missing.db"));
    // The same one by another name is copied once.
    std::os::unix::fs::symlink(&stage.database, stage.base.path().join("link.db")).unwrap();
    stage.settings.databases.push(stage.base.path().join("link.db"));
    let (outcome, _) = stage.run().expect("the other one is there");
    assert_eq!(outcome.end, End::Failed);
    let failure = &outcome.errors[0];
    assert!(failure.contains("missing.db: No such file") && failure.ends_with("; 1 of the others is copied"), "{failure}");
    assert_eq!(stage.copies().len(), 1);
    // What became of the others is told too.
    stage.settings.keep = Duration::ZERO;
    let mut follower = Follower { later: Duration::from_secs(60), ..Follower::default() };
    let outcome = backup::run(&stage.settings, &Order::default(), &mut follower).unwrap();
    assert_eq!((&outcome.end, outcome.deleted.get("backup")), (&End::Failed, Some(&1)));
    assert!(outcome.reclaimed_bytes > 0 && outcome.figures["backup_size_bytes"] > 0.0, "{outcome:?}");
    assert_eq!(stage.copies().len(), 1);
    assert!(!stage.base.path().join("missing.db").exists());
}

#[test]
fn two_runs_at_once_do_not_meet() {
    let stage = Stage::new("wal", 4096, 50);
    let folder = plimsoll::host::durable::Directory::open_or_make(&stage.settings.to).unwrap();
    assert!(folder.try_lock().unwrap());
    let failure = stage.run().err().expect("somebody else has it");
    assert!(failure.0.contains("another run is at work"), "{failure}");
    drop(folder);
    stage.run().unwrap();
}

#[test]
fn two_jobs_that_copy_one_database_into_one_folder_leave_each_other_s_copies_alone() {
    let mut stage = Stage::new("wal", 4096, 50);
    stage.settings.keep = Duration::from_secs(3600);
    let run = |settings: &Backup, day: u64| {
        let mut follower = Follower { later: Duration::from_secs(day * 86400), ..Follower::default() };
        backup::run(settings, &Order::default(), &mut follower).unwrap();
        follower
    };
    run(&stage.settings, 0);
    // As a version that wrote no names down has made it.
    let old = stage.settings.to.join(format!("{}.json", stage.copies()[0].name));
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&old).unwrap()).unwrap();
    assert_eq!(manifest.as_object_mut().unwrap().remove("job"), Some("backup".into()));
    fs::write(&old, manifest.to_string()).unwrap();
    let long = Backup { job: "long".into(), keep_last: 10, ..stage.settings.clone() };
    run(&long, 1);
    for day in 2..6 {
        let follower = run(&stage.settings, day);
        assert_eq!(follower.event()["earlier_copies"], 1, "those of the other job are none of its");
        run(&long, day);
    }
    let copies = stage.copies();
    let of = |job| copies.iter().filter(|copy| copy.manifest.as_ref().unwrap().job.as_deref() == Some(job)).count();
    assert_eq!((of("backup"), of("long"), copies.len()), (1, 5, 6));
}

#[test]
fn unproven_copies_never_push_a_good_one_out() {
    let mut stage = Stage::new("wal", 4096, 50);
    stage.settings.keep = Duration::from_secs(3600);
    stage.settings.keep_last = 3;
    stage.run().unwrap();
    let good = stage.copies()[0].name.clone();
    // As if each later one had been made by a version that proves nothing.
    let unprove = || {
        for copy in stage.copies().iter().filter(|copy| copy.name != good) {
            let path = stage.settings.to.join(format!("{}.json", copy.name));
            let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            manifest.as_object_mut().unwrap().remove("verified");
            fs::write(&path, manifest.to_string()).unwrap();
        }
    };
    for day in 1..10 {
        let mut follower = Follower { later: Duration::from_secs(day * 86400), ..Follower::default() };
        backup::run(&stage.settings, &Order::default(), &mut follower).unwrap();
        unprove();
        assert!(stage.copies().iter().any(|copy| copy.name == good && copy.state == State::Good), "day {day}");
    }
    let copies = stage.copies();
    assert_eq!((copies.len(), &copies[9].state), (10, &State::Unverified));
    // Once two of them are proven, three good ones are newer than the old ones after the next run.
    for copy in &copies[8..] {
        backup::verify(&stage.settings.to, &copy.name, Verify::Quick, None, None, &mut Follower::default()).unwrap();
    }
    let mut follower = Follower { later: Duration::from_secs(10 * 86400), ..Follower::default() };
    backup::run(&stage.settings, &Order::default(), &mut follower).unwrap();
    assert_eq!(stage.copies().len(), 3);
}

/// The pair of age's own tests.
const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
const IDENTITY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

#[test]
fn sealed_copies_open_with_the_identity_alone_and_with_age_itself() {
    let mut stage = Stage::new("wal", 4096, 500);
    let (identity, recipient) = (stage.base.path().join("identity"), stage.base.path().join("recipient"));
    fs::write(&identity, format!("# for a test\n{IDENTITY}\n")).unwrap();
    fs::write(&recipient, RECIPIENT).unwrap();
    let before = digest(&stage.database);
    for (key_file, how) in [(&identity, "stream"), (&recipient, "sealed")] {
        stage.settings.key_file = Some(key_file.clone());
        let (_, follower) = stage.run().unwrap();
        assert_eq!(follower.event()["verified_by"], how);
        let copy = stage.copies().pop().unwrap();
        assert!(copy.name.ends_with(".db.zst.age") && copy.state == State::Good, "{}", copy.name);
        let verify =
            |keys: Option<&Path>| backup::verify(&stage.settings.to, &copy.name, Verify::Full, None, keys, &mut Follower::default());
        for keys in [None, Some(recipient.as_path())] {
            let proof = verify(keys).unwrap();
            assert!(matches!(&proof, Proof::Unknown(reason) if reason.contains("no key_file holds an identity")), "{proof:?}");
        }
        assert_eq!(verify(Some(&identity)).unwrap(), Proof::Good("integrity_check".into()));
        let to = stage.base.path().join(format!("{how}.db"));
        let request = Request { name: copy.name.clone(), to: Some(to.clone()), force: false, key_file: Some(identity.clone()) };
        backup::restore(&stage.settings.to, &request, &mut Follower::default()).unwrap();
        assert_eq!(digest(&to), before);
        let opened = Command::new("age").arg("-d").arg("-i").arg(&identity).arg(stage.settings.to.join(&copy.name)).output();
        match opened {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                fs::write(stage.base.path().join("open.zst"), &output.stdout).unwrap();
                let unpacked = Command::new("zstd").args(["-d", "-c"]).arg(stage.base.path().join("open.zst")).output().unwrap();
                assert!(unpacked.stdout == fs::read(&to).unwrap());
            }
            Err(error) => skip(&format!("age itself is not here: {error}")),
        }
    }
    fs::write(&recipient, "no key").unwrap();
    let failure = stage.run().err().expect("no key");
    assert!(failure.0.contains("line 1 is neither a recipient"), "{failure}");
    assert_eq!(stage.copies().len(), 2);
}

#[test]
fn what_nobody_here_can_open_is_checked_before_it_is_sealed() {
    for mode in ["wal", "delete"] {
        for (verify, check) in [(Verify::Quick, "quick_check"), (Verify::Full, "integrity_check")] {
            let mut stage = Stage::new(mode, 4096, 2000);
            let recipient = stage.base.path().join("recipient");
            fs::write(&recipient, RECIPIENT).unwrap();
            (stage.settings.key_file, stage.settings.verify) = (Some(recipient), verify);
            let (_, follower) = stage.run().unwrap();
            // A snapshot of a live one is not held for the long check.
            assert_eq!(follower.event()["check"], if mode == "wal" { "quick_check" } else { check });
            assert_eq!((stage.copies().len(), stage.files().len()), (1, 2), "{mode}: nothing is left of what was looked at");
            let pages = fs::metadata(&stage.database).unwrap().len() / 4096;
            let mut file = File::options().write(true).open(&stage.database).unwrap();
            for page in (pages / 3)..(pages / 3 + 20) {
                file.seek(SeekFrom::Start(page * 4096)).unwrap();
                file.write_all(&[0x55; 4096]).unwrap();
            }
            drop(file);
            let failure = stage.run().err().unwrap_or_else(|| panic!("{mode}: a damaged database is sealed and counts"));
            assert!(failure.0.contains("_check"), "{mode}: {failure}");
            assert_eq!(stage.files().len(), 2, "{:?}", stage.files());
        }
    }
}

#[test]
fn a_restore_or_a_proof_that_is_told_to_stop_leaves_nothing_behind() {
    let stage = Stage::new("wal", 4096, 60_000);
    stage.run().unwrap();
    let (name, to) = (stage.copies()[0].name.clone(), stage.base.path().join("back.db"));
    let (folder, scratch) = (stage.settings.to.to_str().unwrap(), stage.base.path().join("scratch"));
    fs::create_dir(&scratch).unwrap();
    let commands = [
        (vec!["backups", "restore", "--in", folder, &name, "--to", to.to_str().unwrap()], stage.base.path()),
        (vec!["backups", "verify", "--in", folder, &name, "--scratch", scratch.to_str().unwrap()], scratch.as_path()),
    ];
    for (arguments, at) in commands {
        let work = || names(at).into_iter().find(|name| name.ends_with(".restored") || name.ends_with(".scratch"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        let mut child = command.args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while work().is_none() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before it began: {arguments:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_some_and(|code| code != 0), "{arguments:?}: {status}");
        assert_eq!((work(), to.exists()), (None, false), "{arguments:?}");
    }
    assert_eq!(stage.copies()[0].state, State::Good, "nothing was found wrong with it");
}

/// A disk of so many bytes, gone with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, bytes: u64) -> Result<Disk, String> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Disk(at.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_for_the_proof_is_told_before_the_copy_is_made() {
    let mut stage = Stage::new("wal", 4096, 8000);
    stage.settings.verify = Verify::Full;
    let database = fs::metadata(&stage.database).unwrap().len();
    let disk = match Disk::mount(&stage.settings.to, database) {
        Ok(disk) => disk,
        Err(reason) => return skip(&format!("no small disk can be mounted here: {reason}")),
    };
    let mut follower = Follower::default();
    let failure = backup::run(&stage.settings, &Order::default(), &mut follower).unwrap_err();
    assert!(failure.0.contains("are left on the disk; the copy takes about"), "{failure}");
    // For the copy alone there is room.
    stage.settings.verify = Verify::Quick;
    stage.run().unwrap();
    drop(disk);
}

#[test]
fn copies_on_read_only_media_are_proven_and_a_note_says_that_it_is_not_written_down() {
    let stage = Stage::new("wal", 4096, 200);
    let disk = match Disk::mount(&stage.settings.to, 64 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skip(&format!("no small disk can be mounted here: {reason}")),
    };
    stage.run().unwrap();
    let name = stage.copies()[0].name.clone();
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.0).status().unwrap().success());
    let verify = |scratch: Option<&Path>| {
        let mut follower = Follower::default();
        (backup::verify(&stage.settings.to, &name, Verify::Full, scratch, None, &mut follower), follower.warnings())
    };
    let (proof, warnings) = verify(Some(stage.base.path()));
    assert_eq!(proof, Ok(Proof::Good("integrity_check".into())));
    assert!(
        warnings.iter().any(|text| text.starts_with("could not write down what was found of ") && text.contains("Read-only")),
        "{warnings:?}"
    );
    let (proof, _) = verify(None);
    assert!(matches!(&proof, Ok(Proof::Unknown(reason)) if reason.contains("--scratch FOLDER")), "{proof:?}");
    drop(disk);
}

#[test]
fn a_disk_that_fills_at_any_moment_leaves_the_old_copy_and_nothing_else() {
    let mut stage = Stage::new("wal", 4096, 2000);
    let mut seen = BTreeMap::new();
    for step in 0..24_u64 {
        let disk = match Disk::mount(&stage.settings.to, 64 << 20) {
            Ok(disk) => disk,
            Err(reason) => return skip(&format!("no small disk can be mounted here: {reason}")),
        };
        stage.settings.verify = Verify::Quick;
        stage.run().unwrap();
        let good = stage.copies();
        let size = good[0].bytes();
        // All but so much is taken: from nothing to more than enough, the reserve and the verification included.
        let free = plimsoll::host::filesystem::space(&stage.settings.to).unwrap().avail;
        let left = size * step / 12 + (1 << 20) * (step % 3);
        let ballast = File::create(stage.settings.to.join("ballast")).unwrap();
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, free.saturating_sub(left)).unwrap();
        if step % 2 == 0 {
            stage.settings.verify = Verify::Full;
        }
        let word = match stage.run() {
            Ok(_) => "copied",
            Err(failure) if failure.0.contains("left") => "no room",
            Err(failure) if failure.0.contains("No space left") => "full",
            Err(failure) => panic!("{failure}"),
        };
        *seen.entry(word).or_insert(0) += 1;
        let copies = stage.copies();
        assert!(copies.iter().all(|copy| copy.state == State::Good) && copies.contains(&good[0]), "{copies:?}");
        assert_eq!(stage.files().len(), 1 + 2 * copies.len(), "{:?}", stage.files());
        drop(ballast);
        drop(disk);
    }
    println!("{seen:?}");
    assert!(seen.contains_key("no room"), "{seen:?}");
}
