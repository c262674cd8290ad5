//! The jobs of the daemon: the queue decides, a process of its own carries out, and what is known of each is published and written down.
//!
//! The loop never waits here. What a run says comes through a bounded channel and a ring of the loop's bell; the trigger rings it when
//! a job is due. Without a state database all of this goes on in memory.

pub mod running;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use serde_json::json;

use crate::config::Settings;
use crate::config::jobs::Job;
use crate::host::clock::Moment;
use crate::host::process::{Exit, ExitStatus, signal_name};
use crate::host::{Paths, filesystem, inventory, scan};
use crate::http::control::{Answer, JobCommand, Request};
use crate::jobs::errand::{Errand, MOST_ITEMS};
use crate::jobs::plan::Totals;
use crate::jobs::queue::{Queue, Skip, Start, Step};
use crate::jobs::run::{End, Failure, Order, Report};
use crate::jobs::trigger::Trigger;
use crate::jobs::{kinds, ledger};
use crate::journal::Event;
use crate::journal::record::Fields;
use crate::journal::runs::{Entry, Known};
use crate::policy::{Level, Resource};
use crate::response::action::Outcome as Effect;
use crate::snapshot::jobs::{JobRun, JobState, OUTCOMES};

use super::guardian::Guardian;
use running::{Heard, Hindrance, Place, Ring, Running};

/// Reports that may wait for the loop; a run that says more waits itself.
const HEARD: usize = 64;
/// Runs that are remembered of each job.
pub const REMEMBERED: usize = 20;
/// The loop looks by itself so long after a moment that the trigger should have rung at.
const SLACK: Duration = Duration::from_secs(1);
/// Kinds of deleted things that are counted apart: kinds of jobs have a handful.
const MOST_WHATS: usize = 16;
/// While a run is told to stop at the end, it is looked at this often at least.
const LOOK: Duration = Duration::from_millis(50);

/// In the state folder: one run at a time, whoever began it.
pub const LOCK: &str = "jobs.lock";

/// Everything the loop keeps about jobs.
pub struct Jobs {
    queue: Queue,
    /// In the order of their names.
    states: Vec<JobState>,
    published: Arc<Vec<JobState>>,
    running: Option<Running>,
    askers: BTreeMap<u64, Asker>,
    tickets: u64,
    heard: Receiver<Heard>,
    tell: SyncSender<Heard>,
    ring: Ring,
    trigger: Option<Trigger>,
    /// What the trigger is set to.
    armed: Option<Duration>,
    /// As they stand in the database.
    marks: BTreeMap<Arc<str>, f64>,
    boot: Option<String>,
    lock: PathBuf,
    /// Something is to be looked at, whatever the time.
    is_stirred: bool,
}

/// Somebody who waits for the end of a run.
#[derive(Debug)]
struct Asker {
    request: Request,
    until: Option<Duration>,
}

impl Jobs {
    /// `known` is what the state database says; `folder` the one whose lock runs take, `Folders::for_locks`.
    pub fn new(settings: &Settings, known: &Known, folder: &std::path::Path, ring: Ring, now: Moment) -> Jobs {
        let boot = scan::boot_id(&Paths::default());
        let runs_of = |name: &str| known.runs.iter().filter(|run| run.job == name).cloned().collect::<Vec<_>>();
        let past = |name: &str| ledger::past(known.marks.get(name).copied(), &runs_of(name), known.alive, now, boot.as_deref());
        let queue = Queue::new(&settings.jobs, &inventory::machine_id(), past, now);
        let (tell, heard) = mpsc::sync_channel(HEARD);
        let mut jobs = Jobs {
            queue,
            states: settings.jobs.iter().map(|job| state_of(job, &runs_of(&job.name))).collect(),
            published: Arc::default(),
            running: None,
            askers: BTreeMap::new(),
            tickets: 0,
            heard,
            tell,
            ring,
            trigger: None,
            armed: None,
            marks: known.marks.iter().map(|(name, until)| (Arc::from(name.as_str()), *until)).collect(),
            boot,
            lock: folder.join(LOCK),
            is_stirred: true,
        };
        jobs.publish();
        jobs
    }

