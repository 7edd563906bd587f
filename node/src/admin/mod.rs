//! The administration: gRPC over the unix socket. An admin's command goes from here to the log
//! ([`crate::replication::Replication::command`]), and what it did comes back as its outcome.
//!
//! Consistency of reads: `admin.proto` names it for each of them. A *local* read asks the engine. A *barrier* waits first until
//! everything is applied here that was committed before the request ([`crate::replication::Replication::read_barrier`]).

mod audit;
mod connections;
mod drain;
mod log;
mod policy;
mod rule_names;
mod sessions;
mod settings;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use miette::Diagnostic;
use palisade_engine::replica::Outcome;
use palisade_engine::{LeaseState, Level, Role};
use palisade_proto::admin::v1;
use palisade_proto::admin::v1::admin_server::{Admin, AdminServer};
use tonic::codegen::Bytes;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use crate::clock;
use crate::daemon::{ChangeError, Daemon, Outside};
use crate::datapath::Nft;
use crate::member::{Member, PROGRAM_VERSION};
use crate::readiness::Grade;
use crate::replication::{
    MembershipError, NoQuorum, ProposeError, RaftRole, ReadBarrierError, Removal, Suffrage, TransferError,
};

use connections::Caller;
pub(crate) use socket::Socket;
pub use socket::SocketError;

/// The gRPC trailer that says what to do next.
pub const HELP: &str = "palisade-help-bin";

/// How long a command may take, an election included.
const COMMAND: Duration = Duration::from_secs(10);
/// The longest wait for a quorum.
const MAX_QUORUM_WAIT: Duration = Duration::from_secs(600);
/// Interval at which a request that waits looks whether the lease is valid.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Requests at once on one connection, of which people need one.
const REQUESTS: u32 = 16;
/// The largest request is a policy.
const REQUEST_BYTES: usize = palisade_engine::policy::MAX_TEXT + (64 << 10);

/// Serves the socket until it is dropped.
pub(crate) async fn serve(socket: Socket, daemon: Arc<Daemon>) {
    let limits = daemon.admin_limits();
    let service = AdminServer::new(Service(daemon)).max_decoding_message_size(REQUEST_BYTES);
    let checked = tonic::service::interceptor::InterceptedService::new(service, check);
    let Socket { listener, .. } = &socket;
    // The file must go when this is dropped, so the socket stays here and the stream has a copy of the descriptor.
    let copy = match duplicate(listener) {
        Ok(copy) => copy,
        Err(error) => return tracing::error!(%error, "the admin socket cannot be served"),
    };
    let served = Server::builder()
        .max_concurrent_streams(REQUESTS)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(checked)
        .serve_with_incoming(connections::incoming(copy, limits))
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin socket was closed");
    }
    drop(socket);
}

fn duplicate(listener: &tokio::net::UnixListener) -> std::io::Result<tokio::net::UnixListener> {
    use std::os::fd::AsFd;
    let copy = listener.as_fd().try_clone_to_owned()?;
    tokio::net::UnixListener::from_std(copy.into())
}

/// Who calls?
fn check(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Caller>().cloned() {
        Some(caller) if caller.allowed => Ok(request),
        Some(Caller { uid, name, .. }) => {
            let user = name.unwrap_or_else(|| format!("uid {uid}"));
            Err(Status::permission_denied(format!("user {user} may not administrate")))
        }
        None => Err(Status::permission_denied("who is calling is not known")),
    }
}

/// A status with what to do next.
fn refuse(code: Code, message: impl Into<String>, help: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(HELP, tonic::metadata::MetadataValue::from_bytes(help.as_bytes()));
    Status::with_details_and_metadata(code, message, Bytes::new(), metadata)
}

/// The status of an error, with its causes and its help.
fn status(code: Code, e: &impl Diagnostic) -> Status {
    let message = crate::error::chain(e);
    match e.help() {
        Some(help) => refuse(code, message, &help.to_string()),
        None => Status::new(code, message),
    }
}

