//! Where settings come from: the built-in file, a file, plain names in the environment, `PLIMSOLL_…`, `--set`, the command.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use super::problems::{Place, Problem, Problems};
use super::tree::{Layer, Node, Origin, Source, Tree, join};
use super::units::{Count, Scalar, Span, Unit as _};

/// Everything that can say something about the settings. Nothing else is asked: not the process's own environment, not its folder.
#[derive(Clone, Default)]
pub struct Sources {
    /// `-c FILE`.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// `--set key=value`, in their order.
    pub set: Vec<String>,
    /// `run -- COMMAND…`: becomes worker `main`.
    pub command: Vec<String>,
    /// Relative paths start here.
    pub working_dir: PathBuf,
    /// Asked by somebody who is not the daemon: credentials and the command of `run --`, which are given to that alone, may be missing.
    pub beside: bool,
    /// The settings are for another machine: what they name need not be there.
    pub elsewhere: bool,
}

/// Without the environment and the values of `--set`, which may hold secrets.
impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).field("working_dir", &self.working_dir).finish_non_exhaustive()
    }
}

impl Sources {
    /// The value of a variable; the last one given, if it is there twice.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The built-in file: every key at its default.
pub const BUILT_IN: &str = include_str!("../../config/plimsoll.toml");

/// Looked for when neither `-c` nor `PLIMSOLL_CONFIG` names a file.
const SEARCHED: [&str; 2] = ["plimsoll.toml", "/etc/plimsoll/plimsoll.toml"];

/// Nobody writes a longer one, and `/dev/zero` has no end.
const LONGEST_FILE: u64 = 1 << 20;

/// No key has more parts than this.
const DEEPEST: usize = 16;

const PREFIX: &str = "PLIMSOLL_";

/// The layers, lowest first, and the file if there is one.
#[derive(Debug)]
pub struct Layers {
    pub list: Vec<Layer>,
    pub file: Option<PathBuf>,
    /// What could not be taken into any layer.
    pub problems: Vec<Problem>,
}

/// Reads all layers.
///
/// # Errors
/// A file that is missing, unreadable or not TOML: nothing else could be judged without it.
pub fn gather(sources: &Sources, known: &[String]) -> Result<Layers, Problems> {
    let mut problems = Vec::new();
    // The built-in file has no mistakes; a test loads it.
    let (_, built_in, _) = Source::parse("built-in", BUILT_IN.to_owned());
    let mut list = vec![Layer { origin: Origin::BuiltIn, root: built_in }];
    let file = find_file(sources)?;
    if let Some((path, text)) = &file {
        let (source, root, mistakes) = Source::parse(&path.display().to_string(), text.clone());
        if !mistakes.is_empty() {
            return Err(Problems { list: mistakes, denied: false });
        }
        list.push(Layer { origin: Origin::File(source), root });
    }
    let mut above = variables(sources, &Names::of(&list), known, &mut problems);
    above.extend(arguments(sources, &mut problems));
    if !sources.command.is_empty() {
        let words = sources.command.iter().map(|word| Node::new(Tree::Scalar(Scalar::Text(word.clone())))).collect();
        let keys = ["workers", "main", "command"].map(str::to_owned);
        above.push(Layer { origin: Origin::Command, root: Node::new(Tree::Array(words)).under(&keys) });
    }
    let aliases = aliases(sources, &list, &above, &mut problems);
    list.extend(aliases);
    list.extend(above);
    Ok(Layers { list, file: file.map(|(path, _)| path), problems })
}

/// The layers as far as they can be read, for the one question a client has while the file is wrong: where the daemon is.
pub fn readable(sources: &Sources, known: &[String]) -> Vec<Layer> {
    let mut ignored = Vec::new();
    let (_, built_in, _) = Source::parse("built-in", BUILT_IN.to_owned());
    let mut list = vec![Layer { origin: Origin::BuiltIn, root: built_in }];
    if let Ok(Some((path, text))) = find_file(sources) {
        let (source, root, _) = Source::parse(&path.display().to_string(), text);
        list.push(Layer { origin: Origin::File(source), root });
    }
    list.extend(variables(sources, &Names::default(), known, &mut ignored));
    list.extend(arguments(sources, &mut ignored));
    list
}

fn find_file(sources: &Sources) -> Result<Option<(PathBuf, String)>, Problems> {
    let named = match (&sources.file, sources.variable("PLIMSOLL_CONFIG")) {
        (Some(file), _) => Some((file.clone(), "")),
        (None, Some(file)) if !file.is_empty() => Some((PathBuf::from(file), " (named by PLIMSOLL_CONFIG)")),
        _ => None,
    };
    if let Some((path, named_by)) = named {
        return match read(sources, &path)? {
            Some(text) => Ok(Some((path, text))),
            None => Err(whole_file(&path, format!("there is no such file{named_by}"), false)),
        };
    }
    for path in SEARCHED.map(PathBuf::from) {
        if let Some(text) = read(sources, &path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

fn read(sources: &Sources, path: &Path) -> Result<Option<String>, Problems> {
    let mut bytes = Vec::new();
    match File::open(sources.working_dir.join(path)).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > LONGEST_FILE => Err(whole_file(path, "is larger than 1 MiB".to_owned(), false)),
        Ok(_) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let line = error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
                Err(whole_file(path, format!("line {line} is not UTF-8 text"), false))
            }
        },
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &Error) -> Problems {
    let mut problems = whole_file(path, format!("could not be read: {error}"), error.kind() == ErrorKind::PermissionDenied);
    if error.kind() == ErrorKind::IsADirectory {
        let allowed = "a file; container engines make a folder in its place when what is to be mounted there is not on the machine";
        problems.list[0].allowed = Some(allowed.to_owned());
    }
    problems
}

fn whole_file(path: &Path, message: String, denied: bool) -> Problems {
    let place = Place::File(path.display().to_string());
    Problems { list: vec![Problem { key: String::new(), place, message, allowed: None, suggestion: None }], denied }
}

/// The names people have given: a variable cannot spell them all.
#[derive(Debug, Default)]
struct Names {
    workers: Vec<String>,
    jobs: Vec<String>,
}

impl Names {
    fn of(layers: &[Layer]) -> Names {
        Names { workers: names_in(layers.iter(), "workers"), jobs: names_in(layers.iter(), "jobs") }
    }
}

/// Everything any of the layers speaks of in a section, once, in order.
fn names_in<'a>(layers: impl Iterator<Item = &'a Layer>, section: &str) -> Vec<String> {
    let mut names = BTreeSet::new();
    for layer in layers {
        if let Tree::Table(sections) = &layer.root.value
            && let Some(Tree::Table(named)) = sections.get(section).map(|named| &named.value)
        {
            names.extend(named.keys().cloned());
        }
    }
    names.into_iter().collect()
}

/// `PLIMSOLL_SECTION__KEY=value`: two underscores stand for the dot.
///
/// Names without `__` are not settings (`PLIMSOLL_CONFIG`; Kubernetes makes `PLIMSOLL_SERVICE_HOST` for a service called
/// plimsoll), but one that spells a setting with single underscores is a slip worth a word.
fn variables(sources: &Sources, names: &Names, known: &[String], problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (name, value) in &sources.env {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if !rest.contains("__") {
            let flat = rest.to_ascii_lowercase();
            if let Some(key) = known.iter().find(|key| key.replace('.', "_") == flat) {
                problems.push(Problem {
                    key: key.clone(),
                    place: Place::Variable(name.clone()),
                    message: "one underscore does not part a section from its key".to_owned(),
                    allowed: None,
                    suggestion: Some(format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())),
                });
            }
            continue;
        }
        if rest.split("__").count() > DEEPEST {
            problems.push(too_deep(Place::Variable(name.clone())));
            continue;
        }
        let keys = variable_keys(rest, names);
        // A key may look like a number or a date; it is never anything but text.
        let node = if keys == ["http", "api_key"] { text_node(value) } else { Node::from_text(value) };
        layers.push(Layer { origin: Origin::Variable(name.clone()), root: node.under(&keys) });
    }
    layers
}

