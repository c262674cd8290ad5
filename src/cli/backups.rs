//! `backups`: what the backup jobs have made, whether it comes back, and bringing it back. Needs no daemon; with `--in` no settings either.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::arguments::{BackupsCommand, Check};
use super::render::{Style, Tone, cell, duration, size};
use super::{FAILED, Session, USAGE, complain, pretty, print_line};
use crate::config::jobs::{Backup, Kind, Verify};
use crate::host::clock::Moment;
use crate::jobs::backup::{self, Copy, Proof, Request, State, restore};
use crate::jobs::patience::Patience;
use crate::jobs::run::{Foreman, Report};

/// A folder of copies, and what is in it.
struct Folder {
    path: PathBuf,
    copies: Vec<Copy>,
}

impl Session {
    pub(super) fn backups(&self, command: BackupsCommand) -> u8 {
        let (folders, jobs) = match self.backup_folders(command.folders()) {
            Ok(found) => found,
            Err(code) => return code,
        };
        if folders.is_empty() {
            complain("no backup job in the settings: name the folder of copies with --in FOLDER");
            return USAGE;
        }
        let mut found = Vec::new();
        let mut code = 0;
        for path in folders {
            match backup::list(&path) {
                Ok(copies) => found.push(Folder { path, copies }),
                Err(failure) => {
                    complain(&format!("could not {failure}"));
                    code = FAILED;
                }
            }
        }
        let done = match command {
            BackupsCommand::List { .. } => self.list_backups(&found),
            BackupsCommand::Verify { copies, all, check, scratch, key_file, .. } => {
                let how = |folder: &Path, copy: &Copy| Looking {
                    check: check.map_or_else(|| check_of(&jobs, folder, copy), Check::verify),
                    scratch: scratch.clone(),
                    key_file: key_file.clone().or_else(|| job_of(&jobs, folder, copy)?.key_file.clone()),
                };
                self.verify_backups(&found, &copies, all, how)
            }
            BackupsCommand::Restore { copy, database, to, force, key_file, .. } => {
                let keys = |folder: &Path, copy: &Copy| key_file.clone().or_else(|| job_of(&jobs, folder, copy)?.key_file.clone());
                let request = Request { name: String::new(), to, force, key_file: None };
                self.restore_backup(&found, copy.as_deref(), database.as_deref(), request, keys)
            }
        };
        code.max(done)
    }

    /// Those that are named, else those of the jobs; and the jobs.
    fn backup_folders(&self, named: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<Backup>), u8> {
        if !named.is_empty() {
            return Ok((named.to_vec(), Vec::new()));
        }
        let settings = self.load(&self.sources(Vec::new()))?.settings;
        let jobs: Vec<Backup> = settings
            .jobs
            .iter()
            .filter_map(|job| match &job.kind {
                Kind::Backup(backup) => Some(backup.clone()),
                _ => None,
            })
            .collect();
        let mut folders: Vec<PathBuf> = jobs.iter().map(|job| job.to.clone()).collect();
        folders.sort();
        folders.dedup();
        Ok((folders, jobs))
    }

    fn list_backups(&self, found: &[Folder]) -> u8 {
        if self.common.json() {
            let folders: Vec<Value> = found.iter().map(|folder| json!({"folder": folder.path, "copies": folder.copies})).collect();
            return print_line(&pretty(&Value::Array(folders)));
        }
        let now = Moment::now();
        let pages: Vec<String> = found.iter().map(|folder| render(folder, now, self.stdout_style())).collect();
        print_line(pages.join("\n\n").trim_end())
    }

    fn verify_backups(&self, found: &[Folder], names: &[String], all: bool, how: impl Fn(&Path, &Copy) -> Looking) -> u8 {
        let mut code = 0;
        for name in names.iter().filter(|name| !found.iter().any(|folder| has(folder, name))) {
            complain(&format!("there is no copy {name}; `plimsoll backups list` shows them"));
            code = FAILED;
        }
        let mut told = Vec::new();
        let Some(patience) = patience() else {
            return FAILED;
        };
        for folder in found {
            for copy in folder
                .copies
                .iter()
                .filter(|copy| if names.is_empty() { all || is_newest(folder, copy) } else { names.contains(&copy.name) })
            {
                if patience.is_over() {
                    // What was looked at is told, and the rest not begun.
                    code = FAILED;
                    break;
                }
                let mut progress = Progress::new(&copy.name, &patience);
                let Looking { check, scratch, key_file } = how(&folder.path, copy);
                let proof = backup::verify(&folder.path, &copy.name, check, scratch.as_deref(), key_file.as_deref(), &mut progress);
                progress.end();
                let (word, detail) = match proof {
                    Ok(Proof::Good(check)) => ("good", check),
                    Ok(Proof::Damaged(reason)) => ("damaged", reason),
                    Ok(Proof::Unknown(reason)) => ("unknown", reason),
                    Err(failure) => ("unknown", format!("could not {failure}")),
                };
                code = code.max(if word == "good" { 0 } else { FAILED });
                told.push(json!({"folder": folder.path, "copy": copy.name, "result": word, "detail": detail}));
                if !self.common.json() {
                    let tone = if word == "good" { Tone::Good } else { Tone::Bad };
                    code = code.max(print_line(&format!("{}  {} ({detail})", self.stdout_style().paint(tone, word), copy.name)));
                }
            }
        }
        if self.common.json() {
            return code.max(print_line(&pretty(&Value::Array(told))));
        }
        if told.is_empty() && names.is_empty() {
            complain("there are no copies");
            return FAILED;
        }
        code
    }

