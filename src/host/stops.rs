//! A table of the processes that are held stopped, in memory shared with the sentinel: should the daemon be killed, the
//! sentinel lets every one of them go on. One entry costs two memory writes, no system call.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::paths::Paths;
use super::process::{Process, ProcessId};
use crate::config::settings::Signal;

/// As many processes can be held stopped at the same time. A page is only used once it is written to.
pub const CAPACITY: usize = 8192;

#[repr(C)]
struct Entry {
    /// 0: free. Written last when an entry is made, first when it is cleared.
    pid: AtomicI32,
    started: AtomicU64,
    inode: AtomicU64,
}

const BYTES: usize = CAPACITY * std::mem::size_of::<Entry>();

/// The table, mapped into this process.
pub struct StopTable {
    fd: OwnedFd,
    entries: *mut Entry,
}

// SAFETY: the mapping lives as long as the value and every access is atomic.
unsafe impl Send for StopTable {}
// SAFETY: as above.
unsafe impl Sync for StopTable {}

/// The place of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

impl StopTable {
    /// A new, empty table in a file, which is there still when the daemon and the sentinel are both killed.
    pub fn create_at(path: &Path) -> io::Result<StopTable> {
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // All of it now: writing to a hole on a disk that has become full would end the daemon (SIGBUS).
        if let Err(error) = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES as u64) {
            let _ = std::fs::remove_file(path);
            return Err(error.into());
        }
        StopTable::map(file.into())
    }

    /// The table a dead daemon left in a file; `None` where there is none. One that is too short was never used.
    pub fn open_at(path: &Path) -> io::Result<Option<StopTable>> {
        match File::options().read(true).write(true).open(path) {
            Ok(file) => match StopTable::open(file.into()) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => std::fs::remove_file(path).map(|()| None),
                table => table.map(Some),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new, empty table in memory, which dies with the last who holds it.
    pub fn create() -> io::Result<StopTable> {
        let fd = rustix::fs::memfd_create("plimsoll-stops", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, BYTES as u64)?;
        StopTable::map(fd)
    }

    /// The table another process made.
    pub fn open(fd: OwnedFd) -> io::Result<StopTable> {
        if rustix::fs::fstat(&fd)?.st_size < BYTES as i64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a table of stopped processes"));
        }
        StopTable::map(fd)
    }

    fn map(fd: OwnedFd) -> io::Result<StopTable> {
        // SAFETY: a fresh shared mapping of a file that is at least BYTES long and never shrinks (only `create` sizes it);
        // all zeros is a valid Entry.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)? };
        Ok(StopTable { fd, entries: address.cast() })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn all(&self) -> &[Entry] {
        // SAFETY: the mapping holds CAPACITY entries for as long as `self` lives; every field is atomic.
        unsafe { std::slice::from_raw_parts(self.entries, CAPACITY) }
    }

    /// Notes that a process is about to be stopped. `None` when the table is full: then it must not be.
    pub fn note(&self, process: ProcessId) -> Option<Ticket> {
        let (place, entry) = self.all().iter().enumerate().find(|(_, entry)| entry.pid.load(Ordering::Relaxed) == 0)?;
        entry.started.store(process.started, Ordering::Relaxed);
        entry.inode.store(process.inode, Ordering::Relaxed);
        entry.pid.store(process.pid, Ordering::Release);
        Some(Ticket(place))
    }

    /// Notes that a process goes on.
    pub fn clear(&self, ticket: Ticket) {
        if let Some(entry) = self.all().get(ticket.0) {
            entry.pid.store(0, Ordering::Release);
        }
    }

    /// Every process that is held stopped.
    pub fn held(&self) -> Vec<ProcessId> {
        let read = |entry: &Entry| {
            let pid = entry.pid.load(Ordering::Acquire);
            let (started, inode) = (entry.started.load(Ordering::Relaxed), entry.inode.load(Ordering::Relaxed));
            (pid > 0).then_some(ProcessId { pid, started, inode })
        };
        self.all().iter().filter_map(read).collect()
    }

    /// Lets everybody in it go on: for the day when whoever stopped them is no more. Returns what went wrong.
    pub fn let_all_go_on(&self, paths: &Paths) -> Vec<String> {
        let go_on = |meant: ProcessId| match Process::open(paths, meant) {
            Ok(Some(process)) => process.signal(Signal(libc::SIGCONT)).err(),
            // One that has ended needs nothing any more.
            Ok(None) => None,
            Err(error) => Some(error),
        };
        self.held().into_iter().filter_map(|meant| Some(format!("pid {}: {}", meant.pid, go_on(meant)?))).collect()
    }
}

impl Drop for StopTable {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nobody borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.entries.cast(), BYTES) };
    }
}

impl std::fmt::Debug for StopTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopTable").field("held", &self.held()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_in_a_file_outlives_who_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undo-1.stops");
        assert!(StopTable::open_at(&path).unwrap().is_none());
        let one = ProcessId { pid: 10, started: 100, inode: 1000 };
        StopTable::create_at(&path).unwrap().note(one).unwrap();
        assert_eq!(StopTable::open_at(&path).unwrap().unwrap().held(), [one]);
        std::fs::write(&path, "cut off").unwrap();
        assert!(StopTable::open_at(&path).unwrap().is_none() && !path.exists());
    }

    #[test]
    fn another_mapping_sees_what_is_held_and_a_full_table_says_so() {
        let table = StopTable::create().unwrap();
        let other = StopTable::open(table.fd().try_clone_to_owned().unwrap()).unwrap();
        let [one, two] = [10, 20].map(|pid| ProcessId { pid, started: 100, inode: 1000 + pid.unsigned_abs() as u64 });
        let first = table.note(one).unwrap();
        table.note(two).unwrap();
        assert_eq!(other.held(), [one, two]);
        table.clear(first);
        assert_eq!(other.held(), [two]);
        for pid in 1..CAPACITY {
            assert!(table.note(ProcessId { pid: i32::try_from(pid).unwrap(), ..one }).is_some());
        }
        assert_eq!(table.note(one), None);
    }
}
