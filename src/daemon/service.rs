//! What the service manager is told, and when (`sd_notify(3)`). The decision is [`Service::note`]'s, which knows only what it is told,
//! time among it; how the words get there is `host::service_manager`'s.
//!
//! ```text
//! (nothing) ─ first full tick ─▶ READY ─ reload ─▶ RELOADING ─ done, or refused ─▶ READY ─ end ─▶ STOPPING
//!                                  └ each finished tick: WATCHDOG, and STATUS when it has changed
//! ```
//!
//! Only a tick that was finished feeds the watchdog: a loop that stands still is one to be restarted, whatever else of us is alive.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::host::service_manager::ServiceManager;
use crate::policy::{Level, Resource};

use super::guardian::Guardian;

/// While only figures change the status line follows this often: each is a wake-up of the service manager and of whoever watches it.
const FIGURES: Duration = Duration::from_secs(10);
/// The watchdog is fed when this part of its patience is over …
const FEED_AFTER: u32 = 4;
/// … and ticks are never further apart than this part of it, whatever `sampling.interval` says.
const TICK_WITHIN: u32 = 2;

/// The service manager, if there is one, and how far we are with it.
#[derive(Debug, Default)]
pub struct Service {
    manager: Option<ServiceManager>,
    /// It waits for `READY=1`: at the start, and after a reload.
    awaits_ready: bool,
    fed: Option<Duration>,
    /// What the status line was made of when it was told last, and when that was.
    told: Option<(Standing, Duration)>,
    /// Used again for each message: a steady tick allocates nothing.
    message: String,
}

/// What of the daemon's state is told at once when it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub running: u32,
    pub held: u32,
    pub wanted: u32,
    /// How many resources are high, and how many critical.
    pub levels: [u32; 2],
    pub refused: bool,
}

/// What goes into one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub ready: bool,
    pub watchdog: bool,
    pub status: bool,
}

impl Service {
    pub fn of(manager: Option<ServiceManager>) -> Service {
        Service { awaits_ready: manager.is_some(), manager, ..Service::default() }
    }

    /// The longest gap between ticks that keeps the watchdog fed.
    pub fn longest_gap(&self) -> Duration {
        self.manager.as_ref().and_then(ServiceManager::watchdog).map_or(Duration::MAX, |patience| patience / TICK_WITHIN)
    }

    /// What is to be told after a tick that was finished.
    fn due(&self, standing: Standing, watchdog: Option<Duration>, now: Duration) -> Due {
        let since = |then: Option<Duration>| then.map(|then| now.saturating_sub(then));
        Due {
            ready: self.awaits_ready,
            watchdog: watchdog.is_some_and(|patience| since(self.fed).is_none_or(|age| age >= patience / FEED_AFTER)),
            status: self.told.is_none_or(|(told, when)| told != standing || now.saturating_sub(when) >= FIGURES),
        }
    }

    /// After a tick that was finished. `figures` writes the status line. What cannot be told now is due again with the next tick.
    pub fn note(&mut self, standing: Standing, now: Duration, figures: impl FnOnce(&mut String)) {
        let Some(manager) = &self.manager else { return };
        let due = self.due(standing, manager.watchdog(), now);
        if due == Due::default() {
            return;
        }
        self.message.clear();
        if due.status {
            self.message.push_str("STATUS=");
            figures(&mut self.message);
            self.message.push('\n');
        }
        if due.ready {
            self.message.push_str("READY=1\n");
        }
        if due.watchdog {
            self.message.push_str("WATCHDOG=1\n");
        }
        if manager.say(self.message.as_bytes()).is_err() {
            return;
        }
        self.awaits_ready = false;
        if due.watchdog {
            self.fed = Some(now);
        }
        if due.status {
            self.told = Some((standing, now));
        }
    }

    /// A reload begins. `Type=notify-reload` wants to know on which tick of the steady clock, to tell this one from those before.
    pub fn reloading(&mut self, now: Moment) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", now.steady.as_micros()));
        self.awaits_ready = self.manager.is_some();
    }

    /// It is over, well or not. One that is not heard now is told after the next tick.
    pub fn reloaded(&mut self) {
        if self.awaits_ready && self.say("READY=1\n") {
            self.awaits_ready = false;
        }
    }

    /// Everybody has been let go, and the end may take so long: whatever the unit says, it is not to be cut short.
    pub fn stopping(&mut self, left: Duration) {
        self.say(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\n", left.as_micros()));
    }

    /// The status line while it ends.
    pub fn ending(&mut self, step: &str) {
        self.say(&format!("STATUS=stopping: {step}\n"));
    }

    /// Whether it was told, as far as that is known.
    fn say(&self, lines: &str) -> bool {
        self.manager.as_ref().is_some_and(|manager| manager.say(lines.as_bytes()).is_ok())
    }
}

