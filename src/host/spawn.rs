//! Starting a process: everything that is set between fork and exec, each step with an error that names it.
//!
//! Our own and not the standard library's, for three things that has no place for: the process begins inside its control
//! group (`CLONE_INTO_CGROUP`; moving a process there later holds up every fork of the machine for about 7 ms), `LISTEN_PID` is a
//! number that is known only after the fork, and no signal reaches the child before it has the default dispositions
//! again: until then ours would run in it and write to our own queue.

use std::ffi::{CString, OsStr, OsString, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource};

use super::accounts::Account;
use super::paths::Paths;
use super::{ksm, scheduling};
use crate::config::settings::{IoPriority, ProcessSettings, Rlimit, Signal};

/// The first descriptor a worker finds its sockets at, as `sd_listen_fds(3)` says.
pub const FIRST_SOCKET: RawFd = 3;

/// What a worker is started with.
#[derive(Debug)]
pub struct Launch {
    /// Program and arguments; a program without a slash is looked for in `PATH` of `env`.
    pub command: Vec<String>,
    pub directory: Option<PathBuf>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    pub user: Option<Account>,
    pub groups: Entrances,
    /// Raising it needs no privilege; one that cannot be set is left as it is.
    pub oom_score_adj: Option<i32>,
    /// The (soft, hard) limit on descriptors it gets back (the daemon raises its own).
    pub descriptors: Option<(u64, u64)>,
    /// The nice value it begins with, if the daemon's own is better.
    pub nice: i32,
    /// What the settings say beyond that.
    pub settings: ProcessSettings,
    /// Standard input is inherited (`run -- COMMAND`) or `/dev/null`.
    pub inherit_stdin: bool,
    /// Standard output and error; the daemon's own unless given.
    pub output: Option<OwnedFd>,
    /// Listening sockets, passed on as descriptors from 3 with `LISTEN_FDS` and `LISTEN_PID`.
    pub sockets: Vec<OwnedFd>,
    /// Passed on behind the sockets, and not spoken of: held for as long as the process lives.
    pub kept: Vec<OwnedFd>,
    /// What the kernel sends it when the daemon dies. `SIGCONT`: should it be held stopped then, it goes on.
    pub on_daemon_death: Signal,
}

/// How a process gets into its groups.
#[derive(Debug, Default)]
pub struct Entrances {
    /// A folder of the v2 tree, where the process may begin in it.
    pub into: Option<OwnedFd>,
    /// The file of the same group, for kernels that do not know how to.
    pub into_file: Option<OwnedFd>,
    /// Files of the others, each written "0" to.
    pub files: Vec<OwnedFd>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{doing}{}: {error}", .what.as_ref().map(|what| format!(" {what}")).unwrap_or_default())]
pub struct SpawnError {
    /// "could not …".
    pub doing: &'static str,
    pub what: Option<String>,
    #[source]
    pub error: io::Error,
}

impl SpawnError {
    fn new(doing: &'static str, error: impl Into<io::Error>) -> SpawnError {
        SpawnError { doing, what: None, error: error.into() }
    }

    pub fn is_shortage(&self) -> bool {
        is_shortage(&self.error)
    }

    /// The shell's convention: 127 for a command that is not there, 126 for one that cannot be executed.
    pub fn shell_code(&self) -> i32 {
        if self.error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// True when something could not be done for want of what comes back: memory, a place in the table of processes, a descriptor.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE))
}

/// What the child does before it is the program. The number of the one that failed goes to the parent.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Session,
    Group,
    Descriptors,
    Limits,
    Nice,
    Io,
    Affinity,
    User,
    Directory,
    Parent,
    Exec,
}

const STEPS: [&str; 11] = [
    "could not begin a session",
    "could not enter its control group",
    "could not arrange its descriptors",
    "could not set its rlimit",
    "could not set its nice value",
    "could not set its I/O priority",
    "could not set its affinity",
    "could not become the user",
    "could not enter the directory",
    "the daemon died meanwhile",
    "could not execute",
];

/// All that the child needs, made before the fork: it may not allocate.
struct Plan {
    parent: Pid,
    program: CString,
    arguments: Strings,
    /// For a script without a first line that says whose it is, as `execvp` does it.
    shell: Strings,
    environment: Strings,
    /// Where in the environment the pid is to be written.
    listen_pid: Option<usize>,
    directory: Option<CString>,
    user: Option<Account>,
    groups: Vec<RawFd>,
    oom_score_adj: Option<CString>,
    limits: Vec<(Resource, rustix::process::Rlimit)>,
    /// Which of them is being set, for the parent to be told.
    limit: u8,
    nice: i32,
    own_nice: Option<i32>,
    io_priority: Option<libc::c_int>,
    affinity: Option<libc::cpu_set_t>,
    merge_pages: bool,
    umask: Option<u32>,
    stdin: Option<RawFd>,
    output: Option<RawFd>,
    /// Sockets, then what is kept.
    passed: Vec<RawFd>,
    death_signal: libc::c_int,
}

/// A list of strings as `execve` takes it.
struct Strings {
    /// Each ends in NUL. Kept because `pointers` point into them.
    strings: Vec<Vec<u8>>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    fn new(strings: Vec<Vec<u8>>) -> Strings {
        let pointers = strings.iter().map(|string| string.as_ptr().cast()).chain([std::ptr::null()]).collect();
        Strings { strings, pointers }
    }

