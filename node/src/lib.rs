//! The Palisade daemon as a library.

pub mod admin;
pub mod clock;
pub mod config;
mod daemon;
pub mod datapath;
mod drain;
pub mod http;
pub mod metrics;
mod member;
pub mod node;
mod queue;
pub mod replication;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod standing;
mod scrape;
mod systemd;
