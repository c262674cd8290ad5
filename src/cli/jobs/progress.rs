//! How far a run is: a bar that is written over on a terminal, plain lines now and then elsewhere. All of it on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::cli::render::{duration, size};
use crate::host::clock::Moment;
use crate::jobs::errand::MOST_ITEMS;
use crate::jobs::patience::Patience;
use crate::jobs::plan::{Item, Totals};
use crate::jobs::run::{Foreman, Report};

/// Cells of the bar.
const CELLS: usize = 24;
/// A terminal is written to so often at most.
const REDRAW: Duration = Duration::from_millis(100);
/// What is no terminal gets a line so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Bar {
    is_terminal: bool,
    colour: bool,
    shown: Option<Moment>,
    is_drawn: bool,
}

impl Bar {
    pub fn new(colour: bool) -> Bar {
        Bar { is_terminal: std::io::stderr().is_terminal(), colour, shown: None, is_drawn: false }
    }

    pub fn show(&mut self, done: u64, of: u64, bytes: u64, seconds_left: Option<f64>, now: Moment) {
        let text = line(done, of, bytes, seconds_left, self.is_terminal);
        self.say(&text, now);
    }

    /// Anything else that is going on.
    pub fn say(&mut self, text: &str, now: Moment) {
        let gap = if self.is_terminal { REDRAW } else { LINE_EVERY };
        if self.shown.is_some_and(|shown| now.since(shown) < gap) {
            return;
        }
        // What goes on for a moment only needs no line of its own.
        if !self.is_terminal && self.shown.is_none() {
            self.shown = Some(now);
            return;
        }
        self.shown = Some(now);
        let mut out = std::io::stderr();
        // If standard error is gone, nobody is there to see it.
        let _ = match (self.is_terminal, self.colour) {
            (true, true) => write!(out, "\r\x1b[K\x1b[2m{text}\x1b[0m").and_then(|()| out.flush()),
            (true, false) => write!(out, "\r\x1b[K{text}").and_then(|()| out.flush()),
            (false, _) => writeln!(out, "plimsoll: {text}"),
        };
        self.is_drawn = self.is_terminal;
    }

    /// Takes it off the screen.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// `[██████······] 120 of 480, 1.20 GiB, 3m 20s left`
fn line(done: u64, of: u64, bytes: u64, seconds_left: Option<f64>, with_bar: bool) -> String {
    if of == 0 {
        return "looking".to_owned();
    }
    let share = done.min(of) as f64 / of as f64;
    // Of a bar's two dozen cells.
    let full = (share * CELLS as f64) as usize;
    let bar = if with_bar { format!("[{}{}] ", "█".repeat(full), "·".repeat(CELLS - full)) } else { String::new() };
    let left = seconds_left.filter(|_| done < of).map_or(String::new(), |left| format!(", {} left", duration(left)));
    format!("{bar}{done} of {of}, {}{left}", size(bytes as f64))
}

/// Follows a run in this very process.
pub struct Terminal {
    patience: Patience,
    bar: Bar,
    items: Vec<Item>,
    totals: Option<Totals>,
}

impl Terminal {
    pub fn new(patience: Patience, bar: Bar) -> Terminal {
        Terminal { patience, bar, items: Vec::new(), totals: None }
    }

    /// The plan as it was told, and whether the run had no time left.
    pub fn end(mut self) -> (Vec<Item>, Option<Totals>, bool) {
        self.bar.clear();
        let was_late = self.patience.is_late();
        (self.items, self.totals, was_late)
    }
}

impl Foreman for Terminal {
    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn tell(&mut self, report: Report) {
        match report {
            Report::Planned(item) if self.items.len() < MOST_ITEMS => self.items.push(item),
            Report::Planned(_) => {}
            Report::Plan(totals) => self.totals = Some(totals),
            Report::Progress { done, of, bytes, seconds_left } => self.bar.show(done, of, bytes, seconds_left, Moment::now()),
            Report::Warning { text } => {
                self.bar.clear();
                crate::cli::complain(&text);
            }
            // What a daemon would log, for whoever keeps what we print; a person sees the outcome.
            Report::Event { event, fields } if !self.bar.is_terminal => {
                crate::cli::complain(&format!("{event} {}", serde_json::Value::Object(fields)));
            }
            Report::Event { .. } => {}
        }
    }

    fn wait(&mut self, time: Duration) -> bool {
        if time >= Duration::from_secs(2) {
            self.bar.say(&format!("waits {}", duration(time.as_secs_f64())), Moment::now());
        }
        self.patience.wait(time)
    }

    fn at_safe_point(&mut self) -> bool {
        !self.patience.is_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_it_is() {
        assert_eq!(line(0, 0, 0, None, true), "looking");
        assert_eq!(line(120, 480, 1 << 30, Some(200.0), false), "120 of 480, 1.00 GiB, 3m 20s left");
        assert_eq!(line(12, 24, 0, None, true), format!("[{}{}] 12 of 24, 0 B", "█".repeat(12), "·".repeat(12)));
        assert_eq!(line(30, 24, 0, Some(9.0), true), format!("[{}] 30 of 24, 0 B", "█".repeat(24)));
    }
}
