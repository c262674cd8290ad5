use super::*;
use crate::config::settings::{DiskPolicy, Signal, Worker};
use crate::host::memory_group::{Figures, Pace};
use crate::policy::leak::{self, Bound, Leak};
use crate::policy::tests::{MB, at, readings, rule, settings, worker};
use crate::response::action::Portion;
use crate::response::candidate::{Due, Grasp, Held, ReclaimBy};
use crate::response::tests::{candidate, verdict};
use proptest::prelude::*;

fn memory(level: Level, usage: f64) -> Verdict {
    verdict(Resource::Memory, level, usage)
}

fn shedding(slot: u64, megabytes: u64) -> Candidate {
    let mut one = candidate(slot, "web", 0.5, megabytes);
    Arc::make_mut(&mut one.settings).shed_signal = Some(Signal(10));
    one
}

struct Run {
    planner: Planner,
}

impl Run {
    fn new(settings: &Settings) -> Self {
        Run { planner: Planner::new(settings) }
    }

    fn plan(&mut self, second: f64, verdict: &Verdict, candidates: &[Candidate]) -> Plan {
        self.planner.plan(std::slice::from_ref(verdict), &readings(at(second)), candidates, at(second))
    }

    fn note(&mut self, second: f64, action: &Action, outcome: Outcome) {
        self.planner.note([(action, &outcome)], at(second));
    }
}

fn deeds(plan: &Plan) -> Vec<&'static str> {
    plan.actions.iter().map(|action| action.deed.rung().map_or("release", |rung| rung.word())).collect()
}

fn reasons(plan: &Plan) -> Vec<&'static str> {
    plan.refusals.iter().map(|refusal| refusal.reason).collect()
}

#[test]
fn an_effect_is_measured_before_after_one_second_and_after_ten() {
    let mut run = Run::new(&settings(vec![]));
    let web = [shedding(1, 500)];
    assert_eq!(deeds(&run.plan(0.0, &memory(Level::High, 0.85), &web)), ["shed"]);
    let mut measured = Vec::new();
    for (second, usage) in [(1.0, 0.75), (5.0, 0.74), (9.5, 0.73), (10.0, 0.72), (20.0, 0.72)] {
        measured.extend(run.plan(second, &memory(Level::High, usage), &web).measured);
    }
    let expected = Measured {
        action: 1,
        resource: Resource::Memory,
        rung: "shed",
        before: 850.0 * MB as f64,
        limit: Some(1000.0 * MB as f64),
        after_1s: Some(750.0 * MB as f64),
        after_10s: Some(720.0 * MB as f64),
        effective: true,
        next: "nothing, it was enough".to_owned(),
    };
    assert_eq!(measured, [expected]);
}

#[test]
fn the_outlook_of_a_machine_without_workers_waits_for_nobody() {
    let run = Run::new(&settings(vec![]));
    for usage in [0.02, 0.95] {
        for prospect in run.planner.outlook(&memory(Level::Normal, usage), &[], at(0.0)).rungs {
            assert_eq!(prospect.state, outlook::Standing::Passes, "at {usage}: {prospect:?}");
            let expected = if prospect.rung == "shed" || prospect.rung == "throttle" { "no running worker" } else { "no worker runs" };
            assert!(prospect.detail.contains(expected), "at {usage}: {prospect:?}");
        }
    }
}

#[test]
fn a_rung_that_was_twice_in_vain_makes_way_for_the_next() {
    let mut run = Run::new(&settings(vec![]));
    let web = [Candidate { growth: 1e6, ..shedding(1, 500) }];
    let high = memory(Level::High, 0.85);
    let mut measured = Vec::new();
    for second in 0..31 {
        let plan = run.plan(f64::from(second), &high, &web);
        let expected = match second {
            0 | 10 => vec!["shed"],
            20 => vec!["throttle"],
            _ => vec![],
        };
        assert_eq!(deeds(&plan), expected, "second {second}");
        if second == 20 {
            assert_eq!(plan.actions[0].deed, Deed::Throttle(vec![Share { slot: SlotId(1), cores: Some(0.125) }]));
        }
        measured.extend(plan.measured);
    }
    let seen: Vec<_> = measured.iter().map(|one| (one.action, one.effective, one.after_1s, one.after_10s, one.next.as_str())).collect();
    let same = Some(850.0 * MB as f64);
    assert_eq!(
        seen,
        [
            (1, false, same, same, "shed"),
            (2, false, same, same, "throttle"),
            // Its second try has nobody else to slow.
            (3, false, same, same, "throttle")
        ]
    );
    assert!(
        run.planner
            .status(&Resource::Memory)
            .last_effect
            .is_some_and(|effect| effect.contains(" ineffective: ") && effect.ends_with("after 10 s"))
    );
}

#[test]
fn there_is_no_second_try_where_there_is_no_time_for_it() {
    let web = [Candidate { growth: 1e7, ..shedding(1, 500) }];
    // At 10 MB/s the seventy megabytes up to critical are gone in seven seconds.
    let filling = Verdict { growth: 1e7, ..memory(Level::High, 0.85) };
    let mut run = Run::new(&settings(vec![]));
    assert_eq!(deeds(&run.plan(0.0, &filling, &web)), ["shed"]);
    assert_eq!(deeds(&run.plan(10.0, &filling, &web)), ["throttle"]);
}

