//! Freezing a control group: every thread in it stops at once, forks in flight included, and goes on together.
//!
//! Only the freezer of cgroup v2 (`cgroup.freeze`, also in the v2 tree of a hybrid machine) is used. A process frozen by
//! v1's cannot even be killed: measured on 6.18, SIGKILL ended it only after the thaw, which would make a guardian that
//! died worse than none. In a v2 group SIGKILL works at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::cgroupfs;
use super::folder::{Folder, GroupFile};

/// The freezer of one group. The kernel binds an open file to the very group it was opened in: a group made anew under the
/// same name is never touched through it, the writes fail instead (`ENODEV`).
#[derive(Debug)]
pub struct Freezer {
    file: GroupFile,
    /// Kept open: a turn of a duty cycle costs one write.
    freeze: File,
    events: File,
}

impl Freezer {
    /// Opens the freezer of a group. An error where the kernel or a permission grants none, and where the group is frozen
    /// already: whoever did that would find it thawed by us.
    pub fn open(folder: &Arc<Folder>) -> io::Result<Freezer> {
        let file = GroupFile { folder: folder.clone(), name: "cgroup.freeze" };
        let freeze = File::from(folder.entrance(file.name)?);
        let freezer = Freezer { file, freeze, events: File::from(folder.file("cgroup.events")?) };
        if freezer.is_asked()? {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "frozen by somebody else"));
        }
        Ok(freezer)
    }

    /// The file that holds its state: what an undo log has to remember, with the value `0`.
    pub fn file(&self) -> &GroupFile {
        &self.file
    }

    /// Asks for the stop. The kernel tells every thread at once and returns; they stop within microseconds, one in the
    /// middle of a disk access when that is over.
    pub fn freeze(&self) -> io::Result<()> {
        self.freeze.write_all_at(b"1", 0)
    }

    /// Lets everybody go on. A group that was removed holds nobody: that is no error.
    pub fn thaw(&self) -> io::Result<()> {
        match self.freeze.write_all_at(b"0", 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Whether a freeze was asked for, by whomever.
    pub fn is_asked(&self) -> io::Result<bool> {
        match cgroupfs::parse_number(self.file.read()?.as_bytes()) {
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

    fn open(folder: &tempfile::TempDir) -> io::Result<Freezer> {
        Freezer::open(&Arc::new(Folder::open(folder.path())?))
    }

    #[test]
    fn freezing_and_thawing_write_the_word_of_the_kernel() {
        let folder = group("0\n");
        let freezer = open(&folder).unwrap();
        assert_eq!((freezer.is_asked().unwrap(), freezer.is_frozen().unwrap()), (false, false));
        freezer.freeze().unwrap();
        assert!(freezer.is_asked().unwrap());
        std::fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(freezer.is_frozen().unwrap());
        freezer.thaw().unwrap();
        assert_eq!(freezer.file().read().unwrap(), "0");
    }

    #[test]
    fn what_is_frozen_by_others_or_no_group_or_says_nothing_is_refused() {
        assert_eq!(open(&group("1\n")).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(open(&group("")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(open(&tempfile::tempdir().unwrap()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let folder = group("0\n");
        std::fs::write(folder.path().join("cgroup.events"), "").unwrap();
        assert_eq!(open(&folder).unwrap().is_frozen().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
