//! ReadIndex: what was committed before a question came (Ongaro, *Consensus*, section 6.4).
//!
//! The leader notes its commit index, then asks the voters whether they still follow it. When a majority confirms, each
//! voter after the question, no other leader had committed anything before it. No clock takes part in that.
//!
//! openraft's own ReadIndex is not used: it takes a response to an append for one to a later append without entries, which
//! perhaps never arrived. A partitioned leader then used responses to *earlier* appends as proof of leadership.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use openraft::errors::Fatal;
use openraft::type_config::alias::VoteOf;
use palisade_engine::MemberId;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::TypeConfig;

use crate::peer::connections::{Lane, Members, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::handle::RaftHandle;
use crate::raft::wire::vote_out;

/// How long the voters may take. A lease that is renewed later than that would be almost over.
pub(crate) const READ_INDEX_TIMEOUT: Duration = Duration::from_millis(400);

/// Why there is no read index.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadIndexError {
    #[error("this member does not lead")]
    NotLeader,
    #[error("this leader has not committed anything in its term yet")]
    NothingCommitted,
    #[error("a majority of the voters did not confirm in time that this member leads")]
    Unconfirmed,
    #[error("the replication of this member has stopped: {0}")]
    Stopped(#[from] Fatal<TypeConfig>),
}

/// The leader's source of read indices.
#[derive(Clone)]
pub(crate) struct ReadIndex {
    pub(crate) me: MemberId,
    pub(crate) raft: PalisadeRaft,
    pub(crate) peers: Peers,
}

/// The state of Raft before the voters are asked.
struct Reading {
    vote: VoteOf<TypeConfig>,
    index: Option<u64>,
    /// All voters, and the sets of voters that need a majority each: two while the voters change.
    voters: Members,
    configs: Vec<BTreeSet<MemberId>>,
}

impl ReadIndex {
    /// The index that a member must have applied to know everything that was committed before this call.
    pub(crate) async fn read(&self) -> Result<u64, ReadIndexError> {
        let reading = self.raft.read_state(|state| {
            let vote = *state.vote_ref();
            // An index of its own term: only then does a leader know what earlier leaders committed.
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
            return Err(ReadIndexError::NotLeader);
        }
        let index = reading.index.ok_or(ReadIndexError::NothingCommitted)?;
        self.confirmed(&reading).await.then_some(index).ok_or(ReadIndexError::Unconfirmed)
    }

    /// Whether a majority follows this leader, after now.
    async fn confirmed(&self, reading: &Reading) -> bool {
        let mut follow = BTreeSet::from([self.me]);
        let vote = vote_out(&reading.vote);
        let answers =
            self.peers.fan_out(&reading.voters, Lane::Heartbeat, READ_INDEX_TIMEOUT, |mut client| async move {
                client.confirm(wire::ConfirmRequest { vote: Some(vote) }).await
            });
        let mut answers = std::pin::pin!(answers);
        loop {
            if is_majority(&follow, &reading.configs) {
                return true;
            }
            match answers.next().await {
                Some((id, Ok(answer))) if answer.follows => _ = follow.insert(id),
                Some(_) => {}
                None => return false,
            }
        }
    }
}

fn is_majority(of: &BTreeSet<MemberId>, configs: &[BTreeSet<MemberId>]) -> bool {
    configs.iter().all(|voters| voters.intersection(of).count() * 2 > voters.len())
}

/// On a voter: whether it still follows this leader. A vote counts as soon as it is cast, before it is on the disk.
pub(crate) async fn follows(raft: &PalisadeRaft, vote: VoteOf<TypeConfig>) -> Result<bool, Fatal<TypeConfig>> {
    raft.read_state(move |state| state.vote_ref().leader_id == vote.leader_id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_index_needs_both_majorities_while_voters_change() {
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
