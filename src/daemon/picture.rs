//! Takes the picture that is published: the last readings, verdicts and states as plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::actuators::throttle::Method;
use crate::host::clock::Moment;
use crate::host::{Paths, procfs, scan};
use crate::policy::verdict::Basis;
use crate::policy::{Level, Verdict};
use crate::response::refusal::Reason;
use crate::sampling::readings::{LimitSource, Pressure, Reading, Source, WorkerReadings};
use crate::snapshot::{
    CpuState, DaemonState, DiskState, MemoryState, PolicyState, PressureState, ReplicaState, ResourceState, Snapshot, WorkerState,
};
use crate::supervisor::Replica;
use crate::supervisor::state::State;
use crate::supervisor::supervisor::{EXIT_REASONS, RECYCLE_CAUSES};

use super::guardian::Guardian;

/// A replica, and what was read of it.
type Looked<'a> = (&'a Replica, Option<&'a WorkerReadings>);

/// From this share of the time on, a replica counts as held back.
const HELD_BACK: f64 = 0.01;

impl Guardian {
    /// Publishes how things stand now.
    pub fn picture_now(&mut self, now: Moment) {
        let snapshot = self.picture(now);
        self.published.publish(snapshot);
    }

    fn picture(&self, now: Moment) -> Snapshot {
        let readings = &self.readings;
        let pressure = |resource: &str, reading: Reading<Pressure>| PressureState {
            resource: resource.to_owned(),
            waiting_seconds_total: reading.known().map(|pressure| pressure.waiting.as_secs_f64()),
            stalled_seconds_total: reading.known().and_then(|pressure| pressure.stalled).map(|stalled| stalled.as_secs_f64()),
        };
        let mut environment = self.environment.clone();
        environment.scope = self.sampler.scope().extent.word().to_owned();
        environment.limit_source = readings.memory.limit_source.word().to_owned();
        Snapshot {
            tick: self.tally.tick,
            taken_at: now.unix_seconds(),
            taken_at_steady: now.steady.as_secs_f64(),
            next_within: self.tally.gap.as_secs_f64().max(self.settings.sampling.interval.as_secs_f64()),
            daemon: self.daemon_state(),
            environment,
            cpu: CpuState {
                limit_cores: readings.cpu.limit_cores.known(),
                limit_source: limit_source(readings.cpu.limit_source),
                used_cores: readings.cpu.used_cores.known(),
                usage_seconds_total: readings.cpu.usage_total.known().map(|total| total.as_secs_f64()),
                throttled_seconds_total: readings.cpu.throttled_total.known().map(|total| total.as_secs_f64()),
            },
            memory: MemoryState {
                limit_bytes: readings.memory.limit.known(),
                limit_source: limit_source(readings.memory.limit_source),
                current_bytes: readings.memory.current.known(),
                working_set_bytes: readings.memory.working_set.known(),
                unreclaimable_bytes: readings.memory.unreclaimable.known(),
                swap_bytes: readings.memory.swap.known(),
                refaulted_bytes_total: readings.memory.refaulted.known(),
                events: readings.memory.events.known().map_or_else(Vec::new, |events| {
                    [("high", events.high), ("max", events.max), ("oom", events.oom), ("oom_kill", events.oom_kill)]
                        .map(|(name, count)| (name.to_owned(), count))
                        .to_vec()
                }),
            },
            pressure: vec![
                pressure("cpu", readings.pressure.cpu),
                pressure("memory", readings.pressure.memory),
                pressure("io", readings.pressure.io),
            ],
            disks: readings.disks.iter().map(disk_state).collect(),
            policy: self.policy_state(),
            workers: self.worker_states(now),
            counters: self.counters(),
        }
    }

