//! Workers that somebody else starts: looked for, taken, lost, looked for again, and let go. Who may be taken is decided by
//! [`super::adoption`]; how one is restarted is in `restarting.rs`.
//!
//! The same states as any other worker's: `Waiting` while it is not there, `Running` from the moment it is found. It is never moved,
//! so it has no group of ours, and never asked to end but where `may_end` allows that and somebody, or memory, wants it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::adopt::{self, AdoptBy};
use crate::config::settings::Worker;
use crate::host::clock::Moment;
use crate::host::foreign::{self, ForeignGroup, NoGroup};
use crate::host::process::{self, Process};
use crate::host::procfs::Stat;
use crate::host::{Paths, accounts, scan};
use crate::journal::Event;
use crate::sampling::readings::SlotId;

use super::adoption::{self, MOST_FOUND, Scene};
use super::orphans;
use super::replica::{Life, Replica};
use super::roster;
use super::state::State;
use super::supervisor::Supervisor;

/// Where all that match are there, others may come: they are looked for this often.
const NEWCOMERS_GAP: Duration = Duration::from_secs(10);

/// How far the search for a worker is.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Compiled once.
    expression: Option<regex_lite::Regex>,
    /// Since when somebody is missing.
    away: Option<Duration>,
    next_look: Duration,
    /// Why it is not there, as it was told last.
    told: Option<String>,
}

/// A process that may be taken.
#[derive(Debug)]
struct Find {
    stat: Stat,
    group: Option<Arc<ForeignGroup>>,
}

/// What the first step of a search has found, short of looking at processes.
enum Trace {
    Pid(foreign::Pidfile),
    Group(ForeignGroup),
    Anybody,
}

impl Supervisor {
    /// Looks for those that are not there, when that is due.
    pub(super) fn look_for_adopted(&mut self, now: Moment, events: &mut Vec<Event>) {
        self.look_after_restarts(now, events);
        if self.closing || !self.workers.iter().any(|worker| worker.adopt.is_some()) {
            return;
        }
        let due: Vec<Arc<Worker>> = self.workers.iter().filter(|worker| self.is_search_due(worker, now.steady)).cloned().collect();
        let mut look = Look::default();
        // By name: of two who want the same process the first gets it.
        for worker in due {
            self.search(&worker, &mut look, now, events);
        }
        self.note_who_waits();
    }

    fn is_search_due(&self, worker: &Worker, now: Duration) -> bool {
        self.next_search(worker).is_some_and(|at| at <= now)
    }

    /// When this worker is looked for again. `None`: all of it is there, or is not to be.
    fn next_search(&self, worker: &Worker) -> Option<Duration> {
        let adopt = worker.adopt.as_ref()?;
        let search = self.searches.get(&worker.name);
        let mut copies = self.replicas.iter().filter(|replica| replica.worker.name == worker.name && replica.is_main());
        if copies.clone().any(is_away) {
            // Just lost, or never looked for: at once.
            return Some(search.filter(|search| search.away.is_some()).map_or(Duration::ZERO, |search| search.next_look));
        }
        let takes_more = matches!(adopt.by, AdoptBy::Match { .. })
            && copies.clone().count() < MOST_FOUND
            && copies.all(|replica| replica.state() != State::Stopped);
        takes_more.then(|| search.map_or(Duration::ZERO, |search| search.next_look))
    }

    /// When anybody is looked for.
    pub(super) fn next_adoption(&self) -> Option<Duration> {
        if self.closing {
            return None;
        }
        self.workers.iter().filter_map(|worker| self.next_search(worker)).min()
    }

