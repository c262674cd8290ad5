//! One control group, held by a descriptor of its folder and never by its name: once the group is removed every access
//! fails (`ENOENT`, `ENODEV`), also when another group of the same name stands there.
//!
//! Owns that handle and the files reached through it. May touch the folder it was opened on. Must not know what the files mean.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// What makes a group this very one and not another of the same name: device and inode. The kernel gives no inode of a
/// cgroup tree twice while it runs.
pub type Identity = (u64, u64);

#[derive(Debug)]
pub struct Folder {
    /// For people, and for the undo log.
    path: PathBuf,
    fd: OwnedFd,
    identity: Identity,
}

impl Folder {
    pub fn open(path: &Path) -> io::Result<Folder> {
        Folder::open_at(rustix::fs::CWD, path, path.to_path_buf())
    }

    fn open_at(parent: BorrowedFd<'_>, name: &Path, path: PathBuf) -> io::Result<Folder> {
        let fd = rustix::fs::openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Folder { path, fd, identity: (stat.st_dev, stat.st_ino) })
    }

    /// Makes a group below this one; `AlreadyExists` when there is one of this name.
    pub fn make(&self, name: &str) -> io::Result<Folder> {
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755))?;
        Folder::open_at(self.fd.as_fd(), Path::new(name), self.path.join(name))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Names it to the kernel; a descriptor of its own.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Opens a file of the group to be read.
    ///
    /// # Errors
    /// `ENOENT` where there is no such file or the group is removed, else what the kernel said.
    pub fn file(&self, name: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    pub fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.fd, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::from(self.file(name)?).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Opens a file of the group to be written; never creates it.
    pub fn entrance(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.fd, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Writes a kernel file in one write.
    pub fn write(&self, name: &str, value: &str) -> io::Result<()> {
        File::from(self.entrance(name)?).write_all(value.as_bytes())
    }

    /// The pids in it, as far as this process sees them.
    pub fn members(&self) -> io::Result<Vec<i32>> {
        let text = self.read("cgroup.procs")?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Removes the group; one that still holds somebody stays, and says so. A folder is removed by its name, there is no
    /// other way: the name is looked up right before, and at the worst an empty group of a stranger goes that was made in between.
    pub fn remove(&self) -> io::Result<()> {
        let stat = rustix::fs::stat(&self.path)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(Errno::NOENT.into());
        }
        std::fs::remove_dir(&self.path)
    }
}

/// A file of one group.
#[derive(Clone, Debug)]
pub struct GroupFile {
    pub folder: Arc<Folder>,
    pub name: &'static str,
}

impl GroupFile {
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    /// What it says, without the newline at its end.
    pub fn read(&self) -> io::Result<String> {
        let text = self.folder.read(self.name)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    pub fn write(&self, value: &str) -> io::Result<()> {
        self.folder.write(self.name, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_made_anew_under_the_same_name_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let base = Folder::open(root.path()).unwrap();
        let group = Arc::new(base.make("group").unwrap());
        assert_eq!(base.make("group").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::write(group.path().join("value"), "1\n").unwrap();
        let file = GroupFile { folder: group.clone(), name: "value" };
        file.write("2").unwrap();
        assert_eq!(file.read().unwrap(), "2");
        assert!(group.has("value") && !group.has("other"));
        assert!(group.write("other", "1").is_err(), "a kernel file is never created");

        std::fs::remove_dir_all(group.path()).unwrap();
        std::fs::create_dir(group.path()).unwrap();
        std::fs::write(group.path().join("value"), "theirs").unwrap();
        assert_eq!(file.read().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(file.write("3").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(group.remove().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read_to_string(group.path().join("value")).unwrap(), "theirs");
    }
}
