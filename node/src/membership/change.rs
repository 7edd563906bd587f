//! Making a cluster, joining and leaving it.
//!
//! The register of members is law: `Join` and `Leave` are commands in the log. Who votes follows from it: the leader's
//! task ([`crate::membership::leader`]) makes openraft's membership what the register says, step by step. So nothing is lost if a
//! leader dies half-way, and two changes at once can not contradict each other.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use palisade_engine::MemberId;
use palisade_engine::replica::{Batch, Command, MemberChange, MemberInfo, Outcome};
use palisade_proto::member::v1 as wire;
use palisade_proto::member::v1::admission_client::AdmissionClient;
use palisade_raft_store::{Identity as StoreIdentity, StoreError};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::clock;
use crate::membership::identity::{Folder, Identity, IdentityError};
use crate::membership::token::{self, Token, TokenError};
use crate::peer::route::{Lane, Peers};
use crate::peer::transport;
use crate::raft::network::Network;
use crate::replication::OpenError;
use crate::replication::Options;
use crate::replication::Replication;
use crate::replication::service::Parts;
use crate::replication::start::{mark_store, start_raft};
use crate::replication_metrics::ReplicationMetrics;
use crate::sync::propose::{Order, ProposeError};

/// How long the leader may take to let a member in.
const ADMIT: Duration = Duration::from_secs(5);
/// How long joining may take altogether: an election may be under way.
const JOIN: Duration = Duration::from_secs(20);

/// How long a change of the membership or a command of the administration may take.
pub(crate) const CHANGE: Duration = Duration::from_secs(5);

