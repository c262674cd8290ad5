//! The commands people type. Owns the command line: what is asked becomes one call; what comes back becomes text and an
//! exit code. May read the environment and the working folder, once. Must not act on the machine by itself.

pub mod arguments;
pub mod backups;
pub mod client;
pub mod demo;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod init;
pub mod jobs;
pub mod man;
pub mod render;
pub mod settings;
pub mod status;
pub mod workers;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::CommandFactory;

use crate::actuators::undo;
use crate::config::{self, Loaded, Sources};
use crate::daemon::signals::Signals;
use crate::daemon::{self, folders, sentinel, upgrade};
use crate::host::Paths;
use crate::host::cgroupfs::Layout;
use crate::host::clock::Moment;
use crate::host::inventory::Platform;
use crate::host::service_manager::Passed;
use crate::host::{probe, spawn};
use crate::http::listen::SOCKET;
use crate::jobs::child;
use crate::journal::history::{self, Wanted};
use crate::sampling::sampler::Sampler;
use crate::snapshot::Snapshot;
use crate::snapshot::explain::Explanation;
use crate::supervisor::capture;

use arguments::{Arguments, Command, Common, ConfigCommand, JobsCommand, Output, WorkersCommand};
use client::{Client, ClientError};
use render::Style;

/// 0 ok, 1 failed, 2 usage; 69, 77 and 78 as in sysexits.h.
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const NOT_PERMITTED: u8 = 77;

/// A daemon that has become another answers by then; how often it is asked.
const UPGRADED_WITHIN: Duration = Duration::from_secs(10);
const UPGRADED_LOOK: Duration = Duration::from_millis(20);

/// The daemon tries another program out before it answers.
const TRIED_WITHIN: Duration = Duration::from_secs(30);

/// Runs one command; `args` begin with the program's name. Returns the exit code.
pub fn main(args: Vec<OsString>, env: Vec<(OsString, OsString)>) -> u8 {
    // The sentinel is not for people: it is not on the command line they see.
    if args.get(1).is_some_and(|word| word == sentinel::SUBCOMMAND) {
        let rest: Vec<String> = args.iter().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
        return sentinel::main(&rest);
    }
    // Nor is what writes the output of workers.
    if args.get(1).is_some_and(|word| word == capture::SUBCOMMAND) {
        let rest: Vec<String> = args.iter().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
        return capture::main(&rest);
    }
    // Nor is what a job runs in.
    if args.get(1).is_some_and(|word| word == child::SUBCOMMAND) {
        let rest: Vec<String> = args.iter().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
        return child::main(&rest);
    }
    // Nor is what the demo starts.
    if args.get(1).is_some_and(|word| word == demo::part::SUBCOMMAND) {
        return demo::part::main(args.get(2..).unwrap_or_default(), env);
    }
    let arguments = match arguments::parse(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // --help and --version are answers, not errors; clap knows which stream and code each takes.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(USAGE);
        }
    };
    let session = Session { common: arguments.common, env };
    match arguments.command {
        Some(command) => session.perform(command),
        None => {
            // Nobody is there to read it if this fails.
            let _ = Arguments::command().print_help();
            USAGE
        }
    }
}

/// True where the platform that is asked for is the one that was found. Whoever types on a machine of systemd is no service, and the
/// daemon will be one.
fn is_platform(found: Platform, asked: Platform) -> bool {
    found == asked || (asked == Platform::Systemd && found == Platform::Host && probe::is_run_by_systemd())
}

