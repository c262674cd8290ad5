//! Which files go, and why: a function of the listing, the settings, the order and the time, and of nothing else.
//!
//! First what is older than `keep`. Of what is left the oldest, while it is too much (`max_total`) or too many (`max_files`). Then,
//! while a disk is over its line, ages halve step by step, and in each step the largest goes first, until enough is free.
//! Nothing younger than `min_age` goes, whatever is asked.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::super::plan::{Deed, Item, Tally, Totals};
use super::super::run::Order;
use super::listing::{File, Listing};
use crate::config::jobs::Files;
use crate::config::units::Size;
use crate::host::clock::Moment;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Age,
    TooMuch,
    TooMany,
    /// A disk is over its line; so many times the age was halved.
    Pressure(u8),
}

/// A file that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub file: u32,
    pub why: Why,
    /// Of its group: they go together or not at all.
    pub is_last: bool,
}

/// A folder that goes once nothing is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emptied {
    pub folder: u32,
    /// It has been empty before.
    pub was_empty: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they go.
    pub picks: Vec<Pick>,
    /// Each before the one it lies in.
    pub folders: Vec<Emptied>,
    /// What stays, by the reason.
    pub kept: BTreeMap<&'static str, Tally>,
    /// Why nothing is done before somebody says yes.
    pub brake: Option<String>,
    /// A disk wants so many bytes more than may go.
    pub missing: u64,
    now: i64,
    keep: i64,
    min_age: i64,
}

/// A clock in the future by less is taken for that of a file server.
const TOLERANCE: i64 = 60 * 1_000_000_000;
/// Below it ages are not halved any more: the next step is the last.
const SHORTEST_STEP: i64 = 60 * 1_000_000_000;

/// Since 1970; clamped to the years 1677 to 2262.
pub fn nanoseconds(wall: SystemTime) -> i64 {
    match wall.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => length(since),
        Err(before) => length(before.duration()).saturating_neg(),
    }
}

