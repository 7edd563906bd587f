//! Metrics of the store.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use palisade_metrics::{Counter, DurationHistogram, metrics};

/// Durations of flushes: from fast NVMe to a disk that fails.
const FLUSH_BUCKETS: &[Duration] = &[
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

/// One flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush {
    /// The time from the first write to the disk until all of it was durable.
    pub(crate) took: Duration,
    /// The operations that it made durable: appends, votes, truncations.
    pub(crate) operations: u64,
    /// The log entries among them.
    pub(crate) entries: u64,
    /// The bytes of these entries' records.
    pub(crate) bytes: u64,
}

metrics! {
    /// What the store counts.
    pub struct StoreCounters {
        /// Time to make a group of writes durable.
        pub flush: DurationHistogram = "palisade_store_flush_seconds" buckets FLUSH_BUCKETS,
        /// Writes (appends, votes, truncations) made durable.
        pub operations: Counter = "palisade_store_operations_total",
        /// Log entries made durable.
        pub entries: Counter = "palisade_store_entries_total",
        /// Bytes of the log entries made durable.
        pub bytes: Counter = "palisade_store_bytes_total",
        /// Log entries that had to be read from the disk.
        pub cold_reads: Counter = "palisade_store_cold_reads_total",
    }
}

/// The store's metrics. All clones are the same cells.
#[derive(Clone, Default, Debug)]
pub struct StoreMetrics(Arc<StoreCounters>);

impl StoreMetrics {
    pub(crate) fn flushed(&self, flush: &Flush) {
        self.flush.observe(flush.took);
        self.operations.add(flush.operations);
        self.entries.add(flush.entries);
        self.bytes.add(flush.bytes);
    }
}

impl Deref for StoreMetrics {
    type Target = StoreCounters;

    fn deref(&self) -> &StoreCounters {
        &self.0
    }
}
