//! What this program cannot read, because another version of it wrote it.
//!
//! That is not damage: the bytes are whole, and a program that knows their level reads them. A member that meets such bytes
//! stops before it stores or forgets anything, and says what to do.

use std::fmt;
use std::io;

use palisade_engine::{Level, Levels};

/// What was to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thing {
    /// An entry of the log, at this index.
    Entry(u64),
    /// A snapshot that reaches this index.
    Snapshot(Option<u64>),
    /// A batch of commands that another member proposes.
    Proposal,
    /// A record of the database, by its name.
    Record(&'static str),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Entry(index) => write!(f, "entry {index} of the log"),
            Thing::Snapshot(Some(index)) => write!(f, "the snapshot that reaches entry {index}"),
            Thing::Snapshot(None) => f.write_str("the snapshot"),
            Thing::Proposal => f.write_str("a batch of commands"),
            Thing::Record(name) => write!(f, "the record `{name}`"),
        }
    }
}

/// Why it cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// Its level is above, or below, what this program reads.
    Level(Level),
    /// Its layout has a version that this program does not know.
    Layout(u16),
    /// Its level is known, but something in it is not.
    Content {
        /// Its level, if it says one.
        level: Option<Level>,
        /// What the decoder said.
        error: String,
    },
}

/// Something that this program cannot read, though it is not damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// What was to be read.
    pub thing: Thing,
    /// Why it cannot be read.
    pub unknown: Unknown,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unreadable { thing, unknown } = self;
        match unknown {
            Unknown::Level(level) => write!(f, "{thing}, which has level {level}")?,
            Unknown::Layout(version) => write!(f, "{thing}, which has the unknown layout {version}")?,
            Unknown::Content { level: Some(level), error } => {
                write!(f, "{thing}, which has level {level} and something unknown: {error}")?;
            }
            Unknown::Content { level: None, error } => write!(f, "{thing}, which has something unknown: {error}")?,
        }
        write!(f, "; this program, Palisade {}, reads {}", env!("CARGO_PKG_VERSION"), Levels::PROGRAM)
    }
}

impl std::error::Error for Unreadable {}

impl Unreadable {
    /// The one behind an error of the system, if there is one.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Unreadable> {
        let mut next: Option<&'a (dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Unreadable>() {
                return Some(found);
            }
            // The source of an `io::Error` is that of the error within it, which is thus skipped.
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(within) => Some(within),
                None => error.source(),
            };
        }
        None
    }
}

impl From<Unreadable> for io::Error {
    fn from(unreadable: Unreadable) -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_is_found_behind_other_errors_and_says_all() {
        let unreadable = Unreadable { thing: Thing::Entry(7), unknown: Unknown::Level(Level::HIGHEST.next()) };
        let outer = crate::record::damaged_by("the log".to_owned(), io::Error::from(unreadable.clone()));
        assert_eq!(Unreadable::find(&outer), Some(&unreadable));
        assert_eq!(Unreadable::find(&io::Error::other("another")), None);
        let text = unreadable.to_string();
        assert!(
            text.contains("entry 7") && text.contains("has level ") && text.contains(&Levels::PROGRAM.to_string()),
            "{text}"
        );
    }
}
