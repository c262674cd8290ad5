//! The whole binary on machines that are folders: what it says of them, and every file it writes there.
//!
//! `PLIMSOLL_BLESS=1 cargo test --test daemon machines` writes the expected files anew: read the difference before you
//! keep it. What changes from run to run is replaced by `~`, each by its name: [`VOLATILE`].

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::machine::{Machine, recorded};
use crate::stage::{Stage, skip, wait_for};

/// One worker that does nothing, held to half a processor: where control groups can be written, that is seen.
const SETTINGS: &str = "[sampling]
interval = \"1s\"
[workers.web]
command = {hungry}
limits = { cpu = \"50%\" }";

/// Metrics and fields of the status that are the daemon's or the worker's own and differ from run to run.
const VOLATILE: [&str; 29] = [
    // Metrics, by the beginning of their names.
    "process_",
    "plimsoll_tick_",
    "plimsoll_reaction_seconds",
    "plimsoll_config_last_reload_success_timestamp_seconds",
    "plimsoll_log_",
    "plimsoll_self_",
    // Fields of the JSON.
    "tick",
    "taken_at",
    "taken_at_steady",
    "pid",
    "started_at",
    "config_file",
    "config_reloaded_at",
    "resident_bytes",
    "virtual_bytes",
    "cpu_seconds",
    "open_fds",
    "max_fds",
    "since",
    "uptime_seconds",
    "tick_duration_seconds",
    "tick_overruns_total",
    "reaction_seconds",
    "slot",
    "started",
    "late_seconds",
    "wakeups_total",
    "shed",
    "log_dropped_total",
];

/// Figures of the real worker, where they are not read from a group in the folder.
const OF_WORKER: [&str; 12] = [
    "descriptors",
    "threads",
    "plimsoll_worker_cpu_seconds_total",
    "plimsoll_worker_memory_bytes",
    "plimsoll_worker_peak_memory_bytes",
    "plimsoll_worker_throttle",
    "memory_bytes",
    "peak_memory_bytes",
    "cpu_seconds_total",
    "used_cores",
    "throttle_ratio",
    "throttled_seconds_total",
];

fn is_volatile(name: &str) -> bool {
    VOLATILE.iter().any(|volatile| {
        if volatile.ends_with('_') || volatile.starts_with("plimsoll_") { name.starts_with(volatile) } else { name == *volatile }
    })
}

fn steady_page(page: &str) -> String {
    let line = |line: &str| match line.rsplit_once(' ') {
        Some((series, _)) if !line.starts_with('#') && (is_volatile(series) || OF_WORKER.iter().any(|name| series.starts_with(name))) => {
            format!("{series} ~\n")
        }
        _ => format!("{line}\n"),
    };
    page.lines().map(line).collect()
}

fn steady_json(value: &mut Value, in_worker: bool) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if is_volatile(name) || (in_worker && OF_WORKER.contains(&name.as_str())) {
                    *field = Value::from("~");
                } else {
                    steady_json(field, in_worker || name == "workers");
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| steady_json(item, in_worker)),
        _ => {}
    }
}

