//! Kind `backup`: copies databases while their application writes, proves each copy, and takes old ones away behind good newer ones.
//! May touch the folder of copies, and read the databases that are named. Must not write to a database, but to restore one.
//!
//! | file | |
//! |---|---|
//! | `source` | opens a database so that its application notices nothing |
//! | `snapshot` | reads one state of it, whole |
//! | `copy` | hashes, packs and writes what was read; reads it back |
//! | `content`, `census` | what a database holds, asked of SQLite and counted from the pages alone |
//! | `manifest`, `shelf` | what is written down of a copy; the folder of copies |
//! | `verify` | proves a copy |
//! | `rotation` | which copies go (pure) |
//! | `room`, `watch` | whether the disk has room; what is looked at meanwhile |
//! | `making` | one run |
//! | `restore` | brings a copy back |
//! | `sealing` | encrypts copies as age does |

mod census;
mod content;
mod copy;
mod fault;
mod making;
pub mod manifest;
pub mod restore;
mod room;
pub mod rotation;
pub mod sealing;
pub mod shelf;
mod snapshot;
mod source;
mod verify;
mod watch;

use std::path::Path;

use crate::config::jobs::{self, Verify};
use crate::host::durable::Directory;
use crate::host::filesystem;
use crate::jobs::run::{Failure, Foreman, Order, Outcome};

use fault::Fault;
pub use manifest::Manifest;
pub use restore::{Request, Restored};
use sealing::Keys;
use shelf::Shelf;
pub use shelf::{Copy, State};
pub use source::resolved;
use watch::{Halt, Watch};

/// One run: a copy of each database, and what is old goes.
///
/// # Errors
/// When any database could not be copied, or its copy not be proven; the others are done all the same.
pub fn run(settings: &jobs::Backup, order: &Order, foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    making::run(settings, order, foreman)
}

/// Every copy in a folder, the oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<Copy>, Failure> {
    Shelf::open(folder).and_then(|shelf| shelf.copies()).map_err(|halt| failure("read the copies", halt))
}

/// What became of proving one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The words of the check that was made.
    Good(String),
    Damaged(String),
    /// It could not be looked at.
    Unknown(String),
}

/// Proves one copy by bringing it back to a temporary file: in `scratch`, or beside the copies. What is found is written into its manifest,
/// where that can be written; else a warning says so.
///
/// # Errors
/// When the folder cannot be taken, or there is no such copy.
pub fn verify(
    folder: &Path,
    name: &str,
    how: Verify,
    scratch: Option<&Path>,
    key_file: Option<&Path>,
    foreman: &mut dyn Foreman,
) -> Result<Proof, Failure> {
    let failed = |halt| failure(&format!("verify {name}"), halt);
    let shelf = Shelf::take(folder).map_err(failed)?;
    let copy = shelf.copy(name);
    let Some(mut manifest) = copy.manifest else {
        return match copy.state {
            State::Damaged(reason) => Ok(Proof::Damaged(reason)),
            State::Unreadable(reason) => Ok(Proof::Unknown(format!("its manifest cannot be read: {reason}"))),
            State::Good | State::Unverified => Err(failed(Halt::because("there is no manifest"))),
        };
    };
    let place = Directory::open(scratch.unwrap_or(folder)).map_err(|error| failed(Halt::because(error)))?;
    let keys = key_file.map(Keys::read).transpose().map_err(|reason| failed(Halt::Failed(reason)))?;
    let mut watch = Watch::new(foreman, manifest.database_bytes);
    // Others write to that disk meanwhile.
    watch.floor = filesystem::space(place.path()).ok().map(|space| (place.path().to_owned(), room::reserve(&space)));
    let place = verify::Place { folder: &place, keys: keys.as_ref() };
    let proof = match verify::restored(&shelf, name, &manifest, how, &place, &mut watch) {
        Ok(check) => Proof::Good(check),
        Err(Fault::Damaged(reason)) => Proof::Damaged(reason),
        Err(Fault::Unknown(Halt::Failed(reason))) => Proof::Unknown(reason),
        Err(Fault::Unknown(Halt::Stopped)) => Proof::Unknown("it was stopped".to_owned()),
    };
    let now = watch.foreman.now().wall;
    match &proof {
        Proof::Good(check) => {
            manifest.verified = Some(verify::verification(now, "restored", check.clone()));
            manifest.damaged = None;
        }
        Proof::Damaged(reason) => manifest.damaged = Some(reason.clone()),
        Proof::Unknown(_) => return Ok(proof),
    }
    // The proof stands, also of what cannot be written to: read-only media, or copies of somebody else.
    if let Err(halt) = shelf.replace_manifest(&manifest) {
        watch.warn(format!("could not {}", failure(&format!("write down what was found of {name}"), halt)));
    }
    Ok(proof)
}

/// Brings a copy back as a database.
///
/// # Errors
/// When it cannot be; what was there is as it was, or whole under the name that is told.
pub fn restore(folder: &Path, request: &Request, foreman: &mut dyn Foreman) -> Result<Restored, Failure> {
    let failed = |halt| failure(&format!("restore {}", request.name), halt);
    let shelf = Shelf::open(folder).map_err(failed)?;
    restore::restore(&shelf, request, &mut Watch::new(foreman, 0)).map_err(failed)
}

/// The newest verified copy of a database, if there is one: what is deleted from the database after it was made can be brought back.
///
/// # Errors
/// When the folder cannot be read.
pub fn newest_good(folder: &Path, source: &Path) -> Result<Option<Manifest>, Failure> {
    let mut copies = list(folder)?.into_iter().filter(|copy| copy.state == State::Good).filter_map(|copy| copy.manifest);
    Ok(copies.rfind(|manifest| manifest.source == source))
}

/// Those of one database that one job has made, the oldest first.
fn copies_of<'c>(copies: &'c [Copy], source: &Path, job: &str) -> Vec<&'c Copy> {
    let is_one = |manifest: &Manifest| manifest.source == source && manifest.job.as_deref().is_none_or(|made_by| made_by == job);
    copies.iter().filter(|copy| copy.manifest.as_ref().is_some_and(is_one)).collect()
}

fn failure(what: &str, halt: Halt) -> Failure {
    match halt {
        Halt::Failed(reason) => Failure(format!("{what}: {reason}")),
        Halt::Stopped => Failure(format!("{what}: it was stopped")),
    }
}
