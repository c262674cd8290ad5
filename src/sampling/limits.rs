//! Every candidate for the limit that will really hurt, read anew each tick: a limit may be changed live.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use super::readings::{Failure, LimitSource, Reading, Source};
use super::tally::Tally;
use crate::host::cgroupfs::{self, Layout, Own, Version};
use crate::host::kept::Kept;
use crate::host::{Paths, procfs};

/// A limit set on a group of ours, and which group carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried<T> {
    pub amount: T,
    /// The group's folder; `None` when it lies above what can be seen from here.
    pub group: Option<Arc<Path>>,
    /// It is the topmost group to be seen: a container looking at itself.
    pub at_top: bool,
}

/// What could limit us in this tick. `None` where nothing of that kind does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Cores of processors that are online.
    pub online: Option<f64>,
    /// Cores in the smallest quota over all ancestors.
    pub quota: Option<Carried<f64>>,
    /// Cores in the cpuset.
    pub cpuset: Option<f64>,
    /// Cores the guardian, and so its workers, may run on.
    pub affinity: Option<f64>,
    /// Which processors those are, in rising order; empty when they are all that are online.
    pub allowed: Vec<u32>,
    /// Bytes of memory the machine has.
    pub total: Option<u64>,
    /// Bytes in the smallest hard limit over all ancestors.
    pub memory: Option<Carried<u64>>,
    /// Bytes in the smallest `memory.high` over all ancestors: softer, reclaim and slowing begin here.
    pub memory_high: Option<u64>,
    /// A limit that is there and could not be read: the smallest of the others would be a guess.
    pub cpu_failure: Option<Failure>,
    pub memory_failure: Option<Failure>,
    /// Cores and bytes that files of the settings name.
    pub cpu_file: Option<f64>,
    pub memory_file: Option<u64>,
    /// The groups are those of another container than the one that is meant: a file that names its limit wins over them.
    pub are_strange: bool,
}

impl Candidates {
    /// The smallest CPU limit in cores, and what it is.
    pub fn cpu(&self, machine_only: bool) -> (Reading<f64>, LimitSource) {
        let mut least: Option<(f64, LimitSource)> = self.online.map(|cores| (cores, LimitSource::Machine));
        let mut consider = |cores: Option<f64>, source| {
            if let Some(cores) = cores
                && least.is_none_or(|(smallest, _)| cores < smallest)
            {
                least = Some((cores, source));
            }
        };
        let by_groups = !machine_only && (!self.are_strange || self.cpu_file.is_none());
        if by_groups {
            consider(self.cpuset, LimitSource::Cpuset);
            consider(self.affinity, LimitSource::Affinity);
            consider(self.quota.as_ref().map(|quota| quota.amount), LimitSource::Cgroup);
        }
        consider(self.cpu_file, LimitSource::File);
        // What could not be read may be the smaller one; the file's is held to meanwhile.
        match self.cpu_file {
            Some(cores) if by_groups && self.cpu_failure.is_some() => (Reading::Known(cores), LimitSource::File),
            _ => outcome(least, self.cpu_failure.filter(|_| by_groups)),
        }
    }

    /// The smallest memory limit in bytes, and what it is.
    pub fn memory(&self, machine_only: bool) -> (Reading<u64>, LimitSource) {
        let by_groups = !machine_only && (!self.are_strange || self.memory_file.is_none());
        let machine = self.total.map(|total| (total, LimitSource::Machine));
        let group = self.memory.as_ref().filter(|_| by_groups).map(|limit| (limit.amount, LimitSource::Cgroup));
        let file = self.memory_file.map(|bytes| (bytes, LimitSource::File));
        // Of equals the first: a limit that is a group's is not called a file's because that says so too.
        let least = [machine, group, file].into_iter().flatten().min_by_key(|(bytes, _)| *bytes);
        match file {
            Some((bytes, source)) if by_groups && self.memory_failure.is_some() => (Reading::Known(bytes), source),
            _ => outcome(least, self.memory_failure.filter(|_| by_groups)),
        }
    }
}

fn outcome<T>(least: Option<(T, LimitSource)>, failure: Option<Failure>) -> (Reading<T>, LimitSource) {
    match (least, failure) {
        (_, Some(failure)) => (Reading::Failed(failure), LimitSource::Unknown),
        (Some((limit, source)), None) => (Reading::Known(limit), source),
        (None, None) => (Reading::Unsupported, LimitSource::Unknown),
    }
}

/// Keeps every file that may hold a limit.
#[derive(Debug)]
pub(super) struct Limits {
    live: bool,
    /// Whose affinity counts: the guardian's own, or one process's.
    affinity_of: Option<Pid>,
    cpu: Option<Ladder>,
    memory: Option<Ladder>,
    /// v1: `memory.stat` of our own group knows of limits above what can be seen.
    memory_stat: Option<Kept>,
    cpuset: Option<Kept>,
    online: Kept,
    /// Where the processors online are counted when `/sys` is not there.
    stat: Kept,
    status: Kept,
    /// What the machine had when it last said so: it does not become smaller because a read has failed.
    machine: (Option<f64>, Option<u64>),
}