#[test]
fn who_was_asked_is_not_waited_for_where_critical_comes_first() {
    let web = [Candidate { growth: 1e7, ..shedding(1, 500) }];
    // At 10 MB/s; critical is at 920 MB of 1000.
    let at = |usage: f64, growth: f64| Verdict { growth, ..memory(Level::High, usage) };
    let mut run = Run::new(&settings(vec![]));
    assert_eq!(deeds(&run.plan(0.0, &at(0.85, 1e7), &web)), ["shed"]);
    assert!(deeds(&run.plan(0.5, &at(0.855, 1e7), &web)).is_empty(), "it has had no time to answer");
    assert_eq!(deeds(&run.plan(1.0, &at(0.86, 1e7), &web)), ["throttle"]);

    // Whose answer is seen, or would come in time, is waited for.
    for (usage, growth) in [(0.845, 1e7), (0.851, 1e6)] {
        let mut run = Run::new(&settings(vec![]));
        assert_eq!(deeds(&run.plan(0.0, &at(0.85, 1e7), &web)), ["shed"]);
        assert!(deeds(&run.plan(1.0, &at(usage, growth), &web)).is_empty(), "at {usage}");
    }
}

#[test]
fn a_rung_that_helps_but_not_enough_is_given_its_time_again() {
    let mut run = Run::new(&settings(vec![]));
    let web = [Candidate { growth: 1e6, ..shedding(1, 500) }];
    run.plan(0.0, &memory(Level::High, 0.90), &web);
    assert_eq!(deeds(&run.plan(10.0, &memory(Level::High, 0.86), &web)), [""; 0]);
    assert_eq!(deeds(&run.plan(20.0, &memory(Level::High, 0.86), &web)), ["throttle"]);
    let plan = run.plan(20.1, &memory(Level::High, 0.86), &web);
    assert!(plan.measured[0].effective, "{plan:?}");
}

#[test]
fn the_effect_of_a_kill_is_measured_after_its_resource_has_gone() {
    let mut run = Run::new(&settings(vec![]));
    let mut web = candidate(1, "web", 0.5, 1000);
    Arc::make_mut(&mut web.settings).limits.memory = Some(1000 * MB);
    let own = verdict(Resource::Worker(SlotId(1)), Level::Critical, 1.0);
    assert_eq!(deeds(&run.plan(0.0, &own, &[web])), ["recycle"]);
    let calm = memory(Level::Normal, 0.3);
    let mut measured = Vec::new();
    for second in [0.5, 1.0, 5.0, 10.0, 11.0] {
        measured.extend(run.plan(second, &calm, &[]).measured);
    }
    let seen: Vec<_> = measured.iter().map(|one| (one.rung, one.after_1s, one.after_10s, one.effective)).collect();
    assert_eq!(seen, [("recycle", Some(0.0), Some(0.0), true)]);
}

#[test]
fn what_cannot_be_done_makes_way_in_the_next_tick() {
    for outcome in [Outcome::Unavailable("no signal".into()), Outcome::Failed("EPERM".into())] {
        let mut run = Run::new(&settings(vec![]));
        let web = [Candidate { growth: 1e6, ..shedding(1, 500) }];
        let plan = run.plan(0.0, &memory(Level::High, 0.85), &web);
        run.note(0.0, &plan.actions[0], outcome);
        let plan = run.plan(0.1, &memory(Level::High, 0.85), &web);
        assert_eq!(deeds(&plan), ["throttle"]);
        run.note(0.1, &plan.actions[0], Outcome::Failed("EROFS".into()));
        let plan = run.plan(0.2, &memory(Level::High, 0.85), &web);
        assert_eq!((deeds(&plan), reasons(&plan)), (vec![], vec!["cooldown"]));
        let status = run.planner.status(&Resource::Memory);
        assert!(status.detail.as_ref().is_some_and(|detail| detail.contains("EROFS")), "{status:?}");
        // It may have been half done.
        assert_eq!(deeds(&run.plan(0.3, &memory(Level::Normal, 0.5), &web)), ["release"]);
        assert_eq!(deeds(&run.plan(0.4, &memory(Level::Normal, 0.5), &web)), [""; 0]);
    }
}

#[test]
fn a_release_that_failed_is_repeated() {
    let mut run = Run::new(&settings(vec![]));
    let web = [Candidate { growth: 1e6, ..candidate(1, "web", 0.5, 500) }];
    assert_eq!(deeds(&run.plan(0.0, &memory(Level::High, 0.85), &web)), ["throttle"]);
    assert!(run.planner.status(&Resource::Memory).throttled);
    let plan = run.plan(1.0, &memory(Level::Normal, 0.5), &web);
    assert_eq!(deeds(&plan), ["release"]);
    run.note(1.0, &plan.actions[0], Outcome::Failed("EBUSY".into()));
    assert_eq!(deeds(&run.plan(2.0, &memory(Level::Normal, 0.5), &web)), [""; 0]);
    assert_eq!(deeds(&run.plan(6.0, &memory(Level::Normal, 0.5), &web)), ["release"]);
    assert_eq!(deeds(&run.plan(60.0, &memory(Level::Normal, 0.5), &web)), [""; 0]);
}

#[test]
fn at_critical_the_milder_rungs_are_skipped_and_a_filling_machine_does_not_wait_for_them() {
    let mut run = Run::new(&settings(vec![]));
    let web = [shedding(1, 500)];
    assert_eq!(deeds(&run.plan(0.0, &memory(Level::Critical, 0.93), &web)), ["recycle"]);

    let mut run = Run::new(&settings(vec![]));
    assert_eq!(deeds(&run.plan(0.0, &memory(Level::High, 0.85), &web)), ["shed"]);
    let filling = Verdict { growth: 1e8, ..memory(Level::Critical, 0.93) };
    assert_eq!(deeds(&run.plan(0.5, &filling, &web)), ["recycle"]);
}

#[test]
fn the_second_look_withdraws_what_is_no_longer_needed() {
    let mut run = Run::new(&settings(vec![]));
    let web = [candidate(1, "web", 0.5, 500)];
    let action = run.plan(0.0, &memory(Level::Critical, 0.93), &web).actions.remove(0);
    assert!(run.planner.confirm(&action, &[memory(Level::Critical, 0.93)]));
    assert!(!run.planner.confirm(&action, &[memory(Level::High, 0.75)]));
    assert!(!run.planner.confirm(&action, &[]), "without a verdict nobody is ended");
    // Nothing of it is left: when it comes back, so does the answer.
    let plan = run.plan(0.1, &memory(Level::Critical, 0.93), &web);
    assert_eq!(deeds(&plan), ["recycle"]);
    let manual = Action { deed: Deed::Recycle(SlotId(1), Cause::Manual), ..action };
    assert!(run.planner.confirm(&manual, &[]));
}

