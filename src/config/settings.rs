//! What was meant: typed, checked settings. Only this travels through the program; `file.rs` holds what was written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::adopt::{Adopt, AdoptBy};
pub use super::jobs::Job;
pub use super::units::{IoPriority, ListenAddress, WebAddress};

/// Everything that can be set, checked and with its defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub daemon: Daemon,
    pub log: Log,
    pub http: Http,
    pub host: HostPaths,
    pub sampling: Sampling,
    pub policy: Policy,
    /// In the order of their names.
    pub workers: Vec<Arc<Worker>>,
    /// In the order of their names.
    pub jobs: Vec<Arc<Job>>,
    /// The file the settings came from, if there was one.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// True when memory is judged against the limit of the place the daemon itself lives in: nothing else is named.
    pub fn takes_own_memory_limit(&self) -> bool {
        self.policy.memory.limit == Ceiling::Auto && !matches!(self.sampling.scope, Scope::Worker(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub state_dir: Folder,
    pub runtime_dir: Folder,
    /// The whole ordered shutdown is over after this long.
    pub shutdown_timeout: Duration,
    pub leftovers: Leftovers,
    pub upgrade: Upgrade,
}

/// What becomes of workers of an earlier daemon that live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Leftovers {
    Adopt,
    End,
}

/// When the daemon becomes another program that is in its program's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Upgrade {
    Auto,
    Reload,
    Never,
}

/// A folder, and whether somebody asked for exactly this one: a default that cannot be used is replaced by a per-user
/// folder, an explicit one that cannot be used is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    pub path: PathBuf,
    pub explicit: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Text,
    Json,
    Journald,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Http {
    /// Empty: no TCP listener, the control socket only.
    pub listen: Vec<SocketAddr>,
    /// The key itself, already read from its file or the environment. Never printed.
    pub api_key: Option<Secret>,
    pub dashboard: bool,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("listen", &self.listen).field("api_key", &self.api_key).field("dashboard", &self.dashboard).finish()
    }
}

/// A value that never shows itself in a log, an error or `config show`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Self {
        Secret(value)
    }

    /// The value, for comparing it with what a client sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where the kernel is reached, so that a whole machine can be a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPaths {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/sys/fs/cgroup`: mount points below that in mountinfo are looked for here.
    pub cgroup: PathBuf,
    /// `/run/systemd/journal/stdout`
    pub journal: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The longest gap between two ticks.
    pub interval: Duration,
    pub scope: Scope,
    /// One `resource_metrics` line in the log this often; `None` for never.
    pub report_every: Option<Duration>,
}

/// What is held under the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The container the daemon lives in when that has limits, else the host.
    Auto,
    Container,
    Host,
    /// The container that the worker of this name lives in.
    Worker(Arc<str>),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scope::Auto => f.write_str("auto"),
            Scope::Container => f.write_str("container"),
            Scope::Host => f.write_str("host"),
            Scope::Worker(name) => write!(f, "worker {name}"),
        }
    }
}

/// The scopes that are one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScopeWord {
    /// The container the daemon lives in when that has limits, else the host.
    Auto,
    Container,
    Host,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub dry_run: bool,
    pub cpu: CpuPolicy,
    pub memory: MemoryPolicy,
    pub disks: Vec<DiskPolicy>,
}

/// What 100 % is.
#[derive(Clone, Debug, PartialEq)]
pub enum Ceiling<T> {
    /// The limit that will really hurt.
    Auto,
    /// A limit set below that of a scope without one of its own is held against what the workers use together, not against
    /// what strangers use.
    Set(T),
    /// The same, read from a file in every look.
    File(LimitFile),
}

impl<T: Copy> Ceiling<T> {
    /// The amount, where the settings give it themselves.
    pub fn set(&self) -> Option<T> {
        match self {
            Ceiling::Set(amount) => Some(*amount),
            Ceiling::Auto | Ceiling::File(_) => None,
        }
    }

    pub fn file(&self) -> Option<&LimitFile> {
        match self {
            Ceiling::File(file) => Some(file),
            Ceiling::Auto | Ceiling::Set(_) => None,
        }
    }
}

