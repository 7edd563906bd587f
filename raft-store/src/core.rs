//! The replicated state, and what the state machine and its auditor have in common.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use openraft::EntryPayload;
use palisade_engine::replica::{Applied, Batch, Replica, RestoreError, RestoredState, Restorer, SnapshotJob};
use palisade_engine::{Level, Time, Wake};
use parking_lot::Mutex;

use crate::batch::LevelInForce;
use crate::clock::Clock;
use crate::digests::Digests;
use crate::log_meter::LogMeter;
use crate::planner::LastBegun;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership};
use crate::unreadable::{Thing, Unknown, Unreadable};

/// How often a state that is not ready for the next entry is asked again.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What is replicated: [`Replica`], or a fake of it in tests and simulation.
pub trait ReplicatedState: Send + 'static {
    /// A snapshot in the making.
    type Job: Job;
    /// What reads snapshots for it.
    type Restorer: SnapshotReader;

    /// Applies a batch; one answer a command. Deterministic: `now` is for local timers only.
    fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied>;

    /// Whether a batch can be applied now. If not, it is asked again: what a batch puts in force may have to be made first. The
    /// answer has no influence on what the batch does.
    fn is_ready(&self, batch: &Batch) -> bool {
        let _ = batch;
        true
    }

    /// Begins a snapshot of the state as it is now.
    fn begin_snapshot(&mut self) -> Self::Job;

    /// A digest of the whole state: equal on all members that have applied the same. Quick, as it is asked for after
    /// every entry.
    fn digest(&self) -> u64;

    /// The level in force.
    fn level(&self) -> Level {
        Level::FIRST
    }

    /// What reads snapshots, while this goes on as it is.
    fn restorer(&self) -> Self::Restorer;

    /// Puts the next part of a snapshot's state in the place of this one: some milliseconds. Returns whether there is more.
    /// Nothing is applied in between, and nothing can fail.
    fn install(&mut self, now: Time, restored: &mut Restored<Self>, wake: &mut dyn Wake) -> bool;
}

/// What a state's [`ReplicatedState::Restorer`] reads.
pub type Restored<M> = <<M as ReplicatedState>::Restorer as SnapshotReader>::Restored;

/// Reads snapshots beside the state.
pub trait SnapshotReader: Send + 'static {
    /// The state of a snapshot.
    type Restored: Send + 'static;

    /// Reads a snapshot. It may take long.
    ///
    /// # Errors
    /// [`RestoreError`].
    fn read(&self, now: Time, snapshot: &mut dyn Read) -> Result<Self::Restored, RestoreError>;
}

/// A snapshot in the making: exact at the moment it was begun, though `apply` goes on.
pub trait Job: Send + 'static {
    /// Writes it. Returns for how long it kept packets from their sessions at a time, at most.
    ///
    /// # Errors
    /// The writer's.
    fn write(self, to: &mut dyn Write, clock: &Clock) -> io::Result<Duration>;
}

impl ReplicatedState for Replica {
    type Job = SnapshotJob;
    type Restorer = Restorer;

    fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied> {
        Replica::apply(self, now, batch, wake)
    }

    fn is_ready(&self, batch: &Batch) -> bool {
        Replica::is_ready(self, batch)
    }

    fn begin_snapshot(&mut self) -> SnapshotJob {
        Replica::begin_snapshot(self)
    }

    fn digest(&self) -> u64 {
        Replica::digest(self)
    }

    fn level(&self) -> Level {
        Replica::level(self)
    }

    fn restorer(&self) -> Restorer {
        Replica::restorer(self)
    }

    fn install(&mut self, now: Time, restored: &mut RestoredState, wake: &mut dyn Wake) -> bool {
        Replica::install(self, now, restored, wake)
    }
}

impl SnapshotReader for Restorer {
    type Restored = RestoredState;

    fn read(&self, now: Time, snapshot: &mut dyn Read) -> Result<RestoredState, RestoreError> {
        Restorer::read(self, now, snapshot)
    }
}

impl Job for SnapshotJob {
    fn write(self, to: &mut dyn Write, clock: &Clock) -> io::Result<Duration> {
        SnapshotJob::write_timed(self, to, &mut || clock())
    }
}

/// A callback for what has been applied, in order, on the task that applies: it must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A batch was applied; one answer a command.
    fn applied(&self, index: u64, batch: &Batch, answers: &[Applied]);

    /// Everything up to `index` has been applied: after every entry, also those that are not batches, and after a
    /// snapshot was installed.
    fn advanced(&self, index: u64) {
        let _ = index;
    }

    /// An entry or a snapshot cannot be applied, because this program does not know all that is in it. The member is to stop.
    fn unreadable(&self, unreadable: &Unreadable) {
        let _ = unreadable;
    }

    /// Applying an entry took this long: nothing else could look at the state meanwhile.
    fn took(&self, time: Duration) {
        let _ = time;
    }

    /// Applying waits for the member to be ready for this batch, for the first time or still.
    fn waits(&self, batch: &Batch) {
        let _ = batch;
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
    pub state: M,
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
    pub(crate) state: M,
    pub(crate) wake: Box<dyn Wake + Send>,
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) digests: Digests,
    pub(crate) level: LevelInForce,
    /// The entries that were applied, in bytes.
    pub(crate) log: LogMeter,
    /// The last snapshot.
    pub(crate) last_begun: LastBegun,
}

