//! The metrics page in both forms, from a snapshot made by hand.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use plimsoll::host::clock::Moment;
use plimsoll::metrics::names::{self, Kind, TABLE};
use plimsoll::metrics::{Form, Scrape};
use plimsoll::snapshot::{Published, Snapshot};
use proptest::prelude::*;

mod sample;

fn page_at(snapshot: Snapshot, now: Moment, form: Form) -> String {
    let published = Arc::new(Published::default());
    published.publish(snapshot);
    Scrape::new(published, Arc::new(move || now)).expect("the table is sound").page(form).expect("the page is written")
}

fn page(snapshot: Snapshot, form: Form) -> String {
    page_at(snapshot, sample::taken(), form)
}

/// One line of a page that is not a comment: name, labels, number.
#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Reads a page as Prometheus does: strictly, refusing whatever the format does not allow.
fn parse(page: &str, form: Form) -> Result<Vec<Sample>, String> {
    if !page.ends_with('\n') {
        return Err("the last line is not ended".into());
    }
    let mut lines: Vec<&str> = page.split('\n').collect();
    lines.pop();
    if form == Form::OpenMetrics && lines.pop() != Some("# EOF") {
        return Err("no # EOF at the end".into());
    }
    let (mut samples, mut series, mut types): (Vec<Sample>, BTreeSet<String>, BTreeSet<String>) = Default::default();
    for line in lines {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (Some(word), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
                return Err(format!("half a comment: {line:?}"));
            };
            if word == "TYPE" {
                if !types.insert(name.to_owned()) {
                    return Err(format!("{name} is told twice"));
                }
                let allowed = ["counter", "gauge", "histogram"].contains(&rest) || (form == Form::OpenMetrics && rest == "info");
                if !allowed {
                    return Err(format!("unknown type {rest}"));
                }
            }
            if form == Form::OpenMetrics && word == "UNIT" && !name.ends_with(&format!("_{rest}")) {
                return Err(format!("{name} does not end in its unit {rest}"));
            }
            continue;
        }
        let sample = parse_sample(line).ok_or_else(|| format!("not a sample: {line:?}"))?;
        if !series.insert(format!("{} {:?}", sample.name, sample.labels)) {
            return Err(format!("twice the same series: {line:?}"));
        }
        samples.push(sample);
    }
    Ok(samples)
}

fn parse_sample(line: &str) -> Option<Sample> {
    let name_ends = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            if label.is_empty() || !label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return None;
            }
            let mut value = String::new();
            let mut chars = after.chars();
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => value.push(match chars.next()? {
                        'n' => '\n',
                        '\\' => '\\',
                        '"' => '"',
                        _ => return None,
                    }),
                    other => value.push(other),
                }
            }
            labels.push((label.to_owned(), value));
            rest = chars.as_str();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = rest.strip_prefix('}')?;
                    break;
                }
            }
        }
    }
    Some(Sample { name: name.to_owned(), labels, value: rest.strip_prefix(' ')?.parse().ok()? })
}

fn find(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted: Vec<(String, String)> = labels.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect();
    samples.iter().find(|sample| sample.name == name && sample.labels == wanted).map(|sample| sample.value)
}

