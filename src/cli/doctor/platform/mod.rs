//! The known traps of the platform: of the one we run on, or of the one that was asked for before anything is deployed.
//!
//! Each file holds one platform: facts go in, findings come out, nothing is read there. What only the platform itself can show is a
//! note when it is asked for from elsewhere. Where a figure is the platform's own, the file says whose page it is from.

pub(super) mod docker;
mod fly;
mod kubernetes;
mod railway;
mod render;
mod systemd;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{Level, Report};
use super::{Means, Patient};
use crate::config::jobs::Kind;
use crate::config::settings::{ListenAddress, ReadyBy, Settings, ThrottleMethod, Worker};
use crate::daemon::folders;
use crate::daemon::jobs::running::GRACE;
use crate::host::inventory::Platform;
use crate::host::{filesystem, probe};
use crate::sampling::readings::LimitSource;

const AREA: &str = "platform";

/// Files of the working folder that tell a platform what to do.
const FILES: [&str; 5] = ["fly.toml", "railway.json", "railway.toml", "render.yaml", "render.yml"];
/// Nobody writes a longer one.
const LONGEST_FILE: u64 = 256 << 10;
/// For what the daemon does besides waiting for workers: it undoes limits, answers requests that are open, writes its record out.
const REST: Duration = Duration::from_secs(1);
/// How long systemd is waited for.
const SYSTEMCTL_ANSWERS: Duration = Duration::from_secs(3);

/// What the findings follow from.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub platform: Platform,
    pub settings: Settings,
    /// We run there. Else it is asked from elsewhere: what we see is not the platform.
    pub here: bool,
    /// How long the platform waits between the signal and the kill, where somebody has said it.
    pub grace: Option<Duration>,
    pub variables: BTreeMap<String, String>,
    /// What the files of the working folder hold, by their names.
    pub files: BTreeMap<&'static str, String>,
    /// The folder state is kept in.
    pub state: PathBuf,
    /// Where folders of the settings lie, in words, if what is there does not outlive the container.
    pub fleeting: BTreeMap<PathBuf, &'static str>,
    pub seen: Seen,
}

/// What can only be seen in the place itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub root: bool,
    /// Process 1 is ourselves.
    pub first: bool,
    /// The name of process 1.
    pub first_name: Option<String>,
    pub memory: Option<LimitSource>,
    pub cpu: Option<LimitSource>,
    /// Bytes, of `/dev/shm`.
    pub shared_memory: Option<u64>,
    /// What systemd says of the unit, or why it says nothing.
    pub unit: Option<Result<BTreeMap<String, String>, String>>,
}

/// Enters what holds for the platform that was asked for, else for the one we are on.
pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    let asked = patient.asked;
    let platform = match asked.unwrap_or(patient.platform) {
        // Whoever types this is no service; the daemon will be one where the unit is there.
        Platform::Host if patient.is_live() && probe::is_run_by_systemd() => Platform::Systemd,
        platform => platform,
    };
    let facts = facts(patient, means, platform);
    let is_unit_there = matches!(&facts.seen.unit, Some(Ok(unit)) if systemd::is_loaded(unit));
    if platform == Platform::Host
        || (platform == Platform::Systemd && patient.platform == Platform::Host && asked.is_none() && !is_unit_there)
    {
        return;
    }
    let mut told = Told { report, of: platform.word() };
    match (asked, facts.here) {
        (None, _) => {}
        (Some(_), true) => told.ok("here", "this is it"),
        (Some(_), false) => {
            let found = format!("looked at from elsewhere ({}): only what the settings and files say", patient.platform.word());
            told.note("here", found, "run it there once more, where the daemon will run: `plimsoll doctor`");
        }
    }
    traps(&facts, &mut told);
}

fn traps(facts: &Facts, told: &mut Told<'_>) {
    match facts.platform {
        Platform::Railway => railway::traps(facts, told),
        Platform::Render => render::traps(facts, told),
        Platform::Fly => fly::traps(facts, told),
        Platform::Docker | Platform::Podman | Platform::Container => docker::traps(facts, told),
        Platform::Kubernetes => kubernetes::traps(facts, told),
        Platform::Systemd => systemd::traps(facts, told),
        Platform::Host => {}
    }
}

