//! One copy of a replica of a worker: its place, and its present life if it has one. Most replicas have one copy; one that is being
//! replaced with overlap has two ([`super::slot`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::Worker;
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::foreign::ForeignGroup;
use crate::host::group::Group;
use crate::host::process::{self, Delivery, Exit, Process, Root};
use crate::host::procfs::Stat;
use crate::host::sockets::{HeldLock, NotifySocket};
use crate::sampling::readings::SlotId;

use super::adoption::Scene;
use super::health::Pulse;
use super::readiness::Check;
use super::recycling::Wish;
use super::roster;
use super::slot::{Role, Standing};
use super::state::{History, Next, Purpose, State};
use super::supervisor::spread;

#[derive(Debug)]
pub struct Replica {
    pub worker: Arc<Worker>,
    pub index: u32,
    pub(super) standing: Standing,
    pub life: Option<Life>,
    pub(super) history: History,
    /// How often it has been started again.
    pub restarts: u32,
    /// What a stop in progress is for, to tell it in the events.
    pub(super) cause: Option<&'static str>,
    pub(super) last_exit: Option<Exit>,
    /// It is to be replaced when its turn comes.
    pub(super) wish: Option<Wish>,
    /// Replacements in a row that came to nothing.
    pub(super) failed_replacements: u32,
    /// A successor: what it was started for.
    pub(super) successor_of: Option<Replaced>,
    /// What it waits for before it is started, for people.
    pub waits_for: Option<String>,
    /// When that is looked at again, if nothing else brings it up.
    pub(super) look_again: Option<Duration>,
    /// Held from before the start to the end of the last descendant.
    pub(super) lock: Option<HeldLock>,
    /// Its restart command runs, or has not shown what it has done.
    pub(super) restarting: bool,
}

/// Whom a successor is to replace.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub cause: &'static str,
    pub pid: i32,
    /// Why with overlap.
    pub manner: String,
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
    /// The stop signal was sent.
    pub(super) asked: bool,
    /// It is to end at once, not when its time is over.
    pub(super) kill_wanted: bool,
    /// We sent the SIGKILL.
    pub(super) killed_by_us: bool,
    /// The kernel has ended it for want of memory, as far as that can be told without a group of its own.
    pub(super) oom: bool,
    /// It did not end in the time it was given.
    pub(super) overran: bool,
    /// Until it is ready.
    pub(super) check: Option<Check>,
    /// How it is doing, where that is asked for.
    pub(super) pulse: Option<Pulse>,
    /// Where it goes on to say how it is doing.
    pub(super) notify: Option<NotifySocket>,
    /// Requests it has answered, as reported.
    pub requests: u64,
    /// When it is to be replaced for them; drawn once.
    pub requests_due: Option<u64>,
    /// Of what it was started with: [`super::roster::fingerprint`].
    pub(super) fingerprint: u64,
    /// Of the children of a pre-fork master the one that holds most: (pid, start time).
    pub(super) fattest: Option<(i32, u64)>,
    /// What its descendants carry in their environment: [`super::orphans`].
    pub(super) mark: String,
    /// To whom its orphans are handed: us, unless it is another's child.
    pub(super) reaper: Option<i32>,
    pub(super) is_child: bool,
    /// Somebody else has started it: it is only ever ended where its worker says so.
    pub adopted: bool,
    /// Everybody in this group belongs to it too.
    pub(super) foreign_group: Option<Arc<ForeignGroup>>,
}

impl Replica {
    pub(super) fn new(worker: Arc<Worker>, index: u32) -> Replica {
        Replica {
            worker,
            index,
            standing: Standing::main(),
            life: None,
            history: History::default(),
            restarts: 0,
            cause: None,
            last_exit: None,
            wish: None,
            failed_replacements: 0,
            successor_of: None,
            waits_for: None,
            look_again: None,
            lock: None,
            restarting: false,
        }
    }

    pub fn state(&self) -> State {
        self.standing.state
    }

    /// The one that counts: neither a replacement that is not ready yet nor one on its way out.
    pub fn is_main(&self) -> bool {
        self.standing.role == Role::Main
    }

    pub fn is_successor(&self) -> bool {
        self.standing.role == Role::Successor
    }

    pub(super) fn is_copy_of(&self, name: &str, index: u32) -> bool {
        self.index == index && *self.worker.name == *name
    }

    /// It has ended for good, as it was to: whoever comes after it need not wait.
    pub(super) fn has_done(&self) -> bool {
        self.standing.state == State::Stopped && self.last_exit.is_some_and(|exit| exit.status.is_clean())
    }

    /// Why it is not ready yet, while that is waited for.
    pub fn missing(&self) -> Option<&str> {
        let check = self.life.as_ref()?.check.as_ref()?;
        Some(check.missing.as_str()).filter(|missing| !missing.is_empty())
    }

