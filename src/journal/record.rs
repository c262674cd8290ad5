//! The events of the log (design: "Log events"): one variant each, its fields typed, its name stable.

use serde::Serialize;

/// One thing that happened. Serialised with `event` as its tag; field names are the ones in the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    DaemonStarted {
        version: String,
        pid: u32,
        platform: String,
        cgroup: String,
        enforcement: String,
        scope: String,
        cpu_limit_cores: Option<f64>,
        memory_limit_bytes: Option<u64>,
        config_file: Option<String>,
        workers: u32,
    },
    DaemonStopping {
        reason: String,
    },
    ShutdownStep {
        step: &'static str,
        ok: bool,
        took_seconds: f64,
        detail: String,
    },
    /// Seeds row B1: CPU, memory used and total, disk used and total.
    ResourceMetrics {
        cpu_percent: Option<f64>,
        cpu_limit_cores: Option<f64>,
        memory_used_bytes: Option<u64>,
        memory_total_bytes: Option<u64>,
        memory_percent: Option<f64>,
        disk_path: Option<String>,
        disk_used_bytes: Option<u64>,
        disk_total_bytes: Option<u64>,
        disk_percent: Option<f64>,
        workers_running: u32,
        throttled: bool,
    },
    VerdictChanged {
        resource: String,
        state: &'static str,
        was: &'static str,
        used: Option<f64>,
        limit: Option<f64>,
        utilization: Option<f64>,
        high: f64,
        low: f64,
    },
    ThrottleEngaged {
        resource: String,
        used: Option<f64>,
        limit: Option<f64>,
        utilization: Option<f64>,
        high: f64,
        budget: Option<f64>,
        reason: String,
    },
    ThrottleReleased {
        resource: String,
        utilization: Option<f64>,
        low: f64,
        held_seconds: f64,
        reason: String,
    },
    ActionPerformed {
        action_id: u64,
        resource: String,
        action: &'static str,
        workers: Vec<String>,
        outcome: &'static str,
        detail: String,
        reason: String,
        took_seconds: f64,
    },
    /// Measured before, after one second, after ten.
    ActionEffective {
        action_id: u64,
        resource: String,
        action: &'static str,
        before: f64,
        after_1s: Option<f64>,
        after_10s: Option<f64>,
    },
    ActionIneffective {
        action_id: u64,
        resource: String,
        action: &'static str,
        before: f64,
        after_1s: Option<f64>,
        after_10s: Option<f64>,
        next: String,
    },
    /// Over the line with nothing (more) to be done, and why.
    ActionSuppressed {
        resource: String,
        reason: &'static str,
        detail: String,
        unanswered_seconds: f64,
    },
    WorkerStarted {
        worker: String,
        replica: u32,
        pid: i32,
        command: String,
    },
    WorkerReady {
        worker: String,
        replica: u32,
        pid: i32,
        after_seconds: f64,
    },
    WorkerExited {
        worker: String,
        replica: u32,
        pid: i32,
        exit_code: Option<i32>,
        signal: Option<&'static str>,
        reason: &'static str,
        peak_memory_bytes: Option<u64>,
        cpu_seconds: f64,
        lifetime_seconds: f64,
        survivors_killed: u32,
    },
    WorkerRecycled {
        worker: String,
        replica: u32,
        old_pid: i32,
        cause: &'static str,
        memory_bytes: Option<u64>,
        detail: String,
    },
    WorkerGaveUp {
        worker: String,
        replica: u32,
        exits: u32,
        within_seconds: f64,
    },
    WorkerStartFailed {
        worker: String,
        replica: u32,
        error: String,
        next_try_seconds: Option<f64>,
    },
    ConfigReloaded {
        file: Option<String>,
        changed: Vec<String>,
    },
    ConfigRejected {
        file: Option<String>,
        problems: Vec<String>,
    },
    LimitChanged {
        resource: &'static str,
        was: Option<f64>,
        now: Option<f64>,
        source: &'static str,
    },
    /// Something of an earlier run was put back at the start.
    UndoSwept {
        restored: u32,
        gone: u32,
        failed: u32,
        detail: String,
    },
    /// A part of the daemon does not work; the rest goes on.
    Degraded {
        part: &'static str,
        detail: String,
    },
}