    fn search(&mut self, worker: &Arc<Worker>, look: &mut Look, now: Moment, events: &mut Vec<Event>) {
        let Some(adopt) = &worker.adopt else { return };
        let (finds, why) = match self.find(&adopt.by, &worker.name, look, now) {
            Ok(finds) => (finds, String::new()),
            Err(why) => (Vec::new(), why),
        };
        let mut failed = None;
        for find in finds {
            if let Some(place) = self.place_for(worker)
                && let Err(why) = self.take(place, find, look, now, events)
            {
                failed = Some(why);
            }
        }
        self.drop_superfluous(worker);
        let index =
            self.replicas.iter().find(|replica| replica.worker.name == worker.name && is_away(replica)).map(|replica| replica.index);
        let search = self.searches.entry(worker.name.clone()).or_default();
        let Some(index) = index else {
            (search.away, search.told) = (None, None);
            search.next_look = now.steady + NEWCOMERS_GAP;
            return;
        };
        let away = *search.away.get_or_insert(now.steady);
        search.next_look = now.steady + adoption::look_gap(now.steady.saturating_sub(away));
        let why = failed.unwrap_or(why);
        let detail = if why.is_empty() { adopt.by.to_string() } else { format!("{}: {why}", adopt.by) };
        if search.told.as_ref() != Some(&detail) {
            events.push(Event::WorkerLost { worker: worker.name.to_string(), replica: index, detail: detail.clone() });
            search.told = Some(detail);
        }
    }

    /// # Errors
    /// Why nobody is found, for people; empty where there is simply nobody.
    fn find(&mut self, by: &AdoptBy, name: &Arc<str>, look: &mut Look, now: Moment) -> Result<Vec<Find>, String> {
        let paths = self.around.paths.clone();
        let trace = trace_live(&paths, by)?;
        if look.processes.is_empty() {
            look.fill(&paths, &mut self.scratch)?;
            look.taken = self.taken(&look.processes);
        }
        let search = self.searches.entry(name.clone()).or_default();
        let seeker = Seeker { paths: &paths, keeper: self.around.keeper, worker: name, look };
        seeker.choose(trace, by, &mut search.expression, now)
    }

    /// Everybody in the tree of a worker, whoever has started it, and of a restart command that runs: what that starts may be
    /// taken once the command has ended.
    fn taken(&self, processes: &[Stat]) -> HashMap<(i32, u64), String> {
        let keeper = self.around.keeper;
        let mut taken = HashMap::new();
        for replica in &self.replicas {
            let Some(life) = &replica.life else { continue };
            taken.extend(life.living(keeper, processes).iter().map(|stat| ((stat.pid, stat.started), replica.worker.name.to_string())));
        }
        for (worker, tree) in self.restarts_running(processes) {
            taken.extend(tree.iter().map(|stat| ((stat.pid, stat.started), worker.clone())));
        }
        taken
    }

    /// A replica of the worker without a process: one that is there, or one more of those that match.
    fn place_for(&mut self, worker: &Arc<Worker>) -> Option<usize> {
        let of_it = |replica: &Replica| replica.worker.name == worker.name;
        if let Some(place) = self.replicas.iter().position(|replica| of_it(replica) && is_away(replica)) {
            return Some(place);
        }
        let indices: Vec<u32> = self.replicas.iter().filter(|replica| of_it(replica)).map(|replica| replica.index).collect();
        let is_many = matches!(worker.adopt.as_ref().map(|adopt| &adopt.by), Some(AdoptBy::Match { .. }));
        let index = (0..u32::try_from(MOST_FOUND).unwrap_or(0)).find(|index| !indices.contains(index)).filter(|_| is_many)?;
        self.replicas.push(Replica::new(worker.clone(), index));
        Some(self.replicas.len() - 1)
    }

    /// Of those that match, one place is kept where nobody is.
    fn drop_superfluous(&mut self, worker: &Arc<Worker>) {
        let of_it = |replica: &Replica| replica.worker.name == worker.name && replica.is_main();
        let has_others = self.replicas.iter().any(|replica| of_it(replica) && !is_away(replica));
        let mut kept = has_others;
        self.replicas.retain(|replica| !(of_it(replica) && is_away(replica) && std::mem::replace(&mut kept, true)));
    }

