//! Whether and when the daemon becomes what is in its program's place now: the decision, pure. What it takes to try another program
//! and to become it is in `upgrade`.
//!
//! ```text
//! the same ─▶ another is seen ─▶ … for a while and quietly ─▶ trusted? ─▶ tried out ─▶ become
//!    ▲              │ another again: from the beginning            │           │
//!    └──────────────┴ gone, or the old one is back                 └▶ refused, ┴▶ once for each file
//! ```

use std::time::Duration;

use crate::config::settings::Upgrade;
use crate::host::program::{Identity, Seen};

/// How often the file is looked at.
pub const LOOK: Duration = Duration::from_secs(10);
/// One that has not been the same for so long may still be being written.
pub const SETTLED: Duration = Duration::from_secs(3);
/// While somebody is held the daemon has better things to do than to let all go; but not for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What has been seen of the file.
#[derive(Debug, Default)]
pub struct Watch {
    next_look: Duration,
    /// Another one, and since when it has been this one.
    changed: Option<(Identity, Duration)>,
    /// The last that was tried or refused: not again by itself.
    judged: Option<Identity>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    Try,
    Refuse(String),
}

impl Watch {
    pub fn is_due(&self, now: Duration) -> bool {
        self.next_look <= now
    }

    /// This one was tried, whoever wanted it.
    pub fn note_judged(&mut self, file: Identity) {
        self.judged = Some(file);
    }

    /// Takes in what has our program's name now. `us` is whom we are, (user, group).
    pub fn note(&mut self, seen: Option<Seen>, started: Identity, us: (u32, u32), is_busy: bool, now: Duration) -> Step {
        self.next_look = now + LOOK;
        let Some(seen) = seen.filter(|seen| seen.identity != started) else {
            self.changed = None;
            return Step::Nothing;
        };
        if self.judged == Some(seen.identity) {
            return Step::Nothing;
        }
        let since = match self.changed {
            Some((identity, since)) if identity == seen.identity => since,
            _ => now,
        };
        self.changed = Some((seen.identity, since));
        let age = now.saturating_sub(since);
        if age < SETTLED {
            self.next_look = since + SETTLED;
            return Step::Nothing;
        }
        if is_busy && age < PATIENCE {
            return Step::Nothing;
        }
        self.judged = Some(seen.identity);
        match objection(&seen, us) {
            Some(why) => Step::Refuse(why),
            None => Step::Try,
        }
    }
}

/// Why a file is not to be executed with our rights, unless somebody with our rights says so.
pub fn objection(seen: &Seen, (user, group): (u32, u32)) -> Option<String> {
    if !seen.is_file {
        return Some("it is no file".to_owned());
    }
    if seen.owner != 0 && seen.owner != user {
        return Some(format!("it belongs to user {}, and has to be root's or of user {user}, whom the daemon runs as", seen.owner));
    }
    if seen.mode & 0o002 != 0 || (seen.mode & 0o020 != 0 && seen.group != 0 && seen.group != group) {
        return Some(format!("others may write to it (mode {:o}); chmod go-w", seen.mode & 0o7777));
    }
    None
}

/// Whether a reload is to become another program: as the new settings say, where this version can read them, else as the old ones.
pub fn renews_on_reload(now: Upgrade, new: Option<Upgrade>) -> bool {
    new.unwrap_or(now) != Upgrade::Never
}