    /// It is to be replaced and waits for its turn.
    pub fn is_queued(&self) -> bool {
        self.wish.is_some()
    }

    pub fn slot(&self) -> Option<SlotId> {
        self.life.as_ref().map(|life| life.slot)
    }

    pub fn is_running(&self) -> bool {
        self.standing.state.is_up()
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.standing.state, State::Running { .. })
    }

    /// Its process was started by somebody else.
    pub fn is_adopted(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.adopted)
    }

    /// Why it cannot take an action now; `None` while it simply runs. `response` knows these words.
    pub fn busy(&self) -> Option<&'static str> {
        match self.standing.state {
            State::Running { .. } if self.restarting => Some("recycling"),
            State::Starting { .. } | State::Running { .. } => None,
            State::Stopping { purpose: Purpose::Replace | Purpose::GiveWay | Purpose::Retry, .. }
            | State::Clearing { next: Next::StartAt(_), .. } => Some("recycling"),
            State::Stopping { .. } | State::Clearing { .. } | State::Failed | State::Stopped => Some("stopping"),
            State::Waiting | State::Backoff { .. } => Some("starting"),
        }
    }
}

impl Life {
    /// A life that began at `started`. What is drawn once for each life is drawn here.
    pub(super) fn begin(slot: SlotId, process: Process, group: Option<Group>, started: Moment, worker: &Worker, mark: String) -> Life {
        let recycle = &worker.recycle;
        let less_jitter = 1.0 - recycle.jitter.clamp(0.0, 1.0) * spread(slot.0);
        Life {
            slot,
            process,
            group,
            started,
            lifetime_due: recycle.lifetime.map(|lifetime| started.steady + lifetime.mul_f64(less_jitter)),
            known: Vec::new(),
            peak_memory: 0,
            cpu: Duration::ZERO,
            memory: None,
            exit: None,
            survivors_killed: 0,
            asked: false,
            kill_wanted: false,
            killed_by_us: false,
            oom: false,
            overran: false,
            check: None,
            pulse: None,
            notify: None,
            requests: 0,
            // Whole requests; far below what a float holds exactly.
            requests_due: recycle.requests.map(|most| ((f64::from(most) * less_jitter).ceil() as u64).max(1)),
            fingerprint: roster::fingerprint(worker),
            fattest: None,
            mark,
            reaper: None,
            is_child: true,
            adopted: false,
            foreign_group: None,
        }
    }

    fn root(&self) -> Root {
        let ended = self.exit.map(|(_, at)| at.steady.as_secs().saturating_add(1).saturating_mul(process::ticks_per_second()));
        Root { pid: self.process.pid(), started: self.process.started(), ended }
    }

    /// Everybody who is alive in this life's tree, as handles that cannot reach a stranger. `processes` is a fresh scan.
    ///
    /// # Errors
    /// When one of them could not be looked at for a reason of ours (no descriptor left): it may live.
    pub fn members(&self, paths: &Paths, keeper: i32, processes: &[Stat]) -> std::io::Result<Vec<Process>> {
        self.living(keeper, processes).iter().filter_map(|stat| Process::open_seen(paths, stat).transpose()).collect()
    }

    /// Their numbers, which may have been given to others since the scan.
    pub(super) fn pids(&self, keeper: i32, processes: &[Stat]) -> Vec<i32> {
        self.living(keeper, processes).iter().map(|stat| stat.pid).collect()
    }

    pub(super) fn living(&self, keeper: i32, processes: &[Stat]) -> Vec<Stat> {
        let daemon = keeper;
        let keeper = self.reaper.unwrap_or(keeper);
        let mut found = process::tree_of(self.root(), keeper, &self.known, processes);
        // The group knows those who left the session before they were ever seen.
        if let Some(pids) = self.group.as_ref().and_then(Group::members) {
            let missing = processes.iter().filter(|stat| pids.contains(&stat.pid) && !stat.has_ended());
            let missing: Vec<_> =
                missing.filter(|stat| stat.pid != keeper && !found.iter().any(|member| member.pid == stat.pid)).copied().collect();
            found.extend(missing);
        }
        if let Some(group) = &self.foreign_group {
            let scene = Scene { processes, keeper: daemon, taken: &HashMap::new() };
            let along =
                group.pids().into_iter().filter_map(|pid| scene.process(pid)).filter(|stat| !stat.has_ended() && !scene.is_ours(stat));
            let missing: Vec<Stat> = along.filter(|stat| !found.iter().any(|member| member.pid == stat.pid)).copied().collect();
            found.extend(missing);
        }
        if self.adopted {
            // Nobody was taken with us in its tree; we never act on ourselves whatever has become of it since.
            found.retain(|stat| stat.pid != daemon);
        }
        found
    }

    /// Remembers everybody in its tree. `processes` is a fresh scan.
    pub(super) fn meet(&mut self, keeper: i32, processes: &[Stat]) {
        let keeper = self.reaper.unwrap_or(keeper);
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
