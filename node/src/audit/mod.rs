//! Audits: do all members have the same state, and is each member's state what its log has made of it?
//!
//! ```text
//!  leader ── Digests(indices) ─> every member       every 2 s: the last index applied, and the last marks before it
//!         <─ digests ───────────                    compared: which members differ from a majority of all members
//!         ── ReportDivergence(index, digest) ─> them a leader that differs transfers leadership before its repair
//!  member ── Snapshot(index) ─> leader              pauses applying, and replaces its state between two entries
//!  every member: scrubs its own table, part by part
//! ```
//!
//! Digests are compared at equal indices only, so members need not stand still for it. A member that is seconds behind is
//! compared at a mark (every 4096th index) once it has applied that index. While a member's state is known to be wrong, its
//! lease is not renewed: it admits nothing new, and after `lease.grace` it forwards nothing at all.

pub(crate) mod comparison;
pub(crate) mod handler;
pub(crate) mod on_request;
pub(crate) mod repair;
pub(crate) mod scrub;

use tokio::sync::mpsc;

/// Divergences that wait for the repair. One repair ends them all.
const DIVERGENCE_QUEUE: usize = 4;

/// What was found wrong with this member's state.
#[derive(Clone, Debug)]
pub(crate) enum Divergence {
    /// Its digest at this index is not the majority's.
    Digest { index: u64, majority: u64 },
    /// A part of its table is not what commands have put there.
    Table { part: u8 },
}

/// The queue of divergences that the repair reads.
pub(crate) fn divergences() -> (mpsc::Sender<Divergence>, mpsc::Receiver<Divergence>) {
    mpsc::channel(DIVERGENCE_QUEUE)
}

/// Puts a divergence into the queue. Without room a repair is under way already, or the divergence is reported again.
pub(crate) fn report(divergences: &mpsc::Sender<Divergence>, divergence: Divergence) {
    drop(divergences.try_send(divergence));
}
