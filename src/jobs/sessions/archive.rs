//! Sessions written down before they are deleted, so that each can be brought back.
//!
//! One file a run: `memory.db.ab5b47da.sessions-20261120T030000Z.zst`, readable by its owner alone. Every session is a zstd frame with
//! a checksum, and a skippable frame before it that says whose it is and how long: looking for one reads no other, and
//! `zstd -d` takes the whole file. A record counts once its length is written, which happens last; what a crash leaves
//! unfinished at the end is passed over. Inside a frame are the rows of each table, column by column with their types.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Row;
use rusqlite::types::{Value, ValueRef};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::age::Stamp;
use super::layout::{Layout, SessionId};
use super::look::Look;
use super::reading::each_row;
use crate::jobs::run::Foreman;
use crate::jobs::sqlite::{Database, patiently};

/// Any of sixteen numbers tells a decompressor to pass over what follows; this one tells us that it is ours.
const MAGIC: u32 = 0x184D_2A5D;
const FORMAT: u32 = 1;
const LEVEL: i32 = 3;
/// Nothing SQLite holds in one value is longer.
const LONGEST_VALUE: u64 = 2_147_483_647;
const LONGEST_LABEL: u32 = 1024 * 1024;
/// Of the hash of a path in the name of a file: two databases of one name in one folder never come to share four.
const HASH_BYTES: usize = 4;
const TOLERATED_AHEAD: Duration = Duration::from_secs(5 * 60);

/// In front of each session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    format: u32,
    pub id: SessionId,
    /// When it was written down.
    at: String,
    /// Twenty digits each, so that they can be filled in afterwards.
    rows: String,
    length: String,
}

impl Label {
    pub fn rows(&self) -> u64 {
        self.rows.parse().unwrap_or(0)
    }

    /// Bytes of the frame behind it; zero for one that was never finished.
    fn length(&self) -> u64 {
        self.length.parse().unwrap_or(0)
    }
}

/// Columns of one table, in the order in which values follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    pub table: String,
    pub columns: Vec<String>,
}

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    at: String,
    /// Up to here everything is whole.
    good: u64,
    is_sealed: bool,
}

/// What became of a session that was to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Whole,
    /// It is not what it was when it was looked at; nothing is written.
    Touched,
    /// The run is to stop; nothing is written.
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
}

impl Archive {
    /// Begins a file of its own in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn begin(folder: &Path, database: &Path, at: Stamp) -> io::Result<Archive> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        for turn in 1_u32.. {
            let path = folder.join(file_name(database, at, turn)?);
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    return Ok(Archive { file, path, folder: folder.to_path_buf(), at: at.told(), good: 0, is_sealed: true });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes a session down as it is, provided it is still what `expected` says. On the disk for certain after [`Archive::seal`].
    ///
    /// # Errors
    /// When it cannot be read or written; the file then ends where it ended before.
    pub fn add(
        &mut self,
        database: &Database,
        layout: &Layout,
        id: &SessionId,
        expected: &Look,
        foreman: &mut dyn Foreman,
    ) -> Result<Added, ArchiveError> {
        match patiently(foreman, || database.at_once(|| Look::take(database, layout, id)))? {
            None => return Ok(Added::Stopped),
            Some(look) if look != *expected => return Ok(Added::Touched),
            Some(_) => {}
        }
        let added = self.write(database, layout, id, expected, foreman);
        if matches!(added, Ok(Added::Whole)) {
            self.is_sealed = false;
        } else {
            // Whatever of it is there would otherwise stand in the way of the next.
            self.file.set_len(self.good)?;
        }
        added
    }

