//! Where every event goes: the log, a bounded list in memory, and the database if there is one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::clock::Moment;

use super::history::History;
use super::record::Event;

/// Events kept in memory; older ones are in the database only.
const KEPT: usize = 512;

/// The last events, numbered from 1.
#[derive(Debug, Default)]
pub struct Ring(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<(u64, serde_json::Value)>,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked while reading left the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At most so many events after number `after`, the oldest first.
    pub fn since(&self, after: u64, most: usize) -> Vec<(u64, serde_json::Value)> {
        self.lock().events.iter().filter(|(number, _)| *number > after).take(most).cloned().collect()
    }

    fn push(&self, event: serde_json::Value) {
        let mut kept = self.lock();
        kept.last += 1;
        let number = kept.last;
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back((number, event));
    }
}

#[derive(Debug)]
pub struct Journal {
    ring: Arc<Ring>,
    history: Option<History>,
}

impl Journal {
    pub fn new(history: Option<History>) -> Journal {
        Journal { ring: Arc::default(), history }
    }

    pub fn ring(&self) -> Arc<Ring> {
        self.ring.clone()
    }

    /// Writes one event down everywhere. Never blocks: what a full disk or a slow reader does not take is dropped there.
    pub fn record(&self, event: &Event, now: Moment) {
        event.log();
        let mut value = serde_json::to_value(event).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            // What a run said of itself stands beside what is said of it, and never in its place.
            if let Some(serde_json::Value::Object(said)) = fields.remove("fields") {
                for (name, value) in said {
                    fields.entry(name).or_insert(value);
                }
            }
            fields.insert("at".to_owned(), now.unix_seconds().into());
            fields.insert("message".to_owned(), event.message().into());
        }
        if let Some(history) = &self.history {
            history.event(now, event.name(), &value);
        }
        self.ring.push(value);
    }

    pub fn history(&self) -> Option<&History> {
        self.history.as_ref()
    }

    /// Goes on with another database thread.
    pub fn reopen(&mut self, history: Option<History>) {
        self.history = history;
    }

    /// Writes out what is still queued for the database, within the given time.
    pub fn close(&mut self, within: std::time::Duration) -> Result<(), String> {
        self.history.take().map_or(Ok(()), |history| history.close(within))
    }
}
