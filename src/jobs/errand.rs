//! What goes over the pipes between the daemon and the process of a run: one errand in, lines of JSON out, and, as long as it goes on,
//! how much of the processors it may use.

use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::run::{Failure, Order, Outcome, Report};
use crate::config::jobs::Job;
use crate::config::settings::HostPaths;

/// Items of a plan are told up to so many; how many there are is in its totals.
pub const MOST_ITEMS: usize = 10_000;

/// A longer line is none of a run's.
const LONGEST_LINE: u64 = 1 << 20;

/// One run, as its process is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errand {
    pub job: Arc<Job>,
    pub order: Order,
    /// On the steady clock: it is to stop by then.
    pub deadline: Duration,
    /// Whose child it is: orphaned, it stops.
    pub parent: u32,
    pub host: HostPaths,
}

/// One line of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    Report(Report),
    /// The last one.
    Outcome(Outcome),
    /// Instead of that.
    Failure(String),
}

/// Takes the lines of a run as they come, and says how it has ended.
///
/// # Errors
/// As the run told it; or that it ended without a word, which is what one that is killed does.
pub fn follow(lines: impl Read, mut hear: impl FnMut(Report)) -> Result<Outcome, Failure> {
    let mut lines = io::BufReader::new(lines);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut text);
        match read {
            Ok(0) => return Err(Failure("go on: its process ended without a word".to_owned())),
            Ok(_) => {}
            Err(error) => return Err(Failure(format!("be followed: {error}"))),
        }
        match serde_json::from_slice(&text) {
            Ok(Line::Report(report)) => hear(report),
            Ok(Line::Outcome(outcome)) => return Ok(outcome),
            Ok(Line::Failure(why)) => return Err(Failure(why)),
            Err(error) => return Err(Failure(format!("be understood: {error}"))),
        }
    }
}

/// Bytes of one allowance: cores as a number of the machine's own make. So few are written whole or not at all.
const ALLOWANCE: usize = size_of::<f64>();

/// Says how many cores a run may use, without waiting; false when that cannot be said now.
pub fn say_allowance(pipe: impl AsFd, cores: f64) -> bool {
    rustix::io::write(pipe, &cores.to_ne_bytes()) == Ok(ALLOWANCE)
}

/// The last that was said since the last time it was asked for; never waits on a pipe that is set so.
pub fn hear_allowance(pipe: impl AsFd) -> Option<f64> {
    let mut bytes = [0; 64 * ALLOWANCE];
    let mut last = None;
    while let Ok(read @ 1..) = rustix::io::read(&pipe, &mut bytes) {
        let said = bytes.get(..read).and_then(|said| said.as_chunks::<ALLOWANCE>().0.last());
        last = said.map(|number| f64::from_ne_bytes(*number)).or(last);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::plan::{Deed, Item};
    use crate::jobs::queue::tests::job;

    #[test]
    fn what_is_told_arrives_as_it_was_and_nothing_else_is_taken_for_it() {
        let item = Item { deed: Deed::Delete, what: "file".into(), name: "/a \"b\"\n".into(), reason: "old".into(), bytes: 7 };
        let reports = [Report::Planned(item), Report::Progress { done: 1, of: 2, bytes: 3, seconds_left: None }];
        let mut text = Vec::new();
        for report in &reports {
            text.extend(serde_json::to_vec(&Line::Report(report.clone())).unwrap());
            text.push(b'\n');
        }
        let mut heard = Vec::new();
        let without_end = follow(text.as_slice(), |report| heard.push(report));
        assert!(without_end.unwrap_err().0.contains("without a word"));
        assert_eq!(heard, reports);
        let outcome = Outcome { reclaimed_bytes: 9, ..Outcome::default() };
        text.extend(serde_json::to_vec(&Line::Outcome(outcome.clone())).unwrap());
        assert_eq!(follow(text.as_slice(), |_| {}), Ok(outcome));
        assert!(follow(&b"nonsense\n"[..], |_| {}).is_err());
        assert_eq!(follow(&b"{\"failure\":\"open it\"}\n"[..], |_| {}), Err(Failure("open it".into())));
        let endless = io::repeat(b'x');
        assert!(follow(endless, |_| {}).is_err());
    }

    #[test]
    fn the_last_allowance_counts_and_nobody_ever_waits() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        assert_eq!(hear_allowance(&read), None);
        for cores in 0..1000 {
            assert!(say_allowance(&write, f64::from(cores) / 2.0));
        }
        assert_eq!((hear_allowance(&read), hear_allowance(&read)), (Some(499.5), None));
        while say_allowance(&write, 1.0) {}
        assert_eq!(hear_allowance(&read), Some(1.0));
        // Nobody is there any more who could say something.
        drop(write);
        assert_eq!(hear_allowance(&read), None);
    }

    #[test]
    fn an_errand_arrives_as_it_was() {
        let host = HostPaths { proc: "/proc".into(), sys: "/sys".into(), cgroup: "/sys/fs/cgroup".into(), journal: "/run/j".into() };
        let errand =
            Errand { job: Arc::new(job("x", &["y"])), order: Order::default(), deadline: Duration::from_millis(1), parent: 7, host };
        let text = serde_json::to_vec(&errand).unwrap();
        assert_eq!(serde_json::from_slice::<Errand>(&text).unwrap(), errand);
    }
}