    fn write(
        &mut self,
        database: &Database,
        layout: &Layout,
        id: &SessionId,
        expected: &Look,
        foreman: &mut dyn Foreman,
    ) -> Result<Added, ArchiveError> {
        let mut label = Label { format: FORMAT, id: id.clone(), at: self.at.clone(), rows: digits(0), length: digits(0) };
        self.file.seek(SeekFrom::Start(self.good))?;
        let begins = self.good + write_label(&mut self.file, &label)?;
        let mut encoder = zstd::stream::write::Encoder::new(BufWriter::new(&self.file), LEVEL)?;
        encoder.include_checksum(true)?;
        let mut out = BufWriter::new(encoder);
        let Some(rows) = write_rows(&mut out, database, layout, id, foreman)? else { return Ok(Added::Stopped) };
        let encoder = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        // What was read is of many moments; unless nobody has touched it meanwhile, it is of one.
        match patiently(foreman, || database.at_once(|| Look::take(database, layout, id)))? {
            None => return Ok(Added::Stopped),
            Some(look) if look != *expected => return Ok(Added::Touched),
            Some(_) => {}
        }
        let ends = self.file.stream_position()?;
        label.rows = digits(rows);
        label.length = digits(ends.saturating_sub(begins));
        self.file.seek(SeekFrom::Start(self.good))?;
        write_label(&mut self.file, &label)?;
        self.good = ends;
        Ok(Added::Whole)
    }

    /// Everything added is on the disk when this returns.
    ///
    /// # Errors
    /// What the kernel said; then nothing that was added may be deleted.
    pub fn seal(&mut self) -> io::Result<()> {
        if !self.is_sealed {
            self.file.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
            self.is_sealed = true;
        }
        Ok(())
    }

    /// Takes a file back in which there is nothing.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn end(self) -> io::Result<()> {
        if self.good == 0 { std::fs::remove_file(&self.path) } else { Ok(()) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn digits(number: u64) -> String {
    format!("{number:020}")
}

/// Answers with the bytes it took: always as many for the same session.
fn write_label(file: &mut File, label: &Label) -> io::Result<u64> {
    let text = serde_json::to_vec(label)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= LONGEST_LABEL);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the id of the session is too long to be archived"))?;
    let mut all = Vec::with_capacity(text.len() + 8);
    all.extend(MAGIC.to_le_bytes());
    all.extend(length.to_le_bytes());
    all.extend(text);
    file.write_all(&all)?;
    Ok(all.len() as u64)
}

/// Answers with how many; `None` when the run is to stop.
fn write_rows(
    out: &mut impl Write,
    database: &Database,
    layout: &Layout,
    id: &SessionId,
    foreman: &mut dyn Foreman,
) -> Result<Option<u64>, ArchiveError> {
    let tables: Vec<Columns> = layout.tables().map(|rows| Columns { table: rows.table.clone(), columns: rows.columns.clone() }).collect();
    let head = serde_json::to_vec(&tables).map_err(io::Error::from)?;
    write_bytes(out, &head)?;
    let mut count = 0_u64;
    for (place, rows) in layout.tables().enumerate() {
        let all_read = each_row(database, rows, &rows.list(), id, foreman, |row| {
            out.write_all(&[1, u8::try_from(place).unwrap_or(u8::MAX)])?;
            count += 1;
            write_row(out, row, rows.columns.len())
        })?;
        if !all_read {
            return Ok(None);
        }
    }
    out.write_all(&[0])?;
    out.write_all(&count.to_le_bytes())?;
    Ok(Some(count))
}

fn write_row(out: &mut impl Write, row: &Row<'_>, columns: usize) -> Result<(), ArchiveError> {
    for column in 0..columns {
        match row.get_ref(column)? {
            ValueRef::Null => out.write_all(&[0])?,
            ValueRef::Integer(value) => {
                out.write_all(&[1])?;
                out.write_all(&value.to_le_bytes())?;
            }
            ValueRef::Real(value) => {
                out.write_all(&[2])?;
                out.write_all(&value.to_bits().to_le_bytes())?;
            }
            ValueRef::Text(value) => {
                // Nothing could bring it back as what it was.
                std::str::from_utf8(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a text in it is not UTF-8"))?;
                out.write_all(&[3])?;
                write_bytes(out, value)?;
            }
            ValueRef::Blob(value) => {
                out.write_all(&[4])?;
                write_bytes(out, value)?;
            }
        }
    }
    Ok(())
}

fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)
}

