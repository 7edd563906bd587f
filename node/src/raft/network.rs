//! openraft's network: the client side of Raft between members.
//!
//! Appends are pipelined: one bidirectional stream carries them in order, without waiting for the response to the previous
//! one, and the responses come back in the same order. A stream without responses is an error after `Timing::answer`:
//! otherwise openraft would keep the log for it for ever.

use std::future::Future;
use std::sync::Arc;
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
use palisade_engine::{MemberId, MemberInfo, Time};
use palisade_proto::member::v1 as proto;
use palisade_raft_store::{LevelInForce, SnapshotFile, TypeConfig};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::clock;
use crate::peer::connections::{Client, Lane, Peers};
use crate::raft::log_keeper::CutBelow;
use crate::raft::receivers::{SnapshotReceivers, Taken};
use crate::raft::snapshot;
use crate::raft::unreadable::{Refusals, is_refusal};
use crate::raft::wire;
use crate::replication_metrics::ReplicationMetrics;

/// Appends that wait for the connection; openraft reads no further ahead.
const APPEND_QUEUE: usize = 64;

/// Time after a stream that could not be opened. Short: a member that comes back is not kept waiting.
const REOPEN_DELAY: Duration = Duration::from_millis(50);
/// How long the log that follows a snapshot is kept for the member that has received it, within the limits of lent snapshots.
const CATCH_UP_TIME: Duration = Duration::from_secs(10);

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// The factory of the clients that openraft asks for.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) me: MemberId,
    pub(crate) peers: Peers,
    pub(crate) response_timeout: Duration,
    pub(crate) receivers: SnapshotReceivers,
    pub(crate) cut: CutBelow,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    /// The level at which appends are written.
    pub(crate) level: LevelInForce,
    pub(crate) refusals: Refusals,
}

/// A client of one member, for one kind of traffic.
pub(crate) struct RaftClient {
    network: Network,
    to: MemberId,
    /// Its address in openraft's membership.
    address: String,
    lane: Lane,
}

impl Network {
    fn peer(&self, to: MemberId, info: &MemberInfo, lane: Lane) -> RaftClient {
        RaftClient { network: self.clone(), to, address: info.address.clone(), lane }
    }
}

impl Network {
    /// As [`failed`], and keeps in mind what the member cannot read.
    fn refused(&self, by: MemberId, status: &Status) -> RPCError<TypeConfig> {
        if self.refusals.record(by, status) {
            self.metrics.unreadable_refusals.inc();
        }
        failed(status)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = RaftClient;

    async fn new_client(&mut self, target: MemberId, node: &MemberInfo) -> RaftClient {
        self.peer(target, node, Lane::Raft)
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, node: &MemberInfo) -> RaftClient {
        self.peer(target, node, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: MemberId, node: &MemberInfo) -> RaftClient {
        self.peer(target, node, Lane::Snapshot)
    }
}

/// A failed RPC as openraft's error: whether the member is unreachable (openraft backs off), or only this RPC failed.
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

impl RaftClient {
    fn client(&self) -> Rpc<Client> {
        // Asked for each time: the member may have moved.
        self.network.peers.client(self.to, &self.address, self.lane).map_err(|status| failed(&status))
    }

    /// As [`failed`], and keeps in mind what the member cannot read.
    fn failed(&self, status: &Status) -> RPCError<TypeConfig> {
        self.network.refused(self.to, status)
    }

    /// Waits until the member may be asked again, if it cannot read what it was sent. Heartbeats have nothing to read.
    async fn pause(&self) {
        if self.lane != Lane::Heartbeat {
            self.network.refusals.pause(self.to).await;
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.network.me, target: self.to, timeout }
    }

    /// A unary RPC within openraft's hard deadline, because the response to a vote waits for a disk.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        rpc: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Rpc<T> {
        match tokio::time::timeout(option.hard_ttl(), rpc).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(RPCError::Timeout(self.timeout(action, option.hard_ttl()))),
        }
    }

