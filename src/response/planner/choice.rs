//! What one rung would do about one verdict now: the deed with its reason, or why it can do nothing, or not yet.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Course, Plan, Planner, Scene};
use crate::config::settings::{Rung, ThrottleMethod};
use crate::policy::verdict::Basis;
use crate::policy::{Resource, Verdict};
use crate::response::action::{Cause, Deed, Line, Portion, Share};
use crate::response::candidate::{Candidate, LineKind, ReclaimBy};
use crate::response::cooldown::PAUSE;
use crate::response::hold;
use crate::response::ladder;
use crate::response::lease;
use crate::response::refusal::Reason;
use crate::response::victim::{self, Yield};
use crate::response::words;
use crate::sampling::readings::SlotId;

/// A replica slowed for memory keeps this part of what it used, but never less than [`SLOWED_CORES`].
const SLOWED: f64 = 0.25;
const SLOWED_CORES: f64 = 0.05;
/// Less than this part of the limit is not worth asking the kernel for.
const WORTH_ASKING: f64 = 0.01;
/// A successor is spared this long when the limit is all but reached.
const PRESSED_PAUSE: Duration = Duration::from_secs(3);
/// How many places of a ranking are given in a reason.
const SHOWN: usize = 3;

/// What a rung would do now.
pub(super) enum Step {
    Do {
        deed: Deed,
        reason: String,
    },
    /// It can do nothing here: the next one is looked at.
    Pass(Reason, String),
    /// It could, but not yet: the harder ones wait with it.
    Wait(Reason, String),
}

impl Planner {
    /// What `rung` would do about `verdict` now.
    pub(super) fn consider(&self, rung: &Rung, verdict: &Verdict, course: &Course, scene: &Scene, plan: &Plan) -> Step {
        let has_no_effect = |what: &str| Step::Pass(Reason::Unavailable, format!("does nothing for {what}"));
        if verdict.early && rung.is_drastic() {
            return Step::Wait(Reason::InFlight, "foretold only; the line has not been passed for as long as sustain asks".to_owned());
        }
        match (rung, &verdict.resource) {
            (Rung::Notify, _) => Step::Do { deed: Deed::Notify, reason: "told".to_owned() },
            // Whether it runs already, whoever runs it knows.
            (Rung::Job(name), Resource::Disk(_)) => {
                let over = verdict.used.zip(verdict.limit).map(|(used, limit)| (used - verdict.low * limit).max(0.0));
                let reason = over.map_or("usage cannot be read".to_owned(), |bytes| format!("{} to be freed", words::bytes(bytes)));
                Step::Do { deed: Deed::Job(name.clone()), reason }
            }
            (Rung::Job(_), _) => has_no_effect("anything but a disk"),
            (_, Resource::Disk(_)) => has_no_effect("a disk"),
            (Rung::Shed, Resource::Cpu) => has_no_effect("the cpu"),
            (Rung::Reclaim, Resource::Cpu) => has_no_effect("the cpu"),
            (Rung::Reclaim, Resource::Worker(_)) => has_no_effect("one replica"),
            (Rung::Reclaim, Resource::Memory) => take_back(verdict, scene),
            (Rung::Shed, Resource::Memory) => shed(scene, None),
            (Rung::Shed, Resource::Worker(slot)) => shed(scene, Some(*slot)),
            (Rung::Throttle, Resource::Cpu) => self.consider_budget(verdict, scene),
            (Rung::Throttle, Resource::Memory) => slow(course, scene),
            (Rung::Throttle, Resource::Worker(_)) => has_no_effect("one replica"),
            (Rung::Recycle, Resource::Worker(slot)) => self.consider_own_recycle(*slot, verdict, scene),
            (Rung::Kill, Resource::Worker(slot)) => self.consider_own_kill(*slot, verdict, course, scene),
            (Rung::Recycle | Rung::Kill, Resource::Cpu | Resource::Memory) => self.consider_victim(rung, verdict, course, scene, plan),
        }
    }

