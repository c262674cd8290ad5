//! The sentinel: a small child of the daemon that waits for it to die and then undoes what it left behind.
//!
//! It holds the reading end of a pipe whose writing end only the daemon has. When that closes without a word, the daemon
//! was killed: every process in the table of held ones is let go (by pidfd, its start time verified), and everything in
//! the undo log is put back. A daemon that ends in order says so first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::actuators::undo;
use crate::config::settings::HostPaths;
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::helper;
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
    /// Starts one.
    pub fn start(stops: &StopTable, folders: &Folders, paths: &HostPaths) -> io::Result<Sentinel> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let daemon = rustix::process::getpid().as_raw_nonzero().get();
        let (undo_log, roster) = (folders.undo_log(), roster::path_in(&folders.runtime, daemon));
        let words = [undo_log.as_os_str(), roster.as_os_str(), paths.proc.as_os_str()];
        let pid = helper::spawn(SUBCOMMAND, &[read.as_fd(), stops.fd()], &words)?;
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

/// The sentinel's side: `args` are what [`Sentinel::start`] put after the subcommand. Returns the exit code.
pub fn main(args: &[String]) -> u8 {
    // Not named as the daemon is: `killall -9 plimsoll` must leave somebody to undo what the daemon cannot any more. The
    // command line still says whose sentinel it is.
    let _ = rustix::thread::set_name(c"sentinel");
    // A word from the terminal or the service manager is meant for the daemon, which tells us when it is over.
    helper::ignore(&[signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]);
    let Some(([lifeline, table], [undo_log, roster, proc])) = helper::take_over(args) else { return 2 };
    let mut lifeline = File::from(lifeline);
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
    let paths = Paths { proc: PathBuf::from(proc), ..Paths::default() };
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
