//! Usage over time, drawn with blocks. Pure: samples in, lines out.

use crate::cli::render::{Style, Tone};

/// The highest share that is drawn; what is more gets an arrow.
const TOP: f64 = 1.2;
/// A value holds for so many seconds when nothing newer is there yet.
const HOLD: f64 = 0.6;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The width of what stands left of the chart.
pub const MARGIN: usize = 6;

/// One resource over time.
#[derive(Clone, Copy, Debug)]
pub struct Chart<'a> {
    /// Seconds and shares of the limit, in the order of time.
    pub points: &'a [(f64, f64)],
    /// The share that should not be passed.
    pub line: f64,
    /// The time at the left edge.
    pub from: f64,
    /// Seconds from edge to edge.
    pub span: f64,
    /// When Plimsoll came in.
    pub mark: Option<f64>,
}

impl Chart<'_> {
    /// `rows` lines of `style.width` columns, the highest first.
    pub fn draw(&self, rows: usize, style: Style) -> Vec<String> {
        let columns = style.width.saturating_sub(MARGIN);
        let shares: Vec<Option<f64>> = (0..columns).map(|column| self.share(column, columns)).collect();
        let mark = self.mark.map(|mark| self.column(mark, columns));
        let height = TOP / rows.max(1) as f64;
        let line = Line::at(self.line, height);
        (0..rows).rev().map(|row| self.row(row, rows, height, line, &shares, mark, style)).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `draw`, where all of these come from")]
    fn row(&self, row: usize, rows: usize, height: f64, line: Line, shares: &[Option<f64>], mark: Option<usize>, style: Style) -> String {
        let bottom = row as f64 * height;
        let label = match row {
            _ if row == line.row => format!("{:>4.0}% ", self.line * 100.0),
            _ if row + 1 == rows => format!("{:>4.0}% ", TOP * 100.0),
            0 => "   0% ".to_owned(),
            _ => " ".repeat(MARGIN),
        };
        let mut cells: Vec<(Tone, char)> = Vec::with_capacity(shares.len());
        for (column, share) in shares.iter().enumerate() {
            let filled = share.map_or(0.0, |share| ((share - bottom) / height).clamp(0.0, 1.0));
            let block = BLOCKS.get((filled * 8.0).round() as usize).copied().unwrap_or(' ');
            let tone = if bottom >= self.line - 1e-9 { Tone::Bad } else { Tone::Good };
            cells.push(match (share, block) {
                (Some(share), _) if *share > TOP && row + 1 == rows => (Tone::Bad, '▲'),
                (_, ' ') if mark == Some(column) => (Tone::Strong, '│'),
                (_, ' ') if row == line.row => (Tone::Warning, line.glyph),
                (_, ' ') => (Tone::Quiet, ' '),
                // Something in use shows, however little it is.
                (_, block) => (tone, block),
            });
        }
        format!("{}{}", style.paint(Tone::Quiet, &label), paint(&cells, style))
    }

    /// The largest value in a column; where nothing newer was read, the last one holds for a while.
    fn share(&self, column: usize, columns: usize) -> Option<f64> {
        let width = self.span / columns.max(1) as f64;
        let (begin, end) = (self.from + column as f64 * width, self.from + (column + 1) as f64 * width);
        let last = self.points.last().map(|(at, _)| *at)?;
        if begin > last {
            return None;
        }
        let within = self.points.iter().filter(|(at, _)| (begin..end).contains(at)).map(|(_, share)| *share);
        let held = || {
            let before = self.points.iter().rfind(|(at, _)| *at < begin)?;
            let after = self.points.iter().find(|(at, _)| *at >= end)?;
            (after.0 - before.0 <= HOLD.max(2.0 * width)).then_some(before.1)
        };
        within.reduce(f64::max).or_else(held)
    }

    fn column(&self, at: f64, columns: usize) -> usize {
        // Left of the chart is no column at all, and neither is right of it.
        let place = (at - self.from) / self.span * columns as f64;
        if place < 0.0 { usize::MAX } else { place as usize }
    }

    /// The line below the chart that names the two parts.
    pub fn axis(&self, style: Style) -> String {
        let columns = style.width.saturating_sub(MARGIN);
        let mut text = String::from("without Plimsoll");
        if let Some(mark) = self.mark.map(|mark| self.column(mark, columns)) {
            let entry = "▲ Plimsoll comes in";
            match mark {
                usize::MAX => text = "with Plimsoll".to_owned(),
                mark if mark > text.len() => text = format!("{text:<mark$}{entry}"),
                _ => text = entry.to_owned(),
            }
        }
        let text: String = text.chars().take(columns).collect();
        format!("{}{}", " ".repeat(MARGIN), style.paint(Tone::Quiet, &text))
    }
}

