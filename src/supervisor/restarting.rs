//! How an adopted worker is replaced: by the command the settings name, run as a child of ours with a deadline. It has done its
//! work when the old process has ended; the new one is then looked for like any other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Signal, Worker};
use crate::host::clock::Moment;
use crate::host::process::{self, Exit, ExitStatus, Process, Root, tree_of};
use crate::host::procfs::Stat;
use crate::host::spawn::{self, Entrances, Launch};
use crate::journal::Event;
use crate::sampling::readings::SlotId;

use super::environment;
use super::orphans;
use super::recycling::Wish;
use super::supervisor::Supervisor;

/// After a restart that came to nothing the next is tried after so long, doubled each time up to the longest.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_LONGEST: Duration = Duration::from_secs(600);

/// A restart command that was started.
#[derive(Debug)]
pub(super) struct Restarting {
    worker: Arc<Worker>,
    index: u32,
    /// The life that is to be replaced.
    slot: SlotId,
    /// Of that.
    pid: i32,
    cause: &'static str,
    command: Process,
    until: Duration,
    /// How the command has ended.
    ended: Option<ExitStatus>,
    /// It has taken too long and was killed.
    overran: bool,
}

impl Supervisor {
    /// A replica's turn to be replaced has come, and somebody else has started it.
    pub(super) fn begin_restart(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let Some(replica) = self.replicas.get_mut(place) else { return };
        if self.restarting.iter().any(|restarting| restarting.worker.name == replica.worker.name) {
            // One command at a time; its turn comes again.
            return;
        }
        let (Some(wish), Some(life)) = (replica.wish.take(), replica.life.as_ref()) else { return };
        let (worker, index, slot, pid) = (replica.worker.clone(), replica.index, life.slot, life.process.pid());
        let Some((command, within)) = worker.adopt.as_ref().and_then(|adopt| Some((adopt.restart.as_ref()?, adopt.restart_within))) else {
            return;
        };
        let detail = format!("its restart command is run: {}", command.join(" "));
        events.push(Event::WorkerRecycling { worker: worker.name.to_string(), replica: index, pid, cause: wish.cause, detail });
        match self.spawn_restart(&worker, command, pid) {
            Ok(command) => {
                if let Some(replica) = self.replicas.get_mut(place) {
                    replica.cause = Some(wish.cause);
                    replica.restarting = true;
                }
                let until = now.steady + within;
                let cause = wish.cause;
                self.restarting.push(Restarting { worker, index, slot, pid, cause, command, until, ended: None, overran: false });
            }
            Err(error) => self.note_failed_restart(&worker, index, slot, pid, wish.cause, error.to_string(), now, events),
        }
    }

    fn spawn_restart(&self, worker: &Worker, command: &[String], pid: i32) -> io::Result<Process> {
        let around = &self.around;
        let variables = [("PLIMSOLL_WORKER".to_owned(), worker.name.to_string()), ("PLIMSOLL_PID".to_owned(), pid.to_string())];
        let mut env = environment::of_worker(&around.env, None, &variables.into_iter().collect());
        env.push((orphans::MARK.into(), orphans::RESTARTED.into()));
        let launch = Launch {
            command: command.to_vec(),
            directory: None,
            env,
            user: None,
            groups: Entrances::default(),
            // What it starts is not to be spared by the kernel for our sake.
            oom_score_adj: around.oom_score_adj,
            descriptors: around.descriptors,
            nice: around.nice,
            settings: Default::default(),
            inherit_stdin: false,
            output: None,
            sockets: Vec::new(),
            kept: Vec::new(),
            // A restart that is half done is not broken off because we die.
            on_daemon_death: Signal(libc::SIGCONT),
        };
        let child = spawn::spawn(&launch).map_err(|error| io::Error::other(error.to_string()))?;
        let held = Process::open_child(&around.paths, child);
        if !matches!(held, Ok(Some(_))) {
            process::kill_session(child);
        }
        held?.ok_or_else(|| io::Error::other("it could not be found in /proc, and was ended again"))
    }

