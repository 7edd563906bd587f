//! The read barrier: it waits until everything is applied here that was committed before a call. The leader is asked for its
//! commit index ([`read_index`](crate::raft::read_index)); nothing is added to the log.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::{Engine, MemberId};
use palisade_proto::member::v1 as wire;
use tokio::sync::watch;

use crate::clock;
use crate::peer::connections::{Lane, Peers};
use crate::peer::error::PeerError;
use crate::raft::config::PalisadeRaft;
use crate::raft::leadership::Leadership;
use crate::raft::priority::ElectionPriority;
use crate::raft::quorum::QuorumContact;
use crate::raft::read_index::{READ_INDEX_TIMEOUT, ReadIndex, ReadIndexError};

/// Time between two attempts while there is no leader that answers.
const RETRY_DELAY: Duration = Duration::from_millis(25);

/// Why a read would not be recent.
#[derive(Debug, thiserror::Error)]
pub enum ReadBarrierError {
    /// No leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// The leader did not answer, or refused.
    #[error("the leader did not answer")]
    Leader(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This member leads, and could not confirm it.
    #[error("this member could not confirm that it leads")]
    ReadIndex(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was committed is not applied here yet.
    #[error("this member did not catch up in time")]
    Timeout,
}

impl From<tonic::Status> for ReadBarrierError {
    fn from(status: tonic::Status) -> ReadBarrierError {
        ReadBarrierError::Leader(PeerError::from(status).into())
    }
}

impl From<ReadIndexError> for ReadBarrierError {
    fn from(error: ReadIndexError) -> ReadBarrierError {
        ReadBarrierError::ReadIndex(error.into())
    }
}

/// A read barrier of this member.
#[derive(Clone)]
pub(crate) struct ReadBarrier {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    /// Whose report of the candidate goes with each question.
    pub(crate) engine: Arc<Engine>,
    pub(crate) read_index: ReadIndex,
    pub(crate) peers: Peers,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) priority: watch::Receiver<ElectionPriority>,
    pub(crate) quorum: QuorumContact,
}

impl ReadBarrier {
    /// One attempt, which a lease renewal can wait for.
    pub(crate) async fn attempt(&self) -> Result<(), ReadBarrierError> {
        let all = async {
            let index = self.committed_index().await?;
            self.applied(index, READ_INDEX_TIMEOUT).await
        };
        tokio::time::timeout(READ_INDEX_TIMEOUT, all).await.unwrap_or(Err(ReadBarrierError::Timeout))
    }

    /// Attempts until `timeout`, also through an election.
    pub(crate) async fn wait(&self, timeout: Duration) -> Result<(), ReadBarrierError> {
        let mut last = ReadBarrierError::NoLeader;
        let all = async {
            loop {
                let index = tokio::time::timeout(READ_INDEX_TIMEOUT, self.committed_index()).await;
                match index.unwrap_or(Err(ReadBarrierError::Timeout)) {
                    Ok(index) => {
                        last = ReadBarrierError::Timeout;
                        return self.applied(index, timeout).await;
                    }
                    Err(error) => last = error,
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        };
        match tokio::time::timeout(timeout, all).await {
            Ok(done) => done,
            Err(_) => Err(last),
        }
    }

    /// The index up to which the log was committed when this was called.
    async fn committed_index(&self) -> Result<u64, ReadBarrierError> {
        let asked = clock::now();
        let index = self.ask_leader().await?;
        self.quorum.record(asked);
        Ok(index)
    }

    async fn ask_leader(&self) -> Result<u64, ReadBarrierError> {
        let leader = self.leadership.borrow().leader.clone().ok_or(ReadBarrierError::NoLeader)?;
        if leader.id == self.me {
            return Ok(self.read_index.read().await?);
        }
        let mut client = self.peers.client(leader.id, &leader.address, Lane::Control)?;
        let declines_leadership = *self.priority.borrow() != ElectionPriority::Normal;
        let policy = self.engine.policy_report().map(wire::PolicyReport::from);
        Ok(client.read_index(wire::ReadIndexRequest { declines_leadership, policy }).await?.into_inner().index)
    }

    async fn applied(&self, index: u64, timeout: Duration) -> Result<(), ReadBarrierError> {
        let applied = self.raft.wait(Some(timeout)).applied_index_at_least(Some(index), "a read barrier").await;
        applied.map(drop).map_err(|_| ReadBarrierError::Timeout)
    }
}
