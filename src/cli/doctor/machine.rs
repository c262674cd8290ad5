//! The machine as it can be read: what it is, what the limits are and who sets them, pressure, swap.

use std::time::Duration;

use super::report::{Level, Report};
use super::{Means, Patient, tried};
use crate::cli::render::{cores, size};
use crate::config::settings::Scope;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::inventory::Inventory;
use crate::host::{cgroupfs, probe, procfs};
use crate::sampling::readings::{LimitSource, Reading, SlotId, Target};
use crate::sampling::sampler::Sampler;
use crate::supervisor::adopting;

const AREA: &str = "machine";
/// The kernel takes this window from everybody, and a shorter one from the privileged only.
const ORDINARY_WINDOW: Duration = Duration::from_secs(2);
const SHORT_WINDOW: Duration = Duration::from_millis(500);

pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    if patient.is_live() {
        let Inventory { kernel, system, cpus, .. } = Inventory::take();
        let unknown = || "unknown".to_owned();
        let cpus = cpus.map_or_else(unknown, |count| count.to_string());
        report.ok(AREA, "kernel", format!("{} on {}, {cpus} processors", kernel.unwrap_or_else(unknown), system.unwrap_or_else(unknown)));
    } else {
        report.note(
            AREA,
            "host",
            format!("{} is a folder that looks like a machine: it is read, and nothing is tried out", patient.paths.proc.display()),
        );
    }
    report.ok(AREA, "platform", patient.platform.word());
    let mut sampler = Sampler::new(&patient.paths, &patient.settings.sampling, &patient.layout, []);
    sampler.set_limit_files(&patient.settings.policy);
    let (target, missing) = first_process(patient);
    let readings = sampler.read(target.as_slice(), Moment::now());
    let scope = format!("{} (sampling.scope is {})", sampler.scope().extent.word(), patient.settings.sampling.scope);
    match sampler.lookout() {
        Some((worker, Some(obstacle))) => {
            let why = missing.map(|why| format!("; {why}")).unwrap_or_default();
            let found = format!("{scope}: {}{why}", obstacle.words(worker));
            report.bad(
                AREA,
                Level::Warn,
                "scope",
                found,
                "docs/operating.md, \"As a sidecar\"; until then only the workers' processes count",
            );
        }
        _ => report.ok(AREA, "scope", scope),
    }
    for file in sampler.limit_files() {
        let what = format!("{}.file", file.kind().key());
        match file.complaint() {
            None => report.ok(AREA, &what, format!("{} can be read", file.path().display())),
            Some(complaint) => {
                let remedy = "see that the volume is mounted there, and that its divisor is the one of the settings";
                report.bad(AREA, Level::Warn, &what, complaint, remedy);
            }
        }
    }
    (means.cpu, means.memory) = (Some(readings.cpu.limit_source), Some(readings.memory.limit_source));
    limit(report, "CPU limit", readings.cpu.limit_cores, readings.cpu.limit_source, cores);
    limit(report, "memory limit", readings.memory.limit.map(|bytes| bytes as f64), readings.memory.limit_source, size);
    match readings.memory.unreclaimable {
        Reading::Known(bytes) => report.ok(AREA, "memory in use", format!("{} cannot be taken back by the kernel", size(bytes as f64))),
        _ => {
            let remedy = "none is needed: the working set is judged, which counts some cache as used";
            report.bad(AREA, Level::Warn, "memory in use", "what cannot be taken back is not told here", remedy);
        }
    }
    swap(patient, report);
    match &target {
        Some(target) => {
            let seen = Layout::of_process(&patient.paths.seen_by(target.pid), Some(target.pid));
            oom_group(&seen, "the whole application", report);
        }
        None => oom_group(&patient.layout, "the daemon too", report),
    }
    pressure(patient, report);
}

