//! Histograms with fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cells::nanoseconds;
use crate::{Kind, Metric, Samples};

/// Counts of whole numbers by size.
#[derive(Debug)]
pub struct Histogram(Buckets);

impl Histogram {
    /// A histogram whose buckets have these upper bounds (inclusive, rising); one more, without bound, follows.
    #[must_use]
    pub fn new(bounds: &[u64]) -> Histogram {
        Histogram(Buckets::new(bounds.iter().copied()))
    }

    /// Counts a value.
    pub fn observe(&self, value: u64) {
        self.0.observe(value);
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts().sum()
    }
}

/// Counts of times by length; seconds in the metric.
#[derive(Debug)]
pub struct DurationHistogram(Buckets);

impl DurationHistogram {
    /// A histogram whose buckets have these upper bounds (inclusive, rising); one more, without bound, follows.
    #[must_use]
    pub fn new(bounds: &[Duration]) -> DurationHistogram {
        DurationHistogram(Buckets::new(bounds.iter().copied().map(nanoseconds)))
    }

    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        self.0.observe(nanoseconds(time));
    }

    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts().sum()
    }

    /// The sum of the times.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.0.sum.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Buckets {
    bounds: Box<[u64]>,
    /// Not cumulative; the one without bound is the last.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Buckets {
    fn new(bounds: impl Iterator<Item = u64>) -> Buckets {
        let bounds: Box<[u64]> = bounds.collect();
        debug_assert!(bounds.is_sorted());
        Buckets { counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), bounds, sum: AtomicU64::new(0) }
    }

    fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed))
    }

    /// `unit`: how many of what is counted make one of the metric's unit. A division, because 800 × 1e-6 is not 0.0008 in
    /// binary, and the bound is a label.
    fn sample(parts: &[&Buckets], unit: f64, samples: &mut Samples<'_>) {
        let Some(first) = parts.first() else { return samples.histogram(0.0, Vec::new()) };
        let mut buckets: Vec<(f64, u64)> = first
            .bounds
            .iter()
            .map(|bound| *bound as f64 / unit)
            .chain([f64::INFINITY])
            .map(|bound| (bound, 0))
            .collect();
        for part in parts {
            buckets.iter_mut().zip(part.counts()).for_each(|((_, total), count)| *total += count);
        }
        let sum: u64 = parts.iter().map(|part| part.sum.load(Ordering::Relaxed)).sum();
        samples.histogram(sum as f64 / unit, buckets);
    }
}

impl Metric for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn sample(parts: &[&Histogram], samples: &mut Samples<'_>) {
        Buckets::sample(&parts.iter().map(|part| &part.0).collect::<Vec<_>>(), 1.0, samples);
    }
}

impl Metric for DurationHistogram {
    const KIND: Kind = Kind::Histogram;

    fn sample(parts: &[&DurationHistogram], samples: &mut Samples<'_>) {
        Buckets::sample(&parts.iter().map(|part| &part.0).collect::<Vec<_>>(), 1e9, samples);
    }
}
