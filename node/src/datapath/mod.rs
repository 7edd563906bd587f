//! The datapath: from the wire to the engine, and from there to the kernel's own forwarding.
//!
//! ```text
//!  wire ─> raw socket ─> worker: parse, engine ─> device of the zone ─> kernel routes ─> gate ─> wire
//!            capture         │ hold                    inject
//!                            └─ hints, proposals ─> replication
//! ```
//!
//! - [`capture`]: sockets that receive packets before the kernel would route them;
//! - [`gate`]: rules that keep the kernel from routing them itself, even if this daemon is dead;
//! - [`inject`]: the devices through which allowed packets return to the kernel, one for each zone;
//! - [`host`]: what the machine's kernel must be like; settings that would break any of these refuse the start.
//!
//! # Threads
//!
//! Each of `Options::workers` *workers* owns a socket per interface and family, one queue of each device, one hold buffer
//! and one set of counters. One *watcher* listens to netlink: it publishes the kernel's own addresses and the interfaces
//! ([`arc_swap`]), reopens sockets and restores the gate. No thread waits for another: workers receive through mailboxes
//! ([`WorkerWake`]) and send into bounded queues ([`Sinks`]), which count what they drop.
//!
//! All threads live in the network namespace of the thread that calls [`start`].

pub(crate) mod announce;
mod gate;
pub(crate) mod ingress;
pub(crate) mod metrics;

mod capture;
mod error;
mod health;
mod host;
mod inject;
mod limit;
mod nice;
mod offload;
mod options;
mod segment;
mod sink;
mod start;
mod sys;
mod vnet;
mod wake;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::EventFd;
use palisade_engine::Reset;
use parking_lot::Mutex;

pub use error::StartError;
pub(crate) use gate::valid_interface_name;
pub use gate::{Gate, GateStatus, Installed, Listener, Nft, NftError};
pub use health::{Condition, Severity};
pub use host::Family;
pub use inject::{DeviceNames, Inject};
pub use metrics::{DatapathMetrics, WorkerMetrics};
pub use options::{DatapathStatus, Interface, InterfaceStatus, Options, Rings, Sinks};
pub use palisade_engine::packet_loop::Judge;
pub use start::{start, start_with};
pub use wake::WorkerWake;

use crate::{clock, lab_panic};
use announce::Announcement;
use health::Conditions;
use host::netlink::Netlink;
use host::routes::Topology;
use host::watch::Health;
use inject::Devices;
use worker::{NewPart, Shared};

/// Age of a worker's heartbeat from which the datapath is not healthy. An idle worker beats twice a second.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for the watcher, which beats every ten seconds and may have to wait for other programs' rules.
const WATCHER_TIMEOUT: Duration = Duration::from_secs(40);

/// A running datapath. Dropping it stops it; the gate stays.
pub struct Datapath {
    interfaces: Vec<Interface>,
    devices: Devices,
    wake: WorkerWake,
    shared: Arc<Shared>,
    topology: Arc<Topology>,
    metrics: Arc<DatapathMetrics>,
    health: Arc<Mutex<Health>>,
    conditions: Arc<Conditions>,
    /// Wakes the observer of exits when the datapath stops.
    observer_fd: Option<Arc<EventFd>>,
    threads: Vec<JoinHandle<()>>,
}

fn remove_devices(devices: &Devices) {
    if let Err(error) = Netlink::open().and_then(|mut netlink| devices.remove(&mut netlink)) {
        tracing::warn!(%error, "the devices for re-injection cannot be removed");
    }
}

