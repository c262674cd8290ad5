//! What each route answers. The list of routes is at the top of `server.rs`.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::CurrentAccess;
use super::control::{Answer, Command, CommandQueue};
use super::ending::Ending;
use super::events::{self, EventSource};
use super::problem::Problem;
use super::{accept, dashboard, health, throttle};
use crate::metrics::Scrape;
use crate::metrics::registry::Clock;
use crate::snapshot::Published;
use crate::snapshot::explain::Explanation;

/// The loop may try another program out before it answers: for so long, and a little.
const TRIAL: Duration = Duration::from_secs(12);

/// What every handler may look at.
#[derive(Clone)]
pub struct Shared {
    pub published: Arc<Published>,
    pub scrape: Scrape,
    pub commands: CommandQueue,
    pub access: Arc<CurrentAccess>,
    pub effective: Arc<RwLock<Value>>,
    pub events: Arc<dyn EventSource>,
    pub clock: Clock,
    /// How long a command may take to be answered by the loop.
    pub patience: Duration,
    pub ending: Ending,
}

pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/", get(home))
        .route("/admin/resources/health", get(resources_health))
        .route("/admin/resources/stats", get(resources_stats))
        .route("/admin/resources/cache/invalidate", post(cache_invalidate))
        .route("/admin/throttle", get(throttle::answer))
        .route("/admin/workers", get(workers))
        .route("/admin/workers/{name}/{verb}", post(super::workers::command))
        .route("/admin/jobs", get(super::jobs::list))
        .route("/admin/jobs/{name}/runs", get(super::jobs::runs))
        .route("/admin/jobs/{name}/run", post(super::jobs::run))
        .route("/admin/explain", get(explain))
        .route("/admin/events", get(feed))
        .route("/admin/config", get(config))
        .route("/admin/config/reload", post(reload))
        .route("/admin/release", post(release))
        .route("/admin/upgrade", post(upgrade))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let form = accept::choose(accept);
    let page = shared
        .scrape
        .page(form)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "page_failed", format!("could not write the page: {error}")))?;
    Ok(([(header::CONTENT_TYPE, form.content_type()), (header::VARY, "accept")], page).into_response())
}

async fn healthz(State(shared): State<Shared>) -> Response {
    checked(health::live(&shared.published.latest(), (shared.clock)()))
}

async fn readyz(State(shared): State<Shared>) -> Response {
    checked(health::ready(&shared.published.latest(), (shared.clock)()))
}

async fn resources_health(State(shared): State<Shared>) -> Response {
    checked(health::report(&shared.published.latest(), (shared.clock)()))
}

fn checked((well, body): (bool, Value)) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn home(State(shared): State<Shared>) -> Result<Response, Problem> {
    if shared.access.current().dashboard {
        Ok(dashboard::page())
    } else {
        Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "the dashboard is switched off (http.dashboard = false)"))
    }
}

async fn resources_stats(State(shared): State<Shared>) -> Response {
    Json(&*shared.published.latest()).into_response()
}

async fn workers(State(shared): State<Shared>) -> Response {
    Json(json!({ "workers": shared.published.latest().workers })).into_response()
}

async fn config(State(shared): State<Shared>) -> Response {
    let effective = shared.effective.read().unwrap_or_else(PoisonError::into_inner);
    Json(&*effective).into_response()
}

#[derive(Debug, Deserialize)]
struct About {
    of: Option<String>,
}

async fn explain(State(shared): State<Shared>, asked: Result<Query<About>, QueryRejection>) -> Result<Response, Problem> {
    let Query(About { of }) = asked.map_err(|error| Problem::query(&error))?;
    let (snapshot, explained) = (shared.published.latest(), shared.published.explained());
    match Explanation::of(&snapshot, &explained, of.as_deref()) {
        Some(explanation) => Ok(Json(explanation).into_response()),
        None => {
            let of = of.unwrap_or_default();
            let disk = if of.starts_with("disk") { "; a disk is watched when it stands in policy.disks" } else { "" };
            let names = Explanation::names(&snapshot).join(", ");
            let message = format!("there is no worker or resource {of:?}; there are {names}{disk}");
            Err(Problem::new(StatusCode::NOT_FOUND, "not_found", message))
        }
    }
}

#[derive(Debug, Deserialize)]
struct Feed {
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    after: u64,
}

