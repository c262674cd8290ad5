//! `GET /admin/throttle`: is this a good moment for something heavy, and if not, say when it is.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::problem::Problem;
use super::routes::Shared;
use crate::snapshot::Snapshot;

/// A wait longer than this is cut to it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How often a waiting request looks at the snapshot: one pointer copy.
const STEP: Duration = Duration::from_millis(250);

#[derive(Debug, Deserialize)]
pub struct Asked {
    wait: Option<String>,
}

/// Answers at once, or with `wait` when throttling is over or the time is up.
pub async fn answer(State(shared): State<Shared>, asked: Result<Query<Asked>, QueryRejection>) -> Result<Response, Problem> {
    let wait = match asked.map_err(|error| unreadable(&error.body_text()))?.0.wait {
        Some(text) => parse_wait(&text).ok_or_else(|| unreadable(&format!("wait={text:?} is not a duration such as 300s, 5m or 500ms")))?,
        None => Duration::ZERO,
    };
    let until = Instant::now() + wait.min(LONGEST_WAIT);
    loop {
        let snapshot = shared.published.latest();
        // Before the first tick nothing is known yet; a loop that has stalled may never tell.
        let known = snapshot.loop_alive((shared.clock)());
        let left = until.saturating_duration_since(Instant::now());
        if known && (!snapshot.policy.throttled || left.is_zero()) {
            return Ok(Json(describe(&snapshot)).into_response());
        }
        if !known && (snapshot.tick > 0 || left.is_zero()) {
            return Err(Problem::stalled());
        }
        sleep(left.min(STEP)).await;
    }
}

fn unreadable(message: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_query", message)
}

fn describe(snapshot: &Snapshot) -> Value {
    let policy = &snapshot.policy;
    let resources: Vec<Value> = policy
        .resources
        .iter()
        .filter(|resource| resource.throttled || resource.state != "normal")
        .map(|resource| {
            json!({
                "resource": resource.resource, "state": resource.state, "utilization": resource.utilization,
                "high": resource.high, "low": resource.low, "throttled": resource.throttled,
            })
        })
        .collect();
    let retry_after = if policy.throttled { policy.retry_after_s } else { Some(0.0) };
    json!({ "throttled": policy.throttled, "resources": resources, "retry_after_s": retry_after })
}

/// `300s`, `5m`, `1h`, `500ms`, or plain seconds.
fn parse_wait(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,30}|[0-9]{0,25}(ms|s|m|h|)") {
            parse_wait(&text);
        }
    }

    #[test]
    fn a_wait_is_a_whole_number_with_a_unit() {
        let cases = [
            ("300s", Some(300_000)),
            ("300", Some(300_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("500ms", Some(500)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("5 minutes", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
            ("3\u{b5}s", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_wait(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
