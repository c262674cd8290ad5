//! One replica as an actor: which copies of it there are, and what a request or an event does to them. Pure; the supervisor
//! carries out what it says.
//!
//! A replica has one **main** copy. While it is replaced with overlap it has a second one: the **successor** until that is
//! ready, then the old one, which **leaves**. What moves between them:
//!
//! - *recycle* with overlap adds a successor beside a main copy that runs and has nobody beside it; without overlap the main copy is
//!   stopped and started again;
//! - the successor *gets ready*: it is the main copy now, the old one leaves;
//! - the successor *ends, or is not ready in time*: it leaves, the old one stays;
//! - the main copy *ends by itself* while it has a successor: the successor is the main copy, ready or not;
//! - *stop* ends all of them, *restart* ends the successor and replaces the main copy.
//!
//! So there is never a second copy that serves: of two that are up, one is the main copy and the other a successor that has
//! not taken over. The property test below holds that over random interleavings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::{self, Next, Purpose, State};

/// What a copy is to its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Main,
    Successor,
    /// On its way out: forgotten once it is down, and never started again.
    Leaving,
}

/// One copy's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub role: Role,
    pub state: State,
}

impl Standing {
    pub fn main() -> Standing {
        Standing { role: Role::Main, state: State::Waiting }
    }

    pub fn successor() -> Standing {
        Standing { role: Role::Successor, state: State::Waiting }
    }

    /// From now on it is only waited for until it is down.
    fn leave(&mut self, purpose: Purpose, kill_at: Duration) {
        self.role = Role::Leaving;
        self.state = state::asked_to_end(self.state, purpose, kill_at);
        // What was never up has nothing to wait for.
        self.state = match self.state {
            State::Clearing { kill_at, killed, .. } => State::Clearing { next: Next::Stopped, kill_at, killed },
            State::Waiting | State::Backoff { .. } | State::Failed => State::Stopped,
            other => other,
        };
    }

    /// Nothing of it is left and nothing is to come.
    pub fn is_gone(&self) -> bool {
        self.role == Role::Leaving && self.state == State::Stopped
    }
}

/// Why a recycle is not begun now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// It does not serve.
    NotUp,
    /// A copy of it is coming or going already.
    Busy,
}

/// Every copy is to end; the replica stays down.
pub fn stop(copies: &mut [&mut Standing], kill_at: Duration) {
    for copy in copies {
        match copy.role {
            Role::Main => copy.state = state::asked_to_end(copy.state, Purpose::Down, kill_at),
            Role::Successor | Role::Leaving => copy.leave(Purpose::Down, kill_at),
        }
    }
}

/// The replica is to be up.
pub fn start(copies: &mut [&mut Standing], now: Duration) {
    for copy in copies.iter_mut().filter(|copy| copy.role == Role::Main) {
        copy.state = state::asked_to_start(copy.state, now);
    }
}

/// The main copy is replaced by a fresh one, however it stands.
pub fn restart(copies: &mut [&mut Standing], now: Duration, kill_at: Duration) {
    for copy in copies {
        match copy.role {
            Role::Main if copy.state.is_up() => copy.state = state::asked_to_end(copy.state, Purpose::Replace, kill_at),
            Role::Main => copy.state = state::asked_to_start(copy.state, now),
            Role::Successor => copy.leave(Purpose::Down, kill_at),
            Role::Leaving => {}
        }
    }
}

/// The replica is not wanted any more.
pub fn dismiss(copies: &mut [&mut Standing], kill_at: Duration) {
    for copy in copies {
        copy.leave(Purpose::Down, kill_at);
    }
}

/// Whether the main copy may be recycled now.
///
/// # Errors
/// Why not.
pub fn may_recycle(copies: &[&Standing]) -> Result<(), NotNow> {
    let main = copies.iter().find(|copy| copy.role == Role::Main).ok_or(NotNow::NotUp)?;
    match main.state {
        _ if copies.len() > 1 => Err(NotNow::Busy),
        State::Running { .. } => Ok(()),
        State::Stopping { .. } | State::Clearing { .. } => Err(NotNow::Busy),
        State::Starting { .. } | State::Waiting | State::Backoff { .. } | State::Failed | State::Stopped => Err(NotNow::NotUp),
    }
}

