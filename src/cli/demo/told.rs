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
        resource: String,
        action: String,
        workers: Vec<String>,
        outcome: String,
        reason: String,
    },
    ActionEffective {
        resource: String,
        action: String,
        before: Option<f64>,
        after_1s: Option<f64>,
    },
    ActionIneffective {
        resource: String,
        action: String,
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
    /// Seconds since the demo began.
    pub at_seconds: f64,
    pub resource: String,
    pub action: String,
    pub workers: Vec<String>,
    pub reason: String,
}

impl Record {
    /// What was done, if this tells of something that was.
    pub fn deed(&self, begun: f64) -> Option<Deed> {
        match &self.event {
            Told::ActionPerformed { resource, action, workers, outcome, reason } if outcome == "done" => Some(Deed {
                at_seconds: self.at - begun,
                resource: resource.clone(),
                action: action.clone(),
                workers: workers.clone(),
                reason: reason.clone(),
            }),
            _ => None,
        }
    }

    /// The line that tells it, if it is worth one. `begun` is when the demo began, in seconds since 1970.
    pub fn line(&self, begun: f64) -> Option<(Tone, String)> {
        let (tone, resource, text) = match &self.event {
            Told::ActionPerformed { resource, action, workers, outcome, reason } if outcome != "dry_run" => {
                let whom = if workers.is_empty() { String::new() } else { format!(" {}", workers.join(", ")) };
                // The first part says what was seen; the rest is for `plimsoll events`.
                let why = reason.split(';').next().unwrap_or(reason);
                let (tone, end) = if outcome == "done" { (Tone::Strong, String::new()) } else { (Tone::Bad, format!(" ({outcome})")) };
                (tone, resource, format!("{action}{whom}{end}: {why}"))
            }
            Told::ActionEffective { resource, action, before: Some(before), after_1s: Some(after) } => {
                (Tone::Good, resource, format!("{action} helped: from {} to {} in a second", percent(*before), percent(*after)))
            }
            Told::ActionIneffective { resource, action, before: Some(before), after_1s: Some(after) } => {
                (Tone::Warning, resource, format!("{action} was not enough: {} before, {} a second later", percent(*before), percent(*after)))
            }
            Told::ThrottleReleased { resource, held_seconds } => (Tone::Good, resource, format!("released after {held_seconds:.1} s")),
            _ => return None,
        };
        Some((tone, format!("{:5.1}s  {resource:<6} {text}", self.at - begun)))
    }
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
        let text = |record: &Record| record.line(100.0).map(|(_, text)| text);
        let done = performed("done");
        let expected = " 12.5s  cpu    throttle cpu-hog.0: cpu 198.0 % (0.99 cores of 0.50 cores), line 80.0 %";
        assert_eq!(text(&done).as_deref(), Some(expected));
        assert_eq!(done.deed(100.0).unwrap().at_seconds, 12.5);
        assert_eq!((text(&performed("dry_run")), performed("dry_run").deed(0.0)), (None, None));
        assert!(text(&performed("failed")).unwrap().contains("throttle cpu-hog.0 (failed): cpu 198.0 %"));
        assert_eq!(performed("failed").deed(0.0), None);
        let helped = record(&Event::ActionEffective {
            action_id: 1,
            resource: "memory".to_owned(),
            action: "shed",
            before: Some(0.83),
            after_1s: Some(0.6),
            after_10s: None,
        });
        assert_eq!(text(&helped).as_deref(), Some(" 12.5s  memory shed helped: from 83% to 60% in a second"));
        let ready = record(&Event::WorkerReady { worker: "leaky".into(), replica: 0, pid: 7, after_seconds: 0.5 });
        assert_eq!(text(&ready), None);
    }
}
