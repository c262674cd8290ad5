//! A service of systemd. What the settings of a unit mean: systemd.service(5), systemd.kill(5), systemd.resource-control(5), systemd.exec(5);
//! how they are asked for: systemctl(1), `show`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Facts, Grace, Told, grace};
use crate::cli::render::size;

pub const UNIT: &str = "plimsoll.service";
pub const PROPERTIES: [&str; 16] = [
    "LoadState",
    "ActiveState",
    "Type",
    "TimeoutStopUSec",
    "WatchdogUSec",
    "Delegate",
    "DelegateControllers",
    "MemoryHigh",
    "KillMode",
    "OOMPolicy",
    "Restart",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "PrivateUsers",
    "MemoryDenyWriteExecute",
];

/// systemd raised its own services from one minute to three: what exceeded the one was nearly always a machine short of something.
const HASTY: Duration = Duration::from_secs(60);

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    let unit = match &facts.seen.unit {
        Some(Ok(unit)) if is_loaded(unit) => unit,
        Some(Ok(_)) => {
            told.note(
                "unit",
                format!("{UNIT} is not installed here"),
                "the package brings it; by hand: docs/operating.md, \"Under systemd\"",
            );
            return;
        }
        Some(Err(why)) => {
            told.note("unit", format!("systemctl show {UNIT}: {why}"), "run the doctor on the machine itself, where systemctl is");
            return;
        }
        None => {
            let found = format!("how {UNIT} is set can be seen only where systemd runs");
            told.note(
                "unit",
                found,
                "Type=notify, Delegate=cpu memory pids, KillMode=mixed, OOMPolicy=continue, TimeoutStopSec above daemon.shutdown_timeout",
            );
            return;
        }
    };
    let property = |name: &str| unit.get(name).map_or("", String::as_str);
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::from_secs(90),
            // "infinity" is no figure: nobody is killed then.
            told: Some(match span(property("TimeoutStopUSec")) {
                Some(timeout) => (timeout, format!("TimeoutStopSec of {UNIT}")),
                None => (Duration::from_secs(u64::from(u32::MAX)), format!("TimeoutStopSec=infinity of {UNIT}")),
            }),
            who: "systemd",
            raise: |seconds| format!("TimeoutStopSec={seconds}"),
        },
    );
    delegated(property("Delegate"), property("DelegateControllers"), told);
    match property("KillMode") {
        "mixed" => told.ok("KillMode", "mixed: the daemon alone is asked to end, and ends its workers in order"),
        "control-group" => {
            told.warn("KillMode", "control-group: the workers get SIGTERM together with the daemon, and not in order", "KillMode=mixed");
        }
        other => told.warn("KillMode", format!("{other}: what outlives the daemon goes on with nobody to guard it"), "KillMode=mixed"),
    }
    match property("OOMPolicy") {
        "continue" => told.ok("OOMPolicy", "continue: a worker the kernel kills is replaced"),
        other => told.warn(
            "OOMPolicy",
            format!("{other}: one worker the kernel kills for want of memory ends the whole service"),
            "OOMPolicy=continue",
        ),
    }
    if let Ok(bytes) = property("MemoryHigh").parse::<u64>() {
        let found = format!(
            "{}: beyond it the kernel holds up everybody in the unit, and the daemon looks and answers seconds late",
            size(bytes as f64)
        );
        told.warn("MemoryHigh", found, "MemoryMax= for what may be used, policy.memory.high for the line below it");
    }
    match property("Type") {
        kind @ ("notify" | "notify-reload") => told.ok("Type", format!("{kind}: the service counts as started when the daemon is at work")),
        other => told.note("Type", format!("{other}: the service counts as started before the daemon is at work"), "Type=notify"),
    }
    match span(property("WatchdogUSec")) {
        // systemd takes it over from the unit when it starts the service.
        None | Some(Duration::ZERO) if property("ActiveState") != "active" => {
            told.note(
                "watchdog",
                "systemd tells of it only while the service runs",
                "run the doctor once more after systemctl start plimsoll",
            );
        }
        None | Some(Duration::ZERO) => {
            told.note("watchdog", "none: a daemon that hangs is not started again", "WatchdogSec=3min, with Type=notify")
        }
        Some(within) if within < HASTY => {
            let found = format!(
                "a daemon that finishes no tick for {} s is ended, and its workers with it: a machine that starves, or waits for its disk, \
                 is late by as much now and then",
                within.as_secs_f64()
            );
            told.note("watchdog", found, "WatchdogSec=3min, as systemd's own services have it");
        }
        Some(within) => {
            told.ok("watchdog", format!("a daemon that finishes no tick for {} s is ended and started again", within.as_secs_f64()));
        }
    }
    match property("Restart") {
        "no" => told.warn("Restart", "no: a daemon that is killed is not started again", "Restart=on-failure"),
        other => told.ok("Restart", other),
    }
    hardened(facts, unit, told);
}

