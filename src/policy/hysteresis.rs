//! When a level is entered and when it is left.
//!
//! ```text
//!                over high for `sustain`                 over critical for `critical_sustain`,
//!                on two looks or more                    or over `at_once` in one look
//!    ┌────────┐ ─────────────────────────► ┌────────┐ ─────────────────────────► ┌──────────┐
//!    │ normal │                            │  high  │                            │ critical │
//!    └────────┘ ◄───────────────────────── └────────┘ ◄───────────────────────── └──────────┘
//!                under low for half of                   under critical less two points
//!                `sustain`, on two looks or more
//! ```
//!
//! `normal` goes straight to `critical` under the same conditions as `high` does; `critical` is always left through
//! `high`. Between `low` and `high` nothing changes, in either direction: that is the band.
//!
//! A look without a number changes no level. It does not break a run of looks over a line, but the time it spans does not
//! count towards one either: only what was seen counts. Above all it is never taken for being under `low`.

use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::Level;

/// `critical` is left this far under its line (a share of the limit).
pub const CRITICAL_BAND: f64 = 0.02;

/// The lines of one resource in one tick, as shares of its limit: `low` < `high` <= `critical` <= `at_once`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lines {
    pub high: f64,
    pub low: f64,
    pub critical: Option<f64>,
    /// Critical on the first look at or over this, without `sustain`.
    pub at_once: Option<f64>,
    pub sustain: Duration,
    /// The same for `critical`: longer where the line is a soft one, with nothing behind it that would hurt.
    pub critical_sustain: Duration,
}

/// Looks in a row on one side of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Run {
    looks: u32,
    lasted: Duration,
}

impl Run {
    /// One more look, `gap` after the last.
    fn step(&mut self, holds: bool, gap: Duration) {
        if !holds {
            *self = Run::default();
            return;
        }
        if self.looks > 0 {
            self.lasted = self.lasted.saturating_add(gap);
        }
        self.looks = self.looks.saturating_add(1);
    }

    /// One look proves nothing about time, so a run is at least two, however short the wait asked for.
    fn reached(&self, wait: Duration) -> bool {
        self.looks >= 2 && self.lasted >= wait
    }
}

/// The level of one resource and how it got there.
#[derive(Clone, Debug)]
pub struct Hysteresis {
    level: Level,
    since: Moment,
    looked: Moment,
    over_high: Run,
    over_critical: Run,
    under_low: Run,
}

impl Hysteresis {
    pub fn new(now: Moment) -> Self {
        let run = Run::default();
        Hysteresis { level: Level::Normal, since: now, looked: now, over_high: run, over_critical: run, under_low: run }
    }