    /// Sends a snapshot, as soon as the member may be asked. Returns the receiver's vote, or why it did not take the snapshot.
    async fn send_snapshot(
        &self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotFile,
        taken: &Taken,
        limit: Duration,
    ) -> Result<Result<VoteOf<TypeConfig>, Status>, StreamingError<TypeConfig>> {
        self.pause().await;
        let mut client = self.client().map_err(StreamingError::from)?;
        let send = client.install_snapshot(taken.count(snapshot::chunks(Some(vote), snapshot)));
        let timeout = || StreamingError::Timeout(self.timeout(RPCTypes::InstallSnapshot, limit));
        let sent = tokio::select! {
            sent = tokio::time::timeout(limit, send) => sent.map_err(|_| timeout())?,
            () = taken.stalled() => return Err(timeout()),
        };
        let response = match sent {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        wire::vote_in(response.vote).map(Ok).map_err(|e| StreamingError::Network(NetworkError::new(&e)))
    }

    async fn open_append<S>(
        &self,
        input: S,
    ) -> Rpc<BoxStream<'static, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let mut client = self.client()?;
        let (requests, queue) = mpsc::channel(APPEND_QUEUE);
        let limit = self.network.response_timeout;
        let responses = match tokio::time::timeout(limit, client.append(ReceiverStream::new(queue))).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(self.failed(&status)),
            Err(_) => return Err(RPCError::Timeout(self.timeout(RPCTypes::AppendEntries, limit))),
        };
        let timed_out = self.timeout(RPCTypes::AppendEntries, limit);
        let flow = Flow {
            input: Some(input),
            requests: Some(requests),
            responses,
            outstanding: 0,
            waiting_since: Time::ZERO,
            limit,
            level: self.network.level.clone(),
        };
        let (network, to) = (self.network.clone(), self.to);
        let stream = futures::stream::unfold(Some((flow, timed_out, network)), move |state| async move {
            let (mut flow, timed_out, network) = state?;
            let result = match flow.next().await {
                Ok(response) => match wire::appended_in(response?) {
                    Ok(Ok(confirmed)) if network.cut.is_below(confirmed.as_ref().map(|id| id.index)) => {
                        let why = "the member is so far behind that it gets a snapshot";
                        Err(RPCError::Network(NetworkError::from_string(why)))
                    }
                    Ok(result) => Ok(result),
                    Err(error) => Err(garbled(error)),
                },
                Err(FlowError::Broken(status)) => Err(network.refused(to, &status)),
                Err(FlowError::Timeout) => Err(RPCError::Timeout(timed_out.clone())),
            };
            if let Ok(Ok(Some(id))) = &result {
                network.refusals.acknowledged(to, id.index);
            }
            let go_on = matches!(result, Ok(Ok(_)));
            Some((result, go_on.then_some((flow, timed_out, network))))
        });
        Ok(Box::pin(stream))
    }
}

/// A stream of appends: requests out, responses in, and the time limit on responses. The reader of the responses drives both
/// directions, and they end with it: openraft's request stream holds a lock while it waits for the next entry, so it must
/// not outlive the stream in the connection's task.
struct Flow<I, R> {
    input: Option<I>,
    requests: Option<mpsc::Sender<proto::AppendRequest>>,
    responses: R,
    outstanding: u64,
    waiting_since: Time,
    limit: Duration,
    level: LevelInForce,
}

enum FlowError {
    Broken(Status),
    Timeout,
}

