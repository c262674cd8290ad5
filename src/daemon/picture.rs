//! Takes the picture that is published: the last readings, verdicts and states as plain data.
//!
//! The picture before the published one is taken up again and written over, so that a steady tick allocates nothing; while
//! somebody still reads it, he keeps it and a new one is begun. Words are therefore written *into* what is there.

use std::fmt::Write;
use std::sync::Arc;

use crate::actuators::throttle::Method;
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::{Paths, procfs, scan};
use crate::policy::verdict::Basis;
use crate::policy::{Level, Resource, Verdict};
use crate::response::refusal::Reason;
use crate::sampling::readings::{CpuReadings, DiskReadings, MemoryReadings, Pressure, PressureReadings, Reading, Source, WorkerReadings};
use crate::snapshot::{
    Counters, CpuState, DaemonState, DiskState, Environment, Histogram, MemoryState, PolicyState, PressureState, ReplicaState,
    ResourceState, Snapshot, WorkerState,
};
use crate::supervisor::Replica;
use crate::supervisor::state::State;
use crate::supervisor::totals::{EXIT_REASONS, RECYCLE_CAUSES};

use super::guardian::Guardian;

/// From this share of the time on, a replica counts as held back.
const HELD_BACK: f64 = 0.01;

impl Guardian {
    /// Publishes how things stand now.
    pub fn picture_now(&mut self, now: Moment) {
        let own = self.spare.own_use.read();
        let mut next = self.spare.snapshot.take().unwrap_or_default();
        match Arc::get_mut(&mut next) {
            Some(into) => self.picture(own, now, into),
            None => {
                let mut fresh = Snapshot::default();
                self.picture(own, now, &mut fresh);
                next = Arc::new(fresh);
            }
        }
        self.spare.snapshot = Some(self.published.exchange(next));
    }

    fn picture(&self, own: Own, now: Moment, into: &mut Snapshot) {
        into.tick = self.tally.tick;
        into.taken_at = now.unix_seconds();
        into.taken_at_steady = now.steady.as_secs_f64();
        into.next_within = self.tally.gap.as_secs_f64().max(self.settings.sampling.interval.as_secs_f64());
        self.write_daemon(own, &mut into.daemon);
        self.write_environment(&mut into.environment);
        write_cpu(&self.readings.cpu, &mut into.cpu);
        write_memory(&self.readings.memory, &mut into.memory);
        write_pressure(&self.readings.pressure, &mut into.pressure);
        write_each(&mut into.disks, self.readings.disks.iter(), write_disk);
        self.write_policy(&mut into.policy);
        self.write_workers(now, &mut into.workers);
        into.jobs.clone_from(self.jobs.published());
        self.write_counters(&mut into.counters);
    }

    fn write_daemon(&self, own: Own, into: &mut DaemonState) {
        let replicas = self.supervisor.replicas();
        env!("CARGO_PKG_VERSION").clone_into(&mut into.version);
        into.pid = std::process::id();
        into.started_at = self.tally.started.unix_seconds();
        write_words(&mut into.config_file, self.settings.file.as_ref().map(|file| file.display()));
        into.listening.clone_from(&self.listening);
        into.config_reload_successful = self.tally.reload_successful;
        into.config_reloaded_at = self.tally.reloaded.unix_seconds();
        into.dry_run = self.settings.policy.dry_run;
        into.shutting_down = self.tally.shutting_down;
        into.ready = self.tally.tick > 0
            && !self.tally.shutting_down
            && replicas.iter().all(|replica| replica.is_ready() || !replica.is_main() || replica.state() == State::Stopped);
        into.resident_bytes = own.resident;
        into.virtual_bytes = own.virtual_memory;
        into.cpu_seconds = own.cpu;
        into.open_fds = own.descriptors;
        into.given_up = u64::try_from(self.self_watch.given_up()).unwrap_or(u64::MAX);
        into.log_dropped_total = self.log.dropped();
        into.max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        into.history_problem = match &self.folders.stateless {
            Some(why) => Some(why.clone()),
            None => self.journal.history().and_then(|history| history.problem()),
        };
    }

    fn write_environment(&self, into: &mut Environment) {
        let Environment { platform, cgroup, enforcement, pressure, pages, limitations, .. } = &self.environment;
        into.platform.clone_from(platform);
        into.cgroup.clone_from(cgroup);
        into.enforcement.clone_from(enforcement);
        into.pressure.clone_from(pressure);
        into.pages.clone_from(pages);
        into.limitations.clone_from(limitations);
        // These may change from tick to tick.
        self.sampler.scope().extent.word().clone_into(&mut into.scope);
        self.readings.memory.limit_source.word().clone_into(&mut into.limit_source);
    }

