//! What is done when others take controllers from the groups of workers: quotas are written again, lines and accounts given up.

use crate::host::clock::Moment;
use crate::journal::Event;

use super::guardian::Guardian;
use super::wiring::enforcement;

/// Stands among the limitations from the first time on.
const ADVICE: &str = "others took controllers from the groups of workers; in a systemd unit Delegate=yes keeps them";

impl Guardian {
    /// Called before each look, so that none takes an account that has begun anew for that of the whole replica.
    pub fn keep_controllers(&mut self, now: Moment) {
        let Some(taken) = self.supervisor.keep_controllers() else { return };
        let has_quota = self.supervisor.groups().has_quota();
        let mut failed: Vec<String> = self.throttle.rely_on_quota(has_quota, &self.supervisor, now.steady).err().into_iter().collect();
        if taken.controllers.contains(&"memory") {
            failed.extend(self.brake.let_all_go().err());
        }
        enforcement(self.throttle.means()).clone_into(&mut self.environment.enforcement);
        if !self.environment.limitations.iter().any(|known| known == ADVICE) {
            self.environment.limitations.push(ADVICE.to_owned());
        }
        let outcome = match taken.failed {
            None => "given again, and quotas written again".to_owned(),
            Some(why) => format!("not to be had again: {why}; each tick tries"),
        };
        failed.insert(0, format!("others took {} from the groups of workers: {outcome}", taken.controllers.join(", ")));
        self.tell(&[Event::Degraded { part: "cgroup", detail: failed.join("; ") }], now);
    }
}
