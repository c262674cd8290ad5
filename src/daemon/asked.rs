//! What somebody asks of workers over the control socket or HTTP: begun at once, answered when it is done, or when their patience
//! is over with what it still waits for.

use std::time::Duration;

use crate::config::settings::Signal;
use crate::host::clock::Moment;
use crate::http::control::{Answer, Request, Requests, Verb, WorkerCommand};
use crate::supervisor::Replica;
use crate::supervisor::asking::{Count, Goal, Objection, Progress, Whom};

use super::guardian::Guardian;

/// Somebody who waits for an answer.
#[derive(Debug)]
pub struct Waiting {
    goal: Goal,
    until: Duration,
    request: Request,
}

impl Waiting {
    /// Ends the wait with this.
    pub fn tell(self, answer: Answer) {
        // Whoever asked may have gone away.
        let _ = self.request.answer.send(answer);
    }
}

/// More are refused.
const MOST_WAITING: usize = 256;

impl Guardian {
    /// Begins what is asked; the answer follows now or later.
    pub fn begin_worker_command(&mut self, command: &WorkerCommand, request: Request, now: Moment) {
        if self.waiting.len() >= MOST_WAITING {
            let _ = request.answer.send(Answer::Refused("too many others wait for an answer".to_owned()));
            return;
        }
        let goal = self.perform_worker_command(command, now);
        // What was changed is carried out in this very turn.
        self.tally.next_tick = self.tally.next_tick.min(now.steady);
        match goal {
            // Whoever asked may have gone away.
            Err(Objection::Unknown(why)) => drop(request.answer.send(Answer::Unknown(why))),
            Err(Objection::Refused(why)) => drop(request.answer.send(Answer::Refused(why))),
            Ok(Goal::Reached(said)) => drop(request.answer.send(Answer::Done(said))),
            Ok(goal) => {
                let within = command.wait.unwrap_or_else(|| self.patience_for(command));
                self.waiting.push(Waiting { goal, until: now.steady + within, request });
            }
        }
    }

    fn perform_worker_command(&mut self, command: &WorkerCommand, now: Moment) -> Result<Goal, Objection> {
        let whom = Whom { worker: command.worker.clone(), replica: command.replica };
        match command.verb {
            Verb::Start => self.supervisor.start_worker(&whom, now),
            Verb::Stop => {
                // Whoever is not ended stays held as well.
                self.supervisor.may_be_ended(&whom)?;
                self.free(&whom, now).map_err(Objection::Refused)?;
                self.supervisor.stop_worker(&whom, now)
            }
            Verb::Restart => {
                if !self.supervisor.is_adopted(&whom) {
                    self.free(&whom, now).map_err(Objection::Refused)?;
                }
                self.supervisor.restart_worker(&whom, now)
            }
            Verb::Recycle => self.supervisor.recycle_worker(&whom, now),
            Verb::Scale(count) => self.supervisor.scale_worker(&whom.worker, count, now),
            Verb::Signal(signal) => self.supervisor.signal_worker(&whom, signal),
            Verb::Shed => {
                let known = self.settings.workers.iter().find(|worker| worker.name == whom.worker);
                match known.map(|worker| worker.shed_signal) {
                    Some(None) => {
                        let why = format!("{} has no shed_signal: SIGUSR1 would end a program that does not expect it", whom.worker);
                        Err(Objection::Refused(why))
                    }
                    // Not known: whoever is asked for says so.
                    signal => self.supervisor.signal_worker(&whom, signal.flatten().unwrap_or(Signal(0))),
                }
            }
            Verb::Requests { pid, requests } => {
                let count = match requests {
                    Requests::More(more) => Count::More(more),
                    Requests::InAll(all) => Count::InAll(all),
                };
                self.supervisor.note_requests(&whom, pid, count)
            }
        }
    }

    /// A stopped process would not get the signal that asks it to end, one held at a line would be long about it.
    fn free(&mut self, whom: &Whom, now: Moment) -> Result<(), String> {
        let of_it = |replica: &&Replica| replica.worker.name == whom.worker && whom.replica.is_none_or(|index| replica.index == index);
        let slots: Vec<_> = self.supervisor.replicas().iter().filter(of_it).filter_map(Replica::slot).collect();
        for slot in slots {
            self.brake.let_go(slot)?;
            self.throttle.let_go(slot, now.steady)?;
        }
        Ok(())
    }

    /// As long as it may take if everything takes as long as it may.
    fn patience_for(&self, command: &WorkerCommand) -> Duration {
        let Some(worker) = self.settings.workers.iter().find(|worker| worker.name == command.worker) else { return Duration::ZERO };
        let replicas = match (&command.verb, command.replica) {
            (Verb::Recycle, None) => self.supervisor.desired(worker).max(1),
            _ => 1,
        };
        let margin = Duration::from_secs(5);
        (worker.stop.within + worker.ready.within).saturating_mul(replicas).saturating_add(margin).min(Duration::from_secs(3600))
    }

    /// Answers whoever can be answered now.
    pub fn answer_the_waiting(&mut self, now: Moment) {
        if self.waiting.is_empty() {
            return;
        }
        let mut is_told = false;
        for Waiting { goal, until, request } in std::mem::take(&mut self.waiting) {
            let answer = match self.supervisor.progress(&goal) {
                Progress::Done(said) => Answer::Done(said),
                Progress::Failed(why) => Answer::Refused(why),
                Progress::WaitsFor(what) if until <= now.steady => Answer::Waits(what),
                Progress::WaitsFor(_) => {
                    self.waiting.push(Waiting { goal, until, request });
                    continue;
                }
            };
            if !std::mem::replace(&mut is_told, true) {
                // Whoever asks again finds it done.
                self.picture_now(now);
            }
            let _ = request.answer.send(answer);
        }
    }

    /// When somebody's patience is over.
    pub fn next_answer(&self) -> Option<Duration> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }
}