impl<M: ReplicatedState> Inner<M> {
    /// Installs the next part of a snapshot that was read. Returns whether there is more; with the last part the position is
    /// the snapshot's.
    pub(crate) fn install(&mut self, now: Time, snapshot: &SnapshotFile, restored: &mut Restored<M>) -> bool {
        if self.state.install(now, restored, &mut *self.wake) {
            return true;
        }
        self.applied = snapshot.meta().last_log_id;
        self.membership = snapshot.meta().last_membership.clone();
        // What it was before says nothing about what it is now.
        self.digests = Digests::default();
        self.digested();
        self.log = LogMeter::starting_after(self.applied.map_or(0, |id| id.index));
        self.last_begun = LastBegun { bytes: 0, at: now };
        false
    }

    /// The state has changed.
    fn digested(&mut self) {
        self.level.set(self.state.level());
        if let Some(id) = self.applied {
            self.digests.add(id.index, self.state.digest());
        }
    }

    pub(crate) fn is_ready(&self, entry: &Entry) -> bool {
        match &entry.payload {
            EntryPayload::Normal(batch) => self.state.is_ready(batch),
            EntryPayload::Blank | EntryPayload::Membership(_) => true,
        }
    }

    pub(crate) fn apply(&mut self, now: Time, entry: &Entry) -> Vec<Applied> {
        let id = entry.log_id;
        let answers = match &entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(batch) => self.state.apply(now, batch, &mut *self.wake),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership.clone());
                Vec::new()
            }
        };
        self.applied = Some(id);
        self.log.add(entry);
        self.digested();
        answers
    }

    /// Fails if the level in force is none that this program knows: it was applied, but nothing after it can be trusted.
    pub(crate) fn check_level(&self) -> Result<(), Unreadable> {
        let thing = Thing::Entry(self.applied.as_ref().map_or(0, |id| id.index));
        let checked = self.state.level().check();
        checked.map(drop).map_err(|unknown| Unreadable { thing, unknown: Unknown::Level(unknown.level) })
    }

    /// Begins a snapshot, with what it will cover.
    pub(crate) fn begin(&mut self) -> Begun<M::Job> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Begun { level: self.state.level(), meta, job: self.state.begin_snapshot() }
    }
}

/// A snapshot in the making, what it will cover, and the level that it is written at.
pub(crate) struct Begun<J> {
    pub(crate) level: Level,
    pub(crate) meta: SnapshotMeta,
    pub(crate) job: J,
}

/// What a state machine and its auditor have in common.
pub(crate) struct Core<M> {
    pub(crate) inner: Mutex<Inner<M>>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) snapshots: Snapshots,
    pub(crate) clock: Clock,
    /// Held while a snapshot is built: one at a time, and none while one is installed.
    pub(crate) snapshot_lock: Arc<tokio::sync::Mutex<()>>,
    /// Held while an entry is applied, or the state replaced.
    pub(crate) apply_lock: Arc<tokio::sync::Mutex<()>>,
}

impl<M: ReplicatedState> Core<M> {
    /// Tells the observer if an error says that something cannot be read.
    pub(crate) fn unreadable(&self, error: &io::Error) {
        if let Some(unreadable) = Unreadable::find(error) {
            self.observer.unreadable(unreadable);
        }
    }

    /// Applies an entry as soon as the state is ready for it. `None`: it was applied before. The turn lasts until the guard is
    /// dropped; while the state is not ready, others have it.
    pub(crate) async fn apply(&self, entry: &Entry) -> (tokio::sync::MutexGuard<'_, ()>, Option<Vec<Applied>>) {
        loop {
            let turn = self.apply_lock.lock().await;
            {
                let mut inner = self.inner.lock();
                if inner.applied.is_some_and(|applied| applied.index >= entry.log_id.index) {
                    return (turn, None);
                }
                if inner.is_ready(entry) {
                    let begin = (self.clock)();
                    let answers = inner.apply(begin, entry);
                    self.observer.took((self.clock)().since(begin));
                    return (turn, Some(answers));
                }
            }
            drop(turn);
            if let EntryPayload::Normal(batch) = &entry.payload {
                self.observer.waits(batch);
            }
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
    }

    /// Replaces the state by a snapshot's, and keeps that. The caller has the turn.
    pub(crate) async fn replace(self: &Arc<Self>, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let _guard = self.snapshot_lock.lock().await;
        let (core, last) = (Arc::clone(self), snapshot.meta().last_log_id);
        let replaced = tokio::task::spawn_blocking(move || {
            let now = (core.clock)();
            // Beside the state, which others go on to look at meanwhile.
            let reader = core.inner.lock().state.restorer();
            let restored = reader.read(now, &mut snapshot.body());
            let mut restored = restored.map_err(|error| match (snapshot.unreadable(&error), error) {
                (Some(unreadable), _) => unreadable.into(),
                (None, RestoreError::Io(error)) => error,
                (None, error) => io::Error::new(io::ErrorKind::InvalidData, error),
            })?;
            // Nothing can fail from here on. The lock is given back after each part.
            while core.inner.lock().install(now, &snapshot, &mut restored) {}
            core.snapshots.adopt(snapshot)
        })
        .await
        .map_err(io::Error::other)?;
        replaced.inspect_err(|error| self.unreadable(error))?;
        if let Some(id) = last {
            self.observer.installed(id.index);
            self.observer.advanced(id.index);
        }
        Ok(())
    }
}
