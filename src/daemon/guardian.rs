//! Everything the loop owns.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::actuators::brake::Brake;
use crate::actuators::throttle::Throttle;
use crate::config::{Settings, Sources};
use crate::host::clock::Moment;
use crate::host::process::DescriptorReserve;
use crate::host::program::Program;
use crate::host::service_manager::Passed;
use crate::host::stops::StopTable;
use crate::http::access::CurrentAccess;
use crate::http::control::Request;
use crate::http::server::{Handle, Parts};
use crate::journal::log::Guard;
use crate::journal::{Event, Journal};
use crate::policy::{Engine, Level, Resource, Verdict};
use crate::response::Planner;
use crate::response::candidate::Candidate;
use crate::response::members::Watched;
use crate::sampling::Readings;
use crate::sampling::readings::{SlotId, Source};
use crate::sampling::sampler::Sampler;
use crate::snapshot::{Counters, Environment, Published, Snapshot};
use crate::supervisor::Supervisor;
use crate::supervisor::leftovers::Leftover;
use crate::supervisor::sockets::Prepared;

use super::asked::Waiting;
use super::bell::Bell;
use super::explain::Chronicle;
use super::folders::Folders;
use super::foretold::Foretold;
use super::jobs::Jobs;
use super::pacing::Pace;
use super::picture::OwnUse;
use super::rationing::Ration;
use super::renewal::Watch;
use super::self_watch::SelfWatch;
use super::sentinel::Sentinel;
use super::service::Service;
use super::sight::Sight;
use super::signals::Signals;
use super::upgrade::{Parcel, Underway};

/// The daemon, between its start and its end. Fields are grouped by who uses them.
pub struct Guardian {
    // What was asked.
    pub sources: Sources,
    pub settings: Settings,

    // The four stages and the workers.
    pub sampler: Sampler,
    pub readings: Readings,
    pub engine: Engine,
    pub planner: Planner,
    pub throttle: Throttle,
    pub brake: Brake,
    pub supervisor: Supervisor,
    /// What is known of the children of pre-fork masters.
    pub members: BTreeMap<SlotId, Watched>,
    /// What workers listen on, bound and not yet handed over.
    pub prepared: Prepared,
    /// Who lives on of an earlier daemon, until the workers are begun with.
    pub leftovers: Vec<Leftover>,
    pub jobs: Jobs,

    // What the outside sees.
    pub journal: Journal,
    pub published: Arc<Published>,
    pub access: Arc<CurrentAccess>,
    pub effective: Arc<RwLock<serde_json::Value>>,
    /// Listeners that are bound: whoever connects before they are served waits until there is something to see.
    pub doors: Option<Parts>,
    /// That they could not be opened has been told.
    pub doors_jam: bool,
    pub http: Option<Handle>,
    /// Memory and priority are as good as they get.
    pub settled: bool,
    /// Some child, since they were reaped last.
    pub child_ended: bool,
    pub listening: Vec<String>,
    pub environment: Environment,
    pub tally: Tally,
    pub chronicle: Chronicle,
    pub spare: Spare,

    /// The environment we were started with, for whom we become.
    pub env: Vec<(OsString, OsString)>,
    /// What a daemon has handed over that became this one, until the workers are begun with.
    pub parcel: Option<Parcel>,
    /// What it had open and is to be closed when there is time for it.
    pub leavings: Vec<OwnedFd>,

    /// The file we were started from, or why that is not known.
    pub program: Result<Program, String>,
    /// systemd runs us as a service.
    pub is_service: bool,
    pub service: Service,
    /// What was bound for us by whoever started us.
    pub passed: Passed,
    pub renewal: Watch,
    /// Another program that is being tried out.
    pub underway: Option<Underway>,

    // What wakes the loop.
    pub signals: Signals,
    pub wake: Arc<OwnedFd>,
    pub commands: Receiver<Request>,
    /// Whoever asked for something that is not done yet.
    pub waiting: Vec<Waiting>,
    pub pace: Pace,
    pub bell: Bell,
    pub self_watch: SelfWatch,
    /// What was told of limits that are not found.
    pub sight: Sight,

    // What is held for as long as the daemon lives.
    pub folders: Folders,
    pub stops: Arc<StopTable>,
    pub sentinel: Option<Sentinel>,
    pub reserve: DescriptorReserve,
    pub log: Guard,
}

/// Memory that is used again in each tick: a steady one allocates nothing.
#[derive(Debug, Default)]
pub struct Spare {
    pub verdicts: Vec<Verdict>,
    pub candidates: Vec<Candidate>,
    /// The picture before the published one, unless somebody still looks at it.
    pub snapshot: Option<Arc<Snapshot>>,
    pub own_use: OwnUse,
}

/// What is remembered from tick to tick in order to tell of changes, and counted over the daemon's life.
#[derive(Debug)]
pub struct Tally {
    pub tick: u64,
    pub started: Moment,
    pub next_tick: Duration,
    pub gap: Duration,
    pub reported: Option<Moment>,
    pub reloaded: Moment,
    pub reload_successful: bool,
    /// Why the state database is not written, as it was told last.
    pub history_problem: Option<String>,
    pub shutting_down: bool,
    /// The state of the trees whose members the supervisor knows of.
    pub noted: Option<u64>,
    pub levels: BTreeMap<Resource, Level>,
    pub foretold: Foretold,
    pub ration: Ration,
    pub limits: [Option<f64>; 2],
    /// The highest action that was told; a budget that is shared anew keeps its number.
    pub last_action: u64,
    /// Since when each resource's throttle has been on.
    pub engaged: BTreeMap<Resource, Moment>,
    pub verdicts: Vec<Verdict>,
    pub counters: Counters,
    pub actions: BTreeMap<(String, &'static str), (u64, u64)>,
    pub suppressed: BTreeMap<&'static str, u64>,
    pub source_errors: [u64; Source::ALL.len()],
}

impl Tally {
    /// Zeros for every pair of resource and action the settings make possible, so that the first action is seen as an increase.
    pub fn expect_actions(&mut self, settings: &Settings) {
        let policy = &settings.policy;
        let disks = policy.disks.iter().map(|disk| (format!("disk:{}", disk.path.display()), &disk.rule));
        let rules = [("cpu".to_owned(), &policy.cpu.rule), ("memory".to_owned(), &policy.memory.rule)];
        for (resource, rule) in rules.into_iter().chain(disks) {
            for rung in rule.on_high.iter().chain(&rule.on_critical) {
                self.actions.entry((resource.clone(), rung.word())).or_default();
            }
        }
    }
}

impl Guardian {
    /// Writes events down.
    pub fn tell(&mut self, events: &[Event], now: Moment) {
        for event in events {
            self.journal.record(event, now);
            self.chronicle.note(event, now);
        }
    }
}
