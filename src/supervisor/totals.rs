//! What is counted over every life of a worker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sums over every life of every replica of one worker; they survive the worker's death.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub starts: u64,
    /// By reason, in the order of [`EXIT_REASONS`].
    pub exits: [u64; EXIT_REASONS.len()],
    /// By cause, in the order of [`RECYCLE_CAUSES`].
    pub recycles: [u64; RECYCLE_CAUSES.len()],
    /// Of lives that have ended.
    pub cpu: Duration,
    pub peak_memory: u64,
}

/// The label values of `plimsoll_worker_exits_total{reason}`.
pub const EXIT_REASONS: [&str; 9] = ["clean", "error", "signal", "oom", "recycled", "stopped", "deadline", "health", "unknown"];
/// The label values of `plimsoll_worker_recycles_total{cause}`.
pub const RECYCLE_CAUSES: [&str; 7] = ["memory", "cpu", "lifetime", "requests", "leak", "reload", "manual"];

impl Totals {
    pub(super) fn count_exit(&mut self, reason: &str) {
        count(&EXIT_REASONS, &mut self.exits, reason);
    }

    pub(super) fn count_recycle(&mut self, cause: &str) {
        count(&RECYCLE_CAUSES, &mut self.recycles, cause);
    }
}

fn count<const N: usize>(words: &[&str; N], counts: &mut [u64; N], word: &str) {
    if let Some(count) = words.iter().position(|known| *known == word).and_then(|place| counts.get_mut(place)) {
        *count += 1;
    }
}
