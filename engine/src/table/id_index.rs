//! The index from session ids to slots, in 8 bytes per session.
//!
//! An entry holds 32 bits of the id's hash and the slot. The full id is in the table, where the caller compares it. Two ids may
//! share the same 32 bits, so a lookup returns candidates.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::id::SessionId;

/// A slot of the table: shard number and slot number in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotRef(u32);

/// Maximum number of slots in a shard: the bits of a word that the shard number leaves.
pub(crate) const SLOTS_PER_SHARD: u32 = 1 << 24;

impl SlotRef {
    pub(crate) fn new(shard: u8, slot: u32) -> SlotRef {
        debug_assert!(slot < SLOTS_PER_SHARD);
        SlotRef(u32::from(shard) << 24 | slot)
    }

    pub(crate) fn shard(self) -> u8 {
        (self.0 >> 24) as u8
    }

    pub(crate) fn slot(self) -> u32 {
        self.0 & (SLOTS_PER_SHARD - 1)
    }
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    at: SlotRef,
}

/// The number of hash tables: so many that one grows within some microseconds, for a shard is locked meanwhile. Not a power of
/// two: otherwise these tables and those of the shards would have the most spare capacity at the same sizes.
const STRIPES: usize = 384;

/// The index. Its locks are leaves: no other lock is taken while one of them is held.
pub(crate) struct IdIndex {
    stripes: Box<[Mutex<HashTable<Entry>>]>,
    hasher: FixedState,
}

/// Spreads 32 bits over the 64 that `HashTable` wants (it takes the bucket from the low and the tag from the high end).
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(hash)
}

impl IdIndex {
    pub(crate) fn new(seed: u64) -> IdIndex {
        IdIndex {
            stripes: (0..STRIPES).map(|_| Mutex::new(HashTable::new())).collect(),
            hasher: FixedState::with_seed(seed),
        }
    }

    fn stripe(&self, id: SessionId) -> (&Mutex<HashTable<Entry>>, u32) {
        let hash = self.hasher.hash_one((id.member.0, id.counter));
        (&self.stripes[(hash >> 32) as usize % STRIPES], hash as u32)
    }

    pub(crate) fn insert(&self, id: SessionId, at: SlotRef) {
        let (stripe, hash) = self.stripe(id);
        stripe.lock().insert_unique(spread(hash), Entry { hash, at }, |e| spread(e.hash));
    }

    pub(crate) fn remove(&self, id: SessionId, at: SlotRef) {
        let (stripe, hash) = self.stripe(id);
        if let Ok(entry) = stripe.lock().find_entry(spread(hash), |e| e.hash == hash && e.at == at) {
            entry.remove();
        }
    }

    /// The slots that the session may be in: nearly always none or one, at most four.
    pub(crate) fn candidates(&self, id: SessionId) -> impl Iterator<Item = SlotRef> + use<> {
        let (stripe, hash) = self.stripe(id);
        let mut found = [None; 4];
        let stripe = stripe.lock();
        for (slot, entry) in found.iter_mut().zip(stripe.iter_hash(spread(hash)).filter(|e| e.hash == hash)) {
            *slot = Some(entry.at);
        }
        found.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MemberId;

    #[test]
    fn id_index_finds_only_inserted_ids() {
        let ids = IdIndex::new(7);
        let id = |n| SessionId { member: MemberId(n % 3), counter: n };
        for n in 0..10_000 {
            ids.insert(id(n), SlotRef::new((n % 256) as u8, n as u32));
        }
        for n in 0..10_000 {
            assert!(ids.candidates(id(n)).any(|p| p == SlotRef::new((n % 256) as u8, n as u32)));
        }
        ids.remove(id(5), SlotRef::new(5, 5));
        assert!(!ids.candidates(id(5)).any(|p| p.slot() == 5));
        assert_eq!(ids.candidates(id(20_000)).count(), 0);
    }
}
