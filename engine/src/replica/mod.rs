//! The replicated state and the commands that change it.

mod command;

pub use command::{
    Batch, Close, CloseCause, Command, Establish, MemberChange, MemberInfo, Outcome, PolicyChange, Role,
};

use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::engine::{Engine, Wake};
use crate::time::Time;

/// The replicated state: policy, members, outcomes, and the replicated part of the session table.
///
/// One thread applies. Reading the table (listing, the packet path) goes on meanwhile.
pub struct Replica {}

/// A snapshot in the making: exact at the index at which it was begun, though `apply` goes on.
pub struct SnapshotJob {}

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

#[allow(unused_variables, clippy::todo)]
impl Replica {
    /// The state of a new cluster, writing to `engine`'s table.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Replica {
        todo!()
    }

    /// Applies a batch; one outcome a command. Deterministic: `now` is used only for local timers.
    pub fn apply(&mut self, now: Time, batch: &Batch, wake: &mut dyn Wake) -> Vec<Outcome> {
        todo!()
    }

    /// Begins a snapshot of the state as it is now. At most one at a time; a second one ends the first, whose `write` fails.
    pub fn begin_snapshot(&mut self) -> SnapshotJob {
        todo!()
    }

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then as before.
    pub fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        todo!()
    }

    /// An order-independent hash of the whole replicated state, equal on all members at equal index.
    #[must_use]
    pub fn digest(&self) -> u64 {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl SnapshotJob {
    /// Writes the snapshot, shard by shard; runs on another thread than `apply`.
    ///
    /// # Errors
    /// The writer's, or [`io::ErrorKind::Interrupted`] if another snapshot was begun.
    pub fn write(self, to: &mut dyn Write) -> io::Result<()> {
        todo!()
    }
}
