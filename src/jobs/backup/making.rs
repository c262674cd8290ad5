//! One run: plan, copy, prove, take away what is old.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::manifest::{FORMAT, Manifest};
use super::rotation::{self, Fate, Keep, Known};
use super::sealing::{AGE, Keys};
use super::shelf::{Copy, Shelf};
use super::snapshot::{self, Shot, Way};
use super::source::{self, Source};
use super::verify;
use super::watch::{Halt, Watch};
use super::{content, copies_of, room};
use crate::config::jobs::{Backup, Compress, Verify};
use crate::host::clock::Moment;
use crate::host::filesystem;
use crate::jobs::plan::{Deed, Item, Totals};
use crate::jobs::run::{End, Failure, Foreman, Order, Outcome, Report};

/// What is done about one database.
#[derive(Debug)]
struct Task {
    /// See [`source::resolved`].
    source: PathBuf,
    /// Bytes of the file, and of the copy as far as can be told.
    database_bytes: u64,
    estimate: u64,
    /// Copies that go once the new one is made.
    goes: Vec<String>,
}

pub fn run(settings: &Backup, order: &Order, foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    let now = foreman.now();
    // Planned from the very listing that is acted on: nobody else comes in between.
    let shelf = if order.dry_run { Shelf::open(&settings.to).ok() } else { Some(Shelf::take(&settings.to).map_err(cannot_begin)?) };
    let mut warnings = Vec::new();
    if let Some(shelf) = shelf.as_ref().filter(|_| !order.dry_run) {
        let swept = shelf.sweep().map_err(cannot_begin)?;
        if !swept.is_empty() {
            warnings.push(format!("a run that was killed had left {} in {}; it was taken away", swept.join(", "), settings.to.display()));
        }
    }
    let copies = match &shelf {
        Some(shelf) => shelf.copies().map_err(cannot_begin)?,
        None => Vec::new(),
    };
    let (tasks, totals) = plan(settings, order, &copies, now, &mut warnings, &mut |item| foreman.tell(Report::Planned(item)));
    for text in warnings {
        foreman.tell(Report::Warning { text });
    }
    foreman.tell(Report::Plan(totals));
    match shelf {
        Some(shelf) if !order.dry_run => carry_out(settings, &shelf, &copies, &tasks, foreman),
        _ => Ok(Outcome { end: End::Planned, ..Outcome::default() }),
    }
}

fn cannot_begin(halt: Halt) -> Failure {
    super::failure("back up", halt)
}

fn plan(
    settings: &Backup,
    order: &Order,
    copies: &[Copy],
    now: Moment,
    warnings: &mut Vec<String>,
    tell: &mut dyn FnMut(Item),
) -> (Vec<Task>, Totals) {
    let mut totals = Totals::default();
    let mut tasks: Vec<Task> = Vec::new();
    let keep = Keep::from(settings);
    let mut tell = |totals: &mut Totals, item: Item| {
        totals.count(&item);
        tell(item);
    };
    for path in &settings.databases {
        let source = source::resolved(path);
        if tasks.iter().any(|task| task.source == source) {
            continue;
        }
        let database_bytes = std::fs::metadata(&source).map_or(0, |metadata| metadata.len());
        let mine = copies_of(copies, &source, &settings.job);
        let last = mine.last().and_then(|copy| copy.manifest.as_ref()).map(|manifest| (manifest.file_bytes, manifest.database_bytes));
        let estimate = room::estimate(database_bytes, settings.compress, last);
        let reason = match mine.last().and_then(|copy| copy.manifest.as_ref()) {
            Some(manifest) => {
                format!("the last copy is {} old", rotation::span(now.wall.duration_since(manifest.made).unwrap_or_default()))
            }
            None => "there is no copy yet".to_owned(),
        };
        tell(&mut totals, Item { deed: Deed::Make, what: "backup".into(), name: source.display().to_string(), reason, bytes: estimate });
        // As it will be once the new one is there.
        let new = Known { made: now.wall, is_good: true };
        let known: Vec<Known> = mine.iter().filter_map(|copy| copy.known()).chain([new]).collect();
        let mut goes = Vec::new();
        let mut ahead = 0;
        for (copy, fate) in mine.iter().zip(rotation::plan(&known, &keep, now.wall)) {
            match fate {
                Fate::Goes(_) if order.clock_jumped && !order.yes => totals.keep("clock-jumped", copy.bytes()),
                Fate::Goes(reason) => {
                    let item = Item { deed: Deed::Delete, what: "backup".into(), name: copy.name.clone(), reason, bytes: copy.bytes() };
                    tell(&mut totals, item);
                    goes.push(copy.name.clone());
                }
                Fate::Stays(word) => {
                    ahead += u32::from(word == "future");
                    totals.keep(word, copy.bytes());
                }
            }
        }
        if ahead > 0 {
            warnings
                .push(format!("{ahead} of the copies of {} are dated in the future: while they are, no old one goes", source.display()));
        }
        if order.clock_jumped && !order.yes {
            warnings.push("the clock has jumped since the last run: no old copy goes this time".to_owned());
        }
        tasks.push(Task { source, database_bytes, estimate, goes });
    }
    for copy in copies.iter().filter(|copy| copy.known().is_none()) {
        totals.keep("unreadable", copy.bytes());
    }
    (tasks, totals)
}

