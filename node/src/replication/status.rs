//! The status of a member and its cluster, for people and for `/metrics`.

use openraft::{RaftMetrics, ServerState};
use palisade_engine::{ClusterState, LeaseState, MemberId, MemberInfo};
use palisade_raft_store::TypeConfig;

use crate::membership::identity::Identity;
use crate::raft::handle::matched_index;
use crate::sync::hints::Reachability;

/// A member's role in Raft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftRole {
    /// It leads.
    Leader,
    /// It follows and votes.
    Follower,
    /// It follows and does not vote.
    Learner,
    /// It campaigns.
    Candidate,
    /// Raft has stopped here.
    Stopped,
}

impl RaftRole {
    /// The label: stable, `snake_case`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            RaftRole::Leader => "leader",
            RaftRole::Follower => "follower",
            RaftRole::Learner => "learner",
            RaftRole::Candidate => "candidate",
            RaftRole::Stopped => "stopped",
        }
    }
}

/// The status of a member and its cluster, as this member knows it. Not a linearizable read: a partitioned member shows what
/// it last knew, and `lease` says so.
#[derive(Clone, Debug)]
pub struct Status {
    /// The cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// The number of its starts.
    pub starts: u32,
    /// Its role in Raft.
    pub role: RaftRole,
    /// The term of Raft.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<MemberId>,
    /// The index of the last entry in its log.
    pub last_log: Option<u64>,
    /// The index of the last entry known to be committed.
    pub committed: Option<u64>,
    /// The index of the last entry applied here.
    pub applied: Option<u64>,
    /// The index that the last snapshot reaches.
    pub snapshot: Option<u64>,
    /// The index up to which the log was purged.
    pub purged: Option<u64>,
    /// All members, this one among them, by id.
    pub members: Vec<Member>,
    /// The state of this member's lease.
    pub lease: LeaseState,
}

/// A member as another one sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its name, address and role.
    pub info: MemberInfo,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// The index up to which its log matches the leader's; known only to the leader.
    pub matched: Option<u64>,
    /// The number of entries that it is behind; known only to the leader.
    pub lag: Option<u64>,
    /// Whether this member reaches it.
    pub reachable: bool,
}

pub(crate) fn status(
    identity: &Identity,
    metrics: &RaftMetrics<TypeConfig>,
    cluster: &ClusterState,
    reachability: &Reachability,
    lease: LeaseState,
) -> Status {
    let me = identity.member;
    let index = |id: &Option<palisade_raft_store::LogId>| id.as_ref().map(|id| id.index);
    let role = match (&metrics.running_state, metrics.state) {
        (Err(_), _) | (_, ServerState::Shutdown) => RaftRole::Stopped,
        (_, ServerState::Leader) => RaftRole::Leader,
        (_, ServerState::Follower) => RaftRole::Follower,
        (_, ServerState::Learner) => RaftRole::Learner,
        (_, ServerState::Candidate) => RaftRole::Candidate,
    };
    let member = |id: MemberId, info: &MemberInfo| {
        let matched =
            if role == RaftRole::Leader && id == me { metrics.last_log_index } else { matched_index(metrics, id) };
        Member {
            id,
            info: info.clone(),
            voter: metrics.membership_config.voter_ids().any(|voter| voter == id),
            leader: metrics.current_leader == Some(id),
            matched,
            lag: matched.map(|m| metrics.last_log_index.unwrap_or(0).saturating_sub(m)),
            reachable: id == me || reachability.get(id),
        }
    };
    Status {
        cluster: identity.cluster.clone(),
        member: me,
        name: identity.name.clone(),
        starts: identity.starts,
        role,
        term: metrics.current_term,
        leader: metrics.current_leader,
        last_log: metrics.last_log_index,
        committed: index(&metrics.local_committed),
        applied: index(&metrics.last_applied),
        snapshot: index(&metrics.snapshot),
        purged: index(&metrics.purged),
        members: cluster.members.iter().map(|(id, info)| member(*id, info)).collect(),
        lease,
    }
}
