//! Batches as bytes: in the log, and on their way to the leader and the followers.

use serde::{Deserialize, Serialize};

use super::dedup::MAX_OUTSTANDING;
#[cfg(feature = "next-level")]
use super::next_level;
use super::{Batch, Command, MemberChange};
#[cfg(feature = "next-level")]
use crate::encoding::ExtensionWriter;
use crate::encoding::{DecodeError, EncodeError, Extensible, read_level, read_record, write_record};
use crate::id::MemberId;
use crate::level::Level;

/// A batch without its commands.
#[derive(Serialize, Deserialize)]
struct Header {
    proposer: MemberId,
    first_serial: u64,
    lowest_outstanding: u64,
    unix_ms: u64,
    commands: u32,
}

impl Extensible for Header {}

impl Extensible for Command {
    #[cfg(feature = "next-level")]
    fn write_extensions(&self, to: &mut ExtensionWriter<'_>) -> Result<(), postcard::Error> {
        match self {
            Command::Establish(establish) => next_level::write_tag(establish.tag, to),
            _ => Ok(()),
        }
    }

    #[cfg(feature = "next-level")]
    fn read_extension(&mut self, tag: u32, value: &[u8]) -> Result<bool, DecodeError> {
        match self {
            Command::Establish(establish) => next_level::read_tag(&mut establish.tag, tag, value),
            _ => Ok(false),
        }
    }
}

impl Command {
    /// The lowest level at which it exists, with everything that is in it. Below, it is refused when it is applied.
    pub(super) fn level(&self) -> Level {
        match self {
            Command::Member(MemberChange::Init { level, .. }) => *level,
            #[cfg(feature = "next-level")]
            Command::Note(_) => next_level::NEXT,
            #[cfg(feature = "next-level")]
            Command::Establish(establish) if establish.tag != 0 => next_level::NEXT,
            _ => Level::FIRST,
        }
    }
}

impl Batch {
    /// The lowest level at which all that it holds exists. A leader takes it into the log only when that is in force: members
    /// whose programs do not know it could not read it.
    #[must_use]
    pub fn level(&self) -> Level {
        self.commands.iter().map(Command::level).fold(Level::FIRST, Level::max)
    }

    /// The batch at a level, which is that in force where it is written. What a batch holds may need a higher one: it was proposed
    /// after a raise that is not applied here yet.
    ///
    /// # Errors
    /// [`EncodeError`]; no value of this program causes it at a level that it knows.
    pub fn encode(&self, level: Level) -> Result<Vec<u8>, EncodeError> {
        let level = level.max(self.level()).check()?;
        let mut bytes = Vec::with_capacity(64 + 128 * self.commands.len().min(64));
        bytes.extend_from_slice(&level.0.to_le_bytes());
        let &Batch { proposer, first_serial, lowest_outstanding, unix_ms, ref commands } = self;
        let commands_count = u32::try_from(commands.len()).unwrap_or(u32::MAX);
        let header = Header { proposer, first_serial, lowest_outstanding, unix_ms, commands: commands_count };
        write_record(&mut bytes, &header)?;
        for command in commands {
            write_record(&mut bytes, command)?;
        }
        Ok(bytes)
    }

    /// The reverse of [`Batch::encode`]. The level is checked before anything else.
    ///
    /// # Errors
    /// [`DecodeError`]
    pub fn decode(bytes: &[u8]) -> Result<Batch, DecodeError> {
        let (_, bytes) = read_level(bytes)?;
        let (header, mut bytes): (Header, &[u8]) = read_record(bytes)?;
        let Header { proposer, first_serial, lowest_outstanding, unix_ms, commands: count } = header;
        if u64::from(count) > MAX_OUTSTANDING {
            return Err(DecodeError::Commands(count));
        }
        // Memory grows with what is really there, not with what the header claims.
        let mut commands = Vec::with_capacity((count as usize).min(bytes.len()).min(1024));
        for _ in 0..count {
            let (command, rest) = read_record(bytes)?;
            commands.push(command);
            bytes = rest;
        }
        if !bytes.is_empty() {
            return Err(DecodeError::Long);
        }
        Ok(Batch { proposer, first_serial, lowest_outstanding, unix_ms, commands })
    }

    /// The level at which an encoded batch was written.
    ///
    /// # Errors
    /// [`DecodeError::Level`] if this program does not know it; [`DecodeError::Short`]
    pub fn level_of(bytes: &[u8]) -> Result<Level, DecodeError> {
        read_level(bytes).map(|(level, _)| level)
    }
}
