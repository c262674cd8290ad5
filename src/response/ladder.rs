//! One resource's way up its ladder: which rung comes next, whether the last one helped, and how long nothing has.
//!
//! A rung that was tried in vain is tried once more; twice in vain in a row, the next rung follows. There is no second try
//! where there is no time for it (at `critical`, or when `critical` would be reached during it), for a rung that failed or
//! cannot do anything now, and for one that ends a replica and brought nothing: the next rung follows at once. Nor is a rung that
//! only asks waited for where `critical` would be reached meanwhile and usage has only grown ([`ANSWERED`]). One that helped,
//! but not enough, is given its time again ([`RENEWALS`]); at `critical` one that ends a replica and brought memory back is
//! repeated for the next replica, each after the memory of the one before is back (`response::flight`).

use std::time::Duration;

use crate::config::settings::{Policy, Rung, Worker};
use crate::host::clock::Moment;
use crate::policy::{Level, Resource, Verdict};
use crate::response::candidate::Candidate;
use crate::response::cooldown::PAUSE;
use crate::sampling::readings::SlotId;

/// A throttle is given this long to follow: to show an effect when it is put on, and to catch up when others use more.
pub const THROTTLE_SETTLING: Duration = Duration::from_secs(5);
/// A throttle aims at the line itself: within two points of it, it holds.
pub const TOLERANCE: f64 = 0.02;
/// Usage that fell by this part of the limit, or by this part of what was over the line, shows that a rung helps.
const MEANINGFUL: f64 = 0.02;
const MEANINGFUL_EXCESS: f64 = 0.25;
/// How often a rung that helps, but not enough, is given its time again before the next is tried.
const RENEWALS: u8 = 3;
/// A rung that brings nothing so often in a row makes way for the next.
const IN_VAIN: u8 = 2;
/// Whoever can give memory back when asked has begun to after this long; what is measured then tells whether to wait for more.
const ANSWERED: Duration = Duration::from_secs(1);
/// A ladder of mild rungs none of which helps is walked less and less often, up to this.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// Which list of rungs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    High,
    Critical,
}

impl Tier {
    /// At `critical` its own rungs apply at once, whatever of the milder ones is untried; where none of them can do
    /// anything, the milder ones go on.
    pub fn of(level: Level) -> &'static [Tier] {
        match level {
            Level::Normal => &[],
            Level::High => &[Tier::High],
            Level::Critical => &[Tier::Critical, Tier::High],
        }
    }
}

/// The rungs of a resource; those of a replica (`worker`) are the ones for memory that concern one replica. Where a line is
/// set to replace it at, replacing is on its ladder whatever the machine's says.
pub fn rungs(policy: &Policy, resource: &Resource, worker: Option<&Worker>, tier: Tier) -> Vec<Rung> {
    let rule = match resource {
        Resource::Cpu => &policy.cpu.rule,
        Resource::Memory | Resource::Worker(_) => &policy.memory.rule,
        Resource::Disk(path) => match policy.disks.iter().find(|disk| *disk.path == **path) {
            Some(disk) => &disk.rule,
            None => return Vec::new(),
        },
    };
    let mut rungs = match tier {
        Tier::High => rule.on_high.clone(),
        Tier::Critical => rule.on_critical.clone(),
    };
    if matches!(resource, Resource::Worker(_)) {
        rungs.retain(|rung| matches!(rung, Rung::Shed | Rung::Recycle | Rung::Kill));
        let is_asked_for = worker.is_some_and(|worker| worker.recycle.memory.is_some());
        if tier == Tier::Critical && is_asked_for && !rungs.contains(&Rung::Recycle) {
            rungs.insert(0, Rung::Recycle);
        }
    }
    rungs
}

/// How long a rung is given to show an effect.
fn settling(rung: &Rung, level: Level) -> Duration {
    match rung {
        Rung::Notify => Duration::ZERO,
        Rung::Shed if level == Level::Critical => Duration::from_secs(2),
        Rung::Shed | Rung::Job(_) => Duration::from_secs(10),
        Rung::Throttle | Rung::Reclaim => THROTTLE_SETTLING,
        Rung::Recycle | Rung::Kill => Duration::from_secs(2),
    }
}

/// From here on nobody is given time any more: a replica's own limit, half-way from critical to the limit of all.
pub fn edge(verdict: &Verdict) -> f64 {
    match verdict.resource {
        Resource::Worker(_) => 1.0,
        _ => f64::midpoint(verdict.critical.unwrap_or(1.0), 1.0),
    }
}

