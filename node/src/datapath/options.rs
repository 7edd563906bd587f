//! What the datapath is told at its start, and what it says of itself.

use std::time::Duration;

use palisade_engine::Hint;
use palisade_engine::event::Proposal;
use palisade_engine::hold::Limits;
use tokio::sync::mpsc::Sender;

use super::gate::GateStatus;
use super::inject::Inject;

/// A data interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Are sources that come in by it to be checked against the routes?
    pub antispoof: bool,
}

/// What the datapath is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data interfaces.
    pub interfaces: Vec<Interface>,
    /// Interfaces whose transit the gate lets the kernel forward, unseen by Palisade.
    pub unfiltered: Vec<String>,
    /// Packet threads: 1 to 64.
    pub workers: usize,
    /// Bounds of each worker's hold buffer. The time is also the age at which a captured packet is too old.
    pub hold: Limits,
    /// The device for re-injection.
    pub device: String,
    /// Its kind.
    pub inject: Inject,
    /// May the daemon move `rp_filter` from `all` to the other interfaces?
    pub manage_rp_filter: bool,
    /// May the daemon switch forwarding on?
    pub manage_forwarding: bool,
    /// Slots (of 2 KiB) of each receive ring; there is one for each interface, family and worker.
    pub ring_slots: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            interfaces: Vec::new(),
            unfiltered: Vec::new(),
            workers: 1,
            hold: Limits { packets: (4096, 512), bytes: (16 << 20, 1 << 20), time: Duration::from_millis(250) },
            device: "palisade0".to_owned(),
            inject: Inject::Auto,
            manage_rp_filter: false,
            manage_forwarding: false,
            ring_slots: 2048,
        }
    }
}

/// Where the datapath sends what the other members must hear. Bounded; what finds them full is counted and lost.
#[derive(Clone, Debug)]
pub struct Sinks {
    /// Hints.
    pub hints: Sender<Hint>,
    /// Proposals.
    pub proposals: Sender<Proposal>,
}

/// How the datapath is.
#[derive(Clone, Debug)]
pub struct DatapathStatus {
    /// How packets are re-injected: `raw/tun` or `raw/veth`.
    pub mode: &'static str,
    /// The gate.
    pub gate: GateStatus,
    /// The data interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// What an operator should put right.
    pub warnings: Vec<String>,
}

/// How a data interface is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its index; 0: it is not there, or not captured.
    pub index: u32,
    /// Is it switched on?
    pub up: bool,
}
