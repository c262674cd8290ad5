//! The CPU throttle while it is on: who uses what, what was last sent, and when that is worth sending again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::settings::ThrottleMethod;
use crate::policy::Verdict;
use crate::policy::engine::CPU_WINDOW;
use crate::policy::window::Mean;
use crate::response::action::Share;
use crate::response::budget::{self, Claim, Room};
use crate::response::candidate::Candidate;
use crate::sampling::readings::SlotId;

#[derive(Clone, Debug, Default)]
pub struct Hold {
    /// The action that put the throttle on, while it is on.
    engaged: Option<u64>,
    sent: BTreeMap<SlotId, Option<f64>>,
    used: BTreeMap<SlotId, Mean>,
    held: BTreeMap<SlotId, Mean>,
    /// The whole budget that was shared out last, in cores; none in the tick the throttle comes on.
    budget: Option<f64>,
    /// What was used beyond it since, in core seconds. Everybody may grow into what others leave, so that nobody waits for
    /// a tick to be served; when all do at once, or a stop came late, more is used than the budget for a moment. Below zero, down to
    /// one [`TURN`] of the budget, it has only been seen early or late in its turn: a sum that began at zero with each tick that
    /// saw less would count every tick that saw more, and hold everybody under the line.
    overdraft: f64,
    /// What was shared out in fact, after paying back, in cores; and by how much use was above it in the last window. The
    /// kernel forgives debts and grants a whole quota with each write of one, so that a budget that is shared anew several
    /// times a second is exceeded by a few hundredths of a core each time: foreseeable, so taken off beforehand.
    granted: f64,
    slip: Option<Slip>,
    /// Who lives, in order; kept for its memory.
    live: Vec<SlotId>,
}

/// An overdraft is paid back over this many seconds…
const PAYBACK: f64 = 2.0;
/// …but never by more than this part of the band between the lines: nobody is to feel a burst that was somebody else's.
const WITHIN_BAND: f64 = 0.6;
/// Never is more than this part of the budget taken off because as much is expected to slip through.
const SLIP_MOST: f64 = 0.3;
/// What is beyond so many seconds' budget is forgiven.
const OVERDRAFT_MOST: f64 = 1.0;
/// Seconds in which whoever is held runs and stands once: a duty cycle's period, and the kernel's. Ticks fall anywhere in it.
const TURN: f64 = 0.1;

/// By how much use was above what was granted, in cores.
#[derive(Clone, Debug)]
struct Slip {
    lately: Mean,
    /// Over so long that turns seen in part do not count.
    steadily: Mean,
}

impl Slip {
    fn new() -> Slip {
        Slip { lately: Mean::new(CPU_WINDOW), steadily: Mean::new(CPU_WINDOW * 5) }
    }

    fn feed(&mut self, gap: Duration, more: f64) {
        self.lately.feed(gap, more);
        self.steadily.feed(gap, more);
    }

    /// What can be foreseen of it: what holds of the last second and of those before.
    fn foreseen(&self) -> f64 {
        let least = self.lately.so_far().zip(self.steadily.so_far()).map(|(lately, steadily)| lately.min(steadily));
        least.unwrap_or(0.0).max(0.0)
    }
}

impl Hold {
    /// Moves the windows: once in each tick, whether the throttle is on or not.
    pub fn feed(&mut self, candidates: &[Candidate], gap: Duration) {
        self.live.clear();
        self.live.extend(candidates.iter().map(|candidate| candidate.slot));
        self.live.sort_unstable();
        let live = |slot: &SlotId| self.live.binary_search(slot).is_ok();
        self.sent.retain(|slot, _| live(slot));
        self.used.retain(|slot, _| live(slot));
        self.held.retain(|slot, _| live(slot));
        if let (Some(_), Some(budget)) = (self.engaged, self.budget) {
            let used: f64 = candidates.iter().filter(|candidate| is_throttleable(candidate)).filter_map(|candidate| candidate.cores).sum();
            let more = (used - budget) * gap.as_secs_f64();
            self.overdraft =
                if more.is_finite() { (self.overdraft + more).clamp(-budget * TURN, budget * OVERDRAFT_MOST) } else { self.overdraft };
            self.slip.get_or_insert_with(Slip::new).feed(gap, used - self.granted);
        }
        for candidate in candidates {
            let slot = candidate.slot;
            if let Some(cores) = candidate.cores {
                self.used.entry(slot).or_insert_with(|| Mean::new(CPU_WINDOW)).feed(gap, cores);
            }
            match self.sent.get(&slot) {
                // The share is compared with the use over the same time: a share that was just raised does not make the
                // use of the last second look small.
                Some(Some(share)) => self.held.entry(slot).or_insert_with(|| Mean::new(CPU_WINDOW)).feed(gap, *share),
                _ => drop(self.held.remove(&slot)),
            }
        }
    }

