//! What the planner would say if it were asked: each rung of a ladder with what it would do now, who would be taken, what comes
//! next. Nothing is decided here; it is the same questions `climb` asks, without the consequences.

use super::{Course, Plan, Planner, Scene, Step};
use crate::host::clock::Moment;
use crate::policy::{Level, Resource, Verdict};
use crate::response::candidate::Candidate;
use crate::response::ladder::Tier;
use crate::response::victim::{self, Yield};
use crate::response::words;

/// So many places of a ranking are given.
const PLACES: usize = 8;

/// How a resource's ladder stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    pub rungs: Vec<Prospect>,
    /// Who would be taken, the first in front, then who is spared; each with its reason.
    pub places: Vec<Place>,
    /// How many are not listed.
    pub more: usize,
    /// What is being measured: action, usage before, usage a second after.
    pub measuring: Vec<(u64, f64, Option<f64>)>,
    /// For people: what comes next.
    pub next: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Prospect {
    pub level: Level,
    pub rung: String,
    pub state: Standing,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    OnTrial,
    /// In this round, and not enough.
    Tried,
    /// Would act.
    Ready,
    /// Could, but not yet.
    Waits,
    /// Can do nothing here or now.
    Passes,
}

impl Standing {
    pub fn word(self) -> &'static str {
        match self {
            Standing::OnTrial => "on_trial",
            Standing::Tried => "tried",
            Standing::Ready => "ready",
            Standing::Waits => "waits",
            Standing::Passes => "passes",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub worker: String,
    /// From 1; `None` for who is spared.
    pub place: Option<u32>,
    pub why: String,
}

impl Planner {
    /// How things stand for the resource of `verdict`, in the tick that was planned last.
    pub fn outlook(&self, verdict: &Verdict, candidates: &[Candidate], now: Moment) -> Outlook {
        let nothing_yet = Course::default();
        let course = self.courses.get(&verdict.resource).unwrap_or(&nothing_yet);
        let scene = Scene { candidates, memory: None, counts_cache: false, cpu_limit: None, now, dry: self.policy.dry_run };
        let rungs = self.prospects(verdict, course, &scene);
        let (places, more) = places(verdict, candidates);
        Outlook {
            next: next(verdict, course, &rungs),
            rungs,
            places,
            more,
            measuring: course.probes.iter().map(|probe| (probe.action, probe.before, probe.after_1s)).collect(),
        }
    }

    fn prospects(&self, verdict: &Verdict, course: &Course, scene: &Scene) -> Vec<Prospect> {
        let tiers = [(Tier::High, Level::High, &course.high_round), (Tier::Critical, Level::Critical, &course.critical_round)];
        let empty = Plan::default();
        let mut prospects = Vec::new();
        for (tier, level, round) in tiers {
            for (at, rung) in self.rungs(verdict, tier, scene).iter().enumerate() {
                let on_trial = course.trial.as_ref().filter(|trial| trial.tier == tier && at + 1 == round.next);
                let (state, detail) = match (on_trial, self.consider(rung, verdict, course, scene, &empty)) {
                    (Some(trial), _) => (Standing::OnTrial, format!("since action {}", trial.action)),
                    (None, Step::Do { reason, .. }) if at < round.next => (Standing::Tried, reason),
                    (None, Step::Do { reason, .. }) => (Standing::Ready, reason),
                    (None, Step::Wait(_, why)) => (Standing::Waits, why),
                    (None, Step::Pass(_, why)) => (Standing::Passes, why),
                };
                let rung = match rung {
                    crate::config::settings::Rung::Job(name) => format!("job:{name}"),
                    rung => rung.word().to_owned(),
                };
                prospects.push(Prospect { level, rung, state, detail });
            }
        }
        prospects
    }
}

/// What comes next, in words.
fn next(verdict: &Verdict, course: &Course, rungs: &[Prospect]) -> String {
    let first = |level: Level| {
        let possible = |one: &&Prospect| one.level == level && matches!(one.state, Standing::Ready | Standing::Waits);
        rungs.iter().find(possible).map(|one| one.rung.as_str())
    };
    let harder = match verdict.level {
        Level::Critical => first(Level::Critical).or_else(|| first(Level::High)),
        _ => first(Level::High),
    };
    let critical = || match verdict.critical.zip(first(Level::Critical)) {
        Some((line, rung)) if verdict.level != Level::Critical => format!("; at {} {rung}", words::percent(line)),
        _ => String::new(),
    };
    match (&course.trial, &course.refusal, verdict.level) {
        (_, _, Level::Normal) if !verdict.over => match harder {
            Some(rung) => format!("nothing while it stays under {}; over it {rung}{}", words::percent(verdict.high), critical()),
            None => {
                format!("nothing while it stays under {}; over it there is nothing to try{}", words::percent(verdict.high), critical())
            }
        },
        (_, _, Level::Normal) => {
            let over = verdict.over_for.as_secs_f64();
            let then = harder.unwrap_or("nothing that can be tried");
            format!("over the line for {over:.1} s of {:.1} s; then {then}{}", verdict.patience.as_secs_f64(), critical())
        }
        (Some(trial), _, _) => match harder {
            Some(rung) => format!("{} is given its time; if it is not enough, {rung}{}", trial.rung.word(), critical()),
            None => format!("{} is given its time; after it nothing is left that could act{}", trial.rung.word(), critical()),
        },
        (None, Some((reason, detail)), _) => format!("nothing can be done now: {}: {detail}", reason.word()),
        (None, None, _) => match harder {
            Some(rung) => format!("nothing while it stays under {}; over it {rung}{}", words::percent(verdict.high), critical()),
            None => format!("what is on holds it; nothing harder is ready{}", critical()),
        },
    }
}

/// The ranking in words. One replica's own memory has nobody to choose from.
fn places(verdict: &Verdict, candidates: &[Candidate]) -> (Vec<Place>, usize) {
    let yields = match verdict.resource {
        Resource::Memory => Yield::Memory,
        Resource::Cpu => Yield::Cpu,
        Resource::Disk(_) | Resource::Worker(_) => return (Vec::new(), 0),
    };
    // The figures begin with the name, which is given beside them.
    let bare = |why: String, worker: &str| why.strip_prefix(worker).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&why).to_owned();
    let ranking = victim::rank(candidates, yields);
    let mut places: Vec<Place> = Vec::new();
    for (place, candidate) in (1..).zip(ranking.into_iter().take(PLACES)) {
        let worker = candidate.name();
        places.push(Place { why: bare(victim::why(candidate), &worker), worker, place: Some(place) });
    }
    for spared in candidates.iter().filter(|candidate| !victim::is_eligible(candidate)).take(PLACES) {
        let because = match (spared.settings.protected, spared.busy) {
            (true, _) => "spared, it is protected",
            (false, _) if victim::is_spared(&spared.settings) => "spared, somebody else starts it",
            (false, Some(busy)) => busy,
            (false, None) => "it does not run",
        };
        let worker = spared.name();
        places.push(Place { why: format!("{because}: {}", bare(victim::why(spared), &worker)), worker, place: None });
    }
    let more = candidates.len().saturating_sub(places.len());
    (places, more)
}
