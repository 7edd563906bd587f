//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers: those of packets, and those inside ICMP errors.

use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::Ipv6Packet;

use super::checksum::Sum;
use super::{Fragment, IpOptions, RoutingClass};
use crate::addr::Ip;
use crate::tuple::{Protocol, Tuple};
use crate::verdict::Reason;

/// Maximum number of extension headers in one packet. RFC 8504 section 5.3 lets a node set such a limit. No order that RFC 8200
/// section 4.1 recommends has as many.
const MAX_EXTENSION_HEADERS: usize = 8;
/// Maximum number of bytes of extension headers in one packet (RFC 8504 section 5.3).
const MAX_EXTENSION_BYTES: usize = 512;

pub(super) const IPV6_HEADER: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// The network layer of a packet.
pub(super) struct Network {
    pub(super) src: Ip,
    pub(super) dst: Ip,
    /// The transport protocol. Of a fragment that is not the first: the next header that its own header names.
    pub(super) protocol: Protocol,
    /// The offset of the transport header, at most `end`.
    pub(super) transport: usize,
    /// The offset of the packet's end.
    pub(super) end: usize,
    /// Its place in the datagram, if it is a fragment.
    pub(super) fragment: Option<Fragment>,
    /// IPv4 only.
    pub(super) options: IpOptions,
    pub(super) class: RoutingClass,
}

/// The upper six bits of the traffic class (RFC 2474).
const DSCP: u8 = 0xfc;

fn class_v4(header: &Ipv4Packet<'_>) -> RoutingClass {
    RoutingClass { dscp: header.get_dscp() << 2, flow_label: 0 }
}

fn class_v6(header: &Ipv6Packet<'_>) -> RoutingClass {
    RoutingClass { dscp: header.get_traffic_class() & DSCP, flow_label: header.get_flow_label() }
}

impl Network {
    /// The tuple, with a transport's ports.
    pub(super) fn tuple(&self, (src_port, dst_port): (u16, u16)) -> Tuple {
        Tuple { src: self.src, dst: self.dst, src_port, dst_port, protocol: self.protocol }
    }

    /// The reason for a drop if the transport header is incomplete (for fragments: RFC 1858, RFC 7112).
    pub(super) fn short(&self) -> Reason {
        if self.fragment.is_some() { Reason::Fragment } else { Reason::Truncated }
    }
}

/// Reads and checks an IPv4 header.
pub(super) fn v4(bytes: &[u8]) -> Result<Network, Reason> {
    let header = Ipv4Packet::new(bytes).ok_or(Reason::Truncated)?;
    let transport = usize::from(header.get_header_length()) * 4;
    let end = usize::from(header.get_total_length());
    // A total length of 0 is how some kernels mark packets over 64 KiB ("big TCP"): it fails here, too.
    if transport < Ipv4Packet::minimum_packet_size() || end < transport {
        return Err(Reason::Malformed);
    }
    if end > bytes.len() {
        return Err(Reason::Truncated);
    }
    let all = bytes.get(..transport).ok_or(Reason::Truncated)?;
    // No device verifies the header's checksum for us: offloads are about the transport checksum.
    if !Sum::default().bytes(all).is_valid() {
        return Err(Reason::BadChecksum);
    }
    let flags = header.get_flags();
    // The reserved bit "must be zero" (RFC 791 section 3.1).
    if flags & 0b100 != 0 {
        return Err(Reason::Malformed);
    }
    let (src, dst) = (header.get_source().octets(), header.get_destination().octets());
    let martian_source =
        martian_v4(src) && !(link_local_v4(src) && is_error(header.get_next_level_protocol().0, bytes.get(transport)));
    if src == dst || martian_source || martian_v4(dst) {
        return Err(Reason::Martian);
    }
    let options = IpOptions::read(all.get(Ipv4Packet::minimum_packet_size()..).unwrap_or_default())?;
    let protocol = Protocol(header.get_next_level_protocol().0);
    let (offset, more) = (header.get_fragment_offset() * 8, flags & 0b001 != 0);
    let id = u32::from(header.get_identification());
    let fragment = fragment(Fragment { id, offset, length: 0, more }, protocol, end - transport)?;
    let class = class_v4(&header);
    Ok(Network { src: Ip::V4(src), dst: Ip::V4(dst), protocol, transport, end, fragment, options, class })
}

