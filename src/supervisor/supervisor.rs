//! The one place that starts, stops, reaps and replaces processes: owns every replica, and carries out what the pure tables of
//! [`super::slot`] and [`super::recycling`] say. Starting is in `starting.rs`, ending in `ending.rs`, what is asked from outside
//! in `asking.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{ListenAddress, Signal, Worker};
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::group::{self, Group, Groups, Taken};
use crate::host::process::{self, Delivery, Exit, ExitStatus, Process};
use crate::host::procfs::Stat;
use crate::host::scan;
use crate::host::sockets::Watch;
use crate::journal::Event;
use crate::sampling::readings::{Readings, SlotId, Target, WorkerReadings};

use super::adopting::Search;
use super::health::Pulse;
use super::output::Outputs;
use super::plan::{self, Step};
use super::readiness::Check;
use super::recycling::{self, Manner, Peer, Pick, Room, Wish};
use super::replica::{Life, Replaced, Replica};
use super::restarting::Restarting;
use super::roster::{self, Roster};
use super::slot::{self, Role, Standing};
use super::sockets::{BindError, Prepared, Sockets};
use super::state::{self, Next, Purpose, State};
use super::totals::Totals;

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
    /// Where the locks of singletons are that name no file of their own.
    pub locks: PathBuf,
}

/// `run -- COMMAND`.
#[derive(Clone, Debug)]
pub struct Command {
    pub worker: Arc<str>,
    /// Without a policy of its own, the command's clean end and its end before it was ever healthy are the daemon's end;
    /// a command that had been healthy is replaced.
    pub restart_was_set: bool,
}

