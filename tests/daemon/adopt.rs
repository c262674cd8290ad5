//! Programs that the test starts, not the daemon: found, held, lost, found again, and let go as they were.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::outside;
use crate::stage::{PATIENCE, Stage, hungry, skip, wait_for};

/// A program of somebody else's, ended with the test.
pub struct Stranger(Child);

impl Stranger {
    pub fn start(stage: &Stage, words: &str) -> Stranger {
        Stranger::start_as(Command::new(hungry()).args(words.split_whitespace()), stage)
    }

    fn start_as(command: &mut Command, stage: &Stage) -> Stranger {
        command.env(outside::MARK, stage.path("plimsoll.toml").parent().expect("a folder"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Stranger(command.spawn().expect("it can be started"))
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn end(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Alive, and neither stopped nor slowed.
    fn is_free(&self) -> bool {
        outside::process(self.pid()).is_some_and(|process| !matches!(process.state, 'T' | 'Z'))
            && outside::priority(self.pid()) == Some((0, 0))
    }

    /// Nobody stops it, for as long as a duty cycle would take to do so many times over. By its state and not by what it gets of the
    /// processors, which others keep busy as well.
    fn is_left_alone(&self) -> bool {
        (0..50).all(|_| {
            std::thread::sleep(Duration::from_millis(20));
            self.is_free()
        })
    }

    fn cpu_over(&self, time: Duration) -> f64 {
        let all = [outside::process(self.pid()).expect("it lives")];
        let before = outside::cpu_time(&all);
        std::thread::sleep(time);
        (outside::cpu_time(&all) - before).as_secs_f64() / time.as_secs_f64()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_pid(path: &Path, pid: i32) {
    // As most programs do: written beside it and moved there.
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{pid}\n")).expect("a folder of ours");
    fs::rename(beside, path).expect("the same folder");
}

fn adopted(stage: &Stage, worker: &str, pid: i32) -> Value {
    stage.event("worker_adopted", |event| event["worker"] == worker && event["pid"] == pid)
}

fn replicas(stage: &Stage, worker: &str) -> Vec<Value> {
    let status = stage.status();
    let found = status["workers"].as_array().into_iter().flatten().find(|state| state["name"] == worker).cloned();
    found.and_then(|state| state["replicas"].as_array().cloned()).unwrap_or_default()
}

fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

const PIDFILE: &str = "[workers.legacy]\nadopt = { pidfile = \"{here}/app.pid\" }\n";

#[test]
fn adopt_holds_it_to_its_limit_loses_it_and_finds_it_again() {
    let mut stage = Stage::new(&format!("{PIDFILE}limits.cpu = \"30%\""));
    let pidfile = stage.path("app.pid");
    let hog = Stranger::start(&stage, "burn=1");
    let groups = fs::read(format!("/proc/{}/cgroup", hog.pid())).expect("it lives");
    stage.start();
    let lost = stage.event("worker_lost", |event| event["worker"] == "legacy");
    assert!(lost["detail"].as_str().is_some_and(|detail| detail.contains("app.pid") && detail.contains("not there")), "{lost}");
    let waits = replicas(&stage, "legacy");
    assert_eq!((&waits[0]["state"], waits.len()), (&Value::from("waiting"), 1), "{waits:?}");
    assert!(waits[0]["waits_for"].as_str().is_some_and(|what| what.starts_with("a process by pidfile")), "{waits:?}");

    write_pid(&pidfile, hog.pid());
    adopted(&stage, "legacy", hog.pid());
    // Until what was used before is out of the window.
    std::thread::sleep(Duration::from_secs(3));
    let used = hog.cpu_over(Duration::from_secs(6));
    assert!((0.02..0.40).contains(&used), "{used} cores of 0.3");
    assert_eq!(fs::read(format!("/proc/{}/cgroup", hog.pid())).expect("it lives"), groups, "it stays where it is");
    let held = replicas(&stage, "legacy");
    assert_eq!(held[0]["throttle_method"], "duty", "{held:?}");
    assert!(stage.metric("plimsoll_worker_memory_bytes{worker=\"legacy\"}").is_some_and(|bytes| bytes > 0.0));

    // It is started anew, by whoever does that.
    let old = hog.pid();
    hog.end();
    let exited = stage.event("worker_exited", |event| event["worker"] == "legacy");
    assert_eq!(exited["pid"], old);
    let again = Stranger::start(&stage, "burn=1");
    write_pid(&pidfile, again.pid());
    adopted(&stage, "legacy", again.pid());
    std::thread::sleep(Duration::from_secs(3));
    let used = again.cpu_over(Duration::from_secs(4));
    assert!(used < 0.45, "{used} cores of 0.3");
    // In order: nobody is ended, and nobody stays held.
    assert_eq!(stage.stop(), 0);
    assert!(again.is_free(), "{:?}", outside::process(again.pid()));
    assert!(again.is_left_alone());
}

#[test]
fn adopt_leaves_it_running_when_the_daemon_is_killed_and_the_next_finds_it() {
    let mut stage = Stage::new(&format!("{PIDFILE}limits.cpu = \"20%\"\nlongest_stop = \"1s\""));
    let hog = Stranger::start(&stage, "burn=1");
    write_pid(&stage.path("app.pid"), hog.pid());
    stage.start();
    adopted(&stage, "legacy", hog.pid());
    wait_for("it is held stopped", || outside::process(hog.pid()).filter(outside::is_stopped));
    stage.kill();
    wait_for("it goes on", || hog.is_free().then_some(()));
    assert!(hog.is_left_alone(), "nobody stops it any more");
    stage.start();
    adopted(&stage, "legacy", hog.pid());
    assert!(stage.events_named("worker_left_behind").is_empty());
    // Out of the settings: let go, and not ended.
    stage.write("[workers.other]\ncommand = [\"sleep\", \"1000\"]");
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("it is free", || hog.is_left_alone().then_some(()));
    assert!(replicas(&stage, "legacy").is_empty());
}

#[test]
fn adopt_goes_on_when_the_daemon_replaces_itself() {
    let mut stage = Stage::new(&format!("{PIDFILE}limits.cpu = \"20%\""));
    let hog = Stranger::start(&stage, "burn=1");
    write_pid(&stage.path("app.pid"), hog.pid());
    stage.start();
    adopted(&stage, "legacy", hog.pid());
    assert!(stage.ask(&["upgrade"]).status.success());
    stage.event("upgraded", |_| true);
    // Handed over, not looked for again: there at once, and held again.
    wait_for("it is held", || {
        let all = replicas(&stage, "legacy");
        (all.len() == 1 && all[0]["pid"] == hog.pid() && all[0]["cores_allowed"].is_number()).then_some(())
    });
    assert_eq!(stage.events_named("worker_adopted").len(), 1);
    assert!(stage.events_named("worker_left_behind").is_empty() && stage.events_named("worker_exited").is_empty());
    assert_eq!(stage.stop(), 0);
    assert!(hog.is_free());
}

#[test]
fn adopt_says_beforehand_what_is_not_there() {
    let stage = Stage::new(PIDFILE);
    let output = stage.ask(&["check"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("workers.legacy.adopt: a process by pidfile") && said(&output).contains("looked for until"),
        "{}",
        said(&output)
    );
    write_pid(&stage.path("app.pid"), 1);
    assert!(!said(&stage.ask(&["check"])).contains("note"));
}

#[test]
fn adopt_touches_nobody_by_a_stale_pidfile() {
    let mut stage = Stage::new(&format!("{PIDFILE}limits.cpu = \"10%\""));
    let pidfile = stage.path("app.pid");
    let stranger = Stranger::start(&stage, "burn=1");
    write_pid(&pidfile, stranger.pid());
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&pidfile).and_then(|file| file.set_modified(hour)).expect("it is ours");
    stage.start();
    let lost = stage.event("worker_lost", |event| event["detail"].as_str().is_some_and(|detail| detail.contains("stale")));
    assert!(lost["detail"].as_str().is_some_and(|detail| detail.contains(&format!("pid {}", stranger.pid()))), "{lost}");
    // Nor the daemon itself, nor one that is not there.
    for (pid, why) in [(stage.pid(), "the daemon itself"), (i32::MAX, "which is not there")] {
        write_pid(&pidfile, pid);
        stage.event("worker_lost", |event| event["detail"].as_str().is_some_and(|detail| detail.contains(why)));
    }
    let sentinel = outside::sentinel_of(stage.pid()).expect("there is one");
    write_pid(&pidfile, sentinel.pid);
    stage.event("worker_lost", |event| event["detail"].as_str().is_some_and(|detail| detail.contains("a helper of ours")));
    assert!(stranger.is_left_alone());
    assert!(stage.events_named("worker_adopted").is_empty());
}

#[test]
fn adopt_by_match_takes_all_that_match_and_never_our_own_workers() {
    let mut stage = Stage::new(
        "[workers.legacy]
        adopt = { match = \"hungry (.* )?log={here}/app\" }
        [workers.own]
        command = {hungry log={here}/app-own}
        replicas = 2",
    );
    let log = stage.path("app").display().to_string();
    let one = Stranger::start(&stage, &format!("log={log}-1 child=log={log}-inner"));
    let two = Stranger::start(&stage, &format!("log={log}-2"));
    stage.start();
    adopted(&stage, "legacy", one.pid());
    adopted(&stage, "legacy", two.pid());
    let pids = |stage: &Stage| -> Vec<i64> { replicas(stage, "legacy").iter().filter_map(|replica| replica["pid"].as_i64()).collect() };
    let mut expected = vec![i64::from(one.pid()), i64::from(two.pid())];
    let mut found = pids(&stage);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected, "neither the child of one of them nor a worker of ours");
    assert_eq!(stage.metric("plimsoll_worker_replicas_desired{worker=\"legacy\"}"), Some(2.0));
    // Its children are counted with it.
    wait_for("the tree of the first", || {
        replicas(&stage, "legacy").iter().find(|replica| replica["pid"] == one.pid() && replica["processes"] == 2).map(|_| ())
    });
    // One goes, another comes.
    two.end();
    stage.event("worker_exited", |event| event["worker"] == "legacy");
    let three = Stranger::start(&stage, &format!("log={log}-3"));
    adopted(&stage, "legacy", three.pid());
    wait_for("two again", || (pids(&stage).len() == 2 && replicas(&stage, "legacy").len() == 2).then_some(()));
    assert!(!said(&stage.ask(&["workers", "scale", "legacy", "5"])).is_empty());
}

#[test]
fn adopt_by_match_looks_among_the_processes_of_the_owner() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can start a program of another user");
    }
    let mut stage = Stage::new(
        "[workers.theirs]
        adopt = { match = \"hungry log={here}/app\", owner = \"65534\" }
        [workers.ours]
        adopt = { match = \"hungry log={here}/app\" }",
    );
    fs::set_permissions(stage.path("."), fs::Permissions::from_mode(0o777)).expect("it is ours");
    let log = stage.path("app").display().to_string();
    let ours = Stranger::start(&stage, &format!("log={log}-1"));
    let copy = stage.path("hungry");
    // By another process: what this one holds open for writing, a child of another test may hold as well, and then it cannot be executed.
    assert!(Command::new("cp").arg(hungry()).arg(&copy).status().is_ok_and(|status| status.success()), "a copy everybody can get to");
    let mut theirs = Command::new(&copy);
    std::os::unix::process::CommandExt::uid(&mut theirs, 65534);
    let theirs = Stranger::start_as(theirs.arg(format!("log={log}-2")), &stage);
    stage.start();
    adopted(&stage, "theirs", theirs.pid());
    adopted(&stage, "ours", ours.pid());
    assert_eq!(replicas(&stage, "theirs").len() + replicas(&stage, "ours").len(), 2);
}

#[test]
fn adopt_gives_one_process_to_one_worker() {
    let mut stage = Stage::new(
        "[workers.a]
        adopt = { pidfile = \"{here}/app.pid\" }
        [workers.b]
        adopt = { match = \"hungry log={here}/app\" }",
    );
    let log = stage.path("app").display().to_string();
    let app = Stranger::start(&stage, &format!("log={log}"));
    write_pid(&stage.path("app.pid"), app.pid());
    stage.start();
    adopted(&stage, "a", app.pid());
    let lost = stage.event("worker_lost", |event| event["worker"] == "b");
    assert!(lost["detail"].as_str().is_some_and(|detail| detail.contains("worker a already")), "{lost}");
    assert!(stage.events_named("worker_adopted").iter().all(|event| event["worker"] == "a"));
}

#[test]
fn adopt_refuses_what_nobody_has_said_how_to_do() {
    let mut stage = Stage::new(PIDFILE);
    let app = Stranger::start(&stage, "light=1");
    write_pid(&stage.path("app.pid"), app.pid());
    stage.start();
    adopted(&stage, "legacy", app.pid());
    for (verb, why) in [("recycle", "adopt.restart"), ("restart", "adopt.restart"), ("stop", "adopt.may_end"), ("scale", "adopted")] {
        let mut words = vec!["workers", verb, "legacy"];
        words.extend((verb == "scale").then_some("3"));
        let output = stage.ask(&words);
        assert!(!output.status.success() && said(&output).contains(why), "{verb}: {}", said(&output));
    }
    // Where memory would be had by ending it.
    stage.write(&format!("{PIDFILE}limits.memory = \"1MB\""));
    assert!(stage.ask(&["reload"]).status.success());
    let refused = stage.event("action_suppressed", |event| event["reason"] == "protected");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("adopted")), "{refused}");
    assert!(app.is_free());
    // And where it may be ended, it is.
    stage.write("[workers.legacy]\nadopt = { pidfile = \"{here}/app.pid\", may_end = true }\nlimits.memory = \"1MB\"");
    assert!(stage.ask(&["reload"]).status.success());
    let exited = stage.event("worker_exited", |event| event["worker"] == "legacy");
    assert_eq!((&exited["reason"], &exited["pid"]), (&Value::from("recycled"), &Value::from(app.pid())), "{exited}");
}

#[test]
fn adopt_restarts_by_the_command_and_finds_the_new_process() {
    let mut stage = Stage::new(
        "[workers.legacy]
        adopt = { pidfile = \"{here}/app.pid\", restart = [\"/bin/sh\", \"{here}/restart\"], restart_within = \"20s\" }",
    );
    let pidfile = stage.path("app.pid");
    let script = format!(
        "echo $PLIMSOLL_WORKER $PLIMSOLL_PID > {here}/asked; kill $PLIMSOLL_PID; {hungry} light=1 > /dev/null 2>&1 & echo $! > {pidfile}",
        here = stage.path("").display(),
        hungry = hungry().display(),
        pidfile = pidfile.display()
    );
    fs::write(stage.path("restart"), script).expect("a folder of ours");
    let mut app = Stranger::start(&stage, "light=1");
    let old = app.pid();
    write_pid(&pidfile, old);
    stage.start();
    adopted(&stage, "legacy", old);
    let waiter = std::thread::spawn(move || app.0.wait());
    let output = stage.ask(&["workers", "recycle", "legacy"]);
    assert!(output.status.success(), "{}", said(&output));
    waiter.join().expect("no panic").expect("it ends");
    assert_eq!(fs::read_to_string(stage.path("asked")).expect("it was run").trim(), format!("legacy {old}"));
    let recycled = stage.event("worker_recycled", |event| event["worker"] == "legacy");
    assert_eq!((&recycled["old_pid"], &recycled["cause"]), (&Value::from(old), &Value::from("manual")), "{recycled}");
    let new: i32 = fs::read_to_string(&pidfile).expect("written anew").trim().parse().expect("a pid");
    adopted(&stage, "legacy", new);

    // A command that fails is told of, and whoever runs goes on.
    fs::write(stage.path("restart"), "exit 3").expect("a folder of ours");
    let output = stage.ask(&["workers", "restart", "legacy"]);
    assert!(!output.status.success(), "{}", said(&output));
    let failed = stage.event("worker_recycle_failed", |event| event["worker"] == "legacy");
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("code 3")), "{failed}");
    assert_eq!(replicas(&stage, "legacy")[0]["pid"], new);
    // It was started by a command of ours, and is not ours all the same.
    assert_eq!(stage.stop(), 0);
    assert!(outside::process(new).is_some_and(|process| !matches!(process.state, 'T' | 'Z')), "{:?}", outside::process(new));
    let _ = rustix::process::kill_process(Pid::from_raw(new).expect("a pid"), Signal::KILL);
}

#[test]
fn adopt_ends_a_restart_command_that_takes_too_long() {
    let mut stage = Stage::new(
        "[workers.legacy]
        adopt = { pidfile = \"{here}/app.pid\", restart = [\"sleep\", \"1000\"], restart_within = \"300ms\" }",
    );
    let app = Stranger::start(&stage, "light=1");
    write_pid(&stage.path("app.pid"), app.pid());
    stage.start();
    adopted(&stage, "legacy", app.pid());
    let output = stage.ask(&["workers", "recycle", "legacy"]);
    assert!(!output.status.success(), "{}", said(&output));
    let failed = stage.event("worker_recycle_failed", |event| event["worker"] == "legacy");
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("longer than 0.3 s")), "{failed}");
    wait_for("the command is gone", || stage.population().iter().all(|process| process.name != "sleep").then_some(()));
    assert!(app.is_free());
}

/// A group of a v1 tree, as a unit or a container has one.
struct Group(std::path::PathBuf);

impl Group {
    fn new(name: &str) -> Option<Group> {
        let own = outside::groups(std::process::id() as i32);
        let folder =
            own.iter().find(|(controller, _)| controller == "cpu" || controller.is_empty()).map(|(_, folder)| folder.join(name))?;
        fs::create_dir(&folder).ok()?;
        Some(Group(folder))
    }

    fn enter(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    }

    /// As `/proc/PID/cgroup` says it.
    fn name(&self, pid: i32) -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
        let tail = self.0.file_name().expect("a name").to_string_lossy().into_owned();
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.ends_with(&tail)).expect("it is in it").to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = std::time::Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < PATIENCE / 10 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn adopt_by_group_takes_everybody_in_it() {
    let Some(group) = Group::new(&format!("plimsoll-adopt-{}", std::process::id())) else {
        return skip("no control group can be made here");
    };
    let mut stage = Stage::new("");
    // Two without a parent in common: the older is the one it goes by.
    let one = Stranger::start(&stage, "burn=1");
    std::thread::sleep(Duration::from_millis(50));
    let two = Stranger::start(&stage, "burn=1");
    group.enter(one.pid());
    group.enter(two.pid());
    stage.write(&format!("[workers.legacy]\nadopt = {{ cgroup = \"{}\" }}\nlimits.cpu = \"30%\"", group.name(one.pid())));
    stage.start();
    adopted(&stage, "legacy", one.pid());
    wait_for("both are counted", || replicas(&stage, "legacy").first().filter(|replica| replica["processes"] == 2).map(|_| ()));
    std::thread::sleep(Duration::from_secs(3));
    let both = [outside::process(one.pid()).expect("it lives"), outside::process(two.pid()).expect("it lives")];
    let before = outside::cpu_time(&both);
    std::thread::sleep(Duration::from_secs(6));
    let used = (outside::cpu_time(&both) - before).as_secs_f64() / 6.0;
    assert!((0.02..0.45).contains(&used), "{used} cores of 0.3, both together");
    // The older ends: the younger is found in its place, and was not asked to end with it.
    one.end();
    adopted(&stage, "legacy", two.pid());
    assert_eq!(stage.stop(), 0);
    assert!(two.is_free());
    two.end();
}
