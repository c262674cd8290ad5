//! What was there before we changed it, on disk before the change is made: put back on release, on exit, by the sentinel
//! when the daemon dies, and at the next start.
//!
//! The file outlives the daemon, not the machine: groups and processes are gone after a restart of the machine, so nothing
//! is forced to the disk, and what was written before it (`boot`) is never taken for anything that is there now.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::host::folder::{Folder, GroupFile, Identity};
use crate::host::process::{Priority, Process, ProcessId, Root, tree_of};
use crate::host::stops::StopTable;
use crate::host::{Paths, group, scan};

/// One thing to put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Saved {
    /// A kernel file in a folder that is this very one.
    File { path: PathBuf, dev: u64, ino: u64, old: String },
    /// The same, to be put back only while it still says what we put there: what others have set meanwhile is theirs.
    Lent { path: PathBuf, dev: u64, ino: u64, old: String, set: String },
    /// A process's nice value and scheduling class.
    Nice {
        #[serde(flatten)]
        process: ProcessId,
        old: Priority,
        /// When it was changed, in clock ticks since boot: who was started later has inherited what we set.
        since: u64,
    },
    /// A group of ours, to be removed once nobody is in it.
    Folder { path: PathBuf, dev: u64, ino: u64 },
}

/// What became of putting something back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    Done,
    /// The process or folder is not there any more, or is another one.
    Gone,
    Failed(String),
}

impl Saved {
    /// Reads the present value of a kernel file, to be put back later.
    pub fn file(file: &GroupFile) -> io::Result<Saved> {
        let (dev, ino) = file.folder.identity();
        Ok(Saved::File { path: file.path(), dev, ino, old: file.read()? })
    }

    /// A kernel file that will say `set`, and said `old`.
    pub fn lent(file: &GroupFile, old: &str, set: &str) -> Saved {
        let (dev, ino) = file.folder.identity();
        Saved::Lent { path: file.path(), dev, ino, old: old.to_owned(), set: set.to_owned() }
    }

    /// A group that is about to be made. Until [`Saved::folder`] says which it became, whatever is empty under this name,
    /// which is made of our own pid, counts as it.
    pub fn folder_to_be(path: &Path) -> Saved {
        Saved::Folder { path: path.to_path_buf(), dev: 0, ino: 0 }
    }

    pub fn folder(path: &Path) -> io::Result<Saved> {
        let (dev, ino) = Folder::open(path)?.identity();
        Ok(Saved::Folder { path: path.to_path_buf(), dev, ino })
    }

    fn is_about_the_same_as(&self, other: &Saved) -> bool {
        match (self, other) {
            (Saved::File { path, dev, ino, .. }, Saved::File { path: other, dev: its_dev, ino: its_ino, .. })
            | (Saved::Folder { path, dev, ino }, Saved::Folder { path: other, dev: its_dev, ino: its_ino }) => {
                (path, dev, ino) == (other, its_dev, its_ino)
            }
            (Saved::Nice { process, .. }, Saved::Nice { process: other, .. }) => process == other,
            // Each value that was put there is to be known again.
            (Saved::Lent { .. }, Saved::Lent { .. }) => self == other,
            _ => false,
        }
    }

    /// True for what was saved of this very file, to be put back whatever it says by then.
    pub fn is_of(&self, file: &GroupFile) -> bool {
        matches!(self, Saved::File { path, dev, ino, .. } if (*dev, *ino) == file.folder.identity() && *path == file.path())
    }

    /// True for a loan of this very file. The same file may be on record twice: a duty cycle and a brake may both freeze a
    /// group, and the end of one is not the end of the other.
    pub fn is_lent_of(&self, file: &GroupFile) -> bool {
        matches!(self, Saved::Lent { path, dev, ino, .. } if (*dev, *ino) == file.folder.identity() && *path == file.path())
    }

