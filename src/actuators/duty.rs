//! A closed-loop duty cycle: a worker runs until it has used its share of processor time, then is held until it has
//! earned some again. Pure: time and the worker's CPU clock are arguments.
//!
//! States: *running*, until the credit is used up; *held*, until a period's worth is earned again, but never longer than
//! `longest_stop` in one go. At first start the worker runs with no credit and is
//! judged by what it uses from then on.
//!
//! The control is on measured CPU time, not on wall slices: under contention a worker waits for a processor during its
//! slice, and an open loop of 30 % gave 16 % (notes: supervising, "SIGSTOP duty cycling must be closed-loop"). Below a
//! period of about 100 ms a pool of threads stops too late to be held (58 % instead of 25 % at 20 ms).

use std::time::Duration;

/// One turn of running and being held, unless the share is so small that it would be used up in less than
/// [`WORTHWHILE_RUN`]: a stop takes up to a tick of the kernel to reach every thread, and would then come too late each time.
pub const PERIOD: Duration = Duration::from_millis(100);
const WORTHWHILE_RUN: Duration = Duration::from_millis(10);
/// A worker that is let go only because it was held for `longest_stop` runs at least this long: one tick of the kernel.
const SHORTEST_RUN: Duration = Duration::from_millis(4);
/// A hold is planned to end so much before `longest_stop`: whoever has to end it wakes up a little late. At most a tenth
/// of the stop.
const WAKE_UP: Duration = Duration::from_millis(5);
/// What is earned while it is held is its own up to so many seconds' worth, however late it is let go.
const EARNED: f64 = 1.0;
/// Overdraft is worked off for as long as it would take this much time to earn it; what is beyond is forgiven, so that a
/// worker that was once unstoppable is not starved for minutes.
const DEBT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Run,
    Stop,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Duty {
    /// Cores.
    rate: f64,
    longest_stop: Duration,
    /// Core seconds.
    credit: f64,
    at: Duration,
    cpu: Duration,
    hold: Hold,
    /// When the present hold began.
    since: Duration,
    /// Cores it uses while it runs.
    speed: f64,
    /// Until then it runs even without credit.
    run_until: Duration,
    held_total: Duration,
}

impl Duty {
    /// `cpu` is the worker's CPU clock at `now`; it runs.
    pub fn new(rate: f64, longest_stop: Duration, now: Duration, cpu: Duration) -> Duty {
        Duty {
            rate,
            longest_stop,
            credit: 0.0,
            at: now,
            cpu,
            hold: Hold::Run,
            since: now,
            speed: 1.0_f64.max(rate),
            run_until: now,
            held_total: Duration::ZERO,
        }
    }

    /// Changes the share; what was used so far stays counted.
    pub fn set_rate(&mut self, rate: f64, longest_stop: Duration) {
        self.rate = rate;
        self.longest_stop = longest_stop;
    }

    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// Time it was held in all.
    pub fn held_total(&self) -> Duration {
        self.held_total
    }

    /// Looks at the worker's CPU clock and says what is to be done now, and when to look again at the latest.
    pub fn step(&mut self, now: Duration, cpu: Duration) -> (Hold, Duration) {
        let passed = now.saturating_sub(self.at);
        let used = cpu.saturating_sub(self.cpu).as_secs_f64();
        (self.at, self.cpu) = (now, cpu.max(self.cpu));
        let period = self.period();
        let earned = self.rate * passed.as_secs_f64();
        // A worker that does not want its share cannot save it up; one that is held, or was a moment ago, loses nothing.
        let most = match self.hold {
            Hold::Run => self.credit.max(self.rate * period),
            Hold::Stop => self.rate * EARNED.max(period),
        };
        self.credit = (self.credit + earned - used).clamp(-self.rate * DEBT.as_secs_f64() - period, most);
        match self.hold {
            Hold::Run => {
                if passed >= Duration::from_millis(1) {
                    self.speed = 0.5 * self.speed + 0.5 * (used / passed.as_secs_f64());
                }
                if self.credit <= 0.0 && now >= self.run_until && now > self.since {
                    self.hold = Hold::Stop;
                    self.since = now;
                }
            }
            Hold::Stop => {
                self.held_total += passed;
                let held = now.saturating_sub(self.since);
                if self.credit >= self.enough() {
                    self.hold = Hold::Run;
                    self.since = now;
                    self.run_until = now;
                } else if held >= self.longest_hold() {
                    self.hold = Hold::Run;
                    self.since = now;
                    self.run_until = now + SHORTEST_RUN.min(self.longest_stop);
                }
            }
        }
        (self.hold, now + self.look_again(now))
    }

    /// When a hold is to end at the latest, so that it has ended when `longest_stop` is over.
    fn longest_hold(&self) -> Duration {
        self.longest_stop - WAKE_UP.min(self.longest_stop / 10)
    }

    /// Seconds of one turn.
    fn period(&self) -> f64 {
        let longest = self.longest_stop.max(PERIOD).as_secs_f64();
        (WORTHWHILE_RUN.as_secs_f64() * self.speed / self.rate.max(1e-6)).clamp(PERIOD.as_secs_f64(), longest)
    }

    /// The credit at which a held worker goes on, so that a turn lasts one period: what is earned in the part of it in
    /// which it is held.
    fn enough(&self) -> f64 {
        let speed = self.speed.max(self.rate).max(0.05);
        (self.rate * self.period() * (1.0 - self.rate / speed)).max(self.rate * 0.005)
    }

