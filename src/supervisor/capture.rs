//! The helper that writes what a worker prints to a file: a process of its own, so that a daemon that is stopped, busy or
//! dead holds no worker up.
//!
//! What a worker prints goes from its pipe to a second one, the spool, and from there to the file, each time with splice(2):
//! the kernel takes bytes out of a pipe only once they are where they go. So this process may be killed at any moment and
//! another carries on, with nothing lost and nothing there twice. The spool is between the two because a pipe is locked
//! while its bytes are written to a file: a worker would wait for the disk, and where that is dead nothing could end it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::rotation::{self, Step};
use crate::host::helper;

/// The hidden subcommand: `capture PIPE SPOOL-READ SPOOL-WRITE FILE MAX-SIZE KEEP`.
pub const SUBCOMMAND: &str = "capture";

/// What the spool holds, and so the most that is written at once.
const PORTION: usize = 64 << 10;

/// How often it is tried again to tell of what was lost, while nothing more is printed.
const TRY_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long somebody who holds a lock on the file is waited for, in all: whoever never lets go must not hold up a worker.
const LOCK_TRIES: u32 = 10;
const LOCK_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Somebody else may move the file away just when it was opened; so often it is opened again.
const OPEN_TRIES: u32 = 3;

/// It belongs to the daemon's user, whoever the worker runs as.
const MODE: Mode = Mode::from_raw_mode(0o640);

/// `args` are what follows the subcommand. Returns the exit code, once nobody can print any more.
pub fn main(args: &[String]) -> u8 {
    // As with the sentinel: `killall plimsoll` is not meant for it.
    let _ = rustix::thread::set_name(c"capture");
    // These are meant for the daemon and its workers, whose last words are to be written down too. SIGXFSZ would come with
    // a limit on the size of files, and is an error like others without it.
    helper::ignore(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ]);
    let Some((handed, [path, max_size, keep])) = helper::take_over::<3>(args) else { return 2 };
    let (Ok(max_size), Ok(keep), Ok(look)) = (max_size.parse(), keep.parse(), rustix::pipe::pipe_with(PipeFlags::CLOEXEC)) else {
        return 2;
    };
    helper::close_all_but(&[handed[0].as_fd(), handed[1].as_fd(), handed[2].as_fd(), look.0.as_fd(), look.1.as_fd()]);
    rustix::process::umask(Mode::empty());
    let [incoming, spool_out, spool_in] = handed;
    let mut capture = Capture {
        incoming,
        spool_out,
        spool_in,
        look,
        buffer: vec![0; PORTION],
        path: PathBuf::from(path),
        max_size,
        keep,
        file: None,
        lost: None,
    };
    match capture.run() {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[derive(Debug)]
struct Capture {
    incoming: OwnedFd,
    spool_out: OwnedFd,
    spool_in: OwnedFd,
    /// Takes a copy of what is in the spool, to look for the ends of lines.
    look: (OwnedFd, OwnedFd),
    buffer: Vec<u8>,
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: Option<OwnedFd>,
    lost: Option<Lost>,
}

/// What could not be written, and has not been told of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    bytes: u64,
    why: Errno,
}

impl Capture {
    /// Ends when no process has the writing end of the pipe any more.
    fn run(&mut self) -> Result<(), Errno> {
        loop {
            // What was left in the spool by one that was killed comes first.
            while let waiting @ 1.. = waiting(&self.spool_out)? {
                if let Err(why) = self.write_some(waiting) {
                    // Whatever it was: a worker is not held up for its output.
                    self.drop_some(waiting, why)?;
                }
            }
            match self.take_in()? {
                Taken::Some => {}
                // The disk may have room again without anything being printed.
                Taken::Nothing => drop(self.write_some(0)),
                Taken::End => break,
            }
        }
        if self.lost.is_some() {
            // The last chance to say so.
            let _ = self.write_some(0);
        }
        Ok(())
    }

