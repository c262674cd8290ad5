//! Who is replaced or killed, in which order, and why each stands where it does.

use std::cmp::Reverse;

use crate::config::settings::{Rung, Worker};
use crate::response::candidate::Candidate;
use crate::response::words::{bytes, rate};

/// How far growth looks ahead: a replica is as large as it will be in this many seconds.
const AHEAD: f64 = 30.0;

/// What a replica would give back by ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yield {
    /// Bytes.
    Memory,
    /// Cores.
    Cpu,
}

impl Yield {
    /// How much that is; 0 where it is not known.
    pub fn of(self, candidate: &Candidate) -> f64 {
        self.known(candidate).unwrap_or(0.0)
    }

    fn known(self, candidate: &Candidate) -> Option<f64> {
        match self {
            Yield::Memory => candidate.memory.map(|memory| memory as f64),
            Yield::Cpu => candidate.cores.filter(|cores| cores.is_finite()),
        }
    }
}

/// Why its settings have it spared on this rung; `None`: they do not.
pub fn spared(worker: &Worker, rung: &Rung) -> Option<&'static str> {
    match rung {
        _ if worker.protected => Some("is protected"),
        Rung::Recycle if !worker.can_be_restarted() => Some("is adopted, and adopt.restart does not say how it is restarted"),
        Rung::Kill if !worker.may_be_ended() => Some("is adopted, and adopt.may_end does not allow it to be ended"),
        _ => None,
    }
}

/// Neither replaced nor killed.
pub fn is_spared(worker: &Worker) -> bool {
    spared(worker, &Rung::Recycle).is_some() && spared(worker, &Rung::Kill).is_some()
}

/// May be recycled or killed for a resource's sake.
pub fn is_eligible(candidate: &Candidate) -> bool {
    candidate.running && !is_spared(&candidate.settings) && candidate.busy.is_none()
}

/// The eligible candidates, the one that is to go first in front.
///
/// Lower priority goes first; among equals the larger score; among those the younger life, whose work is worth least; and
/// the order of slots decides what is left, so that the same candidates always give the same ranking. A replica whose
/// memory is not known stands last of its priority: ending it is not known to give anything back.
pub fn rank(candidates: &[Candidate], yields: Yield) -> Vec<&Candidate> {
    let mut eligible: Vec<(&Candidate, f64)> =
        candidates.iter().filter(|candidate| is_eligible(candidate)).map(|candidate| (candidate, score(candidate, yields))).collect();
    eligible.sort_by(|(a, a_score), (b, b_score)| {
        (a.settings.priority.cmp(&b.settings.priority))
            .then(b_score.total_cmp(a_score))
            .then(Reverse(a.since.steady).cmp(&Reverse(b.since.steady)))
            .then(a.slot.cmp(&b.slot))
    });
    eligible.into_iter().map(|(candidate, _)| candidate).collect()
}

/// What would come back if every eligible candidate ended.
pub fn could_give_back(candidates: &[Candidate], yields: Yield) -> f64 {
    candidates.iter().filter(|candidate| is_eligible(candidate)).map(|candidate| yields.of(candidate)).sum()
}

/// For memory, in bytes: memory + 30 s × growth, where it grows. For the CPU: cores.
fn score(candidate: &Candidate, yields: Yield) -> f64 {
    let growth = if candidate.growth.is_finite() && yields == Yield::Memory { candidate.growth.max(0.0) } else { 0.0 };
    yields.known(candidate).map_or(-1.0, |amount| amount + AHEAD * growth)
}

