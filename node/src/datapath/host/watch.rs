//! The watcher: a thread that follows the kernel's notifications. It updates what the workers know, reopens the sockets of
//! interfaces that were removed and came back, and restores the gate and the sysctls of our devices.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use palisade_engine::Time;
use parking_lot::Mutex;

use super::check::{self, SysctlPolicy};
use super::interfaces::LinkState;
use super::links::{self, Link, LocalRoutes};
use super::neighbours;
use super::netlink::{Changes, Monitor, Netlink};
use super::notices::{self, Notice};
use super::routes::{self, Topology};
use super::ruleset::Ruleset;
use crate::clock;
use crate::datapath::gate::{self, Gate, GateStatus, Nft};
use crate::datapath::health::Conditions;
use crate::datapath::inject::{DeviceNames, Devices};
use crate::datapath::metrics::DatapathMetrics;
use crate::datapath::wake::WorkerWake;
use crate::datapath::worker::Shared;
use crate::datapath::{Interface, StartError};

/// Interval at which everything is checked, even without a notification.
const FULL_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Notifications come in bursts; those of this time are handled together.
const BURST_DELAY: Duration = Duration::from_millis(5);

/// Minimum time between two checks of the nftables table: other programs may change their tables all the time. The policy
/// rules keep the gate closed meanwhile.
const NFT_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Minimum time between two checks of other programs' forward chains: each lists the whole ruleset.
const CHAIN_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What the watcher found, for the status.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) gate: GateStatus,
    /// The data interfaces, in the order of the configuration.
    pub(crate) links: Vec<LinkState>,
    /// Settings with which packets are lost or bypass the datapath.
    pub(crate) warnings: BTreeSet<String>,
    /// A data interface that the gate exempts.
    pub(crate) bypassed: Option<String>,
    /// Chains that drop re-injected packets: of nftables, of iptables-legacy.
    pub(crate) chains: [Option<String>; 2],
    /// What others made of a data interface.
    pub(crate) taken: Option<String>,
    /// What works otherwise than an operator may expect: in nftables, in routing, at the start.
    pub(crate) notices: [Vec<String>; 3],
}

impl Health {
    /// The problems apart from those of the gate.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter().chain(&self.bypassed).chain(self.chains.iter().flatten()).chain(&self.taken)
    }
}

/// When which check is due: nftables and foreign chains are checked less often than they may change.
#[derive(Default)]
struct Schedule {
    full_check: Time,
    nft_check: Time,
    chain_check: Time,
    /// Whether nftables has changed since its last check, and since the last check of the chains.
    nft_pending: bool,
    chains_pending: bool,
}

/// The checks that are due.
struct Due {
    changes: Changes,
    /// Whether nftables has changed since the last check of the chains; `None`: that check is not due.
    chains: Option<bool>,
}

impl Schedule {
    fn due(&mut self, now: Time, mut changes: Changes) -> Due {
        self.chains_pending |= changes.nft;
        let full = now.since(self.full_check) >= FULL_CHECK_INTERVAL;
        if full {
            self.full_check = now;
            changes = Changes::ALL;
        }
        self.nft_pending |= changes.nft;
        changes.nft = self.nft_pending && now.since(self.nft_check) >= NFT_CHECK_INTERVAL;
        if changes.nft {
            self.nft_pending = false;
            self.nft_check = now;
        }
        let chains = (full || self.chains_pending) && now.since(self.chain_check) >= CHAIN_CHECK_INTERVAL;
        let chains = chains.then(|| {
            self.chain_check = now;
            std::mem::take(&mut self.chains_pending)
        });
        Due { changes, chains }
    }

    /// How long the watcher may sleep.
    fn wait(&self) -> Duration {
        if self.nft_pending || self.chains_pending { NFT_CHECK_INTERVAL } else { FULL_CHECK_INTERVAL }
    }
}

/// The watcher.
pub(crate) struct Watcher {
    pub(crate) monitor: Monitor,
    pub(crate) netlink: Netlink,
    /// For the routing table `local` only.
    pub(crate) strict: Netlink,
    pub(crate) gate: Gate,
    pub(crate) devices: Devices,
    pub(crate) sysctls: SysctlPolicy,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) bypass_interfaces: Vec<String>,
    pub(crate) ring_slots: u32,
    pub(crate) wake: WorkerWake,
    pub(crate) shared: Arc<Shared>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) metrics: Arc<DatapathMetrics>,
    pub(crate) health: Arc<Mutex<Health>>,
    pub(crate) conditions: Arc<Conditions>,
}

