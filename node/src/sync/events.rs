//! Events of applied batches: for the proposer that waits for its batch, and for watchers of sessions.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Applied, Batch, Command};
use palisade_engine::{Close, Establish, Generation, MemberId, SessionId};
use palisade_raft_store::{Observer, Unreadable};
use tokio::sync::{Notify, broadcast, mpsc};

use crate::connection_log::ConnectionLog;
use crate::raft::unreadable::UnreadableAlarm;
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::proposals::{BatchApplied, PendingBatches, is_proposed_since};

/// Maximum number of session events waiting for a slow watcher; then it loses the oldest.
pub(crate) const WATCHER_QUEUE: usize = 4096;

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
    /// It was idle for too long, or its TIME_WAIT ended.
    Expired(SessionId),
    /// An administrator ended it.
    Revoked(SessionId),
    /// The policy of this generation forbids it.
    Forbidden(SessionId, Generation),
}

/// The store's observer.
pub(crate) struct Events {
    pub(crate) me: MemberId,
    /// The number of this start.
    pub(crate) start: u32,
    pub(crate) reports: mpsc::Sender<BatchApplied>,
    pub(crate) pending: PendingBatches,
    pub(crate) watchers: broadcast::Sender<Arc<SessionEvent>>,
    pub(crate) connection_log: ConnectionLog,
    pub(crate) policy_changed: Arc<Notify>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) alarm: UnreadableAlarm,
}

impl Observer for Events {
    fn unreadable(&self, unreadable: &Unreadable) {
        self.alarm.raise(unreadable);
    }

    fn took(&self, time: Duration) {
        self.metrics.apply.observe(time);
        self.metrics.policy_awaited.set(0_u64);
    }

    fn waits(&self, batch: &Batch) {
        if self.metrics.policy_awaited.get() == 0 {
            tracing::warn!(%batch, "this member has not compiled the policy that comes into force: it applies nothing until then");
        }
        self.metrics.policy_awaited.set(1_u64);
    }

    fn installed(&self, _: u64) {
        self.policy_changed.notify_one();
    }

    fn applied(&self, index: u64, batch: &Batch, applied: &[Applied]) {
        if batch.commands.iter().any(|command| matches!(command, Command::Policy(_) | Command::Enact(_))) {
            self.policy_changed.notify_one();
        }
        self.metrics.applied_batches.inc();
        self.metrics.applied_commands.add(batch.commands.len() as u64);
        if batch.proposer == self.me {
            self.pending.report(batch.first_serial, applied, &self.reports);
        }
        // The batches of an earlier start are applied again when the log is replayed: their events were logged then.
        let own = batch.proposer == self.me && is_proposed_since(batch, self.start);
        self.connection_log.applied(own, batch, applied);
        // Not copies of a batch, and not what two members proposed alike: these changed nothing.
        let (mut established, mut refreshed, mut forbidden) = (0, 0, 0);
        for (command, applied) in batch.commands.iter().zip(applied).filter(|(_, applied)| applied.changed) {
            match command {
                Command::Establish(_) => established += 1,
                Command::Refresh(ids) => refreshed += ids.len() as u64,
                Command::RevokeForbidden(_) => forbidden += applied.removed.len() as u64,
                _ => {}
            }
        }
        self.metrics.sessions_established.add(established);
        self.metrics.sessions_refreshed.add(refreshed);
        self.metrics.sessions_forbidden.add(forbidden);
        if self.watchers.receiver_count() == 0 {
            return;
        }
        let publish = |change| {
            // Fails only without receivers.
            let _ = self.watchers.send(Arc::new(SessionEvent { index, unix_ms: batch.unix_ms, change }));
        };
        for (command, applied) in batch.commands.iter().zip(applied).filter(|(_, applied)| applied.changed) {
            match command {
                Command::Establish(establish) => publish(SessionChange::Established(establish.clone())),
                Command::Close(close) => publish(SessionChange::Closed(*close)),
                Command::Expire(_) | Command::ExpireIdle(_) => {
                    applied.removed.iter().for_each(|id| publish(SessionChange::Expired(*id)));
                }
                Command::Revoke(_) => applied.removed.iter().for_each(|id| publish(SessionChange::Revoked(*id))),
                Command::RevokeForbidden(by) => {
                    let forbidden = |id: &SessionId| publish(SessionChange::Forbidden(*id, by.generation));
                    applied.removed.iter().for_each(forbidden);
                }
                Command::Refresh(_)
                | Command::Resume
                | Command::Policy(_)
                | Command::Enact(_)
                | Command::Withdraw(_)
                | Command::Member(_)
                | Command::Level(_)
                | Command::Settings(_) => {}
                #[cfg(feature = "next-level")]
                Command::Note(_) => {}
            }
        }
    }
}
