//! Globs of file names: what `include` and `exclude` of a job mean.
//!
//! `*` and `?` never stand for a `/`, `**` for whole folders, `[a-z]` and `[!a-z]` for one byte, `{a,b}` for either; `\` takes a
//! character literally. Case counts, and a leading dot is a character like any other.

/// The longest glob in bytes: nobody writes one by hand, and matching takes its length times that of the name.
const LONGEST: usize = 1024;

/// One glob, known to be sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: Box<str>,
    /// It holds a `/`, so it speaks of the path below the folder and not of the name alone.
    is_path: bool,
}

impl Glob {
    /// # Errors
    /// What is wrong with it, as a fragment that follows the glob itself: `is empty`.
    pub fn parse(text: &str) -> Result<Glob, String> {
        // The folder that is searched is where every path begins.
        let plain = text.trim_start_matches('/');
        match plain {
            "" => return Err("is empty; leave it out to mean every file".to_owned()),
            _ if plain.len() > LONGEST => return Err(format!("is longer than {LONGEST} bytes")),
            _ if plain.starts_with('!') => return Err("begins with !; what is to stay belongs to exclude".to_owned()),
            _ if plain.ends_with('/') => return Err("ends with /; name the files in it, as in \"cache/**\"".to_owned()),
            _ if plain.split('/').any(|part| part == "..") => return Err("leads out of the folder with ..".to_owned()),
            _ if plain.contains('\0') => return Err("holds a NUL, which no name has".to_owned()),
            _ => {}
        }
        fast_glob::validate(plain).map_err(|error| format!("is no glob: {error}"))?;
        Ok(Glob { text: plain.into(), is_path: text.contains('/') })
    }

    /// Whether it speaks of this file: by its name, or by its path below the folder that is searched.
    pub fn is_match(&self, name: &[u8], path: &[u8]) -> bool {
        fast_glob::glob_match(self.text.as_bytes(), if self.is_path { path } else { name })
    }
}

/// What is to be taken: whatever `include` names (everything, where it names nothing) and `exclude` does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globs {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
}

impl Globs {
    /// # Errors
    /// The first glob that is wrong, with its key and what is wrong with it.
    pub fn parse(include: &[String], exclude: &[String]) -> Result<Globs, String> {
        let all = |key: &str, texts: &[String]| -> Result<Vec<Glob>, String> {
            texts.iter().map(|text| Glob::parse(text).map_err(|wrong| format!("{key}: {text:?} {wrong}"))).collect()
        };
        Ok(Globs { include: all("include", include)?, exclude: all("exclude", exclude)? })
    }

    pub fn includes(&self, name: &[u8], path: &[u8]) -> bool {
        self.include.is_empty() || self.include.iter().any(|glob| glob.is_match(name, path))
    }

    pub fn excludes(&self, name: &[u8], path: &[u8]) -> bool {
        self.exclude.iter().any(|glob| glob.is_match(name, path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_speak_of_names_or_of_paths() {
        let cases: [(&str, &str, bool); 22] = [
            ("*.mp3", "a.mp3", true),
            ("*.mp3", "deep/er/a.mp3", true),
            ("*.mp3", "a.mp3.json", false),
            ("*.mp3", "a.MP3", false),
            ("*", ".hidden", true),
            ("*.{mp3,wav}", "a.wav", true),
            ("voice-?.ogg", "voice-1.ogg", true),
            ("voice-?.ogg", "voice-12.ogg", false),
            ("[a-c]*", "b", true),
            ("[!a-c]*", "b", false),
            ("cache/*", "cache/a", true),
            ("cache/*", "cache/a/b", false),
            ("cache/**", "cache/a/b", true),
            ("**/tmp/*", "a/b/tmp/c", true),
            ("**/tmp/*", "tmp/c", true),
            ("/a.mp3", "a.mp3", true),
            ("/a.mp3", "b/a.mp3", false),
            (r"\*.mp3", "*.mp3", true),
            (r"\*.mp3", "a.mp3", false),
            ("a,b", "a,b", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("a}", "a}", true),
        ];
        for (glob, path, expected) in cases {
            let name = path.rsplit('/').next().unwrap();
            assert_eq!(Glob::parse(glob).unwrap().is_match(name.as_bytes(), path.as_bytes()), expected, "{glob} {path}");
        }
    }

    #[test]
    fn what_is_no_glob_is_refused_and_never_means_nothing() {
        for (glob, words) in [
            ("", "is empty"),
            ("/", "is empty"),
            ("!*.mp3", "belongs to exclude"),
            ("a/", "cache/**"),
            ("../x", "leads out"),
            ("a/../x", "leads out"),
            ("[a", "unclosed character class"),
            ("{a,b", "unclosed brace"),
            ("a\\", "trailing backslash"),
            ("a\0", "NUL"),
            (&"a".repeat(2000), "longer than 1024"),
        ] {
            let error = Glob::parse(glob).unwrap_err();
            assert!(error.contains(words), "{glob:?}: {error}");
        }
        let error = Globs::parse(&["*.mp3".into()], &["[x".into()]).unwrap_err();
        assert!(error.starts_with("exclude: \"[x\" is no glob"), "{error}");
    }

    #[test]
    fn nothing_included_means_everything() {
        let globs = Globs::parse(&[], &["*.db".into()]).unwrap();
        assert!(globs.includes(b"x", b"x") && globs.excludes(b"x.db", b"a/x.db") && !globs.excludes(b"x", b"x"));
    }

    proptest! {
        #[test]
        fn any_glob_is_refused_or_matched_without_a_panic(
            glob in r"[a\-*?/{},\[\]!^\\.]{0,14}", name in proptest::collection::vec(any::<u8>(), 0..12), path in "[a/.*]{0,12}",
        ) {
            if let Ok(glob) = Glob::parse(&glob) {
                glob.is_match(&name, &name);
                glob.is_match(path.as_bytes(), path.as_bytes());
            }
        }

        #[test]
        fn any_name_matches_itself_once_escaped(name in "[a-z*?{},\\[\\]!\\\\.]{1,12}") {
            // Escapes of letters have a meaning of their own.
            let glob: String = name.chars().flat_map(|c| if c.is_ascii_alphabetic() { vec![c] } else { vec!['\\', c] }).collect();
            prop_assert!(Glob::parse(&glob).unwrap().is_match(name.as_bytes(), name.as_bytes()));
        }
    }
}
