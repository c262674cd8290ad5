//! What is done before the line is passed: the `throttle` of the memory ladder, moved forward.
//!
//! ```text
//!            early, at `low` or over                         over `high`
//!    nothing ───────────────────────► fastest grower slowed ────────────► the ladder, from its first rung
//!            ◄───────────────────────
//!             not foretold for [`FORESEEN`], or under `low`
//! ```
//!
//! Only a throttle, only where the ladder has one, and only of one replica at a time: whoever ends a replica waits for the line.
//! Slowed, it fills no longer as it did, and the forecast goes with it: so it stays on for a while after the last.

use std::time::Duration;

use super::{Course, Plan, Planner, Scene, Step, keep_lease};
use crate::config::settings::Rung;
use crate::policy::{Resource, Verdict};
use crate::response::ladder::Tier;
use crate::response::words;

/// How long what was foretold last is acted on.
const FORESEEN: Duration = Duration::from_secs(10);

impl Planner {
    /// Looks after memory that is under its line; true while something is on for a forecast.
    pub(super) fn stay_ahead(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) -> bool {
        let in_band = verdict.resource == Resource::Memory && verdict.utilization.is_none_or(|usage| usage >= verdict.low);
        // Over the line the level follows soon: what is on stays on for it.
        if in_band && (verdict.early || (verdict.over && course.foretold.is_some())) {
            course.foretold = Some(scene.now);
        }
        if !in_band || course.foretold.is_none_or(|last| scene.now.since(last) >= FORESEEN) {
            course.foretold = None;
            return false;
        }
        keep_lease(verdict, course, scene, plan);
        let may_begin = course.slowed.is_none() && course.release_again.is_none_or(|at| scene.now.steady >= at.steady);
        if verdict.early && may_begin && self.rungs(verdict, Tier::High, scene).contains(&Rung::Throttle) {
            self.move_throttle_forward(verdict, course, scene, plan);
        }
        course.slowed.is_some()
    }

    /// Nothing is owed yet: where it cannot be done nothing is said.
    fn move_throttle_forward(&mut self, verdict: &Verdict, course: &mut Course, scene: &Scene, plan: &mut Plan) {
        let Step::Do { deed, reason } = self.consider(&Rung::Throttle, verdict, course, scene, plan) else { return };
        let left = verdict.exhaustion.map_or(0.0, |left| left.as_secs_f64());
        let reason = format!("{}, full in {left:.1} s if it goes on; {reason}", words::standing(verdict));
        let id = self.act(verdict.resource.clone(), deed.clone(), reason, plan);
        course.last_action = Some(format!("throttle, ahead of the line (action {id})"));
        // Not put on trial: what it brings is measured, and no rung of the ladder follows from it.
        let _ = self.attempt(id, &Rung::Throttle, Tier::High, &deed, verdict, course, scene);
        if let Some(probe) = course.probes.iter_mut().find(|probe| probe.action == id) {
            probe.keeps_under = verdict.limit.map(|limit| verdict.high * limit);
        }
    }
}
