//! Brings a deleted session back from the archive.
//!
//! A session that was brought back is as old as it was, and the next run would take it again before anybody has used it: so
//! it is noted beside the archives, and stays for as long as a young one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{TransactionBehavior, params_from_iter};
use serde::{Deserialize, Serialize};

use super::age::Stamp;
use super::archive::{Columns, Found, kept, list, names};
use super::layout::{Layout, SessionId, shortened};
use crate::config::jobs::Sessions;
use crate::host::clock::Moment;
use crate::jobs::run::{Failure, Outcome};
use crate::jobs::sqlite::{Database, quoted, told};

/// How long the application may be in the way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Inserts the rows of the newest archived session of this id, all or none.
///
/// # Errors
/// When there is no archive or it does not hold the session, when the database holds rows of it already, or when its tables
/// are not what they were.
pub fn restore(settings: &Sessions, id: &str, now: Moment) -> Result<Outcome, Failure> {
    let failed = |why: String| Failure(format!("restore the session {}: {why}", shortened(id)));
    let Some(folder) = &settings.archive else { return Err(failed("the job keeps no archive (set `archive`)".to_owned())) };
    let mut database = Database::open(&settings.database)?;
    let layout = Layout::detect(&database, &settings.format)?;
    let found = find(folder, &database, id).map_err(&failed)?;
    database.connection.busy_timeout(PATIENCE).map_err(|error| failed(told(&error)))?;
    // Noted first: a session that is noted and not there harms nobody, the other way round it might be deleted again.
    note(folder, database.path(), &found.label.id, Stamp::of(now.wall)).map_err(|error| failed(error.to_string()))?;
    let inserted = insert(&mut database, &layout, &found).map_err(|error| match error {
        RestoreError::Database(error) => failed(told(&error)),
        RestoreError::Disk(error) => failed(error.to_string()),
        RestoreError::Refused(why) => failed(why),
    })?;
    let figures = BTreeMap::from([("sessions_restored".to_owned(), 1.0), ("rows_restored".to_owned(), inserted as f64)]);
    Ok(Outcome { figures, ..Outcome::default() })
}

#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
    #[error("{0}")]
    Refused(String),
}

fn find(folder: &Path, database: &Database, id: &str) -> Result<Found, String> {
    let archives = kept(folder, database.path()).map_err(|error| format!("read {}: {error}", folder.display()))?;
    let mut unreadable = String::new();
    // The newest archive first, and of one archive the last record.
    for one in archives.iter().rev() {
        match list(&one.path) {
            Ok(found) => {
                if let Some(found) = found.into_iter().rev().find(|found| found.label.id.to_string() == id) {
                    return Ok(found);
                }
            }
            Err(error) => unreadable = format!("; {} cannot be read: {error}", one.path.display()),
        }
    }
    Err(format!("none of the {} archives of {} in {} holds it{unreadable}", archives.len(), database.path().display(), folder.display()))
}

fn insert(database: &mut Database, layout: &Layout, found: &Found) -> Result<u64, RestoreError> {
    let transaction = database.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for rows in layout.tables() {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE {})", rows.name(), rows.are_of_session());
        if transaction.query_row(&sql, [&found.label.id], |row| row.get::<_, bool>(0))? {
            return Err(RestoreError::Refused(format!("the table {} holds rows of it: two states would be mixed", rows.table)));
        }
    }
    let count = found.read(|tables, place, row| {
        let Some(Columns { table, columns }) = tables.get(place) else { return Ok(()) };
        let Some(known) = layout.tables().find(|rows| rows.table.eq_ignore_ascii_case(table)) else {
            return Err(RestoreError::Refused(format!("there is no table {table} any more")));
        };
        if let Some(missing) = columns.iter().find(|column| !known.columns.contains(column)) {
            return Err(RestoreError::Refused(format!("the table {table} has no column {missing} any more")));
        }
        let names = columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
        let places = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO {} ({names}) VALUES ({places})", known.name());
        transaction.prepare_cached(&sql)?.execute(params_from_iter(row))?;
        Ok(())
    })?;
    transaction.commit()?;
    Ok(count)
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    id: SessionId,
    /// Seconds since 1970.
    at: f64,
}

/// `memory.db.HASH.restored`, a line for each; and as it was called before the hash.
fn notes(folder: &Path, database: &Path) -> [PathBuf; 2] {
    names(database, ".restored").map(|name| folder.join(name))
}

fn note(folder: &Path, database: &Path, id: &SessionId, at: Stamp) -> io::Result<()> {
    let [path, _] = notes(folder, database);
    // A line break before it, too: the line there may be one that a crash has cut off.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, &Note { id: id.clone(), at: at.unix_seconds() })?;
    line.push(b'\n');
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(&line)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

/// The sessions that were brought back less than `keep` ago.
///
/// # Errors
/// When the notes are there and cannot be read: then nobody knows what must stay.
pub fn recent(settings: &Sessions, database: &Database, now: Stamp) -> Result<Vec<SessionId>, Failure> {
    let Some(folder) = &settings.archive else { return Ok(Vec::new()) };
    let cutoff = now.before(settings.keep).unix_seconds();
    let mut recent = Vec::new();
    for path in notes(folder, database.path()) {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(Failure(format!("read {}: {error}", path.display()))),
        };
        // A line that was cut off by a crash, maybe inside a letter, was never followed by a restore.
        let notes = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Note>(line).ok());
        recent.extend(notes.filter(|note| note.at >= cutoff).map(|note| note.id));
    }
    Ok(recent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::jobs::Format;

    fn text(id: &str) -> SessionId {
        SessionId::Text(id.to_owned())
    }

    #[test]
    fn a_note_that_was_cut_off_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        drop(rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)"));
        let database = Database::open(&path).unwrap();
        let day = Duration::from_secs(86_400);
        let settings = Sessions {
            database: path,
            format: Format::Auto,
            keep: day * 7,
            second_look: Duration::ZERO,
            longest_lock: Duration::ZERO,
            archive: Some(folder.path().to_path_buf()),
            archive_keep: day * 7,
            backed_up_in: None,
        };
        let now = Stamp(20_000 * 86_400 * 10_000_000);
        let note = |database: &Path, id: &str, at: Stamp| note(folder.path(), database, &text(id), at).unwrap();
        note(database.path(), "long ago", now.before(day * 8));
        note(database.path(), "b", now);
        note(Path::new("/other/memory.db"), "of another", now);
        let [path, old] = notes(folder.path(), database.path());
        let whole = std::fs::read(&path).unwrap();
        // In the middle of the two bytes of a letter.
        std::fs::write(&path, [&whole[..], b"{\"id\":{\"text\":\"\xc3"].concat()).unwrap();
        note(database.path(), "c", now);
        std::fs::write(old, format!("{{\"id\":{{\"text\":\"a\"}},\"at\":{}}}\n", now.unix_seconds())).unwrap();
        assert_eq!(recent(&settings, &database, now).unwrap(), ["b", "c", "a"].map(text));
    }
}