    /// How they stand, in the order of their names.
    pub fn published(&self) -> &Arc<Vec<JobState>> {
        &self.published
    }

    /// The process of the run that goes on.
    pub fn pid(&self) -> Option<i32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Takes the end of our process out of `others`.
    pub fn note_ended(&mut self, others: &mut Vec<Exit>) {
        let Some(running) = &mut self.running else { return };
        if let Some(place) = others.iter().position(|exit| exit.pid == running.pid()) {
            running.peak_memory = running.group.as_ref().and_then(|group| group.peak_memory());
            running.exit = Some(others.swap_remove(place));
        }
    }

    /// When the loop is to look, if nothing wakes it before.
    pub fn next_deadline(&self, now: Moment) -> Option<Duration> {
        let due = self.queue.next_deadline(now).map(|due| if self.trigger.is_some() { due + SLACK } else { due });
        let askers = self.askers.values().filter_map(|asker| asker.until).min();
        [due, self.running.as_ref().and_then(Running::next_deadline), askers].into_iter().flatten().min()
    }

    fn state(&mut self, name: &str) -> Option<&mut JobState> {
        self.states.iter_mut().find(|state| *state.name == *name)
    }

    /// Writes the states over from the queue and the run, and publishes them.
    fn publish(&mut self) {
        for state in &mut self.states {
            let Some(standing) = self.queue.standing(&state.name) else { continue };
            standing.state.clone_into(&mut state.state);
            state.next_run = standing.next.map(ledger::seconds);
            state.waits_for = standing.waits_for;
            let running = self.running.as_ref().filter(|running| running.start.job.name == state.name);
            state.running = running.map(|running| running.progress.clone());
        }
        self.published = Arc::new(self.states.clone());
    }

    /// Sets the trigger to the next moment; it is started with the first.
    fn arm(&mut self, now: Moment) {
        let due = self.queue.next_deadline(now);
        // A wall clock that is steered moves it by a little at each look.
        let is_set = match (self.armed, due) {
            (Some(armed), Some(due)) => armed.abs_diff(due) < Duration::from_millis(100),
            (armed, due) => armed == due,
        };
        if is_set {
            return;
        }
        if self.trigger.is_none() {
            self.trigger = Trigger::start(self.ring.clone()).ok();
        }
        if let Some(trigger) = &self.trigger {
            trigger.set(due);
        }
        self.armed = due;
    }
}

/// What is known of a job before it has run in this daemon's life; `runs` are the latest first.
pub fn state_of(job: &Job, runs: &[JobRun]) -> JobState {
    let last = runs.iter().find(|run| run.outcome.is_some() && !run.dry_run);
    let zeros = |words: &[&str]| words.iter().map(|word| ((*word).to_owned(), 0)).collect();
    JobState {
        name: job.name.clone(),
        kind: job.kind.name().word().to_owned(),
        state: "idle".to_owned(),
        schedule: job.schedule.clone(),
        timezone: job.timezone.clone(),
        dry_run: job.dry_run,
        brake: last.filter(|run| run.outcome.as_deref() == Some("held")).and_then(|run| run.detail.clone()),
        last_run: runs.iter().find(|run| run.outcome.is_some()).cloned(),
        last_success: runs.iter().find(|run| run.outcome.as_deref() == Some("done")).and_then(|run| run.ended),
        runs_total: zeros(&OUTCOMES),
        deleted_total: BTreeMap::from([(kinds::deletes(&job.kind).to_owned(), 0)]),
        skips_total: zeros(&Skip::ALL.map(Skip::word)),
        figures: runs.iter().find(|run| !run.figures.is_empty()).map(|run| run.figures.clone()).unwrap_or_default(),
        runs: runs.to_vec(),
        ..JobState::default()
    }
}

fn count(counts: &mut [(String, u64)], word: &str, by: u64) {
    if let Some((_, count)) = counts.iter_mut().find(|(known, _)| known == word) {
        *count += by;
    }
}

