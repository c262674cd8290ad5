//! The page: families built from the latest snapshot at each scrape, so a worker that is gone is gone from the page at once
//! and two scrapes never disturb each other or the loop.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, LabelPair, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

use super::names::{Kind, Metric, Read, Samples, TABLE};
use super::openmetrics;
use crate::host::clock::Moment;
use crate::snapshot::{Histogram, Published, Snapshot};

/// Tells the time of a scrape.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// The two wire forms of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Form {
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Text => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes the page.
#[derive(Clone)]
pub struct Scrape(Registry);

impl Scrape {
    /// Fails only if the table of names is at odds with itself (a name twice, a label that is not one): a test holds that.
    pub fn new(published: Arc<Published>, clock: Clock) -> Result<Scrape, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(Page::new(published, clock)?))?;
        Ok(Scrape(registry))
    }

    /// The whole page.
    pub fn page(&self, form: Form) -> Result<String, prometheus::Error> {
        let families = self.0.gather();
        match form {
            Form::Text => TextEncoder::new().encode_to_string(&families),
            Form::OpenMetrics => Ok(openmetrics::encode(&families)),
        }
    }
}

/// The collector behind the registry.
struct Page {
    published: Arc<Published>,
    clock: Clock,
    descriptions: Vec<Desc>,
}

impl Page {
    fn new(published: Arc<Published>, clock: Clock) -> Result<Page, prometheus::Error> {
        let descriptions = TABLE
            .iter()
            .map(|metric| {
                let labels = metric.labels.iter().map(|label| label.to_string()).collect();
                Desc::new(metric.name.to_owned(), metric.help.to_owned(), labels, Default::default())
            })
            .collect::<Result<_, _>>()?;
        Ok(Page { published, clock, descriptions })
    }
}

impl Collector for Page {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.published.latest();
        let alive = snapshot.loop_alive((self.clock)());
        TABLE.iter().filter_map(|metric| collect(metric, &snapshot, alive)).collect()
    }
}

/// One family, or none when nothing of it is known.
fn collect(metric: &Metric, snapshot: &Snapshot, alive: bool) -> Option<MetricFamily> {
    let ticked = snapshot.tick > 0;
    let mut samples = Samples::default();
    let rows = match metric.read {
        Read::Always(read) => {
            read(alive, &mut samples);
            rows(metric, samples)
        }
        Read::Snapshot(read) if ticked => {
            read(snapshot, &mut samples);
            rows(metric, samples)
        }
        Read::Histogram(read) if ticked => vec![histogram(read(snapshot))],
        Read::Snapshot(_) | Read::Histogram(_) => Vec::new(),
    };
    if rows.is_empty() {
        return None;
    }
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge | Kind::Info => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(rows);
    Some(family)
}

fn rows(metric: &Metric, samples: Samples) -> Vec<prometheus::proto::Metric> {
    samples.distinct().into_iter().map(|(values, number)| row(metric, values, number)).collect()
}

fn row(metric: &Metric, values: Vec<String>, number: f64) -> prometheus::proto::Metric {
    let labels = metric.labels.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_string());
        pair.set_value(value);
        pair
    });
    let mut row = prometheus::proto::Metric::from_label(labels.collect());
    if metric.kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(number);
        row.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(number);
        row.set_gauge(gauge);
    }
    row
}

fn histogram(from: &Histogram) -> prometheus::proto::Metric {
    let mut below = 0;
    let buckets = from.bounds.iter().zip(&from.counts).map(|(bound, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = prometheus::proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(from.count());
    histogram.set_sample_sum(from.sum);
    let mut row = prometheus::proto::Metric::default();
    row.set_histogram(histogram);
    row
}
