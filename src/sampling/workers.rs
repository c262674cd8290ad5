//! What each replica uses, over its whole process tree.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use procfs::FromBufRead;
use rustix::io::Errno;

use super::cpu::rate;
use super::lag::Processes;
use super::memory;
use super::readings::{Reading, SlotId, Source, Target, WorkerReadings};
use super::tally::Tally;
use super::trees::{Member, Trees};
use crate::host::cgroupfs::{self, Version};
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::{Paths, cputime, ksm, procfs as parse, scan};

/// Threads and descriptors are looked at this often at most …
const DETAILS_EVERY: Duration = Duration::from_secs(1);

/// … and of this many replicas in one tick, so that a thousand of them make no slow one.
const DETAILS_AT_ONCE: usize = 64;

/// A tree that has not run is read in full only every so many looks: by itself it changes nothing, but the kernel may
/// have taken memory from it.
const FULL_LOOK_EVERY: u64 = 8;

/// The kernel walks every page of a process to answer for its proportional share: 10 to 30 ms per GiB.
const PSS_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Workers {
    paths: Paths,
    page: u64,
    /// See [`memory::Group::kernel_share`].
    pub kernel_share: Option<f64>,
    workers: Vec<Worker>,
    index: HashMap<SlotId, usize>,
    /// The state of the trees whose members were taken in.
    met: Option<u64>,
    /// Where the next look at details begins, and when the round began.
    cursor: usize,
    round: Option<Moment>,
    /// Threads and descriptors are looked at.
    details: bool,
}

#[derive(Debug)]
struct Worker {
    slot: SlotId,
    name: Arc<str>,
    processes: Vec<Process>,
    /// Why a process of it could not be looked at, though it lives.
    unseen: Option<Errno>,
    /// What the account of the group said in the last full look.
    grouped: Option<Duration>,
    /// The last look that found that it had run.
    ran: Option<Moment>,
    /// Used by processes that have ended.
    ended: Duration,
    /// The most ever seen: what is told never goes down.
    highest: Duration,
    before: Option<(Moment, Duration)>,
    cpu_group: Option<(Version, Kept)>,
    memory_group: Option<memory::Group>,
    threads: Reading<u32>,
    descriptors: Reading<u32>,
    merges: bool,
    merged: Reading<u64>,
    /// What the tree had used when threads and descriptors were last looked at.
    detailed: Option<Duration>,
    pss: Pss,
    /// The last full look at all of it.
    last: Option<WorkerReadings>,
    /// Looks, from a start of its own: not all of a thousand trees are read in full in the same tick.
    looks: u64,
}

#[derive(Debug)]
struct Process {
    member: Member,
    statm: Kept,
    cpu: Duration,
    /// Pages.
    resident: u64,
    shared: u64,
}

/// The tree's memory by proportional shares, as a correction of the cheap estimate.
#[derive(Debug, Default)]
struct Pss {
    wanted: bool,
    /// When it was measured, and true size less estimate in bytes.
    measured: Option<(Moment, i64)>,
}

/// What one process said.
enum Look {
    Alive,
    Ended,
    Failed(Errno),
}

impl Workers {
    pub fn new(paths: &Paths) -> Workers {
        Workers {
            paths: paths.clone(),
            page: rustix::param::page_size() as u64,
            kernel_share: None,
            workers: Vec::new(),
            index: HashMap::new(),
            met: None,
            cursor: 0,
            round: None,
            details: true,
        }
    }

    /// Whether threads and descriptors are looked at. While they are not, they are not known.
    pub fn set_details(&mut self, wanted: bool) {
        self.details = wanted;
        if !wanted {
            for worker in &mut self.workers {
                (worker.threads, worker.descriptors) = (Reading::Unsupported, Reading::Unsupported);
            }
        }
    }

    pub fn want_pss(&mut self, slot: SlotId) {
        if let Some(worker) = self.index.get(&slot).and_then(|at| self.workers.get_mut(*at)) {
            worker.pss.wanted = true;
        }
    }

