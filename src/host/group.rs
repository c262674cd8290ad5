//! Control groups of our own: made below the daemon's group, one per replica, written to and removed again.
//!
//! What works is found by doing it once at the start (make a group, set a quota, take it away), never by reading flags.
//! On v2 a group with processes cannot give controllers to its children, so the daemon first moves itself to a leaf
//! `supervisor`; it does so only where it is alone in its group, since moving others is not its business.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::cgroupfs::{self, Kind, Layout, Own, Version};
use super::clock;
use super::folder::{Folder, GroupFile, Identity};
use super::freezer::Freezer;
use super::memory_group::{self, MemoryGroup};
use super::spawn::Entrances;

/// The leaf the daemon moves to on v2, so that its old group can be the parent of worker groups.
pub const LEAF: &str = "supervisor";

/// How the folders of replicas begin: their names share the folder with the kernel's own files.
pub const REPLICA: &str = "w-";
/// What children of a v2 group are given, where it is there to give.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The file by which a v2 group gives controllers to its children.
const CONTROL: &str = "cgroup.subtree_control";
/// The folder that is made to try things out.
const PROBE: &str = "probe";
/// Of as many earlier daemons orphans may still sit in a group of the name that is wanted.
const MOST_ORPHANED: u32 = 100;

/// A quota is spent within this period unless it is too small for it: short enough that no worker is ever paused for more
/// than about 20 ms (notes: quota 2.5/10 ms gave 24.99 %, longest pause 20 ms).
const PERIOD_US: u64 = 10_000;
/// The kernel takes no quota below a millisecond.
const SMALLEST_QUOTA_US: u64 = 1_000;
/// Nor a period above a second.
const LONGEST_PERIOD_US: u64 = 1_000_000;

/// How long the kernel may take to let go of a group whose last process has ended.
const LETTING_GO: Duration = Duration::from_millis(200);

/// Writes down which group is about to be made.
type Note<'a> = &'a mut dyn FnMut(&Path) -> io::Result<()>;

/// Where groups of our own can be made, by what they are good for.
#[derive(Debug, Default)]
pub struct Groups {
    cpu: Option<(Version, Arc<Folder>)>,
    cpuacct: Option<(Version, Arc<Folder>)>,
    memory: Option<(Version, Arc<Folder>)>,
    /// The v2 tree: `cgroup.kill` and `cgroup.procs` need no controller.
    unified: Option<Arc<Folder>>,
    /// Folders made for this instance, to be removed at the end, children before parents.
    made: Vec<PathBuf>,
    /// Set while the daemon sits in a leaf of its own: (its old group).
    left: Option<PathBuf>,
    /// On v2: what was given to children at the start.
    given: Option<Given>,
    /// What does not work, each with its reason, for people.
    limitations: Vec<String>,
}

/// The controllers that children of one v2 group were given.
#[derive(Debug)]
struct Given {
    base: Arc<Folder>,
    /// `cgroup.subtree_control`, kept open.
    control: OwnedFd,
    controllers: Vec<&'static str>,
    /// Of those, taken away by others and not to be had again so far.
    missing: Vec<&'static str>,
}

/// Controllers that others have taken from the groups of replicas, with all that these had counted and held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub controllers: Vec<&'static str>,
    /// Why they could not be given again; `None`: they were.
    pub failed: Option<String>,
}

impl Given {
    fn of(base: &Arc<Folder>) -> io::Result<Given> {
        let control = base.file(CONTROL)?;
        let mut given = Given { base: base.clone(), control, controllers: Vec::new(), missing: Vec::new() };
        given.controllers = CONTROLLERS.to_vec();
        let absent = given.absent()?;
        given.controllers.retain(|controller| !absent.contains(controller));
        Ok(given)
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|given| *given == controller && !self.missing.contains(given))
    }

    /// Those that children do not have at the moment. Costs a steady tick one read.
    fn absent(&self) -> io::Result<Vec<&'static str>> {
        let mut text = [0_u8; 512];
        let length = rustix::io::pread(&self.control, &mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        let is_there = |controller: &&str| text.split(u8::is_ascii_whitespace).any(|word| word == controller.as_bytes());
        Ok(self.controllers.iter().copied().filter(|controller| !is_there(controller)).collect())
    }
}

impl Groups {
    /// No groups of our own, for the given reason.
    pub fn none(reason: &str) -> Groups {
        Groups { limitations: vec![reason.to_owned()], ..Groups::default() }
    }

    /// Tries out what can be made below our own groups. `instance` names the folder on v1 (`plimsoll-INSTANCE`).
    pub fn probe(layout: &Layout, pid: i32, instance: &str) -> Groups {
        Groups::probe_noting(layout, pid, instance, &mut |_| Ok(()))
    }

