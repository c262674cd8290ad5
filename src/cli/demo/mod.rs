//! `plimsoll demo`: two hungry workers, first on their own, then held by the daemon; no root, no file, nothing left behind.
//!
//! Both halves are measured by the daemon itself: first in a dry run, in which it looks and does nothing.

pub mod chart;
pub mod part;
pub mod report;
pub mod screen;
pub mod stage;
pub mod tally;
pub mod told;

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::client::Client;
use super::render::{Style, Tone};
use super::{FAILED, complain, pretty, print_line};
use crate::config::units::{Scalar, Span, Unit};
use crate::daemon::signals::Signals;
use crate::host::clock::Moment;
use crate::host::process::signal_name;
use crate::snapshot::Snapshot;

use report::{Report, Verdict};
use screen::{Scene, Screen};
use stage::{Guard, Stage};
use tally::{Lines, Part, Sample, Summary};
use told::{Deed, Feed};

/// The whole demo lasts from this to that.
pub const SHORTEST: Duration = Duration::from_secs(10);
pub const LONGEST: Duration = Duration::from_secs(600);
/// The part of it in which nobody steps in.
const WITHOUT: f64 = 0.4;
/// How often the daemon is asked, and of these, how often the screen is drawn.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS_PER_FRAME: u64 = 2;
/// The daemon is there in a fraction of a second; on a machine that swaps, later.
const START: Duration = Duration::from_secs(20);
/// A daemon that has nothing to say for so long is not well.
const SILENCE: Duration = Duration::from_secs(10);

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    pub duration: Duration,
    pub json: bool,
    pub style: Style,
    /// No cursor movement, whatever standard output is.
    pub plain: bool,
    pub env: Vec<(OsString, OsString)>,
    /// Settings for the demo's daemon, `key=value`.
    pub set: Vec<String>,
}

/// Reads `--duration`.
///
/// # Errors
/// Says what is allowed.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    let span = Span::read(&Scalar::Text(text.to_owned())).map_err(|unfit| format!("{}; {} is needed", unfit.why, Span::ALLOWED))?;
    let duration = span.duration();
    if (SHORTEST..=LONGEST).contains(&duration) { Ok(duration) } else { Err("from 10s to 10m is possible".to_owned()) }
}

/// Why the demo ended before its time.
#[derive(Debug)]
enum End {
    /// Ctrl-C or its like.
    Signal(i32),
    /// Nobody reads what we write.
    Unread,
    Failed(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        if error.kind() == io::ErrorKind::BrokenPipe { End::Unread } else { End::Failed(format!("could not write: {error}")) }
    }
}

/// Runs the demo. Returns the exit code: 0 when the line was held, 1 when it was not, 128+N when a signal ended it.
pub fn run(options: Options) -> u8 {
    // Whatever happens in there: by its end the daemon has ended, the folder is gone and the cursor is back.
    let outcome = play(&options);
    match outcome {
        Ok(report) => {
            let style = options.style;
            let text = if options.json { pretty(&report.to_json()) } else { format!("\n{}", report.render(style)) };
            let code = print_line(text.trim_end());
            match report.verdict() {
                Verdict::NotHeld(why) => {
                    complain(&format!("nothing was held: {why}"));
                    FAILED
                }
                Verdict::Held | Verdict::HalfHeld(_) => code,
            }
        }
        Err(End::Signal(signal)) => {
            complain(&format!("ended by {}, everything is cleaned up", signal_name(signal)));
            u8::try_from(128 + signal).unwrap_or(FAILED)
        }
        // Whoever cut the output off knows what it wanted.
        Err(End::Unread) => 0,
        Err(End::Failed(why)) => {
            complain(&why);
            FAILED
        }
    }
}

fn play(options: &Options) -> Result<Report, End> {
    let signals = Signals::listen().map_err(|error| End::Failed(format!("could not listen for signals: {error}")))?;
    let stage = Stage::prepare(options.duration, &options.env, options.set.clone()).map_err(End::Failed)?;
    let mut play = Play {
        screen: Screen::open(options.style, options.plain, options.json),
        signals,
        url: stage.url(),
        stage,
        begun: Moment::now(),
        samples: Vec::new(),
        deeds: Vec::new(),
        lines: Vec::new(),
        mark: None,
        held: Vec::new(),
    };
    play.greet()?;
    play.begun = Moment::now();
    let first = options.duration.mul_f64(WITHOUT);
    play.part(Part::Without, first)?;
    play.part(Part::With, options.duration - first)?;
    Ok(Report {
        limits: play.stage.limits,
        lines: Lines::of(&play.samples),
        without: Summary::of(&play.samples, Part::Without),
        with: Summary::of(&play.samples, Part::With),
        actions: play.deeds,
    })
}

