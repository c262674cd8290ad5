//! What was written: the TOML file as it is, key by key.
//!
//! These structures are the definition of every setting. Its description is the text on the field; the JSON Schema, the
//! check that finds unknown keys and bad values, and `docs/configuration.md` are all made from here. Defaults of the
//! sections are in `config/plimsoll.toml`; defaults of a worker and of a disk, of which there may be any number or none,
//! are in the `Default`s below.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::{Leftovers, LogFormat, LogLevel, Members, OnDaemonDeath, Overlap, Restart, ScopeWord, ThrottleMethod, Upgrade};
use super::units::{
    Account, Address, BytesLine, Cores, CoresLine, Count, CpuDivisor, CpuLimit, Every, FileMask, IoPriority, ListenAddress, MemoryDivisor,
    MemoryLimit, Percent, ProcessorList, ResourceAmount, RungName, SignalName, Size, Span, Variable, WebAddress,
};

mod jobs;

pub use jobs::Job;

/// Settings of Plimsoll.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub daemon: Daemon,
    pub log: Log,
    pub http: Http,
    pub host: Host,
    pub sampling: Sampling,
    pub policy: Policy,
    /// The programs looked after, each under its name: letters, digits, `-` and `_`.
    #[serde(default)]
    pub workers: BTreeMap<String, Worker>,
    /// What is done again and again, each under its name: letters, digits, `-` and `_`.
    #[serde(default)]
    pub jobs: BTreeMap<String, Job>,
}

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Daemon {
    /// Folder of the record of runs, events and samples; an absolute path. The default falls back to a folder of the
    /// user when it cannot be used; a folder named here must be usable.
    #[schemars(length(min = 1))]
    pub state_dir: String,
    /// Folder of the control socket `plimsoll.sock` and of the lock that keeps a second daemon away; an absolute path,
    /// with the same fallback.
    #[schemars(length(min = 1))]
    pub runtime_dir: String,
    /// The whole ordered shutdown is over after this long.
    #[schemars(extend("x-range" = ["100ms", "1d"]))]
    pub shutdown_timeout: Span,
    /// What becomes of workers of an earlier daemon that was killed and that live on: `adopt` takes them over as they are, `end`
    /// ends them and starts them anew. Those that are not in the settings any more are ended.
    pub leftovers: Leftovers,
    /// When another file in the place of the daemon's own program is become, in place: `reload`, when a reload is asked for; `auto`,
    /// then, and as a service of systemd by itself within 15 seconds or the next tick after; `never`, only by `plimsoll upgrade`. A file
    /// that does not take the settings is refused, as is one that belongs to others or that others may write to.
    pub upgrade: Upgrade,
}

/// What the daemon says on stderr or to the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least important line that is written.
    pub level: LogLevel,
    /// `auto` is text on a terminal, the journal's own protocol when stderr is the journal, else JSON.
    pub format: LogFormat,
}

/// Metrics, health and control over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Addresses to listen on; an empty list leaves the control socket only.
    pub listen: Vec<Address>,
    /// File that holds the key clients send as `X-API-Key`; its first line counts. `credential:NAME` is what systemd hands over by
    /// `LoadCredential=NAME:FILE`. Unset: no key, and control is served on loopback and the control socket only.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// The key itself, in place of a file. Only ever in the environment as `PLIMSOLL_HTTP__API_KEY`: a settings file is
    /// read by too many and a command line by everybody.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// Serve the dashboard at `/`.
    pub dashboard: bool,
}

/// Where the kernel is reached; other paths than these make a folder look like a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The process file system; an absolute path.
    #[schemars(length(min = 1))]
    pub proc: String,
    /// The system file system; an absolute path.
    #[schemars(length(min = 1))]
    pub sys: String,
    /// The control group file system; an absolute path.
    #[schemars(length(min = 1))]
    pub cgroup: String,
    /// The socket of the journal that workers with `output = "journald"` write to; an absolute path.
    #[schemars(length(min = 1))]
    pub journal: String,
}

