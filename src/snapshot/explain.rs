//! Why things are as they are, beside the snapshot that says how they are: plain data, written by the loop when it changes.
//! It is the wire form of `GET /admin/explain` and what `plimsoll explain` prints.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ResourceState, Snapshot, WorkerState};

/// What the loop last had to say of every resource and worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Explained {
    pub resources: Vec<ResourceWhy>,
    pub workers: Vec<WorkerWhy>,
}

/// One setting that had a part in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    pub key: String,
    /// As it would be written in the file.
    pub value: String,
    /// `plimsoll.toml:12:1`, `built-in`, `environment NAME`, `--set KEY`, or which other key it follows.
    pub origin: String,
}

/// Why a resource is judged as it is, what was done, what comes next, and what ends it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceWhy {
    pub resource: String,
    /// What is measured, in words.
    pub measure: String,
    /// Where the limit comes from: `cgroup`, `machine`, `settings` …
    pub limit_source: String,
    /// Per second, in cores or bytes; positive while filling.
    pub growth: f64,
    /// Since when usage has been over `high` without a break; seconds since 1970.
    pub over_since: Option<f64>,
    /// How long that must last before the state follows.
    pub sustain_s: f64,
    /// It fills too fast to be waited for, and something is done sooner than the settings say; empty where that is not so.
    #[serde(default)]
    pub early: String,
    pub settings: Arc<[Setting]>,
    pub ladder: Vec<RungWhy>,
    /// Whom a drastic rung would take, the first in front; those who are spared come last.
    pub candidates: Vec<CandidateWhy>,
    /// Candidates that are not listed.
    pub more_candidates: u64,
    /// The newest first.
    pub actions: Vec<ActionWhy>,
    pub next: String,
    pub ends: String,
}

/// One rung of a ladder and what it would do at this moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RungWhy {
    /// `high` or `critical`: the line it belongs to.
    pub level: String,
    pub rung: String,
    /// `on_trial`, `tried`, `ready`, `waits`, `passes`
    pub state: String,
    pub detail: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CandidateWhy {
    pub worker: String,
    /// 1 is taken first; absent for one that is spared.
    pub place: Option<u32>,
    pub why: String,
}

/// One action and what it brought. Shares are of the limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionWhy {
    pub id: u64,
    /// Seconds since 1970.
    pub at: f64,
    pub action: String,
    pub workers: Vec<String>,
    /// `done`, `dry_run`, `gone`, `unavailable`, `failed`
    pub outcome: String,
    pub detail: String,
    pub reason: String,
    pub before: Option<f64>,
    pub after_1s: Option<f64>,
    pub after_10s: Option<f64>,
    /// Absent while it is being measured.
    pub effective: Option<bool>,
}

/// Why a worker is as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerWhy {
    pub name: Arc<str>,
    pub settings: Arc<[Setting]>,
    /// Who is held, to what, and for which resource.
    pub holds: Vec<HoldWhy>,
    /// Its last ends, the newest first.
    pub ends: Vec<EndWhy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldWhy {
    pub replica: u32,
    /// `cpu`, `memory`; `cpu` with nothing over its line is the worker's own `limits.cpu`.
    pub resource: String,
    /// To so many cores.
    pub cores: Option<f64>,
    /// At so many bytes of memory: beyond them the kernel slows it.
    pub memory_bytes: Option<u64>,
}

/// One end of a replica, or the failure to start it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndWhy {
    /// Seconds since 1970.
    pub at: f64,
    pub replica: u32,
    /// The reason of `plimsoll_worker_exits_total`, or `start_failed`, `gave_up`.
    pub reason: String,
    /// What it was replaced for, if it was.
    pub cause: Option<String>,
    /// For people, with the figures.
    pub detail: String,
}

