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
        Layout::of_process(paths, None)
    }

    /// The same for one process, with paths as it sees them ([`Paths::seen_by`]).
    pub fn of_process(paths: &Paths, pid: Option<i32>) -> Layout {
        let own = paths.of_process(pid);
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
pub fn parse_limit(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        text => number::<u64>(text).map(|bytes| (bytes < NO_LIMIT).then_some(bytes)),
    }
}

/// `cpu.max` (`max 100000`, `50000 100000`): cores. Outer `None`: not understood; inner `None`: no limit.
pub fn parse_cpu_max(text: &[u8]) -> Option<Option<f64>> {
    let mut fields = fields(text);
    let quota = fields.next()?;
    if quota == b"max" {
        return Some(None);
    }
    cores(number(quota)?, number(fields.next()?)?).map(Some)
}

/// `cpu.cfs_quota_us`, in microseconds. Outer `None`: not understood; inner `None` (a negative quota): no limit.
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
    /// page tables, slab that is not reclaimable, socket buffers. v1 does not count the kernel's part here.
    ///
    /// File pages that are dirty or being written are not in it. They cannot be dropped at once, but within moments, and
    /// the kernel makes whoever writes more of them wait: counting them would raise the alarm at every large copy.
    pub unreclaimable: u64,
    /// Caches of the kernel that it gives back when asked. v1 does not count them here.
    pub kernel_caches: u64,
    /// v1 only: the smallest limit among the group and its ancestors.
    pub hierarchical_limit: Option<u64>,
    /// v1 only; v2 has a file of its own.
    pub swap: Option<u64>,
    pub refaults: Refaults,
}

/// Pages that were reclaimed and wanted back, since the group or the machine began. `None`: not counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refaults {
    /// However long they had been gone.
    pub all: Option<u64>,
    /// Those there had been room for. v1 groups do not tell them apart.
    pub activated: Option<u64>,
    /// Faults that had to be waited for: a program touched what is mapped, it did not read a file.
    pub major_faults: Option<u64>,
}

impl Refaults {
    /// Takes in one line of `memory.stat` or `/proc/vmstat`, if it is one of these.
    pub fn take(&mut self, name: &[u8], value: u64) {
        let sum = match name {
            // One line until 5.9, two since.
            b"workingset_refault" | b"workingset_refault_anon" | b"workingset_refault_file" => &mut self.all,
            b"workingset_activate" | b"workingset_activate_anon" | b"workingset_activate_file" => &mut self.activated,
            b"pgmajfault" => &mut self.major_faults,
            _ => return,
        };
        *sum = Some(sum.unwrap_or(0).saturating_add(value));
    }
}

impl MemoryStat {
    /// Pages of files, mapped or not, without shared memory.
    pub fn file_cache(&self) -> u64 {
        self.inactive_file.saturating_add(self.active_file)
    }

