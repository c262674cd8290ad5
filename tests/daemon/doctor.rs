//! `doctor`: says what works here by doing it, leaves nothing behind, and stays honest beside a daemon and on a folder.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::adopt::Stranger;
use crate::stage::{Stage, skip, wait_for};

/// The findings, by what they are about.
fn findings(output: &Output) -> Vec<Value> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let failed = report["findings"].as_array().expect("a list").iter().any(|finding| finding["level"] == "fail");
    assert_eq!((report["ok"].as_bool(), output.status.code()), (Some(!failed), Some(i32::from(failed))), "{report:#}");
    report["findings"].as_array().expect("a list").clone()
}

#[track_caller]
fn about<'a>(findings: &'a [Value], what: &str) -> (&'a str, &'a str) {
    let finding = findings.iter().find(|finding| finding["what"] == what).unwrap_or_else(|| panic!("{what}: {findings:#?}"));
    (finding["level"].as_str().expect("a level"), finding["found"].as_str().expect("text"))
}

/// Folders below the control groups that are named for this doctor.
fn groups_of_doctor(pid: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend((entry.file_name() == *format!("plimsoll-doctor-{pid}")).then(|| entry.path()));
                folders.push(entry.path());
            }
        }
    }
    found
}

const WORKERS: &str = "[http]
listen = []
[workers.web]
command = {hungry}
directory = \"{here}\"
shed_signal = \"SIGUSR1\"
[workers.free]
command = {hungry}
throttle = \"never\"
protected = true
";

#[test]
fn what_works_is_found_by_doing_it_and_nothing_is_left() {
    let stage = Stage::new(WORKERS);
    let doctor = stage.plimsoll(&["doctor", "--json"]).stdout(Stdio::piped()).spawn().expect("plimsoll can be started");
    let pid = doctor.id();
    let found = findings(&doctor.wait_with_output().expect("it is our child"));
    assert!(groups_of_doctor(pid).is_empty(), "left behind: {:?}", groups_of_doctor(pid));

    assert_eq!(about(&found, "pidfd").0, "ok");
    let (level, told) = about(&found, "SIGSTOP and SIGCONT");
    assert!(level == "ok" && told.starts_with("seen stopped after"), "{told}");
    for what in ["runtime folder", "state folder", "web program", "web directory"] {
        assert_eq!(about(&found, what).0, "ok", "{what}");
    }
    assert_eq!(about(&found, "policy.memory.on_high shed"), ("ok", "works: asks web"));
    assert_eq!(about(&found, "policy.memory.on_critical recycle"), ("ok", "works: may take web"));
    let throttle = about(&found, "policy.cpu.on_high throttle").1;
    assert!(throttle.contains("free never, as it says") && throttle.starts_with("works: "), "{throttle}");

    match found.iter().find(|finding| finding["what"] == "CPU quota" && finding["level"] == "ok") {
        Some(quota) => {
            let told = quota["found"].as_str().expect("text");
            let used: f64 = told.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("what it used");
            assert!(used < 0.3, "a busy child was held: {told}");
            assert!(throttle.contains("web by cgroup"), "{throttle}");
        }
        None => skip("no CPU quota can be set here, or the machine was too busy to see it hold"),
    }
    let text = String::from_utf8_lossy(&stage.ask(&["doctor"]).stdout).into_owned();
    assert!(text.contains("\ncontrol groups\n") && text.trim_end().ends_with("no failure"), "{text}");
}

#[test]
fn beside_a_daemon_the_command_that_was_typed_counts_as_its_worker() {
    let mut stage = Stage::new("[workers.main]\nshed_signal = \"SIGUSR1\"\n");
    let alone = findings(&stage.ask(&["doctor", "--json"]));
    assert_eq!(about(&alone, "main program"), ("note", "not known here: it is to stand after `plimsoll run --`"));
    let mut run = stage.plimsoll(&["run"]);
    run.args(["--", "sleep", "infinity"]);
    stage.launch_as(run);
    wait_for("the first look", || stage.request("GET", "/healthz").filter(|reply| reply.status == 200));
    let beside = findings(&stage.ask(&["doctor", "--json"]));
    let (level, program) = about(&beside, "main program");
    assert!(level == "ok" && program.ends_with("/sleep"), "{program}");
    assert_eq!(about(&beside, "policy.memory.on_high shed"), ("ok", "works: asks main"));
    stage.stop();
}