impl<I, R, T> Flow<I, R>
where
    I: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    R: Stream<Item = Result<T, Status>> + Unpin,
{
    /// The next response; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<T>, FlowError> {
        loop {
            let room = self.requests.as_ref().is_some_and(|r| r.capacity() > 0);
            let request = async {
                match self.input.as_mut() {
                    Some(input) if room => input.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                response = self.responses.next() => match response {
                    None => return Ok(None),
                    Some(Err(status)) => return Err(FlowError::Broken(status)),
                    Some(Ok(response)) => {
                        self.outstanding = self.outstanding.saturating_sub(1);
                        self.waiting_since = clock::now();
                        return Ok(Some(response));
                    }
                },
                request = request => self.send(request),
                // Not a time from now: further requests must not postpone it.
                () = clock::sleep_until((self.outstanding > 0).then_some(self.waiting_since + self.limit)) => return Err(FlowError::Timeout),
            }
        }
    }

    fn send(&mut self, request: Option<AppendEntriesRequest<TypeConfig>>) {
        let request = request.map(|request| wire::append_out(&request, self.level.get()));
        match (request, &self.requests) {
            (Some(Ok(request)), Some(requests)) => {
                if self.outstanding == 0 {
                    self.waiting_since = clock::now();
                }
                self.outstanding += 1;
                // There was room; if the connection is gone, the responses say so.
                drop(requests.try_send(request));
            }
            (Some(Err(error)), _) => {
                tracing::error!(%error, "an append cannot be sent");
                (self.input, self.requests) = (None, None);
            }
            // No more requests: the responses to those that were sent still come.
            (None, _) | (_, None) => (self.input, self.requests) = (None, None),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for RaftClient {
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
                None => Err(RPCError::Network(NetworkError::from_string("the append got no response"))),
            }
        };
        match tokio::time::timeout(option.soft_ttl(), answer).await {
            Ok(result) => result,
            Err(_) => Err(RPCError::Timeout(self.timeout(RPCTypes::AppendEntries, option.soft_ttl()))),
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
            self.pause().await;
            match self.open_append(input).await {
                Ok(stream) => {
                    let stream: BoxStream<'s, _> = stream;
                    Ok(stream)
                }
                Err(error) => {
                    // openraft backs off after a failed request, but here there was none yet: it would open the next stream
                    // at once, some thousand times a second while a member is dead.
                    tokio::time::sleep(REOPEN_DELAY).await;
                    Err(error)
                }
            }
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
        let last = snapshot.meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let pin = snapshot.snapshot.pin();
        tokio::pin!(cancel);
        let taken = Taken::default();
        let sent = tokio::select! {
            biased;
            closed = &mut cancel => return Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot.snapshot, &taken, option.hard_ttl()) => sent,
        };
        let error = match sent {
            Ok(Ok(vote)) => {
                self.network.receivers.succeeded(self.to);
                self.network.refusals.acknowledged(self.to, last);
                self.network.metrics.snapshots.sent.add(1);
                self.network.metrics.snapshot_receivers_failing.set(self.network.receivers.failing() as u64);
                // The entries since the snapshot are still to be sent.
                tokio::spawn(async move {
                    tokio::time::sleep(CATCH_UP_TIME).await;
                    drop(pin);
                });
                return Ok(SnapshotResponse::new(vote));
            }
            Ok(Err(status)) => {
                let error = self.failed(&status).into();
                if is_refusal(&status) {
                    // How long it is left alone was decided with that.
                    return Err(error);
                }
                error
            }
            Err(error) => error,
        };
        if !taken.any() {
            // One that cannot be reached costs nothing, and openraft itself waits.
            return Err(error);
        }
        drop(pin);
        let delay = self.network.receivers.failed(self.to);
        self.network.metrics.snapshot_sends_failed.inc();
        self.network.metrics.snapshot_receivers_failing.set(self.network.receivers.failing() as u64);
        tracing::warn!(member = self.to.0, %error, ?delay, "a member did not take its snapshot: the next attempt waits");
        tokio::select! {
            closed = &mut cancel => Err(StreamingError::Closed(closed)),
            () = tokio::time::sleep(delay) => Err(error),
        }
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

    type Input = futures::stream::Pending<AppendEntriesRequest<TypeConfig>>;

    fn flow<R>(outstanding: u64, responses: R) -> Flow<Input, R> {
        Flow {
            input: Some(futures::stream::pending()),
            requests: Some(mpsc::channel(1).0),
            responses,
            outstanding,
            waiting_since: clock::now(),
            limit: Duration::from_millis(80),
            level: LevelInForce::default(),
        }
    }

    #[tokio::test]
    async fn append_stream_without_responses_times_out() {
        let mut flow = flow(1, futures::stream::pending::<Result<(), Status>>());
        let end = tokio::time::timeout(Duration::from_secs(5), flow.next()).await.unwrap();
        assert!(matches!(end, Err(FlowError::Timeout)));
    }

    #[tokio::test]
    async fn append_stream_timeout_is_not_postponed_by_requests() {
        let mut flow = flow(0, futures::stream::pending::<Result<(), Status>>());
        let (requests, _queue) = mpsc::channel(1000);
        let every = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(5)));
        let request = || AppendEntriesRequest {
            vote: openraft::Vote::new(1, MemberId(1)),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let mut flow = Flow {
            input: Some(every.map(move |_| request())),
            requests: Some(requests),
            responses: &mut flow.responses,
            outstanding: 0,
            waiting_since: clock::now(),
            limit: flow.limit,
            level: LevelInForce::default(),
        };
        let end = tokio::time::timeout(Duration::from_secs(5), flow.next()).await.unwrap();
        assert!(matches!(end, Err(FlowError::Timeout)));
        assert!(flow.outstanding > 1);
    }

    #[tokio::test]
    async fn a_stream_that_owes_no_answer_may_be_silent() {
        let mut flow = flow(0, futures::stream::pending::<Result<(), Status>>());
        let waited = tokio::time::timeout(Duration::from_millis(400), flow.next()).await;
        assert!(waited.is_err(), "it waits on");
    }

    #[tokio::test]
    async fn answers_and_ends_are_passed_on() {
        let mut flow = flow(2, futures::stream::iter([Ok(1), Err(Status::aborted("x"))]));
        assert!(matches!(flow.next().await, Ok(Some(1))));
        assert!(matches!(flow.next().await, Err(FlowError::Broken(_))));
        assert!(matches!(flow.next().await, Ok(None)));
    }
}
