//! What is wrong with the settings: all of it at once, each with its place, what is allowed and the nearest known name.

use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::Serialize;

use super::tree::Source;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The dotted key, `policy.disks[0].path`; empty for mistakes of syntax and of the file as a whole.
    pub key: String,
    pub place: Place,
    /// A fragment: `"85%" is not below high ("80%")`.
    pub message: String,
    pub allowed: Option<String>,
    /// The known name that was probably meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    /// One line: place, key, what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", visible(&self.key)) };
        write!(f, "{}: {key}{}", visible(&self.place.to_string()), visible(&self.message))
    }
}

/// Where it was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "at")]
pub enum Place {
    /// In a file. Lines and columns count from 1, columns in characters. `source` is what to show of the line; the `width` characters
    /// that are meant come after `indent` others.
    Text { file: String, line: usize, column: usize, source: String, indent: usize, width: usize },
    /// In a file, as a whole.
    File(String),
    /// In a variable of the environment.
    Variable(String),
    /// In a `--set` argument, named by its key.
    Argument(String),
    /// In the command after `--`.
    Command,
    /// In no place of its own: something that is missing.
    Nowhere,
}

impl Place {
    /// The place of bytes `at`; its line with secrets and tabs blanked out.
    pub fn in_text(source: &Source, at: &Range<usize>) -> Place {
        let text = &source.text;
        let start = floor(text, at.start);
        let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let line = text.get(..line_start).map_or(0, |before| before.matches('\n').count()) + 1;
        let rest = text.get(line_start..).unwrap_or("");
        let shown = rest.lines().next().unwrap_or("");
        let hidden = |byte: usize| source.secret.iter().any(|range| range.contains(&byte));
        let blanked = shown
            .char_indices()
            .map(|(offset, c)| {
                if hidden(line_start + offset) {
                    '*'
                } else if c.is_control() {
                    ' '
                } else {
                    c
                }
            })
            .collect::<String>();
        let column = text.get(line_start..start).map_or(0, |before| before.chars().count()) + 1;
        let end = floor(text, at.end).min(line_start + shown.len());
        let width = text.get(start..end).map_or(1, |marked| marked.chars().count()).max(1);
        // Of a very long line, what is around the place.
        let skipped = if column > SHOWN { column - SHOWN / 2 } else { 0 };
        let shown: String = blanked.chars().skip(skipped).take(2 * SHOWN).collect();
        let indent = column - 1 - skipped;
        let width = width.min((2 * SHOWN).saturating_sub(indent)).max(1);
        Place::Text { file: source.name.clone(), line, column, source: shown, indent, width }
    }
}

/// About as many characters of a line as fit before what is meant.
const SHOWN: usize = 80;

/// The last character boundary at or before `index`.
fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Text { file, line, column, .. } => write!(f, "{file}:{line}:{column}"),
            Place::File(file) => f.write_str(file),
            Place::Variable(name) => write!(f, "environment {name}"),
            Place::Argument(key) => write!(f, "--set {key}"),
            Place::Command => f.write_str("command line"),
            Place::Nowhere => f.write_str("settings"),
        }
    }
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    pub list: Vec<Problem>,
    /// The file is there but may not be read.
    pub denied: bool,
}

/// Exit code: bad configuration.
const EX_CONFIG: u8 = 78;
/// Exit code: not permitted.
const EX_NOPERM: u8 = 77;

impl Problems {
    /// 78, or 77 where the settings file is there but may not be read.
    pub fn exit_code(&self) -> u8 {
        if self.denied { EX_NOPERM } else { EX_CONFIG }
    }

    /// The list for people, one paragraph for each, in the order of the file.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &'static str| if colour { code } else { "" };
        let (red, bold, blue, plain) = (paint("\x1b[1;31m"), paint("\x1b[1m"), paint("\x1b[1;34m"), paint("\x1b[0m"));
        let mut out = String::new();
        for problem in &self.list {
            let key = if problem.key.is_empty() { String::new() } else { format!("{bold}{}{plain}: ", visible(&problem.key)) };
            // Writing to a String cannot fail.
            let (place, message) = (visible(&problem.place.to_string()), visible(&problem.message));
            let _ = writeln!(out, "{place}: {red}error{plain}: {key}{message}");
            let mut margin = String::new();
            if let Place::Text { line, source, indent, width, .. } = &problem.place {
                let number = line.to_string();
                margin = " ".repeat(number.len());
                let _ = writeln!(out, "  {blue}{number} |{plain} {}", source.trim_end());
                let _ = writeln!(out, "  {blue}{margin} |{plain} {}{red}{}{plain}", " ".repeat(*indent), "^".repeat(*width));
            }
            if let Some(suggestion) = &problem.suggestion {
                let _ = writeln!(out, "  {margin} {blue}={plain} did you mean `{}`?", visible(suggestion));
            }
            if let Some(allowed) = &problem.allowed {
                let _ = writeln!(out, "  {margin} {blue}={plain} allowed: {allowed}");
            }
        }
        out
    }
}

/// Text that may come from anywhere, without what would steer a terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Problems {}