impl Watcher {
    /// Watches until the datapath stops.
    pub(crate) fn run(mut self) {
        let mut schedule = Schedule::default();
        while !self.stopped() {
            self.close_retired();
            let mut changes = self.monitor.changes();
            changes.links |= self.capture_requested();
            let now = clock::now();
            self.metrics.watcher.heartbeat.set(now);
            let due = schedule.due(now, changes);
            if due.changes == Changes::default() && due.chains.is_none() {
                self.sleep(schedule.wait());
                continue;
            }
            self.handle(due.changes);
            if let Some(nft_changed) = due.chains {
                self.check_chains(nft_changed);
            }
        }
    }

    fn sleep(&self, timeout: Duration) {
        let mut fds: Vec<PollFd<'_>> = self.monitor.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.shared.watcher_fd.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        self.clear_signal();
        std::thread::sleep(BURST_DELAY);
    }

    fn handle(&mut self, changes: Changes) {
        // The gate first: while something of it is missing, the kernel may forward by itself.
        if changes.rules || changes.links {
            self.check_rules();
        }
        if changes.nft {
            self.check_nft();
        }
        if changes.settings || changes.links {
            self.check_settings();
        }
        if changes.links {
            self.update_bridges();
            self.update_links();
        }
        if changes.local || changes.links {
            self.update_addresses();
            match LocalRoutes::read(&mut self.strict) {
                Ok(local) => {
                    if **self.shared.local.load() != local {
                        self.shared.local.store(Arc::new(local));
                    }
                }
                Err(error) => tracing::warn!(%error, "the kernel's own addresses cannot be read"),
            }
        }
        if changes.rules {
            match routes::rules_by_flow(&mut self.netlink) {
                Ok(by_flow) => self.topology.rules_by_flow.store(by_flow, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "the policy rules cannot be read"),
            }
        }
        if changes.links || changes.local || changes.routes || changes.rules {
            self.topology.changed();
        }
        if changes.links || changes.rules {
            self.check_neighbours();
        }
    }

    fn check_rules(&mut self) {
        match gate::install_rules(&mut self.netlink, &self.gate) {
            Ok(0) => {}
            Ok(made) => {
                tracing::warn!(made, "policy rules of the gate were missing and have been restored");
                self.metrics.watcher.gate_restored.inc();
            }
            Err(error) => tracing::error!(%error, "the gate's policy rules cannot be restored"),
        }
        match gate::rules_status(&mut self.netlink, &self.gate) {
            Ok((rules, problems)) => {
                let mut health = self.health.lock();
                health.gate.rules = rules;
                health.gate.problems = problems;
            }
            Err(error) => tracing::warn!(%error, "the gate's policy rules cannot be read"),
        }
    }

    fn check_nft(&mut self) {
        if matches!(self.health.lock().gate.nft, Nft::Unavailable(_)) {
            return;
        }
        match self.gate.nft_unchanged() {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the gate's nftables table cannot be read"),
        }
        let nft = match self.gate.install_nft() {
            Ok(()) => {
                tracing::warn!("the gate's nftables table was changed and has been restored");
                self.metrics.watcher.gate_restored.inc();
                Nft::Installed
            }
            Err(error) => {
                tracing::error!(%error, "the gate's nftables table is gone and cannot be restored");
                Nft::Missing
            }
        };
        self.health.lock().gate.nft = nft;
    }

    /// Checks the forward chains of other programs: Docker or ufw may start after this daemon. The nftables ruleset may be
    /// long, so it is read only if it has changed; iptables-legacy sends no notifications.
    fn check_chains(&mut self, changed: bool) {
        let found = |result: Result<(), StartError>| result.err().map(|error| with_remedy(&error));
        let devices: Vec<String> = self.devices.names.all().collect();
        let legacy = found(check::legacy_chains(&devices));
        let nft = changed.then(|| self.check_ruleset());
        let mut health = self.health.lock();
        let old = health.chains.clone();
        health.chains[1] = legacy;
        if let Some((obstacle, notices)) = nft {
            health.chains[0] = obstacle;
            log_new(&health.notices[0], &notices);
            health.notices[0] = notices;
        }
        for new in health.chains.iter().flatten().filter(|new| !old.iter().flatten().any(|o| o == *new)) {
            tracing::error!("{new}");
        }
    }

