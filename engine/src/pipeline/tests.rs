//! Three members without a network: each packet is given to the member that the test chooses, hints and log entries go
//! when the test says so.

mod cluster;
mod egress;
mod forbidden;
mod forgotten;
mod fragments;
mod generic;
mod guard;
mod history;
mod idle;
mod injection;
mod race;
mod rfc;
mod stray;
mod takeover;
mod tcp;
mod timeouts;
mod zones;
