//! Drastic acts on their way: a replica that was told to end, until its memory has come back.
//!
//! States: *asked* → *ended* (its process is gone) → *back* (usage fell by about what it held) or *overdue* ([`OVERDUE`] after
//! it should have ended, or after it did). While one is on its way nobody else is ended for a shared resource: memory comes
//! back late, and a guardian that does not wait for it kills one worker after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::Resource;
use crate::response::candidate::Candidate;
use crate::sampling::readings::SlotId;

/// What has not come back by then does not: others have taken it, or it was never the replica's.
pub const OVERDUE: Duration = Duration::from_secs(10);
/// This part of what the replica held must be seen to come back. Pages it shared with its siblings stay.
const RETURNED: f64 = 0.5;
/// Where there is no figure to compare (the CPU, memory not known) an end is given this long to show.
const SETTLING: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Flight {
    pub resource: Resource,
    /// `web.0`
    pub name: String,
    at: Moment,
    /// A graceful end may take so long.
    within: Duration,
    pub ended: Option<Moment>,
    /// Bytes it held; `None` where nothing is expected back.
    held: Option<f64>,
    /// Memory in use when it was told to end, and what each of the others held then.
    used: Option<f64>,
    others: BTreeMap<SlotId, u64>,
}

/// A flight that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Landing {
    pub slot: SlotId,
    pub resource: Resource,
    /// What it held was seen to come back.
    pub back: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Flights(BTreeMap<SlotId, Flight>);

impl Flights {
    /// `victim` is told to end for `resource`, gracefully within `within`. One that was asked before is told more plainly
    /// now: what it held and what was in use then still counts.
    pub fn start(
        &mut self,
        victim: &Candidate,
        resource: &Resource,
        within: Duration,
        used: Option<f64>,
        candidates: &[Candidate],
        now: Moment,
    ) {
        let held = victim.memory.map(|memory| memory as f64).filter(|held| *held > 0.0 && *resource != Resource::Cpu);
        let fresh = Flight {
            resource: resource.clone(),
            name: victim.name(),
            at: now,
            within,
            ended: None,
            held,
            used,
            others: others(candidates, victim.slot),
        };
        let before = self.0.remove(&victim.slot);
        let flight = match before {
            Some(before) => Flight { held: before.held, used: before.used, others: before.others, ..fresh },
            None => fresh,
        };
        self.0.insert(victim.slot, flight);
    }

    /// The act did not happen.
    pub fn cancel(&mut self, slot: SlotId) {
        self.0.remove(&slot);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everybody on the way, the first asked first.
    pub fn each(&self) -> impl Iterator<Item = (SlotId, &Flight)> {
        self.0.iter().map(|(slot, flight)| (*slot, flight))
    }

    /// Looks who has ended and what has come back; called once a tick. `used` is the memory in use, if it could be read.
    pub fn watch(&mut self, candidates: &[Candidate], used: Option<f64>, now: Moment) -> Vec<Landing> {
        let mut landed = Vec::new();
        self.0.retain(|slot, flight| {
            if !candidates.iter().any(|candidate| candidate.slot == *slot && candidate.is_there()) {
                flight.ended.get_or_insert(now);
            }
            let back = flight.is_back(*slot, candidates, used, now);
            let since = flight.ended.unwrap_or(Moment { steady: flight.at.steady + flight.within, ..flight.at });
            let is_over = back || now.since(since) >= OVERDUE;
            if is_over {
                landed.push(Landing { slot: *slot, resource: flight.resource.clone(), back });
            }
            !is_over
        });
        landed
    }
}

impl Flight {
    /// It was asked to end, a second ago at least, and not yet killed.
    pub fn can_be_hurried(&self, now: Moment) -> bool {
        self.ended.is_none() && self.within > Duration::ZERO && now.since(self.at) >= Duration::from_secs(1)
    }

    fn is_back(&self, slot: SlotId, candidates: &[Candidate], used: Option<f64>, now: Moment) -> bool {
        let Some(ended) = self.ended else { return false };
        let (Some(held), Some(before)) = (self.held, self.used) else { return now.since(ended) >= SETTLING };
        let Some(used) = used else { return false };
        // What the others have taken since is not what did not come back.
        let sum = |others: &BTreeMap<SlotId, u64>| others.values().map(|memory| *memory as f64).sum::<f64>();
        let taken = sum(&others(candidates, slot)) - sum(&self.others);
        before - (used - taken) >= held * RETURNED
    }
}

fn others(candidates: &[Candidate], victim: SlotId) -> BTreeMap<SlotId, u64> {
    candidates.iter().filter(|one| one.slot != victim).filter_map(|one| Some((one.slot, one.memory?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{MB, at};
    use crate::response::tests::candidate;

    fn flown(victim: &Candidate, all: &[Candidate]) -> Flights {
        let mut flights = Flights::default();
        flights.start(victim, &Resource::Memory, Duration::ZERO, Some(900.0 * MB as f64), all, at(0.0));
        flights
    }

    #[test]
    fn memory_is_waited_for_until_it_is_back_or_overdue() {
        let web = candidate(1, "web", 0.1, 500);
        let api = candidate(2, "api", 0.1, 100);
        let all = [web.clone(), api.clone()];
        let bytes = |megabytes: u64| Some((megabytes * MB) as f64);
        // (what the other holds after it, memory in use, second, landed as back)
        let cases = [
            ("still there", vec![web.clone(), api.clone()], bytes(900), 5.0, None),
            ("ended, nothing back yet", vec![api.clone()], bytes(880), 1.0, None),
            ("back", vec![api.clone()], bytes(420), 1.0, Some(true)),
            ("back, and the other has taken it", vec![Candidate { memory: Some(550 * MB), ..api.clone() }], bytes(870), 1.0, Some(true)),
            ("only the other gave something back", vec![Candidate { memory: Some(0), ..api.clone() }], bytes(800), 1.0, None),
            ("not to be read", vec![api.clone()], None, 1.0, None),
            ("never ended", vec![web.clone(), api.clone()], bytes(900), 10.0, Some(false)),
        ];
        for (name, after, used, second, expected) in cases {
            let mut flights = flown(&web, &all);
            let landed = flights.watch(&after, used, at(second));
            assert_eq!(landed.first().map(|landing| landing.back), expected, "{name}");
            assert_eq!(flights.is_empty(), expected.is_some(), "{name}");
        }
        let mut flights = flown(&web, &all);
        assert!(flights.watch(std::slice::from_ref(&api), bytes(900), at(3.0)).is_empty());
        assert!(flights.watch(std::slice::from_ref(&api), bytes(900), at(12.9)).is_empty());
        let landed = flights.watch(&[api], bytes(900), at(13.0));
        assert_eq!(landed, [Landing { slot: SlotId(1), resource: Resource::Memory, back: false }]);
    }

    #[test]
    fn a_kill_after_a_graceful_end_counts_from_the_first_figures() {
        let web = candidate(1, "web", 0.1, 500);
        let all = [web.clone()];
        let mut flights = flown(&web, &all);
        let smaller = Candidate { memory: Some(1), ..web };
        flights.start(&smaller, &Resource::Memory, Duration::ZERO, Some(1.0), &[], at(8.0));
        assert!(flights.watch(&[], Some(880.0 * MB as f64), at(9.0)).is_empty());
        assert_eq!(flights.watch(&[], Some(400.0 * MB as f64), at(9.5)).len(), 1);
    }
}