    /// The same; `note` is told of every group that outlives this call before it is made, and may refuse.
    pub fn probe_noting(layout: &Layout, pid: i32, instance: &str, note: Note) -> Groups {
        let mut groups = Groups::default();
        match &layout.unified {
            Some(own) if layout.cpu.as_ref().is_some_and(|cpu| cpu.version == Version::V2) => {
                if let Err(reason) = groups.probe_v2(own, pid, note) {
                    groups.limitations.push(format!("no groups of our own: {reason}"));
                }
            }
            // A service of systemd is given memory alone, unless it or somebody beside it has asked for CPU.
            Some(own) if layout.kind == Kind::V2 => {
                let without = |controller: &str| format!("{} has no {controller} controller", own.dir.display());
                groups.limitations.push(format!("no CPU quota: {}", without("cpu")));
                let given = if layout.memory.is_some() { groups.probe_v2(own, pid, note) } else { Err(without("memory")) };
                if let Err(reason) = given {
                    groups.limitations.push(format!("no group of our own for memory: {reason}"));
                    groups.probe_without_controllers(layout, instance, note);
                }
            }
            unified => {
                let folder = format!("plimsoll-{instance}");
                groups.cpu = groups.probe_v1(layout.cpu.as_ref(), "cpu", &folder, note);
                groups.cpuacct = groups.probe_v1(layout.cpuacct.as_ref(), "cpuacct", &folder, note);
                groups.memory = groups.probe_v1(layout.memory.as_ref(), "memory", &folder, note);
                // `cgroup_no_v1=memory`: below a group that gives children no controllers, a group says nothing of memory.
                if let Some((_, base)) = groups.memory.take_if(|(version, base)| *version == Version::V2 && !base.has("memory.current")) {
                    groups
                        .limitations
                        .push(format!("no group of our own for memory: {} is given no such controller", base.path().display()));
                }
                groups.unified = groups.probe_v1(unified.as_ref(), "the v2 tree", &folder, note).map(|(_, base)| base);
                if let Some((_, base)) = groups.cpu.clone()
                    && let Err(error) = try_quota(Version::V1, &base)
                {
                    groups.limitations.push(format!("no CPU quota: {}: {error}", base.path().display()));
                    groups.cpu = None;
                }
            }
        }
        groups
    }

    /// On v2 where children can be given none: they can be frozen, killed and accounted for all the same.
    fn probe_without_controllers(&mut self, layout: &Layout, instance: &str, note: Note) {
        let folder = format!("plimsoll-{instance}");
        self.cpuacct = self.probe_v1(layout.cpuacct.as_ref(), "cpuacct", &folder, note);
        self.unified = self.probe_v1(layout.unified.as_ref(), "the v2 tree", &folder, note).map(|(_, base)| base);
    }

    fn probe_v1(&mut self, own: Option<&Own>, what: &str, folder: &str, note: Note) -> Option<(Version, Arc<Folder>)> {
        let Some(own) = own else {
            self.limitations.push(format!("no group of our own for {what}: not mounted here"));
            return None;
        };
        let base = own.dir.join(folder);
        match note(&base).and_then(|()| make(&base)).and_then(|_| Folder::open(&base)) {
            Ok(folder) => {
                // It was there: left by a daemon that was killed and whose number we were given, with its undo log lost.
                // Nobody else would ever remove it.
                remove_replicas(&base);
                if !self.made.contains(&base) {
                    self.made.push(base);
                }
                Some((own.version, Arc::new(folder)))
            }
            Err(error) => {
                self.limitations.push(format!("no group of our own for {what}: {}: {error}", base.display()));
                None
            }
        }
    }

    fn probe_v2(&mut self, own: &Own, pid: i32, note: Note) -> Result<(), String> {
        let base = self.enter_leaf(own, pid, note)?;
        let base = Folder::open(&base).map(Arc::new).map_err(|error| at(&base, &error))?;
        let mut given = Given::of(&base).map_err(|error| at(&base.path().join(CONTROL), &error))?;
        if given.has("cpu")
            && let Err(error) = try_quota(Version::V2, &base)
        {
            self.limitations.push(format!("no CPU quota: {}: {error}", base.path().display()));
            given.controllers.retain(|controller| *controller != "cpu");
        }
        self.rely_on(given);
        // Every v2 group accounts CPU time, with or without the controller.
        self.cpuacct = Some((Version::V2, base.clone()));
        self.unified = Some(base);
        Ok(())
    }

    fn rely_on(&mut self, given: Given) {
        let base = |controller: &str| given.has(controller).then(|| (Version::V2, given.base.clone()));
        (self.cpu, self.memory) = (base("cpu"), base("memory"));
        self.given = Some(given);
    }

