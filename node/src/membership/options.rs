//! What a member is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use palisade_engine::{Capabilities, MemberInfo, Role};

use crate::connection_log::ConnectionLog;
use crate::listen::SecondLock;
use crate::member::PROGRAM_VERSION;
use crate::raft::config::{LogSize, Timing};

/// What a member is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub data_dir: PathBuf,
    /// Its name.
    pub name: String,
    /// The address on which it listens for the other members.
    pub listen: SocketAddr,
    /// The interfaces by which they reach it there; none: the one that has the address.
    pub interfaces: Vec<String>,
    /// Where these are enforced once more.
    pub second_lock: SecondLock,
    /// The address at which they reach it, `host:port`.
    pub advertise: String,
    /// Its role.
    pub role: Role,
    /// The engine's sizes; the start sets `member`, `start` and `seed`.
    pub engine: palisade_engine::Config,
    /// The timing of Raft.
    pub timing: Timing,
    /// The part of the log that is kept.
    pub log: LogSize,
    /// Bytes per second of sessions' progress to each other member.
    pub progress_rate: u64,
    /// Where the openings and ends of sessions go whose rule says `log`.
    pub connection_log: ConnectionLog,
}

impl Options {
    /// What the member registers that it can.
    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities::of_program(self.engine.affordable_sessions, PROGRAM_VERSION)
    }

    pub(crate) fn info(&self) -> MemberInfo {
        MemberInfo { name: self.name.clone(), address: self.advertise.clone(), role: self.role }
    }
}
