//! Which processes belong to which replica.
//!
//! A process belongs to a replica when it descends from the process that was started, is in its session, or was found to
//! belong before: one that cut itself loose from its parent (a daemon) stays ours.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::readings::{SlotId, Target};
use crate::host::clock::Moment;
use crate::host::foreign::ForeignGroup;
use crate::host::kept::Kept;
use crate::host::procfs::Stat;
use crate::host::{Paths, procfs, scan};

/// All processes are never looked through more often than this.
const SHORTEST: Duration = Duration::from_secs(1);

/// Nor more than one part in this many of the time is spent on it.
const SHARE: u32 = 1000;

/// Ten times as much while a replica is young: most start what they are made of at once (a shell, `su`, a master with its
/// workers), and what has not been found is not counted where there is no group that knows.
const YOUNG_SHARE: u32 = 100;
const YOUNG: Duration = Duration::from_secs(10);

/// Between two full passes, which learn who has ended or is a zombie by now, only processes that are new are looked at.
const FULL_PASS_EVERY: Duration = Duration::from_secs(10);

/// One process of a tree. The two numbers together are never used again for another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub pid: i32,
    /// Clock ticks from boot to its start: `/proc/PID/stat`, field 22.
    pub started: u64,
}

/// The process trees of all targets.
#[derive(Debug)]
pub struct Trees {
    paths: Paths,
    loadavg: Kept,
    /// Given out by the kernel when all processes were last looked through.
    last_pid: Option<i32>,
    scanned: Option<Moment>,
    /// Up to when some replica is young; `None` when one was just taken in.
    young: Option<Moment>,
    /// When every process was last looked at, not only the new ones.
    passed: Option<Moment>,
    /// Whoever was there at this moment is known.
    complete: Option<Moment>,
    cost: Duration,
    trees: Vec<Tree>,
    /// Counts changes of members.
    changes: u64,
    index: HashMap<SlotId, usize>,
    all: Vec<Stat>,
    owners: Vec<Option<usize>>,
    /// Kept from pass to pass for their memory.
    sessions: HashMap<i32, usize>,
    path: Vec<usize>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Tree {
    slot: SlotId,
    pid: i32,
    /// The process that was started; `None` when it ended before it was looked at, or could not be.
    root: Option<Member>,
    /// Why it could not be looked at. Tried again each tick.
    unseen: Option<Errno>,
    members: Vec<Member>,
    /// Everybody in it is a member.
    group: Option<Arc<ForeignGroup>>,
}

impl Tree {
    fn new(target: &Target) -> Tree {
        Tree {
            slot: target.slot,
            pid: target.pid,
            root: None,
            unseen: Some(Errno::INPROGRESS),
            members: Vec::new(),
            group: target.foreign_group.clone(),
        }
    }

