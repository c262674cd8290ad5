//! Jobs, plans and runs as tables.

use crate::cli::events::local_time;
use crate::cli::render::{Style, Tone, UNKNOWN, cell, clip, duration, size};
use crate::host::clock::Moment;
use crate::jobs::errand::MOST_ITEMS;
use crate::jobs::plan::{Deed, Item, Tally, Totals};
use crate::snapshot::jobs::{JobRun, JobState};

fn tone_of(outcome: &str) -> Tone {
    match outcome {
        "done" | "planned" => Tone::Good,
        "held" | "stopped" => Tone::Warning,
        _ => Tone::Bad,
    }
}

/// One line for each job, and below it what it waits for or what holds it.
pub fn list(jobs: &[JobState], now: Moment, style: Style) -> String {
    if jobs.is_empty() {
        return style.paint(Tone::Quiet, "there are no jobs: nothing is deleted and nothing backed up ([jobs.NAME] in the settings)");
    }
    lines(jobs, now, style).join("\n")
}

/// The same for a page of more.
pub fn lines(jobs: &[JobState], now: Moment, style: Style) -> Vec<String> {
    let row = |cells: [&str; 6]| {
        let [name, kind, state, schedule, next, last] = cells;
        clip(
            format!("{} {} {} {} {next:>12}  {last}", cell(name, 16), cell(kind, 8), cell(state, 8), cell(schedule, 13)).trim_end(),
            style.width,
        )
    };
    let mut lines = vec![style.paint(Tone::Strong, &row(["JOB", "KIND", "STATE", "SCHEDULE", "NEXT", "LAST"]))];
    for job in jobs {
        let next = job.next_run.map_or(UNKNOWN.to_owned(), |at| in_words(at, now));
        let last = job.last_run.as_ref().map_or("never".to_owned(), |run| ago(run, now));
        let state = match &job.running {
            Some(running) if running.of > 0 => format!("{} %", running.done.min(running.of) * 100 / running.of),
            _ => job.state.clone(),
        };
        let line = row([&job.name, &job.kind, &state, job.schedule.as_deref().unwrap_or("never"), &next, &last]);
        let tone = job.last_run.as_ref().and_then(|run| run.outcome.as_deref()).map_or(Tone::Good, tone_of);
        lines.push(if tone == Tone::Good { line } else { style.paint(tone, &line) });
        let mut below = |tone, text: &str| lines.push(style.paint(tone, &clip(&format!("  {text}"), style.width)));
        if let Some(brake) = &job.brake {
            below(Tone::Warning, &format!("held: {brake}; `plimsoll jobs run {} --yes` carries it out", job.name));
        }
        if let Some(what) = &job.waits_for {
            below(Tone::Quiet, &format!("waits for {what}"));
        }
        if let Some(detail) =
            job.last_run.as_ref().filter(|run| run.outcome.as_deref() == Some("failed")).and_then(|run| run.detail.as_ref())
        {
            below(Tone::Bad, detail);
        }
    }
    lines
}

