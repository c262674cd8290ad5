//! Whole machines kept as folders: what is found there, whose usage is held against which limit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll::config::settings::{Ceiling, CpuPolicy, LimitFile, Line, MemoryPolicy, Policy, Rule, Sampling, Scope};
use plimsoll::host::Paths;
use plimsoll::host::cgroupfs::{Kind, Layout};
use plimsoll::host::clock::Moment;
use plimsoll::sampling::readings::{LimitSource, MemoryEvents, MemoryReadings, Reading, SlotId, Target};
use plimsoll::sampling::scope::Extent;
use plimsoll::sampling::{Obstacle, Readings, Sampler};

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn sampler(folder: &Path, scope: Scope) -> (Layout, Sampler) {
    let paths = Paths::below(folder);
    let layout = Layout::discover(&paths);
    let sampling = Sampling { interval: Duration::from_secs(2), scope, report_every: None };
    let sampler = Sampler::new(&paths, &sampling, &layout, []);
    (layout, sampler)
}

fn now() -> Moment {
    Moment { steady: Duration::from_secs(100), wall: std::time::UNIX_EPOCH }
}

fn look(name: &str, scope: Scope) -> (Layout, Extent, Readings) {
    let (layout, mut sampler) = sampler(&machine(name), scope);
    let readings = sampler.read(&[], now());
    (layout, sampler.scope().extent, readings)
}

/// What is expected of one machine, all in one line.
struct Expected {
    name: &'static str,
    kind: Kind,
    extent: Extent,
    cores: (f64, LimitSource),
    usage: Duration,
    throttled: Reading<Duration>,
    memory: (u64, LimitSource),
    current: u64,
    working_set: u64,
    unreclaimable: u64,
    swap: u64,
}

/// /proc/meminfo of the machines built by hand.
const HOST: (u64, u64, u64, u64) =
    ((8_000_000 - 1_000_000) << 10, (8_000_000 - 1_000_000 - 1_200_000) << 10, (8_000_000 - 3_000_000) << 10, 24_288 << 10);

const fn host(name: &'static str, kind: Kind) -> Expected {
    Expected {
        name,
        kind,
        extent: Extent::Host,
        cores: (4.0, LimitSource::Machine),
        // (40000 + 1000 + 20000 + 100 + 400) ticks of 10 ms; 2000 ticks were stolen.
        usage: Duration::from_secs(615),
        throttled: Reading::Known(Duration::from_secs(20)),
        memory: (8_000_000 << 10, LimitSource::Machine),
        current: HOST.0,
        working_set: HOST.1,
        unreclaimable: HOST.2,
        swap: HOST.3,
    }
}

/// 210 MB anonymous and shared are on the lists with 2 MB locked as 210 MB; the kernel's part is 9.9 MB.
const V2_UNRECLAIMABLE: u64 = 210_000_000 + 1_000_000 + 2_000_000 + 500_000 + 400_000 + 6_000_000;

fn container(name: &'static str, kind: Kind) -> Expected {
    Expected {
        name,
        kind,
        extent: Extent::Container,
        cores: (0.5, LimitSource::Cgroup),
        usage: Duration::from_secs(5),
        throttled: Reading::Known(Duration::from_millis(250)),
        memory: (512 << 20, LimitSource::Cgroup),
        current: 300_000_000,
        working_set: 250_000_000,
        unreclaimable: V2_UNRECLAIMABLE,
        swap: 4096,
    }
}

