//! The zone to which the kernel would send a packet: its answer to `RTM_GETROUTE`, cached until routes, rules or interfaces
//! change.
//!
//! The query names one of our devices as the incoming interface, so that the operator's policy rules apply to it as they will
//! to the re-injected packet. What else it names depends on what the kernel's answer may depend on. Nearly always that is
//! addresses and DSCP. Where a policy rule selects by protocol or ports, or the route has several next hops, the answers differ
//! from flow to flow: then protocol, ports and flow label are named, too.
//!
//! Some of the kernel's choices cannot be asked for: those by a mark that netfilter sets, of the hash of a fragment or an ICMP
//! error, of a protocol other than TCP, UDP and ICMP, and, before Linux 6.14, by an IPv6 flow label. Where they were another
//! choice, the gate has dropped a packet, and the flow's exit is known from then on: see [`exits`](super::exits).

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use palisade_engine::parse::rejection::Unreachable;
use palisade_engine::parse::{Flow, Packet, RoutingClass};
use palisade_engine::{Ip, Protocol, Routes, Tuple, ZoneId};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::exits::ObservedExits;
use super::links;
use super::netlink::Netlink;

/// Entries of each of a worker's caches: a power of two.
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
    /// Whether a policy rule selects by more of a packet than addresses, DSCP and interface.
    pub(crate) rules_by_flow: AtomicBool,
    /// The exits that were not those of the kernel's answers.
    pub(crate) exits: ObservedExits,
}

impl Topology {
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether one of the policy rules selects by more of a packet than addresses, DSCP and interface.
pub(crate) fn rules_by_flow(netlink: &mut Netlink) -> std::io::Result<bool> {
    for family in super::Family::present() {
        let mut request = RuleMessage::default();
        request.header.family = match family {
            super::Family::V4 => AddressFamily::Inet,
            super::Family::V6 => AddressFamily::Inet6,
        };
        let rules = netlink.dump(RouteNetlinkMessage::GetRule(request))?;
        if rules.iter().any(|message| matches!(message, RouteNetlinkMessage::NewRule(rule) if selects_by_flow(rule))) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn selects_by_flow(rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
                // A newer kernel's: flow labels, masks of ports.
                | RuleAttribute::Other(_)
        )
    })
}

/// The answer for two addresses and a DSCP.
#[derive(Clone, Copy)]
struct HostEntry {
    destination: Ip,
    source: Ip,
    dscp: u8,
    /// The interface; 0: no route.
    interface: u32,
    /// Whether the flows between the addresses may leave by different interfaces.
    by_flow: bool,
    /// These interfaces, where the route has several next hops.
    next_hops: NextHops,
}

/// Most next hops of a route that are all known. Of the others, a flow's own is.
const MAX_NEXT_HOPS: usize = 8;

/// The interfaces of a route's next hops; 0 at the places that are not used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct NextHops([u32; MAX_NEXT_HOPS]);

impl NextHops {
    fn new(interfaces: impl Iterator<Item = u32>) -> NextHops {
        let mut hops = NextHops::default();
        hops.0.iter_mut().zip(interfaces).for_each(|(place, interface)| *place = interface);
        hops
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        self.0.into_iter().filter(|interface| *interface != 0)
    }
}

/// The answer for a flow.
#[derive(Clone, Copy)]
struct FlowEntry {
    flow: Flow,
    /// The interface; 0: no route.
    interface: u32,
}

/// The kernel's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// There is no route, or it does not lead to a neighbour.
    None,
    /// It leads out of this interface.
    Interface(u32),
    /// It has several next hops, by these interfaces as far as they are known.
    Several(NextHops),
}

