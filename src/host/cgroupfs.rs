//! Control groups: which trees there are, where our own group lies in each, and what its files say.

use std::path::{Path, PathBuf};

use super::mounts::{self, Mount};
use super::paths::Paths;
use super::procfs::{fields, number};

/// Which generation of control groups a tree belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// What kinds of trees are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    V1,
    V2,
    /// Controllers on v1, and the v2 tree beside them.
    Hybrid,
    None,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::V1 => "v1",
            Kind::V2 => "v2",
            Kind::Hybrid => "hybrid",
            Kind::None => "none",
        }
    }
}

/// Our own group in one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub version: Version,
    /// The top of the tree, as far as it can be seen from here.
    pub mount: PathBuf,
    /// Our own group's folder; `mount` itself or below it.
    pub dir: PathBuf,
}

impl Own {
    /// Our group's folder, its parent's, and so on up to the top of the tree.
    pub fn ancestors(&self) -> impl Iterator<Item = &Path> {
        self.dir.ancestors().take_while(|folder| folder.starts_with(&self.mount))
    }
}

/// Where each controller is found. A v2 controller counts only where our own group really has it
/// (`cgroup.controllers`): on a hybrid machine the v2 tree is there and has none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub kind: Kind,
    pub cpu: Option<Own>,
    pub cpuacct: Option<Own>,
    pub memory: Option<Own>,
    pub cpuset: Option<Own>,
    pub freezer: Option<Own>,
    /// The v2 tree, whatever controllers it has: `cgroup.freeze`, `cgroup.kill`, `*.pressure` and `cpu.stat` need none.
    pub unified: Option<Own>,
}

impl Layout {
    /// No control groups at all.
    pub fn none() -> Layout {
        Layout { kind: Kind::None, cpu: None, cpuacct: None, memory: None, cpuset: None, freezer: None, unified: None }
    }

    /// Joins this process's `mountinfo` with its `cgroup` file. A file that cannot be read counts as empty: the machine
    /// then has no control groups for us.
    pub fn discover(paths: &Paths) -> Layout {
        let own = paths.proc.join("self");
        let mounts = mounts::parse(&std::fs::read(own.join("mountinfo")).unwrap_or_default());
        let memberships = parse_memberships(&std::fs::read(own.join("cgroup")).unwrap_or_default());
        Layout::join(paths, &mounts, &memberships)
    }

    fn join(paths: &Paths, mounts: &[Mount], memberships: &[Membership]) -> Layout {
        let unified = find(paths, mounts, memberships, Version::V2, "");
        let listed = unified.as_ref().map(|own| controllers(&own.dir)).unwrap_or_default();
        let v1 = |controller: &str| find(paths, mounts, memberships, Version::V1, controller);
        let either = |controller: &str| v1(controller).or_else(|| unified.clone().filter(|_| listed.iter().any(|name| name == controller)));

        let has_v1 = mounts.iter().any(|mount| mount.kind == "cgroup" && !mount.options.iter().any(|option| option.starts_with("name=")));
        let kind = match (has_v1, unified.is_some()) {
            (true, true) => Kind::Hybrid,
            (true, false) => Kind::V1,
            (false, true) => Kind::V2,
            (false, false) => Kind::None,
        };
        // The v2 tree accounts CPU time and freezes without a controller.
        let with_unified = |own: Option<Own>| own.or_else(|| unified.clone().filter(|_| !has_v1));
        Layout {
            kind,
            cpu: either("cpu"),
            cpuacct: with_unified(v1("cpuacct")),
            memory: either("memory"),
            cpuset: either("cpuset"),
            freezer: with_unified(v1("freezer")),
            unified,
        }
    }
}

/// One line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Empty for the v2 tree; `name=systemd` for a v1 tree without a controller.
    pub controllers: Vec<String>,
    /// Of the group, seen from the reader's cgroup namespace; begins with `/..` when it lies outside.
    pub path: PathBuf,
}

