//! The conditions that keep this member from being fit for traffic: one place, which readiness reads.
//!
//! Whoever finds out about a kind of condition replaces all of that kind ([`Conditions::replace`]). What is new is logged once,
//! and so is what is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use parking_lot::Mutex;

/// How much a condition matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Others are better: routers should prefer another member, and may use this one if there is none.
    Degraded,
    /// What routers send here is lost, or passes unfiltered.
    Failed,
}

/// What is wrong, and with what.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Condition {
    /// A tracked data interface is not there.
    #[error("the interface {0} is missing")]
    InterfaceMissing(String),
    /// A tracked data interface is down.
    #[error("the interface {0} is down")]
    InterfaceDown(String),
    /// A tracked data interface has no carrier.
    #[error("the interface {0} has no carrier")]
    NoCarrier(String),
    /// A data interface is up, and its sockets cannot be opened.
    #[error("the interface {interface} is up, but cannot be captured: {reason}")]
    NotCaptured {
        /// Its name.
        interface: String,
        /// Why.
        reason: String,
    },
    /// A data interface belongs to a bridge, bond or team.
    #[error(
        "the interface {interface} is a port of {master}, which gets its frames: make {master} the data interface, or take {interface} out of it"
    )]
    Port {
        /// Its name.
        interface: String,
        /// The bridge's, bond's or team's name.
        master: String,
    },
    /// A capture ring takes no frames until it is opened again.
    #[error("a capture ring of the interface {0} has stalled and is being opened again")]
    CaptureStalled(String),
    /// A re-injection device is not there.
    #[error("the device {0} is missing")]
    DeviceMissing(String),
    /// A re-injection device is down.
    #[error("the device {0} is down")]
    DeviceDown(String),
    /// A packet worker makes no progress.
    #[error("the packet worker {0} makes no progress")]
    WorkerStuck(usize),
    /// The watcher makes no progress.
    #[error("the watcher, which keeps the gate closed, makes no progress")]
    WatcherStuck,
    /// A thread panicked.
    #[error("the datapath's thread {0} died")]
    ThreadDied(String),
    /// A lock of the gate is missing, or something leads around it.
    #[error("{0}")]
    Gate(String),
    /// A kernel setting, or another program's chain, with which packets are lost or bypass the datapath.
    #[error("{0}")]
    Setting(String),
}

impl Condition {
    /// How much it matters. A neighbour sees that a link is dead, and the routers around it; it does not see that nobody reads
    /// the frames of a live one.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Condition::InterfaceMissing(_) | Condition::InterfaceDown(_) | Condition::NoCarrier(_) => {
                Severity::Degraded
            }
            Condition::NotCaptured { .. }
            | Condition::Port { .. }
            | Condition::CaptureStalled(_)
            | Condition::DeviceMissing(_)
            | Condition::DeviceDown(_)
            | Condition::WorkerStuck(_)
            | Condition::WatcherStuck
            | Condition::ThreadDied(_)
            | Condition::Gate(_)
            | Condition::Setting(_) => Severity::Failed,
        }
    }
}

/// Who finds out about conditions, all of its kind at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Source {
    /// The data interfaces.
    Interfaces,
    /// The re-injection devices.
    Devices,
}

/// The conditions now.
#[derive(Default)]
pub(crate) struct Conditions(Mutex<BTreeMap<Source, BTreeSet<Condition>>>);

impl Conditions {
    /// Replaces what `source` has found out before.
    pub(crate) fn replace(&self, source: Source, now: impl IntoIterator<Item = Condition>) {
        let now: BTreeSet<Condition> = now.into_iter().collect();
        let old = self.0.lock().insert(source, now.clone()).unwrap_or_default();
        for condition in now.difference(&old) {
            match condition.severity() {
                Severity::Failed => tracing::error!("{condition}"),
                Severity::Degraded => tracing::warn!("{condition}"),
            }
        }
        for condition in old.difference(&now) {
            tracing::info!("no longer: {condition}");
        }
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> Vec<Condition> {
        self.0.lock().values().flatten().cloned().collect()
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_one_source_replace_each_other() {
        let conditions = Conditions::default();
        let down = |name: &str| Condition::InterfaceDown(name.to_owned());
        conditions.replace(Source::Interfaces, [down("eth1"), down("eth0")]);
        conditions.replace(Source::Devices, [Condition::DeviceMissing("palisade0".to_owned())]);
        conditions.replace(Source::Interfaces, [down("eth1")]);
        let all = conditions.all();
        assert_eq!(all, [down("eth1"), Condition::DeviceMissing("palisade0".to_owned())]);
        assert_eq!(all.iter().map(Condition::severity).max(), Some(Severity::Failed));
        assert_eq!(all[0].to_string(), "the interface eth1 is down");
        conditions.replace(Source::Interfaces, []);
        conditions.replace(Source::Devices, []);
        assert!(conditions.all().is_empty());
    }
}
