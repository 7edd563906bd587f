//! The start of the datapath, in phases: options, machine, device, gate, captures, threads. A phase that fails undoes what
//! must not stay behind; the gate stays in any case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use nix::sys::eventfd::{EfdFlags, EventFd};
use palisade_engine::packet_loop::Judge;
use palisade_engine::{Engine, WorkerSet};
use parking_lot::Mutex;

use super::error::StartError;
use super::gate::{self, Gate, GateStatus, Installed, Nft, NftError};
use super::health::{Conditions, Source};
use super::host::check::{self, SysctlPolicy};
use super::host::exits::ExitObserver;
use super::host::interfaces::{LinkState, open_sockets};
use super::host::links::{self, Link, LocalRoutes};
use super::host::netlink::{Monitor, Netlink};
use super::host::nflog::Nflog;
use super::host::notices;
use super::host::routes::{self, RouteZones, Topology};
use super::host::watch::{self, Health, Watcher};
use super::inject::{self, DeviceNames, Devices, Injectors};
use super::metrics::DatapathMetrics;
use super::options::{Interface, Options, Rings, Sinks};
use super::wake::WorkerWake;
use super::worker::{Port, Shared, Stalled, Worker, WorkerConfig};
use super::{Datapath, remove_devices};
use crate::clock;
use crate::lease::Lease;

/// Starts the datapath in the calling thread's network namespace: checks the machine, installs the gate, then lets the
/// workers capture. `wake` must have as many workers as `options`.
///
/// # Errors
/// The reason, with the remedy. A refused start may leave the gate installed; it never leaves the machine open.
pub fn start(
    options: Options,
    engine: Arc<Engine>,
    lease: Arc<Lease>,
    wake: WorkerWake,
    sinks: Sinks,
) -> Result<Datapath, StartError> {
    start_with(options, engine, lease, wake, sinks)
}

/// [`start`] with any judge.
///
/// # Errors
/// As [`start`].
pub fn start_with<J: Judge>(
    options: Options,
    judge: Arc<J>,
    lease: Arc<Lease>,
    wake: WorkerWake,
    sinks: Sinks,
) -> Result<Datapath, StartError> {
    check_options(&options, &wake)?;
    let mut machine = Machine::check(&options)?;
    let (guard, injectors) = DeviceGuard::open(&mut machine.netlink, &options)?;
    let devices = &guard.devices;
    check::devices(&devices.names, machine.sysctls, &options.data_names())?;
    machine.let_through(&options, &devices.names)?;
    let installed = install_gate(&machine.gate)?;
    let (captures, indices) = open_captures(&mut machine, &options)?;
    let built = Built::new(&mut machine, options, wake, devices.clone(), indices, &installed)?;
    let incoming = devices.incoming();
    // From here on the devices go with the datapath.
    guard.keep();
    let mut datapath = built.datapath();
    // If a thread cannot be started, dropping `datapath` stops those before it.
    for (number, (ports, injectors)) in captures.into_iter().zip(injectors).enumerate() {
        let routes = RouteZones::new(incoming, built.topology.clone()).map_err(system("a netlink socket"))?;
        let metrics = built.metrics.workers.get(number).map(Arc::clone).unwrap_or_default();
        metrics.heartbeat.set(clock::now());
        let worker = Worker::new(WorkerConfig {
            number: u8::try_from(number).unwrap_or(u8::MAX),
            ports,
            judge: judge.clone(),
            lease: lease.clone(),
            routes,
            injectors,
            limits: built.options.hold,
            stale_after: built.options.stale_after,
            sinks: sinks.clone(),
            connection_log: built.options.connection_log.clone(),
            metrics,
            wake: built.wake.clone(),
            shared: built.shared.clone(),
        });
        datapath.spawn(format!("packets-{number}"), move || worker.run())?;
    }
    if let Some(observer) = built.exit_observer()? {
        datapath.observer_fd = Some(observer.stop_fd.clone());
        datapath.spawn("exits".to_owned(), move || observer.run())?;
    }
    let watcher = built.watcher(machine);
    datapath.spawn("watch".to_owned(), move || watcher.run())?;
    Ok(datapath)
}

