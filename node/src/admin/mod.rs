//! Administration.

/// The gRPC trailer that says what to do next.
pub const HELP: &str = "palisade-help-bin";
