//! The sentinel: a small child of the daemon that waits for it to die and then undoes what it left behind.
//!
//! It holds the reading end of a pipe whose writing end only the daemon has. When that closes without a word, the daemon
//! was killed: every process in the table of held ones is let go (by pidfd, its start time verified), and everything in
//! the undo log is put back. A daemon that ends in order says so first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::actuators::undo;
use crate::config::settings::HostPaths;
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::stops::StopTable;
use crate::supervisor::roster;

use super::folders::Folders;

/// How often, and for how long in all, the groups of a dead daemon's workers are looked at.
const GROUP_LOOK: Duration = Duration::from_millis(50);
const GROUP_LOOKS: u32 = 40;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "sentinel";

/// The daemon's side.
#[derive(Debug)]
pub struct Sentinel {
    pid: i32,
    started: Moment,
    lifeline: File,
}

impl Sentinel {
    /// Starts one, as a child process of the same binary in a session of its own.
    #[expect(clippy::disallowed_methods, reason = "one of the two places that start processes")]
    pub fn start(stops: &StopTable, folders: &Folders, paths: &HostPaths) -> io::Result<Sentinel> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let inherited = [read.as_raw_fd(), stops.fd().as_raw_fd()];
        let mut command = Command::new("/proc/self/exe");
        let daemon = rustix::process::getpid().as_raw_nonzero().get();
        command.arg0("plimsoll").arg(SUBCOMMAND).args(inherited.map(|fd| fd.to_string()));
        command.arg(folders.undo_log()).arg(roster::path_in(&folders.runtime, daemon)).arg(&paths.proc);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // SAFETY: between fork and exec only system calls on numbers that were prepared before.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                inherited.iter().try_for_each(|fd| inherit(*fd))
            });
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(|_| io::Error::other("pid out of range"))?;
        Ok(Sentinel { pid, started: Moment::now(), lifeline: File::from(write) })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn started(&self) -> Moment {
        self.started
    }

    /// Tells it that all is undone already; it ends.
    pub fn dismiss(mut self) -> io::Result<()> {
        self.lifeline.write_all(b"x")
    }
}

/// Lets a descriptor survive exec.
fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open in the parent and so in the child.
    let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
}

/// The sentinel's side: `args` are what [`Sentinel::start`] put after the subcommand. Returns the exit code.
pub fn main(args: &[String]) -> u8 {
    let [lifeline, table, undo_log, roster, proc] = args else { return 2 };
    // Not named as the daemon is: `killall -9 plimsoll` must leave somebody to undo what the daemon cannot any more. The
    // command line still says whose sentinel it is.
    let _ = rustix::thread::set_name(c"sentinel");
    let (Ok(lifeline), Ok(table)) = (lifeline.parse::<RawFd>(), table.parse::<RawFd>()) else { return 2 };
    // A word from the terminal or the service manager is meant for the daemon, which tells us when it is over.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        if signal_hook::flag::register(signal, ignored).is_err() {
            return 1;
        }
    }
    // SAFETY: `start` passed these two descriptors on, and nothing else in this process uses their numbers.
    let (mut lifeline, table) = unsafe { (File::from_raw_fd(lifeline), OwnedFd::from_raw_fd(table)) };
    let Ok(table) = StopTable::open(table) else { return 1 };
    let mut word = [0_u8; 1];
    let ended_in_order = loop {
        match lifeline.read(&mut word) {
            Ok(0) => break false,
            Ok(_) => break true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break false,
        }
    };
    if ended_in_order {
        return 0;
    }
    let paths = Paths::from(&HostPaths { proc: PathBuf::from(proc), sys: "/sys".into(), cgroup: "/sys/fs/cgroup".into() });
    // Whoever cannot be let go now is tried again below, as is everybody if the table is in a file.
    let mut late = table.let_all_go_on(&paths);
    let undo_log = Path::new(undo_log);
    // Limits come off before anybody is asked to end: who is slowed is long about it.
    let _ = undo::sweep(undo_log, &paths);
    roster::end_those_that_stop(Path::new(roster), &paths);
    let is_left = || undo_log.exists() || undo::stops_beside(undo_log).exists();
    // Limits come off at once. A group stays on record while somebody is in it: workers that end with the daemon take a
    // moment to do so, those that go on keep theirs until the next start.
    for _ in 0..GROUP_LOOKS {
        let swept = undo::sweep(undo_log, &paths);
        if late.is_empty() && swept.is_ok() && !is_left() {
            break;
        }
        std::thread::park_timeout(GROUP_LOOK);
        if !late.is_empty() {
            late = table.let_all_go_on(&paths);
        }
    }
    0
}
