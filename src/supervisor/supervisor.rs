//! The one place that starts, stops, reaps and replaces processes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Restart, Signal, Worker};
use crate::host::Paths;
use crate::host::accounts;
use crate::host::clock::Moment;
use crate::host::group::{self, Group, Groups, Taken};
use crate::host::process::{self, Delivery, Exit, ExitStatus, Launch, Process};
use crate::host::procfs::Stat;
use crate::host::scan;
use crate::journal::Event;
use crate::sampling::readings::{Readings, SlotId, Target, WorkerReadings};

use super::environment;
use super::output::{Given, Outputs};
use super::replica::{Life, Replica};
use super::state::{self, Next, Purpose, State};

/// Ended lives whose worker is still known.
const REMEMBERED: usize = 256;

/// How often a tree that is being ended is looked at until nobody is left.
const CLEARING_LOOK: Duration = Duration::from_millis(10);
/// In each tick one of so many replicas is looked for outside its groups, and one at least.
const STRAYS_PART: usize = 256;

/// What all workers are started with.
#[derive(Debug)]
pub struct Surroundings {
    pub paths: Paths,
    pub groups: Groups,
    /// The daemon's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// The daemon's pid.
    pub keeper: i32,
    /// Above the daemon's own, so that the kernel takes a worker first.
    pub oom_score_adj: Option<i32>,
    /// The (soft, hard) limit on descriptors a worker gets back.
    pub descriptors: Option<(u64, u64)>,
    /// The nice value a worker begins with.
    pub nice: i32,
    /// `run -- COMMAND`: the name of the worker whose end is ours, and whether a restart policy was asked for.
    pub command: Option<Command>,
}

/// `run -- COMMAND`.
#[derive(Clone, Debug)]
pub struct Command {
    pub worker: Arc<str>,
    /// Without a policy of its own, the command's clean end and its end before it was ever healthy are the daemon's end;
    /// a command that had been healthy is replaced.
    pub restart_was_set: bool,
}

/// Sums over every life of every replica of one worker; they survive the worker's death.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub starts: u64,
    /// By reason, in the order of [`EXIT_REASONS`].
    pub exits: [u64; EXIT_REASONS.len()],
    /// By cause, in the order of [`RECYCLE_CAUSES`].
    pub recycles: [u64; RECYCLE_CAUSES.len()],
    /// Of lives that have ended.
    pub cpu: Duration,
    pub peak_memory: u64,
}

/// The label values of `plimsoll_worker_exits_total{reason}`.
pub const EXIT_REASONS: [&str; 6] = ["clean", "error", "signal", "oom", "recycled", "stopped"];
/// The label values of `plimsoll_worker_recycles_total{cause}`.
pub const RECYCLE_CAUSES: [&str; 4] = ["memory", "cpu", "lifetime", "manual"];

#[derive(Debug)]
pub struct Supervisor {
    around: Surroundings,
    /// Where what they print goes.
    pub outputs: Outputs,
    replicas: Vec<Replica>,
    /// Where the replica of a life is in `replicas`. A life that has ended may still stand here.
    places: HashMap<SlotId, usize>,
    /// What the sampler is to look at; `None` when that has changed.
    targets: Option<Vec<Target>>,
    totals: BTreeMap<Arc<str>, Totals>,
    next_slot: u64,
    /// Whose the last lives were that have ended: effects are measured for ten seconds.
    ended: VecDeque<(SlotId, Arc<str>)>,
    /// No start any more.
    closing: bool,
    /// The code the daemon ends with because its command has ended.
    finished: Option<i32>,
    next_look: Option<Duration>,
    /// Replicas that were found outside their groups, with one process each.
    strays: Vec<(SlotId, i32)>,
    /// Where the next look for such begins.
    cursor: usize,
    scratch: Vec<u8>,
}

impl Supervisor {
    pub fn new(around: Surroundings) -> Supervisor {
        Supervisor {
            around,
            outputs: Outputs::default(),
            replicas: Vec::new(),
            places: HashMap::new(),
            targets: None,
            totals: BTreeMap::new(),
            next_slot: 1,
            ended: VecDeque::new(),
            closing: false,
            finished: None,
            next_look: None,
            strays: Vec::new(),
            cursor: 0,
            scratch: Vec::new(),
        }
    }

