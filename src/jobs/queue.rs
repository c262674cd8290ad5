//! Which job runs now. A pure state machine: it is told the time, what is high and what has ended, and says what to begin.
//!
//! ```text
//!            due, missed, asked, a disk is full                    nobody runs, nobody goes first, nothing is high
//!   idle ───────────────────────────────────────▶ pending ───────────────────────────────────────────────────────▶ running ──▶ idle
//!                                                     └── high for longer than it waits, lock held elsewhere ──▶ skipped
//! ```
//!
//! Each job has a *mark*: the nominal moment up to which everything that was due is dealt with, by a run or by a skip. It is kept in
//! the state database, so what was due while nobody was there is known at the next start: all of it together is one run (`catch_up`).
//! A job that was never seen before has the moment it is seen first. One run at a time over all jobs; a job that is due while it runs
//! is not due twice. Among those that are due at the same nominal moment, or were let wait until then, the ones named in `after` go first:
//! jitter, a night that loses an hour and a long run do not change the order.
//!
//! Wall time says when a job is due, steady time how long anything takes. Where the two move apart by more than [`TOLERANCE`] the wall
//! clock was set: moments due are found anew from the mark. By more than [`JUMP`], and nothing that goes by age is to be trusted
//! for one run (`Order::clock_jumped`). Set back, nothing that ran just now is run again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::run::Order;
use super::schedule::{Due, Schedule};
use crate::config::jobs::{CatchUp, Job, Then};
use crate::host::clock::Moment;

/// What is begun later than this was missed.
const GRACE: Duration = Duration::from_secs(300);
/// Wall and steady time may move apart by so much from look to look without the clock having been set.
const TOLERANCE: Duration = Duration::from_secs(2);
/// A clock set by more than this makes ages doubtful.
const JUMP: Duration = Duration::from_secs(60);
/// How long a lock that somebody else has is waited for, and how often it is tried.
const LOCKED_FOR: Duration = Duration::from_secs(600);
const LOCK_LOOK: Duration = Duration::from_secs(5);

/// Less than any two moments of a schedule are apart, and more than a number of seconds in the database is off.
const JUST_BEFORE: Duration = Duration::from_millis(1);
/// A job is not run for a disk more often than this.
const RELIEF_PAUSE: Duration = Duration::from_secs(60);

/// Why a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Schedule,
    /// It was due when nobody was there, or was interrupted.
    CatchUp,
    /// Somebody asked for it.
    Asked,
    /// A disk is over its line.
    Disk,
}

impl Cause {
    pub fn word(self) -> &'static str {
        match self {
            Cause::Schedule => "schedule",
            Cause::CatchUp => "catch_up",
            Cause::Asked => "asked",
            Cause::Disk => "disk",
        }
    }

    pub fn of_word(word: &str) -> Option<Cause> {
        [Cause::Schedule, Cause::CatchUp, Cause::Asked, Cause::Disk].into_iter().find(|cause| cause.word() == word)
    }
}

/// Why a run that was due is not begun: the label values of `plimsoll_job_skips_total{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Nobody was there to begin it, and `catch_up = "skip"`.
    Missed,
    /// A resource was over its line for longer than it waits.
    High,
    /// It was still running.
    Running,
    /// Another daemon has its lock.
    Locked,
}

impl Skip {
    pub const ALL: [Skip; 4] = [Skip::Missed, Skip::High, Skip::Running, Skip::Locked];

    pub fn word(self) -> &'static str {
        match self {
            Skip::Missed => "missed",
            Skip::High => "high",
            Skip::Running => "running",
            Skip::Locked => "locked",
        }
    }
}

