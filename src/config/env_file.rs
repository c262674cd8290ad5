//! Files of variables: `NAME=VALUE` lines, as systemd's `EnvironmentFile=` and `docker --env-file` know them.
//!
//! Blank lines and lines that begin with `#` or `;` say nothing; `export ` before a name is passed over. A value in single or
//! double quotes is what stands between them, in double quotes with `\\`, `\"`, `\n` and `\t`; else it goes to the end of the line,
//! blanks at both ends left out. Nothing is expanded.

/// Name and value of each line, in the order of the file.
///
/// # Errors
/// What does not fit, with its line. Never a value: these are often secrets.
pub fn parse(text: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8".to_owned())?;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let fault = |why: &str| format!("line {}: {why}", index + 1);
        let (name, value) = line.split_once('=').ok_or_else(|| fault("has no ="))?;
        let name = name.trim_end();
        let is_name = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(fault("does not begin with a name of letters, digits and _"));
        }
        let value = unquote(value.trim()).ok_or_else(|| fault("has a quote that is not closed, or something after it"))?;
        if value.contains('\0') {
            return Err(fault("holds a NUL byte"));
        }
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

fn unquote(value: &str) -> Option<String> {
    if let Some(rest) = value.strip_prefix('\'') {
        return rest.strip_suffix('\'').filter(|inner| !inner.contains('\'')).map(str::to_owned);
    }
    let Some(rest) = value.strip_prefix('"') else { return Some(value.to_owned()) };
    let mut inner = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next()? {
            '"' => return letters.next().is_none().then_some(inner),
            '\\' => match letters.next()? {
                'n' => inner.push('\n'),
                't' => inner.push('\t'),
                other @ ('"' | '\\' | '$' | '`') => inner.push(other),
                other => inner.extend(['\\', other]),
            },
            other => inner.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_people_write_them() {
        let text = "# a comment\n\nA=1\nexport B = two words \nC=\"a \\\"b\\\" \\n\"\nD='$x # y'\nE=\n; no\nF=a=b\r\n";
        let expected = [("A", "1"), ("B", "two words"), ("C", "a \"b\" \n"), ("D", "$x # y"), ("E", ""), ("F", "a=b")];
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_line_and_without_its_value() {
        for (text, line) in [("A=1\nsecret", "line 2: has no ="), ("1A=secret", "line 1: does not"), ("A=\"secret", "line 1: has a quote")]
        {
            let told = parse(text.as_bytes()).unwrap_err();
            assert!(told.starts_with(line) && !told.contains("secret"), "{told}");
        }
        assert!(parse(b"A=\xff").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }

        #[test]
        fn a_value_in_single_quotes_is_kept_as_it_is(value in "[^'\r\n\0]*") {
            prop_assert_eq!(parse(format!("A='{value}'").as_bytes()).unwrap(), [("A".to_owned(), value)]);
        }
    }
}
