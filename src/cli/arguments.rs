//! The command line, defined once: parsing, help and completions come from here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::jobs::Verify;
use crate::config::units::{MOST_REPLICAS, Scalar, SignalName, Span, Unit};
use crate::host::inventory::Platform;
use crate::journal::Event;

/// Keeps a small server's workers below the load line.
///
/// Plimsoll starts your workers, watches CPU, memory and disk against the limit that will really hurt, and acts before
/// the kernel does: it asks workers to drop caches, slows them, replaces them, and undoes everything when it is over.
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    after_help = "Examples:\n  plimsoll demo                                watch it hold the line for half a minute\n  plimsoll run -- uvicorn app.main:app         guard one command, no file needed\n  plimsoll run -c /etc/plimsoll/plimsoll.toml  guard what the file says\n  plimsoll init                                a file for this machine, to begin from\n  plimsoll doctor                              what works here, found by doing it\n  plimsoll status                              how things stand\n  plimsoll explain memory                      why it is so, and what ends it\n\nExit codes: 0 ok, 1 failed, 2 usage, 69 daemon not reachable, 77 not permitted, 78 bad configuration;\nin `run -- COMMAND` the command's own code, 128+N for a signal."
)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Args)]
pub struct Common {
    /// The settings file; otherwise ./plimsoll.toml, then /etc/plimsoll/plimsoll.toml, else the built-in defaults hold
    #[arg(short, long, global = true, value_name = "FILE", env = "PLIMSOLL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Sets one setting, above file and environment: --set policy.memory.high=75%
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text, env = "PLIMSOLL_OUTPUT")]
    pub output: Output,
    /// Short for --output json
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colour; NO_COLOR is respected
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, env = "PLIMSOLL_COLOR")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the daemon in the foreground; with -- COMMAND it supervises that command too, with no file needed
    #[command(
        after_help = "SIGTERM or Ctrl-C ends the workers in order, a second one at once; SIGHUP reads the settings again.\nWith -- COMMAND the exit code is the command's own."
    )]
    Run {
        /// The command to supervise as worker `main`
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Shows the daemon holding two hungry workers under the line, in half a minute; no root, no file, nothing left behind
    Demo {
        /// How long it takes in all, from 10s to 10m
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = super::demo::read_duration)]
        duration: Duration,
    },
    /// Checks the settings and prints every problem with its place; exit 78 when there is one
    Check {
        /// The settings are for another machine: programs, folders, files and users they name need not be here
        #[arg(long)]
        elsewhere: bool,
        /// The command that `run` will be given for worker `main`
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Tries out what can be read and done here, and says what to do about what cannot
    #[command(
        after_help = "It starts children and makes control groups of its own, does to them what the daemon may have to do to workers, and\nremoves them again. Nothing it changes remains. Run it as the user and in the place the daemon will run in.\nWith --platform it looks for the traps of that platform wherever it runs, so before anything is deployed too: settings, variables and\nthe files of this folder (fly.toml, render.yaml, railway.toml) are judged, and what only the platform can show is a note.\nExit 1 when something fails; notes and warnings are no failure."
    )]
    Doctor {
        /// Whose traps are looked for; otherwise those of the platform it runs on
        #[arg(long, value_name = "NAME", value_parser = platforms())]
        platform: Option<Platform>,
        /// How long the platform waits between the signal and the kill, where it was told another time than its own
        #[arg(long, value_name = "DURATION", value_parser = read_duration)]
        grace: Option<Duration>,
    },
    /// Writes a commented plimsoll.toml for the platform found or named: here, or where -c says
    #[command(
        after_help = "The limits that hold here are in it as comments. A worker is guessed from the folder (Procfile, manage.py, app/main.py …);\nwhat cannot be started as it stands is a comment. The file passes `plimsoll check`."
    )]
    Init {
        /// Prints it instead
        #[arg(long)]
        stdout: bool,
        /// Replaces a file that is there
        #[arg(long, conflicts_with = "stdout")]
        force: bool,
        /// What it is written for; otherwise the platform it runs on
        #[arg(long, value_name = "NAME", value_parser = platforms())]
        platform: Option<Platform>,
    },
    /// Shows the settings that hold, or the schema of the file
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Shows how things stand on one screen
    Status,
    /// Controls workers: each command answers when it is done, or says what it still waits for
    #[command(
        after_help = "WORKER is a name, for all its replicas, or NAME.N for one of them, counted from 0.\nstart, stop and restart act at once; recycle replaces one replica after the other, with the replacement ready first where\nthere is memory for both. What scale sets holds until the settings say another number.\nExit 1 when it cannot be done, or is not done when --wait is over."
    )]
    Workers {
        #[command(subcommand)]
        command: Option<WorkersCommand>,
    },
    /// Shows, proves and brings back what the backup jobs have made; needs no daemon
    #[command(
        after_help = "The folders are those of the backup jobs in the settings, or those named with --in: so a copy can be brought back on a\nmachine that has nothing but the folder. Without a daemon and without the program a copy is unpacked with `zstd -d`.\nExit 1 when a copy is not good or cannot be brought back."
    )]
    Backups {
        #[command(subcommand)]
        command: BackupsCommand,
    },
    /// Controls jobs: what is deleted and backed up, and when
    #[command(
        after_help = "`run` works without a daemon too, on the settings file; nobody else may run a job on the same state folder meanwhile.\nA dry run prints the plan and does nothing. --yes carries out a plan that a brake holds, and does not wait for a second look.\nExit 1 when the run failed, was stopped, or is held until somebody says --yes."
    )]
    Jobs {
        #[command(subcommand)]
        command: Option<JobsCommand>,
    },
    /// Says why something is as it is, what was done about it, and what ends it
    #[command(
        after_help = "Without an argument: everything that is not normal, and a line for each thing that is.\nA resource is cpu, memory, disk or disk:PATH; a worker is called by its name, worker:NAME where a resource has the same."
    )]
    Explain {
        #[arg(value_name = "WORKER|RESOURCE")]
        of: Option<String>,
    },
    /// Prints the record of what was read, judged and done; works without a daemon too
    #[command(
        after_help = "One line for each event: local time, level, name, message; with --json one JSON object a line.\nA running daemon holds the last 512 events. What is older, and the record of a daemon that has ended, comes from the\nstate database, which keeps seven days. Following ends with Ctrl-C (exit 0), or when the daemon ends (exit 69)."
    )]
    Events {
        /// Goes on with what happens from now on
        #[arg(short, long)]
        follow: bool,
        /// Nothing older than this: 90s, 1h, 7d
        #[arg(long, value_name = "DURATION", value_parser = read_duration)]
        since: Option<Duration>,
        /// The last so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Only events of this name; may be given several times
        #[arg(long = "event", value_name = "NAME", value_parser = PossibleValuesParser::new(Event::NAMES), hide_possible_values = true)]
        names: Vec<String>,
    },
    /// Has the running daemon apply the settings file, whole or not at all, and says what becomes of each worker
    #[command(
        after_help = "Only workers that are started in another way than before are replaced, one replica after the other. A daemon whose\nprogram is another file now becomes it, as with `upgrade`, unless daemon.upgrade is \"never\"; if that is broken or does not take the\nsettings, nothing is changed."
    )]
    Reload {
        /// Says what would be done, and does nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Has the running daemon become its program as it is now on the disk: same pid, same workers, same sockets
    #[command(
        after_help = "For after an upgrade of the package. The new program is first asked whether it takes the settings; if it does not, or\ncannot be executed, the old one goes on. Workers are not restarted and no connection is lost; nobody is held back meanwhile."
    )]
    Upgrade,
    /// Undoes every limit and lets everybody go; works without a daemon too
    Release,
    /// Exits 0 when the daemon answers and meets its deadlines
    Health,
    /// Prints the daemon's metrics page
    Metrics {
        /// Prints what each metric means instead; needs no daemon
        #[arg(long)]
        describe: bool,
    },
    /// Prints a completion script
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Prints a manual page, for `man -l -`
    #[command(after_help = "Pages are plimsoll, one for each command (plimsoll-run, or just run), and plimsoll.toml.")]
    Man {
        /// Which; otherwise plimsoll
        #[arg(value_name = "PAGE")]
        page: Option<String>,
        /// Writes all of them into this folder instead, each into a file such as plimsoll-run.8
        #[arg(long, value_name = "FOLDER", conflicts_with = "page")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum WorkersCommand {
    /// Shows every replica; this is what no command does
    List,
    /// Brings up what is down
    Start(Workers),
    /// Asks them to end, and kills what has not after stop.within; they stay down until they are started
    Stop(Workers),
    /// Ends them and starts them again, all at once
    Restart(Workers),
    /// Replaces them one after the other
    Recycle(Workers),
    /// Sets the number of replicas
    Scale {
        #[arg(value_name = "WORKER")]
        worker: String,
        /// From 0 to 4096
        #[arg(value_name = "COUNT", allow_negative_numbers = true, value_parser = read_count)]
        count: u32,
        #[command(flatten)]
        patience: Patience,
    },
    /// Sends a signal to the process that was started
    Signal {
        #[arg(value_name = "WORKER")]
        worker: String,
        /// A signal such as SIGHUP, or its number
        #[arg(value_name = "SIGNAL", value_parser = read_signal)]
        signal: SignalName,
    },
    /// Sends the shed_signal of the settings: caches are to be dropped
    Shed {
        #[arg(value_name = "WORKER", required = true)]
        workers: Vec<String>,
    },
    /// Prints how earlier lives ended, the latest last; works without a daemon too
    History {
        /// Only of this worker
        #[arg(value_name = "WORKER")]
        worker: Option<String>,
        /// The last so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Debug, Subcommand)]
pub enum BackupsCommand {
    /// Shows every copy, the oldest first, and whether it is good
    List {
        #[command(flatten)]
        folders: Folders,
    },
    /// Brings copies back to a temporary file, has SQLite check it, and compares what it holds with what was copied
    Verify {
        /// Which; otherwise the newest of each database
        #[arg(value_name = "COPY")]
        copies: Vec<String>,
        /// Every copy there is
        #[arg(long, conflicts_with = "copies")]
        all: bool,
        /// How SQLite checks it; otherwise as the job has it
        #[arg(long, value_enum)]
        check: Option<Check>,
        /// Where the temporary file is made; otherwise beside the copies
        #[arg(long, value_name = "FOLDER")]
        scratch: Option<PathBuf>,
        /// What opens copies that are sealed; otherwise the key_file of the job
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        #[command(flatten)]
        folders: Folders,
    },
    /// Brings a copy back as a database: whole or not at all
    #[command(
        after_help = "Without COPY: the newest good one. A database that is there is not replaced without --force, and is then kept beside the new\none as FILE.before-restore-TIME, together with its log of changes. Stop the application first."
    )]
    Restore {
        #[arg(value_name = "COPY")]
        copy: Option<String>,
        /// The newest good copy of this database
        #[arg(long, value_name = "FILE", conflicts_with = "copy")]
        database: Option<PathBuf>,
        /// Brings it back here; otherwise to where it was
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        /// Replaces the database that is there, and keeps it beside
        #[arg(long)]
        force: bool,
        /// What opens a copy that is sealed; otherwise the key_file of the job
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        #[command(flatten)]
        folders: Folders,
    },
}