    /// Makes the set of replicas what the settings say: new ones wait to be started, superfluous ones are stopped, those
    /// whose way of being started has changed are replaced. Everything else goes on untouched.
    pub fn apply(&mut self, workers: &[Arc<Worker>], limit_cores: f64, now: Moment) {
        self.meet_all(|replica| {
            let stays =
                workers.iter().find(|worker| worker.name == replica.worker.name && replica.index < worker.replicas.count(limit_cores));
            stays.is_none_or(|worker| starts_differently(&replica.worker, worker))
        });
        self.outputs.apply(workers);
        for replica in &mut self.replicas {
            let wanted = workers.iter().find(|worker| worker.name == replica.worker.name);
            match wanted {
                Some(worker) if replica.index < worker.replicas.count(limit_cores) => {
                    let restart = starts_differently(&replica.worker, worker);
                    replica.worker = worker.clone();
                    replica.leaving = false;
                    if restart {
                        ask_to_end(replica, Purpose::Replace, "manual", now);
                        if replica.state == State::Failed {
                            replica.state = State::Waiting;
                        }
                    }
                }
                _ => {
                    replica.leaving = true;
                    ask_to_end(replica, Purpose::Down, "stopped", now);
                }
            }
        }
        for worker in in_start_order(workers) {
            self.totals.entry(worker.name.clone()).or_default();
            for index in 0..worker.replicas.count(limit_cores) {
                if !self.replicas.iter().any(|replica| replica.worker.name == worker.name && replica.index == index) {
                    self.replicas.push(Replica::new(worker.clone(), index));
                }
            }
        }
    }

    /// Starts what is due, kills what has run out of time, clears what has ended.
    pub fn advance(&mut self, now: Moment, events: &mut Vec<Event>) {
        let (lives, count) = (self.next_slot, self.replicas.len());
        for place in 0..self.replicas.len() {
            let due = self.replicas.get(place).is_some_and(|replica| match replica.state {
                State::Waiting => true,
                State::Backoff { until } => until <= now.steady,
                _ => false,
            });
            if due && !self.closing {
                self.start(place, now, events);
            }
        }
        self.look_after_ending(now, events);
        self.replicas.retain(|replica| !(replica.leaving && replica.life.is_none()));
        if self.next_slot != lives || self.replicas.len() != count {
            self.places = self.replicas.iter().enumerate().filter_map(|(place, replica)| Some((replica.slot()?, place))).collect();
            self.targets = None;
        }
    }