#[test]
fn ended_replicas_are_waited_for_and_their_successors_are_spared() {
    let mut run = Run::new(&settings(vec![]));
    let critical = memory(Level::Critical, 0.93);
    assert_eq!(deeds(&run.plan(0.0, &critical, &[candidate(1, "web", 0.5, 500)])), ["recycle"]);
    let stopping = [Candidate { busy: Some("recycling"), ..candidate(1, "web", 0.5, 500) }];
    assert_eq!(run.plan(20.0, &critical, &stopping), Plan::default());
    // Replaced at 25 by one as large: the memory of the first came back and the second took it. It is spared for fifteen.
    let fresh = [Candidate { since: at(25.0), ..candidate(2, "web", 0.5, 500) }];
    let plan = run.plan(25.0, &critical, &fresh);
    assert_eq!((deeds(&plan), reasons(&plan)), (vec![], vec!["cooldown"]));
    assert_eq!(deeds(&run.plan(39.0, &critical, &fresh)), [""; 0]);
    assert_eq!(deeds(&run.plan(40.0, &critical, &fresh)), ["recycle"]);
}

#[test]
fn nobody_else_is_ended_until_the_memory_of_the_first_is_back_or_overdue() {
    let all = [candidate(1, "web", 0.5, 500), candidate(2, "api", 0.5, 450)];
    let left = &all[1..];
    for (name, used_after, until) in [("back at once", 0.92, 2.5), ("it never comes back", 1.0, 12.0)] {
        let mut settings = settings(vec![]);
        settings.policy.memory.rule.on_critical = vec![Rung::Kill];
        let mut run = Run::new(&settings);
        assert_eq!(run.plan(0.0, &memory(Level::Critical, 1.4), &all).actions[0].deed, Deed::Kill(SlotId(1)));
        // Stuck for two seconds.
        assert_eq!(deeds(&run.plan(1.9, &memory(Level::Critical, 1.4), &all)), [""; 0], "{name}");
        let mut killed = None;
        for tenth in 20..200 {
            let second = f64::from(tenth) / 10.0;
            let usage = if second < 2.5 { 1.4 } else { used_after + 0.2 };
            let plan = run.plan(second, &memory(Level::Critical, usage), left);
            assert_eq!(run.planner.status(&Resource::Memory).unanswered, Duration::ZERO, "{name} at {second}");
            if let Some(action) = plan.actions.first() {
                assert_eq!(action.deed, Deed::Kill(SlotId(2)), "{name}");
                killed = Some(second);
                break;
            }
        }
        assert_eq!(killed, Some(until), "{name}");
    }
}

#[test]
fn one_that_does_not_end_in_time_is_killed_and_nobody_else() {
    let mut run = Run::new(&settings(vec![]));
    let critical = memory(Level::Critical, 0.93);
    run.plan(0.0, &critical, &[candidate(1, "web", 0.5, 500), candidate(2, "api", 0.5, 400)]);
    let stopping = [Candidate { busy: Some("recycling"), ..candidate(1, "web", 0.5, 500) }, candidate(2, "api", 0.5, 400)];
    assert_eq!(deeds(&run.plan(31.9, &critical, &stopping)), [""; 0]);
    let plan = run.plan(32.0, &critical, &stopping);
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(plan.actions[0].deed, Deed::Kill(SlotId(1)));
}

#[test]
fn refusals_say_which_of_the_possible_reasons_it_is() {
    let protected = |slot, megabytes| {
        let mut one = candidate(slot, "db", 0.1, megabytes);
        Arc::make_mut(&mut one.settings).protected = true;
        one
    };
    let starting = Candidate { busy: Some("starting"), ..candidate(1, "web", 0.1, 500) };
    let cases: Vec<(&str, Vec<Candidate>, &str)> = vec![
        ("nobody is there", vec![], "no_worker"),
        ("all are too small", vec![candidate(1, "web", 0.1, 50)], "outside_usage"),
        ("the one that counts is protected", vec![candidate(1, "web", 0.1, 50), protected(2, 500)], "protected"),
        ("the one that counts is starting", vec![starting], "in_flight"),
        ("nobody, protected or not, is large enough", vec![candidate(1, "web", 0.1, 50), protected(2, 10)], "outside_usage"),
    ];
    for (name, candidates, reason) in cases {
        let mut run = Run::new(&settings(vec![]));
        let plan = run.plan(0.0, &memory(Level::Critical, 0.93), &candidates);
        assert_eq!((deeds(&plan), reasons(&plan)), (vec![], vec![reason]), "{name}");
        let status = run.planner.status(&Resource::Memory);
        assert_eq!(status.reason, Some(reason), "{name}: {status:?}");
        // Told once, then once a minute; the seconds go on.
        let told: usize =
            (1..=60).map(|second| run.plan(f64::from(second), &memory(Level::Critical, 0.93), &candidates).refusals.len()).sum();
        assert_eq!(told, 1, "{name}");
        assert_eq!(run.planner.status(&Resource::Memory).unanswered, Duration::from_secs(60), "{name}");
        run.plan(61.0, &memory(Level::High, 0.75), &candidates);
        assert_eq!(run.planner.status(&Resource::Memory).unanswered, Duration::ZERO, "{name}: back under the line");
    }
}

