//! Folders whose files are whole or not there, also after the power has gone: a file is made under another name, forced to the disk,
//! and renamed; then the folder is forced to the disk too.
//!
//! Owns a descriptor of the folder and the lock on it. Everything goes by plain names below that descriptor, and no link is followed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
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

impl Drop for Directory {
    /// The lock would stay with a process that is being started just now: until it becomes another program it has every descriptor too.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }
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

    /// Who the folder itself belongs to.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn owner(&self) -> io::Result<Owner> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(Owner { user: stat.st_uid, group: stat.st_gid, mode: stat.st_mode & 0o7777 })
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

    /// Forces what was renamed and removed to the disk.
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

/// A new file that is written from its beginning to its end, and goes to the disk meanwhile, a piece after the other. A file that
/// is forced there in one go at its end makes everybody wait who has a few bytes of his own to force: the kernel's log of changes
/// takes them in order.
#[derive(Debug)]
pub struct Stream {
    file: File,
    /// Bytes.
    written: u64,
    /// Up to where the disk was asked to take it.
    asked: u64,
}

/// Bytes on their way to the disk while the next are made.
const PIECE: u64 = 4 << 20;

impl Stream {
    pub fn new(file: File) -> Stream {
        Stream { file, written: 0, asked: 0 }
    }

    /// Forces what is left to the disk.
    ///
    /// # Errors
    /// What the kernel said; the copy is then not whole.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Waits for the last piece, and has the disk take the next.
    fn push_on(&mut self) -> io::Result<()> {
        let last = self.asked.saturating_sub(PIECE);
        let begin = libc::SYNC_FILE_RANGE_WRITE;
        let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | begin | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        self.range(last, self.asked - last, wait)?;
        self.range(self.asked, self.written - self.asked, begin)?;
        self.asked = self.written;
        Ok(())
    }

    fn range(&self, from: u64, bytes: u64, flags: libc::c_uint) -> io::Result<()> {
        if bytes == 0 {
            return Ok(()); // Which would mean all of it.
        }
        // SAFETY: plain numbers, about a file that is open.
        match unsafe { libc::sync_file_range(self.file.as_raw_fd(), from.cast_signed(), bytes.cast_signed(), flags) } {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                // A filesystem that cannot: all of it is forced at the end.
                error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ESPIPE | libc::EOPNOTSUPP)) => Ok(()),
                // Told once: who forces the file later is not told again.
                error => Err(error),
            },
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.written - self.asked >= PIECE {
            self.push_on()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
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
        folder.rename_over("two", "three").unwrap();
        let mut text = String::new();
        folder.file("three").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), folder.names().unwrap()), ("two", vec!["three".to_owned()]));
        assert_eq!((folder.remove("three").unwrap(), folder.remove("three").unwrap()), (true, false));
        folder.sync().unwrap();
        let (own, above) = (folder.owner().unwrap(), Directory::open(&base.path().join("a")).unwrap().entry("b").unwrap().unwrap());
        assert_eq!((own, own.mode, own.user), (above.owner, 0o700, acting_user()));
    }

    #[test]
    fn what_goes_to_the_disk_in_pieces_is_all_there() {
        let base = tempfile::tempdir().unwrap();
        let folder = Directory::open(base.path()).unwrap();
        let content: Vec<u8> = (0..3 * PIECE as u32 + 5).map(|number| (number % 251) as u8).collect();
        let mut stream = Stream::new(folder.create("large").unwrap());
        content.chunks(300_000).for_each(|piece| stream.write_all(piece).unwrap());
        stream.finish().unwrap();
        assert!(std::fs::read(base.path().join("large")).unwrap() == content);
        // What nobody can force bit by bit: a pipe.
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let mut stream = Stream { written: PIECE, ..Stream::new(File::from(write)) };
        stream.write_all(b"x").unwrap();
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
        // As whoever starts a process has it for a moment.
        let copy = one.fd.try_clone().unwrap();
        drop(one);
        assert!(other.try_lock().unwrap());
        drop(copy);
    }
}