fn length(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The youngest a file may be to go for its age alone.
fn keep_of(settings: &Files) -> i64 {
    length(settings.keep.max(settings.min_age))
}

/// What is younger goes in no case, so that it need not be listed; `None` where that is not known before everything is seen.
pub fn floor(settings: &Files, order: &Order, begun: Moment) -> Option<i64> {
    let counts_only_age = settings.max_total.is_none() && settings.max_files.is_none() && order.free_bytes.is_none() && !settings.groups;
    counts_only_age.then(|| nanoseconds(begun.wall).saturating_sub(keep_of(settings)))
}

pub fn plan(listing: &Listing, settings: &Files, order: &Order, now: Moment) -> Plan {
    let mut plan = Plan { now: nanoseconds(now.wall), keep: keep_of(settings), min_age: length(settings.min_age), ..Plan::default() };
    let units = Units::of(listing, settings.groups);
    let mut choice = Choice { units: &units, is_chosen: vec![false; units.len()], chosen: Vec::new() };
    choice.take_old(plan.now, plan.keep);
    choice.take_surplus(settings, plan.now, plan.min_age, linked(listing));
    if let Some(wanted) = order.free_bytes {
        plan.missing = choice.take_for_room(wanted, plan.now, plan.keep, plan.min_age);
    }
    let Choice { is_chosen, chosen, .. } = choice;
    for (unit, why) in chosen {
        let members = units.members(unit as usize);
        plan.picks.extend(members.iter().enumerate().map(|(at, file)| Pick { file: *file, why, is_last: at + 1 == members.len() }));
    }
    for unit in (0..units.len()).filter(|unit| !is_chosen.get(*unit).copied().unwrap_or_default() && units.is_meant(*unit)) {
        let reason = if units.is_stuck(unit) { "hard-link" } else { "young" };
        for file in units.files(unit) {
            plan.kept.entry(reason).or_default().add(file.bytes());
        }
    }
    if settings.prune_empty {
        plan.folders = emptied(listing, &plan);
    }
    let does_nothing = plan.picks.is_empty() && plan.folders.is_empty();
    if !order.yes && !does_nothing {
        plan.brake = brake(listing, order, plan.now);
    }
    plan
}

/// What is not listed for other names that lead to it, and fills the folder all the same.
fn linked(listing: &Listing) -> Tally {
    listing.kept.get("hard-link").copied().unwrap_or_default()
}

fn brake(listing: &Listing, order: &Order, now: i64) -> Option<String> {
    let ahead = listing.ahead.as_ref().filter(|(time, _)| time.saturating_sub(now) > TOLERANCE);
    if let Some((time, path)) = ahead {
        let by = words(time.saturating_sub(now));
        return Some(format!(
            "{} is dated {by} ahead of now: either its date or the clock is wrong, and with it every age",
            path.display()
        ));
    }
    order.clock_jumped.then(|| "the clock has jumped since the last run, so ages cannot be trusted".to_owned())
}

/// Folders that are empty for long, or will be once the files of the plan are gone. A folder that somebody has changed lately
/// is in use and stays.
fn emptied(listing: &Listing, plan: &Plan) -> Vec<Emptied> {
    let mut leaving = vec![0_u32; listing.folders.len()];
    for file in plan.picks.iter().filter_map(|pick| listing.file(pick.file)) {
        if let Some(count) = leaving.get_mut(file.folder as usize) {
            *count += 1;
        }
    }
    let mut found = Vec::new();
    for (at, folder) in listing.folders.iter().enumerate().rev() {
        let (Some(parent), Ok(number)) = (folder.parent, u32::try_from(at)) else { continue };
        let age = plan.now.saturating_sub(folder.youngest);
        let was_empty = folder.entries == 0;
        let is_old = age >= if was_empty { plan.keep } else { plan.min_age };
        if folder.is_whole && is_old && leaving.get(at) == Some(&folder.entries) {
            found.push(Emptied { folder: number, was_empty });
            if let Some(count) = leaving.get_mut(parent as usize) {
                *count += 1;
            }
        }
    }
    found
}

/// Files that go together: those of a group, or each by itself.
struct Units<'l> {
    listing: &'l Listing,
    /// Files, those of one unit after each other.
    order: Vec<u32>,
    /// Where each unit ends in it.
    ends: Vec<u32>,
}

impl<'l> Units<'l> {
    fn of(listing: &'l Listing, groups: bool) -> Units<'l> {
        // The listing holds no more: its names alone would not fit.
        let count = u32::try_from(listing.files.len()).unwrap_or(u32::MAX);
        let mut order: Vec<u32> = (0..count).collect();
        if !groups {
            return Units { listing, order, ends: (1..=count).collect() };
        }
        let key = |at: &u32| listing.file(*at).map(|file| (file.folder, stem(listing.name(file).to_bytes())));
        // What include does not name goes first: were we killed in between, it would be nobody's any more and stay for ever.
        order.sort_by(|a, b| {
            let included = |at: &u32| listing.file(*at).is_some_and(|file| file.is_included);
            key(a).cmp(&key(b)).then_with(|| included(a).cmp(&included(b))).then(a.cmp(b))
        });
        let mut ends = Vec::new();
        for (at, pair) in order.windows(2).enumerate() {
            if let [a, b] = pair
                && key(a) != key(b)
            {
                ends.push(u32::try_from(at + 1).unwrap_or(u32::MAX));
            }
        }
        if count > 0 {
            ends.push(count);
        }
        Units { listing, order, ends }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn members(&self, unit: usize) -> &[u32] {
        let begin = unit.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or_default();
        let end = self.ends.get(unit).copied().unwrap_or_default();
        self.order.get(begin as usize..end as usize).unwrap_or_default()
    }

    fn files(&self, unit: usize) -> impl Iterator<Item = &File> {
        self.members(unit).iter().filter_map(|at| self.listing.file(*at))
    }

    /// When the youngest of it was last touched.
    fn youngest(&self, unit: usize) -> i64 {
        self.fold(unit, i64::MIN, |youngest, file| youngest.max(file.youngest))
    }

    fn bytes(&self, unit: usize) -> u64 {
        self.fold(unit, 0_u64, |bytes, file| bytes.saturating_add(file.bytes()))
    }

    /// How many of it `include` names.
    fn included(&self, unit: usize) -> u64 {
        self.fold(unit, 0, |count, file| count + u64::from(file.is_included))
    }

    fn is_meant(&self, unit: usize) -> bool {
        self.included(unit) > 0
    }

    fn is_stuck(&self, unit: usize) -> bool {
        self.fold(unit, false, |stuck, file| stuck || file.has_links)
    }

    fn fold<T>(&self, unit: usize, first: T, with: impl Fn(T, &File) -> T) -> T {
        self.files(unit).fold(first, with)
    }
}

/// A name without its extension; one that begins with its only dot has none.
fn stem(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(at) if at > 0 => name.get(..at).unwrap_or(name),
        _ => name,
    }
}

struct Choice<'u> {
    units: &'u Units<'u>,
    is_chosen: Vec<bool>,
    chosen: Vec<(u32, Why)>,
}

