//! `[jobs.NAME]`: what each kind needs, what is of no use for it, and what must never be deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Sense;
use crate::config::file::{self, File};
use crate::config::globs::Glob;
use crate::config::jobs::{
    Backup, Compress, Files, Format, FormatName, Job, Kind, KindName, Sessions, Table, Verify, WhenHigh, read_schedule, zone_named,
};
use crate::config::units::{Compression, Size, Span, nearest};

/// The keys that are of use for some kinds alone, and for which.
const OF_KIND: [(&str, &[KindName]); 27] = {
    use KindName::{Backup, Files, Sessions};
    [
        ("paths", &[Files]),
        ("include", &[Files]),
        ("exclude", &[Files]),
        ("min_age", &[Files]),
        ("max_total", &[Files]),
        ("max_files", &[Files]),
        ("prune_empty", &[Files]),
        ("groups", &[Files]),
        ("rate", &[Files]),
        ("owner", &[Files]),
        ("mounted", &[Files]),
        ("database", &[Sessions]),
        ("format", &[Sessions]),
        ("table", &[Sessions]),
        ("second_look", &[Sessions]),
        ("longest_lock", &[Sessions, Backup]),
        ("archive", &[Sessions]),
        ("archive_keep", &[Sessions]),
        ("backed_up_in", &[Sessions]),
        ("databases", &[Backup]),
        ("to", &[Backup]),
        ("keep_last", &[Backup]),
        ("keep_daily", &[Backup]),
        ("keep_weekly", &[Backup]),
        ("keep_monthly", &[Backup]),
        ("compress", &[Backup]),
        ("verify", &[Backup]),
    ]
};

/// As above, of a backup alone.
const OF_BACKUP: [&str; 2] = ["key_file", "longest_wal"];

const DATABASE: &str = "the absolute path of a database, such as \"/app/data/memory.db\"";
const FOLDER: &str = "the absolute path of a folder, such as \"/app/data/backups\"";