/// A worker's cache of routes, with the zones of the interfaces.
pub(crate) struct RouteZones {
    netlink: Netlink,
    /// The index of one of our devices.
    incoming: u32,
    topology: Arc<Topology>,
    generation: u64,
    hosts: Box<[Option<HostEntry>]>,
    flows: Box<[Option<FlowEntry>]>,
    /// Zones by interface index.
    zones: Vec<(u32, ZoneId)>,
    /// The packet in process.
    packet: Flow,
    /// The zone that the verdict on it is about.
    egress: Cell<Option<ZoneId>>,
}

impl RouteZones {
    pub(crate) fn new(incoming: u32, topology: Arc<Topology>) -> std::io::Result<RouteZones> {
        let nowhere = Ip::V4([0; 4]);
        let tuple = Tuple { src: nowhere, dst: nowhere, src_port: 0, dst_port: 0, protocol: Protocol(0) };
        Ok(RouteZones {
            netlink: Netlink::open()?,
            incoming,
            topology,
            generation: 0,
            hosts: vec![None; CACHE_ENTRIES].into_boxed_slice(),
            flows: vec![None; CACHE_ENTRIES].into_boxed_slice(),
            zones: Vec::new(),
            packet: Flow { tuple, class: RoutingClass::default() },
            egress: Cell::new(None),
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
        self.hosts.fill(None);
        self.flows.fill(None);
    }

    /// Whether [`RouteZones::set_zones`] must be called again.
    pub(crate) fn outdated(&mut self) -> bool {
        let now = self.topology.generation.load(Ordering::Acquire);
        let outdated = now != self.generation;
        if outdated {
            self.generation = now;
            self.hosts.fill(None);
            self.flows.fill(None);
        }
        outdated
    }

    /// Sets the packet in process.
    #[inline]
    pub(crate) fn set_packet(&mut self, packet: &Packet) {
        self.packet = Flow { tuple: packet.tuple, class: packet.class };
        if packet.fragment.is_some() {
            // The kernel does not look for ports in fragments.
            (self.packet.tuple.src_port, self.packet.tuple.dst_port) = (0, 0);
        }
        self.egress.set(None);
    }

    /// This router's own address on the port where a packet arrived, of the packet's family.
    pub(crate) fn router(&self, port: usize, packet: &Tuple) -> Option<Ip> {
        self.topology.addresses.load().get(port).and_then(|own| own.same_family(packet.dst))
    }

    /// The flow in the packet's direction, or in the opposite one: the route to its source is that of a packet back. The DSCP of
    /// that packet is not known.
    fn flow_to(&self, destination: Ip) -> Flow {
        let Flow { tuple, .. } = self.packet;
        match destination == tuple.src {
            true => Flow { tuple: tuple.inverse(), class: RoutingClass::default() },
            false => self.packet,
        }
    }

    fn interface(&mut self, destination: Ip) -> u32 {
        let flow = self.flow_to(destination);
        match self.host(&flow) {
            None => 0,
            Some(HostEntry { by_flow: true, .. }) => self.interface_of_flow(&flow),
            Some(HostEntry { interface, .. }) => interface,
        }
    }

    /// The kernel's answer for the addresses and the DSCP of a flow. `None`: it gave none.
    fn host(&mut self, flow: &Flow) -> Option<HostEntry> {
        let (destination, source, dscp) = (flow.tuple.dst, flow.tuple.src, flow.class.dscp);
        let slot = host_slot(destination, source, dscp);
        if let Some(Some(entry)) = self.hosts.get(slot)
            && entry.destination == destination
            && entry.source == source
            && entry.dscp == dscp
        {
            return Some(*entry);
        }
        let none = NextHops::default();
        let (interface, by_flow, next_hops) = if self.topology.rules_by_flow.load(Ordering::Relaxed) {
            (0, true, none)
        } else {
            // A query that got no answer is repeated for the next packet.
            match self.query(flow, RouteFlags::FibMatch)? {
                Answer::None => (0, false, none),
                Answer::Interface(interface) => (interface, false, none),
                Answer::Several(next_hops) => (0, true, next_hops),
            }
        };
        let known = HostEntry { destination, source, dscp, interface, by_flow, next_hops };
        if let Some(entry) = self.hosts.get_mut(slot) {
            *entry = Some(known);
        }
        Some(known)
    }

    /// The interfaces by which a flow that is like this one but for its ports may leave, where its route has several next hops.
    fn next_hops(&mut self, destination: Ip) -> NextHops {
        let flow = self.flow_to(destination);
        match self.host(&flow) {
            // The rules may lead flows to routes of their own: it is asked anew.
            Some(entry) if entry.by_flow && entry.next_hops == NextHops::default() => {
                match self.query(&flow, RouteFlags::FibMatch) {
                    Some(Answer::Several(next_hops)) => next_hops,
                    _ => NextHops::default(),
                }
            }
            Some(entry) => entry.next_hops,
            None => NextHops::default(),
        }
    }

    /// The interface by which this flow leaves, whatever others do.
    fn interface_of_flow(&mut self, flow: &Flow) -> u32 {
        let slot = flow_slot(flow);
        if let Some(Some(entry)) = self.flows.get(slot)
            && entry.flow == *flow
        {
            return entry.interface;
        }
        let interface = match self.query(flow, RouteFlags::empty()) {
            None | Some(Answer::Several(_)) => return 0,
            Some(Answer::None) => 0,
            Some(Answer::Interface(interface)) => interface,
        };
        if let Some(entry) = self.flows.get_mut(slot) {
            *entry = Some(FlowEntry { flow: *flow, interface });
        }
        interface
    }

    /// Asks the kernel; `None` if it gave no answer.
    fn query(&mut self, flow: &Flow, flags: RouteFlags) -> Option<Answer> {
        match self.ask(flow, flags) {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Some(answer(&route)),
            Ok(_) => None,
            Err(error) if unanswered(&error) => None,
            // Any other error means that there is no route.
            Err(_) => Some(Answer::None),
        }
    }

    fn ask(&mut self, flow: &Flow, flags: RouteFlags) -> std::io::Result<Option<RouteNetlinkMessage>> {
        self.netlink.get(RouteNetlinkMessage::GetRoute(question(flow, self.incoming, flags)))
    }

    /// Why there is no route for the packet in process. `None`: its sender is not to be told (a blackhole), or there is one now.
    pub(crate) fn unreachable(&mut self) -> Option<Unreachable> {
        let flow = self.packet;
        match self.ask(&flow, RouteFlags::empty()).err()?.raw_os_error()? {
            libc::ENETUNREACH => Some(Unreachable::Network),
            libc::EHOSTUNREACH => Some(Unreachable::Host),
            libc::EACCES => Some(Unreachable::Prohibited),
            _ => None,
        }
    }

    /// The zone of an interface. [`ZoneId::UNKNOWN`]: it is no data interface, or its zone has no number.
    fn zone_of(&self, interface: u32) -> ZoneId {
        self.zones.iter().find(|(index, _)| *index == interface).map_or(ZoneId::UNKNOWN, |(_, zone)| *zone)
    }
}

impl Routes for RouteZones {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        if destination == self.packet.tuple.dst
            && let Some(zone) = self.observed_egress()
        {
            return Some(zone);
        }
        match self.interface(destination) {
            0 => None,
            // The outgoing interface may be no data interface.
            index => Some(self.zone_of(index)),
        }
    }

    fn may_lead_to(&mut self, destination: Ip, zone: ZoneId) -> bool {
        self.zone(destination) == Some(zone)
            || zone != ZoneId::UNKNOWN && self.next_hops(destination).iter().any(|hop| self.zone_of(hop) == zone)
    }

    fn topology(&self) -> u16 {
        u16::try_from(self.generation % u64::from(u16::MAX)).map_or(u16::MAX, |n| n + 1)
    }

    #[inline]
    fn observed_egress(&self) -> Option<ZoneId> {
        if self.topology.exits.is_empty() {
            return None;
        }
        self.topology.exits.get(&self.packet).map(|interface| self.zone_of(interface))
    }

    #[inline]
    fn set_egress(&self, zone: ZoneId) {
        self.egress.set(Some(zone));
    }

    #[inline]
    fn egress(&self) -> Option<ZoneId> {
        self.egress.get()
    }
}

/// The question where this flow would go.
fn question(flow: &Flow, incoming: u32, flags: RouteFlags) -> RouteMessage {
    let Flow { tuple, class } = *flow;
    let v4 = tuple.dst.is_v4();
    let (family, length) = if v4 { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    let address = |ip: Ip| RouteAddress::from(IpAddr::from(ip));
    let mut query = RouteMessage::default();
    query.header.address_family = family;
    query.header.destination_prefix_length = length;
    query.header.source_prefix_length = length;
    query.header.scope = RouteScope::Universe;
    query.header.tos = class.dscp;
    query.header.flags = flags;
    query.attributes = vec![
        RouteAttribute::Destination(address(tuple.dst)),
        RouteAttribute::Source(address(tuple.src)),
        RouteAttribute::Iif(incoming),
    ];
    if class.flow_label != 0 {
        query.attributes.push(RouteAttribute::Flowlabel(class.flow_label));
    }
    // The kernel takes no other protocols here.
    let has_ports = match (tuple.protocol, v4) {
        (Protocol::TCP | Protocol::UDP, _) => true,
        (Protocol::ICMP, true) | (Protocol::ICMPV6, false) => false,
        _ => return query,
    };
    query.attributes.push(RouteAttribute::IpProto(tuple.protocol.0));
    if has_ports && (tuple.src_port, tuple.dst_port) != (0, 0) {
        query.attributes.push(RouteAttribute::Sport(tuple.src_port));
        query.attributes.push(RouteAttribute::Dport(tuple.dst_port));
    }
    query
}

fn answer(route: &RouteMessage) -> Answer {
    if route.header.kind != RouteType::Unicast {
        return Answer::None;
    }
    let (mut found, mut by_object) = (Answer::None, false);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => found = Answer::Interface(*interface),
            RouteAttribute::MultiPath(hops) => {
                return Answer::Several(NextHops::new(hops.iter().map(|hop| hop.interface_index)));
            }
            // Its next hops may follow.
            RouteAttribute::NhId(_) => by_object = true,
            _ => {}
        }
    }
    if by_object { Answer::Several(NextHops::default()) } else { found }
}

