//! Memory brakes on the real kernel: a line for a worker's memory, memory asked back, a stop while memory comes back. Each is
//! undone on release, at the end, and when the daemon is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use plimsoll::host::cgroupfs::Version;
use plimsoll::host::folder::Folder;
use plimsoll::host::memory_group::MemoryGroup;

use crate::faults::assert_well;
use crate::kernel::{Call, Fault};
use crate::outside;
use crate::stage::{Stage, skip, wait_for, wait_within};

/// After the death of the daemon everything goes on within this.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The workers may use 200 MB, and are slowed from 60 MB on. The one there is has file cache to give back.
const SLOWED: &str = "
[policy.memory]
limit = \"200MB\"
high = \"30%\"
low = \"20%\"
critical = \"95%\"
sustain = \"200ms\"
on_high = [\"throttle\"]
on_critical = [\"notify\"]
[workers.leaky]
command = [\"sh\", \"-c\", \"dd if=/dev/zero of={here}/ballast bs=1M count=100 2>/dev/null; exec $0 leak=20 cap=150\", \"{program}\"]
";

fn settings() -> String {
    SLOWED.replace("{program}", &crate::stage::hungry().display().to_string())
}

/// The v1 soft limit of a worker's group; `None` where it has none of its own.
fn soft_limit(pid: i32) -> Option<PathBuf> {
    let (_, folder) = outside::groups(pid).into_iter().find(|(controller, _)| controller == "memory")?;
    let is_ours = folder.to_str()?.contains("plimsoll-");
    Some(folder.join("memory.soft_limit_in_bytes")).filter(|file| is_ours && file.exists())
}

fn value(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Above any real amount: the kernel's word for "no limit".
const NONE: u64 = 1 << 60;

/// Waits until the worker is held at a line; `None` (and the reason is shown) where this machine has no v1 memory groups.
fn held(stage: &Stage) -> Option<PathBuf> {
    let pid = stage.worker("leaky");
    let Some(file) = soft_limit(pid) else {
        skip("the worker has no v1 memory group of its own here");
        return None;
    };
    assert!(value(&file)? > NONE, "no line at first");
    wait_for("it is held at a line", || value(&file).filter(|line| *line < NONE));
    Some(file)
}

#[test]
fn a_line_for_memory_is_put_back_on_release_and_at_the_end() {
    let mut stage = Stage::running(&settings());
    let Some(file) = held(&stage) else { return };
    let line = value(&file).expect("it can be read");
    assert!((1 << 20..200_000_000).contains(&line), "near what it uses: {line}");
    stage.event("throttle_engaged", |event| event["resource"] == "memory");
    // Dry from now on, or the policy would slow it again at once: switching it on lets everybody go.
    stage.write(&format!("{}\n[policy]\ndry_run = true", settings()));
    assert!(stage.ask(&["reload"]).status.success());
    assert!(value(&file).expect("it can be read") > NONE, "released");
    stage.write(&settings());
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("it is held again", || value(&file).filter(|line| *line < NONE));
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.groups_left(), [] as [PathBuf; 0]);
}

#[test]
fn a_killed_daemon_leaves_no_line_for_memory() {
    let mut stage = Stage::running(&settings());
    let Some(file) = held(&stage) else { return };
    stage.kill();
    wait_within(AFTERMATH, "the line is put back", || value(&file).filter(|line| *line > NONE));
}

#[test]
fn a_line_that_others_have_moved_stays_as_they_set_it() {
    let mut stage = Stage::running(&settings());
    let Some(file) = held(&stage) else { return };
    let theirs = 128 << 20;
    fs::write(&file, theirs.to_string()).expect("it is writable");
    let lifted = stage.event("memory_line_lifted", |event| event["worker"] == "leaky.0");
    assert!(lifted["reason"].as_str().is_some_and(|why| why.contains("others")), "{lifted}");
    assert_eq!(value(&file), Some(theirs));
    stage.kill();
    // The worker runs on in its group, and so does what others have said of it.
    wait_for("the sentinel is done", || (outside::children(stage.worker("leaky")).is_empty()).then_some(()));
    assert_eq!(value(&file), Some(theirs));
}

/// The kernel may take its time over a write that makes it take memory back.
#[test]
fn a_line_that_is_taken_off_while_it_is_still_being_written_is_off_when_the_write_is_over() {
    let mut stage = Stage::new(&settings());
    if !stage.start_under(None, |_| {}) {
        return skip("no seccomp user notification here");
    }
    stage.rules().set([(Call::Write, "/memory.soft_limit_in_bytes", Fault::HangsIn("lines"))]);
    let Some(file) = soft_limit(stage.worker("leaky")) else { return skip("the worker has no v1 memory group of its own here") };
    let lent = || fs::read_to_string(stage.path(&format!("run/undo-{}.jsonl", stage.pid()))).is_ok_and(|log| log.contains("\"lent\""));
    stage.event("throttle_engaged", |event| event["resource"] == "memory");
    assert!(value(&file).expect("it can be read") > NONE && lent(), "written down, and under way");
    assert_well(&stage);
    stage.write(&format!("{}\n[policy]\ndry_run = true", settings()));
    assert!(stage.ask(&["reload"]).status.success(), "nobody waits for the kernel");
    assert!(lent(), "what may still come must be put back");
    stage.rules().clear();
    wait_for("it is put back", || (!lent()).then_some(()));
    assert!(value(&file).expect("it can be read") > NONE, "{:?}", value(&file));
    assert_eq!(stage.events_named("degraded"), [] as [serde_json::Value; 0]);

    // Nor does its end wait for the kernel.
    stage.rules().set([(Call::Write, "/memory.soft_limit_in_bytes", Fault::HangsIn("lines"))]);
    stage.write(&settings());
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("it is held again", || lent().then_some(()));
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.groups_left(), [] as [PathBuf; 0]);
}

#[test]
fn every_effect_is_told_with_its_figures_after_one_second_and_after_ten() {
    let stage = Stage::running(&settings());
    let told = wait_for("an effect", || {
        let events = stage.events();
        events.into_iter().find(|event| event["event"] == "action_effective" || event["event"] == "action_ineffective")
    });
    for figure in ["before", "after_1s", "after_10s"] {
        assert!(told[figure].as_f64().is_some_and(|share| share > 0.0), "{figure}: {told}");
    }
    let resources = stage.status()["policy"]["resources"].clone();
    let memory = resources.as_array().and_then(|list| list.iter().find(|one| one["resource"] == "memory")).cloned().expect("memory");
    assert!(memory["last_effect"].as_str().is_some_and(|effect| effect.contains("after 10 s")), "{memory}");
}

#[test]
fn memory_is_asked_back_from_a_v1_group() {
    let top = Path::new("/sys/fs/cgroup/memory");
    let folder = top.join(format!("plimsoll-test-{}", std::process::id()));
    if !top.join("memory.usage_in_bytes").exists() || fs::create_dir(&folder).is_err() {
        return skip("no v1 memory groups can be made here");
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let script =
        format!("echo 0 > {}/cgroup.procs && dd if=/dev/zero of={}/ballast bs=1M count=64", folder.display(), scratch.path().display());
    let done = Command::new("sh").args(["-c", &script]).output().expect("sh can be started");
    let group = MemoryGroup::new(Version::V1, Arc::new(Folder::open(&folder).expect("it was made just now")));
    let before = group.figures().expect("it can be read");
    let result = group.empty();
    let after = group.figures().expect("it can be read");
    wait_for("the group is removed", || fs::remove_dir(&folder).ok());
    assert!(done.status.success(), "{done:?}");
    result.expect("the kernel is asked");
    assert!(before.cache > 60 << 20 && after.cache < before.cache / 4, "{before:?} {after:?}");
}

/// `bulk` is told to end and takes its time, `grower` fills up meanwhile.
const STOPPED: &str = "
[policy.memory]
limit = \"400MB\"
high = \"30%\"
low = \"20%\"
critical = \"40%\"
sustain = \"200ms\"
on_high = [\"notify\"]
on_critical = [\"recycle\"]
[workers.bulk]
command = {hungry leak=400 cap=150 deaf}
priority = -1
stop = { signal = \"SIGTERM\", within = \"8s\" }
[workers.grower]
command = {hungry leak=30 cap=260}
protected = true
longest_stop = \"2s\"
";

/// The freezer of a worker's group in the v2 tree.
fn freezer(pid: i32) -> Option<PathBuf> {
    let (_, folder) = outside::groups(pid).into_iter().find(|(controller, _)| controller.is_empty())?;
    Some(folder.join("cgroup.freeze")).filter(|file| folder.to_str().is_some_and(|path| path.contains("plimsoll")) && file.exists())
}

#[test]
fn a_fast_grower_is_stopped_while_memory_comes_back_and_a_killed_daemon_leaves_nobody_stopped() {
    let mut stage = Stage::running(STOPPED);
    let grower = stage.worker("grower");
    let Some(file) = freezer(grower) else { return skip("the worker has no group in the v2 tree here") };
    let frozen = || fs::read_to_string(&file).is_ok_and(|text| text.trim() == "1");
    wait_for("it is stopped", || frozen().then_some(()));
    wait_for("it goes on by itself", || (!frozen()).then_some(()));
    let told = stage.event("action_performed", |event| event["action"] == "freeze");
    assert_eq!((&told["outcome"], &told["workers"]), (&"done".into(), &"grower.0".into()), "{told}");
    wait_for("it is stopped once more", || frozen().then_some(()));
    stage.kill();
    wait_within(AFTERMATH, "nobody is stopped any more", || (!frozen()).then_some(()));
}
