//! `jobs`: how they stand, running one with the daemon or without, and how earlier runs ended.

mod progress;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::arguments::JobsCommand;
use super::client::{Client, ClientError};
use super::{FAILED, NOT_PERMITTED, Session, complain, escaped, pretty, print_line};
use crate::config::Loaded;
use crate::config::jobs::{Job, Kind};
use crate::daemon::folders::{self, Folders};
use crate::daemon::jobs::running::{Hindrance, take_lock};
use crate::daemon::jobs::{Jobs, REMEMBERED};
use crate::host::clock::Moment;
use crate::host::{Paths, scan};
use crate::jobs::patience::Patience;
use crate::jobs::plan::{Item, Totals};
use crate::jobs::queue::Cause;
use crate::jobs::run::{End, Failure, Order, Outcome};
use crate::jobs::{child, kinds, ledger, sessions};
use crate::journal::runs::{self, Book, Entry, Known};
use crate::snapshot::jobs::{JobRun, JobState};
use progress::{Bar, Terminal};
pub use tables::lines;

/// Longer than any run may take.
const LONGEST: Duration = Duration::from_secs(8 * 86_400);
/// How often a running job is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);

/// What came of a run, as the daemon answers and as `--json` prints it.
#[derive(Debug, Deserialize)]
struct Told {
    outcome: Option<String>,
    message: String,
    run: Option<JobRun>,
    plan: Option<Plan>,
}

#[derive(Debug, Deserialize)]
struct Plan {
    items: Vec<Item>,
    totals: Option<Totals>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    jobs: Vec<JobState>,
}

#[derive(Debug, Deserialize)]
struct Runs {
    runs: Vec<JobRun>,
}

impl Session {
    pub(super) fn jobs(&self, command: JobsCommand) -> u8 {
        match command {
            JobsCommand::List => self.show_jobs(tables::list),
            JobsCommand::Next => self.show_jobs(tables::next),
            JobsCommand::Run { job, dry_run, yes } => self.run_job(&job, Order { dry_run, yes, ..Order::default() }),
            JobsCommand::History { job, limit } => self.history_of_jobs(job.as_deref(), limit),
            JobsCommand::RestoreSession { id, job } => self.restore_session(&id, job.as_deref()),
        }
    }

    /// In this very process: it is one transaction, and whatever a run does meanwhile, its own looks see it.
    fn restore_session(&self, id: &str, job: Option<&str>) -> u8 {
        let loaded = match self.load(&self.sources(Vec::new())) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let keeps_archive = |job: &Job| match &job.kind {
            Kind::Sessions(settings) if settings.archive.is_some() => Some((job.name.clone(), settings.clone())),
            _ => None,
        };
        let all: Vec<_> = loaded.settings.jobs.iter().filter_map(|job| keeps_archive(job)).collect();
        let meant: Vec<_> = all.iter().filter(|(name, _)| job.is_none_or(|job| **name == *job)).collect();
        let [(name, settings)] = meant.as_slice() else {
            let names: Vec<&str> = all.iter().map(|(name, _)| &**name).collect();
            complain(&match (job, names.as_slice()) {
                (_, []) => "no job of kind \"sessions\" keeps an archive (set `archive`)".to_owned(),
                (Some(job), names) => format!("no job {job:?} keeps an archive; those that do: {}", names.join(", ")),
                (None, names) => format!("which job's archive? --job with one of {}", names.join(", ")),
            });
            return FAILED;
        };
        match sessions::restore(settings, id, Moment::now()) {
            Ok(outcome) => {
                let rows = outcome.figures.get("rows_restored").copied().unwrap_or_default();
                print_line(&if self.common.json() {
                    pretty(&json!({ "job": name, "session": id, "rows_restored": rows }))
                } else {
                    format!("restored the session {id}: {rows} rows")
                })
            }
            Err(Failure(why)) => {
                complain(&format!("could not {why}"));
                FAILED
            }
        }
    }

