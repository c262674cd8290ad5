//! What a daemon that replaces itself tells its successor of the workers: every copy of every replica as it stands, with the descriptors
//! that go with it by number. Times are on the steady clock, which goes on.
//!
//! The successor builds the copies from it and then applies its settings as a reload does: so whatever may be under way (a start that
//! is not ready yet, a replacement, an end) goes on, and what the settings say differently is done.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::{Overlap, ReadyBy, Signal, Stop, Worker};
use crate::host::clock::Moment;
use crate::host::folder::Identity;
use crate::host::foreign::ForeignGroup;
use crate::host::group::{self, Group};
use crate::host::helper::{self, Kept};
use crate::host::process::{Exit, Process, ProcessId};
use crate::host::sockets::{HeldLock, NotifySocket};
use crate::sampling::readings::SlotId;

use super::health::Pulse;
use super::output::HandedFile;
use super::readiness::Check;
use super::recycling::Wish;
use super::replica::{Life, Replaced, Replica};
use super::roster;
use super::slot::Standing;
use super::state::{self, History, State};
use super::supervisor::{Supervisor, file_name};
use super::totals::{RECYCLE_CAUSES, Totals};

/// Everything that is not to be forgotten.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Handover {
    pub copies: Vec<Copy>,
    /// Numbers of replicas that somebody asked for at run time, each with what the settings said.
    pub scales: BTreeMap<String, (u32, String)>,
    pub totals: BTreeMap<String, Totals>,
    /// When the last replacement of a worker was over.
    pub replaced: BTreeMap<String, Duration>,
    pub outputs: Vec<HandedFile>,
    /// Children of the daemon that are nobody's workers.
    pub bystanders: Vec<(i32, u64)>,
    /// Whose the last lives were that have ended.
    pub ended: Vec<(u64, String)>,
    /// Lives are numbered on from here.
    pub next_slot: u64,
}

/// One copy of a replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Copy {
    worker: String,
    index: u32,
    standing: Standing,
    /// Of the settings of its worker.
    fingerprint: u64,
    stop_signal: i32,
    stop_within: Duration,
    history: History,
    restarts: u32,
    cause: Option<String>,
    last_exit: Option<Exit>,
    wish: Option<HandedWish>,
    failed_replacements: u32,
    successor_of: Option<HandedReplaced>,
    lock: Option<RawFd>,
    life: Option<HandedLife>,
}

/// As [`Wish`].
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HandedWish {
    cause: String,
    since: Duration,
    not_before: Duration,
    keeps_gap: bool,
}

/// As [`Replaced`].
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HandedReplaced {
    cause: String,
    pid: i32,
    manner: String,
}

/// As [`Life`].
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HandedLife {
    slot: u64,
    process: ProcessId,
    pidfd: RawFd,
    groups: Vec<(PathBuf, Identity)>,
    account: Option<(bool, bool, u64)>,
    started: Moment,
    lifetime_due: Option<Duration>,
    known: Vec<(i32, u64)>,
    peak_memory: u64,
    cpu: Duration,
    memory: Option<u64>,
    exit: Option<(Exit, Moment)>,
    survivors_killed: u32,
    asked: bool,
    kill_wanted: bool,
    killed_by_us: bool,
    oom: bool,
    overran: bool,
    /// Since when it is asked whether it is ready, until it is.
    check: Option<Duration>,
    pulse: Option<(Duration, u32)>,
    notify: Option<(String, RawFd)>,
    requests: u64,
    requests_due: Option<u64>,
    fingerprint: u64,
    mark: String,
    reaper: Option<i32>,
    is_child: bool,
    adopted: bool,
    foreign_group: Option<PathBuf>,
}

/// Why a copy is ended, in the words of [`Replica::cause`]; one of another version is as good as none.
fn known_cause(word: &str) -> Option<&'static str> {
    RECYCLE_CAUSES.into_iter().chain(["stopped", "deadline", "health"]).find(|known| *known == word)
}

