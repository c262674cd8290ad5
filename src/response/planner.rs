//! Verdicts in, actions out: walks each resource up its ladder, one action in flight at a time, and says why when it does not.
//!
//! Level-triggered. Nothing waits for a crossing: in every tick in which a resource is over its line, either a rung is on
//! trial, or one holds it, or the next is tried, or there is a refusal with its reason.

mod ahead;
mod choice;
pub mod outlook;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{Policy, Rung, Settings};
use crate::host::clock::Moment;
use crate::policy::{Level, Resource, Verdict};
use crate::response::action::{Action, Cause, Deed, Line, Outcome, Share};
use crate::response::candidate::{Candidate, Due, LineKind};
use crate::response::cooldown::{Cooldowns, PAUSE};
use crate::response::flight::{Flights, OVERDUE};
use crate::response::hold::{self, Hold};
use crate::response::ladder::{self, Progress, Round, THROTTLE_SETTLING, TOLERANCE, Tier, Trial};
use crate::response::lease::{self, Lease, Term};
use crate::response::refusal::{Reason, Refusal};
use crate::response::victim;
use crate::response::words;
use crate::sampling::readings::{Readings, SlotId};

use choice::Step;

/// A refusal that lasts is told again this often.
const REMIND: Duration = Duration::from_secs(60);
/// A release that failed is repeated after this long.
const RELEASE_AGAIN: Duration = Duration::from_secs(5);
/// Effects measured at a time for one resource.
const PROBES: usize = 8;
/// An effect is looked at so long after the action, and again so long after it.
const AFTER: Duration = Duration::from_secs(1);
const AFTER_LONG: Duration = Duration::from_secs(10);
/// A limit is kept when usage is over it by no more than this part of it.
const LIMIT_TOLERANCE: f64 = 0.1;
/// Usage so many times what the kernel cannot take back is more than that.
const MORE_THAN_FIXED: f64 = 1.01;
/// While memory comes back, all the stops of a fast grower together last no longer.
const FROZEN_MOST: Duration = Duration::from_secs(5);
/// What follows an action that did its work.
const ENOUGH: &str = "nothing, it was enough";

/// What is to be done in one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In the order they are to be performed.
    pub actions: Vec<Action>,
    pub refusals: Vec<Refusal>,
    /// Of actions of earlier ticks.
    pub measured: Vec<Measured>,
}

/// What one action brought, in the unit of its resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub action: u64,
    pub resource: Resource,
    /// The rung's word.
    pub rung: &'static str,
    pub before: f64,
    /// What was the limit then.
    pub limit: Option<f64>,
    pub after_1s: Option<f64>,
    pub after_10s: Option<f64>,
    pub effective: bool,
    /// For people: what follows.
    pub next: String,
}

impl Measured {
    /// `shed effective: 85.0 % before, 75.0 % after 1 s, 72.0 % after 10 s`: the verdict first, a narrow screen cuts off the end.
    fn in_words(&self) -> String {
        let share = |amount: Option<f64>| match (amount, self.limit) {
            (Some(amount), Some(limit)) if limit > 0.0 => words::percent(amount / limit),
            _ => "not known".to_owned(),
        };
        let (before, short, long) = (share(Some(self.before)), share(self.after_1s), share(self.after_10s));
        let word = if self.effective { "effective" } else { "ineffective" };
        format!("{} {word}: {before} before, {short} after 1 s, {long} after 10 s", self.rung)
    }
}

/// How one resource stands, for `status` and the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// A throttle of this resource is on.
    pub throttled: bool,
    pub last_action: Option<String>,
    /// What the last action measured to the end brought.
    pub last_effect: Option<String>,
    /// Zero while all is well.
    pub unanswered: Duration,
    /// Why nothing (more) is done: the word and the figures.
    pub reason: Option<&'static str>,
    pub detail: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Planner {
    policy: Policy,
    ids: u64,
    planned: Option<Moment>,
    courses: BTreeMap<Resource, Course>,
    cooldowns: Cooldowns,
    hold: Hold,
    /// When `limits.cpu` may be tried again after it failed.
    limits_again: Option<Moment>,
    /// Replicas that were told to end and have not yet.
    ending: BTreeMap<SlotId, Ending>,
    /// Those of them that were ended for a resource's sake, until their memory is back.
    flights: Flights,
    /// Effects whose resource has ended: a replica that was replaced for its own limit.
    orphans: Vec<(Resource, Probe)>,
    /// The effect of `limits.cpu`, which is on no ladder.
    limit_probe: Option<LimitProbe>,
}

/// One resource on its way.
#[derive(Clone, Debug, Default)]
struct Course {
    critical: bool,
    trial: Option<Trial>,
    high_round: Round,
    critical_round: Round,
    /// The replica slowed for memory, and the action that slowed it.
    slowed: Option<(SlotId, u64)>,
    /// The line it is slowed by, if it is by one.
    lease: Option<Lease>,
    /// A replica that gets no line until then.
    barred: Option<(SlotId, Moment)>,
    /// When it was last foretold that it will be full, while that is acted on under the line.
    foretold: Option<Moment>,
    /// Stops while memory comes back: the action, when the last began, and how long all of them were.
    frozen: Option<(u64, Moment, Duration)>,
    /// Since when a budget that is on has not held the line.
    slipped: Option<Moment>,
    /// Asked to end gracefully by this course, and not known to have ended.
    asked: Option<SlotId>,
    /// Why the last action could not be performed.
    failure: Option<(Reason, String)>,
    probes: Vec<Probe>,
    unanswered: Option<Moment>,
    refusal: Option<(Reason, String)>,
    told: Option<(Reason, Moment)>,
    last_action: Option<String>,
    last_effect: Option<String>,
    /// A release failed and is to be repeated from then on.
    release_again: Option<Moment>,
}

