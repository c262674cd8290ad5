//! Ending replicas: asking, waiting, killing what is left, and the record of each life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::Signal;
use crate::host::clock::Moment;
use crate::host::group::Group;
use crate::host::process::{self, ExitStatus, Process};
use crate::host::scan;
use crate::journal::Event;

use super::replica::{Life, Replica};
use super::state::{self, Next, State};
use super::supervisor::{Command, Supervisor};
use super::totals::{RECYCLE_CAUSES, Totals};

/// Ended lives whose worker is still known.
const REMEMBERED: usize = 256;

/// How often a tree that is being ended is looked at until nobody is left.
const CLEARING_LOOK: Duration = Duration::from_millis(10);

impl Supervisor {
    /// Sends the stop signal to everybody who is to end and was not asked yet.
    pub(super) fn ask_those_to_end(&mut self) {
        for replica in &mut self.replicas {
            let State::Stopping { .. } = replica.standing.state else { continue };
            let Some(life) = replica.life.as_mut().filter(|life| !life.asked) else { continue };
            life.asked = true;
            // One that has ended in this very moment is reaped in the next.
            let _ = life.signal(replica.worker.stop.signal);
        }
    }

    /// Looks after everything that is being ended: kills at the deadline, asks survivors to go, notices when all are gone.
    pub fn look_after_ending(&mut self, now: Moment, events: &mut Vec<Event>) {
        let ending = |state: State| match state {
            State::Clearing { .. } => true,
            State::Stopping { kill_at, killed, .. } => killed || kill_at <= now.steady,
            _ => false,
        };
        if !self.replicas.iter().any(|replica| ending(replica.standing.state)) || self.next_look.is_some_and(|look| look > now.steady) {
            return;
        }
        // One scan serves all of them, where there is anybody to be found by it. If /proc cannot be read now, the next look tries
        // again.
        let mut processes = Vec::new();
        let are_gone = self.replicas.iter().filter(|replica| ending(replica.standing.state)).all(has_ended_alone);
        if !(are_gone && self.has_only_known_children()) {
            if scan::processes(&self.around.paths, &mut processes, &mut Vec::new()).is_err() {
                self.next_look = Some(now.steady + CLEARING_LOOK);
                return;
            }
            self.claim_orphans(&processes);
        }
        let (keeper, paths) = (self.around.keeper, &self.around.paths);
        let mut replaced = Vec::new();
        for replica in &mut self.replicas {
            if !ending(replica.standing.state) {
                continue;
            }
            let Some(life) = replica.life.as_mut() else { continue };
            // Without a descriptor to hold them by nobody may be taken for ended: the next look tries again.
            let Ok(members) = life.members(paths, keeper, &processes) else { continue };
            match &mut replica.standing.state {
                State::Stopping { killed, .. } => {
                    *killed = true;
                    life.killed_by_us = true;
                    life.overran = life.asked && !life.kill_wanted;
                    kill_all(life, &members);
                }
                State::Clearing { next, kill_at, killed } => {
                    // Whom somebody else has started, and nobody has asked to end, may leave behind whom it likes.
                    let members = if life.adopted && !life.asked { Vec::new() } else { members };
                    let fresh = life.exit.is_some_and(|(_, at)| at == now);
                    if members.is_empty() {
                        let next = *next;
                        if self.ended.len() == REMEMBERED {
                            self.ended.pop_front();
                        }
                        self.ended.push_back((life.slot, replica.worker.name.clone()));
                        replica.standing.state = state::cleared(next, now.steady);
                        replaced.extend(finish(replica, next, now, &mut self.totals, &mut self.vacant, events));
                        if let Some(code) = end_of_command(self.around.command.as_ref(), replica) {
                            self.finished = Some(code);
                        }
                        continue;
                    }
                    if *killed || *kill_at <= now.steady {
                        if !*killed {
                            life.survivors_killed = u32::try_from(members.len()).unwrap_or(u32::MAX);
                        }
                        *killed = true;
                        kill_all(life, &members);
                    } else if fresh {
                        for member in &members {
                            // One that has gone in the meantime is what we want.
                            let _ = member.signal(replica.worker.stop.signal);
                            let _ = member.signal(Signal(libc::SIGCONT));
                        }
                    }
                }
                _ => {}
            }
        }
        let more = self.replicas.iter().any(|replica| ending(replica.standing.state));
        self.next_look = more.then(|| now.steady + CLEARING_LOOK);
        for worker in replaced {
            self.note_replaced(&worker, now);
        }
    }
}

/// True when its process has ended and its group holds nobody: whoever is left of it can only be our child, or descend from one.
fn has_ended_alone(replica: &Replica) -> bool {
    let is_empty = |life: &Life| life.group.as_ref().and_then(Group::members).is_none_or(|members| members.is_empty());
    let is_handed_to_us = |life: &Life| life.is_child && !life.adopted && life.reaper.is_none() && life.foreign_group.is_none();
    replica.life.as_ref().is_none_or(|life| life.exit.is_some() && is_handed_to_us(life) && is_empty(life))
}

