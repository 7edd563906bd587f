//! Being current: proving to ourselves, four times a second, that we have applied everything that was committed.
//!
//! t is this member's own clock when it asks. The leader answers with its commit index only after a majority confirmed,
//! *after the question came*, that it still leads ([`read_index`](crate::raft::read_index), never a lease: clocks may stand still).
//! Once that index is applied here, this member is current until t + 1 s.
//!
//! A member that begins to pass packets says so in the log first (`Command::Resume`): it remembers nothing of what an earlier run
//! of it said about idle sessions, or has not been asked about them while it was cut off.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Command, Outcome};
use palisade_engine::{MemberId, Standing};
use palisade_proto::member::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::membership::change::order;
use crate::peer::route::{Lane, Peers};
use crate::raft::handover::Candidacy;
use crate::raft::read_index::{DEADLINE, ReadIndex, Unread};
use crate::replication::PalisadeRaft;
use crate::replication_metrics::ReplicationMetrics;
use crate::standing::StandingCell;
use crate::sync::propose::{Lead, Order};

const EVERY: Duration = Duration::from_millis(250);
/// After a failure: a new leader is perhaps there by then.
const SOON: Duration = Duration::from_millis(25);

pub(crate) struct Current {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) read_index: ReadIndex,
    pub(crate) peers: Peers,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) standing: Arc<StandingCell>,
    pub(crate) orders: mpsc::Sender<Order>,
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
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error("no answer in time")]
    Late,
    #[error("the log did not take that this member resumes: {0}")]
    NotResumed(String),
}

impl Current {
    pub(crate) async fn run(self) {
        // After how many replacements of the state it has resumed.
        let (mut resumed, mut was) = (None, Standing::Expired);
        loop {
            let replacements = self.standing.replacements();
            let is = self.standing.at(clock::now());
            if is == Standing::Expired && was != Standing::Expired {
                resumed = None;
            }
            was = is;
            let mut asked = clock::now();
            let proof = async {
                if resumed != Some(replacements) {
                    self.resume().await?;
                    self.standing.resume(replacements);
                    resumed = Some(replacements);
                    asked = clock::now();
                }
                tokio::time::timeout(DEADLINE, self.prove()).await.unwrap_or(Err(Unproven::Late))
            };
            let proof = proof.await;
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

    async fn resume(&self) -> Result<(), Unproven> {
        if self.lead.borrow().leader.is_none() {
            return Err(Unproven::NoLeader);
        }
        match order(&self.orders, Command::Resume, DEADLINE).await {
            Ok(Outcome::Accepted) => Ok(()),
            Ok(outcome) => Err(Unproven::NotResumed(format!("{outcome:?}"))),
            Err(error) => Err(Unproven::NotResumed(error.to_string())),
        }
    }

    async fn prove(&self) -> Result<(), Unproven> {
        let leader = self.lead.borrow().leader.clone().ok_or(Unproven::NoLeader)?;
        let index = if leader.id == self.me {
            self.read_index.read().await?
        } else {
            let mut client = self.peers.client(leader.id, &leader.address, Lane::Control).map_err(Unproven::Leader)?;
            let shuns_lead = *self.candidacy.borrow() != Candidacy::Normal;
            client.read_index(wire::ReadIndexRequest { shuns_lead }).await.map_err(Unproven::Leader)?.into_inner().index
        };
        let applied = self.raft.wait(Some(DEADLINE)).applied_index_at_least(Some(index), "being current").await;
        applied.map(drop).map_err(|_| Unproven::Late)
    }
}
