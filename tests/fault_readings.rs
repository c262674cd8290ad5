//! Each source of numbers under each fault: what its reading says then. "Could not read" is never a number, never "fine".
//!
//! One row per source; the letters stand for the faults in the order of [`FAULTS`], and say what the reading becomes:
//! `k` known as before, `u` unsupported, `g` gone, `f` failed and counted in `failures`.

#![expect(clippy::disallowed_methods, reason = "the tests start processes of their own")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll::config::settings::{Sampling, Scope};
use plimsoll::host::Paths;
use plimsoll::host::cgroupfs::Layout;
use plimsoll::host::clock::Moment;
use plimsoll::sampling::readings::{Reading, SlotId, Target};
use plimsoll::sampling::{Readings, Sampler};
use rustix::io::Errno;

mod kernel;

use kernel::{Call, Fault, Kernel, Rules};

/// What befalls a file that could be read once already, and what befalls one that could never be.
const FAULTS: [&str; 10] = ["missing", "vanished", "empty", "truncated", "garbage", "EIO", "EINTR", "ENODEV", "EPERM", "EACCES"];

fn rules(fault: &str, file: &'static str, truncated: &'static str) -> (Call, &'static str, Fault) {
    match fault {
        "missing" | "vanished" => (Call::Open, file, Fault::Fails(Errno::NOENT)),
        "empty" => (Call::Read, file, Fault::Says("")),
        "truncated" => (Call::Read, file, Fault::Says(truncated)),
        "garbage" => (Call::Read, file, Fault::Says("\u{fffd}no numbers here: -1 -1\n")),
        "EIO" => (Call::Read, file, Fault::Fails(Errno::IO)),
        "EINTR" => (Call::Read, file, Fault::FailsOnceInAWhile(Errno::INTR)),
        "ENODEV" => (Call::Read, file, Fault::Fails(Errno::NODEV)),
        "EPERM" => (Call::Open, file, Fault::Fails(Errno::PERM)),
        "EACCES" => (Call::Open, file, Fault::Fails(Errno::ACCESS)),
        other => panic!("{other} is no fault"),
    }
}

struct Row {
    machine: &'static str,
    file: &'static str,
    /// What is left of it when it was cut short.
    truncated: &'static str,
    says: fn(&Readings) -> char,
    expected: &'static str,
}

fn letter<T>(reading: &Reading<T>) -> char {
    match reading {
        Reading::Known(_) => 'k',
        Reading::Unsupported => 'u',
        Reading::Gone => 'g',
        Reading::Failed(_) => 'f',
    }
}

