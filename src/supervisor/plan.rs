//! What other settings would mean for the workers, said before it is done. Pure.

use std::sync::Arc;

use crate::config::settings::Worker;

use super::roster::fingerprint;

/// What becomes of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Start {
        worker: Arc<str>,
        replicas: u32,
    },
    Stop {
        worker: Arc<str>,
        replicas: u32,
    },
    /// One replica after the other.
    Replace {
        worker: Arc<str>,
        replicas: u32,
    },
    Scale {
        worker: Arc<str>,
        from: u32,
        to: u32,
    },
    /// Somebody else starts it: found as soon as it is there.
    LookFor {
        worker: Arc<str>,
    },
    /// Somebody else has started it: it goes on without us.
    LetGo {
        worker: Arc<str>,
    },
    /// Its processes go on as they are.
    Keep {
        worker: Arc<str>,
    },
}

/// Compares what runs with what is to; each worker with how many replicas it has or is to have, in the order of their names.
pub fn plan(now: &[(Arc<Worker>, u32)], then: &[(Arc<Worker>, u32)]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (worker, replicas) in now {
        if !then.iter().any(|(other, _)| other.name == worker.name) {
            steps.push(leave(worker, *replicas));
        }
    }
    for (worker, to) in then {
        let (name, to) = (worker.name.clone(), *to);
        let Some((before, from)) = now.iter().find(|(other, _)| other.name == worker.name) else {
            steps.push(begin(worker, to));
            continue;
        };
        let way = |worker: &Worker| worker.adopt.as_ref().map(|adopt| adopt.by.clone());
        if way(before) != way(worker) {
            steps.extend([leave(before, *from), begin(worker, to)]);
            continue;
        }
        if worker.adopt.is_some() {
            steps.push(Step::Keep { worker: name });
            continue;
        }
        let replaced = fingerprint(before) != fingerprint(worker);
        let both = to.min(*from);
        if replaced && both > 0 {
            steps.push(Step::Replace { worker: name.clone(), replicas: both });
        }
        if to != *from {
            steps.push(Step::Scale { worker: name, from: *from, to });
        } else if !replaced {
            steps.push(Step::Keep { worker: name });
        }
    }
    steps
}

fn begin(worker: &Worker, replicas: u32) -> Step {
    match worker.adopt {
        Some(_) => Step::LookFor { worker: worker.name.clone() },
        None => Step::Start { worker: worker.name.clone(), replicas },
    }
}

fn leave(worker: &Worker, replicas: u32) -> Step {
    match worker.adopt {
        Some(_) => Step::LetGo { worker: worker.name.clone() },
        None => Step::Stop { worker: worker.name.clone(), replicas },
    }
}

fn counted(replicas: u32) -> String {
    format!("{replicas} replica{}", if replicas == 1 { "" } else { "s" })
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Start { worker, replicas } => write!(f, "start {worker}: {}", counted(*replicas)),
            Step::Stop { worker, replicas } => write!(f, "stop {worker}: {}", counted(*replicas)),
            Step::Replace { worker, replicas: 1 } => write!(f, "replace {worker}: 1 replica"),
            Step::Replace { worker, replicas } => write!(f, "replace {worker}: {}, one after the other", counted(*replicas)),
            Step::Scale { worker, from, to } => write!(f, "scale {worker}: from {from} to {to}"),
            Step::LookFor { worker } => write!(f, "look for {worker}, which somebody else starts"),
            Step::LetGo { worker } => write!(f, "let {worker} go on by itself"),
            Step::Keep { worker } => write!(f, "keep {worker} as it is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn worker(name: &str, word: &str, replicas: u32) -> (Arc<Worker>, u32) {
        (Arc::new(Worker::new(name, vec![word.to_owned()])), replicas)
    }

    #[test]
    fn an_adopted_worker_is_looked_for_and_let_go_never_started_or_stopped() {
        use crate::config::settings::{Adopt, AdoptBy};
        let adopted = |unit: &str, may_end| {
            let by = AdoptBy::Unit(unit.to_owned());
            let adopt = Adopt { by, restart: None, restart_within: Default::default(), may_end };
            (Arc::new(Worker { adopt: Some(adopt), ..Worker::new("web", Vec::new()) }), 1)
        };
        let (old, own, name) = (adopted("a.service", false), worker("web", "sh", 2), || Arc::from("web"));
        assert_eq!(plan(&[], std::slice::from_ref(&old)), [Step::LookFor { worker: name() }]);
        assert_eq!(plan(std::slice::from_ref(&old), &[]), [Step::LetGo { worker: name() }]);
        assert_eq!(plan(std::slice::from_ref(&old), &[adopted("a.service", true)]), [Step::Keep { worker: name() }]);
        let both = [Step::LetGo { worker: name() }, Step::LookFor { worker: name() }];
        assert_eq!(plan(std::slice::from_ref(&old), &[adopted("b.service", false)]), both);
        let from_own = [Step::Stop { worker: name(), replicas: 2 }, Step::LookFor { worker: name() }];
        assert_eq!(plan(std::slice::from_ref(&own), std::slice::from_ref(&old)), from_own);
        assert_eq!(plan(&[old], &[own]), [Step::LetGo { worker: name() }, Step::Start { worker: name(), replicas: 2 }]);
    }

    #[test]
    fn only_what_changed_is_restarted() {
        let now = [worker("gone", "a", 1), worker("grows", "a", 2), worker("other", "a", 3), worker("same", "a", 1)];
        let mut limits = Worker::new("same", vec!["a".to_owned()]);
        limits.limits.memory = Some(1);
        let then = [worker("grows", "a", 4), worker("new", "a", 1), worker("other", "b", 2), (Arc::new(limits), 1)];
        let said: Vec<String> = plan(&now, &then).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "stop gone: 1 replica",
                "scale grows: from 2 to 4",
                "start new: 1 replica",
                "replace other: 2 replicas, one after the other",
                "scale other: from 3 to 2",
                "keep same as it is",
            ]
        );
    }

    proptest! {
        #[test]
        fn the_same_settings_change_nothing(names in proptest::collection::btree_set("[a-c]", 0..4), replicas in 0_u32..5) {
            let workers: Vec<_> = names.iter().map(|name| worker(name, "x", replicas)).collect();
            let is_kept = |step: &Step| matches!(step, Step::Keep { .. });
            prop_assert!(plan(&workers, &workers).iter().all(is_kept));
        }
    }
}
