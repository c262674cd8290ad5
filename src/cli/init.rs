//! `plimsoll init`: writes a commented plimsoll.toml for the platform found, with the figures that really hold here.
//!
//! What is written passes `plimsoll check` as it is: whatever is only a guess, or not there yet, is a comment.

use std::fs;
use std::path::Path;

use super::render::{cores, size};
use crate::host::inventory::Platform;

/// What the file is written for.
#[derive(Clone, Debug)]
pub struct Found {
    pub platform: Platform,
    /// The folder that outlives a deploy, where that is known.
    pub volume: Option<String>,
    /// In cores, with where it comes from; `None` where it cannot be told.
    pub cpu: Option<(f64, String)>,
    /// In bytes.
    pub memory: Option<(f64, String)>,
    pub workers: Vec<Guess>,
    /// Where the application was found; `None` for a place that is not here.
    pub folder: Option<String>,
    /// It is written for the place we are in.
    pub here: bool,
}

/// A worker that may have been meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    pub name: String,
    pub command: Vec<String>,
    /// What it was read from.
    pub from: String,
    /// Why it cannot be started as it stands, if it cannot.
    pub missing: Option<String>,
}

/// What is particular about a platform.
struct Habits {
    is: &'static str,
    /// Lines about the end: (comment, shutdown_timeout).
    end: (&'static str, &'static str),
    /// Where it is reached from outside its container. `None`: it is in none.
    reached_at: Option<&'static str>,
    /// What else is to be thought of there, as comments.
    also: &'static str,
    /// Comments that belong to memory there.
    memory: Option<&'static str>,
}

fn habits(platform: Platform) -> Habits {
    let container = |is, end| Habits { is, end, reached_at: Some("0.0.0.0:18760"), also: "", memory: None };
    match platform {
        Platform::Kubernetes => Habits {
            memory: Some("Kubernetes ends the whole container on one out-of-memory: keep critical well under 100 %."),
            also: "# Where pods have IPv6 only: [::]:18760.\n# As a sidecar: shareProcessNamespace: true, the same runAsUser as the application, and its limits from a downwardAPI volume.\n",
            ..container("a pod of Kubernetes", ("terminationGracePeriodSeconds is 30 unless set: be done before.", "25s"))
        },
        Platform::Railway => Habits {
            // Names of its private network lead to IPv6 only in older environments.
            reached_at: Some("[::]:18760"),
            also: "# PORT is the application's: Plimsoll leaves it alone, and the workers get the variable.\n",
            ..container(
                "Railway",
                ("Railway waits 0 s after SIGTERM unless RAILWAY_DEPLOYMENT_DRAINING_SECONDS is set: set it to 30.", "25s"),
            )
        },
        Platform::Render => Habits {
            also: "# PORT is the application's: Plimsoll leaves it alone, and the workers get the variable.\n",
            ..container("Render", ("Render waits 30 s after SIGTERM unless maxShutdownDelaySeconds is set in render.yaml.", "25s"))
        },
        Platform::Fly => Habits {
            // Its private network is IPv6.
            reached_at: Some("[::]:18760"),
            also: "# For Fly's own Prometheus, fly.toml needs [metrics] with port 18760 and path \"/metrics\".\n",
            ..container("Fly", ("Fly sends SIGINT and waits 5 s unless kill_timeout is set in fly.toml.", "4s"))
        },
        Platform::Docker => container("a container of Docker", ("docker stop waits 10 s unless told otherwise: be done before.", "8s")),
        Platform::Podman => container("a container of Podman", ("podman stop waits 10 s unless told otherwise: be done before.", "8s")),
        Platform::Container => container("a container", ("Most engines wait 10 s after SIGTERM: be done before.", "8s")),
        Platform::Systemd => Habits {
            is: "a service of systemd",
            end: ("Keep TimeoutStopSec of the unit above this.", "30s"),
            reached_at: None,
            also: "",
            memory: None,
        },
        Platform::Host => Habits {
            is: "a machine of your own",
            end: ("The whole ordered shutdown is over after this long.", "30s"),
            reached_at: None,
            also: "",
            memory: None,
        },
    }
}