    /// Gives again what was given to children at the start and others have taken away since: systemd does so to a unit
    /// without `Delegate=` whenever it looks at its groups anew (`daemon-reload`, `set-property`). What it cannot give it is
    /// asked for again the next time. `None`: nothing has changed.
    pub fn keep_controllers(&mut self) -> Option<Taken> {
        let given = self.given.as_ref()?;
        // A group that cannot be read is gone, and we with it.
        let absent = given.absent().ok()?;
        if absent.is_empty() && given.missing.is_empty() {
            return None;
        }
        let give = |controller: &&'static str| Some((*controller, given.base.write(CONTROL, &format!("+{controller}")).err()?));
        let (missing, mut errors): (Vec<&'static str>, Vec<io::Error>) = absent.iter().filter_map(give).unzip();
        if absent == given.missing && missing == given.missing {
            return None;
        }
        let failed = errors.pop().map(|error| at(&given.base.path().join(CONTROL), &error));
        let controllers = if absent.is_empty() { given.missing.clone() } else { absent };
        let given = Given { missing, ..self.given.take()? };
        self.rely_on(given);
        Some(Taken { controllers, failed })
    }

    /// Makes our own v2 group a parent: moves us to a leaf and gives controllers to children. Returns the parent.
    fn enter_leaf(&mut self, own: &Own, pid: i32, note: Note) -> Result<PathBuf, String> {
        // `DelegateSubgroup=supervisor` put us into the leaf already.
        let already = own.dir != own.mount && own.dir.file_name().is_some_and(|name| name == LEAF);
        let base = match own.dir.parent() {
            Some(parent) if already => parent.to_path_buf(),
            _ => own.dir.clone(),
        };
        if !already {
            let present = Folder::open(&base).and_then(|folder| folder.members());
            let others: Vec<i32> = present.map_err(|e| at(&base, &e))?.into_iter().filter(|member| *member != pid).collect();
            if !others.is_empty() {
                return Err(format!(
                    "{} holds other processes too (pid {}…); give the daemon a group of its own, for example Delegate=yes in a systemd unit",
                    base.display(),
                    others.first().copied().unwrap_or_default(),
                ));
            }
            let leaf = base.join(LEAF);
            if note(&leaf).and_then(|()| make(&leaf)).map_err(|e| at(&leaf, &e))? {
                self.made.push(leaf.clone());
            }
            write(&leaf, "cgroup.procs", &pid.to_string()).map_err(|e| at(&leaf, &e))?;
            self.left = Some(base.clone());
        }
        remove_replicas(&base);
        let available = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        for controller in CONTROLLERS {
            if available.split_whitespace().any(|word| word == controller)
                && let Err(error) = write(&base, CONTROL, &format!("+{controller}"))
            {
                self.limitations.push(format!("no {controller} control for workers: {}: {error}", base.display()));
            }
        }
        Ok(base)
    }

    /// What a daemon that replaces itself tells: its group before it moved to a leaf, and the folders it made.
    pub fn hand_over(&self) -> (Option<PathBuf>, Vec<PathBuf>) {
        (self.left.clone(), self.made.clone())
    }

    /// Takes over what [`Groups::hand_over`] told, to be removed at the end.
    pub fn inherit(&mut self, left: Option<PathBuf>, made: Vec<PathBuf>) {
        self.left = left;
        self.made = made.into_iter().filter(|folder| !self.made.contains(folder)).chain(self.made.iter().cloned()).collect();
    }

    /// The groups of a replica that an earlier daemon made, where they are below the ones groups are made in now.
    pub fn reopen(&self, identities: &[(PathBuf, Identity)]) -> Option<Group> {
        let mut folders: Vec<Arc<Folder>> = Vec::new();
        for (path, identity) in identities {
            folders.push(Arc::new(Folder::open(path).ok().filter(|folder| folder.identity() == *identity)?));
        }
        let below = |base: &Folder| folders.iter().find(|folder| folder.path().parent() == Some(base.path())).cloned();
        let place = |base: &Option<(Version, Arc<Folder>)>| match base {
            // One that is wanted now and was not made then: it is to be made anew.
            Some((version, base)) => below(base).map(|folder| Some((*version, folder))),
            None => Some(None),
        };
        let unified = match &self.unified {
            Some(base) => Some(below(base)?),
            None => None,
        };
        let (cpu, cpuacct, memory) = (place(&self.cpu)?, place(&self.cpuacct)?, place(&self.memory)?);
        let mut group = Group { cpu, cpuacct, memory, unified, folders, ..Group::default() };
        group.oom_kills_before = group.oom_kills().unwrap_or(0);
        Some(group)
    }

    /// True when a CPU quota can be set on groups made here.
    pub fn has_quota(&self) -> bool {
        self.cpu.is_some()
    }

    /// Tries out, on a group made for the purpose, whether a line for memory can be set and memory asked back. `None` where
    /// no memory groups can be made.
    pub fn try_memory(&self) -> Option<memory_group::Tried> {
        let (version, base) = self.memory.as_ref()?;
        Some(match probe_in(base) {
            Ok(folder) => {
                let tried = memory_group::probe(*version, &folder);
                let _ = folder.remove();
                tried
            }
            Err(error) => memory_group::Tried::failed(*version, &at(base.path(), &error)),
        })
    }

    /// Tries out whether a group made for the purpose can be frozen.
    pub fn try_freeze(&self) -> Result<(), String> {
        let base = self.unified.as_ref().ok_or("no groups of our own in the v2 tree")?;
        let tried = probe_in(base).and_then(|folder| {
            let freezer = Freezer::open(&folder)?;
            let result = freezer.freeze().and_then(|()| freezer.thaw());
            let _ = folder.remove();
            result
        });
        tried.map_err(|error| at(base.path(), &error))
    }

    /// What does not work here, each with its reason.
    pub fn limitations(&self) -> &[String] {
        &self.limitations
    }

    /// Every folder that was made so far for this instance.
    pub fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// Makes the groups of one replica; `name` is unique among the living. `None` where nothing can be made at all.
    pub fn create(&self, name: &str) -> io::Result<Option<Group>> {
        // A group of this name may be left from an earlier daemon, with orphans in it: they are none of the replica's.
        let mut again = (1..=MOST_ORPHANED).map(|number| format!("{name}+{number}"));
        let mut name = name.to_owned();
        loop {
            match self.create_new(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name = again.next().ok_or(error)?,
                result => return result,
            }
        }
    }

    fn create_new(&self, name: &str) -> io::Result<Option<Group>> {
        let mut group = Group::default();
        let result = (|| {
            let mut place = |base: Option<&(Version, Arc<Folder>)>| -> io::Result<Option<(Version, Arc<Folder>)>> {
                let Some((version, base)) = base else { return Ok(None) };
                let path = base.path().join(name);
                // On v2 all of them are the same.
                if let Some(made) = group.folders.iter().find(|made| made.path() == path) {
                    return Ok(Some((*version, made.clone())));
                }
                let folder = Arc::new(base.make(name)?);
                group.folders.push(folder.clone());
                Ok(Some((*version, folder)))
            };
            let cpu = place(self.cpu.as_ref())?;
            let cpuacct = place(self.cpuacct.as_ref())?;
            let memory = place(self.memory.as_ref())?;
            let unified = place(self.unified.clone().map(|base| (Version::V2, base)).as_ref())?.map(|(_, folder)| folder);
            Ok((cpu, cpuacct, memory, unified))
        })();
        match result {
            Ok(_) if group.folders.is_empty() => Ok(None),
            Ok((cpu, cpuacct, memory, unified)) => {
                group = Group { cpu, cpuacct, memory, unified, ..group };
                group.oom_kills_before = group.oom_kills().unwrap_or(0);
                Ok(Some(group))
            }
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }

    /// Removes what was made, after the replicas' groups are gone, and moves the daemon back where it was.
    pub fn remove(&mut self) {
        if let Some(base) = self.left.take() {
            remove_replicas(&base);
            for controller in CONTROLLERS {
                // Refused while a replica's group is left; nothing can be done about that, and the next start sweeps it.
                let _ = write(&base, CONTROL, &format!("-{controller}"));
            }
            let _ = write(&base, "cgroup.procs", "0");
        }
        for folder in self.made.drain(..).rev() {
            // A replica's group may have been refused when its last process was just leaving it.
            let _ = Folder::open(&folder).and_then(|folder| remove_with_replicas(&folder));
        }
    }
}

/// The groups of one replica: one folder on v2, one per controller on v1. They are reached through descriptors alone, so
/// that nothing is ever read from or written to another group that was given the same name.
#[derive(Debug, Default)]
pub struct Group {
    cpu: Option<(Version, Arc<Folder>)>,
    cpuacct: Option<(Version, Arc<Folder>)>,
    memory: Option<(Version, Arc<Folder>)>,
    unified: Option<Arc<Folder>>,
    /// Each folder once.
    folders: Vec<Arc<Folder>>,
    oom_kills_before: u64,
    /// What its processes had before is not in its memory account.
    is_partial: bool,
    /// Somebody of the replica is not in it.
    is_left: bool,
}

impl Group {
    /// How a process that is started gets into the groups. On v1 a lone thread that writes itself to `tasks` is moved at once;
    /// `cgroup.procs` waits until no process of the machine is being forked, and holds those up.
    pub fn entrances(&self) -> io::Result<Entrances> {
        let mut entrances = Entrances::default();
        for folder in &self.folders {
            if self.unified.as_ref().is_some_and(|unified| Arc::ptr_eq(unified, folder)) {
                entrances.into = Some(folder.descriptor()?);
                entrances.into_file = Some(folder.entrance("cgroup.procs")?);
            } else {
                let file = if folder.has("tasks") { "tasks" } else { "cgroup.procs" };
                entrances.files.push(folder.entrance(file)?);
            }
        }
        Ok(entrances)
    }

    /// Moves a process that runs already into the groups.
    pub fn take_in(&self, pid: i32) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| folder.write("cgroup.procs", &pid.to_string()))
    }