/// The process through which the container of a worker is seen, where that is the scope; else why there is none.
fn first_process(patient: &Patient) -> (Option<Target>, Option<String>) {
    let Scope::Worker(name) = &patient.settings.sampling.scope else { return (None, None) };
    let worker = patient.settings.workers.iter().find(|worker| worker.name == *name);
    let found = match worker.and_then(|worker| worker.adopt.as_ref()) {
        Some(adopt) => adopting::found_now(&patient.paths, name, &adopt.by, Moment::now()),
        None => Err("it is started by the daemon, in whose container it is then".to_owned()),
    };
    let target = |pid: i32| Target {
        slot: SlotId(0),
        worker: name.clone(),
        pid,
        cpu_group: None,
        memory_group: None,
        foreign_group: None,
        merges: false,
    };
    match found {
        Ok(pids) => (pids.first().copied().map(target), None),
        Err(why) => (None, Some(why)),
    }
}

fn limit(report: &mut Report, what: &str, reading: Reading<f64>, source: LimitSource, shown: impl Fn(f64) -> String) {
    match reading {
        Reading::Known(limit) => report.ok(AREA, what, format!("{}, set by {}", shown(limit), source.word())),
        missing => {
            report.bad(AREA, Level::Fail, what, format!("not known: {missing:?}"), "set policy.cpu.limit and policy.memory.limit yourself")
        }
    }
}

fn swap(patient: &Patient, report: &mut Report) {
    let meminfo = std::fs::read(patient.paths.proc.join("meminfo")).ok().and_then(|text| procfs::parse_meminfo(&text));
    match meminfo.map(|info| (info.swap_total, info.swap_free)) {
        None => report.bad(AREA, Level::Warn, "swap", "meminfo cannot be read", "mount /proc"),
        Some((0, _)) => report.note(
            AREA,
            "swap",
            "none: a worker is never braked by memory.high where nearly all it has is anonymous, it would stand still",
        ),
        Some((total, free)) => report.ok(AREA, "swap", format!("{}, {} free", size(total as f64), size(free as f64))),
    }
}

/// Where one out-of-memory ends everybody in the group.
fn oom_group(layout: &Layout, along: &str, report: &mut Report) {
    let Some(own) = layout.memory.as_ref().filter(|own| own.version == cgroupfs::Version::V2) else { return };
    let together = own.ancestors().find(|folder| probe::read_value(&folder.join("memory.oom.group")).is_ok_and(|value| value == "1"));
    match together {
        Some(folder) => report.bad(
            AREA,
            Level::Warn,
            "memory.oom.group",
            format!("1 in {}: when the kernel runs out of memory it kills everybody in it, {along}", folder.display()),
            "keep policy.memory.critical well under 100 %, so that one worker is replaced before; Kubernetes sets this for every container",
        ),
        None => report.ok(AREA, "memory.oom.group", "0: an out-of-memory takes one process"),
    }
}

fn pressure(patient: &Patient, report: &mut Report) {
    let file = patient.paths.proc.join("pressure/memory");
    match std::fs::read(&file).map(|text| crate::host::psi::parse(&text)) {
        Ok(Some(_)) => report.ok(AREA, "pressure", format!("{} can be read", file.display())),
        Ok(None) => report.note(
            AREA,
            "pressure",
            format!("{} is empty: the kernel does not account it (psi=1 on its command line)", file.display()),
        ),
        Err(error) => {
            report.note(AREA, "pressure", format!("{} cannot be read: {error}; polling finds what it would have told", file.display()));
            return;
        }
    }
    if !patient.is_live() {
        return;
    }
    let granted = |window: Duration| move |()| format!("the kernel takes a window of {window:?}");
    let outcome = probe::pressure_trigger(&file, ORDINARY_WINDOW);
    tried(report, AREA, "pressure trigger, 2 s", outcome, granted(ORDINARY_WINDOW), Level::Note, "polling finds it a little later");
    let outcome = probe::pressure_trigger(&file, SHORT_WINDOW);
    tried(
        report,
        AREA,
        "pressure trigger, 500 ms",
        outcome,
        granted(SHORT_WINDOW),
        Level::Note,
        "it needs CAP_SYS_RESOURCE; the 2 s window or polling serves instead",
    );
}