/// How often and how widely the machine is looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// The longest gap between two looks; it gets shorter by itself as a line comes near.
    #[schemars(extend("x-range" = ["100ms", "1h"]))]
    pub interval: Span,
    /// What is held under the line. `auto`: the container the daemon lives in when that has limits, else the whole machine. With
    /// `{ worker = "app" }` the container that worker lives in, for a daemon that stands beside it in a container of its own.
    pub scope: Scope,
    /// One `resource_metrics` line in the log this often.
    #[schemars(extend("x-range" = ["1s", "365d"]))]
    pub report_every: Every,
}

/// What is held under the line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scope {
    Word(ScopeWord),
    Worker(ScopeOfWorker),
}

/// The container one worker lives in, seen through the oldest process of its first replica. Where that may not be looked at, or is
/// not there, the workers' processes are held together against the limits of files, else the daemon's own, and it is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScopeOfWorker {
    /// The name of a worker below `workers`, as a rule one with `adopt`.
    #[schemars(length(min = 1), extend("default" = null))]
    pub worker: String,
}

/// When a resource is over its line and what is tried then, mildest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Judge and say what would be done, but do nothing.
    pub dry_run: bool,
    pub cpu: Cpu,
    pub memory: Memory,
    /// One rule for each file system that must not fill up.
    #[serde(default)]
    pub disks: Vec<Disk>,
}

/// The processors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// What 100 % is. `auto` finds the limit that will really hurt; a lower one of your own holds the workers to it, be it given
    /// here or read from a file in every look.
    pub limit: LimitOfCpu,
    /// From here on `on_high` is tried.
    pub high: CoresLine,
    /// Under this it is over; always below `high`. Not set: 70 %, or 10 points under a `high` of 70 % or less, or seven
    /// eighths of a `high` in processors.
    pub low: CoresLine,
    /// From here on `on_critical` is tried; always above `high`. Not set: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<CoresLine>,
    /// How long usage must stay over a line before anything is done; `0s` for at once.
    #[schemars(extend("x-range" = ["0s", "1h"]))]
    pub sustain: Span,
    /// Rungs at `high`, in order: `notify`, `throttle`, `recycle`, `kill`.
    pub on_high: Vec<RungName>,
    /// Rungs at `critical`, in order.
    pub on_critical: Vec<RungName>,
}

/// What 100 % of the CPU is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LimitOfCpu {
    Given(CpuLimit),
    File(CpuLimitFile),
}

/// The limit of the CPU from a file of one decimal number, such as a Kubernetes downward API volume writes for `limits.cpu`. It is
/// opened again in every look, so that a resize is followed. While it cannot be read the last limit holds, before the first `auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuLimitFile {
    /// The file.
    #[schemars(length(min = 1), extend("default" = null))]
    pub file: String,
    /// What one is in it. With `1` Kubernetes rounds half a processor up to a whole one, so take `1m` in both places.
    pub divisor: CpuDivisor,
}

impl Default for CpuLimitFile {
    fn default() -> Self {
        CpuLimitFile { file: String::new(), divisor: CpuDivisor(1000) }
    }
}

/// What 100 % of the memory is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LimitOfMemory {
    Given(MemoryLimit),
    File(MemoryLimitFile),
}

/// The limit of memory from a file of one decimal number, such as a Kubernetes downward API volume writes for `limits.memory`. It is
/// opened again in every look, so that a resize is followed. While it cannot be read the last limit holds, before the first `auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryLimitFile {
    /// The file.
    #[schemars(length(min = 1), extend("default" = null))]
    pub file: String,
    /// What one is in it.
    pub divisor: MemoryDivisor,
}

impl Default for MemoryLimitFile {
    fn default() -> Self {
        MemoryLimitFile { file: String::new(), divisor: MemoryDivisor(1) }
    }
}

