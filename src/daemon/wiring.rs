//! From settings to a running daemon, so ordered that whatever fails, nothing is half started and nothing is left behind:
//! folders and lock, listeners, log, what an earlier run left, then threads, then workers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustix::event::EventfdFlags;

use crate::actuators::brake::{self, Brake};
use crate::actuators::throttle::{Means, Throttle};
use crate::actuators::undo::{self, Saved, UndoLog};
use crate::config::settings::ListenAddress;
use crate::config::{Loaded, Settings, Sources};
use crate::host::Paths;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::group::Groups;
use crate::host::inventory::Platform;
use crate::host::pages;
use crate::host::process::{self, DescriptorReserve};
use crate::host::program::Program;
use crate::host::service_manager::{Passed, ServiceManager};
use crate::host::spawn;
use crate::host::stops::StopTable;
use crate::http::access::CurrentAccess;
use crate::http::control::CommandQueue;
use crate::http::listen::{self, ListenError, SOCKET};
use crate::http::server::{Limits, Parts};
use crate::journal::history::History;
use crate::journal::runs::{self, Known};
use crate::journal::{Event, Journal, log};
use crate::policy::Engine;
use crate::response::Planner;
use crate::sampling::sampler::{Sampler, blank};
use crate::snapshot::{Counters, Environment, Histogram, Published};
use crate::supervisor::Supervisor;
use crate::supervisor::leftovers::Leftover;
use crate::supervisor::roster::{self, Roster};
use crate::supervisor::sockets::{BindError, Prepared};
use crate::supervisor::supervisor::{Command, Surroundings};

use super::bell::Bell;
use super::explain::Chronicle;
use super::folders::{self, FolderError, Folders};
use super::guardian::{Guardian, Spare, Tally};
use super::jobs::{Jobs, REMEMBERED};
use super::pacing::Pace;
use super::renewal::{self, Watch};
use super::self_watch::SelfWatch;
use super::sentinel::Sentinel;
use super::service::Service;
use super::sight::Sight;
use super::signals::Signals;
use super::upgrade::{Inherited, Received};

/// Requests that may wait for the loop at once.
const COMMANDS: usize = 64;
/// A worker's `oom_score_adj` above the daemon's: the kernel takes any of them before it.
const ABOVE_OURS: i32 = 300;
/// The daemon's own, where it may be lowered.
const OURS: i32 = -500;

/// Bucket bounds in seconds of `plimsoll_reaction_seconds` and `plimsoll_tick_duration_seconds`.
pub const REACTION_BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.03, 0.06, 0.1, 0.25, 1.0, 5.0];
pub const TICK_BOUNDS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// Why the daemon did not start: one clear line and an exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("could not start: {0}")]
    Io(#[from] io::Error),
}

impl StartError {
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Folder(error) => error.exit_code(),
            StartError::Listen(_) | StartError::Bind(_) | StartError::Io(_) => 1,
        }
    }
}

