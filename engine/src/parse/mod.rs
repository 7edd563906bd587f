//! One checked pass over a packet's bytes.
//!
//! [`parse`] reads a packet once and either returns everything that the engine needs of it, by value, or the one
//! [`Reason`] why it is INVALID. A [`Packet`] holds no bytes, so nothing after this module can read beyond a buffer. Nothing in
//! this module can panic: every read is checked, whatever lengths the headers claim.
//!
//! The checks, in this order; the first failure counts:
//!
//! 1. the IP header: version, lengths, IPv4's checksum and reserved bit (RFC 791), addresses that may never cross a
//!    router (RFC 1122 section 3.2.1.3, RFC 6890), extension headers ([`Reason::IpOption`]), fragments (RFC 1858, RFC 7112,
//!    RFC 8200 section 4.5); the structure of IPv4 options (which of them pass, policy decides: [`IpOptions`]);
//! 2. the transport header: lengths, options, ICMP types, flags that cannot occur together;
//! 3. the transport checksum, as far as [`Checksum`] asks for it and the packet is whole.
//!
//! Fixed header fields are read with `pnet_packet`. Its `payload()` and its option iterators are not used, because they
//! trust the lengths that the packet claims.
//!
//! [`frame`] does the same for Ethernet and VLAN headers. [`build`] makes packets, [`rejection`] the replies of a
//! [`Verdict::Reject`](crate::Verdict::Reject).

pub mod build;
mod checksum;
mod frame;
mod ip;
mod options;
pub mod rejection;
mod transport;

pub use checksum::complete_sctp;
pub use frame::{Frame, frame};
pub use options::{IpOption, IpOptions};

use crate::tuple::{Protocol, Tuple};
use crate::verdict::Reason;

/// The state of a packet's checksums when it arrives (`virtio_net_hdr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// The packet came off a wire: verify.
    Complete,
    /// The device verified it.
    Verified,
    /// The transport checksum is only the pseudo-header's part, to be completed on output (NEEDS_CSUM).
    Partial,
}

/// A packet whose headers were checked. `Copy`, and free of the bytes that it was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source, destination, ports. For an ICMP error: addresses of the error itself, ports 0.
    pub tuple: Tuple,
    /// Length of the IP packet in bytes, headers included; Ethernet padding is not counted.
    pub length: u32,
    /// The offset of the transport header.
    pub transport: u16,
    /// The transport header.
    pub kind: Kind,
    /// For the first of several fragments: its place. (The other fragments are a [`Kind`] of their own.)
    pub fragment: Option<Fragment>,
    /// The IPv4 options.
    pub options: IpOptions,
    /// What else of the IP header a router may choose the route by.
    pub class: RoutingClass,
}

/// What a router may choose a route by, besides addresses, protocol and ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RoutingClass {
    /// The DSCP in the upper six bits (RFC 2474); the others, which are ECN's, are 0.
    pub dscp: u8,
    /// IPv6: the flow label, 20 bits.
    pub flow_label: u32,
}

/// What a router routes a packet by, as far as its headers are complete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Source, destination, ports: as in [`Packet::tuple`], 0 where there are none.
    pub tuple: Tuple,
    /// The rest.
    pub class: RoutingClass,
}

/// The flow of a packet that was checked when it passed, of which this is the beginning.
#[must_use]
pub fn flow(bytes: &[u8]) -> Option<Flow> {
    let network = ip::quoted(bytes).ok()?;
    let tuple = network.tuple(transport::ports(bytes, &network));
    Some(Flow { tuple, class: network.class })
}

/// A transport header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// An ICMP or ICMPv6 echo request.
    EchoRequest,
    /// An ICMP or ICMPv6 echo reply.
    EchoReply,
    /// An ICMP or ICMPv6 error, with the tuple of the packet that it quotes.
    IcmpError(Embedded),
    /// Any other protocol: tracked by addresses alone.
    Other,
    /// A fragment that is not the first: it has no transport header.
    Fragment(Fragment),
}

/// The TCP header's part of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningless without ACK.
    pub ack: u32,
    /// The flags ([`Tcp::FIN`] and so on).
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Bytes of payload (of a GSO packet: of the whole packet).
    pub payload: u32,
    /// The window scale option of a SYN, at most 14 (RFC 7323 section 2.3).
    pub wscale: Option<u8>,
    /// Whether a SYN has the SACK-permitted option.
    pub sack_permitted: bool,
}

impl Tcp {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// URG.
    pub const URG: u8 = 0x20;

    /// Whether all of these flags are set.
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The sequence number after this segment: SYN and FIN count one each (RFC 9293 section 3.4).
    #[must_use]
    pub fn end(&self) -> u32 {
        self.seq
            .wrapping_add(self.payload)
            .wrapping_add(u32::from(self.has(Tcp::SYN)))
            .wrapping_add(u32::from(self.has(Tcp::FIN)))
    }
}

/// The packet inside an ICMP error (RFC 792, RFC 4443 section 3): always at least IP header and 8 bytes (RFC 792).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Embedded {
    /// Its tuple, as its sender sent it.
    pub tuple: Tuple,
    /// TCP: its sequence number.
    pub seq: Option<u32>,
}

/// The place of a fragment in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The identification.
    pub id: u32,
    /// The offset of its data in the datagram, in bytes.
    pub offset: u16,
    /// The length of its data in bytes. In IPv6 everything behind the fragment header counts, including further extension
    /// headers (RFC 8200 section 4.5).
    pub length: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Checks the IPv4 or IPv6 packet that begins at `bytes[0]`. `bytes` may be longer than the packet (Ethernet padding).
///
/// # Errors
/// The reason why it is INVALID.
pub fn parse(bytes: &[u8], checksum: Checksum) -> Result<Packet, Reason> {
    let network = match bytes.first().ok_or(Reason::Truncated)? >> 4 {
        4 => ip::v4(bytes)?,
        6 => ip::v6(bytes)?,
        _ => return Err(Reason::Malformed),
    };
    let length = u32::try_from(network.end).map_err(|_| Reason::Malformed)?;
    let transport = u16::try_from(network.transport).map_err(|_| Reason::Malformed)?;
    let (ports, kind) = transport::parse(bytes, &network, checksum)?;
    let fragment = network.fragment.filter(|fragment| fragment.offset == 0);
    let (tuple, options, class) = (network.tuple(ports), network.options, network.class);
    Ok(Packet { tuple, length, transport, kind, fragment, options, class })
}

/// The transport header of a whole packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransportHeader {
    /// Its offset.
    pub at: usize,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether it lies in an IPv4 packet.
    pub v4: bool,
}

/// Finds the transport header of a packet, at the offset that [`parse`] gives. `None` for a fragment, and for a packet whose IP
/// header is INVALID.
#[must_use]
pub fn transport_header(bytes: &[u8]) -> Option<TransportHeader> {
    let network = match bytes.first()? >> 4 {
        4 => ip::v4(bytes).ok()?,
        6 => ip::v6(bytes).ok()?,
        _ => return None,
    };
    let ip::Network { transport: at, protocol, src, fragment, .. } = network;
    fragment.is_none().then_some(TransportHeader { at, protocol, v4: src.is_v4() })
}

/// The length of the packet that begins at `bytes[0]`, as its IP header has it. `None` if not all of it is there.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let length = match bytes.first()? >> 4 {
        4 => usize::from(ip::u16_at(bytes, 2).ok()?),
        6 => usize::from(ip::u16_at(bytes, 4).ok()?) + ip::IPV6_HEADER,
        _ => return None,
    };
    (length <= bytes.len()).then_some(length)
}

#[cfg(test)]
mod tests;
