//! Numbers, bars and colour for people.

/// How a screen may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours; off for `NO_COLOR`, `--color never` and where the output is not a terminal.
    pub color: bool,
    /// Columns of the screen; the layout needs 64 and uses 100 at most.
    pub width: usize,
}

impl Style {
    /// What a pipe or a file gets.
    pub const PLAIN: Style = Style { color: false, width: 80 };
    /// Wider than any line.
    pub const UNCUT: usize = 4096;

    /// For a page that is laid out: within these widths, and as a pipe gets it where lines are not cut.
    pub fn page(self, least: usize, most: usize) -> Style {
        let width = if self.width == Style::UNCUT { Style::PLAIN.width } else { self.width };
        Style { width: width.clamp(least, most), ..self }
    }

    /// `text` in a colour, or as it is.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if self.color { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
    Quiet,
    Strong,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        }
    }

    /// The tone of a level (`normal`, `high`, `critical`).
    pub fn of_level(level: &str) -> Tone {
        match level {
            "normal" => Tone::Good,
            "high" => Tone::Warning,
            _ => Tone::Bad,
        }
    }
}

/// Stands for a number that is not known.
pub const UNKNOWN: &str = "–";

/// Bytes with three significant digits: `512 B`, `1.50 KiB`, `350 MiB`.
pub fn size(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // 1023.5 would be rounded up to 1024 of a unit.
    while value >= 1023.5 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    match value {
        _ if unit == "B" => format!("{value:.0} B"),
        value if value >= 99.95 => format!("{value:.0} {unit}"),
        value if value >= 9.995 => format!("{value:.1} {unit}"),
        value => format!("{value:.2} {unit}"),
    }
}

/// Seconds as the two largest units: `0.4s`, `12s`, `3m 20s`, `5h 2m`, `4d 7h`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    // A float beyond the range of u64 becomes its largest value.
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", whole % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// `1 core`, `0.50 cores`.
pub fn cores(cores: f64) -> String {
    if cores.fract() == 0.0 {
        let plural = if cores == 1.0 { "core" } else { "cores" };
        format!("{cores:.0} {plural}")
    } else {
        format!("{cores:.2} cores")
    }
}

/// A ratio as a whole percentage: `84%`.
pub fn percent(ratio: f64) -> String {
    format!("{:.0}%", ratio * 100.0)
}

/// A bar of `width` cells from 0 to 100 %, filled up to `filled`, with `│` in the cell of each line. Over 100 % it is full.
pub fn bar(filled: Option<f64>, lines: &[f64], width: usize) -> String {
    let cell = |ratio: f64| (ratio.clamp(0.0, 1.0) * width as f64).round() as usize;
    // Something in use shows, however little it is.
    let full = filled.map_or(0, |ratio| if ratio > 0.0 { cell(ratio).max(1) } else { 0 });
    let marks: Vec<usize> = lines.iter().map(|line| cell(*line).min(width.saturating_sub(1))).collect();
    let cells = (0..width).map(|index| match (marks.contains(&index), index < full) {
        (true, true) => '┃',
        (true, false) => '│',
        (false, true) => '█',
        (false, false) if filled.is_none() => '?',
        (false, false) => '·',
    });
    cells.collect()
}

/// `text` cut to `width` characters, the last one `…` when something is missing. Control characters, which could move the
/// cursor or change colours, become `·`.
pub fn clip(text: &str, width: usize) -> String {
    let clean = text.chars().map(|character| if character.is_control() { '·' } else { character });
    if text.chars().count() <= width {
        return clean.collect();
    }
    let mut cut: String = clean.take(width.saturating_sub(1)).collect();
    if width > 0 {
        cut.push('…');
    }
    cut
}

/// Lines of at most `width` characters, broken at blanks; from the second on `indent` blanks come first. A longer word is clipped.
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&clip(word, width));
            }
            Some(_) => lines.push(clip(&format!("{:indent$}{word}", ""), width)),
            None => lines.push(clip(word, width)),
        }
    }
    lines
}

/// `text` clipped to `width` and filled up with spaces on the right.
pub fn cell(text: &str, width: usize) -> String {
    let text = clip(text, width);
    format!("{text:<width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0.0, "0 B"),
            (512.0, "512 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.00 KiB"),
            (1536.0, "1.50 KiB"),
            (367_001_600.0, "350 MiB"),
            (1_048_575.0, "1.00 MiB"),
            (1_073_741_824.0, "1.00 GiB"),
            (13_314_398_617.6, "12.4 GiB"),
            (1e18, "888 PiB"),
            (1e21, "888178 PiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn durations_have_two_units() {
        let cases = [
            (-1.0, "0.0s"),
            (0.0, "0.0s"),
            (0.42, "0.4s"),
            (9.96, "10s"),
            (59.6, "1m 0s"),
            (200.0, "3m 20s"),
            (18_120.0, "5h 2m"),
            (370_800.0, "4d 7h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_bar_shows_use_and_line() {
        let cases = [
            ("empty", Some(0.0), "········│·"),
            ("a little", Some(0.001), "█·······│·"),
            ("half", Some(0.5), "█████···│·"),
            ("over the line", Some(0.9), "████████┃·"),
            ("over everything", Some(7.0), "████████┃█"),
            ("unknown", None, "????????│?"),
        ];
        for (name, filled, text) in cases {
            assert_eq!(bar(filled, &[0.8], 10), text, "{name}");
        }
        assert_eq!(bar(Some(0.5), &[1.0], 4), "██·│", "a line at the limit is in the last cell");
        assert_eq!(bar(Some(f64::NAN), &[f64::INFINITY], 0), "");
    }

    #[test]
    fn text_is_cut_by_characters_and_made_harmless() {
        assert_eq!(clip("worker", 6), "worker");
        assert_eq!(clip("wörkers", 6), "wörke…");
        assert_eq!(clip("a\x1b[31mb\n", 20), "a·[31mb·");
        assert_eq!(clip("ab", 0), "");
        assert_eq!(cell("ab", 4), "ab  ");
    }
}
