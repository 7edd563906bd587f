//! The flusher: the one thread that writes to sled, and the only caller of `flush`.
//!
//! Operations are done in the order in which they were sent; what queued while the last group was being flushed is the
//! next group: one flush for all of it. A completion is called only after the [`Barrier`] has returned, in order.
//!
//! After an error nothing is written any more and every later operation fails: after a failed `fdatasync` the kernel
//! may have thrown the data away, so that trying again would lie.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use crate::batch::LevelInForce;
use crate::clock::Clock;
use crate::db::{Barrier, COMMITTED, PURGED, Trees, VOTE, durable};
use crate::durable_watermark::DurableWatermark;
use crate::encoding::Encoded;
use crate::error::{WriteFailed, sled_io};
use crate::metrics::{Flush, StoreMetrics};
use crate::record::{key, parse_key, seal_entry, seal_meta};
use crate::snapshot::pace::SlowDisk;
use crate::store::Options;
use crate::tail::Tail;
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// Maximum operations and bytes of a group. The bytes keep a group below sled's segment (512 KiB): sled
/// reuses a segment only two segments after its content moved, so whatever it overwrites has been moved by an earlier,
/// already durable group.
const GROUP_OPERATIONS: u64 = 256;
const GROUP_BYTES: u64 = 256 * 1024;
/// What a flush writes besides the records, about.
const FLUSH_BYTES: u64 = 4096;
/// Removed keys after each group, at least; and without a flush.
const PURGE_SLICE: usize = 64;
const PURGE_UNFLUSHED: usize = 256;

pub(crate) enum Operation {
    Append {
        epoch: u64,
        entries: Vec<Arc<Entry>>,
        done: IOFlushed<TypeConfig>,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    Committed(Option<LogId>),
    /// Removes the entries from this index on.
    Truncate {
        from: u64,
        done: Done,
    },
    /// Removes the entries up to this one, by and by.
    Purge(LogId),
}

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

enum Completion {
    Append(IOFlushed<TypeConfig>),
    Vote(Vote, Done),
    Truncate(Done),
}

/// The sending side. Dropping it writes what is queued and waits for it.
pub(crate) struct Flusher {
    operations: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn spawn(
        trees: Trees,
        tail: Arc<Tail>,
        barrier: Box<dyn Barrier>,
        watermark: DurableWatermark,
        metrics: StoreMetrics,
        options: Options,
        level: LevelInForce,
    ) -> io::Result<Flusher> {
        let (operations, queue) = mpsc::channel(1024);
        let purge = tail.purged().map(|id| id.index);
        let worker = Worker {
            trees,
            tail,
            barrier,
            watermark,
            metrics,
            clock: options.clock,
            disk: options.disk,
            level,
            queue,
            purge,
            unflushed: 0,
            appended: 0,
            failed: None,
        };
        let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || worker.run())?;
        Ok(Flusher { operations: Some(operations), thread: Some(thread) })
    }

    pub(crate) async fn send(&self, operation: Operation) -> io::Result<()> {
        let Some(operations) = &self.operations else { return Err(stopped()) };
        operations.send(operation).await.map_err(|_| stopped())
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's flusher panicked");
        }
    }
}

pub(crate) fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log's flusher has stopped")
}

struct Worker {
    trees: Trees,
    tail: Arc<Tail>,
    barrier: Box<dyn Barrier>,
    watermark: DurableWatermark,
    metrics: StoreMetrics,
    clock: Clock,
    disk: SlowDisk,
    level: LevelInForce,
    queue: mpsc::Receiver<Operation>,
    /// Entries up to this index are still to be removed.
    purge: Option<u64>,
    /// Keys removed since the last flush.
    unflushed: usize,
    /// Keys written by the last group: purging has to keep up with appending.
    appended: usize,
    failed: Option<WriteFailed>,
}

