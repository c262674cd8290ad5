//! How the jobs stand, and how their runs ended. Written anew when something about a job has changed, and not else.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One run of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobRun {
    pub job: String,
    /// `schedule`, `catch_up`, `asked`, `disk`
    pub cause: String,
    /// The moment it was due; seconds since 1970, like all times here.
    pub due: Option<f64>,
    pub started: f64,
    /// Seconds on the steady clock, and which start of the machine that clock is of.
    pub started_steady: f64,
    pub boot: Option<String>,
    pub dry_run: bool,
    pub ended: Option<f64>,
    /// One of [`OUTCOMES`]; `None` while it goes on, and for one that was interrupted.
    pub outcome: Option<String>,
    /// It stopped because the daemon ended: whoever is next catches up on it.
    pub interrupted: bool,
    /// How long it took.
    pub seconds: Option<f64>,
    /// By what: `file`, `session`, …
    pub deleted: BTreeMap<String, u64>,
    pub reclaimed_bytes: u64,
    /// Of a single item each; the run went on.
    pub errors: Vec<String>,
    /// What it measured, by name.
    pub figures: BTreeMap<String, f64>,
    /// Why it failed, or what holds it.
    pub detail: Option<String>,
}

/// How a run may end: the label values of `plimsoll_job_runs_total{outcome}`.
pub const OUTCOMES: [&str; 5] = ["done", "planned", "held", "stopped", "failed"];

/// One configured job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    pub name: Arc<str>,
    /// `files`, `sessions`, `backup`
    pub kind: String,
    /// `idle`, `waiting`, `running`
    pub state: String,
    /// Absent for a job that only runs when it is asked for.
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    /// It only reports, by its settings.
    pub dry_run: bool,
    /// Seconds since 1970.
    pub next_run: Option<f64>,
    pub waits_for: Option<String>,
    /// What holds its plan until somebody says yes.
    pub brake: Option<String>,
    pub running: Option<JobProgress>,
    pub last_run: Option<JobRun>,
    pub last_success: Option<f64>,
    /// By outcome, zeros included.
    pub runs_total: Vec<(String, u64)>,
    /// By reason, zeros included.
    pub skips_total: Vec<(String, u64)>,
    /// By what was deleted.
    pub deleted_total: BTreeMap<String, u64>,
    pub reclaimed_bytes_total: u64,
    /// What the last run that measured it has found, by name.
    pub figures: BTreeMap<String, f64>,
    /// The last runs, the latest first. Asked for on a route of their own.
    #[serde(skip)]
    pub runs: Vec<JobRun>,
}

/// A run that goes on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobProgress {
    /// Seconds since 1970.
    pub started: f64,
    pub cause: String,
    pub dry_run: bool,
    pub pid: i32,
    /// So much of the plan is done; `of` is 0 while there is no plan yet.
    pub done: u64,
    pub of: u64,
    pub bytes: u64,
    pub seconds_left: Option<f64>,
    /// Of the processors it may use so many; absent while that has not been said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_cores: Option<f64>,
}
