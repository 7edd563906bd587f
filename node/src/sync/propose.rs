//! Proposals: from the queue, in numbered batches, to the leader, until they are seen applied here.
//!
//! One task owns all of it. What queued while the last batches were in flight is the next batch. Nobody answers a
//! proposal: its answer is that this member applies it, which is also what releases the packets that wait for it. A batch
//! that is not seen applied is proposed again, with the same numbers, after a refusal, a new leader or a time that
//! doubles; the replicated state knows the numbers, so a copy does nothing.
//!
//! ```text
//!  workers ──> queue ──┐                       ┌─ this member leads ─> openraft ─┐
//!  hints   ──────────> ├─> waiting ─> in flight ┤                                ├─> log ─> apply here ─> done
//!  admin   ──────────> ┘   (bounded)  (≤ 4)    └─ stream to the leader ──────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::errors::Fatal;
use openraft::impls::ProgressResponder;
use palisade_engine::event::Proposal;
use palisade_engine::replica::{Applied, Batch, Command, Outcome};
use palisade_engine::{MemberId, Standing, Time};
use palisade_proto::convert::encode_batch;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::TypeConfig;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::clock;
use crate::peer::route::{Lane, Peers};
use crate::replication::PalisadeRaft;
use crate::replication::until;
use crate::replication_metrics::ReplicationMetrics;
use crate::standing::StandingCell;

/// Batches in flight. More would make them smaller, each costs an entry in the log.
const IN_FLIGHT: usize = 4;
/// Answers that wait to be read. At most one comes for each batch in flight; the rest is room for those given up.
pub(crate) const ANSWERS: usize = 4 * IN_FLIGHT;
/// Commands in a batch, and about how many bytes: one record of the store.
const COMMANDS: usize = 64;
const BYTES: usize = 7 * 1024;
/// Sessions in one command that keeps them alive.
const REFRESHES: usize = 256;
/// Commands that wait for a place in a batch. Above it the workers' queue is not read, and its bound drops.
const WAITING: usize = 4096;
/// The same with the orders of the administration.
const WAITING_MOST: usize = WAITING + 1024;
/// The hold of a packet is far shorter; a session that could not be committed in this time is judged again anyway.
const SESSION_DEADLINE: Duration = Duration::from_secs(2);
/// The time after which a batch is proposed again, at first and at most.
const AGAIN: Duration = Duration::from_millis(100);
/// The same after a refusal, a broken stream or a change of the lead: the new leader is perhaps known, or takes
/// proposals, by then.
const SOON: Duration = Duration::from_millis(10);
const AGAIN_MOST: Duration = Duration::from_millis(1600);

/// Why a command was not carried out, as far as this member knows.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// No answer in time.
    #[error(
        "the cluster did not confirm the change in time; it may still happen. Is a majority of the members up \
         (`palisade cluster members`)?"
    )]
    Timeout,
    /// The replication is being shut down.
    #[error("this member is shutting down")]
    Stopped,
}

/// Who leads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lead {
    pub(crate) term: u64,
    pub(crate) leader: Option<Leader>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leader {
    pub(crate) id: MemberId,
    pub(crate) address: String,
}

/// To whom waits for a command's outcome.
type Reply = oneshot::Sender<Result<Outcome, ProposeError>>;

/// A command of the administration.
pub(crate) struct Order {
    pub(crate) command: Command,
    pub(crate) deadline: Time,
    pub(crate) reply: Reply,
}

/// A batch of this member that was applied here.
pub(crate) struct Answer {
    pub(crate) first: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

/// The numbers of the batches that wait for their answers. Only these are answered, each once: not the copies of a batch,
/// and not what a member that starts replays from its log. So the queue of answers has a bound.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unanswered(Arc<Mutex<BTreeSet<u64>>>);

impl Unanswered {
    fn add(&self, first: u64) {
        self.0.lock().insert(first);
    }

    fn forget(&self, first: u64) {
        self.0.lock().remove(&first);
    }

