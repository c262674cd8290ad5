//! When others change the groups of workers: controllers are taken away, processes are moved out.

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

    /// Replicas that are outside their groups, `su` having opened a session or an administrator having moved them, are held
    /// and measured by process from now on.
    pub fn note_strays(&mut self, now: Moment) {
        self.supervisor.look_for_strays();
        for (slot, pid) in self.supervisor.take_strays() {
            let Some(replica) = self.supervisor.replica(slot) else { continue };
            let mut told = vec![format!("{}.{}: its process {pid} is not in its control group", replica.worker.name, replica.index)];
            told.push("the replica is measured and slowed by process".to_owned());
            told.extend(self.throttle.take_anew(slot, &self.supervisor, now.steady).err());
            told.extend(self.brake.let_go(slot).err());
            self.tell(&[Event::Degraded { part: "cgroup", detail: told.join("; ") }], now);
        }
    }
}
