//! The Palisade daemon as a library.

mod admin;
mod audit;
pub mod clock;
pub mod config;
pub mod connection_log;
mod daemon;
pub mod datapath;
mod drain;
pub mod error;
mod http;
pub mod lease;
mod member;
mod membership;
pub mod metrics;
mod node;
mod peer;
mod queue;
mod raft;
mod random;
pub mod replication;
mod replication_metrics;
mod scrape;
#[cfg(feature = "simulation")]
pub mod simulation;
mod sync;
mod systemd;
mod wake;
mod zone_registration;

pub use admin::{HELP, SocketError};
pub use member::{MemberError, MemberFailure};
pub use node::{Node, NodeError};