impl Datapath {
    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = Builder::new().name(name.clone()).spawn(move || {
            lab_panic::thread(&name);
            run();
        });
        self.threads.push(thread.map_err(|source| StartError::System { what: "a thread", source })?);
        Ok(())
    }

    /// A handle that wakes held packets.
    #[must_use]
    pub fn wake(&self) -> WorkerWake {
        self.wake.clone()
    }

    /// Whether nothing keeps this member from being fit for traffic.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.conditions().is_empty()
    }

    /// What keeps this member from being fit for traffic: links, captures, devices, threads, the gate, settings.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
        let now = clock::now();
        let mut all = self.conditions.all();
        let name = |port: usize| self.interfaces.get(port).map(|interface| interface.name.clone());
        all.extend(self.shared.stalled.ports().filter_map(name).map(Condition::CaptureStalled));
        all.extend(self.dead_thread().map(Condition::ThreadDied));
        let workers = self.metrics.workers.iter().enumerate();
        let stuck = workers.filter(|(_, worker)| now.since(worker.heartbeat.get()) >= HEARTBEAT_TIMEOUT);
        all.extend(stuck.map(|(number, _)| Condition::WorkerStuck(number)));
        if now.since(self.metrics.watcher.heartbeat.get()) >= WATCHER_TIMEOUT {
            all.push(Condition::WatcherStuck);
        }
        let health = self.health.lock();
        if !health.gate.rules {
            all.push(Condition::Gate("the gate's policy rules are missing".to_owned()));
        }
        // Without the table that this member wants, nothing holds the zones apart that re-injected packets leave by.
        if health.gate.nft == Nft::Missing {
            all.push(Condition::Gate("the gate's nftables table is missing, or another process owns it".to_owned()));
        }
        all.extend(health.gate.problems.iter().cloned().map(Condition::Gate));
        all.extend(health.problems().cloned().map(Condition::Setting));
        all
    }

    /// The name of a thread that has panicked. The datapath cannot go on without it: its owner must drop it.
    #[must_use]
    pub fn dead_thread(&self) -> Option<String> {
        let dead = self.threads.iter().find(|thread| thread.is_finished())?;
        Some(dead.thread().name().unwrap_or("unnamed").to_owned())
    }

    /// The state of the gate and of the interfaces, with warnings.
    #[must_use]
    pub fn status(&self) -> DatapathStatus {
        let health = self.health.lock().clone();
        let indices = self.topology.indices.load();
        let interfaces: Vec<InterfaceStatus> = self
            .interfaces
            .iter()
            .enumerate()
            .map(|(number, interface)| InterfaceStatus {
                name: interface.name.clone(),
                zone: interface.zone.clone(),
                index: indices.get(number).copied().unwrap_or(0),
                up: health.links.get(number).is_some_and(|link| link.up),
                carrier: health.links.get(number).is_some_and(|link| link.carrier),
            })
            .collect();
        let mut warnings: Vec<String> = self.conditions().iter().map(ToString::to_string).collect();
        warnings.extend(health.notices.iter().flatten().cloned());
        if let Nft::Unavailable(reason) = &health.gate.nft {
            warnings.push(format!("the gate has no nftables lock, only its policy rules: {reason}"));
        }
        DatapathStatus {
            mode: if self.devices.kind == Inject::Veth { "raw/veth" } else { "raw/tun" },
            gate: health.gate,
            interfaces,
            warnings,
        }
    }

    /// Has routes with this metric in the announcement's table, or none. Returns how many were added or removed.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(crate) fn announce(&self, announcement: &Announcement, metric: Option<u32>) -> std::io::Result<usize> {
        let mut netlink = Netlink::open()?.strict()?;
        let Some(device) = inject::find(&mut Netlink::open()?, self.devices.names.control())? else { return Ok(0) };
        // A veth pair outlives the process, and so would the routes: they would announce a dead member.
        let metric = metric.filter(|_| self.devices.kind != Inject::Veth);
        announcement.set(&mut netlink, device, metric)
    }

    /// Has a worker send these RSTs. Their rate is the caller's business.
    pub(crate) fn send_resets(&self, resets: Vec<Reset>) {
        if let Some(exchange) = self.shared.exchange.first() {
            exchange.lock().push(NewPart::Resets(resets));
            self.wake.notify(0);
        }
    }

    /// The datapath's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<DatapathMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Stops the threads and waits for them. The gate stays: from now on no transit traffic passes.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in 0..self.wake.workers() {
            self.wake.notify(worker);
        }
        self.shared.wake_watcher();
        if let Some(fd) = &self.observer_fd {
            let _ = fd.write(1);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the datapath panicked");
            }
        }
        remove_devices(&self.devices);
    }
}
