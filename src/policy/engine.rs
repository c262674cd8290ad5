//! Readings in, verdicts out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Policy, Rule, Settings, Worker};
use crate::host::clock::Moment;
use crate::policy::forecast::Forecast;
use crate::policy::hysteresis::{Hysteresis, Lines};
use crate::policy::leak::{Leak, Trend};
use crate::policy::rule;
use crate::policy::steal::Stolen;
use crate::policy::stress::{self, Evidence, Measure, Stress};
use crate::policy::verdict::{Basis, Level, Resource, Verdict};
use crate::policy::window::{Fill, Mean, Slope};
use crate::sampling::readings::{DiskReadings, LimitSource, Reading, Readings, SlotId, WorkerReadings};

/// CPU is judged on a mean over at least this long.
pub const CPU_WINDOW: Duration = Duration::from_secs(1);
/// Growth is a slope over this long.
pub const GROWTH_WINDOW: Duration = Duration::from_secs(10);

/// A forecast is acted on once it has been made for this part of the time that is left.
const SURE_PART: u32 = 4;

/// Holds the windows and the levels of every resource between ticks.
#[derive(Clone, Debug)]
pub struct Engine {
    policy: Policy,
    workers: BTreeMap<Arc<str>, Arc<Worker>>,
    judged: Option<Moment>,
    scope_cores: Mean,
    stolen: Stolen,
    worker_cores: Mean,
    watches: BTreeMap<Resource, Watch>,
    stress: Stress,
    /// Of the last tick.
    evidence: Evidence,
    /// Memory of every replica, whether it has a limit or not: growth also decides who is slowed or replaced.
    growth: BTreeMap<SlotId, Slope>,
    /// Of every replica whose worker has `recycle.leak`.
    trends: BTreeMap<SlotId, (Trend, Option<Leak>)>,
    watches_leaks: bool,
}

/// What is remembered of one resource.
#[derive(Clone, Debug)]
struct Watch {
    hysteresis: Hysteresis,
    growth: Slope,
    forecast: Forecast,
    /// Since when it has been foretold to be full before `sustain` would be over.
    full_soon: Option<Moment>,
    fill: Fill,
}

impl Watch {
    fn new(now: Moment) -> Self {
        Watch {
            hysteresis: Hysteresis::new(now),
            growth: Slope::new(GROWTH_WINDOW),
            forecast: Forecast::default(),
            full_soon: None,
            fill: Fill::default(),
        }
    }

    /// Whether it is foretold, surely enough, to be full within `sustain`: for a part of the time that is left. A program that
    /// loads for a moment fills too.
    fn is_full_soon(&mut self, left: Option<Duration>, sustain: Duration, now: Moment) -> bool {
        let Some(left) = left.filter(|left| *left <= sustain) else {
            self.full_soon = None;
            return false;
        };
        now.since(*self.full_soon.get_or_insert(now)) >= left / SURE_PART
    }

    fn grow(&mut self, used: Option<f64>, now: Moment) -> f64 {
        self.growth.expire(now);
        if let Some(used) = used {
            self.growth.feed(now, used);
        }
        self.growth.per_second()
    }
}

/// One resource in one tick, before it is judged.
struct Look {
    resource: Resource,
    basis: Basis,
    used: Reading<f64>,
    /// What growth and the forecast are taken from: always the same thing, whatever is judged.
    fills: Reading<f64>,
    limit: Reading<f64>,
    /// Of the scope's memory.
    measure: Option<Measure>,
    /// Where the share that counts is not `used / limit` (inodes run out before space).
    share: Option<f64>,
    lines: Lines,
}

impl Engine {
    pub fn new(settings: &Settings) -> Self {
        Engine {
            policy: settings.policy.clone(),
            workers: by_name(settings),
            judged: None,
            scope_cores: Mean::new(CPU_WINDOW),
            stolen: Stolen::new(CPU_WINDOW),
            worker_cores: Mean::new(CPU_WINDOW),
            watches: BTreeMap::new(),
            stress: Stress::default(),
            evidence: Evidence::default(),
            growth: BTreeMap::new(),
            trends: BTreeMap::new(),
            watches_leaks: watches_leaks(settings),
        }
    }

