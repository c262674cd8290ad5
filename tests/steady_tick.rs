//! A steady tick allocates nothing: the whole path from the look to the published picture, with real processes. Counted by an
//! allocator of its own, on the thread of the loop alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use plimsoll::config::{self, Sources};
use plimsoll::daemon::guardian::Guardian;
use plimsoll::daemon::signals::Signals;
use plimsoll::daemon::wiring;
use plimsoll::host::clock::Moment;
use plimsoll::host::service_manager::Passed;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    // A thread that is ending has no counter any more, and is not ours.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|first| first == plimsoll::daemon::sentinel::SUBCOMMAND) {
        return ExitCode::from(plimsoll::cli::main(arguments, Vec::new()));
    }
    // What `cargo test` may ask of a test without a harness.
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    a_counter_that_counts();
    if arguments.get(1).is_some_and(|first| first == BESIDE) {
        return beside_a_worker();
    }
    let folder = tempfile::tempdir().unwrap();
    let mut guardian = guardian(folder.path(), 10, AUTO);
    guardian.begin(Moment::now());
    steady(&mut guardian, 10);
    write_settings(folder.path(), 100, AUTO);
    guardian.reload(Moment::now());
    steady(&mut guardian, 100);
    guardian.shut_down("the test is over".to_owned());
    // A daemon is one to a process.
    in_a_process_of_its_own()
}

/// The same where the group of a worker is looked at through its process.
fn beside_a_worker() -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let mut guardian = guardian(folder.path(), 10, WORKER);
    guardian.begin(Moment::now());
    steady(&mut guardian, 10);
    assert_eq!(guardian.sampler.lookout(), Some(("idle", None)));
    guardian.shut_down("the test is over".to_owned());
    ExitCode::SUCCESS
}

#[expect(clippy::disallowed_methods, reason = "the test is the outside world here")]
fn in_a_process_of_its_own() -> ExitCode {
    let status = std::process::Command::new(std::env::current_exe().unwrap()).arg(BESIDE).status().unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

const BESIDE: &str = "beside-a-worker";

// Of the workers alone: whatever else this machine does, nothing is over a line.
const AUTO: &str = "scope = \"auto\"\n[policy.cpu]\nlimit = 0.01";
// Where a group is judged, somebody else in it may be over the line, and nothing comes of it.
const WORKER: &str = "scope = { worker = \"idle\" }\n[policy.cpu]\nsustain = \"1h\"\non_high = []";

/// A test that cannot fail would prove nothing.
fn a_counter_that_counts() {
    let before = allocations();
    drop(std::hint::black_box(vec![1_u8]));
    assert_eq!(allocations() - before, 1);
}

fn write_settings(folder: &Path, replicas: u32, scope: &str) -> PathBuf {
    std::fs::write(folder.join("memory"), "64000").unwrap();
    let file = format!(
        r#"
        [daemon]
        state_dir = "{folder}/state"
        runtime_dir = "{folder}/run"
        [log]
        level = "error"
        [http]
        listen = []
        [sampling]
        interval = "100ms"
        {scope}
        [policy.memory]
        limit = {{ file = "{folder}/memory", divisor = "1M" }}
        sustain = "1h"
        critical = "100%"
        [[policy.disks]]
        path = "/"
        high = "99.9%"
        low = "99.8%"
        critical = "99.95%"
        [workers.idle]
        command = ["sleep", "1000"]
        replicas = {replicas}
        [workers.idle.limits]
        memory = "1GB"
        [workers.idle.recycle]
        leak = true
        [workers.other]
        command = ["sleep", "1000"]
        "#,
        folder = folder.display()
    );
    let path = folder.join("plimsoll.toml");
    std::fs::write(&path, file).unwrap();
    path
}

fn guardian(folder: &Path, replicas: u32, scope: &str) -> Guardian {
    for name in ["state", "run"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let path = write_settings(folder, replicas, scope);
    let sources = Sources { file: Some(path), working_dir: folder.into(), ..Sources::default() };
    let loaded = config::load(&sources).unwrap();
    wiring::wire(Signals::listen().unwrap(), sources, loaded, std::env::vars_os().collect(), Passed::default(), Ok(None)).unwrap()
}

/// Runs the loop until it has ticked `ticks` times more; yields what each turn with a tick, and each without, allocated.
fn turns(guardian: &mut Guardian, ticks: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let end = guardian.tally.tick + ticks;
    while guardian.tally.tick < end {
        let (tick, before) = (guardian.tally.tick, allocations());
        assert_eq!(guardian.turn(Moment::now()), None);
        let allocated = allocations() - before;
        if guardian.tally.tick > tick {
            with.push(allocated)
        } else {
            without.push(allocated)
        }
        guardian.wait();
    }
    (with, without)
}

fn steady(guardian: &mut Guardian, replicas: u32) {
    let begun = Moment::now();
    let is_warm = |guardian: &Guardian| {
        let snapshot = guardian.published.latest();
        let mut each = snapshot.workers.iter().flat_map(|worker| &worker.replicas);
        snapshot.daemon.ready && each.clone().count() == replicas as usize + 1 && each.all(|replica| replica.used_cores.is_some())
    };
    while !is_warm(guardian) {
        turns(guardian, 1);
        assert!(Moment::now().since(begun) < Duration::from_secs(60), "the workers are not up");
    }
    // Windows that are as long as they get: the longest is ten seconds.
    turns(guardian, 120);
    let (with, without) = turns(guardian, 50);
    println!(
        "{replicas} workers: {} steady ticks allocated {}, {} other turns {}",
        with.len(),
        with.iter().sum::<u64>(),
        without.len(),
        without.iter().sum::<u64>()
    );
    // Ticks allocate nothing, those that look through all processes among them; only where this machine has more of them
    // than it ever had, the lists they are kept in grow.
    let that_allocated = with.iter().filter(|allocated| **allocated > 0).count();
    assert!(that_allocated <= 2 && with.iter().sum::<u64>() <= 6, "{with:?}");
    assert_eq!(without.iter().sum::<u64>(), 0, "{without:?}");
}