    pub fn read(
        &mut self,
        targets: &[Target],
        trees: &mut Trees,
        now: Moment,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
        into: &mut Vec<WorkerReadings>,
    ) {
        trees.follow(targets);
        let scanned = trees.refresh(now);
        if let Err(errno) = scanned {
            tally.failed::<()>(Source::Procfs, Some(errno));
        }
        self.follow(targets);
        if self.met != Some(trees.changes()) {
            self.met = Some(trees.changes());
            // Both follow the same targets in the same order.
            for (worker, (members, unseen)) in self.workers.iter_mut().zip(trees.each()) {
                worker.unseen = unseen;
                worker.meet(members, &self.paths, scratch);
                // Whoever could not be looked at is tried again in the next tick.
                self.met = self.met.filter(|_| worker.unseen.is_none());
            }
        }
        if self.details {
            self.look_at_details(now, scratch, tally);
        }
        into.clear();
        let (paths, page) = (&self.paths, self.page);
        let kernel_share = self.kernel_share;
        let complete = trees.complete();
        into.extend(self.workers.iter_mut().map(|worker| {
            if let Some(group) = &mut worker.memory_group {
                group.kernel_share = kernel_share;
            }
            worker.read(paths, page, now, complete, scratch, tally)
        }));
    }

    /// One replica's memory, over the processes that are known.
    pub fn glance(&mut self, slot: SlotId, now: Moment, scratch: &mut Vec<u8>) -> Reading<u64> {
        let page = self.page;
        match self.index.get(&slot).and_then(|at| self.workers.get_mut(*at)) {
            Some(worker) => worker.glance(page, now, scratch),
            None => Reading::Gone,
        }
    }

    /// What all known processes had that is in no file when they were last looked at, in bytes.
    pub fn anonymous(&self) -> u64 {
        self.workers.iter().map(|worker| anonymous(&worker.processes, self.page)).fold(0, u64::saturating_add)
    }

    /// The same now.
    pub fn ask_anonymous(&mut self, scratch: &mut Vec<u8>) -> u64 {
        let page = self.page;
        self.workers.iter_mut().map(|worker| ask_anonymous(&mut worker.processes, page, scratch)).fold(0, u64::saturating_add)
    }

    fn follow(&mut self, targets: &[Target]) {
        let is_same = |(worker, target): (&Worker, &Target)| {
            worker.slot == target.slot
                && worker.memory_group.is_some() == target.memory_group.is_some()
                && worker.cpu_group.is_some() == target.cpu_group.is_some()
        };
        if self.workers.len() == targets.len() && self.workers.iter().zip(targets).all(is_same) {
            return;
        }
        let mut before: HashMap<SlotId, Worker> = self.workers.drain(..).map(|worker| (worker.slot, worker)).collect();
        self.index.clear();
        for (at, target) in targets.iter().enumerate() {
            self.index.insert(target.slot, at);
            let mut worker = before.remove(&target.slot).unwrap_or_else(|| Worker::new(&self.paths, target));
            worker.lose_accounts(target);
            self.workers.push(worker);
        }
    }

    /// Threads and descriptors, a few replicas at a time.
    fn look_at_details(&mut self, now: Moment, scratch: &mut Vec<u8>, tally: &mut Tally) {
        if self.cursor >= self.workers.len() {
            if self.round.is_some_and(|begun| now.since(begun) < DETAILS_EVERY) {
                return self.look_at_new(scratch, tally);
            }
            self.cursor = 0;
            self.round = Some(now);
        }
        let mut left = DETAILS_AT_ONCE;
        while left > 0
            && let Some(worker) = self.workers.get_mut(self.cursor)
        {
            self.cursor += 1;
            if worker.has_run_since_details() {
                worker.look_at_details(&self.paths, self.page, scratch, tally);
                left -= 1;
            }
        }
        self.look_at_new(scratch, tally);
    }

    /// A replica just started is not left without figures until its turn comes.
    fn look_at_new(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) {
        let new = self.workers.iter_mut().filter(|worker| worker.threads == Reading::Unsupported && !worker.processes.is_empty());
        for worker in new.take(DETAILS_AT_ONCE) {
            worker.look_at_details(&self.paths, self.page, scratch, tally);
        }
    }
}

