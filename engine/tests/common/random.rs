//! Random numbers for tests that mutate data, reproducible, and how many mutations there are.

/// Mutations per target, unless `PALISADE_MUTATIONS` gives another number.
const MUTATIONS: u64 = 20_000;

/// How many mutations of each target are tried.
pub(crate) fn mutations() -> u64 {
    std::env::var("PALISADE_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(MUTATIONS)
}

/// A small random number generator (splitmix64) with a fixed seed, so that failures are reproducible.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