fn delegated(delegate: &str, controllers: &str, told: &mut Told<'_>) {
    let remedy = "Delegate=cpu memory pids";
    let missing: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| !controllers.split(' ').any(|one| one == *name)).collect();
    match (delegate, missing.is_empty()) {
        ("yes", true) => told.ok("Delegate", format!("yes, {controllers}: each worker has a group of its own")),
        ("yes", false) => told.warn("Delegate", format!("without {}: workers are slowed by signals", missing.join(" and ")), remedy),
        _ => told.warn("Delegate", "no: workers get no groups of their own, and are slowed by signals", remedy),
    }
}

/// What is taken from the daemon, or through it from the workers.
fn hardened(facts: &Facts, unit: &BTreeMap<String, String>, told: &mut Told<'_>) {
    let is = |name: &str, value: &str| unit.get(name).is_some_and(|found| found == value);
    let adopts = facts.settings.workers.iter().any(|worker| worker.adopt.is_some());
    if is("ProtectControlGroups", "yes") {
        let found = "yes: control groups are read-only, delegated or not, and workers are slowed by signals";
        told.warn("ProtectControlGroups", found, "ProtectControlGroups=no");
    }
    if is("ProcSubset", "pid") {
        told.warn("ProcSubset", "pid: memory, processors and pressure of the machine cannot be read", "ProcSubset=all");
    }
    if adopts && ["invisible", "noaccess", "ptraceable"].iter().any(|value| is("ProtectProc", value)) {
        told.warn("ProtectProc", "hides processes of other users, so adopted workers may not be found", "ProtectProc=default");
    }
    if is("PrivateUsers", "yes") {
        told.warn("PrivateUsers", "yes: user= of the workers and signals to other users do not work", "PrivateUsers=no");
    }
    if is("MemoryDenyWriteExecute", "yes") {
        let found = "yes, and workers inherit it: JavaScript, Java, .NET and PyPy do not start under it";
        told.note("MemoryDenyWriteExecute", found, "MemoryDenyWriteExecute=no, unless the workers are known to do without");
    }
}