/// A file of one decimal number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitFile {
    pub path: PathBuf,
    /// What one is in it: bytes, or thousandths of a processor.
    pub unit: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CpuPolicy {
    /// Cores.
    pub limit: Ceiling<f64>,
    pub rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPolicy {
    /// Bytes.
    pub limit: Ceiling<u64>,
    pub rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DiskPolicy {
    pub path: PathBuf,
    pub rule: Rule,
}

/// When a resource is `high` or `critical`, and what is then tried, mildest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub high: Line,
    /// Under this it is over; always below `high`.
    pub low: Line,
    pub critical: Option<Line>,
    /// How long usage must stay over a line before the verdict follows. A `critical` line counts at once where nothing
    /// is sustained by waiting (memory and disk); see `policy::hysteresis`.
    pub sustain: Duration,
    pub on_high: Vec<Rung>,
    pub on_critical: Vec<Rung>,
}

/// A threshold as a share of the effective limit, or as an absolute amount (bytes; cores for the CPU).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Line {
    /// 0.8 for `"80%"`.
    Share(f64),
    Amount(f64),
}

impl Line {
    /// The line as an amount in the unit of `limit`.
    pub fn amount_of(self, limit: f64) -> f64 {
        match self {
            Line::Share(share) => share * limit,
            Line::Amount(amount) => amount,
        }
    }

    /// The line as a share of `limit`; above 1 where the amount is larger than the limit.
    pub fn share_of(self, limit: f64) -> f64 {
        match self {
            Line::Share(share) => share,
            Line::Amount(amount) if limit > 0.0 => amount / limit,
            Line::Amount(_) => f64::INFINITY,
        }
    }
}

/// One step of the ladder (design: "The idea in one picture").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rung {
    Notify,
    /// Workers are asked to drop caches.
    Shed,
    /// The kernel is asked to take back what is idle.
    Reclaim,
    /// A worker is slowed.
    Throttle,
    /// A worker is replaced gracefully.
    Recycle,
    Kill,
    /// A retention job runs now.
    Job(Arc<str>),
}

impl Rung {
    /// The word used in the file, the metrics and the log; a job's rung is `job` in metrics, whose label values are a fixed list.
    pub fn word(&self) -> &'static str {
        match self {
            Rung::Notify => "notify",
            Rung::Shed => "shed",
            Rung::Reclaim => "reclaim",
            Rung::Throttle => "throttle",
            Rung::Recycle => "recycle",
            Rung::Kill => "kill",
            Rung::Job(_) => "job",
        }
    }

    /// True for the rungs that end a process: they are never used for what somebody else uses.
    pub fn is_drastic(&self) -> bool {
        matches!(self, Rung::Recycle | Rung::Kill)
    }
}

#[derive(Clone, PartialEq)]
pub struct Worker {
    pub name: Arc<str>,
    /// The program and its arguments; never empty, unless it is adopted.
    pub command: Vec<String>,
    /// Somebody else starts it.
    pub adopt: Option<Adopt>,
    pub directory: Option<PathBuf>,
    pub user: Option<String>,
    pub group: Option<String>,
    pub env: BTreeMap<String, String>,
    pub env_files: Vec<EnvFile>,
    pub replicas: Replicas,
    /// Bound by the daemon, passed on as descriptors from 3.
    pub listen: Vec<ListenAddress>,
    /// Started after these are ready; stopped before them.
    pub after: Vec<Arc<str>>,
    pub ready: Ready,
    /// `Some`: asked once more, from time to time; only with a check by TCP or HTTP.
    pub health: Option<Health>,
    pub restart: Restart,
    pub backoff: Backoff,
    pub stop: Stop,
    /// Higher is spared longer.
    pub priority: i32,
    /// Share of the CPU budget beside other workers, 1 to 10000; 100 unless set.
    pub weight: u32,
    /// Never recycled or killed for a resource's sake.
    pub protected: bool,
    pub throttle: ThrottleMethod,
    /// The longest a duty cycle holds the worker stopped in one go.
    pub longest_stop: Duration,
    /// None unless set: SIGUSR1 kills a program that does not expect it.
    pub shed_signal: Option<Signal>,
    pub on_daemon_death: OnDaemonDeath,
    /// `Some`: runs once among all daemons that share this file.
    pub lock: Option<Lock>,
    pub process: ProcessSettings,
    pub output: Output,
    pub limits: Limits,
    pub recycle: Recycle,
    /// `Some`: each child of the process is policed on its own by these, and `limits.memory` and `recycle` say nothing of the whole.
    pub members: Option<MemberRules>,
}

