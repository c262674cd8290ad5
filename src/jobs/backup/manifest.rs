//! What is written down beside a copy: where it comes from, when it was taken, what it must hold when it is brought back.
//!
//! A copy without a manifest is no backup: the manifest is renamed into place last, so its being there says that everything
//! before it went well.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::host::durable::Owner;

/// The only layout there is so far; a manifest of a later one is shown and otherwise left alone.
pub const FORMAT: u32 = 1;

/// Follows the name of the copy.
pub const SUFFIX: &str = ".json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Everything that was committed by then is in the copy. RFC 3339, UTC.
    #[serde(with = "stamp")]
    pub made: SystemTime,
    /// The job that made it, which alone takes it away. Absent in copies of versions that did not write it down: they are anybody's who
    /// copies the same database here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The database, absolute and without links.
    pub source: PathBuf,
    /// The name of the copy in the folder of the manifest.
    pub file: String,
    /// `zstd` or `none`.
    pub compression: String,
    /// `age`, where the copy is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// Of the copy as it lies in the folder: hexadecimal, as `sha256sum` prints it.
    pub file_bytes: u64,
    pub file_sha256: String,
    /// Of the database that comes out of it.
    pub database_bytes: u64,
    pub database_sha256: String,
    pub database_owner: Ownership,
    pub content: Content,
    /// How it was read: `pages`, `pages-between-locks`, `scratch-copy`.
    pub method: String,
    pub sqlite_version: String,
    pub plimsoll_version: String,
    /// When it was proven that it can be brought back; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verification>,
    /// What a later look at the copy found wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// What the snapshot held, asked in the very transaction that was copied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes, 512 to 65536.
    pub page_size: u32,
    pub pages: u64,
    /// Of `pages`, those that hold nothing.
    pub free_pages: u64,
    /// `wal`, `delete`, …
    pub journal_mode: String,
    pub tables: BTreeMap<String, Table>,
    /// Of LangGraph's checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_checkpoint: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Absent where this SQLite cannot count them: a table that needs something only the application has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The page its tree begins at.
    pub root: u32,
    /// The highest row id; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<i64>,
}

impl Content {
    /// Over all tables that could be counted.
    pub fn rows(&self) -> u64 {
        self.tables.values().filter_map(|table| table.rows).sum()
    }

    /// Where two differ, for people; `None` when both hold the same.
    pub fn difference(&self, other: &Content) -> Option<String> {
        for (name, table) in &self.tables {
            let Some(found) = other.tables.get(name) else {
                return Some(format!("the table {name} is missing"));
            };
            // What could not be counted when the copy was made proves nothing now.
            if table.rows.is_some() && table.rows != found.rows {
                let say = |rows: Option<u64>| rows.map_or("an unknown number of".to_owned(), |rows| rows.to_string());
                return Some(format!("the table {name} has {} rows and should have {}", say(found.rows), say(table.rows)));
            }
            if table.newest != found.newest {
                return Some(format!("the newest row of the table {name} is another one"));
            }
        }
        if let Some(name) = other.tables.keys().find(|name| !self.tables.contains_key(*name)) {
            return Some(format!("there is a table {name} that should not be there"));
        }
        (self.newest_checkpoint.is_some() && self.newest_checkpoint != other.newest_checkpoint)
            .then(|| "the newest checkpoint is another one".to_owned())
    }
}

/// Whose the database was, for a restore where nothing is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    pub user: u32,
    pub group: u32,
    pub mode: u32,
}

impl From<Owner> for Ownership {
    fn from(owner: Owner) -> Ownership {
        Ownership { user: owner.user, group: owner.group, mode: owner.mode }
    }
}

