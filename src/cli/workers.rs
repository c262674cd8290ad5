//! `workers`: what people ask of them, as requests to the daemon; and how their lives have ended, as a table.

use std::time::Duration;

use serde_json::Value;

use super::arguments::{Patience, Workers, WorkersCommand};
use super::client::ClientError;
use super::render::{Style, Tone, cell, clip, duration, size};
use super::{FAILED, Session, complain, escaped, events, pretty, print_line, status};
use crate::config::units::Span;
use crate::journal::history::Wanted;
use crate::snapshot::Snapshot;

/// Longer than the daemon itself ever waits.
const LONGEST: Duration = Duration::from_secs(3700);
/// For the answer to come back.
const MARGIN: Duration = Duration::from_secs(15);

impl Session {
    pub(super) fn workers(&self, command: WorkersCommand) -> u8 {
        match command {
            WorkersCommand::List => self.list_workers(),
            WorkersCommand::Start(Workers { workers, patience }) => self.ask_workers(&workers, "start", &[], &patience),
            WorkersCommand::Stop(Workers { workers, patience }) => self.ask_workers(&workers, "stop", &[], &patience),
            WorkersCommand::Restart(Workers { workers, patience }) => self.ask_workers(&workers, "restart", &[], &patience),
            WorkersCommand::Recycle(Workers { workers, patience }) => self.ask_workers(&workers, "recycle", &[], &patience),
            WorkersCommand::Scale { worker, count, patience } => {
                self.ask_workers(&[worker], "scale", &[("replicas", count.to_string())], &patience)
            }
            WorkersCommand::Signal { worker, signal } => {
                self.ask_workers(&[worker], "signal", &[("signal", signal.to_string())], &Patience { wait: None })
            }
            WorkersCommand::Shed { workers } => self.ask_workers(&workers, "shed", &[], &Patience { wait: None }),
            WorkersCommand::History { worker, limit } => self.history_of_workers(worker.as_deref(), limit),
        }
    }

    fn list_workers(&self) -> u8 {
        let json = self.common.json();
        let result = self.client().and_then(|client| {
            if json {
                client.get_json("/admin/workers").map(|value: Value| pretty(&value))
            } else {
                let snapshot: Snapshot = client.get_json("/admin/resources/stats")?;
                Ok(status::render_workers(&snapshot.workers, self.stdout_style()))
            }
        });
        self.answer(result)
    }

    /// Asks one after the other; what comes to nothing does not keep the rest from being asked.
    fn ask_workers(&self, workers: &[String], verb: &str, given: &[(&str, String)], patience: &Patience) -> u8 {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return self.answer(Err(error)),
        };
        let mut code = 0;
        for worker in workers {
            let within = patience.wait.map_or(LONGEST, |wait| wait.saturating_add(MARGIN));
            match client.post_within(&path_of(worker, verb, given, patience.wait), within) {
                Ok(told) => {
                    let is_done = told["done"].as_bool().unwrap_or(true);
                    let words = told["message"].as_str().unwrap_or("done");
                    let printed = if self.common.json() {
                        print_line(&pretty(&told))
                    } else if is_done {
                        print_line(words)
                    } else {
                        complain(words);
                        0
                    };
                    // Whoever did not want to wait is not told that he should have.
                    let is_late = !is_done && patience.wait != Some(Duration::ZERO);
                    code = code.max(printed).max(if is_late { FAILED } else { 0 });
                }
                Err(error @ ClientError::Refused { .. }) => {
                    complain(&error.to_string());
                    code = code.max(FAILED);
                }
                Err(error) => return self.answer(Err(error)),
            }
        }
        code
    }

    fn history_of_workers(&self, worker: Option<&str>, limit: usize) -> u8 {
        let wanted = Wanted { since: None, names: vec!["worker_exited".to_owned()], limit: None };
        let asked = events::Asked { follow: false, json: self.common.json(), style: self.stdout_style(), wanted };
        // What the daemon holds is in its database too, and more; where it keeps none there is still what it holds.
        let held = self.client().and_then(|client| events::held(&client));
        let held = match held {
            Ok(held) => Some(held),
            Err(ClientError::Unreachable { .. }) => None,
            Err(error) => return self.answer(Err(error)),
        };
        match events::past(&asked, held.as_deref(), |wanted| self.database(wanted)) {
            Ok(past) => {
                let mut lives: Vec<Value> = past.unwrap_or_default();
                lives.retain(|life| worker.is_none_or(|worker| is_of(life, worker)));
                lives.drain(..lives.len().saturating_sub(limit));
                if self.common.json() {
                    return print_line(&pretty(&Value::Array(lives)));
                }
                print_line(&render_history(&lives, worker, self.stdout_style()))
            }
            Err(problem) => {
                complain(&problem);
                FAILED
            }
        }
    }
}

