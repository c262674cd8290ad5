//! The manual pages say what `--help` says, and what docs/configuration.md says.

use clap::{Command, CommandFactory};
use plimsoll::cli::arguments::Arguments;
use plimsoll::cli::man::{Page, pages};
use plimsoll::config;

fn page<'a>(pages: &'a [Page], name: &str) -> &'a Page {
    pages.iter().find(|page| page.name == name).unwrap_or_else(|| panic!("no page {name}"))
}

/// Without the fonts and escapes of roff, so that it can be searched.
fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for (roff, character) in [("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\-", "-"), ("\\&", ""), ("\\(aq", "'"), ("\\(dq", "\"")] {
        text = text.replace(roff, character);
    }
    text
}

/// Each option of `command` and of what is below it, with its own paragraph.
fn expect_options(text: &str, command: &Command, page: &str) -> usize {
    let mut seen = 0;
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let names = argument.get_long().map(|long| format!("--{long}"));
        let names = names.into_iter().chain(argument.get_short().map(|short| format!("-{short}")));
        let values = argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string);
        let takes = argument.get_action().takes_values();
        for word in names.chain(values.filter(|_| takes)) {
            let is_there = text
                .lines()
                .zip(text.lines().skip(1))
                .any(|(before, line)| before == ".TP" && line.split([' ', ',']).any(|part| part == word));
            assert!(is_there, "{page} has no paragraph for {word}");
            seen += 1;
        }
    }
    let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
    seen + inner.map(|inner| expect_options(text, inner, page)).sum::<usize>()
}

#[test]
fn each_command_has_a_page_that_names_each_option() {
    let pages = pages();
    let mut program = Arguments::command();
    program.build();
    let mut seen = 0;
    for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("plimsoll-{}", command.get_name());
        let text = plain(&page(&pages, &name).text);
        seen += expect_options(&text, command, &name);
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(&format!("{name} - {}", about.replace('`', ""))) || about.contains('`'), "{name} does not say: {about}");
        let main = plain(&page(&pages, "plimsoll").text);
        assert!(main.contains(&format!("{name}(8)")), "plimsoll(8) does not name {name}");
    }
    assert!(seen > 150, "only {seen} options and arguments were looked for");
    assert_eq!(pages.len(), program.get_subcommands().filter(|command| command.get_name() != "help").count() + 2);
}

#[test]
fn the_page_of_the_file_has_every_key() {
    let pages = pages();
    let text = plain(&page(&pages, "plimsoll.toml").text);
    let mut seen = 0;
    // Each is looked for after the one before: a title may stand in another section's text.
    let mut rest = text.as_str();
    for section in config::sections() {
        let heading = format!(".SS \"{}\"\n", section.title);
        let from = rest.find(&heading).unwrap_or_else(|| panic!("no section {}", section.title));
        rest = &rest[from + heading.len()..];
        let part = &rest[..rest.find("\n.SS ").unwrap_or(rest.len())];
        for key in &section.keys {
            let is_there = part.lines().any(|line| line == key.name || line.starts_with(&format!("{} = ", key.name)));
            assert!(is_there, "{} has no key {}", section.title, key.name);
            seen += 1;
        }
    }
    assert!(seen >= config::keys().len(), "{seen} of {} keys", config::keys().len());
}

#[test]
fn pages_are_roff_and_ascii() {
    const REQUESTS: [&str; 10] = ["TH", "SH", "SS", "TP", "IP", "PP", "br", "nf", "fi", "nh"];
    for page in pages() {
        let name = page.file_name();
        assert!(page.text.is_ascii() && page.text.starts_with(".TH "), "{name}");
        for line in page.text.lines() {
            assert!(!line.is_empty() && !line.starts_with('\''), "{name}: {line:?}");
            if let Some(request) = line.strip_prefix('.') {
                let word = request.split(' ').next().unwrap_or_default();
                assert!(REQUESTS.contains(&word) || request == "ad l", "{name}: {line}");
            }
        }
    }
}