impl From<ChangeError> for Status {
    fn from(e: ChangeError) -> Status {
        let code = match &e {
            ChangeError::Busy | ChangeError::NotAMember | ChangeError::Removed(_) | ChangeError::AlreadyMember(_) => {
                Code::FailedPrecondition
            }
            ChangeError::Starting | ChangeError::NoQuorum(_) => Code::Unavailable,
            ChangeError::Timeout => Code::DeadlineExceeded,
            ChangeError::Membership(e) => code(e),
            ChangeError::Start(_) => Code::Internal,
        };
        status(code, &e)
    }
}

impl From<MembershipError> for Status {
    fn from(e: MembershipError) -> Status {
        status(code(&e), &e)
    }
}

fn code(e: &MembershipError) -> Code {
    match e {
        MembershipError::Token(_) => Code::InvalidArgument,
        MembershipError::Propose(_)
        | MembershipError::NoAddress
        | MembershipError::Timeout(_)
        | MembershipError::Transfer(TransferError::Timeout) => Code::Unavailable,
        MembershipError::NoSuchMember(_) => Code::NotFound,
        MembershipError::Identity(_)
        | MembershipError::Unaffordable(_)
        | MembershipError::Refused(_)
        | MembershipError::CannotRemoveSelf(_)
        | MembershipError::LastMember
        | MembershipError::QuorumAtRisk { .. }
        | MembershipError::Raise(_)
        | MembershipError::Transfer(_)
        | MembershipError::Raft(_) => Code::FailedPrecondition,
        MembershipError::Start(_) | MembershipError::ClusterId(_) | MembershipError::Random(_) => Code::Internal,
    }
}

fn unconfirmed(e: &ProposeError) -> Status {
    status(Code::Unavailable, e)
}

fn stale(e: &ReadBarrierError) -> Status {
    let help = "see `palisade cluster status`; a read without `--barrier` answers with what this member has";
    refuse(Code::Unavailable, format!("the answer could be out of date: {e}"), help)
}

/// What an outcome that is not the expected one means to an admin.
fn unexpected(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Invalid(why) => Status::invalid_argument(why.to_string()),
        Outcome::Conflict => Status::aborted("somebody else was faster"),
        other => Status::internal(format!("the log answered {other:?}")),
    }
}

/// The service.
struct Service(Arc<Daemon>);

impl Service {
    fn member(&self) -> Result<Arc<Member>, Status> {
        Ok(self.0.require_member()?)
    }

    async fn member_at(&self, barrier: bool, wait_ms: u64) -> Result<Arc<Member>, Status> {
        let member = self.member()?;
        if barrier {
            require_quorum(&member, wait_ms).await?;
            member.replication.read_barrier(COMMAND).await.map_err(|e| stale(&e))?;
        }
        Ok(member)
    }

    fn status(&self) -> v1::StatusResponse {
        let config = self.0.config();
        let member = self.0.member();
        let outside = self.0.outside();
        let removed = match &outside {
            Some(Outside::Removed(removed)) => Some(removed),
            _ => None,
        };
        v1::StatusResponse {
            name: config.name.clone(),
            version: PROGRAM_VERSION.to_owned(),
            role: v1::Role::from(config.role).into(),
            membership: member.as_ref().map(|m| membership(m)),
            health: Some(self.health_now()),
            datapath: member.as_ref().and_then(|m| datapath(config.datapath.workers, m)),
            draining: self.0.draining().as_ref().map(drain::message),
            outside: match &outside {
                None => v1::Outside::Unspecified,
                Some(Outside::NoCluster) => v1::Outside::NoCluster,
                Some(Outside::Starting) => v1::Outside::Starting,
                Some(Outside::Removed(_)) => v1::Outside::Removed,
            }
            .into(),
            removed_from: removed.map(|r| r.cluster.clone()).unwrap_or_default(),
            removed_member: removed.map_or(0, |r| r.member.0),
        }
    }

