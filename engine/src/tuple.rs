//! Tuples, which identify a connection in one direction.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use crate::addr::Ip;

/// An IP protocol number (IANA). The constants are the protocols that are tracked specially.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// The fragment header of IPv6.
    pub const IPV6_FRAG: Protocol = Protocol(44);
    /// Generic routing encapsulation (RFC 2784).
    pub const GRE: Protocol = Protocol(47);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// SCTP.
    pub const SCTP: Protocol = Protocol(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Protocol::TCP => f.write_str("tcp"),
            Protocol::UDP => f.write_str("udp"),
            Protocol::ICMP => f.write_str("icmp"),
            Protocol::ICMPV6 => f.write_str("icmp6"),
            Protocol::SCTP => f.write_str("sctp"),
            Protocol(n) => write!(f, "{n}"),
        }
    }
}

/// The direction of a session's packet, as conntrack(8) names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Direction {
    /// From the client, which sent the session's first packet, to the server.
    Original,
    /// From the server to the client.
    Reply,
}

impl Direction {
    /// The opposite direction.
    #[must_use]
    pub fn flip(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// One value for each direction of a session, or for the end that sends it: the client's, the server's.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PerDirection<T> {
    /// Of the original direction, or the client.
    pub original: T,
    /// Of the reply direction, or the server.
    pub reply: T,
}

impl<T> PerDirection<T> {
    /// Both values, the original direction's first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.original, &self.reply].into_iter()
    }

    /// The result of `f` for both values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerDirection<U> {
        PerDirection { original: f(self.original), reply: f(self.reply) }
    }
}

impl<T> Index<Direction> for PerDirection<T> {
    type Output = T;

    fn index(&self, direction: Direction) -> &T {
        match direction {
            Direction::Original => &self.original,
            Direction::Reply => &self.reply,
        }
    }
}

impl<T> IndexMut<Direction> for PerDirection<T> {
    fn index_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Original => &mut self.original,
            Direction::Reply => &mut self.reply,
        }
    }
}

/// Source, destination and protocol of a connection in one direction.
///
/// TCP, UDP and SCTP: the ports. ICMP and ICMPv6 echo: the identifier counts as the port of the requester. A request has it as
/// `src_port`, with `dst_port` 0, and a reply as `dst_port`, with `src_port` 0, so that [`Tuple::inverse`] turns one into
/// the other. Other protocols: both ports are 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port, host byte order.
    pub src_port: u16,
    /// Destination port, host byte order.
    pub dst_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// The tuple of the opposite direction, without address translation.
    #[must_use]
    pub fn inverse(&self) -> Tuple {
        Tuple {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }

    /// A hash that is equal for a tuple and its inverse. With a seeded `hasher` it cannot be predicted from outside.
    #[must_use]
    pub fn symmetric_hash<S: BuildHasher>(&self, hasher: &S) -> u64 {
        // A few wide words: the derived `Hash` writes each field by itself, which would double the cost of a lookup.
        let mut state = hasher.build_hasher();
        if let (Ip::V4(src), Ip::V4(dst)) = (self.src, self.dst) {
            let end = |ip, port: u16| u64::from(u32::from_be_bytes(ip)) << 16 | u64::from(port);
            let (a, b) = (end(src, self.src_port), end(dst, self.dst_port));
            state.write_u64(a.min(b) | u64::from(self.protocol.0) << 48);
            state.write_u64(a.max(b));
        } else {
            let (a, b) = ((self.src.to_bits(), self.src_port), (self.dst.to_bits(), self.dst_port));
            let (low, high) = (a.min(b), a.max(b));
            state.write_u128(low.0);
            state.write_u128(high.0);
            let ports = u64::from(low.1) << 16 | u64::from(high.1);
            state.write_u64(ports | u64::from(self.protocol.0) << 32);
        }
        state.finish()
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, ip: Ip, port: u16| match ip {
            Ip::V4(_) => write!(f, "{ip}:{port}"),
            Ip::V6(_) => write!(f, "[{ip}]:{port}"),
        };
        write!(f, "{} ", self.protocol)?;
        end(f, self.src, self.src_port)?;
        f.write_str(" -> ")?;
        end(f, self.dst, self.dst_port)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
