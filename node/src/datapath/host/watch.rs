//! The watcher: a thread that listens to the kernel, keeps what the workers know up to date, opens sockets again for
//! interfaces that went and came back, and restores the gate and palisade0's settings.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use palisade_engine::Time;
use parking_lot::Mutex;

use super::check::{self, Manage};
use super::links::{self, Link, Local};
use super::netlink::{Changes, Monitor, Netlink};
use super::routes::Topology;
use crate::clock;
use crate::datapath::capture::{Capture, ETHERTYPES};
use crate::datapath::gate::{self, Gate, GateStatus, Nft};
use crate::datapath::inject::{self, Inject};
use crate::datapath::metrics::DatapathMetrics;
use crate::datapath::wake::WorkerWake;
use crate::datapath::worker::Shared;
use crate::datapath::{Interface, StartError};

/// Everything is looked at this often, also if no notice came.
const ROUND: Duration = Duration::from_secs(10);

/// Changes come in swarms; they are handled together after this long.
const SETTLE: Duration = Duration::from_millis(5);

/// The nftables ruleset is looked at no more often than this: it takes a run of `nft`, and others may change theirs
/// all the time. The policy rules guard meanwhile.
const NFT_ROUND: Duration = Duration::from_millis(250);

/// The same for the chains of others that drop what was re-injected: for that the whole ruleset is listed.
const CHAINS_ROUND: Duration = Duration::from_secs(5);

/// What the watcher found, for `status`.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    pub(crate) gate: GateStatus,
    /// By the interface's number: is it up?
    pub(crate) up: Vec<bool>,
    /// Settings that make the datapath eat or leak packets.
    pub(crate) warnings: BTreeSet<String>,
    /// Chains that eat what was re-injected: of nftables, of the older iptables.
    pub(crate) chains: [Option<String>; 2],
}

impl Findings {
    /// What is wrong apart from the gate itself.
    pub(crate) fn wrong(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter().chain(self.chains.iter().flatten())
    }
}

/// The watcher.
pub(crate) struct Watcher {
    pub(crate) monitor: Monitor,
    pub(crate) netlink: Netlink,
    /// For the table `local` alone.
    pub(crate) strict: Netlink,
    pub(crate) gate: Gate,
    /// The nftables table's listing as it was when we made it.
    pub(crate) nft: Result<String, String>,
    pub(crate) device: String,
    pub(crate) kind: Inject,
    pub(crate) manage: Manage,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) slots: u32,
    pub(crate) wake: WorkerWake,
    pub(crate) shared: Arc<Shared>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) metrics: Arc<DatapathMetrics>,
    pub(crate) findings: Arc<Mutex<Findings>>,
    pub(crate) bell: Arc<EventFd>,
}

impl Watcher {
    /// Watches until told to stop.
    pub(crate) fn run(mut self) {
        let (mut looked, mut looked_at_nft, mut nft) = (Time::ZERO, Time::ZERO, false);
        let (mut looked_at_chains, mut chains) = (Time::ZERO, false);
        while !self.shared.stop.load(Ordering::Relaxed) {
            let mut changes = self.monitor.changes();
            let now = clock::now();
            self.metrics.watched.store(now.0, Ordering::Relaxed);
            chains |= changes.nft;
            let round = now.since(looked) >= ROUND;
            if round {
                looked = now;
                changes = Changes::ALL;
            }
            let look_at_chains = (round || chains) && now.since(looked_at_chains) >= CHAINS_ROUND;
            nft |= changes.nft;
            changes.nft = nft && now.since(looked_at_nft) >= NFT_ROUND;
            if changes == Changes::default() && !look_at_chains {
                self.sleep(if nft || chains { NFT_ROUND } else { ROUND });
                continue;
            }
            if changes.nft {
                nft = false;
                looked_at_nft = now;
            }
            self.handle(changes);
            if look_at_chains {
                looked_at_chains = now;
                self.chains(std::mem::take(&mut chains));
            }
        }
    }

    fn sleep(&self, at_most: Duration) {
        let mut fds: Vec<PollFd<'_>> = self.monitor.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.bell.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX));
        std::thread::sleep(SETTLE);
    }

    fn handle(&mut self, changes: Changes) {
        // The gate first: while something of it is missing, the kernel may forward by itself.
        if changes.rules || changes.links {
            self.rules();
        }
        if changes.nft {
            self.nft();
        }
        if changes.settings || changes.links {
            self.settings();
        }
        if changes.links {
            self.links();
        }
        if changes.local || changes.links {
            self.addresses();
            match Local::read(&mut self.strict) {
                Ok(local) => {
                    if **self.shared.local.load() != local {
                        self.shared.local.store(Arc::new(local));
                    }
                }
                Err(error) => tracing::warn!(%error, "the kernel's own addresses can not be read"),
            }
        }
        if changes.links || changes.local || changes.routes || changes.rules {
            self.topology.changed();
        }
    }

