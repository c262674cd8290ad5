//! `plimsoll explain`: why something is as it is, and what ends it, as text.

use super::events::local_time;
use super::render::{Style, Tone, UNKNOWN, clip, cores, duration, percent, size, wrap};
use crate::snapshot::WorkerState;
use crate::snapshot::explain::{ActionWhy, Explanation, ResourceExplained, ResourceWhy, Setting, WorkerExplained};

/// The heads of the lines stand in a column of their own.
const HEAD: usize = 11;
/// Settings of a worker that always have a part in how it is treated; the others are told where somebody set them.
const TELLING: [&str; 4] = ["priority", "protected", "restart", "throttle"];

/// The whole answer; `named`: somebody asked for exactly this, so that it is told in full however calm it is.
pub fn render(explanation: &Explanation, named: bool, style: Style) -> String {
    let style = style.page(64, 140);
    let mut page = Page { style, lines: Vec::new() };
    if !named && explanation.all_normal {
        page.lines.push(style.paint(Tone::Good, "all is normal"));
    }
    for resource in &explanation.resources {
        if named || !resource.is_normal() {
            page.resource(resource, explanation.taken_at);
        }
    }
    for worker in &explanation.workers {
        if named || !worker.is_normal() {
            page.worker(worker, explanation.taken_at);
        }
    }
    if !named {
        for resource in explanation.resources.iter().filter(|one| one.is_normal()) {
            page.calm_resource(resource, explanation.taken_at);
        }
        for worker in explanation.workers.iter().filter(|one| one.is_normal()) {
            page.calm_worker(&worker.state);
        }
    }
    page.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

struct Page {
    style: Style,
    lines: Vec<String>,
}

impl Page {
    fn title(&mut self, tone: Tone, text: &str) {
        if !self.lines.is_empty() {
            self.lines.push(String::new());
        }
        self.lines.push(self.style.paint(tone, &clip(text, self.style.width)));
    }

    /// One fact under its head; an empty head goes on with the one before.
    fn fact(&mut self, head: &str, text: &str) {
        let room = self.style.width.saturating_sub(HEAD + 2);
        let mut head = head;
        for line in wrap(text, room, 0) {
            self.lines.push(format!("  {}{line}", self.style.paint(Tone::Quiet, &format!("{head:<HEAD$}"))));
            head = "";
        }
    }

    fn resource(&mut self, resource: &ResourceExplained, now: f64) {
        let state = &resource.state;
        let amount = amount_of(&state.resource);
        let throttled = if state.throttled { ", throttled" } else { "" };
        let since = format!("for {} (since {})", duration((now - state.since).max(0.0)), local_time(state.since));
        self.title(Tone::of_level(&state.state), &format!("{} is {}{throttled} {since}", state.resource, state.state));

        let why = resource.why.clone().unwrap_or_default();
        let share = state.utilization.map_or("share not known".to_owned(), exact);
        let source = if why.limit_source.is_empty() { String::new() } else { format!(" (limit from {})", why.limit_source) };
        let (used, limit) = (state.used.map_or(UNKNOWN.to_owned(), &amount), state.limit.map_or(UNKNOWN.to_owned(), &amount));
        self.fact("reading", &format!("{share}: {used} of {limit}{source}"));
        if !why.measure.is_empty() {
            let full = state.exhaustion_seconds.map_or(String::new(), |left| format!(", full in {}", duration(left)));
            self.fact("measure", &format!("{}{}{full}", why.measure, growing(&why, state.limit, &amount)));
        }
        let line = |name: &str, share: f64| match state.limit {
            Some(limit) => format!("{name} {} ({})", exact(share), amount(share * limit)),
            None => format!("{name} {}", exact(share)),
        };
        let mut lines = vec![line("high", state.high), line("low", state.low)];
        lines.extend(state.critical.map(|critical| line("critical", critical)));
        self.fact("lines", &lines.join(", "));
        match why.over_since {
            Some(since) if state.state == "normal" => {
                let over = duration((now - since).max(0.0));
                self.fact("over", &format!("for {over} of the {} it must last", duration(why.sustain_s)));
            }
            Some(since) => self.fact("over", &format!("for {} without a break", duration((now - since).max(0.0)))),
            None if state.state != "normal" => self.fact("over", "not at this moment: it ends when it has been under low long enough"),
            None => {}
        }
        if !why.early.is_empty() {
            self.fact("early", &why.early);
        }
        self.settings("rule", why.settings.iter());
        let mut head = "ladder";
        for rung in &why.ladder {
            let state = rung.state.replace('_', " ");
            self.fact(head, &format!("{}: {} {state}: {}", rung.level, rung.rung, rung.detail));
            head = "";
        }
        head = "ranking";
        for candidate in &why.candidates {
            let place = candidate.place.map_or("–".to_owned(), |place| format!("{place}."));
            self.fact(head, &format!("{place} {}: {}", candidate.worker, candidate.why));
            head = "";
        }
        if why.more_candidates > 0 {
            self.fact("", &format!("and {} more", why.more_candidates));
        }
        head = "done";
        for action in &why.actions {
            self.fact(head, &action_in_words(action, now));
            head = "";
        }
        if let Some(reason) = &state.unanswered_reason {
            self.fact("unanswered", &format!("for {}: {reason}", duration(state.unanswered_seconds)));
        }
        if !why.next.is_empty() {
            self.fact("next", &why.next);
        }
        if !why.ends.is_empty() {
            self.fact("ends when", &why.ends);
        }
    }

    fn settings<'a>(&mut self, head: &str, settings: impl Iterator<Item = &'a Setting>) {
        let mut head = head;
        for setting in settings {
            self.fact(head, &format!("{} = {} ({})", setting.key, setting.value, setting.origin));
            head = "";
        }
    }

    fn worker(&mut self, worker: &WorkerExplained, now: f64) {
        let state = &worker.state;
        let running = state.replicas.iter().filter(|one| matches!(&*one.state, "running" | "throttled")).count();
        let tone = if worker.is_normal() { Tone::Good } else { Tone::Warning };
        self.title(tone, &format!("{}: {running} of {} running", state.name, state.desired));
        let why = worker.why.clone().unwrap_or_default();
        let mut head = "replicas";
        for replica in &state.replicas {
            let mut told = format!("{}.{} {}", state.name, replica.index, replica.state);
            if let Some(pid) = replica.pid {
                told.push_str(&format!(", pid {pid}"));
            }
            if let Some(started) = replica.started_at {
                told.push_str(&format!(", up {}", duration((now - started).max(0.0))));
            }
            if let Some(used) = replica.used_cores {
                told.push_str(&format!(", {}", cores(used)));
            }
            if let Some(memory) = replica.memory_bytes {
                told.push_str(&format!(", {}", size(memory as f64)));
            }
            if let Some(wait) = replica.next_start_in {
                told.push_str(&format!(", next start in {}", duration(wait)));
            }
            if replica.restarts > 0 {
                told.push_str(&format!(", restarted {}", times(u64::from(replica.restarts))));
            }
            if let Some(what) = &replica.waits_for {
                told.push_str(&format!(", waits for: {what}"));
            }
            self.fact(head, &told);
            head = "";
            if replica.state == "failed" {
                self.fact("", "given up after too many ends: a reload that changes how it is started tries again");
            }
        }
        if state.replicas.is_empty() {
            self.fact(head, "none is wanted");
        }
        head = "held";
        for hold in &why.holds {
            let method = state.replicas.iter().find(|one| one.index == hold.replica).and_then(|one| one.throttle_method.clone());
            let by = method.map_or(String::new(), |method| format!(" by {method}"));
            let to = match (hold.cores, hold.memory_bytes) {
                (Some(most), _) => format!("to {}{by}", cores(most)),
                (None, Some(line)) => format!("at {} of memory, beyond which the kernel slows it", size(line as f64)),
                (None, None) => String::new(),
            };
            let end = format!("`plimsoll explain {}` says what ends it", hold.resource);
            let told = format!("{}.{} {to} for {}; {end}", state.name, hold.replica, hold.resource);
            self.fact(head, &told);
            head = "";
        }
        let prefix = format!("workers.{}.", state.name);
        let telling = |one: &&Setting| {
            let is_set = one.origin != "built-in" && !one.origin.starts_with("follows ");
            is_set || one.key.strip_prefix(&prefix).is_some_and(|rest| TELLING.contains(&rest))
        };
        self.settings("settings", why.settings.iter().filter(telling));
        head = "ended";
        for end in &why.ends {
            let cause = end.cause.as_ref().map_or(String::new(), |cause| format!(", replaced for {cause}"));
            self.fact(head, &format!("{} ago, {}{cause}: {}", duration((now - end.at).max(0.0)), end.reason, end.detail));
            head = "";
        }
        if why.ends.is_empty() {
            self.fact(head, "never, since this daemon runs");
        }
    }

    fn calm_resource(&mut self, resource: &ResourceExplained, now: f64) {
        let state = &resource.state;
        let amount = amount_of(&state.resource);
        let (used, limit) = (state.used.map_or(UNKNOWN.to_owned(), &amount), state.limit.map_or(UNKNOWN.to_owned(), &amount));
        let share = state.utilization.map_or(UNKNOWN.to_owned(), percent);
        let over = match resource.why.as_ref().and_then(|why| Some((why.over_since?, why.sustain_s))) {
            Some((since, sustain)) => format!(", over it for {} of {}", duration((now - since).max(0.0)), duration(sustain)),
            None => String::new(),
        };
        let told = format!("{} is normal: {share}, {used} of {limit}, line at {}{over}", state.resource, percent(state.high));
        self.lines.push(clip(&told, self.style.width));
    }

    fn calm_worker(&mut self, worker: &WorkerState) {
        let restarts: u64 = worker.replicas.iter().map(|one| u64::from(one.restarts)).sum();
        let restarted = if restarts == 0 { String::new() } else { format!(", restarted {}", times(restarts)) };
        let memory = worker.memory_bytes.map_or(UNKNOWN.to_owned(), |bytes| size(bytes as f64));
        let told = format!("{} runs free: {} of {} replicas, {memory}{restarted}", worker.name, worker.replicas.len(), worker.desired);
        self.lines.push(clip(&told, self.style.width));
    }
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn exact(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn amount_of(resource: &str) -> impl Fn(f64) -> String {
    let is_cpu = resource == "cpu";
    move |amount| if is_cpu { format!("{amount:.2} cores") } else { size(amount) }
}

/// How fast it fills, where that is worth a word: a thousandth of the limit a second.
fn growing(why: &ResourceWhy, limit: Option<f64>, amount: impl Fn(f64) -> String) -> String {
    let is_slow = limit.is_none_or(|limit| why.growth.abs() < limit * 0.001);
    match why.growth {
        _ if is_slow || why.resource == "cpu" => String::new(),
        growth if growth > 0.0 => format!(", growing {}/s", amount(growth)),
        growth => format!(", falling {}/s", amount(-growth)),
    }
}

fn action_in_words(action: &ActionWhy, now: f64) -> String {
    let number = if action.id == 0 { String::new() } else { format!("#{} ", action.id) };
    let whom = if action.workers.is_empty() { String::new() } else { format!(" {}", action.workers.join(", ")) };
    let detail = if action.detail.is_empty() { String::new() } else { format!(" ({})", action.detail) };
    let share = |share: Option<f64>| share.map_or(UNKNOWN.to_owned(), exact);
    let effect = match (action.effective, action.before) {
        (Some(helped), _) => {
            let verdict = if helped { "it helped" } else { "it did not help" };
            let later = action.after_10s.map_or(String::new(), |after| format!(", {} after ten", exact(after)));
            format!("; {verdict}: {} before, {} after a second{later}", share(action.before), share(action.after_1s))
        }
        (None, Some(before)) => format!("; being measured: {} before, {} after a second", exact(before), share(action.after_1s)),
        (None, None) => String::new(),
    };
    let ago = duration((now - action.at).max(0.0));
    format!("{ago} ago {number}{}{whom}: {}{detail}{effect}; because {}", action.action, action.outcome, action.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ResourceState;
    use crate::snapshot::explain::{CandidateWhy, RungWhy};

    #[test]
    fn an_explanation_says_it_all() {
        let setting = Setting { key: "policy.memory.high".into(), value: "\"80%\"".into(), origin: "plimsoll.toml:12:1".into() };
        let resource = ResourceExplained {
            state: ResourceState {
                resource: "memory".into(),
                state: "high".into(),
                since: 90.0,
                used: Some(450.0 * 1048576.0),
                limit: Some(512.0 * 1048576.0),
                utilization: Some(450.0 / 512.0),
                high: 0.8,
                low: 0.7,
                critical: Some(0.92),
                ..ResourceState::default()
            },
            why: Some(ResourceWhy {
                resource: "memory".into(),
                measure: "what the kernel cannot take back".into(),
                limit_source: "cgroup".into(),
                growth: 1048576.0 * 2.0,
                over_since: Some(86.0),
                sustain_s: 4.0,
                early:
                    "over the line for less than 4 s of sustain, full in 3.0 s if it goes on: not waited for; nobody is ended on a forecast"
                        .into(),
                settings: vec![setting].into(),
                ladder: vec![RungWhy {
                    level: "high".into(),
                    rung: "shed".into(),
                    state: "on_trial".into(),
                    detail: "since action 1".into(),
                }],
                candidates: vec![CandidateWhy { worker: "web.0".into(), place: Some(1), why: "priority 0, 300 MB".into() }],
                more_candidates: 2,
                actions: vec![ActionWhy {
                    id: 1,
                    at: 95.0,
                    action: "shed".into(),
                    workers: vec!["web.0".into()],
                    outcome: "done".into(),
                    reason: "over the line".into(),
                    before: Some(0.88),
                    after_1s: Some(0.85),
                    ..ActionWhy::default()
                }],
                next: "throttle".into(),
                ends: "usage under 70.0 %".into(),
            }),
        };
        let text =
            render(&Explanation { taken_at: 100.0, all_normal: false, resources: vec![resource], workers: vec![] }, true, Style::PLAIN);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "memory is high for 10s (since 1970-01-01 ",
            "87.9%: 450 MiB of 512 MiB (limit from cgroup)",
            "growing 2.00 MiB/s",
            "high 80.0% (410 MiB), low 70.0% (358 MiB), critical 92.0% (471 MiB)",
            "for 14s without a break",
            "policy.memory.high = \"80%\" (plimsoll.toml:12:1)",
            "high: shed on trial: since action 1",
            "1. web.0: priority 0, 300 MB",
            "and 2 more",
            "done 5.0s ago #1 shed web.0: done; being measured: 88.0% before, 85.0% after a second; because over the line",
            "next throttle",
            "ends when usage under 70.0 %",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn nothing_to_tell_is_told_too() {
        let text = render(&Explanation { all_normal: true, ..Explanation::default() }, false, Style::PLAIN);
        assert_eq!(text, "all is normal\n");
    }
}
