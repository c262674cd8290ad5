//! Whether a replica's memory leaks: a verdict on the trend, never on a peak. Owns the past of one replica, and may touch only
//! its arguments, time among them. It must not act, nor judge how much is too much: for that there are lines.
//!
//! **What is remembered.** The smallest and the largest value of each bucket of time, sixteen buckets to a scale; a bucket of
//! one scale is two of the next shorter one, from half a minute to nine hours, so that a window is from eight and a half
//! minutes to six days long. The smallest values are the lower envelope: what a garbage collector leaves each time it has run.
//!
//! **What is proof of a climb**, on the closed buckets of one window, all of it:
//!
//! - *The floor is above the old ceiling.* The least it held in the last eighth of the window is more than the most it held in
//!   the first eighth, and more than anything remembered of the time before: what it has held and given back before it may
//!   well give back again. However large the teeth of a saw are, a steady saw has no such window longer than one tooth.
//! - *It rises throughout.* Mann and Kendall's rank statistic of the envelope is near its maximum (H. B. Mann, "Nonparametric
//!   tests against trend", Econometrica 13, 1945; M. G. Kendall, "Rank correlation methods", 1948), and all eighths but one,
//!   the first not excepted, add their part: a few steps upwards, however high, are not a trend.
//! - *It does not level off.* The slope (the median of the slopes between all pairs: P. K. Sen, "Estimates of the regression
//!   coefficient based on Kendall's tau", Journal of the American Statistical Association 63, 1968; up to 29 % of the points
//!   may be wild) of the later half is nearly that of the first. A cache that fills rises ever more slowly.
//!
//! **What is a leak.** A proven climb that matters ([`Window::matters`]). What else climbs steadily for a while, and for how
//! long, decides how long a window must be: a collector's tooth takes up to half an hour, the load of a day half a day.
//!
//! | window | a leak if, going on like this, the line is | and it has grown by |
//! |---|---|---|
//! | 8.5 min | within two days | 400 MB: hardly a tooth is that steep for so long |
//! | 34 and 68 min | within two days | 350 MB and a fifth of the limit: no tooth lasts so long, no load of a day rises so fast |
//! | 34 min to 18 h | within twenty minutes | a tenth of the limit: what is nearly there is no load that levels off |
//! | 36 h to 6 days | within two days | a tenth of the limit: no day climbs that long |
//!
//! What this cannot tell from a leak: the first climb of a tooth, or of a load, that passes one of these rows (such as 400 MB
//! in eight and a half minutes straight); until it falls it is one. What it does not find: a leak that a larger and slower
//! swing hides, until its growth is larger than the swing; its line then does what lines do.
//!
//! ```text
//!    first sight        half a minute later       a window is full, and proves a leak
//!   ────────────► warm-up ───────────► watching ◄────────────────────────────────────► leaking
//!                     ▲                    │         the next window of that length does not,
//!                     └────────────────────┘         or memory fell under where it stood
//!                 the clock went back, or six days
//!                      were not looked at
//! ```
//!
//! A replica that starts is in warm-up; what it holds by then is not looked at. A window with an eighth that was not looked
//! at proves nothing. Looks may be any time apart, and missing.

use std::time::Duration;

use crate::host::clock::Moment;

/// Buckets of one window, and the points of its envelope.
const BUCKETS: usize = 16;
/// Buckets of an eighth.
const EIGHTH: usize = BUCKETS / 8;
const HALF: usize = BUCKETS / 2;
const PAIRS: usize = BUCKETS * (BUCKETS - 1) / 2;
/// Each has buckets twice as long as the one before.
const SCALES: usize = 11;
/// Seconds in a bucket of the first scale. Sixteen of them and the warm-up are less than ten minutes.
const GRAIN: f64 = 32.0;
/// A program that starts loads what it needs.
const WARM_UP: f64 = 30.0;
/// Of the pairs of points so many more must rise than fall. With 16 points chance does that once in 100,000 times.
const RISING: f64 = 0.8;
/// Of the seven steps between the eighths so many, the first among them, must be this part of a mean one.
const STEPS: usize = 6;
const STEP: f64 = 0.4;
/// The slope of the later half as a part of that of the first. A cache with a time constant of ten minutes comes to two
/// thirds in the shortest window, and to less in all others.
const NOT_LEVELLING: f64 = 0.8;
/// The slope of the first half as a part of the whole: what began in the midst of a window is left to a later one.
const FROM_THE_START: f64 = 0.5;
/// Smaller numbers hold any process, and half a page is no leak.
const PAGE: u64 = 4096;
/// The memory before a window: short windows are held against two hours, others against a day and a half.
const SHORT_MEMORY: usize = 4;
const LONG_MEMORY: usize = 8;

