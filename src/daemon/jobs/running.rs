//! The run that goes on: its process, the thread that listens to it, and how it is told to stop.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::config::settings::Signal;
use crate::host::clock::Moment;
use crate::host::group::Group;
use crate::host::process::{Exit, Process};
use crate::host::{Paths, cputime, helper, scheduling};
use crate::jobs::allowance;
use crate::jobs::child::SUBCOMMAND;
use crate::jobs::errand::{self, Errand};
use crate::jobs::plan::{Item, Totals};
use crate::jobs::queue::Start;
use crate::jobs::run::{Failure, Outcome, Report};
use crate::policy::engine::CPU_WINDOW;
use crate::policy::window::Mean;
use crate::snapshot::jobs::{JobProgress, JobRun};

/// What a run that is told to stop has to come to a safe point, before it is ended.
pub const GRACE: Duration = Duration::from_secs(10);

/// What its thread hands to the loop.
#[derive(Debug)]
pub enum Heard {
    Report(Report),
    End(Result<Outcome, Failure>),
}

/// Wakes the loop.
pub type Ring = Arc<dyn Fn() + Send + Sync>;

#[derive(Debug)]
pub struct Running {
    pub start: Start,
    pub run: JobRun,
    pub progress: JobProgress,
    pub begun: Moment,
    pub items: Vec<Item>,
    pub totals: Option<Totals>,
    pub exit: Option<Exit>,
    pub end: Option<Result<Outcome, Failure>>,
    /// Where it has an account of its own.
    pub peak_memory: Option<u64>,
    pid: i32,
    /// `None` where it could not be opened; its number is its own until it is reaped.
    process: Option<Process>,
    pub group: Option<Group>,
    /// How much of the processors it may use is said here.
    allowed: OwnedFd,
    /// On the steady clock, and by its CPU clock: when it was last looked at, and what it uses.
    looked: (Duration, Duration),
    cores: Mean,
    /// On the steady clock: it is told to stop; and when it is ended.
    deadline: Duration,
    kill_at: Option<Duration>,
    pub is_out_of_time: bool,
    pub is_told: bool,
    pub is_killed: bool,
}

/// Why a run does not begin.
#[derive(Debug)]
pub enum Hindrance {
    /// Another daemon has the lock at this path.
    Locked(String),
    Io(io::Error),
}

/// Everything a run needs from its surroundings.
pub struct Place<'a> {
    pub paths: &'a Paths,
    pub errand: Errand,
    /// One run at a time on this state folder, whoever began it.
    pub lock: &'a Path,
    pub group: Option<Group>,
    pub boot: Option<String>,
    pub tell: SyncSender<Heard>,
    pub ring: Ring,
}

impl Running {
    /// Starts the process.
    ///
    /// # Errors
    /// Nothing has begun then.
    pub fn begin(start: Start, place: Place<'_>, now: Moment) -> Result<Running, Hindrance> {
        let lock = take_lock(place.lock)?;
        let shared = match &start.job.lock {
            Some(path) => take_lock(path)?,
            None => lock.try_clone().map_err(Hindrance::Io)?,
        };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Hindrance::Io(error.into()));
        let ((errand_out, errand_in), (reports_out, reports_in)) = (pipe()?, pipe()?);
        let text = serde_json::to_vec(&place.errand).map_err(|error| Hindrance::Io(error.into()))?;
        let never_waiting = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (allowed_out, allowed) = rustix::pipe::pipe_with(never_waiting).map_err(|error| Hindrance::Io(error.into()))?;
        let handed = [errand_out.as_fd(), reports_in.as_fd(), allowed_out.as_fd(), lock.as_fd(), shared.as_fd()];
        let pid = helper::spawn(SUBCOMMAND, &handed, &[]).map_err(Hindrance::Io)?;
        let process = Process::open_child(place.paths, pid).ok().flatten();
        // Where it cannot be moved it runs where the daemon does.
        let group = place.group.filter(|group| group.take_in(pid).is_ok() || !group.remove());
        // What it writes to is its own alone, else its end would not be heard.
        drop((reports_in, errand_out));
        let deadline = place.errand.deadline;
        if let Err(error) = listen(text, errand_in, reports_out, place.tell, place.ring) {
            // It has been given nothing to do, and ends by itself.
            return Err(Hindrance::Io(error));
        }
        let seconds = |time| crate::jobs::ledger::seconds(time);
        let run = JobRun {
            job: start.job.name.to_string(),
            cause: start.cause.word().to_owned(),
            due: start.due.map(seconds),
            started: now.unix_seconds(),
            started_steady: now.steady.as_secs_f64(),
            boot: place.boot,
            dry_run: start.order.dry_run,
            ..JobRun::default()
        };
        let progress = JobProgress { started: run.started, cause: run.cause.clone(), dry_run: run.dry_run, pid, ..JobProgress::default() };
        Ok(Running {
            start,
            run,
            progress,
            begun: now,
            items: Vec::new(),
            totals: None,
            exit: None,
            end: None,
            peak_memory: None,
            pid,
            process,
            group,
            allowed,
            looked: (now.steady, Duration::ZERO),
            cores: idle_until_now(),
            deadline,
            kill_at: None,
            is_out_of_time: false,
            is_told: false,
            is_killed: false,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its process is gone, and everything it said is heard.
    pub fn is_over(&self) -> bool {
        self.exit.is_some() && self.end.is_some()
    }

    /// Tells it to stop at the next safe point.
    pub fn stop(&mut self, now: Moment) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.kill_at = Some(now.steady + GRACE);
            self.signal(libc::SIGTERM);
        }
    }

