//! Conversion of openraft's types to the wire and back. What comes from the wire may be incomplete.

use std::collections::{BTreeMap, BTreeSet};

use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership};
use palisade_engine::{EncodeError, Level, MemberId, MemberInfo};
use palisade_proto::convert::MemberError;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::{Thing, TypeConfig, Unknown, Unreadable, decode_batch};

use crate::raft::unreadable::refusal;

/// Why a Raft message cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// A part of it.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// A membership that contradicts itself.
    #[error("the membership is invalid")]
    Membership(#[from] openraft::errors::MembershipError<MemberId>),
    /// An entry that another version wrote.
    #[error("this member cannot read {0}")]
    Unreadable(#[from] Unreadable),
    /// A batch cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The entries of an append do not follow each other.
    #[error("the entries of an append do not follow each other")]
    OutOfOrder,
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> tonic::Status {
        match &error {
            WireError::Unreadable(unreadable) => refusal(unreadable),
            error => tonic::Status::invalid_argument(crate::error::chain(error)),
        }
    }
}

type Leader = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

fn need<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Member(MemberError::Missing(field)))
}

pub(crate) fn vote_out(vote: &VoteOf<TypeConfig>) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, member: vote.leader_id.node_id.0, committed: vote.committed }
}

pub(crate) fn vote_in(vote: Option<wire::Vote>) -> Result<VoteOf<TypeConfig>, WireError> {
    let vote = need(vote, "vote")?;
    let leader_id = Leader::new(vote.term, MemberId(vote.member));
    Ok(openraft::Vote { leader_id, committed: vote.committed })
}

pub(crate) fn log_id_out(id: &LogIdOf<TypeConfig>) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, member: id.leader_id.node_id.0, index: id.index }
}

pub(crate) fn log_id_in(id: wire::LogId) -> LogIdOf<TypeConfig> {
    LogIdOf::<TypeConfig> { leader_id: Leader::new(id.term, MemberId(id.member)), index: id.index }
}

fn membership_out(membership: &Membership<MemberId, MemberInfo>) -> wire::Membership {
    let configs = membership.get_joint_config().iter();
    wire::Membership {
        configs: configs.map(|c| wire::membership::Config { voters: c.iter().map(|id| id.0).collect() }).collect(),
        nodes: membership
            .nodes()
            .map(|(id, info)| wire::membership::Node { member: id.0, info: Some(info.into()) })
            .collect(),
    }
}

fn membership_in(membership: wire::Membership) -> Result<Membership<MemberId, MemberInfo>, WireError> {
    let configs: Vec<BTreeSet<MemberId>> =
        membership.configs.into_iter().map(|c| c.voters.into_iter().map(MemberId).collect()).collect();
    let mut nodes = BTreeMap::new();
    for node in membership.nodes {
        nodes.insert(MemberId(node.member), MemberInfo::try_from(need(node.info, "info")?)?);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Ok(Membership::new(configs, nodes)?)
}

fn entry_out(entry: &EntryOf<TypeConfig>, level: Level) -> Result<wire::Entry, WireError> {
    let payload = match &entry.payload {
        EntryPayload::Blank => wire::entry::Payload::Blank(wire::Empty {}),
        EntryPayload::Normal(batch) => wire::entry::Payload::Batch(batch.encode(level)?.into()),
        EntryPayload::Membership(m) => wire::entry::Payload::Membership(membership_out(m)),
    };
    Ok(wire::Entry { id: Some(log_id_out(&entry.log_id)), payload: Some(payload) })
}

/// What cannot be read in an entry of the leader's log is nothing to ask for again: the leader has it as it is.
fn entry_in(entry: wire::Entry) -> Result<EntryOf<TypeConfig>, WireError> {
    let id = log_id_in(need(entry.id, "id")?);
    let unreadable = |unknown| WireError::Unreadable(Unreadable { thing: Thing::Entry(id.index), unknown });
    let content = |error: String| unreadable(Unknown::Content { level: None, error });
    let payload = match entry.payload {
        Some(wire::entry::Payload::Blank(_)) => EntryPayload::Blank,
        Some(wire::entry::Payload::Batch(bytes)) => EntryPayload::Normal(decode_batch(&bytes).map_err(unreadable)?),
        Some(wire::entry::Payload::Membership(m)) => {
            EntryPayload::Membership(membership_in(m).map_err(|error| content(crate::error::chain(&error)))?)
        }
        None => return Err(content("it is of an unknown kind".to_owned())),
    };
    Ok(EntryOf::<TypeConfig>::new(id, payload))
}

pub(crate) fn append_out(
    request: &AppendEntriesRequest<TypeConfig>,
    level: Level,
) -> Result<wire::AppendRequest, WireError> {
    Ok(wire::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_out),
        entries: request.entries.iter().map(|entry| entry_out(entry, level)).collect::<Result<_, _>>()?,
        commit: request.leader_commit.as_ref().map(log_id_out),
    })
}

