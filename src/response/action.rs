//! What is to be done about a verdict.

use std::sync::Arc;

use crate::config::settings::Rung;
use crate::policy::Resource;
use crate::response::candidate::ReclaimBy;
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
    /// Slow one replica's growth by a line for its memory. Sent anew when the line is lowered.
    Line(Line),
    /// Take the line off one replica.
    Lift(SlotId),
    /// Ask the kernel to take back so much of each.
    Reclaim(Vec<Portion>),
    /// Stop one replica for a moment, while the memory of another comes back.
    Freeze(SlotId),
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
            Deed::Throttle(_) | Deed::Line(_) => Some(Rung::Throttle),
            Deed::Reclaim(_) => Some(Rung::Reclaim),
            Deed::Recycle(..) => Some(Rung::Recycle),
            Deed::Kill(_) => Some(Rung::Kill),
            Deed::Job(name) => Some(Rung::Job(name.clone())),
            Deed::Lift(_) | Deed::Freeze(_) | Deed::Release => None,
        }
    }

    /// The rung's word, or that of what is on no ladder.
    /// Every word [`Deed::word`] has.
    pub const WORDS: [&'static str; 10] = ["notify", "shed", "reclaim", "throttle", "recycle", "kill", "job", "lift", "freeze", "release"];

    pub fn word(&self) -> &'static str {
        match self {
            Deed::Lift(_) => "lift",
            Deed::Freeze(_) => "freeze",
            Deed::Release => "release",
            _ => self.rung().map_or("release", |rung| rung.word()),
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
    Requests,
    /// Its memory leaks.
    Leak,
    /// Somebody asked for it.
    Manual,
}

impl Cause {
    pub const ALL: [Cause; 6] = [Cause::Memory, Cause::Cpu, Cause::Lifetime, Cause::Requests, Cause::Leak, Cause::Manual];

    pub fn word(self) -> &'static str {
        match self {
            Cause::Memory => "memory",
            Cause::Cpu => "cpu",
            Cause::Lifetime => "lifetime",
            Cause::Requests => "requests",
            Cause::Leak => "leak",
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

/// A line for one replica's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub slot: SlotId,
    pub bytes: u64,
    /// Its share of the processor where the line cannot be set.
    pub cores: f64,
    /// Hold it to `cores` as well: this line only gives a hint.
    pub also_cores: bool,
    /// Slowed until now, and let go for this one.
    pub instead_of: Option<SlotId>,
}

/// What the kernel is asked to take back from one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    pub slot: SlotId,
    pub bytes: u64,
    pub by: ReclaimBy,
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
