//! Holds the memory of replicas: a line above which one is slowed, memory asked back, a stop for a moment.
//!
//! What may be held here, and how it ends:
//! - a **line** (`memory.high`, on v1 the soft limit): *writing* → *set* → lifted. The old value is in the undo log before the
//!   first write, with the value we put there: it is put back only while that is still there, so that what others have set
//!   meanwhile stays theirs. One lifted while a write of it is under way is put back once more when that write is over.
//! - a **stop**: *stopped* until its time is over, `longest_stop` at the longest; by the group's freezer (noted in the undo log),
//!   else by SIGSTOP (noted in the table of stopped processes).
//!
//! The kernel may take seconds to answer a write that makes it take memory back. Such writes are done by two threads, one for
//! lines and one for asking back, so that the loop never waits for them; what only gives something back is written by the
//! loop itself. Whether a line may be granted and for how long is decided in `response::lease`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;

use crate::config::settings::{Signal, ThrottleMethod};
use crate::host::cgroupfs::Version;
use crate::host::clock::Moment;
use crate::host::folder::GroupFile;
use crate::host::freezer::Freezer;
use crate::host::memory_group::{self, MemoryGroup, Pace, Tried};
use crate::host::process::{Delivery, Process};
use crate::host::stops::{StopTable, Ticket};
use crate::host::{Paths, advice, group, scan, scheduling};
use crate::policy::Resource;
use crate::response::action::{Line, Portion};
use crate::response::candidate::{Grasp, Held, LineKind, ReclaimBy};
use crate::response::lease::{Lease, Term};
use crate::sampling::readings::SlotId;
use crate::supervisor::{Replica, Supervisor};

use super::complain;
use super::undo::{Saved, UndoLog};

/// Writes that may wait for a thread at once.
const QUEUE: usize = 64;
/// Lines set by others are looked for this often, …
const GUARD_EVERY: Duration = Duration::from_secs(1);
/// … in so many replicas each time at least, and in this part of all.
const GUARD_LEAST: usize = 64;
const GUARD_PART: usize = 5;

/// A pressure file that is read sooner than this stops counting.
const PACE_EVERY: Duration = Duration::from_millis(10);

/// What works here, found by doing it at the start; else why not.
#[derive(Clone, Debug)]
pub struct Means {
    pub line: Result<LineKind, String>,
    pub reclaim: Result<ReclaimBy, String>,
    pub freeze: Result<FreezeBy, String>,
}

/// How a replica is stopped for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeBy {
    Group,
    Signal,
}

impl Means {
    /// Nothing works, for the given reason.
    pub fn none(why: &str) -> Means {
        Means { line: Err(why.to_owned()), reclaim: Err(why.to_owned()), freeze: Err(why.to_owned()) }
    }

    /// Tries everything out: on a group made for the purpose, and on `child`, a process of ours.
    pub fn find(paths: &Paths, groups: &group::Groups, child: Option<i32>) -> Means {
        let advice = match child.and_then(|pid| Process::open_child(paths, pid).ok().flatten()) {
            Some(child) => advice::is_taken_for(&child).map_err(|error| format!("process_madvise: {error}")),
            None => Err("there is no process to try it on".to_owned()),
        };
        let tried = groups.try_memory().unwrap_or_else(|| Tried::failed(Version::V2, "no memory groups of our own"));
        let (kind, way) = match tried.version {
            Version::V2 => (LineKind::Slows, ReclaimBy::Group),
            Version::V1 => (LineKind::Hints, ReclaimBy::Emptying),
        };
        let (line, asking) = (tried.line.map(|()| kind), tried.reclaim.map(|()| way));
        let reclaim = asking.or_else(|why| match advice {
            Ok(()) => Ok(ReclaimBy::Advice),
            Err(other) => Err(format!("{why}; {other}")),
        });
        let freeze = match (groups.try_freeze(), child) {
            (Ok(()), _) => Ok(FreezeBy::Group),
            (Err(_), Some(_)) => Ok(FreezeBy::Signal),
            (Err(why), None) => Err(why),
        };
        Means { line, reclaim, freeze }
    }