    /// Holds the process that was found. From here on it cannot be mistaken for another.
    fn take(&mut self, place: usize, find: Find, look: &mut Look, now: Moment, events: &mut Vec<Event>) -> Result<(), String> {
        let paths = self.around.paths.clone();
        let pid = find.stat.pid;
        let process = match Process::open_seen(&paths, &find.stat) {
            Ok(Some(process)) => process,
            Ok(None) => return Err(format!("pid {pid} has just ended")),
            Err(error) => return Err(format!("pid {pid} could not be opened: {error}")),
        };
        let slot = SlotId(self.next_slot);
        let keeper = self.around.keeper;
        let Some(replica) = self.replicas.get_mut(place) else { return Ok(()) };
        self.next_slot += 1;
        let worker = replica.worker.clone();
        let is_child = find.stat.ppid == keeper;
        if let Some(watch) = self.watch.as_ref().filter(|_| !is_child) {
            // Without it its end is noticed in the next tick.
            let _ = watch.add(process.pidfd(), slot.0);
        }
        let started = now.before(roster::age(process.identity(), now.steady));
        // Nobody carries it.
        let mark = orphans::mark(keeper, slot);
        let life = Life {
            started,
            reaper: (!is_child).then_some(find.stat.ppid),
            is_child,
            adopted: true,
            foreign_group: find.group,
            // What it is to be replaced for counts from when it was found: it is not to be restarted the moment it is.
            ..Life::begin(slot, process, None, now, &worker, mark)
        };
        let living = life.living(keeper, &look.processes);
        look.taken.extend(living.iter().map(|stat| ((stat.pid, stat.started), worker.name.to_string())));
        replica.restarts = replica.restarts.saturating_add(u32::from(replica.last_exit.is_some()));
        replica.standing.state = State::Running { since: now.steady, checked: false };
        replica.waits_for = None;
        replica.wish = None;
        replica.life = Some(life);
        let detail = worker.adopt.as_ref().map(|adopt| format!("found: {}", adopt.by)).unwrap_or_default();
        events.push(Event::WorkerAdopted { worker: worker.name.to_string(), replica: replica.index, pid, detail });
        Ok(())
    }

    fn note_who_waits(&mut self) {
        for replica in self.replicas.iter_mut().filter(|replica| is_away(replica)) {
            let told = self.searches.get(&replica.worker.name).and_then(|search| search.told.clone());
            replica.waits_for = told.or_else(|| replica.worker.adopt.as_ref().map(|adopt| adopt.by.to_string()));
        }
    }

    /// Lets adopted processes go on without us: nothing is sent to them, now or when we end. What they were held by has been taken
    /// off, or is by the throttle's next step. How many.
    pub(super) fn let_adopted_go(&mut self, which: impl Fn(&Replica) -> bool) -> u32 {
        let is_about = |replica: &Replica| replica.is_adopted() && which(replica);
        if !self.replicas.iter().any(is_about) {
            return 0;
        }
        // Those that a restart command of ours has started are our children, and so are their orphans.
        let spared = self.adopted_members();
        self.strangers.extend(spared);
        let mut count = 0;
        for replica in self.replicas.iter_mut().filter(|replica| is_about(replica)) {
            let Some(life) = replica.life.take() else { continue };
            // Its CPU time is the whole process's, and is read again if it is found again.
            let total = self.totals.entry(replica.worker.name.clone()).or_default();
            total.peak_memory = total.peak_memory.max(life.peak_memory);
            replica.standing.state = State::Waiting;
            (replica.wish, replica.cause, replica.waits_for, replica.restarting) = (None, None, None, false);
            count += 1;
        }
        self.renumber();
        count
    }

    /// Everybody in the trees of adopted workers, and the commands that restart them.
    pub(super) fn adopted_members(&self) -> Vec<(i32, u64)> {
        if self.restarting.is_empty() && !self.replicas.iter().any(|replica| replica.is_adopted() && replica.life.is_some()) {
            return Vec::new();
        }
        let mut processes = Vec::new();
        // Whoever was seen before is known all the same.
        let _ = scan::processes(&self.around.paths, &mut processes, &mut Vec::new());
        let lives = self.replicas.iter().filter(|replica| replica.is_adopted()).filter_map(|replica| replica.life.as_ref());
        let mut members: Vec<(i32, u64)> = lives
            .flat_map(|life| {
                let living = life.living(self.around.keeper, &processes);
                let root = (life.process.pid(), life.process.started());
                living.iter().map(|stat| (stat.pid, stat.started)).chain([root]).chain(life.known.iter().copied()).collect::<Vec<_>>()
            })
            .collect();
        members.extend(self.restarts_running(&processes).flat_map(|(_, tree)| tree).map(|stat| (stat.pid, stat.started)));
        members
    }
}

