//! openraft here: network, wire types, elections, read index, snapshots, voters, transfer of leadership.

pub(crate) mod barrier;
pub(crate) mod config;
pub(crate) mod contact;
pub(crate) mod election;
pub(crate) mod handle;
pub(crate) mod leadership;
pub(crate) mod lease;
pub(crate) mod log_keeper;
pub(crate) mod network;
pub(crate) mod priority;
pub(crate) mod quorum;
pub(crate) mod read_index;
pub(crate) mod receivers;
pub(crate) mod requests;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod transfer;
pub(crate) mod unreadable;
pub(crate) mod voters;
pub(crate) mod wire;
