//! A daemon on a stage of its own: folders nobody else uses, a name on every process it starts, and a guard that leaves
//! nothing behind whatever becomes of the test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::kernel::{Kernel, Reflex, Rules};
use crate::outside;

/// Nothing waited for here takes this long unless it is broken; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something; panics with `what` when it never does.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, condition)
}

pub fn wait_within<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} in vain: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Lets the test go by with its reason shown, where the machine does not grant what it needs. The build machine does.
pub fn skip(reason: &str) {
    skip_even_in_ci(reason);
    assert!(std::env::var_os("CI").is_none(), "the build machine grants what is needed, and yet: {reason}");
}

/// The same for what the build machine does not promise either.
pub fn skip_even_in_ci(reason: &str) {
    let shown = format!("skipped: {reason}\n");
    // Past the capture of the test harness: a skip that nobody sees is a lie.
    let stderr = File::options().append(true).open("/dev/stderr").and_then(|mut stderr| stderr.write_all(shown.as_bytes()));
    assert!(stderr.is_ok(), "{shown}");
}

/// The worker of `examples/hungry.rs`, built if need be: `cargo test --test daemon` alone does not build examples.
pub fn hungry() -> &'static Path {
    static HUNGRY: OnceLock<PathBuf> = OnceLock::new();
    HUNGRY.get_or_init(|| {
        let test = std::env::current_exe().expect("the test has a path");
        let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
        if let Some(cargo) = std::env::var_os("CARGO") {
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--example", "hungry", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().expect("cargo can be started").success(), "examples/hungry.rs can be built");
        }
        let path = profile.join("examples/hungry");
        assert!(path.exists(), "{} is not there: build it with `cargo build --example hungry`", path.display());
        path
    })
}

/// A command for the settings: the hungry worker with these words.
pub fn hungry_command(words: &str) -> String {
    let words: Vec<String> = std::iter::once(hungry().display().to_string()).chain(words.split_whitespace().map(str::to_owned)).collect();
    serde_json::to_string(&words).expect("a list of strings")
}

/// Folders, a settings file, and everybody who was started on it.
pub struct Stage {
    folder: tempfile::TempDir,
    pub daemon: Option<Child>,
    /// Every daemon so far, to find the groups it made.
    pids: Vec<u32>,
    /// What is under test.
    pub program: PathBuf,
    /// Set for every daemon and client.
    pub set: Vec<String>,
    pub env: Vec<(String, String)>,
    runs: u32,
    /// Answers system calls of the daemon and of all it starts.
    kernel: Option<Kernel>,
}

impl Stage {
    /// `settings` is the text of plimsoll.toml; `{hungry WORDS}` in it becomes a command.
    pub fn new(settings: &str) -> Stage {
        outside::sweep_earlier_runs();
        let folder = tempfile::Builder::new().prefix("plimsoll-test-").tempdir().expect("a temporary folder");
        // Workers of other users have to get to their logs.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let stage = Stage {
            folder,
            daemon: None,
            pids: Vec::new(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_plimsoll")),
            set: vec!["http.listen=[]".to_owned()],
            env: Vec::new(),
            runs: 0,
            kernel: None,
        };
        stage.write(settings);
        stage
    }

    /// A stage with its daemon running.
    pub fn running(settings: &str) -> Stage {
        let mut stage = Stage::new(settings);
        stage.start();
        stage
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, settings: &str) {
        fs::write(self.path("plimsoll.toml"), self.expand(settings)).expect("the settings can be written");
    }

    /// `plimsoll run`, started by another program that becomes it.
    pub fn plimsoll_by(&self, other: &[&str]) -> Command {
        let run = self.plimsoll(&["run"]);
        let (program, words) = other.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(words).arg(run.get_program()).args(run.get_args());
        self.surround(&mut command);
        command
    }

    /// `{hungry WORDS}` becomes the command, `{here}` the folder.
    fn expand(&self, settings: &str) -> String {
        let here = self.folder.path().display().to_string();
        let mut text = settings.replace("{here}", &here);
        while let Some(begin) = text.find("{hungry") {
            let length = text[begin..].find('}').expect("a closing brace");
            let words = text[begin + "{hungry".len()..begin + length].to_owned();
            text.replace_range(begin..=begin + length, &hungry_command(&words));
        }
        text
    }

