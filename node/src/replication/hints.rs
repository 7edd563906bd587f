//! Hints: what half-open sessions the members know, told each other at once and unlogged.
//!
//! One task copies each hint of this member into one bounded queue per peer; one task per peer sends what queued since
//! it last sent, without waiting for more. A full queue drops and counts: a lost hint costs a retransmission, a blocked
//! worker would cost everything. A new stream starts with all live half-opens, so that a peer that was away catches up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use palisade_engine::event::Hint;
use palisade_engine::replica::MemberInfo;
use palisade_engine::{Engine, MemberId};
use palisade_proto::convert::encode_hint;
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::codegen::Bytes;

use super::metrics::ReplicationMetrics;
use super::route::{Lane, Peers};
use crate::queue::offer;

/// Hints that wait for one peer.
const QUEUE: usize = 8192;
/// Hints in one message.
const BATCH: usize = 256;
/// Time before a broken stream is opened again.
const RETRY: Duration = Duration::from_millis(100);

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

struct Target {
    address: String,
    queue: mpsc::Sender<Bytes>,
    task: JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hints {
    /// Runs until the members' list is closed: the replication is shut down then.
    pub(crate) async fn run(mut self) {
        let mut targets = BTreeMap::new();
        self.aim(&mut targets);
        let mut buffer = Vec::with_capacity(BATCH);
        let (mut workers_open, mut answers_open) = (true, true);
        loop {
            tokio::select! {
                biased;
                changed = self.members.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.aim(&mut targets);
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
                    Ok(bytes) => self.copy(&targets, &bytes, hint.yields()),
                    Err(error) => tracing::error!(%error, "a hint can not be encoded"),
                }
            }
        }
    }

    fn copy(&self, targets: &BTreeMap<MemberId, Target>, bytes: &Bytes, yields: bool) {
        for target in targets.values() {
            if !offer(&target.queue, yields, bytes.clone()) {
                self.metrics.hints_dropped.add(1);
            }
        }
    }

    /// One task for each other member; those whose address changed start anew.
    fn aim(&mut self, targets: &mut BTreeMap<MemberId, Target>) {
        let members = self.members.borrow_and_update().clone();
        targets.retain(|id, target| members.get(id).is_some_and(|m| m.address == target.address));
        self.reached.0.lock().retain(|id, _| members.contains_key(id));
        for (id, info) in members.into_iter().filter(|(id, _)| *id != self.me) {
            targets.entry(id).or_insert_with(|| {
                let (queue, waiting) = mpsc::channel(QUEUE);
                let reached = self.reached.0.lock().entry(id).or_default().clone();
                let sender = Sender {
                    to: id,
                    address: info.address.clone(),
                    peers: self.peers.clone(),
                    engine: self.engine.clone(),
                    metrics: self.metrics.clone(),
                    reached,
                };
                Target { address: info.address, queue, task: tokio::spawn(sender.run(waiting)) }
            });
        }
    }
}

/// Sends hints to one peer.
struct Sender {
    to: MemberId,
    address: String,
    peers: Peers,
    engine: Arc<Engine>,
    metrics: Arc<ReplicationMetrics>,
    reached: Arc<AtomicBool>,
}

impl Sender {
    async fn run(self, waiting: mpsc::Receiver<Bytes>) {
        // The queue outlives a stream: what one leaves over, the next one sends.
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        loop {
            match self.peers.client(self.to, &self.address, Lane::Hints) {
                Ok(mut client) => {
                    let ended = client.hints(self.stream(waiting.clone())).await;
                    if let Err(status) = ended {
                        tracing::debug!(to = %self.to, %status, "the stream of hints broke");
                    }
                }
                Err(status) => tracing::warn!(to = %self.to, %status, "no hints can be sent"),
            }
            self.reached.store(false, Ordering::Relaxed);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// First all half-opens, then what queues. It is polled only once the peer has been reached, so the half-opens are
    /// those of that moment.
    fn stream(
        &self,
        waiting: Arc<tokio::sync::Mutex<mpsc::Receiver<Bytes>>>,
    ) -> impl Stream<Item = wire::HintBatch> + Send + 'static {
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
