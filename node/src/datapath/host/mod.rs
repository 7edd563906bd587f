//! The machine's kernel: checks at the start, sysctls, interfaces and routes, and the watcher that keeps them as the
//! datapath needs them.

pub(crate) mod check;
pub(crate) mod exits;
pub(crate) mod interfaces;
pub(crate) mod links;
pub(crate) mod neighbours;
pub(crate) mod netlink;
pub(crate) mod nflog;
pub(crate) mod notices;
mod program;
pub(crate) mod routes;
mod ruleset;
pub(crate) mod sysctl;
pub(crate) mod watch;

pub use sysctl::Family;