    fn write_policy(&self, into: &mut PolicyState) {
        let resources = &mut into.resources;
        let mut shown = 0;
        for verdict in &self.tally.verdicts {
            // Of a worker's replicas the fullest is shown.
            let known = resources.iter().take(shown).position(|state| self.is_label(&state.resource, &verdict.resource));
            let at = known.unwrap_or(shown);
            if at == resources.len() {
                resources.push(ResourceState::default());
            }
            let Some(state) = resources.get_mut(at) else { continue };
            if known.is_none() || state.utilization < verdict.utilization {
                self.write_resource(verdict, state);
            }
            shown = shown.max(at + 1);
        }
        resources.truncate(shown);
        into.throttled = !self.tally.engaged.is_empty() || self.tally.verdicts.iter().any(|verdict| verdict.level != Level::Normal);
        // Nothing ends sooner than a verdict can change.
        into.retry_after_s = into.throttled.then(|| self.settings.policy.memory.rule.sustain.as_secs_f64().max(1.0));
    }

    fn write_resource(&self, verdict: &Verdict, into: &mut ResourceState) {
        let status = self.planner.status(&verdict.resource);
        self.write_label(&verdict.resource, &mut into.resource);
        verdict.level.word().clone_into(&mut into.state);
        into.since = verdict.since.unix_seconds();
        into.used = verdict.used;
        into.limit = verdict.limit;
        into.utilization = verdict.utilization;
        let basis = match verdict.basis {
            Basis::Scope => "scope",
            Basis::Workers => "workers",
            Basis::Worker => "worker",
        };
        basis.clone_into(&mut into.basis);
        into.high = verdict.high;
        into.low = verdict.low;
        into.critical = verdict.critical;
        write_words(&mut into.measure, verdict.measure.map(|measure| measure.word()));
        into.evidence = verdict.stress();
        into.exhaustion_seconds = verdict.exhaustion.map(|left| left.as_secs_f64());
        into.throttled = self.tally.engaged.contains_key(&verdict.resource);
        into.last_action = status.last_action;
        into.last_effect = status.last_effect;
        into.unanswered_seconds = status.unanswered.as_secs_f64();
        into.unanswered_reason = match (status.reason, status.detail) {
            (Some(reason), Some(detail)) => Some(format!("{reason}: {detail}")),
            (Some(reason), None) => Some(reason.to_owned()),
            _ => None,
        };
    }

    /// The label of a resource, written over what is there.
    fn write_label(&self, resource: &Resource, into: &mut String) {
        into.clear();
        // Writing to a string cannot fail.
        let _ = match resource {
            Resource::Cpu => into.write_str("cpu"),
            Resource::Memory => into.write_str("memory"),
            Resource::Disk(path) => write!(into, "disk:{}", path.display()),
            Resource::Worker(slot) => match self.supervisor.worker_of(*slot) {
                Some(name) => write!(into, "worker:{name}"),
                None => into.write_str("worker"),
            },
        };
    }

    /// The label of a resource: `cpu`, `memory`, `disk:PATH`, `worker:NAME`.
    pub fn label(&self, resource: &Resource) -> String {
        let mut label = String::new();
        self.write_label(resource, &mut label);
        label
    }

    /// True for the label of this resource. Of all resources only replicas have one together.
    fn is_label(&self, label: &str, resource: &Resource) -> bool {
        match resource {
            Resource::Worker(slot) => match self.supervisor.worker_of(*slot) {
                Some(name) => label.strip_prefix("worker:") == Some(name),
                None => label == "worker",
            },
            Resource::Cpu | Resource::Memory | Resource::Disk(_) => false,
        }
    }

    /// One for each name, in order.
    fn write_workers(&self, now: Moment, into: &mut Vec<WorkerState>) {
        for replica in self.supervisor.replicas() {
            let name = &replica.worker.name;
            if let Err(place) = into.binary_search_by(|state| state.name.cmp(name)) {
                into.insert(place, WorkerState { name: name.clone(), ..WorkerState::default() });
            }
        }
        into.iter_mut().for_each(|state| self.write_worker(state, now));
        into.retain(|state| !state.replicas.is_empty());
    }

