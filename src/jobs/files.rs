//! Kind `files`: deletes old files below named folders, and nothing else.
//!
//! A run opens the folders (`roots`), lists what lies in them (`listing`), decides (`plan`, pure) and carries the plan out (`removal`).
//! Everything below a folder is reached by descriptors (`host::beneath`), so that whoever swaps a folder for a symlink meanwhile leads
//! nothing out of it.

pub mod listing;
pub mod pace;
pub mod plan;
pub mod removal;
pub mod roots;

use crate::config::globs::Globs;
use crate::config::jobs::Files;
use listing::{Listing, Look};
use removal::Removal;
use roots::Ground;

use super::run::{End, Failure, Foreman, Order, Outcome, Report};

/// Looks at the folders as a run would, and touches nothing. Gives words about those that are not there.
///
/// # Errors
/// Why a run would not search one of them.
pub fn examine(settings: &Files) -> Result<Vec<String>, Failure> {
    let ground = Ground::look(settings.owner.as_deref(), settings.mounted)?;
    roots::open(settings, &ground).map(|(_, absent)| absent)
}

/// Deletes what is to go, or tells it where only the plan is asked for.
///
/// # Errors
/// When a folder is not to be searched or a glob is wrong: nothing is deleted then. A file that cannot be deleted is among the errors
/// of the outcome, and the run goes on.
pub fn run(settings: &Files, order: &Order, foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    let globs = Globs::parse(&settings.include, &settings.exclude).map_err(|error| Failure(format!("understand the globs: {error}")))?;
    let ground = Ground::look(settings.owner.as_deref(), settings.mounted)?;
    let (roots, absent) = roots::open(settings, &ground)?;
    let begun = foreman.now();
    let look = Look {
        globs: &globs,
        owners: &ground.owners,
        groups: settings.groups,
        floor: plan::floor(settings, order, begun),
        begun: plan::nanoseconds(begun.wall),
    };
    let Some(listing) = Listing::read(&roots, &look, foreman)? else {
        return Ok(Outcome { end: End::Stopped, errors: absent, ..Outcome::default() });
    };
    // After the reading: whatever was made meanwhile lies in the past.
    let plan = plan::plan(&listing, settings, order, foreman.now());
    let totals = plan.tell(&listing, settings, |item| foreman.tell(Report::Planned(item)));
    let end = match () {
        () if order.dry_run => Some(End::Planned),
        () if plan.brake.is_some() => Some(End::Held),
        () => None,
    };
    foreman.tell(Report::Plan(totals));
    if listing.is_cut {
        let text = format!("there are more files than one run takes; {} are looked at, the rest next time", listing.files.len());
        foreman.tell(Report::Warning { text });
    }
    if plan.missing > 0 {
        let text = format!("{} bytes more are wanted than may go: the rest is too young, is not included or has other names", plan.missing);
        foreman.tell(Report::Warning { text });
    }
    let mut outcome = match end {
        Some(end) => Outcome { end, ..Outcome::default() },
        None => Removal::new(&listing, &roots, settings.rate, foreman).perform(&plan),
    };
    outcome.errors.extend(absent);
    Ok(outcome)
}
