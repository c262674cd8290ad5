//! What the kernel said in one tick: plain data with its own moment. All rules of a tick judge the same `Readings`.

use std::sync::Arc;
use std::time::Duration;

use crate::host::cgroupfs::Refaults;
use crate::host::clock::Moment;
use crate::host::folder::Folder;
use crate::host::foreign::ForeignGroup;

/// A number, or the reason why there is none. Never a zero that means "could not read".
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading<T> {
    Known(T),
    /// This kernel or container does not offer it, or there is not yet a second sample to form a rate from.
    Unsupported,
    /// It was there and has ended (a process, a cgroup).
    Gone,
    Failed(Failure),
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub source: Source,
    /// The kernel's error number; `None` when the text was not understood.
    pub errno: Option<i32>,
}

/// The label values of `plimsoll_source_errors_total{source}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Procfs,
    Cgroup,
    Psi,
    Statvfs,
    /// A file of the settings that holds a limit.
    File,
}

impl Source {
    pub const ALL: [Source; 5] = [Source::Procfs, Source::Cgroup, Source::Psi, Source::Statvfs, Source::File];

    pub fn word(self) -> &'static str {
        match self {
            Source::Procfs => "procfs",
            Source::Cgroup => "cgroup",
            Source::Psi => "psi",
            Source::Statvfs => "statvfs",
            Source::File => "file",
        }
    }
}

impl<T: Copy> Reading<T> {
    pub fn known(self) -> Option<T> {
        match self {
            Reading::Known(value) => Some(value),
            _ => None,
        }
    }
}

impl<T> Reading<T> {
    pub fn and_then<U>(self, with: impl FnOnce(T) -> Reading<U>) -> Reading<U> {
        match self {
            Reading::Known(value) => with(value),
            Reading::Unsupported => Reading::Unsupported,
            Reading::Gone => Reading::Gone,
            Reading::Failed(failure) => Reading::Failed(failure),
        }
    }

    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Reading::Known(value) => Reading::Known(with(value)),
            Reading::Unsupported => Reading::Unsupported,
            Reading::Gone => Reading::Gone,
            Reading::Failed(failure) => Reading::Failed(failure),
        }
    }
}

/// One consistent look.
#[derive(Clone, Debug, PartialEq)]
pub struct Readings {
    pub at: Moment,
    pub cpu: CpuReadings,
    pub memory: MemoryReadings,
    pub pressure: PressureReadings,
    /// One per configured disk, in the order of the settings.
    pub disks: Vec<DiskReadings>,
    /// One per live replica, in the order of the targets given to the sampler.
    pub workers: Vec<WorkerReadings>,
    /// How many reads failed in this tick, in the order of [`Source::ALL`].
    pub failures: [u32; Source::ALL.len()],
}

/// CPU of the scope. Cores are fractional: 0.5 is half of one processor.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuReadings {
    /// The limit that will really hurt: the minimum over quotas of all ancestors, cpuset, affinity and machine.
    pub limit_cores: Reading<f64>,
    pub limit_source: LimitSource,
    /// The limit is held against what the workers use together, not the scope: it is from a file and no group bounds the scope,
    /// or what the scope uses cannot be seen.
    pub of_workers: bool,
    /// Since the scope began.
    pub usage_total: Reading<Duration>,
    /// Mean over the time since the look before.
    pub used_cores: Reading<f64>,
    /// Time the platform held the scope back, since the scope began: a container's cfs quota, a host's steal. Ours is not in it.
    pub throttled_total: Reading<Duration>,
    /// Cores the hypervisor gave to others while they were wanted here, mean over the time since the look before. Only of a
    /// host: a container is held by its quota long before.
    pub stolen_cores: Reading<f64>,
}

