//! Scrubbing: the comparison of a shard's sessions with the shard's digest, which commands and snapshots update.
//!
//! A few sessions at a time, because packets wait for the lock. A command that changes a session which was summed up already
//! changes the sum too, so the sum is that of one moment.

use super::{Shard, Table};

/// Sessions that are summed up under one lock: some microseconds.
const SLOTS_PER_LOCK: u32 = 64;

/// How far a shard is summed up.
#[derive(Default)]
pub(super) struct ShardScrub {
    /// The first slot that is not summed up.
    next: u32,
    /// The sum of the digests of the sessions before it.
    sum: u64,
}

impl Shard {
    /// Adds to the shard's digest by how much that of the session in a slot has changed.
    pub(super) fn add_to_digest(&mut self, slot: u32, change: u64) {
        self.digest = self.digest.wrapping_add(change);
        if slot < self.scrub.next {
            self.scrub.sum = self.scrub.sum.wrapping_add(change);
        }
    }
}

impl Table {
    /// Whether the sessions of a shard match its digest.
    pub(crate) fn is_sound(&self, number: u8) -> bool {
        // One at a time: each shard has room for one sum.
        let _scrubbing = self.scrubbing.lock();
        self.shard(number).scrub = ShardScrub::default();
        loop {
            let mut shard = self.shard(number);
            let slots = shard.sessions.slots();
            if shard.scrub.next >= slots {
                return std::mem::take(&mut shard.scrub).sum == shard.digest;
            }
            let end = slots.min(shard.scrub.next + SLOTS_PER_LOCK);
            for slot in shard.scrub.next..end {
                let digest = shard.sessions.get(slot).map_or(0, |session| session.replicated().digest());
                shard.scrub.sum = shard.scrub.sum.wrapping_add(digest);
            }
            shard.scrub.next = end;
        }
    }
}
