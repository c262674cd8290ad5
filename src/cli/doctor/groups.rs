//! Control groups: makes one of its own as the daemon would, does to a child in it what the daemon may have to do, and removes it.

use super::platform::docker;
use super::report::{Level, Report};
use super::{Means, Patient, tried};
use crate::actuators::brake;
use crate::host::cgroupfs::{Kind, Version};
use crate::host::group::{self, Group, Groups, LEAF};
use crate::host::inventory::Platform;
use crate::host::probe::{self, Habit, Held, Subject};
use crate::response::candidate::{LineKind, ReclaimBy};

const AREA: &str = "control groups";

/// How the daemon gets a group of its own where it runs.
fn delegate(platform: Platform) -> &'static str {
    match platform {
        Platform::Docker | Platform::Podman | Platform::Container => docker::writable_groups(platform),
        Platform::Kubernetes => "none is needed: signals serve instead; only some runtimes give a container writable control groups",
        Platform::Railway | Platform::Render => "none is needed: signals serve instead; the platform gives no writable control groups",
        Platform::Fly => "none is needed: signals serve instead; in a virtual machine of its own the daemon has them when it is root",
        Platform::Systemd | Platform::Host => {
            "run the daemon where it has a group of its own: a systemd unit with Delegate=cpu memory pids, or as root"
        }
    }
}

pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    let layout = &patient.layout;
    report.ok(AREA, "version", layout.kind.word());
    let own = [("the v2 tree", &layout.unified), ("cpu", &layout.cpu), ("memory", &layout.memory)];
    for (what, own) in own {
        match own {
            Some(own) => report.ok(AREA, format!("own group for {what}"), own.dir.display().to_string()),
            None if layout.kind == Kind::None => {}
            None => report.note(AREA, format!("own group for {what}"), "there is none here"),
        }
    }
    if layout.kind == Kind::None {
        report.bad(AREA, Level::Warn, "groups", "none are mounted", "workers are slowed by signals then, which works everywhere");
        means.quota = Some(false);
        if patient.is_live() {
            memory(patient, report, means, &Groups::none("no control groups"));
        }
        return;
    }
    if !patient.is_live() {
        report.note(AREA, "groups of our own", "not tried: this machine is a folder");
        return;
    }
    if let Some(reason) = belongs_to_somebody(patient) {
        report.note(AREA, "groups of our own", reason);
        means.quota = patient.daemon.as_ref().map(|snapshot| snapshot.environment.enforcement == "cgroup");
        return;
    }
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut groups = Groups::probe(layout, pid, &format!("doctor-{pid}"));
    try_out(patient, report, means, &groups);
    let made: Vec<_> = groups.made().to_vec();
    groups.remove();
    for folder in made.iter().filter(|folder| folder.exists()) {
        let remedy = format!("rmdir {}", folder.display());
        report.bad(AREA, Level::Warn, "tidying up", format!("{} could not be removed", folder.display()), remedy);
    }
}

/// On v2 the parent of the workers' groups is changed to make them. While a daemon has it, it is not ours to try things on.
fn belongs_to_somebody(patient: &Patient) -> Option<String> {
    let unified = patient.layout.unified.as_ref()?;
    if patient.layout.cpu.as_ref().is_none_or(|cpu| cpu.version != Version::V2) {
        return None;
    }
    if let Some(snapshot) = &patient.daemon {
        let enforcement = &snapshot.environment.enforcement;
        return Some(format!(
            "not tried: a daemon is running (pid {}) and has them; it says that it throttles by {enforcement}",
            snapshot.daemon.pid
        ));
    }
    let leaf = unified.dir.join(LEAF);
    let members = probe::read_value(&leaf.join("cgroup.procs")).ok()?;
    (!members.is_empty()).then(|| format!("not tried: {} holds a process, so a daemon has them", leaf.display()))
}

