//! When to look next: owns the gaps between looks, and touches only its arguments, time among them. It never reads, and
//! knows nothing of what follows from a look.
//!
//! 80 % of a 512 MB box leaves one second at 100 MB/s, so the gap follows the fill rate. There are two kinds of looks. A
//! **tick** looks at everything, at most [`Settings::interval`](crate::config::settings::Sampling) apart. Between ticks a
//! **glance** looks at the memory that could reach its next line before the tick, and at nothing else; when it finds the
//! line crossed, the tick follows at once.
//!
//! A glance falls before the line can be reached: at the fastest rate that was ever seen, and never less than
//! [`ASSUMED`], since whoever fills a machine for the first time has not been seen before. What really fills is looked at
//! every [`SHORTEST`] if need be; what rests close under its line only as often as [`QUIET_SHARE`] of a processor pays for.

use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::window::Fill;
use crate::policy::{Level, Resource, Verdict};

/// No two looks are closer: below it the looks themselves become the load.
pub const SHORTEST: Duration = Duration::from_millis(5);
/// Between ticks while something is over its line or held back.
const ENGAGED: Duration = Duration::from_millis(250);
/// Bytes per second that memory is taken to be able to fill at.
const ASSUMED: f64 = 200e6;
/// Of one processor, for glances at what does not fill.
const QUIET_SHARE: f64 = 0.005;
/// What would reach its line within this long, at the rate of the last seconds, fills.
const FILLING: f64 = 2.0;
/// Before anything was measured, a glance is taken to cost this.
const COST: Duration = Duration::from_micros(100);

/// What could be glanced at, and when each is due.
#[derive(Debug)]
pub struct Pace {
    outlooks: Vec<Outlook>,
    /// One glance at one thing: a decaying mean.
    cost: Duration,
    /// How many rest near enough to a line to be glanced at.
    quiet: usize,
}

/// One thing that fills, between two looks.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    pub resource: Resource,
    /// The line above it, in bytes.
    pub line: f64,
    pub used: f64,
    pub fill: Fill,
    /// The next look at it.
    pub due: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { outlooks: Vec::new(), cost: COST, quiet: 0 }
    }
}

impl Pace {
    /// Takes over what a tick has found. `glanceable`: whether one figure can be had without a tick.
    pub fn after_tick(&mut self, verdicts: &[Verdict], glanceable: impl Fn(&Verdict) -> bool, interval: Duration, now: Moment) {
        self.outlooks.clear();
        let due = now.steady;
        self.outlooks.extend(verdicts.iter().filter(|verdict| glanceable(verdict)).filter_map(|verdict| {
            let (line, used) = (next_line(verdict)?, verdict.used?);
            Some(Outlook { resource: verdict.resource.clone(), line, used, fill: verdict.fill, due })
        }));
        let near = |outlook: &&Outlook| !outlook.is_filling() && outlook.seconds_left() < interval.as_secs_f64();
        self.quiet = self.outlooks.iter().filter(near).count();
        let quiet = self.quiet_gap();
        for outlook in &mut self.outlooks {
            outlook.due = now.steady.saturating_add(gap(outlook, quiet));
        }
        // What the next tick sees in time anyway needs no glance.
        let tick = now.steady.saturating_add(interval);
        self.outlooks.retain(|outlook| outlook.due < tick);
    }

    /// The next thing to be glanced at now, by its place, from `from` on. What is due a little later is taken along: one
    /// wake-up for all.
    pub fn due(&self, from: usize, now: Moment) -> Option<(usize, &Resource)> {
        let by = now.steady + SHORTEST / 2;
        let mut waiting = self.outlooks.iter().enumerate().skip(from);
        waiting.find(|(_, outlook)| outlook.due <= by).map(|(at, outlook)| (at, &outlook.resource))
    }

    /// Takes over what a glance has found. True when a line was crossed, or nothing can be told any more: time for a tick.
    pub fn after_glance(&mut self, at: usize, used: Option<f64>, fill: Option<Fill>, now: Moment) -> bool {
        let quiet = self.quiet_gap();
        let Some(outlook) = self.outlooks.get_mut(at) else { return true };
        let (Some(used), Some(fill)) = (used, fill) else { return true };
        outlook.used = used;
        outlook.fill = fill;
        outlook.due = now.steady.saturating_add(gap(outlook, quiet));
        used >= outlook.line
    }

    /// Learns what glances cost.
    pub fn note_cost(&mut self, took: Duration, looks: usize) {
        let each = took / u32::try_from(looks.max(1)).unwrap_or(u32::MAX);
        // One that was interrupted says nothing of the next.
        self.cost = (self.cost * 7 + each.min(self.cost * 4)) / 8;
    }

