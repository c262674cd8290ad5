//! Whether a verified backup holds a session: asked of the manifests beside the copies, which say what each copy held when it
//! was taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::age::{Age, Stamp};
use super::layout::Layout;
use super::survey::Seen;

/// The part of a manifest that matters here; whatever else is in it is not for us.
#[derive(Clone, Debug, Deserialize)]
struct Manifest {
    format: u32,
    made: String,
    source: PathBuf,
    file: PathBuf,
    file_bytes: u64,
    content: Content,
    verified: Option<serde_json::Value>,
    damaged: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Content {
    tables: BTreeMap<String, Table>,
}

#[derive(Clone, Debug, Deserialize)]
struct Table {
    /// The highest row number.
    newest: Option<i64>,
}

/// One verified copy of the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    made: Stamp,
    /// The highest row number of each table.
    tables: BTreeMap<String, Option<i64>>,
}

/// The verified copies of `database` that lie below `folder` and are as long as their manifests say.
///
/// # Errors
/// When the folder cannot be read; one that is not there holds nothing. A manifest that cannot be read is no proof, and nothing more.
pub fn copies(folder: &Path, database: &Path) -> std::io::Result<Vec<Copy>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Ok(text) = std::fs::read(&path)
            && let Some(copy) = read(&text, folder, database)
        {
            found.push(copy);
        }
    }
    Ok(found)
}

fn read(text: &[u8], folder: &Path, database: &Path) -> Option<Copy> {
    let manifest: Manifest = serde_json::from_slice(text).ok()?;
    let file = manifest.file.file_name().filter(|name| *name == manifest.file.as_os_str())?;
    let is_there = std::fs::symlink_metadata(folder.join(file)).is_ok_and(|stat| stat.is_file() && stat.len() == manifest.file_bytes);
    if manifest.format != 1 || manifest.source != database || manifest.verified.is_none() || manifest.damaged.is_some() || !is_there {
        return None;
    }
    let made = Stamp::of(manifest.made.parse::<jiff::Timestamp>().ok()?.into());
    let tables = manifest.content.tables.into_iter().map(|(name, table)| (name, table.newest)).collect();
    Some(Copy { made, tables })
}

