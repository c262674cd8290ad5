//! CPU of the scope.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::limits::counterpart;
use super::readings::{CpuReadings, Reading, Source};
use super::scope::Scope;
use super::tally::Tally;
use crate::host::cgroupfs::{self, Layout, Own, Version};
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::procfs::CpuTicks;
use crate::host::{Paths, procfs};

/// Two looks closer together than this make no rate: the kernel's counters move in steps of up to 10 ms.
const SHORTEST: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Cpu {
    paths: Paths,
    quota: Option<Own>,
    accounting: Option<Own>,
    meter: Meter,
    host: Kept,
    /// The processors of the host that were counted; empty for all.
    counted: Vec<u32>,
    before: Option<(Moment, Duration)>,
    stolen_before: Option<(Moment, Duration)>,
}

/// The files of the group that is measured; empty on a host.
#[derive(Debug, Default)]
struct Meter {
    group: Option<PathBuf>,
    usage: Option<(Version, Kept)>,
    /// `cpu.stat` of our group and of every one above it: each holds back what is below it by its own quota, and counts
    /// only that (`nr_throttled` and the time are not hierarchical).
    throttled: Vec<(Version, Kept)>,
}

impl Cpu {
    pub fn new(paths: &Paths, layout: &Layout) -> Cpu {
        Cpu {
            paths: paths.clone(),
            quota: layout.cpu.clone().or_else(|| layout.unified.clone()),
            accounting: layout.cpuacct.clone().or_else(|| layout.unified.clone()),
            meter: Meter::default(),
            host: Kept::new(paths, paths.proc.join("stat")),
            counted: Vec::new(),
            before: None,
            stolen_before: None,
        }
    }

    pub fn read(&mut self, scope: &Scope, now: Moment, scratch: &mut Vec<u8>, tally: &mut Tally) -> CpuReadings {
        let (limit_cores, limit_source) = scope.candidates.cpu(scope.machine_only);
        let group = scope.extent.is_group() && self.accounting.is_some();
        let (usage_total, throttled_total) = match () {
            () if scope.is_unseen(group) => (Reading::Unsupported, Reading::Unsupported),
            () if group => self.read_group(scope, scratch, tally),
            () => self.read_host(scope, scratch, tally),
        };
        let limited = scope.candidates.quota.is_some() || scope.candidates.cpu_failure.is_some();
        let of_workers = scope.is_of_workers(group, limit_source, limited);
        let used_cores = usage_total.and_then(|usage| rate(&mut self.before, now, usage));
        let stolen_cores =
            if group { Reading::Unsupported } else { throttled_total.and_then(|stolen| rate(&mut self.stolen_before, now, stolen)) };
        CpuReadings { limit_cores, limit_source, of_workers, usage_total, used_cores, throttled_total, stolen_cores }
    }

    fn read_group(&mut self, scope: &Scope, scratch: &mut Vec<u8>, tally: &mut Tally) -> (Reading<Duration>, Reading<Duration>) {
        self.turn_to(scope.cpu_group.as_deref());
        let usage = match &mut self.meter.usage {
            Some((Version::V2, file)) => {
                tally.reading(Source::Cgroup, file.read(scratch), |text| cgroupfs::value_of(text, "usage_usec").map(Duration::from_micros))
            }
            Some((Version::V1, file)) => {
                tally.reading(Source::Cgroup, file.read(scratch), |text| cgroupfs::parse_number(text).map(Duration::from_nanos))
            }
            None => Reading::Unsupported,
        };
        let mut throttled = Reading::Unsupported;
        for (version, file) in &mut self.meter.throttled {
            let (key, unit): (_, fn(u64) -> Duration) = match version {
                Version::V2 => ("throttled_usec", Duration::from_micros),
                Version::V1 => ("throttled_time", Duration::from_nanos),
            };
            // A group without a quota of its own, or the top of the tree, has no such line.
            let own = tally.reading(Source::Cgroup, file.read(scratch), |text| Some(cgroupfs::value_of(text, key).map(unit)));
            throttled = match (throttled, own) {
                (Reading::Known(sum), Reading::Known(Some(own))) => Reading::Known(sum + own),
                (Reading::Unsupported, Reading::Known(Some(own))) => Reading::Known(own),
                (Reading::Failed(failure), _) | (_, Reading::Failed(failure)) => Reading::Failed(failure),
                (sum, _) => sum,
            };
        }
        (usage, throttled)
    }

