//! What a worker is started with: its variables, its user, its place among the kernel's victims.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use crate::outside;
use crate::stage::{Stage, skip, wait_for};

#[test]
fn what_was_meant_for_the_daemon_does_not_reach_a_worker() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}\nenv = { COLOUR = \"blue\" }");
    stage.env = [
        ("PLIMSOLL_HTTP__API_KEY", "a-secret-nobody-guesses"),
        ("NOTIFY_SOCKET", "@nowhere"),
        ("WATCHDOG_USEC", "1000000000"),
        ("ORDINARY", "yes"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    stage.start();
    let worker = stage.worker("web");
    let variables =
        wait_for("the worker has begun", || Some(outside::environment(worker)).filter(|all| all.iter().any(|one| one == "COLOUR=blue")));
    assert!(variables.iter().any(|variable| variable == "ORDINARY=yes"), "{variables:?}");
    for name in ["PLIMSOLL_", "NOTIFY_SOCKET", "WATCHDOG_"] {
        // But for the mark by which its descendants are known.
        let is_left = |variable: &&String| variable.starts_with(name) && !variable.starts_with("PLIMSOLL_LIFE=");
        assert_eq!(variables.iter().find(is_left), None, "{name}: {variables:?}");
    }
    let told = [
        stage.log(),
        stage.request("GET", "/metrics").expect("the page").body,
        String::from_utf8_lossy(&stage.ask(&["config", "show", "--origin"]).stdout).into_owned(),
    ];
    assert!(!told.iter().any(|text| text.contains("a-secret-nobody-guesses")));
}

#[test]
fn the_kernel_takes_a_worker_before_the_daemon() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}");
    let score =
        |pid: i32| -> i32 { fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives").trim().parse().expect("a number") };
    let (worker, daemon) = (score(stage.worker("web")), score(stage.pid()));
    assert!(worker > daemon, "worker {worker}, daemon {daemon}");
}

#[test]
fn a_worker_begins_with_the_nice_value_the_daemon_was_started_with() {
    let mut stage = Stage::new("[workers.idle]\ncommand = {hungry}");
    let mut command = stage.plimsoll(&["run"]);
    let (own, _) = outside::priority(std::process::id() as i32).expect("it is us");
    let worse = (own + 7).min(19);
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(rustix::process::setpriority_process(None, worse)?));
    }
    stage.launch_as(command);
    let worker = stage.worker("idle");
    wait_for("it has begun", || (outside::priority(worker)?.0 == worse).then_some(()));
}

#[test]
fn a_worker_holds_nothing_of_the_daemons_open() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}");
    let open: Vec<String> = fs::read_dir(format!("/proc/{}/fd", stage.worker("web")))
        .expect("it lives")
        .flatten()
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()))
        .collect();
    for word in ["plimsoll.lock", "plimsoll-stops", "cgroup.procs", ".db", "undo"] {
        assert!(!open.iter().any(|file| file.contains(word)), "{word}: {open:?}");
    }
}

#[test]
fn a_worker_becomes_the_user_it_is_given() {
    if !rustix::process::geteuid().is_root() {
        return skip("not root: nobody else can be become");
    }
    // The test's own worker may lie in a folder that others cannot enter.
    let stage = Stage::running("[workers.web]\ncommand = [\"sh\", \"-c\", \"while :; do sleep 0.1; done\"]\nuser = \"nobody\"");
    let worker = stage.worker("web");
    let owner = wait_for("it has begun", || fs::metadata(format!("/proc/{worker}")).ok()).uid();
    assert_eq!(owner, 65534);
    let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("it lives");
    let groups = status.lines().find(|line| line.starts_with("Groups:")).expect("a line for groups");
    assert!(!groups.split_whitespace().skip(1).any(|group| group == "0"), "it keeps root's group: {groups}");
    let variables = outside::environment(worker);
    assert!(variables.iter().any(|variable| variable == "USER=nobody"), "{variables:?}");
    assert_eq!(outside::process(worker).map(|process| process.session), Some(worker));
}
