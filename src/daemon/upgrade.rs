//! The daemon replaces itself by another program of its own kind, in place: same pid, same workers, same sockets.
//!
//! ```text
//! asked, or noticed ([`super::renewal`]) ─▶ tried out, with everybody guarded ─▶ addresses bound that the new settings need
//!    ─▶ everybody is let go ─▶ doors closed, sentinel dismissed ─▶ exec ─▶ wired with what was handed over
//!
//! what fails up to the exec is a refusal: nothing has changed, and doors and sentinel are there again with the next tick
//! ```
//!
//! What is handed over stands in a file of memory whose number is in the environment (`PLIMSOLL_HANDOVER`): the lives, who is
//! our child still and need not be found; descriptors by number; and what cannot be found out a second time, such as the limits we
//! were started with. Signals are blocked from before the exec until somebody listens again: none is lost, none ends us half way.
//! For as long as nobody guards, nobody is held either.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::{ListenAddress, Upgrade};
use crate::config::{self};
use crate::host::clock::Moment;
use crate::host::helper::{self, Kept};
use crate::host::process::{self, Exit, ExitStatus};
use crate::host::program::{self, Seen};
use crate::host::service_manager::Passed;
use crate::host::spawn::{self, Trial};
use crate::http::control::{Answer, Request};
use crate::http::listen::{self, ListenError};
use crate::journal::Event;
use crate::response::action::Deed;
use crate::response::refusal::Reason;
use crate::snapshot::Histogram;
use crate::supervisor::handover::Handover;
use crate::supervisor::sockets::Prepared;

use super::guardian::Guardian;
use super::renewal;
use super::wiring::listen_on;

/// The variable that names the descriptor.
pub const VARIABLE: &str = "PLIMSOLL_HANDOVER";

/// A program that has not said by then whether it takes the settings is not one to become.
const TRIAL: Duration = Duration::from_secs(10);
/// For requests that are being answered.
const GRACE: Duration = Duration::from_millis(100);
/// For the last rows of the state database.
const HISTORY_GRACE: Duration = Duration::from_millis(100);

/// What this version hands over and understands. One that does not is started without: it finds its workers by the roster.
const FORMAT: u32 = 2;

/// Everything that goes over. What another version does not tell is as at a start; `workers` and `counts` are read each by itself.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parcel {
    format: u32,
    /// Of the program that handed it over.
    pub version: String,
    /// When it ceased to guard, on the steady clock.
    begun_ns: u64,
    pub tcp: Vec<RawFd>,
    pub control: Option<RawFd>,
    /// Bound by whoever started us first.
    pub passed: Vec<RawFd>,
    /// Of workers, by address.
    pub sockets: Vec<(String, RawFd)>,
    /// What is of no use any more, but takes the kernel long to close: to be closed by whoever guards again.
    pub leavings: Vec<RawFd>,
    /// `None`: this version does not understand it.
    pub workers: Option<Handover>,
    pub counts: Counts,
    /// The daemon's group before it moved to a leaf, and the groups it made.
    pub left: Option<PathBuf>,
    pub made: Vec<PathBuf>,
    /// What workers are started with: found before we changed our own.
    pub oom_score_adj: Option<i32>,
    pub descriptors: Option<(u64, u64)>,
    pub nice: i32,
}

/// Counters, which never go back.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub tick_overruns: u64,
    pub reaction_seconds: Histogram,
    pub tick_duration_seconds: Histogram,
    /// (resource, action, (done, failed))
    pub actions: Vec<(String, String, (u64, u64))>,
    pub suppressed: Vec<(String, u64)>,
    pub source_errors: Vec<u64>,
    pub taken: BTreeMap<String, Duration>,
    pub log_dropped: u64,
}

impl Parcel {
    pub fn began(&self) -> Duration {
        Duration::from_nanos(self.begun_ns)
    }
}

/// Takes what was handed over, if anything was; the variable is taken out of `env`. What cannot be read is told of, and is as if
/// it were not there.
pub fn receive(env: &mut Vec<(OsString, OsString)>) -> Received {
    let Some(place) = env.iter().position(|(name, _)| name == VARIABLE) else { return Ok(None) };
    let (_, number) = env.remove(place);
    spawn::unblock_signals();
    let number = number.to_str().and_then(|number| number.parse::<RawFd>().ok()).filter(|number| *number > 2);
    let number = number.ok_or("its number is none")?;
    let mut file = File::from(helper::claim(number).ok_or("its number is not of a file that is open")?);
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| error.to_string())?;
    unpack(&text)
}

