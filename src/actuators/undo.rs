//! What was there before we changed it, on disk before the change is made: put back on release, on exit, by the sentinel
//! when the daemon dies, and at the next start.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::host::folder::{Folder, GroupFile, Identity};
use crate::host::{Paths, group, process};

/// One thing to put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Saved {
    /// A kernel file in a folder that is this very one.
    File { path: PathBuf, dev: u64, ino: u64, old: String },
    /// The same, to be put back only while it still says what we put there: what others have set meanwhile is theirs.
    Lent { path: PathBuf, dev: u64, ino: u64, old: String, set: String },
    /// A process's nice value and scheduling class.
    Nice { pid: i32, started: u64, old: i32 },
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

    pub fn folder(path: &Path) -> io::Result<Saved> {
        let (dev, ino) = Folder::open(path)?.identity();
        Ok(Saved::Folder { path: path.to_path_buf(), dev, ino })
    }

    /// True for what was saved of this very file.
    pub fn is_of(&self, file: &GroupFile) -> bool {
        matches!(self, Saved::File { path, dev, ino, .. } if (*dev, *ino) == file.folder.identity() && *path == file.path())
    }

    /// The same for what was lent, and for nothing else: a file may be held by two hands, each with its own entry.
    pub fn is_lent_of(&self, file: &GroupFile) -> bool {
        matches!(self, Saved::Lent { path, dev, ino, .. } if (*dev, *ino) == file.folder.identity() && *path == file.path())
    }

    /// Puts it back, if it is still about the same thing.
    pub fn restore(&self, paths: &Paths) -> Restored {
        let result = match self {
            Saved::File { path, dev, ino, old } => match found(path, (*dev, *ino)) {
                Some((folder, name)) => folder.write(name, old),
                None => return Restored::Gone,
            },
            Saved::Lent { path, dev, ino, old, set } => match found(path, (*dev, *ino)) {
                Some((folder, name)) => match folder.read(name) {
                    Ok(value) if value.trim_ascii() == set.as_bytes() => folder.write(name, old),
                    Ok(_) => return Restored::Gone,
                    Err(error) => Err(error),
                },
                None => return Restored::Gone,
            },
            Saved::Nice { pid, started, old } => match process::Process::open(paths, *pid, Some(*started)) {
                Ok(Some(_)) => process::set_idle_class(*pid, false).and_then(|()| process::set_nice(*pid, *old)),
                _ => return Restored::Gone,
            },
            Saved::Folder { path, dev, ino } => match Folder::open(path) {
                Ok(folder) if folder.identity() == (*dev, *ino) => group::remove_with_replicas(&folder),
                _ => return Restored::Gone,
            },
        };
        match result {
            Ok(()) => Restored::Done,
            Err(error) => Restored::Failed(format!("{self:?}: {error}")),
        }
    }
}

/// The folder and the name of a saved file, unless the folder is another one by now.
fn found(path: &Path, identity: Identity) -> Option<(Folder, &str)> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    Some((Folder::open(folder).ok().filter(|folder| folder.identity() == identity)?, name))
}

/// The file, and what is in it. A clone is another handle on the same log: each hand that changes something has one.
#[derive(Clone, Debug)]
pub struct UndoLog {
    path: PathBuf,
    entries: Arc<Mutex<Vec<Saved>>>,
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
    pub fn new(path: PathBuf) -> UndoLog {
        let entries = File::open(&path).map(|file| read(&file)).unwrap_or_default();
        UndoLog { path, entries: Arc::new(Mutex::new(entries)) }
    }