/// Of a line that would be reached much later nothing has to be said yet.
const DAYS: f64 = 2.0 * 86_400.0;
/// Time enough to replace many replicas, one after the other.
const SOON: f64 = 20.0 * 60.0;
/// Bytes that no load brings and no collector lets lie in the time of a window: in the shortest (0.83 MB a second, of which a
/// leak of 1 MB a second keeps enough distance), and in those of half an hour and an hour.
const STEEP_VOLUME: f64 = 400e6;
const VOLUME: f64 = 350e6;
/// Growth as a share of the limit.
const FIFTH: f64 = 0.2;
const TENTH: f64 = 0.1;

/// What a climb would run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `recycle.memory`.
    Recycle,
    /// `limits.memory`.
    Limit,
    /// The line of the memory of all: what is left under it, shared among the worker's replicas.
    Scope,
}

impl Line {
    pub fn word(self) -> &'static str {
        match self {
            Line::Recycle => "recycle.memory",
            Line::Limit => "limits.memory",
            Line::Scope => "its share of the memory of all",
        }
    }
}

/// A line for one replica's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub line: Line,
    pub at: f64,
    /// What growth is a share of.
    pub limit: f64,
}

/// A leak, with the figures that prove it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    /// The envelope, in bytes: then and now.
    pub from: f64,
    pub to: f64,
    pub within: Duration,
    /// Bytes a second.
    pub rate: f64,
    /// What would have been reached, and when.
    pub bound: Bound,
    pub left: Duration,
}

/// One replica's past, in a fixed amount of memory (less than 2 KiB).
#[derive(Clone, Debug)]
pub struct Trend {
    /// When the warm-up was over, in seconds.
    begins: Option<f64>,
    /// The bucket that is not over yet, and its number.
    open: Span,
    number: u64,
    scales: [Scale; SCALES],
    /// What the last full window of each scale has proven.
    climbs: [Option<Climb>; SCALES],
}

impl Default for Trend {
    fn default() -> Self {
        let scales = std::array::from_fn(|_| Scale::default());
        Trend { begins: None, open: Span::NOTHING, number: 0, scales, climbs: [None; SCALES] }
    }
}