    fn show_jobs(&self, render: impl Fn(&[JobState], Moment, super::render::Style) -> String) -> u8 {
        let jobs = match self.client() {
            Ok(client) => client.get_json::<Listed>("/admin/jobs").map(|listed| listed.jobs),
            Err(ClientError::Unreachable { .. }) => match self.jobs_on_file() {
                Ok(jobs) => {
                    if jobs.iter().any(|job| job.schedule.is_some()) {
                        complain("no daemon is running: what is due is not begun; `plimsoll run` starts one");
                    }
                    Ok(jobs)
                }
                Err(code) => return code,
            },
            Err(error) => Err(error),
        };
        self.answer(jobs.map(|jobs| match self.common.json() {
            true => pretty(&json!({ "jobs": jobs })),
            false => render(&jobs, Moment::now(), self.stdout_style()),
        }))
    }

    /// As the settings and the state database say, without a daemon.
    fn jobs_on_file(&self) -> Result<Vec<JobState>, u8> {
        let loaded = self.load(&self.sources(Vec::new()))?;
        let known = self.known_runs(REMEMBERED).unwrap_or_else(|why| {
            complain(&why);
            Known::default()
        });
        let jobs = Jobs::new(&loaded.settings, &known, &PathBuf::new(), Arc::new(|| {}), Moment::now());
        Ok(jobs.published().to_vec())
    }

    /// What the first state folder with a database knows.
    fn known_runs(&self, limit: usize) -> Result<Known, String> {
        let sources = self.sources(Vec::new());
        for folder in folders::state_candidates(&crate::config::state_dir(&sources), &sources) {
            let known = runs::read(&folder, u32::try_from(limit).unwrap_or(u32::MAX))?;
            if known != Known::default() {
                return Ok(known);
            }
        }
        Ok(Known::default())
    }

    fn history_of_jobs(&self, job: Option<&str>, limit: usize) -> u8 {
        let runs = match self.client() {
            Ok(client) => self.runs_told(&client, job),
            Err(ClientError::Unreachable { .. }) => self.known_runs(limit).map(|known| known.runs).map_err(|why| {
                complain(&why);
                FAILED
            }),
            Err(error) => return self.answer(Err(error)),
        };
        let mut runs = match runs {
            Ok(runs) => runs,
            Err(code) => return code,
        };
        runs.retain(|run| job.is_none_or(|job| run.job == job));
        runs.sort_by(|one, other| one.started.total_cmp(&other.started));
        runs.drain(..runs.len().saturating_sub(limit));
        print_line(&if self.common.json() { pretty(&json!(runs)) } else { tables::history(&runs, job, self.stdout_style()) })
    }

    fn runs_told(&self, client: &Client, job: Option<&str>) -> Result<Vec<JobRun>, u8> {
        let names = match job {
            Some(job) => vec![job.to_owned()],
            None => {
                let listed: Listed = client.get_json("/admin/jobs").map_err(|error| self.answer(Err(error)))?;
                listed.jobs.iter().map(|job| job.name.to_string()).collect()
            }
        };
        let mut all = Vec::new();
        for name in names {
            let told: Runs = client.get_json(&format!("/admin/jobs/{}/runs", segment(&name))).map_err(|error| self.answer(Err(error)))?;
            all.extend(told.runs);
        }
        Ok(all)
    }

    fn run_job(&self, name: &str, order: Order) -> u8 {
        match self.client() {
            Ok(client) => self.run_job_there(client, name, order),
            Err(ClientError::Unreachable { .. }) => self.run_job_here(name, order),
            Err(error) => self.answer(Err(error)),
        }
    }

