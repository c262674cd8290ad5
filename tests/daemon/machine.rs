//! A machine that is a folder, and what a kernel would do in it: groups that are made have their files, a process that
//! is written into a group is in it, groups with somebody in them cannot be removed.
//!
//! Two worlds meet there. The pids in the folder's `proc` are those of the machine it was taken from, and nobody must
//! ever signal them. Workers are real processes of the machine the test runs on; each is shown in the folder's `proc`
//! by a link, so that the daemon finds them by the roots it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::kernel::{Asked, Call, Reflex};

/// The folder of a machine in `hosts`, or in `exact` when its name begins so.
pub fn recorded(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    if name.starts_with("exact/") { fixtures.join(name) } else { fixtures.join("hosts").join(name) }
}

/// What was done to the machine, line by line, and to whom else anything was done.
#[derive(Debug, Default)]
pub struct Deeds {
    pub lines: Vec<String>,
    /// Files outside the folder that were opened to be changed.
    pub outside: BTreeSet<PathBuf>,
    pub signalled: BTreeSet<i32>,
    /// Everybody under the filter, and what they are called in expected files.
    pub people: BTreeMap<i32, &'static str>,
}

pub struct Machine {
    pub root: PathBuf,
    pub deeds: Arc<Mutex<Deeds>>,
}

impl Machine {
    /// A copy of a recorded machine in `root`.
    pub fn new(name: &str, root: PathBuf) -> Machine {
        for part in ["proc", "sys", "cgroup"] {
            let from = recorded(name).join(part);
            fs::create_dir_all(root.join(part)).expect("it is ours");
            if from.exists() {
                copy(&from, &root.join(part));
            }
        }
        Machine { root, deeds: Arc::default() }
    }

    pub fn settings(&self) -> Vec<String> {
        ["proc", "sys", "cgroup"].map(|part| format!("host.{part}={}", self.root.join(part).display())).to_vec()
    }

    pub fn write(&self, file: &str, value: &str) {
        fs::write(self.root.join(file), format!("{value}\n")).expect("a file of the machine");
    }

    /// Every file of the machine and what it says, but for the links to real processes.
    pub fn contents(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        files(&self.root, &self.root, &mut found);
        found
    }

    /// For the moment between fork and exec: the daemon is in its group.
    pub fn meets(&self) -> impl FnOnce(i32) + Send + 'static {
        let (root, deeds) = (self.root.clone(), self.deeds.clone());
        move |pid| {
            deeds.lock().expect("whole").people.insert(pid, "DAEMON");
            for procs in own_groups(&root) {
                let _ = fs::write(procs, format!("{pid}\n"));
            }
        }
    }

    pub fn reflex(&self) -> Reflex {
        let (root, deeds) = (self.root.clone(), self.deeds.clone());
        Box::new(move |asked| {
            let mut deeds = deeds.lock().expect("whole");
            meet(&root, &mut deeds, asked.pid);
            react(&root, &mut deeds, asked)
        })
    }
}

fn files(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).expect("a folder of the machine").flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => {}
            Ok(kind) if kind.is_dir() => files(root, &path, found),
            // Whoever is in a group comes and goes.
            _ if path.file_name().is_some_and(|name| name == "cgroup.procs") => {}
            _ => {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                found.insert(path.strip_prefix(root).expect("below the root").to_owned(), text);
            }
        }
    }
}

/// `cgroup.procs` of the groups the recorded process was in, where they were recorded.
fn own_groups(root: &Path) -> Vec<PathBuf> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in memberships.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let mut tops = vec![root.join("cgroup")];
        tops.extend(fs::read_dir(root.join("cgroup")).into_iter().flatten().flatten().map(|entry| entry.path()));
        found.extend(tops.iter().map(|top| top.join(path.trim_start_matches('/')).join("cgroup.procs")).filter(|procs| procs.exists()));
    }
    found
}

/// Shows somebody new in the machine's `proc`.
fn meet(root: &Path, deeds: &mut Deeds, thread: i32) {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let number = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<i32>().ok());
    let (Some(pid), Some(parent)) = (number("Tgid:"), number("PPid:")) else { return };
    if deeds.people.contains_key(&pid) && root.join(format!("proc/{pid}")).is_symlink() {
        return;
    }
    let kind = match (deeds.people.get(&parent), fs::read_to_string(format!("/proc/{pid}/cmdline"))) {
        (Some(&"DAEMON"), Ok(line)) if line.contains("sentinel") => "SENTINEL",
        (Some(_), _) => "WORKER",
        (None, _) => "DAEMON",
    };
    deeds.people.entry(pid).or_insert(kind);
    let _ = symlink(format!("/proc/{pid}"), root.join(format!("proc/{pid}")));
}

