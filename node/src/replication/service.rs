//! The member port: what this member answers to the others.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use palisade_engine::Event;
use palisade_engine::replica::Join;
use palisade_engine::{Engine, Hint, JoinRequest, LeaseState, Level, Levels, MemberId, MemberInfo, SessionId};
use palisade_proto::convert::{MemberError, level, policy_hash};
use palisade_proto::member::v1 as wire;
use palisade_proto::member::v1::admission_server::{Admission as AdmissionRpc, AdmissionServer};
use palisade_proto::member::v1::member_server::{Member as MemberRpc, MemberServer};
use palisade_raft_store::{Snapshots, Thing, TypeConfig, Unreadable, Vote, decode_batch};
use tokio::sync::{mpsc, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::handler::AuditHandler;
use crate::clock;
use crate::connection_log::{ConnectionLog, follow};
use crate::lease::Lease;
use crate::membership::admission::{self, Admission};
use crate::membership::token;
use crate::peer::addressing::{AddressCheck, Caller};
use crate::peer::connections::MAX_MESSAGE_BYTES;
use crate::peer::transport::{self, Acceptor};
use crate::policy::put;
use crate::policy::reports::Reports;
use crate::raft::config::PalisadeRaft;
use crate::raft::contact::LastContact;
use crate::raft::election::LeaderContact;
use crate::raft::handle::{RaftHandle, matched_index};
use crate::raft::leadership::Leadership;
use crate::raft::priority::ElectionPriority;
use crate::raft::read_index::{self, ReadIndex};
use crate::raft::unreadable::{UnreadableAlarm, refusal};
use crate::raft::wire::WireError;
use crate::raft::{snapshot, wire as convert};
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::event_sink::EventSink;
use crate::sync::idle::MAX_PROBED_SESSIONS;
use crate::sync::liveness::{self, PeerLiveness};
use crate::sync::proposals::{self, Refused};
use crate::wake::{SharedWake, Waker};

/// A member that cannot apply the index of an idle probe within this time does not answer it.
const IDLE_APPLY_TIMEOUT: Duration = Duration::from_millis(500);
/// Commands in one batch: far more than this version sends, so that another version may send more.
const MAX_BATCH_COMMANDS: usize = 1024;
/// Batches of one stream that openraft has neither applied nor refused: more than a member has in flight, copies included.
/// Further ones wait.
const MAX_PENDING_BATCHES: usize = 64;

/// The services of the member port.
#[derive(Clone)]
pub(crate) struct MemberService(Arc<ServiceContext>);

impl MemberService {
    pub(crate) fn new(context: ServiceContext) -> MemberService {
        MemberService(Arc::new(context))
    }
}

/// What the services need.
pub(crate) struct ServiceContext {
    pub(crate) raft: PalisadeRaft,
    pub(crate) read_index: ReadIndex,
    pub(crate) engine: Arc<Engine>,
    pub(crate) snapshots: Snapshots,
    pub(crate) wake: Box<dyn SharedWake>,
    pub(crate) metrics: Arc<ReplicationMetrics>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) sink: EventSink,
    pub(crate) admission: Admission,
    pub(crate) contact: LastContact,
    pub(crate) policy_reports: Reports,
    pub(crate) peer_liveness: PeerLiveness,
    pub(crate) leader_contact: LeaderContact,
    pub(crate) audit: AuditHandler,
    pub(crate) lease: Arc<Lease>,
    pub(crate) priority: watch::Receiver<ElectionPriority>,
    pub(crate) connection_log: ConnectionLog,
    pub(crate) alarm: UnreadableAlarm,
    #[cfg(test)]
    pub(crate) foreign: crate::raft::unreadable::ForeignEntries,
    /// True once the member is to stop: ends the streams, which would otherwise keep their connections open.
    pub(crate) stop: watch::Receiver<bool>,
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the replication is gone: stopped as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Refuses a message that names another sender than its caller: Raft trusts that name.
fn same(named: MemberId, from: MemberId, what: &str) -> Result<(), Status> {
    if named == from {
        Ok(())
    } else {
        Err(Status::invalid_argument(format!("{what} in the name of member {named} came from member {from}")))
    }
}

fn not_a_member(from: MemberId) -> Status {
    Status::permission_denied(format!("member {from} is not in this cluster (any longer)"))
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the replication of this member has stopped: {error}"))
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

impl ServiceContext {
    /// Refuses a member that is not in the cluster: one that was removed may not know it yet.
    fn require_member(&self, from: MemberId) -> Result<(), Status> {
        if self.engine.cluster_state().members.contains_key(&from) || self.raft.is_member(from) {
            return Ok(());
        }
        self.metrics.wrong_destination_requests.add(1);
        Err(not_a_member(from))
    }

    /// Reads an append. All of its entries are decoded, and their levels checked first, before openraft stores any.
    fn read_append(
        &self,
        from: MemberId,
        request: wire::AppendRequest,
    ) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        let vote = convert::append_vote(&request)?;
        same(vote.leader_id.node_id, from, "an append")?;
        let read = convert::append_in(request);
        #[cfg(test)]
        let read = read.and_then(|request| match self.foreign.find(&request.entries) {
            Some(unreadable) => Err(WireError::Unreadable(unreadable)),
            None => Ok(request),
        });
        match read {
            Ok(request) => {
                self.leader_contact.record(vote.leader_id.term);
                Ok(request)
            }
            Err(WireError::Unreadable(unreadable)) => Err(self.cannot_read(vote, &unreadable)),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses what a leader sent and this program cannot read. If it leads still, as far as is known here, this member stops:
    /// it cannot take part any longer.
    fn cannot_read(&self, vote: Vote, unreadable: &Unreadable) -> Status {
        let own = self.raft.server_metrics().borrow_watched().vote;
        if vote.committed && vote >= own {
            self.alarm.raise_after_answer(unreadable);
        }
        refusal(unreadable)
    }

    /// Who leads, and where it is, for one that is to ask there.
    fn leader(&self) -> Result<wire::Leader, Status> {
        let leader = self.leadership.borrow().leader.clone();
        let leader = leader.ok_or_else(|| Status::unavailable("the cluster has no leader now"))?;
        let cluster = self.engine.cluster_state();
        let address = cluster.members.get(&leader.id).map_or(leader.address, |info| info.address.clone());
        Ok(wire::Leader { member: leader.id.0, address })
    }

    /// Gives openraft a batch that another member proposes.
    async fn take(&self, from: MemberId, proposal: wire::Proposal) -> Result<Refused, Status> {
        let batch = decode_batch(&proposal.batch)
            .map_err(|unknown| refusal(&Unreadable { thing: Thing::Proposal, unknown }))?;
        if batch.commands.len() > MAX_BATCH_COMMANDS {
            let why = format!("{} commands in one batch, more than {MAX_BATCH_COMMANDS}", batch.commands.len());
            return Err(Status::invalid_argument(why));
        }
        if batch.proposer != from {
            return Err(Status::invalid_argument("a proposal in another member's name"));
        }
        // Members that do not know that level could not read it; nor would it be applied.
        if batch.level() > self.engine.cluster_state().level {
            return Err(Status::invalid_argument("a proposal that needs a higher level than that in force"));
        }
        self.require_member(from)?;
        proposals::submit(&self.raft, batch).await.map_err(fatal)
    }

    /// Gives the engine one hint, and dispatches what follows from it.
    fn hint(&self, from: MemberId, level: Level, bytes: &[u8], events: &mut Vec<Event>, wake: &mut Waker) {
        let hint = match Hint::decode(level, bytes) {
            Ok(hint) => hint,
            Err(error) => {
                self.metrics.hints_invalid.add(1);
                tracing::debug!(%from, %error, "a hint was skipped");
                return;
            }
        };
        self.metrics.hints_received.add(1);
        self.engine.hint(clock::now(), from, &hint, events, wake);
        self.sink.dispatch(events);
    }
}

/// Serves the member port until `stop` is true.
pub(crate) async fn serve(
    acceptor: Box<dyn Acceptor>,
    service: MemberService,
    check: AddressCheck,
    stop: watch::Receiver<bool>,
) {
    let member = MemberServer::new(service.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let served = transport::server()
        .add_service(InterceptedService::new(member, check))
        .add_service(AdmissionServer::new(service))
        .serve_with_incoming_shutdown(acceptor.incoming(), stopped(stop))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the member port was closed");
    }
}

#[tonic::async_trait]
impl MemberRpc for MemberService {
    type AppendStream = Out<wire::AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let from = Caller::from_request(&request)?;
        let (broken, mut why) = mpsc::channel(1);
        let requests = request.into_inner().take_until(stopped(self.0.stop.clone()));
        // A message that cannot be read ends the stream: there would be a gap before the next one.
        let context = self.0.clone();
        let requests = requests.scan((), move |(), request| {
            let read = request.and_then(|request| context.read_append(from, request));
            std::future::ready(read.map_err(|status| drop(broken.try_send(status))).ok())
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
        let from = Caller::from_request(&request)?;
        let request = convert::vote_request_in(request.into_inner())?;
        same(request.vote.leader_id.node_id, from, "a request for votes")?;
        let response = self.0.raft.vote(request).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_out(&response)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let from = Caller::from_request(&request)?;
        let request = convert::vote_request_in(request.into_inner())?;
        same(request.vote.leader_id.node_id, from, "a request for votes")?;
        let response = self.0.raft.pre_vote(request).await.map_err(fatal)?;
        Ok(Response::new(convert::vote_response_out(&response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        let from = Caller::from_request(&request)?;
        let check = |leader| same(leader, from, "a snapshot");
        let (vote, file) = snapshot::receive(&self.0.snapshots, request.into_inner(), check).await?;
        let file = file.map_err(|unreadable| self.0.cannot_read(vote, &unreadable))?;
        let snapshot = openraft::Snapshot { meta: file.meta().clone(), snapshot: file };
        let installed = self.0.raft.install_full_snapshot(vote, snapshot).await;
        let response = installed.map_err(|error| match self.0.alarm.raised() {
            Some(unreadable) => refusal(&unreadable),
            None => fatal(error),
        })?;
        self.0.metrics.snapshots.received.add(1);
        Ok(Response::new(wire::SnapshotResponse { vote: Some(convert::vote_out(&response.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let from = Caller::from_request(&request)?;
        let request = convert::transfer_in(request.into_inner())?;
        same(request.from_leader().leader_id.node_id, from, "a transfer of leadership")?;
        let response = self.0.raft.handle_transfer_leader(request).await.map_err(fatal)?;
        Ok(Response::new(convert::transferred_out(&response)))
    }

    async fn hints(&self, request: Request<Streaming<wire::HintBatch>>) -> Result<Response<wire::HintSummary>, Status> {
        let from = Caller::from_request(&request)?;
        let mut batches = request.into_inner().take_until(Box::pin(stopped(self.0.stop.clone())));
        let mut wake = Waker(self.0.wake.copy());
        let mut events = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            self.0.require_member(from)?;
            let level = level(batch.level);
            for bytes in &batch.hints {
                self.0.hint(from, level, bytes, &mut events, &mut wake);
            }
        }
        Ok(Response::new(wire::HintSummary {}))
    }

    async fn progress(
        &self,
        request: Request<Streaming<wire::ProgressBatch>>,
    ) -> Result<Response<wire::HintSummary>, Status> {
        let from = Caller::from_request(&request)?;
        let batches = request.into_inner().take_until(Box::pin(stopped(self.0.stop.clone())));
        let ServiceContext { peer_liveness, engine, metrics, .. } = &*self.0;
        liveness::receive(peer_liveness, engine, metrics, from, || self.0.require_member(from), batches).await?;
        Ok(Response::new(wire::HintSummary {}))
    }

    type ProposeStream = Out<wire::ProposalRefusal>;

    async fn propose(
        &self,
        request: Request<Streaming<wire::Proposal>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        let from = Caller::from_request(&request)?;
        let context = self.0.clone();
        let batches = request.into_inner().take_until(stopped(self.0.stop.clone()));
        let taker = self.0.clone();
        let taken = batches.then(move |batch| {
            let context = taker.clone();
            async move { context.take(from, batch?).await }
        });
        // The proposer sees accepted batches applied: only refusals are sent back.
        let refused = taken.map(|taken| async move {
            match taken {
                Ok(refused) => Ok(refused.await),
                Err(status) => Err(status),
            }
        });
        let refusals = refused.buffer_unordered(MAX_PENDING_BATCHES).filter_map(move |refused| {
            let refusal = |first| {
                context.metrics.batches_refused.add(1);
                let leader = context.leadership.borrow().leader.as_ref().map_or(0, |l| l.id.0);
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
        let from = Caller::from_request(&request)?;
        let wire::ReadIndexRequest { declines_leadership, policy } = request.into_inner();
        let accepts_leadership = !declines_leadership;
        let index = self.0.read_index.read().await.map_err(|e| Status::unavailable(e.to_string()))?;
        // A member that was removed, perhaps without knowing it, must not renew its lease.
        if !self.0.raft.is_member(from) {
            return Err(not_a_member(from));
        }
        // Raft counts it until the voters have changed: it must take part until then, but not forward.
        if self.0.engine.cluster_state().has_left(from) {
            return Err(Status::unavailable(format!("member {from} is being removed from this cluster")));
        }
        let term = self.0.raft.server_metrics().borrow_watched().vote.leader_id.term;
        self.0.contact.record(from, term, accepts_leadership);
        if let Some(report) = policy {
            let report = report.try_into().map_err(|e: MemberError| Status::invalid_argument(e.to_string()))?;
            self.0.policy_reports.record(from, report, |id| self.0.raft.is_member(id));
        }
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let durable = matched_index(&metrics, from);
        Ok(Response::new(wire::ReadIndexResponse { index, durable }))
    }

    async fn policy_reports(
        &self,
        request: Request<wire::PolicyReportsRequest>,
    ) -> Result<Response<wire::PolicyReportsResponse>, Status> {
        self.0.require_member(Caller::from_request(&request)?)?;
        let hash = policy_hash(&request.into_inner().hash).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(put::answer(&self.0.engine, &self.0.policy_reports, hash)))
    }

    async fn confirm(&self, request: Request<wire::ConfirmRequest>) -> Result<Response<wire::ConfirmResponse>, Status> {
        let from = Caller::from_request(&request)?;
        let vote = convert::vote_in(request.into_inner().vote)?;
        same(vote.leader_id.node_id, from, "a question whether it leads")?;
        let follows = read_index::follows(&self.0.raft, vote).await.map_err(fatal)?;
        Ok(Response::new(wire::ConfirmResponse { follows }))
    }

    type ConnectionLogStream = Out<wire::ConnectionLogBatch>;

    async fn connection_log(
        &self,
        request: Request<wire::ConnectionLogRequest>,
    ) -> Result<Response<Self::ConnectionLogStream>, Status> {
        self.0.require_member(Caller::from_request(&request)?)?;
        let batches = follow::batches(&self.0.connection_log)?.map(Ok);
        Ok(Response::new(Box::pin(batches.take_until(stopped(self.0.stop.clone())))))
    }

    async fn rule_hits(
        &self,
        request: Request<wire::RuleHitsRequest>,
    ) -> Result<Response<wire::RuleHitsResponse>, Status> {
        self.0.require_member(Caller::from_request(&request)?)?;
        Ok(Response::new(follow::rule_hits(&self.0.engine)))
    }

    async fn confirm_idle(&self, request: Request<wire::Sessions>) -> Result<Response<wire::Sessions>, Status> {
        let request = request.into_inner();
        let applied = request.applied;
        let mut ids: Vec<SessionId> = request.into();
        if ids.len() > MAX_PROBED_SESSIONS {
            return Err(Status::invalid_argument(format!("at most {MAX_PROBED_SESSIONS} sessions at a time")));
        }
        let reached =
            self.0.raft.wait(Some(IDLE_APPLY_TIMEOUT)).applied_index_at_least(Some(applied), "idle sessions").await;
        reached.map_err(|e| Status::unavailable(format!("this member is behind: {e}")))?;
        self.0.engine.confirm_idle(clock::now(), &mut ids);
        Ok(Response::new(wire::Sessions::from(&*ids)))
    }

    async fn presence(
        &self,
        request: Request<wire::PresenceRequest>,
    ) -> Result<Response<wire::PresenceResponse>, Status> {
        let from = Caller::from_request(&request)?;
        Ok(Response::new(wire::PresenceResponse {
            removed: self.0.engine.cluster_state().has_left(from),
            draining: *self.0.priority.borrow() != ElectionPriority::Normal,
            lease_valid: self.0.lease.state_at(clock::now()) == LeaseState::Valid,
            settings_revision: self.0.engine.cluster_state().settings.revision,
        }))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Result<Response<wire::UpdateResponse>, Status> {
        use wire::update_response::Answer;
        self.0.require_member(Caller::from_request(&request)?)?;
        let wire::UpdateRequest { member, name, address } = request.into_inner();
        let answer = if self.0.raft.is_leader() {
            admission::update(&self.0.admission.requests, &self.0.engine, MemberId(member), name, address).await?;
            Answer::Updated(wire::Empty {})
        } else {
            Answer::Leader(self.0.leader()?)
        };
        Ok(Response::new(wire::UpdateResponse { answer: Some(answer) }))
    }

    async fn digests(&self, request: Request<wire::DigestsRequest>) -> Result<Response<wire::DigestsResponse>, Status> {
        Ok(Response::new(self.0.audit.digests(&request.into_inner().indices).await?))
    }

    async fn report_divergence(
        &self,
        request: Request<wire::ReportDivergenceRequest>,
    ) -> Result<Response<wire::ReportDivergenceResponse>, Status> {
        self.0.require_member(Caller::from_request(&request)?)?;
        let wire::ReportDivergenceRequest { index, digest } = request.into_inner();
        self.0.audit.report_divergence(index, digest);
        Ok(Response::new(wire::ReportDivergenceResponse {}))
    }

    type SnapshotStream = Out<wire::SnapshotChunk>;

    async fn snapshot(
        &self,
        request: Request<wire::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.0.require_member(Caller::from_request(&request)?)?;
        let file = self.0.audit.snapshot(request.into_inner().index).await?;
        let chunks = snapshot::chunks(None, file).map(Ok).take_until(stopped(self.0.stop.clone()));
        Ok(Response::new(Box::pin(chunks)))
    }
}

#[tonic::async_trait]
impl AdmissionRpc for MemberService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        use wire::join_response::Answer;
        let request = request.into_inner();
        let info = request.member.ok_or_else(|| Status::invalid_argument("the field `member` is missing"))?;
        let info = MemberInfo::try_from(info).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let number = <[u8; 16]>::try_from(&*request.request);
        let number = number.map_err(|_| Status::invalid_argument("the field `request` does not have 16 bytes"))?;
        let answer = if self.0.raft.is_leader() {
            let levels = request.levels.map(Levels::from);
            let secret_digest = token::digest(&request.secret);
            let join = Join { request: JoinRequest(number), secret_digest, member: info };
            let (cluster, member) = self.0.admission.admit(join, levels, request.affordable_sessions).await?;
            Answer::Admitted(wire::Admitted { cluster, member: member.0 })
        } else {
            Answer::LeaderAddress(self.0.leader()?.address)
        };
        Ok(Response::new(wire::JoinResponse { answer: Some(answer) }))
    }
}
