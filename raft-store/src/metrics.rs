//! Metrics of the store.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use palisade_metrics::{Counter, DurationGauge, DurationHistogram, Gauge, metrics};

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
        /// Its snapshots.
        pub snapshots: SnapshotCounters,
    }
}

metrics! {
    /// What the store counts of its snapshots.
    pub struct SnapshotCounters {
        /// Snapshots of this member's state written here.
        pub written: Counter = "palisade_snapshots_written_total",
        /// Whether one is being written.
        pub under_way: Gauge = "palisade_snapshot_under_way",
        /// Length of the newest snapshot written here.
        pub bytes: Gauge = "palisade_snapshot_bytes",
        /// Bytes of log applied since the last snapshot was begun.
        pub log_bytes: Gauge = "palisade_snapshot_log_bytes",
        /// Bytes of log kept for members that are sent snapshots.
        pub lent_log_bytes: Gauge = "palisade_snapshot_lent_log_bytes",
        /// Times that a member that was sent a snapshot was given up: too much log followed, or it took too long.
        pub given_up: Counter = "palisade_snapshots_given_up_total",
        /// Longest time for which a snapshot kept packets from a part of the session table.
        pub shard_locked: DurationGauge = "palisade_snapshot_shard_locked_seconds_max",
    }
}

/// The store's metrics. All clones are the same cells.
#[derive(Clone, Default, Debug)]
pub struct StoreMetrics(Arc<StoreCounters>);

impl StoreMetrics {
    /// A snapshot was written that kept packets from their sessions for this long at a time.
    #[expect(clippy::unnecessary_wraps, reason = "the last step of what may fail")]
    pub(crate) fn shard_locked(&self, longest: Duration) -> io::Result<()> {
        let gauge = &self.snapshots.shard_locked;
        gauge.set(gauge.get().max(longest));
        Ok(())
    }

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
