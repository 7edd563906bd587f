//! Restoring a snapshot: it is read beside the state, and exchanged for it part by part.

use std::io::Read;
use std::sync::Arc;

use super::{Replica, RestoreError};
use crate::engine::Engine;
use crate::replicated::{Effects, LocalContext, Restored, read};
use crate::table::rebuild::RebuiltTable;
use crate::time::Time;
use crate::types::Wake;

/// Reads snapshots for a [`Replica`], while that goes on.
#[derive(Clone)]
pub struct Restorer(Arc<Engine>);

/// The state of a snapshot that was read and validated, but is not a replica's state yet. Its sessions take as much memory as
/// those of the table.
pub struct RestoredState {
    /// `None` once all of it is installed.
    restored: Option<Restored<RebuiltTable>>,
    next_shard: u8,
}

impl Restorer {
    /// Reads a snapshot. It takes as long as the snapshot is large, and locks nothing.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn read(&self, now: Time, snapshot: &mut dyn Read) -> Result<RestoredState, RestoreError> {
        let engine = &*self.0;
        let restored = read(snapshot, engine.config.affordable_sessions, RebuiltTable::new(&engine.table, now))?;
        Ok(RestoredState { restored: Some(restored), next_shard: 0 })
    }
}

impl Replica {
    /// What reads snapshots for this replica.
    #[must_use]
    pub fn restorer(&self) -> Restorer {
        Restorer(self.engine.clone())
    }

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// [`RestoreError`]; the state is then as before.
    pub fn restore(&mut self, now: Time, snapshot: &mut dyn Read, wake: &mut dyn Wake) -> Result<(), RestoreError> {
        let mut restored = self.restorer().read(now, snapshot)?;
        while self.install(now, &mut restored, wake) {}
        Ok(())
    }

    /// Puts the next part of a restored state in the place of the present one. Returns whether there is more to do; nothing may
    /// be applied until then. Each call takes about a millisecond with a million sessions.
    pub fn install(&mut self, now: Time, state: &mut RestoredState, wake: &mut dyn Wake) -> bool {
        let Some(restored) = &mut state.restored else { return false };
        if state.next_shard == 0 {
            self.engine.install_policy(restored.cluster_state().clone(), restored.generation());
            self.engine.forget_old_candidate();
        }
        let timeouts = self.engine.timeouts();
        let mut effects = Effects::default();
        let local = LocalContext { now, timeouts: &timeouts };
        self.engine.table.exchange_shard(local, state.next_shard, &mut restored.sessions, &mut effects);
        self.engine.carry_out(effects, wake);
        state.next_shard = state.next_shard.wrapping_add(1);
        if state.next_shard > 0 {
            return true;
        }
        if let Some(restored) = state.restored.take() {
            let effects = self.state.install(restored);
            self.engine.carry_out(effects, wake);
        }
        false
    }
}
