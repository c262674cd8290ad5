//! A platform as a test says it is.

use super::super::report::Finding;
use super::*;
use crate::config::{self, Sources};

/// How a finding is to be told; `Absent`: not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Ok,
    Note,
    Warn,
    Absent,
}

pub(super) struct Case {
    facts: Facts,
    last: Option<Finding>,
}

impl Case {
    /// On the platform itself, with nothing to be seen there but what is added.
    pub fn new(platform: &str, settings: &str) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plimsoll.toml");
        std::fs::write(&file, settings).unwrap();
        let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
        let sources = Sources { file: Some(file), env, working_dir: folder.path().to_path_buf(), elsewhere: true, ..Sources::default() };
        let settings = config::load(&sources).unwrap_or_else(|problems| panic!("{problems}\n{settings}")).settings;
        let state = settings.daemon.state_dir.path.clone();
        let platform = Platform::ALL.into_iter().find(|one| one.word() == platform).unwrap();
        let (variables, files, fleeting, seen) = Default::default();
        Case { facts: Facts { platform, settings, here: true, grace: None, variables, files, state, fleeting, seen }, last: None }
    }

    pub fn elsewhere(mut self) -> Case {
        (self.facts.here, self.facts.seen) = (false, Seen::default());
        self
    }

    pub fn grace(mut self, seconds: u64) -> Case {
        self.facts.grace = Some(Duration::from_secs(seconds));
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Case {
        self.facts.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn file(mut self, name: &'static str, text: &str) -> Case {
        assert!(FILES.contains(&name), "nobody reads {name}");
        self.facts.files.insert(name, text.to_owned());
        self
    }

    pub fn fleeting(mut self, folder: &str, place: &'static str) -> Case {
        self.facts.fleeting.insert(folder.into(), place);
        self
    }

    pub fn without_critical(mut self) -> Case {
        self.facts.settings.policy.memory.rule.critical = None;
        self
    }

    pub fn root(mut self) -> Case {
        self.facts.seen.root = true;
        self
    }

    pub fn first(mut self, name: &str) -> Case {
        self.facts.seen.first_name = Some(name.to_owned());
        self
    }

    pub fn limits(mut self, memory: LimitSource, cpu: LimitSource) -> Case {
        (self.facts.seen.memory, self.facts.seen.cpu) = (Some(memory), Some(cpu));
        self
    }

    pub fn shared_memory(mut self, bytes: u64) -> Case {
        self.facts.seen.shared_memory = Some(bytes);
        self
    }

    pub fn unit(mut self, unit: Result<BTreeMap<String, String>, String>) -> Case {
        self.facts.seen.unit = Some(unit);
        self
    }

    pub fn findings(&self) -> Vec<Finding> {
        let mut report = Report::default();
        traps(&self.facts, &mut Told { report: &mut report, of: self.facts.platform.word() });
        report.findings
    }

    /// The finding of this name is told so, with these words in it.
    #[track_caller]
    pub fn expect(mut self, what: &str, level: Expect, words: &str) -> Case {
        let name = format!("{}: {what}", self.facts.platform.word());
        let found = self.findings().into_iter().find(|finding| finding.what == name);
        let told = found.as_ref().map_or(Expect::Absent, |finding| match finding.level {
            Level::Ok => Expect::Ok,
            Level::Note => Expect::Note,
            Level::Warn | Level::Fail => Expect::Warn,
        });
        assert_eq!(told, level, "{what}: {found:#?}");
        if let Some(finding) = &found {
            assert!(finding.found.contains(words) || finding.remedy.as_ref().is_some_and(|remedy| remedy.contains(words)), "{finding:#?}");
            assert_eq!(finding.remedy.is_some(), finding.level != Level::Ok, "what is not as it should be has a remedy: {finding:#?}");
        }
        self.last = found;
        self
    }

    /// Of what was expected last.
    pub fn remedy(&self) -> String {
        self.last.as_ref().and_then(|finding| finding.remedy.clone()).expect("a finding with a remedy")
    }
}

#[test]
fn what_is_advised_is_shorter_than_what_is_given() {
    for (grace, advised) in [(0, None), (1, None), (2, Some(1)), (5, Some(4)), (10, Some(8)), (30, Some(25)), (300, Some(250))] {
        assert_eq!(within(Duration::from_secs(grace)).map(|span| span.as_secs()), advised, "{grace}");
    }
}

#[test]
fn values_of_a_yaml_file_are_found_without_its_structure() {
    let text = "services:\n  - mountPath: \"/a b\"\n    x:\n    mountPath: /c # d\n    mountPaths: /e\n";
    assert_eq!(yaml_values(text, "mountPath").collect::<Vec<_>>(), ["/a b", "/c"]);
    assert_eq!(yaml_values(text, "x").count(), 0);
}