/// True while there is time to try `rung` a second time.
pub fn has_time(rung: &Rung, verdict: &Verdict) -> bool {
    if verdict.used.is_none() || verdict.limit.is_none() {
        return false;
    }
    match rung {
        Rung::Notify => false,
        Rung::Recycle | Rung::Kill => true,
        _ => verdict.level == Level::High && !is_critical_after(verdict, settling(rung, verdict.level)),
    }
}

/// True when `critical` will be reached within `span`, at the present growth.
fn is_critical_after(verdict: &Verdict, span: Duration) -> bool {
    let (Some(used), Some(limit), Some(line)) = (verdict.used, verdict.limit, verdict.critical) else { return false };
    verdict.resource != Resource::Cpu && used + verdict.growth.max(0.0) * span.as_secs_f64() >= line * limit
}

/// A rung that was tried and is being watched.
#[derive(Clone, Debug)]
pub struct Trial {
    pub action: u64,
    pub rung: Rung,
    pub tier: Tier,
    /// The replica that is to end, and how long a graceful end may take.
    pub victim: Option<(SlotId, Duration)>,
    /// When it was tried, and when its time was last renewed.
    at: Moment,
    from: Moment,
    /// Usage at those two moments.
    pub before: f64,
    base: f64,
    renewals: u8,
    ended: Option<Moment>,
    /// The victim's flight is over; `true` when its memory came back.
    landed: Option<bool>,
    helped: bool,
    pub failed: Option<String>,
    pub dry: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    Pending,
    /// Usage is back under the line.
    Enough,
    /// Its time is over and usage is still over the line. `helped`: but lower than before.
    NotEnough {
        helped: bool,
    },
}

impl Trial {
    pub fn new(action: u64, rung: Rung, tier: Tier, victim: Option<(SlotId, Duration)>, before: f64, dry: bool, now: Moment) -> Self {
        Trial {
            action,
            rung,
            tier,
            victim,
            at: now,
            from: now,
            before,
            base: before,
            renewals: 0,
            ended: None,
            landed: None,
            helped: false,
            failed: None,
            dry,
        }
    }

    /// The victim is known to have ended.
    pub fn end(&mut self, now: Moment) {
        self.ended.get_or_insert(now);
    }

    /// What the victim held has come back (`back`), or is not waited for any longer.
    pub fn land(&mut self, back: bool, now: Moment) {
        self.end(now);
        self.landed = Some(back);
        self.helped |= back;
    }

    /// How the trial stands in this tick.
    pub fn progress(&mut self, verdict: &Verdict, candidates: &[Candidate], now: Moment) -> Progress {
        if self.failed.is_some() {
            return Progress::NotEnough { helped: false };
        }
        if let Some((slot, _)) = self.victim
            && !candidates.iter().any(|candidate| candidate.slot == slot && candidate.is_there())
        {
            self.end(now);
        }
        // A tick without a number decides nothing; the time goes on.
        let (Some(used), Some(limit), Some(usage)) = (verdict.used, verdict.limit, verdict.utilization) else { return Progress::Pending };
        let line = if self.rung == Rung::Throttle && verdict.resource == Resource::Cpu { verdict.high + TOLERANCE } else { verdict.high };
        if usage < line && now.since(self.at) > Duration::ZERO {
            return Progress::Enough;
        }
        if self.is_out_of_time(verdict, used, usage, now) {
            return Progress::NotEnough { helped: self.helped };
        }
        if self.landed.is_none() && now.since(self.from) < self.patience(verdict.level) {
            return Progress::Pending;
        }
        let excess = (self.base - verdict.high * limit).max(0.0);
        let fallen = self.base - used;
        let is_meaningful = fallen > 0.0 && (fallen >= MEANINGFUL * limit || fallen >= MEANINGFUL_EXCESS * excess);
        self.helped |= is_meaningful;
        if is_meaningful && self.renewals < RENEWALS && self.landed.is_none() {
            self.renewals += 1;
            self.from = now;
            self.base = used;
            return Progress::Pending;
        }
        Progress::NotEnough { helped: self.helped }
    }

    /// From the moment its time last began until it is over. An end is waited for until the flight has landed, which is
    /// told by [`Trial::land`]; only a graceful one that takes too long is not.
    fn patience(&self, level: Level) -> Duration {
        let settling = settling(&self.rung, level);
        match (&self.rung, self.victim, self.ended) {
            (Rung::Recycle, Some((_, within)), None) => within.saturating_sub(self.from.since(self.at)) + settling,
            (Rung::Recycle | Rung::Kill, Some(_), _) if !self.dry => Duration::MAX,
            _ => settling,
        }
    }

