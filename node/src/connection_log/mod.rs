//! The connection log: an event for each connection that a rule with `log` opened or denied, and for its end.
//!
//! ```text
//!  worker ── a decision, limited per rule ──┐
//!  applied command ── opened, ended ────────┼─> queue ─> [Writer]: names, limits ─┬─> queue ─> the daemon's log, or the journal
//!  timer ── ended unestablished ────────────┘                                     ├─> queue ─> syslog
//!                                                                                 ├─> queue ─> file
//!                                                                                 └─> broadcast ─> `palisade log`
//! ```
//!
//! Exactly one member writes each event: a denial, and the opening of what is not TCP, the member that saw the packet; the
//! opening and the end of an established connection the member that proposed the command, so that no agreement is needed.
//! An event is lost if that member dies before it has written it.
//!
//! Nobody waits for a log: each queue is bounded, and what finds it full is counted. Each output has a thread of its own,
//! because a disk, a TCP connection and a journal may block.

mod daemon_log;
mod file;
pub(crate) mod follow;
mod limit;
mod output;
mod record;
mod rules;
mod syslog;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use palisade_engine::replica::{Applied, Batch, Command};
use palisade_engine::{
    EndedSession, Engine, Generation, LoggedDecision, Protocol, RuleId, SessionId, Time, Tuple, ZonePair,
};
use palisade_metrics::{Counter, labelled, metrics};
use tokio::sync::broadcast;

use crate::clock;
use crate::config::Log;
use limit::RuleLimits;
pub use record::{ConnectionEvent, End, Record, date_and_time};
use writer::Writer;

/// Events that wait for the writer.
const QUEUE: usize = 8192;
/// Events that a slow follower may be behind; then it loses the oldest.
const FOLLOWER_QUEUE: usize = 4096;

metrics! {
    /// What the connection log counts.
    pub struct ConnectionLogMetrics {
        /// Events of connections logged by this member, by event.
        pub events: Events = "palisade_connection_log_events_total",
        /// Events left out because of the rate limit of their rule.
        pub limited: Counter = "palisade_connection_log_limited_total",
        /// Events dropped because a queue was full or an output failed, by where.
        pub dropped: Dropped = "palisade_connection_log_dropped_total",
    }
}

labelled! {
    /// Logged events.
    pub struct Events: Counter, "event" { opened, denied, closed }
}

labelled! {
    /// Dropped events.
    pub struct Dropped: Counter, "at" { queue, daemon, syslog, file, follower }
}

/// What the writer is told.
#[derive(Debug)]
enum Input {
    Decided { at: Time, decision: LoggedDecision },
    Opened { id: SessionId, tuple: Tuple, zones: ZonePair, rule: (Generation, RuleId), unix_ms: u64 },
    Ended { at: Time, session: EndedSession, unix_ms: u64 },
}

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Input>,
    limits: RuleLimits,
    /// Whether some rule of a kept policy may say `log`. Otherwise nobody asks about sessions.
    wanted: AtomicBool,
    stop: AtomicBool,
    followers: broadcast::Sender<Arc<Record>>,
    metrics: ConnectionLogMetrics,
}

/// A handle to the connection log. The default one discards everything.
#[derive(Clone, Debug, Default)]
pub struct ConnectionLog(Option<Arc<Shared>>);

/// The queue of a log that is not yet written.
pub(crate) struct Queue {
    inputs: Receiver<Input>,
    shared: Arc<Shared>,
}

/// A log that is written, until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ConnectionLog {
    /// A log, and the queue that [`Queue::start`] empties.
    pub(crate) fn new(config: &Log) -> (ConnectionLog, Queue) {
        let (queue, inputs) = sync_channel(QUEUE);
        let (followers, _) = broadcast::channel(FOLLOWER_QUEUE);
        let shared = Arc::new(Shared {
            queue,
            limits: RuleLimits::new(config.rate),
            wanted: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            followers,
            metrics: ConnectionLogMetrics::default(),
        });
        (ConnectionLog(Some(shared.clone())), Queue { inputs, shared })
    }

    /// Logs what the packet path decided. Never blocks.
    pub(crate) fn decided(&self, now: Time, decision: &LoggedDecision) {
        let Some(shared) = &self.0 else { return };
        if shared.limits.take(decision.rule, now) {
            shared.send(Input::Decided { at: now, decision: *decision });
        } else {
            shared.metrics.limited.inc();
        }
    }

    /// Takes notice of an applied batch. Those of `own` are this member's, proposed since it was started.
    pub(crate) fn applied(&self, own: bool, batch: &Batch, applied: &[Applied]) {
        let Some(shared) = &self.0 else { return };
        if batch.commands.iter().any(|command| matches!(command, Command::Enact(_))) {
            shared.wanted.store(true, Ordering::Relaxed);
        }
        if !own || !shared.wanted.load(Ordering::Relaxed) {
            return;
        }
        let unix_ms = batch.unix_ms;
        for (command, applied) in batch.commands.iter().zip(applied).filter(|(_, applied)| applied.changed) {
            if let Command::Establish(e) = command
                && e.original.protocol == Protocol::TCP
            {
                let zones = ZonePair { ingress: e.ingress, egress: e.egress };
                let rule = (e.generation, e.rule);
                shared.send(Input::Opened { id: e.id, tuple: e.original, zones, rule, unix_ms });
            }
            for session in &applied.ended {
                shared.send(Input::Ended { at: clock::now(), session: *session, unix_ms });
            }
        }
    }

    /// The events that this member logs from now on.
    pub(crate) fn follow(&self) -> Option<broadcast::Receiver<Arc<Record>>> {
        self.0.as_ref().map(|shared| shared.followers.subscribe())
    }

    /// How many follow it.
    pub(crate) fn followers(&self) -> usize {
        self.0.as_ref().map_or(0, |shared| shared.followers.receiver_count())
    }

    /// Counts events that a follower was too slow for.
    pub(crate) fn follower_lost(&self, events: u64) {
        if let Some(shared) = &self.0 {
            shared.metrics.dropped.follower.add(events);
        }
    }

    /// The metrics, unless this is the log that discards everything.
    pub(crate) fn metrics(&self) -> Option<&ConnectionLogMetrics> {
        self.0.as_ref().map(|shared| &shared.metrics)
    }
}

impl Shared {
    fn send(&self, input: Input) {
        match self.queue.try_send(input) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.metrics.dropped.queue.inc(),
        }
    }
}

impl Queue {
    /// Starts to write the events of this member.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(self, member: &str, config: &Log, engine: Arc<Engine>) -> io::Result<Running> {
        let Queue { inputs, shared } = self;
        let mut running = Running { shared: shared.clone(), threads: Vec::new() };
        let outputs = output::start(member, config, &shared, &mut running.threads)?;
        let writer = Writer::new(member, inputs, shared, engine, outputs);
        let thread = std::thread::Builder::new().name("connection-log".to_owned());
        running.threads.push(thread.spawn(move || writer.run())?);
        Ok(running)
    }
}

impl Drop for Running {
    /// Ends the writer, which writes what it has. Outputs that hang (a dead disk) are left behind.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // The writer is the last one: the outputs end when it drops their queues.
        if let Some(writer) = self.threads.pop() {
            let _ = writer.join();
        }
        let end = clock::now() + output::STOP_TIMEOUT;
        while self.threads.iter().any(|thread| !thread.is_finished()) && clock::now() < end {
            std::thread::sleep(output::STOP_POLL_INTERVAL);
        }
    }
}
