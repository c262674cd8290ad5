//! What the settings of jobs mean.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one `[jobs.NAME]` keeps doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub name: Arc<str>,
    pub kind: Kind,
    /// As written, already checked; `None`: only when it is asked for.
    pub schedule: Option<String>,
    /// IANA name; `None`: the machine's.
    pub timezone: Option<String>,
    /// A run begins up to so much later, always the same on one host.
    pub jitter: Duration,
    pub timeout: Duration,
    pub catch_up: CatchUp,
    pub when_high: WhenHigh,
    /// A deleting job only reports.
    pub dry_run: bool,
    /// Jobs that go first when they are due too.
    pub after: Vec<Arc<str>>,
    /// Runs once among all daemons that share the lock.
    pub lock: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    Once,
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhenHigh {
    pub wait: Duration,
    pub then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    Run,
    Skip,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    Files(Files),
    Sessions(Sessions),
    Backup(Backup),
}

/// Deletes old files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// Absolute folders; everything below them that matches.
    pub paths: Vec<PathBuf>,
    /// Globs of names (no `/`) or of paths below the folder (with `/`); empty: everything.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub keep: Duration,
    /// Never younger than this, whatever the pressure.
    pub min_age: Duration,
    pub max_total: Option<u64>,
    pub max_files: Option<u64>,
    /// Folders that a run has emptied, and old empty ones, go too.
    pub prune_empty: bool,
    /// Files of one folder whose names differ in the extension alone go together, when the youngest may.
    pub groups: bool,
    /// Deleted a second at most.
    pub rate: Option<u32>,
    /// A folder may be the root of a disk that is mounted there.
    pub mounted: bool,
    /// Whose folders these must be; `None`: those of the daemon or of an ordinary user.
    pub owner: Option<String>,
}

/// Deletes old sessions of an application's database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    pub database: PathBuf,
    pub format: Format,
    pub keep: Duration,
    /// Between the two looks of one run.
    pub second_look: Duration,
    /// Of the application's database, per transaction.
    pub longest_lock: Duration,
    /// Folder to which sessions are written before they are deleted.
    pub archive: Option<PathBuf>,
    /// How long an archived session is kept.
    pub archive_keep: Duration,
    /// Deletes only what is in a verified backup below this folder.
    pub backed_up_in: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Format {
    Auto,
    Langgraph,
    Table(Table),
}

/// A table with one row, or several, for each session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub table: String,
    pub id: String,
    pub time: String,
    /// Tables whose rows go with the session, and their column that holds its id.
    pub children: Vec<(String, String)>,
}

/// Copies databases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// The name of the job: it takes away no copies but its own.
    pub job: String,
    pub databases: Vec<PathBuf>,
    pub to: PathBuf,
    pub keep: Duration,
    /// Never fewer good ones than this; at least 1.
    pub keep_last: u32,
    /// The newest of so many days, weeks and months stay beyond `keep`.
    pub keep_daily: u32,
    pub keep_weekly: u32,
    pub keep_monthly: u32,
    pub compress: Compress,
    pub verify: Verify,
    /// An age identity or recipient file: copies are encrypted.
    pub key_file: Option<PathBuf>,
    /// A log of changes that grows by more than this ends the run.
    pub longest_wal: u64,
    /// The longest a database without a log of changes may be blocked.
    pub longest_lock: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compress {
    Zstd(i32),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    Quick,
    Full,
    None,
}

/// The kinds by their words in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KindName {
    Files,
    Sessions,
    Backup,
}

impl KindName {
    pub const ALL: [KindName; 3] = [KindName::Files, KindName::Sessions, KindName::Backup];

    pub fn word(self) -> &'static str {
        match self {
            KindName::Files => "files",
            KindName::Sessions => "sessions",
            KindName::Backup => "backup",
        }
    }
}

impl Kind {
    pub fn name(&self) -> KindName {
        match self {
            Kind::Files(_) => KindName::Files,
            Kind::Sessions(_) => KindName::Sessions,
            Kind::Backup(_) => KindName::Backup,
        }
    }

    /// True for what deletes something that is not its own: a backup only deletes older copies.
    pub fn frees_disk(&self) -> bool {
        !matches!(self, Kind::Backup(_))
    }
}

/// How sessions stand in a database, by the word in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatName {
    Auto,
    Langgraph,
    Table,
}

/// The time zone of that name. UTC is there where nothing else is: an image from scratch has no list of zones, not even an empty one.
///
/// # Errors
/// What jiff says of a name this machine does not know.
pub fn zone_named(name: &str) -> Result<TimeZone, jiff::Error> {
    if name.eq_ignore_ascii_case("UTC") { Ok(TimeZone::UTC) } else { TimeZone::get(name) }
}

/// Reads a schedule; `None` for `never`.
///
/// # Errors
/// Why it is none, for people.
pub fn read_schedule(text: &str) -> Result<Option<croner::Cron>, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("never") {
        return Ok(None);
    }
    let nicknames = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if text.starts_with('@') && !nicknames.iter().any(|known| text.eq_ignore_ascii_case(known)) {
        return Err(format!("is none of {}", nicknames.join(", ")));
    }
    if !text.starts_with('@') && !(5..=6).contains(&text.split_whitespace().count()) {
        return Err(format!("has {} fields", text.split_whitespace().count()));
    }
    // Without the year of a seventh field nothing ends for ever. Day and weekday together mean either, as cron means it.
    let parser = croner::parser::CronParser::builder().year(croner::parser::Year::Disallowed).build();
    let cron = parser.parse(text).map_err(|error| format!("cannot be read: {error}"))?;
    let ever = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    cron.find_next_occurrence(&ever, false).map(|_| Some(cron)).map_err(|_| "names a moment that never comes".to_owned())
}
