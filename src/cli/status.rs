//! `plimsoll status`: the snapshot on one screen.

use super::render::{Style, Tone, UNKNOWN, bar, cell, clip, cores, duration, percent, size, wrap};
use crate::host::clock::Moment;
use crate::snapshot::{ReplicaState, ResourceState, Snapshot, WorkerState};

/// The whole screen, each line ending with a line break and none wider than the style allows.
pub fn render_status(snapshot: &Snapshot, now: Moment, style: Style) -> String {
    let style = style.page(64, 100);
    let mut lines = head(snapshot, now, style);
    lines.push(String::new());
    let names = snapshot.policy.resources.iter().map(|resource| resource.resource.chars().count());
    let name_width = names.max().unwrap_or(0).clamp(8, 20);
    for resource in &snapshot.policy.resources {
        lines.extend(resource_lines(resource, name_width, style));
    }
    if snapshot.policy.resources.is_empty() {
        lines.push(style.paint(Tone::Quiet, "nothing has been judged yet"));
    }
    lines.push(String::new());
    lines.extend(worker_lines(&snapshot.workers, style));
    if !snapshot.jobs.is_empty() {
        lines.push(String::new());
        lines.extend(super::jobs::lines(&snapshot.jobs, now, style));
    }
    let limitations = &snapshot.environment.limitations;
    if !limitations.is_empty() {
        lines.push(String::new());
        let notes = limitations.iter().flat_map(|limitation| wrap(&format!("note: {limitation}"), style.width, HANGING));
        lines.extend(notes.map(|line| style.paint(Tone::Quiet, &line)));
    }
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

/// What comes before the second line of a note, and those after it.
const HANGING: usize = 6;

/// Who, where, how current, and what is wrong with the daemon itself.
fn head(snapshot: &Snapshot, now: Moment, style: Style) -> Vec<String> {
    let daemon = &snapshot.daemon;
    let found = &snapshot.environment;
    let up = duration((now.unix_seconds() - daemon.started_at).max(0.0));
    let title = clip(&format!("plimsoll {} (pid {}), up {up}", daemon.version, daemon.pid), style.width);
    let mut lines = vec![style.paint(Tone::Strong, &title)];
    let cpu = snapshot.cpu.limit_cores.map_or(UNKNOWN.to_owned(), |limit| from(&cores(limit), &snapshot.cpu.limit_source));
    let memory = snapshot.memory.limit_bytes.map_or(UNKNOWN.to_owned(), |limit| from(&size(limit as f64), &snapshot.memory.limit_source));
    lines.push(clip(
        &format!("scope    {} on {}, cgroup {}, throttles by {}", found.scope, found.platform, found.cgroup, found.enforcement),
        style.width,
    ));
    lines.push(clip(&format!("limits   CPU {cpu}, memory {memory}"), style.width));
    let mut say = |tone, text: &str| lines.push(style.paint(tone, &clip(text, style.width)));
    match snapshot.age(now) {
        None => say(Tone::Warning, "starting: nothing has been read yet"),
        Some(age) if !snapshot.loop_alive(now) => say(Tone::Bad, &format!("stalled: what follows is {} old", duration(age))),
        Some(_) => {}
    }
    if daemon.shutting_down {
        say(Tone::Warning, "shutting down");
    }
    if daemon.dry_run {
        say(Tone::Warning, "dry run: actions are reported, not performed");
    }
    if snapshot.tick > 0 && !daemon.config_reload_successful {
        say(Tone::Bad, "the configuration was rejected; the settings before it still hold (see `plimsoll check`)");
    }
    if let Some(problem) = &daemon.history_problem {
        // The end says why, so it is not cut off.
        let told = wrap(&format!("history is not being kept: {problem}"), style.width, HANGING);
        lines.extend(told.iter().map(|line| style.paint(Tone::Warning, line)));
    }
    lines
}

fn from(limit: &str, source: &str) -> String {
    if source.is_empty() { limit.to_owned() } else { format!("{limit} ({source})") }
}

/// What will be full within so many seconds is shown in colour.
const FULL_SOON: f64 = 600.0;

/// Columns beside a resource's bar, which has what is left.
const LEVEL: usize = 8;
const SHARE: usize = 5;
const FIGURES: usize = 24;

/// The bar and figures of one resource, and below it what was done or why nothing is.
fn resource_lines(resource: &ResourceState, name_width: usize, style: Style) -> Vec<String> {
    let amount = |value: Option<f64>| match value {
        None => UNKNOWN.to_owned(),
        Some(value) if resource.resource == "cpu" => format!("{value:.2}"),
        Some(value) => size(value),
    };
    let share = resource.utilization.map_or(UNKNOWN.to_owned(), percent);
    let unit = if resource.resource == "cpu" { " cores" } else { "" };
    let figures = format!("{} of {}{unit}", amount(resource.used), amount(resource.limit));
    // Five columns have four spaces between them.
    let bar_width = style.width.saturating_sub(name_width + LEVEL + SHARE + FIGURES + 4);
    let tone = Tone::of_level(&resource.state);
    let mut lines = vec![format!(
        "{} {} {} {:>SHARE$} {}",
        cell(&resource.resource, name_width),
        style.paint(tone, &cell(&resource.state, LEVEL)),
        style.paint(tone, &bar(resource.utilization, &[resource.high], bar_width)),
        clip(&share, SHARE),
        clip(&figures, FIGURES),
    )];
    let indent = " ".repeat(name_width + 1);
    let mut below = |tone, text: String| {
        lines.push(format!("{indent}{}", style.paint(tone, &clip(&text, style.width - indent.len()))));
    };
    if resource.state != "normal" || resource.throttled {
        let throttled = if resource.throttled { ", throttled" } else { "" };
        below(Tone::Quiet, format!("line at {}, recovers below {}{throttled}", percent(resource.high), percent(resource.low)));
    } else if resource.utilization.is_some_and(|share| share > resource.high) {
        below(Tone::Quiet, format!("over the line at {}, not yet for as long as its `sustain` says", percent(resource.high)));
    }
    if let Some(evidence) = &resource.evidence {
        below(Tone::Warning, format!("judged by the working set: {evidence}"));
    }
    if let Some(left) = resource.exhaustion_seconds {
        let tone = if left < FULL_SOON { Tone::Warning } else { Tone::Quiet };
        below(tone, format!("full in {} at this rate", duration(left)));
    }
    if let Some(action) = &resource.last_action {
        below(Tone::Quiet, format!("last action: {action}"));
    }
    if let Some(effect) = &resource.last_effect {
        below(Tone::Quiet, format!("last effect: {effect}"));
    }
    if let Some(reason) = &resource.unanswered_reason {
        below(Tone::Bad, format!("unanswered for {}: {reason}", duration(resource.unanswered_seconds)));
    }
    lines
}

/// The workers alone, as `plimsoll workers list` shows them.
pub fn render_workers(workers: &[WorkerState], style: Style) -> String {
    let style = style.page(64, 100);
    worker_lines(workers, style).join("\n")
}

/// One line per replica, and one below it for what it waits for.
fn worker_lines(workers: &[WorkerState], style: Style) -> Vec<String> {
    if workers.is_empty() {
        return vec![style.paint(Tone::Quiet, "no workers")];
    }
    // The fixed columns below take 62, the spaces between them 6.
    let name_width = style.width.saturating_sub(68).clamp(8, 24);
    let heading = format!(
        "{} {:<10} {:>8} {:>10} {:>10} {:<16} {:>8}",
        cell("WORKER", name_width),
        "STATE",
        "PID",
        "CPU",
        "MEMORY",
        "HELD TO",
        "RESTARTS"
    );
    let mut lines = vec![style.paint(Tone::Strong, clip(&heading, style.width).trim_end())];
    for worker in workers {
        let several = worker.replicas.len() > 1 || worker.desired > 1;
        for replica in &worker.replicas {
            let name = if several { format!("{}.{}", worker.name, replica.index) } else { worker.name.to_string() };
            lines.push(clip(replica_line(&cell(&name, name_width), replica).trim_end(), style.width));
            if let Some(what) = &replica.waits_for {
                // Often the one thing that is looked for: whole, on as many lines as it takes.
                let indent = " ".repeat(name_width + 1);
                let room = style.width.saturating_sub(indent.len()).max(24);
                let told = wrap(&format!("waits for: {what}"), room, HANGING);
                lines.extend(told.iter().map(|line| style.paint(Tone::Quiet, &format!("{indent}{line}"))));
            }
        }
        if worker.replicas.is_empty() {
            let told = format!("{} no replica of {} wanted", cell(&worker.name, name_width), worker.desired);
            lines.push(clip(&told, style.width));
        }
    }
    lines
}

fn replica_line(name: &str, replica: &ReplicaState) -> String {
    let number = |value: Option<String>| value.unwrap_or_else(|| UNKNOWN.to_owned());
    let held = match (replica.next_start_in, replica.cores_allowed) {
        (Some(wait), _) => format!("starts in {}", duration(wait)),
        (None, Some(allowed)) => match &replica.throttle_method {
            // The column is narrow: what is in brackets is for those who ask for JSON.
            Some(method) => format!("{allowed:.2} by {}", method.split(' ').next().unwrap_or(method)),
            None => format!("{allowed:.2}"),
        },
        (None, None) => "free".to_owned(),
    };
    format!(
        "{name} {} {:>8} {:>10} {:>10} {} {:>8}",
        cell(&replica.state, 10),
        number(replica.pid.map(|pid| pid.to_string())),
        number(replica.used_cores.map(|used| format!("{used:.2}"))),
        number(replica.memory_bytes.map(|bytes| size(bytes as f64))),
        cell(&held, 16),
        replica.restarts,
    )
}