/// What the daemon of this pid was given after `--`; nothing where that cannot be read, or stands in its settings.
fn typed_command(daemon: u32) -> Vec<String> {
    let words = spawn::arguments_of(&Paths::default(), daemon).unwrap_or_default();
    words.iter().skip_while(|word| *word != "--").skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// What every command needs.
struct Session {
    common: Common,
    env: Vec<(OsString, OsString)>,
}

impl Session {
    fn perform(self, command: Command) -> u8 {
        match command {
            Command::Run { command } => self.run(command),
            Command::Demo { duration } => self.demo(duration),
            Command::Check { elsewhere, command } => self.check(elsewhere, command),
            Command::Doctor { platform, grace } => self.doctor(platform, grace),
            Command::Init { stdout, force, platform } => self.init(stdout, force, platform),
            Command::Config { command } => match command {
                ConfigCommand::Show { origin } => self.config_show(origin),
                ConfigCommand::Schema => print_line(&pretty(&config::schema())),
            },
            Command::Status => self.status(),
            Command::Workers { command } => self.workers(command.unwrap_or(WorkersCommand::List)),
            Command::Backups { command } => self.backups(command),
            Command::Jobs { command } => self.jobs(command.unwrap_or(JobsCommand::List)),
            Command::Explain { of } => self.explain(of.as_deref()),
            Command::Events { follow, since, limit, names } => {
                let since = since.map(|since| Moment::now().unix_seconds() - since.as_secs_f64());
                let wanted = Wanted { since, names, limit };
                self.events(&events::Asked { follow, json: self.common.json(), style: self.stdout_style(), wanted })
            }
            Command::Upgrade => self.ask_for_program("/admin/upgrade"),
            Command::Reload { dry_run: true } => self.ask("/admin/config/reload?dry_run=true"),
            Command::Reload { dry_run: false } => self.ask_for_program("/admin/config/reload"),
            Command::Release => self.release(),
            Command::Health => self.health(),
            Command::Metrics { describe } => self.metrics(describe),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Arguments::command(), "plimsoll", &mut script);
                print_line(String::from_utf8_lossy(&script).trim_end())
            }
            Command::Man { page, out } => man::man(page.as_deref(), out.as_deref()),
        }
    }

    fn run(mut self, command: Vec<String>) -> u8 {
        // Before anything else is opened.
        let passed = Passed::receive(&mut self.env, std::process::id());
        let signals = match Signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                complain(&format!("could not start: signals cannot be listened to: {error}"));
                return FAILED;
            }
        };
        // Now that somebody listens to signals, and before anybody looks at the environment.
        let parcel = upgrade::receive(&mut self.env);
        let sources = Sources { beside: false, ..self.sources(command) };
        let loaded = match self.load(&sources) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        if loaded.settings.workers.is_empty() {
            let file = loaded
                .settings
                .file
                .as_ref()
                .map_or("no settings file was found".to_owned(), |file| format!("no [workers.NAME] in {}", file.display()));
            complain(&format!(
                "nothing to supervise: {file} and no command after --; watching the machine only (`plimsoll init` writes a file, \
                 `plimsoll run -- COMMAND` needs none)"
            ));
        }
        match daemon::run(signals, sources, loaded, self.env, passed, parcel) {
            Ok(code) => code,
            Err(error) => {
                complain(&error.to_string());
                error.exit_code()
            }
        }
    }

    fn check(mut self, elsewhere: bool, command: Vec<String>) -> u8 {
        // A daemon asks whether it could become us, and has what only a daemon is given.
        let place = self.env.iter().position(|(name, _)| name == upgrade::TRIAL_VARIABLE);
        let format = place.map(|place| self.env.remove(place).1);
        let sources = Sources { elsewhere, beside: format.is_none(), ..self.sources(command) };
        let code = settings::check(&sources, self.common.json(), self.stderr_colour());
        match format.and_then(|format| upgrade::acknowledgement(&format.to_string_lossy())).filter(|_| code == 0) {
            Some(line) => print_line(&line),
            None => code,
        }
    }

    fn demo(self, duration: Duration) -> u8 {
        let plain = self.env.iter().any(|(name, value)| name == "TERM" && value == "dumb");
        let (json, style) = (self.common.json(), self.stdout_style());
        demo::run(demo::Options { duration, json, style, plain, env: self.env, set: self.common.set })
    }

    fn load(&self, sources: &Sources) -> Result<Loaded, u8> {
        config::load(sources).map_err(|problems| {
            eprint!("{}", problems.render(self.stderr_colour()));
            problems.exit_code()
        })
    }

    fn sources(&self, command: Vec<String>) -> Sources {
        let env =
            self.env.iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())).collect();
        Sources {
            file: self.common.config.clone(),
            env,
            set: self.common.set.clone(),
            command,
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            beside: true,
            elsewhere: false,
        }
    }

    fn config_show(&self, origin: bool) -> u8 {
        let loaded = match self.load(&self.sources(Vec::new())) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        match (self.common.json(), origin) {
            (true, true) => print_line(&pretty(&serde_json::to_value(loaded.effective()).unwrap_or_default())),
            (true, false) => print_line(&pretty(&loaded.to_json())),
            (false, origin) => print_line(loaded.to_toml(origin).trim_end()),
        }
    }

    /// The runtime folders a daemon with our settings may have taken.
    fn runtime_folders(&self) -> Vec<PathBuf> {
        let sources = self.sources(Vec::new());
        folders::runtime_candidates(&config::runtime_dir(&sources), &sources)
    }

    fn client(&self) -> Result<Client, ClientError> {
        let sockets: Vec<PathBuf> = self.runtime_folders().into_iter().map(|folder| folder.join(SOCKET)).collect();
        Client::find(&sockets)
    }

    fn status(&self) -> u8 {
        let json = self.common.json();
        let result = self.client().and_then(|client| {
            if json {
                client.get_json("/admin/resources/stats").map(|value: serde_json::Value| pretty(&value))
            } else {
                let snapshot: Snapshot = client.get_json("/admin/resources/stats")?;
                Ok(status::render_status(&snapshot, Moment::now(), self.stdout_style()))
            }
        });
        self.answer(result)
    }

    fn doctor(&self, asked: Option<Platform>, grace: Option<Duration>) -> u8 {
        // A daemon guards the machine it runs on; of one that is a folder it says nothing.
        let client = self.client();
        let daemon: Option<Snapshot> = client.as_ref().ok().and_then(|client| client.get_json("/admin/resources/stats").ok());
        let mut sources = self.sources(Vec::new());
        let detected = Platform::detect(&Paths::default(), |name| sources.variable(name).map(str::to_owned));
        sources.elsewhere = asked.is_some_and(|asked| !is_platform(detected, asked));
        let has_our_file = |daemon: &&Snapshot| {
            let theirs = daemon.daemon.config_file.as_deref().map(Path::new);
            self.common.config.as_deref().is_none_or(|file| theirs == Some(file))
        };
        if let Some(daemon) = daemon.as_ref().filter(has_our_file).filter(|_| !sources.elsewhere) {
            sources.command = typed_command(daemon.daemon.pid);
        }
        let (settings, problems) = match config::load(&sources) {
            Ok(loaded) => (loaded.settings, None),
            Err(problems) => {
                eprint!("{}", problems.render(self.stderr_colour()));
                // The machine can be looked at all the same: as it is without the file, or without anything that was said.
                let no_file = Sources { file: Some("/dev/null".into()), ..sources.clone() };
                let nothing = Sources { env: Vec::new(), set: Vec::new(), ..no_file.clone() };
                match config::load(&no_file).or_else(|_| config::load(&nothing)) {
                    Ok(loaded) => (loaded.settings, Some(problems)),
                    Err(_) => return problems.exit_code(),
                }
            }
        };
        let paths = Paths::from(&settings.host);
        let patient = doctor::Patient {
            layout: Layout::discover(&paths),
            platform: Platform::detect(&paths, |name| sources.variable(name).map(str::to_owned)),
            asked,
            elsewhere: sources.elsewhere,
            grace,
            socket: client.map(|client| client.socket().display().to_string()).map_err(|error| error.to_string()),
            problems: problems.as_ref().map_or(0, |problems| problems.list.len()),
            settings,
            sources,
            paths,
            daemon,
        };
        match doctor::examine(&patient) {
            Ok(Some(report)) => {
                let text = if self.common.json() { pretty(&report.to_json()) } else { report.render(self.stdout_style()) };
                let printed = print_line(text.trim_end());
                match problems {
                    Some(problems) => problems.exit_code(),
                    None if report.has_failed() => FAILED,
                    None => printed,
                }
            }
            // Ended by Ctrl-C, as the shell says it.
            Ok(None) => 130,
            Err(error) => {
                complain(&format!("could not begin: {error}"));
                FAILED
            }
        }
    }

    fn init(&self, stdout: bool, force: bool, asked: Option<Platform>) -> u8 {
        // The file that is to be written is not to be read: it is not there yet, or is to be replaced.
        let sources = Sources { file: Some("/dev/null".into()), ..self.sources(Vec::new()) };
        let loaded = match self.load(&sources) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let paths = Paths::from(&loaded.settings.host);
        let layout = Layout::discover(&paths);
        let readings = Sampler::new(&paths, &loaded.settings.sampling, &layout, []).read(&[], Moment::now());
        let path = sources.variable("PATH").map(std::ffi::OsStr::new);
        let is_there = |program: &str| match spawn::resolve_program(program, path, Some(&sources.working_dir)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!("{program} was not found here")),
            Err(error) => Err(error.to_string()),
        };
        let platform = match Platform::detect(&paths, |name| sources.variable(name).map(str::to_owned)) {
            // Whoever types this is no service yet; what is written is for one.
            Platform::Host if probe::is_run_by_systemd() => Platform::Systemd,
            platform => platform,
        };
        // The limits of this machine say nothing of another, and nor does what is installed here.
        let here = asked.is_none_or(|asked| asked == platform);
        let volume = sources.variable("RAILWAY_VOLUME_MOUNT_PATH").filter(|path| Path::new(path).is_dir());
        let found = init::Found {
            platform: asked.unwrap_or(platform),
            volume: volume.map(str::to_owned),
            cpu: readings.cpu.limit_cores.known().filter(|_| here).map(|limit| (limit, readings.cpu.limit_source.word().to_owned())),
            memory: readings
                .memory
                .limit
                .known()
                .filter(|_| here)
                .map(|limit| (limit as f64, readings.memory.limit_source.word().to_owned())),
            workers: init::guess(&sources.working_dir, is_there),
            folder: sources.working_dir.to_str().filter(|_| here).map(str::to_owned),
            here,
        };
        let text = init::draft(&found);
        if stdout {
            return print_line(text.trim_end());
        }
        let file = sources.working_dir.join(self.common.config.as_deref().unwrap_or(Path::new("plimsoll.toml")));
        match write_settings(&file, &text, force) {
            Ok(()) => {
                let next = if found.has_worker() {
                    "`plimsoll check` it when you have changed it, `plimsoll doctor` says what works here, `plimsoll run` starts it"
                } else {
                    "no worker is in force in it yet: see the end of the file, take the # away and name your command; then `plimsoll check` \
                     and `plimsoll run`"
                };
                complain(&format!("{} is written; {next}", file.display()));
                0
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                complain(&format!("{} is there already; --force replaces it, --stdout prints what would be written", file.display()));
                FAILED
            }
            Err(error) => {
                complain(&format!("{} cannot be written: {error}; -c FILE writes it elsewhere, --stdout prints it", file.display()));
                if error.kind() == std::io::ErrorKind::PermissionDenied { NOT_PERMITTED } else { FAILED }
            }
        }
    }

    fn explain(&self, of: Option<&str>) -> u8 {
        let path = match of {
            None => "/admin/explain".to_owned(),
            Some(name) => format!("/admin/explain?of={}", escaped(name)),
        };
        let json = self.common.json();
        let result = self.client().and_then(|client| {
            if json {
                client.get_json(&path).map(|value: serde_json::Value| pretty(&value))
            } else {
                let explanation: Explanation = client.get_json(&path)?;
                Ok(explain::render(&explanation, of.is_some(), self.stdout_style()))
            }
        });
        self.answer(result)
    }

    fn events(&self, asked: &events::Asked) -> u8 {
        let (client, nobody) = match self.client() {
            Ok(client) => (Some(client), None),
            // What was is in the database; what will be, nobody can tell.
            Err(error @ ClientError::Unreachable { .. }) if !asked.follow => (None, Some(error)),
            Err(error) => return self.answer(Err(error)),
        };
        let held = match client.as_ref().map(events::held).transpose() {
            Ok(held) => held,
            Err(error) => return self.answer(Err(error)),
        };
        let past = match events::past(asked, held.as_deref(), |wanted| self.database(wanted)) {
            Ok(Some(past)) => past,
            Ok(None) => {
                let code = nobody.map_or(0, |error| self.answer(Err(error)));
                complain("no record of an earlier daemon was found either");
                return code;
            }
            Err(problem) => {
                complain(&problem);
                return FAILED;
            }
        };
        let mut out = std::io::stdout();
        match (events::write(&past, asked, &mut out), client.filter(|_| asked.follow)) {
            (Ok(true), Some(client)) => self.follow(&client, held.and_then(|held| Some(held.last()?.0)).unwrap_or(0), asked),
            (Ok(_), _) => 0,
            (Err(_), _) => FAILED,
        }
    }

    /// Prints what happens after event number `after` until somebody ends it.
    fn follow(&self, client: &Client, after: u64, asked: &events::Asked) -> u8 {
        // To stop watching is how this ends, no failure.
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            let always = Arc::new(AtomicBool::new(true));
            if let Err(error) = signal_hook::flag::register_conditional_shutdown(signal, 0, always) {
                complain(&format!("cannot be ended by a signal in order: {error}"));
            }
        }
        let mut feed = events::Feed::default();
        let mut written = Ok(true);
        let outcome = client.follow(&format!("/admin/events?follow=true&after={after}"), |bytes| {
            let news: Vec<_> = feed.take(bytes).into_iter().map(|(_, event)| event).filter(|event| asked.wanted.takes(event)).collect();
            written = events::write(&news, asked, &mut std::io::stdout());
            matches!(written, Ok(true))
        });
        match (outcome, written) {
            (Err(ClientError::Unreachable { tried }), _) => {
                let why = tried.first().map_or("it cannot be reached", |(_, why)| why.as_str());
                complain(&format!("the daemon has gone: {why}"));
                ClientError::Unreachable { tried }.exit_code()
            }
            (Err(error), _) => self.answer(Err(error)),
            (Ok(()), Ok(_)) => 0,
            (Ok(()), Err(_)) => FAILED,
        }
    }

    /// The record in the first state folder that has one.
    fn database(&self, wanted: &Wanted) -> Result<Option<Vec<serde_json::Value>>, String> {
        let sources = self.sources(Vec::new());
        let folders = folders::state_candidates(&config::state_dir(&sources), &sources);
        for folder in &folders {
            if let Some(events) = history::read(folder, wanted)? {
                return Ok(Some(events));
            }
        }
        Ok(None)
    }

    fn health(&self) -> u8 {
        let result = self
            .client()
            .and_then(|client| client.get_json("/healthz"))
            .map(|value: serde_json::Value| if self.common.json() { pretty(&value) } else { "ok".to_owned() });
        self.answer(result)
    }

    fn metrics(&self, describe: bool) -> u8 {
        if describe {
            return print_line(crate::metrics::names::describe().trim_end());
        }
        self.answer(self.client().and_then(|client| client.get_text("/metrics")).map(|page| page.trim_end().to_owned()))
    }

    /// Asks the daemon to do something and says what became of it.
    fn ask(&self, path: &str) -> u8 {
        let result = self
            .client()
            .and_then(|client| client.post(path))
            .map(|value| if self.common.json() { pretty(&value) } else { value["message"].as_str().unwrap_or("done").to_owned() });
        self.answer(result)
    }

    /// Asks for what may make the daemon another program, and waits until that guards.
    fn ask_for_program(&self, path: &str) -> u8 {
        let stats = |client: &Client| client.get_json::<Snapshot>("/admin/resources/stats");
        let result = self.client().and_then(|client| {
            let before = stats(&client)?;
            let answer = client.post_within(path, TRIED_WITHIN)?;
            if answer["becoming"] != true {
                let said = || answer["message"].as_str().unwrap_or("done").to_owned();
                return Ok(if self.common.json() { pretty(&answer) } else { said() });
            }
            let begun = Moment::now();
            loop {
                // It is the same daemon again, or one that could not and goes on.
                let now = self.client().and_then(|client| stats(&client));
                if let Ok(now) = now.as_ref().map(|snapshot| &snapshot.daemon)
                    && now.started_at != before.daemon.started_at
                {
                    let value = serde_json::json!({"from": before.daemon.version, "to": now.version, "pid": now.pid});
                    let said = format!("now version {} (was {}), pid {}; workers go on", now.version, before.daemon.version, now.pid);
                    return Ok(if self.common.json() { pretty(&value) } else { said });
                }
                if Moment::now().since(begun) > UPGRADED_WITHIN {
                    return Err(ClientError::Refused {
                        status: 0,
                        error: "not_upgraded".to_owned(),
                        message: format!("the daemon is not a new one after {} s; its log says why", UPGRADED_WITHIN.as_secs()),
                    });
                }
                pause(UPGRADED_LOOK);
            }
        });
        self.answer(result)
    }

    /// Undoes every limit; without a daemon, what a dead one wrote down.
    fn release(&self) -> u8 {
        match self.client() {
            Ok(_) => self.ask("/admin/release"),
            Err(ClientError::Unreachable { .. }) => {
                let mut total = undo::Swept::default();
                for log in self.runtime_folders().iter().flat_map(|folder| folders::undo_logs(folder)) {
                    match undo::sweep(&log, &Paths::default()) {
                        Ok(swept) => total.add(swept),
                        Err(error) => total.failed.push(format!("{}: {error}", log.display())),
                    }
                }
                for failure in &total.failed {
                    complain(failure);
                }
                let said = match (total.restored, total.gone, total.failed.len()) {
                    (0, 0, 0) => "no daemon is running, and none has left anything behind".to_owned(),
                    (restored, gone, _) => format!("no daemon is running; of what one left behind {restored} put back, {gone} gone"),
                };
                let value = serde_json::json!({"daemon": false, "restored": total.restored, "gone": total.gone, "failed": total.failed});
                print_line(&if self.common.json() { pretty(&value) } else { said });
                if total.failed.is_empty() { 0 } else { FAILED }
            }
            Err(error) => self.answer(Err(error)),
        }
    }

    fn answer(&self, result: Result<String, ClientError>) -> u8 {
        match result {
            Ok(text) => print_line(text.trim_end()),
            Err(error) => {
                complain(&error.to_string());
                error.exit_code()
            }
        }
    }

    fn stderr_colour(&self) -> bool {
        self.colour(std::io::stderr().is_terminal())
    }

    fn stdout_style(&self) -> Style {
        let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_col));
        let is_terminal = std::io::stdout().is_terminal();
        // What goes to a program or a file is not cut.
        let width = match columns {
            0 if is_terminal => Style::PLAIN.width,
            0 => Style::UNCUT,
            columns => columns,
        };
        Style { color: self.colour(is_terminal), width }
    }

    fn colour(&self, terminal: bool) -> bool {
        let set = |name: &str| self.env.iter().any(|(known, value)| known == name && !value.is_empty());
        match self.common.color {
            arguments::Color::Always => true,
            arguments::Color::Never => false,
            arguments::Color::Auto => {
                terminal && !set("NO_COLOR") && !self.env.iter().any(|(name, value)| name == "TERM" && value == "dumb")
            }
        }
    }
}

impl Common {
    fn json(&self) -> bool {
        self.json || self.output == Output::Json
    }
}

/// Writes the file whole or not at all: what is there is replaced by a finished one, if it may be.
fn write_settings(file: &Path, text: &str, force: bool) -> std::io::Result<()> {
    if !force {
        let mut new = std::fs::File::options().write(true).create_new(true).open(file)?;
        return new.write_all(text.as_bytes());
    }
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file).inspect_err(|_| {
        // The error that is told is the first one.
        let _ = std::fs::remove_file(&beside);
    })
}

/// A word as a value in the query of an address.
fn escaped(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    word.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}

/// Data goes to standard output. A reader that has gone (`| head`) is no failure.
fn print_line(text: &str) -> u8 {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(_) => FAILED,
    }
}

#[expect(clippy::disallowed_methods, reason = "a command that waits for somebody else's deed")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// Prose goes to standard error, one line.
fn complain(text: &str) {
    // If standard error is gone too, nobody can be told.
    let _ = writeln!(std::io::stderr(), "plimsoll: {text}");
}
