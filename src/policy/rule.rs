//! From a rule as set to the lines of one tick.

use std::time::Duration;

use crate::config::settings::{self, Rule, Worker};
use crate::policy::Verdict;
use crate::policy::hysteresis::Lines;
use crate::policy::leak::{Bound, Line};

/// What a worker's own memory lines are as shares of its limit where the rule for memory says amounts: an amount that
/// was meant for the whole machine says nothing about one replica.
const WORKER_HIGH: f64 = 0.80;
const WORKER_LOW: f64 = 0.70;
/// A worker at this share of its limit is replaced: its last twelfth is for the replacement to finish its requests.
pub const WORKER_CRITICAL: f64 = 0.92;

/// The lines of `rule` on `limit`, in order. Shares and amounts can be mixed in a file that cannot know the limit, so
/// an order that comes out wrong is mended here: `low` to nine tenths of `high`, `critical` up to `high`.
///
/// `at_once`: a critical line is acted on without waiting (memory and disk fill; a busy processor sustains itself).
pub fn lines(rule: &Rule, limit: f64, at_once: bool) -> Lines {
    let high = rule.high.share_of(limit);
    let low = rule.low.share_of(limit);
    let critical = rule.critical.map(|line| line.share_of(limit).max(high));
    let low = if low < high { low } else { high * 0.9 };
    Lines { high, low, critical, at_once: critical.filter(|_| at_once), sustain: rule.sustain, critical_sustain: rule.sustain }
}

/// The memory limit one replica is held to, in bytes: the one that is set, or the one that would make
/// `recycle.memory` its critical line. `None`: the replica is not judged on its own.
pub fn worker_limit(worker: &Worker) -> Option<f64> {
    match (worker.limits.memory, worker.recycle.memory) {
        (Some(limit), _) => Some(limit as f64),
        (None, Some(recycle)) => Some(recycle as f64 / WORKER_CRITICAL),
        (None, None) => None,
    }
    .filter(|limit| *limit > 0.0)
}

/// The lines of one replica's memory. `recycle.memory` under the usual critical line becomes that line, and draws `high`
/// and `low` down with it where it would lie under them: a worker is asked before it is replaced. `recycle.memory` waits
/// for `recycle.sustain`, so that one peak replaces nobody; close under a hard limit nothing is waited for.
pub fn worker_lines(worker: &Worker, rule: &Rule, limit: f64) -> Lines {
    let share = |line: settings::Line, otherwise: f64| match line {
        settings::Line::Share(share) if share > 0.0 => share,
        _ => otherwise,
    };
    let (mut high, mut low) = (share(rule.high, WORKER_HIGH), share(rule.low, WORKER_LOW));
    let recycle = worker.recycle.memory.map_or(f64::INFINITY, |bytes| bytes as f64 / limit);
    let critical = recycle.min(WORKER_CRITICAL);
    if high >= critical {
        let ratio = low / high;
        high = critical * WORKER_HIGH / WORKER_CRITICAL;
        low = high * ratio;
    }
    if low >= high {
        low = high * 0.9;
    }
    // A soft line alone has nothing behind it that would hurt: it is always waited for.
    let at_once = worker.limits.memory.map(|_| WORKER_CRITICAL);
    Lines { high, low, critical: Some(critical), at_once, sustain: rule.sustain, critical_sustain: worker.recycle.sustain }
}

/// The lines a leak of one replica would reach: its own soft or hard limit, and its share of what is left under the line of
/// `memory`, the verdict on all: its worker's replicas leak alike. `bytes`: what it holds now.
pub fn leak_bounds(worker: &Worker, memory: &Verdict, bytes: u64, replicas: usize) -> [Option<Bound>; 2] {
    let own = match (worker.recycle.memory, worker.limits.memory) {
        (Some(recycle), _) => Some((Line::Recycle, recycle)),
        (None, limit) => limit.map(|limit| (Line::Limit, limit)),
    };
    let own = own.map(|(line, bytes)| Bound { line, at: bytes as f64, limit: bytes as f64 });
    let all = memory.used.zip(memory.limit).map(|(used, limit)| {
        let left = (memory.high * limit - used).max(0.0) / replicas.max(1) as f64;
        Bound { line: Line::Scope, at: bytes as f64 + left, limit }
    });
    [own, all]
}

/// Of the time that is left until it hurts, so much may be spent on making sure.
const PATIENCE: f64 = 0.1;

/// Seconds before it hurts in which nothing is left for making sure.
const SPARE: f64 = 1.0;

