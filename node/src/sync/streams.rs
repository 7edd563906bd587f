//! What is told to all other members: a bounded queue, and a task with a stream that is opened again when it breaks, for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::MemberId;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::peer::route::{Client, Lane, Peers};
use crate::sync::hints::Members;

/// Time before a broken stream is opened again.
const RETRY: Duration = Duration::from_millis(100);

/// What waits for one member. It outlives a stream: what one leaves over, the next one finds.
pub(crate) type Waiting<T> = Arc<Mutex<mpsc::Receiver<T>>>;

/// One for each other member.
pub(crate) struct Streams<T> {
    me: MemberId,
    /// What may wait for one member.
    capacity: usize,
    targets: BTreeMap<MemberId, Target<T>>,
}

struct Target<T> {
    address: String,
    queue: mpsc::Sender<T>,
    task: JoinHandle<()>,
}

impl<T> Drop for Target<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> Streams<T> {
    pub(crate) fn new(me: MemberId, capacity: usize) -> Streams<T> {
        Streams { me, capacity, targets: BTreeMap::new() }
    }

    /// Makes them those of the members; for one that is new, or has another address, `send` makes the task.
    pub(crate) fn aim<F>(&mut self, members: &Members, mut send: impl FnMut(MemberId, String, Waiting<T>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.targets.retain(|id, target| members.get(id).is_some_and(|m| m.address == target.address));
        for (&id, info) in members.iter().filter(|(id, _)| **id != self.me) {
            self.targets.entry(id).or_insert_with(|| {
                let (queue, waiting) = mpsc::channel(self.capacity);
                let task = tokio::spawn(send(id, info.address.clone(), Arc::new(Mutex::new(waiting))));
                Target { address: info.address.clone(), queue, task }
            });
        }
    }

    /// The queues.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &mpsc::Sender<T>> {
        self.targets.values().map(|target| &target.queue)
    }
}

/// Has `run` send `what` to a member, again and again, for as long as that goes well.
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
        tokio::time::sleep(RETRY).await;
    }
}
