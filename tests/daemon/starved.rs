//! A daemon that lacks what it lives on: memory, processes, descriptors. It still ticks, sees and acts.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::faults::assert_well;
use crate::outside;
use crate::stage::{Stage, skip, wait_for};

/// A control group of the test's own on a v1 tree, for the daemon to live in; gone with it.
struct Confined(PathBuf);

impl Confined {
    fn new(controller: &str, stage: &Stage) -> Option<Confined> {
        let own = outside::groups(std::process::id().cast_signed());
        let (_, folder) = own.into_iter().find(|(name, _)| name.split(',').any(|each| each == controller))?;
        let name = stage.path("").file_name()?.to_str()?.to_owned();
        let group = folder.join(name);
        fs::create_dir(&group).ok()?;
        Some(Confined(group))
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).expect("a file of our own group");
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.0.join(file)).expect("a file of our own group").trim().parse().expect("a number")
    }

    /// The command and all it starts will be in the group.
    fn hold(&self, command: &mut Command) {
        let procs = self.0.join("cgroup.procs");
        let open = fs::File::options().write(true).open(procs).expect("a file of our own group");
        // SAFETY: one write between fork and exec, to a descriptor that was opened before.
        unsafe {
            command.pre_exec(move || std::io::Write::write_all(&mut &open, b"0"));
        }
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        fn remove(folder: &Path) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                remove(&entry.path());
            }
            let begun = std::time::Instant::now();
            while fs::remove_dir(folder).is_err() && begun.elapsed() < std::time::Duration::from_secs(5) {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        remove(&self.0);
    }
}

