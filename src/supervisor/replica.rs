//! One replica of a worker: its state, and its present life if it has one.

use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::Worker;
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::group::Group;
use crate::host::process::{self, Delivery, Exit, Process, Root};
use crate::host::procfs::Stat;
use crate::sampling::readings::SlotId;

use super::state::{History, Next, Purpose, State};

#[derive(Debug)]
pub struct Replica {
    pub worker: Arc<Worker>,
    pub index: u32,
    pub state: State,
    pub life: Option<Life>,
    pub(super) history: History,
    /// How often it has been started again.
    pub restarts: u32,
    /// No longer in the settings: forgotten once it is down.
    pub(super) leaving: bool,
    /// What a stop in progress is for, to tell it in the events.
    pub(super) cause: Option<&'static str>,
    pub(super) last_exit: Option<Exit>,
}

/// From one start to the end of the last descendant.
#[derive(Debug)]
pub struct Life {
    pub slot: SlotId,
    pub process: Process,
    pub group: Option<Group>,
    pub started: Moment,
    /// When it is to be replaced for its age, on the steady clock; drawn once.
    pub lifetime_due: Option<Duration>,
    /// Members seen so far that may have left the session: (pid, start time).
    pub(super) known: Vec<(i32, u64)>,
    /// Largest memory of the whole tree that was read.
    pub(super) peak_memory: u64,
    /// Largest CPU time of the whole tree that was read.
    pub(super) cpu: Duration,
    pub(super) memory: Option<u64>,
    pub(super) exit: Option<(Exit, Moment)>,
    pub(super) survivors_killed: u32,
    /// We sent the SIGKILL.
    pub(super) killed_by_us: bool,
}

impl Replica {
    pub(super) fn new(worker: Arc<Worker>, index: u32) -> Replica {
        Replica {
            worker,
            index,
            state: State::Waiting,
            life: None,
            history: History::default(),
            restarts: 0,
            leaving: false,
            cause: None,
            last_exit: None,
        }
    }

    pub fn slot(&self) -> Option<SlotId> {
        self.life.as_ref().map(|life| life.slot)
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Why it cannot take an action now; `None` while it simply runs. `response` knows these words.
    pub fn busy(&self) -> Option<&'static str> {
        match self.state {
            State::Running { .. } => None,
            State::Stopping { purpose: Purpose::Replace, .. } | State::Clearing { next: Next::StartAt(_), .. } => Some("recycling"),
            State::Stopping { .. } | State::Clearing { .. } | State::Failed | State::Stopped => Some("stopping"),
            State::Waiting | State::Backoff { .. } => Some("starting"),
        }
    }
}

impl Life {
    fn root(&self) -> Root {
        let ended = self.exit.map(|(_, at)| at.steady.as_secs().saturating_add(1).saturating_mul(process::ticks_per_second()));
        Root { pid: self.process.pid(), started: self.process.started(), ended }
    }

    /// Everybody who is alive in this life's tree, as handles that cannot reach a stranger. `processes` is a fresh scan.
    ///
    /// # Errors
    /// When one of them could not be looked at for a reason of ours (no descriptor left): it may live.
    pub fn members(&self, paths: &Paths, keeper: i32, processes: &[Stat]) -> std::io::Result<Vec<Process>> {
        let mut found = process::tree_of(self.root(), keeper, &self.known, processes);
        // The group knows those who left the session before they were ever seen.
        if let Some(pids) = self.group.as_ref().and_then(Group::members) {
            let missing = processes.iter().filter(|stat| pids.contains(&stat.pid) && !stat.has_ended());
            let missing: Vec<_> =
                missing.filter(|stat| stat.pid != keeper && !found.iter().any(|member| member.pid == stat.pid)).copied().collect();
            found.extend(missing);
        }
        found.iter().filter_map(|stat| Process::open_seen(paths, stat).transpose()).collect()
    }

    /// Remembers everybody in its tree. `processes` is a fresh scan.
    pub(super) fn meet(&mut self, keeper: i32, processes: &[Stat]) {
        let members = process::tree_of(self.root(), keeper, &self.known, processes);
        for member in members.iter().map(|stat| (stat.pid, stat.started)) {
            if !self.known.contains(&member) {
                self.known.push(member);
            }
        }
    }

    /// Sends a signal to the process that was started, and lets it go on if it is stopped: a signal does not reach a
    /// stopped process before SIGCONT.
    pub fn signal(&self, signal: crate::config::settings::Signal) -> std::io::Result<Delivery> {
        let delivery = self.process.signal(signal)?;
        self.process.signal(crate::config::settings::Signal(libc::SIGCONT))?;
        Ok(delivery)
    }
}
