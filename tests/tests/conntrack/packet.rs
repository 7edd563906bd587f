//! Packets of the histories: built from what a test says, read for what it must know of them.

use palisade_engine::parse::{Tcp, build};
use palisade_engine::{Ip, Protocol, Tuple};

pub(crate) const SYN: u8 = Tcp::SYN;
pub(crate) const ACK: u8 = Tcp::ACK;
pub(crate) const FIN: u8 = Tcp::FIN;
pub(crate) const RST: u8 = Tcp::RST;
pub(crate) const PSH: u8 = Tcp::PSH;
pub(crate) const URG: u8 = Tcp::URG;

/// Where a packet comes from. The client's side is the policy's `outside`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self == Side::Server)
    }

    /// The router's interface; in the rules by this name.
    pub(crate) fn name(self) -> &'static str {
        ["client", "server"][self.index()]
    }

    /// The other end of that interface's wire.
    pub(crate) fn far_name(self) -> &'static str {
        ["c0", "s0"][self.index()]
    }

    /// 10.N.0.0/16 and 2001:db8:N::/48 are on this side.
    pub(crate) fn network(self) -> u8 {
        [1, 2][self.index()]
    }

    /// Which side an address is on.
    pub(crate) fn of(ip: Ip) -> Option<Side> {
        [Side::Client, Side::Server].into_iter().find(|side| match ip {
            Ip::V4([10, n, _, _]) | Ip::V6([0x20, 0x01, 0x0d, 0xb8, 0, n, ..]) => n == side.network(),
            _ => false,
        })
    }
}

/// The address of a side's host number `n`, of which each history has one of its own.
pub(crate) fn host(side: Side, n: u16, v4: bool) -> Ip {
    let [high, low] = n.to_be_bytes();
    match v4 {
        true => Ip::V4([10, side.network(), high, low]),
        false => Ip::V6([0x20, 0x01, 0x0d, 0xb8, 0, side.network(), 0, 0, 0, 0, 0, 0, 0, 0, high, low]),
    }
}

/// Source and destination.
pub(crate) fn addresses(bytes: &[u8]) -> Option<(Ip, Ip)> {
    match bytes.first()? >> 4 {
        4 => Some((Ip::V4(*bytes.get(12..)?.first_chunk()?), Ip::V4(*bytes.get(16..)?.first_chunk()?))),
        6 => Some((Ip::V6(*bytes.get(8..)?.first_chunk()?), Ip::V6(*bytes.get(24..)?.first_chunk()?))),
        _ => None,
    }
}

/// The side that a packet goes to.
pub(crate) fn destination(bytes: &[u8]) -> Option<Side> {
    Side::of(addresses(bytes)?.1)
}

/// Something that any router forwards, and that is nobody's.
pub(crate) fn probe() -> Vec<u8> {
    let tuple = Tuple {
        src: host(Side::Client, 3, true),
        dst: host(Side::Server, 3, true),
        src_port: 7,
        dst_port: 7,
        protocol: Protocol::UDP,
    };
    udp(&tuple, b"")
}

/// A TCP segment, as a test says it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    /// Bytes of payload.
    pub(crate) data: usize,
}

impl Segment {
    /// The packet, correct in every respect except what the segment says.
    pub(crate) fn packet(&self, tuple: &Tuple) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut body = Vec::with_capacity(20 + options.len() + self.data);
        body.extend(tuple.src_port.to_be_bytes());
        body.extend(tuple.dst_port.to_be_bytes());
        body.extend(self.seq.to_be_bytes());
        body.extend(self.ack.to_be_bytes());
        body.extend([(20 + options.len() as u8) << 2, self.flags]);
        body.extend(self.window.to_be_bytes());
        body.extend([0, 0, 0, u8::from(self.flags & URG != 0)]);
        body.extend(options);
        body.resize(body.len() + self.data, b'x');
        build::packet(tuple.src, tuple.dst, Protocol::TCP, &body).unwrap()
    }
}

pub(crate) fn udp(tuple: &Tuple, data: &[u8]) -> Vec<u8> {
    build::udp(tuple, data).unwrap()
}

/// Sets a byte of the IP header and makes an IPv4 header's checksum right again.
pub(crate) fn with_ip(mut packet: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut packet);
    if packet[0] >> 4 == 4 {
        let length = usize::from(packet[0] & 15) * 4;
        packet[10..12].fill(0);
        let sum = sum(&packet[..length]);
        packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    }
    packet
}

/// The Internet checksum's sum (RFC 1071).
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Puts options (a multiple of four bytes) into an IPv4 header.
pub(crate) fn with_options(packet: Vec<u8>, options: &[u8]) -> Vec<u8> {
    with_ip(packet, |p| {
        p.splice(20..20, options.iter().copied());
        p[0] = 0x40 | (5 + options.len() as u8 / 4);
        let length = (p.len() as u16).to_be_bytes();
        p[2..4].copy_from_slice(&length);
    })
}

/// Puts an extension header of type `kind` behind an IPv6 header; its first byte is filled in.
pub(crate) fn with_extension(mut packet: Vec<u8>, kind: u8, header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[0] = packet[6];
    packet[6] = kind;
    packet.splice(40..40, header);
    let length = (packet.len() as u16 - 40).to_be_bytes();
    packet[4..6].copy_from_slice(&length);
    packet
}

/// A piece of a packet's payload, `begin` to `end` in bytes, as a fragment with identification `id`.
pub(crate) fn fragment(packet: &[u8], id: u16, begin: usize, end: usize, more: bool) -> Vec<u8> {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let mut piece = packet[..header].to_vec();
    piece.extend(&packet[header + begin..header + end]);
    let field = (begin as u16).to_be_bytes();
    if header == 20 {
        return with_ip(piece, |p| {
            let length = (p.len() as u16).to_be_bytes();
            p[2..4].copy_from_slice(&length);
            p[4..6].copy_from_slice(&id.to_be_bytes());
            let field = ((begin as u16 / 8) | if more { 0x2000 } else { 0 }).to_be_bytes();
            p[6..8].copy_from_slice(&field);
        });
    }
    let [high, low] = id.to_be_bytes();
    with_extension(piece, 44, &[0, 0, field[0], field[1] | u8::from(more), 0, 0, high, low])
}

/// A fragment's place in its datagram, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Piece {
    pub(crate) begin: usize,
    pub(crate) end: usize,
    pub(crate) last: bool,
}

/// The place of a packet that is a fragment, as [`fragment`] makes it.
pub(crate) fn piece(bytes: &[u8]) -> Option<Piece> {
    let (header, field) = match bytes.first()? >> 4 {
        4 => (20, u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]) << 3 | u16::from(bytes[6] >> 5 & 1)),
        _ if *bytes.get(6)? == 44 => (48, u16::from_be_bytes([*bytes.get(42)?, *bytes.get(43)?])),
        _ => return None,
    };
    let (begin, more) = (usize::from(field & !7), field & 1 != 0);
    (begin > 0 || more).then_some(Piece { begin, end: begin + bytes.len() - header, last: !more })
}
