//! How long until something that fills is full: owns the rule for it, and may touch only its arguments, time among them.
//! It must not judge: a forecast raises no alarm and ends nobody. It cuts a wait short, and it is told to people.
//!
//! **What is followed.** The lower envelope: the smallest value in each bucket of time, eight buckets to a scale, six scales
//! from a quarter of a second to four minutes a bucket. The slope of a scale is the median of the slopes between all pairs
//! of its points (Theil and Sen's estimator: up to 29 % of the points may be wild), and it must hold in the later half of the
//! scale too, and not have died away in the next shorter scale: a step upwards is a slope in the whole and none lately.
//! Growth that would not come to a hundredth of the limit over the scale is no growth.
//!
//! **What is not believed.** A garbage collector lets usage climb as a leak does, and takes it back. Usage that has fallen by
//! itself from a height is expected to fall from there again, so within the *teeth* seen in the last half hour to hour, and a
//! quarter of their height above them, a climb foretells nothing. Scales whose buckets are longer than a tooth see only the
//! troughs; what those do is believed always: a leak below a saw-tooth raises them. That the first tooth looks like a leak
//! cannot be helped: until the first fall it is one.
//!
//! ```text
//!    usage   ╱|  ╱|  ╱        a climb among known teeth            nothing
//!           ╱ | ╱ | ╱         a climb past them, or without any    (limit − usage) ÷ slope
//!    ______╱  |╱  |╱          troughs that rise                    (limit − crest) ÷ slope
//! ```
//!
//! Of several scales that foretell something the soonest counts. A fall that was brought about (a replica ended) is no tooth:
//! it says nothing of what would have happened without.

use std::time::Duration;

use crate::host::clock::Moment;

/// Points of one scale.
const BUCKETS: usize = 8;
const PAIRS: usize = BUCKETS * (BUCKETS - 1) / 2;
/// Seconds in one bucket of each scale.
const GRAINS: [f64; 6] = [0.25, 1.0, 4.0, 16.0, 64.0, 256.0];
/// Fewer points have no slope worth the name.
const LEAST_POINTS: usize = 4;
/// Growth over a whole scale, as a share of the limit.
const LEAST_GROWTH: f64 = 0.01;
/// Three quarters of the slopes in the later half, and the next shorter scale, must show at least this part of a slope.
const STILL: f64 = 0.2;
/// A fall by this share of the limit ends a tooth.
const FALL: f64 = 0.02;
/// Usage must be so much of a tooth above the highest one to be believed.
const ABOVE: f64 = 0.25;
/// … but of what is left above it at most this part, so that something is left to be foretold.
const OF_THE_REST: f64 = 0.5;
/// Teeth are remembered for one to two of these.
const MEMORY: Duration = Duration::from_secs(30 * 60);
/// A fall this long before a replica was found ended was its end.
const RELIEF: Duration = Duration::from_secs(10);
/// What would take longer is not filling.
const HORIZON: f64 = 3.0 * 86_400.0;

/// One resource's past, in a fixed amount of memory.
#[derive(Clone, Debug)]
pub struct Forecast {
    scales: [Scale; GRAINS.len()],
    teeth: Teeth,
    /// The last value, and when it was read.
    last: Option<(f64, f64)>,
}

impl Default for Forecast {
    fn default() -> Self {
        Forecast { scales: GRAINS.map(Scale::new), teeth: Teeth::default(), last: None }
    }
}

impl Forecast {
    /// Takes the usage read `now`, in the unit of `limit`. What could not be read is left out; what is not a number too.
    pub fn feed(&mut self, now: Moment, used: f64, limit: f64) {
        if !used.is_finite() || !limit.is_finite() || limit <= 0.0 {
            return;
        }
        let at = now.steady.as_secs_f64();
        if self.last.is_some_and(|(before, _)| at < before) {
            *self = Forecast::default();
        }
        for scale in &mut self.scales {
            scale.feed(at, used);
        }
        self.teeth.feed(at, used, FALL * limit);
        self.last = Some((at, used));
    }

    /// Something ended that took its usage along: the fall that came with it is no tooth.
    pub fn relieved(&mut self, now: Moment) {
        self.teeth.relieved(now.steady.as_secs_f64());
    }

