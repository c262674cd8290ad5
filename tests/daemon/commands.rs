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

const FILLING: &str = "[policy.memory]
limit = \"200MB\"
high = \"50%\"
low = \"40%\"
critical = \"90%\"
sustain = \"500ms\"
on_high = [\"shed\", \"throttle\"]
[workers.leaky]
command = {hungry leak=20 cap=140}
[workers.dear]
command = {hungry}
protected = true
";

fn text(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_explanation_names_reading_rule_ranking_action_effect_and_end() {
    let stage = Stage::running(FILLING);
    // Far from the line all is calm, and the ladder can be seen beforehand.
    let calm = text(&stage.ask(&["explain", "memory"]));
    assert!(calm.contains("policy.memory.high = \"50%\"") && calm.contains("shed passes: no running worker has a shed_signal"), "{calm}");

    stage.event("throttle_engaged", |event| event["resource"] == "memory");
    let told = wait_for("the effect is measured", || {
        let told = text(&stage.ask(&["explain", "memory"]));
        let measured = told.contains("before,") && told.contains("after a second");
        Some(told).filter(|told| measured && told.contains("memory is high"))
    });
    // Lines are broken where the width says.
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "memory is high, throttled for ",
        "(limit from settings)",
        "memory of the workers together",
        "high 50.0% (95.4 MiB), low 40.0% (76.3 MiB), critical 90.0% (172 MiB)",
        "plimsoll.toml:3:1)",
        "policy.memory.on_critical = [\"recycle\", \"kill\"] (built-in)",
        "ranking 1. leaky.0: priority 0, ",
        "– dear.0: spared, it is protected: priority 0",
        "throttle leaky.0: done",
        "leaky.0 grows fastest",
        "ends when usage under 40.0 % (80.0 MB) for 0.2 s; then what is on is taken off",
    ] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }

    let worker = text(&stage.ask(&["explain", "leaky"]));
    assert!(worker.contains("leaky: 1 of 1 running") && worker.contains("for memory; `plimsoll explain"), "{worker}");
    let everything = text(&stage.ask(&["explain"]));
    assert!(
        everything.contains("memory is high") && everything.contains("\ncpu is normal: ") && everything.contains("\ndear runs free"),
        "{everything}"
    );

    let json: Value = serde_json::from_str(&text(&stage.ask(&["explain", "memory", "--json"]))).expect("JSON");
    let why = &json["resources"][0]["why"];
    assert_eq!((&why["resource"], &why["candidates"][0]["worker"]), (&"memory".into(), &"leaky.0".into()), "{json:#}");
    assert!(why["settings"].as_array().is_some_and(|all| all.iter().any(|one| one["key"] == "policy.memory.sustain")), "{json:#}");

    let unknown = stage.ask(&["explain", "memroy"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there are cpu, memory, "), "{unknown:?}");
}

#[test]
fn an_explanation_says_why_a_worker_ended_and_when_it_starts_again() {
    let stage = Stage::running("[workers.short]\ncommand = [\"sh\", \"-c\", \"exit 3\"]\nbackoff = { first = \"30s\" }\n");
    stage.event("worker_exited", |event| event["worker"] == "short");
    let told = wait_for("it waits for its next start", || {
        Some(text(&stage.ask(&["explain", "short"]))).filter(|told| told.contains("next start in"))
    });
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in
        ["short: 0 of 1 running", "short.0 backoff", "ago, error: short.0 ended with code 3", "workers.short.backoff.first = \"30s\""]
    {
        assert!(told.contains(expected), "{expected}\n{told}");
    }
}

#[test]
fn a_first_file_is_written_for_the_platform_and_passes_the_check() {
    let mut stage = Stage::new("# mine\n");
    let file = stage.path("plimsoll.toml");
    let refused = stage.ask(&["init"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "# mine\n", "what is there is left alone");

    std::fs::write(stage.path("Procfile"), "web: sh -c true\nqueue: no-such-program --now\n").expect("it can be written");
    let marks = [
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1", "Kubernetes"),
        ("RAILWAY_SERVICE_ID", "1", "Railway"),
        ("RENDER", "true", "Render"),
        ("FLY_APP_NAME", "shop", "Fly"),
        ("container", "podman", ""),
        ("INVOCATION_ID", "6d1e", ""),
    ];
    for (name, value, platform) in marks {
        stage.env = vec![(name.to_owned(), value.to_owned())];
        let written = stage.ask(&["init", "--force"]);
        assert!(written.status.success(), "{written:?}");
        let content = std::fs::read_to_string(&file).expect("it is there");
        assert!(content.contains(platform) && content.contains("[workers.web]") && content.contains("\n# [workers.queue]"), "{content}");
        let checked = stage.ask(&["check"]);
        assert!(checked.status.success(), "{checked:?}\n{content}");
        assert_eq!(text(&stage.ask(&["init", "--stdout"])), content);
    }
    let others: Vec<String> = std::fs::read_dir(stage.path("."))
        .expect("it is there")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("plimsoll.toml."))
        .collect();
    assert_eq!(others, [""; 0], "nothing is left beside it");
}
