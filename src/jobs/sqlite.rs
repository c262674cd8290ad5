//! An application's own SQLite database, opened so that the application never notices: nothing is made that was not there,
//! nothing is left that the application could not open, no lock is held for longer than one call.
//!
//! **Never opens the file by any other means.** POSIX locks belong to the process: closing a second descriptor of the file,
//! as after a copy or a checksum, would drop every lock SQLite holds on it. What is asked of the file is asked with `stat`.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::run::{Failure, Foreman};

/// How long one call waits in SQLite for a lock before it is tried again from outside, where a run can be stopped.
const PATIENCE: Duration = Duration::from_millis(100);
/// Between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Kibibytes of pages a connection keeps.
const CACHE_KIB: i64 = 16 * 1024;

/// An open database of an application.
#[derive(Debug)]
pub struct Database {
    pub connection: Connection,
    /// With every symbolic link followed: SQLite names `-wal` and `-shm` after it.
    path: PathBuf,
    identity: (u64, u64),
    is_wal: bool,
}

/// What a database takes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub page_bytes: u64,
    pub pages: u64,
    /// Pages without content, which new rows use before the file grows.
    pub free_pages: u64,
    /// The file `-wal`; zero where there is none.
    pub wal_bytes: u64,
}

impl Sizes {
    pub fn bytes(&self) -> u64 {
        self.pages.saturating_mul(self.page_bytes)
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_pages.saturating_mul(self.page_bytes)
    }
}

/// One column as `pragma_table_info` tells it; generated columns are not among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub affinity: Affinity,
    /// Its place in the primary key, from 1; 0: not part of it.
    pub key: u64,
}

/// What a column makes of a value that is compared with it or stored in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// A number becomes a text.
    Text,
    /// A text that reads as a number becomes one: `'007'` is 7.
    Number,
    /// Everything stays what it is.
    None,
}

impl Affinity {
    /// By SQLite's own rules, of which the first that fits counts.
    fn of(declared: &str) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
        match () {
            () if has(&["INT"]) => Affinity::Number,
            () if has(&["CHAR", "CLOB", "TEXT"]) => Affinity::Text,
            () if declared.is_empty() || has(&["BLOB"]) => Affinity::None,
            () => Affinity::Number,
        }
    }
}

impl Database {
    /// Opens a database that is there, to read and write it.
    ///
    /// # Errors
    /// When there is no such file, it may not be written, or opening it could leave `-wal` or `-shm` files that its owner
    /// cannot open; and while others hold it for themselves alone.
    pub fn open(path: &Path) -> Result<Database, Failure> {
        let database = Database::reach(path)?;
        let is_wal = settle(&database.connection).map_err(|error| not_opened(path, &told(&error)))?;
        database.settled(path, is_wal)
    }

    /// The same, but waits while others hold it for themselves alone; `None` when the run is to stop first.
    ///
    /// # Errors
    /// As [`Database::open`], never because it is busy.
    pub fn open_patiently(path: &Path, foreman: &mut dyn Foreman) -> Result<Option<Database>, Failure> {
        let database = Database::reach(path)?;
        let settled = patiently(foreman, || settle(&database.connection)).map_err(|error| not_opened(path, &told(&error)))?;
        settled.map(|is_wal| database.settled(path, is_wal)).transpose()
    }

