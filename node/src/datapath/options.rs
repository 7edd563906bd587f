//! The options of the datapath, its queues to the replication, and its status.

use std::time::Duration;

use palisade_engine::hold::HoldLimits;
use palisade_engine::{Hint, Proposal};
use tokio::sync::mpsc::Sender;

use super::capture::{ETHERTYPES, SLOT_BYTES};
use super::gate::{Gate, GateStatus};
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
    /// Whether this member is ready only if the interface is up and has a carrier.
    pub track: bool,
}

/// The options of the datapath.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data interfaces.
    pub interfaces: Vec<Interface>,
    /// The gate, if it is installed already: whoever has a handle on it owns its table.
    pub gate: Option<Gate>,
    /// Interfaces whose transit the kernel forwards without Palisade.
    pub bypass_interfaces: Vec<String>,
    /// Packet threads: 1 to 64.
    pub workers: usize,
    /// Bounds of each worker's hold buffer.
    pub hold: HoldLimits,
    /// The age from which a captured packet is dropped as stale: its worker did not run for so long.
    pub stale_after: Duration,
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
    /// The memory of all receive rings together, in bytes. `None`: [`Rings::DEFAULT`].
    pub ring_memory: Option<usize>,
}

impl Options {
    /// The names of the data interfaces.
    pub(crate) fn data_names(&self) -> Vec<&str> {
        self.interfaces.iter().map(|interface| interface.name.as_str()).collect()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            interfaces: Vec::new(),
            gate: None,
            bypass_interfaces: Vec::new(),
            workers: 1,
            hold: HoldLimits::default(),
            stale_after: Duration::from_millis(250),
            device: "palisade0".to_owned(),
            inject: Inject::Auto,
            manage_rp_filter: false,
            manage_forwarding: false,
            connection_log: ConnectionLog::default(),
            ring_memory: None,
        }
    }
}

/// The receive rings: one for each interface, IP version and worker. They share a budget of memory, which the kernel takes when
/// they are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rings {
    /// Their number.
    pub count: usize,
    /// Slots of each.
    pub slots: u32,
}

impl Rings {
    /// The memory of all rings, in bytes, if nothing is configured and no ring needs more: 4 MiB each, but no more than this.
    pub const DEFAULT: usize = 128 << 20;
    /// The most that a ring gets of the default: 2048 slots, which last for 20 ms at 100,000 packets a second.
    const DEFAULT_RING: usize = 4 << 20;
    /// The least with which a ring takes a burst, such as 64 frames of one poll of the network card.
    pub const MIN_RING: usize = 64 * SLOT_BYTES;
    /// The most that a ring gets.
    const MAX_RING: usize = 64 << 20;

    /// The rings of so many interfaces and workers, with a budget in bytes.
    ///
    /// # Errors
    /// The smallest budget, if this one is too small.
    pub fn share(interfaces: usize, workers: usize, budget: Option<usize>) -> Result<Rings, usize> {
        let count = interfaces * ETHERTYPES.len() * workers;
        let ring = match budget {
            _ if count == 0 => Rings::MIN_RING,
            Some(budget) if budget / count < Rings::MIN_RING => return Err(count * Rings::MIN_RING),
            Some(budget) => (budget / count).min(Rings::MAX_RING),
            None => (Rings::DEFAULT / count).clamp(Rings::MIN_RING, Rings::DEFAULT_RING),
        };
        Ok(Rings { count, slots: u32::try_from(ring / SLOT_BYTES).unwrap_or(u32::MAX) })
    }

    /// The memory of all of them, in bytes.
    #[must_use]
    pub fn memory(self) -> usize {
        self.count * SLOT_BYTES * usize::try_from(self.slots).unwrap_or(0)
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
    /// Whether it has a carrier.
    pub carrier: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_share_their_budget() {
        let slots = |interfaces, workers, budget| Rings::share(interfaces, workers, budget).map(|rings| rings.slots);
        assert_eq!(slots(2, 2, None), Ok(2048));
        assert_eq!(slots(2, 15, None), Ok(1092));
        // 100 VLANs and 16 workers: more than the default, but not 12.5 GiB.
        assert_eq!(slots(100, 16, None), Ok(64));
        assert_eq!(Rings::share(100, 16, None).unwrap().memory(), 400 << 20);
        assert_eq!(slots(100, 16, Some(400 << 20)), Ok(64));
        assert_eq!(slots(100, 16, Some((400 << 20) - 1)), Err(400 << 20));
        assert_eq!(slots(1, 1, Some(1 << 40)), Ok(32768));
        assert_eq!(slots(0, 4, Some(1)), Ok(64));
        for budget in [1 << 20, 3_000_000, 1 << 30] {
            assert!(Rings::share(2, 2, Some(budget)).unwrap().memory() <= budget);
        }
    }
}
