//! What the datapath counts. Each worker counts for itself, with relaxed atomics that no other thread writes; readers
//! add them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::Reason;

/// Upper bounds of the histogram of hold times; what is longer counts only in [`Histogram::count`].
pub(crate) const HOLD_BOUNDS: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(400),
    Duration::from_micros(800),
    Duration::from_micros(1600),
    Duration::from_micros(3200),
    Duration::from_micros(6400),
    Duration::from_micros(12_800),
    Duration::from_micros(25_600),
    Duration::from_micros(51_200),
    Duration::from_micros(102_400),
    Duration::from_micros(250_000),
];

const REASONS: usize = Reason::ALL.len();

/// A counter that one thread writes.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // One writer, so no read-modify-write is needed, which would lock the bus.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and bytes. A packet of several segments counts as many.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    packets: Counter,
    bytes: Counter,
}

impl Traffic {
    pub(crate) fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    fn get(&self) -> (u64, u64) {
        (self.packets.get(), self.bytes.get())
    }
}

/// One worker's counters.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    pub(crate) forwarded: Traffic,
    pub(crate) drops: [Traffic; REASONS],
    pub(crate) rejects: [Traffic; REASONS],
    pub(crate) unanswered: Counter,
    pub(crate) held: Traffic,
    pub(crate) hold_now: [Counter; 2],
    pub(crate) hold_time: [Counter; HOLD_BOUNDS.len()],
    pub(crate) hold_count: Counter,
    pub(crate) hold_nanos: Counter,
    pub(crate) captured: Counter,
    pub(crate) local: Counter,
    pub(crate) missed: Counter,
    pub(crate) oversized_lost: Counter,
    pub(crate) segmented: Counter,
    pub(crate) hints_lost: Counter,
    pub(crate) proposals_lost: Counter,
    pub(crate) batches: Counter,
    pub(crate) polls: Counter,
    /// When the worker last went round, in nanoseconds of the boot-time clock.
    pub(crate) heartbeat: Counter,
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        WorkerMetrics {
            forwarded: Traffic::default(),
            drops: std::array::from_fn(|_| Traffic::default()),
            rejects: std::array::from_fn(|_| Traffic::default()),
            unanswered: Counter::default(),
            held: Traffic::default(),
            hold_now: Default::default(),
            hold_time: Default::default(),
            hold_count: Counter::default(),
            hold_nanos: Counter::default(),
            captured: Counter::default(),
            local: Counter::default(),
            missed: Counter::default(),
            oversized_lost: Counter::default(),
            segmented: Counter::default(),
            hints_lost: Counter::default(),
            proposals_lost: Counter::default(),
            batches: Counter::default(),
            polls: Counter::default(),
            heartbeat: Counter::default(),
        }
    }
}

impl WorkerMetrics {
    pub(crate) fn dropped(&self, reason: Reason, packets: u64, bytes: u64) {
        if let Some(traffic) = self.drops.get(usize::from(reason as u8)) {
            traffic.add(packets, bytes);
        }
    }

    pub(crate) fn rejected(&self, reason: Reason, packets: u64, bytes: u64) {
        if let Some(traffic) = self.rejects.get(usize::from(reason as u8)) {
            traffic.add(packets, bytes);
        }
    }

    /// A packet was held for this long.
    pub(crate) fn held_for(&self, time: Duration) {
        let bucket = HOLD_BOUNDS.partition_point(|bound| *bound < time);
        if let Some(counter) = self.hold_time.get(bucket) {
            counter.add(1);
        }
        self.hold_count.add(1);
        self.hold_nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// The datapath's counters, to be read by anyone at any time.
#[derive(Debug)]
pub struct DatapathMetrics {
    pub(crate) workers: Vec<Arc<WorkerMetrics>>,
    pub(crate) gate_restored: AtomicU64,
    pub(crate) settings_restored: AtomicU64,
    pub(crate) captures_reopened: AtomicU64,
    /// When the watcher last went round, in nanoseconds of the boot-time clock.
    pub(crate) watched: AtomicU64,
}

/// All counters at one moment, added up over the workers.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Forwarded: packets, bytes. Packets of several segments count as many, here and below.
    pub forwarded: (u64, u64),
    /// Dropped by reason: packets, bytes. All reasons are there, in the order of [`Reason::ALL`].
    pub dropped: Vec<(Reason, u64, u64)>,
    /// Rejected by reason: packets, bytes.
    pub rejected: Vec<(Reason, u64, u64)>,
    /// Rejected packets that got no ICMP error because there had been too many.
    pub unanswered: u64,
    /// Packets that were held at least once, and their bytes.
    pub held: (u64, u64),
    /// Packets held now: those that match a half-open session, and others.
    pub hold_now: (u64, u64),
    /// How long packets were held that then went on (not those whose time ran out).
    pub hold_time: Histogram,
    /// Frames that the sockets received.
    pub captured: u64,
    /// Packets that were this machine's own, and so none of Palisade's business.
    pub local: u64,
    /// Frames that the kernel had no ring slot for.
    pub missed: u64,
    /// Frames larger than a ring slot that the kernel had no queue space for (also counted as dropped, `truncated`).
    pub oversized_lost: u64,
    /// Packets that were segmented in user space (tunnels).
    pub segmented: u64,
    /// Hints that found the replication's queue full.
    pub hints_lost: u64,
    /// Proposals that found the replication's queue full.
    pub proposals_lost: u64,
    /// Rounds in which a worker found packets.
    pub batches: u64,
    /// Times that a worker went to sleep.
    pub polls: u64,
    /// Times that something of the gate was missing and was restored.
    pub gate_restored: u64,
    /// Times that a kernel setting had to be set again.
    pub settings_restored: u64,
    /// Times that an interface's sockets were opened again.
    pub captures_reopened: u64,
}

/// A histogram; `buckets` are not cumulative.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// How many were at most as long as the bound of the same place in [`HOLD_BOUNDS`], and longer than the one before.
    pub buckets: [u64; HOLD_BOUNDS.len()],
    /// How many in all.
    pub count: u64,
    /// How long all together.
    pub sum: Duration,
}