    /// `plimsoll` with the folders of this stage.
    pub fn plimsoll(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).arg("-c").arg(self.path("plimsoll.toml"));
        self.surround(&mut command);
        command
    }

    /// `plimsoll run -- COMMAND` without a file.
    pub fn plimsoll_run(&self, command_words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run");
        self.surround(&mut command);
        command.arg("--").args(command_words);
        command
    }

    fn surround(&self, command: &mut Command) {
        let folders = [("daemon.state_dir", "state"), ("daemon.runtime_dir", "run")];
        for (key, name) in folders.iter().filter(|(key, _)| !self.set.iter().any(|set| set.starts_with(key))) {
            command.args(["--set", &format!("{key}={}", self.path(name).display())]);
        }
        command.args(["--set", "log.format=json"]);
        for set in &self.set {
            command.args(["--set", set]);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .env(outside::MARK, self.folder.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
    }

    /// Starts the daemon and waits until it answers and has looked once.
    pub fn start(&mut self) {
        self.launch();
        self.event("daemon_started", |_| true);
        wait_for("the first look", || self.request("GET", "/healthz").filter(|reply| reply.status == 200));
    }

    /// Starts it and does not wait.
    pub fn launch(&mut self) {
        let command = self.plimsoll(&["run"]);
        self.launch_as(command);
    }

    pub fn launch_as(&mut self, mut command: Command) {
        self.prepare(&mut command);
        self.spawn(command);
    }

    /// Its log goes to `log`: nothing is known of its events but by asking.
    pub fn launch_with_log(&mut self, log: impl Into<Stdio>) {
        let mut command = self.plimsoll(&["run"]);
        self.prepare(&mut command);
        command.stderr(log);
        self.spawn(command);
    }

    /// What its workers print goes to `output`.
    pub fn launch_with_output(&mut self, output: impl Into<Stdio>) {
        let mut command = self.plimsoll(&["run"]);
        self.prepare(&mut command);
        command.stdout(output);
        self.spawn(command);
    }

    fn spawn(&mut self, mut command: Command) {
        let child = command.spawn().expect("plimsoll can be started");
        self.pids.push(child.id());
        self.daemon = Some(child);
    }

    /// As [`Stage::start`], with a kernel that answers as the test wants. False where no such kernel is to be had.
    pub fn start_under(&mut self, reflex: Option<Reflex>, met: impl FnOnce(i32) + Send + 'static) -> bool {
        let mut command = self.plimsoll(&["run"]);
        self.prepare(&mut command);
        let Ok((child, kernel)) = Kernel::start(&mut command, reflex, met) else { return false };
        self.pids.push(child.id());
        (self.daemon, self.kernel) = (Some(child), Some(kernel));
        self.event("daemon_started", |_| true);
        wait_for("the first look", || self.request("GET", "/healthz").filter(|reply| reply.status == 200));
        true
    }

    /// The rules of the kernel it was started under.
    pub fn rules(&self) -> Rules {
        self.kernel.as_ref().expect("started under a kernel of the test").rules()
    }

    fn prepare(&mut self, command: &mut Command) {
        assert!(self.daemon.is_none(), "one daemon at a time");
        self.runs += 1;
        command.stderr(File::create(self.log_path()).expect("the log can be made")).stdout(Stdio::null());
        // Should this test be killed, its daemon ends in order, and so do its workers.
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.path(&format!("log.{}", self.runs))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// What the present daemon has told so far, in order. A line that is being written is not there yet.
    pub fn events(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn events_named(&self, name: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == name).collect()
    }

    /// Waits for an event.
    pub fn event(&self, name: &str, which: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("event {name}"), || {
            let found = self.events().into_iter().find(|event| event["event"] == name && which(event));
            if found.is_none() {
                self.must_run(name);
            }
            found
        })
    }

    /// A daemon that has ended unasked will not fulfil anything: says so at once instead of waiting.
    fn must_run(&self, wanted: &str) {
        let Some(daemon) = &self.daemon else { return };
        let gone = outside::process(daemon.id() as i32).is_none_or(|process| process.state == 'Z');
        assert!(!gone || self.log().contains(wanted), "the daemon has ended; its log:\n{}", self.log());
    }

    pub fn pid(&self) -> i32 {
        self.daemon.as_ref().expect("the daemon was started").id() as i32
    }

    /// The newest pid of a worker's replica.
    pub fn worker(&self, name: &str) -> i32 {
        self.event("worker_started", |event| event["worker"] == name);
        let started = self.events_named("worker_started");
        let last = started.iter().rev().find(|event| event["worker"] == name).expect("it was there just now");
        last["pid"].as_i64().expect("a pid") as i32
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("a pid");
        // Not reaped yet, so the number is still its own.
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }

    /// Waits for the daemon's end; its exit code, or 128 + N for a signal.
    pub fn end(&mut self) -> i32 {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        let status = wait_for("the daemon ends", || daemon.try_wait().expect("it is our child"));
        status.code().unwrap_or_else(|| 128 + status.signal().expect("a code or a signal"))
    }

    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.end()
    }

    /// The daemon dies without a word.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.end(), 128 + 9);
    }

    /// The daemon dies without a word, unless it has just ended by itself, or was told to before it could have said a word.
    pub fn kill_or_end(&mut self) {
        self.signal(Signal::KILL);
        let code = self.end();
        let at_birth = code == 128 + 15 && self.log().is_empty();
        assert!(code == 0 || code == 128 + 9 || at_birth, "it ended with {code}");
    }

    /// The same by another program than the one under test.
    pub fn ask_with(&self, program: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(args).arg("-c").arg(self.path("plimsoll.toml"));
        self.surround(&mut command);
        command.output().expect("plimsoll can be started")
    }

    /// Runs another plimsoll command to its end.
    pub fn ask(&self, args: &[&str]) -> Output {
        self.plimsoll(args).output().expect("plimsoll can be started")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/plimsoll.sock")
    }

    /// One request on the control socket: status, headers, body.
    pub fn request(&self, method: &str, path: &str) -> Option<Reply> {
        let stream = UnixStream::connect(self.socket()).ok()?;
        // A daemon that answers nobody fails the test instead of keeping it for ever.
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        exchange(stream, method, path, &[])
    }

    /// The JSON of a route of the control socket.
    pub fn get(&self, path: &str) -> Option<Value> {
        let reply = self.request("GET", path)?;
        serde_json::from_str(&reply.body).ok()
    }

    pub fn status(&self) -> Value {
        wait_for("the status", || self.get("/admin/resources/stats"))
    }

    /// One value of the metrics page, by its name and labels as they are written there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let page = self.request("GET", "/metrics")?.body;
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Every living process that was started on this stage, but for the daemon.
    pub fn population(&self) -> Vec<outside::Process> {
        let daemon = self.daemon.as_ref().map(|daemon| daemon.id() as i32);
        outside::marked(self.folder.path()).into_iter().filter(|process| Some(process.pid) != daemon && process.state != 'Z').collect()
    }

    /// Folders of control groups that daemons of this stage have made and that are still there.
    pub fn groups_left(&self) -> Vec<PathBuf> {
        self.pids.iter().flat_map(|pid| outside::groups_of_instance(*pid)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = rustix::process::kill_process(Pid::from_child(&daemon), Signal::TERM);
            let begun = Instant::now();
            while matches!(daemon.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(LOOK);
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let left = self.population();
            for process in &left {
                process.kill();
            }
            // Refused while the kernel has not let go of who was in it: a group that stays would be another daemon's of that number.
            for group in self.groups_left() {
                outside::remove_group(&group);
            }
            if left.is_empty() && self.groups_left().is_empty() {
                break;
            }
            std::thread::sleep(LOOK);
        }
    }
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One HTTP/1.1 exchange on a connection of its own.
pub fn exchange(mut stream: impl Read + Write, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Reply> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