    /// Tells an answer if it is waited for. Without room it stays unanswered, and the next copy of the batch, which has
    /// the same outcomes, answers it.
    pub(crate) fn answer(&self, first: u64, applied: &[Applied], answers: &mpsc::Sender<Answer>) {
        let mut waiting = self.0.lock();
        if !waiting.contains(&first) {
            return;
        }
        let outcomes = Applied::outcomes(applied);
        if answers.try_send(Answer { first, outcomes }).is_ok() {
            waiting.remove(&first);
        }
    }
}

/// What the task needs.
pub(crate) struct Proposer {
    pub(crate) me: MemberId,
    pub(crate) start: u32,
    pub(crate) raft: PalisadeRaft,
    pub(crate) peers: Peers,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) standing: Arc<StandingCell>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    /// From the workers.
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    /// From hints that others sent.
    pub(crate) hinted: mpsc::Receiver<Proposal>,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) answers: mpsc::Receiver<Answer>,
    pub(crate) unanswered: Unanswered,
}

struct Item {
    command: Command,
    queued: Time,
    deadline: Time,
    reply: Option<Reply>,
}

struct Flight {
    batch: Batch,
    /// One for each command.
    notes: Vec<(Time, Option<Reply>)>,
    deadline: Time,
    again: Time,
    pause: Duration,
}

/// The way to the leader, for as long as it leads.
enum Link {
    Nowhere,
    /// With the batches that this member, leading, has under way in openraft.
    Here(FuturesUnordered<Refused>),
    There {
        to: mpsc::Sender<wire::Proposal>,
        refusals: mpsc::Receiver<wire::ProposalRefusal>,
    },
}

/// About how many bytes a command takes in the log. Not exact: the store cuts what is too long for one record.
fn bytes(command: &Command) -> usize {
    match command {
        Command::Establish(_) => 112,
        Command::Close(_) => 16,
        Command::Expire(ids) | Command::Revoke(ids) | Command::Refresh(ids) => 8 + 12 * ids.len(),
        Command::ExpireIdle(idle) => 16 + 14 * idle.sessions.len(),
        Command::Resume => 1,
        Command::Policy(policy) => 64 + policy.text.len(),
        Command::Member(_) => 512,
    }
}

struct State {
    waiting: VecDeque<Item>,
    flying: BTreeMap<u64, Flight>,
    next: u64,
    link: Link,
}

