//! The Palisade daemon as a library.

pub mod admin;
pub mod clock;
pub mod config;
pub mod datapath;
mod drain;
pub mod http;
pub mod metrics;
pub mod node;
mod queue;
pub mod replication;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod standing;
mod systemd;