#[test]
fn a_replica_on_its_own_line_follows_its_own_ladder() {
    let own = |level, usage| verdict(Resource::Worker(SlotId(1)), level, usage);
    let with = |set: fn(&mut Worker)| {
        let mut one = candidate(1, "web", 0.5, 900);
        set(Arc::make_mut(&mut one.settings));
        one
    };
    let limited = with(|worker| worker.limits.memory = Some(1000 * MB));
    let protected = with(|worker| worker.protected = true);

    let mut run = Run::new(&settings(vec![]));
    let plan = run.plan(0.0, &own(Level::High, 0.85), std::slice::from_ref(&limited));
    assert_eq!(reasons(&plan), ["unavailable"], "it cannot be asked");
    assert_eq!(deeds(&run.plan(1.0, &own(Level::Critical, 0.93), std::slice::from_ref(&limited))), ["recycle"]);
    let stopping = [Candidate { busy: Some("recycling"), ..limited.clone() }];
    let growing = Verdict { growth: 1e7, ..own(Level::Critical, 1.01) };
    assert_eq!(deeds(&run.plan(1.5, &growing, &stopping)), [""; 0], "a second to end by itself");
    assert_eq!(deeds(&run.plan(2.0, &growing, &stopping)), ["kill"]);

    let mut run = Run::new(&settings(vec![]));
    assert_eq!(reasons(&run.plan(0.0, &own(Level::Critical, 1.2), &[protected])), ["protected"]);

    // Only one replica of all is away at a time, unless it is at its limit.
    let mut other = candidate(2, "api", 0.1, 10);
    other.busy = Some("recycling");
    let mut run = Run::new(&settings(vec![]));
    assert_eq!(reasons(&run.plan(0.0, &own(Level::Critical, 0.95), &[limited.clone(), other.clone()])), ["in_flight"]);
    assert_eq!(deeds(&run.plan(1.0, &own(Level::Critical, 1.0), &[limited, other])), ["recycle"]);
}

#[test]
fn a_recycle_line_is_kept_whatever_the_ladder_of_the_machine() {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.on_critical = vec![Rung::Notify];
    let mut web = candidate(1, "web", 0.5, 900);
    Arc::make_mut(&mut web.settings).recycle.memory = Some(900 * MB);
    let mut run = Run::new(&settings);
    let plan = run.plan(0.0, &verdict(Resource::Worker(SlotId(1)), Level::Critical, 0.93), &[web]);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(1), Cause::Memory));
    assert!(plan.actions[0].reason.contains("memory"), "{}", plan.actions[0].reason);
}

#[test]
fn a_lifetime_ends_one_replica_at_a_time_protected_or_not() {
    let due = |slot, second| {
        let mut one = Candidate { due: Some(Due::Lifetime), since: at(second), ..candidate(slot, "web", 0.1, 10) };
        Arc::make_mut(&mut one.settings).protected = true;
        one
    };
    let mut run = Run::new(&settings(vec![]));
    let calm = memory(Level::Normal, 0.3);
    let plan = run.plan(100.0, &calm, &[due(1, 5.0), due(2, 4.0)]);
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(2), Cause::Lifetime));
    assert!(plan.actions[0].reason.starts_with("lifetime"), "{}", plan.actions[0].reason);
    assert_eq!(run.plan(101.0, &calm, &[due(1, 5.0), due(2, 4.0)]), Plan::default());
    let plan = run.plan(102.0, &calm, &[due(1, 5.0), candidate(3, "web", 0.1, 10)]);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(1), Cause::Lifetime));
}

/// A replica whose leak reaches its limit of 1 GB in so many seconds.
fn leaking(slot: u64, left: u64) -> Candidate {
    let bound = Bound { line: leak::Line::Limit, at: 1e9, limit: 1e9 };
    let (from, to, within) = (300e6, 780e6, Duration::from_secs(512));
    let leak = Leak { from, to, within, rate: 1e6, bound, left: Duration::from_secs(left) };
    Candidate { leak: Some(leak), ..candidate(slot, "web", 0.1, 780) }
}

#[test]
fn leaks_end_one_replica_at_a_time_the_most_urgent_first() {
    let mut run = Run::new(&settings(vec![]));
    let calm = memory(Level::Normal, 0.3);
    let (later, sooner) = (leaking(1, 400), leaking(2, 220));
    let plan = run.plan(100.0, &calm, &[later.clone(), sooner.clone()]);
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(2), Cause::Leak));
    let reason = "leak: web.0 grew steadily from 300.0 MB to 780.0 MB in 9 min, by 3.6 GB an hour: \
                  limits.memory (1.0 GB) would be reached in 4 min";
    assert_eq!(plan.actions[0].reason, reason);
    // It takes its time to end.
    let ending = Candidate { busy: Some("recycling"), running: false, ..sooner };
    assert_eq!(run.plan(101.0, &calm, &[later.clone(), ending]), Plan::default());
    // Its successor is young, and its worker is spared for a moment.
    let young = candidate(3, "web", 0.1, 10);
    assert_eq!(run.plan(102.0, &calm, &[later.clone(), young.clone()]), Plan::default());
    assert_eq!(run.plan(116.0, &calm, &[later.clone(), young.clone()]), Plan::default());
    let plan = run.plan(117.0, &calm, &[later, young]);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(1), Cause::Leak));
}

#[test]
fn a_leak_ends_nobody_who_is_protected_or_busy_and_goes_before_a_lifetime() {
    let calm = memory(Level::Normal, 0.3);
    let mut protected = leaking(1, 10);
    Arc::make_mut(&mut protected.settings).protected = true;
    let starting = Candidate { busy: Some("starting"), ..leaking(2, 10) };
    assert_eq!(Run::new(&settings(vec![])).plan(0.0, &calm, &[protected.clone(), starting.clone()]), Plan::default());
    let old = Candidate { due: Some(Due::Lifetime), ..candidate(3, "api", 0.1, 10) };
    let mut run = Run::new(&settings(vec![]));
    let plan = run.plan(0.0, &calm, &[protected.clone(), starting.clone(), old.clone(), leaking(4, 1000)]);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(4), Cause::Leak));
    let plan = Run::new(&settings(vec![])).plan(0.0, &calm, &[protected, starting, old]);
    assert_eq!(plan.actions[0].deed, Deed::Recycle(SlotId(3), Cause::Lifetime));
}

