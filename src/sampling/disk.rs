//! Room on the configured disks.
//!
//! `statvfs` on a dead network or FUSE mount never returns. Each disk has a thread of its own that does nothing else: the
//! loop gives it a moment to answer, then goes on without, and a dead disk does not blind us for the others.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::readings::{DiskReadings, DiskSpace, Reading, Source};
use super::tally::Tally;
use crate::host::clock::Moment;
use crate::host::filesystem::{self, Space};
use crate::host::scheduling;

/// How long the loop waits for an answer that takes a microsecond on a healthy disk.
const PATIENCE: Duration = Duration::from_millis(2);

/// An answer is asked for again after this long, and used that long without asking.
const FRESH: Duration = Duration::from_millis(200);

/// An answer older than this no longer counts: the disk hangs.
const STALE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Disks(Vec<Disk>);

#[derive(Debug)]
struct Disk {
    path: Arc<Path>,
    desk: Arc<Desk>,
    answered: Option<(Moment, Result<Space, Errno>)>,
    /// Why there is no thread.
    refused: Option<Errno>,
}

/// Where a question is left and its answer found.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    turned: Condvar,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Idle,
    Asked,
    Asking,
    Answered(Result<Space, Errno>),
    Closed,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic half-way: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, state: State) {
        *self.lock() = state;
        self.turned.notify_all();
    }

    /// The thread's whole life.
    fn serve(&self, ask: impl Fn() -> Result<Space, Errno>) {
        loop {
            let waiting = self.turned.wait_while(self.lock(), |state| !matches!(state, State::Asked | State::Closed));
            let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
            if *state == State::Closed {
                return;
            }
            *state = State::Asking;
            drop(state);
            let answer = ask();
            let mut state = self.lock();
            if *state == State::Closed {
                return;
            }
            *state = State::Answered(answer);
            drop(state);
            self.turned.notify_all();
        }
    }
}

impl Disk {
    fn new(path: Arc<Path>, ask: impl Fn(&Path) -> Result<Space, Errno> + Send + 'static) -> Disk {
        let desk = Arc::new(Desk::default());
        let thread = std::thread::Builder::new().name("disk".into()).stack_size(64 * 1024);
        let (asked, served) = (path.clone(), desk.clone());
        let refused = scheduling::deaf_to_signals(|| thread.spawn(move || served.serve(|| ask(&asked)))).err();
        let refused = refused.map(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
        Disk { path, desk, answered: None, refused }
    }

    fn read(&mut self, now: Moment, tally: &mut Tally) -> Reading<DiskSpace> {
        if let Some(errno) = self.refused {
            return tally.failed(Source::Statvfs, Some(errno));
        }
        self.collect(now);
        if self.answered.as_ref().is_none_or(|(then, _)| now.since(*then) >= FRESH) {
            self.ask(now);
        }
        match &self.answered {
            Some((then, Ok(space))) if now.since(*then) < STALE => Reading::Known(known(*space)),
            Some((then, Err(errno))) if now.since(*then) < STALE => tally.failed(Source::Statvfs, Some(*errno)),
            _ => tally.failed(Source::Statvfs, Some(Errno::TIMEDOUT)),
        }
    }

    /// Takes an answer that came after we stopped waiting for it; its moment is now, as near as can be told.
    fn collect(&mut self, now: Moment) {
        let mut state = self.desk.lock();
        if let State::Answered(answer) = *state {
            *state = State::Idle;
            self.answered = Some((now, answer));
        }
    }

    /// Leaves the question and waits a moment. Not again while a question is open: a dead disk costs the loop one wait.
    fn ask(&mut self, now: Moment) {
        if *self.desk.lock() != State::Idle {
            return;
        }
        self.desk.turn(State::Asked);
        let waiting = self.desk.turned.wait_timeout_while(self.desk.lock(), PATIENCE, |state| !matches!(state, State::Answered(_)));
        drop(waiting);
        self.collect(now);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.desk.turn(State::Closed);
    }
}

fn known(space: Space) -> DiskSpace {
    // No inodes at all means that the filesystem does not count them.
    let counted = space.files > 0;
    DiskSpace {
        size: space.size,
        avail: space.avail,
        files: counted.then_some(space.files),
        files_free: counted.then_some(space.files_free),
    }
}

impl Disks {
    pub fn new(paths: impl IntoIterator<Item = Arc<Path>>) -> Disks {
        Disks(paths.into_iter().map(|path| Disk::new(path, filesystem::space)).collect())
    }

