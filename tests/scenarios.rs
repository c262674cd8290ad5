//! Runs every file of `tests/scenarios/`: a small machine over time, with the verdicts and actions expected at each step.
//!
//! The machine is arithmetic (a replica uses what it wants and may, grows as it is told, and obeys what is done to it), time
//! is driven, and the engine and the planner are the real ones. A day takes a moment.
//!
//! What a file may say is the structs below; sizes are MB, times are seconds, CPU is in cores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plimsoll::config::settings::*;
use plimsoll::host::clock::Moment;
use plimsoll::policy::leak::Leak;
use plimsoll::policy::{Engine, Level, Resource, Verdict};
use plimsoll::response::action::{Cause, Outcome};
use plimsoll::response::candidate::{Due, Grasp};
use plimsoll::response::{Candidate, Deed, Planner};
use plimsoll::sampling::readings::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows.
    about: String,
    #[serde(default)]
    machine: Machine,
    #[serde(default)]
    policy: PolicyFile,
    #[serde(default)]
    workers: BTreeMap<String, WorkerFile>,
    steps: Vec<StepFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Machine {
    cores: f64,
    memory: u64,
    /// `machine` or `cgroup`: where the limits come from.
    source: String,
    /// Between two looks.
    tick: f64,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { cores: 2.0, memory: 1000, source: "machine".into(), tick: 1.0 }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    dry_run: bool,
    memory_limit: Option<u64>,
    cpu_limit: Option<f64>,
    on_high: Option<Vec<String>>,
    on_critical: Option<Vec<String>>,
    /// A disk at `/data`, and what is done at `high` and at `critical`.
    disk: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkerFile {
    replicas: u32,
    /// A replica's memory when it starts.
    memory: f64,
    /// What it drops when it is asked to; it has a shed signal when this is set.
    cache: Option<f64>,
    /// How long it takes to end when it is asked to. It is killed after 30.
    stops_in: f64,
    limit: Option<u64>,
    recycle: Option<u64>,
    /// Its replicas are watched for leaks.
    leak: bool,
    cpu_limit: Option<f64>,
    priority: i32,
    weight: u32,
    protected: bool,
    throttle: bool,
    /// Due this long after a replica starts.
    lifetime: Option<u64>,
}

impl Default for WorkerFile {
    fn default() -> Self {
        WorkerFile {
            replicas: 1,
            memory: 100.0,
            cache: None,
            stops_in: 1.0,
            limit: None,
            recycle: None,
            leak: false,
            cpu_limit: None,
            priority: 0,
            weight: 100,
            protected: false,
            throttle: true,
            lifetime: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    /// For people, when it fails.
    name: String,
    #[serde(rename = "for")]
    lasts: f64,
    /// What is not the workers'.
    #[serde(default)]
    others_cores: f64,
    #[serde(default)]
    others_memory: f64,
    /// File cache: what could be given back, and what is in use all the time. Neither is anybody's.
    #[serde(default)]
    idle_cache: f64,
    #[serde(default)]
    busy_cache: f64,
    /// The share of the time in which tasks wait for memory.
    #[serde(default)]
    waits: f64,
    /// Percent of the disk in use.
    #[serde(default)]
    disk: f64,
    /// `cpu`, `memory`: cannot be read during this step.
    #[serde(default)]
    unreadable: Vec<String>,
    #[serde(default)]
    workers: BTreeMap<String, Load>,
    expect: Expected,
}

/// Of each replica of one worker. It holds until a later step changes it.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Load {
    wants: f64,
    /// MB a second, while it gets all the CPU it wants.
    grows: f64,
    /// Memory from and to, and back at once, every so many seconds: a garbage collector.
    saw: Option<(f64, f64, f64)>,
    /// MB a second on top of the saw, from the start of the replica on: what the collector cannot take back.
    leaks: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Expected {
    /// At the end of the step.
    levels: BTreeMap<String, String>,
    /// During the step, all of them and in order: `recycle memory web`, `throttle cpu`, `release cpu`; `leak worker web` for one
    /// that is recycled because it leaks.
    actions: Vec<String>,
    /// The reasons given during the step, each once: `memory outside_usage`.
    refusals: Vec<String>,
    /// Mean use of CPU over the last ten seconds as a share of the limit, within two points.
    cpu: Option<f64>,
    /// Each worker's mean use over the same time, within two points of the limit.
    cores: BTreeMap<String, f64>,
    /// Memory never passed this share of the limit.
    memory_under: Option<f64>,
    /// At the end of the step memory is foretold to be full in so many seconds, within a fifth.
    full_in: Option<f64>,
    /// Nothing sooner than this was foretold for memory during the step.
    foretold_over: Option<f64>,
    /// No resource was over its line for longer than this without an answer.
    unanswered_under: Option<f64>,
}

struct Life {
    slot: SlotId,
    worker: String,
    replica: u32,
    memory: f64,
    used: f64,
    cache: f64,
    began: Moment,
    ends: Option<Moment>,
    recycling: bool,
    /// By resource: what it is held to.
    shares: BTreeMap<Resource, f64>,
    /// As the engine reports it.
    growth: f64,
    leak: Option<Leak>,
}

struct World<'a> {
    scenario: &'a Scenario,
    settings: Settings,
    engine: Engine,
    planner: Planner,
    lives: Vec<Life>,
    slots: u64,
    now: Moment,
    loads: BTreeMap<String, Load>,
    last_action: u64,
    /// Seconds in which tasks have waited for memory so far.
    waited: f64,
}

const MB: f64 = 1e6;
const DISK: u64 = 100_000_000_000;

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let settings = settings(scenario);
        let now = Moment { steady: Duration::from_secs(1000), wall: SystemTime::UNIX_EPOCH };
        let (engine, planner) = (Engine::new(&settings), Planner::new(&settings));
        let mut world = World {
            scenario,
            settings,
            engine,
            planner,
            lives: Vec::new(),
            slots: 0,
            now,
            loads: BTreeMap::new(),
            last_action: 0,
            waited: 0.0,
        };
        for (name, worker) in &scenario.workers {
            for replica in 0..worker.replicas {
                world.start(name, replica);
            }
        }
        world
    }

    fn start(&mut self, name: &str, replica: u32) {
        let worker = &self.scenario.workers[name];
        self.slots += 1;
        self.lives.push(Life {
            slot: SlotId(self.slots),
            worker: name.to_owned(),
            replica,
            memory: worker.memory,
            used: 0.0,
            cache: worker.cache.unwrap_or(0.0),
            began: self.now,
            ends: None,
            recycling: false,
            shares: BTreeMap::new(),
            growth: 0.0,
            leak: None,
        });
    }

    /// Lets time pass: replicas end, start, run and grow.
    fn pass(&mut self, step: &StepFile) {
        let tick = self.scenario.machine.tick;
        self.now = self.now.after(Duration::from_secs_f64(tick));
        self.waited += step.waits * tick;
        let now = self.now;
        let ended: Vec<(String, u32)> = self
            .lives
            .iter()
            .filter(|life| life.ends.is_some_and(|at| at.steady <= now.steady))
            .map(|life| (life.worker.clone(), life.replica))
            .collect();
        self.lives.retain(|life| life.ends.is_none_or(|at| at.steady > now.steady));
        for (name, replica) in ended {
            self.start(&name, replica);
        }
        let free = (self.scenario.machine.cores - step.others_cores).max(0.0);
        for life in &mut self.lives {
            let wants = self.loads.get(&life.worker).map_or(0.0, |load| load.wants);
            life.used = life.shares.values().copied().fold(wants, f64::min);
        }
        let wanted: f64 = self.lives.iter().map(|life| life.used).sum();
        for life in &mut self.lives {
            let Some(load) = self.loads.get(&life.worker) else { continue };
            if wanted > free {
                life.used *= free / wanted;
            }
            let speed = if load.wants > 0.0 { life.used / load.wants } else { 1.0 };
            life.memory += load.grows * tick * speed;
            if let Some((from, to, period)) = load.saw {
                let age = now.since(life.began).as_secs_f64();
                life.memory = from + (to - from) * (age % period) / period + load.leaks * age;
            }
        }
    }

    fn readings(&self, step: &StepFile) -> Readings {
        let machine = &self.scenario.machine;
        let source = if machine.source == "cgroup" { LimitSource::Cgroup } else { LimitSource::Machine };
        let failure = Failure { source: Source::Cgroup, errno: Some(19) };
        let is_readable = |what: &str| !step.unreadable.iter().any(|name| name == what);
        let cores: f64 = self.lives.iter().map(|life| life.used).sum::<f64>() + step.others_cores;
        let memory: f64 = self.lives.iter().map(|life| life.memory).sum::<f64>() + step.others_memory;
        let bytes = |amount: f64| if is_readable("memory") { Reading::Known((amount * MB) as u64) } else { Reading::Failed(failure) };
        Readings {
            at: self.now,
            cpu: CpuReadings {
                limit_cores: Reading::Known(machine.cores),
                limit_source: source,
                of_workers: false,
                usage_total: Reading::Unsupported,
                used_cores: if is_readable("cpu") { Reading::Known(cores.min(machine.cores)) } else { Reading::Failed(failure) },
                throttled_total: Reading::Unsupported,
                stolen_cores: Reading::Unsupported,
            },
            memory: MemoryReadings {
                limit: Reading::Known(machine.memory * MB as u64),
                limit_source: source,
                of_workers: false,
                current: bytes(memory + step.idle_cache + step.busy_cache),
                working_set: bytes(memory + step.busy_cache),
                unreclaimable: bytes(memory),
                swap: Reading::Unsupported,
                events: Reading::Unsupported,
                file_cache: bytes(step.idle_cache + step.busy_cache),
                refaults: Reading::Unsupported,
                stalls: Reading::Known(Pressure { waiting: Duration::from_secs_f64(self.waited), stalled: None }),
            },
            pressure: PressureReadings { cpu: Reading::Unsupported, memory: Reading::Unsupported, io: Reading::Unsupported },
            disks: self
                .settings
                .policy
                .disks
                .iter()
                .map(|disk| DiskReadings {
                    path: Arc::from(disk.path.as_path()),
                    space: Reading::Known(DiskSpace {
                        size: DISK,
                        avail: (DISK as f64 * (1.0 - step.disk / 100.0)) as u64,
                        files: None,
                        files_free: None,
                    }),
                })
                .collect(),
            workers: self
                .lives
                .iter()
                .map(|life| WorkerReadings {
                    slot: life.slot,
                    worker: Arc::from(life.worker.as_str()),
                    cpu_total: Reading::Unsupported,
                    used_cores: Reading::Known(life.used),
                    memory: Reading::Known((life.memory * MB) as u64),
                    threads: Reading::Unsupported,
                    descriptors: Reading::Unsupported,
                    processes: Reading::Unsupported,
                    merged: Reading::Unsupported,
                })
                .collect(),
            failures: [0; 5],
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.lives
            .iter()
            .map(|life| {
                let settings = self.settings.workers.iter().find(|worker| *worker.name == *life.worker).unwrap().clone();
                let age = self.now.since(life.began);
                Candidate {
                    slot: life.slot,
                    worker: settings.name.clone(),
                    replica: life.replica,
                    running: true,
                    can_throttle: self.scenario.workers[&life.worker].throttle,
                    since: life.began,
                    cores: Some(life.used),
                    memory: Some((life.memory * MB) as u64),
                    growth: life.growth,
                    // No groups of their own on this machine.
                    grasp: Grasp::default(),
                    busy: life.recycling.then_some("recycling"),
                    due: settings.recycle.lifetime.filter(|lifetime| age >= *lifetime).map(|_| Due::Lifetime),
                    leak: life.leak,
                    settings,
                }
            })
            .collect()
    }

    /// One tick. Yields the verdicts, the actions in words and the refusals in words.
    fn tick(&mut self, step: &StepFile) -> (Vec<Verdict>, Vec<String>, Vec<String>) {
        self.pass(step);
        let readings = self.readings(step);
        let verdicts = self.engine.judge(&readings, self.now);
        for life in &mut self.lives {
            life.growth = self.engine.growth(life.slot);
            life.leak = self.engine.leak(life.slot);
        }
        let plan = self.planner.plan(&verdicts, &readings, &self.candidates(), self.now);
        let mut words = Vec::new();
        let mut outcomes = Vec::new();
        for action in plan.actions {
            // Shares sent anew while the throttle is on are the same action going on.
            if action.id > self.last_action {
                words.push(self.in_words(&action.resource, &action.deed));
                self.last_action = action.id;
            }
            let outcome = if self.settings.policy.dry_run {
                Outcome::DryRun
            } else {
                self.perform(&action.resource, &action.deed);
                Outcome::Done
            };
            outcomes.push((action, outcome));
        }
        self.planner.note(outcomes.iter().map(|(action, outcome)| (action, outcome)), self.now);
        let refusals = plan.refusals.iter().map(|refusal| format!("{} {}", resource_word(&refusal.resource), refusal.reason)).collect();
        (verdicts, words, refusals)
    }

    fn perform(&mut self, resource: &Resource, deed: &Deed) {
        let now = self.now;
        match deed {
            Deed::Notify | Deed::Job(_) | Deed::Line(_) | Deed::Lift(_) | Deed::Reclaim(_) | Deed::Freeze(_) => {}
            Deed::Shed(slots) => {
                for life in self.lives.iter_mut().filter(|life| slots.contains(&life.slot)) {
                    life.memory -= life.cache;
                    life.cache = 0.0;
                }
            }
            Deed::Throttle(shares) => {
                for share in shares {
                    if let Some(life) = self.lives.iter_mut().find(|life| life.slot == share.slot) {
                        match share.cores {
                            Some(cores) => drop(life.shares.insert(resource.clone(), cores)),
                            None => drop(life.shares.remove(resource)),
                        }
                    }
                }
            }
            Deed::Recycle(slot, _) => {
                if let Some(life) = self.lives.iter_mut().find(|life| life.slot == *slot) {
                    life.recycling = true;
                    let takes = self.scenario.workers[&life.worker].stops_in.min(30.0);
                    life.ends = Some(now.after(Duration::from_secs_f64(takes)));
                }
            }
            Deed::Kill(slot) => {
                if let Some(life) = self.lives.iter_mut().find(|life| life.slot == *slot) {
                    life.ends = Some(now);
                }
            }
            Deed::Release => {
                for life in &mut self.lives {
                    life.shares.remove(resource);
                }
            }
        }
    }

    fn in_words(&self, resource: &Resource, deed: &Deed) -> String {
        let name = |slot: &SlotId| self.lives.iter().find(|life| life.slot == *slot).map_or("?", |life| &life.worker);
        let what = resource_word(resource);
        match deed {
            Deed::Recycle(slot, Cause::Leak) => format!("leak {what} {}", name(slot)),
            Deed::Recycle(slot, _) => format!("recycle {what} {}", name(slot)),
            Deed::Kill(slot) => format!("kill {what} {}", name(slot)),
            Deed::Release => format!("release {what}"),
            deed => format!("{} {what}", deed.rung().expect("only a release is without a rung").word()),
        }
    }
}

fn resource_word(resource: &Resource) -> &'static str {
    match resource {
        Resource::Cpu => "cpu",
        Resource::Memory => "memory",
        Resource::Disk(_) => "disk",
        Resource::Worker(_) => "worker",
    }
}

