//! The one place that knows which code carries out which kind of job.

use super::run::{Failure, Foreman, Order, Outcome};
use crate::config::jobs::Kind;

/// What a kind of job deletes first of all: counted from the start, so that the first one is seen as a step from 0.
pub const fn deletes(kind: &Kind) -> &'static str {
    match kind {
        Kind::Files(_) => "file",
        Kind::Sessions(_) => "session",
        Kind::Backup(_) => "backup",
    }
}

/// Carries one run out, to its end or to where `foreman` wants it to stop.
///
/// # Errors
/// What kept the run from going on; what it had done is done.
pub fn run(kind: &Kind, order: &Order, foreman: &mut dyn Foreman) -> Result<Outcome, Failure> {
    match kind {
        Kind::Files(settings) => super::files::run(settings, order, foreman),
        Kind::Sessions(settings) => super::sessions::run(settings, order, foreman),
        Kind::Backup(settings) => super::backup::run(settings, order, foreman),
    }
}
