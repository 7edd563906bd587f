//! The state machine: openraft's view of the replicated state.
//!
//! The state itself is in memory. After a start it is that of the newest good snapshot, and openraft replays the log
//! from there up to the commit index that was saved.
//!
//! `apply` is called by one task. A snapshot fixes the machine's state between two applies (under the lock, with the
//! log id and membership of that moment) and is written by another thread while `apply` goes on.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use palisade_engine::replica::{Applied, RestoreError};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::audit::Auditor;
use crate::batch::LevelInForce;
use crate::clock::Clock;
use crate::core::{Begun, Core, Inner, Job, ReplicatedState, Setup, SnapshotReader};
use crate::digests::Digests;
use crate::error::StoreError;
use crate::log_meter::LogMeter;
use crate::planner::{LastBegun, Planner};
use crate::snapshot::{Pace, SnapshotFile, Snapshots};
use crate::types::{Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig};

/// openraft's state machine.
pub struct StateMachine<M>(Arc<Core<M>>);

impl<M> fmt::Debug for StateMachine<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine").field("applied", &self.0.inner.lock().applied).finish_non_exhaustive()
    }
}

impl<M> Drop for StateMachine<M> {
    fn drop(&mut self) {
        // openraft has stopped: nobody waits for a snapshot any longer.
        self.0.snapshots.close();
    }
}

impl<M: ReplicatedState> StateMachine<M> {
    /// A state machine with the state of the newest good one of `snapshots`. Blocks for as long as that takes.
    ///
    /// # Errors
    /// If the snapshots cannot be read.
    pub fn restore(setup: Setup<M>, snapshots: Snapshots, clock: Clock) -> Result<StateMachine<M>, StoreError> {
        let Setup { state, wake, observer } = setup;
        let membership = StoredMembership::default();
        let last_begun = LastBegun { bytes: 0, at: clock() };
        let (digests, level, log) = (Digests::default(), LevelInForce::default(), LogMeter::default());
        let mut inner = Inner { state, wake, applied: None, membership, digests, level, log, last_begun };
        let folder = std::path::Path::new("the snapshots");
        let unreadable = |unreadable| StoreError::Unreadable { dir: folder.to_owned(), unreadable };
        for snapshot in snapshots.good().map_err(StoreError::io("read", folder))? {
            let snapshot = snapshot.map_err(unreadable)?;
            let now = clock();
            match inner.state.restorer().read(now, &mut snapshot.body()) {
                Ok(mut restored) => {
                    while inner.install(now, &snapshot, &mut restored) {}
                    snapshots.set_current(&snapshot);
                    if let Some(id) = inner.applied {
                        observer.installed(id.index);
                        observer.advanced(id.index);
                    }
                    break;
                }
                // The snapshot is good: an older one would be no better.
                Err(RestoreError::Unaffordable { needed, affords }) => {
                    return Err(StoreError::Unaffordable { needed, affords });
                }
                Err(error) => match snapshot.unreadable(&error) {
                    Some(found) => return Err(unreadable(found)),
                    None => tracing::warn!(meta = %snapshot.meta(), %error, "a snapshot was refused: skipped"),
                },
            }
        }
        let inner = Mutex::new(inner);
        let (snapshot_lock, apply_lock) = Default::default();
        Ok(StateMachine(Arc::new(Core { inner, observer, snapshots, clock, snapshot_lock, apply_lock })))
    }

    /// The last entry applied.
    #[must_use]
    pub fn last_applied(&self) -> Option<LogId> {
        self.0.inner.lock().applied
    }

    /// The level in force, for those that write.
    #[must_use]
    pub fn level_in_force(&self) -> LevelInForce {
        self.0.inner.lock().level.clone()
    }

    /// Applies an entry that openraft does not know of: what is left of a log.
    pub(crate) fn replay(&self, entry: &Entry) {
        self.0.inner.lock().apply((self.0.clock)(), entry);
    }

    /// The last entry applied, and the membership then.
    pub(crate) fn position(&self) -> (Option<LogId>, StoredMembership) {
        let inner = self.0.inner.lock();
        (inner.applied, inner.membership.clone())
    }

    /// Calls `with` with the machine itself.
    pub(crate) fn with<T>(&self, with: impl FnOnce(&mut M) -> T) -> T {
        with(&mut self.0.inner.lock().state)
    }