    /// What does not work, each with its reason, for people.
    pub fn limitations(&self) -> Vec<String> {
        let mut list = Vec::new();
        match &self.line {
            Ok(LineKind::Slows) => {}
            Ok(LineKind::Hints) => {
                list.push("no memory.high on cgroup v1: growth is slowed by the processor, the soft limit is a hint".to_owned())
            }
            Err(why) => list.push(format!("no memory.high: {why}; growth is slowed by the processor")),
        }
        if let Err(why) = &self.reclaim {
            list.push(format!("no reclaim: {why}"));
        }
        if let Err(why) = &self.freeze {
            list.push(format!("no stops while memory comes back: {why}"));
        }
        list
    }
}

/// A line that was taken off without anybody asking for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifted {
    pub slot: SlotId,
    pub worker: String,
    pub line: u64,
    pub why: String,
    pub failed: Option<String>,
}

#[derive(Debug)]
pub struct Brake {
    paths: Paths,
    means: Means,
    stops: Arc<StopTable>,
    undo: UndoLog,
    lines: BTreeMap<SlotId, Lent>,
    /// Lifted while a write was under way, by the number of that write.
    closing: BTreeMap<u64, MemoryGroup>,
    frozen: BTreeMap<SlotId, Frozen>,
    writer: Helper,
    asker: Helper,
    jobs: u64,
    /// Of what was asked back: what went wrong.
    complaints: Vec<String>,
    guarded: Option<Moment>,
    cursor: usize,
    /// Lines of others that are watched.
    foreign: BTreeMap<SlotId, Lease>,
}

/// A line that we hold a replica at.
#[derive(Debug)]
struct Lent {
    group: MemoryGroup,
    old: String,
    bytes: u64,
    /// The write that has not been answered yet.
    job: Option<u64>,
    /// How the replica got on, and when that was read.
    pace: Option<(Moment, Pace)>,
}

impl Lent {
    fn held(&self) -> Held {
        self.job.map_or(Held::Set(self.bytes), |_| Held::Writing)
    }

    fn pace(&mut self, now: Moment) -> Pace {
        match self.pace {
            Some((at, pace)) if now.since(at) < PACE_EVERY => pace,
            _ => self.pace.insert((now, self.group.pace())).1,
        }
    }
}

#[derive(Debug)]
struct Frozen {
    grip: FrozenBy,
    until: Duration,
}

#[derive(Debug)]
enum FrozenBy {
    Group(Freezer, GroupFile),
    Signal(Vec<(Process, Ticket)>),
}

impl Brake {
    pub fn new(paths: Paths, means: Means, stops: Arc<StopTable>, undo: UndoLog) -> Brake {
        let writer = Helper::start("lines", &paths);
        let asker = Helper::start("reclaim", &paths);
        Brake {
            paths,
            means,
            stops,
            undo,
            lines: BTreeMap::new(),
            closing: BTreeMap::new(),
            frozen: BTreeMap::new(),
            writer,
            asker,
            jobs: 0,
            complaints: Vec::new(),
            guarded: None,
            cursor: 0,
            foreign: BTreeMap::new(),
        }
    }

    pub fn means(&self) -> &Means {
        &self.means
    }

    /// What can be done about a replica's memory, and what it is made of now.
    pub fn grasp(&mut self, replica: &Replica, now: Moment) -> Grasp {
        let group = memory_group(replica);
        let swap_room = match &group {
            Some(group) => group.swap_room(&self.paths),
            None => memory_group::swap_free(&self.paths),
        };
        let has_group = group.is_some();
        let lent = replica.slot().and_then(|slot| self.lines.get_mut(&slot));
        let (held, pace) = lent.map_or((None, Pace::default()), |lent| (Some(lent.held()), lent.pace(now)));
        let needs_group = |by: ReclaimBy| has_group || by == ReclaimBy::Advice;
        Grasp {
            figures: group.as_ref().and_then(|group| group.figures().ok()),
            swap_room,
            line: self.means.line.as_ref().ok().copied().filter(|_| has_group),
            held,
            pace,
            reclaim: self.means.reclaim.as_ref().ok().copied().filter(|by| needs_group(*by)),
            can_freeze: self.means.freeze.is_ok(),
        }
    }

