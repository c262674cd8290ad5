//! Makers shared by the tests of `response`.

use std::sync::Arc;

use crate::policy::tests::{MB, at, worker};
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
