//! How soon again: after a replica was ended, nothing more of its worker and nothing more for the same resource is ended
//! for a while. Memory comes back late, and a guardian that does not wait for it kills one worker after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::Resource;

/// The pause after a drastic act, and before a ladder that has been tried to its end is tried again.
pub const PAUSE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, Default)]
pub struct Cooldowns {
    resources: BTreeMap<Resource, Moment>,
    workers: BTreeMap<Arc<str>, Moment>,
}

impl Cooldowns {
    /// A replica of `worker` was ended for `resource`.
    pub fn start(&mut self, resource: &Resource, worker: &Arc<str>, now: Moment) {
        self.resources.insert(resource.clone(), now);
        self.spare(worker, now);
    }

    /// The act did not happen after all.
    pub fn cancel(&mut self, resource: &Resource, worker: &Arc<str>) {
        self.resources.remove(resource);
        self.workers.remove(worker);
    }

    /// Spares `worker` from now on, whatever it was ended for.
    pub fn spare(&mut self, worker: &Arc<str>, now: Moment) {
        self.workers.insert(worker.clone(), now);
    }

    /// How much longer `resource` waits; zero when it need not.
    pub fn resource(&self, resource: &Resource, now: Moment) -> Duration {
        left(self.resources.get(resource), now)
    }

    /// How much longer `worker` is spared.
    pub fn worker(&self, worker: &str, now: Moment) -> Duration {
        left(self.workers.get(worker), now)
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: Moment) {
        self.resources.retain(|_, at| !left(Some(at), now).is_zero());
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
        let web: Arc<str> = Arc::from("web");
        pauses.start(&Resource::Memory, &web, at(100.0));
        assert_eq!(pauses.worker("web", at(105.0)), Duration::from_secs(10));
        assert_eq!(pauses.resource(&Resource::Memory, at(105.0)), Duration::from_secs(10));
        assert_eq!(pauses.resource(&Resource::Cpu, at(105.0)), Duration::ZERO);
        assert_eq!(pauses.worker("api", at(105.0)), Duration::ZERO);
        pauses.expire(at(115.0));
        assert!(pauses.workers.is_empty() && pauses.resources.is_empty());
    }
}
