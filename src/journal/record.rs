//! The events of the log (design: "Log events"): one variant each, its fields typed, its name stable.

use serde::Serialize;

/// Defines the enum, its names, and how each event is written to the log, from one list.
macro_rules! events {
    ($( $(#[doc = $doc:literal])? $level:ident $variant:ident $name:literal { $( $field:ident: $type:ty ),* $(,)? } )*) => {
        /// One thing that happened. Serialised with `event` as its tag; field names are the ones in the log.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(tag = "event", rename_all = "snake_case")]
        pub enum Event {
            $( $(#[doc = $doc])? $variant { $( $field: $type ),* }, )*
        }

        impl Event {
            /// Every name, in the order of the definition.
            pub const NAMES: &'static [&'static str] = &[$( $name ),*];

            /// How important the event of this name is, as the log says it; `None` for a name that is not known.
            pub fn level_of(name: &str) -> Option<&'static str> {
                match name {
                    $( $name => Some(stringify!($level)), )*
                    _ => None,
                }
            }

            /// The stable name.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Event::$variant { .. } => $name, )*
                }
            }

            /// Writes one line to the log: every field by its name, the sentence of [`Event::message`] beside them.
            pub fn log(&self) {
                let message = self.message();
                match self {
                    $( Event::$variant { $( $field ),* } => {
                        tracing::event!(target: "plimsoll", tracing::Level::$level, event = $name, $( $field = $field.shown(), )* "{message}");
                    } )*
                }
            }
        }
    };
}