/// How long usage must stay over a line before the level follows: `sustain`, but never more than a tenth of the time
/// after which, at the present growth (shares of the limit per second), the line would be reached that is acted on at
/// once, less [`SPARE`]. 80 % of 512 MB leaves a second at 100 MB/s; four seconds of making sure would be four seconds too
/// late, and a worker that is asked to drop its caches needs that second itself.
pub fn patience(lines: &Lines, usage: f64, growth: f64) -> Duration {
    match lines.at_once {
        Some(hurts) if usage >= lines.high && growth > 0.0 => {
            let left = (hurts - usage).max(0.0) / growth - SPARE;
            Duration::try_from_secs_f64(left.max(0.0) * PATIENCE).map_or(lines.sustain, |left| left.min(lines.sustain))
        }
        _ => lines.sustain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Line;
    use crate::policy::leak;
    use crate::policy::tests::{rule, worker};

    #[test]
    fn lines_are_shares_of_the_limit() {
        let rule = Rule { high: Line::Amount(350e6), low: Line::Amount(300e6), critical: None, ..rule() };
        let lines = lines(&rule, 500e6, true);
        assert_eq!((lines.high, lines.low, lines.critical, lines.at_once), (0.7, 0.6, None, None));
    }

    #[test]
    fn the_wait_is_cut_short_only_where_there_is_no_time_for_it() {
        let lines = lines(&rule(), 512e6, true);
        let sustain = lines.sustain;
        let wait = |usage: f64, growth: f64| patience(&lines, usage, growth).as_millis();
        assert_eq!(wait(0.8, 0.0), sustain.as_millis());
        assert_eq!(wait(0.8, 0.001), sustain.as_millis(), "a minute away");
        assert_eq!(wait(0.8, 0.2), 0, "0.6 s away");
        assert_eq!(wait(0.8, 0.04), 200, "3 s away");
        assert_eq!(wait(0.6, 10.0), sustain.as_millis(), "not over the line");
        assert_eq!(wait(0.8, f64::NAN), sustain.as_millis());
        assert_eq!(patience(&Lines { at_once: None, ..lines }, 0.9, 1.0), sustain, "nothing that would hurt");
    }

    #[test]
    fn mixed_lines_are_put_in_order() {
        let rule = Rule { high: Line::Amount(350e6), low: Line::Share(0.7), critical: Some(Line::Amount(100e6)), ..rule() };
        let lines = lines(&rule, 3500e6, true);
        assert!((lines.high - 0.1).abs() < 1e-12 && (lines.low - 0.09).abs() < 1e-12, "{lines:?}");
        assert_eq!(lines.critical, Some(lines.high));
    }

    #[test]
    fn a_worker_is_asked_before_it_is_replaced() {
        let cases = [
            ("limit only", Some(400), None, 400.0, 0.8, 0.92),
            ("recycle above high", Some(400), Some(360), 400.0, 0.8, 0.9),
            ("recycle under high", Some(400), Some(300), 400.0, 0.75 * 0.8 / 0.92, 0.75),
            ("recycle only", None, Some(276), 300.0, 0.8, 0.92),
        ];
        for (name, limit, recycle, expected, high, critical) in cases {
            let mut worker = worker("web");
            worker.limits.memory = limit;
            worker.recycle.memory = recycle;
            let limit = worker_limit(&worker).unwrap();
            assert!((limit - expected).abs() < 1e-9, "{name}: {limit}");
            let lines = worker_lines(&worker, &rule(), limit);
            assert!((lines.high - high).abs() < 1e-9, "{name}: {lines:?}");
            assert!((lines.critical.unwrap() - critical).abs() < 1e-9, "{name}: {lines:?}");
            assert!(lines.low < lines.high && lines.high < critical + 1e-12, "{name}: {lines:?}");
        }
        assert_eq!(worker_limit(&worker("web")), None);
    }

    #[test]
    fn a_leak_would_reach_its_own_line_or_its_share_of_what_is_left() {
        let mut web = worker("web");
        let mut engine = crate::policy::Engine::new(&crate::policy::tests::settings(vec![]));
        let now = crate::policy::tests::at(0.0);
        let mut readings = crate::policy::tests::readings(now);
        readings.memory.unreclaimable = crate::sampling::readings::Reading::Known(600_000_000);
        let memory = engine.judge(&readings, now).remove(1);
        // 800 MB is the line, 200 MB are left, for two.
        let all = Some(Bound { line: leak::Line::Scope, at: 400e6, limit: 1e9 });
        let own = |line, bytes: u64| Some(Bound { line, at: bytes as f64, limit: bytes as f64 });
        assert_eq!(leak_bounds(&web, &memory, 300_000_000, 2), [None, all]);
        web.limits.memory = Some(500);
        assert_eq!(leak_bounds(&web, &memory, 300_000_000, 2), [own(leak::Line::Limit, 500), all]);
        web.recycle.memory = Some(450);
        assert_eq!(leak_bounds(&web, &memory, 300_000_000, 2), [own(leak::Line::Recycle, 450), all]);
        let full = Verdict { used: Some(900e6), ..memory };
        assert_eq!(leak_bounds(&web, &full, 300_000_000, 0)[1].map(|bound| bound.at), Some(300e6), "nothing is left");
    }
}
