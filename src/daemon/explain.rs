//! Keeps what an explanation needs and a snapshot does not hold: where settings came from, what was done and what it brought,
//! how workers ended. Published beside the snapshot, anew only when something has happened or is going on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Loaded, Settings};
use crate::host::clock::Moment;
use crate::journal::Event;
use crate::policy::stress::Measure;
use crate::policy::verdict::Basis;
use crate::policy::{Level, Resource, Verdict};
use crate::response::candidate::Candidate;
use crate::response::planner::outlook::Outlook;
use crate::response::words;
use crate::snapshot::explain::{ActionWhy, CandidateWhy, EndWhy, Explained, HoldWhy, ResourceWhy, RungWhy, Setting, WorkerWhy};

use super::guardian::Guardian;

/// Of each resource so many actions are remembered, and of each worker so many ends.
const KEPT: usize = 8;
/// While something is over its line the explanation is at most this old.
const EVERY: Duration = Duration::from_millis(250);

/// What has happened, as the events told it.
#[derive(Debug)]
pub struct Chronicle {
    origins: BTreeMap<String, Arc<[Setting]>>,
    actions: BTreeMap<String, VecDeque<ActionWhy>>,
    ends: BTreeMap<String, VecDeque<EndWhy>>,
    /// Something happened since the last explanation.
    stale: bool,
    /// When that was, and whether anything was over its line then.
    explained: Option<(Duration, bool)>,
}

impl Chronicle {
    pub fn new(loaded: &Loaded) -> Chronicle {
        Chronicle { origins: origins(loaded), actions: BTreeMap::new(), ends: BTreeMap::new(), stale: true, explained: None }
    }

    pub fn apply(&mut self, loaded: &Loaded) {
        self.origins = origins(loaded);
        self.stale = true;
    }

    /// Takes in one event.
    pub fn note(&mut self, event: &Event, now: Moment) {
        self.stale = true;
        let at = now.unix_seconds();
        match event {
            Event::ActionPerformed { action_id, resource, action, workers, outcome, detail, reason, .. } => {
                let done = ActionWhy {
                    id: *action_id,
                    at,
                    action: (*action).to_owned(),
                    workers: workers.clone(),
                    outcome: (*outcome).to_owned(),
                    detail: detail.clone(),
                    reason: reason.clone(),
                    ..ActionWhy::default()
                };
                keep(self.actions.entry(resource.clone()).or_default(), done);
            }
            // A release has no number of its own.
            Event::ThrottleReleased { resource, reason, .. } => {
                let (action, outcome) = ("release".to_owned(), "done".to_owned());
                let (detail, reason) = (event.message(), reason.clone());
                let released = ActionWhy { at, action, outcome, detail, reason, ..ActionWhy::default() };
                keep(self.actions.entry(resource.clone()).or_default(), released);
            }
            Event::ActionEffective { action_id, resource, before, after_1s, after_10s, .. } => {
                self.measured(*action_id, resource, [*before, *after_1s, *after_10s], true);
            }
            Event::ActionIneffective { action_id, resource, before, after_1s, after_10s, .. } => {
                self.measured(*action_id, resource, [*before, *after_1s, *after_10s], false);
            }
            Event::WorkerExited { worker, replica, reason, .. } => {
                let end = EndWhy { at, replica: *replica, reason: (*reason).to_owned(), cause: None, detail: event.message() };
                keep(self.ends.entry(worker.clone()).or_default(), end);
            }
            // Told right after the end it is about.
            Event::WorkerRecycled { worker, replica, cause, .. } => {
                let ends = self.ends.get_mut(worker).into_iter().flatten();
                if let Some(end) = ends.into_iter().find(|end| end.replica == *replica) {
                    end.cause = Some((*cause).to_owned());
                }
            }
            Event::WorkerStartFailed { worker, replica, .. } => {
                let end = EndWhy { at, replica: *replica, reason: "start_failed".to_owned(), cause: None, detail: event.message() };
                keep(self.ends.entry(worker.clone()).or_default(), end);
            }
            Event::WorkerGaveUp { worker, replica, .. } => {
                let end = EndWhy { at, replica: *replica, reason: "gave_up".to_owned(), cause: None, detail: event.message() };
                keep(self.ends.entry(worker.clone()).or_default(), end);
            }
            _ => {}
        }
    }

    fn measured(&mut self, id: u64, resource: &str, [before, after_1s, after_10s]: [Option<f64>; 3], effective: bool) {
        let actions = self.actions.get_mut(resource).into_iter().flatten();
        if let Some(action) = actions.into_iter().find(|action| action.id == id) {
            (action.before, action.after_1s, action.after_10s, action.effective) = (before, after_1s, after_10s, Some(effective));
        }
    }

    /// True when a new explanation is due. Asking costs a steady tick nothing.
    fn is_due(&self, going_on: bool, now: Duration) -> bool {
        match self.explained {
            None => true,
            Some((at, was_going_on)) => self.stale || was_going_on != going_on || (going_on && now.saturating_sub(at) >= EVERY),
        }
    }

