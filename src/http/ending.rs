//! The end of the server, as requests and streams see it come.

use std::time::Duration;

use tokio::sync::watch;

/// Tells whether the server has been asked to end.
#[derive(Clone)]
pub struct Ending(watch::Receiver<Option<Duration>>);

impl Ending {
    /// Follows what the owner says: `Some` is how long the end may take.
    pub fn new(said: watch::Receiver<Option<Duration>>) -> Ending {
        Ending(said)
    }

    pub fn begun(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
    }

    /// Waits for the end to be asked for, and says how long it may take. The owner going away counts as asking.
    pub async fn wait(&mut self) -> Duration {
        match self.0.wait_for(|grace| grace.is_some()).await {
            Ok(grace) => grace.unwrap_or_default(),
            Err(_) => Duration::ZERO,
        }
    }
}
