//! What members tell each other of sessions, as bytes: hints, and the progress of live sessions.
//!
//! Each one is content of [`crate::encoding`]: base and extensions. Whoever carries them keeps them apart, and says the level at
//! which they were written. One that cannot be decoded is skipped alone: nothing of the replicated state depends on it.

use crate::encoding::{DecodeError, EncodeError, Extensible, read_content, split_record, write_content, write_record};
use crate::event::{Hint, Progress};
use crate::level::Level;

impl Extensible for Hint {}

impl Extensible for Progress {}

impl Hint {
    /// The hint at a level, which is that in force.
    ///
    /// # Errors
    /// [`EncodeError`]; no value of this program causes it at a level that it knows.
    pub fn encode(&self, level: Level) -> Result<Vec<u8>, EncodeError> {
        level.check()?;
        let mut bytes = Vec::with_capacity(96);
        write_content(&mut bytes, self)?;
        Ok(bytes)
    }

    /// The reverse of [`Hint::encode`].
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn decode(level: Level, bytes: &[u8]) -> Result<Hint, DecodeError> {
        level.check()?;
        read_content(bytes)
    }
}

impl Progress {
    /// Appends the progress of a session, with its length in front, at a level, which is that in force.
    ///
    /// # Errors
    /// [`EncodeError`]; no value of this program causes it at a level that it knows.
    pub fn encode(&self, level: Level, to: &mut Vec<u8>) -> Result<(), EncodeError> {
        level.check()?;
        Ok(write_record(to, self)?)
    }

    /// The reverse of [`Progress::encode`], one by one. After one that cannot be decoded the next one follows; after a length
    /// that leads beyond the end, nothing.
    pub fn decode(level: Level, mut bytes: &[u8]) -> impl Iterator<Item = Result<Progress, DecodeError>> {
        std::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            let record = split_record(bytes);
            bytes = match &record {
                Ok((_, rest)) => rest,
                Err(_) => &[],
            };
            Some(record.and_then(|(content, _)| {
                level.check()?;
                read_content(content)
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{MemberId, SessionId};

    fn progress(counter: u64) -> Progress {
        Progress { id: SessionId { member: MemberId(1), counter }, idle_ms: 5, tcp: None, traffic: None }
    }

    fn records(each: impl Iterator<Item = Result<Progress, DecodeError>>) -> Vec<Option<u64>> {
        each.map(|progress| progress.ok().map(|progress| progress.id.counter)).collect()
    }

    #[test]
    fn unknown_progress_is_skipped_alone() {
        let (mut bytes, level) = (Vec::new(), Level::FIRST);
        progress(1).encode(level, &mut bytes).unwrap();
        // Something longer than what is known, and something else altogether.
        let mut longer = Vec::new();
        progress(2).encode(level, &mut longer).unwrap();
        longer[0] += 3;
        bytes.extend_from_slice(&longer);
        bytes.extend_from_slice(&[99, 1, 7]);
        bytes.extend_from_slice(&[2, 0xff, 0xff]);
        progress(3).encode(level, &mut bytes).unwrap();
        assert_eq!(records(Progress::decode(level, &bytes)), [Some(1), None, None, Some(3)]);

        assert_eq!(records(Progress::decode(Level(77), &bytes)), [None; 4], "of an unknown level nothing is decoded");
        bytes.push(200);
        assert_eq!(records(Progress::decode(level, &bytes)), [Some(1), None, None, Some(3), None], "cut off");
    }

    #[test]
    fn hint_survives_encoding_and_an_unknown_one_is_an_error() {
        let hint = Hint::Abort(SessionId { member: MemberId(1), counter: u64::MAX });
        let bytes = hint.encode(Level::FIRST).unwrap();
        assert_eq!(Hint::decode(Level::FIRST, &bytes).unwrap(), hint);
        assert!(matches!(Hint::decode(Level(77), &bytes), Err(DecodeError::Level(_))));
        assert!(Hint::decode(Level::FIRST, &[0x7f]).is_err(), "an unknown kind");
        assert!(Hint::decode(Level::FIRST, &[&bytes[..], &[9, 1, 0]].concat()).is_err(), "an unknown extension");
    }
}
