//! One run of a job, as its kind sees it: what it is asked, whom it tells, and what came of it. The kinds know neither the
//! daemon nor the terminal.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{Item, Totals};
use crate::host::clock::Moment;

/// What is asked of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The plan alone.
    pub dry_run: bool,
    /// Somebody has looked at the plan: no brake holds it, and no second look is waited for.
    pub yes: bool,
    /// A disk is over its line: ages shrink towards `min_age` until so many bytes are free again.
    pub free_bytes: Option<u64>,
    /// The wall clock has jumped since the last run, so ages cannot be trusted.
    pub clock_jumped: bool,
}

/// Whoever has started a run and follows it.
pub trait Foreman {
    fn now(&mut self) -> Moment;
    fn tell(&mut self, report: Report);
    /// Waits so long; false, at once, when the run is to stop at the next safe point: its time is up, or it was asked to.
    fn wait(&mut self, time: Duration) -> bool;
    /// To be called often, where nothing is held that anybody may wait for: a run that uses more of the processor than it may waits
    /// in here. False when the run is to stop.
    fn at_safe_point(&mut self) -> bool;
}

/// What a run says while it goes on: a line of JSON each where it crosses a pipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "report")]
pub enum Report {
    /// One more item of the plan.
    Planned(Item),
    /// The plan is complete.
    Plan(Totals),
    /// So much of the plan is done. `seconds_left` as far as it can be told.
    Progress { done: u64, of: u64, bytes: u64, seconds_left: Option<f64> },
    /// Something a person should know; the run goes on.
    Warning { text: String },
    /// A line for the record: `session_cleanup_analysis`, `backup_verified`.
    Event { event: String, fields: serde_json::Map<String, serde_json::Value> },
}

/// What came of a run that did not fail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub end: End,
    /// By what: `file`, `session`, `checkpoint`, …
    pub deleted: BTreeMap<String, u64>,
    /// What the deleted took; for a database the pages that became free.
    pub reclaimed_bytes: u64,
    /// Of a single item each; the run went on.
    pub errors: Vec<String>,
    /// For status and metrics, by their names there: `sessions`, `backup_size_bytes`, `database_size_bytes`, …
    pub figures: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Everything that was planned.
    #[default]
    Done,
    /// Only the plan was asked for.
    Planned,
    /// A brake holds the plan; the reason is in its totals.
    Held,
    /// Asked to stop, or out of time: what is done is done, the rest is for the next run.
    Stopped,
    /// Of several things some were done and some could not be: the errors say which, and the figures are of those that were.
    Failed,
}

/// A run that could not go on; the fragment finishes "could not …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);
