//! What breaks around it does not stop the daemon.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::io::Errno;

use crate::kernel::{Call, Fault};
use crate::machine::Machine;
use crate::outside;
use crate::stage::{Stage, skip, skip_even_in_ci, wait_for};

/// No line may be crossed for this long with nothing tried and nothing working.
const UNANSWERED: f64 = 5.0;

/// It answers and it ticks.
#[track_caller]
fn assert_alive(stage: &Stage) {
    let tick = |stage: &Stage| stage.status()["tick"].as_u64().expect("a number");
    let before = tick(stage);
    wait_for("another tick", || (tick(stage) > before).then_some(()));
    let health = stage.ask(&["health"]);
    assert!(health.status.success(), "{health:?}");
}

/// It answers, it ticks, and nothing that is over its line waits for an answer or has waited for long.
#[track_caller]
pub fn assert_well(stage: &Stage) {
    assert_alive(stage);
    let page = stage.request("GET", "/metrics").expect("it answers").body;
    let waiting = page.lines().filter_map(|line| line.strip_prefix("plimsoll_policy_unanswered_seconds{")?.rsplit_once(' '));
    for (resource, seconds) in waiting {
        assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds < UNANSWERED), "{resource} unanswered for {seconds} s");
    }
    for told in stage.events_named("action_suppressed") {
        assert!(told["unanswered_seconds"].as_f64().is_some_and(|seconds| seconds < UNANSWERED), "{told}");
    }
}

/// A small file system on a folder of the stage; gone with it.
pub struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// One of 1 MB.
    pub fn mount(folder: std::path::PathBuf) -> Option<SmallDisk> {
        SmallDisk::of(folder, 1)
    }

    pub fn of(folder: std::path::PathBuf, megabytes: u32) -> Option<SmallDisk> {
        fs::create_dir_all(&folder).expect("it is ours");
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "plimsoll-test"]).arg(&folder).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(folder))
    }

    /// From now on nothing can be written to it.
    pub fn make_read_only(&self) {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status();
        assert!(remounted.is_ok_and(|status| status.success()));
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
    stage.event("degraded", |event| event["part"] == "state database");
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
    stage.event("degraded", |event| event["detail"].as_str().is_some_and(|detail| detail.contains("plimsoll.corrupt-")));
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
    // How many are open at once is the business of five living workers; what the dead keep would grow with each death.
    let open = || fs::read_dir(format!("/proc/{}/fd", stage.pid())).expect("it lives").count();
    let before = open();
    wait_for("three hundred more", || (stage.events_named("worker_exited").len() >= 400).then_some(()));
    wait_for("their descriptors are given back", || (open() < before + 50).then_some(()));
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

/// A mount whose server never says a word: whoever asks it for anything waits for ever. Gone with it.
struct DeadMount {
    folder: std::path::PathBuf,
    _server: fs::File,
}

impl DeadMount {
    fn mount(folder: std::path::PathBuf) -> Option<DeadMount> {
        fs::create_dir_all(&folder).expect("it is ours");
        let server = fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let text = |text: &str| std::ffi::CString::new(text).expect("no zero in it");
        let (what, place, options) = (text("fuse"), text(folder.to_str()?), text(&options));
        // SAFETY: all strings end in a zero and live through the call.
        let result = unsafe { libc::mount(what.as_ptr(), place.as_ptr(), what.as_ptr(), 0, options.as_ptr().cast()) };
        (result == 0).then_some(DeadMount { folder, _server: server })
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        // Looks at nothing inside.
        let _ = Command::new("umount").args(["-l", "-i", "-n"]).arg(&self.folder).status();
    }
}

#[test]
fn a_dead_mount_hangs_nobody_and_is_not_taken_for_an_empty_disk() {
    let mut stage = Stage::new(
        "[sampling]
        interval = \"200ms\"
        [[policy.disks]]
        path = \"{here}/dead\"
        high = \"80%\"
        [[policy.disks]]
        path = \"/\"
        high = \"99%\"
        [workers.web]
        command = {hungry}",
    );
    let Some(dead) = DeadMount::mount(stage.path("dead")) else { return skip_even_in_ci("no FUSE here") };
    stage.start();
    wait_for("it is told", || stage.metric("plimsoll_source_errors_total{source=\"statvfs\"}").filter(|errors| *errors >= 3.0));
    wait_for("the other disk is read", || stage.metric("plimsoll_filesystem_size_bytes{mountpoint=\"/\"}").filter(|size| *size > 0.0));
    let page = wait_for("the page", || stage.request("GET", "/metrics")).body;
    assert!(!page.lines().any(|line| line.starts_with("plimsoll_filesystem") && line.contains("/dead")), "unknown is absent");
    let begun = stage.status()["tick"].as_u64();
    wait_for("ticks in time", || (stage.status()["tick"].as_u64() > begun.map(|tick| tick + 10)).then_some(()));
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
    drop(dead);
}

/// What is wrong with the files of memory, so that nothing is known of it any more.
type Lost = (&'static str, [(Call, &'static str, Fault); 2]);

const LOST: [Lost; 4] = [
    ("EIO", [(Call::Read, "/memory.current", Fault::Fails(Errno::IO)), (Call::Read, "/memory.stat", Fault::Fails(Errno::IO))]),
    ("empty", [(Call::Read, "/memory.current", Fault::Says("")), (Call::Read, "/memory.stat", Fault::Says(""))]),
    ("gone", [(Call::Open, "/memory.current", Fault::Fails(Errno::NOENT)), (Call::Open, "/memory.stat", Fault::Fails(Errno::NOENT))]),
    ("EPERM", [(Call::Open, "/memory.max", Fault::Fails(Errno::PERM)), (Call::Open, "/memory.stat", Fault::Fails(Errno::PERM))]),
];

