//! TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), ICMP (RFC 792) and ICMPv6 (RFC 4443) headers.

use pnet_packet::tcp::TcpPacket;
use pnet_packet::udp::UdpPacket;

use super::checksum::{self, Sum};
use super::ip::{self, Network, u16_at};
use super::{Checksum, Embedded, Kind, Tcp};
use crate::tuple::Protocol;
use crate::verdict::Reason;

/// Source and destination port as in [`Tuple`](crate::Tuple).
type Ports = (u16, u16);

/// The length of every ICMP header that passes, in bytes.
const ICMP_HEADER_LENGTH: usize = 8;
/// The length of SCTP's common header, in bytes (RFC 9260 section 3.1).
const SCTP_HEADER_LENGTH: usize = 12;

/// Reads and checks the transport header of `bytes`, whose network layer is `network`.
pub(super) fn parse(bytes: &[u8], network: &Network, checksum: Checksum) -> Result<(Ports, Kind), Reason> {
    if let Some(fragment) = network.fragment
        && fragment.offset > 0
    {
        return Ok(((0, 0), Kind::Fragment(fragment)));
    }
    let body = bytes.get(network.transport..network.end).ok_or(Reason::Truncated)?;
    match (network.protocol, network.src.is_v4()) {
        (Protocol::TCP, _) => tcp(body, network, checksum),
        (Protocol::UDP, _) => udp(body, network, checksum),
        (Protocol::SCTP, _) => sctp(body, network, checksum),
        (Protocol::ICMP, true) | (Protocol::ICMPV6, false) => icmp(body, network, checksum),
        // ICMP in IPv6 and ICMPv6 in IPv4 have no meaning.
        (Protocol::ICMP | Protocol::ICMPV6, _) => Err(Reason::Malformed),
        _ => Ok(((0, 0), Kind::Other)),
    }
}

/// Checks the checksum over the `covered` bytes of a whole packet. That of a fragment cannot be known.
fn verify(covered: &[u8], network: &Network) -> Result<(), Reason> {
    let sum = match network.protocol {
        Protocol::ICMP => Sum::default(),
        protocol => Sum::default().pseudo(network.src, network.dst, protocol, covered.len()),
    };
    if network.fragment.is_some() || sum.bytes(covered).is_valid() { Ok(()) } else { Err(Reason::BadChecksum) }
}

fn tcp(body: &[u8], network: &Network, checksum: Checksum) -> Result<(Ports, Kind), Reason> {
    let header = TcpPacket::new(body).ok_or(network.short())?;
    let length = usize::from(header.get_data_offset()) * 4;
    if length < TcpPacket::minimum_packet_size() {
        return Err(Reason::Malformed);
    }
    let options = body.get(TcpPacket::minimum_packet_size()..length).ok_or(network.short())?;
    let (src_port, dst_port) = (header.get_source(), header.get_destination());
    if src_port == 0 || dst_port == 0 {
        return Err(Reason::Malformed);
    }
    let payload = u32::try_from(body.len() - length).map_err(|_| Reason::Malformed)?;
    let mut tcp = Tcp {
        seq: header.get_sequence(),
        ack: header.get_acknowledgement(),
        flags: header.get_flags(),
        window: header.get_window(),
        payload,
        wscale: None,
        sack_permitted: false,
    };
    if !is_valid_combination(tcp.flags) {
        return Err(Reason::TcpFlags);
    }
    tcp_options(options, &mut tcp)?;
    if checksum == Checksum::Complete {
        verify(body, network)?;
    }
    Ok(((src_port, dst_port), Kind::Tcp(tcp)))
}

/// Whether a correct end can send these flags together (RFC 9293 section 3.10). PSH and the ECN flags (RFC 3168, RFC 9768)
/// do not matter.
fn is_valid_combination(flags: u8) -> bool {
    const SYN_ACK: u8 = Tcp::SYN | Tcp::ACK;
    const SYN_URG: u8 = Tcp::SYN | Tcp::URG;
    const RST_ACK: u8 = Tcp::RST | Tcp::ACK;
    const FIN_ACK: u8 = Tcp::FIN | Tcp::ACK;
    const FIN_ACK_URG: u8 = FIN_ACK | Tcp::URG;
    const ACK_URG: u8 = Tcp::ACK | Tcp::URG;
    matches!(
        flags & (Tcp::FIN | Tcp::SYN | Tcp::RST | Tcp::ACK | Tcp::URG),
        Tcp::SYN | SYN_ACK | SYN_URG | Tcp::RST | RST_ACK | FIN_ACK | FIN_ACK_URG | Tcp::ACK | ACK_URG
    )
}