    fn restore_backup(
        &self,
        found: &[Folder],
        copy: Option<&str>,
        database: Option<&Path>,
        request: Request,
        keys: impl Fn(&Path, &Copy) -> Option<PathBuf>,
    ) -> u8 {
        let chosen = match copy {
            Some(name) => match found.iter().find(|folder| has(folder, name)) {
                Some(folder) => Ok((folder, name.to_owned())),
                None => Err(format!("there is no copy {name}; `plimsoll backups list` shows them")),
            },
            None => newest(found, database),
        };
        let (folder, name) = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                complain(&format!("could not restore: {reason}"));
                return FAILED;
            }
        };
        let Some(patience) = patience() else {
            return FAILED;
        };
        let mut progress = Progress::new(&name, &patience);
        let key_file = folder.copies.iter().find(|copy| copy.name == name).and_then(|copy| keys(&folder.path, copy));
        let restored = backup::restore(&folder.path, &Request { name, key_file, ..request }, &mut progress);
        progress.end();
        match restored {
            Ok(restored) => {
                for note in &restored.notes {
                    complain(&format!("note: {note}"));
                }
                if self.common.json() {
                    return print_line(&pretty(&serde_json::to_value(&restored).unwrap_or_default()));
                }
                let aside = match &restored.aside {
                    Some(aside) => format!("; what was there is {}. Restart what has the old one open", aside.display()),
                    None => String::new(),
                };
                print_line(&format!(
                    "{} is back from {}: {} in {} rows{aside}",
                    restored.to.display(),
                    restored.name,
                    size(restored.database_bytes as f64),
                    restored.rows
                ))
            }
            Err(failure) => {
                complain(&format!("could not {failure}"));
                FAILED
            }
        }
    }
}

fn has(folder: &Folder, name: &str) -> bool {
    folder.copies.iter().any(|copy| copy.name == name)
}

/// The newest of its database.
fn is_newest(folder: &Folder, copy: &Copy) -> bool {
    let source = |copy: &Copy| copy.manifest.as_ref().map(|manifest| manifest.source.clone());
    // They are in order of time.
    folder.copies.iter().rfind(|other| source(other) == source(copy)) == Some(copy)
}

/// The newest good copy over all folders.
fn newest<'f>(found: &'f [Folder], database: Option<&Path>) -> Result<(&'f Folder, String), String> {
    let database = database.map(backup::resolved);
    let mut all: Vec<Copy> = found.iter().flat_map(|folder| folder.copies.iter().cloned()).collect();
    all.sort_by_key(|copy| copy.manifest.as_ref().map(|manifest| manifest.made));
    let name = restore::newest(&all, database.as_deref())?;
    let folder = found.iter().find(|folder| has(folder, &name)).ok_or("there is no verified copy")?;
    Ok((folder, name))
}

/// How copies of one folder are looked at.
struct Looking {
    check: Verify,
    scratch: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

/// The job that has made a copy; the first that uses the folder where it is not written down, or has another name now.
fn job_of<'j>(jobs: &'j [Backup], folder: &Path, copy: &Copy) -> Option<&'j Backup> {
    let made_by = copy.manifest.as_ref().and_then(|manifest| manifest.job.as_deref());
    let mut here = jobs.iter().filter(|job| job.to == folder);
    here.clone().find(|job| Some(job.job.as_str()) == made_by).or_else(|| here.next())
}

/// As the job that makes them has it.
fn check_of(jobs: &[Backup], folder: &Path, copy: &Copy) -> Verify {
    match job_of(jobs, folder, copy).map(|job| job.verify) {
        Some(Verify::Full) => Verify::Full,
        _ => Verify::Quick,
    }
}

