//! Owns the shape of the TOML file, its meaning and its errors.
//! May touch its own file, and the environment through a lookup that is passed in.
//! Must not act on what it says, nor change after start except by reload.

pub mod settings;

pub use settings::Settings;
