//! The engine on whole readings, and the makers of settings and readings that the tests of `policy` and `response` share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use crate::config::settings::*;
use crate::host::clock::Moment;
use crate::policy::leak;
use crate::policy::stress::Measure;
use crate::policy::verdict::Basis;
use crate::policy::{Engine, Level, Resource, Verdict};
use crate::sampling::readings::*;

pub(crate) const MB: u64 = 1_000_000;

pub(crate) fn at(seconds: f64) -> Moment {
    Moment { steady: Duration::from_secs_f64(seconds), wall: SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds) }
}

pub(crate) fn rule() -> Rule {
    Rule {
        high: Line::Share(0.80),
        low: Line::Share(0.70),
        critical: Some(Line::Share(0.92)),
        sustain: Duration::from_secs(4),
        on_high: vec![Rung::Shed, Rung::Throttle],
        on_critical: vec![Rung::Recycle, Rung::Kill],
    }
}

pub(crate) fn worker(name: &str) -> Worker {
    Worker { recycle: Recycle::default(), ..Worker::new(name, vec!["true".into()]) }
}

pub(crate) fn settings(workers: Vec<Worker>) -> Settings {
    let folder = |path: &str| Folder { path: PathBuf::from(path), explicit: false };
    Settings {
        daemon: Daemon {
            state_dir: folder("/var/lib/plimsoll"),
            runtime_dir: folder("/run/plimsoll"),
            shutdown_timeout: Duration::from_secs(30),
            leftovers: Leftovers::Adopt,
            upgrade: Upgrade::Auto,
        },
        log: Log { level: LogLevel::Info, format: LogFormat::Auto },
        http: Http { listen: Vec::new(), api_key: None, dashboard: true },
        host: HostPaths {
            proc: "/proc".into(),
            sys: "/sys".into(),
            cgroup: "/sys/fs/cgroup".into(),
            journal: "/run/systemd/journal/stdout".into(),
        },
        sampling: Sampling { interval: Duration::from_secs(2), scope: Scope::Auto, report_every: None },
        policy: Policy {
            dry_run: false,
            cpu: CpuPolicy {
                limit: Ceiling::Auto,
                rule: Rule {
                    critical: None,
                    sustain: Duration::from_secs(10),
                    on_high: vec![Rung::Throttle],
                    on_critical: Vec::new(),
                    ..rule()
                },
            },
            memory: MemoryPolicy { limit: Ceiling::Auto, rule: rule() },
            disks: Vec::new(),
        },
        workers: workers.into_iter().map(Arc::new).collect(),
        jobs: Vec::new(),
        file: None,
    }
}

/// A machine with two cores and 1000 MB that does nothing.
pub(crate) fn readings(now: Moment) -> Readings {
    Readings {
        at: now,
        cpu: CpuReadings {
            limit_cores: Reading::Known(2.0),
            limit_source: LimitSource::Machine,
            of_workers: false,
            usage_total: Reading::Unsupported,
            used_cores: Reading::Known(0.0),
            throttled_total: Reading::Unsupported,
            stolen_cores: Reading::Unsupported,
        },
        memory: MemoryReadings {
            limit: Reading::Known(1000 * MB),
            limit_source: LimitSource::Machine,
            of_workers: false,
            current: Reading::Unsupported,
            working_set: Reading::Unsupported,
            unreclaimable: Reading::Known(0),
            swap: Reading::Unsupported,
            events: Reading::Unsupported,
            file_cache: Reading::Unsupported,
            refaults: Reading::Unsupported,
            stalls: Reading::Unsupported,
        },
        pressure: PressureReadings { cpu: Reading::Unsupported, memory: Reading::Unsupported, io: Reading::Unsupported },
        disks: Vec::new(),
        workers: Vec::new(),
        failures: [0; 5],
    }
}

pub(crate) fn replica(slot: u64, worker: &str, cores: f64, memory: u64) -> WorkerReadings {
    WorkerReadings {
        slot: SlotId(slot),
        worker: Arc::from(worker),
        cpu_total: Reading::Unsupported,
        used_cores: Reading::Known(cores),
        memory: Reading::Known(memory),
        threads: Reading::Unsupported,
        descriptors: Reading::Unsupported,
        processes: Reading::Unsupported,
        merged: Reading::Unsupported,
    }
}