    fn origins(&self, key: &str) -> Arc<[Setting]> {
        self.origins.get(key).cloned().unwrap_or_default()
    }
}

fn keep<T>(list: &mut VecDeque<T>, newest: T) {
    list.truncate(KEPT - 1);
    list.push_front(newest);
}

impl Guardian {
    /// Publishes why things are as they are, when that has changed.
    pub fn explain(&mut self, candidates: &[Candidate], now: Moment) {
        let verdicts = &self.tally.verdicts;
        let going_on = !self.tally.engaged.is_empty() || verdicts.iter().any(|verdict| verdict.over || verdict.level != Level::Normal);
        if !self.chronicle.is_due(going_on, now.steady) {
            return;
        }
        let mut fullest: BTreeMap<String, &Verdict> = BTreeMap::new();
        for verdict in verdicts {
            let shown = fullest.entry(self.label(&verdict.resource)).or_insert(verdict);
            if shown.utilization < verdict.utilization {
                *shown = verdict;
            }
        }
        let resources = fullest.into_iter().map(|(label, verdict)| self.resource_why(label, verdict, candidates, now)).collect();
        let explained = Explained { resources, workers: self.worker_whys() };
        self.published.explain(explained);
        self.chronicle.stale = false;
        self.chronicle.explained = Some((now.steady, going_on));
    }

    fn resource_why(&self, label: String, verdict: &Verdict, candidates: &[Candidate], now: Moment) -> ResourceWhy {
        let policy = &self.settings.policy;
        let rule = match &verdict.resource {
            Resource::Cpu => Some(&policy.cpu.rule),
            Resource::Memory | Resource::Worker(_) => Some(&policy.memory.rule),
            Resource::Disk(path) => policy.disks.iter().find(|disk| *disk.path == **path).map(|disk| &disk.rule),
        };
        let sustain = rule.map_or(Duration::ZERO, |rule| rule.sustain);
        let Outlook { rungs, places, more, measuring, next } = self.planner.outlook(verdict, candidates, now);
        let limit = verdict.limit.filter(|limit| *limit > 0.0);
        let mut actions: Vec<ActionWhy> = self.chronicle.actions.get(&label).into_iter().flatten().cloned().collect();
        for (id, before, after_1s) in measuring {
            if let Some(action) =
                actions.iter_mut().find(|action| action.id == id && action.effective.is_none() && action.outcome == "done")
            {
                action.before = limit.map(|limit| before / limit);
                action.after_1s = after_1s.zip(limit).map(|(after, limit)| after / limit);
            }
        }
        ResourceWhy {
            measure: self.measure(verdict),
            limit_source: self.limit_source(verdict).to_owned(),
            growth: verdict.growth,
            over_since: verdict.over.then(|| now.unix_seconds() - verdict.over_for.as_secs_f64()),
            sustain_s: verdict.patience.as_secs_f64(),
            early: early(verdict, sustain, self.planner.status(&verdict.resource).throttled),
            settings: self.chronicle.origins(&label),
            ladder: rungs
                .into_iter()
                .map(|one| RungWhy {
                    level: one.level.word().to_owned(),
                    rung: one.rung,
                    state: one.state.word().to_owned(),
                    detail: one.detail,
                })
                .collect(),
            candidates: places.into_iter().map(|one| CandidateWhy { worker: one.worker, place: one.place, why: one.why }).collect(),
            more_candidates: more as u64,
            actions,
            next,
            ends: ends(verdict, sustain),
            resource: label,
        }
    }

    /// What is held against the line, in words.
    fn measure(&self, verdict: &Verdict) -> String {
        let words = match (&verdict.resource, verdict.basis) {
            (Resource::Cpu, Basis::Workers) => "CPU time of the workers together, mean of a second",
            (Resource::Cpu, _) => "CPU time of everybody in the scope, mean of a second",
            (Resource::Memory, Basis::Workers) => "memory of the workers together",
            (Resource::Memory, _) => match (verdict.measure, verdict.stress()) {
                (Some(Measure::Unreclaimable), _) => "what the kernel cannot take back (unreclaimable)",
                (_, Some(stress)) => return format!("the working set, because there is stress: {stress}"),
                (_, None) => "the working set",
            },
            (Resource::Disk(_), _) => "space in use, or inodes where they are fuller",
            (Resource::Worker(_), _) => "memory of its fullest replica",
        };
        words.to_owned()
    }