/// What holds for each child of a pre-fork master.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberRules {
    /// Bytes: asked to end at 92 % of it, killed at it.
    pub limit: Option<u64>,
    /// Bytes: over this for `sustain`, asked to end.
    pub memory: Option<u64>,
    pub sustain: Duration,
    pub leak: bool,
    pub lifetime: Option<Duration>,
    /// Drawn once for each child, taken off `lifetime`.
    pub jitter: f64,
    /// From when one is replaced to when the next is asked.
    pub gap: Duration,
}

/// Who is policed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Members {
    /// The whole tree of a replica.
    Tree,
    /// Each child of the process that was started.
    Children,
}

/// Properties of the process itself, set between fork and exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    pub umask: Option<u32>,
    pub nice: Option<i32>,
    pub ionice: Option<IoPriority>,
    /// Processors by number, ascending; never empty.
    pub affinity: Option<Vec<u32>>,
    pub oom_score_adj: Option<i32>,
    pub merge_pages: bool,
    /// (which, the soft and hard limit); `None`: unlimited.
    pub rlimits: Vec<(Rlimit, Option<u64>)>,
}

/// The resources of `setrlimit` that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rlimit {
    AddressSpace,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Nofile,
    Nproc,
    Stack,
}

/// A file of variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFile {
    pub path: PathBuf,
    /// Need not be there.
    pub optional: bool,
}

/// The file a singleton is locked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// A file of this name in the state folder.
    Own(String),
    At(PathBuf),
}

/// When a replica counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub by: ReadyBy,
    /// One that is not by then is ended.
    pub within: Duration,
}

/// How a replica that was ready is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub every: Duration,
    pub within: Duration,
    /// So many in a row, and it is ended.
    pub fails: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyBy {
    /// As soon as its program runs.
    Running,
    /// `READY=1` to its `NOTIFY_SOCKET`.
    Notify,
    /// It accepts a connection.
    Tcp(SocketAddr),
    /// It answers a GET with a status from 200 to 399.
    Http(WebAddress),
    /// It has lived this long.
    Delay(Duration),
    /// It has ended with code 0.
    Done,
}

/// What becomes of a worker when the daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDaemonDeath {
    /// It goes on, unguarded, until the next daemon takes it over.
    Resume,
    /// It is ended.
    Stop,
}

/// Whether a replacement is ready before the old one is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// For a worker with `listen`, where there is memory for both.
    Auto,
    /// Where there is memory for both.
    Always,
    /// The old one is stopped first.
    Never,
}

impl Worker {
    /// It is started by us, or somebody has said how it is restarted.
    pub fn can_be_restarted(&self) -> bool {
        self.adopt.as_ref().is_none_or(|adopt| adopt.restart.is_some())
    }

    /// It is started by us, or somebody has said that it may be ended.
    pub fn may_be_ended(&self) -> bool {
        self.adopt.as_ref().is_none_or(|adopt| adopt.may_end)
    }