/// An error of the operating system's, from a call that was needed for `what`.
fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

fn check_options(options: &Options, wake: &WorkerWake) -> Result<(), StartError> {
    let workers = options.workers;
    if !(1..=WorkerSet::MAX_WORKERS).contains(&workers) || workers != wake.workers() {
        return Err(StartError::Workers { workers, handle: wake.workers() });
    }
    let names = options.interfaces.iter().map(|i| &i.name).chain(&options.bypass_interfaces).chain([&options.device]);
    if let Some(name) = names.into_iter().find(|name| !gate::valid_interface_name(name)) {
        return Err(StartError::Name { name: name.clone() });
    }
    let mut others = options.interfaces.iter().map(|i| &i.name).chain(&options.bypass_interfaces);
    if let Some(name) = others.find(|name| name.starts_with(gate::DEVICE_PREFIX)) {
        return Err(StartError::Reserved { name: name.clone() });
    }
    match options.interfaces.iter().find(|i| options.bypass_interfaces.contains(&i.name)) {
        Some(i) => Err(StartError::Bypassed { interface: i.name.clone(), bypass: i.name.clone() }),
        None => Ok(()),
    }
}

/// The machine's kernel, checked as far as it can be before the device exists.
struct Machine {
    netlink: Netlink,
    /// For the table `local` only.
    strict: Netlink,
    monitor: Monitor,
    gate: Gate,
    sysctls: SysctlPolicy,
    /// The data interfaces that are there, in the order of the configuration.
    links: Vec<Option<Link>>,
    /// What forwarding will change.
    notices: Vec<String>,
}

impl Machine {
    fn check(options: &Options) -> Result<Machine, StartError> {
        let mut netlink = Netlink::open().map_err(system("a netlink socket"))?;
        let strict = Netlink::open().and_then(Netlink::strict).map_err(system("a netlink socket"))?;
        // Before anything is read, so that no change is missed.
        let monitor = Monitor::open().map_err(system("a netlink monitor"))?;
        let gate = options.gate.clone().unwrap_or_else(|| Gate::new(&options.device, &options.bypass_interfaces));
        gate.set_data_interfaces(options.interfaces.iter().map(|interface| &interface.name));
        check::before(&mut netlink, &gate)?;
        check::interfaces(&mut netlink, &options.data_names())?;
        let all = links::links(&mut netlink).map_err(system("the list of interfaces"))?;
        let find = |i: &Interface| all.iter().find(|link| link.name == i.name).cloned();
        let links = options.interfaces.iter().map(find).collect();
        if let Some(error) = links::bypassed(&all, &options.interfaces, &options.bypass_interfaces) {
            return Err(error);
        }
        let sysctls = SysctlPolicy { rp_filter: options.manage_rp_filter, forwarding: options.manage_forwarding };
        // Before forwarding is switched on, after which these routes are gone.
        let advertised = notices::advertised(&mut netlink).map_err(system("the list of IPv6 routes"))?;
        let notices = watch::with_remedies(&advertised);
        notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        Ok(Machine { netlink, strict, monitor, gate, sysctls, links, notices })
    }

    /// Lets what is re-injected by each device leave by the interfaces of its zone.
    fn let_through(&mut self, options: &Options, names: &DeviceNames) -> Result<(), StartError> {
        let all: Vec<String> = names.all().collect();
        self.gate.set_devices(&all).map_err(|source| StartError::Gate { source })?;
        let links = links::links(&mut self.netlink).map_err(system("the list of interfaces"))?;
        // Without the table there is nothing to allow.
        if let Err(error) = self.gate.set_forward_pairs(&watch::forward_pairs(names, &options.interfaces, &links)) {
            tracing::error!(%error, "the kernel forwards nothing, because the gate's table cannot be changed");
        }
        Ok(())
    }
}

/// The devices for re-injection, which are removed again if the start fails.
struct DeviceGuard {
    devices: Devices,
    kept: bool,
}