    pub fn kill(&mut self) {
        self.is_killed = true;
        self.kill_at = None;
        self.signal(libc::SIGKILL);
    }

    /// Says how much of the processors it may use, where that is another: of `limit` cores `used` are in use, by it and all others,
    /// and it is to stay below `line`, a part of the limit.
    pub fn allow(&mut self, limit: f64, line: f64, used: f64, now: Moment) {
        // Its number is its own until it is reaped.
        let Some(cpu) = cputime::of_process(self.pid).ok().filter(|_| self.exit.is_none()) else { return };
        let gap = now.steady.saturating_sub(self.looked.0);
        if !gap.is_zero() {
            self.cores.feed(gap, cpu.saturating_sub(self.looked.1).as_secs_f64() / gap.as_secs_f64());
            self.looked = (now.steady, cpu);
        }
        let others = (used - self.cores.so_far().unwrap_or(0.0)).max(0.0);
        let cores = allowance::cores(limit, line, others);
        let is_news = self.progress.allowed_cores.is_none_or(|before| (before - cores).abs() > 0.02 * before);
        if is_news && errand::say_allowance(&self.allowed, cores) {
            self.progress.allowed_cores = Some(cores);
        }
    }

    /// Does what its time asks for.
    pub fn step(&mut self, now: Moment) {
        if self.exit.is_some() {
            return;
        }
        if self.kill_at.is_some_and(|at| at <= now.steady) {
            self.kill();
        } else if self.deadline <= now.steady && !self.is_told {
            self.is_out_of_time = true;
            self.stop(now);
        }
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let stop = (!self.is_told).then_some(self.deadline);
        self.exit.is_none().then(|| self.kill_at.or(stop)).flatten()
    }

    fn signal(&self, signal: i32) {
        if let Some(process) = self.process.as_ref().filter(|_| self.exit.is_none()) {
            // One that has just ended is what is wanted.
            let _ = process.signal(Signal(signal));
        }
    }
}

/// What a run has used of the window that all others are measured over, before it began: without that the first moments of a run
/// would count as if they had been a second, and what the others use would look small.
fn idle_until_now() -> Mean {
    const PARTS: u32 = 10;
    let mut cores = Mean::new(CPU_WINDOW);
    for _ in 0..PARTS {
        cores.feed(CPU_WINDOW / PARTS, 0.0);
    }
    cores
}

/// Writes the errand down and listens, in a thread of its own: neither pipe is to hold up the loop.
fn listen(text: Vec<u8>, errand: OwnedFd, reports: OwnedFd, tell: SyncSender<Heard>, ring: Ring) -> io::Result<()> {
    let run = move || {
        let mut pipe = File::from(errand);
        // A process that is gone already is heard of below.
        let _ = pipe.write_all(&text);
        drop(pipe);
        let say = |heard| {
            // The loop may have ended.
            let _ = tell.send(heard);
            ring();
        };
        let end = errand::follow(File::from(reports), |report| say(Heard::Report(report)));
        say(Heard::End(end));
    };
    let thread = std::thread::Builder::new().name("job".into()).stack_size(256 * 1024);
    scheduling::deaf_to_signals(|| thread.spawn(run)).map(drop)
}

/// A lock that goes on to the process of the run, and ends with the last who has it.
pub fn take_lock(path: &Path) -> Result<OwnedFd, Hindrance> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640)).map_err(|error| {
        let error = io::Error::from(error);
        Hindrance::Io(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Hindrance::Locked(path.display().to_string())),
        Err(error) => Err(Hindrance::Io(io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", path.display())))),
    }
}
