//! The types that openraft is instantiated with.

use openraft::EntryPayload;
use palisade_engine::replica::{Batch, Command, Outcome};
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

/// Approximately how many bytes an entry takes in memory. Only for bounds: exact enough that a cache of a given size is about
/// that size.
pub(crate) fn weight(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Membership(membership) => membership.nodes().count() * 128,
        EntryPayload::Normal(batch) => batch
            .commands
            .iter()
            .map(|command| match command {
                Command::Establish(_) => 224,
                Command::Close(_) => 48,
                Command::Expire(ids) | Command::Revoke(ids) => 48 + 16 * ids.len(),
                Command::Refresh(ids) => 48 + 16 * ids.len(),
                Command::ExpireIdle(idle) => 48 + 24 * idle.sessions.len(),
                Command::Resume => 16,
                Command::Policy(change) => 96 + change.text.len() + change.author.len(),
                Command::Member(_) => 256,
            })
            .sum(),
    };
    128 + payload
}
