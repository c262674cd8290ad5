//! Carries a plan out. Every file is looked at once more right before its name is removed: what is not the very file of the plan, or
//! is open, stays.

use std::ffi::CStr;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::super::run::{End, Foreman, Outcome, Report};
use super::listing::{File, Listing};
use super::pace::Pace;
use super::plan::{Emptied, Pick, Plan};
use super::roots::Root;
use crate::host::Paths;
use crate::host::beneath::{Directory, Facts, Kind};
use crate::host::open_files::{self, Held, Hold, OpenFiles};

/// Why a file of the plan stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    Open,
    /// Another file stands there, or it has been touched, linked, moved.
    Changed,
    /// Somebody was faster.
    Gone,
    /// An error was noted.
    Failed,
}

/// Between two reports of progress.
const TELLING: Duration = Duration::from_millis(250);
/// How long a look through the process table is believed.
const FRESH: Duration = Duration::from_secs(2);
/// Errors that are told one by one.
const ERRORS: usize = 100;

pub struct Removal<'r> {
    listing: &'r Listing,
    roots: &'r [Root],
    foreman: &'r mut dyn Foreman,
    pace: Pace,
    /// The folder in which the last file went.
    at: Option<(u32, Directory)>,
    /// What is open according to the process table, and when that was read.
    table: Option<(Duration, OpenFiles)>,
    outcome: Outcome,
    /// Counted by why they stay.
    open: u64,
    changed: u64,
    gone: u64,
    failed: u64,
}