fn too_deep(place: Place) -> Problem {
    Problem { key: String::new(), place, message: "no key has so many parts".to_owned(), allowed: None, suggestion: None }
}

fn text_node(value: &str) -> Node {
    Node::new(Tree::Scalar(Scalar::Text(value.to_owned())))
}

fn variable_keys(rest: &str, names: &Names) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let named = |names: &[String], part: &str| {
        let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
        names.iter().find(|name| plain(name) == plain(part)).cloned().unwrap_or_else(|| part.to_ascii_lowercase())
    };
    for part in rest.split("__") {
        let key = match keys.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            // `VECTOR_DB` is the worker `vector-db`, if there is one.
            ["workers"] => named(&names.workers, part),
            ["jobs"] => named(&names.jobs, part),
            // Names of variables and of tables are as they are.
            ["workers", _, "env", ..] | ["jobs", _, "table", "children", ..] => part.to_owned(),
            _ => part.to_ascii_lowercase(),
        };
        keys.push(key);
    }
    keys
}

fn arguments(sources: &Sources, problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for argument in &sources.set {
        let (key, value) = match argument.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => (key.trim(), value),
            // Shown in full: without a "=" there is no value in it that could be secret.
            _ => {
                problems.push(Problem {
                    key: String::new(),
                    place: Place::Argument(argument.clone()),
                    message: "is not key=value".to_owned(),
                    allowed: Some("a dotted key and its value, such as policy.memory.high=75%".to_owned()),
                    suggestion: None,
                });
                continue;
            }
        };
        let keys: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
        if keys.len() > DEEPEST {
            problems.push(too_deep(Place::Argument(key.to_owned())));
            continue;
        }
        layers.push(Layer { origin: Origin::Argument(key.to_owned()), root: Node::from_text(value.trim()).under(&keys) });
    }
    layers
}

