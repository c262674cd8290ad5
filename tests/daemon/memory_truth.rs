//! What counts as used: in a real memory group, cache filled to the limit raises no alarm; the same amount of anonymous or
//! shared memory does, and so does a working set of files that is larger than the limit.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::outside;
use crate::stage::{Stage, skip, wait_for};

const LIMIT: u64 = 160 << 20;

/// A memory group of our own with a limit, removed with what is left in it.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// The reason where this machine has none for us.
    fn make(name: &str) -> Result<MemoryGroup, String> {
        let groups = outside::groups(std::process::id() as i32);
        let own = groups.iter().find(|(controller, _)| controller == "memory").map(|(_, folder)| folder);
        let folder = own.ok_or("no memory group of v1")?.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = MemoryGroup(folder);
        let limit = fs::write(group.0.join("memory.limit_in_bytes"), LIMIT.to_string());
        limit.map_err(|error| format!("no limit can be set: {error}")).map(|()| group)
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.0.join(file)).expect("the group is there").trim().parse().expect("a number")
    }

    /// Starts the stage's daemon in it; its workers follow.
    fn start(&self, stage: &mut Stage) {
        let mut command = stage.plimsoll(&["run"]);
        let procs = File::options().write(true).open(self.0.join("cgroup.procs")).expect("the group is ours");
        // SAFETY: one write between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(rustix::io::write(&procs, b"0").map(|_| ())?));
        }
        stage.launch_as(command);
        stage.event("daemon_started", |_| true);
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            outside::remove_group(&entry.path());
        }
        outside::remove_group(&self.0);
    }
}