/// Reads and checks an IPv6 header and its extension headers.
pub(super) fn v6(bytes: &[u8]) -> Result<Network, Reason> {
    let header = Ipv6Packet::new(bytes).ok_or(Reason::Truncated)?;
    let payload = usize::from(header.get_payload_length());
    let next = header.get_next_header().0;
    // A jumbogram (RFC 2675): its length is in a hop-by-hop option.
    if payload == 0 && next == HOP_BY_HOP {
        return Err(Reason::Malformed);
    }
    let end = IPV6_HEADER + payload;
    if end > bytes.len() {
        return Err(Reason::Truncated);
    }
    let (src, dst) = (header.get_source().octets(), header.get_destination().octets());
    if src == dst || martian_v6(src) || martian_v6(dst) {
        return Err(Reason::Martian);
    }
    let chain = extensions(bytes.get(..end).ok_or(Reason::Truncated)?, next, Strictness::All)?;
    let Chain { protocol, transport, fragment } = chain;
    let (options, class) = (IpOptions::NONE, class_v6(&header));
    Ok(Network { src: Ip::V6(src), dst: Ip::V6(dst), protocol, transport, end, fragment, options, class })
}

/// Reads the IP header inside an ICMP error of the same family. It was checked when it passed as a packet of its own, and
/// routers change it on the way (time to live, checksum). So only its structure is checked. `end` is the end of `bytes`.
pub(super) fn embedded(bytes: &[u8], v4: bool) -> Result<Network, Reason> {
    let network = quoted(bytes)?;
    // Only a first fragment is answered with an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    match network.fragment {
        _ if network.src.is_v4() != v4 => Err(Reason::Malformed),
        Some(fragment) if fragment.offset > 0 => Err(Reason::Malformed),
        _ => Ok(network),
    }
}

/// Reads the IP header of a packet that was checked when it passed, or of its beginning: only the structure is checked. `end` is
/// the end of `bytes`.
pub(super) fn quoted(bytes: &[u8]) -> Result<Network, Reason> {
    let version = bytes.first().ok_or(Reason::Truncated)? >> 4;
    let end = bytes.len();
    Ok(match version {
        4 => {
            let header = Ipv4Packet::new(bytes).ok_or(Reason::Truncated)?;
            let transport = usize::from(header.get_header_length()) * 4;
            if transport < Ipv4Packet::minimum_packet_size() {
                return Err(Reason::Malformed);
            }
            if transport > end {
                return Err(Reason::Truncated);
            }
            let (offset, more) = (header.get_fragment_offset() * 8, header.get_flags() & 0b001 != 0);
            let fragment = Fragment { id: u32::from(header.get_identification()), offset, length: 0, more };
            Network {
                src: Ip::V4(header.get_source().octets()),
                dst: Ip::V4(header.get_destination().octets()),
                protocol: Protocol(header.get_next_level_protocol().0),
                transport,
                end,
                fragment: (offset > 0 || more).then_some(fragment),
                options: IpOptions::NONE,
                class: class_v4(&header),
            }
        }
        6 => {
            let header = Ipv6Packet::new(bytes).ok_or(Reason::Truncated)?;
            let chain = extensions(bytes, header.get_next_header().0, Strictness::Structure)?;
            Network {
                src: Ip::V6(header.get_source().octets()),
                dst: Ip::V6(header.get_destination().octets()),
                protocol: chain.protocol,
                transport: chain.transport,
                end,
                fragment: chain.fragment,
                options: IpOptions::NONE,
                class: class_v6(&header),
            }
        }
        _ => return Err(Reason::Malformed),
    })
}

/// How much of the extension headers is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// Structure, and whether the headers may pass.
    All,
    /// Only what is needed to find the transport header.
    Structure,
}

/// The end of a chain of extension headers.
struct Chain {
    protocol: Protocol,
    transport: usize,
    fragment: Option<Fragment>,
}

/// Walks the extension headers (RFC 8200 section 4) of an IPv6 packet that ends with `bytes`.
fn extensions(bytes: &[u8], mut next: u8, strictness: Strictness) -> Result<Chain, Reason> {
    let mut at = IPV6_HEADER;
    let mut part: Option<Fragment> = None;
    let mut headers = 0;
    while matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        headers += 1;
        if headers > MAX_EXTENSION_HEADERS || at - IPV6_HEADER > MAX_EXTENSION_BYTES {
            return Err(Reason::IpOption);
        }
        // The first fragment must contain the whole chain (RFC 7112).
        let short = if part.is_some() { Reason::Fragment } else { Reason::Truncated };
        let fixed = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(short)?;
        let [following, length, ..] = *fixed;
        if next == FRAGMENT {
            if part.is_some() {
                return Err(Reason::Malformed);
            }
            let [_, _, high, low, a, b, c, d] = *fixed;
            let field = u16::from_be_bytes([high, low]);
            let (offset, more) = (field & !7, field & 1 != 0);
            let read = Fragment { id: u32::from_be_bytes([a, b, c, d]), offset, length: 0, more };
            at += 8;
            next = following;
            part = match strictness {
                Strictness::All => fragment(read, Protocol(next), bytes.len() - at)?,
                Strictness::Structure => (read.offset > 0 || read.more).then_some(read),
            };
            if part.is_some_and(|part| part.offset > 0) {
                break;
            }
            continue;
        }
        let whole = bytes.get(at..at + 8 + usize::from(length) * 8).ok_or(short)?;
        // Hop-by-hop options come first or not at all (RFC 8200 section 4.1).
        if next == HOP_BY_HOP && at != IPV6_HEADER {
            return Err(Reason::Malformed);
        }
        if strictness == Strictness::All {
            match next {
                ROUTING => routing(whole)?,
                _ => options(whole, next)?,
            }
        }
        at += whole.len();
        next = following;
    }
    Ok(Chain { protocol: Protocol(next), transport: at, fragment: part })
}