#[derive(Debug)]
pub struct Supervisor {
    pub(super) around: Surroundings,
    /// Where what they print goes.
    pub outputs: Outputs,
    /// Copies of one replica stand side by side.
    pub(super) replicas: Vec<Replica>,
    /// Where the copy with a life is in `replicas`. A life that has ended may still stand here.
    places: HashMap<SlotId, usize>,
    /// What the sampler is to look at; `None` when that has changed.
    pub(super) targets: Option<Vec<Target>>,
    pub(super) totals: BTreeMap<Arc<str>, Totals>,
    pub(super) next_slot: u64,
    /// Whose the last lives were that have ended: effects are measured for ten seconds.
    pub(super) ended: VecDeque<(SlotId, Arc<str>)>,
    /// No start any more.
    pub(super) closing: bool,
    /// The code the daemon ends with because its command has ended.
    pub(super) finished: Option<i32>,
    pub(super) next_look: Option<Duration>,
    /// Groups nobody is in any more. They are taken away once those are started who are due: that need not wait for it.
    pub(super) vacant: Vec<Group>,
    /// Replicas that were found outside their groups, with one process each.
    strays: Vec<(SlotId, i32)>,
    /// Where the next look for such begins.
    cursor: usize,
    pub(super) scratch: Vec<u8>,
    pub(super) sockets: Sockets,
    /// What workers say on their notify sockets wakes the loop.
    pub(super) watch: Option<Watch>,
    /// How many of a worker somebody asked for at run time, instead of the settings.
    pub(super) scales: BTreeMap<Arc<str>, u32>,
    /// They come from before, with the settings that are about to be applied.
    pub(super) keeps_scales: bool,
    /// What was settled last: workers and the cores they were counted by.
    pub(super) workers: Vec<Arc<Worker>>,
    pub(super) limit_cores: f64,
    /// When the last replacement of a worker was over.
    pub(super) replaced: BTreeMap<Arc<str>, Duration>,
    /// When the queue has its next turn.
    next_turn: Option<Duration>,
    room: Room,
    roster: Option<Roster>,
    old_rosters: Vec<PathBuf>,
    /// Children of ours from before we began: (pid, start time).
    pub(super) strangers: Vec<(i32, u64)>,
    pub(super) sentinel: Option<i32>,
    /// A child that is tried out, to be become.
    pub(super) trial: Option<i32>,
    /// The process of a job that runs: nobody's worker either.
    pub(super) job: Option<i32>,
    /// As of the last tick.
    oom_kills: Option<u64>,
    /// Workers of which it was told that their pages are not merged.
    pub(super) unmerged: BTreeSet<Arc<str>>,
    /// Workers of which it was told that their `oom_score_adj` is not what was asked for.
    pub(super) unspared: BTreeSet<Arc<str>>,
    pub(super) roster_is_stale: bool,
    roster_fails: bool,
    /// How far those are looked for that somebody else starts.
    pub(super) searches: BTreeMap<Arc<str>, Search>,
    /// Restart commands that run, or whose work is not seen to be done.
    pub(super) restarting: Vec<Restarting>,
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
            vacant: Vec::new(),
            strays: Vec::new(),
            cursor: 0,
            scratch: Vec::new(),
            sockets: Sockets::default(),
            watch: Watch::new().ok(),
            scales: BTreeMap::new(),
            keeps_scales: false,
            workers: Vec::new(),
            limit_cores: 1.0,
            replaced: BTreeMap::new(),
            next_turn: None,
            room: Room::default(),
            roster: None,
            old_rosters: Vec::new(),
            strangers: Vec::new(),
            sentinel: None,
            trial: None,
            job: None,
            unmerged: BTreeSet::new(),
            unspared: BTreeSet::new(),
            oom_kills: None,
            roster_is_stale: false,
            roster_fails: false,
            searches: BTreeMap::new(),
            restarting: Vec::new(),
        }
    }

    /// Binds the addresses of these workers that are not bound yet; [`Supervisor::apply`] takes them over.
    ///
    /// # Errors
    /// As [`Sockets::prepare`].
    pub fn prepare(&self, workers: &[Arc<Worker>], spare: &dyn Fn(&ListenAddress) -> Option<OwnedFd>) -> Result<Prepared, BindError> {
        self.sockets.prepare(workers, spare)
    }

    /// Makes the set of replicas what the settings say: new ones wait to be started, superfluous ones are stopped, those
    /// whose way of being started has changed are replaced one by one. Everything else goes on untouched.
    pub fn apply(&mut self, workers: &[Arc<Worker>], prepared: Prepared, limit_cores: f64, now: Moment) {
        self.sockets.apply(workers, prepared);
        self.outputs.apply(workers);
        self.limit_cores = limit_cores;
        // A number that was asked for at run time holds until the settings say another.
        let unchanged = |name: &Arc<str>| {
            let count = |workers: &[Arc<Worker>]| workers.iter().find(|worker| worker.name == *name).map(|worker| worker.replicas);
            count(&self.workers).is_some_and(|before| count(workers) == Some(before))
        };
        if !std::mem::take(&mut self.keeps_scales) {
            self.scales.retain(|name, _| unchanged(name));
        }
        self.workers = workers.to_vec();
        // Looked for in another way, started by us from now on, or not wanted any more: never ended.
        let way = |worker: &Worker| worker.adopt.as_ref().map(|adopt| adopt.by.clone());
        let wanted = |replica: &Replica| workers.iter().find(|worker| worker.name == replica.worker.name).and_then(|worker| way(worker));
        self.let_adopted_go(|replica| wanted(replica) != way(&replica.worker));
        self.searches.clear();
        for replica in &mut self.replicas {
            let Some(worker) = workers.iter().find(|worker| worker.name == replica.worker.name) else { continue };
            let wanted = roster::fingerprint(worker);
            let starts_differently = match &replica.life {
                Some(life) => life.fingerprint != wanted,
                None => roster::fingerprint(&replica.worker) != wanted,
            };
            replica.worker = worker.clone();
            if !starts_differently {
                // What was to be replaced for settings that were taken back goes on.
                replica.wish = replica.wish.filter(|wish| wish.cause != "reload");
            }
            if !starts_differently || !replica.is_main() {
                continue;
            }
            if replica.is_running() {
                replica.wish.get_or_insert(Wish { cause: "reload", since: now.steady, not_before: Duration::ZERO, keeps_gap: false });
            } else if matches!(replica.state(), State::Failed | State::Backoff { .. }) {
                replica.standing.state = state::asked_to_start(replica.standing.state, now.steady);
            }
        }
        self.settle_counts(now);
    }

    /// What [`Supervisor::apply`] would do with these settings.
    pub fn plan(&self, workers: &[Arc<Worker>]) -> Vec<Step> {
        let now: Vec<_> = self.workers.iter().map(|worker| (worker.clone(), self.desired(worker))).collect();
        let desired = |worker: &Arc<Worker>| {
            let known = self.workers.iter().find(|known| known.name == worker.name && known.replicas == worker.replicas);
            known.map_or_else(|| worker.replicas.count(self.limit_cores), |known| self.desired(known))
        };
        let then: Vec<_> = workers.iter().map(|worker| (worker.clone(), desired(worker))).collect();
        plan::plan(&now, &then)
    }

    /// How many replicas of a worker there are to be.
    pub fn desired(&self, worker: &Worker) -> u32 {
        if worker.adopt.is_some() {
            // As many as are found; a place for one is kept where nobody is.
            let copies = self.replicas.iter().filter(|replica| replica.worker.name == worker.name && replica.is_main());
            return copies.map(|replica| replica.index + 1).max().unwrap_or(1);
        }
        self.scales.get(&worker.name).copied().unwrap_or_else(|| worker.replicas.count(self.limit_cores))
    }

    /// Adds what is missing and dismisses what is too many.
    pub(super) fn settle_counts(&mut self, now: Moment) {
        let wanted: BTreeMap<Arc<str>, u32> = self.workers.iter().map(|worker| (worker.name.clone(), self.desired(worker))).collect();
        let is_wanted = |replica: &Replica| wanted.get(&replica.worker.name).is_some_and(|count| replica.index < *count);
        self.meet_all(|replica| !is_wanted(replica));
        for replica in &mut self.replicas {
            if !is_wanted(replica) && replica.standing.role != Role::Leaving {
                let kill_at = now.steady + replica.worker.stop.within;
                replica.wish = None;
                replica.cause = Some("stopped");
                slot::dismiss(&mut [&mut replica.standing], kill_at);
            }
        }
        for worker in in_start_order(&self.workers) {
            self.totals.entry(worker.name.clone()).or_default();
            for index in 0..wanted.get(&worker.name).copied().unwrap_or(0) {
                if !self.replicas.iter().any(|replica| replica.is_copy_of(&worker.name, index) && replica.standing.role != Role::Leaving) {
                    self.replicas.push(Replica::new(worker.clone(), index));
                }
            }
        }
        self.ask_those_to_end();
    }

    /// Starts what is due, sees who is ready, replaces whose turn it is, kills what has run out of time, clears what has ended.
    pub fn advance(&mut self, now: Moment, events: &mut Vec<Event>) {
        let (lives, count) = (self.next_slot, self.replicas.len());
        for place in 0..self.replicas.len() {
            self.start_if_due(place, now, events);
        }
        self.look_for_adopted(now, events);
        self.look_for_ready(now, events);
        self.look_at_health(now, events);
        self.take_turns(now, events);
        self.ask_those_to_end();
        self.look_after_ending(now, events);
        self.replicas.retain(|replica| !(replica.standing.is_gone() && replica.life.is_none()));
        if self.next_slot != lives || self.replicas.len() != count {
            self.renumber();
        }
        self.keep_roster(events);
        self.remove_vacant_groups();
    }

    /// What the kernel does not let go of yet is tried again in the next turn.
    fn remove_vacant_groups(&mut self) {
        self.vacant.retain(|group| !group.remove());
    }

    /// Copies have come, gone or changed their places.
    pub(super) fn renumber(&mut self) {
        self.places = self.replicas.iter().enumerate().filter_map(|(place, replica)| Some((replica.slot()?, place))).collect();
        self.targets = None;
        self.roster_is_stale = true;
    }

    /// Writes down who is alive, where that has changed.
    fn keep_roster(&mut self, events: &mut Vec<Event>) {
        let Some(roster) = self.roster.as_mut().filter(|_| std::mem::take(&mut self.roster_is_stale)) else { return };
        let lives = self.replicas.iter().filter_map(entry);
        match roster.write(lives.collect()) {
            Ok(()) => {
                self.roster_fails = false;
                for old in self.old_rosters.drain(..) {
                    // One that cannot be removed names nobody who is not known now.
                    let _ = std::fs::remove_file(old);
                }
            }
            Err(error) => {
                // Tried again at the next change.
                if !std::mem::replace(&mut self.roster_fails, true) {
                    let detail = format!("who is alive cannot be written down: {error}; a daemon after this one will not know them");
                    events.push(Event::Degraded { part: "roster", detail });
                }
            }
        }
    }

    /// Where it is written down who is alive. `old` are those of earlier daemons: not needed any more once ours says it.
    pub fn set_roster(&mut self, roster: Roster, old: Vec<PathBuf>) {
        self.roster = Some(roster);
        self.old_rosters = old;
        self.roster_is_stale = true;
    }

    /// The process of a job: a child of ours that is nobody's worker.
    pub fn set_job(&mut self, pid: Option<i32>) {
        self.job = pid;
    }

    /// A group of its own for a job's process, where groups can be made. The name is one the next start sweeps.
    pub fn group_for_job(&self, name: &str) -> Option<Group> {
        self.around.groups.create(&format!("{}job-{name}", group::REPLICA)).ok().flatten()
    }

    /// Nobody is in it any more: it is removed as soon as the kernel lets go of it.
    pub fn leave_group(&mut self, group: Group) {
        self.vacant.push(group);
        self.remove_vacant_groups();
    }

    /// The child that is being tried out, if any: it is nobody's descendant.
    pub fn set_trial(&mut self, pid: Option<i32>) {
        self.trial = pid;
    }

    /// Nobody listens any more.
    pub fn close_sockets(&mut self) {
        self.sockets.close_all();
    }

    /// Nobody is left, and nobody need be told.
    pub fn remove_roster(&mut self) {
        if let Some(roster) = &mut self.roster {
            roster.remove();
        }
    }

    /// What a pure table of [`slot`] makes of all copies of the replica at `place`, which is given with its number among them.
    pub(super) fn on_copies<T>(&mut self, place: usize, act: impl FnOnce(&mut [&mut Standing], usize) -> T) -> Option<T> {
        let (name, index) = self.replicas.get(place).map(|replica| (replica.worker.name.clone(), replica.index))?;
        let number = self.replicas.iter().take(place).filter(|replica| replica.is_copy_of(&name, index)).count();
        let copies = self.replicas.iter_mut().filter(|replica| replica.is_copy_of(&name, index));
        let mut standings: Vec<&mut Standing> = copies.map(|replica| &mut replica.standing).collect();
        Some(act(&mut standings, number))
    }

    /// Replaces whose turn it is.
    fn take_turns(&mut self, now: Moment, events: &mut Vec<Event>) {
        self.next_turn = None;
        if self.closing || !self.replicas.iter().any(|replica| replica.wish.is_some()) {
            return;
        }
        for worker in self.workers.clone() {
            let places: Vec<usize> = (0..self.replicas.len())
                .filter(|place| self.replicas.get(*place).is_some_and(|replica| replica.worker.name == worker.name))
                .collect();
            let peers: Vec<Peer> = places.iter().filter_map(|place| self.replicas.get(*place)).map(peer).collect();
            match recycling::pick(&peers, self.replaced.get(&worker.name).copied(), worker.recycle.gap, now.steady) {
                Pick::Nobody => {}
                Pick::At(at) => self.next_turn = Some(self.next_turn.map_or(at, |other| other.min(at))),
                Pick::Now(number) => {
                    if let Some(place) = places.get(number) {
                        self.replace_now(*place, now, events);
                    }
                }
            }
        }
    }

    /// It is the turn of this replica.
    fn replace_now(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let may = self.on_copies(place, |copies, _| {
            let copies: Vec<&Standing> = copies.iter().map(|copy| &**copy).collect();
            slot::may_recycle(&copies)
        });
        let Some(replica) = self.replicas.get_mut(place).filter(|_| may == Some(Ok(()))) else { return };
        if replica.is_adopted() {
            return self.begin_restart(place, now, events);
        }
        let Some(wish) = replica.wish.take() else { return };
        let peak = self.totals.get(&replica.worker.name).map_or(0, |totals| totals.peak_memory);
        let peak = peak.max(replica.life.as_ref().map_or(0, |life| life.peak_memory));
        let worker = replica.worker.clone();
        let (index, pid) = (replica.index, replica.life.as_ref().map_or(0, |life| life.process.pid()));
        let manner = recycling::manner(&worker, peak, self.room);
        let detail = match &manner {
            Manner::Overlap(why) => format!("the replacement is started first: {why}"),
            Manner::StopFirst(why) => format!("stopped first: {why}"),
        };
        events.push(Event::WorkerRecycling { worker: worker.name.to_string(), replica: index, pid, cause: wish.cause, detail });
        match manner {
            Manner::Overlap(manner) => {
                let mut successor = Replica::new(worker, index);
                successor.standing = Standing::successor();
                successor.successor_of = Some(Replaced { cause: wish.cause, pid, manner });
                self.replicas.insert(place + 1, successor);
                self.renumber();
                self.start_if_due(place + 1, now, events);
            }
            Manner::StopFirst(_) => {
                let slot = replica.slot();
                replica.cause = Some(wish.cause);
                self.meet_all(|replica| replica.slot() == slot);
                self.on_copies(place, |copies, _| slot::restart(copies, now.steady, now.steady + worker.stop.within));
            }
        }
    }

    /// A replacement of this worker is over.
    pub(super) fn note_replaced(&mut self, worker: &Arc<str>, now: Moment) {
        self.replaced.insert(worker.clone(), now.steady);
    }

    /// What there is for a second copy of a replica that is replaced.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Reaps every child that has ended. Returns those that were no replica's process: orphans of some tree,
    /// and children the daemon started itself.
    pub fn reap(&mut self, now: Moment, events: &mut Vec<Event>) -> Vec<Exit> {
        let mut others = Vec::new();
        while let Some(exit) = process::reap_one() {
            if !self.on_exit(exit, now, events) && !self.note_restart_ended(&exit) {
                others.push(exit);
            }
        }
        // One look at all processes for all that have ended, not one for each: a thousand end together.
        self.look_after_ending(now, events);
        others
    }

    /// Notices the end of those who are not our children.
    pub fn reap_strangers(&mut self, now: Moment, events: &mut Vec<Event>) {
        let ended = |replica: &Replica| {
            let life = replica.life.as_ref().filter(|life| !life.is_child && life.exit.is_none())?;
            life.process.has_ended().then(|| (life.process.pid(), life.process.exit_of_stranger(), life.cpu, life.peak_memory))
        };
        let all: Vec<_> = self.replicas.iter().filter_map(ended).collect();
        for (pid, status, cpu, peak_memory) in all {
            if let (Some(watch), Some(life)) = (&self.watch, self.life_with_pid(pid)) {
                watch.remove(life.process.pidfd());
            }
            self.on_exit(Exit { pid, status, cpu, peak_memory }, now, events);
            self.look_after_ending(now, events);
        }
    }

    fn life_with_pid(&self, pid: i32) -> Option<&Life> {
        self.replicas.iter().filter_map(|replica| replica.life.as_ref()).find(|life| life.exit.is_none() && life.process.pid() == pid)
    }

    fn on_exit(&mut self, exit: Exit, now: Moment, events: &mut Vec<Event>) -> bool {
        let is_it = |replica: &Replica| replica.life.as_ref().is_some_and(|life| life.exit.is_none() && life.process.pid() == exit.pid);
        let Some(place) = self.replicas.iter().position(is_it) else { return false };
        let Some(replica) = self.replicas.get_mut(place) else { return false };
        let before = replica.standing;
        let Some(life) = replica.life.as_mut() else { return false };
        life.exit = Some((exit, now));
        // Counted for the whole machine: it was this one if the count has risen since the last tick.
        let is_killed = exit.status == ExitStatus::Signal(libc::SIGKILL) && !life.killed_by_us;
        let has_account = life.group.as_ref().is_some_and(|group| group.memory_accounting().is_some());
        if is_killed && !has_account {
            let now = scan::oom_kills(&self.around.paths, &mut self.scratch);
            life.oom = now.zip(self.oom_kills).is_some_and(|(now, before)| now > before);
        }
        let uptime = now.since(life.started);
        let spread = spread(life.slot.0);
        let backoff = &replica.worker.backoff;
        let is_command = self.around.command.as_ref().filter(|command| command.worker == replica.worker.name);
        let next = match (before.state, is_command) {
            // An end that was asked for is no part of a crash loop, however often it is asked for.
            (State::Stopping { purpose: Purpose::Down | Purpose::Replace | Purpose::GiveWay, .. }, _) => Next::Stopped,
            // Whoever starts it says when.
            _ if life.adopted => Next::StartAt(now.steady),
            (_, Some(command)) if !command.restart_was_set && (exit.status.is_clean() || uptime < backoff.healthy_after) => Next::Stopped,
            _ if before.role != Role::Main => Next::Stopped,
            _ => {
                let clean = exit.status.is_clean() && before.state.is_up();
                state::after_end(replica.worker.restart, backoff, &mut replica.history, clean, uptime, now.steady, spread)
            }
        };
        let grace = replica.worker.stop.within.min(state::SURVIVORS_WITHIN);
        replica.last_exit = Some(exit);
        self.targets = None;
        self.on_copies(place, |copies, number| slot::exited(copies, number, next, now.steady, now.steady + grace));
        if before.role == Role::Main && self.replicas.get(place).is_some_and(|replica| replica.standing.role == Role::Leaving) {
            self.inherit(place);
        }
        if before.role == Role::Successor {
            self.note_failed_replacement(place, "it ended before it was ready".to_owned(), now, events);
        }
        self.next_look = Some(now.steady);
        true
    }

    /// The successor beside the copy at `place` is the main copy now: what is remembered of the replica goes over to it.
    pub(super) fn inherit(&mut self, place: usize) {
        let Some(old) = self.replicas.get_mut(place) else { return };
        let (name, index) = (old.worker.name.clone(), old.index);
        let history = std::mem::take(&mut old.history);
        let (restarts, last_exit, lock) = (old.restarts.saturating_add(1), old.last_exit, old.lock.take());
        let heir = self.replicas.iter_mut().find(|replica| replica.is_copy_of(&name, index) && replica.is_main());
        if let Some(heir) = heir {
            (heir.history, heir.restarts, heir.last_exit, heir.lock) = (history, restarts, last_exit.or(heir.last_exit), lock);
        }
    }

    /// Which child of a pre-fork master holds most.
    pub fn note_fattest(&mut self, slot: SlotId, member: Option<(i32, u64)>) {
        if let Some(life) = self.life_mut(slot) {
            life.fattest = member;
        }
    }

    /// Sends a signal to one child of the process that was started, to this very one.
    ///
    /// # Errors
    /// When it may not be sent.
    pub fn signal_member(&self, slot: SlotId, (pid, started): (i32, u64), signal: Signal) -> io::Result<Delivery> {
        let Some(life) = self.life(slot) else { return Ok(Delivery::Gone) };
        let stat = match scan::process(&self.around.paths, pid, &mut Vec::new()) {
            Ok(stat) if stat.started == started && stat.ppid == life.process.pid() => stat,
            _ => return Ok(Delivery::Gone),
        };
        match Process::open_seen(&self.around.paths, &stat)? {
            Some(process) => process.signal(signal),
            None => Ok(Delivery::Gone),
        }
    }

    /// A replacement that somebody else carries out.
    pub fn count_recycle(&mut self, worker: &Arc<str>, cause: &str) {
        self.totals.entry(worker.clone()).or_default().count_recycle(cause);
    }

    /// Where children are policed one by one, it is the one that holds most who goes, not the master with all of them.
    fn replace_fattest(&mut self, slot: SlotId, cause: &'static str, signal: Option<Signal>) -> Option<bool> {
        let replica = self.replica(slot).filter(|replica| replica.worker.members.is_some())?;
        let member = replica.life.as_ref()?.fattest?;
        let (worker, signal) = (replica.worker.name.clone(), signal.unwrap_or(replica.worker.stop.signal));
        let reached = matches!(self.signal_member(slot, member, signal), Ok(Delivery::Delivered));
        if reached {
            self.count_recycle(&worker, cause);
        }
        Some(reached)
    }

    /// Asks for one life to end gracefully and be followed by another, when its turn comes. `at_once`: it does not wait for
    /// one, and not for its replacement: memory is short. False if it has ended or is ending.
    pub fn recycle(&mut self, slot: SlotId, cause: &'static str, at_once: bool, now: Moment) -> bool {
        if let Some(reached) = self.replace_fattest(slot, cause, None) {
            return reached;
        }
        let adopted = self.replica(slot).filter(|replica| replica.is_adopted()).map(|replica| replica.worker.can_be_restarted());
        match adopted {
            Some(false) => return false,
            None if at_once => return self.replace(slot, cause, now, None),
            _ => {}
        }
        let Some(replica) = self.places.get(&slot).and_then(|place| self.replicas.get_mut(*place)) else { return false };
        if replica.slot() != Some(slot) || !replica.is_main() || !replica.is_running() {
            return false;
        }
        if replica.restarting {
            return false;
        }
        let keeps_gap = cause != "manual" && !at_once;
        let wish = replica.wish.get_or_insert(Wish { cause, since: now.steady, not_before: Duration::ZERO, keeps_gap });
        wish.keeps_gap &= keeps_gap;
        self.next_turn = Some(now.steady);
        true
    }

    /// Ends one life's whole tree at once; it is followed by another.
    pub fn kill(&mut self, slot: SlotId, cause: &'static str, now: Moment) -> bool {
        if let Some(reached) = self.replace_fattest(slot, cause, Some(Signal(libc::SIGKILL))) {
            return reached;
        }
        self.next_look = None;
        self.replace(slot, cause, now, Some(now.steady))
    }

    fn replace(&mut self, slot: SlotId, cause: &'static str, now: Moment, kill_at: Option<Duration>) -> bool {
        self.meet_all(|replica| replica.slot() == Some(slot));
        let Some(place) = self.places.get(&slot).copied() else { return false };
        let Some(replica) = self.replicas.get_mut(place).filter(|replica| replica.slot() == Some(slot)) else { return false };
        if replica.is_adopted() && !(kill_at.is_some() && replica.worker.may_be_ended()) {
            return false;
        }
        let within = replica.worker.stop.within;
        let replaced = match (&mut replica.standing.state, kill_at) {
            (State::Starting { .. } | State::Running { .. }, _) => {
                replica.cause = Some(cause);
                replica.wish = None;
                true
            }
            // A kill may overtake a graceful end that does not come.
            (State::Stopping { kill_at, .. }, Some(at)) => {
                *kill_at = (*kill_at).min(at);
                return true;
            }
            _ => return false,
        };
        if let Some(life) = replica.life.as_mut() {
            life.kill_wanted = kill_at.is_some();
        }
        let purpose = if replica.is_main() { Purpose::Replace } else { Purpose::Down };
        replica.standing.state = state::asked_to_end(replica.standing.state, purpose, kill_at.unwrap_or(now.steady + within));
        if replica.standing.role == Role::Successor {
            slot::dismiss(&mut [&mut replica.standing], kill_at.unwrap_or(now.steady + within));
        }
        self.ask_those_to_end();
        replaced
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
        self.let_adopted_go(|_| true);
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
            let state = replica.standing.state;
            if !matches!(state, State::Stopping { purpose: Purpose::Down, .. } | State::Clearing { .. } | State::Stopped) {
                replica.cause = Some("stopped");
                slot::stop(&mut [&mut replica.standing], now.steady + replica.worker.stop.within);
            }
            match &mut replica.standing.state {
                State::Stopping { kill_at, .. } | State::Clearing { kill_at, .. } => *kill_at = (*kill_at).min(deadline),
                _ => {}
            }
        }
        self.ask_those_to_end();
    }

    /// True when no process of any replica is left.
    pub fn is_empty(&self) -> bool {
        self.replicas.iter().all(|replica| replica.life.is_none())
    }

    /// Removes the groups that were made for workers.
    pub fn remove_groups(&mut self) {
        group::remove_all(std::mem::take(&mut self.vacant));
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

    pub fn around(&self) -> &Surroundings {
        &self.around
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
        let waits = self.replicas.iter().filter_map(|replica| match replica.standing.state {
            State::Waiting | State::Backoff { .. } if self.closing || replica.standing.role == Role::Leaving => None,
            State::Waiting | State::Backoff { .. } if replica.waits_for.is_some() => replica.look_again,
            state @ State::Starting { .. } => {
                let look = replica.life.as_ref().and_then(|life| life.check.as_ref()).and_then(Check::next_look);
                state.deadline().into_iter().chain(look).min()
            }
            State::Running { .. } => replica.life.as_ref().and_then(|life| life.pulse.as_ref()).map(Pulse::next_look),
            state => state.deadline(),
        });
        waits.chain(self.next_look).chain(self.next_turn).chain(self.next_adoption()).chain(self.next_restart_deadline()).min()
    }

    /// Readable when a worker has said something.
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::fd)
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
        let has_account = |life: &Life| life.group.as_ref().is_some_and(|group| group.memory_accounting().is_some());
        if self.replicas.iter().filter_map(|replica| replica.life.as_ref()).any(|life| !has_account(life)) {
            self.oom_kills = scan::oom_kills(&self.around.paths, &mut self.scratch);
        }
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
    pub fn note_members(&mut self, slot: SlotId, members: impl Iterator<Item = (i32, u64)> + Clone) {
        let Some(life) = self.life_mut(slot) else { return };
        // Most looks at all processes find strangers only: that is to cost nothing.
        if members.clone().eq(life.known.iter().copied()) {
            return;
        }
        let before = std::mem::replace(&mut life.known, members.collect());
        let new: Vec<(i32, u64)> = life.known.iter().filter(|member| !before.contains(member)).copied().collect();
        self.roster_is_stale = true;
        if let Some((pid, _)) = new.into_iter().find(|member| self.is_astray(slot, *member)) {
            self.strays.push((slot, pid));
        }
    }

    /// Before any of these is asked to end: takes in everybody who is in its tree now. Once the parent of one that has left
    /// the session and the group has ended, nothing tells any more whose it was.
    pub(super) fn meet_all(&mut self, which: impl Fn(&Replica) -> bool) {
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
        foreign_group: life.foreign_group.clone(),
        merges: replica.worker.process.merge_pages,
    })
}

