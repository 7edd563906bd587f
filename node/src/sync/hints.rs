//! Hints: unlogged messages between members about half-open sessions, sent at once.
//!
//! One task copies each hint of this member into one bounded queue per peer; one task per peer sends what has queued since
//! it last sent, without waiting for more. A full queue drops and counts: a lost hint costs a retransmission, a blocked
//! worker would cost everything. A new stream starts with all live half-open sessions, so that a peer that was away catches
//! up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{Stream, StreamExt};
use palisade_engine::{Engine, Hint, MemberId};
use palisade_proto::member::v1 as wire;
use palisade_raft_store::LevelInForce;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::codegen::Bytes;

use crate::peer::connections::{Lane, Members, Peers};
use crate::queue::offer;
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::streams::{PeerQueue, PeerStreams, Publisher, keep_open};

/// Maximum number of hints waiting for one peer.
const PEER_QUEUE: usize = 8192;
/// Maximum number of hints in one message.
const MAX_MESSAGE_HINTS: usize = 256;

/// Which peers have an open stream of hints from here: the cheapest sign that a member is reachable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reachability(Arc<Mutex<BTreeMap<MemberId, Arc<AtomicBool>>>>);

impl Reachability {
    pub(crate) fn get(&self, member: MemberId) -> bool {
        self.0.lock().get(&member).is_some_and(|r| r.load(Ordering::Relaxed))
    }
}

/// Sends this member's hints to all peers.
pub(crate) struct HintPublisher {
    pub(crate) peers: Peers,
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) reachability: Reachability,
    pub(crate) level: LevelInForce,
    /// From the workers; `None` when they are gone.
    pub(crate) hints: Option<mpsc::Receiver<Hint>>,
    /// Replies to peers' queries; `None` when their sender is gone.
    pub(crate) replies: Option<mpsc::Receiver<Hint>>,
}

impl Publisher for HintPublisher {
    type Message = Bytes;
    const QUEUE: usize = PEER_QUEUE;

    async fn publish(&mut self, streams: &PeerStreams<Bytes>) {
        tokio::select! {
            biased;
            hint = next(&mut self.hints) => self.copy(streams, &hint),
            hint = next(&mut self.replies) => self.copy(streams, &hint),
        }
        for _ in 1..MAX_MESSAGE_HINTS {
            let Some(Ok(hint)) = self.hints.as_mut().map(mpsc::Receiver::try_recv) else { return };
            self.copy(streams, &hint);
        }
    }

    fn sender(
        &self,
        peer: MemberId,
        address: String,
        queue: PeerQueue<Bytes>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let reachable = self.reachability.0.lock().entry(peer).or_default().clone();
        let sender = HintSender {
            engine: self.engine.clone(),
            metrics: self.metrics.clone(),
            reachable,
            level: self.level.clone(),
        };
        sender.run(self.peers.clone(), peer, address, queue)
    }

    fn retain(&mut self, members: &Members) {
        self.reachability.0.lock().retain(|id, _| members.contains_key(id));
    }
}

impl HintPublisher {
    fn copy(&self, streams: &PeerStreams<Bytes>, hint: &Hint) {
        let bytes = match hint.encode(self.level.get()) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return tracing::error!(%error, "a hint cannot be encoded"),
        };
        for queue in streams.queues() {
            if !offer(queue, hint.is_low_priority(), bytes.clone()) {
                self.metrics.hints_dropped.inc();
            }
        }
    }
}

/// The next hint of a queue, which becomes `None` when its senders are gone. Cancel-safe.
async fn next(queue: &mut Option<mpsc::Receiver<Hint>>) -> Hint {
    if let Some(receiver) = queue {
        if let Some(hint) = receiver.recv().await {
            return hint;
        }
        *queue = None;
    }
    std::future::pending().await
}

/// Sends hints to one peer.
#[derive(Clone)]
struct HintSender {
    engine: Arc<Engine>,
    metrics: Arc<ReplicationMetrics>,
    reachable: Arc<AtomicBool>,
    level: LevelInForce,
}

impl HintSender {
    async fn run(self, peers: Peers, to: MemberId, address: String, queue: PeerQueue<Bytes>) {
        keep_open("hints", peers, to, address, Lane::Hints, |mut client| {
            let (sender, queue) = (self.clone(), queue.clone());
            async move {
                let ended = client.hints(sender.stream(queue)).await;
                sender.reachable.store(false, Ordering::Relaxed);
                ended.map(drop)
            }
        })
        .await;
    }

    /// All half-open sessions, then what queues. The stream is polled only once the peer is reached, so the half-open
    /// sessions are those of that moment.
    fn stream(&self, queue: PeerQueue<Bytes>) -> impl Stream<Item = wire::HintBatch> + Send + use<> {
        let (engine, metrics, reachable) = (self.engine.clone(), self.metrics.clone(), self.reachable.clone());
        let counted = metrics.clone();
        let (level, start_level) = (self.level.clone(), self.level.get());
        let start = futures::stream::once(async move {
            metrics.hint_streams.inc();
            reachable.store(true, Ordering::Relaxed);
            let mut all = Vec::new();
            engine.half_opens(&mut |half_open| {
                all.extend(Hint::HalfOpen(Box::new(half_open)).encode(start_level).map(Bytes::from));
            });
            let batch = |hints: &[Bytes]| wire::HintBatch { hints: hints.to_vec(), level: start_level.0.into() };
            let batches: Vec<_> = all.chunks(MAX_MESSAGE_HINTS).map(batch).collect();
            futures::stream::iter(batches)
        })
        .flatten();
        let rest = futures::stream::unfold((queue, level), |(queue, level)| async move {
            let mut hints = Vec::new();
            let n = queue.lock().await.recv_many(&mut hints, MAX_MESSAGE_HINTS).await;
            // A hint that queued before a raise of the level reads the same at the new one.
            let batch = wire::HintBatch { hints, level: level.get().0.into() };
            (n > 0).then_some((batch, (queue, level)))
        });
        start.chain(rest).inspect(move |batch| counted.hints_sent.add(batch.hints.len() as u64))
    }
}
