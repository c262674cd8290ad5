//! Which sessions go and which stay, and why: a function of the survey, the settings and now.

use std::time::Duration;

use super::age::{Age, Doubt};
use super::layout::SessionId;
use super::survey::{Limits, Seen, Survey, is_old};
use crate::jobs::plan::{Deed, Item, Totals};
use crate::jobs::run::Order;

/// Everything a plan depends on beside the survey.
pub struct Circumstances<'a> {
    pub limits: Limits,
    pub keep: Duration,
    pub order: Order,
    /// What goes is written to the archive first.
    pub has_archive: bool,
    /// Rows change under their own number: that a backup holds them says nothing of what it holds in them.
    pub changes_in_place: bool,
    /// Whether a verified backup holds the session; `None` where none is asked for.
    pub is_backed_up: Option<&'a dyn Fn(&Seen) -> bool>,
    /// Brought back from the archive not long ago.
    pub restored: Vec<SessionId>,
}

/// A whole plan. The same survey and circumstances give the same plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Places in the survey, the oldest session first.
    pub delete: Vec<usize>,
    pub totals: Totals,
}

/// Makes the plan.
pub fn make(survey: &Survey, circumstances: &Circumstances<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut future = None;
    for (place, seen) in survey.sessions.iter().enumerate() {
        match reason_to_keep(seen, circumstances) {
            None => plan.delete.push(place),
            Some(reason) => plan.totals.keep(reason, seen.bytes),
        }
        if is_of_the_future(seen, &circumstances.limits) {
            future = future.or(Some(seen));
        }
    }
    for (reason, tally) in [("odd-id", survey.odd), ("no-checkpoint", survey.orphans)] {
        if tally.count > 0 {
            let kept = plan.totals.kept.entry(reason.to_owned()).or_default();
            kept.count += tally.count;
            kept.bytes = kept.bytes.saturating_add(tally.bytes);
        }
    }
    plan.delete.sort_by_key(|place| survey.sessions.get(*place).map(|seen| (latest(seen), *place)));
    let mut totals = std::mem::take(&mut plan.totals);
    for item in items(survey, &plan, circumstances) {
        totals.count(&item);
    }
    totals.brake = brake(survey, &totals, future, circumstances);
    Plan { totals, ..plan }
}

/// The plan told item by item.
pub fn items<'a>(survey: &'a Survey, plan: &'a Plan, circumstances: &'a Circumstances<'_>) -> impl Iterator<Item = Item> + 'a {
    plan.delete.iter().filter_map(|place| survey.sessions.get(*place)).map(|seen| Item {
        deed: Deed::Delete,
        what: "session".to_owned(),
        name: seen.id.told(),
        reason: match seen.age {
            Age::Known { latest, .. } => {
                format!("last touched {} ago, kept for {}", span(circumstances.limits.now.since(latest)), span(circumstances.keep))
            }
            Age::Unknown(_) => String::new(),
        },
        bytes: seen.bytes,
    })
}

fn latest(seen: &Seen) -> Option<super::age::Stamp> {
    match seen.age {
        Age::Known { latest, .. } => Some(latest),
        Age::Unknown(_) => None,
    }
}

