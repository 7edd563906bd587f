//! What each protocol's sessions may do.
//!
//! - [`tcp`]: sequence windows, FIN, RST, TIME_WAIT;
//! - everything else ([`generic`]): only time and direction.

pub(crate) mod generic;
pub(crate) mod tcp;
