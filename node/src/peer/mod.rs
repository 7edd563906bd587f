//! How members reach each other: connections, lanes, addressing. Nothing here knows of Raft.

pub(crate) mod addressing;
pub(crate) mod connections;
pub(crate) mod error;
pub(crate) mod fan_out;
pub(crate) mod transport;
