//! Packets made by hand, good and bad.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::random::Random;
use pnet::datalink::MacAddr;
use pnet::packet::tcp::{MutableTcpPacket, TcpFlags};
use pnet::packet::udp::MutableUdpPacket;
use pnet::packet::{ipv4, tcp, udp};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an IEEE 802.1Q tag.
pub const VLAN: u16 = 0x8100;

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: MacAddr, from: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The payload of a frame of type [`VLAN`].
#[must_use]
pub fn tagged(vlan: u16, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut tagged = Vec::with_capacity(4 + payload.len());
    tagged.extend_from_slice(&vlan.to_be_bytes());
    tagged.extend_from_slice(&ether_type.to_be_bytes());
    tagged.extend_from_slice(payload);
    tagged
}

/// An IPv4 packet with a right header.
#[must_use]
pub fn ipv4_packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = ipv4::Ipv4Packet::new(&packet).map_or(0, |p| ipv4::checksum(&p));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram in IPv4, right in every respect.
#[must_use]
pub fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; 8 + payload.len()];
    if let Some(mut p) = MutableUdpPacket::new(&mut datagram) {
        p.set_source(from.port());
        p.set_destination(to.port());
        p.set_length(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX));
        p.set_payload(payload);
        let sum = udp::ipv4_checksum(&p.to_immutable(), from.ip(), to.ip());
        p.set_checksum(sum);
    }
    ipv4_packet(*from.ip(), *to.ip(), 17, &datagram)
}

/// A TCP segment in IPv4 without payload, right in every respect.
#[must_use]
pub fn tcp_packet(from: SocketAddrV4, to: SocketAddrV4, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    if let Some(mut p) = MutableTcpPacket::new(&mut segment) {
        p.set_source(from.port());
        p.set_destination(to.port());
        p.set_sequence(sequence);
        p.set_data_offset(5);
        p.set_flags(flags);
        p.set_window(64240);
        let sum = tcp::ipv4_checksum(&p.to_immutable(), from.ip(), to.ip());
        p.set_checksum(sum);
    }
    ipv4_packet(*from.ip(), *to.ip(), 6, &segment)
}

/// A SYN.
#[must_use]
pub fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    tcp_packet(from, to, sequence, TcpFlags::SYN)
}

/// Cuts an IPv4 or IPv6 packet without options and extension headers into fragments with `size` bytes of data each, a multiple
/// of 8; the first one first.
#[must_use]
pub fn fragments(packet: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    let (header, data) = packet.split_at(if v4 { 20 } else { 40 });
    let count = data.len().div_ceil(size);
    let fragment = |(number, piece): (usize, &[u8])| {
        let more = u16::from(number + 1 < count);
        // At most 64 KiB: offsets fit.
        let offset = u16::try_from(number * size).unwrap_or(u16::MAX);
        let mut out = header.to_vec();
        if v4 {
            let length = u16::try_from(20 + piece.len()).unwrap_or(u16::MAX);
            out[2..4].copy_from_slice(&length.to_be_bytes());
            #[allow(clippy::cast_possible_truncation, reason = "IPv4 has half as many bits")]
            out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            out[6..8].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
            out[10..12].fill(0);
            let sum = ipv4::Ipv4Packet::new(&out).map_or(0, |p| ipv4::checksum(&p));
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let length = u16::try_from(8 + piece.len()).unwrap_or(u16::MAX);
            out[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut out[6], 44);
            out.extend([next, 0]);
            out.extend((offset | more).to_be_bytes());
            out.extend(id.to_be_bytes());
        }
        out.extend(piece);
        out
    };
    data.chunks(size).enumerate().map(fragment).collect()
}

