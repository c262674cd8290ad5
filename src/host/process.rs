//! Processes held by pidfd, so that no call ever reaches a stranger who was given a recycled pid.
//!
//! A start time alone is no proof: it is counted in ticks of 10 ms, and a number can be given away within one. Where the
//! kernel gives each process an inode of its own (`pidfs`, since 6.9) that is part of the identity.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::paths::Paths;
use super::procfs::Stat;
use super::{cputime, scan};
use crate::config::settings::Signal;

/// Which process is meant, in words that outlive a descriptor: in the undo log, in the table of stopped processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub started: u64,
    /// Never given twice while the machine runs; 0 where the kernel gives none.
    pub inode: u64,
}

/// A process that cannot be mistaken for another: the descriptor names this very one, whatever becomes of its number.
#[derive(Debug)]
pub struct Process {
    identity: ProcessId,
    pidfd: OwnedFd,
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Delivered,
    /// The process has ended.
    Gone,
}

/// `struct pidfd_info` of `linux/pidfd.h`, as Linux 6.15 has it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xff, 11, struct pidfd_info)`, with the size above.
const PIDFD_GET_INFO: libc::Ioctl = (3 << 30 | (size_of::<PidfdInfo>() << 16) | 0xff << 8 | 11) as libc::Ioctl;

/// Nice value and scheduling policy (`SCHED_OTHER` …) of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Priority {
    pub nice: i32,
    pub policy: i32,
}

impl Priority {
    /// Runs only when nothing else wants the processor.
    pub const IDLE: Priority = Priority { nice: 19, policy: libc::SCHED_IDLE };
}

/// `statfs` says this of a pidfd whose inode is the process's own.
const PIDFS: rustix::fs::FsWord = 0x5049_4446;

impl Process {
    /// Opens the process that was meant. `None`: it has ended, or the number belongs to another one now.
    pub fn open(paths: &Paths, meant: ProcessId) -> io::Result<Option<Process>> {
        Ok(Process::open_number(paths, meant.pid)?.map(|(process, _)| process).filter(|process| process.identity == meant))
    }

    /// One that was held already by whoever we were before. `None`: the descriptor is of no process.
    pub fn handed_over(identity: ProcessId, pidfd: OwnedFd) -> Option<Process> {
        let process = Process { identity, pidfd };
        // Ended or not: any other descriptor is refused.
        process.is_here().is_ok().then_some(process)
    }

    /// Opens a child of ours that was not reaped yet: its number cannot have been given away.
    pub fn open_child(paths: &Paths, pid: i32) -> io::Result<Option<Process>> {
        Ok(Process::open_number(paths, pid)?.map(|(process, _)| process))
    }

    /// Opens a process found by a look at all of them. A stranger who was given its number since, even within the same
    /// tick, has neither its parent nor its session; the process itself may have changed one of them, not both at once.
    pub fn open_seen(paths: &Paths, seen: &Stat) -> io::Result<Option<Process>> {
        let is_it = |now: &Stat| now.started == seen.started && (now.ppid == seen.ppid || now.session == seen.session);
        Ok(Process::open_number(paths, seen.pid)?.filter(|(_, now)| is_it(now)).map(|(process, _)| process))
    }

    /// Opens what a frozen group lists as its member. Only if the group still lists the number afterwards it was the
    /// member: nobody is born in a frozen group, and a stranger is in another.
    pub fn open_listed(paths: &Paths, pid: i32) -> io::Result<Option<Process>> {
        Ok(Process::open_number(paths, pid)?.map(|(process, _)| process))
    }

    fn open_number(paths: &Paths, pid: i32) -> io::Result<Option<(Process, Stat)>> {
        let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = match scan::process(paths, pid, &mut Vec::new()) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let has_own_inode = rustix::fs::fstatfs(&pidfd).is_ok_and(|about| about.f_type == PIDFS);
        let inode = if has_own_inode { rustix::fs::fstat(&pidfd)?.st_ino } else { 0 };
        let process = Process { identity: ProcessId { pid, started: stat.started, inode }, pidfd };
        // Not reaped after its text was read: the text was its own.
        Ok(process.is_here()?.then_some((process, stat)))
    }

    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Names it to the kernel.
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Clock ticks since boot.
    pub fn started(&self) -> u64 {
        self.identity.started
    }

