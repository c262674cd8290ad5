//! A daemon that dies without a word leaves nothing stopped and nothing limited; the next start sweeps the rest.

use std::fs;
use std::time::Duration;

use crate::faults::SmallDisk;
use crate::outside;
use crate::stage::{Stage, skip, wait_for, wait_within};

const SMALL: &str = "
[policy.cpu]
limit = 0.2
sustain = \"0s\"
[sampling]
interval = \"500ms\"
";

/// After the death of the daemon everything goes on within this.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Without groups of its own a tree can only be stopped by signals.
pub const NO_GROUPS: &str = "[host]\ncgroup = \"{here}/none\"\n";

#[test]
fn a_killed_daemon_leaves_no_process_of_a_held_tree_stopped() {
    // Without a group nobody knows whose descendant it is that has left session and parent.
    leaves_no_process_stopped(NO_GROUPS, "", 3);
}

#[test]
fn a_killed_daemon_leaves_no_process_stopped_by_freezer() {
    leaves_no_process_stopped("", "astray=burn=1", 4);
}

fn leaves_no_process_stopped(how: &str, more: &str, count: usize) {
    let mut stage = Stage::running(&format!(
        "{SMALL}{how}
        [workers.tree]
        command = {{hungry burn=1 child=burn=1 child=burn=1 {more}}}
        throttle = \"duty\"
        longest_stop = \"10s\""
    ));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    // At the very moment in which the whole tree is held.
    wait_for("the whole tree is stopped", || {
        let tree = stage.population();
        (tree.len() >= count && tree.iter().all(outside::is_stopped)).then_some(())
    });
    let freezer = stage.status()["workers"][0]["replicas"][0]["throttle_method"] == "duty (freezer)";
    if how.is_empty() && !freezer {
        return skip("groups of our own cannot be frozen here");
    }
    assert_eq!(freezer, how.is_empty());
    // Frozen for a moment only: the kernel lets a stopped worker go when its guardian dies, a frozen one it does not.
    wait_for("it is stopped, not frozen", || stage.population().iter().all(|process| process.state == 'T').then_some(()));
    stage.kill();
    let tree = stage.population();
    assert!(tree.len() >= count, "a death of the daemon ends no worker: {tree:?}");
    wait_within(AFTERMATH, "nobody is stopped any more", || (!stage.population().iter().any(outside::is_stopped)).then_some(()));
    // And it stays so: whoever let them go has not left one to be stopped later.
    let before = outside::cpu_time(&tree);
    wait_for("they run freely", || (outside::cpu_time(&tree) > before + Duration::from_millis(500)).then_some(()));
    assert!(!stage.population().iter().any(outside::is_stopped));
}

#[test]
fn a_worker_slowed_by_priority_gets_its_own_back_by_hand_and_after_a_crash() {
    const IDLE: u32 = 5; // SCHED_IDLE
    let mut stage = Stage::running(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=1}}\nthrottle = \"nice\""));
    let hog = stage.worker("hog");
    // Not the one it was started with: a nice value of 5, in the class for batch jobs.
    let pid = hog.to_string();
    for words in [&["renice", "-n", "5", "-p", &pid], &["chrt", "-b", "-p", "0", &pid]] {
        assert!(std::process::Command::new(words[0]).args(&words[1..]).output().expect("util-linux").status.success());
    }
    let own = outside::priority(hog).expect("it runs");
    let told = wait_for("the daemon acts or says why not", || {
        stage.events().into_iter().find(|event| event["event"] == "throttle_engaged" || event["event"] == "action_suppressed")
    });
    if told["event"] == "action_suppressed" {
        return skip("a nice value cannot be taken back here: that needs CAP_SYS_NICE");
    }
    wait_for("it is slowed", || (outside::priority(hog)? == (19, IDLE)).then_some(()));
    // Dry from now on, or the policy would slow it again at once: switching it on lets everybody go.
    stage.write(&format!("{SMALL}\n[policy]\ndry_run = true\n[workers.hog]\ncommand = {{hungry burn=1}}\nthrottle = \"nice\""));
    assert!(stage.ask(&["reload"]).status.success());
    assert_eq!(outside::priority(hog), Some(own));
    stage.write(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=1}}\nthrottle = \"nice\""));
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("it is slowed again", || (outside::priority(hog)? == (19, IDLE)).then_some(()));
    stage.kill();
    wait_within(AFTERMATH, "its own priority is back", || (outside::priority(hog)? == own).then_some(()));
}

