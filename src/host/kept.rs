//! A kernel file that is read again and again.
//!
//! Kept open and read with `pread`, it costs a half to a tenth of opening it each time, and it cannot turn into another
//! file: a kept `/proc/PID/statm` fails once the process is reaped, whoever gets its pid next.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::folder::Folder;
use super::paths::Paths;

#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    /// Where it is opened from, and its name there: a file of this very group, whatever stands at its path later.
    within: Option<(Arc<Folder>, &'static str)>,
    /// Off for a machine that is a folder: nobody tells us there when a file is replaced.
    keep: bool,
    file: Option<OwnedFd>,
    /// It could be read before: should it not be there any more, it has ended.
    was_there: bool,
}

impl Kept {
    /// Opens nothing yet.
    pub fn new(paths: &Paths, path: PathBuf) -> Kept {
        Kept { path, within: None, keep: paths.is_live(), file: None, was_there: false }
    }

    /// A file of one group: once that is removed there is nothing to read, even where a group of the same name was made.
    pub fn within(paths: &Paths, folder: &Arc<Folder>, name: &'static str) -> Kept {
        Kept { within: Some((folder.clone(), name)), ..Kept::new(paths, folder.path().join(name)) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file, read into `buffer`. A cgroup named by its path that was removed and made anew is opened again.
    ///
    /// # Errors
    /// What the kernel said to opening or reading: `ENOENT` where there never was such a file, `ENODEV` (the kernel's own
    /// word for an open file of a group that was removed) where there is none any more.
    pub fn read<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Errno> {
        let was_open = self.file.is_some();
        let again = match self.read_open(buffer) {
            Err(Errno::NODEV | Errno::BADF) if was_open => self.read_open(buffer),
            other => other,
        };
        match again {
            Err(Errno::NOENT | Errno::NOTDIR) if self.was_there => Err(Errno::NODEV),
            other => other,
        }?;
        self.was_there = true;
        Ok(buffer.as_slice())
    }

    /// The whole file, never opened a second time: for files of a process, whose pid may be somebody else's by then.
    ///
    /// # Errors
    /// As [`Kept::read`]; `ESRCH` once the process is reaped.
    pub fn read_once<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Errno> {
        if let Some(file) = &self.file {
            read_all(file, buffer)?;
        } else {
            self.read_open(buffer)?;
        }
        Ok(buffer.as_slice())
    }

    fn read_open(&mut self, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        let file = match self.file.take() {
            Some(file) => file,
            None => match &self.within {
                Some((folder, name)) => folder.file(name)?,
                None => rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
            },
        };
        read_all(&file, buffer)?;
        if self.keep {
            self.file = Some(file);
        }
        Ok(())
    }
}

/// A file that may be replaced at any time, opened by its path: its first few hundred bytes. Never waits, whatever it is.
///
/// # Errors
/// What the kernel said to opening or reading.
pub fn read_short<'b>(path: &Path, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Errno> {
    const MOST: usize = 256;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    buffer.clear();
    buffer.resize(MOST, 0);
    let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, buffer.as_mut_slice(), 0))?;
    buffer.truncate(read);
    Ok(buffer.as_slice())
}

/// From the beginning to the end.
pub(super) fn read_all(file: &OwnedFd, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    buffer.reserve(4096);
    loop {
        if buffer.spare_capacity_mut().is_empty() {
            buffer.reserve(4096);
        }
        let (offset, room) = (buffer.len() as u64, buffer.spare_capacity_mut().len());
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), offset) {
            // A file made of many records comes in pieces of nearly a page; far less than that is the end, and a second
            // call to hear so would cost a good part of the first.
            Ok(read) if read < 2048 && read < room => return Ok(()),
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        let text: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &text).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(Kept::new(&Paths::default(), path).read(&mut buffer), Ok(text.as_slice()));
    }

    #[test]
    fn a_missing_file_says_so_and_is_found_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(&Paths::default(), folder.path().join("late"));
        let mut buffer = Vec::new();
        assert_eq!(kept.read(&mut buffer), Err(Errno::NOENT));
        std::fs::write(kept.path(), "here").unwrap();
        assert_eq!(kept.read(&mut buffer), Ok(&b"here"[..]));
    }

    #[test]
    fn a_file_that_was_there_is_gone_and_not_merely_missing() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        std::fs::write(folder.path().join("here"), "text\n").unwrap();
        let mut kept = Kept::new(&paths, folder.path().join("here"));
        let mut buffer = Vec::new();
        assert_eq!(kept.read(&mut buffer), Ok(&b"text\n"[..]));
        std::fs::remove_file(kept.path()).unwrap();
        assert_eq!(kept.read(&mut buffer), Err(Errno::NODEV));
        std::fs::write(kept.path(), "another\n").unwrap();
        assert_eq!(kept.read(&mut buffer), Ok(&b"another\n"[..]));
    }

    #[test]
    fn a_reaped_process_is_never_mistaken_for_the_next() {
        #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
        let mut child = std::process::Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut statm = Kept::new(&Paths::default(), format!("/proc/{}/statm", child.id()).into());
        let mut buffer = Vec::new();
        assert!(statm.read_once(&mut buffer).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(statm.read_once(&mut buffer), Err(Errno::SRCH));
    }
}
