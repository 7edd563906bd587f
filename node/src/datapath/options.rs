//! The options of the datapath, its queues to the replication, and its status.

use palisade_engine::hold::HoldLimits;
use palisade_engine::{Hint, Proposal};
use tokio::sync::mpsc::Sender;

use super::gate::GateStatus;
use super::inject::Inject;
use crate::connection_log::ConnectionLog;

/// A data interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Whether sources of packets that arrive on it are checked against the routes.
    pub antispoof: bool,
}

/// The options of the datapath.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data interfaces.
    pub interfaces: Vec<Interface>,
    /// Interfaces whose transit the kernel forwards without Palisade.
    pub bypass_interfaces: Vec<String>,
    /// Packet threads: 1 to 64.
    pub workers: usize,
    /// Bounds of each worker's hold buffer. Its time is also the age from which a captured packet is stale.
    pub hold: HoldLimits,
    /// The device for re-injection.
    pub device: String,
    /// The kind of device.
    pub inject: Inject,
    /// Whether the daemon may move `rp_filter` from `all` to the other interfaces.
    pub manage_rp_filter: bool,
    /// Whether the daemon may enable forwarding.
    pub manage_forwarding: bool,
    /// Where decisions go whose rule says `log`.
    pub connection_log: ConnectionLog,
    /// Slots (of 2 KiB) of each receive ring; there is one for each interface, family and worker.
    pub ring_slots: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            interfaces: Vec::new(),
            bypass_interfaces: Vec::new(),
            workers: 1,
            hold: HoldLimits::default(),
            device: "palisade0".to_owned(),
            inject: Inject::Auto,
            manage_rp_filter: false,
            manage_forwarding: false,
            connection_log: ConnectionLog::default(),
            ring_slots: 2048,
        }
    }
}

/// The queues from the datapath to the replication. They are bounded: what finds them full is dropped and counted.
#[derive(Clone, Debug)]
pub struct Sinks {
    /// Hints.
    pub hints: Sender<Hint>,
    /// Proposals.
    pub proposals: Sender<Proposal>,
}

/// The state of the datapath.
#[derive(Clone, Debug)]
pub struct DatapathStatus {
    /// The way of re-injection: `raw/tun` or `raw/veth`.
    pub mode: &'static str,
    /// The gate.
    pub gate: GateStatus,
    /// The data interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// What an operator should correct.
    pub warnings: Vec<String>,
}

/// The state of a data interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its index; 0 if it is missing or not captured.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
}