    /// Puts it back, if it is still about the same thing.
    pub fn restore(&self, paths: &Paths) -> Restored {
        let result = match self {
            Saved::File { path, dev, ino, old } => found(path, (*dev, *ino)).and_then(|(folder, name)| folder.write(name, old)),
            Saved::Lent { path, dev, ino, old, set } => {
                match found(path, (*dev, *ino)).and_then(|(folder, name)| Ok((folder.read(name)?, folder, name))) {
                    Ok((value, folder, name)) if value.trim_ascii() == set.as_bytes() => folder.write(name, old),
                    Ok(_) => return Restored::Gone,
                    Err(error) => Err(error),
                }
            }
            Saved::Nice { process, old, since } => match Process::open(paths, *process) {
                Ok(Some(process)) => process.set_priority(*old).and_then(|()| restore_heirs(&process, *old, *since, paths)),
                Ok(None) => return Restored::Gone,
                Err(error) => Err(error),
            },
            Saved::Folder { path, dev, ino } => {
                Folder::open(path).and_then(|folder| match [(0, 0), folder.identity()].contains(&(*dev, *ino)) {
                    true => group::remove_with_replicas(&folder),
                    false => Err(io::ErrorKind::NotFound.into()),
                })
            }
        };
        match result {
            Ok(()) => Restored::Done,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Restored::Gone,
            // Removed, or ended, while we wrote.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ESRCH)) => Restored::Gone,
            Err(error) => Restored::Failed(format!("{self:?}: {error}")),
        }
    }
}

