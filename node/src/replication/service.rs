//! What this member answers to the others.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use palisade_engine::engine::Wake;
use palisade_engine::event::{Event, Hint, Proposal};
use palisade_engine::replica::MemberInfo;
use palisade_engine::{Engine, HoldKey, MemberId, SessionId};
use palisade_proto::convert::{decode_batch, decode_hint};
use palisade_proto::member::v1 as wire;
use palisade_proto::member::v1::admission_server::Admission;
use palisade_proto::member::v1::member_server::Member;
use palisade_raft_store::{Snapshots, TypeConfig};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::audit::Desk;
use crate::clock;
use crate::membership::change::{self, Admitting};
use crate::membership::leader::Heard;
use crate::peer::route::Sender;
use crate::queue::offer_hint;
use crate::raft::election::Signs;
use crate::raft::read_index::{self, ReadIndex};
use crate::raft::snapshot;
use crate::raft::wire as convert;
use crate::replication::PalisadeRaft;
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::progress::{self, Ears};
use crate::sync::propose::{self, Lead, Refused};

/// A [`Wake`] that can be given to several tasks.
pub(crate) trait SharedWake: Wake + Send + Sync {
    fn copy(&self) -> Box<dyn SharedWake>;
}

impl<W: Wake + Clone + Send + Sync + 'static> SharedWake for W {
    fn copy(&self) -> Box<dyn SharedWake> {
        Box::new(self.clone())
    }
}

/// Adapts it to the engine's argument.
pub(crate) struct Waker(pub(crate) Box<dyn SharedWake>);

impl Wake for Waker {
    fn wake(&mut self, workers: u64, key: HoldKey) {
        self.0.wake(workers, key);
    }
}

/// A member that is further behind than it can catch up with in this time does not say whether sessions are idle.
const BEHIND: Duration = Duration::from_millis(500);
/// Sessions in one question about idleness.
pub(crate) const MOST_IDLE: usize = 4096;
/// Commands in one batch: far more than this version sends, so that another one may send more.
const MOST_COMMANDS: usize = 1024;
/// Batches of one stream that openraft has and that are neither applied nor refused: more than a member has in flight,
/// copies included. Further ones wait.
const MOST_TAKEN: usize = 64;

