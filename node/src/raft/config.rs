//! openraft with this program's types, and its configuration.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config as RaftConfig, ConfigError, Raft, SnapshotPolicy};
use palisade_engine::replica::Replica;
use palisade_raft_store::{LogLimits, SlowDisk, StateMachine, TypeConfig};

/// openraft with this program's types.
pub(crate) type PalisadeRaft = Raft<TypeConfig, StateMachine<Replica>>;

/// The timing of Raft.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// How long a member keeps to its leader after the last contact (openraft's leader lease); then members campaign, one
    /// after another. A vote, which waits for a disk, may take three quarters of it.
    pub election: Duration,
    /// How long a replication stream may be without a response.
    pub response_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(40),
            election: Duration::from_millis(160),
            response_timeout: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// How long a vote may take.
    pub(crate) fn vote(&self) -> Duration {
        self.election * 3 / 4
    }
}

/// How long the log may get, and the disk that it is on.
#[derive(Clone, Debug, Default)]
pub struct LogSize {
    /// When a snapshot is made, and what is kept of the log.
    pub limits: LogLimits,
    /// For tests with a slow disk.
    pub disk: SlowDisk,
}

impl LogSize {
    /// A snapshot after so many bytes of log, however large it is, and an eighth of them kept before it.
    #[must_use]
    pub fn every(bytes: u64) -> LogSize {
        let limits = LogLimits { floor: bytes, ceiling: bytes, keep: bytes / 8, ..LogLimits::default() };
        LogSize { limits, ..LogSize::default() }
    }
}

/// Entries by which a member that joins may be behind when it becomes a voter.
const JOINER_LAG: u64 = 16_384;

pub(crate) fn raft_config(timing: &Timing, cluster: &str) -> Result<Arc<RaftConfig>, ConfigError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let config = RaftConfig {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        // openraft has two numbers for four things: the minimum also limits votes, the maximum is also the leader lease.
        // When to campaign is decided in `election`, not by openraft's own timer.
        election_timeout_min: ms(timing.vote()),
        election_timeout_max: ms(timing.election),
        // A million sessions must get through a slow link, beside other traffic.
        install_snapshot_timeout: ms(Duration::from_secs(600)),
        max_payload_entries: 256,
        replication_lag_threshold: JOINER_LAG,
        // Both by bytes and time, not by entries: `log_keeper`. Members that are further behind than the log reaches get a
        // snapshot; others get entries.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        backoff: "20ms 50ms 100ms ...500ms".to_owned(),
        enable_pre_vote: Some(true),
        // A leader that restarts has lost what was not yet on its disk; it must be elected like any other member.
        enable_leader_restore: Some(false),
        ..RaftConfig::default()
    };
    config.validate().map(Arc::new)
}