fn rung(word: &str) -> Rung {
    match word {
        "notify" => Rung::Notify,
        "shed" => Rung::Shed,
        "reclaim" => Rung::Reclaim,
        "throttle" => Rung::Throttle,
        "recycle" => Rung::Recycle,
        "kill" => Rung::Kill,
        other => match other.strip_prefix("job:") {
            Some(job) => Rung::Job(Arc::from(job)),
            None => panic!("unknown rung {other}"),
        },
    }
}

/// The defaults of the product, with what the scenario says.
fn settings(scenario: &Scenario) -> Settings {
    let folder = |path: &str| Folder { path: PathBuf::from(path), explicit: false };
    let rungs = |set: &Option<Vec<String>>, otherwise: &[&str]| match set {
        Some(words) => words.iter().map(|word| rung(word)).collect(),
        None => otherwise.iter().map(|word| rung(word)).collect(),
    };
    let rule = |sustain, on_high, on_critical, critical: Option<f64>| Rule {
        high: Line::Share(0.80),
        low: Line::Share(0.70),
        critical: critical.map(Line::Share),
        sustain: Duration::from_secs(sustain),
        on_high,
        on_critical,
    };
    let policy = &scenario.policy;
    Settings {
        daemon: Daemon {
            state_dir: folder("/state"),
            runtime_dir: folder("/run"),
            shutdown_timeout: Duration::from_secs(30),
            leftovers: Leftovers::Adopt,
            upgrade: Upgrade::Never,
        },
        log: Log { level: LogLevel::Info, format: LogFormat::Auto },
        http: Http { listen: Vec::new(), api_key: None, dashboard: false },
        host: HostPaths {
            proc: "/proc".into(),
            sys: "/sys".into(),
            cgroup: "/sys/fs/cgroup".into(),
            journal: "/run/systemd/journal/stdout".into(),
        },
        sampling: Sampling { interval: Duration::from_secs(2), scope: Scope::Auto, report_every: None },
        policy: Policy {
            dry_run: policy.dry_run,
            cpu: CpuPolicy {
                limit: policy.cpu_limit.map_or(Ceiling::Auto, Ceiling::Set),
                rule: rule(10, vec![Rung::Throttle], vec![], None),
            },
            memory: MemoryPolicy {
                limit: policy.memory_limit.map_or(Ceiling::Auto, |limit| Ceiling::Set(limit * MB as u64)),
                rule: rule(4, rungs(&policy.on_high, &["shed", "throttle"]), rungs(&policy.on_critical, &["recycle", "kill"]), Some(0.92)),
            },
            disks: match policy.disk {
                true => {
                    let rule = rule(4, rungs(&None, &["job:audio-cleanup"]), rungs(&None, &["notify"]), Some(0.90));
                    vec![DiskPolicy { path: "/data".into(), rule: Rule { low: Line::Share(0.75), ..rule } }]
                }
                false => vec![],
            },
        },
        workers: scenario.workers.iter().map(|(name, worker)| Arc::new(worker_settings(name, worker))).collect(),
        jobs: Vec::new(),
        file: None,
    }
}