impl Course {
    fn round(&mut self, tier: Tier) -> &mut Round {
        match tier {
            Tier::High => &mut self.high_round,
            Tier::Critical => &mut self.critical_round,
        }
    }

    fn answer(&mut self) {
        self.unanswered = None;
        self.refusal = None;
        self.told = None;
    }
}

/// The effect of one action while it is measured.
#[derive(Clone, Debug)]
struct Probe {
    action: u64,
    rung: &'static str,
    at: Moment,
    before: f64,
    limit: Option<f64>,
    after_1s: Option<f64>,
    after_10s: Option<f64>,
    effective: Option<bool>,
    /// It was done for usage to stay under this: effective if it does.
    keeps_under: Option<f64>,
    next: String,
}

impl Probe {
    fn new(action: u64, rung: &'static str, before: f64, limit: Option<f64>, now: Moment) -> Self {
        Probe {
            action,
            rung,
            at: now,
            before,
            limit,
            after_1s: None,
            after_10s: None,
            effective: None,
            keeps_under: None,
            next: ENOUGH.to_owned(),
        }
    }

    /// Takes the figures that are due; true when ten seconds are over.
    fn look(&mut self, used: Option<f64>, now: Moment) -> bool {
        let age = now.since(self.at);
        if self.after_1s.is_none() && age >= AFTER && age < AFTER_LONG {
            self.after_1s = used;
        }
        if self.after_10s.is_none() && age >= AFTER_LONG {
            self.after_10s = used;
        }
        age >= AFTER_LONG
    }

    /// `otherwise`: whether it was effective, where no trial has said so.
    fn measured(&self, resource: &Resource, used: Option<f64>, otherwise: bool) -> Measured {
        Measured {
            action: self.action,
            resource: resource.clone(),
            rung: self.rung,
            before: self.before,
            limit: self.limit,
            after_1s: self.after_1s,
            after_10s: self.after_10s.or(used),
            effective: self.effective.unwrap_or(otherwise),
            next: self.next.clone(),
        }
    }
}

/// What the replicas with a `limits.cpu` of their own use, after it was put on them.
#[derive(Clone, Debug)]
struct LimitProbe {
    probe: Probe,
    slots: Vec<SlotId>,
    /// The limits together, in cores.
    most: f64,
}

impl LimitProbe {
    /// `None` when none of them can be read.
    fn used(&self, scene: &Scene) -> Option<f64> {
        let used = self.slots.iter().filter_map(|slot| scene.candidate(*slot)?.cores);
        used.fold(None, |sum: Option<f64>, cores| Some(sum.unwrap_or(0.0) + cores))
    }
}

#[derive(Clone, Debug)]
struct Ending {
    worker: Arc<str>,
    at: Moment,
    /// Then it is looked at afresh, ended or not.
    within: Duration,
}

/// The arguments of one plan.
#[derive(Clone, Copy)]
struct Scene<'a> {
    candidates: &'a [Candidate],
    /// Memory in use, of all.
    memory: Option<f64>,
    /// Cores.
    cpu_limit: Option<f64>,
    /// What is judged is more than what the kernel cannot take back: file cache counts.
    counts_cache: bool,
    now: Moment,
    dry: bool,
}

impl Scene<'_> {
    fn candidate(&self, slot: SlotId) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.slot == slot)
    }
}

impl Planner {
    pub fn new(settings: &Settings) -> Self {
        Planner {
            policy: settings.policy.clone(),
            ids: 0,
            planned: None,
            courses: BTreeMap::new(),
            cooldowns: Cooldowns::default(),
            hold: Hold::default(),
            limits_again: None,
            ending: BTreeMap::new(),
            flights: Flights::default(),
            orphans: Vec::new(),
            limit_probe: None,
        }
    }

    /// Takes changed settings. What is in flight stays in flight; a changed ladder is walked from where the old one stood. When
    /// `policy.dry_run` changes everything begins anew: the caller takes off what is on before it turns a dry run on.
    pub fn apply(&mut self, settings: &Settings) {
        if settings.policy.dry_run != self.policy.dry_run {
            // What was only planned is not there to build on, and what was done is for the caller to undo.
            self.begin_anew();
            self.ending.clear();
            self.flights.clear();
        }
        self.policy = settings.policy.clone();
    }

    /// Somebody has taken everything off by hand. What is still over a line is answered from the first rung on.
    pub fn begin_anew(&mut self) {
        self.hold.let_go();
        self.courses.clear();
        self.limits_again = None;
    }

