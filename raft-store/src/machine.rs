//! The state machine: openraft's view of the replicated state.
//!
//! The state itself is in memory. After a start it is that of the newest good snapshot, and openraft replays the log
//! from there up to the commit index that was saved.
//!
//! `apply` is called by one task. A snapshot fixes the machine's state between two applies (under the lock, with the
//! log id and membership of that moment) and is written by another thread while `apply` goes on.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use palisade_engine::replica::{Applied, Batch, Replica, RestoreError, SnapshotJob};
use palisade_engine::{Time, Wake};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::error::StoreError;
use crate::flush::Clock;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::types::{LogId, Response, SnapshotMeta, StoredMembership, TypeConfig};

/// What is replicated: [`Replica`], or a fake of it in tests and simulation.
pub trait Machine: Send + 'static {
    /// A snapshot in the making.
    type Job: Job;

    /// Applies a batch; one answer a command. Deterministic: `now` is for local timers only.
    fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied>;

    /// Begins a snapshot of the state as it is now.
    fn begin_snapshot(&mut self) -> Self::Job;

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then as before.
    fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError>;
}

/// A snapshot in the making: exact at the moment it was begun, though `apply` goes on.
pub trait Job: Send + 'static {
    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    fn write(self, to: &mut dyn Write) -> io::Result<()>;
}

impl Machine for Replica {
    type Job = SnapshotJob;

    fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied> {
        Replica::apply(self, now, batch, wake)
    }

    fn begin_snapshot(&mut self) -> SnapshotJob {
        Replica::begin_snapshot(self)
    }

    fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        Replica::restore(self, now, snapshot, wake)
    }
}

impl Job for SnapshotJob {
    fn write(self, to: &mut dyn Write) -> io::Result<()> {
        SnapshotJob::write(self, to)
    }
}

/// Told what has been applied, in order, on the task that applies: it must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A batch was applied; one answer a command.
    fn applied(&self, index: u64, batch: &Batch, answers: &[Applied]);

    /// Everything up to `index` has been applied: after every entry, also those that are not batches, and after a
    /// snapshot was installed.
    fn advanced(&self, index: u64) {
        let _ = index;
    }

    /// The state was replaced by a snapshot that reaches `index`: what is in it was not told one by one.
    fn installed(&self, index: u64) {
        let _ = index;
    }
}

impl Observer for () {
    fn applied(&self, _: u64, _: &Batch, _: &[Applied]) {}
}

/// What a state machine consists of.
pub struct Setup<M> {
    /// The state: empty, as of a new cluster.
    pub machine: M,
    /// Told which held packets may go on.
    pub wake: Box<dyn Wake + Send>,
    /// Told what was applied.
    pub observer: Arc<dyn Observer>,
}

impl<M> fmt::Debug for Setup<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

struct Inner<M> {
    machine: M,
    wake: Box<dyn Wake + Send>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl<M: Machine> Inner<M> {
    fn restore(&mut self, now: Time, snapshot: &SnapshotFile) -> Result<(), RestoreError> {
        self.machine.restore(now, &mut snapshot.body(), &mut *self.wake)?;
        self.applied = snapshot.meta().last_log_id;
        self.membership = snapshot.meta().last_membership.clone();
        Ok(())
    }
}

/// openraft's state machine.
pub struct StateMachine<M> {
    inner: Arc<Mutex<Inner<M>>>,
    observer: Arc<dyn Observer>,
    snapshots: Snapshots,
    clock: Clock,
    /// Held while a snapshot is built: one at a time, and none while one is installed.
    building: Arc<tokio::sync::Mutex<()>>,
}

impl<M> fmt::Debug for StateMachine<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine").field("applied", &self.inner.lock().applied).finish_non_exhaustive()
    }
}

impl<M: Machine> StateMachine<M> {
    /// A state machine with the state of the newest good one of `snapshots`. Blocks for as long as that takes.
    ///
    /// # Errors
    /// If the snapshots can not be read.
    pub fn restore(setup: Setup<M>, snapshots: Snapshots, clock: Clock) -> Result<StateMachine<M>, StoreError> {
        let Setup { machine, wake, observer } = setup;
        let mut inner = Inner { machine, wake, applied: None, membership: StoredMembership::default() };
        let good = snapshots.good().map_err(StoreError::io("read", std::path::Path::new("the snapshots")))?;
        for snapshot in good {
            match inner.restore(clock(), &snapshot) {
                Ok(()) => {
                    snapshots.set_current(&snapshot);
                    if let Some(id) = inner.applied {
                        observer.installed(id.index);
                        observer.advanced(id.index);
                    }
                    break;
                }
                Err(error) => tracing::warn!(meta = %snapshot.meta(), %error, "a snapshot was refused: skipped"),
            }
        }
        let inner = Arc::new(Mutex::new(inner));
        Ok(StateMachine { inner, observer, snapshots, clock, building: Arc::default() })
    }