impl Proposer {
    /// Runs until the queues of the administration are closed: the replication is shut down then.
    pub(crate) async fn run(mut self) {
        let first = u64::from(self.start) << 40;
        let mut state = State { waiting: VecDeque::new(), flying: BTreeMap::new(), next: first, link: Link::Nowhere };
        self.link(&mut state);
        let mut arrived = Vec::with_capacity(COMMANDS);
        let (mut workers_open, mut hints_open) = (true, true);
        loop {
            let room = state.waiting.len() < WAITING;
            let flying = state.flying.values().map(|f| f.again.min(f.deadline));
            let wake = flying.chain(state.waiting.front().map(|item| item.deadline)).min();
            tokio::select! {
                biased;
                Some(answer) = self.answers.recv() => self.answered(&mut state, answer),
                changed = self.lead.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.link(&mut state);
                    // What came of the attempts with another leader, or none, says nothing about this one.
                    state.flying.values_mut().for_each(|flight| flight.pause = SOON / 2);
                    self.again(&mut state, |_| true).await;
                }
                order = self.orders.recv(), if state.waiting.len() < WAITING_MOST => match order {
                    Some(order) => state.waiting.push_back(Item {
                        command: order.command,
                        queued: clock::now(),
                        deadline: order.deadline,
                        reply: Some(order.reply),
                    }),
                    None => break,
                },
                first = self.proposals.recv(), if room && workers_open => match first {
                    Some(proposal) => arrived.push(proposal),
                    None => workers_open = false,
                },
                first = self.hinted.recv(), if room && hints_open => match first {
                    Some(proposal) => arrived.push(proposal),
                    None => hints_open = false,
                },
                refused = refused(&mut state.link) => self.refused(&mut state, refused),
                () = until(wake) => {
                    let now = clock::now();
                    self.give_up(&mut state, now);
                    self.again(&mut state, |flight| flight.again <= now).await;
                }
            }
            while room
                && arrived.len() < COMMANDS
                && let Ok(proposal) = self.proposals.try_recv()
            {
                arrived.push(proposal);
            }
            self.arrived(&mut state, &mut arrived);
            self.send(&mut state).await;
        }
        let flying = state.flying.into_values().flat_map(|f| f.notes).filter_map(|(_, reply)| reply);
        for reply in flying.chain(state.waiting.into_iter().filter_map(|item| item.reply)) {
            // Nobody waits any longer: fine.
            let _ = reply.send(Err(ProposeError::Stopped));
        }
    }

    fn arrived(&self, state: &mut State, arrived: &mut Vec<Proposal>) {
        if arrived.is_empty() {
            return;
        }
        let now = clock::now();
        if self.standing.at(now) != Standing::Current {
            self.metrics.dropped_not_current.add(arrived.len() as u64);
            arrived.clear();
            return;
        }
        for proposal in arrived.drain(..) {
            let command = match proposal {
                Proposal::Establish(establish) => Command::Establish(establish),
                Proposal::Close(close) => Command::Close(close),
                Proposal::Refresh(id) => match state.waiting.back_mut() {
                    // Many may come at once: they take one place.
                    Some(Item { command: Command::Refresh(ids), reply: None, .. }) if ids.len() < REFRESHES => {
                        ids.push(id);
                        continue;
                    }
                    _ => Command::Refresh(vec![id]),
                },
            };
            state.waiting.push_back(Item { command, queued: now, deadline: now + SESSION_DEADLINE, reply: None });
        }
    }

    fn answered(&self, state: &mut State, answer: Answer) {
        // A copy that was applied after the first one was: nothing to do.
        let Some(flight) = state.flying.remove(&answer.first) else { return };
        let now = clock::now();
        for ((queued, reply), outcome) in flight.notes.into_iter().zip(answer.outcomes) {
            self.metrics.commit_us.observe_time(now.since(queued));
            self.metrics.outcomes.count(&outcome);
            if let Some(reply) = reply {
                // Nobody waits any longer: fine.
                let _ = reply.send(Ok(outcome));
            }
        }
    }

    /// Makes batches of what waits, as many as may be in flight.
    async fn send(&self, state: &mut State) {
        while state.flying.len() < IN_FLIGHT && !state.waiting.is_empty() {
            let now = clock::now();
            let mut batch = Batch {
                proposer: self.me,
                first: state.next,
                floor: state.flying.keys().next().copied().unwrap_or(state.next),
                unix_ms: clock::unix_ms(),
                commands: Vec::new(),
            };
            let mut notes = Vec::new();
            let (mut size, mut deadline) = (0, Time::ZERO);
            while let Some(item) = state.waiting.front() {
                size += bytes(&item.command);
                if batch.commands.len() >= COMMANDS || (size > BYTES && !batch.commands.is_empty()) {
                    break;
                }
                let Some(item) = state.waiting.pop_front() else { break };
                if item.deadline <= now {
                    self.dropped(item.reply);
                    continue;
                }
                deadline = deadline.max(item.deadline);
                batch.commands.push(item.command);
                notes.push((item.queued, item.reply));
            }
            if batch.commands.is_empty() {
                continue;
            }
            self.metrics.batch_commands.observe(batch.commands.len() as u64);
            state.next += batch.commands.len() as u64;
            self.unanswered.add(batch.first);
            self.propose(&mut state.link, &batch).await;
            let flight = Flight { notes, deadline, again: now + AGAIN, pause: AGAIN, batch };
            state.flying.insert(flight.batch.first, flight);
        }
    }

    fn dropped(&self, reply: Option<Reply>) {
        match reply {
            // Nobody waits any longer: fine.
            Some(reply) => drop(reply.send(Err(ProposeError::Timeout))),
            None => self.metrics.dropped_deadline.add(1),
        }
    }

    fn give_up(&self, state: &mut State, now: Time) {
        while let Some((&first, _)) = state.flying.iter().find(|(_, flight)| flight.deadline <= now) {
            for (_, reply) in state.flying.remove(&first).into_iter().flat_map(|f| f.notes) {
                self.dropped(reply);
            }
            self.unanswered.forget(first);
        }
        while let Some(item) = state.waiting.pop_front_if(|item| item.deadline <= now) {
            self.dropped(item.reply);
        }
    }

    /// Proposes batches in flight again, in the order of their numbers.
    async fn again(&self, state: &mut State, which: impl Fn(&Flight) -> bool) {
        let now = clock::now();
        let floor = state.flying.keys().next().copied().unwrap_or(state.next);
        // If the link broke without the leader having changed, a new one is needed.
        if matches!(&state.link, Link::There { to, .. } if to.is_closed()) {
            self.link(state);
        }
        if matches!(&state.link, Link::Nowhere) {
            state.flying.values_mut().for_each(|flight| flight.again = now + flight.pause);
            return;
        }
        for flight in state.flying.values_mut().filter(|f| which(f)) {
            flight.pause = (flight.pause * 2).min(AGAIN_MOST);
            flight.again = now + flight.pause;
            flight.batch.floor = floor;
            self.metrics.proposed_again.add(1);
            self.propose(&mut state.link, &flight.batch).await;
        }
    }

    async fn propose(&self, link: &mut Link, batch: &Batch) {
        match link {
            Link::Nowhere => {}
            Link::Here(under_way) => match submit(&self.raft, batch.clone()).await {
                Ok(refused) => under_way.push(refused),
                Err(error) => tracing::debug!(%error, "a batch could not be proposed here"),
            },
            Link::There { to, .. } => match encode_batch(batch) {
                // Full or closed: it is proposed again in time.
                Ok(batch) => drop(to.try_send(wire::Proposal { batch })),
                Err(error) => tracing::error!(%error, "a batch can not be encoded"),
            },
        }
    }

    /// The leader refused the batch with this number; or the way to it broke.
    fn refused(&self, state: &mut State, refused: Option<u64>) {
        let soon = clock::now() + SOON;
        match refused {
            Some(first) => {
                if let Some(flight) = state.flying.get_mut(&first) {
                    flight.again = flight.again.min(soon);
                }
            }
            None => {
                // The stream broke: another one is made when something is proposed again.
                state.link = Link::Nowhere;
                self.link(state);
                state.flying.values_mut().for_each(|f| f.again = f.again.min(soon));
            }
        }
    }

    /// Makes the way to whoever leads now.
    fn link(&self, state: &mut State) {
        let lead = self.lead.borrow().clone();
        state.link = match lead.leader {
            None => Link::Nowhere,
            Some(leader) if leader.id == self.me => Link::Here(FuturesUnordered::new()),
            Some(leader) => {
                let mut client = match self.peers.client(leader.id, &leader.address, Lane::Control) {
                    Ok(client) => client,
                    Err(status) => {
                        tracing::warn!(%status, "the leader can not be reached");
                        state.link = Link::Nowhere;
                        return;
                    }
                };
                let (to, batches) = mpsc::channel(4 * IN_FLIGHT);
                let (refuse, refusals) = mpsc::channel(4 * IN_FLIGHT);
                tokio::spawn(async move {
                    let mut answers = match client.propose(ReceiverStream::new(batches)).await {
                        Ok(response) => response.into_inner(),
                        Err(status) => {
                            tracing::debug!(%status, "proposals do not reach the leader");
                            // Not again at once: the leader may be down and nobody know it yet.
                            tokio::time::sleep(SOON).await;
                            return;
                        }
                    };
                    // Ends when the leader ends it, or when the other end of `refuse` is gone.
                    while let Ok(Some(refusal)) = answers.message().await {
                        if refuse.send(refusal).await.is_err() {
                            return;
                        }
                    }
                    tokio::time::sleep(SOON).await;
                });
                Link::There { to, refusals }
            }
        };
    }
}

/// Ends when it is known what came of a batch: with its number if it was refused.
pub(crate) type Refused = BoxFuture<'static, Option<u64>>;

/// Gives openraft a batch. It refuses what comes to a member that does not lead, or whose lead no majority has answered yet,
/// for the first time or lately.
pub(crate) async fn submit(raft: &PalisadeRaft, batch: Batch) -> Result<Refused, Fatal<TypeConfig>> {
    let first = batch.first;
    let (responder, answer) = ProgressResponder::complete_only();
    raft.client_write_ff(batch, Some(responder)).await?;
    Ok(Box::pin(async move {
        let refused = answer.await.ok()?.err()?;
        tracing::debug!(%refused, "a batch was not taken");
        Some(first)
    }))
}

/// The number of the next batch that is refused; `None`: the way broke.
async fn refused(link: &mut Link) -> Option<u64> {
    match link {
        Link::There { refusals, .. } => refusals.recv().await.map(|refusal| refusal.first),
        Link::Here(under_way) => {
            while let Some(done) = under_way.next().await {
                if done.is_some() {
                    return done;
                }
            }
            std::future::pending().await
        }
        Link::Nowhere => std::future::pending().await,
    }
}
