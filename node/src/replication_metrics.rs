//! What the replication counts. Plain atomics; the administration reads them when it is scraped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::replica::Outcome;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of values by size, with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Histogram {
        Histogram { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, value: u64) {
        let place = self.bounds.partition_point(|b| *b < value);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// The upper bounds (inclusive) of the buckets; one more bucket follows, without bound.
    #[must_use]
    pub fn bounds(&self) -> &'static [u64] {
        self.bounds
    }

    /// How many values fell into each bucket (not cumulative), the one without bound last.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect()
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

/// Microseconds.
const TIMES: &[u64] = &[
    100, 200, 300, 400, 600, 800, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000,
];
const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64];

/// Everything that the replication counts.
#[derive(Debug)]
pub struct ReplicationMetrics {
    /// Microseconds from a proposal's arrival in the queue to its application on this member.
    pub commit_us: Histogram,
    /// Commands in a batch of this member.
    pub batch_commands: Histogram,
    /// Batches of this member that were proposed a second time (or more often).
    pub proposed_again: Counter,
    /// Commands of this member by outcome.
    pub outcomes: Outcomes,
    /// Proposals of sessions that were dropped because this member was not current.
    pub dropped_not_current: Counter,
    /// Proposals that were given up because no answer came before their deadline.
    pub dropped_deadline: Counter,
    /// Proposals that a hint led to and that were dropped because the queue was full.
    pub dropped_queue_full: Counter,
    /// Batches that this member was asked to propose but refused because it did not lead.
    pub refused_not_leader: Counter,
    /// Hints sent, counted once for each receiver.
    pub hints_sent: Counter,
    /// Hints received.
    pub hints_received: Counter,
    /// Hints that were dropped because a peer's queue was full, or that no peer could be sent.
    pub hints_dropped: Counter,
    /// Hints received that could not be understood.
    pub hints_damaged: Counter,
    /// Times that a stream of hints to a peer was opened.
    pub hint_streams: Counter,
    /// Sessions of whose progress the others were told.
    pub progress_told: Counter,
    /// Sessions of whose progress this member was told.
    pub progress_learned: Counter,
    /// Tellings that a peer was not sent because its queue was full, or it could not be reached.
    pub progress_dropped: Counter,
    /// How many milliseconds ago that was up to which the others have been told everything.
    pub progress_lag_ms: Gauge,
    /// Members that forward and were not heard lately.
    pub members_silent: Gauge,
    /// Entries that changed the state, as applied here.
    pub applied_batches: Counter,
    /// Commands applied here, of all members.
    pub applied_commands: Counter,
    /// Sessions established, as applied here, of all members.
    pub sessions_established: Counter,
    /// Sessions that a packet has kept alive while they were to end, as applied here, of all members.
    pub sessions_refreshed: Counter,
    /// Questions to the leader about being current that were answered in time.
    pub current_proofs: Counter,
    /// Those that were not.
    pub current_failures: Counter,
    /// Snapshots sent to other members, completely.
    pub snapshots_sent: Counter,
    /// Snapshots received from the leader, completely.
    pub snapshots_received: Counter,
    /// Requests that were refused because they were not for this member or cluster.
    pub misaddressed: Counter,
    /// Connections to the member port that were closed because they did not speak its protocol.
    pub strangers: Counter,
    /// Times that another member (or this one) was seen to take the lead.
    pub leader_changes: Counter,
    /// On the leader: members whose digest was that of the majority, each time that it compared them.
    pub audits_equal: Counter,
    /// Those whose digest was another one.
    pub audits_different: Counter,
    /// Times that digests differed and no majority had the same.
    pub audits_undecided: Counter,
    /// On the leader: the last index at which all members were found equal.
    pub audited_index: Gauge,
    /// Parts of this member's table that were found to be what commands had made them.
    pub scrubs_sound: Counter,
    /// Parts that were not.
    pub scrubs_damaged: Counter,
    /// 1 while this member's state is known to be wrong.
    pub state_suspect: Gauge,
    /// Times that this member's state was replaced because it was wrong.
    pub repairs_done: Counter,
    /// Attempts at that which failed.
    pub repairs_failed: Counter,
}

/// Commands by what applying them did.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Done.
    pub accepted: Counter,
    /// Judged by an old policy.
    pub stale: Counter,
    /// The tuple, or name, was taken.
    pub conflict: Counter,
    /// No room.
    pub full: Counter,
    /// Could not be applied.
    pub invalid: Counter,
    /// A late copy.
    pub forgotten: Counter,
}

impl Outcomes {
    pub(crate) fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Accepted | Outcome::Policy(_) | Outcome::Member(_) => self.accepted.add(1),
            Outcome::Stale(_) => self.stale.add(1),
            Outcome::Conflict => self.conflict.add(1),
            Outcome::Full => self.full.add(1),
            Outcome::Invalid(_) => self.invalid.add(1),
            Outcome::Forgotten => self.forgotten.add(1),
        }
    }

    /// All, with their labels.
    #[must_use]
    pub fn all(&self) -> [(&'static str, u64); 6] {
        [
            ("accepted", self.accepted.get()),
            ("stale", self.stale.get()),
            ("conflict", self.conflict.get()),
            ("full", self.full.get()),
            ("invalid", self.invalid.get()),
            ("forgotten", self.forgotten.get()),
        ]
    }
}

impl Default for ReplicationMetrics {
    fn default() -> ReplicationMetrics {
        ReplicationMetrics {
            commit_us: Histogram::new(TIMES),
            batch_commands: Histogram::new(SIZES),
            proposed_again: Counter::default(),
            outcomes: Outcomes::default(),
            dropped_not_current: Counter::default(),
            dropped_deadline: Counter::default(),
            dropped_queue_full: Counter::default(),
            refused_not_leader: Counter::default(),
            hints_sent: Counter::default(),
            hints_received: Counter::default(),
            hints_dropped: Counter::default(),
            hints_damaged: Counter::default(),
            hint_streams: Counter::default(),
            applied_batches: Counter::default(),
            applied_commands: Counter::default(),
            sessions_established: Counter::default(),
            sessions_refreshed: Counter::default(),
            current_proofs: Counter::default(),
            current_failures: Counter::default(),
            snapshots_sent: Counter::default(),
            snapshots_received: Counter::default(),
            misaddressed: Counter::default(),
            strangers: Counter::default(),
            progress_told: Counter::default(),
            progress_learned: Counter::default(),
            progress_dropped: Counter::default(),
            progress_lag_ms: Gauge::default(),
            members_silent: Gauge::default(),
            leader_changes: Counter::default(),
            audits_equal: Counter::default(),
            audits_different: Counter::default(),
            audits_undecided: Counter::default(),
            audited_index: Gauge::default(),
            scrubs_sound: Counter::default(),
            scrubs_damaged: Counter::default(),
            state_suspect: Gauge::default(),
            repairs_done: Counter::default(),
            repairs_failed: Counter::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let h = Histogram::new(SIZES);
        for value in [1, 2, 3, 64, 65] {
            h.observe(value);
        }
        assert_eq!(h.counts(), [1, 1, 1, 0, 0, 0, 1, 1]);
        assert_eq!(h.sum(), 135);
    }
}