impl Guardian {
    /// Says what there is to run, and completes what the daemon before could not.
    pub fn begin_jobs(&mut self, now: Moment) {
        if self.settings.jobs.is_empty() {
            return;
        }
        let states = &mut self.jobs.states;
        let open = states.iter_mut().flat_map(|state| &mut state.runs).filter(|run| run.outcome.is_none());
        for run in open {
            run.outcome = Some("failed".to_owned());
            run.detail = Some("the daemon ended before the run did".to_owned());
            if let Some(history) = self.journal.history() {
                history.job(Entry::Run(Box::new(run.clone())));
            }
        }
        let next = states
            .iter()
            .filter(|state| state.next_run.is_some())
            .min_by(|one, other| one.next_run.unwrap_or(0.0).total_cmp(&other.next_run.unwrap_or(0.0)));
        let event = Event::SchedulerStarted {
            jobs: states.iter().map(|state| state.name.to_string()).collect(),
            next_job: next.map(|state| state.name.to_string()),
            next_run: next.and_then(|state| state.next_run),
        };
        let mut events = vec![event];
        events.extend(self.jobs.queue.faults().map(|(name, why)| Event::Degraded { part: "schedule", detail: format!("{name}: {why}") }));
        let is_scheduled = self.settings.jobs.iter().any(|job| job.schedule.is_some());
        if let Some(place) =
            filesystem::fleeting(&self.folders.state).filter(|_| is_scheduled && Paths::from(&self.settings.host).is_live())
        {
            let detail = format!(
                "{} is {place}: after a restart of the machine or the container runs that were missed are not known; daemon.state_dir on a volume keeps them",
                self.folders.state.display()
            );
            events.push(Event::Degraded { part: "record of jobs", detail });
        }
        if let Some(why) = &self.folders.stateless {
            let detail = format!("{why}; runs that were missed while no daemon was there are not known");
            events.push(Event::Degraded { part: "record of jobs", detail });
        }
        self.tell(&events, now);
    }

    /// Other settings.
    pub fn apply_jobs(&mut self, now: Moment) {
        let settings = &self.settings.jobs;
        self.jobs.queue.apply(settings, now);
        let running = self.jobs.running.as_ref().map(|running| running.start.job.name.clone());
        let mut states = Vec::with_capacity(settings.len());
        for job in settings {
            let fresh = state_of(job, &[]);
            states.push(match self.jobs.state(&job.name).map(std::mem::take) {
                // What it has done it has done, whatever it is called to do now.
                Some(old) => {
                    JobState { kind: fresh.kind, schedule: fresh.schedule, timezone: fresh.timezone, dry_run: fresh.dry_run, ..old }
                }
                None => fresh,
            });
        }
        self.jobs.states = states;
        if let Some(running) =
            self.jobs.running.as_mut().filter(|_| running.is_some_and(|name| !settings.iter().any(|job| job.name == name)))
        {
            running.stop(now);
        }
        self.jobs.is_stirred = true;
    }

    /// Does all about jobs that is due now. Costs nothing where nothing is.
    pub fn tend_jobs(&mut self, now: Moment) {
        if self.tally.tick == 0 {
            // Nobody knows yet whether anything is high.
            return;
        }
        let mut is_news = std::mem::take(&mut self.jobs.is_stirred);
        while let Ok(heard) = self.jobs.heard.try_recv() {
            self.hear_job(heard, now);
            is_news = true;
        }
        if let Some(running) = &mut self.jobs.running {
            running.step(now);
            if running.is_over() {
                self.conclude_run(now);
                is_news = true;
            }
        }
        let is_looked_at = self.jobs.queue.is_worth_a_look(now) || is_news;
        if is_looked_at {
            is_news |= self.advance_jobs(now);
            self.jobs.arm(now);
            self.jobs.publish();
        }
        self.answer_late_askers(now);
        if is_news {
            // Whoever follows a run sees how far it is.
            self.picture_now(now);
        }
    }

    /// The run that goes on gets what workers and strangers leave of the processors below the low line: never is it what brings the
    /// machine over the high one, and workers are not slowed for its sake.
    pub fn allow_run(&mut self, now: Moment) {
        let Some(running) = &mut self.jobs.running else { return };
        let cpu = self.tally.verdicts.iter().find(|verdict| verdict.resource == Resource::Cpu);
        if let Some((verdict, limit, used)) = cpu.and_then(|verdict| Some((verdict, verdict.limit?, verdict.used?))) {
            running.allow(limit, verdict.low, used, now);
        }
    }

