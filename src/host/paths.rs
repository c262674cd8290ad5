//! Where the kernel is reached, so that a whole machine can be a folder.

use std::path::{Path, PathBuf};

use crate::config::settings::HostPaths;

/// Where every machine mounts its cgroup trees; mountinfo speaks in terms of it.
const CGROUP: &str = "/sys/fs/cgroup";
/// Where the journal takes the output of others in.
const JOURNAL: &str = "/run/systemd/journal/stdout";

/// The roots under which everything is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/sys/fs/cgroup`
    pub cgroup: PathBuf,
    /// `/run/systemd/journal/stdout`
    pub journal: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Paths { proc: "/proc".into(), sys: "/sys".into(), cgroup: CGROUP.into(), journal: JOURNAL.into() }
    }
}

impl From<&HostPaths> for Paths {
    fn from(paths: &HostPaths) -> Self {
        Paths { proc: paths.proc.clone(), sys: paths.sys.clone(), cgroup: paths.cgroup.clone(), journal: paths.journal.clone() }
    }
}

impl Paths {
    /// A machine kept in `folder`: its `proc`, `sys`, `cgroup` and `run` below it.
    pub fn below(folder: &Path) -> Self {
        let below = |name: &str| folder.join(name);
        Paths { proc: below("proc"), sys: below("sys"), cgroup: below("cgroup"), journal: folder.join(JOURNAL.trim_start_matches('/')) }
    }

    /// True for the machine we run on: pids found here may be asked of the kernel directly.
    pub fn is_live(&self) -> bool {
        self.proc == Path::new("/proc")
    }

    /// The folder of one process in `/proc`; of ourselves with `None`.
    pub fn of_process(&self, pid: Option<i32>) -> PathBuf {
        match pid {
            Some(pid) => self.proc.join(pid.to_string()),
            None => self.proc.join("self"),
        }
    }

    /// The same machine, its control groups as one process sees them: by what is mounted in its own root.
    pub fn seen_by(&self, pid: i32) -> Paths {
        let cgroup = self.of_process(Some(pid)).join("root").join(CGROUP.trim_start_matches('/'));
        Paths { cgroup, ..self.clone() }
    }

    /// Where a mount point named in mountinfo is found. `None` for one outside `/sys/fs/cgroup` on a machine that is a
    /// folder: it would lead out of the folder.
    pub fn rebase(&self, mount_point: &Path) -> Option<PathBuf> {
        if self.cgroup == Path::new(CGROUP) {
            return Some(mount_point.to_path_buf());
        }
        let rest = mount_point.strip_prefix(CGROUP).ok()?;
        // Joining an empty path would leave a trailing slash behind.
        Some(if rest.as_os_str().is_empty() { self.cgroup.clone() } else { self.cgroup.join(rest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_machine_is_read_where_it_says() {
        let paths = Paths::default();
        assert!(paths.is_live());
        assert_eq!(paths.rebase(Path::new("/other/cgroup")), Some("/other/cgroup".into()));
    }

    #[test]
    fn a_folder_is_never_left() {
        let paths = Paths::below(Path::new("/m"));
        assert!(!paths.is_live());
        assert_eq!(paths.rebase(Path::new("/sys/fs/cgroup")), Some("/m/cgroup".into()));
        assert_eq!(paths.rebase(Path::new("/sys/fs/cgroup/memory")), Some("/m/cgroup/memory".into()));
        assert_eq!(paths.rebase(Path::new("/other/cgroup")), None);
    }
}