    /// Measures the group that carries the quota where it can be seen, else our own.
    fn turn_to(&mut self, carrier: Option<&Path>) {
        let quota_folder = carrier.or(self.quota.as_ref().map(|own| own.dir.as_path()));
        if self.meter.usage.is_some() && self.meter.group.as_deref() == quota_folder {
            return;
        }
        let usage = self.accounting.as_ref().map(|accounting| {
            // v1 may keep quotas and accounts in two trees; the folder of the same place is the same group.
            let there = self.quota.as_ref().zip(carrier).and_then(|(quota, carrier)| counterpart(carrier, quota, accounting));
            let folder = there.unwrap_or_else(|| accounting.dir.clone());
            let file = if accounting.version == Version::V2 { "cpu.stat" } else { "cpuacct.usage" };
            (accounting.version, Kept::new(&self.paths, folder.join(file)))
        });
        let stat = |own: &Own| own.ancestors().map(|folder| (own.version, Kept::new(&self.paths, folder.join("cpu.stat")))).collect();
        let throttled = self.quota.as_ref().map(stat).unwrap_or_default();
        self.meter = Meter { group: quota_folder.map(Path::to_path_buf), usage, throttled };
        // Another group's account: no rate across the change.
        self.before = None;
    }

    /// Busy time of the processors, steal as time held back: it is not used by anyone here, but a processor of which a
    /// third is stolen has only two thirds to give. Where we may run on some processors only, these alone count, as they
    /// alone are the limit.
    fn read_host(&mut self, scope: &Scope, scratch: &mut Vec<u8>, tally: &mut Tally) -> (Reading<Duration>, Reading<Duration>) {
        let allowed = if scope.machine_only { &[][..] } else { &scope.candidates.allowed };
        if self.meter.usage.is_some() || self.counted != allowed {
            self.meter = Meter::default();
            self.counted = allowed.to_vec();
            (self.before, self.stolen_before) = (None, None);
        }
        let total = tally.reading(Source::Procfs, self.host.read(scratch), |text| {
            let counts = |cpu: Option<u32>| if allowed.is_empty() { cpu.is_none() } else { cpu.is_some_and(|cpu| allowed.contains(&cpu)) };
            let lines = procfs::parse_cpu_lines(text).filter(|(cpu, _)| counts(*cpu)).map(|(_, ticks)| ticks);
            lines.reduce(|sum, ticks| CpuTicks { busy: sum.busy.saturating_add(ticks.busy), steal: sum.steal.saturating_add(ticks.steal) })
        });
        (total.map(|ticks| procfs::ticks(ticks.busy)), total.map(|ticks| procfs::ticks(ticks.steal)))
    }
}

/// Cores used between the look before and this one; `Unsupported` until there are two.
pub(super) fn rate(before: &mut Option<(Moment, Duration)>, now: Moment, usage: Duration) -> Reading<f64> {
    let Some((then, used)) = *before else {
        *before = Some((now, usage));
        return Reading::Unsupported;
    };
    let elapsed = now.since(then);
    if elapsed < SHORTEST {
        return Reading::Unsupported;
    }
    *before = Some((now, usage));
    // A counter that went back is another counter.
    usage.checked_sub(used).map_or(Reading::Unsupported, |spent| Reading::Known(spent.as_secs_f64() / elapsed.as_secs_f64()))
}