fn try_out(patient: &Patient, report: &mut Report, means: &mut Means, groups: &Groups) {
    let delegate = delegate(patient.platform);
    memory(patient, report, means, groups);
    let group = match groups.create(&format!("{}doctor", group::REPLICA)) {
        Ok(Some(group)) => {
            for limitation in groups.limitations() {
                report.bad(AREA, Level::Note, "groups of our own", limitation.clone(), delegate);
            }
            group
        }
        Ok(None) => {
            let why = groups.limitations().join("; ");
            let told = format!("none can be made ({why}): workers are slowed by signals instead");
            // In most containers nobody can do anything about it.
            let level = if patient.platform.is_container() { Level::Note } else { Level::Warn };
            report.bad(AREA, level, "groups of our own", told, delegate);
            means.quota = Some(false);
            return;
        }
        Err(error) => {
            report.bad(AREA, Level::Warn, "groups of our own", format!("could not be made: {error}"), delegate);
            means.quota = Some(false);
            return;
        }
    };
    report.ok(AREA, "groups of our own", "made, and removed again");
    match Subject::start(&patient.paths, Habit::Busy) {
        Ok(subject) => with_subject(report, means, &group, subject, delegate),
        Err(error) => report.bad(AREA, Level::Fail, "a child", format!("could not be started: {error}"), "look at ulimit -u and pids.max"),
    }
    group::remove_all(vec![group]);
}

fn with_subject(report: &mut Report, means: &mut Means, group: &Group, mut subject: Subject, delegate: &str) {
    let moved = subject.enter(group);
    if !tried(report, AREA, "moving a child into a group", moved, |()| "done".to_owned(), Level::Warn, delegate) {
        means.quota = Some(false);
        return;
    }
    quota(report, means, group, &subject, delegate);
    match group.freezer() {
        Some(folder) => {
            let frozen = probe::freeze_and_thaw(folder);
            tried(
                report,
                AREA,
                "freezing a group",
                frozen,
                |()| "frozen and thawed".to_owned(),
                Level::Note,
                "workers are stopped by signals instead",
            );
            if group.kill() {
                tried(
                    report,
                    AREA,
                    "killing a group",
                    subject.has_ended(),
                    |()| "all of it at once".to_owned(),
                    Level::Warn,
                    "report this",
                );
            } else {
                report.note(AREA, "killing a group", "there is no cgroup.kill (Linux 5.14); members are killed one by one");
            }
        }
        None => report.note(AREA, "freezing and killing a group", "there is no v2 tree to do it in; signals serve instead"),
    }
}

fn quota(report: &mut Report, means: &mut Means, group: &Group, subject: &Subject, delegate: &str) {
    let outcome = probe::quota(group, subject);
    means.quota = Some(matches!(outcome, Ok(Some(_))));
    match outcome {
        Ok(None) => {
            report.bad(AREA, Level::Note, "CPU quota", "there is no cpu controller in our groups; duty cycles serve instead", delegate)
        }
        Err(error) => report.bad(AREA, Level::Note, "CPU quota", format!("cannot be set: {error}; duty cycles serve instead"), delegate),
        Ok(Some(Held { allowed, used, throttled: true })) => {
            report.ok(AREA, "CPU quota", format!("a busy child held to {allowed:.2} cores used {used:.2}"));
        }
        Ok(Some(Held { allowed, used, throttled: false })) => report.note(
            AREA,
            "CPU quota",
            format!("accepted; the child used {used:.2} of {allowed:.2} cores, the machine was too busy to see it held"),
        ),
    }
}

/// Memory: tried out as the daemon does at its start.
fn memory(patient: &Patient, report: &mut Report, means: &mut Means, groups: &Groups) {
    let subject = Subject::start(&patient.paths, Habit::Idle);
    let child = subject.as_ref().ok().map(Subject::pid);
    let brake::Means { line, reclaim, freeze } = brake::Means::find(&patient.paths, groups, child);
    match line {
        Ok(LineKind::Slows) => report.ok(AREA, "memory.high", "set and taken back"),
        Ok(LineKind::Hints) => {
            report.ok(AREA, "memory soft limit (v1)", "set and taken back; it is a hint only, growth is slowed by the processor")
        }
        Err(why) => report.note(AREA, "memory.high", format!("{why}; growth is slowed by the processor")),
    }
    match &reclaim {
        Ok(by) => report.ok(AREA, "asking memory back", by_words(*by)),
        Err(why) => {
            let remedy = "none is needed: the rung reclaim is passed over; it takes a memory group of our own, or CAP_SYS_NICE and a seccomp \
                          profile that allows process_madvise";
            report.bad(AREA, Level::Note, "asking memory back", why.clone(), remedy);
        }
    }
    if let Err(why) = freeze {
        report.note(AREA, "a short stop", why);
    }
    means.reclaim = Some(reclaim.map_err(drop));
}

pub fn by_words(by: ReclaimBy) -> &'static str {
    match by {
        ReclaimBy::Group => "by memory.reclaim of its group",
        ReclaimBy::Emptying => "by memory.force_empty of its group (v1)",
        ReclaimBy::Advice => "by process_madvise",
    }
}