/// The memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// What 100 % is. `auto` finds the limit that will really hurt; a lower one of your own holds the workers to it, be it given
    /// here or read from a file in every look.
    pub limit: LimitOfMemory,
    /// From here on `on_high` is tried.
    pub high: BytesLine,
    /// Under this it is over; always below `high`. Not set: 70 %, or 10 points under a `high` of 70 % or less, or seven
    /// eighths of a `high` that is a size.
    pub low: BytesLine,
    /// From here on `on_critical` is tried, at once; always above `high`. Not set: 92 %, or half-way from `high` to the
    /// limit when `high` is 92 % or more.
    pub critical: BytesLine,
    /// How long usage must stay over `high` before anything is done; `0s` for at once.
    #[schemars(extend("x-range" = ["0s", "1h"]))]
    pub sustain: Span,
    /// Rungs at `high`, in order: `notify`, `shed`, `reclaim`, `throttle`, `recycle`, `kill`.
    pub on_high: Vec<RungName>,
    /// Rungs at `critical`, in order.
    pub on_critical: Vec<RungName>,
}

/// One file system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// A folder on the file system that is watched; it must be there.
    #[schemars(length(min = 1), extend("default" = null))]
    pub path: String,
    /// From here on `on_high` is tried.
    pub high: BytesLine,
    /// Under this it is over; always below `high`. Not set: 75 %, or 5 points under a `high` of 75 % or less, or fifteen
    /// sixteenths of a `high` that is a size.
    #[schemars(extend("default" = "75%"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<BytesLine>,
    /// From here on `on_critical` is tried, at once; always above `high`. Not set: 90 %, or half-way from `high` to full
    /// when `high` is 90 % or more.
    #[schemars(extend("default" = "90%"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<BytesLine>,
    /// How long usage must stay over `high` before anything is done; `0s` for at once.
    #[schemars(extend("x-range" = ["0s", "1h"]))]
    pub sustain: Span,
    /// Rungs at `high`, in order: `notify`, `throttle`, `job:NAME`.
    pub on_high: Vec<RungName>,
    /// Rungs at `critical`, in order.
    pub on_critical: Vec<RungName>,
}

impl Default for Disk {
    fn default() -> Self {
        Disk {
            path: String::new(),
            high: BytesLine::Percent(Percent(80.0)),
            low: None,
            critical: None,
            sustain: Span::from_secs(10),
            on_high: vec![RungName("notify".to_owned())],
            on_critical: vec![RungName("notify".to_owned())],
        }
    }
}

