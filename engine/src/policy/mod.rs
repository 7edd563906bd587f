//! The policy: its text, its parsed form, and the decision for a new connection.
//!
//! ```text
//! text ── token (winnow) ──> read ──> check ──> Policy ── compile ──> Compiled ── decide ──> Decision
//!                              └─ every error, with its place ─┴──> PolicyError
//! ```
//!
//! `docs/policy.md` describes the language for users. A [`Policy`] is what a text *means*, without comments, blanks and the
//! order of declarations. Every name in it is declared, and no rule mixes address families. `Display` writes the canonical
//! form, which parses to the same policy. The JSON form of `serde` is the same policy for programs, and is checked as
//! strictly as the text.

mod check;
mod compile;
mod cost;
mod error;
mod foreign;
mod hash;
mod model;
mod ranges;
mod read;
mod token;
mod warning;

pub use compile::Compiled;
pub use cost::{CompileCost, MAX_SET_WORDS, MAX_STEPS};
pub use error::{PolicyError, Problem};
pub use hash::PolicyHash;
pub use model::{Action, Address, Decision, Default, List, Named, Policy, Prefix, Rule, Service};
pub use warning::Warning;

/// Maximum size of a policy text, in bytes.
pub const MAX_TEXT: usize = 4 << 20;
/// Maximum number of rules.
pub const MAX_RULES: usize = 65_535;
/// Maximum number of zones.
pub const MAX_ZONES: usize = 4_096;
/// Maximum number of address ranges of all sets, and of all sources and destinations, with sets expanded.
pub const MAX_RANGES: usize = 1 << 21;

#[cfg(test)]
mod tests;
