//! Join, leave, tokens, identity, recovery, and what the leader does besides leading.

pub(crate) mod change;
pub(crate) mod identity;
pub(crate) mod leader;
pub(crate) mod recover;
pub(crate) mod rolled_back;
pub(crate) mod token;
