//! Holds replicas to a share of the processor, by the best method that works for each, and lets them go again.
//!
//! Best first: a quota on the replica's own group (exact, costs nothing), a duty cycle of stopping it and letting it go
//! (closed loop on measured CPU time), a worse priority (where it can be taken back: that needs `CAP_SYS_NICE`).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::settings::{ThrottleMethod, Worker};
use crate::host::folder::{Folder, GroupFile};
use crate::host::freezer::Freezer;
use crate::host::process::{self, Priority, Process, ProcessId};
use crate::host::stops::StopTable;
use crate::host::{Paths, cgroupfs, procfs, scan};
use crate::policy::Resource;
use crate::sampling::readings::SlotId;
use crate::supervisor::Supervisor;

use super::complain;
use super::cycles::{Cycles, Tree};
use super::undo::{Saved, UndoLog};

/// How a replica is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Cgroup,
    Duty,
    Nice,
}

impl Method {
    pub fn word(self) -> &'static str {
        match self {
            Method::Cgroup => "cgroup",
            Method::Duty => "duty",
            Method::Nice => "nice",
        }
    }
}

/// What can be used on this machine, found out at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// A quota can be set on groups of our own.
    pub quota: bool,
    /// Processes can be stopped: there is a sentinel to let them go should we die.
    pub duty: bool,
    /// A nice value can be taken back.
    pub nice: bool,
}

impl Means {
    /// The method for a worker, or why there is none.
    pub fn method(self, worker: &Worker) -> Result<Method, &'static str> {
        // An adopted one stays in its own group, which is not ours to limit.
        let all = [(self.quota && worker.adopt.is_none(), Method::Cgroup), (self.duty, Method::Duty), (self.nice, Method::Nice)];
        let only = |works: bool, method: Method, why: &'static str| if works { Ok(method) } else { Err(why) };
        match worker.throttle {
            ThrottleMethod::Never => Err("the settings say throttle = \"never\""),
            ThrottleMethod::Cgroup => {
                only(self.quota, Method::Cgroup, "no CPU quota can be set here; the notes of `plimsoll status` say why")
            }
            ThrottleMethod::Duty => only(self.duty, Method::Duty, "processes cannot be stopped safely here"),
            ThrottleMethod::Nice => only(self.nice, Method::Nice, "a nice value could not be taken back here (needs CAP_SYS_NICE)"),
            ThrottleMethod::Auto => {
                all.into_iter().find_map(|(works, method)| works.then_some(method)).ok_or("no method of throttling works here")
            }
        }
    }
}

/// What a replica has to bear, as it is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burden {
    pub method: Method,
    /// The method in detail, for people.
    pub by: &'static str,
    /// Cores it may use.
    pub cores: f64,
    /// 0 free, 1 held stopped, over the last second or so.
    pub ratio: f64,
}

#[derive(Debug)]
pub struct Throttle {
    paths: Paths,
    means: Means,
    cycles: Cycles,
    undo: UndoLog,
    /// What each resource wants of each replica; the smallest counts.
    wishes: BTreeMap<SlotId, BTreeMap<Resource, f64>>,
    held: BTreeMap<SlotId, Held>,
    /// Time taken away, by worker; survives the worker's death.
    taken: BTreeMap<Arc<str>, Duration>,
}

#[derive(Debug)]
struct Held {
    worker: Arc<str>,
    cores: f64,
    grip: Grip,
    ratio: f64,
    /// For the ratio: (steady time, time taken away) at the last look.
    looked: (Duration, Duration),
}

#[derive(Debug)]
enum Grip {
    Quota { files: Vec<GroupFile>, stat: Option<GroupFile> },
    Duty { freezer: Option<GroupFile>, watch: Watch },
    Nice { members: Vec<ProcessId> },
}

impl Grip {
    fn method(&self) -> Method {
        match self {
            Grip::Quota { .. } => Method::Cgroup,
            Grip::Duty { .. } => Method::Duty,
            Grip::Nice { .. } => Method::Nice,
        }
    }
}

/// When a tree was last looked through for new members.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    scanned: Duration,
    newest_pid: Option<i32>,
}

/// A tree under a duty cycle is looked through for new members this often at most, and only when a process was made.
const SCAN_GAP: Duration = Duration::from_millis(100);

impl Throttle {
    pub fn new(paths: Paths, means: Means, stops: Arc<StopTable>, undo: UndoLog) -> Throttle {
        let cycles = Cycles::new(paths.clone(), stops);
        Throttle { paths, means, cycles, undo, wishes: BTreeMap::new(), held: BTreeMap::new(), taken: BTreeMap::new() }
    }

