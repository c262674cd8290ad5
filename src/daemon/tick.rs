//! One tick: readings → verdicts → actions → effects, all four recorded.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::actuators::Effect;
use crate::actuators::hands::{DryRun, Hands, Perform};
use crate::host::clock::Moment;
use crate::journal::Event;
use crate::policy::stress::Measure;
use crate::policy::verdict::Basis;
use crate::policy::{Level, Resource, Verdict};
use crate::response::action::{Action, Deed, Outcome};
use crate::response::candidate::{Candidate, Due, Grasp};
use crate::response::planner::{Measured, Plan};
use crate::response::refusal::Refusal;
use crate::sampling::readings::{Reading, SlotId, Target, WorkerReadings};
use crate::supervisor::Replica;
use crate::supervisor::recycling::Room;

use super::guardian::Guardian;
use super::pacing;
use super::rationing::Subject;
use super::self_watch::{self, Change, Look};

/// By then rates are known, if they ever are.
const RATES_BY: Duration = Duration::from_secs(5);

/// How a limitation of the daemon's own making begins.
const GIVEN_UP: &str = "the daemon itself costs too much, and does without";

/// From this share of its line on, a worker's shared pages are counted exactly (dear, so not before).
const NEAR: f64 = 0.85;

impl Guardian {
    /// Looks, judges, plans, acts, records and publishes.
    pub fn tick(&mut self, now: Moment) {
        let late = now.steady.saturating_sub(self.tally.next_tick);
        self.keep_controllers(now);
        self.sampler.read_into(self.supervisor.targets(), now, &mut self.readings);
        self.supervisor.note_readings(&self.readings);
        self.supervisor.set_room(self.room());
        self.note_members();
        self.note_strays(now);
        self.hang_bell();
        self.throttle.measure(now.steady);

        // Taken out for the time of the tick, and their memory used again in the next.
        let mut verdicts = std::mem::take(&mut self.spare.verdicts);
        let mut candidates = std::mem::take(&mut self.spare.candidates);
        self.engine.judge_into(&self.readings, now, &mut verdicts);
        self.list_candidates(now, &mut candidates);
        self.look_at_grasps(&verdicts, &mut candidates, now);
        let Plan { actions, refusals, measured } = self.planner.plan(&verdicts, &self.readings, &candidates, now);
        let effects = self.perform(actions, &verdicts, now);
        self.planner.note(effects.iter().map(|effect| (&effect.action, &effect.outcome)), now);

        let mut events = self.changes(&verdicts);
        self.foretell(&verdicts, now, &mut events);
        self.tell_effects(&effects, &verdicts, now, &mut events);
        self.tell_measured(measured, &mut events);
        self.tell_refusals(&refusals, &mut events);
        self.guard_lines(now, &mut events);
        self.police_members(now, &mut events);
        self.watch_limits(now, &mut events);
        self.watch_self(late, now, &mut events);
        self.watch_history(&mut events);
        self.report(&verdicts, now, &mut events);
        self.tell(&events, now);
        self.look_closer(&verdicts, now);

        self.tally.tick += 1;
        self.spare.verdicts = std::mem::replace(&mut self.tally.verdicts, verdicts);
        self.allow_run(now);
        self.pace(now);
        self.explain(&candidates, now);
        self.spare.candidates = candidates;
        self.picture_now(now);
    }

    /// Takes over who belongs to which tree, when that may have changed.
    fn note_members(&mut self) {
        let trees = self.sampler.trees();
        if self.tally.noted == Some(trees.changes()) {
            return;
        }
        self.tally.noted = Some(trees.changes());
        for read in &self.readings.workers {
            let members = trees.members(read.slot).iter().map(|member| (member.pid, member.started));
            self.supervisor.note_members(read.slot, members);
        }
    }

