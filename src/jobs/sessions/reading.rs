//! Reads every row of a session, or of a table, without holding up whoever wants to commit.
//!
//! Where changes go to a log nobody waits for a reader, and one statement reads all. Anywhere else a commit waits until no
//! reader is at work, and a large session takes seconds: there each row is read by a statement of its own, which holds the
//! database for as long as that row takes. Rows read so are not of one moment: whoever needs that compares looks from before
//! and after.

use rusqlite::{Row, params};

use super::layout::{Rows, SessionId};
use crate::jobs::run::Foreman;
use crate::jobs::sqlite::{Database, patiently, quoted};

/// Rows read by one statement where all of a table are read.
pub const CHUNK: usize = 2000;

/// Gives `each` the expressions `list` of every row of one table that belongs to the session, in the order in which they came.
/// Rows without numbers cannot be asked for one by one, and are read by one statement everywhere. False when the run is to stop.
///
/// # Errors
/// What SQLite said, never that it is busy; or the first of `each`.
pub fn each_row<E: From<rusqlite::Error>>(
    database: &Database,
    rows: &Rows,
    list: &str,
    id: &SessionId,
    foreman: &mut dyn Foreman,
    mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
) -> Result<bool, E> {
    let (table, are_of_session) = (rows.name(), rows.are_of_session());
    let mut failed = None;
    let Some(number) = rows.number.filter(|_| !database.is_wal()) else {
        // Some applications rely on the order without knowing.
        let order = rows.number.map_or(String::new(), |number| format!(" ORDER BY {number}"));
        let sql = format!("SELECT {list} FROM {table} WHERE {are_of_session}{order}");
        // A statement that finds the database busy does so at its first row, so no row is ever given twice.
        let read = patiently(foreman, || {
            let mut statement = database.connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![id])?;
            while failed.is_none()
                && let Some(row) = found.next()?
            {
                failed = each(row).err();
            }
            Ok(())
        })?;
        return failed.map_or(Ok(read.is_some()), Err);
    };
    // Answered by the index alone, which holds the number of each row.
    let numbers = format!("SELECT {number} FROM {table} WHERE {are_of_session} ORDER BY {number}");
    let listed = patiently(foreman, || {
        let mut statement = database.connection.prepare_cached(&numbers)?;
        statement.query_map(params![id], |row| row.get::<_, i64>(0))?.collect::<rusqlite::Result<Vec<i64>>>()
    })?;
    let Some(listed) = listed else { return Ok(false) };
    let sql = format!("SELECT {list} FROM {table} WHERE {are_of_session} AND {number} = ?2");
    for number in listed {
        if !foreman.at_safe_point() {
            return Ok(false);
        }
        let read = patiently(foreman, || {
            let mut statement = database.connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![id, number])?;
            // One that has gone meanwhile shows in the look afterwards.
            if let Some(row) = found.next()? {
                failed = each(row).err();
            }
            Ok(())
        })?;
        match (failed.take(), read) {
            (Some(error), _) => return Err(error),
            (None, None) => return Ok(false),
            (None, Some(())) => {}
        }
    }
    Ok(true)
}

/// Reads a table in the order of its file, so many rows a statement: nothing is locked or pinned for longer than one takes.
/// `each` is given the number of the row, the id of its session and `expression`. False when the run is to stop.
pub fn read_in_chunks(
    database: &Database,
    rows: &Rows,
    expression: &str,
    foreman: &mut dyn Foreman,
    mut each: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<bool> {
    let id = quoted(&rows.id);
    let Some(number) = rows.number else {
        // Without numbers there is no place to go on from.
        let sql = format!("SELECT 0, {id}, {expression} FROM {}", rows.name());
        let all = patiently(foreman, || {
            let mut statement = database.connection.prepare(&sql)?;
            let mut found = statement.raw_query();
            while let Some(row) = found.next()? {
                each(row)?;
            }
            Ok(())
        })?;
        return Ok(all.is_some());
    };
    let sql = format!("SELECT {number}, {id}, {expression} FROM {} WHERE {number} >= ?1 ORDER BY {number} LIMIT {CHUNK}", rows.name());
    let mut from = i64::MIN;
    loop {
        if !foreman.at_safe_point() {
            return Ok(false);
        }
        let mut count = 0;
        let mut last = from;
        // A statement that finds the database busy does so at its first row, so no row is ever given twice.
        let chunk = patiently(foreman, || {
            let mut statement = database.connection.prepare_cached(&sql)?;
            let mut found = statement.query(params![from])?;
            while let Some(row) = found.next()? {
                last = row.get(0)?;
                count += 1;
                each(row)?;
            }
            Ok(())
        })?;
        match (chunk, last.checked_add(1)) {
            (None, _) => return Ok(false),
            (Some(()), Some(next)) if count == CHUNK => from = next,
            (Some(()), _) => return Ok(true),
        }
    }
}
