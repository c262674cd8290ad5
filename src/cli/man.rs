//! `plimsoll man`: manual pages, made from the definitions that `--help` and docs/configuration.md are made from.

pub mod roff;

use std::path::Path;

use clap::{Arg, Command as Definition, CommandFactory};

use super::arguments::Arguments;
use super::{FAILED, USAGE};
use crate::config::{self, ALIASES, Key, Section};
use roff::Roff;

/// One manual page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Without the section: `plimsoll-run`.
    pub name: String,
    /// 8, commands of an administrator; 5, files.
    pub section: u8,
    pub text: String,
}

impl Page {
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }
}

/// Prints one page, or writes all of them into a folder; the exit code.
pub fn man(page: Option<&str>, out: Option<&Path>) -> u8 {
    let pages = pages();
    if let Some(folder) = out {
        return match write(&pages, folder) {
            Ok(()) => 0,
            Err(why) => {
                super::complain(&why);
                FAILED
            }
        };
    }
    let wanted = page.unwrap_or("plimsoll");
    match pages.iter().find(|page| page.name == wanted || page.name.strip_prefix("plimsoll-") == Some(wanted)) {
        Some(page) => super::print_line(page.text.trim_end()),
        None => {
            let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
            super::complain(&format!("there is no manual page {wanted}; there are {}", names.join(", ")));
            USAGE
        }
    }
}

fn write(pages: &[Page], folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for page in pages {
        let path = folder.join(page.file_name());
        std::fs::write(&path, &page.text).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// Every page: the program's, one for each command, the settings file's.
pub fn pages() -> Vec<Page> {
    let mut program = Arguments::command();
    // Until then a command does not know its full name, nor what holds for all of them.
    program.build();
    let commands: Vec<&Definition> = subcommands(&program).collect();
    let mut pages = vec![program_page(&program, &commands)];
    pages.extend(commands.iter().map(|command| command_page(command)));
    pages.push(settings_page());
    pages
}

/// Those people may type; `help` is clap's own.
fn subcommands(command: &Definition) -> impl Iterator<Item = &Definition> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn page_name(command: &Definition) -> String {
    format!("plimsoll-{}", command.get_name())
}

fn about(command: &Definition) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn begin(name: &str, section: u8, about: &str) -> Roff {
    let mut roff = Roff::default();
    // No date: the same program makes the same page on every day.
    roff.title(name, section, concat!("plimsoll ", env!("CARGO_PKG_VERSION")));
    roff.heading("NAME");
    roff.name(name, about.trim_end_matches('.'));
    roff
}

fn program_page(program: &Definition, commands: &[&Definition]) -> Page {
    let mut roff = begin("plimsoll", 8, &about(program));
    synopsis(&mut roff, program);
    roff.heading("DESCRIPTION");
    let long = program.get_long_about().map(ToString::to_string).unwrap_or_default();
    // The first line is the name's already.
    for paragraph in long.split("\n\n").skip(1) {
        roff.paragraph(paragraph);
    }
    roff.paragraph("What can be set is described in plimsoll.toml(5).");
    roff.heading("COMMANDS");
    for command in commands {
        roff.item(&[roff::bold(&format!("{}(8)", page_name(command)))]);
        roff.text(&sentence(&about(command)));
    }
    options(&mut roff, program.get_arguments(), "OPTIONS");
    after(&mut roff, program);
    roff.heading("FILES");
    for (file, meaning) in FILES {
        roff.item(&[roff::italic(file)]);
        roff.text(meaning);
    }
    roff.heading("SEE ALSO");
    let names = commands.iter().map(|command| roff::bold(&page_name(command)) + "(8)");
    roff.line(&names.chain([roff::bold("plimsoll.toml") + "(5)"]).collect::<Vec<_>>().join(", "));
    Page { name: "plimsoll".to_owned(), section: 8, text: roff.finish() }
}

const FILES: [(&str, &str); 4] = [
    ("/etc/plimsoll/plimsoll.toml", "The settings, unless ./plimsoll.toml is there or another file is named."),
    ("/var/lib/plimsoll", "The state: what happened and how jobs have run. Nothing depends on it."),
    ("/run/plimsoll", "The control socket, and what is still to be undone."),
    ("/usr/share/doc/plimsoll", "More to read, and files to begin from."),
];

fn command_page(command: &Definition) -> Page {
    let name = page_name(command);
    let mut roff = begin(&name, 8, &about(command));
    synopsis(&mut roff, command);
    roff.heading("DESCRIPTION");
    roff.paragraph(&sentence(&about(command)));
    if subcommands(command).next().is_some() {
        roff.heading("COMMANDS");
        for inner in subcommands(command) {
            roff.subheading(&usage(inner));
            roff.paragraph(&sentence(&about(inner)));
            // Those that hold for all commands stand below once.
            arguments(&mut roff, inner.get_arguments().filter(|argument| !is_common(argument)));
            for paragraph in inner.get_after_help().map(ToString::to_string).unwrap_or_default().split("\n\n") {
                roff.paragraph(paragraph);
            }
        }
    }
    options(&mut roff, command.get_arguments().filter(|argument| !is_common(argument)), "OPTIONS");
    options(&mut roff, command.get_arguments().filter(|argument| is_common(argument)), "OPTIONS OF ALL COMMANDS");
    after(&mut roff, command);
    roff.heading("SEE ALSO");
    roff.line(&format!("{}(8), {}(5)", roff::bold("plimsoll"), roff::bold("plimsoll.toml")));
    Page { name, section: 8, text: roff.finish() }
}

fn is_common(argument: &Arg) -> bool {
    argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version")
}

fn usage(command: &Definition) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage:").trim().to_owned()
}

fn synopsis(roff: &mut Roff, command: &Definition) {
    roff.heading("SYNOPSIS");
    roff.lines(&usage(command));
}

fn options<'a>(roff: &mut Roff, list: impl Iterator<Item = &'a Arg>, heading: &str) {
    let mut list = list.filter(|argument| !argument.is_hide_set()).peekable();
    if list.peek().is_some() {
        roff.heading(heading);
        arguments(roff, list);
    }
}

