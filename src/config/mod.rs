//! Owns the shape of the TOML file, its meaning and its errors.
//! May touch its own file, and the environment through a lookup that is passed in.
//! Must not act on what it says, nor change after start except by reload.
//!
//! `layers` gathers what was said (built-in file, file, environment, `--set`), `shape` checks each layer key by key against the schema
//! of `file`, figment merges them, and `sense` turns the whole into `settings`. `problems` collects everything that is wrong.

pub mod adopt;
pub mod credentials;
mod diff;
pub mod env_file;

mod file;
mod layers;
mod load;
mod reference;
mod sense;
mod shape;
mod show;
mod text;
mod tree;

pub mod globs;
pub mod jobs;
pub mod problems;
pub mod settings;
pub mod units;

pub use layers::{ALIASES, BUILT_IN, Sources};
pub use load::{Loaded, load, reload, runtime_dir, state_dir};
pub use problems::{Place, Problem, Problems};
pub use reference::{EXAMPLE_JOBS, HEAD, Key, Section, example, keys, reference, schema, sections, with_offers};
pub use settings::Settings;
pub use show::Effective;
