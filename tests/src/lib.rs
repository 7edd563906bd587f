//! Palisade's lab for tests: real kernels, real programs, real failures.
//!
//! The lab itself is [`palisade_cli::lab`], which the demo uses too; here is what only tests need: the guard that skips
//! or serialises them, and the real programs.

pub mod beyond;
pub mod drops;
pub mod frames;
pub mod guard;
pub mod packets;
pub mod program;

pub use palisade_cli::lab;

use std::path::PathBuf;

use lab::{Mode, Options};

/// A lab of real members that run `binary`, which a test knows as `env!("CARGO_BIN_EXE_palisade-under-test")`.
#[must_use]
pub fn members(count: usize, binary: &str) -> Options {
    Options { members: count, binary: PathBuf::from(binary), mode: Mode::Palisade }
}

/// A lab in whose middle plain kernels forward: what the machine can do at this moment.
#[must_use]
pub fn kernels(count: usize) -> Options {
    Options { members: count, binary: PathBuf::from("none"), mode: Mode::Baseline }
}

/// Everything from the client's side to the server's is allowed; nothing else.
pub const OPEN_POLICY: &str = "\
zone outside, inside
default drop
accept \"all\" from outside to inside: any -> any
";

/// What the program `echo-server` sends back at once, in bytes.
pub const ECHO_BLOCK: usize = 256;

/// The first byte of a block after which it closes.
pub const ECHO_LAST: u8 = 1;