#[test]
fn memory_that_cannot_be_read_keeps_its_level_and_is_told() {
    let mut stage = Stage::new("[sampling]\ninterval = \"100ms\"");
    let machine = Machine::new("exact/docker-v2", stage.path("machine"));
    stage.set.extend(machine.settings());
    machine.write("cgroup/memory.max", "230686720");
    if !stage.start_under(None, |_| {}) {
        return skip("no seccomp user notification here");
    }
    let errors = |stage: &Stage| stage.metric("plimsoll_source_errors_total{source=\"cgroup\"}").unwrap_or(0.0);
    let state = |stage: &Stage| stage.metric("plimsoll_policy_state{resource=\"memory\",state=\"critical\"}");
    wait_for("critical", || state(&stage).filter(|on| *on == 1.0));
    for (name, rules) in LOST {
        let before = errors(&stage);
        stage.rules().set(rules);
        if name != "gone" {
            wait_for(name, || (errors(&stage) > before + 5.0).then_some(()));
        }
        wait_for(name, || stage.metric("plimsoll_policy_utilization_ratio{resource=\"memory\"}").is_none().then_some(()));
        let tick = stage.status()["tick"].as_u64();
        wait_for("ticks", || (stage.status()["tick"].as_u64() > tick.map(|tick| tick + 10)).then_some(()));
        assert_eq!(state(&stage), Some(1.0), "{name}: what was critical is so until the contrary is seen");
        assert_eq!(stage.metric("plimsoll_memory_working_set_bytes"), None, "{name}: unknown is absent");
        // There is no worker that could give anything back.
        assert_alive(&stage);
        stage.rules().clear();
        wait_for("it is read again", || stage.metric("plimsoll_policy_utilization_ratio{resource=\"memory\"}"));
        assert_eq!(state(&stage), Some(1.0), "{name}");
    }
    assert_eq!(stage.events_named("verdict_changed").iter().filter(|event| event["resource"] == "memory").count(), 1);
    machine.write("cgroup/memory.max", "536870912");
    wait_for("normal", || state(&stage).filter(|on| *on == 0.0));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn interrupted_reads_and_a_hanging_disk_cost_no_tick() {
    let mut stage = Stage::new(&format!("{HOG}\n[[policy.disks]]\npath = \"/\"\nhigh = \"99%\""));
    if !stage.start_under(None, |_| {}) {
        return skip("no seccomp user notification here");
    }
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    stage.rules().set([
        (Call::Read, "/meminfo", Fault::FailsOnceInAWhile(Errno::INTR)),
        (Call::Read, "/stat", Fault::FailsOnceInAWhile(Errno::INTR)),
        (Call::Read, "/statm", Fault::FailsOnceInAWhile(Errno::INTR)),
        (Call::Statfs, "/", Fault::Hangs),
    ]);
    wait_for("the disk is told", || stage.metric("plimsoll_source_errors_total{source=\"statvfs\"}").filter(|errors| *errors > 0.0));
    assert_eq!(stage.metric("plimsoll_source_errors_total{source=\"procfs\"}"), Some(0.0), "an interrupted read is done again");
    assert_well(&stage);
    stage.rules().clear();
    let errors = || stage.metric("plimsoll_source_errors_total{source=\"statvfs\"}");
    wait_for("the disk is back", || {
        let before = errors();
        let tick = stage.status()["tick"].as_u64();
        wait_for("a tick", || (stage.status()["tick"].as_u64() > tick).then_some(()));
        (errors() == before).then_some(())
    });
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut stage = Stage::new(&format!(
        "{HOG}
        [workers.mayfly]
        command = [\"false\"]
        replicas = 8
        backoff = {{ first = \"10ms\", longest = \"10ms\", give_up = 1000000 }}"
    ));
    // A pipe holds 64 KiB, and the daemon some lines more.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    stage.launch_with_log(writer);
    wait_for("it serves", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    wait_for("lines are dropped, and counted", || stage.metric("plimsoll_log_dropped_total").filter(|lines| *lines > 100.0));
    wait_for("it acts", || stage.metric("plimsoll_policy_throttled").filter(|on| *on == 1.0));
    assert_well(&stage);
    let events = stage.ask(&["events", "--json", "--since", "1h", "--event", "throttle_engaged"]);
    assert!(!events.stdout.is_empty(), "what the log could not take is on record: {events:?}");
    assert_eq!(stage.stop(), 0, "whoever does not read does not hold up the end");
    drop(reader);
    assert_eq!(stage.population(), []);
}

#[test]
fn a_daemon_that_is_late_again_and_again_does_without_something_and_says_so() {
    const STALL: std::time::Duration = std::time::Duration::from_secs(1);
    let stage = Stage::running(&HOG.replace("500ms", "100ms"));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    // As on a machine that gives it no time.
    for _ in 0..3 {
        let before = stage.status()["tick"].as_u64();
        stage.signal(rustix::process::Signal::STOP);
        std::thread::sleep(STALL);
        stage.signal(rustix::process::Signal::CONT);
        wait_for("it ticks again", || (stage.status()["tick"].as_u64() > before).then_some(()));
    }
    let told = stage.event("self_shed", |_| true);
    assert!(told["reason"].as_str().is_some_and(|why| why.contains("began late")), "{told}");
    wait_for("the page says so", || stage.metric("plimsoll_self_given_up").filter(|given_up| *given_up >= 1.0));
    let limitations = stage.status()["environment"]["limitations"].to_string();
    assert!(limitations.contains(told["work"].as_str().expect("text")), "{limitations}");
    assert_well(&stage);
}
