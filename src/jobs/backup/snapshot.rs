//! Reads one state of a live database, whole, and has it packed. Three ways, by what the database and this build of SQLite can do:
//!
//! | | read | who is held up |
//! |---|---|---|
//! | `pages` | inside one read transaction, page by page | nobody: in WAL mode readers block no writer. The log of changes cannot begin anew meanwhile, so its growth is watched |
//! | `pages-between-locks` | without a log of changes: so many pages a lock, none longer than `longest_lock`; when the database has changed in between it begins anew, a few times | writers, `longest_lock` at a time |
//! | `scratch-copy` | by SQLite's backup into a file beside the copies, which is packed then: where this build gives out no pages | as above; takes the size of the database on the disk meanwhile |
//!
//! SQLite's own stepwise backup of a WAL database begins anew with each foreign commit and so never ends under load: the
//! read transaction is pinned first here.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::content::{self, Listed};
use super::copy::{Packed, Packer, read_pieces};
use super::manifest::{Content, Table};
use super::sealing::Keys;
use super::source::{self, ATTEMPTS, Barred, LOCKED_PAUSE, Source};
use super::verify;
use super::watch::{Halt, Wal, Watch};
use crate::config::jobs::{Compress, Verify};
use crate::host::durable::{Directory, Stream};

/// Between two looks at what must not happen, in bytes.
const LOOK_EVERY: u64 = 1 << 20;
/// A lock ends after so many bytes at the latest: they are held in memory until it is over.
const LOCKED_BYTES: usize = 8 << 20;
/// Steps of SQLite's virtual machine between two looks at the log of changes.
const STEPS: i32 = 100_000;
/// Pages a step of SQLite's backup.
const BACKUP_PAGES: i32 = 256;
/// Between two tries for a database that somebody has to himself.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// All of them together.
const LONGEST_LOCKED: Duration = Duration::from_secs(30);
/// Before more is offered to whatever takes the copy: what is under way lasts longer.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// How a copy is to be made.
#[derive(Clone, Debug)]
pub struct Way {
    pub compress: Compress,
    pub verify: Verify,
    pub longest_lock: Duration,
    /// Bytes.
    pub longest_wal: u64,
    /// Copies are sealed with them.
    pub keys: Option<Keys>,
    /// Nobody can open the copy afterwards: what is not held long enough to be checked where it is goes to a scratch file too, unsealed,
    /// and is checked there.
    pub is_last_look: bool,
}

/// One state of a database, packed and forced to the disk, under a name that is not yet that of a copy.
#[derive(Debug)]
pub struct Shot {
    /// Everything that was committed by then is in it.
    pub made: SystemTime,
    pub content: Content,
    pub packed: Packed,
    pub method: &'static str,
    /// The check that was made inside the snapshot: see [`content::check`].
    pub checked: Option<String>,
}

/// Takes one state of `source` and packs it into the new file `name` of `folder`. Where it fails the file may be left behind.
///
/// # Errors
/// [`Halt::Failed`] with the reason; [`Halt::Stopped`] when the run is to stop.
pub fn take(source: &mut Source, way: &Way, folder: &Directory, name: &str, watch: &mut Watch<'_>) -> Result<Shot, Halt> {
    if source.is_wal {
        watch.wal = Some(Wal::new(source.wal.clone(), way.longest_wal));
    }
    let shot = match (source.gives_pages, source.is_wal) {
        (true, true) => pinned(source, way, folder, name, watch),
        (true, false) => attempts(watch, folder, name, way, |watch| between_locks(source, way, folder, name, watch)),
        (false, _) => {
            watch.warn(format!(
                "this build of SQLite gives out no pages: {} is copied through a scratch file as large as it is",
                source.path.display()
            ));
            scratch(source, way, folder, name, watch)
        }
    };
    watch.wal = None;
    // What is left of it goes at the beginning of the next run too.
    let _ = folder.remove(&scratch_of(name));
    shot
}