/// Seconds of CPU a process has used.
fn ticks(pid: i32) -> f64 {
    outside::process(pid).map_or(0.0, |process| process.ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Ended with the test.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        // It is the leader of a session of its own.
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// A worker that reaches its limit within seconds, again and again.
const LEAK: &str = "[sampling]
interval = \"500ms\"
[policy.memory]
on_critical = [\"kill\"]
[workers.leak]
command = {hungry leak=10}
limits = { memory = \"40MB\" }
backoff = { first = \"50ms\", longest = \"100ms\", give_up = 2, within = \"10m\" }";

#[test]
fn a_limit_of_the_real_kernel_that_changes_is_followed() {
    let mut stage = Stage::new("[sampling]\ninterval = \"200ms\"");
    let Some(memory) = Confined::new("memory", &stage) else { return skip("no memory group of our own") };
    memory.set("memory.limit_in_bytes", "512M");
    let mut command = stage.plimsoll(&["run"]);
    memory.hold(&mut command);
    stage.launch_as(command);
    let limit = |stage: &Stage, megabytes: f64| {
        wait_for("the limit", || stage.metric("plimsoll_memory_limit_bytes").filter(|bytes| *bytes == megabytes * 1024.0 * 1024.0))
    };
    limit(&stage, 512.0);
    for (value, megabytes) in [("256M", 256.0), ("384M", 384.0), ("128M", 128.0)] {
        memory.set("memory.limit_in_bytes", value);
        limit(&stage, megabytes);
        stage.event("limit_changed", |event| event["now"].as_f64() == Some(megabytes * 1024.0 * 1024.0));
    }
    assert_eq!(stage.stop(), 0);
}

#[test]
fn at_its_memory_limit_it_ticks_and_acts() {
    let mut stage = Stage::new(LEAK);
    let Some(memory) = Confined::new("memory", &stage) else { return skip("no memory group of our own") };
    memory.set("memory.limit_in_bytes", "64M");
    let mut command = stage.plimsoll(&["run"]);
    memory.hold(&mut command);
    stage.launch_as(command);
    // Somebody else in the same group fills what is left with file cache, over and over.
    let mut filler = Command::new("sh");
    let file = stage.path("ballast");
    filler.args(["-c", "while :; do dd if=/dev/zero of=\"$0\" bs=1M count=96 conv=notrunc; done"]).arg(&file);
    filler.stdin(Stdio::null()).stderr(Stdio::null());
    memory.hold(&mut filler);
    // SAFETY: one system call between fork and exec.
    unsafe {
        filler.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
    }
    let _filler = Stranger(filler.spawn().expect("sh"));
    wait_for("the group is at its limit", || (memory.number("memory.failcnt") > 10).then_some(()));
    let acted = || {
        let done = stage.events_named("action_performed");
        let kills = done.iter().filter(|event| event["action"] == "kill" && event["outcome"] == "done").count();
        (kills >= 2).then_some(())
    };
    let before = memory.number("memory.failcnt");
    let (cpu, begun) = (ticks(stage.pid()), std::time::Instant::now());
    let mut worst: f64 = 0.0;
    wait_for("a leaking worker is ended twice", || {
        for resource in ["memory", "cpu"] {
            worst = worst.max(stage.metric(&format!("plimsoll_policy_unanswered_seconds{{resource=\"{resource}\"}}")).unwrap_or(0.0));
        }
        acted()
    });
    assert!(memory.number("memory.failcnt") > before, "it was at its limit all the time");
    assert!(worst < 5.0, "unanswered for {worst} s");
    // Stalls all the time are a storm of pressure events: they hurry it, and do not keep it busy.
    let share = (ticks(stage.pid()) - cpu) / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share} of a processor");
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
}

#[test]
fn without_new_processes_it_ticks_and_acts_and_tries_again() {
    let mut stage = Stage::new(LEAK);
    let Some(pids) = Confined::new("pids", &stage) else { return skip("no pids group of our own") };
    let mut command = stage.plimsoll(&["run"]);
    pids.hold(&mut command);
    stage.launch_as(command);
    stage.event("worker_started", |event| event["worker"] == "leak");
    wait_for("it serves", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    pids.set("pids.max", "1");
    stage.event("action_performed", |event| event["action"] == "kill" && event["outcome"] == "done");
    let failed = wait_for("starts that fail", || {
        let failed = stage.events_named("worker_start_failed");
        (failed.len() >= 6).then_some(failed)
    });
    assert!(failed.iter().all(|event| event["next_try_seconds"].as_f64().is_some()), "{failed:?}");
    assert!(stage.events_named("worker_gave_up").is_empty(), "no fault of the program");
    assert_well(&stage);
    let lives = stage.events_named("worker_started").len();
    pids.set("pids.max", "max");
    wait_for("it is started again", || (stage.events_named("worker_started").len() > lives).then_some(()));
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.population(), []);
}

#[test]
fn where_no_thread_could_be_made_at_first_it_is_heard_when_one_can() {
    let mut stage = Stage::new("");
    let Some(pids) = Confined::new("pids", &stage) else { return skip("no pids group of our own") };
    // The loop and the log: all else is refused.
    pids.set("pids.max", "2");
    let mut command = stage.plimsoll(&["run"]);
    pids.hold(&mut command);
    stage.launch_as(command);
    stage.event("degraded", |event| event["part"] == "http");
    pids.set("pids.max", "max");
    wait_for("it serves", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    assert_eq!(stage.events_named("degraded").iter().filter(|event| event["part"] == "http").count(), 1, "said once");
    assert_eq!(stage.stop(), 0);
}

#[test]
fn without_a_descriptor_left_it_ticks_and_acts() {
    const ALL: u64 = 128;
    let mut stage = Stage::new(LEAK);
    let mut command = stage.plimsoll(&["run"]);
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = rustix::process::Rlimit { current: Some(ALL), maximum: Some(ALL) };
            Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?)
        });
    }
    stage.launch_as(command);
    stage.event("worker_started", |event| event["worker"] == "leak");
    wait_for("it serves", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    // Clients that connect and say nothing take every descriptor there is.
    let clients: Vec<UnixStream> = (0..ALL).filter_map(|_| UnixStream::connect(stage.socket()).ok()).collect();
    let open = || fs::read_dir(format!("/proc/{}/fd", stage.pid())).expect("it lives").count() as u64;
    wait_for("it has no more to give", || (open() >= ALL - 32).then_some(()));
    let kills =
        || stage.events_named("action_performed").iter().filter(|event| event["action"] == "kill" && event["outcome"] == "done").count();
    let (lives, before) = (stage.events_named("worker_started").len(), kills());
    // Silent clients are sent away after a while; while they are here, others come.
    wait_for("it acts, and starts the worker anew", || {
        let more = UnixStream::connect(stage.socket());
        drop(more);
        (kills() > before && stage.events_named("worker_started").len() > lives).then_some(())
    });
    assert!(open() >= ALL - 40, "{} open: the clients were still there", open());
    drop(clients);
    wait_for("it serves again", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    assert_well(&stage);
    assert_eq!(stage.stop(), 0);
}
