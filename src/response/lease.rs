//! The line above which one replica's memory is slowed (`memory.high`), and for how long it may stay.
//!
//! A group held below what it uses, with nothing that could be taken back, stands still: the kernel stalls every allocation
//! and frees nothing. So a line is only ever lent.
//!
//! A group gets on when its usage falls, when nobody in it is held up, or when it works all the same: it burns processor time, and
//! is at a standstill for less than half of the time by its own `memory.pressure`. The kernel's count of "slowed" alone would not
//! tell a program that streams files at its line from one that stands still there. Where pressure is not accounted nobody is
//! taken to work; and one that stands still by it is held up, whatever is counted.
//!
//! States: *refused*, or *granted* a small step below present use → *kept*, or *lowered* by another step, while usage falls
//! or nobody is held up → *ended*: after [`WITHOUT_PROGRESS`] in which somebody was held up and usage did not fall, at once
//! when nothing is left that could be taken back, when others have changed the line, or when it could not be set. What is
//! ended so is not granted again for a while ([`BARRED`]). Whoever holds the line puts it back: on release, at the end, and
//! through the undo log after a crash.

use std::time::Duration;

use crate::host::clock::Moment;
use crate::host::memory_group::{Figures, Pace, whole_pages};
use crate::response::candidate::{Grasp, Held};
use crate::response::words;

/// So long may somebody be held up with usage not falling.
pub const WITHOUT_PROGRESS: Duration = Duration::from_secs(10);
/// A replica whose lease has ended for want of progress gets no other for so long.
pub const BARRED: Duration = Duration::from_secs(600);
/// This part of a group at least must be such that it can be taken back: file pages, or anonymous ones with swap to go to.
const MOVABLE: f64 = 0.1;
/// A line is at most this part of present use below it.
const STEP: f64 = 1.0 / 32.0;
/// Usage has fallen when it is lower than ever by this part.
const FALLEN: f64 = 1.0 / 256.0;
/// A line is lowered at most this often.
const LOWER_EVERY: Duration = Duration::from_secs(1);

/// A group that is stalled for this part of the time stands still, …
const STANDSTILL: f64 = 0.5;
/// … and one that burns less than this part of a processor does not work.
const WORKING: f64 = 0.01;
/// How a group gets on is judged over at least this long.
const STRETCH: Duration = Duration::from_millis(500);

/// What of it the kernel could take back, in bytes. Unknown swap is no swap.
pub fn movable(figures: &Figures, swap_room: Option<u64>) -> u64 {
    figures.cache.saturating_add(figures.anonymous.min(swap_room.unwrap_or(0)))
}

/// The first line for a replica, or why there is none.
pub fn first_line(grasp: &Grasp) -> Result<u64, String> {
    let Some(figures) = grasp.figures else { return Err("what its memory is made of cannot be read".to_owned()) };
    if let Some(line) = figures.line {
        return Err(format!("others hold it at {} already", words::bytes(line as f64)));
    }
    if is_stuck(&figures, grasp.swap_room) {
        let anonymous = words::percent(figures.anonymous as f64 / figures.current.max(1) as f64);
        let swap = words::bytes(grasp.swap_room.unwrap_or(0) as f64);
        return Err(format!("{anonymous} of it is anonymous and {swap} of swap is free: a line would only stall it"));
    }
    Ok(below(&figures, grasp.swap_room))
}

/// Nearly nothing of it can be taken back.
fn is_stuck(figures: &Figures, swap_room: Option<u64>) -> bool {
    (movable(figures, swap_room) as f64) < MOVABLE * figures.current as f64 || figures.current == 0
}

fn below(figures: &Figures, swap_room: Option<u64>) -> u64 {
    let step = (figures.current as f64 * STEP).min(movable(figures, swap_room) as f64 / 2.0);
    whole_pages(figures.current.saturating_sub(step as u64)).max(whole_pages(1 << 20))
}

/// A line that is lent, ours or one that others have set and that we only watch.
#[derive(Clone, Debug)]
pub struct Lease {
    pub line: u64,
    pub granted: Moment,
    set: Moment,
    /// The least that was used since, and how often anybody was held up so far.
    lowest: u64,
    slowed: u64,
    /// When it last got on.
    progress: Moment,
    /// Where the stretch began over which it is looked at how it gets on, and what the last whole one showed.
    stretch: Option<(Moment, Pace)>,
    gait: Gait,
}

/// How a group got on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gait {
    #[default]
    Unknown,
    Rests,
    Works,
    StandsStill,
}