fn kill_all(life: &Life, members: &[Process]) {
    // At once, forks in flight included. A member may have left the group, so each is killed by itself as well.
    let _ = life.group.as_ref().is_some_and(|group| group.kill());
    for member in members {
        let _ = member.signal(Signal(libc::SIGKILL));
    }
    if life.exit.is_none() {
        let _ = life.process.signal(Signal(libc::SIGKILL));
    }
}

/// Nothing of a life is left: says so and takes its groups away. The worker, when a replacement is over with it.
fn finish(
    replica: &mut Replica,
    next: Next,
    now: Moment,
    totals: &mut BTreeMap<Arc<str>, Totals>,
    vacant: &mut Vec<Group>,
    events: &mut Vec<Event>,
) -> Option<Arc<str>> {
    let mut life = replica.life.take()?;
    let (exit, ended) = life.exit?;
    let cause = replica.cause.take();
    let overlapped = replica.successor_of.take();
    let reason = reason_of(&life, cause, exit.status);
    let peak = life.peak_memory.max(exit.peak_memory);
    let cpu = life.cpu.max(exit.cpu);
    let total = totals.entry(replica.worker.name.clone()).or_default();
    total.cpu += cpu;
    total.peak_memory = total.peak_memory.max(peak);
    total.count_exit(reason);
    let worker = replica.worker.name.clone();
    let name = worker.to_string();
    let (exit_code, signal) = match exit.status {
        ExitStatus::Code(code) => (Some(code), None),
        ExitStatus::Signal(signal) => (None, Some(process::signal_name(signal))),
        ExitStatus::Unknown => (None, None),
    };
    events.push(Event::WorkerExited {
        worker: name.clone(),
        replica: replica.index,
        pid: exit.pid,
        exit_code,
        signal,
        reason,
        peak_memory_bytes: Some(peak),
        cpu_seconds: cpu.as_secs_f64(),
        lifetime_seconds: ended.since(life.started).as_secs_f64(),
        restarts: replica.restarts,
        survivors_killed: life.survivors_killed,
    });
    vacant.extend(life.group.take());
    if matches!(replica.standing.state, State::Stopped | State::Failed) {
        replica.lock = None;
    }
    if next == Next::Failed {
        give_up(replica, events);
    }
    let cause = cause.filter(|cause| RECYCLE_CAUSES.contains(cause))?;
    let detail = match (&overlapped, next) {
        (Some(replaced), _) => format!("its replacement was ready before it was asked to end: {}", replaced.manner),
        (None, Next::StartAt(_)) => {
            format!("stopped first, then replaced; last descendant gone {:.3} s after it", now.since(ended).as_secs_f64())
        }
        (None, _) => return None,
    };
    total.count_recycle(cause);
    let (replica, memory_bytes) = (replica.index, life.memory);
    events.push(Event::WorkerRecycled { worker: name, replica, old_pid: exit.pid, cause, memory_bytes, detail });
    Some(worker)
}

/// One of [`super::totals::EXIT_REASONS`].
fn reason_of(life: &Life, cause: Option<&'static str>, status: ExitStatus) -> &'static str {
    let by_kernel = matches!(status, ExitStatus::Signal(libc::SIGKILL)) && !life.killed_by_us;
    match (cause, status) {
        _ if by_kernel && (life.oom || life.group.as_ref().is_some_and(|group| group.was_oom_killed())) => "oom",
        (Some("deadline"), _) => "deadline",
        (Some("health"), _) => "health",
        // One that ended in the same moment as asked did so by itself.
        (_, ExitStatus::Signal(libc::SIGKILL)) if life.overran => "deadline",
        (Some("stopped"), _) => "stopped",
        (Some(_), _) => "recycled",
        (None, ExitStatus::Code(0)) => "clean",
        (None, ExitStatus::Unknown) if life.adopted => "unknown",
        (None, ExitStatus::Code(_) | ExitStatus::Unknown) => "error",
        (None, ExitStatus::Signal(_)) => "signal",
    }
}

pub(super) fn give_up(replica: &Replica, events: &mut Vec<Event>) {
    events.push(Event::WorkerGaveUp {
        worker: replica.worker.name.to_string(),
        replica: replica.index,
        exits: u32::try_from(replica.history.ends.len()).unwrap_or(u32::MAX),
        within_seconds: replica.worker.backoff.within.as_secs_f64(),
    });
}

/// The code the daemon ends with, if `replica` is its command and will not be started again.
fn end_of_command(command: Option<&Command>, replica: &Replica) -> Option<i32> {
    command.filter(|command| command.worker == replica.worker.name)?;
    match replica.standing.state {
        State::Stopped | State::Failed if replica.is_main() => replica.last_exit.map(|exit| exit.status.shell_code()),
        _ => None,
    }
}