impl Sense<'_> {
    pub(super) fn jobs(&mut self, file: &mut File) -> Vec<Arc<Job>> {
        let names: Vec<String> = file.jobs.keys().cloned().collect();
        let orders = orders(&file.jobs);
        let mut jobs = Vec::new();
        for (name, job) in &mut file.jobs {
            let key = format!("jobs.{name}");
            let kind_key = format!("{key}.kind");
            if self.is_spoiled(&kind_key) {
                // What it needs depends on that.
                continue;
            }
            if !self.is_set(&kind_key) {
                let place = self.place_of_key(&key);
                self.push(&kind_key, place, "is missing".to_owned(), "\"files\", \"sessions\" or \"backup\"", None);
                continue;
            }
            self.fits_kind(&key, job);
            for (index, other) in job.after.iter().flatten().enumerate() {
                let item = self.item(&format!("{key}.after"), index);
                if other == name {
                    self.refuse(&item, "a job cannot go after itself".to_owned(), "names of other jobs");
                } else if !names.contains(other) {
                    let place = self.place(&item);
                    let suggestion = nearest(other, names.iter().map(String::as_str).filter(|known| known != name)).map(str::to_owned);
                    self.push(&item, place, format!("there is no job \"{other}\""), "names of other jobs", suggestion);
                }
            }
            let after = orders.get(name).cloned().unwrap_or_default();
            if job.after.is_none() && !after.is_empty() {
                self.follows.insert(format!("{key}.after"), format!("{key}.kind"));
            }
            job.after = Some(after);
            jobs.push(Arc::new(self.job(&key, name, job)));
        }
        self.no_circle_of_jobs(&orders);
        self.nothing_kept_is_deleted(&jobs, file);
        jobs
    }

    /// A key that another kind needs is a slip that nobody would see.
    fn fits_kind(&mut self, key: &str, job: &file::Job) {
        // Plain tables of texts and numbers are what they were read from: this cannot fail.
        let written = serde_json::to_value(job).unwrap_or_default();
        let of_backup = OF_BACKUP.iter().map(|name| (*name, &[KindName::Backup][..]));
        for (name, kinds) in OF_KIND.into_iter().chain(of_backup) {
            if !kinds.contains(&job.kind) && written.get(name).is_some() {
                let of: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
                self.refuse(
                    &format!("{key}.{name}"),
                    format!("is of no use for kind \"{}\"", job.kind.word()),
                    &format!("kind {}", of.join(" or ")),
                );
            }
        }
    }

    fn job(&mut self, key: &str, name: &str, job: &mut file::Job) -> Job {
        let usual = match job.kind {
            KindName::Files => "@hourly",
            KindName::Sessions => "0 3 * * *",
            KindName::Backup => "0 2 * * *",
        };
        let schedule = job.schedule.get_or_insert_with(|| usual.to_owned()).clone();
        let is_scheduled = match read_schedule(&schedule) {
            Ok(read) => read.is_some(),
            Err(why) => {
                let allowed = "five fields of cron (\"0 3 * * *\": minute, hour, day, month, weekday), six with seconds first, \"@daily\" or \"never\"";
                self.refuse(&format!("{key}.schedule"), format!("{schedule:?} {why}"), allowed);
                false
            }
        };
        if let Some(zone) = &job.timezone
            && zone_named(zone).is_err()
        {
            let (why, allowed) = if jiff::tz::db().is_definitively_empty() {
                (", which has no time zone data", "\"UTC\"; others with the package tzdata, or /usr/share/zoneinfo copied into the image")
            } else {
                ("", "a name such as \"Europe/Berlin\" or \"UTC\"; the package tzdata knows most")
            };
            self.refuse(&format!("{key}.timezone"), format!("{zone:?} is no time zone this machine knows{why}"), allowed);
        }
        let lock = job.lock.as_ref().map(|lock| self.plain_path(&format!("{key}.lock"), lock, "the absolute path of a file"));
        let kind = match job.kind {
            KindName::Files => Kind::Files(self.files(key, job)),
            KindName::Sessions => Kind::Sessions(self.sessions(key, job)),
            KindName::Backup => Kind::Backup(self.backup(key, name, job)),
        };
        Job {
            name: Arc::from(name),
            kind,
            schedule: Some(schedule).filter(|_| is_scheduled),
            timezone: job.timezone.clone(),
            jitter: job.jitter.duration(),
            timeout: job.timeout.duration(),
            catch_up: job.catch_up,
            when_high: WhenHigh { wait: job.when_high.wait.duration(), then: job.when_high.then },
            dry_run: job.dry_run,
            after: job.after.iter().flatten().map(|other| Arc::from(other.as_str())).collect(),
            lock,
        }
    }

    fn files(&mut self, key: &str, job: &mut file::Job) -> Files {
        let paths_key = format!("{key}.paths");
        let mut paths: Vec<PathBuf> = Vec::new();
        for (index, path) in job.paths.iter().enumerate() {
            let item = self.item(&paths_key, index);
            let plain = self.plain_path(&item, path, "the absolute path of a folder, such as \"/app/data/audio\"");
            if plain == Path::new("/") {
                self.refuse(&item, "is the whole machine".to_owned(), "a folder of its own");
            }
            if paths.contains(&plain) {
                self.refuse(&item, format!("{path:?} is there twice"), "each folder once");
            }
            paths.push(plain);
        }
        if job.paths.is_empty() {
            self.missing(key, "paths", "a list of absolute paths of folders, such as [\"/app/data/audio\"]");
        }
        for (name, globs) in [("include", &job.include), ("exclude", &job.exclude)] {
            for (index, glob) in globs.iter().enumerate() {
                if let Err(why) = Glob::parse(glob) {
                    let item = self.item(&format!("{key}.{name}"), index);
                    self.refuse(
                        &item,
                        format!("{glob:?} {why}"),
                        "a glob of a name (\"*.mp3\") or of a path below the folder (\"old/*.mp3\")",
                    );
                }
            }
        }
        let keep = *job.keep.get_or_insert(Span::from_secs(86_400));
        let usual = Span::from_secs(600).min(keep);
        let min_age = *job.min_age.get_or_insert(usual);
        if min_age > keep {
            let message = format!("\"{min_age}\" is longer than keep, \"{keep}\"");
            self.refuse(&format!("{key}.min_age"), message, "a duration up to keep");
        }
        if job.max_total == Some(Size(0)) {
            self.refuse(&format!("{key}.max_total"), "keeps nothing at all".to_owned(), "a size over 0");
        }
        self.account(&format!("{key}.owner"), job.owner.as_ref().map(|owner| owner.0.as_str()), "/etc/passwd", "user");
        Files {
            paths,
            include: job.include.clone(),
            exclude: job.exclude.clone(),
            keep: keep.duration(),
            min_age: min_age.duration(),
            max_total: job.max_total.map(|size| size.0),
            max_files: job.max_files.map(u64::from),
            prune_empty: *job.prune_empty.get_or_insert(false),
            mounted: *job.mounted.get_or_insert(false),
            groups: *job.groups.get_or_insert(false),
            rate: job.rate,
            owner: job.owner.as_ref().map(|owner| owner.0.clone()),
        }
    }

    fn sessions(&mut self, key: &str, job: &mut file::Job) -> Sessions {
        let database = match &job.database {
            Some(path) => self.plain_path(&format!("{key}.database"), path, DATABASE),
            None => self.missing(key, "database", DATABASE),
        };
        let format = self.format(key, job);
        let second_look = *job.second_look.get_or_insert(Span::from_secs(600));
        if second_look.duration() >= job.timeout.duration() {
            let message = format!("\"{second_look}\" does not end before timeout, \"{}\"", job.timeout);
            self.refuse(&format!("{key}.second_look"), message, "a duration under timeout");
        }
        let mut folder =
            |name: &str, path: &Option<String>| path.as_ref().map(|path| self.plain_path(&format!("{key}.{name}"), path, FOLDER));
        let archive = folder("archive", &job.archive);
        let backed_up_in = folder("backed_up_in", &job.backed_up_in);
        Sessions {
            database,
            format,
            keep: job.keep.get_or_insert(Span::from_secs(7 * 86_400)).duration(),
            second_look: second_look.duration(),
            longest_lock: job.longest_lock.get_or_insert(Span::from_millis(10)).duration(),
            archive,
            archive_keep: job.archive_keep.get_or_insert(Span::from_secs(30 * 86_400)).duration(),
            backed_up_in,
        }
    }

    fn format(&mut self, key: &str, job: &mut file::Job) -> Format {
        let table_key = format!("{key}.table");
        match (job.format.get_or_insert(FormatName::Auto), &job.table) {
            (FormatName::Langgraph, Some(_)) => {
                self.refuse(&table_key, "stands beside format = \"langgraph\"".to_owned(), "format = \"table\"");
                Format::Langgraph
            }
            (FormatName::Langgraph, None) => Format::Langgraph,
            (FormatName::Auto, None) => Format::Auto,
            (FormatName::Table, None) => {
                self.missing(
                    key,
                    "table",
                    "a table with name, id and time, such as { name = \"sessions\", id = \"id\", time = \"updated_at\" }",
                );
                Format::Auto
            }
            (FormatName::Auto | FormatName::Table, Some(table)) => {
                for (name, given) in [("name", &table.name), ("id", &table.id), ("time", &table.time)] {
                    if given.is_empty() {
                        self.missing(&table_key, name, "the name it has in the database");
                    }
                }
                let children = table.children.iter().map(|(child, column)| (child.clone(), column.0.clone())).collect();
                Format::Table(Table { table: table.name.clone(), id: table.id.clone(), time: table.time.clone(), children })
            }
        }
    }

    fn backup(&mut self, key: &str, name: &str, job: &mut file::Job) -> Backup {
        let mut databases: Vec<PathBuf> = Vec::new();
        for (index, path) in job.databases.iter().enumerate() {
            let item = self.item(&format!("{key}.databases"), index);
            let plain = self.plain_path(&item, path, DATABASE);
            if databases.contains(&plain) {
                self.refuse(&item, format!("{path:?} is there twice"), "each database once");
            }
            databases.push(plain);
        }
        if job.databases.is_empty() {
            self.missing(key, "databases", "a list of absolute paths, such as [\"/app/data/memory.db\"]");
        }
        let to = match &job.to {
            Some(path) => self.plain_path(&format!("{key}.to"), path, FOLDER),
            None => self.missing(key, "to", FOLDER),
        };
        let key_file = job.key_file.as_ref().map(|path| self.plain_path(&format!("{key}.key_file"), path, "the absolute path of a file"));
        Backup {
            job: name.to_owned(),
            databases,
            to,
            keep: job.keep.get_or_insert(Span::from_secs(7 * 86_400)).duration(),
            keep_last: *job.keep_last.get_or_insert(1),
            keep_daily: *job.keep_daily.get_or_insert(0),
            keep_weekly: *job.keep_weekly.get_or_insert(0),
            keep_monthly: *job.keep_monthly.get_or_insert(0),
            compress: match job.compress.get_or_insert(Compression::Zstd(3)) {
                Compression::None => Compress::None,
                Compression::Zstd(level) => Compress::Zstd(*level),
            },
            verify: *job.verify.get_or_insert(Verify::Quick),
            key_file,
            longest_wal: job.longest_wal.get_or_insert(Size(256_000_000)).0,
            longest_lock: job.longest_lock.map_or(Duration::from_secs(1), Span::duration),
        }
    }

    fn missing(&mut self, key: &str, name: &str, allowed: &str) -> PathBuf {
        let inner = format!("{key}.{name}");
        if !self.is_spoiled(&inner) {
            let place = if self.is_set(&inner) { self.place(&inner) } else { self.place_of_key(key) };
            let message = if self.is_set(&inner) { "is empty" } else { "is missing" };
            self.push(&inner, place, message.to_owned(), allowed, None);
        }
        PathBuf::new()
    }

    /// An absolute path that means one place, whoever reads it: it is deleted from, or written to, without anybody looking on.
    fn plain_path(&mut self, key: &str, path: &str, allowed: &str) -> PathBuf {
        if !path.starts_with('/') {
            self.refuse(key, format!("{path:?} is a relative path"), allowed);
        } else if Path::new(path).components().any(|part| part == Component::ParentDir) {
            self.refuse(key, format!("{path:?} goes up again"), allowed);
        }
        // Without the slashes and dots that mean nothing.
        Path::new(path).components().collect()
    }

    fn no_circle_of_jobs(&mut self, orders: &BTreeMap<String, Vec<String>>) {
        let mut reported: BTreeSet<&str> = BTreeSet::new();
        for start in orders.keys().filter(|start| leads_to(orders, start, start)) {
            if reported.iter().any(|known| leads_to(orders, start, known)) {
                continue;
            }
            reported.insert(start);
            let message = "the order is a circle: it goes after itself by way of others".to_owned();
            self.refuse(&format!("jobs.{start}.after"), message, "an order with a first job");
        }
    }

    /// A job for files must not meet what another keeps, nor the daemon's own folders.
    fn nothing_kept_is_deleted(&mut self, jobs: &[Arc<Job>], file: &File) {
        let own =
            [("daemon.state_dir", PathBuf::from(&file.daemon.state_dir)), ("daemon.runtime_dir", PathBuf::from(&file.daemon.runtime_dir))];
        let mut kept: Vec<(String, PathBuf)> = Vec::new();
        for job in jobs {
            let mut keep = |what: &str, path: &Path| kept.push((format!("jobs.{}.{what}", job.name), path.to_path_buf()));
            match &job.kind {
                Kind::Files(_) => {}
                Kind::Sessions(sessions) => {
                    keep("database", &sessions.database);
                    sessions.archive.iter().for_each(|archive| keep("archive", archive));
                }
                Kind::Backup(backup) => {
                    backup.databases.iter().for_each(|database| keep("databases", database));
                    keep("to", &backup.to);
                }
            }
        }
        for job in jobs {
            let Kind::Files(files) = &job.kind else { continue };
            // Of the root enough is said.
            for (index, path) in files.paths.iter().enumerate().filter(|(_, path)| path.parent().is_some()) {
                let takes_all = files.include.is_empty();
                let hit = own.iter().find(|(_, own)| own.starts_with(path) || path.starts_with(own)).map(|(key, _)| (*key).to_owned());
                let hit = hit.or_else(|| kept.iter().find(|(_, kept)| takes_all && kept.starts_with(path)).map(|(key, _)| key.clone()));
                if let Some(key) = hit {
                    let item = self.item(&format!("jobs.{}.paths", job.name), index);
                    let allowed =
                        if key.starts_with("daemon") { "a folder of its own" } else { "a folder of its own, or include beside it" };
                    self.refuse(&item, format!("{:?} would delete what {key} names", path.display().to_string()), allowed);
                }
            }
        }
    }
}

