//! Which tables hold sessions, and by which columns: known shapes only. What looks like none of them is told and left alone.
//!
//! | `checkpoints` of the LangGraph checkpointer | since |
//! |---|---|
//! | `thread_id`, `checkpoint` | February 2024 |
//! | + `thread_ts`; + `parent_ts`; + `metadata` | March, May 2024 |
//! | `thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `checkpoint`, `metadata` | August 2024 |
//! | + `type` | checkpoint-sqlite 1.0 |
//!
//! `writes` comes with August 2024, gets `type` with 1.0 and `task_path` with 3.1.2: fifth column of a new table, last of one
//! that was altered, so columns are addressed by name. Tables of long-term memory (`store`, `store_vectors`, `cache`) may
//! stand in the same file; no statement of this job names them.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{ToSql, params};
use serde::{Deserialize, Serialize};

use crate::config::jobs::{Format, Table};
use crate::jobs::run::{Failure, Foreman};
use crate::jobs::sqlite::{Affinity, Database, patiently, quoted, told};

/// A child table without an index on its column of ids would be read whole, under the lock, for every session.
const MOST_ROWS_WITHOUT_INDEX: u64 = 10_000;

/// Characters of the id of a session that are told.
const LONGEST_TOLD: usize = 200;

/// The id of a session as the database holds it: text and number are different ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionId {
    Integer(i64),
    Text(String),
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SessionId::Integer(id) => write!(f, "{id}"),
            SessionId::Text(id) => f.write_str(id),
        }
    }
}

impl SessionId {
    /// For people: an id may be of any length, a line of the record may not.
    pub fn told(&self) -> String {
        match self {
            SessionId::Integer(id) => id.to_string(),
            SessionId::Text(id) => shortened(id),
        }
    }
}

/// So much of the id of a session as is told.
pub fn shortened(id: &str) -> String {
    match id.char_indices().nth(LONGEST_TOLD) {
        None => id.to_owned(),
        Some((end, _)) => format!("{}…", id.get(..end).unwrap_or_default()),
    }
}

impl ToSql for SessionId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            SessionId::Integer(id) => id.to_sql(),
            SessionId::Text(id) => id.to_sql(),
        }
    }
}

impl FromSql for SessionId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<SessionId> {
        match value {
            ValueRef::Integer(id) => Ok(SessionId::Integer(id)),
            ValueRef::Text(id) => match std::str::from_utf8(id) {
                Ok(id) => Ok(SessionId::Text(id.to_owned())),
                Err(_) => Err(FromSqlError::InvalidType),
            },
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Err(FromSqlError::InvalidType),
        }
    }
}

/// Rows of one table that belong to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    pub table: String,
    /// The column that holds the id of the session.
    pub id: String,
    /// What a row is called in the record: `checkpoint`, `write`, the table's own name.
    pub what: String,
    /// All of them, in the order of the table.
    pub columns: Vec<String>,
    /// What the column of ids makes of the value it is compared with.
    affinity: Affinity,
    /// The name by which the number of a row can be asked; `None` for a table that has none.
    pub number: Option<&'static str>,
}

impl Rows {
    /// The condition that is true for the rows of session `?1` and no others: also where the column compares without
    /// regard to case.
    pub fn are_of_session(&self) -> String {
        let id = quoted(&self.id);
        format!("{id} = ?1 AND {id} = ?1 COLLATE BINARY")
    }

    pub fn name(&self) -> String {
        quoted(&self.table)
    }

    /// Every column, quoted.
    pub fn list(&self) -> String {
        self.columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
    }
}

/// How the age of a session is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dating {
    /// The id of each checkpoint tells its time; the metadata confirms it.
    Ids {
        /// `checkpoint_id`, or `thread_ts` before August 2024.
        id: &'static str,
        has_namespaces: bool,
        has_metadata: bool,
    },
    /// Nothing in the table tells a time: no session is ever old.
    Never,
    /// A column of times.
    Column(String),
}

/// Where the sessions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub dating: Dating,
    /// In the order in which they are deleted: the main table last.
    children: Vec<Rows>,
    main: Rows,
}

impl Layout {
    /// The table that says which sessions there are.
    pub fn main(&self) -> &Rows {
        &self.main
    }

    /// Every table, children first.
    pub fn tables(&self) -> impl Iterator<Item = &Rows> {
        self.children.iter().chain([&self.main])
    }

    pub fn children(&self) -> &[Rows] {
        &self.children
    }

    /// True where a change keeps the place and the number of a row, so that only its content shows it.
    pub fn changes_in_place(&self) -> bool {
        matches!(self.dating, Dating::Column(_))
    }

