//! Where what workers print goes: the daemon's side of it.
//!
//! A worker whose output goes to a file writes to a pipe, one for all its replicas and all their lives; a helper
//! ([`super::capture`]) empties it. The daemon itself never reads or writes any of it. It holds both ends of the pipe: the
//! writing end for lives to come, the reading end so that a helper that was killed can be followed by another, with nothing
//! lost and no SIGPIPE for whoever prints meanwhile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use super::capture::SUBCOMMAND;
use crate::config::settings::{Output, OutputFile, Worker};
use crate::host::clock::Moment;
use crate::host::helper::Kept;
use crate::host::{Paths, helper, journald, process, spawn};
use crate::journal::Event;

/// What the pipe holds, where it may be so much: about a second of a worker that prints a lot.
const PIPE: usize = 1 << 20;

/// A helper that has lived this long can be started; one that ends sooner is started again at the next tick only.
const HELPER_LIVES: Duration = Duration::from_secs(1);

/// `degraded` speaks of it by this word.
const PART: &str = "output";

/// The files workers print to, and who writes them.
#[derive(Debug, Default)]
pub struct Outputs {
    files: Vec<Captured>,
    /// Workers of which it was told that the journal does not take them.
    without_journal: BTreeSet<Arc<str>>,
}

/// One file.
#[derive(Debug)]
struct Captured {
    file: OutputFile,
    reader: OwnedFd,
    /// `None` once nobody new is to print here: the helper then ends after the last who does.
    writer: Option<OwnedFd>,
    /// Between pipe and file; see [`super::capture`]. Kept here so that what is in it outlives the helper.
    spool: (OwnedFd, OwnedFd),
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    pid: i32,
    started: Moment,
    /// It was ended because another size or number holds from now on.
    replaced: bool,
}

/// One file, as it is handed over: descriptors by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    reader: RawFd,
    writer: Option<RawFd>,
    spool: (RawFd, RawFd),
    helper: Option<(i32, Moment)>,
}

/// What one life is started with.
#[derive(Debug, Default)]
pub struct Given {
    /// For standard output and error; inherited if there is none.
    pub descriptor: Option<OwnedFd>,
    /// `JOURNAL_STREAM`, for programs that then speak to the journal in its own words.
    pub journal_stream: Option<String>,
}

impl Outputs {
    /// What the next life of a worker prints to.
    ///
    /// # Errors
    /// There is no pipe or no helper to be had: the life must not begin, since nobody would empty what it fills.
    pub fn give(&mut self, worker: &Worker, paths: &Paths, now: Moment, events: &mut Vec<Event>) -> io::Result<Given> {
        match &worker.output {
            Output::Inherit => Ok(Given::default()),
            Output::Journald => Ok(self.journal(worker, paths, events)),
            Output::File(file) => {
                let descriptor = self.capture(file, now).map_err(|error| told(file, &error))?;
                Ok(Given { descriptor: Some(descriptor), journal_stream: None })
            }
        }
    }

    /// A worker is worth more than its words: without a journal it prints to where the daemon does.
    fn journal(&mut self, worker: &Worker, paths: &Paths, events: &mut Vec<Event>) -> Given {
        let connected = journald::connect(&paths.journal, &worker.name).and_then(|stream| Ok((journald::stream_of(&stream)?, stream)));
        match connected {
            Ok((name, stream)) => {
                self.without_journal.remove(&worker.name);
                Given { descriptor: Some(stream), journal_stream: Some(name) }
            }
            Err(error) => {
                if self.without_journal.insert(worker.name.clone()) {
                    let socket = paths.journal.display();
                    let detail = format!("{socket}: {error}; worker \"{}\" prints to where the daemon does", worker.name);
                    events.push(Event::Degraded { part: PART, detail });
                }
                Given::default()
            }
        }
    }

    fn capture(&mut self, file: &OutputFile, now: Moment) -> io::Result<OwnedFd> {
        let known = self.files.iter().position(|captured| captured.writer.is_some() && captured.file.path == file.path);
        let place = match known {
            Some(place) => place,
            None => {
                self.files.push(Captured::new(file.clone())?);
                self.files.len() - 1
            }
        };
        let captured = self.files.get_mut(place).ok_or(io::ErrorKind::NotFound)?;
        captured.start_helper(now)?;
        captured.writer.as_ref().ok_or(io::ErrorKind::BrokenPipe)?.try_clone()
    }

