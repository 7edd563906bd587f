//! The replicated state and the commands that change it.
//!
//! What all members have in common is the [`ClusterState`] (members, policies, zones), the sessions of the table, and what is
//! needed to make every command count once: each proposer's outcomes, and the ids of sessions removed lately. `apply` is
//! the only writer of all that; it looks at nothing but the state and the command.

mod apply;
mod command;
mod register;
mod scrub;
mod snapshot;
mod window;

pub use command::{Applied, Batch, Command, ExpireIdle, MemberChange, Outcome, PolicyChange};
pub use snapshot::SnapshotJob;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use crate::cluster_state::{ClusterState, MemberInfo};
use crate::digest::{Kind, element};
use crate::engine::Engine;
use crate::id::{Generation, MemberId, SessionId};
use crate::time::Time;
use crate::types::Wake;
use snapshot::Copies;
use window::{Removed, Windows};

/// The replicated state: policy, members, outcomes, and the replicated part of the session table.
///
/// One thread applies. Reading the table (listing, the packet path) goes on meanwhile.
pub struct Replica {
    engine: Arc<Engine>,
    settings: Settings,
    windows: Windows,
    removed: Removed,
    /// Sessions in the table.
    sessions: usize,
    /// Sum of the sessions' hashes.
    digest: u64,
    /// Hash of the settings.
    settings_digest: u64,
    /// How often members began to pass packets (again).
    resumes: u64,
    /// The sessions that the command being applied has ended.
    ended: Vec<SessionId>,
    /// The snapshot in the making, if any.
    copies: Option<Arc<Copies>>,
    /// Snapshots begun.
    snapshots: u64,
}

/// The part of the state that changes by an administrator's hand only.
#[derive(Clone, Default)]
struct Settings {
    cluster: ClusterState,
    generation: Generation,
    /// Ids are never used again.
    next_member: u64,
}

/// Why a snapshot was refused. The state is then as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It could not be read.
    #[error("the snapshot can not be read")]
    Io(#[from] io::Error),
    /// It is not what it should be.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
}

impl Replica {
    /// The state of a new cluster, writing to `engine`'s table.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Replica {
        let cluster = ClusterState { zones: vec![String::new()], ..ClusterState::default() };
        let mut replica = Replica {
            engine,
            settings: Settings { cluster, generation: Generation(0), next_member: 1 },
            windows: Windows::default(),
            removed: Removed::default(),
            sessions: 0,
            digest: 0,
            settings_digest: 0,
            resumes: 0,
            ended: Vec::new(),
            copies: None,
            snapshots: 0,
        };
        replica.settings_changed();
        replica
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Applies a batch; one answer a command. Deterministic: `now` is used only for local timers.
    pub fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Applied> {
        self.apply_batch(now, batch, wake)
    }

    /// Begins a snapshot of the state as it is now. At most one at a time; a second one ends the first, whose `write` fails.
    pub fn begin_snapshot(&mut self) -> SnapshotJob {
        self.begin()
    }

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then as before.
    pub fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        self.replace(now, snapshot, wake)
    }

    /// An order-independent hash of the whole replicated state, equal on all members at equal index.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let resumes = resumes_digest(self.resumes);
        let parts = [self.digest, self.settings_digest, self.windows.digest(), self.removed.digest(), resumes];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// Makes the engine, and the digest, know changed settings.
    fn settings_changed(&mut self) {
        self.settings_digest = self.settings.digest();
        self.engine.publish(self.settings.cluster.clone());
    }
}

/// Zero for none, as in a cluster of a version that did not count them.
fn resumes_digest(resumes: u64) -> u64 {
    if resumes == 0 { 0 } else { element(Kind::Resumes, &resumes) }
}

impl Settings {
    fn digest(&self) -> u64 {
        let cluster = &self.cluster;
        let policies: BTreeMap<_, _> =
            cluster.policies.iter().map(|p| (p.generation, (&p.text, &p.author, p.unix_ms))).collect();
        let members: &BTreeMap<MemberId, MemberInfo> = &cluster.members;
        element(
            Kind::Settings,
            &(
                &cluster.cluster_id,
                members,
                &cluster.tokens,
                policies,
                &cluster.zones,
                self.generation,
                self.next_member,
            ),
        )
    }
}

#[cfg(test)]
mod tests;
