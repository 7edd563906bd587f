//! How members reach each other: connections, lanes, addressing.

pub(crate) mod route;
pub(crate) mod transport;
