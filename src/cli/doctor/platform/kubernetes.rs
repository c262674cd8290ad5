//! Kubernetes. Figures from kubernetes.io/docs: concepts/workloads/pods/pod-lifecycle (`terminationGracePeriodSeconds` 30),
//! tasks/configure-pod-container/configure-liveness-readiness-startup-probes (1 s, three times in a row),
//! share-process-namespace (process 1 is `pause`), concepts/workloads/pods/downward-api, concepts/storage/volumes (`medium: Memory` counts as
//! memory of the container that writes); since 1.28 the kubelet sets `memory.oom.group` (pull request 117793).

use std::time::Duration;

use super::{Facts, Grace, Reach, Told, grace, probes, reach};
use crate::config::settings::{Line, Rung, Worker};
use crate::host::inventory::Platform;
use crate::sampling::readings::LimitSource;

const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// Above this there is no time left between the verdict and the limit.
const LATE: f64 = 0.95;

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    debug_assert_eq!(facts.platform, Platform::Kubernetes);
    let adopted: Vec<&Worker> = facts.settings.workers.iter().map(|worker| &**worker).filter(|worker| worker.adopt.is_some()).collect();
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::from_secs(30),
            told: None,
            who: "the kubelet",
            raise: |seconds| format!("terminationGracePeriodSeconds: {seconds} in the pod's spec"),
        },
    );
    out_of_memory(facts, told);
    if !adopted.is_empty() {
        sidecar(facts, told, &adopted);
    }
    probes(
        facts,
        told,
        ANSWERED_WITHIN,
        "after three probes without an answer (timeoutSeconds is 1 unless set) the container is restarted",
    );
    if matches!(reach(&facts.settings), Reach::ThisMachine | Reach::Nobody) {
        told.note(
            "probes",
            "http.listen cannot be reached at the pod's address: httpGet probes of Plimsoll fail, and Prometheus gets no metrics",
            "http.listen = [\"0.0.0.0:18760\"] ([::] where pods have IPv6 only), or exec probes: [plimsoll, health]",
        );
    }
    for (folder, _) in facts.fleeting.iter().filter(|(_, place)| place.contains("memory")) {
        told.warn(
            "emptyDir",
            format!(
                "{} lies in memory: what is written there counts against the limit, and stays when the container is restarted",
                folder.display()
            ),
            "an emptyDir without medium: Memory, or a persistent volume",
        );
    }
    if facts.seen.root {
        told.note(
            "user",
            "root, which runAsNonRoot: true would refuse",
            "runAsUser: 10001, and fsGroup for volumes; Plimsoll needs no root",
        );
    }
}

/// One process too many ends everybody in the container.
fn out_of_memory(facts: &Facts, told: &mut Told<'_>) {
    let why = "the kernel ends the whole container on one out-of-memory (memory.oom.group, which the kubelet sets since 1.28)";
    let remedy = "policy.memory.critical = \"92%\"";
    let rule = &facts.settings.policy.memory.rule;
    if !rule.on_critical.iter().any(Rung::is_drastic) {
        let found = format!("{why}, and nobody is replaced before: policy.memory.on_critical has neither recycle nor kill");
        return told.warn("out of memory", found, "policy.memory.on_critical = [\"recycle\", \"kill\"]");
    }
    match rule.critical {
        None => told.warn("out of memory", format!("{why}, and nothing is done before: policy.memory.critical is off"), remedy),
        Some(Line::Share(share)) if share > LATE => {
            told.warn("out of memory", format!("{why}, and policy.memory.critical = \"{:.0}%\" is close to it", share * 100.0), remedy);
        }
        Some(_) => told.ok("out of memory", format!("{why}; one worker is replaced before, at policy.memory.critical")),
    }
}

