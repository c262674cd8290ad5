//! Evidence that memory is really short: owns the rule for it, and may touch only its arguments, time among them.
//! It must not judge usage: evidence alone never raises an alarm, it decides which measure is held against the line.
//!
//! Of what a group is charged for, the cache of files can be given back, so it is not counted: [`Measure::Unreclaimable`].
//! But a cache that is in constant use is given back only to be read again, and then its share hurts as much as any other.
//! So while there is evidence, the working set is judged instead: [`Measure::WorkingSet`]. What the kernel calls the inactive part
//! of the cache is not in it, but for what was given back and wanted again within the window: a working set larger than the
//! limit never stays long enough to be called active.
//!
//! ```text
//!                   any sign within the last 10 s, and the working set at `low` or over
//!    unreclaimable ────────────────────────────────────────────────────────────────────► working set
//!                  ◄────────────────────────────────────────────────────────────────────
//!                   no sign for 10 s, or the working set under `low`
//! ```
//!
//! | sign | from | source of the figure |
//! |---|---|---|
//! | [`Sign::OutOfMemory`] | one event in the window | the kernel reclaimed, found nothing, and killed or was about to |
//! | [`Sign::Stalls`] | some task waited 25 % of the window | measured: a reader that streams a file of 1 GiB through a group of 128 MiB waits 9 to 20 % of its time; systemd-oomd acts from 60 %, Android's lmkd from 20 % on small devices |
//! | [`Sign::Refaults`] | as many bytes as the cache holds, within the window | the default `thrashing_limit` of Android's lmkd, 100 %. Measured: 140 MiB mapped and touched in any order in 96 MiB, 1000 % |
//!
//! Meeting the limit (`max`, `high`; `failcnt` on v1) is no sign: the same reader met it 600 times a second with a working
//! set of one megabyte, while nothing was short, and it refaults as well: eight times the cache each second. So a refault counts
//! only where it hurts: the kernel says there had been room for the page (`workingset_activate`, which no v1 group counts), or a
//! program had to wait for it in the middle of its work (a major fault; whoever reads files ahead has next to none). And
//! under `low`, where nothing is wrong by either measure, no sign is looked at.

use std::collections::VecDeque;
use std::time::Duration;

use crate::host::cgroupfs::Refaults;
use crate::host::clock::Moment;
use crate::sampling::readings::{MemoryReadings, Reading, in_bytes};

/// Counters are compared over this long; also how long a sign lasts.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Shares need at least this much of it: one look proves nothing about time.
const LEAST: Duration = Duration::from_secs(1);
/// Between two looks that are remembered.
const GRAIN: Duration = Duration::from_millis(500);
/// Looks remembered: the window, the newest, and one that is about to leave.
const LOOKS: usize = 22;

const WAITING: f64 = 0.25;
const REFAULTED: f64 = 1.0;
/// A cache smaller than this part of the limit is read again in a moment, which proves nothing.
const SMALLEST_CACHE: f64 = 0.01;

/// What is held against the memory line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// What the kernel cannot give back.
    Unreclaimable,
    /// All but the file cache nobody used lately: with evidence of stress, or where the other is not known.
    WorkingSet,
}

impl Measure {
    pub fn word(self) -> &'static str {
        match self {
            Measure::Unreclaimable => "unreclaimable",
            Measure::WorkingSet => "working_set",
        }
    }
}

/// The strongest sign there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    OutOfMemory,
    Stalls,
    Refaults,
}

/// What the counters did over the window. A counter that could not be read, or not twice, is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// The share of the time in which some task waited for memory.
    pub waiting: Option<f64>,
    /// What was reclaimed and wanted back, and hurt: in bytes, and as a share of the file cache.
    pub wanted_back: Option<u64>,
    pub refaulted: Option<f64>,
    /// How often the limit was met (`high` and `max`). For people: it is no sign.
    pub limit_met: Option<u64>,
    /// How often there was nothing left to reclaim.
    pub ooms: Option<u64>,
}

impl Evidence {
    pub fn sign(&self) -> Option<Sign> {
        if self.ooms.is_some_and(|ooms| ooms > 0) {
            Some(Sign::OutOfMemory)
        } else if self.waiting.is_some_and(|share| share >= WAITING) {
            Some(Sign::Stalls)
        } else if self.refaulted.is_some_and(|share| share >= REFAULTED) {
            Some(Sign::Refaults)
        } else {
            None
        }
    }

    /// The sign with its figure, for people.
    pub fn words(&self) -> Option<String> {
        let percent = |share: Option<f64>| share.unwrap_or(0.0) * 100.0;
        Some(match self.sign()? {
            Sign::OutOfMemory => format!("out of memory {} times", self.ooms.unwrap_or(0)),
            Sign::Stalls => format!("tasks waited for memory {:.0} % of the time", percent(self.waiting)),
            Sign::Refaults => format!("{:.0} % of the file cache was read again", percent(self.refaulted)),
        })
    }
}

