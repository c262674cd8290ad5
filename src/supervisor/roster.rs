//! Who is alive, on disk: written whenever that changes, so that whoever comes after a daemon that was killed knows its workers.
//! The sentinel ends those that are to end with the daemon; the next daemon takes over or ends the others.
//!
//! Like the undo log it outlives the daemon and not the machine. A process is told by pid, start time and, where the kernel gives
//! one, inode; a group by device and inode: nothing that was given the same name since is taken for it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::settings::{OnDaemonDeath, Output, Signal, Worker};
use crate::host::clock::Moment;
use crate::host::folder::{Folder, Identity};
use crate::host::process::{self, Process, ProcessId};
use crate::host::procfs::Stat;
use crate::host::{Paths, scan};

/// How often those who are being ended are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub worker: String,
    pub index: u32,
    pub process: ProcessId,
    /// It was ready.
    pub ready: bool,
    /// It was to end, or to take another's place and had not yet.
    pub leaving: bool,
    pub restarts: u32,
    pub requests: u64,
    /// Of what it was started with: see [`fingerprint`].
    pub fingerprint: u64,
    pub on_daemon_death: OnDaemonDeath,
    pub stop_signal: i32,
    pub stop_within_ms: u64,
    /// Others in its tree: (pid, start time).
    pub members: Vec<(i32, u64)>,
    /// Its groups.
    pub groups: Vec<(PathBuf, Identity)>,
    /// What its descendants carry in their environment: [`super::orphans`].
    pub mark: String,
}

/// The first line of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Heading {
    /// Which run of the machine this is about.
    boot: Option<String>,
}

/// The file of a daemon that lives.
#[derive(Debug)]
pub struct Roster {
    path: PathBuf,
    boot: Option<String>,
    written: Vec<Entry>,
}

impl Roster {
    pub fn new(path: PathBuf, paths: &Paths) -> Roster {
        Roster { path, boot: scan::boot_id(paths), written: Vec::new() }
    }

    /// Makes the file say this, whole or not at all; nothing is written where it says so already.
    pub fn write(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        if entries == self.written {
            return Ok(());
        }
        if entries.is_empty() {
            self.remove();
        } else {
            let mut text = line(&Heading { boot: self.boot.clone() })?;
            for entry in &entries {
                text.push_str(&line(entry)?);
            }
            let beside = self.path.with_extension(NEW);
            File::create(&beside)?.write_all(text.as_bytes())?;
            std::fs::rename(&beside, &self.path)?;
        }
        self.written = entries;
        Ok(())
    }