    /// Takes changed settings. Windows and levels are kept: a reload is no reason to forget that a machine is full.
    pub fn apply(&mut self, settings: &Settings) {
        self.policy = settings.policy.clone();
        self.workers = by_name(settings);
        self.watches_leaks = watches_leaks(settings);
    }

    /// Judges one tick: first every window takes what was read, whether anything fires or not, then verdicts are formed.
    /// In this order: CPU, memory, the disks as configured, the replicas that have a memory limit of their own.
    pub fn judge(&mut self, readings: &Readings, now: Moment) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        self.judge_into(readings, now, &mut verdicts);
        verdicts
    }

    /// As [`Engine::judge`], into verdicts whose memory is used again.
    pub fn judge_into(&mut self, readings: &Readings, now: Moment, verdicts: &mut Vec<Verdict>) {
        let gap = self.judged.map_or(Duration::ZERO, |before| now.since(before));
        self.judged = Some(now);
        self.feed(readings, gap, now);
        self.evidence = self.stress.feed(&readings.memory, now);

        verdicts.clear();
        let (cpu, memory) = (self.look_at_cpu(readings), self.look_at_memory(readings));
        verdicts.push(self.form(cpu, now));
        let memory = self.form(memory, now);
        self.watch_leaks(readings, &memory, now);
        verdicts.push(memory);
        for at in 0..self.policy.disks.len() {
            let Some(disk) = self.policy.disks.get(at) else { break };
            let found = readings.disks.iter().find(|reading| *reading.path == *disk.path);
            let look = look_at_disk(found, &disk.path, &disk.rule);
            verdicts.push(self.form(look, now));
        }
        for worker in &readings.workers {
            if let Some(look) = self.look_at_worker(worker) {
                verdicts.push(self.form(look, now));
            }
        }
        // All that was judged is watched now: where there are more, some are of what is not judged any more.
        if self.watches.len() > verdicts.len() {
            let judged: BTreeSet<&Resource> = verdicts.iter().map(|verdict| &verdict.resource).collect();
            self.watches.retain(|resource, _| judged.contains(resource));
        }
    }

    /// Takes in one figure between two ticks, so that a sudden fill is known for what it is before the next. No level
    /// changes. `None` for what is not judged.
    pub fn glimpse(&mut self, resource: &Resource, used: f64, now: Moment) -> Option<Fill> {
        let watch = self.watches.get_mut(resource)?;
        watch.fill.feed(now, used);
        Some(watch.fill)
    }

    /// How fast a replica's memory grows, in bytes a second over the last ten; 0 for one that is not known.
    pub fn growth(&self, slot: SlotId) -> f64 {
        self.growth.get(&slot).map_or(0.0, Slope::per_second)
    }

    /// The leak of a replica whose worker has `recycle.leak`, if there is one.
    pub fn leak(&self, slot: SlotId) -> Option<Leak> {
        self.trends.get(&slot).and_then(|(_, leak)| *leak)
    }

    /// Takes the memory of every replica that is watched for leaks; `memory` is the verdict on that of all.
    fn watch_leaks(&mut self, readings: &Readings, memory: &Verdict, now: Moment) {
        let Engine { workers, trends, .. } = self;
        if !self.watches_leaks {
            trends.clear();
            return;
        }
        // Replicas of one worker stand side by side: they are counted once.
        let mut counted: Option<(&str, usize)> = None;
        for read in &readings.workers {
            let Some(worker) = workers.get(&read.worker).filter(|worker| worker.recycle.leak) else {
                // What is not watched any more must not go on with an old past some day.
                trends.remove(&read.slot);
                continue;
            };
            let (trend, leak) = trends.entry(read.slot).or_default();
            *leak = None;
            let Reading::Known(bytes) = read.memory else { continue };
            trend.feed(now, bytes);
            if !trend.climbs() {
                continue;
            }
            let replicas = match counted {
                Some((name, count)) if name == &*read.worker => count,
                _ => readings.workers.iter().filter(|other| other.worker == read.worker).count(),
            };
            counted = Some((&read.worker, replicas));
            *leak = trend.leak(rule::leak_bounds(worker, memory, bytes, replicas).into_iter().flatten());
        }
        if trends.len() > readings.workers.len() {
            let live: BTreeSet<SlotId> = readings.workers.iter().map(|worker| worker.slot).collect();
            trends.retain(|slot, _| live.contains(slot));
        }
    }

    fn feed(&mut self, readings: &Readings, gap: Duration, now: Moment) {
        if let Reading::Known(cores) = readings.cpu.used_cores {
            self.scope_cores.feed(gap, cores);
        }
        if let (Reading::Known(stolen), Reading::Known(used)) = (readings.cpu.stolen_cores, readings.cpu.used_cores) {
            self.stolen.feed(gap, stolen, used);
        }
        if let Reading::Known(cores) = worker_cores(&readings.workers) {
            self.worker_cores.feed(gap, cores);
        }
        for worker in &readings.workers {
            let slope = self.growth.entry(worker.slot).or_insert_with(|| Slope::new(GROWTH_WINDOW));
            slope.expire(now);
            if let Reading::Known(bytes) = worker.memory {
                slope.feed(now, bytes as f64);
            }
        }
        if self.growth.len() > readings.workers.len() {
            let live: BTreeSet<SlotId> = readings.workers.iter().map(|worker| worker.slot).collect();
            self.growth.retain(|slot, _| live.contains(slot));
            // Somebody has ended, and what he held comes back.
            if let Some(watch) = self.watches.get_mut(&Resource::Memory) {
                watch.forecast.relieved(now);
            }
        }
    }

    fn look_at_cpu(&self, readings: &Readings) -> Look {
        let (basis, limit) =
            basis(self.policy.cpu.limit.set(), readings.cpu.limit_cores, readings.cpu.limit_source, readings.cpu.of_workers);
        // What the hypervisor keeps for others is not ours to use. A smaller limit from the file is what was meant, stolen or not.
        let limit = if basis == Basis::Scope { limit.map(|limit| self.stolen.left_of(limit)) } else { limit };
        let (read, mean) = match basis {
            Basis::Workers => (worker_cores(&readings.workers), &self.worker_cores),
            _ => (readings.cpu.used_cores, &self.scope_cores),
        };
        // The window goes on from its last values when one tick could not be read, but that tick is not judged.
        let used = match (read, mean.value()) {
            (Reading::Known(_), Some(mean)) => Reading::Known(mean),
            (Reading::Known(_), None) => Reading::Unsupported,
            (missing, _) => missing,
        };
        let lines = rule::lines(&self.policy.cpu.rule, limit.known().unwrap_or(1.0), false);
        Look { resource: Resource::Cpu, basis, used, fills: used, limit, measure: None, share: None, lines }
    }

    fn look_at_memory(&self, readings: &Readings) -> Look {
        let own = readings.memory.limit.map(|bytes| bytes as f64);
        let set = self.policy.memory.limit.set().map(|bytes| bytes as f64);
        let (basis, limit) = basis(set, own, readings.memory.limit_source, readings.memory.of_workers);
        let mut lines = rule::lines(&self.policy.memory.rule, limit.known().unwrap_or(1.0), true);
        let memory = &readings.memory;
        let bytes = |reading: Reading<u64>| reading.map(|bytes| bytes as f64);
        let low = lines.low * limit.known().unwrap_or(0.0);
        let measure = (basis == Basis::Scope).then(|| stress::measure(memory, &self.evidence, low));
        let (used, fills) = match measure {
            None => {
                let together = sum(readings.workers.iter().map(|worker| bytes(worker.memory)));
                (together, together)
            }
            Some(Measure::Unreclaimable) => (bytes(memory.unreclaimable), bytes(memory.unreclaimable)),
            Some(Measure::WorkingSet) => (bytes(stress::working_set(memory, &self.evidence)), bytes(memory.judged())),
        };
        if measure == Some(Measure::WorkingSet) && memory.unreclaimable.known().is_some() {
            // A part of it can be given back: it is not at once that this hurts.
            lines.at_once = None;
        }
        Look { resource: Resource::Memory, basis, used, fills, limit, measure, share: None, lines }
    }

    fn look_at_worker(&self, reading: &WorkerReadings) -> Option<Look> {
        let worker = self.workers.get(&reading.worker)?;
        let limit = rule::worker_limit(worker)?;
        Some(Look {
            resource: Resource::Worker(reading.slot),
            basis: Basis::Worker,
            used: reading.memory.map(|bytes| bytes as f64),
            fills: reading.memory.map(|bytes| bytes as f64),
            limit: Reading::Known(limit),
            measure: None,
            share: None,
            lines: rule::worker_lines(worker, &self.policy.memory.rule, limit),
        })
    }

    fn form(&mut self, look: Look, now: Moment) -> Verdict {
        let used = sound(look.used).filter(|used| *used >= 0.0);
        let limit = sound(look.limit).filter(|limit| *limit > 0.0);
        let utilization = used.zip(limit).map(|(used, limit)| look.share.unwrap_or(used / limit)).filter(|share| share.is_finite());
        let watch = self.watches.entry(look.resource.clone()).or_insert_with(|| Watch::new(now));
        let fills = sound(look.fills).filter(|fills| *fills >= 0.0);
        let growth = match look.resource {
            // Fed with those of all replicas.
            Resource::Worker(slot) => self.growth.get(&slot).map_or(0.0, Slope::per_second),
            _ => watch.grow(fills, now),
        };
        // A processor is busy, it does not fill.
        let exhaustion = limit.filter(|_| look.resource != Resource::Cpu).and_then(|limit| {
            // Where inodes run out before space does, their share is what fills.
            let fills = look.share.map_or(fills, |share| Some(share * limit));
            fills.inspect(|fills| watch.forecast.feed(now, *fills, limit)).map(|fills| (fills, watch.forecast.exhaustion(now, limit)))
        });
        if let Some(fills) = fills {
            watch.fill.feed(now, fills);
        }
        let mut lines = look.lines;
        if let Some((usage, limit)) = utilization.zip(limit) {
            let foretold = exhaustion.and_then(|(fills, left)| Some((limit - fills) / left?.as_secs_f64())).filter(|rate| rate.is_finite());
            lines.sustain = rule::patience(&lines, usage, growth.max(watch.fill.rate()).max(foretold.unwrap_or(0.0)) / limit);
        }
        let level: Level = watch.hysteresis.step(utilization, &lines, now);
        let over_for = watch.hysteresis.over_for();
        let exhaustion = exhaustion.and_then(|(_, left)| left);
        let is_full_soon = watch.is_full_soon(exhaustion, look.lines.sustain, now);
        let in_band = utilization.is_some_and(|usage| usage >= look.lines.low && usage < look.lines.high);
        let early = match level {
            Level::Normal => in_band && is_full_soon,
            Level::High => lines.sustain < look.lines.sustain && over_for < look.lines.sustain,
            Level::Critical => false,
        };
        Verdict {
            resource: look.resource,
            level,
            since: watch.hysteresis.since(),
            basis: look.basis,
            used,
            limit,
            utilization,
            high: look.lines.high,
            low: look.lines.low,
            critical: look.lines.critical,
            over: utilization.is_some_and(|usage| usage >= look.lines.high),
            over_for,
            growth,
            exhaustion,
            early,
            measure: look.measure,
            evidence: look.measure.map(|_| self.evidence),
            fill: watch.fill,
            patience: lines.sustain,
            unknown: match (look.used, look.limit) {
                (Reading::Failed(failure), _) | (_, Reading::Failed(failure)) => Some(failure),
                _ => None,
            },
        }
    }
}

