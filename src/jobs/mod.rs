//! Keeps house: what to delete and what to back up, and when. Owns schedules, plans, their execution and the record of runs.
//! May touch the databases and folders that are named in the settings, through `host` and SQLite, in a process of their own.
//! Must not delete what its plan did not list.

pub mod allowance;
pub mod backup;
pub mod child;
pub mod errand;
pub mod files;
pub mod kinds;
pub mod ledger;
pub mod patience;
pub mod plan;
pub mod queue;
pub mod run;
pub mod schedule;
pub mod sessions;
pub mod sqlite;
pub mod trigger;
