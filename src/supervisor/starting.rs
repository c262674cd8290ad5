//! Starting replicas: what has to be there first, everything between the settings and a running process, and when it is ready.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::env_file;
use crate::config::settings::{Lock, OnDaemonDeath, ReadyBy, Restart, Signal, Worker};
use crate::host::accounts;
use crate::host::clock::Moment;
use crate::host::foreign;
use crate::host::group::{self, Group};
use crate::host::ksm;
use crate::host::process::{self, Process};
use crate::host::sockets::{self, HeldLock, NotifySocket};
use crate::host::spawn::{self, Launch, SpawnError};
use crate::host::{Paths, scan};
use crate::journal::Event;
use crate::sampling::readings::SlotId;

use super::environment;
use super::orphans;
use super::output::Given;
use super::readiness::{self, Check, Tree};
use super::replica::{Life, Replica};
use super::slot::{self, Role};
use super::state::{self, Next, Purpose, State};
use super::supervisor::{Supervisor, Surroundings, file_name, spread};

/// How often a lock that somebody else holds is tried again: its death is noticed within a second.
const LOCK_LOOK: Duration = Duration::from_millis(250);

/// After a replacement that came to nothing the next is tried after so long, doubled each time up to the longest.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_LONGEST: Duration = Duration::from_secs(600);

/// Why a replica could not be started.
#[derive(Debug)]
enum LaunchError {
    Spawn(SpawnError),
    /// What it is to be started with is not there.
    Kit(io::Error),
}

impl LaunchError {
    fn is_shortage(&self) -> bool {
        match self {
            LaunchError::Spawn(error) => error.is_shortage(),
            LaunchError::Kit(error) => spawn::is_shortage(error),
        }
    }

    fn shell_code(&self) -> i32 {
        match self {
            LaunchError::Spawn(error) => error.shell_code(),
            LaunchError::Kit(_) => 126,
        }
    }
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::Spawn(error) => error.fmt(f),
            LaunchError::Kit(error) => error.fmt(f),
        }
    }
}

/// What a life is started with.
struct Started {
    process: Process,
    group: Option<Group>,
    notify: Option<NotifySocket>,
}

impl Supervisor {
    /// Starts the copy at `place` if it is due and nothing it waits for is missing.
    pub(super) fn start_if_due(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let Some(replica) = self.replicas.get(place) else { return };
        let due = match replica.standing.state {
            State::Waiting => true,
            State::Backoff { until } => until <= now.steady,
            _ => false,
        };
        if !due
            || self.closing
            || replica.worker.adopt.is_some()
            || replica.standing.role == Role::Leaving
            || replica.look_again.is_some_and(|at| at > now.steady)
        {
            return;
        }
        let waits_for = self.missing_before(place).or_else(|| self.take_lock(place, now));
        let Some(replica) = self.replicas.get_mut(place) else { return };
        replica.waits_for = waits_for;
        if replica.waits_for.is_none() {
            replica.look_again = None;
            self.start(place, now, events);
        }
    }

    /// What a replica that is started for the first time comes after, or is still in its place.
    fn missing_before(&self, place: usize) -> Option<String> {
        let replica = self.replicas.get(place)?;
        let is_old = |other: &Replica| {
            let gives_way = matches!(other.state(), State::Stopping { purpose: Purpose::GiveWay, .. });
            other.is_copy_of(&replica.worker.name, replica.index) && other.standing.role == Role::Leaving && !gives_way
        };
        if replica.is_main() && self.replicas.iter().any(is_old) {
            return Some("the one before it to end".to_owned());
        }
        // Once up, it is restarted whatever has become of the others since.
        if replica.last_exit.is_some() || replica.restarts > 0 || replica.standing.role == Role::Successor {
            return None;
        }
        let is_there = |name: &Arc<str>| {
            let mut copies = self.replicas.iter().filter(|other| other.worker.name == *name && other.is_main());
            copies.all(|other| other.is_ready() || other.has_done())
        };
        replica.worker.after.iter().find(|name| !is_there(name)).map(|name| format!("{name} to be ready"))
    }

