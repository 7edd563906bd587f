//! How a member and its cluster are, for people and for `/metrics`.

use openraft::{RaftMetrics, ServerState};
use palisade_engine::engine::View;
use palisade_engine::replica::MemberInfo;
use palisade_engine::{MemberId, Standing};
use palisade_raft_store::TypeConfig;

use crate::membership::identity::Identity;
use crate::sync::hints::Reached;

/// What a member is in Raft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftRole {
    /// It leads.
    Leader,
    /// It follows and votes.
    Follower,
    /// It follows and does not vote.
    Learner,
    /// It stands for election.
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

/// How a member and its cluster are now, as this member knows it. Not a linearizable read: a member that is cut off shows
/// what it last knew, and `current` says so.
#[derive(Clone, Debug)]
pub struct Status {
    /// The cluster's id.
    pub cluster: String,
    /// This member.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// How often it has started.
    pub starts: u32,
    /// What it is in Raft.
    pub role: RaftRole,
    /// Raft's term.
    pub term: u64,
    /// Who leads, if known.
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
    /// How far this member may act.
    pub current: Standing,
}

/// A member as another one sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its name, address and role.
    pub info: MemberInfo,
    /// Does it vote?
    pub voter: bool,
    /// Is it the leader?
    pub leader: bool,
    /// The last entry that its log is known to have; known only to the leader.
    pub matched: Option<u64>,
    /// How many entries it is behind; known only to the leader.
    pub lag: Option<u64>,
    /// Does this member reach it now?
    pub reachable: bool,
}

pub(crate) fn status(
    identity: &Identity,
    metrics: &RaftMetrics<TypeConfig>,
    view: &View,
    reached: &Reached,
    current: Standing,
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
        let replication = metrics.replication.as_ref().and_then(|r| r.get(&id).copied().flatten());
        let matched =
            if role == RaftRole::Leader && id == me { metrics.last_log_index } else { replication.map(|id| id.index) };
        Member {
            id,
            info: info.clone(),
            voter: metrics.membership_config.voter_ids().any(|voter| voter == id),
            leader: metrics.current_leader == Some(id),
            matched,
            lag: matched.map(|m| metrics.last_log_index.unwrap_or(0).saturating_sub(m)),
            reachable: id == me || reached.get(id),
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
        members: view.members.iter().map(|(id, info)| member(*id, info)).collect(),
        current,
    }
}
