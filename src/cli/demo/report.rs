//! What it came to, for people and for programs.

use serde::Serialize;

use super::stage::Limits;
use super::tally::{Figures, Lines, Summary};
use super::told::Deed;
use crate::cli::render::{Style, Tone, percent};
use crate::response::words;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub limits: Limits,
    pub lines: Lines,
    pub without: Summary,
    pub with: Summary,
    /// What was done, in its order.
    pub actions: Vec<Deed>,
}

/// What the numbers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Less time over the line, on CPU and on memory.
    Held,
    /// One of them only; the sentence names the other.
    HalfHeld(String),
    /// And why.
    NotHeld(String),
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        let (without, with) = (&self.without, &self.with);
        let judge = |name: &str, before: &Figures, after: &Figures| match () {
            () if before.over_seconds <= 0.0 => {
                Some(format!("{name} never got over the line, even without Plimsoll: this machine is too busy with other things"))
            }
            () if !after.improves_on(before) => Some(format!(
                "{name} was over the line {} of the time with Plimsoll, {} without",
                percent(after.over_share),
                percent(before.over_share)
            )),
            () => None,
        };
        match (judge("CPU", &without.cpu, &with.cpu), judge("memory", &without.memory, &with.memory)) {
            _ if self.actions.is_empty() => Verdict::NotHeld("Plimsoll did nothing".to_owned()),
            (None, None) => Verdict::Held,
            (Some(cpu), Some(memory)) => Verdict::NotHeld(format!("{cpu}; {memory}")),
            (Some(why), None) | (None, Some(why)) => Verdict::HalfHeld(why),
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let held = |before: &Figures, after: &Figures| after.improves_on(before);
        if let Some(fields) = value.as_object_mut() {
            let held = serde_json::json!({
                "cpu": held(&self.without.cpu, &self.with.cpu),
                "memory": held(&self.without.memory, &self.with.memory),
            });
            fields.insert("held".to_owned(), held);
        }
        value
    }

    /// The table and what to do next.
    pub fn render(&self, style: Style) -> String {
        let mut lines = vec![style.paint(Tone::Strong, &format!("{:28}{:>20}{:>20}", "", "without Plimsoll", "with Plimsoll"))];
        let seconds = |summary: &Summary| format!("{:.1} s", summary.seconds);
        lines.push(format!("{:28}{:>20}{:>20}", "measured for", seconds(&self.without), seconds(&self.with)));
        let limits = [(self.lines.cpu, words::cores(self.limits.cores)), (self.lines.memory, words::bytes(self.limits.memory as f64))];
        let figures = [("CPU", self.without.cpu, self.with.cpu), ("memory", self.without.memory, self.with.memory)];
        for ((name, without, with), (line, limit)) in figures.into_iter().zip(limits) {
            let over = |figures: Figures| format!("{:.1} s ({})", figures.over_seconds, percent(figures.over_share));
            // Padded before it is painted: codes have no width.
            let tone = |figures: Figures| if figures.over_share > 0.3 { Tone::Bad } else { Tone::Good };
            let cell = |figures: Figures, text: String| style.paint(tone(figures), &format!("{text:>20}"));
            let label = format!("{name:8}over the line of {}", percent(line));
            lines.push(format!("{label:28}{}{}", cell(without, over(without)), cell(with, over(with))));
            let label = format!("{:8}peak, of {limit}", "");
            lines.push(format!("{label:28}{:>20}{:>20}", percent(without.peak), percent(with.peak)));
        }
        lines.push(format!("{:28}{:>20}{:>20}", "actions", "–", self.actions.len()));
        lines.push(String::new());
        lines.push(match self.verdict() {
            Verdict::Held => style.paint(Tone::Good, "Held. The same workers, the same limits; the line is what changed."),
            Verdict::HalfHeld(why) | Verdict::NotHeld(why) => style.paint(Tone::Warning, &format!("Not held: {why}.")),
        });
        lines.push("Next, with your own program:  plimsoll run -- your command".to_owned());
        lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(over_seconds: f64, of: f64, peak: f64) -> Figures {
        Figures { over_seconds, over_share: over_seconds / of, peak }
    }

    fn report() -> Report {
        let deed =
            Deed { id: 1, at_seconds: 14.0, resource: "cpu".into(), action: "throttle".into(), workers: vec![], reason: String::new() };
        Report {
            limits: Limits { cores: 0.5, memory: 200_000_000 },
            lines: Lines { cpu: 0.8, memory: 0.8 },
            without: Summary { seconds: 12.0, cpu: figures(11.4, 12.0, 3.96), memory: figures(6.9, 12.0, 1.22) },
            with: Summary { seconds: 18.0, cpu: figures(2.3, 18.0, 3.97), memory: figures(3.1, 18.0, 0.93) },
            actions: vec![deed; 4],
        }
    }

    #[test]
    fn the_table() {
        let expected = [
            "                                without Plimsoll       with Plimsoll",
            "measured for                              12.0 s              18.0 s",
            "CPU     over the line of 80%        11.4 s (95%)         2.3 s (13%)",
            "        peak, of 0.50 cores                 396%                397%",
            "memory  over the line of 80%         6.9 s (58%)         3.1 s (17%)",
            "        peak, of 200.0 MB                   122%                 93%",
            "actions                                        –                   4",
            "",
            "Held. The same workers, the same limits; the line is what changed.",
            "Next, with your own program:  plimsoll run -- your command",
        ];
        let text = report().render(Style::PLAIN);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_numbers_are_not_flattered() {
        let good = report();
        assert_eq!(good.verdict(), Verdict::Held);
        assert_eq!(good.to_json()["held"], serde_json::json!({"cpu": true, "memory": true}));
        let idle = Report { actions: Vec::new(), ..good.clone() };
        assert!(matches!(idle.verdict(), Verdict::NotHeld(why) if why.contains("did nothing")));
        let worse = Report { with: Summary { cpu: figures(18.0, 18.0, 4.0), ..good.with }, ..good.clone() };
        assert!(
            matches!(worse.verdict(), Verdict::HalfHeld(why) if why == "CPU was over the line 100% of the time with Plimsoll, 95% without")
        );
        let nothing = Summary::default();
        let busy = Report { without: nothing, with: nothing, ..good };
        assert!(
            matches!(busy.verdict(), Verdict::NotHeld(why) if why.contains("CPU never got over") && why.contains("memory never got over"))
        );
    }
}
