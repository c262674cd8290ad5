//! The state of the machine and of the daemon as the loop last published it: plain data, all that `status`, `/metrics`
//! and `/admin` show. Owns nothing; the loop writes a new one each tick, everybody else only reads.
//!
//! It is also the wire form of `GET /admin/resources/stats`, so that a `plimsoll status --json` and the route agree by
//! construction. Unknown is `None` (absent on the wire), never 0.

pub mod explain;
pub mod jobs;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::clock::Moment;
use explain::Explained;
use jobs::JobState;

/// Where the loop leaves its last snapshot, and beside it why things are so. A reader holds a lock only for the time of one
/// pointer copy.
#[derive(Debug, Default)]
pub struct Published {
    snapshot: Mutex<Arc<Snapshot>>,
    explained: Mutex<Arc<Explained>>,
}

impl Published {
    pub fn publish(&self, snapshot: Snapshot) {
        // What comes back is dropped here, outside the lock.
        drop(self.exchange(Arc::new(snapshot)));
    }

    /// Publishes `fresh` and gives back what was published before.
    pub fn exchange(&self, fresh: Arc<Snapshot>) -> Arc<Snapshot> {
        std::mem::replace(&mut *lock(&self.snapshot), fresh)
    }

    pub fn latest(&self) -> Arc<Snapshot> {
        lock(&self.snapshot).clone()
    }

    pub fn explain(&self, explained: Explained) {
        let old = std::mem::replace(&mut *lock(&self.explained), Arc::new(explained));
        drop(old);
    }

    pub fn explained(&self) -> Arc<Explained> {
        lock(&self.explained).clone()
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    // A reader that panicked while copying a pointer left the pointer whole.
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Ticks finished since the start; 0 before the first.
    pub tick: u64,
    /// Seconds since 1970 when it was taken.
    pub taken_at: f64,
    /// Seconds since boot when it was taken (`CLOCK_BOOTTIME`), to tell its age by.
    pub taken_at_steady: f64,
    /// The loop promises another snapshot within this many seconds; after three times that it has missed its deadline.
    pub next_within: f64,
    pub daemon: DaemonState,
    pub environment: Environment,
    pub cpu: CpuState,
    pub memory: MemoryState,
    pub pressure: Vec<PressureState>,
    pub disks: Vec<DiskState>,
    pub policy: PolicyState,
    pub workers: Vec<WorkerState>,
    /// In the order of their names.
    #[serde(default)]
    pub jobs: Arc<Vec<JobState>>,
    pub counters: Counters,
}

impl Snapshot {
    /// How many promised gaps may pass without a new snapshot before the loop counts as stalled.
    const PATIENCE: f64 = 3.0;

    /// Seconds since it was taken; `None` before the first tick.
    pub fn age(&self, now: Moment) -> Option<f64> {
        (self.tick > 0).then(|| (now.steady.as_secs_f64() - self.taken_at_steady).max(0.0))
    }

    /// The age in seconds above which the loop has missed its deadline.
    pub fn deadline(&self) -> f64 {
        Self::PATIENCE * self.next_within
    }