/// Gives descendants that were started while `process` was slowed, and so are slowed as well, the priority it has now.
fn restore_heirs(process: &Process, old: Priority, since: u64, paths: &Paths) -> io::Result<()> {
    let mut all = Vec::new();
    scan::processes(paths, &mut all, &mut Vec::new())?;
    let root = Root { pid: process.pid(), started: process.started(), ended: None };
    for heir in tree_of(root, NO_KEEPER, &[], &all).iter().filter(|heir| heir.pid != process.pid() && heir.started >= since) {
        let Some(heir) = Process::open_seen(paths, heir)? else { continue };
        // One that was given another priority since is as somebody wants it.
        if heir.priority().is_ok_and(|found| found == Priority::IDLE) {
            match heir.set_priority(old) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Of a tree whose root lives nobody has to be left out.
const NO_KEEPER: i32 = 0;

/// A file that is being written in the place of the log, beside it.
const NEW: &str = "new";

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Of which run of the machine it speaks: pids, start times and inodes begin anew with the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    #[serde(flatten)]
    saved: Saved,
}

impl Entry {
    fn restore(&self, paths: &Paths, boot: Option<&str>) -> Restored {
        match (self.boot.as_deref(), boot) {
            (Some(then), Some(now)) if then != now => Restored::Gone,
            _ => self.saved.restore(paths),
        }
    }
}

/// The folder and the name of a saved file.
///
/// # Errors
/// `NotFound` when the folder is another one by now, else what the kernel said.
fn found(path: &Path, identity: Identity) -> io::Result<(Folder, &str)> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let (folder, name) = path.parent().zip(path.file_name().and_then(|name| name.to_str())).ok_or_else(gone)?;
    let folder = Folder::open(folder)?;
    if folder.identity() == identity { Ok((folder, name)) } else { Err(gone()) }
}

/// The file, and what is in it. A clone is another handle on the same log: each hand that changes something has one.
#[derive(Clone, Debug)]
pub struct UndoLog {
    path: PathBuf,
    boot: Option<String>,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub restored: u32,
    pub gone: u32,
    pub failed: Vec<String>,
}

impl UndoLog {
    /// The log of this run. What an earlier run left must have been swept before; what could not be put back then stays in
    /// it, to be tried again.
    pub fn new(path: PathBuf, paths: &Paths) -> UndoLog {
        let entries = File::open(&path).map(|file| read(&file)).unwrap_or_default();
        // In whole lines, or the next would be glued to half a line. A disk too full for that is found out by the first change.
        let _ = rewrite(&path, &entries);
        UndoLog { path, boot: scan::boot_id(paths), entries: Arc::new(Mutex::new(entries)) }
    }

    /// Whoever panicked while holding it left a list all the same.
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes `saved` down, before the change is made. An error means that the change must not be made. What is on record
    /// already stays as it is: that was there before us, the present value may be one of ours that could not be put back.
    pub fn save(&mut self, saved: Saved) -> io::Result<()> {
        let mut entries = self.entries();
        if entries.iter().any(|entry| entry.saved.is_about_the_same_as(&saved)) {
            return Ok(());
        }
        let entry = Entry { boot: self.boot.clone(), saved };
        let file = File::options().create(true).append(true).open(&self.path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        let before = file.metadata()?.len();
        // Whoever cleans up old files may have taken ours: what else is changed is then written down once more.
        let missing: &[Entry] = if before == 0 { entries.as_slice() } else { &[] };
        let written = missing.iter().chain([&entry]).try_for_each(|entry| append(&file, entry));
        if let Err(error) = written {
            // A disk that is full in the middle of a line: the next line must not be glued to this one.
            let _ = file.set_len(before);
            return Err(error);
        }
        entries.push(entry);
        Ok(())
    }

    /// Puts back and forgets everything for which `which` says so, the latest first. Returns what could not be put back.
    pub fn restore(&mut self, paths: &Paths, which: impl Fn(&Saved) -> bool) -> Vec<String> {
        let mut entries = self.entries();
        let (undo, keep): (Vec<_>, Vec<_>) = std::mem::take(&mut *entries).into_iter().partition(|entry| which(&entry.saved));
        *entries = keep;
        if undo.is_empty() {
            return Vec::new();
        }
        let (_, failed) = put_back(undo, paths, self.boot.as_deref());
        let (left, mut failed): (Vec<_>, Vec<_>) = failed.into_iter().unzip();
        // Kept: the next attempt may succeed, and the next start certainly tries.
        entries.extend(left);
        if let Err(error) = rewrite(&self.path, &entries) {
            // Harmless: what was put back is put back once more by whoever reads the old file.
            failed.push(format!("{}: {error}", self.path.display()));
        }
        failed
    }

    /// Forgets folders that were removed in the ordinary way, and those that were about to be made and now are: as what they
    /// have become they are on record.
    pub fn forget_missing_folders(&mut self) {
        let mut entries = self.entries();
        let before = entries.len();
        entries.retain(|entry| !matches!(&entry.saved, Saved::Folder { path, ino, .. } if *ino == 0 || !path.exists()));
        if entries.len() != before {
            // A line too many is harmless, as above.
            let _ = rewrite(&self.path, &entries);
        }
    }
}

impl Swept {
    /// Adds what another sweep did.
    pub fn add(&mut self, other: Swept) {
        self.restored += other.restored;
        self.gone += other.gone;
        self.failed.extend(other.failed);
    }
}

/// Where a daemon with this log notes whom it holds stopped.
pub fn stops_beside(log: &Path) -> PathBuf {
    log.with_extension("stops")
}

/// Lets everybody go on whom an earlier run held stopped and puts back everything it wrote down at `path`; removes each file
/// once nothing is left. Lines that cannot be read are skipped: the file may have been cut off by the crash that makes
/// this necessary.
pub fn sweep(path: &Path, paths: &Paths) -> io::Result<Swept> {
    let mut total = Swept::default();
    // First: whoever is stopped cannot even end by itself.
    let stops = stops_beside(path);
    if let Some(table) = StopTable::open_at(&stops)? {
        total.restored = u32::try_from(table.held().len()).unwrap_or(u32::MAX);
        total.failed = table.let_all_go_on(paths);
        if total.failed.is_empty() {
            gone(std::fs::remove_file(&stops))?;
        }
    }
    total.add(sweep_log(path, paths)?);
    Ok(total)
}

fn sweep_log(path: &Path, paths: &Paths) -> io::Result<Swept> {
    let Some(file) = lock(path)? else { return Ok(Swept::default()) };
    let (mut swept, failed) = put_back(read(&file), paths, scan::boot_id(paths).as_deref());
    let mut left = Vec::new();
    for (entry, why) in failed {
        // A group in which somebody still runs is no failure: it is free of limits, and stays on record until it can be
        // removed.
        if !matches!(entry.saved, Saved::Folder { .. }) {
            swept.failed.push(why);
        }
        left.push(entry);
    }
    rewrite(path, &left)?;
    Ok(swept)
}

/// Puts everything back, the latest first: of two entries for the same file the first holds what was there before us.
/// Returns what was done, and what could not be, with the reason, in the old order.
fn put_back(entries: Vec<Entry>, paths: &Paths, boot: Option<&str>) -> (Swept, Vec<(Entry, String)>) {
    let mut swept = Swept::default();
    let mut failed: Vec<(Entry, String)> = entries.into_iter().map(|entry| (entry, String::new())).collect();
    // Twice: a quota may be refused until its period, which was changed before it, is put back as well.
    for _ in 0..2 {
        let todo = std::mem::take(&mut failed);
        for (entry, _) in todo.into_iter().rev() {
            match entry.restore(paths, boot) {
                Restored::Done => swept.restored += 1,
                Restored::Gone => swept.gone += 1,
                Restored::Failed(why) => failed.push((entry, why)),
            }
        }
        failed.reverse();
    }
    (swept, failed)
}

/// The file, locked; `None` where there is none. One that was replaced while we waited for the lock is not it any more.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) => return absent(error),
        };
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        match std::fs::metadata(path) {
            Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) => return absent(error),
        }
    }
}

