//! Applies a changed file whole or not at all.

use crate::config::{self, Settings};
use crate::host::clock::Moment;
use crate::http::control::Answer;
use crate::journal::Event;

use super::guardian::Guardian;
use super::wiring::watched_disks;

/// What a running daemon cannot change: it holds these open.
const FIXED: [&str; 6] = ["daemon.state_dir", "daemon.runtime_dir", "http.listen", "log", "host", "sampling.scope"];

fn only_after_restart(changed: &[String]) -> String {
    let fixed: Vec<&str> = changed.iter().map(String::as_str).filter(|key| FIXED.iter().any(|fixed| key.starts_with(fixed))).collect();
    if fixed.is_empty() { String::new() } else { format!("; only after a restart: {}", fixed.join(", ")) }
}

impl Guardian {
    /// What a reload would do, said and not done.
    pub fn plan_reload(&self) -> Answer {
        match config::reload(&self.sources, &self.settings) {
            Err(problems) => Answer::Refused(problems.render(false)),
            Ok(loaded) => {
                let changed = self.settings.diff(&loaded.settings);
                let said = match changed.len() {
                    0 => "nothing has changed".to_owned(),
                    _ => format!("would apply: {}{}", changed.join(", "), only_after_restart(&changed)),
                };
                let renewed = self.renewed_on_reload().map(|path| format!("{} is another program now: would become it\n", path.display()));
                Answer::Done(renewed.unwrap_or_default() + &said + &self.plan_of(&loaded.settings))
            }
        }
    }

    /// What becomes of each worker, a line for each.
    fn plan_of(&self, settings: &Settings) -> String {
        self.supervisor.plan(&settings.workers).iter().map(|step| format!("\n  {step}")).collect()
    }

    /// Reads the settings again. A bad file leaves the old ones running, and says so in the log, the metrics and the answer.
    pub fn reload(&mut self, now: Moment) -> Answer {
        let file = self.settings.file.as_ref().map(|file| file.display().to_string());
        match config::reload(&self.sources, &self.settings) {
            Err(problems) => {
                let list: Vec<String> = problems.list.iter().map(ToString::to_string).collect();
                self.reject(file, list, now);
                Answer::Refused(problems.render(false))
            }
            Ok(loaded) => {
                let changed = self.settings.diff(&loaded.settings);
                let said = match changed.len() {
                    0 => "settings read again, nothing changed".to_owned(),
                    _ => {
                        let plan = self.plan_of(&loaded.settings);
                        format!("settings applied, changed: {}{}{plan}", changed.join(", "), only_after_restart(&changed))
                    }
                };
                // Whole or not at all: nothing was changed so far.
                let prepared = match self.supervisor.prepare(&loaded.settings.workers, &|address| self.passed.socket(address)) {
                    Ok(prepared) => prepared,
                    Err(error) => return self.reject(file, vec![error.to_string()], now),
                };
                if loaded.settings.policy.dry_run && !self.settings.policy.dry_run {
                    // From now on nothing is done, so nothing may stay done either.
                    self.release(now);
                }
                *self.effective.write().unwrap_or_else(std::sync::PoisonError::into_inner) = loaded.to_json();
                self.chronicle.apply(&loaded);
                self.settings = loaded.settings;
                self.access.replace(&self.settings.http);
                self.sampler.set_disks(watched_disks(&self.settings));
                self.sampler.set_limit_files(&self.settings.policy);
                if changed.iter().any(|key| key.starts_with("policy.") && key.ends_with(".limit")) {
                    self.sight.forget_files();
                }
                self.engine.apply(&self.settings);
                self.planner.apply(&self.settings);
                let (workers, cores) = (self.settings.workers.clone(), self.cpu_limit());
                self.supervisor.apply(&workers, prepared, cores, now);
                self.apply_jobs(now);
                self.tend_jobs(now);
                if let Err(detail) = self.throttle.apply(&self.supervisor, now.steady) {
                    self.tell(&[Event::Degraded { part: "undo", detail }], now);
                }
                if let Err(detail) = self.brake.apply(&self.supervisor) {
                    self.tell(&[Event::Degraded { part: "undo", detail }], now);
                }
                self.tally.expect_actions(&self.settings);
                self.tally.reload_successful = true;
                self.tally.reloaded = now;
                self.tally.next_tick = now.steady;
                let file = self.settings.file.as_ref().map(|file| file.display().to_string());
                self.tell(&[Event::ConfigReloaded { file, changed }], now);
                self.picture_now(now);
                Answer::Done(said)
            }
        }
    }

    /// The old settings go on.
    fn reject(&mut self, file: Option<String>, problems: Vec<String>, now: Moment) -> Answer {
        self.tally.reload_successful = false;
        let said = problems.join("\n");
        self.tell(&[Event::ConfigRejected { file, problems }], now);
        self.picture_now(now);
        Answer::Refused(said)
    }
}
