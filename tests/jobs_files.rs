//! Kind `files` on real folders: what goes, what stays, and that nothing leads it astray.
//!
//! The kernel alone sets the times of making and of change, so files cannot be made old. The run is told that it is later instead:
//! a file written now is as old as the foreman's clock is ahead, and one whose time of writing lies in between is younger.

#![expect(clippy::disallowed_methods, reason = "tests start processes and read the environment they are started with")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::RwLock;
use std::time::{Duration, SystemTime};

use plimsoll::config::jobs::Files;
use plimsoll::host::clock::Moment;
use plimsoll::jobs::files::run;
use plimsoll::jobs::plan::Totals;
use plimsoll::jobs::run::{End, Failure, Foreman, Order, Outcome, Report};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);
/// How much later it is for the job than for the kernel.
const AHEAD: Duration = Duration::from_secs(100 * 3600);

/// Listens, and does something at the moment between plan and deed.
struct Crew<'c> {
    ahead: Duration,
    waited: Duration,
    /// Time stands still.
    frozen: Option<Moment>,
    reports: Vec<Report>,
    at_plan: Box<dyn FnMut() + 'c>,
    /// So many looks whether to stop are answered with no.
    looks_left: u64,
}

impl<'c> Crew<'c> {
    fn new() -> Crew<'c> {
        Crew { ahead: AHEAD, waited: Duration::ZERO, frozen: None, reports: Vec::new(), at_plan: Box::new(|| ()), looks_left: u64::MAX }
    }

    fn at_plan(deed: impl FnMut() + 'c) -> Crew<'c> {
        Crew { at_plan: Box::new(deed), ..Crew::new() }
    }

    fn planned(&self) -> BTreeSet<String> {
        let name = |report: &Report| if let Report::Planned(item) = report { Some(item.name.clone()) } else { None };
        self.reports.iter().filter_map(name).collect()
    }

    fn totals(&self) -> Totals {
        let totals = |report: &Report| if let Report::Plan(totals) = report { Some(totals.clone()) } else { None };
        self.reports.iter().find_map(totals).expect("a plan was told")
    }

    fn kept(&self) -> BTreeMap<String, u64> {
        self.totals().kept.into_iter().map(|(reason, tally)| (reason, tally.count)).collect()
    }

    fn warnings(&self) -> String {
        let text = |report: &Report| if let Report::Warning { text } = report { Some(text.clone()) } else { None };
        self.reports.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }
}

impl Foreman for Crew<'_> {
    fn now(&mut self) -> Moment {
        self.frozen.unwrap_or_else(Moment::now).after(self.ahead + self.waited)
    }

    fn tell(&mut self, report: Report) {
        let is_plan = matches!(report, Report::Plan(_));
        self.reports.push(report);
        if is_plan {
            (self.at_plan)();
        }
    }

    fn wait(&mut self, time: Duration) -> bool {
        self.waited += time;
        self.at_safe_point()
    }

    fn at_safe_point(&mut self) -> bool {
        self.looks_left = self.looks_left.saturating_sub(1);
        self.looks_left > 0
    }
}

/// A process that is being started has every file of ours open until it has become another program, and a file that is open stays. So
/// none is started while a file is written that is to go.
static STARTING: RwLock<()> = RwLock::new(());

fn start(command: &mut Command) -> std::io::Result<Child> {
    let _alone = STARTING.write();
    command.spawn()
}

fn while_nobody_starts<T>(write: impl FnOnce() -> T) -> T {
    let _others = STARTING.read();
    write()
}

struct Yard {
    _guard: tempfile::TempDir,
    /// A folder without symlinks in its path.
    top: PathBuf,
    /// What the job searches.
    audio: PathBuf,
}

impl Yard {
    fn new() -> Yard {
        let guard = tempfile::tempdir().unwrap();
        let top = guard.path().canonicalize().unwrap();
        let audio = top.join("audio");
        fs::create_dir(&audio).unwrap();
        Yard { _guard: guard, top, audio }
    }

    /// A file that is so old for the job; at most [`AHEAD`].
    fn file(&self, name: &str, age: Duration) -> PathBuf {
        self.sized(name, age, 1)
    }

    fn sized(&self, name: &str, age: Duration, blocks: usize) -> PathBuf {
        let path = self.audio.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        while_nobody_starts(|| {
            let mut file = File::create(&path).unwrap();
            file.write_all(&vec![b'x'; blocks * 4096]).unwrap();
            if age < AHEAD {
                file.set_modified(SystemTime::now() + AHEAD - age).unwrap();
            }
        });
        path
    }

    fn settings(&self) -> Files {
        Files {
            paths: vec![self.audio.clone()],
            include: Vec::new(),
            exclude: Vec::new(),
            keep: 24 * HOUR,
            min_age: Duration::from_secs(600),
            max_total: None,
            max_files: None,
            prune_empty: false,
            mounted: false,
            groups: false,
            rate: None,
            owner: None,
        }
    }

    /// Everything below the folder of the job.
    fn names(&self) -> BTreeSet<String> {
        names_below(&self.audio)
    }
}

