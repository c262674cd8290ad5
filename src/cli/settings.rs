//! `check`: every problem of the settings at once.

use crate::config::{self, Sources};
use crate::host::Paths;
use crate::sampling::limit_file::LimitFile;
use crate::supervisor::adopting;

/// Prints what is wrong, as text on standard error or as JSON on standard output, and returns the exit code.
pub fn check(sources: &Sources, json: bool, colour: bool) -> u8 {
    match config::load(sources) {
        Ok(loaded) => {
            let file = loaded.settings.file.as_ref().map(|file| file.display().to_string());
            let mut notes = loaded.unseen;
            // What is not here says nothing of another machine.
            if !sources.elsewhere {
                notes.extend(adopting::missing_now(&Paths::from(&loaded.settings.host), &loaded.settings.workers));
                notes.extend(LimitFile::of(&loaded.settings.policy).into_iter().flatten().filter_map(|mut file| file.look().err()));
            }
            let value = serde_json::json!({"ok": true, "file": file, "problems": [], "notes": notes});
            let text = file.map_or("no settings file found: the built-in defaults hold".to_owned(), |file| format!("{file}: ok"));
            for note in notes.iter().filter(|_| !json) {
                super::complain(&format!("note: {note}"));
            }
            super::print_line(&if json { super::pretty(&value) } else { text })
        }
        Err(problems) => {
            if json {
                let value = serde_json::json!({"ok": false, "problems": problems.list});
                super::print_line(&super::pretty(&value));
            } else {
                eprint!("{}", problems.render(colour));
                let count = problems.list.len();
                super::complain(&format!("{count} problem{}", if count == 1 { "" } else { "s" }));
            }
            problems.exit_code()
        }
    }
}
