//! The one place that knows which code carries out which kind of job.

use super::run::{Failure, Foreman, Order, Outcome};
use crate::config::jobs::Kind;

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