    /// Plans one tick. Every verdict of the tick is to be given, the calm ones too: they end what was begun. The readings are
    /// those the verdicts were formed from; no rung of today looks further than the candidates.
    pub fn plan(&mut self, verdicts: &[Verdict], readings: &Readings, candidates: &[Candidate], now: Moment) -> Plan {
        let gap = self.planned.map_or(Duration::ZERO, |before| now.since(before));
        self.planned = Some(now);
        let memory = verdicts.iter().find(|verdict| verdict.resource == Resource::Memory).and_then(|verdict| verdict.used);
        let cpu_limit = verdicts.iter().find(|verdict| verdict.resource == Resource::Cpu).and_then(|verdict| verdict.limit);
        let fixed = readings.memory.unreclaimable.known().map(|bytes| bytes as f64);
        let counts_cache = memory.is_some_and(|used| fixed.is_none_or(|fixed| used > fixed * MORE_THAN_FIXED));
        let scene = Scene { candidates, memory, counts_cache, cpu_limit, now, dry: self.policy.dry_run };
        self.hold.feed(candidates, gap);
        self.cooldowns.expire(now);
        self.watch_endings(&scene);
        self.watch_flights(&scene);

        let mut plan = Plan::default();
        self.forget_missing(verdicts);
        self.measure_the_rest(&scene, &mut plan);
        // A replica over its own limit is the plainest case: it is looked at before the machine looks for somebody to blame.
        let is_own = |verdict: &&Verdict| matches!(verdict.resource, Resource::Worker(_));
        for verdict in verdicts.iter().filter(is_own).chain(verdicts.iter().filter(|verdict| !is_own(verdict))) {
            // A calm resource about which nothing was ever done has nothing to be undone: nearly all of a thousand replicas.
            let Some(mut course) =
                self.courses.remove(&verdict.resource).or_else(|| (verdict.level > Level::Normal || verdict.early).then(Course::default))
            else {
                continue;
            };
            self.walk(verdict, &mut course, &scene, &mut plan);
            self.courses.insert(verdict.resource.clone(), course);
        }
        self.keep_own_limits(&scene, &mut plan);
        self.retire(&scene, &mut plan);
        plan
    }