/// One session found in an archive.
#[derive(Debug)]
pub struct Found {
    pub label: Label,
    path: PathBuf,
    begins: u64,
}

/// The whole records of one archive, in the order in which they were written.
///
/// # Errors
/// When the file cannot be read or is no archive at all.
pub fn list(path: &Path) -> io::Result<Vec<Found>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut found = Vec::new();
    let mut at = 0;
    // The last record may be one that was never finished.
    while let Some((label, begins)) = read_label(&mut file, at, length)? {
        let ends = begins.saturating_add(label.length());
        if label.length() == 0 || ends > length {
            break;
        }
        found.push(Found { label, path: path.to_path_buf(), begins });
        at = ends;
    }
    Ok(found)
}

fn read_label(file: &mut File, at: u64, length: u64) -> io::Result<Option<(Label, u64)>> {
    if length.saturating_sub(at) < 8 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at))?;
    let (magic, size) = (read_u32(file)?, read_u32(file)?);
    if magic != MAGIC || size > LONGEST_LABEL {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no archive of sessions"));
    }
    let begins = at + 8 + u64::from(size);
    if begins > length {
        return Ok(None);
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text)?;
    let label: Label = serde_json::from_slice(&text)?;
    if label.format != FORMAT {
        let said = format!("it is of format {}, this program reads {FORMAT}", label.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, said));
    }
    Ok(Some((label, begins)))
}

impl Found {
    /// Reads the session back: first the tables, then `each` row with the place of its table among them.
    ///
    /// # Errors
    /// When the archive is damaged, or the first of `each`.
    pub fn read<E: From<io::Error>>(&self, mut each: impl FnMut(&[Columns], usize, Vec<Value>) -> Result<(), E>) -> Result<u64, E> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.begins))?;
        let mut stream = BufReader::new(zstd::stream::read::Decoder::new(file.take(self.label.length()))?.single_frame());
        let head = read_bytes(&mut stream)?;
        let tables: Vec<Columns> = serde_json::from_slice(&head).map_err(io::Error::from)?;
        let mut count = 0_u64;
        loop {
            match read_u8(&mut stream)? {
                0 => break,
                1 => {
                    let place = usize::from(read_u8(&mut stream)?);
                    let columns = tables.get(place).ok_or_else(damaged)?.columns.len();
                    let row = (0..columns).map(|_| read_value(&mut stream)).collect::<io::Result<Vec<Value>>>()?;
                    each(&tables, place, row)?;
                    count += 1;
                }
                _ => return Err(damaged().into()),
            }
        }
        // To its very end: only there is the checksum compared.
        let written = read_u64(&mut stream)?;
        let rest = io::copy(&mut stream, &mut io::sink())?;
        if written != count || rest > 0 {
            return Err(damaged().into());
        }
        Ok(count)
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the archive is damaged")
}

fn read_value(stream: &mut impl Read) -> io::Result<Value> {
    Ok(match read_u8(stream)? {
        0 => Value::Null,
        1 => Value::Integer(read_u64(stream)?.cast_signed()),
        2 => Value::Real(f64::from_bits(read_u64(stream)?)),
        3 => Value::Text(String::from_utf8(read_bytes(stream)?).map_err(|_| damaged())?),
        4 => Value::Blob(read_bytes(stream)?),
        _ => return Err(damaged()),
    })
}

fn read_bytes(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_u64(stream)?;
    if length > LONGEST_VALUE {
        return Err(damaged());
    }
    // Never reserved by what a damaged file claims: it grows by what is there.
    let mut bytes = Vec::new();
    stream.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length { Err(damaged()) } else { Ok(bytes) }
}

