//! What the planner knows of one replica.

use std::sync::Arc;

use crate::config::settings::Worker;
use crate::host::clock::Moment;
use crate::sampling::readings::SlotId;

/// One replica as the daemon sees it in this tick: from the supervisor, the readings and the engine's windows.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub slot: SlotId,
    pub worker: Arc<str>,
    /// Its number among the worker's replicas, from 0.
    pub replica: u32,
    pub settings: Arc<Worker>,
    /// It is at work: started, and not being stopped.
    pub running: bool,
    /// Some throttle works on it here.
    pub can_throttle: bool,
    /// When this life began.
    pub since: Moment,
    /// Cores in this tick; `None` while not known.
    pub cores: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Of its memory, in bytes a second; negative while it shrinks.
    pub growth: f64,
    /// What keeps it from being chosen: `starting`, `stopping`, `recycling`.
    pub busy: Option<&'static str>,
    /// It has lived as long as `recycle.lifetime` allows, jitter taken off.
    pub lifetime_due: bool,
}

impl Candidate {
    /// Its process has not ended, or not all of its tree has.
    pub fn is_there(&self) -> bool {
        self.running || matches!(self.busy, Some("stopping" | "recycling"))
    }

    /// `web/2`: how people are told about it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.worker, self.replica)
    }
}