impl From<Ownership> for Owner {
    fn from(owner: Ownership) -> Owner {
        Owner { user: owner.user, group: owner.group, mode: owner.mode & 0o777 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    #[serde(with = "stamp")]
    pub at: SystemTime,
    /// `sealed`: the file is what was written, and cannot be opened here; `stream`: read back whole, compared and its rows counted as it went by; `restored`: brought back to a temporary file and asked.
    pub how: String,
    /// `quick_check`, `integrity_check`, `none` where none was asked for; what kept it from being done, where the database needs something only the application has.
    pub check: String,
}

impl Manifest {
    /// # Errors
    /// For text that is no manifest of ours, in words for people.
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| format!("is no manifest: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("is a manifest of format {}; this version knows {FORMAT}", manifest.format));
        }
        if manifest.content.page_size == 0 {
            return Err("is no manifest: a page of 0 bytes".to_owned());
        }
        Ok(manifest)
    }

    pub fn to_text(&self) -> String {
        // Of plain data: maps have text for keys and there are no floats.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    pub fn is_good(&self) -> bool {
        self.verified.is_some() && self.damaged.is_none()
    }
}

/// Moments as RFC 3339 in UTC.
mod stamp {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&jiff::Timestamp::try_from(*at).map_err(ser::Error::custom)?)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(at.into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    /// A verified copy of `/app/memory.db`, made so many seconds after 1970.
    pub fn manifest(made: u64) -> Manifest {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(made);
        let tables = BTreeMap::from([("checkpoints".to_owned(), Table { rows: Some(3), root: 2, newest: Some(3) })]);
        Manifest {
            format: FORMAT,
            made,
            job: None,
            source: "/app/memory.db".into(),
            file: "memory.db.zst".into(),
            compression: "zstd".into(),
            encryption: None,
            file_bytes: 100,
            file_sha256: String::new(),
            database_bytes: 8192,
            database_sha256: String::new(),
            database_owner: Ownership { user: 0, group: 0, mode: 0o644 },
            content: Content {
                page_size: 4096,
                pages: 2,
                free_pages: 0,
                journal_mode: "wal".into(),
                tables,
                newest_checkpoint: Some("1ef".into()),
            },
            method: "pages".into(),
            sqlite_version: "3.54.1".into(),
            plimsoll_version: "0.1.0".into(),
            verified: Some(Verification { at: made, how: "stream".into(), check: "quick_check".into() }),
            damaged: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let one = manifest(1_764_000_000);
        let text = one.to_text();
        assert!(text.contains("\"made\": \"2025-11-24T16:00:00Z\""), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(one));
    }

    #[test]
    fn what_is_no_manifest_is_told() {
        for (text, expected) in [("", "is no manifest"), ("{}", "missing field"), ("[1]", "is no manifest")] {
            let error = Manifest::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let later = manifest(0).to_text().replace("\"format\": 1", "\"format\": 2");
        assert_eq!(Manifest::parse(later.as_bytes()).unwrap_err(), "is a manifest of format 2; this version knows 1");
    }

    #[test]
    fn every_difference_is_seen() {
        let content = manifest(0).content;
        assert_eq!(content.difference(&content.clone()), None);
        let change = |change: fn(&mut Content)| {
            let mut other = content.clone();
            change(&mut other);
            content.difference(&other).expect("a difference")
        };
        let table = |rows, newest| Table { rows, root: 2, newest };
        let fewer = move |rows, newest| {
            move |content: &mut Content| {
                content.tables.insert("checkpoints".into(), table(rows, newest));
            }
        };
        let mut other = content.clone();
        fewer(Some(2), Some(3))(&mut other);
        assert_eq!(content.difference(&other).unwrap(), "the table checkpoints has 2 rows and should have 3");
        fewer(Some(3), Some(4))(&mut other);
        assert_eq!(content.difference(&other).unwrap(), "the newest row of the table checkpoints is another one");
        assert_eq!(change(|content| content.tables.clear()), "the table checkpoints is missing");
        assert!(
            change(|content| {
                content.tables.insert("more".into(), Table::default());
            })
            .contains("table more")
        );
        assert!(change(|content| content.newest_checkpoint = None).contains("newest checkpoint"));
    }
}
