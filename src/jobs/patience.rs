//! How long a run may go on: until its time is up, or until it is told to stop. Waiting ends at once when it is.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::host::clock::Moment;

#[derive(Debug)]
pub struct Patience {
    /// On the steady clock.
    deadline: Duration,
    /// Readable once a signal has arrived; nobody reads it, so it stays so.
    told: UnixStream,
}

impl Patience {
    /// From now on SIGTERM, SIGINT and SIGHUP ask this process to stop at a safe point, and do nothing else.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn begin(deadline: Duration) -> io::Result<Patience> {
        let (told, tell) = UnixStream::pair()?;
        tell.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, tell.try_clone()?)?;
        }
        Ok(Patience { deadline, told })
    }

    /// Waits so long; false, at once, when it is time to stop.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Moment::now().steady.saturating_add(time);
        loop {
            let now = Moment::now().steady;
            if now >= self.deadline || self.is_told_within(until.min(self.deadline).saturating_sub(now)) {
                return false;
            }
            let now = Moment::now().steady;
            if now >= until {
                return now < self.deadline;
            }
        }
    }

    /// Its time is up, whether or not it was told to stop.
    pub fn is_late(&self) -> bool {
        Moment::now().steady >= self.deadline
    }

    pub fn is_over(&self) -> bool {
        self.is_late() || self.is_told_within(Duration::ZERO)
    }

    /// A wait that is interrupted ends early.
    fn is_told_within(&self, time: Duration) -> bool {
        let timeout = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(time.subsec_nanos()) };
        let mut fds = [PollFd::from_borrowed_fd(self.told.as_fd(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(ready) if ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_time_or_with_a_word() {
        let begun = Moment::now();
        let (told, tell) = UnixStream::pair().unwrap();
        let patience = Patience { deadline: begun.steady + Duration::from_secs(60), told };
        assert!(patience.wait(Duration::from_millis(5)) && !patience.is_over());
        assert!(Moment::now().since(begun) >= Duration::from_millis(5));
        assert_eq!(rustix::io::write(&tell, b"x"), Ok(1));
        assert!(!patience.wait(Duration::from_secs(50)) && patience.is_over());
        assert!(Moment::now().since(begun) < Duration::from_secs(20));
        let (told, _tell) = UnixStream::pair().unwrap();
        let patience = Patience { deadline: Moment::now().steady + Duration::from_millis(20), told };
        assert!(!patience.wait(Duration::from_secs(50)) && patience.is_over());
    }
}