    /// Holds a replica at a line, or moves the line it is held at. The error says why it cannot be done; whether the kernel
    /// takes it is known later.
    pub fn hold(&mut self, line: &Line, supervisor: &Supervisor) -> Result<(), String> {
        self.means.line.clone()?;
        let replica = supervisor.replica(line.slot).filter(|replica| replica.is_running()).ok_or("it is not running any more")?;
        let (group, old, pace) = match self.lines.get(&line.slot) {
            Some(lent) => (lent.group.clone(), lent.old.clone(), lent.pace),
            None => {
                let group = memory_group(replica).ok_or("it has no memory group of its own")?;
                let old = group.line_file().read().map_err(|error| error.to_string())?;
                (group, old, None)
            }
        };
        let wanted = line.bytes.to_string();
        let saved = Saved::lent(&group.line_file(), &old, &wanted);
        self.undo.save(saved).map_err(|error| format!("the old line could not be saved: {error}"))?;
        self.jobs += 1;
        let job = Job { id: self.jobs, work: Work::Line(group.clone(), wanted) };
        if let Err(why) = self.writer.give(job) {
            if !self.lines.contains_key(&line.slot) {
                self.put_back(&group);
            }
            return Err(why);
        }
        // An earlier write that is still under way is answered first: the last one counts.
        self.lines.insert(line.slot, Lent { group, old, bytes: line.bytes, job: Some(self.jobs), pace });
        Ok(())
    }

    /// Takes the line off a replica, if we hold it at one.
    pub fn lift(&mut self, slot: SlotId) -> Result<(), String> {
        let Some(lent) = self.lines.remove(&slot) else { return Ok(()) };
        match lent.job {
            None => complain(self.put_back(&lent.group)),
            Some(job) => {
                // More than is in use, so the kernel need not take anything back for it. The entry stays in the undo log: the
                // write that is under way may still come after this one.
                let _ = lent.group.set_line(&lent.old);
                self.closing.insert(job, lent.group);
                Ok(())
            }
        }
    }

    fn put_back(&mut self, group: &MemoryGroup) -> Vec<String> {
        let file = group.line_file();
        self.undo.restore(&self.paths, |saved| saved.is_lent_of(&file))
    }

    /// Asks the kernel for memory back; what comes is measured later.
    pub fn ask_back(&mut self, portions: &[Portion], supervisor: &Supervisor) -> Result<(), String> {
        let mut given = 0;
        let mut why = "nobody of them runs any more".to_owned();
        for portion in portions {
            let Some(replica) = supervisor.replica(portion.slot).filter(|replica| replica.is_running()) else { continue };
            let work = match (portion.by, memory_group(replica)) {
                (ReclaimBy::Group, Some(group)) => Work::Reclaim(group, portion.bytes),
                (ReclaimBy::Emptying, Some(group)) => Work::Empty(group),
                (ReclaimBy::Advice, _) => Work::Advise(members(&self.paths, portion.slot, supervisor), portion.bytes),
                (_, None) => continue,
            };
            self.jobs += 1;
            match self.asker.give(Job { id: self.jobs, work }) {
                Ok(()) => given += 1,
                Err(error) => why = error,
            }
        }
        if given > 0 { Ok(()) } else { Err(why) }
    }

