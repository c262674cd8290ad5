//! Lets the kernel ask for a tick: owns the pressure trigger and how often it may be heard. May touch the trigger through
//! `host`. Must not judge pressure: an event only brings the next look forward.
//!
//! Where the kernel grants no trigger nothing is lost but a moment: the looks come when they are due, and a line that is
//! near brings them closer ([`super::pacing`]).

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::host::psi::{Told, Trigger};

/// Between two events that are heard.
const DEAF: Duration = Duration::from_millis(50);
/// So many heard in [`STORM_WITHIN`] are a storm: the kernel promises one in each window, and something is wrong.
const STORM: u32 = 40;
const STORM_WITHIN: Duration = Duration::from_secs(4);

/// What an event asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Ring {
    Nothing,
    Tick,
    /// The trigger is given up, for this reason; from now on everything is only looked at when it is due.
    GivenUp(&'static str),
}

/// The trigger of the scope's memory pressure, if there is one.
#[derive(Debug, Default)]
pub struct Bell {
    /// A file that is not the kernel's would keep what is written into it.
    live: bool,
    file: Option<PathBuf>,
    trigger: Option<Trigger>,
    refusal: Option<String>,
    gate: Gate,
}

/// How often events are heard. Pure.
#[derive(Debug, Default)]
struct Gate {
    again: Duration,
    since: Duration,
    heard: u32,
}

impl Gate {
    /// One event is heard. True when they have become a storm.
    fn hear(&mut self, now: Duration) -> bool {
        self.again = now + DEAF;
        if now.saturating_sub(self.since) >= STORM_WITHIN {
            (self.since, self.heard) = (now, 0);
        }
        self.heard += 1;
        self.heard >= STORM
    }

    fn is_deaf(&self, now: Duration) -> bool {
        now < self.again
    }
}

impl Bell {
    pub fn new(live: bool) -> Bell {
        Bell { live, ..Bell::default() }
    }

    /// Sets the trigger on `file` when it is not the one it is set on. True when something changed.
    pub fn hang(&mut self, file: Option<&Path>) -> bool {
        let file = file.filter(|_| self.live);
        if self.file.as_deref() == file {
            return false;
        }
        self.file = file.map(Path::to_path_buf);
        self.gate = Gate::default();
        (self.trigger, self.refusal) = match file.map(Trigger::set) {
            Some(Ok(trigger)) => (Some(trigger), None),
            Some(Err(errno)) => (None, Some(refusal(errno).to_owned())),
            None => (None, Some("pressure is not accounted here".to_owned())),
        };
        true
    }

    /// How pressure is heard of, for people.
    pub fn describe(&self) -> String {
        match (&self.trigger, &self.refusal) {
            (Some(trigger), _) => format!("trigger, {} ms", trigger.window().as_millis()),
            (None, Some(why)) => format!("polled: {why}"),
            (None, None) => "polled".to_owned(),
        }
    }

    /// For whoever closes it later: that waits for the kernel.
    pub fn hand_over(&self) -> Option<BorrowedFd<'_>> {
        self.trigger.as_ref().map(Trigger::fd)
    }

    /// To be waited for; nothing while it is not to be heard.
    pub fn fd(&self, now: Duration) -> Option<BorrowedFd<'_>> {
        self.trigger.as_ref().filter(|_| !self.gate.is_deaf(now)).map(Trigger::fd)
    }

    /// When it is to be listened to again. What is told in the meantime is kept by the kernel.
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        (self.trigger.is_some() && self.gate.is_deaf(now)).then_some(self.gate.again)
    }

    /// Something was told.
    pub fn ring(&mut self, told: Told, now: Duration) -> Ring {
        let given_up = match told {
            Told::Nothing => return Ring::Nothing,
            Told::Pressure if !self.gate.hear(now) => return Ring::Tick,
            Told::Pressure => "it told of pressure again and again; it is only looked at when it is due",
            Told::Gone => "its group is gone",
        };
        self.trigger = None;
        self.refusal = Some(given_up.to_owned());
        Ring::GivenUp(given_up)
    }
}

fn refusal(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "there is no pressure file here",
        Errno::ACCESS | Errno::PERM | Errno::ROFS => "the pressure file may not be written",
        Errno::OPNOTSUPP => "the kernel was started with pressure accounting off",
        _ => "the kernel grants no trigger",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_neither_answered_nor_waited_for() {
        let mut bell = Bell::default();
        let (mut ticks, mut now) = (0, Duration::from_secs(100));
        let given_up = loop {
            // An event every millisecond; one that comes too early is not even asked for.
            now += Duration::from_millis(1);
            if bell.gate.is_deaf(now) {
                continue;
            }
            match bell.ring(Told::Pressure, now) {
                Ring::Tick => ticks += 1,
                Ring::GivenUp(why) => break why,
                Ring::Nothing => unreachable!("it was told something"),
            }
        };
        assert_eq!(ticks, STORM - 1);
        assert!(now - Duration::from_secs(100) >= DEAF * (STORM - 2), "faster than one in {DEAF:?}");
        assert!(bell.describe().contains(given_up));
    }

    #[test]
    fn a_window_after_another_is_no_storm() {
        let mut gate = Gate::default();
        assert!((1..10_000).all(|each| !gate.hear(Duration::from_millis(each * 500))));
    }

    #[test]
    fn what_is_gone_is_not_waited_for() {
        let mut bell = Bell::new(true);
        assert!(!Bell::new(false).hang(Some(Path::new("/proc/pressure/memory"))));
        assert!(bell.hang(Some(Path::new("/nowhere/memory.pressure"))) && !bell.hang(Some(Path::new("/nowhere/memory.pressure"))));
        assert!(bell.fd(Duration::ZERO).is_none() && bell.describe().contains("no pressure file"));
        assert_eq!(bell.ring(Told::Nothing, Duration::ZERO), Ring::Nothing);
        assert!(matches!(bell.ring(Told::Gone, Duration::ZERO), Ring::GivenUp(_)));
    }
}
