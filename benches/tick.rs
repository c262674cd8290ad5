//! What each stage of a tick costs with 10, 100 and 1,000 live workers: `cargo bench --bench tick`. The whole daemon is
//! measured from outside by `benches/whole_process.py`.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use plimsoll::config::settings::{Sampling, Scope, Worker};
use plimsoll::config::{Settings, Sources};
use plimsoll::host::Paths;
use plimsoll::host::cgroupfs::Layout;
use plimsoll::host::clock::Moment;
use plimsoll::metrics::Scrape;
use plimsoll::metrics::registry::Form;
use plimsoll::policy::Engine;
use plimsoll::response::Planner;
use plimsoll::response::candidate::Candidate;
use plimsoll::sampling::readings::{Reading, SlotId, Target, WorkerReadings};
use plimsoll::sampling::sampler::blank;
use plimsoll::sampling::{Readings, Sampler};
use plimsoll::snapshot::{Published, ReplicaState, Snapshot, WorkerState};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    raise_descriptor_limit();
    divan::main();
}

/// One descriptor is kept open per worker; the usual soft limit of 1,024 is not enough for a thousand.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        eprintln!("the descriptor limit stays at {:?}: {error}", limit.current);
    }
}

/// Sleeping processes, ended when the bench is over.
struct Sleepers(Vec<Child>);

impl Sleepers {
    #[expect(clippy::disallowed_methods, reason = "a bench needs processes of its own")]
    fn start(count: usize) -> Sleepers {
        let sleeper = || Command::new("sleep").arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Sleepers((0..count).map_while(|_| sleeper().ok()).collect())
    }

