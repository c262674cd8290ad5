//! What the running daemon serves, over TCP and on its socket.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::stage::{Reply, Stage, exchange, skip_even_in_ci, wait_for};

const KEY: &str = "correct-horse";

/// A stage that listens on a free port of the loopback interface, and the address.
fn listening(settings: &str, env: &[(&str, &str)]) -> (Stage, String) {
    let mut stage = Stage::new(settings);
    // The port is free now; should somebody take it in between, the start fails loudly.
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
    stage.set = vec![format!("http.listen=[\"{address}\"]")];
    stage.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    stage.start();
    (stage, address)
}

fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
    exchange(stream, method, path, headers).expect("an answer")
}

#[test]
fn metrics_are_served_in_the_form_that_is_asked_for() {
    let (stage, address) = listening("[workers.web]\ncommand = {hungry}", &[]);
    wait_for("the first look", || stage.metric("plimsoll_worker_memory_bytes{worker=\"web\"}").filter(|bytes| *bytes > 0.0));
    let plain = ask(&address, "GET", "/metrics", &[]);
    assert_eq!(plain.status, 200);
    assert!(plain.head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{}", plain.head);
    assert!(plain.body.contains("plimsoll_up 1"), "{}", plain.body);
    let open = ask(&address, "GET", "/metrics", &[("Accept", "application/openmetrics-text; version=1.0.0")]);
    assert!(open.head.to_lowercase().contains("content-type: application/openmetrics-text"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);

    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else { return skip_even_in_ci("promtool is not installed") };
    promtool.stdin.take().expect("piped").write_all(plain.body.as_bytes()).expect("it reads");
    let verdict = promtool.wait_with_output().expect("it ends");
    assert!(verdict.status.success(), "{}{}", String::from_utf8_lossy(&verdict.stdout), String::from_utf8_lossy(&verdict.stderr));
}

#[test]
fn administration_needs_the_key_where_one_is_set_and_metrics_do_not() {
    let (stage, address) = listening("", &[("PLIMSOLL_HTTP__API_KEY", KEY)]);
    let admin = "/admin/resources/stats";
    assert_eq!(ask(&address, "GET", admin, &[]).status, 401);
    assert_eq!(ask(&address, "GET", admin, &[("X-API-Key", "wrong")]).status, 401);
    assert_eq!(ask(&address, "GET", admin, &[("X-API-Key", KEY)]).status, 200);
    assert_eq!(ask(&address, "POST", "/admin/config/reload", &[]).status, 401);
    for open in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(&address, "GET", open, &[]).status, 200, "{open}");
    }
    // On the socket its permissions are the rule.
    assert_eq!(stage.request("GET", admin).map(|reply| reply.status), Some(200));
    assert!(stage.ask(&["status"]).status.success());
}

#[test]
fn whoever_waits_for_the_throttle_is_answered_when_it_is_over() {
    let stage = Stage::running(
        "[policy.cpu]
        limit = 0.2
        sustain = \"0s\"
        [sampling]
        interval = \"500ms\"
        [workers.hog]
        command = {hungry burn=1 until={here}/enough}",
    );
    stage.event("throttle_engaged", |event| event["resource"] == "cpu");
    let at_once = stage.get("/admin/throttle").expect("an answer");
    assert_eq!(at_once["throttled"], true, "{at_once}");
    let short = stage.get("/admin/throttle?wait=300ms").expect("an answer");
    assert_eq!(short["throttled"], true, "at the deadline it is still on: {short}");
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| stage.get("/admin/throttle?wait=60s").expect("an answer"));
        std::fs::write(stage.path("enough"), "").expect("it can be written");
        let answer = patient.join().expect("it only asks");
        assert_eq!(answer["throttled"], false, "{answer}");
    });
}

#[test]
fn status_is_one_screen_and_the_same_as_the_route() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}\nreplicas = 2");
    wait_for("both replicas are seen", || (stage.status()["workers"][0]["replicas"].as_array().map(Vec::len) == Some(2)).then_some(()));
    let screen = stage.ask(&["status"]);
    let text = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.status.success() && text.contains("web.0") && text.contains("web.1"), "{text}");
    assert!(!text.contains('\x1b'), "no colour where nobody looks: {text}");
    let data = stage.ask(&["status", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&data.stdout).expect("JSON");
    assert_eq!(value["daemon"]["pid"].as_i64(), Some(stage.pid().into()));
}

#[test]
fn it_is_ready_once_its_workers_are() {
    let stage = Stage::running("[workers.web]\ncommand = {hungry}");
    let ready = wait_for("it is ready", || stage.request("GET", "/readyz").filter(|reply| reply.status == 200));
    assert!(!ready.body.is_empty());
}