/// Checks the length of every option (RFC 9293 section 3.1), and reads those of a SYN that tracking needs.
fn tcp_options(mut rest: &[u8], tcp: &mut Tcp) -> Result<(), Reason> {
    let syn = tcp.has(Tcp::SYN);
    while let Some((&kind, after)) = rest.split_first() {
        match kind {
            // End of list: what follows is padding.
            0 => break,
            1 => rest = after,
            _ => {
                let length = usize::from(*after.first().ok_or(Reason::Malformed)?);
                if length < 2 || fixed_length(kind).is_some_and(|fixed| fixed != length) {
                    return Err(Reason::Malformed);
                }
                let (option, following) = rest.split_at_checked(length).ok_or(Reason::Malformed)?;
                rest = following;
                match *option {
                    // More than 14 counts as 14 (RFC 7323 section 2.3).
                    [3, _, shift] if syn => tcp.wscale = Some(shift.min(14)),
                    [4, _] if syn => tcp.sack_permitted = true,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// The length of the options whose length is fixed: maximum segment size, window scale, SACK permitted, timestamps.
fn fixed_length(kind: u8) -> Option<usize> {
    match kind {
        2 => Some(4),
        3 => Some(3),
        4 => Some(2),
        8 => Some(10),
        _ => None,
    }
}

fn udp(body: &[u8], network: &Network, checksum: Checksum) -> Result<(Ports, Kind), Reason> {
    let header = UdpPacket::new(body).ok_or(network.short())?;
    let length = usize::from(header.get_length());
    if length < UdpPacket::minimum_packet_size() || header.get_destination() == 0 {
        return Err(Reason::Malformed);
    }
    // The datagram may be shorter than the packet (RFC 9868 has options behind it), and longer than a first fragment.
    let covered = match (body.get(..length), network.fragment) {
        (Some(covered), _) => covered,
        (None, Some(_)) => body,
        (None, None) => return Err(Reason::Truncated),
    };
    let kind = ((header.get_source(), header.get_destination()), Kind::Udp);
    match (header.get_checksum(), checksum) {
        // A partial sum, which may be anything.
        (_, Checksum::Partial) => Ok(kind),
        // "No checksum": legal in IPv4 only (RFC 768, RFC 8200 section 8.1).
        (0, _) if network.src.is_v4() => Ok(kind),
        (0, _) => Err(Reason::BadChecksum),
        (_, Checksum::Verified) => Ok(kind),
        (_, Checksum::Complete) => verify(covered, network).map(|()| kind),
    }
}

/// Checks the common header and the CRC32c (RFC 9260 section 6.8). The chunks are left to the ends.
fn sctp(body: &[u8], network: &Network, checksum: Checksum) -> Result<(Ports, Kind), Reason> {
    if body.len() < SCTP_HEADER_LENGTH {
        return Err(network.short());
    }
    let ports = (u16_at(body, 0)?, u16_at(body, 2)?);
    // RFC 9260 section 3.1: neither may be 0.
    if ports.0 == 0 || ports.1 == 0 {
        return Err(Reason::Malformed);
    }
    let whole = network.fragment.is_none();
    match checksum {
        Checksum::Complete if whole && !checksum::sctp_is_valid(body) => Err(Reason::BadChecksum),
        Checksum::Complete | Checksum::Verified | Checksum::Partial => Ok((ports, Kind::Sctp)),
    }
}

/// The classes of ICMP types that a router forwards.
enum IcmpClass {
    Request,
    Reply,
    Error,
}

/// The class of an ICMP message that may pass. All others are for the local link only (redirects, router and neighbour
/// discovery, multicast listeners), obsolete (RFC 6633, RFC 6918), or reveal something of hosts (timestamp, address mask, node
/// information).
fn icmp_class(v4: bool, kind: u8, code: u8) -> Option<IcmpClass> {
    match (v4, kind, code) {
        (true, 8, 0) | (false, 128, 0) => Some(IcmpClass::Request),
        (true, 0, 0) | (false, 129, 0) => Some(IcmpClass::Reply),
        // Destination unreachable, time exceeded, parameter problem.
        (true, 3, 0..=15) | (true, 11, 0..=1) | (true, 12, 0..=2) => Some(IcmpClass::Error),
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        (false, 1, 0..=8) | (false, 2, 0) | (false, 3, 0..=1) | (false, 4, 0..=10) => Some(IcmpClass::Error),
        _ => None,
    }
}

fn icmp(body: &[u8], network: &Network, checksum: Checksum) -> Result<(Ports, Kind), Reason> {
    let Some(&[kind, code, _, _, id_high, id_low, _, _]) = body.first_chunk::<ICMP_HEADER_LENGTH>() else {
        return Err(network.short());
    };
    let class = icmp_class(network.src.is_v4(), kind, code).ok_or(Reason::IcmpType)?;
    // No device verifies ICMP checksums, whatever it reports.
    if checksum != Checksum::Partial {
        verify(body, network)?;
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    match class {
        IcmpClass::Request => Ok(((id, 0), Kind::EchoRequest)),
        IcmpClass::Reply => Ok(((0, id), Kind::EchoReply)),
        // An error fits into one packet (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
        IcmpClass::Error if network.fragment.is_some() => Err(Reason::Fragment),
        IcmpClass::Error => {
            let original = body.get(ICMP_HEADER_LENGTH..).ok_or(Reason::Truncated)?;
            Ok(((0, 0), Kind::IcmpError(embedded(original, network)?)))
        }
    }
}

/// The ports of a packet that was checked before, or of its beginning: 0 where there are none.
pub(super) fn ports(bytes: &[u8], network: &Network) -> Ports {
    let body = bytes.get(network.transport..).unwrap_or_default();
    let word = |at| u16_at(body, at).unwrap_or(0);
    match (network.protocol, network.src.is_v4()) {
        // The kernel looks for none in fragments, not even in the first one.
        _ if network.fragment.is_some() => (0, 0),
        (Protocol::TCP | Protocol::UDP | Protocol::SCTP, _) => (word(0), word(2)),
        (Protocol::ICMP, v4 @ true) | (Protocol::ICMPV6, v4 @ false) => {
            let [kind, code] = word(0).to_be_bytes();
            match icmp_class(v4, kind, code) {
                Some(IcmpClass::Request) => (word(4), 0),
                Some(IcmpClass::Reply) => (0, word(4)),
                Some(IcmpClass::Error) | None => (0, 0),
            }
        }
        _ => (0, 0),
    }
}

/// Reads the packet that an ICMP error quotes: at least 8 bytes behind its IP header.
fn embedded(bytes: &[u8], error: &Network) -> Result<Embedded, Reason> {
    let network = ip::embedded(bytes, error.src.is_v4())?;
    // An error goes to the sender of the quoted packet.
    if network.src != error.dst {
        return Err(Reason::IcmpUnrelated);
    }
    let body = bytes.get(network.transport..).ok_or(Reason::Truncated)?;
    let eight = || body.first_chunk::<8>().ok_or(Reason::Truncated);
    let (ports, seq) = match (network.protocol, network.src.is_v4()) {
        (Protocol::TCP, _) => {
            let [_, _, _, _, a, b, c, d] = *eight()?;
            ((u16_at(body, 0)?, u16_at(body, 2)?), Some(u32::from_be_bytes([a, b, c, d])))
        }
        (Protocol::UDP | Protocol::SCTP, _) => {
            eight()?;
            ((u16_at(body, 0)?, u16_at(body, 2)?), None)
        }
        (Protocol::ICMP, v4 @ true) | (Protocol::ICMPV6, v4 @ false) => {
            let [kind, code, _, _, id_high, id_low, _, _] = *eight()?;
            let id = u16::from_be_bytes([id_high, id_low]);
            match icmp_class(v4, kind, code) {
                Some(IcmpClass::Request) => ((id, 0), None),
                Some(IcmpClass::Reply) => ((0, id), None),
                // No error answers an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4), and no other type passed.
                Some(IcmpClass::Error) | None => return Err(Reason::IcmpType),
            }
        }
        (Protocol::ICMP | Protocol::ICMPV6, _) => return Err(Reason::Malformed),
        _ => ((0, 0), None),
    };
    Ok(Embedded { tuple: network.tuple(ports), seq })
}