#[test]
fn the_numbers_of_the_snapshot_are_on_both_pages() {
    type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<f64>);
    let expected: &[Expected] = &[
        ("plimsoll_up", &[], Some(1.0)),
        ("plimsoll_build_info", &[("version", env!("CARGO_PKG_VERSION"))], Some(1.0)),
        (
            "plimsoll_environment_info",
            &[("platform", "docker"), ("cgroup", "v2"), ("enforcement", "signal"), ("limit_source", "cgroup")],
            Some(1.0),
        ),
        ("plimsoll_config_last_reload_successful", &[], Some(1.0)),
        ("plimsoll_cpu_limit_cores", &[], Some(0.5)),
        ("plimsoll_cpu_usage_seconds_total", &[], Some(1234.5)),
        ("plimsoll_memory_limit_bytes", &[], Some(536_870_912.0)),
        ("plimsoll_memory_swap_bytes", &[], None),
        ("plimsoll_memory_events_total", &[("event", "high")], Some(3.0)),
        ("plimsoll_filesystem_avail_bytes", &[("mountpoint", "/app/data")], Some(1e9)),
        ("plimsoll_filesystem_files", &[("mountpoint", "/app/data")], Some(327_680.0)),
        ("plimsoll_filesystem_files_free", &[("mountpoint", "/app/data")], None),
        ("plimsoll_pressure_waiting_seconds_total", &[("resource", "cpu")], Some(12.5)),
        ("plimsoll_pressure_stalled_seconds_total", &[("resource", "cpu")], None),
        ("plimsoll_policy_utilization_ratio", &[("resource", "disk:/app/data")], Some(0.92)),
        ("plimsoll_policy_threshold_ratio", &[("resource", "cpu"), ("level", "high")], Some(0.8)),
        ("plimsoll_policy_threshold_ratio", &[("resource", "cpu"), ("level", "critical")], None),
        ("plimsoll_policy_state", &[("resource", "cpu"), ("state", "high")], Some(1.0)),
        ("plimsoll_policy_state", &[("resource", "cpu"), ("state", "normal")], Some(0.0)),
        ("plimsoll_policy_throttled", &[], Some(1.0)),
        ("plimsoll_policy_unanswered_seconds", &[("resource", "disk:/app/data")], Some(600.0)),
        ("plimsoll_actions_total", &[("resource", "cpu"), ("action", "throttle")], Some(7.0)),
        ("plimsoll_action_failures_total", &[("resource", "cpu"), ("action", "throttle")], Some(1.0)),
        ("plimsoll_actions_suppressed_total", &[("reason", "dry_run")], Some(0.0)),
        ("plimsoll_tick_duration_seconds_count", &[], Some(3.0)),
        ("plimsoll_reaction_seconds_count", &[], Some(0.0)),
        ("plimsoll_source_errors_total", &[("source", "psi")], Some(2.0)),
        ("plimsoll_worker_replicas", &[("worker", "web"), ("state", "running")], Some(2.0)),
        ("plimsoll_worker_memory_bytes", &[("worker", "web")], Some(180_000_000.0)),
        ("plimsoll_worker_memory_bytes", &[("worker", "vector-db")], None),
        ("plimsoll_worker_exits_total", &[("worker", "web"), ("reason", "error")], Some(1.0)),
        ("plimsoll_worker_recycles_total", &[("worker", "web"), ("cause", "memory")], Some(1.0)),
        ("process_resident_memory_bytes", &[], Some(7_000_000.0)),
        ("plimsoll_policy_exhaustion_seconds", &[("resource", "memory")], Some(200.0)),
    ];
    for form in [Form::Text, Form::OpenMetrics] {
        let samples = parse(&page(sample::snapshot(), form), form).expect("the page parses");
        for (name, labels, value) in expected {
            assert_eq!(find(&samples, name, labels), *value, "{name}{labels:?} in {form:?}");
        }
    }
}

#[test]
fn every_metric_of_the_table_is_on_the_page_of_a_full_snapshot() {
    let mut snapshot = sample::snapshot();
    snapshot.memory.swap_bytes = Some(1);
    snapshot.disks[0].files_free = Some(1);
    let text = page(snapshot, Form::Text);
    for metric in TABLE {
        assert!(text.contains(&format!("# HELP {} ", metric.name)), "{} is missing", metric.name);
    }
}

