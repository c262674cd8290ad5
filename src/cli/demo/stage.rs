//! The stage: limits that are tight here, a temporary folder, and on it the real daemon with the hungry workers.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Serialize;

use super::part::{self, Appetite};
use crate::actuators::undo;
use crate::cli::client::Client;
use crate::config::ALIASES;
use crate::config::settings::{Sampling, Scope};
use crate::daemon::folders;
use crate::host::Paths;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::http::listen::SOCKET;
use crate::sampling::Sampler;

/// What the workers are held to, at the most; a small machine gets smaller ones.
const MOST_CORES: f64 = 1.0;
const MOST_MEMORY: u64 = 200_000_000;
/// Below this the daemon and the workers themselves would be the load.
const LEAST_MEMORY: u64 = 40_000_000;
/// Of the free memory that is there, one in so many.
const MEMORY_ONE_IN: u64 = 4;
/// Of the cores, too: little enough that three threads get over it on a machine that is busy already.
const CORES_ONE_IN: f64 = 4.0;
const HOG_THREADS: u64 = 3;
/// The leak is as fast as this whole duration needs it to be: so many of the demo's parts fill the limit once.
const LEAKS_PER_DEMO: f64 = 1.8;
/// The workers end by themselves this long after their part should be over.
const GRACE: Duration = Duration::from_secs(60);
/// An ordered end takes a fraction of a second; after this it is not waited for.
const END: Duration = Duration::from_secs(10);
/// For the last processes of a daemon that was killed.
const SWEEP: Duration = Duration::from_secs(3);

/// The small limits of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    #[serde(rename = "cpu_cores")]
    pub cores: f64,
    /// Bytes.
    #[serde(rename = "memory_bytes")]
    pub memory: u64,
}

impl Limits {
    /// Tight enough that three threads and a leak get over them on this machine, small enough that nobody else is harmed.
    ///
    /// # Errors
    /// When there is too little free memory to show anything.
    pub fn here() -> Result<Limits, String> {
        let paths = Paths::default();
        let sampling = Sampling { interval: Duration::from_secs(1), scope: Scope::Auto, report_every: None };
        let readings = Sampler::new(&paths, &sampling, &Layout::discover(&paths), []).read(&[], Moment::now());
        let free = readings.memory.limit.known().zip(readings.memory.working_set.known()).map(|(limit, used)| limit.saturating_sub(used));
        Limits::of(readings.cpu.limit_cores.known().unwrap_or(1.0), free)
    }

    fn of(cores: f64, free: Option<u64>) -> Result<Limits, String> {
        let memory = free.map_or(MOST_MEMORY, |free| (free / MEMORY_ONE_IN).min(MOST_MEMORY));
        if memory < LEAST_MEMORY {
            let needed = LEAST_MEMORY * MEMORY_ONE_IN / 1_000_000;
            return Err(format!("the demo needs {needed} MB of free memory, {} MB are there", free.unwrap_or(0) / 1_000_000));
        }
        // Hundredths of a core, so that what is shown is what is set.
        let cores = (cores / CORES_ONE_IN).clamp(0.1, MOST_CORES);
        Ok(Limits { cores: (cores * 100.0).round() / 100.0, memory })
    }

    /// Half of the limit at once, then a leak that is over the line after a sixth of the demo.
    fn appetite(self, demo: Duration) -> Appetite {
        let part = |share: f64| (self.memory as f64 * share) as u64;
        let rate = self.memory as f64 * LEAKS_PER_DEMO / demo.as_secs_f64().max(1.0);
        Appetite { base: part(0.5), cache: part(0.3), rate: rate as u64, most: part(1.5) }
    }
}

/// A temporary folder of our own; it goes when this goes.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one in `$TMPDIR`, or else wherever one can be made.
    ///
    /// # Errors
    /// When nowhere can be written to.
    pub fn make(env: &[(OsString, OsString)]) -> Result<Folder, String> {
        let given = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| PathBuf::from(value));
        // A socket's path has room for 107 bytes.
        let usable = |path: &PathBuf| path.is_absolute() && path.as_os_str().len() <= 60;
        let bases = [given("TMPDIR"), Some("/tmp".into()), given("XDG_RUNTIME_DIR"), Some("/dev/shm".into()), Some("/var/tmp".into())];
        let mut tried = Vec::new();
        for base in bases.into_iter().flatten().filter(usable) {
            let path = base.join(format!("plimsoll-demo-{}", std::process::id()));
            // Fails when something has that name already: nobody can put anything in our way.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            }
        }
        Err(format!("no temporary folder could be made ({})", tried.join(", ")))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed was removed by somebody else, or is on a disk that has failed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where everything happens.
#[derive(Debug)]
pub struct Stage {
    pub limits: Limits,
    pub duration: Duration,
    folder: Folder,
    port: Option<u16>,
    env: Vec<(OsString, OsString)>,
    set: Vec<String>,
}

