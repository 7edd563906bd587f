//! The Palisade daemon as a library.

pub mod admin;
pub mod clock;
pub mod config;
pub mod http;
pub mod node;
pub mod standing;
