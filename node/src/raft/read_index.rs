//! ReadIndex: what had been committed when a question came (Ongaro, *Consensus*, section 6.4).
//!
//! The leader notes its commit index, then asks the voters whether they still follow it. A majority's yes, all of it given after the
//! question, shows that nobody else had committed anything by then. No clock takes part in that.
//!
//! openraft has this too, but takes the answer to an append for the answer to a later one that had no entries, which perhaps
//! never arrived: a leader that was cut off proved itself by answers to what it had sent before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::errors::Fatal;
use openraft::type_config::alias::VoteOf;
use palisade_engine::MemberId;
use palisade_engine::replica::MemberInfo;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::TypeConfig;

use crate::peer::route::{Lane, Peers};
use crate::raft::wire::vote_out;
use crate::replication::PalisadeRaft;

/// For how long the voters are waited for. A question that takes longer would prove almost nothing any more.
pub(crate) const DEADLINE: Duration = Duration::from_millis(400);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("this member does not lead")]
    NotLeader,
    #[error("this leader has not committed anything in its term yet")]
    TooNew,
    #[error("a majority of the voters did not confirm in time that this member leads")]
    Unconfirmed,
    #[error("the replication of this member has stopped: {0}")]
    Stopped(#[from] Fatal<TypeConfig>),
}

/// Asks for it, on the leader.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) peers: Peers,
}

/// What is read before the voters are asked.
struct Reading {
    vote: VoteOf<TypeConfig>,
    index: Option<u64>,
    /// All of them, and the majorities that are needed: two while the voters change.
    voters: BTreeMap<MemberId, MemberInfo>,
    configs: Vec<BTreeSet<MemberId>>,
}

impl ReadIndex {
    /// The index that must have been applied to know everything that was committed before this call.
    pub(crate) async fn read(&self) -> Result<u64, Unread> {
        let reading = self.raft.with_raft_state(|state| {
            let vote = *state.vote_ref();
            // Of its own term: what earlier leaders committed is known to be so only from then on.
            let committed = state.cluster_committed().filter(|id| id.leader_id == vote.leader_id);
            let membership = state.membership_state.effective().membership();
            let voter = |id| Some((id, membership.get_node(&id)?.clone()));
            Reading {
                vote,
                index: committed.map(|id| id.index),
                voters: membership.voter_ids().filter_map(voter).collect(),
                configs: membership.get_joint_config().clone(),
            }
        });
        let reading = reading.await?;
        if !reading.vote.committed || reading.vote.leader_id.node_id != self.me {
            return Err(Unread::NotLeader);
        }
        let index = reading.index.ok_or(Unread::TooNew)?;
        let confirmed = tokio::time::timeout(DEADLINE, self.confirmed(&reading)).await;
        confirmed.unwrap_or(false).then_some(index).ok_or(Unread::Unconfirmed)
    }

    /// Does a majority follow this leader, after now?
    async fn confirmed(&self, reading: &Reading) -> bool {
        let mut follow = BTreeSet::from([self.me]);
        let mut answers: FuturesUnordered<_> = reading
            .voters
            .iter()
            .filter(|(id, _)| **id != self.me)
            .map(|(id, info)| async move {
                let mut client = self.peers.client(*id, &info.address, Lane::Heartbeat).ok()?;
                let question = wire::ConfirmRequest { vote: Some(vote_out(&reading.vote)) };
                let answer = client.confirm(question).await;
                let answer =
                    answer.inspect_err(|status| tracing::debug!(member = %id, %status, "no confirmation")).ok()?;
                answer.into_inner().follows.then_some(*id)
            })
            .collect();
        loop {
            if is_majority(&follow, &reading.configs) {
                return true;
            }
            match answers.next().await {
                Some(answer) => follow.extend(answer),
                None => return false,
            }
        }
    }
}

fn is_majority(of: &BTreeSet<MemberId>, configs: &[BTreeSet<MemberId>]) -> bool {
    configs.iter().all(|voters| voters.intersection(of).count() * 2 > voters.len())
}

/// On a voter: does it follow this leader still? Its vote counts as soon as it is cast, before it is on the disk.
pub(crate) async fn follows(raft: &PalisadeRaft, vote: VoteOf<TypeConfig>) -> Result<bool, Fatal<TypeConfig>> {
    raft.with_raft_state(move |state| state.vote_ref().leader_id == vote.leader_id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_voters_change_both_majorities_are_needed() {
        let set = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<BTreeSet<_>>();
        let one = [set(&[1, 2, 3])];
        assert!(!is_majority(&set(&[1]), &one));
        assert!(is_majority(&set(&[1, 3]), &one));
        assert!(!is_majority(&set(&[1, 4]), &one), "no voter");
        let joint = [set(&[1, 2, 3]), set(&[1, 4, 5])];
        assert!(!is_majority(&set(&[1, 2, 3]), &joint));
        assert!(is_majority(&set(&[1, 2, 5]), &joint));
        assert!(!is_majority(&set(&[1, 2]), &[set(&[1, 2, 3, 4])]), "half is none");
    }
}
