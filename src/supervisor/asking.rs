//! What is asked of workers from outside, while they run: each request is begun at once and has a goal, and whoever asked can be told
//! when that is reached or what it still waits for. Nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{ReadyBy, Signal};
use crate::config::units::MOST_REPLICAS;
use crate::host::clock::Moment;
use crate::host::process::Delivery;
use crate::host::scan;
use crate::sampling::readings::SlotId;

use super::recycling::Wish;
use super::replica::Replica;
use super::slot;
use super::state::State;
use super::supervisor::Supervisor;

/// Whom a request is about: one replica, or all of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whom {
    pub worker: Arc<str>,
    pub replica: Option<u32>,
}

/// What has to become true for a request to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// It is.
    Reached(String),
    /// These replicas are ready, with a life later than `past`, and nothing is left of that.
    Up { whom: Whom, past: Vec<SlotId> },
    /// Nothing of them is left.
    Down { whom: Whom },
    /// There are so many, ready, and none too many.
    Count { worker: Arc<str>, count: u32 },
}

/// How far that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Done(String),
    /// It will not come by itself.
    Failed(String),
    WaitsFor(String),
}

/// Why a request is not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// There is no such worker or replica; says which there are.
    Unknown(String),
    Refused(String),
}

impl Supervisor {
    /// # Errors
    /// `Unknown`.
    fn places_of(&self, whom: &Whom) -> Result<Vec<usize>, Objection> {
        if !self.workers.iter().any(|worker| worker.name == whom.worker) {
            let names: Vec<&str> = self.workers.iter().map(|worker| &*worker.name).collect();
            return Err(Objection::Unknown(match names.len() {
                0 => format!("there is no worker {}, nor any other", whom.worker),
                _ => format!("there is no worker {}; there are {}", whom.worker, names.join(", ")),
            }));
        }
        let is_meant = |replica: &Replica| {
            replica.worker.name == whom.worker && replica.is_main() && whom.replica.is_none_or(|index| replica.index == index)
        };
        let places: Vec<usize> =
            self.replicas.iter().enumerate().filter(|(_, replica)| is_meant(replica)).map(|(place, _)| place).collect();
        match whom.replica {
            Some(index) if places.is_empty() => {
                let count = self.replicas.iter().filter(|replica| replica.worker.name == whom.worker && replica.is_main()).count();
                Err(Objection::Unknown(format!("{} has no replica {index}; it has {count}, counted from 0", whom.worker)))
            }
            _ => Ok(places),
        }
    }

    /// As `places_of`, for what cannot be asked of nobody.
    ///
    /// # Errors
    /// `Refused` for a worker that is to have no replica.
    fn places_to_start(&self, whom: &Whom) -> Result<Vec<usize>, Objection> {
        let places = self.places_of(whom)?;
        if places.is_empty() {
            return Err(Objection::Refused(format!("{} is to have 0 replicas: `plimsoll workers scale {0} 1` gives it one", whom.worker)));
        }
        Ok(places)
    }

    fn lives_at(&self, places: &[usize]) -> Vec<SlotId> {
        places.iter().filter_map(|place| self.replicas.get(*place)?.slot()).collect()
    }

    /// Brings up what is down; what runs stays as it is.
    pub fn start_worker(&mut self, whom: &Whom, now: Moment) -> Result<Goal, Objection> {
        for place in self.places_to_start(whom)? {
            self.forget_failures(place);
            self.on_copies(place, |copies, _| slot::start(copies, now.steady));
        }
        Ok(Goal::Up { whom: whom.clone(), past: Vec::new() })
    }

