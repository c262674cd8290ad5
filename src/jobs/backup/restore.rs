//! Brings a copy back as a database: whole or not at all, and what was there before is kept beside it.
//!
//! The order is what makes it safe. The new file is made beside the old one, proven, and forced to the disk. The old database gets another
//! name, then its log of changes and its journal do, since they would be applied to the new file; then the new file takes the place.
//! Whenever that ends there is the old database, none, or the new one, and everything of the old one is there under one of its names.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::content;
use super::fault::Fault;
use super::manifest::Manifest;
use super::sealing::Keys;
use super::shelf::{Copy, Shelf, State};
use super::source;
use super::verify;
use super::watch::{Halt, Watch, megabytes};
use crate::config::jobs::Verify;
use crate::host::durable::{self, Directory};
use crate::host::filesystem;

/// What SQLite keeps beside a database, and what of it belongs to its content: the shared memory is made anew.
const PARTS: [(&str, bool); 3] = [("-wal", true), ("-journal", true), ("-shm", false)];
/// Left free on the disk, in bytes.
const MARGIN: u64 = 16 << 20;

/// What is to be brought back, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name of a copy.
    pub name: String,
    /// Where the database was, unless another place is wanted.
    pub to: Option<PathBuf>,
    /// What is there may be replaced.
    pub force: bool,
    /// What opens a copy that is sealed.
    pub key_file: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restored {
    pub name: String,
    pub to: PathBuf,
    /// Bytes.
    pub database_bytes: u64,
    pub rows: u64,
    /// What was there before.
    pub aside: Option<PathBuf>,
    /// What could not be as it should; the database is back all the same.
    pub notes: Vec<String>,
}

/// # Errors
/// [`Halt::Failed`] with the reason; what was there is as it was, or whole under the name that is told.
pub fn restore(shelf: &Shelf, request: &Request, watch: &mut Watch<'_>) -> Result<Restored, Halt> {
    let copy = shelf.copy(&request.name);
    let manifest = match (copy.manifest, copy.state) {
        (Some(manifest), State::Good | State::Unverified) => manifest,
        (_, State::Damaged(reason)) => {
            return Err(Halt::Failed(format!("{} is damaged: {reason}", request.name)));
        }
        (_, State::Unreadable(reason)) => {
            return Err(Halt::Failed(format!("{} cannot be read: {reason}", request.name)));
        }
        (None, _) => return Err(Halt::Failed(format!("{} has no manifest", request.name))),
    };
    let keys = request.key_file.as_deref().map(Keys::read).transpose().map_err(Halt::Failed)?;
    let to = request.to.clone().unwrap_or_else(|| manifest.source.clone());
    let (folder, name) = place_of(&to)?;
    let parts = parts_of(&folder, &name)?;
    if !parts.is_empty() && !request.force {
        return Err(Halt::Failed(format!(
            "{} is there already; --force replaces it and keeps it beside, --to FILE brings the copy back elsewhere",
            to.display()
        )));
    }
    let needed = manifest.database_bytes.saturating_add(MARGIN);
    let space = filesystem::space(folder.path()).map_err(Halt::because)?;
    if space.avail < needed {
        return Err(Halt::Failed(format!(
            "{} has {} left and {} are needed",
            folder.path().display(),
            megabytes(space.avail),
            megabytes(needed)
        )));
    }
    let work = format!(".{name}.restored");
    folder.remove(&work).map_err(|error| Halt::Failed(format!("{work}: {error}")))?;
    let mut notes = Vec::new();
    let done = make(&Opened { shelf, manifest: &manifest, keys: keys.as_ref() }, &folder, &name, &work, &mut notes, watch).and_then(|()| {
        let stamp = jiff::Timestamp::try_from(watch.foreman.now().wall).map(|at| at.strftime("%Y%m%dT%H%M%SZ").to_string());
        swap(&folder, &name, &work, &parts, &stamp.map_err(Halt::because)?)
    });
    if done.is_err() {
        // The error that is told is the first one.
        let _ = folder.remove(&work);
    }
    let aside = done?.map(|aside| folder.path().join(aside));
    Ok(Restored {
        name: request.name.clone(),
        database_bytes: manifest.database_bytes,
        rows: manifest.content.rows(),
        to: folder.path().join(&name),
        aside,
        notes,
    })
}