async fn feed(State(shared): State<Shared>, headers: HeaderMap, asked: Result<Query<Feed>, QueryRejection>) -> Result<Response, Problem> {
    let Query(asked) = asked.map_err(|error| Problem::query(&error))?;
    if !asked.follow {
        let events: Vec<Value> =
            shared.events.since(asked.after, events::MOST).into_iter().map(|(id, record)| json!({ "id": id, "record": record })).collect();
        return Ok(Json(json!({ "events": events })).into_response());
    }
    // A browser that lost the connection says where it was.
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    let stream = events::Stream::new(shared.events, seen.unwrap_or(asked.after), shared.ending);
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::new(stream)).into_response())
}

#[derive(Debug, Deserialize)]
struct Reload {
    #[serde(default)]
    dry_run: bool,
}

async fn reload(State(shared): State<Shared>, asked: Result<Query<Reload>, QueryRejection>) -> Result<Response, Problem> {
    let Query(Reload { dry_run }) = asked.map_err(|error| Problem::query(&error))?;
    let command = if dry_run { Command::PlanReload } else { Command::Reload };
    Ok(ask(&shared, command, Some(shared.patience + TRIAL)).await?.into_response())
}

async fn release(State(shared): State<Shared>) -> Result<Response, Problem> {
    let message = ask(&shared, Command::Release, Some(shared.patience)).await?;
    Ok(Json(json!({ "message": message.words() })).into_response())
}

async fn upgrade(State(shared): State<Shared>) -> Result<Response, Problem> {
    Ok(ask(&shared, Command::Upgrade, Some(shared.patience + TRIAL)).await?.into_response())
}

/// There is no cache to empty without a gateway; the configuration is read again.
async fn cache_invalidate(State(shared): State<Shared>) -> Result<Response, Problem> {
    let message = ask(&shared, Command::Reload, Some(shared.patience + TRIAL)).await?;
    Ok(Json(json!({ "cache": "absent", "message": message.words() })).into_response())
}

/// The loop's word.
pub enum Told {
    Done(String),
    Data(Value),
    Waits(String),
    Becoming(String),
}

impl Told {
    fn words(self) -> String {
        match self {
            Told::Data(value) => value.get("message").and_then(Value::as_str).unwrap_or("done").to_owned(),
            Told::Done(words) | Told::Waits(words) | Told::Becoming(words) => words,
        }
    }

    /// Where it may be that the daemon becomes another program.
    fn into_response(self) -> Response {
        let becomes = matches!(self, Told::Becoming(_));
        match becomes {
            true => Json(json!({ "message": self.words(), "becoming": true })).into_response(),
            false => Json(json!({ "message": self.words() })).into_response(),
        }
    }
}

/// Hands a command to the loop and waits for its word, for so long; without a bound where the loop keeps one itself.
pub async fn ask(shared: &Shared, command: Command, patience: Option<Duration>) -> Result<Told, Problem> {
    let unavailable = |error, message: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, message);
    if !shared.published.latest().loop_alive((shared.clock)()) {
        return Err(Problem::stalled());
    }
    let answer = shared
        .commands
        .ask(command)
        .ok_or_else(|| unavailable("queue_full", "the control loop has too many commands waiting, or has ended"))?;
    let answer = match patience {
        Some(patience) => tokio::time::timeout(patience, answer).await,
        None => Ok(answer.await),
    };
    match answer {
        Ok(Ok(Answer::Done(message))) => Ok(Told::Done(message)),
        Ok(Ok(Answer::Data(value))) => Ok(Told::Data(value)),
        Ok(Ok(Answer::Becoming(what))) => Ok(Told::Becoming(what)),
        Ok(Ok(Answer::Waits(what))) => Ok(Told::Waits(what)),
        Ok(Ok(Answer::Unknown(message))) => Err(Problem::new(StatusCode::NOT_FOUND, "not_found", message)),
        Ok(Ok(Answer::Refused(message))) => Err(Problem::new(StatusCode::CONFLICT, "refused", message)),
        Ok(Err(_)) => Err(unavailable("loop_ended", "the control loop ended before it answered")),
        Err(_) => Err(unavailable("no_answer", "the control loop has not answered in time; the command may still be carried out")),
    }
}

async fn unknown(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{} answers only the methods named in Allow", uri.path()))
}

/// Headers every answer carries: nothing here may be kept by a cache or guessed at by a browser.
pub fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
