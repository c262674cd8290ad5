//! So many a second and no more.

use std::time::Duration;

/// When the next may go. Pure: it is told the time, and tells how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two; zero where there is no limit.
    apart: Duration,
    /// Until then the ones that went are within the rate.
    spent: Duration,
}

/// Waits are gathered until they are worth one: nobody notices the difference, and a wait for each file costs more than the file.
const WORTH: Duration = Duration::from_millis(20);

impl Pace {
    pub fn new(rate: Option<u32>, now: Duration) -> Pace {
        let apart = rate.filter(|rate| *rate > 0).map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
        Pace { apart, spent: now }
    }

    /// Notes that `count` go at `now`, a time of the steady clock; gives how long to wait afterwards. Time that was not used is not
    /// made up for.
    pub fn spend(&mut self, count: u32, now: Duration) -> Duration {
        if self.apart.is_zero() {
            return Duration::ZERO;
        }
        self.spent = self.spent.max(now).saturating_add(self.apart.saturating_mul(count));
        let ahead = self.spent - now;
        if ahead < WORTH { Duration::ZERO } else { ahead }
    }

    /// How long `count` take at least.
    pub fn least(&self, count: u64) -> Duration {
        self.apart.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In no second more than the rate and what is gathered, and never slower than the rate by more than a wait.
        #[test]
        fn a_second_never_sees_more_than_the_rate(
            rate in 1_u32..5000, steps in proptest::collection::vec((1_u32..4, 0_u64..50_000), 1..300),
        ) {
            let mut now = Duration::from_secs(100);
            let mut pace = Pace::new(Some(rate), now);
            let mut went: Vec<Duration> = Vec::new();
            for (count, micros) in steps {
                went.extend((0..count).map(|_| now));
                now += pace.spend(count, now);
                now += Duration::from_micros(micros);
            }
            let most = u64::from(rate) + u64::from(rate) / 50 + 4;
            for (at, begun) in went.iter().enumerate() {
                let within = went.iter().skip(at).take_while(|time| **time < *begun + Duration::from_secs(1)).count();
                prop_assert!(within as u64 <= most, "{within} in a second at {rate}");
            }
        }
    }

    #[test]
    fn no_rate_means_no_wait() {
        let mut pace = Pace::new(None, Duration::ZERO);
        assert_eq!(pace.spend(1000, Duration::ZERO), Duration::ZERO);
        let mut pace = Pace::new(Some(10), Duration::ZERO);
        assert_eq!(pace.spend(1, Duration::ZERO), Duration::from_millis(100));
        assert_eq!(pace.least(25), Duration::from_millis(2500));
    }
}
