//! Railway. Figures from docs.railway.com, read in August 2026: variables/reference (draining 0 s by default, volume, `RAILWAY_RUN_UID`),
//! volumes/reference (one for each service, no replicas beside it, no overlap of deploys, a full one may be resized offline),
//! deployments/restart-policy (on failure, ten times), deployments/healthchecks (while deploying only, host `healthcheck.railway.app`),
//! observability/logs (500 lines a second), networking/private-networking (older environments: IPv6 only),
//! infrastructure-as-code (`railway.json` and `railway.toml` are not read after 2026-12-01).

use std::path::Path;
use std::time::Duration;

use super::{Facts, Grace, Reach, Told, grace, no_volume, port, reach, span, volume};
use crate::config::settings::{LogLevel, Output, Restart};

const DRAINING: &str = "RAILWAY_DEPLOYMENT_DRAINING_SECONDS";

pub fn traps(facts: &Facts, told: &mut Told<'_>) {
    let variable = |name: &str| facts.variables.get(name).map(String::as_str);
    config_as_code(facts, told);
    grace(
        facts,
        told,
        Grace {
            by_default: Duration::ZERO,
            told: draining(facts),
            who: "Railway",
            raise: |seconds| format!("set {DRAINING}={seconds} in the variables of the service"),
        },
    );
    let known = variable("PORT").and_then(|port| port.parse().ok());
    port(facts, told, known.map(|port| (port, "PORT")));
    listening(facts, told);
    match variable("RAILWAY_VOLUME_MOUNT_PATH") {
        Some(path) => {
            volume(facts, told, Path::new(path), "RAILWAY_VOLUME_MOUNT_PATH", "at 100 % Railway may stop the service to enlarge it");
            run_as(facts, told);
        }
        None if facts.here => no_volume(facts, told, "attach a volume to the service, and set the folder to one below its mount path"),
        None => {
            let found = "whether the service has one is not known here (RAILWAY_VOLUME_MOUNT_PATH)";
            told.note("volume", found, "with one: [[policy.disks]] for it, and daemon.state_dir and backups below it");
        }
    }
    restarts(facts, told);
    log_rate(facts, told);
    told.note(
        "health check",
        "while a deploy goes on only, on PORT, with the host healthcheck.railway.app",
        "allow that host in the application (Django: ALLOWED_HOSTS); afterwards it is Plimsoll that looks: ready and health of the worker",
    );
}

/// What Railway was told to wait, by the variable or by the file that is still read for older services.
fn draining(facts: &Facts) -> Option<(Duration, String)> {
    let by_variable = || {
        let seconds: u64 = facts.variables.get(DRAINING)?.trim().parse().ok()?;
        Some((Duration::from_secs(seconds), DRAINING.to_owned()))
    };
    let by_file = || {
        let (name, text) = facts.files.iter().find(|(name, _)| name.starts_with("railway."))?;
        let file: toml::Value = if name.ends_with(".json") { serde_json::from_str(text).ok()? } else { toml::from_str(text).ok()? };
        Some((span(file.get("deploy")?.get("drainingSeconds")?)?, format!("drainingSeconds of {name}")))
    };
    // On the platform an unset variable is the default: nobody has to guess.
    let unset = || facts.here.then(|| (Duration::ZERO, format!("{DRAINING} is not set")));
    by_variable().or_else(by_file).or_else(unset)
}

fn config_as_code(facts: &Facts, told: &mut Told<'_>) {
    for name in facts.files.keys().filter(|name| name.starts_with("railway.")) {
        told.warn(
            "config as code",
            format!("{name} is here; Railway does not take it for new services, and does not read it any more after 2026-12-01"),
            "move it to .railway/railway.ts (`railway config migrate`)",
        );
    }
}

fn listening(facts: &Facts, told: &mut Told<'_>) {
    let remedy = "http.listen = [\"[::]:18760\"], which takes IPv4 too";
    match reach(&facts.settings) {
        Reach::Everybody => told.ok("private network", "Prometheus reaches http.listen over IPv6 and IPv4"),
        Reach::OldInternet => told.warn(
            "private network",
            "http.listen is IPv4 only; in environments made before 2025-10-16 names of the private network lead to IPv6 only",
            remedy,
        ),
        Reach::ThisMachine | Reach::Nobody => {
            told.note("private network", "http.listen cannot be reached from other services: Prometheus gets no metrics", remedy);
        }
    }
}