    /// Has the daemon run it, and shows how far it is meanwhile.
    fn run_job_there(&self, client: Client, name: &str, order: Order) -> u8 {
        let path = format!("/admin/jobs/{}/run?dry_run={}&yes={}", segment(name), order.dry_run, order.yes);
        let waiter = match self.client() {
            Ok(waiter) => waiter,
            Err(error) => return self.answer(Err(error)),
        };
        let asked = std::thread::spawn(move || waiter.post_within(&path, LONGEST));
        let mut bar = Bar::new(self.stderr_colour());
        while !asked.is_finished() {
            super::pause(LOOK);
            let Ok(listed) = client.get_json::<Listed>("/admin/jobs") else { continue };
            let Some(job) = listed.jobs.into_iter().find(|job| *job.name == *name) else { continue };
            match (job.running, job.waits_for) {
                (Some(running), _) => bar.show(running.done, running.of, running.bytes, running.seconds_left, Moment::now()),
                (None, Some(what)) => bar.say(&format!("waits for {what}"), Moment::now()),
                (None, None) => {}
            }
        }
        bar.clear();
        match asked.join() {
            Ok(Ok(value)) => self.tell_run(&value, order),
            Ok(Err(error)) => self.answer(Err(error)),
            Err(_) => {
                complain("the request to the daemon broke off");
                FAILED
            }
        }
    }

    fn tell_run(&self, value: &Value, order: Order) -> u8 {
        let Ok(told) = serde_json::from_value::<Told>(value.clone()) else {
            complain("the daemon answered something else than was asked for");
            return FAILED;
        };
        let is_well = matches!(told.outcome.as_deref(), Some("done" | "planned"));
        if self.common.json() {
            return print_line(&pretty(value)).max(if is_well { 0 } else { FAILED });
        }
        let is_planned = told.outcome.as_deref() == Some("planned");
        if let Some(plan) = told.plan.as_ref().filter(|_| is_planned) {
            let text = tables::plan(&plan.items, plan.totals.as_ref(), self.stdout_style());
            if !text.is_empty() && print_line(&text) != 0 {
                return FAILED;
            }
        }
        // A plan that is empty because the folder is not there says so.
        for problem in told.run.iter().filter(|_| is_planned).flat_map(|run| &run.errors) {
            complain(problem);
        }
        let said = match told.run.as_ref().filter(|_| is_well && !is_planned) {
            Some(run) => format!("{}{}", told.message, tables::figures(run)),
            None => told.message,
        };
        if is_well {
            // What its own settings keep from being done is said, or it would be missed.
            return if order.dry_run { 0 } else { print_line(&said) };
        }
        complain(&said);
        FAILED
    }

