//! `[jobs.NAME]` as it is written. One table for all kinds; `sense` says which keys are of no use for which.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::jobs::{CatchUp, FormatName, KindName, Then, Verify};
use crate::config::units::{Account, Compression, Size, Span, Variable};

/// Something done again and again: old files or sessions are deleted, databases are copied. A run is a process of its own, behind
/// everybody else for the processor and the disk, and one at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Job {
    /// What it does: `files` deletes old files, `sessions` deletes old sessions of an application's database, `backup` copies
    /// databases. The one key every job must have.
    #[schemars(extend("default" = null))]
    pub kind: KindName,
    /// When it runs: five fields of cron, six with seconds first, or `@hourly`, `@daily`, `@weekly`, `@monthly`; `never` for only when
    /// it is asked for. Unless set `@hourly` for files, `0 3 * * *` for sessions, `0 2 * * *` for a backup.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The time zone the schedule is meant in, such as `Europe/Berlin`; the machine's unless set.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// It begins up to so much later, by always the same amount on one machine, so that many machines do not begin at once.
    #[schemars(extend("x-range" = ["0s", "1d"]))]
    pub jitter: Span,
    /// A run is asked to end after this long, and ended 10 seconds later; what it has done stays done, and the next run goes on.
    #[schemars(extend("x-range" = ["1s", "7d"]))]
    pub timeout: Span,
    /// What becomes of runs that were due while nobody was there to begin them: `once`, all of them together, or `skip`.
    pub catch_up: CatchUp,
    /// What it does while the processors or the memory are over their line.
    pub when_high: WhenHigh,
    /// Only report what would be deleted; a backup only says what it would copy.
    pub dry_run: bool,
    /// Jobs that go first where they are due too. Unless set, of a sessions job every backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// A file that lets one run at a time among all daemons that have it here; an absolute path.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// files: the folders, absolute; everything below them that matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// files: globs of names (`*.mp3`), or of paths below the folder where there is a `/` in it; none for every file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// files: globs of what stays all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// What is younger stays: 24h for files, 7d for sessions and backups, unless set.
    #[schemars(extend("x-range" = ["1m", "36500d"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Span>,
    /// files: nothing younger than this is deleted, whatever the pressure; at most `keep`.
    #[schemars(extend("x-range" = ["1s", "36500d"], "default" = "10m"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age: Option<Span>,
    /// files: the oldest go, younger than `keep` too, until all that match take no more than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_total: Option<Size>,
    /// files: likewise, until there are no more than so many.
    #[schemars(range(min = 1, max = 1000000000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_files: Option<u32>,
    /// files: folders that are left empty go too.
    #[schemars(extend("default" = false))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune_empty: Option<bool>,
    /// files: files of one folder whose names differ in the extension alone go together, when the youngest may.
    #[schemars(extend("default" = false))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<bool>,
    /// files: at most so many are deleted in a second.
    #[schemars(range(min = 1, max = 1000000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// files: whose folders these must be, by name or number; else the job refuses to touch them. Unless set the daemon's own or an
    /// ordinary user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Account>,
    /// files: `paths` may be where a volume is mounted, such as `/app/data/audio` of a container. Otherwise a whole disk is refused.
    #[schemars(extend("default" = false))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounted: Option<bool>,
    /// sessions: the database, an absolute path.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// sessions: how sessions stand in it: `langgraph`, as LangGraph's SQLite checkpointer writes them; `table`, as `table` says; `auto`
    /// is `table` where that is set, else `langgraph`.
    #[schemars(extend("default" = "auto"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// sessions: in which table, for `format = "table"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<SessionTable>,
    /// sessions: look, wait this long, delete only what has not changed meanwhile.
    #[schemars(extend("x-range" = ["0s", "1d"], "default" = "10m"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_look: Option<Span>,
    /// sessions, backup: the longest the database is locked in one go: `10ms` for sessions, and `1s` for the copy of a database without
    /// a write-ahead log, unless set.
    #[schemars(extend("x-range" = ["1ms", "1m"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_lock: Option<Span>,
    /// sessions: the folder sessions are written to before they are deleted, an absolute path; nowhere unless set.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// sessions: how long what is in `archive` is kept.
    #[schemars(extend("x-range" = ["1h", "36500d"], "default" = "30d"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_keep: Option<Span>,
    /// sessions: delete only what is in a verified backup in this folder, the `to` of a backup; an absolute path.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backed_up_in: Option<String>,
    /// backup: the databases, absolute paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// backup: the folder the copies go to, an absolute path.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// backup: never fewer good ones than this are kept, whatever their age.
    #[schemars(range(min = 1, max = 10000), extend("default" = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// backup: the newest of each of so many days stay, beyond `keep` too.
    #[schemars(range(min = 0, max = 10000), extend("default" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<u32>,
    /// backup: likewise of weeks.
    #[schemars(range(min = 0, max = 10000), extend("default" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<u32>,
    /// backup: likewise of months.
    #[schemars(range(min = 0, max = 10000), extend("default" = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<u32>,
    /// backup: how copies are packed.
    #[schemars(extend("default" = "zstd"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compression>,
    /// backup: what is asked of a copy that was read back: SQLite's `quick` or `full` check, or `none` but that it holds what it
    /// should. A copy that fails counts for nothing.
    #[schemars(extend("default" = "quick"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// backup: a file with an age identity or recipients; copies are encrypted to them. An absolute path.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// backup: a write-ahead log of the application that grows by more than this, or by a tenth of what is free on its disk, ends the
    /// run: it cannot be taken in while the copy is made.
    #[schemars(extend("default" = "256MB"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_wal: Option<Size>,
}

impl Default for Job {
    fn default() -> Self {
        Job {
            kind: KindName::Files,
            schedule: None,
            timezone: None,
            jitter: Span::from_secs(0),
            timeout: Span::from_secs(3600),
            catch_up: CatchUp::Once,
            when_high: WhenHigh::default(),
            dry_run: false,
            after: None,
            lock: None,
            paths: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            keep: None,
            min_age: None,
            max_total: None,
            max_files: None,
            prune_empty: None,
            mounted: None,
            groups: None,
            rate: None,
            owner: None,
            database: None,
            format: None,
            table: None,
            second_look: None,
            longest_lock: None,
            archive: None,
            archive_keep: None,
            backed_up_in: None,
            databases: Vec::new(),
            to: None,
            keep_last: None,
            keep_daily: None,
            keep_weekly: None,
            keep_monthly: None,
            compress: None,
            verify: None,
            key_file: None,
            longest_wal: None,
        }
    }
}

/// What a job does while the processors or the memory are over their line. One that a disk's rule has begun, or a person, does not
/// wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WhenHigh {
    /// It waits so long for that to be over.
    #[schemars(extend("x-range" = ["0s", "7d"]))]
    pub wait: Span,
    /// And then: `run` all the same, or `skip` to the next time.
    pub then: Then,
}

impl Default for WhenHigh {
    fn default() -> Self {
        WhenHigh { wait: Span::from_secs(300), then: Then::Run }
    }
}

/// The table of sessions, for `format = "table"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionTable {
    /// Its name.
    #[schemars(length(min = 1), extend("default" = null))]
    pub name: String,
    /// The column with the session's id.
    #[schemars(length(min = 1), extend("default" = null))]
    pub id: String,
    /// The column with the time it was last used: seconds or milliseconds since 1970, or a date and time.
    #[schemars(length(min = 1), extend("default" = null))]
    pub time: String,
    /// Tables whose rows go with the session, each with its column that holds the session's id.
    #[schemars(extend("default" = null))]
    pub children: BTreeMap<String, Variable>,
}