fn rows() -> Vec<Row> {
    let row = |machine, file, truncated, says: fn(&Readings) -> char, expected| Row { machine, file, truncated, says, expected };
    vec![
        //                                                                                      missing … EACCES
        row("exact/docker-v2", "/memory.current", "30x", |r| letter(&r.memory.current), "ugffffkgff"),
        row("exact/docker-v2", "/memory.stat", "anon 21", |r| letter(&r.memory.unreclaimable), "ugffffkgff"),
        row("exact/docker-v2", "/memory.stat", "anon 21", |r| letter(&r.memory.working_set), "ugffffkgff"),
        row("exact/docker-v2", "/memory.max", "ma", |r| letter(&r.memory.limit), "kfffffkfff"),
        row("exact/docker-v2", "/memory.swap.current", "4x", |r| letter(&r.memory.swap), "ugffffkgff"),
        row("exact/docker-v2", "/memory.events", "low 0\nhi", |r| letter(&r.memory.events), "ugffffkgff"),
        row("exact/docker-v2", "/cpu.max", "50000 ", |r| letter(&r.cpu.limit_cores), "kfffffkfff"),
        row("exact/docker-v2", "/cpu.stat", "usage_us", |r| letter(&r.cpu.usage_total), "ugffffkgff"),
        row("exact/docker-v2", "/cpuset.cpus.effective", "0-", |r| letter(&r.cpu.limit_cores), "kfffffkfff"),
        row("exact/docker-v2", "/memory.pressure", "some avg10=0.00", |r| letter(&r.pressure.memory), "ugufffkgff"),
        row("exact/docker-v1", "/memory.usage_in_bytes", "2x", |r| letter(&r.memory.current), "ugffffkgff"),
        row("hosts/readonly-cgroupfs", "/memory.failcnt", "1x", |r| letter(&r.memory.events), "ugffffkgff"),
        // Not there from the start: a kernel that does not account its own part.
        row("hosts/readonly-cgroupfs", "/memory.kmem.usage_in_bytes", "1x", |r| letter(&r.memory.unreclaimable), "kgffffkgff"),
        row("exact/docker-v1", "/memory.limit_in_bytes", "26843545x", |r| letter(&r.memory.limit), "kfffffkfff"),
        row("exact/docker-v1", "/memory.stat", "cache 1", |r| letter(&r.memory.unreclaimable), "ugffffkgff"),
        row("exact/docker-v1", "/memory.stat", "cache 1", |r| letter(&r.memory.limit), "kfffffkfff"),
        row("exact/docker-v1", "/cpuacct.usage", "7x", |r| letter(&r.cpu.usage_total), "ugffffkgff"),
        row("exact/docker-v1", "/cpu.cfs_quota_us", "15x", |r| letter(&r.cpu.limit_cores), "kfffffkfff"),
        row("exact/docker-v1", "/cpu.cfs_period_us", "10x", |r| letter(&r.cpu.limit_cores), "kfffffkfff"),
        row("exact/docker-v1", "/cpuset.effective_cpus", "0-", |r| letter(&r.cpu.limit_cores), "kfffffkfff"),
        row("exact/v2-bare", "/proc/meminfo", "MemTotal: 80", |r| letter(&r.memory.unreclaimable), "ugffffkgff"),
        // What the machine had is remembered; what of it is used is not guessed.
        row("exact/v2-bare", "/proc/meminfo", "MemTotal: 80", |r| letter(&r.memory.limit), "ukkkkkkkkk"),
        row("exact/v2-bare", "/proc/stat", "cpu  1 2", |r| letter(&r.cpu.usage_total), "ugffffkgff"),
        row("exact/v2-bare", "/cpu/online", "0-", |r| letter(&r.cpu.limit_cores), "kkkkkkkkkk"),
        row("exact/v2-bare", "/pressure/memory", "some", |r| letter(&r.pressure.memory), "ugufffkgff"),
    ]
}

/// Shown past the capture of the test harness. The build machine grants what is needed.
fn skip() {
    let shown = b"skipped: no seccomp user notification here\n";
    let stderr = std::fs::File::options().append(true).open("/dev/stderr");
    assert!(stderr.and_then(|mut stderr| std::io::Write::write_all(&mut stderr, shown)).is_ok() && std::env::var_os("CI").is_none());
}

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn sampler(paths: &Paths) -> Sampler {
    let sampling = Sampling { interval: Duration::from_secs(2), scope: Scope::Auto, report_every: None };
    Sampler::new(paths, &sampling, &Layout::discover(paths), [])
}

fn at(seconds: u64) -> Moment {
    Moment { steady: Duration::from_secs(seconds), wall: std::time::UNIX_EPOCH }
}

#[test]
fn no_fault_makes_a_number() {
    let report = Kernel::around(|kernel| {
        let mut wrong = Vec::new();
        for row in rows() {
            let (name, file) = (row.machine, row.file);
            let found: String = FAULTS.iter().map(|fault| under(kernel, &row, fault)).collect();
            if found != row.expected {
                wrong.push(format!("{name}{file}: expected {}, found {found}", row.expected));
            }
        }
        wrong
    });
    let Some(wrong) = report else { return skip() };
    assert!(wrong.is_empty(), "faults: {FAULTS:?}\n{}", wrong.join("\n"));
}

/// One look without the fault, unless it is there from the start, and one with it.
fn under(kernel: &Rules, row: &Row, fault: &str) -> char {
    kernel.clear();
    let mut sampler = sampler(&Paths::below(&machine(row.machine)));
    if fault != "missing" {
        let before = sampler.read(&[], at(100));
        assert_eq!((row.says)(&before), 'k', "{}{} without a fault", row.machine, row.file);
        assert_eq!(before.failures, [0; 5]);
    }
    let extent = sampler.scope().extent;
    kernel.set([rules(fault, row.file, row.truncated)]);
    let seen = sampler.read(&[], at(102));
    let says = (row.says)(&seen);
    if says == 'f' {
        assert_ne!(seen.failures, [0; 5], "{fault} of {}{} is counted", row.machine, row.file);
    }
    if fault != "missing" {
        assert_eq!(sampler.scope().extent, extent, "{fault} of {}{} changes whose usage is judged", row.machine, row.file);
    }
    says
}

