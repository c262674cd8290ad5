//! When a file of output is full, and where what was in it goes: `web.log` becomes `web.log.1`, that `web.log.2`, and so on.
//!
//! A file ends at the end of a line, and is as large as it may be at most, but for what is left of a line that was begun in
//! it. What never ends, or is longer than a whole file, is cut once it is [`LONGEST_REST`] too long.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// So much further than its size a file goes for the sake of a line that was begun in it.
pub const LONGEST_REST: u64 = 64 << 10;

/// What is to be done with what waits to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of it go to the file; at least one.
    Write(usize),
    /// The file is full: first another is begun.
    Rotate,
}

/// The next step for a file of `size` that may grow to `max_size`. It ends within a line if `mid_line`. `ahead` is the
/// beginning of what waits, and not empty.
pub fn next_step(size: u64, max_size: u64, mid_line: bool, ahead: &[u8]) -> Step {
    let room = clamped(max_size.saturating_sub(size));
    if ahead.len() <= room {
        return Step::Write(ahead.len());
    }
    let within = |bytes: usize| ahead.get(..bytes).unwrap_or(ahead);
    if let Some(last) = within(room).iter().rposition(|byte| *byte == b'\n') {
        return Step::Write(last + 1);
    }
    if !mid_line && size > 0 {
        return Step::Rotate;
    }
    let rest = clamped(max_size.saturating_add(LONGEST_REST).saturating_sub(size));
    match within(rest).iter().position(|byte| *byte == b'\n') {
        Some(first) => Step::Write(first + 1),
        None if rest == 0 => Step::Rotate,
        None => Step::Write(within(rest).len()),
    }
}

fn clamped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Moves every older file one number on and the file itself to the first, so that its own name is free. The last of `keep`
/// goes. Does no more than is needed: behind a gap everything stays where it is, so that a move that was broken off half way
/// loses nothing when it is done again.
///
/// # Errors
/// A file could not be moved; those before it in the order of their names are where they were.
pub fn shift(path: &Path, keep: u32) -> io::Result<()> {
    let is_free =
        |number: u32| matches!(std::fs::symlink_metadata(older(path, number)), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let first_free = (1..keep).find(|number| is_free(*number)).unwrap_or(keep);
    for number in (1..first_free).rev() {
        std::fs::rename(older(path, number), older(path, number + 1))?;
    }
    std::fs::rename(path, older(path, 1))
}

/// `web.log.3`
pub fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_ends_with_a_line() {
        let cut = clamped(LONGEST_REST);
        let long = vec![b'x'; 3 * cut];
        let cases: [(&str, u64, bool, &[u8], Step); 11] = [
            ("everything fits", 0, false, b"one\ntwo", Step::Write(7)),
            ("it is just full", 93, false, b"one\ntwo", Step::Write(7)),
            ("as many lines as fit", 94, false, b"one\ntwo", Step::Write(4)),
            ("no line fits", 97, false, b"one\ntwo", Step::Rotate),
            ("full, at the end of a line", 100, false, b"one\n", Step::Rotate),
            ("over it, as after max_size was made smaller", 5000, false, b"one\n", Step::Rotate),
            ("the rest of a line that was begun", 98, true, b"one\ntwo", Step::Write(4)),
            ("a rest without an end so far", 98, true, b"one", Step::Write(3)),
            ("a line that goes on and on", 100, true, &long, Step::Write(cut)),
            ("and is cut there", 100 + LONGEST_REST, true, &long, Step::Rotate),
            ("a line longer than a whole file", 0, false, &long, Step::Write(cut + 100)),
        ];
        for (name, size, mid_line, ahead, step) in cases {
            assert_eq!(next_step(size, 100, mid_line, ahead), step, "{name}");
        }
    }

    /// Whatever comes in, in whatever pieces.
    fn stream() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let line = prop_oneof![
            8 => (0_usize..300).prop_map(|length| [vec![b'x'; length], vec![b'\n']].concat()),
            1 => (0_usize..200_000).prop_map(|length| [vec![b'y'; length], vec![b'\n']].concat()),
        ];
        (prop::collection::vec(line, 0..60), prop::collection::vec(1_usize..70_000, 1..40)).prop_map(|(lines, cuts)| {
            let mut rest = lines.concat();
            let mut pieces = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let tail = rest.split_off(rest.len().min(*cut));
                pieces.push(std::mem::replace(&mut rest, tail));
            }
            pieces
        })
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_line_is_cut_that_need_not_be(pieces in stream(), max_size in 1_u64..100_000) {
            let mut files: Vec<Vec<u8>> = vec![Vec::new()];
            for piece in &pieces {
                let mut ahead = piece.as_slice();
                while !ahead.is_empty() {
                    let file = files.last_mut().unwrap();
                    let mid_line = file.last().is_some_and(|byte| *byte != b'\n');
                    match next_step(file.len() as u64, max_size, mid_line, ahead) {
                        Step::Write(bytes) => {
                            prop_assert!(bytes > 0 && bytes <= ahead.len());
                            file.extend_from_slice(&ahead[..bytes]);
                            ahead = &ahead[bytes..];
                        }
                        Step::Rotate => {
                            prop_assert!(!file.is_empty(), "an empty file is never full");
                            files.push(Vec::new());
                        }
                    }
                }
            }
            prop_assert_eq!(files.concat(), pieces.concat());
            for file in &files {
                let whole = file.len() as u64;
                let last_line = file.len() - file[..file.len().saturating_sub(1)].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                prop_assert!(whole <= max_size + LONGEST_REST);
                prop_assert!(whole <= max_size || whole - last_line as u64 <= max_size, "only the last line, begun before, is over it");
            }
            for file in files.iter().take(files.len() - 1) {
                prop_assert!(file.ends_with(b"\n") || file.len() as u64 == max_size + LONGEST_REST, "cut only where it is too long");
            }
        }
    }

    #[test]
    fn older_files_move_on_up_to_a_gap_and_the_last_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.log");
        let begin = |text: &str| std::fs::write(&path, text).unwrap();
        let seen = || -> Vec<Option<String>> { (1..=4).map(|number| std::fs::read_to_string(older(&path, number)).ok()).collect() };
        let texts = |texts: [&str; 4]| texts.map(|text| (!text.is_empty()).then(|| text.to_owned())).to_vec();
        for (text, left) in [("a", ["a", "", "", ""]), ("b", ["b", "a", "", ""]), ("c", ["c", "b", "a", ""]), ("d", ["d", "c", "b", ""])] {
            begin(text);
            shift(&path, 3).unwrap();
            assert!(!path.exists());
            assert_eq!(seen(), texts(left));
        }
        // As when the last move was broken off.
        std::fs::rename(older(&path, 2), older(&path, 4)).unwrap();
        begin("e");
        shift(&path, 3).unwrap();
        assert_eq!(seen(), texts(["e", "d", "b", "c"]));
        std::fs::remove_file(older(&path, 1)).unwrap();
        std::fs::create_dir(older(&path, 1)).unwrap();
        std::fs::write(older(&path, 1).join("x"), "").unwrap();
        begin("f");
        shift(&path, 1).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "f", "what cannot be moved stays");
    }
}