    fn look_again(&self, now: Duration) -> Duration {
        let seconds = match self.hold {
            Hold::Run => {
                let drain = self.speed.max(0.05) - self.rate;
                if drain <= 0.0 { PERIOD.as_secs_f64() } else { self.credit.max(0.0) / drain }
            }
            Hold::Stop => (self.enough() - self.credit) / self.rate.max(1e-6),
        };
        let wanted = if seconds.is_finite() { Duration::from_secs_f64(seconds.clamp(0.001, PERIOD.as_secs_f64())) } else { PERIOD };
        match self.hold {
            Hold::Run => wanted.max(self.run_until.saturating_sub(now)),
            // Never past the longest stop.
            Hold::Stop => wanted.min((self.since + self.longest_hold()).saturating_sub(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A machine that gives a running worker `cores`, and whose looks come up to `late` after they were wanted.
    fn simulate(rate: f64, longest_stop: Duration, cores: impl Fn(Duration) -> f64, late: Duration, length: Duration) -> (f64, Duration) {
        let mut now = Duration::from_secs(1);
        let end = now + length;
        let mut cpu = 0.0;
        let mut duty = Duty::new(rate, longest_stop, now, Duration::ZERO);
        let (mut hold, mut next) = duty.step(now, Duration::ZERO);
        let (mut stop, mut longest) = (Duration::ZERO, Duration::ZERO);
        let mut turn = 0_u32;
        while now < end {
            turn += 1;
            let to = next + late.mul_f64(f64::from(turn % 3) / 2.0);
            if hold == Hold::Run {
                cpu += cores(now) * (to - now).as_secs_f64();
                stop = Duration::ZERO;
            } else {
                stop += to - now;
                longest = longest.max(stop);
            }
            now = to;
            (hold, next) = duty.step(now, Duration::from_secs_f64(cpu));
        }
        (cpu / length.as_secs_f64(), longest)
    }

    #[test]
    fn a_burning_worker_gets_its_share() {
        for (rate, cores) in [(0.25, 1.0), (0.25, 4.0), (0.8, 1.0), (1.6, 2.0), (0.05, 2.0), (0.5, 0.6)] {
            let (used, longest) = simulate(rate, Duration::from_millis(250), |_| cores, Duration::ZERO, Duration::from_secs(10));
            assert!((used - rate).abs() < 0.01, "{rate} of {cores}: {used}");
            assert!(longest <= Duration::from_millis(252), "{longest:?}");
        }
    }

    #[test]
    fn a_worker_that_wants_less_is_never_held_for_long() {
        let (used, longest) = simulate(0.5, Duration::from_millis(250), |_| 0.3, Duration::ZERO, Duration::from_secs(10));
        assert!((used - 0.3).abs() < 0.01, "{used}");
        assert!(longest < Duration::from_millis(10), "{longest:?}");
    }

    #[test]
    fn late_looks_are_worked_off() {
        let (used, _) = simulate(0.25, Duration::from_millis(250), |_| 2.0, Duration::from_millis(12), Duration::from_secs(20));
        assert!((used - 0.25).abs() < 0.02, "{used}");
    }

    proptest! {
        #[test]
        fn no_stop_is_longer_than_the_longest_and_no_look_is_endless(
            rate in 0.001_f64..8.0, cores in 0.0_f64..64.0, longest_ms in 10_u64..2000, late_ms in 0_u64..30,
        ) {
            let longest_stop = Duration::from_millis(longest_ms);
            let late = Duration::from_millis(late_ms);
            let (_, longest) = simulate(rate, longest_stop, |_| cores, late, Duration::from_secs(3));
            prop_assert!(longest <= longest_stop.max(longest_stop - WAKE_UP.min(longest_stop / 10) + late), "{:?}", longest);
        }

        #[test]
        fn no_hold_outlasts_the_longest_whatever_comes_when(
            looks in proptest::collection::vec((0_u64..400, 0.0_f64..4.0, 0.001_f64..4.0), 1..200), longest_ms in 10_u64..1000,
        ) {
            let longest_stop = Duration::from_millis(longest_ms);
            let mut now = Duration::from_secs(1);
            let mut cpu = 0.0;
            let mut duty = Duty::new(1.0, longest_stop, now, Duration::ZERO);
            let (mut hold, mut next) = duty.step(now, Duration::ZERO);
            let mut since = now;
            for (late_ms, cores, rate) in looks {
                // A look is asked for before the hold has to end, and one that comes then or later ends it.
                prop_assert!(next >= now && (hold == Hold::Run || next <= since + longest_stop), "{:?} {:?} {:?}", now, next, since);
                let to = next + Duration::from_millis(late_ms);
                cpu += if hold == Hold::Run { cores * (to - now).as_secs_f64() } else { 0.0 };
                now = to;
                duty.set_rate(rate, longest_stop);
                let was = hold;
                (hold, next) = duty.step(now, Duration::from_secs_f64(cpu));
                prop_assert!(was == Hold::Run || hold == Hold::Run || now < since + longest_stop, "{:?} {:?}", now, since);
                since = if was == hold { since } else { now };
            }
        }

        #[test]
        fn the_share_is_kept_whatever_the_machine_gives(rate in 0.1_f64..1.5, cores in 0.2_f64..8.0) {
            let (longest_stop, late) = (Duration::from_millis(250), Duration::from_millis(2));
            let (used, _) = simulate(rate, longest_stop, |_| cores, late, Duration::from_secs(10));
            // A stop that may not be longer cannot hold a worker to less than its shortest run on all those processors.
            let least = cores * (SHORTEST_RUN + late).as_secs_f64() / (longest_stop - WAKE_UP).as_secs_f64();
            prop_assert!(used <= rate.max(least) + 0.03, "{} of {}", used, rate);
            prop_assert!(used >= rate.min(cores) - 0.05, "{} of {}", used, rate);
        }
    }
}