    /// True when something came of it.
    fn advance_jobs(&mut self, now: Moment) -> bool {
        let high = self.high_resource();
        let steps = self.jobs.queue.advance(now, high);
        let mut events = Vec::new();
        let is_any = !steps.is_empty();
        for step in steps {
            match step {
                Step::Start(start) => self.start_job(*start, now, &mut events),
                Step::Skip { job, reason, due, count: many, detail } => {
                    if let Some(state) = self.jobs.state(&job.name) {
                        count(&mut state.skips_total, reason.word(), u64::from(many));
                    }
                    let (job, reason, due) = (job.name.to_string(), reason.word(), due.map(ledger::seconds));
                    events.push(Event::JobSkipped { job, reason, count: many, due, detail });
                }
                Step::ClockSet(by_seconds) => events.push(Event::ClockSet { by_seconds }),
            }
        }
        self.tell(&events, now);
        if let Some(history) = self.journal.history() {
            for (name, mark) in self.jobs.queue.marks() {
                let until = ledger::seconds(mark);
                if self.jobs.marks.get(name) != Some(&until) {
                    history.job(Entry::Mark { job: name.to_string(), until });
                    self.jobs.marks.insert(name.clone(), until);
                }
            }
        }
        is_any
    }

    /// The machine's processors or memory, if they are over their line. A full disk keeps no job back: most of them are for that.
    fn high_resource(&self) -> Option<&'static str> {
        self.tally.verdicts.iter().filter(|verdict| verdict.level != Level::Normal).find_map(|verdict| match verdict.resource {
            Resource::Cpu => Some("cpu"),
            Resource::Memory => Some("memory"),
            Resource::Disk(_) | Resource::Worker(_) => None,
        })
    }

    fn start_job(&mut self, start: Start, now: Moment, events: &mut Vec<Event>) {
        let paths = Paths::from(&self.settings.host);
        let job = start.job.clone();
        let errand = Errand {
            job: job.clone(),
            order: start.order,
            deadline: now.steady + job.timeout,
            parent: std::process::id(),
            host: self.settings.host.clone(),
        };
        let place = Place {
            paths: &paths,
            errand,
            lock: &self.jobs.lock,
            group: self.supervisor.group_for_job(&job.name),
            boot: self.jobs.boot.clone(),
            tell: self.jobs.tell.clone(),
            ring: self.jobs.ring.clone(),
        };
        match Running::begin(start.clone(), place, now) {
            Ok(running) => {
                self.supervisor.set_job(Some(running.pid()));
                if let Some(history) = self.journal.history() {
                    history.job(Entry::Run(Box::new(running.run.clone())));
                }
                events.push(Event::JobStarted {
                    job: job.name.to_string(),
                    kind: job.kind.name().word(),
                    cause: start.cause.word(),
                    dry_run: start.order.dry_run,
                    missed: start.missed,
                    due: running.run.due,
                    pid: running.pid(),
                });
                self.jobs.running = Some(running);
                self.allow_run(now);
            }
            Err(Hindrance::Locked(path)) => {
                self.jobs.queue.put_off(&start, now);
                let refused = format!("{} cannot run now: somebody else holds {path}", job.name);
                self.answer_asker(start.ticket, || Answer::Refused(refused));
            }
            Err(Hindrance::Io(error)) => {
                self.jobs.queue.ended(&job.name, false);
                let why = format!("could not start its process: {error}");
                let run = JobRun {
                    job: job.name.to_string(),
                    cause: start.cause.word().to_owned(),
                    due: start.due.map(ledger::seconds),
                    started: now.unix_seconds(),
                    started_steady: now.steady.as_secs_f64(),
                    boot: self.jobs.boot.clone(),
                    dry_run: start.order.dry_run,
                    ended: Some(now.unix_seconds()),
                    outcome: Some("failed".to_owned()),
                    seconds: Some(0.0),
                    detail: Some(why.clone()),
                    ..JobRun::default()
                };
                events.push(finished(&job, &run, "failed", None, None));
                self.write_down(&run, now);
                self.answer_asker(start.ticket, || Answer::Refused(why));
                self.jobs.is_stirred = true;
            }
        }
    }

    fn hear_job(&mut self, heard: Heard, now: Moment) {
        let Some(running) = &mut self.jobs.running else { return };
        let job = running.run.job.clone();
        let event = match heard {
            Heard::End(end) => {
                running.end = Some(end);
                return;
            }
            Heard::Report(Report::Planned(item)) => {
                if running.items.len() < MOST_ITEMS {
                    running.items.push(item);
                }
                return;
            }
            Heard::Report(Report::Plan(totals)) => {
                let each = totals.deleted.values().chain(totals.made.values());
                running.progress.of = each.map(|tally| tally.count).sum();
                running.totals = Some(totals);
                return;
            }
            Heard::Report(Report::Progress { done, of, bytes, seconds_left }) => {
                let progress = &mut running.progress;
                (progress.done, progress.of, progress.bytes, progress.seconds_left) = (done, of, bytes, seconds_left);
                return;
            }
            Heard::Report(Report::Warning { text }) => Event::JobWarning { job, detail: text },
            Heard::Report(Report::Event { event, fields }) => event_of(job, event, fields),
        };
        self.tell(&[event], now);
    }

    /// A run has ended: counts it, writes it down, tells who asked.
    fn conclude_run(&mut self, now: Moment) {
        let Some(running) = self.jobs.running.take() else { return };
        self.supervisor.set_job(None);
        let name = running.start.job.name.clone();
        let told = told_of(&running);
        let Running { start, mut run, begun, items, totals, exit, end, peak_memory, group, .. } = running;
        if let Some(group) = group {
            self.supervisor.leave_group(group);
        }
        let seconds = now.since(begun).as_secs_f64();
        (run.ended, run.seconds) = (Some(now.unix_seconds()), Some(seconds));
        run.interrupted = self.tally.shutting_down && ["stopped", "failed"].contains(&told.0);
        (run.outcome, run.detail) = (Some(told.0.to_owned()), Some(told.1.clone()).filter(|detail| !detail.is_empty()));
        if let Some(Ok(outcome)) = end {
            (run.deleted, run.reclaimed_bytes, run.errors, run.figures) =
                (outcome.deleted, outcome.reclaimed_bytes, outcome.errors, outcome.figures);
        }
        self.jobs.queue.ended(&name, ["done", "held"].contains(&told.0));
        self.tell(&[finished(&start.job, &run, told.0, exit.as_ref(), peak_memory)], now);
        self.write_down(&run, now);
        self.jobs.publish();
        let message = message(&name, &told);
        self.answer_asker(start.ticket, || {
            let plan = json!({ "items": items, "totals": totals });
            Answer::Data(json!({ "done": true, "outcome": told.0, "message": message, "run": run, "plan": plan }))
        });
    }

    /// Takes a run that has ended over into what is known of its job, and into the database.
    fn write_down(&mut self, run: &JobRun, now: Moment) {
        if let Some(history) = self.journal.history() {
            history.job(Entry::Run(Box::new(run.clone())));
        }
        let Some(state) = self.jobs.state(&run.job) else { return };
        let outcome = run.outcome.as_deref().unwrap_or_default();
        count(&mut state.runs_total, outcome, 1);
        if !run.dry_run {
            match outcome {
                "done" => (state.brake, state.last_success) = (None, Some(now.unix_seconds())),
                "held" => state.brake = run.detail.clone().or_else(|| Some("a brake".to_owned())),
                _ => {}
            }
        }
        for (what, deleted) in &run.deleted {
            if state.deleted_total.contains_key(what) || state.deleted_total.len() < MOST_WHATS {
                *state.deleted_total.entry(what.clone()).or_default() += deleted;
            }
        }
        state.reclaimed_bytes_total += run.reclaimed_bytes;
        if !run.figures.is_empty() {
            state.figures.clone_from(&run.figures);
        }
        state.last_run = Some(run.clone());
        state.runs.insert(0, run.clone());
        state.runs.truncate(REMEMBERED);
    }

    /// Somebody wants a job to run; the answer follows when it has, or when their patience is over.
    pub fn begin_job_command(&mut self, command: &JobCommand, request: Request, now: Moment) {
        self.jobs.tickets += 1;
        let ticket = self.jobs.tickets;
        let known = self.settings.jobs.iter().any(|job| job.name == command.job);
        let order = Order { dry_run: command.dry_run, yes: command.yes, ..Order::default() };
        let asked = if known { self.jobs.queue.ask(&command.job, order, ticket, now) } else { Ok(()) };
        match asked {
            // Whoever asked may have gone away.
            _ if !known => {
                let names: Vec<&str> = self.settings.jobs.iter().map(|job| &*job.name).collect();
                let there = if names.is_empty() { "there are none".to_owned() } else { format!("there are {}", names.join(", ")) };
                drop(request.answer.send(Answer::Unknown(format!("there is no job {:?}; {there}", command.job))));
            }
            Err(why) => drop(request.answer.send(Answer::Refused(why))),
            Ok(()) => {
                let until = command.wait.map(|wait| now.steady + wait);
                self.jobs.askers.insert(ticket, Asker { request, until });
                self.jobs.is_stirred = true;
                self.tend_jobs(now);
            }
        }
    }

    /// A disk's rule wants this job to free so many bytes.
    pub fn relieve_disk(&mut self, name: &str, free_bytes: u64, now: Moment) -> Effect {
        match self.jobs.queue.relieve(name, free_bytes, now) {
            Ok(()) => {
                self.jobs.is_stirred = true;
                Effect::Done
            }
            Err(why) => Effect::Unavailable(why),
        }
    }

    fn answer_asker(&mut self, ticket: Option<u64>, answer: impl FnOnce() -> Answer) {
        if let Some(asker) = ticket.and_then(|ticket| self.jobs.askers.remove(&ticket)) {
            // Whoever asks again finds it so.
            self.picture_now(Moment::now());
            let _ = asker.request.answer.send(answer());
        }
    }

    fn answer_late_askers(&mut self, now: Moment) {
        if self.jobs.askers.is_empty() {
            return;
        }
        let is_late = |asker: &Asker| asker.until.is_some_and(|until| until <= now.steady);
        let late: Vec<u64> = self.jobs.askers.iter().filter(|(_, asker)| is_late(asker)).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            let runs = self.jobs.running.as_ref().is_some_and(|running| running.start.ticket == Some(ticket));
            let what = if runs { "the run to end" } else { "its turn" };
            self.answer_asker(Some(ticket), || Answer::Waits(what.to_owned()));
        }
    }

    /// Tells the run that goes on to stop at a safe point, and waits for it; for the end of the daemon.
    pub fn stop_jobs(&mut self, deadline: Duration) -> Result<String, String> {
        let Some(running) = &mut self.jobs.running else { return Ok("none was running".to_owned()) };
        let name = running.run.job.clone();
        running.stop(Moment::now());
        loop {
            let now = Moment::now();
            // What wakes us is one of these.
            self.signals.pending();
            self.child_ended = true;
            let mut events = Vec::new();
            self.reap(now, &mut events);
            self.tell(&events, now);
            while let Ok(heard) = self.jobs.heard.try_recv() {
                self.hear_job(heard, now);
            }
            let Some(running) = &mut self.jobs.running else { return Ok(String::new()) };
            if now.steady >= deadline && !running.is_killed {
                running.kill();
            }
            running.step(now);
            if running.is_over() {
                let is_killed = running.is_killed;
                self.conclude_run(now);
                return if is_killed {
                    Err(format!("{name} came to no safe point in time and was ended"))
                } else {
                    Ok(format!("stopped: {name}"))
                };
            }
            if now.steady > deadline + running::GRACE {
                return Err(format!("{name} did not end although it was killed"));
            }
            self.wait_for(LOOK);
        }
    }

    /// The daemon becomes another program: the run stops by itself, and whoever is next catches up on it.
    pub fn leave_jobs(&mut self, now: Moment) {
        if let Some(running) = &mut self.jobs.running {
            running.stop(now);
        }
        for (_, asker) in std::mem::take(&mut self.jobs.askers) {
            let _ = asker.request.answer.send(Answer::Waits("the daemon to replace itself; ask again".to_owned()));
        }
    }
}