/// One program, in one or more replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// The program and its arguments. It is looked for in the `PATH` of the worker; a relative path starts in `directory`.
    #[schemars(extend("default" = null))]
    pub command: Vec<String>,
    /// Where it is started; the daemon's own folder unless set.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Who it runs as, by name or number; the daemon's own user unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Account>,
    /// The group it runs as, by name or number; the user's own unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Account>,
    /// Variables on top of the daemon's environment. Never shown.
    pub env: BTreeMap<String, Variable>,
    /// Files of such variables, one `NAME=VALUE` to a line, read at each start; later ones win, `env` wins over all. One whose
    /// path begins with `-` need not be there. `credential:NAME` is what systemd hands over by `LoadCredential=NAME:FILE`.
    pub env_files: Vec<String>,
    /// How many: a number, or `cpus` for the effective CPU limit rounded up, or `cpus+1`.
    pub replicas: Count,
    /// Addresses that the daemon binds once and hands to every replica as descriptors from 3 on (`LISTEN_FDS`): a restart
    /// refuses no connection. Unix sockets by path.
    pub listen: Vec<ListenAddress>,
    /// Who is policed by `limits.memory` and `recycle`: the whole `tree` of a replica, or each of the `children` of a pre-fork
    /// master (gunicorn, uWSGI, php-fpm) on its own: one that is due gets the stop signal, and the master puts another in its place.
    pub members: Members,
    /// Workers that are started, and ready, before this one; they are stopped after it.
    pub after: Vec<String>,
    /// When it counts as ready.
    pub ready: Ready,
    /// Whether it is asked once more, from time to time.
    pub health: Health,
    /// When it is started again after it ended.
    pub restart: Restart,
    /// The pause before it is started again.
    pub backoff: Backoff,
    /// How it is asked to end.
    pub stop: Stop,
    /// Which worker pays first: higher is spared longer.
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Its share of the CPU beside the other workers when there is not enough for all.
    #[schemars(range(min = 1, max = 10000))]
    pub weight: u32,
    /// Never recycled or killed for a resource's sake.
    pub protected: bool,
    /// How it is slowed: `auto` takes the best that works here.
    pub throttle: ThrottleMethod,
    /// The longest a duty cycle holds it stopped in one go.
    #[schemars(extend("x-range" = ["10ms", "10s"]))]
    pub longest_stop: Span,
    /// Sent to ask it to drop its caches. None unless set: SIGUSR1 ends a program that does not expect it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shed_signal: Option<SignalName>,
    /// What becomes of it when the daemon is killed: `resume` goes on without it, `stop` is ended.
    pub on_daemon_death: OnDaemonDeath,
    /// A program that somebody else starts: looked for, held to its limits and counted like any worker, but neither started
    /// nor ended, and let go when the daemon ends. Nothing that says how a worker is started may stand beside it.
    pub adopt: Adopt,
    /// Runs once among all daemons that share its `lock`.
    pub singleton: bool,
    /// The file a singleton is locked by; an absolute path, on a volume that all share. `NAME.lock` in `daemon.state_dir` unless set.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// Permissions new files are not given, such as `"0027"`; the daemon's own unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<FileMask>,
    /// Its nice value, -20 (first) to 19 (last); what the daemon was started with unless set.
    #[schemars(range(min = -20, max = 19))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// Its place before the disk: `idle`, `best-effort:0` to `best-effort:7`, `realtime:0` to `realtime:7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ionice: Option<IoPriority>,
    /// The processors it may run on, such as `0-1`; all the daemon may use unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<ProcessorList>,
    /// How readily the kernel ends it when memory is out, -1000 (never) to 1000 (first). Unless set 300 above the daemon's own.
    #[schemars(range(min = -1000, max = 1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Pages with the same content are kept once (kernel samepage merging; Linux 6.4). Saves memory where replicas hold much
    /// of the same, costs some CPU, and lets who can measure the time of a write guess what is in others' memory.
    pub merge_pages: bool,
    /// What `setrlimit` allows it.
    pub rlimits: Rlimits,
    /// Where its standard output and error go: to where the daemon's own go, to the journal under the worker's name, or to a
    /// file that never grows without end, such as `{ file = "/var/log/web.log", max_size = "10MB", keep = 5 }`.
    pub output: Output,
    /// Hard limits for each replica.
    pub limits: Limits,
    /// When a replica is replaced before it does harm.
    pub recycle: Recycle,
}

impl Default for Worker {
    fn default() -> Self {
        Worker {
            command: Vec::new(),
            directory: None,
            user: None,
            group: None,
            env: BTreeMap::new(),
            env_files: Vec::new(),
            replicas: Count::Number(1),
            listen: Vec::new(),
            members: Members::Tree,
            after: Vec::new(),
            ready: Ready::default(),
            health: Health::default(),
            restart: Restart::Always,
            backoff: Backoff::default(),
            stop: Stop::default(),
            priority: 0,
            weight: 100,
            protected: false,
            throttle: ThrottleMethod::Auto,
            longest_stop: Span::from_millis(250),
            shed_signal: None,
            on_daemon_death: OnDaemonDeath::Resume,
            adopt: Adopt::default(),
            singleton: false,
            lock: None,
            umask: None,
            nice: None,
            ionice: None,
            affinity: None,
            oom_score_adj: None,
            merge_pages: false,
            rlimits: Rlimits::default(),
            output: Output::default(),
            limits: Limits::default(),
            recycle: Recycle::default(),
        }
    }
}