    pub fn means(&self) -> Means {
        self.means
    }

    /// Notes a folder of ours before it is used, so that it is removed even after a crash.
    pub fn note_folder(&mut self, folder: &Path) -> io::Result<()> {
        self.undo.save(Saved::folder(folder)?)
    }

    /// Forgets folders that are gone.
    pub fn forget_missing_folders(&mut self) {
        self.undo.forget_missing_folders();
    }

    /// Holds a replica to `cores` for the sake of `resource` (`None`: no longer). The error says why it cannot be done.
    pub fn set(
        &mut self,
        slot: SlotId,
        resource: &Resource,
        cores: Option<f64>,
        supervisor: &Supervisor,
        now: Duration,
    ) -> Result<(), String> {
        let wishes = self.wishes.entry(slot).or_default();
        match cores {
            Some(cores) => wishes.insert(resource.clone(), cores.max(0.001)),
            None => wishes.remove(resource),
        };
        self.settle(slot, supervisor, now)
    }

    /// Takes off everything that was put on for the sake of `resource`.
    pub fn release(&mut self, resource: &Resource, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        let slots: Vec<SlotId> = self.wishes.iter().filter(|(_, wishes)| wishes.contains_key(resource)).map(|(slot, _)| *slot).collect();
        let failures: Vec<String> = slots.into_iter().filter_map(|slot| self.set(slot, resource, None, supervisor, now).err()).collect();
        complain(failures)
    }

    /// Lets one replica go, whoever wanted it held: it is about to end, or has ended.
    pub fn let_go(&mut self, slot: SlotId, now: Duration) -> Result<(), String> {
        self.wishes.remove(&slot);
        match self.held.remove(&slot) {
            Some(held) => self.drop_grip(slot, held, now),
            None => Ok(()),
        }
    }

    /// Holds a replica anew, by whatever works for it now.
    pub fn take_anew(&mut self, slot: SlotId, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        if let Some(held) = self.held.remove(&slot) {
            self.drop_grip(slot, held, now)?;
        }
        self.settle(slot, supervisor, now)
    }

    /// Whoever is held in a way that does not work or is not allowed any more is held in another, or let go; called after
    /// a reload.
    pub fn apply(&mut self, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        let means = self.means;
        let allowed = |slot: &SlotId| supervisor.replica(*slot).and_then(|replica| means.method(&replica.worker).ok());
        let wrong: Vec<SlotId> =
            self.held.iter().filter(|(slot, held)| allowed(slot) != Some(held.grip.method())).map(|(slot, _)| *slot).collect();
        let again = |slot: SlotId| match allowed(&slot) {
            Some(_) => self.take_anew(slot, supervisor, now),
            None => self.let_go(slot, now),
        };
        let failures: Vec<String> = wrong.into_iter().map(again).filter_map(Result::err).collect();
        complain(failures)
    }

    /// Lets everybody go.
    pub fn let_all_go(&mut self, now: Duration) -> Result<u32, String> {
        let slots: Vec<SlotId> = self.held.keys().copied().collect();
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let failures: Vec<String> = slots.into_iter().filter_map(|slot| self.let_go(slot, now).err()).collect();
        self.wishes.clear();
        // Whatever is still written down, from a release that failed earlier. What was lent is the brake's.
        let late = self.undo.restore(&self.paths, |saved| matches!(saved, Saved::File { .. } | Saved::Nice { .. }));
        if failures.is_empty() && late.is_empty() { Ok(count) } else { Err([failures, late].concat().join("; ")) }
    }

