//! A number is no process and a name is no group: pids that were given to strangers, and groups made anew under an old
//! name, are never signalled, slowed, written to or read.

#![expect(clippy::disallowed_methods, reason = "a test starts processes and has clocks")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use plimsoll::actuators::undo::{self, Restored, Saved, UndoLog};
use plimsoll::config::Sources;
use plimsoll::config::settings::Signal;
use plimsoll::host::Paths;
use plimsoll::host::clock::Moment;
use plimsoll::host::folder::{Folder, GroupFile};
use plimsoll::host::group::Groups;
use plimsoll::host::kept::Kept;
use plimsoll::host::process::{self, Delivery, Priority, Process, Root};
use plimsoll::host::procfs::Stat;
use plimsoll::host::stops::StopTable;
use plimsoll::host::{cgroupfs, scan};
use plimsoll::supervisor::Supervisor;
use plimsoll::supervisor::sockets::Prepared;
use plimsoll::supervisor::supervisor::Surroundings;
use rustix::io::Errno;

const RECYCLES: u32 = 100_000;

/// Workers that end and leave their numbers to strangers while the supervisor still ends what is left of their trees.
const LIVES: u32 = 100;

/// Past the capture of the test harness: a skip that nobody sees is a lie.
fn skip(reason: &str) {
    let shown = format!("skipped: {reason}\n");
    let stderr = File::options().append(true).open("/dev/stderr").and_then(|mut stderr| stderr.write_all(shown.as_bytes()));
    assert!(stderr.is_ok() && std::env::var_os("CI").is_none(), "{shown}");
}

#[test]
fn a_hundred_thousand_recycled_pids_reach_no_stranger() {
    inside_a_pid_namespace("inside_handles");
}

#[test]
fn what_is_left_of_a_worker_is_ended_and_nobody_who_has_its_number() {
    inside_a_pid_namespace("inside_supervisor");
}