#[test]
fn ended_half_way_it_leaves_nothing_either() {
    let stage = Stage::new(WORKERS);
    let mut doctor = stage.plimsoll(&["doctor"]).stdout(Stdio::null()).spawn().expect("plimsoll can be started");
    // In the midst of it, if there are groups to be in the midst of.
    wait_for("it is at work or done", || {
        (!groups_of_doctor(doctor.id()).is_empty() || matches!(doctor.try_wait(), Ok(Some(_)))).then_some(())
    });
    let pid = rustix::process::Pid::from_child(&doctor);
    // Not reaped yet, so the number is still its own; it may have ended.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    let code = doctor.wait().expect("it is our child").code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    assert!(groups_of_doctor(doctor.id()).is_empty(), "left behind: {:?}", groups_of_doctor(doctor.id()));
}

#[test]
fn what_fails_is_an_exit_code_and_has_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let mut stage = Stage::new("");
    stage.set = vec![format!("http.listen=[\"{address}\"]")];
    let output = stage.ask(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = findings(&output);
    assert_eq!(about(&found, &format!("port {address}")), ("fail", "somebody else listens on it"));
    let bad = found.iter().filter(|finding| ["warn", "fail"].contains(&finding["level"].as_str().expect("a level")));
    assert!(bad.clone().count() > 0 && bad.clone().all(|finding| finding["remedy"].is_string()), "{found:#?}");
    drop(taken);
}

#[test]
fn each_job_is_asked_whether_it_finds_what_it_is_for() {
    let stage = Stage::new(
        "[jobs.audio]\nkind = \"files\"\npaths = [\"{here}/audio\"]\n
         [jobs.homes]\nkind = \"files\"\npaths = [\"/etc\"]\n
         [jobs.later]\nkind = \"sessions\"\ndatabase = \"{here}/later.db\"\n
         [jobs.copies]\nkind = \"backup\"\ndatabases = [\"{here}/app.db\"]\nto = \"{here}/copies\"\n",
    );
    std::fs::create_dir(stage.path("audio")).expect("it is ours");
    std::fs::write(stage.path("app.db"), vec![0; 4096]).expect("it is ours");
    let found = findings(&stage.ask(&["doctor", "--json"]));
    assert_eq!(about(&found, "audio").0, "ok");
    let (level, told) = about(&found, "homes");
    assert!(level == "fail" && told.contains("could not search /etc"), "{told}");
    let (level, told) = about(&found, "later");
    assert!(level == "warn" && told.ends_with("is not there yet"), "{told}");
    assert_eq!(about(&found, "copies").0, "ok");
    assert!(!stage.path("copies").exists(), "nothing is made");
}

