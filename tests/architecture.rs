//! Holds the shape of the program: who imports whom, where `unsafe` is, and where paths of the kernel are written.
//!
//! Read from the text of `src`, tests inside it left out. Each violation is named with its file and line; an exception
//! that is not needed any more is a violation too.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and the modules it may import, in the order data flows through them: readings → verdict → action →
/// effect, then what the outside sees, then what joins it up.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("config", &[]),
    // Only the plain values of the settings: a signal, three root folders.
    ("host", &["config"]),
    ("sampling", &["config", "host"]),
    ("policy", &["config", "host", "sampling"]),
    ("response", &["config", "host", "sampling", "policy"]),
    ("supervisor", &["config", "host", "sampling"]),
    ("actuators", &["config", "host", "sampling", "policy", "response", "supervisor"]),
    ("snapshot", &["host"]),
    ("jobs", &["config", "host", "snapshot"]),
    ("metrics", &["host", "snapshot"]),
    ("journal", &["config", "host", "snapshot"]),
    ("http", &["config", "host", "snapshot", "metrics", "journal"]),
    (
        "daemon",
        &["config", "host", "sampling", "policy", "response", "supervisor", "actuators", "jobs", "snapshot", "metrics", "journal", "http"],
    ),
    (
        "cli",
        &[
            "config",
            "host",
            "sampling",
            "policy",
            "response",
            "supervisor",
            "actuators",
            "jobs",
            "snapshot",
            "metrics",
            "journal",
            "http",
            "daemon",
        ],
    ),
];

/// (module, what it imports all the same, why)
const IMPORT_EXCEPTIONS: [(&str, &str, &str); 1] =
    [("supervisor", "journal::Event", "what happened to a worker is told as plain data; it is written down by the loop")];

/// (file, why it holds `unsafe` outside `host`)
const UNSAFE_EXCEPTIONS: [(&str, &str); 1] = [("journal/log.rs", "borrows a descriptor that was inherited by number")];

/// (file, why it names a path of the kernel outside `host`)
const PATH_EXCEPTIONS: [(&str, &str); 4] = [
    ("cli/demo/stage.rs", "starts the program itself once more"),
    ("jobs/files/roots.rs", "refuses to search them"),
    ("journal/log.rs", "asks what its own standard error is"),
    ("metrics/names.rs", "says for people where a figure comes from"),
];

/// A line of code: its file below `src`, its number, its text without comments.
#[derive(Debug)]
struct Line {
    file: String,
    number: usize,
    text: String,
}

fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the source").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code that ships. Tests stand at the end of a file, or in a file of their own.
fn code() -> Vec<Line> {
    let mut paths = Vec::new();
    files(&source(), &mut paths);
    paths.sort();
    assert!(paths.len() > 50, "the source was not found");
    let shipped = paths.iter().filter(|path| !path.ends_with("tests.rs"));
    shipped
        .flat_map(|path| {
            lines(&path.strip_prefix(source()).expect("below src").display().to_string(), &fs::read_to_string(path).expect("text"))
        })
        .collect()
}

fn lines(file: &str, text: &str) -> Vec<Line> {
    let all: Vec<&str> = text.lines().collect();
    let tests = all.windows(2).position(|two| two[0].trim() == "#[cfg(test)]" && two[1].starts_with("mod ") && two[1].ends_with('{'));
    let shipped = all.iter().take(tests.unwrap_or(all.len())).enumerate();
    let line = |(index, text): (usize, &&str)| Line { file: file.to_owned(), number: index + 1, text: without_comment(text).to_owned() };
    shipped.map(line).collect()
}

/// Cuts a comment off. `://` is part of an address.
fn without_comment(line: &str) -> &str {
    let begins = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')).map(|(at, _)| at);
    begins.map_or(line, |at| &line[..at])
}

/// What stands in `file` is part of this module.
fn module(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// Every path below `crate::` that a line names, groups taken apart one level deep: `crate::host::{Paths, clock}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` and `pub(crate)` are no imports; a longer word that ends in "crate" is not one either.
        if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let path: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        match rest[path.len()..].strip_prefix('{') {
            Some(group) => found.extend(group.trim_end_matches([';', '}']).split(", ").map(|item| format!("{path}{}", item.trim()))),
            None => found.push(path),
        }
    }
    found
}

fn is_import_allowed(from: &str, path: &str) -> bool {
    let to = path.split("::").next().unwrap_or(path);
    let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, allowed)| allowed);
    to == from
        || allowed.contains(&to)
        || IMPORT_EXCEPTIONS.iter().any(|(module, exception, _)| *module == from && is_below(path, exception))
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// An import that spans lines has its group on the lines below; the first names the module, which is what counts.
fn all_imports(lines: &[Line]) -> Vec<(&Line, String)> {
    lines.iter().flat_map(|line| imports(&line.text).into_iter().map(move |path| (line, path))).collect()
}

