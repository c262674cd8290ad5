//! The states of one copy of a replica and what moves between them, as a pure table. Which copies a replica has, and what is asked
//! of them together, is in [`super::slot`].
//!
//! ```text
//!            spawned               ready                exited                  nothing left
//! Waiting ───────────▶ Starting ───────▶ Running ──────────────▶ Clearing ─────────────────▶ Waiting (at once) | Backoff
//!    ▲                    │ not ready in time, or stop │            ▲                          | Stopped | Failed
//!    │ due                ▼                            ▼   exited   │
//! Backoff ◀─ not spawned  Stopping ◀───────────────────┴────────────┘   a stop overtakes everything: from any state to Stopped
//! ```
//!
//! At first start a copy is `Waiting` and due at once, or when what its worker comes `after` is ready. Without a check of
//! readiness it passes through `Starting` in no time. `Clearing` lasts until no descendant of the ended process is left:
//! survivors are asked to end, then killed at the deadline. A replica that had been healthy (up for `backoff.healthy_after`),
//! and the first to end early, is replaced at once; from then on each early end doubles the delay, and too many ends within the
//! backoff's window are a crash loop: `Failed`, visible and never silent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::{Backoff, Restart};

/// What survives its parent is given this long between the polite signal and the kill (or what is left of
/// `stop.within`, if that is less).
pub const SURVIVORS_WITHIN: Duration = Duration::from_secs(2);

/// Times are on the steady clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// To be started as soon as it is due (at once, unless what it comes after is not up).
    Waiting,
    /// Its program runs and is not ready yet.
    Starting {
        since: Duration,
        /// Ended if it is not ready by then.
        ready_by: Duration,
    },
    /// Ready.
    Running {
        since: Duration,
        /// A check has shown it: else nothing more is known than that its program runs.
        checked: bool,
    },
    /// Asked to end; killed at the deadline.
    Stopping {
        purpose: Purpose,
        kill_at: Duration,
        killed: bool,
    },
    /// The process has ended, descendants of it have not.
    Clearing {
        next: Next,
        kill_at: Duration,
        killed: bool,
    },
    Backoff {
        until: Duration,
    },
    /// A crash loop: not started again by itself.
    Failed,
    /// Asked to be down, or ended and not to be restarted.
    Stopped,
}

impl State {
    /// The label values of `plimsoll_worker_replicas{state}`; `throttled` is a running replica that is held back.
    pub const WORDS: [&'static str; 10] =
        ["waiting", "starting", "ready", "running", "throttled", "draining", "stopping", "backoff", "failed", "stopped"];

    pub fn word(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting { .. } => "starting",
            State::Running { checked: true, .. } => "ready",
            State::Running { .. } => "running",
            State::Stopping { purpose: Purpose::Replace | Purpose::GiveWay, .. } => "draining",
            State::Stopping { .. } | State::Clearing { .. } => "stopping",
            State::Backoff { .. } => "backoff",
            State::Failed => "failed",
            State::Stopped => "stopped",
        }
    }

    /// Its process was started and was not asked to end.
    pub fn is_up(self) -> bool {
        matches!(self, State::Starting { .. } | State::Running { .. })
    }

    /// When this state wants to be looked at again without anything happening.
    pub fn deadline(self) -> Option<Duration> {
        match self {
            State::Waiting => Some(Duration::ZERO),
            State::Starting { ready_by, .. } => Some(ready_by),
            State::Backoff { until } => Some(until),
            State::Stopping { kill_at, killed: false, .. } => Some(kill_at),
            State::Clearing { .. } | State::Running { .. } | State::Stopping { .. } | State::Failed | State::Stopped => None,
        }
    }
}

/// Why a copy is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To stay down.
    Down,
    /// To be replaced at once.
    Replace,
    /// Its replacement is there already.
    GiveWay,
    /// It did not get ready in time: what follows is decided as for one that failed by itself.
    Retry,
}

/// Where a replica goes once nothing of its last life is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    StartAt(Duration),
    Failed,
    Stopped,
}

/// The ends of earlier lives, which decide on delay and giving up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Ends without a healthy life between them.
    pub early_ends: u32,
    /// When lives ended by themselves, oldest first, within the backoff's window.
    pub ends: Vec<Duration>,
}

