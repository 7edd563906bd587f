//! `/metrics`: figures in OpenMetrics, read from the other parts' counters at the moment of the scrape.
//!
//! Names begin with `palisade_`, units are base units (seconds, bytes), counters end in `_total`. No label is ever an
//! address, a port or anything else that traffic chooses: an attacker must not be able to make series.
//!
//! Each part of the daemon has a file here that writes its figures to a [`Sheet`]; this one turns a sheet into text:
//! OpenMetrics for whoever asks for it, else Prometheus' older text format, which names a counter's family with its
//! suffix.

pub mod datapath;
pub mod engine;
pub mod process;
pub mod replication;

use std::fmt;
use std::fmt::Write as _;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// A label's name and value.
pub type Label = (&'static str, String);

/// Whether this member takes part and takes traffic.
pub(crate) fn member_state(sheet: &mut Sheet, ready: bool, in_cluster: bool, drained: Option<u64>) {
    sheet.gauge("palisade_ready", "1 if this member may be given traffic", ready.into());
    sheet.gauge("palisade_in_cluster", "1 if this machine is a member of a cluster", in_cluster.into());
    sheet.gauge("palisade_drained", "1 if this member turns traffic away", drained.is_some().into());
    let passing = drained.unwrap_or(0);
    sheet.gauge(
        "palisade_drained_packets",
        "Packets that passed here in the last second though it is drained",
        passing,
    );
}

/// The datapath, if it runs.
pub(crate) fn packets(sheet: &mut Sheet, datapath: Option<&crate::datapath::Snapshot>) {
    sheet.gauge("palisade_datapath_running", "1 if packets are captured", datapath.is_some().into());
    if let Some(counts) = datapath {
        datapath::write(sheet, counts);
    }
}

/// All figures of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    families: Vec<Family>,
}

/// One metric with all its label sets.
#[derive(Clone, Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Vec<Label>, Value)>,
}

#[derive(Clone, Debug)]
enum Value {
    Count(u64),
    Number(f64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

/// Adds the samples of one metric.
#[derive(Debug)]
pub struct Samples<'a>(&'a mut Family);

impl Samples<'_> {
    /// A whole number.
    pub fn count<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: u64) {
        self.0.samples.push((owned(labels), Value::Count(value)));
    }

    /// Any number.
    pub fn number<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: f64) {
        self.0.samples.push((owned(labels), Value::Number(value)));
    }
}

fn owned<const N: usize>(labels: [(&'static str, &str); N]) -> Vec<Label> {
    labels.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
}

impl Sheet {
    fn family(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        fill: impl FnOnce(&mut Samples<'_>),
    ) {
        let mut family = Family { name, help, kind, samples: Vec::new() };
        fill(&mut Samples(&mut family));
        if !family.samples.is_empty() {
            self.families.push(family);
        }
    }

    /// A counter with labels; `name` without `_total`.
    pub fn counters(&mut self, name: &'static str, help: &'static str, fill: impl FnOnce(&mut Samples<'_>)) {
        self.family(name, help, MetricType::Counter, fill);
    }

    /// A counter; `name` without `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counters(name, help, |s| s.count([], value));
    }

    /// A gauge with labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str, fill: impl FnOnce(&mut Samples<'_>)) {
        self.family(name, help, MetricType::Gauge, fill);
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.gauges(name, help, |s| s.count([], value));
    }

    /// A histogram: `buckets` are pairs of upper bound and count, not cumulative, in rising order; what is above the last
    /// bound is `count` minus them all.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        sum: f64,
        count: u64,
        buckets: impl IntoIterator<Item = (f64, u64)>,
    ) {
        let mut buckets: Vec<(f64, u64)> = buckets.into_iter().collect();
        let within: u64 = buckets.iter().map(|(_, n)| n).sum();
        // The parts are counted one after another, not at one instant: never let the last bucket fall below the others.
        let count = count.max(within);
        buckets.push((f64::INFINITY, count - within));
        self.family(name, help, MetricType::Histogram, |s| {
            s.0.samples.push((Vec::new(), Value::Histogram { sum, count, buckets }));
        });
    }

    /// As OpenMetrics.
    #[must_use]
    pub fn openmetrics(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a String can not fail, and the collector below has no errors of its own.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    /// As Prometheus' text format 0.0.4, in which `# TYPE` names a counter as its samples do.
    #[must_use]
    pub fn text(self) -> String {
        let mut text = String::new();
        let mut help = None;
        for line in self.openmetrics().lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').map(|(_, help)| help.to_owned());
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let suffix = if kind == "counter" { "_total" } else { "" };
                let help = help.take().unwrap_or_default();
                let _ = writeln!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
            } else if !line.starts_with('#') {
                let _ = writeln!(text, "{line}");
            }
        }
        text
    }
}

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in &self.families {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (labels, value) in &family.samples {
                if labels.is_empty() {
                    encode(&mut metric, family.kind, value)?;
                } else {
                    encode(&mut metric.encode_family(&labels.as_slice())?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: MetricType, value: &Value) -> Result<(), fmt::Error> {
    match (value, kind) {
        (Value::Histogram { sum, count, buckets }, _) => {
            metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
        }
        (Value::Count(n), MetricType::Counter) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Value::Number(n), MetricType::Counter) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Value::Count(n), _) => metric.encode_gauge(n),
        (Value::Number(n), _) => metric.encode_gauge(n),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::check;
