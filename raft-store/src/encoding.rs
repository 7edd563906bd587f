//! What lies on disk: our own types, converted explicitly, so that a change of openraft's cannot change the disk.
//!
//! ```text
//! version of the layout (u8) · content (postcard)
//! ```
//!
//! Each kind of value has a version of its own. The tests hold the bytes of each; a change of them is a new version, and
//! the storage format rises.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use openraft::entry::RaftEntry;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership};
use palisade_engine::{Level, MemberId, MemberInfo, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::decode_batch;
use crate::error::StoreOwner;
use crate::record::{damaged, damaged_by};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::unreadable::{Thing, Unknown, Unreadable};

/// A value of the disk.
pub(crate) trait Encoded: Sized {
    /// The bytes, written at the level in force.
    fn encode(&self, level: Level) -> io::Result<Vec<u8>>;

    /// The reverse. Bytes left over are an error.
    ///
    /// # Errors
    /// [`Unreadable`], which names `thing`, or damage.
    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<Self>;
}

#[derive(Serialize, Deserialize)]
struct PositionRecord {
    term: u64,
    leader: u64,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct VoteRecord {
    term: u64,
    member: u64,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct EntryRecord<'a> {
    position: PositionRecord,
    #[serde(borrow)]
    payload: PayloadRecord<'a>,
}

#[derive(Serialize, Deserialize)]
enum PayloadRecord<'a> {
    Blank,
    /// With its level in front.
    Batch(&'a [u8]),
    Membership(MembershipRecord),
}

#[derive(Serialize, Deserialize)]
struct MembershipRecord {
    configs: Vec<Vec<u64>>,
    nodes: Vec<NodeRecord>,
}

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    member: u64,
    name: String,
    address: String,
    /// 1: firewall, 2: witness.
    role: u8,
}

#[derive(Serialize, Deserialize)]
struct StoredMembershipRecord {
    position: Option<PositionRecord>,
    membership: MembershipRecord,
}

#[derive(Serialize, Deserialize)]
struct SnapshotMetaRecord {
    last: Option<PositionRecord>,
    membership: StoredMembershipRecord,
}

#[derive(Serialize, Deserialize)]
struct OwnerRecord {
    cluster: String,
    member: u64,
}

impl From<&LogId> for PositionRecord {
    fn from(id: &LogId) -> PositionRecord {
        PositionRecord { term: id.leader_id.term, leader: id.leader_id.node_id.0, index: id.index }
    }
}

type Leader = openraft::type_config::alias::LeaderIdOf<crate::types::TypeConfig>;

impl From<PositionRecord> for LogId {
    fn from(record: PositionRecord) -> LogId {
        LogId { leader_id: Leader::new(record.term, MemberId(record.leader)), index: record.index }
    }
}

impl From<&Membership<MemberId, MemberInfo>> for MembershipRecord {
    fn from(membership: &Membership<MemberId, MemberInfo>) -> MembershipRecord {
        let voters = |config: &BTreeSet<MemberId>| config.iter().map(|id| id.0).collect();
        let node = |(id, info): (&MemberId, &MemberInfo)| NodeRecord {
            member: id.0,
            name: info.name.clone(),
            address: info.address.clone(),
            role: match info.role {
                Role::Firewall => 1,
                Role::Witness => 2,
            },
        };
        MembershipRecord {
            configs: membership.get_joint_config().iter().map(voters).collect(),
            nodes: membership.nodes().map(node).collect(),
        }
    }
}

impl MembershipRecord {
    fn membership(self, thing: Thing) -> io::Result<Membership<MemberId, MemberInfo>> {
        let configs: Vec<BTreeSet<MemberId>> =
            self.configs.into_iter().map(|voters| voters.into_iter().map(MemberId).collect()).collect();
        let mut nodes = BTreeMap::new();
        for node in self.nodes {
            let role = match node.role {
                1 => Role::Firewall,
                2 => Role::Witness,
                role => {
                    let error = format!("member {} has the unknown role {role}", node.member);
                    return Err(Unreadable { thing, unknown: Unknown::Content { level: None, error } }.into());
                }
            };
            let info = MemberInfo { name: node.name, address: node.address, role };
            nodes.insert(MemberId(node.member), info);
        }
        if configs.is_empty() && nodes.is_empty() {
            // A store without any membership yet; openraft makes no other one that is empty.
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|error| damaged_by("the membership".to_owned(), error))
    }
}

/// A version and a record.
fn versioned(version: u8, record: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_extend(record, vec![version]).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The content behind the version, which is checked.
fn content(thing: Thing, version: u8, bytes: &[u8]) -> io::Result<&[u8]> {
    match bytes.split_first() {
        Some((found, content)) if *found == version => Ok(content),
        Some((found, _)) => Err(Unreadable { thing, unknown: Unknown::Layout((*found).into()) }.into()),
        None => Err(damaged("it is empty")),
    }
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged("there is more than was expected")),
        Err(error) => Err(damaged_by("it does not decode".to_owned(), error)),
    }
}

