//! What a program can that knows level 2: a command, a field, a keyword of the policy, all without a use. It shows what happens
//! when programs of two levels meet. Compiled only with the feature `next-level`, and never part of a release; the first real
//! level 2 takes its place.

use crate::encoding::{DecodeError, ExtensionWriter, read_field};
use crate::level::Level;

/// The level of all this.
pub(crate) const NEXT: Level = Level(2);

/// The tag of the extension in which an establishment, and a session's record, keep their `tag`.
const TAG: u32 = 1;

/// The tag of the extension in which the register keeps its note.
const NOTE: u32 = 1;

pub(super) fn write_tag(tag: u32, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
    if tag == 0 { Ok(()) } else { to.field(TAG, &tag) }
}

pub(super) fn read_tag(field: &mut u32, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
    if tag == TAG {
        *field = read_field(value)?;
    }
    Ok(tag == TAG)
}

pub(super) fn write_note(note: u64, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
    if note == 0 { Ok(()) } else { to.field(NOTE, &note) }
}

pub(super) fn read_note(field: &mut u64, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
    if tag == NOTE {
        *field = read_field(value)?;
    }
    Ok(tag == NOTE)
}