/// What is told of a run that has ended. `peak_memory` is that of its group, where it has one.
fn finished(job: &Job, run: &JobRun, outcome: &'static str, exit: Option<&Exit>, peak_memory: Option<u64>) -> Event {
    Event::JobFinished {
        job: job.name.to_string(),
        kind: job.kind.name().word(),
        outcome,
        dry_run: run.dry_run,
        duration_seconds: run.seconds.unwrap_or_default(),
        deleted: run.deleted.iter().map(|(what, count)| format!("{count} {what}")).collect(),
        reclaimed_bytes: run.reclaimed_bytes,
        errors: u32::try_from(run.errors.len()).unwrap_or(u32::MAX),
        cpu_seconds: exit.map(|exit| exit.cpu.as_secs_f64()),
        peak_memory_bytes: peak_memory.or(exit.map(|exit| exit.peak_memory)),
        detail: run.detail.clone().unwrap_or_default(),
    }
}

/// The outcome's word, and what is to be said about it.
fn told_of(running: &Running) -> (&'static str, String) {
    let how_it_ended = match running.exit.as_ref().map(|exit| exit.status) {
        Some(ExitStatus::Signal(signal)) if running.is_killed => {
            let why = if running.is_out_of_time { "its time was up and it" } else { "it was told to stop and" };
            Some(format!("{why} came to no safe point within {} s: ended by {}", running::GRACE.as_secs(), signal_name(signal)))
        }
        Some(ExitStatus::Signal(signal)) => Some(format!("its process was ended by {}", signal_name(signal))),
        _ => None,
    };
    match &running.end {
        Some(Ok(outcome)) => match outcome.end {
            End::Done => ("done", first_error(&outcome.errors)),
            End::Planned => ("planned", running.totals.as_ref().map(Totals::told).unwrap_or_default()),
            End::Held => {
                let brake = running.totals.as_ref().and_then(|totals| totals.brake.clone());
                ("held", brake.unwrap_or_else(|| "a brake holds the plan".to_owned()))
            }
            End::Failed => ("failed", first_error(&outcome.errors)),
            End::Stopped if running.is_out_of_time => ("stopped", "its time was up; the rest is for the next run".to_owned()),
            End::Stopped => ("stopped", "it was told to stop; the rest is for the next run".to_owned()),
        },
        Some(Err(Failure(why))) => ("failed", how_it_ended.unwrap_or_else(|| format!("could not {why}"))),
        None => ("failed", how_it_ended.unwrap_or_else(|| "nothing is known of its end".to_owned())),
    }
}

