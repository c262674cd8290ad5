//! What was seen over the last moments: a mean over time, and a slope. Both are bounded in memory whatever the tick.

use std::collections::VecDeque;
use std::time::Duration;

use crate::host::clock::Moment;

/// A mean weighted by time over at least `span`: each value stands for the gap that ended when it was read.
///
/// Short ticks make a rate noisy (the kernel counts CPU time in ticks of its own), so a single one is never judged alone;
/// a gap longer than `span` is a mean already and is taken as it is.
#[derive(Clone, Debug)]
pub struct Mean {
    span: Duration,
    /// (gap in seconds, value), oldest first.
    parts: VecDeque<(f64, f64)>,
}

/// Parts kept in one mean; ticks that are shorter still are folded into the newest part.
const PARTS: u32 = 64;

impl Mean {
    pub fn new(span: Duration) -> Self {
        Mean { span, parts: VecDeque::new() }
    }

    /// Takes `value`, which held for the `gap` before now. What is not a number is left out.
    pub fn feed(&mut self, gap: Duration, value: f64) {
        let gap = gap.as_secs_f64();
        if !value.is_finite() || gap <= 0.0 {
            return;
        }
        let grain = self.span.as_secs_f64() / f64::from(PARTS);
        match self.parts.back_mut() {
            Some((held, mean)) if *held < grain => {
                *mean = (*mean * *held + value * gap) / (*held + gap);
                *held += gap;
            }
            _ => self.parts.push_back((gap, value)),
        }
        let mut covered = self.covered();
        while let Some((oldest, _)) = self.parts.front() {
            if covered - oldest < self.span.as_secs_f64() - f64::EPSILON {
                break;
            }
            covered -= oldest;
            self.parts.pop_front();
        }
    }

    /// The mean, once the window covers `span`. A thousandth less is enough: gaps come from a clock.
    pub fn value(&self) -> Option<f64> {
        (self.covered() >= self.span.as_secs_f64() * 0.999).then(|| self.so_far()).flatten()
    }

    /// The mean of what there is, however short.
    pub fn so_far(&self) -> Option<f64> {
        let covered = self.covered();
        let sum: f64 = self.parts.iter().map(|(gap, value)| gap * value).sum();
        (covered > 0.0).then(|| sum / covered)
    }

    fn covered(&self) -> f64 {
        self.parts.iter().map(|(gap, _)| gap).sum()
    }
}

/// The slope of a value over the last `span`, by least squares: one odd reading among many moves it little, and a
/// saw-tooth with a period shorter than the span is nearly flat.
#[derive(Clone, Debug)]
pub struct Slope {
    span: Duration,
    /// (steady time, value), oldest first.
    points: VecDeque<(Duration, f64)>,
    /// Points whose value is not that of the one before: without any it is flat, which of a thousand workers most are.
    steps: usize,
}

/// Points kept in one slope. Ticks closer than a part of the span move the newest point instead of adding one.
const POINTS: u32 = 32;

impl Slope {
    pub fn new(span: Duration) -> Self {
        Slope { span, points: VecDeque::new(), steps: 0 }
    }

    /// Takes the value read `now`. What is not a number is left out.
    pub fn feed(&mut self, now: Moment, value: f64) {
        self.expire(now);
        if !value.is_finite() {
            return;
        }
        let newest = self.points.len().checked_sub(1);
        // The newest point may move only while the one before it is near: otherwise it would move on for ever.
        let crowded = newest
            .and_then(|at| at.checked_sub(1))
            .and_then(|before| self.points.get(before))
            .is_some_and(|(before, _)| now.steady.saturating_sub(*before) < self.span / POINTS);
        if crowded && let Some((_, popped)) = self.points.pop_back() {
            self.steps -= usize::from(self.points.back().is_some_and(|(_, before)| *before != popped));
        }
        self.steps += usize::from(self.points.back().is_some_and(|(_, before)| *before != value));
        self.points.push_back((now.steady, value));
    }