impl Trend {
    /// Takes the memory read `now`. What could not be read is left out by the caller.
    pub fn feed(&mut self, now: Moment, bytes: u64) {
        let at = now.steady.as_secs_f64();
        let begins = *self.begins.get_or_insert(at + WARM_UP);
        let number = ((at - begins) / GRAIN).floor().max(0.0) as u64;
        // Longer than the longest window: nothing of it is left.
        let is_lost = number.saturating_sub(self.number) > (BUCKETS << (SCALES - 1)) as u64;
        if at < begins - WARM_UP || number < self.number || is_lost {
            *self = Trend { begins: Some(at + WARM_UP), ..Trend::default() };
            return;
        }
        if at < begins {
            return;
        }
        let mut changed = 0;
        while self.number < number {
            changed = changed.max(self.close());
        }
        for place in 0..changed {
            let climb = self.climb(place);
            if let Some(was) = self.climbs.get_mut(place) {
                *was = climb;
            }
        }
        self.open.take(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX));
    }

    /// True when some window proves a climb, whether it matters or not: nearly always false.
    pub fn climbs(&self) -> bool {
        self.climbs.iter().any(Option::is_some)
    }

    /// The leak that reaches one of the `bounds` soonest.
    pub fn leak(&self, bounds: impl IntoIterator<Item = Bound> + Clone) -> Option<Leak> {
        let proven = Window::ALL.iter().zip(&self.climbs).filter_map(|(window, climb)| Some((window, climb.as_ref()?)));
        // What has come back since is waited for.
        let still = proven.filter(|(_, climb)| self.open.low >= climb.to);
        let leaks = still.flat_map(|(window, climb)| bounds.clone().into_iter().filter_map(move |bound| window.matters(climb, bound)));
        leaks.min_by_key(|leak| leak.left)
    }

    /// The open bucket is over. Yields how many scales have a new one by that: one every time, two every other time.
    fn close(&mut self) -> usize {
        let mut over = std::mem::replace(&mut self.open, Span::NOTHING);
        self.number += 1;
        let mut changed = 0;
        for scale in &mut self.scales {
            scale.push(over);
            changed += 1;
            let Some(pair) = scale.pair() else { break };
            over = pair;
        }
        changed
    }

    /// What the last window of a scale proves.
    fn climb(&self, place: usize) -> Option<Climb> {
        let scale = self.scales.get(place)?;
        let mut eighths = [Span::NOTHING; BUCKETS / EIGHTH];
        for (eighth, buckets) in eighths.iter_mut().zip(scale.buckets.chunks(EIGHTH)) {
            *eighth = buckets.iter().fold(Span::NOTHING, |all, bucket| all.with(*bucket));
        }
        let (first, last) = (*eighths.first()?, *eighths.last()?);
        // Nearly everything rests, or swings, and is done with here.
        if eighths.iter().any(Span::is_nothing) || last.low <= first.high || last.low <= self.ceiling_before(place) {
            return None;
        }
        let mean = f64::from(last.low - first.low) / (eighths.len() - 1) as f64;
        let adds = |two: &[Span]| matches!(two, [one, next] if f64::from(next.low) - f64::from(one.low) >= STEP * mean);
        let begins_at_once = eighths.windows(2).next().is_some_and(adds);
        if !begins_at_once || eighths.windows(2).filter(|two| adds(two)).count() < STEPS || rising(&scale.buckets) < RISING {
            return None;
        }
        let (earlier, later) = scale.buckets.split_at(HALF);
        let (whole, earlier, later) = (slope(&scale.buckets)?, slope(earlier)?, slope(later)?);
        let is_steady = whole > 0.0 && earlier >= FROM_THE_START * whole && later >= NOT_LEVELLING * earlier;
        is_steady.then_some(Climb { from: first.low, to: last.low, crest: last.high, each: whole as f32 })
    }

    /// The most it held before the window of a scale, as far as that is remembered.
    fn ceiling_before(&self, place: usize) -> u32 {
        let remembered = if place < 2 { SHORT_MEMORY } else { LONG_MEMORY.max(place + 2) };
        let begins = self.scales.get(place).map_or(0, |scale| scale.count.saturating_sub(BUCKETS as u64)) << place;
        let longer = self.scales.iter().enumerate().skip(place + 1).take_while(|(longer, _)| *longer <= remembered);
        longer.map(|(longer, scale)| scale.ceiling_until(begins >> longer)).max().unwrap_or(0)
    }
}

/// The smallest and the largest value of a stretch of time, in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    low: u32,
    high: u32,
}

impl Span {
    /// Nothing was read in it.
    const NOTHING: Span = Span { low: u32::MAX, high: 0 };

    fn is_nothing(&self) -> bool {
        self.low > self.high
    }

    fn take(&mut self, pages: u32) {
        *self = self.with(Span { low: pages, high: pages });
    }

