//! Opening a member's store, and starting openraft on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::Fatal;
use openraft::storage::RaftLogStorage;
use openraft::{Config as RaftConfig, ConfigError, Raft};
use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId, Wake};
use palisade_raft_store::{
    Auditor, LevelInForce, Observer, Options as StoreOptions, Planner, Setup, SlowDisk, Snapshots, StateMachine, Store,
    StoreError, StoreMetrics, StoreOwner, TypeConfig, Unreadable,
};

use crate::clock;
use crate::raft::config::{PalisadeRaft, Timing, raft_config};
use crate::raft::network::Network;
use crate::raft::unreadable::REMEDY;
use crate::random::{RandomError, random};
use tokio::task::spawn_blocking;

/// How long the last tasks of a member that was shut down may hold its store.
const STORE_RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why openraft could not be started on a member's store.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RaftStartError {
    /// The store.
    #[error(transparent)]
    Store(StoreError),
    /// Another version of Palisade wrote something into the store that this one cannot read.
    #[error("this program cannot read what is in {}", dir.display())]
    #[diagnostic(help("{}", REMEDY))]
    Unreadable {
        /// The store's folder.
        dir: PathBuf,
        /// What cannot be read.
        source: Unreadable,
    },
    /// The store is not the one that belongs to the identity.
    #[error("the log of member {0} is gone, though it has voted under that id")]
    #[diagnostic(help(
        "move the data folder away, join again under a new id (`palisade cluster join`), and remove the old member (`palisade cluster remove`)"
    ))]
    LostLog(MemberId),
    /// The configured times.
    #[error("the timing of Raft is invalid")]
    Timing(#[source] Box<ConfigError>),
    /// openraft.
    #[error("Raft did not start")]
    Raft(#[source] Box<Fatal<TypeConfig>>),
    /// The seed of the engine.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// A task on the store was cancelled, or panicked.
    #[error("the store was not opened")]
    Task(#[from] tokio::task::JoinError),
}

impl From<StoreError> for RaftStartError {
    fn from(error: StoreError) -> RaftStartError {
        match error {
            StoreError::Unreadable { dir, unreadable } => RaftStartError::Unreadable { dir, source: unreadable },
            error => RaftStartError::Store(error),
        }
    }
}

/// What a member's Raft is started with.
pub(crate) struct RaftSetup<'a> {
    pub(crate) timing: &'a Timing,
    /// The disk that the store is on.
    pub(crate) disk: SlowDisk,
    /// The engine's sizes; `member`, `start` and `seed` are filled in here.
    pub(crate) engine: &'a palisade_engine::Config,
    /// The folder of the store.
    pub(crate) store: PathBuf,
    /// The cluster and the member that the store belongs to.
    pub(crate) owner: StoreOwner,
    /// The number of this start; 0 for a new store.
    pub(crate) start: u32,
    pub(crate) network: Network,
    pub(crate) wake: Box<dyn Wake + Send>,
    pub(crate) observer: Arc<dyn Observer>,
}

/// What [`start_raft`] makes.
pub(crate) struct Started {
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) snapshots: Snapshots,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) planner: Planner<Replica>,
    pub(crate) store: StoreMetrics,
    pub(crate) level: LevelInForce,
}

/// The options of every store of the daemon.
pub(crate) fn store_options() -> StoreOptions {
    StoreOptions::new(Arc::new(clock::now))
}

/// Opens the store. The data folder is locked by this process, so the store can only be in use by the last tasks of a
/// member that this process has just shut down: they are waited for.
pub(crate) fn open_store(dir: &Path) -> Result<Store, StoreError> {
    open_store_on(dir, &SlowDisk::default())
}

fn open_store_on(dir: &Path, disk: &SlowDisk) -> Result<Store, StoreError> {
    let end = clock::now() + STORE_RELEASE_TIMEOUT;
    loop {
        match Store::open(dir, StoreOptions { disk: disk.clone(), ..store_options() }) {
            Err(StoreError::Locked { .. }) if clock::now() < end => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
}

/// Opens the store, makes the engine, replays the log and starts openraft.
pub(crate) async fn start_raft(setup: RaftSetup<'_>) -> Result<Started, RaftStartError> {
    let RaftSetup { timing, disk, engine, store, owner, start, network, wake, observer } = setup;
    let me = owner.member;
    let config = raft_config(timing, &owner.cluster).map_err(|e| RaftStartError::Timing(Box::new(e)))?;
    let seed = u64::from_ne_bytes(random()?);
    let engine = Engine::new(palisade_engine::Config { member: me, start, seed, ..engine.clone() });
    network.peers.follow_register(engine.clone());
    let machine = Replica::new(engine.clone());
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        let disk = host.disk();
        if disk.owner().is_none() && start > 0 {
            return Err(RaftStartError::LostLog(me));
        }
        disk.set_owner(owner)?;
        let (log, machine) = disk.open(Setup { state: machine, wake, observer })?;
        host.opened(machine.inspector());
        let (auditor, planner, level) = (machine.auditor(), machine.planner(), machine.level_in_force());
        let network = Network { level: level.clone(), ..network };
        let raft = new_raft(me, config, network, log, machine).await?;
        let (snapshots, store) = (disk.snapshots(), StoreMetrics::default());
        return Ok(Started { raft, engine, snapshots, auditor, planner, store, level });
    }
    let mut store = spawn_blocking(move || open_store_on(&store, &disk)).await??;
    if store.owner().is_none() && start > 0 {
        return Err(RaftStartError::LostLog(me));
    }
    let (snapshots, (log, machine)) = spawn_blocking(move || {
        store.set_owner(owner)?;
        Ok::<_, StoreError>((store.snapshots(), store.into_parts(Setup { state: machine, wake, observer })?))
    })
    .await??;
    let store = log.metrics();
    let (auditor, planner, level) = (machine.auditor(), machine.planner(), machine.level_in_force());
    let network = Network { level: level.clone(), ..network };
    let raft = new_raft(me, config, network, log, machine).await?;
    Ok(Started { raft, engine, snapshots, auditor, planner, store, level })
}

async fn new_raft(
    me: MemberId,
    config: Arc<RaftConfig>,
    network: Network,
    log: impl RaftLogStorage<TypeConfig>,
    machine: StateMachine<Replica>,
) -> Result<PalisadeRaft, RaftStartError> {
    Raft::new(me, config, network, log, machine).await.map_err(|e| RaftStartError::Raft(Box::new(e)))
}