    /// The same as [`Layout::detect`], but waits while others hold the database for themselves alone; `None` when the run is
    /// to stop first.
    ///
    /// # Errors
    /// When the tables are not there or are none of those that are known.
    pub fn detect_patiently(database: &Database, format: &Format, foreman: &mut dyn Foreman) -> Result<Option<Layout>, Failure> {
        let detect = || {
            // Meets whoever is in the way; after it the transaction has the tables for itself to read.
            database.connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
            Ok(Layout::detect(database, format))
        };
        let detected = patiently(foreman, || database.at_once(detect)).map_err(|error| unreadable(database, &error))?;
        detected.transpose()
    }

    /// Finds out where the sessions of this database are.
    ///
    /// # Errors
    /// When the tables are not there or are none of those that are known.
    pub fn detect(database: &Database, format: &Format) -> Result<Layout, Failure> {
        let layout = match format {
            Format::Auto | Format::Langgraph => langgraph(database)?,
            Format::Table(table) => described(database, table)?,
        };
        for rows in layout.tables() {
            let triggers = database.triggers_of(&rows.table).map_err(|error| unreadable(database, &error))?;
            if !triggers.is_empty() {
                return Err(refused(
                    database,
                    &format!("the table {} has triggers ({}), which would change what no plan lists", rows.table, triggers.join(", ")),
                ));
            }
        }
        Ok(layout)
    }
}

fn refused(database: &Database, why: &str) -> Failure {
    Failure(format!("find the sessions of {}: {why}", database.path().display()))
}

fn unreadable(database: &Database, error: &rusqlite::Error) -> Failure {
    refused(database, &told(error))
}

