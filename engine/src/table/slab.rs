//! A slab that grows by chunks. Values never move, so growing never stalls a packet for a large copy.

const CHUNK_SLOTS: usize = 8;

/// The number of a slot's block. A block is a chunk of a slab, with all its slots.
pub(crate) fn block_of(slot: u32) -> u32 {
    slot / CHUNK_SLOTS as u32
}

/// Numbered slots, reused after removal.
pub(crate) struct Slab<T> {
    chunks: Vec<Box<[Option<T>; CHUNK_SLOTS]>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if self.free.is_empty() {
            let first = self.slots();
            self.chunks.push(Box::new(std::array::from_fn(|_| None)));
            // Lowest slot first, so that a sparse slab stays short to scan.
            self.free.extend((first..first + CHUNK_SLOTS as u32).rev());
        }
        let slot = self.free.pop().unwrap_or_default();
        if let Some(entry) = self.entry(slot) {
            *entry = Some(value);
            self.len += 1;
        }
        slot
    }

    /// The slot that [`Slab::insert`] will use next.
    pub(crate) fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or_else(|| self.slots())
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.entry(slot)?.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.chunks.get(slot as usize / CHUNK_SLOTS)?[slot as usize % CHUNK_SLOTS].as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entry(slot)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of slots, used or not: the end of a scan.
    pub(crate) fn slots(&self) -> u32 {
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.chunks.len() as u32
    }

    /// The values of a block.
    pub(crate) fn block(&self, block: u32) -> impl Iterator<Item = &T> {
        self.chunks.get(block as usize).into_iter().flat_map(|c| c.iter().flatten())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|c| c.iter().flatten())
    }

    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.slots()).filter_map(|slot| self.get(slot).map(|value| (slot, value)))
    }

    fn entry(&mut self, slot: u32) -> Option<&mut Option<T>> {
        self.chunks.get_mut(slot as usize / CHUNK_SLOTS).map(|c| &mut c[slot as usize % CHUNK_SLOTS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_reuses_slots_and_keeps_values() {
        let mut slab = Slab::default();
        let insert = |n| {
            let next = slab.next_slot();
            assert_eq!(slab.insert(n), next);
            next
        };
        let slots: Vec<u32> = (0..200).map(insert).collect();
        assert_eq!((slab.slots(), slab.blocks()), (200, 25));
        assert_eq!(slab.remove(slots[7]), Some(7));
        assert_eq!(slab.remove(slots[7]), None);
        assert_eq!(slab.get(slots[7]), None);
        assert_eq!(slab.block(block_of(slots[7])).count(), 7);
        assert_eq!(slab.next_slot(), slots[7]);
        assert_eq!(slab.insert(1000), slots[7]);
        assert_eq!(slab.block(25).count(), 0);
        assert_eq!(slab.get(slots[199]), Some(&199));
        assert_eq!(slab.len(), 200);
        assert_eq!(slab.iter().count(), 200);
        assert_eq!(slab.get(9999), None);
    }
}