/// Builds the daemon; its workers wait to be started by the loop. `signals` have been listened to since before the settings
/// were read: one that arrives while we start is neither lost nor kills us half way.
pub fn wire(
    signals: Signals,
    sources: Sources,
    loaded: Loaded,
    env: Vec<(OsString, OsString)>,
    passed: Passed,
    parcel: Received,
) -> Result<Guardian, StartError> {
    let settings = loaded.settings.clone();
    let paths = Paths::from(&settings.host);
    pages::keep_few();
    let folders = Folders::take(&settings.daemon, &sources)?;
    let (parcel, mut early) = match parcel {
        Ok(parcel) => (parcel, Vec::new()),
        Err(why) => {
            let detail = format!("what the program before this one handed over cannot be used: {why}; workers are known by the roster");
            (None, vec![Event::Degraded { part: "upgrade", detail }])
        }
    };
    let mut inherited = Inherited::claim(parcel.as_ref());
    let passed = match &parcel {
        // It was received by whoever we were first.
        Some(parcel) if !parcel.passed.is_empty() => Passed::claim(parcel.passed.iter().copied()),
        _ => passed,
    };
    early.extend(
        passed.refused.iter().map(|why| Event::Degraded { part: "sockets", detail: format!("passed by the service manager: {why}") }),
    );
    let tcp = inherited.tcp(&listen_on(&settings, &passed), &passed)?;
    let listening: Vec<String> = tcp.iter().filter_map(|listener| Some(listener.local_addr().ok()?.to_string())).collect();
    let socket = match inherited.control.take() {
        Some(socket) => socket,
        None => listen::bind_socket(&folders.runtime.join(SOCKET))?,
    };
    let log = log::start(&settings.log, sources.variable("JOURNAL_STREAM"))?;

    let now = Moment::now();
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    early.extend(sweep(&folders, &paths));
    // Before the sentinel is started: on v2 we can only leave our group to our workers while nobody else is in it.
    let layout = Layout::discover(&paths);
    let mut log_of_changes = UndoLog::new(folders.undo_log(), &paths);
    let mut groups = Groups::probe_noting(&layout, pid, &pid.to_string(), &mut |path| log_of_changes.save(Saved::folder_to_be(path)));
    if let Some(parcel) = &parcel {
        groups.inherit(parcel.left.clone(), parcel.made.clone());
    }
    let stops = Arc::new(stop_table(&folders, &mut early)?);
    // Before the sentinel is started, which is to be as unlikely a victim as we are.
    let inherited_score = process::own_oom_score_adj(&paths).unwrap_or(0);
    // Lowering it needs a privilege we may not have; workers are above us either way.
    let ours = if inherited_score > OURS && process::set_own_oom_score_adj(&paths, OURS).is_ok() { OURS } else { inherited_score };
    let sentinel = match Sentinel::start(&stops, &folders, &settings.host) {
        Ok(sentinel) => Some(sentinel),
        Err(error) => {
            early.push(Event::Degraded { part: "sentinel", detail: format!("{error}; workers are not stopped for a duty cycle") });
            None
        }
    };
    let means = Means {
        quota: groups.has_quota(),
        duty: sentinel.is_some(),
        nice: sentinel.as_ref().is_some_and(|s| process::can_take_nice_back(s.pid())),
    };
    let mut throttle = Throttle::new(paths.clone(), means, stops.clone(), log_of_changes.clone());
    let memory_means = brake::Means::find(&paths, &groups, sentinel.as_ref().map(Sentinel::pid));
    let brake = Brake::new(paths.clone(), memory_means, stops.clone(), log_of_changes);
    for folder in groups.made() {
        if let Err(error) = throttle.note_folder(folder) {
            early.push(Event::Degraded { part: "undo log", detail: error.to_string() });
        }
    }
    throttle.forget_missing_folders();
    let environment = Environment {
        platform: Platform::detect(&paths, |name| sources.variable(name).map(str::to_owned)).word().to_owned(),
        cgroup: layout.kind.word().to_owned(),
        enforcement: enforcement(means).to_owned(),
        limitations: groups.limitations().iter().cloned().chain(brake.means().limitations()).collect(),
        ..Environment::default()
    };
    let mut sampler = Sampler::new(&paths, &settings.sampling, &layout, watched_disks(&settings));
    sampler.set_limit_files(&settings.policy);

    if let Err(error) = process::become_subreaper() {
        early.push(Event::Degraded { part: "subreaper", detail: error.to_string() });
    }
    let reserve = DescriptorReserve::take();
    // Workers do not share in it.
    let nice = process::take_nice(-10);
    let command = (!sources.command.is_empty()).then(|| Command {
        worker: Arc::from("main"),
        restart_was_set: loaded.effective().iter().any(|setting| setting.key == "workers.main.restart" && setting.origin != "built-in"),
    });
    let mut supervisor = Supervisor::new(Surroundings {
        paths: paths.clone(),
        groups,
        env: env.clone(),
        keeper: pid,
        oom_score_adj: match &parcel {
            Some(parcel) => parcel.oom_score_adj,
            None => Some((ours + ABOVE_OURS).max(inherited_score).clamp(-1000, 1000)),
        },
        descriptors: parcel.as_ref().map_or(reserve.found, |parcel| parcel.descriptors),
        nice: parcel.as_ref().map_or(nice, |parcel| parcel.nice),
        command,
        locks: folders.for_locks().to_owned(),
    });
    let own_roster = roster::path_in(&folders.runtime, pid);
    let mut leftovers = Vec::new();
    roster::remove_half_written(&folders.runtime);
    let rosters = roster::left_in(&folders.runtime, &own_roster);
    if parcel.as_ref().is_none_or(|parcel| parcel.workers.is_none()) {
        // Of the same pid: we have replaced ourselves, and what was handed over is not understood.
        leftovers.extend(Leftover::find(roster::read(&own_roster, &paths), true, &paths));
    }
    for path in &rosters {
        leftovers.extend(Leftover::find(roster::read(path, &paths), false, &paths));
    }
    let spare = |address: &ListenAddress| {
        let known = inherited.socket(address).or_else(|| passed.socket(address));
        known.or_else(|| leftovers.iter().find_map(|leftover| leftover.socket(address)))
    };
    let prepared = patiently(|| supervisor.prepare(&settings.workers, &spare))?;
    supervisor.set_roster(Roster::new(own_roster, &paths), rosters);
    supervisor.set_sentinel(sentinel.as_ref().map(Sentinel::pid));
    if parcel.as_ref().is_none_or(|parcel| parcel.workers.is_none()) {
        supervisor.note_strangers();
    }

    // Before somebody writes to it.
    let known = match (&folders.stateless, settings.jobs.is_empty()) {
        (None, false) => runs::read(&folders.state, REMEMBERED as u32).unwrap_or_else(|why| {
            let detail = format!("{why}; which runs were missed is not known");
            early.push(Event::Degraded { part: "state database", detail });
            Known::default()
        }),
        _ => Known::default(),
    };
    let history = match &folders.stateless {
        None => History::start(&folders.state, now, env!("CARGO_PKG_VERSION"), std::process::id()).ok(),
        Some(why) => {
            early.push(Event::Degraded { part: "state database", detail: why.clone() });
            None
        }
    };
    let journal = Journal::new(history);
    let published = Arc::new(Published::default());
    let access = Arc::new(CurrentAccess::new(&settings.http));
    let effective = Arc::new(RwLock::new(loaded.to_json()));
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?);
    let ring = wake.clone();
    let (queue, commands) = CommandQueue::new(COMMANDS, Arc::new(move || ring_bell(&ring)));
    let doors = Parts {
        tcp,
        unix: Some(socket),
        published: published.clone(),
        commands: queue,
        access: access.clone(),
        effective: effective.clone(),
        events: journal.ring(),
        clock: Arc::new(Moment::now),
        limits: Limits::default(),
    };

    let manager = if paths.is_live() { ServiceManager::find(|name| sources.variable(name), std::process::id()) } else { Ok(None) };
    let manager = manager.unwrap_or_else(|why| {
        early.push(Event::Degraded { part: "service manager", detail: why });
        None
    });
    let bell = wake.clone();
    let jobs = Jobs::new(&settings, &known, folders.for_locks(), Arc::new(move || ring_bell(&bell)), now);
    let engine = Engine::new(&settings);
    let planner = Planner::new(&settings);
    for event in &early {
        journal.record(event, now);
    }
    // What the kernel says runs, before somebody puts another in its place.
    let word = spawn::own_arguments().ok().and_then(|words| words.into_iter().next());
    let program = Program::own(word.as_deref(), &sources.working_dir).map_err(|error| format!("our own program cannot be found: {error}"));
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    let is_service = paths.is_live() && renewal::is_service(|name| sources.variable(name), std::process::id(), parent);
    let (readings, tally) = (blank(now), tally(&settings, now));
    Ok(Guardian {
        sources,
        settings,
        sampler,
        readings,
        engine,
        planner,
        throttle,
        brake,
        supervisor,
        members: BTreeMap::new(),
        prepared,
        leftovers,
        jobs,
        env,
        parcel,
        leavings: inherited.leavings,
        program,
        is_service,
        service: Service::of(manager),
        passed,
        renewal: Watch::default(),
        underway: None,
        journal,
        published,
        access,
        effective,
        doors: Some(doors),
        doors_jam: false,
        http: None,
        settled: false,
        child_ended: false,
        listening,
        environment,
        tally,
        spare: Spare::default(),
        chronicle: Chronicle::new(&loaded),
        signals,
        wake,
        commands,
        waiting: Vec::new(),
        pace: Pace::default(),
        bell: Bell::new(paths.is_live()),
        self_watch: SelfWatch::default(),
        sight: Sight::default(),
        folders,
        stops,
        sentinel,
        reserve,
        log,
    })
}