/// What is to follow the end of a life nobody asked for. `spread` (0 to 1) moves the delay by up to a tenth, so that
/// replicas that fell together do not rise together.
pub fn after_end(
    restart: Restart,
    backoff: &Backoff,
    history: &mut History,
    clean: bool,
    uptime: Duration,
    now: Duration,
    spread: f64,
) -> Next {
    match restart {
        Restart::Never => return Next::Stopped,
        Restart::OnFailure if clean => return Next::Stopped,
        Restart::Always | Restart::OnFailure => {}
    }
    history.ends.retain(|end| now.saturating_sub(*end) < backoff.within);
    history.ends.push(now);
    if history.ends.len() > usize::try_from(backoff.give_up).unwrap_or(usize::MAX) {
        return Next::Failed;
    }
    if uptime >= backoff.healthy_after {
        history.early_ends = 0;
        return Next::StartAt(now);
    }
    history.early_ends = history.early_ends.saturating_add(1);
    match history.early_ends {
        1 => Next::StartAt(now),
        again => Next::StartAt(now + delay(backoff, again - 1, spread)),
    }
}

/// `first`, doubled with each end after it up to `longest`, less up to a tenth by `spread`.
pub fn delay(backoff: &Backoff, early_ends: u32, spread: f64) -> Duration {
    let doubled = backoff.first.saturating_mul(1_u32.checked_shl(early_ends.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(backoff.longest).mul_f64(1.0 - 0.1 * spread.clamp(0.0, 1.0))
}

/// The process itself has ended while in `state`; `next` is what [`after_end`] said, used unless the end was asked for.
/// Survivors have until `survivors_kill_at`.
pub fn ended(state: State, next: Next, now: Duration, survivors_kill_at: Duration) -> State {
    match state {
        State::Stopping { purpose, kill_at, killed } => {
            let next = match purpose {
                Purpose::Down | Purpose::GiveWay => Next::Stopped,
                Purpose::Replace => Next::StartAt(now),
                Purpose::Retry => next,
            };
            // Survivors never get more time than the stop as a whole had.
            State::Clearing { next, kill_at: kill_at.min(survivors_kill_at), killed }
        }
        _ => State::Clearing { next, kill_at: survivors_kill_at, killed: false },
    }
}

/// Nothing of the last life is left.
pub fn cleared(next: Next, now: Duration) -> State {
    match next {
        Next::StartAt(at) if at <= now => State::Waiting,
        Next::StartAt(until) => State::Backoff { until },
        Next::Failed => State::Failed,
        Next::Stopped => State::Stopped,
    }
}

/// An end was asked for. A stop overtakes everything; any other purpose only touches what is up.
pub fn asked_to_end(state: State, purpose: Purpose, kill_at: Duration) -> State {
    match (state, purpose) {
        (State::Starting { .. } | State::Running { .. }, _) => State::Stopping { purpose, kill_at, killed: false },
        (State::Stopping { kill_at: earlier, killed, .. }, Purpose::Down) => {
            State::Stopping { purpose: Purpose::Down, kill_at: earlier.min(kill_at), killed }
        }
        (State::Clearing { kill_at: earlier, killed, .. }, Purpose::Down) => {
            State::Clearing { next: Next::Stopped, kill_at: earlier.min(kill_at), killed }
        }
        (State::Waiting | State::Backoff { .. } | State::Failed | State::Stopped, Purpose::Down) => State::Stopped,
        (unchanged, Purpose::Replace | Purpose::GiveWay | Purpose::Retry) => unchanged,
    }
}

/// A start was asked for: what is up stays as it is, what is on its way down comes back once it is there.
pub fn asked_to_start(state: State, now: Duration) -> State {
    match state {
        State::Backoff { .. } | State::Failed | State::Stopped => State::Waiting,
        State::Stopping { purpose: Purpose::Down | Purpose::Retry, kill_at, killed } => {
            State::Stopping { purpose: Purpose::Replace, kill_at, killed }
        }
        State::Clearing { kill_at, killed, .. } => State::Clearing { next: Next::StartAt(now), kill_at, killed },
        State::Waiting
        | State::Starting { .. }
        | State::Running { .. }
        | State::Stopping { purpose: Purpose::Replace | Purpose::GiveWay, .. } => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        give_up: 10,
        within: Duration::from_secs(600),
        healthy_after: Duration::from_secs(10),
    };

    #[test]
    fn delays_double_up_to_the_longest_and_heal_after_a_healthy_life() {
        let mut history = History::default();
        let mut now = Duration::from_secs(1000);
        let mut delays = Vec::new();
        for _ in 0..8 {
            let next = after_end(Restart::Always, &BACKOFF, &mut history, false, Duration::from_secs(1), now, 0.0);
            let Next::StartAt(at) = next else { panic!("{next:?}") };
            delays.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 60], "the first to end early is replaced at once");
        now += Duration::from_secs(3600);
        assert_eq!(after_end(Restart::Always, &BACKOFF, &mut history, false, Duration::from_secs(3600), now, 0.0), Next::StartAt(now));
        assert_eq!(after_end(Restart::Always, &BACKOFF, &mut history, false, Duration::from_secs(1), now, 0.0), Next::StartAt(now));
        assert_eq!(
            after_end(Restart::Always, &BACKOFF, &mut history, false, Duration::from_secs(1), now, 0.0),
            Next::StartAt(now + BACKOFF.first)
        );
    }

    #[test]
    fn too_many_ends_within_the_window_are_given_up() {
        let mut history = History::default();
        let now = Duration::from_secs(50);
        let results: Vec<Next> =
            (0..11).map(|_| after_end(Restart::Always, &BACKOFF, &mut history, false, Duration::ZERO, now, 0.0)).collect();
        assert!(results[..10].iter().all(|next| matches!(next, Next::StartAt(_))));
        assert_eq!(results[10], Next::Failed);
    }

    #[test]
    fn restart_policies_look_at_how_it_ended() {
        for (restart, clean, restarted) in [
            (Restart::Always, true, true),
            (Restart::Always, false, true),
            (Restart::OnFailure, true, false),
            (Restart::OnFailure, false, true),
            (Restart::Never, false, false),
        ] {
            let next = after_end(restart, &BACKOFF, &mut History::default(), clean, Duration::ZERO, Duration::ZERO, 0.0);
            assert_eq!(matches!(next, Next::StartAt(_)), restarted, "{restart:?} clean={clean}");
        }
    }

    pub(in crate::supervisor) fn any_state() -> impl Strategy<Value = State> {
        let at = || (0_u64..1000).prop_map(Duration::from_secs);
        let purpose = || prop_oneof![Just(Purpose::Down), Just(Purpose::Replace), Just(Purpose::GiveWay), Just(Purpose::Retry)];
        let next = || prop_oneof![at().prop_map(Next::StartAt), Just(Next::Failed), Just(Next::Stopped)];
        prop_oneof![
            Just(State::Waiting),
            (at(), at()).prop_map(|(since, ready_by)| State::Starting { since, ready_by }),
            (at(), any::<bool>()).prop_map(|(since, checked)| State::Running { since, checked }),
            (purpose(), at(), any::<bool>()).prop_map(|(purpose, kill_at, killed)| State::Stopping { purpose, kill_at, killed }),
            (next(), at(), any::<bool>()).prop_map(|(next, kill_at, killed)| State::Clearing { next, kill_at, killed }),
            at().prop_map(|until| State::Backoff { until }),
            Just(State::Failed),
            Just(State::Stopped),
        ]
    }

    proptest! {
        #[test]
        fn a_stop_overtakes_everything(state in any_state(), at in 0_u64..2000, later in 0_u64..2000) {
            let mut state = asked_to_end(state, Purpose::Down, Duration::from_secs(at));
            // Whatever is asked afterwards, it ends in Stopped and never later than the earliest deadline.
            state = asked_to_end(state, Purpose::Replace, Duration::from_secs(later));
            if let State::Stopping { kill_at, .. } = state {
                prop_assert!(kill_at <= Duration::from_secs(at));
                state = ended(state, Next::StartAt(Duration::ZERO), Duration::from_secs(at), kill_at + SURVIVORS_WITHIN);
            }
            if let State::Clearing { next, kill_at, .. } = state {
                prop_assert!(kill_at <= Duration::from_secs(at));
                state = cleared(next, Duration::from_secs(later));
            }
            prop_assert_eq!(state, State::Stopped);
        }

        #[test]
        fn who_was_asked_to_start_comes_up(state in any_state(), at in 0_u64..2000) {
            let at = Duration::from_secs(at);
            let mut state = asked_to_start(state, at);
            if let State::Stopping { purpose: Purpose::GiveWay, .. } = state {
                // Its replacement is up instead.
                return Ok(());
            }
            if let State::Stopping { .. } = state {
                state = ended(state, Next::Failed, at, at);
            }
            if let State::Clearing { next, .. } = state {
                state = cleared(next, at);
            }
            prop_assert!(state.is_up() || state == State::Waiting, "{:?}", state);
        }

        #[test]
        fn a_delay_is_never_longer_than_the_longest(early in any::<u32>(), spread in any::<f64>()) {
            let delay = delay(&BACKOFF, early, if spread.is_finite() { spread } else { 0.0 });
            prop_assert!(delay <= BACKOFF.longest && delay >= BACKOFF.first.mul_f64(0.9));
        }
    }
}
