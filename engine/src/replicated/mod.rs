//! The replicated state, and the commands that change it.
//!
//! All members have in common: the [`ClusterState`] (members, policies, zones), the replicated parts of the sessions, and
//! what makes every command take effect once (outcomes by proposer, ids of removed sessions). [`StateMachine`] changes it. It
//! looks at nothing but the state and the command; it keeps the sessions in a [`SessionStore`], and returns what follows on
//! this member alone as [`Effects`].

mod apply;
mod batch;
mod command;
mod dedup;
mod invalid;
mod levels;
mod members;
#[cfg(feature = "next-level")]
pub(crate) mod next_level;
mod policies;
mod register;
mod session;
mod settings;
mod snapshot;
mod store;
mod zones;

use crate::cluster_state::ClusterState;
use crate::digest::{Kind, element};
use crate::id::Generation;
pub use command::{
    Applied, Batch, Command, CommandSize, Enact, ExpireIdle, ForbiddenSessions, Join, MemberChange, Outcome,
    PolicyChange, Withdraw,
};
use dedup::{DedupTable, Tombstones};
pub use invalid::InvalidReason;
use register::Register;
pub(crate) use session::{Replicated, SessionRecord, WallTenths};
pub use settings::{
    Assignment, AssignmentError, LevelRaise, SettingKey, Settings, SettingsChange, SettingsRecord, SettingsRefusal,
    SettingsRevision,
};
pub use snapshot::RestoreError;
pub(crate) use snapshot::{Restored, SnapshotContent, read};
pub(crate) use store::{Admission, Effects, LocalContext, Refusal, Removal, RestoredSessions, SessionStore};

/// The replicated state machine, without the sessions themselves.
pub(crate) struct StateMachine {
    register: Register,
    dedup: DedupTable,
    tombstones: Tombstones,
    /// Number of sessions in the store.
    sessions: usize,
    /// Sum of the sessions' digests.
    sessions_digest: u64,
    register_digest: u64,
    /// How many times members began to forward packets (again).
    resume_epoch: u64,
}

impl StateMachine {
    /// The state of a new cluster.
    pub(crate) fn new() -> StateMachine {
        let cluster = ClusterState {
            zones: vec![String::new()],
            next_member: 1,
            settings: SettingsRecord::new(),
            ..ClusterState::default()
        };
        let register = Register { cluster, generation: Generation(0) };
        StateMachine {
            register_digest: register.digest(),
            register,
            dedup: DedupTable::default(),
            tombstones: Tombstones::default(),
            sessions: 0,
            sessions_digest: 0,
            resume_epoch: 0,
        }
    }

    pub(crate) fn cluster_state(&self) -> &ClusterState {
        &self.register.cluster
    }

    /// An order-independent hash of the whole replicated state.
    pub(crate) fn digest(&self) -> u64 {
        sum([
            self.sessions_digest,
            self.register_digest,
            self.dedup.digest(),
            self.tombstones.digest(),
            resume_digest(self.resume_epoch),
        ])
    }

    #[cfg(test)]
    pub(crate) fn sessions(&self) -> usize {
        self.sessions
    }

    #[cfg(test)]
    pub(crate) fn register_digest(&self) -> u64 {
        self.register_digest
    }

    #[cfg(test)]
    pub(crate) fn sessions_digest(&self) -> u64 {
        self.sessions_digest
    }

    /// Makes the digest, and the engine, know changed register.
    fn register_changed(&mut self, effects: &mut Effects) {
        self.register_digest = self.register.digest();
        effects.cluster_state = Some(Box::new(self.register.cluster.clone()));
    }
}

fn sum<const N: usize>(digests: [u64; N]) -> u64 {
    digests.into_iter().fold(0, u64::wrapping_add)
}

fn resume_digest(resume_epoch: u64) -> u64 {
    element(Kind::ResumeEpoch, &resume_epoch)
}