fn worker_settings(name: &str, file: &WorkerFile) -> Worker {
    Worker {
        replicas: Replicas::Count(file.replicas),
        priority: file.priority,
        weight: file.weight,
        protected: file.protected,
        shed_signal: file.cache.map(|_| Signal(10)),
        output: Output::Inherit,
        limits: Limits { memory: file.limit.map(|limit| limit * MB as u64), cpu: file.cpu_limit },
        recycle: Recycle {
            lifetime: file.lifetime.map(Duration::from_secs),
            memory: file.recycle.map(|memory| memory * MB as u64),
            leak: file.leak,
            ..Recycle::default()
        },
        ..Worker::new(name, vec![name.to_owned()])
    }
}

/// Runs one file; yields what went otherwise than expected.
fn run(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let scenario: Scenario = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut world = World::new(&scenario);
    let mut wrong = Vec::new();
    for step in &scenario.steps {
        world.loads.extend(step.workers.clone());
        let mut seen = Seen::default();
        let ticks = (step.lasts / scenario.machine.tick).round() as u64;
        let tail = ticks.saturating_sub((10.0 / scenario.machine.tick) as u64);
        for tick in 0..ticks {
            let (verdicts, actions, refusals) = world.tick(step);
            seen.take(&world, step, verdicts, actions, refusals, tick >= tail);
        }
        let place = format!("{} ({}), step \"{}\"", path.file_stem().unwrap().display(), scenario.about, step.name);
        wrong.extend(seen.differences(&step.expect).into_iter().map(|what| format!("{place}: {what}")));
    }
    wrong
}

