//! A worker for tests and demonstrations, as badly behaved as it is told to be. Each argument is one habit:
//!
//! | word | habit |
//! |---|---|
//! | `burn=N` | keeps N threads busy |
//! | `light=PERCENT` | keeps one thread busy for that part of each 20 ms |
//! | `until=FILE` | stops burning once the file is there |
//! | `leak=MB` | takes so many MB each second and keeps them |
//! | `cap=MB` | leaks no further than this |
//! | `gives-back=MB` | frees so much of it each time it gets a SIGUSR1 |
//! | `thrash=FILE` | touches the pages of a file in any order, for ever: a working set as large as that |
//! | `child=WORDS` | starts a child with those habits (separated by commas); any number of times |
//! | `astray=WORDS` | starts a descendant that leaves session and parent, as a daemon does |
//! | `serve=FILE` | answers HTTP on a port of its own, which it writes to the file |
//! | `serve-fd3` | answers HTTP on the socket it was handed, with its pid; finishes what it has begun before it ends |
//! | `slow=MS` | takes so long before it serves, or says that it is ready |
//! | `notify` | says so to its `NOTIFY_SOCKET` |
//! | `unready-if=FILE` | does neither while the file is there |
//! | `alone=FILE` | writes a line to `FILE.broken` if another one with this word lives |
//! | `deaf` | ignores SIGTERM |
//! | `log=FILE` | writes a line for each thing that happens to it |
//! | `after=MS`, `exit=CODE` | ends by itself, with that code |

#![expect(clippy::disallowed_methods, reason = "it plays the outside world, which has clocks and starts processes")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

const MB: usize = 1_000_000;

#[derive(Clone, Default)]
struct Habits {
    burn: usize,
    light: Option<u64>,
    until: Option<String>,
    leak: usize,
    cap: Option<usize>,
    gives_back: Option<usize>,
    thrash: Option<String>,
    children: Vec<String>,
    astray: Vec<String>,
    serve: Option<String>,
    serve_fd3: bool,
    slow: Duration,
    notify: bool,
    unready_if: Option<String>,
    alone: Option<String>,
    deaf: bool,
    log: Option<String>,
    after: Option<Duration>,
    exit: i32,
}

#[expect(clippy::zombie_processes, reason = "nobody waits for its children: whoever keeps this worker has to look after orphans")]
fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "leave") {
        words.remove(0);
        leave(&words);
    }
    let habits = read(&words);
    note(&habits, &format!("started {}", std::process::id()));
    let hoard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    listen(&habits, &hoard);
    for child in &habits.children {
        start(&child.split(',').map(str::to_owned).collect::<Vec<_>>());
    }
    for astray in &habits.astray {
        let words = std::iter::once("leave").chain(astray.split(',')).map(str::to_owned).collect::<Vec<_>>();
        start(&words).wait().expect("the one between ends by itself");
    }
    for _ in 0..habits.burn {
        let until = habits.until.clone();
        std::thread::spawn(move || burn(until.as_deref()));
    }
    if let Some(file) = &habits.alone {
        be_alone(file);
    }
    std::thread::sleep(habits.slow);
    while habits.unready_if.as_ref().is_some_and(|file| std::path::Path::new(file).exists()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    if habits.serve_fd3 {
        std::thread::spawn(serve_inherited);
    }
    if habits.notify {
        say_ready();
    }
    if let Some(file) = habits.serve.clone() {
        std::thread::spawn(move || serve(&file));
    }
    if let Some(percent) = habits.light {
        std::thread::spawn(move || burn_a_little(percent));
    }
    if habits.leak > 0 {
        let (habits, hoard) = (habits.clone(), hoard.clone());
        std::thread::spawn(move || leak(&habits, &hoard));
    }
    if let Some(file) = habits.thrash.clone() {
        std::thread::spawn(move || thrash(&file));
    }
    match habits.after {
        Some(after) => std::thread::sleep(after),
        None => loop {
            std::thread::park();
        },
    }
    std::process::exit(habits.exit);
}

