//! Every metric, defined once: name, kind, labels, help, where the number comes from, and how it is read out of the
//! snapshot. The page, `docs/metrics.md` and `plimsoll metrics --describe` are all made from [`TABLE`].
//!
//! Labels come from the settings (`worker`, `mountpoint`) or from fixed lists, so the number of series is known beforehand.
//! An unknown number is left out, never written as 0.

use std::fmt::Write;

use crate::snapshot::jobs::JobState;
use crate::snapshot::{Histogram, Snapshot, WorkerState};

/// One metric family.
#[derive(Debug)]
pub struct Metric {
    /// As on the page of the text format; a counter's ends in `_total`, an info's in `_info`.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    /// Where the number comes from, for people.
    pub source: &'static str,
    pub read: Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is always 1; what it says is in its labels.
    Info,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

/// How the samples of a metric are made.
#[derive(Debug)]
pub enum Read {
    /// Known before the first tick; the argument says whether the loop meets its deadline.
    Always(fn(bool, &mut Samples)),
    /// From the last snapshot; left out before the first tick.
    Snapshot(fn(&Snapshot, &mut Samples)),
    /// A histogram of the last snapshot, without labels.
    Histogram(fn(&Snapshot) -> &Histogram),
}

/// The samples of one family: label values in the order of the metric's labels, and the number.
#[derive(Debug, Default)]
pub struct Samples(Vec<(Vec<String>, f64)>);

impl Samples {
    /// Adds one sample. An unknown number, or one that is not finite, adds nothing.
    pub fn add(&mut self, labels: &[&str], value: impl Into<Option<f64>>) {
        if let Some(value) = value.into().filter(|value| value.is_finite()) {
            self.0.push((labels.iter().map(|label| label.to_string()).collect(), value));
        }
    }

    /// For counts and bytes. Above 2^53 the page shows the nearest number a double can hold.
    fn add_whole(&mut self, labels: &[&str], value: impl Into<Option<u64>>) {
        self.add(labels, value.into().map(|value| value as f64));
    }

    fn add_each(&mut self, labels: &[&str], counts: &[(String, u64)]) {
        for (last, count) in counts {
            let mut all = labels.to_vec();
            all.push(last);
            self.add_whole(&all, *count);
        }
    }

    /// Sorted by labels, and only the first of those with equal labels: a page with two of them is refused as a whole.
    pub fn distinct(mut self) -> Vec<(Vec<String>, f64)> {
        self.0.sort_by(|one, other| one.0.cmp(&other.0));
        self.0.dedup_by(|later, earlier| later.0 == earlier.0);
        self.0
    }
}

const COUNTER: Kind = Kind::Counter;
const GAUGE: Kind = Kind::Gauge;

/// A metric without labels.
const fn single(name: &'static str, kind: Kind, help: &'static str, source: &'static str, read: fn(&Snapshot, &mut Samples)) -> Metric {
    Metric { name, kind, labels: &[], help, source, read: Read::Snapshot(read) }
}

/// A metric with labels.
const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    source: &'static str,
    read: fn(&Snapshot, &mut Samples),
) -> Metric {
    Metric { name, kind, labels, help, source, read: Read::Snapshot(read) }
}

/// A metric of each worker, labelled with its name alone.
macro_rules! per_worker {
    ($name:literal, $kind:expr, $help:literal, $source:literal, $value:expr) => {
        family($name, $kind, &["worker"], $help, $source, |snapshot, out| {
            let value: fn(&WorkerState) -> Option<f64> = $value;
            for worker in &snapshot.workers {
                out.add(&[&worker.name], value(worker));
            }
        })
    };
}

/// A metric of each job, labelled with its name alone.
macro_rules! per_job {
    ($name:literal, $kind:expr, $help:literal, $source:literal, $value:expr) => {
        family($name, $kind, &["name"], $help, $source, |snapshot, out| {
            let value: fn(&JobState) -> Option<f64> = $value;
            for job in snapshot.jobs.iter() {
                out.add(&[&job.name], value(job));
            }
        })
    };
}

