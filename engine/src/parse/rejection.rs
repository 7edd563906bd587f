//! Replies to packets that a rule rejects: for TCP a RST, for everything else ICMP "administratively prohibited".

use super::{Kind, Packet, Tcp, build};
use crate::addr::Ip;
use crate::tuple::{Protocol, Tuple};

/// The length of the longest reply, in bytes: the minimum MTU of IPv6, to which RFC 4443 section 2.4 limits errors.
pub const MAX_LENGTH: usize = 1280;

/// The length of the longest ICMP error over IPv4, in bytes (RFC 1812 section 4.3.2.3).
const MAX_V4_LENGTH: usize = 576;

/// Writes the reply to `packet`, whose bytes are `bytes`, into `out`, which should have [`MAX_LENGTH`] bytes. Returns its length. The
/// reply is a whole IP packet with complete checksums.
///
/// The source of a RST is the segment's destination. The source of an ICMP error is `router`, the address of the interface on
/// which the packet arrived; without one of the same family it is the packet's destination.
///
/// `None`: there is no reply. No RST answers a RST (RFC 9293 section 3.10.7.1). No ICMP error answers an ICMP error or a
/// fragment other than the first (RFC 1122 section 3.2.2).
#[must_use]
pub fn build(bytes: &[u8], packet: &Packet, router: Option<Ip>, out: &mut [u8]) -> Option<usize> {
    match &packet.kind {
        Kind::Tcp(tcp) => reset(packet, tcp, out),
        Kind::IcmpError(_) | Kind::Fragment(_) => None,
        Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => {
            error(bytes, packet, Unreachable::Prohibited, router, out)
        }
    }
}

/// Why a packet reaches nobody, in the words of ICMP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// There is no route.
    Network,
    /// The route says so.
    Host,
    /// It is administratively prohibited.
    Prohibited,
}

/// As [`build`], for a packet that cannot be forwarded, of whatever protocol: "destination unreachable".
#[must_use]
pub fn unreachable(
    bytes: &[u8],
    packet: &Packet,
    why: Unreachable,
    router: Option<Ip>,
    out: &mut [u8],
) -> Option<usize> {
    match &packet.kind {
        Kind::IcmpError(_) | Kind::Fragment(_) => None,
        _ => error(bytes, packet, why, router, out),
    }
}

/// The RST that a closed port would send (RFC 9293 section 3.10.7.1).
fn reset(packet: &Packet, tcp: &Tcp, out: &mut [u8]) -> Option<usize> {
    if tcp.has(Tcp::RST) {
        return None;
    }
    let (seq, ack, flags) =
        if tcp.has(Tcp::ACK) { (tcp.ack, 0, Tcp::RST) } else { (0, tcp.end(), Tcp::RST | Tcp::ACK) };
    rst(&packet.tuple.inverse(), seq, ack, flags, out)
}

/// Writes a segment without options and data, as [`build`] does.
#[must_use]
pub(crate) fn rst(to: &Tuple, seq: u32, ack: u32, flags: u8, out: &mut [u8]) -> Option<usize> {
    let at = build::header(out, to.src, to.dst, Protocol::TCP, 20)?;
    let end = at + 20;
    let header = out.get_mut(at..end)?;
    header.fill(0);
    header[0..2].copy_from_slice(&to.src_port.to_be_bytes());
    header[2..4].copy_from_slice(&to.dst_port.to_be_bytes());
    header[4..8].copy_from_slice(&seq.to_be_bytes());
    header[8..12].copy_from_slice(&ack.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    build::complete(out.get_mut(..end)?, at, to.src, to.dst, Protocol::TCP);
    Some(end)
}

/// An ICMP error with as much of the packet as it may quote.
fn error(bytes: &[u8], packet: &Packet, why: Unreachable, router: Option<Ip>, out: &mut [u8]) -> Option<usize> {
    let to = packet.tuple.src;
    let v4 = to.is_v4();
    let from = router.filter(|router| router.is_v4() == v4).unwrap_or(packet.tuple.dst);
    // The codes of destination unreachable: RFC 1812 section 5.2.7.1, RFC 4443 section 3.1.
    let code = match (why, v4) {
        (Unreachable::Network, _) => 0,
        (Unreachable::Host, true) => 1,
        (Unreachable::Host, false) => 3,
        (Unreachable::Prohibited, true) => 13,
        (Unreachable::Prohibited, false) => 1,
    };
    let (protocol, kind, max_quoted) =
        if v4 { (Protocol::ICMP, 3, MAX_V4_LENGTH - 20 - 8) } else { (Protocol::ICMPV6, 1, MAX_LENGTH - 40 - 8) };
    let original = bytes.get(..(packet.length as usize).min(max_quoted))?;
    let at = build::header(out, from, to, protocol, 8 + original.len())?;
    let end = at + 8 + original.len();
    let body = out.get_mut(at..end)?;
    body.get_mut(..8)?.copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    body.get_mut(8..)?.copy_from_slice(original);
    build::complete(out.get_mut(..end)?, at, from, to, protocol);
    Some(end)
}
