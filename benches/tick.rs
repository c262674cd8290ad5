//! What one look at the machine costs with 10, 100 and 1,000 live workers: `cargo bench --bench tick`.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plimsoll::config::settings::{Sampling, Scope};
use plimsoll::host::Paths;
use plimsoll::host::cgroupfs::Layout;
use plimsoll::host::clock::Moment;
use plimsoll::sampling::readings::{SlotId, Target};
use plimsoll::sampling::{Readings, Sampler};

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