fn arguments<'a>(roff: &mut Roff, list: impl Iterator<Item = &'a Arg>) {
    for argument in list.filter(|argument| !argument.is_hide_set()) {
        roff.item(&[term(argument)]);
        let mut said = sentence(&argument.get_help().map(ToString::to_string).unwrap_or_default());
        let values = if argument.get_action().takes_values() { argument.get_possible_values() } else { Vec::new() };
        if !values.is_empty() {
            let names: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            said.push_str(&format!(" One of {}.", names.join(", ")));
        }
        if let [default] = argument.get_default_values()
            && argument.get_action().takes_values()
        {
            said.push_str(&format!(" `{}` unless given.", default.to_string_lossy()));
        }
        if let Some(variable) = argument.get_env() {
            said.push_str(&format!(" In the environment: `{}`.", variable.to_string_lossy()));
        }
        roff.text(said.trim());
    }
}

/// `-c, --config FILE`, in the usual fonts.
fn term(argument: &Arg) -> String {
    let mut names = Vec::new();
    names.extend(argument.get_short().map(|short| roff::bold(&format!("-{short}"))));
    names.extend(argument.get_long().map(|long| roff::bold(&format!("--{long}"))));
    let mut term = names.join(", ");
    if argument.get_action().takes_values() {
        let values = argument.get_value_names().unwrap_or_default();
        let values: Vec<String> = values.iter().map(|value| roff::italic(value)).collect();
        if !term.is_empty() {
            term.push(' ');
        }
        term.push_str(&values.join(" "));
    }
    term
}

/// As a sentence of its own; help texts have no full stop at their end.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

/// What --help prints at its end. Its lines are broken for a terminal, so they are filled anew; what is indented stays as it is.
fn after(roff: &mut Roff, command: &Definition) {
    let Some(text) = command.get_after_help().map(ToString::to_string) else { return };
    let mut in_notes = false;
    for paragraph in text.split("\n\n") {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        if let Some(heading) = first.strip_suffix(':').filter(|_| rest.starts_with(' ')) {
            roff.heading(&heading.to_uppercase());
            roff.literal(rest);
        } else if let Some(codes) = paragraph.strip_prefix("Exit codes:") {
            roff.heading("EXIT STATUS");
            roff.paragraph(codes);
        } else {
            if !in_notes {
                roff.heading("NOTES");
                in_notes = true;
            }
            roff.paragraph(paragraph);
        }
    }
}

fn settings_page() -> Page {
    let mut roff = begin("plimsoll.toml", 5, "settings of plimsoll(8)");
    roff.heading("DESCRIPTION");
    // The title and the note to whoever works on it are not for here.
    for block in config::HEAD.split("\n\n").filter(|block| !block.starts_with("# ") && !block.starts_with("<!--")) {
        roff.markdown(block);
    }
    roff.heading("KEYS");
    for Section { title, description, keys } in config::sections() {
        roff.subheading(&title);
        roff.paragraph(&description);
        for key in &keys {
            setting(&mut roff, key);
        }
    }
    roff.heading("ENVIRONMENT");
    roff.paragraph("Besides `PLIMSOLL_SECTION__KEY` for every key:");
    for (name, meaning) in ALIASES {
        roff.item(&[roff::bold(name)]);
        roff.text(meaning);
    }
    roff.heading("FILES");
    roff.item(&[roff::italic("/etc/plimsoll/plimsoll.toml")]);
    roff.text("Read where no other is named and ./plimsoll.toml is not there.");
    roff.heading("SEE ALSO");
    roff.line(&format!("{}(8), {}(8), {}(8)", roff::bold("plimsoll"), roff::bold("plimsoll-check"), roff::bold("plimsoll-config")));
    Page { name: "plimsoll.toml".to_owned(), section: 5, text: roff.finish() }
}

fn setting(roff: &mut Roff, key: &Key) {
    let mut term = roff::bold(&key.name);
    if let Some(default) = &key.default {
        term.push_str(&format!(" = {}", roff::escape(default)));
    }
    roff.item(&[term]);
    roff.text(&format!("{} Allowed: {}.", key.description, key.allowed.trim_end_matches('.')));
}