/// True when one of the copies was taken after the session was last touched and holds all its rows: each has a number, and
/// none is higher than the highest in the copy. Rows without numbers are held by none.
pub fn holds(copies: &[Copy], layout: &Layout, seen: &Seen) -> bool {
    let (Age::Known { latest, .. }, Some(look)) = (seen.age, &seen.look) else { return false };
    copies.iter().any(|copy| {
        let holds_rows = |table: &str, count: u64, highest: Option<i64>| match copy.tables.get(table) {
            Some(newest) => count == 0 || matches!((highest, newest), (Some(highest), Some(newest)) if highest <= *newest),
            None => false,
        };
        let mut parts = layout.tables().zip(look.counts().zip(look.highest()));
        copy.made > latest && parts.all(|(rows, (count, highest))| holds_rows(&rows.table, count, highest))
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::config::jobs::{Format, Table};
    use crate::jobs::sessions::layout::SessionId;
    use crate::jobs::sessions::look::Look;
    use crate::jobs::sessions::survey::tests::CURRENT;
    use crate::jobs::sqlite::Database;

    const MADE: &str = "2025-11-20T03:00:00Z";
    const MADE_AT: i64 = 1_763_607_600 * 10_000_000;

    fn manifest(database: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut manifest = serde_json::json!({
            "format": 1, "made": MADE, "source": database, "file": "memory.db.zst", "compression": "zstd", "file_bytes": 4,
            "content": { "page_size": 4096, "tables": { "checkpoints": { "rows": 2, "root": 2, "newest": 2 }, "writes": { "rows": 0, "root": 4 } } },
            "verified": { "at": MADE, "how": "stream", "check": "quick_check" },
        });
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }

    /// Numbers count in tables of the application's own too, and the manifest spells their names as the database does.
    #[test]
    fn rows_that_came_after_the_copy_or_have_no_number_are_not_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(
            "CREATE TABLE Sessions (id TEXT PRIMARY KEY, seen REAL);
             CREATE TABLE messages (session TEXT, body TEXT);
             CREATE TABLE files (session TEXT, n INTEGER, PRIMARY KEY (session, n)) WITHOUT ROWID;
             INSERT INTO Sessions VALUES ('a', 1), ('b', 1), ('c', 1);
             INSERT INTO messages VALUES ('a', 'in the copy'), ('b', 'after it');
             INSERT INTO files VALUES ('c', 1)",
        )
        .unwrap();
        let children = vec![("Messages".to_owned(), "session".to_owned()), ("files".to_owned(), "session".to_owned())];
        let table = Table { table: "sessions".to_owned(), id: "id".to_owned(), time: "seen".to_owned(), children };
        let database = Database::open(&path).unwrap();
        let layout = Layout::detect(&database, &Format::Table(table)).unwrap();
        std::fs::write(folder.path().join("memory.db.zst"), "copy").unwrap();
        let tables = serde_json::json!({ "Sessions": { "newest": 3 }, "messages": { "newest": 1 }, "files": {} });
        let text = manifest(database.path(), |manifest| manifest["content"]["tables"] = tables);
        std::fs::write(folder.path().join("memory.db.zst.json"), text).unwrap();
        let copies = copies(folder.path(), database.path()).unwrap();
        let is_held = |id: &str| {
            let id = SessionId::Text(id.to_owned());
            let look = Some(Look::take(&database, &layout, &id).unwrap());
            holds(&copies, &layout, &Seen { look, id, age: Age::at(Stamp(0)), bytes: 0 })
        };
        assert_eq!(["a", "b", "c"].map(is_held), [true, false, false]);
    }

    #[test]
    fn only_what_a_verified_copy_holds_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(CURRENT).unwrap();
        for id in ["a", "b", "c"] {
            app.execute("INSERT INTO checkpoints (thread_id, checkpoint_id) VALUES (?1, 'c')", [id]).unwrap();
        }
        let database = Database::open(&path).unwrap();
        let layout = Layout::detect(&database, &Format::Auto).unwrap();
        let seen = |id: &str, at: i64| {
            let id = SessionId::Text(id.to_owned());
            Seen { look: Some(Look::take(&database, &layout, &id).unwrap()), id, age: Age::at(Stamp(at)), bytes: 0 }
        };
        std::fs::write(folder.path().join("memory.db.zst"), "copy").unwrap();
        let copies_with = |change: fn(&mut serde_json::Value)| {
            std::fs::write(folder.path().join("memory.db.zst.json"), manifest(database.path(), change)).unwrap();
            copies(folder.path(), database.path()).unwrap()
        };
        let good = copies_with(|_| ());
        assert!(holds(&good, &layout, &seen("a", MADE_AT - 1)) && holds(&good, &layout, &seen("b", 0)));
        assert!(!holds(&good, &layout, &seen("c", 0)), "a row that came after the copy");
        assert!(!holds(&good, &layout, &seen("a", MADE_AT)), "touched when the copy was taken");
        assert!(!holds(&good, &layout, &Seen { look: None, ..seen("a", 0) }));
        // The first write of a session, while the copy has none at all.
        app.execute("INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel) VALUES ('a', 'c', 't', 0, 'm')", []).unwrap();
        assert!(!holds(&good, &layout, &seen("a", 0)));
        let spoilt: [fn(&mut serde_json::Value); 9] = [
            |manifest| drop(manifest.as_object_mut().unwrap().remove("verified")),
            |manifest| manifest["verified"] = serde_json::Value::Null,
            |manifest| manifest["damaged"] = "its checksum is another".into(),
            |manifest| manifest["source"] = "/another.db".into(),
            |manifest| manifest["file_bytes"] = 5.into(),
            |manifest| manifest["file"] = "gone.zst".into(),
            |manifest| manifest["file"] = "../memory.db.zst".into(),
            |manifest| manifest["made"] = "yesterday".into(),
            |manifest| manifest["format"] = 2.into(),
        ];
        for spoil in spoilt {
            assert_eq!(copies_with(spoil), []);
        }
        let without = copies_with(|manifest| drop(manifest["content"]["tables"].as_object_mut().unwrap().remove("writes")));
        assert!(!holds(&without, &layout, &seen("b", 0)), "a copy from before the table was there");
    }
}
