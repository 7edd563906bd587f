//! The Palisade daemon as a library.

pub mod clock;
pub mod replication;
pub mod standing;