    /// Ends every copy, to stay down until somebody asks for another.
    pub fn stop_worker(&mut self, whom: &Whom, now: Moment) -> Result<Goal, Objection> {
        let places = self.places_of(whom)?;
        self.may_be_ended(whom)?;
        self.meet_all(|replica| replica.worker.name == whom.worker && whom.replica.is_none_or(|index| replica.index == index));
        for place in places {
            let Some(replica) = self.replicas.get_mut(place) else { continue };
            let kill_at = now.steady + replica.worker.stop.within;
            let index = replica.index;
            replica.wish = None;
            for copy in self.replicas.iter_mut().filter(|copy| copy.is_copy_of(&whom.worker, index) && !copy.standing.is_gone()) {
                copy.cause = Some("stopped");
                copy.waits_for = None;
                copy.look_again = None;
            }
            self.on_copies(place, |copies, _| slot::stop(copies, kill_at));
            if let Some(replica) = self.replicas.get_mut(place).filter(|replica| replica.life.is_none()) {
                replica.lock = None;
            }
        }
        self.ask_those_to_end();
        Ok(Goal::Down { whom: whom.clone() })
    }

    /// Ends the present life and begins another, all at once, however it stands.
    pub fn restart_worker(&mut self, whom: &Whom, now: Moment) -> Result<Goal, Objection> {
        if self.is_adopted(whom) {
            // By its command, and by nothing else.
            return self.recycle_worker(whom, now);
        }
        let places = self.places_to_start(whom)?;
        let past = self.lives_at(&places);
        self.meet_all(|replica| replica.worker.name == whom.worker && whom.replica.is_none_or(|index| replica.index == index));
        for place in places {
            self.forget_failures(place);
            let Some(replica) = self.replicas.get_mut(place) else { continue };
            let kill_at = now.steady + replica.worker.stop.within;
            replica.wish = None;
            replica.cause = replica.life.is_some().then_some("manual");
            self.on_copies(place, |copies, _| slot::restart(copies, now.steady, kill_at));
        }
        self.ask_those_to_end();
        Ok(Goal::Up { whom: whom.clone(), past })
    }

    /// Replaces one replica after the other, with overlap where there is room.
    pub fn recycle_worker(&mut self, whom: &Whom, now: Moment) -> Result<Goal, Objection> {
        let places = self.places_to_start(whom)?;
        self.can_be_restarted(whom, &places)?;
        let past = self.lives_at(&places);
        for place in places {
            let Some(replica) = self.replicas.get_mut(place) else { continue };
            if replica.is_running() {
                let wish = Wish { cause: "manual", since: now.steady, not_before: Duration::ZERO, keeps_gap: false };
                replica.failed_replacements = 0;
                // Whatever it was queued for, it need not wait any longer.
                replica.wish = Some(Wish { since: replica.wish.map_or(now.steady, |wish| wish.since), ..wish });
            } else {
                self.forget_failures(place);
                self.on_copies(place, |copies, _| slot::start(copies, now.steady));
            }
        }
        Ok(Goal::Up { whom: whom.clone(), past })
    }

    /// Another number of replicas, until the settings say another.
    pub fn scale_worker(&mut self, worker: &Arc<str>, count: u32, now: Moment) -> Result<Goal, Objection> {
        self.places_of(&Whom { worker: worker.clone(), replica: None })?;
        if count > MOST_REPLICAS {
            return refused(format!("{count} replicas are more than the {MOST_REPLICAS} there may be"));
        }
        if self.workers.iter().any(|known| known.name == *worker && known.adopt.is_some()) {
            return refused(format!("{worker} is adopted: somebody else says how many there are"));
        }
        let is_singleton = self.workers.iter().any(|known| known.name == *worker && known.lock.is_some());
        if is_singleton && count > 1 {
            return refused(format!("{worker} is a singleton"));
        }
        self.scales.insert(worker.clone(), count);
        self.settle_counts(now);
        Ok(Goal::Count { worker: worker.clone(), count })
    }

    /// Somebody else starts it.
    pub fn is_adopted(&self, whom: &Whom) -> bool {
        self.workers.iter().any(|worker| worker.name == whom.worker && worker.adopt.is_some())
    }

    /// # Errors
    /// `Refused` for an adopted worker of which nothing says that it may be ended.
    pub fn may_be_ended(&self, whom: &Whom) -> Result<(), Objection> {
        match self.workers.iter().find(|worker| worker.name == whom.worker).filter(|worker| !worker.may_be_ended()) {
            Some(_) => Err(Objection::Refused(format!(
                "{} is adopted: somebody else starts it, and it is not ended unless adopt.may_end is true",
                whom.worker
            ))),
            None => Ok(()),
        }
    }