    fn settle(&mut self, slot: SlotId, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        let wish = self.wishes.get(&slot).and_then(|wishes| wishes.values().copied().min_by(f64::total_cmp));
        let Some(cores) = wish else {
            self.wishes.remove(&slot);
            return match self.held.remove(&slot) {
                Some(held) => self.drop_grip(slot, held, now),
                None => Ok(()),
            };
        };
        let Some(replica) = supervisor.replica(slot).filter(|replica| replica.is_running()) else {
            self.wishes.remove(&slot);
            return Err("it is not running any more".to_owned());
        };
        let longest_stop = replica.worker.longest_stop;
        if let Some(held) = self.held.get_mut(&slot) {
            if (held.cores - cores).abs() < 1e-6 {
                return Ok(());
            }
            match &mut held.grip {
                Grip::Quota { .. } => {
                    let group = replica.life.as_ref().and_then(|life| life.group.as_ref());
                    let writes = group.map(|group| group.cpu_writes(Some(cores))).unwrap_or_default();
                    write_all(&writes)?;
                }
                Grip::Duty { .. } => self.cycles.set_rate(slot, cores, longest_stop),
                Grip::Nice { .. } => {}
            }
            held.cores = cores;
            return Ok(());
        }
        let method = self.means.method(&replica.worker).map_err(str::to_owned)?;
        let grip = match self.take(method, slot, cores, supervisor, now) {
            Ok(grip) => grip,
            // The quota of this very group may be refused (an ancestor's is smaller, the group is gone): fall back.
            Err(_) if method == Method::Cgroup && replica.worker.throttle == ThrottleMethod::Auto && self.means.duty => {
                self.take(Method::Duty, slot, cores, supervisor, now)?
            }
            Err(why) => return Err(why),
        };
        let worker = replica.worker.name.clone();
        let before = match &grip {
            Grip::Quota { stat, .. } => stat.as_ref().and_then(throttled_time).unwrap_or_default(),
            Grip::Duty { .. } | Grip::Nice { .. } => Duration::ZERO,
        };
        self.held.insert(slot, Held { worker, cores, grip, ratio: 0.0, looked: (now, before) });
        Ok(())
    }

    fn take(&mut self, method: Method, slot: SlotId, cores: f64, supervisor: &Supervisor, now: Duration) -> Result<Grip, String> {
        let replica = supervisor.replica(slot).ok_or("it is not running any more")?;
        let life = replica.life.as_ref().ok_or("it is not running any more")?;
        match method {
            Method::Cgroup => {
                let group = life.group.as_ref().ok_or("it has no group of its own")?;
                let writes = group.cpu_writes(Some(cores));
                if writes.is_empty() {
                    return Err("its group takes no CPU quota".to_owned());
                }
                let files: Vec<GroupFile> = writes.iter().map(|(file, _)| file.clone()).collect();
                for file in &files {
                    Saved::file(file)
                        .and_then(|saved| self.undo.save(saved))
                        .map_err(|error| format!("the old value of {} could not be saved: {error}", file.path().display()))?;
                }
                if let Err(why) = write_all(&writes) {
                    self.undo_files(&files);
                    return Err(why);
                }
                Ok(Grip::Quota { files, stat: group.cpu_stat() })
            }
            Method::Duty => {
                let freezer = life.group.as_ref().and_then(|group| group.freezer()).and_then(|folder| self.freezer(folder));
                let file = freezer.as_ref().map(|freezer| freezer.file().clone());
                let accounting = life.group.as_ref().and_then(|group| group.cpu_accounting().cloned());
                let (members, watch) = if freezer.is_some() && accounting.is_some() {
                    // The group knows who is in it, and is accounted as a whole.
                    (Vec::new(), Watch::default())
                } else {
                    let found = self.look_for_members(slot, Watch::default(), supervisor, now);
                    found.ok_or("its processes could not be listed")?
                };
                let tree = Tree { freezer, accounting, members };
                if let Err(error) = self.cycles.begin(slot, cores, replica.worker.longest_stop, tree, now) {
                    self.undo_files(file.as_slice());
                    return Err(format!("no thread for the duty cycle: {error}"));
                }
                Ok(Grip::Duty { freezer: file, watch })
            }
            Method::Nice => {
                let mut processes = Vec::new();
                scan::processes(&self.paths, &mut processes, &mut Vec::new())
                    .map_err(|error| format!("/proc could not be read: {error}"))?;
                let members = supervisor.members(slot, &processes).map_err(|error| error.to_string())?;
                let identities: Vec<ProcessId> = members.iter().map(Process::identity).collect();
                if let Err(why) = members.iter().try_for_each(|member| self.slow(member, now)) {
                    self.undo_priorities(&identities);
                    return Err(why);
                }
                Ok(Grip::Nice { members: identities })
            }
        }
    }

