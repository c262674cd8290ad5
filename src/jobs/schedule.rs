//! When a job is due: a cron expression in the job's own time zone. Pure; time is an argument.
//!
//! A due moment has two faces: `nominal`, as the schedule names it, and `at`, later by the jitter, when the run begins. Order between
//! jobs goes by the nominal one, so that jitter never puts the second before the first. On the day the clock goes forward what falls
//! into the gap is due at its end; on the day it goes back what is there twice is due once, unless the expression asks for every
//! hour or minute (croner).

use std::time::{Duration, SystemTime};

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use sha2::{Digest, Sha256};

use crate::config::jobs::{Job, read_schedule, zone_named};

/// More missed runs than this are not counted.
const MOST_COUNTED: u32 = 1000;

#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    offset: Duration,
}

/// One moment at which a job is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// As the schedule names it.
    pub nominal: SystemTime,
    /// With the jitter of this host.
    pub at: SystemTime,
}

/// The last of the moments that were let pass, and how many they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    pub last: Due,
    pub count: u32,
}

impl Schedule {
    /// `None` for a job that has none; `host` is what tells this machine from others.
    ///
    /// # Errors
    /// An expression or a zone that cannot be used (any more): settings are checked, but the machine's zones may go.
    pub fn of(job: &Job, host: &str) -> Result<Option<Schedule>, String> {
        let Some(text) = &job.schedule else { return Ok(None) };
        let Some(cron) = read_schedule(text)? else { return Ok(None) };
        let zone = match &job.timezone {
            Some(name) => zone_named(name).map_err(|error| format!("the time zone {name:?} cannot be used: {error}"))?,
            None => TimeZone::system(),
        };
        Ok(Some(Schedule { cron, zone, offset: offset(host, &job.name, job.jitter) }))
    }

    /// The first moment whose nominal time is after `after`; `None` when there is none any more.
    pub fn next_after(&self, after: SystemTime) -> Option<Due> {
        let from = self.zoned(after)?;
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        let nominal = SystemTime::from(next.timestamp());
        // A zone that leaps must not make a moment come again and again.
        let nominal = (nominal > after).then_some(nominal)?;
        Some(Due { nominal, at: nominal.checked_add(self.offset)? })
    }

    /// What was due with a nominal time after `after` and, with the jitter, not after `now`.
    pub fn passed(&self, after: SystemTime, now: SystemTime) -> Option<Passed> {
        let mut last = self.next_after(after).filter(|due| due.at <= now)?;
        let mut count = 1;
        while let Some(next) = self.next_after(last.nominal).filter(|due| due.at <= now) {
            count += 1;
            last = next;
            if count >= MOST_COUNTED {
                // Of many years by the second only the last counts.
                let before = self.zoned(now.checked_sub(self.offset)?)?;
                let nearest = self.cron.find_previous_occurrence(&before, true).ok().map(|found| SystemTime::from(found.timestamp()));
                if let Some(nominal) = nearest.filter(|nominal| *nominal > last.nominal && *nominal <= now) {
                    last = Due { nominal, at: nominal.checked_add(self.offset)? };
                }
                break;
            }
        }
        Some(Passed { last, count })
    }

    fn zoned(&self, time: SystemTime) -> Option<Zoned> {
        Timestamp::try_from(time).ok().map(|time| time.to_zoned(self.zone.clone()))
    }
}

