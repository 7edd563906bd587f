//! Scrubbing: does the table hold what the commands have put into it?
//!
//! Digests of members differ if commands had different effects. What changes a table without a command (a defect, memory
//! that fails) does not change the digest, which is kept incrementally; so it is compared with the table itself.

use super::apply::session_digest;
use crate::engine::Engine;

impl Engine {
    /// Are the sessions of one of the table's 256 parts those that commands and snapshots have put there? It takes some
    /// 100 ns a session, for which packets of these sessions may wait.
    #[must_use]
    pub fn scrub(&self, part: u8) -> bool {
        let shard = self.table.shard(part);
        let sum = shard.sessions.iter().fold(0_u64, |sum, session| sum.wrapping_add(session_digest(session)));
        sum == shard.digest
    }

    /// Changes a session as failing memory would: its rule, and no digest. False if there is no such session.
    #[cfg(any(test, feature = "testing"))]
    pub fn damage(&self, id: crate::id::SessionId) -> bool {
        let Some((mut shard, slot)) = self.table.locate(id) else { return false };
        shard.sessions.get_mut(slot).is_some_and(|session| {
            session.rule.0 ^= 1;
            true
        })
    }
}