fn facts(patient: &Patient, means: &Means, platform: Platform) -> Facts {
    let here = patient.is_live() && !patient.elsewhere;
    let settings = &patient.settings;
    let states = folders::state_candidates(&settings.daemon.state_dir, &patient.sources);
    let nearest = |path: &Path| path.ancestors().find(|folder| folder.is_dir()).map(Path::to_path_buf);
    let state = states.iter().find(|folder| nearest(folder).is_some_and(|there| probe::write_file(&there).is_ok())).or(states.first());
    let state = state.filter(|_| here).cloned().unwrap_or_else(|| settings.daemon.state_dir.path.clone());
    let mut fleeting = BTreeMap::new();
    for path in kept(settings).into_iter().map(|(_, path)| path).chain([state.clone()]).filter(|_| here) {
        if let Some(place) = nearest(&path).and_then(|there| filesystem::fleeting(&there)) {
            fleeting.insert(path, place);
        }
    }
    let read = |name: &str| {
        let mut text = String::new();
        let file = std::fs::File::open(patient.sources.working_dir.join(name)).ok()?;
        file.take(LONGEST_FILE).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let seen = if here { seen(patient, means, platform) } else { Seen::default() };
    Facts {
        platform,
        settings: settings.clone(),
        here,
        grace: patient.grace,
        variables: patient.sources.env.iter().filter(|(_, value)| !value.is_empty()).cloned().collect(),
        files: FILES.into_iter().filter_map(|name| Some((name, read(name)?))).collect(),
        state,
        fleeting,
        seen,
    }
}

fn seen(patient: &Patient, means: &Means, platform: Platform) -> Seen {
    let shared_memory = probe::space_within(Path::new("/dev/shm"), super::places::DISK_ANSWERS).and_then(Result::ok);
    Seen {
        root: rustix::process::geteuid().is_root(),
        first: rustix::process::getpid().is_init(),
        first_name: probe::name_of(&patient.paths, 1),
        memory: means.memory,
        cpu: means.cpu,
        shared_memory: shared_memory.map(|space| space.size),
        unit: (platform == Platform::Systemd).then(|| {
            let words: Vec<String> = ["show".to_owned(), systemd::UNIT.to_owned()]
                .into_iter()
                .chain(systemd::PROPERTIES.iter().map(|property| format!("--property={property}")))
                .collect();
            probe::ask("systemctl", &words, SYSTEMCTL_ANSWERS).map(|told| systemd::properties(&told)).map_err(|error| error.to_string())
        }),
    }
}

/// Enters findings of one platform.
pub(super) struct Told<'r> {
    report: &'r mut Report,
    of: &'static str,
}

impl Told<'_> {
    fn what(&self, what: &str) -> String {
        format!("{}: {what}", self.of)
    }

    fn ok(&mut self, what: &str, found: impl Into<String>) {
        self.report.ok(AREA, self.what(what), found);
    }

    fn note(&mut self, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.report.bad(AREA, Level::Note, self.what(what), found, remedy);
    }

    fn warn(&mut self, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.report.bad(AREA, Level::Warn, self.what(what), found, remedy);
    }
}

/// How long a platform waits between the signal and the kill, and how it is told to wait longer.
struct Grace {
    /// The platform's own figure.
    by_default: Duration,
    /// What it was told, where that can be seen, and by what.
    told: Option<(Duration, String)>,
    /// `docker stop`
    who: &'static str,
    /// What sets it to so many seconds.
    raise: fn(u64) -> String,
}

/// The ordered end has to be over before everybody is killed.
fn grace(facts: &Facts, told: &mut Told<'_>, grace: Grace) {
    let seen = facts.grace.map(|grace| (grace, "as --grace says".to_owned())).or(grace.told);
    let is_seen = seen.is_some();
    let (given, by) = seen.unwrap_or((grace.by_default, "unless it is told otherwise, which cannot be seen from here".to_owned()));
    let (needed, why) = longest_end(&facts.settings);
    let (given_s, needed_s) = (seconds(given), seconds(needed));
    if needed + REST <= given {
        told.ok("grace", format!("{} waits {given_s} ({by}), and the ordered end takes {needed_s} at the longest ({why})", grace.who));
        return;
    }
    let raise = (grace.raise)((needed + REST).as_secs());
    let lower = within(given).map(|within| format!(", or daemon.shutdown_timeout = \"{}s\"", within.as_secs())).unwrap_or_default();
    let say = if is_seen { "" } else { "; where it waits longer already, say so: --grace 60s" };
    told.warn(
        "grace",
        format!(
            "{} waits {given_s} ({by}) and then kills everybody; the ordered end may take {needed_s} ({why}), so workers would lose what they were doing",
            grace.who
        ),
        format!("{raise}{lower}{say}"),
    );
}