/// What the last run of a job has measured, under its name there.
macro_rules! per_figure {
    ($name:literal, $figure:literal, $help:literal) => {
        per_job!($name, GAUGE, $help, "the last run of the job", |job| job.figures.get($figure).copied())
    };
}

/// A metric of each judged resource, labelled with its name alone.
macro_rules! per_resource {
    ($name:literal, $kind:expr, $help:literal, $source:literal, $value:expr) => {
        family($name, $kind, &["resource"], $help, $source, |snapshot, out| {
            let value: fn(&crate::snapshot::ResourceState) -> Option<f64> = $value;
            for resource in &snapshot.policy.resources {
                out.add(&[&resource.resource], value(resource));
            }
        })
    };
}

/// A metric of each watched filesystem.
macro_rules! per_disk {
    ($name:literal, $help:literal, $source:literal, $field:ident) => {
        family($name, GAUGE, &["mountpoint"], $help, $source, |snapshot, out| {
            for disk in &snapshot.disks {
                out.add_whole(&[&disk.path], disk.$field);
            }
        })
    };
}

/// A counter of each pressure file.
macro_rules! per_pressure {
    ($name:literal, $help:literal, $source:literal, $field:ident) => {
        family($name, COUNTER, &["resource"], $help, $source, |snapshot, out| {
            for pressure in &snapshot.pressure {
                out.add(&[&pressure.resource], pressure.$field);
            }
        })
    };
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

/// All metrics, by subject.
pub static TABLE: &[Metric] = &[
    Metric {
        name: "plimsoll_build_info",
        kind: Kind::Info,
        labels: &["version"],
        help: "The running program.",
        source: "the build",
        read: Read::Always(|_, out| out.add(&[env!("CARGO_PKG_VERSION")], 1.0)),
    },
    Metric {
        name: "plimsoll_up",
        kind: GAUGE,
        labels: &[],
        help: "1 while the control loop meets its deadline, three times the gap it promised; 0 when the numbers on this page are stale.",
        source: "age of the snapshot",
        read: Read::Always(|alive, out| out.add(&[], flag(alive))),
    },
    family(
        "plimsoll_environment_info",
        Kind::Info,
        &["platform", "cgroup", "enforcement", "limit_source"],
        "What was found at the start: where this runs, which cgroup version, the best throttle that works, where the memory limit comes from.",
        "probes at the start",
        |snapshot, out| {
            let found = &snapshot.environment;
            out.add(&[&found.platform, &found.cgroup, &found.enforcement, &found.limit_source], 1.0);
        },
    ),
    single(
        "plimsoll_config_last_reload_successful",
        GAUGE,
        "1 when the last reading of the configuration was applied, 0 when it was rejected and the one before still holds.",
        "reload",
        |snapshot, out| out.add(&[], flag(snapshot.daemon.config_reload_successful)),
    ),
    single(
        "plimsoll_config_last_reload_success_timestamp_seconds",
        GAUGE,
        "When a configuration was last applied, in seconds since 1970.",
        "reload",
        |snapshot, out| out.add(&[], snapshot.daemon.config_reloaded_at),
    ),
    single(
        "plimsoll_cpu_limit_cores",
        GAUGE,
        "Cores the scope may use: the least of the quotas of all cgroup ancestors, cpuset, affinity and machine.",
        "cpu.max, cpu.cfs_quota_us, cpuset, sched_getaffinity",
        |snapshot, out| out.add(&[], snapshot.cpu.limit_cores),
    ),
    single(
        "plimsoll_cpu_usage_seconds_total",
        COUNTER,
        "CPU time used by the scope.",
        "cpu.stat, cpuacct.usage, /proc/stat",
        |snapshot, out| out.add(&[], snapshot.cpu.usage_seconds_total),
    ),
    single(
        "plimsoll_cpu_throttled_seconds_total",
        COUNTER,
        "Time the platform held the scope back: by CPU quotas on its group and those above, on a host by steal. What Plimsoll takes away is in plimsoll_worker_throttled_seconds_total.",
        "cpu.stat, /proc/stat",
        |snapshot, out| out.add(&[], snapshot.cpu.throttled_seconds_total),
    ),
    single(
        "plimsoll_memory_limit_bytes",
        GAUGE,
        "Memory the scope may use: the least of the limits of all cgroup ancestors and the machine.",
        "memory.max, memory.limit_in_bytes, /proc/meminfo",
        |snapshot, out| out.add_whole(&[], snapshot.memory.limit_bytes),
    ),
    single(
        "plimsoll_memory_working_set_bytes",
        GAUGE,
        "Memory charged to the scope less the inactive file cache, as kubectl top counts it.",
        "memory.current, memory.stat",
        |snapshot, out| out.add_whole(&[], snapshot.memory.working_set_bytes),
    ),
    single(
        "plimsoll_memory_unreclaimable_bytes",
        GAUGE,
        "Memory the kernel cannot take back; this is judged against the line, or the working set while there is evidence of stress.",
        "memory.stat, /proc/meminfo",
        |snapshot, out| out.add_whole(&[], snapshot.memory.unreclaimable_bytes),
    ),
    single("plimsoll_memory_swap_bytes", GAUGE, "Swap used by the scope.", "memory.swap.current, /proc/meminfo", |snapshot, out| {
        out.add_whole(&[], snapshot.memory.swap_bytes)
    }),
    single(
        "plimsoll_memory_refaulted_bytes_total",
        COUNTER,
        "Memory that was reclaimed and wanted back. Of a whole machine only known near its line.",
        "memory.stat, /proc/vmstat",
        |snapshot, out| out.add_whole(&[], snapshot.memory.refaulted_bytes_total),
    ),
    family(
        "plimsoll_memory_events_total",
        COUNTER,
        &["event"],
        "How often the scope met a memory limit (high, max), ran out of memory (oom) or lost a process to it (oom_kill).",
        "memory.events",
        |snapshot, out| out.add_each(&[], &snapshot.memory.events),
    ),
    per_disk!("plimsoll_filesystem_size_bytes", "Size of the filesystem.", "statvfs", size_bytes),
    per_disk!("plimsoll_filesystem_avail_bytes", "Space an unprivileged process can still write.", "statvfs", avail_bytes),
    per_disk!("plimsoll_filesystem_files", "Inodes of the filesystem.", "statvfs", files),
    per_disk!("plimsoll_filesystem_files_free", "Inodes not in use.", "statvfs", files_free),
    per_pressure!(
        "plimsoll_pressure_waiting_seconds_total",
        "Time in which at least one task waited for the resource. Of CPU this holds what Plimsoll's own quotas make wait, and is never judged.",
        "pressure stall information, some",
        waiting_seconds_total
    ),
    per_pressure!(
        "plimsoll_pressure_stalled_seconds_total",
        "Time in which all tasks waited for the resource.",
        "pressure stall information, full",
        stalled_seconds_total
    ),
    per_resource!(
        "plimsoll_policy_utilization_ratio",
        GAUGE,
        "Usage as a share of the limit: the number that is judged.",
        "verdict",
        |resource| resource.utilization
    ),
    family(
        "plimsoll_policy_threshold_ratio",
        GAUGE,
        &["resource", "level"],
        "The lines usage is judged against, as shares of the limit; under low it is over.",
        "settings",
        |snapshot, out| {
            for resource in &snapshot.policy.resources {
                out.add(&[&resource.resource, "high"], resource.high);
                out.add(&[&resource.resource, "low"], resource.low);
                out.add(&[&resource.resource, "critical"], resource.critical);
            }
        },
    ),
    family(
        "plimsoll_policy_state",
        GAUGE,
        &["resource", "state"],
        "1 for the state the resource is in, 0 for the others.",
        "verdict",
        |snapshot, out| {
            for resource in &snapshot.policy.resources {
                for state in ["normal", "high", "critical"] {
                    out.add(&[&resource.resource, state], flag(resource.state == state));
                }
            }
        },
    ),
    per_resource!(
        "plimsoll_policy_exhaustion_seconds",
        GAUGE,
        "How long until the resource is full if it goes on as it does; absent while it is not filling.",
        "forecast",
        |resource| resource.exhaustion_seconds
    ),
    single(
        "plimsoll_policy_throttled",
        GAUGE,
        "1 while any resource is over its line or a throttle is on.",
        "verdicts and throttles",
        |snapshot, out| out.add(&[], flag(snapshot.policy.throttled)),
    ),
    per_resource!(
        "plimsoll_policy_unanswered_seconds",
        GAUGE,
        "How long the resource has been over its line with nothing tried and nothing working; 0 while all is well.",
        "response",
        |resource| Some(resource.unanswered_seconds)
    ),
    single("plimsoll_policy_dry_run", GAUGE, "1 while actions are only reported, not performed.", "settings", |snapshot, out| {
        out.add(&[], flag(snapshot.daemon.dry_run))
    }),
    family(
        "plimsoll_actions_total",
        COUNTER,
        &["resource", "action"],
        "Actions tried, whether or not they could be carried out.",
        "actuators",
        |snapshot, out| {
            for (resource, action, count) in &snapshot.counters.actions_total {
                out.add_whole(&[resource, action], *count);
            }
        },
    ),
    family("plimsoll_action_failures_total", COUNTER, &["resource", "action"], "Actions that failed.", "actuators", |snapshot, out| {
        for (resource, action, count) in &snapshot.counters.action_failures_total {
            out.add_whole(&[resource, action], *count);
        }
    }),
    family(
        "plimsoll_actions_suppressed_total",
        COUNTER,
        &["reason"],
        "Times a resource was over its line and nothing was done, and why.",
        "response",
        |snapshot, out| out.add_each(&[], &snapshot.counters.actions_suppressed_total),
    ),
    Metric {
        name: "plimsoll_reaction_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "From seeing a line crossed to having acted.",
        source: "control loop",
        read: Read::Histogram(|snapshot| &snapshot.counters.reaction_seconds),
    },
    Metric {
        name: "plimsoll_tick_duration_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "One tick: reading, judging, planning, acting and recording.",
        source: "control loop",
        read: Read::Histogram(|snapshot| &snapshot.counters.tick_duration_seconds),
    },
    single("plimsoll_tick_overruns_total", COUNTER, "Ticks that began later than they should have.", "control loop", |snapshot, out| {
        out.add_whole(&[], snapshot.counters.tick_overruns_total)
    }),
    single(
        "plimsoll_self_given_up",
        GAUGE,
        "Optional work the daemon does without because it cost too much itself.",
        "control loop",
        |snapshot, out| out.add_whole(&[], snapshot.daemon.given_up),
    ),
    single(
        "plimsoll_log_dropped_total",
        COUNTER,
        "Lines of the log that were dropped because whoever reads it did not keep up.",
        "log",
        |snapshot, out| out.add_whole(&[], snapshot.daemon.log_dropped_total),
    ),
    family("plimsoll_source_errors_total", COUNTER, &["source"], "Reads of the kernel that failed.", "sampling", |snapshot, out| {
        out.add_each(&[], &snapshot.counters.source_errors_total)
    }),
    family("plimsoll_worker_replicas", GAUGE, &["worker", "state"], "Replicas in each state.", "supervisor", |snapshot, out| {
        for worker in &snapshot.workers {
            for (state, count) in &worker.states {
                out.add_whole(&[&worker.name, state], u64::from(*count));
            }
        }
    }),
    per_worker!("plimsoll_worker_replicas_desired", GAUGE, "Replicas there should be.", "settings", |worker| Some(f64::from(
        worker.desired
    ))),
    per_worker!(
        "plimsoll_worker_cpu_seconds_total",
        COUNTER,
        "CPU time of the worker's whole process tree, over every life of every replica; it never goes down.",
        "cpu.stat, cpuacct.usage, /proc/PID/stat",
        |worker| Some(worker.cpu_seconds_total)
    ),
    per_worker!(
        "plimsoll_worker_memory_bytes",
        GAUGE,
        "Memory of all replicas: the cgroup's where they have one of their own, else private pages plus shared pages counted once.",
        "memory.current, /proc/PID/statm",
        |worker| worker.memory_bytes.map(|bytes| bytes as f64)
    ),
    per_worker!(
        "plimsoll_worker_merged_bytes",
        GAUGE,
        "Memory its replicas do without because others have the same pages; absent unless merge_pages is on.",
        "/proc/PID/ksm_stat",
        |worker| worker
            .replicas
            .iter()
            .filter_map(|replica| replica.merged_bytes)
            .reduce(|sum, bytes| sum + bytes)
            .map(|bytes| bytes as f64)
    ),
    per_worker!("plimsoll_worker_peak_memory_bytes", GAUGE, "The most memory any one replica has had.", "the same, over time", |worker| {
        worker.peak_memory_bytes.map(|bytes| bytes as f64)
    }),
    per_worker!(
        "plimsoll_worker_throttle_ratio",
        GAUGE,
        "How far the worker is held back, the mean over its replicas: 0 free, 1 stopped.",
        "actuators",
        |worker| Some(worker.throttle_ratio)
    ),
    per_worker!(
        "plimsoll_worker_throttled_seconds_total",
        COUNTER,
        "Time Plimsoll has taken away from the worker.",
        "actuators",
        |worker| Some(worker.throttled_seconds_total)
    ),
    per_worker!("plimsoll_worker_starts_total", COUNTER, "Replicas started.", "supervisor", |worker| Some(worker.starts_total as f64)),
    family(
        "plimsoll_worker_exits_total",
        COUNTER,
        &["worker", "reason"],
        "Replicas that ended, and why.",
        "supervisor",
        |snapshot, out| {
            for worker in &snapshot.workers {
                out.add_each(&[&worker.name], &worker.exits_total);
            }
        },
    ),
    family(
        "plimsoll_worker_recycles_total",
        COUNTER,
        &["worker", "cause"],
        "Replicas replaced by a fresh one, and what for.",
        "supervisor",
        |snapshot, out| {
            for worker in &snapshot.workers {
                out.add_each(&[&worker.name], &worker.recycles_total);
            }
        },
    ),
    family(
        "plimsoll_job_runs_total",
        COUNTER,
        &["name", "outcome"],
        "Runs that ended: done, planned (a dry run), held (a brake waits for somebody), stopped (told to, or out of time), failed.",
        "jobs",
        |snapshot, out| {
            for job in snapshot.jobs.iter() {
                out.add_each(&[&job.name], &job.runs_total);
            }
        },
    ),
    family(
        "plimsoll_job_skips_total",
        COUNTER,
        &["name", "reason"],
        "Runs that were due and not begun, and why.",
        "jobs",
        |snapshot, out| {
            for job in snapshot.jobs.iter() {
                out.add_each(&[&job.name], &job.skips_total);
            }
        },
    ),
    per_job!("plimsoll_job_running", GAUGE, "1 while a run of the job goes on.", "jobs", |job| Some(flag(job.running.is_some()))),
    per_job!("plimsoll_job_held", GAUGE, "1 while a brake holds the job's plan until somebody says yes.", "jobs", |job| Some(flag(
        job.brake.is_some()
    ))),
    per_job!("plimsoll_job_last_duration_seconds", GAUGE, "How long the last run took.", "jobs, state database", |job| {
        job.last_run.as_ref().and_then(|run| run.seconds)
    }),
    per_job!(
        "plimsoll_job_last_success_timestamp_seconds",
        GAUGE,
        "When a run last did everything it had planned, in seconds since 1970.",
        "jobs, state database",
        |job| job.last_success
    ),
    per_job!(
        "plimsoll_job_next_run_timestamp_seconds",
        GAUGE,
        "When the job is due next, in seconds since 1970; absent for one that is only run when it is asked for.",
        "schedule",
        |job| job.next_run
    ),
    family("plimsoll_job_deleted_total", COUNTER, &["name", "what"], "What runs of the job have deleted.", "jobs", |snapshot, out| {
        for job in snapshot.jobs.iter() {
            for (what, count) in &job.deleted_total {
                out.add_whole(&[&job.name, what], *count);
            }
        }
    }),
    per_job!(
        "plimsoll_job_reclaimed_bytes_total",
        COUNTER,
        "What the deleted took; of a database the pages that became free.",
        "jobs",
        |job| { Some(job.reclaimed_bytes_total as f64) }
    ),
    per_figure!("plimsoll_sessions", "sessions", "Sessions in the database of the job."),
    per_figure!("plimsoll_backup_size_bytes", "backup_size_bytes", "Size of the newest good copy."),
    per_figure!("plimsoll_database_size_bytes", "database_size_bytes", "Size of the job's database."),
    per_figure!("plimsoll_database_wal_bytes", "database_wal_bytes", "Size of its write-ahead log."),
    per_figure!("plimsoll_database_free_bytes", "database_free_bytes", "Pages in it that are free to be used again."),
    single("process_cpu_seconds_total", COUNTER, "CPU time of the daemon itself.", "/proc/self/stat", |snapshot, out| {
        out.add(&[], snapshot.daemon.cpu_seconds)
    }),
    single("process_resident_memory_bytes", GAUGE, "Resident memory of the daemon itself.", "/proc/self/statm", |snapshot, out| {
        out.add_whole(&[], snapshot.daemon.resident_bytes)
    }),
    single("process_virtual_memory_bytes", GAUGE, "Virtual memory of the daemon itself.", "/proc/self/statm", |snapshot, out| {
        out.add_whole(&[], snapshot.daemon.virtual_bytes)
    }),
    single("process_open_fds", GAUGE, "File descriptors the daemon has open.", "/proc/self/fd", |snapshot, out| {
        out.add_whole(&[], snapshot.daemon.open_fds)
    }),
    single("process_max_fds", GAUGE, "File descriptors the daemon may have open.", "getrlimit", |snapshot, out| {
        out.add_whole(&[], snapshot.daemon.max_fds)
    }),
    single("process_start_time_seconds", GAUGE, "When the daemon started, in seconds since 1970.", "clock", |snapshot, out| {
        out.add(&[], snapshot.daemon.started_at)
    }),
];

/// The entry of a name on the page.
pub fn find(name: &str) -> Option<&'static Metric> {
    TABLE.iter().find(|metric| metric.name == name)
}

