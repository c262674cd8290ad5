//! Kind `files` against find(1) and systemd-tmpfiles(8): `cargo bench --bench files_job [-- FILES [FOLDER]]`, 100,000 files by default.
//!
//! Half of them are old. Each is measured as a process of its own, in turn, and the best of several is taken: what others do on the
//! machine only ever adds. FOLDER decides about the filesystem; a tmpfs shows the work, a disk mostly itself.

#![expect(clippy::disallowed_methods, reason = "a bench starts processes")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use plimsoll::config::jobs::Files;
use plimsoll::host::clock::Moment;
use plimsoll::jobs::files::run;
use plimsoll::jobs::run::{Foreman, Order, Report};

/// The kernel alone sets the time of change: so many hours ahead is the clock of the job, and the young files with it.
const AHEAD: Duration = Duration::from_secs(100 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SCANS: usize = 7;
const DELETIONS: usize = 3;

struct Silent;

impl Foreman for Silent {
    fn now(&mut self) -> Moment {
        Moment::now().after(AHEAD)
    }
    fn tell(&mut self, report: Report) {
        std::hint::black_box(report);
    }
    fn wait(&mut self, _: Duration) -> bool {
        true
    }
    fn at_safe_point(&mut self) -> bool {
        true
    }
}

fn job(folder: &Path, dry_run: bool) {
    let settings = Files {
        paths: vec![folder.to_path_buf()],
        include: vec!["*.mp3".into(), "*.wav".into(), "*.ogg".into()],
        exclude: Vec::new(),
        keep: DAY,
        min_age: Duration::from_secs(600),
        max_total: None,
        max_files: None,
        prune_empty: false,
        mounted: false,
        groups: false,
        rate: None,
        owner: None,
    };
    let before = peak();
    let outcome = run(&settings, &Order { dry_run, ..Order::default() }, &mut Silent).expect("a folder that may be searched");
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    println!("{} {}", peak(), peak().saturating_sub(before));
}

/// The largest resident size of this process so far, in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Which times old and young files are given: what the job takes for old, or what the others do.
#[derive(Clone, Copy)]
enum Clock {
    Ahead,
    Real,
}

fn fill(folder: &Path, count: usize, clock: Clock) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).expect("room");
    let now = SystemTime::now();
    for number in 0..count {
        let file = File::create(folder.join(format!("voice-{number:07}.mp3"))).expect("room");
        let is_old = number % 2 == 0;
        let time = match (clock, is_old) {
            (Clock::Ahead, true) => now,
            (Clock::Ahead, false) => now + AHEAD - Duration::from_secs(3600),
            (Clock::Real, true) => now - AHEAD,
            (Clock::Real, false) => now,
        };
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).expect("our own file");
    }
    // What was written is not written back while others are measured.
    rustix::fs::sync();
}

/// How long a command takes, and the largest resident size it had, in kB.
#[expect(clippy::zombie_processes, reason = "it is waited for by a call that tells what it has used")]
fn measure(command: &mut Command) -> (Duration, u64) {
    let begun = Moment::now();
    let child = command.stdout(Stdio::null()).spawn().expect("a program that is there");
    let mut status = 0;
    // SAFETY: the child is ours and not waited for by anybody else; both pointers lead to room of the right size.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut used);
        used
    };
    assert_eq!(status, 0, "{command:?}");
    (Moment::now().since(begun), used.ru_maxrss.unsigned_abs())
}

fn best(mut all: Vec<(Duration, u64)>) -> (Duration, u64) {
    all.sort();
    (all[0].0, all.iter().map(|(_, peak)| *peak).max().unwrap_or_default())
}

fn left(folder: &Path) -> usize {
    fs::read_dir(folder).expect("a folder").count()
}

type Contender = (&'static str, Clock, Box<dyn Fn() -> Command>);

fn tell(title: &str, results: &[(&str, (Duration, u64))]) {
    println!("{title}");
    let ours = results[0].1.0;
    for (name, (time, peak)) in results {
        let ratio = ours.as_secs_f64() / time.as_secs_f64();
        println!("  {name:<22} {:>8.3} s   ours is {ratio:.2} x   peak {peak} kB", time.as_secs_f64());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, folder] = &arguments[..]
        && ["plan", "delete"].contains(&mode.as_str())
    {
        return job(Path::new(folder), mode == "plan");
    }
    let count: usize = arguments.first().map_or(100_000, |count| count.parse().expect("a number of files"));
    let top = arguments.get(1).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from).join("files-job");
    let (ours, theirs) = (top.join("ours"), top.join("theirs"));
    let own = |mode: &'static str, folder: &Path| {
        let (exe, folder) = (std::env::current_exe().expect("our own program"), folder.to_path_buf());
        Box::new(move || {
            let mut command = Command::new(&exe);
            command.arg(mode).arg(&folder);
            command
        }) as Box<dyn Fn() -> Command>
    };
    let find = |what: &'static [&'static str]| {
        let folder = theirs.clone();
        Box::new(move || {
            let mut command = Command::new("find");
            command.arg(&folder).args(["-type", "f", "-mmin", "+1440"]).args(what);
            command
        }) as Box<dyn Fn() -> Command>
    };

    fill(&ours, count, Clock::Ahead);
    fill(&theirs, count, Clock::Real);
    let (plan, list) = (own("plan", &ours), find(&[]));
    let (mut plans, mut lists) = (Vec::new(), Vec::new());
    for _ in 0..SCANS {
        plans.push(measure(&mut plan()));
        lists.push(measure(&mut list()));
    }
    tell(&format!("{count} files scanned and planned"), &[("plimsoll", best(plans)), ("find -mmin", best(lists))]);
    let own_words = plan().output().expect("our own program");
    println!("  (peak and growth over the run, as the process itself sees them: {} kB)", String::from_utf8_lossy(&own_words.stdout).trim());

    let settings = top.join("tmpfiles.conf");
    fs::write(&settings, format!("d {} - - - m:24h\n", theirs.display())).expect("room");
    let mut contenders: Vec<Contender> =
        vec![("plimsoll", Clock::Ahead, own("delete", &ours)), ("find -delete", Clock::Real, find(&["-delete"]))];
    if Command::new("systemd-tmpfiles").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        let clean = move || {
            let mut command = Command::new("systemd-tmpfiles");
            command.arg("--clean").arg(&settings);
            command
        };
        contenders.push(("systemd-tmpfiles", Clock::Real, Box::new(clean)));
    }
    let mut results: Vec<Vec<(Duration, u64)>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..DELETIONS {
        for ((name, clock, command), measured) in contenders.iter().zip(&mut results) {
            let folder = if matches!(clock, Clock::Ahead) { &ours } else { &theirs };
            fill(folder, count, *clock);
            measured.push(measure(&mut command()));
            assert_eq!(left(folder), count / 2, "{name} has not deleted what was to go");
        }
    }
    let results: Vec<_> = contenders.iter().zip(results).map(|((name, ..), measured)| (*name, best(measured))).collect();
    tell(&format!("half of {count} files deleted"), &results);
    let _ = fs::remove_dir_all(&top);
}
