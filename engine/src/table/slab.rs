//! A slab that grows by chunks. Values never move, so growing never stalls a packet for a large copy.

const CHUNK_SLOTS: usize = 8;

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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|c| c.iter().flatten())
    }

    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.slots()).filter_map(|slot| self.get(slot).map(|value| (slot, value)))
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.chunks.into_iter().flat_map(|c| (*c).into_iter().flatten())
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
        let slots: Vec<u32> = (0..200).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.slots(), 200);
        assert_eq!(slab.remove(slots[7]), Some(7));
        assert_eq!(slab.remove(slots[7]), None);
        assert_eq!(slab.get(slots[7]), None);
        assert_eq!(slab.insert(1000), slots[7]);
        assert_eq!(slab.get(slots[199]), Some(&199));
        assert_eq!(slab.len(), 200);
        assert_eq!(slab.iter().count(), 200);
        assert_eq!(slab.get(9999), None);
    }
}
