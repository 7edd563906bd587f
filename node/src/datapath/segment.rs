//! Segmentation in user space, for packets that the kernel gives out in one piece but does not take back: those whose
//! segments lie inside a tunnel (VXLAN, Geneve, GRE, IP in IP), merged by GRO on their way in.
//!
//! One tunnel around TCP or UDP is cut; anything else is refused. The segments have complete checksums.

use palisade_engine::parse::{TransportHeader, transport_header};
use palisade_engine::{Protocol, Reason};

use super::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader};

const IPIP: u8 = 4;
const TCP: u8 = Protocol::TCP.0;
const UDP: u8 = Protocol::UDP.0;
const IPV6: u8 = 41;
const GRE: u8 = 47;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Where the headers of a merged tunnel packet lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The protocol around the inner packet, and where its header begins.
    tunnel: u8,
    outer_transport: usize,
    /// The inner IP header, the inner transport header and its protocol, the payload.
    inner: usize,
    transport: usize,
    protocol: u8,
    payload: usize,
    /// Payload bytes a segment.
    size: usize,
}

fn layout(vnet: &VnetHeader, packet: &[u8]) -> Option<Layout> {
    let TransportHeader { at: outer_transport, protocol: Protocol(tunnel), .. } = transport_header(packet)?;
    let transport = usize::from(vnet.csum_start);
    let (protocol, csum_offset) = match vnet.segmentation() {
        GSO_TCPV4 | GSO_TCPV6 => (TCP, 16),
        GSO_UDP_L4 => (UDP, 6),
        _ => return None,
    };
    // GRO merges nothing with IP options, so the inner header is the shortest.
    let v4 =
        transport.checked_sub(20).filter(|&at| packet.get(at) == Some(&0x45) && packet.get(at + 9) == Some(&protocol));
    let v6 = transport
        .checked_sub(40)
        .filter(|&at| packet.get(at).is_some_and(|b| b >> 4 == 6) && packet.get(at + 6) == Some(&protocol));
    let inner = match vnet.segmentation() {
        GSO_TCPV4 => v4?,
        GSO_TCPV6 => v6?,
        _ => v4.or(v6)?,
    };
    let payload = match protocol {
        TCP => transport + usize::from(packet.get(transport + 12)? >> 4) * 4,
        _ => transport + 8,
    };
    let fits = match tunnel {
        IPIP | IPV6 => inner == outer_transport,
        // The inner packet's sums must not reach into the header that was judged.
        UDP => inner >= outer_transport + 8,
        GRE => inner >= outer_transport + 4,
        _ => false,
    };
    let size = usize::from(vnet.gso_size);
    let sound = fits
        && usize::from(vnet.csum_offset) == csum_offset
        && size != 0
        && payload >= transport + 8
        && payload < packet.len();
    sound.then_some(Layout { tunnel, outer_transport, inner, transport, protocol, payload, size })
}

/// Whether [`segment`] can cut the packet.
pub(crate) fn can_segment(vnet: &VnetHeader, packet: &[u8]) -> bool {
    layout(vnet, packet).is_some()
}

/// Cuts `packet` and hands each segment on, in order.
///
/// # Errors
/// [`Reason::InjectFailed`]: it is not one tunnel around TCP or UDP.
pub(crate) fn segment(vnet: &VnetHeader, packet: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), Reason> {
    let at = layout(vnet, packet).ok_or(Reason::InjectFailed)?;
    let (headers, payload) = packet.split_at_checked(at.payload).ok_or(Reason::InjectFailed)?;
    let mut out = Vec::with_capacity(at.payload + at.size);
    let count = payload.len().div_ceil(at.size);
    for (number, chunk) in payload.chunks(at.size).enumerate() {
        out.clear();
        out.extend_from_slice(headers);
        out.extend_from_slice(chunk);
        finish(&mut out, &at, number, number + 1 == count).ok_or(Reason::InjectFailed)?;
        each(&out);
    }
    Ok(())
}