/// The counters of one look.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Duration,
    waiting: Option<Duration>,
    refaults: Refaults,
    limit_met: Option<u64>,
    ooms: Option<u64>,
}

impl Look {
    fn of(memory: &MemoryReadings, now: Moment) -> Look {
        let events = memory.events.known();
        Look {
            at: now.steady,
            waiting: memory.stalls.known().map(|stalls| stalls.waiting),
            refaults: memory.refaults.known().unwrap_or_default(),
            limit_met: events.map(|events| events.high.saturating_add(events.max)),
            ooms: events.map(|events| events.oom.max(events.oom_kill)),
        }
    }

    /// A counter that went back belongs to another group than the one before: nothing before it counts any more.
    fn went_back(&self, before: &Look) -> bool {
        fn less<T: PartialOrd>(now: Option<T>, then: Option<T>) -> bool {
            now.zip(then).is_some_and(|(now, then)| now < then)
        }
        self.at < before.at
            || less(self.waiting, before.waiting)
            || less(self.refaults.all, before.refaults.all)
            || less(self.refaults.activated, before.refaults.activated)
            || less(self.refaults.major_faults, before.refaults.major_faults)
            || less(self.limit_met, before.limit_met)
            || less(self.ooms, before.ooms)
    }
}

/// The counters of the last [`WINDOW`].
#[derive(Clone, Debug)]
pub struct Stress {
    looks: VecDeque<Look>,
}

impl Default for Stress {
    fn default() -> Self {
        Stress { looks: VecDeque::with_capacity(LOOKS + 1) }
    }
}

impl Stress {
    /// Takes one look at the scope, and says what the counters did since the window began.
    pub fn feed(&mut self, memory: &MemoryReadings, now: Moment) -> Evidence {
        let look = Look::of(memory, now);
        if self.looks.back().is_some_and(|before| look.went_back(before)) {
            self.looks.clear();
        }
        while self.looks.front().is_some_and(|first| look.at.saturating_sub(first.at) > WINDOW) {
            self.looks.pop_front();
        }
        let evidence = self.compare(&look, memory);
        if self.looks.back().is_none_or(|before| look.at - before.at >= GRAIN) && self.looks.len() < LOOKS {
            self.looks.push_back(look);
        }
        evidence
    }

    fn compare(&self, look: &Look, memory: &MemoryReadings) -> Evidence {
        // Each counter against the oldest look that has it.
        fn oldest<T>(looks: &VecDeque<Look>, of: impl Fn(&Look) -> Option<T>) -> Option<(Duration, T)> {
            looks.iter().find_map(|look| Some((look.at, of(look)?)))
        }
        let counted = |now: Option<u64>, then: Option<(Duration, u64)>| now.zip(then).map(|(now, (_, then))| now.saturating_sub(then));
        let waiting = look.waiting.zip(oldest(&self.looks, |look| look.waiting)).and_then(|(now, (at, then))| {
            let span = look.at.saturating_sub(at);
            (span >= LEAST).then(|| now.saturating_sub(then).as_secs_f64() / span.as_secs_f64())
        });
        let least = memory.limit.known().unwrap_or(0) as f64 * SMALLEST_CACHE;
        let cache = memory.file_cache.known().map(|cache| (cache as f64).max(least)).filter(|cache| *cache > 0.0);
        let faults = |of: fn(&Refaults) -> Option<u64>| counted(of(&look.refaults), oldest(&self.looks, |look| of(&look.refaults)));
        let touched = faults(|one| one.all).zip(faults(|one| one.major_faults)).map(|(all, major)| all.min(major));
        let wanted_back = faults(|one| one.activated).max(touched).map(in_bytes);
        Evidence {
            waiting,
            wanted_back,
            refaulted: wanted_back.zip(cache).map(|(wanted, cache)| wanted as f64 / cache),
            limit_met: counted(look.limit_met, oldest(&self.looks, |look| look.limit_met)),
            ooms: counted(look.ooms, oldest(&self.looks, |look| look.ooms)),
        }
    }
}

/// The working set, with what of the inactive cache is in use all the same.
pub fn working_set(memory: &MemoryReadings, evidence: &Evidence) -> Reading<u64> {
    let wanted_back = evidence.wanted_back.filter(|_| evidence.refaulted.is_some_and(|share| share >= REFAULTED)).unwrap_or(0);
    let current = memory.current.known();
    memory.working_set.map(|active| current.map_or(active, |current| active.saturating_add(wanted_back).clamp(active, current.max(active))))
}