/// What is due, the first first.
pub fn next(jobs: &[JobState], now: Moment, style: Style) -> String {
    let mut due: Vec<(f64, &JobState)> = jobs.iter().filter_map(|job| Some((job.next_run?, job))).collect();
    due.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    if due.is_empty() {
        return style.paint(Tone::Quiet, "no job is due: none has a schedule");
    }
    let line = |(at, job): &(f64, &JobState)| {
        let when: String = local_time(*at).chars().take(19).collect();
        let zone = job.timezone.as_ref().map_or(String::new(), |zone| format!(" {zone}"));
        let schedule = job.schedule.as_deref().unwrap_or_default();
        clip(&format!("{when}  {:>14}  {} {schedule}{zone}", in_words(*at, now), cell(&job.name, 18)), style.width)
    };
    due.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn in_words(at: f64, now: Moment) -> String {
    let left = at - now.unix_seconds();
    if left <= 0.0 { "now".to_owned() } else { format!("in {}", duration(left)) }
}

fn ago(run: &JobRun, now: Moment) -> String {
    let since = run.ended.unwrap_or(run.started);
    format!("{} {} ago", run.outcome.as_deref().unwrap_or("interrupted"), duration((now.unix_seconds() - since).max(0.0)))
}

/// A plan, item by item, and its totals.
pub fn plan(items: &[Item], totals: Option<&Totals>, style: Style) -> String {
    let mut lines: Vec<String> = items
        .iter()
        .map(|item| {
            let deed = match item.deed {
                Deed::Delete => "delete",
                Deed::Make => "make",
            };
            clip(&format!("{deed} {} {:>10}  {}  {}", item.what, size(item.bytes as f64), item.name, item.reason), style.width)
        })
        .collect();
    if items.len() >= MOST_ITEMS {
        lines.push(format!("… the first {MOST_ITEMS} are shown"));
    }
    let Some(totals) = totals else { return lines.join("\n") };
    let told = |(what, tally): (&String, &Tally)| format!("{} {what} ({})", tally.count, size(tally.bytes as f64));
    let mut group = |title: &str, tallies: &std::collections::BTreeMap<String, Tally>| {
        if !tallies.is_empty() {
            let each: Vec<String> = tallies.iter().map(told).collect();
            lines.push(clip(&format!("{title}: {}", each.join(", ")), style.width));
        }
    };
    group("would delete", &totals.deleted);
    group("would make", &totals.made);
    group("would keep", &totals.kept);
    if totals.deleted.is_empty() && totals.made.is_empty() {
        lines.push("nothing to do".to_owned());
    }
    if let Some(brake) = &totals.brake {
        lines.push(style.paint(Tone::Warning, &clip(&format!("would wait for --yes: {brake}"), style.width)));
    }
    lines.join("\n")
}

/// `: deleted 12 file, 1.20 GiB freed, in 3.2s`
pub fn figures(run: &JobRun) -> String {
    let mut parts: Vec<String> = run.deleted.iter().map(|(what, count)| format!("deleted {count} {what}")).collect();
    if run.reclaimed_bytes > 0 {
        parts.push(format!("{} freed", size(run.reclaimed_bytes as f64)));
    }
    if let Some(seconds) = run.seconds {
        parts.push(format!("in {}", duration(seconds)));
    }
    if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
}

/// One line for each run that has ended.
pub fn history(runs: &[JobRun], of: Option<&str>, style: Style) -> String {
    if runs.is_empty() {
        return style.paint(Tone::Quiet, &format!("no run of {} has ended yet", of.unwrap_or("a job")));
    }
    let row = |cells: [&str; 6]| {
        let [when, name, cause, outcome, took, what] = cells;
        clip(
            format!("{} {} {} {} {took:>9}  {what}", cell(when, 19), cell(name, 18), cell(cause, 9), cell(outcome, 11)).trim_end(),
            style.width,
        )
    };
    let mut lines = vec![style.paint(Tone::Strong, &row(["STARTED", "JOB", "CAUSE", "OUTCOME", "TOOK", ""]))];
    for run in runs {
        let when: String = local_time(run.started).chars().take(19).collect();
        let outcome = run.outcome.as_deref().unwrap_or("goes on");
        let mut what: Vec<String> = run.deleted.iter().map(|(what, count)| format!("{count} {what}")).collect();
        what.extend((run.reclaimed_bytes > 0).then(|| size(run.reclaimed_bytes as f64)));
        what.extend(run.dry_run.then(|| "dry run".to_owned()));
        what.extend(run.detail.clone());
        let took = run.seconds.map(duration).unwrap_or_default();
        let line = row([&when, &run.job, &run.cause, outcome, &took, &what.join(", ")]);
        let tone = run.outcome.as_deref().map_or(Tone::Good, tone_of);
        lines.push(if tone == Tone::Good { line } else { style.paint(tone, &line) });
    }
    lines.join("\n")
}