fn compare(machine: &str, file: &str, found: &str) {
    let path = recorded(machine).join("expected").join(file);
    if std::env::var_os("PLIMSOLL_BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        fs::write(&path, found).expect("it can be written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(found.lines()).position(|(one, other)| one != other);
    let at = differs.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(the end)").to_owned();
    assert!(
        expected == found,
        "{machine}/expected/{file}, line {}:\n  expected {}\n  found    {}\nPLIMSOLL_BLESS=1 writes it anew",
        at + 1,
        line(&expected),
        line(found)
    );
}

/// The folder itself mounted over itself, not to be written to; gone with it.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn mount(folder: &Path) -> Option<ReadOnly> {
        let mount = |words: &[&str]| Command::new("mount").args(words).arg(folder).output().is_ok_and(|output| output.status.success());
        let path = folder.to_str()?.to_owned();
        if !mount(&["--bind", &path]) {
            return None;
        }
        let mounted = ReadOnly(folder.to_owned());
        mount(&["-o", "remount,bind,ro"]).then_some(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[track_caller]
fn runs_on(name: &str) {
    let mut stage = Stage::new(SETTINGS);
    let machine = Machine::new(name, stage.path("machine"));
    stage.set.extend(machine.settings());
    let before = machine.contents();
    // Containers see their groups, and may not write to them.
    let is_read_only = fs::read_to_string(machine.root.join("proc/self/mountinfo")).is_ok_and(|mounts| {
        mounts.lines().any(|line| line.contains(" /sys/fs/cgroup") && line.contains(" ro,") && line.contains("- cgroup"))
    });
    let mounted = if is_read_only { ReadOnly::mount(&machine.root.join("cgroup")) } else { None };
    if is_read_only && mounted.is_none() {
        return skip("nothing can be mounted here");
    }
    if !stage.start_under(Some(machine.reflex()), machine.meets()) {
        return skip("no seccomp user notification here");
    }
    wait_for("the worker runs", || (stage.status()["daemon"]["ready"] == true).then_some(()));
    // CPU is judged on a mean over a second.
    wait_for("rates", || stage.status()["policy"]["resources"][0]["utilization"].as_f64());

    let pid = stage.pid();
    let folder = stage.path("");
    let people = |text: &str| {
        let mut text = text.replace(folder.to_str().expect("a path").trim_end_matches('/'), "STAGE");
        for (pid, who) in &machine.deeds.lock().expect("whole").people {
            text = replace_pid(&text, *pid, who);
        }
        text
    };
    let page = stage.request("GET", "/metrics").expect("the page").body;
    let json = stage.ask(&["status", "--json"]);
    let text = stage.ask(&["status"]);
    assert!(json.status.success() && text.status.success(), "{json:?} {text:?}");
    let mut json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    steady_json(&mut json, false);
    compare(name, "metrics.prom", &steady_page(&page));
    compare(name, "status.json", &people(&(serde_json::to_string_pretty(&json).expect("JSON") + "\n")));
    compare(name, "status.txt", &people(&steady_screen(&String::from_utf8_lossy(&text.stdout))));

    let own = people(&own_files(&stage));

    assert_eq!(stage.stop(), 0);
    let left = people(&own_files(&stage));
    compare(name, "own_files.txt", &format!("while it runs:\n{own}\nafterwards:\n{left}\non record:\n{}", on_record(&stage)));
    let deeds = machine.deeds.lock().expect("whole");
    let mut written: String = deeds.lines.iter().map(|line| format!("{line}\n")).collect();
    for (pid, who) in &deeds.people {
        written = replace_pid(&written, *pid, who);
    }
    compare(name, "written.txt", &written);
    let after = machine.contents();
    let differs = |path: &&std::path::PathBuf| before.get(*path) != after.get(*path);
    let left: Vec<_> = before.keys().chain(after.keys()).filter(differs).collect();
    assert!(left.is_empty(), "not as it was before: {left:?}");
    let strangers: Vec<_> = deeds.signalled.iter().filter(|target| !deeds.people.contains_key(target)).collect();
    assert!(strangers.is_empty(), "signalled {strangers:?}, none of {:?} ({pid})", deeds.people);
    let allowed = |path: &Path| path.starts_with(&folder) || path.starts_with("/dev") || path.ends_with("oom_score_adj");
    let outside: Vec<_> = deeds.outside.iter().filter(|path| !allowed(path)).collect();
    assert!(outside.is_empty(), "written to: {outside:?}");
    drop(mounted);
}

/// Every file in the daemon's own folders, and what the undo logs say.
fn own_files(stage: &Stage) -> String {
    let mut lines = Vec::new();
    for folder in ["run", "state"] {
        for entry in fs::read_dir(stage.path(folder)).expect("it was made").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Whether SQLite has its log beside the database hangs on when it was last written back.
            if name.ends_with("-wal") || name.ends_with("-shm") {
                continue;
            }
            // Of the roster the other tests say what is in it.
            let saved: String =
                if name.ends_with(".jsonl") && !name.starts_with("workers-") { steady_log(&entry.path()) } else { String::new() };
            lines.push(format!("{folder}/{name}\n{saved}"));
        }
    }
    lines.sort();
    lines.concat()
}

/// An undo log without what is another number in each run.
fn steady_log(path: &Path) -> String {
    let steady = |line: &str| {
        let mut entry: Value = serde_json::from_str(line).expect("a line of the log");
        for name in ["dev", "ino", "boot", "started", "inode", "since"] {
            if let Some(value) = entry.get_mut(name) {
                *value = Value::from("~");
            }
        }
        format!("    {entry}\n")
    };
    fs::read_to_string(path).expect("it is there").lines().map(steady).collect()
}

/// The names of all that the state database holds.
fn on_record(stage: &Stage) -> String {
    let events = stage.ask(&["events", "--json"]);
    assert!(events.status.success(), "{events:?}");
    let text = String::from_utf8_lossy(&events.stdout);
    let names = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["event"].as_str().expect("a name").to_owned());
    let names: std::collections::BTreeSet<String> = names.collect();
    names.into_iter().map(|name| name + "\n").collect()
}

