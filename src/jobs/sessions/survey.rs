//! Which sessions there are, how old and how large each is: the listing a plan is made from. Reads only, in statements so
//! short that they hold nobody up in any journal mode.
//!
//! Three passes. The first jumps from one session to the next through the primary key (a loose index scan: its cost follows
//! the sessions, not the rows) and asks each for its newest checkpoint: most are young, and that is all there is to say. The
//! second looks at every row of those that seem old. The third adds up what each takes, table by table in the order of the
//! file, because the largest sessions are told whatever their age.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::types::{FromSql, ToSqlOutput, Value, ValueRef};
use rusqlite::{OptionalExtension, ToSql, params};

use super::age::{Age, Doubt, Stamp, agrees, parse, recorded_step};
use super::layout::{Dating, Layout, Rows, SessionId};
use super::look::Look;
use super::reading::{each_row, read_in_chunks};
use super::table;
use crate::jobs::plan::Tally;
use crate::jobs::run::{Failure, Foreman};
use crate::jobs::sqlite::{Database, patiently, quoted, told};

/// Sessions found in one transaction.
const JUMPS: usize = 256;
/// An id may lie so far ahead: two machines' clocks are never quite the same.
const TOLERATED_AHEAD: Duration = Duration::from_secs(5 * 60);
/// 2024-01-01: there was no checkpointer before. An id that says so was made while a clock stood at its beginning, and may
/// be of yesterday.
const FIRST: Stamp = Stamp(1_704_067_200 * 10_000_000);

/// Between which moments a session is young.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub now: Stamp,
    /// Older than this is old.
    pub cutoff: Stamp,
    /// Newer than this cannot be.
    pub future: Stamp,
}

impl Limits {
    pub fn new(now: Stamp, keep: Duration) -> Limits {
        Limits { now, cutoff: now.before(keep), future: now.after(TOLERATED_AHEAD) }
    }
}

/// One session.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub id: SessionId,
    pub age: Age,
    /// What its rows hold.
    pub bytes: u64,
    /// Of those alone whose rows were looked at one by one: what must not have changed when it is deleted.
    pub look: Option<Look>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// In the order of their ids.
    pub sessions: Vec<Seen>,
    /// Rows of the main table.
    pub checkpoints: u64,
    /// Sessions whose id is NULL, a blob or no UTF-8; they have no name by which they could be listed.
    pub odd: Tally,
    /// Rows of sessions that are gone, by session: they stay, and are none of the sessions of which so many may go at once.
    pub orphans: Tally,
}

impl Survey {
    /// Sessions there are.
    pub fn count(&self) -> u64 {
        self.sessions.len() as u64 + self.odd.count
    }

    pub fn bytes(&self) -> u64 {
        self.sessions.iter().map(|seen| seen.bytes).fold(self.odd.bytes, u64::saturating_add)
    }
}

/// Lists every session; `None` when the run is to stop first.
///
/// # Errors
/// When the database cannot be read.
pub fn take(database: &Database, layout: &Layout, limits: &Limits, foreman: &mut dyn Foreman) -> Result<Option<Survey>, Failure> {
    take_all(database, layout, limits, foreman)
        .map_err(|error| Failure(format!("read the sessions of {}: {}", database.path().display(), told(&error))))
}

