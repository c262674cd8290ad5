//! Proves that a copy can be brought back: that it *was made* proves nothing.
//!
//! - **By stream**: the copy is read back whole and unpacked; the file and what comes out of it must be, byte for byte, what was written and
//!   what was read from the database (SHA-256), and the rows of each table are counted as the pages go by ([`Census`]). Takes no disk.
//! - **Restored**: it is unpacked into a temporary file, which SQLite opens, checks and counts. Takes the size of the database
//!   on the disk for a while.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::census::Census;
use super::content;
use super::copy::{Unpacker, hexadecimal, read_pieces};
use super::fault::Fault;
use super::manifest::{Content, Manifest, Verification};
use super::room;
use super::sealing::Keys;
use super::shelf::Shelf;
use super::source;
use super::watch::{Halt, Watch, megabytes};
use crate::config::jobs::Verify;
use crate::host::durable::Directory;
use crate::host::{filesystem, scheduling};

/// Between two looks at whether a check is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Reads the copy `name`, which is to be what `manifest` says, and compares everything that can be known from a stream.
///
/// # Errors
/// See [`Fault`].
pub fn by_stream(shelf: &Shelf, name: &str, manifest: &Manifest, keys: Option<&Keys>, watch: &mut Watch<'_>) -> Result<(), Fault> {
    let mut census = Census::new(manifest.content.page_size);
    unpack(shelf, name, manifest, keys, watch, |piece| {
        census.read(piece);
        Ok(())
    })?;
    if census.pages() != manifest.content.pages {
        return Err(Fault::Damaged(format!("it has {} pages and should have {}", census.pages(), manifest.content.pages)));
    }
    for (table, expected) in &manifest.content.tables {
        let rows = census.rows(expected.root).map_err(|reason| Fault::Damaged(format!("the table {table}: {reason}")))?;
        if let Some(expected) = expected.rows.filter(|expected| *expected != rows) {
            return Err(Fault::Damaged(format!("the table {table} has {rows} rows and should have {expected}")));
        }
    }
    Ok(())
}

/// Where a copy is brought back for a while, and the keys that open it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub folder: &'a Directory,
    pub keys: Option<&'a Keys>,
}

/// Brings the copy back to a temporary file in a folder, has SQLite check it as `how` says, and compares what it holds. Answers with the
/// words of [`content::check`].
///
/// # Errors
/// See [`Fault`].
pub fn restored(
    shelf: &Shelf,
    name: &str,
    manifest: &Manifest,
    how: Verify,
    place: &Place<'_>,
    watch: &mut Watch<'_>,
) -> Result<String, Fault> {
    let folder = place.folder;
    let unknown = |reason: String| Fault::Unknown(Halt::Failed(reason));
    let space = filesystem::space(folder.path()).map_err(|error| unknown(format!("{}: {error}", folder.path().display())))?;
    let needed = manifest.database_bytes.saturating_add(room::reserve(&space));
    if space.avail < needed {
        return Err(unknown(format!(
            "{} has {} left; to bring it back there for a while takes {}",
            folder.path().display(),
            megabytes(space.avail),
            megabytes(needed)
        )));
    }
    let work = format!("{}.scratch", Shelf::partial(&manifest.file));
    let cannot = |error: std::io::Error| {
        let hint = match error.kind() {
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => "; `--scratch FOLDER` takes another place",
            _ => "",
        };
        unknown(format!("{work} in {}: {error}{hint}", folder.path().display()))
    };
    folder.remove(&work).map_err(cannot)?;
    let mut file = folder.create(&work).map_err(cannot)?;
    let answer = unpack(shelf, name, manifest, place.keys, watch, |piece| {
        file.write_all(piece).map_err(|error| Halt::because(format!("{work}: {error}")))
    })
    .and_then(|()| ask(&folder.path().join(&work), &manifest.content, how, watch));
    // What is left of it goes at the beginning of the next run too.
    let _ = folder.remove(&work);
    answer
}

/// Has SQLite open a database that was brought back, check it as `how` says, and compare what it holds. Answers with the words of
/// [`content::check`].
///
/// # Errors
/// See [`Fault`].
pub fn ask(path: &Path, expected: &Content, how: Verify, watch: &mut Watch<'_>) -> Result<String, Fault> {
    let connection = source::open_still(path)?;
    let interrupt = connection.get_interrupt_handle();
    let asking = move || -> Result<(String, Content), Fault> {
        let checked = content::check(&connection, how)?;
        Ok((checked, content::read(&connection)?))
    };
    // To check a large database is one statement that takes minutes: from beside it, it can be ended.
    let (answer, is_stopped) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("check".into());
        let asking =
            scheduling::deaf_to_signals(|| thread.spawn_scoped(scope, asking)).map_err(|error| Fault::Unknown(Halt::because(error)))?;
        let mut is_stopped = false;
        while !asking.is_finished() {
            // Asked for again each time: a statement may have ended and the next one begun just then.
            if !watch.foreman.wait(LOOK_EVERY) {
                is_stopped = true;
                interrupt.interrupt();
                std::thread::yield_now();
            }
        }
        let answer = asking.join().map_err(|_| Fault::Unknown(Halt::because("the thread that checks has panicked")))?;
        Ok::<_, Fault>((answer, is_stopped))
    })?;
    if is_stopped {
        return Err(Fault::Unknown(Halt::Stopped));
    }
    let (checked, found) = answer?;
    match expected.difference(&found) {
        Some(difference) => Err(Fault::Damaged(difference)),
        None => Ok(checked),
    }
}

