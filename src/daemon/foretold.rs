//! Which forecasts are news: owns what was told of each resource, and touches only its arguments, time among them.
//! It never forecasts, and tells nobody itself.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::policy::{Resource, Verdict};

/// What is full within this long is worth a line in the log.
const SOON: Duration = Duration::from_secs(300);
/// A forecast that has not been made for this long is over.
const OVER: Duration = Duration::from_secs(60);
/// It is told once it has been made for this long, or for this part of the time that is left: a program that loads for a few
/// seconds fills too.
const SURE: Duration = Duration::from_secs(10);
const SURE_PART: u32 = 4;

#[derive(Debug, Default)]
pub struct Foretold(BTreeMap<Resource, Told>);

#[derive(Clone, Copy, Debug)]
struct Told {
    since: Moment,
    last: Moment,
    told: bool,
}

impl Foretold {
    /// True when this verdict's forecast is to be told now: once, and again after it was over.
    pub fn is_news(&mut self, verdict: &Verdict, now: Moment) -> bool {
        let Some(left) = verdict.exhaustion.filter(|left| *left < SOON) else {
            if self.0.get(&verdict.resource).is_some_and(|told| now.since(told.last) >= OVER || !told.told) {
                self.0.remove(&verdict.resource);
            }
            return false;
        };
        let told = self.0.entry(verdict.resource.clone()).or_insert(Told { since: now, last: now, told: false });
        told.last = now;
        let is_news = !told.told && now.since(told.since) >= SURE.min(left / SURE_PART);
        told.told |= is_news;
        is_news
    }

    /// Forgets what is not judged any more.
    pub fn keep(&mut self, verdicts: &[Verdict]) {
        if !self.0.is_empty() {
            self.0.retain(|resource, _| verdicts.iter().any(|verdict| verdict.resource == *resource));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{at, readings, settings};

    #[test]
    fn a_forecast_is_told_once_it_lasts_and_again_after_it_was_over() {
        let mut engine = crate::policy::Engine::new(&settings(vec![]));
        let memory = |left: Option<u64>, engine: &mut crate::policy::Engine| Verdict {
            exhaustion: left.map(Duration::from_secs),
            ..engine.judge(&readings(at(0.0)), at(0.0)).into_iter().find(|verdict| verdict.resource == Resource::Memory).unwrap()
        };
        let mut foretold = Foretold::default();
        // (second, seconds foretold, whether that is told)
        for (second, left, told) in [
            (0, Some(20), false),
            (3, None, false),
            (4, Some(40), false),
            (11, Some(33), false),
            (13, Some(31), true),
            (16, Some(28), false),
            (20, None, false),
            (30, Some(25), false),
            (95, None, false),
            (100, Some(5), false),
            (102, Some(3), true),
            (200, Some(900), false),
        ] {
            let verdict = memory(left, &mut engine);
            assert_eq!(foretold.is_news(&verdict, at(f64::from(second))), told, "after {second} s");
        }
        foretold.keep(&[]);
        assert!(foretold.0.is_empty());
    }
}
