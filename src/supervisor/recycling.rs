//! The one queue through which replicas are replaced, whatever the reason: who is next, when, and whether the replacement comes
//! before the old one goes. Pure.
//!
//! Of one worker never more than one replica is out at a time, nor is one replaced sooner than `recycle.gap` after the last. First
//! come, first served. Only a machine whose memory is over its line does not wait: see `Supervisor::recycle`.

use std::time::Duration;

use crate::config::settings::{Overlap, Worker};

/// Somebody is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub cause: &'static str,
    pub since: Duration,
    /// Not before: after an attempt that came to nothing.
    pub not_before: Duration,
    /// Keeps the distance to the one before; not where somebody has asked for it.
    pub keeps_gap: bool,
}

/// How one replica of the worker stands, as far as the queue is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// It serves.
    pub is_serving: bool,
    /// It is being started, stopped or replaced.
    pub is_out: bool,
    pub wish: Option<Wish>,
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The replica at this place, now.
    Now(usize),
    /// Nobody before this.
    At(Duration),
    /// Nobody until something else happens.
    Nobody,
}

/// Picks among the replicas of one worker. `last` is when the last replacement was over.
pub fn pick(peers: &[Peer], last: Option<Duration>, gap: Duration, now: Duration) -> Pick {
    let wishes = || peers.iter().enumerate().filter(|(_, peer)| peer.is_serving).filter_map(|(place, peer)| Some((place, peer.wish?)));
    if wishes().next().is_none() || peers.iter().any(|peer| peer.is_out) {
        return Pick::Nobody;
    }
    let free = last.map_or(Duration::ZERO, |last| last + gap);
    let from = |wish: &Wish| if wish.keeps_gap { wish.not_before.max(free) } else { wish.not_before };
    let due = wishes().filter(|(_, wish)| from(wish) <= now).min_by_key(|(place, wish)| (wish.since, *place));
    match due {
        Some((place, _)) => Pick::Now(place),
        None => wishes().map(|(_, wish)| from(&wish)).min().map_or(Pick::Nobody, Pick::At),
    }
}

/// What there is for a second copy, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Under the limit and not used. `None`: unknown.
    pub free: Option<u64>,
    /// To be left over.
    pub reserve: u64,
}

/// How a replica is replaced, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The replacement is ready before the old one is asked to end.
    Overlap(String),
    /// The old one is gone before the replacement is started.
    StopFirst(String),
}

/// Chooses by the settings and by the most memory a replica of this worker has been seen to take.
pub fn manner(worker: &Worker, peak: u64, room: Room) -> Manner {
    let stop_first = |why: &str| Manner::StopFirst(why.to_owned());
    match worker.recycle.overlap {
        _ if worker.adopt.is_some() => return stop_first("somebody else starts it from now on"),
        _ if worker.lock.is_some() => return stop_first("a singleton never runs twice"),
        Overlap::Never => return stop_first("recycle.overlap is never"),
        Overlap::Auto if worker.listen.is_empty() => return stop_first("it has no `listen`, so a second copy might not get its port"),
        Overlap::Auto | Overlap::Always => {}
    }
    let Some(free) = room.free else { return stop_first("how much memory is free is not known") };
    let mib = |bytes: u64| bytes >> 20;
    if peak.saturating_add(room.reserve) <= free {
        Manner::Overlap(format!("{} MiB are free, it has taken up to {} MiB", mib(free), mib(peak)))
    } else {
        Manner::StopFirst(format!(
            "{} MiB are free, too little for a second copy of up to {} MiB and a reserve of {} MiB",
            mib(free),
            mib(peak),
            mib(room.reserve)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn serving(since: Option<u64>) -> Peer {
        let wish = |since| Wish { cause: "lifetime", since: seconds(since), not_before: seconds(0), keeps_gap: true };
        Peer { is_serving: true, is_out: false, wish: since.map(wish) }
    }

    #[test]
    fn first_come_first_served_one_at_a_time_with_a_gap_between() {
        let gap = seconds(30);
        let mut peers = [serving(Some(20)), serving(Some(10)), serving(None)];
        assert_eq!(pick(&peers, None, gap, seconds(40)), Pick::Now(1));
        assert_eq!(pick(&peers, Some(seconds(35)), gap, seconds(40)), Pick::At(seconds(65)));
        peers[2].is_out = true;
        assert_eq!(pick(&peers, None, gap, seconds(40)), Pick::Nobody, "another is out");
        assert_eq!(pick(&[serving(None)], None, gap, seconds(40)), Pick::Nobody);
    }

    #[test]
    fn an_attempt_that_came_to_nothing_is_not_repeated_at_once() {
        let mut peer = serving(Some(10));
        peer.wish = peer.wish.map(|wish| Wish { not_before: seconds(100), ..wish });
        assert_eq!(pick(&[peer], None, seconds(5), seconds(40)), Pick::At(seconds(100)));
        assert_eq!(pick(&[peer], None, seconds(5), seconds(100)), Pick::Now(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Eight workers that were started together, a day of lifetimes with jitter: the gap holds, and nobody is forgotten.
        #[test]
        fn over_a_day_the_gap_holds_and_everybody_has_a_turn(
            lifetimes in proptest::collection::vec(1700_u64..1800, 8),
            takes in proptest::collection::vec(1_u64..40, 8),
            gap in 0_u64..60,
        ) {
            let gap = seconds(gap);
            let mut born = [0_u64; 8];
            let mut out: Option<(usize, u64)> = None;
            let mut last = None;
            let mut turns = [0_u32; 8];
            for now in 0..86_400 {
                if let Some((place, until)) = out.filter(|(_, until)| *until <= now) {
                    born[place] = until;
                    last = Some(seconds(now));
                    out = None;
                }
                let peers: Vec<Peer> = (0..8)
                    .map(|place| {
                        let is_out = out.is_some_and(|(gone, _)| gone == place);
                        let due = born[place] + lifetimes[place];
                        let wish = Wish { cause: "lifetime", since: seconds(due), not_before: seconds(0), keeps_gap: true };
                        Peer { is_serving: !is_out, is_out, wish: (!is_out && due <= now).then_some(wish) }
                    })
                    .collect();
                if let Pick::Now(place) = pick(&peers, last, gap, seconds(now)) {
                    prop_assert!(out.is_none());
                    prop_assert!(last.is_none_or(|last| seconds(now) >= last + gap));
                    out = Some((place, now + takes[place]));
                    turns[place] += 1;
                }
            }
            prop_assert!(turns.iter().all(|turns| *turns >= 30), "{turns:?}");
        }
    }
}
