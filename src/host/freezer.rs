//! Freezing a control group: every thread in it stops at once, forks in flight included, and goes on together.
//!
//! Only the freezer of cgroup v2 (`cgroup.freeze`, also in the v2 tree of a hybrid machine) is used. A process frozen by
//! v1's cannot even be killed: measured on 6.18, SIGKILL ended it only after the thaw, which would make a guardian that
//! died worse than none. In a v2 group SIGKILL works at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::cgroupfs;

/// The freezer of one group. The kernel binds an open file to the very group it was opened in: a group made anew under the
/// same name is never touched through it, the writes fail instead (`ENODEV`).
#[derive(Debug)]
pub struct Freezer {
    file: PathBuf,
    freeze: File,
    events: File,
}

impl Freezer {
    /// Opens the freezer of the group at `folder`. An error where the kernel or a permission grants none, and where the
    /// group is frozen already: whoever did that would find it thawed by us.
    pub fn open(folder: &Path) -> io::Result<Freezer> {
        let file = folder.join("cgroup.freeze");
        let freeze = File::options().read(true).write(true).open(&file)?;
        let freezer = Freezer { file, freeze, events: File::open(folder.join("cgroup.events"))? };
        if freezer.is_asked()? {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "frozen by somebody else"));
        }
        Ok(freezer)
    }

    /// The file that holds its state: what an undo log has to remember, with the value `0`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Asks for the stop. The kernel tells every thread at once and returns; they stop within microseconds, one in the
    /// middle of a disk access when that is over.
    pub fn freeze(&self) -> io::Result<()> {
        self.freeze.write_all_at(b"1", 0)
    }

    pub fn thaw(&self) -> io::Result<()> {
        self.freeze.write_all_at(b"0", 0)
    }

    /// Whether a freeze was asked for, by whomever.
    pub fn is_asked(&self) -> io::Result<bool> {
        let mut text = [0; 8];
        let length = self.freeze.read_at(&mut text, 0)?;
        match cgroupfs::parse_number(&text[..length]) {
            Some(value) => Ok(value != 0),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "cgroup.freeze holds no number")),
        }
    }

    /// Whether everybody in it has stopped.
    pub fn is_frozen(&self) -> io::Result<bool> {
        let mut text = [0; 256];
        let length = self.events.read_at(&mut text, 0)?;
        cgroupfs::value_of(&text[..length], "frozen")
            .map(|value| value != 0)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "cgroup.events does not say whether it is frozen"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(freeze: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cgroup.freeze"), freeze).unwrap();
        std::fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        folder
    }

    #[test]
    fn freezing_and_thawing_write_the_word_of_the_kernel() {
        let folder = group("0\n");
        let freezer = Freezer::open(folder.path()).unwrap();
        assert_eq!((freezer.is_asked().unwrap(), freezer.is_frozen().unwrap()), (false, false));
        freezer.freeze().unwrap();
        assert!(freezer.is_asked().unwrap());
        std::fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(freezer.is_frozen().unwrap());
        freezer.thaw().unwrap();
        assert_eq!(std::fs::read(freezer.file()).unwrap(), b"0\n");
    }

    #[test]
    fn what_is_frozen_by_others_or_no_group_or_says_nothing_is_refused() {
        assert_eq!(Freezer::open(group("1\n").path()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(Freezer::open(group("").path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(Freezer::open(tempfile::tempdir().unwrap().path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let folder = group("0\n");
        std::fs::write(folder.path().join("cgroup.events"), "").unwrap();
        assert_eq!(Freezer::open(folder.path()).unwrap().is_frozen().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