impl<'r> Removal<'r> {
    pub fn new(listing: &'r Listing, roots: &'r [Root], rate: Option<u32>, foreman: &'r mut dyn Foreman) -> Removal<'r> {
        let pace = Pace::new(rate, foreman.now().steady);
        let outcome = Outcome::default();
        Removal { listing, roots, foreman, pace, at: None, table: None, outcome, open: 0, changed: 0, gone: 0, failed: 0 }
    }

    pub fn perform(mut self, plan: &Plan) -> Outcome {
        let begun = self.foreman.now().steady;
        let of = u64::try_from(plan.picks.len() + plan.folders.len()).unwrap_or(u64::MAX);
        let (mut done, mut told) = (0_u64, begun);
        self.outcome.end = End::Done;
        for unit in plan.picks.split_inclusive(|pick| pick.is_last) {
            if !self.foreman.at_safe_point() {
                self.outcome.end = End::Stopped;
                break;
            }
            let went = self.remove_unit(unit);
            done += unit.len() as u64;
            let now = self.foreman.now().steady;
            if now.saturating_sub(told) >= TELLING {
                told = now;
                self.tell_progress(done, of, now.saturating_sub(begun));
            }
            let pause = self.pace.spend(went, now);
            if !pause.is_zero() && done < of && !self.foreman.wait(pause) {
                self.outcome.end = End::Stopped;
                break;
            }
        }
        self.at = None;
        if self.outcome.end == End::Done {
            for emptied in &plan.folders {
                if !self.foreman.at_safe_point() {
                    self.outcome.end = End::Stopped;
                    break;
                }
                self.remove_folder(*emptied);
                done += 1;
            }
        }
        let took = self.foreman.now().steady.saturating_sub(begun);
        self.tell_progress(done, of, took);
        self.finish(took)
    }

    fn tell_progress(&mut self, done: u64, of: u64, took: Duration) {
        let left = of.saturating_sub(done);
        let seconds_left = (done > 0).then(|| {
            let at_this_speed = took.as_secs_f64() / done as f64 * left as f64;
            at_this_speed.max(self.pace.least(left).as_secs_f64())
        });
        self.foreman.tell(Report::Progress { done, of, bytes: self.outcome.reclaimed_bytes, seconds_left });
    }

    fn finish(mut self, took: Duration) -> Outcome {
        let hidden = self.failed.saturating_sub(self.outcome.errors.len() as u64);
        if hidden > 0 {
            self.outcome.errors.push(format!("and {hidden} more of such errors"));
        }
        let figures =
            [("files_open", self.open), ("files_changed", self.changed), ("files_gone", self.gone), ("files_failed", self.failed)];
        for (name, count) in figures {
            self.outcome.figures.insert(name.to_owned(), count as f64);
        }
        let mut fields = serde_json::Map::new();
        for what in ["file", "folder"] {
            let count = self.outcome.deleted.get(what).copied().unwrap_or_default();
            fields.insert(format!("deleted_{what}s"), count.into());
        }
        fields.insert("reclaimed_bytes".to_owned(), self.outcome.reclaimed_bytes.into());
        for (name, count) in figures {
            fields.insert(name.to_owned(), count.into());
        }
        fields.insert("seconds".to_owned(), took.as_secs_f64().into());
        self.foreman.tell(Report::Event { event: "file_cleanup_result".to_owned(), fields });
        self.outcome
    }

    /// Removes the files of one group, or none of them; gives how many went.
    fn remove_unit(&mut self, unit: &[Pick]) -> u32 {
        let listing = self.listing;
        let files: Vec<&File> = unit.iter().filter_map(|pick| listing.file(pick.file)).collect();
        match self.try_unit(&files) {
            Ok(went) => went,
            Err((stays, went)) => {
                let rest = files.len() as u64 - u64::from(went);
                match stays {
                    Stays::Open => self.open += rest,
                    Stays::Changed => self.changed += rest,
                    Stays::Gone => self.gone += rest,
                    Stays::Failed => {}
                }
                went
            }
        }
    }

    fn try_unit(&mut self, files: &[&File]) -> Result<u32, (Stays, u32)> {
        let Some(first) = files.first() else { return Ok(0) };
        let listing = self.listing;
        let directory = self.folder(first.folder).map_err(|stays| (stays, 0))?;
        // Nobody opens them from here until they are gone, as far as there are leases.
        let mut holds: Vec<Hold> = Vec::with_capacity(files.len());
        let mut outcome = Ok(());
        for file in files {
            match self.reserve(&directory, listing.name(file), file) {
                Ok(hold) => holds.extend(hold),
                Err(stays) => {
                    outcome = Err((stays, 0));
                    break;
                }
            }
        }
        let mut went = 0;
        if outcome.is_ok() {
            for file in files {
                let name = listing.name(file);
                // The first of a group was looked at a moment ago, the last a while.
                let is_still = files.len() == 1 || directory.look(name).is_ok_and(|facts| file.is_still(&facts));
                let removed = if is_still { directory.unlink(name) } else { Err(Errno::STALE) };
                match removed {
                    Ok(()) => {
                        went += 1;
                        self.count("file", file.bytes());
                    }
                    Err(errno) => {
                        outcome = Err((self.stays_for(errno, file), went));
                        break;
                    }
                }
            }
        }
        drop(holds);
        self.at = Some((first.folder, directory));
        outcome.map(|()| went)
    }

    fn count(&mut self, what: &str, bytes: u64) {
        match self.outcome.deleted.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                self.outcome.deleted.insert(what.to_owned(), 1);
            }
        }
        self.outcome.reclaimed_bytes = self.outcome.reclaimed_bytes.saturating_add(bytes);
    }

    fn stays_for(&mut self, errno: Errno, file: &File) -> Stays {
        match errno {
            Errno::NOENT => Stays::Gone,
            Errno::STALE | Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::XDEV | Errno::NXIO => Stays::Changed,
            errno => {
                self.fail(&self.listing.path(file), errno);
                Stays::Failed
            }
        }
    }

    fn fail(&mut self, path: &Path, errno: Errno) {
        self.failed += 1;
        if self.outcome.errors.len() < ERRORS {
            self.outcome.errors.push(format!("could not delete {}: {errno}", path.display()));
        }
    }

    /// Makes sure that a name still leads to the file of the plan and that nobody has it open; the hold keeps it so.
    fn reserve(&mut self, directory: &Directory, name: &CStr, file: &File) -> Result<Option<Hold>, Stays> {
        let held = open_files::hold(directory, name).map_err(|errno| self.stays_for(errno, file))?;
        let facts = directory.look(name).map_err(|errno| self.stays_for(errno, file))?;
        if !file.is_still(&facts) {
            return Err(Stays::Changed);
        }
        match held {
            Held::Alone(hold) => Ok(Some(hold)),
            Held::InUse => Err(Stays::Open),
            Held::Unknown if self.is_in_table(&facts) => Err(Stays::Open),
            Held::Unknown => Ok(None),
        }
    }

    fn is_in_table(&mut self, facts: &Facts) -> bool {
        let now = self.foreman.now().steady;
        if self.table.as_ref().is_none_or(|(read, _)| now.saturating_sub(*read) > FRESH) {
            let is_first = self.table.is_none();
            let table = OpenFiles::read(&Paths::default()).unwrap_or_default();
            if is_first && table.unseen > 0 {
                let text = format!(
                    "whether a file is open cannot be asked of the kernel here, and the files of {} processes cannot be seen: an open one \
                     may be deleted. Whoever has it open keeps it until it is closed; the daemon sees all when it runs as the files' owner",
                    table.unseen
                );
                self.foreman.tell(Report::Warning { text });
            }
            self.table = Some((now, table));
        }
        self.table.as_ref().is_some_and(|(_, table)| table.has(facts.device, facts.inode))
    }

    /// Opens a folder of the listing, if it is still the same.
    fn folder(&mut self, at: u32) -> Result<Directory, Stays> {
        if let Some((_, directory)) = self.at.take_if(|(held, _)| *held == at) {
            return Ok(directory);
        }
        let Some(folder) = self.listing.folder(at) else { return Err(Stays::Gone) };
        let Some(root) = self.roots.get(folder.root as usize) else { return Err(Stays::Gone) };
        let mut way = Vec::new();
        self.listing.way_to(at, &mut way);
        match root.directory.descend(&way) {
            Ok(found) if (found.facts().device, found.facts().inode) == (folder.device, folder.inode) => Ok(found),
            Ok(_) | Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Err(Stays::Changed),
            Err(Errno::NOENT) => Err(Stays::Gone),
            Err(errno) => {
                self.fail(&self.listing.folder_path(at), errno);
                Err(Stays::Failed)
            }
        }
    }

    /// Something may have come into it: then the kernel refuses, and it stays without a word.
    fn remove_folder(&mut self, emptied: Emptied) {
        let listing = self.listing;
        let Some(folder) = listing.folder(emptied.folder) else { return };
        let Some(Ok(parent)) = folder.parent.map(|parent| self.folder(parent)) else { return };
        let name = listing.folder_name(folder);
        let is_still = |facts: &Facts| {
            let is_same = facts.kind == Kind::Folder && (facts.device, facts.inode) == (folder.device, folder.inode);
            // A folder that was empty is touched by whoever uses it.
            is_same && (!emptied.was_empty || facts.youngest == folder.youngest)
        };
        let removed = match parent.look(name) {
            Ok(facts) if is_still(&facts) => parent.remove_folder(name),
            Ok(_) => Err(Errno::NOTEMPTY),
            Err(errno) => Err(errno),
        };
        match removed {
            Ok(()) => self.count("folder", 0),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => self.fail(&listing.folder_path(emptied.folder), errno),
        }
        self.at = folder.parent.map(|at| (at, parent));
    }
}
