//! What a session looks like at one moment, in a few numbers: whoever touches it in any way changes them.
//!
//! The library writes results of a step to `writes`, which has no times, long before the next checkpoint: such a session is
//! old by its checkpoints and in use. Each row it writes, also over an old one, gets the next number, so that count and
//! highest number tell. Only the last row of a table can be replaced under its own number: its content is looked at.

use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::types::ValueRef;
use rusqlite::{Row, params};

use super::layout::{Layout, Rows, SessionId};
use crate::jobs::sqlite::Database;

/// One part for each table, in the order of the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    rows: u64,
    highest: Option<i64>,
    /// Of the row with the highest number; of all rows where they change in place or have no numbers.
    content: u64,
}

impl Look {
    /// Looks at one session. Inside a transaction, so that all tables are of one moment.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn take(database: &Database, layout: &Layout, id: &SessionId) -> rusqlite::Result<Look> {
        let part = |rows: &Rows| match rows.number.filter(|_| !layout.changes_in_place()) {
            Some(number) => by_number(database, rows, number, id),
            None => whole(database, rows, id),
        };
        layout.tables().map(part).collect::<rusqlite::Result<Vec<Part>>>().map(Look)
    }

    /// Rows of each table, in the order of the layout.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|part| part.rows)
    }

    pub fn rows(&self) -> u64 {
        self.counts().sum()
    }

    /// The highest row number in each table; `None` for no rows, and where rows have no number.
    pub fn highest(&self) -> impl Iterator<Item = Option<i64>> {
        self.0.iter().map(|part| part.highest)
    }
}

fn by_number(database: &Database, rows: &Rows, number: &str, id: &SessionId) -> rusqlite::Result<Part> {
    // Answered by the index alone, which holds the number of each row.
    let sql = format!("SELECT count(*), max({number}) FROM {} WHERE {}", rows.name(), rows.are_of_session());
    let (count, highest) = database
        .connection
        .prepare_cached(&sql)?
        .query_row(params![id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))?;
    let mut content = DefaultHasher::new();
    if let Some(highest) = highest {
        let sql = format!("SELECT {} FROM {} WHERE {number} = ?1", rows.list(), rows.name());
        database.connection.prepare_cached(&sql)?.query_row(params![highest], |row| feed(row, rows.columns.len(), &mut content))?;
    }
    Ok(Part { rows: u64::try_from(count).unwrap_or(0), highest, content: content.finish() })
}

fn whole(database: &Database, rows: &Rows, id: &SessionId) -> rusqlite::Result<Part> {
    let number = rows.number.unwrap_or("NULL");
    let sql = format!("SELECT {}, {number} FROM {} WHERE {}", rows.list(), rows.name(), rows.are_of_session());
    let mut statement = database.connection.prepare_cached(&sql)?;
    let mut found = statement.query(params![id])?;
    let mut part = Part { rows: 0, highest: None, content: 0 };
    while let Some(row) = found.next()? {
        let mut content = DefaultHasher::new();
        feed(row, rows.columns.len(), &mut content)?;
        part.rows += 1;
        part.highest = part.highest.max(row.get(rows.columns.len())?);
        // The order in which rows are found may change with the plan of the query, so it must not matter.
        part.content = part.content.wrapping_add(content.finish());
    }
    Ok(part)
}

fn feed(row: &Row<'_>, columns: usize, content: &mut DefaultHasher) -> rusqlite::Result<()> {
    for column in 0..columns {
        match row.get_ref(column)? {
            ValueRef::Null => 0_u8.hash(content),
            ValueRef::Integer(value) => (1_u8, value).hash(content),
            ValueRef::Real(value) => (2_u8, value.to_bits()).hash(content),
            ValueRef::Text(value) => (3_u8, value).hash(content),
            ValueRef::Blob(value) => (4_u8, value).hash(content),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::config::jobs::Format;
    use crate::jobs::sessions::survey::tests::CURRENT;

    /// Every way to touch a session shows, those that keep all counts too.
    #[test]
    fn whatever_is_done_to_a_session_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(CURRENT).unwrap();
        for thread in ["t", "other"] {
            for step in 0..3 {
                app.execute(
                    "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata) VALUES (?1, ?2, x'00', '{}')",
                    params![thread, format!("c{step}")],
                )
                .unwrap();
                app.execute(
                    "INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel, value) VALUES (?1, ?2, 'a', 0, 'm', x'01')",
                    params![thread, format!("c{step}")],
                )
                .unwrap();
            }
        }
        let guest = Database::open(&path).unwrap();
        let layout = Layout::detect(&guest, &Format::Auto).unwrap();
        let look = |id: &str| Look::take(&guest, &layout, &SessionId::Text(id.to_owned())).unwrap();
        assert_eq!(look("t").rows(), 6);
        assert_eq!(look("t"), look("t"));
        assert_eq!(look("nobody").rows(), 0);
        let write = "INSERT OR REPLACE INTO writes (thread_id, checkpoint_id, task_id, idx, channel, value)";
        let ways = [
            format!("{write} VALUES ('t', 'c2', 'b', 0, 'm', x'02')"),
            // The same key once more: the count stays.
            format!("{write} VALUES ('t', 'c0', 'a', 0, 'm', x'02')"),
            // And now the last row of the table: its number stays as well.
            format!("{write} VALUES ('t', 'c0', 'a', 0, 'm', x'03')"),
            "DELETE FROM writes WHERE thread_id = 't' AND checkpoint_id = 'c1'".to_owned(),
            "INSERT OR REPLACE INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', 'c1', x'09')".to_owned(),
            "INSERT OR REPLACE INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', 'c1', x'0A')".to_owned(),
            "DELETE FROM checkpoints WHERE thread_id = 't'".to_owned(),
        ];
        for way in ways {
            let (before, others) = (look("t"), look("other"));
            app.execute_batch(&way).unwrap();
            assert_ne!(look("t"), before, "{way}");
            assert_eq!(look("other"), others, "{way}");
        }
    }
}