/// A run that begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    pub job: Arc<Job>,
    pub cause: Cause,
    /// The nominal moment it was due.
    pub due: Option<SystemTime>,
    /// So many moments that were due before are covered by it as well.
    pub missed: u32,
    pub order: Order,
    /// Of whoever asked.
    pub ticket: Option<u64>,
    waits_since: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Start(Box<Start>),
    Skip {
        job: Arc<Job>,
        reason: Skip,
        due: Option<SystemTime>,
        count: u32,
        detail: String,
    },
    /// The wall clock was set by so many seconds, forward where positive.
    ClockSet(f64),
}

/// What is remembered of a job from before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    pub mark: Option<SystemTime>,
    /// A run that began and of whose end nothing is known: why it had begun, and the moment it was due.
    pub interrupted: Option<(Cause, Option<SystemTime>)>,
    /// The wall clock is not what it was when the job ran last.
    pub clock_jumped: bool,
}

#[derive(Clone, Debug)]
struct Pending {
    cause: Cause,
    due: Option<SystemTime>,
    missed: u32,
    order: Order,
    ticket: Option<u64>,
    /// On the steady clock.
    since: Duration,
    /// Since when it waits for a resource.
    high_since: Option<Duration>,
    not_before: Duration,
}

#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    schedule: Option<Schedule>,
    /// Why the schedule cannot be used.
    fault: Option<String>,
    mark: SystemTime,
    due: Option<Due>,
    /// By its schedule, or for a disk.
    pending: Option<Pending>,
    asked: Option<Pending>,
    /// The order of the run that goes on.
    running: Option<Order>,
    /// Begun last, on the steady clock.
    begun: Option<Duration>,
    jumped: bool,
    /// Not in the settings any more; goes when its run has ended.
    gone: bool,
    waits_for: Option<String>,
}

/// How a job stands, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// `idle`, `waiting`, `running`
    pub state: &'static str,
    pub next: Option<SystemTime>,
    pub waits_for: Option<String>,
}

#[derive(Debug)]
pub struct Queue {
    entries: Vec<Entry>,
    host: String,
    seen: Moment,
}

impl Queue {
    /// `host` is what tells this machine from others; `past` what is known of each job.
    pub fn new(jobs: &[Arc<Job>], host: &str, mut past: impl FnMut(&str) -> Past, now: Moment) -> Queue {
        let mut queue = Queue { entries: Vec::new(), host: host.to_owned(), seen: now };
        for job in jobs {
            let past = past(&job.name);
            let mut entry = queue.entry(job, past.mark.unwrap_or(now.wall));
            // A mark that lies ahead was set under another clock.
            entry.jumped = past.clock_jumped || entry.mark > now.wall + JUMP;
            entry.mark = entry.mark.min(now.wall);
            let is_due_again = matches!(past.interrupted, Some((Cause::Schedule | Cause::Disk, _))) && job.catch_up == CatchUp::Once;
            if let Some((_, due)) = past.interrupted.filter(|_| is_due_again) {
                entry.pending = Some(Pending::new(Cause::CatchUp, due, 0, now));
            }
            entry.find_due();
            queue.entries.push(entry);
        }
        queue
    }

    fn entry(&self, job: &Arc<Job>, mark: SystemTime) -> Entry {
        let (schedule, fault) = match Schedule::of(job, &self.host) {
            Ok(schedule) => (schedule, None),
            Err(why) => (None, Some(why)),
        };
        Entry {
            job: job.clone(),
            schedule,
            fault,
            mark,
            due: None,
            pending: None,
            asked: None,
            running: None,
            begun: None,
            jumped: false,
            gone: false,
            waits_for: None,
        }
    }