fn take_all(database: &Database, layout: &Layout, limits: &Limits, foreman: &mut dyn Foreman) -> rusqlite::Result<Option<Survey>> {
    let mut survey = Survey::default();
    match &layout.dating {
        Dating::Column(time) => {
            let Some(ages) = table::ages(database, layout.main(), time, foreman)? else { return Ok(None) };
            survey.sessions = ages.into_iter().map(|(id, age)| Seen { id, age, bytes: 0, look: None }).collect();
            for seen in &mut survey.sessions {
                if is_old(seen.age, limits) {
                    if !foreman.at_safe_point() {
                        return Ok(None);
                    }
                    let again = || database.at_once(|| date_and_look(database, layout, time, &seen.id, limits));
                    let Some((age, look)) = patiently(foreman, again)? else { return Ok(None) };
                    (seen.age, seen.look) = (age, look);
                }
            }
        }
        Dating::Ids { .. } | Dating::Never => {
            if !find_candidates(database, layout, &mut survey, foreman)? {
                return Ok(None);
            }
            for seen in &mut survey.sessions {
                if is_old(seen.age, limits) {
                    let Some((age, look)) = verify(database, layout, &seen.id, limits, foreman)? else { return Ok(None) };
                    (seen.age, seen.look) = (age, look);
                    if !foreman.at_safe_point() {
                        return Ok(None);
                    }
                }
            }
        }
    }
    Ok(weigh(database, layout, &mut survey, limits, foreman)?.then_some(survey))
}

/// True for a session that may be deleted as far as its age goes.
pub fn is_old(age: Age, limits: &Limits) -> bool {
    matches!(age, Age::Known { latest, .. } if latest < limits.cutoff)
}

/// The id of a session to which the first pass has jumped; bound back as what it is, or the next jump would miss.
#[derive(Clone)]
enum Jumped {
    Text(String),
    /// A text that is no UTF-8: nothing keeps an application from writing one.
    Bytes(Vec<u8>),
    Other(Value),
}

impl Jumped {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Jumped> {
        Ok(match row.get_ref(0)? {
            ValueRef::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Jumped::Text(text.to_owned()),
                Err(_) => Jumped::Bytes(text.to_vec()),
            },
            _ => Jumped::Other(row.get(0)?),
        })
    }
}

impl ToSql for Jumped {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Jumped::Text(text) => text.to_sql(),
            Jumped::Bytes(text) => Ok(ToSqlOutput::Borrowed(ValueRef::Text(text))),
            Jumped::Other(value) => value.to_sql(),
        }
    }
}

/// The first pass over a LangGraph database: every session with the age of its newest root checkpoint. False when the run is
/// to stop.
///
/// # Errors
/// What SQLite said.
pub fn find_candidates(database: &Database, layout: &Layout, survey: &mut Survey, foreman: &mut dyn Foreman) -> rusqlite::Result<bool> {
    let main = layout.main();
    let (table, id) = (main.name(), quoted(&main.id));
    let null = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {id} IS NULL)");
    let Some(has_null) = patiently(foreman, || database.connection.query_row(&null, [], |row| row.get::<_, bool>(0)))? else {
        return Ok(false);
    };
    survey.odd.count += u64::from(has_null);
    let first = format!("SELECT {id} FROM {table} WHERE {id} IS NOT NULL ORDER BY {id} LIMIT 1");
    let next = format!("SELECT {id} FROM {table} WHERE {id} > ?1 ORDER BY {id} LIMIT 1");
    let newest = newest_of(layout);
    let mut first = database.connection.prepare(&first)?;
    let mut next = database.connection.prepare(&next)?;
    let mut newest = newest.map(|newest| database.connection.prepare(&newest)).transpose()?;
    let mut last: Option<Jumped> = None;
    // Many jumps in one transaction: taking the lock anew for each would be most of the work.
    let mut jump = || -> rusqlite::Result<Vec<(Jumped, Option<Age>)>> {
        let mut jumped = Vec::with_capacity(JUMPS);
        while jumped.len() < JUMPS {
            let found = match &last {
                None => first.query_row([], Jumped::read).optional()?,
                Some(last) => next.query_row(params![last], Jumped::read).optional()?,
            };
            let Some(found) = found else { break };
            let age = match (&found, &mut newest) {
                (Jumped::Text(_), Some(newest)) => {
                    let age = newest.query_row(params![found], |row| row.get_ref(0).map(dated)).optional()?;
                    // No root checkpoint: nothing that says it is young.
                    Some(age.unwrap_or(Age::at(Stamp(i64::MIN))))
                }
                (Jumped::Text(_), None) => Some(Age::Unknown(Doubt::Time)),
                _ => None,
            };
            last = Some(found.clone());
            jumped.push((found, age));
        }
        Ok(jumped)
    };
    loop {
        if !foreman.at_safe_point() {
            return Ok(false);
        }
        let Some(jumped) = patiently(foreman, || database.at_once(&mut jump))? else { return Ok(false) };
        let is_last = jumped.len() < JUMPS;
        for found in jumped {
            match found {
                (Jumped::Text(id), Some(age)) => survey.sessions.push(Seen { id: SessionId::Text(id), age, bytes: 0, look: None }),
                _ => survey.odd.count += 1,
            }
        }
        if is_last {
            return Ok(true);
        }
    }
}