/// What is bound and open is taken over whatever else is not understood: else it could not be bound again, and nobody could close it.
fn unpack(text: &str) -> Received {
    let mut value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let workers = value.get_mut("workers").map(serde_json::Value::take);
    let counts = value.get_mut("counts").map(serde_json::Value::take);
    if let Some(parcel) = value.as_object_mut() {
        parcel.remove("counts");
    }
    let mut parcel: Parcel = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if parcel.format == FORMAT {
        parcel.workers = workers.and_then(|workers| serde_json::from_value(workers).ok());
        parcel.counts = counts.and_then(|counts| serde_json::from_value(counts).ok()).unwrap_or_default();
    }
    Ok(Some(parcel))
}

/// What came of looking for a parcel: none where nobody handed anything over.
pub type Received = Result<Option<Parcel>, String>;

/// The descriptors of a parcel, each ours now. What nobody asks for is closed with this.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    pub control: Option<UnixListener>,
    sockets: Vec<(String, OwnedFd)>,
    pub leavings: Vec<OwnedFd>,
}

impl Inherited {
    pub fn claim(parcel: Option<&Parcel>) -> Inherited {
        let Some(parcel) = parcel else { return Inherited::default() };
        Inherited {
            tcp: parcel.tcp.iter().filter_map(|number| helper::claim(*number)).map(TcpListener::from).collect(),
            control: parcel.control.and_then(helper::claim).map(UnixListener::from),
            sockets: parcel.sockets.iter().filter_map(|(address, number)| Some((address.clone(), helper::claim(*number)?))).collect(),
            leavings: parcel.leavings.iter().filter_map(|number| helper::claim(*number)).collect(),
        }
    }

    /// Listeners for these addresses: those there are, those that were passed, and new ones for the others.
    pub fn tcp(&mut self, addresses: &[SocketAddr], passed: &Passed) -> Result<Vec<TcpListener>, ListenError> {
        let mut of = |address: &SocketAddr| {
            let place = self.tcp.iter().position(|listener| listener.local_addr().is_ok_and(|bound| bound == *address))?;
            Some(self.tcp.swap_remove(place))
        };
        let mut listeners = Vec::new();
        for address in addresses {
            match of(address).or_else(|| passed.listener(*address)) {
                Some(listener) => listeners.push(listener),
                None => listeners.extend(listen::bind_tcp(&[*address])?),
            }
        }
        Ok(listeners)
    }

    /// A copy of the socket for an address of a worker.
    pub fn socket(&self, address: &ListenAddress) -> Option<OwnedFd> {
        let name = address.to_string();
        let (_, socket) = self.sockets.iter().find(|(known, _)| *known == name)?;
        socket.try_clone().ok()
    }
}

/// A program that is being tried out.
#[derive(Debug)]
pub struct Underway {
    trial: Trial,
    file: Seen,
    until: Duration,
    /// It has taken too long and was killed.
    overran: bool,
    ended: Option<ExitStatus>,
    cause: &'static str,
    requests: Vec<Request>,
}

impl Underway {
    /// When it is to have ended.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.overran && self.ended.is_none()).then_some(self.until)
    }

    /// Takes in that a child has ended; true when it was this one.
    pub fn note_ended(&mut self, exit: &Exit) -> bool {
        let is_it = self.ended.is_none() && exit.pid == self.trial.pid();
        if is_it {
            self.ended = Some(exit.status);
        }
        is_it
    }
}

/// What has made the daemon try another program, in the words of `upgrading`.
pub const ASKED: &str = "asked for";
pub const RELOAD: &str = "a reload found another file";
pub const FOUND: &str = "another file was found";

/// What a program that understands what is handed over says to `check`, where the variable of this name is set to a format.
pub const TRIAL_VARIABLE: &str = "PLIMSOLL_TRIAL";

/// The answer; `None` for a format this version does not know.
pub fn acknowledgement(format: &str) -> Option<String> {
    (format.parse() == Ok(FORMAT)).then(|| format!("takes over from a running daemon, format {FORMAT}"))
}

impl Guardian {
    /// Tries out what is in the place of our program now, to become it; who asked is answered when that is known.
    pub fn begin_upgrade(&mut self, cause: &'static str, request: Option<Request>, now: Moment) {
        if let Some(underway) = &mut self.underway {
            underway.requests.extend(request);
            return;
        }
        match self.try_out(cause, now) {
            Ok(mut underway) => {
                underway.requests.extend(request);
                self.supervisor.set_trial(Some(underway.trial.pid()));
                self.underway = Some(underway);
            }
            Err(why) => self.refuse_upgrade(why, cause, request.into_iter().collect()),
        }
    }