/// What happened during one step.
#[derive(Default)]
struct Seen {
    verdicts: Vec<Verdict>,
    actions: Vec<String>,
    refusals: Vec<String>,
    cpu: Vec<f64>,
    cores: BTreeMap<String, Vec<f64>>,
    limit: f64,
    memory: f64,
    unanswered: f64,
    soonest: Option<f64>,
}

impl Seen {
    fn take(&mut self, world: &World, step: &StepFile, verdicts: Vec<Verdict>, actions: Vec<String>, refusals: Vec<String>, is_tail: bool) {
        let used: f64 = world.lives.iter().map(|life| life.used).sum();
        self.limit = world.settings.policy.cpu.limit.set().unwrap_or(world.scenario.machine.cores);
        if is_tail {
            let others = if world.settings.policy.cpu.limit.set().is_some() { 0.0 } else { step.others_cores };
            self.cpu.push((used + others) / self.limit);
            for (name, mean) in world
                .scenario
                .workers
                .keys()
                .map(|name| (name, world.lives.iter().filter(|life| life.worker == *name).map(|life| life.used).sum()))
            {
                self.cores.entry(name.clone()).or_default().push(mean);
            }
        }
        for verdict in &verdicts {
            if verdict.resource == Resource::Memory {
                self.memory = self.memory.max(verdict.utilization.unwrap_or(0.0));
                let left = verdict.exhaustion.map(|left| left.as_secs_f64());
                self.soonest = self.soonest.into_iter().chain(left).reduce(f64::min);
            }
            self.unanswered = self.unanswered.max(world.planner.status(&verdict.resource).unanswered.as_secs_f64());
            let is_silent = verdict.level > Level::Normal
                && verdict.over
                && world.planner.status(&verdict.resource).last_action.is_none()
                && world.planner.status(&verdict.resource).reason.is_none();
            assert!(!is_silent, "over the line, nothing done and no reason: {verdict:?}");
        }
        self.verdicts = verdicts;
        self.actions.extend(actions);
        for refusal in refusals {
            if !self.refusals.contains(&refusal) {
                self.refusals.push(refusal);
            }
        }
    }