    /// Its folders, each with what makes it this very one.
    pub fn identities(&self) -> Vec<(PathBuf, Identity)> {
        self.folders.iter().map(|folder| (folder.path().to_path_buf(), folder.identity())).collect()
    }

    /// Everybody in it, descendants that left the session or were reparented included; `None` if no folder can be read.
    pub fn members(&self) -> Option<Vec<i32>> {
        let folder = self.unified.as_ref().or_else(|| self.folders.first())?;
        folder.members().ok()
    }

    pub fn cpu_accounting(&self) -> Option<&Arc<Folder>> {
        self.cpuacct.as_ref().map(|(_, folder)| folder)
    }

    /// The folder in the v2 tree, where a [`super::freezer::Freezer`] may be opened.
    pub fn freezer(&self) -> Option<&Arc<Folder>> {
        self.unified.as_ref().filter(|_| !self.is_left)
    }

    /// Whether a process whose `/proc/PID/cgroup` says `text` is in these groups, or in groups below them. A tree that is not
    /// spoken of is no evidence. Names are compared and not paths: those are as our own cgroup namespace shows them, and the
    /// name of a replica's group is unique among the living.
    pub fn holds(&self, text: &[u8]) -> bool {
        let unified = self.unified.as_ref().map(|folder| (Version::V2, folder));
        let controllers = [("cpu", &self.cpu), ("cpuacct", &self.cpuacct), ("memory", &self.memory)];
        let of_controllers =
            controllers.into_iter().filter_map(|(name, place)| Some((name, place.as_ref().map(|(v, folder)| (*v, folder))?)));
        of_controllers.chain(unified.map(|place| ("", place))).all(|(controller, (version, folder))| {
            let controller = if version == Version::V2 { "" } else { controller };
            let name = folder.path().file_name().unwrap_or_default().as_bytes();
            let path = text.split(|byte| *byte == b'\n').find_map(|line| {
                let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
                let is_ours = fields.next()?.split(|byte| *byte == b',').any(|word| word == controller.as_bytes());
                fields.next().filter(|_| is_ours)
            });
            // On v1 whoever is ending is said to be at the top.
            let is_evidence = |path: &&[u8]| version == Version::V2 || *path != b"/";
            path.filter(is_evidence).is_none_or(|path| path.split(|byte| *byte == b'/').any(|part| part == name))
        })
    }

