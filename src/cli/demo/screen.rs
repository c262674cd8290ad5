//! Where the demo shows what it sees: a chart that is drawn again in place on a terminal, plain lines anywhere else.

use std::io::{self, IsTerminal, Write};

use super::chart::{Chart, MARGIN};
use super::tally::{Part, Pick, Sample, Use};
use crate::cli::render::{Style, Tone, cell, clip};
use crate::response::words;

/// Lines of the screen that are not chart rows: head, two headings, axis, gaps, actions, and one for the cursor.
const AROUND: usize = 12;
/// The last actions that are shown.
const DEEDS: usize = 5;
/// Rows of one chart, where there is room and where there is less: in both, 80 % falls between two rows.
const ROWS: [usize; 2] = [6, 3];

/// How things are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A terminal that can move its cursor.
    Chart,
    /// Lines on standard output.
    Plain,
    /// Lines on standard error: standard output is for the result.
    Progress,
}

/// Everything a frame shows.
#[derive(Debug)]
pub struct Scene<'a> {
    pub samples: &'a [Sample],
    pub deeds: &'a [(Tone, String)],
    /// Seconds since the demo began, and how many it takes in all.
    pub now: f64,
    pub total: f64,
    pub part: Part,
    pub mark: Option<f64>,
    pub url: Option<&'a str>,
    /// Who is held to how many cores.
    pub held: &'a [(String, f64)],
}

impl Scene<'_> {
    /// The whole screen: `rows` per chart, no line wider than the style says.
    pub fn draw(&self, rows: usize, style: Style) -> Vec<String> {
        let now = match self.part {
            Part::Without => style.paint(Tone::Warning, "measuring only: nobody steps in"),
            Part::With => style.paint(Tone::Good, "Plimsoll holds the line"),
        };
        let clock = format!("{:3.0} of {:.0} s   ", self.now.min(self.total), self.total);
        let mut lines = vec![format!("{}{clock}{now}", style.paint(Tone::Strong, "plimsoll demo   "))];
        if let Some(url) = self.url {
            lines.push(style.paint(Tone::Quiet, &clip(&format!("live in a browser on this machine: {url}"), style.width)));
        }
        let held: Vec<String> = self.held.iter().map(|(name, cores)| format!("{name} {cores:.2}")).collect();
        let held = if held.is_empty() { String::new() } else { format!("held to {} cores", held.join(", ")) };
        let resources: [(&str, Pick, String); 2] = [("CPU", |sample| sample.cpu, held), ("memory", |sample| sample.memory, String::new())];
        let span = (self.total + 1.0).max(1.0);
        let mut axis = String::new();
        for (name, pick, note) in resources {
            let last = self.samples.iter().rev().find_map(pick);
            lines.push(heading(name, last, &note, style));
            let points: Vec<(f64, f64)> = self.samples.iter().filter_map(|sample| Some((sample.at, pick(sample)?.share))).collect();
            let line = last.map_or(0.8, |seen| seen.line);
            let chart = Chart { points: &points, line, from: (self.now - span).max(0.0), span, mark: self.mark };
            lines.extend(chart.draw(rows, style));
            axis = chart.axis(style);
        }
        lines.push(axis);
        let skipped = self.deeds.len().saturating_sub(DEEDS);
        let shown = self.deeds.iter().skip(skipped).map(|(tone, text)| style.paint(*tone, &clip(text, style.width)));
        lines.extend(shown.chain(std::iter::repeat(String::new())).take(DEEDS));
        lines
    }

    /// The same in one line.
    fn line(&self, style: Style) -> String {
        let last = self.samples.last();
        let of = |name: &str, seen: Option<Use>| match seen {
            Some(seen) => {
                let over = if seen.is_over() { style.paint(Tone::Bad, "over") } else { style.paint(Tone::Good, "ok  ") };
                format!("{name} {} {:4.0}% {over}", cell(&amount(name, seen), 21), seen.share * 100.0)
            }
            None => cell(&format!("{name} not read yet"), 34),
        };
        let cpu = of("CPU", last.and_then(|sample| sample.cpu));
        let memory = of("memory", last.and_then(|sample| sample.memory));
        format!("{:5.1}s  {:16}  {cpu}  {memory}", self.now, self.part.word())
    }
}