impl BackupsCommand {
    pub fn folders(&self) -> &[PathBuf] {
        match self {
            BackupsCommand::List { folders } | BackupsCommand::Verify { folders, .. } | BackupsCommand::Restore { folders, .. } => {
                &folders.folders
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Folders {
    /// A folder of copies; may be given several times
    #[arg(long = "in", value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// All but what indexes hold
    Quick,
    /// Everything
    Full,
}

impl Check {
    pub fn verify(self) -> Verify {
        match self {
            Check::Quick => Verify::Quick,
            Check::Full => Verify::Full,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Shows every job; this is what no command does
    List,
    /// Runs one now, and shows how far it is
    Run {
        #[arg(value_name = "JOB")]
        job: String,
        /// Prints what would be done, and does nothing
        #[arg(long)]
        dry_run: bool,
        /// Somebody has looked at the plan: no brake holds it
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
    },
    /// Prints how earlier runs ended, the latest last; works without a daemon too
    History {
        /// Only of this job
        #[arg(value_name = "JOB")]
        job: Option<String>,
        /// The last so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Says which job comes next, and when
    Next,
    /// Brings a session that was deleted back from the archive of its job
    #[command(
        after_help = "The rows go back as they were, all or none; refused where the database has rows of that session again. A session that\nwas brought back is kept as long as a young one."
    )]
    RestoreSession {
        #[arg(value_name = "ID")]
        id: String,
        /// The job that deleted it; only needed where several keep an archive
        #[arg(long, value_name = "JOB")]
        job: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct Workers {
    #[arg(value_name = "WORKER", required = true)]
    pub workers: Vec<String>,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, Args)]
pub struct Patience {
    /// Waits this long for it to be done, 0s not at all; otherwise as long as it may take
    #[arg(long, value_name = "DURATION", value_parser = read_duration)]
    pub wait: Option<Duration>,
}

fn read_count(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|count| *count <= MOST_REPLICAS)
        .ok_or_else(|| format!("a number of replicas from 0 to {MOST_REPLICAS} is needed"))
}

fn read_signal(text: &str) -> Result<SignalName, String> {
    SignalName::read(&Scalar::Text(text.to_owned())).map_err(|unfit| format!("{}; {} is needed", unfit.why, SignalName::ALLOWED))
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Prints the effective settings
    Show {
        /// Says where each value came from
        #[arg(long)]
        origin: bool,
    },
    /// Prints the JSON Schema of the settings file, for editors
    Schema,
}

/// The platforms that can be asked for, by the words they have everywhere.
fn platforms() -> impl TypedValueParser<Value = Platform> {
    let named = |word: String| Platform::NAMED.into_iter().find(|platform| platform.word() == word);
    PossibleValuesParser::new(Platform::NAMED.map(Platform::word)).try_map(move |word| named(word).ok_or("is no platform"))
}

fn read_duration(text: &str) -> Result<Duration, String> {
    let span = Span::read(&Scalar::Text(text.to_owned())).map_err(|unfit| format!("{}; {} is needed", unfit.why, Span::ALLOWED))?;
    Ok(span.duration())
}

/// Reads the command line; `args` begin with the program's name.
///
/// # Errors
/// What clap says. Where a word follows `run` without the two dashes, where that word belongs: an image with the entry point
/// `plimsoll run` invites this mistake.
pub fn parse(args: Vec<OsString>) -> Result<Arguments, clap::Error> {
    let is_run = args.iter().any(|word| word == "run");
    Arguments::try_parse_from(args).map_err(|mut error| {
        let word = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(word)) if is_run && error.kind() == ErrorKind::UnknownArgument && !word.starts_with('-') => word,
            _ => return error,
        };
        let tip = if Arguments::command().find_subcommand(word).is_some() {
            format!(
                "plimsoll {word} is a command of its own; with an image that begins with plimsoll run: --entrypoint plimsoll IMAGE {word}"
            )
        } else {
            format!("the command to supervise follows two dashes: plimsoll run -- {word}")
        };
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        error
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_command() {
        let arguments = Arguments::try_parse_from(["plimsoll", "run", "--set", "a=1", "--", "python", "-c", "print()"]).unwrap();
        let Some(Command::Run { command }) = arguments.command else { panic!() };
        assert_eq!(command, ["python", "-c", "print()"]);
        assert_eq!(arguments.common.set, ["a=1"]);
    }

    #[test]
    fn a_word_that_has_lost_its_dashes_is_shown_its_place() {
        for (words, wanted) in [
            (&["run", "/app"][..], Some("two dashes: plimsoll run -- /app\n")),
            (&["run", "-c", "file", "doctor", "--json"], Some("plimsoll doctor is a command of its own")),
            (&["run", "--hepl"], None),
            (&["status", "web"], None),
        ] {
            let args = ["plimsoll"].iter().chain(words).map(OsString::from).collect();
            let told = parse(args).unwrap_err().to_string();
            match wanted {
                Some(wanted) => assert!(told.contains(wanted), "{words:?}: {told}"),
                None => assert!(!told.contains("two dashes") && !told.contains("of its own"), "{words:?}: {told}"),
            }
        }
    }
}
