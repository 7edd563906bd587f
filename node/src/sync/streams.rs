//! Messages for all peers: for each peer a bounded queue, and a task with a stream that is opened again when it breaks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::MemberId;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::lab_panic;
use crate::peer::connections::{Client, Lane, Members, Peers};

/// Time before a broken stream is opened again.
const REOPEN_DELAY: Duration = Duration::from_millis(100);

/// The queue of one peer. It outlives a stream: what one leaves behind, the next one finds.
pub(crate) type PeerQueue<T> = Arc<Mutex<mpsc::Receiver<T>>>;

/// A source of messages for all peers.
pub(crate) trait Publisher {
    /// A message.
    type Message: Send + 'static;
    /// Maximum number of messages waiting for one peer.
    const QUEUE: usize;

    /// Waits for the next messages and puts them into the queues. Cancel-safe.
    async fn publish(&mut self, streams: &PeerStreams<Self::Message>);

    /// The task that sends to one peer.
    fn sender(
        &self,
        peer: MemberId,
        address: String,
        queue: PeerQueue<Self::Message>,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Forgets peers that are no members any longer.
    fn retain(&mut self, _: &Members) {}
}

/// Publishes to the members' list, until that is closed: the replication is shut down then. Also ends when the task of a peer
/// has panicked: what that member is not told nobody else would notice.
pub(crate) async fn run<P: Publisher>(mut publisher: P, me: MemberId, mut members: watch::Receiver<Members>) {
    let (died, mut deaths) = mpsc::channel(1);
    let mut streams = PeerStreams { me, peers: BTreeMap::new(), died };
    members.mark_changed();
    loop {
        tokio::select! {
            biased;
            changed = members.changed() => {
                if changed.is_err() {
                    return;
                }
                let members = members.borrow_and_update().clone();
                publisher.retain(&members);
                streams.sync_peers(&members, &publisher);
            }
            _ = deaths.recv() => return,
            () = publisher.publish(&streams) => {}
        }
    }
}

/// The queues and tasks of all peers.
pub(crate) struct PeerStreams<T> {
    me: MemberId,
    peers: BTreeMap<MemberId, PeerStream<T>>,
    /// Told when a task has panicked.
    died: mpsc::Sender<()>,
}

/// Reports the panic of a task.
struct Alarm(mpsc::Sender<()>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // One is enough.
            let _ = self.0.try_send(());
        }
    }
}

struct PeerStream<T> {
    address: String,
    queue: mpsc::Sender<T>,
    task: JoinHandle<()>,
}

impl<T> Drop for PeerStream<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> PeerStreams<T> {
    /// Starts a task for each peer that is new or has another address, and ends those of peers that left.
    fn sync_peers<P: Publisher<Message = T>>(&mut self, members: &Members, publisher: &P) {
        self.peers.retain(|id, peer| members.get(id).is_some_and(|m| m.address == peer.address));
        for (&id, info) in members.iter().filter(|(id, _)| **id != self.me) {
            self.peers.entry(id).or_insert_with(|| {
                let (queue, receiver) = mpsc::channel(P::QUEUE);
                let receiver = Arc::new(Mutex::new(receiver));
                let sender = lab_panic::task("peer stream", publisher.sender(id, info.address.clone(), receiver));
                let alarm = Alarm(self.died.clone());
                let task = tokio::spawn(async move {
                    let _alarm = alarm;
                    sender.await;
                });
                PeerStream { address: info.address.clone(), queue, task }
            });
        }
    }

    /// The queues.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &mpsc::Sender<T>> {
        self.peers.values().map(|peer| &peer.queue)
    }
}

/// Keeps a stream of `what` open to a peer, forever: `run` is one stream.
pub(crate) async fn keep_open<F>(
    what: &'static str,
    peers: Peers,
    to: MemberId,
    address: String,
    lane: Lane,
    mut run: impl FnMut(Client) -> F,
) where
    F: Future<Output = Result<(), Status>>,
{
    loop {
        match peers.client(to, &address, lane) {
            Ok(client) => {
                if let Err(status) = run(client).await {
                    tracing::debug!(%to, %status, "the stream of {what} broke");
                }
            }
            Err(status) => tracing::warn!(%to, %status, "no {what} can be sent"),
        }
        tokio::time::sleep(REOPEN_DELAY).await;
    }
}
