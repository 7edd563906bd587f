//! The log: openraft's view of it, and its recent end in memory.
//!
//! [`Tail`] is the truth for readers: which entries there are, and the last of them themselves. An entry is readable as
//! soon as `append` returns, long before it is durable; it stays in the tail at least until the flusher has written it
//! to sled, so readers never have to wait, and replication hardly ever reads sled.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::flush::{Flusher, Operation, Trees, stopped};
use crate::metrics::StoreMetrics;
use crate::record::{Entries, damaged, decode, key};
use crate::store::Lock;
use crate::types::{Entry, LogId, TypeConfig, Vote, weight};

/// About how many bytes of entries one read answers with, where the caller takes less than it asked for.
const READ_BYTES: usize = 1024 * 1024;

/// What is in the log.
pub(crate) struct Tail {
    state: RwLock<State>,
    /// How many bytes of entries to keep in memory.
    keep: usize,
}

#[derive(Clone, Default)]
pub(crate) struct State {
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

impl State {
    /// The index from which on all entries are in memory.
    fn recent_from(&self) -> u64 {
        match (self.recent.front(), self.last) {
            (Some(entry), _) => entry.log_id.index,
            (None, Some(last)) => last.index + 1,
            (None, None) => 0,
        }
    }

    fn evict(&mut self, keep: usize) {
        while self.bytes > keep {
            match self.recent.front() {
                Some(entry) if Some(entry.log_id.index) <= self.written => self.bytes -= weight(entry),
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
                let what = format!("entry {index} can not follow entry {last}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            last = Some(index);
        }
        for entry in entries {
            self.first.get_or_insert(entry.log_id.index);
            self.last = Some(entry.log_id);
            self.bytes += weight(entry);
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
            self.bytes -= weight(entry);
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
            self.bytes -= weight(entry);
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

    /// Entries out of memory, at least one, until they weigh `most`.
    pub(crate) fn recent(&self, from: u64, to: u64, most: usize) -> Vec<Arc<Entry>> {
        let skip = usize::try_from(from.saturating_sub(self.recent_from())).unwrap_or(usize::MAX);
        let mut bytes = 0;
        self.recent
            .iter()
            .skip(skip)
            .take_while(|entry| {
                let take = bytes == 0 || bytes < most;
                bytes += weight(entry);
                take && entry.log_id.index < to
            })
            .map(Arc::clone)
            .collect()
    }
}

impl Tail {
    pub(crate) fn new(state: State, keep: usize) -> Tail {
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

/// openraft's log storage on sled. Dropping it writes what is queued and waits until it is durable.
pub struct LogStore {
    flusher: Flusher,
    reader: LogReader,
}

impl LogStore {
    pub(crate) fn new(flusher: Flusher, reader: LogReader) -> LogStore {
        LogStore { flusher, reader }
    }

    /// The figures about writing.
    #[must_use]
    pub fn metrics(&self) -> StoreMetrics {
        self.reader.metrics.clone()
    }

    async fn wait(&self, operation: Operation, done: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        self.flusher.send(operation).await?;
        done.await.map_err(|_| stopped())?
    }
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("state", &self.reader.tail.state.read().log_state()).finish_non_exhaustive()
    }
}

/// Reads the log; there are several.
#[derive(Clone)]
pub struct LogReader {
    pub(crate) tail: Arc<Tail>,
    pub(crate) trees: Trees,
    pub(crate) metrics: StoreMetrics,
    /// The folder is ours for as long as somebody may read it.
    pub(crate) _lock: Arc<Lock>,
}

impl LogReader {
    /// The entries of `from..to` that there are, until they weigh `most`; at least one if there is one.
    async fn read(&self, from: u64, to: u64, most: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (epoch, from, to) = {
                let state = self.tail.state.read();
                let Some((from, to)) = state.clamp(from, to) else { return Ok(Vec::new()) };
                let recent_from = state.recent_from();
                if from >= recent_from {
                    let entries = state.recent(from, to, most);
                    drop(state);
                    return Ok(entries.iter().map(|entry| Entry::clone(entry)).collect());
                }
                (state.epoch, from, to.min(recent_from))
            };
            let log = self.trees.log.clone();
            self.metrics.cold_reads.inc();
            let read =
                tokio::task::spawn_blocking(move || read_cold(&log, from, to, most)).await.map_err(io::Error::other)?;
            let state = self.tail.state.read();
            // A purge or a truncation in between explains a missing entry, and makes what was read stale.
            if state.epoch == epoch && state.clamp(from, to) == Some((from, to)) {
                return read;
            }
        }
    }

    async fn read_all(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        'again: loop {
            let epoch = self.tail.state.read().epoch;
            let mut all: Vec<Entry> = Vec::new();
            let mut next = from;
            loop {
                let some = self.read(next, to, usize::MAX).await?;
                if self.tail.state.read().epoch != epoch {
                    // Truncated in between: the halves may not belong together.
                    continue 'again;
                }
                match some.last() {
                    None => return Ok(all),
                    Some(last) => next = last.log_id.index + 1,
                }
                all.extend(some);
            }
        }
    }
}

/// Entries from sled; all of `from..to` must be there.
fn read_cold(log: &sled::Tree, from: u64, to: u64, most: usize) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut found = Entries::new(log.range(key(from, 0)..key(to, 0)));
    for expected in from..to {
        match found.next_entry()? {
            Some((index, content)) if index == expected => {
                bytes += content.len();
                entries.push(decode::<Entry>(&content).map_err(|error| damaged(format!("entry {index}: {error}")))?);
            }
            _ => return Err(damaged(format!("entry {expected} is missing in the log"))),
        }
        if bytes >= most {
            break;
        }
    }
    Ok(entries)
}

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

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        self.read_all(from, to).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.tail.state.read().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES).await
    }

    // In portions: a member that starts replays a long log without having it in memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let reader = self.clone();
        futures::stream::try_unfold((reader, from), move |(reader, from)| async move {
            let entries = reader.read(from, to, READ_BYTES).await?;
            let next = entries.last().map(|entry| entry.log_id.index + 1);
            Ok::<_, io::Error>(next.map(|next| (futures::stream::iter(entries).map(Ok), (reader, next))))
        })
        .try_flatten()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(self.reader.tail.state.read().log_state())
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, receiver) = oneshot::channel();
        self.wait(Operation::Vote { vote: *vote, done }, receiver).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.reader.tail.state.write().committed = committed;
        self.flusher.send(Operation::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.reader.tail.state.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        let epoch = {
            let mut state = self.reader.tail.state.write();
            state.append(&entries)?;
            state.epoch
        };
        self.flusher.send(Operation::Append { epoch, entries, done: callback }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        if !self.reader.tail.state.write().truncate(from, last_log_id) {
            return Ok(());
        }
        let (done, receiver) = oneshot::channel();
        self.wait(Operation::Truncate { from, done }, receiver).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.reader.tail.state.write().purge(log_id);
        self.flusher.send(Operation::Purge(log_id)).await
    }
}
