//! Fly.io. Figures from fly.io/docs, read in August 2026: reference/configuration (`kill_signal` SIGINT and `kill_timeout` 5 s by default, 300 s
//! at the most; `swap_size_mb`), machines/cpu-performance (a shared processor gets 5 ms of each 80 ms in the long run, the rest is steal),
//! monitoring/metrics (`[metrics]` has a path scraped), networking/private-networking (6PN is IPv6), launch/autostop-autostart.

use std::path::Path;
use std::time::Duration;

use super::{Facts, Grace, Reach, Told, grace, has_schedule, no_volume, port, probes, reach, span, volume};
use crate::sampling::readings::LimitSource;

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    let file: Option<toml::Value> = match facts.files.get("fly.toml").map(|text| toml::from_str(text)) {
        Some(Ok(file)) => Some(file),
        Some(Err(error)) => {
            told.warn("fly.toml", format!("cannot be read: {}", error.message()), "`fly config validate` says where");
            None
        }
        None => {
            told.note("fly.toml", "is not in this folder: only defaults are known", "run the doctor where fly.toml is, too");
            None
        }
    };
    let at = |path: &[&str]| path.iter().try_fold(file.as_ref()?, |value, key| value.get(key));
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::from_secs(5),
            told: match (at(&["kill_timeout"]).and_then(span), &file) {
                (Some(timeout), _) => Some((timeout, "kill_timeout of fly.toml".to_owned())),
                (None, Some(_)) => Some((Duration::from_secs(5), "fly.toml has no kill_timeout".to_owned())),
                (None, None) => None,
            },
            who: "Fly",
            raise: |seconds| format!("kill_timeout = {} at the top of fly.toml", seconds.min(300)),
        },
    );
    let signal = at(&["kill_signal"]).and_then(toml::Value::as_str).unwrap_or("SIGINT");
    match signal {
        "SIGINT" | "SIGTERM" => told.ok("kill_signal", format!("{signal}: ends in order")),
        _ => told.warn("kill_signal", format!("{signal} is not what ends Plimsoll in order"), "kill_signal = \"SIGTERM\" in fly.toml"),
    }
    let internal = at(&["http_service", "internal_port"]).or_else(|| at(&["services"])?.as_array()?.first()?.get("internal_port"));
    let known = internal.and_then(toml::Value::as_integer).and_then(|port| u16::try_from(port).ok());
    port(facts, told, known.map(|port| (port, "internal_port of fly.toml")));
    metrics(facts, told, file.as_ref());
    if let Some(within) = file.as_ref().and_then(answered_within) {
        probes(facts, told, within, "Fly sends no requests there until it answers again");
    }
    let mount = at(&["mounts"]).map(|mounts| mounts.as_array().and_then(|mounts| mounts.first()).unwrap_or(mounts));
    match mount.and_then(|mount| mount.get("destination")?.as_str()) {
        Some(path) => {
            volume(facts, told, Path::new(path), "mounts of fly.toml", "a full volume only grows where auto_extend_size_threshold is set")
        }
        None if file.is_some() => no_volume(facts, told, "[mounts] with source and destination in fly.toml, and the folder below it"),
        None => {}
    }
    let stops = at(&["http_service", "auto_stop_machines"])
        .is_some_and(|stop| !matches!(stop.as_str(), Some("off")) && stop.as_bool() != Some(false));
    let least = at(&["http_service", "min_machines_running"]).and_then(toml::Value::as_integer).unwrap_or(0);
    if stops && least == 0 && has_schedule(&facts.settings) {
        let found =
            "auto_stop_machines stops the machine when nobody asks it anything: no job runs then, and what was missed is caught up later";
        told.warn("auto stop", found, "min_machines_running = 1 in [http_service], or auto_stop_machines = \"off\"");
    }
    machine(facts, told, at(&["swap_size_mb"]).and_then(toml::Value::as_integer));
}