fn names_below(folder: &Path) -> BTreeSet<String> {
    fn walk(folder: &Path, top: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            found.insert(entry.path().strip_prefix(top).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), top, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(folder, folder, &mut found);
    found
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn go(settings: &Files, crew: &mut Crew<'_>) -> Outcome {
    run(settings, &Order::default(), crew).unwrap()
}

#[test]
fn old_files_go_and_what_is_young_or_not_meant_stays() {
    let yard = Yard::new();
    for (name, hours) in [("old.mp3", 100), ("deep/er/old.mp3", 25), ("young.mp3", 23), ("old.txt", 100), ("keep/old.mp3", 100)] {
        yard.file(name, hours * HOUR);
    }
    // Copied with its old date: it has lain here for no time at all, as far as anybody can know.
    let copied = yard.file("copied.mp3", HOUR);
    while_nobody_starts(|| {
        fs::copy(yard.audio.join("old.txt"), yard.audio.join("odd\n name.mp3")).unwrap();
        fs::write(yard.audio.join(OsStr::from_bytes(b"no-utf8-\xff.mp3")), "x").unwrap();
    });
    let settings = Files { include: vec!["*.mp3".into()], exclude: vec!["keep".into()], ..yard.settings() };

    let mut dry = Crew::new();
    let outcome = run(&settings, &Order { dry_run: true, ..Order::default() }, &mut dry).unwrap();
    assert_eq!((outcome.end, outcome.deleted.len()), (End::Planned, 0));
    assert_eq!(yard.names().len(), 11, "a dry run deletes nothing");

    let mut crew = Crew::new();
    let outcome = go(&settings, &mut crew);
    assert_eq!((outcome.end, outcome.deleted.get("file"), &outcome.errors), (End::Done, Some(&4), &vec![]));
    assert_eq!(outcome.reclaimed_bytes, crew.totals().deleted["file"].bytes);
    assert_eq!(dry.planned(), crew.planned());
    assert_eq!(dry.totals(), crew.totals());
    assert_eq!(yard.names(), set(&["deep", "deep/er", "young.mp3", "old.txt", "keep", "keep/old.mp3", "copied.mp3"]));
    assert_eq!(crew.kept(), BTreeMap::from([("young".into(), 2), ("excluded".into(), 1)]));
    assert!(copied.exists());
    let reasons: Vec<String> = crew
        .reports
        .iter()
        .filter_map(|report| if let Report::Planned(item) = report { Some(item.reason.clone()) } else { None })
        .collect();
    assert!(reasons.iter().any(|reason| reason == "25 h old, kept for 24 h"), "{reasons:?}");

    let mut again = Crew::new();
    assert_eq!(go(&settings, &mut again), Outcome { figures: go(&settings, &mut Crew::new()).figures, ..Outcome::default() });
    assert_eq!(again.planned(), set(&[]));
}

#[test]
fn links_and_what_is_no_file_stay() {
    let yard = Yard::new();
    let twice = yard.file("twice.mp3", AHEAD);
    fs::hard_link(&twice, yard.audio.join("again.mp3")).unwrap();
    let outside = yard.top.join("outside.mp3");
    fs::write(&outside, "precious").unwrap();
    symlink(&outside, yard.audio.join("link.mp3")).unwrap();
    let beyond = yard.top.join("beyond");
    fs::create_dir(&beyond).unwrap();
    fs::write(beyond.join("x.mp3"), "precious").unwrap();
    symlink(&beyond, yard.audio.join("folder")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(yard.audio.join("socket.mp3")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, yard.audio.join("pipe.mp3"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let before = yard.names();
    let mut crew = Crew::new();
    let outcome = go(&yard.settings(), &mut crew);
    assert_eq!((outcome.deleted.len(), yard.names()), (0, before));
    assert!(outside.exists() && beyond.join("x.mp3").exists());
    assert_eq!(crew.kept(), BTreeMap::from([("hard-link".into(), 2), ("symlink".into(), 2), ("special".into(), 2)]));
    fs::remove_file(yard.audio.join("again.mp3")).unwrap();
    assert_eq!(go(&yard.settings(), &mut Crew::new()).deleted["file"], 1, "with one name left it is like any other");
}

/// Has a file open on its standard input.
fn reader_of(path: &Path) -> Child {
    start(Command::new("sleep").arg("1000").stdin(File::open(path).unwrap()).stdout(Stdio::null())).unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_open_file_stays_until_it_is_closed() {
    let yard = Yard::new();
    let served = yard.file("served.mp3", AHEAD);
    yard.file("idle.mp3", AHEAD);
    let reader = reader_of(&served);
    let outcome = go(&yard.settings(), &mut Crew::new());
    assert_eq!((outcome.end, outcome.deleted["file"], outcome.figures["files_open"]), (End::Done, 1, 1.0));
    assert_eq!(yard.names(), set(&["served.mp3"]));
    end(reader);
    assert_eq!(go(&yard.settings(), &mut Crew::new()).deleted["file"], 1);
    assert_eq!(yard.names(), set(&[]));
}

#[test]
fn a_group_goes_as_a_whole_or_not_at_all() {
    let yard = Yard::new();
    for (name, hours) in [
        ("old.mp3", 100),
        ("old.json", 100),
        ("old.vtt", 30),
        ("half.mp3", 100),
        ("half.json", 2),
        ("other.json", 100),
        ("sub/old.json", 100),
        ("linked.mp3", 100),
        ("linked.json", 100),
        ("served.mp3", 100),
        ("served.json", 100),
        (".mp3", 100),
        (".json", 100),
    ] {
        yard.file(name, hours * HOUR);
    }
    fs::hard_link(yard.audio.join("linked.json"), yard.top.join("elsewhere")).unwrap();
    let reader = reader_of(&yard.audio.join("served.json"));
    let settings = Files { include: vec!["*.mp3".into()], groups: true, ..yard.settings() };
    let mut crew = Crew::new();
    let outcome = go(&settings, &mut crew);
    end(reader);
    let stays = set(&[
        "half.mp3",
        "half.json",
        "other.json",
        "sub",
        "sub/old.json",
        "linked.mp3",
        "linked.json",
        "served.mp3",
        "served.json",
        ".json",
    ]);
    assert_eq!(yard.names(), stays);
    assert_eq!((outcome.deleted["file"], outcome.figures["files_open"]), (4, 2.0));
    assert_eq!(crew.kept(), BTreeMap::from([("young".into(), 2), ("hard-link".into(), 2)]));
}

#[test]
fn the_oldest_go_while_there_is_too_much_or_there_are_too_many() {
    let yard = Yard::new();
    for hour in 1..=10_u32 {
        yard.file(&format!("{hour}.mp3"), hour * HOUR);
    }
    yard.file("new.mp3", Duration::from_secs(60));
    let each = fs::metadata(yard.audio.join("1.mp3")).unwrap().blocks() * 512;
    let settings = Files { max_files: Some(8), ..yard.settings() };
    assert_eq!(go(&settings, &mut Crew::new()).deleted["file"], 3);
    assert_eq!(yard.names(), set(&["1.mp3", "2.mp3", "3.mp3", "4.mp3", "5.mp3", "6.mp3", "7.mp3", "new.mp3"]));
    let settings = Files { max_total: Some(5 * each + 1), ..yard.settings() };
    let mut crew = Crew::new();
    assert_eq!(go(&settings, &mut crew).deleted["file"], 3);
    assert_eq!(yard.names(), set(&["1.mp3", "2.mp3", "3.mp3", "4.mp3", "new.mp3"]));
    assert!(crew.planned().iter().all(|name| name.starts_with(yard.audio.to_str().unwrap())));
    // Whatever the limit, what is younger than min_age stays.
    let settings = Files { max_total: Some(0), max_files: Some(0), ..yard.settings() };
    go(&settings, &mut Crew::new());
    assert_eq!(yard.names(), set(&["new.mp3"]));
}

#[test]
fn under_pressure_ages_shrink_step_by_step_and_the_largest_goes_first() {
    let yard = Yard::new();
    yard.sized("20h-small.mp3", 20 * HOUR, 10);
    yard.sized("13h-large.mp3", 13 * HOUR, 100);
    yard.sized("8h.mp3", 8 * HOUR, 1000);
    yard.sized("1h.mp3", HOUR, 1000);
    yard.sized("new.mp3", Duration::from_secs(300), 1000);
    let order = |bytes| Order { free_bytes: Some(bytes), ..Order::default() };
    let block = 4096;
    let dry = |bytes: u64| {
        let mut crew = Crew::new();
        run(&yard.settings(), &Order { dry_run: true, ..order(bytes) }, &mut crew).unwrap();
        (crew.planned().iter().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>(), crew.warnings())
    };
    assert_eq!(dry(0).0, set(&[]));
    assert_eq!(dry(1).0, set(&["13h-large.mp3"]), "of the oldest step the largest");
    assert_eq!(dry(101 * block).0, set(&["13h-large.mp3", "20h-small.mp3"]));
    assert_eq!(dry(111 * block).0, set(&["13h-large.mp3", "20h-small.mp3", "8h.mp3"]));
    let (all, warning) = dry(1 << 40);
    assert_eq!(all, set(&["13h-large.mp3", "20h-small.mp3", "8h.mp3", "1h.mp3"]), "min_age holds");
    assert!(warning.contains("bytes more are wanted than may go"), "{warning}");
    let outcome = run(&yard.settings(), &order(111 * block), &mut Crew::new()).unwrap();
    assert!(outcome.reclaimed_bytes >= 111 * block);
    assert_eq!(yard.names(), set(&["1h.mp3", "new.mp3"]));
}

#[test]
fn emptied_and_old_empty_folders_go_and_others_stay() {
    let yard = Yard::new();
    yard.file("gone/all/a.mp3", AHEAD);
    yard.file("mixed/a.mp3", AHEAD);
    yard.file("mixed/notes.txt", AHEAD);
    fs::create_dir_all(yard.audio.join("empty/deep/er")).unwrap();
    fs::create_dir(yard.audio.join("spared")).unwrap();
    let fresh = yard.audio.join("fresh");
    fs::create_dir(&fresh).unwrap();
    File::open(&fresh).unwrap().set_modified(SystemTime::now() + AHEAD - HOUR).unwrap();
    let settings = Files { include: vec!["*.mp3".into()], exclude: vec!["spared".into()], prune_empty: true, ..yard.settings() };
    let outcome = go(&Files { prune_empty: false, ..settings.clone() }, &mut Crew { looks_left: 1, ..Crew::new() });
    assert_eq!(outcome.end, End::Stopped);
    let mut crew = Crew::new();
    let outcome = go(&settings, &mut crew);
    assert_eq!(yard.names(), set(&["mixed", "mixed/notes.txt", "spared", "fresh"]));
    assert_eq!((outcome.deleted["file"], outcome.deleted["folder"]), (2, 5));
    assert_eq!(crew.totals().deleted["folder"].count, 5, "{:?}", crew.planned());
    assert!(yard.audio.exists(), "the folder of the settings stays");
    // Somebody puts something into a folder between plan and deed.
    yard.file("busy/a.mp3", AHEAD);
    let outcome = go(&settings, &mut Crew::at_plan(|| fs::write(yard.audio.join("busy/new.mp3"), "x").unwrap()));
    assert_eq!((outcome.deleted["file"], outcome.deleted.get("folder"), outcome.errors.len()), (1, None, 0));
    assert!(yard.audio.join("busy/new.mp3").exists());
}

#[test]
fn what_is_another_file_than_planned_stays() {
    let yard = Yard::new();
    for name in ["replaced", "written", "touched", "renamed", "linked", "symlinked", "removed", "folder", "same", "sub/moved"] {
        yard.file(name, AHEAD);
    }
    let at = |name: &str| yard.audio.join(name);
    let outside = yard.top.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("moved"), "precious").unwrap();
    let outcome = go(
        &yard.settings(),
        &mut Crew::at_plan(|| {
            fs::write(yard.top.join("new"), "new").unwrap();
            fs::rename(yard.top.join("new"), at("replaced")).unwrap();
            fs::write(at("written"), "more").unwrap();
            File::options().write(true).open(at("touched")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            fs::rename(at("renamed"), at("other-name")).unwrap();
            fs::hard_link(at("linked"), yard.top.join("second-name")).unwrap();
            fs::remove_file(at("symlinked")).unwrap();
            symlink(outside.join("moved"), at("symlinked")).unwrap();
            fs::remove_file(at("removed")).unwrap();
            fs::remove_file(at("folder")).unwrap();
            fs::create_dir(at("folder")).unwrap();
            fs::rename(at("sub"), yard.top.join("sub")).unwrap();
            symlink(&outside, at("sub")).unwrap();
        }),
    );
    assert_eq!(
        (outcome.deleted["file"], outcome.errors.clone(), outcome.figures["files_gone"]),
        (1, vec![], 2.0),
        "only `same` is what was planned"
    );
    assert_eq!(outcome.figures["files_changed"], 7.0);
    assert!(outside.join("moved").exists() && yard.top.join("sub/moved").exists() && at("linked").exists());
    assert_eq!(fs::read_to_string(at("replaced")).unwrap(), "new");
    let left = set(&["replaced", "written", "touched", "other-name", "linked", "symlinked", "folder", "sub"]);
    assert_eq!(yard.names(), left);
}

#[test]
fn a_clock_that_cannot_be_trusted_holds_the_plan_until_somebody_says_yes() {
    let yard = Yard::new();
    yard.file("old.mp3", AHEAD);
    let jumped = Order { clock_jumped: true, ..Order::default() };
    let mut crew = Crew::new();
    assert_eq!(run(&yard.settings(), &jumped, &mut crew).unwrap().end, End::Held);
    assert!(crew.totals().brake.unwrap().contains("clock has jumped") && crew.totals().deleted["file"].count == 1);
    assert_eq!(yard.names().len(), 1);

    let ahead = yard.file("ahead.mp3", Duration::ZERO);
    File::options().write(true).open(&ahead).unwrap().set_modified(SystemTime::now() + AHEAD + 5 * HOUR).unwrap();
    let mut crew = Crew::new();
    assert_eq!(go(&yard.settings(), &mut crew).end, End::Held);
    assert!(crew.totals().brake.unwrap().contains("ahead.mp3 is dated 4 h ahead of now"), "{:?}", crew.totals().brake);
    assert_eq!(yard.names().len(), 2);
    let outcome = run(&yard.settings(), &Order { yes: true, ..jumped }, &mut Crew::new()).unwrap();
    assert_eq!((outcome.end, outcome.deleted["file"]), (End::Done, 1));
    assert_eq!(yard.names(), set(&["ahead.mp3"]), "a date in the future is no age");
    assert_eq!(go(&yard.settings(), &mut Crew::new()).end, End::Done, "nothing to hold");
}

#[test]
fn folders_that_must_not_be_searched_are_refused_before_anything_goes() {
    let yard = Yard::new();
    yard.file("old.mp3", AHEAD);
    symlink(&yard.audio, yard.top.join("alias")).unwrap();
    fs::write(yard.top.join("plain"), "x").unwrap();
    fs::create_dir(yard.audio.join("inner")).unwrap();
    let refuse = |bad: PathBuf, words: &str| {
        let settings = Files { paths: vec![yard.audio.clone(), bad.clone()], ..yard.settings() };
        let Err(Failure(text)) = run(&settings, &Order { yes: true, ..Order::default() }, &mut Crew::new()) else {
            panic!("{} was searched", bad.display())
        };
        assert!(text.contains(words), "{}: {text}", bad.display());
        assert_eq!(yard.names().len(), 2);
    };
    refuse("/proc".into(), "belongs to the system");
    refuse("/var/lib".into(), "holds what belongs to many");
    refuse("relative".into(), "no absolute path");
    refuse(yard.top.join("../audio"), "no absolute path");
    refuse(yard.top.join("alias"), &format!("name the folder itself: {}", yard.audio.display()));
    refuse(yard.top.join("alias/inner"), "leads over a symbolic link");
    refuse(yard.top.join("plain"), "is no folder");
    refuse(yard.audio.join("inner"), "which is searched too");
    refuse(yard.audio.clone(), "which is searched too");
    // Where the temporary folder has another disk around it, the top of that disk.
    refuse("/dev/shm/..".into(), "no absolute path");
    let settings = Files { paths: vec!["/".into()], ..yard.settings() };
    assert!(run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0.contains("root of the whole tree"));
    let settings = Files { include: vec!["[".into()], ..yard.settings() };
    assert!(run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0.contains("include: \"[\" is no glob"));
    let settings = Files { owner: Some("nobody-here".into()), ..yard.settings() };
    assert!(run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0.contains("there is no user nobody-here"));
    let settings = Files { owner: Some("54321".into()), ..yard.settings() };
    assert!(run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0.contains("owner = \"54321\" is asked for"));
    assert_eq!(yard.names().len(), 2);
    let settings = Files { paths: vec![yard.top.join("not-there"), yard.audio.clone()], ..yard.settings() };
    let outcome = go(&settings, &mut Crew::new());
    assert_eq!((outcome.deleted["file"], outcome.errors.len()), (1, 1), "what is not there yet keeps nothing else from going");
}

#[test]
fn a_rate_is_kept_and_a_run_stops_at_a_safe_point() {
    let yard = Yard::new();
    for number in 0..200 {
        yard.file(&format!("{number}.mp3"), AHEAD);
    }
    let settings = Files { rate: Some(50), ..yard.settings() };
    let mut crew = Crew { looks_left: 60, ..Crew::new() };
    let outcome = go(&settings, &mut crew);
    let gone = outcome.deleted["file"];
    assert_eq!(outcome.end, End::Stopped);
    assert!(gone > 0 && gone < 200 && yard.names().len() as u64 == 200 - gone, "{gone}");
    let mut crew = Crew::new();
    let outcome = go(&settings, &mut crew);
    assert_eq!((outcome.end, outcome.deleted["file"]), (End::Done, 200 - gone));
    let least = Duration::from_millis((200 - gone - 2) * 20);
    assert!(crew.waited >= least - Duration::from_millis(200), "{:?} for {} files at 50 a second", crew.waited, 200 - gone);
    let progress: Vec<(u64, Option<f64>)> = crew
        .reports
        .iter()
        .filter_map(|report| if let Report::Progress { done, seconds_left, .. } = report { Some((*done, *seconds_left)) } else { None })
        .collect();
    assert!(progress.len() > 2 && progress.is_sorted_by(|a, b| a.0 <= b.0), "{progress:?}");
    let (done, left) = progress[progress.len() / 2];
    let expected = (200 - gone - done) as f64 / 50.0;
    assert!((left.unwrap() - expected).abs() < expected * 0.2 + 0.1, "{left:?} left, {expected} expected");
}

#[test]
fn a_file_that_cannot_be_deleted_is_told_and_the_rest_goes() {
    let yard = Yard::new();
    yard.file("a.mp3", AHEAD);
    let stuck = yard.file("stuck.mp3", AHEAD);
    let flag = |how: &str| {
        let child = start(Command::new("chattr").arg(how).arg(&stuck).stderr(Stdio::null()));
        child.and_then(|mut child| child.wait()).is_ok_and(|status| status.success())
    };
    if !flag("+i") {
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let outcome = go(&yard.settings(), &mut Crew::new());
    assert!(flag("-i"));
    assert_eq!((outcome.end, outcome.deleted["file"], outcome.figures["files_failed"]), (End::Done, 1, 1.0));
    assert_eq!(outcome.errors.len(), 1);
    assert!(outcome.errors[0].starts_with(&format!("could not delete {}", stuck.display())), "{:?}", outcome.errors);
}

/// Started by the race below as a process of its own: swaps a folder for a symlink, again and again, 10,000 times at least and until
/// it has been enough.
#[test]
#[ignore = "the other side of a race, started by it"]
fn racer() {
    let top = PathBuf::from(std::env::var("RACE").unwrap());
    let (a, bait) = (top.join("audio/a"), top.join("bait"));
    for round in 0_u32.. {
        // An even number: in the end everything stands where it stood.
        for _ in 0..1000 {
            rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &bait, rustix::fs::RenameFlags::EXCHANGE).unwrap();
        }
        if round >= 10 && top.join("enough").exists() {
            break;
        }
    }
}

/// The folder of the job has `a`, a real folder, which a stranger swaps for a link to a folder with files of the same names. Each
/// file lies in a folder of its own, so that each is reached anew.
fn race() {
    const FOLDERS: usize = 20;
    let yard = Yard::new();
    let outside = yard.top.join("outside");
    for number in 0..FOLDERS {
        for top in [&outside, &yard.audio.join("a")] {
            fs::create_dir_all(top.join(format!("{number}"))).unwrap();
        }
        fs::write(outside.join(format!("{number}/x.mp3")), "precious").unwrap();
    }
    symlink(&outside, yard.top.join("bait")).unwrap();
    let a = yard.audio.join("a");
    // Reaches the real folder wherever it is.
    let real = File::open(&a).unwrap();
    let exe = std::env::current_exe().unwrap();
    let mut racer = Command::new(exe);
    racer.args(["racer", "--exact", "--ignored"]).env("RACE", &yard.top).stdout(Stdio::null());
    let mut racer = start(&mut racer).unwrap();
    let is_link = || fs::symlink_metadata(&a).is_ok_and(|found| found.is_symlink());
    let (mut deleted, mut changed, mut runs) = (0, 0.0, 0);
    let begun = Moment::now();
    loop {
        let is_over = racer.try_wait().unwrap();
        // On a busy machine one side may sleep while the other goes on.
        if (runs > 10 && deleted > 0 && changed > 0.0) || Moment::now().since(begun) > Duration::from_secs(60) {
            fs::write(yard.top.join("enough"), "").unwrap();
        }
        while_nobody_starts(|| {
            for number in 0..FOLDERS {
                let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
                rustix::fs::openat(&real, format!("{number}/x.mp3"), flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
            }
        });
        // Every other run carries its plan out once the link stands there.
        let is_patient = runs % 2 == 0 && is_over.is_none();
        let outcome = go(
            &yard.settings(),
            &mut Crew::at_plan(|| {
                let planned = Moment::now();
                while is_patient && !is_link() && Moment::now().since(planned) < Duration::from_millis(200) {}
            }),
        );
        deleted += outcome.deleted.get("file").copied().unwrap_or_default();
        changed += outcome.figures["files_changed"];
        runs += 1;
        assert_eq!(names_below(&outside).len(), 2 * FOLDERS, "a file outside was deleted in run {runs}");
        if let Some(status) = is_over {
            assert!(status.success());
            break;
        }
    }
    eprintln!("{runs} runs, {deleted} files deleted inside, {changed} stayed because the way to them was another by then");
    assert!(runs > 10 && deleted > 0 && changed > 0.0, "nothing was raced: {runs} runs, {deleted} deleted, {changed} changed");
}

#[test]
fn nobody_who_swaps_a_folder_for_a_symlink_leads_a_deletion_out_of_it() {
    race();
}

#[test]
#[ignore = "is killed; started by the test below"]
fn doomed() {
    let top = PathBuf::from(std::env::var("RACE").unwrap());
    let world = Yard { _guard: tempfile::tempdir().unwrap(), audio: top.join("audio"), top };
    go(&Files { include: vec!["*.mp3".into()], groups: true, ..world.settings() }, &mut Crew::new());
}

#[test]
fn a_run_that_is_killed_leaves_nothing_behind_that_the_next_does_not_find() {
    const GROUPS: usize = 1500;
    let yard = Yard::new();
    for number in 0..GROUPS {
        for extension in ["mp3", "json", "vtt"] {
            yard.file(&format!("{number}.{extension}"), AHEAD);
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["doomed", "--exact", "--ignored"]).env("RACE", &yard.top).stdout(Stdio::null());
    let mut child = start(&mut child).unwrap();
    let left = || fs::read_dir(&yard.audio).unwrap().count();
    while left() > 3 * GROUPS - 200 {
        assert!(child.try_wait().unwrap().is_none() || left() == 0, "it has ended and deleted nothing");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    eprintln!("killed with {} of {} files left", left(), 3 * GROUPS);
    let names = yard.names();
    for name in names.iter().filter(|name| !name.ends_with(".mp3")) {
        let audio = format!("{}.mp3", name.split('.').next().unwrap());
        assert!(names.contains(&audio), "{name} is nobody's any more and would stay for ever");
    }
    go(&Files { include: vec!["*.mp3".into()], groups: true, ..yard.settings() }, &mut Crew::new());
    assert_eq!(left(), 0);
}

/// A call by its number, an argument it must have (its place and value), and the error it is answered with.
type Refused = (libc::c_long, Option<(u32, u32)>, i32);

/// Has the kernel refuse calls to this thread, as a sandbox does.
fn refuse(calls: &[Refused]) {
    let code = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    let mut program = Vec::new();
    for (number, argument, errno) in calls {
        program.push(code(load, 0, 0, 0));
        program.push(code(equal, u32::try_from(*number).unwrap(), 0, if argument.is_some() { 3 } else { 1 }));
        if let Some((place, value)) = argument {
            program.push(code(load, 16 + 8 * place, 0, 0));
            program.push(code(equal, *value, 0, 1));
        }
        program.push(code(answer, libc::SECCOMP_RET_ERRNO | u32::try_from(*errno).unwrap(), 0, 0));
    }
    program.push(code(answer, libc::SECCOMP_RET_ALLOW, 0, 0));
    let filter = libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    let (one, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: both calls take integers and a pointer to a filter that outlives them.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, none, none, none) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER), std::ptr::from_ref(&filter), none, none)
                == 0
    };
    assert!(refused, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_the_sandbox_refuses_openat2_the_promises_are_kept_step_by_step() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::spawn(move || {
            refuse(&[(libc::SYS_openat2, None, errno)]);
            let found = rustix::fs::openat2(
                rustix::fs::CWD,
                "/",
                rustix::fs::OFlags::PATH,
                rustix::fs::Mode::empty(),
                rustix::fs::ResolveFlags::empty(),
            );
            assert_eq!(found.unwrap_err().raw_os_error(), errno, "the call is not refused");
            race();
            let yard = Yard::new();
            yard.file("deep/er/a.mp3", AHEAD);
            symlink(&yard.audio, yard.top.join("alias")).unwrap();
            let settings = Files { paths: vec![yard.top.join("alias/deep")], ..yard.settings() };
            assert!(run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0.contains("leads over a symbolic link"));
            assert_eq!(go(&yard.settings(), &mut Crew::new()).deleted["file"], 1);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn where_leases_are_refused_the_process_table_says_what_is_open() {
    std::thread::spawn(|| {
        // fcntl(fd, F_SETLEASE, …)
        refuse(&[(libc::SYS_fcntl, Some((1, 1024)), libc::EACCES)]);
        let yard = Yard::new();
        let served = yard.file("served.mp3", AHEAD);
        yard.file("idle.mp3", AHEAD);
        let reader = reader_of(&served);
        let outcome = go(&yard.settings(), &mut Crew::new());
        assert_eq!((outcome.deleted["file"], outcome.figures["files_open"]), (1, 1.0));
        assert_eq!(yard.names(), set(&["served.mp3"]));
        end(reader);
        assert_eq!(go(&yard.settings(), &mut Crew::new()).deleted["file"], 1);
    })
    .join()
    .unwrap();
}

/// Starts one of the tests below as a process of its own, with what comes before it on the command line. False where that is not
/// to be had here.
fn elsewhere(mut wrapped: Command, test: &str, top: &Path) -> bool {
    wrapped.args([test, "--exact", "--ignored", "--nocapture"]).env("RACE", top).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = start(&mut wrapped).and_then(Child::wait_with_output);
    let Ok(output) = output else { return false };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Its own words: what started it has failed otherwise.
    assert!(output.status.success() || !text.contains("running 1 test"), "{text}");
    output.status.success()
}

#[test]
#[ignore = "needs mounts of its own; started by the test below"]
fn mounted_world() {
    let top = PathBuf::from(std::env::var("RACE").unwrap());
    let audio = top.join("audio");
    let world = Yard { _guard: tempfile::tempdir().unwrap(), top: top.clone(), audio: audio.clone() };
    for name in ["disk/a.mp3", "bound/b.mp3"] {
        world.file(name, AHEAD);
    }
    let outcome = |is_prune: bool| {
        let mut crew = Crew::new();
        let outcome = go(&Files { prune_empty: is_prune, ..world.settings() }, &mut crew);
        assert_eq!(crew.kept(), BTreeMap::from([("other-device".into(), 3)]));
        assert_eq!(world.names(), set(&["disk", "disk/a.mp3", "bound", "bound/b.mp3", "bound-file.mp3"]));
        outcome.deleted.get("file").copied().unwrap_or_default()
    };
    world.file("own.mp3", AHEAD);
    assert_eq!(outcome(false), 1);
    let settings = Files { paths: vec![audio.join("disk")], ..world.settings() };
    let refused = run(&settings, &Order::default(), &mut Crew::new()).unwrap_err().0;
    assert!(refused.contains("is where another disk is mounted") && refused.contains("mounted = true"), "{refused}");
    // What is mounted in it is not entered all the same.
    let allowed = Files { mounted: true, ..settings };
    let order = Order { dry_run: true, ..Order::default() };
    assert_eq!(run(&allowed, &order, &mut Crew::new()).unwrap().errors, [""; 0]);
    let mut crew = Crew::new();
    run(&Files { paths: vec![audio.clone()], mounted: true, ..world.settings() }, &order, &mut crew).unwrap();
    assert_eq!(crew.kept(), BTreeMap::from([("other-device".into(), 3)]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            refuse(&[(libc::SYS_openat2, None, libc::EPERM)]);
            world.file("own.mp3", AHEAD);
            assert_eq!(outcome(true), 1, "step by step");
        });
    });
}

#[test]
fn what_is_mounted_is_neither_entered_nor_searched() {
    let yard = Yard::new();
    for folder in ["audio/disk", "audio/bound", "outside"] {
        fs::create_dir_all(yard.top.join(folder)).unwrap();
    }
    fs::write(yard.audio.join("bound-file.mp3"), "").unwrap();
    fs::write(yard.top.join("file.mp3"), "precious").unwrap();
    let script = "cd \"$RACE\" && mount -t tmpfs none audio/disk && mount --bind outside audio/bound && mount --bind file.mp3 audio/bound-file.mp3 && exec \"$0\" \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    if !elsewhere(unshare, "mounted_world", &yard.top) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    assert!(yard.top.join("outside/b.mp3").exists() && yard.top.join("file.mp3").exists());
}

#[test]
#[ignore = "needs mounts of its own; started by the test below"]
fn overlay_world() {
    let top = PathBuf::from(std::env::var("RACE").unwrap());
    let world = Yard { _guard: tempfile::tempdir().unwrap(), audio: top.join("merged/audio"), top };
    world.file("upper.mp3", AHEAD);
    let reader = reader_of(&world.audio.join("served.mp3"));
    let settings = Files { prune_empty: true, ..world.settings() };
    let outcome = go(&settings, &mut Crew::new());
    assert_eq!((outcome.deleted["file"], outcome.deleted["folder"], outcome.figures["files_open"]), (3, 1, 1.0), "{outcome:?}");
    assert_eq!(world.names(), set(&["served.mp3"]));
    end(reader);
    assert_eq!(go(&settings, &mut Crew::new()).deleted["file"], 1);
    assert_eq!(world.names(), set(&[]));
}

/// Where containers keep what is on no volume.
#[test]
fn files_of_an_image_and_of_its_container_go_alike() {
    let yard = Yard::new();
    for folder in ["lower/audio/sub", "upper", "work", "merged"] {
        fs::create_dir_all(yard.top.join(folder)).unwrap();
    }
    for name in ["old.mp3", "served.mp3", "sub/low.mp3"] {
        fs::write(yard.top.join("lower/audio").join(name), "x").unwrap();
    }
    let options = "-o lowerdir=\"$RACE/lower\",upperdir=\"$RACE/upper\",workdir=\"$RACE/work\"";
    let script = format!("mount -t overlay none {options} \"$RACE/merged\" && exec \"$0\" \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
    if !elsewhere(unshare, "overlay_world", &yard.top) {
        eprintln!("skipped: no layers can be mounted here");
        return;
    }
    assert_eq!(names_below(&yard.top.join("lower/audio")).len(), 4, "what is in the image stays in it");
}

#[test]
fn a_way_longer_than_the_kernel_takes_is_gone_step_by_step() {
    let yard = Yard::new();
    let name = "n".repeat(200);
    let (flags, mode) = (rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::RWXU);
    let mut at = rustix::fs::open(&yard.audio, flags, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &name, mode).unwrap();
        at = rustix::fs::openat(&at, &name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    let create = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    while_nobody_starts(|| drop(rustix::fs::openat(&at, "deep.mp3", create, mode).unwrap()));
    drop(at);
    let outcome = go(&Files { prune_empty: true, ..yard.settings() }, &mut Crew::new());
    assert_eq!((outcome.deleted["file"], outcome.deleted["folder"], outcome.errors), (1, 40, vec![]));
    assert_eq!(yard.names(), set(&[]));
}

#[test]
#[ignore = "needs another user; started by the test below"]
fn plain_user() {
    let top = PathBuf::from(std::env::var("RACE").unwrap());
    let world = Yard { _guard: tempfile::tempdir().unwrap(), audio: top.join("audio"), top };
    let mut crew = Crew::new();
    let outcome = go(&world.settings(), &mut crew);
    assert_eq!((outcome.deleted["file"], outcome.figures["files_open"], &outcome.errors), (2, 1.0, &vec![]));
    assert_eq!(world.names(), set(&["served.mp3", "locked", "locked/a.mp3"]));
    assert_eq!(crew.kept(), BTreeMap::from([("other-owner".into(), 1)]));
    assert!(crew.warnings().contains("cannot be seen: an open one may be deleted"), "{}", crew.warnings());
    assert!(crew.warnings().contains("locked is not searched: it belongs to somebody else"), "{}", crew.warnings());
}

#[test]
fn a_plain_user_is_told_what_cannot_be_known() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root becomes another user");
        return;
    }
    let yard = Yard::new();
    for name in ["own.mp3", "served.mp3", "foreign.mp3", "locked/a.mp3"] {
        yard.file(name, AHEAD);
    }
    for path in ["audio", "audio/own.mp3", "audio/served.mp3"] {
        chown(yard.top.join(path), Some(1000), Some(1000)).unwrap();
    }
    fs::set_permissions(yard.audio.join("foreign.mp3"), PermissionsExt::from_mode(0o000)).unwrap();
    let program = yard.top.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&yard.top, PermissionsExt::from_mode(0o755)).unwrap();
    let reader = reader_of(&yard.audio.join("served.mp3"));
    let mut user = Command::new(program);
    user.uid(1000).gid(1000).current_dir("/").env("TMPDIR", "/tmp");
    let was_run = elsewhere(user, "plain_user", &yard.top);
    end(reader);
    assert!(was_run);
}

/// One entry of a made-up folder: its folder, stem, extension, age in minutes, blocks, and whether it has a second name.
type Entry = (u8, u8, u8, u32, u8, bool);

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever lies there and whatever is set: exactly what the dry run tells goes, nothing of it breaks a promise, and a second
    /// run finds nothing.
    #[test]
    fn a_run_does_exactly_what_its_plan_tells_and_leaves_nothing_to_a_second(
        entries in proptest::collection::vec((0_u8..3, 0_u8..6, 0_u8..3, 0_u32..6000, 0_u8..4, proptest::bool::weighted(0.1)), 0..40),
        (keep, min_age) in (0_u64..100, 0_u64..50),
        (max_total, max_files) in (proptest::option::of(0_u64..40), proptest::option::of(0_u64..20)),
        (groups, prune_empty, only_mp3) in (any::<bool>(), any::<bool>(), any::<bool>()),
        pressure in proptest::option::of(0_u64..60),
    ) {
        let entries: Vec<Entry> = entries;
        let yard = Yard::new();
        for (folder, stem, extension, age, blocks, is_linked) in &entries {
            let name = format!("{}{stem}.{}", ["", "a/", "a/b/"][usize::from(*folder)], ["mp3", "json", "wav"][usize::from(*extension)]);
            if yard.audio.join(&name).exists() {
                continue;
            }
            let path = yard.sized(&name, *age * Duration::from_secs(60), usize::from(*blocks));
            if *is_linked {
                fs::create_dir_all(yard.top.join("links/a/b")).unwrap();
                fs::hard_link(&path, yard.top.join("links").join(&name)).unwrap();
            }
        }
        let settings = Files {
            keep: Duration::from_secs(keep * 3600),
            min_age: Duration::from_secs(min_age * 3600),
            max_total: max_total.map(|blocks| blocks * 4096),
            max_files,
            groups,
            prune_empty,
            mounted: false,
            include: if only_mp3 { vec!["*.mp3".into()] } else { Vec::new() },
            ..yard.settings()
        };
        let order = Order { free_bytes: pressure.map(|blocks| blocks * 4096), ..Order::default() };
        let ages: BTreeMap<String, Duration> = yard.names().into_iter().map(|name| {
            let modified = fs::metadata(yard.audio.join(&name)).unwrap().modified().unwrap();
            (name, (SystemTime::now() + AHEAD).duration_since(modified).unwrap_or_default())
        }).collect();
        // Ages are whole minutes and the steps of pressure are not: none is crossed while the runs take their time.
        let frozen = Some(Moment::now());
        let mut dry = Crew { frozen, ..Crew::new() };
        run(&settings, &Order { dry_run: true, ..order }, &mut dry).unwrap();
        let before = yard.names();
        let mut crew = Crew { frozen, ..Crew::new() };
        let outcome = run(&settings, &order, &mut crew).unwrap();
        prop_assert_eq!(outcome.end, End::Done);
        prop_assert_eq!(dry.planned(), crew.planned());
        let gone: BTreeSet<String> = before.difference(&yard.names()).cloned().collect();
        let planned: BTreeSet<String> = crew.planned().iter().map(|name| name.strip_prefix(&format!("{}/", yard.audio.display())).unwrap().to_owned()).collect();
        prop_assert_eq!(&gone, &planned);

        let is_file = |name: &String| name.contains('.');
        for name in gone.iter().filter(|name| is_file(name)) {
            prop_assert!(ages[name] >= settings.min_age, "{} went {:?} old", name, ages[name]);
            prop_assert!(!yard.top.join("links").join(name).exists(), "{} has another name", name);
            prop_assert!(groups || !only_mp3 || name.ends_with(".mp3"), "{} is not included", name);
        }
        // What is old and free goes in any case.
        for name in before.iter().filter(|name| is_file(name) && !gone.contains(*name)) {
            let is_meant = !only_mp3 || name.ends_with(".mp3");
            let is_free = !groups && !yard.top.join("links").join(name).exists();
            let slack = Duration::from_secs(30);
            prop_assert!(!(is_meant && is_free && ages[name] >= settings.keep.max(settings.min_age) + slack), "{} stays {:?} old", name, ages[name]);
        }
        let mut again = Crew { frozen, ..Crew::new() };
        let second = Order { free_bytes: None, ..order };
        run(&settings, &second, &mut again).unwrap();
        prop_assert_eq!(again.planned(), set(&[]));
    }
}
