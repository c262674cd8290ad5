//! Whether each job finds what it is for: folders it may search, databases that are there, a folder that takes copies.

use std::fs::File;
use std::path::Path;

use super::Patient;
use super::report::{Level, Report};
use crate::cli::render::size;
use crate::config::jobs::{Backup, Files, Job, Kind, Sessions};
use crate::host::{filesystem, probe};
use crate::jobs::files;

const AREA: &str = "jobs";

pub fn examine(patient: &Patient, report: &mut Report) {
    for job in &patient.settings.jobs {
        match &job.kind {
            Kind::Files(settings) => searched(report, job, settings),
            Kind::Sessions(settings) => cleaned(report, job, settings),
            Kind::Backup(settings) => copied(report, job, settings),
        }
    }
}

fn searched(report: &mut Report, job: &Job, settings: &Files) {
    let paths: Vec<String> = settings.paths.iter().map(|path| path.display().to_string()).collect();
    match files::examine(settings) {
        Ok(absent) if absent.is_empty() => report.ok(AREA, &*job.name, format!("may search {}", paths.join(", "))),
        Ok(absent) => {
            report.bad(AREA, Level::Warn, &*job.name, absent.join(", "), "make it, or correct paths; until then nothing goes there")
        }
        Err(why) => report.bad(AREA, Level::Fail, &*job.name, format!("could not {}", why.0), "correct paths, or see docs/jobs.md"),
    }
}

fn cleaned(report: &mut Report, job: &Job, settings: &Sessions) {
    if is_there(report, job, &settings.database) {
        report.ok(AREA, &*job.name, format!("{} can be read", settings.database.display()));
    }
}

fn copied(report: &mut Report, job: &Job, settings: &Backup) {
    let mut bytes = 0;
    for database in &settings.databases {
        if !is_there(report, job, database) {
            return;
        }
        bytes += std::fs::metadata(database).map_or(0, |metadata| metadata.len());
    }
    // What is not there yet is made by the first run: then what is above has to take it.
    let Some(folder) = settings.to.ancestors().find(|folder| folder.is_dir()) else { return };
    let what = format!("copies to {}", settings.to.display());
    match (probe::write_file(folder), filesystem::space(folder)) {
        (Err(error), _) => {
            report.bad(AREA, Level::Fail, &*job.name, format!("{what}: {error}"), "set to to a folder this user may write to")
        }
        (Ok(()), Ok(space)) if space.avail < bytes => {
            let told = format!("{what}: {} free, and the databases have {}", size(space.avail as f64), size(bytes as f64));
            report.bad(AREA, Level::Warn, &*job.name, told, "make room, or have fewer copies kept");
        }
        (Ok(()), _) => report.ok(AREA, &*job.name, format!("{what}, of {}", size(bytes as f64))),
    }
}

fn is_there(report: &mut Report, job: &Job, database: &Path) -> bool {
    let found = File::open(database).and_then(|file| file.metadata());
    let (level, told) = match found {
        Ok(metadata) if metadata.is_file() => return true,
        Ok(_) => (Level::Fail, "is no file".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Level::Warn, "is not there yet".to_owned()),
        Err(error) => (Level::Fail, error.to_string()),
    };
    let told = format!("{} {told}", database.display());
    report.bad(AREA, level, &*job.name, told, "start the application once, or correct the path");
    false
}