    fn start(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let slot = SlotId(self.next_slot);
        let Some(replica) = self.replicas.get_mut(place) else { return };
        let worker = replica.worker.clone();
        let name = format!("{}{}.{}-{}", group::REPLICA, file_name(&worker.name), replica.index, slot.0);
        let output = self.outputs.give(&worker, &self.around.paths, now, events);
        match output.and_then(|output| launch(&self.around, &worker, &name, output)) {
            Ok((process, group)) => {
                self.next_slot += 1;
                let again = replica.restarts > 0 || replica.last_exit.is_some();
                replica.restarts += u32::from(again);
                replica.state = State::Running { since: now.steady };
                let pid = process.pid();
                let lifetime_due = worker
                    .recycle
                    .lifetime
                    .map(|lifetime| now.steady + lifetime.mul_f64(1.0 - worker.recycle.jitter.clamp(0.0, 1.0) * spread(slot.0)));
                replica.life = Some(Life {
                    slot,
                    process,
                    group,
                    started: now,
                    lifetime_due,
                    known: Vec::new(),
                    peak_memory: 0,
                    cpu: Duration::ZERO,
                    memory: None,
                    exit: None,
                    survivors_killed: 0,
                    killed_by_us: false,
                });
                self.totals.entry(worker.name.clone()).or_default().starts += 1;
                let command = worker.command.join(" ");
                events.push(Event::WorkerStarted { worker: worker.name.to_string(), replica: replica.index, pid, command });
                // Without a readiness check a worker is ready once its program has been executed.
                events.push(Event::WorkerReady { worker: worker.name.to_string(), replica: replica.index, pid, after_seconds: 0.0 });
            }
            Err(error) => {
                let next = state::after_end(
                    match worker.restart {
                        Restart::Never => Restart::Never,
                        // A program that cannot be started has failed, whatever the policy says of clean ends.
                        Restart::Always | Restart::OnFailure => Restart::Always,
                    },
                    &worker.backoff,
                    &mut replica.history,
                    false,
                    Duration::ZERO,
                    now.steady,
                    spread(self.next_slot),
                );
                let next = match next {
                    // That no process can be made is no fault of the program: it is tried for as long as it takes.
                    Next::Failed if process::is_shortage(&error) => Next::StartAt(now.steady + worker.backoff.longest),
                    next => next,
                };
                let is_command = self.around.command.as_ref().is_some_and(|command| command.worker == worker.name);
                let next = if is_command && replica.last_exit.is_none() { Next::Stopped } else { next };
                replica.state = state::cleared(next, now.steady);
                let next_try_seconds = match next {
                    Next::StartAt(at) => Some(at.saturating_sub(now.steady).as_secs_f64()),
                    Next::Failed | Next::Stopped => None,
                };
                events.push(Event::WorkerStartFailed {
                    worker: worker.name.to_string(),
                    replica: replica.index,
                    error: error.to_string(),
                    next_try_seconds,
                });
                if is_command && next_try_seconds.is_none() {
                    // The shell's convention: 127 for a command that is not there, 126 for one that cannot be executed.
                    self.finished = Some(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
                } else if next == Next::Failed {
                    give_up(replica, events);
                }
            }
        }
    }

    /// Reaps every child that has ended. Returns the pids of those that were no replica's process: orphans of some tree,
    /// and children the daemon started itself.
    pub fn reap(&mut self, now: Moment, events: &mut Vec<Event>) -> Vec<i32> {
        let mut others = Vec::new();
        while let Some(exit) = process::reap_one() {
            if !self.on_exit(exit, now) {
                others.push(exit.pid);
            }
        }
        // One look at all processes for all that have ended, not one for each: a thousand end together.
        self.look_after_ending(now, events);
        others
    }

    fn on_exit(&mut self, exit: Exit, now: Moment) -> bool {
        let Some(place) = self
            .replicas
            .iter()
            .position(|replica| replica.life.as_ref().is_some_and(|life| life.exit.is_none() && life.process.pid() == exit.pid))
        else {
            return false;
        };
        let Some(replica) = self.replicas.get_mut(place) else { return false };
        let asked_for = !replica.is_running();
        let Some(life) = replica.life.as_mut() else { return false };
        life.exit = Some((exit, now));
        self.targets = None;
        let uptime = now.since(life.started);
        let is_command = self.around.command.as_ref().filter(|command| command.worker == replica.worker.name);
        let next = match is_command {
            // An end that was asked for is no part of a crash loop, however often it is asked for.
            _ if asked_for => Next::Stopped,
            Some(command) if !command.restart_was_set && (exit.status.is_clean() || uptime < state::HEALTHY_AFTER) => Next::Stopped,
            _ => state::after_end(
                replica.worker.restart,
                &replica.worker.backoff,
                &mut replica.history,
                exit.status.is_clean(),
                uptime,
                now.steady,
                spread(life.slot.0),
            ),
        };
        let grace = replica.worker.stop.within.min(state::SURVIVORS_WITHIN);
        replica.state = state::ended(replica.state, next, now.steady, now.steady + grace);
        replica.last_exit = Some(exit);
        self.next_look = Some(now.steady);
        true
    }

    /// Looks after everything that is being ended: kills at the deadline, asks survivors to go, notices when all are gone.
    pub fn look_after_ending(&mut self, now: Moment, events: &mut Vec<Event>) {
        let ending = |state: State| match state {
            State::Clearing { .. } => true,
            State::Stopping { kill_at, killed, .. } => killed || kill_at <= now.steady,
            _ => false,
        };
        if !self.replicas.iter().any(|replica| ending(replica.state)) || self.next_look.is_some_and(|look| look > now.steady) {
            return;
        }
        // One scan serves all of them. If /proc cannot be read now, the next look tries again.
        let mut processes = Vec::new();
        if scan::processes(&self.around.paths, &mut processes, &mut Vec::new()).is_err() {
            self.next_look = Some(now.steady + CLEARING_LOOK);
            return;
        }
        let (keeper, paths) = (self.around.keeper, &self.around.paths);
        for replica in &mut self.replicas {
            if !ending(replica.state) {
                continue;
            }
            let Some(life) = replica.life.as_mut() else { continue };
            // Without a descriptor to hold them by nobody may be taken for ended: the next look tries again.
            let Ok(members) = life.members(paths, keeper, &processes) else { continue };
            match &mut replica.state {
                State::Stopping { killed, .. } => {
                    *killed = true;
                    life.killed_by_us = true;
                    kill_all(life, &members);
                }
                State::Clearing { next, kill_at, killed } => {
                    let fresh = life.exit.is_some_and(|(_, at)| at == now);
                    if members.is_empty() {
                        let next = *next;
                        if self.ended.len() == REMEMBERED {
                            self.ended.pop_front();
                        }
                        self.ended.push_back((life.slot, replica.worker.name.clone()));
                        replica.state = state::cleared(next, now.steady);
                        finish(replica, next, now, &mut self.totals, events);
                        if let Some(code) = end_of_command(self.around.command.as_ref(), replica) {
                            self.finished = Some(code);
                        }
                        continue;
                    }
                    if *killed || *kill_at <= now.steady {
                        if !*killed {
                            life.survivors_killed = u32::try_from(members.len()).unwrap_or(u32::MAX);
                        }
                        *killed = true;
                        kill_all(life, &members);
                    } else if fresh {
                        for member in &members {
                            // One that has gone in the meantime is what we want.
                            let _ = member.signal(replica.worker.stop.signal);
                            let _ = member.signal(Signal(libc::SIGCONT));
                        }
                    }
                }
                _ => {}
            }
        }
        let more = self.replicas.iter().any(|replica| ending(replica.state));
        self.next_look = more.then(|| now.steady + CLEARING_LOOK);
    }

    /// Asks one life to end gracefully and to be followed by another. False if it has ended or is ending.
    pub fn recycle(&mut self, slot: SlotId, cause: &'static str, now: Moment) -> bool {
        self.replace(slot, cause, now, None)
    }

    /// Ends one life's whole tree at once; it is followed by another.
    pub fn kill(&mut self, slot: SlotId, cause: &'static str, now: Moment) -> bool {
        self.next_look = None;
        self.replace(slot, cause, now, Some(now.steady))
    }

    fn replace(&mut self, slot: SlotId, cause: &'static str, now: Moment, kill_at: Option<Duration>) -> bool {
        self.meet_all(|replica| replica.slot() == Some(slot));
        let Some(replica) = self.places.get(&slot).and_then(|place| self.replicas.get_mut(*place)) else { return false };
        if replica.slot() != Some(slot) {
            return false;
        }
        match (&mut replica.state, kill_at) {
            (State::Running { .. }, _) => {
                ask_to_end(replica, Purpose::Replace, cause, now);
                if let (State::Stopping { kill_at, .. }, Some(at)) = (&mut replica.state, kill_at) {
                    *kill_at = at;
                }
                true
            }
            // A kill may overtake a graceful end that does not come.
            (State::Stopping { kill_at, .. }, Some(at)) => {
                *kill_at = (*kill_at).min(at);
                true
            }
            _ => false,
        }
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, slot: SlotId, signal: Signal) -> io::Result<Delivery> {
        match self.life(slot) {
            Some(life) => life.process.signal(signal),
            None => Ok(Delivery::Gone),
        }
    }

    /// Sends a signal to the process of the command, if there is one.
    pub fn signal_command(&self, signal: Signal) {
        if let Some(command) = &self.around.command {
            for life in
                self.replicas.iter().filter(|replica| replica.worker.name == command.worker).filter_map(|replica| replica.life.as_ref())
            {
                // It may have ended just now.
                let _ = life.process.signal(signal);
            }
        }
    }

    /// No more starts; everything is asked to end, workers that others come after last. `deadline` bounds it all.
    pub fn close(&mut self, now: Moment, deadline: Duration) {
        self.closing = true;
        self.stop_next(now, deadline);
    }

    /// Asks those to end whom nobody that still lives comes after; called until [`Supervisor::is_empty`].
    pub fn stop_next(&mut self, now: Moment, deadline: Duration) {
        let alive: Vec<(Arc<str>, Vec<Arc<str>>)> = self
            .replicas
            .iter()
            .filter(|replica| replica.life.is_some())
            .map(|replica| (replica.worker.name.clone(), replica.worker.after.clone()))
            .collect();
        let waits = |replica: &Replica| {
            let needed = alive.iter().any(|(name, after)| *name != replica.worker.name && after.contains(&replica.worker.name));
            needed && now.steady < deadline
        };
        self.meet_all(|replica| !waits(replica));
        for replica in &mut self.replicas {
            if waits(replica) {
                continue;
            }
            if !matches!(replica.state, State::Stopping { purpose: Purpose::Down, .. } | State::Clearing { .. } | State::Stopped) {
                ask_to_end(replica, Purpose::Down, "stopped", now);
            }
            match &mut replica.state {
                State::Stopping { kill_at, .. } | State::Clearing { kill_at, .. } => *kill_at = (*kill_at).min(deadline),
                _ => {}
            }
        }
    }

    /// True when no process of any replica is left.
    pub fn is_empty(&self) -> bool {
        self.replicas.iter().all(|replica| replica.life.is_none())
    }

    /// Removes the groups that were made for workers.
    pub fn remove_groups(&mut self) {
        self.around.groups.remove();
    }

    /// As [`Groups::keep_controllers`]; replicas whose memory is not counted whole any more are measured without their group.
    pub fn keep_controllers(&mut self) -> Option<Taken> {
        let taken = self.around.groups.keep_controllers()?;
        if taken.controllers.contains(&"memory") {
            let lives = self.replicas.iter_mut().filter_map(|replica| replica.life.as_mut());
            lives.filter_map(|life| life.group.as_mut()).for_each(Group::begin_anew);
            self.targets = None;
        }
        Some(taken)
    }

    pub fn groups(&self) -> &Groups {
        &self.around.groups
    }

    /// The code to end with because the command has ended.
    pub fn finished(&self) -> Option<i32> {
        self.finished
    }

    /// When something is to be done without anything happening before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let waits = self.replicas.iter().filter_map(|replica| match replica.state {
            State::Waiting | State::Backoff { .. } if self.closing => None,
            state => state.deadline(),
        });
        waits.chain(self.next_look).min()
    }

    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    pub fn totals(&self) -> &BTreeMap<Arc<str>, Totals> {
        &self.totals
    }

    pub fn life(&self, slot: SlotId) -> Option<&Life> {
        self.replica(slot).and_then(|replica| replica.life.as_ref())
    }

    /// Whose life this is or, for the last that have ended, was.
    pub fn worker_of(&self, slot: SlotId) -> Option<&Arc<str>> {
        let ended = || self.ended.iter().find(|(known, _)| *known == slot).map(|(_, name)| name);
        self.replica(slot).map(|replica| &replica.worker.name).or_else(ended)
    }

    pub fn replica(&self, slot: SlotId) -> Option<&Replica> {
        self.places.get(&slot).and_then(|place| self.replicas.get(*place)).filter(|replica| replica.slot() == Some(slot))
    }

    /// The living members of one life's tree, found by a fresh look at all processes.
    ///
    /// # Errors
    /// As [`Life::members`].
    pub fn members(&self, slot: SlotId, processes: &[Stat]) -> io::Result<Vec<Process>> {
        self.life(slot).map_or(Ok(Vec::new()), |life| life.members(&self.around.paths, self.around.keeper, processes))
    }

    /// What the sampler is to look at, in the order of the replicas.
    pub fn targets(&mut self) -> &[Target] {
        let replicas = &self.replicas;
        self.targets.get_or_insert_with(|| replicas.iter().filter_map(target).collect())
    }

    /// Each replica with what was read of it: the readings are in the order of the targets, and so of the replicas.
    pub fn with_readings<'a>(&'a self, readings: &'a Readings) -> impl Iterator<Item = (&'a Replica, Option<&'a WorkerReadings>)> {
        let mut left = readings.workers.iter().peekable();
        self.replicas.iter().map(move |replica| {
            let read = replica.slot().and_then(|slot| match left.next_if(|read| read.slot == slot) {
                Some(read) => Some(read),
                // One that began or ended since: rare, and then the rest need not follow each other.
                None => readings.workers.iter().find(|read| read.slot == slot),
            });
            (replica, read)
        })
    }

    /// Remembers peaks, for the event that tells of the end. The readings are of [`Supervisor::targets`], in their order.
    pub fn note_readings(&mut self, readings: &Readings) {
        let mut lives = self.replicas.iter_mut().filter_map(|replica| replica.life.as_mut());
        for read in &readings.workers {
            let Some(life) = lives.find(|life| life.slot == read.slot) else { return };
            if let Some(memory) = read.memory.known() {
                life.memory = Some(memory);
                life.peak_memory = life.peak_memory.max(memory);
            }
            if let Some(cpu) = read.cpu_total.known() {
                life.cpu = life.cpu.max(cpu);
            }
        }
    }

    /// Remembers who belongs to a tree, for the day when one of them has left its session and lost its parent.
    pub fn note_members(&mut self, slot: SlotId, members: impl Iterator<Item = (i32, u64)>) {
        let Some(life) = self.life_mut(slot) else { return };
        let before = std::mem::replace(&mut life.known, members.collect());
        let new: Vec<(i32, u64)> = life.known.iter().filter(|member| !before.contains(member)).copied().collect();
        if let Some((pid, _)) = new.into_iter().find(|member| self.is_astray(slot, *member)) {
            self.strays.push((slot, pid));
        }
    }

    /// Before any of these is asked to end: takes in everybody who is in its tree now. Once the parent of one that has left
    /// the session and the group has ended, nothing tells any more whose it was.
    fn meet_all(&mut self, which: impl Fn(&Replica) -> bool) {
        let is_about = |replica: &Replica| replica.is_running() && which(replica);
        if !self.replicas.iter().any(is_about) {
            return;
        }
        let mut processes = Vec::new();
        // Whoever was seen before is known all the same.
        let _ = scan::processes(&self.around.paths, &mut processes, &mut self.scratch);
        let keeper = self.around.keeper;
        for life in self.replicas.iter_mut().filter(|replica| is_about(replica)).filter_map(|replica| replica.life.as_mut()) {
            life.meet(keeper, &processes);
        }
    }

    /// Looks whether replicas are still in their groups: whoever is new in a tree was looked at by [`Supervisor::note_members`],
    /// whoever was moved later is found here, one member of some replicas at a time.
    pub fn look_for_strays(&mut self) {
        let many = self.replicas.len();
        for _ in 0..many.min(many / STRAYS_PART + 1) {
            self.cursor = self.cursor.wrapping_add(1);
            let (place, round) = (self.cursor % many, self.cursor / many);
            let Some(life) = self.replicas.get(place).and_then(|replica| replica.life.as_ref()) else { continue };
            let (slot, member) = (life.slot, life.known.get(round % life.known.len().max(1)).copied());
            if let Some(member) = member.filter(|member| self.is_astray(slot, *member)) {
                self.strays.push((slot, member.0));
            }
        }
    }

    /// True when a member of a life is in other groups than its own, and still the same process after the look. A machine
    /// that is a folder does not follow when a process is put into a group.
    fn is_astray(&mut self, slot: SlotId, (pid, started): (i32, u64)) -> bool {
        let mut text = std::mem::take(&mut self.scratch);
        let paths = &self.around.paths;
        let group = self.life(slot).and_then(|life| life.group.as_ref()).filter(|group| !group.is_left() && paths.is_live());
        let is_astray = group.is_some_and(|group| scan::cgroup(paths, pid, &mut text).is_ok() && !group.holds(&text))
            && scan::process(paths, pid, &mut text).is_ok_and(|stat| stat.started == started && !stat.has_ended());
        self.scratch = text;
        is_astray
    }

    /// The replicas that were found outside their groups since this was last asked, with the process it was found by. From now
    /// on their groups are not used.
    pub fn take_strays(&mut self) -> Vec<(SlotId, i32)> {
        let mut strays = std::mem::take(&mut self.strays);
        strays.retain(|(slot, _)| {
            let group = self.life_mut(*slot).and_then(|life| life.group.as_mut()).filter(|group| !group.is_left());
            group.map(Group::leave).is_some()
        });
        if !strays.is_empty() {
            self.targets = None;
        }
        strays
    }

    fn life_mut(&mut self, slot: SlotId) -> Option<&mut Life> {
        let life = self.replicas.get_mut(*self.places.get(&slot)?)?.life.as_mut()?;
        (life.slot == slot).then_some(life)
    }
}