/// Whether an error concerns the query, not the route: the kernel was too busy, or had no memory.
fn unanswered(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | OutOfMemory | ResourceBusy | TimedOut | WouldBlock)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn fold(ip: Ip) -> u64 {
    match ip {
        Ip::V4(b) => u64::from(u32::from_be_bytes(b)),
        Ip::V6(b) => {
            let n = u128::from_be_bytes(b);
            u64::try_from((n >> 64) ^ (n & u128::from(u64::MAX))).unwrap_or(0)
        }
    }
}

fn slot(mixed: u64) -> usize {
    usize::try_from(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52).unwrap_or(0) & (CACHE_ENTRIES - 1)
}

/// The slot in the direct-mapped cache, from a plain multiplicative hash. Deliberate collisions cost one query to the kernel
/// for each packet that opens a session, which is the cost of an empty cache.
#[inline]
fn host_slot(destination: Ip, source: Ip, dscp: u8) -> usize {
    slot(fold(destination).rotate_left(17) ^ fold(source) ^ (u64::from(dscp) << 52))
}

fn flow_slot(flow: &Flow) -> usize {
    let Flow { tuple, class } = flow;
    let ports = u64::from(tuple.src_port) << 16 | u64::from(tuple.dst_port);
    let rest = u64::from(class.flow_label) << 16 | u64::from(class.dscp) << 8 | u64::from(tuple.protocol.0);
    slot(fold(tuple.dst).rotate_left(17) ^ fold(tuple.src) ^ ports.rotate_left(29) ^ rest.rotate_left(13))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DefaultNla;
    use rtnetlink::packet_route::IpProtocol;
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn flow(src_port: u16, protocol: Protocol) -> Flow {
        let (src, dst) = (Ip::V4([10, 0, 1, 2]), Ip::V4([10, 0, 2, 2]));
        let tuple = Tuple { src, dst, src_port, dst_port: 53, protocol };
        Flow { tuple, class: RoutingClass { dscp: 0x10, flow_label: 0 } }
    }

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
        let mut hosts = std::collections::HashSet::new();
        let mut flows = std::collections::HashSet::new();
        for n in 0..1000u32 {
            hosts.insert(host_slot(Ip::V4((0x0a00_0000 + n).to_be_bytes()), Ip::V4([192, 0, 2, 1]), 0));
            flows.insert(flow_slot(&flow(u16::try_from(n).unwrap(), Protocol::UDP)));
        }
        assert!(hosts.len() > 600 && flows.len() > 600, "{} and {} of 1000", hosts.len(), flows.len());
        assert!(host_slot(Ip::V6([0xff; 16]), Ip::V6([0; 16]), 0xfc) < CACHE_ENTRIES);
        let (src, dst) = (Ip::V4([10, 0, 0, 1]), Ip::V4([10, 0, 0, 2]));
        assert_ne!(host_slot(dst, src, 0), host_slot(dst, src, 0x10));
    }

    #[test]
    fn route_question_names_all_that_the_kernel_may_choose_by() {
        let asked = question(&flow(5000, Protocol::UDP), 7, RouteFlags::empty());
        assert_eq!(asked.header.tos, 0x10);
        for attribute in [
            RouteAttribute::Iif(7),
            RouteAttribute::IpProto(17),
            RouteAttribute::Sport(5000),
            RouteAttribute::Dport(53),
        ] {
            assert!(asked.attributes.contains(&attribute), "{attribute:?}: {asked:?}");
        }
        let others = question(&flow(5000, Protocol::GRE), 7, RouteFlags::empty());
        assert_eq!(others.attributes.len(), 3, "the kernel would refuse the protocol: {others:?}");
        let ping = question(&flow(5000, Protocol::ICMP), 7, RouteFlags::empty());
        assert!(ping.attributes.contains(&RouteAttribute::IpProto(1)) && ping.attributes.len() == 4, "{ping:?}");
    }

    #[test]
    fn route_answer_with_several_next_hops_is_one_for_each_flow() {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        assert_eq!(answer(&route), Answer::None);
        route.attributes = vec![RouteAttribute::Oif(3)];
        assert_eq!(answer(&route), Answer::Interface(3));
        let hop = |interface_index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface_index;
            hop
        };
        route.attributes = vec![RouteAttribute::NhId(1), RouteAttribute::MultiPath(vec![hop(3), hop(4)])];
        assert_eq!(answer(&route), Answer::Several(NextHops::new([3, 4].into_iter())));
        route.attributes = vec![RouteAttribute::NhId(1), RouteAttribute::Oif(3)];
        assert_eq!(answer(&route), Answer::Several(NextHops::default()));
        route.header.kind = RouteType::Unreachable;
        assert_eq!(answer(&route), Answer::None);
    }

    #[test]
    fn rule_by_ports_or_by_what_is_unknown_makes_routes_differ_between_flows() {
        let rule = |attribute| {
            let mut rule = RuleMessage::default();
            rule.attributes = vec![RuleAttribute::Priority(100), attribute];
            selects_by_flow(&rule)
        };
        assert!(!rule(RuleAttribute::FwMark(1)) && !rule(RuleAttribute::Table(100)));
        assert!(rule(RuleAttribute::IpProtocol(IpProtocol::Tcp)));
        assert!(rule(RuleAttribute::Other(DefaultNla::new(26, vec![0; 4]))));
    }
}