    /// For whom we become: the pipes, and the helpers that go on writing.
    pub fn hand_over<'a>(&'a self, kept: &mut Kept<'a>) -> Vec<HandedFile> {
        let handed = |captured: &'a Captured, kept: &mut Kept<'a>| HandedFile {
            path: captured.file.path.clone(),
            max_size: captured.file.max_size,
            keep: captured.file.keep,
            reader: kept.keep(captured.reader.as_fd()),
            writer: captured.writer.as_ref().map(|writer| kept.keep(writer.as_fd())),
            spool: (kept.keep(captured.spool.0.as_fd()), kept.keep(captured.spool.1.as_fd())),
            helper: captured.helper.as_ref().map(|helper| (helper.pid, helper.started)),
        };
        self.files.iter().map(|captured| handed(captured, kept)).collect()
    }

    /// Goes on with what was handed over. To be called before [`Outputs::apply`].
    pub fn inherit(&mut self, files: &[HandedFile]) {
        for handed in files {
            // All of them first: what is left over is closed.
            let (reader, writer) = (helper::claim(handed.reader), handed.writer.map(helper::claim));
            let spool = (helper::claim(handed.spool.0), helper::claim(handed.spool.1));
            let (Some(reader), (Some(out), Some(into))) = (reader, spool) else { continue };
            self.files.push(Captured {
                file: OutputFile { path: handed.path.clone(), max_size: handed.max_size, keep: handed.keep },
                reader,
                writer: writer.flatten(),
                spool: (out, into),
                helper: handed.helper.map(|(pid, started)| Helper { pid, started, replaced: false }),
            });
        }
    }

    /// Takes in changed settings: a file that no worker names any more is written until the last who prints to it has ended;
    /// another size or number holds from now on, and replaces no worker.
    pub fn apply(&mut self, workers: &[Arc<Worker>]) {
        for captured in self.files.iter_mut().filter(|captured| captured.writer.is_some()) {
            let wanted = workers.iter().filter_map(|worker| worker.output.file()).find(|file| file.path == captured.file.path);
            match wanted {
                None => captured.writer = None,
                Some(file) if *file != captured.file => {
                    captured.file = file.clone();
                    captured.replace_helper();
                }
                Some(_) => {}
            }
        }
        self.without_journal.retain(|name| workers.iter().any(|worker| worker.name == *name && worker.output == Output::Journald));
    }

    /// Looks for helpers among children that have ended. One that has done its work is forgotten, any other is followed.
    pub fn note_ended(&mut self, pids: &[i32], now: Moment, events: &mut Vec<Event>) {
        for captured in &mut self.files {
            let Some(ended) = captured.helper.take_if(|helper| pids.contains(&helper.pid)) else { continue };
            if captured.is_done() {
                continue;
            }
            // One that ends as soon as it is started is not started without end.
            let lived = ended.replaced || now.since(ended.started) >= HELPER_LIVES;
            let started = lived.then(|| captured.start_helper(now));
            let file = captured.file.path.display();
            match started {
                Some(Ok(())) if ended.replaced => {}
                Some(Ok(())) => {
                    let detail = format!("what writes {file} ended and was started again; nothing is lost");
                    events.push(Event::Degraded { part: PART, detail });
                }
                Some(Err(error)) => {
                    let detail = format!("what writes {file} ended and cannot be started again: {error}; each tick tries");
                    events.push(Event::Degraded { part: PART, detail });
                }
                None => {
                    let detail = format!("what writes {file} ended at once; the next tick starts it again");
                    events.push(Event::Degraded { part: PART, detail });
                }
            }
        }
        self.files.retain(|captured| captured.helper.is_some() || !captured.is_done());
    }

    /// Starts the helpers that are missing. A failure was told of when it began; those who print wait once the pipe is full.
    pub fn tend(&mut self, now: Moment) {
        for captured in self.files.iter_mut().filter(|captured| captured.helper.is_none()) {
            // The next tick tries again.
            let _ = captured.start_helper(now);
        }
    }

    /// Nobody new prints any more: every helper ends after the last process that still does.
    pub fn close(&mut self) {
        for captured in &mut self.files {
            captured.writer = None;
        }
    }

    /// The processes that write them.
    pub fn helpers(&self) -> impl Iterator<Item = i32> {
        self.files.iter().filter_map(|captured| captured.helper.as_ref()).map(|helper| helper.pid)
    }

    /// How many files are still being written.
    pub fn count(&self) -> usize {
        self.files.len()
    }
}