    /// Takes note that somebody of the replica is in other groups (a login session of `su`, whatever a worker or an
    /// administrator has set up): what is held or counted here is not the whole replica. It can still be killed and removed.
    pub fn leave(&mut self) {
        (self.cpu, self.cpuacct) = (None, None);
        (self.is_partial, self.is_left) = (true, true);
    }

    /// What is not seen by looking at its folders: whether its memory is counted whole, whether it was left, and how often the kernel
    /// had ended somebody in it before. For whoever opens it anew.
    pub fn account(&self) -> (bool, bool, u64) {
        (self.is_partial, self.is_left, self.oom_kills_before)
    }

    /// Takes in what [`Group::account`] said.
    pub fn resume(&mut self, (is_partial, is_left, oom_kills_before): (bool, bool, u64)) {
        if is_left {
            self.leave();
        }
        self.is_partial |= is_partial;
        self.oom_kills_before = oom_kills_before;
    }

    pub fn is_left(&self) -> bool {
        self.is_left
    }

    /// Takes note that the memory controller was taken away: if it is given again, it begins to count at nothing, and what
    /// was charged before stays with the group above.
    pub fn begin_anew(&mut self) {
        self.is_partial = true;
        self.oom_kills_before = 0;
    }

    fn whole_memory(&self) -> Option<&(Version, Arc<Folder>)> {
        self.memory.as_ref().filter(|_| !self.is_partial)
    }

