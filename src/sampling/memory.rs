//! Memory of the scope.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lag::{Lag, Processes};
use super::readings::{MemoryEvents, MemoryReadings, Reading, Source};
use super::scope::Scope;
use super::tally::Tally;
use crate::host::Paths;
use crate::host::cgroupfs::{self, Layout, MemoryStat, Own, Refaults, Version};
use crate::host::clock::Moment;
use crate::host::folder::Folder;
use crate::host::kept::Kept;
use crate::host::procfs::{self, Meminfo};

#[derive(Debug)]
pub(super) struct Memory {
    paths: Paths,
    own: Option<Own>,
    group: Option<Group>,
    /// Counts what a machine reclaims in vain; four times as dear as the rest together, so only read when asked for.
    vmstat: Kept,
    wanted: bool,
    /// The part of the kernel's memory that it cannot give back, machine-wide, when that was last known.
    kernel_share: Option<f64>,
}

/// The files of the group that is measured.
#[derive(Debug)]
pub(super) struct Group {
    version: Version,
    folder: PathBuf,
    current: Kept,
    stat: Kept,
    /// v2 `memory.swap.current`; v1 says so in `memory.stat`.
    swap: Kept,
    /// v2 `memory.events`; v1 `memory.oom_control`.
    events: Kept,
    /// v1 `memory.failcnt`
    failures: Kept,
    /// v1 `memory.kmem.usage_in_bytes`: `memory.stat` has no line for the kernel's part there.
    kernel: Kept,
    /// See [`Memory::kernel_share`].
    pub kernel_share: Option<f64>,
    /// What was charged, and how much of it could not be given back, when `memory.stat` was last read.
    own: Option<(u64, u64)>,
    lag: Lag,
}

/// Those whose memory a group is charged for, for when its account lags.
pub(super) type Asked<'a> = Processes<&'a mut dyn FnMut(&mut Vec<u8>) -> u64>;

impl Group {
    /// The group we are in, or one above it: none of them can go while we live.
    fn of_scope(paths: &Paths, version: Version, folder: &Path) -> Group {
        Group::with(version, folder, |name| Kept::new(paths, folder.join(name)))
    }

    /// A replica's own group, which goes when the replica has ended.
    pub fn of_replica(paths: &Paths, version: Version, folder: &Arc<Folder>) -> Group {
        Group::with(version, folder.path(), |name| Kept::within(paths, folder, name))
    }

