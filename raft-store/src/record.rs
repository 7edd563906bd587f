//! Records: how values lie in sled.
//!
//! Every value is a record: a version, how many parts there are, a CRC over key and content, and the content. A value
//! longer than [`MAX_PART_BYTES`] is cut into parts, because sled puts values of 16 KiB and more into files that it never syncs.
//!
//! ```text
//! key    index (u64, big endian) · part (u16, big endian)      log tree
//!        name                                                  meta tree (one part)
//! value  version (u8) · parts (u16) · crc32 (u32) · content    integers big endian
//! ```
//!
//! The CRC covers the key, so that a record that turns up under another key is found out as well.

use std::io;

use palisade_engine::Level;
use sled::IVec;

use crate::encoding::Encoded;
use crate::unreadable::{Thing, Unreadable};

/// Most content of one record: with its header below 8 KiB.
pub(crate) const MAX_PART_BYTES: usize = 8 * 1024 - HEADER;
const HEADER: usize = 7;
const VERSION: u8 = 1;

/// The key of one part of one entry. Big endian, so that sled's order is the log's.
pub(crate) fn key(index: u64, part: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The reverse of [`key`].
pub(crate) fn parse_key(key: &[u8]) -> io::Result<(u64, u16)> {
    let (index, part) = key.split_first_chunk::<8>().ok_or_else(|| damaged("a key of the log is too short"))?;
    let part: [u8; 2] = part.try_into().map_err(|_| damaged("a key of the log has the wrong length"))?;
    Ok((u64::from_be_bytes(*index), u16::from_be_bytes(part)))
}

fn crc(key: &[u8], version: u8, parts: u16, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[version]);
    hasher.update(&parts.to_be_bytes());
    hasher.update(content);
    hasher.finalize()
}

fn seal(key: &[u8], parts: u16, content: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + content.len());
    record.push(VERSION);
    record.extend_from_slice(&parts.to_be_bytes());
    record.extend_from_slice(&crc(key, VERSION, parts, content).to_be_bytes());
    record.extend_from_slice(content);
    record
}

/// Checks a record and returns its number of parts and its content.
pub(crate) fn open<'a>(key: &[u8], record: &'a [u8]) -> io::Result<(u16, &'a [u8])> {
    let ([version, parts_high, parts_low, crc_bytes @ ..], content) =
        record.split_first_chunk::<HEADER>().ok_or_else(|| damaged("a record is too short"))?;
    if *version != VERSION {
        return Err(damaged(format!("a record has version {version}, expected {VERSION}")));
    }
    let parts = u16::from_be_bytes([*parts_high, *parts_low]);
    if crc(key, *version, parts, content) != u32::from_be_bytes(*crc_bytes) {
        return Err(damaged("the checksum of a record is wrong"));
    }
    Ok((parts, content))
}

/// The records of an entry, in the order of their parts.
pub(crate) fn seal_entry(index: u64, content: &[u8]) -> io::Result<Vec<([u8; 10], Vec<u8>)>> {
    let parts = u16::try_from(content.len().div_ceil(MAX_PART_BYTES))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an entry of more than 500 MB"))?;
    Ok(content
        .chunks(MAX_PART_BYTES)
        .zip(0u16..)
        .map(|(content, part)| {
            let key = key(index, part);
            (key, seal(&key, parts, content))
        })
        .collect())
}

/// The record of a value of the meta tree.
pub(crate) fn seal_meta(name: &str, value: &impl Encoded) -> io::Result<Vec<u8>> {
    let content = value.encode(Level::FIRST)?;
    if content.len() > MAX_PART_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a meta record that is too long"));
    }
    Ok(seal(name.as_bytes(), 1, &content))
}

/// The value of a record of the meta tree.
pub(crate) fn open_meta<T: Encoded>(name: &'static str, record: &[u8]) -> io::Result<T> {
    let (_, content) = open(name.as_bytes(), record).map_err(|error| damaged_by(format!("record `{name}`"), error))?;
    T::decode(Thing::Record(name), content).map_err(|error| within(format!("record `{name}`"), error))
}