    fn consider_budget(&self, verdict: &Verdict, scene: &Scene) -> Step {
        let Some((others, ours)) = self.hold.split(verdict, scene.candidates) else {
            return Step::Pass(Reason::Unavailable, "usage cannot be read".to_owned());
        };
        let Some(room) = self.hold.room(verdict, scene.candidates) else {
            return Step::Pass(Reason::Unavailable, "the limit cannot be read".to_owned());
        };
        let holdable = scene.candidates.iter().filter(|candidate| hold::is_throttleable(candidate)).count();
        if holdable == 0 {
            let running = scene.candidates.iter().filter(|candidate| candidate.running).count();
            return match running {
                0 => Step::Pass(Reason::NoWorker, "no worker runs".to_owned()),
                _ => Step::Pass(Reason::Unavailable, format!("none of {running} running replicas can be throttled")),
            };
        }
        let figures = format!(
            "others use {}, the workers {} of a budget of {}",
            words::cores(others),
            words::cores(ours),
            words::cores(room.budget())
        );
        let is_outside = room.high - others < room.budget();
        if self.hold.engaged().is_some() {
            let reason = if is_outside { Reason::OutsideUsage } else { Reason::NoRung };
            return Step::Pass(reason, format!("held already: {figures}"));
        }
        if ours <= room.budget() && is_outside {
            return Step::Pass(Reason::OutsideUsage, figures);
        }
        match self.hold.shares(verdict, scene.candidates) {
            Some(shares) => Step::Do { deed: Deed::Throttle(shares), reason: figures },
            None => Step::Pass(Reason::Unavailable, "usage cannot be read".to_owned()),
        }
    }

    fn consider_own_recycle(&self, slot: SlotId, verdict: &Verdict, scene: &Scene) -> Step {
        let Some(candidate) = scene.candidate(slot) else { return Step::Pass(Reason::NoWorker, "it has ended".to_owned()) };
        if let Some(why) = victim::spared(&candidate.settings, &Rung::Recycle) {
            return Step::Pass(Reason::Protected, format!("{} {why}", candidate.name()));
        }
        if let Some(step) = self.is_unready(candidate) {
            return step;
        }
        // Its own limit is not waited for; a line short of it is, so that no two replicas are away at once.
        let is_at_limit = verdict.utilization.is_some_and(|usage| usage >= 1.0);
        if !is_at_limit {
            if let Some(other) = self.other_ending(slot, scene) {
                return Step::Wait(Reason::InFlight, format!("{other} is being replaced"));
            }
            let pause = self.cooldowns.worker(&candidate.worker, scene.now);
            if !pause.is_zero() {
                return Step::Wait(
                    Reason::Cooldown,
                    format!("{} lost a replica just now, {} s left", candidate.worker, pause.as_secs() + 1),
                );
            }
        }
        Step::Do { deed: Deed::Recycle(slot, Cause::Memory), reason: format!("memory: {}", victim::why(candidate)) }
    }

    fn consider_own_kill(&self, slot: SlotId, verdict: &Verdict, course: &Course, scene: &Scene) -> Step {
        let Some(candidate) = scene.candidate(slot) else { return Step::Pass(Reason::NoWorker, "it has ended".to_owned()) };
        if let Some(why) = victim::spared(&candidate.settings, &Rung::Kill) {
            return Step::Pass(Reason::Protected, format!("{} {why}", candidate.name()));
        }
        let is_at_limit = verdict.utilization.is_some_and(|usage| usage >= 1.0);
        if candidate.settings.limits.memory.is_none() || !is_at_limit {
            return Step::Wait(Reason::InFlight, format!("{} is under its own limit", candidate.name()));
        }
        if course.asked == Some(slot) || self.is_unready(candidate).is_none() {
            let reason = format!("memory: {}, over its own limit", victim::why(candidate));
            return Step::Do { deed: Deed::Kill(slot), reason };
        }
        Step::Wait(Reason::InFlight, format!("{} is on its way out", candidate.name()))
    }

