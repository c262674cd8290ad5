//! Docker, Podman and other engines. Figures from docs.docker.com: reference/cli/docker/container/stop (10 s, `--stop-timeout`), engine/logging
//! (json-file keeps everything unless `max-size` is set), reference/cli/docker/container/run (`--init`, `--shm-size` 64 MB, `--read-only`);
//! writable control groups: moby pull request 48828 (`writable-cgroups`, Docker 28), for Podman `unmask`.

use std::time::Duration;

use super::{Facts, Grace, Reach, Told, grace, reach};
use crate::cli::render::size;
use crate::config::settings::Ceiling;
use crate::host::inventory::Platform;
use crate::sampling::readings::LimitSource;

/// What passes signals on and reaps orphans for whoever comes second.
const INITS: [&str; 5] = ["docker-init", "tini", "dumb-init", "catatonit", "podman-init"];
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "busybox"];
/// Engines give so much unless told otherwise.
const SMALL: u64 = 64 << 20;

/// How a container gets control groups that can be written to.
pub fn writable_groups(platform: Platform) -> &'static str {
    match platform {
        Platform::Podman => "none is needed: signals serve instead; for groups of its own: podman run --security-opt unmask=ALL, as root",
        _ => {
            "none is needed: signals serve instead; for groups of its own: docker run --security-opt writable-cgroups=true (Docker 28, cgroup v2), as root"
        }
    }
}

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    let who = match facts.platform {
        Platform::Docker => "docker stop",
        Platform::Podman => "podman stop",
        _ => "the engine",
    };
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::from_secs(10),
            told: None,
            who,
            raise: |seconds| format!("--stop-timeout {seconds} (compose: stop_grace_period: {seconds}s)"),
        },
    );
    limits(facts, told);
    // In the place itself it was tried out, under "control groups".
    if !facts.here {
        let found = "read-only in a container unless asked for: workers are slowed by signals";
        told.note("control groups", found, writable_groups(facts.platform));
    }
    first(facts, told);
    match facts.seen.shared_memory {
        Some(bytes) if bytes <= SMALL => told.note(
            "shared memory",
            format!("/dev/shm has {}, and counts as memory in use; browsers and some libraries need more", size(bytes as f64)),
            "--shm-size=256m (compose: shm_size)",
        ),
        Some(bytes) => told.ok("shared memory", format!("/dev/shm has {}, and counts as memory in use", size(bytes as f64))),
        None => {}
    }
    if reach(&facts.settings) == Reach::ThisMachine {
        told.note(
            "published ports",
            "http.listen is loopback: a published port and other containers do not lead there",
            "http.listen = [\"0.0.0.0:18760\"] and an http.api_key; commands with docker exec work as it is",
        );
    }
    if facts.seen.first_name.as_deref().is_none_or(|name| name != "pause") {
        told.note(
            "health check",
            "whether the image has one cannot be seen from inside",
            "HEALTHCHECK CMD [\"/usr/bin/plimsoll\", \"health\"]",
        );
        told.note(
            "log",
            "how much the engine keeps cannot be seen from inside; json-file keeps everything, on the disk of the machine",
            "--log-opt max-size=10m --log-opt max-file=3",
        );
    }
}

fn limits(facts: &Facts, told: &mut Told<'_>) {
    match facts.seen.memory {
        Some(LimitSource::Machine) => told.warn(
            "memory limit",
            "none is set: 100 % is the whole machine, which others use too",
            "--memory=512m (compose: mem_limit), or policy.memory.limit",
        ),
        Some(source) => told.ok("memory limit", format!("set by {}", source.word())),
        None if facts.settings.policy.memory.limit != Ceiling::Auto => told.ok("memory limit", "set by settings"),
        None => told.note("memory limit", "without one 100 % is the whole machine", "--memory=512m (compose: mem_limit)"),
    }
    if facts.seen.cpu == Some(LimitSource::Machine) {
        told.note(
            "CPU limit",
            "none is set: 100 % is the whole machine, which others use too",
            "--cpus=1.5 (compose: cpus), or policy.cpu.limit",
        );
    }
}