fn find<'a>(verdicts: &'a [Verdict], resource: &Resource) -> &'a Verdict {
    verdicts.iter().find(|verdict| verdict.resource == *resource).expect("every resource is judged in every tick")
}

#[test]
fn cpu_is_judged_on_a_second_or_more_whatever_the_tick() {
    let mut engine = Engine::new(&settings(vec![]));
    // Ticks of 100 ms that see the noise of a 10 ms clock: 100 % and 40 % in turn are 70 %, never over the line.
    for tick in 0..600 {
        let now = at(tick as f64 * 0.1);
        let mut seen = readings(now);
        seen.cpu.used_cores = if tick == 0 { Reading::Unsupported } else { Reading::Known(if tick % 2 == 0 { 2.0 } else { 0.8 }) };
        let verdicts = engine.judge(&seen, now);
        let cpu = find(&verdicts, &Resource::Cpu);
        assert_eq!((cpu.level, cpu.over), (Level::Normal, false), "tick {tick}: {cpu:?}");
        assert_eq!(cpu.used.is_some(), tick >= 10, "tick {tick}: {cpu:?}");
    }
}

#[test]
fn a_failed_read_keeps_the_level_and_says_why() {
    let mut engine = Engine::new(&settings(vec![]));
    let mut seen = readings(at(0.0));
    seen.memory.unreclaimable = Reading::Known(950 * MB);
    assert_eq!(find(&engine.judge(&seen, at(0.0)), &Resource::Memory).level, Level::Critical);
    let failure = Failure { source: Source::Cgroup, errno: Some(19) };
    for second in 1..100 {
        seen.memory.unreclaimable = Reading::Failed(failure);
        seen.memory.working_set = Reading::Failed(failure);
        let verdicts = engine.judge(&seen, at(f64::from(second)));
        let memory = find(&verdicts, &Resource::Memory);
        assert_eq!((memory.level, memory.used, memory.over, memory.unknown), (Level::Critical, None, false, Some(failure)));
    }
}

#[test]
fn whose_usage_counts_depends_on_where_the_limit_comes_from() {
    use LimitSource::*;
    let cases = [
        ("no limit set", None, Known(8000), Machine, Basis::Scope, Some(8000)),
        ("set on a machine", Some(512), Known(8000), Machine, Basis::Workers, Some(512)),
        ("set on a cpuset", Some(512), Known(8000), Cpuset, Basis::Workers, Some(512)),
        ("set in a container", Some(512), Known(1000), Cgroup, Basis::Scope, Some(512)),
        ("larger than the container", Some(2000), Known(1000), Cgroup, Basis::Scope, Some(1000)),
        ("larger than the machine", Some(9000), Known(8000), Machine, Basis::Scope, Some(8000)),
        ("the machine cannot be read", Some(512), Reading::Unsupported, Unknown, Basis::Workers, Some(512)),
        ("nothing is known", None, Reading::Unsupported, Unknown, Basis::Scope, None),
        ("a file in a container", None, Known(512), File, Basis::Scope, Some(512)),
    ];
    use Reading::Known;
    for (name, set, own, source, basis, limit) in cases {
        let mut settings = settings(vec![worker("web")]);
        settings.policy.memory.limit = set.map_or(Ceiling::Auto, |set: u64| Ceiling::Set(set * MB));
        let mut engine = Engine::new(&settings);
        let mut seen = readings(at(0.0));
        seen.memory.limit = own.map(|own: u64| own * MB);
        seen.memory.limit_source = source;
        seen.memory.unreclaimable = Known(700 * MB);
        seen.workers = vec![replica(1, "web", 0.0, 100 * MB), replica(2, "web", 0.0, 50 * MB)];
        let verdicts = engine.judge(&seen, at(0.0));
        let memory = find(&verdicts, &Resource::Memory);
        assert_eq!(memory.basis, basis, "{name}");
        assert_eq!(memory.limit, limit.map(|limit: u64| (limit * MB) as f64), "{name}");
        let used = if basis == Basis::Workers { 150 * MB } else { 700 * MB };
        assert_eq!(memory.used, Some(used as f64), "{name}");
        // The same where what the scope uses is not to be seen, or nothing bounds it but a file.
        seen.memory.of_workers = true;
        let verdicts = Engine::new(&settings).judge(&seen, at(0.0));
        let memory = find(&verdicts, &Resource::Memory);
        assert_eq!((memory.basis, memory.used), (Basis::Workers, Some((150 * MB) as f64)), "{name}, of the workers alone");
        assert_eq!(memory.limit, limit.map(|limit: u64| (limit * MB) as f64), "{name}, of the workers alone");
    }
}

