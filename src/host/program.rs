//! The file this program was started from, and what is in its place now. May touch: that file's name, never what is in it. Must not
//! decide what follows from it.
//!
//! The name is kept from the start: once the file was moved away or removed, the kernel tells another one for what runs.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::spawn::OWN_PROGRAM;

/// Which file it is, and in which state: another one is told from it, and the same one written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

/// A file as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub identity: Identity,
    pub is_file: bool,
    pub owner: u32,
    pub group: u32,
    pub mode: u32,
}

/// Our own program.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// The same for the kernel, so that a look allocates nothing.
    name: CString,
    started: Identity,
}

impl Program {
    /// `word` is the first of our command line: the name we were started by, if it leads to what runs. A link that will lead
    /// elsewhere one day is followed anew at each look.
    ///
    /// # Errors
    /// When the kernel does not say what runs.
    pub fn own(word: Option<&OsStr>, directory: &Path) -> io::Result<Program> {
        let link = std::fs::read_link(OWN_PROGRAM)?;
        let about = std::fs::metadata(OWN_PROGRAM)?;
        let named = word.map(|word| directory.join(word)).filter(|path| {
            let is_it = |there: &std::fs::Metadata| (there.dev(), there.ino()) == (about.dev(), about.ino());
            // Below /proc a name leads to whatever runs, never to what is to follow.
            word.is_some_and(|word| word.as_bytes().contains(&b'/'))
                && !path.starts_with("/proc")
                && std::fs::metadata(path).is_ok_and(|there| is_it(&there))
        });
        let path = named.unwrap_or_else(|| without_mark(&link));
        let name = CString::new(path.as_os_str().as_bytes())?;
        let started =
            Identity { device: about.dev(), inode: about.ino(), size: about.size(), modified: (about.mtime(), about.mtime_nsec()) };
        Ok(Program { path, name, started })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What we were started from.
    pub fn started(&self) -> Identity {
        self.started
    }

    /// What has the name now. `None`: nothing.
    pub fn look(&self) -> Option<Seen> {
        let stat = rustix::fs::stat(self.name.as_c_str()).ok()?;
        Some(Seen {
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            },
            is_file: rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file(),
            owner: stat.st_uid,
            group: stat.st_gid,
            mode: stat.st_mode,
        })
    }

    /// As [`Program::look`], where it is another than we were started from.
    pub fn changed(&self) -> Option<Seen> {
        self.look().filter(|seen| seen.identity != self.started)
    }
}

/// Keeps the file we were started from: one that was replaced goes with the last who has it, and then the kernel takes it apart before
/// that one goes on.
///
/// # Errors
/// No descriptor to be had.
pub fn hold_own() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(OWN_PROGRAM, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// What was replaced is still told by its old name, with a mark.
fn without_mark(link: &Path) -> PathBuf {
    let bytes = link.as_os_str().as_bytes();
    PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_of_the_same_name_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let link = folder.path().join("program");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let program = Program::own(Some(link.as_os_str()), Path::new("/")).unwrap();
        assert_eq!((program.path(), program.changed()), (link.as_path(), None));
        // What a link leads to is what counts.
        let other = folder.path().join("other");
        std::fs::write(&other, "x").unwrap();
        std::fs::remove_file(&link).unwrap();
        assert_eq!(program.look(), None);
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let seen = program.changed().unwrap();
        assert_eq!((seen.identity.size, seen.is_file), (1, true));
        // A name that does not lead to what runs is none of ours.
        let program = Program::own(Some(other.as_os_str()), Path::new("/")).unwrap();
        assert_eq!(program.path(), own.canonicalize().unwrap());
        let program = Program::own(Some(OsStr::new(OWN_PROGRAM)), Path::new("/")).unwrap();
        assert_eq!(program.path(), own.canonicalize().unwrap());
    }

    #[test]
    fn a_file_that_was_removed_keeps_its_name() {
        assert_eq!(without_mark(Path::new("/usr/bin/plimsoll (deleted)")), Path::new("/usr/bin/plimsoll"));
        assert_eq!(without_mark(Path::new("/usr/bin/plimsoll")), Path::new("/usr/bin/plimsoll"));
    }
}
