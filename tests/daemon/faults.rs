//! What breaks around it does not stop the daemon.

use std::fs;
use std::process::Command;

use crate::outside;
use crate::stage::{Stage, skip, wait_for};

/// It answers, it ticks, and its workers run.
#[track_caller]
fn assert_well(stage: &Stage) {
    let tick = |stage: &Stage| stage.status()["tick"].as_u64().expect("a number");
    let before = tick(stage);
    wait_for("another tick", || (tick(stage) > before).then_some(()));
    let health = stage.ask(&["health"]);
    assert!(health.status.success(), "{health:?}");
}

/// A file system of 1 MB on a folder of the stage; gone with it.
pub struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub fn mount(folder: std::path::PathBuf) -> Option<SmallDisk> {
        fs::create_dir_all(&folder).expect("it is ours");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "plimsoll-test"]).arg(&folder).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(folder))
    }

    pub fn fill(&self) {
        // Until not even a byte more goes in.
        for size in [4096, 512, 1] {
            let name = self.0.join(format!("ballast-{size}"));
            let mut file = fs::File::create(name).unwrap_or_else(|_| fs::File::open("/dev/null").expect("there is one"));
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const HOG: &str = "[policy.cpu]\nlimit = 0.2\nsustain = \"0s\"\n[sampling]\ninterval = \"500ms\"\n[workers.hog]\ncommand = {hungry burn=1}";

#[test]
fn a_state_disk_that_fills_up_stops_nothing() {
    let mut stage = Stage::new(HOG);
    let Some(disk) = SmallDisk::mount(stage.path("state")) else { return skip("no file system can be mounted here") };
    stage.start();
    disk.fill();
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.population(), []);
}

#[test]
fn a_state_disk_that_is_full_from_the_start_stops_nothing_and_is_told() {
    let mut stage = Stage::new(HOG);
    let Some(disk) = SmallDisk::mount(stage.path("state")) else { return skip("no file system can be mounted here") };
    disk.fill();
    stage.start();
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    assert_well(&stage);
    wait_for("the status says so", || stage.status()["daemon"]["history_problem"].as_str().map(|_| ()));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_corrupt_state_database_is_put_aside_and_the_daemon_starts() {
    let mut stage = Stage::running("[workers.web]\ncommand = {hungry}");
    assert_eq!(stage.stop(), 0);
    let mut spoiled = 0;
    for entry in fs::read_dir(stage.path("state")).expect("the state folder").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "db" || extension == "sqlite") {
            fs::write(entry.path(), b"this has never been a database ".repeat(400)).expect("it can be written");
            spoiled += 1;
        }
    }
    assert!(spoiled > 0, "no database to spoil");
    stage.start();
    stage.worker("web");
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
}

#[test]
fn workers_that_vanish_again_and_again_stop_nothing() {
    let stage = Stage::running(
        "[sampling]
        interval = \"100ms\"
        [workers.mayfly]
        command = [\"sh\", \"-c\", \"sleep 0.0$(($$ % 10)); kill -9 $$\"]
        replicas = 5
        backoff = { first = \"10ms\", longest = \"10ms\", give_up = 1000000 }",
    );
    wait_for("a hundred deaths", || (stage.events_named("worker_exited").len() >= 100).then_some(()));
    assert_well(&stage);
    assert!(!outside::children(stage.pid()).iter().any(|child| child.state == 'Z' && ["plimsoll", "sentinel"].contains(&&*child.name)));
    let open = fs::read_dir(format!("/proc/{}/fd", stage.pid())).expect("it lives").count();
    assert!(open < 100, "{open} descriptors: they are not given back");
}

#[test]
fn a_group_that_vanishes_under_a_throttle_stops_nothing() {
    let stage = Stage::running(HOG);
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let hog = stage.worker("hog");
    if outside::quota_file(hog).is_none() {
        return skip("the worker has no group of its own here");
    }
    // Somebody moves the process out and removes its groups.
    for (_, folder) in outside::groups(hog) {
        let Some(parent) = folder.parent().and_then(std::path::Path::parent) else { continue };
        if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-")) {
            fs::write(parent.join("cgroup.procs"), hog.to_string()).expect("it can be moved");
            wait_for("the group is empty", || fs::remove_dir(&folder).ok());
        }
    }
    assert_well(&stage);
    let answer = stage.ask(&["release"]);
    assert!(answer.status.code().is_some(), "{answer:?}");
    // A new life has a new group, and is held again.
    outside::process(hog).expect("it lives").kill();
    wait_for("another life", || Some(stage.worker("hog")).filter(|pid| *pid != hog));
    let next = stage.worker("hog");
    wait_for("it is held", || outside::quota_file(next).filter(|quota| !outside::is_free(quota)));
    assert_well(&stage);
}

/// The real machine, but for what the names of `/proc` say that are to be missing.
fn machine_without(stage: &mut Stage, missing: impl Fn(&str) -> bool) {
    let proc = stage.path("proc");
    fs::create_dir(&proc).expect("it is ours");
    for entry in fs::read_dir("/proc").expect("it can be listed").flatten() {
        let name = entry.file_name();
        if !missing(&name.to_string_lossy()) {
            std::os::unix::fs::symlink(entry.path(), proc.join(name)).expect("it is ours");
        }
    }
    stage.set.push(format!("host.proc={}", proc.display()));
}

fn is_number(name: &str) -> bool {
    name.chars().all(|character| character.is_ascii_digit())
}

#[test]
fn a_machine_without_pressure_information_is_watched_all_the_same() {
    let mut stage = Stage::new("");
    machine_without(&mut stage, |name| name == "pressure" || is_number(name));
    stage.start();
    wait_for("the memory is read", || stage.metric("plimsoll_memory_limit_bytes").filter(|bytes| *bytes > 0.0));
    let page = wait_for("the metrics", || stage.request("GET", "/metrics")).body;
    assert!(!page.lines().any(|line| line.starts_with("plimsoll_pressure_")), "unknown is absent");
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_worker_that_cannot_be_held_is_not_left_running() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}");
    // No process can be found, not even the one that was just started.
    machine_without(&mut stage, is_number);
    stage.start();
    stage.event("worker_start_failed", |event| event["worker"] == "web");
    wait_for("nobody runs", || stage.population().is_empty().then_some(()));
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.population(), []);
}
