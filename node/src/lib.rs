//! The Palisade daemon as a library.

pub mod clock;
pub mod config;
pub mod standing;