impl Choice<'_> {
    fn take(&mut self, unit: u32, why: Why) {
        if let Some(is_chosen) = self.is_chosen.get_mut(unit as usize) {
            *is_chosen = true;
            self.chosen.push((unit, why));
        }
    }

    /// Units that may go and do not yet, between two ages: at least `least`, less than `most`.
    fn open(&self, now: i64, least: i64, most: i64) -> Vec<u32> {
        let is_open = |unit: &u32| {
            let at = *unit as usize;
            let age = now.saturating_sub(self.units.youngest(at));
            let is_free = self.is_chosen.get(at) == Some(&false) && self.units.is_meant(at) && !self.units.is_stuck(at);
            // A date in the future has no age at all.
            is_free && age >= least.max(0) && age < most
        };
        (0..u32::try_from(self.units.len()).unwrap_or(u32::MAX)).filter(is_open).collect()
    }

    fn take_old(&mut self, now: i64, keep: i64) {
        for unit in self.open(now, keep, i64::MAX) {
            self.take(unit, Why::Age);
        }
    }

    fn take_surplus(&mut self, settings: &Files, now: i64, min_age: i64, linked: Tally) {
        if settings.max_total.is_none() && settings.max_files.is_none() {
            return;
        }
        let (mut bytes, mut files) = (linked.bytes, linked.count);
        for unit in (0..self.units.len()).filter(|unit| self.is_chosen.get(*unit) == Some(&false) && self.units.is_meant(*unit)) {
            bytes = bytes.saturating_add(self.units.bytes(unit));
            files += self.units.included(unit);
        }
        let mut open = self.open(now, min_age, i64::MAX);
        open.sort_by_key(|unit| (self.units.youngest(*unit as usize), Reverse(self.units.bytes(*unit as usize))));
        for unit in open {
            let (own, count) = (self.units.bytes(unit as usize), self.units.included(unit as usize));
            let why = match () {
                () if settings.max_files.is_some_and(|most| files > most) => Why::TooMany,
                () if settings.max_total.is_some_and(|most| bytes > most) && own > 0 => Why::TooMuch,
                () => continue,
            };
            (bytes, files) = (bytes.saturating_sub(own), files.saturating_sub(count));
            self.take(unit, why);
        }
    }

    /// Gives what is still missing.
    fn take_for_room(&mut self, wanted: u64, now: i64, keep: i64, min_age: i64) -> u64 {
        let already: u64 = self.chosen.iter().map(|(unit, _)| self.units.bytes(*unit as usize)).sum();
        let mut missing = wanted.saturating_sub(already);
        let (mut age, mut step) = (keep, 0_u8);
        while missing > 0 && age > min_age {
            let next = halved(age, min_age);
            step = step.saturating_add(1);
            let mut open = self.open(now, next, age);
            open.sort_by_key(|unit| (Reverse(self.units.bytes(*unit as usize)), self.units.youngest(*unit as usize)));
            for unit in open {
                let own = self.units.bytes(unit as usize);
                // The rest frees nothing.
                if missing == 0 || own == 0 {
                    break;
                }
                missing = missing.saturating_sub(own);
                self.take(unit, Why::Pressure(step));
            }
            age = next;
        }
        missing
    }
}

