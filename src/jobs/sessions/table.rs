//! Sessions in a table of the application's own: when a row says it was last touched, in whatever way applications write time.

use std::collections::BTreeMap;

use rusqlite::params;
use rusqlite::types::{FromSql, ValueRef};

use super::age::{Age, Doubt, Stamp};
use super::layout::{Rows, SessionId};
use super::reading::read_in_chunks;
use crate::jobs::run::Foreman;
use crate::jobs::sqlite::{Database, quoted};

/// 2000-01-01: what is said to be older is no time but some other number, such as a Julian day or seconds since a start.
const FIRST: Stamp = Stamp(946_684_800 * SECOND);
const SECOND: i64 = 10_000_000;
const HOUR: i64 = 3600 * SECOND;
/// The zones of the world lie between UTC−12 and UTC+14.
const WEST: i64 = 12 * HOUR;
const EAST: i64 = 14 * HOUR;

/// The age of each session, by its newest row; `None` when the run is to stop. Rows whose id is NULL or a blob are left out.
///
/// # Errors
/// What SQLite said.
pub fn ages(database: &Database, main: &Rows, time: &str, foreman: &mut dyn Foreman) -> rusqlite::Result<Option<BTreeMap<SessionId, Age>>> {
    let mut ages: BTreeMap<SessionId, Age> = BTreeMap::new();
    let all_read = read_in_chunks(database, main, &quoted(time), foreman, |row| {
        let Ok(id) = SessionId::column_result(row.get_ref(1)?) else { return Ok(()) };
        let age = read(row.get_ref(2)?);
        ages.entry(id).and_modify(|so_far| *so_far = youngest(*so_far, age)).or_insert(age);
        Ok(())
    })?;
    Ok(all_read.then_some(ages))
}

/// The age of one session, by its newest row.
///
/// # Errors
/// What SQLite said.
pub fn age_of(database: &Database, main: &Rows, time: &str, id: &SessionId) -> rusqlite::Result<Age> {
    let sql = format!("SELECT {} FROM {} WHERE {}", quoted(time), main.name(), main.are_of_session());
    let mut statement = database.connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![id])?;
    let mut age = None;
    while let Some(row) = rows.next()? {
        let read = read(row.get_ref(0)?);
        age = Some(age.map_or(read, |so_far| youngest(so_far, read)));
    }
    Ok(age.unwrap_or(Age::Unknown(Doubt::NoCheckpoint)))
}

/// A row without a time makes the whole session one.
fn youngest(a: Age, b: Age) -> Age {
    match (a, b) {
        (Age::Known { earliest, latest }, Age::Known { earliest: other_earliest, latest: other_latest }) => {
            Age::Known { earliest: earliest.max(other_earliest), latest: latest.max(other_latest) }
        }
        _ => Age::Unknown(Doubt::Time),
    }
}

/// Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, by their size; text is ISO 8601 or such a
/// number. A time without its zone may be of any: it is as young as it can be.
pub fn read(value: ValueRef<'_>) -> Age {
    let age = match value {
        ValueRef::Integer(number) => number_of(number as f64),
        ValueRef::Real(number) => number_of(number),
        ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(|text| text_of(text.trim())),
        ValueRef::Null | ValueRef::Blob(_) => None,
    };
    match age {
        Some(age @ Age::Known { earliest, .. }) if earliest >= FIRST => age,
        _ => Age::Unknown(Doubt::Time),
    }
}

fn number_of(number: f64) -> Option<Age> {
    let unit = match number {
        // In seconds that is the year 5138, in milliseconds 1973.
        _ if number < 1e11 => 1.0,
        _ if number < 1e14 => 1e3,
        _ if number < 1e17 => 1e6,
        _ => 1e9,
    };
    Stamp::from_unix_seconds(number / unit).map(Age::at)
}

fn text_of(text: &str) -> Option<Age> {
    if let Ok(number) = text.parse::<f64>() {
        return number_of(number);
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return Some(Age::at(stamp_of(stamp)?));
    }
    let (from, to) = match text.parse::<jiff::civil::Date>() {
        Ok(date) if text.len() == "2026-11-20".len() => (date.to_datetime(jiff::civil::Time::midnight()), 24 * HOUR),
        _ => (text.parse::<jiff::civil::DateTime>().ok()?, 0),
    };
    let utc = stamp_of(from.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())?;
    Some(Age::Known { earliest: Stamp(utc.0.checked_sub(EAST)?), latest: Stamp(utc.0.checked_add(WEST + to)?) })
}

fn stamp_of(stamp: jiff::Timestamp) -> Option<Stamp> {
    i64::try_from(stamp.as_nanosecond() / 100).ok().map(Stamp)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: i64 = 1_763_607_600; // 2025-11-20T03:00:00Z

    #[test]
    fn every_way_to_write_a_time_is_read() {
        let exact = Age::at(Stamp(AT * SECOND));
        for (value, expected) in [
            (ValueRef::Integer(AT), exact),
            (ValueRef::Integer(AT * 1000), exact),
            (ValueRef::Integer(AT * 1_000_000), exact),
            (ValueRef::Integer(AT * 1_000_000_000), exact),
            (ValueRef::Real(AT as f64), exact),
            (ValueRef::Text(b"1763607600"), exact),
            (ValueRef::Text(b"2025-11-20T03:00:00Z"), exact),
            (ValueRef::Text(b"2025-11-20 03:00:00+00:00"), exact),
            (ValueRef::Text(b"2025-11-20T04:00:00+01:00"), exact),
        ] {
            assert_eq!(read(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_as_young_as_it_can_be() {
        let Age::Known { earliest, latest } = read(ValueRef::Text(b"2025-11-20 03:00:00.25")) else { panic!("no time") };
        assert_eq!((earliest.0, latest.0), (AT * SECOND + SECOND / 4 - EAST, AT * SECOND + SECOND / 4 + WEST));
        let Age::Known { latest, .. } = read(ValueRef::Text(b"2025-11-20")) else { panic!("no time") };
        assert_eq!(latest.0, (AT - 3 * 3600) * SECOND + 24 * HOUR + WEST);
    }

    #[test]
    fn what_is_no_time_is_none() {
        for value in [
            ValueRef::Null,
            ValueRef::Blob(b"2025-11-20T03:00:00Z"),
            ValueRef::Integer(0),
            ValueRef::Integer(-1),
            ValueRef::Integer(i64::MIN),
            ValueRef::Real(2_461_000.5),
            ValueRef::Real(f64::NAN),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Text(b""),
            ValueRef::Text(b"yesterday"),
            ValueRef::Text(b"NaN"),
            ValueRef::Text(b"2025-13-20"),
            ValueRef::Text(b"\xff\xfe"),
        ] {
            assert_eq!(read(value), Age::Unknown(Doubt::Time), "{value:?}");
        }
    }

    #[test]
    fn one_row_without_a_time_is_enough_for_doubt() {
        let known = Age::at(Stamp(AT));
        assert_eq!(youngest(known, Age::Unknown(Doubt::Time)), Age::Unknown(Doubt::Time));
        assert_eq!(youngest(known, Age::at(Stamp(AT + 1))), Age::at(Stamp(AT + 1)));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(number: i64, real: f64, text: Vec<u8>, word in "\\PC{0,40}") {
            let _ = (read(ValueRef::Integer(number)), read(ValueRef::Real(real)), read(ValueRef::Text(&text)), read(ValueRef::Text(word.as_bytes())));
        }
    }
}
