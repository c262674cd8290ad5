use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::schedule::tests::at;
use super::*;
use crate::config::jobs::{Files, Kind, WhenHigh};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

pub fn job(name: &str, after: &[&str]) -> Job {
    Job {
        name: Arc::from(name),
        kind: Kind::Files(Files {
            paths: vec!["/nowhere".into()],
            include: Vec::new(),
            exclude: Vec::new(),
            keep: DAY,
            min_age: HOUR,
            max_total: None,
            max_files: None,
            prune_empty: false,
            mounted: false,
            groups: false,
            rate: None,
            owner: None,
        }),
        schedule: Some("0 3 * * *".to_owned()),
        timezone: Some("UTC".to_owned()),
        jitter: Duration::ZERO,
        timeout: HOUR,
        catch_up: CatchUp::Once,
        when_high: WhenHigh { wait: Duration::from_secs(300), then: Then::Run },
        dry_run: false,
        after: after.iter().map(|name| Arc::from(*name)).collect(),
        lock: None,
    }
}

/// A machine whose two clocks the test moves.
struct World {
    now: Moment,
    queue: Queue,
    log: Vec<String>,
}

impl World {
    fn new(jobs: &[Job], wall: &str) -> World {
        World::with(jobs, wall, |_| Past::default())
    }

    fn with(jobs: &[Job], wall: &str, past: impl FnMut(&str) -> Past) -> World {
        let now = Moment { steady: Duration::from_secs(1000), wall: at(wall) };
        let jobs: Vec<Arc<Job>> = jobs.iter().cloned().map(Arc::new).collect();
        World { now, queue: Queue::new(&jobs, "host", past, now), log: Vec::new() }
    }

    fn look_with(&mut self, high: Option<&str>) -> Vec<String> {
        let steps = self.queue.advance(self.now, high);
        let told: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Start(start) => {
                    let jumped = if start.order.clock_jumped { " jumped" } else { "" };
                    format!(
                        "{} {}{}{jumped}",
                        start.job.name,
                        start.cause.word(),
                        if start.missed > 0 { format!(" +{}", start.missed) } else { String::new() }
                    )
                }
                Step::Skip { job, reason, count, .. } => format!("{} not: {} {count}", job.name, reason.word()),
                Step::ClockSet(by) => format!("clock {by:+.0}"),
            })
            .collect();
        self.log.extend(told.iter().cloned());
        told
    }

    fn look(&mut self) -> Vec<String> {
        self.look_with(None)
    }

    /// Time goes on, looked at every four minutes; runs end at once unless they are kept.
    fn pass(&mut self, time: Duration) -> Vec<String> {
        let mut told = Vec::new();
        let mut left = time;
        while left > Duration::ZERO {
            let step = left.min(Duration::from_secs(240));
            left -= step;
            self.now = self.now.after(step);
            told.extend(self.run_all());
        }
        told
    }

    /// Everything that can run now, one after the other.
    fn run_all(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let steps = self.look();
            let ran: Vec<String> =
                self.queue.entries.iter().filter(|entry| entry.running.is_some()).map(|entry| entry.job.name.to_string()).collect();
            told.extend(steps);
            if ran.is_empty() {
                return told;
            }
            ran.iter().for_each(|name| self.queue.ended(name, true));
        }
    }

    /// Nothing is looked at meanwhile: a stopped process, a suspended machine.
    fn sleep(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    fn set_clock(&mut self, wall: &str) {
        self.now.wall = at(wall);
    }
}

#[test]
fn a_day_like_any_other() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T12:00:00Z");
    assert_eq!(world.run_all(), [""; 0]);
    assert_eq!(world.queue.next_deadline(world.now), Some(Duration::from_secs(1000) + 15 * HOUR));
    assert_eq!(world.pass(3 * DAY), ["tidy schedule", "tidy schedule", "tidy schedule"]);
}

