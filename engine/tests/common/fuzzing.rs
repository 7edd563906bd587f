//! Fuzzing without a fuzzer: mutations of valid values for a decoder, which must neither panic nor allocate more than what is
//! really there accounts for. What includes this file says in `BASE_BYTES` what a decoder may allocate whatever it is given.
//!
//! Some thousand mutations for each decoder; ten million with `PALISADE_MUTATIONS=10000000`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, reason = "another test counts allocations")]
#[path = "counting.rs"]
pub(crate) mod counting;
#[path = "random.rs"]
mod random;

pub(crate) use self::random::{Random, mutations};
use super::BASE_BYTES;

/// What it may allocate for each byte that is there: a command of two bytes is one of a hundred in memory, and a vector that
/// grows is there twice for a moment.
pub(crate) const BYTES_PER_BYTE: i64 = 256;

impl Random {
    /// Bytes set, inserted and removed, lengths made large, the end cut off, or the end of another value appended.
    pub(crate) fn mutate(&mut self, data: &mut Vec<u8>, others: &[Vec<u8>]) {
        for _ in 0..=self.below(5) {
            let at = self.below(data.len());
            match self.below(8) {
                _ if data.is_empty() => data.push(self.next() as u8),
                0 | 1 => data[at] = self.next() as u8,
                2 => data[at] ^= 1 << self.below(8),
                3 => data.insert(at, self.next() as u8),
                4 => drop(data.drain(at..data.len().min(at + 1 + self.below(8)))),
                // A large varint: a length that is not there.
                5 => drop(data.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
                6 => data.truncate(at),
                _ => {
                    let other = &others[self.below(others.len())];
                    data.truncate(at);
                    data.extend(&other[self.below(other.len())..]);
                }
            }
        }
    }
}

/// Runs a decoder on mutations of valid values. It returns whether it has decoded something.
pub(crate) fn fuzz(name: &str, values: &[Vec<u8>], decode: impl Fn(&[u8]) -> bool) {
    let count = mutations();
    let mut random = Random(7);
    let (mut decoded, mut highest) = (0_u64, 0);
    for (n, value) in values.iter().enumerate() {
        assert!(decode(value), "{name}: valid value {n} is refused");
    }
    for n in 0..count {
        let mut data = values[random.below(values.len())].clone();
        random.mutate(&mut data, values);
        let mut done = Ok(false);
        let peak = counting::peak(|| {
            done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| decode(&data)));
        });
        let Ok(done) = done else { panic!("{name}, {n}: {data:?}") };
        decoded += u64::from(done);
        highest = highest.max(peak);
        assert!(peak <= BASE_BYTES + BYTES_PER_BYTE * data.len() as i64, "{name}, {n}: {peak} bytes for {data:?}");
    }
    // Both must occur, or nothing is tested.
    assert!(decoded > 0 && decoded < count, "{name}: {decoded} decoded");
    println!("{name}: {count} mutations, {decoded} decoded, at most {highest} bytes");
}
