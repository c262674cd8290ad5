//! Figures as people read them, for reasons.

use std::time::Duration;

use crate::policy::leak::Leak;
use crate::policy::stress::Measure;
use crate::policy::{Resource, Verdict};

/// `312.5 MB`: decimal, as sizes are written in the file.
pub fn bytes(amount: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match UNITS.iter().find(|(size, _)| amount.abs() >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", amount / size),
        None => format!("{amount:.0} B"),
    }
}

/// `2.0 MB/s`.
pub fn rate(per_second: f64) -> String {
    format!("{}/s", bytes(per_second))
}

/// `45 s`, `9 min`, `1.5 h`, `2.0 days`.
pub fn time(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// `grew steadily from 312.0 MB to 768.0 MB in 9 min, by 3.6 GB an hour: limits.memory (1.0 GB) would be reached in 4 min`.
pub fn leak(leak: &Leak) -> String {
    format!(
        "grew steadily from {} to {} in {}, by {} an hour: {} ({}) would be reached in {}",
        bytes(leak.from),
        bytes(leak.to),
        time(leak.within),
        bytes(leak.rate * 3_600.0),
        leak.bound.line.word(),
        bytes(leak.bound.at),
        time(leak.left)
    )
}

/// `1.25 cores`.
pub fn cores(amount: f64) -> String {
    format!("{amount:.2} cores")
}

/// In the unit of the resource.
pub fn amount(resource: &Resource, amount: f64) -> String {
    match resource {
        Resource::Cpu => cores(amount),
        _ => bytes(amount),
    }
}

/// `85.0 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `memory 85.0 % (425.0 MB of 500.0 MB), line 80.0 %`.
pub fn standing(verdict: &Verdict) -> String {
    let name = match &verdict.resource {
        Resource::Cpu => "cpu".to_owned(),
        Resource::Memory if verdict.measure == Some(Measure::WorkingSet) => "memory (working set)".to_owned(),
        Resource::Memory => "memory".to_owned(),
        Resource::Disk(path) => format!("disk {}", path.display()),
        Resource::Worker(_) => "its memory".to_owned(),
    };
    match (verdict.used, verdict.limit, verdict.utilization) {
        (Some(used), Some(limit), Some(usage)) => {
            let (used, limit) = (amount(&verdict.resource, used), amount(&verdict.resource, limit));
            format!("{name} {} ({used} of {limit}), line {}", percent(usage), percent(verdict.high))
        }
        _ => format!("{name} not known, last {}", verdict.level.word()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let cases = [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "120 min"), (7_200, "2.0 h"), (172_800, "2.0 days")];
        for (seconds, text) in cases {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn figures_are_short() {
        let cases = [(0.0, "0 B"), (999.0, "999 B"), (1500.0, "1.5 kB"), (312.5e6, "312.5 MB"), (8e9, "8.0 GB"), (-2e6, "-2.0 MB")];
        for (amount, text) in cases {
            assert_eq!(bytes(amount), text);
        }
    }
}