    /// Waits for something and moves it to the spool, which is empty.
    fn take_in(&mut self) -> Result<Taken, Errno> {
        let mut fds = [PollFd::new(&self.incoming, PollFlags::IN)];
        match rustix::event::poll(&mut fds, self.lost.map(|_| &TRY_AGAIN)) {
            Ok(0) => return Ok(Taken::Nothing),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Taken::Some),
            Err(error) => return Err(error),
        }
        match rustix::pipe::splice(&self.incoming, None, &self.spool_in, None, PORTION, SpliceFlags::NONBLOCK) {
            Ok(0) => Ok(Taken::End),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Some),
            Err(error) => Err(error),
        }
    }

    /// Takes one step towards having written the `waiting` bytes of the spool. First says what was lost before, if anything was.
    fn write_some(&mut self, waiting: usize) -> Result<(), Errno> {
        let file = self.open()?;
        let result = self.write_to(&file, waiting);
        let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
        // A file that was moved away is opened anew in the next step.
        self.file = Some(file);
        result
    }

    fn write_to(&mut self, file: &OwnedFd, waiting: usize) -> Result<(), Errno> {
        let mut size = size(file)?;
        if let Some(lost) = self.lost {
            size += tell(file, size, lost)?;
            self.lost = None;
        }
        if waiting == 0 {
            return Ok(());
        }
        // Nearly always there is room for all of it, and nothing has to be looked at.
        let fits = u64::try_from(waiting).is_ok_and(|waiting| waiting <= self.max_size.saturating_sub(size));
        let step = if fits {
            Step::Write(waiting)
        } else {
            let mid_line = is_mid_line(file, size)?;
            rotation::next_step(size, self.max_size, mid_line, self.look_ahead(waiting)?)
        };
        match step {
            Step::Write(bytes) => self.move_to(file, size, bytes),
            Step::Rotate if self.keep == 0 => rustix::fs::ftruncate(file, 0),
            Step::Rotate => match rotation::shift(&self.path, self.keep).map_err(|error| errno(&error)) {
                Ok(()) => Ok(()),
                // The disk is full or broken: what is in the file is worth more than what would follow it.
                Err(why @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(why),
                // It will not be possible later either, and the file must not grow without end.
                Err(why) => self.begin_anew(file, Lost { bytes: size, why }, waiting),
            },
        }
    }

    /// Makes room by giving up what is in the file, says so, and writes what follows in the same step: that the file is full
    /// again with the first line must not begin it anew for ever.
    fn begin_anew(&mut self, file: &OwnedFd, lost: Lost, waiting: usize) -> Result<(), Errno> {
        rustix::fs::ftruncate(file, 0)?;
        let size = tell(file, 0, lost)?;
        match rotation::next_step(0, self.max_size, false, self.look_ahead(waiting)?) {
            Step::Write(bytes) => self.move_to(file, size, bytes),
            // An empty file is not full.
            Step::Rotate => Ok(()),
        }
    }

    /// The beginning of what is in the spool, which stays there.
    fn look_ahead(&mut self, waiting: usize) -> Result<&[u8], Errno> {
        let (look_out, look_in) = &self.look;
        let copied = rustix::pipe::tee(&self.spool_out, look_in, waiting, SpliceFlags::NONBLOCK)?;
        let mut seen = 0;
        while seen < copied {
            let Some(room) = self.buffer.get_mut(seen..copied) else { break };
            match rustix::io::read(look_out, room)? {
                0 => break,
                bytes => seen += bytes,
            }
        }
        self.buffer.get(..seen).filter(|ahead| !ahead.is_empty()).ok_or(Errno::AGAIN)
    }

    /// Writes so many bytes of the spool to the end of the file, or some of them.
    fn move_to(&mut self, file: &OwnedFd, size: u64, bytes: usize) -> Result<(), Errno> {
        let mut at = size;
        match rustix::pipe::splice(&self.spool_out, None, file, Some(&mut at), bytes, SpliceFlags::empty()) {
            Ok(0) => Err(Errno::IO),
            Ok(_) => Ok(()),
            // Some file systems cannot take bytes from a pipe.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.copy_to(file, size, bytes),
            Err(why) => Err(why),
        }
    }

    /// As [`Capture::move_to`], by way of memory: being killed in between would lose what is there.
    fn copy_to(&mut self, file: &OwnedFd, size: u64, bytes: usize) -> Result<(), Errno> {
        let length = bytes.min(self.buffer.len());
        let room = self.buffer.get_mut(..length).unwrap_or_default();
        let length = rustix::io::read(&self.spool_out, room)?;
        let mut at = size;
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::pwrite(file, rest, at) {
                Ok(0) => return self.lose_rest(rest.len(), Errno::IO),
                Ok(written) => {
                    at += count(written);
                    rest = rest.get(written..).unwrap_or_default();
                }
                Err(why) => return self.lose_rest(rest.len(), why),
            }
        }
        Ok(())
    }

    fn lose_rest(&mut self, bytes: usize, why: Errno) -> Result<(), Errno> {
        self.lose(count(bytes), why);
        Ok(())
    }

    /// Takes so many bytes out of the spool that have nowhere to go.
    fn drop_some(&mut self, waiting: usize, why: Errno) -> Result<(), Errno> {
        let length = waiting.min(self.buffer.len());
        let dropped = rustix::io::read(&self.spool_out, self.buffer.get_mut(..length).unwrap_or_default())?;
        self.lose(count(dropped), why);
        Ok(())
    }

    fn lose(&mut self, bytes: u64, why: Errno) {
        self.lost = Some(Lost { bytes: self.lost.map_or(0, |lost| lost.bytes) + bytes, why });
    }

    /// The file that has the name now, locked as well as can be. It is looked for each time, because others may have moved
    /// it away (`logrotate`) or removed it; another helper may too, if a new daemon was started beside workers of an old one.
    fn open(&mut self) -> Result<OwnedFd, Errno> {
        for _ in 0..OPEN_TRIES {
            let file = match self.file.take() {
                Some(file) => file,
                None => open_at(&self.path)?,
            };
            lock(&file);
            if is_at(&file, &self.path) {
                return Ok(file);
            }
        }
        open_at(&self.path)
    }
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Some,
    Nothing,
    /// Nobody is left who could print, and nothing that was printed.
    End,
}