/// Columns of `checkpoints` with their primary key, and how each dates its rows.
static CHECKPOINTS: [(&[&str], &[&str], Dating); 6] = [
    (&["thread_id", "checkpoint"], &["thread_id"], Dating::Never),
    (&["thread_id", "thread_ts", "checkpoint"], &["thread_id", "thread_ts"], BY_TS),
    (&["thread_id", "thread_ts", "parent_ts", "checkpoint"], &["thread_id", "thread_ts"], BY_TS),
    (
        &["thread_id", "thread_ts", "parent_ts", "checkpoint", "metadata"],
        &["thread_id", "thread_ts"],
        Dating::Ids { id: "thread_ts", has_namespaces: false, has_metadata: true },
    ),
    (&["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata"], BY_NAMESPACE, BY_ID),
    (&["thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "type", "checkpoint", "metadata"], BY_NAMESPACE, BY_ID),
];
const BY_TS: Dating = Dating::Ids { id: "thread_ts", has_namespaces: false, has_metadata: false };
const BY_ID: Dating = Dating::Ids { id: "checkpoint_id", has_namespaces: true, has_metadata: true };
const BY_NAMESPACE: &[&str] = &["thread_id", "checkpoint_ns", "checkpoint_id"];

const WRITES: [&[&str]; 3] = [
    &["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", "channel", "value"],
    &["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", "channel", "type", "value"],
    &["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path", "idx", "channel", "type", "value"],
];
const WRITES_KEY: &[&str] = &["thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx"];

fn langgraph(database: &Database) -> Result<Layout, Failure> {
    let Some((main, key)) = rows_of(database, "checkpoints", "thread_id", "checkpoint")? else {
        return Err(refused(
            database,
            "there is no table checkpoints; for sessions in other tables set `format = \"table\"` and name them (table, id, time)",
        ));
    };
    let known = CHECKPOINTS.iter().find(|(columns, primary, _)| is_same_set(&main.columns, columns) && key == *primary);
    let Some((_, _, dating)) = known.filter(|_| main.number.is_some()) else {
        return Err(refused(database, &format!("the table checkpoints has no known shape: {}", main.columns.join(", "))));
    };
    let mut children = Vec::new();
    if let Some((writes, key)) = rows_of(database, "writes", "thread_id", "write")? {
        let is_known = WRITES.iter().any(|columns| is_same_set(&writes.columns, columns)) && key == WRITES_KEY && writes.number.is_some();
        if !is_known {
            return Err(refused(database, &format!("the table writes has no known shape: {}", writes.columns.join(", "))));
        }
        children.push(writes);
    }
    Ok(Layout { dating: dating.clone(), children, main })
}

fn is_same_set(found: &[String], known: &[&str]) -> bool {
    found.len() == known.len() && known.iter().all(|column| found.iter().any(|one| one == column))
}

fn described(database: &Database, table: &Table) -> Result<Layout, Failure> {
    let main = required(database, &table.table, &table.id)?;
    if !main.columns.contains(&table.time) {
        return Err(refused(database, &no_column(&main, &table.time)));
    }
    let children = table.children.iter().map(|(child, column)| required(database, child, column)).collect::<Result<Vec<_>, _>>()?;
    let layout = Layout { dating: Dating::Column(table.time.clone()), children, main };
    let names: Vec<String> = layout.tables().map(|rows| rows.table.to_lowercase()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(place, name)| names.iter().take(*place).any(|other| other == *name)) {
        return Err(refused(database, &format!("the table {} is named twice", twice.1)));
    }
    for rows in layout.tables() {
        let referring = database.referring_to(&rows.table).map_err(|error| unreadable(database, &error))?;
        // We delete as most applications do, with no foreign keys kept: nothing would go with the session or be refused.
        if let Some(other) = referring.iter().find(|other| !layout.tables().any(|rows| rows.table == **other)) {
            return Err(refused(
                database,
                &format!(
                    "rows of the table {other} refer to rows of {} and would stay without them: name it in `children`, with its column \
                     that holds the id of the session",
                    rows.table
                ),
            ));
        }
    }
    for child in layout.children() {
        // Otherwise one id of a session would be that of another here: as numbers, '007' is 7.
        if child.affinity != layout.main().affinity && child.affinity != Affinity::None {
            return Err(refused(
                database,
                &format!(
                    "the column {} of {} is of another type than the column {} of {}, so that it cannot be said for certain whose a row is",
                    child.id,
                    child.table,
                    layout.main().id,
                    layout.main().table
                ),
            ));
        }
    }
    for rows in layout.tables() {
        let delete = format!("DELETE FROM {} WHERE {}", rows.name(), rows.are_of_session());
        let is_long = database.reads_all(&delete).and_then(|reads_all| Ok(reads_all && has_many_rows(database, rows)?));
        if is_long.map_err(|error| unreadable(database, &error))? {
            return Err(refused(
                database,
                &format!("the table {} has many rows and no index on {}: each session would lock it for long", rows.table, rows.id),
            ));
        }
    }
    Ok(layout)
}

fn has_many_rows(database: &Database, rows: &Rows) -> rusqlite::Result<bool> {
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {} LIMIT {})", rows.name(), MOST_ROWS_WITHOUT_INDEX + 1);
    database.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(|count| count > MOST_ROWS_WITHOUT_INDEX as i64)
}

fn required(database: &Database, table: &str, id: &str) -> Result<Rows, Failure> {
    let Some((rows, _)) = rows_of(database, table, id, table)? else {
        return Err(refused(database, &format!("there is no table {table}")));
    };
    if !rows.columns.contains(&rows.id) {
        return Err(refused(database, &no_column(&rows, id)));
    }
    Ok(rows)
}

fn no_column(rows: &Rows, name: &str) -> String {
    format!("the table {} has no column {name}, only {}", rows.table, rows.columns.join(", "))
}

/// A table with its primary key; `None` when there is none of this name.
fn rows_of(database: &Database, table: &str, id: &str, what: &str) -> Result<Option<(Rows, Vec<String>)>, Failure> {
    let read = |table: String| -> rusqlite::Result<Option<(Rows, Vec<String>)>> {
        let columns = database.columns(&table)?;
        if columns.is_empty() {
            return Ok(None);
        }
        let mut key: Vec<(u64, String)> =
            columns.iter().filter(|column| column.key > 0).map(|column| (column.key, column.name.clone())).collect();
        key.sort();
        let affinity = columns.iter().find(|column| column.name == id).map_or(Affinity::None, |column| column.affinity);
        let columns: Vec<String> = columns.into_iter().map(|column| column.name).collect();
        let sql = "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE";
        let has_numbers = database.connection.query_row(sql, params![table], |row| row.get::<_, i64>(0))? == 0;
        // A column of one of these names hides the number of the row.
        let is_free = |name: &&&str| !columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        let number = if has_numbers { ["rowid", "_rowid_", "oid"].iter().find(is_free).copied() } else { None };
        let rows = Rows { table, id: id.to_owned(), what: what.to_owned(), columns, affinity, number };
        Ok(Some((rows, key.into_iter().map(|(_, name)| name).collect())))
    };
    match database.kind_of(table).map_err(|error| unreadable(database, &error))? {
        None => Ok(None),
        // By its own spelling: manifests of backups know it by no other.
        Some((table, kind)) if kind == "table" => read(table).map_err(|error| unreadable(database, &error)),
        Some((table, kind)) => Err(refused(database, &format!("{table} is a {kind}, not a table"))),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn detect(schema: &str, format: &Format) -> Result<Layout, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        Connection::open(&path).unwrap().execute_batch(schema).unwrap();
        Layout::detect(&Database::open(&path).unwrap(), format)
    }

    fn table(children: &[(&str, &str)]) -> Format {
        Format::Table(Table {
            table: "sessions".to_owned(),
            id: "id".to_owned(),
            time: "seen".to_owned(),
            children: children.iter().map(|(table, column)| ((*table).to_owned(), (*column).to_owned())).collect(),
        })
    }

    #[test]
    fn unknown_shapes_are_refused_by_name() {
        for (schema, said) in [
            ("", "no table checkpoints"),
            ("CREATE TABLE checkpoints (thread_id TEXT PRIMARY KEY, body BLOB)", "no known shape: thread_id, body"),
            ("CREATE TABLE checkpoints (thread_id TEXT, checkpoint BLOB)", "no known shape"),
            ("CREATE TABLE checkpoints (thread_id TEXT PRIMARY KEY, checkpoint BLOB) WITHOUT ROWID", "no known shape"),
            ("CREATE VIEW checkpoints AS SELECT 1 AS thread_id, 2 AS checkpoint", "checkpoints is a view"),
            (
                "CREATE TABLE checkpoints (thread_id TEXT PRIMARY KEY, checkpoint BLOB); CREATE TABLE writes (thread_id TEXT)",
                "table writes has no known shape",
            ),
            (
                "CREATE TABLE checkpoints (thread_id TEXT PRIMARY KEY, checkpoint BLOB);
                 CREATE TRIGGER gone AFTER DELETE ON checkpoints BEGIN SELECT 1; END",
                "has triggers (gone)",
            ),
        ] {
            let error = detect(schema, &Format::Auto).unwrap_err();
            assert!(error.0.contains(said), "{schema}: {error}");
        }
    }

    #[test]
    fn described_tables_are_checked_before_anything_is_done() {
        let good = "CREATE TABLE sessions (id TEXT PRIMARY KEY, seen REAL); CREATE TABLE messages (session TEXT, body TEXT)";
        let layout = detect(good, &table(&[("messages", "session")])).unwrap();
        assert_eq!(layout.tables().map(|rows| rows.table.as_str()).collect::<Vec<_>>(), ["messages", "sessions"]);
        let many = format!(
            "{good}; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 10001) INSERT INTO messages SELECT i, '' FROM n"
        );
        for (schema, format, said) in [
            ("CREATE TABLE other (id TEXT)", table(&[]), "no table sessions"),
            ("CREATE TABLE sessions (key TEXT, seen REAL)", table(&[]), "no column id, only key, seen"),
            ("CREATE TABLE sessions (id TEXT)", table(&[]), "no column seen, only id"),
            (good, table(&[("message", "session")]), "no table message"),
            (good, table(&[("messages", "thread")]), "no column thread"),
            (good, table(&[("Sessions", "id")]), "named twice"),
            (
                "CREATE TABLE sessions (id TEXT PRIMARY KEY, seen REAL); CREATE TABLE messages (session INTEGER)",
                table(&[("messages", "session")]),
                "column session of messages is of another type than the column id of sessions",
            ),
            (
                "CREATE TABLE sessions (id, seen REAL); CREATE TABLE messages (session TEXT)",
                table(&[("messages", "session")]),
                "another type",
            ),
            (many.as_str(), table(&[("messages", "session")]), "no index on session"),
        ] {
            let error = detect(schema, &format).unwrap_err();
            assert!(error.0.contains(said), "{schema}: {error}");
        }
        let referring = format!("{good}; CREATE TABLE files (of TEXT REFERENCES Messages (session) ON DELETE CASCADE)");
        for (children, said) in [(&[("messages", "session")][..], "rows of the table files refer to rows of messages"), (&[], "")] {
            let detected = detect(&referring, &table(children));
            assert_eq!(detected.is_err(), !said.is_empty(), "{detected:?}");
            assert!(detected.err().is_none_or(|error| error.0.contains(said)));
        }
        for schema in [
            "CREATE TABLE sessions (id INTEGER PRIMARY KEY, seen REAL); CREATE TABLE messages (session BIGINT REFERENCES sessions (id))",
            "CREATE TABLE sessions (id TEXT PRIMARY KEY, seen REAL); CREATE TABLE messages (session)",
        ] {
            detect(schema, &table(&[("messages", "session")])).unwrap();
        }
        let indexed = format!("{many}; CREATE INDEX by_session ON messages (session)");
        detect(&indexed, &table(&[("messages", "session")])).unwrap();
    }

    #[test]
    fn a_hidden_row_number_is_asked_by_another_name() {
        let layout = detect("CREATE TABLE sessions (id TEXT PRIMARY KEY, seen REAL, rowid TEXT)", &table(&[])).unwrap();
        assert_eq!(layout.main().number, Some("_rowid_"));
        let layout = detect("CREATE TABLE sessions (id TEXT PRIMARY KEY, seen REAL) WITHOUT ROWID", &table(&[])).unwrap();
        assert_eq!(layout.main().number, None);
    }
}