    /// The last entry applied.
    #[must_use]
    pub fn last_applied(&self) -> Option<LogId> {
        self.inner.lock().applied
    }

    /// A handle that looks at the machine while openraft has it: at exactly one index.
    #[must_use]
    pub fn inspector(&self) -> Inspector<M> {
        Inspector(Arc::clone(&self.inner))
    }

    fn begin(&self, guard: OwnedMutexGuard<()>) -> Builder<M> {
        let mut inner = self.inner.lock();
        let meta = SnapshotMeta { last_log_id: inner.applied, last_membership: inner.membership.clone() };
        let job = inner.machine.begin_snapshot();
        Builder { begun: Mutex::new(Some((meta, job, guard))), snapshots: self.snapshots.clone() }
    }
}

/// Looks at a machine. What it does must be quick: applying waits meanwhile.
pub struct Inspector<M>(Arc<Mutex<Inner<M>>>);

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

impl<M: Machine> Inspector<M> {
    /// Calls `look` with the machine and the last entry applied to it.
    pub fn look<T>(&self, look: impl FnOnce(&M, Option<LogId>) -> T) -> T {
        let inner = self.0.lock();
        look(&inner.machine, inner.applied)
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let inner = self.inner.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let answers = {
                let mut inner = self.inner.lock();
                let inner = &mut *inner;
                let answers = match &entry.payload {
                    EntryPayload::Blank => Vec::new(),
                    EntryPayload::Normal(batch) => inner.machine.apply((self.clock)(), batch, &mut *inner.wake),
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(id), membership.clone());
                        Vec::new()
                    }
                };
                inner.applied = Some(id);
                answers
            };
            if let EntryPayload::Normal(batch) = &entry.payload {
                self.observer.applied(id.index, batch, &answers);
            }
            self.observer.advanced(id.index);
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
        if self.snapshots.is_lent() {
            tracing::debug!("no snapshot is built while one is being sent");
            return None;
        }
        let guard = Arc::clone(&self.building).try_lock_owned().ok()?;
        Some(self.begin(guard))
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let guard = Arc::clone(&self.building).lock_owned().await;
        self.begin(guard)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        if snapshot.meta() != meta {
            let what = format!("the snapshot says {}, its sender says {meta}", snapshot.meta());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let _guard = self.building.lock().await;
        let (inner, snapshots, now) = (Arc::clone(&self.inner), self.snapshots.clone(), (self.clock)());
        tokio::task::spawn_blocking(move || {
            inner.lock().restore(now, &snapshot).map_err(|error| match error {
                RestoreError::Io(error) => error,
                error @ RestoreError::Damaged(_) => io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
            snapshots.adopt(snapshot)
        })
        .await
        .map_err(io::Error::other)??;
        if let Some(id) = meta.last_log_id {
            self.observer.installed(id.index);
            self.observer.advanced(id.index);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(self.snapshots.current()?.map(|snapshot| Snapshot { meta: snapshot.meta().clone(), snapshot }))
    }
}

/// What it will cover, its content, and the turn to build.
type Begun<J> = (SnapshotMeta, J, OwnedMutexGuard<()>);

/// Builds one snapshot: of the state as it was when the builder was made.
pub struct Builder<M: Machine> {
    // A mutex only because openraft wants builders to be `Sync`, which jobs need not be.
    begun: Mutex<Option<Begun<M::Job>>>,
    snapshots: Snapshots,
}

impl<M: Machine> fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl<M: Machine> RaftSnapshotBuilder<TypeConfig> for Builder<M> {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let Some((meta, job, guard)) = self.begun.get_mut().take() else {
            return Err(io::Error::other("this snapshot has been built already"));
        };
        let snapshots = self.snapshots.clone();
        let snapshot = tokio::task::spawn_blocking(move || {
            // Until it is done, not until somebody has waited for it.
            let _guard = guard;
            snapshots.build(&meta, |to| job.write(to))
        })
        .await
        .map_err(io::Error::other)??;
        Ok(Snapshot { meta: snapshot.meta().clone(), snapshot })
    }
}