/// Unpacks a copy into `take`, and compares lengths and hashes on both sides. What was taken counts only when this is well.
///
/// # Errors
/// See [`Fault`].
pub fn unpack(
    shelf: &Shelf,
    name: &str,
    manifest: &Manifest,
    keys: Option<&Keys>,
    watch: &mut Watch<'_>,
    mut take: impl FnMut(&[u8]) -> Result<(), Halt>,
) -> Result<(), Fault> {
    let file = shelf.folder.file(name).map_err(|error| Fault::Unknown(Halt::Failed(format!("{name}: {error}"))))?;
    let keys = match &manifest.encryption {
        None => None,
        Some(_) => match keys.filter(|keys| keys.can_open()) {
            Some(keys) => Some(keys),
            None => {
                return Err(Fault::Unknown(Halt::because("it is sealed, and no key_file holds an identity that opens it")));
            }
        },
    };
    // With keys the header is read here: one that does not open may be damaged, or sealed for somebody else.
    let mut unpacker = Unpacker::new(file, &manifest.compression, keys).map_err(|error| Fault::Unknown(Halt::because(error)))?;
    let mut content = Sha256::new();
    let mut longer = false;
    let mut halted = false;
    let read = read_pieces(&mut unpacker, |piece, done| {
        if done > manifest.database_bytes {
            longer = true;
            return Err(Halt::because("more comes out of it than was put in"));
        }
        content.update(piece);
        let taken = take(piece).and_then(|()| watch.look(done, 0));
        halted = taken.is_err();
        taken
    });
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(halt) if halted => return Err(Fault::Unknown(halt)),
        Err(Halt::Failed(reason)) if longer => return Err(Fault::Damaged(reason)),
        Err(Halt::Failed(reason)) => {
            return Err(Fault::Damaged(format!("it cannot be unpacked: {reason}")));
        }
        Err(Halt::Stopped) => return Err(Fault::Unknown(Halt::Stopped)),
    };
    let (file_bytes, file_sha256) = unpacker.finish().map_err(|error| Fault::Unknown(Halt::because(error)))?;
    let compare = |what: &str, is: bool| {
        if is { Ok(()) } else { Err(Fault::Damaged(format!("{what} is not what was written"))) }
    };
    compare("its length", file_bytes == manifest.file_bytes)?;
    compare("its SHA-256", file_sha256 == manifest.file_sha256)?;
    compare("the length of what comes out of it", bytes == manifest.database_bytes)?;
    compare("the SHA-256 of what comes out of it", hexadecimal(&content.finalize()) == manifest.database_sha256)
}

/// All that can be proven of a copy that cannot be opened here: that the file is what was written.
///
/// # Errors
/// See [`Fault`].
pub fn sealed(shelf: &Shelf, name: &str, manifest: &Manifest, watch: &mut Watch<'_>) -> Result<(), Fault> {
    let file = shelf.folder.file(name).map_err(|error| Fault::Unknown(Halt::Failed(format!("{name}: {error}"))))?;
    let mut sha256 = Sha256::new();
    let bytes = read_pieces(file, |piece, done| {
        sha256.update(piece);
        watch.look(done, 0)
    });
    let bytes = bytes.map_err(Fault::Unknown)?;
    if bytes != manifest.file_bytes || hexadecimal(&sha256.finalize()) != manifest.file_sha256 {
        return Err(Fault::Damaged("it is not what was written".to_owned()));
    }
    Ok(())
}

/// What is written down of a proof.
pub fn verification(at: SystemTime, how: &str, check: String) -> Verification {
    Verification { at, how: how.to_owned(), check }
}

#[cfg(test)]
mod tests {
    use super::super::watch::tests::Follower;
    use super::*;

    #[test]
    fn a_check_that_takes_long_ends_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)";
        connection
            .execute_batch(&format!("CREATE TABLE t (a PRIMARY KEY); INSERT INTO t {rows} SELECT hex(randomblob(20)) FROM n"))
            .unwrap();
        let content = content::read(&connection).unwrap();
        drop(connection);
        let mut follower = Follower::default();
        assert_eq!(ask(&path, &content, Verify::Full, &mut Watch::new(&mut follower, 0)), Ok("integrity_check".into()));
        follower.stop_after = Some(0);
        let stopped = ask(&path, &content, Verify::Full, &mut Watch::new(&mut follower, 0));
        assert_eq!(stopped, Err(Fault::Unknown(Halt::Stopped)));
    }
}