/// Every line of the text, in its order; lines that make no sense are left out.
pub fn parse_memberships(text: &[u8]) -> Vec<Membership> {
    use std::os::unix::ffi::OsStrExt;
    let line = |line: &[u8]| {
        // The path may contain colons itself.
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let _hierarchy = fields.next()?;
        let controllers = std::str::from_utf8(fields.next()?).ok()?;
        let path = fields.next().filter(|path| path.starts_with(b"/"))?;
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
        Some(Membership { controllers, path: PathBuf::from(std::ffi::OsStr::from_bytes(path)) })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn controllers(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(String::from).collect()
}

/// Our own group in the tree of `controller` (`""` for the v2 tree).
fn find(paths: &Paths, mounts: &[Mount], memberships: &[Membership], version: Version, controller: &str) -> Option<Own> {
    let membership = memberships.iter().find(|membership| match version {
        Version::V1 => membership.controllers.iter().any(|name| name == controller),
        Version::V2 => membership.controllers.is_empty(),
    })?;
    let fits = |mount: &&Mount| match version {
        Version::V1 => mount.kind == "cgroup" && mount.options.iter().any(|option| option == controller),
        Version::V2 => mount.kind == "cgroup2",
    };
    // A tree may be mounted more than once; a mount that shows our group is better than one that shows another.
    let mount = mounts.iter().filter(fits).max_by_key(|mount| membership.path.starts_with(&mount.root))?;
    let top = paths.rebase(&mount.point)?;
    let mut dir = match membership.path.strip_prefix(&mount.root) {
        Ok(below) if below.as_os_str().is_empty() => top.clone(),
        // Our group lies outside what this namespace may see: the limits in view belong to others.
        Ok(below) if below.starts_with("..") => return None,
        Ok(below) => top.join(below),
        // The mount shows a part of the tree our path does not lead into, as when a container's folder was mounted
        // over `/sys/fs/cgroup` from outside: what is in view is the container's group, and ours is in it.
        Err(_) if membership.path.starts_with("/..") => return None,
        Err(_) => top.clone(),
    };
    // A path that is not there (a mount made in another namespace): the nearest group above that is.
    while dir != top && !dir.is_dir() {
        dir.pop();
    }
    Some(Own { version, mount: top, dir })
}

/// The smallest number a v1 file writes when it means "no limit": the counter's largest value in whole pages, of the
/// largest page size there is (64 KiB); some kernels print `u64::MAX`.
const NO_LIMIT: u64 = (i64::MAX as u64) & !0xffff;

/// A file of one number.
pub fn parse_number(text: &[u8]) -> Option<u64> {
    number(text)
}

/// A memory limit of either version. Outer `None`: not understood; inner `None`: no limit.
#[expect(clippy::option_option, reason = "\"no limit\" and \"could not read\" are two answers")]
pub fn parse_limit(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        text => number::<u64>(text).map(|bytes| (bytes < NO_LIMIT).then_some(bytes)),
    }
}

/// `cpu.max` (`max 100000`, `50000 100000`): cores. Outer `None`: not understood; inner `None`: no limit.
#[expect(clippy::option_option, reason = "\"no limit\" and \"could not read\" are two answers")]
pub fn parse_cpu_max(text: &[u8]) -> Option<Option<f64>> {
    let mut fields = fields(text);
    let quota = fields.next()?;
    if quota == b"max" {
        return Some(None);
    }
    // The kernel's own default period, where only a quota is given.
    let period = fields.next().map_or(Some(100_000), number);
    cores(number(quota)?, period?).map(Some)
}

/// `cpu.cfs_quota_us`, in microseconds. Outer `None`: not understood; inner `None` (a negative quota): no limit.
#[expect(clippy::option_option, reason = "\"no limit\" and \"could not read\" are two answers")]
pub fn parse_quota(text: &[u8]) -> Option<Option<u64>> {
    number::<i64>(text).map(|quota| u64::try_from(quota).ok())
}

/// How many processors a quota of CPU time per period is worth. `None` for a period or quota of zero, which the kernel
/// never accepts.
pub fn cores(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// The value of `key` in a file of `key value` lines (`cpu.stat`, `memory.stat`, `memory.events`).
pub fn value_of(text: &[u8], key: &str) -> Option<u64> {
    pairs(text).find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
}

/// The lines `key value` of a file; others are left out.
fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = fields(line);
        Some((fields.next()?, number(fields.next()?)?))
    })
}

/// What of a group's memory is what, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStat {
    pub inactive_file: u64,
    pub active_file: u64,
    /// What the kernel cannot give back without swap: anonymous, shared memory and tmpfs, unevictable, kernel stacks,
    /// page tables, slab that is not reclaimable, socket buffers. v1 does not count the kernel's part.
    pub unreclaimable: u64,
    /// v1 only: the smallest limit among the group and its ancestors.
    pub hierarchical_limit: Option<u64>,
    /// v1 only; v2 has a file of its own.
    pub swap: Option<u64>,
}

/// `memory.stat`. `None` without the lines every kernel since 2.6.31 prints.
pub fn parse_memory_stat(text: &[u8], version: Version) -> Option<MemoryStat> {
    let mut stat = MemoryStat::default();
    let (mut inactive_file, mut anonymous) = (None, None);
    // Anonymous and shared pages by the lists they are on, with file pages that are locked in memory.
    let (mut listed, mut shared, mut kernel) = (0u64, 0u64, 0u64);
    let grow = |sum: &mut u64, value| *sum = sum.saturating_add(value);
    for (name, value) in pairs(text) {
        match (version, name) {
            (Version::V2, b"inactive_file") | (Version::V1, b"total_inactive_file") => inactive_file = Some(value),
            (Version::V2, b"active_file") | (Version::V1, b"total_active_file") => stat.active_file = value,
            (Version::V2, b"anon") | (Version::V1, b"total_rss") => anonymous = Some(value),
            (Version::V2, b"shmem") | (Version::V1, b"total_shmem") => shared = value,
            (Version::V2, b"inactive_anon" | b"active_anon" | b"unevictable")
            | (Version::V1, b"total_inactive_anon" | b"total_active_anon" | b"total_unevictable") => grow(&mut listed, value),
            (Version::V2, b"kernel_stack" | b"pagetables" | b"sec_pagetables" | b"percpu" | b"slab_unreclaimable" | b"sock") => {
                grow(&mut kernel, value);
            }
            (Version::V1, b"hierarchical_memory_limit") => stat.hierarchical_limit = (value < NO_LIMIT).then_some(value),
            (Version::V1, b"total_swap") => stat.swap = Some(value),
            _ => {}
        }
    }
    stat.inactive_file = inactive_file?;
    // Not the sum of anonymous, shared and unevictable: a worker that locks its memory would be counted twice.
    stat.unreclaimable = anonymous?.saturating_add(shared).max(listed).saturating_add(kernel);
    Some(stat)
}
