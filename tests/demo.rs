//! `plimsoll demo` as people run it: it holds the line, says so honestly, and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use plimsoll::host::clock::Moment;
use rustix::process::{Pid, Signal};

/// In the environment of everything the demo starts, except the sentinel, which has none; that has the folder on its
/// command line.
const MARK: &str = "DEMO_TEST_MARK";

/// A demo in a temporary folder of its own.
struct Demo {
    folder: tempfile::TempDir,
    mark: String,
}

impl Demo {
    fn new() -> Demo {
        let folder = tempfile::tempdir().unwrap();
        let mark = format!("{MARK}={}", folder.path().display());
        Demo { folder, mark }
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.arg("demo").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("TMPDIR", self.folder.path()).env(MARK, self.folder.path());
        // What is meant for a daemon of the user's must not get into the demo's.
        command.env("PLIMSOLL_POLICY__DRY_RUN", "true").env("RESOURCE_MONITORING_ENABLED", "false");
        command
    }

    /// Processes of this demo that are still there, with their command lines.
    fn left(&self) -> Vec<String> {
        let folder = self.folder.path().display().to_string();
        let is_ours = |process: &Path| {
            let has =
                |file: &str, text: &str| fs::read(process.join(file)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text));
            has("environ", &self.mark) || has("cmdline", &folder)
        };
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(|path| is_ours(path));
        processes.map(|path| String::from_utf8_lossy(&fs::read(path.join("cmdline")).unwrap_or_default()).replace('\0', " ")).collect()
    }

    fn files(&self) -> Vec<String> {
        fs::read_dir(self.folder.path()).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Runs until both workers and the sentinel are there.
    fn started(&self) -> Child {
        let child = self.command(&["--duration", "1m"]).spawn().unwrap();
        wait_until("the workers run", || {
            let there = self.left();
            ["cpu-hog", "leaky", "sentinel"].iter().all(|part| there.iter().any(|line| line.contains(part)))
        });
        child
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Moment::now().steady + Duration::from_secs(30);
    while !condition() {
        assert!(Moment::now().steady < deadline, "waited too long until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Control groups made by the daemon of this number, wherever the kernel has some.
fn groups_of(daemon: i32) -> Vec<PathBuf> {
    fn search(folder: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            if path.file_name().is_some_and(|last| last == name) {
                found.push(path);
            } else if depth > 0 {
                search(&path, name, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), &format!("plimsoll-{daemon}"), 6, &mut found);
    found
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_line_is_held_and_nothing_is_left() {
    let demo = Demo::new();
    // On a machine whose processors are busy elsewhere the hogs alone may not get over the line: then there is nothing to compare.
    let (told, result) = (0..5)
        .find_map(|_| {
            let output = demo.command(&["--duration", "12s", "--json"]).output().unwrap();
            let told = text(&output);
            assert_eq!(output.status.code(), Some(0), "{told}");
            let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let over = result.pointer("/without/cpu/over_share").and_then(serde_json::Value::as_f64).unwrap();
            (over > 0.5).then_some((told, result))
        })
        .expect("in five runs the hogs got no processor");
    let number = |path: &str| result.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{path} in {result:#}"));
    for resource in ["cpu", "memory"] {
        let over = |part: &str| number(&format!("/{part}/{resource}/over_share"));
        assert!(over("with") < over("without"), "{resource}: {result:#}");
    }
    assert!(number("/with/memory/peak") < number("/without/memory/peak"), "{result:#}");
    let actions: Vec<&str> = result["actions"].as_array().unwrap().iter().filter_map(|action| action["action"].as_str()).collect();
    assert!(actions.contains(&"throttle") && actions.contains(&"shed"), "{result:#}");
    assert!(told.contains("without Plimsoll") && !told.contains('\x1b'), "progress is told on standard error, without codes: {told}");
    assert_eq!((demo.left(), demo.files()), (vec![], vec![]));
}

#[test]
fn interrupted_it_cleans_up() {
    let demo = Demo::new();
    let child = demo.started();
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert_eq!((demo.left(), demo.files()), (vec![], vec![]));
}

#[test]
fn killed_it_takes_its_workers_along() {
    let demo = Demo::new();
    let mut child = demo.started();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("everybody has ended", || demo.left().is_empty());
}

#[test]
fn a_daemon_that_dies_is_reported_and_its_workers_end() {
    let demo = Demo::new();
    let child = demo.started();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_daemon = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(" guard ") && line.contains(&demo.folder.path().display().to_string())
    };
    let daemon = pids.into_iter().find(is_daemon).unwrap();
    rustix::process::kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("plimsoll: the demo's daemon") && told.contains("ended (signal: 9"), "{told}");
    wait_until("everybody has ended", || demo.left().is_empty());
    assert_eq!(demo.files(), Vec::<String>::new());
    assert_eq!(groups_of(daemon), Vec::<PathBuf>::new());
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let demo = Demo::new();
    let output = demo.command(&["--duration", "10s", "--set", "policy.cpu.high=60%", "--set", "policy.cpu.low=65%"]).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("plimsoll: the demo's daemon could not be started: "), "{told}");
    assert!(told.contains("policy.cpu"), "the reason is passed on: {told}");
    assert_eq!((demo.left(), demo.files()), (vec![], vec![]));
}

#[test]
fn whoever_stops_reading_stops_the_demo() {
    let demo = Demo::new();
    let mut child = demo.command(&["--duration", "1m"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("hungry workers"), "{first}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((demo.left(), demo.files()), (vec![], vec![]));
}

#[test]
fn impossible_durations_are_refused() {
    for (duration, why) in
        [("1s", "from 10s to 10m"), ("2h", "from 10s to 10m"), ("soon", "a duration such as"), ("30", "a duration such as")]
    {
        let demo = Demo::new();
        let output = demo.command(&["--duration", duration]).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{duration}: {told}");
        assert!(told.contains(why), "{duration}: {told}");
    }
}