    /// Looks for a replica to end for the sake of all.
    fn consider_victim(&self, rung: &Rung, verdict: &Verdict, course: &Course, scene: &Scene, plan: &Plan) -> Step {
        let (Some(used), Some(limit)) = (verdict.used, verdict.limit) else {
            return Step::Pass(Reason::Unavailable, "usage cannot be read".to_owned());
        };
        let yields = yields_of(verdict);
        let cause = if verdict.resource == Resource::Cpu { Cause::Cpu } else { Cause::Memory };
        let deed = |slot| if *rung == Rung::Recycle { Deed::Recycle(slot, cause) } else { Deed::Kill(slot) };

        // The one that was asked and has not gone: nobody else pays for that.
        if let Some(candidate) = course.asked.and_then(|slot| scene.candidate(slot)).filter(|candidate| may_be_killed(candidate))
            && *rung == Rung::Kill
            && self.flights.each().all(|(slot, _)| slot == candidate.slot)
        {
            return Step::Do { deed: deed(candidate.slot), reason: format!("asked to end and still there: {}", victim::why(candidate)) };
        }

        if let Some(step) = self.consider_flights(rung, verdict, scene) {
            return step;
        }
        let taken: BTreeSet<SlotId> = plan
            .actions
            .iter()
            .filter_map(|action| match action.deed {
                Deed::Recycle(slot, _) | Deed::Kill(slot) => Some(slot),
                _ => None,
            })
            .collect();
        let is_free = |candidate: &&Candidate| {
            victim::is_eligible(candidate)
                && victim::spared(&candidate.settings, rung).is_none()
                && !taken.contains(&candidate.slot)
                && !self.ending.contains_key(&candidate.slot)
        };
        let free: Vec<Candidate> = scene.candidates.iter().filter(is_free).cloned().collect();
        let line = verdict.high * limit;
        let brings = |candidates: &[Candidate]| used - victim::could_give_back(candidates, yields) < line;
        if !brings(&free) {
            return self.explain_nobody(rung, verdict, scene, &free, used, line);
        }
        let ready: Vec<Candidate> = free.iter().filter(|candidate| !self.is_spared(candidate, verdict, scene)).cloned().collect();
        let ranking = victim::rank(&ready, yields);
        let Some(first) = ranking.first() else {
            if scene.candidates.iter().all(|candidate| !candidate.running && candidate.busy.is_none()) {
                return Step::Pass(Reason::NoWorker, "no worker runs".to_owned());
            }
            return Step::Wait(Reason::Cooldown, "every replica that could go has only just replaced another".to_owned());
        };
        Step::Do { deed: deed(first.slot), reason: order_in_words(cause, &ranking) }
    }

    /// While one replica is on its way out, or its memory on its way back, nobody else is ended. One that another resource
    /// has asked is killed in place of anybody else when there is no time left.
    fn consider_flights(&self, rung: &Rung, verdict: &Verdict, scene: &Scene) -> Option<Step> {
        let (slot, flight) = self.flights.each().next()?;
        if flight.ended.is_some() {
            return Some(Step::Wait(Reason::InFlight, format!("the memory of {} is still coming back", flight.name)));
        }
        let is_pressing = verdict.growth > 0.0 && verdict.utilization.is_some_and(|usage| usage >= ladder::edge(verdict));
        let why = format!("{} was told to end", flight.name);
        if !is_pressing {
            return Some(Step::Wait(Reason::InFlight, why));
        }
        let victim = scene.candidate(slot).filter(|candidate| candidate.is_there() && may_be_killed(candidate));
        match (rung, victim) {
            (Rung::Kill, Some(victim)) if flight.can_be_hurried(scene.now) => {
                Some(Step::Do { deed: Deed::Kill(slot), reason: format!("asked to end and still there: {}", victim::why(victim)) })
            }
            (Rung::Recycle, _) => Some(Step::Pass(Reason::InFlight, why)),
            _ => Some(Step::Wait(Reason::InFlight, why)),
        }
    }

    /// A replica that has only just replaced one that was ended is not blamed for what its predecessor left behind; for a
    /// few seconds only where the kernel would choose somebody otherwise.
    fn is_spared(&self, candidate: &Candidate, verdict: &Verdict, scene: &Scene) -> bool {
        let is_pressing = verdict.growth > 0.0 && verdict.utilization.is_some_and(|usage| usage >= ladder::edge(verdict));
        let spared = if is_pressing { PRESSED_PAUSE } else { PAUSE };
        !self.cooldowns.worker(&candidate.worker, scene.now).is_zero() && scene.now.since(candidate.since) < spared
    }

    /// Nothing that may be ended would bring usage under the line: says which of the possible reasons it is.
    fn explain_nobody(&self, rung: &Rung, verdict: &Verdict, scene: &Scene, free: &[Candidate], used: f64, line: f64) -> Step {
        let yields = yields_of(verdict);
        let all: Vec<Candidate> =
            scene.candidates.iter().filter(|candidate| candidate.running || candidate.busy.is_some()).cloned().collect();
        if all.is_empty() {
            return Step::Pass(Reason::NoWorker, "no worker runs".to_owned());
        }
        let give_back = |candidates: &mut dyn Iterator<Item = &Candidate>| -> f64 { candidates.map(|one| yields.of(one)).sum() };
        let unprotected = give_back(&mut all.iter().filter(|candidate| victim::spared(&candidate.settings, rung).is_none()));
        let everything = give_back(&mut all.iter());
        let amount = |amount| words::amount(&verdict.resource, amount);
        if used - unprotected < line {
            return Step::Wait(Reason::InFlight, "the replicas that could give it back are starting or ending".to_owned());
        }
        if used - everything < line {
            let detail = format!("without the protected workers {} could come back, {} must", amount(unprotected), amount(used - line));
            return Step::Pass(Reason::Protected, detail);
        }
        let detail = format!(
            "the workers could give back {} of {} in use, the line is {}: others use too much",
            amount(victim::could_give_back(free, yields)),
            amount(used),
            amount(line)
        );
        Step::Pass(Reason::OutsideUsage, detail)
    }

