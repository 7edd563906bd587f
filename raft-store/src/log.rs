//! openraft's view of the log: [`LogStore`] writes through the flusher, [`LogReader`] reads the tail in memory and, behind it, sled.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::db::Trees;
use crate::encoding::Encoded;
use crate::flush::{Flusher, Operation, stopped};
use crate::fs::Lock;
use crate::metrics::StoreMetrics;
use crate::record::{Entries, damaged, key, within};
use crate::tail::{Tail, bounds};
use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::unreadable::Thing;

/// Approximately how many bytes of entries one read answers with, where the caller takes less than it asked for.
const READ_BYTES: usize = 1024 * 1024;

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
    /// The entries of `from..to` that there are, until their size reaches `max_bytes`; at least one if there is one.
    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (epoch, from, to) = {
                let state = self.tail.state.read();
                let Some((from, to)) = state.clamp(from, to) else { return Ok(Vec::new()) };
                let recent_from = state.recent_from();
                if from >= recent_from {
                    let entries = state.recent(from, to, max_bytes);
                    drop(state);
                    return Ok(entries.iter().map(|entry| Entry::clone(entry)).collect());
                }
                (state.epoch, from, to.min(recent_from))
            };
            let log = self.trees.log.clone();
            self.metrics.cold_reads.inc();
            let read = tokio::task::spawn_blocking(move || read_cold(&log, from, to, max_bytes))
                .await
                .map_err(io::Error::other)?;
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
fn read_cold(log: &sled::Tree, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut found = Entries::new(log.range(key(from, 0)..key(to, 0)));
    for expected in from..to {
        match found.next_entry()? {
            Some((index, content)) if index == expected => {
                bytes += content.len();
                let entry = Entry::decode(Thing::Entry(index), &content);
                entries.push(entry.map_err(|error| within(format!("entry {index}"), error))?);
            }
            _ => return Err(damaged(format!("entry {expected} is missing in the log"))),
        }
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(entries)
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
