//! Whether a replica that was ready still answers: the check of its readiness once more, every so often. One that fails again and
//! again is ended and started anew, and counts as one that failed by itself.

use std::time::Duration;

use crate::config::settings::{Health, ReadyBy};
use crate::host::clock::Moment;
use crate::journal::Event;

use super::readiness::Check;
use super::state::{self, Purpose, State};
use super::supervisor::Supervisor;

/// How one life is doing.
#[derive(Debug)]
pub struct Pulse {
    next: Duration,
    check: Option<(Check, Duration)>,
    /// Checks in a row that came to nothing.
    failed: u32,
}

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new.
    Nothing,
    /// It has failed so often as it may; why the last time.
    Sick(String),
}

impl Pulse {
    pub fn new(health: &Health, now: Duration) -> Pulse {
        Pulse { next: now + health.every, check: None, failed: 0 }
    }

    /// When the next check begins, and how many have failed in a row: one that is under way is begun anew.
    pub fn standing(&self) -> (Duration, u32) {
        (self.next, self.failed)
    }

    pub fn resume((next, failed): (Duration, u32)) -> Pulse {
        Pulse { next, check: None, failed }
    }

    pub fn next_look(&self) -> Duration {
        match &self.check {
            Some((check, until)) => check.next_look().map_or(*until, |look| look.min(*until)),
            None => self.next,
        }
    }

    /// Begins a check when it is due, and goes on with one that was begun. `ask` looks once.
    pub fn look(&mut self, health: &Health, by: &ReadyBy, is_shared: bool, now: Duration, ask: impl FnOnce(&mut Check) -> bool) -> Look {
        if self.check.is_none() && now < self.next {
            return Look::Nothing;
        }
        let (check, until) = self.check.get_or_insert_with(|| (Check::new(by, is_shared, None, now), now + health.within));
        if ask(check) {
            (self.check, self.failed, self.next) = (None, 0, now + health.every);
            return Look::Nothing;
        }
        if now < *until {
            return Look::Nothing;
        }
        let missing = std::mem::take(&mut check.missing);
        self.failed += 1;
        (self.check, self.next) = (None, now + health.every);
        if self.failed < health.fails { Look::Nothing } else { Look::Sick(missing) }
    }
}

impl Supervisor {
    /// Looks at everybody whose health is asked for.
    pub(super) fn look_at_health(&mut self, now: Moment, events: &mut Vec<Event>) {
        if self.closing {
            return;
        }
        for place in 0..self.replicas.len() {
            let Some(replica) = self.replicas.get_mut(place).filter(|replica| replica.is_main()) else { continue };
            let (State::Running { .. }, Some(health)) = (replica.state(), replica.worker.health) else { continue };
            let worker = replica.worker.clone();
            let is_shared = !worker.listen.is_empty() || self.desired(&worker) > 1;
            let Some(life) = self.replicas.get_mut(place).and_then(|replica| replica.life.as_mut()) else { continue };
            // Taken out while the check asks the life about its tree.
            let mut pulse = life.pulse.take().unwrap_or_else(|| Pulse::new(&health, now.steady));
            let look = pulse.look(&health, &worker.ready.by, is_shared, now.steady, |check| self.ask_once(place, check, now));
            let Some(replica) = self.replicas.get_mut(place) else { continue };
            let Some(life) = replica.life.as_mut() else { continue };
            life.pulse = Some(pulse);
            let Look::Sick(detail) = look else { continue };
            let (slot, pid) = (life.slot, life.process.pid());
            replica.cause = Some("health");
            replica.wish = None;
            let kill_at = now.steady + worker.stop.within;
            events.push(Event::WorkerUnhealthy {
                worker: worker.name.to_string(),
                replica: replica.index,
                pid,
                fails: health.fails,
                detail,
            });
            self.meet_all(|replica| replica.slot() == Some(slot));
            if let Some(replica) = self.replicas.get_mut(place) {
                replica.standing.state = state::asked_to_end(replica.standing.state, Purpose::Retry, kill_at);
            }
            self.ask_those_to_end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTH: Health = Health { every: Duration::from_secs(10), within: Duration::from_secs(2), fails: 3 };

    #[test]
    fn one_failure_is_none_and_one_success_forgives_all() {
        let by = ReadyBy::Tcp("127.0.0.1:1".parse().unwrap());
        let mut pulse = Pulse::new(&HEALTH, Duration::ZERO);
        let mut look = |second: f64, well: bool| pulse.look(&HEALTH, &by, false, Duration::from_secs_f64(second), |_| well);
        assert_eq!(look(5.0, false), Look::Nothing, "not due");
        for begun in [10.0, 22.0] {
            assert_eq!(look(begun, false), Look::Nothing);
            assert_eq!(look(begun + 2.0, false), Look::Nothing, "failed, not for the last time");
        }
        assert_eq!(look(34.0, false), Look::Nothing);
        assert_eq!(look(35.0, true), Look::Nothing, "it answers within the time");
        for begun in [45.0, 57.0] {
            look(begun, false);
            assert_eq!(look(begun + 2.0, false), Look::Nothing);
        }
        look(69.0, false);
        assert!(matches!(look(71.0, false), Look::Sick(_)));
    }
}