/// The groups from ours up to the top of the tree.
#[derive(Debug)]
struct Ladder {
    version: Version,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    folder: Arc<Path>,
    at_top: bool,
    /// v2: `cpu.max` or `memory.max`; v1: `cpu.cfs_quota_us` or `memory.limit_in_bytes`.
    first: Kept,
    /// v2: `memory.high`; v1: `cpu.cfs_period_us`.
    second: Kept,
    /// Its limit was read before.
    was_read: bool,
}

impl Ladder {
    fn new(paths: &Paths, own: &Own, v2: [&str; 2], v1: [&str; 2]) -> Ladder {
        let [first, second] = if own.version == Version::V2 { v2 } else { v1 };
        let group = |folder: &Path| Group {
            folder: folder.into(),
            at_top: folder == own.mount,
            first: Kept::new(paths, folder.join(first)),
            second: Kept::new(paths, folder.join(second)),
            was_read: false,
        };
        Ladder { version: own.version, groups: own.ancestors().map(group).collect() }
    }
}

impl Limits {
    /// `of` is the process whose limits these are; `None` for ourselves.
    pub fn new(paths: &Paths, layout: &Layout, of: Option<i32>) -> Limits {
        // A controller our own group does not have may still limit us further up.
        let or_unified = |own: &Option<Own>| own.clone().or_else(|| layout.unified.clone());
        let ladder = |own: &Option<Own>, v2, v1| or_unified(own).map(|own| Ladder::new(paths, &own, v2, v1));
        let cpuset = or_unified(&layout.cpuset).map(|own| match own.version {
            Version::V2 => own.dir.join("cpuset.cpus.effective"),
            Version::V1 => own.dir.join("cpuset.effective_cpus"),
        });
        let v1_memory = layout.memory.as_ref().filter(|own| own.version == Version::V1);
        Limits {
            live: paths.is_live(),
            affinity_of: of.and_then(Pid::from_raw),
            cpu: ladder(&layout.cpu, ["cpu.max", "cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]),
            memory: ladder(&layout.memory, ["memory.max", "memory.high"], ["memory.limit_in_bytes", "memory.limit_in_bytes"]),
            memory_stat: v1_memory.map(|own| Kept::new(paths, own.dir.join("memory.stat"))),
            cpuset: cpuset.map(|path| Kept::new(paths, path)),
            online: Kept::new(paths, paths.sys.join("devices/system/cpu/online")),
            stat: Kept::new(paths, paths.proc.join("stat")),
            status: Kept::new(paths, paths.of_process(of).join("status")),
            machine: (None, None),
        }
    }

    /// `total` is the machine's memory in bytes, read beforehand.
    pub fn read(&mut self, total: Reading<u64>, scratch: &mut Vec<u8>, tally: &mut Tally) -> Candidates {
        let online = self.online(scratch, tally);
        self.machine = (online.known().or(self.machine.0), total.known().or(self.machine.1));
        let mut found = Candidates { online: self.machine.0, total: self.machine.1, ..Candidates::default() };
        let allowed = self.allowed(found.online, scratch);
        found.affinity = allowed.as_ref().map_or(found.online, |cpus| Some(cpus.len() as f64));
        found.allowed = allowed.unwrap_or_default();
        if let Some(file) = &mut self.cpuset {
            let parse = |text: &[u8]| if text.is_empty() { None } else { procfs::count_cpu_list(text) };
            let cpuset = tally.reading(Source::Cgroup, file.read(scratch), parse);
            // An empty list is a group that has not been given any of its own.
            found.cpuset = cpuset.known().filter(|cpus| *cpus > 0).map(|cpus| cpus as f64);
            found.cpu_failure = found.cpu_failure.or(failure(&cpuset, tally));
        }
        self.read_cpu(&mut found, scratch, tally);
        self.read_memory(&mut found, scratch, tally);
        // With nothing else to go by, a machine that cannot be read is not a machine without limits.
        if found.online.is_none() && found.quota.is_none() {
            found.cpu_failure = found.cpu_failure.or(failure(&online, tally));
        }
        if found.total.is_none() && found.memory.is_none() {
            found.memory_failure = found.memory_failure.or(failure(&total, tally));
        }
        found
    }

    fn online(&mut self, scratch: &mut Vec<u8>, tally: &mut Tally) -> Reading<f64> {
        let some = |cpus: usize| (cpus > 0).then_some(cpus as f64);
        match tally.reading(Source::Procfs, self.online.read(scratch), |text| procfs::count_cpu_list(text).and_then(some)) {
            Reading::Unsupported => tally.reading(Source::Procfs, self.stat.read(scratch), |text| {
                some(procfs::parse_cpu_lines(text).filter(|(cpu, _)| cpu.is_some()).count())
            }),
            known_or_failed => known_or_failed,
        }
    }

    /// The processors we may run on, when they are fewer than are online.
    fn allowed(&mut self, online: Option<f64>, scratch: &mut Vec<u8>) -> Option<Vec<u32>> {
        let fewer = |count: usize| count > 0 && online.is_some_and(|online| (count as f64) < online);
        if self.live {
            let set = rustix::thread::sched_getaffinity(self.affinity_of).ok()?;
            let cpus = || (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).filter_map(|cpu| u32::try_from(cpu).ok());
            return fewer(set.count() as usize).then(|| cpus().collect());
        }
        let text = self.status.read(scratch).ok()?;
        let list = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Cpus_allowed_list:"))?;
        procfs::parse_cpu_list(list).filter(|cpus| fewer(cpus.len()))
    }

    fn read_cpu(&mut self, found: &mut Candidates, scratch: &mut Vec<u8>, tally: &mut Tally) {
        let Some(ladder) = &mut self.cpu else { return };
        for group in &mut ladder.groups {
            let limit = match ladder.version {
                Version::V2 => tally.reading(Source::Cgroup, group.first.read(scratch), cgroupfs::parse_cpu_max),
                Version::V1 => match tally.reading(Source::Cgroup, group.first.read(scratch), cgroupfs::parse_quota) {
                    Reading::Known(Some(quota)) => tally.reading(Source::Cgroup, group.second.read(scratch), |period| {
                        cgroupfs::parse_number(period).and_then(|period| cgroupfs::cores(quota, period)).map(Some)
                    }),
                    none => none.map(|_| None),
                },
            };
            take(limit, group, &mut found.quota, &mut found.cpu_failure, tally);
        }
    }

    fn read_memory(&mut self, found: &mut Candidates, scratch: &mut Vec<u8>, tally: &mut Tally) {
        let Some(ladder) = &mut self.memory else { return };
        for group in &mut ladder.groups {
            let limit = tally.reading(Source::Cgroup, group.first.read(scratch), cgroupfs::parse_limit);
            take(limit, group, &mut found.memory, &mut found.memory_failure, tally);
            if ladder.version == Version::V2
                && let Reading::Known(Some(high)) = tally.reading(Source::Cgroup, group.second.read(scratch), cgroupfs::parse_limit)
            {
                found.memory_high = Some(found.memory_high.map_or(high, |smallest| smallest.min(high)));
            }
        }
        let Some(file) = &mut self.memory_stat else { return };
        let stat = tally.reading(Source::Cgroup, file.read(scratch), |text| cgroupfs::parse_memory_stat(text, Version::V1));
        found.memory_failure = found.memory_failure.or(failure(&stat, tally));
        if let Some(above) = stat.known().and_then(|stat| stat.hierarchical_limit)
            && found.memory.as_ref().is_none_or(|limit| above < limit.amount)
        {
            found.memory = Some(Carried { amount: above, group: None, at_top: false });
        }
    }
}

/// Keeps the smallest; of equals the one nearest to us, which is where our own usage is accounted.
fn take<T: PartialOrd + Copy>(
    limit: Reading<Option<T>>,
    group: &mut Group,
    least: &mut Option<Carried<T>>,
    failed: &mut Option<Failure>,
    tally: &mut Tally,
) {
    let could_be_read = group.was_read;
    group.was_read |= matches!(limit, Reading::Known(_));
    match limit {
        Reading::Known(Some(amount)) if least.as_ref().is_none_or(|smallest| amount < smallest.amount) => {
            *least = Some(Carried { amount, group: Some(group.folder.clone()), at_top: group.at_top });
        }
        // Somebody else's group we may not look into: counted, but no reason to know nothing at all.
        Reading::Failed(Failure { errno: Some(errno), .. }) if errno == Errno::ACCESS.raw_os_error() && !could_be_read => {}
        limit => *failed = failed.or(failure(&limit, tally)),
    }
}

/// Why a limit that may be there is not known. One that was there and has gone is not "no limit".
fn failure<T>(limit: &Reading<T>, tally: &mut Tally) -> Option<Failure> {
    let reading = match limit {
        Reading::Gone => tally.failed::<()>(Source::Cgroup, Some(Errno::NODEV)),
        Reading::Failed(failure) => Reading::Failed(*failure),
        Reading::Known(_) | Reading::Unsupported => return None,
    };
    if let Reading::Failed(failure) = reading { Some(failure) } else { None }
}

/// The folder in `tree` that stands where `folder` stands in the tree of `from`, if it is there.
pub(super) fn counterpart(folder: &Path, from: &Own, tree: &Own) -> Option<PathBuf> {
    if from.mount == tree.mount {
        return Some(folder.to_path_buf());
    }
    let there = tree.mount.join(folder.strip_prefix(&from.mount).ok()?);
    tree.dir.starts_with(&there).then_some(there)
}
