//! The kernel's interfaces and its own addresses.

use std::io;
use std::net::IpAddr;

use palisade_engine::Ip;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::sysctl::Family;

/// What GRO may merge into one packet. Larger ("BIG TCP") packets have no valid length field and fit no virtio header.
const GRO_MAX: u32 = 65536;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
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
            let mut link = Link { index: m.header.index, name: String::new(), up, gro: None, gro_ipv4: None };
            for attribute in m.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::GroMaxSize(n) => link.gro = Some(n),
                    LinkAttribute::GroIpv4MaxSize(n) => link.gro_ipv4 = Some(n),
                    _ => {}
                }
            }
            link
        })
        .collect())
}

/// Holds GRO on a data interface to what can be re-injected.
pub(crate) fn hold_gro(netlink: &mut Netlink, link: &Link) -> io::Result<()> {
    let mut wanted = Vec::new();
    if link.gro.is_some_and(|n| n > GRO_MAX) {
        wanted.push(LinkAttribute::GroMaxSize(GRO_MAX));
    }
    if link.gro_ipv4.is_some_and(|n| n > GRO_MAX) {
        wanted.push(LinkAttribute::GroIpv4MaxSize(GRO_MAX));
    }
    if wanted.is_empty() { Ok(()) } else { set(netlink, link.index, wanted) }
}

fn set(netlink: &mut Netlink, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Switches an interface on.
pub(crate) fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Removes an interface.
pub(crate) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.change(RouteNetlinkMessage::DelLink(message))
}

/// Makes a pair of veth interfaces, each with its name and MAC address.
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

/// An interface's own addresses, for ICMP errors to come from (RFC 1812 section 4.3.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Own {
    v4: Option<Ip>,
    v6: Option<Ip>,
}

impl Own {
    /// That of the family of `other`.
    pub(crate) fn like(&self, other: Ip) -> Option<Ip> {
        if other.is_v4() { self.v4 } else { self.v6 }
    }

    /// Takes in one of the interface's addresses. The first that is fit wins: it is the kernel's choice too.
    fn add(&mut self, address: &AddressMessage) {
        // Link-local addresses mean nothing to a host that is not on the link; secondary, tentative and deprecated ones
        // are not to be used while there is another.
        let unfit = AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated;
        if address.header.scope != AddressScope::Universe || address.header.flags.intersects(unfit) {
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
pub(crate) fn addresses(netlink: &mut Netlink, indices: &[u32]) -> io::Result<Vec<Own>> {
    let mut all = vec![Own::default(); indices.len()];
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

/// The destinations that the kernel delivers to this machine: its table `local`. What lies in it is never transit, and
/// capture leaves it alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Local {
    /// Ranges, sorted, without overlap.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Local {
    /// Reads the table.
    pub(crate) fn read(netlink: &mut Netlink) -> io::Result<Local> {
        let mut local = Local::default();
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

    /// Does the kernel keep this packet for itself? (Too short a packet: no.)
    pub(crate) fn keeps(&self, packet: &[u8]) -> bool {
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
    fn an_interfaces_own_addresses_are_its_first_global_ones() {
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
        let mut own = Own::default();
        own.add(&address("fe80::1", AddressScope::Link, none, "fe80::1"));
        own.add(&address("10.0.0.3", AddressScope::Universe, AddressHeaderFlags::Secondary, "10.0.0.3"));
        assert_eq!(own, Own::default());
        own.add(&address("10.0.0.1", AddressScope::Universe, none, "10.0.0.2"));
        own.add(&address("10.0.9.1", AddressScope::Universe, none, "10.0.9.1"));
        own.add(&address("2001:db8::1", AddressScope::Universe, none, "2001:db8::1"));
        assert_eq!(own.like(ip("192.0.2.1")), Some(ip("10.0.0.1")), "the near end, and the first");
        assert_eq!(own.like(ip("2001:db8::9")), Some(ip("2001:db8::1")));
    }

    #[test]
    fn ranges_merge_and_are_found() {
        let mut local = Local::default();
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
            assert!(local.keeps(&packet(kept)), "{kept:?}");
        }
        for transit in [[126, 255, 255, 255], [128, 0, 0, 0], [10, 1, 0, 2], [0, 0, 0, 0], [255; 4]] {
            assert!(!local.keeps(&packet(transit)), "{transit:?}");
        }
        assert!(!local.keeps(&[0x45; 19]) && !local.keeps(&[0x60; 39]) && !local.keeps(&[]));
    }

    #[test]
    fn prefixes_of_all_lengths() {
        let mut local = Local::default();
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
        assert!(local.keeps(&p));
        p[24] = 0xfe;
        assert!(!local.keeps(&p));
    }
}
