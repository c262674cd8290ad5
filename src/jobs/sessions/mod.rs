//! Job kind `sessions`: deletes old sessions of an application's database, whole or not at all.
//!
//! | file | |
//! |---|---|
//! | `layout.rs` | which tables hold sessions; known shapes only |
//! | `age.rs`, `table.rs` | when a session was last touched, and whether that can be believed |
//! | `look.rs` | what a session is at one moment, in a few numbers |
//! | `reading.rs` | every row of a session or a table, read without holding up a commit |
//! | `survey.rs` | all sessions with age and size |
//! | `plan.rs` | which go, which stay, and why; the brakes (pure) |
//! | `backed_up.rs` | whether a verified backup holds a session |
//! | `archive.rs` | what goes is written down first |
//! | `purge.rs`, `pace.rs` | short transactions, with pauses |
//! | `restore.rs` | brings one back from the archive |
//!
//! One run: open, find the tables, survey (the first look), plan, tell it. Then wait, open again, and delete whatever is still
//! what it was at the first look. The tables of long-term memory that may stand in the same file are never named.

pub mod age;
pub mod archive;
pub mod backed_up;
pub mod layout;
pub mod look;
pub mod pace;
pub mod plan;
pub mod purge;
mod reading;
pub mod restore;
pub mod survey;
mod table;

use serde_json::{Map, Value, json};

use self::age::Stamp;
use self::archive::{Archive, Kept};
use self::layout::Layout;
use self::plan::{Circumstances, Plan};
use self::purge::{Condemned, Done, Purge};
use self::survey::{Limits, Seen, Survey};
use super::plan::{Deed, Item};
use super::run::{End, Failure, Foreman, Order, Outcome, Report};
use super::sqlite::{Database, Sizes, patiently, told};
use crate::config::jobs::Sessions;

pub use self::restore::restore;

/// How many of the largest sessions are told.
const LARGEST: usize = 10;

/// Carries out one run.
///
/// # Errors
/// When the database cannot be opened, read or understood, or nothing more can be deleted or archived. What was deleted
/// until then is told as an event.
pub fn run(settings: &Sessions, order: &Order, foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    let now = Stamp::of(foreman.now().wall);
    let limits = Limits::new(now, settings.keep);
    let Some((mut database, layout)) = open(settings, foreman)? else { return Ok(stopped()) };
    let Some(survey) = survey::take(&database, &layout, &limits, foreman)? else { return Ok(stopped()) };
    let Some(sizes) = sizes(&database, foreman)? else { return Ok(stopped()) };
    tell_analysis(&survey, &sizes, settings, &limits, foreman);

    let copies = match &settings.backed_up_in {
        None => None,
        Some(folder) => {
            let failed = |error: std::io::Error| Failure(format!("read the backups in {}: {error}", folder.display()));
            Some(backed_up::copies(folder, database.path()).map_err(failed)?)
        }
    };
    let is_backed_up = |seen: &Seen| copies.as_ref().is_some_and(|copies| backed_up::holds(copies, &layout, seen));
    let circumstances = Circumstances {
        limits,
        keep: settings.keep,
        order: *order,
        has_archive: settings.archive.is_some(),
        changes_in_place: layout.changes_in_place(),
        is_backed_up: copies.as_ref().map(|_| &is_backed_up as &dyn Fn(&Seen) -> bool),
        restored: restore::recent(settings, &database, now)?,
    };
    let mut plan = plan::make(&survey, &circumstances);
    // Archives have ages too, and are as little to be trusted with them when the clock is in doubt.
    let is_in_doubt = !order.yes && (order.clock_jumped || plan.totals.kept.contains_key("future"));
    let expired = if is_in_doubt { Vec::new() } else { expired_archives(settings, &database, now)? };
    tell_plan(&survey, &mut plan, &circumstances, &expired, foreman);

    let condemned = condemned(&survey, &plan);
    let mut outcome = Outcome { figures: figures(&survey, &sizes), ..Outcome::default() };
    outcome.figures.extend(planned(&layout, &condemned));
    outcome.end = match &plan.totals.brake {
        _ if order.dry_run => End::Planned,
        Some(_) => End::Held,
        None => End::Done,
    };
    if outcome.end != End::Done {
        return Ok(outcome);
    }
    let mut done = Done::default();
    let mut failure = None;
    if !condemned.is_empty() {
        if !order.yes && !settings.second_look.is_zero() {
            // An open database would keep the application from tidying up when it closes its own.
            let identity = database.identity();
            drop(database);
            if !foreman.wait(settings.second_look) {
                return Ok(Outcome { end: End::Stopped, ..outcome });
            }
            let (second, found) = match open(settings, foreman)? {
                None => return Ok(Outcome { end: End::Stopped, ..outcome }),
                Some(opened) => opened,
            };
            database = second;
            if database.identity() != identity || found != layout {
                let path = settings.database.display();
                return Err(Failure(format!("delete sessions from {path}: it is another database than at the first look")));
            }
        }
        (done, failure) = purge(settings, &database, &layout, &condemned, now, foreman)?;
    }
    if failure.is_none() && !done.is_stopped {
        remove(&expired, &mut outcome);
    }
    conclude(&survey, done, &database, &mut outcome, foreman);
    failure.map_or(Ok(outcome), Err)
}