fn waiting(pipe: &OwnedFd) -> Result<usize, Errno> {
    Ok(usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX).min(PORTION))
}

/// Not through a link: where a worker may write to the folder, it could have us write anywhere. Not a pipe or a device either,
/// for which opening or writing may wait.
fn open_at(path: &Path) -> Result<OwnedFd, Errno> {
    // Not to append: splice refuses that. Each write says where the end is.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, MODE)?;
    let is_file = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file();
    if is_file { Ok(file) } else { Err(Errno::NODEV) }
}

/// Two helpers take turns; see [`Capture::open`].
fn lock(file: &OwnedFd) {
    for _ in 0..LOCK_TRIES {
        if rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK) {
            return;
        }
        // Waits for nothing but the time.
        let _ = rustix::event::poll(&mut [], Some(&LOCK_LOOK));
    }
}

fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let same = |one: rustix::fs::Stat, other: rustix::fs::Stat| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
    rustix::fs::fstat(file).is_ok_and(|own| rustix::fs::lstat(path).is_ok_and(|there| same(own, there)))
}

fn size(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

fn is_mid_line(file: &OwnedFd, size: u64) -> Result<bool, Errno> {
    let Some(last) = size.checked_sub(1) else { return Ok(false) };
    let mut byte = [b'\n'];
    rustix::io::pread(file, &mut byte, last)?;
    Ok(byte != [b'\n'])
}

/// Writes one line about what was lost, whole or not at all; how many bytes that took.
fn tell(file: &OwnedFd, size: u64, lost: Lost) -> Result<u64, Errno> {
    let begin = if is_mid_line(file, size)? { "\n" } else { "" };
    let line = format!("{begin}[plimsoll: {} bytes of output were lost: {}]\n", lost.bytes, in_words(lost.why));
    let written = rustix::io::pwrite(file, line.as_bytes(), size)?;
    if written == line.len() {
        return Ok(count(written));
    }
    rustix::fs::ftruncate(file, size)?;
    Err(lost.why)
}

/// Without the number that std puts behind it.
fn in_words(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    /// A capture of `path`, and the end a worker has.
    fn capture(path: &Path, max_size: u64, keep: u32) -> (Capture, OwnedFd) {
        let ((incoming, worker), (spool_out, spool_in)) = (pipe(), pipe());
        let path = path.to_path_buf();
        let capture =
            Capture { incoming, spool_out, spool_in, look: pipe(), buffer: vec![0; PORTION], path, max_size, keep, file: None, lost: None };
        (capture, worker)
    }

    /// What is in the files afterwards, the oldest first.
    fn run(mut capture: Capture, worker: OwnedFd, pieces: &[&str]) -> Vec<String> {
        let (path, keep) = (capture.path.clone(), capture.keep);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for piece in pieces {
                    assert_eq!(rustix::io::write(&worker, piece.as_bytes()), Ok(piece.len()));
                }
            });
            capture.run().unwrap();
        });
        let older = (1..=keep + 1).rev().filter_map(|number| std::fs::read_to_string(rotation::older(&path, number)).ok());
        older.chain(std::fs::read_to_string(&path).ok()).collect()
    }

    #[test]
    fn lines_go_to_the_file_and_on_to_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (one, worker) = capture(&path, 10, 2);
        assert_eq!(run(one, worker, &["one\ntwo\n", "three\nfour\n", "five\nsix"]), ["three\n", "four\nfive\n", "six"]);
        let (again, worker) = capture(&path, 10, 2);
        assert_eq!(run(again, worker, &["ty\n", "end\n"]), ["three\n", "four\nfive\n", "sixty\nend\n"]);
    }

    #[test]
    fn with_nothing_kept_the_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (capture, worker) = capture(&path, 10, 0);
        assert_eq!(run(capture, worker, &["one\ntwo\n", "three\n"]), ["three\n"]);
    }

    #[test]
    fn what_a_killed_one_has_left_in_the_spool_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (capture, worker) = capture(&path, 1000, 1);
        rustix::io::write(&capture.spool_in, b"first\n").unwrap();
        assert_eq!(run(capture, worker, &["second\n"]), ["first\nsecond\n"]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_costs_its_lines_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/log");
        let (mut capture, worker) = capture(&path, 1000, 1);
        rustix::io::write(&worker, b"gone\n").unwrap();
        assert_eq!(capture.take_in(), Ok(Taken::Some));
        let why = capture.write_some(5).unwrap_err();
        capture.drop_some(5, why).unwrap();
        assert_eq!(capture.lost, Some(Lost { bytes: 5, why: Errno::NOENT }));
        std::fs::create_dir(folder.path().join("later")).unwrap();
        assert_eq!(run(capture, worker, &["there\n"]), ["[plimsoll: 5 bytes of output were lost: No such file or directory]\nthere\n"]);
    }

    #[test]
    fn where_nothing_can_be_moved_the_file_is_begun_anew_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::create_dir_all(folder.path().join("log.1/in the way")).unwrap();
        let (capture, worker) = capture(&path, 10, 1);
        let told = |bytes: usize| format!("[plimsoll: {bytes} bytes of output were lost: Is a directory]\n");
        let first = told(8).len() + 6;
        // Each line finds the file full with what was said of the one before.
        assert_eq!(run(capture, worker, &["one\ntwo\n", "three\nfour\n"]), [format!("{}four\n", told(first))]);
    }

    #[test]
    fn links_and_whatever_is_no_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("secret"), "").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, MODE, 0).unwrap();
        for (name, why) in [("link", Errno::LOOP), ("fifo", Errno::NODEV), (".", Errno::ISDIR)] {
            assert_eq!(open_at(&at(name)).map(|_| ()), Err(why), "{name}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_spliced_to_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut capture, worker) = capture(&path, 1000, 1);
        rustix::io::write(&worker, b"one\ntwo\n").unwrap();
        assert_eq!(capture.take_in(), Ok(Taken::Some));
        // Splice refuses a file that is opened to append, as some file systems refuse everything.
        let file = std::fs::File::options().create(true).append(true).read(true).open(&path).unwrap();
        capture.move_to(&file.into(), 0, 4).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(waiting(&capture.spool_out), Ok(4));
    }

    #[test]
    fn a_file_that_others_have_moved_or_cut_is_carried_on_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut capture, worker) = capture(&path, 1000, 1);
        let mut print = |text: &str| {
            rustix::io::write(&worker, text.as_bytes()).unwrap();
            assert_eq!(capture.take_in(), Ok(Taken::Some));
            capture.write_some(text.len()).unwrap();
        };
        print("one\n");
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        print("two\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        std::fs::remove_file(&path).unwrap();
        print("three\n");
        std::fs::write(&path, "").unwrap();
        print("four\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n", "no hole where it was cut");
        assert_eq!(std::fs::read_to_string(folder.path().join("moved")).unwrap(), "one\n");
    }

    #[test]
    fn two_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let line = |who: char, number: u32| format!("{who}{number:07}\n");
        std::thread::scope(|scope| {
            for who in ['a', 'b'] {
                let (mut capture, worker) = capture(&path, 20_000, 20);
                scope.spawn(move || capture.run().unwrap());
                scope.spawn(move || {
                    (0..5000).for_each(|number| assert_eq!(rustix::io::write(&worker, line(who, number).as_bytes()), Ok(9)))
                });
            }
        });
        let files = (1..=20).rev().map(|number| rotation::older(&path, number)).chain([path.clone()]);
        let text: String = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        for who in ['a', 'b'] {
            let seen: Vec<&str> = text.lines().filter(|text| text.starts_with(who)).collect();
            assert_eq!(seen.len(), 5000, "{who}");
            assert!((0..).zip(&seen).all(|(number, seen)| *seen == line(who, number).trim_end()), "{who}");
        }
    }

    #[test]
    fn a_lock_that_is_never_let_go_of_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let other = open_at(&path).unwrap();
        rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
        let (capture, worker) = capture(&path, 1000, 1);
        assert_eq!(run(capture, worker, &["one\n"]), ["one\n"]);
    }
}
