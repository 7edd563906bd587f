//! The data interfaces, followed by the watcher: whether each is there, up, has a carrier and is captured. It opens their
//! sockets when they appear, and again when their rings have stalled.

use std::sync::atomic::Ordering;

use super::links::{self, Link};
use super::watch::Watcher;
use crate::datapath::capture::{Capture, ETHERTYPES};
use crate::datapath::health::{Condition, Source};
use crate::datapath::options::Interface;
use crate::datapath::worker::{NewInjector, NewPart};

/// The state of a data interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LinkState {
    /// It is there.
    pub(crate) present: bool,
    /// It is up.
    pub(crate) up: bool,
    /// It has a carrier.
    pub(crate) carrier: bool,
}

impl LinkState {
    pub(crate) fn of(link: Option<&Link>) -> LinkState {
        link.map_or(LinkState::default(), |link| LinkState { present: true, up: link.up, carrier: link.carrier })
    }

    /// What is wrong with the link of an interface, if readiness depends on it.
    pub(crate) fn condition(self, interface: &Interface) -> Option<Condition> {
        let name = || interface.name.clone();
        match self {
            _ if !interface.track => None,
            LinkState { present: false, .. } => Some(Condition::InterfaceMissing(name())),
            LinkState { up: false, .. } => Some(Condition::InterfaceDown(name())),
            LinkState { carrier: false, .. } => Some(Condition::NoCarrier(name())),
            LinkState { .. } => None,
        }
    }
}

impl Watcher {
    /// Follows the data interfaces: `all` are the machine's.
    pub(super) fn follow_interfaces(&mut self, all: &[Link]) {
        let gone = self.monitor.gone();
        let old = self.topology.indices.load_full();
        let mut indices = Vec::with_capacity(self.interfaces.len());
        let mut conditions = Vec::new();
        for number in 0..self.interfaces.len() {
            let Some(interface) = self.interfaces.get(number).cloned() else { continue };
            let link = all.iter().find(|link| link.name == interface.name);
            let was = old.get(number).copied().unwrap_or(0);
            let state = LinkState::of(link);
            let stalled = self.shared.stalled.take_request(number);
            self.metrics.watcher.captures_stalled.add(stalled.into());
            conditions.extend(state.condition(&interface));
            conditions.extend(link.and_then(|link| links::taken_by(link, all)).map(|master| {
                let interface = interface.name.clone();
                Condition::Port { interface, master: master.name.clone() }
            }));
            let index = match link {
                Some(link) if link.index == was && !gone.contains(&was) && !stalled => was,
                Some(link) => match self.capture(number, link) {
                    Ok(()) => link.index,
                    // Before Linux 6.13, a socket on an interface that is down can join no fanout group. It is opened when
                    // the interface comes up.
                    Err(_) if !link.up => 0,
                    Err(error) => {
                        let (interface, reason) = (interface.name.clone(), error.to_string());
                        conditions.push(Condition::NotCaptured { interface, reason });
                        0
                    }
                },
                None => {
                    if was != 0 {
                        self.send_captures(number, (0..self.wake.workers()).map(|_| Vec::new()).collect());
                    }
                    0
                }
            };
            if let Some(gauges) = self.metrics.interfaces.get(number) {
                gauges.set(state, index != 0);
            }
            if let Some(link) = self.health.lock().links.get_mut(number) {
                *link = state;
            }
            indices.push(index);
        }
        let exempt = all.iter().filter(|link| self.bypass_interfaces.contains(&link.name)).map(|link| link.index);
        let handled: Vec<u32> = indices.iter().copied().chain(exempt).collect();
        if **self.shared.handled.load() != handled {
            self.shared.handled.store(handled.into());
        }
        if *old != indices {
            self.topology.indices.store(indices.into());
        }
        self.conditions.replace(Source::Interfaces, conditions);
    }

    /// Looks after the re-injection devices: one that is down is set up again, one that is gone is made anew. Whether one was gone.
    pub(super) fn follow_devices(&mut self, all: &[Link]) -> bool {
        let mut made = false;
        let mut conditions = Vec::new();
        let names: Vec<String> = self.devices.names.all().collect();
        for name in names {
            let Some(link) = all.iter().find(|link| link.name == name) else {
                made = true;
                conditions.extend(self.make_device(&name).err());
                continue;
            };
            if link.up {
                continue;
            }
            match links::up(&mut self.netlink, link.index) {
                Ok(()) => {
                    tracing::warn!(device = name, "the device was down and has been set up again");
                    self.metrics.watcher.devices_restored.inc();
                    // Some of its settings went with it.
                    self.check_settings();
                }
                Err(error) => {
                    tracing::error!(%error, device = name, "the device is down and cannot be set up");
                    conditions.push(Condition::DeviceDown(name));
                }
            }
        }
        self.conditions.replace(Source::Devices, conditions);
        made
    }

