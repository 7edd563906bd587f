//! The clock that the store is given.

use std::sync::Arc;

use palisade_engine::Time;

/// Tells the time. An argument, so that a simulation can give its own.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;
