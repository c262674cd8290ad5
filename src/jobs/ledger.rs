//! What the state database tells of a job at the start: up to where everything is dealt with, whether its last run was interrupted, and
//! whether the clock can be trusted. Pure.

use std::time::{Duration, SystemTime};

use super::queue::{Cause, Past};
use crate::host::clock::Moment;
use crate::snapshot::jobs::JobRun;

/// A wall clock that has moved by more than this against the steady one was set.
const JUMP: f64 = 60.0;
/// A machine that says nobody was here for longer than this is asked to prove it: nothing is deleted by age in the first run.
const LONGEST_OFF: f64 = 30.0 * 86_400.0;
/// This program is not older: a clock before that is wrong. 1 November 2026.
const BUILT_AFTER: f64 = 1_793_491_200.0;

/// `mark` and `runs`, the latest first, as they were written down; `alive` is the last sign of life of any daemon, in seconds since
/// 1970; `boot` names this start of the machine.
pub fn past(mark: Option<f64>, runs: &[JobRun], alive: Option<f64>, now: Moment, boot: Option<&str>) -> Past {
    let interrupted = runs.first().filter(|run| (run.ended.is_none() || run.interrupted) && !run.dry_run);
    let cause = |run: &JobRun| Some((Cause::of_word(&run.cause)?, run.due.and_then(time)));
    Past {
        mark: mark.and_then(time),
        interrupted: interrupted.and_then(cause),
        clock_jumped: now.unix_seconds() < BUILT_AFTER
            || runs.iter().find(|run| !run.dry_run).is_some_and(|run| has_jumped(run, alive, now, boot)),
    }
}

fn has_jumped(run: &JobRun, alive: Option<f64>, now: Moment, boot: Option<&str>) -> bool {
    let since = now.unix_seconds() - run.started;
    if boot.is_some() && run.boot.as_deref() == boot {
        let steady = now.steady.as_secs_f64() - run.started_steady;
        return (since - steady).abs() > JUMP;
    }
    // A job that runs once a month, or when a disk is full, says nothing about how long nobody was here.
    let silent = alive.map_or(since, |alive| since.min(now.unix_seconds() - alive));
    since < 0.0 || silent > LONGEST_OFF
}

/// Seconds since 1970 as a moment of the wall clock; `None` for what is none.
pub fn time(seconds: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

/// The other way round.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::schedule::tests::at;

    #[test]
    fn what_is_known_at_the_start() {
        let now = Moment { steady: Duration::from_secs(5000), wall: at("2026-12-01T12:00:00Z") };
        let wall = seconds(now.wall);
        let run = |started: f64, boot: &str, steady: f64| JobRun {
            cause: "schedule".into(),
            due: Some(wall - 100.0),
            started,
            started_steady: steady,
            boot: Some(boot.into()),
            ended: Some(started + 1.0),
            ..JobRun::default()
        };
        let jumped = |run: JobRun| past(None, &[run], None, now, Some("this")).clock_jumped;
        assert_eq!(past(None, &[], None, now, Some("this")), Past::default());
        let cases = [
            ("the same start, the clocks agree", run(wall - 1000.0, "this", 4000.0), false),
            ("slewed a little", run(wall - 1030.0, "this", 4000.0), false),
            ("set ahead", run(wall - 1000.0 - 86_400.0, "this", 4000.0), true),
            ("set back", run(wall - 1000.0 + 86_400.0, "this", 4000.0), true),
            ("three days off", run(wall - 3.0 * 86_400.0, "other", 9.0), false),
            ("in the future", run(wall + 10.0, "other", 9.0), true),
            ("off for a year", run(wall - 365.0 * 86_400.0, "other", 9.0), true),
        ];
        for (name, run, expected) in cases {
            assert_eq!(jumped(run), expected, "{name}");
        }
        let early = Moment { wall: at("2020-01-01T00:00:00Z"), ..now };
        assert!(past(None, &[], None, early, None).clock_jumped, "before this program was made");

        let killed = JobRun { ended: None, ..run(wall - 1000.0, "this", 4000.0) };
        let known = past(Some(wall - 100.0), &[killed.clone(), run(wall - 2000.0, "this", 3000.0)], None, now, Some("this"));
        assert_eq!(known.mark, time(wall - 100.0));
        assert_eq!(known.interrupted, Some((Cause::Schedule, time(wall - 100.0))));
        let later = past(None, &[run(wall - 500.0, "this", 4500.0), killed.clone()], None, now, Some("this"));
        assert_eq!(later.interrupted, None, "one that came after it has done its work");
        assert_eq!(past(None, &[JobRun { dry_run: true, ..killed.clone() }], None, now, Some("this")).interrupted, None);
        let told_to = JobRun { ended: Some(wall - 900.0), interrupted: true, ..killed };
        let known = past(None, &[told_to], None, now, Some("this"));
        assert_eq!(known.interrupted, Some((Cause::Schedule, time(wall - 100.0))), "the daemon ended, and its run with it");
        let monthly = |alive: f64| past(None, &[run(wall - 45.0 * 86_400.0, "other", 9.0)], Some(alive), now, Some("this")).clock_jumped;
        assert!(!monthly(wall - 3600.0) && monthly(wall - 44.0 * 86_400.0), "it is long ago, but somebody was here");
        assert_eq!((time(f64::NAN), time(-1.0), time(f64::INFINITY)), (None, None, None));
    }
}
