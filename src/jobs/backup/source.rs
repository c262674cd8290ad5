//! A database to be copied, opened so that its application notices nothing: never made, never written, no file left beside it that
//! would belong to somebody else.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault;
use super::manifest::Ownership;
use super::watch::{Halt, Watch};
use crate::host::durable;

/// How long a reader waits for whoever has the file to itself for a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is begun anew with a database that somebody has to himself, or that changes meanwhile.
pub const ATTEMPTS: u32 = 5;
/// Between two of them where it was locked, beyond [`PATIENCE`].
pub const LOCKED_PAUSE: Duration = Duration::from_secs(1);

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Why a database could not be read just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barred {
    /// Somebody has it to himself; in a moment it may be free.
    Locked,
    Halted(Halt),
}

impl From<Halt> for Barred {
    fn from(halt: Halt) -> Barred {
        Barred::Halted(halt)
    }
}

impl From<rusqlite::Error> for Barred {
    fn from(error: rusqlite::Error) -> Barred {
        let extended = match &error {
            rusqlite::Error::SqlInputError { error, .. } => Some(error.extended_code),
            error => error.sqlite_extended_error_code(),
        };
        match fault::code(&error) {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Barred::Locked,
            // There is a journal to be rolled back, which a reader cannot.
            Some(ErrorCode::ReadOnly) if extended == Some(rusqlite::ffi::SQLITE_READONLY_ROLLBACK) => Barred::Halted(Halt::because(
                "its application died in the middle of a change and has not opened it since; open it once (start the application) and run again",
            )),
            _ => Barred::Halted(error.into()),
        }
    }
}

/// What is said of a database that was locked so long.
pub fn locked(time: Duration) -> Halt {
    Halt::Failed(format!("somebody has had it locked for {} s", time.as_secs()))
}

#[derive(Debug)]
pub struct Source {
    /// Absolute, without links.
    pub path: PathBuf,
    pub connection: Connection,
    /// It keeps a log of changes, so that a reader holds nobody up.
    pub is_wal: bool,
    /// This build of SQLite gives out pages.
    pub gives_pages: bool,
    pub owner: Ownership,
    /// Beside a database in WAL mode.
    pub wal: PathBuf,
}