    /// What `[workers.NAME]` means with nothing in it but the command.
    pub fn new(name: &str, command: Vec<String>) -> Worker {
        Worker {
            name: Arc::from(name),
            command,
            adopt: None,
            directory: None,
            user: None,
            group: None,
            env: BTreeMap::new(),
            env_files: Vec::new(),
            replicas: Replicas::Count(1),
            listen: Vec::new(),
            after: Vec::new(),
            ready: Ready { by: ReadyBy::Running, within: Duration::from_secs(30) },
            health: None,
            restart: Restart::Always,
            backoff: Backoff {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(60),
                give_up: 10,
                within: Duration::from_secs(600),
                healthy_after: Duration::from_secs(10),
            },
            stop: Stop { signal: Signal(libc::SIGTERM), within: Duration::from_secs(30) },
            priority: 0,
            weight: 100,
            protected: false,
            throttle: ThrottleMethod::Auto,
            longest_stop: Duration::from_millis(250),
            shed_signal: None,
            on_daemon_death: OnDaemonDeath::Resume,
            lock: None,
            process: ProcessSettings::default(),
            output: Output::Inherit,
            limits: Limits::default(),
            recycle: Recycle { jitter: 0.1, gap: Duration::from_secs(5), ..Recycle::default() },
            members: None,
        }
    }
}

/// Without the values of its variables, which are often secrets, and the many plain settings.
impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let variables: Vec<&String> = self.env.keys().collect();
        f.debug_struct("Worker")
            .field("name", &self.name)
            .field("command", &self.command)
            .field("env", &variables)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    Count(u32),
    /// The effective CPU limit, rounded up, plus this many (seeds row D1: `cpus+1`).
    Cpus {
        plus: u32,
    },
}

impl Replicas {
    /// How many that is on `limit_cores` of CPU; at least one when asked for by CPU.
    pub fn count(self, limit_cores: f64) -> u32 {
        match self {
            Replicas::Count(count) => count,
            // A limit is finite and positive; the cast saturates for anything absurd.
            Replicas::Cpus { plus } => (limit_cores.ceil().clamp(1.0, 4096.0) as u32).saturating_add(plus),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// Exponential from the second early end on: `first`, doubled each time up to `longest`; given up after `give_up` starts within
/// `within`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
    pub give_up: u32,
    pub within: Duration,
    /// Up this long, a replica was healthy.
    pub healthy_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub signal: Signal,
    /// Then the whole tree is killed.
    pub within: Duration,
}

/// A signal by its number on this platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(pub i32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThrottleMethod {
    /// The best that works here: cgroup, else duty, else nice.
    Auto,
    Cgroup,
    Duty,
    Nice,
    Never,
}

/// Where a worker's standard output and error go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// To where the daemon's own go.
    #[default]
    Inherit,
    Journald,
    File(OutputFile),
}

/// A file that begins anew when it is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Absolute.
    pub path: PathBuf,
    /// Bytes.
    pub max_size: u64,
    /// So many full ones are kept.
    pub keep: u32,
}

impl Output {
    pub fn file(&self) -> Option<&OutputFile> {
        match self {
            Output::File(file) => Some(file),
            Output::Inherit | Output::Journald => None,
        }
    }

    /// True when whoever writes to the one writes to the other: a file may have another size and still be the same.
    pub fn is_same_place(&self, other: &Output) -> bool {
        match (self, other) {
            (Output::File(one), Output::File(other)) => one.path == other.path,
            (one, other) => one == other,
        }
    }
}

/// Per replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Cores: 1.5 for `"150%"`.
    pub cpu: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recycle {
    pub lifetime: Option<Duration>,
    /// Bytes: over this for `sustain`, the worker is replaced.
    pub memory: Option<u64>,
    pub sustain: Duration,
    /// A replica whose memory leaks is replaced: see `policy::leak`.
    pub leak: bool,
    /// Replaced after so many.
    pub requests: Option<u32>,
    /// 0.1 for `"10%"`: drawn once per life, taken off `lifetime` and `requests`.
    pub jitter: f64,
    /// From the end of one replacement to the begin of the next.
    pub gap: Duration,
    pub overlap: Overlap,
}

impl Default for Recycle {
    fn default() -> Self {
        Recycle {
            lifetime: None,
            memory: None,
            sustain: Duration::from_secs(30),
            leak: false,
            requests: None,
            jitter: 0.0,
            gap: Duration::ZERO,
            overlap: Overlap::Auto,
        }
    }
}