#[test]
fn a_disk_is_as_full_as_its_inodes() {
    let mut settings = settings(vec![]);
    settings.policy.disks = vec![DiskPolicy { path: "/data".into(), rule: rule() }, DiskPolicy { path: "/gone".into(), rule: rule() }];
    let mut engine = Engine::new(&settings);
    let mut seen = readings(at(0.0));
    let path: Arc<Path> = Arc::from(Path::new("/data"));
    let space = DiskSpace { size: 100, avail: 60, files: Some(1000), files_free: Some(50) };
    seen.disks = vec![DiskReadings { path: path.clone(), space: Reading::Known(space) }];
    let verdicts = engine.judge(&seen, at(0.0));
    let disk = find(&verdicts, &Resource::Disk(path));
    assert_eq!((disk.level, disk.used, disk.utilization), (Level::Critical, Some(40.0), Some(0.95)));
    let gone = find(&verdicts, &Resource::Disk(Arc::from(Path::new("/gone"))));
    assert_eq!((gone.level, gone.used, gone.utilization), (Level::Normal, None, None));
}

#[test]
fn a_replica_close_under_its_own_limit_is_critical_at_once_and_over_its_recycle_line_after_sustain() {
    let mut web = worker("web");
    web.limits.memory = Some(400 * MB);
    web.recycle.memory = Some(360 * MB);
    let mut engine = Engine::new(&settings(vec![web, worker("free")]));
    let looks = (0..=30).map(|second| match second {
        0..4 => (second, Level::Normal),
        4..30 => (second, Level::High),
        _ => (second, Level::Critical),
    });
    for ((second, level), memory) in looks.zip(std::iter::repeat(362)) {
        let mut seen = readings(at(f64::from(second)));
        seen.workers = vec![replica(7, "web", 0.0, memory * MB), replica(8, "free", 0.0, 900 * MB)];
        let verdicts = engine.judge(&seen, at(f64::from(second)));
        assert_eq!(find(&verdicts, &Resource::Worker(SlotId(7))).level, level, "second {second}");
        assert!(!verdicts.iter().any(|verdict| verdict.resource == Resource::Worker(SlotId(8))), "no limit, no verdict");
    }
    let mut seen = readings(at(31.0));
    seen.workers = vec![replica(9, "web", 0.0, 369 * MB)];
    let verdicts = engine.judge(&seen, at(31.0));
    assert_eq!(find(&verdicts, &Resource::Worker(SlotId(9))).level, Level::Critical);
    assert!(!verdicts.iter().any(|verdict| verdict.resource == Resource::Worker(SlotId(7))), "an ended life is forgotten");
}

#[test]
fn growth_is_known_for_every_replica_and_windows_move_while_nothing_fires() {
    let mut engine = Engine::new(&settings(vec![worker("web")]));
    for second in 0..30u64 {
        let now = at(second as f64);
        let mut seen = readings(now);
        seen.memory.unreclaimable = Reading::Known(100 * MB + second * MB);
        seen.workers = vec![replica(1, "web", 0.0, 10 * MB + second * 2 * MB)];
        let verdicts = engine.judge(&seen, now);
        if second >= 2 {
            assert!((find(&verdicts, &Resource::Memory).growth - MB as f64).abs() < 1.0);
            assert!((engine.growth(SlotId(1)) - 2.0 * MB as f64).abs() < 1.0);
        }
    }
    assert_eq!(engine.growth(SlotId(2)), 0.0);
}