fn read_u8(stream: &mut impl Read) -> io::Result<u8> {
    let mut bytes = [0; 1];
    stream.read_exact(&mut bytes)?;
    Ok(u8::from_le_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// `memory.db.ab5b47da.sessions-20261120T030000Z.zst`; the second of the same second has `-2` before its ending.
fn file_name(database: &Path, at: Stamp, turn: u32) -> io::Result<PathBuf> {
    let unfit = || io::Error::new(io::ErrorKind::InvalidInput, "the clock says no time of any calendar");
    let stamp = jiff::Timestamp::from_second(at.0.div_euclid(10_000_000)).map_err(|_| unfit())?;
    let again = if turn == 1 { String::new() } else { format!("-{turn}") };
    let [mut name, _] = names(database, ".sessions-");
    name.push(format!("{}{again}.zst", stamp.strftime("%Y%m%dT%H%M%SZ")));
    Ok(name.into())
}

/// What a file that belongs to this database is called in an archive folder, up to and with `ending`: as it is now, and as
/// it was before the hash. Many databases are called `memory.db`, and jobs may share a folder: a hash of the whole path
/// keeps one from restoring or removing what is another's.
pub fn names(database: &Path, ending: &str) -> [OsString; 2] {
    let hash = Sha256::digest(database.as_os_str().as_bytes());
    let hash: String = hash.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    [format!(".{hash}{ending}"), ending.to_owned()].map(|rest| {
        let mut name = database.file_name().unwrap_or_default().to_owned();
        name.push(rest);
        name
    })
}

/// An archive that lies in a folder, with the time in its name: times of files change when they are copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    pub at: Stamp,
    pub path: PathBuf,
    pub bytes: u64,
}

/// The archives of this database in `folder`, the oldest first; anything else there is passed over.
///
/// # Errors
/// When the folder cannot be read; one that is not there is an empty one.
pub fn kept(folder: &Path, database: &Path) -> io::Result<Vec<Kept>> {
    let prefixes = names(database, ".sessions-");
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let time_after = |prefix: &OsString| name.as_bytes().strip_prefix(prefix.as_bytes()).and_then(time_in_name);
        let Some(at) = prefixes.iter().find_map(time_after) else { continue };
        let stat = entry.metadata()?;
        if stat.is_file() {
            found.push(Kept { at, path: entry.path(), bytes: stat.len() });
        }
    }
    found.sort();
    Ok(found)
}

fn time_in_name(rest: &[u8]) -> Option<Stamp> {
    let rest = std::str::from_utf8(rest).ok()?.strip_suffix(".zst")?;
    let (time, again) = rest.split_at_checked("20261120T030000Z".len())?;
    let is_ours = again.is_empty() || again.strip_prefix('-').is_some_and(|turn| turn.parse::<u32>().is_ok());
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok().filter(|_| is_ours)?;
    let seconds = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    seconds.checked_mul(10_000_000).map(Stamp)
}

