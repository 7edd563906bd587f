//! The gate: the kernel must not route what Palisade captured.
//!
//! Default deny by two locks, policy rules and an nftables table. Nothing removes them but [`remove`], an operator's
//! explicit command: the daemon may stop or die, the gate stays, and the machine forwards nothing. What is for the
//! machine itself is delivered as always.

mod nft;
mod rules;

pub(crate) use nft::{run, run_any};

use std::io;

use super::host::netlink::Netlink;
use super::host::sysctl::Family;

/// Whom the gate lets pass: the loopback, Palisade's own device, and the interfaces that the operator exempted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    pass: Vec<String>,
}

/// The state of the second lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nft {
    /// The table is there.
    Installed,
    /// The table is not there.
    Missing,
    /// It can not be had here; the first lock stands alone.
    Unavailable(String),
}

/// The state of the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateStatus {
    /// Lock 1: are all policy rules there, for all families of this kernel?
    pub rules: bool,
    /// Lock 2.
    pub nft: Nft,
    /// What is wrong with it, for a person to read.
    pub problems: Vec<String>,
}

/// What [`install`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installed {
    /// Policy rules that were missing.
    pub rules_made: usize,
    /// The nftables table's listing, to notice changes by; or why there is none.
    pub nft: Result<String, String>,
}

impl Gate {
    /// The gate around `device`. Names of interfaces are at most 15 bytes and never contain quotes or white space.
    #[must_use]
    pub fn new(device: &str, unfiltered: &[String]) -> Gate {
        let names = ["lo", device].into_iter().map(str::to_owned).chain(unfiltered.iter().cloned());
        Gate { pass: names.filter(|name| valid_name(name)).collect() }
    }

    /// Installs both locks, or restores what is missing of them.
    ///
    /// # Errors
    /// The kernel refuses a policy rule: then nothing guards this machine. The second lock's failure is no error.
    pub fn install(&self) -> io::Result<Installed> {
        let rules_made = install_rules(&mut Netlink::open()?, self)?;
        Ok(Installed { rules_made, nft: install_nft(self) })
    }

    /// Looks at both locks.
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

    /// Removes both locks: from now on the kernel forwards without Palisade. Only on an operator's explicit command.
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

/// May an interface have this name? (As the kernel's `dev_valid_name`, and no quote.)
#[must_use]
pub(crate) fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '"' || c == '\\' || c.is_whitespace())
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

/// Is the first lock whole, and what undoes it?
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

/// What the policy rules of a family look like, for the start checks: `local` first, and foreign rules ahead.
pub(crate) fn order(netlink: &mut Netlink, gate: &Gate, family: Family) -> io::Result<(bool, Vec<u32>)> {
    let found = rules::find(netlink, family, &gate.pass)?;
    Ok((found.local_first, found.foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_quotes_are_no_names() {
        for good in ["eth0", "eth0.10", "wg-a", "br_lan"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a\"b", "a/b", "a:b", "sixteen-letters-"] {
            assert!(!valid_name(bad), "{bad}");
        }
        let gate = Gate::new("palisade0", &["mgmt0".to_owned(), "x\" } accept".to_owned()]);
        assert_eq!(gate.pass, ["lo", "palisade0", "mgmt0"]);
    }
}
