//! The event feed, whole or followed. The journal keeps the events; here is only how they travel.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame};
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::ending::Ending;

/// Where events are kept in memory. Called on the HTTP thread: it must answer at once, without a disk.
pub trait EventSource: Send + Sync {
    /// At most `most` of the events numbered above `after`, oldest first. Numbers rise and are never used again.
    fn since(&self, after: u64, most: usize) -> Vec<(u64, Value)>;
}

impl EventSource for crate::journal::Ring {
    fn since(&self, after: u64, most: usize) -> Vec<(u64, Value)> {
        crate::journal::Ring::since(self, after, most)
    }
}

/// At most this many events in one answer or one step of a stream.
pub const MOST: usize = 500;

/// How often a followed feed looks for news.
const STEP: Duration = Duration::from_millis(500);

/// Steps without news after which a comment is sent, so that a dead client is noticed and a proxy stays patient.
const QUIET_STEPS: u32 = 30;

/// A body of server-sent events that goes on until the client leaves or the server ends.
pub struct Stream {
    source: Arc<dyn EventSource>,
    after: u64,
    steps: Interval,
    quiet: u32,
    ending: Ending,
}

impl Stream {
    pub fn new(source: Arc<dyn EventSource>, after: u64, ending: Ending) -> Stream {
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first step sends at least a comment: headers alone may be held back on the way.
        Stream { source, after, steps, quiet: QUIET_STEPS, ending }
    }

    /// What is to be sent now, if anything.
    fn step(&mut self) -> Option<Bytes> {
        let news = self.source.since(self.after, MOST);
        if news.is_empty() {
            self.quiet += 1;
            if self.quiet <= QUIET_STEPS {
                return None;
            }
            self.quiet = 0;
            return Some(Bytes::from_static(b": still here\n\n"));
        }
        self.quiet = 0;
        let mut text = String::new();
        for (id, record) in news {
            // JSON as `Value` prints it has no line break, so one `data` line always holds it.
            text.push_str(&format!("id: {id}\ndata: {record}\n\n"));
            self.after = id;
        }
        Some(Bytes::from(text))
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if this.ending.begun() {
                return Poll::Ready(None);
            }
            ready!(this.steps.poll_tick(context));
            if let Some(data) = this.step() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }
}
