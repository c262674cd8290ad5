//! Render. Figures from render.com/docs, read in 2026: blueprint-spec (`maxShutdownDelaySeconds` 1 to 300, 30 by default), health-checks
//! (2xx or 3xx within 5 s, every few seconds; after 60 s without the service is restarted), environment-variables (`PORT` 10000, `RENDER`),
//! disks (one instance, no deploys without a gap, everything outside the mount path is lost with each deploy).

use std::path::Path;
use std::time::Duration;

use super::{Facts, Grace, Reach, Told, grace, no_volume, port, probes, reach, volume, yaml_values};

const PORT: u16 = 10_000;
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    let blueprint = facts.files.iter().find(|(name, _)| name.starts_with("render."));
    let delays = blueprint.into_iter().flat_map(|(_, text)| yaml_values(text, "maxShutdownDelaySeconds"));
    let delay = delays.filter_map(|delay| delay.parse().ok()).min().map(Duration::from_secs);
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::from_secs(30),
            told: delay.zip(blueprint).map(|(delay, (name, _))| (delay, format!("maxShutdownDelaySeconds of {name}"))),
            who: "Render",
            raise: |seconds| match seconds {
                ..=300 => format!("maxShutdownDelaySeconds: {seconds} in render.yaml"),
                _ => "maxShutdownDelaySeconds: 300 in render.yaml is the most there is".to_owned(),
            },
        },
    );
    let set =
        facts.variables.get("PORT").filter(|_| facts.here || facts.variables.contains_key("RENDER")).and_then(|port| port.parse().ok());
    port(facts, told, Some(set.map_or((PORT, "PORT of Render unless set"), |port| (port, "PORT"))));
    probes(facts, told, ANSWERED_WITHIN, "after 60 s without an answer Render restarts the service");
    if matches!(reach(&facts.settings), Reach::Nobody | Reach::ThisMachine) {
        told.note(
            "private network",
            "http.listen cannot be reached from other services: Prometheus gets no metrics",
            "http.listen = [\"0.0.0.0:18760\"]",
        );
    }
    match blueprint.and_then(|(name, text)| Some((name, yaml_values(text, "mountPath").next()?))) {
        Some((name, path)) => {
            volume(facts, told, Path::new(path), &format!("mountPath of {name}"), "a full disk is nothing Render frees");
            told.note(
                "disk",
                "a service with a disk has one instance, and is down while it is deployed",
                "none is needed: there is never a second daemon on the same state folder",
            );
        }
        None if blueprint.is_some() => no_volume(facts, told, "disk: with a mountPath in render.yaml, and the folder below it"),
        None => {
            let found = "whether the service has one is not known here: Render names it in render.yaml and the dashboard only";
            told.note("disk", found, "with one: [[policy.disks]] for its mount path, and daemon.state_dir and backups below it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};

    fn case(settings: &str) -> Case {
        Case::new("render", settings)
    }

    #[test]
    fn the_ordered_end_fits_what_render_waits() {
        let tight = case("").expect("grace", Expect::Warn, "Render waits 30 s");
        assert!(
            tight.remedy().starts_with("maxShutdownDelaySeconds: 31 in render.yaml, or daemon.shutdown_timeout = \"25s\""),
            "{}",
            tight.remedy()
        );
        case("[daemon]\nshutdown_timeout = \"25s\"\n").expect("grace", Expect::Ok, "daemon.shutdown_timeout");
        let blueprint = "services:\n  - type: web\n    maxShutdownDelaySeconds: 60 # slow\n";
        case("").file("render.yaml", blueprint).expect("grace", Expect::Ok, "maxShutdownDelaySeconds of render.yaml");
        let long = case("[daemon]\nshutdown_timeout = \"10m\"\n[workers.a]\ncommand = [\"true\"]\nstop = { within = \"9m\" }\n");
        assert!(long.expect("grace", Expect::Warn, "540 s").remedy().contains("300 in render.yaml is the most"));
    }

    #[test]
    fn the_port_is_10000_unless_it_is_set() {
        case("[http]\nlisten = [\"0.0.0.0:10000\"]\n").elsewhere().expect("port", Expect::Warn, "0.0.0.0:10000");
        case("[http]\nlisten = [\"0.0.0.0:8080\"]\n").variable("PORT", "8080").expect("port", Expect::Warn, "0.0.0.0:8080");
        let other = case("[http]\nlisten = [\"0.0.0.0:18760\"]\n").elsewhere().variable("PORT", "18760");
        other.expect("port", Expect::Note, "10000").expect("private network", Expect::Absent, "");
        case("").expect("private network", Expect::Note, "cannot be reached");
    }

    #[test]
    fn nobody_is_stopped_for_longer_than_a_check_waits() {
        let slow = "[workers.web]\ncommand = [\"true\"]\nlongest_stop = \"5s\"\n";
        assert_eq!(case(slow).expect("health check", Expect::Warn, "5 s in one go").remedy(), "workers.web.longest_stop = \"250ms\"");
        case("[workers.web]\ncommand = [\"true\"]\n").expect("health check", Expect::Ok, "0.25 s");
        case(&format!("{slow}throttle = \"never\"\n")).expect("health check", Expect::Ok, "");
    }

    #[test]
    fn only_the_disk_lasts() {
        let blueprint = "services:\n  - type: web\n    disk:\n      name: data\n      mountPath: \"/var/data\"\n";
        case("").file("render.yaml", blueprint).expect("volume", Expect::Warn, "nobody watches /var/data").expect(
            "disk",
            Expect::Note,
            "one instance",
        );
        case("[[policy.disks]]\npath = \"/var/data\"\n").file("render.yaml", blueprint).expect("volume", Expect::Ok, "");
        let copies = "[jobs.copies]\nkind = \"backup\"\ndatabases = [\"/app.db\"]\nto = \"/backups\"\n";
        case(copies).file("render.yaml", "services:\n").expect("copies", Expect::Warn, "without a volume");
        case(copies).expect("copies", Expect::Absent, "").expect("disk", Expect::Note, "not known here");
    }
}