#[test]
fn every_machine_is_seen_as_it_is() {
    let machines = [
        container("exact/docker-v2", Kind::V2),
        Expected {
            cores: (1.5, LimitSource::Cgroup),
            usage: Duration::from_secs(7),
            throttled: Reading::Known(Duration::from_secs(3)),
            memory: (256 << 20, LimitSource::Cgroup),
            current: 200_000_000,
            working_set: 160_000_000,
            unreclaimable: 138_000_000,
            swap: 1000,
            ..container("exact/docker-v1", Kind::V1)
        },
        Expected { cores: (4.0, LimitSource::Machine), ..container("exact/no-psi", Kind::V2) },
        // The memory limit lies above what is mounted; the quota is the parent's, the accounts are in a tree of their own.
        Expected {
            cores: (3.0, LimitSource::Cgroup),
            usage: Duration::from_nanos(9_000_000_000 - 13),
            throttled: Reading::Known(Duration::ZERO),
            memory: (1 << 30, LimitSource::Cgroup),
            current: 200_000_000,
            working_set: 160_000_000,
            unreclaimable: 138_000_000,
            swap: 1000,
            ..container("exact/v1-hierarchical", Kind::V1)
        },
        host("exact/v2-bare", Kind::V2),
        // One of two processors is ours: what happens on the other is no business of ours.
        Expected {
            cores: (1.0, LimitSource::Affinity),
            usage: Duration::from_millis(306_250),
            throttled: Reading::Known(Duration::from_secs(5)),
            ..host("exact/no-cgroup", Kind::None)
        },
    ];
    check(machines);
}