    fn of<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Result<Strings, SpawnError> {
        Ok(Strings::new(words.into_iter().map(terminated).collect::<Result<_, _>>()?))
    }
}

fn terminated(word: &OsStr) -> Result<Vec<u8>, SpawnError> {
    let nul = |_| SpawnError::new("could not pass on a word", io::Error::new(io::ErrorKind::InvalidInput, "it holds a NUL byte"));
    CString::new(word.as_bytes()).map(CString::into_bytes_with_nul).map_err(nul)
}

/// With room for any pid of an `i32` and a NUL.
const LISTEN_PID: &[u8] = b"LISTEN_PID=\0\0\0\0\0\0\0\0\0\0\0";
const LISTEN_PID_DIGITS: usize = 11;

/// Starts a process in its own session, in its groups, with a parent-death signal. Returns its pid; it is our child.
///
/// The parent-death signal follows the *thread* that spawned: call this from the one thread that lives as long as the
/// daemon. Returns when the program is executed, or has failed to be.
pub fn spawn(launch: &Launch) -> Result<i32, SpawnError> {
    let program = launch
        .command
        .first()
        .ok_or_else(|| SpawnError::new("could not start", io::Error::new(io::ErrorKind::InvalidInput, "the command is empty")))?;
    let path = launch.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let resolved = resolve_program(program, path, launch.directory.as_deref())
        .map_err(|error| SpawnError::new("could not find its program", error))?;
    let null = if launch.inherit_stdin {
        None
    } else {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        Some(
            rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
                .map_err(|error| SpawnError::new("could not open /dev/null", error))?,
        )
    };
    let mut plan = plan(launch, &resolved, null.as_ref())?;
    let (told, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| SpawnError::new("could not make a pipe", error))?;
    let pid = {
        let _blocked = BlockedSignals::all().map_err(|error| SpawnError::new("could not block signals", error))?;
        fork(&launch.groups, &mut plan, &tell).map_err(|error| SpawnError::new("could not fork", error))?
    };
    drop(tell);
    let mut word = [0_u8; 6];
    let length = loop {
        match rustix::io::read(&told, &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(length) => break length,
            Err(_) => break 0,
        }
    };
    // Closed without a word: the program runs.
    let [step, limit, errno @ ..] = word;
    if length < word.len() {
        return Ok(pid);
    }
    // It ends by itself and is ours: gone before its number is told to anybody.
    reap(pid);
    let mut error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
    let as_user = || launch.user.as_ref().map(|user| format!(" as user {}", user.name)).unwrap_or_default();
    let what = match step {
        step if step == Step::Exec as u8 => {
            if let Some(interpreter) = missing_interpreter(&resolved, &error) {
                error = io::Error::new(io::ErrorKind::NotFound, format!("its first line asks for {interpreter}, which is not there"));
            }
            Some(format!("{}{}", resolved.display(), as_user()))
        }
        step if step == Step::Directory as u8 => launch.directory.as_ref().map(|directory| directory.display().to_string()),
        step if step == Step::User as u8 => launch.user.as_ref().map(|user| user.name.clone()),
        step if step == Step::Limits as u8 => {
            // The limit on descriptors that the daemon gives back comes before those of the settings.
            let place = usize::from(limit).checked_sub(usize::from(launch.descriptors.is_some()));
            let set = place.and_then(|place| launch.settings.rlimits.get(place));
            Some(set.map_or_else(|| "nofile".to_owned(), |(which, amount)| limit_in_words(*which, *amount)))
        }
        step if step == Step::Nice as u8 => launch.settings.nice.map(|nice| nice.to_string()),
        step if step == Step::Affinity as u8 => {
            if error.raw_os_error() == Some(libc::EINVAL) {
                error = io::Error::new(io::ErrorKind::InvalidInput, "none of these processors is there for the daemon");
            }
            launch.settings.affinity.as_deref().map(|numbers| {
                let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
                format!("to {}", numbers.join(","))
            })
        }
        _ => None,
    };
    Err(SpawnError { doing: STEPS.get(usize::from(step)).copied().unwrap_or("could not start"), what, error })
}

/// As the settings have it.
fn limit_in_words(which: Rlimit, amount: Option<u64>) -> String {
    let name = match which {
        Rlimit::AddressSpace => "address_space",
        Rlimit::Core => "core",
        Rlimit::Cpu => "cpu",
        Rlimit::Data => "data",
        Rlimit::Fsize => "fsize",
        Rlimit::Memlock => "memlock",
        Rlimit::Nofile => "nofile",
        Rlimit::Nproc => "nproc",
        Rlimit::Stack => "stack",
    };
    format!("{name} to {}", amount.map_or_else(|| "unlimited".to_owned(), |amount| amount.to_string()))
}

/// What the first line of a script names, when it is that which is not there, and not the script.
fn missing_interpreter(program: &Path, error: &io::Error) -> Option<String> {
    if error.kind() != io::ErrorKind::NotFound {
        return None;
    }
    let mut first = [0_u8; 256];
    let length = io::Read::read(&mut std::fs::File::open(program).ok()?, &mut first).ok()?;
    let line = first.get(..length)?.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    String::from_utf8_lossy(line).split_whitespace().next().map(str::to_owned)
}

fn plan(launch: &Launch, resolved: &Path, null: Option<&OwnedFd>) -> Result<Plan, SpawnError> {
    let settings = &launch.settings;
    let c_string = |text: &OsStr| terminated(text).map(|bytes| CString::from_vec_with_nul(bytes).unwrap_or_default());
    let mut environment: Vec<Vec<u8>> = Vec::with_capacity(launch.env.len() + 3);
    for (name, value) in &launch.env {
        let mut entry = name.clone();
        entry.push("=");
        entry.push(value);
        environment.push(terminated(&entry)?);
    }
    let mut listen_pid = None;
    if !launch.sockets.is_empty() {
        environment.push(format!("LISTEN_FDS={}\0", launch.sockets.len()).into_bytes());
        listen_pid = Some(environment.len());
        environment.push(LISTEN_PID.to_vec());
    }
    let mut limits: Vec<(Resource, rustix::process::Rlimit)> = Vec::new();
    if let Some((soft, hard)) = launch.descriptors {
        limits.push((Resource::Nofile, rustix::process::Rlimit { current: Some(soft), maximum: Some(hard) }));
    }
    limits.extend(
        settings.rlimits.iter().map(|(which, amount)| (resource(*which), rustix::process::Rlimit { current: *amount, maximum: *amount })),
    );
    let arguments = || launch.command.iter().skip(1).map(OsStr::new);
    let program = launch.command.iter().take(1).map(OsStr::new);
    Ok(Plan {
        parent: rustix::process::getpid(),
        program: c_string(resolved.as_os_str())?,
        arguments: Strings::of(program.chain(arguments()))?,
        shell: Strings::of([OsStr::new("sh"), resolved.as_os_str()].into_iter().chain(arguments()))?,
        environment: Strings::new(environment),
        listen_pid,
        directory: launch.directory.as_ref().map(|directory| c_string(directory.as_os_str())).transpose()?,
        user: launch.user.clone(),
        groups: launch.groups.files.iter().map(AsRawFd::as_raw_fd).collect(),
        oom_score_adj: settings.oom_score_adj.or(launch.oom_score_adj).and_then(|value| CString::new(value.to_string()).ok()),
        limits,
        limit: 0,
        nice: launch.nice,
        own_nice: settings.nice,
        io_priority: settings.ionice.map(io_priority),
        affinity: settings.affinity.as_deref().map(processors),
        merge_pages: settings.merge_pages,
        umask: settings.umask,
        stdin: null.map(AsRawFd::as_raw_fd),
        output: launch.output.as_ref().map(AsRawFd::as_raw_fd),
        passed: launch.sockets.iter().chain(&launch.kept).map(AsRawFd::as_raw_fd).collect(),
        death_signal: launch.on_daemon_death.0,
    })
}

fn resource(which: Rlimit) -> Resource {
    match which {
        Rlimit::AddressSpace => Resource::As,
        Rlimit::Core => Resource::Core,
        Rlimit::Cpu => Resource::Cpu,
        Rlimit::Data => Resource::Data,
        Rlimit::Fsize => Resource::Fsize,
        Rlimit::Memlock => Resource::Memlock,
        Rlimit::Nofile => Resource::Nofile,
        Rlimit::Nproc => Resource::Nproc,
        Rlimit::Stack => Resource::Stack,
    }
}

/// As `ioprio_set(2)` takes it: the class above the level.
fn io_priority(priority: IoPriority) -> libc::c_int {
    let (class, level) = match priority {
        IoPriority::RealTime(level) => (1, level),
        IoPriority::BestEffort(level) => (2, level),
        IoPriority::Idle => (3, 0),
    };
    (class << 13) | libc::c_int::from(level)
}

fn processors(numbers: &[u32]) -> libc::cpu_set_t {
    // SAFETY: a set is plain data, and all zeros is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for number in numbers.iter().filter_map(|number| usize::try_from(*number).ok()) {
        if number < libc::CPU_SETSIZE as usize {
            // SAFETY: the number is within the set.
            unsafe { libc::CPU_SET(number, &mut set) };
        }
    }
    set
}

