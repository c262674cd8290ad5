//! The process of a run: this same program once more, behind everybody else for the processor and the disk, and the likeliest victim
//! where memory is out. It ends with its run; told to stop, or orphaned, it ends at the next safe point.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;

use super::allowance::Allowance;
use super::errand::{self, Errand, Line, MOST_ITEMS};
use super::kinds;
use super::patience::Patience;
use super::run::{Failure, Foreman, Outcome, Report};
use crate::config::jobs::KindName;
use crate::config::settings::HostPaths;
use crate::host::clock::Moment;
use crate::host::scheduling::{self, Behind};
use crate::host::{Paths, cputime, helper, process};

/// The hidden subcommand: `job-run ERRAND REPORTS ALLOWANCE LOCK LOCK`. The locks are only held: each is let go with the last who has it.
pub const SUBCOMMAND: &str = "job-run";

/// Not more often than this is anybody told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Nor is it looked more often whether to stop or to wait: a job may come by at every file.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// A run that waits for its share looks this often whether the share is another.
const HEAR_EVERY: Duration = Duration::from_millis(250);

/// Above all workers, whose own is 300 above the daemon's.
const OOM_SCORE_ADJ: i32 = 800;

/// `args` are what follows the subcommand. Returns the exit code.
pub fn main(args: &[String]) -> u8 {
    // `killall plimsoll` is not meant for it: the daemon tells it to stop.
    let _ = rustix::thread::set_name(c"job");
    let Some(([errand, reports, allowed, lock, shared], _)) = helper::take_over::<5>(args) else { return 2 };
    helper::close_all_but(&[errand.as_fd(), reports.as_fd(), allowed.as_fd(), lock.as_fd(), shared.as_fd()]);
    let mut text = String::new();
    if File::from(errand).read_to_string(&mut text).is_err() {
        return 2;
    }
    let Ok(errand) = serde_json::from_str::<Errand>(&text) else { return 2 };
    let Ok(patience) = Patience::begin(errand.deadline) else { return 1 };
    // Should the daemon be killed: what is begun is ended in order.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    let is_orphan = std::os::unix::process::parent_id() != errand.parent;
    step_behind(errand.job.kind.name(), &errand.host);
    let mut foreman = Pipe {
        patience,
        allowance: Allowance::new(Moment::now().steady, own_cpu()),
        allowed,
        looked: Duration::ZERO,
        out: BufWriter::new(File::from(reports)),
        is_orphan,
        items: if errand.order.dry_run { MOST_ITEMS } else { 0 },
        told: None,
    };
    let result = kinds::run(&errand.job.kind, &errand.order, &mut foreman);
    let code = u8::from(result.is_err());
    foreman.conclude(result);
    drop((lock, shared));
    code
}

/// From now on this process, which has one thread yet, is behind everybody else, as far as its kind of job bears it, and the likeliest
/// victim where memory is out.
pub fn step_behind(kind: KindName, host: &HostPaths) {
    let behind = match kind {
        KindName::Files | KindName::Backup => Behind::Everybody,
        // It holds the application's database for milliseconds, which would be seconds if it got no processor or no disk meanwhile.
        KindName::Sessions => Behind::Ordinary,
    };
    scheduling::step_behind(behind);
    let paths = Paths::from(host);
    if process::own_oom_score_adj(&paths).is_none_or(|own| own < OOM_SCORE_ADJ) {
        // Where it cannot be, it is as likely a victim as the daemon.
        let _ = process::set_own_oom_score_adj(&paths, OOM_SCORE_ADJ);
    }
}

/// CPU time of this process, all threads.
fn own_cpu() -> Duration {
    i32::try_from(std::process::id()).ok().and_then(|pid| cputime::of_process(pid).ok()).unwrap_or_default()
}

/// Tells over a pipe. When nobody listens any more, the run is to stop.
struct Pipe {
    patience: Patience,
    allowance: Allowance,
    /// Where the daemon says how many cores it may use.
    allowed: OwnedFd,
    /// On the steady clock: when it was last seen whether to stop or to wait.
    looked: Duration,
    out: BufWriter<File>,
    is_orphan: bool,
    /// So many items are told still.
    items: usize,
    /// When progress was told last.
    told: Option<Moment>,
}

impl Pipe {
    fn say(&mut self, line: &Line, at_once: bool) {
        let said = serde_json::to_writer(&mut self.out, line).map_err(std::io::Error::from).and_then(|()| self.out.write_all(b"\n"));
        let said = said.and_then(|()| if at_once { self.out.flush() } else { Ok(()) });
        self.is_orphan |= said.is_err();
    }

    fn conclude(&mut self, result: Result<Outcome, Failure>) {
        let line = match result {
            Ok(outcome) => Line::Outcome(outcome),
            Err(Failure(why)) => Line::Failure(why),
        };
        self.say(&line, true);
    }
}

impl Foreman for Pipe {
    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn tell(&mut self, report: Report) {
        let mut at_once = true;
        match &report {
            Report::Planned(_) => {
                if self.items == 0 {
                    return;
                }
                self.items -= 1;
                at_once = false;
            }
            Report::Progress { done, of, .. } => {
                let now = Moment::now();
                if done < of && self.told.is_some_and(|told| now.since(told) < PROGRESS_EVERY) {
                    return;
                }
                self.told = Some(now);
            }
            Report::Plan(_) | Report::Warning { .. } | Report::Event { .. } => {}
        }
        self.say(&Line::Report(report), at_once);
    }

    fn wait(&mut self, time: Duration) -> bool {
        !self.is_orphan && self.patience.wait(time)
    }

    fn at_safe_point(&mut self) -> bool {
        if self.is_orphan {
            return false;
        }
        let now = Moment::now().steady;
        if now.saturating_sub(self.looked) < LOOK_EVERY {
            return true;
        }
        loop {
            if self.patience.is_over() {
                return false;
            }
            if let Some(cores) = errand::hear_allowance(&self.allowed) {
                self.allowance.set(cores);
            }
            self.looked = Moment::now().steady;
            let pause = self.allowance.step(self.looked, own_cpu());
            if pause.is_zero() {
                return true;
            }
            if !self.patience.wait(pause.min(HEAR_EVERY)) {
                return false;
            }
        }
    }
}
