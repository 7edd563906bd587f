//! The lab's addresses, all by the member's number (1, 2, …).
//!
//! ```text
//!  10.10.0.1, fd10::1        10.1.n.0/30            10.2.n.0/30        10.20.0.1, fd20::1
//!        client ──────────────────────── fw n ──────────────────────── server
//!                .1             .2   fd01:n::/64   fd02:n::/64    .2            .1
//!                                         │ 10.9.0.n
//!                                       fabric 10.9.0.254
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Left or right of the members.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Zone `outside`.
    Client,
    /// Zone `inside`.
    Server,
}

/// Both sides.
pub const SIDES: [Side; 2] = [Side::Client, Side::Server];

impl Side {
    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    /// Its name, and the ending of the members' interface towards it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }

    /// The members' interface towards it.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Side::Client => "eth-client",
            Side::Server => "eth-server",
        }
    }

    /// The zone of that interface.
    #[must_use]
    pub fn zone(self) -> &'static str {
        match self {
            Side::Client => "outside",
            Side::Server => "inside",
        }
    }

    fn digit(self) -> u8 {
        match self {
            Side::Client => 1,
            Side::Server => 2,
        }
    }

    /// The addresses of the hosts there: all traffic is from and to these.
    #[must_use]
    pub fn hosts(self) -> [IpAddr; 2] {
        let d = self.digit();
        [Ipv4Addr::new(10, d * 10, 0, 1).into(), Ipv6Addr::new(v6(d * 16), 0, 0, 0, 0, 0, 0, 1).into()]
    }

    /// The IPv4 address there.
    #[must_use]
    pub fn v4(self) -> IpAddr {
        self.hosts()[0]
    }

    /// The IPv6 address there.
    #[must_use]
    pub fn v6(self) -> IpAddr {
        self.hosts()[1]
    }

    /// The networks there.
    #[must_use]
    pub fn networks(self) -> [(IpAddr, u8); 2] {
        let d = self.digit();
        [(Ipv4Addr::new(10, d * 10, 0, 0).into(), 24), (Ipv6Addr::new(v6(d * 16), 0, 0, 0, 0, 0, 0, 0).into(), 64)]
    }

    /// The addresses on the link to member `n`: `host` 1 is the router, 2 the member.
    #[must_use]
    pub fn link(self, n: usize, host: u8) -> [(IpAddr, u8); 2] {
        let d = self.digit();
        let number = small(n);
        [
            (Ipv4Addr::new(10, d, number, host).into(), 30),
            (Ipv6Addr::new(v6(d), number.into(), 0, 0, 0, 0, 0, host.into()).into(), 64),
        ]
    }
}

/// A member's address for the cluster's own traffic; 254 is the lab's.
#[must_use]
pub fn fabric(n: usize) -> IpAddr {
    Ipv4Addr::new(10, 9, 0, small(n)).into()
}

/// The port of a member's `/metrics` and `/readyz`.
pub const HTTP_PORT: u16 = 9946;

/// The port between members.
pub const CLUSTER_PORT: u16 = 7946;

/// Where a member answers HTTP, on the fabric.
#[must_use]
pub fn http(n: usize) -> SocketAddr {
    SocketAddr::new(fabric(n), HTTP_PORT)
}

/// The lab allows few members, see `MAX_MEMBERS`.
fn small(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

fn v6(low: u8) -> u16 {
    0xfd00 | u16::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_match_the_diagram() {
        assert_eq!(Side::Client.v4().to_string(), "10.10.0.1");
        assert_eq!(Side::Server.v6().to_string(), "fd20::1");
        assert_eq!(Side::Server.link(3, 2)[0].0.to_string(), "10.2.3.2");
        assert_eq!(Side::Client.link(3, 1)[1].0.to_string(), "fd01:3::1");
    }
}
