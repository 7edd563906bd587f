//! The number of half-open sessions by source address, so that one source cannot fill the whole table: a count-min sketch
//! (Cormode and Muthukrishnan, 2005).
//!
//! Two rows of counters, each with its own hash. The estimate for a source is the smaller of its two counters. It is never too
//! low, and too high only if both counters are shared with other active sources. The memory is fixed, independently of the
//! number of sources that an attacker invents.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};

use foldhash::quality::FixedState;

use crate::addr::Ip;

/// Counters per row: a power of two.
const COUNTERS_PER_ROW: usize = 1 << 16;

/// The sketch.
pub(crate) struct SourceSketch {
    rows: [Box<[AtomicU32]>; 2],
    hasher: FixedState,
}

impl SourceSketch {
    pub(crate) fn new(seed: u64) -> SourceSketch {
        let row = || (0..COUNTERS_PER_ROW).map(|_| AtomicU32::new(0)).collect();
        SourceSketch { rows: [row(), row()], hasher: FixedState::with_seed(seed) }
    }

    pub(crate) fn add(&self, source: Ip) {
        for counter in self.counters(source) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes back one [`SourceSketch::add`].
    pub(crate) fn remove(&self, source: Ip) {
        for counter in self.counters(source) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count(&self, source: Ip) -> u32 {
        let [a, b] = self.counters(source).map(|counter| counter.load(Ordering::Relaxed));
        a.min(b)
    }

    fn counters(&self, source: Ip) -> [&AtomicU32; 2] {
        let hash = match source {
            Ip::V4(address) => self.hasher.hash_one(address),
            // One host may use any address of its /64 network (RFC 4291 section 2.5.1).
            Ip::V6([a, b, c, d, e, f, g, h, ..]) => self.hasher.hash_one([a, b, c, d, e, f, g, h]),
        };
        let [first, second] = &self.rows;
        [&first[hash as usize % COUNTERS_PER_ROW], &second[(hash >> 32) as usize % COUNTERS_PER_ROW]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_sketch_counts_sources_apart_and_networks_together() {
        let sources = SourceSketch::new(3);
        let v4 = |n: u32| Ip::V4(n.to_be_bytes());
        for n in 0..1000 {
            sources.add(v4(n));
        }
        for _ in 0..50 {
            sources.add(v4(7));
        }
        assert_eq!(sources.count(v4(7)), 51);
        let too_high = (0..1000).filter(|&n| n != 7 && sources.count(v4(n)) != 1).count();
        assert!(too_high <= 2, "{too_high}");
        assert!((1000..2000).filter(|&n| sources.count(v4(n)) > 0).count() <= 5);
        (0..51).for_each(|_| sources.remove(v4(7)));
        assert_eq!(sources.count(v4(7)), 0);

        let v6 = |net: u8, host: u8| Ip::V6([0x20, 1, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, host]);
        sources.add(v6(1, 1));
        sources.add(v6(1, 2));
        assert_eq!((sources.count(v6(1, 3)), sources.count(v6(2, 1))), (2, 0));
    }
}