impl Found {
    /// A worker is in force in what is written, not a comment.
    pub fn has_worker(&self) -> bool {
        self.workers.iter().any(|guess| guess.missing.is_none())
    }
}

/// The text of the file.
pub fn draft(found: &Found) -> String {
    let habits = habits(found.platform);
    let mut text = format!(
        "# Plimsoll on {}, written by `plimsoll init`.\n\
         # Only what differs from the defaults has to be here. `plimsoll config show` prints everything that holds,\n\
         # `plimsoll check` finds every mistake, `plimsoll doctor` says what works here.\n\n",
        habits.is
    );
    if found.here {
        text.push_str("# The limits that hold here, which 100 % is of:\n");
        text.push_str(&format!("#   CPU     {}\n", figure(found.cpu.as_ref(), cores)));
        text.push_str(&format!("#   memory  {}\n\n", figure(found.memory.as_ref(), size)));
    } else {
        text.push_str(&format!(
            "# Written elsewhere: 100 % is of the limits that will hold there. `plimsoll doctor --platform {}` looks at it from here.\n\n",
            found.platform.word()
        ));
    }

    text.push_str(&format!("[daemon]\n# {}\nshutdown_timeout = \"{}\"\n", habits.end.0, habits.end.1));
    if let Some(volume) = &found.volume {
        text.push_str("# On the volume, so that it outlives a deploy: how jobs have run, and the record of seven days.\n");
        text.push_str(&format!("state_dir = {}\n", toml_text(&format!("{}/plimsoll", volume.trim_end_matches('/')))));
    }
    text.push_str("\n[http]\n");
    if let Some(address) = habits.reached_at {
        text.push_str(&format!(
            "# From outside the container, for Prometheus and health checks (/metrics, /healthz, /readyz). Set PLIMSOLL_HTTP__API_KEY\n\
             # for the dashboard and control; without a key those stay inside the container.\n\
             {}listen = [\"{address}\"]\n\n",
            habits.also
        ));
    } else {
        text.push_str("# On this machine only. A key (api_key_file) is needed before control is served to others.\nlisten = [\"127.0.0.1:18760\"]\n\n");
    }
    text.push_str(&policy(found, &habits));
    for guess in &found.workers {
        text.push_str(&worker(guess, found.folder.as_deref().filter(|_| habits.reached_at.is_none())));
    }
    if found.workers.is_empty() {
        text.push_str(EXAMPLE);
    }
    text.trim_end().to_owned() + "\n"
}

fn figure(limit: Option<&(f64, String)>, shown: impl Fn(f64) -> String) -> String {
    limit.map_or_else(|| "not known here".to_owned(), |(limit, source)| format!("{} (set by {source})", shown(*limit)))
}

fn policy(found: &Found, habits: &Habits) -> String {
    let of = |share: f64| found.memory.as_ref().map_or(String::new(), |(limit, _)| format!("   # {}", size(share * limit)));
    let mut text = format!(
        "[policy.cpu]\n\
         # From here on the workers share a budget, fairly, until demand is under low again.\n\
         high = \"80%\"\n\
         low = \"70%\"\n\
         sustain = \"10s\"\n\n\
         [policy.memory]\n{}\
         high = \"80%\"{}\n\
         low = \"70%\"{}\n\
         critical = \"92%\"{}\n\
         sustain = \"4s\"\n\
         # What is tried, mildest first: notify, shed, reclaim, throttle, recycle, kill.\n\
         on_high = [\"shed\", \"throttle\"]\n\
         on_critical = [\"recycle\", \"kill\"]\n\n",
        habits.memory.map_or(String::new(), |comment| format!("# {comment}\n")),
        of(0.80),
        of(0.70),
        of(0.92),
    );
    if let Some(volume) = &found.volume {
        text.push_str(&format!("# The volume must not fill up.\n[[policy.disks]]\npath = {}\nhigh = \"80%\"\n\n", toml_text(volume)));
    } else if habits.reached_at.is_some() {
        text.push_str(
            "# A volume that must not fill up; the folder must be there.\n# [[policy.disks]]\n# path = \"/app/data\"\n# high = \"80%\"\n\n",
        );
    } else {
        text.push_str("[[policy.disks]]\npath = \"/\"\nhigh = \"80%\"\n\n");
    }
    text
}

