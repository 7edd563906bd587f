//! What this member answers to the audits of others.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::Replica;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Auditor, SnapshotFile};
use tokio::sync::mpsc;
use tonic::Status;

use crate::audit::{Divergence, report};
use crate::lease::Lease;
use crate::raft::config::PalisadeRaft;

/// A member that has not applied the index within this time is compared in the next round.
const APPLY_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the leader may take to apply the index that a repair needs.
const REPAIR_APPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Indices in one question: more than this version asks about, so that another version may ask about more.
const MAX_INDICES: usize = 64;

/// The audit's part of the member port.
pub(crate) struct AuditHandler {
    pub(crate) raft: PalisadeRaft,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) divergences: mpsc::Sender<Divergence>,
}

impl AuditHandler {
    /// Answers with the digests at these indices, as far as they are known here.
    pub(crate) async fn digests(&self, indices: &[u64]) -> Result<wire::DigestsResponse, Status> {
        if indices.len() > MAX_INDICES {
            return Err(Status::invalid_argument(format!("at most {MAX_INDICES} indices at a time")));
        }
        // Without the first one, what is known of the others is an answer too.
        let wait = self.raft.wait(Some(APPLY_TIMEOUT));
        drop(wait.applied_index_at_least(indices.first().copied(), "an audit").await);
        let known = |index: &u64| {
            let digest = self.auditor.digest_at(*index)?;
            Some(wire::digests_response::Digest { index: *index, digest })
        };
        Ok(wire::DigestsResponse { digests: indices.iter().filter_map(known).collect() })
    }

    /// The leader found that this member diverges from the majority.
    pub(crate) fn report_divergence(&self, index: u64, majority: u64) {
        report(&self.divergences, Divergence::Digest { index, majority });
    }

    /// A snapshot that repairs another member.
    pub(crate) async fn snapshot(&self, index: u64) -> Result<SnapshotFile, Status> {
        if !self.raft.is_leader() {
            return Err(Status::failed_precondition("this member does not lead"));
        }
        if self.lease.is_suspect() {
            return Err(Status::unavailable("this member's own state is to be repaired"));
        }
        let applied = self.raft.wait(Some(REPAIR_APPLY_TIMEOUT)).applied_index_at_least(Some(index), "a repair").await;
        applied.map_err(|e| Status::unavailable(e.to_string()))?;
        self.auditor.snapshot().await.map_err(|e| Status::internal(format!("no snapshot could be made: {e}")))
    }
}