/// Settings that only tell, and one worker.
fn settings(worker: &str) -> String {
    format!(
        "[policy.memory]
        sustain = \"500ms\"
        on_high = [\"notify\"]
        on_critical = [\"notify\"]
        [workers.web]
        command = {worker}"
    )
}

fn memory(stage: &Stage) -> Value {
    let status = stage.status();
    let resources = status["policy"]["resources"].as_array().expect("a list").clone();
    resources.into_iter().find(|resource| resource["resource"] == "memory").expect("memory is judged")
}

#[test]
fn cache_filled_to_the_limit_raises_no_alarm() {
    let group = match MemoryGroup::make("plimsoll-test-cache") {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let mut stage = Stage::new(&settings(r#"["sh", "-c", "while :; do cat {here}/big > /dev/null; done"]"#));
    // Four times the limit, read over and over: its pages come from holes, which fill the cache all the same.
    File::create(stage.path("big")).and_then(|file| file.set_len(4 * LIMIT)).expect("the disk has room for nothing");
    group.start(&mut stage);
    assert_eq!(stage.status()["memory"]["limit_bytes"], LIMIT);
    wait_for("the group is full of cache", || (group.number("memory.usage_in_bytes") >= LIMIT / 100 * 98).then_some(()));
    wait_for("the kernel takes it back again", || (group.number("memory.failcnt") > 200).then_some(()));
    let since = stage.status()["tick"].as_u64().expect("a number");
    wait_for("ten more ticks", || stage.status()["tick"].as_u64().filter(|tick| *tick >= since + 10));

    let memory = memory(&stage);
    assert_eq!((&memory["state"], &memory["measure"]), (&"normal".into(), &"unreclaimable".into()), "{memory}");
    assert!(memory["utilization"].as_f64().is_some_and(|share| share < 0.3), "{memory}");
    let status = stage.status();
    assert!(status["memory"]["current_bytes"].as_u64().is_some_and(|bytes| bytes >= LIMIT / 100 * 95), "{}", status["memory"]);
    assert!(status["memory"]["refaulted_bytes_total"].as_u64().is_some_and(|bytes| bytes > 0), "{}", status["memory"]);
    assert_eq!(stage.events_named("verdict_changed"), Vec::<Value>::new());
    // The worker's own figure does not count it either.
    let own = status["workers"][0]["replicas"][0]["memory_bytes"].as_u64();
    assert!(own.is_some_and(|bytes| bytes < LIMIT / 4), "{own:?}");
    assert_eq!(stage.stop(), 0);
}

#[test]
fn anonymous_memory_to_the_same_height_does() {
    let group = match MemoryGroup::make("plimsoll-test-anonymous") {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let mut stage = Stage::new(&settings("{hungry leak=30 cap=145}"));
    group.start(&mut stage);
    alarmed(&stage, 0.80);
    assert_eq!(stage.stop(), 0);
}

/// Removed whatever becomes of the test: it would hold its memory for ever.
struct Shared(PathBuf);

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn shared_memory_to_the_same_height_does() {
    if !Path::new("/dev/shm").is_dir() {
        return skip("no /dev/shm");
    }
    let group = match MemoryGroup::make("plimsoll-test-shared") {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let shared = Shared(PathBuf::from(format!("/dev/shm/plimsoll-test-{}", std::process::id())));
    let fill = format!("dd if=/dev/zero of={} bs=1M count=140 2>/dev/null; exec sleep 1000", shared.0.display());
    let mut stage = Stage::new(&settings(&format!(r#"["sh", "-c", "{fill}"]"#)));
    group.start(&mut stage);
    alarmed(&stage, 0.80);
    let own = wait_for("the worker's own figure", || {
        let status = stage.status();
        status["workers"][0]["replicas"][0]["memory_bytes"].as_u64().filter(|bytes| *bytes > LIMIT / 2)
    });
    assert!(own <= LIMIT, "{own}");
    assert_eq!(stage.stop(), 0);
}

/// A file whose pages are on the disk and in nobody's cache: whoever wants one is charged for it.
fn cold_file(path: &Path, bytes: usize) {
    let mut file = File::create(path).expect("it is ours");
    file.write_all(&vec![1; bytes]).and_then(|()| file.sync_all()).expect("the disk has room");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("pages that are on the disk can go");
}

#[test]
fn a_working_set_of_files_that_does_not_fit_does() {
    let group = match MemoryGroup::make("plimsoll-test-thrash") {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let mut stage = Stage::new(&settings("{hungry thrash={here}/map}"));
    cold_file(&stage.path("map"), LIMIT as usize / 2 * 3);
    group.start(&mut stage);
    let changed = stage.event("verdict_changed", |event| event["resource"] == "memory" && event["state"] != "normal");
    assert_eq!(changed["measure"], "working_set", "{changed}");
    assert!(changed["evidence"].as_str().is_some_and(|evidence| evidence.contains("read again")), "{changed}");
    // Nothing but cache all the same: by what cannot be given back it is nearly empty.
    let unreclaimable = stage.status()["memory"]["unreclaimable_bytes"].as_u64();
    assert!(unreclaimable.is_some_and(|bytes| bytes < LIMIT / 4), "{unreclaimable:?}");
    assert_eq!(stage.stop(), 0);
}

/// Memory is over its line, by what cannot be given back.
fn alarmed(stage: &Stage, line: f64) {
    let changed = stage.event("verdict_changed", |event| event["resource"] == "memory" && event["state"] != "normal");
    assert_eq!(changed["measure"], "unreclaimable", "{changed}");
    assert!(changed["utilization"].as_f64().is_some_and(|share| share >= line), "{changed}");
}

/// The kernel's OOM killer is told from any other SIGKILL, with a group of the worker's own and without.
#[test]
fn a_kill_for_want_of_memory_is_recognised_as_one() {
    for (name, groups) in [("oom-grouped", ""), ("oom-bare", crate::crash::NO_GROUPS)] {
        let group = match MemoryGroup::make(name) {
            Ok(group) => group,
            Err(reason) => return skip(&reason),
        };
        // Faster than anybody could act.
        let mut stage = Stage::new(&format!("{groups}{}\nrestart = \"never\"", settings("{hungry leak=2000 cap=400}")));
        group.start(&mut stage);
        let exited = stage.event("worker_exited", |_| true);
        assert_eq!((&exited["signal"], &exited["reason"]), (&Value::from("SIGKILL"), &Value::from("oom")), "{name}: {exited}");
        let counted = || stage.metric("plimsoll_worker_exits_total{worker=\"web\",reason=\"oom\"}");
        wait_for("it is counted", || counted().filter(|count| *count == 1.0));
        assert_eq!(stage.stop(), 0);
    }
}
