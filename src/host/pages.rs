//! The daemon's own pages: kept in memory, and few.

use std::io;
use std::path::Path;

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

/// Lets go of the code of shared libraries, most of which only starting ran; what runs again comes back from the page cache.
/// The program's own code stays: what acts in need has to be there before it, and the libraries' share of that runs at every
/// tick. To be called before [`lock`], which would keep all of it. Returns how many bytes of code that was.
///
/// # Errors
/// `/proc/self/maps` cannot be read or understood; then nothing was let go of.
pub fn leave_libraries() -> io::Result<u64> {
    let text = std::fs::read("/proc/self/maps")?;
    let maps = MemoryMaps::from_buf_read(text.as_slice()).map_err(io::Error::other)?;
    let here = leave_libraries as *const () as u64;
    let own = maps.iter().find(|map| (map.address.0..map.address.1).contains(&here)).and_then(|map| file_of(&map.pathname));
    let mut bytes = 0;
    for map in &maps {
        // Never written to, and not to be: what comes back is what was there. Relocated data would not be.
        let is_code = map.perms == MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE;
        let Some(file) = file_of(&map.pathname) else { continue };
        if !is_code || Some(file) == own {
            continue;
        }
        let (Ok(start), Ok(length)) = (usize::try_from(map.address.0), usize::try_from(map.address.1 - map.address.0)) else { continue };
        // SAFETY: the range is a private mapping of a file's code; the kernel reads the same bytes back when they are run.
        if unsafe { rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(start), length, Advice::LinuxDontNeed) }.is_ok() {
            bytes += map.address.1 - map.address.0;
        }
    }
    Ok(bytes)
}

fn file_of(name: &MMapPath) -> Option<&Path> {
    match name {
        MMapPath::Path(path) => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_run_on_when_their_code_was_let_go_of() {
        let bytes = leave_libraries().unwrap();
        // A program linked statically has none.
        assert!(bytes > 0 || cfg!(target_feature = "crt-static"), "no code of a library was found");
        assert!((0.5_f64).sin() > 0.0 && "again".to_owned().len() == 5);
        assert!(leave_libraries().unwrap() >= bytes);
    }

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
