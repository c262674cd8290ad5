//! The daemon replaces itself by another program of its own kind, in place: same pid, same workers, same sockets.
//!
//! ```text
//! asked ─▶ the program is tried (`check`) ─▶ everybody is let go ─▶ doors closed, sentinel dismissed ─▶ exec ─▶ wired with what
//!           │ it does not do                                          │ exec fails: doors and sentinel again    was handed over
//!           └▶ refused, nothing has changed                           └▶ refused
//! ```
//!
//! What is handed over stands in a file of memory whose number is in the environment (`PLIMSOLL_HANDOVER`): the lives, who is
//! our child still and need not be found; descriptors by number; and what cannot be found out a second time, such as the limits we
//! were started with. Signals are blocked from before the exec until somebody listens again: none is lost, none ends us half way.
//! For as long as nobody guards, nobody is held either.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::ListenAddress;
use crate::host::clock::Moment;
use crate::host::{helper, spawn};
use crate::http::control::{Answer, Request};
use crate::http::listen::{self, ListenError};
use crate::journal::Event;
use crate::supervisor::handover::Handover;

use super::guardian::Guardian;

/// The variable that names the descriptor.
pub const VARIABLE: &str = "PLIMSOLL_HANDOVER";

/// A program that has not said by then whether it takes the settings is not one to become.
const TRIAL: Duration = Duration::from_secs(5);
/// For requests that are being answered.
const GRACE: Duration = Duration::from_millis(100);
/// For the last rows of the state database.
const HISTORY_GRACE: Duration = Duration::from_millis(100);

/// What this version hands over and understands. One that does not is started without: it finds its workers by the roster.
const FORMAT: u32 = 1;

/// Everything that goes over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parcel {
    format: u32,
    /// Of the program that handed it over.
    pub version: String,
    /// When it ceased to guard, on the steady clock.
    begun_ns: u64,
    pub tcp: Vec<RawFd>,
    pub control: Option<RawFd>,
    /// Of workers, by address.
    pub sockets: Vec<(String, RawFd)>,
    pub workers: Handover,
    /// The daemon's group before it moved to a leaf, and the groups it made.
    pub left: Option<PathBuf>,
    pub made: Vec<PathBuf>,
    /// What workers are started with: found before we changed our own.
    pub oom_score_adj: Option<i32>,
    pub descriptors: Option<(u64, u64)>,
    pub nice: i32,
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
    let parcel: Parcel = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    match parcel.format {
        FORMAT => Ok(Some(parcel)),
        other => Err(format!("it is of format {other}, and this version knows {FORMAT}")),
    }
}

/// What came of looking for a parcel: none where nobody handed anything over.
pub type Received = Result<Option<Parcel>, String>;

/// The descriptors of a parcel, each ours now. What nobody asks for is closed with this.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    pub control: Option<UnixListener>,
    sockets: Vec<(String, OwnedFd)>,
}

impl Inherited {
    pub fn claim(parcel: Option<&Parcel>) -> Inherited {
        let Some(parcel) = parcel else { return Inherited::default() };
        Inherited {
            tcp: parcel.tcp.iter().filter_map(|number| helper::claim(*number)).map(TcpListener::from).collect(),
            control: parcel.control.and_then(helper::claim).map(UnixListener::from),
            sockets: parcel.sockets.iter().filter_map(|(address, number)| Some((address.clone(), helper::claim(*number)?))).collect(),
        }
    }