    /// Whoever panicked while holding it left a list all the same.
    fn entries(&self) -> MutexGuard<'_, Vec<Saved>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes `saved` down, before the change is made. An error means that the change must not be made.
    pub fn save(&mut self, saved: Saved) -> io::Result<()> {
        let file = File::options().create(true).append(true).open(&self.path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        append(&file, &saved)?;
        self.entries().push(saved);
        Ok(())
    }

    /// Puts back and forgets everything for which `which` says so, the latest first. Returns what could not be put back.
    pub fn restore(&mut self, paths: &Paths, which: impl Fn(&Saved) -> bool) -> Vec<String> {
        let mut failed = Vec::new();
        let mut entries = self.entries();
        let (mut undo, keep): (Vec<_>, Vec<_>) = std::mem::take(&mut *entries).into_iter().partition(&which);
        *entries = keep;
        if undo.is_empty() {
            return failed;
        }
        undo.reverse();
        for saved in undo {
            if let Restored::Failed(why) = saved.restore(paths) {
                // Kept: the next attempt may succeed, and the next start certainly tries.
                entries.push(saved);
                failed.push(why);
            }
        }
        if let Err(error) = rewrite(&self.path, &entries) {
            // Harmless: what was put back is put back once more by whoever reads the old file.
            failed.push(format!("{}: {error}", self.path.display()));
        }
        failed
    }

    /// Forgets folders that were removed in the ordinary way.
    pub fn forget_missing_folders(&mut self) {
        let mut entries = self.entries();
        let before = entries.len();
        entries.retain(|saved| !matches!(saved, Saved::Folder { path, .. } if !path.exists()));
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

/// Puts back everything an earlier run wrote down at `path`, and removes the file once nothing is left. Lines that cannot
/// be read are skipped: the file may have been cut off by the crash that makes this necessary.
pub fn sweep(path: &Path, paths: &Paths) -> io::Result<Swept> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Swept::default()),
        Err(error) => return Err(error),
    };
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    let entries = read(&file);
    let mut swept = Swept::default();
    let mut left = Vec::new();
    for saved in entries.iter().rev() {
        match saved.restore(paths) {
            Restored::Done => swept.restored += 1,
            Restored::Gone => swept.gone += 1,
            Restored::Failed(why) => {
                // A group in which somebody still runs is no failure: it is free of limits, and stays on record until it
                // can be removed.
                if !matches!(saved, Saved::Folder { .. }) {
                    swept.failed.push(why);
                }
                left.push(saved.clone());
            }
        }
    }
    left.reverse();
    if left.is_empty() {
        std::fs::remove_file(path)?;
        return Ok(swept);
    }
    file.set_len(0)?;
    file.rewind()?;
    for saved in &left {
        append(&file, saved)?;
    }
    Ok(swept)
}

fn read(file: &File) -> Vec<Saved> {
    BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).collect()
}

fn append(mut file: &File, saved: &Saved) -> io::Result<()> {
    let mut line = serde_json::to_string(saved)?;
    line.push('\n');
    file.write_all(line.as_bytes())
}

/// Writes down exactly these; without any there is no file.
fn rewrite(path: &Path, entries: &[Saved]) -> io::Result<()> {
    if entries.is_empty() {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    file.set_len(0)?;
    file.rewind()?;
    entries.iter().try_for_each(|saved| append(&file, saved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_values_are_put_back_and_another_folder_of_the_same_name_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("cpu.max"), "max 100000\n").unwrap();
        }
        let log_path = root.path().join("undo.jsonl");
        let mut log = UndoLog::new(log_path.clone());
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
        UndoLog::new(log_path.clone()).save(Saved::folder(&group).unwrap()).unwrap();
        for run in 0..2 {
            sweep(&log_path, &Paths::default()).unwrap();
            let mut log = UndoLog::new(log_path.clone());
            log.save(Saved::folder(root.path()).unwrap()).unwrap();
            log.restore(&Paths::default(), |saved| matches!(saved, Saved::Folder { path, .. } if path == root.path()));
            assert!(group.exists(), "run {run}");
        }
        std::fs::remove_dir(group.join("orphan")).unwrap();
        sweep(&log_path, &Paths::default()).unwrap();
        assert!(!group.exists());
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
            let mut log = UndoLog::new(log_path.clone());
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
        let mut log = UndoLog::new(PathBuf::from("/nonexistent/undo.jsonl"));
        assert!(log.save(Saved::Nice { pid: 1, started: 1, old: 0 }).is_err());
        assert!(log.entries().is_empty());
    }
}