fn halved(age: i64, min_age: i64) -> i64 {
    let half = age / 2;
    if half < SHORTEST_STEP { min_age } else { half.max(min_age) }
}

impl Plan {
    /// Tells every item, and gives the figures of all.
    pub fn tell(&self, listing: &Listing, settings: &Files, mut each: impl FnMut(Item)) -> Totals {
        let mut totals = Totals { brake: self.brake.clone(), ..Totals::default() };
        let mut path = (u32::MAX, std::path::PathBuf::new());
        for pick in &self.picks {
            let Some(file) = listing.file(pick.file) else { continue };
            if path.0 != file.folder {
                path = (file.folder, listing.folder_path(file.folder));
            }
            let name = String::from_utf8_lossy(listing.name(file).to_bytes());
            let item = Item {
                deed: Deed::Delete,
                what: "file".to_owned(),
                name: path.1.join(&*name).to_string_lossy().into_owned(),
                reason: self.reason(file, pick.why, settings),
                bytes: file.bytes(),
            };
            totals.count(&item);
            each(item);
        }
        for emptied in &self.folders {
            let Some(folder) = listing.folder(emptied.folder) else { continue };
            let reason = match emptied.was_empty {
                true => {
                    format!("empty and untouched for {}, kept for {}", words(self.now.saturating_sub(folder.youngest)), words(self.keep))
                }
                false => "empty once its files are gone".to_owned(),
            };
            let name = listing.folder_path(emptied.folder).to_string_lossy().into_owned();
            let item = Item { deed: Deed::Delete, what: "folder".to_owned(), name, reason, bytes: 0 };
            totals.count(&item);
            each(item);
        }
        for (reason, tally) in listing.kept.iter().chain(&self.kept) {
            let kept = totals.kept.entry((*reason).to_owned()).or_default();
            kept.count += tally.count;
            kept.bytes = kept.bytes.saturating_add(tally.bytes);
        }
        totals
    }

    fn reason(&self, file: &File, why: Why, settings: &Files) -> String {
        let age = words(self.now.saturating_sub(file.youngest));
        let group = if file.is_included { "" } else { "goes with its group: " };
        match why {
            Why::Age => format!("{group}{age} old, kept for {}", words(self.keep)),
            Why::TooMuch => format!("{group}{age} old, the oldest of more than {}", Size(settings.max_total.unwrap_or_default())),
            Why::TooMany => format!("{group}{age} old, the oldest of more than {} files", settings.max_files.unwrap_or_default()),
            Why::Pressure(steps) => {
                let kept = (0..steps).fold(self.keep, |age, _| halved(age, self.min_age));
                format!("{group}{age} old, kept for {} only while the disk is over its line", words(kept))
            }
        }
    }
}