    fn health_now(&self) -> v1::Health {
        let mut reasons = self.0.stuck_threads();
        let readiness = self.0.readiness();
        let ready = reasons.is_empty() && readiness.grade == Grade::Full;
        reasons.extend(readiness.reasons);
        let grade = match readiness.grade {
            Grade::Full => v1::Readiness::Full,
            Grade::Fallback => v1::Readiness::Fallback,
            Grade::Withdraw => v1::Readiness::Withdraw,
        };
        v1::Health { ready, reasons, readiness: grade.into() }
    }
}

fn membership(member: &Member) -> v1::Membership {
    let s = member.replication.status();
    let counts = member.engine.counts();
    let metrics = member.replication.metrics();
    let leads = s.role == RaftRole::Leader;
    let raft_role = match s.role {
        RaftRole::Leader => v1::RaftRole::Leader,
        RaftRole::Follower => v1::RaftRole::Follower,
        RaftRole::Candidate => v1::RaftRole::Candidate,
        RaftRole::Learner => v1::RaftRole::Learner,
        RaftRole::Stopped => v1::RaftRole::Stopped,
    };
    let cluster = member.engine.cluster_state();
    let one = |m: crate::replication::Member| v1::Member {
        zones: cluster.member_zones.get(&m.id).cloned().unwrap_or_default(),
        capabilities: cluster.capabilities.get(&m.id).map(|known| v1::Capabilities {
            lowest_level: known.lowest.0.into(),
            highest_level: known.highest.0.into(),
            program: known.program.clone(),
            max_sessions: known.max_sessions,
        }),
        id: m.id.0,
        name: m.info.name,
        address: m.info.address,
        role: v1::Role::from(m.info.role).into(),
        leader: m.leader,
        voter: m.voter,
        lag: m.lag,
        reachable: m.reachable,
        cannot_read: m.cannot_read,
        suffrage: match m.suffrage {
            Suffrage::Learner => v1::Suffrage::Learner,
            Suffrage::Voter => v1::Suffrage::Voter,
            Suffrage::BecomingVoter => v1::Suffrage::BecomingVoter,
            Suffrage::BecomingLearner => v1::Suffrage::BecomingLearner,
        }
        .into(),
        draining: m.draining,
        lease_valid: m.lease_valid,
        removed: m.removed,
        joining: m.joining,
    };
    v1::Membership {
        cluster: s.cluster,
        id: s.member.0,
        as_of: Some(v1::AsOf { lease: v1::LeaseState::from(s.lease).into(), applied: s.applied.unwrap_or(0) }),
        raft_role: raft_role.into(),
        term: s.term,
        leader: s.leader.map_or(0, |id| id.0),
        last_log: s.last_log.unwrap_or(0),
        generation: member.engine.generation().0,
        members: s.members.into_iter().map(one).collect(),
        level: cluster.level.0.into(),
        possible_level: cluster.possible_level().0.into(),
        sessions: counts.sessions.iter().map(|(_, _, n)| n).sum(),
        half_open: counts.half_open,
        audited_index: if leads { metrics.audited_index.get() } else { 0 },
        suspect: metrics.state_suspect.get() != 0,
        quorum: Some(v1::Quorum {
            held: s.quorum.held,
            voters: count(s.quorum.voters),
            answering: count(s.quorum.answering),
            changing: s.quorum.changing,
        }),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn datapath(workers: usize, member: &Member) -> Option<v1::Datapath> {
    let status = member.datapath()?.status();
    let cluster = member.engine.cluster_state();
    let in_force = cluster.policies.last();
    let interfaces = status.interfaces.into_iter().map(|i| v1::Interface {
        zone_known: in_force.is_some_and(|policy| policy.zones.contains(&i.zone)),
        name: i.name,
        zone: i.zone,
        up: i.up,
    });
    let gate = match (status.gate.rules, &status.gate.nft) {
        (true, Nft::Installed) => "rules and nftables",
        (true, Nft::Missing | Nft::Unavailable(_)) => "rules only",
        (false, Nft::Installed) => "nftables only",
        (false, Nft::Missing | Nft::Unavailable(_)) => "OPEN",
    };
    Some(v1::Datapath {
        mode: status.mode.to_owned(),
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        interfaces: interfaces.collect(),
        gate: gate.to_owned(),
        warnings: status.warnings,
    })
}

#[tonic::async_trait]
impl Admin for Service {
    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        let user = audit::user(&request).await;
        let texts = request.into_inner().settings;
        let what =
            ["cluster init"].into_iter().chain(texts.iter().map(String::as_str)).collect::<Vec<_>>().join(" --set ");
        let made = match settings::parse(&texts) {
            Ok(values) => self.0.init(values, user.clone()).await.map_err(Status::from),
            Err(refused) => Err(refused),
        };
        let member = audit::log(&user, what.escape_debug(), made)?;
        let identity = member.replication.identity();
        Ok(Response::new(v1::InitResponse { cluster: identity.cluster.clone(), member: identity.member.0 }))
    }

    async fn token(&self, request: Request<v1::TokenRequest>) -> Result<Response<v1::TokenResponse>, Status> {
        let user = audit::user(&request).await;
        let v1::TokenRequest { valid_ms, wait_ms } = request.into_inner();
        let what = format!("cluster token, valid for {:?}", Duration::from_millis(valid_ms));
        audit::log(&user, what, self.create_token(valid_ms, wait_ms).await).map(Response::new)
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let user = audit::user(&request).await;
        let v1::JoinRequest { token, abandon } = request.into_inner();
        let what = if abandon { "cluster join --abandon" } else { "cluster join" };
        let joined = audit::log(&user, what, self.0.join(token, abandon).await.map_err(Status::from))?;
        let identity = joined.member.replication.identity();
        Ok(Response::new(v1::JoinResponse {
            cluster: identity.cluster.clone(),
            member: identity.member.0,
            voter: joined.voter,
            voters: count(joined.voters),
        }))
    }

    type LeaveStream = sessions::Answers<v1::LeaveResponse>;

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<Self::LeaveStream>, Status> {
        let user = audit::user(&request).await;
        Ok(Response::new(Service::leave(self, user, request.into_inner())))
    }

    type DrainStream = sessions::Answers<v1::DrainResponse>;

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let user = audit::user(&request).await;
        audit::log(&user, "drain", Service::drain(self, request.into_inner())).map(Response::new)
    }

    async fn undrain(&self, request: Request<v1::UndrainRequest>) -> Result<Response<v1::UndrainResponse>, Status> {
        audit::log(&audit::user(&request).await, "undrain", Service::undrain(self)).map(Response::new)
    }

    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        let user = audit::user(&request).await;
        let request = request.into_inner();
        let what = format!(
            "cluster remove {}{}",
            request.member.escape_debug(),
            if request.alive_too { " --yes" } else { "" }
        );
        let removed = match self.remove_member(request).await {
            // Nothing was done yet: the caller is asked.
            Ok(answer) if answer.alive => Ok(answer),
            result => audit::log(&user, what, result),
        };
        removed.map(Response::new)
    }

    async fn level_raise(
        &self,
        request: Request<v1::LevelRaiseRequest>,
    ) -> Result<Response<v1::LevelRaiseResponse>, Status> {
        let user = audit::user(&request).await;
        let v1::LevelRaiseRequest { level, wait_ms } = request.into_inner();
        let what = format!("cluster level raise {level}");
        audit::log(&user, what, self.raise_level(level, wait_ms).await).map(Response::new)
    }

    async fn update(&self, request: Request<v1::UpdateRequest>) -> Result<Response<v1::UpdateResponse>, Status> {
        let user = audit::user(&request).await;
        let request = request.into_inner();
        let what = format!(
            "cluster update, member {:?}, name {:?}, address {:?}",
            request.member, request.name, request.address
        );
        audit::log(&user, what, self.update_member(request).await).map(Response::new)
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<v1::AuditResponse>, Status> {
        let member = self.member()?;
        require_quorum(&member, request.into_inner().wait_ms).await?;
        let report = member.replication.audit(COMMAND).await.map_err(|e| stale(&e))?;
        let members = report.members.into_iter();
        let members = members.map(|(id, info, digest)| v1::MemberDigest { id: id.0, name: info.name, digest });
        Ok(Response::new(v1::AuditResponse { index: report.index, members: members.collect() }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(Service::status(self)))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthResponse>, Status> {
        Ok(Response::new(v1::HealthResponse { health: Some(self.health_now()) }))
    }

    async fn policy_check(
        &self,
        request: Request<v1::PolicyCheckRequest>,
    ) -> Result<Response<v1::PolicyCheckResponse>, Status> {
        self.check_policy(request.into_inner()).map(Response::new)
    }

    async fn policy_apply(
        &self,
        request: Request<v1::PolicyApplyRequest>,
    ) -> Result<Response<v1::PolicyApplyResponse>, Status> {
        let user = audit::user(&request).await;
        let request = request.into_inner();
        let what = format!("policy apply {}", request.name.escape_debug());
        audit::log(&user, what, self.apply_policy(request, &user).await).map(Response::new)
    }

    async fn policy_show(
        &self,
        request: Request<v1::PolicyShowRequest>,
    ) -> Result<Response<v1::PolicyShowResponse>, Status> {
        self.show_policy(request.into_inner()).await.map(Response::new)
    }

    async fn policy_history(
        &self,
        request: Request<v1::PolicyHistoryRequest>,
    ) -> Result<Response<v1::PolicyHistoryResponse>, Status> {
        self.policies(request.into_inner()).await.map(Response::new)
    }

    type SessionListStream = sessions::Answers<v1::SessionListResponse>;

    async fn session_list(
        &self,
        request: Request<v1::SessionListRequest>,
    ) -> Result<Response<Self::SessionListStream>, Status> {
        self.list(request.into_inner()).map(Response::new)
    }

    async fn session_show(
        &self,
        request: Request<v1::SessionShowRequest>,
    ) -> Result<Response<v1::SessionShowResponse>, Status> {
        self.show(request.into_inner()).map(Response::new)
    }

    type SessionWatchStream = sessions::Answers<v1::SessionWatchResponse>;

    async fn session_watch(
        &self,
        request: Request<v1::SessionWatchRequest>,
    ) -> Result<Response<Self::SessionWatchStream>, Status> {
        self.watch(request.into_inner()).await.map(Response::new)
    }

    async fn session_kill(
        &self,
        request: Request<v1::SessionKillRequest>,
    ) -> Result<Response<v1::SessionKillResponse>, Status> {
        let user = audit::user(&request).await;
        let request = request.into_inner();
        let what = sessions::describe_kill(&request);
        let killed = self.kill(request).await;
        let what = format!("{what}: {} killed", killed.as_ref().map_or(0, |k| k.killed));
        audit::log(&user, what, killed).map(Response::new)
    }

    async fn session_count(
        &self,
        request: Request<v1::SessionCountRequest>,
    ) -> Result<Response<v1::SessionCountResponse>, Status> {
        self.count(request.into_inner()).await.map(Response::new)
    }

    async fn policy_hits(&self, _: Request<v1::PolicyHitsRequest>) -> Result<Response<v1::PolicyHitsResponse>, Status> {
        Service::policy_hits(self).await.map(Response::new)
    }

    type LogStream = sessions::Answers<v1::LogResponse>;

    async fn log(&self, request: Request<v1::LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        self.follow_log(request.into_inner()).map(Response::new)
    }

    async fn settings_show(
        &self,
        request: Request<v1::SettingsShowRequest>,
    ) -> Result<Response<v1::SettingsShowResponse>, Status> {
        self.show_settings(request.into_inner()).await.map(Response::new)
    }

    async fn settings_set(
        &self,
        request: Request<v1::SettingsSetRequest>,
    ) -> Result<Response<v1::SettingsSetResponse>, Status> {
        let user = audit::user(&request).await;
        let request = request.into_inner();
        let what = settings::describe(&request);
        audit::log(&user, what, self.set_settings(request, &user).await).map(Response::new)
    }

    async fn gate(&self, _: Request<v1::GateRequest>) -> Result<Response<v1::GateResponse>, Status> {
        let bypass_interfaces = self.0.config().datapath.bypass_interfaces.clone();
        Ok(Response::new(v1::GateResponse { bypass_interfaces }))
    }
}

/// A witness has no interfaces, so it says nothing about zones.
fn own_zones(daemon: &Daemon) -> Vec<String> {
    if daemon.config().role == Role::Witness {
        return Vec::new();
    }
    daemon.config().interfaces.iter().map(|i| i.zone.clone()).collect()
}

impl Service {
    async fn create_token(&self, valid_ms: u64, wait_ms: u64) -> Result<v1::TokenResponse, Status> {
        let member = self.member()?;
        require_quorum(&member, wait_ms).await?;
        let expires_unix_ms = clock::unix_ms().saturating_add(valid_ms);
        let token = member.replication.token(Duration::from_millis(valid_ms)).await?;
        Ok(v1::TokenResponse { token, expires_unix_ms })
    }

    async fn raise_level(&self, level: u32, wait_ms: u64) -> Result<v1::LevelRaiseResponse, Status> {
        let member = self.member()?;
        let to = u16::try_from(level).map_err(|_| Status::invalid_argument("there is no such level"))?;
        // Decided on what this member has applied.
        require_lease(&member, wait_ms).await?;
        member.replication.raise_level(Level(to)).await?;
        Ok(v1::LevelRaiseResponse { level: member.engine.cluster_state().level.0.into() })
    }

    /// Without a name and an address: what this member's node.toml says.
    async fn update_member(&self, r: v1::UpdateRequest) -> Result<v1::UpdateResponse, Status> {
        let member = self.member()?;
        let (name, address) = match (r.name, r.address, &r.member) {
            (None, None, None) => (Some(member.info().name.clone()), Some(member.info().address.clone())),
            (name, address, _) => (name, address),
        };
        let id = member.replication.update(r.member.as_deref(), name.clone(), address.clone()).await?;
        // One that has moved may not have applied it yet.
        let info = member.engine.cluster_state().members.get(&id).cloned().unwrap_or_default();
        Ok(v1::UpdateResponse {
            member: id.0,
            name: name.unwrap_or(info.name),
            address: address.unwrap_or(info.address),
        })
    }

    async fn remove_member(&self, r: v1::RemoveRequest) -> Result<v1::RemoveResponse, Status> {
        let member = self.member()?;
        require_quorum(&member, r.wait_ms).await?;
        Ok(match member.replication.remove(&r.member, r.alive_too).await? {
            Removal::Removed(id) => v1::RemoveResponse { member: id.0, alive: false },
            Removal::Alive(id) => v1::RemoveResponse { member: id.0, alive: true },
        })
    }
}

fn quorum_wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms).min(MAX_QUORUM_WAIT)
}

/// The one rule for all requests that need a quorum: without one they are refused at once, unless they want to wait.
async fn require_quorum(member: &Member, wait_ms: u64) -> Result<(), Status> {
    member.replication.require_quorum(quorum_wait(wait_ms)).await.map_err(|e| no_quorum(&e))
}

fn no_quorum(e: &NoQuorum) -> Status {
    status(Code::Unavailable, e)
}

/// The same for changes that are decided on what this member has applied: it must have a valid lease.
async fn require_lease(member: &Member, wait_ms: u64) -> Result<(), Status> {
    let (begin, wait) = (clock::now(), quorum_wait(wait_ms));
    require_quorum(member, wait_ms).await?;
    while member.lease_state() != LeaseState::Valid {
        if clock::now().since(begin) >= wait {
            let help = "see `palisade cluster status`; ask another member, or wait: `--wait 30s`";
            let message = "this member has no valid lease, although there is a quorum: nothing was changed";
            return Err(refuse(Code::Unavailable, message, help));
        }
        tokio::time::sleep(LEASE_POLL_INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
