//! The daemon as a service: what it tells whoever started it, the sockets it is handed, the secrets it is given.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::outside;
use crate::stage::{self, PATIENCE, Stage, wait_for};

/// Hears what the daemon says, as systemd does.
struct Manager {
    socket: UnixDatagram,
    /// Every line so far, in order.
    lines: Vec<String>,
}

impl Manager {
    fn of(stage: &mut Stage) -> Manager {
        let path = stage.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket of our own");
        stage.env.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
        Manager { socket, lines: Vec::new() }
    }

    /// The lines of the next message; none when nothing comes within `patience`.
    fn hear(&mut self, patience: Duration) -> Vec<String> {
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).expect("a timeout");
        let mut text = [0; 4096];
        let Ok(length) = self.socket.recv(&mut text) else { return Vec::new() };
        let lines: Vec<String> = String::from_utf8_lossy(&text[..length]).lines().map(str::to_owned).collect();
        self.lines.extend(lines.clone());
        lines
    }

    /// The message with a line that begins so.
    fn wait_for(&mut self, begins: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let lines = self.hear(PATIENCE.saturating_sub(begun.elapsed()));
            if lines.iter().any(|line| line.starts_with(begins)) {
                return lines;
            }
            assert!(!lines.is_empty(), "{begins} never came: {:#?}", self.lines);
        }
    }

    /// Takes in what is there already.
    fn drain(&mut self) {
        while !self.hear(Duration::from_millis(1)).is_empty() {}
    }
}

#[test]
fn it_is_ready_after_its_first_look_and_says_how_it_stands_to_the_end() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}\nreplicas = 2");
    let mut manager = Manager::of(&mut stage);
    stage.launch();
    let first = manager.wait_for("READY=1");
    let reply = stage.request("GET", "/healthz").expect("who is told it is ready can ask it at once");
    assert_eq!(reply.status, 200);
    let status = first.iter().find(|line| line.starts_with("STATUS=")).expect("with how it stands");
    assert!(status.contains("memory ") && status.ends_with(" of 2 workers up"), "{status}");
    wait_for("it says when both are up", || {
        manager.hear(Duration::from_millis(100)).iter().any(|line| line.ends_with("2 of 2 workers up")).then_some(())
    });

    // A reload, as Type=notify-reload wants it told: with its time, and over when it is.
    let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    stage.signal(Signal::HUP);
    let reloading = manager.wait_for("RELOADING=1");
    let told: u64 = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("its time").parse().expect("a number");
    assert!(told >= before.tv_sec as u64 * 1_000_000 + before.tv_nsec as u64 / 1_000, "not before it was asked for");
    manager.wait_for("READY=1");

    // A refused file is over, too, and stands in the status until a good one is applied.
    stage.write("[workers.web]\ncomand = 1");
    stage.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    wait_for("the status says so", || {
        manager.hear(Duration::from_millis(100)).iter().any(|line| line.contains("settings were refused")).then_some(())
    });

    manager.drain();
    stage.signal(Signal::TERM);
    let stopping = manager.wait_for("STOPPING=1");
    let longer: u64 =
        stopping.iter().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).expect("how long").parse().expect("a number");
    assert!(longer >= 30_000_000, "at least daemon.shutdown_timeout: {longer}");
    assert_eq!(stage.end(), 0);
    manager.drain();
    let last = manager.lines.iter().rposition(|line| line.starts_with("STATUS=stopping: history"));
    assert!(last.is_some(), "{:#?}", manager.lines);
    assert!(manager.lines.iter().all(|line| !line.starts_with("WATCHDOG")), "nobody has asked for that");
}

#[test]
fn the_watchdog_is_fed_by_ticks_alone_and_however_long_the_interval_is() {
    // Without the watchdog a tick would come every ten minutes.
    let mut stage = Stage::new("[sampling]\ninterval = \"10m\"\n[workers.web]\ncommand = {hungry}");
    let mut manager = Manager::of(&mut stage);
    stage.env.push(("WATCHDOG_USEC".to_owned(), "2000000".to_owned()));
    stage.launch();
    manager.wait_for("READY=1");
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let mut last = begun;
    while begun.elapsed() < Duration::from_secs(5) {
        manager.wait_for("WATCHDOG=1");
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    assert!(longest < Duration::from_secs(2), "{longest:?} without a word");
    // One that stands still feeds nobody.
    stage.signal(Signal::STOP);
    wait_for("it stands still", || outside::process(stage.pid()).filter(outside::is_stopped));
    manager.drain();
    assert!(manager.hear(Duration::from_secs(3)).is_empty(), "{:#?}", manager.lines);
    stage.signal(Signal::CONT);
    manager.wait_for("WATCHDOG=1");
    assert_eq!(stage.stop(), 0);
}

#[test]
fn it_is_ready_again_once_it_has_become_another() {
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}");
    let copy = stage.path("plimsoll");
    fs::copy(&stage.program, &copy).expect("a copy of the program");
    stage.program = copy.clone();
    let mut manager = Manager::of(&mut stage);
    stage.start();
    manager.wait_for("READY=1");
    let worker = stage.worker("web");
    let again = stage.path("plimsoll.new");
    fs::copy(&copy, &again).expect("another copy");
    fs::rename(&again, &copy).expect("put in its place");
    stage.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    stage.event("upgraded", |_| true);
    assert_eq!(stage.worker("web"), worker);
    assert_eq!(stage.stop(), 0);
}