impl Worker {
    fn new(paths: &Paths, target: &Target) -> Worker {
        let cpu_group = target.cpu_group.as_ref().map(|folder| {
            let (version, file) = if folder.has("cpuacct.usage") { (Version::V1, "cpuacct.usage") } else { (Version::V2, "cpu.stat") };
            (version, Kept::within(paths, folder, file))
        });
        let memory_group = target.memory_group.as_ref().map(|folder| {
            let version = if folder.has("memory.usage_in_bytes") { Version::V1 } else { Version::V2 };
            memory::Group::of_replica(paths, version, folder)
        });
        Worker {
            slot: target.slot,
            name: target.worker.clone(),
            processes: Vec::new(),
            unseen: None,
            grouped: None,
            ran: None,
            ended: Duration::ZERO,
            highest: Duration::ZERO,
            before: None,
            cpu_group,
            memory_group,
            threads: Reading::Unsupported,
            descriptors: Reading::Unsupported,
            merges: target.merges,
            merged: Reading::Unsupported,
            detailed: None,
            pss: Pss::default(),
            last: None,
            looks: target.slot.0,
        }
    }

    /// An account can end before the replica does.
    fn lose_accounts(&mut self, target: &Target) {
        if target.memory_group.is_none() {
            self.memory_group = None;
        }
        if target.cpu_group.is_none() && self.cpu_group.take().is_some() {
            // What it knew of beside the living goes on to count; a rate across the two would be made up.
            self.ended = self.ended.saturating_add(self.highest.saturating_sub(self.tree_cpu()));
            (self.before, self.grouped, self.last) = (None, None, None);
        }
    }

    /// Takes in members that are new. Those that have ended are found out when they are read.
    fn meet(&mut self, members: &[Member], paths: &Paths, scratch: &mut Vec<u8>) {
        let known =
            self.processes.len() == members.len() && self.processes.iter().zip(members).all(|(process, member)| process.member == *member);
        if known {
            return;
        }
        for member in members {
            if self.processes.iter().any(|process| process.member == *member) {
                continue;
            }
            let mut statm = Kept::new(paths, paths.proc.join(format!("{}/statm", member.pid)));
            // Opened before its identity is checked: a file opened for another process is then found out, and one opened
            // for the right one never becomes another's.
            let stat = statm.read_once(scratch).map(|_| ()).and_then(|()| scan::process(paths, member.pid, scratch));
            match stat {
                Ok(stat) if stat.started == member.started && !stat.has_ended() => {
                    self.processes.push(Process { member: *member, statm, cpu: Duration::ZERO, resident: 0, shared: 0 });
                }
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(errno) => self.unseen = Some(errno),
            }
        }
    }

