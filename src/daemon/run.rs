//! The loop: one thread that waits, ticks, acts, and starts workers.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::config::{Loaded, Sources};
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::psi::{self, Told};
use crate::host::service_manager::Passed;
use crate::host::{Paths, pages, scheduling};
use crate::http::control::{Answer, Request};
use crate::http::server;
use crate::journal::Event;

use super::bell::Ring;
use super::events::{self, Order};
use super::guardian::Guardian;
use super::signals::Signals;
use super::upgrade::{self, Parcel, Received, Underway};
use super::wiring::{self, StartError};

/// After something has happened to a worker, the next tick is at most this far away, so that what is published follows.
const SOON: Duration = Duration::from_millis(100);

/// A sentinel that has lived this long can be started.
const SENTINEL_LIVES: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to end, or its command has ended. Returns the exit code. For `signals` see [`wiring::wire`].
///
/// # Errors
/// When it could not be started; nothing is left behind then.
pub fn run(
    signals: Signals,
    sources: Sources,
    loaded: Loaded,
    env: Vec<(OsString, OsString)>,
    passed: Passed,
    parcel: Received,
) -> Result<u8, StartError> {
    let mut guardian = wiring::wire(signals, sources, loaded, env, passed, parcel)?;
    let code = guardian.run();
    Ok(code)
}

impl Guardian {
    fn run(&mut self) -> u8 {
        self.begin(Moment::now());
        let (reason, code) = loop {
            if let Some(end) = self.turn(Moment::now()) {
                break end;
            }
            self.wait();
        };
        self.shut_down(reason);
        // Told to end, the daemon has done what it was told; `run -- COMMAND` speaks for its command even then.
        self.supervisor.finished().map_or(code, exit_code)
    }

    /// Does all that is due now. The reason and the exit code, when it is time to end.
    pub fn turn(&mut self, now: Moment) -> Option<(String, u8)> {
        if let Some(reason) = self.take_orders(now) {
            return Some((reason, 0));
        }
        let mut events = Vec::new();
        self.reap(now, &mut events);
        self.supervisor.reap_strangers(now, &mut events);
        self.supervisor.advance(now, &mut events);
        self.answer_the_waiting(now);
        self.tend_jobs(now);
        if self.underway.is_some() {
            self.conclude_trial(now);
        }
        self.throttle.step(&self.supervisor, now.steady);
        self.brake.step(&self.supervisor, now.steady);
        if !events.is_empty() {
            self.tell(&events, now);
            self.throttle.forget_missing_folders();
            self.tally.next_tick = self.tally.next_tick.min(now.steady + SOON);
        }
        if let Some(code) = self.supervisor.finished() {
            return Some(("the command has ended".to_owned(), exit_code(code)));
        }
        if self.pace.next_glance().is_some_and(|due| due <= now.steady) && now.steady < self.tally.next_tick {
            // What has crossed a line is looked at as a whole, and acted on, before anything is waited for.
            self.glance(now);
        }
        if self.tally.next_tick <= now.steady {
            if self.sentinel.is_none() {
                let mut events = Vec::new();
                self.start_sentinel();
                self.rely_on_sentinel(now, &mut events);
                self.tell(&events, now);
            }
            self.supervisor.outputs.tend(now);
            self.tick(now);
            self.tend_jobs(now);
            self.look_at_program(now);
            self.open_doors(now);
            self.tell_manager(now);
            if !self.settled {
                self.settle();
            }
        }
        None
    }