    /// Has the program say whether it would take our settings, and what we hand over.
    fn try_out(&mut self, cause: &'static str, now: Moment) -> Result<Underway, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let path = program.path();
        let file = program.look().filter(|seen| seen.is_file).ok_or_else(|| format!("{} is not there any more", path.display()))?;
        self.renewal.note_judged(file.identity);
        if cause != ASKED
            && let Some(why) = renewal::objection(&file, own_ids())
        {
            return Err(format!("{}: {why}; `plimsoll upgrade` takes it all the same", path.display()));
        }
        let mut args: Vec<OsString> = vec!["check".into()];
        if let Some(file) = &self.settings.file {
            args.extend(["-c".into(), file.clone().into()]);
        }
        for set in &self.sources.set {
            args.extend(["--set".into(), set.into()]);
        }
        if !self.sources.command.is_empty() {
            args.push("--".into());
            args.extend(self.sources.command.iter().map(OsString::from));
        }
        let variable = (OsString::from(TRIAL_VARIABLE), OsString::from(FORMAT.to_string()));
        let env: Vec<(OsString, OsString)> = self.env.iter().cloned().chain([variable]).collect();
        let trial = Trial::begin(path, &args, &env, &self.sources.working_dir)
            .map_err(|why| format!("{} does not take the settings: {why}", path.display()))?;
        Ok(Underway { trial, file, until: now.steady + TRIAL, overran: false, ended: None, cause, requests: Vec::new() })
    }

    /// Becomes what was tried out, once that has said that it takes over.
    pub fn conclude_trial(&mut self, now: Moment) {
        let Some(underway) = &mut self.underway else { return };
        if underway.deadline().is_some_and(|until| until <= now.steady) {
            underway.overran = true;
            // It is our child, leads a session of its own, and was not reaped.
            process::kill_session(underway.trial.pid());
        }
        let Some(status) = underway.ended else { return };
        let Some(underway) = self.underway.take() else { return };
        self.supervisor.set_trial(None);
        let Underway { trial, file, overran, cause, requests, .. } = underway;
        let Ok(program) = self.program.clone() else { return };
        let path = program.path().display().to_string();
        let words = trial.words();
        let outcome = if overran {
            Err(format!("{path} does not take the settings: it had not ended after {} s", TRIAL.as_secs()))
        } else if !status.is_clean() {
            let how = match status {
                ExitStatus::Signal(signal) => format!("it was ended by {}", process::signal_name(signal)),
                _ => format!("it ended with {}", status.shell_code()),
            };
            let said = if words.is_empty() { how } else { format!("{how}: {words}") };
            Err(format!("{path} does not take the settings: {said}"))
        } else if !acknowledgement(&FORMAT.to_string()).is_some_and(|line| words.lines().any(|said| said == line)) {
            Err(format!("{path} does not say that it can take over from a running daemon: it is another program, or a version that cannot"))
        } else if program.look().is_none_or(|seen| seen.identity != file.identity) {
            Err(format!("{path} was replaced again while it was tried out; ask once more"))
        } else {
            self.bind_ahead()
        };
        match outcome {
            Ok(ahead) => self.become_program(program.path(), ahead, cause, requests, now),
            Err(why) => self.refuse_upgrade(why, cause, requests),
        }
    }

    fn refuse_upgrade(&mut self, why: String, cause: &'static str, requests: Vec<Request>) {
        let now = Moment::now();
        self.tell(&[Event::UpgradeRefused { error: why.clone() }], now);
        if cause == RELOAD {
            // The settings were not taken in either.
            self.tally.reload_successful = false;
            self.service.reloaded();
        }
        self.picture_now(now);
        for request in requests {
            // Whoever asked may have gone away.
            let _ = request.answer.send(Answer::Refused(why.clone()));
        }
    }