    /// Stops a replica for as long as its settings allow at most.
    pub fn freeze(&mut self, slot: SlotId, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        let by = self.means.freeze.clone()?;
        let replica = supervisor.replica(slot).filter(|replica| replica.is_running()).ok_or("it is not running any more")?;
        if self.frozen.contains_key(&slot) {
            return Ok(());
        }
        let until = now + replica.worker.longest_stop;
        let folder = replica.life.as_ref().and_then(|life| life.group.as_ref()).and_then(group::Group::freezer);
        let grip = match (by, folder) {
            (FreezeBy::Group, Some(folder)) => {
                let freezer = Freezer::open(folder).map_err(|error| format!("{}: {error}", folder.path().display()))?;
                let file = freezer.file().clone();
                self.undo.save(Saved::lent(&file, "0", "1")).map_err(|error| format!("the stop could not be written down: {error}"))?;
                if let Err(error) = freezer.freeze() {
                    self.thawed(&file);
                    return Err(error.to_string());
                }
                FrozenBy::Group(freezer, file)
            }
            _ => {
                let mut held = Vec::new();
                for member in members(&self.paths, slot, supervisor) {
                    // Written down first: what the sentinel does not know of must not be stopped.
                    let Some(ticket) = self.stops.note(member.identity()) else { break };
                    match member.signal(Signal(libc::SIGSTOP)) {
                        Ok(Delivery::Delivered) => held.push((member, ticket)),
                        Ok(Delivery::Gone) | Err(_) => self.stops.clear(ticket),
                    }
                }
                FrozenBy::Signal(held)
            }
        };
        self.frozen.insert(slot, Frozen { grip, until });
        Ok(())
    }

    fn thawed(&mut self, file: &GroupFile) -> Vec<String> {
        self.undo.restore(&self.paths, |saved| saved.is_lent_of(file))
    }

    fn thaw(&mut self, slot: SlotId) -> Result<(), String> {
        let Some(frozen) = self.frozen.remove(&slot) else { return Ok(()) };
        match frozen.grip {
            FrozenBy::Group(freezer, file) => {
                // Through the open file, which is bound to that very group; the log then finds it done.
                let _ = freezer.thaw();
                complain(self.thawed(&file))
            }
            FrozenBy::Signal(held) => {
                let failed = held.iter().filter_map(|(member, ticket)| {
                    let result = member.signal(Signal(libc::SIGCONT));
                    // Who could not be let go stays on the sentinel's list.
                    if result.is_ok() {
                        self.stops.clear(*ticket);
                    }
                    result.err().map(|error| format!("pid {}: {error}", member.pid()))
                });
                complain(failed.collect())
            }
        }
    }

    /// Lets one replica go: it is about to end, and a stopped process gets no signal.
    pub fn let_go(&mut self, slot: SlotId) -> Result<(), String> {
        self.foreign.remove(&slot);
        let results = [self.thaw(slot), self.lift(slot)];
        complain(results.into_iter().filter_map(Result::err).collect())
    }

    /// Lets go whoever is held in a way that its settings do not allow any more; called after a reload.
    pub fn apply(&mut self, supervisor: &Supervisor) -> Result<(), String> {
        let may_be_held = |slot: &SlotId| {
            let replica = supervisor.replica(*slot);
            replica.is_some_and(|replica| matches!(replica.worker.throttle, ThrottleMethod::Auto | ThrottleMethod::Cgroup))
        };
        let wrong: Vec<SlotId> = self.lines.keys().copied().filter(|slot| !may_be_held(slot)).collect();
        complain(wrong.into_iter().filter_map(|slot| self.lift(slot).err()).collect())
    }

    /// Takes off everything that was put on for the sake of `resource`.
    pub fn release(&mut self, resource: &Resource) -> Result<(), String> {
        if *resource == Resource::Memory { self.let_all_go().map(|_| ()) } else { Ok(()) }
    }

