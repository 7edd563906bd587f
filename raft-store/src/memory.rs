//! A log in memory, for tests and simulation: the same contract, nothing durable.
//!
//! All clones of a [`MemoryLog`] share one content, as processes share a disk: a simulated member that crashes drops
//! its log and comes back with a clone. Completions are called at once, so a run depends on nothing but its seed.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use crate::log::{State, bounds};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// A log in memory.
#[derive(Clone)]
pub struct MemoryLog {
    state: Arc<Mutex<State>>,
    /// At most so many entries are in the log.
    bound: usize,
}

impl Debug for MemoryLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLog").field("state", &self.state.lock().log_state()).finish_non_exhaustive()
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        MemoryLog::new(usize::MAX)
    }
}

impl MemoryLog {
    /// An empty log for at most `bound` entries: what would be too much fails, as a full disk does.
    #[must_use]
    pub fn new(bound: usize) -> MemoryLog {
        MemoryLog { state: Arc::new(Mutex::new(State::default())), bound }
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
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.state.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        {
            let mut state = self.state.lock();
            if state.recent.len() + entries.len() > self.bound {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the log in memory is full"));
            }
            state.append(&entries)?;
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.state.lock().truncate(last_log_id.map_or(0, |id| id.index + 1), last_log_id);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.state.lock().purge(log_id);
        Ok(())
    }
}
