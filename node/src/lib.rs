//! The Palisade daemon as a library.

mod admin;
mod affordable;
mod audit;
pub mod boot;
pub mod clock;
pub mod config;
pub mod connection_log;
mod daemon;
pub mod datapath;
mod drain;
pub mod error;
mod grace;
mod http;
pub mod lease;
mod limits;
mod listen;
mod member;
mod membership;
pub mod metrics;
mod node;
mod peer;
mod policy;
mod queue;
mod raft;
mod random;
mod readiness;
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
pub use affordable::UnaffordableError;
pub use listen::{ListenError, SecondLock};
pub use member::{MemberError, MemberFailure};
pub use node::{Node, NodeError};
