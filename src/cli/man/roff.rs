//! The little of roff that a manual page needs (the `man` macros), as both groff and mandoc read it.
//!
//! Whatever is handed over is text and comes out as that text: nothing in it is taken for a request or an escape.

/// A page being written.
#[derive(Debug, Default)]
pub struct Roff {
    out: String,
    /// A heading is a paragraph's beginning already.
    below_heading: bool,
}

impl Roff {
    pub fn title(&mut self, name: &str, section: u8, source: &str) {
        self.request("TH", &[&name.to_uppercase(), &section.to_string(), "", source, "Plimsoll"]);
        // Nothing is hyphenated, and lines are not stretched: names are to be copied.
        self.out.push_str(".nh\n.ad l\n");
    }

    /// A macro with its arguments, each of them text.
    fn request(&mut self, name: &str, arguments: &[&str]) {
        self.out.push('.');
        self.out.push_str(name);
        for argument in arguments {
            self.out.push_str(&format!(" \"{}\"", escape(&one_line(argument))));
        }
        self.out.push('\n');
    }

    pub fn heading(&mut self, text: &str) {
        self.request("SH", &[text]);
        self.below_heading = true;
    }

    pub fn subheading(&mut self, text: &str) {
        self.request("SS", &[text]);
        self.below_heading = true;
    }

    /// The line that `whatis` reads.
    pub fn name(&mut self, name: &str, about: &str) {
        self.line(&format!("{} \\- {}", escape(name), escape(&one_line(about))));
    }

    /// A line that is roff already.
    pub fn line(&mut self, roff: &str) {
        self.below_heading = false;
        self.out.push_str(roff);
        self.out.push('\n');
    }

    /// Lines of text, each by itself.
    pub fn lines(&mut self, text: &str) {
        for (at, line) in text.lines().enumerate() {
            if at > 0 {
                self.out.push_str(".br\n");
            }
            self.line(&escape(line.trim()));
        }
    }

    /// Text with code between backticks, filled; of nothing, nothing.
    pub fn paragraph(&mut self, text: &str) {
        if !text.trim().is_empty() {
            self.begin_paragraph();
            self.text(text);
        }
    }

    fn begin_paragraph(&mut self) {
        if !std::mem::take(&mut self.below_heading) {
            self.out.push_str(".PP\n");
        }
    }

    /// The same within what goes before.
    pub fn text(&mut self, text: &str) {
        let text = one_line(text);
        if !text.is_empty() {
            self.line(&prose(&text));
        }
    }

    /// What stands at the margin of what is explained next; its parts are roff already.
    pub fn item(&mut self, parts: &[String]) {
        self.out.push_str(".TP\n");
        self.line(&parts.concat());
    }

    /// Lines that stay as they are.
    pub fn literal(&mut self, text: &str) {
        self.begin_paragraph();
        self.out.push_str(".nf\n");
        for line in text.lines() {
            self.line(&escape(line));
        }
        self.out.push_str(".fi\n");
    }

    /// One block of the Markdown our pages are written in: a paragraph, or a numbered list.
    pub fn markdown(&mut self, block: &str) {
        let block = without_links(block);
        let number = |line: &str| line.split_once(". ").filter(|(number, _)| number.parse::<u32>().is_ok()).is_some();
        let mut item = String::new();
        let mut items = Vec::new();
        for line in block.lines() {
            if number(line) && !item.is_empty() {
                items.push(std::mem::take(&mut item));
            }
            item.push_str(line.trim());
            item.push(' ');
        }
        items.push(item);
        for item in &items {
            match item.split_once(". ").filter(|_| number(item)) {
                Some((number, text)) => {
                    self.request("IP", &[&format!("{number}."), "4"]);
                    self.text(text);
                }
                None => self.paragraph(item),
            }
        }
    }

    pub fn finish(self) -> String {
        self.out
    }
}

/// `[words](place)` becomes `words`: there is nowhere to go from here.
fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once('[') {
        let link = inside.split_once("](").and_then(|(words, after)| Some((words, after.split_once(')')?.1)));
        out.push_str(before);
        match link.filter(|(words, _)| !words.contains(['[', ']'])) {
            Some((words, after)) => {
                out.push_str(words);
                rest = after;
            }
            None => {
                out.push('[');
                rest = inside;
            }
        }
    }
    out + rest
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

pub fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escape(text))
}