    /// Listeners for these addresses: those there are, and new ones for the others.
    pub fn tcp(&mut self, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
        let mut of = |address: &SocketAddr| {
            let place = self.tcp.iter().position(|listener| listener.local_addr().is_ok_and(|bound| bound == *address))?;
            Some(self.tcp.swap_remove(place))
        };
        let mut listeners = Vec::new();
        for address in addresses {
            match of(address) {
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

impl Guardian {
    /// Becomes the program we were started from, as it is now. Returns only when that did not come about.
    pub fn upgrade(&mut self, request: Option<Request>, now: Moment) {
        let Err((why, request)) = self.try_upgrade(request, now);
        self.tell(&[Event::UpgradeRefused { error: why.clone() }], Moment::now());
        if let Some(request) = request {
            // Whoever asked may have gone away.
            let _ = request.answer.send(Answer::Refused(why));
        }
    }

    fn try_upgrade(&mut self, request: Option<Request>, now: Moment) -> Result<std::convert::Infallible, (String, Option<Request>)> {
        let program = match own_program() {
            Ok(program) => program,
            Err(why) => return Err((why, request)),
        };
        let args = match own_arguments() {
            Ok(args) => args,
            Err(error) => return Err((format!("our own command line cannot be read: {error}"), request)),
        };
        if let Err(why) = self.try_out(&program) {
            return Err((why, request));
        }
        // From here on nothing is waited for but what has a bound.
        let begun = Moment::now();
        self.tell(&[Event::Upgrading { program: program.display().to_string() }], begun);
        let _ = self.let_all_go(now);
        let mut events = Vec::new();
        self.note_released("the daemon replaces itself", now, &mut events);
        self.tell(&events, now);
        let parcel = match self.pack(begun) {
            Ok(parcel) => parcel,
            Err(error) => return Err((format!("what there is cannot be handed over: {error}"), request)),
        };
        for waiting in self.waiting.drain(..) {
            waiting.tell(Answer::Waits("the daemon to replace itself; ask again".to_owned()));
        }
        if let Some(request) = request {
            let _ = request.answer.send(Answer::Done(format!("becoming {}", program.display())));
        }
        if let Some(http) = self.http.take() {
            http.shutdown(GRACE);
        }
        if let Some(sentinel) = self.sentinel.take() {
            // One that is there still would take us for dead.
            let _ = sentinel.dismiss();
        }
        let _ = self.journal.close(HISTORY_GRACE);
        // From here on signals wait for whoever we are then. Those that came before are sent once more, to wait with them.
        let blocked = match spawn::BlockedSignals::all() {
            Ok(blocked) => blocked,
            Err(error) => return Err((format!("signals cannot be blocked: {error}"), None)),
        };
        blocked.send_again(&self.signals.pending());
        let kept: Vec<BorrowedFd<'_>> = self.descriptors().chain([parcel.as_fd()]).collect();
        let variable = (OsString::from(VARIABLE), OsString::from(parcel.as_raw_fd().to_string()));
        let env: Vec<(OsString, OsString)> = self.env.iter().cloned().chain([variable]).collect();
        let error = spawn::replace_self(&program, &args, &env, &kept);
        drop(blocked);
        // Still the old one: the next ticks open the doors and start a sentinel.
        self.journal.reopen(
            crate::journal::history::History::start(&self.folders.state, Moment::now(), env!("CARGO_PKG_VERSION"), std::process::id()).ok(),
        );
        self.tally.next_tick = Duration::ZERO;
        Err((error.to_string(), None))
    }

    /// Descriptors the next one goes on with, in the order of [`Parcel`].
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let doors = self.doors.iter().flat_map(|doors| doors.tcp.iter().map(AsFd::as_fd).chain(doors.unix.iter().map(AsFd::as_fd)));
        doors.chain(self.supervisor.listening().map(|(_, socket)| socket))
    }

    fn pack(&self, begun: Moment) -> io::Result<File> {
        let (left, made) = self.supervisor.groups().hand_over();
        let around = self.supervisor.around();
        let doors = self.doors.as_ref();
        let parcel = Parcel {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            begun_ns: u64::try_from(begun.steady.as_nanos()).unwrap_or(u64::MAX),
            tcp: doors.map(|doors| doors.tcp.iter().map(AsRawFd::as_raw_fd).collect()).unwrap_or_default(),
            control: doors.and_then(|doors| doors.unix.as_ref()).map(AsRawFd::as_raw_fd),
            sockets: self.supervisor.listening().map(|(address, socket)| (address.to_owned(), socket.as_raw_fd())).collect(),
            workers: self.supervisor.hand_over(begun),
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

    /// Has the program say whether it would take our settings.
    fn try_out(&self, program: &Path) -> Result<(), String> {
        let mut args: Vec<OsString> = vec!["check".into()];
        if let Some(file) = &self.settings.file {
            args.extend(["-c".into(), file.clone().into()]);
        }
        for set in &self.sources.set {
            args.extend(["--set".into(), set.into()]);
        }
        spawn::try_program(program, &args, &self.env, &self.sources.working_dir, TRIAL)
            .map_err(|why| format!("{} does not take the settings: {why}", program.display()))
    }
}

/// The file we were started from, as it is there now.
fn own_program() -> Result<PathBuf, String> {
    let link = std::fs::read_link(spawn::OWN_PROGRAM).map_err(|error| format!("our own program cannot be found: {error}"))?;
    // What was replaced by an upgrade of the package is still told by its old name.
    let text = link.to_string_lossy();
    let path = text.strip_suffix(" (deleted)").map_or_else(|| link.clone(), PathBuf::from);
    if path.is_file() { Ok(path) } else { Err(format!("{} is not there any more", path.display())) }
}

fn own_arguments() -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read(spawn::OWN_ARGUMENTS)?;
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    Ok(text.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
}
