//! One look at everything, sensor by sensor.

use std::path::Path;
use std::sync::Arc;

use super::disk::Disks;
use super::lag::Processes;
use super::limit_file::LimitFile;
use super::memory::Asked;
use super::readings::{CpuReadings, LimitSource, MemoryReadings, PressureReadings, Reading, Readings, SlotId, Source, Target};
use super::scope::{Extent, Scope};
use super::tally::Tally;
use super::trees::Trees;
use super::view::{Lookout, Obstacle, Sensors};
use super::workers::Workers;
use crate::config::settings;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::{Paths, procfs};

/// Keeps what is read every tick open, and what was read before to form rates from.
#[derive(Debug)]
pub struct Sampler {
    setting: settings::Scope,
    scope: Scope,
    meminfo: Kept,
    /// Of our own group, or the machine.
    own: Sensors,
    /// The container of a worker, where that is the scope.
    lookout: Option<Lookout>,
    /// Limits from files: of the CPU, of the memory.
    files: [Option<LimitFile>; 2],
    disks: Disks,
    trees: Trees,
    workers: Workers,
    scratch: Vec<u8>,
}

impl Sampler {
    /// Reads nothing yet. `disks` are the configured paths, in the order of the settings; each gets a thread of its own,
    /// because asking a dead one never returns.
    pub fn new(paths: &Paths, settings: &settings::Sampling, layout: &Layout, disks: impl IntoIterator<Item = Arc<Path>>) -> Sampler {
        let lookout = match &settings.scope {
            settings::Scope::Worker(worker) => Some(Lookout::new(paths, worker)),
            settings::Scope::Auto | settings::Scope::Container | settings::Scope::Host => None,
        };
        Sampler {
            setting: settings.scope.clone(),
            scope: Scope::default(),
            meminfo: Kept::new(paths, paths.proc.join("meminfo")),
            own: Sensors::new(paths, layout, None),
            lookout,
            files: [None, None],
            disks: Disks::new(disks),
            trees: Trees::new(paths),
            workers: Workers::new(paths),
            scratch: Vec::new(),
        }
    }

    /// One consistent look. What cannot be read says so and is counted in `failures`; it never stops the rest.
    pub fn read(&mut self, targets: &[Target], now: Moment) -> Readings {
        let mut readings = blank(now);
        self.read_into(targets, now, &mut readings);
        readings
    }

    /// As [`Sampler::read`], into readings whose memory is used again.
    pub fn read_into(&mut self, targets: &[Target], now: Moment, readings: &mut Readings) {
        let Sampler { scratch, workers, .. } = self;
        let mut tally = Tally::default();
        let machine = tally.reading(Source::Procfs, self.meminfo.read(scratch), procfs::parse_meminfo);
        let total = machine.map(|info| info.total);
        if self.lookout.as_mut().is_some_and(|lookout| lookout.turn(targets, now, scratch)) {
            // Whatever was known of another group does not speak of this one.
            self.scope = Scope::default();
        }
        let is_by_worker = self.lookout.is_some();
        let view = self.lookout.as_mut().and_then(Lookout::sensors);
        let seen = view.is_some();
        let Sensors { limits, cpu, memory, pressure } = view.unwrap_or(&mut self.own);
        let mut candidates = limits.read(total, scratch, &mut tally);
        let [cpu_file, memory_file] = &mut self.files;
        candidates.cpu_file =
            cpu_file.as_mut().and_then(|file| file.read(scratch, &mut tally)).map(|thousandths| thousandths as f64 / 1000.0);
        candidates.memory_file = memory_file.as_mut().and_then(|file| file.read(scratch, &mut tally));
        candidates.are_strange = is_by_worker && !seen;
        self.scope = Scope::decide(&self.setting, seen, candidates, &self.scope);

        readings.at = now;
        readings.cpu = cpu.read(&self.scope, now, scratch, &mut tally);
        let processes: Asked = Processes { before: workers.anonymous(), now: &mut |scratch: &mut Vec<u8>| workers.ask_anonymous(scratch) };
        readings.memory = memory.read(&self.scope, machine, now, processes, scratch, &mut tally);
        readings.pressure = pressure.read(&self.scope, now, scratch, &mut tally);
        if pressure.is_of(&self.scope) {
            readings.memory.stalls = readings.pressure.memory;
        }
        workers.kernel_share = memory.kernel_share();
        self.disks.read(now, &mut tally, &mut readings.disks);
        workers.read(targets, &mut self.trees, now, scratch, &mut tally, &mut readings.workers);
        readings.failures = tally.0;
    }

