//! What the doctor found, and how it is told.

use serde::Serialize;

use crate::cli::render::{Style, Tone, wrap};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Something is not there that need not be there.
    Note,
    /// Something will not work as well as it could.
    Warn,
    /// The daemon will not start, or not do what the settings ask for.
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Level::Ok => Tone::Good,
            Level::Note => Tone::Quiet,
            Level::Warn => Tone::Warning,
            Level::Fail => Tone::Bad,
        }
    }
}

/// One thing that was tried or looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: &'static str,
    pub level: Level,
    pub what: String,
    /// What was seen, with the reason.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Everything that was found, in the order it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn ok(&mut self, area: &'static str, what: impl Into<String>, found: impl Into<String>) {
        self.add(area, Level::Ok, what, found, None);
    }

    pub fn note(&mut self, area: &'static str, what: impl Into<String>, found: impl Into<String>) {
        self.add(area, Level::Note, what, found, None);
    }

    pub fn bad(&mut self, area: &'static str, level: Level, what: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(area, level, what, found, Some(remedy.into()));
    }

    fn add(&mut self, area: &'static str, level: Level, what: impl Into<String>, found: impl Into<String>, remedy: Option<String>) {
        self.findings.push(Finding { area, level, what: what.into(), found: found.into(), remedy });
    }

    pub fn has_failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Fail)
    }

    /// `34 ok, 3 notes, 1 warning, no failure`
    pub fn summary(&self) -> String {
        let count = |level: Level| self.findings.iter().filter(|finding| finding.level == level).count();
        let some = |count: usize, word: &str| match count {
            0 => format!("no {word}"),
            1 => format!("1 {word}"),
            more => format!("{more} {word}s"),
        };
        let (ok, notes) = (count(Level::Ok), some(count(Level::Note), "note"));
        format!("{ok} ok, {notes}, {}, {}", some(count(Level::Warn), "warning"), some(count(Level::Fail), "failure"))
    }

    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "ok": !self.has_failed(), "summary": self.summary(), "findings": self.findings })
    }

    /// One paragraph for each area.
    pub fn render(&self, style: Style) -> String {
        let width = style.width.clamp(64, 140);
        let mut text = String::new();
        let mut area = "";
        for finding in &self.findings {
            if finding.area != area {
                let blank = if area.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{blank}{}\n", style.paint(Tone::Strong, finding.area)));
                area = finding.area;
            }
            let head = style.paint(finding.level.tone(), &format!("{:<4}", finding.level.word()));
            let mut lines = wrap(&format!("{}: {}", finding.what, finding.found), width - INDENT, 0).into_iter();
            text.push_str(&format!("  {head}  {}\n", lines.next().unwrap_or_default()));
            for line in lines {
                text.push_str(&format!("{:INDENT$}{line}\n", ""));
            }
            for (at, line) in finding.remedy.iter().flat_map(|remedy| wrap(remedy, width - INDENT - 2, 0)).enumerate() {
                let arrow = if at == 0 { "→ " } else { "  " };
                text.push_str(&format!("{:INDENT$}{arrow}{line}\n", ""));
            }
        }
        text.push_str(&format!("\n{}\n", self.summary()));
        text
    }
}

/// Where the words of a finding begin.
const INDENT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_from_top_to_bottom_and_summed_up() {
        let mut report = Report::default();
        report.ok("machine", "cgroup", "v2");
        report.bad("places", Level::Warn, "journal", "not there", "start it, or leave it as it is: the log goes to standard error then");
        assert_eq!((report.summary().as_str(), report.has_failed()), ("1 ok, no note, 1 warning, no failure", false));
        report.bad("places", Level::Fail, "port", "taken", "another one");
        assert!(report.has_failed());
        let text = report.render(Style { color: false, width: 64 });
        assert_eq!(
            text,
            "machine\n  ok    cgroup: v2\n\nplaces\n  warn  journal: not there\n        → start it, or leave it as it is: the log goes to\n          \
             standard error then\n  fail  port: taken\n        → another one\n\n1 ok, no note, 1 warning, 1 failure\n"
        );
    }
}