/// `Name=value`, one a line.
pub fn properties(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

pub fn is_loaded(unit: &BTreeMap<String, String>) -> bool {
    unit.get("LoadState").is_some_and(|state| state == "loaded")
}

/// `1min 30s`, as systemctl shows spans. `None` for `infinity`, and for what is no span.
fn span(text: &str) -> Option<Duration> {
    let mut whole = Duration::ZERO;
    for word in text.split_whitespace() {
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number: f64 = word[..word.len() - unit.len()].parse().ok()?;
        let of = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "" | "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        whole += Duration::try_from_secs_f64(number * of).ok()?;
    }
    (!text.trim().is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};
    use super::*;

    /// As systemd 252 shows the unit that is shipped.
    const SHIPPED: &str = "Type=notify\nRestart=on-failure\nTimeoutStopUSec=1min 30s\nWatchdogUSec=3min\nOOMPolicy=continue\nKillMode=mixed\n\
                           Delegate=yes\nDelegateControllers=cpu memory pids\nMemoryHigh=infinity\nProtectControlGroups=no\nProtectProc=default\nProcSubset=all\n\
                           PrivateUsers=no\nMemoryDenyWriteExecute=no\nLoadState=loaded\nActiveState=active\n";

    fn case(settings: &str, changes: &[(&str, &str)]) -> Case {
        let mut unit = properties(SHIPPED);
        unit.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Case::new("systemd", settings).unit(Ok(unit))
    }

    #[test]
    fn the_shipped_unit_has_no_trap() {
        let shipped = case("", &[]);
        let bad = shipped.findings().into_iter().filter(|finding| finding.level != super::super::Level::Ok).collect::<Vec<_>>();
        assert!(bad.is_empty(), "{bad:#?}");
        shipped.expect("grace", Expect::Ok, "waits 90 s (TimeoutStopSec of plimsoll.service)");
    }

    #[test]
    fn each_trap_is_found() {
        for (name, value, what, level, words) in [
            ("TimeoutStopUSec", "20s", "grace", Expect::Warn, "systemd waits 20 s"),
            ("TimeoutStopUSec", "infinity", "grace", Expect::Ok, "infinity"),
            ("Delegate", "no", "Delegate", Expect::Warn, "slowed by signals"),
            ("DelegateControllers", "memory pids", "Delegate", Expect::Warn, "without cpu"),
            ("MemoryHigh", "419430400", "MemoryHigh", Expect::Warn, "400 MiB: beyond it"),
            ("KillMode", "control-group", "KillMode", Expect::Warn, "not in order"),
            ("KillMode", "process", "KillMode", Expect::Warn, "nobody to guard it"),
            ("OOMPolicy", "stop", "OOMPolicy", Expect::Warn, "whole service"),
            ("Type", "exec", "Type", Expect::Note, "before the daemon"),
            ("WatchdogUSec", "0", "watchdog", Expect::Note, "none"),
            ("WatchdogUSec", "infinity", "watchdog", Expect::Note, "none"),
            ("WatchdogUSec", "30s", "watchdog", Expect::Note, "its workers with it"),
            ("Restart", "no", "Restart", Expect::Warn, "not started again"),
            ("ProtectControlGroups", "yes", "ProtectControlGroups", Expect::Warn, "read-only"),
            ("ProcSubset", "pid", "ProcSubset", Expect::Warn, "cannot be read"),
            ("PrivateUsers", "yes", "PrivateUsers", Expect::Warn, "do not work"),
            ("MemoryDenyWriteExecute", "yes", "MemoryDenyWriteExecute", Expect::Note, "inherit"),
        ] {
            case("", &[(name, value)]).expect(what, level, words);
        }
        let not_started = [("WatchdogUSec", "0"), ("ActiveState", "inactive")];
        case("", &not_started).expect("watchdog", Expect::Note, "only while the service runs");
        let hidden = [("ProtectProc", "invisible")];
        case("[workers.app]\nadopt = { pidfile = \"/run/app.pid\" }\n", &hidden).expect("ProtectProc", Expect::Warn, "may not be found");
        case("", &hidden).expect("ProtectProc", Expect::Absent, "");
    }

    #[test]
    fn a_unit_that_is_not_there_or_cannot_be_asked_for_is_a_note() {
        case("", &[("LoadState", "not-found")]).expect("unit", Expect::Note, "not installed").expect("KillMode", Expect::Absent, "");
        Case::new("systemd", "").unit(Err("no such file".to_owned())).expect("unit", Expect::Note, "no such file");
        Case::new("systemd", "").elsewhere().expect("unit", Expect::Note, "only where systemd runs");
    }

    #[test]
    fn spans_are_read_as_systemctl_shows_them() {
        for (text, seconds) in
            [("1min 30s", Some(90.0)), ("0", Some(0.0)), ("500ms", Some(0.5)), ("1h 1.500s", Some(3601.5)), ("infinity", None), ("", None)]
        {
            assert_eq!(span(text).map(|span| span.as_secs_f64()), seconds, "{text}");
        }
    }
}