/// Checks a routing header. It passes only with no segments left: otherwise the destination that policy judges is not the one
/// that the packet goes to. Type 0 never passes (RFC 5095).
fn routing(header: &[u8]) -> Result<(), Reason> {
    match header {
        [_, _, kind, left, ..] if *kind != 0 && *left == 0 => Ok(()),
        _ => Err(Reason::IpOption),
    }
}

/// Checks the options of a hop-by-hop or destination options header (RFC 8200 section 4.2). Padding passes, and in destination
/// options the tunnel encapsulation limit (RFC 2473 section 4.1.1), which Linux tunnels write by default.
fn options(header: &[u8], next: u8) -> Result<(), Reason> {
    let mut rest = header.get(2..).unwrap_or_default();
    while let Some((&kind, after)) = rest.split_first() {
        if kind == 0 {
            rest = after;
            continue;
        }
        let (&length, after) = after.split_first().ok_or(Reason::Malformed)?;
        rest = after.get(usize::from(length)..).ok_or(Reason::Malformed)?;
        match kind {
            1 => {}
            4 if next == DESTINATION => {}
            // A jumbogram's length contradicts the header's, which is not 0 here (RFC 2675 section 3).
            0xc2 => return Err(Reason::Malformed),
            _ => return Err(Reason::IpOption),
        }
    }
    Ok(())
}

/// Checks the place of a fragment with `length` bytes of data. `None`: it is a whole packet (in IPv6 an "atomic fragment",
/// RFC 6946).
fn fragment(part: Fragment, protocol: Protocol, length: usize) -> Result<Option<Fragment>, Reason> {
    if part.offset == 0 && !part.more {
        return Ok(None);
    }
    let end = usize::from(part.offset) + length;
    // Empty; not on an 8-byte boundary; beyond the longest packet ("ping of death"); a second fragment that overwrites the TCP
    // flags (RFC 1858 section 3).
    let bad = length == 0
        || (part.more && !length.is_multiple_of(8))
        || end > usize::from(u16::MAX)
        || (protocol == Protocol::TCP && part.offset == 8);
    match u16::try_from(length) {
        Ok(length) if !bad => Ok(Some(Fragment { length, ..part })),
        _ => Err(Reason::Fragment),
    }
}

/// Whether an address is never a source or destination across a router (RFC 6890, RFC 1122 section 3.2.1.3, RFC 5771):
/// "this network", loopback, link-local, multicast, reserved and limited broadcast.
fn martian_v4(address: [u8; 4]) -> bool {
    matches!(address, [0 | 127 | 224..=255, ..]) || link_local_v4(address)
}

fn link_local_v4(address: [u8; 4]) -> bool {
    matches!(address, [169, 254, ..])
}

/// Whether it is an ICMP error. A router on the path whose links have link-local addresses only sends them from there (RFC 3927
/// section 2.7 forbids to forward them, routers do, and without them path MTU discovery and traceroute fail). They pass if
/// they quote a packet of a session.
fn is_error(protocol: u8, kind: Option<&u8>) -> bool {
    Protocol(protocol) == Protocol::ICMP && matches!(kind, Some(3 | 11 | 12))
}

/// As [`martian_v4`], for IPv6 (RFC 4291 section 2.4): unspecified, loopback, IPv4-mapped, link-local, multicast.
fn martian_v6(address: [u8; 16]) -> bool {
    match address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1] => true,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => true,
        [0xfe, second, ..] => second & 0xc0 == 0x80,
        [0xff, ..] => true,
        _ => false,
    }
}

/// The big-endian number at an offset.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Reason> {
    let two = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Reason::Truncated)?;
    Ok(u16::from_be_bytes(*two))
}
