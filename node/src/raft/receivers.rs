//! The members that this one sends snapshots to. One that fails again and again is left alone for longer and longer: each attempt
//! reads a whole snapshot, and keeps the log that follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use palisade_engine::MemberId;
use parking_lot::Mutex;

/// How long a receiver is left alone after its first failure; twice as long after each further one, up to the maximum.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// How long a receiver may take no bytes. When it has them all it restores its state, which takes some seconds.
const STALL: Duration = Duration::from_secs(60);
/// How often that is looked at.
const STALL_POLL: Duration = Duration::from_secs(1);

/// How often each receiver has failed since it last succeeded.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotReceivers(Arc<Mutex<BTreeMap<MemberId, u32>>>);

impl SnapshotReceivers {
    /// Counts a failure. Returns how long the receiver is to be left alone.
    pub(crate) fn failed(&self, member: MemberId) -> Duration {
        let mut failures = self.0.lock();
        let failures = failures.entry(member).or_default();
        let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(16)).min(MAX_DELAY);
        *failures = failures.saturating_add(1);
        delay
    }

    pub(crate) fn succeeded(&self, member: MemberId) {
        self.0.lock().remove(&member);
    }

    /// The number of members that failed last time.
    pub(crate) fn failing(&self) -> usize {
        self.0.lock().len()
    }
}

/// How many chunks a receiver has taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(Arc<AtomicU64>);

impl Taken {
    /// Counts the items of a stream.
    pub(crate) fn count<S: Stream + Send + 'static>(&self, stream: S) -> impl Stream<Item = S::Item> + Send + 'static
    where
        S::Item: Send,
    {
        let taken = self.clone();
        stream.inspect(move |_| {
            taken.0.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Whether it has taken any.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Ends when it takes no more.
    pub(crate) async fn stalled(&self) {
        let (mut last, mut since) = (0, Duration::ZERO);
        while since < STALL {
            tokio::time::sleep(STALL_POLL).await;
            let now = self.0.load(Ordering::Relaxed);
            since = if now == last { since + STALL_POLL } else { Duration::ZERO };
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receiver_is_left_alone_for_longer_after_each_failure() {
        let receivers = SnapshotReceivers::default();
        let (one, other) = (MemberId(1), MemberId(2));
        let delays: Vec<u64> = (0..9).map(|_| receivers.failed(one).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        for _ in 0..100 {
            receivers.failed(one);
        }
        assert_eq!(receivers.failed(one), MAX_DELAY);
        assert_eq!(receivers.failed(other), FIRST_DELAY);
        assert_eq!(receivers.failing(), 2);
        receivers.succeeded(one);
        assert_eq!((receivers.failing(), receivers.failed(one)), (1, FIRST_DELAY));
    }

    #[tokio::test(start_paused = true)]
    async fn receiver_that_takes_nothing_is_stalled() {
        let taken = Taken::default();
        let begun = tokio::time::Instant::now();
        let chunks = taken.count(futures::stream::iter(0..3));
        let slow = chunks.for_each(|_| tokio::time::sleep(Duration::from_secs(40)));
        tokio::join!(slow, taken.stalled());
        assert!(taken.any());
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(80) + STALL && took < Duration::from_secs(90) + STALL, "{took:?}");
    }
}
