//! Commands.

pub mod client;
pub mod render;
pub mod status;
