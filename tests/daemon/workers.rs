//! Workers as an operator meets them: started in order, ready, listening on sockets of the daemon, replaced without a lost
//! request, and controlled while they run.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::outside;
use crate::stage::{Stage, wait_for};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it is bound").port()
}

/// One request; what was answered, or why there was nothing.
pub fn get(port: u16) -> Result<String, String> {
    let fault = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| fault("connect", error))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|error| fault("timeout", error))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").map_err(|error| fault("write", error))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| fault("read", error))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(format!("answered {answer:?}")),
    }
}

/// Clients that ask without a pause until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    clients: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn on(port: u16, clients: usize) -> Load {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let client = || {
            let (stop, asked) = (stop.clone(), asked.clone());
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    match get(port) {
                        Ok(_) => drop(asked.fetch_add(1, Ordering::SeqCst)),
                        Err(why) => failed.push(why),
                    }
                }
                failed
            })
        };
        let clients = (0..clients).map(|_| client()).collect();
        Load { stop, asked, clients }
    }

    /// How many were answered, and what went wrong with the others.
    pub fn end(self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failed = self.clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect();
        (self.asked.load(Ordering::SeqCst), failed)
    }
}

/// The replicas of a worker that are there now: (index, state, pid).
fn replicas(stage: &Stage, worker: &str) -> Vec<(u64, String, Option<i64>)> {
    let status = stage.status();
    let found = status["workers"].as_array().into_iter().flatten().find(|state| state["name"] == worker);
    let replica = |replica: &Value| {
        (replica["index"].as_u64().unwrap_or(0), replica["state"].as_str().unwrap_or_default().to_owned(), replica["pid"].as_i64())
    };
    found.and_then(|state| state["replicas"].as_array()).into_iter().flatten().map(replica).collect()
}

/// Waits until there are so many replicas that serve, held back or not, and no other copy.
pub fn wait_until_serving(stage: &Stage, worker: &str, count: usize) -> Vec<i64> {
    let serves = |(_, state, pid): &(u64, String, Option<i64>)| pid.filter(|_| ["ready", "running", "throttled"].contains(&state.as_str()));
    wait_for(&format!("{count} of {worker} serve"), || {
        let all = replicas(stage, worker);
        let serving: Vec<i64> = all.iter().filter_map(serves).collect();
        (serving.len() == count && all.len() == count).then_some(serving)
    })
}

pub fn pids(stage: &Stage, worker: &str) -> Vec<i64> {
    replicas(stage, worker).into_iter().filter_map(|(_, _, pid)| pid).collect()
}

