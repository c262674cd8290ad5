//! Starting, restarting, stopping: counts, pauses, exit codes, order, and nobody left behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::crash::NO_GROUPS;
use crate::outside;
use crate::stage::{Stage, hungry, skip, wait_for};

#[test]
fn as_many_replicas_run_as_were_asked_for_each_in_a_session_of_its_own() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\nreplicas = 3");
    let three = wait_for("three replicas", || Some(stage.population()).filter(|all| all.len() == 3));
    for replica in &three {
        assert_eq!((replica.session, replica.parent), (replica.pid, stage.pid()), "{replica:?}");
    }
    wait_for("three are wanted", || stage.metric("plimsoll_worker_replicas_desired{worker=\"web\"}").filter(|count| *count == 3.0));
    three[1].kill();
    let ended = stage.event("worker_exited", |event| event["pid"] == three[1].pid);
    assert_eq!((&ended["signal"], &ended["reason"]), (&"SIGKILL".into(), &"signal".into()));
    wait_for("three again", || Some(stage.population()).filter(|all| all.len() == 3 && !all.contains(&three[1])));
}

#[test]
fn replacements_that_were_asked_for_are_no_crash_loop() {
    let stage = Stage::running(
        "[workers.web]
        command = {hungry}
        backoff = { first = \"50ms\", longest = \"1s\", give_up = 2, within = \"5m\" }
        recycle = { lifetime = \"1s\", jitter = \"0%\" }
        [sampling]
        interval = \"200ms\"",
    );
    wait_for("it was replaced more often than it may crash", || {
        stage.metric("plimsoll_worker_recycles_total{worker=\"web\",cause=\"lifetime\"}").filter(|count| *count >= 4.0)
    });
    let victim = wait_for("one is running", || stage.population().first().cloned());
    let starts = stage.events_named("worker_started").len();
    victim.kill();
    wait_for("a first crash is followed by a start", || (stage.events_named("worker_started").len() > starts).then_some(()));
    assert!(stage.events_named("worker_gave_up").is_empty());
}

#[test]
fn a_crash_loop_is_slowed_then_given_up_and_the_daemon_goes_on() {
    let stage = Stage::running(
        "[workers.broken]
        command = [\"sh\", \"-c\", \"exit 1\"]
        backoff = { first = \"100ms\", longest = \"10s\", give_up = 4, within = \"5m\" }
        [workers.sound]
        command = {hungry}",
    );
    let sound = stage.worker("sound");
    let gave_up = stage.event("worker_gave_up", |event| event["worker"] == "broken");
    assert_eq!(gave_up["exits"], 5, "four starts again, then no more: {gave_up}");
    let times = |name: &str| -> Vec<jiff::Timestamp> {
        let events = stage.events_named(name).into_iter().filter(|event| event["worker"] == "broken");
        events.map(|event| event["timestamp"].as_str().expect("a time").parse().expect("a time")).collect()
    };
    let (starts, ends) = (times("worker_started"), times("worker_exited"));
    let pauses: Vec<f64> = ends.iter().zip(&starts[1..]).map(|(end, start)| start.duration_since(*end).as_secs_f64()).collect();
    // The first to end early is replaced at once. A tenth is taken off at random, and an end is told a little after it was.
    let doubling = [0.0, 0.1, 0.2, 0.4];
    assert!(pauses.len() == 4 && pauses.iter().zip(doubling).all(|(pause, meant)| *pause >= 0.4 * meant), "{pauses:?}");
    assert!(pauses.is_sorted(), "{pauses:?}");
    wait_for("it counts as failed", || {
        stage.metric("plimsoll_worker_replicas{worker=\"broken\",state=\"failed\"}").filter(|count| *count == 1.0)
    });
    assert!(outside::process(sound).is_some_and(|process| process.state != 'Z'));
    assert!(stage.ask(&["health"]).status.success());
}

#[test]
fn the_commands_end_is_the_daemons_end() {
    let killed = "kill -9 $$";
    let cases: [(&str, &[&str], i32); 6] = [
        ("clean", &["sh", "-c", "exit 0"], 0),
        ("its own code", &["sh", "-c", "exit 7"], 7),
        ("killed", &["sh", "-c", killed], 128 + 9),
        ("not there", &["/nonexistent/command"], 127),
        ("not in the path", &["no-such-command-anywhere"], 127),
        ("not executable", &["/etc/passwd"], 126),
    ];
    for (name, command, code) in cases {
        let mut stage = Stage::new("");
        stage.launch_as(stage.plimsoll_run(command));
        assert_eq!(stage.end(), code, "{name}: {}", stage.log());
        assert!(!stage.socket().exists(), "{name}: the socket is left");
    }
}

#[test]
fn a_command_gets_the_signals_and_the_daemon_its_code() {
    let mut stage = Stage::new("");
    let script = "trap 'exit 3' TERM; trap 'echo usr2 >> seen' USR2; echo up > seen; while :; do sleep 0.05; done";
    stage.launch_as(stage.plimsoll_run(&["sh", "-c", script]));
    wait_for("the command is up", || fs::read_to_string(stage.path("seen")).ok());
    stage.signal(Signal::USR2);
    wait_for("the signal is passed on", || fs::read_to_string(stage.path("seen")).ok().filter(|seen| seen.contains("usr2")));
    stage.signal(Signal::TERM);
    // `run -- COMMAND` speaks for its command, as a shell or an init shim would.
    assert_eq!(stage.end(), 3);
}

#[test]
fn sigterm_ends_every_tree_whole() {
    let mut stage = Stage::running(
        "[workers.tree]
        command = {hungry child=burn=0 astray=log={here}/astray.log astray=deaf}
        stop = { within = \"1s\" }
        [workers.deaf]
        command = {hungry deaf log={here}/deaf.log child=deaf}
        stop = { within = \"1s\" }",
    );
    wait_for("everybody is there", || (stage.population().len() == 6).then_some(()));
    wait_for("the astray one is up", || stage.path("astray.log").exists().then_some(()));
    wait_for("the deaf one is up", || stage.path("deaf.log").exists().then_some(()));
    stage.signal(Signal::TERM);
    let begun = Instant::now();
    assert_eq!(stage.end(), 0, "{}", stage.log());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(stage.population(), []);
    let deaf = fs::read_to_string(stage.path("deaf.log")).expect("its log");
    assert!(deaf.contains("asked to end and does not"), "asked first: {deaf}");
    let ended = stage.events_named("worker_exited");
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().any(|event| event["worker"] == "deaf" && event["signal"] == "SIGKILL"), "{ended:?}");
    assert!(!stage.socket().exists());
    assert_eq!(stage.groups_left(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn workers_are_stopped_before_those_they_come_after() {
    let mut stage = Stage::running(
        "[workers.a-base]
        command = {hungry log={here}/base.log}
        [workers.middle]
        command = {hungry log={here}/middle.log}
        after = [\"a-base\"]
        [workers.top]
        command = {hungry log={here}/top.log}
        after = [\"middle\"]",
    );
    for log in ["base.log", "middle.log", "top.log"] {
        wait_for(log, || stage.path(log).exists().then_some(()));
    }
    assert_eq!(stage.stop(), 0);
    let order = |name: &str| -> Vec<String> {
        stage.events_named(name).iter().map(|event| event["worker"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(order("worker_started"), ["a-base", "middle", "top"]);
    assert_eq!(order("worker_exited"), ["top", "middle", "a-base"]);
}

#[test]
fn the_whole_shutdown_keeps_its_deadline() {
    let mut stage = Stage::new(
        "[daemon]\nshutdown_timeout = \"1s\"\n[workers.deaf]\ncommand = {hungry deaf log={here}/log}\nstop = { within = \"1h\" }",
    );
    stage.start();
    wait_for("it is up", || stage.path("log").exists().then_some(()));
    stage.signal(Signal::TERM);
    let begun = Instant::now();
    assert_eq!(stage.end(), 0);
    assert!(begun.elapsed() >= Duration::from_millis(900) && begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(stage.population(), []);
}

#[test]
fn survivors_of_a_worker_that_has_ended_are_ended_before_it_is_replaced() {
    let stage = Stage::running(
        "[workers.tree]\ncommand = {hungry child=deaf astray=deaf after=300 exit=1}\nbackoff = { first = \"50ms\" }\nstop = { within = \"200ms\" }",
    );
    let ended = stage.event("worker_exited", |event| event["worker"] == "tree");
    assert_eq!((&ended["exit_code"], &ended["survivors_killed"]), (&1.into(), &2.into()), "{ended}");
}

/// As `su` does it: asked to end, it kills its child and leaves the grandchild, which is in a session of its own, to whoever
/// takes orphans. It is stopped as soon as the grandchild is there, before any look at processes has to have seen it.
#[test]
fn a_grandchild_in_a_session_of_its_own_is_ended_without_a_group_that_knows_it() {
    let grandchild = "setsid sh -c 'echo > up; exec sleep 1000' & wait";
    let script = format!("trap 'kill -9 $child; exit 0' TERM; sh -c \"{grandchild}\" & child=$!; wait");
    let mut stage = Stage::running(&format!("{NO_GROUPS}[workers.tree]\ncommand = [\"sh\", \"-c\", {}]", serde_json::json!(script)));
    wait_for("the grandchild is there", || stage.path("up").exists().then_some(()));
    let everybody = stage.population();
    assert_eq!(stage.stop(), 0);
    let left: Vec<_> = everybody.iter().filter(|one| outside::process(one.pid).is_some_and(|now| now.started == one.started)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn orphans_are_reaped() {
    // Each turn leaves an orphan behind that ends a moment later.
    let script = "while :; do ( ( sleep 0.02 ) & ) ; sleep 0.02; echo turn >> turns; done";
    let stage = Stage::running(&format!("[workers.parent]\ncommand = [\"sh\", \"-c\", \"{script}\"]"));
    wait_for("many orphans were made", || fs::read_to_string(stage.path("turns")).ok().filter(|turns| turns.lines().count() >= 40));
    wait_for("no zombie is left", || (!outside::children(stage.pid()).iter().any(|child| child.state == 'Z')).then_some(()));
}

#[test]
fn as_pid_1_it_reaps_and_ends_everything() {
    let works = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !works.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(&format!("no process namespace can be made: {works:?}"));
    }
    let stage = Stage::new("");
    // The orphan is handed to PID 1 and must be reaped by it; the second stays and must be ended.
    let script = "( ( sleep 0.1; echo gone >> orphan ) & ); ( setsid sleep 1000 & ); sleep 0.6; \
                  cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' > zombies; exit 5";
    let mut command = Command::new("unshare");
    command.args(["-pf", "--mount-proc", "--kill-child"]);
    let inner = stage.plimsoll_run(&["sh", "-c", script]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(outside::MARK, stage.path(""));
    command.current_dir(stage.path(""));
    let output = command.output().expect("unshare can be started");
    assert_eq!(output.status.code(), Some(5), "{}{:?}", String::from_utf8_lossy(&output.stderr), output.status.signal());
    assert!(stage.path("orphan").exists());
    assert_eq!(fs::read_to_string(stage.path("zombies")).unwrap_or_default().trim(), "0");
    let marked = outside::marked(&stage.path(""));
    assert_eq!(marked, [], "nobody is left");
}

#[test]
fn a_worker_that_ends_cleanly_and_is_not_to_be_restarted_stays_down() {
    let stage = Stage::running(&format!(
        "[workers.once]\ncommand = [\"{hungry}\", \"after=10\"]\nrestart = \"on-failure\"\n[workers.never]\ncommand = [\"{hungry}\", \"after=10\", \"exit=1\"]\nrestart = \"never\"",
        hungry = hungry().display()
    ));
    for worker in ["once", "never"] {
        stage.event("worker_exited", |event| event["worker"] == worker);
        let stopped = format!("plimsoll_worker_replicas{{worker=\"{worker}\",state=\"stopped\"}}");
        wait_for(&stopped, || (stage.metric(&stopped) == Some(1.0)).then_some(()));
    }
    assert_eq!(stage.events_named("worker_started").len(), 2);
}
