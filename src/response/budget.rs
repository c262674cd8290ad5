//! The CPU budget: what the workers may use together, and each one's part of it.
//!
//! The scope may use its high line. What others use is taken off; what is left is shared among the workers by weighted
//! max-min fairness: everybody gets what it asks for as far as the budget goes, and those who ask for more than the rest
//! leave share what is left by weight. Nobody can gain by asking for more, and a worker that uses little is never slowed for
//! one that uses much. Priority has no part in it: it decides who is ended, weight decides who is slowed.
//!
//! What a worker asks for is seen from what it does. One that uses all but all of what it is held to is **hungry**: it would
//! use more, nobody knows how much. Any other asks for what it uses, and may grow to what it would get if it became hungry
//! this instant: a request that arrives at a quiet worker is not slowed by what the worker did a second ago.

use crate::response::action::Share;
use crate::sampling::readings::SlotId;

/// A worker that uses this part of what it is held to is hungry. It has to be close to all of it: what one that is taken for
/// hungry leaves unused is lost to everybody, and may not be more than two points of the limit. One that is hungry and not
/// seen as such (a throttle that holds it a little under its share) loses nothing: it keeps its fair share all the same.
const HUNGRY: f64 = 0.975;
/// Whatever others use, the workers keep this part of the line: they are what the machine is there for.
pub const FLOOR: f64 = 0.1;

/// One replica that can be held. All in cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub slot: SlotId,
    /// Its part beside others, 1 to 10000.
    pub weight: u32,
    /// Mean use over the window.
    pub used: f64,
    /// Mean of what it was held to over the same window; `None`: it was free in all or part of it.
    pub held: Option<f64>,
    /// `limits.cpu`.
    pub most: Option<f64>,
}

/// The scope. All in cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    pub limit: f64,
    /// The high line.
    pub high: f64,
    /// What all but the claims use.
    pub others: f64,
    /// What is held back because more than the budget was used before.
    pub paid_back: f64,
}

impl Room {
    /// What the claims may use together in the long run.
    pub fn whole(&self) -> f64 {
        (self.high - self.others).max(FLOOR * self.high)
    }

    /// What is shared out now: never less than half of the whole, whatever there is to pay back.
    pub fn budget(&self) -> f64 {
        let whole = self.whole();
        whole - self.paid_back.clamp(0.0, whole / 2.0)
    }
}

/// Each claim's share, in the order given. Nobody is set free here, however little is used in this moment: a worker that is
/// starved by strangers uses little too, and would burst. Letting go is for the verdict, which has its own patience.
pub fn share(claims: &[Claim], room: &Room) -> Vec<Share> {
    let demands: Vec<Demand> = claims.iter().map(|claim| demand(claim, room)).collect();
    let filling = Filling::new(&demands, room.budget());
    claims
        .iter()
        .zip(&demands)
        .map(|(claim, demand)| {
            let fair = filling.fair_share(demand);
            let cores = if is_hungry(claim) { demand.cores.min(fair) } else { fair.min(most(claim, room)) };
            Share { slot: claim.slot, cores: Some(cores) }
        })
        .collect()
}

/// What every claim is expected to use if held to `shares`: the hungry all of it, the others what they use now.
#[cfg(test)]
fn expected(claims: &[Claim], shares: &[Share]) -> f64 {
    claims
        .iter()
        .zip(shares)
        .map(|(claim, share)| {
            let cores = share.cores.unwrap_or(f64::INFINITY);
            if is_hungry(claim) { cores } else { cores.min(claim.used) }
        })
        .sum()
}

fn is_hungry(claim: &Claim) -> bool {
    claim.held.is_some_and(|held| claim.used >= HUNGRY * held)
}

/// Hungry, and held to less than it may have at most in a scope of `limit` cores.
pub fn is_held_back(claim: &Claim, limit: f64) -> bool {
    is_hungry(claim) && claim.held.is_some_and(|held| held < HUNGRY * most_of(claim, limit))
}

fn most(claim: &Claim, room: &Room) -> f64 {
    most_of(claim, room.limit)
}

fn most_of(claim: &Claim, limit: f64) -> f64 {
    claim.most.unwrap_or(limit).min(limit)
}

#[derive(Clone, Copy, Debug)]
struct Demand {
    weight: f64,
    cores: f64,
}

fn demand(claim: &Claim, room: &Room) -> Demand {
    let most = most(claim, room);
    Demand { weight: f64::from(claim.weight.max(1)), cores: if is_hungry(claim) { most } else { claim.used.clamp(0.0, most) } }
}

/// Water filling: at level `l` each demand takes the smaller of itself and `weight × l`.
///
/// Demands are sorted by the level at which they are met, with sums over those met and those not, so that every question
/// costs a binary search: a thousand replicas are shared out in well under a millisecond.
struct Filling {
    budget: f64,
    /// Levels at which a demand is met, rising.
    levels: Vec<f64>,
    /// `met[n]`: what the first n take once met. `open[n]`: the weight of all but the first n.
    met: Vec<f64>,
    open: Vec<f64>,
}

