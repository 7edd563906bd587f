//! A slab that grows in chunks. Its values never move, so growth never stalls a packet for a large copy.

const CHUNK: usize = 8;

/// Numbered places, reused after removal.
pub(crate) struct Slab<T> {
    chunks: Vec<Box<[Option<T>; CHUNK]>>,
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
            let first = self.places();
            self.chunks.push(Box::new(std::array::from_fn(|_| None)));
            // Lowest place first, so that a sparse slab stays short to scan.
            self.free.extend((first..first + CHUNK as u32).rev());
        }
        let place = self.free.pop().unwrap_or_default();
        if let Some(slot) = self.slot(place) {
            *slot = Some(value);
            self.len += 1;
        }
        place
    }

    pub(crate) fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.slot(place)?.take()?;
        self.free.push(place);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, place: u32) -> Option<&T> {
        self.chunks.get(place as usize / CHUNK)?[place as usize % CHUNK].as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.slot(place)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Places that exist, used or not: the end of a scan.
    pub(crate) fn places(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|c| c.iter().flatten())
    }

    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.places()).filter_map(|place| self.get(place).map(|value| (place, value)))
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.chunks.into_iter().flat_map(|c| (*c).into_iter().flatten())
    }

    fn slot(&mut self, place: u32) -> Option<&mut Option<T>> {
        self.chunks.get_mut(place as usize / CHUNK).map(|c| &mut c[place as usize % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_reuses_slots_and_values_stay() {
        let mut slab = Slab::default();
        let places: Vec<u32> = (0..200).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.places(), 200);
        assert_eq!(slab.remove(places[7]), Some(7));
        assert_eq!(slab.remove(places[7]), None);
        assert_eq!(slab.get(places[7]), None);
        assert_eq!(slab.insert(1000), places[7]);
        assert_eq!(slab.get(places[199]), Some(&199));
        assert_eq!(slab.len(), 200);
        assert_eq!(slab.iter().count(), 200);
        assert_eq!(slab.get(9999), None);
    }
}
