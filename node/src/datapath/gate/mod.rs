//! The gate: it keeps the kernel from routing what Palisade captured.
//!
//! Default deny with two locks: policy rules and an nftables table. Only [`Gate::remove`], an operator's explicit command,
//! removes them: if the daemon stops or dies, the gate stays and the machine forwards nothing. Packets for the machine
//! itself are delivered as always.

mod nft;
mod rules;

pub(crate) use nft::{run, run_any};

use std::io;

use super::host::netlink::Netlink;
use super::host::sysctl::Family;

/// The interfaces that the gate lets pass: the loopback, Palisade's own device, and those that the operator exempted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    pass: Vec<String>,
}

/// The state of the second lock, the nftables table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nft {
    /// The table is installed.
    Installed,
    /// The table is missing.
    Missing,
    /// The machine has no nftables; the first lock stands alone.
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

/// What [`install`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installed {
    /// Policy rules that were missing.
    pub rules_made: usize,
    /// The listing of the nftables table, from which changes are noticed; or why there is none.
    pub nft: Result<String, String>,
}

impl Gate {
    /// The gate around `device`. Names of interfaces are at most 15 bytes and never contain quotes or white space.
    #[must_use]
    pub fn new(device: &str, bypass_interfaces: &[String]) -> Gate {
        let names = ["lo", device].into_iter().map(str::to_owned).chain(bypass_interfaces.iter().cloned());
        Gate { pass: names.filter(|name| valid_interface_name(name)).collect() }
    }

    /// Installs both locks, or restores what is missing of them.
    ///
    /// # Errors
    /// The kernel refuses a policy rule: then the machine is open. A failure of the second lock is no error.
    pub fn install(&self) -> io::Result<Installed> {
        let rules_made = install_rules(&mut Netlink::open()?, self)?;
        Ok(Installed { rules_made, nft: install_nft(self) })
    }

    /// The state of both locks.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn status(&self) -> io::Result<GateStatus> {
        let mut netlink = Netlink::open()?;
        let (rules, problems) = rules_status(&mut netlink, self)?;
        let nft = match nft::list() {
            Ok(_) => Nft::Installed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Nft::Unavailable(reason(e)),
            Err(_) => Nft::Missing,
        };
        Ok(GateStatus { rules, nft, problems })
    }

    /// Removes both locks, on an operator's explicit command only: from now on the kernel forwards without Palisade.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove() -> io::Result<()> {
        match nft::remove() {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut netlink = Netlink::open()?;
        Family::present().try_for_each(|family| rules::remove(&mut netlink, family))
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
    Family::present().try_fold(0, |made, family| Ok(made + rules::install(netlink, family, &gate.pass)?))
}

pub(crate) fn install_nft(gate: &Gate) -> Result<String, String> {
    nft::install(&gate.pass).map_err(reason)
}

/// The nftables table as it is now.
pub(crate) fn list_nft() -> io::Result<String> {
    nft::list()
}

fn reason(e: io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "the program nft is not installed".to_owned(),
        _ => e.to_string(),
    }
}

/// Whether the first lock is complete, and its problems.
pub(crate) fn rules_status(netlink: &mut Netlink, gate: &Gate) -> io::Result<(bool, Vec<String>)> {
    let mut whole = true;
    let mut problems = Vec::new();
    for family in Family::present() {
        let found = rules::find(netlink, family, &gate.pass)?;
        if !found.complete(&gate.pass) {
            whole = false;
            problems.push(format!("a policy rule of the gate is missing for {family}, or an old exemption is left"));
        }
        if !found.local_first {
            problems.push(format!("the rule `lookup local` is not ahead of the gate for {family}"));
        }
        problems.extend(
            found
                .foreign
                .iter()
                .map(|at| format!("a foreign {family} policy rule at priority {at} leads around the gate")),
        );
    }
    Ok((whole, problems))
}

/// The order of a family's policy rules, for the start checks: whether `local` is first, and the priorities of foreign rules
/// ahead of the gate.
pub(crate) fn order(netlink: &mut Netlink, gate: &Gate, family: Family) -> io::Result<(bool, Vec<u32>)> {
    let found = rules::find(netlink, family, &gate.pass)?;
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
        assert_eq!(gate.pass, ["lo", "palisade0", "mgmt0"]);
    }
}