/// The unit at the end of a name, `_total` taken off: `seconds`, `bytes`, `ratio`, `cores`; empty for a mere count.
pub fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    ["seconds", "bytes", "ratio", "cores"]
        .into_iter()
        .find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
        .unwrap_or("")
}

/// The table for a terminal: `plimsoll metrics --describe`.
pub fn describe() -> String {
    let mut text = String::new();
    for metric in TABLE {
        let labels = if metric.labels.is_empty() { String::new() } else { format!("{{{}}}", metric.labels.join(",")) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{labels} ({})\n    {}\n    from: {}", metric.name, metric.kind.word(), metric.help, metric.source);
    }
    text
}

/// The text of `docs/metrics.md`.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from `src/metrics/names.rs`; `PLIMSOLL_BLESS=1 cargo test --test metrics_page` writes it anew.\n\n\
         `GET /metrics` answers in the Prometheus text format 0.0.4, or in OpenMetrics 1.0 to a client that prefers it (in OpenMetrics the\n\
         `TYPE` line of a counter has no `_total`, and an `_info` is of type `info`). The page shows the last published snapshot: scraping\n\
         it reads nothing from the kernel. An unknown number is absent, never 0. Labels come from the settings or from fixed lists.\n\n\
         | metric | type | labels | meaning | source |\n|---|---|---|---|---|\n",
    );
    for metric in TABLE {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ =
            writeln!(text, "| `{}` | {} | {} | {} | {} |", metric.name, metric.kind.word(), labels.join(", "), metric.help, metric.source);
    }
    text
}