/// The newest good copy of a database; of the only one there is when none is named.
///
/// # Errors
/// In words for people, when there is none or more than one database to choose from.
pub fn newest(copies: &[Copy], source: Option<&Path>) -> Result<String, String> {
    let good = copies.iter().filter(|copy| copy.state == State::Good);
    let of = |copy: &&Copy| source.is_none_or(|source| copy.manifest.as_ref().is_some_and(|manifest| manifest.source == source));
    let good: Vec<&Copy> = good.filter(of).collect();
    let sources: std::collections::BTreeSet<&Path> =
        good.iter().filter_map(|copy| copy.manifest.as_ref()).map(|manifest| manifest.source.as_path()).collect();
    if sources.len() > 1 {
        let names: Vec<String> = sources.iter().map(|source| source.display().to_string()).collect();
        return Err(format!("there are copies of several databases: name one of {}, or a copy", names.join(", ")));
    }
    // They are in order of time.
    good.last().map(|copy| copy.name.clone()).ok_or_else(|| {
        let Some(source) = source else {
            return "there is no verified copy".to_owned();
        };
        let others: std::collections::BTreeSet<String> =
            copies.iter().filter_map(|copy| copy.manifest.as_ref()).map(|manifest| manifest.source.display().to_string()).collect();
        let others: Vec<String> = others.into_iter().collect();
        let there_are = if others.is_empty() { String::new() } else { format!("; there are copies of {}", others.join(", ")) };
        format!("there is no verified copy of {}{there_are}", source.display())
    })
}

/// The folder a database is to be in, and its name there. A link is followed: what it leads to is replaced.
fn place_of(to: &Path) -> Result<(Directory, String), Halt> {
    let failed = |error: std::io::Error| Halt::Failed(format!("{}: {error}", to.display()));
    let to = match to.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => source::resolved(to),
        Err(error) => return Err(failed(error)),
    };
    let name = to.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let name = name.ok_or_else(|| Halt::Failed(format!("{} has no name that can be written", to.display())))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Directory::open(parent).map_err(|error| Halt::Failed(format!("{}: {error}", parent.display())))?, name))
}

/// The files of a database that are there, itself first.
fn parts_of(folder: &Directory, name: &str) -> Result<Vec<String>, Halt> {
    let mut found = Vec::new();
    for part in std::iter::once(name.to_owned()).chain(PARTS.iter().map(|(ending, _)| format!("{name}{ending}"))) {
        match folder.entry(&part).map_err(|error| Halt::Failed(format!("{part}: {error}")))? {
            None => {}
            Some(entry) if entry.is_file => found.push(part),
            Some(_) => {
                return Err(Halt::Failed(format!("{} is no regular file", folder.path().join(part).display())));
            }
        }
    }
    Ok(found)
}

/// A copy, and what opens it.
struct Opened<'a> {
    shelf: &'a Shelf,
    manifest: &'a Manifest,
    keys: Option<&'a Keys>,
}

/// Makes the new file beside its place, and proves it.
fn make(copy: &Opened<'_>, folder: &Directory, name: &str, work: &str, notes: &mut Vec<String>, watch: &mut Watch<'_>) -> Result<(), Halt> {
    let Opened { shelf, manifest, keys } = copy;
    let cannot = |error: std::io::Error| Halt::Failed(format!("{}: {error}", folder.path().join(work).display()));
    let mut file = folder.create(work).map_err(cannot)?;
    let unpacked = verify::unpack(shelf, &manifest.file, manifest, *keys, watch, |piece| file.write_all(piece).map_err(cannot));
    unpacked.map_err(|fault| explained(fault, &manifest.file))?;
    // It is what was copied, to the last byte: what only the application has keeps nobody from having it back.
    let check = verify::ask(&folder.path().join(work), &manifest.content, Verify::Quick, watch)
        .map_err(|fault| explained(fault, &manifest.file))?;
    if content::was_impossible(&check) {
        notes.push(format!("{check}; it is the same as what was copied to the last byte"));
    }
    // As the one it replaces; as the one that was copied where nothing is left of it.
    let owner = folder.entry(name).map_err(cannot)?.map_or(manifest.database_owner.into(), |entry| entry.owner);
    if let Err(error) = durable::give(&file, owner) {
        notes.push(format!("it could not be given to user {} and group {}: {error}", owner.user, owner.group));
    }
    file.sync_all().map_err(cannot)
}

fn explained(fault: Fault, name: &str) -> Halt {
    match fault {
        Fault::Damaged(reason) => Halt::Failed(format!("{name} is damaged: {reason}")),
        Fault::Unknown(halt) => halt,
    }
}

/// One step of putting a file into its place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Never over a file that has come in between.
    Rename {
        from: String,
        to: String,
    },
    Remove(String),
    /// What was done so far is on the disk before anything else is.
    Sync,
}

/// How the new file gets into its place, where `parts` are there. After each step there is the old database whole, none, or the new one:
/// never an old or a new file with a log that is not its own, or without the one that is.
fn steps(name: &str, work: &str, parts: &[String], aside: &str) -> Vec<Step> {
    let is_content = |part: &str| part == name || PARTS.iter().all(|(ending, is_content)| *is_content || !part.ends_with(ending));
    let mut steps = Vec::new();
    // Itself comes first.
    for part in parts.iter().filter(|part| is_content(part)) {
        let to = format!("{aside}{}", part.strip_prefix(name).unwrap_or_default());
        steps.extend([Step::Rename { from: part.clone(), to }, Step::Sync]);
    }
    steps.extend(parts.iter().filter(|part| !is_content(part)).map(|part| Step::Remove(part.clone())));
    if !parts.is_empty() {
        steps.push(Step::Sync);
    }
    steps.push(Step::Rename { from: work.to_owned(), to: name.to_owned() });
    steps
}