    fn differences(&self, expected: &Expected) -> Vec<String> {
        let mut wrong = Vec::new();
        for (resource, level) in &expected.levels {
            let found =
                self.verdicts.iter().filter(|verdict| resource_word(&verdict.resource) == resource).map(|verdict| verdict.level).max();
            if found.map(Level::word) != Some(level) {
                wrong.push(format!("{resource} is {found:?}, not {level}"));
            }
        }
        if self.actions != expected.actions {
            wrong.push(format!("actions {:?}, not {:?}", self.actions, expected.actions));
        }
        if self.refusals != expected.refusals {
            wrong.push(format!("refusals {:?}, not {:?}", self.refusals, expected.refusals));
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        if let Some(cpu) = expected.cpu
            && (mean(&self.cpu) - cpu).abs() > 0.02
        {
            wrong.push(format!("cpu was at {:.3}, not {cpu}", mean(&self.cpu)));
        }
        for (name, cores) in &expected.cores {
            let found = self.cores.get(name).map_or(f64::NAN, |values| mean(values));
            if (found - cores).abs().is_nan() || (found - cores).abs() > 0.02 * self.limit {
                wrong.push(format!("{name} used {found:.3} cores, not {cores}"));
            }
        }
        if let Some(most) = expected.memory_under
            && self.memory >= most
        {
            wrong.push(format!("memory reached {:.3}, not under {most}", self.memory));
        }
        let memory = self.verdicts.iter().find(|verdict| verdict.resource == Resource::Memory);
        let foretold = memory.and_then(|verdict| verdict.exhaustion).map(|left| left.as_secs_f64());
        if let Some(left) = expected.full_in
            && foretold.is_none_or(|foretold| (foretold - left).abs() > left / 5.0)
        {
            wrong.push(format!("memory is foretold to be full in {foretold:?} s, not in {left}"));
        }
        if let Some(least) = expected.foretold_over
            && self.soonest.is_some_and(|soonest| soonest < least)
        {
            wrong.push(format!("memory was foretold to be full in {:?} s, sooner than {least}", self.soonest));
        }
        if let Some(most) = expected.unanswered_under
            && self.unanswered >= most
        {
            wrong.push(format!("unanswered for {} s, not under {most}", self.unanswered));
        }
        wrong
    }
}

#[test]
fn every_scenario_goes_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "the scenarios are not where they were: {files:?}");
    let wrong: Vec<String> = files.iter().flat_map(|file| run(file)).collect();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