/// Beside the application, in a container of its own.
fn sidecar(facts: &Facts, told: &mut Told<'_>, adopted: &[&Worker]) {
    let names = adopted.iter().map(|worker| &*worker.name).collect::<Vec<_>>().join(", ");
    match facts.seen.first_name.as_deref() {
        Some("pause") => told.ok("processes", "shared in the pod: the other containers' are seen"),
        Some(name) => told.warn(
            "processes",
            format!("process 1 is {name}, so the other containers' are not seen, and {names} cannot be found there"),
            "shareProcessNamespace: true in the pod's spec",
        ),
        None => told.note(
            "processes",
            format!("{names} can be found only where the pod shares them"),
            "shareProcessNamespace: true in the pod's spec",
        ),
    }
    told.note(
        "user of the workers",
        "its container is seen, and signals reach it, only as the same user and with no fewer capabilities",
        "the same runAsUser for both containers",
    );
    if facts.settings.takes_own_memory_limit() && adopted.iter().any(|worker| worker.limits.memory.is_none()) {
        told.warn(
            "limit of the workers",
            format!("a sidecar sees the limit of its own container, and {names} have another: shares of memory are of the wrong one"),
            format!(
                "sampling.scope = {{ worker = \"{}\" }}, or policy.memory.limit = {{ file = \"/etc/podlimits/memory\" }} with a downwardAPI volume: \
                 docs/operating.md, \"As a sidecar\"",
                adopted.first().map_or("app", |worker| &*worker.name)
            ),
        );
    }
    if facts.seen.cpu == Some(LimitSource::Cgroup) && adopted.len() == facts.settings.workers.len() {
        told.note(
            "CPU limit",
            "the sidecar has one: it is late just when the processor is scarce",
            "take limits.cpu away from this container, and keep requests.cpu: 10m",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};
    use crate::sampling::readings::LimitSource;

    const SIDECAR: &str = "[workers.app]\nadopt = { pidfile = \"/run/app.pid\" }\n";

    fn case(settings: &str) -> Case {
        Case::new("kubernetes", settings)
    }

    #[test]
    fn the_ordered_end_fits_what_the_kubelet_waits() {
        let tight = case("").expect("grace", Expect::Warn, "the kubelet waits 30 s");
        assert!(tight.remedy().starts_with("terminationGracePeriodSeconds: 31 in the pod's spec, or daemon.shutdown_timeout = \"25s\""));
        case("[daemon]\nshutdown_timeout = \"25s\"\n").expect("grace", Expect::Ok, "");
        // What is adopted is let go, not ended.
        case(SIDECAR).expect("grace", Expect::Ok, "0 s at the longest");
    }

    #[test]
    fn something_is_done_before_the_container_is_ended() {
        case("").expect("out of memory", Expect::Ok, "replaced before");
        case("[policy.memory]\ncritical = \"97%\"\n").expect("out of memory", Expect::Warn, "97%");
        case("[policy.memory]\non_critical = [\"notify\"]\n").expect("out of memory", Expect::Warn, "neither recycle nor kill");
        case("").without_critical().expect("out of memory", Expect::Warn, "is off");
    }

    #[test]
    fn a_sidecar_sees_the_others_and_their_limit() {
        case(SIDECAR).first("pause").expect("processes", Expect::Ok, "");
        case(SIDECAR).first("plimsoll").expect("processes", Expect::Warn, "shareProcessNamespace").expect(
            "user of the workers",
            Expect::Note,
            "",
        );
        case(SIDECAR).elsewhere().expect("processes", Expect::Note, "");
        let limit = case(SIDECAR).expect("limit of the workers", Expect::Warn, "its own container");
        assert!(limit.remedy().contains("policy.memory.limit = { file = \"/etc/podlimits/memory\" }"));
        case(&format!("[sampling]\nscope = {{ worker = \"app\" }}\n{SIDECAR}")).expect("limit of the workers", Expect::Absent, "");
        case(&format!("{SIDECAR}limits = {{ memory = \"1GB\" }}\n")).expect("limit of the workers", Expect::Absent, "");
        case(&format!("[policy.memory]\nlimit = \"1GB\"\n{SIDECAR}")).expect("limit of the workers", Expect::Absent, "");
        case("").expect("processes", Expect::Absent, "").expect("limit of the workers", Expect::Absent, "");

        case(SIDECAR).limits(LimitSource::Cgroup, LimitSource::Cgroup).expect("CPU limit", Expect::Note, "is late");
        case(SIDECAR).limits(LimitSource::Cgroup, LimitSource::Machine).expect("CPU limit", Expect::Absent, "");
        case("").limits(LimitSource::Cgroup, LimitSource::Cgroup).expect("CPU limit", Expect::Absent, "");
    }

    #[test]
    fn probes_are_answered_within_a_second() {
        let slow = "[workers.web]\ncommand = [\"true\"]\nlongest_stop = \"600ms\"\n";
        case(slow).expect("health check", Expect::Warn, "within 1 s");
        case("").expect("health check", Expect::Ok, "0.25 s").expect("probes", Expect::Note, "httpGet probes");
        case("[http]\nlisten = [\"[::]:18760\"]\n").expect("probes", Expect::Absent, "");
    }

    #[test]
    fn folders_in_memory_and_root_are_told() {
        case("").fleeting("/var/lib/plimsoll", "in memory (tmpfs)").expect("emptyDir", Expect::Warn, "/var/lib/plimsoll");
        case("").fleeting("/var/lib/plimsoll", "in the container's own layer (overlay)").expect("emptyDir", Expect::Absent, "");
        case("").root().expect("user", Expect::Note, "runAsNonRoot");
        case("").expect("user", Expect::Absent, "");
    }
}