    /// How long until `limit` is reached; `None` when it is not being filled, as far as can be told.
    pub fn exhaustion(&self, now: Moment, limit: f64) -> Option<Duration> {
        let at = now.steady.as_secs_f64();
        let (_, used) = self.last?;
        if limit <= 0.0 || !limit.is_finite() {
            return None;
        }
        let known = self.teeth.known(at);
        let is_new_ground = known.is_none_or(|teeth| used > teeth.believed_above(limit));
        let mut soonest = f64::INFINITY;
        let mut shorter: Option<&Scale> = None;
        for scale in &self.scales {
            let lately = || shorter.and_then(|shorter| shorter.rise(at, self.teeth.fell_at));
            let least = LEAST_GROWTH * limit / scale.span();
            if is_new_ground
                && let Some(slope) = scale.slope(at, self.teeth.fell_at, true).filter(|slope| *slope >= least)
                && lately().is_none_or(|lately| lately >= STILL * slope)
            {
                soonest = soonest.min((limit - used).max(0.0) / slope);
            }
            if let Some(teeth) = known.filter(|teeth| scale.grain >= teeth.period)
                && let Some(slope) = scale.slope(at, f64::NEG_INFINITY, false).filter(|slope| *slope >= least)
            {
                soonest = soonest.min((limit - used.max(teeth.crest)).max(0.0) / slope);
            }
            shorter = Some(scale);
        }
        (soonest <= HORIZON).then(|| Duration::from_secs_f64(soonest))
    }
}

/// The smallest value of each of the last buckets.
#[derive(Clone, Debug)]
struct Scale {
    grain: f64,
    /// (bucket, when, smallest), oldest first.
    points: [(f64, f64, f64); BUCKETS],
    filled: usize,
}

impl Scale {
    fn new(grain: f64) -> Self {
        Scale { grain, points: [(0.0, 0.0, 0.0); BUCKETS], filled: 0 }
    }

    fn span(&self) -> f64 {
        self.grain * BUCKETS as f64
    }

    fn feed(&mut self, at: f64, used: f64) {
        let bucket = (at / self.grain).floor();
        match self.points.get_mut(..self.filled).and_then(<[_]>::last_mut) {
            Some(newest) if newest.0 == bucket => {
                if used < newest.2 {
                    *newest = (bucket, at, used);
                }
                return;
            }
            _ => {}
        }
        if self.filled == BUCKETS {
            self.points.rotate_left(1);
            self.filled -= 1;
        }
        if let Some(free) = self.points.get_mut(self.filled) {
            *free = (bucket, at, used);
            self.filled += 1;
        }
    }

    /// The points that are not older than the scale and not before `since`, where they are enough to tell something.
    /// `open`: with the bucket that is not over yet.
    fn recent(&self, now: f64, since: f64, open: bool) -> Option<&[(f64, f64, f64)]> {
        let current = (now / self.grain).floor();
        let from = since.max(now - self.span() - self.grain);
        let all = self.points.get(..self.filled)?;
        let first = all.iter().position(|(_, at, _)| *at >= from)?;
        let last = all.iter().rposition(|(bucket, ..)| open || *bucket < current)?;
        let points = all.get(first..=last).filter(|points| points.len() >= LEAST_POINTS)?;
        let ((_, begin, _), (_, end, _)) = (points.first()?, points.last()?);
        (end - begin >= self.span() / 2.0).then_some(points)
    }

    /// Per second, from the first point to the last.
    fn rise(&self, now: f64, since: f64) -> Option<f64> {
        let points = self.recent(now, since, true)?;
        let ((_, begin, low), (_, end, high)) = (points.first()?, points.last()?);
        Some((high - low) / (end - begin))
    }

    /// Per second: the smaller of the slope of all and of the later half.
    fn slope(&self, now: f64, since: f64, open: bool) -> Option<f64> {
        // Most things rest most of the time: nothing is looked for and nothing sorted for them.
        let ((.., newest), before) = self.points.get(..self.filled)?.split_last()?;
        if before.iter().all(|(.., earlier)| newest <= earlier) {
            return None;
        }
        let points = self.recent(now, since, open)?;
        let ((_, begin, low), (_, end, high)) = (points.first()?, points.last()?);
        if high <= low {
            return None;
        }
        let half = end - (end - begin) / 2.0;
        let later = points.iter().position(|(_, at, _)| *at >= half - f64::EPSILON)?;
        let (whole, _) = slopes(points)?;
        let (lately, least) = slopes(points.get(later..)?)?;
        let slope = whole.min(lately);
        (slope > 0.0 && least >= STILL * slope).then_some(slope)
    }
}