/// A length of time for people, in its largest unit that leaves more than one of it.
fn words(nanoseconds: i64) -> String {
    let seconds = nanoseconds.max(0) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    fn settings() -> Files {
        Files {
            paths: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            keep: Duration::from_secs(24 * 3600),
            min_age: Duration::from_secs(600),
            max_total: None,
            max_files: None,
            prune_empty: false,
            mounted: false,
            groups: false,
            rate: None,
            owner: None,
        }
    }

    fn at(nanoseconds: i64) -> Moment {
        let since = Duration::from_nanos(nanoseconds.unsigned_abs());
        let wall = if nanoseconds < 0 { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since };
        Moment { steady: Duration::ZERO, wall }
    }

    fn picked(plan: &Plan) -> Vec<(u32, Why)> {
        plan.picks.iter().map(|pick| (pick.file, pick.why)).collect()
    }

    #[test]
    fn each_file_goes_for_the_first_reason_there_is() {
        let now = 1_000 * HOUR;
        let listing = Listing::made_up(&[
            (c"a", now - 24 * HOUR, 8),
            (c"b", now - 24 * HOUR + 1, 8),
            (c"c", now - 3 * HOUR, 800),
            (c"d", now - 2 * HOUR, 8),
            (c"e", now - HOUR, 8),
        ]);
        let plain = plan(&listing, &settings(), &Order::default(), at(now));
        assert_eq!(picked(&plain), [(0, Why::Age)], "to the nanosecond");
        assert_eq!(plain.kept["young"], Tally { count: 4, bytes: 824 * 512 });
        let all = Files { max_files: Some(3), max_total: Some(20 * 512), ..settings() };
        let order = Order { free_bytes: Some(824 * 512), ..Order::default() };
        let all = plan(&listing, &all, &order, at(now));
        assert_eq!(picked(&all), [(0, Why::Age), (1, Why::TooMany), (2, Why::TooMuch), (3, Why::Pressure(4))]);
        assert_eq!(all.missing, 0);
        let mut reasons = Vec::new();
        let totals =
            all.tell(&listing, &Files { max_files: Some(3), max_total: Some(20 * 512), ..settings() }, |item| reasons.push(item.reason));
        assert_eq!(reasons[0], "24 h old, kept for 24 h");
        assert_eq!(reasons[1], "23 h old, the oldest of more than 3 files");
        assert_eq!(reasons[2], "3 h old, the oldest of more than 10KiB");
        assert_eq!(reasons[3], "2 h old, kept for 90 min only while the disk is over its line");
        assert_eq!((totals.deleted["file"].count, totals.kept["young"].count), (4, 1));
    }

    #[test]
    fn extensions_alone_make_a_group() {
        for (name, expected) in
            [("a.mp3", "a"), ("a", "a"), ("a.mp3.json", "a.mp3"), (".hidden", ".hidden"), (".hidden.json", ".hidden"), ("a.", "a")]
        {
            assert_eq!(stem(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    proptest! {
        /// Whatever the times and limits, extreme ones too: no panic, nothing twice, nothing younger than min_age, and no more than
        /// is needed.
        #[test]
        fn no_plan_takes_what_is_young_or_more_than_is_asked(
            files in proptest::collection::vec((any::<i64>(), any::<u32>()), 0..60),
            near in proptest::collection::vec((-200_i64..400, 0_u32..100), 0..60),
            now in prop_oneof![Just(i64::MIN), Just(i64::MAX), -1_000_i64..1_000, 0_i64..i64::MAX],
            (keep, min_age) in (0_u64..300, 0_u64..300),
            (max_total, max_files, free) in (proptest::option::of(any::<u64>()), proptest::option::of(0_u64..80), proptest::option::of(any::<u64>())),
            groups: bool,
        ) {
            let near = near.into_iter().map(|(hours, sectors)| (now.saturating_sub(hours.saturating_mul(HOUR)), sectors));
            let rows: Vec<(&std::ffi::CStr, i64, u32)> = files.into_iter().chain(near).map(|(time, sectors)| (c"name", time, sectors)).collect();
            let listing = Listing::made_up(&rows);
            let settings = Files {
                keep: Duration::from_secs(keep * 3600), min_age: Duration::from_secs(min_age * 3600), max_total, max_files, groups, ..settings()
            };
            let order = Order { free_bytes: free, ..Order::default() };
            let moment = at(now);
            let plan = plan(&listing, &settings, &order, moment);
            let now = nanoseconds(moment.wall);
            let mut seen = std::collections::BTreeSet::new();
            for pick in &plan.picks {
                prop_assert!(seen.insert(pick.file));
                let age = now.saturating_sub(listing.file(pick.file).unwrap().youngest);
                prop_assert!(age >= length(settings.min_age) && age >= 0);
            }
            let last = plan.picks.last().filter(|pick| matches!(pick.why, Why::Pressure(_)));
            if let (Some(last), Some(free), false) = (last, free, groups) {
                let bytes = |picks: &[Pick]| picks.iter().filter_map(|pick| listing.file(pick.file)).map(File::bytes).sum::<u64>();
                prop_assert!(bytes(&plan.picks) - listing.file(last.file).unwrap().bytes() < free, "one too many");
            }
            plan.tell(&listing, &settings, |_| ());
            prop_assert_eq!(plan.clone(), super::plan(&listing, &settings, &order, moment), "the same plan twice");
        }
    }
}