/// Machines taken from running kernels. The figures are what the kernel's files say, added up by hand.
#[test]
fn every_captured_machine_is_seen_as_it_is() {
    /// Of two GiB what the kernel keeps for itself is not counted.
    const MACHINE: u64 = 2_026_004 << 10;
    check([
        Expected {
            name: "hosts/v2-bare",
            kind: Kind::V2,
            extent: Extent::Host,
            cores: (2.0, LimitSource::Machine),
            // 3439 + 4968 + 200 ticks.
            usage: Duration::from_millis(86_070),
            throttled: Reading::Known(Duration::ZERO),
            memory: (MACHINE, LimitSource::Machine),
            current: 332_029_952,
            working_set: 170_934_272,
            unreclaimable: 270_487_552,
            swap: 0,
        },
        // The slice carries both limits: its usage counts, that of the other service in it included.
        Expected {
            name: "hosts/parent-limit",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (1.5, LimitSource::Cgroup),
            usage: Duration::from_micros(5_441_414),
            throttled: Reading::Known(Duration::from_micros(1_227_308)),
            memory: (1 << 30, LimitSource::Cgroup),
            current: 68_853_760,
            working_set: 68_853_760,
            unreclaimable: 42_663_888,
            swap: 0,
        },
        Expected {
            name: "hosts/docker-v2",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (0.5, LimitSource::Cgroup),
            usage: Duration::from_micros(4_264_701),
            throttled: Reading::Known(Duration::from_micros(6_316_443)),
            memory: (512 << 20, LimitSource::Cgroup),
            current: 47_595_520,
            working_set: 22_429_696,
            unreclaimable: 21_471_984,
            swap: 0,
        },
        Expected {
            name: "hosts/no-psi",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (0.5, LimitSource::Cgroup),
            usage: Duration::from_micros(3_469_206),
            throttled: Reading::Known(Duration::from_micros(4_564_727)),
            memory: (512 << 20, LimitSource::Cgroup),
            current: 47_624_192,
            working_set: 22_441_984,
            unreclaimable: 21_455_600,
            swap: 0,
        },
        // Its limits are no limits, but its own usage counts.
        Expected {
            name: "hosts/limit-above-machine",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (2.0, LimitSource::Machine),
            usage: Duration::from_micros(5_497_959),
            throttled: Reading::Known(Duration::ZERO),
            memory: (MACHINE, LimitSource::Machine),
            current: 47_620_096,
            working_set: 22_429_696,
            unreclaimable: 21_455_600,
            swap: 0,
        },
        // One of two processors is ours: what happens on the other is no business of ours.
        Expected {
            name: "hosts/no-cgroup",
            kind: Kind::None,
            extent: Extent::Host,
            cores: (1.0, LimitSource::Affinity),
            // 4423 + 6175 + 470 ticks of its line.
            usage: Duration::from_millis(110_680),
            throttled: Reading::Known(Duration::ZERO),
            memory: (MACHINE, LimitSource::Machine),
            current: 443_092_992,
            working_set: 331_620_352,
            unreclaimable: 322_953_216,
            swap: 0,
        },
        // Of 1 302 528 bytes of the kernel's 20 533 248 of 37 613 568 parts cannot be reclaimed.
        Expected {
            name: "hosts/docker-v1",
            kind: Kind::V1,
            extent: Extent::Container,
            cores: (1.5, LimitSource::Cgroup),
            usage: Duration::from_nanos(5_072_913_056),
            throttled: Reading::Known(Duration::ZERO),
            memory: (256 << 20, LimitSource::Cgroup),
            current: 48_041_984,
            working_set: 22_470_656,
            unreclaimable: 21_139_456 + 711_050,
            swap: 0,
        },
        // Of the memory tree only our own group is mounted, the limit is the slice's; so is the quota, whose accounts are in a
        // tree of their own. Of 1 007 616 bytes of the kernel's 53 317 632 of 267 776 000 parts cannot be reclaimed.
        Expected {
            name: "hosts/v1-hierarchical",
            kind: Kind::V1,
            extent: Extent::Container,
            cores: (0.6, LimitSource::Cgroup),
            usage: Duration::from_nanos(1_686_175_918),
            throttled: Reading::Known(Duration::from_nanos(2_681_026_982)),
            memory: (1 << 30, LimitSource::Cgroup),
            current: 47_849_472,
            working_set: 47_849_472 - 25_165_824,
            unreclaimable: 21_393_408 + 200_629,
            swap: 0,
        },
        // Of 1 015 808 bytes of the kernel's 72 343 552 of 458 752 000 parts cannot be reclaimed.
        Expected {
            name: "hosts/v1",
            kind: Kind::V1,
            extent: Extent::Container,
            cores: (0.5, LimitSource::Cgroup),
            usage: Duration::from_nanos(1_117_762_316),
            throttled: Reading::Known(Duration::from_nanos(2_283_863_733)),
            memory: (256 << 20, LimitSource::Cgroup),
            current: 47_837_184,
            working_set: 47_837_184 - 25_165_824,
            unreclaimable: 21_397_504 + 160_189,
            swap: 0,
        },
        // The group of its session has no limits: the machine's figures count.
        Expected {
            name: "hosts/hybrid",
            kind: Kind::Hybrid,
            extent: Extent::Host,
            cores: (2.0, LimitSource::Machine),
            // 255032 + 177861 + 34864 + 1705 ticks; 23987 were stolen.
            usage: Duration::from_millis(4_694_620),
            throttled: Reading::Known(Duration::from_millis(239_870)),
            memory: (24_731_708 << 10, LimitSource::Machine),
            current: 10_058_407_936,
            working_set: 4_172_242_944,
            unreclaimable: 768_114_688,
            swap: 0,
        },
        // Of 1 261 568 bytes of the kernel's 74 301 440 of 461 049 856 parts cannot be reclaimed.
        Expected {
            name: "hosts/readonly-cgroupfs",
            kind: Kind::V1,
            extent: Extent::Container,
            cores: (1.5, LimitSource::Cgroup),
            usage: Duration::from_nanos(2_821_822_255),
            throttled: Reading::Known(Duration::ZERO),
            memory: (256 << 20, LimitSource::Cgroup),
            current: 47_874_048,
            working_set: 47_874_048 - 25_165_824,
            unreclaimable: 21_266_432 + 203_310,
            swap: 0,
        },
        Expected {
            name: "hosts/delegated-unit",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (1.5, LimitSource::Cgroup),
            usage: Duration::from_micros(4_751_041),
            throttled: Reading::Known(Duration::from_micros(340_429)),
            memory: (384 << 20, LimitSource::Cgroup),
            current: 49_090_560,
            working_set: 23_748_608,
            unreclaimable: 21_322_888,
            swap: 0,
        },
        // Of the pod's group nothing is seen.
        Expected {
            name: "hosts/kubernetes-shared-pids",
            kind: Kind::V2,
            extent: Extent::Container,
            cores: (0.5, LimitSource::Cgroup),
            usage: Duration::from_micros(3_451_057),
            throttled: Reading::Known(Duration::from_micros(4_696_678)),
            memory: (256 << 20, LimitSource::Cgroup),
            current: 47_587_328,
            working_set: 22_421_504,
            unreclaimable: 21_459_552,
            swap: 0,
        },
    ]);
}

