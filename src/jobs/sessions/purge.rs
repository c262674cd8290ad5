//! Deletes what a plan lists, so that the application hardly notices: whole sessions in transactions of a few milliseconds,
//! with pauses as long as they were.
//!
//! For a batch of sessions, outside any lock: write each down, if there is an archive, or at least read it, so that under the
//! lock no page has to come from the disk. Then, under the lock, look once more: whoever is not exactly what he was at the
//! first look stays. A session goes with all its rows in one transaction, or not at all, whenever the power fails.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rusqlite::{ErrorCode, params};

use super::archive::{Added, Archive, ArchiveError};
use super::layout::{Layout, SessionId};
use super::look::Look;
use super::pace::Pace;
use super::reading::each_row;
use crate::jobs::run::{Failure, Foreman, Report};
use crate::jobs::sqlite::{Database, is_busy, patiently, told, write_log_back};

/// A batch is prepared as a whole: so much is written or read before the first of it is deleted.
const BATCH_SESSIONS: usize = 64;
const BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// So many rows go to the log before it is written back. In an old database each stands on a page of its own, and at a
/// thousand pages the application would do it, in the middle of its own commit.
const WRITE_BACK_ROWS: u64 = 250;
/// Others may keep the lock for good: then it is asked for so seldom.
const AFTER_BUSY: Duration = Duration::from_millis(100);
/// Errors of single sessions that are told; the rest is counted.
const MOST_ERRORS: usize = 20;
/// Pages an incremental vacuum begins with, and at most takes at once.
const FIRST_PAGES: u32 = 32;
const MOST_PAGES: u32 = 4096;

/// A session that is to go, and what it was when it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Condemned<'a> {
    pub id: &'a SessionId,
    pub look: &'a Look,
    pub bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    pub sessions: u64,
    pub session_bytes: u64,
    /// Rows by what they are called.
    pub rows: BTreeMap<String, u64>,
    /// Not what they were at the first look, so they stayed.
    pub touched: u64,
    pub failed: u64,
    /// Of the first few that failed.
    pub errors: Vec<String>,
    pub freed_pages: u64,
    pub given_back_pages: u64,
    pub transactions: u64,
    pub is_stopped: bool,
    pub longest_lock: Duration,
}

pub struct Purge<'a> {
    database: &'a Database,
    layout: &'a Layout,
    archive: Option<&'a mut Archive>,
    pace: Pace,
    done: Done,
    /// Rows that are in the log.
    since_write_back: u64,
}

/// How a transaction ended.
enum Turn {
    /// What it held the lock for.
    Held(Duration),
    /// Others were in the way at the commit: nothing is done, everything is to be tried again.
    Busy,
    Stopped,
}

