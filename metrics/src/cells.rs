//! Counters and gauges.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Kind, Metric, Samples};

/// A number that only grows. Any thread may count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls. Any thread may set it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the number; a boolean is 0 or 1.
    pub fn set(&self, n: impl Into<u64>) {
        self.0.store(n.into(), Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that one thread writes; others may read it.
#[derive(Debug, Default)]
pub struct WorkerCounter(AtomicU64);

impl WorkerCounter {
    /// Counts one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `n`. A load and a store: with one writer, no locked read-modify-write is needed.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge that several threads have a part of: the metric is the sum.
#[derive(Debug, Default)]
pub struct WorkerGauge(Gauge);

impl WorkerGauge {
    /// Sets this thread's part.
    pub fn set(&self, n: u64) {
        self.0.set(n);
    }

    /// This thread's part.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Time that adds up; seconds in the metric.
#[derive(Debug, Default)]
pub struct DurationCounter(Counter);

impl DurationCounter {
    /// Adds a time.
    pub fn add(&self, time: Duration) {
        self.0.add(nanoseconds(time));
    }

    /// The sum.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
}

/// A time that rises and falls; seconds in the metric.
#[derive(Debug, Default)]
pub struct DurationGauge(Gauge);

impl DurationGauge {
    /// Sets the time.
    pub fn set(&self, time: Duration) {
        self.0.set(nanoseconds(time));
    }

    /// The time.
    #[must_use]
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

macro_rules! metric {
    ($($cell:ty: $kind:ident, $sample:ident;)+) => {
        $(
            impl Metric for $cell {
                const KIND: Kind = Kind::$kind;

                fn sample(parts: &[&Self], samples: &mut Samples<'_>) {
                    samples.$sample(parts.iter().map(|cell| cell.get()).sum());
                }
            }
        )+
    };
}

metric! {
    Counter: Counter, integer;
    WorkerCounter: Counter, integer;
    DurationCounter: Counter, seconds;
    Gauge: Gauge, integer;
    WorkerGauge: Gauge, integer;
    DurationGauge: Gauge, seconds;
}
