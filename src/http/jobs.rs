//! Jobs: how they stand, how their runs ended, and `POST /admin/jobs/NAME/run`, answered when the run has ended with what came of it
//! and the plan it made, or with 202 when `wait` is over before (`wait=0s`: at once).

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::control::{Command, JobCommand};
use super::problem::Problem;
use super::routes::{Shared, Told, ask};
use crate::config::units::Span;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    yes: bool,
    wait: Option<Span>,
}

pub async fn list(State(shared): State<Shared>) -> Response {
    Json(json!({ "jobs": shared.published.latest().jobs })).into_response()
}

pub async fn runs(State(shared): State<Shared>, path: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(name) = path.map_err(|error| bad(error.body_text()))?;
    let snapshot = shared.published.latest();
    match snapshot.jobs.iter().find(|job| *job.name == *name) {
        Some(job) => Ok(Json(json!({ "job": job.name, "runs": job.runs })).into_response()),
        None => {
            let names: Vec<&str> = snapshot.jobs.iter().map(|job| &*job.name).collect();
            let message =
                format!("there is no job {name:?}; there are {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") });
            Err(Problem::new(StatusCode::NOT_FOUND, "not_found", message))
        }
    }
}

pub async fn run(
    State(shared): State<Shared>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Problem> {
    let Path(name) = path.map_err(|error| bad(error.body_text()))?;
    let Query(Asked { dry_run, yes, wait }) = query.map_err(|error| Problem::query(&error))?;
    let command = JobCommand { job: Arc::from(name), dry_run, yes, wait: wait.map(Span::duration) };
    // The loop answers when the run ends, as its timeout sees to, or when their patience is over.
    match ask(&shared, Command::Job(command), None).await? {
        Told::Data(value) => Ok(Json(value).into_response()),
        Told::Done(message) | Told::Becoming(message) => Ok(Json(json!({ "done": true, "message": message })).into_response()),
        Told::Waits(what) => {
            let message = format!("begun; waits for {what}");
            Ok((StatusCode::ACCEPTED, Json(json!({ "done": false, "waits_for": what, "message": message }))).into_response())
        }
    }
}

fn bad(message: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
}