/// A volume belongs to root.
fn run_as(facts: &Facts, told: &mut Told<'_>) {
    let as_root = facts.variables.get("RAILWAY_RUN_UID").is_some_and(|user| user == "0");
    let remedy = "set RAILWAY_RUN_UID=0 in the variables of the service, and user = \"…\" for the workers";
    match (as_root || facts.seen.root, facts.here) {
        (true, _) => told.ok("user", "root: a volume can be written to"),
        (false, true) => told.warn("user", "not root, and the volume belongs to root: it cannot be written to", remedy),
        (false, false) => told.note("user", "an image that does not run as root cannot write to a volume", remedy),
    }
}

fn restarts(facts: &Facts, told: &mut Told<'_>) {
    let settings = &facts.settings;
    if settings.workers.is_empty() {
        told.note(
            "restart policy",
            "`run -- COMMAND` ends with the command, and Railway starts it again ten times at the most (On Failure)",
            "put the command into [workers.NAME], which restarts it here, or set the policy to Always (paid plans)",
        );
        return;
    }
    let names: Vec<&str> = settings.workers.iter().filter(|worker| worker.restart != Restart::Never).map(|worker| &*worker.name).collect();
    if let Some(worker) = settings.workers.iter().find(|worker| worker.restart != Restart::Never) {
        told.note(
            "restart policy",
            format!(
                "Railway does not see a worker that has given up ({} ends within {} min): it looks after the container only, which goes on",
                worker.backoff.give_up,
                worker.backoff.within.as_secs() / 60
            ),
            format!("have an alert on the event worker_gave_up ({}), or raise backoff.give_up", names.join(", ")),
        );
    }
}