impl Gait {
    fn over(from: Pace, to: Pace, lasted: Duration) -> Gait {
        let part = |to: Option<Duration>, from: Option<Duration>| Some(to?.checked_sub(from?)?.as_secs_f64() / lasted.as_secs_f64());
        match (part(to.stalled, from.stalled), part(to.ran, from.ran)) {
            (Some(stalled), _) if stalled >= STANDSTILL => Gait::StandsStill,
            (Some(_), Some(ran)) if ran >= WORKING => Gait::Works,
            (Some(_), Some(_)) => Gait::Rests,
            _ => Gait::Unknown,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    Keep,
    Lower(u64),
    /// Why it is over.
    End(String),
}

impl Lease {
    pub fn new(line: u64, figures: &Figures, now: Moment) -> Lease {
        Lease {
            line,
            granted: now,
            set: now,
            lowest: figures.current,
            slowed: figures.slowed,
            progress: now,
            stretch: None,
            gait: Gait::Unknown,
        }
    }

    /// One look at a line of ours. `wants_less`: memory is still over its line, so the replica may be lowered further.
    pub fn step(&mut self, grasp: &Grasp, wants_less: bool, now: Moment) -> Term {
        let Some(held) = grasp.held else { return Term::End("the line could not be set".to_owned()) };
        if let Some(end) = self.look(grasp.figures.as_ref(), grasp.pace, now) {
            return end;
        }
        let Some(figures) = grasp.figures else { return Term::Keep };
        let is_written = matches!(held, Held::Set(_));
        if is_written && figures.line != Some(self.line) {
            let found = figures.line.map_or_else(|| "no line".to_owned(), |line| words::bytes(line as f64));
            return Term::End(format!("others have changed the line: found {found}"));
        }
        if is_stuck(&figures, grasp.swap_room) && figures.current > self.line {
            return Term::End("nothing is left in it that could be taken back".to_owned());
        }
        if wants_less && is_written && figures.current <= self.line && now.since(self.set) >= LOWER_EVERY {
            let line = below(&figures, grasp.swap_room);
            if line < self.line {
                (self.line, self.set) = (line, now);
                return Term::Lower(line);
            }
        }
        Term::Keep
    }

    /// One look at a line that others have set. It may be meant as it is, and hold a group that lives on file cache at it for
    /// ever; it is over only when nothing could be taken back all that time, and somebody is held up.
    pub fn look_at_others(&mut self, figures: &Figures, pace: Pace, swap_room: Option<u64>, now: Moment) -> Option<Term> {
        if !is_stuck(figures, swap_room) {
            self.progress = now;
        }
        self.look(Some(figures), pace, now)
    }

    /// One look at any line: is it over for want of progress? A look without figures is no progress.
    pub fn look(&mut self, figures: Option<&Figures>, pace: Pace, now: Moment) -> Option<Term> {
        self.pace(pace, now);
        if let Some(figures) = figures {
            let has_fallen = (figures.current as f64) < self.lowest as f64 * (1.0 - FALLEN);
            let is_over = figures.slowed > self.slowed || figures.current > self.line;
            let is_held_up = match self.gait {
                Gait::Works => false,
                Gait::StandsStill => true,
                Gait::Rests | Gait::Unknown => is_over,
            };
            if has_fallen || !is_held_up {
                self.progress = now;
            }
            self.lowest = self.lowest.min(figures.current);
            self.slowed = self.slowed.max(figures.slowed);
        }
        let without = now.since(self.progress);
        (without >= WITHOUT_PROGRESS).then(|| {
            let line = words::bytes(self.line as f64);
            let stands = if self.gait == Gait::StandsStill { ", and all of it waits for memory" } else { "" };
            Term::End(format!("held at {line} for {} s without progress: usage does not fall{stands}", without.as_secs()))
        })
    }
}

impl Lease {
    /// A clock or an account that goes back begins a stretch anew.
    fn pace(&mut self, pace: Pace, now: Moment) {
        let Some((began, from)) = self.stretch else {
            self.stretch = Some((now, pace));
            return;
        };
        let lasted = now.since(began);
        if lasted >= STRETCH {
            self.gait = Gait::over(from, pace, lasted);
            self.stretch = Some((now, pace));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{MB, at};
    use proptest::prelude::*;

    fn figures(current: u64, anonymous: u64, cache: u64) -> Figures {
        Figures { current: current * MB, anonymous: anonymous * MB, cache: cache * MB, line: None, slowed: 0 }
    }

    fn grasp(figures: Figures, swap_megabytes: u64) -> Grasp {
        Grasp { figures: Some(figures), swap_room: Some(swap_megabytes * MB), ..Grasp::default() }
    }

    #[test]
    fn a_line_is_granted_only_where_something_can_be_taken_back() {
        let cases = [
            ("all anonymous, no swap", figures(500, 490, 10), 0, false),
            ("all anonymous, hardly any swap", figures(500, 490, 10), 20, false),
            ("all anonymous, swap", figures(500, 490, 10), 1000, true),
            ("a good part is cache", figures(500, 400, 100), 0, true),
            ("others hold it", Figures { line: Some(1), ..figures(500, 100, 400) }, 1000, false),
            ("nothing in it", figures(0, 0, 0), 1000, false),
        ];
        for (name, figures, swap, granted) in cases {
            let line = first_line(&grasp(figures, swap));
            assert_eq!(line.is_ok(), granted, "{name}: {line:?}");
            if let Ok(line) = line {
                assert!(line < figures.current && line as f64 > figures.current as f64 * 0.96, "{name}: {line}");
            }
        }
        assert!(first_line(&Grasp::default()).is_err(), "not to be read");
        let unknown = Grasp { swap_room: None, ..grasp(figures(500, 490, 10), 0) };
        assert!(first_line(&unknown).is_err(), "unknown swap is none");
    }

    #[test]
    fn it_is_lowered_while_usage_falls_and_ended_when_it_does_not() {
        let mut now = figures(500, 300, 200);
        let line = first_line(&grasp(now, 0)).unwrap();
        let mut lease = Lease::new(line, &now, at(0.0));
        now.line = Some(line);
        let held = |now: Figures| Grasp { held: Some(Held::Set(now.line.unwrap_or(0))), ..grasp(now, 0) };
        // It comes down to the line within two seconds, and is lowered.
        now.current = line;
        let Term::Lower(next) = lease.step(&held(now), true, at(2.0)) else { panic!("not lowered") };
        assert!(next < line);
        now.line = Some(next);
        // Now it is stuck above the second line: every second somebody is held up.
        for second in 3..12 {
            now.slowed += 1;
            assert_eq!(lease.step(&held(now), true, at(f64::from(second))), Term::Keep, "second {second}");
        }
        now.slowed += 1;
        assert!(matches!(lease.step(&held(now), true, at(12.0)), Term::End(_)));
    }

    #[test]
    fn it_ends_when_others_change_the_line_or_it_was_never_set() {
        let now = Figures { line: Some(4096), ..figures(500, 300, 200) };
        let mut lease = Lease::new(480 * MB, &now, at(0.0));
        let end = |term: Term| match term {
            Term::End(why) => why,
            other => panic!("{other:?}"),
        };
        let written = Grasp { held: Some(Held::Set(480 * MB)), ..grasp(now, 0) };
        assert!(end(lease.step(&written, true, at(1.0))).contains("others"));
        let writing = Grasp { held: Some(Held::Writing), ..grasp(now, 0) };
        assert_eq!(lease.step(&writing, true, at(1.0)), Term::Keep, "not before it is written");
        assert!(end(lease.step(&grasp(now, 0), true, at(1.0))).contains("could not be set"));
        let blind = Grasp { held: Some(Held::Set(480 * MB)), ..Grasp::default() };
        assert_eq!(lease.step(&blind, true, at(9.9)), Term::Keep);
        assert!(end(lease.step(&blind, true, at(10.0))).contains("progress"), "a look without figures is no progress");
    }

    #[test]
    fn a_line_of_others_is_theirs_unless_it_only_stalls() {
        for (name, anonymous, cache, swap, ended) in [
            ("the livelock", 495, 5, 0, true),
            ("cache that comes and goes at the line", 200, 300, 0, false),
            ("swap to go to", 495, 5, 1000, false),
        ] {
            let mut now = Figures { line: Some(400 * MB), ..figures(500, anonymous, cache) };
            let mut watch = Lease::new(400 * MB, &now, at(0.0));
            let over = (1..60_u32).find(|second| {
                now.slowed += 1;
                watch.look_at_others(&now, Pace::default(), Some(swap * MB), at(f64::from(*second))).is_some()
            });
            assert_eq!(over, ended.then_some(10), "{name}");
        }
    }

    #[test]
    fn one_that_works_through_at_its_line_keeps_it_and_one_that_stands_still_does_not() {
        // (name, processor time and standstill a second, counted as slowed, over its line) → when it ends
        let cases = [
            ("streams files at full speed", Some(0.6), Some(0.1), true, true, None),
            ("is slowed, and gets on", Some(0.5), Some(0.4), true, true, None),
            ("burns its time in the kernel, looking for memory", Some(0.9), Some(0.95), true, true, Some(10)),
            ("stands still and nothing is counted", Some(0.0), Some(0.99), false, false, Some(10)),
            ("rests under its line", Some(0.0), Some(0.0), false, false, None),
            ("sleeps, held over it", Some(0.0), Some(0.0), true, true, Some(10)),
            ("no pressure is accounted", Some(0.9), None, true, true, Some(10)),
            ("nor processor time", None, Some(0.1), true, true, Some(10)),
        ];
        for (name, ran, stalled, is_slowed, is_over, ended) in cases {
            let line = 480 * MB;
            let mut now = Figures { line: Some(line), ..figures(if is_over { 490 } else { 470 }, 300, 170) };
            let mut lease = Lease::new(line, &now, at(0.0));
            let over = (0..120_u32).find(|tick| {
                let seconds = f64::from(*tick) / 4.0;
                now.slowed += u64::from(is_slowed);
                let total = |share: Option<f64>| share.map(|share| Duration::from_secs_f64(share * seconds));
                let pace = Pace { ran: total(ran), stalled: total(stalled) };
                let grasp = Grasp { held: Some(Held::Set(line)), pace, ..grasp(now, 0) };
                matches!(lease.step(&grasp, false, at(seconds)), Term::End(_))
            });
            // What it shows is known half a second in.
            let over = over.map(|tick| tick / 4);
            assert_eq!(over, ended, "{name}");
        }
    }

    #[test]
    fn a_group_that_comes_to_a_standstill_after_it_worked_is_let_go_in_time() {
        let line = 480 * MB;
        let mut now = Figures { line: Some(line), ..figures(490, 300, 170) };
        let mut lease = Lease::new(line, &now, at(0.0));
        let over = (0..400_u32).find(|tick| {
            let seconds = f64::from(*tick) / 4.0;
            now.slowed += 1;
            // It works for twenty seconds; then another one comes into being under its name for a moment, and it stands still.
            let still = Duration::from_secs_f64((seconds - 20.0).max(0.0));
            let pace =
                if *tick == 90 { Pace::default() } else { Pace { ran: Some(Duration::from_secs_f64(seconds)), stalled: Some(still) } };
            let grasp = Grasp { held: Some(Held::Set(line)), pace, ..grasp(now, 0) };
            matches!(lease.step(&grasp, false, at(seconds)), Term::End(_))
        });
        assert!(over.is_some_and(|tick| (120..=124).contains(&tick)), "{over:?}");
    }

    proptest! {
        /// The livelock: whatever a group does, nobody is held up for longer than the ten seconds while usage does not fall.
        #[test]
        fn nobody_is_held_up_for_long(
            start in (1u64..4000, 0u64..4000, 0u64..4000),
            looks in prop::collection::vec((1u64..1000, 0u64..5000, 0u64..5000, 0u64..3, prop::bool::ANY), 1..200),
        ) {
            let first = figures(start.0, start.1.min(start.0), start.2.min(start.0));
            let Ok(line) = first_line(&grasp(first, start.2)) else { return Ok(()) };
            prop_assert!(line <= first.current.max(1 << 20));
            let mut lease = Lease::new(line, &first, at(0.0));
            let (mut ms, mut slowed, mut lowest) = (0, 0, first.current);
            let mut stuck_since = 0;
            for (gap, current, cache, more, readable) in looks {
                ms += gap;
                slowed += more;
                let current = current * MB;
                let seen = Figures { current, anonymous: current, cache: cache * MB, line: Some(lease.line), slowed };
                let is_free = more == 0 && current <= lease.line;
                if readable && (is_free || (current as f64) < lowest as f64 * (1.0 - FALLEN)) {
                    stuck_since = ms;
                }
                if readable {
                    lowest = lowest.min(current);
                }
                let grasp = Grasp { figures: readable.then_some(seen), held: Some(Held::Set(lease.line)), ..grasp(seen, 0) };
                let grasp = if readable { grasp } else { Grasp { figures: None, ..grasp } };
                match lease.step(&grasp, true, at(ms as f64 / 1000.0)) {
                    Term::End(_) => return Ok(()),
                    Term::Lower(line) => prop_assert!(line + 65_536 >= current - current / 32 || line == 1 << 20),
                    Term::Keep => {}
                }
                // What was never seen to be slowed while it could not be read may be found later.
                prop_assert!(ms - stuck_since < 10_000 + 1000, "stuck for {} ms", ms - stuck_since);
            }
        }
    }
}
