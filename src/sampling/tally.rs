//! Counts what could not be read, so that no failure is silent.

use rustix::io::Errno;

use super::readings::{Failure, Reading, Source};

/// Failed reads of one tick, in the order of [`Source::ALL`].
#[derive(Debug, Default)]
pub(super) struct Tally(pub [u32; Source::ALL.len()]);

impl Tally {
    /// What was read and understood, or why not. A file that is not there is a thing this kernel or container does not
    /// offer; one that was there and cannot be read any more has ended.
    pub fn reading<T>(&mut self, source: Source, text: Result<&[u8], Errno>, parse: impl FnOnce(&[u8]) -> Option<T>) -> Reading<T> {
        match text {
            // The kernel ends each of its texts with a line break. What has none was cut short, and its last number with it.
            Ok(text) if text.last().is_some_and(|last| *last != b'\n') => self.failed(source, None),
            Ok(text) => parse(text).map_or_else(|| self.failed(source, None), Reading::Known),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::OPNOTSUPP) => Reading::Unsupported,
            Err(Errno::SRCH | Errno::NODEV) => Reading::Gone,
            Err(errno) => self.failed(source, Some(errno)),
        }
    }

    /// A failure, counted. `None`: the text was not understood.
    pub fn failed<T>(&mut self, source: Source, errno: Option<Errno>) -> Reading<T> {
        let at = Source::ALL.iter().position(|each| *each == source);
        if let Some(count) = at.and_then(|at| self.0.get_mut(at)) {
            *count = count.saturating_add(1);
        }
        Reading::Failed(Failure { source, errno: errno.map(Errno::raw_os_error) })
    }
}