    /// Forgets what is older than the span; called on every tick, also on those without a reading.
    pub fn expire(&mut self, now: Moment) {
        while let Some((_, expired)) = self.points.pop_front_if(|(at, _)| now.steady.saturating_sub(*at) > self.span) {
            self.steps -= usize::from(self.points.front().is_some_and(|(_, next)| *next != expired));
        }
    }

    /// Per second; 0 while there are not two points at least a quarter of a second apart.
    pub fn per_second(&self) -> f64 {
        if self.steps == 0 {
            return 0.0;
        }
        let (Some((first, _)), Some((last, _))) = (self.points.front(), self.points.back()) else { return 0.0 };
        if last.saturating_sub(*first) < Duration::from_millis(250) {
            return 0.0;
        }
        let count = self.points.len() as f64;
        // Times from the first point: seconds since boot squared would eat the precision of the sums.
        let seconds = |at: &Duration| at.saturating_sub(*first).as_secs_f64();
        let mean_time = self.points.iter().map(|(at, _)| seconds(at)).sum::<f64>() / count;
        let mean_value = self.points.iter().map(|(_, value)| value / count).sum::<f64>();
        let (mut covariance, mut variance) = (0.0, 0.0);
        for (at, value) in &self.points {
            let away = seconds(at) - mean_time;
            covariance += away * (value - mean_value);
            variance += away * away;
        }
        let slope = covariance / variance;
        if slope.is_finite() { slope } else { 0.0 }
    }
}

/// How fast something fills up when it does: a mean over seconds would learn of a sudden fill when it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fill {
    last: Option<(Duration, f64)>,
    rate: f64,
    lately: f64,
    fastest: f64,
}

impl Fill {
    /// Over less than this a rate is noise: the kernel charges memory by the batch.
    const SHORTEST: Duration = Duration::from_millis(4);
    /// Half of what was seen lately is forgotten after this long …
    const LATELY: Duration = Duration::from_secs(1);
    /// … and of the fastest that was ever seen after this.
    const EVER: Duration = Duration::from_secs(600);

    /// Takes the value read `now`. What is not a number is left out.
    pub fn feed(&mut self, now: Moment, value: f64) {
        if !value.is_finite() {
            return;
        }
        let Some((then, before)) = self.last else {
            self.last = Some((now.steady, value));
            return;
        };
        let gap = now.steady.saturating_sub(then);
        if gap < Self::SHORTEST {
            return;
        }
        self.last = Some((now.steady, value));
        let rate = (value - before) / gap.as_secs_f64();
        self.rate = rate;
        let left_after = |half: Duration| 0.5_f64.powf(gap.as_secs_f64() / half.as_secs_f64());
        self.lately = (self.lately * left_after(Self::LATELY)).max(rate);
        self.fastest = (self.fastest * left_after(Self::EVER)).max(rate);
    }

    /// From the look before to this one, per second; negative while it empties.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The fastest growth of the last seconds, per second; never negative.
    pub fn lately(&self) -> f64 {
        self.lately
    }

