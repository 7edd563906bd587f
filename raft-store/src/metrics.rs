//! Figures about the store, for the metrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One flush, as told to [`StoreMetrics::on_flush`]'s callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flush {
    /// How long writing to the disk took, until all of it was durable.
    pub took: Duration,
    /// The operations that it made durable: appends, votes, truncations.
    pub operations: u64,
    /// The log entries among them.
    pub entries: u64,
    /// The bytes of these entries' records.
    pub bytes: u64,
}

type Callback = Arc<dyn Fn(&Flush) + Send + Sync>;

/// Running totals; read them when scraped. Cheap to clone: all clones are the same figures.
#[derive(Clone, Default)]
pub struct StoreMetrics(Arc<Figures>);

#[derive(Default)]
struct Figures {
    flushes: AtomicU64,
    flush_nanos: AtomicU64,
    operations: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
    cold_reads: AtomicU64,
    callback: parking_lot::RwLock<Option<Callback>>,
}

/// [`StoreMetrics`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Flushes done.
    pub flushes: u64,
    /// Time spent in them.
    pub flush_time: Duration,
    /// Operations made durable; by `flushes`: the size of a group.
    pub operations: u64,
    /// Log entries made durable.
    pub entries: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Reads of log entries that were no longer in memory.
    pub cold_reads: u64,
}

impl StoreMetrics {
    /// The totals now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let figures = &self.0;
        Totals {
            flushes: figures.flushes.load(Relaxed),
            flush_time: Duration::from_nanos(figures.flush_nanos.load(Relaxed)),
            operations: figures.operations.load(Relaxed),
            entries: figures.entries.load(Relaxed),
            bytes: figures.bytes.load(Relaxed),
            cold_reads: figures.cold_reads.load(Relaxed),
        }
    }

    /// Calls `callback` after every flush, on the flusher's thread: it must be quick. For histograms.
    pub fn on_flush(&self, callback: impl Fn(&Flush) + Send + Sync + 'static) {
        *self.0.callback.write() = Some(Arc::new(callback));
    }

    pub(crate) fn flushed(&self, flush: &Flush) {
        let figures = &self.0;
        figures.flushes.fetch_add(1, Relaxed);
        figures.flush_nanos.fetch_add(u64::try_from(flush.took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        figures.operations.fetch_add(flush.operations, Relaxed);
        figures.entries.fetch_add(flush.entries, Relaxed);
        figures.bytes.fetch_add(flush.bytes, Relaxed);
        let callback = figures.callback.read().clone();
        if let Some(callback) = callback {
            callback(flush);
        }
    }

    pub(crate) fn cold_read(&self) {
        self.0.cold_reads.fetch_add(1, Relaxed);
    }
}

impl fmt::Debug for StoreMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.totals().fmt(f)
    }
}
