//! The types that openraft is instantiated with.

use openraft::EntryPayload;
use palisade_engine::replica::{Batch, Outcome};
use palisade_engine::{MemberId, MemberInfo};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// Palisade's Raft: a log of [`Batch`]es, answered by [`Response`]s, between members.
    pub TypeConfig:
        D = Batch,
        R = Response,
        NodeId = MemberId,
        Node = MemberInfo,
);

/// What applying one entry did: one outcome a command; empty for entries that are not batches.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Response(pub Vec<Outcome>);

/// The position of an entry: term, leader, index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote, as saved.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// What a snapshot covers: its last log id and the membership then.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// A membership, with the position where it stands in the log.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// The approximate size of an entry in memory, in bytes. Exact enough that a cache of a given size is about that size.
pub(crate) fn memory_size(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Membership(membership) => membership.nodes().count() * 128,
        EntryPayload::Normal(batch) => batch.commands.iter().map(|command| command.size().in_memory).sum(),
    };
    128 + payload
}
