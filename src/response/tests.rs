//! Makers shared by the tests of `response`.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::tests::{MB, at, worker};
use crate::policy::verdict::{Basis, Level, Resource, Verdict};
use crate::response::candidate::Candidate;
use crate::sampling::readings::SlotId;

/// A running replica of `name` that began at second `0`; `memory` in MB.
pub(crate) fn candidate(slot: u64, name: &str, cores: f64, memory: u64) -> Candidate {
    let settings = Arc::new(worker(name));
    Candidate {
        slot: SlotId(slot),
        worker: settings.name.clone(),
        replica: 0,
        settings,
        running: true,
        can_throttle: true,
        since: at(0.0),
        cores: Some(cores),
        memory: Some(memory * MB),
        growth: 0.0,
        grasp: crate::response::candidate::Grasp::default(),
        busy: None,
        due: None,
        leak: None,
    }
}

/// A verdict on `resource` at `usage` of a limit of 1000 MB (two cores for the CPU).
pub(crate) fn verdict(resource: Resource, level: Level, usage: f64) -> Verdict {
    let limit = if resource == Resource::Cpu { 2.0 } else { 1000.0 * MB as f64 };
    Verdict {
        resource,
        level,
        since: at(0.0),
        basis: Basis::Scope,
        used: Some(usage * limit),
        limit: Some(limit),
        utilization: Some(usage),
        high: 0.8,
        low: 0.7,
        critical: Some(0.92),
        over: usage >= 0.8,
        over_for: Duration::ZERO,
        fill: Default::default(),
        patience: Duration::ZERO,
        growth: 0.0,
        exhaustion: None,
        early: false,
        measure: None,
        evidence: None,
        unknown: None,
    }
}