fn render(folder: &Folder, now: Moment, style: Style) -> String {
    let mut lines = vec![style.paint(Tone::Strong, &folder.path.display().to_string())];
    if folder.copies.is_empty() {
        lines.push("  no copies".to_owned());
    }
    for copy in &folder.copies {
        let (word, tone, detail) = match &copy.state {
            State::Good => ("good", Tone::Good, String::new()),
            State::Unverified => ("unverified", Tone::Warning, String::new()),
            State::Damaged(reason) => ("damaged", Tone::Bad, format!("  {reason}")),
            State::Unreadable(reason) => ("unreadable", Tone::Warning, format!("  it cannot be read: {reason}")),
        };
        let (age, bytes, source) = match &copy.manifest {
            Some(manifest) => {
                let age = now
                    .wall
                    .duration_since(manifest.made)
                    .map_or("in the future".to_owned(), |age| format!("{} ago", duration(age.as_secs_f64())));
                (age, size(manifest.file_bytes as f64), manifest.source.display().to_string())
            }
            None => (String::new(), String::new(), String::new()),
        };
        let line =
            format!("  {} {} {} {}  {source}{detail}", style.paint(tone, &cell(word, 10)), cell(&age, 13), cell(&bytes, 9), copy.name);
        lines.push(line);
    }
    lines.join("\n")
}

/// Follows one copy on the terminal: one line that is written over, or nothing at all where nobody watches.
struct Progress<'p> {
    patience: &'p Patience,
    name: String,
    is_shown: bool,
    is_begun: bool,
}

/// Until it is asked to stop, by Ctrl-C or `kill`: what lies there half done is taken away then. Nothing but that ends it.
fn patience() -> Option<Patience> {
    Patience::begin(Duration::MAX).inspect_err(|error| complain(&format!("could not listen to signals: {error}"))).ok()
}

impl<'p> Progress<'p> {
    fn new(name: &str, patience: &'p Patience) -> Progress<'p> {
        Progress { patience, name: name.to_owned(), is_shown: std::io::stderr().is_terminal(), is_begun: false }
    }

    fn end(&mut self) {
        if self.is_begun {
            // If standard error is gone nobody can be told.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Foreman for Progress<'_> {
    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn tell(&mut self, report: Report) {
        match report {
            Report::Progress { done, of, .. } if self.is_shown && of > 0 => {
                self.is_begun = true;
                let _ = write!(std::io::stderr(), "\r\x1b[K{}: {:.0} %", self.name, 100.0 * done as f64 / of as f64);
            }
            Report::Warning { text } => {
                self.end();
                complain(&text);
            }
            _ => {}
        }
    }

    fn wait(&mut self, time: Duration) -> bool {
        self.patience.wait(time)
    }

    fn at_safe_point(&mut self) -> bool {
        !self.patience.is_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::jobs::Compress;

    #[test]
    fn a_copy_is_looked_at_as_the_job_that_made_it_would() {
        let job = |name: &str, verify| Backup {
            job: name.to_owned(),
            databases: Vec::new(),
            to: "/backups".into(),
            keep: Duration::ZERO,
            keep_last: 1,
            keep_daily: 0,
            keep_weekly: 0,
            keep_monthly: 0,
            compress: Compress::None,
            verify,
            key_file: Some(format!("/{name}.key").into()),
            longest_wal: 0,
            longest_lock: Duration::ZERO,
        };
        let jobs = [job("daily", Verify::Quick), job("monthly", Verify::Full)];
        let copy = |made_by: Option<&str>| {
            let manifest = json!({
                "format": 1, "made": "2025-11-24T16:00:00Z", "job": made_by, "source": "/a.db", "file": "a", "compression": "none",
                "file_bytes": 0, "file_sha256": "", "database_bytes": 0, "database_sha256": "",
                "database_owner": { "user": 0, "group": 0, "mode": 0 }, "method": "pages", "sqlite_version": "", "plimsoll_version": "",
                "content": { "page_size": 512, "pages": 0, "free_pages": 0, "journal_mode": "wal", "tables": {} }
            });
            Copy { name: "a".into(), state: State::Unverified, manifest: Some(serde_json::from_value(manifest).unwrap()) }
        };
        for (made_by, expected) in [(Some("daily"), "daily"), (Some("monthly"), "monthly"), (Some("renamed"), "daily"), (None, "daily")] {
            assert_eq!(job_of(&jobs, Path::new("/backups"), &copy(made_by)).map(|job| job.job.as_str()), Some(expected));
        }
        assert_eq!(check_of(&jobs, Path::new("/backups"), &copy(Some("monthly"))), Verify::Full);
        assert_eq!(job_of(&jobs, Path::new("/elsewhere"), &copy(None)), None);
    }
}