    /// True when a child that has ended was a restart command.
    pub(super) fn note_restart_ended(&mut self, exit: &Exit) -> bool {
        let is_it = |restarting: &&mut Restarting| restarting.ended.is_none() && restarting.command.pid() == exit.pid;
        let Some(restarting) = self.restarting.iter_mut().find(is_it) else { return false };
        restarting.ended = Some(exit.status);
        // What it has started may be found now.
        self.searches.remove(&restarting.worker.name);
        true
    }

    /// The processes of the commands that run.
    pub(super) fn restarts_running<'a>(&'a self, processes: &'a [Stat]) -> impl Iterator<Item = (String, Vec<Stat>)> + 'a {
        self.restarting.iter().filter(|restarting| restarting.ended.is_none()).map(|restarting| {
            let root = Root { pid: restarting.command.pid(), started: restarting.command.started(), ended: None };
            (restarting.worker.name.to_string(), tree_of(root, self.around.keeper, &[], processes))
        })
    }

    pub(super) fn next_restart_deadline(&self) -> Option<Duration> {
        self.restarting.iter().filter(|restarting| !restarting.overran).map(|restarting| restarting.until).min()
    }

    /// Ends commands that take too long, and says what has become of those that have ended.
    pub(super) fn look_after_restarts(&mut self, now: Moment, events: &mut Vec<Event>) {
        if self.restarting.is_empty() {
            return;
        }
        for restarting in self.restarting.iter_mut().filter(|restarting| restarting.ended.is_none() && restarting.until <= now.steady) {
            if !std::mem::replace(&mut restarting.overran, true) {
                // It is our child, not reaped yet, and leads a session of its own.
                process::kill_session(restarting.command.pid());
            }
        }
        for restarting in std::mem::take(&mut self.restarting) {
            let goes_on = self.replica(restarting.slot).is_some_and(|replica| replica.is_running());
            let within = restarting.worker.adopt.as_ref().map(|adopt| adopt.restart_within).unwrap_or_default().as_secs_f64();
            let failed = match restarting.ended {
                None => {
                    self.restarting.push(restarting);
                    continue;
                }
                Some(_) if restarting.overran => Some(format!("the restart command took longer than {within} s, and was ended")),
                Some(status) if !status.is_clean() => Some(format!("the restart command ended with {}", in_words(status))),
                Some(_) if !goes_on => None,
                Some(_) if now.steady < restarting.until => {
                    self.restarting.push(restarting);
                    continue;
                }
                Some(_) => Some(format!("the restart command has ended, and pid {} goes on after {within} s", restarting.pid)),
            };
            let Restarting { worker, index, slot, pid, cause, .. } = restarting;
            if let Some(replica) = self.replicas.iter_mut().find(|replica| replica.is_copy_of(&worker.name, index)) {
                replica.restarting = false;
                if failed.is_none() {
                    replica.failed_replacements = 0;
                }
            }
            if let Some(why) = failed {
                self.note_failed_restart(&worker, index, slot, pid, cause, why, now, events);
            }
        }
    }

    /// It goes on as it is, and is to be replaced later.
    #[expect(clippy::too_many_arguments, reason = "one event's worth of fields")]
    fn note_failed_restart(
        &mut self,
        worker: &Arc<Worker>,
        index: u32,
        slot: SlotId,
        pid: i32,
        cause: &'static str,
        error: String,
        now: Moment,
        events: &mut Vec<Event>,
    ) {
        let mut wait = AGAIN;
        if let Some(replica) = self.replicas.iter_mut().find(|replica| replica.slot() == Some(slot) && replica.is_running()) {
            replica.failed_replacements = replica.failed_replacements.saturating_add(1);
            wait = AGAIN.saturating_mul(1 << (replica.failed_replacements - 1).min(16)).min(AGAIN_LONGEST);
            replica.cause = None;
            let keeps_gap = cause != "manual" && cause != "reload";
            replica.wish = Some(Wish { cause, since: now.steady, not_before: now.steady + wait, keeps_gap });
        }
        let next_try_seconds = wait.as_secs_f64();
        events.push(Event::WorkerRecycleFailed { worker: worker.name.to_string(), replica: index, pid, cause, error, next_try_seconds });
        self.note_replaced(&worker.name, now);
    }
}

fn in_words(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("code {code}"),
        ExitStatus::Signal(signal) => process::signal_name(signal).to_owned(),
        ExitStatus::Unknown => "a code that is not known".to_owned(),
    }
}