    /// Other settings. A job whose schedule is another begins anew with it; one that is gone ends its run.
    pub fn apply(&mut self, jobs: &[Arc<Job>], now: Moment) {
        for entry in &mut self.entries {
            entry.gone = !jobs.iter().any(|job| job.name == entry.job.name);
        }
        for job in jobs {
            match self.entries.iter().position(|entry| entry.job.name == job.name) {
                None => {
                    let mut entry = self.entry(job, now.wall);
                    entry.find_due();
                    self.entries.push(entry);
                }
                Some(place) => {
                    let fresh = self.entry(job, now.wall);
                    let Some(entry) = self.entries.get_mut(place) else { continue };
                    let when = |job: &Job| (job.schedule.clone(), job.timezone.clone(), job.jitter);
                    if when(&entry.job) != when(job) {
                        (entry.mark, entry.pending) = (now.wall, None);
                    }
                    (entry.job, entry.schedule, entry.fault) = (fresh.job, fresh.schedule, fresh.fault);
                    entry.find_due();
                }
            }
        }
        self.entries.retain(|entry| !entry.gone || entry.running.is_some());
        self.entries.sort_by(|one, other| one.job.name.cmp(&other.job.name));
    }

    /// Somebody wants this job to run. `ticket` comes back with its start.
    ///
    /// # Errors
    /// Why not, for people: it runs or is asked for already, or there is none of that name.
    pub fn ask(&mut self, name: &str, order: Order, ticket: u64, now: Moment) -> Result<(), String> {
        let entry = self.known(name).ok_or_else(|| format!("there is no job {name:?}"))?;
        if entry.running.is_some() {
            return Err(format!("{name} is running"));
        }
        if entry.asked.is_some() {
            return Err(format!("{name} is asked for already, and waits for another job to end"));
        }
        entry.asked = Some(Pending { order, ticket: Some(ticket), ..Pending::new(Cause::Asked, None, 0, now) });
        Ok(())
    }

    /// A disk is over its line: this job runs as soon as nobody else does.
    ///
    /// # Errors
    /// Why that is of no use, for people.
    pub fn relieve(&mut self, name: &str, free_bytes: u64, now: Moment) -> Result<(), String> {
        let entry = self.known(name).ok_or_else(|| format!("there is no job {name}"))?;
        if entry.running.is_some_and(|order| !order.dry_run) {
            return Err(format!("{name} is running already"));
        }
        // What it could free it has freed; a disk that fills again is given some time to have something to free.
        if let Some(begun) = entry.begun.filter(|begun| now.steady.saturating_sub(*begun) < RELIEF_PAUSE) {
            return Err(format!("{name} ran {} s ago", now.steady.saturating_sub(begun).as_secs()));
        }
        let order = Order { free_bytes: Some(free_bytes), ..Order::default() };
        let before = entry.pending.take();
        // It does what a run that was due would do, and more.
        let due = before.as_ref().and_then(|pending| pending.due);
        let since = before.map_or(now.steady, |pending| pending.since);
        entry.pending = Some(Pending { order, since, ..Pending::new(Cause::Disk, due, 0, now) });
        Ok(())
    }