impl Guardian {
    /// Tells the service manager of a tick that was finished.
    pub fn tell_manager(&mut self, now: Moment) {
        let mut standing = Standing { refused: !self.tally.reload_successful, ..Standing::default() };
        for replica in self.supervisor.replicas().iter().filter(|replica| replica.is_main()) {
            standing.wanted += 1;
            standing.running += u32::from(replica.is_running());
            standing.held += u32::from(replica.slot().is_some_and(|slot| self.throttle.burden(slot).is_some()));
        }
        let verdicts = &self.tally.verdicts;
        for (level, count) in [Level::High, Level::Critical].iter().zip(&mut standing.levels) {
            *count = verdicts.iter().filter(|verdict| verdict.level == *level).count().try_into().unwrap_or(u32::MAX);
        }
        self.service.note(standing, now.steady, |line| {
            for verdict in verdicts {
                let Some(share) = verdict.utilization else { continue };
                // A String takes everything that is written to it.
                let _ = match &verdict.resource {
                    Resource::Cpu => write!(line, "cpu {:.0} %", share * 100.0),
                    Resource::Memory => write!(line, "memory {:.0} %", share * 100.0),
                    Resource::Disk(path) => write!(line, "disk {} {:.0} %", path.display(), share * 100.0),
                    Resource::Worker(_) => continue,
                };
                if verdict.level != Level::Normal {
                    let _ = write!(line, " ({})", verdict.level.word());
                }
                line.push_str(", ");
            }
            let empty = self.settings.file.as_deref().filter(|_| self.settings.workers.is_empty());
            standing.write(line, empty);
        });
    }
}

impl Standing {
    /// How the workers stand. `empty` is a file of settings that names none: a service just installed says where they go.
    fn write(&self, line: &mut String, empty: Option<&Path>) {
        // A String takes everything that is written to it.
        let _ = match empty {
            Some(file) => write!(line, "no workers are set; they go into {}", file.display()),
            None => write!(line, "{} of {} workers up", self.running, self.wanted),
        };
        if self.held > 0 {
            let _ = write!(line, ", {} held", self.held);
        }
        if self.refused {
            line.push_str("; the changed settings were refused, the old ones hold");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

    fn told(standing: Standing, fed: u64, when: u64) -> Service {
        Service { fed: Some(Duration::from_secs(fed)), told: Some((standing, Duration::from_secs(when))), ..Service::default() }
    }

    #[test]
    fn the_first_tick_says_all() {
        let service = Service { awaits_ready: true, ..Service::default() };
        let due = service.due(Standing::default(), PATIENCE, Duration::ZERO);
        assert_eq!(due, Due { ready: true, watchdog: true, status: true });
        assert!(!service.due(Standing::default(), None, Duration::ZERO).watchdog, "nobody has asked for that");
    }

    #[test]
    fn what_has_changed_is_told_at_once_and_figures_now_and_then() {
        let before = Standing { running: 2, wanted: 2, ..Standing::default() };
        let service = told(before, 100, 100);
        let due = |standing, now| service.due(standing, PATIENCE, Duration::from_secs(now));
        assert_eq!(due(before, 101), Due::default());
        assert_eq!(due(Standing { held: 1, ..before }, 101), Due { status: true, ..Due::default() });
        assert_eq!(due(before, 108), Due { watchdog: true, ..Due::default() });
        assert_eq!(due(before, 110), Due { watchdog: true, status: true, ..Due::default() });
    }

    #[test]
    fn the_status_line_says_what_to_do_next() {
        let line = |standing: Standing, file: Option<&str>| {
            let mut line = String::new();
            standing.write(&mut line, file.map(Path::new));
            line
        };
        let file = Some("/etc/plimsoll/plimsoll.toml");
        assert_eq!(line(Standing::default(), file), "no workers are set; they go into /etc/plimsoll/plimsoll.toml");
        assert_eq!(line(Standing::default(), None), "0 of 0 workers up");
        let two = Standing { running: 1, wanted: 2, held: 1, refused: true, ..Standing::default() };
        assert_eq!(line(two, None), "1 of 2 workers up, 1 held; the changed settings were refused, the old ones hold");
        let emptied = Standing { refused: true, ..Standing::default() };
        assert!(line(emptied, file).ends_with("; the changed settings were refused, the old ones hold"));
    }

    #[test]
    fn without_a_manager_nothing_is_said_and_nothing_slows_down() {
        let mut service = Service::of(None);
        service.reloading(Moment::now());
        service.note(Standing::default(), Duration::ZERO, |_| panic!("nobody reads it"));
        service.reloaded();
        assert_eq!(service.longest_gap(), Duration::MAX);
    }

    proptest! {
        /// Ticks at most half its patience apart, whatever their times: it is fed before it is over.
        #[test]
        fn the_watchdog_is_fed_in_time(patience in 1_000u64..120_000, gaps in proptest::collection::vec(1u64..1_000, 1..200)) {
            let patience = Duration::from_millis(patience);
            let (mut service, mut now) = (told(Standing::default(), 0, 0), Duration::ZERO);
            for gap in gaps {
                now += (patience / TICK_WITHIN).mul_f64(gap as f64 / 1_000.0);
                let last = service.fed.unwrap_or_default();
                if service.due(Standing::default(), Some(patience), now).watchdog {
                    service.fed = Some(now);
                }
                prop_assert!(now - last <= patience.mul_f64(0.76), "{:?} without a word", now - last);
            }
        }
    }
}
