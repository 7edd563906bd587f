//! Which batches are copies: in the log a second time, because their proposer did not see the first in time.
//!
//! A copy changes nothing ([`palisade_engine::replica`] keeps the outcomes), so nobody is told of it again.

use std::collections::{BTreeMap, BTreeSet};

use palisade_engine::MemberId;
use palisade_engine::replica::Batch;
use parking_lot::Mutex;

/// The batches of each proposer from its floor up: no more than it may have in flight.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<BTreeMap<MemberId, BTreeSet<u64>>>);

impl Copies {
    /// Was this batch applied before? A batch is known by the number of its first command.
    pub(crate) fn is_copy(&self, batch: &Batch) -> bool {
        let mut all = self.0.lock();
        let known = all.entry(batch.proposer).or_default();
        let fresh = known.insert(batch.first);
        *known = known.split_off(&batch.floor);
        !fresh
    }
}