fn metrics(facts: &Facts, told: &mut Told<'_>, file: Option<&toml::Value>) {
    let settings = &facts.settings;
    let ours = settings.http.listen.first().map_or(18760, |address| address.port());
    let sections = file.and_then(|file| file.get("metrics"));
    let all: Vec<&toml::Value> = match sections {
        Some(toml::Value::Array(all)) => all.iter().collect(),
        one => one.into_iter().collect(),
    };
    let scraped: Vec<i64> = all.iter().filter_map(|section| section.get("port")?.as_integer()).collect();
    let section = format!("[metrics] with port = {ours} and path = \"/metrics\" in fly.toml");
    let is_asked = settings.http.listen.iter().any(|address| scraped.contains(&i64::from(address.port())));
    let wide = "http.listen = [\"[::]:18760\"]";
    match (is_asked, reach(settings)) {
        (true, Reach::Everybody | Reach::OldInternet) => told.ok("metrics", "scraped by Fly, as [metrics] of fly.toml says"),
        (true, _) => told.warn("metrics", "[metrics] of fly.toml has them scraped, and http.listen cannot be reached from outside", wide),
        (false, _) if file.is_some() => told.note("metrics", "Fly would scrape them for nothing, and is not told to", section),
        (false, _) => {}
    }
    if reach(settings) == Reach::OldInternet {
        told.note("private network", "it is IPv6 only, and http.listen is IPv4: other machines cannot reach it", wide);
    }
}

/// The shortest time a check of `fly.toml` waits, if one says so.
fn answered_within(file: &toml::Value) -> Option<Duration> {
    fn lists<'f>(section: &'f toml::Value, names: &[&str]) -> Vec<&'f toml::Value> {
        names.iter().filter_map(|name| section.get(name)?.as_array()).flatten().collect()
    }
    let mut checks: Vec<&toml::Value> = Vec::new();
    checks.extend(file.get("http_service").into_iter().flat_map(|service| lists(service, &["checks"])));
    checks.extend(lists(file, &["services"]).into_iter().flat_map(|service| lists(service, &["http_checks", "tcp_checks"])));
    checks.extend(file.get("checks").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values));
    checks.iter().filter_map(|check| span(check.get("timeout")?)).min()
}