    /// Lets everybody go; how many were held.
    pub fn let_all_go(&mut self) -> Result<u32, String> {
        let slots: std::collections::BTreeSet<SlotId> = self.lines.keys().chain(self.frozen.keys()).copied().collect();
        let mut failed: Vec<String> = slots.iter().filter_map(|slot| self.let_go(*slot).err()).collect();
        // Whatever is still written down, from a release that failed earlier; but not what a write that is under way may
        // yet change, while there is a group for it.
        let closing: Vec<GroupFile> = self.closing.values().map(MemoryGroup::line_file).collect();
        let may_come = |saved: &Saved| closing.iter().any(|file| saved.is_lent_of(file) && file.path().exists());
        failed.extend(self.undo.restore(&self.paths, |saved| matches!(saved, Saved::Lent { .. }) && !may_come(saved)));
        complain(failed).map(|()| u32::try_from(slots.len()).unwrap_or(u32::MAX))
    }

    /// True while anybody is held for the sake of `resource`.
    pub fn holds_for(&self, resource: &Resource) -> bool {
        *resource == Resource::Memory && !self.lines.is_empty()
    }

    /// Everybody who is held at a line.
    pub fn held(&self) -> impl Iterator<Item = SlotId> {
        self.lines.keys().copied()
    }

    /// The line a replica is held at, in bytes.
    pub fn line_of(&self, slot: SlotId) -> Option<u64> {
        self.lines.get(&slot).map(|lent| lent.bytes)
    }

    /// When the next stop is over.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.frozen.values().map(|frozen| frozen.until).min()
    }

    /// Ends what is over, lets go whoever is ending, and takes in the answers of the kernel.
    pub fn step(&mut self, supervisor: &Supervisor, now: Duration) {
        let is_running = |slot: SlotId| supervisor.replica(slot).is_some_and(Replica::is_running);
        let over: Vec<SlotId> =
            self.frozen.iter().filter(|(slot, frozen)| frozen.until <= now || !is_running(**slot)).map(|(slot, _)| *slot).collect();
        for slot in over {
            // What could not be put back stays written down, here and below: `let_all_go` and the next start try again.
            let _ = self.thaw(slot);
        }
        let ended: Vec<SlotId> = self.lines.keys().copied().filter(|slot| !is_running(*slot)).collect();
        for slot in ended {
            let _ = self.let_go(slot);
        }
        while let Some(done) = self.writer.answer() {
            if let Some(group) = self.closing.remove(&done.id) {
                self.put_back(&group);
                continue;
            }
            let Some(slot) = self.lines.iter().find(|(_, lent)| lent.job == Some(done.id)).map(|(slot, _)| *slot) else { continue };
            if let Some(lent) = self.lines.get_mut(&slot) {
                lent.job = None;
            }
            if done.result.is_err() {
                let _ = self.lift(slot);
            }
        }
        while let Some(done) = self.asker.answer() {
            self.complaints.extend(done.result.err());
        }
    }

    /// What the kernel refused to give back since this was last asked.
    pub fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    /// Watches lines that others have put on groups of ours, a part of all replicas each second. One below use with nothing
    /// to take back stalls a replica for as long as it stays: it is taken off after [`WITHOUT_PROGRESS`] of that. Any other is theirs.
    ///
    /// [`WITHOUT_PROGRESS`]: crate::response::lease::WITHOUT_PROGRESS
    pub fn guard(&mut self, supervisor: &Supervisor, now: Moment) -> Vec<Lifted> {
        let mut lifted = Vec::new();
        if self.means.line != Ok(LineKind::Slows) || self.guarded.is_some_and(|at| now.since(at) < GUARD_EVERY) {
            return lifted;
        }
        self.guarded = Some(now);
        let replicas = supervisor.replicas();
        let count = (replicas.len() / GUARD_PART).max(GUARD_LEAST).min(replicas.len());
        let watched: Vec<SlotId> = self.foreign.keys().copied().collect();
        let next = replicas.iter().cycle().skip(self.cursor).take(count).filter_map(Replica::slot);
        let slots: std::collections::BTreeSet<SlotId> = next.chain(watched).collect();
        self.cursor = (self.cursor + count) % replicas.len().max(1);
        for slot in slots {
            let replica = supervisor.replica(slot).filter(|replica| replica.is_running());
            let (Some(replica), false) = (replica, self.lines.contains_key(&slot)) else {
                self.foreign.remove(&slot);
                continue;
            };
            let Some(group) = memory_group(replica) else { continue };
            let is_none = group.line_file().read().is_ok_and(|text| text == "max");
            if is_none {
                self.foreign.remove(&slot);
                continue;
            }
            let Ok(figures) = group.figures() else { continue };
            let Some(line) = figures.line else { continue };
            let watch = self.foreign.entry(slot).or_insert_with(|| Lease::new(line, &figures, now));
            if watch.line != line {
                *watch = Lease::new(line, &figures, now);
            }
            if let Some(Term::End(why)) = watch.look_at_others(&figures, group.pace(), group.swap_room(&self.paths), now) {
                self.foreign.remove(&slot);
                let failed = group.set_line("max").err().map(|error| error.to_string());
                lifted.push(Lifted { slot, worker: format!("{}.{}", replica.worker.name, replica.index), line, why, failed });
            }
        }
        lifted
    }
}

