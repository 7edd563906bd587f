//! The text formats of `/metrics`: OpenMetrics, and Prometheus' older text format 0.0.4.

use std::fmt;
use std::fmt::Write as _;

use palisade_metrics::{Kind, MetricFamilies, Value};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// As OpenMetrics.
#[must_use]
pub fn openmetrics(families: MetricFamilies) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(families)));
    let mut text = String::new();
    // Writing to a String cannot fail, and the collector has no errors of its own.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// As text format 0.0.4, in which `# HELP` and `# TYPE` name a counter with its suffix.
#[must_use]
pub fn text(families: MetricFamilies) -> String {
    let mut text = String::new();
    let mut help = None;
    for line in openmetrics(families).lines() {
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

#[derive(Debug)]
struct Page(MetricFamilies);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.iter() {
            // The encoder adds the suffix to the samples itself.
            let name = family.name.strip_suffix("_total").unwrap_or(family.name);
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, &family.help, None, kind)?;
            for sample in &family.samples {
                if sample.labels.is_empty() {
                    encode(&mut metric, family.kind, &sample.value)?;
                } else {
                    encode(&mut metric.encode_family(&sample.labels.as_slice())?, family.kind, &sample.value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> Result<(), fmt::Error> {
    match (value, kind) {
        (Value::Histogram { sum, buckets }, _) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
        (Value::Integer(n), Kind::Counter) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Value::Float(n), Kind::Counter) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Value::Integer(n), _) => metric.encode_gauge(n),
        (Value::Float(n), _) => metric.encode_gauge(n),
    }
}
