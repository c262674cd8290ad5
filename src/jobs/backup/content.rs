//! What a database holds: asked of the source in the transaction that is copied, and of a copy that was brought back.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::fault::{Fault, is_impossible};
use super::manifest::{Content, Table};
use super::watch::Halt;
use crate::config::jobs::Verify;
use crate::jobs::sqlite::quoted;

/// A table that has rows of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub root: u32,
    pub has_rowid: bool,
}

/// Everything but its tables.
pub fn outline(connection: &Connection) -> rusqlite::Result<Content> {
    let ask = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(Content {
        page_size: u32::try_from(ask("page_size")?).unwrap_or(0),
        pages: number(ask("page_count")?),
        free_pages: number(ask("freelist_count")?),
        journal_mode: connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?,
        tables: BTreeMap::new(),
        newest_checkpoint: None,
    })
}

/// The tables with rows of their own: no views, and nothing that lives in the application (virtual tables keep theirs in tables
/// of this list).
pub fn list(connection: &Connection) -> rusqlite::Result<Vec<Listed>> {
    let mut statement = connection.prepare(
        "SELECT s.name, s.rootpage, l.wr FROM sqlite_schema AS s JOIN pragma_table_list AS l ON l.schema = 'main' AND l.name = s.name
         WHERE s.type = 'table' AND s.rootpage > 0 ORDER BY s.name",
    )?;
    let rows = statement.query_map([], |row| Ok(Listed { name: row.get(0)?, root: row.get(1)?, has_rowid: !row.get::<_, bool>(2)? }))?;
    rows.collect()
}

/// Counts one table at once.
pub fn count(connection: &Connection, table: &Listed) -> Option<u64> {
    let name = quoted(&table.name);
    // An index is quicker, but may need a collation that only the application has.
    let counted = ["", " NOT INDEXED"]
        .iter()
        .find_map(|how| connection.query_row(&format!("SELECT count(*) FROM main.{name}{how}"), [], |row| row.get::<_, i64>(0)).ok());
    counted.and_then(|rows| u64::try_from(rows).ok())
}

/// Counts one table row by row, until it is told to stop.
pub fn count_while(connection: &Connection, table: &Listed, mut goes_on: impl FnMut() -> bool) -> Option<u64> {
    let mut statement = connection.prepare(&format!("SELECT 1 FROM main.{}", quoted(&table.name))).ok()?;
    let mut rows = statement.query([]).ok()?;
    let mut counted: u64 = 0;
    while rows.next().ok()?.is_some() {
        counted += 1;
        if counted.is_multiple_of(256) && !goes_on() {
            return None;
        }
    }
    Some(counted)
}

/// The highest row id. A column of the application's that is named so is what is asked then, with the same answer later.
pub fn newest(connection: &Connection, table: &Listed) -> Option<i64> {
    if !table.has_rowid {
        return None;
    }
    connection.query_row(&format!("SELECT max(rowid) FROM main.{}", quoted(&table.name)), [], |row| row.get(0)).ok().flatten()
}

/// Of LangGraph's checkpoints; `None` where there are none.
pub fn newest_checkpoint(connection: &Connection) -> Option<String> {
    let has_ids = "SELECT count(*) FROM pragma_table_info('checkpoints') WHERE name = 'checkpoint_id'";
    let is_there = connection.query_row(has_ids, [], |row| row.get::<_, i64>(0)).ok()? == 1;
    is_there.then(|| connection.query_row("SELECT max(checkpoint_id) FROM main.checkpoints", [], |row| row.get(0)).ok().flatten())?
}

/// Everything, at once.
pub fn read(connection: &Connection) -> rusqlite::Result<Content> {
    let mut content = outline(connection)?;
    for listed in list(connection)? {
        let table = Table { rows: count(connection, &listed), root: listed.root, newest: newest(connection, &listed) };
        content.tables.insert(listed.name, table);
    }
    content.newest_checkpoint = newest_checkpoint(connection);
    Ok(content)
}

