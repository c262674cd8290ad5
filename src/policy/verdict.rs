//! What a rule says of one resource, with the numbers that made it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::stress::{Evidence, Measure};
use crate::policy::window::Fill;
use crate::sampling::readings::{Failure, SlotId};

/// What a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Cpu,
    Memory,
    /// By its configured path.
    Disk(Arc<Path>),
    /// One replica's memory against its own limit.
    Worker(SlotId),
}

/// Ordered: `Critical` is more than `High`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Normal,
    High,
    Critical,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Normal, Level::High, Level::Critical];

    pub fn word(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::High => "high",
            Level::Critical => "critical",
        }
    }
}

/// Whose usage is held against the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// All of the scope.
    Scope,
    /// The workers together (a limit was set on a scope that has none).
    Workers,
    /// One replica.
    Worker,
}

/// The judgement of one resource in one tick.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub resource: Resource,
    pub level: Level,
    /// When the level last changed.
    pub since: Moment,
    pub basis: Basis,
    /// Cores or bytes; `None` when it could not be read, and then `level` is the last known one.
    pub used: Option<f64>,
    /// Cores or bytes.
    pub limit: Option<f64>,
    /// `used / limit`; of a disk the share of its inodes where that is the larger one.
    pub utilization: Option<f64>,
    /// The lines as shares of the limit.
    pub high: f64,
    pub low: f64,
    pub critical: Option<f64>,
    /// Over `high` in this very tick, whatever the level says (it follows after `sustain`).
    pub over: bool,
    /// How long usage has been over `high` without a break.
    pub over_for: Duration,
    /// Per second; positive while filling.
    pub growth: f64,
    /// How long until the limit is reached, where it is being filled as far as can be told (`policy::forecast`).
    pub exhaustion: Option<Duration>,
    /// `high` sooner than `sustain` asks for, or under `high` and foretold to be full before `sustain` would be over: it fills
    /// too fast to be waited for. A rung may be moved forward; nobody is ended on that alone.
    pub early: bool,
    /// Of the scope's memory: which number is judged, and the counters that decided it.
    pub measure: Option<Measure>,
    pub evidence: Option<Evidence>,
    /// The same for the sudden case: from one look to the next.
    pub fill: Fill,
    /// How long usage must stay over a line before the level follows: `sustain`, or less where there is no time for it.
    pub patience: Duration,
    /// Why `used` or `limit` is missing.
    pub unknown: Option<Failure>,
}

impl Verdict {
    /// The sign of stress that made the working set count, for people.
    pub fn stress(&self) -> Option<String> {
        self.evidence.filter(|_| self.measure == Some(Measure::WorkingSet)).and_then(|evidence| evidence.words())
    }
}
