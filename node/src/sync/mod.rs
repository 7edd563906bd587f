//! What members tell each other of sessions: hints, progress, proposals, events.

pub(crate) mod events;
pub(crate) mod hints;
pub(crate) mod progress;
pub(crate) mod propose;
pub(crate) mod streams;
