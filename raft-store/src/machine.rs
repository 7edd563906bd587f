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

use crate::audit::{Auditor, Digests};
use crate::error::StoreError;
use crate::flush::Clock;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::types::{Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig};

/// What is replicated: [`Replica`], or a fake of it in tests and simulation.
pub trait Machine: Send + 'static {
    /// A snapshot in the making.
    type Job: Job;

    /// Applies a batch; one answer a command. Deterministic: `now` is for local timers only.
    fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied>;

    /// Begins a snapshot of the state as it is now.
    fn begin_snapshot(&mut self) -> Self::Job;

    /// A digest of the whole state: equal on all members that have applied the same. Quick, as it is asked for after
    /// every entry.
    fn digest(&self) -> u64;

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

    fn digest(&self) -> u64 {
        Replica::digest(self)
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

pub(crate) struct Inner<M> {
    pub(crate) machine: M,
    wake: Box<dyn Wake + Send>,
    pub(crate) applied: Option<LogId>,
    membership: StoredMembership,
    pub(crate) digests: Digests,
}

impl<M: Machine> Inner<M> {
    fn restore(&mut self, now: Time, snapshot: &SnapshotFile) -> Result<(), RestoreError> {
        self.machine.restore(now, &mut snapshot.body(), &mut *self.wake)?;
        self.applied = snapshot.meta().last_log_id;
        self.membership = snapshot.meta().last_membership.clone();
        // What it was before says nothing about what it is now.
        self.digests = Digests::default();
        self.digested();
        Ok(())
    }

    fn digested(&mut self) {
        if let Some(id) = self.applied {
            self.digests.add(id.index, self.machine.digest());
        }
    }

    fn apply(&mut self, now: Time, entry: &Entry) -> Vec<Applied> {
        let id = entry.log_id;
        let answers = match &entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(batch) => self.machine.apply(now, batch, &mut *self.wake),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership.clone());
                Vec::new()
            }
        };
        self.applied = Some(id);
        self.digested();
        answers
    }

    /// Begins a snapshot, with what it will cover.
    pub(crate) fn begin(&mut self) -> (SnapshotMeta, M::Job) {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        (meta, self.machine.begin_snapshot())
    }
}

/// What a state machine and its auditor have in common.
pub(crate) struct Core<M> {
    pub(crate) inner: Mutex<Inner<M>>,
    observer: Arc<dyn Observer>,
    pub(crate) snapshots: Snapshots,
    clock: Clock,
    /// Held while a snapshot is built: one at a time, and none while one is installed.
    pub(crate) building: Arc<tokio::sync::Mutex<()>>,
    /// Held while an entry is applied, or the state replaced.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
}

impl<M: Machine> Core<M> {
    /// Replaces the state by a snapshot's, and keeps that. The caller has the turn.
    pub(crate) async fn replace(self: &Arc<Self>, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let _guard = self.building.lock().await;
        let (core, last) = (Arc::clone(self), snapshot.meta().last_log_id);
        tokio::task::spawn_blocking(move || {
            core.inner.lock().restore((core.clock)(), &snapshot).map_err(|error| match error {
                RestoreError::Io(error) => error,
                error @ (RestoreError::Damaged(_) | RestoreError::Policy(_)) => {
                    io::Error::new(io::ErrorKind::InvalidData, error)
                }
            })?;
            core.snapshots.adopt(snapshot)
        })
        .await
        .map_err(io::Error::other)??;
        if let Some(id) = last {
            self.observer.installed(id.index);
            self.observer.advanced(id.index);
        }
        Ok(())
    }
}

/// openraft's state machine.
pub struct StateMachine<M>(Arc<Core<M>>);

impl<M> fmt::Debug for StateMachine<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine").field("applied", &self.0.inner.lock().applied).finish_non_exhaustive()
    }
}

impl<M: Machine> StateMachine<M> {
    /// A state machine with the state of the newest good one of `snapshots`. Blocks for as long as that takes.
    ///
    /// # Errors
    /// If the snapshots can not be read.
    pub fn restore(setup: Setup<M>, snapshots: Snapshots, clock: Clock) -> Result<StateMachine<M>, StoreError> {
        let Setup { machine, wake, observer } = setup;
        let membership = StoredMembership::default();
        let mut inner = Inner { machine, wake, applied: None, membership, digests: Digests::default() };
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
        let inner = Mutex::new(inner);
        let (building, turn) = Default::default();
        Ok(StateMachine(Arc::new(Core { inner, observer, snapshots, clock, building, turn })))
    }

    /// The last entry applied.
    #[must_use]
    pub fn last_applied(&self) -> Option<LogId> {
        self.0.inner.lock().applied
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
        with(&mut self.0.inner.lock().machine)
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

    fn begin(&self, guard: OwnedMutexGuard<()>) -> Builder<M> {
        let (meta, job) = self.0.inner.lock().begin();
        Builder { begun: Mutex::new(Some((meta, job, guard))), snapshots: self.0.snapshots.clone() }
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

impl<M: Machine> Inspector<M> {
    /// Calls `look` with the machine and the last entry applied to it.
    pub fn look<T>(&self, look: impl FnOnce(&M, Option<LogId>) -> T) -> T {
        let inner = self.0.inner.lock();
        look(&inner.machine, inner.applied)
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
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
            let _turn = self.0.turn.lock().await;
            let answers = {
                let mut inner = self.0.inner.lock();
                if inner.applied.is_some_and(|applied| applied.index >= id.index) {
                    // The snapshot that repaired the state had it. Whoever waits for the answer asks again.
                    if let Some(responder) = responder {
                        responder.send(Response(Vec::new()));
                    }
                    continue;
                }
                inner.apply((self.0.clock)(), &entry)
            };
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
        if self.0.snapshots.is_lent() {
            tracing::debug!("no snapshot is built while one is being sent");
            return None;
        }
        let guard = Arc::clone(&self.0.building).try_lock_owned().ok()?;
        Some(self.begin(guard))
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let guard = Arc::clone(&self.0.building).lock_owned().await;
        self.begin(guard)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        if snapshot.meta() != meta {
            let what = format!("the snapshot says {}, its sender says {meta}", snapshot.meta());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let _turn = self.0.turn.lock().await;
        self.0.replace(snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(self.0.snapshots.current()?.map(|snapshot| Snapshot { meta: snapshot.meta().clone(), snapshot }))
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
