//! Wire to domain (`TryFrom`) and back (`From`).

pub mod admin;
mod member;

pub use member::{MemberError, level, policy_hash};
