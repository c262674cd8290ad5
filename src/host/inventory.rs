//! Cold facts about the machine and the platform, asked once at the start and shown to people.

use std::path::{Path, PathBuf};

use super::paths::Paths;

/// What the machine is. `None` or empty where it cannot be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    pub kernel: Option<String>,
    /// `Debian GNU/Linux 12`
    pub system: Option<String>,
    /// Processors the machine has, whatever we may use of them.
    pub cpus: Option<usize>,
    /// Bytes; to check what `/proc/meminfo` says against.
    pub memory: Option<u64>,
    /// Seconds since 1970.
    pub booted_at: Option<u64>,
}

/// What tells this machine from others, and stays: the machine's id, else its name.
pub fn machine_id() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    match id.trim() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        id => id.to_owned(),
    }
}

/// A mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub mount_point: PathBuf,
    pub filesystem: String,
    /// Bytes.
    pub size: u64,
    /// Bytes.
    pub avail: u64,
}

impl Inventory {
    /// Of the machine this runs on, whatever roots are set for reading.
    pub fn take() -> Inventory {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing()
                .with_cpu(sysinfo::CpuRefreshKind::nothing())
                .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
        );
        // Without /proc the crate answers with zeros.
        let known = |number: u64| Some(number).filter(|number| *number > 0);
        let system = system.ok();
        Inventory {
            kernel: sysinfo::System::kernel_version().ok(),
            system: sysinfo::System::long_os_version().ok(),
            cpus: system.as_ref().map(|system| system.cpus().len()).filter(|count| *count > 0),
            memory: system.as_ref().and_then(|system| known(system.total_memory())),
            booted_at: sysinfo::System::boot_time().ok().and_then(known),
        }
    }
}

/// Every disk that is mounted, for people. **May hang** on a dead FUSE mount: never called from the loop.
pub fn disks() -> Vec<Disk> {
    let Ok(disks) = sysinfo::Disks::new_with_refreshed_list() else { return Vec::new() };
    let disk = |disk: &sysinfo::Disk| Disk {
        mount_point: disk.mount_point().to_path_buf(),
        filesystem: disk.file_system().to_string_lossy().into_owned(),
        size: disk.total_space(),
        avail: disk.available_space(),
    };
    disks.iter().map(disk).collect()
}

/// What we were started by, most telling first: a platform's container is also a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Kubernetes,
    Railway,
    Render,
    Fly,
    Docker,
    Podman,
    /// Some container that does not say which.
    Container,
    Systemd,
    Host,
}

impl Platform {
    pub const ALL: [Platform; 9] = [
        Platform::Kubernetes,
        Platform::Railway,
        Platform::Render,
        Platform::Fly,
        Platform::Docker,
        Platform::Podman,
        Platform::Container,
        Platform::Systemd,
        Platform::Host,
    ];

    /// Those people deploy to and know by name.
    pub const NAMED: [Platform; 7] =
        [Platform::Railway, Platform::Render, Platform::Fly, Platform::Docker, Platform::Podman, Platform::Kubernetes, Platform::Systemd];

    /// What is written there is gone with the container, and little can be set from inside.
    pub fn is_container(self) -> bool {
        !matches!(self, Platform::Systemd | Platform::Host)
    }

    pub fn word(self) -> &'static str {
        match self {
            Platform::Kubernetes => "kubernetes",
            Platform::Railway => "railway",
            Platform::Render => "render",
            Platform::Fly => "fly",
            Platform::Docker => "docker",
            Platform::Podman => "podman",
            Platform::Container => "container",
            Platform::Systemd => "systemd",
            Platform::Host => "host",
        }
    }

    /// By what the environment says, and by the files container engines leave at the root. `environment` looks a
    /// variable up; an empty value counts as unset.
    pub fn detect(paths: &Paths, environment: impl Fn(&str) -> Option<String>) -> Platform {
        let set = |name: &str| environment(name).is_some_and(|value| !value.is_empty());
        // A machine that is a folder has its root beside its /proc.
        let root = paths.proc.parent().unwrap_or(Path::new("/"));
        let left = |file: &str| root.join(file).exists();
        let told = environment("container").filter(|engine| !engine.is_empty());
        if set("KUBERNETES_SERVICE_HOST") {
            Platform::Kubernetes
        } else if ["RAILWAY_ENVIRONMENT_ID", "RAILWAY_ENVIRONMENT", "RAILWAY_SERVICE_ID", "RAILWAY_PROJECT_ID"].into_iter().any(set) {
            Platform::Railway
        } else if set("RENDER") {
            Platform::Render
        } else if set("FLY_APP_NAME") {
            Platform::Fly
        } else if left(".dockerenv") || told.as_deref() == Some("docker") {
            Platform::Docker
        } else if left("run/.containerenv") || told.as_deref() == Some("podman") {
            Platform::Podman
        } else if told.is_some() {
            Platform::Container
        } else if set("INVOCATION_ID") {
            Platform::Systemd
        } else {
            Platform::Host
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let inventory = Inventory::take();
        assert!(inventory.kernel.is_some() && inventory.cpus.is_some() && inventory.booted_at.is_some(), "{inventory:?}");
        let meminfo = super::super::procfs::parse_meminfo(&std::fs::read("/proc/meminfo").unwrap()).unwrap();
        assert_eq!(inventory.memory, Some(meminfo.total));
    }

    #[test]
    fn platforms_by_their_marks() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        for (marks, platform) in [
            (&[][..], Platform::Host),
            (&[("INVOCATION_ID", "6d1e")], Platform::Systemd),
            (&[("INVOCATION_ID", "")], Platform::Host),
            (&[("container", "lxc"), ("INVOCATION_ID", "6d1e")], Platform::Container),
            (&[("container", "podman")], Platform::Podman),
            (&[("container", "docker")], Platform::Docker),
            (&[("FLY_APP_NAME", "shop")], Platform::Fly),
            (&[("RENDER", "true")], Platform::Render),
            (&[("RAILWAY_SERVICE_ID", "1")], Platform::Railway),
            (&[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("RENDER", "true")], Platform::Kubernetes),
        ] {
            let look_up = |name: &str| marks.iter().find(|(mark, _)| *mark == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(Platform::detect(&paths, look_up), platform, "{marks:?}");
        }
        std::fs::write(folder.path().join(".dockerenv"), "").unwrap();
        assert_eq!(Platform::detect(&paths, |_| None), Platform::Docker);
    }
}
