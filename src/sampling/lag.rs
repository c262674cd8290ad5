//! Memory that a group is charged for and that its account does not list yet: owns how much of it cannot be given back.
//! Touches only its arguments, time among them. Must not read.
//!
//! What is charged (`memory.current`) is exact at every moment. What it is made of (`memory.stat`) is a sum over processors
//! that the kernel brings up to date for whoever reads it, and does not always: on Linux 6.18 one fill in fifteen was seen to
//! go on for half a second, 90 MB at 200 MB/s, while `memory.stat` stood still; another time 320 MB were not in it two seconds
//! after they had been taken. So what is charged beyond what is listed is looked at too. It may as well be file cache, which
//! is no reason to act: counted is only what the processes themselves say they have grown by (`statm`) since the account was
//! last in order.

use std::time::Duration;

use crate::host::clock::Moment;

/// What is always charged and not listed (a processor's advance, caches of the kernel) is the least that was seen for one to
/// two of these.
const MEMORY: Duration = Duration::from_secs(30);
/// Bytes beyond that which are no lag: each processor is charged in advance.
const TOLERATED: u64 = 2 << 20;

#[derive(Debug, Default)]
pub(super) struct Lag {
    /// The least in this span and in the one before.
    least: [Option<u64>; 2],
    span: u128,
    /// What the processes had when the account was last in order; `None`: it is.
    since: Option<u64>,
}

/// What the processes of a group have that is in no file, in bytes.
pub(super) struct Processes<F> {
    /// As of the last look at them.
    pub before: u64,
    /// Asks them again.
    pub now: F,
}

impl Lag {
    /// Whether it stood still when it was last asked about.
    pub fn is_lagging(&self) -> bool {
        self.since.is_some()
    }

    /// How much of what is charged and not listed (`unlisted`, in bytes) cannot be given back. The processes are only asked
    /// while the account lags.
    pub fn missing(&mut self, now: Moment, unlisted: u64, processes: Processes<impl FnOnce() -> u64>) -> u64 {
        let span = now.steady.as_nanos() / MEMORY.as_nanos();
        if span != self.span {
            self.least = [None, self.least[0].filter(|_| span == self.span + 1)];
            self.span = span;
        }
        let least = self.least[0].map_or(unlisted, |least| least.min(unlisted));
        self.least[0] = Some(least);
        let usual = self.least[1].map_or(least, |before| before.min(least));
        let excess = unlisted.saturating_sub(usual).saturating_sub(TOLERATED);
        if excess == 0 {
            self.since = None;
            return 0;
        }
        let since = *self.since.get_or_insert(processes.before);
        excess.min((processes.now)().saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const MIB: u64 = 1 << 20;

    fn at(milliseconds: u64) -> Moment {
        Moment { steady: Duration::from_millis(milliseconds), wall: SystemTime::UNIX_EPOCH }
    }

    /// One look: what is unlisted, what the processes had at the look before and have now, all in MiB.
    fn look(lag: &mut Lag, milliseconds: u64, unlisted: u64, before: u64, now: u64) -> u64 {
        lag.missing(at(milliseconds), unlisted * MIB, Processes { before: before * MIB, now: || now * MIB }) / MIB
    }

    #[test]
    fn what_processes_have_grown_by_while_the_account_stood_still_is_counted() {
        let mut lag = Lag::default();
        assert_eq!(look(&mut lag, 0, 5, 0, 300), 0);
        assert_eq!(look(&mut lag, 20, 6, 300, 301), 0, "each processor is charged in advance");
        assert_eq!((look(&mut lag, 40, 11, 301, 306), lag.is_lagging()), (4, true), "here it begins");
        assert_eq!(look(&mut lag, 60, 15, 306, 310), 8);
        assert_eq!(look(&mut lag, 400, 95, 310, 390), 88);
        assert_eq!((look(&mut lag, 420, 5, 390, 394), lag.is_lagging()), (0, false), "it has caught up");
        // A file is written meanwhile, and nobody grows.
        assert_eq!(look(&mut lag, 440, 105, 394, 394), 0);
        assert_eq!(look(&mut lag, 460, 205, 394, 395), 1);
    }

    #[test]
    fn all_of_a_fill_between_two_looks_is_counted() {
        let mut lag = Lag::default();
        look(&mut lag, 0, 2, 0, 15);
        assert_eq!(look(&mut lag, 2000, 322, 15, 337), 318);
    }

    #[test]
    fn what_stays_unlisted_is_the_usual_after_a_while() {
        let mut lag = Lag::default();
        assert_eq!(look(&mut lag, 0, 0, 100, 100), 0);
        assert_eq!(look(&mut lag, 10_000, 50, 100, 100), 0);
        assert_eq!(look(&mut lag, 20_000, 50, 100, 130), 30);
        assert_eq!(look(&mut lag, 40_000, 50, 130, 130), 30);
        assert_eq!(look(&mut lag, 70_000, 50, 130, 130), 0, "the kernel keeps something of which the account has no line");
    }

    proptest! {
        #[test]
        fn never_more_than_is_not_listed_and_never_more_than_was_grown(steps in proptest::collection::vec((0u64..40_000, any::<u64>(), any::<u64>()), 0..100)) {
            let (mut lag, mut at_ms, mut least, mut before) = (Lag::default(), 0, u64::MAX, 0);
            for (gap, unlisted, anonymous) in steps {
                at_ms += gap;
                least = least.min(before).min(anonymous);
                let missing = lag.missing(at(at_ms), unlisted, Processes { before, now: || anonymous });
                prop_assert!(missing <= unlisted && missing <= anonymous.saturating_sub(least));
                before = anonymous;
            }
        }
    }
}
