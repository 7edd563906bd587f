//! Putting a policy in force, for an administrator: proposing it, and waiting for what the leader decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::policy::PolicyHash;
use palisade_engine::replica::{Command, Outcome, PolicyChange};
use palisade_engine::{ClusterState, Engine, Generation, MemberId};
use palisade_proto::member::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::peer::connections::{Lane, Peers};
use crate::policy::enactor::{GIVE_UP, PATIENCE};
use crate::policy::reports::Reports;
use crate::raft::leadership::Leadership;
use crate::raft::requests::{AdminRequest, ProposeError, propose_and_wait};

/// Time between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Time between two questions to the leader, once it should have decided.
const QUESTION_INTERVAL: Duration = Duration::from_secs(1);
/// How long the leader may take to answer.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(500);
/// How much longer than the leader it waits.
const MARGIN: Duration = Duration::from_secs(5);

/// A policy that came into force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutInForce {
    /// Its generation.
    pub generation: Generation,
    /// Members that had not compiled it then: their leases run out until they have.
    pub without: Vec<MemberId>,
}

/// What is known of a candidate at the leader.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CandidateReports {
    /// Members that refused it, and why.
    pub refused: BTreeMap<MemberId, String>,
    /// Members that have compiled it.
    pub compiled: Vec<MemberId>,
}

/// Why a policy did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The proposal was not confirmed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The log refused the proposal.
    #[error("the log answered {0:?}")]
    Refused(Outcome),
    /// Somebody else's policy came instead.
    #[error("another policy was applied meanwhile, by {author}")]
    Superseded {
        /// Who applied it.
        author: String,
    },
    /// The leader withdrew it.
    #[error("the policy was not put in force")]
    Withdrawn(CandidateReports),
    /// Nothing was decided in time.
    #[error("the cluster did not decide in time")]
    Timeout(CandidateReports),
}

/// What putting a policy in force needs.
#[derive(Clone)]
pub(crate) struct Put {
    pub(crate) me: MemberId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) peers: Peers,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) reports: Reports,
}

/// What a member's state says of a policy.
enum Seen {
    InForce(PutInForce),
    Waits,
    Superseded(String),
    Withdrawn,
}

fn look(cluster: &ClusterState, change: &PolicyChange) -> Seen {
    let next = Generation(change.base.0 + 1);
    if let Some(record) = cluster.policies.iter().find(|record| record.generation == next) {
        return match record.hash == change.hash {
            true => Seen::InForce(PutInForce { generation: next, without: record.without.clone() }),
            false => Seen::Superseded(record.author.clone()),
        };
    }
    match &cluster.candidate {
        Some(candidate) if candidate.hash == change.hash => Seen::Waits,
        Some(candidate) => Seen::Superseded(candidate.author.clone()),
        None => Seen::Withdrawn,
    }
}

impl Put {
    /// Proposes a policy, and waits until it is in force or is not going to be.
    pub(crate) async fn put(&self, change: PolicyChange, timeout: Duration) -> Result<PutInForce, PutError> {
        match propose_and_wait(&self.requests, Command::Policy(Box::new(change.clone())), timeout).await? {
            Outcome::Accepted => {}
            outcome => return Err(PutError::Refused(outcome)),
        }
        let begin = clock::now();
        let mut question = begin + PATIENCE;
        loop {
            match look(&self.engine.cluster_state(), &change) {
                Seen::InForce(done) => return Ok(done),
                Seen::Superseded(author) => return Err(PutError::Superseded { author }),
                Seen::Withdrawn => return Err(PutError::Withdrawn(self.ask(change.hash).await.0)),
                Seen::Waits => {}
            }
            if clock::now() >= question {
                // This member may be the one that is late, and so not see what was decided.
                question = clock::now() + QUESTION_INTERVAL;
                let (reports, in_force) = self.ask(change.hash).await;
                if let Some(done) = in_force.filter(|done| done.generation.0 == change.base.0 + 1) {
                    return Ok(done);
                }
                if clock::now().since(begin) > GIVE_UP + MARGIN {
                    return Err(PutError::Timeout(reports));
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What the leader knows of a policy, and whether it has put it in force. Empty if it does not answer.
    async fn ask(&self, hash: PolicyHash) -> (CandidateReports, Option<PutInForce>) {
        let Some(leader) = self.leadership.borrow().leader.clone() else { return Default::default() };
        if leader.id == self.me {
            return answer_in(answer(&self.engine, &self.reports, hash));
        }
        let Ok(mut client) = self.peers.client(leader.id, &leader.address, Lane::Control) else {
            return Default::default();
        };
        let request = client.policy_reports(wire::PolicyReportsRequest { hash: hash.0.to_vec().into() });
        match tokio::time::timeout(QUESTION_TIMEOUT, request).await {
            Ok(Ok(response)) => answer_in(response.into_inner()),
            Ok(Err(_)) | Err(_) => Default::default(),
        }
    }
}

/// What this member, as the leader, knows of a policy.
pub(crate) fn answer(engine: &Engine, reports: &Reports, hash: PolicyHash) -> wire::PolicyReportsResponse {
    let reports = reports.of(hash).into_iter();
    let cluster = engine.cluster_state();
    let in_force = cluster.policies.last().filter(|record| record.hash == hash);
    wire::PolicyReportsResponse {
        reports: reports.map(|(member, refused)| wire::MemberPolicyReport { member: member.0, refused }).collect(),
        generation: in_force.map(|record| record.generation.0),
        without: in_force.iter().flat_map(|record| &record.without).map(|id| id.0).collect(),
    }
}

fn answer_in(response: wire::PolicyReportsResponse) -> (CandidateReports, Option<PutInForce>) {
    let mut known = CandidateReports::default();
    for wire::MemberPolicyReport { member, refused } in response.reports {
        match refused {
            Some(reason) => drop(known.refused.insert(MemberId(member), reason)),
            None => known.compiled.push(MemberId(member)),
        }
    }
    let without = response.without.into_iter().map(MemberId).collect();
    let in_force = response.generation.map(|generation| PutInForce { generation: Generation(generation), without });
    (known, in_force)
}
