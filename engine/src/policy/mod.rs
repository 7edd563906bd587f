//! The policy: text, its meaning, and the decision for a new connection.
//!
//! ```text
//! text ── token (winnow) ──> read ──> check ──> Policy ── compile ──> Compiled ── decide ──> Decision
//!                              └─ every error, with its place ─┴──> PolicyError
//! ```
//!
//! The language is described in full, for users, in `docs/policy.md`. A [`Policy`] is what a text *means*: comments,
//! blanks and the order of declarations are gone, every name is known to be declared, no rule mixes the families.
//! `Display` writes its one canonical form, which reads back as the same policy; the JSON form of `serde` is the same policy
//! for machines, and is checked as strictly as the text.

mod check;
mod compile;
mod error;
mod model;
mod ranges;
mod read;
mod token;
mod warning;

pub use compile::Compiled;
pub use error::{PolicyError, Problem};
pub use model::{Action, Address, Decision, Default, List, Named, Policy, Prefix, Rule, Service};
pub use warning::Warning;

/// Maximum size of the text of a policy, in bytes.
pub const MAX_TEXT: usize = 4 << 20;
/// Maximum number of rules.
pub const MAX_RULES: usize = 65_535;
/// Maximum number of zones.
pub const MAX_ZONES: usize = 4_096;
/// Maximum number of address ranges of all sets, and of all sources and destinations, with the sets in them written out.
pub const MAX_RANGES: usize = 1 << 21;

#[cfg(test)]
mod tests;