/// Asks for the id that sorts last among the checkpoints of the root; `None` where ids tell no time.
fn newest_of(layout: &Layout) -> Option<String> {
    let Dating::Ids { id, has_namespaces, .. } = &layout.dating else { return None };
    let main = layout.main();
    let root = if *has_namespaces { "AND checkpoint_ns = ''" } else { "" };
    Some(format!("SELECT {id} FROM {} WHERE {} = ?1 {root} ORDER BY {id} DESC LIMIT 1", main.name(), quoted(&main.id)))
}

fn dated(id: ValueRef<'_>) -> Age {
    let id = if let ValueRef::Text(id) = id { parse(id) } else { None };
    id.filter(|id| id.made >= FIRST).map_or(Age::Unknown(Doubt::Id), |id| Age::at(id.made))
}

/// Looks at a session of a table that has a column of times. Its time is read once more, in the transaction of the look: who
/// was touched since the first pass would else be old by that and unchanged by this.
fn date_and_look(
    database: &Database,
    layout: &Layout,
    time: &str,
    session: &SessionId,
    limits: &Limits,
) -> rusqlite::Result<(Age, Option<Look>)> {
    let age = table::age_of(database, layout.main(), time, session)?;
    let look = is_old(age, limits).then(|| Look::take(database, layout, session)).transpose()?;
    Ok((age, look))
}

/// Looks at every row of a session, over all namespaces: the newest is not always one of the root, and one id that is not
/// what it should be makes the whole session one whose age is not known. `None` when the run is to stop.
fn verify(
    database: &Database,
    layout: &Layout,
    session: &SessionId,
    limits: &Limits,
    foreman: &mut dyn Foreman,
) -> rusqlite::Result<Option<(Age, Option<Look>)>> {
    let Dating::Ids { id, has_metadata, .. } = &layout.dating else { return Ok(Some((Age::Unknown(Doubt::Time), None))) };
    let main = layout.main();
    // First what the index alone answers.
    let dated = patiently(foreman, || {
        database.at_once(|| {
            let age = newest_in(database, main, id, session)?;
            let look = is_old(age, limits).then(|| Look::take(database, layout, session)).transpose()?;
            Ok((age, look))
        })
    })?;
    let (age, look) = match dated {
        Some((age, Some(look))) => (age, look),
        young => return Ok(young),
    };
    if !has_metadata {
        return Ok(Some((Age::Unknown(Doubt::Step), None)));
    }
    let confirmed = each_row(database, main, &format!("{id}, metadata"), session, foreman, |row| {
        let id = if let ValueRef::Text(id) = row.get_ref(0)? { parse(id) } else { None };
        let step = match row.get_ref(1)? {
            ValueRef::Text(metadata) | ValueRef::Blob(metadata) => recorded_step(metadata),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
        };
        let is_confirmed = matches!((id, step), (Some(id), Some(step)) if agrees(id.sequence, step));
        if is_confirmed { Ok(()) } else { Err(Unconfirmed::Step) }
    });
    match confirmed {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(Unconfirmed::Step) => return Ok(Some((Age::Unknown(Doubt::Step), None))),
        Err(Unconfirmed::Database(error)) => return Err(error),
    }
    let after = patiently(foreman, || database.at_once(|| Look::take(database, layout, session)))?;
    // Who was touched since the ids were read may have rows that nobody has verified: for this run he is young.
    Ok(after.map(|after| if after == look { (age, Some(look)) } else { (Age::at(limits.now), None) }))
}

