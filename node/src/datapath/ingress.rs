//! Which interfaces a socket of this machine may be reached by: finding them, and enforcing it in the kernel.
//!
//! Linux accepts a packet for any of its addresses on any interface (the weak host model of RFC 1122 section 3.3.4.2). A socket
//! filter on the index of the incoming interface does not: it runs before a SYN is answered, works for an address on the
//! loopback interface, and can be exchanged while the socket is open. `SO_BINDTODEVICE` takes one interface only, and its
//! socket stays bound to one that was removed, also when an interface of the same name is made again.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::host::links;
use super::host::netlink::{LinkMonitor, Netlink};
use super::sys;

pub(crate) use super::sys::MAX_INDICES;

/// The name of the loopback interface.
const LOOPBACK: &str = "lo";

/// A listening address and the interfaces that the configuration names for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ingress {
    /// The address.
    pub(crate) address: SocketAddr,
    /// The interfaces' names; none: the interface that has the address.
    pub(crate) names: Vec<String>,
    /// Whether this machine's own programs may connect. Their packets come from the loopback interface, whatever the address.
    pub(crate) own_programs: bool,
}

/// The interfaces by which a socket may be reached now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    /// Their indices.
    pub(crate) indices: BTreeSet<u32>,
    /// What is named, but not there.
    pub(crate) missing: Vec<String>,
    /// Whether the loopback interface alone has the address, and no other is named: nobody outside may connect.
    pub(crate) only_loopback: bool,
}

impl Ingress {
    /// The interfaces now. `links`: all, by name; `holders`: those that have the address.
    fn resolve(&self, links: &[(String, u32)], holders: &[u32]) -> Found {
        let index = |name: &str| links.iter().find(|(n, _)| n == name).map(|(_, index)| *index);
        let loopback = index(LOOPBACK);
        let mut found = Found::default();
        let ip = self.address.ip().to_canonical();
        if self.names.is_empty() {
            found.indices.extend(holders.iter().filter(|holder| Some(**holder) != loopback));
            found.only_loopback =
                !ip.is_loopback() && holders.iter().any(|holder| Some(*holder) == loopback) && found.indices.is_empty();
        }
        for name in &self.names {
            match index(name) {
                Some(index) => drop(found.indices.insert(index)),
                None => found.missing.push(name.clone()),
            }
        }
        if self.own_programs || ip.is_loopback() {
            found.indices.extend(loopback);
        }
        found
    }
}

/// Follows the machine's interfaces and their addresses.
pub(crate) struct IngressWatch {
    monitor: LinkMonitor,
    netlink: Netlink,
}

impl IngressWatch {
    /// Subscribes to changes from now on, in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<IngressWatch> {
        Ok(IngressWatch { monitor: LinkMonitor::open()?, netlink: Netlink::open()? })
    }

    /// The interfaces by which a socket may be reached now.
    pub(crate) fn find(&mut self, ingress: &Ingress) -> io::Result<Found> {
        let links = links::links(&mut self.netlink)?;
        let links: Vec<(String, u32)> = links.into_iter().map(|link| (link.name, link.index)).collect();
        let holders = match ingress.address {
            // The scope of a link-local address is an interface.
            SocketAddr::V6(address) if address.scope_id() != 0 => vec![address.scope_id()],
            address => self.holders(address.ip().to_canonical())?,
        };
        Ok(ingress.resolve(&links, &holders))
    }

    fn holders(&mut self, ip: IpAddr) -> io::Result<Vec<u32>> {
        links::holders(&mut self.netlink, ip)
    }

    /// Waits for a change, for `timeout`, or until `stop` is written.
    pub(crate) fn wait(&mut self, stop: &EventFd, timeout: Duration) {
        let mut fds =
            [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        self.monitor.clear();
    }
}

/// Lets a socket receive only what came in by these interfaces, at most [`MAX_INDICES`] of them.
pub(crate) fn accept_only(socket: BorrowedFd<'_>, indices: &BTreeSet<u32>) -> io::Result<()> {
    sys::accept_only(socket, indices)
}

/// Packets to a socket that the kernel dropped, because of its filter or for lack of room.
pub(crate) fn dropped(socket: BorrowedFd<'_>) -> u32 {
    sys::dropped(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(address: &str, names: &[&str], own_programs: bool) -> Ingress {
        Ingress {
            address: address.parse().unwrap(),
            names: names.iter().map(ToString::to_string).collect(),
            own_programs,
        }
    }

    fn found(indices: &[u32], missing: &[&str], only_loopback: bool) -> Found {
        let missing = missing.iter().map(ToString::to_string).collect();
        Found { indices: indices.iter().copied().collect(), missing, only_loopback }
    }

    #[test]
    fn ingress_is_the_named_interfaces_else_the_one_with_the_address() {
        let links: Vec<(String, u32)> =
            [("lo", 1), ("eth0", 2), ("eth1", 3)].map(|(name, index)| (name.to_owned(), index)).into();
        for (ingress, holders, expected) in [
            (ingress("10.9.0.1:1", &[], false), &[3][..], found(&[3], &[], false)),
            (ingress("10.9.0.1:1", &[], true), &[3], found(&[1, 3], &[], false)),
            // The address is on two interfaces, one of them the loopback interface.
            (ingress("10.9.0.1:1", &[], false), &[1, 2], found(&[2], &[], false)),
            (ingress("10.9.0.1:1", &[], false), &[1], found(&[], &[], true)),
            (ingress("10.9.0.1:1", &[], false), &[], found(&[], &[], false)),
            (ingress("10.9.0.1:1", &["eth0", "eth7"], false), &[1], found(&[2], &["eth7"], false)),
            (ingress("10.9.0.1:1", &["lo"], false), &[3], found(&[1], &[], false)),
            (ingress("0.0.0.0:1", &["eth0", "eth1"], true), &[], found(&[1, 2, 3], &[], false)),
            (ingress("127.0.0.1:1", &[], false), &[1], found(&[1], &[], false)),
            (ingress("[::1]:1", &[], false), &[1], found(&[1], &[], false)),
            (ingress("[::ffff:127.0.0.1]:1", &[], false), &[1], found(&[1], &[], false)),
        ] {
            assert_eq!(ingress.resolve(&links, holders), expected, "{ingress:?} {holders:?}");
        }
    }
}
