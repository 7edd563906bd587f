//! A disk in memory, for tests and simulation: the same contract, nothing that outlives the process.
//!
//! All [`MemoryLog`]s of one [`MemoryDisk`] see what is durable on it, as processes see a disk one after the other: a
//! simulated member that crashes drops its log and comes back with another one. By default what is written is durable at
//! once, so a run depends on nothing but its seed. A disk with flush times ([`MemoryDisk::slow`]) writes as the real
//! one does: what queued during the last flush is the next group, complete only when it is durable, in order; and a crash
//! leaves a prefix of what was under way ([`MemoryDisk::crash`]).

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::core::{ReplicatedState, Setup};
use crate::error::{StoreError, StoreOwner, WriteFailed};
use crate::flush::stopped;
use crate::snapshot::Snapshots;
use crate::state_machine::StateMachine;
use crate::tail::{TailState, bounds};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// One write. A crash leaves a prefix of these.
#[derive(Clone)]
enum Write {
    Vote(Vote),
    Committed(Option<LogId>),
    Entry(Arc<Entry>),
    Truncate(u64, Option<LogId>),
    Purge(LogId),
}

impl Write {
    fn to(&self, state: &mut TailState) -> io::Result<()> {
        match self {
            Write::Vote(vote) => state.vote = Some(*vote),
            Write::Committed(committed) => state.committed = *committed,
            Write::Entry(entry) => state.append(std::slice::from_ref(entry))?,
            Write::Truncate(from, last) => drop(state.truncate(*from, *last)),
            Write::Purge(upto) => state.purge(*upto),
        }
        Ok(())
    }
}

/// The one that waits until something is durable.
enum Done {
    Nobody,
    Append(IOFlushed<TypeConfig>),
    Wait(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: &Result<(), WriteFailed>) {
        let result = match result {
            Ok(()) => Ok(()),
            Err(failed) => Err(failed.into()),
        };
        match self {
            Done::Nobody => {}
            Done::Append(callback) => callback.io_completed(result),
            // Nobody waits any longer: fine.
            Done::Wait(waiting) => drop(waiting.send(result)),
        }
    }
}

/// How long the next flush takes.
type FlushTime = Box<dyn FnMut() -> Duration + Send>;
/// What a disk does to an entry.
type Rot = Box<dyn FnMut(&mut Entry) + Send>;

struct Disk {
    durable: TailState,
    /// Being written now.
    under_way: Vec<Write>,
    flush_time: Option<FlushTime>,
    /// Says that writes are durable before they are.
    lies: bool,
    /// Changes entries on their way to the disk.
    rot: Option<Rot>,
    owner: Option<StoreOwner>,
}

/// A disk in memory. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub struct MemoryDisk {
    disk: Arc<Mutex<Disk>>,
    snapshots: Snapshots,
    clock: Clock,
    /// Maximum number of entries in the log.
    bound: usize,
}

impl Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryDisk").field("durable", &self.disk.lock().durable.log_state()).finish_non_exhaustive()
    }
}

impl MemoryDisk {
    /// An empty disk, on which everything is durable at once, for at most `bound` entries: what would be too much fails, as
    /// on a full disk.
    #[must_use]
    pub fn new(clock: Clock, bound: usize) -> MemoryDisk {
        let disk = Disk {
            durable: TailState::default(),
            under_way: Vec::new(),
            flush_time: None,
            lies: false,
            rot: None,
            owner: None,
        };
        MemoryDisk { disk: Arc::new(Mutex::new(disk)), snapshots: Snapshots::memory(clock.clone()), clock, bound }
    }

    /// Every flush from the next [`MemoryDisk::log`] on takes as long as `time` says, by tokio's clock.
    pub fn slow(&self, time: impl FnMut() -> Duration + Send + 'static) {
        self.disk.lock().flush_time = Some(Box::new(time));
    }

    /// A disk that answers before it has written, as some do: what it shall never do.
    pub fn lie(&self) {
        self.disk.lock().lies = true;
    }

    /// A disk that changes what is written to it.
    pub fn rot(&self, change: impl FnMut(&mut Entry) + Send + 'static) {
        self.disk.lock().rot = Some(Box::new(change));
    }