/// The copy at `place` is ready. True when it has taken over from another, which is asked to end.
pub fn ready(copies: &mut [&mut Standing], place: usize, now: Duration, checked: bool, kill_at: Duration) -> bool {
    let Some(copy) = copies.get_mut(place) else { return false };
    if !matches!(copy.state, State::Starting { .. }) {
        return false;
    }
    copy.state = State::Running { since: now, checked };
    if copy.role != Role::Successor {
        return false;
    }
    for old in copies.iter_mut().filter(|copy| copy.role == Role::Main) {
        old.leave(Purpose::GiveWay, kill_at);
    }
    if let Some(copy) = copies.get_mut(place) {
        copy.role = Role::Main;
    }
    true
}

/// The copy at `place` was not ready in time.
pub fn overdue(copies: &mut [&mut Standing], place: usize, kill_at: Duration) {
    let Some(copy) = copies.get_mut(place) else { return };
    if !matches!(copy.state, State::Starting { .. }) {
        return;
    }
    match copy.role {
        Role::Main => copy.state = state::asked_to_end(copy.state, Purpose::Retry, kill_at),
        // The old one stays.
        Role::Successor | Role::Leaving => copy.leave(Purpose::Down, kill_at),
    }
}

/// The process of the copy at `place` has ended; `next` is what its policy says of an end that nobody asked for.
pub fn exited(copies: &mut [&mut Standing], place: usize, next: Next, now: Duration, survivors_kill_at: Duration) {
    let has_heir = copies.iter().any(|copy| copy.role == Role::Successor && (copy.state.is_up() || copy.state == State::Waiting));
    let Some(copy) = copies.get_mut(place) else { return };
    let asked_for = !copy.state.is_up();
    copy.state = state::ended(copy.state, next, now, survivors_kill_at);
    match copy.role {
        Role::Main if has_heir && !asked_for => {
            copy.leave(Purpose::GiveWay, survivors_kill_at);
            for heir in copies.iter_mut().filter(|copy| copy.role == Role::Successor) {
                heir.role = Role::Main;
            }
        }
        Role::Successor => copy.leave(Purpose::GiveWay, survivors_kill_at),
        Role::Main | Role::Leaving => {}
    }
}