fn check<const N: usize>(machines: [Expected; N]) {
    for expected in machines {
        let name = expected.name;
        let (layout, extent, seen) = look(name, Scope::Auto);
        assert_eq!((layout.kind, extent), (expected.kind, expected.extent), "{name}");
        assert_eq!(
            (seen.cpu.limit_cores, seen.cpu.limit_source),
            (Reading::Known(expected.cores.0), expected.cores.1),
            "{name}: cpu limit"
        );
        assert_eq!(seen.cpu.usage_total, Reading::Known(expected.usage), "{name}: cpu usage");
        assert_eq!(seen.cpu.used_cores, Reading::Unsupported, "{name}: a rate needs two looks");
        assert_eq!(seen.cpu.throttled_total, expected.throttled, "{name}: throttled");
        assert_eq!(
            (seen.memory.limit, seen.memory.limit_source),
            (Reading::Known(expected.memory.0), expected.memory.1),
            "{name}: memory limit"
        );
        assert_eq!(seen.memory.current, Reading::Known(expected.current), "{name}: current");
        assert_eq!(seen.memory.working_set, Reading::Known(expected.working_set), "{name}: working set");
        assert_eq!(seen.memory.unreclaimable, Reading::Known(expected.unreclaimable), "{name}: unreclaimable");
        assert_eq!(seen.memory.swap, Reading::Known(expected.swap), "{name}: swap");
        assert_eq!(seen.failures, [0; 5], "{name}: failures");
    }
}

#[test]
fn events_are_those_of_the_group() {
    let events = |name| look(name, Scope::Auto).2.memory.events;
    assert_eq!(events("exact/docker-v2"), Reading::Known(MemoryEvents { high: 3, max: 17, oom: 2, oom_kill: 1 }));
    assert_eq!(events("exact/docker-v1"), Reading::Known(MemoryEvents { high: 0, max: 5, oom: 4, oom_kill: 4 }));
    assert_eq!(events("exact/v2-bare"), Reading::Unsupported);
}

#[test]
fn the_softer_limit_is_reported_beside_the_hard_one() {
    for (name, high) in [("exact/docker-v2", 483_183_820), ("hosts/delegated-unit", 320 << 20)] {
        let (_, mut sampler) = sampler(&machine(name), Scope::Auto);
        sampler.read(&[], now());
        assert_eq!(sampler.scope().candidates.memory_high, Some(high));
    }
}

#[test]
fn pressure_is_the_groups_else_the_machines_else_unsupported() {
    let waiting = |name| look(name, Scope::Auto).2.pressure.memory.map(|pressure| pressure.waiting);
    assert_eq!(waiting("exact/docker-v2"), Reading::Known(Duration::from_micros(22_000)));
    assert_eq!(waiting("exact/docker-v1"), Reading::Known(Duration::from_micros(170_000)));
    assert_eq!(waiting("exact/v2-bare"), Reading::Known(Duration::from_micros(170_000)));
    for name in ["exact/no-psi", "hosts/no-psi"] {
        assert_eq!(waiting(name), Reading::Unsupported);
        assert_eq!(look(name, Scope::Auto).2.pressure.cpu, Reading::Unsupported);
    }
}

