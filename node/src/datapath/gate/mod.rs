//! The gate: it keeps the kernel from routing what Palisade captured.
//!
//! Default deny with two locks: policy rules and an nftables table. Only [`Gate::remove`], an operator's explicit command,
//! removes them: if the daemon stops or dies, the gate stays and the machine forwards nothing. Packets for the machine
//! itself are delivered as always.

mod nft;
mod rules;

pub(crate) use nft::DEVICE_PREFIX;
pub(crate) use nft::{Bridge, Connection, EGRESS_LOG_GROUP, TABLE, wire};
pub use nft::{Listener, NftError};

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use rules::Pass;

use super::host::neighbours;
use super::host::netlink::Netlink;
use super::host::sysctl::Family;

/// A handle on the gate. Its copies are one gate. While one of them exists after [`Gate::install`], nobody else can change
/// the second lock, where the kernel can do that.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    names: Mutex<Names>,
    table: Mutex<nft::Table>,
}

/// The interfaces that the gate lets pass, besides the loopback.
#[derive(Debug)]
struct Names {
    /// Palisade's own devices.
    devices: Vec<String>,
    /// Those that the operator exempted.
    bypass: Vec<String>,
    /// Data interfaces, of which the policy rules know for lookups without a packet.
    data: Vec<String>,
}

/// The state of the second lock, the nftables table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nft {
    /// The table is installed.
    Installed,
    /// The table is missing.
    Missing,
    /// The kernel has no nftables or refuses the table; the first lock stands alone.
    Unavailable(String),
}

/// The state of the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateStatus {
    /// Lock 1: whether all policy rules are installed, for all families of this kernel.
    pub rules: bool,
    /// Lock 2.
    pub nft: Nft,
    /// What is wrong with it, as text.
    pub problems: Vec<String>,
}

/// What [`Gate::install`] did.
#[derive(Debug)]
pub struct Installed {
    /// Policy rules that were missing.
    pub rules_made: usize,
    /// Why there is no nftables table.
    pub nft: Result<(), NftError>,
    /// What is wrong with the policy rules, as text.
    pub problems: Vec<String>,
}

impl Gate {
    /// The gate around `device`. Names of interfaces are at most 15 bytes and never contain quotes or white space.
    #[must_use]
    pub fn new(device: &str, bypass_interfaces: &[String]) -> Gate {
        Gate::with(device, bypass_interfaces, true)
    }

    /// As [`Gate::new`], but everybody may change its table, as on a kernel before Linux 6.9.
    #[must_use]
    pub fn without_owner(device: &str, bypass_interfaces: &[String]) -> Gate {
        Gate::with(device, bypass_interfaces, false)
    }

    fn with(device: &str, bypass_interfaces: &[String], owned: bool) -> Gate {
        let valid = |names: &[String]| names.iter().filter(|name| valid_interface_name(name)).cloned().collect();
        let names = Names { devices: valid(&[device.to_owned()]), bypass: valid(bypass_interfaces), data: Vec::new() };
        Gate { shared: Arc::new(Shared { names: Mutex::new(names), table: Mutex::new(nft::Table::new(owned)) }) }
    }

    /// The interfaces that the gate exempts as it is now, whoever installed it.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn exemptions() -> io::Result<Vec<String>> {
        let mut netlink = Netlink::open()?;
        let mut names = Vec::new();
        for family in Family::present() {
            names.extend(rules::exempt(&mut netlink, family)?);
        }
        names.retain(|name| !name.starts_with(nft::DEVICE_PREFIX));
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The names of which the policy rules know.
    fn pass(&self) -> Pass {
        let names = self.shared.names.lock();
        let from = std::iter::once("lo".to_owned()).chain(names.devices.iter().chain(&names.bypass).cloned()).collect();
        Pass { from, data: names.data.clone() }
    }

    /// The names that the table exempts: all that begin as our devices do it knows without.
    fn exempt(&self) -> Vec<String> {
        self.pass().from.into_iter().filter(|name| !name.starts_with(nft::DEVICE_PREFIX)).collect()
    }

    /// Installs both locks, or restores what is missing of them.
    ///
    /// # Errors
    /// Neither lock is whole: then the machine is open. A failure of the second lock alone is no error, nor are rules that
    /// would cut the machine off from itself and are left out.
    pub fn install(&self) -> io::Result<Installed> {
        let mut netlink = Netlink::open()?;
        let rules_made = install_rules(&mut netlink, self)?;
        let bridges = neighbours::bridges(&neighbours::neighbours(&mut netlink)?);
        let nft = self.set_bridges(bridges).and_then(|()| self.install_nft());
        let (whole, problems) = rules_status(&mut netlink, self)?;
        match &nft {
            // Whoever owns the table has installed it.
            Err(error) if !whole && !matches!(error, NftError::Owned) => {
                Err(io::Error::other(format!("{}; {error}", problems.join("; "))))
            }
            _ => Ok(Installed { rules_made, nft, problems }),
        }
    }

    /// Which of our devices (by index) may lead to which interface. Everything else that was re-injected is dropped where
    /// the kernel has routed it, and logged to NFLOG. May be called before [`Gate::install`].
    ///
    /// # Errors
    /// The kernel refuses; the table has the old pairs then, or is not there.
    pub fn set_forward_pairs(&self, pairs: &BTreeSet<(u32, u32)>) -> Result<(), NftError> {
        self.shared.table.lock().set_pairs(pairs)
    }

