//! The batches in flight: the state machine of one, and all of them by number. Pure: time is an argument, nothing is sent
//! here. The diagram is in [`super`].

use std::collections::BTreeMap;
use std::time::Duration;

use palisade_engine::Time;
use palisade_engine::replica::Batch;

use crate::raft::requests::Reply;

/// Time after which a batch is proposed again, at first.
pub(super) const RETRANSMIT_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time after which a batch is proposed again.
pub(super) const MAX_RETRANSMIT_INTERVAL: Duration = Duration::from_millis(1600);
/// Time after which a batch is proposed again after a refusal, the end of the stream or a change of the leader: by then, a
/// new leader may be known, or take proposals.
pub(super) const FAST_RETRANSMIT_DELAY: Duration = Duration::from_millis(10);

/// When a batch is proposed again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Retransmission {
    /// The time.
    pub(super) at: Time,
    /// The interval that led to it; it doubles with each retransmission.
    pub(super) interval: Duration,
}

/// The state of a numbered batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BatchState {
    /// Proposed to the leader.
    Sent(Retransmission),
    /// Refused by the leader, or perhaps lost with the stream to it.
    Refused(Retransmission),
    /// Not proposed, because no leader is known.
    Unrouted(Retransmission),
    /// Seen applied on this member. Final.
    Applied,
    /// Not seen applied before the deadline. Final: whether it is applied later is not known.
    TimedOut,
}

/// What happens to a batch. `routed`: whether a leader is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BatchEvent {
    /// Another leader is known, or none any longer.
    LeaderChanged { routed: bool },
    /// The time of the retransmission has come.
    RetransmissionDue { routed: bool },
    /// The leader refused the batch.
    Refused,
    /// The stream to the leader ended.
    StreamEnded,
    /// The batch, or a copy of it, was applied on this member.
    Applied,
    /// The deadline of all its commands has passed.
    DeadlinePassed,
}

/// What a transition asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Propose the batch to the leader.
    Transmit,
    /// Tell its waiters the outcomes.
    Complete,
    /// Tell its waiters that the time is over.
    GiveUp,
}

impl BatchState {
    /// The state of a batch that is proposed for the first time.
    pub(super) fn new(now: Time, routed: bool) -> BatchState {
        let next = Retransmission { at: now + RETRANSMIT_INTERVAL, interval: RETRANSMIT_INTERVAL };
        if routed { BatchState::Sent(next) } else { BatchState::Unrouted(next) }
    }

    /// The time of the next retransmission; `None` in a final state.
    pub(super) fn retransmission(self) -> Option<Retransmission> {
        match self {
            BatchState::Sent(next) | BatchState::Refused(next) | BatchState::Unrouted(next) => Some(next),
            BatchState::Applied | BatchState::TimedOut => None,
        }
    }

    /// The transition function.
    pub(super) fn on(self, event: BatchEvent, now: Time) -> (BatchState, Action) {
        let Some(next) = self.retransmission() else { return (self, Action::None) };
        let after = |interval| Retransmission { at: now + interval, interval };
        let doubled = (next.interval * 2).min(MAX_RETRANSMIT_INTERVAL);
        match event {
            // What came of attempts with another leader, or none, says nothing about this one: the interval starts over.
            BatchEvent::LeaderChanged { routed: true } => {
                (BatchState::Sent(after(FAST_RETRANSMIT_DELAY)), Action::Transmit)
            }
            BatchEvent::LeaderChanged { routed: false } => {
                (BatchState::Unrouted(after(FAST_RETRANSMIT_DELAY / 2)), Action::None)
            }
            BatchEvent::RetransmissionDue { routed: true } => (BatchState::Sent(after(doubled)), Action::Transmit),
            BatchEvent::RetransmissionDue { routed: false } => {
                (BatchState::Unrouted(after(next.interval)), Action::None)
            }
            BatchEvent::Refused | BatchEvent::StreamEnded => {
                let at = next.at.min(now + FAST_RETRANSMIT_DELAY);
                (BatchState::Refused(Retransmission { at, ..next }), Action::None)
            }
            BatchEvent::Applied => (BatchState::Applied, Action::Complete),
            BatchEvent::DeadlinePassed => (BatchState::TimedOut, Action::GiveUp),
        }
    }
}

/// Who waits for a command: since when, and the receiver of the outcome, if it is not the packet path.
pub(super) type Waiter = (Time, Option<Reply>);

