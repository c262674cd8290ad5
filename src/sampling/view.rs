//! The container that a worker lives in, seen through one of its processes.
//!
//! A sidecar has a control group of its own, which says nothing of the application beside it. With shared pids the kernel shows
//! that application's view: `/proc/PID/root` is its root, so `/proc/PID/root/sys/fs/cgroup` is what it sees of its own group, and
//! `/proc/PID/mountinfo` and `/proc/PID/cgroup` say where in there it is. Looking takes the same right as tracing: the same user
//! and no fewer capabilities, or `CAP_SYS_PTRACE`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::cpu::Cpu;
use super::limits::Limits;
use super::memory::Memory;
use super::pressure::PressureFiles;
use super::readings::{SlotId, Target};
use crate::host::cgroupfs::{Layout, Own};
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::{Paths, filesystem};

/// A process whose view could not be had is tried again after this long.
const AGAIN: Duration = Duration::from_secs(10);

/// Everything that is read of one group.
#[derive(Debug)]
pub(super) struct Sensors {
    pub limits: Limits,
    pub cpu: Cpu,
    pub memory: Memory,
    pub pressure: PressureFiles,
}

impl Sensors {
    pub fn new(paths: &Paths, layout: &Layout, of: Option<i32>) -> Sensors {
        Sensors {
            limits: Limits::new(paths, layout, of),
            cpu: Cpu::new(paths, layout),
            memory: Memory::new(paths, layout),
            pressure: PressureFiles::new(paths, layout),
        }
    }
}

/// Why the container of a worker is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// None of the worker's processes is known.
    NoProcess,
    /// The root of this process may not be looked into, or not found.
    Root(i32, Errno),
    /// There are no control groups in the root of this process.
    NoGroups(i32),
}

impl Obstacle {
    /// What is in the way, and what helps.
    pub fn words(self, worker: &str) -> String {
        match self {
            Obstacle::NoProcess => format!(
                "no process of worker {worker} is seen: it does not run, or as another user, or the containers do not share their \
                 processes (Kubernetes: shareProcessNamespace: true; docker: --pid=container:NAME)"
            ),
            Obstacle::Root(pid, Errno::ACCESS | Errno::PERM) => format!(
                "the view of worker {worker} may not be read (/proc/{pid}/root: permission denied): run both containers as the same user, \
                 the daemon with no fewer capabilities than the application, or give the daemon SYS_PTRACE"
            ),
            Obstacle::Root(pid, errno) => {
                format!("the view of worker {worker} cannot be read (/proc/{pid}/root: {})", std::io::Error::from(errno))
            }
            Obstacle::NoGroups(pid) => {
                format!(
                    "worker {worker} has no control groups to be seen: mount /sys/fs/cgroup in its container (looked for through pid {pid})"
                )
            }
        }
    }
}

/// The container of one worker.
#[derive(Debug)]
pub(super) struct Lookout {
    worker: Arc<str>,
    paths: Paths,
    state: State,
}

#[derive(Debug)]
enum State {
    Seen(Box<View>),
    /// Whose view it was that could not be had, if anybody's, and when that is tried again.
    Blocked(Obstacle, Option<(SlotId, Duration)>),
}

#[derive(Debug)]
struct View {
    slot: SlotId,
    /// It can be read until the process has ended, whoever gets its pid next.
    alive: Kept,
    sensors: Sensors,
}

impl Lookout {
    pub fn new(paths: &Paths, worker: &Arc<str>) -> Lookout {
        Lookout { worker: worker.clone(), paths: paths.clone(), state: State::Blocked(Obstacle::NoProcess, None) }
    }

    /// Turns to the process that counts now: that of the worker's first replica. True when what is seen is not what was seen.
    pub fn turn(&mut self, targets: &[Target], now: Moment, scratch: &mut Vec<u8>) -> bool {
        let target = targets.iter().find(|target| target.worker == self.worker);
        let was_seen = match (&mut self.state, target) {
            // Another view as soon as it is another process.
            (State::Seen(view), target) => {
                if target.is_some_and(|target| target.slot == view.slot) && view.alive.read_once(scratch).is_ok() {
                    return false;
                }
                true
            }
            (State::Blocked(_, Some((slot, again))), Some(target)) if *slot == target.slot && now.steady < *again => return false,
            (State::Blocked(_, None), None) => return false,
            (State::Blocked(..), _) => false,
        };
        self.state = match target {
            None => State::Blocked(Obstacle::NoProcess, None),
            Some(target) => match View::open(&self.paths, target, scratch) {
                Ok(view) => State::Seen(Box::new(view)),
                Err(obstacle) => State::Blocked(obstacle, Some((target.slot, now.steady.saturating_add(AGAIN)))),
            },
        };
        was_seen || matches!(self.state, State::Seen(_))
    }

    pub fn sensors(&mut self) -> Option<&mut Sensors> {
        match &mut self.state {
            State::Seen(view) => Some(&mut view.sensors),
            State::Blocked(..) => None,
        }
    }

    pub fn pressure(&self) -> Option<&PressureFiles> {
        match &self.state {
            State::Seen(view) => Some(&view.sensors.pressure),
            State::Blocked(..) => None,
        }
    }

    pub fn obstacle(&self) -> Option<Obstacle> {
        match self.state {
            State::Seen(_) => None,
            State::Blocked(obstacle, _) => Some(obstacle),
        }
    }

    pub fn worker(&self) -> &str {
        &self.worker
    }
}

impl View {
    fn open(paths: &Paths, target: &Target, scratch: &mut Vec<u8>) -> Result<View, Obstacle> {
        let pid = target.pid;
        let mut alive = Kept::new(paths, paths.of_process(Some(pid)).join("statm"));
        let ended = |errno| if errno == Errno::NOENT { Errno::SRCH } else { errno };
        alive.read_once(scratch).map_err(|errno| Obstacle::Root(pid, ended(errno)))?;
        let seen = paths.seen_by(pid);
        let root = paths.of_process(Some(pid)).join("root/.");
        look_into(&root).map_err(|errno| Obstacle::Root(pid, ended(errno)))?;
        look_into(&seen.cgroup)
            .map_err(|errno| if errno == Errno::NOENT { Obstacle::NoGroups(pid) } else { Obstacle::Root(pid, errno) })?;
        let layout = genuine(paths, Layout::of_process(&seen, Some(pid)));
        if layout.memory.is_none() && layout.cpu.is_none() && layout.cpuacct.is_none() {
            return Err(Obstacle::NoGroups(pid));
        }
        let sensors = Sensors::new(&seen, &layout, Some(pid));
        // Whatever was found by its pid was its own if it lives.
        alive.read_once(scratch).map_err(|errno| Obstacle::Root(pid, ended(errno)))?;
        Ok(View { slot: target.slot, alive, sensors })
    }
}

fn look_into(folder: &Path) -> Result<(), Errno> {
    rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// What the application's root holds is the application's to choose: only what the kernel itself shows there counts.
fn genuine(paths: &Paths, layout: Layout) -> Layout {
    let real = |own: Option<Own>| own.filter(|own| !paths.is_live() || filesystem::is_cgroup(&own.dir));
    Layout {
        kind: layout.kind,
        cpu: real(layout.cpu),
        cpuacct: real(layout.cpuacct),
        memory: real(layout.memory),
        cpuset: real(layout.cpuset),
        freezer: None,
        unified: real(layout.unified),
    }
}
