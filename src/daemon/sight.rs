//! Tells, once, of what a daemon beside its application lacks: a file that gives no limit, a worker whose container cannot be seen,
//! one that cannot be stopped. What holds meanwhile is in the sampler; here it is only said.

use std::time::Duration;

use crate::host::clock::Moment;
use crate::journal::Event;
use crate::sampling::Obstacle;
use crate::sampling::limit_file::{Fault, Kind};

use super::guardian::Guardian;

/// How the limitations begin that stand in the status for as long as they hold.
const FILE: &str = "limit from a file: ";
const SCOPE: &str = "sampling.scope: ";
const FIRST: &str = "process 1: ";

/// A worker that is just being started, or started anew, is no news.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has been told.
#[derive(Debug, Default)]
pub struct Sight {
    cpu: Option<Fault>,
    memory: Option<Fault>,
    /// Other files since the last look.
    renewed: bool,
    obstacle: Option<Obstacle>,
    since: Duration,
    /// Of obstacles since the container was seen last: nobody there, no right to look, nothing to be seen.
    told: [bool; 3],
    /// Process 1 is looked after.
    first: bool,
}

impl Sight {
    /// Other files from now on: what is wrong with them is news.
    pub fn forget_files(&mut self) {
        (self.cpu, self.memory, self.renewed) = (None, None, true);
    }
}

impl Guardian {
    pub(super) fn watch_limits(&mut self, now: Moment, events: &mut Vec<Event>) {
        self.watch_limit_files(events);
        self.watch_lookout(now, events);
        self.watch_first(events);
    }

    /// The kernel lets nobody within a namespace stop or kill its first process.
    fn watch_first(&mut self, events: &mut Vec<Event>) {
        let first = self.supervisor.targets().iter().find(|target| target.pid == 1);
        if first.is_some() == self.sight.first {
            return;
        }
        self.sight.first = first.is_some();
        self.environment.limitations.retain(|limitation| !limitation.starts_with(FIRST));
        let Some(target) = first else { return };
        let detail = format!(
            "worker {} is process 1 of the namespace it shares with the daemon, and the kernel lets nobody in there stop or kill that: \
             start it behind an init (docker: --init), or let a pause container be the first, as Kubernetes does",
            target.worker
        );
        self.environment.limitations.push(format!("{FIRST}{detail}"));
        events.push(Event::Degraded { part: "duty cycle", detail });
    }

    fn watch_limit_files(&mut self, events: &mut Vec<Event>) {
        let mut changed = std::mem::take(&mut self.sight.renewed);
        for file in self.sampler.limit_files() {
            let known = match file.kind() {
                Kind::Cpu => &mut self.sight.cpu,
                Kind::Memory => &mut self.sight.memory,
            };
            let before = std::mem::replace(known, file.fault());
            changed |= before != file.fault();
            if before.is_none()
                && let Some(detail) = file.complaint()
            {
                events.push(Event::Degraded { part: "limit from a file", detail });
            }
        }
        if changed {
            let limitations = &mut self.environment.limitations;
            limitations.retain(|limitation| !limitation.starts_with(FILE));
            limitations.extend(self.sampler.limit_files().filter_map(|file| Some(format!("{FILE}{}", file.complaint()?))));
        }
    }

    fn watch_lookout(&mut self, now: Moment, events: &mut Vec<Event>) {
        let Some((worker, obstacle)) = self.sampler.lookout() else { return };
        let sight = &mut self.sight;
        let is_news = sight.obstacle != obstacle;
        if is_news {
            (sight.obstacle, sight.since) = (obstacle, now.steady);
            self.environment.limitations.retain(|limitation| !limitation.starts_with(SCOPE));
        }
        let Some(obstacle) = obstacle else {
            sight.told = [false; 3];
            return;
        };
        let (place, patience) = match obstacle {
            Obstacle::NoProcess => (0, PATIENCE),
            Obstacle::Root(..) => (1, Duration::ZERO),
            Obstacle::NoGroups(_) => (2, Duration::ZERO),
        };
        let is_told = sight.told.get(place).copied().unwrap_or(true);
        if (is_told && !is_news) || now.steady.saturating_sub(sight.since) < patience {
            return;
        }
        let by_file = self.sampler.limit_files().next().is_some();
        let against = if by_file { "the limits of files, where they can be read" } else { "the limits of the daemon's own container" };
        let detail = format!("{}; meanwhile what the workers' processes use together is held against {against}", obstacle.words(worker));
        self.environment.limitations.push(format!("{SCOPE}{detail}"));
        if let Some(told) = sight.told.get_mut(place).filter(|told| !**told) {
            *told = true;
            events.push(Event::Degraded { part: "scope", detail });
        }
    }
}
