//! Wire to domain (`TryFrom`, `decode_…`) and back (`From`, `encode_…`).

pub mod admin;
mod member;

pub use member::{
    MemberError, decode_batch, decode_hint, decode_progress, encode_batch, encode_hint, encode_progress, policy_hash,
};
