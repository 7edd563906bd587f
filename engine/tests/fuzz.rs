//! The fuzz targets without the fuzzer: the whole corpora, and some thousand random mutations for each target.
//!
//! With ten million mutations: `PALISADE_MUTATIONS=10000000 cargo test --release -p palisade-engine --test fuzz`.
//! With the fuzzer itself, for hours: `cd engine && cargo +nightly fuzz run parse` (or `pipeline`, `policy`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs, reason = "a test")]

#[path = "common/random.rs"]
mod random;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

use self::random::{Random, mutations};

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
    for n in 0..mutations() {
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