    /// `complete`: up to when all its members are known.
    fn read(
        &mut self,
        paths: &Paths,
        page: u64,
        now: Moment,
        complete: Option<Moment>,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> WorkerReadings {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(FULL_LOOK_EVERY)
            && let Some(readings) = self.read_at_rest(paths, now, complete, scratch, tally)
        {
            return readings;
        }
        let before = self.highest;
        let readings = self.read_in_full(paths, page, now, scratch, tally);
        if self.highest != before || self.ran.is_none() {
            self.ran = Some(now);
        }
        let is_whole = readings.processes.known().is_some() && readings.memory.known().is_some() && readings.cpu_total.known().is_some();
        self.last = is_whole.then(|| readings.clone());
        readings
    }

    /// The readings of a tree that has not run since the last full look: who does not run asks for no memory, makes no
    /// process, and does not end. `None` when it has, or when that cannot be told.
    fn read_at_rest(
        &mut self,
        paths: &Paths,
        now: Moment,
        complete: Option<Moment>,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> Option<WorkerReadings> {
        if self.unseen.is_some() || self.pss.wanted || !paths.is_live() {
            return None;
        }
        let last = self.last.as_ref()?;
        // Known of a full look, whatever it was taken from.
        let total = last.cpu_total.known()?;
        // Whoever has not run since all members were known has started nobody who is not.
        let is_complete = complete.zip(self.ran).is_some_and(|(complete, ran)| complete.steady > ran.steady);
        let rests = match self.cpu_group.is_some() && !is_complete {
            // The account of the group, several times as dear, knows of members too that were not found yet.
            true => self.grouped.is_some() && self.read_cpu_group(scratch, tally)?.known() == self.grouped,
            // To the nanosecond the same: it is the same process, and it has not run.
            false => self.processes.iter().all(|process| cputime::of_process(process.member.pid) == Ok(process.cpu)),
        };
        if !rests {
            return None;
        }
        let used_cores = rate(&mut self.before, now, total);
        Some(WorkerReadings { used_cores, threads: self.threads, descriptors: self.descriptors, merged: self.merged, ..self.last.clone()? })
    }

    fn read_in_full(&mut self, paths: &Paths, page: u64, now: Moment, scratch: &mut Vec<u8>, tally: &mut Tally) -> WorkerReadings {
        let mut failure = self.unseen;
        let before = anonymous(&self.processes, page);
        let ended = &mut self.ended;
        self.processes.retain_mut(|process| match process.look(paths, scratch) {
            Look::Alive => true,
            Look::Ended => {
                *ended += process.cpu;
                false
            }
            Look::Failed(errno) => {
                failure = Some(errno);
                true
            }
        });
        let processes = u32::try_from(self.processes.len()).unwrap_or(u32::MAX);
        if processes == 0 && failure.is_none() {
            return self.gone();
        }
        let (mut cpu_total, mut memory) = match failure {
            Some(errno) => (tally.failed(Source::Procfs, Some(errno)), tally.failed(Source::Procfs, Some(errno))),
            None => (Reading::Known(self.tree_cpu()), Reading::Known(self.tree_memory(paths, page, now, tally))),
        };
        let grouped = self.read_cpu_group(scratch, tally);
        self.grouped = grouped.as_ref().and_then(|group| group.known());
        if let Some(group) = grouped {
            cpu_total = group;
        }
        if let Some(group) = self.read_memory_group(before, page, now, scratch, tally) {
            memory = group;
        }
        if let Reading::Known(total) = &mut cpu_total {
            self.highest = self.highest.max(*total);
            *total = self.highest;
        }
        let used_cores = cpu_total.and_then(|total| rate(&mut self.before, now, total));
        WorkerReadings {
            slot: self.slot,
            worker: self.name.clone(),
            cpu_total,
            used_cores,
            memory,
            threads: self.threads,
            descriptors: self.descriptors,
            merged: self.merged,
            processes: failure.map_or(Reading::Known(processes), |errno| tally.failed(Source::Procfs, Some(errno))),
        }
    }

    /// Its memory alone. What was learned of shared pages still holds; who has ended is left to the next look.
    fn glance(&mut self, page: u64, now: Moment, scratch: &mut Vec<u8>) -> Reading<u64> {
        let mut tally = Tally::default();
        if let Some(group) = self.read_memory_group(anonymous(&self.processes, page), page, now, scratch, &mut tally) {
            return group;
        }
        for process in &mut self.processes {
            match process.statm.read_once(scratch).map(parse::parse_statm) {
                Ok(Some(statm)) => (process.resident, process.shared) = (statm.resident, statm.shared),
                Ok(None) => return tally.failed(Source::Procfs, None),
                Err(Errno::SRCH | Errno::NOENT) => (process.resident, process.shared) = (0, 0),
                Err(errno) => return tally.failed(Source::Procfs, Some(errno)),
            }
        }
        let correction = self.pss.measured.map_or(0, |(_, difference)| difference);
        Reading::Known(self.estimate(page).saturating_add_signed(correction))
    }

    fn gone(&self) -> WorkerReadings {
        WorkerReadings {
            slot: self.slot,
            worker: self.name.clone(),
            cpu_total: Reading::Gone,
            used_cores: Reading::Gone,
            memory: Reading::Gone,
            threads: Reading::Gone,
            descriptors: Reading::Gone,
            merged: Reading::Gone,
            processes: Reading::Gone,
        }
    }

    fn read_cpu_group(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Option<Reading<Duration>> {
        let (version, file) = self.cpu_group.as_mut()?;
        let parse = |text: &[u8]| match version {
            Version::V2 => cgroupfs::value_of(text, "usage_usec").map(Duration::from_micros),
            Version::V1 => cgroupfs::parse_number(text).map(Duration::from_nanos),
        };
        Some(tally.reading(Source::Cgroup, file.read(scratch), parse)).filter(is_answer)
    }

    /// `before`: what its processes had that is in no file at the look before this one, in bytes.
    fn read_memory_group(&mut self, before: u64, page: u64, now: Moment, scratch: &mut Vec<u8>, tally: &mut Tally) -> Option<Reading<u64>> {
        let Worker { memory_group, processes, .. } = self;
        let asked: memory::Asked = Processes { before, now: &mut |scratch: &mut Vec<u8>| ask_anonymous(processes, page, scratch) };
        Some(memory_group.as_mut()?.own_memory(now, asked, scratch, tally)).filter(is_answer)
    }

    fn tree_cpu(&self) -> Duration {
        self.processes.iter().fold(self.ended, |sum, process| sum.saturating_add(process.cpu))
    }

    /// Private pages of each process and, once, the largest shared part: forked workers share most of what they have.
    fn estimate(&self, page: u64) -> u64 {
        let private = self.processes.iter().fold(0u64, |sum, process| sum.saturating_add(process.resident.saturating_sub(process.shared)));
        let shared = self.processes.iter().map(|process| process.shared).max().unwrap_or(0);
        private.saturating_add(shared).saturating_mul(page)
    }

    /// As exact as it was asked for.
    fn tree_memory(&mut self, paths: &Paths, page: u64, now: Moment, tally: &mut Tally) -> u64 {
        let estimate = self.estimate(page);
        let due = self.pss.measured.is_none_or(|(then, _)| now.since(then) >= PSS_EVERY);
        if std::mem::take(&mut self.pss.wanted) && due {
            let total: Result<u64, Errno> = self.processes.iter_mut().map(|process| process.pss(paths)).sum();
            let difference = match total {
                Ok(total) => total.cast_signed().saturating_sub(estimate.cast_signed()),
                Err(errno) => {
                    tally.failed::<()>(Source::Procfs, Some(errno));
                    0
                }
            };
            self.pss.measured = Some((now, difference));
        }
        match self.pss.measured {
            Some((then, difference)) if now.since(then) < PSS_EVERY => estimate.saturating_add_signed(difference),
            _ => estimate,
        }
    }

    /// Who has not run has made no thread and opened no file; pages are merged by somebody else.
    fn has_run_since_details(&self) -> bool {
        self.merges || self.detailed != Some(self.highest) || self.threads.known().is_none() || self.descriptors.known().is_none()
    }

    fn look_at_details(&mut self, paths: &Paths, page: u64, scratch: &mut Vec<u8>, tally: &mut Tally) {
        self.detailed = Some(self.highest);
        let mut threads = Ok(0u32);
        let mut descriptors = Ok(0u64);
        for process in &self.processes {
            let pid = process.member.pid;
            // Counted first: if it is the same process after that, the files were its own.
            let open = scan::descriptors(paths, pid);
            match scan::process(paths, pid, scratch) {
                Ok(stat) if stat.started == process.member.started => threads = threads.map(|sum: u32| sum.saturating_add(stat.threads)),
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => continue,
                Err(errno) => threads = Err(errno),
            }
            descriptors = match (descriptors, open) {
                (Ok(sum), Ok(count)) => Ok(sum.saturating_add(count)),
                // It ended between two looks.
                (sum, Err(Errno::NOENT | Errno::SRCH)) => sum,
                (Err(errno), _) | (_, Err(errno)) => Err(errno),
            };
        }
        if self.merges {
            let saved = self.processes.iter().filter_map(|process| ksm::saved(paths, process.member.pid, page));
            self.merged = saved.reduce(u64::saturating_add).map_or(Reading::Unsupported, Reading::Known);
        }
        self.threads = threads.map_or_else(|errno| tally.failed(Source::Procfs, Some(errno)), Reading::Known);
        self.descriptors = match descriptors {
            Ok(count) => Reading::Known(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(errno) => tally.failed(Source::Procfs, Some(errno)),
        };
    }
}

/// What these had that is in no file when they were last looked at, in bytes.
fn anonymous(processes: &[Process], page: u64) -> u64 {
    processes.iter().map(|process| process.resident.saturating_sub(process.shared)).fold(0, u64::saturating_add).saturating_mul(page)
}

/// The same now. Who has ended, or cannot be asked, has nothing.
fn ask_anonymous(processes: &mut [Process], page: u64, scratch: &mut Vec<u8>) -> u64 {
    let own = |process: &mut Process| {
        let statm = process.statm.read_once(scratch).ok().and_then(parse::parse_statm)?;
        Some(statm.resident.saturating_sub(statm.shared))
    };
    processes.iter_mut().filter_map(own).fold(0, u64::saturating_add).saturating_mul(page)
}

/// A group the replica does not have, or has lost, is no answer: its processes are then asked one by one.
fn is_answer<T>(reading: &Reading<T>) -> bool {
    matches!(reading, Reading::Known(_) | Reading::Failed(_))
}

impl Process {
    fn look(&mut self, paths: &Paths, scratch: &mut Vec<u8>) -> Look {
        // The clock first: if the kept file can still be read after it, the pid was not another's when the clock was.
        let clock = if paths.is_live() { cputime::of_process(self.member.pid).ok() } else { None };
        let statm = match self.statm.read_once(scratch) {
            Ok(text) => parse::parse_statm(text),
            Err(Errno::SRCH | Errno::NOENT) => return Look::Ended,
            Err(errno) => return Look::Failed(errno),
        };
        let Some(statm) = statm else { return Look::Failed(Errno::BADMSG) };
        (self.resident, self.shared) = (statm.resident, statm.shared);
        // No memory at all: a zombie, unless other threads of it live on. Its clock has stopped for good.
        if statm.resident == 0 {
            let stat = match scan::process(paths, self.member.pid, scratch) {
                Err(errno) if !matches!(errno, Errno::NOENT | Errno::SRCH) => return Look::Failed(errno),
                stat => stat.ok().filter(|stat| stat.started == self.member.started),
            };
            if stat.is_none_or(|stat| stat.has_ended()) {
                self.cpu = clock.map_or(self.cpu, |cpu| cpu.max(self.cpu));
                return Look::Ended;
            }
        }
        let cpu = match clock {
            Some(cpu) => cpu,
            None => match scan::process(paths, self.member.pid, scratch) {
                Ok(stat) if stat.started == self.member.started => parse::ticks(stat.busy),
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => return Look::Ended,
                Err(errno) => return Look::Failed(errno),
            },
        };
        // A clock that goes back is a kernel's rounding.
        self.cpu = self.cpu.max(cpu);
        Look::Alive
    }

    /// Its proportional share in bytes; zero once it has ended.
    fn pss(&mut self, paths: &Paths) -> Result<u64, Errno> {
        let share = pss(paths, self.member.pid);
        // If the kept file can still be read after it, the number was not another's.
        match self.statm.read_once(&mut Vec::new()) {
            Ok(_) => share,
            Err(Errno::SRCH | Errno::NOENT) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}

/// Resident memory of whoever has this number, in bytes.
pub(super) fn resident(paths: &Paths, pid: i32, page: u64) -> Option<u64> {
    let text = std::fs::read(paths.proc.join(format!("{pid}/statm"))).ok()?;
    parse::parse_statm(&text).map(|statm| statm.resident.saturating_mul(page))
}

/// The proportional share of whoever has this number, in bytes; zero where nobody has.
pub(super) fn pss(paths: &Paths, pid: i32) -> Result<u64, Errno> {
    let error = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let text = match std::fs::read(paths.proc.join(format!("{pid}/smaps_rollup"))).map_err(error) {
        Err(Errno::NOENT | Errno::SRCH) => return Ok(0),
        text => text?,
    };
    let rollup = procfs::process::SmapsRollup::from_buf_read(text.as_slice()).map_err(|_| Errno::BADMSG)?;
    rollup.memory_map_rollup.iter().find_map(|map| map.extension.map.get("Pss").copied()).ok_or(Errno::BADMSG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Sampling, Scope};
    use crate::host::cgroupfs::Layout;
    use crate::sampling::Sampler;
    use rustix::process::{Pid, Signal};
    use std::process::{Child, Command, Stdio};

    /// A process tree in a session of its own, killed with all its members when it goes out of scope.
    struct Replica(Child);

    impl Replica {
        #[expect(clippy::disallowed_methods, reason = "a test needs processes of its own")]
        fn start(script: &str) -> Replica {
            Replica(
                Command::new("setsid")
                    .args(["sh", "-c", script])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap(),
            )
        }

        fn target(&self) -> Target {
            Target {
                slot: SlotId(7),
                worker: "web".into(),
                pid: self.0.id() as i32,
                cpu_group: None,
                memory_group: None,
                foreign_group: None,
                merges: false,
            }
        }

        fn kill(&mut self) {
            let group = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Replica {
        fn drop(&mut self) {
            self.kill();
        }
    }

    fn sampler() -> Sampler {
        let paths = Paths::default();
        let sampling = Sampling { interval: Duration::from_secs(2), scope: Scope::Auto, report_every: None };
        Sampler::new(&paths, &sampling, &Layout::discover(&paths), [])
    }

    /// Looks until `done` says so, each time at all processes anew.
    fn look_until(sampler: &mut Sampler, target: &Target, done: impl Fn(&WorkerReadings) -> bool) -> WorkerReadings {
        let begun = Moment::now();
        loop {
            let now = Moment::now();
            sampler.trees_mut().rescan(now).unwrap();
            let seen = sampler.read(std::slice::from_ref(target), now).workers[0].clone();
            if done(&seen) {
                return seen;
            }
            assert!(now.since(begun) < Duration::from_secs(20), "still {seen:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_tree_is_followed_to_its_end() {
        let mut replica = Replica::start("sleep 1000 & (sleep 1000 & sleep 1000) & wait");
        let target = replica.target();
        let mut sampler = sampler();
        // The shell, its two children and the grandchildren; a shell may run the last command of a list in its own place.
        let seen = look_until(&mut sampler, &target, |seen| seen.processes.known() >= Some(4));
        assert!(seen.threads.known() >= Some(1) && seen.descriptors.known() >= Some(3), "{seen:?}");
        let memory = seen.memory.known().unwrap();
        assert!((100_000..64 << 20).contains(&memory), "{memory} bytes for sleeping processes");
        let members = sampler.trees().members(SlotId(7)).to_vec();
        assert_eq!(members[0].pid, target.pid);
        replica.kill();
        let end = look_until(&mut sampler, &target, |seen| seen.memory == Reading::Gone);
        assert_eq!((end.cpu_total, end.processes), (Reading::Gone, Reading::Gone));
        sampler.trees_mut().rescan(Moment::now()).unwrap();
        assert_eq!(sampler.trees().members(SlotId(7)), []);
    }

    #[test]
    fn a_process_that_cuts_itself_loose_stays_ours() {
        let replica = Replica::start("sh -c 'setsid sleep 1000 & wait' & sleep 1000");
        let target = replica.target();
        let mut sampler = sampler();
        let kill = |member: Member| rustix::process::kill_process(Pid::from_raw(member.pid).unwrap(), Signal::KILL).unwrap();
        let parent_of =
            |member: &Member| scan::process(&Paths::default(), member.pid, &mut Vec::new()).ok().map(|stat| (stat.ppid, stat.session));
        let root = target.pid;
        // The sleeper in a session of its own, still the child of the inner shell.
        let mut loose = None;
        look_until(&mut sampler, &target, |seen| seen.processes.known() == Some(4));
        let begun = Moment::now();
        let is_loose =
            |member: &&Member| member.pid != root && parent_of(member).is_some_and(|(ppid, session)| ppid != root && session == member.pid);
        while loose.is_none() {
            loose = sampler.trees().members(SlotId(7)).iter().find(is_loose).copied();
            assert!(Moment::now().since(begun) < Duration::from_secs(20), "no sleeper in a session of its own");
            std::thread::yield_now();
        }
        let loose = loose.unwrap();
        let inner = parent_of(&loose).unwrap().0;
        kill(*sampler.trees().members(SlotId(7)).iter().find(|member| member.pid == inner).unwrap());
        let left = look_until(&mut sampler, &target, |seen| seen.processes.known() == Some(3));
        sampler.trees_mut().rescan(Moment::now()).unwrap();
        let members = sampler.trees().members(SlotId(7)).to_vec();
        kill(loose);
        assert!(members.contains(&loose), "{members:?} {left:?}");
    }

    #[test]
    fn cpu_of_a_child_counts_and_never_goes_down() {
        let replica = Replica::start("(while :; do :; done) & sleep 1000");
        let target = replica.target();
        let mut sampler = sampler();
        look_until(&mut sampler, &target, |seen| seen.processes.known() >= Some(2));
        let before = look_until(&mut sampler, &target, |seen| seen.cpu_total.known() > Some(Duration::from_millis(50)));
        let after = look_until(&mut sampler, &target, |seen| seen.cpu_total.known() > before.cpu_total.known());
        assert!(after.cpu_total.known() < Some(Duration::from_secs(60)));
        let spinning = sampler.trees().members(SlotId(7)).last().unwrap().pid;
        rustix::process::kill_process(rustix::process::Pid::from_raw(spinning).unwrap(), rustix::process::Signal::KILL).unwrap();
        let end = look_until(&mut sampler, &target, |seen| seen.processes.known() == Some(1));
        assert!(end.cpu_total.known() >= after.cpu_total.known(), "{end:?}");
    }

    #[test]
    fn the_account_of_a_group_is_asked_while_a_member_may_be_unknown_and_the_clocks_afterwards() {
        let replica = Replica::start("exec sleep 1000");
        let folder = tempfile::tempdir().unwrap();
        let account = |nanos: u64| std::fs::write(folder.path().join("cpuacct.usage"), format!("{nanos:010}\n")).unwrap();
        account(1_000_000_000);
        let group = Arc::new(crate::host::folder::Folder::open(folder.path()).unwrap());
        let target = Target { cpu_group: Some(group), ..replica.target() };
        let begun = Moment::now();
        let sleeps = || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", target.pid)).unwrap();
            name.trim() == "sleep" && scan::process(&Paths::default(), target.pid, &mut Vec::new()).unwrap().state == b'S'
        };
        while !sleeps() {
            assert!(Moment::now().since(begun) < Duration::from_secs(20), "it does not sleep");
            std::thread::yield_now();
        }
        let mut sampler = sampler();
        let mut total = |at: Duration| {
            let readings = sampler.read(std::slice::from_ref(&target), begun.after(at));
            readings.workers[0].cpu_total.known().unwrap().as_secs()
        };
        assert_eq!(total(Duration::ZERO), 1);
        // Too soon for another pass through all processes: somebody may have been started meanwhile.
        account(2_000_000_000);
        assert_eq!(total(Duration::from_millis(500)), 2);
        // By now everybody is known, and nobody has run.
        account(3_000_000_000);
        let later: Vec<u64> = (1..=FULL_LOOK_EVERY).map(|look| total(Duration::from_secs(60 * look))).collect();
        assert_eq!((later[0], later.last()), (2, Some(&3)), "the next full look finds out all the same: {later:?}");
    }

    #[test]
    fn an_account_that_stands_still_hides_no_growth_and_one_that_lags_behind_an_end_invents_none() {
        const MB: u64 = 1_000_000;
        let folder = tempfile::tempdir().unwrap();
        let flag = folder.path().join("go");
        // `tail` keeps all it reads until it finds an end of line.
        let script = format!("while [ ! -e {} ]; do sleep 0.01; done; (head -c 60000000 /dev/zero; sleep 1000) | tail", flag.display());
        let replica = Replica::start(&script);
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let charged = |bytes: u64| write("memory.usage_in_bytes", format!("{bytes:012}\n"));
        write("memory.stat", format!("total_rss {}\ntotal_inactive_file 0\ntotal_active_file 0\n", 40 * MB));
        charged(41 * MB);
        let group = Arc::new(crate::host::folder::Folder::open(folder.path()).unwrap());
        let target = Target { memory_group: Some(group), ..replica.target() };
        let mut sampler = sampler();
        // Whole looks: one at rest would not ask.
        let memory = |sampler: &mut Sampler| {
            sampler.want_pss(SlotId(7));
            sampler.read(std::slice::from_ref(&target), Moment::now()).workers[0].memory.known().unwrap()
        };
        assert_eq!(memory(&mut sampler), 40 * MB);
        charged(45 * MB);
        let told = memory(&mut sampler);
        assert!((40 * MB..41 * MB).contains(&told), "it may be file cache: {told}");
        std::fs::write(&flag, "").unwrap();
        let begun = Moment::now();
        let mut pages = 0;
        while memory(&mut sampler) <= 90 * MB {
            assert!(Moment::now().since(begun) < Duration::from_secs(20), "the growth is not seen");
            pages += 1;
            charged(145 * MB + pages * 4096);
            sampler.trees_mut().rescan(Moment::now()).unwrap();
        }
        assert!(memory(&mut sampler) < 145 * MB, "more than is charged");
        charged(3 * MB);
        assert_eq!(memory(&mut sampler), 3 * MB, "what is not charged is not there");
    }

    #[test]
    fn shared_memory_is_measured_once_when_asked() {
        let replica = Replica::start("sleep 1000 & sleep 1000 & wait");
        let target = replica.target();
        let mut sampler = sampler();
        let cheap = look_until(&mut sampler, &target, |seen| seen.processes.known() == Some(3)).memory.known().unwrap();
        sampler.want_pss(SlotId(7));
        let exact = sampler.read(std::slice::from_ref(&target), Moment::now()).workers[0].memory.known().unwrap();
        assert!(exact > 0 && exact != cheap && exact < cheap * 3, "estimate {cheap}, exact {exact}");
    }
}