    pub fn engaged(&self) -> Option<u64> {
        self.engaged
    }

    pub fn engage(&mut self, action: u64) {
        self.engaged = Some(action);
        self.budget = None;
    }

    /// `room` is shared out from now on.
    pub fn note_budget(&mut self, room: &Room) {
        self.budget = Some(room.whole());
        self.granted = room.budget();
    }

    /// The throttle is off, and nothing is held any more.
    pub fn let_go(&mut self) {
        self.engaged = None;
        self.budget = None;
        self.overdraft = 0.0;
        self.slip = None;
        self.sent.clear();
        self.held.clear();
    }

    /// What all but the throttleable replicas use, and what those use together, in cores.
    pub fn split(&self, verdict: &Verdict, candidates: &[Candidate]) -> Option<(f64, f64)> {
        let ours: f64 = self.claims(candidates).iter().map(|claim| claim.used).sum();
        verdict.used.map(|used| ((used - ours).max(0.0), ours))
    }

    /// True while somebody is held who would use more: usage that is low then is the hold's own doing, not demand that has
    /// fallen. (Others go, their mean still counts for a second, and the budget is short of the line for as long.)
    pub fn holds_back(&self, verdict: &Verdict, candidates: &[Candidate]) -> bool {
        let Some(limit) = verdict.limit.filter(|_| self.engaged.is_some()) else { return false };
        self.claims(candidates).iter().any(|claim| budget::is_held_back(claim, limit))
    }

    /// The room that `verdict` leaves.
    pub fn room(&self, verdict: &Verdict, candidates: &[Candidate]) -> Option<Room> {
        let (others, _) = self.split(verdict, candidates)?;
        let limit = verdict.limit?;
        let most = (verdict.high - verdict.low).max(0.0) * limit * WITHIN_BAND;
        let slip = self.slip.as_ref().map_or(0.0, Slip::foreseen).min(SLIP_MOST * self.budget.unwrap_or(0.0));
        Some(Room { limit, high: verdict.high * limit, others, paid_back: (self.overdraft.max(0.0) / PAYBACK).min(most) + slip })
    }

    /// The budget shared out; `None` while use or limit are not known.
    pub fn shares(&self, verdict: &Verdict, candidates: &[Candidate]) -> Option<Vec<Share>> {
        Some(budget::share(&self.claims(candidates), &self.room(verdict, candidates)?))
    }

    /// The shares that hold whether the throttle is on or not: `limits.cpu`.
    pub fn own_limits(candidates: &[Candidate]) -> Vec<Share> {
        candidates
            .iter()
            .filter(|candidate| is_throttleable(candidate))
            .filter_map(|candidate| Some(Share { slot: candidate.slot, cores: Some(candidate.settings.limits.cpu?) }))
            .collect()
    }

    /// Replicas that are held to a `limits.cpu` which is no longer set.
    pub fn outdated(&self, candidates: &[Candidate]) -> Vec<Share> {
        candidates
            .iter()
            .filter(|candidate| candidate.settings.limits.cpu.is_none() && self.sent.get(&candidate.slot).is_some_and(Option::is_some))
            .map(|candidate| Share { slot: candidate.slot, cores: None })
            .collect()
    }