#[test]
fn three_days_off_are_one_run() {
    let mark = |_: &str| Past { mark: Some(at("2026-06-01T03:00:00Z")), ..Past::default() };
    let mut world = World::with(&[job("tidy", &[])], "2026-06-04T12:00:00Z", mark);
    assert_eq!(world.run_all(), ["tidy catch_up +2"]);
    assert_eq!(world.pass(DAY), ["tidy schedule"]);
    let skips = Job { catch_up: CatchUp::Skip, ..job("tidy", &[]) };
    let mut world = World::with(&[skips], "2026-06-04T12:00:00Z", mark);
    assert_eq!(world.run_all(), ["tidy not: missed 3"]);
    assert_eq!(world.pass(DAY), ["tidy schedule"]);
}

#[test]
fn a_suspended_machine_catches_up_once_and_its_clock_did_not_jump() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T12:00:00Z");
    world.run_all();
    world.sleep(2 * DAY);
    assert_eq!(world.run_all(), ["tidy catch_up +1"]);
}

#[test]
fn a_run_that_was_killed_is_done_again_once() {
    let was = |cause| {
        move |_: &str| Past {
            mark: Some(at("2026-06-01T03:00:00Z")),
            interrupted: Some((cause, Some(at("2026-06-01T03:00:00Z")))),
            clock_jumped: false,
        }
    };
    let begin = "2026-06-01T03:01:00Z";
    assert_eq!(World::with(&[job("tidy", &[])], begin, was(Cause::Schedule)).run_all(), ["tidy catch_up"]);
    assert_eq!(World::with(&[job("tidy", &[])], begin, was(Cause::CatchUp)).run_all(), [""; 0], "a run that kills us is not done for ever");
    assert_eq!(World::with(&[job("tidy", &[])], begin, was(Cause::Asked)).run_all(), [""; 0]);
    let skips = Job { catch_up: CatchUp::Skip, ..job("tidy", &[]) };
    assert_eq!(World::with(&[skips], begin, was(Cause::Schedule)).run_all(), [""; 0]);
}

#[test]
fn a_clock_that_is_set_a_day_ahead_and_back() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T12:00:00Z");
    world.run_all();
    world.set_clock("2026-06-02T12:00:00Z");
    assert_eq!(world.run_all(), ["clock +86400", "tidy catch_up jumped"]);
    assert_eq!(world.pass(DAY), ["tidy schedule"], "one run later ages are trusted again");
    world.set_clock("2026-06-02T12:00:00Z");
    assert_eq!(world.run_all(), ["clock -86400"]);
    // It ran nine hours ago: less than half a day. What comes 15 hours from now is as far apart as ever.
    assert_eq!(world.pass(14 * HOUR), [""; 0], "what ran just now is not run again");
    assert_eq!(world.pass(2 * HOUR), ["tidy schedule jumped"]);
    assert_eq!(world.pass(DAY), ["tidy schedule"]);
}

#[test]
fn a_clock_that_was_years_ahead_when_it_ran_stops_nothing() {
    let mut world = World::new(&[job("tidy", &[])], "2036-06-01T02:30:00Z");
    assert_eq!(world.pass(HOUR), ["tidy schedule"]);
    world.set_clock("2026-06-01T03:30:00Z");
    world.run_all();
    assert_eq!(world.pass(DAY), ["tidy schedule jumped"]);
    assert_eq!(world.pass(DAY), ["tidy schedule"]);
}

/// What is written down of it is read by whoever comes next.
#[test]
fn a_run_that_only_waits_is_not_dealt_with() {
    let jobs = [job("first", &[]), job("second", &["first"])];
    let mut world = World::new(&jobs, "2026-06-01T02:59:30Z");
    world.sleep(Duration::from_secs(60));
    assert_eq!(world.look(), ["first schedule"]);
    let marks: BTreeMap<String, SystemTime> = world.queue.marks().map(|(name, mark)| (name.to_string(), mark)).collect();
    world.sleep(HOUR);
    let jobs: Vec<Arc<Job>> = jobs.iter().cloned().map(Arc::new).collect();
    let past = |name: &str| Past { mark: marks.get(name).copied(), ..Past::default() };
    world.queue = Queue::new(&jobs, "host", past, world.now);
    assert_eq!(world.run_all(), ["second catch_up"], "and the first, which had begun, is not begun again by its mark");
}

