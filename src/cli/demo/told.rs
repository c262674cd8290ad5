//! The daemon's events, as far as the demo tells them.

use serde::{Deserialize, Serialize};

use crate::cli::render::{Tone, percent};

/// One answer of `GET /admin/events`.
#[derive(Debug, Deserialize)]
pub struct Feed {
    pub events: Vec<Numbered>,
}

#[derive(Debug, Deserialize)]
pub struct Numbered {
    pub id: u64,
    pub record: Record,
}

#[derive(Debug, Deserialize)]
pub struct Record {
    /// Seconds since 1970.
    pub at: f64,
    #[serde(flatten)]
    pub event: Told,
}

/// The events of the log that show how the line is held; see `journal::Event`.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Told {
    ActionPerformed {
        action_id: u64,
        resource: String,
        action: String,
        workers: Vec<String>,
        outcome: String,
        reason: String,
    },
    ActionEffective {
        action_id: u64,
        before: Option<f64>,
        after_1s: Option<f64>,
    },
    ActionIneffective {
        action_id: u64,
        before: Option<f64>,
        after_1s: Option<f64>,
    },
    ThrottleReleased {
        resource: String,
        held_seconds: f64,
    },
    #[serde(other)]
    Other,
}

/// Something Plimsoll did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deed {
    pub id: u64,
    /// Seconds since the demo began.
    pub at_seconds: f64,
    pub resource: String,
    pub action: String,
    pub workers: Vec<String>,
    pub reason: String,
}

impl Record {
    /// What was done, if this tells of something that was. `begun` is when the demo began, in seconds since 1970.
    pub fn deed(&self, begun: f64) -> Option<Deed> {
        match &self.event {
            Told::ActionPerformed { action_id, resource, action, workers, outcome, reason } if outcome == "done" => Some(Deed {
                id: *action_id,
                at_seconds: self.at - begun,
                resource: resource.clone(),
                action: action.clone(),
                workers: workers.clone(),
                reason: reason.clone(),
            }),
            _ => None,
        }
    }

    /// The line that tells it, if it is worth one. `done` are the deeds before it: an effect is only told of one of them,
    /// not of what was merely planned.
    pub fn line(&self, begun: f64, done: &[Deed]) -> Option<(Tone, String)> {
        let deed = |id: &u64| done.iter().find(|deed| deed.id == *id);
        let (tone, resource, text) = match &self.event {
            // A throttle whose shares change is the same action going on.
            Told::ActionPerformed { action_id, .. } if deed(action_id).is_some() => return None,
            Told::ActionPerformed { resource, action, workers, outcome, reason, .. } if outcome != "dry_run" => {
                let seen = seen(resource, reason);
                match outcome.as_str() {
                    "done" => (Tone::Strong, resource, format!("{action}: {} at {seen}", what(action, &workers.join(", ")))),
                    _ => (Tone::Bad, resource, format!("{action} {outcome}, at {seen}")),
                }
            }
            Told::ActionEffective { action_id, before: Some(before), after_1s: Some(after) } => {
                let Deed { resource, action, at_seconds, .. } = deed(action_id)?;
                let (before, after) = (percent(*before), percent(*after));
                (Tone::Good, resource, format!("{action} at {at_seconds:.1}s helped: from {before} to {after} in a second"))
            }
            Told::ActionIneffective { action_id, before: Some(before), after_1s: Some(after) } => {
                let Deed { resource, action, at_seconds, .. } = deed(action_id)?;
                let (before, after) = (percent(*before), percent(*after));
                (Tone::Warning, resource, format!("{action} at {at_seconds:.1}s was not enough: from {before} to {after} in a second"))
            }
            Told::ThrottleReleased { resource, held_seconds } => (Tone::Good, resource, format!("released after {held_seconds:.1} s")),
            _ => return None,
        };
        Some((tone, format!("{:5.1}s  {resource:<6} {text}", self.at - begun)))
    }
}

/// What an action means for those it is about.
fn what(action: &str, workers: &str) -> String {
    match action {
        "throttle" => format!("{workers} slowed"),
        "shed" => format!("{workers} asked to drop caches"),
        "recycle" => format!("{workers} replaced"),
        "kill" => format!("{workers} killed"),
        _ => workers.to_owned(),
    }
}

/// The figures that led to it: of `cpu 85.0 % (0.43 cores of 0.50 cores), line 80.0 %; …` what fits on a screen.
fn seen(resource: &str, reason: &str) -> String {
    let standing = reason.split(';').next().unwrap_or(reason);
    let shares = match standing.split_once(" (").and_then(|(before, rest)| Some((before, rest.split_once(')')?.1))) {
        Some((before, after)) => format!("{before}{after}"),
        None => standing.to_owned(),
    };
    shares.trim_start_matches(resource).trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Event;

    fn record(event: &Event) -> Record {
        let mut value = serde_json::to_value(event).unwrap();
        value.as_object_mut().unwrap().insert("at".to_owned(), 112.5.into());
        serde_json::from_value(value).unwrap()
    }

    fn performed(outcome: &'static str) -> Record {
        record(&Event::ActionPerformed {
            action_id: 1,
            resource: "cpu".to_owned(),
            action: "throttle",
            workers: vec!["cpu-hog.0".to_owned()],
            outcome,
            detail: String::new(),
            reason: "cpu 198.0 % (0.99 cores of 0.50 cores), line 80.0 %; others use 0.00 cores".to_owned(),
            took_seconds: 0.001,
        })
    }

    #[test]
    fn events_of_the_journal_become_lines() {
        let text = |record: &Record, done: &[Deed]| record.line(100.0, done).map(|(_, text)| text);
        let done = performed("done");
        let expected = " 12.5s  cpu    throttle: cpu-hog.0 slowed at 198.0 %, line 80.0 %";
        assert_eq!(text(&done, &[]).as_deref(), Some(expected));
        assert_eq!(text(&performed("failed"), &[]).as_deref(), Some(" 12.5s  cpu    throttle failed, at 198.0 %, line 80.0 %"));
        let ready = record(&Event::WorkerReady { worker: "leaky".into(), replica: 0, pid: 7, after_seconds: 0.5 });
        assert_eq!(text(&ready, &[]), None);
        assert_eq!(seen("memory", "something else"), "something else", "words that change do no harm");
    }

    #[test]
    fn what_was_only_planned_is_not_told() {
        assert!(performed("dry_run").line(0.0, &[]).is_none());
        assert_eq!((performed("dry_run").deed(0.0), performed("failed").deed(0.0)), (None, None));
        let (before, after_1s) = (Some(0.83), Some(0.6));
        let helped = Event::ActionEffective { action_id: 1, resource: "cpu".into(), action: "throttle", before, after_1s, after_10s: None };
        let helped = record(&helped);
        assert!(helped.line(100.0, &[]).is_none());
        let deed = performed("done").deed(104.5).unwrap();
        assert_eq!(deed.at_seconds, 8.0);
        let text = helped.line(100.0, std::slice::from_ref(&deed)).unwrap().1;
        assert_eq!(text, " 12.5s  cpu    throttle at 8.0s helped: from 83% to 60% in a second");
        assert!(performed("done").line(100.0, &[deed]).is_none(), "a throttle that is adjusted is told once");
    }
}
