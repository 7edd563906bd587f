//! Audits: what the state's digest was at the last indices, and how a state that differs is replaced.
//!
//! openraft installs snapshots only on members that are behind. A member whose state is wrong, though its log is not, is
//! repaired here, between two applies: [`Auditor::pause_apply`] keeps openraft from applying, a snapshot that reaches at least
//! as far is fetched, and [`ApplyPause::replace`] puts it in place of the state. openraft still applies the entries
//! that it covers; the state machine skips them.

use std::sync::Arc;
use std::{fmt, io};

use tokio::sync::OwnedMutexGuard;

use crate::core::{Begun, Core, Job, ReplicatedState};
use crate::snapshot::{Pace, SnapshotFile};
use crate::types::LogId;

/// Compares and repairs a state machine's state while openraft has it.
pub struct Auditor<M>(Arc<Core<M>>);

impl<M> Clone for Auditor<M> {
    fn clone(&self) -> Self {
        Auditor(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Auditor<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auditor").finish_non_exhaustive()
    }
}

impl<M: ReplicatedState> Auditor<M> {
    pub(crate) fn new(core: Arc<Core<M>>) -> Auditor<M> {
        Auditor(core)
    }

    /// The digest at an index, if it is still known: of the last 4096 ones, and of every 4096th before them.
    #[must_use]
    pub fn digest_at(&self, index: u64) -> Option<u64> {
        self.0.inner.lock().digests.at(index)
    }

    /// Indices with their digests, to be compared with other members': the last one applied, and those before it that other
    /// members will remember for longest; newest first, at most 17.
    #[must_use]
    pub fn points(&self) -> Vec<(u64, u64)> {
        self.0.inner.lock().digests.points()
    }

    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.0.inner.lock().applied
    }

    /// A snapshot of the state as it is now, kept nowhere: it goes when it is dropped.
    ///
    /// # Errors
    /// The disk's.
    pub async fn snapshot(&self) -> io::Result<SnapshotFile> {
        let guard = Arc::clone(&self.0.snapshot_lock).lock_owned().await;
        let core = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            // Until it is done, not until somebody has waited for it.
            let _guard = guard;
            let Begun { level, meta, job } = core.inner.lock().begin();
            let metrics = core.snapshots.metrics();
            core.snapshots.write(level, &meta, Pace::Bounded, |to| metrics.shard_locked(job.write(to, &core.clock)?))
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Keeps openraft from applying for as long as what this yields lives.
    pub async fn pause_apply(&self) -> ApplyPause<M> {
        let lock = Arc::clone(&self.0.apply_lock).lock_owned().await;
        ApplyPause { core: Arc::clone(&self.0), _lock: lock }
    }

    /// Changes the state past the log: for tests of audits.
    #[cfg(any(test, feature = "testing"))]
    pub fn meddle<T>(&self, change: impl FnOnce(&mut M) -> T) -> T {
        let mut inner = self.0.inner.lock();
        let result = change(&mut inner.state);
        let digest = inner.state.digest();
        inner.digests.overwrite_last(digest);
        result
    }
}

/// A state that does not change for now.
pub struct ApplyPause<M> {
    core: Arc<Core<M>>,
    _lock: OwnedMutexGuard<()>,
}

impl<M> fmt::Debug for ApplyPause<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyPause").finish_non_exhaustive()
    }
}

impl<M: ReplicatedState> ApplyPause<M> {
    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.core.inner.lock().applied
    }

    /// Replaces the state by a snapshot's, which becomes this member's newest one: a restart must not bring the old state
    /// back. Then openraft goes on applying.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the snapshot does not reach what was applied, [`io::ErrorKind::InvalidData`] if
    /// it is damaged (the state is then as before), or the disk's.
    pub async fn replace(self, snapshot: SnapshotFile) -> io::Result<()> {
        if snapshot.meta().last_log_id < self.applied() {
            let what = format!("the snapshot {} does not reach what was applied here", snapshot.meta());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.core.replace(snapshot).await
    }
}