    /// Takes the lock of a singleton. What it waits for, if somebody else holds it.
    fn take_lock(&mut self, place: usize, now: Moment) -> Option<String> {
        let replica = self.replicas.get_mut(place)?;
        let lock = replica.worker.lock.as_ref().filter(|_| replica.lock.is_none())?;
        let path = lock_path(&self.around, lock);
        replica.look_again = None;
        let why = match HeldLock::try_take(&path) {
            Ok(Some(held)) => {
                replica.lock = Some(held);
                return None;
            }
            Ok(None) => HeldLock::holder(&path).map(|who| format!(", held by pid {who}")).unwrap_or_default(),
            Err(error) => format!(": {error}"),
        };
        replica.look_again = Some(now.steady + LOCK_LOOK);
        Some(format!("the lock {}{why}", path.display()))
    }

    fn start(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let slot = SlotId(self.next_slot);
        let Some(replica) = self.replicas.get(place) else { return };
        let worker = replica.worker.clone();
        if worker.process.merge_pages {
            self.tell_if_not_merged(&worker, events);
        }
        let output = self.outputs.give(&worker, &self.around.paths, now, events).map_err(LaunchError::Kit);
        let Some(replica) = self.replicas.get(place) else { return };
        // Without a group of its own a worker still runs; the throttle then works by signals.
        let name = format!("{}{}.{}-{}", group::REPLICA, file_name(&worker.name), replica.index, slot.0);
        let group = self.around.groups.create(&name).ok().flatten();
        match output.and_then(|output| self.launch(&worker, replica, slot, output, group.as_ref())) {
            Ok((process, notify)) => self.note_started(place, slot, Started { process, group, notify }, now, events),
            Err(error) => {
                self.vacant.extend(group);
                self.note_not_started(place, &error, now, events);
            }
        }
    }

    /// A worker is worth more than the memory it might save: it is started all the same, and it is said once.
    fn tell_if_not_merged(&mut self, worker: &Worker, events: &mut Vec<Event>) {
        match ksm::missing(&self.around.paths) {
            None => drop(self.unmerged.remove(&worker.name)),
            Some(why) if self.unmerged.insert(worker.name.clone()) => {
                let detail = format!("pages of worker \"{}\" are not merged: {why}", worker.name);
                events.push(Event::Degraded { part: "merge_pages", detail });
            }
            Some(_) => {}
        }
    }

    /// Lowering it needs a privilege that many containers do not have: the worker runs all the same, and it is said once.
    fn tell_if_not_spared(&mut self, worker: &Worker, pid: i32, events: &mut Vec<Event>) {
        let Some(wanted) = worker.process.oom_score_adj else { return };
        match process::oom_score_adj_of(&self.around.paths, pid) {
            Some(is) if is != wanted => {
                let name = &worker.name;
                let detail = format!("worker \"{name}\" has an oom_score_adj of {is}, not {wanted}: to lower it needs CAP_SYS_RESOURCE");
                if self.unspared.insert(name.clone()) {
                    events.push(Event::Degraded { part: "oom_score_adj", detail });
                }
            }
            Some(_) => drop(self.unspared.remove(&worker.name)),
            // It has ended already.
            None => {}
        }
    }

