//! Runs of jobs in the state database: what is known of them at the next start, and how the earlier ones ended.
//!
//! Two tables beside those of the record. `job_marks` has for each job the moment up to which everything that was due is dealt with;
//! `job_runs` a row for each run, made when it begins and completed when it ends. A row without an end is a run that was interrupted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::database;
use crate::snapshot::jobs::JobRun;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

/// The newest so many of each job are kept, whatever their age.
const KEPT_OF_EACH: u32 = 50;

/// What is to be written.
#[derive(Clone, Debug)]
pub enum Entry {
    Mark {
        job: String,
        until: f64,
    },
    /// Begun, or ended: the row is the one of the same job and start.
    Run(Box<JobRun>),
}

/// What the database knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    pub marks: BTreeMap<String, f64>,
    /// The newest of each job, the latest first: as they were written down, whatever the clock said then.
    pub runs: Vec<JobRun>,
    /// The last sign of life of any daemon here, in seconds since 1970.
    pub alive: Option<f64>,
}

/// Writes one of them.
pub(super) fn write(connection: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    match entry {
        Entry::Mark { job, until } => {
            let mut upsert = connection.prepare_cached(
                "INSERT INTO job_marks (job, until) VALUES (?1, ?2) ON CONFLICT (job) DO UPDATE SET until = excluded.until",
            )?;
            upsert.execute(params![job, until])?;
        }
        Entry::Run(run) => {
            // Plain data with text keys always has a JSON form.
            let body = serde_json::to_string(run).unwrap_or_default();
            let mut update =
                connection.prepare_cached("UPDATE job_runs SET ended = ?3, outcome = ?4, body = ?5 WHERE job = ?1 AND started = ?2")?;
            if update.execute(params![run.job, run.started, run.ended, run.outcome, body])? == 0 {
                let mut insert =
                    connection.prepare_cached("INSERT INTO job_runs (job, started, ended, outcome, body) VALUES (?1, ?2, ?3, ?4, ?5)")?;
                insert.execute(params![run.job, run.started, run.ended, run.outcome, body])?;
            }
        }
    }
    Ok(())
}

/// Deletes what is older than `oldest`, but for the newest runs of each job.
pub(super) fn tidy(connection: &Connection, oldest: f64) -> rusqlite::Result<()> {
    connection.execute(
        "DELETE FROM job_runs WHERE started < ?1 AND id NOT IN (
            SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY job ORDER BY id DESC) AS place FROM job_runs) WHERE place <= ?2)",
        params![oldest, KEPT_OF_EACH],
    )?;
    Ok(())
}

/// Reads what is known in `folder`, the newest `limit` runs of each job; nothing where there is no database, or none with jobs yet.
/// Leaves nothing behind.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(folder: &Path, limit: u32) -> Result<Known, String> {
    let path = folder.join(database::FILE);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(Known::default()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    select(&path, limit).map_err(|error| format!("{}: {error}", path.display()))
}

fn select(path: &Path, limit: u32) -> rusqlite::Result<Known> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(database::address(path), flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    let exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'job_runs'";
    if connection.query_row(exists, [], |_| Ok(())).optional()?.is_none() {
        return Ok(Known::default());
    }
    let pair = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let marks = connection.prepare("SELECT job, until FROM job_marks")?.query_map([], pair)?.collect::<rusqlite::Result<_>>()?;
    let mut newest = connection.prepare(
        "SELECT body FROM (SELECT id, body, row_number() OVER (PARTITION BY job ORDER BY id DESC) AS place FROM job_runs)
         WHERE place <= ?1 ORDER BY id DESC",
    )?;
    let bodies = newest.query_map(params![limit], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    let alive = "SELECT max(at) FROM (SELECT max(at) AS at FROM events UNION ALL SELECT max(at) FROM samples
                 UNION ALL SELECT max(coalesce(ended, started)) FROM runs)";
    let alive = connection.query_row(alive, [], |row| row.get(0))?;
    // A row that is not ours is passed over.
    Ok(Known { marks, alive, runs: bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect() })
}

/// The database, for whoever runs a job without a daemon.
pub struct Book(Connection);

impl Book {
    /// # Errors
    /// When it cannot be opened or made.
    pub fn open(folder: &Path) -> Result<Book, String> {
        let path = folder.join(database::FILE);
        database::connect(&path).map(Book).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// # Errors
    /// When it cannot be written: the disk is full, or the file is none.
    pub fn write(&self, entry: &Entry) -> Result<(), String> {
        write(&self.0, entry).map_err(|error| format!("the run is not recorded: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(job: &str, started: f64) -> JobRun {
        JobRun { job: job.to_owned(), cause: "schedule".to_owned(), started, ..JobRun::default() }
    }

    #[test]
    fn what_is_written_is_known_and_an_end_completes_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), 5), Ok(Known::default()));
        let book = Book::open(folder.path()).unwrap();
        for started in 0..100 {
            book.write(&Entry::Run(Box::new(run("tidy", f64::from(started))))).unwrap();
        }
        let done = JobRun { ended: Some(50.5), outcome: Some("done".to_owned()), ..run("tidy", 99.0) };
        for entry in [Entry::Run(Box::new(done.clone())), Entry::Run(Box::new(run("backup", 7.0)))] {
            book.write(&entry).unwrap();
        }
        for until in [1.0, 2.5] {
            book.write(&Entry::Mark { job: "tidy".to_owned(), until }).unwrap();
        }
        let known = read(folder.path(), 2).unwrap();
        assert_eq!(known.runs, [run("backup", 7.0), done, run("tidy", 98.0)]);
        assert_eq!(known.marks, BTreeMap::from([("tidy".to_owned(), 2.5)]));
        // The clock was a year ahead once: what came after it is later all the same.
        for started in [1e9, 200.0] {
            book.write(&Entry::Run(Box::new(run("backup", started)))).unwrap();
        }
        assert_eq!(read(folder.path(), 1).unwrap().runs, [run("backup", 200.0), known.runs[1].clone()]);
        book.0.execute("INSERT INTO runs (started, version, pid) VALUES (77, '', 1)", []).unwrap();
        assert_eq!(read(folder.path(), 1).unwrap().alive, Some(77.0));
        book.0.execute("DELETE FROM job_runs WHERE job = 'backup' AND started > 7", []).unwrap();
        tidy(&book.0, 1000.0).unwrap();
        assert_eq!(read(folder.path(), 1000).unwrap().runs.len(), KEPT_OF_EACH as usize + 1);
    }

    #[test]
    fn a_database_of_the_version_before_is_taken_on_and_a_later_one_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(database::FILE);
        let old = Connection::open(&path).unwrap();
        old.execute_batch("CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, version TEXT NOT NULL, pid INTEGER NOT NULL); PRAGMA user_version = 1;").unwrap();
        drop(old);
        assert_eq!(read(folder.path(), 5), Ok(Known::default()));
        let version = |connection: &Connection| connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).unwrap();
        let book = Book::open(folder.path()).unwrap();
        assert_eq!(version(&book.0), 2);
        book.0.execute_batch("PRAGMA user_version = 9").unwrap();
        drop(book);
        assert_eq!(version(&Book::open(folder.path()).unwrap().0), 9);
    }
}