fn carry_out(settings: &Backup, shelf: &Shelf, copies: &[Copy], tasks: &[Task], foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    // Before anything is read: a job that cannot seal makes nothing.
    let keys = settings.key_file.as_deref().map(Keys::read).transpose().map_err(|reason| cannot_begin(Halt::Failed(reason)))?;
    let mut outcome = Outcome::default();
    let mut failures = Vec::new();
    let mut made = 0_u32;
    // Read once and proven once.
    let of = 2 * tasks.iter().map(|task| task.database_bytes).sum::<u64>();
    let mut watch = Watch::new(foreman, of);
    for task in tasks {
        match make(settings, shelf, keys.as_ref(), copies, task, &mut watch, &mut outcome.figures) {
            Ok(()) => {
                made += 1;
                take_away(shelf, task, &mut outcome);
            }
            Err(Halt::Stopped) => {
                outcome.end = End::Stopped;
                break;
            }
            Err(Halt::Failed(reason)) => failures.push(format!("{}: {reason}", task.source.display())),
        }
        watch.before += 2 * task.database_bytes;
    }
    if failures.is_empty() { Ok(outcome) } else { partly(&failures, made, outcome) }
}

/// What was done for some of the databases counts, whatever happened to the others.
fn partly(failures: &[String], made: u32, mut outcome: Outcome) -> Result<Outcome, Failure> {
    let failed = format!("back up {}", failures.join("; "));
    if made == 0 {
        return Err(Failure(failed));
    }
    outcome.end = End::Failed;
    outcome.errors.insert(0, format!("could not {failed}; {made} of the others {} copied", if made == 1 { "is" } else { "are" }));
    Ok(outcome)
}

/// Makes one copy and proves it. Unless all is well nothing of it stays.
fn make(
    settings: &Backup,
    shelf: &Shelf,
    keys: Option<&Keys>,
    copies: &[Copy],
    task: &Task,
    watch: &mut Watch<'_>,
    figures: &mut BTreeMap<String, f64>,
) -> Result<(), Halt> {
    let begun = watch.foreman.now();
    let mut source = Source::open_patiently(&task.source, watch)?;
    let wal_bytes = source.wal_bytes();
    let space = filesystem::space(&settings.to).map_err(|error| Halt::Failed(format!("{}: {error}", settings.to.display())))?;
    let can_open = keys.is_none_or(Keys::can_open);
    let is_unpacked = !source.gives_pages || room::is_unpacked(settings.verify, source.is_wal, can_open);
    let unpacked = if is_unpacked { task.database_bytes } else { 0 };
    room::judge(&space, task.estimate.saturating_add(unpacked)).map_err(Halt::Failed)?;
    watch.floor = Some((settings.to.clone(), room::reserve(&space)));
    let name = shelf.free_name(&task.source, begun.wall, settings.compress, keys.is_some())?;
    let partial = Shelf::partial(&name);
    let way = Way {
        compress: settings.compress,
        // What cannot be brought back here is checked where it is, as long as it may be held.
        verify: match settings.verify {
            Verify::Full if !can_open && source.is_wal => Verify::Quick,
            verify => verify,
        },
        longest_lock: settings.longest_lock,
        longest_wal: settings.longest_wal,
        keys: keys.cloned(),
        is_last_look: !can_open,
    };
    let made = snapshot::take(&mut source, &way, &shelf.folder, &partial, watch).and_then(|shot| {
        // The application's database is let go before the copy is proven.
        let owner = source.owner;
        drop(source);
        let mut manifest = describe(&task.source, &name, settings.compress, owner, &shot);
        manifest.job = Some(settings.job.clone());
        manifest.encryption = keys.map(|_| AGE.to_owned());
        watch.before += task.database_bytes;
        let proven = prove(&Proving { settings, shelf, keys, partial: &partial, shot: &shot }, &mut manifest, watch);
        watch.before -= task.database_bytes;
        proven?;
        shelf.place(&manifest)?;
        Ok(manifest)
    });
    watch.floor = None;
    let manifest = match made {
        Ok(manifest) => manifest,
        Err(halt) => {
            // What cannot be removed now is swept by the next run; the error that is told is the first one.
            let _ = shelf.folder.remove(&partial);
            return Err(halt);
        }
    };
    let seconds = watch.foreman.now().since(begun).as_secs_f64();
    let replaced = copies_of(copies, &task.source, &settings.job).len();
    tell(&manifest, seconds, replaced, watch);
    let mut add = |name: &str, value: u64| *figures.entry(name.to_owned()).or_default() += value as f64;
    add("backup_size_bytes", manifest.file_bytes);
    add("database_size_bytes", manifest.database_bytes);
    add("database_wal_bytes", wal_bytes);
    add("database_free_bytes", manifest.content.free_pages * u64::from(manifest.content.page_size));
    Ok(())
}