fn parent_of(pid: i32) -> Option<i32> {
    crate::outside::process(pid).map(|process| process.parent)
}

fn react(root: &Path, deeds: &mut Deeds, asked: &Asked) -> Option<Result<i64, Errno>> {
    let groups = root.join("cgroup");
    let error = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let inside = asked.path.strip_prefix(root).ok().map(Path::to_owned);
    let is_group_file = asked.path.starts_with(&groups);
    match asked.call? {
        Call::Signal => {
            deeds.signalled.insert(asked.target.abs());
            None
        }
        Call::Open => {
            if asked.to_write && inside.is_none() {
                deeds.outside.insert(asked.path.clone());
            }
            // A child that was asked for before its own first call.
            let wanted = inside
                .as_ref()
                .and_then(|inside| inside.strip_prefix("proc").ok()?.components().next()?.as_os_str().to_str()?.parse().ok());
            if let Some(pid) = wanted.filter(|pid| parent_of(*pid).is_some_and(|parent| deeds.people.contains_key(&parent))) {
                meet(root, deeds, pid);
            }
            if is_group_file && asked.path.ends_with("cgroup.procs") {
                forget_the_dead(&asked.path);
            }
            None
        }
        Call::Mkdir if is_group_file => {
            let made = fs::create_dir(&asked.path).and_then(|()| furnish(&asked.path));
            if made.is_ok() {
                deeds.lines.push(format!("mkdir {}", inside?.display()));
            }
            Some(made.map(|()| 0).map_err(error))
        }
        Call::Rmdir if is_group_file => {
            forget_the_dead(&asked.path.join("cgroup.procs"));
            let is_empty = fs::read_to_string(asked.path.join("cgroup.procs")).is_ok_and(|text| text.trim().is_empty());
            let has_children = fs::read_dir(&asked.path).ok()?.flatten().any(|entry| entry.path().is_dir());
            if !is_empty || has_children {
                return Some(Err(Errno::BUSY));
            }
            let removed = fs::remove_dir_all(&asked.path);
            deeds.lines.push(format!("rmdir {}", inside?.display()));
            Some(removed.map(|()| 0).map_err(error))
        }
        Call::Write if is_group_file => {
            let value = String::from_utf8_lossy(&asked.data).trim().to_owned();
            deeds.lines.push(format!("write {} {value}", inside?.display()));
            Some(take(&groups, asked, &value).map(|()| asked.data.len() as i64).map_err(error))
        }
        _ => None,
    }
}

/// What writing a value to a file of a group does.
fn take(groups: &Path, asked: &Asked, value: &str) -> std::io::Result<()> {
    let file = &asked.path;
    let members =
        |procs: &Path| -> Vec<i32> { fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect() };
    match file.file_name().and_then(|name| name.to_str()) {
        Some("cgroup.procs") => {
            let pid = match value.parse() {
                Ok(0) | Err(_) => tgid(asked.pid),
                Ok(pid) => pid,
            };
            // Out of whatever group of this tree it was in: the tree is the mount, or all there is.
            let below = file.strip_prefix(groups).unwrap_or(file);
            let tree = below
                .components()
                .next()
                .map(|first| groups.join(first))
                .filter(|tree| !groups.join("cgroup.controllers").exists() && tree.is_dir());
            for procs in all_procs(&tree.unwrap_or_else(|| groups.to_owned())) {
                let left: String =
                    members(&procs).into_iter().filter(|member| *member != pid).map(|member| format!("{member}\n")).collect();
                fs::write(&procs, left)?;
            }
            let all: String = members(file).into_iter().chain([pid]).map(|member| format!("{member}\n")).collect();
            fs::write(file, all)
        }
        Some("cgroup.subtree_control") => {
            let mut on: BTreeSet<String> = fs::read_to_string(file)?.split_whitespace().map(str::to_owned).collect();
            for word in value.split_whitespace() {
                match word.split_at(1) {
                    ("+", name) => on.insert(name.to_owned()),
                    (_, name) => on.remove(name),
                };
            }
            let end = if on.is_empty() { "" } else { "\n" };
            fs::write(file, on.into_iter().collect::<Vec<_>>().join(" ") + end)
        }
        Some("cgroup.kill") => {
            for member in members(&file.with_file_name("cgroup.procs")) {
                if let Some(process) = crate::outside::process(member) {
                    process.kill();
                }
            }
            Ok(())
        }
        _ => fs::write(file, format!("{value}\n")),
    }
}

