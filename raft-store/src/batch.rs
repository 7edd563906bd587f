//! Batches of commands as bytes: in the log's entries, on disk and between members.
//!
//! ```text
//! level (u16, big endian) · the batch (postcard)
//! ```

use palisade_engine::replica::Batch;

use crate::unreadable::Unknown;

/// The lowest level that this program reads.
pub(crate) const LOWEST: u16 = 1;
/// The highest level that this program reads.
pub(crate) const HIGHEST: u16 = 1;

/// Checks the level in front of something before any of it is decoded.
pub(crate) fn check_level(level: u16) -> Result<(), Unknown> {
    if (LOWEST..=HIGHEST).contains(&level) { Ok(()) } else { Err(Unknown::Level(level)) }
}

/// The level in front of a batch; 0, which is none, if there is nothing.
pub(crate) fn level_of(bytes: &[u8]) -> u16 {
    bytes.first_chunk::<2>().map_or(0, |level| u16::from_be_bytes(*level))
}

/// A batch as bytes.
///
/// # Errors
/// postcard's; no existing value causes it.
pub fn encode_batch(batch: &Batch) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(batch, LOWEST.to_be_bytes().to_vec())
}

/// The reverse of [`encode_batch`]. The level is checked first.
///
/// # Errors
/// [`Unknown`]
pub fn decode_batch(bytes: &[u8]) -> Result<Batch, Unknown> {
    let level = level_of(bytes);
    check_level(level)?;
    let content = bytes.get(2..).unwrap_or_default();
    match postcard::take_from_bytes(content) {
        Ok((batch, [])) => Ok(batch),
        Ok(_) => Err(Unknown::Content { level, error: "there is more than was expected".to_owned() }),
        Err(error) => Err(Unknown::Content { level, error: error.to_string() }),
    }
}