    fn known(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| !entry.gone && *entry.job.name == *name)
    }

    /// True when [`Queue::advance`] has something to do, or may have: a moment has come, somebody waits, the clock was set. Costs nothing.
    pub fn is_worth_a_look(&mut self, now: Moment) -> bool {
        let (by, _) = self.moved_apart(now);
        if by > TOLERANCE {
            return true;
        }
        // Clocks that are steered drift apart for ever: what counts is from look to look.
        self.seen = now;
        self.entries.iter().any(|entry| {
            let is_due = entry.due.is_some_and(|due| due.at <= now.wall);
            is_due || entry.pending.is_some() || entry.asked.is_some()
        })
    }

    /// By how much wall and steady time have moved apart since the last look; true for a wall clock that was set back.
    fn moved_apart(&self, now: Moment) -> (Duration, bool) {
        let expected = self.seen.wall + now.steady.saturating_sub(self.seen.steady);
        match now.wall.duration_since(expected) {
            Ok(ahead) => (ahead, false),
            Err(behind) => (behind.duration(), true),
        }
    }

    /// What is to be done now. `high` names a resource that is over its line.
    pub fn advance(&mut self, now: Moment, high: Option<&str>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.look_at_clock(now, &mut steps);
        for entry in &mut self.entries {
            entry.become_due(now, &mut steps);
        }
        // Those that have waited long enough for something that does not come are out of the others' way first.
        for entry in &mut self.entries {
            entry.give_up(now, high, &mut steps);
        }
        if self.entries.iter().any(|entry| entry.running.is_some()) {
            let runs = self.entries.iter().find(|entry| entry.running.is_some()).map(|entry| entry.job.name.clone());
            for entry in self.entries.iter_mut().filter(|entry| entry.running.is_none()) {
                let waits = entry.pending.is_some() || entry.asked.is_some();
                entry.waits_for = runs.as_ref().filter(|_| waits).map(|runs| format!("{runs} to end"));
            }
            return steps;
        }
        let ready: Vec<Result<bool, String>> = (0..self.entries.len()).map(|place| self.is_ready(place, now, high)).collect();
        for (entry, ready) in self.entries.iter_mut().zip(&ready) {
            entry.waits_for = ready.as_ref().err().cloned();
        }
        let first = self.entries.iter().enumerate().zip(&ready).filter(|(_, ready)| **ready == Ok(true));
        // Who is asked for comes first, then who was due first.
        let rank = |entry: &Entry| match (&entry.asked, &entry.pending) {
            (Some(asked), _) => (0, None, asked.since),
            (None, Some(pending)) if pending.cause == Cause::Disk => (1, None, pending.since),
            (None, pending) => (2, pending.as_ref().and_then(|pending| pending.due), pending.as_ref().map_or(now.steady, |one| one.since)),
        };
        let first = first.map(|(found, _)| found).min_by_key(|(place, entry)| (rank(entry), *place)).map(|(place, _)| place);
        if let Some(entry) = first.and_then(|place| self.entries.get_mut(place))
            && let Some(start) = entry.begin(now)
        {
            steps.push(Step::Start(Box::new(start)));
        }
        steps
    }

    /// `Ok(false)`: there is nothing to begin. `Err`: what it waits for.
    fn is_ready(&self, place: usize, now: Moment, high: Option<&str>) -> Result<bool, String> {
        let Some(entry) = self.entries.get(place) else { return Ok(false) };
        if entry.asked.is_some() {
            return Ok(true);
        }
        let Some(pending) = &entry.pending else { return Ok(false) };
        if pending.not_before > now.steady {
            return Err("its lock, which another daemon has".to_owned());
        }
        if pending.cause == Cause::Disk {
            return Ok(true);
        }
        for other in self.entries.iter().filter(|other| entry.job.after.contains(&other.job.name)) {
            let is_pending = other.pending.as_ref().is_some_and(|other| other.cause != Cause::Disk);
            // Due at the same moment or before, but for its jitter.
            let is_to_come = other.due.zip(pending.due).is_some_and(|(theirs, ours)| theirs.nominal <= ours);
            if is_pending || is_to_come {
                return Err(format!("{}, which goes first", other.job.name));
            }
        }
        let wait = entry.job.when_high.wait;
        match high {
            Some(resource) if pending.high_since.is_none_or(|since| now.steady < since + wait) => {
                Err(format!("{resource} to be under its line"))
            }
            _ => Ok(true),
        }
    }

    /// Its run has ended, or could not be begun. `is_lasting` when it was a run whose ages counted for something.
    pub fn ended(&mut self, name: &str, is_lasting: bool) {
        for entry in self.entries.iter_mut().filter(|entry| *entry.job.name == *name) {
            if is_lasting && entry.running.is_some_and(|order| !order.dry_run) {
                entry.jumped = false;
            }
            entry.running = None;
        }
        self.entries.retain(|entry| !entry.gone || entry.running.is_some());
    }

    /// Its lock is held elsewhere: it is tried again for a while, unless somebody stands there and waits.
    pub fn put_off(&mut self, start: &Start, now: Moment) {
        self.ended(&start.job.name, false);
        let Some(entry) = self.known(&start.job.name) else { return };
        // Of what somebody asked for only the run that was due anyway, and would have been done by it, is left.
        let (cause, order) = match (start.ticket, start.due) {
            (None, _) => (start.cause, start.order),
            (Some(_), Some(_)) => (Cause::Schedule, Order::default()),
            (Some(_), None) => return,
        };
        entry.pending.get_or_insert(Pending {
            order,
            since: start.waits_since,
            not_before: now.steady + LOCK_LOOK,
            ..Pending::new(cause, start.due, start.missed, now)
        });
    }

    /// The moment up to which everything is dealt with, of each job with a schedule: what only waits is not, should nobody be here
    /// any more to begin it.
    pub fn marks(&self) -> impl Iterator<Item = (&Arc<str>, SystemTime)> {
        let dealt_with = |entry: &Entry| match entry.pending.as_ref().and_then(|pending| pending.due) {
            Some(due) => entry.mark.min(due.checked_sub(JUST_BEFORE).unwrap_or(due)),
            None => entry.mark,
        };
        self.entries.iter().filter(|entry| entry.schedule.is_some()).map(move |entry| (&entry.job.name, dealt_with(entry)))
    }

    /// Schedules that cannot be used, and why.
    pub fn faults(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.entries.iter().filter_map(|entry| Some((&entry.job.name, entry.fault.as_deref()?)))
    }

    pub fn standing(&self, name: &str) -> Option<Standing> {
        let entry = self.entries.iter().find(|entry| *entry.job.name == *name)?;
        let state = match (&entry.running, entry.pending.is_some() || entry.asked.is_some()) {
            (Some(_), _) => "running",
            (None, true) => "waiting",
            (None, false) => "idle",
        };
        Some(Standing { state, next: entry.due.map(|due| due.at), waits_for: entry.waits_for.clone().or_else(|| entry.fault.clone()) })
    }

    /// When it is worth looking again, on the steady clock, if nothing else happens. Of what waits for others these tell.
    pub fn next_deadline(&self, now: Moment) -> Option<Duration> {
        let due = |entry: &Entry| entry.due.map(|due| now.steady + due.at.duration_since(now.wall).unwrap_or_default());
        let patience = |entry: &Entry| {
            let pending = entry.pending.as_ref().filter(|_| entry.running.is_none())?;
            let high = pending.high_since.map(|since| since + entry.job.when_high.wait);
            let locked = Some(pending.not_before).filter(|at| *at > now.steady);
            high.filter(|at| *at > now.steady).into_iter().chain(locked).min()
        };
        self.entries.iter().flat_map(|entry| [due(entry), patience(entry)]).flatten().min()
    }

    fn look_at_clock(&mut self, now: Moment, steps: &mut Vec<Step>) {
        let (by, is_back) = self.moved_apart(now);
        self.seen = now;
        if by <= TOLERANCE {
            return;
        }
        steps.push(Step::ClockSet(if is_back { -by.as_secs_f64() } else { by.as_secs_f64() }));
        for entry in &mut self.entries {
            entry.jumped |= by > JUMP;
            if entry.mark > now.wall {
                // Not for as long as the clock was ahead: that may be years.
                entry.mark = entry.mark.min(now.wall + entry.done_for(now));
            }
            entry.find_due();
        }
    }
}

