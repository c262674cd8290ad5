//! `plimsoll events`: the record of what was read, judged and done, as it was or as it happens.
//!
//! The daemon holds the last 512 events; the state database holds those of seven days, and can be read with no daemon too.

use std::io::Write;

use serde_json::Value;

use super::client::{Client, ClientError};
use super::render::{Style, Tone, clip};
use crate::journal::Event;
use crate::journal::history::Wanted;

/// So many are shown before what happens next is followed, unless said otherwise.
const BEFORE_FOLLOWING: usize = 10;
/// So many are read from the database when nobody says how many or since when: as many as a daemon holds.
const FROM_DATABASE: usize = 512;

/// An event and its number in the daemon's list.
pub type Numbered = (u64, Value);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub follow: bool,
    pub json: bool,
    pub style: Style,
    pub wanted: Wanted,
}

impl Asked {
    /// What is asked of the past.
    fn past(&self, otherwise: Option<usize>) -> Wanted {
        let limit = match (self.wanted.limit, self.wanted.since) {
            (Some(limit), _) => Some(limit),
            (None, Some(_)) => None,
            (None, None) if self.follow => Some(BEFORE_FOLLOWING),
            (None, None) => otherwise,
        };
        Wanted { limit, ..self.wanted.clone() }
    }

    /// True when the daemon's own list may not reach back far enough.
    fn reaches_beyond(&self, held: &[Numbered]) -> bool {
        let oldest = held.first().and_then(|(_, event)| event["at"].as_f64());
        let older = self.wanted.since.is_some_and(|since| oldest.is_none_or(|oldest| since < oldest));
        let matching = held.iter().filter(|(_, event)| self.wanted.takes(event)).count();
        older || self.wanted.limit.is_some_and(|limit| matching < limit)
    }
}

/// What the daemon holds, all of it.
pub fn held(client: &Client) -> Result<Vec<Numbered>, ClientError> {
    let mut held: Vec<Numbered> = Vec::new();
    loop {
        let after = held.last().map_or(0, |(number, _)| *number);
        let answer: Value = client.get_json(&format!("/admin/events?after={after}"))?;
        let more: Vec<Numbered> = answer["events"].as_array().into_iter().flatten().filter_map(numbered).collect();
        // Numbers rise; an answer that does not move on would be asked for ever.
        if more.last().is_none_or(|(number, _)| *number <= after) {
            return Ok(held);
        }
        held.extend(more);
    }
}

fn numbered(entry: &Value) -> Option<Numbered> {
    Some((entry["id"].as_u64()?, entry["record"].clone()))
}

/// The past as it was asked for: what the daemon holds, and before that what `database` gives, each event once.
///
/// # Errors
/// What `database` says, when nothing else is there. `Ok(None)`: there is neither a daemon nor a database.
pub fn past(
    asked: &Asked,
    held: Option<&[Numbered]>,
    database: impl FnOnce(&Wanted) -> Result<Option<Vec<Value>>, String>,
) -> Result<Option<Vec<Value>>, String> {
    let wanted = asked.past(held.is_none().then_some(FROM_DATABASE));
    let mut events: Vec<Value> = match held {
        None => match database(&wanted)? {
            Some(events) => events,
            None => return Ok(None),
        },
        Some(held) if asked.reaches_beyond(held) => {
            // The database follows within moments: the newest of it are those the daemon holds as well.
            let oldest = held.first().and_then(|(_, event)| event["at"].as_f64()).unwrap_or(f64::INFINITY);
            let is_held = |event: &Value| held.iter().any(|(_, one)| one == event);
            let before = database(&Wanted { limit: wanted.limit.map(|limit| limit.saturating_add(held.len())), ..wanted.clone() });
            // A database that cannot be read leaves what the daemon holds.
            let before = before.ok().flatten().unwrap_or_default();
            before.into_iter().filter(|event| event["at"].as_f64().is_some_and(|at| at <= oldest) && !is_held(event)).collect()
        }
        Some(_) => Vec::new(),
    };
    events.extend(held.into_iter().flatten().map(|(_, event)| event).filter(|event| wanted.takes(event)).cloned());
    let surplus = wanted.limit.map_or(0, |limit| events.len().saturating_sub(limit));
    Ok(Some(events.split_off(surplus)))
}

