//! What was applied, told on: to the proposer that waits for its batch, and to those who watch sessions.

use std::sync::Arc;

use palisade_engine::replica::{Applied, Batch, Close, Command, Establish};
use palisade_engine::{MemberId, SessionId};
use palisade_raft_store::Observer;
use tokio::sync::{broadcast, mpsc};

use crate::replication_metrics::ReplicationMetrics;
use crate::sync::propose::{Answer, Unanswered};

/// Session events that a slow watcher may be behind before it loses some.
pub(crate) const EVENTS: usize = 4096;

/// A change of a session, as applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionEvent {
    /// The log index.
    pub index: u64,
    /// The proposer's wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// What happened.
    pub change: SessionChange,
}

/// What happened to a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionChange {
    /// It was established.
    Established(Box<Establish>),
    /// It was closed and is in TIME_WAIT.
    Closed(Close),
    /// It was idle for too long, or its TIME_WAIT is over.
    Expired(SessionId),
    /// An administrator or a new policy ended it.
    Revoked(SessionId),
}

/// Told by the store what was applied, and tells it on.
pub(crate) struct Events {
    pub(crate) me: MemberId,
    pub(crate) answers: mpsc::Sender<Answer>,
    pub(crate) unanswered: Unanswered,
    pub(crate) watchers: broadcast::Sender<Arc<SessionEvent>>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

impl Observer for Events {
    fn applied(&self, index: u64, batch: &Batch, answers: &[Applied]) {
        self.metrics.applied_batches.add(1);
        self.metrics.applied_commands.add(batch.commands.len() as u64);
        if batch.proposer == self.me {
            self.unanswered.answer(batch.first, answers, &self.answers);
        }
        // Not what is in the log a second time, nor what two members proposed alike: it was told of already.
        let (mut established, mut refreshed) = (0, 0);
        for (command, _) in batch.commands.iter().zip(answers).filter(|(_, answer)| answer.changed) {
            match command {
                Command::Establish(_) => established += 1,
                Command::Refresh(ids) => refreshed += ids.len() as u64,
                _ => {}
            }
        }
        self.metrics.sessions_established.add(established);
        self.metrics.sessions_refreshed.add(refreshed);
        if self.watchers.receiver_count() == 0 {
            return;
        }
        let tell = |change| {
            // Fails only without receivers.
            let _ = self.watchers.send(Arc::new(SessionEvent { index, unix_ms: batch.unix_ms, change }));
        };
        for (command, answer) in batch.commands.iter().zip(answers).filter(|(_, answer)| answer.changed) {
            match command {
                Command::Establish(establish) => tell(SessionChange::Established(establish.clone())),
                Command::Close(close) => tell(SessionChange::Closed(*close)),
                Command::Expire(_) | Command::ExpireIdle(_) => {
                    answer.ended.iter().for_each(|id| tell(SessionChange::Expired(*id)));
                }
                Command::Revoke(_) => answer.ended.iter().for_each(|id| tell(SessionChange::Revoked(*id))),
                Command::Refresh(_) | Command::Resume | Command::Policy(_) | Command::Member(_) => {}
            }
        }
    }
}