/// Text whose code stands between backticks.
fn prose(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // An odd number of parts: each backtick has its other one.
    if parts.len().is_multiple_of(2) {
        return escape(text);
    }
    let mut out: String = parts
        .iter()
        .enumerate()
        .map(|(at, part)| match (at % 2, at) {
            (1, _) => bold(part),
            // Only the first can stand at the beginning of a line.
            (_, 0) => escape(part),
            _ => characters(part),
        })
        .collect();
    if out.is_empty() {
        out.push_str("\\&");
    }
    out
}

/// One line of text as roff prints it: also at the beginning of a line, and as an argument between double quotes.
pub fn escape(text: &str) -> String {
    let escaped = characters(text);
    // A request is a point or an apostrophe there; the second is written by its name anyway.
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

fn characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\(rs"),
            // As it is typed, and not a hyphen.
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            ' '..='~' => out.push(character),
            // A line, a tab or worse would be something else to roff.
            _ if character.is_control() => out.push(' '),
            // By number, so that it does not matter how the file is taken to be encoded.
            _ => out.push_str(&format!("\\[u{:04X}]", u32::from(character))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What roff prints for a line: the names it knows put back, fonts dropped. `None` where a request, or an escape that was not written
    /// on purpose, would be read.
    fn printed(line: &str) -> Option<String> {
        if line.starts_with(['.', '\'']) {
            return None;
        }
        let mut out = String::new();
        let mut rest = line;
        while let Some((before, escape)) = rest.split_once('\\') {
            out.push_str(before);
            let named = [
                ("(rs", "\\"),
                ("-", "-"),
                ("(aq", "'"),
                ("(dq", "\""),
                ("(ga", "`"),
                ("(ha", "^"),
                ("(ti", "~"),
                ("&", ""),
                ("fB", ""),
                ("fI", ""),
                ("fR", ""),
            ];
            if let Some((name, character)) = named.iter().find(|(name, _)| escape.starts_with(name)) {
                out.push_str(character);
                rest = &escape[name.len()..];
            } else {
                let (number, after) = escape.strip_prefix("[u")?.split_once(']')?;
                out.push(char::from_u32(u32::from_str_radix(number, 16).ok()?)?);
                rest = after;
            }
        }
        Some(out + rest)
    }

    #[test]
    fn what_could_be_taken_for_roff_is_text() {
        assert_eq!(escape(".SH \"x\""), "\\&.SH \\(dqx\\(dq");
        assert_eq!(escape("'so /etc/passwd"), "\\(aqso /etc/passwd");
        assert_eq!(escape("a\\fBb"), "a\\(rsfBb");
        assert_eq!(escape("--wait 5s"), "\\-\\-wait 5s");
        assert_eq!(escape("80 % – zu viel"), "80 % \\[u2013] zu viel");
        assert_eq!(prose("see `-c` there"), "see \\fB\\-c\\fR there");
        assert_eq!(prose("`.hidden`."), "\\fB\\&.hidden\\fR.");
        assert_eq!(prose("one ` alone"), "one \\(ga alone");
        assert_eq!(printed(".SH x"), None);
        assert_eq!(printed("a\\(xx"), None);
    }

    #[test]
    fn links_become_their_words() {
        assert_eq!(without_links("see [the file](../a.toml), [x] and [y](z"), "see the file, [x] and [y](z");
    }

    #[test]
    fn a_numbered_list_is_one_on_the_page() {
        let mut roff = Roff::default();
        roff.markdown("1. the first,\n   on two lines;\n2. the second");
        assert_eq!(roff.finish(), ".IP \"1.\" \"4\"\nthe first, on two lines;\n.IP \"2.\" \"4\"\nthe second\n");
    }

    proptest! {
        /// Whatever the text: one line of plain ASCII that is printed as that text.
        #[test]
        fn text_is_printed_as_it_is(text in "\\PC{0,40}|[.'\\\\\"`^~ a-z-]{0,40}") {
            let escaped = escape(&text);
            prop_assert!(escaped.is_ascii() && !escaped.contains(['\n', '"']), "{escaped}");
            prop_assert_eq!(printed(&escaped), Some(text.clone()));
            let filled = prose(&text);
            let plain = if text.matches('`').count() % 2 == 0 { text.replace('`', "") } else { text };
            prop_assert_eq!(printed(&filled), Some(plain));
        }

        #[test]
        fn control_characters_leave_one_line(text in "[\\x00-\\x1f.'a-z\u{7f}-\u{9f}]{0,30}") {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(|character: char| character.is_control()) && printed(&escaped).is_some(), "{escaped}");
        }
    }
}