#[test]
fn histograms_are_cumulative_and_bounds_have_a_decimal_point() {
    let text = page(sample::snapshot(), Form::OpenMetrics);
    let expected = "# TYPE plimsoll_tick_duration_seconds histogram\n\
        # UNIT plimsoll_tick_duration_seconds seconds\n\
        # HELP plimsoll_tick_duration_seconds One tick: reading, judging, planning, acting and recording.\n\
        plimsoll_tick_duration_seconds_bucket{le=\"0.001\"} 1\n\
        plimsoll_tick_duration_seconds_bucket{le=\"0.01\"} 2\n\
        plimsoll_tick_duration_seconds_bucket{le=\"1.0\"} 2\n\
        plimsoll_tick_duration_seconds_bucket{le=\"+Inf\"} 3\n\
        plimsoll_tick_duration_seconds_count 3\n\
        plimsoll_tick_duration_seconds_sum 2.0055\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn openmetrics_names_counters_and_infos_as_it_must() {
    let text = page(sample::snapshot(), Form::OpenMetrics);
    for line in [
        "# TYPE plimsoll_cpu_usage_seconds counter",
        "# UNIT plimsoll_cpu_usage_seconds seconds",
        "plimsoll_cpu_usage_seconds_total 1234.5",
        "# TYPE plimsoll_build info",
        "# TYPE plimsoll_policy_utilization_ratio gauge",
        "# UNIT plimsoll_policy_utilization_ratio ratio",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?}");
    }
}

#[test]
fn up_is_zero_once_three_promised_gaps_have_passed() {
    let cases = [
        ("fresh", Duration::ZERO, 1.0),
        ("at the deadline", Duration::from_secs(6), 1.0),
        ("past it", Duration::from_millis(6001), 0.0),
        ("long past it", Duration::from_secs(86_400), 0.0),
    ];
    for (name, age, up) in cases {
        let text = page_at(sample::snapshot(), sample::taken().after(age), Form::Text);
        let samples = parse(&text, Form::Text).unwrap();
        assert_eq!(find(&samples, "plimsoll_up", &[]), Some(up), "{name}");
    }
}

#[test]
fn before_the_first_tick_nothing_is_claimed() {
    for form in [Form::Text, Form::OpenMetrics] {
        let samples = parse(&page(Snapshot::default(), form), form).unwrap();
        let names: Vec<&str> = samples.iter().map(|sample| sample.name.as_str()).collect();
        assert_eq!(names, ["plimsoll_build_info", "plimsoll_up"], "{form:?}");
        assert_eq!(find(&samples, "plimsoll_up", &[]), Some(0.0));
    }
}

#[test]
fn a_number_that_is_none_is_left_out() {
    let mut snapshot = sample::snapshot();
    snapshot.cpu.limit_cores = Some(f64::NAN);
    snapshot.policy.resources[0].utilization = Some(f64::INFINITY);
    let samples = parse(&page(snapshot, Form::Text), Form::Text).unwrap();
    assert_eq!(find(&samples, "plimsoll_cpu_limit_cores", &[]), None);
    assert_eq!(find(&samples, "plimsoll_policy_utilization_ratio", &[("resource", "cpu")]), None);
}

#[test]
fn the_table_keeps_the_naming_rules() {
    let mut seen = BTreeSet::new();
    for metric in TABLE {
        let name = metric.name;
        assert!(seen.insert(name), "{name} twice");
        assert!(name.starts_with("plimsoll_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
        assert!(!metric.labels.iter().any(|label| ["pid", "job", "instance", "le"].contains(label)), "{name}");
        assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '|']) && !metric.source.is_empty(), "{name}");
        assert!(names::describe().contains(metric.help), "{name}");
    }
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    #[expect(clippy::disallowed_methods, reason = "a switch for the person who runs the test")]
    let bless = std::env::var("PLIMSOLL_BLESS").is_ok_and(|value| value == "1");
    if bless {
        std::fs::write(path, names::document()).expect("docs/metrics.md can be written");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == names::document(), "docs/metrics.md is not what src/metrics/names.rs says; PLIMSOLL_BLESS=1 writes it anew");
}