/// The EtherType and payload of a frame that is damaged, cut short, or nothing but noise.
#[must_use]
pub fn garbage(random: &mut Random, from: SocketAddrV4, to: SocketAddrV4) -> (u16, Vec<u8>) {
    let body = random.block(200);
    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    let mut packet = match random.below(3) {
        0 => udp_packet(from, to, &body),
        1 => tcp_packet(from, to, random.number() as u32, random.number() as u8),
        _ => ipv4_packet(*from.ip(), *to.ip(), random.number() as u8, &body),
    };
    match random.below(8) {
        // Cut short anywhere, also within the header.
        0 => packet.truncate(random.below(packet.len())),
        // Lengths that do not fit: header length, total length.
        1 => packet[0] = 0x40 | (random.number() & 0x0f) as u8,
        2 => packet[2..4].copy_from_slice(&(random.number() as u16).to_be_bytes()),
        // Bits flipped, mostly in the headers.
        3 => {
            for _ in 0..=random.below(8) {
                let at = random.below(packet.len().min(60));
                packet[at] ^= 1 << random.below(8);
            }
        }
        // Fragments of all kinds.
        4 => packet[6..8].copy_from_slice(&(random.number() as u16).to_be_bytes()),
        // A transport header that claims options it does not have.
        5 => {
            let last = packet.len() - 1;
            let at = (20 + 12).min(last);
            packet[at] = random.number() as u8;
        }
        // IPv6 with a random chain of headers.
        6 => {
            let mut noise = random.block(300);
            noise.resize(noise.len().max(40), 0);
            noise[0] = 0x60;
            let length = u16::try_from(noise.len() - 40).unwrap_or(0);
            noise[4..6].copy_from_slice(&length.to_be_bytes());
            noise[6] = [0, 43, 44, 50, 51, 60, 58, 6, 17, 135][random.below(10)];
            // Not a multicast or unspecified source.
            noise[8] = 0x20;
            noise[24..40].copy_from_slice(&[0xfd, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            return (IPV6, noise);
        }
        // Noise.
        _ => return (if random.below(2) == 0 { IPV4 } else { IPV6 }, random.block(1400)),
    }
    (IPV4, packet)
}

#[cfg(test)]
mod tests {
    use pnet::packet::Packet;

    use super::*;

    #[test]
    fn packets_have_valid_checksums() {
        let from = "10.10.0.1:1000".parse().unwrap();
        let to: SocketAddrV4 = "10.20.0.1:2000".parse().unwrap();
        let packet = udp_packet(from, to, b"hello");
        let ip = ipv4::Ipv4Packet::new(&packet).unwrap();
        assert_eq!(ipv4::checksum(&ip), ip.get_checksum());
        let datagram = udp::UdpPacket::new(ip.payload()).unwrap();
        assert_eq!(udp::ipv4_checksum(&datagram, from.ip(), to.ip()), datagram.get_checksum());
        assert_eq!(datagram.payload(), b"hello");
        let packet = syn(from, to, 7);
        let ip = ipv4::Ipv4Packet::new(&packet).unwrap();
        let segment = tcp::TcpPacket::new(ip.payload()).unwrap();
        assert_eq!(tcp::ipv4_checksum(&segment, from.ip(), to.ip()), segment.get_checksum());
        assert_eq!(segment.get_flags(), TcpFlags::SYN);
    }

    #[test]
    fn fragments_parse_with_offsets_and_lengths() {
        use palisade_engine::parse::{Checksum, Kind, build, parse};
        use palisade_engine::{Protocol, Tuple};
        let addresses = [["10.10.0.1", "10.20.0.1"], ["fd10::1", "fd20::1"]];
        for [src, dst] in addresses.map(|pair| pair.map(|ip| ip.parse::<std::net::IpAddr>().unwrap().into())) {
            let tuple = Tuple { src, dst, src_port: 1, dst_port: 2, protocol: Protocol::UDP };
            let parts = fragments(&build::udp(&tuple, &[7; 3000]).unwrap(), 0x1_0009, 1400);
            let id = if src.is_v4() { 9 } else { 0x1_0009 };
            let parsed: Vec<_> = parts.iter().map(|part| parse(part, Checksum::Complete).unwrap()).collect();
            assert_eq!((parsed[0].kind, parsed[0].fragment.unwrap().length), (Kind::Udp, 1400));
            for (packet, (offset, length, more)) in parsed[1..].iter().zip([(1400, 1400, true), (2800, 208, false)]) {
                let Kind::Fragment(part) = packet.kind else { panic!("{packet:?}") };
                assert_eq!((part.id, part.offset, part.length, part.more), (id, offset, length, more));
            }
            assert_eq!(parsed.len(), 3);
        }
    }

    #[test]
    fn garbage_varies_and_is_bounded() {
        let mut random = Random(1);
        let (from, to) = ("10.10.0.1:1".parse().unwrap(), "10.20.0.1:2".parse().unwrap());
        let all: Vec<(u16, Vec<u8>)> = (0..10_000).map(|_| garbage(&mut random, from, to)).collect();
        assert!(all.iter().all(|(_, packet)| packet.len() <= 1500));
        let mut lengths: Vec<usize> = all.iter().map(|(_, packet)| packet.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        assert!(lengths.len() > 500 && lengths[0] < 20, "{}", lengths.len());
    }
}
