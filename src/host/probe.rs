//! Tries things out, each on a child of our own or a file made for it, and takes them back: what works here is found by doing
//! it. Never called by the daemon; `doctor` asks.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions};

use super::clock::{self, Moment};
use super::filesystem::{self, Space};
use super::folder::{Folder, GroupFile};
use super::freezer::Freezer;
use super::group::Group;
use super::process::{self, Delivery, Priority, Process};
use super::{Paths, cgroupfs, cputime, scan};
use crate::config::settings::Signal;

/// What is waited for happens within microseconds on a machine that is well.
const PATIENCE: Duration = Duration::from_secs(2);
/// A subject that everybody forgot ends by itself after this many seconds.
const LIFE: u32 = 30;

/// What a subject does with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    Idle,
    /// Uses a whole processor.
    Busy,
}

/// A child that is there to have things done to it. It dies with us, and with this handle.
#[derive(Debug)]
pub struct Subject {
    process: Process,
    ended: bool,
}

impl Subject {
    pub fn start(paths: &Paths, habit: Habit) -> io::Result<Subject> {
        let parent = rustix::process::getpid();
        // SAFETY: the child calls only async-signal-safe functions and never returns.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => return Err(io::Error::last_os_error()),
            0 => live(parent, habit),
            _ => {}
        }
        match Process::open_child(paths, pid) {
            Ok(Some(process)) => Ok(Subject { process, ended: false }),
            Ok(None) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Err(error) => {
                end(pid);
                Err(error)
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The CPU time it uses in so long.
    pub fn cpu_in(&self, span: Duration) -> io::Result<Duration> {
        let before = cputime::of_process(self.pid())?;
        pause(span);
        Ok(cputime::of_process(self.pid())?.saturating_sub(before))
    }

    /// Puts it into a group.
    pub fn enter(&self, group: &Group) -> io::Result<()> {
        let pid = self.pid().to_string();
        let entrances = group.entrances()?;
        for entrance in entrances.into_file.into_iter().chain(entrances.files) {
            File::from(entrance).write_all(pid.as_bytes())?;
        }
        Ok(())
    }

    fn state(&self, paths: &Paths) -> io::Result<u8> {
        Ok(scan::process(paths, self.pid(), &mut Vec::new())?.state)
    }

    /// Sends the empty signal by its descriptor.
    pub fn reach(&self) -> io::Result<()> {
        match self.process.signal(Signal(0))? {
            Delivery::Delivered => Ok(()),
            Delivery::Gone => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Stops it, sees it stopped, lets it go on, sees it going on. Gives how long the stop took to be seen.
    pub fn stop_and_continue(&self, paths: &Paths) -> io::Result<Duration> {
        let begun = Moment::now();
        self.process.signal(Signal(libc::SIGSTOP))?;
        let stopped = until("it was not seen stopped", || Ok(self.state(paths)? == b'T'));
        let took = Moment::now().since(begun);
        self.process.signal(Signal(libc::SIGCONT))?;
        stopped?;
        until("it was not seen going on", || Ok(self.state(paths)? != b'T'))?;
        Ok(took)
    }

    /// Makes its priority worse and takes that back.
    pub fn nice_and_back(&self) -> io::Result<()> {
        let before = self.process.priority()?;
        self.process.set_priority(Priority { nice: before.nice + 1, ..before })?;
        self.process.set_priority(before)
    }

    /// Lets it run only when nothing else wants to, and makes it an ordinary process again.
    pub fn idle_and_back(&self) -> io::Result<()> {
        let before = self.process.priority()?;
        self.process.set_priority(Priority { policy: Priority::IDLE.policy, ..before })?;
        self.process.set_priority(before)
    }

    /// Makes it a less likely victim of the OOM killer than it is.
    pub fn lower_oom_score(&self, paths: &Paths) -> io::Result<()> {
        let file = paths.proc.join(self.pid().to_string()).join("oom_score_adj");
        let before: i32 = read_value(&file)?.parse().map_err(io::Error::other)?;
        File::options().write(true).open(&file)?.write_all((before - 1).max(-1000).to_string().as_bytes())
    }

    /// Waits for its end, which somebody else has brought about.
    pub fn has_ended(&mut self) -> io::Result<()> {
        let pid = Pid::from_raw(self.pid());
        until("it goes on living", || match rustix::process::waitpid(pid, WaitOptions::NOHANG) {
            Ok(None) => Ok(false),
            Ok(Some(_)) | Err(rustix::io::Errno::CHILD) => Ok(true),
            Err(error) => Err(error.into()),
        })?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if !self.ended {
            end(self.pid());
        }
    }
}

/// The life of a subject.
fn live(parent: Pid, habit: Habit) -> ! {
    // SAFETY: plain system calls without pointers.
    unsafe {
        libc::alarm(LIFE);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Whoever began us may have died before the line above.
        if libc::getppid() != parent.as_raw_nonzero().get() {
            libc::_exit(1);
        }
    }
    loop {
        match habit {
            // SAFETY: a system call without arguments.
            Habit::Idle => unsafe {
                libc::pause();
            },
            Habit::Busy => std::hint::spin_loop(),
        }
    }
}

/// Kills a child of ours that has not been reaped, and reaps it.
fn end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    // One that is gone is what is wanted.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
}

/// Looks again and again until it is so.
fn until(otherwise: &str, is_so: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    if clock::until(PATIENCE, is_so)? { Ok(()) } else { Err(io::Error::new(io::ErrorKind::TimedOut, otherwise)) }
}

fn pause(span: Duration) {
    let span =
        rustix::thread::Timespec { tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(span.subsec_nanos()) };
    // An early end through a signal only makes us look sooner.
    let _ = rustix::thread::nanosleep(&span);
}

/// What a quota did to somebody who wants a whole processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Cores it was given and cores it used.
    pub allowed: f64,
    pub used: f64,
    /// The kernel says that it held it back.
    pub throttled: bool,
}

/// Holds a busy subject in `group` to a tenth of a processor for a moment, and lets it go. `None` where no quota can be set.
pub fn quota(group: &Group, subject: &Subject) -> io::Result<Option<Held>> {
    const ALLOWED: f64 = 0.1;
    const SPAN: Duration = Duration::from_millis(300);
    let Some(stat) = group.cpu_stat() else { return Ok(None) };
    let throttled = || cgroupfs::value_of(stat.read().unwrap_or_default().as_bytes(), "nr_throttled").unwrap_or(0);
    let before = throttled();
    let held = (|| {
        write_all(&group.cpu_writes(Some(ALLOWED)))?;
        subject.cpu_in(SPAN)
    })();
    // Taken back whatever became of it.
    let freed = write_all(&group.cpu_writes(None));
    let used = held?.as_secs_f64() / SPAN.as_secs_f64();
    freed?;
    Ok(Some(Held { allowed: ALLOWED, used, throttled: throttled() > before }))
}

fn write_all(writes: &[(GroupFile, String)]) -> io::Result<()> {
    writes.iter().try_for_each(|(file, value)| file.write(value))
}

/// Freezes everybody in a group, sees it frozen, and thaws it.
pub fn freeze_and_thaw(folder: &Arc<Folder>) -> io::Result<()> {
    let freezer = Freezer::open(folder)?;
    let result = freezer.freeze().and_then(|()| until("it was not seen frozen", || freezer.is_frozen()));
    freezer.thaw()?;
    result
}

/// Asks the kernel to tell of pressure by itself, for a window of so long; the question ends with this call.
pub fn pressure_trigger(file: &Path, window: Duration) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    file.write_all(format!("some {} {}\0", window.as_micros() / 10, window.as_micros()).as_bytes())
}

/// Keeps our own memory from being paged out, and lets it be again.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: both calls take no pointers; nothing is unmapped by them.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT) };
    let result = if locked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: as above.
    unsafe { libc::munlockall() };
    result
}

