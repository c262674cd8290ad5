//! One pass over all processes.

use std::ffi::CStr;
use std::time::Duration;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::clock::Moment;
use super::paths::Paths;
use super::procfs::{self, Stat};

/// Reads `/proc/PID/stat` of every process into `found`, in the order of their pids. Processes that end meanwhile, or
/// that may not be looked at, are left out. Gives how long it took: it is the most expensive look there is.
///
/// # Errors
/// When `/proc` itself cannot be listed.
pub fn processes(paths: &Paths, found: &mut Vec<Stat>, scratch: &mut Vec<u8>) -> Result<Duration, Errno> {
    let begun = Moment::now();
    found.clear();
    let root = rustix::fs::open(&paths.proc, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&root)? {
        let Some(pid) = pid_of(entry?.file_name()) else { continue };
        if let Some(stat) = read_stat(&root, pid, scratch) {
            found.push(stat);
        }
    }
    found.sort_unstable_by_key(|stat| stat.pid);
    Ok(Moment::now().since(begun))
}

/// `/proc/PID/stat` of one process; `None` when it has ended or may not be looked at.
pub fn process(paths: &Paths, pid: i32, scratch: &mut Vec<u8>) -> Option<Stat> {
    let root = rustix::fs::open(&paths.proc, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    read_stat(&root, pid, scratch)
}

/// How many files process `pid` has open.
///
/// # Errors
/// `ENOENT` or `ESRCH` when it has ended, `EACCES` when it may not be looked at.
pub fn descriptors(paths: &Paths, pid: i32) -> Result<u64, Errno> {
    let folder = paths.proc.join(format!("{pid}/fd"));
    // Since Linux 6.2 the size of the folder is their number.
    let size = rustix::fs::stat(&folder)?.st_size;
    if let Some(count) = u64::try_from(size).ok().filter(|count| *count > 0 && paths.is_live()) {
        return Ok(count);
    }
    let open = rustix::fs::open(&folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut count = 0;
    for entry in Dir::read_from(&open)? {
        count += u64::from(!entry?.file_name().to_bytes().starts_with(b"."));
    }
    Ok(count)
}

fn pid_of(name: &CStr) -> Option<i32> {
    procfs::number(name.to_bytes()).filter(|pid| *pid > 0)
}

fn read_stat(root: &impl std::os::fd::AsFd, pid: i32, scratch: &mut Vec<u8>) -> Option<Stat> {
    use std::io::Write;
    // "2147483647/stat": no allocation for each of hundreds of processes.
    let mut name = [0u8; 24];
    write!(&mut name[..], "{pid}/stat").ok()?;
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    let file = rustix::fs::openat(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    scratch.clear();
    scratch.reserve(1024);
    rustix::io::read(&file, rustix::buffer::spare_capacity(scratch)).ok()?;
    // The pid within a machine that is a folder is the folder's name.
    procfs::parse_stat(scratch).map(|stat| Stat { pid, ..stat })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_among_all_processes_once_and_in_order() {
        let (mut found, mut scratch) = (Vec::new(), Vec::new());
        processes(&Paths::default(), &mut found, &mut scratch).unwrap();
        let own = std::process::id() as i32;
        assert_eq!(found.iter().filter(|stat| stat.pid == own).count(), 1);
        assert!(found.is_sorted_by(|a, b| a.pid < b.pid));
        let alone = process(&Paths::default(), own, &mut scratch).unwrap();
        assert!(found.iter().any(|stat| stat.pid == own && stat.started == alone.started && stat.ppid == alone.ppid));
    }

    #[test]
    fn open_files_are_counted() {
        let before = descriptors(&Paths::default(), std::process::id() as i32).unwrap();
        assert!(before >= 3, "{before}");
        assert!(descriptors(&Paths::default(), i32::MAX).is_err());
    }
}
