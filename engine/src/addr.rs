//! IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 address. In the log, an IPv4 address takes 5 bytes and an IPv6 address 17.
///
/// An IPv4-mapped IPv6 address (`::ffff:0:0/96`, RFC 4291 section 2.5.5.2) differs from the IPv4 address. The parser drops
/// packets with such addresses, which never belong on a wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ip {
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 address.
    V6([u8; 16]),
}

impl Ip {
    /// Whether this is an IPv4 address.
    #[must_use]
    pub fn is_v4(self) -> bool {
        matches!(self, Ip::V4(_))
    }

    /// The address as a number, an IPv4 address as the IPv6 address that maps it.
    pub(crate) fn to_bits(self) -> u128 {
        match self {
            Ip::V4(octets) => Ipv4Addr::from_octets(octets).to_ipv6_mapped().to_bits(),
            Ip::V6(octets) => u128::from_be_bytes(octets),
        }
    }
}

impl From<IpAddr> for Ip {
    fn from(a: IpAddr) -> Ip {
        match a {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(a: Ipv4Addr) -> Ip {
        Ip::V4(a.octets())
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(a: Ipv6Addr) -> Ip {
        Ip::V6(a.octets())
    }
}

impl From<Ip> for IpAddr {
    fn from(a: Ip) -> IpAddr {
        match a {
            Ip::V4(b) => IpAddr::V4(b.into()),
            Ip::V6(b) => IpAddr::V6(b.into()),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