    /// At critical nothing is waited for that is seen to be of no use: a mild rung after which usage only grew, and a
    /// graceful end that is overtaken: at a replica's own limit, or half-way from critical to the limit, and still
    /// growing a second after it was asked. Before it, a rung that asks is not, once its answer would come too late.
    fn is_out_of_time(&self, verdict: &Verdict, used: f64, usage: f64, now: Moment) -> bool {
        let is_filling = verdict.growth > 0.0 && used > self.before;
        if !is_filling || verdict.resource == Resource::Cpu || self.dry {
            return false;
        }
        let age = now.since(self.at);
        if verdict.level != Level::Critical {
            let left = self.patience(verdict.level).saturating_sub(now.since(self.from));
            return matches!(self.rung, Rung::Shed | Rung::Reclaim) && age >= ANSWERED && is_critical_after(verdict, left);
        }
        match self.rung {
            Rung::Recycle => self.ended.is_none() && usage >= edge(verdict) && age >= Duration::from_secs(1),
            Rung::Kill => false,
            _ => self.tier == Tier::High && age > Duration::ZERO,
        }
    }
}

/// How far one list of rungs has been tried.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The rung to try next.
    pub next: usize,
    /// When a rung was last tried, found wanting, or did its work.
    rested: Option<Moment>,
    /// The rung at `next` did its work at that moment.
    worked: bool,
    /// In this round something helped, or a replica was ended: the next one is not put off.
    mattered: bool,
    /// In this round memory came back, or usage fell.
    helped: bool,
    /// How often in a row the rung at `next` was tried in vain.
    vain: u8,
    /// Rounds in a row that did not matter.
    fruitless: u32,
}

impl Round {
    /// The rung at `at` was tried.
    pub fn tried(&mut self, at: usize, rung: &Rung, now: Moment) {
        if at != self.next {
            self.vain = 0;
        }
        self.next = at + 1;
        self.worked = false;
        self.rested = Some(now);
        self.mattered |= rung.is_drastic();
    }

    /// The last rung tried was not enough; `helped`: but better than nothing. `again`: it gets a second try when it was in
    /// vain, and one that ends a replica goes on while that brings something.
    pub fn wanting(&mut self, rung: &Rung, helped: bool, again: bool, now: Moment) {
        self.rested = Some(now);
        self.mattered |= helped;
        self.helped |= helped;
        let is_repeated = again && if rung.is_drastic() { helped } else { !helped && self.vain + 1 < IN_VAIN };
        self.vain = if helped { 0 } else { self.vain + 1 };
        if is_repeated {
            self.next = self.next.saturating_sub(1);
        } else {
            self.vain = 0;
        }
    }

    /// The last rung tried was enough: when usage comes back it is tried again, unless that is soon.
    pub fn enough(&mut self, now: Moment) {
        self.next = self.next.saturating_sub(1);
        self.worked = true;
        self.vain = 0;
        self.mattered = true;
        self.rested = Some(now);
    }

    /// Moves on from a rung whose effect did not last.
    pub fn settle(&mut self, now: Moment) {
        if self.worked && self.rested.is_some_and(|at| now.since(at) < PAUSE) {
            self.next += 1;
        }
        self.worked = false;
    }

    /// How long until the list may be tried from its start again: the pause, doubled with each round that brought nothing.
    /// Nobody is asked every quarter of a minute, day and night, for what is not his to give.
    /// At critical, a round that brought something is followed by the next at once: the flights set the pace.
    pub fn again_in(&self, tier: Tier, now: Moment) -> Duration {
        if tier == Tier::Critical && self.helped {
            return Duration::ZERO;
        }
        let times = if self.mattered { 1 } else { 1 << self.fruitless.min(10) };
        let pause = PAUSE.saturating_mul(times).min(LONGEST_SILENCE);
        self.rested.map_or(Duration::ZERO, |at| pause.saturating_sub(now.since(at)))
    }

    /// Starts again from the first rung.
    pub fn restart(&mut self) {
        self.fruitless = if self.mattered { 0 } else { self.fruitless.saturating_add(1) };
        self.next = 0;
        self.mattered = false;
        self.helped = false;
        self.vain = 0;
        self.worked = false;
    }
}