/// The vote of an append whose entries need not be readable.
pub(crate) fn append_vote(request: &wire::AppendRequest) -> Result<VoteOf<TypeConfig>, WireError> {
    vote_in(request.vote)
}

/// openraft asserts that entries follow each other; what came over the wire must be checked before.
pub(crate) fn append_in(request: wire::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let previous = request.previous.map(log_id_in);
    let entries = request.entries.into_iter().map(entry_in).collect::<Result<Vec<_>, _>>()?;
    let mut last = previous;
    for entry in &entries {
        let follows = match last {
            Some(last) => {
                entry.log_id.index == last.index.saturating_add(1) && entry.log_id.leader_id >= last.leader_id
            }
            None => entry.log_id.index == 0,
        };
        if !follows {
            return Err(WireError::OutOfOrder);
        }
        last = Some(entry.log_id);
    }
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: request.commit.map(log_id_in),
    })
}

pub(crate) fn appended_out(result: &StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as R;
    let result = match result {
        Ok(id) => R::Matching(wire::Matching { id: id.as_ref().map(log_id_out) }),
        Err(StreamAppendError::Conflict(id)) => R::Conflict(log_id_out(id)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(vote_out(vote)),
    };
    wire::AppendResponse { result: Some(result) }
}

pub(crate) fn appended_in(response: wire::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    use wire::append_response::Result as R;
    Ok(match need(response.result, "result")? {
        R::Matching(m) => Ok(m.id.map(log_id_in)),
        R::Conflict(id) => Err(StreamAppendError::Conflict(log_id_in(id))),
        R::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_in(Some(vote))?)),
    })
}

pub(crate) fn vote_request_out(request: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_in(request: wire::VoteRequest) -> Result<VoteRequest<TypeConfig>, WireError> {
    let mut raft = VoteRequest::new(vote_in(request.vote)?, request.last.map(log_id_in));
    raft.leadership_transfer = request.leadership_transfer;
    Ok(raft)
}

pub(crate) fn vote_response_out(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_out),
    }
}

pub(crate) fn vote_response_in(response: wire::VoteResponse) -> Result<VoteResponse<TypeConfig>, WireError> {
    Ok(VoteResponse::new(vote_in(response.vote)?, response.last.map(log_id_in), response.granted))
}

pub(crate) fn transfer_out(request: &TransferLeaderRequest<TypeConfig>) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        from: Some(vote_out(request.from_leader())),
        to: request.to_node_id().0,
        last: request.last_log_id().map(log_id_out),
    }
}

pub(crate) fn transfer_in(
    request: wire::TransferLeaderRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    Ok(TransferLeaderRequest::new(vote_in(request.from)?, MemberId(request.to), request.last.map(log_id_in)))
}

pub(crate) fn transferred_out(response: &TransferLeaderResponse<TypeConfig>) -> wire::TransferLeaderResponse {
    use wire::transfer_leader_response::Refusal;
    let refusal = match response {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refusal::VoteChanged(vote_out(actual))),
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            Some(Refusal::NotFlushed(wire::NotFlushed { last: actual.as_ref().map(log_id_out) }))
        }
    };
    wire::TransferLeaderResponse { refusal }
}

pub(crate) fn transferred_in(
    response: wire::TransferLeaderResponse,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, WireError> {
    use wire::transfer_leader_response::Refusal;
    Ok(match response.refusal {
        None => Ok(()),
        Some(Refusal::VoteChanged(vote)) => {
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: vote_in(Some(vote))? })
        }
        Some(Refusal::NotFlushed(at)) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: at.last.map(log_id_in),
        }),
    })
}

#[cfg(test)]
mod fuzz;
