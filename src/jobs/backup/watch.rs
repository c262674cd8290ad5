//! What is looked at again and again while a copy is made: whether it is to stop, whether the application's log of changes grows too
//! long behind the snapshot, whether the disk fills; and how far it is, for whoever follows the run.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::clock::Moment;
use crate::host::filesystem;
use crate::jobs::run::{Foreman, Report};

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// Why something was not done to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It was asked to stop, or its time is up.
    Stopped,
    /// A fragment that gives the reason.
    Failed(String),
}

impl Halt {
    pub fn because(reason: impl std::fmt::Display) -> Halt {
        Halt::Failed(reason.to_string())
    }
}

impl From<rusqlite::Error> for Halt {
    fn from(error: rusqlite::Error) -> Halt {
        Halt::Failed(error.to_string())
    }
}

/// The log of changes of a live database, which cannot begin anew while a snapshot is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wal {
    path: PathBuf,
    /// Bytes when the snapshot was taken.
    begun_with: u64,
    /// Bytes it may grow by, and by whose word.
    longest: u64,
    by: &'static str,
}

/// Of what is free on its own disk, the part it may grow by: what fills that disk ends the application.
const SHARE_OF_FREE: u64 = 10;

impl Wal {
    /// Of `longest_wal` bytes, or fewer where its disk has little left.
    pub fn new(path: PathBuf, longest_wal: u64) -> Wal {
        let begun_with = size(&path);
        let free = path.parent().and_then(|folder| filesystem::space(folder).ok()).map(|space| space.avail);
        let (longest, by) = limit(longest_wal, free);
        Wal { path, begun_with, longest, by }
    }

    /// By how much it has grown, where that is too much.
    pub fn excess(&self) -> Option<u64> {
        let grown = size(&self.path).saturating_sub(self.begun_with);
        (grown > self.longest).then_some(grown)
    }

    pub fn judge(&self) -> Result<(), Halt> {
        match self.excess() {
            Some(grown) => Err(Halt::Failed(format!(
                "the log of changes has grown by {} while the snapshot was held, {} allows {}; it was let go",
                megabytes(grown),
                self.by,
                megabytes(self.longest)
            ))),
            None => Ok(()),
        }
    }
}

/// `free` bytes of its own disk, where that is known.
fn limit(longest_wal: u64, free: Option<u64>) -> (u64, &'static str) {
    match free.map(|free| free / SHARE_OF_FREE) {
        Some(share) if share < longest_wal => (share, "a tenth of what was free on its disk"),
        _ => (longest_wal, "longest_wal"),
    }
}

/// Nothing is no log. A name is asked and no descriptor opened: to close one would take SQLite's locks away.
fn size(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

pub struct Watch<'f> {
    pub foreman: &'f mut dyn Foreman,
    /// Whether the log of changes is looked at, and which.
    pub wal: Option<Wal>,
    /// The folder that must not have less room than this, in bytes.
    pub floor: Option<(PathBuf, u64)>,
    /// Bytes to be done in all, and those that were done before this part.
    pub of: u64,
    pub before: u64,
    begun: Moment,
    told: Moment,
}