    /// Everything between the settings and a running process.
    fn launch(
        &self,
        worker: &Worker,
        replica: &Replica,
        slot: SlotId,
        output: Given,
        group: Option<&Group>,
    ) -> Result<(Process, Option<NotifySocket>), LaunchError> {
        let around = &self.around;
        let user = match &worker.user {
            Some(user) => Some(accounts::find(user, worker.group.as_deref()).map_err(LaunchError::Kit)?),
            None => None,
        };
        let mut variables = read_env_files(worker).map_err(LaunchError::Kit)?;
        variables.extend(worker.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut env = environment::of_worker(&around.env, user.as_ref(), &variables.into_iter().collect());
        env.push((orphans::MARK.into(), orphans::mark(around.keeper, slot).into()));
        env.extend(output.journal_stream.map(|stream| ("JOURNAL_STREAM".into(), stream.into())));
        let notify = match worker.ready.by {
            ReadyBy::Notify => {
                let socket = NotifySocket::bind(&format!("plimsoll/{}/{}", around.keeper, slot.0)).map_err(LaunchError::Kit)?;
                env.push(("NOTIFY_SOCKET".into(), OsString::from(socket.name())));
                Some(socket)
            }
            _ => None,
        };
        let sockets = self.sockets.of(worker).map_err(LaunchError::Kit)?;
        let kept = replica.lock.as_ref().map(HeldLock::share).transpose().map_err(LaunchError::Kit)?;
        let entrances = group.map(Group::entrances).transpose().map_err(LaunchError::Kit)?.unwrap_or_default();
        let launch = Launch {
            command: worker.command.clone(),
            directory: worker.directory.clone(),
            env,
            user,
            groups: entrances,
            oom_score_adj: around.oom_score_adj,
            descriptors: around.descriptors,
            nice: around.nice,
            settings: worker.process.clone(),
            inherit_stdin: around.command.as_ref().is_some_and(|command| command.worker == worker.name),
            output: output.descriptor,
            sockets,
            kept: kept.into_iter().collect(),
            on_daemon_death: match worker.on_daemon_death {
                OnDaemonDeath::Resume => Signal(libc::SIGCONT),
                OnDaemonDeath::Stop => worker.stop.signal,
            },
        };
        let pid = spawn::spawn(&launch).map_err(LaunchError::Spawn)?;
        // It is our child and not reaped yet: the number cannot have been given away.
        let held = Process::open_child(&around.paths, pid);
        if !matches!(held, Ok(Some(_))) {
            process::kill_session(pid);
        }
        let lost = || io::Error::other("it could not be found in /proc, and was ended again");
        let process = held.and_then(|held| held.ok_or_else(lost)).map_err(LaunchError::Kit)?;
        Ok((process, notify))
    }

    fn note_started(&mut self, place: usize, slot: SlotId, started: Started, now: Moment, events: &mut Vec<Event>) {
        self.next_slot += 1;
        let Some(replica) = self.replicas.get_mut(place) else { return };
        let worker = replica.worker.clone();
        let Started { process, group, notify } = started;
        if let (Some(socket), Some(watch)) = (&notify, &self.watch) {
            // Without it the loop hears of it at its next turn.
            let _ = watch.add(socket.fd(), slot.0);
        }
        let again = replica.restarts > 0 || replica.last_exit.is_some();
        replica.restarts += u32::from(again && replica.is_main());
        replica.standing.state = State::Starting { since: now.steady, ready_by: now.steady + worker.ready.within };
        let pid = process.pid();
        let is_shared = !worker.listen.is_empty() || replica.standing.role == Role::Successor || self.desired(&worker) > 1;
        let Some(replica) = self.replicas.get_mut(place) else { return };
        let mark = orphans::mark(self.around.keeper, slot);
        let check = Check::new(&worker.ready.by, is_shared, notify, now.steady);
        replica.life = Some(Life { check: Some(check), ..Life::begin(slot, process, group, now, &worker, mark) });
        self.totals.entry(worker.name.clone()).or_default().starts += 1;
        let command = worker.command.join(" ");
        events.push(Event::WorkerStarted { worker: worker.name.to_string(), replica: replica.index, pid, command });
        self.tell_if_not_spared(&worker, pid, events);
        if worker.ready.by == ReadyBy::Running {
            self.note_ready(place, now, events);
        }
    }

    fn note_not_started(&mut self, place: usize, error: &LaunchError, now: Moment, events: &mut Vec<Event>) {
        let Some(replica) = self.replicas.get_mut(place) else { return };
        let worker = replica.worker.clone();
        if replica.standing.role == Role::Successor {
            self.note_failed_replacement(place, error.to_string(), now, events);
            self.on_copies(place, |copies, number| slot::not_spawned(copies, number, Next::Stopped, now.steady));
            return;
        }
        let restart = match worker.restart {
            Restart::Never => Restart::Never,
            // A program that cannot be started has failed, whatever the policy says of clean ends.
            Restart::Always | Restart::OnFailure => Restart::Always,
        };
        let spread = spread(self.next_slot);
        let next = state::after_end(restart, &worker.backoff, &mut replica.history, false, Duration::ZERO, now.steady, spread);
        let next = match next {
            // That no process can be made is no fault of the program: it is tried for as long as it takes.
            Next::Failed if error.is_shortage() => Next::StartAt(now.steady + worker.backoff.longest),
            // The same again at once would fail in the same way.
            Next::StartAt(at) if at <= now.steady => Next::StartAt(now.steady + state::delay(&worker.backoff, 1, spread)),
            next => next,
        };
        let is_command = self.around.command.as_ref().is_some_and(|command| command.worker == worker.name);
        let next = if is_command && replica.last_exit.is_none() { Next::Stopped } else { next };
        replica.standing.state = state::cleared(next, now.steady);
        let next_try_seconds = match next {
            Next::StartAt(at) => Some(at.saturating_sub(now.steady).as_secs_f64()),
            Next::Failed | Next::Stopped => None,
        };
        events.push(Event::WorkerStartFailed {
            worker: worker.name.to_string(),
            replica: replica.index,
            error: error.to_string(),
            next_try_seconds,
        });
        if is_command && next_try_seconds.is_none() {
            self.finished = Some(error.shell_code());
        } else if next == Next::Failed {
            super::ending::give_up(replica, events);
        }
        if next_try_seconds.is_none() {
            replica.lock = None;
        }
    }

    /// Looks at everybody who is being started: ready, or out of time.
    pub(super) fn look_for_ready(&mut self, now: Moment, events: &mut Vec<Event>) {
        for place in 0..self.replicas.len() {
            let Some(replica) = self.replicas.get_mut(place) else { continue };
            let State::Starting { ready_by, .. } = replica.standing.state else { continue };
            let Some(life) = replica.life.as_mut() else { continue };
            // Taken out while it asks the life about its tree.
            let Some(mut check) = life.check.take() else { continue };
            let is_ready =
                check.look(now.steady, &self.around.paths, &TreeOf { life, keeper: self.around.keeper, paths: &self.around.paths });
            let missing = check.missing.clone();
            life.check = Some(check);
            if is_ready {
                self.note_ready(place, now, events);
            } else if ready_by <= now.steady {
                self.note_overdue(place, missing, now, events);
            }
        }
        self.listen_on();
    }

    /// One look of a check at the life at `place`.
    pub(super) fn ask_once(&self, place: usize, check: &mut Check, now: Moment) -> bool {
        let Some(life) = self.replicas.get(place).and_then(|replica| replica.life.as_ref()) else { return false };
        let tree = TreeOf { life, keeper: self.around.keeper, paths: &self.around.paths };
        check.look(now.steady, &self.around.paths, &tree)
    }

    /// Takes in what those say who are ready already: else the loop would be woken for it without end.
    fn listen_on(&mut self) {
        let Some(watch) = &self.watch else { return };
        if !self.replicas.iter().any(|replica| replica.life.as_ref().is_some_and(|life| life.notify.is_some())) {
            return;
        }
        let spoken = watch.readable();
        let lives = self.replicas.iter().filter_map(|replica| replica.life.as_ref());
        for life in lives.filter(|life| spoken.contains(&life.slot.0)) {
            if let Some(notify) = &life.notify {
                readiness::was_told(notify, &TreeOf { life, keeper: self.around.keeper, paths: &self.around.paths });
            }
        }
    }

    fn note_ready(&mut self, place: usize, now: Moment, events: &mut Vec<Event>) {
        let Some(replica) = self.replicas.get_mut(place) else { return };
        self.roster_is_stale = true;
        let checked = replica.worker.ready.by != ReadyBy::Running;
        let within = replica.worker.stop.within;
        let replaced = replica.successor_of.take();
        let Some(life) = replica.life.as_mut() else { return };
        life.notify = life.check.take().and_then(|check| check.notify);
        let (pid, after_seconds) = (life.process.pid(), now.since(life.started).as_secs_f64());
        events.push(Event::WorkerReady { worker: replica.worker.name.to_string(), replica: replica.index, pid, after_seconds });
        // Before the old one is asked to end: afterwards nobody can tell any more whose its orphans are.
        let (name, index) = (replica.worker.name.clone(), replica.index);
        if replica.standing.role == Role::Successor {
            self.meet_all(|replica| replica.is_copy_of(&name, index) && replica.is_main());
        }
        let took_over = self.on_copies(place, |copies, number| slot::ready(copies, number, now.steady, checked, now.steady + within));
        if took_over != Some(true) {
            return;
        }
        let old = self.replicas.iter().position(|replica| {
            replica.is_copy_of(&name, index)
                && matches!(replica.state(), State::Stopping { purpose: Purpose::GiveWay, .. })
                && replica.cause.is_none()
        });
        if let Some(old) = old {
            if let Some(replica) = self.replicas.get_mut(old) {
                replica.cause = Some(replaced.as_ref().map_or("manual", |replaced| replaced.cause));
                replica.successor_of = replaced;
            }
            self.inherit(old);
        }
        self.ask_those_to_end();
    }

    fn note_overdue(&mut self, place: usize, missing: String, now: Moment, events: &mut Vec<Event>) {
        let Some(replica) = self.replicas.get_mut(place) else { return };
        let slot = replica.slot();
        let within = replica.worker.stop.within;
        let is_successor = replica.standing.role == Role::Successor;
        replica.cause = Some("deadline");
        let seconds = replica.worker.ready.within.as_secs_f64();
        let why = if missing.is_empty() { String::new() } else { format!(": {missing}") };
        events.push(Event::WorkerNotReady {
            worker: replica.worker.name.to_string(),
            replica: replica.index,
            pid: replica.life.as_ref().map_or(0, |life| life.process.pid()),
            within_seconds: seconds,
            detail: missing,
        });
        self.meet_all(|replica| replica.slot() == slot);
        self.on_copies(place, |copies, number| slot::overdue(copies, number, now.steady + within));
        if is_successor {
            self.note_failed_replacement(place, format!("it was not ready within {seconds} s{why}"), now, events);
        }
        self.ask_those_to_end();
    }

    /// The old one stays, and is to be replaced later.
    pub(super) fn note_failed_replacement(&mut self, place: usize, why: String, now: Moment, events: &mut Vec<Event>) {
        let Some(successor) = self.replicas.get_mut(place) else { return };
        let (name, index) = (successor.worker.name.clone(), successor.index);
        let Some(replaced) = successor.successor_of.take() else { return };
        let Some(old) = self.replicas.iter_mut().find(|replica| replica.is_copy_of(&name, index) && replica.is_main()) else { return };
        old.failed_replacements = old.failed_replacements.saturating_add(1);
        let wait = AGAIN.saturating_mul(1 << (old.failed_replacements - 1).min(16)).min(AGAIN_LONGEST);
        if old.is_running() {
            let keeps_gap = replaced.cause != "manual" && replaced.cause != "reload";
            old.wish = Some(super::recycling::Wish { cause: replaced.cause, since: now.steady, not_before: now.steady + wait, keeps_gap });
        }
        events.push(Event::WorkerRecycleFailed {
            worker: name.to_string(),
            replica: index,
            pid: replaced.pid,
            cause: replaced.cause,
            error: why,
            next_try_seconds: wait.as_secs_f64(),
        });
        self.note_replaced(&name, now);
    }
}

/// Files of variables are read at each start, so that what they say now holds.
fn read_env_files(worker: &Worker) -> io::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for file in &worker.env_files {
        let about = |error: &dyn std::fmt::Display| format!("could not read its variables from {}: {error}", file.path.display());
        match std::fs::read(&file.path) {
            Ok(text) => {
                let parsed = env_file::parse(&text).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, about(&fault)))?;
                variables.extend(parsed);
            }
            Err(error) if file.optional && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), about(&error))),
        }
    }
    Ok(variables)
}

