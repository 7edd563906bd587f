//! Proposals: from the queues, in numbered batches, to the leader, until they are applied on this member.
//!
//! One task owns all of it. What queues while batches are in flight is the next batch. Nobody replies to a proposal: its
//! outcome is known when this member applies it, which also releases the packets that wait for it. A batch that is not seen
//! applied is proposed again with the same numbers; the replicated state knows the numbers, so a copy does nothing.
//!
//! ```text
//!  workers ──> queue ──┐                        ┌─ LeaderRoute::Local  ─> openraft ──────┐
//!  hints   ──────────> ├─> waiting ─> in flight ┤                                        ├─> log ─> apply here
//!  admin   ──────────> ┘   (bounded)  (≤ 4)     └─ LeaderRoute::Remote ─> stream, leader ┘
//! ```
//!
//! The states of a batch ([`in_flight::BatchState`]); a test enumerates states × events:
//!
//! ```text
//!   commands wait ──batch is made──┬─ leader known ──> Sent
//!                                  └─ none ──────────> Unrouted
//!
//!               refused, stream ended (10 ms)
//!          Sent ─────────────────────────────> Refused
//!          │  ^                                   │
//!          │  └── time (100 ms … 1.6 s), leader ──┤   a leader is known: transmit
//!          │      changed                         │
//!          ├───── time, leader changed ───────────┴──> Unrouted   none is known: wait
//!          │
//!          └─ from all three: applied here ───> Applied    waiters get the outcomes
//!                             deadline (2 s) ─> TimedOut   waiters get an error; it may still be applied
//! ```

mod in_flight;
mod leader_route;
mod pending;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use palisade_engine::replica::{Batch, Command};
use palisade_engine::{LeaseState, MemberId, Proposal, Time, first_number};
use palisade_raft_store::LevelInForce;
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::lease::Lease;
use crate::peer::connections::Peers;
use crate::raft::config::PalisadeRaft;
use crate::raft::leadership::Leadership;
use crate::raft::requests::{AdminRequest, Precedence, ProposeError, Reply};
use crate::replication_metrics::ReplicationMetrics;
use in_flight::{BatchState, InFlightBatch, InFlightBatches, Waiter};
use leader_route::{LeaderRoute, RouteEvent};
pub(crate) use leader_route::{Refused, submit};
pub(crate) use pending::{APPLIED_QUEUE, BatchApplied, PendingBatches};
use waiting::{PendingCommand, WaitingCommands};

/// Maximum number of batches in flight. More would make them smaller, and each costs an entry in the log.
const MAX_IN_FLIGHT: usize = 4;
/// Maximum number of commands in a batch.
const MAX_BATCH_COMMANDS: usize = 64;
/// The approximate maximum size of a batch in the log, in bytes: one record of the store, which splits longer ones.
const MAX_BATCH_BYTES: usize = 7 * 1024;
/// Maximum number of sessions in one `Refresh`.
const MAX_REFRESHED_SESSIONS: usize = 256;
/// Maximum number of commands waiting for a batch. When reached, the workers' queue is not read; it fills up and drops.
const MAX_WAITING_COMMANDS: usize = 4096;
/// The same for requests of administrators.
const MAX_WAITING_WITH_REQUESTS: usize = MAX_WAITING_COMMANDS + 1024;
/// Time for a proposal of the packet path. The hold of a packet is far shorter; a session that could not be committed in
/// this time is judged again anyway.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether its proposer made a batch in this start, or a later one.
pub(crate) fn is_proposed_since(batch: &Batch, start: u32) -> bool {
    batch.first_serial >= first_number(start)
}

/// The task that proposes.
pub(crate) struct Proposer {
    pub(crate) me: MemberId,
    pub(crate) start: u32,
    pub(crate) raft: PalisadeRaft,
    pub(crate) peers: Peers,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) level: LevelInForce,
    /// From the workers.
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    /// From hints of peers, and from timers.
    pub(crate) follow_up_proposals: mpsc::Receiver<Proposal>,
    pub(crate) requests: mpsc::Receiver<AdminRequest>,
    pub(crate) applied: mpsc::Receiver<BatchApplied>,
    pub(crate) pending: PendingBatches,
    /// Told the number of the next command.
    pub(crate) next_number: Arc<AtomicU64>,
}