fn tgid(thread: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok()).unwrap_or(thread)
}

fn all_procs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(all_procs(&path)),
            path if path.ends_with("cgroup.procs") => found.push(path),
            _ => {}
        }
    }
    found
}

fn forget_the_dead(procs: &Path) {
    let Ok(text) = fs::read_to_string(procs) else { return };
    let lives = |line: &&str| line.parse().ok().and_then(crate::outside::process).is_some_and(|process| process.state != 'Z');
    let left: String = text.lines().filter(lives).map(|line| format!("{line}\n")).collect();
    if left != text {
        let _ = fs::write(procs, left);
    }
}

/// The files a new group has, by what its parent has.
fn furnish(folder: &Path) -> std::io::Result<()> {
    const V2: [(&str, &str); 8] = [
        ("cgroup.procs", ""),
        ("cgroup.subtree_control", ""),
        ("cgroup.freeze", "0"),
        ("cgroup.kill", ""),
        ("cgroup.events", "populated 0\nfrozen 0"),
        ("cpu.stat", "usage_usec 0\nuser_usec 0\nsystem_usec 0"),
        ("cpu.pressure", PRESSURE),
        ("memory.pressure", PRESSURE),
    ];
    const V2_CPU: [(&str, &str); 3] = [("cpu.max", "max 100000"), ("cpu.weight", "100"), ("cpu.idle", "0")];
    const V2_MEMORY: [(&str, &str); 9] = [
        ("memory.current", "1048576"),
        ("memory.stat", "anon 1048576\nfile 0\nshmem 0\ninactive_file 0\nactive_file 0\nslab_unreclaimable 0"),
        ("memory.max", "max"),
        ("memory.high", "max"),
        ("memory.low", "0"),
        ("memory.peak", "1048576"),
        ("memory.swap.current", "0"),
        ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0"),
        ("memory.reclaim", ""),
    ];
    const V1_CPU: [(&str, &str); 4] = [
        ("cpu.cfs_quota_us", "-1"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.shares", "1024"),
        ("cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 0"),
    ];
    const V1_MEMORY: [(&str, &str); 7] = [
        ("memory.limit_in_bytes", "9223372036854771712"),
        ("memory.usage_in_bytes", "1048576"),
        ("memory.max_usage_in_bytes", "1048576"),
        ("memory.soft_limit_in_bytes", "9223372036854771712"),
        ("memory.failcnt", "0"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0"),
        ("memory.stat", "total_rss 1048576\ntotal_inactive_file 0\ntotal_active_file 0\ntotal_swap 0"),
    ];
    const PRESSURE: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0";

    let parent = folder.parent().unwrap_or(folder);
    let put = |files: &[(&str, &str)]| files.iter().try_for_each(|(name, text)| fs::write(folder.join(name), format!("{text}\n")));
    fs::write(folder.join("cgroup.procs"), "")?;
    if parent.join("cgroup.controllers").exists() {
        put(&V2)?;
        fs::write(folder.join("cgroup.procs"), "")?;
        let given = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
        fs::write(folder.join("cgroup.controllers"), &given)?;
        let has = |name: &str| given.split_whitespace().any(|word| word == name);
        put(if has("cpu") { &V2_CPU } else { &[] })?;
        return put(if has("memory") { &V2_MEMORY } else { &[] });
    }
    let has = |name: &str| parent.join(name).exists();
    put(if has("cpu.cfs_quota_us") { &V1_CPU } else { &[] })?;
    put(if has("cpuacct.usage") { &[("cpuacct.usage", "0")] } else { &[] })?;
    put(if has("freezer.state") { &[("freezer.state", "THAWED")] } else { &[] })?;
    put(if has("memory.limit_in_bytes") { &V1_MEMORY } else { &[] })
}

/// A copy of a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it is ours");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file that can be copied");
        }
    }
}