/// The median of the slopes between all pairs, and the one a quarter of them are under.
fn slopes(points: &[(f64, f64, f64)]) -> Option<(f64, f64)> {
    let mut slopes = [0.0; PAIRS];
    let mut count = 0;
    for (index, (_, from, low)) in points.iter().enumerate() {
        for (_, to, high) in points.iter().skip(index + 1) {
            if to > from
                && let Some(slope) = slopes.get_mut(count)
            {
                *slope = (high - low) / (to - from);
                count += 1;
            }
        }
    }
    let slopes = slopes.get_mut(..count)?;
    slopes.sort_unstable_by(f64::total_cmp);
    // Of two in the middle the smaller one.
    let (median, quarter) = (*slopes.get(count.checked_sub(1)? / 2)?, *slopes.get(count / 4)?);
    (median.is_finite() && quarter.is_finite()).then_some((median, quarter))
}

/// What usage has fallen from by itself.
#[derive(Clone, Copy, Debug)]
struct Teeth {
    course: Course,
    /// When the last fall was at its lowest; far in the past before the first.
    fell_at: f64,
    record: Record,
    /// The record without the last tooth, should that turn out to be none.
    before: Record,
}

#[derive(Clone, Copy, Debug)]
enum Course {
    Unknown,
    /// The highest since the last fall.
    Rising {
        top: f64,
    },
    /// Where it fell from, when, and the lowest since.
    Falling {
        from: f64,
        began: f64,
        lowest: f64,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Of the present half hour and of the one before.
    slots: [Slot; 2],
    slot_began: f64,
    last_end: Option<f64>,
    /// Between the ends of teeth: a mean that forgets, and a first long pause with it.
    period: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    crest: f64,
    height: f64,
}

/// The teeth that are remembered, together.
#[derive(Clone, Copy, Debug)]
struct Known {
    crest: f64,
    height: f64,
    /// Infinite while there was only one.
    period: f64,
}

impl Known {
    fn believed_above(&self, limit: f64) -> f64 {
        self.crest + (ABOVE * self.height).min(OF_THE_REST * (limit - self.crest)).max(0.0)
    }
}

impl Default for Teeth {
    fn default() -> Self {
        let record = Record::default();
        Teeth { course: Course::Unknown, fell_at: f64::NEG_INFINITY, record, before: record }
    }
}

impl Teeth {
    fn feed(&mut self, at: f64, used: f64, fall: f64) {
        self.record.age(at);
        match &mut self.course {
            Course::Unknown => self.course = Course::Rising { top: used },
            Course::Rising { top } if used > *top => *top = used,
            Course::Rising { top } if *top - used >= fall => {
                let from = *top;
                self.before = self.record;
                self.record.end_tooth(at);
                self.record.enter(from, from - used);
                self.course = Course::Falling { from, began: at, lowest: used };
                self.fell_at = at;
            }
            Course::Rising { .. } => {}
            Course::Falling { from, lowest, .. } if used <= *lowest => {
                *lowest = used;
                self.fell_at = at;
                self.record.enter(*from, *from - used);
            }
            Course::Falling { lowest, .. } if used - *lowest >= fall => self.course = Course::Rising { top: used },
            Course::Falling { .. } => {}
        }
    }

    fn relieved(&mut self, at: f64) {
        if let Course::Falling { began, lowest, .. } = self.course
            && at - began <= RELIEF.as_secs_f64()
        {
            self.record = self.before;
            self.course = Course::Rising { top: lowest };
        } else {
            // The fall is still to come: what is fallen from is where it begins anew.
            self.course = Course::Unknown;
        }
    }