fn lock_path(around: &Surroundings, lock: &Lock) -> PathBuf {
    match lock {
        Lock::Own(name) => around.locks.join(name),
        Lock::At(path) => path.clone(),
    }
}

/// A life as its check of readiness sees it.
struct TreeOf<'a> {
    life: &'a Life,
    keeper: i32,
    paths: &'a Paths,
}

impl TreeOf<'_> {
    fn members(&self) -> Vec<i32> {
        let mut processes = Vec::new();
        if scan::processes(self.paths, &mut processes, &mut Vec::new()).is_err() {
            return vec![self.life.process.pid()];
        }
        self.life.pids(self.keeper, &processes)
    }
}

impl Tree for TreeOf<'_> {
    fn holds(&self, pid: i32) -> bool {
        pid == self.life.process.pid() || self.members().contains(&pid)
    }

    fn owns(&self, inode: u64) -> bool {
        sockets::owns(self.paths, self.life.process.pid(), inode) || self.members().iter().any(|pid| sockets::owns(self.paths, *pid, inode))
    }

    fn held_before(&self, inode: u64) -> Option<String> {
        let mut processes = Vec::new();
        scan::processes(self.paths, &mut processes, &mut Vec::new()).ok()?;
        let members = self.life.pids(self.keeper, &processes);
        let since = self.life.process.started();
        let before = processes.iter().filter(|stat| stat.started < since && !stat.has_ended() && !members.contains(&stat.pid));
        let holder = before.map(|stat| stat.pid).find(|pid| sockets::owns(self.paths, *pid, inode))?;
        let line = foreign::command_line(self.paths, holder).unwrap_or_default();
        let program: String = line.split(' ').next().unwrap_or_default().chars().take(64).collect();
        Some(format!("pid {holder} ({program})"))
    }
}