/// Why the membership could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store, or starting on it.
    #[error(transparent)]
    Open(#[from] Box<OpenError>),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The command was not confirmed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// No member of the token could be reached.
    #[error("no member of the cluster could be reached: {0}. Is the member port open between the machines?")]
    Unreachable(String),
    /// The cluster refused.
    #[error("the cluster refused: {0}")]
    Refused(String),
    /// A name that no member has.
    #[error("no member is named `{0}`; `palisade cluster members` lists them")]
    Unknown(String),
    /// Removing oneself.
    #[error("`{0}` is this member itself: use `palisade cluster leave`")]
    Myself(String),
    /// The last one.
    #[error("this is the cluster's last member: there is nothing to leave. Stop it and delete its data folder instead")]
    Last,
    /// It leads no longer, or not yet.
    #[error("this member does not lead; the leader is {0}")]
    NotLeader(String),
    /// It took too long.
    #[error("{0} did not happen in time; it may still happen. Is a majority of the members up?")]
    Late(&'static str),
    /// The operating system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl From<OpenError> for MembershipError {
    fn from(error: OpenError) -> MembershipError {
        MembershipError::Open(Box::new(error))
    }
}

impl From<StoreError> for MembershipError {
    fn from(error: StoreError) -> MembershipError {
        OpenError::Store(error).into()
    }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], MembershipError> {
    let mut bytes = [0; N];
    #[cfg(feature = "simulation")]
    if crate::simulation::with(|machine| machine.random(&mut bytes)).is_some() {
        return Ok(bytes);
    }
    getrandom::fill(&mut bytes).map_err(|e| MembershipError::Random(e.to_string()))?;
    Ok(bytes)
}

/// A new cluster's id.
pub(crate) fn random_cluster() -> Result<String, MembershipError> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a new cluster with this machine as its first member. Afterwards [`crate::replication::Replication::open`] starts it.
///
/// # Errors
/// [`MembershipError`]; the data folder then belongs to no cluster.
pub async fn init(options: &Options) -> Result<Identity, MembershipError> {
    let folder = Folder::lock(&options.data_dir)?;
    folder.fresh()?;
    let cluster = random_cluster()?;
    let me = MemberId(1);
    let info = options.info();

    // A Raft of one, without a listener: only to write the first entries.
    let peers = Peers::new(&cluster, me).map_err(|s| MembershipError::Refused(s.to_string()))?;
    let metrics = Arc::<ReplicationMetrics>::default();
    let network = Network { me, peers, answer: options.timing.answer, metrics };
    let owner = StoreIdentity { cluster: cluster.clone(), member: me };
    let started = start_raft(options, folder.new_store(), owner, 0, network, Box::new(NoWake), Arc::new(())).await?;
    let raft = started.raft;
    let first = async {
        let members = BTreeMap::from([(me, info.clone())]);
        raft.initialize(members).await.map_err(|e| MembershipError::Refused(e.to_string()))?;
        let led = raft.wait(Some(ADMIT)).current_leader(me, "a new cluster's first leader").await;
        led.map_err(|_| MembershipError::Late("the first election"))?;
        let init = Command::Member(MemberChange::Init { cluster: cluster.clone(), member: info });
        let batch = Batch { proposer: me, first: 0, floor: 0, unix_ms: clock::unix_ms(), commands: vec![init] };
        let written = raft.client_write(batch).await.map_err(|e| MembershipError::Refused(e.to_string()))?;
        match written.data.0.first() {
            Some(Outcome::Invalid(why)) => Err(MembershipError::Refused(why.clone())),
            Some(_) => Ok(()),
            None => Err(MembershipError::Refused("the first command was not answered".to_owned())),
        }
    };
    let done = first.await;
    // Its result says nothing that `done` does not.
    let _ = raft.shutdown().await;
    done?;
    Ok(folder.settle(&cluster, me, &options.name)?)
}

pub(crate) struct NoWake;

impl palisade_engine::Wake for NoWake {
    fn wake(&mut self, _: u64, _: palisade_engine::HoldKey) {}
}

/// Joins the cluster of a token. Afterwards [`crate::replication::Replication::open`] starts the member; the cluster then brings it up
/// to date and lets it vote.
///
/// # Errors
/// [`MembershipError`]; the data folder then belongs to no cluster.
pub async fn join(options: &Options, token: &str) -> Result<Identity, MembershipError> {
    let token = Token::from_str(token)?;
    let folder = Folder::lock(&options.data_dir)?;
    folder.fresh()?;
    let asked = tokio::time::timeout(JOIN, ask_to_join(options, &token)).await;
    let admitted = asked.map_err(|_| MembershipError::Late("joining"))??;
    if admitted.cluster != token.cluster {
        return Err(MembershipError::Refused(format!("it is cluster {}, not {}", admitted.cluster, token.cluster)));
    }
    let member = MemberId(admitted.member);
    mark_store(&folder, &admitted.cluster, member).await?;
    Ok(folder.settle(&admitted.cluster, member, &options.name)?)
}

async fn ask_to_join(options: &Options, token: &Token) -> Result<wire::Admitted, MembershipError> {
    use wire::join_response::Answer;
    let mut last = "the token names no address".to_owned();
    loop {
        for address in &token.addresses {
            let mut address = address.clone();
            // From a member to the leader it knows of, and perhaps from there to the next one.
            for _ in 0..3 {
                let request = wire::JoinRequest {
                    secret: token.secret().to_vec().into(),
                    member: Some(wire::MemberInfo::from(&options.info())),
                };
                match ask_one(&address, request).await {
                    Ok(Some(Answer::Admitted(admitted))) => return Ok(admitted),
                    Ok(Some(Answer::LeaderAddress(leader))) => address = leader,
                    Ok(None) => return Err(MembershipError::Refused("its answer is empty".to_owned())),
                    Err(status) => {
                        use tonic::Code;
                        last = format!("{address}: {}", status.message());
                        match status.code() {
                            Code::PermissionDenied | Code::AlreadyExists | Code::InvalidArgument => {
                                return Err(MembershipError::Refused(status.message().to_owned()));
                            }
                            _ => break,
                        }
                    }
                }
            }
        }
        if token.addresses.is_empty() {
            return Err(MembershipError::Unreachable(last));
        }
        tracing::info!(%last, "joining is tried again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn ask_one(address: &str, request: wire::JoinRequest) -> Result<Option<wire::join_response::Answer>, Status> {
    let channel = transport::channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let answer = tokio::time::timeout(2 * ADMIT, AdmissionClient::new(channel).join(request)).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner().answer)
}

impl Replication {
    /// Leaves the cluster: hands the lead over if need be, is struck off, and sets the identity aside. Afterwards the
    /// replication is to be shut down; the data folder belongs to no cluster any longer.
    ///
    /// # Errors
    /// [`MembershipError`]; the member is then still one.
    pub async fn leave(&self) -> Result<(), MembershipError> {
        let me = self.identity.member;
        if self.engine.view().members.keys().all(|id| *id == me) {
            return Err(MembershipError::Last);
        }
        // Best effort: a leader that is removed hands over too, only later.
        if let Err(error) = self.transfer_leadership(None).await {
            tracing::debug!(%error, "leaving without handing the lead over");
        }
        accepted(self.command(Command::Member(MemberChange::Leave(me)), CHANGE).await?)?;
        tokio::time::timeout(2 * CHANGE, self.struck_off()).await.map_err(|_| MembershipError::Late("leaving"))?;
        Ok(self.folder.retire()?)
    }

    /// Waits until this member does not vote and is not replicated to any longer.
    async fn struck_off(&self) {
        let me = self.identity.member;
        loop {
            let metrics = self.raft.server_metrics().borrow_watched().clone();
            if metrics.committed_membership_config.get_node(&me).is_none() {
                return;
            }
            // One that was struck off may never hear of it: ask.
            let leader = self.lead.borrow().leader.clone().filter(|leader| leader.id != me);
            if let Some(leader) = leader
                && let Ok(mut client) = self.peers.client(leader.id, &leader.address, Lane::Control)
            {
                let ask = client.read_index(wire::ReadIndexRequest { shuns_lead: true });
                if let Ok(Err(status)) = tokio::time::timeout(Duration::from_secs(1), ask).await
                    && status.code() == tonic::Code::PermissionDenied
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Strikes a dead member off.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn remove(&self, name: &str) -> Result<MemberId, MembershipError> {
        let view = self.engine.view();
        let found = view.members.iter().find(|(_, info)| info.name == name);
        let id = *found.ok_or_else(|| MembershipError::Unknown(name.to_owned()))?.0;
        if id == self.identity.member {
            return Err(MembershipError::Myself(name.to_owned()));
        }
        accepted(self.command(Command::Member(MemberChange::Leave(id)), CHANGE).await?)?;
        Ok(id)
    }
}

pub(crate) fn accepted(outcome: Outcome) -> Result<(), MembershipError> {
    match outcome {
        Outcome::Accepted | Outcome::Member(_) => Ok(()),
        Outcome::Invalid(why) => Err(MembershipError::Refused(why)),
        other => Err(MembershipError::Refused(format!("{other:?}"))),
    }
}

/// What letting a member in needs.
pub(crate) struct Admitting {
    pub(crate) cluster: Arc<str>,
    pub(crate) orders: mpsc::Sender<Order>,
}

/// On the leader: lets a machine in that knows a secret.
pub(crate) async fn admit(parts: &Parts, secret: &[u8], info: MemberInfo) -> Result<(String, MemberId), Status> {
    // The register as of now, not as of whenever: the token may have been made a moment ago, elsewhere.
    let index = parts.read_index.read().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let applied = parts.raft.wait(Some(ADMIT)).applied_index_at_least(Some(index), "an admission").await;
    applied.map_err(|e| Status::unavailable(e.to_string()))?;
    let digest = token::digest(secret);
    let now = clock::unix_ms();
    let view = parts.engine.view();
    if !view.tokens.iter().any(|(known, end)| *known == digest && *end > now) {
        return Err(Status::permission_denied(
            "the join token is unknown or has expired; make a new one with `palisade cluster token`",
        ));
    }
    let name = info.name.clone();
    let join = Command::Member(MemberChange::Join(info.clone()));
    let outcome = order(&parts.admitting.orders, join, ADMIT).await;
    match outcome.map_err(|e| Status::unavailable(e.to_string()))? {
        Outcome::Member(id) => {
            // The leader's task would do it too, but only at its next turn.
            if let Err(error) = parts.raft.add_learner(id, info, false).await {
                tracing::info!(%id, %error, "the new member becomes a learner later");
            }
            Ok((parts.admitting.cluster.to_string(), id))
        }
        Outcome::Conflict => Err(Status::already_exists(format!(
            "a member named `{name}` exists; choose another name, or `palisade cluster remove {name}` if it is gone"
        ))),
        other => Err(Status::internal(format!("the log answered {other:?}"))),
    }
}

/// Has a command committed, and returns what applying it here did.
pub(crate) async fn order(
    orders: &mpsc::Sender<Order>,
    command: Command,
    timeout: Duration,
) -> Result<Outcome, ProposeError> {
    let (reply, answer) = oneshot::channel();
    let deadline = clock::now() + timeout;
    let ordered = async {
        orders.send(Order { command, deadline, reply }).await.map_err(|_| ProposeError::Stopped)?;
        answer.await.map_err(|_| ProposeError::Stopped)?
    };
    // The proposer keeps the deadline; this one is for a proposer that hangs.
    let outer = timeout + Duration::from_millis(500);
    tokio::time::timeout(outer, ordered).await.unwrap_or(Err(ProposeError::Timeout))
}