    /// What the settings as they are now need beyond what is bound, as far as this version understands them: whoever we become cannot go
    /// back, so nothing is to fail then that can be tried before.
    fn bind_ahead(&self) -> Result<Ahead, String> {
        let Ok(loaded) = config::reload(&self.sources, &self.settings) else { return Ok(Ahead::default()) };
        let moved = |old: &config::settings::Folder, new: &config::settings::Folder| old.path != new.path;
        let (old, new) = (&self.settings.daemon, &loaded.settings.daemon);
        if moved(&old.state_dir, &new.state_dir) || moved(&old.runtime_dir, &new.runtime_dir) {
            return Err("daemon.state_dir and daemon.runtime_dir can only be changed by a restart".to_owned());
        }
        let prepared =
            self.supervisor.prepare(&loaded.settings.workers, &|address| self.passed.socket(address)).map_err(|error| error.to_string())?;
        let bound: Vec<SocketAddr> =
            self.doors.iter().flat_map(|doors| &doors.tcp).filter_map(|listener| listener.local_addr().ok()).collect();
        let wanted = listen_on(&loaded.settings, &self.passed);
        let missing: Vec<SocketAddr> = wanted.into_iter().filter(|address| address.port() != 0 && !bound.contains(address)).collect();
        let tcp = listen::bind_tcp(&missing).map_err(|error| error.to_string())?;
        Ok(Ahead { tcp, prepared })
    }

    /// Returns only when that did not come about.
    fn become_program(&mut self, program: &Path, ahead: Ahead, cause: &'static str, requests: Vec<Request>, now: Moment) {
        let path = program.display().to_string();
        let args = match spawn::own_arguments() {
            Ok(args) => args,
            Err(error) => return self.refuse_upgrade(format!("our own command line cannot be read: {error}"), cause, requests),
        };
        // From here on nothing is waited for but what has a bound.
        let begun = Moment::now();
        self.tell(&[Event::Upgrading { program: path.clone(), cause }], begun);
        let _ = self.let_all_go(now);
        let mut events = Vec::new();
        self.note_released("the daemon replaces itself", now, &mut events);
        self.tell(&events, now);
        self.leave_jobs(now);
        for waiting in self.waiting.drain(..) {
            waiting.tell(Answer::Waits("the daemon to replace itself; ask again".to_owned()));
        }
        for request in requests {
            // Whoever asked may have gone away.
            let _ = request.answer.send(Answer::Becoming(format!("becoming {path}, with the settings as they are now")));
        }
        // Both at once: neither is to wait for the other.
        let http = self.http.take();
        if let Some(http) = &http {
            http.begin_shutdown(GRACE);
        }
        if let Some(sentinel) = self.sentinel.take() {
            // One that is there still would take us for dead.
            let _ = sentinel.dismiss();
        }
        let _ = self.journal.close(HISTORY_GRACE);
        if let Some(http) = http {
            http.shutdown(GRACE);
        }
        // From here on signals wait for whoever we are then. Those that came before are sent once more, to wait with them.
        let error = match spawn::BlockedSignals::all() {
            Ok(blocked) => {
                blocked.send_again(&self.signals.pending());
                let error = self.replace_self(program, &args, &ahead, begun);
                drop(blocked);
                error
            }
            Err(error) => format!("signals cannot be blocked: {error}"),
        };
        // Still the old one: the next ticks open the doors and start a sentinel.
        self.journal.reopen(
            crate::journal::history::History::start(&self.folders.state, Moment::now(), env!("CARGO_PKG_VERSION"), std::process::id()).ok(),
        );
        self.tally.next_tick = Duration::ZERO;
        self.refuse_upgrade(error, cause, Vec::new());
    }

    /// Returns why it could not be.
    fn replace_self(&self, program: &Path, args: &[OsString], ahead: &Ahead, begun: Moment) -> String {
        let old = program::hold_own().ok();
        let mut kept = Kept::default();
        let leavings = old.iter().map(AsFd::as_fd).chain(self.bell.hand_over()).map(|fd| kept.keep(fd)).collect();
        let parcel = match self.pack(ahead, begun, leavings, &mut kept) {
            Ok(parcel) => parcel,
            Err(error) => return format!("what there is cannot be handed over: {error}"),
        };
        let number = kept.keep(parcel.as_fd());
        let variable = (OsString::from(VARIABLE), OsString::from(number.to_string()));
        let env: Vec<(OsString, OsString)> = self.env.iter().cloned().chain([variable]).collect();
        spawn::replace_self(program, args, &env, kept.all()).to_string()
    }

    /// Looks whether our program has become another, where that is to be noticed by itself.
    pub fn look_at_program(&mut self, now: Moment) {
        if !self.is_service || !self.renewal.is_due(now.steady) || self.underway.is_some() || self.settings.daemon.upgrade != Upgrade::Auto
        {
            return;
        }
        let Ok(program) = &self.program else { return };
        let is_busy = !self.tally.engaged.is_empty();
        match self.renewal.note(program.look(), program.started(), own_ids(), is_busy, now.steady) {
            renewal::Step::Nothing => {}
            renewal::Step::Try => self.begin_upgrade(FOUND, None, now),
            renewal::Step::Refuse(why) => {
                let why = format!("{}: {why}; `plimsoll upgrade` takes it all the same", program.path().display());
                self.refuse_upgrade(why, FOUND, Vec::new());
            }
        }
    }

