//! The Palisade daemon as a library.

pub mod admin;
mod audit;
mod blocking;
pub mod clock;
pub mod config;
pub mod datapath;
mod drain;
pub mod http;
pub mod lease;
mod membership;
pub mod metrics;
pub mod node;
mod peer;
mod queue;
mod random;
mod raft;
pub mod replication;
mod replication_metrics;
#[cfg(feature = "simulation")]
pub mod simulation;
mod sync;
mod systemd;
mod wake;
