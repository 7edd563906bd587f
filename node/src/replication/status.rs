//! The status of a member and its cluster, for people and for `/metrics`.

use std::collections::BTreeSet;

use openraft::{RaftMetrics, ServerState};
use palisade_engine::{ClusterState, LeaseState, MemberId, MemberInfo};
use palisade_raft_store::TypeConfig;

use crate::membership::identity::Identity;
use crate::membership::presence::{Presence, Roster};
use crate::raft::handle::matched_index;
use crate::raft::quorum::Quorum;
use crate::raft::unreadable::Refusals;
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
    /// The leader, if one is known that a majority was seen behind lately.
    pub leader: Option<MemberId>,
    /// Whether decisions can be made, and who answers.
    pub quorum: Quorum,
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

/// Whether a member votes, also while the voters change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suffrage {
    /// It does not vote.
    Learner,
    /// It votes.
    Voter,
    /// It votes among the new voters, whose majority is needed as well as that of the old ones.
    BecomingVoter,
    /// It votes among the old ones only.
    BecomingLearner,
}

impl Suffrage {
    fn of(id: MemberId, configs: &[BTreeSet<MemberId>]) -> Suffrage {
        let votes = |config: Option<&BTreeSet<MemberId>>| config.is_some_and(|voters| voters.contains(&id));
        match (votes(configs.first()), votes(configs.last())) {
            (true, true) => Suffrage::Voter,
            (true, false) => Suffrage::BecomingLearner,
            (false, true) => Suffrage::BecomingVoter,
            (false, false) => Suffrage::Learner,
        }
    }
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
    /// The same in detail.
    pub suffrage: Suffrage,
    /// Whether it leads.
    pub leader: bool,
    /// The index up to which its log matches the leader's; known only to the leader.
    pub matched: Option<u64>,
    /// The number of entries that it is behind; known only to the leader.
    pub lag: Option<u64>,
    /// Whether it answers this member, and takes its hints.
    pub reachable: bool,
    /// Whether it turns traffic away, as it says.
    pub draining: bool,
    /// Whether its lease is valid, as it says.
    pub lease_valid: bool,
    /// Whether it was removed, and Raft counts it still.
    pub removed: bool,
    /// The entry or snapshot that it cannot read, as it says; known only to the leader.
    pub cannot_read: Option<String>,
    /// Whether it has joined, and has not come yet: it has never forwarded a packet.
    pub joining: bool,
}

/// What this member sees of the others, and knows of itself.
pub(crate) struct Seen<'a> {
    pub(crate) reachability: &'a Reachability,
    pub(crate) roster: &'a Roster,
    /// Whether a majority was seen behind the leader lately.
    pub(crate) quorum_held: bool,
    pub(crate) own: Presence,
    pub(crate) refusals: &'a Refusals,
    pub(crate) lease: LeaseState,
}

pub(crate) fn status(
    identity: &Identity,
    metrics: &RaftMetrics<TypeConfig>,
    cluster: &ClusterState,
    seen: &Seen<'_>,
) -> Status {
    let Seen { reachability, roster, quorum_held, own, refusals, lease } = *seen;
    let me = identity.member;
    let index = |id: &Option<palisade_raft_store::LogId>| id.as_ref().map(|id| id.index);
    let role = match (&metrics.running_state, metrics.state) {
        (Err(_), _) | (_, ServerState::Shutdown) => RaftRole::Stopped,
        (_, ServerState::Leader) => RaftRole::Leader,
        (_, ServerState::Follower) => RaftRole::Follower,
        (_, ServerState::Learner) => RaftRole::Learner,
        (_, ServerState::Candidate) => RaftRole::Candidate,
    };
    let presence = |id: MemberId| if id == me { Some(own) } else { roster.get(id) };
    let configs = metrics.membership_config.membership().get_joint_config();
    let leader = metrics.current_leader.filter(|_| quorum_held);
    let member = |id: MemberId, info: &MemberInfo| {
        let matched =
            if role == RaftRole::Leader && id == me { metrics.last_log_index } else { matched_index(metrics, id) };
        Member {
            id,
            info: info.clone(),
            voter: metrics.membership_config.voter_ids().any(|voter| voter == id),
            suffrage: Suffrage::of(id, configs),
            leader: leader == Some(id),
            matched,
            lag: matched.map(|m| metrics.last_log_index.unwrap_or(0).saturating_sub(m)),
            reachable: id == me || (presence(id).is_some() && reachability.get(id)),
            draining: presence(id).is_some_and(|p| p.draining),
            lease_valid: presence(id).is_some_and(|p| p.lease_valid),
            removed: cluster.has_left(id),
            cannot_read: refusals.get(id).filter(|_| role == RaftRole::Leader),
            joining: cluster.joining.contains_key(&id),
        }
    };
    // A member that was removed counts until the voters have changed: as long as that takes, it is seen.
    let mut counted = cluster.members.clone();
    let leaving = metrics.membership_config.nodes().filter(|(id, _)| cluster.has_left(**id));
    counted.extend(leaving.map(|(id, info)| (*id, info.clone())));
    Status {
        cluster: identity.cluster.clone(),
        member: me,
        name: cluster.members.get(&me).map_or_else(|| identity.name.clone(), |info| info.name.clone()),
        starts: identity.starts,
        role,
        term: metrics.current_term,
        leader,
        quorum: Quorum::count(configs, quorum_held, |id| presence(id).is_some()),
        last_log: metrics.last_log_index,
        committed: index(&metrics.local_committed),
        applied: index(&metrics.last_applied),
        snapshot: index(&metrics.snapshot),
        purged: index(&metrics.purged),
        members: counted.iter().map(|(id, info)| member(*id, info)).collect(),
        lease,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffrage_is_that_of_the_old_and_the_new_voters() {
        let set = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<BTreeSet<_>>();
        let all = |configs: &[BTreeSet<MemberId>]| [1, 2, 3, 4].map(|id| Suffrage::of(MemberId(id), configs));
        use Suffrage::{BecomingLearner, BecomingVoter, Learner, Voter};
        assert_eq!(all(&[set(&[1, 2, 3])]), [Voter, Voter, Voter, Learner]);
        assert_eq!(all(&[set(&[1, 2, 3]), set(&[1, 2, 4])]), [Voter, Voter, BecomingLearner, BecomingVoter]);
        assert_eq!(all(&[]), [Learner; 4], "nothing is known yet");
    }
}
