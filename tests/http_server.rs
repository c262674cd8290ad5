//! The real server on a free port and a real socket, with a snapshot made by hand and a loop that answers from a list.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll::cli::client::{Client, ClientError};
use plimsoll::config::settings::{Http, Secret};
use plimsoll::host::clock::Moment;
use plimsoll::http::control::{Answer, Command, CommandQueue, Request};
use plimsoll::http::{CurrentAccess, EventSource, Handle, Limits, Parts, listen, spawn};
use plimsoll::snapshot::{Published, Snapshot};
use proptest::prelude::*;
use serde_json::{Value, json};

mod sample;

/// Nothing here takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Events(Mutex<Vec<(u64, Value)>>);

impl EventSource for Events {
    fn since(&self, after: u64, most: usize) -> Vec<(u64, Value)> {
        self.0.lock().unwrap().iter().filter(|(id, _)| *id > after).take(most).cloned().collect()
    }
}

/// A server and everything it was given.
struct Server {
    handle: Option<Handle>,
    address: SocketAddr,
    socket: PathBuf,
    published: Arc<Published>,
    access: Arc<CurrentAccess>,
    events: Arc<Events>,
    now: Arc<Mutex<Moment>>,
    commands: Option<Receiver<Request>>,
    _folder: tempfile::TempDir,
}

fn http(key: Option<&str>, dashboard: bool) -> Http {
    Http { listen: Vec::new(), api_key: key.map(|key| Secret::new(key.to_owned())), dashboard }
}

impl Server {
    fn start() -> Server {
        Server::with(&http(None, true), Limits::default(), sample::snapshot())
    }

