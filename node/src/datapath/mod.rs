//! The datapath: from the wire to the engine, and from there to the kernel's own forwarding.
//!
//! ```text
//!  wire ─> raw socket ─> worker: parse, engine ─> palisade0 ─> kernel routes ─> wire
//!            capture         │ hold                  inject
//!                            └─ hints, proposals ─> replication
//! ```
//!
//! - [`capture`]: sockets that see packets before the kernel would route them;
//! - [`gate`]: what keeps the kernel from routing them by itself, also when this daemon is dead;
//! - [`inject`]: the device that allowed packets go on by;
//! - [`check`]: settings of the machine that would break any of these refuse the start.
//!
//! # Threads
//!
//! Each of `Options::workers` *workers* owns a socket per interface and family, one queue of palisade0, one hold buffer
//! and one set of counters. One *watcher* listens to netlink: it publishes the kernel's own addresses and the interfaces
//! ([`arc_swap`]), opens sockets again and restores the gate. Nobody waits for anybody: workers are told things by mailboxes
//! ([`WorkerWake`]) and tell by bounded queues ([`Sinks`]), which count what they have no room for.
//!
//! All threads live in the network namespace of the thread that calls [`start`].

pub(crate) mod gate;
pub(crate) mod metrics;

mod capture;
mod error;
mod host;
mod inject;
mod limit;
mod options;
mod segment;
mod sys;
mod vnet;
mod wake;
mod worker;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::sys::eventfd::{EfdFlags, EventFd};
use palisade_engine::{Engine, Time};
use parking_lot::Mutex;

pub use error::StartError;
pub use gate::{Gate, GateStatus, Installed, Nft};
pub use host::Family;
pub use inject::Inject;
pub use metrics::{DatapathMetrics, Snapshot};
pub use options::{DatapathStatus, Interface, InterfaceStatus, Options, Sinks};
pub use wake::WorkerWake;
pub use worker::Judge;

use crate::clock;
use crate::standing::StandingCell;
use host::check::{self, Manage};
use host::links::{self, Local};
use host::netlink::{Monitor, Netlink};
use host::routes::{RouteZones, Topology};
use host::watch::{self, Findings, Watcher};
use worker::{Parts, Port, Shared, Worker};

/// A worker that has not gone round for this long is not healthy; an idle one does so twice a second.
const PULSE: Duration = Duration::from_secs(2);

/// The same for the watcher, which looks round every ten seconds and may have to wait for `nft`.
const WATCH_PULSE: Duration = Duration::from_secs(40);

/// A running datapath. Dropping it stops it; the gate stays.
pub struct Datapath {
    interfaces: Vec<Interface>,
    device: String,
    kind: Inject,
    wake: WorkerWake,
    shared: Arc<Shared>,
    topology: Arc<Topology>,
    metrics: Arc<DatapathMetrics>,
    findings: Arc<Mutex<Findings>>,
    bell: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts the datapath in the calling thread's network namespace: checks the machine, installs the gate, then lets the
/// workers capture. `wake` must be for as many workers as `options` names.
///
/// # Errors
/// Why not, with the remedy. A refused start may leave the gate installed; it never leaves the machine open.
pub fn start(
    options: Options,
    engine: Arc<Engine>,
    standing: Arc<StandingCell>,
    wake: WorkerWake,
    sinks: Sinks,
) -> Result<Datapath, StartError> {
    start_with(options, engine, standing, wake, sinks)
}

/// [`start`] with any judge.
///
/// # Errors
/// As [`start`].
pub fn start_with<J: Judge>(
    options: Options,
    judge: Arc<J>,
    standing: Arc<StandingCell>,
    wake: WorkerWake,
    sinks: Sinks,
) -> Result<Datapath, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let Options { interfaces, unfiltered, workers, hold, device, inject, ring_slots, .. } = options;
    let manage = Manage { rp_filter: options.manage_rp_filter, forwarding: options.manage_forwarding };
    if workers == 0 || workers > 64 || workers != wake.workers() {
        return Err(StartError::Workers { workers, handle: wake.workers() });
    }
    let names = interfaces.iter().map(|i| &i.name).chain(&unfiltered).chain([&device]);
    if let Some(name) = names.into_iter().find(|name| !gate::valid_name(name)) {
        return Err(StartError::Name { name: name.clone() });
    }