/// The copy at `place` could not be spawned; `next` is what its policy says. A successor is given up: the old one stays.
pub fn not_spawned(copies: &mut [&mut Standing], place: usize, next: Next, now: Duration) {
    let Some(copy) = copies.get_mut(place) else { return };
    match copy.role {
        Role::Main => copy.state = state::cleared(next, now),
        Role::Successor | Role::Leaving => copy.leave(Purpose::Down, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KILL_AFTER: u64 = 30;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What may happen to a replica, by itself or because somebody asks.
    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Start,
        Stop,
        Restart,
        Recycle {
            overlap: bool,
        },
        Dismiss,
        /// Scaled down and up again.
        ComeBack,
        Launch {
            fails: bool,
        },
        Ready(usize),
        Overdue(usize),
        Exit(usize),
        Clear(usize),
        Pass(u64),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let place = 0_usize..4;
        prop_oneof![
            Just(Happening::Start),
            Just(Happening::Stop),
            Just(Happening::Restart),
            any::<bool>().prop_map(|overlap| Happening::Recycle { overlap }),
            any::<bool>().prop_map(|overlap| Happening::Recycle { overlap }),
            Just(Happening::Dismiss),
            Just(Happening::ComeBack),
            (0_u8..4).prop_map(|fails| Happening::Launch { fails: fails == 0 }),
            (0_u8..4).prop_map(|_| Happening::Launch { fails: false }),
            place.clone().prop_map(Happening::Ready),
            place.clone().prop_map(Happening::Overdue),
            place.clone().prop_map(Happening::Exit),
            place.prop_map(Happening::Clear),
            (0_u64..40).prop_map(Happening::Pass),
        ]
    }

    /// A replica whose processes are numbers: what the supervisor does, without processes.
    #[derive(Default)]
    struct World {
        copies: Vec<Standing>,
        /// Beside each copy: a process that was started and whose tree is not empty, and whether it has been asked to end.
        alive: Vec<bool>,
        now: u64,
    }

    impl World {
        fn borrowed(&mut self) -> Vec<&mut Standing> {
            self.copies.iter_mut().collect()
        }

        fn happen(&mut self, happening: Happening) {
            let now = seconds(self.now);
            let kill_at = seconds(self.now + KILL_AFTER);
            match happening {
                Happening::Start => start(&mut self.borrowed(), now),
                Happening::Stop => stop(&mut self.borrowed(), kill_at),
                Happening::Restart => restart(&mut self.borrowed(), now, kill_at),
                Happening::Dismiss => dismiss(&mut self.borrowed(), kill_at),
                Happening::ComeBack => {
                    if !self.copies.iter().any(|copy| copy.role == Role::Main) {
                        self.copies.push(Standing::main());
                        self.alive.push(false);
                    }
                }
                Happening::Recycle { overlap } => {
                    if may_recycle(&self.copies.iter().collect::<Vec<_>>()).is_ok() {
                        if overlap {
                            self.copies.push(Standing::successor());
                            self.alive.push(false);
                        } else {
                            restart(&mut self.borrowed(), now, kill_at);
                        }
                    }
                }
                Happening::Launch { fails } => {
                    for place in 0..self.copies.len() {
                        let copy = self.copies[place];
                        let due = match copy.state {
                            State::Waiting => true,
                            State::Backoff { until } => until <= now,
                            _ => false,
                        };
                        // A copy waits for the one before it to be gone from its own place only: see below.
                        if due && copy.role != Role::Leaving {
                            assert!(!self.alive[place], "two processes in one place");
                            if fails {
                                not_spawned(&mut self.borrowed(), place, Next::StartAt(now + seconds(3)), now);
                            } else {
                                self.alive[place] = true;
                                self.copies[place].state = State::Starting { since: now, ready_by: now + seconds(20) };
                            }
                        }
                    }
                }
                Happening::Ready(place) if self.is_process(place) => {
                    ready(&mut self.borrowed(), place, now, true, kill_at);
                }
                Happening::Overdue(place) => overdue(&mut self.borrowed(), place, kill_at),
                Happening::Exit(place) if self.is_process(place) => {
                    exited(&mut self.borrowed(), place, Next::StartAt(now + seconds(1)), now, now + seconds(2));
                }
                Happening::Clear(place) => {
                    if let Some(State::Clearing { next, .. }) = self.copies.get(place).map(|copy| copy.state) {
                        self.alive[place] = false;
                        self.copies[place].state = state::cleared(next, now);
                    }
                }
                Happening::Pass(seconds) => self.now += seconds,
                Happening::Ready(_) | Happening::Exit(_) => {}
            }
            while let Some(gone) = self.copies.iter().position(Standing::is_gone) {
                assert!(!self.alive[gone], "forgotten alive");
                self.copies.remove(gone);
                self.alive.remove(gone);
            }
        }

        /// Its process runs: it has been started and has not ended.
        fn is_process(&self, place: usize) -> bool {
            self.copies.get(place).is_some_and(|copy| copy.state.is_up() || matches!(copy.state, State::Stopping { .. }))
        }

        fn holds(&self) {
            let up: Vec<&Standing> = self.copies.iter().filter(|copy| copy.state.is_up()).collect();
            assert!(up.iter().filter(|copy| copy.role == Role::Main).count() <= 1, "two main copies: {:?}", self.copies);
            assert!(up.iter().all(|copy| copy.role != Role::Leaving), "one that leaves was not asked to: {:?}", self.copies);
            assert!(self.copies.iter().filter(|copy| copy.role == Role::Main).count() <= 1, "two places: {:?}", self.copies);
            let successors: Vec<&Standing> = self.copies.iter().filter(|copy| copy.role == Role::Successor).collect();
            assert!(successors.len() <= 1, "two successors: {:?}", self.copies);
            assert!(!successors.iter().any(|copy| matches!(copy.state, State::Running { .. })), "ready and not taken over");
            for (copy, alive) in self.copies.iter().zip(&self.alive) {
                let has_process = copy.state.is_up() || matches!(copy.state, State::Stopping { .. } | State::Clearing { .. });
                assert_eq!(has_process, *alive, "{copy:?}");
            }
        }

        /// Everything that is on its way arrives.
        fn settle(&mut self) {
            for _ in 0..12 {
                self.happen(Happening::Launch { fails: false });
                for place in (0..self.copies.len()).rev() {
                    match self.copies.get(place).map(|copy| copy.state) {
                        Some(State::Starting { .. }) => self.happen(Happening::Ready(place)),
                        Some(State::Stopping { .. }) => self.happen(Happening::Exit(place)),
                        _ => {}
                    }
                    self.happen(Happening::Clear(place));
                    self.holds();
                }
                self.now += 5;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn no_interleaving_makes_two_live_copies(happenings in proptest::collection::vec(happening(), 1..30), up in any::<bool>()) {
            let mut world = World { copies: vec![Standing::main()], alive: vec![false], now: 1000 };
            for happening in happenings {
                world.happen(happening);
                world.holds();
            }
            // Whatever has happened: a stop stops it, a start brings exactly one up.
            world.happen(Happening::ComeBack);
            world.happen(if up { Happening::Start } else { Happening::Stop });
            world.settle();
            prop_assert_eq!(world.copies.len(), 1);
            let state = world.copies[0].state;
            prop_assert!(if up { matches!(state, State::Running { .. }) } else { state == State::Stopped }, "{:?}", state);
        }

    }

    proptest! {
        #[test]
        fn a_stop_leaves_nobody_beyond_its_deadline(happenings in proptest::collection::vec(happening(), 1..60)) {
            let mut world = World { copies: vec![Standing::main()], alive: vec![false], now: 1000 };
            for happening in happenings {
                world.happen(happening);
            }
            world.happen(Happening::Stop);
            let latest = seconds(world.now + KILL_AFTER);
            for copy in &world.copies {
                prop_assert!(!copy.state.is_up() && copy.state != State::Waiting, "{:?}", copy);
                if let State::Stopping { kill_at, .. } | State::Clearing { kill_at, .. } = copy.state {
                    prop_assert!(kill_at <= latest);
                }
            }
        }
    }

    #[test]
    fn a_replacement_that_does_not_get_ready_leaves_the_old_one_in_its_place() {
        let running = State::Running { since: seconds(1), checked: true };
        let (mut old, mut new) = (Standing { state: running, ..Standing::main() }, Standing::successor());
        new.state = State::Starting { since: seconds(5), ready_by: seconds(9) };
        overdue(&mut [&mut old, &mut new], 1, seconds(20));
        assert_eq!(old, Standing { role: Role::Main, state: running });
        assert!(matches!(new, Standing { role: Role::Leaving, state: State::Stopping { purpose: Purpose::Down, .. } }));
    }

    #[test]
    fn a_successor_inherits_when_the_old_one_dies_first() {
        let (mut old, mut new) = (Standing::main(), Standing::successor());
        old.state = State::Running { since: seconds(1), checked: true };
        new.state = State::Starting { since: seconds(5), ready_by: seconds(9) };
        exited(&mut [&mut old, &mut new], 0, Next::StartAt(seconds(6)), seconds(6), seconds(8));
        assert_eq!((old.role, new.role), (Role::Leaving, Role::Main));
        assert!(matches!(old.state, State::Clearing { next: Next::Stopped, .. }), "nothing follows it: {old:?}");
    }
}