/// What the sampler is to look at of one replica; nothing once its process has ended.
fn target(replica: &Replica) -> Option<Target> {
    let life = replica.life.as_ref().filter(|life| life.exit.is_none())?;
    Some(Target {
        slot: life.slot,
        worker: replica.worker.name.clone(),
        pid: life.process.pid(),
        cpu_group: life.group.as_ref().and_then(Group::cpu_accounting).cloned(),
        memory_group: life.group.as_ref().and_then(Group::memory_accounting).cloned(),
    })
}

/// Everything between the settings and a running process.
fn launch(around: &Surroundings, worker: &Worker, name: &str, output: Given) -> io::Result<(Process, Option<Group>)> {
    let user = match &worker.user {
        Some(user) => Some(accounts::find(user, worker.group.as_deref())?),
        None => None,
    };
    // Without a group of its own a worker still runs; the throttle then works by signals.
    let group = around.groups.create(name).ok().flatten();
    let entrances = group.as_ref().map(|group| group.entrances()).transpose()?.unwrap_or_default();
    let mut env = environment::of_worker(&around.env, user.as_ref(), &worker.env);
    env.extend(output.journal_stream.map(|stream| ("JOURNAL_STREAM".into(), stream.into())));
    let launch = Launch {
        command: worker.command.clone(),
        directory: worker.directory.clone(),
        env,
        user,
        groups: entrances,
        oom_score_adj: around.oom_score_adj,
        descriptors: around.descriptors,
        nice: around.nice,
        inherit_stdin: around.command.as_ref().is_some_and(|command| command.worker == worker.name),
        output: output.descriptor,
    };
    let started = process::spawn(&launch).and_then(|pid| {
        // It is our child and not reaped yet: the number cannot have been given away.
        let held = Process::open_child(&around.paths, pid);
        if !matches!(held, Ok(Some(_))) {
            process::kill_session(pid);
        }
        held?.ok_or_else(|| io::Error::other("it could not be found in /proc, and was ended again"))
    });
    match started {
        Ok(process) => Ok((process, group)),
        Err(error) => {
            if let Some(group) = &group {
                group.remove();
            }
            Err(error)
        }
    }
}

