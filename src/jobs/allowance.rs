//! How much of the processors a run may use. The daemon says so after each tick, and the run keeps to it by itself, at its safe points:
//! held from outside, as workers are, it could be held inside a transaction on a database of theirs.
//!
//! Pure: time and the CPU clock are arguments.

use std::time::Duration;

/// A run always gets so much of the limit, or it would never end on a machine that is never calm.
const LEAST: f64 = 0.05;
/// What was not used may be used later, up to so many seconds' worth.
const SAVED: f64 = 0.1;
/// What was used beyond is worked off, up to so many seconds' worth: a single statement of SQLite takes what it takes.
const OWED: f64 = 5.0;

/// Cores for a run where `others` use so many of `limit`: all that is left below `line`, a part of the limit. Up to the low line of
/// the policy no run ever is what brings the machine over the high one.
pub fn cores(limit: f64, line: f64, others: f64) -> f64 {
    (line * limit - others).max(LEAST * limit)
}

/// What it may use, and has.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowance {
    /// `None`: as many as it likes.
    cores: Option<f64>,
    /// Core seconds; negative when it has used more than it may.
    credit: f64,
    at: Duration,
    cpu: Duration,
}

impl Allowance {
    /// Boundless, until somebody sets it. `cpu` is the CPU clock of the run at `now`.
    pub fn new(now: Duration, cpu: Duration) -> Allowance {
        Allowance { cores: None, credit: 0.0, at: now, cpu }
    }

    /// What is no number of cores above zero is nothing.
    pub fn set(&mut self, cores: f64) {
        if cores.is_finite() && cores > 0.0 {
            self.cores = Some(cores);
        }
    }

    /// How long it is to do nothing now; zero: it may go on.
    pub fn step(&mut self, now: Duration, cpu: Duration) -> Duration {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let used = cpu.saturating_sub(self.cpu).as_secs_f64();
        (self.at, self.cpu) = (now, cpu);
        let Some(cores) = self.cores else { return Duration::ZERO };
        self.credit = (self.credit + cores * passed - used).clamp(-cores * OWED, cores * SAVED);
        if self.credit >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.credit / cores) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_gets_what_is_left_below_the_line_and_never_nothing() {
        for (limit, line, others, expected) in
            [(2.0, 0.7, 0.0, 1.4), (2.0, 0.7, 1.0, 0.4), (2.0, 0.7, 1.35, 0.1), (2.0, 0.7, 5.0, 0.1), (0.5, 0.7, 0.1, 0.25)]
        {
            assert!((cores(limit, line, others) - expected).abs() < 1e-9, "{limit} {line} {others}");
        }
    }

    #[test]
    fn without_a_word_it_is_boundless_and_nonsense_is_no_word() {
        let mut allowance = Allowance::new(Duration::ZERO, Duration::ZERO);
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            allowance.set(nonsense);
            assert_eq!(allowance.step(Duration::from_secs(1), Duration::from_secs(100)), Duration::ZERO);
        }
    }

    proptest! {
        /// Pieces of work of any size, with a safe point after each.
        #[test]
        fn in_the_long_run_it_uses_what_it_may(cores in 0.01_f64..2.0, work in prop::collection::vec(1_u64..200, 1..50)) {
            let (mut now, mut cpu) = (Duration::from_secs(7), Duration::from_secs(3));
            let (begun, before) = (now, cpu);
            let mut allowance = Allowance::new(now, cpu);
            allowance.set(cores);
            for piece in work.iter().cycle() {
                let piece = Duration::from_millis(*piece).min(Duration::from_secs_f64(cores * OWED));
                // It may be two threads.
                now += piece / 2;
                cpu += piece;
                now += allowance.step(now, cpu);
                if (now - begun) > Duration::from_secs(60) {
                    break;
                }
            }
            let passed = (now - begun).as_secs_f64();
            let used = (cpu - before).as_secs_f64();
            prop_assert!(used <= cores * (passed + SAVED) + 0.2, "{used} of {cores} in {passed}");
            // As fast as it can, or as fast as it may.
            prop_assert!(used >= 0.97 * cores.min(2.0) * passed - 0.4, "{used} of {cores} in {passed}");
        }
    }
}