/// While it is there, no signal is delivered to the calling thread, nor to a child that is forked from it.
pub struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    pub fn all() -> io::Result<BlockedSignals> {
        // SAFETY: both sets are live locals, one filled, one written by the call.
        unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            match libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) {
                0 => Ok(BlockedSignals(before)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

impl BlockedSignals {
    /// Sends these to ourselves, to be delivered once signals are not blocked any more.
    pub fn send_again(&self, signals: &[i32]) {
        for signal in signals.iter().copied() {
            // SAFETY: takes numbers only.
            unsafe { libc::kill(libc::getpid(), signal) };
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was written by the call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Makes the child, in its group where the kernel can.
fn fork(groups: &Entrances, plan: &mut Plan, tell: &OwnedFd) -> io::Result<i32> {
    // What is asked for there holds for memory, and would for ours.
    let shares = !plan.merge_pages;
    let changes_user = plan.user.is_some();
    let make = |child: &mut Child<'_>, group: Option<BorrowedFd<'_>>| {
        // SAFETY: the child makes system calls, writes to its plan, which nobody looks at again, and signals are blocked.
        unsafe { super::fork::fork(group, shares, run_child, (&raw mut *child).cast()) }
    };
    let dumpable = rustix::process::dumpable_behavior();
    let mut child = Child { plan, tell: tell.as_raw_fd() };
    let made = match &groups.into {
        None => make(&mut child, None),
        // Not known, kept from us, or a group that takes nobody this way: by its file then. A real shortage comes again there.
        Some(folder) => make(&mut child, Some(folder.as_fd())).or_else(|_| {
            child.plan.groups.extend(groups.into_file.as_ref().map(AsRawFd::as_raw_fd));
            make(&mut child, None)
        }),
    };
    if let Ok(before) = dumpable
        && shares
        && changes_user
    {
        // The kernel takes that from the memory of whoever changes its user, so that nobody of that user reads it. It is ours alone again.
        let _ = rustix::process::set_dumpable_behavior(before);
    }
    made
}

/// What the child knows.
struct Child<'a> {
    plan: &'a mut Plan,
    tell: RawFd,
}

extern "C" fn run_child(child: *mut c_void) -> ! {
    // SAFETY: it is what `fork` passes on, which waits for us or is a copy.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    become_program(child.plan, child.tell)
}

/// The child, up to its exec.
fn become_program(plan: &mut Plan, mut tell: RawFd) -> ! {
    let Err((step, errno)) = prepare_and_execute(plan, &mut tell);
    let mut word = [step as u8, plan.limit, 0, 0, 0, 0];
    for (place, byte) in word.iter_mut().skip(2).zip(errno.raw_os_error().to_ne_bytes()) {
        *place = byte;
    }
    // SAFETY: the buffer is a live local; the descriptor is the parent's pipe. Nothing of the parent's may run at exit.
    unsafe {
        libc::write(tell, word.as_ptr().cast(), word.len());
        libc::_exit(127)
    }
}

type Failed = (Step, rustix::io::Errno);

fn last_errno() -> rustix::io::Errno {
    // Async-signal-safe: reads a thread-local number.
    rustix::io::Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Runs between fork and exec: async-signal-safe calls only. `tell` follows the pipe to the parent to its new number.
fn prepare_and_execute(plan: &mut Plan, tell: &mut RawFd) -> Result<std::convert::Infallible, Failed> {
    let at = |step: Step| move |errno: rustix::io::Errno| (step, errno);
    default_dispositions();
    rustix::process::setsid().map_err(at(Step::Session))?;
    for group in &plan.groups {
        // SAFETY: the descriptor was opened by the parent and inherited; the buffer is static. "0" means the writer.
        if unsafe { libc::write(*group, b"0".as_ptr().cast(), 1) } < 0 {
            return Err((Step::Group, last_errno()));
        }
    }
    if let Some(value) = &plan.oom_score_adj {
        // SAFETY: both strings end in NUL; the descriptor is closed again. A failure to change one's own score is no
        // reason not to start.
        unsafe {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, value.as_ptr().cast(), value.as_bytes().len());
                libc::close(fd);
            }
        }
    }
    // The daemon may run with a better priority; its workers do not inherit that.
    if rustix::process::getpriority_process(None).is_ok_and(|own| own < plan.nice) {
        rustix::process::setpriority_process(None, plan.nice).map_err(at(Step::Nice))?;
    }
    if let Some(nice) = plan.own_nice {
        rustix::process::setpriority_process(None, nice).map_err(at(Step::Nice))?;
    }
    scheduling::ordinary_slack();
    if let Some(priority) = plan.io_priority {
        // SAFETY: takes numbers only; 1 is IOPRIO_WHO_PROCESS, 0 the caller.
        if unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, priority) } < 0 {
            return Err((Step::Io, last_errno()));
        }
    }
    if let Some(set) = &plan.affinity {
        // SAFETY: the set was made before the fork.
        if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) } < 0 {
            return Err((Step::Affinity, last_errno()));
        }
    }
    if let Some(mask) = plan.umask {
        // SAFETY: takes a number only.
        unsafe { libc::umask(mask) };
    }
    if plan.merge_pages {
        // SAFETY: takes numbers only. Where the kernel cannot, the worker runs without, and the daemon has said so.
        unsafe { libc::prctl(ksm::PR_SET_MEMORY_MERGE, 1, 0, 0, 0) };
    }
    *tell = arrange_descriptors(plan, *tell).map_err(at(Step::Descriptors))?;
    for (number, (resource, limit)) in (0..).zip(&plan.limits) {
        plan.limit = number;
        rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
    }
    if let Some(directory) = &plan.directory {
        rustix::process::chdir(directory.as_c_str()).map_err(at(Step::Directory))?;
    }
    if let Some(user) = &plan.user {
        // By the kernel's own calls: those of the C library take every thread along that it knows of, and in a child that it did
        // not make itself these are the parent's. Groups first: after the change of user it is too late.
        // SAFETY: the slice was copied by the fork and outlives the call; the others take numbers only.
        unsafe {
            if libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) != 0
                || libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) != 0
                || libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) != 0
            {
                return Err((Step::User, last_errno()));
            }
        }
    }
    // After the change of user, which clears it.
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, plan.death_signal) } < 0 {
        return Err((Step::Parent, last_errno()));
    }
    // The daemon may have died before the line above: then nobody would ever supervise this process.
    if rustix::process::getppid() != Some(plan.parent) {
        return Err((Step::Parent, rustix::io::Errno::SRCH));
    }
    if let Some(place) = plan.listen_pid {
        write_own_pid(&mut plan.environment, place);
    }
    // SAFETY: a live local; every disposition is the default by now.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    // SAFETY: every string ends in NUL and every list in a null pointer; they were made before the fork.
    unsafe {
        libc::execve(plan.program.as_ptr(), plan.arguments.pointers.as_ptr(), plan.environment.pointers.as_ptr());
        if last_errno() == rustix::io::Errno::NOEXEC {
            libc::execve(c"/bin/sh".as_ptr(), plan.shell.pointers.as_ptr(), plan.environment.pointers.as_ptr());
        }
    }
    Err((Step::Exec, last_errno()))
}

