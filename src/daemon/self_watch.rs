//! Whether the daemon itself costs too much: owns its budget and what is given up for it. Touches only its arguments, time
//! among them. Must not give anything up itself, and knows no kernel.
//!
//! States: *whole* → without exact memory shares → without details of replicas → without records. One step down when a
//! minute was over the budget, or at the third late tick of a minute; one step up after [`CALM`] minutes within it. What
//! decides is never given up: every tick still reads, judges and acts.

use std::time::Duration;

/// The budget is looked at over this long.
const WINDOW: Duration = Duration::from_secs(60);
/// Minutes within the budget before something is taken up again.
const CALM: u32 = 2;
/// Of one processor, and more for each replica.
const CPU: f64 = 0.01;
const CPU_EACH: f64 = 0.000_05;
/// Bytes of its own memory (what it shares with files does not count), and more for each replica.
const MEMORY: u64 = 8 << 20;
const MEMORY_EACH: u64 = 16 << 10;
/// A tick that begins later than this many gaps is late, and one that begins less late than [`EXCUSED`] never is.
const LATE: u32 = 3;
const EXCUSED: Duration = Duration::from_millis(200);
/// So many late ticks within one window are too many.
const LATE_TICKS: u32 = 3;

/// What is given up, the first first.
pub const WORK: [&str; 3] = ["exact memory shares", "threads and descriptors of replicas", "samples in the history"];

