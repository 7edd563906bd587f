//! What members tell each other of sessions: hints, progress, proposals, events.

pub(crate) mod event_sink;
pub(crate) mod events;
pub(crate) mod hints;
pub(crate) mod idle;
pub(crate) mod liveness;
pub(crate) mod progress;
pub(crate) mod proposals;
pub(crate) mod streams;
pub(crate) mod sweep;
