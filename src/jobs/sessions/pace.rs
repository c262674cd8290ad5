//! How much one transaction may do. What it holds is the write lock of somebody else's database, from the begin to the end
//! of the commit, and the promise is `longest_lock`. The time a commit takes is not ours to choose, so what it took last
//! time is set aside, and rows are deleted for the rest.

use std::time::Duration;

/// The part of the promise that is used for deleting however slow commits are: less than this would never come to an end.
const LEAST_SHARE: u32 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    longest: Duration,
    /// What a commit is expected to take.
    commit: Duration,
    /// What deleting one row is expected to take.
    row: Duration,
    longest_held: Duration,
}

impl Pace {
    /// The first guesses are those of a small server's disk.
    pub fn new(longest: Duration) -> Pace {
        Pace { longest, commit: longest / 2, row: Duration::from_micros(20), longest_held: Duration::ZERO }
    }

    /// How long a transaction may work before it commits.
    pub fn work(&self) -> Duration {
        self.longest.saturating_sub(self.commit).max(self.longest / LEAST_SHARE)
    }

    /// True when so many rows more still fit into a transaction that has been at work for `spent`. The first always fit: a
    /// session is deleted as a whole, however large it is.
    pub fn fits(&self, spent: Duration, rows: u64) -> bool {
        let more = self.row.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX));
        spent.saturating_add(more) <= self.work()
    }

    /// Learns from a finished transaction.
    pub fn note(&mut self, worked: Duration, rows: u64, committed: Duration) {
        // Up at once, down slowly: a promise is kept for the slow commits, not for the usual ones.
        self.commit = if committed > self.commit { committed } else { (self.commit * 7 + committed) / 8 };
        if let Ok(rows) = u32::try_from(rows)
            && rows > 0
        {
            self.row = (self.row * 3 + worked / rows) / 4;
        }
        self.longest_held = self.longest_held.max(worked.saturating_add(committed));
    }

    /// The longest the lock was held so far.
    pub fn longest_held(&self) -> Duration {
        self.longest_held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn slow_commits_leave_less_for_deleting_and_never_nothing() {
        let mut pace = Pace::new(10 * MS);
        assert_eq!(pace.work(), 5 * MS);
        pace.note(5 * MS, 100, 8 * MS);
        assert_eq!(pace.work(), 2 * MS);
        pace.note(2 * MS, 100, 40 * MS);
        assert_eq!((pace.work(), pace.longest_held()), (10 * MS / 8, 42 * MS));
        for _ in 0..40 {
            pace.note(MS, 100, MS);
        }
        assert!(pace.work() > 8 * MS, "{pace:?}");
    }

    #[test]
    fn what_a_row_takes_is_learnt() {
        let mut pace = Pace::new(10 * MS);
        assert!(pace.fits(Duration::ZERO, 250) && !pace.fits(Duration::ZERO, 251));
        for _ in 0..20 {
            pace.note(5 * MS, 1000, MS);
        }
        assert!(pace.fits(Duration::ZERO, 1500) && !pace.fits(Duration::ZERO, 2000), "{pace:?}");
        assert!(!pace.fits(9 * MS, 1) && !pace.fits(Duration::ZERO, u64::MAX));
    }

    /// Against a machine on which a row takes 5 µs and a commit 3 ms, sessions of 100 rows: the promise is kept, and nearly
    /// all of it is used.
    #[test]
    fn the_promise_is_kept_and_used() {
        let mut pace = Pace::new(10 * MS);
        let (mut held, mut rows) = (Duration::ZERO, 0);
        for _ in 0..50 {
            let (mut spent, mut now) = (Duration::ZERO, 0);
            while now == 0 || pace.fits(spent, 100) {
                spent += Duration::from_micros(500);
                now += 100;
            }
            pace.note(spent, now, 3 * MS);
            (held, rows) = (spent + 3 * MS, now);
        }
        assert!(held <= 10 * MS && rows >= 1200, "{held:?} {rows}");
        assert!(pace.longest_held() <= 10 * MS);
    }
}