/// Whether systemd has started this very process as a service: not one that has only inherited its variables. Before version 248
/// it did not say which one it had started, which then is its own child.
pub fn is_service<'a>(variable: impl Fn(&str) -> Option<&'a str>, pid: u32, parent: i32) -> bool {
    match variable("SYSTEMD_EXEC_PID") {
        Some(started) => started.parse() == Ok(pid),
        None => parent == 1 && variable("INVOCATION_ID").is_some_and(|id| !id.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(inode: u64) -> Seen {
        let identity = Identity { device: 1, inode, size: 100, modified: (5, 6) };
        Seen { identity, is_file: true, owner: 0, group: 0, mode: 0o100_755 }
    }

    const US: (u32, u32) = (1000, 1000);

    fn watch(story: &[(u64, Option<Seen>, bool)]) -> Vec<(u64, Step)> {
        let mut watch = Watch::default();
        let mut steps = Vec::new();
        for (second, file, is_busy) in story {
            let step = watch.note(*file, seen(1).identity, US, *is_busy, Duration::from_secs(*second));
            if step != Step::Nothing {
                steps.push((*second, step));
            }
        }
        steps
    }

    #[test]
    fn another_file_is_tried_once_when_it_has_settled() {
        assert_eq!(watch(&[(0, Some(seen(1)), false), (10, Some(seen(1)), false)]), [], "the same");
        let story = [(0, Some(seen(2)), false), (2, Some(seen(2)), false), (3, Some(seen(2)), false), (13, Some(seen(2)), false)];
        assert_eq!(watch(&story), [(3, Step::Try)]);
        let growing = |size| Seen { identity: Identity { size, ..seen(2).identity }, ..seen(2) };
        let story =
            [(0, Some(growing(1)), false), (3, Some(growing(2)), false), (6, Some(growing(3)), false), (9, Some(growing(3)), false)];
        assert_eq!(watch(&story), [(9, Step::Try)], "one that is still being written is not tried");
        let story = [(0, Some(seen(2)), false), (5, None, false), (9, Some(seen(2)), false), (12, Some(seen(2)), false)];
        assert_eq!(watch(&story), [(12, Step::Try)], "away in between");
        let story = [(0, Some(seen(2)), false), (4, Some(seen(2)), false), (14, Some(seen(3)), false), (17, Some(seen(3)), false)];
        assert_eq!(watch(&story), [(4, Step::Try), (17, Step::Try)], "each file once");
        let story = [(0, Some(seen(2)), false), (2, Some(seen(1)), false), (9, Some(seen(1)), false)];
        assert_eq!(watch(&story), [], "the old one is back");
    }

    #[test]
    fn looks_are_far_apart_until_there_is_something_to_see() {
        let mut watch = Watch::default();
        assert!(watch.is_due(Duration::from_secs(7)));
        watch.note(Some(seen(1)), seen(1).identity, US, false, Duration::from_secs(7));
        assert!(!watch.is_due(Duration::from_secs(16)) && watch.is_due(Duration::from_secs(17)));
        watch.note(Some(seen(2)), seen(1).identity, US, false, Duration::from_secs(17));
        assert!(!watch.is_due(Duration::from_secs(19)) && watch.is_due(Duration::from_secs(20)));
    }

    #[test]
    fn it_waits_while_somebody_is_held_but_not_for_ever() {
        let story: Vec<_> = (0..100).map(|look| (look * 10, Some(seen(2)), true)).collect();
        assert_eq!(watch(&story), [(60, Step::Try)]);
        assert_eq!(watch(&[(0, Some(seen(2)), true), (10, Some(seen(2)), true), (20, Some(seen(2)), false)]), [(20, Step::Try)]);
    }

    #[test]
    fn what_others_may_write_to_is_not_executed() {
        for (file, is_fine) in [
            (seen(2), true),
            (Seen { owner: 1000, ..seen(2) }, true),
            (Seen { owner: 1001, ..seen(2) }, false),
            (Seen { mode: 0o100_757, ..seen(2) }, false),
            (Seen { mode: 0o100_775, ..seen(2) }, true),
            (Seen { mode: 0o100_775, group: 1000, ..seen(2) }, true),
            (Seen { mode: 0o100_775, group: 100, ..seen(2) }, false),
            (Seen { is_file: false, ..seen(2) }, false),
        ] {
            assert_eq!(objection(&file, US).is_none(), is_fine, "{file:?}");
            let steps = watch(&[(0, Some(file), false), (4, Some(file), false), (14, Some(file), false)]);
            assert!(matches!(steps[..], [(4, ref step)] if (*step == Step::Try) == is_fine), "told once: {steps:?}");
        }
    }

    #[test]
    fn what_systemd_has_started_is_told_from_what_has_inherited_its_variables() {
        let is = |exec: Option<&str>, invocation: Option<&str>, parent| {
            is_service(|name| if name == "SYSTEMD_EXEC_PID" { exec } else { invocation.filter(|_| name == "INVOCATION_ID") }, 77, parent)
        };
        assert!(is(Some("77"), Some("6d1e"), 1) && is(Some("77"), None, 900), "the user's own systemd is not process 1");
        assert!(!is(Some("70"), Some("6d1e"), 1), "a service has started us");
        assert!(is(None, Some("6d1e"), 1) && !is(None, Some("6d1e"), 70) && !is(None, None, 1) && !is(None, Some(""), 1));
    }

    #[test]
    fn the_new_settings_say_whether_a_reload_renews() {
        assert!(renews_on_reload(Upgrade::Auto, None) && renews_on_reload(Upgrade::Never, Some(Upgrade::Reload)));
        assert!(!renews_on_reload(Upgrade::Never, None) && !renews_on_reload(Upgrade::Auto, Some(Upgrade::Never)));
    }
}