/// The file that holds a database unpacked for a while.
fn scratch_of(name: &str) -> String {
    format!("{name}.scratch")
}

/// The check of a copy that nobody can open later.
fn last_look(path: &Path, content: &Content, way: &Way, watch: &mut Watch<'_>) -> Result<Option<String>, Halt> {
    Ok(if way.is_last_look && way.verify != Verify::None { Some(verify::ask(path, content, way.verify, watch)?) } else { None })
}

fn pinned(source: &mut Source, way: &Way, folder: &Directory, name: &str, watch: &mut Watch<'_>) -> Result<Shot, Halt> {
    let made = watch.foreman.now().wall;
    // Counting and checking are single statements that take what they take; this is what ends them.
    let wal = Wal::new(source.wal.clone(), way.longest_wal);
    source.connection.progress_handler(STEPS, Some(move || wal.excess().is_some()))?;
    let answer = within::<_, Halt>(&source.connection, |connection| {
        let mut content = content::outline(connection)?;
        let mut packer = start(folder, name, way, &content)?;
        let mut statement = connection.prepare("SELECT data FROM sqlite_dbpage('main') ORDER BY pgno")?;
        let mut rows = statement.query([])?;
        let mut done = 0;
        let mut looked = 0;
        while let Some(row) = rows.next()? {
            let page = row.get_ref(0)?.as_blob().map_err(Halt::because)?;
            push(&mut packer, page, watch)?;
            done += page.len() as u64;
            if done - looked >= LOOK_EVERY {
                looked = done;
                watch.look(done, packer.written())?;
            }
        }
        drop(rows);
        // What is packed already is written while the rows are counted.
        content = Content { pages: content.pages, ..content::read(connection)? };
        watch.look(done, packer.written())?;
        let checked = match way.verify {
            Verify::Quick => Some(content::check(connection, Verify::Quick)?),
            Verify::Full | Verify::None => None,
        };
        Ok((packer, content, checked))
    });
    // Whatever SQLite says of a statement that was ended from outside, this is the reason.
    if answer.is_err() {
        watch.wal.as_ref().map_or(Ok(()), Wal::judge)?;
    }
    source.connection.progress_handler(0, None::<fn() -> bool>)?;
    let (packer, content, checked) = answer?;
    let packed = finish(packer, &content)?;
    Ok(Shot { made, content, packed, method: "pages", checked })
}

/// Does something inside one read transaction, which sees one state throughout.
fn within<T, E: From<rusqlite::Error>>(connection: &Connection, inside: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
    connection.execute_batch("BEGIN")?;
    // A transaction begins with its first look.
    let answer = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        .map_err(E::from)
        .and_then(|_| inside(connection));
    // Nothing was written: it makes no difference how it ends, and after an error SQLite may have ended it already.
    let _ = connection.execute_batch("ROLLBACK");
    answer
}