struct State {
    waiting: WaitingCommands,
    in_flight: InFlightBatches,
    route: LeaderRoute,
}

impl Proposer {
    /// Runs until the queue of requests is closed: the replication is shut down then.
    pub(crate) async fn run(mut self) {
        let in_flight = InFlightBatches::new(first_number(self.start));
        let mut state = State { waiting: WaitingCommands::default(), in_flight, route: self.route() };
        let mut arrived = Vec::with_capacity(MAX_BATCH_COMMANDS);
        let (mut workers_open, mut follow_ups_open) = (true, true);
        loop {
            let room = state.waiting.len() < MAX_WAITING_COMMANDS;
            let due = state.in_flight.next_due().into_iter().chain(state.waiting.deadlines()).min();
            tokio::select! {
                biased;
                Some(batch) = self.applied.recv() => self.on_applied(&mut state, batch),
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    state.route = self.route();
                    let batches = state.in_flight.leader_changed(!state.route.is_none(), clock::now());
                    self.retransmit(&mut state, &batches).await;
                }
                request = self.requests.recv(), if state.waiting.len() < MAX_WAITING_WITH_REQUESTS => match request {
                    Some(AdminRequest { command, precedence, deadline, reply }) => {
                        let waiting = PendingCommand { command, queued: clock::now(), deadline, reply: Some(reply) };
                        state.waiting.push(waiting, precedence);
                    }
                    None => break,
                },
                first = self.proposals.recv(), if room && workers_open => match first {
                    Some(proposal) => arrived.push(proposal),
                    None => workers_open = false,
                },
                first = self.follow_up_proposals.recv(), if room && follow_ups_open => match first {
                    Some(proposal) => arrived.push(proposal),
                    None => follow_ups_open = false,
                },
                event = state.route.event() => self.on_route_event(&mut state, event),
                () = clock::sleep_until(due) => self.on_time(&mut state).await,
            }
            while room
                && arrived.len() < MAX_BATCH_COMMANDS
                && let Ok(proposal) = self.proposals.try_recv()
            {
                arrived.push(proposal);
            }
            self.enqueue(&mut state, &mut arrived);
            self.send_batches(&mut state).await;
        }
        let waiting = state.waiting.into_commands().filter_map(|command| command.reply);
        for reply in state.in_flight.into_replies().chain(waiting) {
            // The caller may be gone.
            let _ = reply.send(Err(ProposeError::Stopped));
        }
    }

    /// Queues what the packet path proposes, if the lease allows it.
    fn enqueue(&self, state: &mut State, arrived: &mut Vec<Proposal>) {
        if arrived.is_empty() {
            return;
        }
        let now = clock::now();
        if self.lease.state_at(now) != LeaseState::Valid {
            self.metrics.proposals_dropped.lease_not_valid.add(arrived.len() as u64);
            arrived.clear();
            return;
        }
        for proposal in arrived.drain(..) {
            let command = match proposal {
                Proposal::Establish(establish) => Command::Establish(establish),
                Proposal::Close(close) => Command::Close(close),
                Proposal::Refresh(id) => match state.waiting.last_mut() {
                    // Many may come at once: they are one command.
                    Some(PendingCommand { command: Command::Refresh(ids), reply: None, .. })
                        if ids.len() < MAX_REFRESHED_SESSIONS =>
                    {
                        ids.push(id);
                        continue;
                    }
                    _ => Command::Refresh(vec![id]),
                },
            };
            let deadline = now + SESSION_TIMEOUT;
            state.waiting.push(PendingCommand { command, queued: now, deadline, reply: None }, Precedence::Ordinary);
        }
    }

    fn on_applied(&self, state: &mut State, applied: BatchApplied) {
        let now = clock::now();
        let Some(batch) = state.in_flight.applied(applied.first, now) else { return };
        for ((queued, reply), outcome) in batch.waiters.into_iter().zip(applied.outcomes) {
            self.metrics.commit.observe(now.since(queued));
            self.metrics.outcomes.count(&outcome);
            if let Some(reply) = reply {
                // The caller may be gone.
                let _ = reply.send(Ok(outcome));
            }
        }
    }

    /// Makes batches of the waiting commands, and proposes them, up to the maximum in flight.
    async fn send_batches(&self, state: &mut State) {
        while state.in_flight.len() < MAX_IN_FLIGHT && !state.waiting.is_empty() {
            let now = clock::now();
            let (commands, waiters, deadline) = self.take_commands(&mut state.waiting, now);
            if commands.is_empty() {
                continue;
            }
            let batch = Batch {
                proposer: self.me,
                first_serial: state.in_flight.next_number(),
                lowest_outstanding: state.in_flight.lowest_outstanding(),
                unix_ms: clock::unix_ms(),
                commands,
            };
            self.metrics.batch_commands.observe(batch.commands.len() as u64);
            self.next_number.store(batch.first_serial + batch.commands.len() as u64, Ordering::Relaxed);
            self.pending.add(batch.first_serial);
            state.route.propose(&self.raft, self.level.get(), &batch).await;
            let routed = !state.route.is_none();
            state.in_flight.insert(InFlightBatch {
                batch,
                waiters,
                deadline,
                state: BatchState::new(now, routed),
                sent: routed,
            });
        }
    }

    /// The commands of the next batch, who waits for them, and the latest of their deadlines.
    fn take_commands(&self, waiting: &mut WaitingCommands, now: Time) -> (Vec<Command>, Vec<Waiter>, Time) {
        let (mut commands, mut waiters) = (Vec::new(), Vec::new());
        let mut last = Time::ZERO;
        for PendingCommand { command, queued, deadline, reply } in waiting.take_batch() {
            if deadline <= now {
                self.give_up(reply, false);
                continue;
            }
            last = last.max(deadline);
            commands.push(command);
            waiters.push((queued, reply));
        }
        (commands, waiters, last)
    }

    /// `sent`: whether a leader may have it.
    fn give_up(&self, reply: Option<Reply>, sent: bool) {
        match reply {
            // The caller may be gone.
            Some(reply) => {
                drop(reply.send(Err(if sent { ProposeError::Timeout } else { ProposeError::NotSent })));
            }
            None => self.metrics.proposals_dropped.deadline.inc(),
        }
    }

    /// Gives up what is past its deadline, and proposes again what is due.
    async fn on_time(&self, state: &mut State) {
        let now = clock::now();
        while let Some(batch) = state.in_flight.timed_out(now) {
            self.pending.remove(batch.batch.first_serial);
            batch.waiters.into_iter().for_each(|(_, reply)| self.give_up(reply, batch.sent));
        }
        while let Some(command) = state.waiting.pop_late(now) {
            self.give_up(command.reply, false);
        }
        // A stream may have ended without a change of the leader.
        if state.route.has_ended() {
            state.route = self.route();
        }
        let batches = state.in_flight.retransmissions(!state.route.is_none(), now);
        self.retransmit(state, &batches).await;
    }

    async fn retransmit(&self, state: &mut State, batches: &[Batch]) {
        for batch in batches {
            self.metrics.batches_retransmitted.inc();
            state.route.propose(&self.raft, self.level.get(), batch).await;
        }
    }

    fn on_route_event(&self, state: &mut State, event: RouteEvent) {
        let now = clock::now();
        match event {
            RouteEvent::Refused(first) => state.in_flight.refused(first, now),
            RouteEvent::Ended => {
                state.route = self.route();
                state.in_flight.stream_ended(now);
            }
        }
    }

    /// The route to the present leader.
    fn route(&self) -> LeaderRoute {
        match &self.leadership.borrow().leader {
            None => LeaderRoute::None,
            Some(leader) if leader.id == self.me => LeaderRoute::Local(FuturesUnordered::new()),
            Some(leader) => LeaderRoute::remote(&self.peers, leader),
        }
    }
}

#[cfg(test)]
mod tests;