    /// Its memory controller's files, bound to this very group. `None` also where they do not tell of all its memory.
    pub fn memory_group(&self) -> Option<MemoryGroup> {
        self.whole_memory().map(|(version, folder)| MemoryGroup::new(*version, folder.clone()))
    }

    /// As [`Group::memory_group`], the folder.
    pub fn memory_accounting(&self) -> Option<&Arc<Folder>> {
        self.whole_memory().map(|(_, folder)| folder)
    }

    /// The writes that hold the group to `cores` of CPU (`None`: to nothing), in the order in which they must be done.
    /// Empty where no quota can be set.
    pub fn cpu_writes(&self, cores: Option<f64>) -> Vec<(GroupFile, String)> {
        let Some((version, folder)) = &self.cpu else { return Vec::new() };
        let quota = cores.map(quota_us);
        let file = |name| GroupFile { folder: folder.clone(), name };
        match (version, quota) {
            (Version::V2, Some((quota, period))) => vec![(file("cpu.max"), format!("{quota} {period}"))],
            (Version::V2, None) => vec![(file("cpu.max"), "max 100000".to_owned())],
            // The period first: a quota larger than the old period would otherwise be judged by that.
            (Version::V1, Some((quota, period))) => {
                vec![(file("cpu.cfs_period_us"), period.to_string()), (file("cpu.cfs_quota_us"), quota.to_string())]
            }
            (Version::V1, None) => {
                vec![(file("cpu.cfs_quota_us"), "-1".to_owned()), (file("cpu.cfs_period_us"), "100000".to_owned())]
            }
        }
    }

    /// Where the kernel counts how long the group was held by its quota.
    pub fn cpu_stat(&self) -> Option<GroupFile> {
        self.cpu.as_ref().map(|(_, folder)| GroupFile { folder: folder.clone(), name: "cpu.stat" })
    }

    /// Kills everybody in it at once, forks in flight included. False where the kernel has no `cgroup.kill` for us.
    pub fn kill(&self) -> bool {
        self.unified.as_ref().is_some_and(|folder| folder.write("cgroup.kill", "1").is_ok())
    }

    /// True when the kernel's OOM killer has ended a process in it since it was made.
    pub fn was_oom_killed(&self) -> bool {
        self.oom_kills().is_some_and(|now| now > self.oom_kills_before)
    }

    fn oom_kills(&self) -> Option<u64> {
        let (version, folder) = self.memory.as_ref()?;
        let file = match version {
            Version::V2 => "memory.events",
            Version::V1 => "memory.oom_control",
        };
        cgroupfs::value_of(&folder.read(file).ok()?, "oom_kill")
    }

    /// The largest memory it has held, in bytes, where the kernel keeps that.
    pub fn peak_memory(&self) -> Option<u64> {
        let (version, folder) = self.whole_memory()?;
        let file = match version {
            Version::V2 => "memory.peak",
            Version::V1 => "memory.max_usage_in_bytes",
        };
        cgroupfs::parse_number(&folder.read(file).ok()?)
    }

    /// Removes its folders. False when one is still held: by somebody in it, or (`EBUSY` as well) for a moment after its last
    /// process was reaped, while a processor is still switching away from that.
    pub fn remove(&self) -> bool {
        let mut is_held = false;
        for folder in &self.folders {
            is_held |= matches!(folder.remove(), Err(error) if error.kind() == io::ErrorKind::ResourceBusy);
        }
        !is_held
    }
}

/// Removes all of them, waiting up to [`LETTING_GO`] for the kernel. Those that somebody is in stay: that is seen when the folder they
/// are in cannot be removed.
pub fn remove_all(mut groups: Vec<Group>) {
    let _ = clock::until(LETTING_GO, || {
        groups.retain(|group| !group.remove());
        Ok(groups.is_empty())
    });
}

/// Quota and period in microseconds for so many cores.
fn quota_us(cores: f64) -> (u64, u64) {
    // Bounds first: the cast would saturate, but a quota of years is refused by the kernel.
    let cores = if cores.is_finite() { cores.clamp(0.001, 4096.0) } else { 4096.0 };
    // As short as the smallest quota allows: each write of a quota grants a whole one at once, debts forgiven, so that what
    // is shared anew four times a second would be exceeded by 6 ms each time with a period of 100 ms.
    let period = ((SMALLEST_QUOTA_US as f64 / cores).ceil() as u64).clamp(PERIOD_US, LONGEST_PERIOD_US);
    (((cores * period as f64).round() as u64).max(SMALLEST_QUOTA_US), period)
}