/// The plain names applications of the kind looked after here already use, below the `PLIMSOLL_…` names.
pub const ALIASES: [(&str, &str); 6] = [
    ("SESSION_RETENTION_DAYS", "`keep` of each job with `kind = \"sessions\"`, unless the file sets it: a number of days"),
    ("RESOURCE_CPU_THRESHOLD", "`policy.cpu.high`, a number of percent"),
    ("RESOURCE_MEMORY_THRESHOLD", "`policy.memory.high`, a number of percent"),
    ("RESOURCE_MONITORING_INTERVAL", "`sampling.report_every`, a number of seconds"),
    (
        "RESOURCE_MONITORING_ENABLED",
        "`false` means `policy.dry_run = true` and `sampling.report_every = \"never\"`: nothing is acted on or reported, metrics and workers stay",
    ),
    ("GUNICORN_WORKERS", "`replicas` of the only worker, else of the one called `web` or `main`, unless the file sets it: a number"),
];

fn aliases(sources: &Sources, below: &[Layer], above: &[Layer], problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut layers = Vec::new();
    for (name, _) in ALIASES {
        let Some(value) = sources.variable(name).map(str::trim).filter(|value| !value.is_empty()) else { continue };
        match meant_by(name, value, &|name| targets(name, below, above)) {
            Ok(settings) => layers.extend(settings.into_iter().map(|(key, value)| {
                let keys: Vec<String> = key.split('.').map(str::to_owned).collect();
                Layer { origin: Origin::Variable(name.to_owned()), root: Node::new(Tree::Scalar(value)).under(&keys) }
            })),
            Err(allowed) => problems.push(Problem {
                key: String::new(),
                place: Place::Variable(name.to_owned()),
                message: format!("{value:?} is not understood"),
                allowed: Some(allowed.to_owned()),
                suggestion: None,
            }),
        }
    }
    layers
}

/// The settings a plain name stands for; what is allowed, when its value is not. `targets` gives the keys of a name that speaks of
/// some of several.
fn meant_by(name: &str, value: &str, targets: &dyn Fn(&str) -> Vec<String>) -> Result<Vec<(String, Scalar)>, &'static str> {
    const PERCENT: &str = "a number of percent over 0 and up to 100, such as 80.0";
    let one = |key: &str, value: Scalar| vec![(key.to_owned(), value)];
    match name {
        "RESOURCE_CPU_THRESHOLD" => Ok(one("policy.cpu.high", percent(value).ok_or(PERCENT)?)),
        "RESOURCE_MEMORY_THRESHOLD" => Ok(one("policy.memory.high", percent(value).ok_or(PERCENT)?)),
        "RESOURCE_MONITORING_INTERVAL" => {
            Ok(one("sampling.report_every", seconds(value).ok_or("a number of seconds from 1 to a year, such as 600")?))
        }
        "RESOURCE_MONITORING_ENABLED" => match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Vec::new()),
            "false" | "0" | "no" | "off" => Ok(vec![
                ("policy.dry_run".to_owned(), Scalar::Boolean(true)),
                ("sampling.report_every".to_owned(), Scalar::Text("never".to_owned())),
            ]),
            _ => Err("\"true\" or \"false\""),
        },
        _ => {
            let keys = targets(name);
            if keys.is_empty() {
                // No meaning here: an application beside us may have it in its environment.
                return Ok(Vec::new());
            }
            let scalar = if name == "SESSION_RETENTION_DAYS" {
                days(value).ok_or("a number of days from 1 to 36500, such as 7")?
            } else {
                let count = Scalar::Text(value.to_owned());
                Count::read(&count).map_err(|_| Count::ALLOWED)?;
                count
            };
            Ok(keys.into_iter().map(|key| (key, scalar.clone())).collect())
        }
    }
}

