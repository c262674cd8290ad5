//! A changed file is applied whole or not at all.

use rustix::process::Signal;

use crate::outside;
use crate::stage::{Stage, wait_for};

const GAUGE: &str = "plimsoll_config_last_reload_successful";

fn running(stage: &Stage, count: usize) -> Vec<outside::Process> {
    wait_for(&format!("{count} workers run"), || Some(stage.population()).filter(|all| all.len() == count))
}

#[test]
fn replicas_follow_the_file_up_and_down() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\nreplicas = 2");
    let two = running(&stage, 2);
    stage.write("[workers.web]\ncommand = {hungry}\nreplicas = 4");
    let answer = stage.ask(&["reload"]);
    assert!(answer.status.success(), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stdout).contains("workers.web"), "{answer:?}");
    let four = running(&stage, 4);
    assert!(two.iter().all(|one| four.iter().any(|other| other.pid == one.pid)), "who ran goes on");

    stage.write("[workers.web]\ncommand = {hungry}\nreplicas = 1");
    // By signal as well as by command.
    stage.signal(Signal::HUP);
    let one = running(&stage, 1);
    assert!(two.iter().any(|old| old.pid == one[0].pid), "the first replica is one of the first two");
    assert!(stage.events_named("worker_exited").iter().all(|event| event["reason"] == "stopped"));
    stage.event("config_reloaded", |_| true);
}

#[test]
fn a_changed_command_replaces_its_worker_and_no_other() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\n[workers.other]\ncommand = {hungry}");
    let (web, other) = (stage.worker("web"), stage.worker("other"));
    stage.write("[workers.web]\ncommand = {hungry light=1}\n[workers.other]\ncommand = {hungry}");
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("web is replaced", || Some(stage.worker("web")).filter(|pid| *pid != web));
    assert_eq!(stage.worker("other"), other);
    assert!(outside::process(other).is_some_and(|process| process.state != 'Z'));
    wait_for("the old one is gone", || outside::process(web).is_none().then_some(()));
}

#[test]
fn limits_hold_from_the_reload_on() {
    let stage = Stage::running("[workers.hog]\ncommand = {hungry burn=1}");
    let hog = stage.worker("hog");
    stage.write("[policy.cpu]\nlimit = 0.2\nsustain = \"0s\"\n[workers.hog]\ncommand = {hungry burn=1}");
    assert!(stage.ask(&["reload"]).status.success());
    let engaged = stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    assert_eq!(engaged["limit"], 0.2);
    assert_eq!(stage.worker("hog"), hog, "a limit replaces nobody");

    let quota = outside::quota_file(hog);
    stage.write("[policy.cpu]\nlimit = 0.2\nsustain = \"0s\"\n[workers.hog]\ncommand = {hungry burn=1}\nthrottle = \"never\"");
    assert!(stage.ask(&["reload"]).status.success());
    stage.event("throttle_released", |event| event["resource"] == "cpu");
    if let Some(quota) = quota {
        wait_for("the quota is put back", || outside::is_free(&quota).then_some(()));
    }
    stage.event("action_suppressed", |event| event["resource"] == "cpu");
}

#[test]
fn a_bad_file_that_names_the_runtime_folder_is_told_to_the_daemon_there() {
    let mut stage = Stage::new("[daemon]\nruntime_dir = \"{here}/elsewhere\"\n[workers.web]\ncommand = {hungry}");
    // Only the file says where.
    stage.set.push(format!("daemon.runtime_dir={}", stage.path("elsewhere").display()));
    stage.launch();
    stage.event("worker_ready", |_| true);
    for broken in ["[policy.cpu]\nhihg = 1", "[policy"] {
        stage.write(&format!("[daemon]\nruntime_dir = \"{{here}}/elsewhere\"\n{broken}"));
        let mut reload = std::process::Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        let answer = reload.env_clear().args(["reload", "-c"]).arg(stage.path("plimsoll.toml")).output().expect("plimsoll can be started");
        assert_eq!(answer.status.code(), Some(1), "{broken}: {answer:?}");
        assert!(String::from_utf8_lossy(&answer.stderr).contains("plimsoll.toml:"), "{broken}: {answer:?}");
    }
}

#[test]
fn a_bad_file_is_refused_and_the_old_settings_go_on() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\nreplicas = 2");
    let two = running(&stage, 2);
    assert_eq!(stage.metric(GAUGE), Some(1.0));
    stage.write("[workers.web]\ncommand = {hungry}\nreplicas = 1\npriority = 5000");
    let answer = stage.ask(&["reload"]);
    assert!(!answer.status.success(), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("4:12"), "with its place: {answer:?}");
    let rejected = stage.event("config_rejected", |_| true);
    assert!(rejected["problems"].as_str().is_some_and(|problems| problems.contains("workers.web.priority")), "{rejected}");
    wait_for("the metric says so", || (stage.metric(GAUGE) == Some(0.0)).then_some(()));
    assert_eq!(stage.population().len(), 2);
    assert!(two.iter().all(|one| outside::process(one.pid).is_some_and(|now| now.started == one.started)));
    assert_eq!(stage.status()["workers"][0]["desired"], 2);

    stage.write("[workers.web]\ncommand = {hungry}\nreplicas = 3");
    assert!(stage.ask(&["reload"]).status.success());
    running(&stage, 3);
    wait_for("the metric says so", || (stage.metric(GAUGE) == Some(1.0)).then_some(()));
}

#[test]
fn a_worker_that_leaves_the_file_leaves_the_machine() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry child=burn=0}\n[workers.stays]\ncommand = {hungry}");
    running(&stage, 3);
    stage.write("[workers.stays]\ncommand = {hungry}\n[workers.comes]\ncommand = {hungry}");
    assert!(stage.ask(&["reload"]).status.success());
    let comes = stage.worker("comes");
    wait_for("web is gone", || {
        let now = stage.population();
        (now.len() == 2 && now.iter().any(|process| process.pid == comes)).then_some(())
    });
    wait_for("the status forgets it", || stage.status()["workers"].as_array().filter(|workers| workers.len() == 2).map(|_| ()));
}