    /// # Errors
    /// `Refused` for an adopted worker of which nothing says how it is restarted, or that is not there.
    fn can_be_restarted(&self, whom: &Whom, places: &[usize]) -> Result<(), Objection> {
        let Some(worker) = self.workers.iter().find(|worker| worker.name == whom.worker && worker.adopt.is_some()) else { return Ok(()) };
        if !worker.can_be_restarted() {
            let why = format!("{} is adopted: somebody else starts it, and adopt.restart does not say how it is restarted", whom.worker);
            return Err(Objection::Refused(why));
        }
        let replicas = || places.iter().filter_map(|place| self.replicas.get(*place));
        if replicas().any(Replica::is_running) {
            return Ok(());
        }
        let waits = replicas().find_map(|replica| replica.waits_for.as_deref()).unwrap_or("a start");
        Err(Objection::Refused(format!("{} is not there to be restarted; it waits for {waits}", whom.worker)))
    }

    /// Sends a signal to the process that was started, of each replica.
    pub fn signal_worker(&self, whom: &Whom, signal: Signal) -> Result<Goal, Objection> {
        let lives = self.places_of(whom)?.into_iter().filter_map(|place| self.replicas.get(place)?.life.as_ref());
        let mut reached = 0_u32;
        for life in lives.filter(|life| life.exit.is_none()) {
            match life.process.signal(signal) {
                Ok(Delivery::Delivered) => reached += 1,
                Ok(Delivery::Gone) => {}
                Err(error) => return refused(format!("pid {}: {error}", life.process.pid())),
            }
        }
        match reached {
            0 => refused(format!("no replica of {} runs", whom.worker)),
            1 => Ok(Goal::Reached("1 replica was sent the signal".to_owned())),
            _ => Ok(Goal::Reached(format!("{reached} replicas were sent the signal"))),
        }
    }

    /// Requests that a replica has answered, found by one of its processes or by its number; the only one there is needs neither.
    /// `count` is how many more, or how many in its whole life.
    pub fn note_requests(&mut self, whom: &Whom, pid: Option<i32>, count: Count) -> Result<Goal, Objection> {
        let places = self.places_of(whom)?;
        let place = match (pid, places.as_slice()) {
            (Some(pid), _) => {
                let mut processes = Vec::new();
                let scanned = scan::processes(&self.around.paths, &mut processes, &mut self.scratch);
                scanned.map_err(|error| Objection::Refused(format!("processes could not be listed: {error}")))?;
                let keeper = self.around.keeper;
                let has_it = |replica: &Replica| {
                    replica.life.as_ref().is_some_and(|life| life.process.pid() == pid || life.pids(keeper, &processes).contains(&pid))
                };
                let copies = self.replicas.iter().enumerate().filter(|(_, replica)| replica.worker.name == whom.worker);
                let found = copies.filter(|(_, replica)| has_it(replica)).map(|(place, _)| place).next();
                found.ok_or_else(|| Objection::Unknown(format!("pid {pid} belongs to no replica of {}", whom.worker)))?
            }
            (None, [only]) => *only,
            (None, _) => return refused(format!("{} has {} replicas: say which by `pid` or `replica`", whom.worker, places.len())),
        };
        let life = self.replicas.get_mut(place).and_then(|replica| replica.life.as_mut());
        let Some(life) = life else { return refused("it does not run".to_owned()) };
        life.requests = match count {
            Count::More(more) => life.requests.saturating_add(more),
            // A report that was overtaken by a later one takes nothing back.
            Count::InAll(all) => life.requests.max(all),
        };
        Ok(Goal::Reached(format!("{} requests", life.requests)))
    }

    /// A crash loop that somebody looked into begins anew.
    fn forget_failures(&mut self, place: usize) {
        if let Some(replica) = self.replicas.get_mut(place) {
            replica.history = super::state::History::default();
        }
    }

