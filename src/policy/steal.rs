//! What a hypervisor takes away of the processors (`steal`), as a smaller limit.
//!
//! A virtual machine of two cores that gets the time of one is full at one: measured against two it would never come near
//! its line, however slow everything in it has become. What was taken counts for a while after, and for as long as anything
//! worth mentioning is still taken: it is only taken from who wants it, so that the first effect of holding back would be a
//! limit that looks whole again, and the throttle would let everybody go and begin anew for ever.

use std::time::Duration;

use super::window::Mean;

/// Less than this part of what was wanted is what any virtual machine loses now and then.
const NOTICEABLE: f64 = 0.05;
/// While no more than that is taken, half of what was is believed to be back after so long.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// Never less than this part of the processors is believed to be left.
const LEAST: f64 = 0.1;

#[derive(Clone, Debug)]
pub struct Stolen {
    recent: Mean,
    used: Mean,
    /// Cores.
    held: f64,
}

impl Stolen {
    /// Judged on a mean over `span`, as usage is.
    pub fn new(span: Duration) -> Self {
        Stolen { recent: Mean::new(span), used: Mean::new(span), held: 0.0 }
    }

    /// Takes what was stolen and what was used over the `gap` before now, in cores.
    pub fn feed(&mut self, gap: Duration, stolen: f64, used: f64) {
        self.recent.feed(gap, stolen);
        self.used.feed(gap, used);
        let (recent, used) = (self.recent.value().unwrap_or(0.0), self.used.value().unwrap_or(0.0));
        if recent < NOTICEABLE * (recent + used) {
            self.held *= 0.5_f64.powf(gap.as_secs_f64() / HALF_LIFE.as_secs_f64());
        }
        self.held = self.held.max(recent);
    }

    /// What is really there of `limit` cores.
    pub fn left_of(&self, limit: f64) -> f64 {
        (limit - self.held).max(limit * LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: Duration = Duration::from_secs(1);
    const TICK: Duration = Duration::from_millis(250);

    #[test]
    fn a_machine_that_gets_half_its_time_is_full_at_half_and_recovers() {
        let mut stolen = Stolen::new(SPAN);
        assert_eq!(stolen.left_of(2.0), 2.0);
        (0..8).for_each(|_| stolen.feed(TICK, 1.0, 1.0));
        assert_eq!(stolen.left_of(2.0), 1.0, "while it is taken");
        (0..4 * 31).for_each(|_| stolen.feed(TICK, 0.0, 0.8));
        assert!((1.4..1.6).contains(&stolen.left_of(2.0)), "{}", stolen.left_of(2.0));
    }

    /// The hypervisor gives one core of two, and the workers would use all there is.
    #[test]
    fn held_demand_is_not_taken_for_demand_that_has_fallen() {
        let (high, low, given) = (0.8, 0.7, 1.0);
        let mut stolen = Stolen::new(SPAN);
        let mut budget = 2.0_f64;
        for tick in 0..4 * 600 {
            let (used, taken) = (budget.min(given), (budget - given).max(0.0));
            stolen.feed(TICK, taken, used);
            let limit = stolen.left_of(2.0);
            if tick > 8 {
                assert!(used / limit > low, "tick {tick}: {used} of {limit}");
                assert!(limit < 1.5, "tick {tick}: {limit}");
            }
            budget = high * limit;
        }
    }

    proptest! {
        #[test]
        fn some_of_the_limit_is_always_left(takes in proptest::collection::vec(any::<f64>(), 0..50), limit in 0.1_f64..512.0) {
            let mut stolen = Stolen::new(SPAN);
            for cores in takes {
                stolen.feed(TICK, cores, 1.0);
                prop_assert!((limit * LEAST..=limit).contains(&stolen.left_of(limit)));
            }
        }
    }
}