/// `web.1` is replica 1 of `web`.
fn path_of(worker: &str, verb: &str, given: &[(&str, String)], wait: Option<Duration>) -> String {
    let (name, replica) = match worker.rsplit_once('.') {
        Some((name, replica)) => (name, Some(replica)),
        None => (worker, None),
    };
    let wait = wait.map(|wait| ("wait", Span::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)).to_string()));
    let replica = replica.map(|replica| ("replica", replica.to_owned()));
    let query: Vec<String> = given
        .iter()
        .cloned()
        .chain(replica)
        .chain(wait)
        .map(|(key, value)| format!("{key}={}", escaped(&value).replace('/', "%2F")))
        .collect();
    let name = escaped(name).replace('/', "%2F");
    if query.is_empty() { format!("/admin/workers/{name}/{verb}") } else { format!("/admin/workers/{name}/{verb}?{}", query.join("&")) }
}

fn is_of(life: &Value, worker: &str) -> bool {
    let (name, replica) = worker.rsplit_once('.').map_or((worker, None), |(name, replica)| (name, replica.parse::<u64>().ok()));
    life["worker"] == *name && replica.is_none_or(|replica| life["replica"] == replica)
}

/// One line for each life that has ended.
fn render_history(lives: &[Value], of: Option<&str>, style: Style) -> String {
    if lives.is_empty() {
        return style.paint(Tone::Quiet, &format!("no life of {} has ended yet", of.unwrap_or("a worker")));
    }
    let row = |cells: [String; 8]| {
        let [when, name, pid, how, cause, lived, peak, cpu] = cells;
        let line = format!(
            "{} {} {pid:>8} {} {} {lived:>9} {peak:>10} {cpu:>10}",
            cell(&when, 19),
            cell(&name, 16),
            cell(&how, 10),
            cell(&cause, 9)
        );
        clip(line.trim_end(), style.width)
    };
    let heading = ["ENDED", "WORKER", "PID", "BY", "CAUSE", "LIVED", "PEAK", "CPU"].map(str::to_owned);
    let mut lines = vec![style.paint(Tone::Strong, &row(heading))];
    lines.extend(lives.iter().map(|life| {
        let number = |key: &str| life[key].as_f64();
        let how = match (life["exit_code"].as_i64(), life["signal"].as_str()) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(signal)) => signal.to_owned(),
            (None, None) => "unknown".to_owned(),
        };
        row([
            number("at").map(events::local_time).map(|time| time.chars().take(19).collect()).unwrap_or_default(),
            format!("{}.{}", life["worker"].as_str().unwrap_or("?"), life["replica"]),
            life["pid"].to_string(),
            how,
            life["reason"].as_str().unwrap_or("?").to_owned(),
            number("lifetime_seconds").map(duration).unwrap_or_default(),
            number("peak_memory_bytes").map(size).unwrap_or_default(),
            number("cpu_seconds").map(|cpu| format!("{cpu:.2} s")).unwrap_or_default(),
        ])
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_replica_is_named_by_its_number() {
        assert_eq!(path_of("web", "stop", &[], None), "/admin/workers/web/stop");
        assert_eq!(path_of("web.2", "stop", &[], Some(Duration::from_secs(90))), "/admin/workers/web/stop?replica=2&wait=1m30s");
        assert_eq!(path_of("web", "signal", &[("signal", "SIGRTMIN+3".into())], None), "/admin/workers/web/signal?signal=SIGRTMIN%2B3");
        let life = serde_json::json!({"worker": "web", "replica": 1});
        assert!(is_of(&life, "web") && is_of(&life, "web.1") && !is_of(&life, "web.0") && !is_of(&life, "we"));
    }
}