/// Tries again, a few times, while the database changes under the reader or somebody has it to himself.
fn attempts(
    watch: &mut Watch<'_>,
    folder: &Directory,
    name: &str,
    way: &Way,
    mut attempt: impl FnMut(&mut Watch<'_>) -> Result<Option<Shot>, Barred>,
) -> Result<Shot, Halt> {
    let mut locked_since = None;
    for _ in 0..ATTEMPTS {
        let begun = watch.foreman.now();
        match attempt(watch) {
            Ok(Some(shot)) => return Ok(shot),
            Ok(None) => locked_since = None,
            Err(Barred::Halted(halt)) => return Err(halt),
            Err(Barred::Locked) => {
                locked_since.get_or_insert(begun);
                if !watch.foreman.wait(LOCKED_PAUSE) {
                    return Err(Halt::Stopped);
                }
            }
        }
        folder.remove(name).map_err(Halt::because)?;
    }
    if let Some(since) = locked_since {
        return Err(source::locked(watch.foreman.now().since(since)));
    }
    Err(Halt::Failed(format!(
        "it keeps no log of changes (WAL) and changed under the reader {ATTEMPTS} times; a copy in one piece would block its writers for longer \
         than longest_lock allows ({} ms): switch it to journal_mode = WAL, or raise longest_lock",
        way.longest_lock.as_millis()
    )))
}

/// `None` when the database has changed meanwhile.
fn between_locks(source: &mut Source, way: &Way, folder: &Directory, name: &str, watch: &mut Watch<'_>) -> Result<Option<Shot>, Barred> {
    let connection = &source.connection;
    let made = watch.foreman.now().wall;
    let (mut content, version, listed) = within::<_, Barred>(connection, |connection| {
        Ok((content::outline(connection)?, version(connection)?, content::list(connection)?))
    })?;
    let mut packer = start(folder, name, way, &content)?;
    let plain = scratch_of(name);
    let mut scratch = if way.is_last_look && way.verify != Verify::None {
        // Of an earlier attempt.
        folder.remove(&plain).map_err(Halt::because)?;
        Some(Stream::new(folder.create(&plain).map_err(Halt::because)?))
    } else {
        None
    };
    let mut page = connection.prepare("SELECT data FROM sqlite_dbpage('main') WHERE pgno = ?1")?;
    let mut held = Vec::with_capacity(LOCKED_BYTES);
    let mut next = 1;
    while next <= content.pages {
        held.clear();
        let begun = watch.foreman.now();
        let is_same = within::<_, Barred>(connection, |connection| {
            if self::version(connection)? != version {
                return Ok(false);
            }
            while next <= content.pages && held.len() < LOCKED_BYTES {
                let mut rows = page.query([next as i64])?;
                let Some(row) = rows.next()? else {
                    return Err(Halt::Failed(format!("page {next} cannot be read")).into());
                };
                held.extend_from_slice(row.get_ref(0)?.as_blob().map_err(Halt::because)?);
                next += 1;
                if watch.foreman.now().since(begun) >= way.longest_lock {
                    break;
                }
            }
            Ok(true)
        })?;
        let locked = watch.foreman.now().since(begun);
        if !is_same {
            return Ok(None);
        }
        push(&mut packer, &held, watch)?;
        if let Some(scratch) = &mut scratch {
            scratch.write_all(&held).map_err(|error| Halt::Failed(format!("{plain} cannot be written: {error}")))?;
        }
        watch.look((next - 1) * u64::from(content.page_size), packer.written())?;
        // As long again belongs to the writers.
        if next <= content.pages && !watch.foreman.wait(locked) {
            return Err(Halt::Stopped.into());
        }
    }
    for table in listed {
        let Some(counted) = count_between_locks(connection, &table, version, way.longest_lock, watch)? else {
            return Ok(None);
        };
        content.tables.insert(table.name, counted);
    }
    // Looked for where an index as long was gone through within one lock.
    if content.tables.get("checkpoints").is_some_and(|table| table.rows.is_some()) {
        content.newest_checkpoint = within::<_, Barred>(connection, |connection| {
            let is_same = self::version(connection)? == version;
            Ok(is_same.then(|| content::newest_checkpoint(connection)).flatten())
        })?;
    }
    let packed = finish(packer, &content)?;
    drop(scratch);
    let checked = last_look(&folder.path().join(&plain), &content, way, watch)?;
    Ok(Some(Shot { made, content, packed, method: "pages-between-locks", checked }))
}

/// Rows that cannot be counted within one lock are not counted. `None` when the database has changed.
fn count_between_locks(
    connection: &Connection,
    table: &Listed,
    version: i64,
    longest_lock: Duration,
    watch: &mut Watch<'_>,
) -> Result<Option<Table>, Barred> {
    let begun = watch.foreman.now();
    within(connection, |connection| {
        if self::version(connection)? != version {
            return Ok(None);
        }
        let newest = content::newest(connection, table);
        let rows = content::count_while(connection, table, || watch.foreman.now().since(begun) < longest_lock);
        Ok(Some(Table { rows, root: table.root, newest }))
    })
}

/// Changes with each commit of anybody else.
fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}

