//! Processes that were handed to us and that neither session nor group nor parent ties to a worker any more: each life carries a
//! mark in its environment, and what inherits it is known by it.
//!
//! Where there are groups nobody is looked for here. Without them somebody who leaves session and parent between two looks would
//! outlive his worker otherwise. Who has cleaned its environment is known by nothing; it is ended with the daemon, if it is our child
//! and was not when we began.

use std::collections::HashSet;

use crate::config::settings::Signal;
use crate::host::process::{self, Process};
use crate::host::procfs::Stat;
use crate::host::scan;
use crate::sampling::readings::SlotId;

use super::supervisor::Supervisor;

/// The variable that says whose descendant a process is.
pub const MARK: &str = "PLIMSOLL_LIFE";

/// Its value for whatever the command that restarts an adopted worker has started: a stranger, though it may be our child.
pub const RESTARTED: &str = "restarted";

/// Unique while the machine runs, for all practical purposes: a pid and a number that this daemon gives once.
pub fn mark(keeper: i32, slot: SlotId) -> String {
    format!("{keeper}-{}", slot.0)
}

impl Supervisor {
    /// Whoever is our child now was somebody else's business before: never a worker's descendant.
    pub fn note_strangers(&mut self) {
        let mut processes = Vec::new();
        // If /proc cannot be read, nobody is spared or taken for it later: both need the same look.
        let _ = scan::processes(&self.around.paths, &mut processes, &mut Vec::new());
        let keeper = self.around.keeper;
        self.strangers = processes.iter().filter(|stat| stat.ppid == keeper).map(|stat| (stat.pid, stat.started)).collect();
    }

    /// Those of our children that are nobody's workers, for a daemon that this one becomes. Nobody guards meanwhile: only those it can
    /// be are looked at, and all processes of the machine only where the trees of adopted ones have to be known.
    pub(super) fn bystanders(&self) -> Vec<(i32, u64)> {
        let (paths, keeper) = (&self.around.paths, self.around.keeper);
        let helpers: HashSet<i32> = self.outputs.helpers().chain(self.sentinel).chain(self.job).collect();
        let adopted = self.adopted_members();
        let told: HashSet<(i32, u64)> = self.strangers.iter().chain(&adopted).copied().collect();
        let pids: HashSet<i32> = helpers.iter().copied().chain(told.iter().map(|(pid, _)| *pid)).collect();
        let mut text = Vec::new();
        let children = pids.into_iter().filter_map(|pid| scan::process(paths, pid, &mut text).ok()).filter(|stat| stat.ppid == keeper);
        let seen = children.map(|stat| (stat.pid, stat.started));
        seen.filter(|child| helpers.contains(&child.0) || told.contains(child)).collect()
    }

    /// Children of ours that no life knows of, and no helper is.
    fn unknown_children<'a>(&self, processes: &'a [Stat]) -> Vec<&'a Stat> {
        let keeper = self.around.keeper;
        let mut children = processes.iter().filter(|stat| stat.ppid == keeper && !stat.has_ended()).peekable();
        if children.peek().is_none() {
            return Vec::new();
        }
        let lives = self.replicas.iter().filter_map(|replica| replica.life.as_ref());
        let known: HashSet<(i32, u64)> = lives
            .flat_map(|life| life.known.iter().copied().chain([(life.process.pid(), life.process.started())]))
            .chain(self.strangers.iter().copied())
            .collect();
        let is_helper =
            |pid: i32| [self.sentinel, self.trial, self.job].contains(&Some(pid)) || self.outputs.helpers().any(|helper| helper == pid);
        children.filter(|stat| !known.contains(&(stat.pid, stat.started)) && !is_helper(stat.pid)).collect()
    }

    /// True when nobody is our child but the workers that run, their helpers, and strangers from before we began.
    ///
    /// What is left of a tree is then nothing: the orphans of one whose process has ended are handed to us as the nearest who takes
    /// them in (`PR_SET_CHILD_SUBREAPER`), and all others descend from one of those. It costs one look at one file instead of one at
    /// every process of the machine. False also where the kernel does not tell.
    pub(super) fn has_only_known_children(&mut self) -> bool {
        let (keeper, paths) = (self.around.keeper, &self.around.paths);
        let mut children = Vec::new();
        if !process::is_subreaper() || scan::children(paths, keeper, &mut children, &mut self.scratch).is_err() {
            return false;
        }
        let lives = self.replicas.iter().filter_map(|replica| replica.life.as_ref()).filter(|life| life.exit.is_none());
        let known: HashSet<i32> =
            lives.map(|life| life.process.pid()).chain(self.outputs.helpers()).chain(self.sentinel).chain(self.job).collect();
        // A stranger may have ended long ago, and its number be another's.
        let mut is_stranger = |pid: i32| {
            let before = self.strangers.iter().find(|(stranger, _)| *stranger == pid);
            before.is_some_and(|(_, started)| scan::process(paths, pid, &mut self.scratch).is_ok_and(|stat| stat.started == *started))
        };
        children.into_iter().all(|pid| known.contains(&pid) || is_stranger(pid))
    }

    /// Gives unknown children to the lives whose marks they carry. One whose life is over is killed: nothing survives its worker.
    pub(super) fn claim_orphans(&mut self, processes: &[Stat]) {
        let unknown: Vec<Stat> = self.unknown_children(processes).into_iter().copied().collect();
        for orphan in unknown {
            let Some(mark) = scan::variable(&self.around.paths, orphan.pid, MARK, &mut self.scratch) else { continue };
            let life = self.replicas.iter_mut().filter_map(|replica| replica.life.as_mut()).find(|life| life.mark == mark);
            match life {
                Some(life) => life.known.push((orphan.pid, orphan.started)),
                None if mark.starts_with(&format!("{}-", self.around.keeper)) => {
                    if let Ok(Some(process)) = Process::open_seen(&self.around.paths, &orphan) {
                        // One that has gone in the meantime is what is wanted.
                        let _ = process.signal(Signal(libc::SIGKILL));
                    }
                }
                // Another daemon's, or somebody's idea of a mark.
                None => {}
            }
        }
    }

    /// Kills whoever is our child still, has not been from the beginning, and is no helper, with all descendants; for the end, when all
    /// workers are gone. How many there were.
    pub fn kill_the_rest(&mut self) -> u32 {
        let mut processes = Vec::new();
        if scan::processes(&self.around.paths, &mut processes, &mut self.scratch).is_err() {
            return 0;
        }
        let mut rest: Vec<Stat> = self.unknown_children(&processes).into_iter().copied().collect();
        let paths = &self.around.paths;
        rest.retain(|stat| scan::variable(paths, stat.pid, MARK, &mut self.scratch).as_deref() != Some(RESTARTED));
        let mut next = 0;
        while let Some(parent) = rest.get(next).copied() {
            let is_child = |stat: &&Stat| stat.ppid == parent.pid && stat.started >= parent.started && !stat.has_ended();
            rest.extend(processes.iter().filter(is_child));
            next += 1;
        }
        let killed = rest.iter().filter_map(|stat| Process::open_seen(&self.around.paths, stat).ok().flatten());
        u32::try_from(killed.filter(|process| process.signal(Signal(libc::SIGKILL)).is_ok()).count()).unwrap_or(u32::MAX)
    }

    /// The sentinel: a child of ours that is nobody's worker.
    pub fn set_sentinel(&mut self, pid: Option<i32>) {
        self.sentinel = pid;
    }
}