    /// Is told what became of the actions of the last plan.
    pub fn note<'a>(&mut self, outcomes: impl IntoIterator<Item = (&'a Action, &'a Outcome)>, now: Moment) {
        for (action, outcome) in outcomes {
            self.note_one(action, outcome, now);
        }
    }

    /// The second look, right before a drastic act: true when `fresh` verdicts still bear it out. When they do not, the act is
    /// withdrawn and must not be performed.
    pub fn confirm(&mut self, action: &Action, fresh: &[Verdict]) -> bool {
        let slot = match &action.deed {
            Deed::Recycle(slot, Cause::Memory | Cause::Cpu) | Deed::Kill(slot) => *slot,
            _ => return true,
        };
        let holds = fresh.iter().any(|verdict| verdict.resource == action.resource && verdict.level > Level::Normal && verdict.over);
        if !holds {
            self.flights.cancel(slot);
            if let Some(ending) = self.ending.remove(&slot) {
                self.cooldowns.cancel(&ending.worker);
            }
            if let Some(course) = self.courses.get_mut(&action.resource)
                && let Some(trial) = course.trial.take_if(|trial| trial.action == action.id)
            {
                let round = course.round(trial.tier);
                round.next = round.next.saturating_sub(1);
                course.probes.retain(|probe| probe.action != action.id);
                course.asked = None;
                course.last_action = Some(format!("{} withdrawn: usage fell just before", trial.rung.word()));
            }
        }
        holds
    }

    /// How `resource` stands since the last plan.
    pub fn status(&self, resource: &Resource) -> Status {
        let Some(course) = self.courses.get(resource) else { return Status::default() };
        let throttled = course.slowed.is_some() || (*resource == Resource::Cpu && self.hold.engaged().is_some());
        Status {
            throttled: throttled && !self.policy.dry_run,
            last_action: course.last_action.clone(),
            last_effect: course.last_effect.clone(),
            unanswered: course.unanswered.zip(self.planned).map_or(Duration::ZERO, |(since, now)| now.since(since)),
            reason: course.refusal.as_ref().map(|(reason, _)| reason.word()),
            detail: course.refusal.as_ref().map(|(_, detail)| detail.clone()),
        }
    }

    fn note_one(&mut self, action: &Action, outcome: &Outcome, now: Moment) {
        if let (Deed::Recycle(slot, _) | Deed::Kill(slot), Outcome::Unavailable(_) | Outcome::Failed(_)) = (&action.deed, outcome) {
            self.flights.cancel(*slot);
            // Looked at again after the pause, as one that did not end in time is.
            if let Some(ending) = self.ending.get_mut(slot) {
                ending.within = PAUSE;
            }
        }
        let failed = match outcome {
            Outcome::Done | Outcome::DryRun | Outcome::Gone => None,
            Outcome::Unavailable(why) | Outcome::Failed(why) => Some(why.clone()),
        };
        let is_own_limit = action.resource == Resource::Cpu && self.hold.engaged().is_none();
        if failed.is_some() && is_own_limit && matches!(action.deed, Deed::Throttle(_)) {
            self.hold.let_go();
            self.limits_again = Some(now.after(PAUSE));
        }
        let Some(course) = self.courses.get_mut(&action.resource) else { return };
        if let Some(why) = &failed {
            course.failure = Some((Reason::Unavailable, why.clone()));
            if action.deed == Deed::Release {
                course.release_again = Some(now.after(RELEASE_AGAIN));
            }
        }
        if failed.is_some() && course.trial.is_none() && course.foretold.is_some() && course.slowed.is_some_and(|(_, id)| id == action.id) {
            // Some of it may have been done: it is released before it is tried again.
            (course.slowed, course.lease, course.foretold) = (None, None, None);
            course.release_again = Some(now.after(RELEASE_AGAIN));
            course.probes.retain(|probe| probe.action != action.id);
        }
        let Some(trial) = course.trial.as_mut().filter(|trial| trial.action == action.id) else { return };
        match outcome {
            Outcome::Done => {}
            Outcome::DryRun => trial.dry = true,
            Outcome::Gone if trial.victim.is_some() => trial.end(now),
            Outcome::Gone => trial.failed = Some("it has ended in the meantime".to_owned()),
            Outcome::Unavailable(why) | Outcome::Failed(why) => trial.failed = Some(why.clone()),
        }
        if trial.failed.is_some() && trial.rung == Rung::Throttle {
            // Some of it may have been done: it is released with the rest, when usage is back.
            course.release_again = Some(now);
            match action.resource {
                Resource::Cpu => self.hold.let_go(),
                _ => (course.slowed, course.lease) = (None, None),
            }
        }
    }

    /// Replicas told to end are out of reach until they have, or until their time is over.
    fn watch_endings(&mut self, scene: &Scene) {
        let Planner { ending, cooldowns, .. } = self;
        ending.retain(|slot, ending| {
            if scene.candidate(*slot).is_none() {
                // Its successor is young and is not blamed for what its predecessor left behind.
                cooldowns.spare(&ending.worker, scene.now);
                return false;
            }
            scene.now.since(ending.at) < ending.within
        });
    }

    /// Whose memory is back, or is waited for no longer, is off the books; the trial that ended it is told.
    fn watch_flights(&mut self, scene: &Scene) {
        for landing in self.flights.watch(scene.candidates, scene.memory, scene.now) {
            let Some(course) = self.courses.get_mut(&landing.resource) else { continue };
            if let Some(trial) = course.trial.as_mut().filter(|trial| trial.victim.is_some_and(|(slot, _)| slot == landing.slot)) {
                trial.land(landing.back, scene.now);
            }
        }
    }

    /// A replica that has ended takes its course with it: whatever was on trial for it was enough. Its effects are measured on.
    fn forget_missing(&mut self, verdicts: &[Verdict]) {
        if self.courses.is_empty() {
            return;
        }
        let judged: BTreeSet<&Resource> = verdicts.iter().map(|verdict| &verdict.resource).collect();
        let Planner { courses, orphans, .. } = self;
        courses.retain(|resource, course| {
            let is_judged = judged.contains(resource);
            if !is_judged {
                orphans.extend(course.probes.drain(..).take(PROBES).map(|probe| (resource.clone(), probe)));
            }
            is_judged
        });
    }

    /// Effects that no verdict speaks of: of a replica that has ended nothing is left, and that is known, not assumed.
    fn measure_the_rest(&mut self, scene: &Scene, plan: &mut Plan) {
        let now = scene.now;
        self.orphans.retain_mut(|(resource, probe)| {
            if !probe.look(Some(0.0), now) {
                return true;
            }
            plan.measured.push(probe.measured(resource, Some(0.0), true));
            false
        });
        let Some(mut limited) = self.limit_probe.take() else { return };
        let used = limited.used(scene);
        if !limited.probe.look(used, now) {
            self.limit_probe = Some(limited);
            return;
        }
        let effective = used.is_some_and(|used| used <= limited.most * (1.0 + LIMIT_TOLERANCE));
        plan.measured.push(limited.probe.measured(&Resource::Cpu, used, effective));
    }

    /// One resource in one tick.
    fn walk(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        self.measure(verdict, course, scene.now, plan);
        if course.asked.is_some_and(|slot| scene.candidate(slot).is_none()) {
            course.asked = None;
        }
        if course.slowed.is_some_and(|(slot, _)| scene.candidate(slot).is_none()) {
            (course.slowed, course.lease) = (None, None);
            self.act(verdict.resource.clone(), Deed::Release, "the replica that was slowed has ended".to_owned(), plan);
        }
        if verdict.level == Level::Normal {
            if self.stay_ahead(verdict, course, scene, plan) {
                return course.answer();
            }
            self.rest(verdict, course, scene, plan);
            return;
        }
        let is_critical = verdict.level == Level::Critical;
        if is_critical && !course.critical {
            course.critical_round = Round::default();
        }
        course.critical = is_critical;

        match verdict.resource {
            Resource::Cpu => self.keep_budget(verdict, scene, plan),
            Resource::Memory => {
                keep_lease(verdict, course, scene, plan);
                self.freeze_for_a_moment(verdict, course, scene, plan);
            }
            _ => {}
        }
        self.settle_trial(verdict, course, scene);
        if course.trial.is_some() {
            if scene.dry && verdict.over {
                self.refuse(verdict, course, Reason::DryRun, "planned, and not done".to_owned(), scene, plan);
            } else {
                course.answer();
            }
            return;
        }
        if verdict.used.is_none() || verdict.utilization.is_none() {
            let detail = format!("usage cannot be read; last {}", verdict.level.word());
            self.refuse(verdict, course, Reason::Unavailable, detail, scene, plan);
            return;
        }
        let holds = self.hold.engaged().is_some() && verdict.resource == Resource::Cpu;
        let line = if holds { verdict.high + TOLERANCE } else { verdict.high };
        if verdict.utilization.is_some_and(|usage| usage < line) {
            course.slipped = None;
            course.answer();
            return;
        }
        // What others use changed and the budget follows: that takes as long as putting it on did.
        if holds && !scene.dry && scene.now.since(*course.slipped.get_or_insert(scene.now)) < THROTTLE_SETTLING {
            course.answer();
            return;
        }
        self.climb(verdict, course, scene, plan);
    }

    /// Back to normal: everything that was put on for this resource is taken off, and its ladder starts anew. Only a hold
    /// that somebody would fill at once goes on, as wide as the line allows.
    fn rest(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        let is_cpu = verdict.resource == Resource::Cpu;
        let is_due = course.release_again.is_some_and(|at| scene.now.steady >= at.steady);
        let is_on = course.slowed.is_some() || (is_cpu && self.hold.engaged().is_some());
        if is_cpu && !is_due && self.hold.holds_back(verdict, scene.candidates) {
            self.keep_budget(verdict, scene, plan);
        } else if is_on || is_due {
            let reason = match verdict.utilization {
                Some(usage) if usage >= verdict.low => {
                    format!("{}, and it is not foretold any more to be full soon", words::standing(verdict))
                }
                _ => format!("{}, back under {}", words::standing(verdict), words::percent(verdict.low)),
            };
            let id = self.act(verdict.resource.clone(), Deed::Release, reason, plan);
            course.last_action = Some(format!("release (action {id})"));
            (course.slowed, course.lease) = (None, None);
            course.release_again = None;
            if is_cpu {
                self.hold.let_go();
            }
        }
        if let Some(trial) = course.trial.take() {
            conclude(course, &trial, true, ENOUGH.to_owned());
        }
        course.answer();
        course.critical = false;
        course.slipped = None;
        course.failure = None;
        course.high_round = Round::default();
        course.critical_round = Round::default();
    }

    /// Fills in the probes, and reports those that have all their figures. One still on trial after ten seconds keeps its
    /// figures and is reported when its trial is over.
    fn measure(&self, verdict: &Verdict, course: &mut Course, now: Moment, plan: &mut Plan) {
        let trial = course.trial.as_ref().map(|trial| trial.action);
        let mut last = None;
        course.probes.retain_mut(|probe| {
            if !probe.look(verdict.used, now) || trial == Some(probe.action) {
                return true;
            }
            let stayed = probe.keeps_under.zip(verdict.used).is_some_and(|(line, used)| used < line);
            let measured = probe.measured(&verdict.resource, verdict.used, stayed);
            last = Some(measured.in_words());
            plan.measured.push(measured);
            false
        });
        if last.is_some() {
            course.last_effect = last;
        }
    }

    fn settle_trial(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene) {
        let Some(mut trial) = course.trial.take() else { return };
        match trial.progress(verdict, scene.candidates, scene.now) {
            Progress::Pending => course.trial = Some(trial),
            Progress::Enough => {
                conclude(course, &trial, !trial.dry, ENOUGH.to_owned());
                course.round(trial.tier).enough(scene.now);
            }
            Progress::NotEnough { helped } => {
                let again = trial.failed.is_none() && !trial.dry && ladder::has_time(&trial.rung, verdict);
                course.round(trial.tier).wanting(&trial.rung, helped && !trial.dry, again, scene.now);
                let next = self.next_in_words(verdict, course, &trial, scene);
                conclude(course, &trial, helped && !trial.dry, next);
            }
        }
    }

    fn next_in_words(&self, verdict: &Verdict, course: &mut Course, trial: &Trial, scene: &Scene) -> String {
        let rungs = self.rungs(verdict, trial.tier, scene);
        let next = match rungs.get(course.round(trial.tier).next) {
            Some(rung) => rung.word().to_owned(),
            None => "nothing is left on the ladder, it is tried again after a pause".to_owned(),
        };
        match &trial.failed {
            Some(why) => format!("{next}; it failed: {why}"),
            None => next,
        }
    }

    fn rungs(&self, verdict: &Verdict, tier: Tier, scene: &Scene) -> Vec<Rung> {
        let worker = match verdict.resource {
            Resource::Worker(slot) => scene.candidate(slot).map(|candidate| &*candidate.settings),
            _ => None,
        };
        ladder::rungs(&self.policy, &verdict.resource, worker, tier)
    }

    /// Tries the next rung that can do something, or says why there is none.
    fn climb(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        let mut refusals: Vec<(Reason, String)> = Vec::new();
        for tier in Tier::of(verdict.level) {
            let rungs = self.rungs(verdict, *tier, scene);
            course.round(*tier).settle(scene.now);
            match self.climb_from(*tier, &rungs, verdict, course, scene, plan) {
                Ok(()) => return self.answer_or_say_dry(verdict, course, scene, plan),
                Err(why) => refusals.extend(why),
            }
            let tried = course.round(*tier).next;
            if tried == 0 {
                continue;
            }
            let pause = course.round(*tier).again_in(*tier, scene.now);
            if pause.is_zero() {
                course.round(*tier).restart();
                match self.climb_from(*tier, &rungs, verdict, course, scene, plan) {
                    Ok(()) => return self.answer_or_say_dry(verdict, course, scene, plan),
                    Err(why) => refusals.extend(why),
                }
                continue;
            }
            // Those that could do nothing now anyway say more than the pause does.
            for rung in rungs.iter().take(tried) {
                if let Step::Pass(reason, detail) = self.consider(rung, verdict, course, scene, plan) {
                    refusals.push((reason, format!("{}: {detail}", rung.word())));
                }
            }
            let is_quiet = rungs.iter().all(|rung| *rung == Rung::Notify);
            let reason = if is_quiet { Reason::NoRung } else { Reason::Cooldown };
            refusals.push((reason, format!("the ladder was tried, again in {} s", pause.as_secs() + 1)));
        }
        // Something is being tried: what was begun for another resource comes back to this one too.
        if verdict.resource == Resource::Memory && !self.flights.is_empty() {
            course.answer();
            return;
        }
        refusals.extend(course.failure.clone());
        let reason = refusals.iter().map(|(reason, _)| *reason).max().unwrap_or(Reason::NoRung);
        let mut details: Vec<String> = refusals.into_iter().map(|(_, detail)| detail).collect();
        details.dedup();
        let detail = if details.is_empty() { "nothing is on its ladder".to_owned() } else { details.join("; ") };
        self.refuse(verdict, course, reason, detail, scene, plan);
    }

    /// Goes through one list from where its round stands. `Ok` when something is on trial now; else why not.
    fn climb_from(
        &mut self,
        tier: Tier,
        rungs: &[Rung],
        verdict: &Verdict,
        course: &mut Course,
        scene: &Scene,
        plan: &mut Plan,
    ) -> Result<(), Vec<(Reason, String)>> {
        let mut refusals = Vec::new();
        for (at, rung) in rungs.iter().enumerate().skip(course.round(tier).next) {
            match self.consider(rung, verdict, course, scene, plan) {
                Step::Pass(reason, detail) => refusals.push((reason, format!("{}: {detail}", rung.word()))),
                Step::Wait(reason, detail) => {
                    refusals.push((reason, format!("{}: {detail}", rung.word())));
                    break;
                }
                Step::Do { deed, reason } => {
                    let id = self.act(verdict.resource.clone(), deed.clone(), format!("{}; {reason}", words::standing(verdict)), plan);
                    course.last_action = Some(format!("{} (action {id})", rung.word()));
                    course.round(tier).tried(at, rung, scene.now);
                    // A notice changes nothing: the next rung follows at once.
                    if *rung != Rung::Notify {
                        course.trial = Some(self.attempt(id, rung, tier, &deed, verdict, course, scene));
                        return Ok(());
                    }
                }
            }
        }
        Err(refusals)
    }

    /// Enters what was just planned into the books, and puts it on trial.
    #[expect(clippy::too_many_arguments, reason = "each of them is needed once, and they have no life together")]
    fn attempt(&mut self, id: u64, rung: &Rung, tier: Tier, deed: &Deed, verdict: &Verdict, course: &mut Course, scene: &Scene) -> Trial {
        let victim = self.enter(deed, verdict, course, scene);
        match deed {
            Deed::Throttle(shares) if verdict.resource == Resource::Cpu => {
                self.hold.engage(id);
                self.hold.remember(shares);
            }
            Deed::Line(line) => {
                course.slowed = Some((line.slot, id));
                let figures = scene.candidate(line.slot).and_then(|candidate| candidate.grasp.figures);
                course.lease = figures.map(|figures| Lease::new(line.bytes, &figures, scene.now));
            }
            Deed::Throttle(shares) => {
                course.lease = None;
                course.slowed = shares.iter().find(|share| share.cores.is_some()).map(|share| (share.slot, id));
            }
            _ => {}
        }
        let before = verdict.used.unwrap_or(0.0);
        course.failure = None;
        if course.probes.len() < PROBES {
            course.probes.push(Probe::new(id, rung.word(), before, verdict.limit, scene.now));
        }
        Trial::new(id, rung.clone(), tier, victim, before, scene.dry, scene.now)
    }

    /// Enters a replica that is to end into the books; yields it with the time a graceful end may take.
    fn enter(&mut self, deed: &Deed, verdict: &Verdict, course: &mut Course, scene: &Scene) -> Option<(SlotId, Duration)> {
        let (Deed::Recycle(slot, _) | Deed::Kill(slot)) = deed else { return None };
        let candidate = scene.candidate(*slot)?;
        let within = match deed {
            Deed::Recycle(..) => {
                course.asked = Some(*slot);
                candidate.settings.stop.within
            }
            _ => Duration::ZERO,
        };
        self.cooldowns.spare(&candidate.worker, scene.now);
        if !scene.dry {
            self.flights.start(candidate, &verdict.resource, within, scene.memory, scene.candidates, scene.now);
        }
        let until = if scene.dry { PAUSE } else { within + PAUSE };
        self.ending.insert(*slot, Ending { worker: candidate.worker.clone(), at: scene.now, within: until });
        Some((*slot, within))
    }

    fn answer_or_say_dry(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        if scene.dry {
            self.refuse(verdict, course, Reason::DryRun, "planned, and not done".to_owned(), scene, plan);
        } else {
            course.answer();
        }
    }

    fn act(&mut self, resource: Resource, deed: Deed, reason: String, plan: &mut Plan) -> u64 {
        self.ids += 1;
        plan.actions.push(Action { id: self.ids, resource, deed, reason });
        self.ids
    }

    fn refuse(&self, verdict: &Verdict, course: &mut Course, reason: Reason, detail: String, scene: &Scene, plan: &mut Plan) {
        let reason = if scene.dry { Reason::DryRun } else { reason };
        let since = *course.unanswered.get_or_insert(scene.now);
        let is_news = course.told.is_none_or(|(told, at)| told != reason || scene.now.since(at) >= REMIND);
        if is_news {
            course.told = Some((reason, scene.now));
            plan.refusals.push(Refusal {
                resource: verdict.resource.clone(),
                reason: reason.word(),
                detail: detail.clone(),
                unanswered: scene.now.since(since),
            });
        }
        course.refusal = Some((reason, detail));
    }

    /// Keeps the shares in step with demand while the throttle is on.
    fn keep_budget(&mut self, verdict: &Verdict, scene: &Scene, plan: &mut Plan) {
        let Some(engaged) = self.hold.engaged() else { return };
        if let Some(room) = self.hold.room(verdict, scene.candidates) {
            self.hold.note_budget(&room);
        }
        let Some(shares) = self.hold.shares(verdict, scene.candidates) else { return };
        if !self.hold.differs(&shares) {
            return;
        }
        let budget = self.hold.room(verdict, scene.candidates).map_or(0.0, |room| room.budget());
        let reason = format!("{}; budget {}", words::standing(verdict), words::cores(budget));
        self.hold.remember(&shares);
        plan.actions.push(Action { id: engaged, resource: Resource::Cpu, deed: Deed::Throttle(shares), reason });
    }

    /// While the memory of somebody who was ended comes back, the fastest grower is stopped again and again, so that it does
    /// not take what comes. Each stop is as long as its `longest_stop` allows at most, and followed by as long a run.
    fn freeze_for_a_moment(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        if self.flights.is_empty() || verdict.level != Level::Critical || scene.dry {
            course.frozen = None;
            return;
        }
        let (Some(used), Some(limit)) = (verdict.used, verdict.limit) else { return };
        let is_free = |one: &&Candidate| {
            hold::is_throttleable(one)
                && one.busy.is_none()
                && one.grasp.can_freeze
                && !self.flights.each().any(|(slot, _)| slot == one.slot)
        };
        // Only one that could fill the rest by itself meanwhile is worth stopping.
        let could_fill = |one: &&Candidate| one.growth > 0.0 && used + one.growth * OVERDUE.as_secs_f64() >= limit;
        let fastest = scene.candidates.iter().filter(is_free).filter(could_fill).max_by(|a, b| a.growth.total_cmp(&b.growth));
        let Some(fastest) = fastest else { return };
        let stop = fastest.settings.longest_stop;
        let (before, all) = course.frozen.map_or((None, Duration::ZERO), |(_, at, all)| (Some(at), all));
        if before.is_some_and(|at| scene.now.since(at) < stop * 2) || all + stop > FROZEN_MOST {
            return;
        }
        let reason = format!("{} grows {} while memory comes back", fastest.name(), words::rate(fastest.growth));
        let id = match course.frozen {
            Some((id, ..)) => {
                plan.actions.push(Action { id, resource: Resource::Memory, deed: Deed::Freeze(fastest.slot), reason });
                id
            }
            None => self.act(Resource::Memory, Deed::Freeze(fastest.slot), reason, plan),
        };
        course.frozen = Some((id, scene.now, all + stop));
    }

    /// `limits.cpu` holds whether the machine is busy or not; while the budget is on it is a part of that.
    fn keep_own_limits(&mut self, scene: &Scene, plan: &mut Plan) {
        let is_waiting = self.limits_again.is_some_and(|at| scene.now.steady < at.steady);
        if self.hold.engaged().is_some() || is_waiting {
            return;
        }
        let mut shares = Hold::own_limits(scene.candidates);
        shares.extend(self.hold.outdated(scene.candidates));
        if !self.hold.differs(&shares) {
            return;
        }
        let name = |share: &Share| {
            let name = scene.candidate(share.slot).map(Candidate::name).unwrap_or_default();
            match share.cores {
                Some(cores) => format!("{name} {}", words::cores(cores)),
                None => format!("{name} free"),
            }
        };
        let reason = format!("limits.cpu: {}", shares.iter().map(name).collect::<Vec<_>>().join(", "));
        self.hold.remember(&shares);
        let limited: Vec<(SlotId, f64)> = shares.iter().filter_map(|share| Some((share.slot, share.cores?))).collect();
        let id = self.act(Resource::Cpu, Deed::Throttle(shares), reason, plan);
        if !limited.is_empty() && !scene.dry {
            let (slots, most) = (limited.iter().map(|(slot, _)| *slot).collect(), limited.iter().map(|(_, cores)| cores).sum());
            let mut limited = LimitProbe { probe: Probe::new(id, Rung::Throttle.word(), 0.0, scene.cpu_limit, scene.now), slots, most };
            // A replica that has only just started has used nothing yet that is known.
            limited.probe.before = limited.used(scene).unwrap_or(0.0);
            self.limit_probe = Some(limited);
        }
    }

    /// Replaces what leaks, or has lived long enough or done enough, one at a time over all workers: first whoever would do harm
    /// soonest, then whoever has lived longest.
    fn retire(&mut self, scene: &Scene, plan: &mut Plan) {
        let Some((retiring, cause, reason)) = self.leaking(scene).or_else(|| self.outlived(scene)) else { return };
        if self.other_ending(retiring.slot, scene).is_some() {
            return;
        }
        let within = if scene.dry { Duration::from_secs(600) } else { retiring.settings.stop.within + PAUSE };
        self.ending.insert(retiring.slot, Ending { worker: retiring.worker.clone(), at: scene.now, within });
        self.act(Resource::Worker(retiring.slot), Deed::Recycle(retiring.slot, cause), reason, plan);
    }

    fn may_retire(&self, candidate: &Candidate) -> bool {
        candidate.running && candidate.busy.is_none() && !self.ending.contains_key(&candidate.slot)
    }

    /// Whose leak reaches its line soonest. Protection holds, as it does against `recycle.memory`, and so does the pause after
    /// another replica of the worker was ended: there is time for it.
    fn leaking<'a>(&self, scene: &Scene<'a>) -> Option<(&'a Candidate, Cause, String)> {
        let may_go = |candidate: &&Candidate| {
            self.may_retire(candidate)
                && victim::spared(&candidate.settings, &Rung::Recycle).is_none()
                && self.cooldowns.worker(&candidate.worker, scene.now).is_zero()
        };
        let leaks = scene.candidates.iter().filter_map(|candidate| Some((candidate, candidate.leak?)));
        let soonest = leaks.filter(|(candidate, _)| may_go(candidate)).min_by_key(|(candidate, leak)| (leak.left, candidate.slot));
        soonest.map(|(candidate, leak)| (candidate, Cause::Leak, format!("leak: {} {}", candidate.name(), words::leak(&leak))))
    }

    /// Who has lived longest of those whose time is up. Protection is no bar: its own settings ask for it.
    fn outlived<'a>(&self, scene: &Scene<'a>) -> Option<(&'a Candidate, Cause, String)> {
        let due = scene
            .candidates
            .iter()
            .filter(|candidate| self.may_retire(candidate))
            .filter_map(|candidate| Some((candidate, candidate.due?)));
        let (oldest, due) = due.min_by_key(|(candidate, _)| (candidate.since.steady, candidate.slot))?;
        let (name, settings) = (oldest.name(), &oldest.settings.recycle);
        Some(match due {
            Due::Requests(answered) => {
                let most = settings.requests.unwrap_or(0);
                (oldest, Cause::Requests, format!("requests: {name} has answered {answered}, recycle.requests is {most} less jitter"))
            }
            Due::Lifetime => {
                let age = scene.now.since(oldest.since).as_secs();
                let most = settings.lifetime.map_or(0, |lifetime| lifetime.as_secs());
                (oldest, Cause::Lifetime, format!("lifetime: {name} has run for {age} s, recycle.lifetime is {most} s less jitter"))
            }
        })
    }
}

