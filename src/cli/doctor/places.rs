//! Folders, disks, ports and sockets the daemon needs or can use, and what the settings name.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{Level, Report};
use super::{Means, Patient, tried};
use crate::cli::render::{duration, percent, size};
use crate::config::adopt::Adopt;
use crate::config::settings::{Lock, Rung, Worker};
use crate::daemon::folders;
use crate::host::clock::Moment;
use crate::host::inventory::Platform;
use crate::host::service_manager::ServiceManager;
use crate::host::sockets::HeldLock;
use crate::host::{accounts, filesystem, probe, spawn};
use crate::response::victim;
use crate::sampling::readings::LimitSource;
use crate::supervisor::adopting;

const AREA: &str = "places";
const WORKERS: &str = "workers";
/// A file system that does not answer within this is taken for dead.
pub(super) const DISK_ANSWERS: Duration = Duration::from_secs(2);
/// With less than this, in bytes, the record ends soon.
const LITTLE_STATE: u64 = 64 << 20;
/// A socket and a few small files: a container's `/dev/shm` of 64 MiB has room for them many times.
const LITTLE_RUNTIME: u64 = 1 << 20;

const JOURNAL: &str = "/run/systemd/journal/socket";

pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    daemon(patient, report);
    let daemon = &patient.settings.daemon;
    let runtime = folders::runtime_candidates(&daemon.runtime_dir, &patient.sources);
    folder(patient, report, "runtime folder", "daemon.runtime_dir", &runtime, Level::Fail);
    let state = folders::state_candidates(&daemon.state_dir, &patient.sources);
    folder(patient, report, "state folder", "daemon.state_dir", &state, if daemon.state_dir.explicit { Level::Fail } else { Level::Warn });
    ports(patient, report);
    notified(patient, report);
    let zones = jiff::tz::TimeZone::get("Europe/Berlin");
    tried(
        report,
        AREA,
        "time zone data",
        zones.map_err(std::io::Error::other),
        |_| "there".to_owned(),
        Level::Note,
        "install tzdata, or mount /usr/share/zoneinfo; without it only UTC can be named",
    );
    disks(patient, report);
    for worker in &patient.settings.workers {
        self::worker(patient, report, worker, means);
    }
    if patient.settings.workers.is_empty() {
        let running = patient.daemon.as_ref().map_or(Vec::new(), |snapshot| snapshot.workers.iter().map(|state| &*state.name).collect());
        let told = match running.is_empty() {
            true => "none in the settings: the machine is only watched, unless run -- COMMAND names one".to_owned(),
            false => format!("none in the settings; the daemon looks after {}: see `plimsoll status`", running.join(", ")),
        };
        report.note(WORKERS, "workers", told);
    }
}

fn daemon(patient: &Patient, report: &mut Report) {
    match (&patient.daemon, &patient.socket) {
        (Some(snapshot), Ok(socket)) => {
            report.ok(AREA, "daemon", format!("one runs on {socket} (pid {}, {})", snapshot.daemon.pid, snapshot.daemon.version));
            let environment = &snapshot.environment;
            report.note(AREA, "daemon: memory pressure", environment.pressure.clone());
            report.note(AREA, "daemon: its own memory", environment.pages.clone());
            for limitation in &environment.limitations {
                report.note(AREA, "daemon: limitation", limitation.clone());
            }
        }
        (_, Err(why)) => report.note(AREA, "daemon", why.clone()),
        (None, Ok(socket)) => {
            report.bad(AREA, Level::Warn, "daemon", format!("something answers on {socket}, but not as a daemon does"), "plimsoll health")
        }
    }
}