impl<'a> Purge<'a> {
    pub fn new(database: &'a Database, layout: &'a Layout, archive: Option<&'a mut Archive>, longest_lock: Duration) -> Purge<'a> {
        Purge { database, layout, archive, pace: Pace::new(longest_lock), done: Done::default(), since_write_back: 0 }
    }

    /// Deletes one session after the other. With what was done, also where the run could not go on.
    pub fn run(mut self, condemned: &[Condemned<'_>], foreman: &mut dyn Foreman) -> (Done, Option<Failure>) {
        let failure = self.delete_all(condemned, foreman).and_then(|()| self.give_back(foreman)).err();
        self.done.longest_lock = self.pace.longest_held();
        (self.done, failure)
    }

    fn delete_all(&mut self, condemned: &[Condemned<'_>], foreman: &mut dyn Foreman) -> Result<(), Failure> {
        // A commit that meets readers holds new ones up while it waits: it is better given up and tried again.
        let _ = self.database.connection.busy_timeout(self.pace.work());
        let begun = foreman.now();
        let mut rest = condemned;
        while !rest.is_empty() && !self.done.is_stopped {
            let (batch, later) = rest.split_at(batch_length(rest));
            rest = later;
            let mut ready = VecDeque::new();
            for one in batch {
                if !foreman.at_safe_point() {
                    self.done.is_stopped = true;
                    return Ok(());
                }
                if self.prepare(*one, foreman)? {
                    ready.push_back(*one);
                }
                if self.done.is_stopped {
                    return Ok(());
                }
            }
            if let Some(archive) = &mut self.archive {
                archive.seal().map_err(|error| Failure(format!("write the archive {}: {error}", archive.path().display())))?;
            }
            self.delete_batch(ready, foreman)?;
            let at = condemned.len() - rest.len();
            let spent = foreman.now().since(begun);
            foreman.tell(progress(at, condemned.len(), self.done.session_bytes, spent));
        }
        Ok(())
    }

    /// True for a session that may be deleted now: it is what it was, and it is written down where that is asked for.
    fn prepare(&mut self, one: Condemned<'_>, foreman: &mut dyn Foreman) -> Result<bool, Failure> {
        let (database, layout) = (self.database, self.layout);
        let prepared = match &mut self.archive {
            Some(archive) => archive.add(database, layout, one.id, one.look, foreman),
            None => read(database, layout, one, foreman).map_err(ArchiveError::from),
        };
        match prepared {
            Ok(Added::Whole) => Ok(true),
            Ok(Added::Touched) => {
                self.done.touched += 1;
                Ok(false)
            }
            Ok(Added::Stopped) => {
                self.done.is_stopped = true;
                Ok(false)
            }
            Err(ArchiveError::Database(error)) => self.failed_at(one, &error).map(|()| false),
            // A disk that takes no more of the archive takes none of the next either; a session that cannot be written
            // down is one session.
            Err(ArchiveError::Disk(error))
                if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput) =>
            {
                self.fail(one, &error.to_string());
                Ok(false)
            }
            Err(ArchiveError::Disk(error)) => Err(Failure(format!("write the archive of deleted sessions: {error}"))),
        }
    }

    fn delete_batch(&mut self, mut ready: VecDeque<Condemned<'_>>, foreman: &mut dyn Foreman) -> Result<(), Failure> {
        while !ready.is_empty() {
            let pause = match self.transact(&mut ready, foreman)? {
                Turn::Held(held) => held,
                Turn::Busy => AFTER_BUSY,
                Turn::Stopped => {
                    self.done.is_stopped = true;
                    return Ok(());
                }
            };
            self.write_back();
            if !foreman.wait(pause) {
                self.done.is_stopped = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// One transaction: takes from the front of `ready` as many sessions as fit into the time.
    fn transact(&mut self, ready: &mut VecDeque<Condemned<'_>>, foreman: &mut dyn Foreman) -> Result<Turn, Failure> {
        let database = self.database;
        let connection = &database.connection;
        let begin = patiently(foreman, || connection.execute_batch("BEGIN IMMEDIATE"));
        if begin.map_err(|error| self.failure(&error))?.is_none() {
            return Ok(Turn::Stopped);
        }
        let begun = foreman.now();
        let free_before = free_pages(database);
        let mut taken = Taken::default();
        let worked = loop {
            let spent = foreman.now().since(begun);
            let Some(next) = ready.front().copied() else { break spent };
            if taken.rows_checked > 0 && !self.pace.fits(spent, next.look.rows()) {
                break spent;
            }
            ready.pop_front();
            taken.rows_checked += next.look.rows().max(1);
            match delete(self.database, self.layout, next) {
                Ok(Some(counts)) => taken.deleted.push((next, counts)),
                Ok(None) => taken.touched += 1,
                Err(error) => {
                    // Everything of this transaction is undone, the others are tried again without the one that failed.
                    self.roll_back();
                    self.failed_at(next, &error)?;
                    taken.deleted.iter().rev().for_each(|(one, _)| ready.push_front(*one));
                    self.done.touched += taken.touched;
                    return Ok(Turn::Held(foreman.now().since(begun)));
                }
            }
        };
        // Asked inside the transaction, so that pages of others are not among them.
        let freed = free_pages(database).saturating_sub(free_before);
        let committing = foreman.now();
        match connection.execute_batch("COMMIT") {
            Ok(()) => {}
            Err(error) => {
                self.roll_back();
                taken.deleted.iter().rev().for_each(|(one, _)| ready.push_front(*one));
                self.done.touched += taken.touched;
                return if is_busy(&error) { Ok(Turn::Busy) } else { Err(self.failure(&error)) };
            }
        }
        let committed = foreman.now().since(committing);
        self.pace.note(worked, taken.rows_checked, committed);
        self.note(&taken, freed);
        Ok(Turn::Held(worked.saturating_add(committed)))
    }

    fn note(&mut self, taken: &Taken<'_>, freed: u64) {
        self.done.transactions += 1;
        self.since_write_back += taken.rows_checked;
        self.done.freed_pages += freed;
        self.done.touched += taken.touched;
        for (one, counts) in &taken.deleted {
            self.done.sessions += 1;
            self.done.session_bytes = self.done.session_bytes.saturating_add(one.bytes);
            for (rows, count) in self.layout.tables().zip(counts) {
                *self.done.rows.entry(rows.what.clone()).or_default() += count;
            }
        }
    }

    fn roll_back(&self) {
        // SQLite has rolled back by itself after some errors; saying it twice harms nobody.
        if !self.database.connection.is_autocommit() {
            let _ = self.database.connection.execute_batch("ROLLBACK");
        }
    }

    /// The log of changes goes to the database between our transactions, when no lock of ours is held.
    fn write_back(&mut self) {
        if self.database.is_wal() && self.since_write_back >= WRITE_BACK_ROWS {
            self.since_write_back = 0;
            // Nothing depends on it: the application does the same at its own commits.
            let _ = write_log_back(&self.database.connection);
        }
    }

    /// Counts the failure of one session; gives up where the next would fare no better.
    fn failed_at(&mut self, one: Condemned<'_>, error: &rusqlite::Error) -> Result<(), Failure> {
        use ErrorCode::{CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure};
        match error.sqlite_error_code() {
            Some(CannotOpen | DatabaseCorrupt | DiskFull | NotADatabase | OutOfMemory | PermissionDenied | ReadOnly | SystemIoFailure) => {
                Err(self.failure(error))
            }
            _ => {
                self.fail(one, &told(error));
                Ok(())
            }
        }
    }

    fn fail(&mut self, one: Condemned<'_>, why: &str) {
        self.done.failed += 1;
        if self.done.errors.len() < MOST_ERRORS {
            self.done.errors.push(format!("session {}: {why}", one.id.told()));
        }
    }

    fn failure(&self, error: &rusqlite::Error) -> Failure {
        Failure(format!("delete sessions from {}: {}", self.database.path().display(), told(error)))
    }

    /// Gives free pages back to the filesystem, a few at a time, where the application has set its database up for that.
    fn give_back(&mut self, foreman: &mut dyn Foreman) -> Result<(), Failure> {
        let database = self.database;
        let connection = &database.connection;
        if self.done.is_stopped || self.done.sessions == 0 {
            return Ok(());
        }
        let mode = patiently(foreman, || connection.query_row("PRAGMA auto_vacuum", [], |row| row.get::<_, i64>(0)));
        match mode.map_err(|error| self.failure(&error))? {
            Some(2) => {}
            mode => {
                self.done.is_stopped |= mode.is_none();
                return Ok(());
            }
        }
        let mut pages = FIRST_PAGES;
        loop {
            let begin = patiently(foreman, || connection.execute_batch("BEGIN IMMEDIATE"));
            if begin.map_err(|error| self.failure(&error))?.is_none() {
                self.done.is_stopped = true;
                return Ok(());
            }
            let begun = foreman.now();
            match vacuum(self.database, pages) {
                Ok(0) => {
                    self.roll_back();
                    return Ok(());
                }
                Ok(given) => {
                    self.done.given_back_pages += given;
                    self.since_write_back += given;
                }
                Err(error) => {
                    self.roll_back();
                    if !is_busy(&error) {
                        return Err(self.failure(&error));
                    }
                }
            }
            let held = foreman.now().since(begun);
            self.pace.note(held, 0, Duration::ZERO);
            pages = if held > self.pace.work() { (pages / 2).max(1) } else { (pages * 2).min(MOST_PAGES) };
            self.write_back();
            if !foreman.wait(held) {
                self.done.is_stopped = true;
                return Ok(());
            }
        }
    }
}

#[derive(Default)]
struct Taken<'a> {
    deleted: Vec<(Condemned<'a>, Vec<u64>)>,
    touched: u64,
    /// Rows that were at least looked at.
    rows_checked: u64,
}

fn batch_length(rest: &[Condemned<'_>]) -> usize {
    let mut bytes = 0_u64;
    let fits = |one: &&Condemned<'_>| {
        bytes = bytes.saturating_add(one.bytes);
        bytes <= BATCH_BYTES
    };
    rest.iter().take(BATCH_SESSIONS).take_while(fits).count().max(1).min(rest.len())
}

fn free_pages(database: &Database) -> u64 {
    database.sizes().map_or(0, |sizes| sizes.free_pages)
}

fn progress(done: usize, of: usize, bytes: u64, spent: Duration) -> Report {
    let left = of.saturating_sub(done);
    let seconds_left = (done > 0).then(|| spent.as_secs_f64() / done as f64 * left as f64);
    Report::Progress { done: done as u64, of: of as u64, bytes, seconds_left }
}

/// Reads a session whole, so that its pages are at hand.
fn read(database: &Database, layout: &Layout, one: Condemned<'_>, foreman: &mut dyn Foreman) -> rusqlite::Result<Added> {
    match patiently(foreman, || database.at_once(|| Look::take(database, layout, one.id)))? {
        None => return Ok(Added::Stopped),
        Some(look) if look != *one.look => return Ok(Added::Touched),
        Some(_) => {}
    }
    for rows in layout.tables() {
        let all_read = each_row(database, rows, &rows.list(), one.id, foreman, |row| {
            (0..rows.columns.len()).try_for_each(|column| row.get_ref(column).map(drop))
        })?;
        if !all_read {
            return Ok(Added::Stopped);
        }
    }
    Ok(Added::Whole)
}

/// Deletes a session inside the open transaction; `None` when it is not what it was. Rows of each table, in their order.
fn delete(database: &Database, layout: &Layout, one: Condemned<'_>) -> rusqlite::Result<Option<Vec<u64>>> {
    if Look::take(database, layout, one.id)? != *one.look {
        return Ok(None);
    }
    let mut counts = Vec::new();
    for (rows, expected) in layout.tables().zip(one.look.counts()) {
        let sql = format!("DELETE FROM {} WHERE {}", rows.name(), rows.are_of_session());
        let deleted = database.connection.prepare_cached(&sql)?.execute(params![one.id])? as u64;
        if deleted != expected {
            // Cannot be under the lock; if it is, nothing of this transaction may stay.
            return Err(rusqlite::Error::StatementChangedRows(deleted as usize));
        }
        counts.push(deleted);
    }
    Ok(Some(counts))
}

/// Gives back up to so many pages and commits; answers with how many.
fn vacuum(database: &Database, pages: u32) -> rusqlite::Result<u64> {
    let connection = &database.connection;
    let before = database.sizes()?.pages;
    // Every step of the statement frees one page: it has to be run to its end.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.raw_query();
    while rows.next()?.is_some() {}
    drop(rows);
    drop(statement);
    let given = before.saturating_sub(database.sizes()?.pages);
    if given > 0 {
        connection.execute_batch("COMMIT")?;
    }
    Ok(given)
}