/// Who goes after whom: as it is said, else a sessions job after every backup, so that what it deletes is in a copy; but for one
/// that is to go after the sessions job itself.
fn orders(jobs: &BTreeMap<String, file::Job>) -> BTreeMap<String, Vec<String>> {
    // One that names itself is told apart.
    let named = |name: &String, job: &file::Job| -> Option<Vec<String>> {
        job.after.as_ref().map(|after| after.iter().filter(|other| *other != name).cloned().collect())
    };
    let said: BTreeMap<String, Vec<String>> = jobs.iter().map(|(name, job)| (name.clone(), named(name, job).unwrap_or_default())).collect();
    let usual = |name: &String, job: &file::Job| -> Vec<String> {
        let backups = jobs.iter().filter(|(_, other)| job.kind == KindName::Sessions && other.kind == KindName::Backup);
        backups.filter(|(backup, _)| !leads_to(&said, backup, name)).map(|(backup, _)| backup.clone()).collect()
    };
    jobs.iter().map(|(name, job)| (name.clone(), named(name, job).unwrap_or_else(|| usual(name, job)))).collect()
}

/// True when one comes, by way of others or at once, after the other.
fn leads_to(orders: &BTreeMap<String, Vec<String>>, from: &str, to: &str) -> bool {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut ways = vec![from];
    while let Some(at) = ways.pop() {
        for next in orders.get(at).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                ways.push(next);
            }
        }
    }
    false
}