#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) raft: PalisadeRaft,
    pub(crate) read_index: ReadIndex,
    pub(crate) engine: Arc<Engine>,
    pub(crate) snapshots: Snapshots,
    pub(crate) wake: Box<dyn SharedWake>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) lead: watch::Receiver<Lead>,
    pub(crate) following: Following,
    pub(crate) admitting: Admitting,
    pub(crate) heard: Heard,
    pub(crate) ears: Ears,
    pub(crate) signs: Signs,
    pub(crate) desk: Desk,
    /// True once the member is to stop: ends the streams, which would otherwise keep their connections open.
    pub(crate) stop: watch::Receiver<bool>,
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the replication is gone: stopped as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Raft trusts what a message says about its sender; the message must come from there.
fn same(named: MemberId, from: MemberId, what: &str) -> Result<(), Status> {
    if named == from {
        Ok(())
    } else {
        Err(Status::invalid_argument(format!("{what} in the name of member {named} came from member {from}")))
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the replication of this member has stopped: {error}"))
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

impl Parts {
    fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Only members may hint and propose: one that was removed may not have heard of it yet.
    fn known(&self, from: MemberId) -> Result<(), Status> {
        let knows =
            |raft: &PalisadeRaft| raft.server_metrics().borrow_watched().membership_config.get_node(&from).is_some();
        if self.engine.view().members.contains_key(&from) || knows(&self.raft) {
            return Ok(());
        }
        self.metrics.misaddressed.add(1);
        Err(Status::permission_denied(format!("member {from} is not in this cluster (any longer)")))
    }

    /// Gives openraft a batch that a member proposes.
    async fn take(&self, from: MemberId, proposal: wire::Proposal) -> Result<Refused, Status> {
        let batch = decode_batch(&proposal.batch).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if batch.commands.len() > MOST_COMMANDS {
            let why = format!("{} commands in one batch, more than {MOST_COMMANDS}", batch.commands.len());
            return Err(Status::invalid_argument(why));
        }
        if batch.proposer != from {
            return Err(Status::invalid_argument("a proposal in another member's name"));
        }
        self.known(from)?;
        propose::submit(&self.raft, batch).await.map_err(fatal)
    }

    /// Takes in one hint and passes on what follows from it.
    fn hint(&self, from: MemberId, bytes: &[u8], events: &mut Vec<Event>, wake: &mut Waker) {
        let hint = match decode_hint(bytes) {
            Ok(hint) => hint,
            Err(error) => {
                self.metrics.hints_damaged.add(1);
                tracing::debug!(%from, %error, "a hint was skipped");
                return;
            }
        };
        self.metrics.hints_received.add(1);
        self.engine.hint(clock::now(), from, &hint, events, wake);
        self.following.pass_on(events);
    }
}

/// Where what follows from a hint or from the passing of time goes: never blocks.
#[derive(Clone)]
pub(crate) struct Following {
    pub(crate) answers: mpsc::Sender<Hint>,
    pub(crate) hinted: mpsc::Sender<Proposal>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
}

impl Following {
    pub(crate) fn pass_on(&self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Hint(hint) => {
                    if !offer_hint(&self.answers, hint) {
                        self.metrics.hints_dropped.add(1);
                    }
                }
                Event::Propose(proposal) => {
                    if self.hinted.try_send(proposal).is_err() {
                        self.metrics.dropped_queue_full.add(1);
                    }
                }
                // Only packets lead to it: what hints bring is woken by `Wake`.
                Event::Wake { .. } => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Member for Service {
    type AppendStream = Out<wire::AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = Sender::of(&request)?;
        let (broken, mut why) = mpsc::channel(1);
        let requests = request.into_inner().take_until(stopped(self.0.stop.clone()));
        // What can not be understood ends the stream: whatever follows it would have a gap before it.
        let signs = self.0.signs.clone();
        let requests = requests.scan((), move |(), request| {
            let understood: Result<AppendEntriesRequest<TypeConfig>, Status> =
                request.and_then(|r| convert::append_in(r).map_err(Status::from));
            std::future::ready(match understood {
                Ok(request) if request.vote.leader_id.node_id == from => {
                    signs.of(request.vote.leader_id.term);
                    Some(request)
                }
                Ok(_) => {
                    drop(broken.try_send(Status::invalid_argument("an append in another member's name")));
                    None
                }
                Err(status) => {
                    drop(broken.try_send(status));
                    None
                }
            })
        });
        let answers = self.0.raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(convert::appended_out(&result)),
            Err(error) => Err(fatal(error)),
        });
        let end = futures::stream::once(async move { why.try_recv().ok().map(Err) }).filter_map(std::future::ready);
        let answers = answers.chain(end).take_until(stopped(self.0.stop.clone()));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let from = Sender::of(&request)?;
        let request = convert::vote_request_in(request.into_inner())?;
        same(request.vote.leader_id.node_id, from, "a request for votes")?;
        let response = self.0.raft.vote(request).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_out(&response)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let from = Sender::of(&request)?;
        let request = convert::vote_request_in(request.into_inner())?;
        same(request.vote.leader_id.node_id, from, "a request for votes")?;
        let response = self.0.raft.pre_vote(request).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_out(&response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        let from = Sender::of(&request)?;
        let check = |leader| same(leader, from, "a snapshot");
        let (vote, file) = snapshot::receive(&self.0.snapshots, request.into_inner(), check).await?;
        let snapshot = openraft::Snapshot { meta: file.meta().clone(), snapshot: file };
        let response = self.0.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        self.0.metrics.snapshots_received.add(1);
        Ok(Response::new(wire::SnapshotResponse { vote: Some(convert::vote_out(&response.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let from = Sender::of(&request)?;
        let request = convert::transfer_in(request.into_inner())?;
        same(request.from_leader().leader_id.node_id, from, "a change of the lead")?;
        let response = self.0.raft.handle_transfer_leader(request).await.map_err(fatal)?;
        Ok(Response::new(convert::transferred_out(&response)))
    }

    async fn hints(&self, request: Request<Streaming<wire::HintBatch>>) -> Result<Response<wire::HintSummary>, Status> {
        let from = Sender::of(&request)?;
        let mut batches = request.into_inner().take_until(Box::pin(stopped(self.0.stop.clone())));
        let mut wake = Waker(self.0.wake.copy());
        let mut events = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            self.0.known(from)?;
            for bytes in &batch.hints {
                self.0.hint(from, bytes, &mut events, &mut wake);
            }
        }
        Ok(Response::new(wire::HintSummary {}))
    }

    async fn progress(
        &self,
        request: Request<Streaming<wire::ProgressBatch>>,
    ) -> Result<Response<wire::HintSummary>, Status> {
        let from = Sender::of(&request)?;
        let batches = request.into_inner().take_until(Box::pin(stopped(self.0.stop.clone())));
        let Parts { ears, engine, metrics, .. } = &*self.0;
        progress::receive(ears, engine, metrics, from, || self.0.known(from), batches).await?;
        Ok(Response::new(wire::HintSummary {}))
    }

    type ProposeStream = Out<wire::ProposalRefusal>;

    async fn propose(
        &self,
        request: Request<Streaming<wire::Proposal>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        let from = Sender::of(&request)?;
        let parts = self.0.clone();
        let batches = request.into_inner().take_until(stopped(self.0.stop.clone()));
        let takers = self.0.clone();
        let taken = batches.then(move |batch| {
            let parts = takers.clone();
            async move { parts.take(from, batch?).await }
        });
        // No answer is waited for: the proposer sees it applied. Only of what is refused it hears here.
        let refused = taken.map(|taken| async move {
            match taken {
                Ok(refused) => Ok(refused.await),
                Err(status) => Err(status),
            }
        });
        let refusals = refused.buffer_unordered(MOST_TAKEN).filter_map(move |refused| {
            let refusal = |first| {
                parts.metrics.refused_not_leader.add(1);
                let leader = parts.lead.borrow().leader.as_ref().map_or(0, |l| l.id.0);
                wire::ProposalRefusal { first, leader }
            };
            std::future::ready(refused.map(|first| first.map(refusal)).transpose())
        });
        let refusals = refusals.take_until(stopped(self.0.stop.clone()));
        Ok(Response::new(Box::pin(refusals)))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let from = Sender::of(&request)?;
        let wants_lead = !request.into_inner().shuns_lead;
        let index = self.0.read_index.read().await.map_err(|e| Status::unavailable(e.to_string()))?;
        // A member that was removed, perhaps without having heard of it, must not hold itself for current.
        let members = self.0.raft.server_metrics().borrow_watched().membership_config.clone();
        if members.get_node(&from).is_none() {
            return Err(Status::permission_denied(format!("member {from} is not in this cluster (any longer)")));
        }
        let term = self.0.raft.server_metrics().borrow_watched().vote.leader_id.term;
        self.0.heard.from(from, term, wants_lead);
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let durable = metrics.replication.and_then(|r| r.get(&from).copied().flatten()).map(|id| id.index);
        Ok(Response::new(wire::ReadIndexResponse { index, durable }))
    }

    async fn confirm(&self, request: Request<wire::ConfirmRequest>) -> Result<Response<wire::ConfirmResponse>, Status> {
        let from = Sender::of(&request)?;
        let vote = convert::vote_in(request.into_inner().vote)?;
        same(vote.leader_id.node_id, from, "a question whether it leads")?;
        let follows = read_index::follows(&self.0.raft, vote).await.map_err(fatal)?;
        Ok(Response::new(wire::ConfirmResponse { follows }))
    }

    async fn still_idle(&self, request: Request<wire::Sessions>) -> Result<Response<wire::Sessions>, Status> {
        let request = request.into_inner();
        let applied = request.applied;
        let mut ids: Vec<SessionId> = request.into();
        if ids.len() > MOST_IDLE {
            return Err(Status::invalid_argument(format!("at most {MOST_IDLE} sessions at a time")));
        }
        let reached = self.0.raft.wait(Some(BEHIND)).applied_index_at_least(Some(applied), "idle sessions").await;
        reached.map_err(|e| Status::unavailable(format!("this member is behind: {e}")))?;
        self.0.engine.still_idle(clock::now(), &mut ids);
        Ok(Response::new(wire::Sessions::from(&*ids)))
    }

    async fn digests(&self, request: Request<wire::DigestsRequest>) -> Result<Response<wire::DigestsResponse>, Status> {
        Ok(Response::new(self.0.desk.digests(&request.into_inner().indices).await?))
    }

    async fn differs(&self, request: Request<wire::DiffersRequest>) -> Result<Response<wire::DiffersResponse>, Status> {
        self.0.known(Sender::of(&request)?)?;
        let wire::DiffersRequest { index, digest } = request.into_inner();
        self.0.desk.differs(index, digest);
        Ok(Response::new(wire::DiffersResponse {}))
    }

    type SnapshotStream = Out<wire::SnapshotChunk>;

    async fn snapshot(
        &self,
        request: Request<wire::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.0.known(Sender::of(&request)?)?;
        let file = self.0.desk.snapshot(request.into_inner().index).await?;
        let chunks = snapshot::chunks(None, file).map(Ok).take_until(stopped(self.0.stop.clone()));
        Ok(Response::new(Box::pin(chunks)))
    }
}

#[tonic::async_trait]
impl Admission for Service {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        use wire::join_response::Answer;
        let request = request.into_inner();
        let info = request.member.ok_or_else(|| Status::invalid_argument("the field `member` is missing"))?;
        let info = MemberInfo::try_from(info).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let answer = if self.0.leads() {
            let (cluster, member) = change::admit(&self.0, &request.secret, info).await?;
            Answer::Admitted(wire::Admitted { cluster, member: member.0 })
        } else {
            let leader = self.0.lead.borrow().leader.clone();
            let leader = leader.ok_or_else(|| Status::unavailable("the cluster has no leader now"))?;
            Answer::LeaderAddress(leader.address)
        };
        Ok(Response::new(wire::JoinResponse { answer: Some(answer) }))
    }
}