fn perform(folder: &Directory, step: &Step) -> std::io::Result<()> {
    match step {
        Step::Rename { from, to } => folder.rename_new(from, to),
        Step::Remove(name) => folder.remove(name).map(|_| ()),
        Step::Sync => folder.sync(),
    }
}

/// Puts the new file into its place. Answers with the name what was there has now.
fn swap(folder: &Directory, name: &str, work: &str, parts: &[String], stamp: &str) -> Result<Option<String>, Halt> {
    let failed = |what: &str, error: std::io::Error| Halt::Failed(format!("{}: {what}: {error}", folder.path().join(name).display()));
    let aside = free_aside(folder, name, stamp)?;
    let steps = steps(name, work, parts, &aside);
    for (at, step) in steps.iter().enumerate() {
        let Err(error) = perform(folder, step) else {
            continue;
        };
        let what = match step {
            Step::Rename { from, .. } if from == work => "the restored file cannot take its place",
            Step::Rename { .. } => "the old file cannot be kept beside",
            Step::Remove(_) => "the old log of changes cannot be taken away",
            Step::Sync => "the folder cannot be forced to the disk",
        };
        // As it was, the log before its database. Where somebody has taken the name meanwhile all of it stays aside: the old log would be
        // applied to his file.
        let is_taken = at > 0 && !matches!(folder.entry(name), Ok(None));
        let mut is_back = !is_taken;
        for step in steps.iter().take(at).rev() {
            if let Step::Rename { from, to } = step
                && is_back
            {
                is_back = folder.rename_new(to, from).is_ok();
            }
        }
        return Err(match failed(what, error) {
            Halt::Failed(reason) if !is_back => Halt::Failed(format!("{reason}; what was there is {aside}")),
            halt => halt,
        });
    }
    let kept = (!parts.is_empty()).then_some(aside);
    let is_where = kept.as_ref().map(|aside| format!("; what was there is {aside}")).unwrap_or_default();
    folder.sync().map_err(|error| Halt::Failed(format!("{}: {error}{is_where}", folder.path().display())))?;
    Ok(kept)
}

fn free_aside(folder: &Directory, name: &str, stamp: &str) -> Result<String, Halt> {
    let aside = format!("{name}.before-restore-{stamp}");
    for number in 1..1000 {
        let aside = if number == 1 { aside.clone() } else { format!("{aside}-{number}") };
        let mut is_free = folder.entry(&aside).map_err(Halt::because)?.is_none();
        for (ending, _) in PARTS {
            is_free &= folder.entry(&format!("{aside}{ending}")).map_err(Halt::because)?.is_none();
        }
        if is_free {
            return Ok(aside);
        }
    }
    Err(Halt::because("there are a thousand old files beside it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.db";
    const WORK: &str = ".a.db.restored";

    fn files(names: &[&str]) -> (tempfile::TempDir, Directory) {
        let base = tempfile::tempdir().unwrap();
        let folder = Directory::open(base.path()).unwrap();
        for name in names {
            folder.create(name).unwrap().write_all(if *name == WORK { b"new" } else { b"old" }).unwrap();
        }
        (base, folder)
    }

    #[test]
    fn a_crash_after_any_step_leaves_no_database_rather_than_a_wrong_one() {
        for there in [&["a.db"][..], &["a.db", "a.db-wal", "a.db-shm"], &["a.db", "a.db-journal"], &["a.db-wal"], &[]] {
            for crash in 0..20 {
                let (_base, folder) = files(&[there, &[WORK]].concat());
                let parts = parts_of(&folder, NAME).unwrap();
                let steps = steps(NAME, WORK, &parts, "aside");
                steps.iter().take(crash).for_each(|step| perform(&folder, step).unwrap());
                let names = folder.names().unwrap();
                let has = |name: &str| names.contains(&name.to_owned());
                for log in there.iter().filter(|part| part.ends_with("-wal") || part.ends_with("-journal")) {
                    let second = log.replace(NAME, "aside");
                    assert!(has(log) != has(&second), "{log} after {crash} steps: {names:?}");
                    if has(NAME) {
                        let is_new = std::fs::read(folder.path().join(NAME)).unwrap() == b"new";
                        assert_eq!(has(log), !is_new, "after {crash} steps: {names:?}");
                    }
                }
                assert!(crash < steps.len() || std::fs::read(folder.path().join(NAME)).unwrap() == b"new");
                assert_eq!(has(NAME) || has("aside"), !there.is_empty() && there[0] == NAME || crash >= steps.len());
            }
        }
    }

    #[test]
    fn what_cannot_take_its_place_leaves_all_as_it_was() {
        let there = ["a.db", "a.db-journal", "a.db-wal"];
        let (_base, folder) = files(&there);
        let parts = parts_of(&folder, NAME).unwrap();
        // There is no new file.
        assert!(matches!(swap(&folder, NAME, WORK, &parts, "T"), Err(Halt::Failed(reason)) if reason.contains("cannot take its place")));
        assert_eq!(folder.names().unwrap(), there);
    }
}
