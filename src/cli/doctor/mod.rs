//! `plimsoll doctor`: what can be read and done here, each with the reason and the remedy. Tests by doing, not by reading flags,
//! on children and groups of its own; nothing it changes remains.
//!
//! On a machine that is a folder (`host.proc` and its like) it only reads, and says so. The traps of the platform, which need not be the
//! one it runs on, follow from what was seen and from the settings.

mod groups;
mod jobs;
mod ladder;
mod machine;
mod places;
pub mod platform;
mod processes;
pub mod report;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Settings, Sources};
use crate::daemon::signals::Signals;
use crate::host::Paths;
use crate::host::cgroupfs::Layout;
use crate::host::inventory::Platform;
use crate::response::candidate::ReclaimBy;
use crate::sampling::readings::LimitSource;
use crate::snapshot::Snapshot;

use report::{Level, Report};

/// What is looked at, and by what.
pub struct Patient {
    pub sources: Sources,
    /// How many problems kept the settings from being used; those here are then the defaults.
    pub problems: usize,
    pub settings: Settings,
    pub paths: Paths,
    pub layout: Layout,
    pub platform: Platform,
    /// The platform whose traps are asked for; otherwise those of the one we are on.
    pub asked: Option<Platform>,
    /// That platform is not the one we are on: nothing here says anything of it.
    pub elsewhere: bool,
    /// How long it waits after asking us to end, where somebody has said it.
    pub grace: Option<Duration>,
    /// What the running daemon says, if there is one.
    pub daemon: Option<Snapshot>,
    /// Where it was found or looked for.
    pub socket: Result<String, String>,
}

/// What was found to work, for what is looked at later. `None`: it was not tried.
#[derive(Clone, Debug, Default)]
pub struct Means {
    pub quota: Option<bool>,
    pub duty: Option<bool>,
    pub nice: Option<bool>,
    /// By what memory is asked back.
    pub reclaim: Option<Result<ReclaimBy, ()>>,
    /// Workers that are there, and cannot be stopped: their names.
    pub out_of_reach: BTreeSet<Arc<str>>,
    /// Who sets the limits.
    pub memory: Option<LimitSource>,
    pub cpu: Option<LimitSource>,
}

/// Looks at a part of everything.
type Step = fn(&Patient, &mut Report, &mut Means);

/// Looks at everything. `None`: somebody wanted it to stop; what was made has been removed.
pub fn examine(patient: &Patient) -> std::io::Result<Option<Report>> {
    let mut signals = Signals::listen()?;
    let mut report = Report::default();
    let mut means = Means::default();
    if patient.problems > 0 {
        let found =
            format!("{} told above, so what follows is about the defaults", if patient.problems == 1 { "a problem" } else { "problems" });
        report.bad("settings", Level::Fail, "settings", found, "`plimsoll check` shows each with its place and what is allowed");
    }
    let steps: [Step; 7] = [
        machine::examine,
        groups::examine,
        processes::examine,
        places::examine,
        |patient, report, _| jobs::examine(patient, report),
        platform::examine,
        ladder::examine,
    ];
    let steps = if patient.elsewhere { &[platform::examine as Step][..] } else { &steps };
    for step in steps {
        step(patient, &mut report, &mut means);
        // Each step takes back what it did before it ends.
        let wanted =
            |signal: &i32| [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP].contains(signal);
        if signals.pending().iter().any(wanted) {
            return Ok(None);
        }
    }
    Ok(Some(report))
}

impl Patient {
    /// True where things can be tried out: a machine, not a folder that looks like one.
    pub fn is_live(&self) -> bool {
        self.paths.is_live()
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.sources.variable(name).filter(|value| !value.is_empty())
    }
}

/// Enters the outcome of something that was tried.
fn tried<T>(
    report: &mut Report,
    area: &'static str,
    what: &str,
    outcome: std::io::Result<T>,
    works: impl FnOnce(T) -> String,
    level: Level,
    remedy: &str,
) -> bool {
    match outcome {
        Ok(value) => {
            report.ok(area, what, works(value));
            true
        }
        Err(error) if level <= Level::Note => {
            report.note(area, what, format!("does not work: {error}; {remedy}"));
            false
        }
        Err(error) => {
            report.bad(area, level, what, format!("does not work: {error}"), remedy);
            false
        }
    }
}
