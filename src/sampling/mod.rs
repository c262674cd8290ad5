//! Owns one consistent look at the machine.
//! May touch the reading half of `host`.
//! Must not write anything, nor judge what it saw.

pub mod readings;

pub mod sampler;

mod cpu;
mod disk;
mod lag;
pub mod limit_file;
mod limits;
pub mod members;
mod memory;
mod pressure;
pub mod scope;
mod tally;
pub mod trees;
mod view;
mod workers;

pub use limits::{Candidates, Carried};
pub use readings::Readings;
pub use sampler::Sampler;
pub use scope::Scope;
pub use trees::{Member, Trees};
pub use view::Obstacle;