    fn targets(&self) -> Vec<Target> {
        let target = |(at, child): (usize, &Child)| Target {
            slot: SlotId(at as u64),
            worker: "web".into(),
            pid: child.id().cast_signed(),
            cpu_group: None,
            memory_group: None,
            foreign_group: None,
            merges: false,
        };
        self.0.iter().enumerate().map(target).collect()
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn sampler() -> Sampler {
    let paths = Paths::default();
    let sampling = Sampling { interval: Duration::from_secs(2), scope: Scope::Auto, report_every: None };
    Sampler::new(&paths, &sampling, &Layout::discover(&paths), [std::path::Path::new("/").into()])
}

/// A steady tick: nothing was started or ended since the one before. Ticks follow each other as fast as they can, so the
/// scan of all processes and the look at threads and descriptors, once a second at most, weigh less than in a daemon
/// that ticks every two seconds: `with_details` below is such a tick.
#[divan::bench(args = [10, 100, 1000])]
fn steady(bencher: divan::Bencher, workers: usize) {
    let sleepers = Sleepers::start(workers);
    let targets = sleepers.targets();
    let mut sampler = sampler();
    let mut readings: Readings = sampler.read(&targets, Moment::now());
    bencher.bench_local(|| sampler.read_into(&targets, Moment::now(), &mut readings));
}

/// Each tick two seconds after the one before, as the sampler is told.
#[divan::bench(args = [10, 100, 1000])]
fn with_details(bencher: divan::Bencher, workers: usize) {
    let sleepers = Sleepers::start(workers);
    let targets = sleepers.targets();
    let mut sampler = sampler();
    let mut now = Moment::now();
    let mut readings: Readings = sampler.read(&targets, now);
    bencher.bench_local(|| {
        now = now.after(Duration::from_secs(2));
        sampler.read_into(&targets, now, &mut readings);
    });
}

/// Everything looked through: what happens before a tree is stopped or killed.
#[divan::bench(args = [10, 100, 1000])]
fn rescan(bencher: divan::Bencher, workers: usize) {
    let sleepers = Sleepers::start(workers);
    let targets = sleepers.targets();
    let mut sampler = sampler();
    sampler.read(&targets, Moment::now());
    bencher.bench_local(|| sampler.trees_mut().rescan(Moment::now()));
}

/// Readings of so many replicas of one worker, each with a memory limit of its own.
struct Stage {
    settings: Settings,
    worker: Arc<Worker>,
    readings: Readings,
    now: Moment,
}

impl Stage {
    fn new(workers: usize, busy: f64) -> Stage {
        let file = r#"
            [workers.web]
            command = ["sleep", "1000"]
            [workers.web.limits]
            memory = "400MB"
        "#;
        let folder = tempfile::tempdir().expect("a folder for the settings can be made");
        let path = folder.path().join("plimsoll.toml");
        std::fs::write(&path, file).expect("the settings can be written");
        let sources = Sources { file: Some(path), working_dir: folder.path().into(), ..Sources::default() };
        let loaded = plimsoll::config::load(&sources).expect("the settings are valid");
        let settings = loaded.settings.clone();
        let worker = settings.workers[0].clone();
        let now = Moment::now();
        let mut readings = blank(now);
        readings.cpu.limit_cores = Reading::Known(4.0);
        readings.cpu.used_cores = Reading::Known(busy * 4.0);
        let of = |at| WorkerReadings {
            slot: SlotId(at as u64),
            worker: worker.name.clone(),
            cpu_total: Reading::Known(Duration::from_secs(10)),
            used_cores: Reading::Known(busy * 4.0 / workers as f64),
            memory: Reading::Known(100_000_000),
            threads: Reading::Known(1),
            descriptors: Reading::Known(3),
            processes: Reading::Known(1),
            merged: Reading::Unsupported,
        };
        readings.workers = (0..workers).map(of).collect();
        Stage { settings, worker, readings, now }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |read: &WorkerReadings| Candidate {
            slot: read.slot,
            worker: read.worker.clone(),
            replica: 0,
            settings: self.worker.clone(),
            running: true,
            can_throttle: true,
            since: self.now,
            cores: read.used_cores.known(),
            memory: read.memory.known(),
            growth: 0.0,
            grasp: Default::default(),
            busy: None,
            due: None,
            leak: None,
        };
        self.readings.workers.iter().map(candidate).collect()
    }

    fn pass_a_second(&mut self) {
        self.now = self.now.after(Duration::from_secs(1));
        self.readings.at = self.now;
    }
}

#[divan::bench(args = [10, 100, 1000])]
fn judge(bencher: divan::Bencher, workers: usize) {
    let mut stage = Stage::new(workers, 0.1);
    let mut engine = Engine::new(&stage.settings);
    bencher.bench_local(|| {
        stage.pass_a_second();
        engine.judge(&stage.readings, stage.now)
    });
}

/// A tick in which nothing is to be done.
#[divan::bench(args = [10, 100, 1000])]
fn plan_at_rest(bencher: divan::Bencher, workers: usize) {
    plan(bencher, Stage::new(workers, 0.1));
}

/// A tick in which every replica has its share of a CPU budget.
#[divan::bench(args = [10, 100, 1000])]
fn plan_with_a_budget(bencher: divan::Bencher, workers: usize) {
    plan(bencher, Stage::new(workers, 0.95));
}

fn plan(bencher: divan::Bencher, mut stage: Stage) {
    let mut engine = Engine::new(&stage.settings);
    let mut planner = Planner::new(&stage.settings);
    let candidates = stage.candidates();
    let mut verdicts = Vec::new();
    for _ in 0..30 {
        stage.pass_a_second();
        verdicts = engine.judge(&stage.readings, stage.now);
        planner.plan(&verdicts, &stage.readings, &candidates, stage.now);
    }
    bencher.bench_local(|| {
        stage.pass_a_second();
        planner.plan(&verdicts, &stage.readings, &candidates, stage.now)
    });
}

/// The page of a daemon with so many replicas: one set of series for each worker, whatever the number of its replicas.
#[divan::bench(args = [10, 100, 1000])]
fn scrape(bencher: divan::Bencher, workers: usize) {
    let published = Arc::new(Published::default());
    let worker = WorkerState { name: "web".into(), replicas: vec![ReplicaState::default(); workers], ..WorkerState::default() };
    published.publish(Snapshot { tick: 1, workers: vec![worker], ..Snapshot::default() });
    let scrape = Scrape::new(published, Arc::new(Moment::now)).expect("the table of metrics is sound");
    bencher.bench_local(|| scrape.page(Form::Text));
}
