//! Folders whose files are whole or not there, also after the power has gone: a file is made under another name, forced to the disk,
//! and renamed; then the folder is forced to the disk too.
//!
//! Owns a descriptor of the folder and the lock on it. Everything goes by plain names below that descriptor, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// A folder held open.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

/// What is known about one name in a folder; a link is described, not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub is_file: bool,
    /// Bytes.
    pub size: u64,
    pub device: u64,
    pub inode: u64,
    pub owner: Owner,
}

/// Who a file belongs to, and the bits of who may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
    /// Permission bits only, at most `0o7777`.
    pub mode: u32,
}

impl Directory {
    /// # Errors
    /// What the kernel said; `ENOTDIR` where a file stands.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Directory { path: path.to_owned(), fd })
    }

    /// Makes it, and what is above it, where it is not there yet: readable to its owner alone.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open_or_make(path: &Path) -> io::Result<Directory> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Directory::open(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the folder for this process alone; false when another has it. Held until the value is dropped.
    ///
    /// # Errors
    /// What the kernel said, where the filesystem knows no locks.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A new file, readable to its owner alone; to be written and read.
    ///
    /// # Errors
    /// `EEXIST` where the name is taken, else what the kernel said.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?))
    }

    /// A regular file of the folder, to be read.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file, `ELOOP` for a link, else what the kernel said.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        Ok(File::from(fd))
    }

    /// `None` where there is no such name.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn entry(&self, name: &str) -> io::Result<Option<Entry>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Entry {
                is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                device: stat.st_dev,
                inode: stat.st_ino,
                owner: Owner { user: stat.st_uid, group: stat.st_gid, mode: stat.st_mode & 0o7777 },
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Every name but `.` and `..` that is text, in order.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().to_str().ok().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Renames within the folder; never over a file that is there.
    ///
    /// # Errors
    /// `EEXIST` where the name is taken, else what the kernel said.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            // A filesystem that cannot promise it. Who else writes here is kept out by the lock.
            Err(Errno::INVAL | Errno::NOSYS) => match self.entry(to)? {
                Some(_) => Err(Errno::EXIST.into()),
                None => Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?),
            },
            other => Ok(other?),
        }
    }

    /// Renames within the folder; what has the name is replaced in one step.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// `EEXIST` where the name is taken; `EPERM` on filesystems without links; else what the kernel said.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    /// Removes a file; true when there was one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Forces what was renamed, linked and removed to the disk.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.fd) {
            // Some network filesystems have nothing to force.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Gives an open file to somebody, with the bits of who may do what.
///
/// # Errors
/// `EPERM` where this process may not give files away; a file that already is theirs is no error.
pub fn give(file: &File, owner: Owner) -> io::Result<()> {
    let is = rustix::fs::fstat(file)?;
    if (is.st_uid, is.st_gid) != (owner.user, owner.group) {
        let (user, group) = (rustix::fs::Uid::from_raw(owner.user), rustix::fs::Gid::from_raw(owner.group));
        rustix::fs::fchown(file, Some(user), Some(group))?;
    }
    // After the owner: a change of it takes bits away.
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(owner.mode))?)
}

/// The user this process acts as.
pub fn acting_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_name_that_is_taken_is_not_taken_over() {
        let base = tempfile::tempdir().unwrap();
        let folder = Directory::open_or_make(&base.path().join("a/b")).unwrap();
        for name in ["one", "two"] {
            folder.create(name).unwrap().write_all(name.as_bytes()).unwrap();
        }
        assert_eq!(folder.create("one").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(folder.rename_new("one", "two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        folder.rename_new("one", "three").unwrap();
        folder.link("three", "four").unwrap();
        folder.rename_over("two", "three").unwrap();
        let mut text = String::new();
        folder.file("three").unwrap().read_to_string(&mut text).unwrap();
        folder.file("four").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), folder.names().unwrap()), ("twoone", vec!["four".to_owned(), "three".to_owned()]));
        assert_eq!((folder.remove("four").unwrap(), folder.remove("four").unwrap()), (true, false));
        folder.sync().unwrap();
    }

    #[test]
    fn links_and_pipes_are_not_opened() {
        let base = tempfile::tempdir().unwrap();
        let folder = Directory::open(base.path()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", base.path().join("link")).unwrap();
        assert!(folder.file("link").is_err());
        assert!(!folder.entry("link").unwrap().unwrap().is_file);
        std::fs::create_dir(base.path().join("folder")).unwrap();
        assert!(folder.file("folder").is_err());
        assert_eq!(folder.entry("nothing").unwrap(), None);
    }

    #[test]
    fn a_folder_is_locked_once() {
        let base = tempfile::tempdir().unwrap();
        let (one, other) = (Directory::open(base.path()).unwrap(), Directory::open(base.path()).unwrap());
        assert!(one.try_lock().unwrap());
        assert!(!other.try_lock().unwrap());
        drop(one);
        assert!(other.try_lock().unwrap());
    }
}
