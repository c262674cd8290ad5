//! Workers of an earlier daemon that are still alive: taken over, or ended, before anybody else is started in their place.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Leftovers, ListenAddress, ReadyBy, Signal, Stop, Worker};
use crate::host::clock::Moment;
use crate::host::group::{self, Group};
use crate::host::process::Process;
use crate::host::{Paths, scan, sockets};
use crate::journal::Event;
use crate::sampling::readings::SlotId;

use super::readiness::Check;
use super::replica::{Life, Replica};
use super::roster::{self, Entry};
use super::slot::{Role, Standing};
use super::state::{Purpose, State};
use super::supervisor::{Supervisor, file_name};

/// A tree is moved into its new groups until nobody new is found, at most so often: whoever forks faster is left where it is.
const ROUNDS: u32 = 16;

/// Who is left of an earlier daemon, each held by a descriptor.
#[derive(Debug)]
pub struct Leftover {
    pub entry: Entry,
    process: Process,
    /// It is our own child: this daemon replaced itself.
    is_child: bool,
}

impl Leftover {
    /// Those of `entries` who are alive; their first process is. Where only descendants are left, nobody is there to be taken over.
    pub fn find(entries: Vec<Entry>, is_child: bool, paths: &Paths) -> Vec<Leftover> {
        let open = |entry: Entry| {
            let process = Process::open(paths, entry.process).ok().flatten()?;
            let mut processes = Vec::new();
            let is_ending = scan::processes(paths, &mut processes, &mut Vec::new()).is_ok()
                && processes.iter().any(|stat| stat.pid == entry.process.pid && stat.has_ended());
            // A zombie of ours is told of by `wait`; one of somebody else's is nobody.
            (is_child || !is_ending).then_some(Leftover { entry, process, is_child })
        };
        entries.into_iter().filter_map(open).collect()
    }

    /// A copy of its listening socket for this address, if it has one and we may.
    pub fn socket(&self, address: &ListenAddress) -> Option<OwnedFd> {
        sockets::take_from(&self.process, address)
    }
}

impl Supervisor {
    /// Takes over who is left of an earlier daemon, or has them end: who is not in the settings any more, or when `choice` says so. To
    /// be called after [`Supervisor::apply`] and before anybody is started.
    pub fn take_over(&mut self, leftovers: Vec<Leftover>, choice: Leftovers, now: Moment, events: &mut Vec<Event>) {
        for leftover in leftovers {
            let is_free = |replica: &Replica| {
                replica.is_copy_of(&leftover.entry.worker, leftover.entry.index) && replica.is_main() && replica.life.is_none()
            };
            let place = self.replicas.iter().position(is_free);
            match place.filter(|_| !leftover.entry.leaving && (choice == Leftovers::Adopt || leftover.is_child)) {
                Some(place) => self.adopt(place, leftover, now, events),
                None => self.have_end(leftover, place, now, events),
            }
        }
        self.ask_those_to_end();
        self.renumber();
    }

    fn adopt(&mut self, place: usize, leftover: Leftover, now: Moment, events: &mut Vec<Event>) {
        let Some(worker) = self.replicas.get(place).map(|replica| replica.worker.clone()) else { return };
        let entry = leftover.entry.clone();
        let mut life = self.life_of(leftover, &worker, now);
        // Where it would say that it is ready nobody listens any more: it is taken at its looks.
        let is_ready = entry.ready || matches!(worker.ready.by, ReadyBy::Running | ReadyBy::Notify);
        life.check = (!is_ready).then(|| Check::new(&worker.ready.by, true, None, now.steady));
        let (pid, fingerprint) = (life.process.pid(), life.fingerprint);
        let Some(replica) = self.replicas.get_mut(place) else { return };
        replica.restarts = entry.restarts;
        replica.standing.state = if is_ready {
            State::Running { since: now.steady, checked: worker.ready.by != ReadyBy::Running }
        } else {
            State::Starting { since: now.steady, ready_by: now.steady + worker.ready.within }
        };
        replica.life = Some(life);
        let changed = fingerprint != roster::fingerprint(&worker);
        if changed {
            replica.wish =
                Some(super::recycling::Wish { cause: "reload", since: now.steady, not_before: Duration::ZERO, keeps_gap: false });
        }
        let detail = if changed { "its settings have changed since, so it is replaced" } else { "" };
        let index = replica.index;
        events.push(Event::WorkerAdopted { worker: worker.name.to_string(), replica: index, pid, detail: detail.to_owned() });
    }