    /// The first look, so that limits are known before replicas are counted, then the workers.
    pub fn begin(&mut self, now: Moment) {
        self.sampler.read_into(&[], now, &mut self.readings);
        self.environment.scope = self.sampler.scope().extent.word().to_owned();
        self.environment.limit_source = self.readings.memory.limit_source.word().to_owned();
        self.hang_bell();
        let cores = self.cpu_limit();
        let workers = self.settings.workers.clone();
        let started = Event::DaemonStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            platform: self.environment.platform.clone(),
            cgroup: self.environment.cgroup.clone(),
            enforcement: self.environment.enforcement.clone(),
            pressure: self.environment.pressure.clone(),
            scope: self.environment.scope.clone(),
            cpu_limit_cores: self.readings.cpu.limit_cores.known(),
            memory_limit_bytes: self.readings.memory.limit.known(),
            config_file: self.settings.file.as_ref().map(|file| file.display().to_string()),
            listening: self.listening.clone(),
            workers: u32::try_from(workers.len()).unwrap_or(u32::MAX),
        };
        self.tell(&[started], now);
        let prepared = std::mem::take(&mut self.prepared);
        let parcel = self.parcel.take();
        let upgraded = parcel.map(|parcel| {
            let began = parcel.began();
            let Parcel { version, workers: handed, counts, .. } = parcel;
            self.count_on(counts);
            let lives = handed.map(|handed| self.supervisor.inherit_from(handed, &workers, now));
            (version, began, lives)
        });
        self.supervisor.apply(&workers, prepared, cores, now);
        let (leftovers, mut events) = (std::mem::take(&mut self.leftovers), Vec::new());
        let count = u32::try_from(leftovers.len()).unwrap_or(u32::MAX);
        self.supervisor.take_over(leftovers, self.settings.daemon.leftovers, now, &mut events);
        if let Some((from, began, lives)) = upgraded {
            let unguarded_seconds = Moment::now().steady.saturating_sub(began).as_secs_f64();
            events.push(Event::Upgraded { from, to: env!("CARGO_PKG_VERSION"), unguarded_seconds, workers: lives.unwrap_or(count) });
        }
        self.tell(&events, now);
        self.begin_jobs(now);
    }

    /// Serves what is asked, from the first full tick on. A machine that has no thread left to give is asked again each tick.
    fn open_doors(&mut self, now: Moment) {
        let Some(doors) = self.doors.as_ref().filter(|_| self.http.is_none()) else { return };
        match server::spawn(doors) {
            Ok(handle) => {
                self.http = Some(handle);
                self.doors_jam = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.doors_jam, true) {
                    self.tell(&[Event::Degraded { part: "http", detail: format!("{error}; each tick tries again") }], now);
                }
            }
        }
    }

    /// Once, when everything that is needed for long is there: memory that stays, and a place before everybody who may keep
    /// all processors busy just when a line is crossed. Where either is refused the daemon goes on as it is, and `doctor`
    /// says why. A machine that is a folder is only looked at.
    fn settle(&mut self) {
        let paths = Paths::from(&self.settings.host);
        self.settled = true;
        self.leavings = Vec::new();
        if !paths.is_live() {
            return;
        }
        // For less to be locked. Where it cannot be done, only that is lost.
        let _ = pages::leave_start();
        self.environment.pages = pages::lock().map_or_else(|why| format!("not locked: {why}"), |()| "locked".to_owned());
        let _ = scheduling::run_first(&Layout::discover(&paths));
    }

    /// The cores replicas are counted by: the setting, else the effective limit, else one.
    pub fn cpu_limit(&self) -> f64 {
        let effective = self.readings.cpu.limit_cores.known();
        let asked = self.settings.policy.cpu.limit.set();
        match (effective, asked) {
            (Some(effective), Some(asked)) => effective.min(asked),
            (effective, asked) => effective.or(asked).unwrap_or(1.0),
        }
    }

    /// Reaps children; a sentinel that has ended is replaced, as is what writes the output of workers. Asking for the ended costs as much as there are children, so
    /// it is done after a `SIGCHLD`, and in each tick for where that was blocked by whoever started us.
    pub fn reap(&mut self, now: Moment, events: &mut Vec<Event>) {
        if !std::mem::take(&mut self.child_ended) && now.steady < self.tally.next_tick {
            self.supervisor.look_after_ending(now, events);
            return;
        }
        let mut others = self.supervisor.reap(now, events);
        if let Some(underway) = &mut self.underway {
            others.retain(|exit| !underway.note_ended(exit));
        }
        self.jobs.note_ended(&mut others);
        let others: Vec<i32> = others.iter().map(|exit| exit.pid).collect();
        self.supervisor.outputs.note_ended(&others, now, events);
        let Some(ended) = self.sentinel.take_if(|sentinel| others.contains(&sentinel.pid())) else { return };
        // One that ends as soon as it is started is not started without end: the next tick tries again.
        if now.since(ended.started()) >= SENTINEL_LIVES {
            self.start_sentinel();
        }
        let detail = if self.sentinel.is_some() { "it ended and was started again" } else { "it ended; the next tick starts another" };
        events.push(Event::Degraded { part: "sentinel", detail: detail.to_owned() });
        self.rely_on_sentinel(now, events);
    }

    /// Without a sentinel nobody is held stopped, until there is one.
    fn rely_on_sentinel(&mut self, now: Moment, events: &mut Vec<Event>) {
        if let Err(detail) = self.throttle.rely_on_sentinel(self.sentinel.is_some(), &self.supervisor, now.steady) {
            events.push(Event::Degraded { part: "undo", detail });
        }
    }

    fn start_sentinel(&mut self) {
        self.sentinel = super::sentinel::Sentinel::start(&self.stops, &self.folders, &self.settings.host).ok();
        self.supervisor.set_sentinel(self.sentinel.as_ref().map(super::sentinel::Sentinel::pid));
    }

    /// Takes in what has arrived and performs it. The reason, when it is time to end.
    fn take_orders(&mut self, now: Moment) -> Option<String> {
        let mut buffer = [0_u8; 8];
        // Empties the counter; nothing in it is no error.
        let _ = rustix::io::read(self.wake.as_fd(), &mut buffer);
        for signal in self.signals.pending() {
            if let Some(reason) = self.perform_order(events::of_signal(signal), None, now) {
                return Some(reason);
            }
        }
        while let Ok(request) = self.commands.try_recv() {
            let order = events::of_command(&request.command);
            if let Some(reason) = self.perform_order(order, Some(request), now) {
                return Some(reason);
            }
        }
        None
    }

    fn perform_order(&mut self, order: Order, request: Option<Request>, now: Moment) -> Option<String> {
        let answer = match order {
            Order::Reap => {
                self.child_ended = true;
                Answer::Done(String::new())
            }
            Order::Reload => {
                self.service.reloading(now);
                if self.renewed_on_reload().is_some() {
                    // It reads the settings itself, and tells when it has.
                    self.begin_upgrade(upgrade::RELOAD, request, now);
                    return None;
                }
                let answer = self.reload(now);
                self.service.reloaded();
                answer
            }
            Order::PlanReload => self.plan_reload(),
            Order::Release => self.release(now),
            Order::Forward(signal) => {
                self.supervisor.signal_command(signal);
                Answer::Done(String::new())
            }
            Order::Worker(command) => {
                if let Some(request) = request {
                    self.begin_worker_command(&command, request, now);
                }
                return None;
            }
            Order::Job(command) => {
                if let Some(request) = request {
                    self.begin_job_command(&command, request, now);
                }
                return None;
            }
            Order::Upgrade => {
                self.begin_upgrade(upgrade::ASKED, request, now);
                return None;
            }
            Order::Stop(reason) => {
                if let Some(request) = request {
                    let _ = request.answer.send(Answer::Done("stopping".to_owned()));
                }
                return Some(reason);
            }
        };
        if let Some(request) = request {
            // Whoever asked may have gone away.
            let _ = request.answer.send(answer);
        }
        None
    }

    pub fn release(&mut self, now: Moment) -> Answer {
        let result = self.let_all_go(now);
        self.planner.begin_anew();
        let mut events = Vec::new();
        self.note_released("asked for", now, &mut events);
        self.tell(&events, now);
        match result {
            Ok(count) => Answer::Done(format!("held and now free: {}; the policy may act again from the next tick on", counted(count))),
            Err(why) => Answer::Refused(format!("not everything could be put back: {why}")),
        }
    }

    /// Waits for a signal, a request, or the next thing that is due.
    pub fn wait(&mut self) {
        let moment = Moment::now();
        let now = moment.steady;
        let due = [
            Some(self.tally.next_tick),
            self.pace.next_glance(),
            self.bell.next_deadline(now),
            self.throttle.next_deadline(),
            self.brake.next_deadline(),
            self.supervisor.next_deadline(),
            self.next_answer(),
            self.underway.as_ref().and_then(Underway::deadline),
            self.jobs.next_deadline(moment),
        ];
        let left = due.into_iter().flatten().min().unwrap_or(now).saturating_sub(now);
        self.wait_for(left);
    }

    /// Waits at most so long.
    pub fn wait_for(&mut self, longest: Duration) {
        let timeout = Timespec { tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(longest.subsec_nanos()) };
        // While the bell is not to be heard its place is taken by one that waits for nothing.
        let bell = match self.bell.fd(Moment::now().steady) {
            Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::PRI),
            None => PollFd::new(&self.wake, PollFlags::empty()),
        };
        let spoken = match self.supervisor.watch() {
            Some(watch) => PollFd::from_borrowed_fd(watch, PollFlags::IN),
            None => PollFd::new(&self.wake, PollFlags::empty()),
        };
        let mut fds = [PollFd::new(&self.wake, PollFlags::IN), PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN), bell, spoken];
        self.reserve.keep();
        let woken = rustix::event::poll(&mut fds, Some(&timeout));
        self.reserve.lend();
        // An interrupted wait is a signal that has arrived; whatever it was, the loop looks.
        if woken.is_err() {
            return;
        }
        let [_, _, bell, _] = fds;
        let told = psi::told(bell.revents());
        if told != Told::Nothing {
            self.hear(told, Moment::now());
        }
    }

    /// Pressure brings the next tick forward.
    fn hear(&mut self, told: Told, now: Moment) {
        match self.bell.ring(told, now.steady) {
            Ring::Nothing => {}
            Ring::Tick => self.tally.next_tick = self.tally.next_tick.min(now.steady),
            Ring::GivenUp(why) => {
                self.environment.pressure = self.bell.describe();
                self.tell(&[Event::Degraded { part: "pressure trigger", detail: why.to_owned() }], now);
            }
        }
    }

    /// Sets the pressure trigger on the file of the scope, if that has changed.
    pub fn hang_bell(&mut self) {
        let file = self.sampler.memory_pressure_file();
        if self.bell.hang(file) {
            self.environment.pressure = self.bell.describe();
        }
    }
}

/// So many replicas, in words.
pub fn counted(replicas: u32) -> String {
    format!("{replicas} replica{}", if replicas == 1 { "" } else { "s" })
}

/// A command's code as a process's own.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code.clamp(0, 255)).unwrap_or(1)
}
