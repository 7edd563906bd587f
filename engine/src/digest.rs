//! The digest of the replicated state: an order-independent, incremental hash.
//!
//! The digest is the sum modulo 2^64 of the hashes of all elements (sessions, outcomes, removed ids). Adding or removing an
//! element is one addition, and the order of the elements does not matter. The digest compares the tables of members that
//! trust each other; it is no defence against forgery. It is part of the snapshot format: a different hash function needs a new
//! format version.
//!
//! What is hashed is a canonical encoding: a base, and for each field that a later level adds an extension, left out where it has
//! its default. What is added to the register has elements of its own, and none by default. So a raise of the level changes no
//! existing hash. Nothing that is hashed is a text made by a program.

use serde::Serialize;

use crate::encoding::{Extensible, ExtensionWriter, write_content};

/// The multiplier of the hash: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The kind of a hashed element. Equal bytes of different kinds have different hashes.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Session = 1,
    Outcome = 2,
    LowestOutstanding = 3,
    Tombstone = 4,
    Register = 5,
    ResumeEpoch = 6,
    Level = 7,
    Capabilities = 8,
    Settings = 9,
    #[cfg(feature = "next-level")]
    Note = 0xffff,
}

/// The hash of an element whose later fields are extensions. What does not use them has the hash of its base.
pub(crate) fn extensible_element(kind: Kind, value: &impl Extensible) -> u64 {
    let mut extensions = Vec::new();
    // It fails only if memory does, or the value cannot be encoded; then it can be neither in the log nor in a snapshot.
    let written = value.write_extensions(&mut ExtensionWriter::new(&mut extensions));
    if extensions.is_empty() || written.is_err() {
        return element(kind, value);
    }
    let mut bytes = Vec::new();
    write_content(&mut bytes, value).map_or(0, |()| hash(kind as u64, &bytes))
}

/// The hash of an element, from its encoding.
pub(crate) fn element(kind: Kind, value: &impl Serialize) -> u64 {
    // Sessions fit. Other elements may be longer.
    let mut buffer = [0; 192];
    match postcard::to_slice(value, &mut buffer) {
        Ok(bytes) => hash(kind as u64, bytes),
        Err(_) => postcard::to_stdvec(value).map_or(0, |bytes| hash(kind as u64, &bytes)),
    }
}

fn hash(kind: u64, bytes: &[u8]) -> u64 {
    let mix = |h: u64, word: u64| (h.rotate_left(29) ^ word).wrapping_mul(MULTIPLIER);
    let mut h = mix(mix(MULTIPLIER, kind), bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        h = mix(h, u64::from_le_bytes(word));
    }
    // Hashes that are summed up need all bits well mixed: the finalizer of SplitMix64.
    h = (h ^ h >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ h >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ h >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_element_differs_by_kind_length_and_content() {
        let all = [
            element(Kind::Session, &0_u8),
            element(Kind::Outcome, &0_u8),
            element(Kind::Session, &1_u8),
            element(Kind::Session, &(0_u8, 0_u8)),
            element(Kind::Session, &vec![0_u8; 300]),
            element(Kind::Session, &vec![0_u8; 301]),
        ];
        for (n, a) in all.iter().enumerate() {
            assert!(all.iter().skip(n + 1).all(|b| a != b));
        }
    }

    #[test]
    fn digest_element_is_stable_for_the_snapshot_format() {
        assert_eq!(element(Kind::Session, &7_u64), 14_712_325_941_267_750_851);
    }
}