fn tally(settings: &Settings, now: Moment) -> Tally {
    let mut tally = Tally {
        tick: 0,
        started: now,
        next_tick: now.steady,
        gap: Duration::ZERO,
        reported: None,
        reloaded: now,
        reload_successful: true,
        history_problem: None,
        shutting_down: false,
        noted: None,
        levels: BTreeMap::new(),
        foretold: Default::default(),
        ration: Default::default(),
        limits: [None, None],
        last_action: 0,
        engaged: BTreeMap::new(),
        verdicts: Vec::new(),
        counters: Counters {
            reaction_seconds: Histogram::new(&REACTION_BOUNDS),
            tick_duration_seconds: Histogram::new(&TICK_BOUNDS),
            ..Counters::default()
        },
        actions: BTreeMap::new(),
        suppressed: BTreeMap::new(),
        source_errors: Default::default(),
    };
    tally.expect_actions(settings);
    tally
}

/// The disks that are read: those with a rule, or the root's so that there is a figure to report (seeds row B1). A
/// machine that is a folder has no disks of its own.
pub fn watched_disks(settings: &Settings) -> Vec<Arc<Path>> {
    let ruled = settings.policy.disks.iter().map(|disk| Arc::from(disk.path.as_path()));
    let root = (settings.policy.disks.is_empty() && Paths::from(&settings.host).is_live()).then(|| Arc::from(Path::new("/")));
    ruled.chain(root).collect()
}

