//! What one scrape finds: metrics with their values.

use std::time::Duration;

/// A label's name and value.
pub type Label = (&'static str, String);

/// A metric's type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Values counted by size.
    Histogram,
}

/// All metrics of one scrape.
#[derive(Clone, Debug, Default)]
pub struct MetricFamilies(Vec<MetricFamily>);

/// One metric with all its series.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    /// Its name; a counter's ends in `_total`.
    pub name: &'static str,
    /// Its help text.
    pub help: String,
    /// Its type.
    pub kind: Kind,
    /// Its series, not empty.
    pub samples: Vec<Sample>,
}

/// The value of one series.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The labels.
    pub labels: Vec<Label>,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A whole number.
    Integer(u64),
    /// Any number.
    Float(f64),
    /// A histogram: upper bounds (inclusive) and counts, not cumulative; the last bound is infinite.
    Histogram {
        /// The sum of the values.
        sum: f64,
        /// The buckets.
        buckets: Vec<(f64, u64)>,
    },
}

impl MetricFamilies {
    /// Adds a metric, unless `fill` adds no sample. The help text may have several lines, as doc comments have.
    pub fn add(&mut self, name: &'static str, help: &[&str], kind: Kind, fill: impl FnOnce(&mut Samples<'_>)) {
        debug_assert!(valid_name(name, kind), "{name} is not a name for a {kind:?}");
        let mut samples = Vec::new();
        fill(&mut Samples { labels: Vec::new(), samples: &mut samples });
        if !samples.is_empty() {
            let help = help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            self.0.push(MetricFamily { name, help, kind, samples });
        }
    }

    /// Adds a gauge that is computed now; a boolean is 0 or 1.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: impl Into<u64>) {
        self.gauges(name, help, |samples| samples.integer(value.into()));
    }

    /// Adds gauges with labels that are computed now.
    pub fn gauges(&mut self, name: &'static str, help: &str, fill: impl FnOnce(&mut Samples<'_>)) {
        self.add(name, &[help], Kind::Gauge, fill);
    }

    /// Adds a counter that something else counts.
    pub fn counter(&mut self, name: &'static str, help: &str, value: u64) {
        self.counters(name, help, |samples| samples.integer(value));
    }

    /// Adds counters with labels that something else counts.
    pub fn counters(&mut self, name: &'static str, help: &str, fill: impl FnOnce(&mut Samples<'_>)) {
        self.add(name, &[help], Kind::Counter, fill);
    }

    /// The metrics.
    pub fn iter(&self) -> impl Iterator<Item = &MetricFamily> {
        self.0.iter()
    }
}

/// Adds the samples of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    labels: Vec<Label>,
    samples: &'a mut Vec<Sample>,
}

impl Samples<'_> {
    /// The same metric, with one more label for what is added.
    pub fn with(&mut self, label: &'static str, value: &str) -> Samples<'_> {
        let labels = self.labels.iter().cloned().chain([(label, value.to_owned())]).collect();
        Samples { labels, samples: self.samples }
    }

    /// Adds a whole number.
    pub fn integer(&mut self, value: u64) {
        self.push(Value::Integer(value));
    }

    /// Adds any number.
    pub fn float(&mut self, value: f64) {
        self.push(Value::Float(value));
    }

    /// Adds a time.
    pub fn seconds(&mut self, time: Duration) {
        self.float(time.as_secs_f64());
    }

    /// Adds a histogram; see [`Value::Histogram`].
    pub fn histogram(&mut self, sum: f64, buckets: Vec<(f64, u64)>) {
        self.push(Value::Histogram { sum, buckets });
    }

    fn push(&mut self, value: Value) {
        self.samples.push(Sample { labels: self.labels.clone(), value });
    }
}

/// Whether a metric of this type may have this name: `palisade_` and lower case; `_total` behind counters and nothing else.
#[must_use]
pub const fn valid_name(name: &str, kind: Kind) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !(bytes[at].is_ascii_lowercase() || bytes[at].is_ascii_digit() || bytes[at] == b'_') {
            return false;
        }
        at += 1;
    }
    starts(bytes, b"palisade_", 0)
        && bytes.len() > 6
        && starts(bytes, b"_total", bytes.len() - 6) == matches!(kind, Kind::Counter)
}

const fn starts(bytes: &[u8], with: &[u8], from: usize) -> bool {
    let mut at = 0;
    while at < with.len() {
        if from + at >= bytes.len() || bytes[from + at] != with[at] {
            return false;
        }
        at += 1;
    }
    true
}