/// Why the rows of a session were read no further.
enum Unconfirmed {
    Step,
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Unconfirmed {
    fn from(error: rusqlite::Error) -> Unconfirmed {
        Unconfirmed::Database(error)
    }
}

/// The age of a session by the newest of all its ids; one that tells no time is enough for doubt.
fn newest_in(database: &Database, main: &Rows, id: &str, session: &SessionId) -> rusqlite::Result<Age> {
    let sql = format!("SELECT {id} FROM {} WHERE {}", main.name(), main.are_of_session());
    let mut statement = database.connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![session])?;
    let mut newest: Option<Stamp> = None;
    while let Some(row) = rows.next()? {
        match dated(row.get_ref(0)?) {
            Age::Known { latest, .. } => newest = newest.max(Some(latest)),
            doubted @ Age::Unknown(_) => return Ok(doubted),
        }
    }
    Ok(newest.map_or(Age::Unknown(Doubt::NoCheckpoint), Age::at))
}

/// Adds up what the rows of each session hold. Rows of sessions that were not there a moment ago make young ones; rows
/// beside no checkpoint at all are late writes of a session that is gone: orphans. False when the run is to stop.
fn weigh(database: &Database, layout: &Layout, survey: &mut Survey, limits: &Limits, foreman: &mut dyn Foreman) -> rusqlite::Result<bool> {
    let mut unlisted: BTreeMap<SessionId, Seen> = BTreeMap::new();
    let mut orphans: BTreeMap<SessionId, u64> = BTreeMap::new();
    for rows in [layout.main()].into_iter().chain(layout.children()) {
        let is_main = rows == layout.main();
        let Survey { sessions, checkpoints, odd, .. } = survey;
        let mut has_odd = false;
        let all_read = read_in_chunks(database, rows, &rows_bytes(rows), foreman, |row| {
            let bytes = u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0);
            *checkpoints += u64::from(is_main);
            let Ok(id) = SessionId::column_result(row.get_ref(1)?) else {
                odd.bytes = odd.bytes.saturating_add(bytes);
                has_odd = true;
                return Ok(());
            };
            let place = sessions.binary_search_by(|seen| seen.id.cmp(&id));
            let sum = match place.ok().and_then(|place| sessions.get_mut(place)) {
                Some(seen) => &mut seen.bytes,
                None if is_main => {
                    &mut unlisted.entry(id.clone()).or_insert(Seen { id, age: Age::at(limits.now), bytes: 0, look: None }).bytes
                }
                None => match unlisted.get_mut(&id) {
                    Some(seen) => &mut seen.bytes,
                    None => orphans.entry(id).or_default(),
                },
            };
            *sum = sum.saturating_add(bytes);
            Ok(())
        })?;
        if !all_read {
            return Ok(false);
        }
        if has_odd && survey.odd.count == 0 {
            survey.odd.count = 1;
        }
    }
    orphans.into_values().for_each(|bytes| survey.orphans.add(bytes));
    if !unlisted.is_empty() {
        survey.sessions.extend(unlisted.into_values());
        survey.sessions.sort_by(|a, b| a.id.cmp(&b.id));
    }
    Ok(true)
}