    /// Keeps what is known of the disks that stay.
    pub fn set(&mut self, paths: impl IntoIterator<Item = Arc<Path>>) {
        let mut before = std::mem::take(&mut self.0);
        for path in paths {
            let kept = before.iter().position(|disk| disk.path == path).map(|at| before.swap_remove(at));
            self.0.push(kept.unwrap_or_else(|| Disk::new(path, filesystem::space)));
        }
    }

    pub fn read(&mut self, now: Moment, tally: &mut Tally, into: &mut Vec<DiskReadings>) {
        into.clear();
        into.extend(self.0.iter_mut().map(|disk| DiskReadings { path: disk.path.clone(), space: disk.read(now, tally) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::SystemTime;

    const SPACE: Space = Space { size: 100, avail: 40, files: 10, files_free: 4 };

    fn at(seconds: u64) -> Moment {
        Moment { steady: Duration::from_secs(seconds), wall: SystemTime::UNIX_EPOCH }
    }

    /// A disk that answers each question when it is sent an answer, and hangs until then.
    fn disk() -> (Disk, mpsc::Sender<Result<Space, Errno>>) {
        let (answer, answers) = mpsc::channel();
        let disk = Disk::new(Path::new("/d").into(), move |_| answers.recv().unwrap_or(Err(Errno::IO)));
        (disk, answer)
    }

    /// The answer may come a little after the loop stopped waiting.
    fn read_until(disk: &mut Disk, now: Moment, wanted: impl Fn(&Reading<DiskSpace>) -> bool) {
        let begun = Moment::now();
        loop {
            let seen = disk.read(now, &mut Tally::default());
            if wanted(&seen) {
                return;
            }
            assert!(Moment::now().since(begun) < Duration::from_secs(20), "still {seen:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_hanging_disk_is_a_failure_and_not_a_hanging_loop() {
        let (mut disk, answer) = disk();
        let known = Reading::Known(known(SPACE));
        let begun = Moment::now();
        let mut tally = Tally::default();
        for _ in 0..100 {
            assert!(
                matches!(disk.read(at(1), &mut tally), Reading::Failed(failure) if failure.errno == Some(Errno::TIMEDOUT.raw_os_error()))
            );
        }
        assert!(Moment::now().since(begun) < Duration::from_secs(2), "one open question is waited for once");
        assert_eq!(tally.0, [0, 0, 0, 100, 0]);
        answer.send(Ok(SPACE)).unwrap();
        read_until(&mut disk, at(2), |seen| *seen == known);
        // It hangs again: what was known counts for ten seconds more.
        assert_eq!(disk.read(at(11), &mut tally), known);
        assert!(matches!(disk.read(at(12), &mut tally), Reading::Failed(_)));
        // And comes back with an error.
        answer.send(Err(Errno::STALE)).unwrap();
        read_until(
            &mut disk,
            at(13),
            |seen| matches!(seen, Reading::Failed(failure) if failure.errno == Some(Errno::STALE.raw_os_error())),
        );
    }

    #[test]
    fn real_disks_are_read_and_changed_ones_followed() {
        let mut disks = Disks::new([Path::new("/").into(), Path::new("/no/such/disk").into()]);
        let (mut seen, begun) = (Vec::new(), Moment::now());
        while !matches!(seen.first(), Some(DiskReadings { space: Reading::Known(_), .. })) {
            disks.read(Moment::now(), &mut Tally::default(), &mut seen);
            assert!(Moment::now().since(begun) < Duration::from_secs(20), "still {seen:?}");
        }
        assert!(matches!(seen[1].space, Reading::Failed(_)), "{seen:?}");
        disks.set([Path::new("/proc").into(), Path::new("/").into()]);
        disks.read(Moment::now(), &mut Tally::default(), &mut seen);
        assert_eq!(seen.iter().map(|disk| &*disk.path).collect::<Vec<_>>(), [Path::new("/proc"), Path::new("/")]);
        assert!(matches!(seen[1].space, Reading::Known(_)), "kept from before: {seen:?}");
    }
}
