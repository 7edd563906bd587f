//! Progress: several times a second, each member sends its peers the state of the live sessions that passed packets there.
//!
//! There is one queue and one stream per peer. Each message says between which times of its sender's clock it is complete.
//! So a message that was dropped and a stream that broke leave a gap that the receiver sees; see [`super::liveness`].
//! Nothing waits for an acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use palisade_engine::{Engine, MemberId, Progress, Time};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::LevelInForce;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock;
use crate::peer::connections::{Lane, Peers};
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::streams::{PeerQueue, PeerStreams, Publisher, keep_open};

/// Interval of progress messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Messages a second.
const MESSAGES_PER_SECOND: u64 = 10;
/// Bytes that one session takes in a message, with its traffic counters; without them about 10 less.
const SESSION_BYTES: u64 = 73;
/// Maximum number of bytes of sessions in a message: far more than this version sends in one.
pub(super) const MAX_SESSIONS_BYTES: usize = 4 << 20;
/// Lag from which messages leave out what can wait.
const MAX_LAG_FOR_COUNTERS: Duration = Duration::from_secs(1);
/// Maximum number of messages waiting for one peer.
const PEER_QUEUE: usize = 8;

/// Sends this member's progress to all peers.
pub(crate) struct ProgressPublisher {
    peers: Peers,
    engine: Arc<Engine>,
    metrics: Arc<ReplicationMetrics>,
    level: LevelInForce,
    /// Maximum number of sessions in a message.
    max_sessions: usize,
    /// Up to when everything was published.
    published_until: Time,
    ticks: Interval,
}

impl ProgressPublisher {
    /// `rate`: bytes a second to each peer.
    pub(crate) fn new(
        peers: Peers,
        engine: Arc<Engine>,
        metrics: Arc<ReplicationMetrics>,
        level: LevelInForce,
        rate: u64,
    ) -> ProgressPublisher {
        let max_sessions = usize::try_from(rate / SESSION_BYTES / MESSAGES_PER_SECOND).unwrap_or(usize::MAX);
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ProgressPublisher {
            peers,
            engine,
            metrics,
            level,
            max_sessions: max_sessions.clamp(1, MAX_SESSIONS_BYTES / SESSION_BYTES as usize),
            published_until: clock::now(),
            ticks,
        }
    }

    /// The next message.
    fn message(&mut self) -> wire::ProgressBatch {
        let now = clock::now();
        let counters = now.since(self.published_until) < MAX_LAG_FOR_COUNTERS;
        let (mut bytes, mut sessions) = (Vec::new(), 0);
        let level = self.level.get();
        let mut encode = |progress: &Progress| match progress.encode(level, &mut bytes) {
            Ok(()) => sessions += 1,
            Err(error) => tracing::error!(%error, "a session's progress cannot be encoded"),
        };
        let until = self.engine.collect_progress(now, self.max_sessions, counters, &mut encode);
        let from = self.published_until;
        self.published_until = until.max(from);
        self.metrics.progress_sessions.sent.add(sessions);
        self.metrics.progress_lag.set(now.since(self.published_until));
        wire::ProgressBatch {
            sent: now.0,
            from: from.0,
            until: self.published_until.0,
            sessions: bytes.into(),
            level: level.0.into(),
        }
    }
}

impl Publisher for ProgressPublisher {
    type Message = wire::ProgressBatch;
    const QUEUE: usize = PEER_QUEUE;

    async fn publish(&mut self, streams: &PeerStreams<wire::ProgressBatch>) {
        self.ticks.tick().await;
        let message = self.message();
        for queue in streams.queues() {
            if queue.try_send(message.clone()).is_err() {
                self.metrics.progress_dropped.inc();
            }
        }
    }

    /// What queues while there is no stream becomes a gap: old progress is not sent.
    fn sender(
        &self,
        peer: MemberId,
        address: String,
        queue: PeerQueue<wire::ProgressBatch>,
    ) -> impl Future<Output = ()> + Send + 'static {
        keep_open("progress", self.peers.clone(), peer, address, Lane::Progress, move |mut client| {
            let stream = stream(queue.clone());
            async move { client.progress(stream).await.map(drop) }
        })
    }
}

fn stream(queue: PeerQueue<wire::ProgressBatch>) -> impl Stream<Item = wire::ProgressBatch> + Send + 'static {
    futures::stream::unfold((queue, true), |(queue, begins)| async move {
        let batch = {
            let mut queue = queue.lock().await;
            while begins && queue.try_recv().is_ok() {}
            queue.recv().await
        };
        batch.map(|batch| (batch, (queue, false)))
    })
}