/// What a pid stands behind in all that is compared. A number elsewhere that happens to be the same is not the pid: a
/// quota of 5000 µs, 4694.62 seconds of CPU.
const BEFORE_A_PID: [&str; 6] = ["plimsoll-", "workers-", "undo-", "pid ", "procs ", "running "];

fn replace_pid(text: &str, pid: i32, by: &str) -> String {
    let pid = pid.to_string();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&pid) {
        let (before, after) = (&rest[..at], &rest[at + pid.len()..]);
        out.push_str(before);
        let is_whole = !after.starts_with(|character: char| character.is_ascii_digit());
        let is_pid = is_whole && BEFORE_A_PID.iter().any(|words| out.ends_with(words));
        out.push_str(if is_pid { by } else { &pid });
        rest = after;
    }
    out + rest
}

/// The screen without how long it has been up and what the real worker uses.
fn steady_screen(text: &str) -> String {
    let line = |line: &str| match (line.split_once(", up "), line.split_whitespace().collect::<Vec<_>>().as_slice()) {
        (Some((before, _)), _) => format!("{before}, up ~\n"),
        // Not in columns: the width of a number is the number's.
        (None, ["web", state, pid, _cpu, _memory, _unit, rest @ ..]) => format!("web {state} {pid} ~ ~ {}\n", rest.join(" ")),
        _ => format!("{line}\n"),
    };
    // Where a note is broken hangs on the width of a number too.
    text.replace("\n      ", " ").lines().map(line).collect()
}