impl Captured {
    fn new(file: OutputFile) -> io::Result<Captured> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let spool = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Refused to a user who has many of that size. Then it holds less, and is emptied all the same.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
        Ok(Captured { file, reader, writer: Some(writer), spool, helper: None })
    }

    fn start_helper(&mut self, now: Moment) -> io::Result<()> {
        if self.helper.is_some() {
            return Ok(());
        }
        let descriptors = [self.reader.as_fd(), self.spool.0.as_fd(), self.spool.1.as_fd()];
        let (max_size, keep) = (self.file.max_size.to_string(), self.file.keep.to_string());
        let arguments: [&OsStr; 3] = [self.file.path.as_os_str(), max_size.as_ref(), keep.as_ref()];
        let pid = helper::spawn(SUBCOMMAND, &descriptors, &arguments)?;
        self.helper = Some(Helper { pid, started: now, replaced: false });
        Ok(())
    }

    /// Ends the helper, which is followed by another when it is reaped. It may be killed in the midst of anything.
    fn replace_helper(&mut self) {
        if let Some(helper) = self.helper.as_mut() {
            helper.replaced = true;
            // Our child and not reaped yet: the number is its own.
            process::kill_session(helper.pid);
        }
    }

    /// True when nobody is left who could print, and everything that was printed is written.
    fn is_done(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.reader, PollFlags::IN)];
        let asked = rustix::event::poll(&mut fds, Some(&at_once));
        let [pipe] = fds;
        let is_closed = pipe.revents().contains(PollFlags::HUP) && !pipe.revents().contains(PollFlags::IN);
        self.writer.is_none() && asked.is_ok() && is_closed && rustix::io::ioctl_fionread(&self.spool.0) == Ok(0)
    }
}

fn told(file: &OutputFile, error: &io::Error) -> io::Error {
    // The kind and number stay: what is short now is not short for ever.
    match error.raw_os_error() {
        Some(number) if spawn::is_shortage(error) => io::Error::from_raw_os_error(number),
        _ => io::Error::new(error.kind(), format!("its output cannot be written to {}: {error}", file.path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(path: &str) -> OutputFile {
        OutputFile { path: path.into(), max_size: 1_000_000, keep: 1 }
    }

    #[test]
    fn a_file_is_done_with_when_nobody_prints_and_all_is_written() {
        let mut captured = Captured::new(file("/x/log")).unwrap();
        assert!(!captured.is_done(), "another life may come");
        let worker = captured.writer.take().unwrap();
        assert!(!captured.is_done(), "somebody may print");
        let mut worker = std::fs::File::from(worker);
        worker.write_all(b"last words").unwrap();
        drop(worker);
        assert!(!captured.is_done(), "not written yet");
        let mut buffer = [0; 64];
        let bytes = rustix::io::read(&captured.reader, &mut buffer).unwrap();
        rustix::io::write(&captured.spool.1, &buffer[..bytes]).unwrap();
        assert!(!captured.is_done(), "in the spool still");
        rustix::io::read(&captured.spool.0, &mut buffer).unwrap();
        assert!(captured.is_done());
    }

    #[test]
    fn what_is_short_stays_known_as_such() {
        let short = told(&file("/x/log"), &io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(spawn::is_shortage(&short));
        let other = told(&file("/x/log"), &io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!((other.kind(), other.to_string().contains("/x/log")), (io::ErrorKind::PermissionDenied, true));
    }
}