fn describe(source: &Path, name: &str, compress: Compress, owner: super::manifest::Ownership, shot: &Shot) -> Manifest {
    Manifest {
        format: FORMAT,
        made: shot.made,
        job: None,
        source: source.to_owned(),
        file: name.to_owned(),
        compression: if matches!(compress, Compress::Zstd(_)) { "zstd" } else { "none" }.to_owned(),
        encryption: None,
        file_bytes: shot.packed.file_bytes,
        file_sha256: shot.packed.file_sha256.clone(),
        database_bytes: shot.packed.database_bytes,
        database_sha256: shot.packed.database_sha256.clone(),
        database_owner: owner,
        content: shot.content.clone(),
        method: shot.method.to_owned(),
        sqlite_version: rusqlite::version().to_owned(),
        plimsoll_version: env!("CARGO_PKG_VERSION").to_owned(),
        verified: None,
        damaged: None,
    }
}

/// What is needed to prove a copy.
struct Proving<'a> {
    settings: &'a Backup,
    shelf: &'a Shelf,
    keys: Option<&'a Keys>,
    partial: &'a str,
    shot: &'a Shot,
}

/// Proves the copy that was made, and writes the proof into its manifest.
fn prove(of: &Proving<'_>, manifest: &mut Manifest, watch: &mut Watch<'_>) -> Result<(), Halt> {
    let Proving { settings, shelf, keys, partial, shot } = of;
    let by_stream = |manifest: &Manifest, watch: &mut Watch<'_>| match keys {
        Some(keys) if !keys.can_open() => verify::sealed(shelf, partial, manifest, watch).map(|()| "sealed"),
        _ => verify::by_stream(shelf, partial, manifest, *keys, watch).map(|()| "stream"),
    };
    let can_open = keys.is_none_or(Keys::can_open);
    let (how, check) = match (settings.verify, &shot.checked) {
        (Verify::None, _) => (by_stream(manifest, watch)?, "none".to_owned()),
        // SQLite has checked the very state that was copied, and the copy is that state to the last byte.
        (Verify::Quick, Some(check)) => (by_stream(manifest, watch)?, check.clone()),
        (_, Some(check)) if !can_open => (by_stream(manifest, watch)?, check.clone()),
        // Sealed unseen it would count, and push out what is good.
        (_, None) if !can_open => return Err(Halt::because("it was not checked before it was sealed")),
        (how, _) => {
            let place = verify::Place { folder: &shelf.folder, keys: *keys };
            ("restored", verify::restored(shelf, partial, manifest, how, &place, watch)?)
        }
    };
    if !can_open {
        watch.warn(format!(
            "{}: key_file holds no identity, so the copy cannot be opened here; proven is that the file is what was written",
            manifest.source.display()
        ));
    }
    if content::was_impossible(&check) {
        watch.warn(format!("{}: {check}; the copy is the same to the last byte", manifest.source.display()));
    }
    manifest.verified = Some(verify::verification(watch.foreman.now().wall, how, check));
    Ok(())
}

fn tell(manifest: &Manifest, seconds: f64, earlier: usize, watch: &mut Watch<'_>) {
    let Some(verified) = &manifest.verified else {
        return;
    };
    let fields = json!({
        "database": manifest.source,
        "file": manifest.file,
        "bytes": manifest.file_bytes,
        "database_bytes": manifest.database_bytes,
        "tables": manifest.content.tables.len(),
        "rows": manifest.content.rows(),
        "newest_checkpoint": manifest.content.newest_checkpoint,
        "method": manifest.method,
        "verified_by": verified.how,
        "check": verified.check,
        "earlier_copies": earlier,
        "seconds": (seconds * 1000.0).round() / 1000.0,
    });
    let fields = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    watch.foreman.tell(Report::Event { event: "backup_verified".to_owned(), fields });
}

fn take_away(shelf: &Shelf, task: &Task, outcome: &mut Outcome) {
    for name in &task.goes {
        match shelf.delete(name) {
            Ok(bytes) => {
                *outcome.deleted.entry("backup".to_owned()).or_default() += 1;
                outcome.reclaimed_bytes += bytes;
            }
            Err(error) => outcome.errors.push(format!("{name}: {error}")),
        }
    }
}
