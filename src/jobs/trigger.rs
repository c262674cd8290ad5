//! Wakes the daemon when a job is due. A thread of its own sleeps until shortly before; then tokio-cron-scheduler is handed one shot,
//! in a runtime that is thrown away with it.
//!
//! All that the scheduler is asked for is that one call. When it is due was computed before, in the right zone; whether anything is
//! begun is decided by [`super::queue`] after a look at both clocks. So its offset, frozen when a job is made, its overlapping runs, its
//! memory of nothing and its look every half second, for as long as it is there, do no harm. A shot that does not come is no harm
//! either: the loop looks by itself a little later.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::host::clock::Moment;
use crate::host::scheduling;

/// The scheduler is there for so long before the moment.
const LEAD: Duration = Duration::from_secs(2);
/// It counts in whole seconds, and looks twice in each.
const LATE: Duration = Duration::from_secs(3);
/// Longer than this is slept in pieces.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Dropped, its thread ends.
#[derive(Debug)]
pub struct Trigger(Sender<Option<Duration>>);

impl Trigger {
    /// `ring` is called at each moment that was set, from another thread.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(ring: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Trigger> {
        let (tell, news) = mpsc::channel::<Option<Duration>>();
        let run = move || {
            let mut due: Option<Duration> = None;
            loop {
                let left = due.map(|due| due.saturating_sub(Moment::now().steady));
                if let (Some(at), Some(left)) = (due, left.filter(|left| *left <= LEAD)) {
                    // Whether it came or not: the loop is to look.
                    let _ = fire_once(left);
                    // It counts in whole seconds, and so comes up to one too early.
                    match news.recv_timeout(at.saturating_sub(Moment::now().steady)) {
                        Ok(next) => due = next,
                        Err(RecvTimeoutError::Timeout) => due = None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    ring();
                    continue;
                }
                match news.recv_timeout(left.map_or(LONGEST, |left| (left - LEAD).min(LONGEST))) {
                    Ok(next) => due = next,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("schedule".into()).stack_size(256 * 1024);
        scheduling::deaf_to_signals(|| thread.spawn(run))?;
        Ok(Trigger(tell))
    }

    /// Sets the next moment, on the steady clock, in place of the one before.
    pub fn set(&self, due: Option<Duration>) {
        // A thread that has ended wakes nobody: the loop looks by itself.
        let _ = self.0.send(due);
    }
}

/// Returns when the shot has come, or should have.
fn fire_once(after: Duration) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let come = Arc::new(Notify::new());
        let shot = async {
            let told = come.clone();
            let mut scheduler = JobScheduler::new().await?;
            scheduler.add(Job::new_one_shot(after, move |_, _| told.notify_one())?).await?;
            scheduler.start().await?;
            come.notified().await;
            scheduler.shutdown().await
        };
        match tokio::time::timeout(after + LATE, shot).await {
            Ok(result) => result.map_err(|error: JobSchedulerError| error.to_string()),
            Err(_) => Err("it did not come".to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_once_for_each_moment_and_not_for_one_that_was_replaced() {
        let (tell, rung) = mpsc::channel();
        let trigger = Trigger::start(Arc::new(move || {
            let _ = tell.send(Moment::now());
        }))
        .unwrap();
        let begun = Moment::now();
        trigger.set(Some(begun.steady + Duration::from_secs(3600)));
        trigger.set(Some(begun.steady + Duration::from_millis(2500)));
        let at = rung.recv_timeout(Duration::from_secs(60)).unwrap();
        let took = at.since(begun);
        assert!(took >= Duration::from_millis(2500), "{took:?}");
        assert!(rung.recv_timeout(Duration::from_millis(1500)).is_err(), "once");
        trigger.set(Some(Duration::ZERO));
        rung.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn the_shot_comes_from_the_scheduler() {
        assert_eq!(fire_once(Duration::from_millis(100)), Ok(()));
    }
}