    fn limit_source(&self, verdict: &Verdict) -> &'static str {
        let policy = &self.settings.policy;
        let is_set = |own: Option<f64>, set: Option<f64>| set.is_some_and(|set| own.is_none_or(|own| set < own));
        match &verdict.resource {
            Resource::Cpu if is_set(self.readings.cpu.limit_cores.known(), policy.cpu.limit.set()) => "settings",
            Resource::Cpu => self.readings.cpu.limit_source.word(),
            Resource::Memory
                if is_set(
                    self.readings.memory.limit.known().map(|bytes| bytes as f64),
                    policy.memory.limit.set().map(|bytes| bytes as f64),
                ) =>
            {
                "settings"
            }
            Resource::Memory => self.readings.memory.limit_source.word(),
            Resource::Disk(_) => "file system",
            Resource::Worker(_) => "settings",
        }
    }

    fn worker_whys(&self) -> Vec<WorkerWhy> {
        let mut whys: BTreeMap<&Arc<str>, WorkerWhy> = BTreeMap::new();
        for replica in self.supervisor.replicas() {
            let name = &replica.worker.name;
            let why = whys.entry(name).or_insert_with(|| WorkerWhy {
                name: name.clone(),
                settings: self.chronicle.origins(&format!("workers.{name}")),
                holds: Vec::new(),
                ends: self.chronicle.ends.get(&**name).into_iter().flatten().cloned().collect(),
            });
            let wishes = replica.slot().into_iter().flat_map(|slot| self.throttle.wishes(slot));
            let hold = |resource| HoldWhy { replica: replica.index, resource: self.label(resource), ..HoldWhy::default() };
            why.holds.extend(wishes.map(|(resource, cores)| HoldWhy { cores: Some(cores), ..hold(resource) }));
            let line = replica.slot().and_then(|slot| self.brake.line_of(slot));
            why.holds.extend(line.map(|bytes| HoldWhy { memory_bytes: Some(bytes), ..hold(&Resource::Memory) }));
        }
        whys.into_values().collect()
    }
}

/// Why something is done sooner than the settings say, in words.
fn early(verdict: &Verdict, sustain: Duration, is_throttled: bool) -> String {
    let sustain = format!("{} s of sustain", sustain.as_secs_f64());
    let left = verdict.exhaustion.map_or(String::new(), |left| format!(", full in {:.1} s if it goes on", left.as_secs_f64()));
    let nobody = "nobody is ended on a forecast";
    match (verdict.level, verdict.early) {
        (Level::Normal, true) => format!("under the line{left}, sooner than {sustain}: a throttle is moved forward; {nobody}"),
        (Level::Normal, false) if is_throttled => format!("throttled ahead of the line, for a while after it was foretold last; {nobody}"),
        (_, true) => format!("over the line for less than {sustain}{left}: not waited for; {nobody}"),
        (_, false) => String::new(),
    }
}

/// What has to happen for it to be over.
fn ends(verdict: &Verdict, sustain: Duration) -> String {
    let amount = |share: f64| match verdict.limit {
        Some(limit) => format!("{} ({})", words::percent(share), words::amount(&verdict.resource, share * limit)),
        None => words::percent(share),
    };
    let back = sustain.as_secs_f64() / 2.0;
    let calm = format!("usage under {} for {back:.1} s; then what is on is taken off and the ladder begins anew", amount(verdict.low));
    match (verdict.level, verdict.over, verdict.critical) {
        (Level::Normal, false, _) => "nothing to end".to_owned(),
        (Level::Normal, true, _) => format!("usage under {} before the time is up", amount(verdict.high)),
        (Level::High, ..) | (Level::Critical, _, None) => calm,
        (Level::Critical, _, Some(critical)) => format!("critical: usage under {}; all of it: {calm}", amount(critical)),
    }
}

/// The settings that had a part in each thing that can be explained, by its label; a worker's own under `workers.NAME`.
fn origins(loaded: &Loaded) -> BTreeMap<String, Arc<[Setting]>> {
    let all: Vec<Setting> = loaded
        .effective()
        .into_iter()
        .filter(|one| one.key.starts_with("policy.") || one.key.starts_with("workers."))
        .map(|one| Setting { key: one.key, value: one.value, origin: one.origin })
        .collect();
    let below = |prefix: &str| all.iter().filter(|one| one.key.starts_with(prefix)).cloned().collect::<Vec<_>>();
    let mut found: BTreeMap<String, Arc<[Setting]>> = BTreeMap::new();
    found.insert("cpu".to_owned(), below("policy.cpu.").into());
    found.insert("memory".to_owned(), below("policy.memory.").into());
    let Settings { policy, workers, .. } = &loaded.settings;
    for (index, disk) in policy.disks.iter().enumerate() {
        found.insert(format!("disk:{}", disk.path.display()), below(&format!("policy.disks[{index}].")).into());
    }
    let ladder = ["policy.memory.sustain", "policy.memory.on_high", "policy.memory.on_critical"];
    for worker in workers {
        // Its variables, which may be secrets, explain nothing here.
        let prefix = format!("workers.{}.", worker.name);
        let own: Vec<Setting> =
            below(&prefix).into_iter().filter(|one| !one.key.get(prefix.len()..).is_some_and(|rest| rest.starts_with("env."))).collect();
        let concerns = |one: &&Setting| {
            one.key
                .get(prefix.len()..)
                .is_some_and(|rest| rest.starts_with("limits.") || rest.starts_with("recycle.") || rest == "shed_signal")
        };
        let mut judged: Vec<Setting> = own.iter().filter(concerns).cloned().collect();
        judged.extend(all.iter().filter(|one| ladder.contains(&one.key.as_str())).cloned());
        found.insert(format!("worker:{}", worker.name), judged.into());
        found.insert(format!("workers.{}", worker.name), own.into());
    }
    found
}