/// Runs one test as the first process of a namespace, whose numbers are ours to give out.
fn inside_a_pid_namespace(name: &str) {
    let test = std::env::current_exe().expect("the test has a path");
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(test);
    unshare.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    let Ok(output) = unshare.output() else { return skip("there is no unshare(1) here") };
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if failed.starts_with("unshare:") {
        return skip(&format!("no pid namespace is granted here: {failed}"));
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{failed}");
    print!("{said}");
}

#[test]
#[ignore = "started by the test above, as the first process of a pid namespace"]
fn inside_handles() {
    if std::process::id() != 1 {
        return skip("this is no pid namespace of our own");
    }
    let mut nursery = Nursery::new();
    // First the proof that a stranger would notice: a signal by number, a changed priority.
    let witness = nursery.give_birth();
    // SAFETY: takes numbers only; it is our child.
    assert_eq!(unsafe { libc::kill(witness, libc::SIGCONT) }, 0);
    assert!(nursery.harm(witness).is_some(), "a signal is noticed");
    let slowed = nursery.replace(witness);
    Process::open_child(&nursery.paths, slowed).unwrap().unwrap().set_priority(Priority::IDLE).unwrap();
    assert!(nursery.harm(slowed).is_some(), "a changed priority is noticed");

    let begun = Instant::now();
    let mut pid = nursery.replace(slowed);
    let mut within_a_tick = 0;
    let (stops, mut stopped) = (StopTable::create().unwrap(), Vec::new());
    for round in 0..RECYCLES {
        let old = Old::hold(pid, &nursery.paths);
        pid = nursery.replace(pid);
        let stranger = scan::process(&nursery.paths, pid, &mut Vec::new()).unwrap();
        let same_tick = stranger.started == old.handle.started();
        within_a_tick += u32::from(same_tick);
        // A kernel without pidfs has nothing but the start time, and cannot tell two processes of one tick apart.
        let can_be_told = old.handle.identity().inode != 0 || !same_tick;
        if can_be_told {
            stopped.push(stops.note(old.handle.identity()).expect("there is room"));
        }
        old.try_everything(&nursery.paths, round, can_be_told);
        // What the sentinel does, for all who had the number in the last rounds.
        if stopped.len() == 50 {
            assert_eq!(stops.let_all_go_on(&nursery.paths), [] as [String; 0]);
            stopped.drain(..).for_each(|ticket| stops.clear(ticket));
        }
        assert_eq!(nursery.harm(pid), None, "round {round}");
    }
    nursery.end(pid);
    println!("{RECYCLES} recycles in {:.1} s, {within_a_tick} of them within one tick of the clock", begun.elapsed().as_secs_f64());
    assert!(within_a_tick > RECYCLES / 10, "too slow to be the hard case");
}

#[test]
#[ignore = "started by the test above, as the first process of a pid namespace"]
fn inside_supervisor() {
    if std::process::id() != 1 {
        return skip("this is no pid namespace of our own");
    }
    let mut nursery = Nursery::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plimsoll.toml");
    // One descendant leaves session and parent: only because of it there is something to be ended when the worker is gone.
    fs::write(&file, "[workers.web]\ncommand = [\"sh\", \"-c\", \"setsid sleep 1000 & exec sleep 1000\"]\nrestart = \"never\"").unwrap();
    let sources = Sources { file: Some(file), working_dir: folder.path().to_path_buf(), ..Sources::default() };
    let settings = plimsoll::config::load(&sources).unwrap_or_else(|problems| panic!("{}", problems.render(false))).settings;
    for life in 0..LIVES {
        let mut supervisor = Supervisor::new(Surroundings {
            paths: nursery.paths.clone(),
            groups: Groups::none("by pids alone"),
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
            keeper: 1,
            oom_score_adj: None,
            descriptors: None,
            nice: 0,
            command: None,
            locks: std::env::temp_dir(),
        });
        let mut events = Vec::new();
        supervisor.apply(&settings.workers, Prepared::default(), 1.0, Moment::now());
        supervisor.advance(Moment::now(), &mut events);
        let slot = supervisor.replicas()[0].slot().expect("it was started");
        let root = supervisor.life(slot).unwrap().process.pid();
        let mut all = Vec::new();
        let astray = loop {
            scan::processes(&nursery.paths, &mut all, &mut Vec::new()).unwrap();
            if let Some(astray) = all.iter().find(|process| process.ppid == root && process.session == process.pid) {
                break *astray;
            }
        };
        supervisor.note_members(slot, [(root, supervisor.life(slot).unwrap().process.started()), (astray.pid, astray.started)].into_iter());
        let held = supervisor.members(slot, &all).unwrap();
        assert!(held.len() >= 2, "root {root}, {astray:?} of {all:?}: {held:?}");

        // SAFETY: numbers only; it is our child and not reaped yet.
        assert_eq!(unsafe { libc::kill(root, libc::SIGKILL) }, 0);
        while supervisor.life(slot).is_some_and(|life| life.process.signal(Signal(0)).unwrap() == Delivery::Delivered) {
            supervisor.reap(Moment::now(), &mut events);
        }
        let stranger = nursery.give(root);
        assert!(supervisor.life(slot).is_some(), "there is somebody left of it");
        // By every way there is, from an old look at all processes as well as from a new one.
        let _ = supervisor.signal(slot, Signal(libc::SIGTERM));
        supervisor.kill(slot, "memory", Moment::now());
        for member in held.iter().chain(&supervisor.members(slot, &all).unwrap()) {
            if member.pid() == root {
                assert_eq!(member.signal(Signal(libc::SIGSTOP)).unwrap(), Delivery::Gone);
            }
        }
        supervisor.close(Moment::now(), Moment::now().steady);
        while !supervisor.is_empty() {
            supervisor.reap(Moment::now(), &mut events);
            supervisor.advance(Moment::now(), &mut events);
        }
        assert_eq!(nursery.harm(stranger), None, "life {life}");
        nursery.end(stranger);
        supervisor.reap(Moment::now(), &mut events);
    }
    println!("{LIVES} workers ended, each with a stranger under its number");
}

/// Everything the daemon may hold of a process, taken while that lived.
struct Old {
    handle: Process,
    seen: Stat,
    statm: Kept,
    saved: Saved,
}

impl Old {
    fn hold(pid: i32, paths: &Paths) -> Old {
        let handle = Process::open_child(paths, pid).unwrap().expect("it lives");
        // As it would have been seen in a worker's tree: with a parent and a session a stranger has not.
        let seen = Stat { ppid: 4_000_000, session: 4_000_000, ..scan::process(paths, pid, &mut Vec::new()).unwrap() };
        let mut statm = Kept::new(paths, paths.proc.join(format!("{pid}/statm")));
        statm.read_once(&mut Vec::new()).expect("it lives");
        let saved = Saved::Nice { process: handle.identity(), old: Priority { nice: 7, policy: libc::SCHED_BATCH }, since: 0 };
        Old { handle, seen, statm, saved }
    }

    fn try_everything(mut self, paths: &Paths, round: u32, can_be_told: bool) {
        for signal in [libc::SIGSTOP, libc::SIGCONT, libc::SIGTERM, libc::SIGKILL] {
            assert_eq!(self.handle.signal(Signal(signal)).unwrap(), Delivery::Gone);
        }
        assert!(self.handle.priority().is_err() && self.handle.set_priority(Priority::IDLE).is_err() && self.handle.cpu(paths).is_err());
        assert_eq!(self.statm.read_once(&mut Vec::new()), Err(Errno::SRCH));
        assert!(Process::open_seen(paths, &self.seen).unwrap().is_none());
        if can_be_told {
            assert!(Process::open(paths, self.handle.identity()).unwrap().is_none());
            assert_eq!(self.saved.restore(paths), Restored::Gone);
            if round.is_multiple_of(1000) {
                self.sweep(paths);
            }
        }
        if round.is_multiple_of(100) {
            let ended = Moment::now().steady.as_secs() * process::ticks_per_second();
            let root = Root { pid: self.handle.pid(), started: self.handle.started(), ended: Some(ended + 200) };
            let mut all = Vec::new();
            scan::processes(paths, &mut all, &mut Vec::new()).unwrap();
            assert!(all.iter().any(|process| process.pid == root.pid), "the stranger is seen");
            assert_eq!(process::tree_of(root, 1, &[], &all), []);
        }
    }

    /// What the sentinel, `plimsoll release` and the next start do.
    fn sweep(&self, paths: &Paths) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undo.jsonl");
        UndoLog::new(path.clone(), paths).save(self.saved.clone()).unwrap();
        let swept = undo::sweep(&path, paths).unwrap();
        assert_eq!((swept.restored, swept.gone, swept.failed.len()), (0, 1, 0));
    }
}