/// The answer: how things are and why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// Seconds since 1970 when the readings were taken.
    pub taken_at: f64,
    /// No resource is over a line or held, every worker runs free.
    pub all_normal: bool,
    pub resources: Vec<ResourceExplained>,
    pub workers: Vec<WorkerExplained>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ResourceExplained {
    pub state: ResourceState,
    /// Absent when it was judged for the first time a moment ago.
    pub why: Option<ResourceWhy>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WorkerExplained {
    pub state: WorkerState,
    pub why: Option<WorkerWhy>,
}

impl ResourceExplained {
    pub fn is_normal(&self) -> bool {
        self.state.state == "normal" && !self.state.throttled && self.state.unanswered_reason.is_none()
    }
}

impl WorkerExplained {
    pub fn is_normal(&self) -> bool {
        let replicas = &self.state.replicas;
        replicas.len() == self.state.desired as usize && replicas.iter().all(|one| one.state == "running" && one.cores_allowed.is_none())
    }
}

impl Explanation {
    /// Everything, or what `of` names: `cpu`, `memory`, `disk`, `disk:PATH`, `PATH`, `worker:NAME`, `NAME`, `NAME.REPLICA`. `None`
    /// when nothing is called so.
    pub fn of(snapshot: &Snapshot, explained: &Explained, of: Option<&str>) -> Option<Explanation> {
        let resources: Vec<ResourceExplained> = snapshot
            .policy
            .resources
            .iter()
            .filter(|state| of.is_none_or(|name| names_resource(&state.resource, name)))
            .map(|state| {
                let why = explained.resources.iter().find(|why| why.resource == state.resource).cloned();
                ResourceExplained { state: state.clone(), why }
            })
            .collect();
        // A worker called like a resource is reached as `worker:NAME`.
        let is_resource =
            of.is_some_and(|name| !name.starts_with("worker:")) && resources.iter().any(|one| one.state.resource == *of.unwrap_or(""));
        let workers: Vec<WorkerExplained> = snapshot
            .workers
            .iter()
            .filter(|state| of.is_none_or(|name| !is_resource && names_worker(&state.name, name)))
            .map(|state| {
                let why = explained.workers.iter().find(|why| why.name == state.name).cloned();
                WorkerExplained { state: state.clone(), why }
            })
            .collect();
        if of.is_some() && resources.is_empty() && workers.is_empty() {
            return None;
        }
        let all_normal = resources.iter().all(ResourceExplained::is_normal) && workers.iter().all(WorkerExplained::is_normal);
        Some(Explanation { taken_at: snapshot.taken_at, all_normal, resources, workers })
    }

    /// Everything that can be asked for.
    pub fn names(snapshot: &Snapshot) -> Vec<String> {
        let resources = snapshot.policy.resources.iter().map(|state| state.resource.clone()).filter(|name| !name.starts_with("worker:"));
        resources.chain(snapshot.workers.iter().map(|state| state.name.to_string())).collect()
    }
}

fn names_resource(resource: &str, name: &str) -> bool {
    let worker = resource.strip_prefix("worker:");
    resource == name
        || resource.strip_prefix("disk:").is_some_and(|path| name == "disk" || name == path)
        || worker.is_some_and(|worker| names_worker(worker, name))
}

fn names_worker(worker: &str, name: &str) -> bool {
    let name = name.strip_prefix("worker:").unwrap_or(name);
    name == worker
        || name.strip_prefix(worker).and_then(|rest| rest.strip_prefix('.')).is_some_and(|replica| replica.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PolicyState, ReplicaState};

    fn snapshot() -> Snapshot {
        let resource = |name: &str| ResourceState { resource: name.to_owned(), state: "normal".to_owned(), ..ResourceState::default() };
        let replica = ReplicaState { state: "running".to_owned(), ..ReplicaState::default() };
        let worker = |name: &str| WorkerState { name: name.into(), desired: 1, replicas: vec![replica.clone()], ..WorkerState::default() };
        let resources = ["cpu", "memory", "disk:/a", "disk:/b", "worker:web"].map(resource).to_vec();
        Snapshot {
            policy: PolicyState { resources, ..PolicyState::default() },
            workers: vec![worker("cpu"), worker("web")],
            ..Snapshot::default()
        }
    }

    #[test]
    fn things_are_found_by_every_name_they_have() {
        let explained = Explained::default();
        let cases: [(&str, &[&str], &[&str]); 10] = [
            ("cpu", &["cpu"], &[]),
            ("memory", &["memory"], &[]),
            ("disk", &["disk:/a", "disk:/b"], &[]),
            ("/a", &["disk:/a"], &[]),
            ("disk:/b", &["disk:/b"], &[]),
            ("web", &["worker:web"], &["web"]),
            ("web.0", &["worker:web"], &["web"]),
            ("worker:web", &["worker:web"], &["web"]),
            ("worker:cpu", &[], &["cpu"]),
            ("cpu.0", &[], &["cpu"]),
        ];
        for (name, resources, workers) in cases {
            let found = Explanation::of(&snapshot(), &explained, Some(name)).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(found.resources.iter().map(|one| &*one.state.resource).collect::<Vec<_>>(), resources, "{name}");
            assert_eq!(found.workers.iter().map(|one| &*one.state.name).collect::<Vec<_>>(), workers, "{name}");
        }
        for name in ["", "we", "web.", "web.x", "web.0.1", "worker:", "disk:", "disk:/"] {
            assert!(Explanation::of(&snapshot(), &explained, Some(name)).is_none(), "{name}");
        }
        let all = Explanation::of(&snapshot(), &explained, None).unwrap();
        assert!(all.all_normal && all.resources.len() == 5 && all.workers.len() == 2);
    }

    #[test]
    fn what_is_held_or_down_is_not_normal() {
        let mut held = snapshot();
        held.workers[1].replicas[0].cores_allowed = Some(0.5);
        let mut down = snapshot();
        down.workers[1].desired = 2;
        let mut over = snapshot();
        over.policy.resources[0].state = "high".to_owned();
        for snapshot in [held, down, over] {
            assert!(!Explanation::of(&snapshot, &Explained::default(), None).unwrap().all_normal);
        }
    }
}
