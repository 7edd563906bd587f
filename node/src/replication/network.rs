//! openraft's network: what this member sends to the others.
//!
//! Appends are pipelined: one bidirectional stream carries them in order, without waiting for the answer to the one
//! before, and the answers come back in the same order. A stream that carries requests but gets no answers is an error
//! after [`Timing::answer`]: openraft would otherwise keep the log for it for ever.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use palisade_engine::replica::MemberInfo;
use palisade_engine::{MemberId, Time};
use palisade_raft_store::{SnapshotFile, TypeConfig};
use tonic::{Code, Status};

use super::metrics::ReplicationMetrics;
use super::route::{Client, Lane, Peers};
use super::{snapshot, wire};
use crate::clock;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Makes the clients that openraft asks for.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) me: MemberId,
    pub(crate) peers: Peers,
    pub(crate) answer: Duration,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

/// A client of one member, for one kind of traffic.
pub(crate) struct Peer {
    network: Network,
    to: MemberId,
    client: Result<Client, Status>,
}

impl Network {
    fn peer(&self, to: MemberId, info: &MemberInfo, lane: Lane) -> Peer {
        Peer { network: self.clone(), to, client: self.peers.client(to, &info.address, lane) }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &MemberInfo) -> Peer {
        self.peer(target, node, Lane::Raft)
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, node: &MemberInfo) -> Peer {
        self.peer(target, node, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: MemberId, node: &MemberInfo) -> Peer {
        self.peer(target, node, Lane::Snapshot)
    }
}

/// What a failed RPC means to openraft: is the member away (wait before the next try), or was it only this time?
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::Unimplemented => {
            RPCError::Unreachable(Unreachable::from_string(status))
        }
        _ => RPCError::Network(NetworkError::from_string(status)),
    }
}

fn garbled(error: wire::WireError) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&error))
}

impl Peer {
    fn client(&self) -> Rpc<Client> {
        self.client.clone().map_err(|status| failed(&status))
    }

    fn late(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.network.me, target: self.to, timeout }
    }

    /// A unary RPC within openraft's deadline.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        rpc: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Rpc<T> {
        match tokio::time::timeout(option.soft_ttl(), rpc).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(RPCError::Timeout(self.late(action, option.soft_ttl()))),
        }
    }

    async fn open_append<S>(
        &self,
        input: S,
    ) -> Rpc<BoxStream<'static, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let mut client = self.client()?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let requests = input.scan((), move |(), request| {
            std::future::ready(match wire::append_out(&request) {
                Ok(request) => {
                    counter.fetch_add(1, Ordering::Relaxed);
                    Some(request)
                }
                Err(error) => {
                    tracing::error!(%error, "an append can not be sent");
                    None
                }
            })
        });
        let answer = self.network.answer;
        let responses = match tokio::time::timeout(answer, client.append(requests)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(failed(&status)),
            Err(_) => return Err(RPCError::Timeout(self.late(RPCTypes::AppendEntries, answer))),
        };
        let late = self.late(RPCTypes::AppendEntries, answer);
        let watch = Watch { sent, answered: 0, waiting_since: None, limit: answer };
        let stream = futures::stream::unfold(Some((responses, watch, late)), |state| async move {
            let (mut responses, mut watch, late) = state?;
            let result = match watch.next(&mut responses).await {
                Ok(response) => match wire::appended_in(response?) {
                    Ok(result) => Ok(result),
                    Err(error) => Err(garbled(error)),
                },
                Err(Silence::Broken(status)) => Err(failed(&status)),
                Err(Silence::Late) => Err(RPCError::Timeout(late.clone())),
            };
            let go_on = matches!(result, Ok(Ok(_)));
            Some((result, go_on.then_some((responses, watch, late))))
        });
        Ok(Box::pin(stream))
    }
}

/// Watches that requests are answered.
struct Watch {
    sent: Arc<AtomicU64>,
    answered: u64,
    waiting_since: Option<Time>,
    limit: Duration,
}