/// Signals are handled as for a process that nobody has touched. Exec would reset our handlers, but not what is ignored, as
/// SIGPIPE is in every Rust program.
fn default_dispositions() {
    // The kernel's own `struct sigaction`, no longer than this anywhere: the default handler, no flags, an empty mask.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: a live local of plain data. Not by the C library, which refuses the two it keeps for itself: whoever started us
        // may have left them ignored. SIGKILL and SIGSTOP are refused by the kernel, and never are anything but the default.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8_usize) };
    }
}

/// Puts every descriptor where the program will look for it, and marks all others to be closed. Returns where the pipe to
/// the parent is now.
fn arrange_descriptors(plan: &mut Plan, tell: RawFd) -> rustix::io::Result<RawFd> {
    let count = RawFd::try_from(plan.passed.len()).unwrap_or(RawFd::MAX);
    let behind = FIRST_SOCKET.saturating_add(count);
    // SAFETY: all numbers are of descriptors that the parent has open; copies are made before anything is overwritten.
    unsafe {
        let copy = |fd: RawFd| match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, behind) {
            -1 => Err(last_errno()),
            copy => Ok(copy),
        };
        let place = |fd: RawFd, at: RawFd| if libc::dup2(fd, at) < 0 { Err(last_errno()) } else { Ok(()) };
        let tell = copy(tell)?;
        if let Some(stdin) = plan.stdin {
            place(stdin, 0)?;
        }
        if let Some(output) = plan.output {
            place(output, 1)?;
            place(output, 2)?;
        }
        // In two rounds: the place of one may be the number of another.
        for fd in &mut plan.passed {
            *fd = copy(*fd)?;
        }
        for (fd, at) in plan.passed.iter().zip(FIRST_SOCKET..) {
            place(*fd, at)?;
        }
        // What a library or whoever started us left open. Not known before 5.11: ours are marked one by one in any case.
        libc::syscall(libc::SYS_close_range, behind, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        Ok(tell)
    }
}

