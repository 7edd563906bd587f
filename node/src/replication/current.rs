//! Being current: proving to ourselves, four times a second, that we have applied everything that was committed.
//!
//! t is this member's own clock when it asks. The leader answers with its commit index only after a majority confirmed,
//! *after the question came*, that it still leads (`ReadIndex`, never a lease: clocks may stand still). Once that index is
//! applied here, this member is current until t + 1 s.

use std::sync::Arc;
use std::time::Duration;

use openraft::LinearizerOption;
use palisade_engine::MemberId;
use palisade_proto::member::v1 as wire;
use tokio::sync::watch;

use super::PalisadeRaft;
use super::handover::Candidacy;
use super::metrics::ReplicationMetrics;
use super::propose::Lead;
use super::route::{Lane, Peers};
use crate::clock;
use crate::standing::StandingCell;

const EVERY: Duration = Duration::from_millis(250);
/// After a failure: a new leader is perhaps there by then.
const SOON: Duration = Duration::from_millis(25);
/// A question that takes longer would prove almost nothing any more.
const DEADLINE: Duration = Duration::from_millis(400);

pub(crate) struct Current {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) peers: Peers,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) standing: Arc<StandingCell>,
    pub(crate) candidacy: watch::Receiver<Candidacy>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// Why it could not be proven this time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproven {
    #[error("no leader is known")]
    NoLeader,
    #[error("the leader did not answer: {0}")]
    Leader(tonic::Status),
    #[error("this member leads no longer, or lacks a majority: {0}")]
    Self_(String),
    #[error("no answer in time")]
    Late,
}

impl Current {
    pub(crate) async fn run(self) {
        loop {
            let asked = clock::now();
            let proof = tokio::time::timeout(DEADLINE, self.prove()).await.unwrap_or(Err(Unproven::Late));
            let pause = match proof {
                Ok(()) => {
                    self.standing.prove(asked);
                    self.metrics.current_proofs.add(1);
                    EVERY
                }
                Err(reason) => {
                    self.metrics.current_failures.add(1);
                    tracing::debug!(%reason, "not proven current");
                    SOON
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn prove(&self) -> Result<(), Unproven> {
        let leader = self.lead.borrow().leader.clone().ok_or(Unproven::NoLeader)?;
        let index = if leader.id == self.me {
            read_index(&self.raft).await.map_err(Unproven::Self_)?
        } else {
            let mut client = self.peers.client(leader.id, &leader.address, Lane::Control).map_err(Unproven::Leader)?;
            let shuns_lead = *self.candidacy.borrow() != Candidacy::Normal;
            client.read_index(wire::ReadIndexRequest { shuns_lead }).await.map_err(Unproven::Leader)?.into_inner().index
        };
        let applied = self.raft.wait(Some(DEADLINE)).applied_index_at_least(Some(index), "being current").await;
        applied.map(drop).map_err(|_| Unproven::Late)
    }
}

/// On the leader: the index that must have been applied to know everything committed before this call.
pub(crate) async fn read_index(raft: &PalisadeRaft) -> Result<u64, String> {
    // As [`openraft::raft::ReadPolicy::ReadIndex`], which would wait for no longer than a lease.
    let reading = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(DEADLINE);
    let (read, _) = raft.get_read_log_id(reading).await.map_err(|e| e.to_string())?;
    Ok(read.log_id().index)
}
