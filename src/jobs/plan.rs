//! What a run is about to do, and why: told item by item, so that a plan of any length takes no memory for its telling.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One thing a run deletes or makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `delete` or `make`.
    pub deed: Deed,
    /// `file`, `folder`, `session`, `backup`.
    pub what: String,
    /// A path, or the id of a session.
    pub name: String,
    /// For people: `30 h old, kept for 24 h`.
    pub reason: String,
    /// What it takes on the disk, as far as known beforehand.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    Delete,
    Make,
}

/// So many things, and what they take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub count: u64,
    pub bytes: u64,
}

impl Tally {
    pub fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A whole plan in figures, told after its last item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// By what: `file`, `session`, …
    pub deleted: BTreeMap<String, Tally>,
    pub made: BTreeMap<String, Tally>,
    /// What stays, by the reason: `young`, `open`, `unverified-age`, …
    pub kept: BTreeMap<String, Tally>,
    /// Why nothing is done before somebody says yes; `None` where nothing keeps the plan from being carried out.
    pub brake: Option<String>,
}

impl Totals {
    pub fn count(&mut self, item: &Item) {
        let tallies = match item.deed {
            Deed::Delete => &mut self.deleted,
            Deed::Make => &mut self.made,
        };
        tallies.entry(item.what.clone()).or_default().add(item.bytes);
    }

    /// `would delete 60 file (7.2 MB); would keep 4 young (1.0 MB)`, for people.
    pub fn told(&self) -> String {
        let group = |deed: &str, tallies: &BTreeMap<String, Tally>| {
            let one = |(what, tally): (&String, &Tally)| format!("{} {what} ({:.1} MB)", tally.count, tally.bytes as f64 / 1e6);
            let each: Vec<String> = tallies.iter().map(one).collect();
            (!each.is_empty()).then(|| format!("would {deed} {}", each.join(", ")))
        };
        let groups = [group("delete", &self.deleted), group("make", &self.made), group("keep", &self.kept)];
        let told: Vec<String> = groups.into_iter().flatten().collect();
        if told.is_empty() { "nothing to do".to_owned() } else { told.join("; ") }
    }

    pub fn keep(&mut self, reason: &str, bytes: u64) {
        match self.kept.get_mut(reason) {
            Some(tally) => tally.add(bytes),
            None => {
                self.kept.insert(reason.to_owned(), Tally { count: 1, bytes });
            }
        }
    }
}
