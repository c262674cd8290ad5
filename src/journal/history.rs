//! The state database (`state_dir/plimsoll.db`): runs, events and samples, written by one thread of its own.
//!
//! Nothing depends on it. A queue that is full drops, a disk that is full is tried again later, a file that is no database
//! is set aside and begun anew; each of these is told, none of them stops or slows the loop.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::database::{self, connect};
use super::runs;
use crate::host::clock::Moment;
use crate::host::scheduling;

/// Events and samples waiting to be written.
const QUEUE: usize = 1024;
/// What is older is deleted.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// And so many rows are kept at most, some tens of megabytes: a week in which much happens must not fill the disk.
const MOST_EVENTS: i64 = 50_000;
const MOST_SAMPLES: i64 = 200_000;
/// Runs of jobs are few, and asked for later.
const KEEP_RUNS: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often old rows are looked for.
const UPKEEP_EVERY: Duration = Duration::from_secs(3600);
/// How long after a failure the database is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Which events of the record are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Seconds since 1970; nothing older.
    pub since: Option<f64>,
    /// Of these names; none: of every name.
    pub names: Vec<String>,
    /// The last so many.
    pub limit: Option<usize>,
}

impl Wanted {
    /// True for an event that is asked for, whatever the limit says.
    pub fn takes(&self, event: &serde_json::Value) -> bool {
        let at = event.get("at").and_then(serde_json::Value::as_f64);
        let name = event.get("event").and_then(serde_json::Value::as_str).unwrap_or_default();
        self.since.is_none_or(|since| at.is_some_and(|at| at >= since))
            && (self.names.is_empty() || self.names.iter().any(|one| one == name))
    }
}

/// Reads events back from `folder/plimsoll.db`, the oldest first; `None` when there is no database. Leaves nothing behind:
/// a daemon of another user must find its files as it left them.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(folder: &Path, wanted: &Wanted) -> Result<Option<Vec<serde_json::Value>>, String> {
    let path = folder.join(database::FILE);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    select(&path, wanted).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

