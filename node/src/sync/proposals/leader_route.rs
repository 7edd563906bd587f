//! The route of proposals to the leader: openraft if this member leads, else a stream.

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::errors::Fatal;
use openraft::impls::ProgressResponder;
use palisade_engine::Level;
use palisade_engine::replica::Batch;
use palisade_proto::member::v1 as wire;
use palisade_raft_store::TypeConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::MAX_IN_FLIGHT;
use super::in_flight::FAST_RETRANSMIT_DELAY;
use crate::peer::connections::{Lane, Peers};
use crate::raft::config::PalisadeRaft;
use crate::raft::leadership::LeaderInfo;

/// Batches that wait on the stream to the leader, and refusals that wait to be read.
const STREAM_QUEUE: usize = 4 * MAX_IN_FLIGHT;

/// The route to the leader, for as long as it leads.
pub(super) enum LeaderRoute {
    /// No leader is known, or it cannot be reached.
    None,
    /// This member leads: with the batches that it has under way in openraft.
    Local(FuturesUnordered<Refused>),
    /// A stream to the leader.
    Remote { batches: mpsc::Sender<wire::Proposal>, refusals: mpsc::Receiver<wire::ProposalRefusal> },
}

/// What a route reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RouteEvent {
    /// The leader refused the batch with this number.
    Refused(u64),
    /// The stream ended.
    Ended,
}

impl LeaderRoute {
    /// The route to another member that leads.
    pub(super) fn remote(peers: &Peers, leader: &LeaderInfo) -> LeaderRoute {
        let mut client = match peers.client(leader.id, &leader.address, Lane::Control) {
            Ok(client) => client,
            Err(status) => {
                tracing::warn!(%status, "the leader cannot be reached");
                return LeaderRoute::None;
            }
        };
        let (batches, queue) = mpsc::channel(STREAM_QUEUE);
        let (refuse, refusals) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(async move {
            match client.propose(ReceiverStream::new(queue)).await {
                Ok(response) => {
                    let mut answers = response.into_inner();
                    // Ends when the leader ends it, or when the receiver of `refuse` is gone.
                    while let Ok(Some(refusal)) = answers.message().await {
                        if refuse.send(refusal).await.is_err() {
                            return;
                        }
                    }
                }
                Err(status) => tracing::debug!(%status, "proposals do not reach the leader"),
            }
            // The end is reported with a delay: the leader may be down, and no other one known yet.
            tokio::time::sleep(FAST_RETRANSMIT_DELAY).await;
        });
        LeaderRoute::Remote { batches, refusals }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, LeaderRoute::None)
    }

    /// Whether the stream to the leader has ended.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self, LeaderRoute::Remote { batches, .. } if batches.is_closed())
    }

    /// Proposes a batch. A batch that is lost is proposed again in time.
    pub(super) async fn propose(&mut self, raft: &PalisadeRaft, level: Level, batch: &Batch) {
        match self {
            LeaderRoute::None => {}
            LeaderRoute::Local(under_way) => match submit(raft, batch.clone()).await {
                Ok(refused) => under_way.push(refused),
                Err(error) => tracing::debug!(%error, "a batch could not be proposed here"),
            },
            LeaderRoute::Remote { batches, .. } => match batch.encode(level) {
                // Full or closed: see above.
                Ok(batch) => drop(batches.try_send(wire::Proposal { batch: batch.into() })),
                Err(error) => tracing::error!(%error, "a batch cannot be encoded"),
            },
        }
    }

    /// Waits for a refusal or the end of the route. Cancel-safe.
    pub(super) async fn event(&mut self) -> RouteEvent {
        match self {
            LeaderRoute::Remote { refusals, .. } => {
                refusals.recv().await.map_or(RouteEvent::Ended, |refusal| RouteEvent::Refused(refusal.first))
            }
            LeaderRoute::Local(under_way) => {
                while let Some(done) = under_way.next().await {
                    if let Some(first) = done {
                        return RouteEvent::Refused(first);
                    }
                }
                std::future::pending().await
            }
            LeaderRoute::None => std::future::pending().await,
        }
    }
}

/// Ends when it is known what became of a batch: with its number if it was refused.
pub(crate) type Refused = BoxFuture<'static, Option<u64>>;

/// Gives a batch to openraft. It refuses the batch if this member does not lead, or if no majority has confirmed its
/// leadership yet or lately.
pub(crate) async fn submit(raft: &PalisadeRaft, batch: Batch) -> Result<Refused, Fatal<TypeConfig>> {
    let first = batch.first_serial;
    let (responder, answer) = ProgressResponder::complete_only();
    raft.client_write_ff(batch, Some(responder)).await?;
    Ok(Box::pin(async move {
        let refused = answer.await.ok()?.err()?;
        tracing::debug!(%refused, "a batch was refused");
        Some(first)
    }))
}