impl DeviceGuard {
    fn open(netlink: &mut Netlink, options: &Options) -> Result<(DeviceGuard, Vec<Injectors>), StartError> {
        let zones: Vec<&str> = options.interfaces.iter().map(|interface| interface.zone.as_str()).collect();
        let (devices, injectors) = inject::open(netlink, options.inject, &options.device, &zones, options.workers)?;
        Ok((DeviceGuard { devices, kept: false }, injectors))
    }

    /// Leaves the devices to the datapath.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for DeviceGuard {
    fn drop(&mut self) {
        if !self.kept {
            remove_devices(&self.devices);
        }
    }
}

fn install_gate(gate: &Gate) -> Result<Installed, StartError> {
    let installed = gate.install().map_err(|source| StartError::Gate { source })?;
    if let Err(error) = &installed.nft {
        tracing::warn!(%error, "the gate has no nftables lock, only its policy rules");
    }
    Ok(installed)
}

/// The ports of each worker.
type PortsOfWorkers = Vec<Vec<Port>>;

fn rings(options: &Options) -> Result<Rings, StartError> {
    let (interfaces, workers) = (options.interfaces.len(), options.workers);
    let rings = Rings::share(interfaces, workers, options.ring_memory).map_err(|needed| StartError::RingMemory {
        interfaces,
        workers,
        needed,
    })?;
    if options.ring_memory.is_none() && rings.memory() > Rings::DEFAULT {
        let (rings, mebibytes) = (rings.count, rings.memory() >> 20);
        tracing::warn!(
            rings,
            mebibytes,
            "many interfaces and workers: the capture rings take more memory than by default"
        );
    }
    Ok(rings)
}

/// Opens the sockets of all data interfaces: the ports of each worker, and the interface indices that are captured (0 for an
/// interface that is missing or down).
fn open_captures(machine: &mut Machine, options: &Options) -> Result<(PortsOfWorkers, Vec<u32>), StartError> {
    let Options { interfaces, workers, .. } = options;
    let rings = rings(options)?;
    let mut ports: PortsOfWorkers = (0..*workers).map(|_| Vec::with_capacity(interfaces.len())).collect();
    let mut indices = Vec::with_capacity(interfaces.len());
    for (interface, link) in interfaces.iter().zip(&machine.links) {
        let sets = match link {
            // The watcher opens its sockets when it appears.
            None => None,
            Some(link) => {
                links::limit_gro(&mut machine.netlink, link).map_err(system("a limit to GRO"))?;
                match open_sockets(link, *workers, rings.slots) {
                    Ok(sets) => Some((link.index, sets)),
                    // Before Linux 6.13, a socket on an interface that is down can join no fanout group. The watcher opens
                    // it when the interface comes up.
                    Err(_) if !link.up => None,
                    Err(source) => return Err(StartError::Capture { interface: interface.name.clone(), source }),
                }
            }
        };
        let (index, sets) = sets.unwrap_or_else(|| (0, (0..*workers).map(|_| Vec::new()).collect()));
        indices.push(index);
        for (ports, captures) in ports.iter_mut().zip(sets) {
            ports.push(Port { zone_name: interface.zone.clone(), antispoof: interface.antispoof, captures });
        }
    }
    Ok((ports, indices))
}

/// What the threads of the datapath share.
struct Built {
    options: Options,
    rings: Rings,
    devices: Devices,
    wake: WorkerWake,
    shared: Arc<Shared>,
    topology: Arc<Topology>,
    metrics: Arc<DatapathMetrics>,
    health: Arc<Mutex<Health>>,
    conditions: Arc<Conditions>,
}