/// Becomes the parent of orphans, and stops being it unless it was before.
pub fn adopt_orphans() -> io::Result<()> {
    let before = rustix::process::child_subreaper()?;
    process::become_subreaper()?;
    Ok(rustix::process::set_child_subreaper(before)?)
}

/// There while systemd is the init of the machine.
const SYSTEMD: &str = "/run/systemd/system";

/// True on a machine whose init is systemd.
pub fn is_run_by_systemd() -> bool {
    Path::new(SYSTEMD).is_dir()
}

/// True when we could send a signal to a process; none is sent.
pub fn may_signal(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// True when a process is known to live in other control groups than we.
pub fn is_grouped_apart(paths: &Paths, pid: i32) -> bool {
    let groups = |of: Option<i32>| fs::read(paths.of_process(of).join("cgroup")).ok();
    groups(None).zip(groups(Some(pid))).is_some_and(|(ours, theirs)| ours != theirs)
}

/// What a program says on its standard output, if it has ended well within so long; else it is killed.
#[expect(clippy::disallowed_methods, reason = "the doctor reaps its own children; the daemon never calls this")]
pub fn ask(program: &str, arguments: &[String], within: Duration) -> io::Result<String> {
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (answer, answered) = mpsc::channel();
    let output = child.stdout.take();
    let reader = std::thread::Builder::new().name("answer".to_owned()).spawn(move || {
        let mut text = String::new();
        let read = output.map_or(Ok(0), |output| output.take(LONGEST_ANSWER).read_to_string(&mut text));
        // Nobody listens any more when it took too long.
        let _ = answer.send(read.map(|_| text));
    });
    let told = reader.and_then(|_| {
        answered
            .recv_timeout(within)
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}"))))
    });
    // Who has closed its output may still live on.
    let is_late = told.is_err();
    if is_late {
        child.kill()?;
    }
    let status = child.wait()?;
    match told {
        Ok(text) if status.success() => Ok(text),
        Ok(_) => Err(io::Error::other(status.to_string())),
        Err(error) => Err(error),
    }
}

