//! The Palisade daemon as a library.

pub mod clock;
pub mod datapath;
pub mod standing;