/// A worker's section, as a comment where it could not be started as it stands.
fn worker(guess: &Guess, folder: Option<&str>) -> String {
    let words: Vec<String> = guess.command.iter().map(|word| toml_text(word)).collect();
    // The file may be moved to /etc/plimsoll, and a service of systemd starts in /.
    let directory = folder.map_or(String::new(), |folder| format!("directory = {}\n", toml_text(folder)));
    let section = format!("[workers.{}]\ncommand = [{}]\n{directory}{DETAILS}", guess.name, words.join(", "));
    let from = single_line(&guess.from);
    match &guess.missing {
        None => format!("# Read from {from}; see that it is what you mean.\n{section}\n"),
        Some(why) => {
            let commented: String =
                section.lines().map(|line| if line.starts_with('#') { format!("{line}\n") } else { format!("# {line}\n") }).collect();
            format!("# Read from {from}, and not in force: {}.\n{commented}\n", single_line(why))
        }
    }
}

/// What every worker may want; all of it comments, so that the defaults hold.
const DETAILS: &str = "\
# replicas = 2                      # a number, \"cpus\" or \"cpus+1\"; with one there is a gap while it is replaced
# limits = { memory = \"400MB\" }     # for each replica, which is replaced at 92 % of it
# recycle = { lifetime = \"12h\" }    # a fresh process now and then, so that a slow leak never adds up
# shed_signal = \"SIGUSR1\"           # only for a program that handles it: others end by it
";

const EXAMPLE: &str = "\
# The programs that are looked after, each under a name. `plimsoll run -- COMMAND` needs none.
# [workers.web]
# command = [\"uvicorn\", \"app.main:app\"]
# directory = \"/app\"
# replicas = 2                      # a number, \"cpus\" or \"cpus+1\"; with one there is a gap while it is replaced
# limits = { memory = \"400MB\" }     # for each replica, which is replaced at 92 % of it
# recycle = { lifetime = \"12h\" }    # a fresh process now and then, so that a slow leak never adds up
# shed_signal = \"SIGUSR1\"           # only for a program that handles it: others end by it
";

/// A string as TOML writes it; the escapes of JSON are escapes of TOML.
fn toml_text(text: &str) -> String {
    // A string always has a JSON form. DEL is no character of a TOML string.
    serde_json::to_string(text).unwrap_or_default().replace('\u{7f}', "\\u007F")
}

fn single_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// No file of this kind is longer.
const LONGEST: u64 = 64 << 10;

/// What the application in `folder` seems to be started with. `is_there` says whether a program can be started.
pub fn guess(folder: &Path, is_there: impl Fn(&str) -> Result<(), String>) -> Vec<Guess> {
    let read = |name: &str| {
        let path = folder.join(name);
        let is_short = fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= LONGEST);
        is_short.then(|| fs::read_to_string(path).ok()).flatten()
    };
    let guess = |name: &str, command: &[&str], from: String| Guess {
        name: name.to_owned(),
        missing: command.first().and_then(|program| is_there(program).err()),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        from,
    };
    if let Some(text) = read("Procfile") {
        let listed: Vec<Guess> = procfile(&text)
            .map(|(name, line)| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let from = format!("Procfile ({name})");
                // Anything the shell would have a part in is left to it.
                let is_plain = line.chars().all(|c| c.is_ascii_alphanumeric() || " \t-_./:=@,+%".contains(c))
                    && !words.first().is_some_and(|word| word.contains('='));
                if is_plain { guess(&name, &words, from) } else { guess(&name, &["sh", "-c", &format!("exec {line}")], from) }
            })
            .collect();
        if !listed.is_empty() {
            return listed;
        }
    }
    let project = || {
        let entries = fs::read_dir(folder).ok()?.flatten();
        entries.filter(|entry| entry.path().join("wsgi.py").is_file()).find_map(|entry| entry.file_name().into_string().ok())
    };
    if read("manage.py").is_some()
        && let Some(project) = project()
    {
        return vec![guess("web", &["gunicorn", &format!("{project}.wsgi")], format!("manage.py and {project}/wsgi.py"))];
    }
    for (file, module) in [("app/main.py", "app.main:app"), ("main.py", "main:app"), ("app.py", "app:app"), ("wsgi.py", "wsgi:app")] {
        match read(file) {
            Some(text) if text.contains("FastAPI(") || text.contains("Starlette(") => {
                return vec![guess("web", &["uvicorn", module], file.to_owned())];
            }
            Some(text) if text.contains("Flask(") => return vec![guess("web", &["gunicorn", module], file.to_owned())],
            _ => {}
        }
    }
    let start =
        |text: String| serde_json::from_str::<serde_json::Value>(&text).ok().is_some_and(|package| package["scripts"]["start"].is_string());
    if read("package.json").is_some_and(start) {
        return vec![guess("web", &["npm", "start"], "package.json".to_owned())];
    }
    Vec::new()
}

