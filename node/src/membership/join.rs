//! Making a cluster, and joining one: what gives a data folder its identity.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::replica::{Assignment, Batch, Command, MemberChange, Outcome, Settings, SettingsChange};
use palisade_engine::{JoinRequest, Level, Levels, MemberId};
use palisade_proto::member::v1 as wire;
use palisade_proto::member::v1::admission_client::AdmissionClient;
use palisade_raft_store::{LevelInForce, StoreOwner};
use tonic::Status;

use crate::affordable::UnaffordableError;
use crate::clock;
use crate::membership::admission::ADMISSION_TIMEOUT;
use crate::membership::error::MembershipError;
use crate::membership::identity::{DataDir, Identity};
use crate::membership::options::Options;
use crate::membership::token::Token;
use crate::peer::connections::Peers;
use crate::peer::transport::{self, Peer};
use crate::raft::config::PalisadeRaft;
use crate::raft::log_keeper::CutBelow;
use crate::raft::network::Network;
use crate::raft::receivers::SnapshotReceivers;
use crate::raft::start::{RaftSetup, RaftStartError, open_store, start_raft};
use crate::raft::unreadable::Refusals;
use crate::random::{RandomError, random};
use crate::wake::NoWake;
use tokio::task::spawn_blocking;

/// How long joining may take altogether: an election may be under way.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two rounds over the token's addresses.
const JOIN_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Members that are asked one after the other: the token's, the leader that it knows of, perhaps the next leader.
const MAX_REDIRECTS: usize = 3;

/// A new cluster's id.
pub(crate) fn random_cluster_id() -> Result<String, RandomError> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a new cluster with this machine as its first member. Afterwards `Replication::open` starts it.
///
/// # Errors
/// [`MembershipError`]; the data folder then belongs to no cluster.
pub async fn init(options: &Options) -> Result<Identity, MembershipError> {
    init_with(options, &[], "").await
}

/// The same with settings that differ from their defaults, which `author` chose.
///
/// # Errors
/// [`MembershipError`]; the data folder then belongs to no cluster.
pub async fn init_with(options: &Options, settings: &[Assignment], author: &str) -> Result<Identity, MembershipError> {
    let values = settings.iter().fold(Settings::default(), |all, one| all.with(one.key, one.value));
    let (needed, affords) = (values.affordable_sessions(), options.engine.affordable_sessions);
    if needed > affords {
        return Err(UnaffordableError { needed, affords }.into());
    }
    let data_dir = DataDir::lock(&options.data_dir)?;
    data_dir.ensure_unused()?;
    let cluster = random_cluster_id()?;
    let me = MemberId(1);

    // A Raft of one, without a listener: only to write the first entries.
    let peers = Peers::new(&cluster, me)?;
    let setup = RaftSetup {
        timing: &options.timing,
        disk: options.log.disk.clone(),
        engine: &options.engine,
        store: data_dir.new_store(),
        owner: StoreOwner { cluster: cluster.clone(), member: me },
        start: 0,
        network: Network {
            me,
            peers,
            response_timeout: options.timing.response_timeout,
            receivers: SnapshotReceivers::default(),
            cut: CutBelow::default(),
            metrics: Arc::default(),
            level: LevelInForce::default(),
            refusals: Refusals::default(),
        },
        wake: Box::new(NoWake),
        observer: Arc::new(()),
    };
    let raft = start_raft(setup).await?.raft;
    let written = write_first_entries(&raft, me, &cluster, options, settings, author).await;
    // Its result says nothing that `written` does not.
    let _ = raft.shutdown().await;
    written?;
    Ok(data_dir.write_identity(&cluster, me, &options.name)?)
}

async fn write_first_entries(
    raft: &PalisadeRaft,
    me: MemberId,
    cluster: &str,
    options: &Options,
    settings: &[Assignment],
    author: &str,
) -> Result<(), MembershipError> {
    let info = options.info();
    let members = BTreeMap::from([(me, info.clone())]);
    raft.initialize(members).await.map_err(|e| MembershipError::Raft(Box::new(e)))?;
    let led = raft.wait(Some(ADMISSION_TIMEOUT)).current_leader(me, "a new cluster's first leader").await;
    led.map_err(|_| MembershipError::Timeout("the first election"))?;
    let init =
        Command::Member(MemberChange::Init { cluster_id: cluster.to_owned(), member: info, level: Level::HIGHEST });
    let capabilities = options.capabilities();
    let mut commands = vec![init, Command::Member(MemberChange::Capabilities { member: me, capabilities })];
    if !settings.is_empty() {
        let change = SettingsChange::new(0, settings, Vec::new(), author.to_owned());
        commands.push(Command::Settings(Box::new(change)));
    }
    let count = commands.len();
    let batch = Batch { proposer: me, first_serial: 0, lowest_outstanding: 0, unix_ms: clock::unix_ms(), commands };
    let written = raft.client_write(batch).await.map_err(|e| MembershipError::Raft(Box::new(e)))?;
    let refused = written.data.0.iter().find_map(|outcome| match outcome {
        Outcome::Invalid(why) => Some(why.to_string()),
        _ => None,
    });
    match refused {
        Some(why) => Err(MembershipError::Refused(why)),
        None if written.data.0.len() == count => Ok(()),
        None => Err(MembershipError::Refused("the first commands were not answered".to_owned())),
    }
}