impl<'f> Watch<'f> {
    pub fn new(foreman: &'f mut dyn Foreman, of: u64) -> Watch<'f> {
        let now = foreman.now();
        Watch { foreman, wal: None, floor: None, of, before: 0, begun: now, told: now }
    }

    /// To be called every megabyte or so: `done` bytes of this part, `written` of its copy.
    pub fn look(&mut self, done: u64, written: u64) -> Result<(), Halt> {
        self.judge()?;
        let now = self.foreman.now();
        if now.since(self.told) >= TOLD_EVERY {
            self.told = now;
            let done = self.before.saturating_add(done).min(self.of);
            let seconds_left = seconds_left(now.since(self.begun), done, self.of);
            self.foreman.tell(Report::Progress { done, of: self.of, bytes: written, seconds_left });
        }
        Ok(())
    }

    /// To be called while nothing goes on, too.
    pub fn judge(&mut self) -> Result<(), Halt> {
        if !self.foreman.at_safe_point() {
            return Err(Halt::Stopped);
        }
        if let Some(wal) = &self.wal {
            wal.judge()?;
        }
        if let Some((folder, floor)) = &self.floor
            && filesystem::space(folder).is_ok_and(|space| space.avail < *floor)
        {
            return Err(Halt::Failed(format!("{} has less than {} left", folder.display(), megabytes(*floor))));
        }
        Ok(())
    }

    pub fn warn(&mut self, text: String) {
        self.foreman.tell(Report::Warning { text });
    }
}

/// As it went so far; unknown at the beginning.
fn seconds_left(taken: Duration, done: u64, of: u64) -> Option<f64> {
    (done > 0).then(|| taken.as_secs_f64() * (of.saturating_sub(done)) as f64 / done as f64)
}

/// For people: `70 MB`, `1.5 MB`, `12 kB`.
pub fn megabytes(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e7 => format!("{:.0} MB", bytes / 1e6),
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes if bytes >= 1e3 => format!("{:.0} kB", bytes / 1e3),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Follows a run in a test: real time, no waiting, stops when it is told to.
    #[derive(Default)]
    pub struct Follower {
        pub reports: Vec<Report>,
        /// Counts down with each question.
        pub stop_after: Option<u32>,
    }

    impl Foreman for Follower {
        fn now(&mut self) -> Moment {
            Moment::now()
        }

        fn tell(&mut self, report: Report) {
            self.reports.push(report);
        }

        fn wait(&mut self, _: Duration) -> bool {
            self.at_safe_point()
        }

        fn at_safe_point(&mut self) -> bool {
            match &mut self.stop_after {
                None => true,
                Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
            }
        }
    }

    #[test]
    fn a_log_that_grows_too_long_and_a_disk_that_fills_end_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db-wal");
        std::fs::write(&path, vec![0; 1000]).unwrap();
        let mut follower = Follower::default();
        let mut watch = Watch::new(&mut follower, 0);
        watch.wal = Some(Wal::new(path.clone(), 500));
        std::fs::write(&path, vec![0; 1500]).unwrap();
        assert_eq!(watch.look(0, 0), Ok(()));
        std::fs::write(&path, vec![0; 3501]).unwrap();
        let Err(Halt::Failed(reason)) = watch.look(0, 0) else { panic!("it went on") };
        assert_eq!(reason, "the log of changes has grown by 3 kB while the snapshot was held, longest_wal allows 500 B; it was let go");
        watch.wal = None;
        watch.floor = Some((folder.path().to_owned(), 0));
        assert_eq!(watch.look(0, 0), Ok(()));
        watch.floor = Some((folder.path().to_owned(), u64::MAX));
        assert!(matches!(watch.look(0, 0), Err(Halt::Failed(_))));
        follower.stop_after = Some(0);
        assert_eq!(Watch::new(&mut follower, 0).look(0, 0), Err(Halt::Stopped));
    }

    #[test]
    fn a_log_takes_no_more_than_a_tenth_of_its_disk() {
        assert_eq!(limit(1000, None), (1000, "longest_wal"));
        assert_eq!(limit(1000, Some(10_000)), (1000, "longest_wal"));
        assert_eq!(limit(1000, Some(9_000)), (900, "a tenth of what was free on its disk"));
        assert_eq!(limit(1000, Some(0)).0, 0);
    }

    #[test]
    fn what_is_left_is_told_from_what_was_done() {
        assert_eq!(seconds_left(Duration::from_secs(3), 0, 100), None);
        assert_eq!(seconds_left(Duration::from_secs(3), 25, 100), Some(9.0));
        assert_eq!(seconds_left(Duration::from_secs(3), 100, 100), Some(0.0));
    }
}