#[test]
fn the_settings_decide_the_scope_when_they_say_so() {
    let (_, extent, seen) = look("exact/docker-v2", Scope::Host);
    assert_eq!(extent, Extent::Host);
    assert_eq!((seen.cpu.limit_cores, seen.memory.limit), (Reading::Known(4.0), Reading::Known(8_000_000 << 10)));
    assert_eq!(seen.memory.current, Reading::Known(HOST.0));
    let (_, extent, seen) = look("exact/v2-bare", Scope::Container);
    assert_eq!(extent, Extent::Container);
    assert_eq!((seen.cpu.limit_source, seen.memory.limit_source), (LimitSource::Machine, LimitSource::Machine));
    assert_eq!(seen.memory.current, Reading::Known(300_000_000));
}

/// Taken from a running kernel: every controller on v1, the v2 tree beside them with none.
#[test]
fn a_hybrid_machine_keeps_its_controllers_on_v1() {
    let (layout, _, _) = look("hosts/hybrid", Scope::Auto);
    let top = machine("hosts/hybrid").join("cgroup");
    assert_eq!(layout.memory.as_ref().map(|own| own.mount.clone()), Some(top.join("memory")));
    assert!(layout.memory.is_some_and(|own| own.dir.starts_with(top.join("memory/process_api"))));
    assert_eq!(layout.unified.map(|own| own.dir), Some(top.join("unified")));
}

/// A copy that can be changed.
fn copy(name: &str) -> tempfile::TempDir {
    fn into(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                into(&entry.path(), &target)
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    into(&machine(name), folder.path());
    folder
}

#[test]
fn a_limit_that_changes_live_is_followed_at_once_and_usage_makes_a_rate() {
    let folder = copy("exact/docker-v2");
    let (_, mut sampler) = sampler(folder.path(), Scope::Auto);
    sampler.read(&[], now());
    std::fs::write(folder.path().join("cgroup/memory.max"), "805306368\n").unwrap();
    std::fs::write(folder.path().join("cgroup/cpu.max"), "75000 50000\n").unwrap();
    std::fs::write(folder.path().join("cgroup/cpu.stat"), "usage_usec 5400000\nthrottled_usec 250000\n").unwrap();
    let seen = sampler.read(&[], now().after(Duration::from_secs(2)));
    assert_eq!((seen.memory.limit, seen.cpu.limit_cores), (Reading::Known(768 << 20), Reading::Known(1.5)));
    assert!(matches!(seen.cpu.used_cores, Reading::Known(cores) if (cores - 0.2).abs() < 1e-9), "{:?}", seen.cpu.used_cores);
}

#[test]
fn what_cannot_be_understood_is_a_failure_and_never_a_zero() {
    let folder = copy("exact/docker-v2");
    for (file, text) in [("memory.current", "many\n"), ("memory.max", "\n"), ("cpu.stat", ""), ("memory.pressure", "some avg10=\n")] {
        std::fs::write(folder.path().join("cgroup").join(file), text).unwrap();
    }
    std::fs::write(folder.path().join("proc/meminfo"), "MemTotal: 0 kB\n").unwrap();
    let (_, mut sampler) = sampler(folder.path(), Scope::Auto);
    let seen = sampler.read(&[], now());
    assert!(matches!(seen.memory.current, Reading::Failed(_)), "{:?}", seen.memory);
    assert!(matches!(seen.memory.limit, Reading::Failed(_)), "the machine's memory would be a guess: {:?}", seen.memory.limit);
    assert!(matches!(seen.cpu.usage_total, Reading::Failed(_)));
    assert!(matches!(seen.pressure.memory, Reading::Failed(_)));
    // meminfo; memory.max, memory.current and cpu.stat; the pressure file.
    assert_eq!(seen.failures, [1, 3, 1, 0, 0]);
}

#[test]
fn an_empty_folder_is_a_machine_that_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, mut sampler) = sampler(folder.path(), Scope::Auto);
    assert_eq!(layout, Layout::none());
    let seen = sampler.read(&[], now());
    assert_eq!((seen.memory.limit, seen.memory.current), (Reading::Unsupported, Reading::Unsupported));
    assert_eq!((seen.cpu.limit_cores, seen.cpu.usage_total), (Reading::Unsupported, Reading::Unsupported));
}