    /// Nobody is left.
    pub fn remove(&mut self) {
        self.written.clear();
        // It may never have been there.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn line(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// What a roster says, as far as it is about this run of the machine. A line that is not understood is left out.
pub fn read(path: &Path, paths: &Paths) -> Vec<Entry> {
    parse(&std::fs::read(path).unwrap_or_default(), scan::boot_id(paths).as_deref())
}

fn parse(text: &[u8], boot: Option<&str>) -> Vec<Entry> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let heading = lines.next().and_then(|line| serde_json::from_slice::<Heading>(line).ok());
    match heading {
        Some(heading) if heading.boot.as_deref() == boot => lines.filter_map(|line| serde_json::from_slice(line).ok()).collect(),
        _ => Vec::new(),
    }
}

/// Tells whether a worker would be started in the same way: FNV-1a over what `starts_differently` compares. Values of variables
/// are secrets, and only go into the sum.
pub fn fingerprint(worker: &Worker) -> u64 {
    let Worker { command, adopt, directory, user, group, env, env_files, listen, lock, on_daemon_death, process, output, .. } = worker;
    let output = match output {
        // A file may have another size and still be the same.
        Output::File(file) => format!("{:?}", file.path),
        other => format!("{other:?}"),
    };
    let adopt = adopt.as_ref().map(|adopt| &adopt.by);
    let text = format!(
        "{command:?} {adopt:?} {directory:?} {user:?} {group:?} {env:?} {env_files:?} {listen:?} {lock:?} {on_daemon_death:?} {process:?} {output}"
    );
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Entry {
    pub fn stop_within(&self) -> Duration {
        Duration::from_millis(self.stop_within_ms)
    }

    /// Everybody of its tree who is alive: the process itself, its session, who was known, who is in its groups, and all their
    /// descendants. `processes` is a fresh scan.
    pub fn living(&self, processes: &[Stat]) -> Vec<Stat> {
        let root = (self.process.pid, self.process.started);
        let has_root = processes.iter().any(|stat| (stat.pid, stat.started) == root);
        let groups: Vec<i32> = self.groups.iter().filter_map(|(path, identity)| members_of(path, *identity)).flatten().collect();
        let is_it = |stat: &Stat| {
            let id = (stat.pid, stat.started);
            id == root
                || self.members.contains(&id)
                || groups.contains(&stat.pid)
                // While the first of it lives its number is that of its session.
                || (has_root && stat.session == root.0 && stat.started >= root.1)
        };
        let mut found: Vec<Stat> = processes.iter().filter(|stat| is_it(stat)).copied().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            let children = processes.iter().filter(|stat| stat.ppid == parent.pid && stat.started >= parent.started);
            let new: Vec<Stat> = children.filter(|stat| !found.iter().any(|known| known.pid == stat.pid)).copied().collect();
            found.extend(new);
            next += 1;
        }
        found.retain(|stat| !stat.has_ended());
        found
    }
}

fn members_of(path: &Path, identity: Identity) -> Option<Vec<i32>> {
    let folder = Folder::open(path).ok().filter(|folder| folder.identity() == identity)?;
    folder.members().ok()
}

/// Ends everybody of a dead daemon's roster who is to end with it: asked first, killed when their time is over. Returns when nobody
/// is left.
#[expect(clippy::disallowed_methods, reason = "the sentinel has nothing else to do, and nobody tells it when they have ended")]
pub fn end_those_that_stop(path: &Path, paths: &Paths) {
    let mut entries: Vec<Entry> = read(path, paths);
    entries.retain(|entry| entry.on_daemon_death == OnDaemonDeath::Stop);
    let begun = Moment::now();
    let mut is_first = true;
    while !entries.is_empty() {
        let mut processes = Vec::new();
        if scan::processes(paths, &mut processes, &mut Vec::new()).is_ok() {
            let waited = Moment::now().since(begun);
            entries.retain_mut(|entry| !is_ended(entry, &processes, is_first, waited, paths));
            is_first = false;
        }
        std::thread::sleep(LOOK);
    }
}

fn is_ended(entry: &mut Entry, processes: &[Stat], is_first: bool, waited: Duration, paths: &Paths) -> bool {
    let living = entry.living(processes);
    // Whoever loses the last that ties it to the tree is known from now on.
    entry.members = living.iter().map(|stat| (stat.pid, stat.started)).collect();
    let is_over = waited >= entry.stop_within();
    for process in living.iter().filter_map(|stat| Process::open_seen(paths, stat).ok().flatten()) {
        // One that has gone in the meantime is what is wanted.
        if is_over {
            let _ = process.signal(Signal(libc::SIGKILL));
        } else if is_first {
            let _ = process.signal(Signal(entry.stop_signal));
            let _ = process.signal(Signal(libc::SIGCONT));
        }
    }
    living.is_empty()
}

/// The part of a roster's name before the pid.
const ROSTER: &str = "workers-";

/// What the name of one ends with that is not whole yet.
const NEW: &str = "new";

/// The roster of the daemon with this pid.
pub fn path_in(runtime: &Path, daemon: i32) -> PathBuf {
    runtime.join(format!("{ROSTER}{daemon}.jsonl"))
}

/// The rosters of the daemons that had this runtime folder before.
pub fn left_in(runtime: &Path, own: &Path) -> Vec<PathBuf> {
    let mut found = named(runtime, ".jsonl");
    found.retain(|path| path != own);
    found
}

/// Removes what daemons have left that were killed while they wrote: beside it stands what was true before, whole. Only for who
/// has the runtime folder to itself.
pub fn remove_half_written(runtime: &Path) {
    for path in named(runtime, &format!(".{NEW}")) {
        // In nobody's way: it is not read, and tried again by the next.
        let _ = std::fs::remove_file(path);
    }
}

fn named(runtime: &Path, ending: &str) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(ROSTER) && name.ends_with(ending)
    };
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(runtime).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_one).collect();
    found.sort();
    found
}