    fn with(version: Version, folder: &Path, open: impl Fn(&'static str) -> Kept) -> Group {
        let file = |v2, v1| open(if version == Version::V2 { v2 } else { v1 });
        Group {
            version,
            folder: folder.to_path_buf(),
            current: file("memory.current", "memory.usage_in_bytes"),
            stat: file("memory.stat", "memory.stat"),
            swap: file("memory.swap.current", "memory.stat"),
            events: file("memory.events", "memory.oom_control"),
            failures: file("memory.events", "memory.failcnt"),
            kernel: file("memory.stat", "memory.kmem.usage_in_bytes"),
            kernel_share: None,
            own: None,
            lag: Lag::default(),
        }
    }

    /// What the kernel cannot take back from the group, by the same rule as for the scope.
    pub fn own_memory(&mut self, now: Moment, processes: Asked, scratch: &mut Vec<u8>, tally: &mut Tally) -> Reading<u64> {
        let current = tally.reading(Source::Cgroup, self.current.read(scratch), cgroupfs::parse_number);
        // Not a page more or less than before: the dear part of the answer still holds.
        if let (Some(charged), Some((then, own))) = (current.known(), self.own)
            && charged == then
        {
            return Reading::Known(own);
        }
        let stat = self.stat(scratch, tally);
        let own = stat.and_then(|stat| self.unreclaimable(now, &stat, current.known(), processes, scratch, tally));
        // An account that lags is asked again even where nothing is charged any more.
        self.own = current.known().zip(own.known()).filter(|_| !self.lag.is_lagging());
        own
    }

    fn stat(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Reading<MemoryStat> {
        let version = self.version;
        tally.reading(Source::Cgroup, self.stat.read(scratch), |text| cgroupfs::parse_memory_stat(text, version))
    }

    /// v1 accounts the kernel's part in one sum, caches of names and inodes included, which are given back when asked for:
    /// a group of 128 MiB that had written 400 MB of file held 3.5 MB of it, and 0.3 MB after the next read. So of that sum
    /// the part counts that is not reclaimable on the machine as a whole, and never more than is charged beside the pages.
    ///
    /// Added is what the account does not list yet ([`Lag`]); and what it still lists is never more than is charged: after a
    /// worker's end it may speak of its memory for a while.
    fn unreclaimable(
        &mut self,
        now: Moment,
        stat: &MemoryStat,
        current: Option<u64>,
        processes: Asked,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> Reading<u64> {
        let Some(current) = current else { return Reading::Known(stat.unreclaimable) };
        let beside = current.saturating_sub(stat.listed());
        let kernel = match (self.version, self.kernel_share) {
            (Version::V1, Some(share)) => match tally.reading(Source::Cgroup, self.kernel.read(scratch), cgroupfs::parse_number) {
                // A kernel that does not account its own part.
                Reading::Unsupported => Reading::Known((0, 0)),
                kernel => kernel.map(|kernel| (kernel, ((kernel as f64 * share) as u64).min(beside))),
            },
            _ => Reading::Known((0, 0)),
        };
        kernel.map(|(kernel, kept)| {
            let Processes { before, now: ask } = processes;
            let missing = self.lag.missing(now, beside.saturating_sub(kernel), Processes { before, now: || ask(scratch) });
            stat.unreclaimable.saturating_add(kept).saturating_add(missing).min(current)
        })
    }

    fn events(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Reading<MemoryEvents> {
        let value = |text: &[u8], key| cgroupfs::value_of(text, key).unwrap_or(0);
        match self.version {
            Version::V2 => tally.reading(Source::Cgroup, self.events.read(scratch), |text| {
                Some(MemoryEvents {
                    high: value(text, "high"),
                    max: cgroupfs::value_of(text, "max")?,
                    oom: value(text, "oom"),
                    oom_kill: value(text, "oom_kill"),
                })
            }),
            Version::V1 => {
                let max = tally.reading(Source::Cgroup, self.failures.read(scratch), cgroupfs::parse_number);
                let oom_kill = tally.reading(Source::Cgroup, self.events.read(scratch), |text| Some(value(text, "oom_kill")));
                // v1 counts no event apart from the kill; each kill was an event.
                max.and_then(|max| oom_kill.map(|oom_kill| MemoryEvents { high: 0, max, oom: oom_kill, oom_kill }))
            }
        }
    }
}

impl Memory {
    pub fn new(paths: &Paths, layout: &Layout) -> Memory {
        Memory {
            paths: paths.clone(),
            own: layout.memory.clone(),
            group: None,
            vmstat: Kept::new(paths, paths.proc.join("vmstat")),
            wanted: false,
            kernel_share: None,
        }
    }

    /// The next look says how much a machine reclaims in vain. A group's own account says so in every look.
    pub fn want_refaults(&mut self) {
        self.wanted = true;
    }

    pub fn kernel_share(&self) -> Option<f64> {
        self.kernel_share
    }

    /// `machine` is `/proc/meminfo`, read beforehand because the limits need it too.
    /// `processes` are those of the workers.
    pub fn read(
        &mut self,
        scope: &Scope,
        machine: Reading<Meminfo>,
        now: Moment,
        processes: Asked,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> MemoryReadings {
        let (limit, limit_source) = scope.candidates.memory(scope.machine_only);
        let own = self.own.as_ref().filter(|_| scope.extent.is_group());
        let limited = scope.candidates.memory.is_some() || scope.candidates.memory_failure.is_some();
        let blank = MemoryReadings {
            limit,
            limit_source,
            of_workers: scope.is_of_workers(own.is_some(), limit_source, limited),
            current: Reading::Unsupported,
            working_set: Reading::Unsupported,
            unreclaimable: Reading::Unsupported,
            swap: Reading::Unsupported,
            events: Reading::Unsupported,
            file_cache: Reading::Unsupported,
            refaults: Reading::Unsupported,
            stalls: Reading::Unsupported,
        };
        if let Reading::Known(machine) = machine {
            self.kernel_share = machine.kernel_share();
        }
        let Some(own) = own else {
            if scope.is_unseen(false) {
                return blank;
            }
            let refaults = match std::mem::take(&mut self.wanted) {
                true => tally.reading(Source::Procfs, self.vmstat.read(scratch), |text| Some(procfs::parse_refaults(text))),
                false => Reading::Unsupported,
            };
            return of_machine(machine, refaults, blank);
        };
        // The group that carries the limit where it can be seen, else our own.
        let folder = scope.memory_group.as_deref().unwrap_or(&own.dir);
        let group = match &mut self.group {
            Some(group) if group.folder == folder => group,
            group => group.insert(Group::of_scope(&self.paths, own.version, folder)),
        };
        group.kernel_share = self.kernel_share;
        of_group(group, blank, now, processes, scratch, tally)
    }
}

/// Of a machine: shared memory and tmpfs lie on the lists of anonymous pages, so `MemAvailable` does not promise them.
fn of_machine(machine: Reading<Meminfo>, refaults: Reading<Refaults>, blank: MemoryReadings) -> MemoryReadings {
    let taken = machine.map(|info| info.total.saturating_sub(info.free));
    MemoryReadings {
        current: taken,
        working_set: machine.map(|info| info.total.saturating_sub(info.free).saturating_sub(info.inactive_file)),
        unreclaimable: machine.and_then(|info| match info.available {
            Some(available) => Reading::Known(info.total.saturating_sub(available)),
            None => Reading::Unsupported,
        }),
        swap: machine.map(|info| info.swap_total.saturating_sub(info.swap_free)),
        file_cache: machine.map(|info| info.inactive_file.saturating_add(info.active_file)),
        refaults,
        ..blank
    }
}

fn of_group(
    group: &mut Group,
    blank: MemoryReadings,
    now: Moment,
    processes: Asked,
    scratch: &mut Vec<u8>,
    tally: &mut Tally,
) -> MemoryReadings {
    let current = tally.reading(Source::Cgroup, group.current.read(scratch), cgroupfs::parse_number);
    let stat = group.stat(scratch, tally);
    let swap = match group.version {
        Version::V2 => tally.reading(Source::Cgroup, group.swap.read(scratch), cgroupfs::parse_number),
        Version::V1 => stat.and_then(|stat| stat.swap.map_or(Reading::Unsupported, Reading::Known)),
    };
    MemoryReadings {
        current,
        working_set: current.and_then(|current| stat.map(|stat| current.saturating_sub(stat.inactive_file))),
        unreclaimable: stat.and_then(|stat| group.unreclaimable(now, &stat, current.known(), processes, scratch, tally)),
        swap,
        events: group.events(scratch, tally),
        file_cache: stat.map(|stat| stat.file_cache()),
        refaults: stat.map(|stat| stat.refaults),
        ..blank
    }
}
