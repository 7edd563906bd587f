//! Snapshots that are being sent: the log that follows one is kept for its receiver, but only so much of it, and only so long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_engine::Time;
use parking_lot::Mutex;

/// How much of the log is kept for the receivers of snapshots.
#[derive(Clone, Copy, Debug)]
pub struct LentLimits {
    /// Bytes of the log that follow a lent snapshot.
    pub bytes: u64,
    /// Time since the snapshot was lent.
    pub time: Duration,
}

/// Keeps a snapshot lent: while one lives, the log that follows the snapshot is kept, within [`LentLimits`].
#[derive(Clone, Debug)]
pub struct SnapshotPin(#[expect(dead_code, reason = "counted")] pub(super) Arc<Lent>);

/// One snapshot that is lent.
#[derive(Debug)]
pub(super) struct Lent {
    /// The last entry that it covers.
    index: u64,
    since: Time,
    /// Whether the log that follows it is not kept any longer.
    given_up: AtomicBool,
}

/// What is kept for the snapshots that are lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kept {
    /// The log after this entry is kept.
    pub(crate) after: Option<u64>,
    /// Receivers that were given up now.
    pub(crate) given_up: u64,
}

/// All snapshots that are lent. What is lent no longer is forgotten at the next look.
#[derive(Debug, Default)]
pub(super) struct AllLent(Mutex<Vec<Weak<Lent>>>);

impl AllLent {
    pub(super) fn lend(&self, index: u64, now: Time) -> Arc<Lent> {
        let lent = Arc::new(Lent { index, since: now, given_up: AtomicBool::new(false) });
        self.0.lock().push(Arc::downgrade(&lent));
        lent
    }

    /// What is kept now; `bytes_since` says how much log follows an index.
    pub(super) fn keeps(&self, now: Time, limits: &LentLimits, bytes_since: impl Fn(u64) -> u64) -> Kept {
        let mut all = self.0.lock();
        all.retain(|lent| lent.strong_count() > 0);
        let mut kept = Kept::default();
        for lent in all.iter().filter_map(Weak::upgrade) {
            let (bytes, time) = (bytes_since(lent.index), now.since(lent.since));
            if lent.given_up.load(Ordering::Relaxed) {
                continue;
            }
            if bytes < limits.bytes && time < limits.time {
                kept.after = Some(kept.after.map_or(lent.index, |after| after.min(lent.index)));
            } else {
                // Once what follows it may be gone, keeping the rest would be of no use.
                lent.given_up.store(true, Ordering::Relaxed);
                kept.given_up += 1;
                tracing::warn!(
                    bytes,
                    ?time,
                    "a member takes too long for its snapshot: the log that follows is not kept for it"
                );
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_snapshot_keeps_the_log_within_its_limits() {
        let limits = LentLimits { bytes: 1000, time: Duration::from_secs(60) };
        let (all, begin) = (AllLent::default(), Time(7_000_000_000));
        let keeps = |after: u64, last: u64| {
            let kept = all.keeps(begin + Duration::from_secs(after), &limits, |index| 10 * (last - index));
            (kept.after, kept.given_up)
        };
        assert_eq!(keeps(0, 100), (None, 0));
        let first = all.lend(50, begin);
        let second = all.lend(80, begin + Duration::from_secs(30));
        assert_eq!(keeps(30, 149), (Some(50), 0));
        assert_eq!(keeps(30, 150), (Some(80), 1), "too much log follows the first one");
        assert_eq!(keeps(30, 100), (Some(80), 0), "it stays given up");
        assert_eq!(keeps(89, 100), (Some(80), 0));
        assert_eq!(keeps(90, 100), (None, 1), "the second one takes too long");
        drop((first, second));
        assert_eq!(keeps(91, 100), (None, 0));
        assert!(all.0.lock().is_empty());
    }
}
