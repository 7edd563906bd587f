//! Wire to domain (`TryFrom`) and back (`From`).

mod member;

pub use member::MemberError;
