//! Which child of a pre-fork master is to be replaced by it: asked to end, one at a time, and killed only at a hard limit. Pure; fed with
//! readings of each tick.
//!
//! ```text
//!            over `recycle.memory` for `recycle.sustain`, too old, leaking        gone, and another in its place
//!  watched ───────────────────────────────────────────────────────────▶ asked ──────────────────────────────────▶ (next, after `gap`)
//!     │ from 92 % of `limits.memory` on: asked at once                     │ not gone after `stop.within`, or at `limits.memory`: killed
//!     └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A child that is seen for the first time is watched from then on: how old it is by its start. Nobody is asked while the one before
//! is not gone or has nobody in its place, and not sooner than the gap after it; only a hard limit does not wait.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::settings::MemberRules;
use crate::host::clock::Moment;
use crate::policy::leak::{Bound, Line, Trend};
use crate::policy::rule::WORKER_CRITICAL;
use crate::sampling::members::MemberReading;

use super::words;

/// One child by its identity.
pub type Member = (i32, u64);

/// What is to be done about one child.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberDeed {
    pub member: Member,
    pub kill: bool,
    /// The label value of `plimsoll_worker_recycles_total{cause}`.
    pub cause: &'static str,
    pub memory: u64,
    pub reason: String,
}

/// What is known of the children of one replica.
#[derive(Debug, Default)]
pub struct Watched {
    members: BTreeMap<Member, Known>,
    /// Who was asked last, and how many there were then.
    asked: Option<Asked>,
    last: Option<Duration>,
}

#[derive(Debug)]
struct Known {
    trend: Trend,
    over_since: Option<Duration>,
    /// When it is too old, on the steady clock; drawn once.
    old_at: Option<Duration>,
}

#[derive(Debug)]
struct Asked {
    member: Member,
    count: usize,
    kill_at: Duration,
    killed: bool,
}

impl Watched {
    /// Takes in what was read and says what is to be done. `age` tells how long a child has lived; `stop_within` is how long
    /// it may take to end.
    pub fn judge(
        &mut self,
        rules: &MemberRules,
        stop_within: Duration,
        readings: &[MemberReading],
        age: impl Fn(Member) -> Duration,
        now: Moment,
    ) -> Vec<MemberDeed> {
        let is_there = |member: &Member| readings.iter().any(|reading| (reading.pid, reading.started) == *member);
        self.members.retain(|member, _| is_there(member));
        for reading in readings {
            let member = (reading.pid, reading.started);
            let known = self.members.entry(member).or_insert_with(|| Known {
                trend: Trend::default(),
                over_since: None,
                old_at: rules.lifetime.map(|lifetime| {
                    let less = lifetime.mul_f64(1.0 - rules.jitter.clamp(0.0, 1.0) * spread(member));
                    now.steady.saturating_sub(age(member)) + less
                }),
            });
            known.trend.feed(now, reading.resident);
            let is_over = rules.memory.is_some_and(|line| reading.memory > line);
            known.over_since = if is_over { known.over_since.or(Some(now.steady)) } else { None };
        }
        let mut deeds = self.at_the_limit(rules, stop_within, readings, now);
        deeds.extend(self.overdue(readings, now));
        if let Some(asked) = &self.asked
            && !is_there(&asked.member)
            && readings.len() >= asked.count
        {
            self.asked = None;
            self.last = Some(now.steady);
        }
        let is_free = self.asked.is_none() && self.last.is_none_or(|last| now.steady >= last + rules.gap);
        if is_free && let Some(deed) = self.due(rules, readings, now) {
            self.note_asked(deed.member, readings.len(), now.steady + stop_within);
            deeds.push(deed);
        }
        deeds
    }

    fn note_asked(&mut self, member: Member, count: usize, kill_at: Duration) {
        self.asked = Some(Asked { member, count, kill_at, killed: false });
    }

