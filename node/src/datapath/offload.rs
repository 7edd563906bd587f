//! What a frame's virtio header leaves to be done, checked before the packet is judged.
//!
//! The kernel completes a checksum at whatever place the header names, when the packet leaves. So a sender that names another
//! place than the checksum's would choose the bytes there after the verdict: a port, an address. Such a checksum is completed
//! here, and the packet is judged as it is then. What remains for the kernel is the checksum of the packet's own TCP, UDP or
//! SCTP header, which is no part of any verdict.

use palisade_engine::parse::{self, TransportHeader, complete_sctp, transport_header};
use palisade_engine::{Protocol, Reason};

use super::segment::{can_segment, fold, put, sum};
use super::vnet::{VnetHeader, checksum_offset};

/// The largest number of segments of one frame. GRO merges what one poll of the network card has brought (64 packets), a TCP
/// sender 64 KiB: with the smallest segment size that a path can have (RFC 879: 536 bytes) these are 122.
pub(crate) const MAX_SEGMENTS: u64 = 256;

/// A packet that is ready to be judged.
pub(crate) struct Prepared<'a> {
    pub(crate) vnet: VnetHeader,
    pub(crate) packet: &'a [u8],
    /// Whether its bytes were changed.
    pub(crate) completed: bool,
}

/// Prepares a packet. What has to be completed is copied to `room`, which is as large as the largest frame.
///
/// # Errors
/// [`Reason::Malformed`]: the header contradicts the packet, or cuts it into too many segments.
#[inline]
pub(crate) fn prepare<'a>(vnet: VnetHeader, packet: &'a [u8], room: &'a mut [u8]) -> Result<Prepared<'a>, Reason> {
    if !vnet.needs_checksum() && !vnet.is_gso() {
        let vnet = VnetHeader { gso_type: 0, ..vnet };
        return Ok(Prepared { vnet, packet, completed: false });
    }
    match transport_header(packet) {
        header if vnet.is_gso() => merged(vnet, packet, header),
        Some(TransportHeader { at, protocol, .. }) if vnet.completes(at, protocol) => {
            Ok(Prepared { vnet, packet, completed: false })
        }
        _ => complete(vnet, packet, room),
    }
}

/// A packet of several segments. The checksum of each is made when it is cut, by the kernel or by [`super::segment`].
fn merged(vnet: VnetHeader, packet: &[u8], header: Option<TransportHeader>) -> Result<Prepared<'_>, Reason> {
    let TransportHeader { at, protocol, v4 } = header.ok_or(Reason::Malformed)?;
    let own = vnet.merges(v4, protocol);
    let vnet = match (own, vnet.needs_checksum()) {
        (true, true) if vnet.completes(at, protocol) => vnet,
        // Merged by lists (`rx-gro-list`) or by the network card (LRO): its checksums were complete and are verified.
        (true, false) => vnet.verified(at),
        _ if can_segment(&vnet, packet) => vnet,
        _ => return Err(Reason::Malformed),
    };
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    if vnet.segments(length) > MAX_SEGMENTS {
        return Err(Reason::Malformed);
    }
    Ok(Prepared { vnet, packet, completed: false })
}

/// Completes a checksum that is not the packet's own, as the kernel would when the packet leaves.
fn complete<'a>(vnet: VnetHeader, packet: &[u8], room: &'a mut [u8]) -> Result<Prepared<'a>, Reason> {
    // Without the padding, which the kernel removes before.
    let packet = parse::length(packet).and_then(|length| packet.get(..length)).ok_or(Reason::Truncated)?;
    let room = room.get_mut(..packet.len()).ok_or(Reason::Truncated)?;
    room.copy_from_slice(packet);
    let start = usize::from(vnet.csum_start);
    let covered = room.get_mut(start..).filter(|_| vnet.csum_start != u16::MAX).ok_or(Reason::Malformed)?;
    let crc = checksum_offset(Protocol::SCTP) == Some(vnet.csum_offset) && is_sctp(packet, start);
    if crc {
        complete_sctp(covered);
    } else {
        let sum = match !fold(sum(covered)) {
            0 => u16::MAX,
            sum => sum,
        };
        put(covered, usize::from(vnet.csum_offset), sum).ok_or(Reason::Malformed)?;
    }
    Ok(Prepared { vnet: VnetHeader::default(), packet: room, completed: true })
}