    fn daemon_state(&self) -> DaemonState {
        let own = own_use();
        let replicas = self.supervisor.replicas();
        DaemonState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.tally.started.unix_seconds(),
            config_file: self.settings.file.as_ref().map(|file| file.display().to_string()),
            listening: self.listening.clone(),
            config_reload_successful: self.tally.reload_successful,
            config_reloaded_at: self.tally.reloaded.unix_seconds(),
            dry_run: self.settings.policy.dry_run,
            shutting_down: self.tally.shutting_down,
            ready: self.tally.tick > 0
                && !self.tally.shutting_down
                && replicas.iter().all(|replica| replica.is_running() || replica.state == State::Stopped),
            resident_bytes: own.resident,
            virtual_bytes: own.virtual_memory,
            cpu_seconds: own.cpu,
            open_fds: own.descriptors,
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            history_problem: match &self.folders.stateless {
                Some(why) => Some(why.clone()),
                None => self.journal.history().and_then(|history| history.problem()),
            },
        }
    }

    fn policy_state(&self) -> PolicyState {
        let mut resources: Vec<ResourceState> = Vec::new();
        for verdict in &self.tally.verdicts {
            let state = self.resource_state(verdict);
            // Of a worker's replicas the fullest is shown.
            match resources.iter_mut().find(|shown| shown.resource == state.resource) {
                Some(shown) if shown.utilization < state.utilization => *shown = state,
                Some(_) => {}
                None => resources.push(state),
            }
        }
        let throttled = !self.tally.engaged.is_empty() || self.tally.verdicts.iter().any(|verdict| verdict.level != Level::Normal);
        // Nothing ends sooner than a verdict can change.
        let retry_after_s = throttled.then(|| self.settings.policy.memory.rule.sustain.as_secs_f64().max(1.0));
        PolicyState { throttled, retry_after_s, resources }
    }

    fn resource_state(&self, verdict: &Verdict) -> ResourceState {
        let status = self.planner.status(&verdict.resource);
        ResourceState {
            resource: self.label(&verdict.resource),
            state: verdict.level.word().to_owned(),
            since: verdict.since.unix_seconds(),
            used: verdict.used,
            limit: verdict.limit,
            utilization: verdict.utilization,
            basis: match verdict.basis {
                Basis::Scope => "scope",
                Basis::Workers => "workers",
                Basis::Worker => "worker",
            }
            .to_owned(),
            high: verdict.high,
            low: verdict.low,
            critical: verdict.critical,
            measure: verdict.measure.map(|measure| measure.word().to_owned()),
            evidence: verdict.stress(),
            exhaustion_seconds: verdict.exhaustion.map(|left| left.as_secs_f64()),
            throttled: self.tally.engaged.contains_key(&verdict.resource),
            last_action: status.last_action,
            last_effect: status.last_effect,
            unanswered_seconds: status.unanswered.as_secs_f64(),
            unanswered_reason: match (status.reason, status.detail) {
                (Some(reason), Some(detail)) => Some(format!("{reason}: {detail}")),
                (Some(reason), None) => Some(reason.to_owned()),
                _ => None,
            },
        }
    }

    fn worker_states(&self, now: Moment) -> Vec<WorkerState> {
        let mut by_name: BTreeMap<&Arc<str>, Vec<Looked<'_>>> = BTreeMap::new();
        for (replica, read) in self.supervisor.with_readings(&self.readings) {
            by_name.entry(&replica.worker.name).or_default().push((replica, read));
        }
        let cores = self.cpu_limit();
        by_name
            .into_iter()
            .map(|(name, replicas)| {
                let states: Vec<ReplicaState> = replicas.iter().map(|(replica, read)| self.replica_state(replica, *read, now)).collect();
                let totals = self.supervisor.totals().get(name).cloned().unwrap_or_default();
                let reads = || replicas.iter().filter_map(|(_, read)| *read);
                let living_cpu: f64 = reads().filter_map(|read| read.cpu_total.known()).map(|total| total.as_secs_f64()).sum();
                let memories: Vec<u64> = reads().filter_map(|read| read.memory.known()).collect();
                let burdens: Vec<f64> = replicas
                    .iter()
                    .filter_map(|(replica, _)| replica.slot())
                    .map(|slot| self.throttle.burden(slot).map_or(0.0, |b| b.ratio))
                    .collect();
                let named =
                    |names: &[&str], counts: &[u64]| names.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), *count)).collect();
                WorkerState {
                    name: name.clone(),
                    desired: replicas.first().map_or(0, |(replica, _)| replica.worker.replicas.count(cores)),
                    states: State::WORDS
                        .iter()
                        .map(|word| {
                            (
                                (*word).to_owned(),
                                u32::try_from(states.iter().filter(|state| state.state == *word).count()).unwrap_or(u32::MAX),
                            )
                        })
                        .collect(),
                    cpu_seconds_total: totals.cpu.as_secs_f64() + living_cpu,
                    memory_bytes: (!memories.is_empty()).then(|| memories.iter().sum()),
                    peak_memory_bytes: memories.iter().copied().chain([totals.peak_memory]).max().filter(|peak| *peak > 0),
                    throttle_ratio: if burdens.is_empty() { 0.0 } else { burdens.iter().sum::<f64>() / burdens.len() as f64 },
                    throttled_seconds_total: self.throttle.taken().get(name).map_or(0.0, |taken| taken.as_secs_f64()),
                    starts_total: totals.starts,
                    exits_total: named(&EXIT_REASONS, &totals.exits),
                    recycles_total: named(&RECYCLE_CAUSES, &totals.recycles),
                    replicas: states,
                }
            })
            .collect()
    }

    fn replica_state(&self, replica: &Replica, read: Option<&WorkerReadings>, now: Moment) -> ReplicaState {
        let burden = replica.slot().and_then(|slot| self.throttle.burden(slot));
        let state = match (replica.state, burden) {
            // Held to a share and wanting more; one that is content with less than its share just runs.
            (State::Running { .. }, Some(burden)) if burden.ratio >= HELD_BACK || burden.method == Method::Nice => "throttled",
            (state, _) => state.word(),
        };
        ReplicaState {
            index: replica.index,
            state: state.to_owned(),
            pid: replica.life.as_ref().map(|life| life.process.pid()),
            started_at: replica.life.as_ref().map(|life| life.started.unix_seconds()),
            used_cores: read.and_then(|read| read.used_cores.known()),
            cores_allowed: burden.map(|burden| burden.cores),
            throttle_method: burden.map(|burden| burden.by.to_owned()),
            memory_bytes: read.and_then(|read| read.memory.known()),
            threads: read.and_then(|read| read.threads.known()),
            descriptors: read.and_then(|read| read.descriptors.known()),
            processes: read.and_then(|read| read.processes.known()),
            restarts: replica.restarts,
            next_start_in: match replica.state {
                State::Backoff { until } => Some(until.saturating_sub(now.steady).as_secs_f64()),
                _ => None,
            },
        }
    }

    fn counters(&self) -> crate::snapshot::Counters {
        let mut counters = self.tally.counters.clone();
        // Zeros for every pair the settings make possible, so that the first action is seen as an increase.
        let mut pairs: BTreeMap<(String, &str), (u64, u64)> = BTreeMap::new();
        let policy = &self.settings.policy;
        let disks = policy.disks.iter().map(|disk| (format!("disk:{}", disk.path.display()), &disk.rule));
        let rules = [("cpu".to_owned(), &policy.cpu.rule), ("memory".to_owned(), &policy.memory.rule)];
        for (resource, rule) in rules.into_iter().chain(disks) {
            for rung in rule.on_high.iter().chain(&rule.on_critical) {
                pairs.entry((resource.clone(), rung.word())).or_default();
            }
        }
        for ((resource, action), counts) in &self.tally.actions {
            pairs.insert((resource.clone(), action), *counts);
        }
        for ((resource, action), (done, failed)) in pairs {
            counters.actions_total.push((resource.clone(), action.to_owned(), done));
            counters.action_failures_total.push((resource, action.to_owned(), failed));
        }
        let suppressed = |reason: Reason| (reason.word().to_owned(), self.tally.suppressed.get(reason.word()).copied().unwrap_or(0));
        counters.actions_suppressed_total = Reason::ALL.into_iter().map(suppressed).collect();
        counters.source_errors_total =
            Source::ALL.iter().zip(self.tally.source_errors).map(|(source, count)| (source.word().to_owned(), count)).collect();
        counters
    }
}

