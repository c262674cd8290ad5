//! What the planner knows of one replica.

use std::sync::Arc;

use crate::config::settings::Worker;
use crate::host::clock::Moment;
use crate::host::memory_group::{Figures, Pace};
use crate::policy::leak::Leak;
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
    /// How its memory can be held; only filled in while that may be wanted.
    pub grasp: Grasp,
    /// What keeps it from being chosen: `starting`, `stopping`, `recycling`.
    pub busy: Option<&'static str>,
    /// It has lived as long, or done as much, as `recycle` allows, jitter taken off.
    pub due: Option<Due>,
    /// Its memory leaks, and its worker has `recycle.leak`.
    pub leak: Option<Leak>,
}

/// Why a replica is to be replaced without anything being over a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Lifetime,
    /// So many it has answered.
    Requests(u64),
}

/// What is known of a replica's memory beyond its size, and what can be done about it here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grasp {
    /// `None` where it has no group of its own, or that cannot be read.
    pub figures: Option<Figures>,
    /// How it gets on; only while we hold it at a line.
    pub pace: Pace,
    /// Bytes of it that could go to swap.
    pub swap_room: Option<u64>,
    /// Its group takes a line for memory.
    pub line: Option<LineKind>,
    /// The line we hold it at.
    pub held: Option<Held>,
    pub reclaim: Option<ReclaimBy>,
    /// It can be stopped for a moment.
    pub can_freeze: bool,
}

/// What a line for memory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// `memory.high`: whoever goes over it is slowed.
    Slows,
    /// v1's soft limit: the kernel takes from this group first, and slows nobody.
    Hints,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The kernel has not answered yet.
    Writing,
    Set(u64),
}

/// How memory is asked back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimBy {
    /// `memory.reclaim`: so many bytes.
    Group,
    /// v1 `memory.force_empty`: all the kernel can get.
    Emptying,
    /// `process_madvise(MADV_PAGEOUT)` on each process.
    Advice,
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