impl Source {
    /// Opens `path` to be read.
    ///
    /// While this process has the database open by any other connection it must not be called: it reads the header of
    /// the file first, and the kernel takes a process's locks on a file away when any descriptor of it is closed.
    ///
    /// # Errors
    /// When it is not there, is no database, or cannot be read without leaving something behind.
    pub fn open(path: &Path) -> Result<Source, Barred> {
        let path = path.canonicalize().map_err(Halt::because)?;
        let metadata = std::fs::metadata(&path).map_err(Halt::because)?;
        if !metadata.is_file() {
            return Err(Halt::because("it is no regular file").into());
        }
        let is_wal = read_header(&path)?;
        let (wal, shared) = (beside(&path, "-wal"), beside(&path, "-shm"));
        let has_log = wal.exists();
        if is_wal && !(has_log && shared.exists()) {
            // To read it SQLite makes both. Root's SQLite gives them to the owner of the database.
            let user = durable::acting_user();
            if user != 0 && user != metadata.uid() {
                return Err(Halt::Failed(format!(
                    "nobody has it open, and to read it would make files beside it that belong to user {user}; run as user {} or as root",
                    metadata.uid()
                ))
                .into());
            }
        }
        // Opened to be read only, nothing can be written whatever goes wrong. But who makes the log of changes is to take it away
        // again, which a reader cannot.
        let access = if is_wal && !has_log { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
        let connection = Connection::open_with_flags(&path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(PATIENCE)?;
        // A foreign schema is not trusted, and nothing is written by mistake.
        connection.execute_batch("PRAGMA query_only = 1; PRAGMA trusted_schema = 0; PRAGMA foreign_keys = 0; PRAGMA cache_size = -4096")?;
        // It may have changed since its header was read.
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        let gives_pages = connection.prepare("SELECT data FROM sqlite_dbpage('main') WHERE pgno = 1").is_ok();
        let owner = Ownership { user: metadata.uid(), group: metadata.gid(), mode: metadata.mode() & 0o7777 };
        Ok(Source { is_wal: mode == "wal", connection, gives_pages, owner, wal, path })
    }

    /// Opens it as soon as nobody has it to himself, and waits a while for that.
    ///
    /// # Errors
    /// As [`Source::open`]; [`Halt::Stopped`] when the run is to stop.
    pub fn open_patiently(path: &Path, watch: &mut Watch<'_>) -> Result<Source, Halt> {
        let begun = watch.foreman.now();
        for _ in 0..ATTEMPTS {
            match Source::open(path) {
                Ok(source) => return Ok(source),
                Err(Barred::Halted(halt)) => return Err(halt),
                Err(Barred::Locked) if !watch.foreman.wait(LOCKED_PAUSE) => return Err(Halt::Stopped),
                Err(Barred::Locked) => {}
            }
        }
        Err(locked(watch.foreman.now().since(begun)))
    }

    /// Bytes of the log of changes; 0 where there is none.
    pub fn wal_bytes(&self) -> u64 {
        if self.is_wal { std::fs::metadata(&self.wal).map_or(0, |metadata| metadata.len()) } else { 0 }
    }
}

/// The one name of a database: absolute and without links, also where it is not there any more, as when it is to be brought back. A link
/// that leads nowhere stands for where it leads to.
pub fn resolved(path: &Path) -> PathBuf {
    // As many links as the kernel follows.
    without_links(path, 40).unwrap_or_else(|| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

fn without_links(path: &Path, links: u32) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    if let Ok(whole) = path.canonicalize() {
        return Some(whole);
    }
    let (parent, name) = (path.parent()?, path.file_name()?);
    match path.read_link() {
        Ok(target) => without_links(&parent.join(target), links.checked_sub(1)?),
        Err(_) => Some(without_links(parent, links)?.join(name)),
    }
}

/// True for a database in WAL mode.
fn read_header(path: &Path) -> Result<bool, Halt> {
    let mut header = Vec::with_capacity(100);
    File::open(path).and_then(|file| file.take(100).read_to_end(&mut header)).map_err(Halt::because)?;
    match (header.first_chunk::<16>(), header.get(18)) {
        (Some(MAGIC), Some(version)) => Ok(*version == 2),
        _ if header.is_empty() => Err(Halt::because("it is empty")),
        _ => Err(Halt::because("it is no SQLite database, or an encrypted one")),
    }
}

/// The file SQLite keeps beside a database: its whole name, then the ending.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Opens a finished copy of a database that nobody else knows of: nothing is locked, and no file made beside it.
///
/// # Errors
/// When SQLite cannot open it.
pub fn open_still(path: &Path) -> rusqlite::Result<Connection> {
    let mut address = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => address.push(char::from(*byte)),
            byte => address.push_str(&format!("%{byte:02x}")),
        }
    }
    address.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(address, flags)?;
    connection.execute_batch("PRAGMA query_only = 1; PRAGMA trusted_schema = 0; PRAGMA foreign_keys = 0; PRAGMA cache_size = -4096")?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        match Source::open(path) {
            Err(Barred::Halted(Halt::Failed(reason))) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_database_is_told_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        assert!(refusal(&path).contains("No such file"));
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert_eq!(refusal(&path), "it is empty");
        std::fs::write(&path, vec![7; 4096]).unwrap();
        assert_eq!(refusal(&path), "it is no SQLite database, or an encrypted one");
        assert_eq!(refusal(folder.path()), "it is no regular file");
    }

    #[test]
    fn a_database_has_one_name_also_when_it_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::fs::write(base.join("real/a.db"), "").unwrap();
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, base.join(at)).unwrap();
        link("real", "linked");
        link("linked/a.db", "link.db");
        link("round.db", "round.db");
        let name = |path: &str| resolved(&base.join(path)).strip_prefix(&base).unwrap().to_str().unwrap().to_owned();
        for path in ["real/a.db", "linked/a.db", "link.db"] {
            assert_eq!(name(path), "real/a.db");
        }
        std::fs::remove_file(base.join("real/a.db")).unwrap();
        for path in ["real/a.db", "linked/a.db", "link.db"] {
            assert_eq!(name(path), "real/a.db", "{path}");
        }
        assert_eq!((name("linked/gone/a.db"), name("round.db")), ("real/gone/a.db".into(), "round.db".into()));
    }

    #[test]
    fn a_database_that_nobody_has_open_is_left_as_it_was() {
        for mode in ["wal", "delete"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a b.db");
            Connection::open(&path).unwrap().execute_batch(&format!("PRAGMA journal_mode = {mode}; CREATE TABLE t (a)")).unwrap();
            let before = std::fs::read(&path).unwrap();
            let source = Source::open(&path).unwrap();
            assert_eq!(source.is_wal, mode == "wal");
            assert!(source.gives_pages, "this build is to have SQLITE_ENABLE_DBPAGE_VTAB, see .cargo/config.toml");
            assert!(source.connection.execute_batch("INSERT INTO t VALUES (1)").is_err());
            drop(source);
            assert!(std::fs::read(&path).unwrap() == before);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{mode}");
        }
    }
}