#[test]
fn with_wrong_settings_the_machine_is_examined_all_the_same() {
    let mut stage = Stage::new("[policy.memroy]\nhigh = 1\n");
    let wrong = [vec![], vec!["policy.memory.high=nonsense".to_owned()]];
    for set in wrong {
        stage.set = set;
        let output = stage.ask(&["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(78), "wrong settings are a problem of their own: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("memroy"), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        let found = report["findings"].as_array().expect("a list");
        let (level, told) = about(found, "settings");
        assert!(level == "fail" && told.ends_with("so what follows is about the defaults"), "{told}");
        assert_eq!(about(found, "pidfd").0, "ok");
    }
}

#[test]
fn beside_a_daemon_it_says_whose_things_are() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}\n");
    stage.set = vec!["http.listen=[\"127.0.0.1:0\"]".to_owned()];
    stage.start();
    let address = stage.status()["daemon"]["listening"][0].as_str().expect("an address").to_owned();
    stage.set = vec![format!("http.listen=[\"{address}\"]")];
    let found = findings(&stage.ask(&["doctor", "--json"]));
    assert_eq!(about(&found, &format!("port {address}")), ("ok", "the running daemon listens on it"));
    let (level, told) = about(&found, "daemon");
    assert!(level == "ok" && told.contains(&format!("pid {}", stage.pid())), "{told}");
    let environment = &stage.status()["environment"];
    assert_eq!(about(&found, "daemon: memory pressure"), ("note", environment["pressure"].as_str().expect("text")));
    let limitations: Vec<_> =
        found.iter().filter(|finding| finding["what"] == "daemon: limitation").map(|finding| &finding["found"]).collect();
    assert_eq!(limitations, environment["limitations"].as_array().expect("a list").iter().collect::<Vec<_>>());
    // It has done no harm.
    assert_eq!(stage.worker("web"), stage.worker("web"));
    assert!(stage.events_named("worker_exited").is_empty() && stage.events_named("degraded").is_empty());
}

#[test]
fn a_machine_that_is_a_folder_is_only_read() {
    let hosts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hosts");
    let mut seen = 0;
    for entry in std::fs::read_dir(hosts).expect("the machines are there").flatten().filter(|entry| entry.path().join("proc").is_dir()) {
        let mut stage = Stage::new("[http]\nlisten = []\n");
        for (key, folder) in [("proc", "proc"), ("sys", "sys"), ("cgroup", "cgroup")] {
            stage.set.push(format!("host.{key}={}", entry.path().join(folder).display()));
        }
        let found = findings(&stage.ask(&["doctor", "--json"]));
        assert_eq!(about(&found, "signals, priorities, memory").1, "not tried: this machine is a folder", "{:?}", entry.path());
        assert_eq!(about(&found, "memory limit").0, "ok", "{:?}", entry.path());
        assert!(!found.iter().any(|finding| finding["what"] == "pidfd" || finding["what"] == "CPU quota"), "{found:#?}");
        seen += 1;
    }
    assert!(seen >= 9, "only {seen} machines");
}