    /// Gives one process the worst priority there is.
    fn slow(&mut self, member: &Process, now: Duration) -> Result<(), String> {
        let since = now.as_secs().saturating_mul(process::ticks_per_second());
        let of_it = |error: io::Error| format!("pid {}: {error}", member.pid());
        let old = match member.priority() {
            Ok(old) => old,
            // One that has ended needs no slowing.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(error) => return Err(of_it(error)),
        };
        let saved = Saved::Nice { process: member.identity(), old, since };
        self.undo.save(saved).map_err(|error| format!("the old priority could not be saved: {error}"))?;
        match member.set_priority(Priority::IDLE) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(of_it(error)),
            _ => Ok(()),
        }
    }

    fn undo_priorities(&mut self, members: &[ProcessId]) -> Vec<String> {
        self.undo.restore(&self.paths, |saved| matches!(saved, Saved::Nice { process, .. } if members.contains(process)))
    }

    /// The freezer of a group, with its state written down: what is frozen, if only for a moment, must be thawed even if we
    /// are killed. `None` where there is none that can be used.
    fn freezer(&mut self, folder: &Arc<Folder>) -> Option<Freezer> {
        let freezer = Freezer::open(folder).ok()?;
        let saved = Saved::file(freezer.file()).ok()?;
        self.undo.save(saved).ok().map(|()| freezer)
    }

    /// The processes of a tree, if they can have changed since it was last looked through.
    fn look_for_members(&self, slot: SlotId, watch: Watch, supervisor: &Supervisor, now: Duration) -> Option<(Vec<Process>, Watch)> {
        let newest_pid = newest_pid(&self.paths.proc);
        if newest_pid.is_some() && newest_pid == watch.newest_pid {
            return None;
        }
        let mut processes = Vec::new();
        scan::processes(&self.paths, &mut processes, &mut Vec::new()).ok()?;
        // Without a descriptor to hold a member by the old list stands, and the next step looks again.
        Some((supervisor.members(slot, &processes).ok()?, Watch { scanned: now, newest_pid }))
    }

    fn undo_files(&mut self, files: &[GroupFile]) -> Vec<String> {
        self.undo.restore(&self.paths, |saved| files.iter().any(|file| saved.is_of(file)))
    }

    fn drop_grip(&mut self, slot: SlotId, held: Held, now: Duration) -> Result<(), String> {
        let (_, before) = held.looked;
        let failed = match held.grip {
            Grip::Quota { files, stat } => {
                let taken = stat.as_ref().and_then(throttled_time).unwrap_or(before);
                self.add_taken(&held.worker, taken.saturating_sub(before));
                self.undo_files(&files)
            }
            Grip::Duty { freezer, .. } => {
                let (taken, mut failed) = self.cycles.end(slot, now);
                self.add_taken(&held.worker, taken.saturating_sub(before));
                failed.extend(self.undo_files(freezer.as_slice()));
                failed
            }
            Grip::Nice { members } => self.undo_priorities(&members),
        };
        complain(failed)
    }

    fn add_taken(&mut self, worker: &Arc<str>, more: Duration) {
        *self.taken.entry(worker.clone()).or_default() += more;
    }

    /// Lets go whoever is ending, since a stopped process gets no signal, and looks for new members of stopped trees.
    pub fn step(&mut self, supervisor: &Supervisor, now: Duration) {
        let ending: Vec<SlotId> =
            self.held.keys().copied().filter(|slot| !supervisor.replica(*slot).is_some_and(|replica| replica.is_running())).collect();
        for slot in ending {
            // What cannot be put back now stays written down; `let_all_go`, the sentinel and the next start try again.
            let _ = self.let_go(slot, now);
        }
        let due: Vec<(SlotId, Watch)> = self.watched().filter(|(_, watch)| watch.scanned + SCAN_GAP <= now).collect();
        for (slot, watch) in due {
            let (found, watch) = match self.look_for_members(slot, watch, supervisor, now) {
                Some((members, watch)) => (Some(members), watch),
                None => (None, Watch { scanned: now, ..watch }),
            };
            if let Some(members) = found {
                self.cycles.set_members(slot, members);
            }
            if let Some(Held { grip: Grip::Duty { watch: old, .. }, .. }) = self.held.get_mut(&slot) {
                *old = watch;
            }
        }
    }

    /// The trees whose members have to be looked for.
    fn watched(&self) -> impl Iterator<Item = (SlotId, Watch)> + '_ {
        let watch = |(slot, held): (&SlotId, &Held)| match &held.grip {
            Grip::Duty { watch, .. } => Some((*slot, *watch)),
            _ => None,
        };
        self.held.iter().filter_map(watch).filter(|(slot, _)| self.cycles.needs_members(*slot))
    }

    /// When a tree has to be looked through again.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.watched().map(|(_, watch)| watch.scanned + SCAN_GAP).min()
    }

    /// Says whether there is a sentinel: without one nobody is stopped, and whoever is held so now is let go.
    pub fn rely_on_sentinel(&mut self, lives: bool, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        self.means.duty = lives;
        self.apply(supervisor, now)
    }

    /// Says whether groups take a quota: where they do not any more, whoever is held by one is held in another way or let
    /// go; where they do again, having forgotten what was written to them, it is written once more.
    pub fn rely_on_quota(&mut self, works: bool, supervisor: &Supervisor, now: Duration) -> Result<(), String> {
        self.means.quota = works;
        let mut failures: Vec<String> = self.apply(supervisor, now).err().into_iter().collect();
        for (slot, held) in &self.held {
            if let Grip::Quota { .. } = held.grip
                && let Some(group) = supervisor.life(*slot).and_then(|life| life.group.as_ref())
            {
                failures.extend(write_all(&group.cpu_writes(Some(held.cores))).err());
            }
        }
        complain(failures)
    }

    /// Reads how much was taken away since the last look; called once a tick.
    pub fn measure(&mut self, now: Duration) {
        let mut more: Vec<(Arc<str>, Duration)> = Vec::new();
        for (slot, held) in &mut self.held {
            let total = match &held.grip {
                Grip::Quota { stat, .. } => stat.as_ref().and_then(throttled_time).unwrap_or(held.looked.1),
                Grip::Duty { .. } => self.cycles.held_total(*slot),
                Grip::Nice { .. } => Duration::ZERO,
            };
            let (at, before) = held.looked;
            if at == now {
                continue;
            }
            let taken = total.saturating_sub(before);
            held.ratio = (taken.as_secs_f64() / now.saturating_sub(at).as_secs_f64().max(1e-3)).clamp(0.0, 1.0);
            held.looked = (now, total);
            more.push((held.worker.clone(), taken));
        }
        for (worker, taken) in more {
            self.add_taken(&worker, taken);
        }
    }

    pub fn burden(&self, slot: SlotId) -> Option<Burden> {
        let held = self.held.get(&slot)?;
        let method = held.grip.method();
        let by = if method == Method::Duty && self.cycles.freezes(slot) { "duty (freezer)" } else { method.word() };
        Some(Burden { method, by, cores: held.cores, ratio: held.ratio })
    }

    /// Goes on counting from there.
    pub fn count_on(&mut self, taken: BTreeMap<String, Duration>) {
        for (worker, taken) in taken {
            self.add_taken(&worker.into(), taken);
        }
    }

    /// Time taken away from each worker in all.
    pub fn taken(&self) -> &BTreeMap<Arc<str>, Duration> {
        &self.taken
    }

    /// Which resources want a replica held, and to how many cores; the smallest counts.
    pub fn wishes(&self, slot: SlotId) -> impl Iterator<Item = (&Resource, f64)> {
        self.wishes.get(&slot).into_iter().flatten().map(|(resource, cores)| (resource, *cores))
    }

    /// True while anybody is held for the sake of `resource`.
    pub fn holds_for(&self, resource: &Resource) -> bool {
        self.wishes.values().any(|wishes| wishes.contains_key(resource))
    }
}