/// Children that wait with every signal blocked, so that one that reached them stays to be seen.
struct Nursery {
    paths: Paths,
    last_pid: File,
    stack: Vec<u8>,
}

impl Nursery {
    fn new() -> Nursery {
        // SAFETY: plain data, filled by the first call; children inherit the mask.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut()), 0);
        }
        let last_pid = File::options().write(true).open("/proc/sys/kernel/ns_last_pid").expect("CAP_SYS_ADMIN in the namespace");
        Nursery { paths: Paths::default(), last_pid, stack: vec![0; 64 * 1024] }
    }

    /// One child at a time, so one stack serves them all.
    fn give_birth(&mut self) -> i32 {
        extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
            loop {
                // SAFETY: returns for no signal, since all are blocked.
                unsafe { libc::pause() };
            }
        }
        let top = self.stack.as_mut_ptr_range().end.cast();
        // SAFETY: the child runs on a stack nobody else uses and only waits; it shares the memory, which makes it cheap.
        let pid = unsafe { libc::clone(wait, top, libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut()) };
        assert!(pid > 0, "{}", std::io::Error::last_os_error());
        pid
    }

    fn end(&self, pid: i32) {
        // SAFETY: numbers and a null pointer; it is our child and not reaped yet.
        unsafe {
            assert_eq!(libc::kill(pid, libc::SIGKILL), 0);
            assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid);
        }
    }

    /// Ends a child and gives its number to another.
    fn replace(&mut self, pid: i32) -> i32 {
        self.end(pid);
        self.give(pid)
    }

    /// Gives a free number to a child.
    fn give(&mut self, pid: i32) -> i32 {
        self.last_pid.write_all_at((pid - 1).to_string().as_bytes(), 0).unwrap();
        let stranger = self.give_birth();
        if stranger != pid {
            let mut all = Vec::new();
            scan::processes(&self.paths, &mut all, &mut Vec::new()).unwrap();
            panic!("{pid} was not given away but {stranger}, of {all:?}");
        }
        stranger
    }

    /// What was done to a child, if anything was.
    fn harm(&self, pid: i32) -> Option<String> {
        let status = fs::read_to_string(self.paths.proc.join(format!("{pid}/status"))).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let (state, own, shared) = (field("State:"), field("SigPnd:"), field("ShdPnd:"));
        // SAFETY: numbers only.
        let (nice, policy) = unsafe { (libc::getpriority(libc::PRIO_PROCESS, pid.cast_unsigned()), libc::sched_getscheduler(pid)) };
        let is_well =
            (state.starts_with('S') || state.starts_with('R')) && [&own, &shared].iter().all(|set| set.trim_matches('0').is_empty());
        let same_priority = nice == 0 && policy == libc::SCHED_OTHER;
        (!is_well || !same_priority).then(|| format!("state {state}, pending {own} {shared}, nice {nice}, policy {policy}"))
    }
}