    /// Nobody wants it, or somebody else is to be in its place.
    fn have_end(&mut self, leftover: Leftover, place: Option<usize>, now: Moment, events: &mut Vec<Event>) {
        let entry = leftover.entry.clone();
        let known = place.and_then(|place| self.replicas.get(place)).map(|replica| replica.worker.clone());
        let worker = known.unwrap_or_else(|| {
            let stop = Stop { signal: Signal(entry.stop_signal), within: entry.stop_within() };
            Arc::new(Worker { stop, ..Worker::new(&entry.worker, Vec::new()) })
        });
        let life = self.life_of(leftover, &worker, now);
        let pid = life.process.pid();
        let mut replica = Replica::new(worker.clone(), entry.index);
        replica.cause = Some("stopped");
        replica.restarts = entry.restarts;
        let kill_at = now.steady + worker.stop.within;
        replica.standing = Standing { role: Role::Leaving, state: State::Stopping { purpose: Purpose::Down, kill_at, killed: false } };
        replica.life = Some(life);
        self.replicas.push(replica);
        let detail = if place.is_some() {
            "an earlier daemon's, ended before it is started anew"
        } else {
            "an earlier daemon's, not in the settings any more"
        };
        events.push(Event::WorkerLeftBehind { worker: entry.worker, replica: entry.index, pid, detail: detail.to_owned() });
    }

    fn life_of(&mut self, leftover: Leftover, worker: &Worker, now: Moment) -> Life {
        let slot = SlotId(self.next_slot);
        self.next_slot += 1;
        let Leftover { entry, process, is_child } = leftover;
        let mut processes = Vec::new();
        // Whoever cannot be seen now is found by the ticks.
        let _ = scan::processes(&self.around.paths, &mut processes, &mut self.scratch);
        let living = entry.living(&processes);
        let reaper = processes.iter().find(|stat| stat.pid == entry.process.pid).map(|stat| stat.ppid);
        let name = format!("{}{}.{}-{}", group::REPLICA, file_name(&entry.worker), entry.index, slot.0);
        let group = self.move_into_group(&name, &entry);
        if !is_child && let Some(watch) = &self.watch {
            // Without it its end is noticed in the next tick.
            let _ = watch.add(process.pidfd(), slot.0);
        }
        let age = roster::age(process.identity(), now.steady);
        let started = now.before(age);
        Life {
            known: living.iter().map(|stat| (stat.pid, stat.started)).collect(),
            requests: entry.requests,
            fingerprint: entry.fingerprint,
            reaper: if is_child { None } else { reaper },
            is_child,
            ..Life::begin(slot, process, group, started, worker, entry.mark)
        }
    }

    /// New groups with all of its tree in them; what it was charged for stays with the old ones.
    pub(super) fn move_into_group(&mut self, name: &str, entry: &Entry) -> Option<Group> {
        if !entry.groups.is_empty()
            && let Some(group) = self.around.groups.reopen(&entry.groups)
        {
            return Some(group);
        }
        let mut group = self.around.groups.create(name).ok().flatten()?;
        let mut moved: Vec<(i32, u64)> = Vec::new();
        for _ in 0..ROUNDS {
            let mut processes = Vec::new();
            if scan::processes(&self.around.paths, &mut processes, &mut self.scratch).is_err() {
                break;
            }
            let new: Vec<(i32, u64)> =
                entry.living(&processes).iter().map(|stat| (stat.pid, stat.started)).filter(|member| !moved.contains(member)).collect();
            if new.is_empty() {
                break;
            }
            for (pid, _) in &new {
                // One that has ended meanwhile is in no group any more.
                let _ = group.take_in(*pid);
            }
            moved.extend(new);
        }
        group.begin_anew();
        Some(group)
    }
}