    /// Makes a re-injection device anew, which somebody has removed, and sends its queues to the workers.
    fn make_device(&mut self, name: &str) -> Result<(), Condition> {
        let made = self.devices.make_again(&mut self.netlink, name, self.wake.workers()).map_err(|error| {
            tracing::error!(%error, device = name, "the device is gone and cannot be made again");
            Condition::DeviceMissing(name.to_owned())
        })?;
        tracing::warn!(device = name, "the device was gone and has been made again");
        self.metrics.watcher.devices_restored.inc();
        let incoming = self.devices.incoming();
        for (worker, injector) in made.injectors.into_iter().enumerate() {
            self.send(worker, NewPart::Injector(NewInjector { place: made.place, injector, incoming }));
        }
        self.check_settings();
        Ok(())
    }

    /// Opens the sockets of an interface and sends them to the workers.
    fn capture(&mut self, number: usize, link: &Link) -> std::io::Result<()> {
        if let Err(error) = links::limit_gro(&mut self.netlink, link) {
            tracing::warn!(%error, interface = link.name, "GRO cannot be limited to 64 KiB; larger packets will be lost");
        }
        let sets = open_sockets(link, self.wake.workers(), self.ring_slots)?;
        tracing::info!(interface = link.name, index = link.index, "capturing the interface");
        self.metrics.watcher.captures_reopened.inc();
        self.send_captures(number, sets);
        Ok(())
    }

    fn send_captures(&self, number: usize, sets: Vec<Vec<Capture>>) {
        for (worker, captures) in sets.into_iter().enumerate() {
            self.send(worker, NewPart::Captures(number, captures));
        }
    }

    fn send(&self, worker: usize, part: NewPart) {
        if let Some(exchange) = self.shared.exchange.get(worker) {
            exchange.lock().push(part);
        }
        self.wake.notify(worker);
    }

    /// Closes the sockets that workers have replaced: the kernel takes milliseconds for it, in which no worker should wait.
    pub(super) fn close_retired(&self) {
        let retired = std::mem::take(&mut *self.shared.retired.lock());
        drop(retired);
    }

    /// Whether a worker has found a stalled ring.
    pub(super) fn capture_requested(&self) -> bool {
        (0..self.interfaces.len()).any(|number| self.shared.stalled.requested(number))
    }

    /// Waits for the workers' and the datapath's signals no longer.
    pub(super) fn clear_signal(&self) {
        let _ = self.shared.watcher_fd.read(); // EAGAIN: none
    }

    pub(super) fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}

/// Opens the sockets of an interface: for each worker, one for each EtherType. They receive nothing until they are started.
pub(crate) fn open_sockets(link: &Link, workers: usize, ring_slots: u32) -> std::io::Result<Vec<Vec<Capture>>> {
    let mut sets: Vec<Vec<Capture>> = (0..workers).map(|_| Vec::with_capacity(ETHERTYPES.len())).collect();
    for ethertype in ETHERTYPES {
        for (set, capture) in sets.iter_mut().zip(Capture::open(link.index, ethertype, workers, ring_slots)?) {
            set.push(capture);
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_of_a_link_names_the_first_thing_that_is_wrong_if_the_interface_is_tracked() {
        let interface = |track| Interface { name: "eth0".into(), zone: "outside".into(), antispoof: true, track };
        let states = |track| {
            [(false, false, false), (true, false, false), (true, true, false), (true, true, true)]
                .map(|(present, up, carrier)| LinkState { present, up, carrier }.condition(&interface(track)))
        };
        let name = || "eth0".to_owned();
        let [missing, down, carrier] =
            [Condition::InterfaceMissing(name()), Condition::InterfaceDown(name()), Condition::NoCarrier(name())];
        assert_eq!(states(true), [Some(missing), Some(down), Some(carrier), None]);
        assert_eq!(states(false), [None, None, None, None]);
    }
}