    fn write_worker(&self, into: &mut WorkerState, now: Moment) {
        let name = into.name.clone();
        let replicas = || self.supervisor.with_readings(&self.readings).filter(|(replica, _)| replica.worker.name == name);
        write_each(&mut into.replicas, replicas(), |(replica, read), into| self.write_replica(replica, read, now, into));

        write_each(&mut into.states, State::WORDS.iter(), |word, (name, count)| {
            (*word).clone_into(name);
            *count = 0;
        });
        let (mut burden, mut burdened) = (0.0, 0_u32);
        let (mut cpu, mut memory, mut peak) = (0.0, None, None);
        for ((replica, read), state) in replicas().zip(&into.replicas) {
            if let Some((_, count)) = into.states.iter_mut().find(|(word, _)| *word == state.state) {
                *count += 1;
            }
            if let Some(slot) = replica.slot() {
                burden += self.throttle.burden(slot).map_or(0.0, |burden| burden.ratio);
                burdened += 1;
            }
            let Some(read) = read else { continue };
            cpu += read.cpu_total.known().map_or(0.0, |total| total.as_secs_f64());
            if let Some(bytes) = read.memory.known() {
                *memory.get_or_insert(0) += bytes;
                peak = peak.max(Some(bytes));
            }
        }
        let totals = self.supervisor.totals().get(&name);
        into.desired = replicas().next().map_or(0, |(replica, _)| self.supervisor.desired(&replica.worker));
        into.cpu_seconds_total = totals.map_or(0.0, |totals| totals.cpu.as_secs_f64()) + cpu;
        into.memory_bytes = memory;
        into.peak_memory_bytes = peak.max(totals.map(|totals| totals.peak_memory)).filter(|peak| *peak > 0);
        into.throttle_ratio = if burdened == 0 { 0.0 } else { burden / f64::from(burdened) };
        into.throttled_seconds_total = self.throttle.taken().get(&name).map_or(0.0, |taken| taken.as_secs_f64());
        into.starts_total = totals.map_or(0, |totals| totals.starts);
        write_counts(&mut into.exits_total, &EXIT_REASONS, totals.map(|totals| totals.exits.as_slice()));
        write_counts(&mut into.recycles_total, &RECYCLE_CAUSES, totals.map(|totals| totals.recycles.as_slice()));
    }

    fn write_replica(&self, replica: &Replica, read: Option<&WorkerReadings>, now: Moment, into: &mut ReplicaState) {
        let burden = replica.slot().and_then(|slot| self.throttle.burden(slot));
        let state = match (replica.state(), burden) {
            // Held to a share and wanting more; one that is content with less than its share just runs.
            (State::Starting { .. } | State::Running { .. }, Some(burden))
                if burden.ratio >= HELD_BACK || burden.method == Method::Nice =>
            {
                "throttled"
            }
            (state, _) => state.word(),
        };
        into.index = replica.index;
        state.clone_into(&mut into.state);
        into.pid = replica.life.as_ref().map(|life| life.process.pid());
        into.started_at = replica.life.as_ref().map(|life| life.started.unix_seconds());
        into.used_cores = read.and_then(|read| read.used_cores.known());
        into.cores_allowed = burden.map(|burden| burden.cores);
        write_words(&mut into.throttle_method, burden.map(|burden| burden.by));
        into.memory_bytes = read.and_then(|read| read.memory.known());
        into.threads = read.and_then(|read| read.threads.known());
        into.descriptors = read.and_then(|read| read.descriptors.known());
        into.processes = read.and_then(|read| read.processes.known());
        into.restarts = replica.restarts;
        into.merged_bytes = read.and_then(|read| read.merged.known());
        into.requests = replica.life.as_ref().map(|life| life.requests).filter(|requests| *requests > 0);
        write_words(&mut into.waits_for, replica.waits_for.as_deref().or_else(|| replica.missing()));
        into.is_successor = replica.is_successor();
        into.next_start_in = match replica.state() {
            State::Backoff { until } => Some(until.saturating_sub(now.steady).as_secs_f64()),
            _ => None,
        };
    }

    fn write_counters(&self, into: &mut Counters) {
        let counters = &self.tally.counters;
        into.tick_overruns_total = counters.tick_overruns_total;
        write_histogram(&counters.reaction_seconds, &mut into.reaction_seconds);
        write_histogram(&counters.tick_duration_seconds, &mut into.tick_duration_seconds);
        write_each(&mut into.actions_total, &self.tally.actions, |((of, done), (count, _)), into| write_count(of, done, *count, into));
        write_each(&mut into.action_failures_total, &self.tally.actions, |((of, done), (_, failed)), into| {
            write_count(of, done, *failed, into);
        });
        write_each(&mut into.actions_suppressed_total, Reason::ALL, |reason, (word, count)| {
            reason.word().clone_into(word);
            *count = self.tally.suppressed.get(reason.word()).copied().unwrap_or(0);
        });
        write_each(
            &mut into.source_errors_total,
            Source::ALL.into_iter().zip(self.tally.source_errors),
            |(source, errors), (word, count)| {
                source.word().clone_into(word);
                *count = errors;
            },
        );
    }
}

/// Writes each of `from` over what is in `into`, which is made to be of the same length.
fn write_each<T: Default, F>(into: &mut Vec<T>, from: impl IntoIterator<Item = F>, mut write: impl FnMut(F, &mut T)) {
    let mut count = 0;
    for each in from {
        if count == into.len() {
            into.push(T::default());
        }
        if let Some(place) = into.get_mut(count) {
            write(each, place);
        }
        count += 1;
    }
    into.truncate(count);
}

