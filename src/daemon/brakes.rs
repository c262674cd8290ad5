//! The memory brakes in the loop: whose memory is looked at closely, and what is told of lines that were taken off.

use std::collections::BTreeSet;

use crate::host::clock::Moment;
use crate::journal::Event;
use crate::policy::{Level, Resource, Verdict};
use crate::response::action::{Action, Deed};
use crate::response::candidate::Candidate;
use crate::sampling::readings::SlotId;

use super::guardian::Guardian;

/// What a replica's memory is made of is read for so many of the largest, and so many of the fastest growers.
const CLOSE: usize = 16;

impl Guardian {
    /// Fills in how memory can be held, while it is over a line: of a thousand replicas only for those it may be about.
    pub fn look_at_grasps(&mut self, verdicts: &[Verdict], candidates: &mut [Candidate], now: Moment) {
        let is_wanted = |verdict: &Verdict| verdict.resource == Resource::Memory && (verdict.over || verdict.level > Level::Normal);
        if !verdicts.iter().any(is_wanted) {
            return;
        }
        let mut chosen: BTreeSet<SlotId> = self.brake.held().collect();
        let mut order: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.running).collect();
        order.sort_by_key(|candidate| std::cmp::Reverse(candidate.memory));
        chosen.extend(order.iter().take(CLOSE).map(|candidate| candidate.slot));
        order.sort_by(|a, b| b.growth.total_cmp(&a.growth));
        chosen.extend(order.iter().take(CLOSE).map(|candidate| candidate.slot));
        for candidate in candidates.iter_mut().filter(|candidate| chosen.contains(&candidate.slot)) {
            if let Some(replica) = self.supervisor.replica(candidate.slot) {
                candidate.grasp = self.brake.grasp(replica, now);
            }
        }
    }

    /// Takes off lines of others that only stall, and tells of it; and of what the kernel would not give back.
    pub fn guard_lines(&mut self, now: Moment, events: &mut Vec<Event>) {
        if !self.settings.policy.dry_run {
            events.extend(self.brake.guard(&self.supervisor, now).into_iter().map(|lifted| Event::MemoryLineLifted {
                worker: lifted.worker,
                line_bytes: Some(lifted.line),
                set_by: "others",
                reason: lifted.why,
                detail: lifted.failed.unwrap_or_default(),
            }));
        }
        events.extend(self.brake.complaints().into_iter().map(|detail| Event::Degraded { part: "reclaim", detail }));
    }

    /// A line of ours was taken off before usage was back.
    pub fn tell_lifted(&self, action: &Action, events: &mut Vec<Event>) {
        let Deed::Lift(slot) = action.deed else { return };
        let name = self.supervisor.replica(slot).map(|replica| format!("{}.{}", replica.worker.name, replica.index));
        events.push(Event::MemoryLineLifted {
            worker: name.unwrap_or_default(),
            line_bytes: None,
            set_by: "plimsoll",
            reason: action.reason.clone(),
            detail: String::new(),
        });
    }

    /// Lets everybody go, by whatever they are held.
    pub fn let_all_go(&mut self, now: Moment) -> Result<u32, String> {
        let lines = self.brake.let_all_go();
        let throttles = self.throttle.let_all_go(now.steady);
        match (lines, throttles) {
            (Ok(lines), Ok(throttles)) => Ok(lines.saturating_add(throttles)),
            (Err(why), Ok(_)) | (Ok(_), Err(why)) => Err(why),
            (Err(lines), Err(throttles)) => Err(format!("{lines}; {throttles}")),
        }
    }
}