#[test]
fn a_failed_own_cpu_limit_is_tried_again_after_a_pause() {
    let mut web = candidate(1, "web", 1.0, 10);
    Arc::make_mut(&mut web.settings).limits.cpu = Some(0.5);
    let calm = verdict(Resource::Cpu, Level::Normal, 0.5);
    let mut run = Run::new(&settings(vec![]));
    let plan = run.plan(0.0, &calm, &[web.clone()]);
    assert_eq!(plan.actions[0].deed, Deed::Throttle(vec![Share { slot: SlotId(1), cores: Some(0.5) }]));
    run.note(0.0, &plan.actions[0], Outcome::Failed("EACCES".into()));
    assert_eq!(deeds(&run.plan(1.0, &calm, &[web.clone()])), [""; 0]);
    assert_eq!(deeds(&run.plan(15.0, &calm, &[web.clone()])), ["throttle"]);
    assert_eq!(deeds(&run.plan(16.0, &calm, &[web.clone()])), [""; 0]);
    Arc::make_mut(&mut web.settings).limits.cpu = None;
    let plan = run.plan(17.0, &calm, &[web]);
    assert_eq!(plan.actions[0].deed, Deed::Throttle(vec![Share { slot: SlotId(1), cores: None }]));
}

#[test]
fn usage_that_is_low_because_of_the_hold_itself_releases_nobody() {
    let cpu = |level, usage| verdict(Resource::Cpu, level, usage);
    let hog = |cores| [candidate(1, "hog", cores, 10)];
    let mut run = Run::new(&settings(vec![]));
    run.plan(0.0, &cpu(Level::Normal, 0.95), &hog(0.6));
    let plan = run.plan(1.0, &cpu(Level::High, 0.95), &hog(0.6));
    assert_eq!(deeds(&plan), ["throttle"]);
    let Deed::Throttle(shares) = &plan.actions[0].deed else { panic!("{plan:?}") };
    let share = shares[0].cores.expect("it is held");
    run.note(1.0, &plan.actions[0], Outcome::Done);
    // Others have gone. The hog uses all it is left, which is not enough for the line: the hold widens, and stays.
    let calm = |cores: f64| cpu(Level::Normal, cores / 2.0);
    let plan = run.plan(2.0, &calm(share), &hog(share));
    let Deed::Throttle(wider) = &plan.actions[0].deed else { panic!("{plan:?}") };
    assert!(wider[0].cores > Some(2.0 * share), "{plan:?}");
    run.note(2.0, &plan.actions[0], Outcome::Done);
    // It has all it wants: nobody is held back.
    let plans: Vec<Plan> = (3..6).map(|second| run.plan(f64::from(second), &calm(0.1), &hog(0.1))).collect();
    assert_eq!(plans.iter().filter(|plan| deeds(plan) == ["release"]).count(), 1, "{plans:?}");
}

/// A replica of 500 MB that grows, with so many megabytes of file cache, so many of free swap, held at a line or not.
fn in_a_group(cache: u64, swap: u64, held: Option<u64>, slowed: u64) -> Candidate {
    let mut one = Candidate { growth: 1e6, ..candidate(1, "web", 0.4, 500) };
    one.grasp = Grasp {
        figures: Some(Figures { current: 500 * MB, anonymous: (500 - cache) * MB, cache: cache * MB, line: held, slowed }),
        swap_room: Some(swap * MB),
        line: Some(LineKind::Slows),
        held: held.map(Held::Set),
        reclaim: Some(ReclaimBy::Group),
        can_freeze: true,
        pace: Pace::default(),
    };
    one
}