/// Where the line runs.
#[derive(Clone, Copy, Debug)]
struct Line {
    row: usize,
    glyph: char,
}

impl Line {
    fn at(share: f64, height: f64) -> Line {
        let row = (share / height + 1e-9).floor().max(0.0);
        let glyph = match share / height - row {
            within if within < 1.0 / 3.0 => '▁',
            within if within < 2.0 / 3.0 => '─',
            _ => '▔',
        };
        Line { row: row as usize, glyph }
    }
}

/// Neighbours of one tone are painted in one go.
fn paint(cells: &[(Tone, char)], style: Style) -> String {
    let runs = cells.chunk_by(|(left, _), (right, _)| left == right);
    let painted = runs.filter_map(|run| {
        let (tone, _) = run.first()?;
        let text: String = run.iter().map(|(_, character)| character).collect();
        Some(if text.trim().is_empty() { text } else { style.paint(*tone, &text) })
    });
    painted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style { color: false, width: MARGIN + 8 };

    fn chart(points: &[(f64, f64)]) -> Chart<'_> {
        Chart { points, line: 0.8, from: 0.0, span: 8.0, mark: None }
    }

    #[test]
    fn usage_is_drawn_against_the_line() {
        let points = [(0.5, 0.0), (1.5, 0.2), (2.5, 0.5), (3.5, 0.8), (4.5, 0.9), (5.5, 2.0)];
        let expected = [" 120%      ▲  ", "  80% ▁▁▁▁▄█▁▁", "         ███  ", "        ▄███  ", "        ████  ", "   0%  █████  "];
        assert_eq!(chart(&points).draw(6, STYLE), expected);
    }

    #[test]
    fn what_was_not_read_is_not_drawn_for_long() {
        let dense = [(0.1, 1.0), (0.9, 0.4), (1.2, 0.4), (7.9, 0.4)];
        let rows = chart(&dense).draw(3, STYLE);
        assert_eq!(rows, ["  80% ▄▁▁▁▁▁▁▁", "      █       ", "   0% ██     █"], "the largest of a column, and a gap");
    }

    #[test]
    fn the_moment_plimsoll_comes_in_is_marked() {
        let marked = Chart { mark: Some(6.0), ..chart(&[(0.5, 1.2)]) };
        assert_eq!(marked.draw(3, STYLE)[0], "  80% █▁▁▁▁▁│▁");
        let wide = Style { color: false, width: MARGIN + 60 };
        let axis = Chart { span: 60.0, mark: Some(24.0), ..marked }.axis(wide);
        assert_eq!(axis, "      without Plimsoll        ▲ Plimsoll comes in");
        assert_eq!(Chart { from: 10.0, ..marked }.axis(wide), "      with Plimsoll");
        assert_eq!(Chart { mark: None, ..marked }.axis(STYLE), "      without ");
    }

    #[test]
    fn no_size_is_too_small() {
        let points = [(0.5, f64::NAN), (1.5, f64::INFINITY), (2.5, -1.0)];
        for width in 0..20 {
            for rows in 0..4 {
                let style = Style { color: true, width };
                assert_eq!(Chart { mark: Some(-3.0), ..chart(&points) }.draw(rows, style).len(), rows);
                chart(&points).axis(style);
            }
        }
        assert_eq!(Chart { span: 0.0, mark: Some(1.0), ..chart(&points) }.draw(2, STYLE).len(), 2);
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let points = [(0.5, 0.3), (1.5, 1.0)];
        let coloured = chart(&points).draw(6, Style { color: true, ..STYLE }).concat();
        assert!(coloured.contains("\x1b[31m") && coloured.contains("\x1b[32m"));
        let mut parts = coloured.split('\x1b');
        let first = parts.next().unwrap_or_default().to_owned();
        let plain = parts.fold(first, |text, part| text + part.split_once('m').unwrap().1);
        assert_eq!(plain, chart(&points).draw(6, STYLE).concat());
    }
}