fn by_name(settings: &Settings) -> BTreeMap<Arc<str>, Arc<Worker>> {
    settings.workers.iter().map(|worker| (worker.name.clone(), worker.clone())).collect()
}

fn watches_leaks(settings: &Settings) -> bool {
    settings.workers.iter().any(|worker| worker.recycle.leak)
}

fn sound(reading: Reading<f64>) -> Option<f64> {
    reading.known().filter(|value| value.is_finite())
}

/// Whose usage is held against which limit.
///
/// Without a limit in the file: all of the scope against the limit that will really hurt. A smaller one in the file is
/// held against the scope only where a cgroup bounds the scope: then everything in it is the application's container.
/// On a machine (or a share of one by cpuset or affinity) it is held against what the workers use together: a line of
/// 512 MB on a host with 8 GB is crossed by the strangers alone, and no worker could ever bring that under it.
fn basis(set: Option<f64>, own: Reading<f64>, source: LimitSource, of_workers: bool) -> (Basis, Reading<f64>) {
    let known = sound(own);
    if of_workers {
        let smaller = set.filter(|set| known.is_none_or(|own| *set < own));
        return (Basis::Workers, smaller.map_or(own, Reading::Known));
    }
    match set {
        // Only a cgroup's limit is ever forgotten (a machine's is remembered), so the scope is a container all the same:
        // to judge the workers alone for a moment would look like recovery.
        Some(set) if matches!(own, Reading::Failed(_)) => (Basis::Scope, Reading::Known(set)),
        Some(set) if known.is_none_or(|own| set < own) => match source {
            LimitSource::Cgroup if known.is_some() => (Basis::Scope, Reading::Known(set)),
            _ => (Basis::Workers, Reading::Known(set)),
        },
        _ => (Basis::Scope, own),
    }
}