    /// A hard limit does not wait for anybody's turn.
    fn at_the_limit(&mut self, rules: &MemberRules, stop_within: Duration, readings: &[MemberReading], now: Moment) -> Vec<MemberDeed> {
        let Some(limit) = rules.limit else { return Vec::new() };
        let line = (limit as f64 * WORKER_CRITICAL) as u64;
        let mut deeds = Vec::new();
        for reading in readings.iter().filter(|reading| reading.memory >= line) {
            let member = (reading.pid, reading.started);
            let kill = reading.memory >= limit;
            let was_asked = self.asked.as_ref().is_some_and(|asked| asked.member == member && (asked.killed || !kill));
            if was_asked {
                continue;
            }
            if !kill || self.asked.is_none() {
                self.note_asked(member, readings.len(), now.steady + stop_within);
            }
            if let Some(asked) = self.asked.as_mut().filter(|asked| kill && asked.member == member) {
                asked.killed = true;
            }
            let reason = format!("it holds {}, limits.memory is {}", words::bytes(reading.memory as f64), words::bytes(limit as f64));
            deeds.push(MemberDeed { member, kill, cause: "memory", memory: reading.memory, reason });
        }
        deeds
    }

    /// Whoever was asked and does not go.
    fn overdue(&mut self, readings: &[MemberReading], now: Moment) -> Option<MemberDeed> {
        let asked = self.asked.as_mut().filter(|asked| !asked.killed && asked.kill_at <= now.steady)?;
        let reading = readings.iter().find(|reading| (reading.pid, reading.started) == asked.member)?;
        asked.killed = true;
        let reason = "it has not ended in the time it was given".to_owned();
        Some(MemberDeed { member: asked.member, kill: true, cause: "memory", memory: reading.memory, reason })
    }

    /// Who is to go next: over its line longest, leaking, oldest.
    fn due(&self, rules: &MemberRules, readings: &[MemberReading], now: Moment) -> Option<MemberDeed> {
        let known = || readings.iter().filter_map(|reading| Some((reading, self.members.get(&(reading.pid, reading.started))?)));
        let deed = |reading: &MemberReading, cause, reason| MemberDeed {
            member: (reading.pid, reading.started),
            kill: false,
            cause,
            memory: reading.memory,
            reason,
        };
        let over = known().filter_map(|(reading, known)| Some((reading, known.over_since?)));
        let longest = over.filter(|(_, since)| now.steady >= *since + rules.sustain).min_by_key(|(_, since)| *since);
        if let Some((reading, since)) = longest {
            let (memory, line) = (words::bytes(reading.memory as f64), words::bytes(rules.memory.unwrap_or(0) as f64));
            let seconds = now.steady.saturating_sub(since).as_secs();
            return Some(deed(reading, "memory", format!("it has held more than {line} for {seconds} s, now {memory}")));
        }
        let line = rules.memory.map(|bytes| (Line::Recycle, bytes)).or(rules.limit.map(|bytes| (Line::Limit, bytes)));
        let bounds = || line.map(|(line, bytes)| Bound { line, at: bytes as f64, limit: bytes as f64 });
        let leaks = known().filter(|_| rules.leak).filter_map(|(reading, known)| Some((reading, known.trend.leak(bounds())?)));
        if let Some((reading, leak)) = leaks.min_by_key(|(_, leak)| leak.left) {
            return Some(deed(reading, "leak", words::leak(&leak)));
        }
        let old = known().filter_map(|(reading, known)| Some((reading, known.old_at?))).filter(|(_, at)| *at <= now.steady);
        let (reading, _) = old.min_by_key(|(_, at)| *at)?;
        let lifetime = rules.lifetime.unwrap_or_default().as_secs();
        Some(deed(reading, "lifetime", format!("recycle.lifetime is {lifetime} s less jitter")))
    }
}

