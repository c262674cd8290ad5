//! How old a checkpoint is, read off its id and believed only when everything about the id fits.
//!
//! The ids are UUIDs of version 6: 60 bits of time, most significant first, so that their order as text is their order in
//! time. The library puts the number of the step where the clock sequence stands, and the step is recorded once more in the
//! metadata: a second witness. Ids of any other version or form have no time that could be trusted, and sort anywhere.

use std::time::{Duration, SystemTime};

/// Between the beginning of the Gregorian calendar, from which a UUID counts, and 1970; in steps of 100 ns.
const GREGORIAN_OFFSET: i64 = 0x01B2_1DD2_1381_4000;
const TICKS_A_SECOND: i64 = 10_000_000;
/// The clock sequence has 14 bits.
const SEQUENCE_BITS: i64 = 0x3FFF;

/// A moment on the wall clock in steps of 100 ns since 1970; negative before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub i64);

impl Stamp {
    pub fn of(time: SystemTime) -> Stamp {
        let ticks = |span: Duration| i64::try_from(span.as_nanos() / 100).unwrap_or(i64::MAX);
        Stamp(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => ticks(since),
            Err(before) => ticks(before.duration()).saturating_neg(),
        })
    }

    pub fn before(self, by: Duration) -> Stamp {
        Stamp(self.0.saturating_sub(i64::try_from(by.as_nanos() / 100).unwrap_or(i64::MAX)))
    }

    pub fn after(self, by: Duration) -> Stamp {
        Stamp(self.0.saturating_add(i64::try_from(by.as_nanos() / 100).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Stamp) -> Duration {
        let ticks = u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0);
        Duration::from_nanos(ticks.saturating_mul(100))
    }

    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / TICKS_A_SECOND as f64
    }

    /// From seconds since 1970; `None` for what is no number or out of range.
    pub fn from_unix_seconds(seconds: f64) -> Option<Stamp> {
        let ticks = seconds * TICKS_A_SECOND as f64;
        (ticks.is_finite() && ticks.abs() < i64::MAX as f64 / 2.0).then_some(Stamp(ticks as i64))
    }

    /// `2026-11-20T03:00:00Z`, or the bare number where no calendar reaches.
    pub fn told(self) -> String {
        match jiff::Timestamp::from_second(self.0.div_euclid(TICKS_A_SECOND)) {
            Ok(stamp) => stamp.to_string(),
            Err(_) => self.unix_seconds().to_string(),
        }
    }
}

/// When a session was last touched. Two moments, where the database says it without its time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Known { earliest: Stamp, latest: Stamp },
    Unknown(Doubt),
}

impl Age {
    pub fn at(stamp: Stamp) -> Age {
        Age::Known { earliest: stamp, latest: stamp }
    }
}

/// Why the age of a session is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// An id that is no UUID of version 6 in its one form.
    Id,
    /// The step in an id and the recorded one are two.
    Step,
    /// The tables tell no time, or one that cannot be.
    Time,
    /// Rows of a session that has no checkpoint.
    NoCheckpoint,
}

/// What the id of a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointId {
    pub made: Stamp,
    /// 14 bits: the step, as the library writes it.
    pub sequence: u16,
}

/// Reads the one canonical form: 36 characters, lower case, version 6, variant 10. `None` for anything else.
pub fn parse(text: &[u8]) -> Option<CheckpointId> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let mut digits = 0_u128;
    for (place, byte) in text.iter().enumerate() {
        if matches!(place, 8 | 13 | 18 | 23) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        digits = digits << 4 | u128::from(digit);
    }
    let version = digits >> 76 & 0xF;
    let variant = digits >> 62 & 0b11;
    if version != 6 || variant != 0b10 {
        return None;
    }
    let ticks = (digits >> 80 & 0xFFFF_FFFF_FFFF) << 12 | digits >> 64 & 0xFFF;
    let sequence = (digits >> 48 & 0x3FFF) as u16;
    Some(CheckpointId { made: Stamp(i64::try_from(ticks).ok()?.checked_sub(GREGORIAN_OFFSET)?), sequence })
}

/// True when the clock sequence of an id is the recorded step, or the one before: the id of a checkpoint that is written
/// once more under the next step keeps its number.
pub fn agrees(sequence: u16, step: i64) -> bool {
    let low = |step: i64| (step & SEQUENCE_BITS) as u16;
    sequence == low(step) || sequence == low(step.wrapping_sub(1))
}

/// The step recorded in the metadata of a checkpoint; `None` where there is none or it cannot be read.
pub fn recorded_step(metadata: &[u8]) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        step: Option<i64>,
    }
    let read = |text: &[u8]| serde_json::from_slice::<Metadata>(text).ok();
    read(metadata).or_else(|| read(&without_non_numbers(metadata)?))?.step
}

