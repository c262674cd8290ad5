//! `adopt`: exactly one way to find it, and nothing beside it that says how a worker is started.

use std::path::PathBuf;

use super::{DEFAULT_PATH, Sense, fault};
use crate::config::adopt::{Adopt, AdoptBy, compile};
use crate::config::file;
use crate::config::settings::{Members, ThrottleMethod};

/// What is of no use for a program that somebody else starts.
const OF_A_START: [&str; 24] = [
    "command",
    "directory",
    "user",
    "group",
    "env",
    "env_files",
    "replicas",
    "listen",
    "after",
    "ready",
    "restart",
    "backoff",
    "on_daemon_death",
    "singleton",
    "lock",
    "umask",
    "nice",
    "ionice",
    "affinity",
    "oom_score_adj",
    "merge_pages",
    "rlimits",
    "output",
    "recycle.overlap",
];

/// What needs somebody to know how it is restarted.
const OF_A_RESTART: [&str; 4] = ["recycle.lifetime", "recycle.requests", "recycle.memory", "recycle.leak"];

/// Command lines that have nothing in common: an expression that matches all of them asks for nothing.
const UNLIKE: [&str; 3] = ["/sbin/init", "x", "7 B~"];

/// Kinds of units that have processes.
const UNITS: [&str; 3] = [".service", ".scope", ".slice"];

impl Sense<'_> {
    /// `None` for a worker that is started by the daemon.
    pub(super) fn adopt(&mut self, key: &str, worker: &file::Worker) -> Option<Adopt> {
        let adopt = &worker.adopt;
        if *adopt == file::Adopt::default() {
            return None;
        }
        let table = format!("{key}.adopt");
        // By what they say, not by whether somebody has said it: `config show` says everything.
        let asks = asks_for(worker);
        for name in OF_A_START.iter().filter(|name| asks(name)) {
            let message = "stands beside adopt: somebody else starts it".to_owned();
            self.refuse(&format!("{key}.{name}"), message, "a worker that is either started or adopted");
        }
        for name in OF_A_RESTART.iter().filter(|name| adopt.restart.is_empty() && asks(name)) {
            let message = "would replace it, and nothing says how that is done".to_owned();
            let allowed = "adopt.restart beside it, such as [\"systemctl\", \"restart\", \"app\"]";
            self.refuse(&format!("{key}.{name}"), message, allowed);
        }
        if worker.throttle == ThrottleMethod::Cgroup {
            let message = "\"cgroup\" cannot hold it: it stays in the group it is in, which is not ours to limit".to_owned();
            self.refuse(&format!("{key}.throttle"), message, "\"auto\", \"duty\", \"nice\" or \"never\"");
        }
        if worker.members == Members::Children && !adopt.may_end {
            let message = "would end children of what somebody else has started".to_owned();
            self.refuse(&format!("{key}.members"), message, "adopt.may_end = true beside it");
        }
        self.restart_command(&table, worker);
        let by = self.way(&table, adopt);
        Some(Adopt {
            by,
            restart: Some(adopt.restart.clone()).filter(|command| !command.is_empty()),
            restart_within: adopt.restart_within.duration(),
            may_end: adopt.may_end,
        })
    }

    /// The one way it is found.
    fn way(&mut self, table: &str, adopt: &file::Adopt) -> AdoptBy {
        let owner = adopt.owner.as_ref().map(|owner| owner.0.clone());
        let ways = [
            ("pidfile", adopt.pidfile.as_ref().map(|path| AdoptBy::Pidfile(PathBuf::from(path)))),
            ("unit", adopt.unit.clone().map(AdoptBy::Unit)),
            ("cgroup", adopt.cgroup.as_ref().map(|path| AdoptBy::Cgroup(PathBuf::from(path)))),
            ("match", adopt.pattern.clone().map(|pattern| AdoptBy::Match { pattern, owner: owner.clone() })),
        ];
        let all = "one of pidfile, unit, cgroup and match";
        let mut set = ways.into_iter().filter_map(|(name, way)| Some((name, way?)));
        let Some((name, by)) = set.next() else {
            if !self.is_spoiled(table) {
                let place = self.place_of_key(table);
                self.push(table, place, "says no way to find it".to_owned(), all, None);
            }
            return AdoptBy::Unit(String::new());
        };
        if let Some((other, _)) = set.next() {
            self.refuse(&format!("{table}.{other}"), format!("stands beside {name}"), all);
        }
        let key = format!("{table}.{name}");
        match &by {
            AdoptBy::Pidfile(path) => drop(self.absolute(&key, &path.to_string_lossy())),
            AdoptBy::Unit(unit) => {
                let is_one = UNITS.iter().any(|kind| unit.strip_suffix(kind).is_some_and(|name| !name.is_empty()));
                if !is_one || unit.contains('/') {
                    self.refuse(&key, format!("{unit:?} is no unit with processes"), "a service, scope or slice, such as \"app.service\"");
                }
            }
            AdoptBy::Cgroup(path) => {
                let is_plain = path.is_absolute() && path.components().all(|part| part.as_os_str() != "..");
                if !is_plain || path.parent().is_none() {
                    let message = format!("{:?} is no group of its own", path.display().to_string());
                    self.refuse(&key, message, "a path below the root of the tree, such as \"/app\"");
                }
            }
            AdoptBy::Match { pattern, .. } => match compile(pattern) {
                Err(why) => self.refuse(&key, format!("{pattern:?} cannot be used: {why}"), "a regular expression"),
                Ok(expression) if expression.is_match("") || UNLIKE.iter().all(|line| expression.is_match(line)) => {
                    self.refuse(&key, format!("{pattern:?} matches every command line"), "an expression that asks for something");
                }
                Ok(_) => self.account(&format!("{table}.owner"), owner.as_deref(), "/etc/passwd", "user"),
            },
        }
        if owner.is_some() && name != "match" {
            self.refuse(&format!("{table}.owner"), format!("is of no use for {name}"), "match beside it");
        }
        by
    }

    fn restart_command(&mut self, table: &str, worker: &file::Worker) {
        let key = format!("{table}.restart");
        let Some(program) = worker.adopt.restart.first() else { return };
        let allowed = "a list of the program and its arguments, such as [\"systemctl\", \"restart\", \"app\"]";
        if program.is_empty() {
            return self.refuse(&self.item(&key, 0), "is empty".to_owned(), allowed);
        }
        // As `execvp` will look for it.
        let path = self.sources.variable("PATH").unwrap_or(DEFAULT_PATH);
        let found = match program.contains('/') {
            true => fault(&self.sources.working_dir.join(program)),
            false if path.split(':').any(|folder| fault(&self.sources.working_dir.join(folder).join(program)).is_none()) => None,
            false => Some("is in no folder of PATH".to_owned()),
        };
        if let Some(why) = found {
            self.refuse(&self.item(&key, 0), format!("{program:?} {why}"), "a program that can be run");
        }
    }
}

/// Whether a key of this worker asks for anything but its default.
fn asks_for(worker: &file::Worker) -> impl Fn(&str) -> bool {
    // Plain tables of texts and numbers are what they were read from: this cannot fail.
    let table = |worker: &file::Worker| serde_json::to_value(worker).unwrap_or_default();
    let (written, usual) = (table(worker), table(&file::Worker::default()));
    move |name: &str| {
        let pointer = format!("/{}", name.replace('.', "/"));
        written.pointer(&pointer) != usual.pointer(&pointer)
    }
}
