//! When the daemon's threads run: owns their place before or behind the threads of others. Touches the calling thread alone.
//! Must not change any other process, and what is started from a thread that runs first does not inherit it.

use std::io;

use super::cgroupfs::{Layout, Own, Version};

/// Added to a policy whose bearer's children and threads get the ordinary one.
const RESET_ON_FORK: i32 = 0x4000_0000;

/// The kernel's own default: how late a timer may fire so that wake-ups fall together.
const ORDINARY_SLACK_NANOSECONDS: libc::c_ulong = 50_000;

/// From now on the calling thread runs before all that is ordinary: with four busy processes on two processors one that
/// wakes every 5 ms was up to 27 ms late at nice -10, up to 15 at -20 with a short slice, and 1.1 ms like this. The lowest
/// of the real-time priorities, so that everything that is real time for a better reason comes first.
///
/// # Errors
/// Why not, for people. The thread is then where it was.
pub fn run_first(layout: &Layout) -> Result<(), String> {
    // Some kernels (`CONFIG_RT_GROUP_SCHED`) let nobody turn the CPU controller of a v2 tree on while a real-time thread is
    // in a group below its root. Where it is on already they refuse us, which does no harm.
    let on_v1 = layout.cpu.as_ref().is_some_and(|own| own.version == Version::V1);
    // The root alone has no type.
    let without = |own: &Own| own.dir.join("cgroup.type").exists() && !own.dir.join("cpu.max").exists();
    if !on_v1 && layout.unified.as_ref().is_some_and(without) {
        return Err("the CPU controller is not on for our group, and on some kernels could not be turned on any more".to_owned());
    }
    // SAFETY: sched_param is plain data for which all zeros is a valid value.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    // SAFETY: the pointer is to a live local; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | RESET_ON_FORK, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().to_string()),
    }
}

/// How far a process steps behind all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// It runs when nobody else wants the processor or the disk.
    Everybody,
    /// It is slower than others but goes on: for who holds a lock that somebody in front of it may wait for.
    Ordinary,
}

/// As `ioprio_set(2)` takes it: the class above the level.
const IO_IDLE: libc::c_int = 3 << 13;
const IO_LAST_OF_ORDINARY: libc::c_int = (2 << 13) | 7;

/// From now on the calling process, which has one thread yet, and what it starts run behind others. Nobody is refused that; where
/// the kernel does not know it, it runs as it did.
pub fn step_behind(behind: Behind) {
    let (nice, io) = match behind {
        Behind::Everybody => (19, IO_IDLE),
        Behind::Ordinary => (5, IO_LAST_OF_ORDINARY),
    };
    // SAFETY: sched_param is plain data for which all zeros is a valid value.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: takes plain numbers about the calling process; the pointer is to a live local.
    unsafe {
        if behind == Behind::Everybody {
            libc::sched_setscheduler(0, libc::SCHED_IDLE, &param);
        }
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        libc::syscall(libc::SYS_ioprio_set, 1, 0, io);
    }
}

/// Starts threads that no signal is ever delivered to: they are all the main thread's to hear. A signal that another thread takes
/// while the daemon becomes another program would be lost.
pub fn deaf_to_signals<T>(spawn: impl FnOnce() -> T) -> T {
    // A thread inherits what is blocked where it is started. Where that cannot be, it hears them, as it did before.
    let blocked = super::spawn::BlockedSignals::all();
    let started = spawn();
    drop(blocked);
    started
}

/// Gives a process that was forked from a thread that runs first back what the flag above does not: its timers' slack, which
/// is none in real time. Async-signal-safe.
pub fn ordinary_slack() {
    // SAFETY: takes and answers plain numbers, about the calling thread alone.
    unsafe {
        if libc::prctl(libc::PR_GET_TIMERSLACK) == 0 {
            libc::prctl(libc::PR_SET_TIMERSLACK, ORDINARY_SLACK_NANOSECONDS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_started_from_a_thread_that_runs_first_is_ordinary() {
        let outcome = std::thread::spawn(|| {
            run_first(&Layout::none()).map(|()| {
                let shown = "exec cat /proc/self/stat /proc/$$/timerslack_ns";
                #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
                let mut command = std::process::Command::new("sh");
                // SAFETY: two system calls between fork and exec.
                unsafe {
                    std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                        ordinary_slack();
                        Ok(())
                    });
                }
                // SAFETY: takes a number only.
                let own = unsafe { libc::sched_getscheduler(0) };
                let told = command.args(["-c", shown]).output().unwrap();
                (own, String::from_utf8_lossy(&told.stdout).into_owned())
            })
        })
        .join()
        .unwrap();
        let (own, told) = match outcome {
            Ok(seen) => seen,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        assert_eq!(own, libc::SCHED_RR | RESET_ON_FORK);
        let (stat, slack) = told.trim_end().rsplit_once('\n').unwrap();
        // Field 41: the policy.
        let policy = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(38).unwrap();
        assert_eq!((policy, slack), ("0", "50000"));
    }
}