    /// The scope's memory alone, between two looks: limits and everything else are as in the last.
    pub fn glance_at_memory(&mut self, now: Moment) -> MemoryReadings {
        let Sampler { scratch, workers, own, .. } = self;
        let memory = &mut self.lookout.as_mut().and_then(Lookout::sensors).unwrap_or(own).memory;
        let mut tally = Tally::default();
        let machine = match self.scope.extent {
            Extent::Host => tally.reading(Source::Procfs, self.meminfo.read(scratch), procfs::parse_meminfo),
            Extent::Container | Extent::Worker | Extent::Workers => Reading::Unsupported,
        };
        let processes: Asked = Processes { before: workers.anonymous(), now: &mut |scratch: &mut Vec<u8>| workers.ask_anonymous(scratch) };
        memory.read(&self.scope, machine, now, processes, scratch, &mut tally)
    }

    /// One replica's memory alone, between two looks, over the processes that were found in the last.
    pub fn glance_at_worker(&mut self, slot: SlotId, now: Moment) -> Reading<u64> {
        self.workers.glance(slot, now, &mut self.scratch)
    }

    /// Whether the looks at replicas tell of threads and descriptors.
    pub fn set_details(&mut self, wanted: bool) {
        self.workers.set_details(wanted);
    }

    /// The file that tells of the scope's memory pressure, as of the last look.
    pub fn memory_pressure_file(&self) -> Option<&Path> {
        self.lookout.as_ref().and_then(Lookout::pressure).unwrap_or(&self.own.pressure).memory_file()
    }

    /// From the next look on these files give limits. One that stays keeps what it said last.
    pub fn set_limit_files(&mut self, policy: &settings::Policy) {
        for (before, now) in self.files.iter_mut().zip(LimitFile::of(policy)) {
            match (&before, &now) {
                (Some(before), Some(now)) if before.is_same(now) => {}
                _ => *before = now,
            }
        }
    }

    /// The files that give limits, as of the last look.
    pub fn limit_files(&self) -> impl Iterator<Item = &LimitFile> {
        self.files.iter().flatten()
    }

    /// The worker whose container is the scope, and why that was not seen in the last look, if it was not.
    pub fn lookout(&self) -> Option<(&str, Option<Obstacle>)> {
        self.lookout.as_ref().map(|lookout| (lookout.worker(), lookout.obstacle()))
    }

    /// Whose usage was held against whose limit in the last look, with every candidate for the limit.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// From the next look on these disks are read, in this order.
    pub fn set_disks(&mut self, disks: impl IntoIterator<Item = Arc<Path>>) {
        self.disks.set(disks);
    }

    /// Which processes belong to which replica.
    pub fn trees(&self) -> &Trees {
        &self.trees
    }

    /// For a fresh look before a tree is stopped or killed.
    pub fn trees_mut(&mut self) -> &mut Trees {
        &mut self.trees
    }

    /// The next look says how much of what was reclaimed is wanted back, on a whole machine too.
    pub fn want_refaults(&mut self) {
        self.lookout.as_mut().and_then(Lookout::sensors).unwrap_or(&mut self.own).memory.want_refaults();
    }

    /// The next look measures this replica's memory by proportional shares, at most once in ten seconds: exact where
    /// processes share memory, and dear. Without effect for a replica with a cgroup of its own.
    pub fn want_pss(&mut self, slot: SlotId) {
        self.workers.want_pss(slot);
    }
}

/// Readings in which nothing was read yet.
pub fn blank(at: Moment) -> Readings {
    let none = Reading::Unsupported;
    Readings {
        at,
        cpu: CpuReadings {
            limit_cores: Reading::Unsupported,
            limit_source: LimitSource::Unknown,
            of_workers: false,
            usage_total: Reading::Unsupported,
            used_cores: Reading::Unsupported,
            throttled_total: Reading::Unsupported,
            stolen_cores: Reading::Unsupported,
        },
        memory: MemoryReadings {
            limit: none,
            limit_source: LimitSource::Unknown,
            of_workers: false,
            current: none,
            working_set: none,
            unreclaimable: none,
            swap: none,
            events: Reading::Unsupported,
            file_cache: none,
            refaults: Reading::Unsupported,
            stalls: Reading::Unsupported,
        },
        pressure: PressureReadings { cpu: Reading::Unsupported, memory: Reading::Unsupported, io: Reading::Unsupported },
        disks: Vec::new(),
        workers: Vec::new(),
        failures: [0; Source::ALL.len()],
    }
}
