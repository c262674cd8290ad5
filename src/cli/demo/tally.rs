//! What was measured, and what it comes to. Pure.

use serde::Serialize;

use crate::response::ladder::TOLERANCE;
use crate::snapshot::Snapshot;

/// The two halves of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Without,
    With,
}

impl Part {
    pub fn word(self) -> &'static str {
        match self {
            Part::Without => "without Plimsoll",
            Part::With => "with Plimsoll",
        }
    }
}

/// One resource at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// Cores or bytes.
    pub used: f64,
    pub limit: f64,
    /// Shares of the limit.
    pub share: f64,
    pub line: f64,
}

impl Use {
    /// Over the line by more than the two points that a throttle, which aims at the line itself, is allowed.
    pub fn is_over(&self) -> bool {
        self.share > self.line + TOLERANCE
    }
}

/// What the daemon read in one tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since the demo began.
    pub at: f64,
    pub part: Part,
    pub cpu: Option<Use>,
    pub memory: Option<Use>,
}

/// One of the resources of a sample.
pub type Pick = fn(&Sample) -> Option<Use>;

impl Sample {
    /// `at` is when the snapshot was taken, in seconds since the demo began.
    pub fn of(snapshot: &Snapshot, part: Part, at: f64) -> Sample {
        let of = |name: &str| {
            let state = snapshot.policy.resources.iter().find(|state| state.resource == name)?;
            Some(Use { used: state.used?, limit: state.limit?, share: state.utilization?, line: state.high })
        };
        Sample { at, part, cpu: of("cpu"), memory: of("memory") }
    }
}

/// The line of each resource, as a share of its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lines {
    pub cpu: f64,
    pub memory: f64,
}

impl Lines {
    pub fn of(samples: &[Sample]) -> Lines {
        let last = |pick: Pick| samples.iter().rev().find_map(pick).map_or(0.0, |seen| seen.line);
        Lines { cpu: last(|sample| sample.cpu), memory: last(|sample| sample.memory) }
    }
}

/// What one resource did in one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Seconds over the line, as [`Use::is_over`] sees it.
    pub over_seconds: f64,
    /// Of the measured time.
    pub over_share: f64,
    /// The largest share of the limit.
    pub peak: f64,
}

impl Figures {
    /// Less of the time over the line than `before`.
    pub fn improves_on(&self, before: &Figures) -> bool {
        self.over_share < before.over_share
    }
}

/// Both resources in one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Measured seconds.
    pub seconds: f64,
    pub cpu: Figures,
    pub memory: Figures,
}

impl Summary {
    /// The time before a sample counts as what the sample says, from the sample before it on.
    pub fn of(samples: &[Sample], part: Part) -> Summary {
        let own = samples.iter().filter(|sample| sample.part == part);
        let mut summary = Summary::default();
        let mut before = None;
        for sample in own {
            let passed = before.replace(sample.at).map_or(0.0, |before: f64| (sample.at - before).max(0.0));
            summary.seconds += passed;
            summary.cpu.add(sample.cpu, passed);
            summary.memory.add(sample.memory, passed);
        }
        for figures in [&mut summary.cpu, &mut summary.memory] {
            figures.over_share = if summary.seconds > 0.0 { figures.over_seconds / summary.seconds } else { 0.0 };
        }
        summary
    }
}

impl Figures {
    fn add(&mut self, seen: Option<Use>, passed: f64) {
        let Some(seen) = seen else { return };
        self.peak = self.peak.max(seen.share);
        if seen.is_over() {
            self.over_seconds += passed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, part: Part, cpu: Option<f64>) -> Sample {
        let cpu = cpu.map(|share| Use { used: share, limit: 1.0, share, line: 0.8 });
        Sample { at, part, cpu, memory: None }
    }

    #[test]
    fn time_over_the_line_is_counted_part_by_part() {
        let samples = [
            sample(0.0, Part::Without, Some(0.0)),
            sample(1.0, Part::Without, Some(2.0)),
            sample(4.0, Part::Without, Some(1.5)),
            sample(5.0, Part::Without, None),
            // The time between the parts belongs to neither.
            sample(9.0, Part::With, Some(1.2)),
            sample(10.0, Part::With, Some(0.9)),
            sample(11.0, Part::With, Some(0.815)),
            sample(14.0, Part::With, Some(0.8)),
        ];
        let without = Summary::of(&samples, Part::Without);
        assert_eq!((without.seconds, without.cpu), (5.0, Figures { over_seconds: 4.0, over_share: 0.8, peak: 2.0 }));
        let with = Summary::of(&samples, Part::With);
        assert_eq!((with.seconds, with.cpu), (5.0, Figures { over_seconds: 1.0, over_share: 0.2, peak: 1.2 }));
        assert!(with.cpu.improves_on(&without.cpu) && !without.cpu.improves_on(&with.cpu));
        assert!(!with.memory.improves_on(&without.memory), "what was never over cannot have been held");
        assert_eq!(Summary::of(&[], Part::With), Summary::default());
    }
}