impl Pending {
    fn new(cause: Cause, due: Option<SystemTime>, missed: u32, now: Moment) -> Pending {
        Pending {
            cause,
            due,
            missed,
            order: Order::default(),
            ticket: None,
            since: now.steady,
            high_since: None,
            not_before: Duration::ZERO,
        }
    }
}

impl Entry {
    fn find_due(&mut self) {
        self.due = self.schedule.as_ref().filter(|_| !self.gone).and_then(|schedule| schedule.next_after(self.mark));
    }

    /// How long from now nothing has to be done again although the clock says so: until half its period is over since it ran.
    fn done_for(&self, now: Moment) -> Duration {
        let next = self.schedule.as_ref().and_then(|schedule| schedule.next_after(self.mark));
        let period = next.and_then(|next| next.nominal.duration_since(self.mark).ok());
        let left = |(period, begun): (Duration, Duration)| (period / 2).saturating_sub(now.steady.saturating_sub(begun));
        period.zip(self.begun).map_or(Duration::ZERO, left)
    }

    fn become_due(&mut self, now: Moment, steps: &mut Vec<Step>) {
        if self.due.is_none_or(|due| due.at > now.wall) {
            return;
        }
        let passed = self.schedule.as_ref().and_then(|schedule| schedule.passed(self.mark, now.wall));
        let Some(passed) = passed else { return self.find_due() };
        self.mark = passed.last.nominal;
        self.find_due();
        let due = Some(passed.last.nominal);
        let skip = |reason, count, detail: &str| Step::Skip { job: self.job.clone(), reason, due, count, detail: detail.to_owned() };
        let is_late = now.wall.duration_since(passed.last.at).unwrap_or_default() > GRACE;
        if is_late && self.job.catch_up == CatchUp::Skip {
            steps.push(skip(Skip::Missed, passed.count, "nobody was there to begin it"));
            return;
        }
        if self.running.is_some_and(|order| !order.dry_run) {
            steps.push(skip(Skip::Running, passed.count, "the run before has not ended"));
            return;
        }
        if let Some(pending) = &mut self.pending {
            // What waits already is the same run, only later.
            steps.push(Step::Skip {
                job: self.job.clone(),
                reason: Skip::Running,
                due: pending.due,
                count: passed.count,
                detail: "the run before has not begun".to_owned(),
            });
            pending.due = due;
            return;
        }
        let cause = if is_late { Cause::CatchUp } else { Cause::Schedule };
        self.pending = Some(Pending::new(cause, due, passed.count - 1, now));
    }

