//! The children of a pre-fork master, each with what it holds: only looked at for workers whose members are policed one by one.
//!
//! Pages that children share with their master and each other (`preload`) are counted by proportional share wherever that may decide
//! anything: by the cheap estimate each of five children would be charged with all of them.

use crate::host::procfs::Stat;
use crate::host::{Paths, scan};

use super::workers::{pss, resident};

/// One direct child of the process that was started, with its own descendants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberReading {
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub started: u64,
    /// Bytes: proportional shares from `near` on, else resident pages.
    pub memory: u64,
    /// Resident pages, always: what a trend can be seen in.
    pub resident: u64,
}

/// The children of `root` in a fresh list of all processes. `near`: from so many bytes on shares are measured exactly.
pub fn children(paths: &Paths, root: i32, near: Option<u64>, processes: &[Stat], page: u64) -> Vec<MemberReading> {
    let direct = processes.iter().filter(|stat| stat.ppid == root && !stat.has_ended());
    direct
        .map(|child| {
            let tree = descendants(child, processes);
            let rough = tree.iter().filter_map(|stat| resident(paths, stat.pid, page)).fold(0, u64::saturating_add);
            let is_near = near.is_some_and(|near| rough >= near);
            let exact = is_near.then(|| tree.iter().try_fold(0_u64, |sum, stat| Some(sum.saturating_add(pss(paths, stat.pid).ok()?))));
            MemberReading { pid: child.pid, started: child.started, memory: exact.flatten().unwrap_or(rough), resident: rough }
        })
        .collect()
}

fn descendants(child: &Stat, processes: &[Stat]) -> Vec<Stat> {
    let mut tree = vec![*child];
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(processes.iter().filter(|stat| stat.ppid == parent.pid && stat.started >= parent.started && !stat.has_ended()));
        next += 1;
    }
    tree
}

/// A fresh list of all processes, or none if they cannot be listed now.
pub fn all(paths: &Paths, scratch: &mut Vec<u8>) -> Option<Vec<Stat>> {
    let mut processes = Vec::new();
    scan::processes(paths, &mut processes, scratch).ok().map(|_| processes)
}
