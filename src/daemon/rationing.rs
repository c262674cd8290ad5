//! Whose memory is measured exactly in the next tick: owns that choice, and touches only its arguments, time among them.
//! It never measures, and does not know which line is near.
//!
//! The kernel walks every page of a process to tell its proportional share: 10 to 30 ms per GiB. So it is paid for out of an
//! allowance of [`SHARE`] of the time, saved up to [`MOST`]: one tick never spends more than that, unless a single replica
//! costs more, and then nobody is measured until that is earned again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::sampling::readings::SlotId;

/// Of the time; of one processor at most.
const SHARE: f64 = 0.01;
/// Seconds that can be saved up.
const MOST: f64 = 0.005;
/// Seconds per byte, in the middle of what was measured, and for each replica whatever its size.
const PER_BYTE: f64 = 0.020 / (1u64 << 30) as f64;
const EACH: f64 = 50e-6;
/// A figure is good for so long.
const AGAIN: Duration = Duration::from_secs(10);

/// A replica that could be measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subject {
    pub slot: SlotId,
    /// By the cheap estimate.
    pub bytes: u64,
    /// Its own line is near, not only the machine's.
    pub own_line: bool,
}

/// The allowance, and who was measured when.
#[derive(Debug, Default)]
pub struct Ration {
    saved: f64,
    at: Option<Moment>,
    measured: BTreeMap<SlotId, Moment>,
}

impl Ration {
    /// Those that are measured now: first who is near a line of his own, then who weighs most and was measured longest ago.
    pub fn choose(&mut self, mut subjects: Vec<Subject>, now: Moment) -> Vec<SlotId> {
        // Before the first tick there was all the time in the world.
        let earned = self.at.map_or(MOST, |before| now.since(before).as_secs_f64() * SHARE);
        self.at = Some(now);
        self.saved = (self.saved + earned).min(MOST);
        self.measured.retain(|slot, at| now.since(*at) < AGAIN * 6 || subjects.iter().any(|subject| subject.slot == *slot));
        let age = |slot: SlotId| self.measured.get(&slot).map_or(f64::INFINITY, |at| now.since(*at).as_secs_f64());
        subjects.retain(|subject| age(subject.slot) >= AGAIN.as_secs_f64());
        // Of two that were never measured the larger one.
        let weight = |subject: &Subject| (subject.bytes as f64) * age(subject.slot).min(3600.0);
        subjects.sort_by(|one, other| other.own_line.cmp(&one.own_line).then(weight(other).total_cmp(&weight(one))));
        let mut chosen = Vec::new();
        for subject in subjects {
            if self.saved <= 0.0 {
                break;
            }
            let cost = EACH + subject.bytes as f64 * PER_BYTE;
            // Of several only what can be paid for; a large one alone is paid for afterwards.
            if cost > self.saved && !chosen.is_empty() {
                continue;
            }
            self.saved -= cost;
            self.measured.insert(subject.slot, now);
            chosen.push(subject.slot);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    fn at(milliseconds: u64) -> Moment {
        Moment { steady: Duration::from_millis(milliseconds), wall: SystemTime::UNIX_EPOCH }
    }

    fn subject(slot: u64, megabytes: u64, own_line: bool) -> Subject {
        Subject { slot: SlotId(slot), bytes: megabytes << 20, own_line }
    }

    fn slots(chosen: &[SlotId]) -> Vec<u64> {
        chosen.iter().map(|slot| slot.0).collect()
    }

    #[test]
    fn who_is_near_his_own_line_comes_first_then_the_largest() {
        let mut ration = Ration::default();
        let all = vec![subject(1, 10, false), subject(2, 100, false), subject(3, 20, true)];
        assert_eq!(slots(&ration.choose(all.clone(), at(0))), [3, 2, 1], "2.6 ms in all");
        assert_eq!(slots(&ration.choose(all.clone(), at(5000))), [0; 0], "the figures still hold");
        assert_eq!(slots(&ration.choose(all, at(10_000))), [3, 2, 1]);
    }

    #[test]
    fn a_large_one_is_measured_alone_and_paid_for_afterwards() {
        let mut ration = Ration::default();
        let all = vec![subject(1, 4096, false), subject(2, 10, false)];
        assert_eq!(slots(&ration.choose(all.clone(), at(0))), [1], "80 ms");
        assert_eq!(slots(&ration.choose(all.clone(), at(5000))), [0; 0], "of which 50 are earned");
        assert_eq!(slots(&ration.choose(all, at(8000))), [2]);
    }

    #[test]
    fn those_left_out_have_their_turn() {
        let mut ration = Ration::default();
        let all: Vec<Subject> = (0..40).map(|slot| subject(slot, 100 + slot, false)).collect();
        let mut seen = std::collections::BTreeSet::new();
        for tick in 0..400 {
            seen.extend(ration.choose(all.clone(), at(tick * 250)));
        }
        assert_eq!(seen.len(), 40, "{seen:?}");
    }

    proptest! {
        #[test]
        fn the_allowance_is_kept(gaps in prop::collection::vec(1u64..3000, 1..200), sizes in prop::collection::vec(0u64..3000, 0..30)) {
            let mut ration = Ration::default();
            let subjects: Vec<Subject> = sizes.iter().zip(0..).map(|(size, slot)| subject(slot, *size, *size % 3 == 0)).collect();
            let cost = |slot: &SlotId| EACH + subjects[slot.0 as usize].bytes as f64 * PER_BYTE;
            let (mut now, mut spent, mut last) = (0, 0.0, 0.0);
            for gap in gaps {
                now += gap;
                let chosen = ration.choose(subjects.clone(), at(now));
                let this: f64 = chosen.iter().map(cost).sum();
                prop_assert!(chosen.len() <= 1 || this <= MOST + 1e-9, "{} s in one tick", this);
                last = if this > 0.0 { this } else { last };
                spent += this;
            }
            // What is not earned yet is at most the last one.
            prop_assert!(spent <= MOST + now as f64 / 1000.0 * SHARE + last + 1e-9, "{} s in {} ms", spent, now);
        }
    }
}
