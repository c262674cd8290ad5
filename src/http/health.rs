//! What the health routes say, as pure functions of the snapshot and the time.

use serde_json::{Map, Value, json};

use crate::host::clock::Moment;
use crate::snapshot::Snapshot;

/// `/healthz`: does the loop meet its deadline? Ages in seconds.
pub fn live(snapshot: &Snapshot, now: Moment) -> (bool, Value) {
    let alive = snapshot.loop_alive(now);
    let status = if alive { "ok" } else { "stalled" };
    (alive, json!({ "status": status, "age_s": snapshot.age(now), "deadline_s": snapshot.deadline() }))
}

/// `/readyz`: are all workers past their start, is the daemon not on its way out, and is that still so?
pub fn ready(snapshot: &Snapshot, now: Moment) -> (bool, Value) {
    let state = &snapshot.daemon;
    let status = match (state.shutting_down, state.ready) {
        (true, _) => "shutting_down",
        (false, false) => "starting",
        (false, true) if snapshot.loop_alive(now) => "ready",
        (false, true) => "stalled",
    };
    (status == "ready", json!({ "status": status }))
}

/// `/admin/resources/health`: `healthy`, `degraded` (something is over its line, missing or refused) or `unhealthy` (the loop
/// has stalled and nothing below it is current).
pub fn report(snapshot: &Snapshot, now: Moment) -> (bool, Value) {
    let mut checks = Map::new();
    let (alive, loop_check) = live(snapshot, now);
    checks.insert("loop".to_owned(), loop_check);
    let mut degraded = false;
    for resource in &snapshot.policy.resources {
        degraded |= resource.state != "normal";
        let check = json!({
            "status": resource.state, "utilization": resource.utilization, "high": resource.high,
            "throttled": resource.throttled, "unanswered_reason": resource.unanswered_reason,
        });
        checks.insert(resource.resource.clone(), check);
    }
    for worker in &snapshot.workers {
        let running = worker.replicas.iter().filter(|replica| replica.pid.is_some()).count();
        let complete = running >= worker.desired as usize;
        degraded |= !complete;
        let status = if complete { "ok" } else { "incomplete" };
        checks.insert(format!("workers.{}", worker.name), json!({ "status": status, "running": running, "desired": worker.desired }));
    }
    if snapshot.tick > 0 {
        let applied = snapshot.daemon.config_reload_successful;
        degraded |= !applied;
        checks.insert("config".to_owned(), json!({ "status": if applied { "ok" } else { "rejected" } }));
    }
    if let Some(reason) = &snapshot.daemon.history_problem {
        degraded = true;
        checks.insert("history".to_owned(), json!({ "status": "failing", "reason": reason }));
    }
    let status = match (alive, degraded) {
        (false, _) => "unhealthy",
        (true, true) => "degraded",
        (true, false) => "healthy",
    };
    (alive, json!({ "status": status, "checks": checks, "timestamp": timestamp(now) }))
}

/// RFC 3339 in UTC.
fn timestamp(now: Moment) -> Option<String> {
    jiff::Timestamp::try_from(now.wall).ok().map(|stamp| format!("{stamp:.0}"))
}