/// Those that have been kept for long enough: none while one lies in the future, because then the clock may be wrong.
pub fn expired(kept: Vec<Kept>, now: Stamp, keep: Duration) -> Vec<Kept> {
    let cutoff = now.before(keep);
    if kept.iter().any(|one| one.at > now.after(TOLERATED_AHEAD)) {
        return Vec::new();
    }
    kept.into_iter().filter(|one| one.at < cutoff).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::{Connection, params};

    use super::*;
    use crate::config::jobs::Format;
    use crate::jobs::sessions::survey::tests::{CURRENT, Calm, Meddler};

    const AT: Stamp = Stamp(1_763_607_600 * 10_000_000);

    struct Stage {
        folder: tempfile::TempDir,
        app: Connection,
        database: Database,
        layout: Layout,
    }

    fn stage() -> Stage {
        stage_with(CURRENT)
    }

    fn stage_with(schema: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch(schema).unwrap();
        for thread in ["a", "b", "c"] {
            let row = params![thread, "x\0y", vec![0_u8, 255, 7]];
            app.execute("INSERT INTO checkpoints (thread_id, checkpoint_id, type, metadata) VALUES (?1, 'c', ?2, ?3)", row).unwrap();
            let sql = "INSERT INTO writes (thread_id, checkpoint_id, task_id, idx, channel, value) VALUES (?1, 'c', 't', -9, 1.5, NULL)";
            app.execute(sql, params![thread]).unwrap();
        }
        let database = Database::open(&path).unwrap();
        let layout = Layout::detect(&database, &Format::Auto).unwrap();
        Stage { folder, app, database, layout }
    }

    fn text(id: &str) -> SessionId {
        SessionId::Text(id.to_owned())
    }

    impl Stage {
        fn archive(&self) -> Archive {
            Archive::begin(&self.folder.path().join("archive"), self.database.path(), AT).unwrap()
        }

        fn add(&self, archive: &mut Archive, id: &str) -> Added {
            let look = Look::take(&self.database, &self.layout, &text(id)).unwrap();
            archive.add(&self.database, &self.layout, &text(id), &look, &mut Calm).unwrap()
        }
    }

    fn rows(found: &Found) -> Vec<(String, Vec<Value>)> {
        let mut rows = Vec::new();
        let read = found.read(|tables, place, row| {
            rows.push((tables[place].table.clone(), row));
            Ok::<(), io::Error>(())
        });
        assert_eq!(read.unwrap(), rows.len() as u64);
        rows
    }

    #[test]
    fn what_is_written_down_is_read_back_value_by_value() {
        let stage = stage();
        let mut archive = stage.archive();
        for id in ["a", "b"] {
            assert_eq!(stage.add(&mut archive, id), Added::Whole);
        }
        archive.seal().unwrap();
        let found = list(archive.path()).unwrap();
        assert_eq!(found.iter().map(|one| one.label.id.to_string()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(found[1].label.rows(), 2);
        let rows = rows(&found[1]);
        assert_eq!(rows[0].0, "writes");
        assert!(rows[0].1.contains(&Value::Integer(-9)) && rows[0].1.contains(&Value::Text("1.5".into())), "{rows:?}");
        assert_eq!(rows[1].0, "checkpoints");
        assert!(rows[1].1.contains(&Value::Text("x\0y".into())) && rows[1].1.contains(&Value::Blob(vec![0, 255, 7])), "{rows:?}");
    }

    #[test]
    fn a_session_that_was_touched_is_not_written_down() {
        let stage = stage();
        let mut archive = stage.archive();
        let look = Look::take(&stage.database, &stage.layout, &text("a")).unwrap();
        stage.app.execute("DELETE FROM writes WHERE thread_id = 'a'", []).unwrap();
        assert_eq!(archive.add(&stage.database, &stage.layout, &text("a"), &look, &mut Calm).unwrap(), Added::Touched);
        assert_eq!(list(archive.path()).unwrap().len(), 0);
        let path = archive.path().to_path_buf();
        archive.end().unwrap();
        assert!(!path.exists(), "an empty archive stays behind");
    }

    /// Without a log, rows are of many moments: the application may write in between, and then what is written down is void.
    #[test]
    fn a_session_that_is_touched_while_it_is_read_is_not_written_down() {
        let stage = stage_with(&CURRENT.replace("WAL", "DELETE"));
        let mut archive = stage.archive();
        let looks = ["a", "b"].map(|id| Look::take(&stage.database, &stage.layout, &text(id)).unwrap());
        // No lock is held at a safe point: nothing keeps the application from committing.
        let act = || stage.app.execute_batch("DELETE FROM checkpoints WHERE thread_id = 'a'").unwrap();
        // The second safe point is before the row of the second table.
        let mut added =
            |id: &str, look: &Look| archive.add(&stage.database, &stage.layout, &text(id), look, &mut Meddler { at: 2, act }).unwrap();
        assert_eq!((added("a", &looks[0]), added("b", &looks[1])), (Added::Touched, Added::Whole));
        let found = list(archive.path()).unwrap();
        assert_eq!(found.iter().map(|one| one.label.id.to_string()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(rows(&found[0]).len(), 2);
    }

    /// Cut off anywhere, an archive has all records before the cut; changed anywhere, it never gives back other rows.
    #[test]
    fn a_cut_or_changed_archive_is_told() {
        let stage = stage();
        let mut archive = stage.archive();
        for id in ["a", "b", "c"] {
            stage.add(&mut archive, id);
        }
        archive.seal().unwrap();
        let whole = std::fs::read(archive.path()).unwrap();
        let found = list(archive.path()).unwrap();
        let ends: Vec<u64> = found.iter().map(|one| one.begins + one.label.length()).collect();
        let true_rows: Vec<_> = found.iter().map(rows).collect();
        let path = stage.folder.path().join("cut.zst");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let expected = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(list(&path).unwrap().len(), expected, "cut at {cut}");
        }
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0x10;
            std::fs::write(&path, &changed).unwrap();
            for (one, expected) in list(&path).unwrap_or_default().iter().zip(&true_rows) {
                let mut read = Vec::new();
                let ended = one.read(|tables, place, row| {
                    read.push((tables[place].table.clone(), row));
                    Ok::<(), io::Error>(())
                });
                assert!(ended.is_err() || read == *expected, "byte {place} changed and nobody noticed");
            }
        }
    }

    #[test]
    fn archives_are_told_by_their_names_and_leave_when_they_are_old() {
        let stage = stage();
        let (first, second) = (stage.archive(), stage.archive());
        assert_ne!(first.path(), second.path());
        let folder = stage.folder.path().join("archive");
        for other in
            ["memory.db.sessions-yesterday.zst", "other.db.sessions-20200101T000000Z.zst", "memory.db.sessions-20200101T000000Z.zst.bak"]
        {
            std::fs::write(folder.join(other), "x").unwrap();
        }
        std::fs::create_dir(folder.join("memory.db.sessions-20200101T000000Z.zst")).unwrap();
        let all = kept(&folder, stage.database.path()).unwrap();
        assert_eq!(all.iter().map(|one| one.at).collect::<Vec<_>>(), [AT, AT]);
        let day = Duration::from_secs(86_400);
        assert_eq!(expired(all.clone(), AT.after(day), day).len(), 0);
        assert_eq!(expired(all.clone(), AT.after(day * 2), day).len(), 2);
        assert_eq!(expired(all.clone(), AT.before(day), day).len(), 0);
        let ahead = Kept { at: AT.after(day * 3), path: PathBuf::from("ahead"), bytes: 0 };
        assert_eq!(expired(all.into_iter().chain([ahead]).collect(), AT.after(day * 2), day).len(), 0);
        assert_eq!(kept(&folder.join("none"), stage.database.path()).unwrap(), []);
    }

    /// Two databases of one name in one folder; names from before the hash are taken for one's own.
    #[test]
    fn archives_of_another_database_of_that_name_are_passed_over() {
        let stage = stage();
        let archive = stage.archive();
        let folder = stage.folder.path().join("archive");
        assert_eq!(kept(&folder, Path::new("/other/memory.db")).unwrap(), []);
        assert_eq!(kept(&folder, stage.database.path()).unwrap()[0].path, archive.path());
        let old = folder.join("memory.db.sessions-20200101T000000Z.zst");
        std::fs::write(&old, "x").unwrap();
        for database in [Path::new("/other/memory.db"), stage.database.path()] {
            assert_eq!(kept(&folder, database).unwrap()[0].path, old);
        }
        // Archives are kept for a month, and another release has to find them.
        let name = file_name(Path::new("/app/data/memory.db"), AT, 2).unwrap();
        assert_eq!(name, Path::new("memory.db.ab5b47da.sessions-20251120T030000Z-2.zst"));
    }

    proptest! {
        #[test]
        fn any_file_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_labelled: bool) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.zst");
            let label = Label { format: FORMAT, id: text("a"), at: String::new(), rows: digits(1), length: digits(bytes.len() as u64) };
            let mut file = File::create(&path).unwrap();
            if is_labelled {
                write_label(&mut file, &label).unwrap();
            }
            file.write_all(&bytes).unwrap();
            for found in list(&path).unwrap_or_default() {
                let _ = found.read(|_, _, _| Ok::<(), io::Error>(()));
            }
        }
    }
}
