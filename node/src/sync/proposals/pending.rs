//! Which applied batches are reported to the proposer.

use std::collections::BTreeSet;
use std::sync::Arc;

use palisade_engine::replica::{Applied, Outcome};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::MAX_IN_FLIGHT;

/// Reports that wait to be read. At most one comes for each batch in flight; the rest is room for those given up.
pub(crate) const APPLIED_QUEUE: usize = 4 * MAX_IN_FLIGHT;

/// A batch of this member that was applied here.
pub(crate) struct BatchApplied {
    pub(crate) first: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

/// The numbers of the batches whose application the proposer waits for. Only these are reported, each once: not copies of a
/// batch, and not what a starting member replays from its log. So the queue of reports is bounded.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingBatches(Arc<Mutex<BTreeSet<u64>>>);

impl PendingBatches {
    pub(super) fn add(&self, first: u64) {
        self.0.lock().insert(first);
    }

    pub(super) fn remove(&self, first: u64) {
        self.0.lock().remove(&first);
    }

    /// Reports an applied batch if it is waited for. Without room it stays pending, and the next copy of the batch, which
    /// has the same outcomes, is reported.
    pub(crate) fn report(&self, first: u64, applied: &[Applied], reports: &mpsc::Sender<BatchApplied>) {
        let mut pending = self.0.lock();
        if !pending.contains(&first) {
            return;
        }
        let outcomes = Applied::outcomes(applied);
        if reports.try_send(BatchApplied { first, outcomes }).is_ok() {
            pending.remove(&first);
        }
    }
}