/// The lines `name: command` of a Procfile whose names a worker may have; each name once.
fn procfile(text: &str) -> impl Iterator<Item = (String, &str)> {
    let mut seen: Vec<String> = Vec::new();
    text.lines().filter_map(move |line| {
        let (name, command) = line.split_once(':')?;
        let (name, command) = (name.trim(), command.trim());
        let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        // A release phase is run once, by the platform.
        if !fits || command.is_empty() || name == "release" || seen.iter().any(|one| one == name) {
            return None;
        }
        seen.push(name.to_owned());
        Some((name.to_owned(), command))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use proptest::prelude::*;

    fn found(platform: Platform, workers: Vec<Guess>) -> Found {
        Found {
            platform,
            here: true,
            folder: None,
            volume: None,
            cpu: Some((0.5, "cgroup".into())),
            memory: Some((536_870_912.0, "cgroup".into())),
            workers,
        }
    }

    fn load(text: &str) -> config::Loaded {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plimsoll.toml");
        fs::write(&file, text).unwrap();
        let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
        let sources = Sources { file: Some(file), env, working_dir: folder.path().to_path_buf(), ..Sources::default() };
        config::load(&sources).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    /// Without its comment signs, as somebody would take them away.
    fn uncommented(text: &str) -> String {
        let is_setting = |line: &str| line.contains(" = ") || line.starts_with('[');
        let opened = text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line));
        opened.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn what_is_written_passes_the_check_on_every_platform() {
        let sh = Guess {
            name: "web".into(),
            command: vec!["sh".into(), "-c".into(), "exec sleep \"1\"\u{7f}\\".into()],
            from: "Procfile".into(),
            missing: None,
        };
        let gone = Guess {
            name: "queue".into(),
            missing: Some("no\nsuch".into()),
            command: vec!["no-such-program".into()],
            from: "Procfile".into(),
        };
        for platform in Platform::ALL {
            let text = draft(&found(platform, vec![sh.clone(), gone.clone()]));
            let loaded = load(&text);
            assert_eq!(loaded.settings.workers.len(), 1, "{text}");
            assert_eq!(loaded.settings.workers[0].command, sh.command);
            assert!(text.contains("CPU     0.50 cores (set by cgroup)") && text.contains("# 410 MiB"), "{text}");

            let empty = draft(&Found { cpu: None, memory: None, ..found(platform, vec![]) });
            assert!(load(&empty).settings.workers.is_empty());
            // And the example is one: taking the comment signs away leaves settings that hold, but for what is not here.
            let open = uncommented(&empty).replace("uvicorn", "sh").replace("/app/data", "/").replace("/app", "/");
            assert_eq!(load(&open).settings.workers.len(), 1, "{open}");
        }
    }

    #[test]
    fn a_platform_gets_what_holds_there() {
        let settings = |platform, volume: Option<&str>| {
            let volume = volume.map(str::to_owned);
            load(&draft(&Found { platform, volume, cpu: None, memory: None, workers: vec![], folder: None, here: false })).settings
        };
        let railway = settings(Platform::Railway, Some("/tmp/"));
        assert_eq!(railway.http.listen[0].to_string(), "[::]:18760");
        assert_eq!((railway.daemon.state_dir.path.as_path(), railway.daemon.shutdown_timeout.as_secs()), (Path::new("/tmp/plimsoll"), 25));
        assert_eq!(railway.policy.disks[0].path, Path::new("/tmp/"));
        assert!(settings(Platform::Railway, None).policy.disks.is_empty());
        assert_eq!(settings(Platform::Fly, None).daemon.shutdown_timeout.as_secs(), 4);
        assert_eq!(settings(Platform::Docker, None).http.listen[0].to_string(), "0.0.0.0:18760");
        assert!(settings(Platform::Systemd, None).http.listen[0].ip().is_loopback());
        // What the doctor advises and what is written are the same.
        for (platform, grace) in [(Platform::Fly, 5), (Platform::Docker, 10), (Platform::Render, 30), (Platform::Kubernetes, 30)] {
            let advised = super::super::doctor::platform::within(std::time::Duration::from_secs(grace));
            assert_eq!(Some(settings(platform, None).daemon.shutdown_timeout), advised, "{platform:?}");
        }
    }

    #[test]
    fn a_service_starts_its_workers_in_the_folder_they_were_found_in() {
        let web = Guess { name: "web".into(), command: vec!["sh".into(), "run.sh".into()], from: "Procfile".into(), missing: None };
        let directory = |platform, folder: Option<&str>| {
            let found = Found { folder: folder.map(str::to_owned), ..found(platform, vec![web.clone()]) };
            load(&draft(&found)).settings.workers[0].directory.clone()
        };
        assert_eq!(directory(Platform::Systemd, Some("/tmp")).as_deref(), Some(Path::new("/tmp")));
        assert_eq!(directory(Platform::Systemd, None), None);
        // An image has it elsewhere, and a WORKDIR.
        assert_eq!(directory(Platform::Docker, Some("/tmp")), None);
    }

    type Files<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn applications_are_known_by_their_files() {
        let nothing: Files = &[];
        let cases: [(Files, &[&[&str]]); 8] = [
            (nothing, &[]),
            (
                &[("Procfile", "web: gunicorn app:app --workers 2\nrelease: x\nworker: celery -A app worker & wait\n# no\n")],
                &[&["web", "gunicorn", "app:app", "--workers", "2"], &["worker", "sh", "-c", "exec celery -A app worker & wait"]],
            ),
            (&[("Procfile", "web: A=1 x\n")], &[&["web", "sh", "-c", "exec A=1 x"]]),
            (&[("manage.py", ""), ("shop/wsgi.py", "")], &[&["web", "gunicorn", "shop.wsgi"]]),
            (&[("app/main.py", "app = FastAPI()")], &[&["web", "uvicorn", "app.main:app"]]),
            (&[("app.py", "app = Flask(__name__)")], &[&["web", "gunicorn", "app:app"]]),
            (&[("package.json", "{\"scripts\": {\"start\": \"node .\"}}")], &[&["web", "npm", "start"]]),
            (&[("package.json", "{}"), ("main.py", "print()")], &[]),
        ];
        for (files, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let guesses = guess(folder.path(), |_| Ok(()));
            let shown: Vec<Vec<&str>> = guesses
                .iter()
                .map(|guess| std::iter::once(&*guess.name).chain(guess.command.iter().map(String::as_str)).collect())
                .collect();
            assert_eq!(shown, expected, "{files:?}");
        }
    }

    proptest! {
        #[test]
        fn any_procfile_gives_a_file_that_can_be_read(text in "([a-z0-9_-]{0,6}:? ?[ -~\u{7f}ä]{0,30}\n){0,4}") {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("Procfile"), &text).unwrap();
            let workers = guess(folder.path(), |program| if program == "sh" { Ok(()) } else { Err("not here".to_owned()) });
            load(&draft(&found(Platform::Host, workers)));
        }
    }
}
