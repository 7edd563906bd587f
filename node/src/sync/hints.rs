//! Hints: what half-open sessions the members know, told each other at once and unlogged.
//!
//! One task copies each hint of this member into one bounded queue per peer; one task per peer sends what queued since
//! it last sent, without waiting for more. A full queue drops and counts: a lost hint costs a retransmission, a blocked
//! worker would cost everything. A new stream starts with all live half-opens, so that a peer that was away catches up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{Stream, StreamExt};
use palisade_engine::event::Hint;
use palisade_engine::replica::MemberInfo;
use palisade_engine::{Engine, MemberId};
use palisade_proto::convert::encode_hint;
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tonic::codegen::Bytes;

use crate::peer::route::{Lane, Peers};
use crate::queue::offer;
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::streams::{Streams, Waiting, keep_open};

/// Hints that wait for one peer.
const QUEUE: usize = 8192;
/// Hints in one message.
const BATCH: usize = 256;

/// The other members, as the log says.
pub(crate) type Members = BTreeMap<MemberId, MemberInfo>;

/// Which peers have an open stream of hints from here: the cheapest sign that a member is reachable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached(Arc<Mutex<BTreeMap<MemberId, Arc<AtomicBool>>>>);

impl Reached {
    pub(crate) fn get(&self, member: MemberId) -> bool {
        self.0.lock().get(&member).is_some_and(|r| r.load(Ordering::Relaxed))
    }
}

pub(crate) struct Hints {
    pub(crate) me: MemberId,
    pub(crate) peers: Peers,
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) reached: Reached,
    /// From the workers.
    pub(crate) hints: mpsc::Receiver<Hint>,
    /// From the reception of hints: answers to questions.
    pub(crate) answers: mpsc::Receiver<Hint>,
    pub(crate) members: watch::Receiver<Members>,
}

impl Hints {
    /// Runs until the members' list is closed: the replication is shut down then.
    pub(crate) async fn run(mut self) {
        let mut streams = Streams::new(self.me, QUEUE);
        self.aim(&mut streams);
        let mut buffer = Vec::with_capacity(BATCH);
        let (mut workers_open, mut answers_open) = (true, true);
        loop {
            tokio::select! {
                biased;
                changed = self.members.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.aim(&mut streams);
                }
                first = self.hints.recv(), if workers_open => match first {
                    Some(hint) => buffer.push(hint),
                    None => workers_open = false,
                },
                first = self.answers.recv(), if answers_open => match first {
                    Some(hint) => buffer.push(hint),
                    None => answers_open = false,
                },
            }
            while buffer.len() < BATCH
                && let Ok(hint) = self.hints.try_recv()
            {
                buffer.push(hint);
            }
            for hint in buffer.drain(..) {
                match encode_hint(&hint) {
                    Ok(bytes) => self.copy(&streams, &bytes, hint.is_low_priority()),
                    Err(error) => tracing::error!(%error, "a hint can not be encoded"),
                }
            }
        }
    }

    fn copy(&self, streams: &Streams<Bytes>, bytes: &Bytes, low_priority: bool) {
        for queue in streams.queues() {
            if !offer(queue, low_priority, bytes.clone()) {
                self.metrics.hints_dropped.add(1);
            }
        }
    }

    fn aim(&mut self, streams: &mut Streams<Bytes>) {
        let members = self.members.borrow_and_update();
        self.reached.0.lock().retain(|id, _| members.contains_key(id));
        streams.aim(&members, |to, address, waiting| {
            let reached = self.reached.0.lock().entry(to).or_default().clone();
            let sender = Sender { engine: self.engine.clone(), metrics: self.metrics.clone(), reached };
            sender.run(self.peers.clone(), to, address, waiting)
        });
    }
}

/// Sends hints to one peer.
#[derive(Clone)]
struct Sender {
    engine: Arc<Engine>,
    metrics: Arc<ReplicationMetrics>,
    reached: Arc<AtomicBool>,
}

impl Sender {
    async fn run(self, peers: Peers, to: MemberId, address: String, waiting: Waiting<Bytes>) {
        keep_open("hints", peers, to, address, Lane::Hints, |mut client| {
            let (sender, waiting) = (self.clone(), waiting.clone());
            async move {
                let ended = client.hints(sender.stream(waiting)).await;
                sender.reached.store(false, Ordering::Relaxed);
                ended.map(drop)
            }
        })
        .await;
    }

    /// First all half-opens, then what queues. It is polled only once the peer has been reached, so the half-opens are
    /// those of that moment.
    fn stream(&self, waiting: Waiting<Bytes>) -> impl Stream<Item = wire::HintBatch> + Send + use<> {
        let (engine, metrics, reached) = (self.engine.clone(), self.metrics.clone(), self.reached.clone());
        let counted = metrics.clone();
        let start = futures::stream::once(async move {
            metrics.hint_streams.add(1);
            reached.store(true, Ordering::Relaxed);
            let mut all = Vec::new();
            engine.half_opens(&mut |half_open| all.extend(encode_hint(&Hint::HalfOpen(Box::new(half_open)))));
            let batches: Vec<_> = all.chunks(BATCH).map(|c| wire::HintBatch { hints: c.to_vec() }).collect();
            futures::stream::iter(batches)
        })
        .flatten();
        let rest = futures::stream::unfold(waiting, |waiting| async move {
            let mut hints = Vec::new();
            let n = waiting.lock().await.recv_many(&mut hints, BATCH).await;
            (n > 0).then_some((wire::HintBatch { hints }, waiting))
        });
        start.chain(rest).inspect(move |batch| counted.hints_sent.add(batch.hints.len() as u64))
    }
}
