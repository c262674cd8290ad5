//! A group to measure in: preferred to all else on the machine, so that strangers do not spoil what is measured; and with a
//! CPU quota, where asked for, as a platform makes it for a container: a daemon started inside takes it for its machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::outside;
use crate::stage::Stage;

/// Four times everybody else's 1024. Not more: what is measured beside rivals keeps every processor busy for up to 40 s, and
/// with the largest weight there is the daemons of other tests did not run at all meanwhile.
const PREFERRED: &str = "4096";

/// Declared before the stage that lives in it: removed after that has gone.
pub struct Yard {
    quota: PathBuf,
    accounting: PathBuf,
}

impl Yard {
    /// With a quota of so many cores, or none. `None` where the kernel or the permissions grant no v1 groups: there the
    /// system tests do this with systemd and v2.
    pub fn new(cores: Option<f64>) -> Option<Yard> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("plimsoll-yard-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let own = outside::groups(std::process::id() as i32);
        let folder = |controller: &str| own.iter().find(|(name, _)| name == controller).map(|(_, folder)| folder.join(&name));
        let yard = Yard { quota: folder("cpu")?, accounting: folder("cpuacct")? };
        for folder in yard.folders() {
            fs::create_dir(folder).ok()?;
        }
        fs::write(yard.quota.join("cpu.shares"), PREFERRED).ok()?;
        if let Some(cores) = cores {
            fs::write(yard.quota.join("cpu.cfs_quota_us"), format!("{}", (cores * 100_000.0) as u64)).ok()?;
        }
        Some(yard)
    }

    fn folders(&self) -> Vec<&Path> {
        let mut folders = vec![self.quota.as_path(), self.accounting.as_path()];
        folders.dedup();
        folders
    }

    /// Starts the daemon of a stage inside.
    pub fn start(&self, stage: &mut Stage) {
        let command = self.inside(&stage.plimsoll(&["run"]));
        stage.launch_as(command);
        stage.event("daemon_started", |_| true);
    }

    /// The same command, begun inside.
    fn inside(&self, command: &Command) -> Command {
        let mut shell = Command::new("/bin/sh");
        let enter: String = self.folders().iter().map(|folder| format!("echo $$ > {}/cgroup.procs; ", folder.display())).collect();
        shell.arg("-c").arg(format!("{enter}exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
        shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        shell
    }

    pub fn enter(&self, pid: u32) {
        for folder in self.folders() {
            fs::write(folder.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
        }
    }

    /// CPU time of everybody who is or was in it.
    pub fn cpu_time(&self) -> Duration {
        let text = fs::read_to_string(self.accounting.join("cpuacct.usage")).expect("its account");
        Duration::from_nanos(text.trim().parse().expect("a number"))
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for folder in self.folders() {
            for made in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                outside::remove_group(&made.path());
            }
            outside::remove_group(folder);
        }
    }
}
