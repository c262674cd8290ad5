//! Reading the settings: gather the layers, look each one through, merge them, and make sense of the whole.

use std::collections::{BTreeMap, BTreeSet};

use figment::Figment;

use super::file::File;
use super::layers::{Sources, gather, readable};
use super::problems::{Place, Problem, Problems};
use super::reference;
use super::sense::Sense;
use super::settings::{Folder, Settings};
use super::shape::examine;
use super::tree::{Layer, Node, Origin, Tree, locate};
use super::units::Scalar;

/// Settings that hold together, and where each came from.
pub struct Loaded {
    pub settings: Settings,
    pub(super) file: File,
    pub(super) layers: Vec<Layer>,
    /// Keys nobody set whose default depends on another key, and that key.
    pub(super) follows: BTreeMap<String, String>,
    /// What only the daemon is given, and was not looked at ([`Sources::beside`]): key and why.
    pub unseen: Vec<String>,
}

/// Without the layers, which hold what was written, secrets among it.
impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("file", &self.settings.file).finish_non_exhaustive()
    }
}

/// Reads, merges and checks everything `sources` name.
///
/// # Errors
/// Every problem there is, at once; a file that cannot be read or is not TOML comes alone, because nothing else could be judged.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let schema = reference::definition();
    let gathered = gather(sources, &reference::keys())?;
    let (mut layers, mut problems) = (gathered.list, gathered.problems);
    let mut spoiled = BTreeSet::new();
    for layer in &mut layers {
        examine(layer, &schema, &mut problems, &mut spoiled);
    }
    let merged = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer.clone()));
    let mut file: File = merged.extract().map_err(|error| unmerged(&error, problems.clone()))?;
    let mut sense =
        Sense { sources, layers: &layers, spoiled: &spoiled, problems: &mut problems, follows: BTreeMap::new(), unseen: Vec::new() };
    let settings = sense.settings(&mut file, gathered.file);
    let Sense { follows, unseen, .. } = sense;
    if problems.is_empty() {
        return Ok(Loaded { settings, file, layers, follows, unseen });
    }
    in_order(&mut problems);
    Err(Problems { list: problems, denied: false })
}

/// Reads the settings again for a daemon that runs with `running`.
///
/// # Errors
/// As [`load`]. The file the running settings came from must still be there, even where it was only found by looking: without it the
/// daemon would take the built-in file for the new settings and stop every worker.
pub fn reload(sources: &Sources, running: &Settings) -> Result<Loaded, Problems> {
    load(&Sources { file: sources.file.clone().or_else(|| running.file.clone()), ..sources.clone() })
}

/// The runtime folder of a daemon with these settings, told even where the rest of them is wrong: whoever has made a mistake
/// in the file is to hear of it from the running daemon, not that there is none.
pub fn runtime_dir(sources: &Sources) -> Folder {
    folder(sources, "daemon.runtime_dir", "/run/plimsoll", |settings| settings.daemon.runtime_dir)
}

/// Its state folder, likewise.
pub fn state_dir(sources: &Sources) -> Folder {
    folder(sources, "daemon.state_dir", "/var/lib/plimsoll", |settings| settings.daemon.state_dir)
}

fn folder(sources: &Sources, key: &str, otherwise: &str, of: impl Fn(Settings) -> Folder) -> Folder {
    if let Ok(loaded) = load(sources) {
        return of(loaded.settings);
    }
    let layers = readable(sources, &reference::keys());
    match locate(&layers, key) {
        Some((layer, Node { value: Tree::Scalar(Scalar::Text(path)), .. })) if path.starts_with('/') => {
            Folder { path: path.into(), explicit: !matches!(layer.origin, Origin::BuiltIn) }
        }
        // Not even that: where it is unless somebody says otherwise.
        _ => Folder { path: otherwise.into(), explicit: false },
    }
}

/// What each layer's own examination let through but the merge did not; said with the key, if not with the line.
fn unmerged(error: &figment::Error, mut list: Vec<Problem>) -> Problems {
    list.push(Problem {
        key: error.path.join("."),
        place: Place::Nowhere,
        message: error.kind.to_string(),
        allowed: None,
        suggestion: None,
    });
    Problems { list, denied: false }
}

/// The file from top to bottom, then the rest as found; nothing twice.
fn in_order(problems: &mut Vec<Problem>) {
    let rank = |problem: &Problem| match &problem.place {
        Place::Text { line, column, .. } => (0, *line, *column),
        Place::File(_) => (0, 0, 0),
        _ => (1, 0, 0),
    };
    problems.sort_by_key(rank);
    problems.dedup();
}
