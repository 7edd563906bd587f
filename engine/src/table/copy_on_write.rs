//! The copy of the sessions at the start of a snapshot, while commands continue to change the table.
//!
//! Sessions are copied in blocks of the slab. The writer of the snapshot takes a few blocks at a time, one shard after the
//! other. A command that is about to change a block which the writer has not taken yet keeps a copy of that block first. Both
//! hold the lock of the shard, so each block is copied once, in its state at the start, and nobody holds a shard for longer than
//! a few blocks take.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::slab::block_of;
use super::{Shard, Table};
use crate::replicated::Replicated;
use crate::time::Time;

/// Maximum number of blocks (of 8 sessions) that the writer copies under one lock: some microseconds, for packets wait meanwhile.
const BLOCKS_PER_LOCK: u32 = 8;

/// One snapshot's copy.
pub(crate) struct CopyOnWrite {
    /// The number of the snapshot.
    epoch: u64,
    /// Whether no further copies are needed.
    is_over: AtomicBool,
}

impl CopyOnWrite {
    /// Ends the copying.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// How far one shard is copied.
#[derive(Default)]
pub(super) struct ShardCopy {
    /// The snapshot that this is about.
    epoch: u64,
    /// The shard's blocks at the start. Only commands add blocks, and they come here first.
    blocks: u32,
    /// The first block that the writer has not taken.
    next: u32,
    /// Blocks that commands changed before the writer took them, as they were.
    kept: BTreeMap<u32, Vec<Replicated>>,
}

impl Shard {
    /// Begins the copy of this shard, unless it was begun.
    fn begin_copy(&mut self, epoch: u64) {
        if self.copy.epoch != epoch {
            self.copy = ShardCopy { epoch, blocks: self.sessions.slab.blocks(), ..ShardCopy::default() };
        }
    }

    fn block(&self, block: u32) -> impl Iterator<Item = Replicated> {
        self.sessions.slab.block(block).map(|session| session.replicated().clone())
    }

    /// Keeps a copy of the block of a slot, unless it was copied before, or is newer than the snapshot.
    fn keep_block(&mut self, slot: u32) {
        let block = block_of(slot);
        if (self.copy.next..self.copy.blocks).contains(&block) && !self.copy.kept.contains_key(&block) {
            let kept = self.block(block).collect();
            self.copy.kept.insert(block, kept);
        }
    }
}

impl Table {
    /// Starts a copy of all sessions in their current state, and ends the previous copy. To be called on the thread that
    /// applies commands.
    pub(crate) fn begin_copy(&self) -> Arc<CopyOnWrite> {
        let mut current = self.copy.lock();
        let epoch = match current.take() {
            Some(before) => {
                before.end();
                before.epoch + 1
            }
            None => 1,
        };
        let copy = Arc::new(CopyOnWrite { epoch, is_over: AtomicBool::new(false) });
        *current = Some(copy.clone());
        copy
    }

    /// Ends the current copy, if there is one.
    pub(super) fn end_copy(&self) {
        if let Some(copy) = &*self.copy.lock() {
            copy.end();
        }
    }

    /// Ends a copy, and frees what was kept for it.
    pub(crate) fn drop_copy(&self, copy: &CopyOnWrite) {
        copy.end();
        for number in self.numbers() {
            let mut shard = self.shard(number);
            let kept = (shard.copy.epoch == copy.epoch).then(|| std::mem::take(&mut shard.copy.kept));
            drop(shard);
            drop(kept);
        }
    }

    /// The number of sessions that commands have kept.
    #[cfg(test)]
    pub(crate) fn kept_sessions(&self) -> usize {
        let kept = |number| self.shard(number).copy.kept.values().map(Vec::len).sum::<usize>();
        self.numbers().map(kept).sum()
    }

    /// Keeps the block of a slot of a shard, which the caller has locked, if the current snapshot needs it. To be called before
    /// the session in it changes.
    pub(super) fn copy_before_change(&self, shard: &mut Shard, slot: u32) {
        let current = self.copy.lock();
        let Some(copy) = current.as_ref().filter(|copy| !copy.is_over()) else { return };
        shard.begin_copy(copy.epoch);
        shard.keep_block(slot);
    }

    /// The same for the slot that the next session will get.
    pub(super) fn copy_before_insert(&self, shard: &mut Shard) {
        let slot = shard.sessions.slab.next_slot();
        self.copy_before_change(shard, slot);
    }

    /// Adds the next sessions of a shard to `to`, as they were at the start of the copy. Returns whether there are more, and for
    /// how long the shard was locked, by the clock `now`.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] if another copy was started, or the sessions were replaced.
    pub(crate) fn copy_piece(
        &self,
        copy: &CopyOnWrite,
        number: u8,
        to: &mut Vec<Replicated>,
        now: &mut dyn FnMut() -> Time,
    ) -> io::Result<(bool, Duration)> {
        let mut shard = self.shard(number);
        let locked_at = now();
        if copy.is_over() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "another snapshot was started"));
        }
        shard.begin_copy(copy.epoch);
        let end = shard.copy.blocks.min(shard.copy.next + BLOCKS_PER_LOCK);
        for block in shard.copy.next..end {
            match shard.copy.kept.remove(&block) {
                Some(kept) => to.extend(kept),
                None => to.extend(shard.block(block)),
            }
        }
        shard.copy.next = end;
        Ok((end < shard.copy.blocks, now().since(locked_at)))
    }
}