impl Built {
    fn new(
        machine: &mut Machine,
        options: Options,
        wake: WorkerWake,
        devices: Devices,
        indices: Vec<u32>,
        installed: &Installed,
    ) -> Result<Built, StartError> {
        let local = LocalRoutes::read(&mut machine.strict).map_err(system("the table `local`"))?;
        let topology = Arc::new(Topology::default());
        let addresses = links::addresses(&mut machine.netlink, &indices).map_err(system("the list of addresses"))?;
        topology.addresses.store(Arc::new(addresses));
        let metrics = Arc::new(DatapathMetrics::new(options.workers, options.interfaces.iter().map(|i| &*i.name)));
        let links: Vec<LinkState> = machine.links.iter().map(|link| LinkState::of(link.as_ref())).collect();
        for ((gauges, link), index) in metrics.interfaces.iter().zip(&links).zip(&indices) {
            gauges.set(*link, *index != 0);
        }
        let conditions = Arc::new(Conditions::default());
        conditions.replace(
            Source::Interfaces,
            links.iter().zip(&options.interfaces).filter_map(|(link, interface)| link.condition(interface)),
        );
        topology.indices.store(Arc::new(indices));
        let by_flow = routes::rules_by_flow(&mut machine.netlink).map_err(system("the list of policy rules"))?;
        topology.rules_by_flow.store(by_flow, Ordering::Relaxed);
        topology.changed();
        metrics.watcher.heartbeat.set(clock::now());
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            local: ArcSwap::from_pointee(local),
            // The watcher adds those that the gate exempts.
            handled: ArcSwap::new(topology.indices.load_full()),
            exchange: (0..options.workers).map(|_| Mutex::default()).collect(),
            retired: Mutex::default(),
            stalled: Stalled::new(options.interfaces.len()),
            watcher_fd: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| system("an eventfd")(e.into()))?,
        });
        let (rules, problems) =
            gate::rules_status(&mut machine.netlink, &machine.gate).map_err(system("the list of policy rules"))?;
        let nft = match &installed.nft {
            Ok(()) => Nft::Installed,
            // Until the other process is gone; the watcher tries again.
            Err(NftError::Owned) => Nft::Missing,
            Err(error) => Nft::Unavailable(error.to_string()),
        };
        let health = Arc::new(Mutex::new(Health {
            gate: GateStatus { rules, nft, problems },
            links,
            warnings: BTreeSet::new(),
            bypassed: None,
            chains: [None, None],
            taken: None,
            notices: [Vec::new(), Vec::new(), std::mem::take(&mut machine.notices)],
        }));
        let rings = rings(&options)?;
        Ok(Built { options, rings, devices, wake, shared, topology, metrics, health, conditions })
    }

    /// The handle, without threads yet.
    fn datapath(&self) -> Datapath {
        Datapath {
            interfaces: self.options.interfaces.clone(),
            devices: self.devices.clone(),
            wake: self.wake.clone(),
            shared: self.shared.clone(),
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            conditions: self.conditions.clone(),
            observer_fd: None,
            threads: Vec::with_capacity(self.options.workers + 1),
        }
    }

    /// What learns the exits of packets that the gate drops. Without it, a flow whose route cannot be asked for stays lost.
    fn exit_observer(&self) -> Result<Option<ExitObserver>, StartError> {
        let log = match Nflog::open(gate::EGRESS_LOG_GROUP) {
            Ok(log) => log,
            Err(error) => {
                tracing::warn!(%error, "the gate's log of packets that would leave elsewhere cannot be read");
                return Ok(None);
            }
        };
        let stop_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| system("an eventfd")(e.into()))?;
        Ok(Some(ExitObserver {
            log,
            topology: self.topology.clone(),
            metrics: self.metrics.clone(),
            shared: self.shared.clone(),
            stop_fd: Arc::new(stop_fd),
        }))
    }

    fn watcher(self, machine: Machine) -> Watcher {
        let Machine { netlink, strict, monitor, gate, sysctls, .. } = machine;
        Watcher {
            monitor,
            netlink,
            strict,
            gate,
            devices: self.devices,
            sysctls,
            interfaces: self.options.interfaces,
            bypass_interfaces: self.options.bypass_interfaces,
            ring_slots: self.rings.slots,
            wake: self.wake,
            shared: self.shared,
            topology: self.topology,
            metrics: self.metrics,
            health: self.health,
            conditions: self.conditions,
        }
    }
}
