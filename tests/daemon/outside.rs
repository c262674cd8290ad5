//! The machine as anybody sees it from outside, never as the daemon says it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

/// The variable that marks every process of a stage. It does not begin with PLIMSOLL_, so that workers inherit it.
pub const MARK: &str = "STAGE";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub name: String,
    pub state: char,
    pub parent: i32,
    pub session: i32,
    /// User and system time, in clock ticks.
    pub ticks: u64,
    pub started: u64,
}

impl Process {
    /// Kills exactly this process.
    pub fn kill(&self) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
        if process(self.pid).is_some_and(|now| now.started == self.started) {
            let _ = rustix::process::pidfd_send_signal(handle, Signal::KILL);
        }
    }
}

/// What `/proc/PID/stat` says; `None` once the process is gone.
pub fn process(pid: i32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = (text.find('(')?, text.rfind(')')?);
    let fields: Vec<&str> = text.get(after + 1..)?.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        pid,
        name: text.get(before + 1..after)?.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        started: number(19)?,
    })
}

/// Every process there is.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc can be listed");
    entries.flatten().filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Every process that carries the mark with this value.
pub fn marked(value: &Path) -> Vec<Process> {
    let wanted = format!("{MARK}={}", value.display());
    processes().into_iter().filter(|process| environment(process.pid).contains(&wanted)).collect()
}

/// The variables a process was started with; none when it cannot be looked at.
pub fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|variable| String::from_utf8_lossy(variable).into_owned()).collect()
}

/// CPU time the processes have used so far. Ticks of 10 ms: exact enough over ten seconds.
pub fn cpu_time(processes: &[Process]) -> Duration {
    let ticks: u64 =
        processes.iter().filter_map(|one| process(one.pid).filter(|now| now.started == one.started)).map(|now| now.ticks).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Time all processors have spent so far, in clock ticks: (in all, idle).
pub fn machine_time() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").expect("the machine's clocks");
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, idle, waiting, ..] = fields[..] else { panic!("{text}") };
    (user + nice + system + idle + waiting + fields[5..].iter().sum::<u64>(), idle + waiting)
}

/// The part of its time in which the machine had nothing to do, between two looks.
pub fn idle_share(before: (u64, u64), after: (u64, u64)) -> f64 {
    (after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64
}

pub fn children(parent: i32) -> Vec<Process> {
    processes().into_iter().filter(|process| process.parent == parent).collect()
}

/// Whether a process is held: in state T (threads of one group stop together), or in a frozen group.
pub fn is_stopped(process: &Process) -> bool {
    process.state == 'T' || is_frozen(process.pid)
}

/// Whether the v2 group of a process is frozen.
pub fn is_frozen(pid: i32) -> bool {
    let events = v2_group(pid).and_then(|folder| fs::read_to_string(folder.join("cgroup.events")).ok());
    events.is_some_and(|text| text.lines().any(|line| line == "frozen 1"))
}

/// The folder of a process's group in the v2 tree, if it is one of ours.
pub fn v2_group(pid: i32) -> Option<PathBuf> {
    let v2 = groups(pid).into_iter().find(|(name, _)| name.is_empty()).map(|(_, folder)| folder)?;
    v2.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-")).then_some(v2)
}

/// Nice value and scheduling policy: fields 19 and 41 of `/proc/PID/stat`.
pub fn priority(pid: i32) -> Option<(i32, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(16)?.parse().ok()?, fields.get(38)?.parse().ok()?))
}

/// The sentinel of a daemon.
pub fn sentinel_of(daemon: i32) -> Option<Process> {
    let is_sentinel = |child: &Process| {
        let words = fs::read(format!("/proc/{}/cmdline", child.pid)).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(b"sentinel".as_slice())
    };
    children(daemon).into_iter().find(is_sentinel)
}