/// The first of the folders that can be written to, or made.
fn folder(patient: &Patient, report: &mut Report, what: &str, key: &str, candidates: &[PathBuf], level: Level) {
    let mut refused = Vec::new();
    for candidate in candidates {
        // What is not there yet is made by the daemon: then its parent has to take it.
        let there = candidate.ancestors().find(|folder| folder.is_dir());
        let Some(there) = there else { continue };
        match probe::write_file(there) {
            Ok(()) => {
                let made = if there == candidate { "written to".to_owned() } else { format!("can be made in {}", there.display()) };
                let room = room(there);
                let instead = if refused.is_empty() { String::new() } else { format!("; instead of {}", refused.join(", ")) };
                let told = format!(
                    "{} {made}{}{instead}",
                    candidate.display(),
                    room.as_ref().map_or(String::new(), |(_, told)| format!(", {told}"))
                );
                let has_jobs = patient.settings.jobs.iter().any(|job| job.schedule.is_some());
                if let Some(place) = filesystem::fleeting(there).filter(|_| key == "daemon.state_dir" && has_jobs) {
                    let told = format!("{told}; it is {place}: which jobs were missed is not known after a restart");
                    report.bad(AREA, Level::Warn, what, told, "set daemon.state_dir to a folder on a volume");
                    return;
                }
                match room {
                    Some((avail, _)) if key == "daemon.runtime_dir" && avail < LITTLE_RUNTIME => {
                        report.bad(AREA, Level::Warn, what, told, "make room: what is to be undone after a crash is written there")
                    }
                    Some((avail, _)) if key == "daemon.state_dir" && avail < LITTLE_STATE => {
                        report.bad(AREA, Level::Warn, what, told, "make room: a full disk means no record")
                    }
                    _ => report.ok(AREA, what, told),
                }
                return;
            }
            Err(error) => refused.push(format!("{} ({error})", candidate.display())),
        }
    }
    // A daemon of another user has one all the same.
    let level = if patient.daemon.is_some() { Level::Note } else { level };
    report.bad(
        AREA,
        level,
        what,
        format!("cannot be used: {}{}", refused.join(", "), if level == Level::Warn { "; nothing is recorded then" } else { "" }),
        format!("set {key} to a folder this user may write to{}", given(patient.platform, candidates)),
    );
}

/// How a container gets a folder it may write to, also where its root is read-only.
fn given(platform: Platform, candidates: &[PathBuf]) -> String {
    let Some(first) = candidates.first().map(|folder| folder.display()) else { return String::new() };
    match platform {
        Platform::Docker | Platform::Podman | Platform::Container => {
            // A folder that the image has keeps its mode under a tmpfs, whatever mode= says; its owner can be set.
            let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            format!(
                ", or give the container one: --tmpfs {first}:uid={user},gid={group}; for what is to last a volume there that user {user} may write to"
            )
        }
        Platform::Kubernetes => format!(", or mount a volume at {first}, with fsGroup for the user"),
        _ => String::new(),
    }
}

fn room(folder: &Path) -> Option<(u64, String)> {
    let space = probe::space_within(folder, DISK_ANSWERS)?.ok()?;
    Some((space.avail, format!("{} free", size(space.avail as f64))))
}

fn ports(patient: &Patient, report: &mut Report) {
    let ours = patient.daemon.as_ref().map(|snapshot| snapshot.daemon.listening.clone()).unwrap_or_default();
    for address in &patient.settings.http.listen {
        let what = format!("port {address}");
        match probe::bind(*address) {
            Ok(()) => report.ok(AREA, what, "free"),
            Err(_) if ours.contains(&address.to_string()) => report.ok(AREA, what, "the running daemon listens on it"),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                report.bad(AREA, Level::Fail, what, "somebody else listens on it", "stop that, or set another http.listen");
            }
            Err(error) => report.bad(AREA, Level::Fail, what, format!("cannot be listened on: {error}"), "set another http.listen"),
        }
        if !address.ip().is_loopback() && patient.settings.http.api_key.is_none() {
            let remedy = "set PLIMSOLL_HTTP__API_KEY or http.api_key_file; until then everybody who can reach it sees /metrics, and control stays here";
            // Between containers that is what the port is for.
            let level = if patient.platform.is_container() { Level::Note } else { Level::Warn };
            report.bad(AREA, level, format!("port {address}"), "reachable from outside, and no key is set", remedy);
        }
    }
}

