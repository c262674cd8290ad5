//! What a daemon that replaces itself tells its successor of the workers: plain data, beside the sockets they listen on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::clock::Moment;

use super::leftovers::Leftover;
use super::replica::Replica;
use super::roster::Entry;
use super::state::{Purpose, State};
use super::supervisor::{self, Supervisor};
use super::totals::Totals;

/// Everything that is not to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Handover {
    pub lives: Vec<Entry>,
    /// Replicas that are down and not to be started at once.
    pub down: Vec<Down>,
    /// Numbers of replicas that somebody asked for at run time.
    pub scales: BTreeMap<String, u32>,
    pub totals: BTreeMap<String, Totals>,
    /// Children of the daemon that are nobody's workers.
    pub bystanders: Vec<(i32, u64)>,
    /// Lives are numbered on from here.
    pub next_slot: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Down {
    pub worker: String,
    pub index: u32,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Stopped,
    Failed,
    /// Started again after so long.
    Backoff {
        milliseconds: u64,
    },
}

impl Supervisor {
    /// For a daemon that is about to replace itself.
    pub fn hand_over(&self, now: Moment) -> Handover {
        let name = |name: &std::sync::Arc<str>| name.to_string();
        Handover {
            lives: self.replicas.iter().filter_map(supervisor::entry).collect(),
            down: self.replicas.iter().filter(|replica| replica.is_main()).filter_map(|replica| down(replica, now)).collect(),
            scales: self.scales.iter().map(|(worker, count)| (name(worker), *count)).collect(),
            totals: self.totals.iter().map(|(worker, totals)| (name(worker), totals.clone())).collect(),
            bystanders: self.bystanders(),
            next_slot: self.next_slot,
        }
    }

    /// The sockets workers listen on, each with its address.
    pub fn listening(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.sockets.all().map(|(address, socket)| (address, socket.as_fd()))
    }

    /// Takes in what a daemon has told of before it became this one. To be called before [`Supervisor::apply`].
    pub fn inherit_from(&mut self, handover: &Handover) {
        self.next_slot = self.next_slot.max(handover.next_slot);
        self.scales = handover.scales.iter().map(|(worker, count)| (worker.as_str().into(), *count)).collect();
        self.totals = handover.totals.iter().map(|(worker, totals)| (worker.as_str().into(), totals.clone())).collect();
        self.keeps_scales = true;
        self.strangers = handover.bystanders.clone();
    }

    /// Those that were down stay down. To be called after [`Supervisor::apply`] and before anybody is started.
    pub fn keep_down(&mut self, down: &[Down], now: Moment) {
        for Down { worker, index, why } in down {
            let is_it = |replica: &&mut Replica| replica.is_copy_of(worker, *index) && replica.is_main() && replica.life.is_none();
            let Some(replica) = self.replicas.iter_mut().find(is_it) else { continue };
            replica.standing.state = match why {
                Why::Stopped => State::Stopped,
                Why::Failed => State::Failed,
                Why::Backoff { milliseconds } => State::Backoff { until: now.steady + Duration::from_millis(*milliseconds) },
            };
        }
    }
}

fn down(replica: &Replica, now: Moment) -> Option<Down> {
    let why = match replica.state() {
        State::Stopped | State::Stopping { purpose: Purpose::Down, .. } => Why::Stopped,
        State::Clearing { next: super::state::Next::Stopped, .. } => Why::Stopped,
        State::Failed => Why::Failed,
        State::Backoff { until } => {
            let left = until.saturating_sub(now.steady).as_millis();
            Why::Backoff { milliseconds: u64::try_from(left).unwrap_or(u64::MAX) }
        }
        _ => return None,
    };
    Some(Down { worker: replica.worker.name.to_string(), index: replica.index, why })
}

impl Handover {
    /// Those of the lives that go on, as what they are to the daemon that was replaced: its own children, and so ours.
    pub fn leftovers(&self, paths: &crate::host::Paths) -> Vec<Leftover> {
        Leftover::find(self.lives.clone(), true, paths)
    }
}