#[test]
fn leaks_are_watched_where_that_is_asked_for_and_go_on_over_a_reload() {
    let mut web = worker("web");
    web.recycle.leak = true;
    web.limits.memory = Some(1500 * MB);
    let mut both = settings(vec![web, worker("api")]);
    let mut engine = Engine::new(&both);
    let look = |engine: &mut Engine, second: u64, slots: &[(u64, &str)]| {
        let now = at(second as f64);
        let mut seen = readings(now);
        seen.memory.limit = Reading::Known(64_000 * MB);
        seen.workers = slots.iter().map(|(slot, name)| replica(*slot, name, 0.0, (300 + second) * MB)).collect();
        engine.judge(&seen, now);
    };
    for second in (0..600).step_by(2) {
        if second == 300 {
            engine.apply(&both);
        }
        look(&mut engine, second, &[(1, "web"), (2, "web"), (3, "api")]);
    }
    let leak = engine.leak(SlotId(1)).expect("half a gigabyte in nine minutes");
    assert_eq!((leak.bound.line, leak.bound.at), (leak::Line::Limit, 1500.0 * MB as f64), "sooner than its share of 51.2 GB");
    assert_eq!(engine.leak(SlotId(2)), Some(leak));
    assert_eq!(engine.leak(SlotId(3)), None, "nobody asked");
    look(&mut engine, 600, &[(2, "web"), (4, "web")]);
    assert_eq!((engine.leak(SlotId(1)), engine.leak(SlotId(4))), (None, None), "ended, and young");
    assert!(engine.leak(SlotId(2)).is_some());
    for worker in &mut both.workers {
        Arc::make_mut(worker).recycle.leak = false;
    }
    engine.apply(&both);
    look(&mut engine, 602, &[(2, "web"), (4, "web")]);
    assert_eq!(engine.leak(SlotId(2)), None);
}

#[test]
fn a_reload_keeps_levels_and_windows() {
    let mut settings = settings(vec![]);
    let mut engine = Engine::new(&settings);
    let mut seen = readings(at(0.0));
    seen.memory.unreclaimable = Reading::Known(950 * MB);
    engine.judge(&seen, at(0.0));
    settings.policy.memory.rule.critical = Some(Line::Share(0.99));
    engine.apply(&settings);
    seen.memory.unreclaimable = Reading::Known(750 * MB);
    let verdicts = engine.judge(&seen, at(1.0));
    let memory = find(&verdicts, &Resource::Memory);
    assert_eq!((memory.level, memory.critical), (Level::High, Some(0.99)), "still in the band");
    assert!(memory.growth < 0.0, "{}", memory.growth);
}

/// A container of 1000 MB: `anonymous` and a working set of 900 MB; tasks wait for memory `waiting` of the time.
fn under_stress(now: f64, anonymous: u64, waiting: f64) -> Readings {
    let mut seen = readings(at(now));
    seen.memory.unreclaimable = Reading::Known(anonymous * MB);
    seen.memory.working_set = Reading::Known(900 * MB);
    seen.memory.stalls = Reading::Known(Pressure { waiting: Duration::from_secs_f64(now * waiting), stalled: None });
    seen
}

#[test]
fn the_working_set_counts_only_while_there_is_evidence_of_stress() {
    let mut engine = Engine::new(&settings(vec![]));
    let mut second = 0.0;
    let mut judge = |engine: &mut Engine, lasts: f64, waiting: f64| {
        let until = second + lasts;
        let mut last = None;
        while second < until {
            second += 1.0;
            let verdicts = engine.judge(&under_stress(second, 400, waiting), at(second));
            last = Some(find(&verdicts, &Resource::Memory).clone());
        }
        last.unwrap()
    };
    let full_of_cache = judge(&mut engine, 60.0, 0.0);
    assert_eq!((full_of_cache.level, full_of_cache.measure), (Level::Normal, Some(Measure::Unreclaimable)));
    assert_eq!(full_of_cache.used, Some(400.0 * MB as f64));
    // Nearly everything the tasks do is waiting. It fills nothing: what grows is not what is judged.
    let thrashing = judge(&mut engine, 30.0, 0.9);
    assert_eq!((thrashing.level, thrashing.measure), (Level::High, Some(Measure::WorkingSet)));
    assert_eq!((thrashing.used, thrashing.exhaustion), (Some(900.0 * MB as f64), None));
    assert!(thrashing.growth.abs() < 1.0, "{}", thrashing.growth);
    assert!(thrashing.evidence.unwrap().words().unwrap().contains("90 %"), "{:?}", thrashing.evidence);
    let over = judge(&mut engine, 30.0, 0.9);
    assert_eq!(over.level, Level::High, "under critical");
}