    fn is_unready(&self, candidate: &Candidate) -> Option<Step> {
        let name = candidate.name();
        if let Some(busy) = candidate.busy {
            return Some(Step::Wait(Reason::InFlight, format!("{name} is {busy}")));
        }
        if !candidate.running {
            return Some(Step::Pass(Reason::NoWorker, format!("{name} does not run")));
        }
        self.ending.contains_key(&candidate.slot).then(|| Step::Wait(Reason::InFlight, format!("{name} was told to end")))
    }

    pub(super) fn other_ending(&self, slot: SlotId, scene: &Scene) -> Option<String> {
        scene
            .candidates
            .iter()
            .find(|other| other.slot != slot && (other.busy == Some("recycling") || self.ending.contains_key(&other.slot)))
            .map(Candidate::name)
    }
}

/// What is wanted back.
fn yields_of(verdict: &Verdict) -> Yield {
    if verdict.resource == Resource::Cpu { Yield::Cpu } else { Yield::Memory }
}

/// Its settings allow it.
fn may_be_killed(candidate: &Candidate) -> bool {
    victim::spared(&candidate.settings, &Rung::Kill).is_none()
}

fn shed(scene: &Scene, only: Option<SlotId>) -> Step {
    let asked: Vec<&Candidate> = scene
        .candidates
        .iter()
        .filter(|candidate| only.is_none_or(|slot| slot == candidate.slot))
        .filter(|candidate| {
            candidate.running && candidate.settings.shed_signal.is_some() && !matches!(candidate.busy, Some("stopping" | "recycling"))
        })
        .collect();
    if asked.is_empty() {
        return match only {
            Some(_) => Step::Pass(Reason::Unavailable, "it has no shed_signal".to_owned()),
            None => Step::Pass(Reason::Unavailable, "no running worker has a shed_signal".to_owned()),
        };
    }
    let names: Vec<String> = asked.iter().map(|candidate| candidate.name()).collect();
    Step::Do { deed: Deed::Shed(asked.iter().map(|candidate| candidate.slot).collect()), reason: format!("asks {}", names.join(", ")) }
}

/// Slows the replica whose memory grows fastest.
fn slow(course: &Course, scene: &Scene) -> Step {
    let fastest = scene
        .candidates
        .iter()
        .filter(|candidate| hold::is_throttleable(candidate) && candidate.busy.is_none() && candidate.growth > 0.0)
        .max_by(|a, b| a.growth.total_cmp(&b.growth).then(b.slot.cmp(&a.slot)));
    let Some(fastest) = fastest else {
        return match scene.candidates.iter().any(hold::is_throttleable) {
            true => Step::Pass(Reason::NoWorker, "no worker's memory grows".to_owned()),
            false => Step::Pass(Reason::Unavailable, "no running worker can be throttled".to_owned()),
        };
    };
    let before = course.slowed.map(|(slot, _)| slot);
    if before == Some(fastest.slot) {
        return Step::Pass(Reason::NoRung, format!("{} is slowed already", fastest.name()));
    }
    let cores = slowed_cores(fastest);
    let grows = format!("{} grows fastest, {}", fastest.name(), words::rate(fastest.growth));
    let why_no_line = match line_for(fastest, course, scene) {
        Ok(bytes) => {
            let also_cores = fastest.grasp.line == Some(LineKind::Hints);
            let line = Line { slot: fastest.slot, bytes, cores, also_cores, instead_of: before };
            let and = if also_cores { format!(" and to {}", words::cores(cores)) } else { String::new() };
            return Step::Do { deed: Deed::Line(line), reason: format!("{grows}: slowed over {}{and}", words::bytes(bytes as f64)) };
        }
        Err(why) => why,
    };
    let mut shares: Vec<Share> = before.map(|slot| Share { slot, cores: None }).into_iter().collect();
    shares.push(Share { slot: fastest.slot, cores: Some(cores) });
    let reason = format!("{grows}: held to {} ({why_no_line})", words::cores(cores));
    Step::Do { deed: Deed::Throttle(shares), reason }
}