    /// The fastest growth ever seen, forgotten over an hour or so.
    pub fn fastest(&self) -> f64 {
        self.fastest
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

    #[test]
    fn a_mean_waits_until_its_span_is_covered() {
        let mut mean = Mean::new(Duration::from_secs(1));
        for _ in 0..9 {
            mean.feed(Duration::from_millis(100), 1.0);
        }
        assert_eq!(mean.value(), None);
        assert_eq!(mean.so_far().map(|value| (value * 1e9).round()), Some(1e9));
        mean.feed(Duration::from_millis(100), 1.0);
        assert!((mean.value().unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_mean_forgets_what_is_older_than_its_span() {
        let mut mean = Mean::new(Duration::from_secs(1));
        for _ in 0..50 {
            mean.feed(Duration::from_millis(100), 2.0);
        }
        for _ in 0..12 {
            mean.feed(Duration::from_millis(100), 0.5);
        }
        assert!((mean.value().unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_long_gap_is_a_window_of_its_own() {
        let mut mean = Mean::new(Duration::from_secs(1));
        mean.feed(Duration::from_secs(2), 0.25);
        mean.feed(Duration::from_secs(2), 0.75);
        assert_eq!(mean.value(), Some(0.75));
    }

    #[test]
    fn a_steady_leak_has_its_own_rate() {
        let mut slope = Slope::new(Duration::from_secs(10));
        for tick in 0..100 {
            slope.feed(at(tick * 500), 1e6 * tick as f64 / 2.0);
        }
        assert!((slope.per_second() - 1e6).abs() < 1.0, "{}", slope.per_second());
    }

    #[test]
    fn the_newest_value_counts_even_when_ticks_crowd() {
        let mut slope = Slope::new(Duration::from_secs(10));
        for tick in 0..2000 {
            slope.feed(at(tick * 10), tick as f64);
        }
        assert!(slope.points.len() <= POINTS as usize + 2, "{}", slope.points.len());
        assert!((slope.per_second() - 100.0).abs() < 1.0, "{}", slope.per_second());
        assert_eq!(slope.points.back(), Some(&(Duration::from_millis(19_990), 1999.0)));
    }

    #[test]
    fn a_slope_expires_without_readings() {
        let mut slope = Slope::new(Duration::from_secs(10));
        slope.feed(at(0), 0.0);
        slope.feed(at(1000), 100.0);
        assert!(slope.per_second() > 99.0);
        slope.expire(at(30_000));
        assert_eq!(slope.per_second(), 0.0);
    }

    proptest! {
        #[test]
        fn a_mean_lies_between_its_values(parts in prop::collection::vec((1u64..3000, 0.0f64..64.0), 1..200)) {
            let mut mean = Mean::new(Duration::from_secs(1));
            for (gap, value) in &parts {
                mean.feed(Duration::from_millis(*gap), *value);
            }
            let least = parts.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
            let most = parts.iter().map(|(_, value)| *value).fold(0.0, f64::max);
            let got = mean.so_far().unwrap();
            prop_assert!(got >= least - 1e-9 && got <= most + 1e-9);
            prop_assert!(mean.parts.len() <= PARTS as usize + 2);
        }

        #[test]
        fn a_slope_is_called_flat_only_when_it_is(values in prop::collection::vec((0u64..2000, 0u8..3), 0..200)) {
            let mut slope = Slope::new(Duration::from_secs(10));
            let mut now = 0;
            for (gap, value) in values {
                now += gap;
                slope.feed(at(now), f64::from(value));
                let differ = slope.points.iter().zip(slope.points.iter().skip(1)).filter(|((_, one), (_, other))| one != other);
                prop_assert_eq!(slope.steps, differ.count());
            }
        }

        #[test]
        fn nothing_makes_a_window_yield_what_is_not_a_number(values in prop::collection::vec((0u64..5000, any::<f64>()), 0..100)) {
            let (mut mean, mut slope) = (Mean::new(Duration::from_secs(1)), Slope::new(Duration::from_secs(10)));
            let mut now = 0;
            for (gap, value) in values {
                now += gap;
                mean.feed(Duration::from_millis(gap), value.clamp(-1e18, 1e18));
                slope.feed(at(now), value);
                prop_assert!(mean.so_far().is_none_or(f64::is_finite));
                prop_assert!(slope.per_second().is_finite());
            }
        }
    }

    #[test]
    fn a_fill_is_learned_in_one_look_and_forgotten_slowly() {
        let mut fill = Fill::default();
        fill.feed(at(0), 100.0);
        fill.feed(at(2), 1e9);
        assert_eq!(fill.lately(), 0.0, "two milliseconds say nothing");
        fill.feed(at(10), 102.0);
        assert!((fill.lately() - 200.0).abs() < 1e-9 && fill.fastest() == fill.lately());
        fill.feed(at(1_010), 50.0);
        assert!((fill.lately() - 100.0).abs() < 1e-9 && fill.fastest() > 199.0);
        fill.feed(at(60_000), f64::NAN);
        fill.feed(at(60_010), 50.0);
        assert!(fill.lately() < 1e-9 && fill.fastest() > 180.0);
    }
}
