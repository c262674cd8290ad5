//! The only place that reads a clock. Everything else is given a [`Moment`].

use std::io;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// One instant on both clocks: `steady` to measure with, `wall` to tell people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Since an arbitrary start; never goes back, counts suspend (`CLOCK_BOOTTIME`).
    pub steady: Duration,
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is where clocks are read")]
    pub fn now() -> Moment {
        let ts = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The kernel keeps both fields in range: seconds since boot are never negative, nanoseconds below 1e9.
        Moment { steady: Duration::new(ts.tv_sec.max(0) as u64, ts.tv_nsec.clamp(0, 999_999_999) as u32), wall: SystemTime::now() }
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        self.steady.saturating_sub(earlier.steady)
    }

    /// The moment so long before this one; the beginning of the steady clock at the earliest.
    pub fn before(self, by: Duration) -> Moment {
        let by = by.min(self.steady);
        Moment { steady: self.steady - by, wall: self.wall.checked_sub(by).unwrap_or(self.wall) }
    }

    /// This moment moved on by `by`, on both clocks.
    pub fn after(self, by: Duration) -> Moment {
        Moment { steady: self.steady + by, wall: self.wall + by }
    }

    /// Seconds since 1970 on the wall clock; negative before it.
    pub fn unix_seconds(self) -> f64 {
        match self.wall.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => since.as_secs_f64(),
            Err(before) => -before.duration().as_secs_f64(),
        }
    }
}

/// How often [`until`] looks.
const LOOK: Duration = Duration::from_millis(1);

/// Looks again and again until it is so; false when it is not after `patience`. For the start, the end and trying out, where nobody
/// tells when it is so: the loop is never to wait in here.
///
/// # Errors
/// The first of `is_so`.
#[expect(clippy::disallowed_methods, reason = "what is waited for cannot be told by anybody")]
pub fn until(patience: Duration, mut is_so: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let begun = Moment::now();
    while !is_so()? {
        if Moment::now().since(begun) >= patience {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}