events! {
    #[doc = "What was found and what is guarded."]
    INFO DaemonStarted "daemon_started" {
        version: String,
        pid: u32,
        platform: String,
        cgroup: String,
        enforcement: String,
        pressure: String,
        scope: String,
        cpu_limit_cores: Option<f64>,
        memory_limit_bytes: Option<u64>,
        config_file: Option<String>,
        listening: Vec<String>,
        workers: u32,
    }
    INFO DaemonStopping "daemon_stopping" {
        reason: String,
    }
    #[doc = "One step of the ordered shutdown; a failing one does not stop the next."]
    INFO ShutdownStep "shutdown_step" {
        step: &'static str,
        ok: bool,
        took_seconds: f64,
        detail: String,
    }
    #[doc = "Seeds row B1: CPU, memory used and total, disk used and total."]
    INFO ResourceMetrics "resource_metrics" {
        cpu_percent: Option<f64>,
        cpu_limit_cores: Option<f64>,
        memory_used_bytes: Option<u64>,
        memory_total_bytes: Option<u64>,
        memory_percent: Option<f64>,
        disk_path: Option<String>,
        disk_used_bytes: Option<u64>,
        disk_total_bytes: Option<u64>,
        disk_percent: Option<f64>,
        workers_running: u32,
        throttled: bool,
    }
    #[doc = "A resource crossed a line for as long as the rule asks."]
    INFO VerdictChanged "verdict_changed" {
        resource: String,
        state: &'static str,
        was: &'static str,
        used: Option<f64>,
        limit: Option<f64>,
        utilization: Option<f64>,
        high: f64,
        low: f64,
        measure: Option<&'static str>,
        evidence: Option<String>,
    }
    #[doc = "It fills, and will be full within minutes if it goes on."]
    WARN ExhaustionForetold "exhaustion_foretold" {
        resource: String,
        used: Option<f64>,
        limit: Option<f64>,
        utilization: Option<f64>,
        exhaustion_seconds: f64,
    }
    #[doc = "Seeds row B2, with the figures."]
    WARN ThrottleEngaged "throttle_engaged" {
        resource: String,
        used: Option<f64>,
        limit: Option<f64>,
        utilization: Option<f64>,
        high: f64,
        workers: Vec<String>,
        reason: String,
    }
    #[doc = "Seeds row B2: and again when it is over."]
    INFO ThrottleReleased "throttle_released" {
        resource: String,
        utilization: Option<f64>,
        low: f64,
        held_seconds: f64,
        reason: String,
    }
    WARN ActionPerformed "action_performed" {
        action_id: u64,
        resource: String,
        action: &'static str,
        workers: Vec<String>,
        outcome: &'static str,
        detail: String,
        reason: String,
        took_seconds: f64,
    }
    #[doc = "Measured before, after one second, after ten, as shares of the limit."]
    INFO ActionEffective "action_effective" {
        action_id: u64,
        resource: String,
        action: &'static str,
        before: Option<f64>,
        after_1s: Option<f64>,
        after_10s: Option<f64>,
    }
    #[doc = "As above; the next rung follows."]
    WARN ActionIneffective "action_ineffective" {
        action_id: u64,
        resource: String,
        action: &'static str,
        before: Option<f64>,
        after_1s: Option<f64>,
        after_10s: Option<f64>,
    }
    #[doc = "A line for a worker's memory was taken off because it only held it up."]
    WARN MemoryLineLifted "memory_line_lifted" {
        worker: String,
        line_bytes: Option<u64>,
        set_by: &'static str,
        reason: String,
        detail: String,
    }
    #[doc = "Over the line with nothing (more) to be done, and why."]
    WARN ActionSuppressed "action_suppressed" {
        resource: String,
        reason: &'static str,
        detail: String,
        unanswered_seconds: f64,
    }
    INFO WorkerStarted "worker_started" {
        worker: String,
        replica: u32,
        pid: i32,
        command: String,
    }
    INFO WorkerReady "worker_ready" {
        worker: String,
        replica: u32,
        pid: i32,
        after_seconds: f64,
    }
    #[doc = "Seeds row D4: the peak memory of each worker when it exits."]
    INFO WorkerExited "worker_exited" {
        worker: String,
        replica: u32,
        pid: i32,
        exit_code: Option<i32>,
        signal: Option<&'static str>,
        reason: &'static str,
        peak_memory_bytes: Option<u64>,
        cpu_seconds: f64,
        lifetime_seconds: f64,
        restarts: u32,
        survivors_killed: u32,
    }
    #[doc = "It becomes this program, with the same pid and the same workers."]
    INFO Upgrading "upgrading" {
        program: String,
        cause: &'static str,
    }
    #[doc = "It has become this version; nobody was guarded for so long."]
    INFO Upgraded "upgraded" {
        from: String,
        to: &'static str,
        unguarded_seconds: f64,
        workers: u32,
    }
    WARN UpgradeRefused "upgrade_refused" {
        error: String,
    }
    #[doc = "A child of a pre-fork master was asked to end, or killed; the master puts another in its place."]
    INFO WorkerMemberReplaced "worker_member_replaced" {
        worker: String,
        replica: u32,
        pid: i32,
        cause: &'static str,
        signal: &'static str,
        outcome: &'static str,
        memory_bytes: u64,
        reason: String,
    }
    #[doc = "A worker of an earlier daemon that lives on, or that somebody else has started, is this one's now."]
    INFO WorkerAdopted "worker_adopted" {
        worker: String,
        replica: u32,
        pid: i32,
        detail: String,
    }
    #[doc = "A worker that somebody else starts is not there; `detail` says by what it is looked for, and why it is not found."]
    WARN WorkerLost "worker_lost" {
        worker: String,
        replica: u32,
        detail: String,
    }
    #[doc = "A worker of an earlier daemon that lives on is ended."]
    WARN WorkerLeftBehind "worker_left_behind" {
        worker: String,
        replica: u32,
        pid: i32,
        detail: String,
    }
    #[doc = "It was started and is not what it should be in time: it is ended."]
    WARN WorkerNotReady "worker_not_ready" {
        worker: String,
        replica: u32,
        pid: i32,
        within_seconds: f64,
        detail: String,
    }
    #[doc = "It was ready and does not answer any more: it is ended and started anew."]
    WARN WorkerUnhealthy "worker_unhealthy" {
        worker: String,
        replica: u32,
        pid: i32,
        fails: u32,
        detail: String,
    }
    #[doc = "Its turn to be replaced has come; `detail` says whether the replacement comes first, and why."]
    INFO WorkerRecycling "worker_recycling" {
        worker: String,
        replica: u32,
        pid: i32,
        cause: &'static str,
        detail: String,
    }
    #[doc = "The replacement came to nothing; the old one stays."]
    WARN WorkerRecycleFailed "worker_recycle_failed" {
        worker: String,
        replica: u32,
        pid: i32,
        cause: &'static str,
        error: String,
        next_try_seconds: f64,
    }
    INFO WorkerRecycled "worker_recycled" {
        worker: String,
        replica: u32,
        old_pid: i32,
        cause: &'static str,
        memory_bytes: Option<u64>,
        detail: String,
    }
    #[doc = "A crash loop."]
    ERROR WorkerGaveUp "worker_gave_up" {
        worker: String,
        replica: u32,
        exits: u32,
        within_seconds: f64,
    }
    ERROR WorkerStartFailed "worker_start_failed" {
        worker: String,
        replica: u32,
        error: String,
        next_try_seconds: Option<f64>,
    }
    #[doc = "Seeds row A7: what will be run, and what comes first."]
    INFO SchedulerStarted "scheduler_started" {
        jobs: Vec<String>,
        next_job: Option<String>,
        next_run: Option<f64>,
    }
    INFO JobStarted "job_started" {
        job: String,
        kind: &'static str,
        cause: &'static str,
        dry_run: bool,
        missed: u32,
        due: Option<f64>,
        pid: i32,
    }
    #[doc = "`deleted` in words; `detail` says why it failed, or what holds it."]
    INFO JobFinished "job_finished" {
        job: String,
        kind: &'static str,
        outcome: &'static str,
        dry_run: bool,
        duration_seconds: f64,
        deleted: Vec<String>,
        reclaimed_bytes: u64,
        errors: u32,
        cpu_seconds: Option<f64>,
        peak_memory_bytes: Option<u64>,
        detail: String,
    }
    WARN JobSkipped "job_skipped" {
        job: String,
        reason: &'static str,
        count: u32,
        due: Option<f64>,
        detail: String,
    }
    #[doc = "A run said this of itself and went on."]
    WARN JobWarning "job_warning" {
        job: String,
        detail: String,
    }
    #[doc = "The wall clock was set, forward where positive: what is due was found anew, and after a jump nothing is deleted by age for one run."]
    WARN ClockSet "clock_set" {
        by_seconds: f64,
    }
    #[doc = "Seeds row A2: what is there, before anything is deleted."]
    INFO SessionCleanupAnalysis "session_cleanup_analysis" {
        job: String,
        total_sessions: Option<u64>,
        total_checkpoints: Option<u64>,
        retention_days: Option<f64>,
        cutoff_date: Option<String>,
        fields: Fields,
    }
    #[doc = "A copy was read back and holds what it should."]
    INFO BackupVerified "backup_verified" {
        job: String,
        fields: Fields,
    }
    #[doc = "Anything else a run has to say for the record."]
    INFO JobReport "job_report" {
        job: String,
        name: String,
        fields: Fields,
    }
    #[doc = "The daemon itself cost too much, and does without this."]
    WARN SelfShed "self_shed" {
        work: &'static str,
        reason: String,
    }
    #[doc = "It does this again."]
    INFO SelfRestored "self_restored" {
        work: &'static str,
    }
    INFO ConfigReloaded "config_reloaded" {
        file: Option<String>,
        changed: Vec<String>,
    }
    #[doc = "The old settings go on."]
    ERROR ConfigRejected "config_rejected" {
        file: Option<String>,
        problems: Vec<String>,
    }
    #[doc = "Cores or bytes."]
    INFO LimitChanged "limit_changed" {
        resource: &'static str,
        was: Option<f64>,
        now: Option<f64>,
        source: &'static str,
    }
    #[doc = "Something of an earlier run was put back at the start."]
    WARN UndoSwept "undo_swept" {
        restored: u32,
        gone: u32,
        failed: u32,
        detail: String,
    }
    #[doc = "A part of the daemon does not work; the rest goes on."]
    WARN Degraded "degraded" {
        part: &'static str,
        detail: String,
    }
}