#[test]
fn whoever_was_started_while_its_parent_was_slowed_is_not_left_slow() {
    const SLOWED: (i32, u32) = (19, 5);
    let script = "while [ ! -e {here}/fork ]; do :; done; (while :; do :; done) & wait";
    let mut stage = Stage::running(&format!("{SMALL}\n[workers.sh]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nthrottle = \"nice\""));
    let own = outside::priority(stage.worker("sh")).expect("it runs");
    let told = wait_for("the daemon acts or says why not", || {
        stage.events().into_iter().find(|event| event["event"] == "throttle_engaged" || event["event"] == "action_suppressed")
    });
    if told["event"] == "action_suppressed" {
        return skip("a nice value cannot be taken back here: that needs CAP_SYS_NICE");
    }
    let priorities = |stage: &Stage| stage.population().iter().filter_map(|one| outside::priority(one.pid)).collect::<Vec<_>>();
    wait_for("it is slowed", || (priorities(&stage) == [SLOWED]).then_some(()));
    fs::write(stage.path("fork"), "").expect("it can be written");
    wait_for("its child is slow too", || (priorities(&stage) == [SLOWED; 2]).then_some(()));
    stage.kill();
    wait_within(AFTERMATH, "both have their own priority", || (priorities(&stage) == [own; 2]).then_some(()));
}

#[test]
fn a_killed_daemon_leaves_no_quota_and_the_next_start_sweeps_its_groups() {
    let mut stage = Stage::running(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=1}}"));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let hog = stage.worker("hog");
    let Some(quota) = outside::quota_file(hog) else { return skip("the worker has no group with a CPU quota here") };
    assert!(!outside::is_free(&quota));
    stage.kill();
    wait_within(AFTERMATH, "the quota is put back", || outside::is_free(&quota).then_some(()));
    assert!(!stage.groups_left().is_empty(), "the orphan still runs in its group");

    // The orphan is in no settings any more: the next daemon ends it.
    fs::write(stage.path("plimsoll.toml"), "").expect("it can be written");
    stage.start();
    let left = stage.event("worker_left_behind", |_| true);
    assert_eq!(left["pid"].as_i64(), Some(i64::from(hog)), "{left}");
    wait_for("the orphan has ended", || (!stage.population().iter().any(|process| process.pid == hog)).then_some(()));
    assert_eq!(stage.stop(), 0);
    stage.start();
    assert_eq!(stage.groups_left().iter().filter(|folder| !folder.ends_with(format!("plimsoll-{}", stage.pid()))).count(), 0);
    assert_eq!(stage.stop(), 0);
    assert_eq!(stage.groups_left(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_killed_sentinel_is_replaced_and_the_next_one_does_its_work() {
    let mut stage =
        Stage::running(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=2}}\nthrottle = \"duty\"\nlongest_stop = \"10s\""));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let sentinel = |stage: &Stage| {
        let worker = stage.worker("hog");
        outside::children(stage.pid()).into_iter().find(|child| child.pid != worker && child.state != 'Z')
    };
    let first = sentinel(&stage).expect("there is a sentinel");
    first.kill();
    stage.event("degraded", |event| event["part"] == "sentinel");
    wait_for("another sentinel", || sentinel(&stage).filter(|next| next.pid != first.pid));
    wait_for("the hog is stopped", || stage.population().iter().any(outside::is_stopped).then_some(()));
    stage.kill();
    wait_within(AFTERMATH, "nobody is stopped any more", || (!stage.population().iter().any(outside::is_stopped)).then_some(()));
}

#[test]
fn release_frees_everybody_and_the_policy_goes_on() {
    let stage = Stage::running(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=1 until={{here}}/enough}}"));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let quota = outside::quota_file(stage.worker("hog"));
    // It will not be held again at once.
    fs::write(stage.path("enough"), "").expect("it can be written");
    let answer = stage.ask(&["release"]);
    assert!(answer.status.success(), "{answer:?}");
    match quota {
        Some(quota) => wait_for("the quota is put back", || outside::is_free(&quota).then_some(())),
        None => skip("the worker has no group with a CPU quota here"),
    }
    wait_for("the status says so", || (stage.status()["workers"][0]["replicas"][0]["cores_allowed"].is_null()).then_some(()));
}

