//! Control of workers: `POST /admin/workers/NAME/VERB`, each answered when it is done, or with 202 and what it still waits for.
//!
//! What a verb needs stands in the query or in a JSON body, whichever is easier to write: `replica` (one of them, from 0), `wait`
//! (`30s`; as long as it may take unless set), `replicas` for `scale`, `signal` for `signal`, and for `requests` either
//! `requests` (in the whole life) or `more` (since the last report), with `pid` of any process of the replica.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::control::{Command, Requests, Verb, WorkerCommand};
use super::problem::Problem;
use super::routes::{Shared, Told, ask};
use crate::config::settings::Signal;
use crate::config::units::{SignalName, Span};

/// Everything a verb may be given.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    replica: Option<u32>,
    wait: Option<Span>,
    replicas: Option<u32>,
    signal: Option<SignalName>,
    pid: Option<i32>,
    requests: Option<u64>,
    more: Option<u64>,
}

impl Given {
    /// What stands in `other` and not here.
    fn or(self, other: Given) -> Given {
        Given {
            replica: self.replica.or(other.replica),
            wait: self.wait.or(other.wait),
            replicas: self.replicas.or(other.replicas),
            signal: self.signal.or(other.signal),
            pid: self.pid.or(other.pid),
            requests: self.requests.or(other.requests),
            more: self.more.or(other.more),
        }
    }
}

const VERBS: &str = "start, stop, restart, recycle, scale, signal, shed or requests";

pub async fn command(
    State(shared): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<Given>, QueryRejection>,
    body: Bytes,
) -> Result<Response, Problem> {
    let bad = |message: String| Problem::new(StatusCode::BAD_REQUEST, "bad_request", message);
    let Path((worker, verb)) = path.map_err(|error| bad(error.body_text()))?;
    let Query(given) = query.map_err(|error| Problem::query(&error))?;
    let body: Given = match body.trim_ascii() {
        [] => Given::default(),
        text => serde_json::from_slice(text).map_err(|error| bad(format!("the body is not what it should be: {error}")))?,
    };
    let given = given.or(body);
    let verb = verb_of(&verb, &given)?;
    if given.replica.is_some() && matches!(verb, Verb::Scale(_)) {
        return Err(bad("scale is asked of a whole worker, not of one of its replicas".to_owned()));
    }
    let wait = given.wait.map(|wait| wait.duration());
    let command = WorkerCommand { worker: Arc::from(worker), replica: given.replica, verb, wait };
    // The loop answers when their patience is over; nobody waits for longer than that.
    match ask(&shared, Command::Worker(command), None).await? {
        Told::Data(value) => Ok(Json(value).into_response()),
        Told::Done(message) | Told::Becoming(message) => Ok(Json(json!({ "done": true, "message": message })).into_response()),
        Told::Waits(what) => {
            let message = format!("begun; waits for {what}");
            Ok((StatusCode::ACCEPTED, Json(json!({ "done": false, "waits_for": what, "message": message }))).into_response())
        }
    }
}

fn verb_of(verb: &str, given: &Given) -> Result<Verb, Problem> {
    let needs = |what: &str| Problem::new(StatusCode::BAD_REQUEST, "bad_request", format!("{verb} needs {what}"));
    Ok(match verb {
        "start" => Verb::Start,
        "stop" => Verb::Stop,
        "restart" => Verb::Restart,
        "recycle" => Verb::Recycle,
        "shed" => Verb::Shed,
        "scale" => Verb::Scale(given.replicas.ok_or_else(|| needs("`replicas`, how many there are to be"))?),
        "signal" => Verb::Signal(Signal(given.signal.ok_or_else(|| needs("`signal`, such as SIGHUP"))?.0)),
        "requests" => {
            let requests = match (given.requests, given.more) {
                (Some(all), None) => Requests::InAll(all),
                (None, Some(more)) => Requests::More(more),
                _ => return Err(needs("either `requests`, the number in its whole life, or `more`, the number since the last report")),
            };
            Verb::Requests { pid: given.pid, requests }
        }
        _ => return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", format!("{verb:?} is nothing a worker can be asked: {VERBS}"))),
    })
}