    pub fn identity(&self) -> ProcessId {
        self.identity
    }

    /// Sends `signal` to exactly this process.
    pub fn signal(&self, signal: Signal) -> io::Result<Delivery> {
        // SAFETY: the descriptor is open for as long as `self` lives; a null siginfo asks the kernel to fill it in as for
        // kill(2). No memory is shared.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal.0, std::ptr::null::<libc::siginfo_t>(), 0) };
        if result == 0 {
            return Ok(Delivery::Delivered);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(Delivery::Gone),
            error => Err(error),
        }
    }

    /// True until it is reaped; so long its number is its own.
    pub fn is_here(&self) -> io::Result<bool> {
        match self.signal(Signal(0)) {
            Ok(delivery) => Ok(delivery == Delivery::Delivered),
            // Somebody we may not signal is there.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// True once it has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// How one that is not our child has ended, where the kernel tells (Linux 6.15, once its parent has reaped it).
    pub fn exit_of_stranger(&self) -> ExitStatus {
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: the descriptor is open; the kernel writes at most as many bytes as the number of the call says.
        let result = unsafe { libc::ioctl(self.pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if result < 0 || info.mask & PIDFD_INFO_EXIT == 0 {
            return ExitStatus::Unknown;
        }
        if libc::WIFSIGNALED(info.exit_code) {
            ExitStatus::Signal(libc::WTERMSIG(info.exit_code))
        } else {
            ExitStatus::Code(libc::WEXITSTATUS(info.exit_code))
        }
    }

    /// For what the kernel offers by number only. The number is the process's own before and after the call, and then it was
    /// in between; else the answer is `ESRCH`. What is left: it is reaped and its number given to a stranger, both between
    /// the first look and the call, microseconds in which the kernel would have to give out every other number there is.
    fn by_number<T>(&self, call: impl FnOnce(i32) -> io::Result<T>) -> io::Result<T> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        if !self.is_here()? {
            return Err(gone());
        }
        let result = call(self.pid());
        if self.is_here()? { result } else { Err(gone()) }
    }

    /// CPU time it has used, with that of the children it has waited for.
    pub fn cpu(&self, paths: &Paths) -> io::Result<Duration> {
        self.by_number(|pid| {
            let waited = scan::process(paths, pid, &mut Vec::new())?.waited;
            Ok(cputime::of_process(pid)? + Duration::from_secs_f64(waited as f64 / ticks_per_second().max(1) as f64))
        })
    }

    pub fn priority(&self) -> io::Result<Priority> {
        self.by_number(|pid| {
            // SAFETY: takes a number only.
            let policy = unsafe { libc::sched_getscheduler(pid) };
            if policy < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Priority { nice: rustix::process::getpriority_process(Pid::from_raw(pid))?, policy })
        })
    }

    /// Only among the policies that have no priority of their own: what runs in real time is refused.
    pub fn set_priority(&self, priority: Priority) -> io::Result<()> {
        let is_ordinary = |policy: i32| [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&(policy & !RESET_ON_FORK));
        if !is_ordinary(priority.policy) || !is_ordinary(self.priority()?.policy) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it runs in real time"));
        }
        self.by_number(|pid| {
            // SAFETY: sched_param is plain data for which all zeros is the value these policies ask for.
            let param: libc::sched_param = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer is to a live local.
            if unsafe { libc::sched_setscheduler(pid, priority.policy, &param) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(rustix::process::setpriority_process(Pid::from_raw(pid), priority.nice)?)
        })
    }
}

/// Added to a scheduling policy whose bearer's children get the ordinary one (`SCHED_RESET_ON_FORK`).
const RESET_ON_FORK: i32 = 0x4000_0000;

/// Where a tree began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    pub pid: i32,
    pub started: u64,
    /// Once the root itself has been reaped, its number may be given to a stranger. Whoever started later than this
    /// (clock ticks since boot) then belongs to the tree only as the child of a member, not by its session; nor does
    /// whoever was not handed to `keeper`, as all of the root's descendants were that had no other parent in the tree.
    pub ended: Option<u64>,
}

/// The living members of the tree that began with `root`: the root itself, its descendants, whoever is in its session,
/// everybody in `known` who is still the same process, and their descendants. `keeper` (the daemon itself) is never one:
/// orphans are handed to it, and it must not take its other children for theirs.
pub fn tree_of(root: Root, keeper: i32, known: &[(i32, u64)], processes: &[Stat]) -> Vec<Stat> {
    let is_root = |process: &Stat| root.ended.is_none() && (process.pid, process.started) == (root.pid, root.started);
    let belongs = |process: &Stat| {
        is_root(process)
            || (process.session == root.pid && root.ended.is_none_or(|ended| process.started <= ended && process.ppid == keeper))
            // Who still has a parent in the tree is found as its child; who has not was handed to us.
            || (process.ppid == keeper && known.contains(&(process.pid, process.started)))
    };
    // Even one that began in the same tick.
    let has_its_number = |process: &Stat| process.pid == root.pid && !is_root(process);
    // A stranger with the root's number means that nobody was left in its session when the number was given away.
    let number_recycled = processes.iter().any(has_its_number);
    let mut members: Vec<Stat> = processes
        .iter()
        .filter(|process| {
            process.pid != keeper && belongs(process) && !has_its_number(process) && !(number_recycled && process.session == root.pid)
        })
        .copied()
        .collect();
    // Children of members join until nobody new is found; the list is short and the depth small.
    let mut next = 0;
    while let Some(parent) = members.get(next).copied() {
        for process in processes {
            // One that is older than its parent is the child of whoever had the number before.
            let is_child = process.ppid == parent.pid && process.started >= parent.started;
            if is_child && process.pid != keeper && !members.iter().any(|member| member.pid == process.pid) {
                members.push(*process);
            }
        }
        next += 1;
    }
    members.retain(|member| !member.has_ended());
    members
}

/// Clock ticks in a second, the unit of start times.
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

/// How one of our children ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub pid: i32,
    pub status: ExitStatus,
    /// User and system time of it and of the descendants it waited for.
    pub cpu: Duration,
    /// The largest resident set it or one of the descendants it waited for has had, in bytes.
    pub peak_memory: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// It was not our child, and its parent alone was told.
    Unknown,
}