    /// What in the nftables ruleset drops re-injected packets, and what else is to be said of it.
    fn check_ruleset(&self) -> (Option<String>, Vec<String>) {
        let ruleset = match Ruleset::read() {
            Ok(ruleset) => ruleset,
            Err(error) => {
                tracing::warn!(%error, "the nftables ruleset cannot be read");
                return (None, Vec::new());
            }
        };
        let data: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let devices: Vec<String> = self.devices.names.all().collect();
        let obstacle = check::nftables(&ruleset, &devices, &data).err();
        (obstacle.map(|error| with_remedy(&error)), with_remedies(&notices::of_ruleset(&ruleset)))
    }

    /// What others made of the data interfaces and of routing.
    fn check_neighbours(&mut self) {
        let data: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let taken = check::interfaces(&mut self.netlink, &data).err().map(|error| with_remedy(&error));
        let routing = match notices::of_routing(&mut self.netlink, &self.gate, &data) {
            Ok(notices) => with_remedies(&notices),
            Err(error) => {
                tracing::warn!(%error, "policy rules and IPsec policies cannot be read");
                Vec::new()
            }
        };
        let mut health = self.health.lock();
        if health.taken != taken
            && let Some(new) = &taken
        {
            tracing::error!("{new}");
        }
        health.taken = taken;
        log_new(&health.notices[1], &routing);
        health.notices[1] = routing;
    }

    fn update_addresses(&mut self) {
        match links::addresses(&mut self.netlink, &self.topology.indices.load()) {
            Ok(addresses) => self.topology.addresses.store(Arc::new(addresses)),
            Err(error) => tracing::warn!(%error, "the data interfaces' addresses cannot be read"),
        }
    }

    pub(super) fn check_settings(&mut self) {
        match self.devices.reconfigure() {
            Ok(0) => {}
            Ok(changed) => {
                tracing::warn!(changed, "settings of the devices for re-injection were changed and have been restored");
                self.metrics.watcher.kernel_settings_restored.inc();
            }
            Err(error) => tracing::warn!(%error, "settings of the devices for re-injection cannot be restored"),
        }
        let warnings: BTreeSet<String> =
            check::running(&self.devices.names, self.sysctls).into_iter().map(|error| with_remedy(&error)).collect();
        let mut health = self.health.lock();
        for new in warnings.difference(&health.warnings) {
            tracing::error!("{new}");
        }
        health.warnings = warnings;
    }

    fn update_links(&mut self) {
        let links = match links::links(&mut self.netlink) {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "the interfaces cannot be listed"),
        };
        let bypassed = links::bypassed(&links, &self.interfaces, &self.bypass_interfaces);
        self.health.lock().bypassed = bypassed.map(|error| with_remedy(&error));
        if self.follow_devices(&links) {
            // Made anew, with other indices.
            match links::links(&mut self.netlink) {
                Ok(links) => self.allow_forwarding(&links),
                Err(error) => tracing::warn!(%error, "the interfaces cannot be listed"),
            }
        } else {
            self.allow_forwarding(&links);
        }
        self.follow_interfaces(&links);
    }

    /// An interface that was made anew has another index: nothing leaves by it until the gate knows it.
    fn allow_forwarding(&self, links: &[Link]) {
        let pairs = forward_pairs(&self.devices.names, &self.interfaces, links);
        if let Err(error) = self.gate.set_forward_pairs(&pairs) {
            tracing::error!(%error, "the gate's table cannot be changed");
        }
    }

    fn update_bridges(&mut self) {
        match neighbours::neighbours(&mut self.netlink) {
            Ok(links) => {
                if let Err(error) = self.gate.set_bridges(neighbours::bridges(&links)) {
                    tracing::error!(%error, "the gate's table cannot be changed");
                }
            }
            Err(error) => tracing::warn!(%error, "the interfaces cannot be listed"),
        }
    }
}

/// Which of our devices may lead to which data interfaces, as they are now.
pub(crate) fn forward_pairs(names: &DeviceNames, interfaces: &[Interface], links: &[Link]) -> BTreeSet<(u32, u32)> {
    names.forward_pairs(interfaces, |name| links.iter().find(|link| link.name == name).map(|link| link.index))
}

/// Notices as text.
pub(crate) fn with_remedies(notices: &[Notice]) -> Vec<String> {
    notices.iter().map(with_remedy).collect()
}

/// Logs what is new among notices.
fn log_new(old: &[String], new: &[String]) {
    for notice in new.iter().filter(|notice| !old.contains(notice)) {
        tracing::warn!("{notice}");
    }
}

fn with_remedy<E: std::fmt::Display + miette::Diagnostic>(error: &E) -> String {
    let help = error.help().map(|h| format!("; {h}")).unwrap_or_default();
    format!("{error}{help}")
}