fn memory_group(replica: &Replica) -> Option<MemoryGroup> {
    replica.life.as_ref()?.group.as_ref()?.memory_group()
}

fn members(paths: &Paths, slot: SlotId, supervisor: &Supervisor) -> Vec<Process> {
    let mut processes = Vec::new();
    // Nobody seen is nobody held.
    let seen = scan::processes(paths, &mut processes, &mut Vec::new()).map_err(io::Error::from);
    seen.and_then(|_| supervisor.members(slot, &processes)).unwrap_or_default()
}

/// A thread for writes the kernel may be long in answering.
#[derive(Debug)]
struct Helper {
    /// `None`: it could not be started; says why.
    jobs: Result<SyncSender<Job>, String>,
    answers: Receiver<Done>,
}

#[derive(Debug)]
struct Job {
    id: u64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Line(MemoryGroup, String),
    Reclaim(MemoryGroup, u64),
    Empty(MemoryGroup),
    Advise(Vec<Process>, u64),
}

#[derive(Debug)]
struct Done {
    id: u64,
    result: Result<(), String>,
}

impl Helper {
    /// Started beforehand: when memory is short there may be none left for a thread.
    fn start(name: &str, paths: &Paths) -> Helper {
        let (jobs, to_do) = mpsc::sync_channel::<Job>(QUEUE);
        let (done, answers) = mpsc::sync_channel::<Done>(QUEUE * 2);
        let paths = paths.clone();
        let run = move || {
            while let Ok(job) = to_do.recv() {
                let result = perform(&job.work, &paths).map_err(|error| error.to_string());
                if done.send(Done { id: job.id, result }).is_err() {
                    break;
                }
            }
        };
        let thread = scheduling::deaf_to_signals(|| std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run));
        Helper { jobs: thread.map(|_| jobs).map_err(|error| format!("no thread for {name}: {error}")), answers }
    }

    fn give(&self, job: Job) -> Result<(), String> {
        match self.jobs.as_ref().map_err(Clone::clone)?.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("the kernel is still busy with what was asked before".to_owned()),
            Err(TrySendError::Disconnected(_)) => Err("the thread for it has ended".to_owned()),
        }
    }

    fn answer(&self) -> Option<Done> {
        self.answers.try_recv().ok()
    }
}

/// Enough for reading a file and writing one.
const STACK: usize = 256 * 1024;

fn perform(work: &Work, paths: &Paths) -> io::Result<()> {
    match work {
        Work::Line(group, line) => group.set_line(line),
        Work::Reclaim(group, bytes) => group.reclaim(*bytes),
        Work::Empty(group) => group.empty(),
        Work::Advise(members, bytes) => {
            let mut left = *bytes;
            for member in members {
                if left == 0 {
                    break;
                }
                left = left.saturating_sub(advice::page_out(paths, member, left)?);
            }
            Ok(())
        }
    }
}
