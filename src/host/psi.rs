//! Pressure stall information: `/proc/pressure/*` and a cgroup's `*.pressure`, which look alike.

use std::time::Duration;

/// Time lost since boot, or since the cgroup began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// At least one task waited.
    pub some: Duration,
    /// All tasks stalled at once; not every file has this line.
    pub full: Option<Duration>,
}

/// `None` where there is no `some` line with a `total`: an empty file means that pressure is not accounted here.
pub fn parse(text: &[u8]) -> Option<Stall> {
    let text = std::str::from_utf8(text).ok()?;
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let micros = line.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
        micros.parse().ok().map(Duration::from_micros)
    };
    Some(Stall { some: total("some ")?, full: total("full ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_lines_one_line_and_none() {
        let some = "some avg10=0.13 avg60=6.81 avg300=10.29 total=107024585\n";
        let full = "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let stall = |full| Some(Stall { some: Duration::from_micros(107_024_585), full });
        assert_eq!(parse(format!("{some}{full}").as_bytes()), stall(Some(Duration::from_micros(7))));
        assert_eq!(parse(some.as_bytes()), stall(None));
        assert_eq!(parse(full.as_bytes()), None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"some avg10=0.00 total=-1"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
        }

        #[test]
        fn every_total_is_read_back(some in any::<u64>(), full in any::<u64>()) {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n");
            prop_assert_eq!(parse(text.as_bytes()), Some(Stall { some: Duration::from_micros(some), full: Some(Duration::from_micros(full)) }));
        }
    }
}
