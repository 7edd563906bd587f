//! openraft here: network, wire types, elections, read index, snapshots, voters, transfer of leadership.

pub(crate) mod current;
pub(crate) mod election;
pub(crate) mod handover;
pub(crate) mod network;
pub(crate) mod read_index;
pub(crate) mod snapshot;
pub(crate) mod voters;
pub(crate) mod wire;