/// What all replicas use together. One that has just started has no rate yet and one that has ended uses nothing: both
/// are left out. One that could not be read makes the sum unknown.
fn worker_cores(workers: &[WorkerReadings]) -> Reading<f64> {
    sum(workers.iter().map(|worker| worker.used_cores).filter(|cores| !matches!(cores, Reading::Unsupported)))
}

fn sum(parts: impl Iterator<Item = Reading<f64>>) -> Reading<f64> {
    let mut total = 0.0;
    for part in parts {
        match part {
            Reading::Known(value) => total += value,
            Reading::Gone => {}
            missing => return missing,
        }
    }
    Reading::Known(total)
}

/// A disk is as full as its space or its inodes, whichever is fuller. What is kept for root counts as used.
fn look_at_disk(reading: Option<&DiskReadings>, path: &std::path::Path, rule: &Rule) -> Look {
    let space = reading.map_or(Reading::Unsupported, |reading| reading.space);
    let inodes = space.known().and_then(|space| match (space.files, space.files_free) {
        (Some(files), Some(free)) if files > 0 => Some(files.saturating_sub(free) as f64 / files as f64),
        _ => None,
    });
    let used = space.map(|space| space.size.saturating_sub(space.avail) as f64);
    let limit = space.map(|space| space.size as f64);
    let full = used.known().zip(limit.known()).filter(|(_, size)| *size > 0.0).map(|(used, size)| used / size);
    Look {
        resource: Resource::Disk(reading.map_or_else(|| Arc::from(path), |reading| reading.path.clone())),
        basis: Basis::Scope,
        used,
        fills: used,
        limit,
        measure: None,
        share: full.map(|full| inodes.map_or(full, |inodes| full.max(inodes))),
        lines: rule::lines(rule, limit.known().unwrap_or(1.0), true),
    }
}