/// The demo while it runs.
struct Play {
    screen: Screen,
    signals: Signals,
    url: Option<String>,
    stage: Stage,
    begun: Moment,
    samples: Vec<Sample>,
    deeds: Vec<Deed>,
    lines: Vec<(Tone, String)>,
    mark: Option<f64>,
    held: Vec<(String, f64)>,
}

impl Play {
    fn greet(&mut self) -> Result<(), End> {
        let limits = self.stage.limits;
        let (cores, memory) = (crate::response::words::cores(limits.cores), crate::response::words::bytes(limits.memory as f64));
        self.screen.say(&format!("Two hungry workers are to get by with {cores} and {memory}."))?;
        self.screen.say("One burns CPU, one leaks. First nobody steps in; then Plimsoll does.")?;
        Ok(())
    }

    /// One half: a daemon of its own, from its first reading on for so long.
    fn part(&mut self, part: Part, duration: Duration) -> Result<(), End> {
        let mut guard = self.stage.start(part == Part::With).map_err(End::Failed)?;
        let client = self.meet(&mut guard)?;
        let start = Moment::now();
        if part == Part::With {
            self.mark = Some(start.since(self.begun).as_secs_f64());
        }
        let (mut last_tick, mut last_event, mut heard) = (0, 0, start);
        for look in 0_u64.. {
            let now = Moment::now();
            if now.since(start) >= duration {
                break;
            }
            guard.alive().map_err(|why| End::Failed(format!("the demo's {why}")))?;
            match client.get_json::<Snapshot>("/admin/resources/stats") {
                Ok(snapshot) if snapshot.tick > last_tick => {
                    (last_tick, heard) = (snapshot.tick, now);
                    self.take(&snapshot, part);
                }
                Err(error) if now.since(heard) > SILENCE => return Err(End::Failed(error.to_string())),
                _ => {}
            }
            if look % LOOKS_PER_FRAME == 0 {
                last_event = self.hear(&client, last_event);
                self.show(part)?;
            }
            self.wait(LOOK)?;
        }
        self.hear(&client, last_event);
        self.held.clear();
        self.show(part)?;
        Ok(())
    }

    /// Waits until the daemon answers and has looked once.
    fn meet(&mut self, guard: &mut Guard) -> Result<Client, End> {
        let start = Moment::now();
        loop {
            let client = guard.client().map_err(|why| End::Failed(format!("the demo's daemon could not be started: {why}")))?;
            if let Some(client) = client
                && client.get_json::<Snapshot>("/admin/resources/stats").is_ok_and(|snapshot| snapshot.tick > 0)
            {
                return Ok(client);
            }
            if Moment::now().since(start) > START {
                return Err(End::Failed(format!("the demo's daemon did not get going within {} s", START.as_secs())));
            }
            self.wait(LOOK / 2)?;
        }
    }

    fn take(&mut self, snapshot: &Snapshot, part: Part) {
        let at = snapshot.taken_at_steady - self.begun.steady.as_secs_f64();
        self.samples.push(Sample::of(snapshot, part, at));
        let replicas = snapshot.workers.iter().flat_map(|worker| worker.replicas.iter().map(|replica| (worker.name.to_string(), replica)));
        self.held = replicas.filter_map(|(name, replica)| Some((name, replica.cores_allowed?))).collect();
    }

    /// Takes in the events after number `after`; yields the last one's number.
    fn hear(&mut self, client: &Client, after: u64) -> u64 {
        // What is missed now is told next time.
        let Ok(feed) = client.get_json::<Feed>(&format!("/admin/events?after={after}")) else { return after };
        let begun = self.begun.unix_seconds();
        for numbered in &feed.events {
            self.lines.extend(numbered.record.line(begun, &self.deeds));
            let deed = numbered.record.deed(begun);
            self.deeds.extend(deed.filter(|deed| !self.deeds.iter().any(|done| done.id == deed.id)));
        }
        feed.events.last().map_or(after, |last| last.id)
    }

    fn show(&mut self, part: Part) -> Result<(), End> {
        let scene = Scene {
            samples: &self.samples,
            deeds: &self.lines,
            now: Moment::now().since(self.begun).as_secs_f64(),
            total: self.stage.duration.as_secs_f64(),
            part,
            mark: self.mark,
            url: self.url.as_deref(),
            held: &self.held,
        };
        Ok(self.screen.show(&scene)?)
    }

    /// Waits so long, or until a signal ends the demo.
    fn wait(&mut self, longest: Duration) -> Result<(), End> {
        let timeout = Timespec { tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(longest.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        // An interrupted wait is a signal that has arrived.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        let ending = self.signals.pending().into_iter().find(|signal| [SIGINT, SIGTERM, SIGHUP, SIGQUIT].contains(signal));
        ending.map_or(Ok(()), |signal| Err(End::Signal(signal)))
    }
}
