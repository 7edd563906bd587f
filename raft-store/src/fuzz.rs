//! Every decoder of what comes from the disk, fed with mutations of valid values.

#[path = "../../engine/tests/common/fuzzing.rs"]
mod fuzzing;

use std::io;
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use palisade_engine::Level;
use palisade_engine::replica::{Batch, Command};
use sled::IVec;

use self::fuzzing::fuzz;
use crate::encoding::Encoded;
use crate::encoding::tests::{batch, membership, position};
use crate::error::StoreOwner;
use crate::record::{Entries, MAX_PART_BYTES, open, seal_entry};
use crate::snapshot::{Pace, SnapshotFile};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::unreadable::Thing;

/// What a decoder may allocate whatever it is given: serde reserves at most 1 MiB for a length that is only claimed, and lists may
/// be in a list.
const BASE_BYTES: i64 = (2 << 20) + (1 << 18);

const THING: Thing = Thing::Record("fuzz");

fn encoded<T: Encoded>(values: &[T]) -> Vec<Vec<u8>> {
    values.iter().map(|value| value.encode(Level::FIRST).unwrap()).collect()
}

/// What was decoded is encoded again, and is then the same.
fn survives<T: Encoded + PartialEq>(bytes: &[u8]) -> bool {
    match T::decode(THING, bytes) {
        Ok(value) => {
            let again = value.encode(Level::FIRST).unwrap();
            assert!(T::decode(THING, &again).unwrap() == value);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

fn metas() -> [SnapshotMeta; 2] {
    let last_membership = StoredMembership::new(Some(position(200)), membership());
    [
        SnapshotMeta { last_log_id: Some(position(258)), last_membership },
        SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() },
    ]
}

#[test]
fn decoder_of_entries_survives_mutations() {
    let values = [
        Entry::new(position(258), EntryPayload::Blank),
        Entry::new(position(258), EntryPayload::Normal(batch())),
        Entry::new(position(u64::MAX), EntryPayload::Membership(membership())),
        Entry::new(position(0), EntryPayload::Normal(Batch { commands: vec![Command::Resume; 64], ..batch() })),
    ];
    fuzz("entries", &encoded(&values), survives::<Entry>);
}

#[test]
fn decoders_of_the_meta_tree_survive_mutations() {
    let vote = |term, committed| Vote { leader_id: position(term).leader_id, committed };
    fuzz("votes", &encoded(&[vote(1, true), vote(u64::MAX, false)]), survives::<Vote>);
    fuzz("positions", &encoded(&[position(1), position(u64::MAX)]), survives::<LogId>);
    fuzz("committed", &encoded(&[None, Some(position(u64::MAX))]), survives::<Option<LogId>>);
    let owner = |cluster: &str| StoreOwner { cluster: cluster.to_owned(), member: palisade_engine::MemberId(300) };
    fuzz("owners", &encoded(&[owner("c1"), owner(&"x".repeat(64))]), survives::<StoreOwner>);
    fuzz("numbers", &encoded(&[0u64, 300, u64::MAX]), survives::<u64>);
    fuzz("snapshot metas", &encoded(&metas()), survives::<SnapshotMeta>);
}

#[test]
fn decoder_of_records_survives_mutations() {
    let values: Vec<_> = [1, 100, MAX_PART_BYTES]
        .map(|len| seal_entry(7, &vec![0xa5; len]).unwrap().remove(0).1)
        .into_iter()
        .chain(seal_entry(7, &vec![1; 2 * MAX_PART_BYTES]).unwrap().into_iter().map(|(_, record)| record))
        .collect();
    let key = crate::record::key(7, 0);
    let whole = values[0].clone();
    fuzz("records", std::slice::from_ref(&whole), |record| open(&key, record).is_ok());
    // An entry in parts, some of which are mutated.
    fuzz("parts", &[values[1].clone(), values[2].clone()], |record| {
        let pair = |part, record: &[u8]| Ok((IVec::from(&crate::record::key(7, part)), IVec::from(record)));
        let found = Entries::new([pair(0, record), pair(1, &whole)].into_iter()).next_entry();
        found.is_ok()
    });
}

#[test]
fn decoder_of_snapshot_files_survives_mutations() {
    let file = |meta: &SnapshotMeta, body: &[u8]| {
        let snapshots = crate::snapshot::Snapshots::memory(Arc::new(|| palisade_engine::Time(1)));
        let file = snapshots.write(Level::FIRST, meta, Pace::Full, |to| to.write_all(body)).unwrap();
        file.chunk(0, usize::MAX).unwrap()
    };
    let [one, none] = metas();
    let values = [file(&one, &[7; 300]), file(&none, &[]), file(&none, b"body")];
    fuzz("snapshot files", &values, |bytes| {
        let checked: io::Result<SnapshotFile> = SnapshotFile::from_memory(bytes.to_vec());
        checked.is_ok()
    });
}