/// Writes each value that is not there yet, and makes sure that the kernel took it.
fn write_all(writes: &[(GroupFile, String)]) -> Result<(), String> {
    for (file, value) in writes {
        // A quota that is written again is granted again at once.
        if file.read().is_ok_and(|found| found == *value) {
            continue;
        }
        file.write(value).map_err(|error| format!("{} = {value}: {error}", file.path().display()))?;
        match file.read() {
            Ok(found) if found == *value => {}
            Ok(found) => return Err(format!("{}: wrote {value}, found {found}", file.path().display())),
            Err(error) => return Err(format!("{}: {error}", file.path().display())),
        }
    }
    Ok(())
}

/// `throttled_usec` (v2) or `throttled_time` in nanoseconds (v1) of a group.
fn throttled_time(stat: &GroupFile) -> Option<Duration> {
    let text = stat.folder.read(stat.name).ok()?;
    let v2 = cgroupfs::value_of(&text, "throttled_usec").map(Duration::from_micros);
    v2.or_else(|| cgroupfs::value_of(&text, "throttled_time").map(Duration::from_nanos))
}

/// The last pid that was given away; while it stays the same no process was made.
fn newest_pid(proc_root: &Path) -> Option<i32> {
    std::fs::read(proc_root.join("loadavg")).ok().and_then(|text| procfs::parse_last_pid(&text))
}
