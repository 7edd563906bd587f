//! The zone to which the kernel would send a packet: its answer to `RTM_GETROUTE`, cached until routes, rules or interfaces
//! change.
//!
//! The query names `palisade0` as the incoming interface, so that the operator's policy rules apply to it as they will to
//! the re-injected packet. It does not contain the packet's DSCP, mark and ports. With several next hops in different zones,
//! the kernel's choice for an address pair is used for all of its connections.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use palisade_engine::parse::rejection::Unreachable;
use palisade_engine::{Ip, Routes, Tuple, ZoneId};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links;
use super::netlink::Netlink;

/// Entries of a worker's cache: a power of two.
const CACHE_ENTRIES: usize = 4096;

/// What the watcher publishes to the workers when the kernel changes.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    /// Incremented after each change of a route, rule, address or interface.
    pub(crate) generation: AtomicU64,
    /// Interface indices of the data interfaces, in the order of the configuration; 0 for one that is missing.
    pub(crate) indices: ArcSwap<Vec<u32>>,
    /// Their addresses, in the same order: the sources of ICMP errors.
    pub(crate) addresses: ArcSwap<Vec<links::InterfaceAddresses>>,
}

impl Topology {
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Clone, Copy)]
struct Entry {
    destination: Ip,
    source: Ip,
    /// 0: none.
    interface: u32,
}

/// A worker's cache of routes, with the zones of the interfaces.
pub(crate) struct RouteZones {
    netlink: Netlink,
    /// palisade0's index.
    incoming: u32,
    topology: Arc<Topology>,
    generation: u64,
    cache: Box<[Option<Entry>]>,
    /// Zones by interface index.
    zones: Vec<(u32, ZoneId)>,
    /// Source and destination of the packet in process.
    packet: (Ip, Ip),
}

impl RouteZones {
    pub(crate) fn new(incoming: u32, topology: Arc<Topology>) -> std::io::Result<RouteZones> {
        Ok(RouteZones {
            netlink: Netlink::open()?,
            incoming,
            topology,
            generation: 0,
            cache: vec![None; CACHE_ENTRIES].into_boxed_slice(),
            zones: Vec::new(),
            packet: (Ip::V4([0; 4]), Ip::V4([0; 4])),
        })
    }

    /// Sets the zones of the data interfaces, in the order of the configuration.
    pub(crate) fn set_zones(&mut self, zones: &[ZoneId]) {
        let indices = self.topology.indices.load();
        self.zones.clear();
        self.zones.extend(indices.iter().copied().zip(zones.iter().copied()).filter(|(index, _)| *index != 0));
    }

    /// Sets palisade0's index, after it was made anew.
    pub(crate) fn set_incoming(&mut self, index: u32) {
        self.incoming = index;
        self.cache.fill(None);
    }

    /// Whether [`RouteZones::set_zones`] must be called again.
    pub(crate) fn outdated(&mut self) -> bool {
        let now = self.topology.generation.load(Ordering::Acquire);
        let outdated = now != self.generation;
        if outdated {
            self.generation = now;
            self.cache.fill(None);
        }
        outdated
    }

    /// Sets the packet in process. Its other address is the source in the query, because operators' rules may match on it.
    pub(crate) fn set_packet(&mut self, source: Ip, destination: Ip) {
        self.packet = (source, destination);
    }

    /// This router's own address on the port where a packet arrived, of the packet's family.
    pub(crate) fn router(&self, port: usize, packet: &Tuple) -> Option<Ip> {
        self.topology.addresses.load().get(port).and_then(|own| own.same_family(packet.dst))
    }

    fn interface(&mut self, destination: Ip) -> u32 {
        let (from, to) = self.packet;
        let source = if destination == from { to } else { from };
        let slot = cache_slot(destination, source);
        if let Some(Some(e)) = self.cache.get(slot)
            && e.destination == destination
            && e.source == source
        {
            return e.interface;
        }
        // A query that got no answer is repeated for the next packet.
        let Some(interface) = self.query(destination, source) else { return 0 };
        if let Some(entry) = self.cache.get_mut(slot) {
            *entry = Some(Entry { destination, source, interface });
        }
        interface
    }