#[test]
fn a_working_set_at_critical_is_waited_for() {
    let mut engine = Engine::new(&settings(vec![]));
    let levels: Vec<Level> = (0..20u32)
        .map(|second| {
            let now = f64::from(second);
            let mut seen = under_stress(now, 400, 0.9);
            seen.memory.working_set = Reading::Known(990 * MB);
            find(&engine.judge(&seen, at(now)), &Resource::Memory).level
        })
        .collect();
    let first = |level| levels.iter().position(|seen| *seen == level);
    assert_eq!((levels[0], levels[19]), (Level::Normal, Level::Critical), "{levels:?}");
    // Evidence after one second, and then `sustain`.
    assert!(first(Level::Critical) >= Some(5), "{levels:?}");
}

#[test]
fn what_fills_says_when_it_is_full_and_what_rests_does_not() {
    let mut engine = Engine::new(&settings(vec![]));
    let mut last = Vec::new();
    for second in 0..120u32 {
        let now = f64::from(second);
        let mut seen = readings(at(now));
        seen.memory.unreclaimable = Reading::Known(100 * MB + 4 * MB * u64::from(second));
        last = engine.judge(&seen, at(now));
    }
    let memory = find(&last, &Resource::Memory);
    assert!(memory.exhaustion.is_some_and(|left| (left.as_secs_f64() - 106.0).abs() < 5.0), "{:?}", memory.exhaustion);
    assert_eq!(find(&last, &Resource::Cpu).exhaustion, None);
}

#[test]
fn a_replica_that_ended_leaves_no_tooth_behind() {
    let mut engine = Engine::new(&settings(vec![worker("web")]));
    let mut last = Vec::new();
    for second in 0..300u32 {
        let now = f64::from(second);
        let mut seen = readings(at(now));
        // Replaced every 100 seconds, found out two seconds after it was gone.
        let bytes = 100 * MB + 5 * MB * u64::from(second % 100);
        seen.memory.unreclaimable = Reading::Known(bytes);
        seen.workers = vec![replica(u64::from(second.saturating_sub(2) / 100), "web", 0.0, bytes)];
        last = engine.judge(&seen, at(now));
        if second == 160 {
            let left = find(&last, &Resource::Memory).exhaustion;
            assert!(left.is_some_and(|left| (left.as_secs_f64() - 120.0).abs() < 20.0), "{left:?}");
        }
    }
    assert!(find(&last, &Resource::Memory).exhaustion.is_some());
}

#[test]
fn a_fast_fill_over_high_is_early_until_sustain_is_over() {
    let mut engine = Engine::new(&settings(vec![]));
    let mut early = Vec::new();
    for tick in 0..60u32 {
        let now = f64::from(tick) * 0.25;
        let mut seen = readings(at(now));
        // To 850 MB at 100 MB/s, and there it stays.
        seen.memory.unreclaimable = Reading::Known((400 * MB + 25 * MB * u64::from(tick)).min(850 * MB));
        let verdicts = engine.judge(&seen, at(now));
        let memory = find(&verdicts, &Resource::Memory);
        if memory.level == Level::High {
            early.push((now, memory.early));
        }
    }
    assert!(early.first().is_some_and(|(now, early)| *now < 5.0 && *early), "{early:?}");
    assert!(early.last().is_some_and(|(_, early)| !early), "{early:?}");
}

/// How memory of 1000 MB was early under its line: the first and the last moment, and the level after each look.
fn early_under_the_line(sustain: u64, usage: impl Fn(f64) -> f64) -> Option<(f64, f64)> {
    let mut settings = settings(vec![]);
    settings.policy.memory.rule.sustain = Duration::from_secs(sustain);
    let mut engine = Engine::new(&settings);
    let mut early: Option<(f64, f64)> = None;
    for tick in 0..800u32 {
        let now = f64::from(tick) * 0.25;
        let mut seen = readings(at(now));
        seen.memory.unreclaimable = Reading::Known((usage(now) * MB as f64) as u64);
        let verdicts = engine.judge(&seen, at(now));
        let memory = find(&verdicts, &Resource::Memory);
        if memory.level == Level::Normal && memory.early {
            assert!(memory.utilization.is_some_and(|share| (memory.low..memory.high).contains(&share)), "{memory:?}");
            assert!(memory.exhaustion.is_some_and(|left| left <= Duration::from_secs(sustain)), "{memory:?}");
            early = Some((early.map_or(now, |(first, _)| first), now));
        }
    }
    early
}

