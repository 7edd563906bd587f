//! What the machine's kernel must be like: checks at the start, sysctls, interfaces, routes, and the watcher that keeps
//! all of them true while the datapath runs.

pub(crate) mod check;
pub(crate) mod links;
pub(crate) mod netlink;
pub(crate) mod routes;
pub(crate) mod sysctl;
pub(crate) mod watch;

pub use sysctl::Family;