/// Writes events out, one a line; false when nobody reads them any more.
pub fn write(events: &[Value], asked: &Asked, out: &mut impl Write) -> std::io::Result<bool> {
    let all: String = events.iter().map(|event| if asked.json { format!("{event}\n") } else { line(event, asked.style) + "\n" }).collect();
    match out.write_all(all.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// `2026-11-26 07:17:15.123 WARN  action_performed  memory: recycle web.0: done`
fn line(event: &Value, style: Style) -> String {
    let name = event["event"].as_str().unwrap_or("unknown");
    let level = Event::level_of(name).unwrap_or("INFO");
    let tone = match level {
        "ERROR" => Tone::Bad,
        "WARN" => Tone::Warning,
        _ => Tone::Quiet,
    };
    let when = event["at"].as_f64().map_or_else(|| "at an unknown time     ".to_owned(), local_time);
    let message = event["message"].as_str().unwrap_or_default();
    // What a worker or a path is called may hold anything.
    let message = clip(message, usize::MAX);
    format!("{} {} {name:<18} {message}", style.paint(Tone::Quiet, &when), style.paint(tone, &format!("{level:<5}")))
}

/// Seconds since 1970 as a local date and time, to the millisecond.
pub fn local_time(at: f64) -> String {
    // A float beyond the range becomes its largest value, which is no time.
    match jiff::Timestamp::from_millisecond((at * 1000.0).round() as i64) {
        Ok(stamp) => stamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => format!("{at:.3}"),
    }
}

/// Takes server-sent events apart, however they are cut on the way.
#[derive(Debug, Default)]
pub struct Feed {
    rest: Vec<u8>,
}

impl Feed {
    /// The events that are whole with these bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Numbered> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.rest.get(begin..).and_then(|rest| rest.windows(2).position(|two| two == b"\n\n")) {
            let block = self.rest.get(begin..begin + length).unwrap_or_default();
            events.extend(std::str::from_utf8(block).ok().and_then(block_event));
            begin += length + 2;
        }
        self.rest.drain(..begin);
        events
    }
}

fn block_event(block: &str) -> Option<Numbered> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some((field("id")?.parse().ok()?, serde_json::from_str(field("data")?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn event(at: u32, name: &str) -> Value {
        json!({"event": name, "at": f64::from(at), "message": "m"})
    }

    fn asked(wanted: Wanted) -> Asked {
        Asked { follow: false, json: false, style: Style::PLAIN, wanted }
    }

    fn times(events: &[Value]) -> Vec<u64> {
        events.iter().map(|event| event["at"].as_f64().unwrap() as u64).collect()
    }

    #[test]
    fn the_past_comes_from_where_it_is() {
        let held: Vec<Numbered> = (5..8).map(|at| (u64::from(at), event(at, "a"))).collect();
        // It has one that is held as well, and the newest is not written yet.
        let database = |wanted: &Wanted| {
            let all: Vec<Value> = (1..7).map(|at| event(at, "a")).filter(|event| wanted.takes(event)).collect();
            Ok(Some(all.into_iter().rev().take(wanted.limit.unwrap_or(99)).rev().collect()))
        };
        let cases = [
            (Wanted::default(), vec![5, 6, 7]),
            (Wanted { since: Some(3.0), ..Wanted::default() }, vec![3, 4, 5, 6, 7]),
            (Wanted { since: Some(6.0), ..Wanted::default() }, vec![6, 7]),
            (Wanted { limit: Some(2), ..Wanted::default() }, vec![6, 7]),
            (Wanted { limit: Some(4), ..Wanted::default() }, vec![4, 5, 6, 7]),
            (Wanted { names: vec!["b".into()], ..Wanted::default() }, vec![]),
        ];
        for (wanted, expected) in cases {
            assert_eq!(times(&past(&asked(wanted.clone()), Some(&held), database).unwrap().unwrap()), expected, "{wanted:?}");
        }
        assert_eq!(times(&past(&asked(Wanted::default()), None, database).unwrap().unwrap()), [1, 2, 3, 4, 5, 6]);
        assert_eq!(past(&asked(Wanted::default()), None, |_| Ok(None)), Ok(None));
        assert!(past(&asked(Wanted::default()), None, |_| Err("broken".to_owned())).is_err());
    }

    #[test]
    fn a_line_has_time_level_name_and_message() {
        let line = line(&json!({"event": "worker_gave_up", "at": 0.5, "message": "web.0 \u{1b}[2J"}), Style::PLAIN);
        assert!(line.contains(":00.500 ERROR worker_gave_up     web.0 ·[2J"), "{line}");
    }

    proptest! {
        #[test]
        fn a_feed_may_be_cut_anywhere(numbers in prop::collection::vec(any::<u64>(), 0..10), cut in 1usize..40) {
            let text: String = numbers.iter().map(|n| format!(": still here\n\nid: {n}\ndata: {{\"event\":\"ä\",\"n\":{n}}}\n\n")).collect();
            let mut feed = Feed::default();
            let got: Vec<u64> = text.as_bytes().chunks(cut).flat_map(|part| feed.take(part)).map(|(number, _)| number).collect();
            prop_assert_eq!(got, numbers);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            Feed::default().take(&bytes);
        }

        #[test]
        fn any_time_has_a_text(at in any::<f64>()) {
            prop_assert!(!local_time(at).is_empty());
        }
    }
}