#[test]
fn memory_under_its_line_is_early_only_where_sustain_would_be_too_late() {
    // From 200 MB at 60 s on: 700 MB are reached at 80 s, 800 at 84 s, 1000 at 92 s.
    let fill = |now: f64| (200.0 + 25.0 * (now - 60.0).max(0.0)).min(1000.0);
    let found = early_under_the_line(30, fill);
    assert!(found.is_some_and(|(first, last)| (80.0..81.0).contains(&first) && last < 84.0), "{found:?}");
    assert_eq!(early_under_the_line(4, fill), None, "there is time to wait for the line");
    // A program that loads 550 MB in two seconds and stops under the line; a step; a saw-tooth that is known.
    assert_eq!(
        early_under_the_line(30, |now| 200.0 + 275.0 * (now - 60.0).clamp(0.0, 2.0)).filter(|(first, last)| last - first > 2.0),
        None
    );
    assert_eq!(early_under_the_line(30, |now| if now < 60.0 { 200.0 } else { 750.0 }), None);
    let teeth = early_under_the_line(30, |now| 450.0 + 300.0 * (now / 12.0).fract());
    assert!(teeth.is_none_or(|(_, last)| last < 24.0), "the first tooth is not known for one: {teeth:?}");
}

fn any_number() -> impl Strategy<Value = Reading<f64>> {
    prop_oneof![
        any::<f64>().prop_map(Reading::Known),
        (0.0f64..4.0).prop_map(Reading::Known),
        Just(Reading::Unsupported),
        Just(Reading::Gone),
        Just(Reading::Failed(Failure { source: Source::Procfs, errno: None })),
    ]
}

fn any_bytes() -> impl Strategy<Value = Reading<u64>> {
    prop_oneof![any::<u64>().prop_map(Reading::Known), (0u64..2_000_000_000).prop_map(Reading::Known), Just(Reading::Unsupported)]
}

#[test]
fn a_machine_half_of_which_is_stolen_is_full_at_half() {
    let settings = settings(vec![worker("web")]);
    let mut engine = Engine::new(&settings);
    let mut judge = |stolen: Reading<f64>| {
        let mut last = None;
        for tick in 0..10 {
            let now = at(f64::from(tick));
            let mut seen = readings(now);
            (seen.cpu.used_cores, seen.cpu.stolen_cores) = (Reading::Known(1.0), stolen);
            last = engine.judge(&seen, now).into_iter().next();
        }
        last.map(|verdict| (verdict.resource, verdict.limit, verdict.over))
    };
    assert_eq!(judge(Reading::Unsupported), Some((Resource::Cpu, Some(2.0), false)));
    assert_eq!(judge(Reading::Known(1.0)), Some((Resource::Cpu, Some(1.0), true)));
}

proptest! {
    #[test]
    fn whatever_is_read_verdicts_are_numbers(
        ticks in prop::collection::vec((0u64..20_000, any_number(), any_number(), any_bytes(), any_bytes(), any_number(), any_bytes()), 1..60)
    ) {
        let mut web = worker("web");
        web.limits.memory = Some(100 * MB);
        let mut engine = Engine::new(&settings(vec![web]));
        let mut steady = 0;
        for (gap, limit, used, memory, memory_limit, cores, replica_memory) in ticks {
            steady += gap;
            let now = at(steady as f64 / 1000.0);
            let mut seen = readings(now);
            seen.cpu.limit_cores = limit;
            seen.cpu.used_cores = used;
            seen.memory.unreclaimable = memory;
            seen.memory.limit = memory_limit;
            let mut one = replica(1, "web", 0.0, 0);
            one.used_cores = cores;
            one.memory = replica_memory;
            seen.workers = vec![one];
            for verdict in engine.judge(&seen, now) {
                prop_assert!(verdict.utilization.is_none_or(|usage| usage.is_finite() && usage >= 0.0), "{:?}", verdict);
                prop_assert!(verdict.growth.is_finite(), "{:?}", verdict);
                prop_assert!(verdict.low < verdict.high, "{:?}", verdict);
                prop_assert_eq!(verdict.over, verdict.utilization.is_some_and(|usage| usage >= verdict.high));
            }
        }
    }
}