/// Runs another program with `input`; `None` where it is not installed, else whether it passed and what it said.
#[expect(clippy::disallowed_methods, reason = "the real tools are other programs")]
fn tool(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let piped = Stdio::piped;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus");
    let mut command = Command::new(program);
    let mut child = command.args(arguments).current_dir(folder).stdin(piped()).stdout(piped()).stderr(piped()).spawn().ok()?;
    // A tool that does not read its input closes it.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it was started");
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn promtool_has_nothing_to_say() {
    let check = |page: &str| tool("promtool", &["check", "metrics"], page);
    match check(&page(sample::snapshot(), Form::Text)) {
        None => println!("skipped: promtool not installed"),
        Some((passed, said)) => {
            assert!(passed && said.is_empty(), "{said}");
            let (passed, _) = check("# TYPE broken counter\nbroken{ 1\n").unwrap();
            assert!(!passed, "promtool passes everything, so the check says nothing");
        }
    }
}

/// promtool's linter reads only the older format: it does not know the type `info`. Python's client has the reference parser.
#[test]
fn the_reference_parser_reads_openmetrics() {
    let reference = [
        "-c",
        "import sys\ntry:\n from prometheus_client.openmetrics.parser import text_string_to_metric_families as read\n\
        except ImportError:\n sys.exit(\"absent\")\nprint(len(list(read(sys.stdin.read()))))",
    ];
    match tool("python3", &reference, &page(sample::snapshot(), Form::OpenMetrics)) {
        None => println!("skipped: python3 not installed"),
        Some((false, said)) if said.trim() == "absent" => println!("skipped: python3 has no prometheus_client"),
        Some((passed, said)) => assert!(passed && said.trim().parse::<usize>().is_ok_and(|families| families > 40), "{said}"),
    }
}

#[test]
fn the_alerts_fire_when_they_should() {
    match tool("promtool", &["test", "rules", "plimsoll.test.yml"], "") {
        None => println!("skipped: promtool not installed"),
        Some((passed, said)) => assert!(passed, "{said}"),
    }
}

#[test]
fn the_alerts_use_metrics_there_are() {
    let rules = include_str!("../packaging/prometheus/plimsoll.rules.yml");
    let tests = include_str!("../packaging/prometheus/plimsoll.test.yml");
    let mut used = 0;
    for word in [rules, tests].concat().split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if word.starts_with("plimsoll_") {
            assert!(names::find(word).is_some(), "{word} is not in the table");
            used += 1;
        }
    }
    assert!(used > 30, "only {used} names were found");
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(alert), "{alert} has no test");
    }
}

/// A snapshot in which every text is any text at all.
fn any_text() -> impl Strategy<Value = Snapshot> {
    let text = || prop_oneof![any::<String>(), "[\"\\\\\n\r{},= #]{0,8}", Just(String::new()), Just("same".to_owned())];
    proptest::collection::vec(text(), 16).prop_map(|texts| {
        let mut texts = texts.into_iter().cycle();
        let mut next = move || texts.next().unwrap_or_default();
        let mut snapshot = sample::snapshot();
        snapshot.environment.platform = next();
        snapshot.environment.cgroup = next();
        snapshot.memory.events.iter_mut().for_each(|event| event.0 = next());
        snapshot.pressure.iter_mut().for_each(|pressure| pressure.resource = next());
        snapshot.disks.iter_mut().for_each(|disk| disk.path = next());
        snapshot.policy.resources.iter_mut().for_each(|resource| {
            resource.resource = next();
            resource.state = next();
        });
        snapshot.workers.iter_mut().for_each(|worker| {
            worker.name = next().into();
            worker.states.iter_mut().for_each(|state| state.0 = next());
            worker.exits_total.iter_mut().for_each(|exit| exit.0 = next());
        });
        snapshot.counters.actions_total.iter_mut().for_each(|action| action.0 = next());
        snapshot
    })
}

proptest! {
    #[test]
    fn any_text_makes_a_page_that_can_be_read(snapshot in any_text()) {
        let disk = snapshot.disks[0].path.clone();
        for form in [Form::Text, Form::OpenMetrics] {
            let text = page(snapshot.clone(), form);
            let samples = parse(&text, form).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
            // And what was written is what is read.
            prop_assert_eq!(find(&samples, "plimsoll_filesystem_size_bytes", &[("mountpoint", &disk)]), Some(5e9));
        }
    }
}