/// What a run said beside what is known beforehand: as JSON in the log, as it is in the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fields(pub serde_json::Map<String, serde_json::Value>);

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&each.join(" "))
    }
}

impl Shown for Fields {
    type As<'a> = tracing::field::DisplayValue<&'a Fields>;
    fn shown(&self) -> Self::As<'_> {
        tracing::field::display(self)
    }
}

/// How a field is handed to the log.
trait Shown {
    type As<'a>: tracing::Value
    where
        Self: 'a;
    fn shown(&self) -> Self::As<'_>;
}

macro_rules! shown_as_itself {
    ($($type:ty),*) => { $(
        impl Shown for $type {
            type As<'a> = $type;
            fn shown(&self) -> $type {
                *self
            }
        }
    )* };
}

shown_as_itself!(u32, i32, u64, f64, bool, &'static str, Option<u64>, Option<i32>, Option<f64>, Option<&'static str>);

impl Shown for String {
    type As<'a> = &'a str;
    fn shown(&self) -> &str {
        self
    }
}

impl Shown for Option<String> {
    type As<'a> = Option<&'a str>;
    fn shown(&self) -> Option<&str> {
        self.as_deref()
    }
}

impl Shown for Vec<String> {
    type As<'a> = tracing::field::DisplayValue<String>;
    fn shown(&self) -> Self::As<'_> {
        tracing::field::display(self.join(", "))
    }
}