/// Python writes `NaN`, `Infinity` and `-Infinity` where JSON knows no such thing: with `null` in their places, or `None`
/// where there are none.
fn without_non_numbers(text: &[u8]) -> Option<Vec<u8>> {
    const NON_NUMBERS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut written = Vec::with_capacity(text.len());
    let (mut rest, mut is_in_string, mut found) = (text, false, false);
    while let Some((byte, after)) = rest.split_first() {
        let non_number = NON_NUMBERS.iter().find_map(|name| rest.strip_prefix(*name)).filter(|_| !is_in_string);
        if let Some(after) = non_number {
            written.extend(b"null");
            (rest, found) = (after, true);
            continue;
        }
        written.push(*byte);
        rest = after;
        match byte {
            b'"' => is_in_string = !is_in_string,
            // Whatever follows it, a quotation mark too, does not end the string.
            b'\\' => {
                written.extend(rest.first());
                rest = rest.get(1..).unwrap_or_default();
            }
            _ => {}
        }
    }
    found.then_some(written)
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An id as the library makes it.
    pub fn write(made: Stamp, step: i64, node: u64) -> String {
        let ticks = made.0.checked_add(GREGORIAN_OFFSET).unwrap() as u128;
        let low = (step & SEQUENCE_BITS) as u128 | 0x8000;
        let all = (ticks >> 12) << 80 | 6 << 76 | (ticks & 0xFFF) << 64 | low << 48 | u128::from(node & 0xFFFF_FFFF_FFFF);
        let hex = format!("{all:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    #[test]
    fn ids_of_the_real_library_are_read() {
        // The input of a run and its first two steps, by langgraph 1.2.22; its `ts` is 2026-11-29T07:41:07.5…
        for (text, step, micros) in [
            ("1f1ebc83-d0d7-6c30-bfff-134dfedf064c", -1, 547_641),
            ("1f1ebc83-d0e2-6b7d-8000-90b4eaa8d65d", 0, 552_111),
            ("1f1ebc83-d0eb-6ba4-8001-d65c1163641a", 1, 555_803),
        ] {
            let id = parse(text.as_bytes()).unwrap();
            assert!(agrees(id.sequence, step) && !agrees(id.sequence, step - 1) && !agrees(id.sequence, step + 2), "{text}");
            let ts = Stamp((1_795_938_067 * 1_000_000 + micros) * 10);
            // The library takes the time first and makes the id then.
            assert!(id.made.since(ts) < Duration::from_millis(1) && ts < id.made, "{text}: {:?}", id.made);
        }
    }

    #[test]
    fn everything_but_the_one_form_is_refused() {
        let good = write(Stamp::of(SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000)), 3, 7);
        assert!(parse(good.as_bytes()).is_some());
        let with = |place: usize, byte: u8| {
            let mut id = good.clone().into_bytes();
            id[place] = byte;
            id
        };
        for (why, id) in [
            ("version 4", with(14, b'4')),
            ("version 7", with(14, b'7')),
            ("version 1", with(14, b'1')),
            ("variant 0", with(19, b'0')),
            ("variant 11", with(19, b'c')),
            ("no hyphen", with(8, b'0')),
            ("a letter too many", with(0, b'g')),
            ("upper case", good.to_uppercase().into_bytes()),
            ("braces", format!("{{{good}}}").into_bytes()),
            ("no hyphens", good.replace('-', "").into_bytes()),
            ("a space behind", format!("{good} ").into_bytes()),
            ("nothing", Vec::new()),
            ("ISO time", b"2024-03-20T10:17:51.463217+00:00".to_vec()),
        ] {
            assert_eq!(parse(&id), None, "{why}");
        }
    }

    #[test]
    fn steps_are_read_from_whatever_stands_in_metadata() {
        assert_eq!(recorded_step(br#"{"source":"loop","writes":{"a":[1,{"step":9}]},"step":4,"parents":{}}"#), Some(4));
        // As Python's json.dumps writes them.
        assert_eq!(recorded_step(br#"{"score":NaN,"step":4,"worst":[-Infinity,Infinity]}"#), Some(4));
        assert_eq!(recorded_step(br#"{"a":"NaN \" NaN \\","b":NaN,"step":4,"c":"-Infinity"}"#), Some(4));
        for bad in [
            &b""[..],
            b"{}",
            b"{\"step\":NaN}",
            b"{\"step\":4,\"a\":NaNs}",
            b"{\"step\":4,\"a\":nan}",
            b"{\"step\":4,\"a\":-NaN}",
            b"null",
            b"{\"step\":null}",
            b"{\"step\":\"4\"}",
            b"{\"step\":1.5}",
            b"\x80\x04pickle",
            b"{\"step\":4",
        ] {
            assert_eq!(recorded_step(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_id_says_what_was_put_in(seconds in 0_i64..8_000_000_000, ticks in 0..TICKS_A_SECOND, step in -2_i64..100_000, node: u64) {
            let made = Stamp(seconds * TICKS_A_SECOND + ticks);
            let id = parse(write(made, step, node).as_bytes()).unwrap();
            prop_assert_eq!(id.made, made);
            prop_assert!(agrees(id.sequence, step) && agrees(id.sequence, step + 1) && !agrees(id.sequence, step + 2));
        }

        #[test]
        fn order_as_text_is_order_in_time(a in 0_i64..80_000_000_000_000_000, b in 0_i64..80_000_000_000_000_000) {
            prop_assert_eq!(write(Stamp(a), 0, 0).cmp(&write(Stamp(b), 0, 0)), a.cmp(&b));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), step: i64, sequence: u16) {
            let _ = (parse(&bytes), recorded_step(&bytes), agrees(sequence, step));
        }

        #[test]
        fn what_is_like_a_number_makes_no_other_step(before in "[NaInfity\"\\\\-]{0,12}", step in -2_i64..100) {
            let text = serde_json::json!({ "before": before, "step": step }).to_string();
            prop_assert_eq!(recorded_step(text.as_bytes()), Some(step));
            let with = format!("{{\"worst\":-Infinity,{}", &text[1..]);
            prop_assert_eq!(recorded_step(with.as_bytes()), Some(step));
            let _ = (recorded_step(before.as_bytes()), without_non_numbers(before.as_bytes()));
        }
    }
}