#[test]
fn memory_is_slowed_by_a_line_where_that_is_safe_else_by_the_processor() {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.on_high = vec![Rung::Throttle];
    for (name, one, by_line) in [
        ("cache to take back", in_a_group(200, 0, None, 0), true),
        ("swap to go to", in_a_group(0, 1000, None, 0), true),
        ("no swap and nearly all anonymous", in_a_group(20, 0, None, 0), false),
        ("v1 and others too", Candidate { grasp: Grasp::default(), ..in_a_group(200, 0, None, 0) }, false),
    ] {
        let mut run = Run::new(&settings);
        let plan = run.plan(0.0, &memory(Level::High, 0.85), &[one]);
        match &plan.actions[0].deed {
            Deed::Line(line) => {
                assert!(by_line, "{name}");
                assert!(line.bytes < 500 * MB && line.bytes > 480 * MB, "{name}: {line:?}");
            }
            Deed::Throttle(shares) => assert!(!by_line && shares[0].cores.is_some(), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_line_without_progress_is_lifted_after_ten_seconds_and_the_processor_is_held_instead() {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.on_high = vec![Rung::Throttle];
    let mut run = Run::new(&settings);
    let high = memory(Level::High, 0.85);
    let plan = run.plan(0.0, &high, &[in_a_group(200, 0, None, 0)]);
    let Deed::Line(line) = plan.actions[0].deed else { panic!("{plan:?}") };
    let mut lifted = None;
    for second in 1..60_u32 {
        let held = if lifted.is_none() { Some(line.bytes) } else { None };
        let plan = run.plan(f64::from(second), &high, &[in_a_group(200, 0, held, u64::from(second))]);
        if let Some(at) = plan.actions.iter().position(|action| action.deed == Deed::Lift(SlotId(1))) {
            assert_eq!(lifted.replace(second), None, "once");
            assert_eq!(plan.actions[at + 1].deed, Deed::Throttle(vec![Share { slot: SlotId(1), cores: Some(0.1) }]));
            assert_eq!(plan.actions[at + 1].id, line_id(), "the same action going on");
        }
        assert!(!plan.actions.iter().any(|action| matches!(action.deed, Deed::Line(_))), "no line again at {second}: {plan:?}");
    }
    assert_eq!(lifted, Some(10));
    assert_eq!(deeds(&run.plan(61.0, &memory(Level::Normal, 0.5), &[in_a_group(200, 0, None, 99)])), ["release"]);

    fn line_id() -> u64 {
        1
    }
}

#[test]
fn memory_is_asked_back_only_where_it_would_be_seen_to_come() {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.on_high = vec![Rung::Reclaim];
    let high = memory(Level::High, 0.85);
    let fixed = |megabytes: u64| {
        let mut seen = readings(at(0.0));
        seen.memory.unreclaimable = crate::sampling::readings::Reading::Known(megabytes * MB);
        seen
    };
    let ask = |seen: &Readings, one: Candidate| Planner::new(&settings).plan(std::slice::from_ref(&high), seen, &[one], at(0.0));
    // 850 MB in use; back under 700 is what is asked for.
    let swap = ask(&fixed(850), in_a_group(200, 1000, None, 0));
    assert_eq!(swap.actions[0].deed, Deed::Reclaim(vec![Portion { slot: SlotId(1), bytes: 150 * MB, by: ReclaimBy::Group }]));
    let nothing = ask(&fixed(850), in_a_group(200, 0, None, 0));
    assert_eq!((deeds(&nothing), reasons(&nothing)), (vec![], vec!["unavailable"]));
    assert!(nothing.refusals[0].detail.contains("file cache is not what is counted"), "{nothing:?}");
    let cache = ask(&fixed(600), in_a_group(100, 0, None, 0));
    assert_eq!(cache.actions[0].deed, Deed::Reclaim(vec![Portion { slot: SlotId(1), bytes: 100 * MB, by: ReclaimBy::Group }]));
}

#[test]
fn a_fast_grower_is_stopped_in_turns_while_the_memory_of_another_comes_back() {
    let mut run = Run::new(&settings(vec![]));
    let mut grower = Candidate { slot: SlotId(2), growth: 5e7, memory: Some(100 * MB), ..in_a_group(0, 0, None, 0) };
    Arc::make_mut(&mut grower.settings).priority = 5;
    let victim = candidate(1, "web", 0.1, 500);
    let critical = Verdict { growth: 5e7, ..memory(Level::Critical, 0.93) };
    assert_eq!(run.plan(0.0, &critical, &[victim, grower.clone()]).actions[0].deed, Deed::Recycle(SlotId(1), Cause::Memory));
    let stopping = [Candidate { running: false, busy: Some("recycling"), ..candidate(1, "web", 0.1, 500) }, grower.clone()];
    let mut stops = Vec::new();
    for tenth in 1..200 {
        let second = f64::from(tenth) / 10.0;
        let plan = run.plan(second, &critical, &stopping);
        assert!(plan.actions.iter().all(|action| action.deed == Deed::Freeze(SlotId(2))), "{plan:?}");
        stops.extend(plan.actions.iter().map(|_| second));
    }
    let stop = grower.settings.longest_stop.as_secs_f64();
    assert!(!stops.is_empty() && stops.len() as f64 * stop <= 5.0, "{stops:?}");
    assert!(stops.windows(2).all(|pair| pair[1] - pair[0] >= stop * 2.0 - 1e-9), "{stops:?}");
}

#[derive(Clone, Debug)]
struct Tick {
    gap: u64,
    usages: [(f64, u8); 3],
    outcome: u8,
    changes: (u8, u64),
}

fn ticks() -> impl Strategy<Value = Vec<Tick>> {
    let usage = || (0.0f64..1.1, 0u8..12);
    let one = (1u64..4000, [usage(), usage(), usage()], 0u8..8, (0u8..6, 0u64..900));
    let one = one.prop_map(|(gap, usages, outcome, changes)| Tick { gap, usages, outcome, changes });
    prop::collection::vec(one, 1..120)
}

fn levelled(resource: Resource, (usage, odd): (f64, u8)) -> Verdict {
    let level = match usage {
        usage if usage >= 0.92 => Level::Critical,
        usage if usage >= 0.75 => Level::High,
        _ => Level::Normal,
    };
    let mut verdict = verdict(resource, level, usage);
    verdict.growth = f64::from(odd) * 1e6 - 3e6;
    if odd == 0 {
        (verdict.used, verdict.utilization, verdict.over) = (None, None, false);
    }
    verdict
}

proptest! {
    #[test]
    fn whatever_happens_the_promises_hold(ticks in ticks(), dry in prop::bool::weighted(0.1), strict in prop::bool::ANY) {
        let mut settings = settings(vec![worker("web"), worker("db")]);
        settings.policy.dry_run = dry;
        settings.policy.disks = vec![DiskPolicy { path: "/data".into(), rule: rule() }];
        settings.policy.cpu.rule.on_critical = if strict { vec![Rung::Kill] } else { vec![] };
        let disk = Resource::Disk(Arc::from(std::path::Path::new("/data")));
        let (mut planner, mut twin) = (Planner::new(&settings), Planner::new(&settings));
        let (mut now, mut slots, mut newest) = (0, 4, 0);
        let mut candidates: Vec<Candidate> = (1..=4).map(|slot| shedding(slot, slot * 100)).collect();
        let protect = |one: &mut Candidate| Arc::make_mut(&mut one.settings).protected = true;
        protect(&mut candidates[3]);
        let mut held: BTreeSet<Resource> = BTreeSet::new();
        // The last one ended for what all share, and when.
        let mut flying: Option<(SlotId, f64)> = None;
        for tick in ticks {
            now += tick.gap;
            let moment = at(now as f64 / 1000.0);
            let which = tick.changes.0 as usize % candidates.len();
            match tick.changes.0 {
                0 => candidates[which].memory = Some(tick.changes.1 * MB),
                1 => candidates[which].memory = None,
                2 => {
                    candidates[which].growth = tick.changes.1 as f64 * 1e5;
                    let cache = tick.changes.1 / 2;
                    let slot = candidates[which].slot;
                    candidates[which].grasp = in_a_group(cache.min(500), tick.changes.1 % 7 * 50, None, 0).grasp;
                    let figures = candidates[which].grasp.figures.as_mut().unwrap();
                    figures.slowed = tick.changes.1;
                    // Sometimes the line we set is there, sometimes another, sometimes none.
                    let lease = planner.courses.get(&Resource::Memory).and_then(|course| Some((course.slowed?.0, course.lease.as_ref()?.line)));
                    if let Some((_, line)) = lease.filter(|(slowed, _)| *slowed == slot) {
                        figures.line = (tick.changes.1 % 5 > 0).then_some(line);
                        candidates[which].grasp.held = (tick.changes.1 % 3 > 0).then_some(Held::Set(line));
                    }
                }
                3 => candidates[which].busy = (tick.changes.1 % 2 == 0).then_some("stopping"),
                4 => {
                    slots += 1;
                    candidates[which] = shedding(slots, tick.changes.1);
                    if which == 3 {
                        protect(&mut candidates[which]);
                    }
                }
                _ => candidates[which].cores = Some(tick.changes.1 as f64 / 450.0),
            }
            let verdicts = [
                levelled(Resource::Cpu, tick.usages[0]),
                levelled(Resource::Memory, tick.usages[1]),
                levelled(disk.clone(), tick.usages[2]),
            ];
            let seen = readings(moment);
            let plan = planner.plan(&verdicts, &seen, &candidates, moment);
            prop_assert_eq!(&plan, &twin.plan(&verdicts, &seen, &candidates, moment), "the same twice");

            let mut tried: Vec<&Resource> = Vec::new();
            for action in &plan.actions {
                // Ids rise; shares sent anew keep theirs.
                let may_go_on = matches!(action.deed, Deed::Throttle(_) | Deed::Line(_) | Deed::Lift(_) | Deed::Freeze(_));
                prop_assert!(action.id > newest || may_go_on);
                let is_new = action.id > newest;
                newest = newest.max(action.id);
                prop_assert!(!action.reason.is_empty());
                match &action.deed {
                    Deed::Recycle(slot, _) | Deed::Kill(slot) => {
                        let victim = candidates.iter().find(|one| one.slot == *slot).expect("a victim is a candidate");
                        prop_assert!(!victim.settings.protected);
                        prop_assert!(victim.busy.is_none() || matches!(action.deed, Deed::Kill(_)));
                        let verdict = verdicts.iter().find(|verdict| verdict.resource == action.resource).unwrap();
                        prop_assert!(verdict.over && verdict.level == Level::Critical);
                        // Nobody ends for what others use.
                        let gives = |one: &Candidate| match verdict.resource {
                            Resource::Cpu => one.cores.unwrap_or(0.0),
                            _ => one.memory.unwrap_or(0) as f64,
                        };
                        let ours: f64 = candidates.iter().map(gives).sum();
                        prop_assert!(verdict.used.unwrap() - ours < verdict.high * verdict.limit.unwrap());
                        // Never two in flight: the one before has ended, or was given up ten seconds after it should have.
                        if let Some((before, at)) = flying.filter(|(before, _)| before != slot) {
                            let is_there = candidates.iter().any(|one| one.slot == before);
                            prop_assert!(dry || !is_there || moment.steady.as_secs_f64() - at >= 9.99, "two in flight: {:?}", plan);
                        }
                        flying = Some((*slot, moment.steady.as_secs_f64()));
                        prop_assert!(dry || planner.flights.each().count() == 1, "{:?} {:?}", planner.flights, plan);
                    }
                    Deed::Throttle(shares) => {
                        prop_assert!(shares.iter().all(|share| share.cores.is_none_or(|cores| cores.is_finite() && cores >= 0.0)));
                        held.insert(action.resource.clone());
                    }
                    Deed::Line(line) => {
                        held.insert(action.resource.clone());
                        let one = candidates.iter().find(|one| one.slot == line.slot).expect("a line is for a candidate");
                        let figures = one.grasp.figures.expect("and for one whose memory is known");
                        let movable = lease::movable(&figures, one.grasp.swap_room);
                        prop_assert!(!is_new || movable as f64 >= 0.1 * figures.current as f64, "a line that would only stall");
                        prop_assert!(line.bytes as f64 >= figures.current as f64 * 0.96 - 8192.0, "a small step: {:?}", line);
                    }
                    Deed::Freeze(slot) => {
                        prop_assert!(!planner.flights.is_empty() && planner.flights.each().all(|(victim, _)| victim != *slot));
                    }
                    Deed::Release => drop(held.remove(&action.resource)),
                    _ => {}
                }
                if is_new && !matches!(action.deed, Deed::Notify | Deed::Release | Deed::Freeze(_)) {
                    prop_assert!(!tried.contains(&&action.resource), "one action in flight per resource: {:?}", plan);
                    tried.push(&action.resource);
                }
            }
            for verdict in &verdicts {
                let untouched = Course::default();
                let course = planner.courses.get(&verdict.resource).unwrap_or(&untouched);
                if verdict.level == Level::Normal {
                    prop_assert!(course.trial.is_none() && course.unanswered.is_none());
                    let is_wanted = verdict.resource == Resource::Cpu && planner.hold.holds_back(verdict, &candidates);
                    prop_assert!(is_wanted || !held.contains(&verdict.resource), "everything is undone at normal: {:?}", verdict.resource);
                } else if verdict.over {
                    let is_held = verdict.resource == Resource::Cpu && planner.hold.engaged().is_some();
                    let is_awaited = verdict.resource == Resource::Memory && !planner.flights.is_empty();
                    prop_assert!(course.trial.is_some() || course.refusal.is_some() || is_held || is_awaited, "silent: {:?}", verdict);
                }
            }
            let outcome = match tick.outcome {
                _ if dry => Outcome::DryRun,
                0 => Outcome::Failed("it failed".into()),
                1 => Outcome::Unavailable("not here".into()),
                2 => Outcome::Gone,
                _ => Outcome::Done,
            };
            if matches!(outcome, Outcome::Failed(_) | Outcome::Unavailable(_)) {
                flying = None;
            }
            // A release that failed is on record as still to be done.
            for action in &plan.actions {
                if action.deed == Deed::Release && matches!(outcome, Outcome::Failed(_) | Outcome::Unavailable(_)) {
                    prop_assert!(planner.courses.contains_key(&action.resource));
                }
            }
            planner.note(plan.actions.iter().map(|action| (action, &outcome)), moment);
            twin.note(plan.actions.iter().map(|action| (action, &outcome)), moment);
        }
    }
}

/// Memory under its line that is foretold to be full in three seconds.
fn foretold(usage: f64) -> Verdict {
    Verdict { early: true, exhaustion: Some(Duration::from_secs(3)), ..memory(Level::Normal, usage) }
}

#[test]
fn what_is_foretold_to_be_full_has_its_fastest_grower_slowed_before_the_line_and_nobody_ended() {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.on_high = vec![Rung::Recycle, Rung::Throttle, Rung::Kill];
    let web = [in_a_group(200, 0, None, 0)];
    let mut run = Run::new(&settings);
    assert_eq!(deeds(&run.plan(0.0, &memory(Level::Normal, 0.75), &web)), [""; 0]);
    let plan = run.plan(1.0, &foretold(0.75), &web);
    assert_eq!(deeds(&plan), ["throttle"], "{plan:?}");
    assert!(plan.actions[0].reason.contains("full in 3.0 s"), "{}", plan.actions[0].reason);
    run.note(1.0, &plan.actions[0], Outcome::Done);
    assert!(run.planner.status(&Resource::Memory).throttled);
    // Slowed, it fills no longer: it is let go ten seconds after it was foretold last, and what was done was measured.
    let mut held = [in_a_group(200, 0, Some(whole_line(&plan)), 0)];
    if let Some(figures) = &mut held[0].grasp.figures {
        figures.current = whole_line(&plan);
    }
    assert_eq!(deeds(&run.plan(2.0, &foretold(0.76), &held)), [""; 0], "once");
    let mut measured = Vec::new();
    for second in 3..12 {
        let plan = run.plan(f64::from(second), &memory(Level::Normal, 0.77), &held);
        assert_eq!((deeds(&plan), reasons(&plan)), (vec![], vec![]), "after {second} s");
        measured.extend(plan.measured);
    }
    assert_eq!(deeds(&run.plan(12.0, &memory(Level::Normal, 0.77), &held)), ["release"]);
    assert!(!run.planner.status(&Resource::Memory).throttled);
    let [measured] = &measured[..] else { panic!("{measured:?}") };
    assert_eq!((measured.rung, measured.effective), ("throttle", true));
}

/// The line of the first action.
fn whole_line(plan: &Plan) -> u64 {
    let Deed::Line(line) = &plan.actions[0].deed else { panic!("{plan:?}") };
    line.bytes
}

#[test]
fn a_throttle_ahead_of_the_line_stays_on_over_it_and_ends_under_low() {
    let web = [in_a_group(0, 0, None, 0)];
    let mut run = Run::new(&settings(vec![]));
    let plan = run.plan(0.0, &foretold(0.75), &web);
    assert!(
        matches!(&plan.actions[0].deed, Deed::Throttle(shares) if shares[0].slot == SlotId(1)),
        "no line without anything to take back"
    );
    run.note(0.0, &plan.actions[0], Outcome::Done);
    // Over the line before the level follows, for however long.
    for second in 1..30 {
        assert_eq!(deeds(&run.plan(f64::from(second), &memory(Level::Normal, 0.81), &web)), [""; 0]);
    }
    // The ladder begins at its first rung: asking comes before what is on already.
    let shedding = [Candidate { grasp: web[0].grasp.clone(), growth: 1e6, ..shedding(1, 500) }];
    assert_eq!(deeds(&run.plan(30.0, &memory(Level::High, 0.85), &shedding)), ["shed"]);
    assert_eq!(deeds(&run.plan(40.0, &memory(Level::Normal, 0.69), &shedding)), ["release"]);
}

#[test]
fn nothing_is_moved_forward_without_a_throttle_on_the_ladder_or_in_vain_again_and_again() {
    let web = [in_a_group(200, 0, None, 0)];
    let mut without = settings(vec![]);
    without.policy.memory.rule.on_high = vec![Rung::Shed, Rung::Recycle, Rung::Kill];
    let mut run = Run::new(&without);
    let plan = run.plan(0.0, &foretold(0.75), &web);
    assert_eq!((deeds(&plan), reasons(&plan)), (vec![], vec![]));

    let mut run = Run::new(&settings(vec![]));
    let plan = run.plan(0.0, &foretold(0.75), &web);
    run.note(0.0, &plan.actions[0], Outcome::Failed("no".to_owned()));
    let mut done = Vec::new();
    for tick in 1..40 {
        let second = f64::from(tick) / 4.0;
        for action in run.plan(second, &foretold(0.75), &web).actions {
            done.push((second, action.deed.rung().is_some()));
            run.note(second, &action, Outcome::Failed("no".to_owned()));
        }
    }
    assert!((1..=4).contains(&done.len()), "every five seconds: {done:?}");
}