impl Event {
    /// One sentence for people; the figures are those of the fields.
    pub fn message(&self) -> String {
        let percent = |share: &Option<f64>| share.map_or("unknown".to_owned(), |share| format!("{:.1} %", share * 100.0));
        match self {
            Event::DaemonStarted { scope, cpu_limit_cores, memory_limit_bytes, enforcement, .. } => format!(
                "guarding {scope}: {} of CPU, {} of memory, throttling by {enforcement}",
                cpu_limit_cores.map_or("an unknown amount".to_owned(), |cores| format!("{cores:.2} cores")),
                memory_limit_bytes.map_or("an unknown amount".to_owned(), mib),
            ),
            Event::DaemonStopping { reason } => format!("stopping: {reason}"),
            Event::ShutdownStep { step, ok, took_seconds, detail } => {
                format!("{step} {} in {took_seconds:.3} s{}", if *ok { "done" } else { "failed" }, tail(detail))
            }
            Event::ResourceMetrics { cpu_percent, memory_used_bytes, memory_total_bytes, disk_used_bytes, disk_total_bytes, .. } => {
                let amount = |used: &Option<u64>, total: &Option<u64>| match (used, total) {
                    (Some(used), Some(total)) => format!("{} of {}", mib(*used), mib(*total)),
                    _ => "unknown".to_owned(),
                };
                format!(
                    "CPU {}, memory {}, disk {}",
                    cpu_percent.map_or("unknown".to_owned(), |percent| format!("{percent:.1} %")),
                    amount(memory_used_bytes, memory_total_bytes),
                    amount(disk_used_bytes, disk_total_bytes)
                )
            }
            Event::VerdictChanged { resource, state, was, utilization, high, evidence, .. } => {
                let evidence = evidence.as_deref().map_or(String::new(), |evidence| format!("; {evidence}"));
                // `high` is the other line.
                let line =
                    if *state == "critical" { "over its critical line".to_owned() } else { format!("line {}", percent(&Some(*high))) };
                format!("{resource} is {state} (was {was}): at {}, {line}{evidence}", percent(utilization))
            }
            Event::ExhaustionForetold { resource, utilization, exhaustion_seconds, .. } => {
                format!("{resource} at {}: full in {exhaustion_seconds:.0} s if it goes on like this", percent(utilization))
            }
            Event::ThrottleEngaged { resource, utilization, high, workers, .. } => {
                format!(
                    "{resource} at {}, over the line of {}: slowing {}",
                    percent(utilization),
                    percent(&Some(*high)),
                    workers.join(", ")
                )
            }
            Event::ThrottleReleased { resource, held_seconds, reason, .. } => {
                format!("{resource}: released after {held_seconds:.1} s: {reason}")
            }
            Event::ActionPerformed { resource, action, workers, outcome, detail, .. } => {
                let whom = if workers.is_empty() { String::new() } else { format!(" {}", workers.join(", ")) };
                format!("{resource}: {action}{whom}: {outcome}{}", tail(detail))
            }
            Event::ActionEffective { resource, action, before, after_1s, after_10s, .. } => {
                let (before, after_1s, after_10s) = (percent(before), percent(after_1s), percent(after_10s));
                format!("{resource}: {action} helped: {before} before, {after_1s} after a second, {after_10s} after ten")
            }
            Event::ActionIneffective { resource, action, before, after_1s, after_10s, .. } => {
                let (before, after_1s, after_10s) = (percent(before), percent(after_1s), percent(after_10s));
                format!("{resource}: {action} did not help: {before} before, {after_1s} after a second, {after_10s} after ten")
            }
            Event::MemoryLineLifted { worker, line_bytes, set_by, reason, detail } => {
                let line = line_bytes.map_or(String::new(), |line| format!(" of {}", mib(line)));
                format!("{worker}: the line{line} for its memory, set by {set_by}, was taken off: {reason}{}", tail(detail))
            }
            Event::ActionSuppressed { resource, detail, unanswered_seconds, .. } => {
                format!("{resource} over its line for {unanswered_seconds:.1} s with nothing more to be done: {detail}")
            }
            Event::WorkerStarted { worker, replica, pid, .. } => format!("{worker}.{replica} started as pid {pid}"),
            Event::WorkerReady { worker, replica, .. } => format!("{worker}.{replica} is ready"),
            Event::WorkerExited { worker, replica, exit_code, signal, peak_memory_bytes, cpu_seconds, lifetime_seconds, .. } => {
                let how = match (exit_code, signal) {
                    (Some(code), _) => format!("with code {code}"),
                    (None, Some(signal)) => format!("by {signal}"),
                    (None, None) => "in an unknown way".to_owned(),
                };
                let peak = peak_memory_bytes.map_or("unknown".to_owned(), mib);
                format!("{worker}.{replica} ended {how} after {lifetime_seconds:.1} s: peak memory {peak}, {cpu_seconds:.2} s of CPU")
            }
            Event::Upgrading { program, cause } => format!("becoming {program} ({cause})"),
            Event::Upgraded { from, to, unguarded_seconds, workers } => {
                format!("became version {to} (was {from}) within {:.1} ms, with {workers} lives", unguarded_seconds * 1000.0)
            }
            Event::UpgradeRefused { error } => format!("could not become another program: {error}"),
            Event::WorkerMemberReplaced { worker, replica, pid, cause, signal, outcome, reason, .. } => {
                format!("{worker}.{replica}: {signal} for its child {pid} ({cause}): {outcome}; {reason}")
            }
            Event::WorkerAdopted { worker, replica, pid, detail } if detail.is_empty() => {
                format!("{worker}.{replica} lives on as pid {pid} and is taken over")
            }
            Event::WorkerAdopted { worker, replica, pid, detail } => {
                format!("{worker}.{replica} lives on as pid {pid} and is taken over; {detail}")
            }
            Event::WorkerLost { worker, replica, detail } => format!("{worker}.{replica} is not there, and is looked for: {detail}"),
            Event::WorkerLeftBehind { worker, replica, pid, detail } => format!("{worker}.{replica} (pid {pid}) is ended: {detail}"),
            Event::WorkerNotReady { worker, replica, within_seconds, detail, .. } if detail.is_empty() => {
                format!("{worker}.{replica} was not ready within {within_seconds} s")
            }
            Event::WorkerNotReady { worker, replica, within_seconds, detail, .. } => {
                format!("{worker}.{replica} was not ready within {within_seconds} s: {detail}")
            }
            Event::WorkerUnhealthy { worker, replica, fails, detail, .. } => {
                format!("{worker}.{replica} does not answer any more, {fails} checks in a row: {detail}")
            }
            Event::WorkerRecycling { worker, replica, cause, detail, .. } => {
                format!("{worker}.{replica} is replaced for {cause}: {detail}")
            }
            Event::WorkerRecycleFailed { worker, replica, cause, error, next_try_seconds, .. } => {
                format!("{worker}.{replica} could not be replaced for {cause} and goes on: {error}; next try in {next_try_seconds:.0} s")
            }
            Event::WorkerRecycled { worker, replica, cause, detail, .. } => format!("{worker}.{replica} replaced for {cause}: {detail}"),
            Event::WorkerGaveUp { worker, replica, exits, within_seconds } => {
                format!("{worker}.{replica} ended {exits} times within {within_seconds:.0} s: not started again")
            }
            Event::WorkerStartFailed { worker, replica, error, next_try_seconds } => match next_try_seconds {
                Some(wait) => format!("{worker}.{replica} could not be started: {error}; next try in {wait:.1} s"),
                None => format!("{worker}.{replica} could not be started: {error}"),
            },
            Event::ConfigReloaded { changed, .. } if changed.is_empty() => "settings read again, nothing changed".to_owned(),
            Event::ConfigReloaded { changed, .. } => format!("settings applied, changed: {}", changed.join(", ")),
            Event::ConfigRejected { problems, .. } => format!("settings refused, the old ones go on: {}", problems.join("; ")),
            Event::LimitChanged { resource, was, now, source } => {
                let shown = |amount: &Option<f64>| match amount {
                    None => "unknown".to_owned(),
                    Some(amount) if *resource == "memory" => mib(*amount as u64),
                    Some(amount) => format!("{amount:.2} cores"),
                };
                format!("the {resource} limit changed from {} to {} ({source})", shown(was), shown(now))
            }
            Event::UndoSwept { restored, gone, failed, detail } => {
                format!("an earlier run left limits behind: {restored} put back, {gone} gone, {failed} failed{}", tail(detail))
            }
            Event::SchedulerStarted { jobs, next_job, .. } => match next_job {
                Some(next) => format!("jobs: {}; {next} comes next", jobs.join(", ")),
                None => format!("jobs: {}; none of them by itself", jobs.join(", ")),
            },
            Event::JobStarted { job, cause, dry_run, .. } => {
                let how = if *dry_run { ", and only reports" } else { "" };
                let why = match *cause {
                    "catch_up" => "was missed and is caught up",
                    "asked" => "was asked for",
                    "disk" => "is to free a disk",
                    _ => "is due",
                };
                format!("{job} {why}: it runs now{how}")
            }
            Event::JobFinished { job, outcome, duration_seconds, deleted, detail, .. } => {
                let what = if deleted.is_empty() { String::new() } else { format!(", deleted {}", deleted.join(", ")) };
                format!("{job} {outcome} after {duration_seconds:.1} s{what}{}", tail(detail))
            }
            Event::JobSkipped { job, reason, detail, .. } => format!("{job} is not run ({reason}){}", tail(detail)),
            Event::JobWarning { job, detail } => format!("{job}: {detail}"),
            Event::ClockSet { by_seconds } => format!("the wall clock was set by {by_seconds:+.0} s; what is due was found anew"),
            Event::SessionCleanupAnalysis { job, total_sessions, .. } => {
                format!("{job}: {} sessions looked at", total_sessions.map_or("an unknown number of".to_owned(), |count| count.to_string()))
            }
            Event::BackupVerified { job, fields } => format!("{job}: the copy was read back and is good{}", tail(&fields.to_string())),
            Event::JobReport { job, name, fields } => format!("{job}: {name}{}", tail(&fields.to_string())),
            Event::SelfShed { work, reason } => format!("the daemon itself does without {work} for now: {reason}"),
            Event::SelfRestored { work } => format!("the daemon is within its budget again and takes up {work}"),
            Event::Degraded { part, detail } => format!("{part} does not work, everything else goes on: {detail}"),
        }
    }
}

fn mib(bytes: impl std::borrow::Borrow<u64>) -> String {
    format!("{:.1} MiB", *bytes.borrow() as f64 / 1_048_576.0)
}

fn tail(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_the_log_is_the_tag_on_the_wire() {
        let event = Event::WorkerReady { worker: "web".into(), replica: 1, pid: 7, after_seconds: 0.5 };
        let wire = serde_json::to_value(&event).unwrap();
        assert_eq!(wire, serde_json::json!({"event": "worker_ready", "worker": "web", "replica": 1, "pid": 7, "after_seconds": 0.5}));
        assert_eq!(event.name(), "worker_ready");
        assert_eq!(
            (Event::level_of("worker_ready"), Event::level_of("worker_gave_up"), Event::level_of("x")),
            (Some("INFO"), Some("ERROR"), None)
        );
    }
}
