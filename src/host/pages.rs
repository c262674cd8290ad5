//! The daemon's own pages: kept in memory, and few.

use std::io;

use procfs::FromBufRead;
use procfs::process::{MMPermissions, MMapPath, MemoryMaps};
use rustix::mm::{Advice, MlockAllFlags};
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

/// Keeps every page the daemon has touched in memory, now and later: where memory is short it must not wait for the disk to
/// read its own program. Only where there is no bound on it, since with one a later allocation would fail instead. Neither
/// children nor what they execute inherit it.
///
/// # Errors
/// Why not, for people.
pub fn lock() -> Result<(), String> {
    let may = rustix::thread::capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK));
    if !may && let Some(most) = getrlimit(Resource::Memlock).current {
        return Err(format!("no CAP_IPC_LOCK, and RLIMIT_MEMLOCK is {} KiB", most >> 10));
    }
    // On fault: what was never touched is not brought in for it.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(flags).map_err(|errno| errno.to_string())
}

/// One heap for all threads: they allocate little, and each heap of its own would keep pages that nobody uses.
pub fn keep_few() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a parameter of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Lets go of code and constants, most of which only starting used, and of what the heap has left of it; what is used again comes
/// back from the page cache, 64 KiB at a time. To be called before [`lock`], which would keep all of it, and once everything that
/// runs for long has run: what ticks use is back within one, and locked. Returns how many bytes of mappings that was.
///
/// # Errors
/// `/proc/self/smaps` cannot be read or understood; then nothing was let go of.
pub fn leave_start() -> io::Result<u64> {
    let text = std::fs::read("/proc/self/smaps")?;
    let maps = MemoryMaps::from_buf_read(text.as_slice()).map_err(io::Error::other)?;
    let mut bytes = 0;
    for map in &maps {
        // Never written to, and not to be: what comes back is what was there. Relocated data would not be, and is a page of our own.
        let is_as_in_file = matches!(map.pathname, MMapPath::Path(_))
            && map.perms.contains(MMPermissions::READ | MMPermissions::PRIVATE)
            && !map.perms.contains(MMPermissions::WRITE)
            && map.extension.map.get("Anonymous") == Some(&0);
        if !is_as_in_file {
            continue;
        }
        let (Ok(start), Ok(length)) = (usize::try_from(map.address.0), usize::try_from(map.address.1 - map.address.0)) else { continue };
        // SAFETY: the range is a private mapping of a file none of whose pages is our own; the kernel reads the same bytes back when
        // they are used.
        if unsafe { rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(start), length, Advice::LinuxDontNeed) }.is_ok() {
            bytes += map.address.1 - map.address.0;
        }
    }
    drop((maps, text));
    #[cfg(target_env = "gnu")]
    // SAFETY: gives free pages of the heap back to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// What is locked cannot be let go of, and both are about the whole process.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn everything_runs_on_when_its_code_was_let_go_of() {
        static WORDS: [&str; 2] = ["as", "before"];
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = leave_start().unwrap();
        assert!(bytes > 1 << 20, "its own code is larger: {bytes}");
        // Constants, relocated pointers to them, code of libraries, the heap.
        assert_eq!((WORDS.join(" "), (0.5_f64).sin() > 0.4), ("as before".to_owned(), true));
        let sum = std::thread::spawn(|| (1..=100_u64).map(|number| number.to_string()).collect::<String>().len()).join();
        assert_eq!((sum.unwrap(), leave_start().unwrap() >= bytes), (192, true));
    }

    /// Bytes of a process that are locked, in KiB.
    fn locked(pid: u32) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_is_locked_is_not_inherited() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = lock() {
            eprintln!("skipped: {why}");
            return;
        }
        let own = locked(std::process::id());
        #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
        let child = std::process::Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn();
        let mut child = child.unwrap();
        let inherited = locked(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        rustix::mm::munlockall().unwrap();
        assert!(own > 0, "nothing is locked");
        assert_eq!(inherited, 0);
    }
}
