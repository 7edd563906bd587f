//! The kernel's interfaces, their addresses, and the destinations that are the machine's own.

use std::io;
use std::net::IpAddr;

use palisade_engine::Ip;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::sysctl::Family;
use crate::datapath::{Interface, StartError};

/// The largest packet that GRO may build, in bytes. Larger ("BIG TCP") packets have no valid length field and fit no virtio
/// header.
const MAX_GRO_BYTES: u32 = 65536;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Its other names (`ip link property add`). A policy rule that names one of them matches the interface.
    alternative_names: Vec<String>,
    /// Whether the layer below works: a cable, a peer.
    pub(crate) carrier: bool,
    /// The index of the interface that it belongs to.
    master: Option<u32>,
    /// Whether it takes all frames of those that belong to it.
    takes_frames: bool,
    gro: Option<u32>,
    gro_ipv4: Option<u32>,
}

/// All interfaces.
pub(crate) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|m| if let RouteNetlinkMessage::NewLink(m) = m { Some(m) } else { None })
        .map(|m| {
            let up = m.header.flags.contains(LinkFlags::Up);
            let carrier = m.header.flags.contains(LinkFlags::LowerUp);
            let mut link = Link {
                index: m.header.index,
                name: String::new(),
                up,
                alternative_names: Vec::new(),
                carrier,
                master: None,
                takes_frames: false,
                gro: None,
                gro_ipv4: None,
            };
            for attribute in m.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::PropList(properties) => {
                        link.alternative_names.extend(properties.into_iter().filter_map(|property| match property {
                            Prop::AltIfName(name) => Some(name),
                            _ => None,
                        }));
                    }
                    LinkAttribute::Controller(index) => link.master = Some(index),
                    LinkAttribute::LinkInfo(info) => link.takes_frames = info.iter().any(takes_frames),
                    LinkAttribute::GroMaxSize(n) => link.gro = Some(n),
                    LinkAttribute::GroIpv4MaxSize(n) => link.gro_ipv4 = Some(n),
                    _ => {}
                }
            }
            link
        })
        .collect())
}

/// What is wrong if a data interface is among the bypass interfaces, by its name or another one of its names.
pub(crate) fn bypassed(links: &[Link], data: &[Interface], bypass: &[String]) -> Option<StartError> {
    let mut data_links = links.iter().filter(|link| data.iter().any(|interface| interface.name == link.name));
    data_links.find_map(|link| {
        let is_name = |name: &&String| **name == link.name || link.alternative_names.contains(name);
        let name = bypass.iter().find(is_name)?;
        Some(StartError::Bypassed { interface: link.name.clone(), bypass: name.clone() })
    })
}

fn takes_frames(info: &LinkInfo) -> bool {
    matches!(info, LinkInfo::Kind(InfoKind::Bridge | InfoKind::Bond | InfoKind::Team))
}

/// The bridge, bond or team that a link belongs to: frames that arrive by the link are that one's.
pub(crate) fn taken_by<'a>(link: &Link, all: &'a [Link]) -> Option<&'a Link> {
    let master = link.master?;
    all.iter().find(|other| other.index == master && other.takes_frames)
}

/// Limits GRO on a data interface to packets that can be re-injected.
pub(crate) fn limit_gro(netlink: &mut Netlink, link: &Link) -> io::Result<()> {
    let mut wanted = Vec::new();
    if link.gro.is_some_and(|n| n > MAX_GRO_BYTES) {
        wanted.push(LinkAttribute::GroMaxSize(MAX_GRO_BYTES));
    }
    if link.gro_ipv4.is_some_and(|n| n > MAX_GRO_BYTES) {
        wanted.push(LinkAttribute::GroIpv4MaxSize(MAX_GRO_BYTES));
    }
    if wanted.is_empty() { Ok(()) } else { set(netlink, link.index, wanted) }
}

fn set(netlink: &mut Netlink, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Sets an interface up.
pub(crate) fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Renames an interface, which must be down.
pub(crate) fn rename(netlink: &mut Netlink, index: u32, name: &str) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::IfName(name.to_owned())])
}

/// Gives an interface an alias, which `ip link` shows.
pub(crate) fn set_alias(netlink: &mut Netlink, index: u32, alias: String) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::IfAlias(alias)])
}

/// Removes an interface.
pub(crate) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.change(RouteNetlinkMessage::DelLink(message))
}

