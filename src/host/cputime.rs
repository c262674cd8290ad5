//! The CPU clock of another process: all its threads, to the nanosecond, for a tenth of the price of `/proc/PID/stat`.

use std::time::Duration;

use rustix::io::Errno;

/// The kernel gives out no pid above this (`PID_MAX_LIMIT`).
const LARGEST_PID: i32 = 4 * 1024 * 1024;

/// CPU time process `pid` has used. The pid is only a number here: read something of the process that cannot be
/// another's afterwards, and believe this only if that succeeded.
///
/// # Errors
/// `EINVAL` where there is no such process (also for a pid that is not above zero).
pub fn of_process(pid: i32) -> Result<Duration, Errno> {
    // The encoding below would cut off the top of a larger number, and so name somebody else.
    if !(1..=LARGEST_PID).contains(&pid) {
        return Err(Errno::INVAL);
    }
    // The kernel's encoding, as clock_getcpuclockid(3) makes it: the complement of the pid, then "process, scheduler time".
    let clock: libc::clockid_t = (!pid << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec the kernel may write to, and any clock id is allowed: an unknown one is refused.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(Duration::new(time.tv_sec.max(0).unsigned_abs(), time.tv_nsec.clamp(0, 999_999_999) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_clock_moves_and_impossible_pids_are_refused() {
        let own = std::process::id() as i32;
        let before = of_process(own).unwrap();
        let mut sum = 0u64;
        while of_process(own).unwrap() == before {
            sum = std::hint::black_box(sum + 1);
        }
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert_eq!(of_process(pid), Err(Errno::INVAL), "pid {pid}");
        }
    }
}
