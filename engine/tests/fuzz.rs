//! The fuzz targets without the fuzzer: the whole corpora, and some thousand random mutations for each target.
//!
//! With ten million mutations: `PALISADE_MUTATIONS=10000000 cargo test --release -p palisade-engine --test fuzz`.
//! With the fuzzer itself, for hours: `cd engine && cargo +nightly fuzz run parse` (or `pipeline`, `policy`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs, reason = "a test")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// Random mutations per target, unless `PALISADE_MUTATIONS` gives another number.
const MUTATIONS: u64 = 20_000;

/// A small random number generator (splitmix64) with a fixed seed, so that failures are reproducible.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// A mutated corpus entry: bytes set, inserted and removed, parts duplicated, or the end of another entry appended.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut data = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(6) {
            _ if data.is_empty() => data.push(random.next() as u8),
            0 | 1 => data[at] = random.next() as u8,
            2 => data[at] ^= 1 << random.below(8),
            3 => data.insert(at, random.next() as u8),
            4 => drop(data.drain(at..data.len().min(at + 1 + random.below(8)))),
            _ => {
                let other = &corpus[random.below(corpus.len())];
                data.truncate(at);
                data.extend(&other[random.below(other.len())..]);
            }
        }
    }
    data
}

fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(corpus.len() >= 5, "{} is empty", folder.display());
    let run = |what: &dyn std::fmt::Display, data: &[u8]| {
        if std::panic::catch_unwind(|| target(data)).is_err() {
            panic!("{name}, {what}: {data:?}");
        }
    };
    for (path, data) in paths.iter().zip(&corpus) {
        run(&path.display(), data);
    }
    let mut random = Random(7);
    let count = std::env::var("PALISADE_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(MUTATIONS);
    for n in 0..count {
        run(&n, &mutated(&corpus, &mut random));
    }
}

#[test]
fn parse() {
    replay("parse", targets::parse);
}

#[test]
fn pipeline() {
    replay("pipeline", targets::pipeline);
}

#[test]
fn policy() {
    replay("policy", targets::policy);
}
