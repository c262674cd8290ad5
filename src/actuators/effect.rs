//! What an action changed.

use std::time::Duration;

use crate::host::clock::Moment;
use crate::response::Action;
use crate::response::action::Outcome;

/// The outcome of one action, known when it was performed. What it brought (after one second, after ten) is measured by
/// `response::planner` from the readings that follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    pub action: Action,
    pub at: Moment,
    /// From the start of the tick that decided it to the end of performing it.
    pub took: Duration,
    pub outcome: Outcome,
}