    fn with(http: &Http, limits: Limits, snapshot: Snapshot) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(listen::SOCKET);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let published = Arc::new(Published::default());
        published.publish(snapshot);
        let access = Arc::new(CurrentAccess::new(http));
        let events = Arc::new(Events(Mutex::new(vec![(1, json!({"event": "daemon_started"})), (2, json!({"event": "worker_started"}))])));
        let now = Arc::new(Mutex::new(sample::taken()));
        let clock = now.clone();
        let (commands, queue) = CommandQueue::new(2, Arc::new(|| {}));
        let handle = spawn(&Parts {
            tcp: vec![tcp],
            unix: Some(listen::bind_socket(&socket).unwrap()),
            published: published.clone(),
            commands,
            access: access.clone(),
            effective: Arc::new(RwLock::new(json!({ "policy": { "dry_run": false } }))),
            events: events.clone(),
            clock: Arc::new(move || *clock.lock().unwrap()),
            limits,
        })
        .unwrap();
        Server { handle: Some(handle), address, socket, published, access, events, now, commands: Some(queue), _folder: folder }
    }

    /// Answers the commands one after the other with `answers`, then goes away.
    fn answer_commands(&mut self, answers: Vec<Answer>) -> JoinHandle<Vec<Command>> {
        let queue = self.commands.take().unwrap();
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let Ok(request) = queue.recv_timeout(PATIENCE) else { break };
                seen.push(request.command);
                let _ = request.answer.send(answer);
            }
            seen
        })
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request on a connection of its own.
    fn ask(&self, request: &str) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        Reply::read(&mut stream)
    }

    fn get(&self, path: &str) -> Reply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str) -> Reply {
        self.ask(&format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
    }

    fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::clone(&self.published.latest());
        change(&mut snapshot);
        self.published.publish(snapshot);
    }

    fn stop(&mut self, grace: Duration) -> bool {
        self.handle.take().unwrap().shutdown(grace)
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    /// Reads to the end of the connection.
    fn read(stream: &mut impl Read) -> Reply {
        let mut bytes = Vec::new();
        read_to_end(stream, &mut bytes);
        Reply::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Reply {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Reply { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

/// A reset ends the reading as a close does: a server that refuses unread bytes may reset.
fn read_to_end(stream: &mut impl Read, bytes: &mut Vec<u8>) {
    let mut buffer = [0; 16384];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the server neither answered nor closed: {error}"),
        }
    }
}

/// Steady time for measuring in tests.
fn elapsed_since(start: Moment) -> Duration {
    Moment::now().since(start)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Moment::now();
    while !holds() {
        assert!(elapsed_since(start) < PATIENCE, "never came about: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn every_route_answers() {
    let server = Server::start();
    let cases = [
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "plimsoll_up 1"),
        ("/healthz", 200, "application/json", "\"status\":\"ok\""),
        ("/readyz", 200, "application/json", "\"status\":\"ready\""),
        ("/", 200, "text/html; charset=utf-8", "<!doctype html>"),
        ("/admin/resources/health", 200, "application/json", "\"timestamp\":\"2026-11-20T12:00:00Z\""),
        ("/admin/resources/stats", 200, "application/json", "\"working_set_bytes\":350000000"),
        ("/admin/throttle", 200, "application/json", "\"retry_after_s\":8.0"),
        ("/admin/workers", 200, "application/json", "\"name\":\"web\""),
        ("/admin/explain", 200, "application/json", "\"all_normal\":"),
        ("/admin/explain?of=memory", 200, "application/json", "\"resource\":\"memory\""),
        ("/admin/explain?of=memroy", 404, "application/json", "there is no worker or resource \\\"memroy\\\"; there are cpu, memory"),
        ("/admin/events", 200, "application/json", "\"event\":\"worker_started\""),
        ("/admin/config", 200, "application/json", "\"dry_run\":false"),
        ("/admin/nothing", 404, "application/json", "\"error\":\"not_found\""),
        ("/admin/throttle?wait=soon", 400, "application/json", "\"error\":\"bad_query\""),
        ("/admin/events?after=-1", 400, "application/json", "\"error\":\"bad_query\""),
        ("/admin/release", 405, "application/json", "\"error\":\"method_not_allowed\""),
    ];
    for (path, status, kind, part) in cases {
        for reply in [server.get(path), over_socket(&server, path)] {
            assert_eq!(reply.status, status, "{path}: {reply:?}");
            assert_eq!(reply.header("content-type"), Some(kind), "{path}");
            assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
            assert!(reply.body.contains(part), "{path}: {}", reply.body);
        }
        let head = server.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert_eq!((head.status, head.body.as_str()), (status, ""), "HEAD {path}");
        assert_eq!(head.header("content-type"), Some(kind), "HEAD {path}");
    }
}

fn over_socket(server: &Server, path: &str) -> Reply {
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    Reply::read(&mut stream)
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let server = Server::start();
    let release = server.get("/admin/release");
    assert_eq!((release.status, release.header("allow")), (405, Some("POST")));
    let metrics = server.post("/metrics");
    assert_eq!((metrics.status, metrics.header("allow")), (405, Some("GET,HEAD")));
    let brew = server.ask("BREW / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(brew.status, 405, "{brew:?}");
}

#[test]
fn the_page_comes_in_the_form_that_is_asked_for() {
    let server = Server::start();
    let request =
        |accept: &str| server.ask(&format!("GET /metrics HTTP/1.1\r\nHost: anything\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"));
    let open = request("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1");
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.body.ends_with("# EOF\n"));
    let text = request("text/plain");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(!text.body.contains("# EOF"));
}

#[test]
fn health_follows_the_snapshot() {
    let server = Server::start();
    let report = server.get("/admin/resources/health").json();
    assert_eq!(report["status"], "degraded");
    assert_eq!(report["checks"]["cpu"]["status"], "high");
    assert_eq!(report["checks"]["workers.web"]["status"], "ok");
    assert_eq!(report["checks"]["workers.vector-db"]["status"], "incomplete");

    server.publish(|snapshot| {
        snapshot.policy.resources.iter_mut().for_each(|resource| resource.state = "normal".into());
        snapshot.workers.truncate(0);
    });
    assert_eq!(server.get("/admin/resources/health").json()["status"], "healthy");

    let readiness = |server: &Server| {
        let ready = server.get("/readyz");
        (ready.status, ready.json()["status"].as_str().unwrap_or_default().to_owned())
    };
    server.publish(|snapshot| snapshot.daemon.ready = false);
    assert_eq!(readiness(&server), (503, "starting".to_owned()));
    server.publish(|snapshot| snapshot.daemon.shutting_down = true);
    assert_eq!(readiness(&server), (503, "shutting_down".to_owned()));
    server.publish(|snapshot| (snapshot.daemon.ready, snapshot.daemon.shutting_down) = (true, false));
    assert_eq!(readiness(&server), (200, "ready".to_owned()));

    *server.now.lock().unwrap() = sample::taken().after(Duration::from_secs(7));
    assert_eq!(readiness(&server), (503, "stalled".to_owned()));
    let live = server.get("/healthz");
    assert_eq!((live.status, live.json()), (503, json!({ "status": "stalled", "age_s": 7.0, "deadline_s": 6.0 })));
    let report = server.get("/admin/resources/health");
    assert_eq!((report.status, report.json()["status"].as_str()), (503, Some("unhealthy")));
    assert_eq!(server.get("/metrics").status, 200, "the page itself says plimsoll_up 0");
    assert_eq!(server.post("/admin/release").error(), "loop_stalled");
}

#[test]
fn a_key_is_asked_for_over_tcp_and_not_on_the_socket() {
    let server = Server::with(&http(Some("correct horse"), true), Limits::default(), sample::snapshot());
    let with =
        |path: &str, extra: &str| server.ask(&format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n{extra}Connection: close\r\n\r\n"));
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(with(path, "").status, 200, "{path}");
    }
    for path in ["/", "/admin/resources/stats", "/admin/nothing", "/%61dmin/config", "//metrics"] {
        let missing = with(path, "");
        assert_eq!((missing.status, missing.error().as_str()), (401, "key_missing"), "{path}");
        assert!(missing.header("www-authenticate").is_some());
        let wrong = with(path, "X-API-Key: correct horsf\r\n");
        assert_eq!((wrong.status, wrong.error().as_str()), (401, "key_wrong"), "{path}");
    }
    assert_eq!(with("/admin/resources/stats", "X-API-Key: correct horse\r\n").status, 200);
    assert_eq!(over_socket(&server, "/admin/resources/stats").status, 200);

    let door = with("/", "Accept: text/html,*/*;q=0.8\r\n");
    assert_eq!((door.status, door.header("content-type")), (401, Some("text/html; charset=utf-8")));
    assert!(door.body.contains("API key") && !door.body.contains("Recent events"));

    server.access.replace(&http(Some("another"), false));
    assert_eq!(with("/admin/resources/stats", "X-API-Key: correct horse\r\n").status, 401);
    assert_eq!(with("/", "X-API-Key: another\r\n").status, 404, "the dashboard is switched off");
}

#[test]
fn without_a_key_other_sites_and_names_are_kept_out() {
    let server = Server::start();
    let cases = [
        ("a rebound name", "GET / HTTP/1.1\r\nHost: evil.example\r\n", 403, "foreign_host"),
        ("a name in the target", "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n", 403, "foreign_host"),
        ("two names", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 403, "foreign_host"),
        ("behind a proxy", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.7\r\n", 403, "key_not_set"),
        ("another site", "POST /admin/release HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n", 403, "cross_site"),
        ("another port", "POST /admin/release HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://localhost:2\r\n", 403, "cross_site"),
        ("an opaque origin", "POST /admin/release HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n", 403, "cross_site"),
        ("a form", "POST /admin/release HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403, "cross_site"),
    ];
    for (name, head, status, error) in cases {
        let reply = server.ask(&format!("{head}Connection: close\r\n\r\n"));
        assert_eq!((reply.status, reply.error().as_str()), (status, error), "{name}");
    }
}

#[test]
fn commands_reach_the_loop_and_its_word_comes_back() {
    let mut server = Server::start();
    let answers = vec![
        Answer::Done("3 settings changed".into()),
        Answer::Refused("plimsoll.toml:3:1: unknown key".into()),
        Answer::Done("nothing was limited".into()),
        Answer::Done("nothing changed".into()),
    ];
    let the_loop = server.answer_commands(answers);
    let reload = server.post("/admin/config/reload");
    assert_eq!((reload.status, reload.json()), (200, json!({ "message": "3 settings changed" })));
    let refused = server.post("/admin/config/reload");
    assert_eq!((refused.status, refused.json()), (409, json!({ "error": "refused", "message": "plimsoll.toml:3:1: unknown key" })));
    assert_eq!(server.post("/admin/release").json(), json!({ "message": "nothing was limited" }));
    let invalidated = server.post("/admin/resources/cache/invalidate").json();
    assert_eq!(invalidated, json!({ "cache": "absent", "message": "nothing changed" }));
    assert_eq!(the_loop.join().unwrap(), [Command::Reload, Command::Reload, Command::Release, Command::Reload]);
    let gone = server.post("/admin/release");
    assert_eq!((gone.status, gone.error().as_str()), (503, "queue_full"));
}

#[test]
fn a_full_queue_and_a_silent_loop_are_told() {
    let limits = Limits { request: Duration::from_millis(100), ..Limits::default() };
    let server = Server::with(&http(None, true), limits, sample::snapshot());
    // Nobody takes them out: two fit.
    for _ in 0..2 {
        let silent = server.post("/admin/release");
        assert_eq!((silent.status, silent.error().as_str()), (503, "no_answer"));
    }
    let full = server.post("/admin/release");
    assert_eq!((full.status, full.error().as_str()), (503, "queue_full"));
}

#[test]
fn a_wait_ends_when_throttling_does() {
    let server = Server::start();
    let mut waiters: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for waiter in &mut waiters {
        waiter.write_all(b"GET /admin/throttle?wait=300s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    }
    // They wait while a short wait comes to its end beside them.
    let short = server.get("/admin/throttle?wait=300ms").json();
    assert_eq!(short["throttled"], true);
    assert_eq!(short["resources"][0]["resource"], "cpu");
    assert_eq!(short["resources"].as_array().unwrap().len(), 2, "memory is normal");
    for waiter in &mut waiters {
        waiter.set_nonblocking(true).unwrap();
        assert_eq!(waiter.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        waiter.set_nonblocking(false).unwrap();
    }
    server.publish(|snapshot| snapshot.policy.throttled = false);
    let start = Moment::now();
    for waiter in &mut waiters {
        let reply = Reply::read(waiter);
        assert_eq!((reply.status, &reply.json()["throttled"], &reply.json()["retry_after_s"]), (200, &json!(false), &json!(0.0)));
    }
    assert!(elapsed_since(start) < Duration::from_secs(5), "{:?}", elapsed_since(start));
}

#[test]
fn a_wait_is_not_left_hanging_on_a_loop_that_has_stalled() {
    let server = Server::start();
    let mut waiter = server.connect();
    waiter.write_all(b"GET /admin/throttle?wait=300s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    *server.now.lock().unwrap() = sample::taken().after(Duration::from_secs(60));
    let reply = Reply::read(&mut waiter);
    assert_eq!((reply.status, reply.error().as_str()), (503, "loop_stalled"));
}

#[test]
fn a_wait_before_the_first_tick_waits_for_it() {
    let server = Server::with(&http(None, true), Limits::default(), Snapshot::default());
    assert_eq!(server.get("/admin/throttle").status, 503);
    let mut waiter = server.connect();
    waiter.write_all(b"GET /admin/throttle?wait=300s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = sample::snapshot();
    first.policy.throttled = false;
    server.published.publish(first);
    assert_eq!(Reply::read(&mut waiter).json()["throttled"], false);
}

#[test]
fn shutdown_tells_who_waits_and_closes_what_is_idle() {
    let mut server = Server::start();
    let mut waiter = server.connect();
    waiter.write_all(b"GET /admin/throttle?wait=300s HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut follower = server.connect();
    follower.write_all(b"GET /admin/events?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut follower, "worker_started");
    let mut idle = server.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut idle, "\"ok\"");
    let start = Moment::now();
    assert!(server.stop(PATIENCE));
    assert!(elapsed_since(start) < Duration::from_secs(5), "{:?}", elapsed_since(start));
    let told = Reply::read(&mut waiter);
    assert_eq!((told.status, told.error().as_str()), (503, "shutting_down"));
    let mut rest = Vec::new();
    read_to_end(&mut follower, &mut rest);
    read_to_end(&mut idle, &mut rest);
    assert!(TcpStream::connect(server.address).is_err(), "nobody listens any more");
}

#[test]
fn shutdown_does_not_wait_beyond_its_grace() {
    let mut server = Server::start();
    let mut stuck = server.connect();
    stuck.write_all(b"POST /admin/release HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    // Once the first byte of another answer is here, the server has had its turn with the half request.
    assert_eq!(server.get("/healthz").status, 200);
    let start = Moment::now();
    assert!(server.stop(Duration::from_millis(200)));
    assert!(elapsed_since(start) < Duration::from_secs(5), "{:?}", elapsed_since(start));
}

/// Reads until `part` has come.
fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed before {part:?}: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&seen);
        if text.contains(part) {
            return text.into_owned();
        }
    }
}

#[test]
fn events_are_followed_from_where_one_was() {
    let server = Server::start();
    let mut follower = server.connect();
    follower.write_all(b"GET /admin/events?follow=true HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\r\n\r\n").unwrap();
    let first = read_until(&mut follower, "worker_started");
    assert!(first.contains("content-type: text/event-stream"), "{first}");
    assert!(first.contains("id: 2\ndata: {\"event\":\"worker_started\"}\n\n") && !first.contains("daemon_started"), "{first}");
    server.events.0.lock().unwrap().push((3, json!({"event": "throttle_engaged", "reason": "two\nlines"})));
    let next = read_until(&mut follower, "throttle_engaged");
    assert!(next.contains("id: 3\ndata: {\"event\":\"throttle_engaged\",\"reason\":\"two\\nlines\"}\n\n"), "{next}");
    let page = server.get("/admin/events?after=2").json();
    assert_eq!(page["events"], json!([{ "id": 3, "record": { "event": "throttle_engaged", "reason": "two\nlines" } }]));
}

/// A patience that is soon over. Each test shortens only the one it is about: on a busy machine the others would run out too.
const SOON: Duration = Duration::from_millis(300);

#[test]
fn a_head_that_does_not_end_is_not_waited_for() {
    let server = Server::with(&http(None, true), Limits { head: SOON, ..Limits::default() }, sample::snapshot());
    for start in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: "] {
        let mut slow = server.connect();
        slow.write_all(start.as_bytes()).unwrap();
        let mut rest = Vec::new();
        read_to_end(&mut slow, &mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "{start:?}");
    }
    // One that drips a byte at a time gains nothing by it.
    let mut drip = server.connect();
    let begun = Moment::now();
    until("the dripping client is cut off", || drip.write_all(b"G").is_err());
    assert!(elapsed_since(begun) < PATIENCE);
}

#[test]
fn a_body_must_come_in_time_and_within_its_size() {
    let head = "POST /admin/release HTTP/1.1\r\nHost: localhost\r\n";
    let hasty = Server::with(&http(None, true), Limits { request: SOON, ..Limits::default() }, sample::snapshot());
    let slow = hasty.ask(&format!("{head}Content-Length: 10\r\n\r\nhalf"));
    assert_eq!((slow.status, slow.error().as_str()), (408, "too_slow"));
    let server = Server::start();
    let large = server.ask(&format!("{head}Content-Length: 65537\r\n\r\n"));
    assert_eq!((large.status, large.error().as_str()), (413, "body_too_large"));
    let chunks = format!("{:x}\r\n{}\r\n", 70_000, "x".repeat(70_000));
    let chunked = server.ask(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}"));
    assert_eq!((chunked.status, chunked.error().as_str()), (413, "body_too_large"));
    let broken = server.ask(&format!("{head}Transfer-Encoding: chunked\r\n\r\nnot a length\r\n"));
    assert_eq!((broken.status, broken.error().as_str()), (400, "bad_body"));
}

#[test]
fn what_is_not_http_is_turned_away() {
    let server = Server::start();
    let long = "x".repeat(20_000);
    let many = "X-Header: value\r\n".repeat(200);
    let cases = [
        ("no http", "hello\r\n\r\n".to_owned(), 400),
        ("binary", "\u{1}\u{0}\u{7f}\r\n\r\n".to_owned(), 400),
        ("tls", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\r\n\r\n".to_owned(), 400),
        ("a huge header", format!("GET /metrics HTTP/1.1\r\nX-Long: {long}\r\n\r\n"), 431),
        ("a huge target", format!("GET /{long} HTTP/1.1\r\n\r\n"), 431),
        ("too many headers", format!("GET /metrics HTTP/1.1\r\n{many}\r\n"), 431),
        ("two lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 400),
        ("a length that is none", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
    ];
    for (name, request, status) in cases {
        let reply = server.ask(&request);
        assert_eq!(reply.status, status, "{name}: {reply:?}");
    }
    for request in ["OPTIONS * HTTP/1.1", "CONNECT localhost:1 HTTP/1.1"] {
        let reply = server.ask(&format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert!((400..500).contains(&reply.status), "{request}: {reply:?}");
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut stream = server.connect();
    let one = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
    let all = [one("/healthz", ""), one("/nothing", ""), one("/readyz", "Connection: close\r\n")].concat();
    stream.write_all(all.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    read_to_end(&mut stream, &mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let statuses: Vec<&str> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let mut large = sample::snapshot();
    let replica = large.workers[1].replicas[0].clone();
    large.workers[1].replicas = vec![replica; 60_000];
    let server = Server::with(&http(None, true), Limits { connections: 1, write: SOON, ..Limits::default() }, large);
    let mut deaf = server.connect();
    deaf.write_all(b"GET /admin/workers HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut deaf, "200 OK");
    let health = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(server.ask_if_answered(health), 503, "it has the only place");
    until("its place is free again, though it is still there", || server.ask_if_answered(health) == 200);
    drop(deaf);
}

#[test]
fn one_too_many_is_told_and_the_socket_stays_open() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = Server::with(&http(None, true), limits, sample::snapshot());
    let mut held: Vec<TcpStream> = (0..2).map(|_| server.connect()).collect();
    for stream in &mut held {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        read_until(stream, "\"ok\"");
    }
    let mut extra = server.connect();
    let refused = Reply::read(&mut extra);
    assert_eq!((refused.status, refused.error().as_str()), (503, "too_many_connections"));
    assert_eq!(over_socket(&server, "/healthz").status, 200);
    held.clear();
    until("a place is free again", || {
        server.ask_if_answered("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    });
    // Whoever leaves while waiting gives up the place too.
    for _ in 0..2 {
        server.connect().write_all(b"GET /admin/throttle?wait=1h HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    until("a place is free again", || {
        server.ask_if_answered("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == 200
    });
}

impl Server {
    /// The status, or 0 when the connection broke.
    fn ask_if_answered(&self, request: &str) -> u16 {
        let mut stream = self.connect();
        if stream.write_all(request.as_bytes()).is_err() {
            return 0;
        }
        Reply::read(&mut stream).status
    }
}

#[test]
fn the_client_speaks_with_the_server() {
    let mut server = Server::start();
    let nowhere = server.socket.with_file_name("nowhere.sock");
    let client = Client::find(&[nowhere.clone(), server.socket.clone()]).unwrap();
    assert_eq!(client.socket(), server.socket);
    let snapshot: Snapshot = client.get_json("/admin/resources/stats").unwrap();
    assert_eq!(serde_json::to_value(&snapshot).unwrap(), serde_json::to_value(sample::snapshot()).unwrap());
    assert!(client.get_text("/metrics").unwrap().contains("plimsoll_up 1"));

    let the_loop = server.answer_commands(vec![Answer::Done("released".into()), Answer::Refused("line 3: no".into())]);
    assert_eq!(client.post("/admin/release").unwrap()["message"], "released");
    let refused = client.post("/admin/config/reload").unwrap_err();
    assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("line 3: no", 1));
    the_loop.join().unwrap();

    assert!(server.stop(PATIENCE));
    let gone = client.get_json::<Value>("/healthz").unwrap_err();
    assert!(matches!(gone, ClientError::Unreachable { .. }), "{gone}");
    let none = Client::find(&[nowhere.clone(), server.socket.clone()]).err().unwrap();
    assert_eq!(none.exit_code(), 69);
    let said = none.to_string();
    let expected = format!(
        "no daemon is running: {} (not there), {} (left behind by a daemon that has ended); start one with `plimsoll run`; \
         to reach one of another user, ask as that user, or name its folder in daemon.runtime_dir",
        nowhere.display(),
        server.socket.display()
    );
    assert_eq!(said, expected);
    assert_eq!(Client::find(&[]).err().unwrap().exit_code(), 69);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_bring_it_down(requests in proptest::collection::vec(garbage(), 1..6)) {
        let server = Server::start();
        for request in requests {
            let mut stream = server.connect();
            // The server may have closed before everything was sent.
            let _ = stream.write_all(&request);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            read_to_end(&mut stream, &mut Vec::new());
        }
        prop_assert_eq!(server.get("/healthz").status, 200);
        prop_assert!(!server.handle.as_ref().unwrap().ended());
    }
}

/// Bytes that look more or less like a request.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("GET /metrics HTTP/1.1".to_owned()),
        Just("POST /admin/throttle?wait=%zz HTTP/1.1".to_owned()),
        Just("Host: localhost".to_owned()),
        Just("Accept: ;q=,;;=".to_owned()),
        Just("Content-Length: 99999999999999999999".to_owned()),
        Just("Transfer-Encoding: chunked".to_owned()),
        Just("X-API-Key: \u{ff}".to_owned()),
        Just(String::new()),
        any::<String>(),
    ];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\r\n").into_bytes()),
    ]
}
