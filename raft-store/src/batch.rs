//! Batches of commands as bytes, in the log's entries, on disk and between members; and the level in force, at which they are
//! written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use palisade_engine::replica::Batch;
use palisade_engine::{DecodeError, Level};

use crate::unreadable::Unknown;

/// Decodes a batch. Its level is checked before anything else of it.
///
/// # Errors
/// [`Unknown`]
pub fn decode_batch(bytes: &[u8]) -> Result<Batch, Unknown> {
    Batch::decode(bytes).map_err(|error| match error {
        DecodeError::Level(unknown) => Unknown::Level(unknown.level),
        error => Unknown::Content {
            level: Batch::level_of(bytes).ok(),
            error: std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
        },
    })
}

/// The level in force, as the state machine has applied it: shared by those that write.
#[derive(Clone, Debug)]
pub struct LevelInForce(Arc<AtomicU16>);

impl Default for LevelInForce {
    fn default() -> LevelInForce {
        LevelInForce(Arc::new(AtomicU16::new(Level::FIRST.0)))
    }
}

impl LevelInForce {
    /// The level that is in force now.
    #[must_use]
    pub fn get(&self) -> Level {
        Level(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, level: Level) {
        self.0.store(level.0, Ordering::Relaxed);
    }
}
