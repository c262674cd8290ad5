//! Owns carrying out one `Action`, and how to undo it.
//! May touch the writing half of `host`, the value it is about to replace, and the supervisor's handles.
//! Must not hold a threshold, nor choose a victim.

pub mod brake;
mod cycles;
pub mod duty;
pub mod effect;
pub mod hands;
pub mod throttle;
pub mod undo;

pub use effect::Effect;

/// What went wrong in a number of steps none of which stopped the next.
fn complain(failed: Vec<String>) -> Result<(), String> {
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}
