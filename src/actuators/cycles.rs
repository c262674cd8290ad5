//! Turns the duty cycles, on a thread of its own: a worker is let go in time whatever the loop is busy with. A tick may
//! look through a thousand processes; `longest_stop` is promised to every one of them.
//!
//! A tree is stopped by SIGSTOP. That is delivered to one thread, which has to get a processor before the others stop: up to
//! 63 ms were measured for 49 burning threads. Where the tree has a v2 group of its own, the group is frozen for the moment
//! in which the signals are sent: every thread is called into the kernel at once and finds the signal when it comes out
//! (0.3 ms at most, same load), and nobody can be born in between. What is held is stopped, not frozen: should we die,
//! the parent-death signal and the sentinel let it go.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::settings::Signal;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::folder::Folder;
use crate::host::freezer::Freezer;
use crate::host::process::{Delivery, Process};
use crate::host::scheduling;
use crate::host::stops::{StopTable, Ticket};
use crate::host::{Paths, cgroupfs};
use crate::sampling::readings::SlotId;

use super::duty::{Duty, Hold};

/// Every duty cycle there is. The loop begins and ends them; the thread turns them.
#[derive(Debug)]
pub struct Cycles {
    shared: Arc<Shared>,
    /// Started with the first cycle: most daemons never need it.
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    paths: Paths,
    stops: Arc<StopTable>,
    table: Mutex<Table>,
    /// Rung when the table has changed.
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    cycles: BTreeMap<SlotId, Cycle>,
    over: bool,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A thread that panicked leaves cycles that are as good as they were: each is stepped as a whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: steps what is due, and sleeps until the next is.
    fn turn(&self) {
        let mut table = self.table();
        while !table.over {
            for cycle in table.cycles.values_mut() {
                cycle.step(self, Moment::now().steady);
            }
            let next = table.cycles.values().map(|cycle| cycle.next).min();
            table = match next {
                Some(next) => {
                    let left = next.saturating_sub(Moment::now().steady);
                    self.bell.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.bell.wait(table).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Cycles {
    pub fn new(paths: Paths, stops: Arc<StopTable>) -> Cycles {
        let shared = Shared { paths, stops, table: Mutex::default(), bell: Condvar::new() };
        Cycles { shared: Arc::new(shared), thread: None }
    }

    /// Begins to hold a tree. An error when the thread cannot be started: then nobody would let it go.
    pub fn begin(&mut self, slot: SlotId, rate: f64, longest_stop: Duration, tree: Tree, now: Duration) -> io::Result<()> {
        if self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
            let shared = self.shared.clone();
            let run = move || {
                // What lets others go must not wait behind them; refused, it comes as soon as it can.
                if shared.paths.is_live() {
                    let _ = scheduling::run_first(&Layout::discover(&shared.paths));
                }
                shared.turn();
            };
            let duty = std::thread::Builder::new().name("duty".into()).stack_size(256 * 1024);
            self.thread = Some(scheduling::deaf_to_signals(|| duty.spawn(run))?);
        }
        let mut cycle = Cycle::new(tree);
        let cpu = cycle.cpu(&self.shared.paths);
        cycle.next = now;
        cycle.duty = Duty::new(rate, longest_stop, now, cpu);
        self.shared.table().cycles.insert(slot, cycle);
        self.shared.bell.notify_one();
        Ok(())
    }

    /// Changes the share of a tree that is held.
    pub fn set_rate(&self, slot: SlotId, rate: f64, longest_stop: Duration) {
        if let Some(cycle) = self.shared.table().cycles.get_mut(&slot) {
            cycle.duty.set_rate(rate, longest_stop);
        }
    }

    /// The processes of a tree, looked through anew. They are used from the next stop on: whoever is stopped now is let go
    /// by the list it was stopped by.
    pub fn set_members(&self, slot: SlotId, members: Vec<Process>) {
        if let Some(cycle) = self.shared.table().cycles.get_mut(&slot) {
            cycle.found = Some(members);
        }
    }

    /// Whether the members of a tree have to be looked for: its group knows its own.
    pub fn needs_members(&self, slot: SlotId) -> bool {
        self.shared.table().cycles.get(&slot).is_some_and(|cycle| cycle.tree.freezer.is_none())
    }

    /// Ends the cycle of a tree and lets it go: how long it was held in all, and what went wrong.
    pub fn end(&self, slot: SlotId, now: Duration) -> (Duration, Vec<String>) {
        let Some(mut cycle) = self.shared.table().cycles.remove(&slot) else { return (Duration::ZERO, Vec::new()) };
        // Counts the hold that ends now.
        let cpu = cycle.sum;
        let _ = cycle.duty.step(now, cpu);
        (cycle.duty.held_total(), cycle.go_on(&self.shared.stops))
    }

    /// How long a tree was held in all; zero for one that is not.
    pub fn held_total(&self, slot: SlotId) -> Duration {
        self.shared.table().cycles.get(&slot).map_or(Duration::ZERO, |cycle| cycle.duty.held_total())
    }

    /// Whether a tree is stopped with the help of its group's freezer.
    pub fn freezes(&self, slot: SlotId) -> bool {
        self.shared.table().cycles.get(&slot).is_some_and(|cycle| cycle.tree.freezer.is_some())
    }
}

impl Drop for Cycles {
    fn drop(&mut self) {
        self.shared.table().over = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// What is held: how it is stopped, and how its CPU time is read.
#[derive(Debug)]
pub struct Tree {
    pub freezer: Option<Freezer>,
    /// The group that accounts its CPU time.
    pub accounting: Option<Arc<Folder>>,
    /// Opened once and kept: one descriptor each, none of them can reach a stranger.
    pub members: Vec<Process>,
}

/// The duty cycle of one tree.
#[derive(Debug)]
struct Cycle {
    tree: Tree,
    duty: Duty,
    next: Duration,
    found: Option<Vec<Process>>,
    tickets: Vec<Ticket>,
    /// CPU time of members that are gone, so that the sum never goes down.
    lost: Duration,
    sum: Duration,
}

impl Cycle {
    fn new(tree: Tree) -> Cycle {
        let duty = Duty::new(0.0, Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Cycle { tree, duty, next: Duration::ZERO, found: None, tickets: Vec::new(), lost: Duration::ZERO, sum: Duration::ZERO }
    }

    /// Moves on if it is due.
    fn step(&mut self, shared: &Shared, now: Duration) {
        if self.next > now {
            return;
        }
        let was = self.duty.hold();
        // Whoever is stopped now is let go first. Not only when it is to be stopped: a shell that waits for its child never
        // uses its share, and its child would be free.
        if was == Hold::Run
            && let Some(found) = self.found.take()
        {
            self.tree.members = found;
        }
        let cpu = self.cpu(&shared.paths);
        let (hold, next) = self.duty.step(now, cpu);
        self.next = next;
        match (was, hold) {
            (Hold::Run, Hold::Stop) => self.stop(shared),
            (Hold::Stop, Hold::Run) => {
                // A member that does not go on has ended.
                let _ = self.go_on(&shared.stops);
            }
            _ => {}
        }
    }

    /// CPU time of the tree; never goes down.
    fn cpu(&mut self, paths: &Paths) -> Duration {
        if let Some(total) = self.tree.accounting.as_deref().and_then(group_cpu) {
            self.sum = self.sum.max(total);
            return self.sum;
        }
        let now: Duration = self.tree.members.iter().map(|member| member.cpu(paths).unwrap_or_default()).sum();
        if now + self.lost < self.sum {
            // Members that have gone took their clocks with them.
            self.lost = self.sum - now;
        }
        self.sum = now + self.lost;
        self.sum
    }

    fn stop(&mut self, shared: &Shared) {
        let frozen = self.tree.freezer.as_ref().is_some_and(|freezer| freezer.freeze().is_ok());
        if frozen {
            self.take_members_of_group(&shared.paths);
        } else {
            // The group is gone or was taken away from us: from now on the loop has to look for members.
            self.tree.freezer = None;
        }
        for member in &self.tree.members {
            // Written down first: what the sentinel does not know of must not be stopped.
            let Some(ticket) = shared.stops.note(member.identity()) else { break };
            match member.signal(Signal(libc::SIGSTOP)) {
                Ok(Delivery::Delivered) => self.tickets.push(ticket),
                Ok(Delivery::Gone) | Err(_) => shared.stops.clear(ticket),
            }
        }
        if let Some(freezer) = &self.tree.freezer {
            // Tried once more when everybody is let go.
            let _ = freezer.thaw();
        }
    }

    /// Everybody in the frozen group; who is known already keeps its descriptor.
    fn take_members_of_group(&mut self, paths: &Paths) {
        let Some(folder) = self.tree.freezer.as_ref().map(|freezer| freezer.file().folder.clone()) else { return };
        let Ok(listed) = folder.members() else { return };
        let members = &mut self.tree.members;
        members.retain(|member| listed.contains(&member.pid()) && member.is_here().unwrap_or(true));
        let unknown = listed.iter().filter(|pid| !members.iter().any(|member| member.pid() == **pid));
        let opened: Vec<Process> = unknown.filter_map(|pid| Process::open_listed(paths, *pid).ok().flatten()).collect();
        if opened.is_empty() {
            return;
        }
        let Ok(still) = folder.members() else { return };
        members.extend(opened.into_iter().filter(|member| still.contains(&member.pid())));
    }

    /// Lets everybody go on; returns what went wrong.
    fn go_on(&mut self, stops: &StopTable) -> Vec<String> {
        let thawed = self
            .tree
            .freezer
            .as_ref()
            .and_then(|freezer| freezer.thaw().err().map(|error| format!("{}: {error}", freezer.file().path().display())));
        let woken = |member: &Process| member.signal(Signal(libc::SIGCONT)).err().map(|error| format!("pid {}: {error}", member.pid()));
        let failed: Vec<String> = self.tree.members.iter().filter_map(woken).chain(thawed).collect();
        // Who could not be let go stays on the sentinel's list.
        if failed.is_empty() {
            self.tickets.drain(..).for_each(|ticket| stops.clear(ticket));
        }
        failed
    }
}

/// CPU time of a group: `cpu.stat` (v2) or `cpuacct.usage` (v1).
fn group_cpu(folder: &Folder) -> Option<Duration> {
    if let Ok(text) = folder.read("cpuacct.usage") {
        return cgroupfs::parse_number(&text).map(Duration::from_nanos);
    }
    let text = folder.read("cpu.stat").ok()?;
    cgroupfs::value_of(&text, "usage_usec").map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cputime;

    /// Nobody but the thread of its own moves the cycle on: the loop may be as late as it likes.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a real process is held for a real while, in which this thread does nothing")]
    fn a_tree_is_stopped_and_let_go_in_time_while_the_loop_does_nothing() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (paths, stops) = (Paths::default(), Arc::new(StopTable::create().unwrap()));
        let members = vec![Process::open_child(&paths, pid).unwrap().unwrap()];
        let mut cycles = Cycles::new(paths, stops.clone());
        let slot = SlotId(1);
        let before = cputime::of_process(pid).unwrap();
        let tree = Tree { freezer: None, accounting: None, members };
        cycles.begin(slot, 0.1, Duration::from_millis(50), tree, Moment::now().steady).unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let used = (cputime::of_process(pid).unwrap() - before).as_secs_f64();
        let (held, failed) = cycles.end(slot, Moment::now().steady);
        let left = stops.held();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used <= 0.1 * 3.0 + 0.1, "{used} s of 3");
        // At most 45 ms in one go, and at least one run in between: held for the most part, and let go many times.
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&held) && used > 0.0, "held for {held:?}, used {used} s");
        assert_eq!((failed, left), (vec![], vec![]));
    }

    /// `sh -c "app & wait"`, `su - user -c app`: who was there first never uses the share.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a real process is held for a real while, in which this thread does nothing")]
    fn a_child_that_joins_a_tree_at_rest_is_held_too() {
        let start = |script: &str| std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let mut children = [start("exec sleep 1000"), start("while :; do :; done")];
        let (paths, stops) = (Paths::default(), Arc::new(StopTable::create().unwrap()));
        let handle = |child: &std::process::Child| {
            let pid = i32::try_from(child.id()).unwrap();
            Process::open_child(&paths, pid).unwrap().unwrap()
        };
        let [resting, burning] = children.each_ref().map(handle);
        let pid = burning.pid();
        let mut cycles = Cycles::new(paths.clone(), stops.clone());
        let slot = SlotId(1);
        let tree = Tree { freezer: None, accounting: None, members: vec![resting] };
        cycles.begin(slot, 0.1, Duration::from_millis(50), tree, Moment::now().steady).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        cycles.set_members(slot, vec![handle(&children[0]), burning]);
        let before = cputime::of_process(pid).unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let used = (cputime::of_process(pid).unwrap() - before).as_secs_f64();
        let (_, failed) = cycles.end(slot, Moment::now().steady);
        let left = stops.held();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(used <= 0.1 * 3.0 + 0.15, "{used} s of 3");
        assert_eq!((failed, left), (vec![], vec![]));
    }
}
