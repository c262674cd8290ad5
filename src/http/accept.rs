//! Which form of the metrics page a client wants, by the quality values of its `Accept` header.

use crate::metrics::Form;

/// The form with the highest quality, the first named of equals. Text 0.0.4 when there is no header, nothing in it fits, or
/// anything will do.
pub fn choose(accept: Option<&str>) -> Form {
    let mut best: Option<(Form, u16)> = None;
    for range in accept.unwrap_or_default().split(',') {
        if let Some((form, quality)) = judge(range)
            && quality > best.map_or(0, |(_, quality)| quality)
        {
            best = Some((form, quality));
        }
    }
    best.map_or(Form::Text, |(form, _)| form)
}

/// The form one media range asks for and its quality in thousandths; `None` for what we do not write.
fn judge(range: &str) -> Option<(Form, u16)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let (mut quality, mut version) = (1000, None);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = thousandths(value)?,
            "version" => version = Some(value),
            _ => {}
        }
    }
    let form = match (media.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0")) => Form::OpenMetrics,
        ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Form::Text,
        _ => return None,
    };
    Some((form, quality))
}

fn thousandths(quality: &str) -> Option<u16> {
    let quality: f32 = quality.parse().ok()?;
    // NaN fails the comparison too.
    (0.0..=1.0).contains(&quality).then(|| (quality * 1000.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_the_header() {
        let cases = [
            ("no header", None, Form::Text),
            ("curl", Some("*/*"), Form::Text),
            ("browser", Some("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Text),
            ("openmetrics alone", Some("application/openmetrics-text"), Form::OpenMetrics),
            ("openmetrics 1.0.0", Some("application/openmetrics-text; version=1.0.0; charset=utf-8"), Form::OpenMetrics),
            ("quoted version", Some("application/openmetrics-text; version=\"1.0.0\""), Form::OpenMetrics),
            ("an openmetrics we do not write", Some("application/openmetrics-text;version=0.0.1"), Form::Text),
            (
                "an openmetrics of the future before ours",
                Some("application/openmetrics-text;version=2.0.0,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"),
                Form::OpenMetrics,
            ),
            (
                "prometheus 2.42",
                Some(
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ),
                Form::OpenMetrics,
            ),
            (
                "prometheus 3",
                Some(
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ),
                Form::OpenMetrics,
            ),
            ("text preferred", Some("application/openmetrics-text;q=0.4,text/plain;q=0.9"), Form::Text),
            ("equal: the first named", Some("text/plain, application/openmetrics-text"), Form::Text),
            ("equal: the first named, other way", Some("application/openmetrics-text, text/plain"), Form::OpenMetrics),
            ("refused by q=0", Some("application/openmetrics-text;q=0, */*;q=0.1"), Form::Text),
            ("only refused", Some("application/openmetrics-text;q=0"), Form::Text),
            ("case does not matter", Some("Application/OpenMetrics-Text;Q=1.0"), Form::OpenMetrics),
            ("a quality that is none", Some("application/openmetrics-text;q=high"), Form::Text),
            ("a quality over 1", Some("application/openmetrics-text;q=7"), Form::Text),
            ("nothing we write", Some("application/json"), Form::Text),
            ("garbage", Some(";;,,=;q=,\u{e4}"), Form::Text),
            ("empty", Some(""), Form::Text),
        ];
        for (name, header, form) in cases {
            assert_eq!(choose(header), form, "{name}");
        }
    }
}
