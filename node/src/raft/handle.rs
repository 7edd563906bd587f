//! What is often asked of openraft. Whether this member leads, `Raft::is_leader` says.

use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{RaftMetrics, RaftState};
use palisade_engine::MemberId;
use palisade_raft_store::TypeConfig;
use tokio::sync::oneshot;

use crate::peer::connections::Members;
use crate::raft::config::PalisadeRaft;

/// Questions to this member's openraft, answered from its metrics.
pub(crate) trait RaftHandle {
    /// The members of the newest membership, committed or not.
    fn members(&self) -> Members;
    /// Whether the newest membership has this member.
    fn is_member(&self, id: MemberId) -> bool;
    /// What `read` returns of Raft's state. As openraft's `with_raft_state`, but a caller may go away before the answer:
    /// openraft logs that as an error, and here it is everyday. A leader that has a majority drops its questions to the rest.
    fn read_state<T: Send + 'static>(
        &self,
        read: impl FnOnce(&RaftState<TypeConfig>) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Fatal<TypeConfig>>> + Send;
}

impl RaftHandle for PalisadeRaft {
    fn members(&self) -> Members {
        let metrics = self.server_metrics().borrow_watched().clone();
        metrics.membership_config.nodes().map(|(id, info)| (*id, info.clone())).collect()
    }

    fn is_member(&self, id: MemberId) -> bool {
        self.server_metrics().borrow_watched().membership_config.get_node(&id).is_some()
    }

    async fn read_state<T: Send + 'static>(
        &self,
        read: impl FnOnce(&RaftState<TypeConfig>) -> T + Send + 'static,
    ) -> Result<T, Fatal<TypeConfig>> {
        let (answer, answered) = oneshot::channel();
        // Sending fails only if the caller is gone.
        self.external_request(move |state| drop(answer.send(read(state)))).await?;
        match answered.await {
            Ok(read) => Ok(read),
            // Raft has stopped: openraft knows why.
            Err(_) => Err(self.with_raft_state(|_| ()).await.err().unwrap_or(Fatal::Stopped)),
        }
    }
}

/// The index up to which a member's log is known to match the leader's; known to the leader only.
pub(crate) fn matched_index(metrics: &RaftMetrics<TypeConfig>, member: MemberId) -> Option<u64> {
    metrics.replication.as_ref()?.get(&member).copied().flatten().map(|id| id.index)
}