    fn with(self, other: Span) -> Span {
        Span { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}

/// The last buckets of one length, oldest first.
#[derive(Clone, Debug)]
struct Scale {
    buckets: [Span; BUCKETS],
    /// All there ever were.
    count: u64,
}

impl Default for Scale {
    fn default() -> Self {
        Scale { buckets: [Span::NOTHING; BUCKETS], count: 0 }
    }
}

impl Scale {
    fn push(&mut self, bucket: Span) {
        self.buckets.rotate_left(1);
        if let Some(newest) = self.buckets.last_mut() {
            *newest = bucket;
        }
        self.count += 1;
    }

    /// The newest bucket of the next longer scale, when it is complete with the last push.
    fn pair(&self) -> Option<Span> {
        match self.buckets {
            [.., one, other] if self.count.is_multiple_of(2) => Some(one.with(other)),
            _ => None,
        }
    }

    /// The most in the buckets before number `end`.
    fn ceiling_until(&self, end: u64) -> u32 {
        let after = usize::try_from(self.count.saturating_sub(end)).unwrap_or(BUCKETS).min(BUCKETS);
        self.buckets.iter().take(BUCKETS - after).map(|bucket| bucket.high).max().unwrap_or(0)
    }
}

/// Of the pairs of points, the share that rises less the share that falls: Kendall's tau against time, 1 for what only rises.
fn rising(buckets: &[Span]) -> f64 {
    let (mut balance, mut pairs) = (0_i32, 0_i32);
    for (index, earlier) in buckets.iter().enumerate().filter(|(_, bucket)| !bucket.is_nothing()) {
        for later in buckets.iter().skip(index + 1).filter(|bucket| !bucket.is_nothing()) {
            balance += i32::from(later.low > earlier.low) - i32::from(later.low < earlier.low);
            pairs += 1;
        }
    }
    if pairs == 0 { 0.0 } else { f64::from(balance) / f64::from(pairs) }
}

/// The median of the slopes between all pairs of the envelope, in pages a bucket.
fn slope(buckets: &[Span]) -> Option<f64> {
    let mut slopes = [0.0_f64; PAIRS];
    let mut count = 0;
    for (index, earlier) in buckets.iter().enumerate().filter(|(_, bucket)| !bucket.is_nothing()) {
        for (other, later) in buckets.iter().enumerate().skip(index + 1).filter(|(_, bucket)| !bucket.is_nothing()) {
            if let Some(slope) = slopes.get_mut(count) {
                *slope = (f64::from(later.low) - f64::from(earlier.low)) / (other - index) as f64;
                count += 1;
            }
        }
    }
    let slopes = slopes.get_mut(..count).filter(|slopes| !slopes.is_empty())?;
    let (_, median, _) = slopes.select_nth_unstable_by((count - 1) / 2, f64::total_cmp);
    Some(*median)
}

/// A climb that one window proves, in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Climb {
    from: u32,
    to: u32,
    crest: u32,
    /// Pages a bucket.
    each: f32,
}

/// A scale as a length of time, and what a climb of that length means.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Seconds in one of its buckets.
    grain: f64,
    /// By what it must have grown for a line within [`DAYS`] to matter: bytes, and a share of the limit.
    far: Option<(f64, f64)>,
    /// The same for a line within [`SOON`].
    near: Option<(f64, f64)>,
}

impl Window {
    const ALL: [Window; SCALES] = [
        Window::of(0, Some((STEEP_VOLUME, 0.0)), None),
        // Within a tooth of half an hour, and too short for what is slower than the first.
        Window::of(1, None, None),
        Window::of(2, Some((VOLUME, FIFTH)), Some((0.0, TENTH))),
        Window::of(3, Some((VOLUME, FIFTH)), Some((0.0, TENTH))),
        Window::of(4, None, Some((0.0, TENTH))),
        Window::of(5, None, Some((0.0, TENTH))),
        Window::of(6, None, Some((0.0, TENTH))),
        Window::of(7, None, Some((0.0, TENTH))),
        Window::of(8, Some((0.0, TENTH)), None),
        Window::of(9, Some((0.0, TENTH)), None),
        Window::of(10, Some((0.0, TENTH)), None),
    ];

    const fn of(place: u32, far: Option<(f64, f64)>, near: Option<(f64, f64)>) -> Window {
        Window { grain: GRAIN * (1_u64 << place) as f64, far, near }
    }

