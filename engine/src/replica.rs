//! The replica: applies the replicated log to this member's engine, and makes and restores snapshots.
//!
//! What is replicated is the business of [`crate::replicated`]; here is what follows from it on this member.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::engine::Engine;
use crate::event::{Event, Proposal};
use crate::id::MemberId;
#[cfg(any(test, feature = "testing"))]
use crate::id::SessionId;
pub use crate::replicated::{
    Applied, Assignment, AssignmentError, Batch, Command, CommandSize, Enact, ExpireIdle, ForbiddenSessions,
    InvalidReason, Join, LevelRaise, MemberChange, Outcome, PolicyChange, RestoreError, SettingKey, Settings,
    SettingsChange, SettingsRecord, SettingsRefusal, SettingsRevision, Withdraw,
};
use crate::replicated::{Effects, LocalContext, Replicated, SessionStore, SnapshotContent, StateMachine, read};
use crate::table::SHARDS;
use crate::table::copy_on_write::CopyOnWriteShards;
use crate::time::Time;
use crate::types::Wake;

/// The replicated state of one member: policy, members, outcomes, and the replicated parts of the sessions in its engine's
/// table.
///
/// One thread applies. Reading the table (listing, the packet path) goes on meanwhile.
pub struct Replica {
    engine: Arc<Engine>,
    state: StateMachine,
}

/// A snapshot in the making. It is exact at the index at which it was begun, though commands are applied meanwhile.
pub struct SnapshotJob {
    engine: Arc<Engine>,
    content: SnapshotContent,
    sessions: Arc<CopyOnWriteShards>,
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        self.sessions.end();
    }
}

impl SnapshotJob {
    /// Writes the snapshot, shard by shard, on another thread than the one that applies.
    ///
    /// # Errors
    /// The writer's, or [`io::ErrorKind::Interrupted`] if another snapshot was started.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        self.content.write(to, &mut |number| self.engine.table.copied_shard(&self.sessions, number))
    }
}

impl Replica {
    /// The state of a new cluster, which writes to `engine`'s table.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Replica {
        let state = StateMachine::new();
        engine.publish(state.cluster_state().clone());
        Replica { engine, state }
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Applies a batch, and returns the effect of each command. Deterministic: `now` is used only for local timers.
    pub fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied> {
        if let Err(refused) = self.state.begin_batch(batch) {
            return vec![Applied::unchanged(refused); batch.commands.len()];
        }
        let mut all = Vec::with_capacity(batch.commands.len());
        for at in 0..batch.commands.len() {
            let timeouts = self.engine.timeouts();
            let local = LocalContext { now, timeouts: &timeouts };
            let (applied, effects) = self.state.apply(&self.engine.table, local, batch, at);
            self.engine.carry_out(effects, wake);
            all.push(applied);
        }
        all
    }

    /// Whether this batch can be applied now. If not, it puts a policy in force that this member has yet to compile: nothing
    /// may be applied until it has ([`crate::Engine::policy_compiled`]), or until no packet passes here any longer
    /// ([`crate::Engine::set_packets_pass`]).
    #[must_use]
    pub fn is_ready(&self, batch: &Batch) -> bool {
        !self.state.enacted_by(batch).is_some_and(|candidate| self.engine.waits_for(candidate))
    }

    /// Begins a snapshot of the state as it is now. At most one at a time; a second one ends the first, whose `write` fails.
    pub fn begin_snapshot(&mut self) -> SnapshotJob {
        SnapshotJob {
            engine: self.engine.clone(),
            content: self.state.snapshot(),
            sessions: self.engine.table.begin_copy(),
        }
    }

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then as before.
    pub fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        let mut restored = read(snapshot, self.engine.config.affordable_sessions)?;
        // Nothing can fail from here on.
        let table = &self.engine.table;
        self.engine.install_policy(restored.cluster_state().clone(), restored.generation());
        self.engine.forget_old_candidate();
        let timeouts = self.engine.timeouts();
        let mut shards: Vec<Vec<Replicated>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for session in std::mem::take(&mut restored.sessions) {
            shards[usize::from(table.shard_number(session.original()))].push(session);
        }
        for (number, sessions) in (0..=u8::MAX).zip(shards) {
            let mut effects = Effects::default();
            table.replace_shard(LocalContext { now, timeouts: &timeouts }, number, sessions, &mut effects);
            self.engine.carry_out(effects, wake);
        }
        let effects = self.state.install(restored);
        self.engine.carry_out(effects, wake);
        Ok(())
    }

    /// An order-independent hash of the whole replicated state, equal on all members at equal index.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.state.digest()
    }

    /// Makes this the state of a new cluster with one member: the others are removed, their ids are never used again, and
    /// all join tokens are void. For a state that no other member has.
    pub fn force_new_cluster(&mut self, cluster_id: &str, member: MemberId) {
        let mut effects = Effects::default();
        self.state.force_new_cluster(cluster_id, member, &mut effects);
        self.engine.carry_out(effects, &mut ());
    }
}

impl Engine {
    /// Carries out what a command leads to on this member.
    fn carry_out(&self, effects: Effects, wake: &mut dyn Wake) {
        let Effects { wakes, closes, enacted, cluster_state, resume_epoch } = effects;
        // First: rules are about the numbers of zones, and who reads a resume epoch must see that its member has come.
        if let Some(cluster) = cluster_state {
            match enacted {
                Some(enacted) => self.enact_policy(enacted, || self.publish(*cluster)),
                None => self.publish(*cluster),
            }
            self.forget_old_candidate();
        }
        if let Some(epoch) = resume_epoch {
            self.resume_epoch.store(epoch, Ordering::Release);
        }
        if !closes.is_empty() {
            let closes = closes.into_iter().map(|close| Event::Propose(Proposal::Close(close)));
            self.deferred.lock().extend(closes);
        }
        for (workers, key) in wakes {
            wake.wake(workers, key);
        }
    }

    /// Whether the sessions of one of the table's 256 shards are those that commands and snapshots have put there.
    ///
    /// Digests of members differ if commands had different effects. What changes a table without a command (a defect, memory
    /// that fails) does not change the digest, which is kept incrementally; so it is compared with the table itself. That
    /// takes some 100 ns a session, for which packets of these sessions may wait.
    #[must_use]
    pub fn scrub(&self, shard: u8) -> bool {
        self.table.is_sound(shard)
    }

    /// Changes a session as failing memory would: its rule, and no digest. False if there is no such session.
    #[cfg(any(test, feature = "testing"))]
    pub fn damage(&self, id: SessionId) -> bool {
        self.table.damage(id)
    }
}

#[cfg(test)]
mod tests;
