//! Reading the settings: gather the layers, look each one through, merge them, and make sense of the whole.

use std::collections::{BTreeMap, BTreeSet};

use figment::Figment;

use super::file::File;
use super::layers::{Sources, gather};
use super::problems::{Place, Problem, Problems};
use super::reference;
use super::sense::Sense;
use super::settings::Settings;
use super::shape::examine;
use super::tree::Layer;

/// Settings that hold together, and where each came from.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    pub(super) file: File,
    pub(super) layers: Vec<Layer>,
    /// Keys nobody set whose default depends on another key, and that key.
    pub(super) follows: BTreeMap<String, String>,
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
    let mut sense = Sense { sources, layers: &layers, spoiled: &spoiled, problems: &mut problems, follows: BTreeMap::new() };
    let settings = sense.settings(&mut file, gathered.file);
    let follows = sense.follows;
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, file, layers, follows }),
        _ => {
            in_order(&mut problems);
            Err(Problems { list: problems, denied: false })
        }
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
