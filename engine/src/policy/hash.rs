//! The hash of a policy's text, by which members name it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a policy's text as its author wrote it. Two members that name the same hash speak of the same text; what a program
/// makes of the text is not part of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyHash(pub [u8; 32]);

impl PolicyHash {
    /// The hash of a text.
    #[must_use]
    pub fn of(text: &str) -> PolicyHash {
        PolicyHash(Sha256::digest(text.as_bytes()).into())
    }
}

/// The first sixteen hexadecimal digits: enough for people.
impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