/// A group of ours in the tree of a v1 controller and in the v2 tree, where they can be made.
fn bases() -> Vec<(PathBuf, &'static str, &'static str)> {
    let layout = cgroupfs::Layout::discover(&Paths::default());
    let cpu = layout.cpu.map(|own| match own.version {
        cgroupfs::Version::V1 => (own.dir, "cpu.cfs_quota_us", "50000"),
        cgroupfs::Version::V2 => (own.dir, "cpu.weight", "50"),
    });
    let freezer = layout.unified.map(|own| (own.dir, "cgroup.freeze", "1"));
    let base = |(dir, file, value): (PathBuf, _, _)| {
        let base = dir.join(format!("plimsoll-identity-{}", std::process::id()));
        fs::create_dir(&base).is_ok().then_some((base, file, value))
    };
    [cpu, freezer].into_iter().flatten().filter_map(base).collect()
}

#[test]
fn a_group_made_anew_is_not_the_old_one() {
    let bases = bases();
    if bases.is_empty() {
        return skip("no control group can be made here");
    }
    let paths = Paths::default();
    for (base, name, value) in &bases {
        let parent = Folder::open(base).unwrap();
        let old = Arc::new(parent.make("w-old").unwrap());
        let file = GroupFile { folder: old.clone(), name };
        if !old.has(name) {
            fs::remove_dir(old.path()).and_then(|()| fs::remove_dir(base)).unwrap();
            skip(&format!("there is no {name} here"));
            continue;
        }
        let saved = Saved::file(&file).unwrap();
        let note = Saved::folder(old.path()).unwrap();
        let mut kept = Kept::within(&paths, &old, name);
        let before = kept.read(&mut Vec::new()).unwrap().to_vec();
        file.write(value).unwrap();
        assert_eq!(saved.restore(&paths), Restored::Done, "{name}");
        assert_eq!(kept.read(&mut Vec::new()).unwrap(), before);

        fs::remove_dir(old.path()).unwrap();
        let anew = Arc::new(parent.make("w-old").unwrap());
        let theirs = GroupFile { folder: anew.clone(), name };
        theirs.write(value).unwrap();
        assert!(file.write(&String::from_utf8_lossy(&before)).is_err() && file.read().is_err());
        assert!(old.members().is_err() && old.entrance("cgroup.procs").is_err() && old.make("child").is_err());
        assert!(matches!(kept.read(&mut Vec::new()), Err(Errno::NOENT | Errno::NODEV)));
        assert_eq!(saved.restore(&paths), Restored::Gone);
        assert_eq!(note.restore(&paths), Restored::Gone, "an empty group of the same name is not removed either");
        assert!(old.remove().is_err());
        assert_eq!(theirs.read().unwrap(), *value, "{name} of the new group is as it was");
        anew.remove().and_then(|()| parent.remove()).unwrap();
    }
}

#[test]
fn a_replica_does_not_share_the_group_an_orphan_was_left_in() {
    let layout = cgroupfs::Layout::discover(&Paths::default());
    // On v2 probing would move this very process.
    if layout.cpu.as_ref().is_none_or(|cpu| cpu.version == cgroupfs::Version::V2) {
        return skip("no v1 groups here");
    }
    let mut groups = Groups::probe(&layout, std::process::id() as i32, &format!("identity-orphan-{}", std::process::id()));
    let Some(orphans) = groups.create("w-hog.0-1").unwrap() else { return skip("no control group can be made here") };
    let own = groups.create("w-hog.0-1").unwrap().expect("as before");
    let [theirs, ours] = [&orphans, &own].map(|group| group.cpu_accounting().unwrap().path().to_path_buf());
    assert_ne!(theirs, ours);
    own.remove();
    orphans.remove();
    groups.remove();
    assert!(!ours.parent().unwrap().exists());
}
