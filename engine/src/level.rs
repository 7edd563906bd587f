//! Levels: which commands, fields and formats the members use together.
//!
//! Members may run different programs. Everything that they write into the log, or tell each other, is written at the *level in
//! force*, which is part of the replicated state. A program knows a range of levels, and reads and writes each of them. The
//! level is raised by a command, when every member has registered that it can ([`Capabilities`]).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A level. The first one is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Level(pub u16);

impl Level {
    /// The first of all levels, whatever the program: it is in force until the cluster is initialized.
    pub const FIRST: Level = Level(1);

    /// The lowest level that this program knows. A log with batches below it cannot be read.
    pub const LOWEST: Level = Level(1);

    /// The highest level that this program knows.
    pub const HIGHEST: Level = Level(if cfg!(feature = "next-level") { 2 } else { 1 });

    /// The level after this one.
    #[must_use]
    pub fn next(self) -> Level {
        Level(self.0.saturating_add(1))
    }

    /// Whether this program knows the level.
    ///
    /// # Errors
    /// [`UnknownLevel`]
    pub fn check(self) -> Result<Level, UnknownLevel> {
        if Levels::PROGRAM.contains(self) {
            Ok(self)
        } else {
            Err(UnknownLevel { level: self, lowest: Level::LOWEST, highest: Level::HIGHEST })
        }
    }
}

impl Default for Level {
    fn default() -> Level {
        Level::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The levels from `lowest` to `highest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Levels {
    /// The lowest one.
    pub lowest: Level,
    /// The highest one.
    pub highest: Level,
}

impl Levels {
    /// The levels that this program knows.
    pub const PROGRAM: Levels = Levels { lowest: Level::LOWEST, highest: Level::HIGHEST };

    /// Whether a level is one of them.
    #[must_use]
    pub fn contains(self, level: Level) -> bool {
        self.lowest <= level && level <= self.highest
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            return write!(f, "level {}", self.lowest);
        }
        write!(f, "levels {} to {}", self.lowest, self.highest)
    }
}

/// Something was written at a level that this program does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is of level {level}, and this program knows {}", Levels { lowest: *.lowest, highest: *.highest })]
pub struct UnknownLevel {
    /// The level.
    pub level: Level,
    /// The lowest level that this program knows.
    pub lowest: Level,
    /// The highest level that this program knows.
    pub highest: Level,
}

/// What a member can, as it has registered it. Commands that demand something of all members are checked against it when they
/// are applied, so that neither a race nor an absent member matters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// The lowest level that its program knows.
    pub lowest: Level,
    /// The highest level that its program knows.
    pub highest: Level,
    /// Number of sessions for which it has memory.
    pub max_sessions: u64,
    /// The version of its program, for people.
    pub program: String,
}

impl Capabilities {
    /// Those of this program.
    #[must_use]
    pub fn of_program(max_sessions: u64, program: &str) -> Capabilities {
        Capabilities { lowest: Level::LOWEST, highest: Level::HIGHEST, max_sessions, program: program.to_owned() }
    }

    /// The levels that its program knows.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Levels { lowest: self.lowest, highest: self.highest }
    }
}
