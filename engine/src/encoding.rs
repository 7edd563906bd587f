//! How replicated values are encoded: what a program must know to read it comes first, and what is added later has its length.
//!
//! ```text
//! batch      level (u16, little endian) · record of the header · a record for each command
//! record     length of the rest (varint) · base · extensions
//! base       postcard: variants and fields are identified by their order
//! extension  tag (varint) · length (varint) · value
//! ```
//!
//! The base never changes. A field that a later level adds is an extension, and is left out where it has its default: so what
//! does not use it has the same bytes, and the same hash, at every level. Tags are numbered within their base.
//!
//! A reader checks the level before it reads anything else. An unknown tag or command, or bytes too many, are then damage, and
//! never skipped: what is in the log has an effect on the state.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::level::{Level, UnknownLevel};

/// Why something replicated cannot be encoded. A program does not make such a value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// It was to be written at a level that this program does not know.
    #[error(transparent)]
    Level(#[from] UnknownLevel),
    /// The encoder failed.
    #[error("it cannot be encoded")]
    Value(#[from] postcard::Error),
}

/// Why something replicated cannot be decoded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// It was written at a level that this program does not know.
    #[error(transparent)]
    Level(#[from] UnknownLevel),
    /// A value is damaged, or of an unknown kind.
    #[error("a value cannot be decoded")]
    Value(#[from] postcard::Error),
    /// A record is longer than what is known of it.
    #[error("a record has an extension of the unknown tag {0}")]
    Tag(u32),
    /// It ends too early.
    #[error("it ends too early")]
    Short,
    /// It goes on after its end.
    #[error("it goes on after its end")]
    Long,
    /// More commands than a batch can have.
    #[error("a batch of {0} commands")]
    Commands(u32),
}

/// A value whose fields are its base, but for those that later levels add.
pub(crate) trait Extensible: Serialize + DeserializeOwned {
    /// Writes the fields that are not in the base and do not have their defaults.
    fn write_extensions(&self, _to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
        Ok(())
    }

    /// Takes such a field. False if the tag is unknown.
    fn read_extension(&mut self, _tag: u32, _value: &[u8]) -> Result<bool, DecodeError> {
        Ok(false)
    }
}

/// Writes extensions to the end of a record.
pub(crate) struct ExtensionWriter<'a> {
    to: &'a mut Vec<u8>,
}

impl<'a> ExtensionWriter<'a> {
    pub(crate) fn new(to: &'a mut Vec<u8>) -> ExtensionWriter<'a> {
        ExtensionWriter { to }
    }

    /// Writes a field. The caller leaves out one that has its default.
    #[cfg_attr(not(any(test, feature = "next-level")), expect(dead_code, reason = "level 1 has no extensions"))]
    pub(crate) fn field(&mut self, tag: u32, value: &impl Serialize) -> Result<(), postcard::Error> {
        let value = postcard::to_stdvec(value)?;
        append(self.to, &tag)?;
        append(self.to, &value)
    }
}

/// Appends a value in postcard.
fn append(to: &mut Vec<u8>, value: &impl Serialize) -> Result<(), postcard::Error> {
    *to = postcard::to_extend(value, std::mem::take(to))?;
    Ok(())
}

/// Appends base and extensions of a value, without a length.
pub(crate) fn write_content(to: &mut Vec<u8>, value: &impl Extensible) -> Result<(), postcard::Error> {
    append(to, value)?;
    value.write_extensions(&mut ExtensionWriter { to })
}

/// The reverse of [`write_content`].
pub(crate) fn read_content<T: Extensible>(content: &[u8]) -> Result<T, DecodeError> {
    let (mut value, mut rest): (T, &[u8]) = postcard::take_from_bytes(content)?;
    while !rest.is_empty() {
        let (tag, after): (u32, &[u8]) = postcard::take_from_bytes(rest)?;
        let (field, after) = split_record(after)?;
        if !value.read_extension(tag, field)? {
            return Err(DecodeError::Tag(tag));
        }
        rest = after;
    }
    Ok(value)
}

/// Decodes an extension's value; bytes left over are damage.
#[cfg_attr(not(any(test, feature = "next-level")), expect(dead_code, reason = "level 1 has no extensions"))]
pub(crate) fn read_field<T: DeserializeOwned>(value: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(value)? {
        (value, []) => Ok(value),
        _ => Err(DecodeError::Long),
    }
}

/// Appends a record.
pub(crate) fn write_record(to: &mut Vec<u8>, value: &impl Extensible) -> Result<(), postcard::Error> {
    let mut content = Vec::with_capacity(128);
    write_content(&mut content, value)?;
    append(to, &(content.len() as u64))?;
    to.extend_from_slice(&content);
    Ok(())
}

/// Takes the content of a record from the front.
pub(crate) fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let (length, rest): (u64, &[u8]) = postcard::take_from_bytes(bytes).map_err(|_| DecodeError::Short)?;
    usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)).ok_or(DecodeError::Short)
}

/// Takes a record from the front.
pub(crate) fn read_record<T: Extensible>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let (content, rest) = split_record(bytes)?;
    Ok((read_content(content)?, rest))
}

/// Takes a level from the front. Whether this program knows it has been checked.
pub(crate) fn read_level(bytes: &[u8]) -> Result<(Level, &[u8]), DecodeError> {
    let (level, rest) = bytes.split_first_chunk().ok_or(DecodeError::Short)?;
    Ok((Level(u16::from_le_bytes(*level)).check()?, rest))
}

#[cfg(test)]
mod tests;
