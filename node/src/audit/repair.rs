//! Repair: a member whose state is wrong replaces it with a snapshot of the leader.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Auditor, Snapshots};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::audit::Divergence;
use crate::lease::Lease;
use crate::peer::connections::{Lane, Peers};
use crate::peer::error::PeerError;
use crate::raft::config::PalisadeRaft;
use crate::raft::handle::RaftHandle;
use crate::raft::leadership::Leadership;
use crate::raft::snapshot;
use crate::raft::transfer::LeadershipTransfer;
use crate::replication_metrics::ReplicationMetrics;

/// Time between two attempts.
const REPAIR_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long a repair may keep this member from applying.
const APPLY_PAUSE_LIMIT: Duration = Duration::from_secs(60);
/// How long this member's log may take to reach the snapshot.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a repair did not succeed.
#[derive(Debug, thiserror::Error)]
enum RepairError {
    #[error("no other member leads yet")]
    NoLeader,
    #[error("the leader did not send a snapshot: {0}")]
    Leader(#[source] PeerError),
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] std::io::Error),
    #[error("it took too long")]
    Timeout,
}

impl From<Status> for RepairError {
    fn from(status: Status) -> RepairError {
        RepairError::Leader(status.into())
    }
}

/// The task that repairs this member's state.
pub(crate) struct Repairer {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) snapshots: Snapshots,
    pub(crate) peers: Peers,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) transfer: LeadershipTransfer,
    pub(crate) lease: Arc<Lease>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) divergences: mpsc::Receiver<Divergence>,
}

impl Repairer {
    /// Repairs this member's state whenever it is found wrong. Ends, and with it the member, if there is no other member to
    /// repair it from: the member then restarts and replays its own log.
    pub(crate) async fn run(mut self) {
        while let Some(divergence) = self.divergences.recv().await {
            if !self.still_divergent(&divergence) {
                continue;
            }
            self.suspect(true);
            tracing::error!(?divergence, "this member's state is wrong: it is repaired from a snapshot of the leader");
            while let Err(error) = self.repair_once().await {
                self.metrics.repairs.failed.add(1);
                tracing::error!(%error, "this member's state could not be repaired; trying again");
                if self.raft.members().keys().all(|id| *id == self.me) {
                    tracing::error!("there is no other member to repair this one from: it restarts from its log");
                    return;
                }
                tokio::time::sleep(REPAIR_RETRY_DELAY).await;
            }
            self.suspect(false);
            self.metrics.repairs.done.add(1);
        }
    }

    /// Whether the divergence is still there: an earlier repair may have ended it.
    fn still_divergent(&self, divergence: &Divergence) -> bool {
        match divergence {
            Divergence::Digest { index, majority } => self.auditor.digest_at(*index).is_some_and(|d| d != *majority),
            Divergence::Table { part } => !self.engine.scrub(*part),
        }
    }

    fn suspect(&self, suspect: bool) {
        self.lease.suspect(suspect);
        self.metrics.state_suspect.set(suspect);
    }

    async fn repair_once(&self) -> Result<(), RepairError> {
        let leader = self.leadership.borrow().leader.clone().ok_or(RepairError::NoLeader)?;
        if leader.id == self.me {
            self.transfer.transfer_before_repair().await;
            return Err(RepairError::NoLeader);
        }
        tokio::time::timeout(APPLY_PAUSE_LIMIT, async {
            let pause = self.auditor.pause_apply().await;
            let index = pause.applied().map_or(0, |id| id.index);
            let mut client = self.peers.client(leader.id, &leader.address, Lane::Snapshot)?;
            let chunks = client.snapshot(wire::SnapshotRequest { index }).await?.into_inner();
            let file = snapshot::fetch(&self.snapshots, chunks).await?;
            let last = file.meta().last_log_id;
            // Nothing may be applied here that is not in this member's log.
            let committed =
                self.raft.wait(Some(COMMIT_TIMEOUT)).metrics(|m| m.local_committed >= last, "a repair").await;
            committed.map_err(|_| RepairError::Timeout)?;
            self.lease.replace();
            pause.replace(file).await?;
            tracing::info!(index = last.map_or(0, |id| id.index), "this member's state was replaced with the leader's");
            Ok(())
        })
        .await
        .unwrap_or(Err(RepairError::Timeout))
    }
}
