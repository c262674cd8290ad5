//! How soon again: after a replica was ended, its worker is spared for a while. What waits for the memory to come back is in
//! [`flight`](super::flight).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::host::clock::Moment;

/// The pause after a drastic act, and before a ladder that has been tried to its end is tried again.
pub const PAUSE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, Default)]
pub struct Cooldowns {
    workers: BTreeMap<Arc<str>, Moment>,
}

impl Cooldowns {
    /// Spares `worker` from now on: a replica of it was ended, or was seen to have ended.
    pub fn spare(&mut self, worker: &Arc<str>, now: Moment) {
        self.workers.insert(worker.clone(), now);
    }

    /// The act did not happen after all.
    pub fn cancel(&mut self, worker: &Arc<str>) {
        self.workers.remove(worker);
    }

    /// How much longer `worker` is spared.
    pub fn worker(&self, worker: &str, now: Moment) -> Duration {
        left(self.workers.get(worker), now)
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: Moment) {
        self.workers.retain(|_, at| !left(Some(at), now).is_zero());
    }
}

fn left(at: Option<&Moment>, now: Moment) -> Duration {
    at.map_or(Duration::ZERO, |at| PAUSE.saturating_sub(now.since(*at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::at;

    #[test]
    fn a_pause_ends() {
        let mut pauses = Cooldowns::default();
        pauses.spare(&Arc::from("web"), at(100.0));
        assert_eq!(pauses.worker("web", at(105.0)), Duration::from_secs(10));
        assert_eq!(pauses.worker("api", at(105.0)), Duration::ZERO);
        pauses.expire(at(115.0));
        assert!(pauses.workers.is_empty());
    }
}