    /// Which sockets of this machine may be reached only from which interfaces: all of them, each time. May be called before
    /// [`Gate::install`].
    ///
    /// # Errors
    /// The kernel refuses; the table has the old listeners then, or is not there.
    pub fn set_listeners(&self, listeners: &[Listener]) -> Result<(), NftError> {
        self.shared.table.lock().set_listeners(listeners)
    }

    /// The bridges of this machine, whose frames for others are none of the gate's business.
    pub(crate) fn set_bridges(&self, bridges: Vec<Bridge>) -> Result<(), NftError> {
        self.shared.table.lock().set_bridges(bridges)
    }

    /// Names the data interfaces, before [`Gate::install`]: only so IPv6 routes via a global gateway can be added to other
    /// tables than `main`.
    pub fn set_data_interfaces<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        self.shared.names.lock().data = names.into_iter().filter(|name| valid_interface_name(name)).cloned().collect();
    }

    /// Our devices, by name, whose packets pass the first lock.
    ///
    /// # Errors
    /// The kernel refuses a policy rule.
    pub fn set_devices(&self, devices: &[String]) -> io::Result<()> {
        self.shared.names.lock().devices = devices.iter().filter(|name| valid_interface_name(name)).cloned().collect();
        install_rules(&mut Netlink::open()?, self).map(drop)
    }

    /// The state of both locks.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn status(&self) -> io::Result<GateStatus> {
        let mut netlink = Netlink::open()?;
        let (rules, problems) = rules_status(&mut netlink, self)?;
        let nft = match nft::find() {
            Ok(nft::Found::Whole) => Nft::Installed,
            Ok(nft::Found::Missing) => Nft::Missing,
            Err(error) => Nft::Unavailable(error.to_string()),
        };
        Ok(GateStatus { rules, nft, problems })
    }

    /// Removes both locks, on an operator's explicit command only: from now on the kernel forwards without Palisade.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove() -> io::Result<()> {
        match nft::remove() {
            Err(error) if !matches!(error, NftError::Unavailable) => return Err(io::Error::other(error)),
            _ => {}
        }
        let mut netlink = Netlink::open()?;
        Family::present().try_for_each(|family| rules::remove(&mut netlink, family))
    }

    pub(crate) fn install_nft(&self) -> Result<(), NftError> {
        let exempt = self.exempt();
        self.shared.table.lock().install(exempt)
    }

    /// Whether the table is as it was installed.
    pub(crate) fn nft_unchanged(&self) -> io::Result<bool> {
        self.shared.table.lock().unchanged()
    }
}

/// Whether an interface may have this name: as the kernel's `dev_valid_name`, and without quotes.
#[must_use]
pub(crate) fn valid_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name
            .contains(|c: char| c == '/' || c == ':' || c == '"' || c == '\\' || c.is_whitespace() || c.is_control())
}

pub(crate) fn install_rules(netlink: &mut Netlink, gate: &Gate) -> io::Result<usize> {
    let pass = gate.pass();
    Family::present().try_fold(0, |made, family| Ok(made + rules::install(netlink, family, &pass)?))
}

/// Whether the first lock is complete, and its problems.
pub(crate) fn rules_status(netlink: &mut Netlink, gate: &Gate) -> io::Result<(bool, Vec<String>)> {
    let pass = gate.pass();
    let mut whole = true;
    let mut problems = Vec::new();
    for family in Family::present() {
        let found = rules::find(netlink, family, &pass)?;
        if !found.complete(family, &pass) {
            whole = false;
            problems.push(format!("a policy rule of the gate is missing for {family}, or an old exemption is left"));
        }
        if !found.local_first {
            problems.push(format!(
                "the rule `lookup local` is not ahead of the gate for {family}, so the gate's policy rules would cut this machine \
                 off from itself: put it back (`ip rule add pref 0 lookup local`, for IPv6 `ip -6 rule …`)"
            ));
        }
        problems.extend(found.foreign.iter().map(|at| {
            format!(
                "a foreign {family} policy rule at priority {at} leads around the gate; give it a priority above 3 (`pref 1000`): \
                 without `pref` the kernel chooses 0"
            )
        }));
    }
    Ok((whole, problems))
}

/// The rules behind the gate that name an incoming interface: priority and interface.
pub(crate) fn named(netlink: &mut Netlink, gate: &Gate, family: Family) -> io::Result<Vec<(u32, String)>> {
    Ok(rules::find(netlink, family, &gate.pass())?.names)
}

/// The order of a family's policy rules, for the start checks: whether `local` is first, and the priorities of foreign rules
/// ahead of the gate.
pub(crate) fn order(netlink: &mut Netlink, gate: &Gate, family: Family) -> io::Result<(bool, Vec<u32>)> {
    let found = rules::find(netlink, family, &gate.pass())?;
    Ok((found.local_first, found.foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_takes_no_name_that_could_end_its_quotes() {
        for good in ["eth0", "eth0.10", "wg-a", "br_lan"] {
            assert!(valid_interface_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a\"b", "a/b", "a:b", "sixteen-letters-"] {
            assert!(!valid_interface_name(bad), "{bad}");
        }
        let gate = Gate::new("palisade0", &["mgmt0".to_owned(), "x\" } accept".to_owned()]);
        assert_eq!(gate.pass().from, ["lo", "palisade0", "mgmt0"]);
    }
}
