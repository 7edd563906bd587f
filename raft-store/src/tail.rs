//! The log's recent end in memory, which is the truth for readers: which entries there are, and the last of them.
//!
//! An entry is readable as soon as `append` returns, long before it is durable. It stays here at least until the flusher has
//! written it to sled, so that readers never wait and replication hardly ever reads sled.

use std::collections::VecDeque;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::LogState;
use parking_lot::RwLock;

use crate::types::{Entry, LogId, TypeConfig, Vote, memory_size};

/// What is in the log.
pub(crate) struct Tail {
    pub(crate) state: RwLock<TailState>,
    /// How many bytes of entries to keep in memory.
    keep: usize,
}

#[derive(Clone, Default)]
pub(crate) struct TailState {
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    /// The first entry's index, if there is one.
    pub(crate) first: Option<u64>,
    /// The last entry's id, or the last purged one's.
    pub(crate) last: Option<LogId>,
    /// The last entries, without a gap; all that sled does not have yet are among them.
    pub(crate) recent: VecDeque<Arc<Entry>>,
    pub(crate) bytes: usize,
    /// Entries up to this index are in sled.
    pub(crate) written: Option<u64>,
    /// How often the log was truncated: what was written before says nothing about the entries of today.
    pub(crate) epoch: u64,
}

impl TailState {
    /// The index from which on all entries are in memory.
    pub(crate) fn recent_from(&self) -> u64 {
        match (self.recent.front(), self.last) {
            (Some(entry), _) => entry.log_id.index,
            (None, Some(last)) => last.index + 1,
            (None, None) => 0,
        }
    }

    fn evict(&mut self, keep: usize) {
        while self.bytes > keep {
            match self.recent.front() {
                Some(entry) if Some(entry.log_id.index) <= self.written => self.bytes -= memory_size(entry),
                _ => break,
            }
            self.recent.pop_front();
        }
    }

    /// Takes entries in; they must follow the last one.
    pub(crate) fn append(&mut self, entries: &[Arc<Entry>]) -> io::Result<()> {
        let mut last = self.last.map(|last| last.index);
        for entry in entries {
            let index = entry.log_id.index;
            if let Some(last) = last
                && index != last + 1
            {
                let what = format!("entry {index} cannot follow entry {last}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            last = Some(index);
        }
        for entry in entries {
            self.first.get_or_insert(entry.log_id.index);
            self.last = Some(entry.log_id);
            self.bytes += memory_size(entry);
            self.recent.push_back(Arc::clone(entry));
        }
        Ok(())
    }

    /// Forgets the entries from `from` on; `last` is then the last one. Returns whether there were any.
    pub(crate) fn truncate(&mut self, from: u64, last: Option<LogId>) -> bool {
        if self.last.is_none_or(|last| last.index < from) {
            return false;
        }
        while let Some(entry) = self.recent.back()
            && entry.log_id.index >= from
        {
            self.bytes -= memory_size(entry);
            self.recent.pop_back();
        }
        if self.first.is_some_and(|first| first >= from) {
            self.first = None;
        }
        self.last = if self.first.is_some() { last } else { self.purged };
        self.written = self.written.and_then(|written| from.checked_sub(1).map(|kept| kept.min(written)));
        self.epoch += 1;
        true
    }

    /// Forgets the entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        while let Some(entry) = self.recent.front()
            && entry.log_id.index <= upto.index
        {
            self.bytes -= memory_size(entry);
            self.recent.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        if self.last.is_none_or(|last| last.index <= upto.index) {
            // As an installed snapshot does it: the log goes on after the snapshot.
            self.first = None;
            self.last = self.purged;
            self.written = self.written.max(Some(upto.index));
        } else if let Some(first) = &mut self.first {
            *first = (*first).max(upto.index + 1);
        }
    }

    pub(crate) fn log_state(&self) -> LogState<TypeConfig> {
        LogState { last_purged_log_id: self.purged, last_log_id: self.last }
    }

    /// The wanted indices that are there: from, to (exclusive).
    pub(crate) fn clamp(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let (first, last) = (self.first?, self.last?.index);
        let (from, to) = (from.max(first), to.min(last + 1));
        (from < to).then_some((from, to))
    }

    /// Entries from memory: at least one, and no more once their size reaches `max_bytes`.
    pub(crate) fn recent(&self, from: u64, to: u64, max_bytes: usize) -> Vec<Arc<Entry>> {
        let skip = usize::try_from(from.saturating_sub(self.recent_from())).unwrap_or(usize::MAX);
        let mut bytes = 0;
        self.recent
            .iter()
            .skip(skip)
            .take_while(|entry| {
                let take = bytes == 0 || bytes < max_bytes;
                bytes += memory_size(entry);
                take && entry.log_id.index < to
            })
            .map(Arc::clone)
            .collect()
    }
}

impl Tail {
    pub(crate) fn new(state: TailState, keep: usize) -> Tail {
        let tail = Tail { state: RwLock::new(state), keep };
        tail.state.write().evict(keep);
        tail
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.state.read().purged
    }

    pub(crate) fn set_vote(&self, vote: Vote) {
        self.state.write().vote = Some(vote);
    }

    /// The flusher has written the entries up to `index`, as they were in `epoch`.
    pub(crate) fn written(&self, epoch: u64, index: u64) {
        let mut state = self.state.write();
        if state.epoch == epoch {
            state.written = state.written.max(Some(index));
            state.evict(self.keep);
        }
    }
}

/// A range of indices as its first one and the one after its last.
pub(crate) fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}
