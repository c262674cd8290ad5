//! Carries actions out: one contract, `Perform`, and the two that fulfil it.

use crate::config::settings::Worker;
use crate::host::clock::Moment;
use crate::host::process::Delivery;
use crate::policy::Resource;
use crate::response::Action;
use crate::response::action::{Cause, Deed, Line, Outcome, Share};
use crate::sampling::readings::SlotId;
use crate::supervisor::Supervisor;

use super::brake::Brake;
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
    pub brake: &'a mut Brake,
}

/// Says what would be done. Undoing is still done: dry run may have been switched on while something was held.
#[derive(Debug)]
pub struct DryRun<P>(pub P);

impl<P: Perform> Perform for DryRun<P> {
    fn perform(&mut self, action: &Action, now: Moment) -> Outcome {
        match action.deed {
            Deed::Notify | Deed::Lift(_) | Deed::Release => self.0.perform(action, now),
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
            Deed::Line(line) => self.hold_at(action, line, now),
            Deed::Lift(slot) => done_or_failed(self.brake.lift(*slot)),
            Deed::Reclaim(portions) => match self.brake.ask_back(portions, self.supervisor) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Unavailable(why),
            },
            Deed::Freeze(slot) => match self.brake.freeze(*slot, self.supervisor, now.steady) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Unavailable(why),
            },
            Deed::Recycle(slot, cause) => {
                // A stopped process would not get the signal that asks it to end, one held at a line would be long about it.
                let released = self.let_go(*slot, now);
                done_or_gone(self.supervisor.recycle(*slot, cause.word(), action.resource == Resource::Memory, now), released)
            }
            Deed::Kill(slot) => {
                let released = self.let_go(*slot, now);
                done_or_gone(self.supervisor.kill(*slot, Cause::Memory.word(), now), released)
            }
            // The daemon has the jobs, and asks for this one itself.
            Deed::Job(name) => Outcome::Unavailable(format!("job {name} cannot be run from here")),
            Deed::Release => {
                let results = [self.brake.release(&action.resource), self.throttle.release(&action.resource, self.supervisor, now.steady)];
                done_or_failed(joined(results))
            }
        }
    }
}

impl Hands<'_> {
    fn let_go(&mut self, slot: SlotId, now: Moment) -> Result<(), String> {
        joined([self.brake.let_go(slot), self.throttle.let_go(slot, now.steady)])
    }

    /// Holds a replica at a line; where that cannot be done, to a share of the processor.
    fn hold_at(&mut self, action: &Action, line: &Line, now: Moment) -> Outcome {
        if let Some(before) = line.instead_of
            && let Err(why) = joined([self.brake.lift(before), self.share(before, action, None, now)])
        {
            return Outcome::Failed(why);
        }
        match self.brake.hold(line, self.supervisor) {
            Ok(()) if !line.also_cores => Outcome::Done,
            result => match (self.share(line.slot, action, Some(line.cores), now), result) {
                (Ok(()), _) | (Err(_), Ok(())) => Outcome::Done,
                (Err(why), Err(no_line)) => Outcome::Unavailable(format!("{no_line}; {why}")),
            },
        }
    }

    fn share(&mut self, slot: SlotId, action: &Action, cores: Option<f64>, now: Moment) -> Result<(), String> {
        self.throttle.set(slot, &action.resource, cores, self.supervisor, now.steady)
    }

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
            if share.cores.is_none() && action.resource == Resource::Memory {
                // It is let go for another: by whatever it was held.
                failures.extend(self.brake.lift(share.slot).err());
            }
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

fn done_or_failed(result: Result<(), String>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

/// Both at once; every failure is told.
fn joined(results: [Result<(), String>; 2]) -> Result<(), String> {
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn done_or_gone(done: bool, released: Result<(), String>) -> Outcome {
    match (done, released) {
        (true, Ok(())) => Outcome::Done,
        (true, Err(why)) => Outcome::Failed(why),
        (false, _) => Outcome::Gone,
    }
}
