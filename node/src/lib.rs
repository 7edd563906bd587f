//! The Palisade daemon as a library.

pub mod admin;
mod audit;
pub mod clock;
pub mod config;
pub mod datapath;
mod drain;
pub mod http;
mod membership;
pub mod metrics;
pub mod node;
mod peer;
mod queue;
mod raft;
pub mod replication;
mod replication_metrics;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod standing;
mod sync;
mod systemd;