    /// The machine lost power: of the writes that were under way and not yet acknowledged the first `kept` are there.
    /// The log that wrote them is to be dropped before the next one is opened.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk.lock();
        let under_way = std::mem::take(&mut disk.under_way);
        for write in under_way.iter().take(kept) {
            if write.to(&mut disk.durable).is_err() {
                break;
            }
        }
    }

    /// Calls `each` with the durable entries.
    pub fn entries(&self, each: &mut dyn FnMut(&Entry)) {
        self.disk.lock().durable.recent.iter().for_each(|entry| each(entry));
    }

    /// The owner of the store, once it is set.
    #[must_use]
    pub fn owner(&self) -> Option<StoreOwner> {
        self.disk.lock().owner.clone()
    }

    /// Sets the owner of the store.
    ///
    /// # Errors
    /// [`StoreError::OtherOwner`] if it belongs to another.
    pub fn set_owner(&self, wanted: StoreOwner) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        match &disk.owner {
            Some(have) if *have != wanted => Err(StoreError::OtherOwner {
                dir: Path::new("memory").to_owned(),
                have: Box::new(have.clone()),
                wanted: Box::new(wanted),
            }),
            _ => {
                disk.owner = Some(wanted);
                Ok(())
            }
        }
    }

    /// The snapshots on it: durable as soon as they are built.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// The log, as it is durable. On a slow disk this is to be called within a tokio runtime, which writes.
    #[must_use]
    pub fn log(&self) -> MemoryLog {
        let (state, is_slow) = {
            let disk = self.disk.lock();
            (disk.durable.clone(), disk.flush_time.is_some())
        };
        let writes = is_slow.then(|| {
            let (writes, queue) = mpsc::unbounded_channel();
            tokio::spawn(self.clone().flush(queue));
            writes
        });
        MemoryLog { state: Arc::new(Mutex::new(state)), disk: self.clone(), writes }
    }

    /// Log and machine for openraft: the machine's state is that of the newest snapshot.
    ///
    /// # Errors
    /// If the snapshots cannot be read.
    pub fn open<M: ReplicatedState>(&self, setup: Setup<M>) -> Result<(MemoryLog, StateMachine<M>), StoreError> {
        let machine = StateMachine::restore(setup, self.snapshots(), Arc::clone(&self.clock))?;
        Ok((self.log(), machine))
    }

    async fn flush(self, mut queue: mpsc::UnboundedReceiver<(Vec<Write>, Done)>) {
        while let Some(first) = queue.recv().await {
            let mut done = Vec::new();
            let time = {
                let mut disk = self.disk.lock();
                let mut next = Some(first);
                while let Some((writes, waits)) = next {
                    disk.under_way.extend(writes);
                    done.push(waits);
                    next = queue.try_recv().ok();
                }
                disk.flush_time.as_mut().map_or(Duration::ZERO, |time| time())
            };
            if self.disk.lock().lies {
                done.drain(..).for_each(|done| done.tell(&Ok(())));
            }
            tokio::time::sleep(time).await;
            let result = self.written().map_err(WriteFailed::new);
            done.into_iter().for_each(|done| done.tell(&result));
        }
    }

    /// What is under way is durable.
    fn written(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let under_way = std::mem::take(&mut disk.under_way);
        under_way.iter().try_for_each(|write| write.to(&mut disk.durable))
    }
}

/// The log on a [`MemoryDisk`], and its readers.
#[derive(Clone)]
pub struct MemoryLog {
    /// As openraft sees it.
    state: Arc<Mutex<TailState>>,
    disk: MemoryDisk,
    /// To the task that writes; none: everything is durable at once.
    writes: Option<mpsc::UnboundedSender<(Vec<Write>, Done)>>,
}

impl Debug for MemoryLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLog").field("state", &self.state.lock().log_state()).finish_non_exhaustive()
    }
}

impl MemoryLog {
    fn write(&self, writes: Vec<Write>, done: Done) -> io::Result<()> {
        match &self.writes {
            Some(queue) => queue.send((writes, done)).map_err(|_| stopped()),
            None => {
                self.disk.disk.lock().under_way.extend(writes);
                self.disk.written()?;
                done.tell(&Ok(()));
                Ok(())
            }
        }
    }

    async fn write_and_wait(&self, write: Write) -> io::Result<()> {
        let (done, waiting) = oneshot::channel();
        self.write(vec![write], Done::Wait(done))?;
        waiting.await.map_err(|_| stopped())?
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        let state = self.state.lock();
        let Some((from, to)) = state.clamp(from, to) else { return Ok(Vec::new()) };
        Ok(state.recent(from, to, usize::MAX).iter().map(|entry| Entry::clone(entry)).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = MemoryLog;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(self.state.lock().log_state())
    }

    async fn get_log_reader(&mut self) -> MemoryLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.state.lock().vote = Some(*vote);
        self.write_and_wait(Write::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.state.lock().committed = committed;
        self.write(vec![Write::Committed(committed)], Done::Nobody)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(rot) = &mut self.disk.disk.lock().rot {
            entries.iter_mut().for_each(rot);
        }
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        {
            let mut state = self.state.lock();
            if state.recent.len() + entries.len() > self.disk.bound {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the log in memory is full"));
            }
            state.append(&entries)?;
        }
        self.write(entries.into_iter().map(Write::Entry).collect(), Done::Append(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.state.lock().truncate(from, last_log_id);
        self.write_and_wait(Write::Truncate(from, last_log_id)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.state.lock().purge(log_id);
        self.write(vec![Write::Purge(log_id)], Done::Nobody)
    }
}
