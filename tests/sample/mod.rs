//! A snapshot made by hand, in which something of everything is known.

use std::time::{Duration, SystemTime};

use plimsoll::host::clock::Moment;
use plimsoll::snapshot::jobs::{JobRun, JobState, OUTCOMES};
use plimsoll::snapshot::*;

/// When the sample was taken: 2026-11-20 12:00:00 UTC, 5000 s after boot.
pub fn taken() -> Moment {
    Moment { steady: Duration::from_secs(5000), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_176_000) }
}

pub fn snapshot() -> Snapshot {
    let mut tick_duration = Histogram::new(&[0.001, 0.01, 1.0]);
    tick_duration.observe(Duration::from_micros(500));
    tick_duration.observe(Duration::from_millis(5));
    tick_duration.observe(Duration::from_secs(2));
    Snapshot {
        tick: 42,
        taken_at: taken().unix_seconds(),
        taken_at_steady: taken().steady.as_secs_f64(),
        next_within: 2.0,
        daemon: DaemonState {
            version: "0.1.0".into(),
            pid: 4711,
            started_at: taken().unix_seconds() - 3720.0,
            config_file: Some("/etc/plimsoll/plimsoll.toml".into()),
            config_reload_successful: true,
            config_reloaded_at: taken().unix_seconds() - 3720.0,
            ready: true,
            resident_bytes: Some(7_000_000),
            virtual_bytes: Some(90_000_000),
            cpu_seconds: Some(1.25),
            open_fds: Some(19),
            max_fds: Some(1024),
            ..DaemonState::default()
        },
        environment: Environment {
            platform: "docker".into(),
            cgroup: "v2".into(),
            enforcement: "signal".into(),
            pressure: "trigger, 2000 ms".into(),
            pages: "locked".into(),
            limit_source: "cgroup".into(),
            scope: "container".into(),
            limitations: vec!["cgroup throttling: /sys/fs/cgroup is read-only".into()],
        },
        cpu: CpuState {
            limit_cores: Some(0.5),
            limit_source: "cgroup".into(),
            used_cores: Some(0.45),
            usage_seconds_total: Some(1234.5),
            throttled_seconds_total: Some(6.25),
        },
        memory: MemoryState {
            limit_bytes: Some(536_870_912),
            limit_source: "cgroup".into(),
            current_bytes: Some(400_000_000),
            working_set_bytes: Some(350_000_000),
            unreclaimable_bytes: Some(268_435_456),
            swap_bytes: None,
            refaulted_bytes_total: Some(40_960),
            events: vec![("high".into(), 3), ("oom_kill".into(), 0)],
        },
        pressure: vec![
            PressureState { resource: "cpu".into(), waiting_seconds_total: Some(12.5), stalled_seconds_total: None },
            PressureState { resource: "memory".into(), waiting_seconds_total: Some(0.5), stalled_seconds_total: Some(0.25) },
        ],
        disks: vec![DiskState {
            path: "/app/data".into(),
            size_bytes: Some(5_000_000_000),
            avail_bytes: Some(1_000_000_000),
            files: Some(327_680),
            files_free: None,
        }],
        policy: PolicyState {
            throttled: true,
            retry_after_s: Some(8.0),
            resources: vec![
                ResourceState {
                    resource: "cpu".into(),
                    state: "high".into(),
                    since: taken().unix_seconds() - 30.0,
                    used: Some(0.45),
                    limit: Some(0.5),
                    utilization: Some(0.9),
                    basis: "scope".into(),
                    high: 0.8,
                    low: 0.7,
                    critical: None,
                    throttled: true,
                    last_action: Some("throttle web.0 to 0.35 cores".into()),
                    ..ResourceState::default()
                },
                ResourceState {
                    resource: "memory".into(),
                    state: "normal".into(),
                    since: taken().unix_seconds() - 3000.0,
                    used: Some(268_435_456.0),
                    limit: Some(536_870_912.0),
                    utilization: Some(0.5),
                    basis: "scope".into(),
                    high: 0.8,
                    low: 0.7,
                    critical: Some(0.92),
                    measure: Some("unreclaimable".into()),
                    exhaustion_seconds: Some(200.0),
                    ..ResourceState::default()
                },
                ResourceState {
                    resource: "disk:/app/data".into(),
                    state: "critical".into(),
                    since: taken().unix_seconds() - 600.0,
                    used: Some(4_600_000_000.0),
                    limit: Some(5_000_000_000.0),
                    utilization: Some(0.92),
                    basis: "scope".into(),
                    high: 0.8,
                    low: 0.75,
                    critical: Some(0.9),
                    unanswered_seconds: 600.0,
                    unanswered_reason: Some("no job is configured that could free space".into()),
                    ..ResourceState::default()
                },
            ],
        },
        workers: vec![
            WorkerState {
                name: "vector-db".into(),
                desired: 1,
                states: vec![("running".into(), 0), ("backoff".into(), 1)],
                replicas: vec![ReplicaState { state: "backoff".into(), restarts: 4, next_start_in: Some(8.0), ..ReplicaState::default() }],
                cpu_seconds_total: 3.5,
                starts_total: 5,
                exits_total: vec![("error".into(), 4), ("oom".into(), 0)],
                recycles_total: vec![("memory".into(), 0)],
                ..WorkerState::default()
            },
            WorkerState {
                name: "web".into(),
                desired: 2,
                states: vec![("running".into(), 2), ("backoff".into(), 0)],
                replicas: vec![
                    ReplicaState {
                        index: 0,
                        state: "running".into(),
                        pid: Some(4720),
                        started_at: Some(taken().unix_seconds() - 3700.0),
                        used_cores: Some(0.35),
                        cores_allowed: Some(0.35),
                        throttle_method: Some("duty".into()),
                        memory_bytes: Some(180_000_000),
                        threads: Some(8),
                        descriptors: Some(40),
                        processes: Some(2),
                        restarts: 0,
                        next_start_in: None,
                        merged_bytes: Some(4_000_000),
                        ..ReplicaState::default()
                    },
                    ReplicaState {
                        index: 1,
                        state: "running".into(),
                        pid: Some(4721),
                        used_cores: Some(0.02),
                        memory_bytes: None,
                        restarts: 1,
                        ..ReplicaState::default()
                    },
                ],
                cpu_seconds_total: 900.0,
                memory_bytes: Some(180_000_000),
                peak_memory_bytes: Some(220_000_000),
                throttle_ratio: 0.25,
                throttled_seconds_total: 17.5,
                starts_total: 3,
                exits_total: vec![("error".into(), 1), ("oom".into(), 0)],
                recycles_total: vec![("memory".into(), 1)],
            },
        ],
        jobs: std::sync::Arc::new(vec![JobState {
            name: "memory".into(),
            kind: "sessions".into(),
            state: "idle".into(),
            schedule: Some("0 3 * * *".into()),
            next_run: Some(taken().unix_seconds() + 3600.0),
            last_run: Some(JobRun {
                job: "memory".into(),
                cause: "schedule".into(),
                started: taken().unix_seconds() - 82_800.0,
                ended: Some(taken().unix_seconds() - 82_790.0),
                outcome: Some("done".into()),
                seconds: Some(10.0),
                ..JobRun::default()
            }),
            last_success: Some(taken().unix_seconds() - 82_790.0),
            runs_total: OUTCOMES.iter().map(|outcome| ((*outcome).to_owned(), u64::from(*outcome == "done"))).collect(),
            skips_total: vec![("missed".into(), 1), ("high".into(), 0)],
            deleted_total: [("session".to_owned(), 12)].into(),
            reclaimed_bytes_total: 1_048_576,
            figures: [
                ("sessions", 40.0),
                ("backup_size_bytes", 9e6),
                ("database_size_bytes", 6e8),
                ("database_wal_bytes", 4e6),
                ("database_free_bytes", 5e7),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
            ..JobState::default()
        }]),
        counters: Counters {
            actions_total: vec![("cpu".into(), "throttle".into(), 7), ("memory".into(), "shed".into(), 0)],
            action_failures_total: vec![("cpu".into(), "throttle".into(), 1)],
            actions_suppressed_total: vec![("dry_run".into(), 0)],
            source_errors_total: vec![("psi".into(), 2)],
            tick_overruns_total: 1,
            reaction_seconds: Histogram::new(&[0.1, 1.0]),
            tick_duration_seconds: tick_duration,
        },
    }
}