fn select(path: &Path, wanted: &Wanted) -> rusqlite::Result<Vec<serde_json::Value>> {
    let connection = Connection::open_with_flags(database::address(path), OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    // The names are few and are compared here, so that there is one statement whatever is asked.
    let mut statement = connection.prepare("SELECT body FROM events WHERE at >= ?1 ORDER BY id DESC")?;
    let mut rows = statement.query(params![wanted.since.unwrap_or(0.0)])?;
    let mut found = Vec::new();
    while wanted.limit.is_none_or(|limit| found.len() < limit) {
        let Some(row) = rows.next()? else { break };
        let body: String = row.get(0)?;
        // A line that is not ours is passed over.
        let event = serde_json::from_str(&body).ok();
        found.extend(event.filter(|event| wanted.takes(event)));
    }
    found.reverse();
    Ok(found)
}

enum Entry {
    Event { at: f64, name: &'static str, body: String },
    Sample { at: f64, resource: String, used: Option<f64>, limit: Option<f64> },
    Job(runs::Entry),
    End { at: f64 },
}

/// The sending end; dropping it lets the thread write out what is queued and end.
#[derive(Debug)]
pub struct History {
    queue: SyncSender<Entry>,
    problem: Arc<Mutex<Option<String>>>,
    notice: Arc<Mutex<Option<String>>>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

impl History {
    /// Starts the writing thread on `folder/plimsoll.db`.
    ///
    /// # Errors
    /// When no thread can be made; a database that cannot be opened is told by [`History::problem`] instead.
    pub fn start(folder: &Path, now: Moment, version: &'static str, pid: u32) -> std::io::Result<History> {
        let (queue, entries) = mpsc::sync_channel(QUEUE);
        let (finished, done) = mpsc::channel();
        let problem = Arc::new(Mutex::new(None));
        let notice = Arc::new(Mutex::new(None));
        let (said, noted) = (problem.clone(), notice.clone());
        let path = folder.join(database::FILE);
        let write = move || {
            Writer { path, started: now.unix_seconds(), version, pid, open: None, said, notice: noted }.run(&entries);
            // The receiver may have given up waiting.
            let _ = finished.send(());
        };
        let thread = std::thread::Builder::new().name("history".into()).stack_size(512 * 1024);
        let thread = scheduling::deaf_to_signals(|| thread.spawn(write))?;
        Ok(History { queue, problem, notice, done, thread })
    }

    pub fn event(&self, now: Moment, name: &'static str, body: &serde_json::Value) {
        self.send(Entry::Event { at: now.unix_seconds(), name, body: body.to_string() });
    }

    /// `used` and `limit` in cores or bytes.
    pub fn sample(&self, now: Moment, resource: &str, used: Option<f64>, limit: Option<f64>) {
        self.send(Entry::Sample { at: now.unix_seconds(), resource: resource.to_owned(), used, limit });
    }

    /// Something about a job.
    pub fn job(&self, entry: runs::Entry) {
        self.send(Entry::Job(entry));
    }

    fn send(&self, entry: Entry) {
        match self.queue.try_send(entry) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                say(&self.problem, Some("more happens than the state database can take; some of it is dropped".to_owned()))
            }
        }
    }

    /// What was done about a database that was none, once.
    pub fn take_notice(&self) -> Option<String> {
        self.notice.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Why nothing is being written, if nothing is.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the thread write out what is queued; gives up after `within`.
    pub fn close(self, within: Duration) -> Result<(), String> {
        let at = Moment::now().unix_seconds();
        let _ = self.queue.try_send(Entry::End { at });
        drop(self.queue);
        match self.done.recv_timeout(within) {
            Ok(()) => self.thread.join().map_err(|_| "the history thread panicked".to_owned()),
            Err(_) => Err("the state database did not take the last events in time".to_owned()),
        }
    }
}

fn say(problem: &Mutex<Option<String>>, what: Option<String>) {
    *problem.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

struct Writer {
    path: PathBuf,
    started: f64,
    version: &'static str,
    pid: u32,
    /// The database and the number of this run in it.
    open: Option<(Connection, i64)>,
    said: Arc<Mutex<Option<String>>>,
    notice: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, entries: &mpsc::Receiver<Entry>) {
        let mut failed_at: Option<Moment> = None;
        let mut kept_up: Option<Moment> = None;
        loop {
            let first = match entries.recv_timeout(UPKEEP_EVERY) {
                Ok(entry) => Some(entry),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = Moment::now();
            if failed_at.is_some_and(|at| now.since(at) < RETRY_AFTER) {
                continue; // Dropped; the problem has been told.
            }
            let batch: Vec<Entry> = first.into_iter().chain(entries.try_iter().take(QUEUE)).collect();
            let upkeep = kept_up.is_none_or(|at| now.since(at) >= UPKEEP_EVERY);
            match self.write(&batch, now, upkeep) {
                Ok(()) => {
                    failed_at = None;
                    if upkeep {
                        kept_up = Some(now);
                    }
                    say(&self.said, None);
                }
                Err(error) => {
                    failed_at = Some(now);
                    say(&self.said, Some(format!("{}: {error}", self.path.display())));
                    if matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)) {
                        let aside = self.set_aside(now);
                        let notice = format!("{}: {error}; it was moved to {} and is begun anew", self.path.display(), aside.display());
                        say(&self.notice, Some(notice));
                        failed_at = None;
                    }
                    self.open = None;
                }
            }
        }
    }

    fn write(&mut self, batch: &[Entry], now: Moment, upkeep: bool) -> rusqlite::Result<()> {
        if self.open.is_none() {
            self.open = Some(open(&self.path, self.started, self.version, self.pid)?);
        }
        let Some((connection, run)) = self.open.as_mut() else { return Ok(()) };
        let run = *run;
        let transaction = connection.transaction()?;
        for entry in batch {
            match entry {
                Entry::Event { at, name, body } => {
                    let mut insert = transaction.prepare_cached("INSERT INTO events (run, at, name, body) VALUES (?1, ?2, ?3, ?4)")?;
                    insert.execute(params![run, at, name, body])?;
                }
                Entry::Sample { at, resource, used, limit } => {
                    let mut insert =
                        transaction.prepare_cached("INSERT INTO samples (run, at, resource, used, lim) VALUES (?1, ?2, ?3, ?4, ?5)")?;
                    insert.execute(params![run, at, resource, used, limit])?;
                }
                Entry::Job(entry) => runs::write(&transaction, entry)?,
                Entry::End { at } => {
                    transaction.execute("UPDATE runs SET ended = ?1 WHERE id = ?2", params![at, run])?;
                }
            }
        }
        if upkeep {
            let oldest = now.unix_seconds() - KEEP.as_secs_f64();
            for (table, most) in [("events", MOST_EVENTS), ("samples", MOST_SAMPLES)] {
                transaction.execute(
                    &format!("DELETE FROM {table} WHERE at < ?1 OR id <= (SELECT max(id) FROM {table}) - ?2"),
                    params![oldest, most],
                )?;
            }
            runs::tidy(&transaction, now.unix_seconds() - KEEP_RUNS.as_secs_f64())?;
            transaction.execute("DELETE FROM runs WHERE coalesce(ended, started) < ?1 AND id <> ?2", params![oldest, run])?;
        }
        transaction.commit()
    }

    /// Keeps a file that is no database for whoever wants to look at it, and makes room for a new one.
    fn set_aside(&mut self, now: Moment) -> PathBuf {
        self.open = None;
        let aside = self.path.with_extension(format!("corrupt-{:.0}", now.unix_seconds()));
        for (from, to) in [
            (self.path.clone(), aside.clone()),
            (self.path.with_extension("db-wal"), aside.with_extension("wal")),
            (self.path.with_extension("db-shm"), aside.with_extension("shm")),
        ] {
            // A missing -wal is the rule; a rename that fails leads to the same error again, which is told again.
            let _ = std::fs::rename(from, to);
        }
        aside
    }
}

fn open(path: &Path, started: f64, version: &str, pid: u32) -> rusqlite::Result<(Connection, i64)> {
    let connection = connect(path)?;
    connection.execute("INSERT INTO runs (started, version, pid) VALUES (?1, ?2, ?3)", params![started, version, pid])?;
    let run = connection.last_insert_rowid();
    Ok((connection, run))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_one(folder: &Path) {
        let history = History::start(folder, Moment::now(), "test", 1).unwrap();
        history.event(Moment::now(), "worker_started", &serde_json::json!({"worker": "web"}));
        history.sample(Moment::now(), "cpu", Some(1.0), None);
        history.close(Duration::from_secs(20)).unwrap();
    }

    fn count(folder: &Path, table: &str) -> i64 {
        let connection = Connection::open(folder.join("plimsoll.db")).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn what_is_recorded_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        record_one(folder.path());
        record_one(folder.path());
        assert_eq!((count(folder.path(), "runs"), count(folder.path(), "events"), count(folder.path(), "samples")), (2, 2, 2));
    }

    #[test]
    fn what_is_recorded_can_be_read_back_and_nothing_is_left_behind() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("a b%20?#");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(read(&folder, &Wanted::default()), Ok(None));
        let history = History::start(&folder, Moment::now(), "test", 1).unwrap();
        for at in 0..5 {
            let name = if at % 2 == 0 { "even" } else { "odd" };
            history.event(Moment::now(), name, &serde_json::json!({"event": name, "at": f64::from(at)}));
        }
        history.close(Duration::from_secs(20)).unwrap();
        let read = |wanted: Wanted| -> Vec<f64> {
            read(&folder, &wanted).unwrap().unwrap().iter().map(|event| event["at"].as_f64().unwrap()).collect()
        };
        assert_eq!(read(Wanted::default()), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read(Wanted { limit: Some(2), ..Wanted::default() }), [3.0, 4.0]);
        assert_eq!(read(Wanted { names: vec!["even".into()], limit: Some(2), ..Wanted::default() }), [2.0, 4.0]);
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["plimsoll.db"]);
        std::fs::write(folder.join("plimsoll.db"), "no database at all").unwrap();
        assert!(super::read(&folder, &Wanted::default()).unwrap_err().contains("not a database"));
    }

    #[test]
    fn a_file_that_is_no_database_is_set_aside_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plimsoll.db"), vec![b'x'; 8192]).unwrap();
        let history = History::start(folder.path(), Moment::now(), "test", 1).unwrap();
        // The first write finds the damage and makes room; the ones after that are kept.
        while std::fs::read_dir(folder.path())
            .unwrap()
            .filter_map(Result::ok)
            .all(|entry| !entry.file_name().to_string_lossy().contains("corrupt"))
        {
            history.event(Moment::now(), "a", &serde_json::json!({}));
            std::thread::yield_now();
        }
        history.event(Moment::now(), "b", &serde_json::json!({}));
        history.close(Duration::from_secs(20)).unwrap();
        assert!(count(folder.path(), "events") >= 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_and_blocks_nobody() {
        let history = History::start(Path::new("/proc/nonexistent"), Moment::now(), "test", 1).unwrap();
        for _ in 0..5000 {
            history.event(Moment::now(), "a", &serde_json::json!({}));
        }
        while history.problem().is_none() {
            std::thread::yield_now();
        }
    }
}