/// An error about `what`. One that says itself what cannot be read stays as it is.
pub(crate) fn within(what: String, error: io::Error) -> io::Error {
    if Unreadable::find(&error).is_some() { error } else { damaged_by(what, error) }
}

/// Puts the records of entries together again. Fed with the log tree's pairs in order.
pub(crate) struct Entries<I> {
    pairs: I,
}

/// One entry as found: its index and its encoding.
pub(crate) type Found = (u64, Vec<u8>);

impl<I: Iterator<Item = sled::Result<(IVec, IVec)>>> Entries<I> {
    pub(crate) fn new(pairs: I) -> Entries<I> {
        Entries { pairs }
    }

    fn next_record(&mut self) -> io::Result<Option<(u64, u16, u16, IVec)>> {
        let Some(pair) = self.pairs.next() else { return Ok(None) };
        let (key, record) = pair.map_err(crate::error::sled_io)?;
        let (index, part) = parse_key(&key)?;
        let (parts, _) = open(&key, &record).map_err(|error| damaged_by(format!("entry {index}"), error))?;
        Ok(Some((index, part, parts, record)))
    }

    /// The next entry, whole.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<Found>> {
        let Some((index, part, parts, record)) = self.next_record()? else { return Ok(None) };
        if part != 0 {
            return Err(damaged(format!("entry {index} lacks its beginning")));
        }
        let mut content = record[HEADER..].to_vec();
        for expected in 1..parts {
            match self.next_record()? {
                Some((i, p, n, record)) if (i, p, n) == (index, expected, parts) => {
                    content.extend_from_slice(&record[HEADER..]);
                }
                _ => return Err(damaged(format!("entry {index} lacks part {expected} of {parts}"))),
            }
        }
        Ok(Some((index, content)))
    }
}

pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Damage that shows in another error, which stays the source.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct DamagedPart {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

pub(crate) fn damaged_by(what: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, DamagedPart { what, source: source.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(index: u64, content: &[u8]) -> Vec<([u8; 10], Vec<u8>)> {
        seal_entry(index, content).unwrap()
    }

    fn read(records: Vec<([u8; 10], Vec<u8>)>) -> io::Result<Option<Found>> {
        Entries::new(records.into_iter().map(|(k, v)| Ok((IVec::from(&k), IVec::from(v))))).next_entry()
    }

    #[test]
    fn an_entry_of_many_parts_comes_back_and_no_record_is_long() {
        for len in [1, MAX_PART_BYTES - 3, MAX_PART_BYTES, 5 * MAX_PART_BYTES, 100_000] {
            let value: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let records = pairs(7, &value);
            assert!(records.iter().all(|(_, record)| record.len() <= 8 * 1024));
            let (index, content) = read(records).unwrap().unwrap();
            assert_eq!(index, 7);
            assert_eq!(content, value);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = pairs(9, b"some content");
        for byte in 0..good[0].1.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[0].1[byte] ^= 1 << bit;
                assert_eq!(read(bad).unwrap_err().kind(), io::ErrorKind::InvalidData);
            }
        }
        let mut moved = good;
        moved[0].0 = key(10, 0);
        assert!(read(moved).is_err(), "a record under another key is damage");
    }

    #[test]
    fn a_missing_part_is_found() {
        let good = pairs(1, &[0u8; 3 * MAX_PART_BYTES]);
        for missing in 0..good.len() {
            let mut bad = good.clone();
            bad.remove(missing);
            assert!(read(bad).is_err());
        }
    }

    #[test]
    fn keys_sort_as_numbers() {
        let mut keys: Vec<_> = [1u64, 255, 256, 65_536, u64::MAX].iter().map(|i| key(*i, 3)).collect();
        let sorted = keys.clone();
        keys.sort_unstable();
        assert_eq!(keys, sorted);
        assert_eq!(parse_key(&key(256, 3)).unwrap(), (256, 3));
    }
}