    /// When the next glance is due; `None` when the tick comes first anyway.
    pub fn next_glance(&self) -> Option<Duration> {
        self.outlooks.iter().map(|outlook| outlook.due).min()
    }

    fn quiet_gap(&self) -> Duration {
        quiet_gap(self.cost, self.quiet)
    }
}

/// The gap between glances at things that rest: all of them together may cost no more than their share.
fn quiet_gap(cost: Duration, things: usize) -> Duration {
    let things = u32::try_from(things).unwrap_or(u32::MAX);
    Duration::try_from_secs_f64(cost.saturating_mul(things).as_secs_f64() / QUIET_SHARE).unwrap_or(Duration::MAX)
}

impl Outlook {
    /// Until the line, at the fastest it may fill.
    fn seconds_left(&self) -> f64 {
        (self.line - self.used).max(0.0) / self.fill.fastest().max(ASSUMED)
    }

    fn is_filling(&self) -> bool {
        self.fill.lately() * FILLING > self.line - self.used
    }
}

/// The gap to the next glance at one thing.
fn gap(outlook: &Outlook, quiet: Duration) -> Duration {
    let least = if outlook.is_filling() { SHORTEST } else { quiet.max(SHORTEST) };
    Duration::try_from_secs_f64(outlook.seconds_left()).unwrap_or(Duration::MAX).max(least)
}

/// The gap to the next tick, from the beginning of this one: it does not wait for a level that is about to follow.
pub fn tick_gap(verdicts: &[Verdict], holding: bool, interval: Duration) -> Duration {
    let engaged = holding || verdicts.iter().any(|verdict| verdict.over || verdict.level != Level::Normal || may_be_early(verdict));
    let most = if engaged { ENGAGED.min(interval) } else { interval };
    verdicts.iter().filter_map(until_level).fold(most, Duration::min).max(SHORTEST.min(most))
}

/// Under its line, at `low` or over, and filling so fast that it could be foretold to be full before `sustain` is over: the
/// forecast needs looks to see that.
fn may_be_early(verdict: &Verdict) -> bool {
    let (Some(used), Some(limit)) = (verdict.used, verdict.limit) else { return false };
    let fills = verdict.resource != Resource::Cpu && used >= verdict.low * limit;
    fills && verdict.fill.lately() * verdict.patience.as_secs_f64() > limit - used
}

/// How long until the level follows the usage, where it will if the usage stays.
fn until_level(verdict: &Verdict) -> Option<Duration> {
    (verdict.over && verdict.level == Level::Normal).then(|| verdict.patience.saturating_sub(verdict.over_for))
}

