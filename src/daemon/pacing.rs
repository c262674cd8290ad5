//! How long until the next tick: the configured interval at rest, shorter as a line comes near. Pure.
//!
//! 80 % of a 512 MB box leaves one second at 100 MB/s, so the gap must follow the fill rate: the next tick falls before
//! the line can be crossed at the rate that was seen, or at [`ASSUMED_FILL`] where none was.

use std::time::Duration;

use crate::policy::{Level, Resource, Verdict};

/// No gap is shorter: below it the ticks themselves become the load.
pub const SHORTEST: Duration = Duration::from_millis(50);
/// While something is over its line or held back.
const ENGAGED: Duration = Duration::from_millis(250);
/// Bytes per second that memory is assumed to be able to fill at, before it was seen to.
const ASSUMED_FILL: f64 = 64.0 * 1024.0 * 1024.0;
/// Of the time in which the line would be reached, so much may pass unseen.
const MARGIN: f64 = 0.5;

/// The gap to the next tick.
pub fn gap(verdicts: &[Verdict], holding: bool, interval: Duration) -> Duration {
    let engaged = holding || verdicts.iter().any(|verdict| verdict.over || verdict.level != Level::Normal);
    let most = if engaged { ENGAGED.min(interval) } else { interval };
    let soonest = verdicts.iter().filter_map(until_line).fold(f64::INFINITY, f64::min);
    let wanted = if soonest.is_finite() { Duration::from_secs_f64((soonest * MARGIN).clamp(0.0, 3600.0)) } else { most };
    wanted.clamp(SHORTEST.min(most), most)
}

/// Seconds until the next line of this resource above its usage, at the rate it may fill. Disks and CPU have time.
fn until_line(verdict: &Verdict) -> Option<f64> {
    let assumed = match verdict.resource {
        Resource::Memory | Resource::Worker(_) => ASSUMED_FILL,
        Resource::Cpu | Resource::Disk(_) => return None,
    };
    let (used, limit) = (verdict.used?, verdict.limit?);
    let next = [Some(verdict.high), verdict.critical].into_iter().flatten().map(|line| line * limit).find(|line| *line > used)?;
    Some((next - used) / assumed.max(verdict.growth * 1.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::clock::Moment;
    use crate::policy::verdict::Basis;
    use std::time::SystemTime;

    fn memory(used_mb: f64, growth_mb: f64) -> Verdict {
        Verdict {
            resource: Resource::Memory,
            level: Level::Normal,
            since: Moment { steady: Duration::ZERO, wall: SystemTime::UNIX_EPOCH },
            basis: Basis::Scope,
            used: Some(used_mb * 1e6),
            limit: Some(512e6),
            utilization: Some(used_mb / 512.0),
            high: 0.8,
            low: 0.7,
            critical: Some(0.92),
            over: false,
            over_for: Duration::ZERO,
            growth: growth_mb * 1e6,
            exhaustion: None,
            early: false,
            measure: None,
            evidence: None,
            unknown: None,
        }
    }

    #[test]
    fn the_gap_shrinks_as_the_line_comes_near() {
        let interval = Duration::from_secs(2);
        let gaps: Vec<u128> = [(10.0, 0.0), (300.0, 0.0), (380.0, 0.0), (408.0, 0.0), (300.0, 400.0)]
            .map(|(used, growth)| gap(&[memory(used, growth)], false, interval).as_millis())
            .to_vec();
        assert_eq!(gaps, [2000, 816, 220, 50, 91]);
        assert_eq!(gap(&[], false, interval), interval);
        assert_eq!(gap(&[], true, interval), ENGAGED);
    }
}
