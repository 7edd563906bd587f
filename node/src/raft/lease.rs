//! Lease renewal: four times a second this member proves to itself that it has applied everything that was committed.
//!
//! t is this member's own clock when it asks. The leader answers with its commit index, and only after a majority has
//! confirmed, *after the question came*, that it still leads ([`read_index`](crate::raft::read_index); never because of a
//! leader lease: clocks may stand still). Once that index is applied here, this member's lease is valid until t + 1 s.
//! [`crate::lease`] has the states.
//!
//! A member that begins to forward packets says so in the log first (`Command::Resume`): it remembers nothing of what an
//! earlier run reported about idle sessions, or was not asked about them while its lease was expired.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, Outcome};
use palisade_engine::{LeaseState, MemberId};
use palisade_proto::member::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::lease::Lease;
use crate::peer::connections::{Lane, Peers};
use crate::peer::error::PeerError;
use crate::raft::config::PalisadeRaft;
use crate::raft::leadership::Leadership;
use crate::raft::priority::ElectionPriority;
use crate::raft::read_index::{READ_INDEX_TIMEOUT, ReadIndex, ReadIndexError};
use crate::raft::requests::{AdminRequest, ProposeError, propose_and_wait};
use crate::replication_metrics::ReplicationMetrics;

/// Time between two renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(250);
/// The same after a failure: by then there may be a new leader.
const RENEWAL_RETRY_DELAY: Duration = Duration::from_millis(25);

/// The task that renews this member's lease.
pub(crate) struct LeaseRenewer {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) read_index: ReadIndex,
    pub(crate) peers: Peers,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) priority: watch::Receiver<ElectionPriority>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// Why the lease was not renewed this time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseRenewalError {
    #[error("no leader is known")]
    NoLeader,
    #[error("the leader did not answer: {0}")]
    Leader(#[source] PeerError),
    #[error(transparent)]
    ReadIndex(#[from] ReadIndexError),
    #[error("no answer in time")]
    Timeout,
    #[error("the log did not take that this member resumes")]
    Resume(#[from] ProposeError),
    #[error("the log did not take that this member resumes: {0:?}")]
    ResumeRefused(Outcome),
}

impl From<tonic::Status> for LeaseRenewalError {
    fn from(status: tonic::Status) -> LeaseRenewalError {
        LeaseRenewalError::Leader(status.into())
    }
}

impl LeaseRenewer {
    pub(crate) async fn run(self) {
        // The number of replacements of the state after which this member last resumed.
        let (mut resumed, mut was) = (None, LeaseState::Expired);
        loop {
            let replacements = self.lease.replacements();
            let is = self.lease.state_at(clock::now());
            if is == LeaseState::Expired && was != LeaseState::Expired {
                resumed = None;
            }
            was = is;
            let mut asked = clock::now();
            let renewal = async {
                if resumed != Some(replacements) {
                    self.resume().await?;
                    self.lease.resume(replacements);
                    resumed = Some(replacements);
                    asked = clock::now();
                }
                let asked = tokio::time::timeout(READ_INDEX_TIMEOUT, self.applied_all_committed()).await;
                asked.unwrap_or(Err(LeaseRenewalError::Timeout))
            };
            let renewal = renewal.await;
            let pause = match renewal {
                Ok(()) => {
                    self.lease.renew(asked);
                    self.metrics.lease_renewals.renewed.add(1);
                    RENEWAL_INTERVAL
                }
                Err(error) => {
                    self.metrics.lease_renewals.failed.add(1);
                    tracing::debug!(%error, "the lease was not renewed");
                    RENEWAL_RETRY_DELAY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Has the log take that this member begins to forward packets.
    async fn resume(&self) -> Result<(), LeaseRenewalError> {
        if self.leadership.borrow().leader.is_none() {
            return Err(LeaseRenewalError::NoLeader);
        }
        match propose_and_wait(&self.requests, Command::Resume, READ_INDEX_TIMEOUT).await? {
            Outcome::Accepted => Ok(()),
            outcome => Err(LeaseRenewalError::ResumeRefused(outcome)),
        }
    }

    /// Waits until everything is applied here that was committed before this call.
    async fn applied_all_committed(&self) -> Result<(), LeaseRenewalError> {
        let leader = self.leadership.borrow().leader.clone().ok_or(LeaseRenewalError::NoLeader)?;
        let index = if leader.id == self.me {
            self.read_index.read().await?
        } else {
            let mut client = self.peers.client(leader.id, &leader.address, Lane::Control)?;
            let declines_leadership = *self.priority.borrow() != ElectionPriority::Normal;
            client.read_index(wire::ReadIndexRequest { declines_leadership }).await?.into_inner().index
        };
        let applied = self.raft.wait(Some(READ_INDEX_TIMEOUT)).applied_index_at_least(Some(index), "the lease").await;
        applied.map(drop).map_err(|_| LeaseRenewalError::Timeout)
    }
}