    /// A handle that looks at the machine while openraft has it: at exactly one index.
    #[must_use]
    pub fn inspector(&self) -> Inspector<M> {
        Inspector(Arc::clone(&self.0))
    }

    /// A handle that compares and repairs the state while openraft has it.
    #[must_use]
    pub fn auditor(&self) -> Auditor<M> {
        Auditor::new(Arc::clone(&self.0))
    }

    /// A handle that plans the snapshots and the log while openraft has the machine.
    #[must_use]
    pub fn planner(&self) -> Planner<M> {
        Planner::new(Arc::clone(&self.0))
    }

    fn begin(&self, guard: OwnedMutexGuard<()>) -> Builder<M> {
        let mut inner = self.0.inner.lock();
        inner.last_begun = LastBegun { bytes: inner.log.total(), at: (self.0.clock)() };
        let begun = inner.begin();
        Builder {
            begun: Mutex::new(Some((begun, guard))),
            snapshots: self.0.snapshots.clone(),
            clock: Arc::clone(&self.0.clock),
        }
    }
}

/// Looks at a machine. What it does must be quick: applying waits meanwhile.
pub struct Inspector<M>(Arc<Core<M>>);

impl<M> Clone for Inspector<M> {
    fn clone(&self) -> Self {
        Inspector(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Inspector<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}

impl<M: ReplicatedState> Inspector<M> {
    /// Calls `look` with the machine and the last entry applied to it.
    pub fn look<T>(&self, look: impl FnOnce(&M, Option<LogId>) -> T) -> T {
        let inner = self.0.inner.lock();
        look(&inner.state, inner.applied)
    }
}

impl<M: ReplicatedState> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let inner = self.0.inner.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let (_lock, answers) = self.0.apply(&entry).await;
            let Some(answers) = answers else {
                // The snapshot that repaired the state included it. A caller that waits for the answer asks again.
                if let Some(responder) = responder {
                    responder.send(Response(Vec::new()));
                }
                continue;
            };
            // The turn lasts: the state is still that after this entry.
            let level = self.0.inner.lock().check_level();
            if let Err(unreadable) = level {
                // The log raised the level beyond what this program knows.
                self.0.observer.unreadable(&unreadable);
                return Err(unreadable.into());
            }
            if let EntryPayload::Normal(batch) = &entry.payload {
                self.0.observer.applied(id.index, batch, &answers);
            }
            self.0.observer.advanced(id.index);
            if let Some(responder) = responder {
                responder.send(Response(Applied::outcomes(&answers)));
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<M>> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        let guard = Arc::clone(&self.0.snapshot_lock).try_lock_owned().ok()?;
        Some(self.begin(guard))
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let guard = Arc::clone(&self.0.snapshot_lock).lock_owned().await;
        self.begin(guard)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        if snapshot.meta() != meta {
            let what = format!("the snapshot says {}, its sender says {meta}", snapshot.meta());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let _lock = self.0.apply_lock.lock().await;
        self.0.replace(snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(self.0.snapshots.current()?.map(|snapshot| Snapshot { meta: snapshot.meta().clone(), snapshot }))
    }
}

/// A snapshot that was begun, and the lock that keeps others from being begun.
type Locked<J> = (Begun<J>, OwnedMutexGuard<()>);

/// Builds one snapshot: of the state as it was when the builder was made.
pub struct Builder<M: ReplicatedState> {
    // A mutex only because openraft wants builders to be `Sync`, which jobs need not be.
    begun: Mutex<Option<Locked<M::Job>>>,
    snapshots: Snapshots,
    clock: Clock,
}

impl<M: ReplicatedState> fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl<M: ReplicatedState> RaftSnapshotBuilder<TypeConfig> for Builder<M> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let Some((Begun { level, meta, job }, guard)) = self.begun.get_mut().take() else {
            return Err(io::Error::other("this snapshot has been built already"));
        };
        let (snapshots, clock) = (self.snapshots.clone(), Arc::clone(&self.clock));
        let snapshot = tokio::task::spawn_blocking(move || {
            // Until it is done, not until somebody has waited for it.
            let _guard = guard;
            let metrics = snapshots.metrics().clone();
            snapshots.build(level, &meta, Pace::Bounded, |to| metrics.shard_locked(job.write(to, &clock)?))
        })
        .await
        .map_err(io::Error::other)??;
        Ok(Snapshot { meta: snapshot.meta().clone(), snapshot })
    }
}