fn days(value: &str) -> Option<Scalar> {
    value.parse().ok().filter(|days: &u32| (1..=36_500).contains(days)).map(|days| Scalar::Text(format!("{days}d")))
}

fn percent(value: &str) -> Option<Scalar> {
    value.parse().ok().filter(|percent: &f64| *percent > 0.0 && *percent <= 100.0).map(|percent| Scalar::Text(format!("{percent}%")))
}

fn seconds(value: &str) -> Option<Scalar> {
    let text = Scalar::Text(format!("{value}s"));
    let span = Span::read(&text).ok()?;
    (Span::from_secs(1)..=Span::from_secs(365 * 86_400)).contains(&span).then_some(text)
}

/// The keys that a plain name speaks of, where the file has not said it itself.
fn targets(name: &str, below: &[Layer], above: &[Layer]) -> Vec<String> {
    match name {
        "SESSION_RETENTION_DAYS" => retention_targets(below, above),
        _ => replicas_target(below, above).into_iter().collect(),
    }
}

/// The `keep` of every job that cleans up sessions.
fn retention_targets(below: &[Layer], above: &[Layer]) -> Vec<String> {
    let cleans_up = |name: &String| {
        let kind = join(&join("jobs", name), "kind");
        let said = [above, below].into_iter().find_map(|layers| super::tree::locate(layers, &kind));
        matches!(said, Some((_, Node { value: Tree::Scalar(Scalar::Text(kind)), .. })) if kind == "sessions")
    };
    let keys = names_in(below.iter().chain(above), "jobs").into_iter().filter(cleans_up).map(|name| join(&join("jobs", &name), "keep"));
    keys.filter(|key| super::tree::locate(below, key).is_none()).collect()
}

/// The `replicas` that `GUNICORN_WORKERS` speaks of, if the file has not said how many itself.
fn replicas_target(below: &[Layer], above: &[Layer]) -> Option<String> {
    let names = names_in(below.iter().chain(above), "workers");
    let name = match names.as_slice() {
        [only] => only,
        _ => ["web", "main"].into_iter().find_map(|usual| names.iter().find(|name| *name == usual))?,
    };
    let key = join(&join("workers", name), "replicas");
    super::tree::locate(below, &key).is_none().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_be_read_is_another_exit_code_than_a_bad_one() {
        let denied = unreadable(Path::new("/etc/plimsoll.toml"), &Error::from(ErrorKind::PermissionDenied));
        assert_eq!(denied.exit_code(), 77);
        assert!(denied.to_string().starts_with("/etc/plimsoll.toml: error: could not be read: permission denied"), "{denied}");
        assert_eq!(unreadable(Path::new("x"), &Error::from(ErrorKind::IsADirectory)).exit_code(), 78);
    }

    #[test]
    fn two_underscores_stand_for_the_dot() {
        let names = Names { workers: vec!["vector-db".to_owned(), "Web".to_owned()], jobs: vec!["audio-cleanup".to_owned()] };
        let cases: [(&str, &[&str]); 8] = [
            ("JOBS__AUDIO_CLEANUP__MAX_TOTAL", &["jobs", "audio-cleanup", "max_total"]),
            ("JOBS__X__TABLE__CHILDREN__Messages", &["jobs", "x", "table", "children", "Messages"]),
            ("POLICY__MEMORY__HIGH", &["policy", "memory", "high"]),
            ("HTTP__API_KEY", &["http", "api_key"]),
            ("WORKERS__VECTOR_DB__REPLICAS", &["workers", "vector-db", "replicas"]),
            ("WORKERS__WEB__LONGEST_STOP", &["workers", "Web", "longest_stop"]),
            ("WORKERS__WEB__ENV__LOG_LEVEL", &["workers", "Web", "env", "LOG_LEVEL"]),
            ("WORKERS__NEW__REPLICAS", &["workers", "new", "replicas"]),
        ];
        for (name, keys) in cases {
            assert_eq!(variable_keys(name, &names), keys, "{name}");
        }
    }
}