/// A line of ours is two paths and a value. What is longer is none of ours, and is not held in memory.
const LONGEST_LINE: u64 = 64 * 1024;

fn read(file: &File) -> Vec<Entry> {
    let mut lines = BufReader::new(file);
    let (mut line, mut entries) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        // By bytes: a line that is no text is one line lost, not all that follow.
        match (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return entries,
            Ok(length) if length as u64 == LONGEST_LINE && line.last() != Some(&b'\n') => {
                if lines.skip_until(b'\n').is_err() {
                    return entries;
                }
            }
            Ok(_) => entries.extend(serde_json::from_slice::<Entry>(&line)),
        }
    }
}

fn append(mut file: &File, entry: &Entry) -> io::Result<()> {
    let mut line = serde_json::to_string(entry)?;
    line.push('\n');
    file.write_all(line.as_bytes())
}

/// What is to be removed may be gone already.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes down exactly these; without any there is no file. The old file stands until the new one is whole: a crash in
/// between, or a full disk, loses nothing.
fn rewrite(path: &Path, entries: &[Entry]) -> io::Result<()> {
    let new = path.with_extension(NEW);
    if entries.is_empty() {
        // What a crash has left of an attempt to write it goes as well.
        return gone(std::fs::remove_file(path)).and(gone(std::fs::remove_file(&new)));
    }
    let file = File::create(&new)?;
    let written = entries.iter().try_for_each(|entry| append(&file, entry)).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn old_values_are_put_back_and_another_folder_of_the_same_name_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("cpu.max"), "max 100000\n").unwrap();
        }
        let log_path = root.path().join("undo.jsonl");
        let mut log = UndoLog::new(log_path.clone(), &Paths::default());
        for folder in [&one, &two] {
            let file = GroupFile { folder: Folder::open(folder).unwrap().into(), name: "cpu.max" };
            log.save(Saved::file(&file).unwrap()).unwrap();
            std::fs::write(folder.join("cpu.max"), "5000 10000\n").unwrap();
        }
        // The second folder is removed and made anew by somebody else.
        std::fs::rename(&two, root.path().join("old")).unwrap();
        std::fs::create_dir(&two).unwrap();
        std::fs::write(two.join("cpu.max"), "theirs\n").unwrap();
        // A crash in the middle of a line.
        File::options().append(true).open(&log_path).unwrap().write_all(b"{\"kind\":\"fi").unwrap();

        let swept = sweep(&log_path, &Paths::default()).unwrap();
        assert_eq!((swept.restored, swept.gone, swept.failed.len()), (1, 1, 0));
        assert_eq!(std::fs::read_to_string(one.join("cpu.max")).unwrap().trim(), "max 100000");
        assert_eq!(std::fs::read_to_string(two.join("cpu.max")).unwrap().trim(), "theirs");
        assert_eq!(sweep(&log_path, &Paths::default()).unwrap(), Swept::default(), "a second sweep finds nothing");
    }

    #[test]
    fn what_cannot_be_put_back_yet_is_kept_for_the_run_after_next() {
        let root = tempfile::tempdir().unwrap();
        let (group, log_path) = (root.path().join("group"), root.path().join("undo.jsonl"));
        // A folder that is not empty stands for a group in which an orphan still runs.
        std::fs::create_dir_all(group.join("orphan")).unwrap();
        UndoLog::new(log_path.clone(), &Paths::default()).save(Saved::folder(&group).unwrap()).unwrap();
        for run in 0..2 {
            sweep(&log_path, &Paths::default()).unwrap();
            let mut log = UndoLog::new(log_path.clone(), &Paths::default());
            log.save(Saved::folder(root.path()).unwrap()).unwrap();
            log.restore(&Paths::default(), |saved| matches!(saved, Saved::Folder { path, .. } if path == root.path()));
            assert!(group.exists(), "run {run}");
        }
        std::fs::remove_dir(group.join("orphan")).unwrap();
        sweep(&log_path, &Paths::default()).unwrap();
        assert!(!group.exists());
    }

    /// A group as a folder, with one file in it.
    fn group_with(folder: &Path, text: &str) -> GroupFile {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("cpu.max"), text).unwrap();
        GroupFile { folder: Folder::open(folder).unwrap().into(), name: "cpu.max" }
    }

    #[test]
    fn what_was_written_before_the_machine_was_restarted_is_about_nothing_that_is_there_now() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let boot = paths.proc.join("sys/kernel/random/boot_id");
        std::fs::create_dir_all(boot.parent().unwrap()).unwrap();
        let log_path = root.path().join("undo-1.jsonl");
        let file = group_with(&root.path().join("group"), "max");
        for (then, now, restored) in [("first\n", "second\n", 0), ("first\n", "first\n", 1)] {
            std::fs::write(&boot, then).unwrap();
            UndoLog::new(log_path.clone(), &paths).save(Saved::file(&file).unwrap()).unwrap();
            std::fs::write(&boot, now).unwrap();
            let swept = sweep(&log_path, &paths).unwrap();
            assert_eq!((swept.restored, swept.gone, log_path.exists()), (restored, 1 - restored, false), "{then:?} {now:?}");
        }
    }

    #[test]
    fn the_first_value_is_the_one_that_is_put_back_however_often_it_is_saved() {
        let root = tempfile::tempdir().unwrap();
        let file = group_with(&root.path().join("group"), "theirs");
        let mut log = UndoLog::new(root.path().join("undo-1.jsonl"), &Paths::default());
        for ours in ["our1", "our2", "our3"] {
            log.save(Saved::file(&file).unwrap()).unwrap();
            std::fs::write(file.path(), ours).unwrap();
        }
        assert_eq!(log.entries().len(), 1);
        // The names of a kernel file are of one length here: it is written over, not cut off.
        std::fs::write(file.path(), "......").unwrap();
        assert_eq!(log.restore(&Paths::default(), |saved| saved.is_of(&file)), [] as [String; 0]);
        assert_eq!(file.read().unwrap(), "theirs");
    }

    #[test]
    fn a_log_that_was_cleaned_away_is_written_anew_with_all_that_is_changed() {
        let root = tempfile::tempdir().unwrap();
        let log_path = root.path().join("undo-1.jsonl");
        let [one, two] = ["one", "two"].map(|name| group_with(&root.path().join(name), "max"));
        let mut log = UndoLog::new(log_path.clone(), &Paths::default());
        log.save(Saved::file(&one).unwrap()).unwrap();
        std::fs::remove_file(&log_path).unwrap();
        log.save(Saved::file(&two).unwrap()).unwrap();
        assert_eq!(sweep(&log_path, &Paths::default()).unwrap().restored, 2);
    }

    #[test]
    fn a_crash_while_the_log_is_rewritten_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let log_path = root.path().join("undo-1.jsonl");
        let file = group_with(&root.path().join("group"), "max");
        UndoLog::new(log_path.clone(), &Paths::default()).save(Saved::file(&file).unwrap()).unwrap();
        std::fs::write(log_path.with_extension(NEW), "{\"kind\":\"fi").unwrap();
        assert_eq!(sweep(&log_path, &Paths::default()).unwrap().restored, 1);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "only the group is left");
    }

    #[test]
    fn a_folder_that_was_only_going_to_be_made_is_removed_while_it_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let (log_path, group) = (root.path().join("undo-1.jsonl"), root.path().join("plimsoll-1"));
        let mut log = UndoLog::new(log_path.clone(), &Paths::default());
        log.save(Saved::folder_to_be(&group)).unwrap();
        assert_eq!(log.restore(&Paths::default(), |_| true), [] as [String; 0], "it was not made at all");
        log.save(Saved::folder_to_be(&group)).unwrap();
        std::fs::create_dir_all(group.join("w-1")).unwrap();
        assert_eq!(sweep(&log_path, &Paths::default()).unwrap().restored, 1);
        assert!(!group.exists());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_hide_no_line(before in vec(any::<u8>(), 0..200), after in vec(any::<u8>(), 0..200)) {
            let root = tempfile::tempdir().unwrap();
            let log_path = root.path().join("undo-1.jsonl");
            let folder = root.path().join("group");
            std::fs::create_dir(&folder).unwrap();
            let entry = Entry { boot: None, saved: Saved::folder(&folder).unwrap() };
            let line = serde_json::to_vec(&entry).unwrap();
            std::fs::write(&log_path, [&before, b"\n".as_slice(), &line, b"\n", &after].concat()).unwrap();
            prop_assert!(read(&File::open(&log_path).unwrap()).contains(&entry));
            sweep(&log_path, &Paths::default()).unwrap();
            prop_assert!(!folder.exists());
        }
    }

    #[test]
    fn a_line_without_an_end_is_skipped_and_not_held_in_memory() {
        let root = tempfile::tempdir().unwrap();
        let log_path = root.path().join("undo-1.jsonl");
        let [one, two] = ["one", "two"].map(|name| {
            let folder = root.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            serde_json::to_string(&Entry { boot: None, saved: Saved::folder(&folder).unwrap() }).unwrap()
        });
        let mut file = File::create(&log_path).unwrap();
        writeln!(file, "{one}").unwrap();
        // A hole takes no room on the disk; as a line it would take all of it in memory.
        let size = file.metadata().unwrap().len();
        file.set_len(size + 64 * LONGEST_LINE).unwrap();
        drop(file);
        let mut file = File::options().append(true).open(&log_path).unwrap();
        writeln!(file, "\n{two}").unwrap();
        assert_eq!(sweep(&log_path, &Paths::default()).unwrap().restored, 2);
    }

    #[test]
    fn what_is_lent_is_put_back_only_while_it_says_what_we_put_there() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("memory.high");
        let folder = Arc::new(Folder::open(root.path()).unwrap());
        // Numbers of one length: a file that stands for the kernel's is not cut off by a shorter write.
        for (found, after, restored) in [("4096", "9999", 1), ("8192", "9999", 1), ("1234", "1234", 0), ("9999", "9999", 0)] {
            std::fs::write(&file, found).unwrap();
            let log_path = root.path().join("undo.jsonl");
            let mut log = UndoLog::new(log_path.clone(), &Paths::default());
            // Lowered once: either value is ours.
            for set in ["8192", "4096"] {
                log.save(Saved::lent(&GroupFile { folder: folder.clone(), name: "memory.high" }, "9999", set)).unwrap();
            }
            let swept = sweep(&log_path, &Paths::default()).unwrap();
            assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), swept.restored), (after, restored), "{found}");
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_down_is_an_error() {
        let mut log = UndoLog::new(PathBuf::from("/nonexistent/undo.jsonl"), &Paths::default());
        assert!(log.save(Saved::folder(Path::new("/")).unwrap()).is_err());
        assert!(log.entries().is_empty());
    }
}