/// How a program that somebody else starts is found: by one of `pidfile`, `unit`, `cgroup` and `match`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adopt {
    /// The file it writes its pid to; an absolute path. It counts only for a process that was started before it was written, and
    /// belongs to root, to the daemon's user or to the user of the process.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidfile: Option<String>,
    /// Its systemd unit, such as `app.service`: everybody in the unit's control group.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its control group, as `/proc/PID/cgroup` names it: everybody in it and below.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// A regular expression on the command line, its words joined by blanks. Each process found is a replica, 64 at most; of a
    /// parent and its child the parent alone.
    #[schemars(length(min = 1))]
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whose processes `match` looks among, by name or number; the daemon's own user's unless set, root's too. A command line is
    /// whatever a process says of itself, so there is no way to say anybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Account>,
    /// A command that restarts it, such as `["systemctl", "restart", "app"]`: run when it is to be replaced, as the daemon's user,
    /// with `PLIMSOLL_WORKER` and `PLIMSOLL_PID`. Without it nothing replaces it.
    #[schemars(extend("default" = null))]
    pub restart: Vec<String>,
    /// The command is ended after this long, and by then the old process must have ended.
    #[schemars(extend("x-range" = ["100ms", "1h"]))]
    pub restart_within: Span,
    /// Whether it may be ended: killed when memory is out, and stopped by `plimsoll workers stop NAME`. Nothing else ever ends it.
    pub may_end: bool,
}

impl Default for Adopt {
    fn default() -> Self {
        Adopt {
            pidfile: None,
            unit: None,
            cgroup: None,
            pattern: None,
            owner: None,
            restart: Vec::new(),
            restart_within: Span::from_secs(60),
            may_end: false,
        }
    }
}

/// When a replica counts as ready: one of these, else as soon as its program runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ready {
    /// It says so itself: `READY=1` to the socket named in `NOTIFY_SOCKET`, as under systemd.
    pub notify: bool,
    /// It accepts a connection there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Address>,
    /// It answers a GET there with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<WebAddress>,
    /// It has lived this long.
    #[schemars(extend("x-range" = ["0s", "1h"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// It has done what it was started for: it has ended with code 0. For what has to be over before others start, such as
    /// migrations; with `restart = "on-failure"` or `"never"`.
    pub done: bool,
    /// One that is not ready after this long is ended; a replacement that is not leaves the old one in its place.
    #[schemars(extend("x-range" = ["100ms", "1d"]))]
    pub within: Span,
}

impl Default for Ready {
    fn default() -> Self {
        Ready { notify: false, tcp: None, http: None, delay: None, done: false, within: Span::from_secs(30) }
    }
}

/// The check of `ready`, once more: one that fails again and again is ended and started anew. For `tcp` and `http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// From one check to the next; never unless set.
    #[schemars(extend("x-range" = ["100ms", "1d"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// A check that has brought nothing by then has failed.
    #[schemars(extend("x-range" = ["10ms", "1h"]))]
    pub within: Span,
    /// So many in a row.
    #[schemars(range(min = 1, max = 1000))]
    pub fails: u32,
}

impl Default for Health {
    fn default() -> Self {
        Health { every: None, within: Span::from_secs(5), fails: 3 }
    }
}

/// What `setrlimit` allows a worker: each a number, a size or `unlimited`, for both the soft and the hard limit; the daemon's
/// own unless set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rlimits {
    /// Address space, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_space: Option<ResourceAmount>,
    /// The largest core dump, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<ResourceAmount>,
    /// CPU time, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<ResourceAmount>,
    /// Data segment, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ResourceAmount>,
    /// The largest file it may write, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fsize: Option<ResourceAmount>,
    /// Memory it may lock, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memlock: Option<ResourceAmount>,
    /// Descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<ResourceAmount>,
    /// Processes and threads of its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<ResourceAmount>,
    /// The stack, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<ResourceAmount>,
}

/// Where standard output and error of a worker go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Output {
    Stream(OutputStream),
    File(OutputFile),
}