fn read(words: &[String]) -> Habits {
    let mut habits = Habits::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{word}: a number is needed"));
        match name {
            "burn" => habits.burn = number() as usize,
            "light" => habits.light = Some(number()),
            "until" => habits.until = Some(value.to_owned()),
            "leak" => habits.leak = number() as usize * MB,
            "cap" => habits.cap = Some(number() as usize * MB),
            "gives-back" => habits.gives_back = Some(number() as usize * MB),
            "thrash" => habits.thrash = Some(value.to_owned()),
            "child" => habits.children.push(value.to_owned()),
            "astray" => habits.astray.push(value.to_owned()),
            "serve-fd3" => habits.serve_fd3 = true,
            "slow" => habits.slow = Duration::from_millis(number()),
            "notify" => habits.notify = true,
            "unready-if" => habits.unready_if = Some(value.to_owned()),
            "alone" => habits.alone = Some(value.to_owned()),
            "serve" => habits.serve = Some(value.to_owned()),
            "deaf" => habits.deaf = true,
            "log" => habits.log = Some(value.to_owned()),
            "after" => habits.after = Some(Duration::from_millis(number())),
            "exit" => habits.exit = number() as i32,
            _ => panic!("{word}: no such habit"),
        }
    }
    habits
}

fn start(words: &[String]) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this program has a path")).args(words).spawn().expect("a child can be started")
}

