//! The commands people ask the running daemon with: `events`, `explain`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::stage::{Stage, wait_for};

fn lines(output: &std::process::Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn events_are_told_as_they_happen_and_afterwards() {
    let mut stage = Stage::running("[workers.web]\ncommand = {hungry}\n");
    let mut following = stage.plimsoll(&["events", "-f", "--json"]).stdout(Stdio::piped()).spawn().expect("plimsoll can be started");
    let mut told = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let mut next = |name: &str| {
        told.by_ref()
            .map(|line| serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"))
            .find(|event| event["event"] == name)
            .unwrap_or_else(|| panic!("{name} was never told"))
    };
    assert_eq!(next("worker_started")["worker"], "web", "what was before is told first");
    // Another one, which has not happened yet.
    assert!(stage.ask(&["reload"]).status.success());
    assert_eq!(next("config_reloaded")["changed"], serde_json::json!([]));

    let pid = rustix::process::Pid::from_child(&following);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is ours");
    assert_eq!(following.wait().expect("it is our child").code(), Some(0), "Ctrl-C is how it ends");

    let text = stage.ask(&["events", "--event", "config_reloaded"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.lines().count() == 1 && text.contains(" INFO  config_reloaded    settings read again"), "{text}");
    assert_eq!(stage.ask(&["events", "--event", "config_relaoded"]).status.code(), Some(2));

    // When the daemon goes, whoever follows it is told so.
    let mut following = stage.plimsoll(&["events", "-f", "--json"]).stdout(Stdio::piped()).spawn().expect("plimsoll can be started");
    let mut first = String::new();
    let mut out = BufReader::new(following.stdout.take().expect("a pipe"));
    out.read_line(&mut first).expect("text");
    assert_eq!(stage.stop(), 0);
    assert_eq!(following.wait().expect("it is our child").code(), Some(69));

    // And what it told is there without it.
    let past = stage.ask(&["events", "--json"]);
    assert!(past.status.success());
    let names: Vec<String> = lines(&past).iter().map(|event| event["event"].as_str().expect("a name").to_owned()).collect();
    for name in ["daemon_started", "worker_started", "config_reloaded", "daemon_stopping"] {
        assert!(names.iter().any(|told| told == name), "{name}: {names:?}");
    }
    assert_eq!(lines(&stage.ask(&["events", "--json", "--limit", "2"])).len(), 2);
    let files = || std::fs::read_dir(stage.path("state")).expect("it is there").count();
    let before = files();
    assert!(stage.ask(&["events"]).status.success());
    assert_eq!(files(), before, "reading makes no files");

    // A new daemon holds only its own; the database has the others.
    stage.start();
    assert!(lines(&stage.ask(&["events", "--json", "--event", "daemon_stopping"])).is_empty());
    wait_for("the record before this daemon", || {
        Some(lines(&stage.ask(&["events", "--json", "--since", "1h", "--event", "daemon_stopping"]))).filter(|found| found.len() == 1)
    });
}

#[test]
fn without_a_daemon_and_a_record_it_says_so() {
    let stage = Stage::new("");
    for args in [&["events"][..], &["events", "-f"]] {
        let output = stage.ask(args);
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no daemon is running"), "{output:?}");
    }
}