impl Supervisor {
    /// For a daemon that is about to replace itself.
    pub fn hand_over<'a>(&'a self, kept: &mut Kept<'a>) -> Handover {
        let name = |name: &Arc<str>| name.to_string();
        let said = |worker: &Arc<str>| {
            let worker = self.workers.iter().find(|known| known.name == *worker);
            worker.map(|worker| format!("{:?}", worker.replicas)).unwrap_or_default()
        };
        Handover {
            copies: self.replicas.iter().map(|replica| copy(replica, kept)).collect(),
            scales: self.scales.iter().map(|(worker, count)| (name(worker), (*count, said(worker)))).collect(),
            totals: self.totals.iter().map(|(worker, totals)| (name(worker), totals.clone())).collect(),
            replaced: self.replaced.iter().map(|(worker, at)| (name(worker), *at)).collect(),
            outputs: self.outputs.hand_over(kept),
            bystanders: self.bystanders(),
            ended: self.ended.iter().map(|(slot, worker)| (slot.0, name(worker))).collect(),
            next_slot: self.next_slot,
        }
    }

    /// The sockets workers listen on, each with its address.
    pub fn listening(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.sockets.all().map(|(address, socket)| (address, socket.as_fd()))
    }

    /// Takes in what a daemon has told of before it became this one: every copy stands as it did. To be called before
    /// [`Supervisor::apply`] with the same `workers`. How many lives go on.
    pub fn inherit_from(&mut self, handover: Handover, workers: &[Arc<Worker>], now: Moment) -> u32 {
        self.next_slot = self.next_slot.max(handover.next_slot);
        self.totals = handover.totals.into_iter().map(|(worker, totals)| (worker.into(), totals)).collect();
        self.replaced = handover.replaced.into_iter().map(|(worker, at)| (worker.into(), at)).collect();
        self.ended = handover.ended.into_iter().map(|(slot, worker)| (SlotId(slot), worker.into())).collect::<VecDeque<_>>();
        self.strangers = handover.bystanders;
        for (name, (count, said)) in handover.scales {
            // A number holds until the settings say another.
            if workers.iter().any(|worker| *worker.name == *name && format!("{:?}", worker.replicas) == said) {
                self.scales.insert(name.into(), count);
            }
        }
        self.keeps_scales = true;
        self.outputs.inherit(&handover.outputs);
        for copy in handover.copies {
            self.restore(copy, workers, now);
        }
        self.renumber();
        let lives = self.replicas.iter().filter(|replica| replica.life.is_some()).count();
        u32::try_from(lives).unwrap_or(u32::MAX)
    }

    fn restore(&mut self, copy: Copy, workers: &[Arc<Worker>], now: Moment) {
        // Descriptors first, so that what is not wanted is closed.
        let lock = copy.lock.and_then(helper::claim).map(HeldLock::handed_over);
        let held = copy.life.as_ref().map(|life| {
            (
                helper::claim(life.pidfd),
                life.notify.as_ref().and_then(|(name, fd)| Some(NotifySocket::handed_over(name.clone(), helper::claim(*fd)?))),
            )
        });
        let known = workers.iter().find(|worker| *worker.name == *copy.worker).cloned();
        let is_same = known.as_ref().is_some_and(|worker| roster::fingerprint(worker) == copy.fingerprint);
        let is_adopted = copy.life.as_ref().is_some_and(|life| life.adopted);
        if is_adopted && !is_same {
            // Looked for in another way, or not wanted any more: never ended.
            return;
        }
        let worker = known.unwrap_or_else(|| {
            let stop = Stop { signal: Signal(copy.stop_signal), within: copy.stop_within };
            Arc::new(Worker { stop, ..Worker::new(&copy.worker, Vec::new()) })
        });
        let mut replica = Replica::new(worker.clone(), copy.index);
        replica.standing = copy.standing;
        replica.history = copy.history;
        replica.restarts = copy.restarts;
        replica.cause = copy.cause.as_deref().and_then(known_cause);
        replica.last_exit = copy.last_exit;
        replica.wish = copy.wish.and_then(|wish| {
            let cause = known_cause(&wish.cause)?;
            Some(Wish { cause, since: wish.since, not_before: wish.not_before, keeps_gap: wish.keeps_gap })
        });
        replica.failed_replacements = copy.failed_replacements;
        replica.successor_of =
            copy.successor_of.and_then(|of| Some(Replaced { cause: known_cause(&of.cause)?, pid: of.pid, manner: of.manner }));
        replica.lock = lock;
        if let (Some(life), Some((Some(pidfd), notify))) = (copy.life, held) {
            let is_starting = matches!(replica.standing.state, State::Starting { .. });
            replica.life = self.restore_life(life, &worker, pidfd, notify, is_starting, copy.index);
        }
        if replica.life.is_none()
            && (replica.standing.state.is_up() || matches!(replica.standing.state, State::Stopping { .. } | State::Clearing { .. }))
        {
            // What it stood for cannot be held any more; it was told that such a process is an orphan of ours.
            replica.standing.state = State::Waiting;
        } else if replica.life.is_none() && !is_same && matches!(replica.standing.state, State::Failed | State::Backoff { .. }) {
            // As after a reload: what failed may not fail with other settings.
            replica.standing.state = state::asked_to_start(replica.standing.state, now.steady);
        }
        self.replicas.push(replica);
    }

    fn restore_life(
        &mut self,
        handed: HandedLife,
        worker: &Worker,
        pidfd: OwnedFd,
        notify: Option<NotifySocket>,
        is_starting: bool,
        index: u32,
    ) -> Option<Life> {
        let process = Process::handed_over(handed.process, pidfd)?;
        let slot = SlotId(handed.slot);
        let mut group = if handed.adopted { None } else { self.group_of(&handed, worker, index) };
        if let (Some(group), Some(account)) = (&mut group, handed.account) {
            group.resume(account);
        }
        if let Some(watch) = &self.watch {
            // Without it the loop hears of it at its next turn.
            if !handed.is_child && handed.exit.is_none() {
                let _ = watch.add(process.pidfd(), slot.0);
            }
            if let Some(notify) = &notify {
                let _ = watch.add(notify.fd(), slot.0);
            }
        }
        let mut life = Life::begin(slot, process, group, handed.started, worker, handed.mark);
        if handed.adopted {
            // Counted from when it was found.
            life.lifetime_due = life.lifetime_due.and(handed.lifetime_due).or(life.lifetime_due);
        }
        if let (true, Some(began)) = (is_starting, handed.check) {
            // It may have had no socket to say it on, if that is wanted only now: it is ready at once then.
            let by = if worker.ready.by == ReadyBy::Notify && notify.is_none() { &ReadyBy::Running } else { &worker.ready.by };
            let is_shared = !worker.listen.is_empty() || self.desired(worker) > 1 || worker.recycle.overlap != Overlap::Never;
            life.check = Some(Check::new(by, is_shared, notify, began));
        } else {
            life.notify = notify;
        }
        life.known = handed.known;
        (life.peak_memory, life.cpu, life.memory) = (handed.peak_memory, handed.cpu, handed.memory);
        (life.exit, life.survivors_killed) = (handed.exit, handed.survivors_killed);
        (life.asked, life.kill_wanted, life.killed_by_us) = (handed.asked, handed.kill_wanted, handed.killed_by_us);
        (life.oom, life.overran) = (handed.oom, handed.overran);
        life.pulse = handed.pulse.map(Pulse::resume);
        life.requests = handed.requests;
        life.requests_due = life.requests_due.and(handed.requests_due).or(life.requests_due);
        life.fingerprint = handed.fingerprint;
        (life.reaper, life.is_child, life.adopted) = (handed.reaper, handed.is_child, handed.adopted);
        life.foreign_group = handed.foreign_group.map(ForeignGroup::found_before).map(Arc::new);
        Some(life)
    }

    /// Its groups, or others where these are not below the ones groups are made in now.
    fn group_of(&mut self, handed: &HandedLife, worker: &Worker, index: u32) -> Option<Group> {
        let name = format!("{}{}.{index}-{}", group::REPLICA, file_name(&worker.name), handed.slot);
        let entry = roster::Entry {
            worker: worker.name.to_string(),
            index,
            process: handed.process,
            ready: true,
            leaving: false,
            restarts: 0,
            requests: handed.requests,
            fingerprint: handed.fingerprint,
            on_daemon_death: worker.on_daemon_death,
            stop_signal: worker.stop.signal.0,
            stop_within_ms: 0,
            members: handed.known.clone(),
            groups: handed.groups.clone(),
            mark: handed.mark.clone(),
        };
        self.move_into_group(&name, &entry)
    }
}

