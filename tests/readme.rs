//! What the README and the pages under `docs/` print is true: TOML loads, commands exist, links lead somewhere.

use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use plimsoll::cli::arguments::Arguments;
use plimsoll::config::{self, Sources};
use plimsoll::journal::Event;

/// A page and where it is.
struct Page {
    path: PathBuf,
    text: String,
}

/// A fenced block: the word after its fence, what is in it, and the line it begins on.
struct Block<'a> {
    language: &'a str,
    text: String,
    line: usize,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README.md, CONTRIBUTING.md and every page under `docs/`.
fn pages() -> Vec<Page> {
    let mut paths = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    let read = |path: PathBuf| Page { text: std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())), path };
    paths.into_iter().map(read).collect()
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some(Block { language, text: String::new(), line: at + 1 }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is never closed");
    blocks
}

/// The text outside of fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.extend([line, "\n"]);
        }
    }
    prose
}

/// Splits a command line as a shell does, as far as our pages need it: quotes, and an end at `#`, `|`, `&`, `;`, `>` or `<`.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (Some(_), inside) => word.get_or_insert_default().push(inside),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '#' | '|' | '&' | ';' | '>' | '<') if word.is_none() => break,
            (None, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// What a page calls Plimsoll with, if the line does: `plimsoll …`, `cargo run … -- …`.
fn call(line: &str) -> Option<Vec<String>> {
    let words = words(line.trim());
    let words: Vec<String> = words.into_iter().skip_while(|word| word.starts_with("PLIMSOLL_") && word.contains('=')).collect();
    let first = words.first()?.as_str();
    let is_ours = first == "plimsoll" || first.ends_with("/plimsoll");
    if is_ours {
        return Some(words);
    }
    let after = words.iter().position(|word| word == "--").filter(|_| words.starts_with(&["cargo".to_owned(), "run".to_owned()]))?;
    Some(std::iter::once("plimsoll".to_owned()).chain(words.into_iter().skip(after + 1)).collect())
}

/// Everything in code between backticks, in prose.
fn spans(prose: &str) -> impl Iterator<Item = String> {
    prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn toml_on_the_pages_loads() {
    let mut seen = 0;
    for page in pages() {
        for block in blocks(&page.text).iter().filter(|block| block.language == "toml") {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("plimsoll.toml");
            std::fs::write(&file, &block.text).unwrap();
            for name in block.text.split("\"credential:").skip(1).filter_map(|rest| rest.split('"').next()) {
                std::fs::write(folder.path().join(name), "A_NAME=a-secret\n").unwrap();
            }
            let sources = Sources {
                file: Some(file),
                env: vec![
                    ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                    ("CREDENTIALS_DIRECTORY".to_owned(), folder.path().display().to_string()),
                ],
                working_dir: folder.path().to_path_buf(),
                ..Sources::default()
            };
            let place = format!("{}:{}", page.path.display(), block.line);
            config::load(&sources).unwrap_or_else(|problems| panic!("{place}:\n{problems}"));
            seen += 1;
        }
    }
    assert!(seen >= 1, "no TOML was found");
}

#[test]
fn commands_on_the_pages_exist() {
    let mut seen = 0;
    for page in pages() {
        let blocks = blocks(&page.text);
        let lines = blocks.iter().filter(|block| block.language == "sh").flat_map(|block| block.text.lines().map(str::to_owned));
        let prose = prose(&page.text);
        // `plimsoll` alone is the program's name.
        let calls = lines.chain(spans(&prose)).filter_map(|line| call(&line)).filter(|words| words.len() > 1);
        for words in calls.filter(|words| words.get(1).is_none_or(|word| !["sentinel", "capture"].contains(&word.as_str()))) {
            seen += 1;
            if let Err(error) = Arguments::try_parse_from(&words)
                && !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
            {
                panic!("{}: {}\n{error}", page.path.display(), words.join(" "));
            }
        }
    }
    assert!(seen >= 10, "only {seen} commands were found");
}

#[test]
fn a_command_that_is_not_there_is_found_out() {
    let parse = |line: &str| Arguments::try_parse_from(call(line).unwrap());
    assert!(parse("plimsoll dance").is_err());
    assert!(parse("cargo run --release -- dance").is_err());
    assert!(parse("PLIMSOLL_LOG__LEVEL=debug plimsoll status --json   # one screen").is_ok());
    assert!(parse("plimsoll run -- sh -c 'while :; do :; done'").is_ok());
    assert!(call("cargo test --test readme").is_none());
}

#[test]
fn links_on_the_pages_lead_somewhere() {
    let mut seen = 0;
    let all = pages();
    for page in &all {
        let prose = prose(&page.text);
        for target in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.path.clone() } else { page.path.parent().unwrap_or(Path::new("/")).join(file) };
            assert!(path.exists(), "{}: there is no {target}", page.path.display());
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&path).unwrap();
                let found = text.lines().filter(|line| line.starts_with('#')).any(|heading| anchor_of(heading) == anchor);
                assert!(found, "{}: there is no heading for {target}", page.path.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} links were found");
}

/// The anchor a heading gets where pages are shown.
fn anchor_of(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            other => other.is_alphanumeric().then_some(other),
        })
        .collect()
}

#[test]
fn every_event_is_explained() {
    let page = std::fs::read_to_string(root().join("docs/operating.md")).unwrap();
    for name in Event::NAMES {
        assert!(page.lines().any(|line| line.starts_with(&format!("| `{name}` |"))), "docs/operating.md does not explain {name}");
    }
}

/// The source file that a path such as `policy::rule::lines` leads to, and what is left of the path there. `None` when its first
/// part is no module of ours.
fn source_of(path: &[&str]) -> Option<(PathBuf, Vec<String>)> {
    let mut folder = root().join("src");
    for (at, part) in path.iter().enumerate() {
        let rest = || path.iter().skip(at + 1).map(|part| (*part).to_owned()).collect();
        let (file, inner) = (folder.join(format!("{part}.rs")), folder.join(part));
        let leads_on = path.get(at + 1).is_some_and(|next| inner.join(format!("{next}.rs")).exists() || inner.join(next).is_dir());
        if inner.is_dir() && leads_on {
            folder = inner;
        } else if file.exists() {
            return Some((file, rest()));
        } else if inner.join("mod.rs").exists() {
            return Some((inner.join("mod.rs"), rest()));
        } else if at == 0 {
            return None;
        } else {
            return Some((folder.join("mod.rs"), path.iter().skip(at).map(|part| (*part).to_owned()).collect()));
        }
    }
    None
}

#[test]
fn code_named_on_the_pages_is_there() {
    let mut seen = 0;
    for page in pages() {
        for span in spans(&prose(&page.text)) {
            let parts: Vec<&str> = span.split("::").collect();
            let is_path =
                parts.len() > 1 && parts.iter().all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
            let Some((file, rest)) = is_path.then(|| source_of(&parts)).flatten() else { continue };
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: `{span}`: {e}", page.path.display()));
            for name in rest {
                let is_there = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name);
                assert!(is_there, "{}: `{span}`: {} has no {name}", page.path.display(), file.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 20, "only {seen} names were found");
}