    fn known(&self, at: f64) -> Option<Known> {
        let mut record = self.record;
        record.age(at);
        let slots = record.slots.iter().filter(|slot| slot.height > 0.0);
        let known = slots.fold(Slot::default(), |all, slot| Slot { crest: all.crest.max(slot.crest), height: all.height.max(slot.height) });
        (known.height > 0.0).then(|| Known { crest: known.crest, height: known.height, period: record.period.unwrap_or(f64::INFINITY) })
    }
}

impl Record {
    /// Lets go of what is older than the memory.
    fn age(&mut self, at: f64) {
        let memory = MEMORY.as_secs_f64();
        if at - self.slot_began >= 2.0 * memory {
            *self = Record { slot_began: at, ..Record::default() };
        } else if at - self.slot_began >= memory {
            self.slots.rotate_right(1);
            self.slots[0] = Slot::default();
            self.slot_began += memory;
        }
    }

    fn end_tooth(&mut self, at: f64) {
        if let Some(before) = self.last_end {
            let lasted = at - before;
            self.period = Some(self.period.map_or(lasted, |period| f64::midpoint(period, lasted)));
        }
        self.last_end = Some(at);
    }

    fn enter(&mut self, crest: f64, height: f64) {
        let [present, _] = &mut self.slots;
        present.crest = present.crest.max(crest);
        present.height = present.height.max(height);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::at;
    use proptest::prelude::*;

    const LIMIT: f64 = 512.0;

    /// Noise that is the same in every run: between -1 and 1.
    fn noise(step: u64) -> f64 {
        let mixed = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Looks every `tick` seconds at what `usage` gives (`None`: could not be read), from `begins` on; yields (when, used,
    /// seconds foretold).
    fn watch(forecast: &mut Forecast, span: (f64, f64), tick: f64, usage: impl Fn(f64) -> Option<f64>) -> Vec<(f64, f64, Option<f64>)> {
        let mut told = Vec::new();
        let steps = ((span.1 - span.0) / tick) as u64;
        for step in 0..=steps {
            let now = span.0 + step as f64 * tick;
            if let Some(used) = usage(now) {
                forecast.feed(at(now), used, LIMIT);
                told.push((now, used, forecast.exhaustion(at(now), LIMIT).map(|left| left.as_secs_f64())));
            }
        }
        told
    }

    /// What is foretold 60 s before the end of a leak that begins after ten quiet minutes at 150 MB.
    fn foretold(rate: f64, tick: f64, amplitude: f64) -> Option<f64> {
        let lasts = (LIMIT - 150.0) / rate;
        let told = watch(&mut Forecast::default(), (0.0, 600.0 + lasts), tick, |now| {
            let wobble = amplitude * noise((now * 1000.0) as u64);
            Some(150.0 + rate * (now - 600.0).max(0.0) + wobble)
        });
        told.iter().rev().find(|(now, ..)| *now <= 600.0 + lasts - 60.0).and_then(|(_, _, left)| *left)
    }

    #[test]
    fn a_leak_is_foretold_a_minute_ahead() {
        for rate in [0.1, 0.3, 1.0, 2.0, 4.0, 5.0, 5.2] {
            for tick in [0.25, 1.0, 2.0] {
                // Where there are but ten seconds to tell, it can be told of a quieter one only.
                for amplitude in if rate < 5.0 { [0.0, 1.0, 4.0] } else { [0.0, 0.5, 1.0] } {
                    let left = foretold(rate, tick, amplitude);
                    assert!(left.is_some_and(|left| (40.0..100.0).contains(&left)), "{rate} MB/s, {tick} s, ±{amplitude}: {left:?}");
                }
            }
        }
    }

    #[test]
    fn what_fills_faster_than_that_is_foretold_while_half_of_it_is_still_to_come() {
        for (rate, tick) in [(8.0, 2.0), (10.0, 1.0), (20.0, 0.5), (50.0, 0.25), (100.0, 0.1), (200.0, 0.05)] {
            let lasts = (LIMIT - 100.0) / rate;
            let usage = |now: f64| Some(100.0 + rate * (now - 60.0).max(0.0) + noise((now * 1000.0) as u64));
            let told = watch(&mut Forecast::default(), (0.0, 60.0 + lasts), tick, usage);
            let half = told.iter().find(|(now, ..)| *now >= 60.0 + lasts / 2.0).unwrap();
            let (left, real) = (half.2.unwrap_or(f64::INFINITY), 60.0 + lasts - half.0);
            assert!((0.6 * real..1.6 * real).contains(&left), "{rate} MB/s: {left} s foretold, {real} s real");
        }
    }

    #[test]
    fn ten_megabytes_a_second_are_foretold_a_minute_ahead_where_there_is_a_minute() {
        // A larger machine: 1 GB, from 250 MB: 75 s in all.
        let mut forecast = Forecast::default();
        let (mut now, mut announced) = (0.0, None);
        while now < 375.0 {
            forecast.feed(at(now), 250.0 + 10.0 * (now - 300.0f64).max(0.0), 1000.0);
            let left = forecast.exhaustion(at(now), 1000.0).map(|left| left.as_secs_f64());
            if announced.is_none() && left.is_some_and(|left| left < 120.0) {
                announced = Some((now, left));
            }
            now += 1.0;
        }
        let (when, left) = announced.expect("it is foretold");
        assert!(when <= 315.0, "foretold {} s ahead: {left:?}", 375.0 - when);
    }

    #[test]
    fn a_garbage_collector_foretells_nothing_in_half_an_hour() {
        for (low, high) in [(200.0, 400.0), (100.0, 470.0), (250.0, 290.0)] {
            for period in [1.0, 3.0, 7.0, 20.0, 60.0, 150.0, 400.0] {
                for tick in [0.4, 2.0] {
                    let usage = |now: f64| {
                        let tooth = (now / period).floor();
                        // No two teeth are quite alike.
                        let height = (high - low) * (0.95 + 0.05 * noise(tooth as u64));
                        Some(low + height * (now / period - tooth))
                    };
                    let mut forecast = Forecast::default();
                    // The first teeth are learned: until the first fall it might as well be a leak.
                    watch(&mut forecast, (0.0, 2.0 * period), tick, usage);
                    let told = watch(&mut forecast, (2.0 * period + tick, 1800.0 + 2.0 * period), tick, usage);
                    let soonest = told.iter().filter_map(|(_, _, left)| *left).fold(f64::INFINITY, f64::min);
                    assert!(soonest >= 600.0, "{low} to {high} in {period} s, looked at every {tick} s: {soonest} s foretold");
                }
            }
        }
    }

    #[test]
    fn a_leak_below_a_saw_tooth_is_seen_through_it() {
        for (period, rate) in [(3.0, 0.2), (10.0, 0.1), (20.0, 0.05), (60.0, 0.1)] {
            let usage = |now: f64| Some(120.0 + rate * now + 100.0 * (now / period).fract());
            let lasts = (LIMIT - 220.0) / rate;
            let told = watch(&mut Forecast::default(), (0.0, lasts), 0.5, usage);
            // Two thirds of the way.
            let late: Vec<f64> =
                told.iter().filter(|(now, ..)| *now >= lasts * 0.66 && *now < lasts * 0.68).filter_map(|(.., left)| *left).collect();
            let real = lasts * 0.33;
            let right = late.iter().filter(|left| (0.7 * real..1.4 * real).contains(left)).count();
            assert!(
                !late.is_empty() && right * 10 >= late.len() * 9,
                "{rate} MB/s below {period} s: {right} of {} right, real {real}: {:?}",
                late.len(),
                late.first()
            );
        }
    }

    #[test]
    fn a_step_is_forgotten_at_once() {
        for tick in [0.25, 1.0, 2.0] {
            let usage = |now: f64| Some(if now < 300.0 { 100.0 } else { 250.0 });
            let told = watch(&mut Forecast::default(), (0.0, 900.0), tick, usage);
            let foretold = told.iter().filter(|(.., left)| left.is_some_and(|left| left < 600.0)).count();
            assert_eq!(foretold, 0, "looked at every {tick} s");
            // A program that loads for five seconds: not believed for longer than twice that and a few looks.
            let usage = |now: f64| Some(100.0 + 30.0 * (now - 300.0).clamp(0.0, 5.0));
            let told = watch(&mut Forecast::default(), (0.0, 900.0), tick, usage);
            let last = told.iter().rev().find(|(.., left)| left.is_some_and(|left| left < 600.0)).map_or(0.0, |(now, ..)| *now);
            assert!(last <= 313.0, "looked at every {tick} s: still foretold at {last}");
        }
    }

    #[test]
    fn readings_that_are_missing_and_a_clock_that_leaps_foretell_nothing_wrong() {
        // Every other look is missing for a while, then all of them for a minute.
        let usage = |now: f64| (!(200.0..260.0).contains(&now) && (now as u64 / 3).is_multiple_of(2)).then_some(100.0 + now);
        let told = watch(&mut Forecast::default(), (0.0, 300.0), 1.0, usage);
        let (now, used, left) = *told.iter().rev().find(|(now, ..)| *now < 200.0).unwrap();
        assert!((left.unwrap() - (LIMIT - used)).abs() < 30.0, "at {now}: {left:?}");
        // After a night asleep what was seen before is too old to foretell anything.
        let mut forecast = Forecast::default();
        watch(&mut forecast, (0.0, 60.0), 1.0, |now| Some(100.0 + 4.0 * now));
        assert!(forecast.exhaustion(at(60.0), LIMIT).is_some());
        forecast.feed(at(30_000.0), 340.0, LIMIT);
        assert_eq!(forecast.exhaustion(at(30_000.0), LIMIT), None);
        // A clock that goes back begins anew.
        forecast.feed(at(10.0), 340.0, LIMIT);
        assert_eq!(forecast.exhaustion(at(10.0), LIMIT), None);
    }

    #[test]
    fn a_fall_that_was_brought_about_is_no_tooth() {
        let leak = |now: f64| Some(100.0 + 3.0 * (now % 100.0));
        let mut believed = Forecast::default();
        watch(&mut believed, (0.0, 100.0), 0.5, leak);
        let mut doubted = believed.clone();
        watch(&mut believed, (100.0, 101.0), 0.5, leak);
        believed.relieved(at(101.0));
        let told = watch(&mut believed, (101.5, 160.0), 0.5, leak);
        assert!(
            told.last().is_some_and(|(_, used, left)| left.is_some_and(|left| (left - (LIMIT - used) / 3.0).abs() < 10.0)),
            "{:?}",
            told.last()
        );
        let told = watch(&mut doubted, (100.0, 160.0), 0.5, leak);
        assert_eq!(told.last().and_then(|(.., left)| *left), None, "it might fall again");
    }

    #[test]
    fn what_shrinks_or_rests_is_not_filling() {
        for slope in [0.0, -0.1, -5.0] {
            let told = watch(&mut Forecast::default(), (0.0, 80.0), 0.5, |now| Some(500.0 + slope * now + noise((now * 10.0) as u64)));
            assert!(told.iter().all(|(.., left)| left.is_none()), "{slope}");
        }
        let full = watch(&mut Forecast::default(), (0.0, 80.0), 0.5, |now| Some((400.0 + 5.0 * now).min(LIMIT)));
        assert_eq!(full.last().and_then(|(.., left)| *left), None, "full and at rest");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_makes_it_yield_what_is_not_a_time(
            looks in prop::collection::vec((0.0f64..1000.0, prop_oneof![any::<f64>(), 0.0f64..600.0], prop_oneof![Just(LIMIT), any::<f64>()]), 0..300)
        ) {
            let mut forecast = Forecast::default();
            let mut now = 0.0;
            for (gap, used, limit) in looks {
                now += gap;
                forecast.feed(at(now), used, limit);
                if (used as u64).is_multiple_of(7) {
                    forecast.relieved(at(now));
                }
                // A Duration is a number by its type; that none panics is what is shown.
                let _ = forecast.exhaustion(at(now), limit);
            }
        }

        /// A leak of any rate from any level, looked at as seldom as may be, is foretold a minute ahead.
        #[test]
        fn any_leak_is_foretold(rate in 0.3f64..4.5, from in 20.0f64..200.0, tick in 0.2f64..2.0, quiet in 20.0f64..400.0) {
            let lasts = (LIMIT - from) / rate;
            prop_assume!(lasts > 72.0);
            let told = watch(&mut Forecast::default(), (0.0, quiet + lasts), tick, |now| Some(from + rate * (now - quiet).max(0.0)));
            let (.., left) = *told.iter().rev().find(|(now, ..)| *now <= quiet + lasts - 60.0).unwrap();
            prop_assert!(left.is_some_and(|left| (40.0..90.0).contains(&left)), "{:?}", left);
        }
    }
}