/// How long a process has lived.
pub fn age(process: ProcessId, uptime: Duration) -> Duration {
    let began = Duration::from_secs_f64(process.started as f64 / process::ticks_per_second().max(1) as f64);
    uptime.saturating_sub(began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> Entry {
        Entry {
            worker: "web".into(),
            index: 1,
            process: ProcessId { pid: 20, started: 20, inode: 7 },
            ready: true,
            leaving: false,
            restarts: 3,
            requests: 9,
            fingerprint: 5,
            on_daemon_death: OnDaemonDeath::Stop,
            stop_signal: 15,
            stop_within_ms: 30_000,
            members: vec![(24, 24)],
            groups: vec![("/sys/fs/cgroup/w-web.1-1".into(), (1, 2))],
            mark: "7-1".into(),
        }
    }

    #[test]
    fn what_was_written_is_read_again_on_the_same_run_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        let boot = paths.proc.join("sys/kernel/random/boot_id");
        std::fs::create_dir_all(boot.parent().unwrap()).unwrap();
        std::fs::write(&boot, "first\n").unwrap();
        let path = path_in(folder.path(), 7);
        let mut roster = Roster::new(path.clone(), &paths);
        roster.write(vec![entry(), Entry { index: 2, ..entry() }]).unwrap();
        assert_eq!(read(&path, &paths), [entry(), Entry { index: 2, ..entry() }]);
        assert_eq!(left_in(folder.path(), &path_in(folder.path(), 8)), std::slice::from_ref(&path));
        assert!(left_in(folder.path(), &path).is_empty());
        let half = path.with_extension(NEW);
        std::fs::write(&half, "{\"boot\"").unwrap();
        assert!(left_in(folder.path(), &path).is_empty(), "what was being written when its daemon was killed is none");
        remove_half_written(folder.path());
        assert!(!half.exists() && path.exists());
        std::fs::write(&boot, "second\n").unwrap();
        assert_eq!(read(&path, &paths), [], "the machine was restarted: nobody of then is alive");
        roster.write(Vec::new()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_tree_is_found_without_its_daemon_and_strangers_are_not() {
        let process = |pid, ppid, session| Stat { pid, state: b'S', ppid, session, busy: 0, waited: 0, threads: 1, started: pid as u64 };
        let processes = [
            process(1, 0, 1),
            process(20, 1, 20), // the worker, handed to init
            process(21, 20, 20),
            process(22, 1, 20),  // an orphan in its session
            process(24, 1, 77),  // an orphan that left the session: known from before
            process(25, 24, 77), // its child
            process(30, 1, 30),  // somebody else
        ];
        let pids = |entry: &Entry, processes: &[Stat]| entry.living(processes).iter().map(|stat| stat.pid).collect::<Vec<_>>();
        assert_eq!(pids(&entry(), &processes), [20, 21, 22, 24, 25]);
        // The worker has ended and a stranger was given its number.
        let stranger = [process(1, 0, 1), Stat { started: 900, ..process(20, 1, 20) }, Stat { started: 901, ..process(31, 1, 20) }];
        assert_eq!(pids(&entry(), &stranger), [0_i32; 0]);
    }

    proptest! {
        #[test]
        fn any_file_is_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&text, None);
        }
    }
}
