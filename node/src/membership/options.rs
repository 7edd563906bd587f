//! What a member is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use palisade_engine::{MemberInfo, Role};

use crate::raft::config::{LogSize, Timing};
use crate::raft::voters::Voters;

/// What a member is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub data_dir: PathBuf,
    /// The member's name.
    pub name: String,
    /// Where it listens for the other members.
    pub listen: SocketAddr,
    /// Where they reach it: `host:port`.
    pub advertise: String,
    /// What it does.
    pub role: Role,
    /// The engine's sizes; `member`, `start` and `seed` are put in by the start.
    pub engine: palisade_engine::Config,
    /// Raft's times.
    pub timing: Timing,
    /// How much of the log is kept.
    pub log: LogSize,
    /// How many vote.
    pub voters: Voters,
    /// What the telling of live sessions' progress may take to each other member, in bytes a second.
    pub progress_rate: u64,
}

impl Options {
    pub(crate) fn info(&self) -> MemberInfo {
        MemberInfo { name: self.name.clone(), address: self.advertise.clone(), role: self.role }
    }
}