/// A life as it is written down.
pub(super) fn entry(replica: &Replica) -> Option<roster::Entry> {
    // Whoever comes after us finds an adopted one as we did; nobody ends it.
    let life = replica.life.as_ref().filter(|life| !life.adopted)?;
    Some(roster::Entry {
        worker: replica.worker.name.to_string(),
        index: replica.index,
        process: life.process.identity(),
        ready: replica.is_ready(),
        leaving: !(replica.is_main() && replica.is_running()),
        restarts: replica.restarts,
        requests: life.requests,
        fingerprint: life.fingerprint,
        on_daemon_death: replica.worker.on_daemon_death,
        stop_signal: replica.worker.stop.signal.0,
        stop_within_ms: u64::try_from(replica.worker.stop.within.as_millis()).unwrap_or(u64::MAX),
        members: life.known.clone(),
        groups: life.group.as_ref().map(Group::identities).unwrap_or_default(),
        mark: life.mark.clone(),
    })
}

/// How a copy stands, as far as the queue is concerned.
fn peer(replica: &Replica) -> Peer {
    let state = replica.standing.state;
    let is_out = match replica.standing.role {
        // On its way out with nobody to follow, or beside the one that followed: over when it is gone.
        Role::Successor | Role::Leaving => true,
        Role::Main => match state {
            State::Waiting => replica.waits_for.is_none(),
            State::Starting { .. } | State::Stopping { .. } | State::Clearing { .. } | State::Backoff { .. } => true,
            State::Running { .. } | State::Failed | State::Stopped => false,
        },
    };
    Peer { is_serving: replica.is_main() && matches!(state, State::Running { .. }), is_out, wish: replica.wish }
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
pub(super) fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

/// A number between 0 and 1 that differs from life to life and is the same for the same life (splitmix64).
pub(super) fn spread(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