/// Creates a pair of veth interfaces, each with its name and MAC address.
pub(crate) fn create_veth(netlink: &mut Netlink, ends: [(&str, [u8; 6]); 2]) -> io::Result<()> {
    let attributes = |(name, mac): (&str, [u8; 6])| {
        vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(u32::from(u16::MAX)),
        ]
    };
    let mut peer = LinkMessage::default();
    peer.attributes = attributes(ends[1]);
    let mut message = LinkMessage::default();
    message.attributes = attributes(ends[0]);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    netlink.create(RouteNetlinkMessage::NewLink(message))
}

/// An interface's own addresses, the sources of ICMP errors (RFC 1812 section 4.3.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct InterfaceAddresses {
    v4: Option<Ip>,
    v6: Option<Ip>,
}

impl InterfaceAddresses {
    /// The address of the family of `other`.
    pub(crate) fn same_family(&self, other: Ip) -> Option<Ip> {
        if other.is_v4() { self.v4 } else { self.v6 }
    }

    /// Adds one of the interface's addresses. The first usable one stays, as in the kernel's own choice.
    fn add(&mut self, address: &AddressMessage) {
        // Link-local addresses mean nothing to a host that is not on the link. Secondary, tentative and deprecated ones are
        // not used while there is another.
        let unusable = AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated;
        if address.header.scope != AddressScope::Universe || address.header.flags.intersects(unusable) {
            return;
        }
        let find = |local: bool| {
            address.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        // On a point-to-point link `Address` is the other end.
        match find(true).or_else(|| find(false)) {
            Some(ip @ IpAddr::V4(_)) => self.v4 = self.v4.or(Some(ip.into())),
            Some(ip @ IpAddr::V6(_)) => self.v6 = self.v6.or(Some(ip.into())),
            None => {}
        }
    }
}

/// The addresses of the interfaces with these indices.
pub(crate) fn addresses(netlink: &mut Netlink, indices: &[u32]) -> io::Result<Vec<InterfaceAddresses>> {
    let mut all = vec![InterfaceAddresses::default(); indices.len()];
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(address) = answer
            && let Some(at) = indices.iter().position(|index| *index == address.header.index && *index != 0)
            && let Some(own) = all.get_mut(at)
        {
            own.add(&address);
        }
    }
    Ok(all)
}

/// The indices of the interfaces that have this address.
pub(crate) fn holders(netlink: &mut Netlink, ip: IpAddr) -> io::Result<Vec<u32>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let has = |address: &AddressMessage| {
        // On a point-to-point link `Address` is the other end.
        let local =
            address.attributes.iter().find_map(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
        let other = || address.attributes.iter().any(|a| matches!(a, AddressAttribute::Address(a) if *a == ip));
        local.map_or_else(other, |local| local == ip)
    };
    Ok(answers
        .into_iter()
        .filter_map(|m| if let RouteNetlinkMessage::NewAddress(m) = m { Some(m) } else { None })
        .filter(has)
        .map(|address| address.header.index)
        .collect())
}

/// The destinations that the kernel delivers to this machine: its routing table `local`. Packets to them are not transit
/// traffic, and capture ignores them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct LocalRoutes {
    /// Ranges, sorted, without overlap.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl LocalRoutes {
    /// Reads the table.
    pub(crate) fn read(netlink: &mut Netlink) -> io::Result<LocalRoutes> {
        let mut local = LocalRoutes::default();
        for family in Family::present() {
            let mut message = RouteMessage::default();
            message.header.address_family = match family {
                Family::V4 => AddressFamily::Inet,
                Family::V6 => AddressFamily::Inet6,
            };
            message.header.table = libc::RT_TABLE_LOCAL;
            // A strict request may not carry what the crate's defaults set beside it.
            message.header.scope = RouteScope::Universe;
            message.header.kind = RouteType::Unspec;
            for answer in netlink.dump(RouteNetlinkMessage::GetRoute(message))? {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    local.add(&route);
                }
            }
        }
        merge(&mut local.v4);
        merge(&mut local.v6);
        Ok(local)
    }

    fn add(&mut self, route: &RouteMessage) {
        let RouteHeader { table, destination_prefix_length: prefix, .. } = route.header;
        if table != libc::RT_TABLE_LOCAL {
            return;
        }
        let destination = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
            _ => None,
        });
        match destination {
            Some(IpAddr::V4(a)) => {
                let rest = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                self.v4.push((u32::from(a) & !rest, u32::from(a) | rest));
            }
            Some(IpAddr::V6(a)) => {
                let rest = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                self.v6.push((u128::from(a) & !rest, u128::from(a) | rest));
            }
            None => {}
        }
    }

    /// Whether the kernel delivers this packet locally. False for a packet that is too short.
    pub(crate) fn contains(&self, packet: &[u8]) -> bool {
        match packet.first().map(|b| b >> 4) {
            Some(4) => packet
                .get(16..20)
                .and_then(|b| b.first_chunk())
                .is_some_and(|b| within(&self.v4, u32::from_be_bytes(*b))),
            Some(6) => packet
                .get(24..40)
                .and_then(|b| b.first_chunk())
                .is_some_and(|b| within(&self.v6, u128::from_be_bytes(*b))),
            _ => false,
        }
    }
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|(_, last)| value <= *last)
}

fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let inside = next.0 <= kept.1;
        if inside {
            kept.1 = kept.1.max(next.1);
        }
        inside
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn packet(destination: [u8; 4]) -> Vec<u8> {
        let mut p = vec![0x45; 20];
        p[16..].copy_from_slice(&destination);
        p
    }

    #[test]
    fn interface_addresses_are_the_first_global_ones() {
        let address = |ip: &str, scope, flags, peer: &str| {
            let mut m = AddressMessage::default();
            (m.header.scope, m.header.flags) = (scope, flags);
            m.attributes = vec![AddressAttribute::Address(peer.parse().unwrap())];
            if ip != peer {
                m.attributes.push(AddressAttribute::Local(ip.parse().unwrap()));
            }
            m
        };
        let (none, ip) = (AddressHeaderFlags::empty(), |text: &str| text.parse::<IpAddr>().unwrap().into());
        let mut own = InterfaceAddresses::default();
        own.add(&address("fe80::1", AddressScope::Link, none, "fe80::1"));
        own.add(&address("10.0.0.3", AddressScope::Universe, AddressHeaderFlags::Secondary, "10.0.0.3"));
        assert_eq!(own, InterfaceAddresses::default());
        own.add(&address("10.0.0.1", AddressScope::Universe, none, "10.0.0.2"));
        own.add(&address("10.0.9.1", AddressScope::Universe, none, "10.0.9.1"));
        own.add(&address("2001:db8::1", AddressScope::Universe, none, "2001:db8::1"));
        assert_eq!(own.same_family(ip("192.0.2.1")), Some(ip("10.0.0.1")), "the near end, and the first");
        assert_eq!(own.same_family(ip("2001:db8::9")), Some(ip("2001:db8::1")));
    }

    #[test]
    fn local_routes_merge_ranges_and_find_destinations() {
        let mut local = LocalRoutes::default();
        for (address, prefix) in [([127, 0, 0, 1], 32), ([127, 0, 0, 0], 8), ([10, 1, 0, 255], 32), ([10, 1, 0, 1], 32)]
        {
            let mut route = RouteMessage::default();
            route.header.table = libc::RT_TABLE_LOCAL;
            route.header.destination_prefix_length = prefix;
            route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::from(address))));
            local.add(&route);
        }
        merge(&mut local.v4);
        assert_eq!(local.v4.len(), 3);
        for kept in [[127, 0, 0, 0], [127, 255, 255, 255], [10, 1, 0, 1], [10, 1, 0, 255]] {
            assert!(local.contains(&packet(kept)), "{kept:?}");
        }
        for transit in [[126, 255, 255, 255], [128, 0, 0, 0], [10, 1, 0, 2], [0, 0, 0, 0], [255; 4]] {
            assert!(!local.contains(&packet(transit)), "{transit:?}");
        }
        assert!(!local.contains(&[0x45; 19]) && !local.contains(&[0x60; 39]) && !local.contains(&[]));
    }

    #[test]
    fn local_routes_take_prefixes_of_all_lengths() {
        let mut local = LocalRoutes::default();
        let mut route = RouteMessage::default();
        route.header.table = libc::RT_TABLE_LOCAL;
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6("ff00::".parse().unwrap())));
        for prefix in [8, 128] {
            route.header.destination_prefix_length = prefix;
            local.add(&route);
        }
        merge(&mut local.v6);
        let mut p = [0x60u8; 40];
        p[24] = 0xff;
        assert!(local.contains(&p));
        p[24] = 0xfe;
        assert!(!local.contains(&p));
    }
}
