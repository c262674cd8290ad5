//! The file of the state database: its name, its tables, and how it is opened.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

/// The name of the database in its folder.
pub(super) const FILE: &str = "plimsoll.db";

/// Runs of daemons, events and samples ([`super::history`]), and runs of jobs ([`super::runs`]).
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, version TEXT NOT NULL, pid INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, at REAL NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS events_at ON events (at);
    CREATE TABLE IF NOT EXISTS samples (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, at REAL NOT NULL, resource TEXT NOT NULL, used REAL, lim REAL);
    CREATE INDEX IF NOT EXISTS samples_at ON samples (at);
    CREATE TABLE IF NOT EXISTS job_marks (job TEXT PRIMARY KEY, until REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS job_runs (id INTEGER PRIMARY KEY, job TEXT NOT NULL, started REAL NOT NULL, ended REAL, outcome TEXT, body TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS job_runs_job ON job_runs (job, started);
";

/// Of the tables. 1: the record; 2: jobs too.
const VERSION: i64 = 2;

/// The file as SQLite is to open it. With no log of changes beside it nobody writes, and it is read without making any file.
pub(super) fn address(path: &Path) -> String {
    let mut text = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => text.push(char::from(*byte)),
            byte => text.push_str(&format!("%{byte:02x}")),
        }
    }
    if path.with_extension("db-wal").exists() { text } else { text + "?immutable=1" }
}

/// Opens the database, makes it where it is not there, and adds the tables that an earlier version did not have.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 1 << 20)?;
    // The daemon is small: a quarter of a megabyte of pages is plenty for appending.
    connection.pragma_update(None, "cache_size", -256)?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables = connection.unchecked_transaction()?;
    tables.execute_batch(SCHEMA)?;
    // A later version has what we have, and knows what it has besides.
    if version < VERSION {
        tables.pragma_update(None, "user_version", VERSION)?;
    }
    tables.commit()?;
    Ok(connection)
}