fn ask_to_end(replica: &mut Replica, purpose: Purpose, cause: &'static str, now: Moment) {
    let was = replica.state;
    let within = replica.worker.stop.within;
    replica.state = state::asked_to_end(was, purpose, now.steady + within);
    if matches!((was, replica.state), (State::Running { .. }, State::Stopping { .. }))
        && let Some(life) = &replica.life
    {
        replica.cause = Some(cause);
        // One that has ended in this very moment is reaped in the next.
        let _ = life.signal(replica.worker.stop.signal);
    } else if purpose == Purpose::Down {
        replica.cause = Some(cause);
    }
}

fn kill_all(life: &Life, members: &[Process]) {
    // At once, forks in flight included. A member may have left the group, so each is killed by itself as well.
    let _ = life.group.as_ref().is_some_and(|group| group.kill());
    for member in members {
        let _ = member.signal(Signal(libc::SIGKILL));
    }
    if life.exit.is_none() {
        let _ = life.process.signal(Signal(libc::SIGKILL));
    }
}

/// Nothing of a life is left: says so and takes its groups away.
fn finish(replica: &mut Replica, next: Next, now: Moment, totals: &mut BTreeMap<Arc<str>, Totals>, events: &mut Vec<Event>) {
    let Some(life) = replica.life.take() else { return };
    let Some((exit, ended)) = life.exit else { return };
    let cause = replica.cause.take();
    let by_kernel = matches!(exit.status, ExitStatus::Signal(libc::SIGKILL)) && !life.killed_by_us;
    let oom = by_kernel && life.group.as_ref().is_some_and(|group| group.was_oom_killed());
    let reason = match (cause, exit.status) {
        _ if oom => "oom",
        (Some("stopped"), _) => "stopped",
        (Some(_), _) => "recycled",
        (None, ExitStatus::Code(0)) => "clean",
        (None, ExitStatus::Code(_)) => "error",
        (None, ExitStatus::Signal(_)) => "signal",
    };
    let peak = life.peak_memory.max(exit.peak_memory);
    let cpu = life.cpu.max(exit.cpu);
    let total = totals.entry(replica.worker.name.clone()).or_default();
    total.cpu += cpu;
    total.peak_memory = total.peak_memory.max(peak);
    if let Some(count) = EXIT_REASONS.iter().position(|known| *known == reason).and_then(|place| total.exits.get_mut(place)) {
        *count += 1;
    }
    let name = replica.worker.name.to_string();
    let (exit_code, signal) = match exit.status {
        ExitStatus::Code(code) => (Some(code), None),
        ExitStatus::Signal(signal) => (None, Some(process::signal_name(signal))),
    };
    events.push(Event::WorkerExited {
        worker: name.clone(),
        replica: replica.index,
        pid: exit.pid,
        exit_code,
        signal,
        reason,
        peak_memory_bytes: Some(peak),
        cpu_seconds: cpu.as_secs_f64(),
        lifetime_seconds: ended.since(life.started).as_secs_f64(),
        survivors_killed: life.survivors_killed,
    });
    if let (Some(cause), Next::StartAt(_)) = (cause, next) {
        if let Some(count) = RECYCLE_CAUSES.iter().position(|known| *known == cause).and_then(|place| total.recycles.get_mut(place)) {
            *count += 1;
        }
        let took = now.since(ended).as_secs_f64();
        events.push(Event::WorkerRecycled {
            worker: name,
            replica: replica.index,
            old_pid: exit.pid,
            cause,
            memory_bytes: life.memory,
            detail: format!("stopped first, then replaced; last descendant gone {took:.3} s after it"),
        });
    }
    if let Some(group) = &life.group {
        group.remove();
    }
    if next == Next::Failed {
        give_up(replica, events);
    }
}