impl Stage {
    /// Finds limits, a folder and a port. `set` are settings the user wants otherwise.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub fn prepare(duration: Duration, env: &[(OsString, OsString)], set: Vec<String>) -> Result<Stage, String> {
        let limits = Limits::here()?;
        let folder = Folder::make(env)?;
        // Free now, and the kernel hands it to nobody else soon. Without a loopback device there is just no dashboard.
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map(|address| address.port()).ok();
        // The demo is about its own settings; what is meant for the user's daemon is not for this one.
        let foreign = |name: &str| name.starts_with("PLIMSOLL_") || ALIASES.iter().any(|(alias, _)| *alias == name);
        let env = env.iter().filter(|(name, _)| !foreign(&name.to_string_lossy())).cloned().collect();
        Ok(Stage { limits, duration, folder, port, env, set })
    }

    /// The dashboard's address.
    pub fn url(&self) -> Option<String> {
        self.port.map(|port| format!("http://127.0.0.1:{port}/"))
    }

    /// Starts the daemon, which starts the workers: with `acting` false it measures and lets them do as they like.
    ///
    /// # Errors
    /// When the process cannot be started; whether the daemon gets going is seen by [`Guard::client`].
    #[expect(clippy::disallowed_methods, reason = "the demo's own daemon: no worker, and gone with the demo")]
    pub fn start(&self, acting: bool) -> Result<Guard, String> {
        let file = self.folder.path().join("plimsoll.toml");
        let log = self.folder.path().join("log");
        let told = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        fs::write(&file, self.settings(acting)).map_err(told("could not write the settings"))?;
        let output = File::create(&log).map_err(told("could not write a log"))?;
        let errors = output.try_clone().map_err(told("could not write a log"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("plimsoll").args([part::SUBCOMMAND, part::GUARD, &std::process::id().to_string(), "run", "-c"]).arg(&file);
        for setting in &self.set {
            command.arg("--set").arg(setting);
        }
        command.env_clear().envs(self.env.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // Ctrl-C is for the demo, which ends the daemon in order.
        command.process_group(0);
        let child = command.spawn().map_err(told("could not start the daemon"))?;
        Ok(Guard { child, run: self.folder.path().join("run"), log })
    }

    fn settings(&self, acting: bool) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let path = |name: &str| quoted(&self.folder.path().join(name).to_string_lossy());
        let listen = self.port.map(|port| quoted(&format!("127.0.0.1:{port}"))).unwrap_or_default();
        let seconds = (self.duration + GRACE).as_secs();
        let appetite = self.limits.appetite(self.duration);
        let command = |words: &[String]| {
            let program = std::env::current_exe().ok().filter(|path| path.is_file()).unwrap_or_else(|| "/proc/self/exe".into());
            let program = program.to_string_lossy().into_owned();
            let words = [program, part::SUBCOMMAND.to_owned()].into_iter().chain(words.iter().cloned());
            words.map(|word| quoted(&word)).collect::<Vec<_>>().join(", ")
        };
        let hog = command(&[part::CPU_HOG.to_owned(), HOG_THREADS.to_string(), seconds.to_string()]);
        let Appetite { base, cache, rate, most } = appetite;
        let numbers = [base, cache, rate, most, seconds].map(|number| number.to_string());
        let leaky = command(&[&[part::LEAKY.to_owned()], numbers.as_slice()].concat());
        // The scope is the host: the limits are then held against what the workers use together, whatever else runs.
        format!(
            r#"[daemon]
state_dir = {state}
runtime_dir = {run}
shutdown_timeout = "5s"

[log]
format = "text"

[http]
listen = [{listen}]

[sampling]
interval = "200ms"
scope = "host"
report_every = "never"

[policy]
dry_run = {dry_run}

[policy.cpu]
limit = {cores}
sustain = "500ms"

[policy.memory]
limit = {memory}
sustain = "500ms"

[workers.cpu-hog]
command = [{hog}]
stop = {{ within = "1s" }}

[workers.leaky]
command = [{leaky}]
stop = {{ within = "1s" }}
shed_signal = "SIGUSR1"
"#,
            state = path("state"),
            run = path("run"),
            dry_run = !acting,
            cores = self.limits.cores,
            memory = self.limits.memory,
        )
    }
}

/// The daemon while it runs. It is ended, in order, when this goes.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    /// Its runtime folder.
    run: PathBuf,
    log: PathBuf,
}

impl Guard {
    /// Somebody who can ask it; `None` while it is still starting.
    ///
    /// # Errors
    /// When it has ended: its own last words.
    pub fn client(&mut self) -> Result<Option<Client>, String> {
        self.alive()?;
        Ok(Client::find(&[self.run.join(SOCKET)]).ok())
    }

    /// # Errors
    /// When it has ended: its own last words.
    pub fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("daemon ended ({status}){}", self.last_words())),
            Err(error) => Err(format!("daemon cannot be waited for: {error}")),
        }
    }

    /// What it said that is not a line of its log, which begins with the date.
    fn last_words(&self) -> String {
        let output = fs::read_to_string(&self.log).unwrap_or_default();
        let words: Vec<&str> = output.lines().filter(|line| !line.starts_with(|first: char| first.is_ascii_digit())).collect();
        let words = words.join("\n").trim().trim_start_matches("plimsoll: ").to_owned();
        if words.is_empty() { words } else { format!(": {words}") }
    }

    /// Puts back what a daemon that was killed left behind, groups included: its undo log goes with the folder, and no
    /// later start will read it. After an ordered end there is nothing to do.
    fn sweep(&self) {
        let deadline = Moment::now().steady + SWEEP;
        // The workers are about to end; until they have, their groups stay on record.
        loop {
            let logs = folders::undo_logs(&self.run);
            if logs.is_empty() || Moment::now().steady >= deadline || logs.iter().any(|log| undo::sweep(log, &Paths::default()).is_err()) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        // It has not been waited for, so the number is still its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Moment::now().steady + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Moment::now().steady > deadline {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
                break;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.sweep();
    }
}