impl ExitStatus {
    /// The shell's convention: 128+N for a signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
            ExitStatus::Unknown => 1,
        }
    }

    pub fn is_clean(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

/// Reaps one ended child, ours or an orphan that was handed to us; `None` when there is none at the moment. Only one
/// thread may call this, and nobody else in the program may wait for a process.
pub fn reap_one() -> Option<Exit> {
    let mut status = 0;
    // SAFETY: rusage is plain data for which all zeros is a value; the kernel fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right type.
        let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
        if pid > 0 {
            let status = if libc::WIFEXITED(status) {
                ExitStatus::Code(libc::WEXITSTATUS(status))
            } else if libc::WIFSIGNALED(status) {
                ExitStatus::Signal(libc::WTERMSIG(status))
            } else {
                continue;
            };
            let time = |tv: libc::timeval| {
                Duration::from_secs(u64::try_from(tv.tv_sec).unwrap_or(0)) + Duration::from_micros(u64::try_from(tv.tv_usec).unwrap_or(0))
            };
            let peak_memory = u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024);
            return Some(Exit { pid, status, cpu: time(usage.ru_utime) + time(usage.ru_stime), peak_memory });
        }
        if pid == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

/// Kills a child that [`super::spawn::spawn`] has just started, and whatever it has started since. Only while it has not been reaped.
pub fn kill_session(child: i32) {
    if let Some(group) = Pid::from_raw(child) {
        // One that has ended by itself is what is wanted.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// Makes orphans of our workers our children, so that they can be found and reaped. PID 1 has that duty by nature.
pub fn become_subreaper() -> io::Result<()> {
    // Any non-zero pid switches it on; the value itself is not used by the kernel.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// True when orphans among our descendants are handed to us.
pub fn is_subreaper() -> bool {
    rustix::process::getpid().is_init() || rustix::process::child_subreaper().is_ok_and(|set| set.is_some())
}

/// The last descriptors there are, kept for the thread that looks and acts: to read who is to be ended, to write a limit
/// and to start a worker takes a few, and they must be there when a flood of clients has taken all others.
///
/// Kept by the soft limit, which is raised over them only while that thread is awake.
#[derive(Debug)]
pub struct DescriptorReserve {
    /// All that we may have. `None`: there is no limit, or it may not be moved.
    all: Option<(u64, u64)>,
    reserve: u64,
    /// The (soft, hard) limit that was found: what workers get back.
    pub found: Option<(u64, u64)>,
}

/// What one look and one action need at once, with room to spare.
const RESERVE: u64 = 32;

impl DescriptorReserve {
    /// Raises the soft limit to the hard one, and keeps the last of it back.
    pub fn take() -> DescriptorReserve {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let found = limit.current.zip(limit.maximum);
        let all = found.map(|(_, hard)| (hard.min(65_536), hard));
        let reserve = DescriptorReserve { all, reserve: all.map_or(0, |(all, _)| RESERVE.min(all / 4)), found };
        reserve.lend();
        reserve
    }

    /// From now on everybody may open all there are.
    pub fn lend(&self) {
        self.limit_to(0);
    }

    /// From now on nobody may open the last of them; what is open stays open.
    pub fn keep(&self) {
        self.limit_to(self.reserve);
    }

    fn limit_to(&self, held_back: u64) {
        let Some((all, hard)) = self.all else { return };
        let limit = rustix::process::Rlimit { current: Some(all.saturating_sub(held_back)), maximum: Some(hard) };
        // Refused only where somebody has lowered the hard limit since: then there is nothing to keep.
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    }
}

/// That of another process.
pub fn oom_score_adj_of(paths: &Paths, pid: i32) -> Option<i32> {
    std::fs::read_to_string(paths.proc.join(pid.to_string()).join("oom_score_adj")).ok()?.trim().parse().ok()
}

/// Whether processes of any user may be signalled: root has this as a rule, not in every container, and others may be given it.
pub fn may_signal_anybody() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::KILL))
}

/// Our own `oom_score_adj`.
pub fn own_oom_score_adj(paths: &Paths) -> Option<i32> {
    std::fs::read_to_string(paths.proc.join("self/oom_score_adj")).ok()?.trim().parse().ok()
}

/// Tries to make the daemon a less likely victim of the OOM killer; lowering needs `CAP_SYS_RESOURCE`.
pub fn set_own_oom_score_adj(paths: &Paths, value: i32) -> io::Result<()> {
    File::options().write(true).open(paths.proc.join("self/oom_score_adj"))?.write_all(value.to_string().as_bytes())
}

/// Gives the daemon itself a better nice value, where it may. Returns what its workers are to begin with: the value it was
/// started with, or the ordinary one if that was better.
pub fn take_nice(value: i32) -> i32 {
    let found = rustix::process::getpriority_process(None).unwrap_or(0);
    if found > value {
        // Nobody waits for it; it is a matter of comfort.
        let _ = rustix::process::setpriority_process(None, value);
    }
    found.max(0)
}

/// Finds out by doing it whether a worse nice value can be taken back, on a child of ours that was not reaped yet.
pub fn can_take_nice_back(child: i32) -> bool {
    let child = Pid::from_raw(child);
    let Ok(before) = rustix::process::getpriority_process(child) else { return false };
    let set = |value| rustix::process::setpriority_process(child, value).is_ok();
    set(before + 1) && set(before)
}

/// The name of a signal, for people.
pub fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSTKFLT => "SIGSTKFLT",
        libc::SIGCONT => "SIGCONT",
        libc::SIGSTOP => "SIGSTOP",
        libc::SIGTSTP => "SIGTSTP",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGWINCH => "SIGWINCH",
        libc::SIGSYS => "SIGSYS",
        libc::SIGCHLD => "SIGCHLD",
        libc::SIGTTIN => "SIGTTIN",
        libc::SIGTTOU => "SIGTTOU",
        libc::SIGURG => "SIGURG",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGIO => "SIGIO",
        libc::SIGPWR => "SIGPWR",
        other => real_time_name(other).unwrap_or("another signal"),
    }
}