    /// Everybody an action may be about.
    fn list_candidates(&self, now: Moment, into: &mut Vec<Candidate>) {
        let means = self.throttle.means();
        let candidate = |(replica, read): (&Replica, Option<&WorkerReadings>)| {
            let life = replica.life.as_ref()?;
            Some(Candidate {
                slot: life.slot,
                worker: replica.worker.name.clone(),
                replica: replica.index,
                settings: replica.worker.clone(),
                running: replica.is_running(),
                can_throttle: means.method(&replica.worker).is_ok(),
                since: life.started,
                cores: read.and_then(|read| read.used_cores.known()),
                memory: read.and_then(|read| read.memory.known()),
                growth: self.engine.growth(life.slot),
                grasp: Grasp::default(),
                busy: replica.busy(),
                due: due(replica, now),
                leak: self.engine.leak(life.slot).filter(|_| !replica.is_queued()),
            })
        };
        into.clear();
        into.extend(self.supervisor.with_readings(&self.readings).filter_map(candidate));
    }

    /// What there is for a second copy of a replica that is replaced: what is neither used nor over the `critical` line, less a
    /// tenth of the limit.
    fn room(&self) -> Room {
        let memory = &self.readings.memory;
        let (Some(limit), Some(used)) = (self.memory_limit(), memory.judged().known()) else { return Room::default() };
        Room { free: Some(limit.saturating_sub(used)), reserve: limit / 10 }
    }

    fn memory_limit(&self) -> Option<u64> {
        let (effective, asked) = (self.readings.memory.limit.known(), self.settings.policy.memory.limit.set());
        effective.into_iter().chain(asked).min()
    }