/// What `daemon.shutdown_timeout` should be where everybody is killed after `grace`. `None`: nothing is short enough.
pub fn within(grace: Duration) -> Option<Duration> {
    let seconds = grace.as_secs();
    let left = seconds.saturating_sub(seconds.div_ceil(6).max(1));
    (left > 0).then(|| Duration::from_secs(left))
}

/// How long the ordered end may take, and because of what.
fn longest_end(settings: &Settings) -> (Duration, String) {
    // Those that others come `after` are asked to end last.
    fn chain(worker: &Worker, settings: &Settings, depth: usize) -> Duration {
        let later = settings.workers.iter().filter(|other| depth > 0 && other.after.contains(&worker.name));
        let before = later.map(|other| chain(other, settings, depth - 1)).max().unwrap_or_default();
        before + if worker.adopt.is_some() { Duration::ZERO } else { worker.stop.within }
    }
    let limit = settings.daemon.shutdown_timeout;
    let workers = match settings.workers.is_empty() {
        true => Worker::new("main", Vec::new()).stop.within,
        false => settings.workers.iter().map(|worker| chain(worker, settings, settings.workers.len())).max().unwrap_or_default(),
    };
    let jobs = if settings.jobs.is_empty() { Duration::ZERO } else { GRACE };
    if workers + jobs >= limit {
        return (limit, "daemon.shutdown_timeout".to_owned());
    }
    (
        workers + jobs,
        if jobs.is_zero() { "stop.within of the workers".to_owned() } else { "stop.within of the workers, after 10 s for jobs".to_owned() },
    )
}

/// `30 s`
fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs_f64())
}

/// The port the platform sends requests to is the application's.
///
/// `known`: what it is, and by what it is known.
fn port(facts: &Facts, told: &mut Told<'_>, known: Option<(u16, &str)>) {
    let Some((port, by)) = known else {
        let found = "which port the platform sends requests to is not known here (PORT)";
        told.note("port", found, "it is the application's: leave it out of http.listen, and give it to the worker");
        return;
    };
    let settings = &facts.settings;
    if let Some(address) = settings.http.listen.iter().find(|address| address.port() == port) {
        let found =
            format!("http.listen has {address}, and {port} ({by}) is where requests for the application go: it could not listen there");
        told.warn("port", found, "http.listen = [\"[::]:18760\"]; the port of the platform is the application's");
        return;
    }
    let workers: Vec<&Worker> = settings.workers.iter().map(|worker| &**worker).collect();
    if let Some(worker) = workers.iter().find(|worker| mentions(worker, port)) {
        told.ok("port", format!("{port} ({by}) is left to the application: {}", worker.name));
        return;
    }
    let others: Vec<String> = workers.iter().flat_map(|worker| tcp(worker)).map(|address| address.to_string()).collect();
    if !others.is_empty() {
        let found = format!("requests go to {port} ({by}), and the workers listen on {}", others.join(", "));
        told.warn("port", found, format!("listen = [\"[::]:{port}\"] for the worker that answers, or tell the platform the other port"));
        return;
    }
    let found = format!("requests go to {port} ({by}), which Plimsoll does not touch; no worker in the settings names it");
    told.note("port", found, "fine for an application that reads PORT itself: the workers get the variable");
}

fn tcp(worker: &Worker) -> impl Iterator<Item = SocketAddr> + '_ {
    worker.listen.iter().filter_map(|address| match address {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    })
}

fn mentions(worker: &Worker, port: u16) -> bool {
    let number = port.to_string();
    let is_named = |text: &str| text.contains("PORT") || text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits == number);
    let is_ready_by = match &worker.ready.by {
        ReadyBy::Tcp(address) => address.port() == port,
        ReadyBy::Http(address) => address.address.port() == port,
        _ => false,
    };
    is_ready_by
        || tcp(worker).any(|address| address.port() == port)
        || worker.command.iter().any(|word| is_named(word))
        || worker.env.iter().any(|(name, value)| name == "PORT" || is_named(value))
}

/// Whom others can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Nobody,
    ThisMachine,
    OldInternet,
    Everybody,
}

fn reach(settings: &Settings) -> Reach {
    let far: Vec<IpAddr> = settings.http.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
    match (settings.http.listen.is_empty(), far.is_empty()) {
        (true, _) => Reach::Nobody,
        (_, true) => Reach::ThisMachine,
        _ if far.iter().any(IpAddr::is_ipv6) => Reach::Everybody,
        _ => Reach::OldInternet,
    }
}

