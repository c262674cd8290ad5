//! Which processes that somebody else has started a worker may take, as pure functions over one look at all of them.
//!
//! Never taken: the daemon and whoever it descends from, its helpers, threads of the kernel, who belongs to another worker, and who
//! has anybody of those in its tree. What is left is what the settings name: the pid in a pidfile that was written after the
//! process was started, the oldest process of a group whose parent is outside of it, everybody whose command line matches and
//! whose parent's does not.

use std::collections::HashMap;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::host::foreign::Pidfile;
use crate::host::process::{self, Root, tree_of};
use crate::host::procfs::Stat;

/// As many processes one expression finds.
pub const MOST_FOUND: usize = 64;

/// A pidfile is written after the process was started, give or take the coarseness of both clocks.
const PIDFILE_SLACK: Duration = Duration::from_secs(2);

/// While it is not there it is looked for this often, from the first second on …
const SOONEST: Duration = Duration::from_secs(1);
/// … to this, the longer it has been away.
const RAREST: Duration = Duration::from_secs(10);

/// The next look at what has been away for so long.
pub fn look_gap(away: Duration) -> Duration {
    (away / 10).clamp(SOONEST, RAREST)
}

/// One look at all processes, and whose some of them are.
#[derive(Debug)]
pub struct Scene<'a> {
    /// By pid, ascending.
    pub processes: &'a [Stat],
    /// The daemon.
    pub keeper: i32,
    /// (pid, start time) of everybody in the tree of a worker, and the worker's name.
    pub taken: &'a HashMap<(i32, u64), String>,
}

impl Scene<'_> {
    pub fn process(&self, pid: i32) -> Option<&Stat> {
        self.processes.binary_search_by_key(&pid, |stat| stat.pid).ok().and_then(|at| self.processes.get(at))
    }

    /// From its parent up to the top. A parent that is younger has been given the number of the real one.
    fn ancestors<'s>(&'s self, of: &Stat) -> impl Iterator<Item = &'s Stat> {
        let mut child = *of;
        // A chain longer than all processes is a loop in a file that was made by hand.
        (0..self.processes.len()).map_while(move |_| {
            let parent = self.process(child.ppid).filter(|parent| parent.started <= child.started && parent.pid != child.pid)?;
            child = *parent;
            Some(parent)
        })
    }

    /// True for the daemon and whoever descends from it.
    pub fn is_ours(&self, stat: &Stat) -> bool {
        stat.pid == self.keeper || self.ancestors(stat).any(|ancestor| ancestor.pid == self.keeper)
    }

    /// Why this process and its tree are not taken, for people. `group` are those who are taken along with it.
    pub fn objection(&self, root: &Stat, group: &[i32]) -> Option<String> {
        let pid = root.pid;
        if pid == self.keeper {
            return Some(format!("pid {pid} is the daemon itself"));
        }
        if root.has_ended() {
            return Some(format!("pid {pid} has ended"));
        }
        let tree = tree_of(Root { pid, started: root.started, ended: None }, root.ppid, &[], self.processes);
        let along = group.iter().filter_map(|pid| self.process(*pid));
        for member in tree.iter().chain(along) {
            if member.pid == self.keeper {
                return Some(format!("the daemon itself is in the tree of pid {pid}"));
            }
            if let Some(worker) = self.taken.get(&(member.pid, member.started)) {
                return Some(match member.pid == pid {
                    true => format!("pid {pid} is in the tree of worker {worker} already"),
                    false => format!("pid {} in the tree of pid {pid} is worker {worker}'s already", member.pid),
                });
            }
        }
        None
    }
}

/// Whether a process is one of our own helpers, by the word its command line begins with: `host::helper` starts them, as our children.
pub fn is_helper(stat: &Stat, keeper: i32, command_line: &str) -> bool {
    stat.ppid == keeper && command_line.split(' ').next() == Some("plimsoll")
}

/// Why a pidfile does not count for the process it names; `owner` is the user of that, `us` the daemon's own.
pub fn pidfile_fault(file: &Pidfile, stat: &Stat, owner: Option<u32>, us: u32, now: Moment) -> Option<String> {
    let pid = file.pid;
    let Some(owner) = owner else { return Some(format!("pid {pid} is changing its user")) };
    if ![0, us, owner].contains(&file.owner) {
        return Some(format!("it belongs to user {}, who could name any process in it; pid {pid} is of user {owner}", file.owner));
    }
    let began = Duration::from_secs_f64(stat.started as f64 / process::ticks_per_second().max(1) as f64);
    let began = now.before(now.steady.saturating_sub(began)).wall;
    match began.duration_since(file.written) {
        Ok(late) if late > PIDFILE_SLACK => {
            Some(format!("it is stale: pid {pid} was started {:.0} s after it was written, by somebody else", late.as_secs_f64()))
        }
        _ => None,
    }
}