/// `None` for a session that is to go.
fn reason_to_keep(seen: &Seen, circumstances: &Circumstances<'_>) -> Option<&'static str> {
    match seen.age {
        Age::Unknown(Doubt::Id | Doubt::Time) => Some("unverified-age"),
        Age::Unknown(Doubt::Step) => Some("unverified-step"),
        Age::Unknown(Doubt::NoCheckpoint) => Some("no-checkpoint"),
        Age::Known { .. } if is_of_the_future(seen, &circumstances.limits) => Some("future"),
        Age::Known { .. } if !is_old(seen.age, &circumstances.limits) => Some("young"),
        // Whoever was not looked at row by row is not deleted, whatever else is said of him.
        Age::Known { .. } if seen.look.is_none() => Some("unverified-age"),
        Age::Known { .. } if circumstances.restored.contains(&seen.id) => Some("restored"),
        Age::Known { .. } => match circumstances.is_backed_up {
            Some(is_backed_up) if !is_backed_up(seen) => Some("not-backed-up"),
            _ => None,
        },
    }
}

fn is_of_the_future(seen: &Seen, limits: &Limits) -> bool {
    matches!(seen.age, Age::Known { earliest, .. } if earliest > limits.future)
}

/// Why nothing is deleted before somebody has looked.
fn brake(survey: &Survey, totals: &Totals, future: Option<&Seen>, circumstances: &Circumstances<'_>) -> Option<String> {
    let going = totals.deleted.get("session").copied().unwrap_or_default();
    if circumstances.order.yes || going.count == 0 {
        return None;
    }
    if circumstances.order.clock_jumped {
        return Some("the clock has jumped since the last run, so ages cannot be trusted".to_owned());
    }
    if let Some(Seen { id, age: Age::Known { earliest, .. }, .. }) = future {
        let (id, told, now) = (id.told(), earliest.told(), circumstances.limits.now.told());
        return Some(format!("the session {id} is dated {told} and now is {now}: either the clock is wrong or that session is"));
    }
    let is_surely_backed_up = circumstances.is_backed_up.is_some() && !circumstances.changes_in_place;
    let can_be_brought_back = circumstances.has_archive || is_surely_backed_up;
    let (count, bytes) = (survey.count(), survey.bytes());
    if !can_be_brought_back && (going.count > count / 2 || going.bytes > bytes / 2) {
        let remedy = if circumstances.changes_in_place { "set `archive`" } else { "set `archive` or `backed_up_in`" };
        return Some(format!(
            "it would delete {} of {count} sessions and {} of {bytes} bytes, more than half, and nothing could bring them back for \
             certain ({remedy})",
            going.count, going.bytes
        ));
    }
    None
}

/// `9 d`, `30 h`, `5 min`: coarse enough that a plan reads the same a moment later.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::jobs::sessions::age::Stamp;
    use crate::jobs::sessions::look::Look;

    const DAY: i64 = 86_400 * 10_000_000;
    const NOW: Stamp = Stamp(20_000 * DAY);
    const KEEP: Duration = Duration::from_secs(7 * 86_400);

    fn circumstances(order: Order) -> Circumstances<'static> {
        let limits = Limits::new(NOW, KEEP);
        Circumstances { limits, keep: KEEP, order, has_archive: false, changes_in_place: false, is_backed_up: None, restored: Vec::new() }
    }

    fn seen(id: &str, age: Age, bytes: u64) -> Seen {
        Seen { id: SessionId::Text(id.to_owned()), age, bytes, look: Some(Look::default()) }
    }

    fn days(days: i64) -> Age {
        Age::at(Stamp(NOW.0 - days * DAY))
    }

    fn survey(sessions: Vec<Seen>) -> Survey {
        Survey { sessions, ..Survey::default() }
    }

    #[test]
    fn the_oldest_goes_first_and_everything_that_stays_has_its_reason() {
        let all = survey(vec![
            seen("a", days(8), 10),
            seen("b", days(9), 1),
            seen("c", days(6), 100),
            seen("d", Age::Unknown(Doubt::Id), 100),
            seen("e", Age::Unknown(Doubt::Step), 1),
            seen("f", Age::Unknown(Doubt::NoCheckpoint), 1),
            seen("g", Age::Unknown(Doubt::Time), 1),
            // As old as it may be, to the instant.
            seen("h", days(7), 1),
            Seen { look: None, ..seen("i", days(8), 1) },
        ]);
        let all = Survey { odd: crate::jobs::plan::Tally { count: 2, bytes: 5 }, ..all };
        let circumstances = circumstances(Order::default());
        let plan = make(&all, &circumstances);
        let told: Vec<_> = items(&all, &plan, &circumstances).map(|item| (item.name, item.reason)).collect();
        let said = |days: u32| format!("last touched {days} d ago, kept for 7 d");
        assert_eq!(told, [("b".to_owned(), said(9)), ("a".to_owned(), said(8))]);
        let kept: Vec<_> = plan.totals.kept.iter().map(|(reason, tally)| (reason.as_str(), tally.count)).collect();
        assert_eq!(kept, [("no-checkpoint", 1), ("odd-id", 2), ("unverified-age", 3), ("unverified-step", 1), ("young", 2)]);
        assert_eq!(plan.totals.brake, None);
    }

    #[test]
    fn the_brakes_hold_until_somebody_says_yes() {
        let half = survey(vec![seen("a", days(8), 10), seen("b", days(1), 10)]);
        let more = survey(vec![seen("a", days(8), 10), seen("b", days(9), 10), seen("c", days(1), 100)]);
        let bytes = survey(vec![seen("a", days(8), 101), seen("b", days(1), 50), seen("c", days(1), 50)]);
        let future = survey(vec![seen("a", days(8), 1), seen("b", days(-1), 10), seen("c", days(1), 10)]);
        let jumped = Order { clock_jumped: true, ..Order::default() };
        // Rows without a session are none, however many there are.
        let orphaned = Survey { orphans: crate::jobs::plan::Tally { count: 1000, bytes: 1_000_000 }, ..more.clone() };
        assert_eq!(make(&orphaned, &circumstances(jumped)).totals.kept["no-checkpoint"].count, 1000);
        for (all, order, said) in [
            (&half, Order::default(), None),
            (&more, Order::default(), Some("2 of 3 sessions")),
            (&bytes, Order::default(), Some("101 of 201 bytes")),
            (&future, Order::default(), Some("the session b is dated")),
            (&half, jumped, Some("the clock has jumped")),
            (&orphaned, Order::default(), Some("2 of 3 sessions")),
        ] {
            let brake = make(all, &circumstances(order)).totals.brake;
            assert_eq!(brake.is_some(), said.is_some(), "{brake:?}");
            assert!(brake.as_deref().is_none_or(|brake| brake.contains(said.unwrap())), "{brake:?}");
            let yes = make(all, &circumstances(Order { yes: true, ..order }));
            assert_eq!(yes.totals.brake, None);
            assert_eq!(yes.delete, make(all, &circumstances(order)).delete, "a brake changes nothing about the plan");
        }
        // What can be brought back may go, as long as ages can be trusted.
        let archived = |all: &Survey, order| make(all, &Circumstances { has_archive: true, ..circumstances(order) }).totals.brake;
        assert_eq!(archived(&more, Order::default()), None);
        assert!(archived(&more, jumped).is_some() && archived(&future, Order::default()).is_some());
        // A backup is a way back where rows never change; an archive always is one.
        let backed_up =
            |changes_in_place| Circumstances { is_backed_up: Some(&|_: &Seen| true), changes_in_place, ..circumstances(Order::default()) };
        assert_eq!(make(&more, &backed_up(false)).totals.brake, None);
        assert!(make(&more, &backed_up(true)).totals.brake.unwrap().contains("(set `archive`)"));
        assert_eq!(make(&more, &Circumstances { has_archive: true, ..backed_up(true) }).totals.brake, None);
        // Nothing to delete, nothing to hold.
        assert_eq!(make(&survey(vec![seen("b", days(-1), 10)]), &circumstances(jumped)).totals.brake, None);
    }

    #[test]
    fn what_no_backup_holds_stays_where_one_is_asked_for() {
        let all = survey(vec![seen("a", days(8), 10), seen("b", days(9), 10)]);
        let is_backed_up = |seen: &Seen| seen.id == SessionId::Text("a".to_owned());
        let plan = make(&all, &Circumstances { is_backed_up: Some(&is_backed_up), ..circumstances(Order::default()) });
        assert_eq!((plan.delete, plan.totals.kept["not-backed-up"].count), (vec![0], 1));
    }

    #[test]
    fn what_was_brought_back_stays() {
        let all = survey(vec![seen("a", days(8), 10), seen("b", days(9), 10)]);
        let restored = vec![SessionId::Text("a".to_owned())];
        let plan = make(&all, &Circumstances { restored, ..circumstances(Order::default()) });
        assert_eq!((plan.delete, plan.totals.kept["restored"].count), (vec![1], 1));
    }

    fn any_age() -> impl Strategy<Value = Age> {
        prop_oneof![
            (-10_000_i64..10_000).prop_map(|hours| Age::at(Stamp(NOW.0 - hours * DAY / 24))),
            (0_i64..1000, 0_i64..1000).prop_map(|(a, b)| {
                Age::Known { earliest: Stamp(NOW.0 - a.max(b) * DAY / 24), latest: Stamp(NOW.0 - a.min(b) * DAY / 24) }
            }),
            Just(Age::Unknown(Doubt::Id)),
            Just(Age::Unknown(Doubt::Step)),
            Just(Age::Unknown(Doubt::Time)),
            Just(Age::Unknown(Doubt::NoCheckpoint)),
        ]
    }

    proptest! {
            #[test]
            fn nothing_goes_that_is_not_old_for_certain(ages in proptest::collection::vec((any_age(), 0_u64..1000, any::<bool>()), 0..40), yes: bool) {
                let sessions = ages.iter().enumerate().map(|(place, (age, bytes, looked))| {
                    let seen = seen(&format!("{place:03}"), *age, *bytes);
                    if *looked { seen } else { Seen { look: None, ..seen } }
                });
                let all = survey(sessions.collect());
                let plan = make(&all, &circumstances(Order { yes, ..Order::default() }));
                for place in &plan.delete {
                    let seen = &all.sessions[*place];
    let is_old = matches!(seen.age, Age::Known { latest, .. } if latest.0 < NOW.0 - 7 * DAY);
                    prop_assert!(is_old && seen.look.is_some());
                }
                let kept: u64 = plan.totals.kept.values().map(|tally| tally.count).sum();
                prop_assert_eq!(kept + plan.delete.len() as u64, all.count());
                let deleted = plan.totals.deleted.get("session").copied().unwrap_or_default();
                if plan.totals.brake.is_none() && !yes {
                    prop_assert!(deleted.count * 2 <= all.count().max(1) || deleted.count == 0);
                }
            }
        }
}