    fn perform(&mut self, actions: Vec<Action>, verdicts: &[Verdict], begun: Moment) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(actions.len());
        for action in actions {
            if action.deed.rung().is_some_and(|rung| rung.is_drastic()) && !self.still_needed(&action) {
                effects.push(Effect { action, at: begun, took: Duration::ZERO, outcome: Outcome::Gone });
                continue;
            }
            if let (Deed::Job(name), false) = (&action.deed, self.settings.policy.dry_run) {
                let outcome = self.relieve_disk(&name.clone(), over_line(&action.resource, verdicts), begun);
                effects.push(Effect { action, at: begun, took: Duration::ZERO, outcome });
                continue;
            }
            let hands = Hands { supervisor: &mut self.supervisor, throttle: &mut self.throttle, brake: &mut self.brake };
            let outcome =
                if self.settings.policy.dry_run { DryRun(hands).perform(&action, begun) } else { { hands }.perform(&action, begun) };
            let at = Moment::now();
            effects.push(Effect { action, at, took: at.since(begun), outcome });
        }
        effects
    }

    /// Looks again right before a drastic act: things may have recovered since the tick began.
    fn still_needed(&mut self, action: &Action) -> bool {
        let now = Moment::now();
        let fresh = self.sampler.read(self.supervisor.targets(), now);
        let verdicts = self.engine.judge(&fresh, now);
        self.planner.confirm(action, &verdicts)
    }

    /// What crossed a line, and which limits moved.
    fn changes(&mut self, verdicts: &[Verdict]) -> Vec<Event> {
        let mut events = Vec::new();
        let limits = [
            ("cpu", self.readings.cpu.limit_cores.known(), self.readings.cpu.limit_source.word()),
            ("memory", self.readings.memory.limit.known().map(|bytes| bytes as f64), self.readings.memory.limit_source.word()),
        ];
        for (place, (resource, now, source)) in limits.into_iter().enumerate() {
            let Some(was) = self.tally.limits.get_mut(place) else { continue };
            if now.is_some() && *was != now {
                if was.is_some() {
                    events.push(Event::LimitChanged { resource, was: *was, now, source });
                }
                *was = now;
            }
        }
        for verdict in verdicts {
            let was = self.tally.levels.insert(verdict.resource.clone(), verdict.level).unwrap_or(Level::Normal);
            if was != verdict.level {
                events.push(Event::VerdictChanged {
                    resource: self.label(&verdict.resource),
                    state: verdict.level.word(),
                    was: was.word(),
                    used: verdict.used,
                    limit: verdict.limit,
                    utilization: verdict.utilization,
                    high: verdict.high,
                    low: verdict.low,
                    measure: verdict.measure.map(Measure::word),
                    evidence: verdict.stress(),
                });
            }
        }
        // Every verdict stands in it now: where there are more, some are of what is not judged any more.
        if self.tally.levels.len() > verdicts.len() {
            let judged: BTreeSet<&Resource> = verdicts.iter().map(|verdict| &verdict.resource).collect();
            self.tally.levels.retain(|resource, _| judged.contains(resource));
        }
        events
    }

    /// What will be full soon.
    fn foretell(&mut self, verdicts: &[Verdict], now: Moment, events: &mut Vec<Event>) {
        for verdict in verdicts {
            if self.tally.foretold.is_news(verdict, now)
                && let Some(left) = verdict.exhaustion
            {
                events.push(Event::ExhaustionForetold {
                    resource: self.label(&verdict.resource),
                    used: verdict.used,
                    limit: verdict.limit,
                    utilization: verdict.utilization,
                    exhaustion_seconds: left.as_secs_f64(),
                });
            }
        }
        self.tally.foretold.keep(verdicts);
    }

    fn tell_effects(&mut self, effects: &[Effect], verdicts: &[Verdict], now: Moment, events: &mut Vec<Event>) {
        for effect in effects {
            let Effect { action, outcome, took, .. } = effect;
            let resource = self.label(&action.resource);
            let verdict = verdicts.iter().find(|verdict| verdict.resource == action.resource);
            let (used, limit, utilization) =
                verdict.map_or((None, None, None), |verdict| (verdict.used, verdict.limit, verdict.utilization));
            let (high, low) = verdict.map_or((0.0, 0.0), |verdict| (verdict.high, verdict.low));
            if action.deed == Deed::Release {
                if let Some(since) = self.tally.engaged.remove(&action.resource) {
                    let held_seconds = now.since(since).as_secs_f64();
                    events.push(Event::ThrottleReleased {
                        resource: resource.clone(),
                        utilization,
                        low,
                        held_seconds,
                        reason: action.reason.clone(),
                    });
                }
                if let Outcome::Failed(detail) = outcome {
                    events.push(Event::Degraded { part: "undo", detail: detail.clone() });
                }
                continue;
            }
            if matches!(action.deed, Deed::Lift(_)) {
                self.tell_lifted(action, events);
                continue;
            }
            let workers = self.whom(&action.deed);
            let fresh = action.id > self.tally.last_action;
            self.tally.last_action = self.tally.last_action.max(action.id);
            // A worker's own `limits.cpu` is held by the same means, but nothing is over a line.
            let begins =
                fresh && matches!(action.deed, Deed::Throttle(_) | Deed::Line(_)) && self.planner.status(&action.resource).throttled;
            if begins && matches!(outcome, Outcome::Done) {
                self.tally.engaged.insert(action.resource.clone(), now);
                let reason = action.reason.clone();
                events.push(Event::ThrottleEngaged {
                    resource: resource.clone(),
                    used,
                    limit,
                    utilization,
                    high,
                    workers: workers.clone(),
                    reason,
                });
            }
            let failed = matches!(outcome, Outcome::Failed(_));
            // A budget that is shared anew is the same action going on.
            if !fresh && !failed {
                continue;
            }
            let rung = action.deed.word();
            if matches!(outcome, Outcome::Done | Outcome::Failed(_)) {
                let counts = self.tally.actions.entry((resource.clone(), rung)).or_default();
                counts.0 += 1;
                counts.1 += u64::from(failed);
                self.tally.counters.reaction_seconds.observe(*took);
            }
            let (outcome, detail) = match outcome {
                Outcome::Done => ("done", String::new()),
                Outcome::DryRun => ("dry_run", String::new()),
                Outcome::Gone => ("gone", String::new()),
                Outcome::Unavailable(why) => ("unavailable", why.clone()),
                Outcome::Failed(why) => ("failed", why.clone()),
            };
            if outcome == "dry_run" {
                *self.tally.suppressed.entry("dry_run").or_default() += 1;
            }
            events.push(Event::ActionPerformed {
                action_id: action.id,
                resource,
                action: rung,
                workers,
                outcome,
                detail,
                reason: action.reason.clone(),
                took_seconds: took.as_secs_f64(),
            });
        }
        // Whoever was held and has ended took its throttle along.
        self.note_released("nobody is held any more", now, events);
    }

    /// Tells of every throttle that holds nobody any more.
    pub fn note_released(&mut self, reason: &str, now: Moment, events: &mut Vec<Event>) {
        let free: Vec<Resource> = self
            .tally
            .engaged
            .keys()
            .filter(|resource| !self.throttle.holds_for(resource) && !self.brake.holds_for(resource))
            .cloned()
            .collect();
        for resource in free {
            let Some(since) = self.tally.engaged.remove(&resource) else { continue };
            let verdict = self.tally.verdicts.iter().find(|verdict| verdict.resource == resource);
            events.push(Event::ThrottleReleased {
                resource: self.label(&resource),
                utilization: verdict.and_then(|verdict| verdict.utilization),
                low: verdict.map_or(0.0, |verdict| verdict.low),
                held_seconds: now.since(since).as_secs_f64(),
                reason: reason.to_owned(),
            });
        }
    }

    fn tell_measured(&self, measured: Vec<Measured>, events: &mut Vec<Event>) {
        // What was never done had no effect, and is not said to have had none.
        let measured = measured.into_iter().filter(|_| !self.settings.policy.dry_run);
        for Measured { action, resource, rung, before, limit, after_1s, after_10s, effective, .. } in measured {
            let share = |amount: Option<f64>| match (amount, limit) {
                (Some(amount), Some(limit)) if limit > 0.0 => Some(amount / limit),
                _ => None,
            };
            let resource = self.label(&resource);
            let (before, after_1s, after_10s) = (share(Some(before)), share(after_1s), share(after_10s));
            events.push(if effective {
                Event::ActionEffective { action_id: action, resource, action: rung, before, after_1s, after_10s }
            } else {
                Event::ActionIneffective { action_id: action, resource, action: rung, before, after_1s, after_10s }
            });
        }
    }

    /// The planner says itself how often a refusal is worth telling.
    fn tell_refusals(&mut self, refusals: &[Refusal], events: &mut Vec<Event>) {
        for refusal in refusals {
            *self.tally.suppressed.entry(refusal.reason).or_default() += 1;
            events.push(Event::ActionSuppressed {
                resource: self.label(&refusal.resource),
                reason: refusal.reason,
                detail: refusal.detail.clone(),
                unanswered_seconds: refusal.unanswered.as_secs_f64(),
            });
        }
    }

    /// Seeds row B1: the figures, every so often.
    fn report(&mut self, verdicts: &[Verdict], now: Moment, events: &mut Vec<Event>) {
        let Some(every) = self.settings.sampling.report_every else { return };
        if self.tally.reported.is_some_and(|at| now.since(at) < every) {
            return;
        }
        // The first looks have no rate yet; where there is none at all, that is said once they should have had.
        let known = verdicts.iter().any(|verdict| verdict.resource == Resource::Cpu && verdict.used.is_some());
        if !known && now.since(self.tally.started) < RATES_BY {
            return;
        }
        self.tally.reported = Some(now);
        let of = |resource: &Resource| verdicts.iter().find(|verdict| verdict.resource == *resource);
        let percent = |verdict: Option<&Verdict>| verdict.and_then(|verdict| verdict.utilization).map(|share| share * 100.0);
        let bytes = |amount: Option<f64>| amount.map(|amount| amount as u64);
        let (cpu, memory) = (of(&Resource::Cpu), of(&Resource::Memory));
        let disk = self.readings.disks.first();
        let space = disk.and_then(|disk| disk.space.known());
        let used = space.map(|space| space.size.saturating_sub(space.avail));
        events.push(Event::ResourceMetrics {
            cpu_percent: percent(cpu),
            cpu_limit_cores: cpu.and_then(|verdict| verdict.limit),
            memory_used_bytes: bytes(memory.and_then(|verdict| verdict.used)),
            memory_total_bytes: bytes(memory.and_then(|verdict| verdict.limit)),
            memory_percent: percent(memory),
            disk_path: disk.map(|disk| disk.path.display().to_string()),
            disk_used_bytes: used,
            disk_total_bytes: space.map(|space| space.size),
            disk_percent: space.filter(|space| space.size > 0).zip(used).map(|(space, used)| used as f64 / space.size as f64 * 100.0),
            workers_running: u32::try_from(self.supervisor.replicas().iter().filter(|replica| replica.is_running()).count())
                .unwrap_or(u32::MAX),
            throttled: !self.tally.engaged.is_empty(),
        });
        if let Some(history) = self.journal.history().filter(|_| self.self_watch.does_samples()) {
            for verdict in verdicts {
                history.sample(now, &self.label(&verdict.resource), verdict.used, verdict.limit);
            }
        }
    }

    /// Asks for the dear figures where a line is near: the exact memory of some replicas, and whether what is reclaimed is
    /// wanted back.
    fn look_closer(&mut self, verdicts: &[Verdict], now: Moment) {
        let near = |share: Option<f64>, verdict: &Verdict| share.is_some_and(|share| share >= NEAR * verdict.high);
        let memory = verdicts.iter().find(|verdict| verdict.resource == Resource::Memory);
        let working_set = self.readings.memory.working_set.known().map(|bytes| bytes as f64);
        if memory.is_some_and(|verdict| near(working_set.zip(verdict.limit).map(|(used, limit)| used / limit), verdict)) {
            self.sampler.want_refaults();
        }
        let is_scope_near = memory.is_some_and(|verdict| near(verdict.utilization, verdict));
        let own_line = |verdict: &Verdict| match verdict.resource {
            Resource::Worker(slot) if near(verdict.utilization, verdict) => Some(slot),
            _ => None,
        };
        let near_own: BTreeSet<SlotId> = verdicts.iter().filter_map(own_line).collect();
        if !is_scope_near && near_own.is_empty() {
            return;
        }
        // Read in the order of the targets, which may have changed since. A group of its own knows exactly anyway.
        let looked = self.supervisor.targets().iter().zip(&self.readings.workers);
        let subject = |(target, read): (&Target, &WorkerReadings)| {
            let own_line = near_own.contains(&target.slot);
            let is_wanted = target.slot == read.slot && target.memory_group.is_none() && (is_scope_near || own_line);
            Some(Subject { slot: target.slot, bytes: read.memory.known().filter(|_| is_wanted)?, own_line })
        };
        let subjects = looked.filter_map(subject).collect();
        if !self.self_watch.does_shares() {
            return;
        }
        for slot in self.tally.ration.choose(subjects, now) {
            self.sampler.want_pss(slot);
        }
    }

    /// Looks at what the daemon itself costs; gives up optional work where that is too much, and takes it up again.
    fn watch_self(&mut self, late: Duration, now: Moment, events: &mut Vec<Event>) {
        let own = self.spare.own_use.read();
        let change = self.self_watch.look(&Look {
            now: now.steady,
            late,
            gap: self.tally.gap,
            memory: own.private,
            cpu: own.cpu,
            replicas: self.supervisor.replicas().len(),
            holding: !self.tally.engaged.is_empty(),
        });
        events.push(match change {
            None => return,
            Some(Change::Shed(work, reason)) => Event::SelfShed { work, reason },
            Some(Change::Restored(work)) => Event::SelfRestored { work },
        });
        self.sampler.set_details(self.self_watch.does_details());
        let given_up = self_watch::WORK.iter().take(self.self_watch.given_up());
        self.environment.limitations.retain(|limitation| !limitation.starts_with(GIVEN_UP));
        self.environment.limitations.extend(given_up.map(|work| format!("{GIVEN_UP}: {work}")));
    }

    /// Tells once of a state database that cannot be written, or was begun anew; the daemon goes on without it.
    fn watch_history(&mut self, events: &mut Vec<Event>) {
        let Some(history) = self.journal.history() else { return };
        let degraded = |detail: String| Event::Degraded { part: "state database", detail };
        events.extend(history.take_notice().map(degraded));
        let problem = history.problem();
        if problem != self.tally.history_problem {
            events.extend(problem.clone().map(degraded));
            self.tally.history_problem = problem;
        }
    }

    /// The setting, or what keeps a watchdog fed.
    fn longest_gap(&self) -> Duration {
        self.settings.sampling.interval.min(self.service.longest_gap())
    }

    /// Sets the next tick, and counts this one.
    fn pace(&mut self, began: Moment) {
        for (total, failed) in self.tally.source_errors.iter_mut().zip(self.readings.failures) {
            *total += u64::from(failed);
        }
        let now = Moment::now();
        let took = now.since(began);
        self.tally.counters.tick_duration_seconds.observe(took);
        let gap = pacing::tick_gap(&self.tally.verdicts, !self.tally.engaged.is_empty(), self.longest_gap());
        // The workers' sum is known after a tick only.
        self.pace.after_tick(&self.tally.verdicts, |verdict| verdict.basis != Basis::Workers, gap, began);
        // Late by more than a whole gap, or longer than one: the next tick starts afresh instead of catching up.
        if took > gap {
            self.tally.counters.tick_overruns_total += 1;
        }
        self.tally.gap = gap;
        self.tally.next_tick = (began.steady + gap).max(now.steady);
    }

    /// Looks at what could reach its line before the next tick, and at nothing else.
    pub fn glance(&mut self, now: Moment) {
        let (mut from, mut looks) = (0, 0);
        let mut is_due = false;
        while let Some((at, resource)) = self.pace.due(from, now) {
            (from, looks) = (at + 1, looks + 1);
            let used = match resource {
                Resource::Memory => self.sampler.glance_at_memory(now).judged(),
                Resource::Worker(slot) => self.sampler.glance_at_worker(*slot, now),
                Resource::Cpu | Resource::Disk(_) => Reading::Unsupported,
            };
            let used = used.known().map(|bytes| bytes as f64);
            let fill = used.and_then(|used| self.engine.glimpse(resource, used, now));
            is_due |= self.pace.after_glance(at, used, fill, now);
        }
        if is_due {
            self.tally.next_tick = self.tally.next_tick.min(now.steady);
        }
        self.pace.note_cost(Moment::now().since(now), looks);
    }

    /// The replicas a deed is about, by name.
    fn whom(&self, deed: &Deed) -> Vec<String> {
        let slots = match deed {
            Deed::Shed(slots) => slots.clone(),
            Deed::Throttle(shares) => shares.iter().map(|share| share.slot).collect(),
            Deed::Line(line) => vec![line.slot],
            Deed::Reclaim(portions) => portions.iter().map(|portion| portion.slot).collect(),
            Deed::Recycle(slot, _) | Deed::Kill(slot) | Deed::Lift(slot) | Deed::Freeze(slot) => vec![*slot],
            Deed::Notify | Deed::Job(_) | Deed::Release => Vec::new(),
        };
        let name = |slot| self.supervisor.replica(slot).map(|replica| format!("{}.{}", replica.worker.name, replica.index));
        slots.into_iter().filter_map(name).collect()
    }
}

/// How many bytes are to be freed until a resource is under its line again.
fn over_line(resource: &Resource, verdicts: &[Verdict]) -> u64 {
    let verdict = verdicts.iter().find(|verdict| verdict.resource == *resource);
    let over = verdict.and_then(|verdict| Some(verdict.used? - verdict.low * verdict.limit?));
    // Not negative, and far below what a u64 holds.
    over.map_or(0, |bytes| bytes.max(0.0) as u64)
}

/// Why a replica is to be replaced without anything being over a line, if it is not about to be already.
fn due(replica: &Replica, now: Moment) -> Option<Due> {
    let life = replica.life.as_ref().filter(|_| replica.is_main() && replica.is_ready() && !replica.is_queued())?;
    if life.lifetime_due.is_some_and(|due| due <= now.steady) {
        return Some(Due::Lifetime);
    }
    life.requests_due.filter(|due| life.requests >= *due).map(|_| Due::Requests(life.requests))
}
