//! When a snapshot is made, and how much of the log is kept: by bytes and by time, not by entries.
//!
//! A snapshot is due when the log that follows the last one is about as long as that one: then half of what is written is
//! snapshots, whatever their size. A floor keeps small states from making one all the time; a ceiling, and a time, bound how long
//! a member that starts replays its log.
//!
//! openraft has no such policy. It is told never to make a snapshot by itself, nor to purge; its owner asks for a [`Plan`] every
//! now and then, and carries it out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::Time;

use crate::core::{Core, ReplicatedState};
use crate::snapshot::LentLimits;

/// How much of the log there may be.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Bytes of log after which a snapshot is made, at least …
    pub floor: u64,
    /// … and at most; between them it is the size of the last snapshot.
    pub ceiling: u64,
    /// Time after which a snapshot is made, if anything was logged.
    pub interval: Duration,
    /// Bytes of log kept before a snapshot, so that members that are a little behind need none.
    pub keep: u64,
    /// What is kept for the receivers of snapshots.
    pub lent: LentLimits,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits {
            floor: 4 << 20,
            ceiling: 64 << 20,
            interval: Duration::from_secs(600),
            keep: 4 << 20,
            lent: LentLimits { bytes: 128 << 20, time: Duration::from_secs(600) },
        }
    }
}

impl LogLimits {
    fn is_due(&self, log_bytes: u64, snapshot_bytes: u64, age: Duration) -> bool {
        let enough = snapshot_bytes.clamp(self.floor, self.ceiling.max(self.floor));
        log_bytes >= enough || log_bytes > 0 && age >= self.interval
    }
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Whether a snapshot is due.
    pub snapshot: bool,
    /// The entry up to which the log is not needed any longer.
    pub purge: Option<u64>,
    /// The entry below which the log goes even if it is being sent: so much follows it.
    pub cut: Option<u64>,
}

/// When the last snapshot was begun: after how many bytes of log, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastBegun {
    pub(crate) bytes: u64,
    pub(crate) at: Time,
}

/// Plans for the log of a state machine that openraft has.
pub struct Planner<M>(Arc<Core<M>>);

impl<M> Clone for Planner<M> {
    fn clone(&self) -> Self {
        Planner(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Planner<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner").finish_non_exhaustive()
    }
}

impl<M: ReplicatedState> Planner<M> {
    pub(crate) fn new(core: Arc<Core<M>>) -> Planner<M> {
        Planner(core)
    }

    /// What is to be done now.
    #[must_use]
    pub fn plan(&self, limits: &LogLimits) -> Plan {
        let core = &*self.0;
        let now = (core.clock)();
        let newest = core.snapshots.newest();
        let inner = core.inner.lock();
        let log = &inner.log;
        let since = log.total().saturating_sub(inner.last_begun.bytes);
        let snapshot = limits.is_due(since, newest.map_or(0, |newest| newest.bytes), now.since(inner.last_begun.at));
        let bytes_since = |index| log.total().saturating_sub(log.up_to(index));
        let kept = core.snapshots.lent(now, &limits.lent, bytes_since);
        let purge = newest.and_then(|newest| {
            log.before(newest.index, limits.keep).map(|upto| upto.min(kept.after.unwrap_or(u64::MAX)))
        });
        let metrics = &core.snapshots.metrics().snapshots;
        metrics.log_bytes.set(since);
        metrics.lent_log_bytes.set(kept.after.map_or(0, bytes_since));
        metrics.given_up.add(kept.given_up);
        let cut = purge.zip(log.before(log.last(), limits.lent.bytes)).map(|(purge, far)| purge.min(far));
        drop(inner);
        Plan { snapshot, purge, cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_is_due_by_its_own_size_between_floor_and_ceiling() {
        let limits = LogLimits { floor: 100, ceiling: 1000, interval: Duration::from_secs(60), ..LogLimits::default() };
        let due = |log, snapshot| limits.is_due(log, snapshot, Duration::ZERO);
        assert!(!due(99, 0) && due(100, 0), "the floor");
        assert!(!due(499, 500) && due(500, 500), "its own size");
        assert!(!due(999, 1_000_000) && due(1000, 1_000_000), "the ceiling");
    }

    #[test]
    fn snapshot_is_due_by_time_if_anything_was_logged() {
        let limits = LogLimits { interval: Duration::from_secs(60), ..LogLimits::default() };
        assert!(!limits.is_due(1, 0, Duration::from_secs(59)));
        assert!(limits.is_due(1, 0, Duration::from_secs(60)));
        assert!(!limits.is_due(0, 0, Duration::from_secs(3600)));
    }
}
