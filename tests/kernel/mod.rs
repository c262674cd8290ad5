//! A kernel that answers as a test wants: the layer of faults under `host`, outside of the product.
//!
//! A seccomp filter hands some system calls of a process (and of all it starts), or of one thread, to a thread of the
//! test: user notification, seccomp_unotify(2). That thread answers with an error, with a text of its own, not at all,
//! or lets the call go on. The binary under test is the one that ships, and what fails is the system call itself.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

/// The calls that are handed over, each under the name rules use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Open,
    Read,
    Write,
    Statfs,
    /// A new process; a new thread is none.
    Fork,
    Mkdir,
    Rmdir,
    Signal,
}

const CALLS: &[(libc::c_long, Call)] = &[
    (libc::SYS_openat, Call::Open),
    (libc::SYS_read, Call::Read),
    (libc::SYS_pread64, Call::Read),
    (libc::SYS_write, Call::Write),
    (libc::SYS_statfs, Call::Statfs),
    (libc::SYS_clone, Call::Fork),
    (libc::SYS_clone3, Call::Fork),
    (libc::SYS_mkdirat, Call::Mkdir),
    (libc::SYS_unlinkat, Call::Rmdir),
    (libc::SYS_kill, Call::Signal),
    (libc::SYS_pidfd_send_signal, Call::Signal),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, Call::Open),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, Call::Fork),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, Call::Fork),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, Call::Mkdir),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, Call::Rmdir),
];

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Fails(Errno),
    /// Fails every other time, as an interrupted call does.
    FailsOnceInAWhile(Errno),
    /// The file says this, whatever is in it.
    Says(&'static str),
    /// Never returns while the rule stands; then it goes on as if nothing had been.
    Hangs,
    /// The same, in the thread of this name alone.
    HangsIn(&'static str),
}

/// `call` on a path that ends in `path` meets `fault`. The first rule that fits counts.
#[derive(Clone, Debug)]
pub struct Rule {
    pub call: Call,
    pub path: String,
    pub fault: Fault,
}

/// A call that was handed over.
#[derive(Debug, Default)]
pub struct Asked {
    pub call: Option<Call>,
    /// Who asks: a thread's number.
    pub pid: i32,
    /// The file it is about; empty for what is about none.
    pub path: PathBuf,
    /// An open that may change the file.
    pub to_write: bool,
    /// What is to be written.
    pub data: Vec<u8>,
    /// Whom a signal is for.
    pub target: i32,
}

/// What a machine that is a folder does by itself; `None` lets the call go on.
pub type Reflex = Box<dyn Fn(&Asked) -> Option<Result<i64, Errno>> + Send>;

/// Answers until it is dropped. Whoever lives on under the filter after that gets `ENOSYS` for these calls.
pub struct Kernel {
    rules: Arc<Mutex<Vec<Rule>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kernel {
    /// Starts a command under the filter; `met` is told its pid before it runs.
    pub fn start(
        command: &mut Command,
        reflex: Option<Reflex>,
        met: impl FnOnce(i32) + Send + 'static,
    ) -> std::io::Result<(Child, Kernel)> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let theirs_fd = theirs.as_raw_fd();
        let program = program();
        // SAFETY: between fork and exec only system calls are made, on memory that was prepared before.
        unsafe {
            command.pre_exec(move || {
                let listener = install(&program)?;
                let message = [std::process::id().cast_signed(), listener];
                let mut answer = 0_u8;
                // send and recv are not under the filter; read and write are by now.
                let sent = libc::send(theirs_fd, message.as_ptr().cast(), size_of_val(&message), 0);
                if sent < 0 || libc::recv(theirs_fd, (&raw mut answer).cast(), 1, 0) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let kernel = Kernel::new(
            move || {
                let mut message = [0_u8; 8];
                ours.read_exact(&mut message).ok()?;
                let number = |at: usize| i32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
                met(number(0));
                let process = rustix::process::pidfd_open(Pid::from_raw(number(0))?, PidfdFlags::empty()).ok()?;
                let listener = rustix::process::pidfd_getfd(process, number(4), PidfdGetfdFlags::empty()).ok()?;
                rustix::net::send(&ours, &[1], rustix::net::SendFlags::empty()).ok()?;
                Some(listener)
            },
            reflex,
        );
        let child = command.spawn();
        // Ours is the other end; a child that failed before it wrote must not leave the thread waiting.
        drop(theirs);
        child.map(|child| (child, kernel))
    }

    /// Runs `work` in a thread under the filter. `None` where the kernel does not grant one.
    pub fn around<T: Send + 'static>(work: impl FnOnce(&Rules) -> T + Send + 'static) -> Option<T> {
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let kernel = Kernel::new(
            move || {
                let listener = told.recv().ok();
                // Only now is anybody there to answer.
                drop(go);
                listener
            },
            None,
        );
        let rules = Rules(kernel.rules.clone());
        let worker = std::thread::spawn(move || {
            let listener = install(&program()).ok()?;
            // SAFETY: the descriptor was made for us just now.
            tell.send(unsafe { OwnedFd::from_raw_fd(listener) }).ok()?;
            let _ = gone.recv();
            Some(work(&rules))
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn new(listener: impl FnOnce() -> Option<OwnedFd> + Send + 'static, reflex: Option<Reflex>) -> Kernel {
        let (rules, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let desk = (rules.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let Some(listener) = listener() else { return };
            Desk { listener, rules: desk.0, ends: desk.1, reflex, turn: false, said: HashSet::new(), hanging: Vec::new() }.serve();
        });
        Kernel { rules, ends, thread: Some(thread) }
    }

    pub fn rules(&self) -> Rules {
        Rules(self.rules.clone())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The rules of one kernel, to be changed while it runs.
pub struct Rules(Arc<Mutex<Vec<Rule>>>);

impl Rules {
    pub fn set(&self, rules: impl IntoIterator<Item = (Call, &'static str, Fault)>) {
        *self.0.lock().expect("no rule panics") =
            rules.into_iter().map(|(call, path, fault)| Rule { call, path: path.to_owned(), fault }).collect();
    }

    pub fn clear(&self) {
        self.set([]);
    }
}

/// The thread that answers.
struct Desk {
    listener: OwnedFd,
    rules: Arc<Mutex<Vec<Rule>>>,
    ends: Arc<AtomicBool>,
    reflex: Option<Reflex>,
    turn: bool,
    /// Whoever has read our text from a descriptor, and is next told that this was all.
    said: HashSet<(u32, u64)>,
    hanging: Vec<libc::seccomp_notif>,
}

const SHORT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

impl Desk {
    fn serve(mut self) {
        while !self.ends.load(Ordering::Relaxed) {
            for notif in std::mem::take(&mut self.hanging) {
                self.answer(notif);
            }
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            if !rustix::event::poll(&mut fds, Some(&SHORT)).is_ok_and(|ready| ready > 0) {
                continue;
            }
            if fds[0].revents().contains(PollFlags::HUP) {
                return;
            }
            // SAFETY: plain data for which all zeros is the value the kernel asks for.
            let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer is to a live local of the type this call fills.
            if unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notif) } == 0 {
                self.answer(notif);
            }
        }
    }

    fn answer(&mut self, notif: libc::seccomp_notif) {
        let outcome = self.decide(&notif);
        if matches!(outcome, Outcome::Wait) {
            self.hanging.push(notif);
            return;
        }
        let (val, error, flags) = match outcome {
            Outcome::GoOn | Outcome::Wait => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Outcome::Is(val) => (val, 0, 0),
            Outcome::Fails(errno) => (0, -errno.raw_os_error(), 0),
        };
        let response = libc::seccomp_notif_resp { id: notif.id, val, error, flags };
        // Fails when the caller has gone or was interrupted: then nobody waits for the answer.
        // SAFETY: the pointer is to a live local of the type this call reads.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    }

    fn decide(&mut self, notif: &libc::seccomp_notif) -> Outcome {
        let Some(asked) = asked(notif, self.reflex.is_some()) else { return Outcome::GoOn };
        let path = asked.path.to_string_lossy().into_owned();
        let fault = {
            let rules = self.rules.lock().expect("no rule panics");
            let fits = |rule: &&Rule| Some(rule.call) == asked.call && path.ends_with(&rule.path) && is_in(&rule.fault, asked.pid);
            rules.iter().find(fits).map(|rule| rule.fault.clone())
        };
        match fault {
            None => match self.reflex.as_ref().and_then(|reflex| reflex(&asked)) {
                None => Outcome::GoOn,
                Some(Ok(val)) => Outcome::Is(val),
                Some(Err(errno)) => Outcome::Fails(errno),
            },
            Some(Fault::Fails(errno)) => Outcome::Fails(errno),
            Some(Fault::FailsOnceInAWhile(errno)) => {
                self.turn = !self.turn;
                if self.turn { Outcome::Fails(errno) } else { Outcome::GoOn }
            }
            Some(Fault::Hangs | Fault::HangsIn(_)) => Outcome::Wait,
            Some(Fault::Says(text)) => self.say(notif, text),
        }
    }

    /// Puts the text, from where it is read, into the caller's memory.
    fn say(&mut self, notif: &libc::seccomp_notif, text: &str) -> Outcome {
        let [fd, buffer, length, offset, ..] = notif.data.args;
        let offset = if i64::from(notif.data.nr) == libc::SYS_pread64 {
            usize::try_from(offset).unwrap_or(usize::MAX)
        } else if !self.said.insert((notif.pid, fd)) {
            // Read once already from this descriptor: this was all.
            self.said.remove(&(notif.pid, fd));
            return Outcome::Is(0);
        } else {
            0
        };
        let rest = text.as_bytes().get(offset..).unwrap_or_default();
        let part = &rest[..rest.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        if part.is_empty() {
            return Outcome::Is(0);
        }
        let from = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        let to = libc::iovec { iov_base: buffer as *mut libc::c_void, iov_len: part.len() };
        // SAFETY: `from` describes a live slice that is only read; `to` is the other process's to check.
        let written = unsafe { libc::process_vm_writev(notif.pid.cast_signed(), &raw const from, 1, &raw const to, 1, 0) };
        if written < 0 { Outcome::Fails(Errno::FAULT) } else { Outcome::Is(written as i64) }
    }
}

/// Whether a fault is for this thread.
fn is_in(fault: &Fault, thread: i32) -> bool {
    match fault {
        Fault::HangsIn(name) => fs::read_to_string(format!("/proc/{thread}/comm")).is_ok_and(|comm| comm.trim() == *name),
        _ => true,
    }
}

enum Outcome {
    GoOn,
    Is(i64),
    Fails(Errno),
    Wait,
}

/// What the call is about. `None` for one that concerns nobody.
fn asked(notif: &libc::seccomp_notif, with_data: bool) -> Option<Asked> {
    let args = &notif.data.args;
    let number = libc::c_long::from(notif.data.nr);
    let call = CALLS.iter().find(|(each, _)| *each == number)?.1;
    let pid = notif.pid.cast_signed();
    let mut asked = Asked { call: Some(call), pid, ..Asked::default() };
    let descriptor = |fd: u64| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    match call {
        Call::Open | Call::Mkdir | Call::Rmdir | Call::Statfs => {
            let is_relative_to = [libc::SYS_openat, libc::SYS_mkdirat, libc::SYS_unlinkat].contains(&number);
            let path = text_of(pid, args[usize::from(is_relative_to)]);
            let stands_alone = !is_relative_to || path.is_absolute() || args[0] as i32 == libc::AT_FDCWD;
            asked.path = if stands_alone { path } else { descriptor(args[0]).join(path) };
            let changing = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
            asked.to_write = call == Call::Open && args[1 + usize::from(is_relative_to)] as i32 & changing != 0;
        }
        Call::Read => asked.path = descriptor(args[0]),
        Call::Write => {
            asked.path = descriptor(args[0]);
            if with_data {
                asked.data = memory(pid, args[1], usize::try_from(args[2]).unwrap_or(0).min(4096));
            }
        }
        Call::Signal if number == libc::SYS_kill => asked.target = args[0] as i32,
        Call::Signal => {
            let about = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", args[0])).unwrap_or_default();
            let named = about.lines().find_map(|line| line.strip_prefix("Pid:"));
            asked.target = named.and_then(|named| named.trim().parse().ok()).unwrap_or_default();
        }
        Call::Fork => {
            let flags = match number {
                libc::SYS_clone => args[0],
                libc::SYS_clone3 => memory(pid, args[0], 8).try_into().map(u64::from_ne_bytes).unwrap_or(0),
                _ => 0,
            };
            if flags & libc::CLONE_THREAD as u64 != 0 {
                return None;
            }
        }
    }
    Some(asked)
}

/// Bytes of another process, as many as can be read.
fn memory(pid: i32, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; length];
    let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let from = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    // SAFETY: `to` describes a live buffer of that length; `from` is the other process's to check.
    let read = unsafe { libc::process_vm_readv(pid, &raw const to, 1, &raw const from, 1, 0) };
    bytes.truncate(usize::try_from(read).unwrap_or(0));
    bytes
}

/// The text that ends in a zero at this address. Read up to the end of its page first: what follows may not be there.
fn text_of(pid: i32, address: u64) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let in_page = 4096 - (address as usize & 4095);
    let mut bytes = memory(pid, address, in_page);
    if !bytes.contains(&0) {
        bytes.extend(memory(pid, address + in_page as u64, 4096));
    }
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Hands over [`CALLS`], lets everything else through.
fn program() -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (at, (number, _)) in CALLS.iter().enumerate() {
        // Over the rest of the comparisons and the statement that lets through.
        let jump = u8::try_from(CALLS.len() - at).expect("a short list");
        let compare = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(libc::sock_filter { code: compare, jt: jump, jf: 0, k: u32::try_from(*number).expect("a small number") });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF));
    program
}

/// Puts the calling thread under the filter, and whatever it starts. Only system calls: also used between fork and exec.
fn install(program: &[libc::sock_filter]) -> std::io::Result<i32> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives through the calls, which only read it.
    unsafe {
        // Without the privilege, what is started here must not gain any: the kernel's condition.
        if libc::geteuid() != 0 && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let listener =
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, &raw const filter);
        if listener < 0 { Err(std::io::Error::last_os_error()) } else { Ok(listener as i32) }
    }
}