/// Between 0 and 1, the same for the same child (splitmix64).
fn spread((pid, started): Member) -> f64 {
    let mut z = started.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(pid.unsigned_abs()));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const MB: u64 = 1_000_000;

    fn at(seconds: f64) -> Moment {
        let steady = Duration::from_secs_f64(seconds + 10_000.0);
        Moment { steady, wall: SystemTime::UNIX_EPOCH + steady }
    }

    fn rules() -> MemberRules {
        MemberRules {
            limit: Some(400 * MB),
            memory: Some(300 * MB),
            sustain: Duration::from_secs(30),
            leak: false,
            lifetime: None,
            jitter: 0.0,
            gap: Duration::from_secs(5),
        }
    }

    fn child(pid: i32, memory: u64) -> MemberReading {
        MemberReading { pid, started: pid as u64, memory: memory * MB, resident: memory * MB }
    }

    fn judge(watched: &mut Watched, rules: &MemberRules, readings: &[MemberReading], second: f64) -> Vec<(i32, bool, &'static str)> {
        let deeds = watched.judge(rules, Duration::from_secs(10), readings, |_| Duration::ZERO, at(second));
        deeds.iter().map(|deed| (deed.member.0, deed.kill, deed.cause)).collect()
    }

    #[test]
    fn one_child_after_the_other_once_another_is_in_its_place_and_the_gap_is_over() {
        let (mut watched, rules) = (Watched::default(), rules());
        assert_eq!(judge(&mut watched, &rules, &[child(1, 320), child(2, 320)], 0.0), []);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 320), child(2, 320)], 29.0), []);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 320), child(2, 320)], 30.0), [(1, false, "memory")]);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 320), child(2, 320)], 31.0), [], "it is given its time");
        assert_eq!(judge(&mut watched, &rules, &[child(2, 320)], 32.0), [], "nobody is in its place");
        assert_eq!(judge(&mut watched, &rules, &[child(2, 320), child(3, 50)], 33.0), [], "the gap");
        assert_eq!(judge(&mut watched, &rules, &[child(2, 320), child(3, 50)], 38.0), [(2, false, "memory")]);
    }

    #[test]
    fn a_spike_asks_nobody_and_a_hard_limit_acts_at_once() {
        let (mut watched, rules) = (Watched::default(), rules());
        for second in 0..5 {
            assert_eq!(judge(&mut watched, &rules, &[child(1, 360)], f64::from(second)), []);
        }
        for second in 5..100 {
            assert_eq!(judge(&mut watched, &rules, &[child(1, 200)], f64::from(second)), []);
        }
        assert_eq!(judge(&mut watched, &rules, &[child(1, 370)], 100.0), [(1, false, "memory")]);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 410)], 100.5), [(1, true, "memory")]);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 410)], 101.0), [], "it is dying");
    }

    #[test]
    fn who_does_not_end_in_time_is_killed() {
        let mut watched = Watched::default();
        let rules = MemberRules { lifetime: Some(Duration::from_secs(60)), ..rules() };
        assert_eq!(judge(&mut watched, &rules, &[child(1, 10)], 0.0), []);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 10)], 60.0), [(1, false, "lifetime")]);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 10)], 69.0), []);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 10)], 70.0), [(1, true, "memory")]);
        assert_eq!(judge(&mut watched, &rules, &[child(1, 10)], 71.0), []);
    }

    proptest! {
        /// Whatever the children hold: nobody is asked under his lines, and no two are out at once below the hard limit.
        #[test]
        fn nobody_is_asked_without_a_reason(steps in proptest::collection::vec(proptest::collection::vec(0_u64..299, 1..5), 1..100)) {
            let mut watched = Watched::default();
            for (second, memories) in steps.iter().enumerate() {
                let readings: Vec<MemberReading> = memories.iter().zip(1..).map(|(memory, pid)| child(pid, *memory)).collect();
                prop_assert_eq!(judge(&mut watched, &rules(), &readings, second as f64), []);
            }
        }
    }
}