    /// True when `shares` differ from what was last sent by more than a hundredth of a core or a fiftieth of themselves.
    pub fn differs(&self, shares: &[Share]) -> bool {
        shares.iter().any(|share| match (self.sent.get(&share.slot), share.cores) {
            (Some(Some(old)), Some(new)) => {
                let by = (old - new).abs();
                by > 0.01 || (by > 0.02 * old && by > 0.002)
            }
            (Some(None) | None, None) => false,
            _ => true,
        })
    }

    pub fn remember(&mut self, shares: &[Share]) {
        self.sent.extend(shares.iter().map(|share| (share.slot, share.cores)));
    }

    fn claims(&self, candidates: &[Candidate]) -> Vec<Claim> {
        candidates
            .iter()
            .filter(|candidate| is_throttleable(candidate))
            .map(|candidate| {
                let used = self.used.get(&candidate.slot).and_then(Mean::so_far);
                let held = self.held.get(&candidate.slot).and_then(Mean::so_far);
                Claim {
                    slot: candidate.slot,
                    weight: candidate.settings.weight,
                    used: used.unwrap_or(0.0),
                    // One that has only just started is taken for hungry: nothing slows a start as much as no processor.
                    held: if used.is_some() { held } else { Some(0.0) },
                    most: candidate.settings.limits.cpu,
                }
            })
            .collect()
    }
}

pub fn is_throttleable(candidate: &Candidate) -> bool {
    candidate.running && candidate.can_throttle && candidate.settings.throttle != ThrottleMethod::Never
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::verdict::{Level, Resource};
    use crate::response::tests::{candidate, verdict};
    use proptest::prelude::*;

    const LIMIT: f64 = 0.5;
    const OTHERS: f64 = 0.01;

    /// One that burns all it is given is held for 60 s, looked at after each of `gaps` in turn (seconds): what the scope used in
    /// the last 40. It runs at the start of each turn until it has had its share; `more` cores slip through.
    fn used_while_held(gaps: &[f64], more: f64) -> f64 {
        let mut hold = Hold::default();
        let (mut now, mut share, mut total, mut counted) = (0.0_f64, 1.0_f64, 0.0_f64, None);
        let mut used = Mean::new(CPU_WINDOW);
        for gap in gaps.iter().cycle() {
            let mut cores = 0.0;
            let grain = 0.001;
            for _ in 0..(gap / grain) as u32 {
                now += grain;
                let into_turn = now % TURN;
                cores += if into_turn <= share * TURN { grain } else { 0.0 };
            }
            total += cores + more * gap;
            let cores = cores / gap + more;
            let gap = Duration::from_secs_f64(*gap);
            used.feed(gap, cores + OTHERS);
            let candidates = [candidate(1, "web", cores, 10)];
            let mut verdict = verdict(Resource::Cpu, Level::High, 0.0);
            (verdict.limit, verdict.used) = (Some(LIMIT), used.so_far());
            hold.feed(&candidates, gap);
            if hold.engaged().is_none() {
                hold.engage(1);
            }
            hold.note_budget(&hold.room(&verdict, &candidates).unwrap());
            let shares = hold.shares(&verdict, &candidates).unwrap();
            if hold.differs(&shares) {
                hold.remember(&shares);
                share = shares[0].cores.unwrap();
            }
            if now >= 60.0 {
                let (since, before) = counted.unwrap();
                return (total - before) / (now - since) + OTHERS;
            }
            if now >= 20.0 && counted.is_none() {
                counted = Some((now, total));
            }
        }
        unreachable!("the gaps are repeated for ever")
    }

    #[test]
    fn what_slips_through_is_taken_off_beforehand() {
        let used = used_while_held(&[0.25], 0.03);
        assert!((used - 0.8 * LIMIT).abs() < 0.01 * LIMIT, "{used}");
    }

    proptest! {
        /// The part of a turn that a tick happens to see is no excess, and is not paid back.
        #[test]
        fn ticks_that_fall_anywhere_in_a_turn_take_nothing_off(gaps in prop::collection::vec(0.1_f64..1.2, 1..40)) {
            let used = used_while_held(&gaps, 0.0);
            prop_assert!((used - 0.8 * LIMIT).abs() < 0.02 * LIMIT, "{}", used);
        }
    }
}