/// Makes the copied headers those of the segment with this number. Inner first: the outer sums cover the inner bytes.
fn finish(out: &mut [u8], at: &Layout, number: usize, last: bool) -> Option<()> {
    if at.protocol == TCP {
        let header = out.get_mut(at.transport..at.payload)?;
        let done = u32::try_from(number.checked_mul(at.size)?).ok()?;
        let seq = u32::from_be_bytes(*header.get(4..)?.first_chunk()?).wrapping_add(done);
        header.get_mut(4..8)?.copy_from_slice(&seq.to_be_bytes());
        let flags = header.get_mut(13)?;
        if !last {
            *flags &= !FIN_PSH;
        }
        if number != 0 {
            *flags &= !CWR;
        }
    } else {
        let length = out.len() - at.transport;
        put(out, at.transport + 4, u16::try_from(length).ok()?)?;
    }
    finish_ip(out, at.inner, number)?;
    let offset = if at.protocol == TCP { 16 } else { 6 };
    checksum(out, at.inner, at.transport, at.protocol, offset)?;
    finish_ip(out, 0, number)?;
    match at.tunnel {
        UDP => {
            let length = out.len() - at.outer_transport;
            put(out, at.outer_transport + 4, u16::try_from(length).ok()?)?;
            // A tunnel may do without the sum (RFC 768; for IPv6 RFC 6935).
            if out.get(at.outer_transport + 6..at.outer_transport + 8)? != [0, 0] {
                checksum(out, 0, at.outer_transport, UDP, 6)?;
            }
        }
        // RFC 2784: the first bit says that there is a sum, over header and payload.
        GRE if out.get(at.outer_transport)? & 0x80 != 0 => {
            put(out, at.outer_transport + 4, 0)?;
            let sum = !fold(sum(out.get(at.outer_transport..)?));
            put(out, at.outer_transport + 4, sum)?;
        }
        _ => {}
    }
    Some(())
}

pub(super) fn put(out: &mut [u8], at: usize, value: u16) -> Option<()> {
    out.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// Length, identification and header sum of the IP header at `at`.
fn finish_ip(out: &mut [u8], at: usize, number: usize) -> Option<()> {
    let length = out.len() - at;
    if out.get(at)? >> 4 == 6 {
        return put(out, at + 4, u16::try_from(length.checked_sub(40)?).ok()?);
    }
    put(out, at + 2, u16::try_from(length).ok()?)?;
    let id = u16::from_be_bytes(*out.get(at + 4..)?.first_chunk()?);
    put(out, at + 4, id.wrapping_add(u16::try_from(number).ok()?))?;
    put(out, at + 10, 0)?;
    let header = usize::from(out.get(at)? & 15) * 4;
    let sum = !fold(sum(out.get(at..at + header)?));
    put(out, at + 10, sum)
}

/// The sum over the pseudo-header of the IP header at `ip` and the transport header at `transport`.
fn pseudo_header(out: &[u8], ip: usize, transport: usize, protocol: u8) -> Option<u64> {
    let addresses = if out.get(ip)? >> 4 == 4 { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
    let length = out.len().checked_sub(transport)?;
    Some(sum(out.get(addresses)?) + u64::from(protocol) + u64::try_from(length).ok()?)
}

/// Leaves the checksum of a merged packet to the kernel, as for one of its own: the field has the pseudo-header's sum.
pub(crate) fn leave_checksum(out: &mut [u8], transport: usize, protocol: Protocol, offset: usize) -> Option<()> {
    let pseudo = pseudo_header(out, 0, transport, protocol.0)?;
    put(out, transport + offset, fold(pseudo))
}

/// The transport checksum with the pseudo-header of the IP header at `ip` (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn checksum(out: &mut [u8], ip: usize, transport: usize, protocol: u8, offset: usize) -> Option<()> {
    put(out, transport + offset, 0)?;
    let pseudo = pseudo_header(out, ip, transport, protocol)?;
    let body = out.get(transport..)?;
    let sum = match !fold(pseudo + sum(body)) {
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    put(out, transport + offset, sum)
}

pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |b| u64::from(*b) << 8);
    pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>() + last
}

pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & u64::from(u16::MAX)) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use palisade_engine::parse::{self, Checksum, Kind, Tcp, build};
    use palisade_engine::{Ip, Protocol, Tuple};

    use super::*;

    fn inner(payload: usize) -> Vec<u8> {
        let tuple = Tuple {
            src: Ip::V4([10, 0, 0, 1]),
            dst: Ip::V4([10, 0, 0, 2]),
            src_port: 1000,
            dst_port: 2000,
            protocol: Protocol::TCP,
        };
        let header = Tcp {
            seq: u32::MAX - 50,
            ack: 7,
            flags: Tcp::ACK | Tcp::PSH | Tcp::FIN,
            window: 100,
            payload: 0,
            wscale: None,
            sack_permitted: false,
        };
        let data: Vec<u8> = (0..payload).map(|i| u8::try_from(i % 253).unwrap()).collect();
        build::tcp(&tuple, &header, &data).unwrap()
    }

    /// The inner packets of the segments, their outer packets being valid.
    fn cut(outer: &[u8], middle: usize) -> Vec<Vec<u8>> {
        let transport = 20 + middle + 20;
        let vnet = VnetHeader {
            flags: 1,
            gso_type: GSO_TCPV4,
            header_length: 0,
            gso_size: 100,
            csum_start: u16::try_from(transport).unwrap(),
            csum_offset: 16,
        };
        assert!(!vnet.completes(20, Protocol(outer[9])) && can_segment(&vnet, outer));
        let mut out = Vec::new();
        segment(&vnet, outer, &mut |segment| {
            let parsed = parse::parse(segment, Checksum::Complete).expect("a valid outer packet");
            assert_eq!(parsed.length as usize, segment.len());
            out.push(segment[20 + middle..].to_vec());
        })
        .unwrap();
        out
    }

    fn check(segments: &[Vec<u8>], payload: usize) {
        assert_eq!(segments.len(), payload.div_ceil(100));
        let mut data = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let packet = parse::parse(segment, Checksum::Complete).expect("a valid inner packet");
            let Kind::Tcp(tcp) = packet.kind else { panic!("not TCP") };
            assert_eq!(tcp.seq, (u32::MAX - 50).wrapping_add(u32::try_from(number * 100).unwrap()));
            assert_eq!(tcp.has(Tcp::FIN | Tcp::PSH), number + 1 == segments.len());
            data.extend_from_slice(&segment[40..]);
        }
        assert_eq!(data, inner(payload)[40..]);
    }

    const ENDS: (Ip, Ip) = (Ip::V4([192, 0, 2, 1]), Ip::V4([192, 0, 2, 2]));

    #[test]
    fn segment_cuts_ip_in_ip() {
        let outer = build::packet(ENDS.0, ENDS.1, Protocol(IPIP), &inner(950)).unwrap();
        check(&cut(&outer, 0), 950);
    }

    #[test]
    fn segment_cuts_vxlan_with_the_right_udp_checksum() {
        let mut body = vec![0; 8 + 14];
        body.extend(inner(300));
        let tuple = Tuple { src: ENDS.0, dst: ENDS.1, src_port: 5000, dst_port: 4789, protocol: Protocol::UDP };
        let outer = build::udp(&tuple, &body).unwrap();
        check(&cut(&outer, 8 + 8 + 14), 300);
    }

    #[test]
    fn segment_cuts_gre() {
        let mut body = vec![0x80, 0, 8, 0, 1, 1, 0, 0];
        body.extend(inner(201));
        let outer = build::packet(ENDS.0, ENDS.1, Protocol(GRE), &body).unwrap();
        let segments = cut(&outer, 8);
        check(&segments, 201);
    }

    #[test]
    fn segment_writes_nothing_that_was_judged() {
        let outer = build::packet(ENDS.0, ENDS.1, Protocol(IPIP), &inner(950)).unwrap();
        let vnet = VnetHeader {
            flags: 1,
            gso_type: GSO_TCPV4,
            gso_size: 100,
            csum_start: 40,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        assert!(can_segment(&vnet, &outer));
        // More fragments follow: each piece would be the same one.
        assert!(!can_segment(&vnet, &changed(outer, 6, 0x20)));
        // An inner header that begins inside of the UDP header that was judged.
        let mut body = vec![0; 4];
        body.extend(inner(300));
        let outer = build::packet(ENDS.0, ENDS.1, Protocol(GRE), &body).unwrap();
        let vnet = VnetHeader { csum_start: 44, ..vnet };
        assert!(can_segment(&vnet, &outer) && !can_segment(&vnet, &changed(outer, 9, UDP)));
    }

    /// The packet with another byte in its IPv4 header.
    fn changed(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        packet[at] = byte;
        put(&mut packet, 10, 0).unwrap();
        let sum = !fold(sum(&packet[..20]));
        put(&mut packet, 10, sum).unwrap();
        packet
    }

    #[test]
    fn segment_refuses_what_is_no_tunnel() {
        let vnet = VnetHeader { flags: 1, gso_type: GSO_TCPV4, gso_size: 10, csum_start: 20, ..VnetHeader::default() };
        assert!(segment(&vnet, &inner(100), &mut |_| ()).is_err());
        let mut state = 1u64;
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56).to_le_bytes()[0]
                })
                .collect();
            for csum_start in 0..100 {
                for gso_type in [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 9] {
                    let vnet = VnetHeader { gso_type, csum_start, csum_offset: 16, ..vnet };
                    let _ = segment(&vnet, &bytes, &mut |_| ());
                }
            }
        }
    }
}