    /// Reads nothing of the file yet, and so waits for nobody.
    fn reach(path: &Path) -> Result<Database, Failure> {
        let failed = |why: String| not_opened(path, &why);
        let real = std::fs::canonicalize(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => failed("there is no such file; the application makes it, a job never does".to_owned()),
            _ => failed(error.to_string()),
        })?;
        let stat = std::fs::metadata(&real).map_err(|error| failed(error.to_string()))?;
        if !stat.is_file() {
            return Err(failed("it is no regular file".to_owned()));
        }
        if let Some(why) = wrong_owner(&real, stat.uid()) {
            return Err(failed(why));
        }
        // No URI: a `?` or `%` in a path is part of the path. No CREATE: a file that vanishes in between is not made again.
        let connection = Connection::open_with_flags(&real, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|error| failed(told(&error)))?;
        Ok(Database { connection, path: real, identity: (stat.dev(), stat.ino()), is_wal: false })
    }

    fn settled(self, path: &Path, is_wal: bool) -> Result<Database, Failure> {
        // SQLite opens what it may not write for reading alone, and says nothing.
        if self.connection.is_readonly("main").map_err(|error| not_opened(path, &told(&error)))? {
            return Err(not_opened(path, "it may not be written"));
        }
        Ok(Database { is_wal, ..self })
    }

    /// Reads several statements from one state of the database; none but the first can find it busy.
    ///
    /// # Errors
    /// What SQLite said, or the first of `read`.
    pub fn at_once<T>(&self, read: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let transaction = self.connection.unchecked_transaction()?;
        let answer = read()?;
        transaction.finish()?;
        Ok(answer)
    }

    /// The file itself, with every symbolic link followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is: device and inode.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// True where changes go to a log first, so that readers and the writer do not wait for each other.
    pub fn is_wal(&self) -> bool {
        self.is_wal
    }

    /// # Errors
    /// What SQLite said.
    pub fn sizes(&self) -> rusqlite::Result<Sizes> {
        let pragma = |name: &str| self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        let whole = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(Sizes {
            page_bytes: whole(pragma("page_size")?),
            pages: whole(pragma("page_count")?),
            free_pages: whole(pragma("freelist_count")?),
            wal_bytes: std::fs::metadata(beside(&self.path, "-wal")).map_or(0, |stat| stat.len()),
        })
    }

    /// The columns of a table in their order; none when there is no such table.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn columns(&self, table: &str) -> rusqlite::Result<Vec<Column>> {
        // ANY is no type in a STRICT table and a number in any other.
        let is_strict = "coalesce((SELECT strict FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE), 0)";
        let declared = format!("CASE WHEN {is_strict} AND type = 'ANY' COLLATE NOCASE THEN '' ELSE type END");
        let mut statement = self.connection.prepare(&format!("SELECT name, pk, {declared} FROM pragma_table_info(?1) ORDER BY cid"))?;
        let column = |row: &rusqlite::Row<'_>| {
            let (key, declared) = (row.get::<_, i64>(1)?, row.get::<_, String>(2)?);
            Ok(Column { name: row.get(0)?, affinity: Affinity::of(&declared), key: u64::try_from(key).unwrap_or(0) })
        };
        statement.query_map(params![table], column)?.collect()
    }

    /// Its name as the database spells it, whatever the case of `name`, and `table`, `view`, …; `None` when there is nothing
    /// of this name.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn kind_of(&self, name: &str) -> rusqlite::Result<Option<(String, String)>> {
        let sql = "SELECT name, type FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query(params![name])?;
        rows.next()?.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
    }

    /// The triggers a change of this table would set off.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn triggers_of(&self, table: &str) -> rusqlite::Result<Vec<String>> {
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE ORDER BY name";
        let mut statement = self.connection.prepare(sql)?;
        statement.query_map(params![table], |row| row.get(0))?.collect()
    }

    /// The tables whose rows refer to rows of this one by FOREIGN KEY, itself among them where it does.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn referring_to(&self, table: &str) -> rusqlite::Result<Vec<String>> {
        let sql = "SELECT DISTINCT t.name FROM sqlite_schema AS t JOIN pragma_foreign_key_list(t.name) AS k
            WHERE t.type = 'table' AND k.\"table\" = ?1 COLLATE NOCASE ORDER BY t.name";
        let mut statement = self.connection.prepare(sql)?;
        statement.query_map(params![table], |row| row.get(0))?.collect()
    }

    /// True when a statement reads a whole table and not just the part an index leads to.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn reads_all(&self, sql: &str) -> rusqlite::Result<bool> {
        let mut statement = self.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            if row.get::<_, String>(3)?.starts_with("SCAN") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn not_opened(path: &Path, why: &str) -> Failure {
    Failure(format!("open the database {}: {why}", path.display()))
}