fn heading(name: &str, seen: Option<Use>, note: &str, style: Style) -> String {
    let Some(seen) = seen else { return style.paint(Tone::Strong, name) };
    let tone = if seen.is_over() { Tone::Bad } else { Tone::Good };
    let share = format!("{:.0}%", seen.share * 100.0);
    let figures = format!("{name:MARGIN$} {}", amount(name, seen));
    let left = style.width.saturating_sub(36);
    format!("{} {} {}", style.paint(Tone::Strong, &cell(&figures, 28)), style.paint(tone, &cell(&share, 5)), clip(note, left).trim_end())
}

fn amount(name: &str, seen: Use) -> String {
    match name {
        "CPU" => format!("{:.2} of {}", seen.used, words::cores(seen.limit)),
        _ => format!("{} of {}", words::bytes(seen.used), words::bytes(seen.limit)),
    }
}

/// The output while the demo runs. The cursor is shown again when this goes.
#[derive(Debug)]
pub struct Screen {
    mode: Mode,
    style: Style,
    /// Lines of the last frame, above the cursor.
    drawn: usize,
    width: usize,
    /// Events told and the last second told, in plain mode.
    told: usize,
    second: Option<u64>,
}

impl Screen {
    /// `style` is that of standard output; `plain` where a terminal cannot move its cursor (`TERM=dumb`), `json` where
    /// standard output is for the result.
    pub fn open(style: Style, plain: bool, json: bool) -> Screen {
        let mode = match (json, plain) {
            (true, _) => Mode::Progress,
            (false, false) if io::stdout().is_terminal() && Screen::rows().is_some() => Mode::Chart,
            _ => Mode::Plain,
        };
        let style = if mode == Mode::Progress { Style::PLAIN } else { style };
        Screen { mode, style, drawn: 0, width: 0, told: 0, second: None }
    }

    pub fn style(&self) -> Style {
        self.style
    }

    /// Rows of a chart that fit; `None` where not even the smallest does.
    fn rows() -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        // A terminal that does not say its size is taken for the usual one.
        let height = if size.ws_row == 0 { 24 } else { usize::from(size.ws_row) };
        ROWS.into_iter().find(|rows| 2 * rows + AROUND <= height)
    }

    /// Shows the moment.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn show(&mut self, scene: &Scene) -> io::Result<()> {
        match self.mode {
            Mode::Chart => self.frame(scene),
            Mode::Plain | Mode::Progress => self.lines(scene),
        }
    }

    fn frame(&mut self, scene: &Scene) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok().map_or(0, |size| usize::from(size.ws_col));
        let columns = if size == 0 { Style::PLAIN.width } else { size };
        // One column is left free: a full line would make some terminals wrap.
        let style = Style { width: columns.saturating_sub(1).clamp(40, 160), ..self.style };
        let lines = scene.draw(Screen::rows().unwrap_or(ROWS[1]), style);
        let mut text = String::new();
        match self.drawn {
            0 => text.push_str("\x1b[?25l"),
            // Another size: what was drawn has been wrapped or cut, and is drawn anew on an empty screen.
            _ if self.width != columns || self.drawn != lines.len() => text.push_str("\x1b[2J\x1b[H"),
            drawn => text.push_str(&format!("\x1b[{drawn}A\r")),
        }
        for line in &lines {
            text.push_str(line);
            text.push_str("\x1b[K\r\n");
        }
        (self.drawn, self.width) = (lines.len(), columns);
        write(Mode::Chart, &text)
    }

    fn lines(&mut self, scene: &Scene) -> io::Result<()> {
        let mut text = String::new();
        for (tone, deed) in scene.deeds.iter().skip(self.told) {
            text.push_str(&format!("{}\n", self.style.paint(*tone, deed)));
        }
        self.told = scene.deeds.len();
        let second = scene.now.max(0.0) as u64;
        if self.second.replace(second) != Some(second) {
            text.push_str(&format!("{}\n", scene.line(self.style)));
        }
        write(self.mode, &text)
    }

    /// Says one thing above or between what is shown.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        write(self.mode, &format!("{text}\n"))
    }
}

fn write(mode: Mode, text: &str) -> io::Result<()> {
    if mode == Mode::Progress {
        return io::stderr().write_all(text.as_bytes());
    }
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.mode == Mode::Chart && self.drawn > 0 {
            let _ = write(Mode::Chart, "\x1b[?25h");
        }
    }
}
