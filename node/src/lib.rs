//! The Palisade daemon as a library.

mod admin;
mod audit;
pub mod clock;
pub mod config;
mod daemon;
pub mod datapath;
mod drain;
mod http;
mod member;
mod membership;
pub mod metrics;
mod node;
mod peer;
mod queue;
mod raft;
pub mod replication;
mod replication_metrics;
mod scrape;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod standing;
mod sync;
mod systemd;

pub use admin::{HELP, SocketError};
pub use member::{MemberError, MemberFailure};
pub use node::{Node, NodeError};
