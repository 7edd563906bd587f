//! The index from tuples to slots, in 8 bytes per entry.
//!
//! An entry holds 32 bits of the tuple's hash beside the slot, because packets wait for the shard's lock while the index grows: it
//! looks at nothing but its own entries then, which takes some nanoseconds each.

use hashbrown::HashTable;

#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    slot: u32,
}

/// One shard's index.
#[derive(Default)]
pub(crate) struct TupleIndex(HashTable<Entry>);

/// The bits that are kept: the highest and the lowest ones. Those between select the shard.
fn kept(hash: u64) -> u32 {
    (hash >> 57) as u32 | (hash as u32) << 7
}

/// Puts the bits back where `HashTable` wants them (it takes the bucket from the low and the tag from the high end).
fn spread(kept: u32) -> u64 {
    u64::from(kept & 127) << 57 | u64::from(kept >> 7)
}

impl TupleIndex {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slots of entries with this hash, and perhaps of others.
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        let hash = kept(hash);
        self.0.iter_hash(spread(hash)).filter(move |entry| entry.hash == hash).map(|entry| entry.slot)
    }

    pub(crate) fn insert(&mut self, hash: u64, slot: u32) {
        let hash = kept(hash);
        self.0.insert_unique(spread(hash), Entry { hash, slot }, |entry| spread(entry.hash));
    }

    pub(crate) fn remove(&mut self, hash: u64, slot: u32) {
        if let Ok(entry) = self.0.find_entry(spread(kept(hash)), |entry| entry.slot == slot) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuple_index_finds_what_was_inserted_and_not_removed() {
        let mut index = TupleIndex::default();
        assert!(index.is_empty());
        // Pairs with hashes that differ only in bits which are not kept.
        let hash = |slot: u32| (u64::from(slot / 2)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(slot & 1) << 40;
        for slot in 0..10_000 {
            index.insert(hash(slot), slot);
        }
        for slot in (0..10_000).step_by(3) {
            index.remove(hash(slot), slot);
        }
        for slot in 0..10_000 {
            assert_eq!(index.candidates(hash(slot)).any(|found| found == slot), slot % 3 > 0, "{slot}");
        }
        assert_eq!(index.candidates(hash(20_000)).count(), 0);
    }
}