    /// Learns the identity of the process that was started.
    fn look(&mut self, paths: &Paths, scratch: &mut Vec<u8>) {
        match scan::process(paths, self.pid, scratch) {
            Ok(stat) => {
                let root = Member { pid: self.pid, started: stat.started };
                self.root = Some(root);
                self.unseen = None;
                if !stat.has_ended() {
                    self.members.push(root);
                }
            }
            Err(Errno::NOENT | Errno::SRCH) => self.unseen = None,
            Err(errno) => self.unseen = Some(errno),
        }
    }
}

impl Trees {
    pub fn new(paths: &Paths) -> Trees {
        Trees {
            paths: paths.clone(),
            loadavg: Kept::new(paths, paths.proc.join("loadavg")),
            last_pid: None,
            scanned: None,
            young: None,
            passed: None,
            complete: None,
            cost: Duration::ZERO,
            trees: Vec::new(),
            changes: 0,
            index: HashMap::new(),
            all: Vec::new(),
            owners: Vec::new(),
            sessions: HashMap::new(),
            path: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The processes of a replica as last seen, the one that was started first among them while it lives; zombies are not
    /// among them, and some may have ended since. Empty for a slot that is not followed or whose processes have all ended.
    pub fn members(&self, slot: SlotId) -> &[Member] {
        self.index.get(&slot).and_then(|at| self.trees.get(*at)).map_or(&[], |tree| &tree.members)
    }

    /// A number that changes whenever members may have.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Up to when everybody who belongs to a tree is known as such; whoever was started later may not be.
    pub(super) fn complete(&self) -> Option<Moment> {
        self.complete
    }

    /// The members of each tree, in the order of the targets, and why nothing is known of them where that is so (which is
    /// not that they have ended).
    pub(super) fn each(&self) -> impl Iterator<Item = (&[Member], Option<Errno>)> {
        self.trees.iter().map(|tree| (tree.members.as_slice(), tree.unseen))
    }

    /// Looks through all processes now, whatever it costs: before a tree is stopped or killed.
    ///
    /// # Errors
    /// When `/proc` cannot be listed or no descriptor is left; the members are then those seen before.
    pub fn rescan(&mut self, now: Moment) -> Result<(), Errno> {
        // Read first: a process started during the pass moves the number and is found by the next.
        let last_pid = self.read_last_pid();
        self.cost = scan::processes(&self.paths, &mut self.all, &mut self.scratch)?;
        self.last_pid = last_pid;
        self.scanned = Some(now);
        self.passed = Some(now);
        self.complete = Some(now);
        self.assign();
        Ok(())
    }

    /// From now on exactly these are followed; what is known of those that stay is kept. A process that is not there
    /// any more has no members.
    pub(super) fn follow(&mut self, targets: &[Target]) {
        let same = self.trees.len() == targets.len() && self.trees.iter().zip(targets).all(|(tree, target)| tree.slot == target.slot);
        if !same {
            let mut before: HashMap<SlotId, Tree> = self.trees.drain(..).map(|tree| (tree.slot, tree)).collect();
            self.index.clear();
            for (at, target) in targets.iter().enumerate() {
                let tree = before.remove(&target.slot).unwrap_or_else(|| Tree::new(target));
                self.index.insert(tree.slot, at);
                self.trees.push(tree);
            }
            // Whatever a new one started before we followed it has not been looked for.
            self.last_pid = None;
            self.complete = None;
            self.young = None;
            self.changes += 1;
        }
        for tree in self.trees.iter_mut().filter(|tree| tree.unseen.is_some()) {
            self.changes += 1;
            tree.look(&self.paths, &mut self.scratch);
        }
    }

    /// Looks through all processes if one was started since the last time and it has not been too soon. True when it did.
    ///
    /// # Errors
    /// As [`Trees::rescan`].
    pub(super) fn refresh(&mut self, now: Moment) -> Result<bool, Errno> {
        let young = *self.young.get_or_insert_with(|| now.after(YOUNG));
        let share = if now.steady < young.steady { YOUNG_SHARE } else { SHARE };
        let gap = SHORTEST.max(self.cost * share);
        if self.trees.is_empty() || self.scanned.is_some_and(|then| now.since(then) < gap) {
            return Ok(false);
        }
        let last_pid = self.read_last_pid();
        if last_pid.is_some() && last_pid == self.last_pid {
            self.complete = Some(now);
            return Ok(false);
        }
        // The numbers of processes rise until they begin again from the bottom: until then no number seen before can be
        // another's. Where a whole round went by within one pass, start times tell, and the next full pass finds the rest.
        let rose = matches!((self.last_pid, last_pid), (Some(before), Some(after)) if before < after);
        if !rose || self.passed.is_none_or(|then| now.since(then) >= FULL_PASS_EVERY) {
            return self.rescan(now).map(|()| true);
        }
        // A pass that breaks off leaves nothing to build on.
        let passed = self.passed.take();
        self.cost = scan::newcomers(&self.paths, &mut self.all, &mut self.scratch)?;
        self.passed = passed;
        self.last_pid = last_pid;
        self.scanned = Some(now);
        self.complete = Some(now);
        self.assign();
        Ok(true)
    }

    fn read_last_pid(&mut self) -> Option<i32> {
        self.loadavg.read(&mut self.scratch).ok().and_then(procfs::parse_last_pid)
    }

    /// Gives every process seen to the tree it belongs to.
    fn assign(&mut self) {
        self.changes += 1;
        let find = |all: &[Stat], pid: i32| all.binary_search_by_key(&pid, |stat| stat.pid).ok();
        self.owners.clear();
        self.owners.resize(self.all.len(), None);
        let Trees { sessions, path, .. } = self;
        sessions.clear();
        for (at, tree) in self.trees.iter().enumerate() {
            for member in &tree.members {
                if let Some(found) = find(&self.all, member.pid)
                    && self.all[found].started == member.started
                {
                    self.owners[found] = Some(at);
                }
            }
            // A number in use as a session is not given out as a pid: only while its leader is ours, or is no more, are
            // the processes of that session ours.
            let started = tree.root.map(|root| root.started);
            if find(&self.all, tree.pid).is_none_or(|leader| Some(self.all[leader].started) == started) {
                sessions.insert(tree.pid, at);
            }
        }
        for (at, tree) in self.trees.iter().enumerate() {
            // Listed after all processes were looked through: a number given away since belongs to one that is not there yet.
            for found in tree.group.iter().flat_map(|group| group.pids()).filter_map(|pid| find(&self.all, pid)) {
                self.owners[found].get_or_insert(at);
            }
        }
        for (owner, stat) in self.owners.iter_mut().zip(&self.all) {
            *owner = owner.or_else(|| sessions.get(&stat.session).copied());
        }
        for tree in &mut self.trees {
            tree.members.clear();
        }
        for start in 0..self.all.len() {
            // Up to the first ancestor whose owner is known, or to the top; a chain longer than all processes is a loop
            // in a file that was made by hand.
            path.clear();
            let mut at = Some(start);
            let mut owner = None;
            while let Some(here) = at.filter(|_| path.len() <= self.all.len()) {
                owner = self.owners[here];
                if owner.is_some() {
                    break;
                }
                path.push(here);
                // One that is older than its parent is the child of whoever had the number before.
                at = find(&self.all, self.all[here].ppid).filter(|parent| self.all[*parent].started <= self.all[here].started);
            }
            if let Some(owner) = owner {
                for here in path.iter() {
                    self.owners[*here] = Some(owner);
                }
                let stat = &self.all[start];
                if stat.has_ended() {
                    continue;
                }
                self.trees[owner].members.push(Member { pid: stat.pid, started: stat.started });
            }
        }
        for tree in &mut self.trees {
            if let Some(root) = tree.members.iter().position(|member| Some(*member) == tree.root) {
                tree.members.swap(0, root);
            }
        }
    }
}