/// The helpers that write files below a folder. They carry no mark; the file is among their words.
pub fn captures_below(folder: &Path) -> Vec<Process> {
    let is_capture = |process: &Process| {
        let bytes = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let words: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        let file = words.get(5).map(|file| String::from_utf8_lossy(file).into_owned());
        words.get(1) == Some(&b"capture".as_slice()) && file.is_some_and(|file| Path::new(&file).starts_with(folder))
    };
    processes().into_iter().filter(is_capture).collect()
}

/// Where each hierarchy is mounted, and what it is called in `/proc/PID/cgroup` (`""` for v2).
fn hierarchies() -> &'static [(String, PathBuf)] {
    static FOUND: OnceLock<Vec<(String, PathBuf)>> = OnceLock::new();
    FOUND.get_or_init(find_hierarchies)
}

fn find_hierarchies() -> Vec<(String, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let read = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let place = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        match kind {
            "cgroup2" => Some(vec![(String::new(), place)]),
            "cgroup" => Some(options.split(',').map(|option| (option.to_owned(), place.clone())).collect()),
            _ => None,
        }
    };
    mounts.lines().filter_map(read).flatten().collect()
}

/// The folder of a process's group in each hierarchy, by controller (`""` for v2).
pub fn groups(pid: i32) -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let hierarchies = hierarchies();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        for controller in controllers.split(',') {
            if let Some((_, place)) = hierarchies.iter().find(|(name, _)| name == controller) {
                found.push((controller.to_owned(), place.join(path.trim_start_matches('/'))));
            }
        }
    }
    found
}

/// The file that holds a worker's CPU quota, if it has a group of its own.
pub fn quota_file(pid: i32) -> Option<PathBuf> {
    let groups = groups(pid);
    let own = |folder: &&PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-"));
    let v1 =
        groups.iter().find(|(name, _)| name == "cpu").map(|(_, folder)| folder).filter(own).map(|folder| folder.join("cpu.cfs_quota_us"));
    let v2 = groups.iter().find(|(name, _)| name.is_empty()).map(|(_, folder)| folder).filter(own).map(|folder| folder.join("cpu.max"));
    [v1, v2].into_iter().flatten().find(|file| file.exists())
}

/// True when a quota file says that there is no quota.
pub fn is_free(quota_file: &Path) -> bool {
    let text = fs::read_to_string(quota_file).unwrap_or_default();
    text.trim() == "-1" || text.starts_with("max")
}

/// Removes, once, what the daemons of an earlier run of tests that was killed have left: a daemon of this run may be given the
/// number of one of them.
pub fn sweep_earlier_runs() {
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(|| {
        for (_, folder) in groups(std::process::id() as i32) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let instance = name.to_str().and_then(|name| name.strip_prefix("plimsoll-")?.parse::<i32>().ok());
                if instance.is_some_and(|pid| process(pid).is_none()) {
                    remove_group(&entry.path());
                }
            }
        }
    });
}

/// Folders a daemon with this pid has made below the group it was started in, which is ours.
pub fn groups_of_instance(pid: u32) -> Vec<PathBuf> {
    let own = std::process::id() as i32;
    let mut folders: Vec<PathBuf> = groups(own).into_iter().map(|(_, folder)| folder.join(format!("plimsoll-{pid}"))).collect();
    folders.dedup();
    folders.into_iter().filter(|folder| folder.exists()).collect()
}

/// Moves a process from the groups it was started in to others beside them, and returns those.
pub fn lead_astray(pid: i32) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = Vec::new();
    for (_, folder) in groups(pid) {
        let is_own = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-"));
        let elsewhere = folder.with_file_name("elsewhere");
        if is_own && !left.contains(&elsewhere) {
            fs::create_dir_all(&elsewhere).expect("a group can be made beside its own");
            fs::write(elsewhere.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
            left.push(elsewhere);
        }
    }
    left
}

/// Removes a group and the groups in it; those that hold somebody stay.
pub fn remove_group(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