/// Which measure is judged; `low` in bytes.
pub fn measure(memory: &MemoryReadings, evidence: &Evidence, low: f64) -> Measure {
    match (memory.unreclaimable.known(), working_set(memory, evidence).known()) {
        (Some(_), None) => Measure::Unreclaimable,
        (Some(_), Some(working_set)) if evidence.sign().is_none() || (working_set as f64) < low => Measure::Unreclaimable,
        _ => Measure::WorkingSet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{MB, at, readings};
    use crate::sampling::readings::{MemoryEvents, Pressure, Reading};
    use proptest::prelude::*;

    /// A group of 1000 MB with 200 MB of file cache, after so many seconds at these rates.
    fn memory(seconds: f64, waiting: f64, refaulted_mb: f64, max: f64, ooms: u64) -> MemoryReadings {
        let mut memory = readings(at(seconds)).memory;
        memory.working_set = Reading::Known(850 * MB);
        memory.unreclaimable = Reading::Known(650 * MB);
        memory.file_cache = Reading::Known(200 * MB);
        memory.stalls = Reading::Known(Pressure { waiting: Duration::from_secs_f64(waiting * seconds), stalled: None });
        memory.refaults = pages(None, Some((refaulted_mb * seconds * MB as f64) as u64 / 4096), None);
        memory.events = Reading::Known(MemoryEvents { high: 0, max: (max * seconds) as u64, oom: ooms, oom_kill: ooms });
        memory
    }

    fn pages(all: Option<u64>, activated: Option<u64>, major_faults: Option<u64>) -> Reading<Refaults> {
        Reading::Known(Refaults { all, activated, major_faults })
    }

    /// After so many seconds of the same, a look every half second.
    fn after(stress: &mut Stress, seconds: (f64, f64), look: impl Fn(f64) -> MemoryReadings) -> Evidence {
        let mut evidence = Evidence::default();
        let mut now = seconds.0;
        while now <= seconds.1 {
            evidence = stress.feed(&look(now), at(now));
            now += 0.5;
        }
        evidence
    }

    #[test]
    fn what_is_a_sign_and_what_is_none() {
        let cases: [(&str, f64, f64, f64, Option<Sign>); 6] = [
            ("rest", 0.0, 0.0, 0.0, None),
            ("a stream of files through the limit", 0.20, 0.0, 600.0, None),
            ("tasks wait a third of their time", 0.33, 0.0, 0.0, Some(Sign::Stalls)),
            ("the cache is read again once in the window", 0.05, 20.1, 10.0, Some(Sign::Refaults)),
            ("half of it is", 0.05, 9.9, 10.0, None),
            ("stalls come before refaults", 0.5, 100.0, 10.0, Some(Sign::Stalls)),
        ];
        for (name, waiting, refaulted, max, sign) in cases {
            let evidence = after(&mut Stress::default(), (0.0, 30.0), |now| memory(now, waiting, refaulted, max, 3));
            assert_eq!(evidence.sign(), sign, "{name}: {evidence:?}");
            assert_eq!(evidence.words().is_some(), sign.is_some());
            assert_eq!(measure(&memory(30.0, 0.0, 0.0, 0.0, 0), &evidence, 700e6) == Measure::WorkingSet, sign.is_some(), "{name}");
            assert_eq!(measure(&memory(30.0, 0.0, 0.0, 0.0, 0), &evidence, 851e6), Measure::Unreclaimable, "{name}: under low");
        }
    }

    #[test]
    fn a_sign_lasts_as_long_as_the_window() {
        let mut stress = Stress::default();
        after(&mut stress, (0.0, 5.0), |now| memory(now, 0.0, 0.0, 0.0, 0));
        let killed = stress.feed(&memory(5.5, 0.0, 0.0, 0.0, 1), at(5.5));
        assert_eq!(killed.sign(), Some(Sign::OutOfMemory), "at once");
        let later = after(&mut stress, (6.0, 15.0), |now| memory(now, 0.0, 0.0, 0.0, 1));
        assert_eq!(later.sign(), Some(Sign::OutOfMemory));
        let at_last = after(&mut stress, (15.5, 17.0), |now| memory(now, 0.0, 0.0, 0.0, 1));
        assert_eq!(at_last.sign(), None);
    }

    /// A group of 96 MB that is full of file cache, all of it on the inactive list.
    fn full_of_files(all: u64, activated: Option<u64>, major_faults: u64) -> MemoryReadings {
        let mut memory = readings(at(0.0)).memory;
        (memory.limit, memory.current) = (Reading::Known(96 * MB), Reading::Known(96 * MB));
        (memory.working_set, memory.unreclaimable, memory.file_cache) = (Reading::Known(MB), Reading::Known(MB), Reading::Known(95 * MB));
        memory.refaults = pages(Some(all), activated, Some(major_faults));
        memory
    }

    #[test]
    fn a_working_set_larger_than_the_limit_is_told_from_a_stream_of_files() {
        // Pages a second as measured on v1, kernel 6.18: touched in any order, and read through; then the same as v2 shows them.
        let cases = [
            ("v1, touched in any order", 24_000, None, 24_000, true),
            ("v1, read through", 330_000, None, 5, false),
            ("v2, touched in any order", 24_000, Some(0), 24_000, true),
            ("v2, read again and again with room for it", 24_000, Some(20_000), 0, true),
            ("v2, read through", 330_000, Some(0), 5, false),
            ("touched now and then", 1000, Some(100), 1000, false),
        ];
        for (name, all, activated, major, thrashes) in cases {
            let look = |now: f64| {
                let of = |rate: u64| (rate as f64 * now) as u64;
                full_of_files(of(all), activated.map(of), of(major))
            };
            let evidence = after(&mut Stress::default(), (0.0, 20.0), look);
            assert_eq!(evidence.sign(), thrashes.then_some(Sign::Refaults), "{name}: {evidence:?}");
            let judged = (measure(&look(20.0), &evidence, 67e6), working_set(&look(20.0), &evidence).known());
            let expected = if thrashes { (Measure::WorkingSet, Some(96 * MB)) } else { (Measure::Unreclaimable, Some(MB)) };
            assert_eq!(judged, expected, "{name}");
        }
    }

    #[test]
    fn one_look_and_a_counter_that_went_back_prove_nothing() {
        let mut stress = Stress::default();
        assert_eq!(stress.feed(&memory(50.0, 1.0, 100.0, 10.0, 7), at(50.0)), Evidence::default());
        let soon = stress.feed(&memory(50.2, 1.0, 0.0, 10.0, 7), at(50.2));
        assert_eq!(soon.waiting, None, "too short a time: {soon:?}");
        after(&mut stress, (51.0, 60.0), |now| memory(now, 1.0, 100.0, 10.0, 7));
        let other_group = stress.feed(&memory(1.0, 0.1, 0.0, 0.0, 0), at(60.5));
        assert_eq!(other_group.sign(), None, "{other_group:?}");
        // What was last read a minute ago says nothing about now.
        after(&mut stress, (61.0, 65.0), |now| memory(now, 0.0, 0.0, 0.0, 0));
        let after_a_gap = stress.feed(&memory(200.0, 1.0, 100.0, 10.0, 9), at(200.0));
        assert_eq!(after_a_gap.sign(), None, "{after_a_gap:?}");
    }

    #[test]
    fn the_working_set_stands_in_for_what_is_not_known() {
        let mut memory = memory(1.0, 0.0, 0.0, 0.0, 0);
        memory.unreclaimable = Reading::Unsupported;
        assert_eq!(measure(&memory, &Evidence::default(), 0.0), Measure::WorkingSet);
        let stressed = Evidence { ooms: Some(1), ..Evidence::default() };
        memory.unreclaimable = Reading::Known(1);
        memory.working_set = Reading::Unsupported;
        assert_eq!(measure(&memory, &stressed, 0.0), Measure::Unreclaimable);
    }

    proptest! {
        #[test]
        fn whatever_is_read_shares_are_numbers_and_memory_is_bounded(
            looks in prop::collection::vec((0u64..30_000, any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>()), 1..200)
        ) {
            let mut stress = Stress::default();
            let (mut now, known) = (0, |value: Option<u64>| value.map_or(Reading::Unsupported, Reading::Known));
            for (gap, waiting, refaulted, cache, count) in looks {
                now += gap;
                let mut memory = memory(0.0, 0.0, 0.0, 0.0, 0);
                memory.stalls = waiting.map_or(Reading::Unsupported, |waiting| {
                    Reading::Known(Pressure { waiting: Duration::from_millis(waiting.into()), stalled: None })
                });
                memory.refaults = pages(refaulted, None, refaulted.map(|pages| pages / 2));
                memory.file_cache = known(cache);
                memory.events = count.map_or(Reading::Unsupported, |count| {
                    Reading::Known(MemoryEvents { high: count, max: count, oom: count, oom_kill: 0 })
                });
                let evidence = stress.feed(&memory, at(now as f64 / 1000.0));
                prop_assert!(evidence.waiting.is_none_or(|share| share.is_finite() && share >= 0.0));
                prop_assert!(evidence.refaulted.is_none_or(|share| share.is_finite() && share >= 0.0));
                prop_assert!(stress.looks.len() <= LOOKS);
            }
        }
    }
}