/// The addresses HTTP is served on: those that were bound for us and are no worker's, in place of the setting; else the setting.
pub fn listen_on(settings: &Settings, passed: &Passed) -> Vec<SocketAddr> {
    let for_workers = |address: &ListenAddress| settings.workers.iter().any(|worker| worker.listen.contains(address));
    let bound = passed.addresses(for_workers);
    if bound.is_empty() { settings.http.listen.clone() } else { bound }
}

/// Gets the loop out of its wait.
fn ring_bell(bell: &OwnedFd) {
    // Only a counter that is already enormous would refuse, and then the loop is awake anyway.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// In a file beside the undo log, or in memory where that cannot be.
fn stop_table(folders: &Folders, early: &mut Vec<Event>) -> io::Result<StopTable> {
    let path = undo::stops_beside(&folders.undo_log());
    StopTable::create_at(&path).or_else(|error| {
        let detail = format!("{}: {error}; whom we hold stopped is forgotten if the sentinel is killed with us", path.display());
        early.push(Event::Degraded { part: "undo log", detail });
        StopTable::create()
    })
}

/// Puts back what an earlier run left behind.
fn sweep(folders: &Folders, paths: &Paths) -> Vec<Event> {
    let mut events = Vec::new();
    let mut total = undo::Swept::default();
    for log in folders::undo_logs(&folders.runtime) {
        match undo::sweep(&log, paths) {
            Ok(swept) => total.add(swept),
            Err(error) => {
                let detail = format!("what an earlier run left could not be put back: {}: {error}", log.display());
                events.push(Event::Degraded { part: "undo log", detail });
            }
        }
    }
    if total != undo::Swept::default() {
        events.push(Event::UndoSwept {
            restored: total.restored,
            gone: total.gone,
            failed: u32::try_from(total.failed.len()).unwrap_or(u32::MAX),
            detail: total.failed.join("; "),
        });
    }
    events
}

/// The best throttle that works here: the label of `plimsoll_environment_info{enforcement}`.
pub(super) fn enforcement(means: Means) -> &'static str {
    match means {
        Means { quota: true, .. } => "cgroup",
        Means { duty: true, .. } => "signal",
        Means { nice: true, .. } => "nice",
        _ => "observe",
    }
}

/// A daemon killed while it started a worker leaves its sockets to that child until the child's exec: an address in use is
/// asked for again for a second.
#[expect(clippy::disallowed_methods, reason = "the loop has not begun, and nothing tells when an address is free")]
fn patiently(prepare: impl Fn() -> Result<Prepared, BindError>) -> Result<Prepared, BindError> {
    let begun = Moment::now();
    loop {
        match prepare() {
            Err(error) if error.error.kind() == io::ErrorKind::AddrInUse && Moment::now().since(begun) < Duration::from_secs(1) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}