fn give_up(replica: &Replica, events: &mut Vec<Event>) {
    events.push(Event::WorkerGaveUp {
        worker: replica.worker.name.to_string(),
        replica: replica.index,
        exits: u32::try_from(replica.history.ends.len()).unwrap_or(u32::MAX),
        within_seconds: replica.worker.backoff.within.as_secs_f64(),
    });
}

/// The code the daemon ends with, if `replica` is its command and will not be started again.
fn end_of_command(command: Option<&Command>, replica: &Replica) -> Option<i32> {
    command.filter(|command| command.worker == replica.worker.name)?;
    match replica.state {
        State::Stopped | State::Failed => replica.last_exit.map(|exit| exit.status.shell_code()),
        _ => None,
    }
}

/// True when a running process was started in another way than the new settings say.
fn starts_differently(old: &Worker, new: &Worker) -> bool {
    let is_same_program = old.command == new.command && old.directory == new.directory && old.env == new.env;
    !is_same_program || old.user != new.user || old.group != new.group || !old.output.is_same_place(&new.output)
}

/// Workers after those they come after; `config` has refused cycles and unknown names.
fn in_start_order(workers: &[Arc<Worker>]) -> Vec<Arc<Worker>> {
    let mut ordered: Vec<Arc<Worker>> = Vec::with_capacity(workers.len());
    let mut waiting: Vec<Arc<Worker>> = workers.to_vec();
    while !waiting.is_empty() {
        let ready = |worker: &Arc<Worker>| worker.after.iter().all(|name| !waiting.iter().any(|other| other.name == *name));
        let (now, later): (Vec<_>, Vec<_>) = waiting.iter().cloned().partition(ready);
        if now.is_empty() {
            ordered.extend(later);
            break;
        }
        ordered.extend(now);
        waiting = later;
    }
    ordered
}

/// A worker's name as part of a folder's name.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

/// A number between 0 and 1 that differs from life to life and is the same for the same life (splitmix64).
fn spread(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