fn copy<'a>(replica: &'a Replica, kept: &mut Kept<'a>) -> Copy {
    Copy {
        worker: replica.worker.name.to_string(),
        index: replica.index,
        standing: replica.standing,
        fingerprint: roster::fingerprint(&replica.worker),
        stop_signal: replica.worker.stop.signal.0,
        stop_within: replica.worker.stop.within,
        history: replica.history.clone(),
        restarts: replica.restarts,
        cause: replica.cause.map(str::to_owned),
        last_exit: replica.last_exit,
        wish: replica.wish.map(|wish| HandedWish {
            cause: wish.cause.to_owned(),
            since: wish.since,
            not_before: wish.not_before,
            keeps_gap: wish.keeps_gap,
        }),
        failed_replacements: replica.failed_replacements,
        successor_of: replica.successor_of.as_ref().map(|of| HandedReplaced {
            cause: of.cause.to_owned(),
            pid: of.pid,
            manner: of.manner.clone(),
        }),
        lock: replica.lock.as_ref().map(|lock| kept.keep(lock.fd())),
        life: replica.life.as_ref().map(|life| handed(life, kept)),
    }
}

fn handed<'a>(life: &'a Life, kept: &mut Kept<'a>) -> HandedLife {
    let notify = life.notify.as_ref().or_else(|| life.check.as_ref().and_then(|check| check.notify.as_ref()));
    HandedLife {
        slot: life.slot.0,
        process: life.process.identity(),
        pidfd: kept.keep(life.process.pidfd()),
        groups: life.group.as_ref().map(Group::identities).unwrap_or_default(),
        account: life.group.as_ref().map(Group::account),
        started: life.started,
        lifetime_due: life.lifetime_due,
        known: life.known.clone(),
        peak_memory: life.peak_memory,
        cpu: life.cpu,
        memory: life.memory,
        exit: life.exit,
        survivors_killed: life.survivors_killed,
        asked: life.asked,
        kill_wanted: life.kill_wanted,
        killed_by_us: life.killed_by_us,
        oom: life.oom,
        overran: life.overran,
        check: life.check.as_ref().map(Check::began),
        pulse: life.pulse.as_ref().map(Pulse::standing),
        notify: notify.map(|notify| (notify.name().to_owned(), kept.keep(notify.fd()))),
        requests: life.requests,
        requests_due: life.requests_due,
        fingerprint: life.fingerprint,
        mark: life.mark.clone(),
        reaper: life.reaper,
        is_child: life.is_child,
        adopted: life.adopted,
        foreign_group: life.foreign_group.as_ref().map(|group| group.path().to_path_buf()),
    }
}