    /// The leak that `climb` is, if its growth is a real one and `bound` is reached in a time that matters.
    fn matters(&self, climb: &Climb, bound: Bound) -> Option<Leak> {
        let bytes = |pages: u32| f64::from(pages) * PAGE as f64;
        let rate = f64::from(climb.each) * PAGE as f64 / self.grain;
        let growth = rate * self.grain * (BUCKETS - 1) as f64;
        let left = (bound.at - bytes(climb.crest)).max(0.0) / rate;
        let matters = |least: Option<(f64, f64)>, horizon: f64| {
            least.is_some_and(|(volume, share)| growth >= volume && growth >= share * bound.limit && left <= horizon)
        };
        (matters(self.far, DAYS) || matters(self.near, SOON)).then(|| Leak {
            from: bytes(climb.from),
            to: bytes(climb.to),
            within: Duration::from_secs_f64(self.grain * (BUCKETS - EIGHTH) as f64),
            rate,
            bound,
            left: Duration::try_from_secs_f64(left).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::at;
    use proptest::prelude::*;
    use std::f64::consts::TAU;

    const MB: f64 = 1e6;
    const HOUR: f64 = 3_600.0;
    const DAY: f64 = 24.0 * HOUR;

    /// Numbers in [0, 1) that are the same in every run: one of the usual mixers on a counter.
    struct Dice(u64);

    impl Dice {
        fn throw(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn between(&mut self, from: f64, to: f64) -> f64 {
            from + (to - from) * self.throw()
        }
    }

    fn limit(megabytes: f64) -> Bound {
        Bound { line: Line::Limit, at: megabytes * MB, limit: megabytes * MB }
    }

    fn saw(now: f64, period: f64, amplitude: f64, phase: f64) -> f64 {
        amplitude * (now / period + phase).fract()
    }

    /// Looks every `tick` seconds until a leak is found or the time is up; `usage` in MB. Yields when, and what.
    fn watch(trend: &mut Trend, span: (f64, f64), tick: f64, bound: Bound, mut usage: impl FnMut(f64) -> f64) -> Option<(f64, Leak)> {
        let mut now = span.0;
        while now < span.1 {
            trend.feed(at(now), (usage(now) * MB) as u64);
            if trend.climbs()
                && let Some(leak) = trend.leak([bound])
            {
                return Some((now, leak));
            }
            now += tick;
        }
        None
    }

    const FORMS: [&str; 7] =
        ["steady", "noise of 5 %", "saw of 5 s", "saw of 30 s", "saw of 60 s", "saw of 120 s", "saw of 120 s, noise of 5 %"];

    /// When a leak of `rate` MB a second that begins at `begins` is found, in seconds from there; the worst of several runs.
    fn found_after(form: usize, rate: f64, begins: f64, base: f64, most: f64) -> Option<f64> {
        let mut dice = Dice(form as u64);
        let mut worst = 0.0_f64;
        for _ in 0..if rate < 0.01 { 1 } else { 4 } {
            let phase = dice.throw();
            let usage = |now: f64| {
                let held = base + rate * (now - begins).max(0.0);
                let period = [1.0, 1.0, 5.0, 30.0, 60.0, 120.0, 120.0][form];
                let held = if form > 1 { held + saw(now, period, 50.0, phase) } else { held };
                if matches!(form, 1 | 6) { held * dice.between(0.95, 1.05) } else { held }
            };
            let lasts = begins + (most - base) / rate;
            worst = worst.max(watch(&mut Trend::default(), (0.0, lasts), 2.0, limit(most), usage)?.0 - begins);
        }
        Some(worst)
    }

    #[test]
    fn a_leak_of_a_megabyte_a_second_is_found_within_ten_minutes() {
        for (form, name) in FORMS.iter().enumerate() {
            for base in [50.0, 300.0] {
                for begins in [0.0, 4_000.0, 20_011.0] {
                    for most in [1_200.0, 64_000.0] {
                        let found = found_after(form, 1.0, begins, base, most);
                        println!("1 MB/s, {name}, from {base} MB at {begins} s, limit {most} MB: {found:?}");
                        assert!(found.is_some_and(|found| found < 600.0), "{name} from {base} MB at {begins} s: {found:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn slower_leaks_are_found_before_they_do_harm() {
        for (form, name) in FORMS.iter().enumerate() {
            for (rate, base, most, by) in
                [(0.3, 100.0, 1_500.0, 0.66 * HOUR), (0.1, 300.0, 1_000.0, 1.25 * HOUR), (10.0 / HOUR, 300.0, 1_000.0, 40.0 * HOUR)]
            {
                let found = found_after(form, rate, 0.0, base, most);
                println!("{rate:.4} MB/s, {name}, from {base} MB, limit {most} MB: {:?} h", found.map(|found| found / HOUR));
                assert!(found.is_some_and(|found| found < by), "{rate} MB/s, {name}: {found:?}");
            }
        }
    }

    #[test]
    fn a_slow_leak_under_the_load_of_a_day_is_found_in_some_days() {
        let usage = |now: f64| 200.0 + 10.0 * now / HOUR + 60.0 * (0.5 - 0.5 * (TAU * now / DAY).cos());
        let found = watch(&mut Trend::default(), (0.0, 6.0 * DAY), 10.0, limit(2_000.0), usage);
        println!("{:?} days", found.map(|(now, _)| now / DAY));
        assert!(found.is_some_and(|(now, leak)| now > DAY && (leak.rate * HOUR / (10.0 * MB) - 1.0).abs() < 0.2), "{found:?}");
    }

    #[test]
    fn a_leak_comes_with_its_figures() {
        let (_, leak) = watch(&mut Trend::default(), (0.0, 600.0), 2.0, limit(2_000.0), |now| 300.0 + now).unwrap();
        let near = |figure: f64, expected: f64| (figure - expected).abs() < 0.02 * expected;
        // It holds 808 MB by then.
        assert!(near(leak.from, 330.0 * MB) && near(leak.to, 746.0 * MB) && near(leak.rate, MB), "{leak:?}");
        assert_eq!((leak.within, leak.bound), (Duration::from_secs(448), limit(2_000.0)));
        assert!(near(leak.left.as_secs_f64(), 1_192.0), "{leak:?}");
    }

    /// A day of what is no leak: by kind, and whichever of its endless variants the dice say.
    fn no_leak(kind: &str, dice: &mut Dice) -> (f64, Box<dyn FnMut(f64) -> f64>) {
        let base = dice.between(30.0, 600.0);
        let period = 10.0 * 180.0_f64.powf(dice.throw());
        let (amplitude, phase) = (dice.between(5.0, 380.0), dice.throw());
        let (other_period, other_phase) = (10.0 * 180.0_f64.powf(dice.throw()), dice.throw());
        let swing = dice.between(10.0, 500.0);
        let (from, filling) = (dice.between(0.0, 20.0 * HOUR), dice.between(5.0, 600.0));
        let noise = dice.between(0.005, 0.05);
        let mut own = Dice(dice.0);
        let day = move |now: f64| swing * (0.5 - 0.5 * (TAU * (now / DAY + phase)).cos());
        match kind {
            "a saw" => (base + amplitude, Box::new(move |now| base + saw(now, period, amplitude, phase))),
            "an uneven saw" => {
                let (mut began, mut lasts) = (-period * phase, period);
                let climb = move |now: f64| {
                    if now >= began + lasts {
                        began += lasts;
                        lasts = period * own.between(0.6, 1.0);
                    }
                    base + amplitude * (now - began) / period
                };
                (base + amplitude, Box::new(climb))
            }
            "two saws" => {
                let small = 0.3 * amplitude;
                let usage = move |now: f64| base + saw(now, period, amplitude, phase) + saw(now, other_period, small, other_phase);
                (base + amplitude + small, Box::new(usage))
            }
            "a saw with noise" => {
                let usage = move |now: f64| (base + saw(now, period, amplitude, phase)) * own.between(1.0 - noise, 1.0 + noise);
                ((base + amplitude) * (1.0 + noise), Box::new(usage))
            }
            "noise" => (base + amplitude, Box::new(move |_| base + amplitude * own.throw())),
            "steps" => {
                let steps = [0.01, 0.02, 0.1, 0.5].map(|part| (from * part * 2.0, dice.between(10.0, 100.0)));
                let usage = move |now: f64| {
                    let above: f64 = steps.iter().filter(|(when, _)| now > *when).map(|(_, height)| height).sum();
                    base + above + saw(now, other_period, 30.0, phase)
                };
                (base + 430.0, Box::new(usage))
            }
            "a cache that fills" => (base + swing, Box::new(move |now| base + swing * (1.0 - (-now / filling).exp()))),
            "a cache that fills some time" => {
                (base + swing, Box::new(move |now| base + swing * (1.0 - (-(now - from).max(0.0) / filling).exp())))
            }
            "a cache that fills, and a saw" => {
                let usage = move |now: f64| base + swing * (1.0 - (-now / filling).exp()) + saw(now, other_period, 80.0, phase);
                (base + swing + 80.0, Box::new(usage))
            }
            "the load of a day" => (base + swing, Box::new(move |now| base + day(now))),
            "the load of a day, and a saw" => {
                let usage = move |now: f64| base + day(now) + saw(now, other_period, amplitude, other_phase);
                (base + swing + amplitude, Box::new(usage))
            }
            "a morning" => {
                let usage = move |now: f64| {
                    let hour = (now / HOUR + 24.0 * phase) % 24.0;
                    base + swing * ((hour - 8.0) / 3.0).clamp(0.0, 1.0) * (1.0 - ((hour - 18.0) / 3.0).clamp(0.0, 1.0))
                };
                (base + swing, Box::new(usage))
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_day_of_what_is_no_leak_recycles_nobody() {
        let kinds = [
            "a saw",
            "an uneven saw",
            "two saws",
            "a saw with noise",
            "noise",
            "steps",
            "a cache that fills",
            "a cache that fills some time",
            "a cache that fills, and a saw",
            "the load of a day",
            "the load of a day, and a saw",
            "a morning",
        ];
        for (number, kind) in kinds.iter().enumerate() {
            for run in 0..6 {
                let mut dice = Dice((number * 100 + run) as u64);
                let (peak, usage) = no_leak(kind, &mut dice);
                // Its line a little above its highest, or far.
                let most = peak * (1.15 + 3.0 * dice.throw() * dice.throw());
                let found = watch(&mut Trend::default(), (0.0, DAY), 2.0, limit(most), usage);
                assert_eq!(found, None, "{kind}, run {run}, limit {most:.0} MB");
            }
        }
    }

    #[test]
    fn a_long_steady_saw_of_any_size_is_told_from_a_leak_once_it_has_fallen() {
        for period in [600.0, 1_200.0, 1_800.0] {
            let usage = |now: f64| 100.0 + saw(now, period, 2_000.0, 0.0);
            let mut trend = Trend::default();
            let far = Bound { line: Line::Limit, at: f64::INFINITY, limit: f64::INFINITY };
            assert_eq!(watch(&mut trend, (0.0, period + 60.0), 2.0, far, usage), None);
            assert_eq!(watch(&mut trend, (period + 60.0, DAY), 2.0, limit(2_500.0), usage), None, "{period} s");
        }
    }

    #[test]
    fn what_it_has_held_before_and_given_back_proves_nothing() {
        let usage = |now: f64| if now < 300.0 { 900.0 } else { (200.0 + (now - 300.0)).min(850.0) };
        assert_eq!(watch(&mut Trend::default(), (0.0, 2.0 * HOUR), 2.0, limit(2_000.0), usage), None);
        let usage = |now: f64| if now < 300.0 { 900.0 } else { 200.0 + (now - 300.0) };
        let (now, _) = watch(&mut Trend::default(), (0.0, 2.0 * HOUR), 2.0, limit(2_000.0), usage).unwrap();
        assert!((1_000.0..1_150.0).contains(&now), "{now}");
    }

    #[test]
    fn what_has_come_back_is_no_leak_any_more() {
        let mut trend = Trend::default();
        let (now, _) = watch(&mut trend, (0.0, 600.0), 2.0, limit(2_000.0), |now| 300.0 + now).unwrap();
        trend.feed(at(now + 2.0), (400.0 * MB) as u64);
        assert_eq!(trend.leak([limit(2_000.0)]), None);
    }

    #[test]
    fn a_climb_that_ends_far_under_every_line_is_no_leak() {
        // 100 MB in a day, and 30 years to go.
        let usage = |now: f64| 100.0 + 100.0 * now / DAY;
        assert_eq!(watch(&mut Trend::default(), (0.0, 6.0 * DAY), 60.0, limit(1e6), usage), None);
        let mut trend = Trend::default();
        assert!(watch(&mut trend, (0.0, 600.0), 2.0, limit(1e9), |now| 100.0 + now).is_none());
        assert!(trend.climbs() && trend.leak([]).is_none(), "proven, and nothing that it would reach");
    }

    #[test]
    fn looks_may_be_far_apart_and_missing() {
        for tick in [0.25, 7.0, 10.0, 30.0] {
            let found = watch(&mut Trend::default(), (0.0, 700.0), tick, limit(4_000.0), |now| 300.0 + now);
            assert!(found.is_some_and(|(now, _)| now < 600.0), "every {tick} s: {found:?}");
        }
        // Five minutes without a look prove nothing, and what follows does.
        let mut trend = Trend::default();
        watch(&mut trend, (0.0, 400.0), 2.0, limit(4_000.0), |now| 300.0 + now);
        let (now, _) = watch(&mut trend, (700.0, 2_000.0), 2.0, limit(4_000.0), |now| 300.0 + now).unwrap();
        assert!((1_150.0..1_300.0).contains(&now), "{now}");
        // A clock that goes back, and a week without a look, begin anew.
        for leap in [0.0, 8.0 * DAY] {
            let mut trend = Trend::default();
            watch(&mut trend, (1_000.0, 1_400.0), 2.0, limit(4_000.0), |now| now);
            trend.feed(at(leap), 0);
            assert_eq!((trend.number, trend.begins), (0, Some(leap + WARM_UP)), "{leap}");
        }
    }

    #[test]
    fn a_past_is_small() {
        assert!(size_of::<Trend>() <= 2048, "{}", size_of::<Trend>());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn nothing_makes_it_yield_what_is_not_a_time(
            looks in prop::collection::vec((prop_oneof![0.0f64..100.0, 0.0f64..1e6], any::<u64>(), any::<f64>()), 0..300)
        ) {
            let (mut trend, mut now) = (Trend::default(), 0.0);
            for (gap, bytes, line) in looks {
                now = if bytes % 97 == 0 { now / 2.0 } else { now + gap };
                trend.feed(at(now), bytes);
                let bound = Bound { line: Line::Scope, at: line, limit: line };
                if let Some(leak) = trend.leak([bound, limit(1.0)]) {
                    prop_assert!(leak.rate.is_finite() && leak.rate > 0.0 && leak.to > leak.from, "{:?}", leak);
                }
            }
        }

        /// Whatever the time between looks.
        #[test]
        fn what_only_swings_is_never_a_leak(
            seed in any::<u64>(), base in 1.0f64..2_000.0, height in 0.0f64..300.0, gap in 0.1f64..40.0, above in 1.0f64..3.0
        ) {
            let (mut dice, mut trend, mut now) = (Dice(seed), Trend::default(), 0.0);
            for _ in 0..5_000 {
                now += gap * dice.throw();
                trend.feed(at(now), ((base + height * dice.throw()) * MB) as u64);
                prop_assert_eq!(trend.leak([limit((base + height) * above)]), None);
            }
        }

        /// From anywhere, with noise, at any steep rate, however unevenly it is looked at.
        #[test]
        fn any_steep_leak_is_found(
            seed in any::<u64>(), base in 1.0f64..400.0, rate in 1.0f64..20.0, gap in 0.5f64..6.0, noise in 0.0f64..0.03
        ) {
            let (mut dice, mut trend, mut now) = (Dice(seed), Trend::default(), 0.0);
            let mut found = None;
            while now < 600.0 && found.is_none() {
                now += gap * dice.between(0.5, 1.5);
                trend.feed(at(now), ((base + rate * now) * dice.between(1.0 - noise, 1.0 + noise) * MB) as u64);
                found = trend.leak([limit(60_000.0)]);
            }
            prop_assert!(found.is_some_and(|leak| (leak.rate / (rate * MB) - 1.0).abs() < 0.1), "{:?}", found);
        }
    }
}