/// The next line above its usage, in bytes, of what is memory. Disks and CPU have time.
fn next_line(verdict: &Verdict) -> Option<f64> {
    match verdict.resource {
        Resource::Memory | Resource::Worker(_) => {}
        Resource::Cpu | Resource::Disk(_) => return None,
    }
    let (used, limit) = (verdict.used?, verdict.limit?);
    [Some(verdict.high), verdict.critical].into_iter().flatten().map(|line| line * limit).find(|line| *line > used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::verdict::Basis;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const INTERVAL: Duration = Duration::from_secs(2);
    const LIMIT: f64 = 512e6;

    fn at(steady: Duration) -> Moment {
        Moment { steady, wall: SystemTime::UNIX_EPOCH }
    }

    fn memory(used: f64, fill: Fill) -> Verdict {
        let over = used >= 0.8 * LIMIT;
        Verdict {
            resource: Resource::Memory,
            level: Level::Normal,
            since: at(Duration::ZERO),
            basis: Basis::Scope,
            used: Some(used),
            limit: Some(LIMIT),
            utilization: Some(used / LIMIT),
            high: 0.8,
            low: 0.7,
            critical: Some(0.92),
            over,
            over_for: Duration::ZERO,
            growth: 0.0,
            fill,
            patience: Duration::from_secs(4),
            exhaustion: None,
            early: false,
            measure: None,
            evidence: None,
            unknown: None,
        }
    }

    /// Looks at `usage(t)` as the loop would until `until`: the moments of all looks and what was seen.
    fn watch(usage: impl Fn(f64) -> f64, cost: Duration, until: Duration) -> Vec<(Duration, f64)> {
        let mut pace = Pace { cost, ..Pace::default() };
        let (mut looks, mut fill, mut now, mut tick) = (Vec::new(), Fill::default(), Duration::ZERO, Duration::ZERO);
        while now <= until {
            let used = usage(now.as_secs_f64());
            looks.push((now, used));
            fill.feed(at(now), used);
            let mut is_tick = now >= tick;
            if !is_tick {
                while let Some((each, _)) = pace.due(0, at(now)) {
                    is_tick |= pace.after_glance(each, Some(used), Some(fill), at(now));
                }
            }
            if is_tick {
                let verdicts = [memory(used, fill)];
                tick = now + tick_gap(&verdicts, false, INTERVAL);
                pace.after_tick(&verdicts, |_| true, tick - now, at(now));
            }
            now = pace.next_glance().unwrap_or(tick).min(tick);
        }
        looks
    }

    #[test]
    fn ticks_follow_what_is_over() {
        let rest = memory(100e6, Fill::default());
        assert_eq!(tick_gap(&[], false, INTERVAL), INTERVAL);
        assert_eq!(tick_gap(std::slice::from_ref(&rest), false, INTERVAL), INTERVAL);
        assert_eq!(tick_gap(std::slice::from_ref(&rest), true, INTERVAL), ENGAGED);
        let mut over = memory(410e6, Fill::default());
        assert_eq!(tick_gap(std::slice::from_ref(&over), false, INTERVAL), ENGAGED);
        // The level follows in 30 ms: not seen 220 ms late.
        over.patience = Duration::from_millis(40);
        over.over_for = Duration::from_millis(10);
        assert_eq!(tick_gap(std::slice::from_ref(&over), false, INTERVAL), Duration::from_millis(30));
        over.over_for = over.patience;
        assert_eq!(tick_gap(std::slice::from_ref(&over), false, INTERVAL), SHORTEST);
    }

    #[test]
    fn a_thing_that_has_no_figure_asks_for_a_tick() {
        let mut pace = Pace::default();
        pace.after_tick(&[memory(400e6, Fill::default())], |_| true, INTERVAL, at(Duration::ZERO));
        assert_eq!(pace.due(0, at(INTERVAL)), Some((0, &Resource::Memory)));
        assert!(pace.after_glance(0, None, None, at(Duration::ZERO)) && pace.after_glance(7, Some(1.0), None, at(Duration::ZERO)));
        pace.after_tick(&[memory(400e6, Fill::default())], |_| false, INTERVAL, at(Duration::ZERO));
        assert_eq!(pace.next_glance(), None);
    }

    proptest! {
        /// A fill that begins at any moment, from any level: the line is seen to be crossed in time.
        #[test]
        fn a_crossing_is_seen_at_once(rate in 1e6..1e9_f64, from in 0.0..400e6_f64, begins in 0.0..4.0_f64) {
            let usage = |t: f64| (from + rate * (t - begins).max(0.0)).min(LIMIT);
            let cost = Duration::from_micros(60);
            let line = 0.8 * LIMIT;
            let crossed = begins + (line - from) / rate;
            let looks = watch(usage, cost, Duration::from_secs_f64(crossed + 3.0));
            let seen = looks.iter().find(|(_, used)| *used >= line).map(|(when, _)| when.as_secs_f64());
            let late = seen.unwrap_or(f64::INFINITY) - crossed;
            // One that fills faster than was assumed may be faster than we are, once.
            let quiet = quiet_gap(cost, 1).as_secs_f64();
            let allowed = if rate <= ASSUMED { quiet.max(0.0051) } else { 2.0 };
            prop_assert!(late <= allowed, "{late} s late, {} looks", looks.len());
        }

        /// A quiet box costs its share and no more, however close it is to its line.
        #[test]
        fn rest_is_cheap(used in 0.0..409e6_f64, cost in 10u64..5000) {
            let cost = Duration::from_micros(cost);
            let looks = watch(|_| used, cost, Duration::from_secs(60)).len();
            let most = 60.0 / INTERVAL.as_secs_f64() + 60.0 * QUIET_SHARE / cost.as_secs_f64() + 2.0;
            prop_assert!(looks as f64 <= most, "{looks} looks");
        }

        /// The less room, the sooner; never sooner than the shortest gap.
        #[test]
        fn the_gap_shrinks_with_the_room(used in 0.0..400e6_f64, more in 0.0..10e6_f64, quiet in 0u64..100) {
            let outlook = |used| Outlook { resource: Resource::Memory, line: 410e6, used, fill: Fill::default(), due: Duration::ZERO };
            let quiet = Duration::from_millis(quiet);
            let (far, near) = (gap(&outlook(used), quiet), gap(&outlook(used + more), quiet));
            prop_assert!(SHORTEST <= near && near <= far);
        }

        /// However many rest near a line, glancing at all of them stays within the share.
        #[test]
        fn many_things_share_what_is_allowed(things in 1usize..2000, cost in 5u64..100) {
            let cost = Duration::from_micros(cost);
            let gap = quiet_gap(cost, things).as_secs_f64();
            prop_assert!(cost.as_secs_f64() * things as f64 / gap <= QUIET_SHARE * 1.001);
        }
    }
}