/// What one tick found of the daemon itself.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub now: Duration,
    /// How long after it was due the tick began, and the gap it was planned with.
    pub late: Duration,
    pub gap: Duration,
    /// Its own memory in bytes, its CPU time so far in seconds.
    pub memory: Option<u64>,
    pub cpu: Option<f64>,
    pub replicas: usize,
    /// It holds somebody back, which costs what it costs.
    pub holding: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// This is given up, for this reason.
    Shed(&'static str, String),
    /// This is taken up again.
    Restored(&'static str),
}

/// The daemon's own standing.
#[derive(Debug, Default)]
pub struct SelfWatch {
    given_up: usize,
    since: Option<Window>,
    calm: u32,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    cpu: Option<f64>,
    late: u32,
    held: bool,
}

impl SelfWatch {
    /// How much of [`WORK`] is given up.
    pub fn given_up(&self) -> usize {
        self.given_up
    }

    pub fn does_shares(&self) -> bool {
        self.given_up < 1
    }

    pub fn does_details(&self) -> bool {
        self.given_up < 2
    }

    pub fn does_samples(&self) -> bool {
        self.given_up < 3
    }

    /// Takes in one tick.
    pub fn look(&mut self, look: &Look) -> Option<Change> {
        let window = self.since.get_or_insert(Window { began: look.now, cpu: look.cpu, late: 0, held: false });
        window.held |= look.holding;
        let is_late = look.late > EXCUSED && look.late > look.gap * LATE;
        window.late += u32::from(is_late);
        let lasted = look.now.saturating_sub(window.began);
        let trouble = if window.late >= LATE_TICKS {
            Some(format!("{LATE_TICKS} ticks within {} s began late, the last by {} ms", lasted.as_secs(), look.late.as_millis()))
        } else if lasted < WINDOW {
            return None;
        } else {
            over_budget(window, lasted, look)
        };
        self.since = None;
        match trouble {
            Some(why) => {
                self.calm = 0;
                let work = WORK.get(self.given_up)?;
                self.given_up += 1;
                Some(Change::Shed(work, why))
            }
            None => {
                self.calm += 1;
                if self.calm < CALM || self.given_up == 0 {
                    return None;
                }
                self.calm = 0;
                self.given_up -= 1;
                WORK.get(self.given_up).map(|work| Change::Restored(work))
            }
        }
    }
}

/// What is over its budget at the end of a window.
fn over_budget(window: &Window, lasted: Duration, look: &Look) -> Option<String> {
    let replicas = look.replicas as u64;
    let most = MEMORY.saturating_add(MEMORY_EACH.saturating_mul(replicas));
    if let Some(memory) = look.memory.filter(|memory| *memory > most) {
        return Some(format!("it uses {} KiB of memory, its budget is {} KiB", memory >> 10, most >> 10));
    }
    let used = window.cpu.zip(look.cpu).map(|(before, now)| (now - before) / lasted.as_secs_f64());
    let most = CPU + CPU_EACH * replicas as f64;
    let used = used.filter(|used| *used > most && !window.held)?;
    Some(format!("it used {:.1} % of a processor over {} s, its budget is {:.1} %", used * 100.0, lasted.as_secs(), most * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quiet(second: u64) -> Look {
        Look {
            now: Duration::from_secs(second),
            late: Duration::ZERO,
            gap: Duration::from_secs(1),
            memory: Some(2 << 20),
            cpu: Some(second as f64 * 0.001),
            replicas: 10,
            holding: false,
        }
    }

    /// One look a second from `from` on; the changes and when they came.
    fn walk(watch: &mut SelfWatch, from: u64, seconds: u64, with: impl Fn(&mut Look)) -> Vec<(u64, Change)> {
        let look = |second| {
            let mut look = quiet(second);
            with(&mut look);
            look
        };
        (from..from + seconds).filter_map(|second| watch.look(&look(second)).map(|change| (second - from, change))).collect()
    }

    fn shed(changes: &[(u64, Change)]) -> Vec<&'static str> {
        changes.iter().map(|(_, change)| if let Change::Shed(work, _) = change { *work } else { "restored" }).collect()
    }

    #[test]
    fn what_costs_too_much_gives_up_one_thing_after_the_other_and_takes_them_up_again() {
        for (name, with) in [
            ("memory", (|look: &mut Look| look.memory = Some(9 << 20)) as fn(&mut Look)),
            ("processor", |look| look.cpu = look.cpu.map(|cpu| cpu * 20.0)),
            ("lateness", |look| look.late = Duration::from_secs(4)),
        ] {
            let mut watch = SelfWatch::default();
            let changes = walk(&mut watch, 0, 200, with);
            assert_eq!(shed(&changes), WORK, "{name}: {changes:?}");
            assert!(!watch.does_shares() && !watch.does_details() && !watch.does_samples());
            let back = walk(&mut watch, 1000, 600, |_| {});
            assert_eq!(
                back.iter().map(|(_, change)| change.clone()).collect::<Vec<_>>(),
                WORK.map(Change::Restored).into_iter().rev().collect::<Vec<_>>()
            );
            assert_eq!(watch.given_up(), 0);
        }
    }

    #[test]
    fn what_has_a_good_reason_is_no_trouble() {
        let mut watch = SelfWatch::default();
        assert_eq!(walk(&mut watch, 0, 600, |_| {}), []);
        assert_eq!(walk(&mut watch, 600, 600, |look| (look.cpu, look.holding) = (look.cpu.map(|cpu| cpu * 50.0), true)), []);
        // Two late ticks in a minute, and many that are only a little late.
        let late =
            |look: &mut Look| look.late = if look.now.as_secs() % 60 < 2 { Duration::from_secs(9) } else { Duration::from_millis(150) };
        assert_eq!(walk(&mut watch, 1200, 600, late), []);
        assert_eq!(walk(&mut watch, 1800, 600, |look| (look.memory, look.cpu) = (None, None)), []);
        assert_eq!(walk(&mut watch, 2400, 600, |look| (look.memory, look.replicas) = (Some(20 << 20), 1000)), []);
    }

    proptest! {
        #[test]
        fn whatever_is_seen_there_is_only_so_much_to_give_up(looks in proptest::collection::vec((0u64..100, 0u64..5000, any::<Option<u64>>(), any::<bool>()), 0..200)) {
            let mut watch = SelfWatch::default();
            let mut now = 0;
            for (gap, late, memory, holding) in looks {
                now += gap;
                let late = Duration::from_millis(late);
                let before = watch.given_up();
                let change = watch.look(&Look { late, memory, holding, ..quiet(now) });
                let by = watch.given_up() as i64 - before as i64;
                prop_assert!(watch.given_up() <= WORK.len() && by.abs() <= 1);
                prop_assert_eq!(change.is_some(), by != 0);
            }
        }
    }
}
