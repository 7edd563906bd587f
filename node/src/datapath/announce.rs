//! The routes that announce this member's readiness to a routing daemon on the same machine.
//!
//! BIRD and FRR do not poll HTTP, but follow kernel routing tables. So the daemon keeps routes in a table of its own, which no
//! policy rule looks up: no packet is ever routed by them. Their metric is the grade. They are on the re-injection device, which
//! the kernel removes with the process that holds it, whatever killed that: then the routes are gone, too.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::host::netlink::Netlink;
use super::host::sysctl::Family;

/// A destination: an address and the number of its significant bits.
pub(crate) type Destination = (IpAddr, u8);

/// The routes of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Announcement {
    /// The table's number.
    pub(crate) table: u32,
    /// The destinations.
    pub(crate) destinations: Vec<Destination>,
}

impl Announcement {
    /// Has exactly these routes in the table: one to each destination, by the device with the index `device` and with `metric`;
    /// none if that is `None`. Returns how many were added or removed.
    pub(crate) fn set(&self, netlink: &mut Netlink, device: u32, metric: Option<u32>) -> io::Result<usize> {
        let present = self.present(netlink)?;
        let wanted: Vec<(Destination, u32)> =
            metric.into_iter().flat_map(|metric| self.destinations.iter().map(move |to| (*to, metric))).collect();
        let mut changes = 0;
        // Added first: while the metric changes, no destination is without a route.
        for route in wanted.iter().filter(|route| !present.contains(&(**route, device))) {
            netlink.create(RouteNetlinkMessage::NewRoute(self.message(*route, device)))?;
            changes += 1;
        }
        for (route, by) in present.into_iter().filter(|(route, by)| *by != device || !wanted.contains(route)) {
            netlink.change(RouteNetlinkMessage::DelRoute(self.message(route, by)))?;
            changes += 1;
        }
        Ok(changes)
    }

    /// The routes of the table, with their metrics and devices.
    fn present(&self, netlink: &mut Netlink) -> io::Result<Vec<((Destination, u32), u32)>> {
        let mut present = Vec::new();
        for family in Family::present() {
            let mut query = RouteMessage::default();
            query.header.address_family = match family {
                Family::V4 => AddressFamily::Inet,
                Family::V6 => AddressFamily::Inet6,
            };
            // A strict request may not carry what the crate's defaults set beside it.
            query.header.scope = RouteScope::Universe;
            query.header.kind = RouteType::Unspec;
            query.attributes.push(RouteAttribute::Table(self.table));
            let answers = match netlink.dump(RouteNetlinkMessage::GetRoute(query)) {
                // The table does not exist: nobody ever had a route in it.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                answers => answers?,
            };
            for answer in answers {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    present.extend(self.read(&route));
                }
            }
        }
        Ok(present)
    }

    fn read(&self, route: &RouteMessage) -> Option<((Destination, u32), u32)> {
        let (mut table, mut to, mut metric, mut device) = (u32::from(route.header.table), None, 0, 0);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(n) => table = *n,
                RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
                RouteAttribute::Destination(RouteAddress::Inet6(a)) => to = Some(IpAddr::V6(*a)),
                RouteAttribute::Priority(n) => metric = *n,
                RouteAttribute::Oif(n) => device = *n,
                _ => {}
            }
        }
        // Routes without a device are not ours, and the kernel would not find them by one.
        if table != self.table || device == 0 {
            return None;
        }
        let any = match route.header.address_family {
            AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            _ => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        Some((((to.unwrap_or(any), route.header.destination_prefix_length), metric), device))
    }

    fn message(&self, ((to, length), metric): (Destination, u32), device: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        let (family, scope) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, RouteScope::Link),
            IpAddr::V6(_) => (AddressFamily::Inet6, RouteScope::Universe),
        };
        message.header = RouteHeader {
            address_family: family,
            destination_prefix_length: length,
            // The number has 32 bits: it is in the attribute.
            table: RouteHeader::RT_TABLE_UNSPEC,
            protocol: RouteProtocol::Static,
            scope,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(to)),
            RouteAttribute::Table(self.table),
            RouteAttribute::Priority(metric),
            RouteAttribute::Oif(device),
        ];
        message
    }
}
