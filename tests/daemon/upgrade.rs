//! The daemon becomes another program with the same pid: nobody but itself is to notice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use crate::output::{COUNTING, all_lines_are_there, no_capture_is_left, printing, signal, the_capture};
use crate::outside;
use crate::stage::{Stage, hungry, wait_for};
use crate::workers::{Load, free_port, get, pids, said, wait_until_serving};

/// A stage whose program is a copy of its own, to be replaced.
fn stage(settings: &str) -> Stage {
    let mut stage = Stage::new(settings);
    let program = stage.path("bin/plimsoll");
    fs::create_dir(program.parent().expect("a folder")).expect("a folder can be made");
    copy_to(&program);
    stage.program = program;
    stage
}

/// By another process: whatever this one holds open for writing, a child that is just being started by another test holds as well,
/// and then it cannot be executed.
fn copy_to(path: &Path) {
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_plimsoll")).arg(path).status();
    assert!(copied.expect("cp can be started").success());
}

/// Puts a new file in the place of the program, as a package manager does.
fn replace(stage: &Stage, by: &str) {
    let beside = stage.path("bin/plimsoll.new");
    if by.is_empty() {
        copy_to(&beside);
    } else {
        fs::write(&beside, by).expect("a file can be written");
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    fs::rename(beside, &stage.program).expect("it can be replaced");
}

/// What the descriptors of a process lead to.
fn open_files(pid: i32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    folder.flatten().filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}

/// Those that are read, and the trigger.
fn pressure_files(pid: i32) -> usize {
    open_files(pid).iter().filter(|file| file.contains("pressure")).count()
}

#[test]
fn workers_and_their_requests_do_not_notice() {
    let port = free_port();
    let mut stage = stage(&format!(
        "[workers.web]
        command = {{hungry serve-fd3 astray=slow=0}}
        listen = [\"127.0.0.1:{port}\"]
        ready = {{ http = \"http://127.0.0.1:{port}/\" }}
        [workers.resting]
        command = {{hungry}}
        [workers.broken]
        command = [\"sh\", \"-c\", \"exit 3\"]
        backoff = {{ give_up = 1 }}"
    ));
    stage.start();
    wait_until_serving(&stage, "web", 1);
    stage.event("worker_gave_up", |_| true);
    assert!(stage.ask(&["workers", "scale", "web", "2"]).status.success());
    assert!(stage.ask(&["workers", "stop", "resting"]).status.success());
    let before = wait_until_serving(&stage, "web", 2);
    let (daemon, starts) = (stage.pid(), stage.metric("plimsoll_worker_starts_total{worker=\"web\"}"));
    let listening = pressure_files(daemon);
    let load = Load::on(port, 2);
    for round in 1..=3 {
        replace(&stage, "");
        let output = stage.ask(&["upgrade"]);
        assert!(output.status.success(), "{}", said(&output));
        let upgraded = wait_for("it says so", || stage.events_named("upgraded").get(round - 1).cloned());
        // Shown, and held against the aim where it is measured: benches, not here.
        println!("unguarded for {:.1} ms", upgraded["unguarded_seconds"].as_f64().expect("seconds") * 1000.0);
        assert_eq!(upgraded["workers"], 2, "{upgraded}");
        assert_eq!(wait_until_serving(&stage, "web", 2), before);
    }
    assert!(outside::process(daemon).is_some_and(|process| process.name == "plimsoll" && process.state != 'Z'));
    // What was kept open only so that nobody waited for its end is closed now.
    wait_for("nothing of the programs before is left open", || {
        let old = open_files(daemon).iter().any(|file| file.contains("bin/plimsoll"));
        (!old && pressure_files(daemon) == listening).then_some(())
    });
    let status = stage.status();
    let state = |worker: &str| {
        status["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|state| state["name"] == worker)
            .map(|state| state["replicas"][0]["state"].clone())
    };
    assert_eq!((state("resting"), state("broken")), (Some("stopped".into()), Some("failed".into())), "what was down stays down");
    assert_eq!(stage.metric("plimsoll_worker_starts_total{worker=\"web\"}"), starts, "what was counted goes on");
    // Still its own children: their ends are told with how they ended.
    let first = Pid::from_raw(before[0] as i32).expect("a pid");
    rustix::process::kill_process(first, Signal::KILL).expect("it is there");
    let exited = stage.event("worker_exited", |event| event["pid"].as_i64() == Some(before[0]));
    assert_eq!(exited["signal"], "SIGKILL", "{exited}");
    wait_for("another serves", || (!wait_until_serving(&stage, "web", 2).contains(&before[0])).then_some(()));
    let (asked, failed) = load.end();
    // Whoever was being served by the one that was killed may be among them.
    assert!(failed.len() <= 2 && !failed.iter().any(|why| why.starts_with("connect")) && asked > 100, "{asked} answered, {failed:?}");
    assert_eq!(stage.stop(), 0);
    wait_for("nobody is left", || stage.population().is_empty().then_some(()));
    assert!(stage.groups_left().is_empty(), "{:?}", stage.groups_left());
}

#[test]
fn a_program_that_is_none_or_does_not_take_the_settings_is_refused_and_nothing_has_changed() {
    let port = free_port();
    let settings = format!("[workers.web]\ncommand = {{hungry serve-fd3}}\nlisten = [\"127.0.0.1:{port}\"]");
    let mut stage = stage(&settings);
    stage.start();
    let before = wait_until_serving(&stage, "web", 1);
    let refused = |stage: &Stage, why: &str| {
        let output = stage.ask_with(&PathBuf::from(env!("CARGO_BIN_EXE_plimsoll")), &["upgrade"]);
        assert!(output.status.code() == Some(1) && said(&output).contains(why), "{}", said(&output));
        assert_eq!(pids(stage, "web"), before);
        assert!(get(port).is_ok());
    };
    replace(&stage, "#!/bin/sh\necho this is not it >&2\nexit 1\n");
    refused(&stage, "this is not it");
    replace(&stage, "#!/bin/sh\nexit 0\n");
    refused(&stage, "does not say that it can take over");
    replace(&stage, "#!/bin/sh\nkill -SEGV $$\n");
    refused(&stage, "it was ended by SIGSEGV");
    replace(&stage, "#!/bin/sh\nexec yes no\n");
    refused(&stage, "no\nno");
    let whole = fs::metadata(&stage.program).map(|_| fs::read(env!("CARGO_BIN_EXE_plimsoll")).expect("it is there")).expect("it is there");
    let beside = stage.path("bin/half");
    fs::write(&beside, &whole[..whole.len() / 3]).expect("a file can be written");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::rename(&beside, &stage.program).expect("it can be replaced");
    refused(&stage, "does not take the settings");
    replace(&stage, "not a program at all");
    refused(&stage, "does not take the settings");
    fs::remove_file(&stage.program).expect("it is there");
    refused(&stage, "is not there any more");
    copy_to(&stage.program);
    stage.write("[workers.web]\nnonsense = 1");
    refused(&stage, "nonsense");
    stage.write(&settings);
    let output = stage.ask(&["upgrade"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(pids(&stage, "web"), before);
}

/// One that is told to end while it becomes another ends all the same, and in order.
#[test]
fn a_signal_meanwhile_is_not_lost() {
    for round in 0..5_u64 {
        let mut stage = stage("[workers.web]\ncommand = {hungry}");
        stage.start();
        wait_until_serving(&stage, "web", 1);
        std::thread::scope(|scope| {
            let stage = &stage;
            let asked = scope.spawn(|| stage.request("POST", "/admin/upgrade"));
            std::thread::sleep(std::time::Duration::from_millis(20 * round));
            stage.signal(Signal::TERM);
            let _ = asked.join();
        });
        assert_eq!(stage.end(), 0, "round {round}:\n{}", stage.log());
        wait_for("nobody is left", || stage.population().is_empty().then_some(()));
    }
}

/// A worker that is ready once the file `go` is there; the first life is at once.
fn gated(and: &str) -> String {
    let script = format!("if [ -e first ]; then until [ -e go ]; do sleep 0.02; done; fi; touch first; exec {} notify", hungry().display());
    let command = serde_json::json!(["sh", "-c", script]);
    format!("[workers.web]\ncommand = {command}\nready = {{ notify = true, within = \"60s\" }}\n{and}")
}

fn upgrade(stage: &Stage) {
    let before = stage.events_named("upgraded").len();
    replace(stage, "");
    let output = stage.ask(&["upgrade"]);
    assert!(output.status.success(), "{}", said(&output));
    wait_for("it says so", || (stage.events_named("upgraded").len() == before + 1).then_some(()));
}

fn replicas(stage: &Stage, worker: &str) -> Vec<serde_json::Value> {
    let status = stage.status();
    let state = status["workers"].as_array().into_iter().flatten().find(|state| state["name"] == worker).cloned();
    state.and_then(|state| state["replicas"].as_array().cloned()).unwrap_or_default()
}

#[test]
fn a_start_under_way_goes_on_and_may_still_be_told_of() {
    let mut stage = stage(&format!("{}[workers.later]\ncommand = {{hungry}}\nafter = [\"web\"]", gated("")));
    fs::write(stage.path("first"), "").expect("it is ours");
    stage.start();
    let first = stage.worker("web");
    upgrade(&stage);
    let now = replicas(&stage, "web");
    assert_eq!((now[0]["pid"].as_i64(), &now[0]["state"]), (Some(i64::from(first)), &"starting".into()), "{now:?}");
    assert!(stage.events_named("worker_started").iter().all(|event| event["worker"] != "later"), "who comes after it waits still");
    fs::write(stage.path("go"), "").expect("it is ours");
    stage.event("worker_ready", |event| event["pid"].as_i64() == Some(i64::from(first)));
    stage.event("worker_started", |event| event["worker"] == "later");
    assert_eq!(stage.stop(), 0);
    wait_for("nobody is left", || stage.population().is_empty().then_some(()));
}

#[test]
fn a_replacement_under_way_goes_on() {
    let mut stage = stage(&gated("recycle = { overlap = \"always\" }"));
    stage.start();
    let old = wait_until_serving(&stage, "web", 1)[0];
    assert!(stage.ask(&["workers", "recycle", "web", "--wait", "0s"]).status.success());
    let both = wait_for("a successor", || Some(replicas(&stage, "web")).filter(|all| all.len() == 2 && all[1]["pid"].is_i64()));
    assert_eq!((both[0]["pid"].as_i64(), both[1]["is_successor"].as_bool()), (Some(old), Some(true)), "{both:?}");
    let new = both[1]["pid"].as_i64().expect("a pid");
    upgrade(&stage);
    let after = replicas(&stage, "web");
    assert_eq!((after.len(), after[0]["pid"].as_i64(), after[1]["pid"].as_i64()), (2, Some(old), Some(new)), "{after:?}");
    fs::write(stage.path("go"), "").expect("it is ours");
    let recycled = stage.event("worker_recycled", |_| true);
    assert_eq!((recycled["old_pid"].as_i64(), &recycled["cause"]), (Some(old), &"manual".into()), "{recycled}");
    assert_eq!(wait_until_serving(&stage, "web", 1), [new]);
    assert_eq!(stage.metric("plimsoll_worker_recycles_total{worker=\"web\",cause=\"manual\"}"), Some(1.0));
}

#[test]
fn an_end_under_way_goes_on_and_so_do_the_failures_so_far() {
    let mut stage = stage(
        "[workers.stubborn]
        command = {hungry deaf}
        stop = { within = \"4s\" }
        [workers.broken]
        command = [\"sh\", \"-c\", \"echo x >> lives; until [ -e end ]; do sleep 0.02; done; rm end; exit 3\"]
        backoff = { first = \"10ms\", longest = \"20ms\", give_up = 3, within = \"10m\" }",
    );
    stage.start();
    let lives = |stage: &Stage| fs::read_to_string(stage.path("lives")).unwrap_or_default().lines().count();
    for life in 1..=3 {
        wait_for("the next life", || (lives(&stage) == life).then_some(()));
        fs::write(stage.path("end"), "").expect("it is ours");
        wait_for("it has ended", || (lives(&stage) == life + 1).then_some(()));
    }
    let deaf = wait_until_serving(&stage, "stubborn", 1)[0];
    assert!(stage.ask(&["workers", "stop", "stubborn", "--wait", "0s"]).status.success());
    let (restarts, ticks) =
        (replicas(&stage, "broken")[0]["restarts"].clone(), stage.metric("plimsoll_tick_duration_seconds_count").expect("a number"));
    upgrade(&stage);
    assert_eq!(replicas(&stage, "broken")[0]["restarts"], restarts);
    assert!(stage.metric("plimsoll_tick_duration_seconds_count").is_some_and(|now| now >= ticks), "what was counted goes on");
    let exited = stage.event("worker_exited", |event| event["pid"].as_i64() == Some(deaf));
    assert_eq!((&exited["signal"], &exited["reason"]), (&"SIGKILL".into(), &"deadline".into()), "{exited}");
    assert_eq!(
        wait_for("it is down", || Some(replicas(&stage, "stubborn")[0]["state"].clone()).filter(|state| state == "stopped")),
        "stopped"
    );
    // The fourth end within the time: before the upgrade there were three.
    fs::write(stage.path("end"), "").expect("it is ours");
    let gave_up = stage.event("worker_gave_up", |_| true);
    assert_eq!(gave_up["exits"], 4, "{gave_up}");
}

#[test]
fn a_command_that_was_typed_goes_on_with_what_the_file_says_of_it() {
    let mut stage = stage("[workers.main]\nstop = { within = \"2s\" }\n");
    // As awkward a word as there is: the new program is told of it when it is tried out.
    let script = "exec sleep 'infinity'; : \"\\ \u{7} = [\"";
    stage.launch_as(stage.plimsoll_run(&["sh", "-c", script]));
    wait_for("the first look", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    let before = stage.worker("main");
    upgrade(&stage);
    assert_eq!(stage.worker("main"), before);
    // What cannot be run without a command is still refused to whoever has none.
    let refused = stage.plimsoll(&["run"]).output().expect("it can be started");
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    stage.stop();
}

#[test]
fn what_workers_print_is_written_on_by_the_same_helper() {
    let mut stage = stage(&printing(COUNTING, "max_size = \"300kB\", keep = 1000"));
    stage.start();
    let helper = the_capture(&stage);
    for _ in 0..3 {
        upgrade(&stage);
        assert_eq!(the_capture(&stage).pid, helper.pid);
    }
    // The pipe is still the daemon's as well: a helper that dies is followed, and nobody who prints is lost.
    signal(&helper, Signal::KILL);
    wait_for("another helper", || (the_capture(&stage).pid != helper.pid).then_some(()));
    upgrade(&stage);
    all_lines_are_there(&stage);
    assert_eq!(stage.stop(), 0);
    no_capture_is_left(&stage);
}

#[test]
fn the_lock_of_a_singleton_is_held_throughout() {
    let mut stage = stage("[workers.only]\ncommand = {hungry}\nsingleton = true\nlock = \"{here}/only.lock\"");
    stage.start();
    wait_until_serving(&stage, "only", 1);
    let holds = |pid: i32| {
        let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours");
        folder.flatten().filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == stage.path("only.lock"))).count()
    };
    assert_eq!(holds(stage.pid()), 1);
    for _ in 0..2 {
        upgrade(&stage);
        assert_eq!(holds(stage.pid()), 1, "by the daemon too, so that it is free for nobody else between two lives");
    }
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_reload_becomes_another_program_and_takes_the_settings_in() {
    let settings = "[workers.web]\ncommand = {hungry}\n";
    let mut stage = stage(settings);
    stage.start();
    let before = wait_until_serving(&stage, "web", 1);
    let upgrades = |stage: &Stage| stage.events_named("upgraded").len();
    let output = stage.ask(&["reload"]);
    assert!(output.status.success() && said(&output).contains("nothing changed") && upgrades(&stage) == 0, "{}", said(&output));
    // Refused whole, whatever the settings say: the old one runs on.
    replace(&stage, "#!/bin/sh\necho this is not it >&2\nexit 1\n");
    stage.write(&format!("{settings}[workers.more]\ncommand = {{hungry}}\n"));
    let output = stage.ask_with(&PathBuf::from(env!("CARGO_BIN_EXE_plimsoll")), &["reload"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("this is not it"), "{}", said(&output));
    assert_eq!((pids(&stage, "web"), pids(&stage, "more")), (before.clone(), Vec::new()));
    assert_eq!(stage.metric("plimsoll_config_last_reload_successful"), Some(0.0));
    // One that anybody may write to.
    replace(&stage, "");
    fs::set_permissions(&stage.program, fs::Permissions::from_mode(0o777)).expect("it is ours");
    let output = stage.ask(&["reload"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("others may write to it"), "{}", said(&output));
    fs::set_permissions(&stage.program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let output = stage.ask(&["reload", "--dry-run"]);
    assert!(output.status.success() && said(&output).contains("would become it"), "{}", said(&output));
    assert_eq!(upgrades(&stage), 0);
    let output = stage.ask(&["reload"]);
    assert!(output.status.success() && said(&output).contains("now version"), "{}", said(&output));
    wait_for("it says so", || (upgrades(&stage) == 1).then_some(()));
    wait_until_serving(&stage, "more", 1);
    assert_eq!(pids(&stage, "web"), before);
    // By a signal too, and as long as the settings let it; those that are being read count.
    replace(&stage, "");
    stage.write(&format!("[daemon]\nupgrade = \"never\"\n{settings}"));
    let output = stage.ask(&["reload"]);
    assert!(output.status.success() && said(&output).contains("daemon.upgrade"), "{}", said(&output));
    wait_for("it is gone", || pids(&stage, "more").is_empty().then_some(()));
    assert_eq!(upgrades(&stage), 1);
    stage.write(settings);
    stage.signal(Signal::HUP);
    wait_for("it says so", || (upgrades(&stage) == 2).then_some(()));
    assert_eq!(wait_until_serving(&stage, "web", 1), before);
}

#[test]
fn an_address_that_is_taken_is_found_out_before() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let settings = "[workers.web]\ncommand = {hungry}\n";
    let mut stage = stage(settings);
    stage.start();
    let before = wait_until_serving(&stage, "web", 1);
    let address = taken.local_addr().expect("it is bound");
    stage.write(&format!("{settings}[workers.more]\ncommand = {{hungry}}\nlisten = [\"{address}\"]"));
    replace(&stage, "");
    let output = stage.ask(&["upgrade"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("already in use"), "{}", said(&output));
    assert_eq!(pids(&stage, "web"), before);
    drop(taken);
    upgrade(&stage);
    wait_until_serving(&stage, "more", 1);
    assert_eq!(pids(&stage, "web"), before);
}

#[test]
fn a_service_of_systemd_notices_another_program_by_itself_and_tells_of_a_bad_one_once() {
    let mut stage = stage("[sampling]\ninterval = \"200ms\"\n[policy.cpu]\non_high = [\"notify\"]\n[workers.web]\ncommand = {hungry}\n");
    let plain = stage.plimsoll(&["run"]);
    let mut service = std::process::Command::new("sh");
    service.args(["-c", "export SYSTEMD_EXEC_PID=$$; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    service.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    service.current_dir(stage.path("")).stdin(std::process::Stdio::null());
    stage.launch_as(service);
    stage.event("daemon_started", |_| true);
    let before = wait_until_serving(&stage, "web", 1);
    replace(&stage, "#!/bin/sh\necho this is not it >&2\nexit 1\n");
    let refused = stage.event("upgrade_refused", |_| true);
    assert!(refused["error"].as_str().is_some_and(|why| why.contains("this is not it")), "{refused}");
    // Another look at least before the next is noticed.
    let ticks = stage.metric("plimsoll_tick_duration_seconds_count").expect("a number");
    wait_for("another look", || stage.metric("plimsoll_tick_duration_seconds_count").filter(|now| *now > ticks + 60.0));
    replace(&stage, "");
    let upgraded = stage.event("upgraded", |_| true);
    assert_eq!(upgraded["workers"], 1, "{upgraded}");
    assert_eq!(stage.events_named("upgrade_refused").len(), 1, "once for each file");
    assert_eq!(wait_until_serving(&stage, "web", 1), before);
    let cause = stage.events_named("upgrading")[0]["cause"].clone();
    assert_eq!(cause, "another file was found");
}