/// Has SQLite look for damage. What is answered names the check, or says what kept it from being made.
///
/// # Errors
/// [`Fault::Damaged`] with what was found to be wrong; [`Fault::Unknown`] where this machine kept it from looking.
pub fn check(connection: &Connection, how: Verify) -> Result<String, Fault> {
    let pragma = match how {
        Verify::Quick => "quick_check",
        Verify::Full => "integrity_check",
        Verify::None => return Ok("none".to_owned()),
    };
    match connection.query_row(&format!("PRAGMA {pragma}(1)"), [], |row| row.get::<_, String>(0)) {
        Ok(word) if word == "ok" => Ok(pragma.to_owned()),
        Ok(found) => Err(Fault::Damaged(format!("{pragma} found: {}", found.lines().last().unwrap_or_default().trim()))),
        // An index or a column may need what only the application has. The copy is the same bytes all the same.
        Err(error) if is_impossible(&error) => Ok(format!("{pragma} was {IMPOSSIBLE}: {error}")),
        Err(error) => Err(match Fault::from(error) {
            Fault::Unknown(Halt::Failed(reason)) => Fault::Unknown(Halt::Failed(format!("{pragma} could not be made: {reason}"))),
            Fault::Damaged(reason) => Fault::Damaged(format!("{pragma} could not be made: {reason}")),
            fault => fault,
        }),
    }
}

/// In the words of a check that could not be made, where nothing speaks against the copy.
const IMPOSSIBLE: &str = "not possible";

/// True for the words of a check that could not be made.
pub fn was_impossible(check: &str) -> bool {
    check.contains(IMPOSSIBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_counted_whatever_their_names_and_kinds() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE checkpoints (thread_id TEXT, checkpoint_id TEXT, PRIMARY KEY (thread_id, checkpoint_id));
                 INSERT INTO checkpoints VALUES ('b', '1ef-1'), ('a', '1ef-2');
                 CREATE TABLE \"odd \"\"name'\" (a); INSERT INTO \"odd \"\"name'\" VALUES (1), (2), (3); DELETE FROM \"odd \"\"name'\" WHERE a = 3;
                 CREATE TABLE keyed (a PRIMARY KEY) WITHOUT ROWID; INSERT INTO keyed VALUES (5);
                 CREATE VIEW seen AS SELECT * FROM keyed;",
            )
            .unwrap();
        let content = read(&connection).unwrap();
        let figures: Vec<_> = content.tables.iter().map(|(name, table)| (name.as_str(), table.rows, table.newest)).collect();
        assert_eq!(figures, [("checkpoints", Some(2), Some(2)), ("keyed", Some(1), None), ("odd \"name'", Some(2), Some(2))]);
        assert_eq!((content.rows(), content.newest_checkpoint.as_deref()), (5, Some("1ef-2")));
        assert_eq!(check(&connection, Verify::Quick), Ok("quick_check".into()));
        assert_eq!(check(&connection, Verify::Full), Ok("integrity_check".into()));
    }

    #[test]
    fn what_only_the_application_has_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x')").unwrap();
        connection
            .execute_batch(
                "PRAGMA writable_schema = 1;
                 UPDATE sqlite_schema SET sql = 'CREATE TABLE t (a TEXT COLLATE application)' WHERE name = 't'",
            )
            .unwrap();
        drop(connection);
        let connection = Connection::open(&path).unwrap();
        let content = read(&connection).unwrap();
        assert_eq!(content.tables["t"].rows, Some(1));
        assert!(check(&connection, Verify::Full).is_ok());
    }

    #[test]
    fn what_is_damage_is_told_by_the_code_and_not_by_the_words() {
        let failure = |code, text: &str| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(text.to_owned()));
        for code in [rusqlite::ffi::SQLITE_CORRUPT, rusqlite::ffi::SQLITE_CORRUPT_VTAB, rusqlite::ffi::SQLITE_NOTADB] {
            assert!(matches!(Fault::from(failure(code, "x")), Fault::Damaged(_)), "{code}");
        }
        for code in [
            rusqlite::ffi::SQLITE_IOERR_READ,
            rusqlite::ffi::SQLITE_NOMEM,
            rusqlite::ffi::SQLITE_CANTOPEN,
            rusqlite::ffi::SQLITE_FULL,
            rusqlite::ffi::SQLITE_BUSY,
            rusqlite::ffi::SQLITE_INTERRUPT,
        ] {
            let error = failure(code, "no such function: x");
            assert!(!is_impossible(&error), "{code}");
            assert!(matches!(Fault::from(error), Fault::Unknown(Halt::Failed(_))), "{code}");
        }
        assert!(is_impossible(&failure(rusqlite::ffi::SQLITE_ERROR, "SQL logic error")));
    }
}
