//! The end, in a fixed order: let everybody go, stop jobs at a safe point, stop workers, write out what they have printed, undo, close the doors, write out the record. A step that
//! fails does not stop the next; each is told; the exit code is that of the reason, not of the steps (seeds row C3).

use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::actuators::undo;
use crate::host::clock::Moment;
use crate::http::listen::{self, SOCKET};
use crate::journal::Event;

use super::guardian::Guardian;
use super::jobs::running::GRACE;
use super::run::counted;

/// While workers are being stopped they are looked at this often at least.
const LOOK: Duration = Duration::from_millis(50);
/// For the last that workers have printed.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// For requests that are being answered.
const HTTP_GRACE: Duration = Duration::from_millis(500);
/// What may come after the deadline: killed processes that take their time, and the other graces here, with room to spare.
const AFTER_DEADLINE: Duration = Duration::from_secs(15);
/// For the last rows of the state database.
const HISTORY_GRACE: Duration = Duration::from_secs(2);

impl Guardian {
    /// Ends everything. Takes `daemon.shutdown_timeout` at the longest, plus what the kernel needs to end killed processes.
    pub fn shut_down(&mut self, reason: String) {
        let begun = Moment::now();
        let deadline = begun.steady + self.settings.daemon.shutdown_timeout;
        self.tally.shutting_down = true;
        self.abandon_trial();
        self.tell(&[Event::DaemonStopping { reason }], begun);
        self.picture_now(begun);

        // First of all: a stopped process does not get the signal that asks it to end.
        self.step("throttles", |guardian| {
            let now = Moment::now();
            let result = guardian.let_all_go(now);
            let mut events = Vec::new();
            guardian.note_released("the daemon is stopping", now, &mut events);
            guardian.tell(&events, now);
            result.map(|count| format!("held and now free: {}", counted(count)))
        });
        // Only now: who was stopped gets a signal from whoever is told, too.
        self.service.stopping(deadline.saturating_sub(begun.steady) + AFTER_DEADLINE);
        self.step("jobs", |guardian| guardian.stop_jobs(deadline.min(begun.steady + GRACE)));
        self.step("workers", |guardian| guardian.stop_workers(deadline));
        self.step("output", Guardian::end_output);
        self.step("undo", |guardian| {
            guardian.supervisor.remove_groups();
            guardian.throttle.forget_missing_folders();
            guardian.let_all_go(Moment::now())?;
            // Nobody is held any more; where it was kept in memory there is no file.
            let _ = std::fs::remove_file(undo::stops_beside(&guardian.folders.undo_log()));
            Ok(String::new())
        });
        self.step("sentinel", |guardian| match guardian.sentinel.take() {
            Some(sentinel) => sentinel.dismiss().map(|()| String::new()).map_err(|error| error.to_string()),
            None => Ok("there was none".to_owned()),
        });
        self.step("http", |guardian| {
            let socket = guardian.folders.runtime.join(SOCKET);
            // Asked to end before the first tick: nobody was let in, and nobody is now.
            drop(guardian.doors.take());
            let drained = guardian.http.take().is_none_or(|http| http.shutdown(HTTP_GRACE));
            listen::remove_socket(&socket).map_err(|error| error.to_string())?;
            if drained { Ok(String::new()) } else { Err("some requests were cut off".to_owned()) }
        });
        self.step("history", |guardian| guardian.journal.close(HISTORY_GRACE).map(|()| String::new()));
    }

    fn step(&mut self, step: &'static str, perform: impl FnOnce(&mut Guardian) -> Result<String, String>) {
        let begun = Moment::now();
        self.service.ending(step);
        let result = perform(self);
        let now = Moment::now();
        let took_seconds = now.since(begun).as_secs_f64();
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        self.tell(&[Event::ShutdownStep { step, ok, took_seconds, detail }], now);
    }

    /// What writes the output of workers ends by itself once nobody is left who prints.
    fn end_output(&mut self) -> Result<String, String> {
        let deadline = Moment::now().steady + OUTPUT_GRACE;
        let files = self.supervisor.outputs.count();
        self.supervisor.outputs.close();
        loop {
            let now = Moment::now();
            // What wakes us is one of these.
            self.signals.pending();
            self.child_ended = true;
            let mut events = Vec::new();
            self.reap(now, &mut events);
            self.supervisor.outputs.tend(now);
            self.tell(&events, now);
            let left = self.supervisor.outputs.count();
            if left == 0 {
                return Ok(if files == 0 {
                    "no files".to_owned()
                } else {
                    format!("written: {files} file{}", if files == 1 { "" } else { "s" })
                });
            }
            if now.steady >= deadline {
                return Err(format!("still being written: {left} of {files}; that goes on without us until nobody prints any more"));
            }
            self.wait_for(deadline.saturating_sub(now.steady).min(LOOK));
        }
    }

    fn stop_workers(&mut self, deadline: Duration) -> Result<String, String> {
        let mut deadline = deadline;
        let running = self.supervisor.replicas().iter().filter(|replica| replica.life.is_some() && !replica.is_adopted()).count();
        let running = u32::try_from(running).unwrap_or(u32::MAX);
        let mut had_orphans = false;
        self.supervisor.close(Moment::now(), deadline);
        loop {
            let now = Moment::now();
            // Asked a second time: at once.
            if self.signals.pending().iter().any(|signal| [SIGTERM, SIGINT].contains(signal)) {
                deadline = deadline.min(now.steady);
            }
            let mut events = Vec::new();
            // The SIGCHLDs among the signals were taken just above.
            self.child_ended = true;
            self.reap(now, &mut events);
            self.supervisor.reap_strangers(now, &mut events);
            self.supervisor.stop_next(now, deadline);
            self.supervisor.advance(now, &mut events);
            self.tell(&events, now);
            if self.supervisor.is_empty() {
                let rest = self.supervisor.kill_the_rest();
                if rest > 0 && now.steady <= deadline + Duration::from_secs(5) {
                    had_orphans = true;
                    self.wait_for(Duration::from_millis(1));
                    continue;
                }
                self.supervisor.remove_roster();
                self.supervisor.close_sockets();
                let others = if had_orphans { ", and whoever was left of earlier ones" } else { "" };
                return Ok(format!("ended: {}{others}", counted(running)));
            }
            // Killed processes end when the kernel lets them; one in uninterruptible sleep must not hold us for ever.
            if now.steady > deadline + Duration::from_secs(5) {
                return Err("some processes did not end although they were killed".to_owned());
            }
            let next = self.supervisor.next_deadline().map_or(LOOK, |at| at.saturating_sub(now.steady)).min(LOOK);
            self.wait_for(next.max(Duration::from_millis(1)));
        }
    }
}