/// What a replica slowed for memory keeps of the processor.
pub(super) fn slowed_cores(candidate: &Candidate) -> f64 {
    (candidate.cores.unwrap_or(0.0) * SLOWED).max(SLOWED_CORES)
}

/// The line a replica may be held at, or why it may not.
fn line_for(candidate: &Candidate, course: &Course, scene: &Scene) -> Result<u64, String> {
    if candidate.grasp.line.is_none() {
        return Err("its group takes no line for memory".to_owned());
    }
    if !matches!(candidate.settings.throttle, ThrottleMethod::Auto | ThrottleMethod::Cgroup) {
        return Err("the settings ask for another way".to_owned());
    }
    if course.barred.is_some_and(|(slot, until)| slot == candidate.slot && scene.now.steady < until.steady) {
        return Err("a line brought nothing just now".to_owned());
    }
    lease::first_line(&candidate.grasp)
}

/// Asks the kernel for what would bring usage back under `low`, the largest part from whoever has most to give.
fn take_back(verdict: &Verdict, scene: &Scene) -> Step {
    let (Some(used), Some(limit)) = (verdict.used, verdict.limit) else {
        return Step::Pass(Reason::Unavailable, "usage cannot be read".to_owned());
    };
    let able = || scene.candidates.iter().filter(|one| one.running && one.busy.is_none());
    if able().next().is_none() {
        return Step::Pass(Reason::NoWorker, "no worker runs".to_owned());
    }
    if able().all(|one| one.grasp.reclaim.is_none()) {
        return Step::Pass(Reason::Unavailable, "memory cannot be asked back here; the notes of `plimsoll status` say why".to_owned());
    }
    let mut portions: Vec<Portion> = able()
        .filter_map(|one| {
            let by = one.grasp.reclaim?;
            let bytes = could_be_taken(one, by, verdict.basis == Basis::Scope && scene.counts_cache);
            (bytes > 0).then_some(Portion { slot: one.slot, bytes, by })
        })
        .collect();
    portions.sort_by_key(|portion| (std::cmp::Reverse(portion.bytes), portion.slot));
    let mut wanted = (used - verdict.low * limit).max(0.0) as u64;
    for portion in &mut portions {
        portion.bytes = portion.bytes.min(wanted);
        wanted -= portion.bytes;
    }
    portions.retain(|portion| portion.bytes > 0);
    let all: f64 = portions.iter().map(|portion| portion.bytes as f64).sum();
    if all < WORTH_ASKING * limit {
        let cache = if scene.counts_cache { "hardly any file cache" } else { "file cache is not what is counted" };
        return Step::Pass(Reason::Unavailable, format!("nothing could be taken back: {cache}, and no swap is free"));
    }
    let names: Vec<String> = portions.iter().filter_map(|portion| Some(scene.candidate(portion.slot)?.name())).collect();
    Step::Do { deed: Deed::Reclaim(portions), reason: format!("asks {} back from {}", words::bytes(all), names.join(", ")) }
}

/// Bytes of a replica that the kernel could take back and that would be seen in what is judged.
fn could_be_taken(candidate: &Candidate, by: ReclaimBy, counts_cache: bool) -> u64 {
    let room = candidate.grasp.swap_room.unwrap_or(0);
    match (by, candidate.grasp.figures) {
        // It takes whatever it can get: not where that would push a worker out to swap.
        (ReclaimBy::Emptying, Some(figures)) => {
            if counts_cache && room == 0 {
                figures.cache
            } else {
                0
            }
        }
        (ReclaimBy::Emptying, None) => 0,
        (_, Some(figures)) => figures.anonymous.min(room).saturating_add(if counts_cache { figures.cache } else { 0 }),
        (_, None) => candidate.memory.unwrap_or(0).min(room),
    }
}

fn order_in_words(cause: Cause, ranking: &[&Candidate]) -> String {
    let shown: Vec<String> =
        ranking.iter().take(SHOWN).enumerate().map(|(at, candidate)| format!("{}. {}", at + 1, victim::why(candidate))).collect();
    match ranking.len().saturating_sub(SHOWN) {
        0 => format!("{}: {}", cause.word(), shown.join("; ")),
        more => format!("{}: {}; and {more} more", cause.word(), shown.join("; ")),
    }
}