#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn imports_run_one_way() {
    let code = code();
    let known = |from: &str| MAY_IMPORT.iter().any(|(name, _)| *name == from);
    let mut violations = Vec::new();
    for line in &code {
        let from = module(&line.file);
        if line.number == 1 && !known(from) && !["lib", "main"].contains(&from) {
            violations.push(format!("src/{}: the module {from} has no place in the table", line.file));
        }
    }
    for (line, path) in all_imports(&code) {
        let from = module(&line.file);
        if known(from) && !is_import_allowed(from, &path) {
            violations.push(format!("src/{}:{}: {from} must not import crate::{path}", line.file, line.number));
        }
    }
    for (from, path, _) in IMPORT_EXCEPTIONS {
        if !all_imports(&code).iter().any(|(line, found)| module(&line.file) == from && is_below(found, path)) {
            violations.push(format!("{from} does not import crate::{path} any more: take the exception away"));
        }
    }
    assert_none(&violations);
}

#[test]
fn the_table_has_no_circle_and_knows_every_module() {
    for (place, (name, allowed)) in MAY_IMPORT.iter().enumerate() {
        for other in *allowed {
            assert!(MAY_IMPORT[..place].iter().any(|(earlier, _)| earlier == other), "{name} imports {other}, which stands below it");
        }
    }
    let lib = fs::read_to_string(source().join("lib.rs")).expect("text");
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let missing: Vec<&str> = declared.filter(|name| !MAY_IMPORT.iter().any(|(known, _)| known == name)).collect();
    assert_eq!(missing, [""; 0], "modules of lib.rs that the table does not know");
}

#[test]
fn unsafe_code_is_below_host() {
    let code = code();
    let is_unsafe = |line: &&Line| ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| line.text.contains(word));
    let outside: Vec<&Line> = code.iter().filter(is_unsafe).filter(|line| module(&line.file) != "host").collect();
    assert_excepted(&outside, &UNSAFE_EXCEPTIONS, "unsafe code belongs below host");
    assert!(code.iter().filter(is_unsafe).count() > outside.len(), "no unsafe code was seen at all");
}

#[test]
fn paths_of_the_kernel_are_named_below_host() {
    let code = code();
    let names_path = |line: &&Line| ["\"/proc\"", "\"/proc/", "\"/sys\"", "\"/sys/"].iter().any(|path| line.text.contains(path));
    let outside: Vec<&Line> = code.iter().filter(names_path).filter(|line| !["host", "config"].contains(&module(&line.file))).collect();
    assert_excepted(&outside, &PATH_EXCEPTIONS, "paths of the kernel are given by host::Paths");
}

#[track_caller]
fn assert_excepted(lines: &[&Line], exceptions: &[(&str, &str)], rule: &str) {
    let is_excepted = |line: &&&Line| exceptions.iter().any(|(file, _)| *file == line.file);
    let mut violations: Vec<String> = lines
        .iter()
        .filter(|line| !is_excepted(line))
        .map(|line| format!("src/{}:{}: {rule}: {}", line.file, line.number, line.text.trim()))
        .collect();
    let unused = exceptions.iter().filter(|(file, _)| !lines.iter().any(|line| line.file == *file));
    violations.extend(unused.map(|(file, _)| format!("src/{file} is excepted without need: {rule}")));
    assert_none(&violations);
}

#[test]
fn the_reader_of_imports_sees_what_is_there() {
    let cases: [(&str, &[&str]); 8] = [
        ("use crate::host::Paths;", &["host::Paths"]),
        ("use crate::host::{Paths, clock};", &["host::Paths", "host::clock"]),
        ("use crate::{config, host::Paths};", &["config", "host::Paths"]),
        ("    let x: crate::supervisor::Replica = crate::policy::f();", &["supervisor::Replica", "policy::f"]),
        ("pub(crate) fn f() {}", &[]),
        ("use my_crate::host;", &[]),
        (without_comment("// use crate::daemon::run;"), &[]),
        (without_comment("let a = \"http://x\"; // crate::daemon"), &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(imports(text), expected, "{text}");
    }
    assert!(!is_import_allowed("policy", "supervisor::Supervisor"));
    assert!(!is_import_allowed("supervisor", "journal::History"));
    assert!(is_import_allowed("supervisor", "journal::Event"));
    let text = "use crate::a;\n#[cfg(test)]\nmod tests {\n use crate::b;\n}";
    assert_eq!(lines("x.rs", text).iter().flat_map(|line| imports(&line.text)).collect::<Vec<_>>(), ["a"]);
}
