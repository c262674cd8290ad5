//! Whether anybody has a file open: asked of the kernel file by file with a lease, or looked up for many at once in the process table.
//!
//! Must not know what it is asked for.

use std::collections::HashSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags};
use rustix::io::Errno;

use super::beneath::Directory;
use super::paths::Paths;
use super::procfs;

/// `F_SETLEASE` and `F_SETSIG` of fcntl(2), the same on every architecture.
const SET_LEASE: libc::c_int = 1024;
const SET_SIGNAL: libc::c_int = 10;

/// While it lives, nobody else opens the file: whoever tries waits until it is dropped.
#[derive(Debug)]
pub struct Hold {
    _lease: OwnedFd,
}

/// What a lease tells.
#[derive(Debug)]
pub enum Held {
    /// Nobody has the file open.
    Alone(Hold),
    /// Somebody has, for reading or writing, or has it mapped.
    InUse,
    /// We may not ask: the file is another user's, or the filesystem has no leases.
    Unknown,
}

/// Takes a lease on a file, if nobody has it open.
///
/// # Errors
/// `ENOENT` when the name is gone, `ELOOP` when it is a symlink, else what the kernel said to opening it.
pub fn hold(folder: &Directory, name: &CStr) -> Result<Held, Errno> {
    let file = match folder.open_file(name) {
        Ok(file) => file,
        // Another lease, or a file that is being executed.
        Err(Errno::AGAIN | Errno::TXTBSY) => return Ok(Held::InUse),
        Err(Errno::ACCESS | Errno::PERM) => return Ok(Held::Unknown),
        Err(errno) => return Err(errno),
    };
    // Whoever opens it meanwhile makes the kernel send us a signal, by default one that ends us; this one is ignored by default.
    // SAFETY: fcntl with an integer argument reads no memory of ours; the descriptor is open.
    let is_quiet = unsafe { libc::fcntl(file.as_raw_fd(), SET_SIGNAL, libc::SIGURG) } == 0;
    if !is_quiet {
        return Ok(Held::Unknown);
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(file.as_raw_fd(), SET_LEASE, libc::F_WRLCK) } == 0 {
        return Ok(Held::Alone(Hold { _lease: file }));
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        Some(Errno::AGAIN) => Ok(Held::InUse),
        _ => Ok(Held::Unknown),
    }
}

/// Every regular file that some process has open, by device and inode.
#[derive(Debug, Default)]
pub struct OpenFiles {
    open: HashSet<(u64, u64)>,
    /// Processes whose files we may not see.
    pub unseen: u64,
}

impl OpenFiles {
    /// Looks through all processes but this one.
    ///
    /// # Errors
    /// When the process table cannot be listed.
    pub fn read(paths: &Paths) -> Result<OpenFiles, Errno> {
        let root = rustix::fs::open(&paths.proc, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut found = OpenFiles::default();
        let mut room = vec![MaybeUninit::uninit(); 8192];
        let mut inner = vec![MaybeUninit::uninit(); 8192];
        let mut processes = RawDir::new(&root, &mut room);
        while let Some(entry) = processes.next() {
            let Some(pid) = procfs::number::<i32>(entry?.file_name().to_bytes()).filter(|pid| *pid > 0 && *pid != own) else { continue };
            match found.add(&root, pid, &mut inner) {
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(_) => found.unseen += 1,
            }
        }
        Ok(found)
    }

    pub fn has(&self, device: u64, inode: u64) -> bool {
        self.open.contains(&(device, inode))
    }

    fn add(&mut self, root: &OwnedFd, pid: i32, room: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
        let folder = rustix::fs::openat(root, format!("{pid}/fd"), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut descriptors = RawDir::new(&folder, room);
        while let Some(entry) = descriptors.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            // Not synchronised: a file on a dead network mount must not hold us up.
            let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
            let Ok(file) = rustix::fs::statx(&folder, name, flags, StatxFlags::TYPE | StatxFlags::INO) else { continue };
            if FileType::from_raw_mode(file.stx_mode.into()) == FileType::RegularFile {
                self.open.insert((rustix::fs::makedev(file.stx_dev_major, file.stx_dev_minor), file.stx_ino));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Holds `path` open on its standard input.
    #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
    fn reader(path: &std::path::Path) -> Child {
        let file = std::fs::File::open(path).unwrap();
        Command::new("sleep").arg("1000").stdin(file).stdout(Stdio::null()).spawn().unwrap()
    }

    /// Waits for it: processes that other tests start have everything open until they have become another program.
    fn alone(folder: &Directory) -> Hold {
        let mut held = None;
        let is_alone = || {
            held = Some(hold(folder, c"file").unwrap());
            Ok(matches!(held, Some(Held::Alone(_))))
        };
        crate::host::clock::until(std::time::Duration::from_secs(10), is_alone).unwrap();
        let Some(Held::Alone(hold)) = held else { panic!("somebody has it open: {held:?}") };
        hold
    }

    #[test]
    fn a_file_is_in_use_while_another_process_has_it_open() {
        let guard = tempfile::tempdir().unwrap();
        let path = guard.path().canonicalize().unwrap();
        std::fs::write(path.join("file"), "x").unwrap();
        let folder = Directory::open(&path).unwrap();
        let facts = folder.look(c"file").unwrap();
        drop(alone(&folder));
        assert!(!OpenFiles::read(&Paths::default()).unwrap().has(facts.device, facts.inode));

        let mut child = reader(&path.join("file"));
        assert!(matches!(hold(&folder, c"file").unwrap(), Held::InUse));
        assert!(OpenFiles::read(&Paths::default()).unwrap().has(facts.device, facts.inode));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(alone(&folder));
        assert_eq!(hold(&folder, c"gone").map(|_| ()).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn whoever_opens_a_held_file_waits_and_we_live_on() {
        let guard = tempfile::tempdir().unwrap();
        let path = guard.path().canonicalize().unwrap();
        std::fs::write(path.join("file"), "x").unwrap();
        let folder = Directory::open(&path).unwrap();
        let held = alone(&folder);
        let name = path.join("file");
        let opener = std::thread::spawn(move || std::fs::read_to_string(name));
        // It asks for the file, and the kernel tells us so: a signal that does not end us.
        let breaking = || Ok(std::fs::read_to_string("/proc/locks")?.lines().any(|line| line.contains("BREAKING")));
        assert!(crate::host::clock::until(std::time::Duration::from_secs(10), breaking).unwrap(), "nobody has asked for it");
        drop(held);
        assert_eq!(opener.join().unwrap().unwrap(), "x");
    }
}