fn first_error(errors: &[String]) -> String {
    match errors {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

fn message(name: &str, (outcome, detail): &(&'static str, String)) -> String {
    if detail.is_empty() { format!("{name}: {outcome}") } else { format!("{name}: {outcome}: {detail}") }
}

fn event_of(job: String, name: String, mut fields: serde_json::Map<String, serde_json::Value>) -> Event {
    match name.as_str() {
        "session_cleanup_analysis" => {
            let mut number = |name: &str| fields.remove(name).and_then(|value| value.as_f64());
            let (total_sessions, total_checkpoints) = (number("total_sessions"), number("total_checkpoints"));
            let retention_days = number("retention_days");
            // Counts of rows are whole and far below what a double holds exactly.
            let whole = |count: Option<f64>| count.map(|count| count as u64);
            Event::SessionCleanupAnalysis {
                job,
                total_sessions: whole(total_sessions),
                total_checkpoints: whole(total_checkpoints),
                retention_days,
                cutoff_date: fields.remove("cutoff_date").and_then(|value| value.as_str().map(str::to_owned)),
                fields: Fields(fields),
            }
        }
        "backup_verified" => Event::BackupVerified { job, fields: Fields(fields) },
        _ => Event::JobReport { job, name, fields: Fields(fields) },
    }
}
