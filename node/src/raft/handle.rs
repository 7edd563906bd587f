//! What is often asked of openraft. Whether this member leads, `Raft::is_leader` says.

use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use palisade_engine::MemberId;
use palisade_raft_store::TypeConfig;

use crate::peer::connections::Members;
use crate::raft::config::PalisadeRaft;

/// Questions to this member's openraft, answered from its metrics.
pub(crate) trait RaftHandle {
    /// The members of the newest membership, committed or not.
    fn members(&self) -> Members;
    /// Whether the newest membership has this member.
    fn is_member(&self, id: MemberId) -> bool;
}

impl RaftHandle for PalisadeRaft {
    fn members(&self) -> Members {
        let metrics = self.server_metrics().borrow_watched().clone();
        metrics.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect()
    }

    fn is_member(&self, id: MemberId) -> bool {
        self.server_metrics().borrow_watched().membership_config.get_node(&id).is_some()
    }
}

/// The index up to which a member's log is known to match the leader's; known to the leader only.
pub(crate) fn matched_index(metrics: &RaftMetrics<TypeConfig>, member: MemberId) -> Option<u64> {
    metrics.replication.as_ref()?.get(&member).copied().flatten().map(|id| id.index)
}