fn scratch(source: &mut Source, way: &Way, folder: &Directory, name: &str, watch: &mut Watch<'_>) -> Result<Shot, Halt> {
    let scratch = scratch_of(name);
    // Made by us, so that it is readable to us alone; SQLite opens what is there.
    folder.create(&scratch).map_err(Halt::because)?;
    let path = folder.path().join(&scratch);
    let made = fill_scratch(source, &path, way, watch)?;
    watch.wal = None;
    let content = content::read(&source::open_still(&path)?)?;
    let checked = last_look(&path, &content, way, watch)?;
    let mut packer = start(folder, name, way, &content)?;
    let file = folder.file(&scratch).map_err(Halt::because)?;
    read_pieces(file, |piece, done| {
        push(&mut packer, piece, watch)?;
        watch.look(done, packer.written())
    })?;
    let packed = finish(packer, &content)?;
    Ok(Shot { made, content, packed, method: "scratch-copy", checked })
}

fn fill_scratch(source: &Source, path: &Path, way: &Way, watch: &mut Watch<'_>) -> Result<SystemTime, Halt> {
    let made = watch.foreman.now().wall;
    let mut target = Connection::open(path)?;
    target.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")?;
    let mut copy = |connection: &Connection, watch: &mut Watch<'_>| -> Result<bool, Halt> {
        let backup = Backup::new(connection, &mut target)?;
        let mut left = i32::MAX;
        let mut restarts = 0;
        let mut locked_since = None;
        loop {
            let begun = watch.foreman.now();
            let step = backup.step(BACKUP_PAGES)?;
            let took = watch.foreman.now().since(begun);
            let progress = backup.progress();
            restarts += u32::from(progress.remaining > left);
            left = progress.remaining;
            if restarts >= ATTEMPTS {
                return Ok(false);
            }
            watch.look(0, 0)?;
            let pause = match step {
                StepResult::Done => return Ok(true),
                StepResult::More if source.is_wal => continue,
                StepResult::More => took,
                _ if took.max(begun.since(*locked_since.get_or_insert(begun))) >= LONGEST_LOCKED => {
                    return Err(source::locked(LONGEST_LOCKED));
                }
                _ => BUSY_PAUSE,
            };
            if matches!(step, StepResult::More) {
                locked_since = None;
            }
            if !watch.foreman.wait(pause) {
                return Err(Halt::Stopped);
            }
        }
    };
    let is_whole =
        if source.is_wal { within(&source.connection, |connection| copy(connection, watch))? } else { copy(&source.connection, watch)? };
    if is_whole {
        return Ok(made);
    }
    Err(Halt::Failed(format!(
        "it keeps no log of changes (WAL) and changed under the reader {ATTEMPTS} times: switch it to journal_mode = WAL, or raise \
         longest_lock ({} ms)",
        way.longest_lock.as_millis()
    )))
}

fn start(folder: &Directory, name: &str, way: &Way, content: &Content) -> Result<Packer<Stream>, Halt> {
    let file = folder.create(name).map_err(|error| Halt::Failed(format!("{name} cannot be made: {error}")))?;
    Packer::start(Stream::new(file), way.compress, way.keys.clone(), content.pages.saturating_mul(u64::from(content.page_size)))
        .map_err(Halt::because)
}

/// Looks after the database while whatever takes the copy takes none of it: a share that hangs must not hold a snapshot.
fn push(packer: &mut Packer<Stream>, bytes: &[u8], watch: &mut Watch<'_>) -> Result<(), Halt> {
    let cannot = |error| Halt::Failed(format!("the copy cannot be written: {error}"));
    let mut is_taken = packer.push(bytes).map_err(cannot)?;
    while !is_taken {
        if !watch.foreman.wait(FULL_PAUSE) {
            return Err(Halt::Stopped);
        }
        watch.judge()?;
        is_taken = packer.hand_over().map_err(cannot)?;
    }
    Ok(())
}