/// Memory of the scope, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryReadings {
    pub limit: Reading<u64>,
    pub limit_source: LimitSource,
    /// As for the CPU.
    pub of_workers: bool,
    /// All that is charged, cache included.
    pub current: Reading<u64>,
    /// `current` less the inactive file cache (the definition `kubectl top` uses).
    pub working_set: Reading<u64>,
    /// What the kernel cannot give back: anonymous, shared memory, unevictable, kernel stacks and page tables, slab
    /// that is not reclaimable, socket buffers. On a host: MemTotal less MemAvailable.
    pub unreclaimable: Reading<u64>,
    pub swap: Reading<u64>,
    /// `memory.events` counters, hierarchical where the kernel offers that.
    pub events: Reading<MemoryEvents>,
    /// Pages of files, shared memory left out.
    pub file_cache: Reading<u64>,
    /// Pages that were reclaimed and wanted back. Of a machine only in a look that was asked for it.
    pub refaults: Reading<Refaults>,
    /// Time the scope itself lost to memory: not that of a whole machine on which it is one container among others.
    pub stalls: Reading<Pressure>,
}

impl MemoryReadings {
    /// Reclaimed and wanted back, in bytes since the scope began; where the kernel tells them apart, only what there was room for.
    pub fn refaulted(&self) -> Option<u64> {
        let refaults = self.refaults.known()?;
        refaults.activated.or(refaults.all).map(in_bytes)
    }

    /// The number that is judged without evidence of stress: what cannot be given back, else the working set.
    pub fn judged(&self) -> Reading<u64> {
        match self.unreclaimable {
            Reading::Known(_) => self.unreclaimable,
            _ => self.working_set,
        }
    }
}

/// What a counter of pages comes to in bytes.
pub fn in_bytes(pages: u64) -> u64 {
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
}

/// Which candidate was the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// Set in the settings.
    Settings,
    /// Read from a file that the settings name.
    File,
    /// A cgroup, our own or an ancestor.
    Cgroup,
    Cpuset,
    Affinity,
    Machine,
    Unknown,
}

impl LimitSource {
    pub fn word(self) -> &'static str {
        match self {
            LimitSource::Settings => "settings",
            LimitSource::File => "file",
            LimitSource::Cgroup => "cgroup",
            LimitSource::Cpuset => "cpuset",
            LimitSource::Affinity => "affinity",
            LimitSource::Machine => "machine",
            LimitSource::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct PressureReadings {
    pub cpu: Reading<Pressure>,
    pub memory: Reading<Pressure>,
    pub io: Reading<Pressure>,
}

/// Pressure stall information: time lost since boot (or since the cgroup began).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited (`some total`).
    pub waiting: Duration,
    /// All tasks stalled (`full total`); `None` where the kernel does not print it.
    pub stalled: Option<Duration>,
}

/// One filesystem.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskReadings {
    pub path: Arc<std::path::Path>,
    pub space: Reading<DiskSpace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes.
    pub size: u64,
    /// Bytes an unprivileged process can still write.
    pub avail: u64,
    /// Inodes; `None` where the filesystem does not count them.
    pub files: Option<u64>,
    pub files_free: Option<u64>,
}

/// One replica, over its whole process tree.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerReadings {
    pub slot: SlotId,
    pub worker: Arc<str>,
    /// CPU time of the tree since the replica started; never goes down while it lives.
    pub cpu_total: Reading<Duration>,
    /// Mean over the time since the look before.
    pub used_cores: Reading<f64>,
    /// Bytes: the cgroup's where the replica has one of its own, else private plus shared pages counted once.
    pub memory: Reading<u64>,
    pub threads: Reading<u32>,
    pub descriptors: Reading<u32>,
    pub processes: Reading<u32>,
    /// Bytes it does without because others have the same pages; `Unsupported` unless its pages are merged.
    pub merged: Reading<u64>,
}

/// One running life of one replica: a new number each time a process is started, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u64);

/// What the sampler is to look at for one replica.
#[derive(Clone, Debug)]
pub struct Target {
    pub slot: SlotId,
    pub worker: Arc<str>,
    /// The process that was started; it is its own session leader.
    pub pid: i32,
    /// The replica's own cgroup folders, if it has any: (cpu accounting, memory).
    pub cpu_group: Option<Arc<Folder>>,
    pub memory_group: Option<Arc<Folder>>,
    /// A group of somebody else's whose members belong to it too.
    pub foreign_group: Option<Arc<ForeignGroup>>,
    /// Its pages are merged with the same ones of others.
    pub merges: bool,
}