#[test]
fn release_without_a_daemon_puts_back_what_a_dead_one_wrote_down() {
    let mut stage = Stage::running(&format!("{SMALL}\n[workers.hog]\ncommand = {{hungry burn=1}}"));
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let hog = stage.worker("hog");
    let Some(quota) = outside::quota_file(hog) else { return skip("the worker has no group with a CPU quota here") };
    // Together with its sentinel, as when a container's processes are killed one by one.
    for child in outside::children(stage.pid()).iter().filter(|child| child.pid != hog) {
        child.kill();
    }
    stage.kill();
    // The daemon may have started another sentinel in between, which did the work; then this puts nothing back, and is free all the same.
    let answer = stage.ask(&["release", "--json"]);
    assert!(answer.status.success(), "{answer:?}");
    let told: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    assert_eq!(told["daemon"], false);
    wait_for("the quota is put back", || outside::is_free(&quota).then_some(()));
}

/// A quota and its period as somebody else may have set them: in microseconds, 1.5 cores.
const THEIRS: (&str, &str) = ("150000", "100000");

#[test]
fn a_quota_somebody_else_had_set_comes_back_whoever_puts_it_back() {
    let hog = "[workers.hog]\ncommand = {hungry burn=1 until={here}/enough}";
    let dry = format!("{SMALL}\n[policy]\ndry_run = true\n{hog}");
    for how in ["release", "sentinel", "release after both were killed", "the next start"] {
        let mut stage = Stage::running(&dry);
        let Some(quota) = outside::quota_file(stage.worker("hog")) else { return skip("the worker has no group with a CPU quota here") };
        let Some(period) = Some(quota.with_file_name("cpu.cfs_period_us")).filter(|file| file.exists()) else {
            return skip("the quota and its period are one value here");
        };
        fs::write(&period, THEIRS.1).and_then(|()| fs::write(&quota, THEIRS.0)).expect("the group is ours to limit");
        let found = || {
            let [quota, period] = [&quota, &period].map(|file| fs::read_to_string(file).unwrap_or_default());
            (quota.trim().to_owned(), period.trim().to_owned())
        };
        stage.write(&format!("{SMALL}\n{hog}"));
        assert!(stage.ask(&["reload"]).status.success());
        wait_for("it is limited by us", || (found().1 != THEIRS.1).then_some(()));
        let sentinel = outside::sentinel_of(stage.pid()).expect("there is a sentinel");
        match how {
            "release" => {
                fs::write(stage.path("enough"), "").expect("it can be written");
                assert!(stage.ask(&["release"]).status.success());
            }
            "sentinel" => stage.kill(),
            _ => {
                sentinel.kill();
                stage.kill();
                stage.write(&dry);
                if how == "the next start" { stage.start() } else { assert!(stage.ask(&["release"]).status.success()) }
            }
        }
        wait_within(AFTERMATH, how, || (found() == (THEIRS.0.to_owned(), THEIRS.1.to_owned())).then_some(()));
    }
}

#[test]
fn whom_a_daemon_held_stopped_goes_on_by_hand_when_its_sentinel_is_dead_too() {
    let mut stage = Stage::running(&format!(
        "{SMALL}{NO_GROUPS}\n[workers.tree]\ncommand = {{hungry burn=1 child=burn=1}}\nthrottle = \"duty\"\nlongest_stop = \"10s\""
    ));
    wait_for("the tree is held", || {
        let tree = stage.population();
        (tree.len() >= 2 && tree.iter().all(outside::is_stopped)).then_some(())
    });
    outside::sentinel_of(stage.pid()).expect("there is a sentinel").kill();
    stage.kill();
    let told = stage.ask(&["release", "--json"]);
    assert!(told.status.success(), "{told:?}");
    assert!(!stage.population().iter().any(outside::is_stopped));
    let tree = stage.population();
    let before = outside::cpu_time(&tree);
    wait_for("they run freely", || (outside::cpu_time(&tree) > before + Duration::from_millis(300)).then_some(()));
}

#[test]
fn what_cannot_be_written_down_is_not_changed_and_it_is_said() {
    let hog = "[workers.hog]\ncommand = {hungry burn=1}\nthrottle = \"cgroup\"";
    let mut stage = Stage::new(&format!("{SMALL}\n[policy]\ndry_run = true\n{hog}"));
    let Some(disk) = SmallDisk::mount(stage.path("run")) else { return skip("no file system can be mounted here") };
    stage.start();
    let Some(quota) = outside::quota_file(stage.worker("hog")) else { return skip("the worker has no group with a CPU quota here") };
    // Without its log there is no half-filled page left on the disk.
    fs::remove_file(stage.path(&format!("run/undo-{}.jsonl", stage.pid()))).expect("the folders made are on record");
    disk.fill();
    stage.write(&format!("{SMALL}\n{hog}"));
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("it is said", || stage.events().into_iter().find(|event| event.to_string().contains("could not be saved")));
    assert!(outside::is_free(&quota));
    assert_eq!(stage.stop(), 0);
}