impl Default for Output {
    fn default() -> Self {
        Output::Stream(OutputStream::Inherit)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    Inherit,
    Journald,
}

/// A file for the output of all replicas of a worker, written by a small process of its own: neither a daemon that is
/// stopped nor one that is killed holds the worker up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputFile {
    /// An absolute path in a folder that is there, and of no other worker. The file belongs to the daemon's user.
    #[schemars(length(min = 1), extend("default" = null))]
    pub file: String,
    /// A line that would make it larger than this, 64kB to 1TB, begins the next file.
    pub max_size: Size,
    /// So many full files are kept: `FILE.1`, the newest, to `FILE.N`. With 0 the file itself is begun anew.
    #[schemars(range(min = 0, max = 1000))]
    pub keep: u32,
}

impl Default for OutputFile {
    fn default() -> Self {
        OutputFile { file: String::new(), max_size: Size(10_000_000), keep: 5 }
    }
}

/// The pause before a restart: `first`, doubled each time up to `longest`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backoff {
    /// The pause after the second early end in a row; one that had been up for `healthy_after`, and the first to end early,
    /// is replaced at once.
    #[schemars(extend("x-range" = ["10ms", "1h"]))]
    pub first: Span,
    /// The longest pause; never less than `first`.
    #[schemars(extend("x-range" = ["10ms", "1d"]))]
    pub longest: Span,
    /// Given up after this many starts within `within`.
    #[schemars(range(min = 1, max = 1000000))]
    pub give_up: u32,
    /// See `give_up`.
    #[schemars(extend("x-range" = ["1s", "7d"]))]
    pub within: Span,
    /// Up this long, it was healthy, and the pauses begin anew with `first`.
    #[schemars(extend("x-range" = ["100ms", "1d"]))]
    pub healthy_after: Span,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Span::from_secs(1),
            longest: Span::from_secs(60),
            give_up: 10,
            within: Span::from_secs(600),
            healthy_after: Span::from_secs(10),
        }
    }
}

/// How a worker is asked to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Sent first.
    pub signal: SignalName,
    /// Whatever is left of it after this long is killed.
    #[schemars(extend("x-range" = ["0s", "1d"]))]
    pub within: Span,
}

impl Default for Stop {
    fn default() -> Self {
        Stop { signal: SignalName(libc::SIGTERM), within: Span::from_secs(30) }
    }
}

/// Hard limits for each replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most memory; none unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// The most CPU, in processors; none unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
}

/// When a replica is replaced before it does harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recycle {
    /// Replaced at this age; never unless set.
    #[schemars(extend("x-range" = ["1s", "365d"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
    /// Replaced when it holds more than this for as long as `sustain`; never unless set. Below `limits.memory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// How long it must hold more than `memory` without a break: a peak replaces nobody. `limits.memory` does not wait for it.
    #[schemars(extend("x-range" = ["0s", "1h"]))]
    pub sustain: Span,
    /// Replaced when its memory leaks: a proven trend that would reach `memory`, `limits.memory` or its share of the line for
    /// all, never a peak.
    pub leak: bool,
    /// Replaced after so many requests, as they are reported over `POST /admin/workers/NAME/requests`; never unless set.
    #[schemars(range(min = 1, max = 1000000000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Up to this much is taken off `lifetime` and `requests`, drawn once for each life, so that not all go at once.
    pub jitter: Percent,
    /// The least time from the end of one replacement of this worker to the begin of the next. Only memory that is over its
    /// line does not wait for it.
    #[schemars(extend("x-range" = ["0s", "1d"]))]
    pub gap: Span,
    /// Whether the replacement is ready before the old one is asked to end: `auto` for a worker with `listen`, where there is
    /// memory for both; `always` wherever there is memory, for one that can run twice by itself; `never` stops first.
    pub overlap: Overlap,
}

impl Default for Recycle {
    fn default() -> Self {
        Recycle {
            lifetime: None,
            memory: None,
            sustain: Span::from_secs(30),
            leak: false,
            requests: None,
            jitter: Percent(10.0),
            gap: Span::from_secs(5),
            overlap: Overlap::Auto,
        }
    }
}
