//! Opening a member's store, and starting openraft on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::RaftLogStorage;
use openraft::{Config as RaftConfig, Raft, SnapshotPolicy};
use palisade_engine::replica::Replica;
use palisade_engine::{Engine, MemberId, Wake};
use palisade_raft_store::{
    Auditor, Identity as StoreIdentity, Observer, Options as StoreOptions, Setup, Snapshots, StateMachine, Store,
    StoreError, StoreMetrics, TypeConfig,
};

use crate::clock;
use crate::membership::change;
use crate::membership::identity::Folder;
use crate::raft::network::Network;
use crate::replication::LogSize;
use crate::replication::OpenError;
use crate::replication::Options;
use crate::replication::PalisadeRaft;
use crate::replication::Timing;

/// How long the last tasks of a member that was shut down may hold its store.
const STORE_FREE: Duration = Duration::from_secs(5);

/// What [`start_raft`] makes.
pub(crate) struct Started {
    pub(crate) raft: PalisadeRaft,
    pub(crate) engine: Arc<Engine>,
    pub(crate) snapshots: Snapshots,
    pub(crate) auditor: Auditor<Replica>,
    pub(crate) store: StoreMetrics,
}

pub(crate) fn store_options() -> StoreOptions {
    StoreOptions::new(Arc::new(clock::now))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OpenError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|e| OpenError::Raft(e.to_string()))??)
}

/// Opens the store. The data folder is locked, so whoever still has the store is a remainder of this very process, of a
/// member that was shut down a moment ago: its last tasks are waited for.
pub(crate) fn open_store(dir: &Path) -> Result<Store, StoreError> {
    let end = clock::now() + STORE_FREE;
    loop {
        match Store::open(dir, store_options()) {
            Err(StoreError::Locked { .. }) if clock::now() < end => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
}

/// Writes into a new store whose it is, before the identity itself is written.
pub(crate) async fn mark_store(folder: &Folder, cluster: &str, member: MemberId) -> Result<(), OpenError> {
    let (dir, cluster) = (folder.new_store(), cluster.to_owned());
    #[cfg(feature = "simulation")]
    if let Some(machine) = crate::simulation::machine() {
        return Ok(machine.disk().set_identity(StoreIdentity { cluster, member })?);
    }
    blocking(move || open_store(&dir)?.set_identity(StoreIdentity { cluster, member })).await
}

/// Opens the store, makes the engine, replays, starts openraft. Start 0 is that of `init`: a new store.
pub(crate) async fn start_raft(
    options: &Options,
    store: PathBuf,
    owner: StoreIdentity,
    start: u32,
    network: Network,
    wake: Box<dyn Wake + Send>,
    observer: Arc<dyn Observer>,
) -> Result<Started, OpenError> {
    let me = owner.member;
    let config = raft_config(&options.timing, options.log, &owner.cluster)?;
    let seed = u64::from_ne_bytes(change::random().map_err(|e| OpenError::Raft(e.to_string()))?);
    let engine = Engine::new(palisade_engine::Config { member: me, start, seed, ..options.engine.clone() });
    let machine = Replica::new(engine.clone());
    #[cfg(feature = "simulation")]
    if let Some(simulated) = crate::simulation::machine() {
        let disk = simulated.disk();
        if disk.identity().is_none() && start > 0 {
            return Err(OpenError::LostLog(me));
        }
        disk.set_identity(owner)?;
        let (log, machine) = disk.open(Setup { machine, wake, observer })?;
        simulated.opened(machine.inspector());
        let auditor = machine.auditor();
        let raft = new_raft(me, config, network, log, machine).await?;
        return Ok(Started { raft, engine, snapshots: disk.snapshots(), auditor, store: StoreMetrics::default() });
    }
    let mut store = blocking(move || open_store(&store)).await?;
    if store.identity().is_none() && start > 0 {
        return Err(OpenError::LostLog(me));
    }
    let (snapshots, (log, machine)) = blocking(move || {
        store.set_identity(owner)?;
        Ok((store.snapshots(), store.into_parts(Setup { machine, wake, observer })?))
    })
    .await?;
    let store = log.metrics();
    let auditor = machine.auditor();
    let raft = new_raft(me, config, network, log, machine).await?;
    Ok(Started { raft, engine, snapshots, auditor, store })
}

async fn new_raft(
    me: MemberId,
    config: Arc<RaftConfig>,
    network: Network,
    log: impl RaftLogStorage<TypeConfig>,
    machine: StateMachine<Replica>,
) -> Result<PalisadeRaft, OpenError> {
    Raft::new(me, config, network, log, machine).await.map_err(|e| OpenError::Raft(e.to_string()))
}

fn raft_config(timing: &Timing, log: LogSize, cluster: &str) -> Result<Arc<RaftConfig>, OpenError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = RaftConfig {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        // openraft has two numbers for four things: the shorter one also limits votes, the longer one is also the lease.
        // When to stand is decided in `election`, not by openraft's own timer.
        election_timeout_min: ms(timing.vote()),
        election_timeout_max: ms(timing.election),
        // A million sessions must get through a slow link, beside the traffic.
        install_snapshot_timeout: ms(Duration::from_secs(600)),
        max_payload_entries: 256,
        // Members that are further behind than the log reaches get a snapshot; those within get entries.
        replication_lag_threshold: log.snapshot_every.saturating_add(log.keep),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(log.snapshot_every),
        max_in_snapshot_log_to_keep: log.keep,
        purge_batch_size: log.snapshot_every.min(1024),
        backoff: "20ms 50ms 100ms ...500ms".to_owned(),
        enable_pre_vote: Some(true),
        // A leader that restarts has forgotten what it had not yet committed to disk; it must be elected like any other.
        enable_leader_restore: Some(false),
        ..RaftConfig::default()
    };
    config.validate().map(Arc::new).map_err(|e| OpenError::Timing(e.to_string()))
}
