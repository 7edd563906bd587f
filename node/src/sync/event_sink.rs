//! Events of the engine that no packet causes: what follows from hints and from the passing of time.

use std::sync::Arc;
use std::time::Duration;

use palisade_engine::Engine;
use palisade_engine::{Event, Hint, Proposal};
use tokio::sync::mpsc;

use crate::clock;
use crate::connection_log::ConnectionLog;
use crate::queue::offer_hint;
use crate::replication_metrics::ReplicationMetrics;

/// Hints, and proposals, of these events that wait to be sent.
const EVENT_QUEUE: usize = 4096;
/// How often the engine is asked for queries that held packets wait for.
const QUERY_INTERVAL: Duration = Duration::from_millis(5);
/// How many of these intervals are between two ticks of the engine.
const INTERVALS_PER_TICK: u32 = 20;

/// Where events go that no packet causes. Never blocks.
#[derive(Clone)]
pub(crate) struct EventSink {
    hints: mpsc::Sender<Hint>,
    proposals: mpsc::Sender<Proposal>,
    connection_log: ConnectionLog,
    metrics: Arc<ReplicationMetrics>,
}

impl EventSink {
    /// A sink, and the queues that it fills.
    pub(crate) fn new(
        connection_log: ConnectionLog,
        metrics: Arc<ReplicationMetrics>,
    ) -> (EventSink, mpsc::Receiver<Hint>, mpsc::Receiver<Proposal>) {
        let (hints, hint_queue) = mpsc::channel(EVENT_QUEUE);
        let (proposals, proposal_queue) = mpsc::channel(EVENT_QUEUE);
        (EventSink { hints, proposals, connection_log, metrics }, hint_queue, proposal_queue)
    }

    /// Puts the events into their queues.
    pub(crate) fn dispatch(&self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Hint(hint) => {
                    if !offer_hint(&self.hints, hint) {
                        self.metrics.hints_dropped.add(1);
                    }
                }
                Event::Propose(proposal) => {
                    if self.proposals.try_send(proposal).is_err() {
                        self.metrics.proposals_dropped.queue_full.add(1);
                    }
                }
                // Only packets cause it: what hints bring is woken via `Wake`.
                Event::Wake { .. } => {}
                Event::Log(decision) => self.connection_log.decided(clock::now(), &decision),
            }
        }
    }
}

/// Drives the engine's timers.
pub(crate) async fn tick(engine: Arc<Engine>, sink: EventSink) {
    let mut events = Vec::new();
    let mut every = tokio::time::interval(QUERY_INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for number in (0..INTERVALS_PER_TICK).cycle() {
        every.tick().await;
        engine.send_queries(clock::now(), &mut events);
        if number == 0 {
            engine.tick(clock::now(), &mut events);
        }
        sink.dispatch(&mut events);
    }
}