/// A pressure file read faster than the kernel's clock ticks stops counting, for every reader of it.
#[test]
fn pressure_is_never_read_more_often_than_every_ten_milliseconds() {
    let folder = copy("exact/docker-v2");
    let (_, mut sampler) = sampler(folder.path(), Scope::Auto);
    let mut waiting = |after| sampler.read(&[], now().after(Duration::from_millis(after))).pressure.memory.map(|pressure| pressure.waiting);
    assert_eq!(waiting(0), Reading::Known(Duration::from_micros(22_000)));
    std::fs::write(folder.path().join("cgroup/memory.pressure"), "some avg10=0.00 avg60=0.00 avg300=0.00 total=23000\n").unwrap();
    assert_eq!(waiting(9), Reading::Known(Duration::from_micros(22_000)));
    assert_eq!(waiting(10), Reading::Known(Duration::from_micros(23_000)));
}

const POD: i32 = 20;

fn copy_tree(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy_tree(&from.join(&name), &to.join(&name));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

/// A pod of two containers that share their processes: what a daemon in the one sees, where the other is what `app` is as a machine.
/// Its own container is that of `sidecar`.
fn pod(sidecar: &str, app: &str) -> tempfile::TempDir {
    let (sidecar, app) = (machine(sidecar), machine(app));
    let pod = tempfile::tempdir().unwrap();
    let at = |name: &str| pod.path().join(name);
    // One machine: what is the whole machine's is the application's too.
    copy_tree(&app.join("proc"), &at("proc"));
    if app.join("sys").exists() {
        copy_tree(&app.join("sys"), &at("sys"));
    }
    let process = at(&format!("proc/{POD}"));
    std::fs::create_dir_all(&process).unwrap();
    for file in ["cgroup", "mountinfo", "status"] {
        if app.join("proc/self").join(file).exists() {
            copy_tree(&app.join("proc/self").join(file), &process.join(file));
        }
    }
    std::fs::write(process.join("stat"), format!("{POD} (app) S 0 {POD} {POD} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 500 0 100\n")).unwrap();
    std::fs::write(process.join("statm"), "1000 100 50 1 0 100 0\n").unwrap();
    // As in a real /proc, its root is a link.
    copy_tree(&app.join("cgroup"), &at("containers/app/sys/fs/cgroup"));
    std::os::unix::fs::symlink("../../containers/app", process.join("root")).unwrap();
    for file in ["cgroup", "mountinfo"] {
        copy_tree(&sidecar.join("proc/self").join(file), &at("proc/self").join(file));
    }
    copy_tree(&sidecar.join("cgroup"), &at("cgroup"));
    pod
}

fn app() -> Target {
    Target { slot: SlotId(1), worker: "app".into(), pid: POD, cpu_group: None, memory_group: None, foreign_group: None, merges: false }
}

fn scope_of_app() -> Scope {
    Scope::Worker("app".into())
}

/// The sidecar sees what a daemon in the application's container would: v1 and v2, private namespaces and shared ones.
#[test]
fn a_sidecar_sees_the_container_of_the_application() {
    let machines =
        ["exact/docker-v2", "exact/docker-v1", "exact/v1-hierarchical", "hosts/kubernetes-shared-pids", "hosts/hybrid", "hosts/docker-v1"];
    for name in machines {
        for sidecar in ["exact/docker-v2", "exact/v2-bare", "hosts/hybrid"] {
            let pod = pod(sidecar, name);
            let (_, mut within) = sampler(&machine(name), Scope::Container);
            let expected = within.read(&[], now());
            let (_, mut beside) = sampler(pod.path(), scope_of_app());
            let seen = beside.read(&[app()], now());
            let what = format!("{name} seen from {sidecar}");
            assert_eq!(beside.lookout(), Some(("app", None)), "{what}");
            assert_eq!(beside.scope().extent, Extent::Worker, "{what}");
            assert_eq!(seen.cpu, expected.cpu, "{what}");
            // The account of a group is told apart from that of its processes, which are other ones here.
            let unreclaimable = expected.memory.unreclaimable;
            assert_eq!(seen.memory, MemoryReadings { unreclaimable: seen.memory.unreclaimable, ..expected.memory }, "{what}");
            let off = seen.memory.unreclaimable.known().unwrap().abs_diff(unreclaimable.known().unwrap());
            assert!(off <= 50 * 4096 * 8, "{what}: {off}");
            assert_eq!(seen.pressure, expected.pressure, "{what}");
            assert_eq!(seen.failures, [0; 5], "{what}");
        }
    }
}

/// Read from a namespace of its own, the kernel names the application's group by its way from the reader's.
#[test]
fn a_sidecar_sees_a_container_whose_group_lies_beside_its_own() {
    let pod = pod("hosts/kubernetes-shared-pids", "exact/docker-v2");
    let process = pod.path().join(format!("proc/{POD}"));
    std::fs::write(process.join("cgroup"), "0::/../cri-containerd-5e1f0c.scope\n").unwrap();
    let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap();
    let mounts = mounts.replace("0:26 / /sys/fs/cgroup", "0:26 /../cri-containerd-5e1f0c.scope /sys/fs/cgroup");
    assert!(mounts.contains("/../cri"));
    std::fs::write(process.join("mountinfo"), mounts).unwrap();
    let (_, mut sampler) = sampler(pod.path(), scope_of_app());
    let seen = sampler.read(&[app()], now());
    assert_eq!(sampler.scope().extent, Extent::Worker);
    assert_eq!((seen.cpu.limit_cores, seen.memory.limit), (Reading::Known(0.5), Reading::Known(512 << 20)));
    assert_eq!(seen.memory.events, Reading::Known(MemoryEvents { high: 3, max: 17, oom: 2, oom_kill: 1 }));
    assert_eq!(seen.cpu.usage_total, Reading::Known(Duration::from_secs(5)));
}

/// Two containers in one: whose limits they are, whose usage, and that it is said.
#[test]
fn a_sidecar_that_sees_nothing_holds_the_workers_to_what_is_known() {
    let pod = pod("hosts/kubernetes-shared-pids", "exact/docker-v2");
    let (_, mut sampler) = sampler(pod.path(), scope_of_app());
    // Its own container's limits, and no usage of anybody but the workers.
    let check = |seen: &Readings, sampler: &Sampler| {
        assert_eq!(sampler.scope().extent, Extent::Workers);
        assert!(seen.cpu.of_workers && seen.memory.of_workers);
        assert_eq!((seen.cpu.usage_total, seen.memory.current), (Reading::Unsupported, Reading::Unsupported));
        assert_eq!(seen.memory.events, Reading::Unsupported);
    };
    let seen = sampler.read(&[], now());
    check(&seen, &sampler);
    assert_eq!(sampler.lookout(), Some(("app", Some(Obstacle::NoProcess))));
    assert_eq!((seen.memory.limit, seen.memory.limit_source), (Reading::Known(256 << 20), LimitSource::Cgroup));
    // It is there, and its root is not to be had.
    let root = pod.path().join(format!("proc/{POD}/root"));
    std::fs::rename(&root, pod.path().join("hidden")).unwrap();
    let seen = sampler.read(&[app()], now());
    check(&seen, &sampler);
    assert!(matches!(sampler.lookout(), Some(("app", Some(Obstacle::Root(POD, _))))), "{:?}", sampler.lookout());
    // A file says what the application has: neither its own container's limits nor its own processors count beside that.
    let folder = tempfile::tempdir().unwrap();
    let policy = limits_from(folder.path());
    sampler.set_limit_files(&policy);
    std::fs::write(folder.path().join("memory"), "1073741824").unwrap();
    std::fs::write(folder.path().join("cpu"), "1500").unwrap();
    let seen = sampler.read(&[app()], now());
    check(&seen, &sampler);
    assert_eq!((seen.memory.limit, seen.memory.limit_source), (Reading::Known(1 << 30), LimitSource::File));
    assert_eq!((seen.cpu.limit_cores, seen.cpu.limit_source), (Reading::Known(1.5), LimitSource::File));
    // A process that is found anew, as after a restart of its container, is looked at at once.
    std::fs::rename(pod.path().join("hidden"), &root).unwrap();
    let again = Target { slot: SlotId(2), ..app() };
    let seen = sampler.read(std::slice::from_ref(&again), now());
    assert_eq!((sampler.scope().extent, seen.memory.limit), (Extent::Worker, Reading::Known(512 << 20)));
    assert!(!seen.memory.of_workers && seen.memory.limit_source == LimitSource::Cgroup, "the smaller of both");
    std::fs::write(folder.path().join("memory"), "268435456\n").unwrap();
    let seen = sampler.read(std::slice::from_ref(&again), now());
    assert_eq!((seen.memory.limit, seen.memory.limit_source), (Reading::Known(256 << 20), LimitSource::File));
    assert!(!seen.memory.of_workers, "a group bounds it, so all of its usage counts");
    // It has ended: nobody's view is taken for its own.
    std::fs::remove_file(pod.path().join(format!("proc/{POD}/statm"))).unwrap();
    let seen = sampler.read(std::slice::from_ref(&again), now());
    check(&seen, &sampler);
}

fn limits_from(folder: &Path) -> Policy {
    let file = |name: &str| LimitFile { path: folder.join(name), unit: 1 };
    let line = || Rule {
        high: Line::Share(0.8),
        low: Line::Share(0.7),
        critical: None,
        sustain: Duration::ZERO,
        on_high: Vec::new(),
        on_critical: Vec::new(),
    };
    Policy {
        dry_run: false,
        cpu: CpuPolicy { limit: Ceiling::File(file("cpu")), rule: line() },
        memory: MemoryPolicy { limit: Ceiling::File(file("memory")), rule: line() },
        disks: Vec::new(),
    }
}

#[test]
fn a_file_is_one_more_limit_and_the_smallest_counts() {
    let folder = tempfile::tempdir().unwrap();
    let policy = limits_from(folder.path());
    let write = |memory: &str, cpu: &str| {
        std::fs::write(folder.path().join("memory"), memory).unwrap();
        std::fs::write(folder.path().join("cpu"), cpu).unwrap();
    };
    let limits = |name: &str| {
        let (_, mut sampler) = sampler(&machine(name), Scope::Auto);
        sampler.set_limit_files(&policy);
        let seen = sampler.read(&[], now());
        let (cpu, memory) = (seen.cpu, seen.memory);
        ((cpu.limit_cores.known(), cpu.limit_source, cpu.of_workers), (memory.limit.known(), memory.limit_source, memory.of_workers))
    };
    // None was ever there: as without.
    let auto = limits("exact/docker-v2");
    assert_eq!(auto, ((Some(0.5), LimitSource::Cgroup, false), (Some(512 << 20), LimitSource::Cgroup, false)));
    write("268435456", "250");
    let smaller = ((Some(0.25), LimitSource::File, false), (Some(256 << 20), LimitSource::File, false));
    assert_eq!(limits("exact/docker-v2"), smaller);
    // Nothing else bounds this machine: what others do on it is no business of the workers.
    let of_workers = ((Some(0.25), LimitSource::File, true), (Some(256 << 20), LimitSource::File, true));
    assert_eq!(limits("exact/v2-bare"), of_workers);
    write("1073741824", "3000");
    assert_eq!(limits("exact/docker-v2"), auto);
}
