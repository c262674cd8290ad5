//! Memory: a leaking worker is asked, then replaced before its limit; never somebody who is protected or dearer.

use std::fs;

use crate::outside;
use crate::stage::{Stage, wait_for};

/// What the workers have written about themselves.
fn said(stage: &Stage, log: &str) -> Vec<String> {
    fs::read_to_string(stage.path(log)).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_leaking_worker_is_asked_then_replaced_before_its_limit() {
    let stage = Stage::running(
        "[policy.memory]
        sustain = \"500ms\"
        [workers.leaky]
        command = {hungry leak=20 gives-back=10 log={here}/leaky.log}
        shed_signal = \"SIGUSR1\"
        limits.memory = \"120MB\"",
    );
    let first = stage.worker("leaky");
    let recycled = stage.event("worker_recycled", |event| event["worker"] == "leaky");
    assert_eq!((&recycled["cause"], recycled["old_pid"].as_i64()), (&"memory".into(), Some(first.into())), "{recycled}");
    let exited = stage.event("worker_exited", |event| event["pid"] == first);
    assert_eq!((&exited["reason"], &exited["exit_code"]), (&"recycled".into(), &0.into()), "asked to end, not killed: {exited}");
    let told = exited["peak_memory_bytes"].as_u64().expect("the peak is told");
    assert!((60_000_000..120_000_000).contains(&told), "{exited}");

    let said = said(&stage, "leaky.log");
    let place = |what: &str| said.iter().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {said:?}"));
    assert!(place("asked to shed") < place("asked to end"), "{said:?}");
    let peak: u64 = said[place("asked to end")].rsplit(' ').next().and_then(|word| word.parse().ok()).expect("its own peak");
    assert!(peak < 120_000_000, "over its limit: {peak}");

    let second = wait_for("its replacement", || Some(stage.worker("leaky")).filter(|pid| *pid != first));
    assert!(outside::process(second).is_some_and(|process| process.state != 'Z'));
    assert_eq!(stage.metric("plimsoll_worker_exits_total{worker=\"leaky\",reason=\"oom\"}"), Some(0.0));
    wait_for("it is counted", || {
        stage.metric("plimsoll_worker_recycles_total{worker=\"leaky\",cause=\"memory\"}").filter(|count| *count >= 1.0)
    });
}

#[test]
fn the_victim_is_who_matters_least_and_never_who_is_protected() {
    let stage = Stage::running(
        "[policy.memory]
        limit = \"200MB\"
        high = \"70%\"
        low = \"60%\"
        critical = \"80%\"
        sustain = \"500ms\"
        on_high = [\"notify\"]
        on_critical = [\"recycle\"]
        [workers.sacred]
        command = {hungry leak=60 cap=60}
        protected = true
        priority = -10
        [workers.dear]
        command = {hungry leak=60 cap=60}
        priority = 10
        [workers.cheap]
        command = {hungry leak=20 cap=60}
        priority = 0",
    );
    let (sacred, dear) = (stage.worker("sacred"), stage.worker("dear"));
    // All three together are over the line; the two that are spared are under it.
    let recycled = stage.event("worker_recycled", |_| true);
    assert_eq!(recycled["worker"], "cheap", "{recycled}");
    for pid in [sacred, dear] {
        assert!(outside::process(pid).is_some_and(|process| process.state != 'Z'), "the first lives on");
    }
    let ended = stage.events_named("worker_exited");
    assert!(ended.iter().all(|event| event["worker"] == "cheap"), "{ended:?}");
}

#[test]
fn a_worker_over_its_own_recycle_line_is_replaced() {
    let stage = Stage::running(
        "[policy.memory]
        sustain = \"500ms\"
        [workers.fat]
        command = {hungry leak=100 cap=70 log={here}/fat.log}
        recycle = { memory = \"50MB\", sustain = \"500ms\" }",
    );
    let first = stage.worker("fat");
    let recycled = stage.event("worker_recycled", |event| event["worker"] == "fat");
    assert_eq!(recycled["old_pid"].as_i64(), Some(first.into()));
    assert_eq!(said(&stage, "fat.log").iter().filter(|line| line.starts_with("asked to end")).count(), 1);
    // Measured to the end, although the replica it is about has gone: nothing is left of that.
    let told = stage.event("action_effective", |event| event["action"] == "recycle");
    assert!(told["before"].as_f64().is_some_and(|share| share > 0.5), "{told}");
    assert_eq!((told["after_1s"].as_f64(), told["after_10s"].as_f64()), (Some(0.0), Some(0.0)), "{told}");
}