    /// The other file in the place of our program, if a reload is to become it.
    pub fn renewed_on_reload(&self) -> Option<PathBuf> {
        let program = self.program.as_ref().ok()?;
        program.changed()?;
        let new = config::reload(&self.sources, &self.settings).ok().map(|loaded| loaded.settings.daemon.upgrade);
        renewal::renews_on_reload(self.settings.daemon.upgrade, new).then(|| program.path().to_path_buf())
    }

    /// Nobody is to become anything any more.
    pub fn abandon_trial(&mut self) {
        if let Some(underway) = self.underway.take().filter(|underway| underway.ended.is_none()) {
            process::kill_session(underway.trial.pid());
        }
    }

    fn pack<'a>(&'a self, ahead: &'a Ahead, begun: Moment, leavings: Vec<RawFd>, kept: &mut Kept<'a>) -> io::Result<File> {
        let (left, made) = self.supervisor.groups().hand_over();
        let around = self.supervisor.around();
        let doors = self.doors.as_ref();
        let tcp = doors.iter().flat_map(|doors| &doors.tcp).chain(&ahead.tcp).map(|listener| kept.keep(listener.as_fd())).collect();
        let control = doors.and_then(|doors| doors.unix.as_ref()).map(|socket| kept.keep(socket.as_fd()));
        let sockets = self.supervisor.listening().chain(ahead.prepared.all());
        let sockets = sockets.map(|(address, socket)| (address.to_owned(), kept.keep(socket))).collect();
        let passed = self.passed.all().map(|socket| kept.keep(socket)).collect();
        let workers = Some(self.supervisor.hand_over(kept));
        let parcel = Parcel {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            begun_ns: u64::try_from(begun.steady.as_nanos()).unwrap_or(u64::MAX),
            tcp,
            control,
            passed,
            sockets,
            leavings,
            workers,
            counts: self.counts(),
            left,
            made,
            oom_score_adj: around.oom_score_adj,
            descriptors: around.descriptors,
            nice: around.nice,
        };
        let mut file = File::from(rustix::fs::memfd_create("plimsoll-handover", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&parcel)?)?;
        file.rewind()?;
        Ok(file)
    }

    /// What has been counted since the first daemon of this pid began.
    fn counts(&self) -> Counts {
        let counters = &self.tally.counters;
        Counts {
            tick_overruns: counters.tick_overruns_total,
            reaction_seconds: counters.reaction_seconds.clone(),
            tick_duration_seconds: counters.tick_duration_seconds.clone(),
            actions: self.tally.actions.iter().map(|((of, done), counts)| (of.clone(), (*done).to_owned(), *counts)).collect(),
            suppressed: self.tally.suppressed.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            source_errors: self.tally.source_errors.to_vec(),
            taken: self.throttle.taken().iter().map(|(worker, taken)| (worker.to_string(), *taken)).collect(),
            log_dropped: self.log.dropped(),
        }
    }

    /// Goes on counting from there.
    pub fn count_on(&mut self, counts: Counts) {
        let counters = &mut self.tally.counters;
        counters.tick_overruns_total += counts.tick_overruns;
        for (into, from) in
            [(&mut counters.reaction_seconds, counts.reaction_seconds), (&mut counters.tick_duration_seconds, counts.tick_duration_seconds)]
        {
            if (&into.bounds, into.counts.len()) == (&from.bounds, from.counts.len()) {
                *into = from;
            }
        }
        for (of, done, counts) in counts.actions {
            if let Some(done) = Deed::WORDS.into_iter().find(|word| *word == done) {
                self.tally.actions.insert((of, done), counts);
            }
        }
        for (word, count) in counts.suppressed {
            if let Some(reason) = Reason::ALL.iter().find(|reason| reason.word() == word) {
                self.tally.suppressed.insert(reason.word(), count);
            }
        }
        for (into, from) in self.tally.source_errors.iter_mut().zip(counts.source_errors) {
            *into += from;
        }
        self.throttle.count_on(counts.taken);
        self.log.count_on(counts.log_dropped);
    }
}

/// What was bound for whom we become.
#[derive(Debug, Default)]
struct Ahead {
    tcp: Vec<TcpListener>,
    prepared: Prepared,
}

/// The user and group we act as.
fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}