/// A candidate's figures.
pub fn why(candidate: &Candidate) -> String {
    let size = candidate.memory.map_or_else(|| "memory not known".to_owned(), |memory| bytes(memory as f64));
    format!("{}: priority {}, {size}, growing {}", candidate.name(), candidate.settings.priority, rate(candidate.growth.max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Adopt, AdoptBy};
    use crate::response::tests::candidate;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn order(candidates: &[Candidate]) -> Vec<u64> {
        rank(candidates, Yield::Memory).into_iter().map(|candidate| candidate.slot.0).collect()
    }

    #[test]
    fn places_follow_the_table() {
        let base = |slot| candidate(slot, "web", 0.1, 100);
        let spared = |slot, priority| {
            let mut one = base(slot);
            Arc::make_mut(&mut one.settings).priority = priority;
            one
        };
        let protected = |slot| {
            let mut one = base(slot);
            Arc::make_mut(&mut one.settings).protected = true;
            one
        };
        let adopted = |slot, restart: bool, may_end: bool| {
            let mut one = base(slot);
            let restart = restart.then(|| vec!["restart".to_owned()]);
            let by = AdoptBy::Unit("app.service".to_owned());
            let adopt = Adopt { by, restart, restart_within: std::time::Duration::from_secs(1), may_end };
            Arc::make_mut(&mut one.settings).adopt = Some(adopt);
            one
        };
        let cases: Vec<(&str, Vec<Candidate>, Vec<u64>)> = vec![
            (
                "adopted only where something is said of its end",
                vec![adopted(1, false, false), adopted(2, true, false), adopted(3, false, true)],
                vec![2, 3],
            ),
            ("larger first", vec![candidate(1, "a", 0.0, 10), candidate(2, "b", 0.0, 20)], vec![2, 1]),
            ("lower priority before larger", vec![spared(1, 5), Candidate { memory: Some(1), ..spared(2, 0) }], vec![2, 1]),
            (
                "growth counts thirty seconds ahead",
                vec![base(1), Candidate { memory: Some(50_000_000), growth: 2e6, ..base(2) }],
                vec![2, 1],
            ),
            ("shrinking is not counted", vec![Candidate { growth: -1e9, ..base(1) }, candidate(2, "b", 0.0, 99)], vec![1, 2]),
            ("younger first among equals", vec![base(1), Candidate { since: crate::policy::tests::at(9.0), ..base(2) }], vec![2, 1]),
            ("unknown memory last", vec![Candidate { memory: None, ..base(1) }, Candidate { memory: Some(0), ..base(2) }], vec![2, 1]),
            (
                "protected, busy and stopped never",
                vec![protected(1), Candidate { busy: Some("recycling"), ..base(2) }, Candidate { running: false, ..base(3) }, base(4)],
                vec![4],
            ),
        ];
        for (name, candidates, expected) in cases {
            assert_eq!(order(&candidates), expected, "{name}");
        }
    }

    #[test]
    fn what_may_be_done_to_an_adopted_worker_is_what_its_settings_say() {
        let worker = |restart: Option<Vec<String>>, may_end| {
            let adopt = Adopt { by: AdoptBy::Unit("app.service".into()), restart, restart_within: Default::default(), may_end };
            Worker { adopt: Some(adopt), ..Worker::new("legacy", Vec::new()) }
        };
        let spared_on = |worker: &Worker| [Rung::Recycle, Rung::Kill].map(|rung| spared(worker, &rung).is_some());
        assert_eq!(spared_on(&worker(None, false)), [true, true]);
        assert_eq!(spared_on(&worker(Some(vec!["x".into()]), false)), [false, true]);
        assert_eq!(spared_on(&worker(None, true)), [true, false]);
        assert_eq!(spared_on(&Worker { protected: true, ..worker(Some(vec!["x".into()]), true) }), [true, true]);
        assert_eq!(spared_on(&Worker::new("web", vec!["sh".into()])), [false, false]);
        assert_eq!(spared(&worker(None, false), &Rung::Throttle), None);
    }

    #[test]
    fn each_place_has_its_reason() {
        let growing = Candidate { growth: 2e6, ..candidate(1, "web", 0.0, 300) };
        assert_eq!(why(&growing), "web.0: priority 0, 300.0 MB, growing 2.0 MB/s");
    }

    proptest! {
        #[test]
        fn the_order_given_does_not_matter(memories in prop::collection::vec((0u64..5, 0i32..3), 1..20), turn in 0usize..20) {
            let mut candidates: Vec<Candidate> = memories
                .iter()
                .enumerate()
                .map(|(slot, (memory, priority))| {
                    let mut one = candidate(slot as u64, "web", 0.0, *memory);
                    Arc::make_mut(&mut one.settings).priority = *priority;
                    one
                })
                .collect();
            let before = order(&candidates);
            let turn = turn % candidates.len();
            candidates.rotate_left(turn);
            prop_assert_eq!(order(&candidates), before);
        }
    }
}
