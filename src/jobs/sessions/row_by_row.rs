//! Reads every row of a session without holding up whoever wants to commit.
//!
//! Where changes go to a log nobody waits for a reader, and one statement reads all. Anywhere else a commit waits until no
//! reader is at work, and a large session takes seconds: there each row is read by a statement of its own, which holds the
//! database for as long as that row takes. Rows read so are not of one moment: whoever needs that compares looks from before
//! and after.

use rusqlite::{Row, params};

use super::layout::{Rows, SessionId};
use crate::jobs::run::Foreman;
use crate::jobs::sqlite::{Database, patiently};

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
