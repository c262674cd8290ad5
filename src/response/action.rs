//! What is to be done about a verdict.

use std::sync::Arc;

use crate::config::settings::Rung;
use crate::policy::Resource;
use crate::sampling::readings::SlotId;

/// One action: a rung of a resource's ladder, or the undoing of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// Rises by one with each action of this daemon's life. Shares that are sent anew while a throttle stays on keep the id of
    /// the action that put it on: it is the same action going on.
    pub id: u64,
    pub resource: Resource,
    pub deed: Deed,
    /// For people: why this, why these, with the figures.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    Notify,
    /// Ask these replicas to drop caches.
    Shed(Vec<SlotId>),
    /// Hold each replica to its share. Sent anew whenever a share changes; a replica that is not listed is left as it is.
    Throttle(Vec<Share>),
    /// Replace it gracefully.
    Recycle(SlotId, Cause),
    /// Kill its whole tree at once.
    Kill(SlotId),
    /// Run this job now.
    Job(Arc<str>),
    /// Take every throttle off that was put on for this resource.
    Release,
}

impl Deed {
    /// The rung this deed belongs to; `None` for a release.
    pub fn rung(&self) -> Option<Rung> {
        match self {
            Deed::Notify => Some(Rung::Notify),
            Deed::Shed(_) => Some(Rung::Shed),
            Deed::Throttle(_) => Some(Rung::Throttle),
            Deed::Recycle(..) => Some(Rung::Recycle),
            Deed::Kill(_) => Some(Rung::Kill),
            Deed::Job(name) => Some(Rung::Job(name.clone())),
            Deed::Release => None,
        }
    }
}

/// Why a replica is replaced: the label values of `plimsoll_worker_recycles_total{cause}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    Memory,
    /// Only where `recycle` is put on the ladder for the CPU.
    Cpu,
    Lifetime,
    /// Somebody asked for it.
    Manual,
}

impl Cause {
    pub const ALL: [Cause; 4] = [Cause::Memory, Cause::Cpu, Cause::Lifetime, Cause::Manual];

    pub fn word(self) -> &'static str {
        match self {
            Cause::Memory => "memory",
            Cause::Cpu => "cpu",
            Cause::Lifetime => "lifetime",
            Cause::Manual => "manual",
        }
    }
}

/// A replica's part of a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub slot: SlotId,
    /// Cores it may use; `None`: as many as it likes.
    pub cores: Option<f64>,
}

/// What became of an action when it was performed: the answer the planner is given before it plans again.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done,
    /// Would have been done.
    DryRun,
    /// This rung cannot work here; the next one is tried at once. Says why.
    Unavailable(String),
    /// The process or cgroup has ended in the meantime.
    Gone,
    Failed(String),
}