#[test]
fn a_container_whose_limits_cannot_be_read_is_not_taken_for_the_whole_machine() {
    let seen = Kernel::around(|kernel| {
        let mut sampler = sampler(&Paths::below(&machine("exact/docker-v2")));
        let before = sampler.read(&[], at(100));
        kernel.set([(Call::Read, "/memory.max", Fault::Fails(Errno::IO)), (Call::Read, "/cpu.max", Fault::Fails(Errno::IO))]);
        let seen = sampler.read(&[], at(102));
        (before, seen)
    });
    let Some((before, seen)) = seen else { return skip() };
    assert_eq!(letter(&seen.memory.limit), 'f');
    assert_eq!(letter(&seen.cpu.limit_cores), 'f');
    assert_eq!(seen.memory.current, before.memory.current, "still the group's usage");
    assert_eq!(seen.cpu.usage_total, before.cpu.usage_total);
    assert_eq!(seen.failures, [0, 2, 0, 0, 0]);
}

#[test]
fn counters_that_go_back_make_no_rate_for_one_look() {
    let rates = Kernel::around(|kernel| {
        let mut sampler = sampler(&Paths::below(&machine("exact/docker-v2")));
        let mut rate = |says: &'static str, seconds| {
            kernel.set([(Call::Read, "/cpu.stat", Fault::Says(says))]);
            sampler.read(&[], at(seconds)).cpu.used_cores
        };
        [
            rate("usage_usec 5000000\n", 100),
            rate("usage_usec 6000000\n", 102),
            rate("usage_usec 1000\n", 104),
            rate("usage_usec 1001000\n", 106),
            rate("usage_usec 18446744073709551615\n", 108),
        ]
    });
    let Some(rates) = rates else { return skip() };
    let expected = [Reading::Unsupported, Reading::Known(0.5), Reading::Unsupported, Reading::Known(0.5)];
    assert_eq!(rates[..4], expected);
    // A leap forward is believed: nothing here knows better.
    assert_eq!(letter(&rates[4]), 'k');
}

/// A worker in a process tree of its own, on the machine the test runs on.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start() -> Sleeper {
        let mut command = std::process::Command::new("setsid");
        Sleeper(command.args(["sleep", "1000"]).stdout(std::process::Stdio::null()).spawn().expect("setsid"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_worker_that_cannot_be_looked_at_is_neither_small_nor_gone() {
    // What each makes of: memory, CPU, the number of its processes. `statm` is open already: it cannot be missing.
    const ROWS: [(&str, &str, [&str; 3]); 4] = [
        ("/statm", "12 3", ["kkffffkfkk"; 3]),
        ("/stat", "7 (sl", ["kkkkkkkkkk"; 3]),
        ("/loadavg", "0.00 0.", ["kkkkkkkkkk"; 3]),
        ("/smaps_rollup", "5581", ["kkkkkkkkkk"; 3]),
    ];
    let worker = Sleeper::start();
    let pid = worker.0.id().cast_signed();
    let report = Kernel::around(move |kernel| {
        let target =
            Target { slot: SlotId(1), worker: "web".into(), pid, cpu_group: None, memory_group: None, foreign_group: None, merges: false };
        let mut wrong = Vec::new();
        for (file, truncated, expected) in ROWS {
            let mut found = [String::new(), String::new(), String::new()];
            for fault in FAULTS {
                kernel.clear();
                let mut sampler = sampler(&Paths::default());
                // In full each time: a tree at rest is not read again.
                let before = sampler.read(std::slice::from_ref(&target), at(100));
                assert_eq!(letter(&before.workers[0].memory), 'k', "{:?}", before.workers[0]);
                kernel.set([rules(fault, file, truncated)]);
                let mut seen = before;
                for look in 0..16 {
                    sampler.want_pss(SlotId(1));
                    seen = sampler.read(std::slice::from_ref(&target), at(111 + 11 * look));
                }
                let seen = &seen.workers[0];
                found[0].push(letter(&seen.memory));
                found[1].push(letter(&seen.cpu_total));
                found[2].push(letter(&seen.processes));
            }
            if found != expected {
                wrong.push(format!("{file}: expected {expected:?}, found {found:?}"));
            }
        }
        wrong
    });
    let Some(wrong) = report else { return skip() };
    assert!(wrong.is_empty(), "faults: {FAULTS:?}\n{}", wrong.join("\n"));
}