fn limit_source(source: LimitSource) -> String {
    source.word().to_owned()
}

fn disk_state(disk: &crate::sampling::readings::DiskReadings) -> DiskState {
    let space = disk.space.known();
    DiskState {
        path: disk.path.display().to_string(),
        size_bytes: space.map(|space| space.size),
        avail_bytes: space.map(|space| space.avail),
        files: space.and_then(|space| space.files),
        files_free: space.and_then(|space| space.files_free),
    }
}

#[derive(Default)]
struct OwnUse {
    resident: Option<u64>,
    virtual_memory: Option<u64>,
    cpu: Option<f64>,
    descriptors: Option<u64>,
}

/// What the daemon itself uses: always of this machine, whatever machine is being looked at.
fn own_use() -> OwnUse {
    let paths = Paths::default();
    let own = std::fs::read(paths.proc.join("self/statm")).ok().and_then(|text| procfs::parse_statm(&text));
    let bytes = |pages: u64| pages.saturating_mul(rustix::param::page_size() as u64);
    OwnUse {
        resident: own.map(|own| bytes(own.resident)),
        virtual_memory: own.map(|own| bytes(own.size)),
        cpu: Some(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime))
            .map(|time| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9),
        descriptors: scan::descriptors(&paths, std::process::id().cast_signed()).ok(),
    }
}