/// The oldest process of a group whose parent is outside of it.
pub fn root_of<'a>(scene: &Scene<'a>, group: &[i32]) -> Option<&'a Stat> {
    let all = scene.processes;
    let members = all.iter().filter(|stat| group.contains(&stat.pid) && !stat.has_ended());
    members.filter(|stat| !group.contains(&stat.ppid)).min_by_key(|stat| (stat.started, stat.pid))
}

/// Of those who match, the ones without an ancestor who does, the oldest first.
pub fn topmost(scene: &Scene, matching: Vec<Stat>) -> Vec<Stat> {
    let is_below = |stat: &Stat| scene.ancestors(stat).any(|ancestor| matching.iter().any(|other| other.pid == ancestor.pid));
    let mut top: Vec<Stat> = matching.iter().filter(|stat| !is_below(stat)).copied().collect();
    top.sort_by_key(|stat| (stat.started, stat.pid));
    top.truncate(MOST_FOUND);
    top
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::SystemTime;

    const KEEPER: i32 = 50;

    fn process(pid: i32, ppid: i32, session: i32) -> Stat {
        Stat { pid, state: b'S', ppid, session, busy: 0, waited: 0, threads: 1, started: u64::try_from(pid).unwrap_or(0) }
    }

    /// init, a shell that has started the daemon, the daemon with a worker and a helper, and an application with a child.
    fn machine() -> Vec<Stat> {
        vec![
            process(1, 0, 1),
            process(40, 1, 40),
            process(KEEPER, 40, 40),
            process(60, KEEPER, 60),
            process(61, 60, 60),
            process(62, KEEPER, 62),
            process(70, 1, 70),
            process(71, 70, 70),
            process(80, 1, 40),
        ]
    }

    fn objection(processes: &[Stat], taken: &[(i32, &str)], pid: i32, group: &[i32]) -> Option<String> {
        let taken = taken.iter().map(|(pid, name)| ((*pid, *pid as u64), (*name).to_owned())).collect();
        let scene = Scene { processes, keeper: KEEPER, taken: &taken };
        let root = *scene.process(pid).unwrap();
        scene.objection(&root, group)
    }

    #[test]
    fn neither_we_nor_ours_nor_whom_we_descend_from_are_taken() {
        let machine = machine();
        let ours = [(60, "web"), (61, "web")];
        for (pid, why) in [
            (1, "the daemon itself is in the tree of pid 1"),
            (40, "the daemon itself is in the tree of pid 40"),
            (KEEPER, "pid 50 is the daemon itself"),
            (60, "pid 60 is in the tree of worker web already"),
            (61, "pid 61 is in the tree of worker web already"),
        ] {
            assert_eq!(objection(&machine, &ours, pid, &[]).as_deref(), Some(why));
        }
        for pid in [70, 71, 80] {
            assert_eq!(objection(&machine, &ours, pid, &[]), None, "{pid}");
        }
        let whole = objection(&machine, &ours, 70, &[70, 71, KEEPER]);
        assert_eq!(whole.as_deref(), Some("the daemon itself is in the tree of pid 70"), "a group that we are in as well");
        let outer = objection(&machine, &[(71, "inner")], 70, &[]);
        assert_eq!(outer.as_deref(), Some("pid 71 in the tree of pid 70 is worker inner's already"));
        // A leader of our session that is not our parent any more.
        let mut machine = machine;
        machine[2].ppid = 1;
        assert_eq!(objection(&machine, &ours, 40, &[]).as_deref(), Some("the daemon itself is in the tree of pid 40"));
        let scene = Scene { processes: &machine, keeper: KEEPER, taken: &HashMap::new() };
        assert!(scene.is_ours(&machine[4]) && scene.is_ours(&machine[2]) && !scene.is_ours(&machine[6]) && !scene.is_ours(&machine[1]));
    }

    #[test]
    fn helpers_are_known_by_their_first_word() {
        assert!(is_helper(&process(62, KEEPER, 62), KEEPER, "plimsoll sentinel 3 4"));
        assert!(!is_helper(&process(62, KEEPER, 62), KEEPER, "/usr/bin/app plimsoll"));
        assert!(!is_helper(&process(62, 1, 62), KEEPER, "plimsoll run"), "somebody else's");
    }

    #[test]
    fn a_pidfile_counts_for_a_process_that_was_there_when_it_was_written() {
        let hour = Duration::from_secs(3600);
        let now = Moment { steady: hour, wall: SystemTime::UNIX_EPOCH + 100 * hour };
        let ticks = process::ticks_per_second();
        let began = |seconds: u64| Stat { started: seconds * ticks, ..process(7, 1, 7) };
        let written =
            |seconds: u64, owner| Pidfile { pid: 7, written: SystemTime::UNIX_EPOCH + 99 * hour + Duration::from_secs(seconds), owner };
        let fault = |file: Pidfile, stat: Stat, owner| pidfile_fault(&file, &stat, owner, 1000, now);
        assert_eq!(fault(written(60, 0), began(10), Some(5)), None);
        assert_eq!(fault(written(60, 5), began(61), Some(5)), None, "within the coarseness of the clocks");
        let stale = fault(written(60, 5), began(90), Some(5)).unwrap();
        assert!(stale.contains("stale") && stale.contains("30 s after"), "{stale}");
        assert_eq!(fault(written(60, 1000), began(10), Some(5)), None, "our own word");
        assert!(fault(written(60, 6), began(10), Some(5)).unwrap().contains("belongs to user 6"));
        assert!(fault(written(60, 0), began(10), None).unwrap().contains("changing its user"));
    }

    #[test]
    fn the_root_of_a_group_is_its_oldest_with_a_parent_outside() {
        let machine = machine();
        let taken = HashMap::new();
        let scene = Scene { processes: &machine, keeper: KEEPER, taken: &taken };
        assert_eq!(root_of(&scene, &[71, 70, 80]).map(|stat| stat.pid), Some(70));
        assert_eq!(root_of(&scene, &[71, 80]).map(|stat| stat.pid), Some(71));
        assert_eq!(root_of(&scene, &[999]), None);
    }

    #[test]
    fn of_a_parent_and_its_child_the_parent_counts() {
        let machine = machine();
        let taken = HashMap::new();
        let scene = Scene { processes: &machine, keeper: KEEPER, taken: &taken };
        let of = |pids: &[i32]| topmost(&scene, pids.iter().map(|pid| *scene.process(*pid).unwrap()).collect());
        assert_eq!(of(&[71, 80, 70]).iter().map(|stat| stat.pid).collect::<Vec<_>>(), [70, 80]);
        assert_eq!(of(&[71]).len(), 1);
    }

    #[test]
    fn looks_get_rarer_the_longer_it_is_away() {
        for (away, gap) in [(0, 1), (5, 1), (30, 3), (100, 10), (86_400, 10)] {
            assert_eq!(look_gap(Duration::from_secs(away)), Duration::from_secs(gap), "{away}");
        }
    }

    fn some_machine() -> impl Strategy<Value = Vec<Stat>> {
        proptest::collection::vec((0_i32..40, 0_i32..40, 0_u64..40, any::<bool>()), 1..40).prop_map(|rows| {
            let row = |(at, (ppid, session, started, zombie)): (usize, (i32, i32, u64, bool))| {
                let pid = i32::try_from(at).unwrap_or(0) + 1;
                let state = if zombie { b'Z' } else { b'S' };
                Stat { state, started, ..process(pid, ppid, session) }
            };
            rows.into_iter().enumerate().map(row).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the processes are: nobody is taken in whose tree we or somebody of another worker is.
        #[test]
        fn nobody_is_taken_with_one_of_ours_in_its_tree(processes in some_machine(), keeper in 1_i32..41, other in 1_i32..41, group in proptest::collection::vec(1_i32..41, 0..5)) {
            let mut taken = HashMap::new();
            if let Some(stat) = processes.iter().find(|stat| stat.pid == other) {
                taken.insert((stat.pid, stat.started), "other".to_owned());
            }
            let scene = Scene { processes: &processes, keeper, taken: &taken };
            for root in &processes {
                if scene.objection(root, &group).is_some() {
                    continue;
                }
                let tree = tree_of(Root { pid: root.pid, started: root.started, ended: None }, root.ppid, &[], &processes);
                prop_assert!(root.pid != keeper && !root.has_ended());
                prop_assert!(!tree.iter().any(|stat| stat.pid == keeper || taken.contains_key(&(stat.pid, stat.started))));
                prop_assert!(!group.contains(&keeper) || scene.process(keeper).is_none());
            }
        }

        #[test]
        fn topmost_are_of_those_who_match_and_none_is_above_another(processes in some_machine(), wanted in proptest::collection::vec(any::<bool>(), 40)) {
            let taken = HashMap::new();
            let scene = Scene { processes: &processes, keeper: 99, taken: &taken };
            let matching: Vec<Stat> = processes.iter().zip(&wanted).filter(|(_, wanted)| **wanted).map(|(stat, _)| *stat).collect();
            let top = topmost(&scene, matching.clone());
            for stat in &top {
                prop_assert!(matching.contains(stat));
                prop_assert!(!scene.ancestors(stat).any(|ancestor| top.iter().any(|other| other.pid == ancestor.pid && other.pid != stat.pid)));
            }
            if let Some(root) = root_of(&scene, &matching.iter().map(|stat| stat.pid).collect::<Vec<_>>()) {
                prop_assert!(matching.contains(root) && !matching.iter().any(|stat| stat.pid == root.ppid));
            }
        }
    }
}