    /// All that is listed.
    pub fn listed(&self) -> u64 {
        self.unreclaimable.saturating_add(self.file_cache()).saturating_add(self.kernel_caches)
    }
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
            (Version::V2, b"slab_reclaimable") => stat.kernel_caches = value,
            (Version::V1, b"hierarchical_memory_limit") => stat.hierarchical_limit = (value < NO_LIMIT).then_some(value),
            (Version::V1, b"total_swap") => stat.swap = Some(value),
            (Version::V2, name) => stat.refaults.take(name, value),
            (Version::V1, name) => {
                if let Some(name) = name.strip_prefix(b"total_") {
                    stat.refaults.take(name, value);
                }
            }
        }
    }
    stat.inactive_file = inactive_file?;
    // Not the sum of anonymous, shared and unevictable: a worker that locks its memory would be counted twice.
    stat.unreclaimable = anonymous?.saturating_add(shared).max(listed).saturating_add(kernel);
    Some(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own(mount: &str, dir: &str) -> Own {
        Own { version: Version::V1, mount: mount.into(), dir: dir.into() }
    }

    #[test]
    fn the_groups_above_ours_end_at_the_top_of_the_tree() {
        let folders = |own: &Own| own.ancestors().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
        assert_eq!(folders(&own("/c", "/c/a/b")), ["/c/a/b", "/c/a", "/c"]);
        assert_eq!(folders(&own("/c", "/c")), ["/c"]);
    }

    /// What mountinfo's root and our path in `/proc/self/cgroup` make of each other; `/c/a/b` is there, nothing else.
    #[test]
    fn our_group_is_found_however_the_tree_was_mounted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("cgroup/a/b")).unwrap();
        let paths = Paths::below(folder.path());
        for (name, root, path, expected) in [
            ("the whole tree", "/", "/a/b", Some("a/b")),
            ("a container without a namespace of its own", "/docker/x", "/docker/x", Some("")),
            ("a group below a container's", "/docker/x", "/docker/x/a", Some("a")),
            ("a private namespace", "/", "/", Some("")),
            ("a namespace entered from outside", "/", "/../other", None),
            ("a mount made above our namespace", "/..", "/", Some("")),
            ("a mount that shows another part", "/docker/x", "/kubepods/y", Some("")),
            ("a path not mounted here", "/", "/a/gone/deep", Some("a")),
        ] {
            let mounts = mounts::parse(format!("1 0 0:30 {root} /sys/fs/cgroup rw - cgroup2 cgroup rw\n").as_bytes());
            let memberships = parse_memberships(format!("0::{path}\n").as_bytes());
            let found = Layout::join(&paths, &mounts, &memberships);
            let top = paths.cgroup.clone();
            let dir = expected.map(|below| if below.is_empty() { top.clone() } else { top.join(below) });
            assert_eq!(found.unified.as_ref().map(|own| own.dir.clone()), dir, "{name}");
            assert_eq!(found.memory, None, "{name}: no controller is listed");
        }
    }

    #[test]
    fn limits_of_both_generations() {
        for (text, limit) in [
            ("max\n", Some(None)),
            ("536870912\n", Some(Some(536_870_912))),
            ("0", Some(Some(0))),
            // No limit, with pages of 4 and 64 KiB, and as old kernels print it.
            ("9223372036854771712", Some(None)),
            ("9223372036854710272", Some(None)),
            ("18446744073709551615", Some(None)),
            ("", None),
            ("-1", None),
            ("max 1", None),
        ] {
            assert_eq!(parse_limit(text.as_bytes()), limit, "{text:?}");
        }
    }

    #[test]
    fn cpu_limits_of_both_generations() {
        for (text, limit) in [
            ("max 100000\n", Some(None)),
            ("50000 100000", Some(Some(0.5))),
            ("150000", None),
            ("50000 0", None),
            ("0 100000", None),
            ("x 100000", None),
            ("", None),
        ] {
            assert_eq!(parse_cpu_max(text.as_bytes()), limit, "{text:?}");
        }
        assert_eq!(parse_quota(b"-1\n"), Some(None));
        assert_eq!(parse_quota(b"25000\n"), Some(Some(25_000)));
        assert_eq!(parse_quota(b""), None);
    }

    #[test]
    fn what_cannot_be_given_back_counts_locked_memory_once() {
        let v2 = "anon 100\nshmem 50\ninactive_anon 20\nactive_anon 10\nunevictable 130\ninactive_file 7\nactive_file 8\n\
                  kernel_stack 1\npagetables 2\nslab_unreclaimable 3\nsock 4\n";
        let stat = parse_memory_stat(v2.as_bytes(), Version::V2).unwrap();
        // 150 anonymous and shared, 120 of them locked, and 10 of locked file: 160 in all.
        assert_eq!((stat.unreclaimable, stat.inactive_file, stat.active_file), (160 + 10, 7, 8));
        let v1 = "rss 1\ntotal_rss 100\ntotal_shmem 50\ntotal_inactive_file 7\ntotal_active_file 8\ntotal_swap 9\nhierarchical_memory_limit 1000\n";
        let stat = parse_memory_stat(v1.as_bytes(), Version::V1).unwrap();
        assert_eq!((stat.unreclaimable, stat.hierarchical_limit, stat.swap), (150, Some(1000), Some(9)));
        assert_eq!(stat.refaults, Refaults::default());
        // Kernels that have no line for shared memory have it on the lists of anonymous pages all the same.
        let old = "total_rss 100\ntotal_inactive_file 7\ntotal_inactive_anon 30\ntotal_active_anon 110\ntotal_workingset_refault 4\n\
                   pgmajfault 1\ntotal_pgmajfault 6\n";
        let stat = parse_memory_stat(old.as_bytes(), Version::V1).unwrap();
        assert_eq!((stat.unreclaimable, stat.refaults), (140, Refaults { all: Some(4), activated: None, major_faults: Some(6) }));
        let since_5_9 = "anon 1\ninactive_file 2\nworkingset_refault_file 9\nworkingset_activate_anon 3\nworkingset_activate_file 4\n";
        let refaults = parse_memory_stat(since_5_9.as_bytes(), Version::V2).unwrap().refaults;
        assert_eq!(refaults, Refaults { all: Some(9), activated: Some(7), major_faults: None });
        assert_eq!(parse_memory_stat(b"cache 1\n", Version::V1), None);
        assert_eq!(parse_memory_stat(b"", Version::V2), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_memberships(&text);
            parse_limit(&text);
            parse_cpu_max(&text);
            parse_quota(&text);
            parse_number(&text);
            value_of(&text, "usage_usec");
            parse_memory_stat(&text, Version::V1);
            parse_memory_stat(&text, Version::V2);
        }

        #[test]
        fn sums_of_any_size_are_survived(values in proptest::collection::vec(any::<u64>(), 8)) {
            let names = ["anon", "shmem", "inactive_anon", "active_anon", "unevictable", "inactive_file", "kernel_stack", "sock"];
            let text: String = names.iter().zip(&values).map(|(name, value)| format!("{name} {value}\n")).collect();
            prop_assert!(parse_memory_stat(text.as_bytes(), Version::V2).unwrap().unreclaimable >= values[0]);
        }

        #[test]
        fn a_limit_is_kept_as_it_is(bytes in 0u64..1 << 62) {
            prop_assert_eq!(parse_limit(bytes.to_string().as_bytes()), Some(Some(bytes)));
        }
    }
}
