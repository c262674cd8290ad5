//! Memory of the scope.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::readings::{MemoryEvents, MemoryReadings, Reading, Source};
use super::scope::{Extent, Scope};
use super::tally::Tally;
use crate::host::Paths;
use crate::host::cgroupfs::{self, Layout, Own, Version};
use crate::host::folder::Folder;
use crate::host::kept::Kept;
use crate::host::procfs::Meminfo;

#[derive(Debug)]
pub(super) struct Memory {
    paths: Paths,
    own: Option<Own>,
    group: Option<Group>,
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
    /// What was charged, and how much of it was the group's own, when `memory.stat` was last read.
    own: Option<(u64, u64)>,
}

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
            own: None,
        }
    }

    /// All that is charged less the file cache: what a group would free by ending.
    pub fn own_memory(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Reading<u64> {
        let current = tally.reading(Source::Cgroup, self.current.read(scratch), cgroupfs::parse_number);
        // Not a page more or less than before: the dear part of the answer still holds.
        if let (Some(charged), Some((then, own))) = (current.known(), self.own)
            && charged == then
        {
            return Reading::Known(own);
        }
        let version = self.version;
        let stat = tally.reading(Source::Cgroup, self.stat.read(scratch), |text| cgroupfs::parse_memory_stat(text, version));
        let own = current.and_then(|current| stat.map(|stat| current.saturating_sub(stat.inactive_file.saturating_add(stat.active_file))));
        self.own = current.known().zip(own.known());
        own
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
        Memory { paths: paths.clone(), own: layout.memory.clone(), group: None }
    }

    /// `machine` is `/proc/meminfo`, read beforehand because the limits need it too.
    pub fn read(&mut self, scope: &Scope, machine: Reading<Meminfo>, scratch: &mut Vec<u8>, tally: &mut Tally) -> MemoryReadings {
        let (limit, limit_source) = scope.candidates.memory(scope.machine_only);
        let blank = MemoryReadings {
            limit,
            limit_source,
            current: Reading::Unsupported,
            working_set: Reading::Unsupported,
            unreclaimable: Reading::Unsupported,
            swap: Reading::Unsupported,
            events: Reading::Unsupported,
        };
        let own = self.own.as_ref().filter(|_| scope.extent == Extent::Container);
        let Some(own) = own else { return of_machine(machine, blank) };
        // The group that carries the limit where it can be seen, else our own.
        let folder = scope.memory_group.as_deref().unwrap_or(&own.dir);
        let group = match &mut self.group {
            Some(group) if group.folder == folder => group,
            group => group.insert(Group::of_scope(&self.paths, own.version, folder)),
        };
        of_group(group, blank, scratch, tally)
    }
}

fn of_machine(machine: Reading<Meminfo>, blank: MemoryReadings) -> MemoryReadings {
    let taken = machine.map(|info| info.total.saturating_sub(info.free));
    MemoryReadings {
        current: taken,
        working_set: machine.map(|info| info.total.saturating_sub(info.free).saturating_sub(info.inactive_file)),
        unreclaimable: machine.and_then(|info| match info.available {
            Some(available) => Reading::Known(info.total.saturating_sub(available)),
            None => Reading::Unsupported,
        }),
        swap: machine.map(|info| info.swap_total.saturating_sub(info.swap_free)),
        ..blank
    }
}

fn of_group(group: &mut Group, blank: MemoryReadings, scratch: &mut Vec<u8>, tally: &mut Tally) -> MemoryReadings {
    let version = group.version;
    let current = tally.reading(Source::Cgroup, group.current.read(scratch), cgroupfs::parse_number);
    let stat = tally.reading(Source::Cgroup, group.stat.read(scratch), |text| cgroupfs::parse_memory_stat(text, version));
    let swap = match version {
        Version::V2 => tally.reading(Source::Cgroup, group.swap.read(scratch), cgroupfs::parse_number),
        Version::V1 => stat.and_then(|stat| stat.swap.map_or(Reading::Unsupported, Reading::Known)),
    };
    MemoryReadings {
        current,
        working_set: current.and_then(|current| stat.map(|stat| current.saturating_sub(stat.inactive_file))),
        unreclaimable: stat.map(|stat| stat.unreclaimable),
        swap,
        events: group.events(scratch, tally),
        ..blank
    }
}
