//! Construction of whole, valid packets: what [`rejection`](super::rejection) sends, and the input of tests.

use std::iter;

use super::Tcp;
use super::checksum::{self, Sum};
use crate::addr::Ip;
use crate::tuple::{Protocol, Tuple};

/// A TCP segment from `tuple.src` to `tuple.dst`; `tuple.protocol` and `header.payload` are ignored. The options in
/// `header` are written whatever the flags.
///
/// `None` if the addresses are of different families or the payload is too long for a packet.
#[must_use]
pub fn tcp(tuple: &Tuple, header: &Tcp, payload: &[u8]) -> Option<Vec<u8>> {
    let mut options = Vec::with_capacity(8);
    if let Some(shift) = header.wscale {
        options.extend([1, 3, 3, shift]);
    }
    if header.sack_permitted {
        options.extend([1, 1, 4, 2]);
    }
    let offset = 20 + options.len();
    let mut body = Vec::with_capacity(offset + payload.len());
    body.extend(tuple.src_port.to_be_bytes());
    body.extend(tuple.dst_port.to_be_bytes());
    body.extend(header.seq.to_be_bytes());
    body.extend(header.ack.to_be_bytes());
    body.extend([u8::try_from(offset / 4 * 16).ok()?, header.flags]);
    body.extend(header.window.to_be_bytes());
    body.extend([0; 4]);
    body.extend(options);
    body.extend(payload);
    packet(tuple.src, tuple.dst, Protocol::TCP, &body)
}

/// A UDP datagram from `tuple.src` to `tuple.dst`; `tuple.protocol` is ignored.
///
/// `None` if the addresses are of different families or the payload is too long for a packet.
#[must_use]
pub fn udp(tuple: &Tuple, payload: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(8 + payload.len());
    body.extend(tuple.src_port.to_be_bytes());
    body.extend(tuple.dst_port.to_be_bytes());
    body.extend(u16::try_from(8 + payload.len()).ok()?.to_be_bytes());
    body.extend([0; 2]);
    body.extend(payload);
    packet(tuple.src, tuple.dst, Protocol::UDP, &body)
}

/// An SCTP packet from `tuple.src` to `tuple.dst` with some chunks; `tuple.protocol` is ignored.
///
/// `None` if the addresses are of different families or the chunks are too long for a packet.
#[must_use]
pub fn sctp(tuple: &Tuple, verification_tag: u32, chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(12 + chunks.len());
    body.extend(tuple.src_port.to_be_bytes());
    body.extend(tuple.dst_port.to_be_bytes());
    body.extend(verification_tag.to_be_bytes());
    body.extend([0; 4]);
    body.extend(chunks);
    packet(tuple.src, tuple.dst, Protocol::SCTP, &body)
}

/// A kind of echo message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// The request.
    Request,
    /// The reply.
    Reply,
}

/// An ICMP or ICMPv6 echo message.
///
/// `None` if the addresses are of different families or the payload is too long for a packet.
#[must_use]
pub fn echo(src: Ip, dst: Ip, echo: Echo, id: u16, seq: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let kind = match (echo, src.is_v4()) {
        (Echo::Request, true) => 8,
        (Echo::Reply, true) => 0,
        (Echo::Request, false) => 128,
        (Echo::Reply, false) => 129,
    };
    let rest = (u32::from(id) << 16) | u32::from(seq);
    icmp(src, dst, kind, 0, rest, payload)
}

/// An ICMP or ICMPv6 message of any type. `rest` is the second half of its 8-byte header, `data` what follows: in an
/// error the quoted packet.
///
/// `None` if the addresses are of different families or the data are too long for a packet.
#[must_use]
pub fn icmp(src: Ip, dst: Ip, kind: u8, code: u8, rest: u32, data: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(8 + data.len());
    body.extend([kind, code, 0, 0]);
    body.extend(rest.to_be_bytes());
    body.extend(data);
    packet(src, dst, if src.is_v4() { Protocol::ICMP } else { Protocol::ICMPV6 }, &body)
}

/// A packet of any protocol. The correct checksum of TCP, UDP, SCTP, ICMP or ICMPv6 is written into `body`.
///
/// `None` if the addresses are of different families or the body is too long for a packet.
#[must_use]
pub fn packet(src: Ip, dst: Ip, protocol: Protocol, body: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = iter::repeat_n(0, MAX_IP_HEADER_LENGTH + body.len()).collect();
    let at = header(&mut out, src, dst, protocol, body.len())?;
    out.get_mut(at..at + body.len())?.copy_from_slice(body);
    out.truncate(at + body.len());
    complete(&mut out, at, src, dst, protocol);
    Some(out)
}

/// The length of the longest IP header that [`header`] writes, in bytes.
pub(super) const MAX_IP_HEADER_LENGTH: usize = 40;

/// The time to live of packets from this machine (RFC 1700's recommendation).
const INITIAL_TTL: u8 = 64;

/// Writes an IP header for a body of `length` bytes, and returns the header's length.
pub(super) fn header(out: &mut [u8], src: Ip, dst: Ip, protocol: Protocol, length: usize) -> Option<usize> {
    match (src, dst) {
        (Ip::V4(src), Ip::V4(dst)) => {
            let header = out.first_chunk_mut::<20>()?;
            let total = u16::try_from(length + header.len()).ok()?.to_be_bytes();
            // Don't fragment: the identification may then be anything (RFC 6864 section 4.1).
            *header =
                [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, INITIAL_TTL, protocol.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&src);
            header[16..].copy_from_slice(&dst);
            let checksum = Sum::default().bytes(header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            Some(header.len())
        }
        (Ip::V6(src), Ip::V6(dst)) => {
            let header = out.first_chunk_mut::<40>()?;
            *header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
            header[6] = protocol.0;
            header[7] = INITIAL_TTL;
            header[8..24].copy_from_slice(&src);
            header[24..].copy_from_slice(&dst);
            Some(header.len())
        }
        _ => None,
    }
}

/// Writes the correct checksum into the transport header at `packet[at]`, if the protocol has one.
pub(super) fn complete(packet: &mut [u8], at: usize, src: Ip, dst: Ip, protocol: Protocol) {
    let place = match protocol {
        Protocol::TCP => 16,
        Protocol::UDP => 6,
        Protocol::ICMP | Protocol::ICMPV6 => 2,
        Protocol::SCTP => return packet.get_mut(at..).map_or((), checksum::complete_sctp),
        _ => return,
    };
    let Some(body) = packet.get_mut(at..) else { return };
    let Some(field) = body.get_mut(place..place + 2) else { return };
    field.fill(0);
    let pseudo = match protocol {
        Protocol::ICMP => Sum::default(),
        _ => Sum::default().pseudo(src, dst, protocol, body.len()),
    };
    let checksum = match (protocol, pseudo.bytes(body).checksum()) {
        // 0 would mean "none" (RFC 768).
        (Protocol::UDP, 0) => 0xffff,
        (_, checksum) => checksum,
    };
    if let Some(field) = body.get_mut(place..place + 2) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
}