    /// Leaves what has waited too long.
    fn give_up(&mut self, now: Moment, high: Option<&str>, steps: &mut Vec<Step>) {
        let Some(pending) = &mut self.pending else { return };
        let (due, count) = (pending.due, pending.missed + 1);
        if pending.not_before > Duration::ZERO && now.steady.saturating_sub(pending.since) > LOCKED_FOR {
            let detail = "another daemon has its lock".to_owned();
            steps.push(Step::Skip { job: self.job.clone(), reason: Skip::Locked, due, count, detail });
            self.pending = None;
            return;
        }
        let Some(resource) = high.filter(|_| pending.cause != Cause::Disk) else { return };
        let since = *pending.high_since.get_or_insert(now.steady);
        if now.steady >= since + self.job.when_high.wait && self.job.when_high.then == Then::Skip {
            let detail = format!("{resource} was over its line for {} s", self.job.when_high.wait.as_secs());
            steps.push(Step::Skip { job: self.job.clone(), reason: Skip::High, due, count, detail });
            self.pending = None;
        }
    }

    fn begin(&mut self, now: Moment) -> Option<Start> {
        let pending = match self.asked.take() {
            // One that was due is done by it, unless it only looks.
            Some(asked) if !asked.order.dry_run => {
                let due = self.pending.take().and_then(|pending| pending.due);
                Pending { due, ..asked }
            }
            Some(asked) => asked,
            None => self.pending.take()?,
        };
        let order = Order { dry_run: pending.order.dry_run || self.job.dry_run, clock_jumped: self.jumped, ..pending.order };
        self.running = Some(order);
        self.waits_for = None;
        if !order.dry_run {
            self.begun = Some(now.steady);
        }
        Some(Start {
            job: self.job.clone(),
            cause: pending.cause,
            due: pending.due,
            missed: pending.missed,
            order,
            ticket: pending.ticket,
            waits_since: pending.since,
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