/// What a virtual machine means for limits.
fn machine(facts: &Facts, told: &mut Told<'_>, swap_mb: Option<i64>) {
    if facts.seen.memory == Some(LimitSource::Machine) {
        told.ok("limits", "those of the virtual machine: it has no control groups with limits, and needs none");
    }
    told.note(
        "processors",
        "a shared one gets a sixteenth of a processor in the long run; what Fly holds back is seen as steal only",
        "none is needed: Plimsoll takes steal off the limit; performance processors have no such quota",
    );
    match swap_mb {
        Some(swap) if swap > 0 => told.ok("swap", format!("{swap} MB, as swap_size_mb of fly.toml says")),
        _ => told.note(
            "swap",
            "fly.toml gives none: a worker is not braked by memory.high where nearly all it has is anonymous",
            "swap_size_mb = 512 at the top of fly.toml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};

    fn case(settings: &str) -> Case {
        Case::new("fly", settings)
    }

    #[test]
    fn the_ordered_end_fits_kill_timeout() {
        let short =
            case("").file("fly.toml", "app = \"shop\"\n").expect("grace", Expect::Warn, "Fly waits 5 s (fly.toml has no kill_timeout)");
        assert_eq!(short.remedy(), "kill_timeout = 31 at the top of fly.toml, or daemon.shutdown_timeout = \"4s\"");
        case("").expect("grace", Expect::Warn, "cannot be seen").expect("fly.toml", Expect::Note, "not in this folder");
        for enough in ["kill_timeout = 40", "kill_timeout = \"40s\"", "kill_timeout = \"1m\""] {
            case("").file("fly.toml", enough).expect("grace", Expect::Ok, "kill_timeout of fly.toml");
        }
        case("").file("fly.toml", "kill_timeout = [").expect("fly.toml", Expect::Warn, "cannot be read");
    }

    #[test]
    fn the_signal_ends_it_in_order() {
        case("").expect("kill_signal", Expect::Ok, "SIGINT");
        case("").file("fly.toml", "kill_signal = \"SIGTERM\"").expect("kill_signal", Expect::Ok, "SIGTERM");
        case("").file("fly.toml", "kill_signal = \"SIGUSR1\"").expect("kill_signal", Expect::Warn, "SIGUSR1");
    }

    #[test]
    fn ports_and_metrics_are_told_to_fly() {
        let service = "[http_service]\ninternal_port = 18760\n";
        case("").file("fly.toml", service).expect("port", Expect::Warn, "http.listen has");
        case("").file("fly.toml", &service.replace("18760", "8080")).expect("port", Expect::Note, "8080 (internal_port of fly.toml)");
        case("").file("fly.toml", "[[services]]\ninternal_port = 18760\n").expect("port", Expect::Warn, "http.listen has");

        let scraped = "[metrics]\nport = 18760\npath = \"/metrics\"\n";
        case("").file("fly.toml", scraped).expect("metrics", Expect::Warn, "cannot be reached");
        let wide = "[http]\nlisten = [\"[::]:18760\"]\n";
        case(wide).file("fly.toml", scraped).expect("metrics", Expect::Ok, "").expect("private network", Expect::Absent, "");
        case(wide).file("fly.toml", &scraped.replace("[metrics]", "[[metrics]]")).expect("metrics", Expect::Ok, "");
        case(wide).file("fly.toml", "").expect("metrics", Expect::Note, "is not told to");
        case("[http]\nlisten = [\"0.0.0.0:18760\"]\n").file("fly.toml", scraped).expect("private network", Expect::Note, "IPv6 only");
    }

    #[test]
    fn checks_of_the_file_are_answered_in_time() {
        let slow = "[workers.web]\ncommand = [\"true\"]\nlongest_stop = \"2s\"\n";
        for checks in [
            "[[http_service.checks]]\ntimeout = \"2s\"\n",
            "[checks.alive]\ntimeout = 2\n",
            "[[services]]\n[[services.tcp_checks]]\ntimeout = \"2s\"\n",
        ] {
            case(slow).file("fly.toml", checks).expect("health check", Expect::Warn, "within 2 s");
            case("[workers.web]\ncommand = [\"true\"]\n").file("fly.toml", checks).expect("health check", Expect::Ok, "");
        }
        case(slow).file("fly.toml", "").expect("health check", Expect::Absent, "");
    }

    #[test]
    fn a_machine_that_is_stopped_runs_no_jobs() {
        let job = "[jobs.old]\nkind = \"files\"\npaths = [\"/data/audio\"]\nschedule = \"@daily\"\n";
        let service = "[http_service]\nauto_stop_machines = \"stop\"\n";
        case(job).file("fly.toml", service).expect("auto stop", Expect::Warn, "no job runs then");
        case(job).file("fly.toml", &format!("{service}min_machines_running = 1\n")).expect("auto stop", Expect::Absent, "");
        case(job).file("fly.toml", "[http_service]\nauto_stop_machines = false\n").expect("auto stop", Expect::Absent, "");
        case("").file("fly.toml", service).expect("auto stop", Expect::Absent, "");
    }

    #[test]
    fn volume_and_swap_are_read_from_the_file() {
        for mounts in ["[mounts]\nsource = \"d\"\ndestination = \"/data\"\n", "[[mounts]]\nsource = \"d\"\ndestination = \"/data\"\n"] {
            case("").file("fly.toml", mounts).expect("volume", Expect::Warn, "nobody watches /data");
        }
        case("").file("fly.toml", "swap_size_mb = 512").expect("swap", Expect::Ok, "512 MB").expect("volume", Expect::Absent, "");
        case("").file("fly.toml", "").expect("swap", Expect::Note, "gives none");
    }
}