macro_rules! machines {
    ($($test:ident: $name:literal,)*) => { $(#[test] fn $test() { runs_on($name); })* };
}

machines! {
    v2_bare: "v2-bare",
    v1: "v1",
    v1_hierarchical: "v1-hierarchical",
    hybrid: "hybrid",
    docker_v1: "docker-v1",
    docker_v2: "docker-v2",
    parent_limit: "parent-limit",
    delegated_unit: "delegated-unit",
    kubernetes_shared_pids: "kubernetes-shared-pids",
    readonly_cgroupfs: "readonly-cgroupfs",
    no_psi: "no-psi",
    no_cgroup: "no-cgroup",
    limit_above_machine: "limit-above-machine",
}

#[test]
fn every_recorded_machine_is_run_on() {
    let listed = include_str!("machines.rs");
    for entry in fs::read_dir(recorded("")).expect("the machines").flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(listed.contains(&format!(": \"{name}\",")), "{name} has no test");
        let readme = include_str!("../fixtures/hosts/README.md");
        assert!(readme.contains(&format!("| `{name}` |")), "README.md does not say where {name} comes from");
    }
}

/// Replaced, as a kernel file never is and a bind mount of one may be.
fn change(machine: &Machine, file: &str, value: &str) {
    let path = machine.root.join(file);
    fs::write(path.with_extension("new"), format!("{value}\n")).expect("it is ours");
    fs::rename(path.with_extension("new"), &path).expect("it is ours");
}

/// A machine, a file of it, what it limits, and each value with the limit that it makes.
type Change = (&'static str, &'static str, &'static str, &'static [(&'static str, f64)]);

#[test]
fn a_limit_that_changes_live_is_followed_at_once() {
    const GROUP: &str = "cgroup/memory/plimsoll-fixture/memory.limit_in_bytes";
    let changes: [Change; 6] = [
        (
            "docker-v2",
            "cgroup/memory.max",
            "memory",
            &[("1073741824", 1_073_741_824.0), ("402653184", 402_653_184.0), ("max", 2_074_628_096.0), ("536870912", 536_870_912.0)],
        ),
        ("docker-v2", "cgroup/cpu.max", "cpu", &[("100000 100000", 1.0), ("20000 100000", 0.2), ("max 100000", 2.0), ("50000 50000", 1.0)]),
        ("v2-bare", "cgroup/system.slice/shop.service/cpuset.cpus.effective", "cpu", &[("1", 1.0), ("0-1", 2.0), ("0", 1.0)]),
        ("v1", GROUP, "memory", &[("536870912", 536_870_912.0), ("134217728", 134_217_728.0), ("268435456", 268_435_456.0)]),
        ("v1", "cgroup/cpu/plimsoll-fixture/cpu.cfs_quota_us", "cpu", &[("100000", 1.0), ("-1", 2.0), ("20000", 0.2)]),
        ("parent-limit", "cgroup/apps.slice/memory.max", "memory", &[("1610612736", 1_610_612_736.0), ("805306368", 805_306_368.0)]),
    ];
    for (name, file, resource, values) in changes {
        let mut stage = Stage::new("[sampling]\ninterval = \"200ms\"");
        let machine = Machine::new(name, stage.path("machine"));
        stage.set.extend(machine.settings());
        stage.start();
        for (value, limit) in values {
            if file == GROUP {
                // On v1 the kernel says so in two places.
                let stat = machine.root.join("cgroup/memory/plimsoll-fixture/memory.stat");
                let text = fs::read_to_string(&stat).expect("it was recorded");
                let old = text.lines().find(|line| line.starts_with("hierarchical_memory_limit")).expect("the line").to_owned();
                fs::write(stat, text.replace(&old, &format!("hierarchical_memory_limit {value}"))).expect("it is ours");
            }
            change(&machine, file, value);
            let event = stage.event("limit_changed", |event| event["resource"] == resource && event["now"].as_f64() == Some(*limit));
            assert_ne!(event["was"], event["now"]);
            let metric = if resource == "cpu" { "plimsoll_cpu_limit_cores" } else { "plimsoll_memory_limit_bytes" };
            wait_for("the page follows", || stage.metric(metric).filter(|found| found == limit));
        }
        let told = stage.events_named("limit_changed").iter().filter(|event| event["resource"] == resource).count();
        assert!(told >= values.len(), "{name}: each change is told");
    }
}

#[test]
fn the_first_look_at_a_smaller_limit_is_judged_by_it() {
    let mut stage = Stage::new("[sampling]\ninterval = \"200ms\"");
    let machine = Machine::new("exact/docker-v2", stage.path("machine"));
    stage.set.extend(machine.settings());
    stage.start();
    // 210 MB that cannot be given back, of 220 MB.
    change(&machine, "cgroup/memory.max", "230686720");
    let verdict = stage.event("verdict_changed", |event| event["resource"] == "memory" && event["state"] == "critical");
    assert_eq!(verdict["limit"].as_f64(), Some(230_686_720.0));
    let names: Vec<_> = stage.events().iter().map(|event| event["event"].as_str().unwrap_or_default().to_owned()).collect();
    let at = |name: &str| names.iter().position(|found| found == name).expect("it was told");
    assert_eq!(at("verdict_changed"), at("limit_changed") + 1, "in the same tick: {names:?}");
    change(&machine, "cgroup/memory.max", "536870912");
    stage.event("verdict_changed", |event| event["resource"] == "memory" && event["state"] == "normal");
}