    fn rules(&mut self) {
        match gate::install_rules(&mut self.netlink, &self.gate) {
            Ok(0) => {}
            Ok(made) => {
                tracing::warn!(made, "policy rules of the gate were missing and have been restored");
                self.metrics.gate_restored.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tracing::error!(%error, "the gate's policy rules can not be restored"),
        }
        match gate::rules_status(&mut self.netlink, &self.gate) {
            Ok((rules, problems)) => {
                let mut findings = self.findings.lock();
                findings.gate.rules = rules;
                findings.gate.problems = problems;
            }
            Err(error) => tracing::warn!(%error, "the gate's policy rules can not be read"),
        }
    }

    fn nft(&mut self) {
        let Ok(ours) = &self.nft else { return };
        if gate::list_nft().is_ok_and(|now| now == *ours) {
            return;
        }
        self.nft = gate::install_nft(&self.gate).or_else(|reason| {
            tracing::error!(%reason, "the gate's nftables table is gone and can not be restored");
            // Not given up: what does not match any listing is tried again at the next look.
            self.findings.lock().gate.nft = Nft::Missing;
            Ok(String::new())
        });
        if self.nft.as_ref().is_ok_and(|listing| !listing.is_empty()) {
            tracing::warn!("the gate's nftables table was changed and has been restored");
            self.findings.lock().gate.nft = Nft::Installed;
            self.metrics.gate_restored.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Docker or ufw may start after us. The nftables ruleset may be long, so it is read only if it has changed; the older
    /// iptables give no notice of changes.
    fn chains(&mut self, changed: bool) {
        let found = |result: Result<(), StartError>| result.err().map(|error| with_remedy(&error));
        let legacy = found(check::legacy_chains(&self.device));
        let nft = changed.then(|| found(check::nft_chains(&self.device)));
        let mut findings = self.findings.lock();
        let old = findings.chains.clone();
        findings.chains[1] = legacy;
        if let Some(nft) = nft {
            findings.chains[0] = nft;
        }
        for new in findings.chains.iter().flatten().filter(|new| !old.iter().flatten().any(|o| o == *new)) {
            tracing::error!("{new}");
        }
    }

    fn addresses(&mut self) {
        match links::addresses(&mut self.netlink, &self.topology.indices.load()) {
            Ok(addresses) => self.topology.addresses.store(Arc::new(addresses)),
            Err(error) => tracing::warn!(%error, "the data interfaces' addresses can not be read"),
        }
    }

    fn settings(&mut self) {
        match inject::reconfigure(&self.device, self.kind) {
            Ok(0) => {}
            Ok(changed) => {
                tracing::warn!(
                    changed,
                    device = self.device,
                    "settings of the device were changed and have been restored"
                );
                self.metrics.settings_restored.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(%error, "settings of the device can not be restored"),
        }
        let warnings: BTreeSet<String> =
            check::running(&self.device, self.manage).into_iter().map(|error| with_remedy(&error)).collect();
        let mut findings = self.findings.lock();
        for new in warnings.difference(&findings.warnings) {
            tracing::error!("{new}");
        }
        findings.warnings = warnings;
    }

    fn links(&mut self) {
        let links = match links::links(&mut self.netlink) {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "the interfaces can not be listed"),
        };
        let gone = self.monitor.gone();
        let old = self.topology.indices.load_full();
        let mut indices = Vec::with_capacity(self.interfaces.len());
        for (number, interface) in self.interfaces.iter().enumerate() {
            let link = links.iter().find(|link| link.name == interface.name);
            let was = old.get(number).copied().unwrap_or(0);
            if let Some(up) = self.findings.lock().up.get_mut(number) {
                *up = link.is_some_and(|link| link.up);
            }
            if let Some(link) = link
                && let Err(error) = links::hold_gro(&mut self.netlink, link)
            {
                tracing::warn!(%error, interface = link.name, "GRO can not be held to 64 KiB; larger packets will be lost");
            }
            indices.push(match link {
                Some(link) if link.index == was && !gone.contains(&was) => was,
                Some(link) => match open(link, self.wake.workers(), self.slots) {
                    Ok(sets) => {
                        tracing::info!(interface = link.name, index = link.index, "capturing the interface again");
                        self.metrics.captures_reopened.fetch_add(1, Ordering::Relaxed);
                        self.hand_over(number, sets);
                        link.index
                    }
                    Err(error) => {
                        tracing::error!(%error, interface = link.name, "the interface can not be captured");
                        0
                    }
                },
                None => {
                    if was != 0 {
                        tracing::warn!(interface = interface.name, "the interface is gone");
                        self.hand_over(number, (0..self.wake.workers()).map(|_| Vec::new()).collect());
                    }
                    0
                }
            });
        }
        if *old != indices {
            self.topology.indices.store(Arc::new(indices));
        }
    }

    fn hand_over(&self, number: usize, sets: Vec<Vec<Capture>>) {
        for (worker, captures) in sets.into_iter().enumerate() {
            if let Some(exchange) = self.shared.exchange.get(worker) {
                exchange.lock().push((number, captures));
            }
            self.wake.ring(worker);
        }
    }
}

fn with_remedy(error: &StartError) -> String {
    let help = miette::Diagnostic::help(error).map(|h| format!("; {h}")).unwrap_or_default();
    format!("{error}{help}")
}

/// Opens an interface's sockets: for each worker, those of all EtherTypes.
pub(crate) fn open(link: &Link, workers: usize, slots: u32) -> std::io::Result<Vec<Vec<Capture>>> {
    let mut sets: Vec<Vec<Capture>> = (0..workers).map(|_| Vec::with_capacity(ETHERTYPES.len())).collect();
    for ethertype in ETHERTYPES {
        for (set, capture) in sets.iter_mut().zip(Capture::open(link.index, ethertype, workers, slots)?) {
            set.push(capture);
        }
    }
    Ok(sets)
}