/// Looks after a line that is lent: lowers it, or takes it off and goes on with the processor instead.
fn keep_lease(verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
    let Some((slot, action)) = course.slowed else { return };
    let (Some(lease), Some(candidate)) = (course.lease.as_mut(), scene.candidate(slot)) else { return };
    if scene.dry {
        return;
    }
    let cores = choice::slowed_cores(candidate);
    let mut go_on = |deed, reason| plan.actions.push(Action { id: action, resource: Resource::Memory, deed, reason });
    match lease.step(&candidate.grasp, verdict.over, scene.now) {
        Term::Keep => {}
        Term::Lower(bytes) => {
            let also_cores = candidate.grasp.line == Some(LineKind::Hints);
            let line = Line { slot, bytes, cores, also_cores, instead_of: None };
            go_on(Deed::Line(line), format!("{} follows: slowed over {}", candidate.name(), words::bytes(bytes as f64)));
        }
        Term::End(why) => {
            course.lease = None;
            course.barred = Some((slot, scene.now.after(lease::BARRED)));
            go_on(Deed::Lift(slot), why.clone());
            let shares = vec![Share { slot, cores: Some(cores) }];
            go_on(Deed::Throttle(shares), format!("{why}; held to {} instead", words::cores(cores)));
        }
    }
}

/// The trial is over: its probe goes on to the tenth second. What could not be done has no effect to measure.
fn conclude(course: &mut Course, trial: &Trial, effective: bool, next: String) {
    if trial.failed.is_some() {
        course.probes.retain(|probe| probe.action != trial.action);
    }
    if let Some(probe) = course.probes.iter_mut().find(|probe| probe.action == trial.action) {
        (probe.effective, probe.next) = (Some(effective), next);
    }
}

#[cfg(test)]
mod tests;