/// As the settings call it. The first of them is not the same in every C library.
fn real_time_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGRTMIN",
        "SIGRTMIN+1",
        "SIGRTMIN+2",
        "SIGRTMIN+3",
        "SIGRTMIN+4",
        "SIGRTMIN+5",
        "SIGRTMIN+6",
        "SIGRTMIN+7",
        "SIGRTMIN+8",
        "SIGRTMIN+9",
        "SIGRTMIN+10",
        "SIGRTMIN+11",
        "SIGRTMIN+12",
        "SIGRTMIN+13",
        "SIGRTMIN+14",
        "SIGRTMIN+15",
        "SIGRTMIN+16",
        "SIGRTMIN+17",
        "SIGRTMIN+18",
        "SIGRTMIN+19",
        "SIGRTMIN+20",
        "SIGRTMIN+21",
        "SIGRTMIN+22",
        "SIGRTMIN+23",
        "SIGRTMIN+24",
        "SIGRTMIN+25",
        "SIGRTMIN+26",
        "SIGRTMIN+27",
        "SIGRTMIN+28",
        "SIGRTMIN+29",
        "SIGRTMIN+30",
    ];
    NAMES.get(usize::try_from(signal - libc::SIGRTMIN()).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_holds_descendants_session_and_the_reparented_but_not_strangers() {
        let process = |pid, ppid, session| Stat {
            pid,
            state: b'S',
            ppid,
            session,
            busy: 0,
            waited: 0,
            threads: 1,
            started: u64::try_from(pid).unwrap(),
        };
        let processes = [
            process(1, 0, 1),
            process(10, 1, 10),  // the daemon
            process(20, 10, 20), // the worker
            process(21, 20, 20),
            process(22, 21, 99), // left the session, still a descendant
            process(23, 10, 20), // reparented to the daemon, still in the session
            process(24, 10, 77), // reparented and left the session: known from before
            process(25, 24, 77),
            process(30, 10, 30), // another worker
        ];
        let root = Root { pid: 20, started: 20, ended: None };
        let mut pids: Vec<i32> = tree_of(root, 10, &[(24, 24)], &processes).iter().map(|stat| stat.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [20, 21, 22, 23, 24, 25]);
        let strangers = [process(1, 0, 1), process(24, 1, 77), process(20, 10, 10)];
        let ended = Root { ended: Some(30), ..root };
        assert_eq!(tree_of(ended, 10, &[(24, 24), (20, 20)], &strangers), [], "nor is one of the same tick with another parent");
        assert!(!tree_of(root, 10, &[(24, 999)], &processes).iter().any(|stat| stat.pid == 24), "a recycled pid is not the known one");
        // The root has ended at tick 20; number 20 went to a stranger who began a session of that number.
        let ended = Root { ended: Some(30), ..root };
        let young = [process(1, 0, 1), process(23, 10, 20), process(26, 1, 20)];
        let pids: Vec<i32> = tree_of(ended, 10, &[], &young).iter().map(|stat| stat.pid).collect();
        assert_eq!(pids, [23], "an orphan of ours, not one of a stranger who had the number after the root");
        let ended = Root { ended: Some(20), ..root };
        let strangers = [process(1, 0, 1), process(20, 1, 20), process(26, 20, 20)].map(|stat| Stat { started: 500, ..stat });
        assert_eq!(tree_of(ended, 10, &[], &strangers), []);
        assert_eq!(tree_of(ended, 10, &[], &strangers[2..]), [], "nor are those who outlive the stranger");
    }
}