impl DatapathMetrics {
    pub(crate) fn new(workers: usize) -> DatapathMetrics {
        DatapathMetrics {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            gate_restored: AtomicU64::new(0),
            settings_restored: AtomicU64::new(0),
            captures_reopened: AtomicU64::new(0),
            watched: AtomicU64::new(0),
        }
    }

    /// Packets forwarded so far.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.workers.iter().map(|w| w.forwarded.get().0).sum()
    }

    /// Reads all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let sum = |of: &dyn Fn(&WorkerMetrics) -> u64| self.workers.iter().map(|w| of(w)).sum::<u64>();
        let traffic = |of: &dyn Fn(&WorkerMetrics) -> (u64, u64)| (sum(&|w| of(w).0), sum(&|w| of(w).1));
        let by_reason = |of: fn(&WorkerMetrics) -> &[Traffic; REASONS]| {
            let each = Reason::ALL.iter().enumerate().map(|(at, reason)| {
                let (packets, bytes) = traffic(&|w| of(w).get(at).map_or((0, 0), Traffic::get));
                (*reason, packets, bytes)
            });
            each.collect::<Vec<_>>()
        };
        Snapshot {
            forwarded: traffic(&|w| w.forwarded.get()),
            dropped: by_reason(|w| &w.drops),
            rejected: by_reason(|w| &w.rejects),
            unanswered: sum(&|w| w.unanswered.get()),
            held: traffic(&|w| w.held.get()),
            hold_now: traffic(&|w| (w.hold_now[0].get(), w.hold_now[1].get())),
            hold_time: Histogram {
                buckets: std::array::from_fn(|at| sum(&|w| w.hold_time.get(at).map_or(0, Counter::get))),
                count: sum(&|w| w.hold_count.get()),
                sum: Duration::from_nanos(sum(&|w| w.hold_nanos.get())),
            },
            captured: sum(&|w| w.captured.get()),
            local: sum(&|w| w.local.get()),
            missed: sum(&|w| w.missed.get()),
            oversized_lost: sum(&|w| w.oversized_lost.get()),
            segmented: sum(&|w| w.segmented.get()),
            hints_lost: sum(&|w| w.hints_lost.get()),
            proposals_lost: sum(&|w| w.proposals_lost.get()),
            batches: sum(&|w| w.batches.get()),
            polls: sum(&|w| w.polls.get()),
            gate_restored: self.gate_restored.load(Ordering::Relaxed),
            settings_restored: self.settings_restored.load(Ordering::Relaxed),
            captures_reopened: self.captures_reopened.load(Ordering::Relaxed),
        }
    }
}

impl Snapshot {
    /// Packets dropped for one reason.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped.iter().find(|(r, ..)| *r == reason).map_or(0, |(_, packets, _)| *packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_number_the_counters() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(usize::from(*reason as u8), at);
        }
    }

    #[test]
    fn a_snapshot_adds_the_workers_up() {
        let metrics = DatapathMetrics::new(2);
        for worker in &metrics.workers {
            worker.forwarded.add(2, 100);
            worker.dropped(Reason::Stale, 1, 60);
            worker.held_for(Duration::from_micros(100));
            worker.held_for(Duration::from_micros(101));
            worker.held_for(Duration::from_secs(1));
        }
        let s = metrics.snapshot();
        assert_eq!((s.forwarded, s.dropped(Reason::Stale), s.dropped(Reason::Policy)), ((4, 200), 2, 0));
        assert_eq!((s.hold_time.buckets[0], s.hold_time.buckets[1], s.hold_time.count), (2, 2, 6));
    }
}