    /// True while the loop keeps its promise of a new snapshot; false before the first.
    pub fn loop_alive(&self, now: Moment) -> bool {
        self.age(now).is_some_and(|age| age <= self.deadline())
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DaemonState {
    pub version: String,
    pub pid: u32,
    /// Seconds since 1970.
    pub started_at: f64,
    pub config_file: Option<String>,
    /// The addresses HTTP is really served on: the port that was found where 0 was asked for.
    #[serde(default)]
    pub listening: Vec<String>,
    pub config_reload_successful: bool,
    pub config_reloaded_at: f64,
    pub dry_run: bool,
    pub shutting_down: bool,
    /// Every worker has been started and all are past their start.
    pub ready: bool,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub cpu_seconds: Option<f64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    /// How much of its optional work the daemon has given up because it cost too much itself.
    #[serde(default)]
    pub given_up: u64,
    /// Lines of the log that were dropped because whoever reads it did not keep up.
    #[serde(default)]
    pub log_dropped_total: u64,
    /// Why events or samples are not being kept, if they are not.
    pub history_problem: Option<String>,
}

/// What was found at the start: the labels of `plimsoll_environment_info`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Environment {
    /// `systemd`, `docker`, `kubernetes`, `railway`, `container`, `host` …
    pub platform: String,
    /// `v1`, `v2`, `hybrid`, `none`
    pub cgroup: String,
    /// The best throttle that works here: `cgroup`, `signal`, `nice`, `observe`
    pub enforcement: String,
    /// Where the memory limit comes from: `cgroup`, `file`, `machine`, `settings`
    pub limit_source: String,
    /// `container`, `host`, `worker` (the container a worker lives in) or `workers` (their processes, where that is not seen)
    pub scope: String,
    /// How memory pressure is heard of: `trigger, 2000 ms`, or `polled: …` with the reason.
    #[serde(default)]
    pub pressure: String,
    /// Whether the daemon's own pages are `locked` in memory, or why not.
    #[serde(default)]
    pub pages: String,
    /// For people: each thing that does not work here, with its reason.
    pub limitations: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CpuState {
    pub limit_cores: Option<f64>,
    pub limit_source: String,
    pub used_cores: Option<f64>,
    pub usage_seconds_total: Option<f64>,
    pub throttled_seconds_total: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemoryState {
    pub limit_bytes: Option<u64>,
    pub limit_source: String,
    pub current_bytes: Option<u64>,
    pub working_set_bytes: Option<u64>,
    pub unreclaimable_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    /// Reclaimed and wanted back.
    #[serde(default)]
    pub refaulted_bytes_total: Option<u64>,
    /// `memory.events`, by name (`high`, `max`, `oom`, `oom_kill`); empty where there are none.
    pub events: Vec<(String, u64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PressureState {
    /// `cpu`, `memory`, `io`
    pub resource: String,
    pub waiting_seconds_total: Option<f64>,
    pub stalled_seconds_total: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiskState {
    pub path: String,
    pub size_bytes: Option<u64>,
    pub avail_bytes: Option<u64>,
    pub files: Option<u64>,
    pub files_free: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PolicyState {
    /// True while any resource is over its line or a throttle is on: what `/admin/throttle` answers.
    pub throttled: bool,
    /// When it is expected to be over, in seconds, where that can be told.
    pub retry_after_s: Option<f64>,
    pub resources: Vec<ResourceState>,
}

/// The last verdict on one resource and what was done about it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ResourceState {
    /// The label value: `cpu`, `memory`, `disk:/app/data`, `worker:web` (the fullest replica).
    pub resource: String,
    /// `normal`, `high`, `critical`
    pub state: String,
    /// Seconds since 1970.
    pub since: f64,
    /// Cores or bytes.
    pub used: Option<f64>,
    pub limit: Option<f64>,
    pub utilization: Option<f64>,
    /// `scope`, `workers` or `worker`: whose usage is judged.
    pub basis: String,
    pub high: f64,
    pub low: f64,
    pub critical: Option<f64>,
    /// Of memory: which number is judged, `unreclaimable` or `working_set`.
    #[serde(default)]
    pub measure: Option<String>,
    /// The sign of stress that made it the working set, for people.
    #[serde(default)]
    pub evidence: Option<String>,
    /// Until it is full, where it fills.
    #[serde(default)]
    pub exhaustion_seconds: Option<f64>,
    /// A throttle is on for this resource.
    pub throttled: bool,
    /// The last action taken, for people.
    pub last_action: Option<String>,
    /// What the last action that was measured to the end brought: before, after one second, after ten.
    #[serde(default)]
    pub last_effect: Option<String>,
    /// Seconds over the line with nothing tried and nothing working; 0 while all is well.
    pub unanswered_seconds: f64,
    /// Why nothing (more) is being done, if nothing is.
    pub unanswered_reason: Option<String>,
}

/// One configured worker over all its replicas.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WorkerState {
    pub name: Arc<str>,
    pub desired: u32,
    /// How many replicas are in each state, in a fixed order, zeros included.
    pub states: Vec<(String, u32)>,
    pub replicas: Vec<ReplicaState>,
    /// Over every life of every replica.
    pub cpu_seconds_total: f64,
    pub memory_bytes: Option<u64>,
    /// The largest memory any replica has had.
    pub peak_memory_bytes: Option<u64>,
    /// 0 free, 1 held stopped: the mean over the replicas.
    pub throttle_ratio: f64,
    /// Time taken away by us.
    pub throttled_seconds_total: f64,
    pub starts_total: u64,
    /// By reason (`clean`, `error`, `signal`, `oom`, `recycled`, `stopped`), zeros included.
    pub exits_total: Vec<(String, u64)>,
    /// By cause (`memory`, `cpu`, `lifetime`, `leak`, `manual`), zeros included.
    pub recycles_total: Vec<(String, u64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReplicaState {
    pub index: u32,
    pub state: String,
    pub pid: Option<i32>,
    /// Seconds since 1970.
    pub started_at: Option<f64>,
    pub used_cores: Option<f64>,
    /// The share it is held to; absent while free.
    pub cores_allowed: Option<f64>,
    /// `cgroup`, `duty`, `nice`: how it is held.
    pub throttle_method: Option<String>,
    pub memory_bytes: Option<u64>,
    pub threads: Option<u32>,
    pub descriptors: Option<u32>,
    pub processes: Option<u32>,
    pub restarts: u32,
    /// Seconds until the next start, while in backoff.
    pub next_start_in: Option<f64>,
    /// What it waits for before it is started, or is ready.
    pub waits_for: Option<String>,
    /// Bytes it does without because others have the same pages; absent unless its pages are merged.
    pub merged_bytes: Option<u64>,
    /// Requests of its life, as they were reported.
    pub requests: Option<u64>,
    /// It is to take the place of the one before it, and has not yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_successor: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// (resource, action, count), zeros for every pair the settings make possible.
    pub actions_total: Vec<(String, String, u64)>,
    pub action_failures_total: Vec<(String, String, u64)>,
    /// (reason, count)
    pub actions_suppressed_total: Vec<(String, u64)>,
    /// (source, count)
    pub source_errors_total: Vec<(String, u64)>,
    pub tick_overruns_total: u64,
    pub reaction_seconds: Histogram,
    pub tick_duration_seconds: Histogram,
}

/// A cumulative histogram over fixed bounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds in seconds, rising; `+Inf` is left out.
    pub bounds: Vec<f64>,
    /// One more than `bounds`: how many fell into each, not cumulated; the last is over every bound.
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    pub fn new(bounds: &[f64]) -> Self {
        Histogram { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += seconds;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}
