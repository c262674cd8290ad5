//! Which copies of a database go: a pure function of the copies there are, the settings and the moment.
//!
//! - Only copies that are **good** (verified, not damaged since) count for anything.
//! - The newest `keep_last` good ones stay, one at the least, whatever their age; so do all that are younger than `keep`, and the newest
//!   good one of each of the newest `keep_daily` days, `keep_weekly` weeks and `keep_monthly` months that have one (UTC; weeks begin on Monday).
//! - A copy that is dated in the future stays: its age is not proven. While the newest one is, nothing goes.
//! - A copy that is not good goes when it is older than `keep`, and only behind `keep_last` newer ones that are good.
//!
//! So a copy only ever goes behind at least one newer good one, and a failing backup never ages out the last that worked.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use jiff::civil::Date;

use crate::config::jobs::Backup;

/// Clocks of two machines, or of one that was set right in between, differ by so much without anything being wrong.
const TOLERANCE: Duration = Duration::from_secs(300);

/// What counts of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub made: SystemTime,
    pub is_good: bool,
}

/// What the settings say about keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub younger_than: Duration,
    /// At least 1 is kept, whatever is said here.
    pub last: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
}

impl From<&Backup> for Keep {
    fn from(settings: &Backup) -> Keep {
        Keep {
            younger_than: settings.keep,
            last: settings.keep_last,
            daily: settings.keep_daily,
            weekly: settings.keep_weekly,
            monthly: settings.keep_monthly,
        }
    }
}

/// What becomes of one copy, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The word is one of a fixed list: `last`, `young`, `daily`, `weekly`, `monthly`, `future`, `unproven`, `paused`.
    Stays(&'static str),
    /// For people.
    Goes(String),
}

/// The fate of each copy of one database, in the order they are given in.
pub fn plan(copies: &[Known], keep: &Keep, now: SystemTime) -> Vec<Fate> {
    let is_ahead = |copy: &Known| copy.made > now + TOLERANCE;
    let mut order: Vec<usize> = (0..copies.len()).collect();
    // The newest first. Of two made at the same moment the good one counts as newer.
    order.sort_by_key(|place| copies.get(*place).map(|copy| std::cmp::Reverse((copy.made, copy.is_good))));
    let is_paused = copies.iter().any(is_ahead);
    let last = keep.last.max(1);
    let mut good = 0;
    let mut days = Calendar::new(keep.daily, |date| date);
    let mut weeks = Calendar::new(keep.weekly, monday);
    let mut months = Calendar::new(keep.monthly, Date::first_of_month);
    let mut fates = vec![Fate::Stays("paused"); copies.len()];
    for place in order {
        let (Some(copy), Some(fate)) = (copies.get(place), fates.get_mut(place)) else {
            continue;
        };
        if is_ahead(copy) {
            *fate = Fate::Stays("future");
            continue;
        }
        let newer_good = good;
        // Each list is told of every good copy, so that which rule keeps it changes nothing for the others.
        let (daily, weekly, monthly) = match date_of(copy.made) {
            Some(date) if copy.is_good => (days.takes(date), weeks.takes(date), months.takes(date)),
            _ => (false, false, false),
        };
        good += u32::from(copy.is_good);
        let age = now.duration_since(copy.made).unwrap_or_default();
        *fate = if copy.is_good && newer_good < last {
            Fate::Stays("last")
        } else if age < keep.younger_than {
            Fate::Stays("young")
        } else if daily {
            Fate::Stays("daily")
        } else if weekly {
            Fate::Stays("weekly")
        } else if monthly {
            Fate::Stays("monthly")
        } else if newer_good < last {
            Fate::Stays("unproven")
        } else if is_paused {
            Fate::Stays("paused")
        } else {
            let what = if copy.is_good { "" } else { ", not proven good" };
            Fate::Goes(format!("{} old, kept for {}{what}; {newer_good} newer good", span(age), span(keep.younger_than)))
        };
    }
    fates
}

/// The newest of so many days, weeks or months that have one.
struct Calendar {
    left: u32,
    period: fn(Date) -> Date,
    seen: BTreeSet<Date>,
}

impl Calendar {
    fn new(left: u32, period: fn(Date) -> Date) -> Calendar {
        Calendar { left, period, seen: BTreeSet::new() }
    }

    /// To be asked about the newest first.
    fn takes(&mut self, date: Date) -> bool {
        if self.left == 0 || !self.seen.insert((self.period)(date)) {
            return false;
        }
        self.left -= 1;
        true
    }
}

fn date_of(at: SystemTime) -> Option<Date> {
    let at = jiff::Timestamp::try_from(at).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).date())
}

fn monday(date: Date) -> Date {
    let back = date.weekday().to_monday_zero_offset();
    // The first days of what a date can be have no Monday before them.
    date.checked_sub(jiff::Span::new().days(i64::from(back))).unwrap_or(date)
}

