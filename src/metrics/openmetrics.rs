//! OpenMetrics 1.0 from the families the registry gathered. The library writes only the older text format.
//!
//! What differs: a counter's `TYPE` and `HELP` go without `_total` and an info's without `_info`, units are declared, numbers
//! of buckets are written with a decimal point (`1.0`, as Prometheus 3 keeps them), and the page ends with `# EOF`.
//! `plimsoll_policy_state` stays a gauge: a state set would have to carry its state in a label of its own name.

use std::fmt::Write;

use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::names::{self, Kind};

/// The whole page, `# EOF` included.
pub fn encode(families: &[MetricFamily]) -> String {
    let mut page = String::new();
    for family in families {
        encode_family(family, &mut page);
    }
    page.push_str("# EOF\n");
    page
}

fn encode_family(family: &MetricFamily, page: &mut String) {
    let name = family.name();
    let kind = match family.get_field_type() {
        MetricType::COUNTER => Kind::Counter,
        MetricType::HISTOGRAM => Kind::Histogram,
        _ if names::find(name).is_some_and(|metric| metric.kind == Kind::Info) => Kind::Info,
        _ => Kind::Gauge,
    };
    let base = match kind {
        Kind::Counter => name.strip_suffix("_total").unwrap_or(name),
        Kind::Info => name.strip_suffix("_info").unwrap_or(name),
        Kind::Gauge | Kind::Histogram => name,
    };
    line(page, format_args!("# TYPE {base} {}", kind.word()));
    let unit = names::unit(name);
    if !unit.is_empty() && kind != Kind::Info {
        line(page, format_args!("# UNIT {base} {unit}"));
    }
    line(page, format_args!("# HELP {base} {}", escape(family.help())));
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match kind {
            Kind::Counter => line(page, format_args!("{name}{} {}", Labels(labels, None), metric.get_counter().get_value())),
            Kind::Gauge | Kind::Info => line(page, format_args!("{name}{} {}", Labels(labels, None), metric.get_gauge().get_value())),
            Kind::Histogram => {
                let histogram = metric.get_histogram();
                for bucket in histogram.get_bucket() {
                    // `Debug` of a float always has a point or an exponent.
                    let bound = format!("{:?}", bucket.upper_bound());
                    line(page, format_args!("{name}_bucket{} {}", Labels(labels, Some(&bound)), bucket.cumulative_count()));
                }
                line(page, format_args!("{name}_bucket{} {}", Labels(labels, Some("+Inf")), histogram.get_sample_count()));
                line(page, format_args!("{name}_count{} {}", Labels(labels, None), histogram.get_sample_count()));
                line(page, format_args!("{name}_sum{} {}", Labels(labels, None), histogram.get_sample_sum()));
            }
        }
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = page.write_fmt(text);
    page.push('\n');
}

/// `{name="value",…}` with an optional bucket bound; nothing at all when there is no label.
struct Labels<'a>(&'a [LabelPair], Option<&'a str>);

impl std::fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let own = self.0.iter().map(|pair| (pair.name(), pair.value()));
        let mut open = false;
        for (name, value) in own.chain(self.1.map(|bound| ("le", bound))) {
            f.write_str(if open { "," } else { "{" })?;
            write!(f, "{name}=\"{}\"", escape(value))?;
            open = true;
        }
        if open { f.write_str("}") } else { Ok(()) }
    }
}

/// OpenMetrics escapes the same three characters in help texts and label values.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    escaped
}
