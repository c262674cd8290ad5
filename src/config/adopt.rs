//! A worker that somebody else starts: how it is found, and what may be done to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    pub by: AdoptBy,
    /// The command that restarts it; `None`: nobody is told how.
    pub restart: Option<Vec<String>>,
    /// The command is ended after this long.
    pub restart_within: Duration,
    /// Killed when memory is out, stopped when somebody asks.
    pub may_end: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdoptBy {
    /// Absolute.
    Pidfile(PathBuf),
    /// Its name with its kind: `app.service`.
    Unit(String),
    /// As `/proc/PID/cgroup` says it; begins with a slash.
    Cgroup(PathBuf),
    Match {
        /// A regular expression that [`compile`] takes.
        pattern: String,
        /// By name or number; `None`: the daemon's own user.
        owner: Option<String>,
    },
}

/// What a worker waits for while it is not there.
impl fmt::Display for AdoptBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdoptBy::Pidfile(path) => write!(f, "a process by pidfile {}", path.display()),
            AdoptBy::Unit(unit) => write!(f, "a process of the unit {unit}"),
            AdoptBy::Cgroup(path) => write!(f, "a process in the control group {}", path.display()),
            AdoptBy::Match { pattern, owner: Some(owner) } => write!(f, "a process of {owner} whose command line matches {pattern:?}"),
            AdoptBy::Match { pattern, owner: None } => write!(f, "a process of our own user whose command line matches {pattern:?}"),
        }
    }
}

/// Bytes of a compiled expression. A search takes time in proportion to it, and every process is searched.
const LARGEST: usize = 32 << 10;

/// # Errors
/// Why it is no regular expression that can be used.
pub fn compile(pattern: &str) -> Result<regex_lite::Regex, String> {
    regex_lite::RegexBuilder::new(pattern).size_limit(LARGEST).build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_expression_that_would_take_long_is_refused() {
        assert!(compile("gunicorn: master \\[app\\]").unwrap().is_match("gunicorn: master [app]"));
        assert!(compile("(").is_err());
        assert!(compile("(a{100}){100}").is_err(), "too large");
    }

    proptest! {
        #[test]
        fn any_pattern_and_any_text_are_survived(pattern in ".{0,40}", text in ".{0,200}") {
            if let Ok(expression) = compile(&pattern) {
                expression.is_match(&text);
            }
        }
    }
}