/// `30 h`, `7 d`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86400;
    /// 2025-11-24T16:00:00Z, a Monday.
    const NOW: u64 = 1_764_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn good(made: u64) -> Known {
        Known { made: at(made), is_good: true }
    }

    fn keep(days: u64, last: u32) -> Keep {
        Keep { younger_than: Duration::from_secs(days * DAY), last, daily: 0, weekly: 0, monthly: 0 }
    }

    fn words(copies: &[Known], keep: &Keep) -> Vec<&'static str> {
        let word = |fate| match fate {
            Fate::Stays(word) => word,
            Fate::Goes(_) => "goes",
        };
        plan(copies, keep, at(NOW)).into_iter().map(word).collect()
    }

    #[test]
    fn what_is_old_goes_and_the_newest_good_ones_stay() {
        let nightly: Vec<Known> = (0..10).map(|night| good(NOW - night * DAY)).collect();
        let expected = ["last", "young", "young", "young", "young", "young", "young", "goes", "goes", "goes"];
        assert_eq!(words(&nightly, &keep(7, 1)), expected);
        let old: Vec<Known> = (30..33).map(|night| good(NOW - night * DAY)).collect();
        assert_eq!(words(&old, &keep(7, 1)), ["last", "goes", "goes"]);
        assert_eq!(words(&old, &keep(7, 2)), ["last", "last", "goes"]);
        assert_eq!(words(&old, &keep(7, 0)), ["last", "goes", "goes"]);
        let reason = plan(&old, &keep(7, 1), at(NOW)).pop().unwrap();
        assert_eq!(reason, Fate::Goes("32 d old, kept for 7 d; 2 newer good".into()));
    }

    #[test]
    fn failed_copies_never_age_out_the_last_that_worked() {
        let mut copies: Vec<Known> = (0..10).map(|night| Known { is_good: false, ..good(NOW - night * DAY) }).collect();
        copies.push(good(NOW - 20 * DAY));
        let mut expected = vec!["young"; 7];
        expected.extend(["unproven", "unproven", "unproven", "last"]);
        assert_eq!(words(&copies, &keep(7, 1)), expected);
        copies.insert(0, good(NOW));
        assert_eq!(words(&copies, &keep(7, 1))[8..], ["goes", "goes", "goes", "goes"]);
    }

    #[test]
    fn what_is_dated_in_the_future_stays_and_everything_with_it() {
        let copies = [good(NOW + DAY), good(NOW), good(NOW - 10 * DAY), good(NOW - 20 * DAY)];
        assert_eq!(words(&copies, &keep(7, 1)), ["future", "last", "paused", "paused"]);
        assert_eq!(words(&[good(NOW + 200), good(NOW - 10 * DAY)], &keep(7, 1)), ["last", "goes"]);
    }

    #[test]
    fn days_weeks_and_months_keep_their_newest() {
        // Two a day for a hundred days: at 16:00 and at 04:00.
        let copies: Vec<Known> = (0..200).map(|half| good(NOW - half * DAY / 2)).collect();
        let rules = Keep { daily: 3, weekly: 3, monthly: 3, ..keep(1, 1) };
        let fates = words(&copies, &rules);
        let of = |word: &str| -> Vec<u64> {
            fates.iter().enumerate().filter(|(_, fate)| **fate == word).map(|(place, _)| place as u64).collect()
        };
        assert_eq!(of("last"), [0]);
        assert_eq!(of("young"), [1]);
        // 24 November is kept by what is above; the newest of the 23rd and the 22nd.
        assert_eq!(of("daily"), [2, 4]);
        // The week of the 24th and the one that ended on Sunday the 23rd have theirs already; that of the 10th ended on the 16th.
        assert_eq!(of("weekly"), [16]);
        // October ended 24 days before; September 55.
        assert_eq!(of("monthly"), [2 * 24, 2 * 55]);
        assert_eq!(of("goes").len(), 200 - 7);
    }

    fn copies() -> impl Strategy<Value = Vec<Known>> {
        let copy = (0..100 * 24_u64, any::<bool>()).prop_map(|(hour, is_good)| Known { made: at(NOW + 5 * DAY - hour * 3600), is_good });
        proptest::collection::vec(copy, 0..30)
    }

    fn rules() -> impl Strategy<Value = Keep> {
        (0..40_u64, 0..5_u32, 0..4_u32, 0..4_u32, 0..4_u32).prop_map(|(days, last, daily, weekly, monthly)| Keep {
            daily,
            weekly,
            monthly,
            ..keep(days, last)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_newest_good_one_is_never_lost_and_a_second_run_finds_nothing(copies in copies(), rules in rules()) {
            let fates = plan(&copies, &rules, at(NOW));
            prop_assert_eq!(fates.len(), copies.len());
            let pairs: Vec<(Known, bool)> = copies.iter().copied().zip(fates.iter().map(|fate| matches!(fate, Fate::Stays(_)))).collect();
            let proven = |copy: &Known| copy.is_good && copy.made <= at(NOW);
            for (copy, _) in pairs.iter().filter(|(_, stays)| !stays) {
                let newer = pairs.iter().filter(|(other, stays)| *stays && proven(other) && other.made >= copy.made).count();
                prop_assert!(newer >= rules.last.max(1) as usize, "{copy:?} goes behind {newer}");
                prop_assert!(copy.made + rules.younger_than <= at(NOW));
            }
            let good = copies.iter().filter(|copy| proven(copy)).count();
            let kept = pairs.iter().filter(|(copy, stays)| *stays && proven(copy)).count();
            prop_assert!(kept >= good.min(rules.last.max(1) as usize));
            let left: Vec<Known> = pairs.iter().filter(|(_, stays)| *stays).map(|(copy, _)| *copy).collect();
            prop_assert!(plan(&left, &rules, at(NOW)).iter().all(|fate| matches!(fate, Fate::Stays(_))));
        }
    }
}
