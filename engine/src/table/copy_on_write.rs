//! The copy of the sessions at the start of a snapshot, while commands continue to change the table.
//!
//! The writer of the snapshot copies the shards one after the other. A command that is about to change a shard which is not
//! yet copied copies it first. Both hold the lock of the shard, so each shard is copied once, in its state at the start.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{SHARDS, Shard, Table};
use crate::replicated::SessionRecord;

/// One snapshot's copies of shards.
pub(crate) struct CopyOnWriteShards {
    /// The number of the snapshot.
    epoch: u64,
    /// The shards that commands copied before the writer reached them.
    copies: Vec<Mutex<Vec<SessionRecord>>>,
    /// Whether no further copies are needed.
    is_over: AtomicBool,
}

impl CopyOnWriteShards {
    /// Ends the copying. Existing copies remain.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

fn records(shard: &Shard) -> Vec<SessionRecord> {
    shard.sessions.iter().map(|session| session.replicated().record()).collect()
}

impl Table {
    /// Starts a copy of all sessions in their current state, and ends the previous copy. To be called on the thread that
    /// applies commands.
    pub(crate) fn begin_copy(&self) -> Arc<CopyOnWriteShards> {
        let mut current = self.copy.lock();
        let epoch = match current.take() {
            Some(before) => {
                before.end();
                before.epoch + 1
            }
            None => 1,
        };
        let copies = (0..SHARDS).map(|_| Mutex::default()).collect();
        let copy = Arc::new(CopyOnWriteShards { epoch, copies, is_over: AtomicBool::new(false) });
        *current = Some(copy.clone());
        copy
    }

    /// Ends the current copy, if there is one.
    pub(super) fn end_copy(&self) {
        if let Some(copy) = &*self.copy.lock() {
            copy.end();
        }
    }

    /// Copies a shard, which the caller has locked, if the current snapshot needs it. To be called before its sessions change.
    pub(super) fn copy_before_change(&self, number: u8, shard: &mut Shard) {
        let current = self.copy.lock();
        let Some(copy) = current.as_ref().filter(|copy| !copy.is_over()) else { return };
        if shard.snapshot_epoch != copy.epoch {
            shard.snapshot_epoch = copy.epoch;
            *copy.copies[usize::from(number)].lock() = records(shard);
        }
    }

    /// The sessions of a shard at the start of the copy. To be called once for each shard.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] if another copy was started, or the sessions were replaced.
    pub(crate) fn copied_shard(&self, copy: &CopyOnWriteShards, number: u8) -> io::Result<Vec<SessionRecord>> {
        let mut shard = self.shard(number);
        if copy.is_over() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "another snapshot was started"));
        }
        if shard.snapshot_epoch == copy.epoch {
            return Ok(std::mem::take(&mut *copy.copies[usize::from(number)].lock()));
        }
        shard.snapshot_epoch = copy.epoch;
        Ok(records(&shard))
    }
}