    /// Takes one look: `utilization` is the usage as a share of the limit, `None` (or not a number) when it is not known.
    pub fn step(&mut self, utilization: Option<f64>, lines: &Lines, now: Moment) -> Level {
        let gap = now.since(self.looked);
        self.looked = now;
        let Some(usage) = utilization.filter(|usage| !usage.is_nan()) else { return self.level };

        let at_or_over = |line: Option<f64>| line.is_some_and(|line| usage >= line);
        self.over_high.step(usage >= lines.high, gap);
        self.over_critical.step(at_or_over(lines.critical), gap);
        self.under_low.step(usage < lines.low, gap);

        let next = if at_or_over(lines.at_once) || self.over_critical.reached(lines.critical_sustain) {
            Level::Critical
        } else {
            match self.level {
                Level::Critical if lines.critical.is_some_and(|line| usage >= line - CRITICAL_BAND) => Level::Critical,
                Level::Critical => Level::High,
                Level::High if self.under_low.reached(lines.sustain / 2) => Level::Normal,
                Level::High => Level::High,
                Level::Normal if self.over_high.reached(lines.sustain) => Level::High,
                Level::Normal => Level::Normal,
            }
        };
        if next != self.level {
            self.level = next;
            self.since = now;
        }
        self.level
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// When the level last changed.
    pub fn since(&self) -> Moment {
        self.since
    }

    /// How long usage has been seen over `high` without a break; zero when it is not.
    pub fn over_for(&self) -> Duration {
        self.over_high.lasted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const MEMORY: Lines = Lines {
        high: 0.8,
        low: 0.7,
        critical: Some(0.92),
        at_once: Some(0.92),
        sustain: Duration::from_secs(4),
        critical_sustain: Duration::from_secs(4),
    };
    const CPU: Lines = Lines {
        critical: Some(0.95),
        at_once: None,
        sustain: Duration::from_secs(10),
        critical_sustain: Duration::from_secs(10),
        ..MEMORY
    };
    /// A soft line of a worker, with its hard limit behind it.
    const SOFT: Lines = Lines { critical: Some(0.85), at_once: Some(0.92), critical_sustain: Duration::from_secs(8), ..MEMORY };

    fn at(milliseconds: u64) -> Moment {
        Moment { steady: Duration::from_millis(milliseconds), wall: SystemTime::UNIX_EPOCH }
    }

    /// One look a second; the level after each, as its first letter.
    fn walk(lines: &Lines, looks: &[Option<f64>]) -> String {
        let mut state = Hysteresis::new(at(0));
        looks
            .iter()
            .zip(1..)
            .map(|(usage, second)| match state.step(*usage, lines, at(second * 1000)) {
                Level::Normal => 'n',
                Level::High => 'h',
                Level::Critical => 'c',
            })
            .collect()
    }

    fn known(looks: &[f64]) -> Vec<Option<f64>> {
        looks.iter().copied().map(Some).collect()
    }

    #[test]
    fn levels_follow_the_table() {
        let not_read = None;
        let cases: &[(&str, &Lines, Vec<Option<f64>>, &str)] = &[
            ("high after sustain", &MEMORY, known(&[0.85; 6]), "nnnnhh"),
            ("a break starts sustain again", &MEMORY, known(&[0.85, 0.85, 0.85, 0.79, 0.85, 0.85, 0.85, 0.85, 0.85]), "nnnnnnnnh"),
            ("critical memory at once, even on the first look", &MEMORY, known(&[0.95]), "c"),
            ("critical cpu after sustain", &CPU, known(&[0.99; 12]), "nnnnnnnnnncc"),
            ("a peak over a soft line is waited for", &SOFT, known(&[0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.6]), "nnnnhhh"),
            ("a sustained excess is not", &SOFT, known(&[0.9; 10]), "nnnnhhhhcc"),
            ("nor is the hard line behind it", &SOFT, known(&[0.9, 0.93]), "nc"),
            ("critical is left two points under its line", &MEMORY, known(&[0.95, 0.91, 0.905, 0.89]), "ccch"),
            ("normal after half of sustain under low", &MEMORY, known(&[0.95, 0.85, 0.6, 0.6, 0.6]), "chhhn"),
            ("the band keeps high", &MEMORY, known(&[0.95, 0.85, 0.75, 0.71, 0.75, 0.79, 0.75, 0.71]), "chhhhhhh"),
            ("a look at exactly low is not under it", &MEMORY, known(&[0.95, 0.7, 0.7, 0.7, 0.7, 0.7]), "chhhhh"),
            ("unknown is never under low", &MEMORY, vec![Some(0.95), Some(0.85), not_read, not_read, not_read, not_read], "chhhhh"),
            (
                "unknown time does not count towards sustain, nor break it",
                &MEMORY,
                vec![Some(0.85), Some(0.85), Some(0.85), not_read, not_read, not_read, Some(0.85), Some(0.85)],
                "nnnnnnnh",
            ),
            ("not a number is unknown", &MEMORY, vec![Some(0.95), Some(f64::NAN), Some(f64::NAN)], "ccc"),
            ("infinite is over every line", &MEMORY, vec![Some(f64::INFINITY)], "c"),
        ];
        for (name, lines, looks, levels) in cases {
            assert_eq!(walk(lines, looks), *levels, "{name}");
        }
    }

    #[test]
    fn without_sustain_two_looks_are_needed() {
        let lines = Lines { sustain: Duration::ZERO, critical: None, at_once: None, ..MEMORY };
        assert_eq!(walk(&lines, &known(&[0.9, 0.9, 0.6, 0.6])), "nhhn");
    }

    fn lines() -> impl Strategy<Value = Lines> {
        (0.05f64..0.9, 0.01f64..0.3, 0.0f64..0.3, prop::bool::ANY, 0u64..30).prop_map(|(low, band, above, critical, sustain)| {
            let critical = critical.then_some(low + band + above);
            let sustain = Duration::from_secs(sustain);
            Lines { low, high: low + band, critical, at_once: critical, sustain, critical_sustain: sustain }
        })
    }

    proptest! {
        #[test]
        fn wandering_in_the_band_changes_nothing(
            lines in lines(),
            high_before in prop::bool::ANY,
            looks in prop::collection::vec((1u64..5000, 0.0f64..1.0), 1..200),
        ) {
            let mut state = Hysteresis::new(at(0));
            if high_before {
                state.level = Level::High;
            }
            let before = state.level();
            let mut now = 0;
            for (gap, place) in looks {
                now += gap;
                // In [low, high): the top is open, a usage at the line is over it.
                let usage = lines.low + (lines.high - lines.low) * place * 0.999_999;
                prop_assert_eq!(state.step(Some(usage), &lines, at(now)), before);
            }
        }

        #[test]
        fn whatever_happened_a_recovered_resource_is_normal_again(
            lines in lines(),
            looks in prop::collection::vec((0u64..5000, any::<f64>()), 0..200),
            rest in 0.0f64..0.999,
        ) {
            let mut state = Hysteresis::new(at(0));
            let mut now = 0;
            for (gap, usage) in looks {
                now += gap;
                state.step(Some(usage), &lines, at(now));
            }
            // Three looks under low that span half of sustain: one to leave critical, two to see time pass.
            for _ in 0..3 {
                now += 1000 + lines.sustain.as_millis() as u64 / 2;
                state.step(Some(lines.low * rest), &lines, at(now));
            }
            prop_assert_eq!(state.level(), Level::Normal);
        }

        #[test]
        fn a_first_look_fires_only_at_once(lines in lines(), usage in 0.0f64..2.0) {
            let mut state = Hysteresis::new(at(0));
            let level = state.step(Some(usage), &lines, at(60_000));
            prop_assert_eq!(level == Level::Critical, lines.at_once.is_some_and(|line| usage >= line));
            prop_assert_ne!(level, Level::High);
        }

        #[test]
        fn high_means_that_sustain_was_seen(lines in lines(), looks in prop::collection::vec((1u64..3000, 0.0f64..1.2), 1..100)) {
            let lines = Lines { critical: None, at_once: None, ..lines };
            let mut state = Hysteresis::new(at(0));
            let mut now = 0;
            for (gap, usage) in looks {
                now += gap;
                let before = state.level();
                let level = state.step(Some(usage), &lines, at(now));
                if before == Level::Normal && level == Level::High {
                    prop_assert!(state.over_for() >= lines.sustain);
                }
            }
        }
    }
}