fn finish(packer: Packer<Stream>, content: &Content) -> Result<Packed, Halt> {
    let cannot = |error| Halt::Failed(format!("the copy cannot be written: {error}"));
    let (packed, file) = packer.finish().map_err(cannot)?;
    file.finish().map_err(cannot)?;
    let expected = content.pages.saturating_mul(u64::from(content.page_size));
    if packed.database_bytes != expected {
        return Err(Halt::Failed(format!("{} bytes came out of it and it has {expected}", packed.database_bytes)));
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::super::shelf::Shelf;
    use super::super::watch::tests::Follower;
    use super::*;
    use crate::jobs::run::Report;

    const WAY: Way = Way {
        compress: Compress::None,
        verify: Verify::Quick,
        longest_lock: Duration::from_millis(10),
        longest_wal: 1 << 30,
        keys: None,
        is_last_look: false,
    };

    fn database(mode: &str, rows: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = {mode}; CREATE TABLE t (a INTEGER PRIMARY KEY, b);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) INSERT INTO t SELECT i, randomblob(500) FROM n"
            ))
            .unwrap();
        (base, path)
    }

    fn copy(base: &std::path::Path, source: &mut Source, follower: &mut Follower) -> Result<Shot, Halt> {
        let folder = Directory::open_or_make(&base.join("copies")).unwrap();
        take(source, &WAY, &folder, &Shelf::partial("copy"), &mut Watch::new(follower, 0))
    }

    #[test]
    fn a_build_that_gives_out_no_pages_copies_all_the_same_and_says_so() {
        for mode in ["wal", "delete"] {
            let (base, path) = database(mode, 2000);
            let mut source = Source::open(&path).unwrap();
            source.gives_pages = false;
            let mut follower = Follower::default();
            let shot = copy(base.path(), &mut source, &mut follower).unwrap();
            assert_eq!((shot.method, shot.content.tables["t"].rows), ("scratch-copy", Some(2000)), "{mode}");
            assert!(matches!(&follower.reports[0], Report::Warning { text } if text.contains("gives out no pages")));
            let made = base.path().join("copies/copy.partial");
            let rows = source::open_still(&made)
                .unwrap()
                .query_row("SELECT count(*), max(a) FROM t", [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
            assert_eq!(rows, Ok((2000, 2000)));
            assert_eq!(std::fs::read_dir(base.path().join("copies")).unwrap().count(), 1, "the scratch file is gone");
        }
    }

    #[test]
    fn a_database_that_stays_locked_is_given_up_after_some_attempts() {
        let base = tempfile::tempdir().unwrap();
        let folder = Directory::open(base.path()).unwrap();
        let mut follower = Follower::default();
        let mut watch = Watch::new(&mut follower, 0);
        let busy = || rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None);
        let mut asked = 0;
        let halt = attempts(&mut watch, &folder, "copy", &WAY, |_| {
            asked += 1;
            Err(Barred::from(busy()))
        });
        assert_eq!((halt.err(), asked), (Some(Halt::because("somebody has had it locked for 0 s")), ATTEMPTS));
        // Told to stop while it waits.
        follower.stop_after = Some(1);
        let halt = attempts(&mut Watch::new(&mut follower, 0), &folder, "copy", &WAY, |_| Err(Barred::from(busy())));
        assert_eq!(halt.err(), Some(Halt::Stopped));
    }

    #[test]
    fn a_run_that_is_to_stop_lets_the_database_go() {
        for (mode, gives_pages) in [("wal", true), ("delete", true), ("wal", false)] {
            let (base, path) = database(mode, 20_000);
            let mut source = Source::open(&path).unwrap();
            source.gives_pages = gives_pages;
            let mut follower = Follower { stop_after: Some(2), ..Follower::default() };
            assert_eq!(copy(base.path(), &mut source, &mut follower).err(), Some(Halt::Stopped), "{mode}");
            assert!(source.connection.is_autocommit());
        }
    }
}