fn notified(patient: &Patient, report: &mut Report) {
    let journal = Path::new(JOURNAL);
    match journal.exists() {
        true => {
            let outcome = probe::reach_datagram(journal);
            tried(report, AREA, "journal", outcome, |()| "reached".to_owned(), Level::Note, "the log goes to standard error");
        }
        false => report.note(AREA, "journal", "not there: the log goes to standard error, as JSON where that is no terminal"),
    }
    match (patient.variable("NOTIFY_SOCKET"), patient.variable("WATCHDOG_USEC")) {
        (Some(socket), watchdog) => match ServiceManager::find(|name| patient.variable(name), std::process::id()) {
            Ok(_) => {
                let watched = watchdog.and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
                let watched =
                    watched.map_or("no watchdog".to_owned(), |patience| format!("a watchdog of {}", duration(patience.as_secs_f64())));
                report.ok(AREA, "service manager", format!("is told on {socket} when the daemon is ready and how it stands; {watched}"));
            }
            Err(why) => report.bad(
                AREA,
                Level::Warn,
                "service manager",
                format!("cannot be told that the daemon is ready: {why}"),
                "set NOTIFY_SOCKET to a path or to @NAME, or run the unit as Type=exec",
            ),
        },
        (None, _) => report.note(AREA, "service manager", "nobody waits to be told that the daemon is ready (no NOTIFY_SOCKET)"),
    }
}

fn disks(patient: &Patient, report: &mut Report) {
    for disk in &patient.settings.policy.disks {
        let what = format!("disk {}", disk.path.display());
        match probe::space_within(&disk.path, DISK_ANSWERS) {
            None => {
                report.bad(AREA, Level::Fail, what, "does not answer: a dead network or FUSE mount", "umount -l it, or take its rule away")
            }
            Some(Err(error)) => {
                report.bad(AREA, Level::Fail, what, format!("cannot be asked: {error}"), "set another path in policy.disks")
            }
            Some(Ok(space)) => {
                let used = space.size.saturating_sub(space.avail) as f64 / (space.size.max(1)) as f64;
                report.ok(AREA, what, format!("{} of {} used", percent(used), size(space.size as f64)));
            }
        }
    }
}

fn worker(patient: &Patient, report: &mut Report, worker: &Worker, means: &mut Means) {
    let name = |what: &str| format!("{} {what}", worker.name);
    match &worker.adopt {
        Some(adopt) => adopted(patient, report, worker, adopt, means),
        None => program(patient, report, worker),
    }
    if let Some(lock) = &worker.lock {
        singleton(patient, report, worker, lock);
    }
    if let Some(directory) = &worker.directory {
        match directory.is_dir() {
            true => report.ok(WORKERS, name("directory"), directory.display().to_string()),
            false => report.bad(WORKERS, Level::Fail, name("directory"), format!("{} is no folder", directory.display()), "make it"),
        }
    }
    if let Some(user) = &worker.user {
        match accounts::find(user, worker.group.as_deref()) {
            Ok(account) if account.uid == rustix::process::geteuid().as_raw() || rustix::process::geteuid().is_root() => {
                report.ok(WORKERS, name("user"), format!("{} is {}:{}", account.name, account.uid, account.gid));
            }
            Ok(account) => {
                report.bad(
                    WORKERS,
                    Level::Fail,
                    name("user"),
                    format!("we may not become {}", account.name),
                    "run the daemon as root, or take user away",
                );
            }
            Err(error) => report.bad(WORKERS, Level::Fail, name("user"), error.to_string(), "useradd it, or name another"),
        }
    }
    if worker.limits.memory.is_none() && worker.recycle.memory.is_none() {
        report.note(WORKERS, name("memory"), "no limits.memory and no recycle.memory: it is judged only together with everybody else");
    }
}

fn program(patient: &Patient, report: &mut Report, worker: &Worker) {
    let what = format!("{} program", worker.name);
    // A script that speaks for a machine of another kind has other programs.
    let path = worker.env.get("PATH").map(String::as_str).or(patient.sources.variable("PATH")).map(std::ffi::OsStr::new);
    let Some(program) = worker.command.first() else {
        report.note(WORKERS, what, "not known here: it is to stand after `plimsoll run --`");
        return;
    };
    match spawn::resolve_program(program, path, worker.directory.as_deref()) {
        Ok(found) => report.ok(WORKERS, what, found.display().to_string()),
        Err(error) => report.bad(WORKERS, Level::Fail, what, error.to_string(), "install it, or set the PATH of the worker in its env"),
    }
}