/// A batch in flight.
pub(super) struct InFlightBatch {
    pub(super) batch: Batch,
    /// One for each command.
    pub(super) waiters: Vec<Waiter>,
    /// The latest deadline of its commands.
    pub(super) deadline: Time,
    pub(super) state: BatchState,
    /// Whether it was ever proposed to a leader: if so, it may be applied although this member gave it up.
    pub(super) sent: bool,
}

/// The batches in flight, by the number of their first command.
pub(super) struct InFlightBatches {
    batches: BTreeMap<u64, InFlightBatch>,
    next: u64,
}

impl InFlightBatches {
    /// None; the first command will have the number `next`.
    pub(super) fn new(next: u64) -> InFlightBatches {
        InFlightBatches { batches: BTreeMap::new(), next }
    }

    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }

    /// The number of the next command.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// The lowest number that is in flight; below it, nothing will be proposed again.
    pub(super) fn lowest_outstanding(&self) -> u64 {
        self.batches.keys().next().copied().unwrap_or(self.next)
    }

    /// The next time at which something is due.
    pub(super) fn next_due(&self) -> Option<Time> {
        let due = |b: &InFlightBatch| b.state.retransmission().map_or(b.deadline, |next| next.at.min(b.deadline));
        self.batches.values().map(due).min()
    }

    /// Takes in a batch whose first command has the next number.
    pub(super) fn insert(&mut self, batch: InFlightBatch) {
        self.next += batch.batch.commands.len() as u64;
        self.batches.insert(batch.batch.first_serial, batch);
    }

    /// The batch was applied. `None`: it is not in flight any longer, because a copy was applied before, or it timed out.
    pub(super) fn applied(&mut self, first: u64, now: Time) -> Option<InFlightBatch> {
        self.end(first, BatchEvent::Applied, now)
    }

    /// A batch whose deadline has passed, taken out.
    pub(super) fn timed_out(&mut self, now: Time) -> Option<InFlightBatch> {
        let (&first, _) = self.batches.iter().find(|(_, batch)| batch.deadline <= now)?;
        self.end(first, BatchEvent::DeadlinePassed, now)
    }

    fn end(&mut self, first: u64, event: BatchEvent, now: Time) -> Option<InFlightBatch> {
        let mut batch = self.batches.remove(&first)?;
        batch.state = batch.state.on(event, now).0;
        Some(batch)
    }

    /// The leader refused the batch.
    pub(super) fn refused(&mut self, first: u64, now: Time) {
        if let Some(batch) = self.batches.get_mut(&first) {
            batch.state = batch.state.on(BatchEvent::Refused, now).0;
        }
    }

    /// The stream to the leader ended.
    pub(super) fn stream_ended(&mut self, now: Time) {
        for batch in self.batches.values_mut() {
            batch.state = batch.state.on(BatchEvent::StreamEnded, now).0;
        }
    }

    /// The leader changed. Returns what is to be transmitted, in the order of the numbers.
    pub(super) fn leader_changed(&mut self, routed: bool, now: Time) -> Vec<Batch> {
        self.transmissions(BatchEvent::LeaderChanged { routed }, now, |_| true)
    }

    /// Time has passed. Returns what is to be transmitted, in the order of the numbers. Without a leader all wait for one.
    pub(super) fn retransmissions(&mut self, routed: bool, now: Time) -> Vec<Batch> {
        let due = |state: BatchState| state.retransmission().is_some_and(|next| next.at <= now);
        self.transmissions(BatchEvent::RetransmissionDue { routed }, now, |state| !routed || due(state))
    }

    fn transmissions(&mut self, event: BatchEvent, now: Time, which: impl Fn(BatchState) -> bool) -> Vec<Batch> {
        let lowest = self.lowest_outstanding();
        let mut transmit = Vec::new();
        for batch in self.batches.values_mut().filter(|batch| which(batch.state)) {
            let (state, action) = batch.state.on(event, now);
            batch.state = state;
            if action == Action::Transmit {
                batch.sent = true;
                batch.batch.lowest_outstanding = lowest;
                transmit.push(batch.batch.clone());
            }
        }
        transmit
    }

    /// All receivers of outcomes that still wait.
    pub(super) fn into_replies(self) -> impl Iterator<Item = Reply> {
        self.batches.into_values().flat_map(|batch| batch.waiters).filter_map(|(_, reply)| reply)
    }
}