    /// Runs it in this very process, under the locks a daemon takes.
    fn run_job_here(&self, name: &str, order: Order) -> u8 {
        let sources = self.sources(Vec::new());
        let loaded = match self.load(&sources) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let Some(job) = loaded.settings.jobs.iter().find(|job| *job.name == *name).cloned() else {
            let names: Vec<&str> = loaded.settings.jobs.iter().map(|job| &*job.name).collect();
            complain(&format!(
                "there is no job {name:?} in the settings; there are {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ));
            return FAILED;
        };
        if order.dry_run {
            // It changes nothing, so it needs no lock and leaves no trace.
            return self.carry_out(&loaded, &job, order, None);
        }
        let folders = match Folders::take(&loaded.settings.daemon, &sources) {
            Ok(folders) => folders,
            Err(error) => {
                complain(&error.to_string());
                return error.exit_code();
            }
        };
        let locks =
            std::iter::once(folders.for_locks().join(crate::daemon::jobs::LOCK)).chain(job.lock.clone()).map(|path| take_lock(&path));
        let held: Result<Vec<_>, Hindrance> = locks.collect();
        match held {
            Ok(_held) => self.carry_out(&loaded, &job, order, Some(&folders)),
            Err(Hindrance::Locked(path)) => {
                complain(&format!("{name} cannot run now: somebody else holds {path}"));
                FAILED
            }
            Err(Hindrance::Io(error)) => {
                complain(&format!("{name} cannot run: {error}"));
                if error.kind() == std::io::ErrorKind::PermissionDenied { NOT_PERMITTED } else { FAILED }
            }
        }
    }

    fn carry_out(&self, loaded: &Loaded, job: &Job, order: Order, folders: Option<&Folders>) -> u8 {
        let now = Moment::now();
        let patience = match Patience::begin(now.steady + job.timeout) {
            Ok(patience) => patience,
            Err(error) => {
                complain(&format!("{} cannot run: {error}", job.name));
                return FAILED;
            }
        };
        let boot = scan::boot_id(&Paths::from(&loaded.settings.host));
        let state = folders.filter(|folders| folders.stateless.is_none()).map(|folders| folders.state.clone());
        let known = state.as_ref().and_then(|state| runs::read(state, 2).ok()).unwrap_or_default();
        let of_job: Vec<JobRun> = known.runs.into_iter().filter(|run| run.job == *job.name).collect();
        let past = ledger::past(known.marks.get(&*job.name).copied(), &of_job, known.alive, now, boot.as_deref());
        let order = Order { dry_run: order.dry_run || job.dry_run, clock_jumped: past.clock_jumped, ..order };
        let book = state.and_then(|state| Book::open(&state).map_err(|why| complain(&why)).ok());
        let write = |run: &JobRun| {
            if let Some(Err(why)) = book.as_ref().map(|book| book.write(&Entry::Run(Box::new(run.clone())))) {
                complain(&why);
            }
        };
        let mut run = JobRun {
            job: job.name.to_string(),
            cause: Cause::Asked.word().to_owned(),
            started: now.unix_seconds(),
            started_steady: now.steady.as_secs_f64(),
            boot,
            dry_run: order.dry_run,
            ..JobRun::default()
        };
        write(&run);
        let mut terminal = Terminal::new(patience, Bar::new(self.stderr_colour()));
        child::step_behind(job.kind.name(), &loaded.settings.host);
        let result = kinds::run(&job.kind, &order, &mut terminal);
        let (items, totals, was_late) = terminal.end();
        let ended = Moment::now();
        (run.ended, run.seconds) = (Some(ended.unix_seconds()), Some(ended.since(now).as_secs_f64()));
        let (outcome, detail) = told_of(&result, totals.as_ref(), was_late);
        (run.outcome, run.detail) = (Some(outcome.to_owned()), Some(detail.clone()).filter(|detail| !detail.is_empty()));
        if let Ok(done) = result {
            (run.deleted, run.reclaimed_bytes, run.errors, run.figures) = (done.deleted, done.reclaimed_bytes, done.errors, done.figures);
        }
        write(&run);
        let message = if detail.is_empty() { format!("{}: {outcome}", job.name) } else { format!("{}: {outcome}: {detail}", job.name) };
        let plan = json!({ "items": items, "totals": totals });
        self.tell_run(&json!({ "done": true, "outcome": outcome, "message": message, "run": run, "plan": plan }), order)
    }
}

fn told_of(result: &Result<Outcome, Failure>, totals: Option<&Totals>, was_late: bool) -> (&'static str, String) {
    match result {
        Ok(outcome) => match outcome.end {
            End::Done => ("done", outcome.errors.first().cloned().unwrap_or_default()),
            End::Planned => ("planned", totals.map(Totals::told).unwrap_or_default()),
            End::Held => {
                let brake = totals.and_then(|totals| totals.brake.clone()).unwrap_or_else(|| "a brake holds the plan".to_owned());
                ("held", format!("{brake}; --yes carries it out"))
            }
            End::Failed => ("failed", outcome.errors.first().cloned().unwrap_or_default()),
            End::Stopped if was_late => ("stopped", "its time was up; the rest is for the next run".to_owned()),
            End::Stopped => ("stopped", "it was told to stop; the rest is for the next run".to_owned()),
        },
        Err(Failure(why)) => ("failed", format!("could not {why}")),
    }
}

/// A name as one part of a path.
fn segment(name: &str) -> String {
    escaped(name).replace('/', "%2F")
}