/// Somebody asks for a job that waits for its lock, in vain: the run that was due waits on.
#[test]
fn who_asks_in_vain_takes_no_run_away() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T02:59:30Z");
    world.sleep(Duration::from_secs(60));
    let locked = |world: &mut World| {
        let steps = world.queue.advance(world.now, None);
        let start = steps.into_iter().find_map(|step| if let Step::Start(start) = step { Some(*start) } else { None }).unwrap();
        world.queue.put_off(&start, world.now);
        start.cause
    };
    assert_eq!(locked(&mut world), Cause::Schedule);
    world.queue.ask("tidy", Order::default(), 1, world.now).unwrap();
    assert_eq!(locked(&mut world), Cause::Asked);
    assert_eq!(world.queue.standing("tidy").unwrap().state, "waiting");
    assert_eq!(world.pass(Duration::from_secs(60)), ["tidy schedule"]);
}

#[test]
fn an_hour_back_does_not_repeat_a_run_and_a_second_is_nothing() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T02:00:00Z");
    assert_eq!(world.pass(HOUR), ["tidy schedule"]);
    world.sleep(Duration::from_secs(600));
    world.set_clock("2026-06-01T02:10:00Z");
    assert_eq!(world.run_all(), ["clock -3600"]);
    assert_eq!(world.pass(2 * HOUR), [""; 0]);
    world.now.wall += Duration::from_secs(1);
    assert_eq!(world.run_all(), [""; 0]);
}

#[test]
fn a_backup_goes_first_on_the_night_that_loses_an_hour_whatever_the_jitter() {
    let berlin = |name: &str, schedule: &str, after: &[&str], jitter| Job {
        schedule: Some(schedule.to_owned()),
        timezone: Some("Europe/Berlin".to_owned()),
        jitter,
        ..job(name, after)
    };
    // Whichever of the two the jitter lets begin later.
    for jitter in [[Duration::ZERO, Duration::ZERO], [HOUR, Duration::ZERO], [Duration::ZERO, HOUR]] {
        let jobs = [berlin("a-sessions", "0 3 * * *", &["backup"], jitter[0]), berlin("backup", "0 2 * * *", &[], jitter[1])];
        let mut world = World::new(&jobs, "2026-03-28T12:00:00Z");
        world.run_all();
        assert_eq!(world.pass(DAY), ["backup schedule", "a-sessions schedule"], "{jitter:?}");
    }
}

#[test]
fn one_at_a_time_and_never_the_same_twice() {
    let often = |name: &str| Job { schedule: Some("@hourly".to_owned()), ..job(name, &[]) };
    let mut world = World::new(&[often("one"), often("two")], "2026-06-01T11:59:00Z");
    world.look();
    world.sleep(Duration::from_secs(60));
    assert_eq!(world.look(), ["one schedule"]);
    assert_eq!(world.look(), [""; 0]);
    assert_eq!(world.queue.standing("two").unwrap().waits_for.as_deref(), Some("one to end"));
    world.sleep(HOUR);
    assert_eq!(world.look(), ["one not: running 1", "two not: running 1"]);
    world.queue.ended("one", true);
    assert_eq!(world.look(), ["two schedule"]);
    world.queue.ended("two", true);
    assert_eq!(world.look(), [""; 0]);
}

#[test]
fn it_waits_while_something_is_high_and_then_does_as_it_is_set() {
    let skips = Job { when_high: WhenHigh { wait: Duration::from_secs(300), then: Then::Skip }, ..job("skips", &[]) };
    let mut world = World::new(&[job("runs", &[]), skips], "2026-06-01T02:59:00Z");
    world.look();
    world.sleep(Duration::from_secs(60));
    assert_eq!(world.look_with(Some("memory")), [""; 0]);
    assert_eq!(world.queue.standing("runs").unwrap().waits_for.as_deref(), Some("memory to be under its line"));
    assert_eq!(world.queue.next_deadline(world.now), Some(world.now.steady + Duration::from_secs(300)));
    world.sleep(Duration::from_secs(299));
    assert_eq!(world.look_with(Some("memory")), [""; 0]);
    world.sleep(Duration::from_secs(1));
    assert_eq!(world.look_with(Some("memory")), ["skips not: high 1", "runs schedule"]);
    world.queue.ended("runs", true);
    // Over again before it has waited long enough: at once.
    world.pass(DAY - Duration::from_secs(600));
    assert_eq!(world.log.last().unwrap(), "runs schedule");
}