/// What the columns of a row hold: told by its header, so that long values need not be read.
fn rows_bytes(rows: &Rows) -> String {
    rows.columns.iter().map(|column| format!("coalesce(octet_length({}), 0)", quoted(column))).collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
pub mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::super::age::tests::write;
    use super::super::reading::CHUNK;
    use super::*;
    use crate::config::jobs::Format;
    use crate::host::clock::Moment;
    use crate::jobs::run::Report;

    /// The tables of checkpoint-sqlite 3.1.2.
    pub const CURRENT: &str = "
        PRAGMA journal_mode = WAL;
        CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
        CREATE TABLE writes (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
            task_id TEXT NOT NULL, task_path TEXT NOT NULL DEFAULT '', idx INTEGER NOT NULL, channel TEXT NOT NULL, type TEXT, value BLOB,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));
    ";

    /// Never stops and never waits.
    pub struct Calm;

    impl Foreman for Calm {
        fn now(&mut self) -> Moment {
            Moment::now()
        }
        fn tell(&mut self, _: Report) {}
        fn wait(&mut self, _: Duration) -> bool {
            true
        }
        fn at_safe_point(&mut self) -> bool {
            true
        }
    }

    /// Does something at the safe point of that number, counted from 1.
    pub struct Meddler<F: FnMut()> {
        pub at: u32,
        pub act: F,
    }

    impl<F: FnMut()> Foreman for Meddler<F> {
        fn now(&mut self) -> Moment {
            Moment::now()
        }
        fn tell(&mut self, _: Report) {}
        fn wait(&mut self, _: Duration) -> bool {
            true
        }
        fn at_safe_point(&mut self) -> bool {
            self.at = self.at.wrapping_sub(1);
            if self.at == 0 {
                (self.act)();
            }
            true
        }
    }

    const DAY: i64 = 86_400 * 10_000_000;

    struct Stage {
        _folder: tempfile::TempDir,
        app: Connection,
        database: Database,
        layout: Layout,
        now: Stamp,
    }

    fn stage(schema: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(schema).unwrap();
        let database = Database::open(&path).unwrap();
        let layout = Layout::detect(&database, &Format::Auto).unwrap();
        let now = Stamp::of(SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000));
        Stage { _folder: folder, app, database, layout, now }
    }

    impl Stage {
        fn id(&self, days: i64, step: i64) -> String {
            write(Stamp(self.now.0 - days * DAY), step, 7)
        }

        fn put(&self, thread: &Value, namespace: &str, id: &Value, metadata: &Value) {
            let sql =
                "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata) VALUES (?1, ?2, ?3, x'0102', ?4)";
            self.app.execute(sql, params![thread, namespace, id, metadata]).unwrap();
        }

        fn put_good(&self, thread: &str, namespace: &str, days: i64, step: i64) {
            let metadata = Value::Blob(format!("{{\"step\":{step}}}").into_bytes());
            self.put(&Value::Text(thread.to_owned()), namespace, &Value::Text(self.id(days, step)), &metadata);
        }

        fn limits(&self) -> Limits {
            Limits::new(self.now, Duration::from_secs(7 * 86_400))
        }

        fn survey(&self) -> Survey {
            take(&self.database, &self.layout, &self.limits(), &mut Calm).unwrap().unwrap()
        }
    }

    fn age_of<'a>(survey: &'a Survey, id: &str) -> &'a Seen {
        survey.sessions.iter().find(|seen| seen.id.to_string() == id).unwrap()
    }

    /// Whatever is wrong with one row of a session makes its age unknown, and only its own.
    #[test]
    fn one_strange_row_is_enough_to_doubt_a_session() {
        let stage = stage(CURRENT);
        let text = |id: String| Value::Text(id);
        let good = |step: i64| Value::Text(format!("{{\"step\":{step}}}"));
        let old = stage.id(30, 3);
        let strange: Vec<(&str, Value, Value, Doubt)> = vec![
            ("v4", text(format!("{}4{}", &old[..14], &old[15..])), good(3), Doubt::Id),
            ("v7", text(format!("019aa{}", &old[5..14]) + "7" + &old[15..]), good(3), Doubt::Id),
            ("upper", text(old.to_uppercase()), good(3), Doubt::Id),
            ("blob", Value::Blob(old.clone().into_bytes()), good(3), Doubt::Id),
            ("words", text("latest".to_owned()), good(3), Doubt::Id),
            ("1970", text(write(Stamp(DAY), 3, 7)), good(3), Doubt::Id),
            ("another step", text(old.clone()), good(5), Doubt::Step),
            ("no step", text(old.clone()), Value::Text("{}".to_owned()), Doubt::Step),
            ("no metadata", text(old.clone()), Value::Null, Doubt::Step),
            ("pickle", text(old.clone()), Value::Blob(vec![0x80, 4, 0x95]), Doubt::Step),
        ];
        for (name, id, metadata, _) in &strange {
            for (thread, namespace) in [(format!("{name} alone"), ""), (format!("{name} in a subgraph"), "node:1")] {
                stage.put_good(&thread, "", 31, 1);
                stage.put_good(&thread, "", 29, 4);
                stage.put(&Value::Text(thread), namespace, id, metadata);
            }
        }
        stage.put_good("good", "", 30, 1);
        let survey = stage.survey();
        assert_eq!(survey.count(), strange.len() as u64 * 2 + 1);
        for (name, _, _, doubt) in &strange {
            for kind in ["alone", "in a subgraph"] {
                let seen = age_of(&survey, &format!("{name} {kind}"));
                assert_eq!((seen.age, &seen.look), (Age::Unknown(*doubt), &None), "{name} {kind}");
            }
        }
        assert!(age_of(&survey, "good").look.is_some());
    }

    #[test]
    fn the_newest_row_of_any_namespace_counts() {
        let stage = stage(CURRENT);
        stage.put_good("busy below", "", 30, 1);
        stage.put_good("busy below", "node:1|deeper:2", 1, 5);
        stage.put_good("below alone", "node:1", 9, 5);
        stage.put_good("ahead", "", -1, 5);
        let survey = stage.survey();
        let at = |days: i64| Age::at(Stamp(stage.now.0 - days * DAY));
        assert_eq!(age_of(&survey, "busy below").age, at(1));
        assert_eq!((age_of(&survey, "below alone").age, age_of(&survey, "below alone").look.is_some()), (at(9), true));
        assert_eq!(age_of(&survey, "ahead").age, at(-1));
    }

    #[test]
    fn ids_without_a_name_are_counted_and_late_writes_have_no_checkpoint() {
        // The tables of March 2024 take NULL for an id: a primary key of SQLite does.
        let stage = stage(
            "CREATE TABLE checkpoints (thread_id TEXT, thread_ts TEXT, parent_ts TEXT, checkpoint BLOB, metadata BLOB,
             PRIMARY KEY (thread_id, thread_ts))",
        );
        let put = |thread: Value| {
            stage.app.execute("INSERT INTO checkpoints VALUES (?1, '2024-03-20T10:00:00+00:00', NULL, x'01', NULL)", [thread]).unwrap();
        };
        for thread in [Value::Null, Value::Blob(b"a".to_vec()), Value::Blob(b"b".to_vec()), Value::Text("a".to_owned()), Value::Integer(5)]
        {
            put(thread);
        }
        let survey = stage.survey();
        assert_eq!((survey.odd.count, survey.count(), survey.checkpoints), (3, 5, 5));
        // The column makes a text of the number.
        let ages: Vec<_> = survey.sessions.iter().map(|seen| (seen.id.to_string(), seen.age)).collect();
        assert_eq!(ages, [("5".to_owned(), Age::Unknown(Doubt::Id)), ("a".to_owned(), Age::Unknown(Doubt::Id))]);

        let stage = self::stage(CURRENT);
        let write = "INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel, value) VALUES ('late', 'c', 't', 0, 'm', x'00')";
        stage.app.execute(write, []).unwrap();
        stage.app.execute(&write.replace("'t', 0", "'t', 1"), []).unwrap();
        let survey = stage.survey();
        assert_eq!((survey.count(), survey.bytes(), survey.orphans), (0, 0, Tally { count: 1, bytes: 2 * 9 }));
    }

    #[test]
    fn an_id_that_is_no_utf8_is_odd_and_passed_over() {
        let stage = stage(CURRENT);
        stage.put_good("a", "", 30, 1);
        for id in ["x'80'", "x'8061'", "x'C3'"] {
            let insert =
                format!("INSERT INTO checkpoints (thread_id, checkpoint_id) VALUES (CAST({id} AS TEXT), 'c'), (CAST({id} AS TEXT), 'd')");
            stage.app.execute_batch(&insert).unwrap();
        }
        stage.put_good("é", "", 30, 1);
        let survey = stage.survey();
        let ids: Vec<_> = survey.sessions.iter().map(|seen| (seen.id.to_string(), seen.look.is_some())).collect();
        assert_eq!(ids, [("a".to_owned(), true), ("é".to_owned(), true)]);
        assert_eq!((survey.odd.count, survey.count()), (3, 5));
    }

    /// Without a log, rows are verified one by one, and the application may write in between.
    #[test]
    fn who_is_touched_while_he_is_verified_is_young() {
        let mut touched = 0;
        for at in 1..=6 {
            let stage = stage(&CURRENT.replace("WAL", "DELETE"));
            stage.put_good("a", "", 30, 1);
            stage.put_good("a", "", 30, 2);
            let id = stage.id(0, 3);
            // No lock is held at a safe point: nothing keeps the application from committing.
            let act = || stage.put(&Value::Text("a".to_owned()), "", &Value::Text(id.clone()), &Value::Null);
            let survey = take(&stage.database, &stage.layout, &stage.limits(), &mut Meddler { at, act }).unwrap().unwrap();
            let seen = age_of(&survey, "a");
            // Later than the look it is not seen here, but shows when it is looked at again.
            let now = seen.look.as_ref().map(|look| *look != Look::take(&stage.database, &stage.layout, &seen.id).unwrap());
            assert!(seen.age == Age::at(stage.now) && now.is_none() || now == Some(true), "{at}: {seen:?}");
            touched += u32::from(now.is_none());
        }
        assert_eq!(touched, 3, "before it is listed, before either of its rows");
    }

    /// The first pass has read that it is old, the second looks at it as it is by then.
    #[test]
    fn who_is_touched_between_the_passes_over_a_table_is_young() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("CREATE TABLE sessions (id TEXT PRIMARY KEY, seen INTEGER); INSERT INTO sessions VALUES ('a', 1700000000)")
            .unwrap();
        let described = crate::config::jobs::Table { table: "sessions".into(), id: "id".into(), time: "seen".into(), children: Vec::new() };
        let database = Database::open(&path).unwrap();
        let layout = Layout::detect(&database, &Format::Table(described)).unwrap();
        let now = Stamp(1_764_000_000 * 10_000_000);
        let limits = Limits::new(now, Duration::from_secs(7 * 86_400));
        let act = || app.execute_batch("UPDATE sessions SET seen = 1764000000").unwrap();
        // The first safe point is before the only chunk of the first pass.
        let survey = take(&database, &layout, &limits, &mut Meddler { at: 2, act }).unwrap().unwrap();
        let seen = age_of(&survey, "a");
        assert_eq!((seen.age, &seen.look), (Age::at(now), &None));
    }

    #[test]
    fn every_row_is_weighed_once_over_all_chunks() {
        let stage = stage(CURRENT);
        stage.put_good("a%_", "", 30, 1);
        stage.app.execute_batch("BEGIN").unwrap();
        for step in 0..CHUNK as i64 + 3 {
            stage.put_good("large", "", 1, step);
        }
        stage.app.execute_batch("COMMIT").unwrap();
        let survey = stage.survey();
        assert_eq!(survey.checkpoints, CHUNK as u64 + 4);
        let row = |thread: &str, step: i64| (thread.len() + 36 + 2 + format!("{{\"step\":{step}}}").len()) as u64;
        assert_eq!(age_of(&survey, "a%_").bytes, row("a%_", 1));
        assert_eq!(age_of(&survey, "large").bytes, (0..CHUNK as i64 + 3).map(|step| row("large", step)).sum::<u64>());
        assert_eq!(survey.bytes(), survey.sessions.iter().map(|seen| seen.bytes).sum::<u64>());
    }
}