/// Always the same on one host for one job: a share of `jitter`, in whole milliseconds.
fn offset(host: &str, job: &str, jitter: Duration) -> Duration {
    let digest = Sha256::new().chain_update(host.as_bytes()).chain_update([0]).chain_update(job.as_bytes()).finalize();
    let drawn = digest.iter().take(8).fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
    let millis = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if millis == 0 { 0 } else { drawn % millis })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::jobs::queue::tests::job;

    pub fn at(text: &str) -> SystemTime {
        text.parse::<Timestamp>().unwrap().into()
    }

    fn schedule(expression: &str, zone: &str, jitter: u64) -> Schedule {
        let job = Job {
            schedule: Some(expression.to_owned()),
            timezone: Some(zone.to_owned()),
            jitter: Duration::from_secs(jitter),
            ..job("x", &[])
        };
        Schedule::of(&job, "host").unwrap().unwrap()
    }

    fn next(expression: &str, zone: &str, after: &str) -> String {
        let due = schedule(expression, zone, 0).next_after(at(after)).unwrap();
        Timestamp::try_from(due.nominal).unwrap().to_string()
    }

    #[test]
    fn both_days_on_which_the_clock_is_changed() {
        let berlin = "Europe/Berlin";
        let cases = [
            // 29 March 2026: 02:00 becomes 03:00 (01:00Z). What falls into the gap is due at its end.
            ("0 3 * * *", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            ("30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            ("0 3 * * *", "2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"),
            // 25 October 2026: 03:00 becomes 02:00 (01:00Z). Once, not twice.
            ("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
            ("0 3 * * *", "2026-10-24T12:00:00Z", "2026-10-25T02:00:00Z"),
            // Every hour is every hour.
            ("@hourly", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"),
            ("@hourly", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
            ("*/10 * * * * *", "2026-10-25T00:59:55Z", "2026-10-25T01:00:00Z"),
            ("@daily", "2026-06-01T00:00:00Z", "2026-06-01T22:00:00Z"),
        ];
        for (expression, after, expected) in cases {
            assert_eq!(next(expression, berlin, after), expected, "{expression} after {after}");
        }
    }

    #[test]
    fn jitter_is_the_same_each_day_and_another_on_another_host() {
        let one = schedule("0 3 * * *", "UTC", 3600);
        let (first, second) = (one.next_after(at("2026-01-01T00:00:00Z")).unwrap(), one.next_after(at("2026-01-01T03:00:00Z")).unwrap());
        let late = |due: Due| due.at.duration_since(due.nominal).unwrap();
        assert_eq!(late(first), late(second));
        assert!(late(first) < Duration::from_secs(3600));
        let hosts: std::collections::BTreeSet<Duration> =
            (0..50).map(|host| offset(&host.to_string(), "x", Duration::from_secs(3600))).collect();
        assert!(hosts.len() > 45, "{}", hosts.len());
        assert_eq!(offset("a", "x", Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn what_was_missed_is_counted_and_told_by_the_last() {
        let daily = schedule("0 3 * * *", "UTC", 0);
        let passed = daily.passed(at("2026-01-01T03:00:00Z"), at("2026-01-04T12:00:00Z")).unwrap();
        assert_eq!((passed.count, passed.last.nominal), (3, at("2026-01-04T03:00:00Z")));
        assert_eq!(daily.passed(at("2026-01-01T03:00:00Z"), at("2026-01-02T02:59:59Z")), None);
        let often = schedule("* * * * * *", "UTC", 0);
        let passed = often.passed(at("2006-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!((passed.count, passed.last.nominal), (MOST_COUNTED, at("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn a_day_that_never_comes_is_refused() {
        let never = Job { schedule: Some("0 0 30 2 *".to_owned()), ..job("x", &[]) };
        assert_eq!(Schedule::of(&never, "host").unwrap_err(), "names a moment that never comes");
    }

    proptest! {
        #[test]
        fn the_next_is_always_later_and_jitter_never_changes_the_order(
            expression in prop::sample::select(vec!["0 3 * * *", "@hourly", "*/7 * * * *", "30 2 * * 0", "15 30 2 * * *", "@monthly"]),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
            seconds in 1_700_000_000_u64..1_900_000_000,
            jitter in 0_u64..86_400,
        ) {
            let schedule = schedule(expression, zone, jitter);
            let mut after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let mut last_at = None;
            for _ in 0..20 {
                let due = schedule.next_after(after).unwrap();
                prop_assert!(due.nominal > after && due.at >= due.nominal);
                prop_assert!(last_at.is_none_or(|last| due.at > last));
                (after, last_at) = (due.nominal, Some(due.at));
            }
        }
    }
}