pub fn said(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn recycling_under_load_loses_no_request() {
    let port = free_port();
    let stage = Stage::running(&format!(
        "[workers.web]
        command = {{hungry serve-fd3 slow=50}}
        listen = [\"127.0.0.1:{port}\"]
        replicas = 2
        ready = {{ http = \"http://127.0.0.1:{port}/\", within = \"20s\" }}"
    ));
    let mut before = wait_until_serving(&stage, "web", 2);
    let load = Load::on(port, 4);
    for _ in 0..5 {
        let output = stage.ask(&["workers", "recycle", "web"]);
        assert!(output.status.success(), "{}", said(&output));
        let after = wait_for("two are left", || Some(pids(&stage, "web")).filter(|pids| pids.len() == 2));
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
        before = after;
    }
    let (asked, failed) = load.end();
    assert!(failed.is_empty() && asked > 100, "{asked} answered, {} failed: {failed:?}", failed.len());
    let recycled = wait_for("all are told", || Some(stage.events_named("worker_recycled")).filter(|all| all.len() == 10));
    assert!(recycled.iter().all(|event| event["detail"].as_str().is_some_and(|detail| detail.contains("ready before"))), "{recycled:?}");
    assert_eq!(stage.metric("plimsoll_worker_recycles_total{worker=\"web\",cause=\"manual\"}"), Some(10.0));
    // Never more than one out at a time: each begins after the one before is gone.
    let order: Vec<String> = stage
        .events()
        .iter()
        .filter_map(|event| event["event"].as_str().filter(|name| name.starts_with("worker_recycl")))
        .map(str::to_owned)
        .collect();
    assert!(order.chunks(2).all(|pair| pair == ["worker_recycling", "worker_recycled"]), "{order:?}");
}

#[test]
fn a_restart_keeps_the_socket_and_requests_wait_for_it() {
    let port = free_port();
    let stage = Stage::running(&format!("[workers.web]\ncommand = {{hungry serve-fd3 slow=200}}\nlisten = [\"127.0.0.1:{port}\"]"));
    let first = get(port).expect("it is answered once somebody serves");
    let load = Load::on(port, 2);
    let output = stage.ask(&["workers", "restart", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    let second = get(port).expect("it is answered");
    let (asked, failed) = load.end();
    assert!(failed.is_empty(), "{asked} answered, {failed:?}");
    assert_ne!(first, second);
}

#[test]
fn a_crash_refuses_no_connection_either() {
    let path = tempfile::tempdir().expect("a folder");
    let socket = path.path().join("app.sock");
    let mut stage = Stage::running(&format!("[workers.web]\ncommand = {{hungry serve-fd3}}\nlisten = [\"{}\"]", socket.display()));
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("somebody listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it can be sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    wait_for("it listens", || socket.exists().then_some(()));
    let _ = ask();
    let pid = stage.worker("web");
    rustix::process::kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("it is there");
    wait_for("it is dead", || outside::process(pid).is_none_or(|process| process.state == 'Z').then_some(()));
    assert!(ask().expect("the next one answers").contains("200 OK"));
    assert_eq!(stage.stop(), 0);
    assert!(!socket.exists(), "the socket is taken away at the end");
}

#[test]
fn workers_start_in_order_once_the_one_before_is_ready_and_stop_in_reverse() {
    let mut stage = Stage::running(
        "[workers.app]
        command = {hungry}
        after = [\"db\", \"migrations\"]
        [workers.db]
        command = {hungry notify slow=400}
        ready = { notify = true, within = \"20s\" }
        [workers.migrations]
        command = [\"sh\", \"-c\", \"sleep 0.1\"]
        restart = \"on-failure\"
        ready = { done = true }
        after = [\"db\"]",
    );
    stage.event("worker_started", |event| event["worker"] == "app");
    let order = |stage: &Stage| -> Vec<String> {
        let about = |event: &Value| {
            let name = event["event"].as_str().filter(|name| ["worker_started", "worker_ready", "worker_exited"].contains(name))?;
            Some(format!("{} {}", event["worker"].as_str()?, name.trim_start_matches("worker_")))
        };
        stage.events().iter().filter_map(about).collect()
    };
    let began = order(&stage);
    let at = |what: &str| began.iter().position(|word| word == what).unwrap_or_else(|| panic!("{what}: {began:?}"));
    assert!(at("db ready") < at("migrations started") && at("migrations exited") < at("app started"), "{began:?}");
    let ready = stage.event("worker_ready", |event| event["worker"] == "db");
    assert!(ready["after_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.4), "{ready}");
    assert_eq!(stage.stop(), 0);
    let all = order(&stage);
    let at = |what: &str| all.iter().position(|word| word == what).unwrap_or_else(|| panic!("{what}: {all:?}"));
    assert!(at("app exited") < at("db exited"), "{all:?}");
}

#[test]
fn what_is_waited_for_is_said() {
    let stage = Stage::running(
        "[workers.app]
        command = {hungry}
        after = [\"db\"]
        [workers.db]
        command = {hungry}
        ready = { tcp = \"127.0.0.1:1\", within = \"1m\" }",
    );
    let waits = |worker: &str| {
        let status = stage.status();
        let state = status["workers"].as_array()?.iter().find(|state| state["name"] == worker)?.clone();
        state["replicas"][0]["waits_for"].as_str().map(str::to_owned)
    };
    assert_eq!(wait_for("app waits", || waits("app")), "db to be ready");
    assert!(wait_for("db waits", || waits("db")).contains("refused"));
    let output = stage.ask(&["workers", "start", "app", "--wait", "100ms"]);
    assert_eq!((output.status.code(), said(&output).contains("app.0 waits for db to be ready")), (Some(1), true), "{}", said(&output));
    assert_eq!(stage.request("GET", "/readyz").map(|reply| reply.status), Some(503));
}

#[test]
fn who_is_never_ready_is_ended_at_the_deadline_and_tried_again() {
    let stage = Stage::running(
        "[workers.db]
        command = {hungry astray=slow=0}
        ready = { notify = true, within = \"500ms\" }
        backoff = { first = \"100ms\", longest = \"1s\", give_up = 2, within = \"5m\" }",
    );
    let overdue = stage.event("worker_not_ready", |_| true);
    assert!(overdue["detail"].as_str().is_some_and(|detail| detail.contains("READY=1")), "{overdue}");
    let exited = stage.event("worker_exited", |_| true);
    assert_eq!(exited["reason"], "deadline", "{exited}");
    stage.event("worker_gave_up", |_| true);
    wait_for("nobody is left", || stage.population().is_empty().then_some(()));
}

#[test]
fn a_replacement_that_does_not_get_ready_is_ended_and_the_old_one_stays() {
    let port = free_port();
    let stage = Stage::running(&format!(
        "[workers.web]
        command = {{hungry serve-fd3 unready-if={{here}}/broken}}
        listen = [\"127.0.0.1:{port}\"]
        ready = {{ http = \"http://127.0.0.1:{port}/\", within = \"4s\" }}"
    ));
    let old = get(port).expect("it serves");
    wait_until_serving(&stage, "web", 1);
    std::fs::write(stage.path("broken"), "").expect("a file");
    let load = Load::on(port, 2);
    let output = stage.ask(&["workers", "recycle", "web"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("came to nothing"), "{}", said(&output));
    let failed = stage.event("worker_recycle_failed", |_| true);
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("not ready within 4 s")), "{failed}");
    wait_for("the replacement is gone", || (pids(&stage, "web").len() == 1).then_some(()));
    let (asked, lost) = load.end();
    assert!(lost.is_empty(), "{asked} answered, {lost:?}");
    assert_eq!(get(port).expect("it serves"), old);
    // It works again: the next try replaces it.
    std::fs::remove_file(stage.path("broken")).expect("it is there");
    let output = stage.ask(&["workers", "recycle", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_ne!(get(port).expect("it serves"), old);
}

#[test]
fn a_replica_is_stopped_started_scaled_and_signalled() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry log={here}/log}\nreplicas = 2\n[workers.other]\ncommand = {hungry}");
    let other = stage.worker("other");
    wait_for("both run", || (pids(&stage, "web").len() == 2).then_some(()));
    let ask = |args: &[&str]| {
        let output = stage.ask(&[&["workers"], args].concat());
        (output.status.code().unwrap_or(-1), said(&output).trim().to_owned())
    };
    assert_eq!(ask(&["stop", "web.1"]), (0, "web.1 is stopped".to_owned()));
    assert_eq!(pids(&stage, "web").len(), 1);
    assert_eq!(ask(&["start", "web"]), (0, "web is ready".to_owned()));
    assert_eq!(pids(&stage, "web").len(), 2);
    assert_eq!(ask(&["scale", "web", "4"]), (0, "web has 4 replicas".to_owned()));
    assert_eq!(pids(&stage, "web").len(), 4);
    assert_eq!(ask(&["scale", "web", "1"]), (0, "web has 1 replica".to_owned()));
    assert_eq!(pids(&stage, "web").len(), 1);
    let before = pids(&stage, "web");
    assert_eq!(ask(&["signal", "web", "TERM"]), (0, "1 replica was sent the signal".to_owned()));
    wait_for("it was replaced", || Some(pids(&stage, "web")).filter(|pids| pids.len() == 1 && *pids != before));
    assert_eq!(ask(&["stop", "web", "--wait", "0s"]).0, 0);
    assert_eq!(ask(&["start", "web"]).0, 0, "a start after a stop that is under way brings it up again");
    let (code, told) = ask(&["stop", "wep"]);
    assert_eq!((code, told.as_str()), (1, "plimsoll: there is no worker wep; there are other, web"));
    assert_eq!(ask(&["stop", "web.7"]), (1, "plimsoll: web has no replica 7; it has 1, counted from 0".to_owned()));
    let (code, told) = ask(&["shed", "web"]);
    assert!(code == 1 && told.contains("no shed_signal"), "{told}");
    let reply = stage.request("POST", "/admin/workers/web/dance").expect("an answer");
    assert_eq!((reply.status, reply.body.contains("start, stop, restart")), (404, true), "{}", reply.body);
    let reply = stage.request("POST", "/admin/workers/web/scale?replicas=many").expect("an answer");
    assert_eq!(reply.status, 400, "{}", reply.body);
    assert!(outside::process(other).is_some_and(|process| process.state != 'Z'), "nobody else was touched");
    let (code, told) = ask(&["list"]);
    assert!(code == 0 && told.contains("web") && told.contains("other"), "{told}");
    let (code, told) = ask(&["history", "web"]);
    assert!(code == 0 && told.contains("stopped") && !told.contains("other"), "{told}");
}

#[test]
fn a_stop_overtakes_whatever_was_asked_before() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry slow=300 notify}\nready = { notify = true }\nreplicas = 2");
    // While it starts, while it is replaced, while it is in backoff.
    for verb in ["start", "restart", "recycle"] {
        assert_eq!(stage.ask(&["workers", verb, "web", "--wait", "0s"]).status.code(), Some(0));
        let output = stage.ask(&["workers", "stop", "web"]);
        assert!(output.status.success(), "{verb}: {}", said(&output));
        assert_eq!(pids(&stage, "web"), [0_i64; 0], "{verb}");
        wait_for("nobody is left", || stage.population().iter().all(|process| process.name != "hungry").then_some(()));
    }
}

#[test]
fn requests_that_are_reported_are_counted_and_bring_a_replacement() {
    let stage = Stage::running(
        "[workers.web]
        command = {hungry}
        recycle = { requests = 100, jitter = \"0%\" }",
    );
    let first = stage.worker("web");
    let report = |query: String| stage.request("POST", &format!("/admin/workers/web/requests?{query}")).expect("an answer");
    assert!(report(format!("pid={first}&requests=60")).body.contains("60 requests"));
    assert!(report(format!("pid={first}&more=39")).body.contains("99 requests"));
    assert_eq!(report("pid=1&more=39".to_owned()).status, 404, "a stranger");
    assert_eq!(report(format!("pid={first}")).status, 400, "no number");
    assert!(report("more=1".to_owned()).body.contains("100 requests"), "the only replica need not be named");
    let recycled = stage.event("worker_recycled", |_| true);
    assert_eq!((&recycled["cause"], recycled["old_pid"].as_i64()), (&Value::from("requests"), Some(i64::from(first))), "{recycled}");
    let counted = || stage.metric("plimsoll_worker_recycles_total{worker=\"web\",cause=\"requests\"}");
    wait_for("it is counted", || counted().filter(|count| *count == 1.0));
}

#[test]
fn what_is_set_for_the_process_is_set_and_nothing_else_is_inherited() {
    let port = free_port();
    let script = "umask; ulimit -n; ulimit -c; nice; cat /proc/self/oom_score_adj; grep -E '^(Cpus_allowed_list|SigBlk|SigIgn|SigCgt)' /proc/self/status; \
                  echo listen $LISTEN_FDS $LISTEN_PID $$; ls /proc/$$/fd | tr '\\n' ' '; echo; echo $A $B $C; ionice -p $$; echo end; exec sleep 1000";
    let stage = Stage::new(&format!(
        "[workers.web]
        command = [\"sh\", \"-c\", {script:?}]
        listen = [\"127.0.0.1:{port}\"]
        umask = \"0027\"
        nice = 5
        ionice = \"best-effort:6\"
        affinity = \"0\"
        oom_score_adj = 700
        env_files = [\"{{here}}/one.env\", \"-{{here}}/none.env\"]
        env = {{ C = \"set\" }}
        [workers.web.rlimits]
        nofile = 512
        core = 0"
    ));
    std::fs::write(stage.path("one.env"), "A=1\nB='two words'\nC=file\n").expect("a file");
    let mut stage = stage;
    stage.launch_with_output(std::fs::File::create(stage.path("told")).expect("a file"));
    let text = wait_for("it has told", || {
        let text = std::fs::read_to_string(stage.path("told")).unwrap_or_default();
        text.contains("\nend\n").then_some(text)
    });
    let mut lines: Vec<&str> = text.lines().collect();
    let ionice = lines.iter().position(|line| line.contains("best-effort"));
    assert!(ionice.is_some_and(|at| lines[at].contains("prio 6")), "{text}");
    lines.retain(|line| !line.contains("best-effort"));
    assert_eq!(lines[..5], ["0027", "512", "0", "5", "700"], "{text}");
    let status: Vec<Vec<&str>> = lines[5..9].iter().map(|line| line.split_whitespace().collect()).collect();
    let value = |name: &str| status.iter().find(|words| words[0] == name).map(|words| words[1]).expect("a line");
    assert_eq!(value("SigBlk:"), "0000000000000000", "{text}");
    assert_eq!(value("SigIgn:"), "0000000000000000", "{text}");
    assert_eq!(value("Cpus_allowed_list:"), "0", "{text}");
    let listen: Vec<&str> = lines[9].split(' ').collect();
    assert_eq!((listen[0], listen[1], listen[2]), ("listen", "1", listen[3]), "{text}");
    let descriptors: Vec<&str> = lines[10].split_whitespace().collect();
    // 0 to 3, and one that the shell itself may hold for its script.
    assert!(descriptors.iter().take(4).eq(["0", "1", "2", "3"].iter()) && descriptors.len() <= 5, "{text}");
    assert_eq!(lines[11], "1 two words set", "{text}");
}

#[test]
fn a_step_that_fails_names_itself() {
    let stage = Stage::new(
        "[workers.pinned]
        command = {hungry}
        affinity = \"900\"
        [workers.script]
        command = [\"{here}/script\"]
        [workers.limited]
        command = {hungry}
        rlimits = { core = 0, nofile = 4000000000 }",
    );
    let script = stage.path("script");
    std::fs::write(&script, "#!/nonexistent/python3 -u\n").expect("a file");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut stage = stage;
    stage.start();
    for (worker, says) in [
        ("pinned", "could not set its affinity to 900: none of these processors is there".to_owned()),
        ("script", format!("{}: its first line asks for /nonexistent/python3, which is not there", script.display())),
        ("limited", "could not set its rlimit nofile to 4000000000".to_owned()),
    ] {
        let failed = stage.event("worker_start_failed", |event| event["worker"] == worker);
        assert!(failed["error"].as_str().is_some_and(|error| error.contains(&says)), "{says}: {failed}");
    }
}

#[test]
fn a_worker_that_cannot_be_spared_runs_all_the_same_and_it_is_said() {
    // The privilege that lowers it is taken away, where it is there.
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}\noom_score_adj = -500");
    let is_root = rustix::process::geteuid().is_root();
    stage.launch_as(stage.plimsoll_by(if is_root { &["setpriv", "--bounding-set=-sys_resource", "--"] } else { &["env"] }));
    let told = stage.event("degraded", |event| event["part"] == "oom_score_adj");
    assert!(told["detail"].as_str().is_some_and(|detail| detail.contains("CAP_SYS_RESOURCE") && detail.contains("web")), "{told}");
    assert!(outside::process(stage.worker("web")).is_some_and(|process| process.state != 'Z'));
}

#[test]
fn who_had_the_port_before_does_not_make_a_worker_ready() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("it is bound").port();
    let stage = Stage::running(&format!("[workers.web]\ncommand = {{hungry}}\nready = {{ tcp = \"127.0.0.1:{port}\", within = \"1m\" }}"));
    let waits = || stage.status()["workers"][0]["replicas"][0]["waits_for"].as_str().map(str::to_owned);
    let told = wait_for("it is said who is there", || waits().filter(|told| told.contains("is held by")));
    assert!(told.contains(&format!("127.0.0.1:{port} is held by pid {} (", std::process::id())), "{told}");
    assert_eq!(stage.request("GET", "/readyz").map(|reply| reply.status), Some(503));
}

#[test]
fn all_addresses_of_both_families_are_bound_side_by_side() {
    if TcpListener::bind("[::1]:0").is_err() {
        return crate::stage::skip("no IPv6 here");
    }
    let port = free_port();
    let _stage = Stage::running(&format!(
        "[workers.web]
        command = {{hungry serve-fd3}}
        listen = [\"0.0.0.0:{port}\", \"[::]:{port}\"]
        ready = {{ http = \"http://127.0.0.1:{port}/\" }}"
    ));
    assert!(get(port).is_ok());
    TcpStream::connect(("::1", port)).expect("IPv6 is listened on, too");
}

#[test]
fn a_daemon_that_is_started_with_its_signals_blocked_hears_them() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}");
    stage.launch_as(stage.plimsoll_by(&["env", "--block-signal=TERM,INT,CHLD,HUP"]));
    let worker = stage.worker("web");
    rustix::process::kill_process(Pid::from_raw(worker).expect("a pid"), Signal::KILL).expect("it runs");
    stage.event("worker_exited", |event| event["pid"] == i64::from(worker));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn what_cannot_be_asked_of_nobody_says_how_to_get_somebody() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\n[workers.idle]\ncommand = {hungry}\nreplicas = 1");
    let ask = |args: &[&str]| {
        let output = stage.ask(&[&["workers"], args].concat());
        (output.status.code().unwrap_or(-1), said(&output))
    };
    assert_eq!(ask(&["scale", "idle", "0"]).0, 0);
    for verb in ["start", "restart", "recycle"] {
        let (code, told) = ask(&[verb, "idle"]);
        assert!(code == 1 && told.contains("plimsoll workers scale idle 1"), "{verb}: {told}");
    }
    let (code, told) = ask(&["scale", "idle", "-1"]);
    assert!(code == 2 && told.contains("from 0 to 4096"), "{told}");
    let reply = stage.request("POST", "/admin/workers/web/scale?replicas=many").expect("an answer");
    assert!(reply.status == 400 && reply.body.contains("is no whole number"), "{}", reply.body);
    let reply = stage.request("POST", "/admin/workers/web/scale?replicas=2&replica=0").expect("an answer");
    assert!(reply.status == 400 && reply.body.contains("whole worker"), "{}", reply.body);
    let (code, told) = ask(&["history", "idle"]);
    assert!(code == 0 && !told.contains("a worker"), "{told}");
}

#[test]
fn a_singleton_runs_once_among_all_daemons_and_is_taken_over_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = format!(
        "[workers.scheduler]
        command = {{hungry alone={here}/alone}}
        singleton = true
        lock = \"{here}/scheduler.lock\"",
        here = folder.path().display()
    );
    let mut first = Stage::running(&settings);
    let one = first.worker("scheduler");
    let second = Stage::running(&settings);
    let waits = wait_for("the second waits", || second.status()["workers"][0]["replicas"][0]["waits_for"].as_str().map(str::to_owned));
    assert!(waits.contains("scheduler.lock, held by pid"), "{waits}");
    // The daemon dies and its worker goes on: it still is the one.
    first.kill();
    assert!(outside::process(one).is_some_and(|process| process.state != 'Z'));
    let until = Instant::now() + Duration::from_millis(600);
    while Instant::now() < until {
        assert_eq!(pids(&second, "scheduler"), [0_i64; 0], "the lock is the worker's as much as the daemon's");
    }
    rustix::process::kill_process(Pid::from_raw(one).expect("a pid"), Signal::KILL).expect("it is there");
    let killed = Instant::now();
    wait_for("the second takes over", || (pids(&second, "scheduler").len() == 1).then_some(()));
    assert!(killed.elapsed() < Duration::from_secs(5), "it took {:?}", killed.elapsed());
    assert!(!folder.path().join("alone.broken").exists(), "two have lived at once");
    let output = second.ask(&["workers", "scale", "scheduler", "2"]);
    assert!(said(&output).contains("is a singleton"), "{}", said(&output));
}

/// Whatever is asked in whatever order, a slot that is replaced stop-first never has two live processes.
#[test]
fn requests_in_any_order_never_make_two_live_copies() {
    let stage = Stage::running(
        "[workers.web]
        command = {hungry alone={here}/alone}
        recycle = { gap = \"0s\" }
        backoff = { first = \"10ms\", give_up = 100000 }",
    );
    stage.worker("web");
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let stage = &stage;
            scope.spawn(move || {
                let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..60 {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let path = match seed % 9 {
                        0 | 1 => "stop?wait=0s",
                        2 | 3 => "start?wait=0s",
                        4 => "restart?wait=0s",
                        5 => "recycle?wait=0s",
                        6 => "signal?signal=SIGKILL",
                        7 => "scale?replicas=0&wait=0s",
                        _ => "scale?replicas=1&wait=0s",
                    };
                    let reply = stage.request("POST", &format!("/admin/workers/web/{path}")).expect("an answer");
                    assert!([200, 202, 404, 409].contains(&reply.status), "{path}: {} {}", reply.status, reply.body);
                }
            });
        }
    });
    assert_eq!(stage.request("POST", "/admin/workers/web/scale?replicas=1").map(|reply| reply.status), Some(200));
    assert_eq!(stage.request("POST", "/admin/workers/web/start").map(|reply| reply.status), Some(200));
    assert_eq!(pids(&stage, "web").len(), 1);
    let broken = std::fs::read_to_string(stage.path("alone.broken")).unwrap_or_default();
    assert_eq!(broken, "", "two have lived at once");
    wait_for("exactly one is there", || (stage.population().iter().filter(|process| process.name == "hungry").count() == 1).then_some(()));
}

#[test]
fn a_reload_replaces_one_by_one_what_changed_and_nothing_else() {
    let port = free_port();
    let settings = |level: &str| {
        format!(
            "[workers.web]
            command = {{hungry serve-fd3}}
            listen = [\"127.0.0.1:{port}\"]
            replicas = 2
            env = {{ LEVEL = \"{level}\" }}
            ready = {{ http = \"http://127.0.0.1:{port}/\" }}
            [workers.other]
            command = {{hungry}}"
        )
    };
    let stage = Stage::running(&settings("info"));
    let other = stage.worker("other");
    let before = wait_until_serving(&stage, "web", 2);
    let load = Load::on(port, 2);
    stage.write(&settings("debug"));
    let plan = "\n  keep other as it is\n  replace web: 2 replicas, one after the other";
    let output = stage.ask(&["reload", "--dry-run"]);
    assert_eq!(said(&output).trim_end(), format!("would apply: workers.web.env{plan}"));
    assert_eq!(wait_until_serving(&stage, "web", 2), before, "it was not done");
    let output = stage.ask(&["reload"]);
    assert_eq!(said(&output).trim_end(), format!("settings applied, changed: workers.web.env{plan}"));
    wait_for("both were replaced", || (!wait_until_serving(&stage, "web", 2).iter().any(|pid| before.contains(pid))).then_some(()));
    let (asked, failed) = load.end();
    assert!(failed.is_empty(), "{asked} answered, {failed:?}");
    assert!(outside::process(other).is_some_and(|process| process.state != 'Z'));
    assert_eq!(stage.worker("other"), other);
    // An address that cannot be had: the old settings go on.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it is bound");
    stage.write(&settings("debug").replace(&format!("listen = [\"127.0.0.1:{port}\"]"), &format!("listen = [\"{address}\"]")));
    let output = stage.ask(&["reload"]);
    assert!(!output.status.success() && said(&output).contains("address already in use"), "{}", said(&output));
    assert!(get(port).is_ok());
}

/// A signal that comes while a worker is being born is neither lost nor meets the daemon instead.
#[test]
fn a_signal_at_birth_ends_the_worker_and_nobody_else() {
    let rounds = std::env::var("PLIMSOLL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(100_u64);
    let stage = Stage::running(
        "[workers.web]\ncommand = [\"sleep\", \"1000\"]\nbackoff = { first = \"10ms\", longest = \"10ms\", give_up = 1000000 }",
    );
    let daemon = stage.pid();
    let children = || {
        outside::processes()
            .into_iter()
            .filter(|process| process.parent == daemon && process.name != "sentinel")
            .map(|process| process.pid)
            .collect::<Vec<_>>()
    };
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut last = 0;
    for round in 0..rounds {
        // As soon as the kernel shows it, before its exec as well as after.
        let born = wait_for("the next is born", || children().into_iter().find(|pid| *pid != last));
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let instant = Instant::now() + Duration::from_micros(seed % 50_000);
        while Instant::now() < instant {
            std::hint::spin_loop();
        }
        let _ = rustix::process::kill_process(Pid::from_raw(born).expect("a pid"), Signal::TERM);
        wait_for(&format!("round {round}: {born} has ended"), || {
            outside::process(born).is_none_or(|process| process.state == 'Z' || process.parent != daemon).then_some(())
        });
        last = born;
    }
    assert!(outside::process(daemon).is_some_and(|process| process.state != 'Z'), "the daemon goes on");
}

/// What a dead daemon's workers do, and what becomes of them at the next start.
#[test]
fn the_next_daemon_takes_over_who_lives_on_and_no_request_is_lost() {
    let port = free_port();
    let mut stage = Stage::running(&format!(
        "[workers.web]
        command = {{hungry serve-fd3 astray=slow=0}}
        listen = [\"127.0.0.1:{port}\"]
        replicas = 2
        ready = {{ http = \"http://127.0.0.1:{port}/\" }}"
    ));
    let before = wait_until_serving(&stage, "web", 2);
    let load = Load::on(port, 2);
    stage.kill();
    stage.start();
    let adopted = wait_for("both are adopted", || Some(stage.events_named("worker_adopted")).filter(|all| all.len() == 2));
    assert!(adopted.iter().all(|event| before.contains(&event["pid"].as_i64().expect("a pid"))), "{adopted:?}");
    assert_eq!(pids(&stage, "web"), before, "nobody was started anew");
    // One of them dies: that is noticed, though it is not our child, and it is replaced on the same socket.
    let dead = Pid::from_raw(before[0] as i32).expect("a pid");
    rustix::process::kill_process(dead, Signal::TERM).expect("it is there");
    let exited = stage.event("worker_exited", |event| event["pid"].as_i64() == Some(before[0]));
    assert_eq!(exited["worker"], "web", "{exited}");
    wait_for("another serves", || (!wait_until_serving(&stage, "web", 2).contains(&before[0])).then_some(()));
    let (asked, failed) = load.end();
    assert!(failed.is_empty() && asked > 20, "{asked} answered, {failed:?}");
    let output = stage.ask(&["workers", "recycle", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.stop(), 0);
    wait_for("nobody is left, astray ones of then included", || stage.population().is_empty().then_some(()));
    assert!(stage.groups_left().is_empty(), "{:?}", stage.groups_left());
}

#[test]
fn the_next_daemon_ends_who_lives_on_where_that_was_chosen_or_nobody_wants_it() {
    let web = "[workers.web]\ncommand = {hungry alone={here}/alone astray=slow=0}\n";
    let mut stage = Stage::running(&format!("[daemon]\nleftovers = \"end\"\n{web}[workers.old]\ncommand = {{hungry}}"));
    let (first, old) = (stage.worker("web"), stage.worker("old"));
    wait_for("its descendant is astray", || {
        (stage.population().iter().filter(|process| process.name == "hungry").count() == 3).then_some(())
    });
    stage.kill();
    stage.write(&format!("[daemon]\nleftovers = \"end\"\n{web}"));
    stage.start();
    let left = wait_for("both are ended", || Some(stage.events_named("worker_left_behind")).filter(|all| all.len() == 2));
    assert!(left.iter().any(|event| event["pid"].as_i64() == Some(i64::from(old))), "{left:?}");
    assert_ne!(stage.worker("web"), first);
    wait_for("only the new ones are left", || {
        let pids: Vec<i32> = stage.population().iter().map(|process| process.pid).collect();
        (!pids.contains(&first) && !pids.contains(&old) && stage.population().iter().filter(|one| one.name == "hungry").count() == 2)
            .then_some(())
    });
    assert!(!stage.path("alone.broken").exists(), "the new one waited for the old one to end");
}

#[test]
fn workers_that_are_to_end_with_the_daemon_do_so_descendants_included() {
    let mut stage = Stage::running(
        "[workers.web]
        command = {hungry astray=slow=0 child=slow=0}
        on_daemon_death = \"stop\"
        [workers.deaf]
        command = {hungry deaf astray=deaf}
        on_daemon_death = \"stop\"
        stop = { within = \"500ms\" }
        [workers.stays]
        command = {hungry}",
    );
    let stays = stage.worker("stays");
    wait_for("all are there", || (stage.population().iter().filter(|process| process.name == "hungry").count() == 6).then_some(()));
    // Its descendants are on record.
    wait_for("they are written down", || {
        let roster = std::fs::read_to_string(stage.path(&format!("run/workers-{}.jsonl", stage.pid()))).unwrap_or_default();
        (roster.matches("\"members\":[[").count() >= 2).then_some(())
    });
    stage.kill();
    let killed = Instant::now();
    wait_for("only one goes on", || {
        let left: Vec<i32> = stage.population().iter().filter(|process| process.name == "hungry").map(|process| process.pid).collect();
        (left == [stays]).then_some(())
    });
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}

/// Who leaves session and parent at once is in no tree and, without groups, in nothing: only its environment says whose it is.
#[test]
fn a_descendant_nobody_ever_saw_does_not_outlive_its_worker() {
    let script = "(setsid sh -c 'sleep 98761 & exit 0'); exit 3";
    let stage =
        Stage::running(&format!("{}[workers.web]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nrestart = \"never\"", crate::crash::NO_GROUPS));
    let exited = stage.event("worker_exited", |_| true);
    assert_eq!(exited["exit_code"], 3, "{exited}");
    wait_for("nobody is left", || stage.population().is_empty().then_some(()));
}

#[test]
fn not_even_one_that_has_cleaned_its_environment_outlives_the_daemon() {
    let script = "(env -i setsid sh -c 'sleep 98762 & exit 0'); exit 3";
    let mut stage =
        Stage::running(&format!("{}[workers.web]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nrestart = \"never\"", crate::crash::NO_GROUPS));
    let daemon = stage.pid();
    stage.event("worker_exited", |_| true);
    let left = || outside::processes().into_iter().find(|process| process.name == "sleep" && process.parent == daemon);
    let orphan = wait_for("it is our child now", left);
    assert_eq!(stage.stop(), 0);
    assert!(outside::process(orphan.pid).is_none_or(|now| now.started != orphan.started), "it lives on");
    let step = stage.event("shutdown_step", |event| event["step"] == "workers");
    assert!(step["detail"].as_str().is_some_and(|detail| detail.contains("left of earlier ones")), "{step}");
}

/// Switches the kernel's merging on, and puts everything back.
struct Merging(Vec<(&'static str, String)>);

impl Merging {
    fn on() -> Option<Merging> {
        let mut before = Vec::new();
        for (file, value) in [("/sys/kernel/mm/ksm/pages_to_scan", "20000"), ("/sys/kernel/mm/ksm/run", "1")] {
            before.push((file, std::fs::read_to_string(file).ok()?.trim().to_owned()));
            std::fs::write(file, value).ok()?;
        }
        Some(Merging(before))
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            let _ = std::fs::write(file, value);
        }
    }
}

#[test]
fn pages_that_are_merged_are_counted_and_where_they_cannot_be_it_is_said() {
    let settings =
        "[workers.web]\ncommand = {hungry leak=40 cap=40}\nreplicas = 2\nmerge_pages = true\n[workers.other]\ncommand = {hungry}";
    let stage = Stage::running(settings);
    if std::fs::read_to_string("/sys/kernel/mm/ksm/run").is_ok_and(|run| run.trim() != "1") {
        let degraded = stage.event("degraded", |event| event["part"] == "merge_pages");
        assert!(
            degraded["detail"].as_str().is_some_and(|detail| detail.contains("echo 1 >") || detail.contains("Linux 6.4")),
            "{degraded}"
        );
    }
    let Some(_merging) = Merging::on() else {
        return crate::stage::skip_even_in_ci("kernel samepage merging cannot be switched on here");
    };
    let merged = wait_for("what is the same is kept once", || {
        stage.metric("plimsoll_worker_merged_bytes{worker=\"web\"}").filter(|bytes| *bytes > 60e6)
    });
    println!("{:.1} MB of 80 MB are saved", merged / 1e6);
    assert_eq!(stage.metric("plimsoll_worker_merged_bytes{worker=\"other\"}"), None);
}

/// A master like gunicorn's: it keeps two children, one of which leaks.
const MASTER: &str = r#"
import os, signal, sys, time
children = {}
def child(number):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    held = []
    while True:
        # Only the first two to be born leak.
        if number < 2 and len(held) < 60:
            held.append(bytearray(b"x" * 2_000_000))
        time.sleep(0.05)
def start(number):
    pid = os.fork()
    if pid == 0:
        child(number)
    children[pid] = number
def stop(*_):
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    sys.exit(0)
born = 0
while len(children) < 2:
    start(born); born += 1
signal.signal(signal.SIGTERM, stop)
while True:
    pid, _ = os.wait()
    children.pop(pid, None)
    start(born); born += 1
"#;

#[test]
fn children_of_a_master_are_replaced_one_by_one_and_the_master_lives_on() {
    let stage = Stage::new(
        "[sampling]
        interval = \"500ms\"
        [workers.web]
        command = [\"python3\", \"{here}/master.py\"]
        members = \"children\"
        recycle = { memory = \"60MB\", sustain = \"1s\", gap = \"1s\" }
        limits = { memory = \"400MB\" }",
    );
    if std::process::Command::new("python3").arg("-c").arg("").status().is_err() {
        return crate::stage::skip("there is no python3");
    }
    std::fs::write(stage.path("master.py"), MASTER).expect("a file");
    let mut stage = stage;
    stage.start();
    let master = stage.worker("web");
    let replaced =
        wait_for("both that leak are replaced", || Some(stage.events_named("worker_member_replaced")).filter(|all| all.len() == 2));
    for event in &replaced {
        assert_eq!(
            (&event["cause"], &event["signal"], &event["outcome"]),
            (&"memory".into(), &"SIGTERM".into(), &"done".into()),
            "{event}"
        );
        assert_ne!(event["pid"].as_i64(), Some(i64::from(master)));
    }
    assert_ne!(replaced[0]["pid"], replaced[1]["pid"]);
    wait_for("two others are in their place", || {
        let children = outside::children(master);
        let fresh = children.iter().all(|child| replaced.iter().all(|event| event["pid"].as_i64() != Some(i64::from(child.pid))));
        (children.len() == 2 && fresh).then_some(())
    });
    assert!(stage.events_named("worker_exited").is_empty(), "the master lives on");
    let counted = || stage.metric("plimsoll_worker_recycles_total{worker=\"web\",cause=\"memory\"}");
    wait_for("they are counted", || counted().filter(|count| *count == 2.0));
    assert_eq!(stage.stop(), 0);
    wait_for("nobody is left", || stage.population().is_empty().then_some(()));
}

#[test]
fn one_that_does_not_answer_any_more_is_started_anew() {
    let port = free_port();
    let stage = Stage::running(&format!(
        "[workers.web]
        command = {{hungry serve-fd3}}
        listen = [\"127.0.0.1:{port}\"]
        ready = {{ http = \"http://127.0.0.1:{port}/\" }}
        health = {{ every = \"200ms\", within = \"500ms\", fails = 2 }}"
    ));
    let first = wait_until_serving(&stage, "web", 1)[0];
    assert!(get(port).is_ok());
    // It hangs, and is not dead.
    let pid = Pid::from_raw(first as i32).expect("a pid");
    rustix::process::kill_process(pid, Signal::STOP).expect("it is there");
    let unhealthy = stage.event("worker_unhealthy", |_| true);
    assert_eq!((unhealthy["pid"].as_i64(), &unhealthy["fails"]), (Some(first), &Value::from(2)), "{unhealthy}");
    let exited = stage.event("worker_exited", |_| true);
    assert_eq!(exited["reason"], "health", "{exited}");
    wait_for("another serves", || (wait_until_serving(&stage, "web", 1)[0] != first).then_some(()));
    assert!(get(port).is_ok());
    assert_eq!(stage.events_named("worker_unhealthy").len(), 1, "who answers is left alone");
}
