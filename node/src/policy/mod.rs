//! Policies in two steps: each member compiles the candidate beside its packet path and reports to the leader, which has the log
//! put it in force.
//!
//! ```text
//!  palisade policy apply ─> put ── Command::Policy ──> the log ──> every member: compiler (a thread of its own)
//!                            │                                          │ with each renewal of its lease
//!                            │            leader: enactor <── reports <─┘
//!                            │              │ all that hold a lease, or a majority after 5 s
//!                            └── waits ──<──┴── Command::Enact ──> the log ──> every member: the pointer is exchanged
//! ```

pub(crate) mod compiler;
pub(crate) mod enactor;
mod memory;
pub(crate) mod put;
pub(crate) mod reports;