/// Has the daemon started with these sockets from descriptor 3 on, as a socket unit does.
fn launch_with(stage: &mut Stage, sockets: &[&TcpListener]) {
    let mut command = stage.plimsoll_by(&["sh", "-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", "a:b");
    let numbers: Vec<i32> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    // SAFETY: system calls alone between fork and exec, on numbers that were prepared before.
    unsafe {
        command.pre_exec(move || {
            // Above everything that is wanted, so that none is overwritten before it was moved.
            for number in &numbers {
                if libc::fcntl(*number, libc::F_DUPFD, 100) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for place in 0..numbers.len() as i32 {
                if libc::dup2(100 + place, 3 + place) < 0 || libc::close(100 + place) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    stage.launch_as(command);
    stage.event("daemon_started", |_| true);
}

#[test]
fn sockets_that_were_bound_for_it_are_served_and_handed_to_their_worker() {
    let (page, app) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (page_at, app_at) = (page.local_addr().unwrap(), app.local_addr().unwrap());
    let mut stage = Stage::new(&format!("[workers.web]\ncommand = {{hungry}}\nlisten = [\"{app_at}\"]"));
    // The setting stands back: another address is bound by the unit.
    stage.set = vec!["http.listen=[\"127.0.0.1:1\"]".to_owned()];
    let copy = stage.path("plimsoll");
    fs::copy(&stage.program, &copy).expect("a copy of the program");
    stage.program = copy.clone();
    launch_with(&mut stage, &[&app, &page]);
    drop((page, app));
    let look = || {
        let stream = TcpStream::connect(page_at).ok()?;
        stage::exchange(stream, "GET", "/metrics", &[]).filter(|reply| reply.status == 200)
    };
    wait_for("the page is served on the socket of the unit", look);
    assert_eq!(stage.status()["daemon"]["listening"], serde_json::json!([page_at.to_string()]));
    let worker = stage.worker("web");
    let variables = wait_for("the worker has begun", || Some(outside::environment(worker)).filter(|all| !all.is_empty()));
    assert!(variables.iter().any(|variable| variable == "LISTEN_FDS=1"), "its own socket, and no word of the daemon's: {variables:?}");
    assert!(variables.iter().any(|variable| *variable == format!("LISTEN_PID={worker}")), "{variables:?}");
    TcpStream::connect(app_at).expect("the worker's address is bound");

    // Both are there after the daemon has become another, and a reload that asks for the worker's address anew finds it.
    let again = stage.path("plimsoll.new");
    fs::copy(&copy, &again).expect("another copy");
    fs::rename(&again, &copy).expect("put in its place");
    assert!(stage.ask(&["upgrade"]).status.success());
    wait_for("the page is served still", look);
    stage.write("");
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("the worker is gone", || stage.population().is_empty().then_some(()));
    stage.write(&format!("[workers.web]\ncommand = {{hungry}}\nlisten = [\"{app_at}\"]"));
    let answer = stage.ask(&["reload"]);
    assert!(answer.status.success(), "{answer:?}");
    wait_for("another worker", || (stage.worker("web") != worker).then_some(()));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn what_is_no_socket_that_listens_is_told_and_harms_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // SAFETY: the number is open and ours; it is wrapped to be passed on only.
    let odd = unsafe { <TcpListener as std::os::fd::FromRawFd>::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(connected)) };
    let mut stage = Stage::new("[workers.web]\ncommand = {hungry}");
    launch_with(&mut stage, &[&odd]);
    let told = stage.event("degraded", |event| event["part"] == "sockets");
    assert!(told["detail"].as_str().is_some_and(|detail| detail.contains("ListenStream=")), "{told}");
    stage.worker("web");
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_credential_is_the_key_and_whoever_is_not_the_service_does_without() {
    let mut stage =
        Stage::new("[http]\napi_key_file = \"credential:api-key\"\n[workers.web]\ncommand = {hungry}\nenv_files = [\"credential:app\"]");
    stage.set = vec!["http.listen=[\"127.0.0.1:0\"]".to_owned()];
    // Nobody has handed it any: it does not start without its key, and a person beside it is not held up.
    let alone = stage.ask(&["run"]);
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert_eq!(alone.status.code(), Some(78), "{said}");
    assert!(
        said.contains("http.api_key_file") && said.contains("CREDENTIALS_DIRECTORY is not set") && said.contains("LoadCredential="),
        "{said}"
    );
    let checked = stage.ask(&["check"]);
    assert!(
        checked.status.success() && String::from_utf8_lossy(&checked.stderr).contains("the credential was not looked at"),
        "{checked:?}"
    );

    let folder = stage.path("credentials");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("api-key"), "of-the-service\n").unwrap();
    fs::write(folder.join("app"), "APP_SECRET=from-the-service\n").unwrap();
    stage.env.push(("CREDENTIALS_DIRECTORY".to_owned(), folder.display().to_string()));
    stage.start();
    let port = stage.status()["daemon"]["listening"][0].as_str().expect("an address").to_owned();
    let with = |key: &str| {
        stage::exchange(TcpStream::connect(&port).unwrap(), "GET", "/admin/resources/stats", &[("X-API-Key", key)]).unwrap().status
    };
    assert_eq!((with("of-the-service"), with("guessed")), (200, 401));
    let worker = stage.worker("web");
    let variables = wait_for("the worker has begun", || Some(outside::environment(worker)).filter(|all| !all.is_empty()));
    assert!(variables.iter().any(|variable| variable == "APP_SECRET=from-the-service"));
    assert!(!variables.iter().any(|variable| variable.starts_with("CREDENTIALS_DIRECTORY")));
    assert!(!stage.log().contains("of-the-service") && !stage.log().contains("from-the-service"));
    assert_eq!(stage.stop(), 0);
}