fn write_words(into: &mut Option<String>, words: Option<impl std::fmt::Display>) {
    match words {
        Some(words) => {
            let into = into.get_or_insert_default();
            into.clear();
            // Writing to a string cannot fail.
            let _ = write!(into, "{words}");
        }
        None => *into = None,
    }
}

fn write_counts(into: &mut Vec<(String, u64)>, names: &[&str], counts: Option<&[u64]>) {
    let count = |at: usize| counts.and_then(|counts| counts.get(at)).copied().unwrap_or(0);
    write_each(into, names.iter().enumerate(), |(at, name), (word, total)| {
        (*name).clone_into(word);
        *total = count(at);
    });
}

fn write_count(of: &str, done: &str, count: u64, into: &mut (String, String, u64)) {
    of.clone_into(&mut into.0);
    done.clone_into(&mut into.1);
    into.2 = count;
}

fn write_histogram(from: &Histogram, into: &mut Histogram) {
    into.bounds.clone_from(&from.bounds);
    into.counts.clone_from(&from.counts);
    into.sum = from.sum;
}

fn write_cpu(cpu: &CpuReadings, into: &mut CpuState) {
    into.limit_cores = cpu.limit_cores.known();
    cpu.limit_source.word().clone_into(&mut into.limit_source);
    into.used_cores = cpu.used_cores.known();
    into.usage_seconds_total = cpu.usage_total.known().map(|total| total.as_secs_f64());
    into.throttled_seconds_total = cpu.throttled_total.known().map(|total| total.as_secs_f64());
}

fn write_memory(memory: &MemoryReadings, into: &mut MemoryState) {
    into.limit_bytes = memory.limit.known();
    memory.limit_source.word().clone_into(&mut into.limit_source);
    into.current_bytes = memory.current.known();
    into.working_set_bytes = memory.working_set.known();
    into.unreclaimable_bytes = memory.unreclaimable.known();
    into.swap_bytes = memory.swap.known();
    into.refaulted_bytes_total = memory.refaulted();
    let events = memory
        .events
        .known()
        .into_iter()
        .flat_map(|events| [("high", events.high), ("max", events.max), ("oom", events.oom), ("oom_kill", events.oom_kill)]);
    write_each(&mut into.events, events, |(name, seen), (word, count)| {
        name.clone_into(word);
        *count = seen;
    });
}

fn write_pressure(pressure: &PressureReadings, into: &mut Vec<PressureState>) {
    let each: [(&str, Reading<Pressure>); 3] = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    write_each(into, each, |(resource, reading), into| {
        resource.clone_into(&mut into.resource);
        into.waiting_seconds_total = reading.known().map(|pressure| pressure.waiting.as_secs_f64());
        into.stalled_seconds_total = reading.known().and_then(|pressure| pressure.stalled).map(|stalled| stalled.as_secs_f64());
    });
}

fn write_disk(disk: &DiskReadings, into: &mut DiskState) {
    let space = disk.space.known();
    into.path.clear();
    // Writing to a string cannot fail.
    let _ = write!(into.path, "{}", disk.path.display());
    into.size_bytes = space.map(|space| space.size);
    into.avail_bytes = space.map(|space| space.avail);
    into.files = space.and_then(|space| space.files);
    into.files_free = space.and_then(|space| space.files_free);
}

/// Reads what the daemon itself uses: always of this machine, whatever machine is being looked at.
#[derive(Debug)]
pub struct OwnUse {
    paths: Paths,
    statm: Kept,
    scratch: Vec<u8>,
}

/// What the daemon itself uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Own {
    pub resident: Option<u64>,
    /// Of it what is not a file's.
    pub private: Option<u64>,
    pub virtual_memory: Option<u64>,
    /// Seconds.
    pub cpu: Option<f64>,
    pub descriptors: Option<u64>,
}

impl Default for OwnUse {
    fn default() -> OwnUse {
        let paths = Paths::default();
        let statm = Kept::new(&paths, paths.proc.join("self/statm"));
        OwnUse { paths, statm, scratch: Vec::new() }
    }
}

impl OwnUse {
    pub fn read(&mut self) -> Own {
        let own = self.statm.read(&mut self.scratch).ok().and_then(procfs::parse_statm);
        let bytes = |pages: u64| pages.saturating_mul(rustix::param::page_size() as u64);
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Own {
            resident: own.map(|own| bytes(own.resident)),
            private: own.map(|own| bytes(own.resident.saturating_sub(own.shared))),
            virtual_memory: own.map(|own| bytes(own.size)),
            cpu: Some(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9),
            descriptors: scan::descriptors(&self.paths, std::process::id().cast_signed()).ok(),
        }
    }
}