/// Writes our pid behind `LISTEN_PID=`.
fn write_own_pid(environment: &mut Strings, place: usize) {
    let mut pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    let mut digits = [0_u8; LISTEN_PID_DIGITS];
    let mut count = 0;
    for digit in &mut digits {
        // Less than ten: it fits.
        *digit = b'0' + (pid % 10) as u8;
        pid /= 10;
        count += 1;
        if pid == 0 {
            break;
        }
    }
    let Some(entry) = environment.strings.get_mut(place) else { return };
    for (to, digit) in entry.iter_mut().skip(LISTEN_PID.len() - LISTEN_PID_DIGITS).zip(digits.iter().take(count).rev()) {
        *to = *digit;
    }
    // The memory is where it was: nothing was added to it.
    if let Some(pointer) = environment.pointers.get_mut(place) {
        *pointer = entry.as_ptr().cast();
    }
}

/// Waits for a child of ours that ends by itself.
fn reap(child: i32) {
    if let Some(child) = Pid::from_raw(child) {
        while matches!(rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
}

/// Ourselves, as the kernel knows us.
pub const OWN_PROGRAM: &str = "/proc/self/exe";
const OWN_ARGUMENTS: &str = "/proc/self/cmdline";

/// The words we were started with.
pub fn own_arguments() -> io::Result<Vec<OsString>> {
    arguments_in(Path::new(OWN_ARGUMENTS))
}

/// Program and arguments of a process of this machine.
pub fn arguments_of(paths: &Paths, pid: u32) -> io::Result<Vec<OsString>> {
    arguments_in(&paths.proc.join(pid.to_string()).join("cmdline"))
}

fn arguments_in(file: &Path) -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStringExt;
    let text = std::fs::read(file)?;
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    Ok(text.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
}

/// Becomes another program: same process, same children. Signals are to be blocked, and stay so until the other program calls
/// [`unblock_signals`]; of our descriptors it has those of `kept`. Returns only when that did not come about, and then everything is as
/// it was.
pub fn replace_self(program: &Path, args: &[OsString], env: &[(OsString, OsString)], kept: &[BorrowedFd<'_>]) -> SpawnError {
    let prepared = (|| {
        let path = CString::from_vec_with_nul(terminated(program.as_os_str())?).unwrap_or_default();
        let arguments = Strings::of(args.iter().map(OsString::as_os_str))?;
        let pair = |(name, value): &(OsString, OsString)| {
            let mut entry = name.clone();
            entry.push("=");
            entry.push(value);
            terminated(&entry)
        };
        let environment = Strings::new(env.iter().map(pair).collect::<Result<_, _>>()?);
        Ok((path, arguments, environment))
    })();
    let (path, arguments, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let mark = |flags| {
        for fd in kept {
            // It is open: nothing else can go wrong.
            let _ = rustix::io::fcntl_setfd(fd, flags);
        }
    };
    mark(rustix::io::FdFlags::empty());
    // SAFETY: every string ends in NUL and every list in a null pointer, and all live until the call is over.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    let error = io::Error::last_os_error();
    mark(rustix::io::FdFlags::CLOEXEC);
    SpawnError { doing: "could not execute", what: Some(program.display().to_string()), error }
}

/// Signals that came meanwhile are delivered now.
pub fn unblock_signals() {
    // SAFETY: a live local.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// A program that is run to see what it says: nobody waits for it here, it is reaped like any other child.
#[derive(Debug)]
pub struct Trial {
    pid: i32,
    told: std::fs::File,
}

/// What it may say; more ends it.
const LONGEST_WORDS: u64 = 64 << 10;

impl Trial {
    /// # Errors
    /// Why it could not be run.
    pub fn begin(program: &Path, args: &[OsString], env: &[(OsString, OsString)], directory: &Path) -> Result<Trial, String> {
        let told = rustix::fs::memfd_create("plimsoll-trial", rustix::fs::MemfdFlags::CLOEXEC).map_err(|error| error.to_string())?;
        let command: Vec<String> = std::iter::once(program.as_os_str())
            .chain(args.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let launch = Launch {
            command,
            directory: Some(directory.to_path_buf()),
            env: env.to_vec(),
            user: None,
            groups: Entrances::default(),
            oom_score_adj: None,
            descriptors: None,
            nice: 0,
            settings: ProcessSettings { rlimits: vec![(Rlimit::Fsize, Some(LONGEST_WORDS))], ..ProcessSettings::default() },
            inherit_stdin: false,
            output: Some(told.try_clone().map_err(|error| error.to_string())?),
            sockets: Vec::new(),
            kept: Vec::new(),
            on_daemon_death: Signal(libc::SIGKILL),
        };
        let pid = spawn(&launch).map_err(|error| error.to_string())?;
        Ok(Trial { pid, told: std::fs::File::from(told) })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What it has said so far, on both streams.
    pub fn words(&self) -> String {
        use std::os::unix::fs::FileExt;
        let mut text = vec![0; LONGEST_WORDS as usize];
        let length = self.told.read_at(&mut text, 0).unwrap_or(0);
        text.truncate(length);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

/// Finds the file to execute, with an error that names what was looked for and where.
pub fn resolve_program(program: &str, path: Option<&OsStr>, directory: Option<&Path>) -> io::Result<PathBuf> {
    let executable = |candidate: &Path| {
        let candidate = match directory {
            Some(directory) if candidate.is_relative() => directory.join(candidate),
            _ => candidate.to_path_buf(),
        };
        candidate.is_file() && rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        let file = PathBuf::from(program);
        return match (executable(&file), directory.unwrap_or(Path::new("")).join(&file).exists()) {
            (true, _) => Ok(file),
            (false, true) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{program} is not an executable file"))),
            (false, false) => {
                let from = directory.filter(|_| file.is_relative()).map(|from| format!(" in {}", from.display())).unwrap_or_default();
                Err(io::Error::new(io::ErrorKind::NotFound, format!("{program} is not there{from}")))
            }
        };
    }
    let path = path.unwrap_or_else(|| OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|candidate| executable(candidate))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{program} was not found in PATH ({})", path.display())))
}