/// What has been written, not yet flushed.
#[derive(Default)]
struct Group {
    completions: Vec<Completion>,
    committed: Option<Option<LogId>>,
    operations: u64,
    entries: u64,
    bytes: u64,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.next() {
            self.appended = 0;
            if let Some(first) = first {
                self.group(first);
            }
            if self.purge.is_some() && self.failed.is_none() {
                let result = self.purge_slice(PURGE_SLICE.max(2 * self.appended));
                self.note(result);
            }
        }
        // Closed: make the purge and the commit index durable as well. Nothing depends on it.
        if self.failed.is_none()
            && let Err(error) = durable(&self.trees, &mut *self.barrier, &mut self.watermark)
        {
            tracing::warn!(%error, "the last flush of the log failed");
        }
    }

    /// The next operation; `Some(None)` if there is none, but purging to do; `None` at the end.
    fn next(&mut self) -> Option<Option<Operation>> {
        if self.purge.is_none() || self.failed.is_some() {
            return self.queue.blocking_recv().map(Some);
        }
        match self.queue.try_recv() {
            Ok(operation) => Some(Some(operation)),
            Err(mpsc::error::TryRecvError::Empty) => Some(None),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
        }
    }

    fn group(&mut self, first: Operation) {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(operation) = next {
            let result = self.write(operation, &mut group);
            self.note(result);
            if group.operations >= GROUP_OPERATIONS || group.bytes >= GROUP_BYTES {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        let result = self.finish(&mut group);
        self.note(result);
        for completion in group.completions {
            match completion {
                Completion::Append(done) => done.io_completed(self.outcome()),
                Completion::Vote(vote, done) => {
                    // Readers see a vote only when it is durable.
                    if self.failed.is_none() {
                        self.tail.set_vote(vote);
                    }
                    // Nobody waits any longer: fine, it is saved.
                    let _ = done.send(self.outcome());
                }
                Completion::Truncate(done) => {
                    let _ = done.send(self.outcome());
                }
            }
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            tracing::error!(%error, "the log cannot be written any longer");
            self.failed = Some(WriteFailed::new(error));
        }
    }

    fn outcome(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(failed) => Err(failed.into()),
        }
    }

    /// Writes one operation, in order, and keeps its completion for after the flush.
    fn write(&mut self, operation: Operation, group: &mut Group) -> io::Result<()> {
        let healthy = self.failed.is_none();
        match operation {
            Operation::Append { epoch, entries, done } => {
                group.operations += 1;
                group.completions.push(Completion::Append(done));
                if !healthy {
                    return Ok(());
                }
                for entry in &entries {
                    let records = seal_entry(entry.log_id.index, &entry.encode(self.level.get())?)?;
                    // The first part last: an entry that has its beginning is whole, whenever the power goes.
                    self.appended += records.len();
                    for (key, record) in records.into_iter().rev() {
                        group.bytes += record.len() as u64;
                        self.trees.log.insert(key, record).map_err(sled_io)?;
                    }
                    group.entries += 1;
                    // A long append may not make the group longer than the bound (see GROUP_BYTES).
                    if group.bytes >= GROUP_BYTES {
                        self.sync(group)?;
                    }
                }
                if let Some(last) = entries.last() {
                    self.tail.written(epoch, last.log_id.index);
                }
            }
            Operation::Vote { vote, done } => {
                group.operations += 1;
                group.completions.push(Completion::Vote(vote, done));
                if healthy {
                    self.put(VOTE, &vote)?;
                }
            }
            // Only the last one of a group matters, and the group's flush carries it along if there is one.
            Operation::Committed(committed) => group.committed = Some(committed),
            Operation::Truncate { from, done } => {
                group.operations += 1;
                group.completions.push(Completion::Truncate(done));
                if healthy {
                    self.truncate(from, group)?;
                }
            }
            Operation::Purge(upto) => {
                if healthy {
                    // First what is gone, then the going: entries that are still there after a crash are known to be
                    // purged.
                    self.put(PURGED, &upto)?;
                    self.purge = Some(self.purge.map_or(upto.index, |index| index.max(upto.index)));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, group: &mut Group) -> io::Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        if let Some(committed) = group.committed.take() {
            self.put(COMMITTED, &committed)?;
        }
        if group.completions.is_empty() {
            return Ok(());
        }
        self.sync(group)
    }

    fn sync(&mut self, group: &mut Group) -> io::Result<()> {
        let begin = (self.clock)();
        self.disk.transfer(FLUSH_BYTES + group.bytes);
        durable(&self.trees, &mut *self.barrier, &mut self.watermark)?;
        let took = (self.clock)().since(begin);
        self.unflushed = 0;
        self.metrics.flushed(&Flush {
            took,
            operations: std::mem::take(&mut group.operations),
            entries: std::mem::take(&mut group.entries),
            bytes: std::mem::take(&mut group.bytes),
        });
        Ok(())
    }

    fn put(&self, name: &str, value: &impl Encoded) -> io::Result<()> {
        self.trees.meta.insert(name, seal_meta(name, value)?).map(|_| ()).map_err(sled_io)
    }

    /// Removes from the end backward: a crash in between leaves no hole.
    fn truncate(&mut self, from: u64, group: &mut Group) -> io::Result<()> {
        let mut last: Option<u64> = None;
        loop {
            let Some((found, _)) = self.trees.log.last().map_err(sled_io)? else { return Ok(()) };
            let (index, part) = parse_key(&found)?;
            if index < from {
                return Ok(());
            }
            if last != Some(index) {
                // The beginning first: an entry without its beginning does not count.
                self.trees.log.remove(key(index, 0)).map_err(sled_io)?;
                last = Some(index);
            }
            if part != 0 {
                self.trees.log.remove(found).map_err(sled_io)?;
            }
            self.unflushed += 1;
            if self.unflushed >= PURGE_UNFLUSHED {
                self.sync(group)?;
            }
        }
    }

    /// Removes some of the purged entries, from the beginning, so that appends need not wait for a long purge.
    fn purge_slice(&mut self, keys: usize) -> io::Result<()> {
        let Some(upto) = self.purge else { return Ok(()) };
        for _ in 0..keys {
            let first = self.trees.log.first().map_err(sled_io)?;
            let Some((found, _)) = first else {
                self.purge = None;
                break;
            };
            if parse_key(&found)?.0 > upto {
                self.purge = None;
                break;
            }
            self.trees.log.remove(found).map_err(sled_io)?;
            self.unflushed += 1;
        }
        if self.unflushed >= PURGE_UNFLUSHED {
            self.sync(&mut Group::default())?;
        }
        Ok(())
    }
}