/// One look at all processes, for everybody who is looked for in the same turn.
#[derive(Debug, Default)]
struct Look {
    processes: Vec<Stat>,
    taken: HashMap<(i32, u64), String>,
}

impl Look {
    /// # Errors
    /// When they cannot be listed, for people.
    fn fill(&mut self, paths: &Paths, scratch: &mut Vec<u8>) -> Result<(), String> {
        let listed = scan::processes(paths, &mut self.processes, scratch);
        listed.map(drop).map_err(|error| format!("processes could not be listed: {error}"))
    }
}

/// One search: whom a worker may take of everybody who is there.
struct Seeker<'a> {
    paths: &'a Paths,
    /// The daemon.
    keeper: i32,
    worker: &'a str,
    look: &'a Look,
}

impl Seeker<'_> {
    /// # Errors
    /// Why nobody is found, for people; empty where there is simply nobody.
    fn choose(&self, trace: Trace, by: &AdoptBy, compiled: &mut Option<regex_lite::Regex>, now: Moment) -> Result<Vec<Find>, String> {
        let Seeker { paths, keeper, worker, look } = *self;
        let us = rustix::process::geteuid().as_raw();
        let scene = Scene { processes: &look.processes, keeper, taken: &look.taken };
        // Read for a few only: one file for each.
        let is_kin = |stat: &Stat, line: &str| line.is_empty() || adoption::is_helper(stat, keeper, line);
        let kin = |pid: i32| format!("pid {pid} is a thread of the kernel, or a helper of ours");
        match (trace, by) {
            (Trace::Pid(file), _) => {
                let Some(stat) = scene.process(file.pid) else { return Err(format!("it names pid {}, which is not there", file.pid)) };
                let owner = foreign::owner(paths, file.pid).map_err(|error| format!("pid {}: {error}", file.pid))?;
                if let Some(why) = adoption::pidfile_fault(&file, stat, owner, us, now).or_else(|| scene.objection(stat, &[])) {
                    return Err(why);
                }
                if is_kin(stat, &foreign::command_line(paths, file.pid).unwrap_or_default()) {
                    return Err(kin(file.pid));
                }
                reachable(us, file.pid, owner)?;
                Ok(vec![Find { stat: *stat, group: None }])
            }
            (Trace::Group(group), _) => {
                // After all processes were looked through.
                let pids = group.pids();
                let Some(stat) = adoption::root_of(&scene, &pids) else { return Err("nobody is in it".to_owned()) };
                if let Some(why) = scene.objection(stat, &pids) {
                    return Err(why);
                }
                if is_kin(stat, &foreign::command_line(paths, stat.pid).unwrap_or_default()) {
                    return Err(kin(stat.pid));
                }
                reachable(us, stat.pid, foreign::owner(paths, stat.pid).unwrap_or_default())?;
                Ok(vec![Find { stat: *stat, group: Some(Arc::new(group)) }])
            }
            (Trace::Anybody, AdoptBy::Match { pattern, owner }) => {
                let owner = match owner {
                    None => us,
                    Some(name) => accounts::find(name, None).map_err(|error| error.to_string())?.uid,
                };
                let expression = match compiled {
                    Some(expression) => expression,
                    None => compiled.insert(adopt::compile(pattern)?),
                };
                let mut refused = None;
                let mut matches = |stat: &&Stat| {
                    if stat.has_ended() || stat.pid == keeper || !foreign::owner(paths, stat.pid).is_ok_and(|found| found == Some(owner)) {
                        return false;
                    }
                    let line = foreign::command_line(paths, stat.pid).unwrap_or_default();
                    if is_kin(stat, &line) || !expression.is_match(&line) {
                        return false;
                    }
                    let objection = scene.objection(stat, &[]);
                    // What it has already is no reason why there are no more.
                    let is_own = look.taken.get(&(stat.pid, stat.started)).is_some_and(|holder| holder == worker);
                    let is_free = objection.is_none();
                    refused = refused.take().or(objection.filter(|_| !is_own));
                    is_free
                };
                let matching: Vec<Stat> = look.processes.iter().filter(|stat| matches(stat)).copied().collect();
                if let (true, Some(why)) = (matching.is_empty(), refused) {
                    return Err(why);
                }
                reachable(us, matching.first().map_or(0, |stat| stat.pid), Some(owner))?;
                Ok(adoption::topmost(&scene, matching).into_iter().map(|stat| Find { stat, group: None }).collect())
            }
            (Trace::Anybody, _) => Ok(Vec::new()),
        }
    }
}

