//! Whose usage is held against whose limit.

use std::path::Path;
use std::sync::Arc;

use super::limits::Candidates;
use super::readings::LimitSource;
use crate::config::settings;

/// What the daemon looks at as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// The group that carries the limit, be it ours or an ancestor's.
    Container,
    #[default]
    Host,
    /// The group of a worker's container, seen from within it.
    Worker,
    /// The workers' processes, where that cannot be seen.
    Workers,
}

impl Extent {
    pub fn word(self) -> &'static str {
        match self {
            Extent::Container => "container",
            Extent::Host => "host",
            Extent::Worker => "worker",
            Extent::Workers => "workers",
        }
    }

    /// What is used is read from a group.
    pub fn is_group(self) -> bool {
        matches!(self, Extent::Container | Extent::Worker)
    }
}

/// The decision, and what it rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    pub extent: Extent,
    /// Only the machine counts: asked for in the settings.
    pub machine_only: bool,
    /// The group with the smallest CPU quota, where it can be seen.
    pub cpu_group: Option<Arc<Path>>,
    /// The group with the smallest memory limit, where it can be seen.
    pub memory_group: Option<Arc<Path>>,
    /// The numbers it was decided by, soft memory limit included.
    pub candidates: Candidates,
}

impl Scope {
    /// True where nothing tells what the whole uses; `accounts`: its group does. A container without accounts is read as a host; of
    /// somebody else's that would be what strangers use.
    pub fn is_unseen(&self, accounts: bool) -> bool {
        self.extent == Extent::Workers || (self.extent == Extent::Worker && !accounts)
    }

    /// True where it is the workers' own use that is held against a limit from `source`: what the whole uses is not seen, or nothing
    /// bounds it but a file. `limited`: its groups have a limit, read or not.
    pub fn is_of_workers(&self, accounts: bool, source: LimitSource, limited: bool) -> bool {
        self.is_unseen(accounts) || (source == LimitSource::File && !(accounts && limited))
    }

    /// `Auto` is the container when a group's limit is smaller than the machine, or when the topmost group to be seen
    /// carries one at all: the real top of a tree cannot be limited, so that is a container looking at itself. While a
    /// limit cannot be read everything stays as it was `before`: whose usage is judged must not hang on a failed read.
    /// For a worker's container it is there or not: `seen`.
    pub fn decide(setting: &settings::Scope, seen: bool, candidates: Candidates, before: &Scope) -> Scope {
        let below = |amount: f64, machine: Option<f64>| machine.is_none_or(|machine| amount < machine);
        let memory = candidates.memory.as_ref();
        let quota = candidates.quota.as_ref();
        let limited = memory.is_some_and(|limit| limit.at_top || below(limit.amount as f64, candidates.total.map(|total| total as f64)))
            || quota.is_some_and(|limit| limit.at_top || below(limit.amount, candidates.online))
            || candidates.cpuset.is_some_and(|cores| below(cores, candidates.online));
        let (no_cpu, no_memory) = (candidates.cpu_failure.is_some(), candidates.memory_failure.is_some());
        // Before the first look there is nothing to go by but what was found.
        let unknown = (no_cpu || no_memory) && *before != Scope::default();
        let cpu_group = quota.and_then(|limit| limit.group.clone());
        let memory_group = memory.and_then(|limit| limit.group.clone());
        let extent = match setting {
            settings::Scope::Container => Extent::Container,
            settings::Scope::Host => Extent::Host,
            settings::Scope::Auto if unknown => before.extent,
            settings::Scope::Auto if limited => Extent::Container,
            settings::Scope::Auto => Extent::Host,
            settings::Scope::Worker(_) if seen => Extent::Worker,
            settings::Scope::Worker(_) => Extent::Workers,
        };
        Scope {
            extent,
            machine_only: *setting == settings::Scope::Host,
            cpu_group: if no_cpu && unknown { before.cpu_group.clone() } else { cpu_group },
            memory_group: if no_memory && unknown { before.memory_group.clone() } else { memory_group },
            candidates,
        }
    }
}