fn take_owned<T: DeserializeOwned>(thing: Thing, version: u8, bytes: &[u8]) -> io::Result<T> {
    take(content(thing, version, bytes)?)
}

const ENTRY: u8 = 1;
const VOTE: u8 = 1;
const POSITION: u8 = 1;
const OWNER: u8 = 1;
const SNAPSHOT_META: u8 = 1;

impl Encoded for Entry {
    fn encode(&self, level: Level) -> io::Result<Vec<u8>> {
        let batch;
        let payload = match &self.payload {
            EntryPayload::Blank => PayloadRecord::Blank,
            EntryPayload::Normal(commands) => {
                batch = commands.encode(level).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                PayloadRecord::Batch(&batch)
            }
            EntryPayload::Membership(membership) => PayloadRecord::Membership(membership.into()),
        };
        versioned(ENTRY, &EntryRecord { position: (&self.log_id).into(), payload })
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<Entry> {
        let record: EntryRecord<'_> = take(content(thing, ENTRY, bytes)?)?;
        let payload = match record.payload {
            PayloadRecord::Blank => EntryPayload::Blank,
            PayloadRecord::Batch(bytes) => {
                let batch = decode_batch(bytes);
                EntryPayload::Normal(batch.map_err(|unknown| io::Error::from(Unreadable { thing, unknown }))?)
            }
            PayloadRecord::Membership(membership) => EntryPayload::Membership(membership.membership(thing)?),
        };
        Ok(Entry::new(record.position.into(), payload))
    }
}

impl Encoded for Vote {
    fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
        let (term, member) = (self.leader_id.term, self.leader_id.node_id.0);
        versioned(VOTE, &VoteRecord { term, member, committed: self.committed })
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<Vote> {
        let record: VoteRecord = take_owned(thing, VOTE, bytes)?;
        Ok(Vote { leader_id: Leader::new(record.term, MemberId(record.member)), committed: record.committed })
    }
}

impl Encoded for LogId {
    fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
        versioned(POSITION, &PositionRecord::from(self))
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<LogId> {
        Ok(take_owned::<PositionRecord>(thing, POSITION, bytes)?.into())
    }
}

impl Encoded for Option<LogId> {
    fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
        versioned(POSITION, &self.as_ref().map(PositionRecord::from))
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<Option<LogId>> {
        Ok(take_owned::<Option<PositionRecord>>(thing, POSITION, bytes)?.map(LogId::from))
    }
}

impl Encoded for StoreOwner {
    fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
        versioned(OWNER, &OwnerRecord { cluster: self.cluster.clone(), member: self.member.0 })
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<StoreOwner> {
        let record: OwnerRecord = take_owned(thing, OWNER, bytes)?;
        Ok(StoreOwner { cluster: record.cluster, member: MemberId(record.member) })
    }
}

impl Encoded for SnapshotMeta {
    fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
        let membership = StoredMembershipRecord {
            position: self.last_membership.log_id().as_ref().map(PositionRecord::from),
            membership: self.last_membership.membership().into(),
        };
        let last = self.last_log_id.as_ref().map(PositionRecord::from);
        versioned(SNAPSHOT_META, &SnapshotMetaRecord { last, membership })
    }

    fn decode(thing: Thing, bytes: &[u8]) -> io::Result<SnapshotMeta> {
        let record: SnapshotMetaRecord = take_owned(thing, SNAPSHOT_META, bytes)?;
        let StoredMembershipRecord { position, membership } = record.membership;
        Ok(SnapshotMeta {
            last_log_id: record.last.map(LogId::from),
            last_membership: StoredMembership::new(position.map(LogId::from), membership.membership(thing)?),
        })
    }
}

/// Numbers have no layout but their own (LEB128): every version must be able to read the format's.
macro_rules! number {
    ($($number:ty),*) => {
        $(impl Encoded for $number {
            fn encode(&self, _: Level) -> io::Result<Vec<u8>> {
                postcard::to_stdvec(self).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            }

            fn decode(_: Thing, bytes: &[u8]) -> io::Result<$number> {
                take(bytes)
            }
        })*
    };
}

number!(u32, u64);

#[cfg(test)]
pub(crate) mod tests;
