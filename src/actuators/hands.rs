//! Carries actions out: one contract, `Perform`, and the two that fulfil it.

use crate::config::settings::Worker;
use crate::host::clock::Moment;
use crate::host::process::Delivery;
use crate::response::Action;
use crate::response::action::{Cause, Deed, Outcome, Share};
use crate::sampling::readings::SlotId;
use crate::supervisor::Supervisor;

use super::throttle::Throttle;

/// Performs one action, and says what became of it. Never waits: what takes time is started, and looked at again in the
/// next tick.
pub trait Perform {
    fn perform(&mut self, action: &Action, now: Moment) -> Outcome;
}

/// On the real machine.
#[derive(Debug)]
pub struct Hands<'a> {
    pub supervisor: &'a mut Supervisor,
    pub throttle: &'a mut Throttle,
}

/// Says what would be done. Undoing is still done: dry run may have been switched on while something was held.
#[derive(Debug)]
pub struct DryRun<P>(pub P);

impl<P: Perform> Perform for DryRun<P> {
    fn perform(&mut self, action: &Action, now: Moment) -> Outcome {
        match action.deed {
            Deed::Notify | Deed::Release => self.0.perform(action, now),
            _ => Outcome::DryRun,
        }
    }
}

impl Perform for Hands<'_> {
    fn perform(&mut self, action: &Action, now: Moment) -> Outcome {
        match &action.deed {
            // The event itself is the notice.
            Deed::Notify => Outcome::Done,
            Deed::Shed(slots) => self.shed(slots),
            Deed::Throttle(shares) => self.hold(action, shares, now),
            Deed::Recycle(slot, cause) => {
                // A stopped process would not get the signal that asks it to end.
                let released = self.throttle.let_go(*slot, now.steady);
                done_or_gone(self.supervisor.recycle(*slot, cause.word(), now), released)
            }
            Deed::Kill(slot) => {
                let released = self.throttle.let_go(*slot, now.steady);
                done_or_gone(self.supervisor.kill(*slot, Cause::Memory.word(), now), released)
            }
            Deed::Job(name) => Outcome::Unavailable(format!("there is no job {name}")),
            Deed::Release => match self.throttle.release(&action.resource, self.supervisor, now.steady) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed(why),
            },
        }
    }
}

impl Hands<'_> {
    fn shed(&self, slots: &[SlotId]) -> Outcome {
        let asked = |slot: &SlotId| -> Option<Result<Delivery, String>> {
            let worker: &Worker = &self.supervisor.replica(*slot)?.worker;
            let signal = worker.shed_signal?;
            Some(self.supervisor.signal(*slot, signal).map_err(|error| format!("{}: {error}", worker.name)))
        };
        let results: Vec<_> = slots.iter().filter_map(asked).collect();
        let failed: Vec<&str> = results.iter().filter_map(|result| result.as_ref().err().map(String::as_str)).collect();
        if !failed.is_empty() {
            return Outcome::Failed(failed.join("; "));
        }
        match (results.is_empty(), results.iter().all(|result| *result == Ok(Delivery::Gone))) {
            (true, _) => Outcome::Unavailable("no worker has a shed_signal".to_owned()),
            (false, true) => Outcome::Gone,
            (false, false) => Outcome::Done,
        }
    }

    fn hold(&mut self, action: &Action, shares: &[Share], now: Moment) -> Outcome {
        let mut failures = Vec::new();
        let mut held = 0;
        for share in shares {
            match self.throttle.set(share.slot, &action.resource, share.cores, self.supervisor, now.steady) {
                Ok(()) => held += 1,
                Err(why) => {
                    let worker = self.supervisor.replica(share.slot).map_or("a worker that has ended", |replica| &replica.worker.name);
                    failures.push(format!("{worker}: {why}"));
                }
            }
        }
        match (held, failures.is_empty()) {
            (_, true) => Outcome::Done,
            (0, false) => Outcome::Unavailable(failures.join("; ")),
            // Some are held: the others are named, and the budget is planned anew from what is measured.
            (_, false) => Outcome::Failed(failures.join("; ")),
        }
    }
}

fn done_or_gone(done: bool, released: Result<(), String>) -> Outcome {
    match (done, released) {
        (true, Ok(())) => Outcome::Done,
        (true, Err(why)) => Outcome::Failed(why),
        (false, _) => Outcome::Gone,
    }
}
