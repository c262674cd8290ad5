//! The daemon becomes another program with the same pid: nobody but itself is to notice.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use crate::outside;
use crate::stage::{Stage, wait_for};
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