fn log_rate(facts: &Facts, told: &mut Told<'_>) {
    let settings = &facts.settings;
    if matches!(settings.log.level, LogLevel::Debug | LogLevel::Trace) {
        told.warn("log", "Railway drops what is more than 500 lines a second, and log.level is below info", "log.level = \"info\"");
        return;
    }
    let loud: Vec<&str> = settings.workers.iter().filter(|worker| worker.output == Output::Inherit).map(|worker| &*worker.name).collect();
    let whose = if loud.is_empty() { String::new() } else { format!(" ({} print there)", loud.join(", ")) };
    told.note(
        "log",
        format!("Railway drops what is more than 500 lines a second of each replica{whose}"),
        "keep access logs short, or give them a file: output = { file = \"…\", max_size = \"10MB\", keep = 2 }",
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, Expect};

    const ENOUGH: &str =
        "[workers.web]\ncommand = [\"sh\", \"-c\", \"serve $PORT\"]\nstop = { within = \"5s\" }\n[http]\nlisten = [\"[::]:18760\"]\n";

    fn case(settings: &str) -> Case {
        Case::new("railway", settings)
    }

    #[test]
    fn nobody_is_killed_at_once() {
        let unset = case(ENOUGH).expect("grace", Expect::Warn, "Railway waits 0 s (RAILWAY_DEPLOYMENT_DRAINING_SECONDS is not set)");
        assert_eq!(unset.remedy(), "set RAILWAY_DEPLOYMENT_DRAINING_SECONDS=6 in the variables of the service");
        let few =
            case(ENOUGH).variable("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "3").expect("grace", Expect::Warn, "may take 5 s (stop.within");
        assert!(few.remedy().ends_with("or daemon.shutdown_timeout = \"2s\""), "{}", few.remedy());
        case(ENOUGH).variable("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "6").expect("grace", Expect::Ok, "waits 6 s");
        case(ENOUGH).file("railway.toml", "[deploy]\ndrainingSeconds = 30\n").expect(
            "grace",
            Expect::Ok,
            "drainingSeconds of railway.toml",
        );
        case(ENOUGH).file("railway.json", "{\"deploy\": {\"drainingSeconds\": 3}}").expect("grace", Expect::Warn, "railway.json");
        case(ENOUGH).elsewhere().expect("grace", Expect::Warn, "cannot be seen from here");
        case(ENOUGH).elsewhere().grace(10).expect("grace", Expect::Ok, "as --grace says");
        let at_default =
            case("").variable("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "30").expect("grace", Expect::Warn, "daemon.shutdown_timeout");
        assert!(at_default.remedy().contains("SECONDS=31") && at_default.remedy().contains("\"25s\""), "{}", at_default.remedy());
    }

    #[test]
    fn the_port_is_the_applications() {
        case(ENOUGH).variable("PORT", "18760").expect("port", Expect::Warn, "http.listen has [::]:18760");
        case(ENOUGH).variable("PORT", "8080").expect("port", Expect::Ok, "left to the application: web");
        case("[workers.web]\ncommand = [\"true\"]\n").variable("PORT", "8080").expect(
            "port",
            Expect::Note,
            "no worker in the settings names it",
        );
        case("[workers.web]\ncommand = [\"true\"]\nlisten = [\"0.0.0.0:8000\"]\n").variable("PORT", "8080").expect(
            "port",
            Expect::Warn,
            "the workers listen on 0.0.0.0:8000",
        );
        case("[workers.web]\ncommand = [\"true\"]\nlisten = [\"0.0.0.0:8080\"]\n").variable("PORT", "8080").expect(
            "port",
            Expect::Ok,
            "web",
        );
        case(ENOUGH).expect("port", Expect::Note, "not known here");
    }

    #[test]
    fn the_private_network_may_be_ipv6_only() {
        case(ENOUGH).expect("private network", Expect::Ok, "over IPv6");
        case("[http]\nlisten = [\"0.0.0.0:18760\"]\n").expect("private network", Expect::Warn, "IPv4 only");
        case("").expect("private network", Expect::Note, "cannot be reached");
    }

    #[test]
    fn what_is_to_last_lies_on_the_volume() {
        let on = |settings: &str| case(settings).variable("RAILWAY_VOLUME_MOUNT_PATH", "/data");
        on("").expect("volume", Expect::Warn, "nobody watches /data");
        let watched = "[[policy.disks]]\npath = \"/data\"\n[daemon]\nstate_dir = \"/data/plimsoll\"\n";
        on(watched).expect("volume", Expect::Ok, "is watched").expect("state", Expect::Absent, "");
        assert_eq!(on("").expect("state", Expect::Note, "begins anew").remedy(), "daemon.state_dir = \"/data/plimsoll\"");
        let job = "[jobs.old]\nkind = \"files\"\npaths = [\"/data/audio\"]\nschedule = \"@daily\"\n";
        on(job).expect("state", Expect::Warn, "which jobs were missed");
        let copies = "[jobs.copies]\nkind = \"backup\"\ndatabases = [\"/data/app.db\"]\nto = \"/var/backups\"\n";
        assert_eq!(on(copies).expect("copies", Expect::Warn, "not on the volume").remedy(), "jobs.copies.to = \"/data/backups\"");
        on(&copies.replace("/var", "/data")).expect("copies", Expect::Absent, "");
        case(copies).expect("copies", Expect::Warn, "without a volume");
        case(copies).elsewhere().expect("copies", Expect::Absent, "").expect("volume", Expect::Note, "not known here");

        on("").expect("user", Expect::Warn, "belongs to root");
        on("").root().expect("user", Expect::Ok, "root");
        on("").variable("RAILWAY_RUN_UID", "0").expect("user", Expect::Ok, "root");
        on("").elsewhere().expect("user", Expect::Note, "does not run as root");
        case("").expect("user", Expect::Absent, "");
    }

    #[test]
    fn files_that_are_not_read_any_more_are_named() {
        case("").expect("config as code", Expect::Absent, "");
        case("").file("railway.json", "{}").expect("config as code", Expect::Warn, "2026-12-01");
    }

    #[test]
    fn restarts_and_log_lines_are_counted() {
        case("").expect("restart policy", Expect::Note, "ten times at the most");
        case(ENOUGH).expect("restart policy", Expect::Note, "10 ends within 10 min").expect("log", Expect::Note, "web print there");
        case("[workers.web]\ncommand = [\"true\"]\nrestart = \"never\"\n").expect("restart policy", Expect::Absent, "");
        case("[log]\nlevel = \"debug\"\n").expect("log", Expect::Warn, "500 lines a second");
    }
}
