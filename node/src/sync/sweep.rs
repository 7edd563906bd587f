//! The sweep: the leader ends sessions that the policy in force forbids. `palisade_engine::Sweep` says which ones these are.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use palisade_engine::replica::{Command, ForbiddenSessions, Outcome};
use palisade_engine::{Engine, Generation, MemberId, SessionId};
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::raft::leadership::Leadership;
use crate::raft::requests::{AdminRequest, ProposeError, REQUEST_TIMEOUT, propose_in_background};
use crate::replication_metrics::ReplicationMetrics;

/// How often a new policy, and a new leadership, are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Pieces of the table that are judged before other tasks of this thread go on: some 100 µs.
const PIECES_PER_TURN: usize = 8;
/// Sessions in one command. Four such commands fit in a batch.
const MAX_REVOKED_PER_COMMAND: usize = 128;
/// Commands in flight: a batch. What else waits for a batch goes first.
const MAX_IN_FLIGHT: usize = 4;
/// Sessions that wait to be revoked. When reached, no more are judged.
const MAX_FOUND: usize = 4096;

/// The leader's task that ends forbidden sessions.
pub(crate) struct PolicySweep {
    pub(crate) me: MemberId,
    pub(crate) engine: Arc<Engine>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) requests: mpsc::Sender<AdminRequest>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// A reason for a sweep: a policy, and the term in which this member leads. A new leader does not know how far the last one came.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Due {
    term: u64,
    generation: Generation,
}

/// Why a sweep was not completed.
#[derive(Debug, thiserror::Error)]
enum Abandoned {
    #[error("another member leads, or another policy is in force")]
    Obsolete,
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the command had the outcome {0:?}")]
    Outcome(Outcome),
}

impl PolicySweep {
    /// Sweeps once for each policy, and once for each term in which this member leads.
    pub(crate) async fn run(self) {
        let mut swept = None;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let Some(due) = self.due().filter(|due| swept != Some(*due)) else { continue };
            match self.sweep(due).await {
                Ok(()) => {
                    self.metrics.policy_sweeps.completed.inc();
                    swept = Some(due);
                }
                Err(error) => {
                    self.metrics.policy_sweeps.abandoned.inc();
                    tracing::info!(%error, generation = %due.generation, "a sweep was abandoned; trying again");
                }
            }
        }
    }

    fn due(&self) -> Option<Due> {
        let leadership = self.leadership.borrow();
        let leads = leadership.leader.as_ref().is_some_and(|leader| leader.id == self.me);
        let generation = self.engine.generation_to_sweep().filter(|_| leads)?;
        Some(Due { term: leadership.term, generation })
    }

    /// Judges the table piece by piece, and has what is forbidden revoked meanwhile.
    async fn sweep(&self, due: Due) -> Result<(), Abandoned> {
        let began = clock::now();
        let mut sweep = self.engine.begin_sweep().ok_or(Abandoned::Obsolete)?;
        let generation = sweep.generation();
        let (mut found, mut more) = (Vec::new(), true);
        let mut in_flight = FuturesUnordered::new();
        while more || !found.is_empty() || !in_flight.is_empty() {
            if self.due() != Some(due) || generation != due.generation {
                return Err(Abandoned::Obsolete);
            }
            let judged_before = sweep.judged();
            for _ in 0..PIECES_PER_TURN {
                if more && found.len() < MAX_FOUND {
                    more = sweep.step(&self.engine, &mut found);
                }
            }
            self.metrics.policy_sweep_judged.add(sweep.judged() - judged_before);
            while in_flight.len() < MAX_IN_FLIGHT
                && let Some(sessions) = next_command(&mut found, more && !in_flight.is_empty())
            {
                let command = Command::RevokeForbidden(ForbiddenSessions { generation, sessions });
                in_flight.push(propose_in_background(&self.requests, command, REQUEST_TIMEOUT));
            }
            let may_judge = more && found.len() < MAX_FOUND;
            tokio::select! {
                biased;
                Some(outcome) = in_flight.next(), if !in_flight.is_empty() => match outcome? {
                    Outcome::Accepted => {}
                    Outcome::Stale(_) => return Err(Abandoned::Obsolete),
                    other => return Err(Abandoned::Outcome(other)),
                },
                () = tokio::task::yield_now(), if may_judge => {}
                else => {}
            }
        }
        self.metrics.policy_sweep_time.set(clock::now().since(began));
        tracing::debug!(%generation, judged = sweep.judged(), "the sessions were swept");
        Ok(())
    }
}

/// Takes the sessions of the next command; only a full one, if it can wait for more.
fn next_command(found: &mut Vec<SessionId>, can_wait: bool) -> Option<Vec<SessionId>> {
    if found.is_empty() || can_wait && found.len() < MAX_REVOKED_PER_COMMAND {
        return None;
    }
    Some(found.drain(..found.len().min(MAX_REVOKED_PER_COMMAND)).collect())
}