impl Filling {
    fn new(demands: &[Demand], budget: f64) -> Self {
        let mut sorted = demands.to_vec();
        sorted.sort_by(|a, b| (a.cores / a.weight).total_cmp(&(b.cores / b.weight)));
        let mut met = vec![0.0];
        met.extend(sorted.iter().scan(0.0, |sum, demand| {
            *sum += demand.cores;
            Some(*sum)
        }));
        let mut open: Vec<f64> = sorted
            .iter()
            .rev()
            .scan(0.0, |sum, demand| {
                *sum += demand.weight;
                Some(*sum)
            })
            .collect();
        open.reverse();
        open.push(0.0);
        Filling { budget, levels: sorted.iter().map(|demand| demand.cores / demand.weight).collect(), met, open }
    }

    /// What `one` of the demands would get if it asked for everything while the others ask for what they ask for: the
    /// most it may be held to without taking anything from anybody. For one that is not met it is what it gets.
    fn fair_share(&self, one: &Demand) -> f64 {
        // Taken at `level` by all, with `one` boundless in place of what it asks for.
        let taken = |level: f64, met: usize| {
            let all = self.met[met] + level * self.open[met];
            all - one.cores.min(one.weight * level) + one.weight * level
        };
        // The first knot at which more than the budget is taken; at each knot all up to it are met.
        let (mut fits, mut bursts) = (0, self.levels.len());
        while fits < bursts {
            let middle = fits.midpoint(bursts);
            if taken(self.levels[middle], middle) <= self.budget {
                fits = middle + 1;
            } else {
                bursts = middle;
            }
        }
        // Between knots everything is linear: `fits` demands are met, the rest and `one` grow with the level.
        let own_is_met = self.levels.get(fits).is_none_or(|next| one.cores / one.weight < *next);
        let (met, open) =
            if own_is_met { (self.met[fits] - one.cores, self.open[fits] + one.weight) } else { (self.met[fits], self.open[fits]) };
        if open > 0.0 { (one.weight * (self.budget - met) / open).max(0.0) } else { self.budget }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(slot: u64, used: f64, held: Option<f64>) -> Claim {
        Claim { slot: SlotId(slot), weight: 100, used, held, most: None }
    }

    const TWO_CORES: Room = Room { limit: 2.0, high: 1.6, others: 0.0, paid_back: 0.0 };

    fn cores(shares: &[Share]) -> Vec<f64> {
        shares.iter().map(|share| share.cores.map_or(f64::INFINITY, |cores| (cores * 1e6).round() / 1e6)).collect()
    }

    #[test]
    fn shares_follow_the_table() {
        let hungry = |slot, held| claim(slot, held, Some(held));
        let cases: Vec<(&str, Vec<Claim>, Room, Vec<f64>)> = vec![
            ("one hog gets the budget", vec![hungry(1, 1.0)], TWO_CORES, vec![1.6]),
            ("two hogs halve it", vec![hungry(1, 1.0), hungry(2, 0.8)], TWO_CORES, vec![0.8, 0.8]),
            ("what others use is taken off", vec![hungry(1, 1.0)], Room { others: 1.0, ..TWO_CORES }, vec![0.6]),
            ("a tenth of the line is kept", vec![hungry(1, 1.0)], Room { others: 5.0, ..TWO_CORES }, vec![0.16]),
            ("two that were free are held at once", vec![claim(1, 1.0, None), claim(2, 1.0, None)], TWO_CORES, vec![0.8, 0.8]),
            (
                "one that uses little keeps its fair share, the hog gets what it leaves",
                vec![claim(1, 0.2, Some(0.8)), hungry(2, 0.8)],
                TWO_CORES,
                vec![0.8, 1.4],
            ),
            ("one that uses nearly its share is not hungry yet", vec![claim(1, 0.7, Some(0.8)), hungry(2, 0.8)], TWO_CORES, vec![0.8, 0.9]),
            ("weights share what is scarce", vec![Claim { weight: 300, ..hungry(1, 0.8) }, hungry(2, 0.8)], TWO_CORES, vec![1.2, 0.4]),
            (
                "a limit of its own is kept, the rest goes to the others",
                vec![Claim { most: Some(0.5), ..hungry(1, 0.5) }, hungry(2, 0.8)],
                TWO_CORES,
                vec![0.5, 1.1],
            ),
            (
                "nobody hungry: each may take what the other leaves, but for own limits",
                vec![claim(1, 0.2, Some(0.8)), Claim { most: Some(0.5), ..claim(2, 0.2, Some(0.5)) }],
                TWO_CORES,
                vec![1.4, 0.5],
            ),
            (
                "nobody hungry but much used: held loosely",
                vec![claim(1, 0.6, Some(0.8)), claim(2, 0.6, Some(0.8))],
                Room { others: 0.3, ..TWO_CORES },
                vec![0.7, 0.7],
            ),
            ("what was used too much is paid back", vec![hungry(1, 1.0)], Room { paid_back: 0.2, ..TWO_CORES }, vec![1.4]),
            ("but half of it is kept", vec![hungry(1, 1.0)], Room { paid_back: 9.0, ..TWO_CORES }, vec![0.8]),
            ("nobody at all", vec![], TWO_CORES, vec![]),
        ];
        for (name, claims, room, expected) in cases {
            assert_eq!(cores(&share(&claims, &room)), expected, "{name}");
        }
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (1u32..1000, 0.0f64..2.0, prop::option::of(0.01f64..2.0), prop::option::of(0.05f64..2.0));
        prop::collection::vec(one, 1..24).prop_map(|claims| {
            claims
                .into_iter()
                .enumerate()
                .map(|(slot, (weight, used, held, most))| Claim { slot: SlotId(slot as u64), weight, used, held, most })
                .collect()
        })
    }

    fn room() -> impl Strategy<Value = Room> {
        (0.5f64..8.0, 0.3f64..1.0, 0.0f64..4.0, 0.0f64..2.0).prop_map(|(limit, high, others, paid_back)| Room {
            limit,
            high: limit * high,
            others,
            paid_back,
        })
    }

    /// A worker that would like `wants` cores, held to a share: it uses the smaller.
    fn simulate(wants: &[f64], weights: &[u32], others: f64, ticks: usize) -> (Vec<Share>, f64) {
        let room = Room { others, ..TWO_CORES };
        let mut held: Vec<Option<f64>> = vec![None; wants.len()];
        let mut shares = Vec::new();
        for _ in 0..ticks {
            let claims: Vec<Claim> = wants
                .iter()
                .zip(weights)
                .zip(&held)
                .zip(0..)
                .map(|(((wants, weight), held), slot)| {
                    let used = held.map_or(*wants, |held| held.min(*wants));
                    Claim { slot: SlotId(slot), weight: *weight, used, held: *held, most: None }
                })
                .collect();
            shares = share(&claims, &room);
            held = shares.iter().map(|share| share.cores).collect();
        }
        let used = wants.iter().zip(&held).map(|(wants, held)| held.map_or(*wants, |held| held.min(*wants))).sum();
        (shares, used)
    }

    proptest! {
        #[test]
        fn what_is_expected_never_passes_the_budget(claims in claims(), room in room()) {
            let shares = share(&claims, &room);
            if shares.iter().zip(&claims).any(|(share, claim)| share.cores != claim.most) {
                prop_assert!(expected(&claims, &shares) <= room.budget() + 1e-6, "{} of {}", expected(&claims, &shares), room.budget());
            }
        }

        #[test]
        fn nothing_is_left_over_while_somebody_is_hungry(claims in claims(), room in room()) {
            let shares = share(&claims, &room);
            let wanting = claims.iter().zip(&shares).any(|(claim, share)| {
                is_hungry(claim) && share.cores.is_some_and(|cores| cores < most(claim, &room) - 1e-6)
            });
            if wanting {
                prop_assert!((expected(&claims, &shares) - room.budget()).abs() < 1e-6);
            }
        }

        #[test]
        fn shares_keep_every_bound(claims in claims(), room in room()) {
            for (share, claim) in share(&claims, &room).iter().zip(&claims) {
                prop_assert_eq!(share.slot, claim.slot);
                if let Some(cores) = share.cores {
                    prop_assert!(cores.is_finite() && cores >= 0.0);
                    prop_assert!(claim.most.is_none_or(|most| cores <= most + 1e-9));
                }
            }
        }

        #[test]
        fn of_two_alike_the_heavier_gets_no_less(claims in claims(), room in room(), factor in 1u32..5) {
            let mut claims = claims;
            let heavier = Claim { slot: SlotId(999), weight: claims[0].weight * factor, ..claims[0] };
            claims.push(heavier);
            let shares = share(&claims, &room);
            let (first, last) = (shares[0].cores.unwrap_or(99.0), shares[claims.len() - 1].cores.unwrap_or(99.0));
            prop_assert!(last >= first - 1e-9, "{first} {last}");
        }

        #[test]
        fn it_settles_on_the_line_when_demand_is_over_it(
            wants in prop::collection::vec((0.0f64..2.0, 1u32..500), 1..8),
            others in 0.0f64..1.0,
        ) {
            let (wants, weights): (Vec<f64>, Vec<u32>) = wants.into_iter().unzip();
            prop_assume!(wants.iter().sum::<f64>() > TWO_CORES.high - others + 0.05);
            let (_, used) = simulate(&wants, &weights, others, 60);
            let room = Room { others, ..TWO_CORES };
            // Within two points of the limit, from under and from over.
            prop_assert!((used - room.budget()).abs() <= 0.041, "{used} of {}", room.budget());
        }

        #[test]
        fn small_demand_is_not_held_back(wants in prop::collection::vec(0.0f64..0.1, 1..8)) {
            let weights = vec![100; wants.len()];
            let (shares, used) = simulate(&wants, &weights, 0.0, 10);
            prop_assert!(shares.iter().zip(&wants).all(|(share, wants)| share.cores.is_none_or(|cores| cores >= 2.0 * wants)));
            prop_assert!((used - wants.iter().sum::<f64>()).abs() < 1e-9);
        }
    }
}