enum Silence {
    Broken(Status),
    Late,
}

impl Watch {
    /// The next response; `None` at the end of the stream.
    async fn next<T>(
        &mut self,
        responses: &mut (impl Stream<Item = Result<T, Status>> + Unpin),
    ) -> Result<Option<T>, Silence> {
        loop {
            match tokio::time::timeout(self.limit / 4, responses.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Err(status))) => return Err(Silence::Broken(status)),
                Ok(Some(Ok(response))) => {
                    self.answered += 1;
                    self.waiting_since = None;
                    return Ok(Some(response));
                }
                Err(_) if self.sent.load(Ordering::Relaxed) <= self.answered => self.waiting_since = None,
                Err(_) => {
                    let now = clock::now();
                    if now.since(*self.waiting_since.get_or_insert(now)) >= self.limit {
                        return Err(Silence::Late);
                    }
                }
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let one = futures::stream::iter([rpc]);
        let answer = async {
            let mut responses = self.open_append(one).await?;
            match responses.next().await {
                Some(result) => result.map(AppendEntriesResponse::from),
                None => Err(RPCError::Network(NetworkError::from_string("the append was not answered"))),
            }
        };
        match tokio::time::timeout(option.soft_ttl(), answer).await {
            Ok(result) => result,
            Err(_) => Err(RPCError::Timeout(self.late(RPCTypes::AppendEntries, option.soft_ttl()))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let stream: BoxStream<'s, _> = self.open_append(input).await?;
            Ok(stream)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.client()?;
        let response = self.call(RPCTypes::Vote, &option, client.vote(wire::vote_request_out(&rpc))).await?;
        wire::vote_response_in(response).map_err(garbled)
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.client()?;
        let response = self.call(RPCTypes::Vote, &option, client.pre_vote(wire::vote_request_out(&rpc))).await?;
        wire::vote_response_in(response).map_err(garbled)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client().map_err(StreamingError::from)?;
        let send = client.install_snapshot(snapshot::chunks(vote, snapshot.snapshot));
        let sent = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = tokio::time::timeout(option.hard_ttl(), send) => sent,
        };
        let response = match sent {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(failed(&status).into()),
            Err(_) => return Err(StreamingError::Timeout(self.late(RPCTypes::InstallSnapshot, option.hard_ttl()))),
        };
        let vote = wire::vote_in(response.vote).map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
        self.network.metrics.snapshots_sent.add(1);
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let mut client = self.client()?;
        let rpc = client.transfer_leader(wire::transfer_out(&req));
        let response = self.call(RPCTypes::TransferLeader, &option, rpc).await?;
        wire::transferred_in(response, &req).map_err(garbled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(sent: u64) -> Watch {
        Watch {
            sent: Arc::new(AtomicU64::new(sent)),
            answered: 0,
            waiting_since: None,
            limit: Duration::from_millis(80),
        }
    }

    #[tokio::test]
    async fn a_stream_without_answers_is_an_error() {
        let mut silent = futures::stream::pending::<Result<(), Status>>();
        let end = tokio::time::timeout(Duration::from_secs(5), watch(1).next(&mut silent)).await.unwrap();
        assert!(matches!(end, Err(Silence::Late)));
    }

    #[tokio::test]
    async fn a_stream_that_owes_no_answer_may_be_silent() {
        let mut silent = futures::stream::pending::<Result<(), Status>>();
        let waited = tokio::time::timeout(Duration::from_millis(400), watch(0).next(&mut silent)).await;
        assert!(waited.is_err(), "it waits on");
    }

    #[tokio::test]
    async fn answers_and_ends_are_passed_on() {
        let mut stream = futures::stream::iter([Ok(1), Err(Status::aborted("x"))]);
        let mut watch = watch(2);
        assert!(matches!(watch.next(&mut stream).await, Ok(Some(1))));
        assert!(matches!(watch.next(&mut stream).await, Err(Silence::Broken(_))));
        assert!(matches!(watch.next(&mut stream).await, Ok(None)));
    }
}