/// Nobody has more to say.
const LONGEST_ANSWER: u64 = 64 << 10;

/// Writes a file in `folder`, makes sure that it is on the disk, and removes it.
pub fn write_file(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".plimsoll-doctor-{}", rustix::process::getpid().as_raw_nonzero()));
    let written = (|| {
        let mut file = File::options().create_new(true).write(true).open(&path)?;
        file.write_all(&[0x55; 4096])?;
        file.sync_all()
    })();
    match (written, fs::remove_file(&path)) {
        (Err(error), _) => Err(error),
        (Ok(()), removed) => removed,
    }
}

/// Asks a file system for its room; `None` when it does not answer in time. The question then hangs in a thread of its own, which
/// ends with the program.
pub fn space_within(path: &Path, within: Duration) -> Option<io::Result<Space>> {
    let (answer, answered) = mpsc::channel();
    let path = path.to_path_buf();
    let asked = std::thread::Builder::new().name("statvfs".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = answer.send(filesystem::space(&path).map_err(io::Error::from));
    });
    match asked {
        Ok(_) => answered.recv_timeout(within).ok(),
        Err(error) => Some(Err(error)),
    }
}

/// Listens on an address for an instant.
pub fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// Reaches a datagram socket without sending anything.
pub fn reach_datagram(path: &Path) -> io::Result<()> {
    UnixDatagram::unbound()?.connect(path)
}

/// What a file of the kernel says, without the newline at its end.
pub fn read_value(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim_end().to_owned())
}

/// The name of a process, as the kernel shortens it.
pub fn name_of(paths: &Paths, pid: i32) -> Option<String> {
    read_value(&paths.proc.join(pid.to_string()).join("comm")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_waited_for_and_no_longer() {
        let ask = |script: &str| ask("sh", &["-c".to_owned(), script.to_owned()], Duration::from_millis(500));
        assert_eq!(ask("echo yes").unwrap(), "yes\n");
        assert!(ask("exit 3").unwrap_err().to_string().contains('3'));
        assert_eq!(ask("exec sleep 1000").unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(super::ask("no-such-program", &[], Duration::from_secs(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_process_is_judged_by_whose_it_is_and_where_it_lives() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert!(may_signal(own) && !may_signal(i32::MAX));
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        for (who, group) in [("self", "0::/\n"), ("7", "0::/\n"), ("8", "0::/../other\n")] {
            fs::create_dir_all(paths.proc.join(who)).unwrap();
            fs::write(paths.proc.join(who).join("cgroup"), group).unwrap();
        }
        assert_eq!([7, 8, 9].map(|pid| is_grouped_apart(&paths, pid)), [false, true, false]);
    }

    #[test]
    fn a_subject_can_be_stopped_slowed_and_ended() {
        let paths = Paths::default();
        let subject = Subject::start(&paths, Habit::Idle).unwrap();
        subject.reach().unwrap();
        subject.stop_and_continue(&paths).unwrap();
        let pid = subject.pid();
        drop(subject);
        assert!(!paths.proc.join(pid.to_string()).exists(), "it is gone and reaped");

        let busy = Subject::start(&paths, Habit::Busy).unwrap();
        until("it uses the processor", || Ok(busy.cpu_in(Duration::from_millis(20))? > Duration::ZERO)).unwrap();
    }

    #[test]
    fn the_end_of_a_subject_is_seen() {
        let mut subject = Subject::start(&Paths::default(), Habit::Idle).unwrap();
        subject.process.signal(Signal(libc::SIGKILL)).unwrap();
        subject.has_ended().unwrap();
    }

    #[test]
    fn a_file_is_written_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        write_file(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(write_file(Path::new("/no/such/folder")).is_err());
        assert!(space_within(Path::new("/"), PATIENCE).unwrap().unwrap().size > 0);
        assert!(space_within(Path::new("/no/such/folder"), PATIENCE).unwrap().is_err());
    }
}