/// A group made for the purpose of trying something out.
fn probe_in(base: &Folder) -> io::Result<Arc<Folder>> {
    let path = base.path().join(PROBE);
    make(&path)?;
    Ok(Arc::new(Folder::open(&path)?))
}

/// Sets and unsets a quota on a group made for the purpose.
fn try_quota(version: Version, base: &Folder) -> io::Result<()> {
    let folder = probe_in(base)?;
    let group = Group { cpu: Some((version, folder.clone())), ..Group::default() };
    let result = [Some(0.5), None].into_iter().flat_map(|cores| group.cpu_writes(cores)).try_for_each(|(file, value)| file.write(&value));
    folder.remove()?;
    result
}

/// Removes a folder of ours and the empty groups of replicas in it. One that still holds a process stays, and so does
/// what it is in.
pub fn remove_with_replicas(folder: &Folder) -> io::Result<()> {
    remove_replicas(folder.path());
    folder.remove()
}

/// Removes the empty groups of replicas in `folder`.
fn remove_replicas(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(REPLICA) || name == PROBE) {
            // Refused by the kernel while anybody is in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Makes one folder; true if it was not there before.
fn make(folder: &Path) -> io::Result<bool> {
    match fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file of our own group, which cannot go while we are in it.
fn write(folder: &Path, name: &str, value: &str) -> io::Result<()> {
    Folder::open(folder)?.write(name, value)
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_quotas_get_longer_periods() {
        assert_eq!(quota_us(0.25), (2_500, 10_000));
        assert_eq!(quota_us(1.6), (16_000, 10_000));
        assert_eq!(quota_us(0.05), (1_000, 20_000));
        assert_eq!(quota_us(0.06), (1_000, 16_667));
        assert_eq!(quota_us(0.001), (1_000, 1_000_000));
    }

    /// Where we are alone there is more: the machine `parent-limit`, and a kernel in tests/system.
    #[test]
    fn without_controllers_for_children_they_can_still_be_frozen_and_accounted_for() {
        let cases = [("memory pids", "7\n8\n", "holds other processes too"), ("", "7\n", "a.service has no memory controller")];
        for (controllers, members, why) in cases {
            let top = tempfile::tempdir().unwrap();
            let dir = top.path().join("a.service");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
            fs::write(dir.join("cgroup.procs"), members).unwrap();
            let own = Own { version: Version::V2, mount: top.path().into(), dir: dir.clone() };
            let memory = (!controllers.is_empty()).then(|| own.clone());
            let layout = Layout { kind: Kind::V2, memory, cpuacct: Some(own.clone()), unified: Some(own), ..Layout::none() };
            let groups = Groups::probe(&layout, 7, "7");
            assert!(groups.cpuacct.is_some() && groups.unified.is_some() && groups.memory.is_none() && !groups.has_quota());
            assert_eq!(groups.made(), [dir.join("plimsoll-7")]);
            let [quota, memory] = groups.limitations() else { panic!("{:?}", groups.limitations()) };
            assert!(quota.ends_with("a.service has no cpu controller") && memory.contains(why), "{quota}; {memory}");
        }
    }

    #[test]
    fn what_a_killed_daemon_of_our_number_left_is_ours_to_remove() {
        let top = tempfile::tempdir().unwrap();
        let own = Own { version: Version::V1, mount: top.path().into(), dir: top.path().into() };
        let layout = Layout { kind: Kind::V1, cpuacct: Some(own.clone()), unified: Some(own), ..Layout::none() };
        let base = top.path().join("plimsoll-7");
        for name in ["w-idle.0-1", "w-busy.0-2/still-in-use", "not-a-replica"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let mut groups = Groups::probe(&layout, 7, "7");
        let left = || {
            let mut names: Vec<_> = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left(), ["not-a-replica", "w-busy.0-2"]);
        assert_eq!(groups.made(), std::slice::from_ref(&base));
        groups.remove();
        assert_eq!(left(), ["not-a-replica", "w-busy.0-2"], "what is in use stays");
        fs::remove_dir_all(&base).unwrap();
        fs::create_dir(&base).unwrap();
        Groups::probe(&layout, 7, "7").remove();
        assert!(!base.exists());
    }

    #[test]
    fn who_has_left_its_groups_is_found_by_their_name() {
        let top = tempfile::tempdir().unwrap();
        let base = Folder::open(top.path()).unwrap();
        let folder = Arc::new(base.make("w-web.0-17").unwrap());
        let v1 = || Some((Version::V1, folder.clone()));
        let joined = Group { cpu: v1(), cpuacct: v1(), memory: v1(), unified: Some(folder.clone()), ..Group::default() };
        let inside = b"9:cpu,cpuacct:/x/plimsoll-7/w-web.0-17\n4:memory:/x/plimsoll-7/w-web.0-17\n1:name=systemd:/user.slice\n0::/w-web.0-17/below\n";
        assert!(joined.holds(inside));
        assert!(!joined.holds(b"9:cpu,cpuacct:/x/plimsoll-7/w-web.0-17\n4:memory:/user.slice\n0::/w-web.0-17\n"));
        assert!(!joined.holds(b"9:cpu,cpuacct:/x/w-web.0-170\n4:memory:/w-web.0-17\n0::/w-web.0-17\n"));
        assert!(joined.holds(b"") && joined.holds(b"9:cpu"), "what says nothing is no evidence");
        assert!(joined.holds(b"9:cpu,cpuacct:/\n4:memory:/\n0::/w-web.0-17\n"), "so v1 speaks of who is ending");
        let v2 = Group { cpu: Some((Version::V2, folder.clone())), unified: Some(folder.clone()), ..Group::default() };
        assert!(v2.holds(b"0::/../w-web.0-17\n") && !v2.holds(b"0::/user.slice/session-3.scope\n"));
        assert!(v2.holds(b"3:memory:/user.slice\n0::/w-web.0-17\n"), "a tree in which it has no group");
    }

    #[test]
    fn controllers_that_others_take_away_are_given_again() {
        let top = tempfile::tempdir().unwrap();
        let control = top.path().join(CONTROL);
        fs::write(&control, "cpuset cpu memory pids\n").unwrap();
        let base = Arc::new(Folder::open(top.path()).unwrap());
        let mut groups = Groups::default();
        groups.rely_on(Given::of(&base).unwrap());
        assert_eq!(groups.keep_controllers(), None);
        assert!(groups.has_quota() && groups.memory.is_some());

        fs::write(&control, "cpuset pids\n").unwrap();
        assert_eq!(groups.keep_controllers(), Some(Taken { controllers: vec!["cpu", "memory"], failed: None }));
        assert_eq!(fs::read_to_string(&control).unwrap(), "+memorypids\n", "no kernel reads it here: the last write over the first");
        assert!(groups.has_quota() && groups.memory.is_some());

        // Refused: said once, tried each time, and nobody is promised a quota meanwhile.
        fs::write(&control, "memory pids\n").unwrap();
        fs::rename(&control, top.path().join("elsewhere")).unwrap();
        let taken = groups.keep_controllers().unwrap();
        assert_eq!(taken.controllers, ["cpu"]);
        assert!(taken.failed.unwrap().contains("cgroup.subtree_control: No such file"));
        assert!(!groups.has_quota() && groups.memory.is_some());
        assert_eq!(groups.keep_controllers(), None);
        fs::write(top.path().join("elsewhere"), "cpu memory pids\n").unwrap();
        assert_eq!(groups.keep_controllers(), Some(Taken { controllers: vec!["cpu"], failed: None }));
        assert!(groups.has_quota());
        assert_eq!(groups.keep_controllers(), None);
    }

    #[test]
    fn memory_on_v2_beside_a_v1_cpu_is_claimed_only_where_children_are_given_it() {
        let top = tempfile::tempdir().unwrap();
        let own = Own { version: Version::V2, mount: top.path().into(), dir: top.path().into() };
        let layout = Layout { kind: Kind::Hybrid, memory: Some(own.clone()), unified: Some(own), ..Layout::none() };
        let groups = Groups::probe(&layout, 7, "7");
        assert!(groups.memory.is_none() && groups.unified.is_some());
        assert!(groups.limitations().iter().any(|told| told.contains("is given no such controller")), "{:?}", groups.limitations());
        fs::write(top.path().join("plimsoll-7/memory.current"), "0\n").unwrap();
        assert!(Groups::probe(&layout, 7, "7").memory.is_some());
    }

    proptest! {
        #[test]
        fn any_text_may_stand_where_groups_are_told(text: Vec<u8>) {
            let top = tempfile::tempdir().unwrap();
            let folder = Arc::new(Folder::open(top.path()).unwrap());
            let _ = Group { cpu: Some((Version::V1, folder.clone())), unified: Some(folder), ..Group::default() }.holds(&text);
        }

        #[test]
        fn a_quota_is_always_one_the_kernel_takes(cores: f64) {
            let (quota, period) = quota_us(cores);
            prop_assert!((1_000..=LONGEST_PERIOD_US).contains(&period) && quota >= SMALLEST_QUOTA_US);
            if (0.001..4096.0).contains(&cores) {
                prop_assert!((quota as f64 / period as f64 - cores).abs() <= 0.5 / period as f64 + cores * 1e-9);
            }
        }
    }
}