    let mut netlink = Netlink::open().map_err(system("a netlink socket"))?;
    // Before anything is read: so no change is missed.
    let monitor = Monitor::open().map_err(system("a netlink monitor"))?;
    let gate = Gate::new(&device, &unfiltered);
    check::before(&mut netlink, &gate)?;
    let links = links::links(&mut netlink).map_err(system("the list of interfaces"))?;
    let ports: Vec<&links::Link> = interfaces
        .iter()
        .map(|i| {
            links.iter().find(|link| link.name == i.name).ok_or_else(|| StartError::Interface { name: i.name.clone() })
        })
        .collect::<Result<_, _>>()?;

    let opened = inject::open(&mut netlink, inject, &device, workers)?;
    // From here on the device must not stay behind if the start fails.
    let guard = DeviceGuard { device: &device, kind: opened.kind };
    check::device(&device, manage)?;
    let installed = gate.install().map_err(|source| StartError::Gate { source })?;
    if let Err(reason) = &installed.nft {
        tracing::warn!(%reason, "the gate's nftables lock can not be had; the policy rules stand alone");
    }

    let mut strict = Netlink::open().and_then(Netlink::strict).map_err(system("a netlink socket"))?;
    let local = Local::read(&mut strict).map_err(system("the table `local`"))?;
    let topology = Arc::new(Topology::default());
    let mut indices: Vec<u32> = ports.iter().map(|link| link.index).collect();
    let mut captures: Vec<Vec<Port>> = (0..workers).map(|_| Vec::with_capacity(ports.len())).collect();
    for ((interface, link), index) in interfaces.iter().zip(&ports).zip(&mut indices) {
        links::hold_gro(&mut netlink, link).map_err(system("a limit to GRO"))?;
        let sets = match watch::open(link, workers, ring_slots) {
            Ok(sets) => sets,
            // Before Linux 6.13, who listens to an interface that is down can join no fanout group. The watcher opens it
            // when it comes up.
            Err(error) if !link.up => {
                tracing::warn!(%error, interface = link.name, "the interface is down and will be captured when it is up");
                *index = 0;
                (0..workers).map(|_| Vec::new()).collect()
            }
            Err(source) => return Err(StartError::Capture { interface: interface.name.clone(), source }),
        };
        for (worker, captures_of_worker) in captures.iter_mut().zip(sets) {
            worker.push(Port {
                zone_name: interface.zone.clone(),
                antispoof: interface.antispoof,
                captures: captures_of_worker,
            });
        }
    }

    let addresses = links::addresses(&mut netlink, &indices).map_err(system("the list of addresses"))?;
    topology.addresses.store(Arc::new(addresses));
    topology.indices.store(Arc::new(indices));
    topology.changed();

    let metrics = Arc::new(DatapathMetrics::new(workers));
    metrics.watched.store(clock::now().0, Ordering::Relaxed);
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        local: ArcSwap::from_pointee(local),
        exchange: (0..workers).map(|_| Mutex::default()).collect(),
    });
    let (rules, problems) = gate::rules_status(&mut netlink, &gate).map_err(system("the list of policy rules"))?;
    let nft = installed.nft.as_ref().map_or_else(|reason| Nft::Unavailable(reason.clone()), |_| Nft::Installed);
    let findings = Arc::new(Mutex::new(Findings {
        gate: GateStatus { rules, nft, problems },
        up: ports.iter().map(|link| link.up).collect(),
        warnings: BTreeSet::new(),
        chains: [None, None],
    }));
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|e| system("an eventfd")(e.into()))?;
    std::mem::forget(guard);
    let mut datapath = Datapath {
        interfaces: interfaces.clone(),
        device: device.clone(),
        kind: opened.kind,
        wake: wake.clone(),
        shared: Arc::clone(&shared),
        topology: Arc::clone(&topology),
        metrics: Arc::clone(&metrics),
        findings: Arc::clone(&findings),
        bell: Arc::new(bell),
        threads: Vec::with_capacity(workers + 1),
    };
    // If a thread can not be started, dropping `datapath` stops those before it.
    for (number, (ports, injector)) in captures.into_iter().zip(opened.injectors).enumerate() {
        let routes = RouteZones::new(opened.index, Arc::clone(&topology)).map_err(system("a netlink socket"))?;
        let counters = metrics.workers.get(number).map(Arc::clone).unwrap_or_default();
        counters.heartbeat.set(clock::now().0);
        let worker = Worker::new(Parts {
            number: u8::try_from(number).unwrap_or(u8::MAX),
            ports,
            judge: Arc::clone(&judge),
            standing: Arc::clone(&standing),
            routes,
            injector,
            limits: hold,
            sinks: sinks.clone(),
            metrics: counters,
            wake: wake.clone(),
            shared: Arc::clone(&shared),
        });
        datapath.spawn(format!("packets-{number}"), move || worker.run())?;
    }
    let watcher = Watcher {
        monitor,
        netlink,
        strict,
        gate,
        nft: installed.nft,
        device,
        kind: opened.kind,
        manage,
        interfaces,
        slots: ring_slots,
        wake,
        shared,
        topology,
        metrics,
        findings,
        bell: Arc::clone(&datapath.bell),
    };
    datapath.spawn("watch".to_owned(), move || watcher.run())?;
    Ok(datapath)
}

