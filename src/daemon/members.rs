//! The children of pre-fork masters, policed one by one where a worker's `members` are its `children`: looked at in each tick, judged by
//! `response::members`, asked to end or killed by what that says. The master puts another in the place of each.

use std::time::Duration;

use crate::config::settings::{MemberRules, Signal};
use crate::host::Paths;
use crate::host::clock::Moment;
use crate::host::process::{Delivery, ProcessId};
use crate::journal::Event;
use crate::response::members::{Member, MemberDeed};
use crate::sampling::members::{self, MemberReading};
use crate::sampling::readings::SlotId;
use crate::supervisor::Replica;
use crate::supervisor::roster;

use super::guardian::Guardian;

/// From this share of a line on shared pages are counted exactly, and the next look comes soon.
const NEAR: f64 = 0.7;
const SOON: Duration = Duration::from_millis(250);

impl Guardian {
    /// Looks at all such children and does what is due.
    pub fn police_members(&mut self, now: Moment, events: &mut Vec<Event>) {
        let is_about = |replica: &&Replica| replica.worker.members.is_some() && replica.is_ready();
        if !self.supervisor.replicas().iter().any(|replica| is_about(&replica)) {
            self.members.clear();
            return;
        }
        let paths = Paths::from(&self.settings.host);
        // Whoever cannot be seen now is seen in the next tick.
        let Some(processes) = members::all(&paths, &mut Vec::new()) else { return };
        let page = rustix::param::page_size() as u64;
        let masters: Vec<(SlotId, i32, MemberRules, Duration)> = self
            .supervisor
            .replicas()
            .iter()
            .filter(is_about)
            .filter_map(|replica| {
                let life = replica.life.as_ref()?;
                Some((life.slot, life.process.pid(), replica.worker.members?, replica.worker.stop.within))
            })
            .collect();
        self.members.retain(|slot, _| masters.iter().any(|(known, ..)| known == slot));
        for (slot, master, rules, stop_within) in masters {
            let line = rules.memory.into_iter().chain(rules.limit).min();
            let near = line.map(|line| (line as f64 * NEAR) as u64);
            let children = members::children(&paths, master, near, &processes, page);
            if near.is_some_and(|near| children.iter().any(|child| child.memory >= near)) {
                self.tally.next_tick = self.tally.next_tick.min(now.steady + SOON);
            }
            self.supervisor.note_fattest(slot, fattest(&children));
            let age = |(pid, started): Member| roster::age(ProcessId { pid, started, inode: 0 }, now.steady);
            let deeds = self.members.entry(slot).or_default().judge(&rules, stop_within, &children, age, now);
            for deed in deeds {
                self.perform_on_member(slot, &deed, events);
            }
        }
    }

    fn perform_on_member(&mut self, slot: SlotId, deed: &MemberDeed, events: &mut Vec<Event>) {
        let Some(replica) = self.supervisor.replica(slot) else { return };
        let (worker, index, stop) = (replica.worker.name.clone(), replica.index, replica.worker.stop.signal);
        let dry_run = self.settings.policy.dry_run;
        let outcome = if dry_run {
            "dry_run"
        } else {
            let signal = if deed.kill { Signal(libc::SIGKILL) } else { stop };
            match self.supervisor.signal_member(slot, deed.member, signal) {
                Ok(Delivery::Delivered) => "done",
                Ok(Delivery::Gone) => "gone",
                Err(_) => "failed",
            }
        };
        if outcome == "done" && !deed.kill {
            self.supervisor.count_recycle(&worker, deed.cause);
        }
        events.push(Event::WorkerMemberReplaced {
            worker: worker.to_string(),
            replica: index,
            pid: deed.member.0,
            cause: deed.cause,
            signal: if deed.kill { "SIGKILL" } else { crate::host::process::signal_name(stop.0) },
            outcome,
            memory_bytes: deed.memory,
            reason: deed.reason.clone(),
        });
    }
}

fn fattest(children: &[MemberReading]) -> Option<Member> {
    children.iter().max_by_key(|child| child.memory).map(|child| (child.pid, child.started))
}
