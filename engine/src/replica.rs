//! The replica: applies the replicated log to this member's engine, and makes and restores snapshots.
//!
//! What is replicated is the business of [`crate::replicated`]; here is what follows from it on this member.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::Engine;
use crate::event::{Event, Proposal};
use crate::id::MemberId;
#[cfg(any(test, feature = "testing"))]
use crate::id::SessionId;
use crate::level::Level;
pub use crate::replicated::{
    Applied, Assignment, AssignmentError, Batch, Command, CommandSize, Enact, ExpireIdle, ForbiddenSessions,
    InvalidReason, Join, LevelRaise, MemberChange, Outcome, PolicyChange, RestoreError, SettingKey, Settings,
    SettingsChange, SettingsRecord, SettingsRefusal, SettingsRevision, Withdraw,
};
use crate::replicated::{Effects, LocalContext, SnapshotContent, StateMachine};
use crate::table::copy_on_write::CopyOnWrite;
use crate::time::Time;
use crate::types::Wake;

mod restore;

pub use restore::{RestoredState, Restorer};

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
    sessions: Arc<CopyOnWrite>,
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        self.engine.table.drop_copy(&self.sessions);
    }
}

impl SnapshotJob {
    /// Writes the snapshot, a few sessions at a time, on another thread than the one that applies.
    ///
    /// # Errors
    /// The writer's, or [`io::ErrorKind::Interrupted`] if another snapshot was started.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        self.write_timed(to, &mut || Time::ZERO).map(|_| ())
    }

    /// As [`SnapshotJob::write`]. Returns the longest time for which a shard of the table was locked, by the clock `now`.
    ///
    /// # Errors
    /// As those of [`SnapshotJob::write`].
    pub fn write_timed(self, to: &mut dyn Write, now: &mut dyn FnMut() -> Time) -> io::Result<Duration> {
        let (mut number, mut longest) = (0_u8, Duration::ZERO);
        self.content.write(to, &mut |sessions| {
            let (more, locked) = self.engine.table.copy_piece(&self.sessions, number, sessions, now)?;
            longest = longest.max(locked);
            if more {
                return Ok(true);
            }
            let next = number.checked_add(1);
            number = next.unwrap_or_default();
            Ok(next.is_some())
        })?;
        Ok(longest)
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

    /// An order-independent hash of the whole replicated state, equal on all members at equal index.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.state.digest()
    }

    /// The level in force.
    #[must_use]
    pub fn level(&self) -> Level {
        self.state.cluster_state().level
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
    pub(crate) fn carry_out(&self, effects: Effects, wake: &mut dyn Wake) {
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