/// Whom a daemon that is started now would take for this worker: their pids.
///
/// # Errors
/// Why nobody would be, for people.
pub fn found_now(paths: &Paths, name: &str, by: &AdoptBy, now: Moment) -> Result<Vec<i32>, String> {
    let trace = trace_live(paths, by)?;
    let mut look = Look::default();
    look.fill(paths, &mut Vec::new())?;
    let seeker = Seeker { paths, keeper: rustix::process::getpid().as_raw_nonzero().get(), worker: name, look: &look };
    let found = seeker.choose(trace, by, &mut None, now)?;
    if found.is_empty() {
        return Err("nobody matches".to_owned());
    }
    Ok(found.iter().map(|find| find.stat.pid).collect())
}

/// It is to be there and is not.
fn is_away(replica: &Replica) -> bool {
    replica.worker.adopt.is_some() && replica.is_main() && replica.life.is_none() && replica.state() == State::Waiting
}

/// As [`trace`], on the machine we run on.
fn trace_live(paths: &Paths, by: &AdoptBy) -> Result<Trace, String> {
    if !paths.is_live() {
        // Its numbers belong to others on the machine we run on.
        return Err("the processes of a machine that is a folder cannot be held".to_owned());
    }
    trace(paths, by)
}

/// The first step, which most often says already that nobody is there.
fn trace(paths: &Paths, by: &AdoptBy) -> Result<Trace, String> {
    let group = |found: Result<ForeignGroup, NoGroup>| match found {
        Ok(group) => Ok(Trace::Group(group)),
        Err(NoGroup::NotThere) => Err("there is no such group with anybody in it".to_owned()),
        Err(NoGroup::Ambiguous(all)) => {
            let all: Vec<String> = all.iter().map(|path| path.display().to_string()).collect();
            Err(format!("there is more than one: {}; adopt.cgroup says which", all.join(", ")))
        }
    };
    match by {
        AdoptBy::Pidfile(path) => foreign::read_pidfile(path).map(Trace::Pid).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "the file is not there".to_owned(),
            _ => error.to_string(),
        }),
        AdoptBy::Unit(unit) => group(foreign::find_unit(paths, unit)),
        AdoptBy::Cgroup(path) => group(foreign::find_group(paths, path)),
        AdoptBy::Match { .. } => Ok(Trace::Anybody),
    }
}

/// Whom we may not signal we cannot hold either.
fn reachable(us: u32, pid: i32, owner: Option<u32>) -> Result<(), String> {
    match owner {
        Some(owner) if owner == us => Ok(()),
        _ if process::may_signal_anybody() => Ok(()),
        Some(owner) => Err(format!("pid {pid} is of user {owner}: only a daemon with CAP_KILL, such as root's, can hold it")),
        None => Err(format!("pid {pid} is changing its user")),
    }
}

/// What of the settings would not be found now: no mistake, since it may come later.
pub fn missing_now(paths: &Paths, workers: &[Arc<Worker>]) -> Vec<String> {
    let missing = |worker: &Arc<Worker>| {
        let adopt = worker.adopt.as_ref()?;
        trace(paths, &adopt.by)
            .err()
            .map(|why| format!("workers.{}.adopt: {}: {why}; it is looked for until it is there", worker.name, adopt.by))
    };
    workers.iter().filter_map(missing).collect()
}
