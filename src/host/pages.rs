//! The daemon's own pages: kept in memory, and few.

use rustix::mm::MlockAllFlags;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a process that are locked, in KiB.
    fn locked(pid: u32) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_is_locked_is_not_inherited() {
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