/// Who gets the signal that ends the container.
fn first(facts: &Facts, told: &mut Told<'_>) {
    let remedy = "ENTRYPOINT [\"plimsoll\", \"run\", \"--\"] with brackets and no shell, or exec as the last line of the script";
    match facts.seen.first_name.as_deref() {
        // That is told of every machine.
        _ if facts.seen.first => {}
        Some("plimsoll") => told.ok("process 1", "plimsoll: gets the signals of the engine, and reaps orphans"),
        Some(name) if INITS.contains(&name) => told.ok("process 1", format!("{name}: passes signals on; --init is not needed")),
        Some(name) if SHELLS.contains(&name) => {
            told.warn(
                "process 1",
                format!("{name}: a shell does not pass signals on, so the container is killed when its time is over"),
                remedy,
            );
        }
        Some(name) => told.note(
            "process 1",
            format!("{name}: signals of the engine go there"),
            "none is needed beside a container of its own (--pid=container:…)",
        ),
        None if facts.here => {}
        None => told.note("process 1", "as the entry point Plimsoll needs no --init", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};
    use crate::sampling::readings::LimitSource;

    fn case(settings: &str) -> Case {
        Case::new("docker", settings)
    }

    #[test]
    fn the_ordered_end_fits_ten_seconds_or_what_is_said() {
        let tight = case("").expect("grace", Expect::Warn, "docker stop waits 10 s");
        let remedy = tight.remedy();
        assert!(remedy.starts_with("--stop-timeout 31 (compose: stop_grace_period: 31s), or daemon.shutdown_timeout = \"8s\""), "{remedy}");
        assert!(remedy.ends_with("--grace 60s"), "{remedy}");
        case("").grace(60).expect("grace", Expect::Ok, "as --grace says");
        case("[daemon]\nshutdown_timeout = \"8s\"\n").expect("grace", Expect::Ok, "8 s at the longest");
        let jobs =
            "[workers.web]\ncommand = [\"true\"]\nstop = { within = \"2s\" }\n[jobs.old]\nkind = \"files\"\npaths = [\"/data/audio\"]\n";
        case(jobs).expect("grace", Expect::Warn, "12 s (stop.within of the workers, after 10 s for jobs)");
    }

    #[test]
    fn workers_that_wait_for_each_other_end_one_after_the_other() {
        let chain = "[workers.db]\ncommand = [\"true\"]\nstop = { within = \"4s\" }\n[workers.web]\ncommand = [\"true\"]\nafter = [\"db\"]\nstop = { within = \"6s\" }\n";
        case(chain).expect("grace", Expect::Warn, "may take 10 s");
        case(&chain.replace("after = [\"db\"]\n", "")).expect("grace", Expect::Ok, "6 s at the longest");
    }

    #[test]
    fn a_container_without_limits_has_those_of_the_machine() {
        case("").limits(LimitSource::Machine, LimitSource::Machine).expect("memory limit", Expect::Warn, "whole machine").expect(
            "CPU limit",
            Expect::Note,
            "",
        );
        case("").limits(LimitSource::Cgroup, LimitSource::Cgroup).expect("memory limit", Expect::Ok, "cgroup").expect(
            "CPU limit",
            Expect::Absent,
            "",
        );
        case("").elsewhere().expect("memory limit", Expect::Note, "without one");
    }

    #[test]
    fn control_groups_are_told_as_they_are() {
        case("").expect("control groups", Expect::Absent, "");
        assert!(case("").elsewhere().expect("control groups", Expect::Note, "read-only").remedy().contains("writable-cgroups=true"));
        Case::new("podman", "").elsewhere().expect("control groups", Expect::Note, "read-only in a container unless");
    }

    #[test]
    fn signals_have_to_get_through_process_1() {
        case("").first("plimsoll").expect("process 1", Expect::Ok, "");
        case("").first("tini").expect("process 1", Expect::Ok, "passes signals on");
        case("").first("sh").expect("process 1", Expect::Warn, "does not pass signals on");
        case("").first("app").expect("process 1", Expect::Note, "app");
        case("").elsewhere().expect("process 1", Expect::Note, "no --init");
    }

    #[test]
    fn shared_memory_is_told_with_its_size() {
        case("").shared_memory(64 << 20).expect("shared memory", Expect::Note, "64.0 MiB");
        case("").shared_memory(256 << 20).expect("shared memory", Expect::Ok, "256 MiB");
    }

    #[test]
    fn a_published_port_does_not_lead_to_loopback() {
        case("").expect("published ports", Expect::Note, "loopback");
        case("[http]\nlisten = [\"0.0.0.0:18760\"]\n").expect("published ports", Expect::Absent, "");
    }
}