/// One request after the other, each on a connection of its own.
fn serve(file: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::fs::write(file, port.to_string()).expect("the file can be written");
    for mut stream in listener.incoming().flatten() {
        // A client that went away is no reason to stop.
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
}

/// Set when it was asked to end: who serves does so after the request at hand.
static ENDING: AtomicBool = AtomicBool::new(false);
static SERVES: AtomicBool = AtomicBool::new(false);

/// On the first socket that was handed over, whose number and count are as `sd_listen_fds(3)` has them.
fn serve_inherited() {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    assert_eq!(variable("LISTEN_PID"), std::process::id().to_string(), "the sockets are meant for this process");
    assert!(variable("LISTEN_FDS").parse::<u32>().is_ok_and(|count| count > 0), "there is a socket");
    SERVES.store(true, Ordering::SeqCst);
    // SAFETY: whoever started us passed it on under this number, and nobody else here uses it.
    let listener = unsafe { OwnedFd::from_raw_fd(3) };
    // Others listen on it as well: who is woken need not be who gets the connection.
    rustix::io::ioctl_fionbio(&listener, true).expect("it is a socket");
    let body = std::process::id().to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    while !ENDING.load(Ordering::SeqCst) {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(listener.as_fd(), rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
        while let Ok(stream) = rustix::net::accept(&listener) {
            // A client that went away is no reason to stop.
            let _ = rustix::io::read(&stream, &mut [0; 1024]);
            let _ = rustix::net::send(&stream, answer.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
        }
    }
    std::process::exit(0);
}

fn say_ready() {
    use std::os::linux::net::SocketAddrExt;
    let name = std::env::var("NOTIFY_SOCKET").expect("there is a socket to say it to");
    let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    let address = match name.strip_prefix('@') {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
        None => std::os::unix::net::SocketAddr::from_pathname(&name),
    };
    socket.send_to_addr(b"STATUS=full of hope\nREADY=1\n", &address.expect("an address")).expect("somebody listens");
}

/// Holds the file for as long as it lives.
fn be_alone(file: &str) {
    let held = File::options().create(true).append(true).open(file).expect("the file can be opened");
    if rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut broken = File::options().create(true).append(true).open(format!("{file}.broken")).expect("so can this one");
        broken.write_all(format!("{} is not alone\n", std::process::id()).as_bytes()).expect("it can be written");
    }
    std::mem::forget(held);
}

/// The middle of a double fork: leaves the session, starts who is to be left alone, and ends.
fn leave(words: &[String]) -> ! {
    // As a group leader it could not leave, and it is none: it was started a moment ago.
    rustix::process::setsid().expect("a new session");
    let mut last = Command::new(std::env::current_exe().expect("this program has a path"));
    last.process_group(0).args(words).spawn().expect("a child can be started");
    std::process::exit(0);
}

/// SIGTERM ends it with a word about its peak, unless it is deaf; SIGUSR1 makes it give back what it gives back.
fn listen(habits: &Habits, hoard: &Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut signals =
        Signals::new(if habits.gives_back.is_some() { vec![SIGTERM, SIGUSR1] } else { vec![SIGTERM] }).expect("signals can be heard");
    let (habits, hoard) = (habits.clone(), hoard.clone());
    std::thread::spawn(move || {
        for signal in &mut signals {
            if signal == SIGUSR1 {
                let mut hoard = hoard.lock().expect("no thread panics with it");
                let back = habits.gives_back.unwrap_or(0);
                let held: usize = hoard.iter().map(Vec::len).sum();
                while hoard.iter().map(Vec::len).sum::<usize>() > held.saturating_sub(back) {
                    hoard.pop();
                }
                note(&habits, "asked to shed");
            } else if habits.deaf {
                note(&habits, "asked to end and does not");
            } else {
                note(&habits, &format!("asked to end, peak {}", peak()));
                if SERVES.load(Ordering::SeqCst) {
                    ENDING.store(true, Ordering::SeqCst);
                    continue;
                }
                std::process::exit(habits.exit);
            }
        }
    });
}

/// Through a mapping, and with nothing read ahead: each page is wanted for itself.
fn thrash(file: &str) {
    use std::os::fd::AsRawFd;
    const PAGE: usize = 4096;
    let file = File::open(file).expect("the file is there");
    let length = file.metadata().expect("it can be asked").len() as usize;
    // SAFETY: a new mapping, to be read only; nobody makes the file shorter.
    let map = unsafe {
        let map = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert!(map != libc::MAP_FAILED, "the file can be mapped");
        libc::madvise(map, length, libc::MADV_RANDOM);
        map.cast::<u8>()
    };
    let mut seed = 88_172_645_463_325_252_u64;
    loop {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let page = seed as usize % (length / PAGE);
        // SAFETY: within the mapping.
        std::hint::black_box(unsafe { map.add(page * PAGE).read_volatile() });
    }
}

fn burn(until: Option<&str>) {
    let turns = AtomicUsize::new(0);
    loop {
        // About 10 ms, so that looking for the file costs nothing.
        for _ in 0..2_000_000 {
            turns.fetch_add(1, Ordering::Relaxed);
        }
        if until.is_some_and(|file| std::path::Path::new(file).exists()) {
            return;
        }
    }
}

fn burn_a_little(percent: u64) {
    let turn = Duration::from_millis(20);
    let turns = AtomicUsize::new(0);
    loop {
        let begun = Instant::now();
        while begun.elapsed() < turn * percent as u32 / 100 {
            turns.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(turn.saturating_sub(begun.elapsed()));
    }
}

fn leak(habits: &Habits, hoard: &Mutex<Vec<Vec<u8>>>) {
    let turns_per_second = 20;
    loop {
        let begun = Instant::now();
        {
            let mut hoard = hoard.lock().expect("no thread panics with it");
            let held: usize = hoard.iter().map(Vec::len).sum();
            let more = (habits.leak / turns_per_second).min(habits.cap.map_or(usize::MAX, |cap| cap.saturating_sub(held)));
            if more > 0 {
                // Ones, not zeros: every page is touched.
                hoard.push(vec![1; more]);
            }
        }
        std::thread::sleep(Duration::from_secs(1) / turns_per_second as u32 - begun.elapsed().min(Duration::from_millis(40)));
    }
}

/// The largest resident set so far, in bytes, as the kernel counts it.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn note(habits: &Habits, what: &str) {
    if let Some(log) = &habits.log {
        let mut file = File::options().create(true).append(true).open(log).expect("the log can be written");
        // One write, so that lines of several processes do not mix.
        file.write_all(format!("{what}\n").as_bytes()).expect("the log can be written");
    }
}