#[test]
fn who_asks_and_a_full_disk_wait_for_nothing_but_their_turn() {
    let mut world = World::new(&[job("tidy", &["backup"]), job("backup", &[])], "2026-06-01T12:00:00Z");
    world.look();
    assert!(world.queue.ask("nope", Order::default(), 1, world.now).is_err());
    world.queue.ask("tidy", Order { dry_run: true, ..Order::default() }, 1, world.now).unwrap();
    world.queue.relieve("tidy", 4096, world.now).unwrap();
    assert_eq!(world.look_with(Some("memory")), ["tidy asked"]);
    assert_eq!(world.queue.ask("tidy", Order::default(), 2, world.now).unwrap_err(), "tidy is running");
    world.queue.ended("tidy", true);
    let steps = world.queue.advance(world.now, Some("disk"));
    let [Step::Start(start)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!((start.cause, start.order.free_bytes, start.ticket), (Cause::Disk, Some(4096), None));
    assert!(world.queue.relieve("tidy", 1, world.now).is_err());
}

#[test]
fn a_lock_that_is_held_elsewhere_is_waited_for_and_then_let_be() {
    let mut world = World::new(&[job("tidy", &[])], "2026-06-01T02:59:00Z");
    world.look();
    world.sleep(Duration::from_secs(60));
    let mut tries = 0;
    let last = loop {
        let steps = world.queue.advance(world.now, None);
        match steps.as_slice() {
            [Step::Start(start)] => {
                tries += 1;
                let start = start.clone();
                world.queue.put_off(&start, world.now);
            }
            [] => {}
            [last] => break last.clone(),
            more => panic!("{more:?}"),
        }
        world.sleep(Duration::from_secs(5));
    };
    assert!(matches!(last, Step::Skip { reason: Skip::Locked, .. }));
    assert!((100..=130).contains(&tries), "{tries}");
}

#[test]
fn other_settings_begin_anew_and_a_job_that_is_gone_ends_its_run() {
    let mut world = World::new(&[job("one", &[]), job("two", &[])], "2026-06-01T02:59:00Z");
    world.look();
    world.sleep(Duration::from_secs(60));
    assert_eq!(world.look(), ["one schedule"]);
    let two = Arc::new(Job { schedule: Some("0 2 * * *".to_owned()), ..job("two", &[]) });
    world.queue.apply(std::slice::from_ref(&two), world.now);
    assert_eq!(world.queue.standing("one").unwrap().state, "running");
    world.queue.ended("one", true);
    assert_eq!(world.queue.standing("one"), None);
    assert_eq!(world.look(), [""; 0], "its new time has not come");
    assert_eq!(world.queue.standing("two").unwrap().next, Some(at("2026-06-02T02:00:00Z")));
}

#[test]
fn a_dry_run_setting_never_deletes_and_leaves_the_doubt_about_the_clock() {
    let mut world = World::new(&[Job { dry_run: true, ..job("tidy", &[]) }], "2026-06-01T12:00:00Z");
    world.look();
    world.set_clock("2026-06-03T12:00:00Z");
    let steps = world.queue.advance(world.now, None);
    let [Step::ClockSet(_), Step::Start(start)] = steps.as_slice() else { panic!("{steps:?}") };
    assert!(start.order.dry_run && start.order.clock_jumped);
}

/// One thing that may happen.
#[derive(Clone, Debug)]
enum Happening {
    Pass(u64),
    SetClock(i64),
    End,
    High(bool),
    Ask(usize),
    Relieve(usize),
    /// Everything ends, and begins again after a while with what was written down.
    Restart(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (1_u64..7200).prop_map(Happening::Pass),
        1 => (-90_000_i64..90_000).prop_map(Happening::SetClock),
        6 => Just(Happening::End),
        1 => any::<bool>().prop_map(Happening::High),
        1 => (0_usize..3).prop_map(Happening::Ask),
        1 => (0_usize..3).prop_map(Happening::Relieve),
        1 => (1_u64..300_000).prop_map(Happening::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens: one at a time, the first before the second, and no moment comes twice or is forgotten.
    #[test]
    fn no_moment_is_forgotten_or_comes_twice(happenings in prop::collection::vec(happening(), 1..120)) {
        let jobs = [
            job("backup", &[]),
            Job { jitter: HOUR, ..job("sessions", &["backup"]) },
            Job { schedule: Some("@hourly".to_owned()), catch_up: CatchUp::Skip, ..job("files", &[]) },
        ];
        let names: Vec<String> = jobs.iter().map(|job| job.name.to_string()).collect();
        let mut world = World::new(&jobs, "2026-06-01T12:00:00Z");
        let mut high = None;
        let mut running: Option<(Arc<str>, Cause, Option<SystemTime>)> = None;
        let mut done: BTreeMap<String, BTreeSet<SystemTime>> = BTreeMap::new();
        let mut clock_set = false;
        for happening in happenings {
            match happening {
                Happening::Pass(seconds) => world.sleep(Duration::from_secs(seconds)),
                Happening::SetClock(by) => {
                    clock_set = true;
                    let by_abs = Duration::from_secs(by.unsigned_abs());
                    world.now.wall = if by < 0 { world.now.wall - by_abs } else { world.now.wall + by_abs };
                }
                Happening::End => {
                    if let Some((name, ..)) = running.take() {
                        world.queue.ended(&name, true);
                    }
                }
                Happening::High(is_high) => high = is_high.then_some("cpu"),
                Happening::Ask(which) => drop(world.queue.ask(&names[which], Order::default(), 1, world.now)),
                Happening::Relieve(which) => drop(world.queue.relieve(&names[which], 1, world.now)),
                Happening::Restart(off) => {
                    let marks: BTreeMap<String, SystemTime> = world.queue.marks().map(|(name, mark)| (name.to_string(), mark)).collect();
                    let was = running.take();
                    // Whoever waits with a moment of its own is not dealt with.
                    for entry in &world.queue.entries {
                        let waits_for = entry.pending.as_ref().and_then(|pending| pending.due);
                        prop_assert!(waits_for.is_none_or(|due| marks[&*entry.job.name] < due), "{:?}", entry);
                    }
                    world.sleep(Duration::from_secs(off));
                    let jobs: Vec<Arc<Job>> = jobs.iter().cloned().map(Arc::new).collect();
                    let past = |name: &str| Past {
                        mark: marks.get(name).copied(),
                        interrupted: was.as_ref().filter(|(job, ..)| **job == *name).map(|(_, cause, due)| (*cause, *due)),
                        clock_jumped: false,
                    };
                    if let Some((name, cause, Some(due))) = &was && matches!(cause, Cause::Schedule | Cause::Disk) {
                        // It is to be done again.
                        done.entry(name.to_string()).or_default().remove(due);
                    }
                    world.queue = Queue::new(&jobs, "host", past, world.now);
                }
            }
            for step in world.queue.advance(world.now, high) {
                match step {
                    Step::Start(start) => {
                        prop_assert!(running.is_none(), "two at a time");
                        if let Some(due) = start.due && !clock_set {
                            let is_new = done.entry(start.job.name.to_string()).or_default().insert(due);
                            prop_assert!(is_new, "{} for {due:?} a second time", start.job.name);
                            prop_assert!(due <= world.now.wall);
                        }
                        if *start.job.name == *"sessions" && matches!(start.cause, Cause::Schedule | Cause::CatchUp) {
                            let backup = world.queue.entries.iter().find(|entry| *entry.job.name == *"backup").unwrap();
                            prop_assert!(backup.pending.as_ref().is_none_or(|pending| pending.cause == Cause::Disk), "the backup goes first");
                        }
                        running = Some((start.job.name.clone(), start.cause, start.due));
                    }
                    Step::Skip { count, .. } => prop_assert!(count >= 1),
                    Step::ClockSet(_) => {}
                }
            }
            for entry in &world.queue.entries {
                // Nothing that was due is neither dealt with nor waited for.
                prop_assert!(entry.due.is_some_and(|due| due.at > world.now.wall), "{:?}", entry);
            }
            prop_assert!(world.queue.next_deadline(world.now).is_some_and(|at| at >= world.now.steady));
        }
    }
}