/// Whom the daemon would take, and what it may do to it.
fn adopted(patient: &Patient, report: &mut Report, worker: &Worker, adopt: &Adopt, means: &mut Means) {
    let what = |what: &str| format!("{} {what}", worker.name);
    match adopting::found_now(&patient.paths, &worker.name, &adopt.by, Moment::now()) {
        Ok(pids) => {
            let all: Vec<String> = pids.iter().map(i32::to_string).collect();
            let found = format!("found by {}: pid {}", adopt.by, all.join(", "));
            // It ignores what it does not expect, and nobody in its namespace can stop it.
            let is_first = pids.contains(&1);
            let may = pids.iter().all(|pid| probe::may_signal(*pid));
            match (may, is_first) {
                (true, false) => report.ok(WORKERS, what("process"), found),
                (true, true) => report.bad(
                    WORKERS,
                    Level::Warn,
                    what("process"),
                    format!("{found}, which the kernel lets nobody in its namespace stop: it cannot be slowed"),
                    "start the application with an init before it (docker run --init); in a pod: shareProcessNamespace: true",
                ),
                (false, _) => report.bad(
                    WORKERS,
                    Level::Warn,
                    what("process"),
                    format!("{found}, and it may not be sent a signal: it can neither be slowed nor ended"),
                    "run the daemon as the user of the process, or as root with CAP_KILL",
                ),
            }
            if is_first || !may {
                means.out_of_reach.insert(worker.name.clone());
            }
            // What 100 % is of is read from our own group and those above it.
            let is_ours = patient.settings.takes_own_memory_limit();
            let is_apart = pids.iter().any(|pid| probe::is_grouped_apart(&patient.paths, *pid));
            if is_ours && is_apart && means.memory == Some(LimitSource::Cgroup) && worker.limits.memory.is_none() {
                report.bad(
                    WORKERS,
                    Level::Warn,
                    what("limit"),
                    "it lives in another control group (a container or unit of its own), and the memory limit that is judged is the daemon's",
                    format!("sampling.scope = {{ worker = \"{}\" }}: docs/operating.md, \"As a sidecar\"", worker.name),
                );
            }
        }
        Err(why) if !patient.is_live() => report.note(WORKERS, what("process"), why),
        Err(why) => {
            let remedy = "start it, or correct adopt (the user counts too); a daemon looks for it until it is there";
            report.bad(WORKERS, Level::Warn, what("process"), format!("not found by {}: {why}", adopt.by), remedy);
        }
    }
    let rung = |rung: Rung| victim::spared(worker, &rung);
    if let (Some(restart), Some(end)) = (rung(Rung::Recycle), rung(Rung::Kill)) {
        report.note(WORKERS, what("leave"), format!("slowed, and neither replaced nor ended: it {restart}; it {end}"));
    }
}

/// Whether its lock is there to be taken, and is a lock at all.
fn singleton(patient: &Patient, report: &mut Report, worker: &Worker, lock: &Lock) {
    let what = format!("{} lock", worker.name);
    let path = match lock {
        Lock::At(path) => path.clone(),
        Lock::Own(name) => {
            let folders = folders::state_candidates(&patient.settings.daemon.state_dir, &patient.sources);
            let Some(folder) = folders.iter().find(|folder| folder.is_dir()).or(folders.first()) else { return };
            folder.join(name)
        }
    };
    let told = path.display();
    match HeldLock::is_free(&path) {
        Ok(Some(true)) => report.ok(WORKERS, what, format!("{told} is free")),
        Ok(Some(false)) => {
            let holder = HeldLock::holder(&path).map(|who| format!(" by pid {who}")).unwrap_or_default();
            report.ok(WORKERS, what, format!("{told} is held{holder}: it runs there, and a daemon here waits for its turn"));
        }
        Ok(None) => {
            let folder = path.parent().and_then(|folder| folder.ancestors().find(|folder| folder.is_dir()));
            let is_whole = folder == path.parent() || matches!(lock, Lock::Own(_));
            match folder.filter(|_| is_whole).map(probe::write_file) {
                Some(Ok(())) => report.ok(WORKERS, what, format!("{told} can be made")),
                Some(Err(error)) => report.bad(
                    WORKERS,
                    Level::Fail,
                    what,
                    format!("{told} cannot be made: {error}"),
                    "set lock to a file in a folder this user may write to",
                ),
                None => {
                    report.bad(WORKERS, Level::Fail, what, format!("{told} cannot be made: its folder is not there"), "make the folder")
                }
            }
        }
        Err(error) => report.bad(
            WORKERS,
            Level::Fail,
            what,
            format!("{told} cannot be used: {error}"),
            "set lock to a file this user may read and write, on a file system that knows flock",
        ),
    }
}