    /// How far a request is.
    pub fn progress(&self, goal: &Goal) -> Progress {
        let of = |name: &Arc<str>, index: Option<u32>| {
            let name = name.clone();
            self.replicas.iter().filter(move |replica| replica.worker.name == name && index.is_none_or(|index| replica.index == index))
        };
        match goal {
            Goal::Reached(said) => Progress::Done(said.clone()),
            Goal::Down { whom } => {
                match of(&whom.worker, whom.replica).find(|replica| replica.life.is_some() || replica.state() != State::Stopped) {
                    None => Progress::Done(format!("{} is stopped", shown(whom))),
                    Some(replica) if replica.is_running() => Progress::Failed(format!("{} was started again meanwhile", shown(whom))),
                    Some(replica) => Progress::WaitsFor(waits_for(replica)),
                }
            }
            Goal::Up { whom, past } => {
                let is_old = |replica: &Replica| replica.slot().is_some_and(|slot| past.contains(&slot));
                for replica in of(&whom.worker, whom.replica).filter(|replica| replica.is_main()) {
                    match replica.state() {
                        State::Running { .. } if is_old(replica) && replica.failed_replacements > 0 && replica.is_queued() => {
                            return Progress::Failed(format!("{}: its replacement came to nothing, and it goes on", named(replica)));
                        }
                        State::Running { .. } if !is_old(replica) => {}
                        State::Stopped if replica.has_done() && replica.worker.ready.by == ReadyBy::Done => {}
                        State::Failed => return Progress::Failed(format!("{} is in a crash loop", named(replica))),
                        State::Stopped if !is_old(replica) => {
                            return Progress::Failed(format!("{} has ended and is not to be restarted", named(replica)));
                        }
                        _ => return Progress::WaitsFor(waits_for(replica)),
                    }
                }
                // The old one is asked to end once the new one is ready, and takes its time.
                match of(&whom.worker, whom.replica).find(|replica| is_old(replica)) {
                    Some(old) => Progress::WaitsFor(waits_for(old)),
                    None => Progress::Done(format!("{} is ready", shown(whom))),
                }
            }
            Goal::Count { worker, count } => {
                if of(worker, None).any(|replica| replica.is_main() && replica.state() == State::Failed) {
                    return Progress::Failed(format!("a replica of {worker} is in a crash loop"));
                }
                let late =
                    of(worker, None).find(|replica| !(replica.is_main() && (replica.is_ready() || replica.state() == State::Stopped)));
                match late {
                    Some(replica) => Progress::WaitsFor(waits_for(replica)),
                    None => Progress::Done(format!("{worker} has {count} replica{}", if *count == 1 { "" } else { "s" })),
                }
            }
        }
    }
}

/// A number of requests, as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    More(u64),
    InAll(u64),
}

fn refused(why: String) -> Result<Goal, Objection> {
    Err(Objection::Refused(why))
}

fn shown(whom: &Whom) -> String {
    match whom.replica {
        Some(index) => format!("{}.{index}", whom.worker),
        None => whom.worker.to_string(),
    }
}

fn named(replica: &Replica) -> String {
    format!("{}.{}", replica.worker.name, replica.index)
}

/// What has to happen before this replica is where it is wanted.
fn waits_for(replica: &Replica) -> String {
    let name = named(replica);
    let pid = replica.life.as_ref().map(|life| format!(" (pid {})", life.process.pid())).unwrap_or_default();
    match (replica.state(), &replica.waits_for) {
        (State::Waiting | State::Backoff { .. }, Some(what)) => format!("{name} waits for {what}"),
        (State::Waiting, None) => format!("{name} to be started"),
        (State::Starting { .. }, _) => match replica.missing() {
            Some(missing) => format!("{name}{pid} to be ready: {missing}"),
            None => format!("{name}{pid} to be ready"),
        },
        (State::Stopping { .. }, _) => {
            format!("{name}{pid} to end after {}", crate::host::process::signal_name(replica.worker.stop.signal.0))
        }
        (State::Clearing { .. }, _) => format!("the last descendant of {name} to end"),
        (State::Backoff { .. }, None) => format!("the pause of {name} before its next start"),
        (State::Running { .. }, _) => format!("{name}{pid} to be replaced"),
        (State::Failed, _) => format!("{name} is in a crash loop"),
        (State::Stopped, _) => format!("{name} is stopped"),
    }
}