    /// Why there is no route. `None`: its sender is not to be told (a blackhole), or there is one now.
    pub(crate) fn unreachable(&mut self, destination: Ip, source: Ip) -> Option<Unreachable> {
        match self.ask(destination, source).err()?.raw_os_error()? {
            libc::ENETUNREACH => Some(Unreachable::Network),
            libc::EHOSTUNREACH => Some(Unreachable::Host),
            libc::EACCES => Some(Unreachable::Prohibited),
            _ => None,
        }
    }

    /// The interface, 0 if there is no route; `None` if the kernel gave no answer.
    fn query(&mut self, destination: Ip, source: Ip) -> Option<u32> {
        let answer = match self.ask(destination, source) {
            Ok(answer) => answer?,
            Err(error) if unanswered(&error) => return None,
            // Any other error means that there is no route.
            Err(_) => return Some(0),
        };
        let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
        if route.header.kind != RouteType::Unicast {
            return Some(0);
        }
        let oif = route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
        Some(oif.unwrap_or(0))
    }

    fn ask(&mut self, destination: Ip, source: Ip) -> std::io::Result<Option<RouteNetlinkMessage>> {
        let (family, length) =
            if destination.is_v4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        let address = |ip: Ip| RouteAddress::from(IpAddr::from(ip));
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        query.header.destination_prefix_length = length;
        query.header.source_prefix_length = length;
        query.header.scope = RouteScope::Universe;
        query.attributes = vec![
            RouteAttribute::Destination(address(destination)),
            RouteAttribute::Source(address(source)),
            RouteAttribute::Iif(self.incoming),
        ];
        self.netlink.get(RouteNetlinkMessage::GetRoute(query))
    }
}

impl Routes for RouteZones {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match self.interface(destination) {
            0 => None,
            // The outgoing interface may be no data interface.
            index => Some(self.zones.iter().find(|(i, _)| *i == index).map_or(ZoneId::UNKNOWN, |(_, zone)| *zone)),
        }
    }

    fn topology(&self) -> u16 {
        u16::try_from(self.generation % u64::from(u16::MAX)).map_or(u16::MAX, |n| n + 1)
    }
}

/// Whether an error concerns the query, not the route: the kernel was too busy, or had no memory.
fn unanswered(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | OutOfMemory | ResourceBusy | TimedOut | WouldBlock)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The slot in the direct-mapped cache, from a plain multiplicative hash. Deliberate collisions cost one query to the kernel
/// for each packet that opens a session, which is the cost of an empty cache.
fn cache_slot(destination: Ip, source: Ip) -> usize {
    let fold = |ip: Ip| match ip {
        Ip::V4(b) => u64::from(u32::from_be_bytes(b)),
        Ip::V6(b) => {
            let n = u128::from_be_bytes(b);
            u64::try_from((n >> 64) ^ (n & u128::from(u64::MAX))).unwrap_or(0)
        }
    };
    let mixed = (fold(destination).rotate_left(17) ^ fold(source)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 52).unwrap_or(0) & (CACHE_ENTRIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_query_tells_a_busy_kernel_from_a_missing_route() {
        for busy in [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EBUSY, libc::EINTR] {
            assert!(unanswered(&std::io::Error::from_raw_os_error(busy)), "{busy}");
        }
        for no_route in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL] {
            assert!(!unanswered(&std::io::Error::from_raw_os_error(no_route)), "{no_route}");
        }
    }

    #[test]
    fn route_cache_slots_spread() {
        let mut seen = std::collections::HashSet::new();
        for n in 0..1000u32 {
            seen.insert(cache_slot(Ip::V4((0x0a00_0000 + n).to_be_bytes()), Ip::V4([192, 0, 2, 1])));
        }
        assert!(seen.len() > 600, "{} of 1000", seen.len());
        assert!(cache_slot(Ip::V6([0xff; 16]), Ip::V6([0; 16])) < CACHE_ENTRIES);
    }
}