/// Removes the device again if the start fails.
struct DeviceGuard<'a> {
    device: &'a str,
    kind: Inject,
}

impl Drop for DeviceGuard<'_> {
    fn drop(&mut self) {
        remove_device(self.kind, self.device);
    }
}

fn remove_device(kind: Inject, device: &str) {
    if let Err(error) = Netlink::open().and_then(|mut netlink| inject::remove(&mut netlink, kind, device)) {
        tracing::warn!(%error, device, "the device can not be removed");
    }
}

impl Datapath {
    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(|source| StartError::System { what: "a thread", source })?);
        Ok(())
    }

    /// Wakes held packets.
    #[must_use]
    pub fn wake(&self) -> WorkerWake {
        self.wake.clone()
    }

    /// Do all threads go round, are all interfaces captured that are up, and does the gate's first lock stand?
    #[must_use]
    pub fn healthy(&self) -> bool {
        let now = clock::now();
        let alive = |w: &Arc<metrics::WorkerMetrics>| now.since(Time(w.heartbeat.get())) < PULSE;
        let watched = Time(self.metrics.watched.load(Ordering::Relaxed));
        let findings = self.findings.lock();
        let indices = self.topology.indices.load();
        self.metrics.workers.iter().all(alive)
            && now.since(watched) < WATCH_PULSE
            && self.dead_thread().is_none()
            && findings.up.iter().zip(indices.iter()).all(|(up, index)| !up || *index != 0)
            && findings.gate.rules
            && findings.gate.problems.is_empty()
            && findings.wrong().next().is_none()
    }

    /// A thread that has ended although the datapath was not stopped: it panicked. The datapath can not go on without it,
    /// whoever runs it must end it.
    #[must_use]
    pub fn dead_thread(&self) -> Option<String> {
        let dead = self.threads.iter().find(|thread| thread.is_finished())?;
        Some(dead.thread().name().unwrap_or("unnamed").to_owned())
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> DatapathStatus {
        let findings = self.findings.lock().clone();
        let indices = self.topology.indices.load();
        let interfaces: Vec<InterfaceStatus> = self
            .interfaces
            .iter()
            .enumerate()
            .map(|(number, interface)| InterfaceStatus {
                name: interface.name.clone(),
                zone: interface.zone.clone(),
                index: indices.get(number).copied().unwrap_or(0),
                up: findings.up.get(number).copied().unwrap_or(false),
            })
            .collect();
        let mut warnings: Vec<String> = findings.wrong().cloned().collect();
        warnings.extend(self.dead_thread().map(|name| format!("the datapath's thread {name} died")));
        warnings.extend(findings.gate.problems.iter().cloned());
        match &findings.gate.nft {
            Nft::Installed => {}
            Nft::Missing => warnings.push("the gate's nftables table is missing".to_owned()),
            Nft::Unavailable(reason) => {
                warnings.push(format!("the gate has no nftables lock, only its policy rules: {reason}"));
            }
        }
        warnings.extend(interfaces.iter().filter(|i| i.index == 0).map(|i| match i.up {
            true => format!("the interface {} is up, but can not be captured", i.name),
            false => format!("the interface {} is not there, or down", i.name),
        }));
        DatapathStatus {
            mode: if self.kind == Inject::Veth { "raw/veth" } else { "raw/tun" },
            gate: findings.gate,
            interfaces,
            warnings,
        }
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<DatapathMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Stops the workers and waits for them. The gate stays: from now on nothing in transit passes.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in 0..self.wake.workers() {
            self.wake.ring(worker);
        }
        let _ = self.bell.write(1);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the datapath panicked");
            }
        }
        remove_device(self.kind, &self.device);
    }
}