/// Joins the cluster of a token. Afterwards `Replication::open` starts the member; the cluster then brings it up to date and
/// lets it vote. It can be repeated wherever it was interrupted: the cluster registers this machine once.
///
/// # Errors
/// [`MembershipError`]; the data folder then belongs to no cluster.
pub async fn join(options: &Options, token: &str) -> Result<Identity, MembershipError> {
    let token = Token::from_str(token)?;
    let data_dir = DataDir::lock(&options.data_dir)?;
    if let Some(identity) = data_dir.identity()?
        && (identity.cluster.as_str(), identity.starts) == (&*token.cluster, 0)
    {
        // An attempt before was interrupted when all was done.
        data_dir.forget_join_request()?;
        return Ok(identity);
    }
    let admitted = admission(options, &data_dir, &token).await?;
    settle(options, &data_dir, &admitted).await
}

/// Has the cluster register this machine. Before it asks for the first time, the number of its request is durable.
pub(crate) async fn admission(
    options: &Options,
    data_dir: &DataDir,
    token: &Token,
) -> Result<wire::Admitted, MembershipError> {
    data_dir.check_unused()?;
    let request = data_dir.join_request(&token.cluster, JoinRequest(random()?))?;
    let admitted = tokio::time::timeout(JOIN_TIMEOUT, ask_to_join(options, token, request)).await;
    let admitted = admitted.map_err(|_| MembershipError::Timeout("joining"))??;
    if admitted.cluster != token.cluster {
        return Err(MembershipError::Refused(format!("it is cluster {}, not {}", admitted.cluster, token.cluster)));
    }
    Ok(admitted)
}

/// Makes the data folder that of the member that the cluster has registered.
pub(crate) async fn settle(
    options: &Options,
    data_dir: &DataDir,
    admitted: &wire::Admitted,
) -> Result<Identity, MembershipError> {
    let member = MemberId(admitted.member);
    // Not before: until a cluster has admitted this machine, the folder says what became of the last member here.
    data_dir.ensure_unused()?;
    mark_store(data_dir, &admitted.cluster, member).await?;
    let identity = data_dir.write_identity(&admitted.cluster, member, &options.name)?;
    data_dir.forget_join_request()?;
    Ok(identity)
}

/// Writes its owner into a new store, before the identity itself is written.
pub(crate) async fn mark_store(data_dir: &DataDir, cluster: &str, member: MemberId) -> Result<(), RaftStartError> {
    let (dir, cluster) = (data_dir.new_store(), cluster.to_owned());
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        return Ok(host.disk().set_owner(StoreOwner { cluster, member })?);
    }
    Ok(spawn_blocking(move || open_store(&dir)?.set_owner(StoreOwner { cluster, member })).await??)
}

/// Asks the token's members, again and again, until one admits this machine or refuses it.
async fn ask_to_join(
    options: &Options,
    token: &Token,
    request: JoinRequest,
) -> Result<wire::Admitted, MembershipError> {
    if token.addresses.is_empty() {
        return Err(MembershipError::NoAddress);
    }
    loop {
        for address in &token.addresses {
            if let Some(admitted) = ask_member(options, token, request, address).await? {
                return Ok(admitted);
            }
        }
        tokio::time::sleep(JOIN_RETRY_DELAY).await;
    }
}

/// Asks one member, and the leader that it names. `None` if that one does not answer.
async fn ask_member(
    options: &Options,
    token: &Token,
    number: JoinRequest,
    address: &str,
) -> Result<Option<wire::Admitted>, MembershipError> {
    use tonic::Code;
    use wire::join_response::Answer;
    let mut address = address.to_owned();
    for _ in 0..MAX_REDIRECTS {
        let request = wire::JoinRequest {
            secret: token.secret().to_vec().into(),
            member: Some(wire::MemberInfo::from(&options.info())),
            levels: Some(Levels::PROGRAM.into()),
            request: number.0.to_vec().into(),
            affordable_sessions: options.engine.affordable_sessions,
        };
        match ask_to_admit(&address, request).await {
            Ok(Some(Answer::Admitted(admitted))) => return Ok(Some(admitted)),
            Ok(Some(Answer::LeaderAddress(leader))) => address = leader,
            Ok(None) => return Err(MembershipError::Refused("its answer is empty".to_owned())),
            Err(status) => match status.code() {
                Code::PermissionDenied | Code::AlreadyExists | Code::InvalidArgument => {
                    return Err(MembershipError::Refused(status.message().to_owned()));
                }
                _ => {
                    tracing::info!(%address, %status, "a member did not admit this machine; trying again");
                    return Ok(None);
                }
            },
        }
    }
    Ok(None)
}

async fn ask_to_admit(
    address: &str,
    request: wire::JoinRequest,
) -> Result<Option<wire::join_response::Answer>, Status> {
    let channel = transport::channel(transport::connector(), Peer::Unknown, address)
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let answer = tokio::time::timeout(2 * ADMISSION_TIMEOUT, AdmissionClient::new(channel).join(request)).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner().answer)
}
