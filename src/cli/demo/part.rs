//! What the demo starts, as processes of this same binary: the daemon, tied to the life of the demo, and two workers with
//! an appetite, tied to the life of the daemon. Whoever dies, and however, those below end too.

use std::ffi::OsString;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::host::clock::Moment;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "demo-part";
/// `demo-part guard PARENT ARGS…`: what `plimsoll ARGS…` does, until process PARENT ends.
pub const GUARD: &str = "guard";
/// `demo-part cpu-hog THREADS SECONDS`
pub const CPU_HOG: &str = "cpu-hog";
/// `demo-part leaky BASE CACHE RATE MOST SECONDS`: the fields of [`Appetite`].
pub const LEAKY: &str = "leaky";

/// How often the leaky worker takes more.
const STEP: Duration = Duration::from_millis(50);

/// How the leaky worker eats, in bytes and bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appetite {
    /// Held from the start; `cache` is a part of it.
    pub base: u64,
    /// Given back when asked to shed.
    pub cache: u64,
    /// Leaked from then on, never given back.
    pub rate: u64,
    /// It stops here by itself: the demo endangers nobody's machine.
    pub most: u64,
}

/// `args` are what follows the subcommand. Returns the exit code.
pub fn main(args: &[OsString], env: Vec<(OsString, OsString)>) -> u8 {
    let words: Vec<&str> = args.iter().map_while(|word| word.to_str()).collect();
    let numbers = |words: &[&str]| words.iter().map(|word| word.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    match words.as_slice() {
        [GUARD, parent, ..] => {
            let bound = parent.parse().is_ok_and(|parent| end_with(Signal::TERM, Some(parent)).is_ok());
            if !bound {
                return crate::cli::FAILED;
            }
            let command = [OsString::from("plimsoll")].into_iter().chain(args.iter().skip(2).cloned()).collect();
            crate::cli::main(command, env)
        }
        [CPU_HOG, rest @ ..] => match numbers(rest).as_deref() {
            Some([threads, seconds]) => cpu_hog(*threads, Duration::from_secs(*seconds)),
            _ => crate::cli::USAGE,
        },
        [LEAKY, rest @ ..] => match numbers(rest).as_deref() {
            Some([base, cache, rate, most, seconds]) => {
                let appetite = Appetite { base: *base, cache: *cache, rate: *rate, most: *most };
                leaky(appetite, Duration::from_secs(*seconds))
            }
            _ => crate::cli::USAGE,
        },
        _ => crate::cli::USAGE,
    }
}

/// Has the kernel send us `signal` when our parent ends.
///
/// # Errors
/// When the kernel refuses, or our parent is not `parent` (any more).
fn end_with(signal: Signal, parent: Option<i32>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    match parent {
        Some(parent) if Pid::as_raw(rustix::process::getppid()) != parent => Err(io::Error::from(io::ErrorKind::NotFound)),
        _ => Ok(()),
    }
}

/// Burns `threads` cores. It ends by itself after `most`, so that nothing that goes wrong above it can make it stay.
fn cpu_hog(threads: u64, most: Duration) -> u8 {
    let end = Moment::now().steady + most;
    // Without it the time limit is left.
    let _ = end_with(Signal::KILL, None);
    for _ in 0..threads {
        std::thread::spawn(|| {
            let mut number = 1_u64;
            loop {
                number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        });
    }
    while Moment::now().steady < end {
        std::thread::park_timeout(end.saturating_sub(Moment::now().steady));
    }
    0
}

/// Holds `appetite.base` at once and leaks from then on; asked to shed (`SIGUSR1`), drops its cache. It ends by itself
/// after `most`.
fn leaky(appetite: Appetite, most: Duration) -> u8 {
    let end = Moment::now().steady + most;
    let asked = Arc::new(AtomicBool::new(false));
    if signal_hook::flag::register(signal_hook::consts::SIGUSR1, asked.clone()).is_err() {
        return crate::cli::FAILED;
    }
    let _ = end_with(Signal::KILL, None);
    let mut cache = Vec::new();
    let mut leak = Vec::new();
    eat(&mut cache, appetite.cache);
    eat(&mut leak, appetite.base.saturating_sub(appetite.cache));
    let mut last = Moment::now();
    while last.steady < end {
        std::thread::park_timeout(STEP);
        let now = Moment::now();
        // What was missed while it was kept from running is not made up for: a worker that is slowed leaks more slowly.
        let bite = (appetite.rate as f64 * now.since(last).min(4 * STEP).as_secs_f64()) as u64;
        last = now;
        if asked.swap(false, Ordering::Relaxed) {
            // Not only cleared: the pages themselves go back.
            cache = Vec::new();
        }
        if cache.len() as u64 + leak.len() as u64 + bite <= appetite.most {
            eat(&mut leak, bite);
        }
    }
    black_box((&cache, &leak));
    0
}

/// Takes so many bytes more, and touches each page of them.
fn eat(store: &mut Vec<u8>, bytes: u64) {
    const PLATE: [u8; 16 * 1024] = [1; 16 * 1024];
    let mut left = usize::try_from(bytes).unwrap_or(0);
    while left > 0 {
        let bite = left.min(PLATE.len());
        store.extend_from_slice(PLATE.get(..bite).unwrap_or(&PLATE));
        left -= bite;
    }
}