#[test]
fn adopted_workers_and_singletons_are_looked_for_where_they_would_be() {
    let stage = Stage::new(
        "[http]
        listen = []
        [workers.there]
        adopt = { pidfile = \"{here}/there.pid\" }
        [workers.gone]
        adopt = { pidfile = \"{here}/gone.pid\" }
        [workers.own]
        command = {hungry}
        singleton = true
        [workers.shared]
        command = {hungry}
        singleton = true
        lock = \"{here}/shared.lock\"
        [workers.astray]
        command = {hungry}
        singleton = true
        lock = \"{here}/none/shared.lock\"",
    );
    let somebody = Stranger::start(&stage, "");
    std::fs::write(stage.path("there.pid"), somebody.pid().to_string()).expect("a file");
    let lock = std::fs::File::create(stage.path("shared.lock")).expect("a file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("it is free");
    let found = findings(&stage.ask(&["doctor", "--json"]));
    assert_eq!(about(&found, "there process").0, "ok");
    assert!(about(&found, "there process").1.contains(&format!("pid {}", somebody.pid())), "{found:#?}");
    assert!(matches!(about(&found, "gone process"), ("warn", why) if why.contains("the file is not there")), "{found:#?}");
    assert!(matches!(about(&found, "own lock"), ("ok", told) if told.contains("own.lock can be made")), "{found:#?}");
    assert!(matches!(about(&found, "shared lock"), ("ok", told) if told.contains("is held")), "{found:#?}");
    assert!(matches!(about(&found, "astray lock"), ("fail", told) if told.contains("its folder is not there")), "{found:#?}");
    assert!(!stage.path("none").exists() && !stage.path("state/own.lock").exists(), "the doctor made something");
    // Neither may be touched in this way, and the others may.
    for rung in ["recycle", "kill"] {
        let (level, told) = about(&found, &format!("policy.memory.on_critical {rung}"));
        assert_eq!((level, told), ("ok", "works: may take astray, own, shared"));
    }
    drop(lock);
    let found = findings(&stage.ask(&["doctor", "--json"]));
    assert!(matches!(about(&found, "shared lock"), ("ok", told) if told.contains("is free")), "{found:#?}");
}

/// For a machine that is not this one: nothing it names is here.
const DEPLOYED: &str = "[daemon]
shutdown_timeout = \"25s\"
[http]
listen = [\"0.0.0.0:18760\"]
[[policy.disks]]
path = \"/no/such/volume\"
[workers.web]
command = [\"no-such-program\"]
directory = \"/no/such/app\"
user = \"nobody-of-that-name\"
env_files = [\"/no/such/file\"]
output = { file = \"/no/such/folder/web.log\" }
";

#[test]
fn a_platform_is_looked_at_before_anything_is_there() {
    let mut stage = Stage::new(DEPLOYED);
    stage.set.clear();
    let found = findings(&stage.ask(&["doctor", "--platform", "railway", "--json"]));
    assert!(found.iter().all(|finding| finding["area"] == "platform"), "what is here says nothing of it: {found:#?}");
    let bad = found.iter().filter(|finding| finding["level"] != "ok");
    assert!(bad.clone().count() > 0 && bad.clone().all(|finding| finding["remedy"].is_string()), "{found:#?}");
    assert_eq!(about(&found, "railway: here").0, "note");
    assert!(matches!(about(&found, "railway: grace"), ("warn", told) if told.starts_with("Railway waits 0 s")), "{found:#?}");
    assert_eq!(about(&found, "railway: private network").0, "warn");
    let found = findings(&stage.ask(&["doctor", "--platform", "railway", "--grace", "26s", "--json"]));
    assert_eq!(about(&found, "railway: grace").0, "ok");

    // A file of the platform in the folder is read.
    std::fs::write(stage.path("fly.toml"), "kill_timeout = 10\n").expect("it is ours");
    let mut fly = stage.plimsoll(&["doctor", "--platform", "fly", "--json"]);
    let found = findings(&fly.current_dir(stage.path("")).output().expect("plimsoll can be started"));
    assert!(
        matches!(about(&found, "fly: grace"), ("warn", told) if told.starts_with("Fly waits 10 s (kill_timeout of fly.toml)")),
        "{found:#?}"
    );

    assert_eq!(stage.ask(&["doctor", "--platform", "heroku"]).status.code(), Some(2));
}

#[test]
fn settings_for_elsewhere_are_not_held_against_this_machine() {
    let mut stage = Stage::new(DEPLOYED);
    let here = stage.ask(&["check"]);
    assert_eq!(here.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&here.stderr).contains("5 problems"), "{here:?}");
    let elsewhere = stage.ask(&["check", "--elsewhere"]);
    assert_eq!(elsewhere.status.code(), Some(0), "{elsewhere:?}");
    stage.set = vec!["policy.memory.high=nonsense".to_owned()];
    assert_eq!(stage.ask(&["check", "--elsewhere"]).status.code(), Some(78), "a mistake is one everywhere");
}

#[test]
fn a_draft_for_a_platform_passes_its_doctor() {
    for platform in ["render", "fly", "docker", "podman", "kubernetes"] {
        let mut stage = Stage::new("");
        stage.set.clear();
        let draft = stage.ask(&["init", "--platform", platform, "--stdout"]);
        assert_eq!(draft.status.code(), Some(0), "{draft:?}");
        std::fs::write(stage.path("plimsoll.toml"), &draft.stdout).expect("it is ours");
        let found = findings(&stage.ask(&["doctor", "--platform", platform, "--json"]));
        assert_eq!(about(&found, &format!("{platform}: grace")).0, "ok", "{found:#?}");
        // Where the test itself runs there may be traps that no settings avoid.
        let is_here = about(&found, &format!("{platform}: here")).0 == "ok";
        assert!(is_here || found.iter().all(|finding| finding["level"] == "ok" || finding["level"] == "note"), "{found:#?}");
    }
}