fn stopped() -> Outcome {
    Outcome { end: End::Stopped, ..Outcome::default() }
}

/// Opens the database and finds its sessions; `None` when the run is to stop while others are in the way.
fn open(settings: &Sessions, foreman: &mut dyn Foreman) -> Result<Option<(Database, Layout)>, Failure> {
    let Some(database) = Database::open_patiently(&settings.database, foreman)? else { return Ok(None) };
    let layout = Layout::detect_patiently(&database, &settings.format, foreman)?;
    Ok(layout.map(|layout| (database, layout)))
}

fn sizes(database: &Database, foreman: &mut dyn Foreman) -> Result<Option<Sizes>, Failure> {
    let failed = |error: rusqlite::Error| Failure(format!("read the size of {}: {}", database.path().display(), told(&error)));
    patiently(foreman, || database.sizes()).map_err(failed)
}

fn condemned<'a>(survey: &'a Survey, plan: &Plan) -> Vec<Condemned<'a>> {
    let of = |seen: &'a Seen| seen.look.as_ref().map(|look| Condemned { id: &seen.id, look, bytes: seen.bytes });
    plan.delete.iter().filter_map(|place| survey.sessions.get(*place).and_then(of)).collect()
}

fn purge(
    settings: &Sessions,
    database: &Database,
    layout: &Layout,
    condemned: &[Condemned<'_>],
    now: Stamp,
    foreman: &mut dyn Foreman,
) -> Result<(Done, Option<Failure>), Failure> {
    let mut archive = match &settings.archive {
        None => None,
        Some(folder) => {
            let failed = |error: std::io::Error| Failure(format!("begin an archive in {}: {error}", folder.display()));
            Some(Archive::begin(folder, database.path(), now).map_err(failed)?)
        }
    };
    let (mut done, failure) = Purge::new(database, layout, archive.as_mut(), settings.longest_lock).run(condemned, foreman);
    if let Some(archive) = archive
        && let Err(error) = archive.end()
    {
        done.errors.push(format!("an empty archive stays behind: {error}"));
    }
    Ok((done, failure))
}

fn expired_archives(settings: &Sessions, database: &Database, now: Stamp) -> Result<Vec<Kept>, Failure> {
    let Some(folder) = &settings.archive else { return Ok(Vec::new()) };
    let failed = |error: std::io::Error| Failure(format!("read the archives in {}: {error}", folder.display()));
    Ok(archive::expired(archive::kept(folder, database.path()).map_err(failed)?, now, settings.archive_keep))
}

/// Removes archives that have been kept for long enough, one error for each that stays.
fn remove(expired: &[Kept], outcome: &mut Outcome) {
    for one in expired {
        match std::fs::remove_file(&one.path) {
            Ok(()) => {
                *outcome.deleted.entry("archive".to_owned()).or_default() += 1;
                outcome.reclaimed_bytes = outcome.reclaimed_bytes.saturating_add(one.bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => outcome.errors.push(format!("{}: {error}", one.path.display())),
        }
    }
}

fn tell_plan(survey: &Survey, plan: &mut Plan, circumstances: &Circumstances<'_>, expired: &[Kept], foreman: &mut dyn Foreman) {
    for item in plan::items(survey, plan, circumstances) {
        foreman.tell(Report::Planned(item));
    }
    for one in expired {
        let item = Item {
            deed: Deed::Delete,
            what: "archive".to_owned(),
            name: one.path.display().to_string(),
            reason: format!("of {}, kept for long enough", one.at.told()),
            bytes: one.bytes,
        };
        plan.totals.count(&item);
        foreman.tell(Report::Planned(item));
    }
    foreman.tell(Report::Plan(plan.totals.clone()));
}

fn tell_analysis(survey: &Survey, sizes: &Sizes, settings: &Sessions, limits: &Limits, foreman: &mut dyn Foreman) {
    tell(
        foreman,
        "session_cleanup_analysis",
        json!({
            "total_sessions": survey.count(),
            "total_checkpoints": survey.checkpoints,
            "retention_days": settings.keep.as_secs_f64() / 86_400.0,
            "cutoff_date": limits.cutoff.told(),
            "database_size_bytes": sizes.bytes(),
            "database_wal_bytes": sizes.wal_bytes,
            "database_free_bytes": sizes.free_bytes(),
        }),
    );
    let mut largest: Vec<&Seen> = survey.sessions.iter().collect();
    largest.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
    let told = |seen: &&Seen| json!({ "session": seen.id.told(), "bytes": seen.bytes });
    let largest: Vec<Value> = largest.iter().take(LARGEST).map(told).collect();
    tell(foreman, "session_cleanup_largest", json!({ "sessions": largest, "total_bytes": survey.bytes() }));
}

fn tell(foreman: &mut dyn Foreman, event: &str, fields: Value) {
    let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
    foreman.tell(Report::Event { event: event.to_owned(), fields });
}

fn figures(survey: &Survey, sizes: &Sizes) -> std::collections::BTreeMap<String, f64> {
    let figures = [
        ("sessions", survey.count()),
        ("session_bytes", survey.bytes()),
        ("database_size_bytes", sizes.bytes()),
        ("database_wal_bytes", sizes.wal_bytes),
        ("database_free_bytes", sizes.free_bytes()),
    ];
    figures.into_iter().map(|(name, value)| (name.to_owned(), value as f64)).collect()
}

/// What would go, or goes: told by every run, so that a plan that is only looked at says no less than one that is carried out.
fn planned(layout: &Layout, condemned: &[Condemned<'_>]) -> [(String, f64); 3] {
    let rows = condemned.iter().map(|one| one.look.rows()).fold(0, u64::saturating_add);
    let of_main = |one: &Condemned<'_>| one.look.counts().zip(layout.tables()).find(|(_, rows)| *rows == layout.main());
    let checkpoints = condemned.iter().filter_map(of_main).map(|(count, _)| count).fold(0, u64::saturating_add);
    let figures = [("sessions_planned", condemned.len() as u64), ("checkpoints_planned", checkpoints), ("rows_planned", rows)];
    figures.map(|(name, value)| (name.to_owned(), value as f64))
}

/// Puts what was done into the outcome and the record.
fn conclude(survey: &Survey, done: Done, database: &Database, outcome: &mut Outcome, foreman: &mut dyn Foreman) {
    let sizes = database.sizes().unwrap_or_default();
    let checkpoints = done.rows.get("checkpoint").copied().unwrap_or(0);
    let errors = done.failed + outcome.errors.len() as u64;
    if done.sessions > 0 {
        outcome.deleted.insert("session".to_owned(), done.sessions);
        outcome.deleted.extend(done.rows);
    }
    outcome.reclaimed_bytes = outcome.reclaimed_bytes.saturating_add(done.freed_pages.saturating_mul(sizes.page_bytes));
    let mut figure = |name: &str, value: f64| outcome.figures.insert(name.to_owned(), value);
    figure("sessions", survey.count().saturating_sub(done.sessions) as f64);
    figure("session_bytes", survey.bytes().saturating_sub(done.session_bytes) as f64);
    if sizes.page_bytes > 0 {
        figure("database_size_bytes", sizes.bytes() as f64);
        figure("database_wal_bytes", sizes.wal_bytes as f64);
        figure("database_free_bytes", sizes.free_bytes() as f64);
    }
    figure("sessions_deleted", done.sessions as f64);
    figure("checkpoints_deleted", checkpoints as f64);
    figure("sessions_touched", done.touched as f64);
    figure("errors", errors as f64);
    figure("longest_lock_seconds", done.longest_lock.as_secs_f64());
    figure("given_back_bytes", done.given_back_pages.saturating_mul(sizes.page_bytes) as f64);
    outcome.errors.extend(done.errors);
    if done.is_stopped {
        outcome.end = End::Stopped;
    }
    tell(
        foreman,
        "session_cleanup_result",
        json!({
            "sessions_deleted": done.sessions,
            "checkpoints_deleted": checkpoints,
            "errors": errors,
            "sessions_touched": done.touched,
            "transactions": done.transactions,
            "longest_lock_seconds": done.longest_lock.as_secs_f64(),
            "reclaimed_bytes": outcome.reclaimed_bytes,
        }),
    );
}