/// Something looks at a worker every now and then and replaces it when it does not answer in time.
fn probes(facts: &Facts, told: &mut Told<'_>, answer_within: Duration, what_then: &str) {
    let is_stopped = |worker: &&Worker| {
        matches!(worker.throttle, ThrottleMethod::Auto | ThrottleMethod::Duty) && worker.longest_stop * 2 > answer_within
    };
    let all = facts.settings.workers.iter().map(|worker| &**worker);
    let limit = seconds(answer_within);
    for worker in all.clone().filter(is_stopped) {
        let most = format!("{}ms", (answer_within / 4).as_millis().min(250));
        told.warn(
            "health check",
            format!(
                "{} may be held stopped for {} in one go (longest_stop), and a check has to be answered within {limit}: {what_then}",
                worker.name,
                seconds(worker.longest_stop)
            ),
            format!("workers.{}.longest_stop = \"{most}\"", worker.name),
        );
    }
    if !all.clone().any(|worker| is_stopped(&worker)) {
        let longest = all.map(|worker| worker.longest_stop).max().unwrap_or(Worker::new("main", Vec::new()).longest_stop);
        let found = format!("to be answered within {limit}; no worker is held stopped for longer than {} in one go", seconds(longest));
        told.ok("health check", found);
    }
}

/// Folders that hold what should outlive the container, with the setting each is from.
fn kept(settings: &Settings) -> Vec<(String, PathBuf)> {
    let mut kept = Vec::new();
    for job in &settings.jobs {
        match &job.kind {
            Kind::Backup(backup) => kept.push((format!("jobs.{}.to", job.name), backup.to.clone())),
            Kind::Sessions(sessions) => {
                kept.extend(sessions.archive.iter().map(|archive| (format!("jobs.{}.archive", job.name), archive.clone())));
            }
            Kind::Files(_) => {}
        }
    }
    kept
}

fn has_schedule(settings: &Settings) -> bool {
    settings.jobs.iter().any(|job| job.schedule.is_some())
}

/// The only folder that outlives a deploy, and what does not lie in it.
fn volume(facts: &Facts, told: &mut Told<'_>, path: &Path, by: &str, when_full: &str) {
    let settings = &facts.settings;
    let shown = path.display();
    match settings.policy.disks.iter().any(|disk| disk.path.starts_with(path)) {
        true => told.ok("volume", format!("{shown} ({by}) is watched")),
        false => told.warn(
            "volume",
            format!("nobody watches {shown} ({by}), and {when_full}"),
            format!("[[policy.disks]] with path = \"{shown}\" and high = \"80%\""),
        ),
    }
    if !facts.state.starts_with(path) {
        let found = format!("kept in {}, which is not on the volume: it begins anew with each deploy", facts.state.display());
        let remedy = format!("daemon.state_dir = \"{}\"", path.join("plimsoll").display());
        match has_schedule(settings) {
            true => told.warn("state", format!("{found}; which jobs were missed, and how they have run, is then not known"), remedy),
            false => told.note("state", found, remedy),
        }
    }
    for (setting, folder) in kept(settings).into_iter().filter(|(_, folder)| !folder.starts_with(path)) {
        let found = format!("{setting} is {}, which is not on the volume: gone with the next deploy", folder.display());
        told.warn("copies", found, format!("{setting} = \"{}\"", path.join(folder.file_name().unwrap_or_default()).display()));
    }
}

/// Nothing outlives a deploy.
fn no_volume(facts: &Facts, told: &mut Told<'_>, remedy: &str) {
    for (setting, folder) in kept(&facts.settings) {
        told.warn("copies", format!("{setting} is {}, and without a volume it is gone with the next deploy", folder.display()), remedy);
    }
    if has_schedule(&facts.settings) {
        let found = format!("kept in {}, gone with the next deploy: which jobs were missed is then not known", facts.state.display());
        told.warn("state", found, remedy);
    }
}

/// `30`, `"30"`, `"30s"`, `"5m"` as the files of platforms have them.
fn span(value: &toml::Value) -> Option<Duration> {
    match value {
        toml::Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        toml::Value::String(text) => {
            let text = text.trim();
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let number: f64 = digits.trim().parse().ok()?;
            let unit = match &text[digits.len()..] {
                "" | "s" => 1.0,
                "ms" => 0.001,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            Duration::try_from_secs_f64(number * unit).ok()
        }
        _ => None,
    }
}

/// The values of `key:` in a YAML file, one a line, without its structure.
fn yaml_values<'t>(text: &'t str, key: &'t str) -> impl Iterator<Item = &'t str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().trim_start_matches("- ").trim_start().strip_prefix(key)?.strip_prefix(':')?;
        let value = rest.split(" #").next().unwrap_or(rest).trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests;
