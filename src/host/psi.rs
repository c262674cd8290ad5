//! Pressure stall information: `/proc/pressure/*` and a cgroup's `*.pressure`, which look alike.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Time lost since boot, or since the cgroup began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// At least one task waited.
    pub some: Duration,
    /// All tasks stalled at once; not every file has this line.
    pub full: Option<Duration>,
}

/// `None` where there is no `some` line with a `total`: an empty file means that pressure is not accounted here.
pub fn parse(text: &[u8]) -> Option<Stall> {
    let text = std::str::from_utf8(text).ok()?;
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let micros = line.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
        micros.parse().ok().map(Duration::from_micros)
    };
    Some(Stall { some: total("some ")?, full: total("full ") })
}

/// Asks the kernel to tell of pressure instead of being asked for it: once in a window at most.
#[derive(Debug)]
pub struct Trigger {
    file: OwnedFd,
    window: Duration,
}

/// What a trigger has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Pressure,
    /// The group it was about is gone.
    Gone,
}

impl Trigger {
    /// Windows from the best on. Without privilege only whole multiples of two seconds are granted.
    const WINDOWS: [(&'static [u8], Duration); 2] =
        [(b"some 50000 500000\0", Duration::from_millis(500)), (b"some 150000 2000000\0", Duration::from_secs(2))];

    /// Sets a trigger on a pressure file, the best that is granted.
    ///
    /// # Errors
    /// What the kernel said to the last: `EACCES` or `EROFS` where the file may not be written, `EINVAL` or `EPERM` where
    /// no window is granted, `ENOENT` where there is no such file.
    pub fn set(file: &Path) -> Result<Trigger, Errno> {
        let mut refusal = Errno::INVAL;
        for (words, window) in Self::WINDOWS {
            let file = rustix::fs::open(file, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
            match rustix::io::write(&file, words) {
                Ok(_) => return Ok(Trigger { file, window }),
                Err(errno) => refusal = errno,
            }
        }
        Err(refusal)
    }

    pub fn window(&self) -> Duration {
        self.window
    }

    /// To be waited for with [`PollFlags::PRI`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What the flags of a poll mean.
pub fn told(flags: PollFlags) -> Told {
    match flags {
        flags if flags.intersects(PollFlags::ERR | PollFlags::NVAL) => Told::Gone,
        flags if flags.contains(PollFlags::PRI) => Told::Pressure,
        _ => Told::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_poll_said() {
        let cases = [
            (PollFlags::empty(), Told::Nothing),
            (PollFlags::PRI, Told::Pressure),
            (PollFlags::PRI | PollFlags::ERR, Told::Gone),
            (PollFlags::NVAL, Told::Gone),
        ];
        for (flags, means) in cases {
            assert_eq!(told(flags), means, "{flags:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_grants_nothing() {
        assert_eq!(Trigger::set(Path::new("/nowhere/memory.pressure")).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_trigger_is_granted_by_this_kernel_or_refused_with_a_reason() {
        match Trigger::set(&crate::host::Paths::default().proc.join("pressure/memory")) {
            Ok(trigger) => {
                assert!(trigger.window() >= Duration::from_millis(500) && trigger.window() <= Duration::from_secs(2));
            }
            Err(errno) => eprintln!("no trigger here: {errno}"),
        }
    }

    #[test]
    fn both_lines_one_line_and_none() {
        let some = "some avg10=0.13 avg60=6.81 avg300=10.29 total=107024585\n";
        let full = "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let stall = |full| Some(Stall { some: Duration::from_micros(107_024_585), full });
        assert_eq!(parse(format!("{some}{full}").as_bytes()), stall(Some(Duration::from_micros(7))));
        assert_eq!(parse(some.as_bytes()), stall(None));
        assert_eq!(parse(full.as_bytes()), None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"some avg10=0.00 total=-1"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
        }

        #[test]
        fn every_total_is_read_back(some in any::<u64>(), full in any::<u64>()) {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n");
            prop_assert_eq!(parse(text.as_bytes()), Some(Stall { some: Duration::from_micros(some), full: Some(Duration::from_micros(full)) }));
        }
    }
}