/// Whether an IP header without options ends at `start` and says that SCTP follows: in a tunnel, or in a fragment.
fn is_sctp(packet: &[u8], start: usize) -> bool {
    let field = |header: usize, version: u8, at: usize| {
        start.checked_sub(header).is_some_and(|ip| {
            packet.get(ip).is_some_and(|b| b >> 4 == version) && packet.get(ip + at) == Some(&Protocol::SCTP.0)
        })
    };
    field(20, 4, 9) || field(40, 6, 6)
}

#[cfg(test)]
mod tests {
    use palisade_engine::parse::{Checksum, Tcp, build};
    use palisade_engine::{Ip, Tuple};

    use super::*;
    use crate::datapath::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};

    const V4: (Ip, Ip) = (Ip::V4([10, 1, 0, 2]), Ip::V4([10, 2, 0, 2]));
    const V6: (Ip, Ip) = (
        Ip::V6([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
        Ip::V6([0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    );

    fn tuple((src, dst): (Ip, Ip), protocol: Protocol) -> Tuple {
        Tuple { src, dst, src_port: 5000, dst_port: 80, protocol }
    }

    fn partial(csum_start: u16, csum_offset: u16) -> VnetHeader {
        VnetHeader { flags: 1, csum_start, csum_offset, ..VnetHeader::default() }
    }

    /// Prepares, and returns the header and bytes to be judged, and whether they were changed.
    fn prepared(vnet: VnetHeader, packet: &[u8]) -> Result<(VnetHeader, Vec<u8>, bool), Reason> {
        let mut room = vec![0; packet.len()];
        prepare(vnet, packet, &mut room).map(|p| (p.vnet, p.packet.to_vec(), p.completed))
    }

    fn tcp(ends: (Ip, Ip), payload: usize) -> Vec<u8> {
        let header =
            Tcp { seq: 1, ack: 1, flags: Tcp::ACK, window: 9, payload: 0, wscale: None, sack_permitted: false };
        build::tcp(&tuple(ends, Protocol::TCP), &header, &vec![7; payload]).unwrap()
    }

    /// An IPv6 packet with a destination options header in front of its transport header.
    fn with_options(mut packet: Vec<u8>) -> Vec<u8> {
        let next = std::mem::replace(&mut packet[6], 60);
        packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        let length = u16::try_from(packet.len() - 40).unwrap();
        put(&mut packet, 4, length).unwrap();
        packet
    }

    #[test]
    fn checksum_of_the_packets_own_header_is_left_to_the_kernel() {
        let udp = |ends| build::udp(&tuple(ends, Protocol::UDP), &[1; 50]).unwrap();
        let sctp = build::sctp(&tuple(V4, Protocol::SCTP), 1, &[1; 50]).unwrap();
        for (packet, at, offset) in [
            (tcp(V4, 50), 20, 16),
            (tcp(V6, 50), 40, 16),
            (with_options(tcp(V6, 50)), 48, 16),
            (udp(V4), 20, 6),
            (udp(V6), 40, 6),
            (with_options(udp(V6)), 48, 6),
            (sctp, 20, 8),
        ] {
            let vnet = partial(at, offset);
            assert_eq!(prepared(vnet, &packet), Ok((vnet, packet, false)));
        }
    }

    #[test]
    fn checksum_at_any_other_place_is_completed_before_the_packet_is_judged() {
        for (ends, transport) in [(V4, 20), (V6, 40)] {
            let mut packet = build::udp(&tuple(ends, Protocol::UDP), &[1; 50]).unwrap();
            packet.extend([9; 7]); // padding
            for start in 0..packet.len() {
                for offset in 0..packet.len() {
                    let vnet = partial(u16::try_from(start).unwrap(), u16::try_from(offset).unwrap());
                    let own = (start, offset) == (transport, 6);
                    let result = prepared(vnet, &packet);
                    // It ends with the packet, not with the padding.
                    if !own && start + offset + 2 > packet.len() - 7 {
                        assert_eq!(result, Err(Reason::Malformed), "{start}+{offset}");
                        continue;
                    }
                    let (after, bytes, completed) = result.unwrap();
                    assert_eq!(
                        (completed, after.checksum()),
                        if own { (false, Checksum::Partial) } else { (true, Checksum::Complete) }
                    );
                    if completed {
                        let mut expected = packet[..packet.len() - 7].to_vec();
                        let value = match !fold(sum(&expected[start..])) {
                            0 => u16::MAX,
                            value => value,
                        };
                        put(&mut expected, start + offset, value).unwrap();
                        assert_eq!(bytes, expected, "{start}+{offset}");
                    }
                }
            }
        }
        assert_eq!(prepared(partial(u16::MAX, 0), &tcp(V4, 9)), Err(Reason::Malformed));
    }

    #[test]
    fn checksum_of_a_fragment_is_completed() {
        let mut first = tcp(V4, 44);
        first[6] = 0x20;
        put(&mut first, 10, 0).unwrap();
        let header = !fold(sum(&first[..20]));
        put(&mut first, 10, header).unwrap();
        let (vnet, bytes, completed) = prepared(partial(20, 16), &first).unwrap();
        assert!(completed && bytes[36..38] != first[36..38] && vnet == VnetHeader::default());
        assert!(parse::parse(&bytes, Checksum::Complete).unwrap().fragment.is_some());
    }

    #[test]
    fn checksum_inside_a_tunnel_is_completed_and_the_outer_one_verified() {
        let mut inner = tcp(V4, 30);
        let good = build::packet(V4.0, V4.1, Protocol(4), &inner).unwrap();
        // As the sender's kernel leaves it: the sum of the pseudo-header.
        let pseudo = fold(sum(&inner[12..20]) + 6 + 50);
        put(&mut inner, 36, pseudo).unwrap();
        let partly = build::packet(V4.0, V4.1, Protocol(4), &inner).unwrap();
        let (vnet, bytes, _) = prepared(partial(40, 16), &partly).unwrap();
        assert_eq!((bytes, vnet.checksum()), (good, Checksum::Complete));
        let mut inner = build::sctp(&tuple(V4, Protocol::SCTP), 1, &[1; 50]).unwrap();
        let good = build::packet(V4.0, V4.1, Protocol(4), &inner).unwrap();
        inner[28..32].fill(0);
        let partly = build::packet(V4.0, V4.1, Protocol(4), &inner).unwrap();
        assert_eq!(prepared(partial(40, 8), &partly).unwrap().1, good);
    }

    #[test]
    fn merged_packet_is_judged_only_if_its_segments_are_its_own_or_a_tunnels() {
        let gso = |gso_type, vnet: VnetHeader| VnetHeader { gso_type, gso_size: 100, ..vnet };
        let packet = tcp(V4, 1000);
        let own = gso(GSO_TCPV4, partial(20, 16));
        assert_eq!(prepared(own, &packet), Ok((own, packet.clone(), false)));
        // Merged with complete checksums: of a list, or by the network card.
        for flags in [0, 2] {
            let (vnet, bytes, _) =
                prepared(gso(GSO_TCPV4, VnetHeader { flags, ..VnetHeader::default() }), &packet).unwrap();
            assert_eq!((vnet.checksum(), vnet.csum_start, bytes), (Checksum::Verified, 20, packet.clone()));
        }
        for bad in [
            gso(GSO_TCPV4, partial(20, 2)),
            gso(GSO_TCPV4, partial(16, 0)),
            gso(GSO_TCPV6, partial(20, 16)),
            gso(GSO_UDP_L4, partial(20, 6)),
            gso(3, partial(20, 16)),
            VnetHeader { gso_size: 1, ..own },
            VnetHeader { gso_size: 3, ..own },
        ] {
            assert_eq!(prepared(bad, &packet), Err(Reason::Malformed), "{bad:?}");
        }
        assert!(prepared(VnetHeader { gso_size: 4, ..own }, &packet).is_ok());
        // A UDP packet that claims to be cut as TCP: the kernel would write into its payload.
        let udp = build::udp(&tuple(V4, Protocol::UDP), &[1; 500]).unwrap();
        assert_eq!(prepared(gso(GSO_TCPV4, partial(20, 16)), &udp), Err(Reason::Malformed));
        assert!(prepared(gso(GSO_UDP_L4, partial(20, 6)), &udp).is_ok());
    }

    #[test]
    fn nothing_that_arrives_makes_it_panic() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u16::try_from(state >> 48).unwrap()
        };
        for packet in [tcp(V4, 90), tcp(V6, 90), with_options(tcp(V6, 90)), Vec::new(), vec![0x45; 19]] {
            for _ in 0..20_000 {
                let [flags, gso_type, ..] = random().to_be_bytes();
                let vnet = VnetHeader {
                    flags: flags & 3,
                    gso_type: gso_type & 7,
                    header_length: random() & 127,
                    gso_size: random() & 127,
                    csum_start: random() & 255,
                    csum_offset: random() & 255,
                };
                let mut packet = packet.clone();
                if let Some(byte) = packet.get_mut(usize::from(random() & 127)) {
                    *byte = flags;
                }
                let _ = prepared(vnet, &packet);
            }
        }
    }
}