/// Sets what a guest in somebody's database sets. Answers whether the database keeps a log of changes.
fn settle(connection: &Connection) -> rusqlite::Result<bool> {
    connection.busy_timeout(PATIENCE)?;
    // Our SQLite is built with foreign keys on, Python's leaves them off: a delete of ours must not cascade where the
    // application's own would not.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    // The last one to close would otherwise write the whole log back, under a lock, and remove it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // A commit must not also write the log back: that is done between transactions (`write_log_back`).
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    let is_wal = mode.eq_ignore_ascii_case("wal");
    if is_wal {
        // In this mode a power failure can take back our last deletions and nothing else; without the fsync the lock is
        // held for a fraction of the time. The application's own connection keeps what it has set.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    Ok(is_wal)
}

/// Moves what is in the log to the database, as far as no reader or writer needs it: never waits, never blocks.
///
/// # Errors
/// What SQLite said.
pub fn write_log_back(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// SQLite makes `-wal`, `-shm` and `-journal` with the owner of the database only when it runs as root. Everybody else may
/// open just what is his own, or what needs no new file.
fn wrong_owner(path: &Path, owner: u32) -> Option<String> {
    let us = rustix::process::geteuid();
    let is_there = |suffix: &str| std::fs::symlink_metadata(beside(path, suffix)).is_ok();
    if us.is_root() || us.as_raw() == owner || (is_there("-wal") && is_there("-shm")) {
        return None;
    }
    Some(format!(
        "it belongs to user {owner} and we are user {}: files SQLite makes beside it would be ours and could not be opened by its owner; \
         run as that user",
        us.as_raw()
    ))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// True while somebody else holds the lock that was asked for: to be tried again.
pub fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Tries until nobody is in the way; `None` when the run is to stop first.
///
/// # Errors
/// Everything SQLite says but that it is busy.
pub fn patiently<T>(foreman: &mut dyn Foreman, mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) => {
                if !foreman.wait(pause) {
                    return Ok(None);
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            done => return done.map(Some),
        }
    }
}

/// A name as SQL writes it, whatever is in it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An error of SQLite for people.
pub fn told(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => "it is no SQLite database, or an encrypted one".to_owned(),
        Some(ErrorCode::DatabaseCorrupt) => format!("it is damaged ({error})"),
        Some(ErrorCode::DiskFull) => "the disk is full".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let error = Database::open(&path).unwrap_err();
        assert!(error.0.contains("there is no such file"), "{error}");
        assert!(Database::open(folder.path()).unwrap_err().0.contains("no regular file"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_no_database_is_told_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        std::fs::write(&path, "this is no database at all, but long enough to look at ".repeat(40)).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(Database::open(&path).unwrap_err().0.contains("no SQLite database"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_guest_neither_cascades_nor_writes_the_log_back_when_it_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a?b%20.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
            .unwrap();
        let guest = Database::open(&path).unwrap();
        assert!(guest.is_wal());
        assert_eq!(guest.connection.query_row("PRAGMA foreign_keys", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        assert_eq!(guest.columns("t").unwrap(), [Column { name: "a".to_owned(), affinity: Affinity::None, key: 0 }]);
        let wal = guest.sizes().unwrap().wal_bytes;
        assert!(wal > 0);
        app.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        drop(app);
        drop(guest);
        assert_eq!(std::fs::metadata(beside(&path, "-wal")).unwrap().len(), wal, "the log was written back");
    }

    #[test]
    fn a_busy_database_is_waited_for_and_the_wait_can_be_stopped() {
        struct Patient(u32);
        impl Foreman for Patient {
            fn now(&mut self) -> crate::host::clock::Moment {
                crate::host::clock::Moment::now()
            }
            fn tell(&mut self, _: crate::jobs::run::Report) {}
            fn wait(&mut self, _: Duration) -> bool {
                self.0 = self.0.saturating_sub(1);
                self.0 > 0
            }
            fn at_safe_point(&mut self) -> bool {
                self.0 > 0
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); BEGIN IMMEDIATE").unwrap();
        let guest = Database::open(&path).unwrap();
        guest.connection.busy_timeout(Duration::ZERO).unwrap();
        let begin = || guest.connection.execute_batch("BEGIN IMMEDIATE");
        assert_eq!(patiently(&mut Patient(3), begin).unwrap(), None);
        let mut tries = 0;
        let freed = patiently(&mut Patient(9), || {
            tries += 1;
            if tries == 3 {
                app.execute_batch("COMMIT")?;
            }
            guest.connection.execute_batch("BEGIN IMMEDIATE")
        });
        assert_eq!((freed.unwrap(), tries), (Some(()), 3));
    }

    /// Asked of SQLite itself, which makes of a value what it says here.
    #[test]
    fn what_a_column_makes_of_a_value_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        let types =
            ["INTEGER", "bigint", "varchar(9)", "CLOB", "TEXT", "BLOB", "", "REAL", "DOUBLE", "DATETIME", "ANY", "CHARINT", "STRING"];
        let columns: Vec<String> = types.iter().enumerate().map(|(place, declared)| format!("c{place} {declared}")).collect();
        app.execute_batch(&format!("CREATE TABLE t ({}); CREATE TABLE s (c0 ANY, c1 TEXT, c2 INT) STRICT", columns.join(", "))).unwrap();
        let guest = Database::open(&path).unwrap();
        for (table, count) in [("t", types.len()), ("s", 3)] {
            app.execute_batch(&format!("INSERT INTO {table} DEFAULT VALUES")).unwrap();
            for (place, column) in guest.columns(table).unwrap().into_iter().enumerate() {
                let made = |value: &str| -> String {
                    app.execute_batch(&format!("UPDATE {table} SET c{place} = {value}")).unwrap();
                    app.query_row(&format!("SELECT typeof(c{place}) FROM {table}"), [], |row| row.get(0)).unwrap()
                };
                let expected = match (made("7") == "text", made("'7'") == "text") {
                    (true, _) => Affinity::Text,
                    (false, false) => Affinity::Number,
                    (false, true) => Affinity::None,
                };
                assert_eq!(column.affinity, expected, "column {} of {table}, of {count}", column.name);
            }
        }
    }

    #[test]
    fn names_are_quoted_whatever_they_hold() {
        assert_eq!(quoted("a\"b; DROP"), "\"a\"\"b; DROP\"");
    }
}
