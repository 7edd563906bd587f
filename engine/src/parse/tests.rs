#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::build::{self, Echo};
use super::rejection::Unreachable;
use super::*;
use crate::addr::Ip;
use crate::tuple::Protocol;

mod ip_layer;

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn v4() -> (Ip, Ip) {
    (ip("192.0.2.1"), ip("198.51.100.2"))
}

fn v6() -> (Ip, Ip) {
    (ip("2001:db8::1"), ip("2001:db8:1::2"))
}

fn tuple((src, dst): (Ip, Ip), protocol: Protocol, src_port: u16, dst_port: u16) -> Tuple {
    Tuple { src, dst, src_port, dst_port, protocol }
}

fn syn() -> Tcp {
    Tcp { seq: 7, ack: 0, flags: Tcp::SYN, window: 1000, payload: 0, wscale: Some(7), sack_permitted: true }
}

fn ack(payload: u32) -> Tcp {
    let flags = Tcp::ACK | Tcp::PSH;
    Tcp { seq: u32::MAX, ack: 9, flags, window: 501, payload, wscale: None, sack_permitted: false }
}

fn tcp(ends: (Ip, Ip), header: &Tcp, payload: &[u8]) -> Vec<u8> {
    build::tcp(&tuple(ends, Protocol::TCP, 40000, 443), header, payload).unwrap()
}

fn udp(ends: (Ip, Ip), payload: &[u8]) -> Vec<u8> {
    build::udp(&tuple(ends, Protocol::UDP, 5000, 53), payload).unwrap()
}

fn sctp(ends: (Ip, Ip), chunks: &[u8]) -> Vec<u8> {
    build::sctp(&tuple(ends, Protocol::SCTP, 36412, 3868), 0x0102_0304, chunks).unwrap()
}

fn check(bytes: &[u8]) -> Result<Packet, Reason> {
    parse(bytes, Checksum::Complete)
}

/// `bytes` with the IPv4 header checksum corrected after a change.
fn fixed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = usize::from(bytes[0] & 15) * 4;
    bytes[10..12].fill(0);
    let sum = checksum::Sum::default().bytes(&bytes[..length]).checksum();
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// `bytes` with some overwritten.
fn patched(mut bytes: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// A correct packet of each kind and family.
fn samples() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (ends, kinds, ip) in [(v4(), [(3, 13), (11, 0)], 20), (v6(), [(1, 4), (2, 0)], 40)] {
        let (src, dst) = ends;
        all.push(tcp(ends, &syn(), b""));
        all.push(tcp(ends, &ack(5), b"hello"));
        all.push(udp(ends, b"question"));
        all.push(build::echo(src, dst, Echo::Request, 77, 1, b"abc").unwrap());
        all.push(build::echo(src, dst, Echo::Reply, 77, 1, b"abc").unwrap());
        for (kind, code) in kinds {
            let about = tcp((dst, src), &ack(0), b"");
            all.push(build::icmp(src, dst, kind, code, 0, &about[..ip + 8]).unwrap());
        }
        all.push(sctp(ends, b"chunk"));
        all.push(build::packet(src, dst, Protocol(50), b"opaque").unwrap());
    }
    all
}

#[test]
fn parser_reads_what_the_builder_writes() {
    for ends in [v4(), v6()] {
        let (src, dst) = ends;
        let header = if src.is_v4() { 20 } else { 40 };
        let packet = check(&tcp(ends, &syn(), b"")).unwrap();
        assert_eq!(packet.tuple, tuple(ends, Protocol::TCP, 40000, 443));
        assert_eq!((packet.length, packet.transport), (header + 28, header as u16));
        assert_eq!(packet.kind, Kind::Tcp(syn()));

        assert_eq!(check(&tcp(ends, &ack(5), b"hello")).unwrap().kind, Kind::Tcp(ack(5)));

        let packet = check(&udp(ends, b"question")).unwrap();
        assert_eq!((packet.tuple, packet.kind), (tuple(ends, Protocol::UDP, 5000, 53), Kind::Udp));

        let icmp = if src.is_v4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        let packet = check(&build::echo(src, dst, Echo::Request, 77, 1, b"abc").unwrap()).unwrap();
        assert_eq!((packet.tuple, packet.kind), (tuple(ends, icmp, 77, 0), Kind::EchoRequest));
        let reply = check(&build::echo(dst, src, Echo::Reply, 77, 1, b"abc").unwrap()).unwrap();
        assert_eq!((reply.tuple, reply.kind), (packet.tuple.inverse(), Kind::EchoReply));

        let packet = check(&sctp(ends, b"chunk")).unwrap();
        assert_eq!((packet.tuple, packet.kind), (tuple(ends, Protocol::SCTP, 36412, 3868), Kind::Sctp));

        let packet = check(&build::packet(src, dst, Protocol(50), b"opaque").unwrap()).unwrap();
        assert_eq!((packet.tuple, packet.kind), (tuple(ends, Protocol(50), 0, 0), Kind::Other));
    }
    assert_eq!(build::udp(&tuple((v4().0, v6().1), Protocol::UDP, 1, 2), b""), None);
    assert_eq!(build::udp(&tuple(v4(), Protocol::UDP, 1, 2), &[0; 65508]), None);
}

/// Segmentation offload: up to 64 KiB in one packet, with a partial transport checksum.
#[test]
fn parser_reads_the_longest_packets() {
    for (ends, most) in [(v4(), 65535 - 40), (v6(), 65535 - 20)] {
        let at = if ends.0.is_v4() { 20 } else { 40 };
        let bytes = tcp(ends, &ack(0), &vec![1; most]);
        assert_eq!(check(&bytes).unwrap().kind, Kind::Tcp(ack(most as u32)));
        let partial = parse(&patched(bytes, at + 16, &[1, 2]), Checksum::Partial).unwrap();
        assert_eq!((partial.kind, partial.length as usize), (Kind::Tcp(ack(most as u32)), at + 20 + most));
        assert_eq!(build::tcp(&tuple(ends, Protocol::TCP, 1, 2), &ack(0), &vec![1; most + 1]), None);
    }
}

#[test]
fn icmp_errors_yield_the_quoted_packet() {
    for (ends, ip, (kind, code)) in [(v4(), 20, (11, 0)), (v6(), 40, (2, 0))] {
        let (host, server) = ends;
        let router = if ip == 20 { super::tests::ip("203.0.113.9") } else { super::tests::ip("2001:db8:9::9") };
        let error = |about: &[u8]| check(&build::icmp(router, host, kind, code, 1280, about).unwrap()).map(|p| p.kind);
        let icmp = if ip == 20 { Protocol::ICMP } else { Protocol::ICMPV6 };

        let segment = tcp(ends, &ack(5), b"hello");
        let tcp_tuple = tuple(ends, Protocol::TCP, 40000, 443);
        let expected = Ok(Kind::IcmpError(Embedded { tuple: tcp_tuple, seq: Some(u32::MAX) }));
        assert_eq!(error(&segment), expected);
        // 8 bytes suffice, and the checksums of the quoted packet do not count.
        assert_eq!(error(&patched(segment.clone(), ip + 4 + 12, &[0xff])[..ip + 8]), expected);
        assert_eq!(error(&segment[..ip + 7]), Err(Reason::Truncated));
        assert_eq!(error(&segment[..ip - 1]), Err(Reason::Truncated));
        assert_eq!(error(b""), Err(Reason::Truncated));

        let udp_tuple = tuple(ends, Protocol::UDP, 5000, 53);
        assert_eq!(error(&udp(ends, b"x")), Ok(Kind::IcmpError(Embedded { tuple: udp_tuple, seq: None })));

        let sctp_tuple = tuple(ends, Protocol::SCTP, 36412, 3868);
        let expected = Ok(Kind::IcmpError(Embedded { tuple: sctp_tuple, seq: None }));
        assert_eq!(error(&sctp(ends, b"x")[..ip + 8]), expected);
        assert_eq!(error(&sctp(ends, b"x")[..ip + 7]), Err(Reason::Truncated));

        for (echo, ports) in [(Echo::Request, (77, 0)), (Echo::Reply, (0, 77))] {
            let expected = Embedded { tuple: tuple(ends, icmp, ports.0, ports.1), seq: None };
            assert_eq!(error(&build::echo(host, server, echo, 77, 1, b"").unwrap()), Ok(Kind::IcmpError(expected)));
        }
        // An error that quotes an error, another sender's packet, or a packet of the other family.
        let about = build::icmp(host, server, kind, code, 0, &segment).unwrap();
        assert_eq!(error(&about), Err(Reason::IcmpType));
        assert_eq!(error(&tcp((server, host), &ack(0), b"")), Err(Reason::IcmpUnrelated));
        let other = if ip == 20 { v6() } else { v4() };
        assert_eq!(error(&tcp(other, &ack(0), b"")), Err(Reason::Malformed));
    }
}

#[test]
fn truncated_packets_are_errors() {
    for sample in samples() {
        check(&sample).unwrap();
        for length in 0..sample.len() {
            assert_eq!(check(&sample[..length]), Err(Reason::Truncated), "{length} of {sample:02x?}");
        }
    }
}

#[test]
fn ethernet_padding_is_ignored() {
    for mut sample in samples() {
        let packet = check(&sample);
        sample.extend([0xaa; 18]);
        assert_eq!(check(&sample), packet);
    }
}

#[test]
fn checksum_notices_every_flipped_bit_of_an_ipv4_packet() {
    for sample in samples() {
        let packet = check(&sample).unwrap();
        if packet.kind == Kind::Other || !packet.tuple.src.is_v4() {
            continue;
        }
        // Except those of the version: the packet may then be a valid IPv6 packet of an unknown protocol.
        for bit in 8..sample.len() * 8 {
            let mut flipped = sample.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&flipped).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn checksum_is_verified_where_the_device_has_not() {
    for ends in [v4(), v6()] {
        let at = if ends.0.is_v4() { 20 } else { 40 };
        for (bytes, field) in [(tcp(ends, &ack(1), b"x"), 16), (udp(ends, b"x"), 6)] {
            let wrong = patched(bytes, at + field, &[0x12, 0x34]);
            assert_eq!(parse(&wrong, Checksum::Complete), Err(Reason::BadChecksum));
            parse(&wrong, Checksum::Verified).unwrap();
            parse(&wrong, Checksum::Partial).unwrap();
        }
        let echo = patched(build::echo(ends.0, ends.1, Echo::Request, 1, 1, b"").unwrap(), at + 2, &[0x12, 0x34]);
        assert_eq!(parse(&echo, Checksum::Complete), Err(Reason::BadChecksum));
        assert_eq!(parse(&echo, Checksum::Verified), Err(Reason::BadChecksum));
        parse(&echo, Checksum::Partial).unwrap();

        let none = patched(udp(ends, b"x"), at + 6, &[0, 0]);
        let expected = if at == 20 { Ok(Kind::Udp) } else { Err(Reason::BadChecksum) };
        assert_eq!(parse(&none, Checksum::Complete).map(|p| p.kind), expected);
        assert_eq!(parse(&none, Checksum::Verified).map(|p| p.kind), expected);
        assert_eq!(parse(&none, Checksum::Partial).map(|p| p.kind), Ok(Kind::Udp));
    }
    // The IPv4 header's checksum is always verified.
    let wrong = patched(udp(v4(), b"x"), 8, &[63]);
    for checksum in [Checksum::Complete, Checksum::Verified, Checksum::Partial] {
        assert_eq!(parse(&wrong, checksum), Err(Reason::BadChecksum));
    }
}

#[test]
fn ip_headers_that_are_malformed_are_errors() {
    let udp4 = || udp(v4(), b"x");
    let udp6 = || udp(v6(), b"x");
    let table: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("nothing", vec![], Reason::Truncated),
        ("version 5", patched(udp4(), 0, &[0x55]), Reason::Malformed),
        ("version 0", vec![0; 64], Reason::Malformed),
        ("header of 16 bytes", patched(udp4(), 0, &[0x44]), Reason::Malformed),
        ("header beyond the packet", patched(udp4(), 0, &[0x4f]), Reason::Malformed),
        ("total length 0", patched(udp4(), 2, &[0, 0]), Reason::Malformed),
        ("total length 19", patched(udp4(), 2, &[0, 19]), Reason::Malformed),
        ("total length beyond the bytes", patched(udp4(), 2, &[0xff, 0xff]), Reason::Truncated),
        ("no room for UDP", fixed(patched(udp4(), 2, &[0, 27])), Reason::Truncated),
        ("no room for TCP", fixed(patched(tcp(v4(), &syn(), b""), 2, &[0, 39])), Reason::Truncated),
        ("reserved bit", fixed(patched(udp4(), 6, &[0x80])), Reason::Malformed),
        ("ICMPv6 in IPv4", fixed(patched(udp4(), 9, &[58])), Reason::Malformed),
        ("ICMP in IPv6", patched(udp6(), 6, &[1]), Reason::Malformed),
        ("IPv6 payload beyond the bytes", patched(udp6(), 4, &[0xff, 0xff]), Reason::Truncated),
        ("IPv6 without payload", patched(udp6(), 4, &[0, 0]), Reason::Truncated),
        ("jumbogram", patched(udp6(), 4, &[0, 0, 0]), Reason::Malformed),
        ("half an IPv6 header", udp6()[..39].to_vec(), Reason::Truncated),
    ];
    for (name, bytes, reason) in table {
        assert_eq!(check(&bytes), Err(reason), "{name}");
    }
}

#[test]
fn ip_addresses_that_never_cross_a_router_are_errors() {
    let martians = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.1.1",
        "224.0.0.5",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:192.0.2.1",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "ff0e::1",
    ];
    for text in martians {
        let bad = ip(text);
        let good = if bad.is_v4() { v4().0 } else { v6().0 };
        assert_eq!(check(&udp((bad, good), b"x")), Err(Reason::Martian), "from {text}");
        assert_eq!(check(&udp((good, bad), b"x")), Err(Reason::Martian), "to {text}");
    }
    for text in
        ["1.0.0.0", "126.255.255.255", "169.253.1.1", "223.255.255.255", "10.0.0.1", "fec0::1", "fc00::1", "::2"]
    {
        let fine = ip(text);
        let good = if fine.is_v4() { v4().0 } else { v6().0 };
        check(&udp((fine, good), b"x")).unwrap();
        assert_eq!(check(&udp((fine, fine), b"x")), Err(Reason::Martian), "{text} to itself");
    }
}

/// Routers whose links have only link-local addresses report from there.
#[test]
fn icmp_errors_of_link_local_routers_are_no_martians() {
    let (router, host) = (ip("169.254.0.1"), v4().0);
    let quoted = udp(v4(), b"quoted");
    let icmp = |src, dst, kind| build::icmp(src, dst, kind, 0, 0, &quoted).unwrap();
    for kind in [3, 11, 12] {
        let packet = check(&icmp(router, host, kind)).unwrap();
        assert!(matches!(packet.kind, Kind::IcmpError(_)));
        assert_eq!(check(&icmp(host, router, kind)), Err(Reason::Martian), "nobody answers to there");
    }
    for kind in [0, 5, 8] {
        assert_eq!(check(&icmp(router, host, kind)), Err(Reason::Martian), "type {kind}");
    }
    assert_eq!(check(&icmp(ip("127.0.0.1"), host, 3)), Err(Reason::Martian));
}

#[test]
fn unreachable_answers_every_packet_that_may_be_answered() {
    let mut out = [0; rejection::MAX_LENGTH];
    for (ends, codes) in [(v4(), [0, 1, 13]), (v6(), [0, 3, 1])] {
        for bytes in [tcp(ends, &syn(), b""), udp(ends, b"x"), sctp(ends, &[0; 4])] {
            let packet = check(&bytes).unwrap();
            for (why, code) in [Unreachable::Network, Unreachable::Host, Unreachable::Prohibited].into_iter().zip(codes)
            {
                let length = rejection::unreachable(&bytes, &packet, why, None, &mut out).unwrap();
                let error = check(&out[..length]).unwrap();
                let quoted = if let Kind::IcmpError(quoted) = error.kind { Some(quoted.tuple) } else { None };
                assert_eq!((quoted, error.tuple.dst), (Some(packet.tuple), ends.0));
                assert_eq!(out[usize::from(error.transport) + 1], code, "{why:?}");
                let sent = out;
                assert_eq!(rejection::unreachable(&sent[..length], &error, why, None, &mut out), None);
            }
        }
    }
}

#[test]
fn tcp_flags_are_checked() {
    let legal: &[u8] = &[0x02, 0x12, 0x22, 0x04, 0x14, 0x11, 0x31, 0x10, 0x30];
    for ends in [v4(), v6()] {
        for flags in 0..=255u8 {
            let header = Tcp { flags, ..ack(0) };
            // PSH, ECE and CWR do not count.
            let expected = if legal.contains(&(flags & 0x37)) { Ok(Kind::Tcp(header)) } else { Err(Reason::TcpFlags) };
            assert_eq!(check(&tcp(ends, &header, b"")).map(|p| p.kind), expected, "{flags:#04x}");
        }
    }
}

/// A SYN with other options, or with other flags.
fn with_tcp_options(flags: u8, options: &[u8]) -> Result<(Option<u8>, bool), Reason> {
    let header = Tcp { flags, wscale: None, sack_permitted: false, ..syn() };
    let mut body = tcp(v4(), &header, b"")[20..].to_vec();
    body[12] = u8::try_from((20 + options.len()) / 4 * 16).unwrap();
    body.extend(options);
    match check(&build::packet(v4().0, v4().1, Protocol::TCP, &body).unwrap())?.kind {
        Kind::Tcp(tcp) => Ok((tcp.wscale, tcp.sack_permitted)),
        kind => unreachable!("{kind:?}"),
    }
}

#[test]
fn tcp_options_are_read() {
    let linux = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    assert_eq!(with_tcp_options(Tcp::SYN, &linux), Ok((Some(7), true)));
    assert_eq!(with_tcp_options(Tcp::SYN, &[1, 3, 3, 200]), Ok((Some(14), false)));
    assert_eq!(with_tcp_options(Tcp::ACK, &linux), Ok((None, false)));
    assert_eq!(with_tcp_options(Tcp::SYN, &[0, 3, 3, 7]), Ok((None, false)));
    // Unknown options, SACK blocks (RFC 2018), fast open (RFC 7413).
    assert_eq!(with_tcp_options(Tcp::SYN, &[254, 2, 34, 2]), Ok((None, false)));
    assert_eq!(with_tcp_options(Tcp::ACK, &[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2]), Ok((None, false)));
    let bad: &[&[u8]] = &[
        &[3, 2, 7, 0],
        &[1, 1, 4, 3],
        &[4, 3, 0, 0],
        &[1, 1, 1, 3],
        &[254, 0, 1, 1],
        &[254, 1, 1, 1],
        &[254, 5, 0, 0],
        &[2, 3, 0, 0],
        &[8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for options in bad {
        assert_eq!(with_tcp_options(Tcp::SYN, options), Err(Reason::Malformed), "{options:?}");
        assert_eq!(with_tcp_options(Tcp::ACK, options), Err(Reason::Malformed), "{options:?}");
    }
}

#[test]
fn transport_headers_that_are_malformed_are_errors() {
    let tcp4 = || tcp(v4(), &ack(4), b"1234");
    let table: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("TCP header of 16 bytes", patched(tcp4(), 32, &[0x40]), Reason::Malformed),
        ("TCP header of 60 bytes", patched(tcp4(), 32, &[0xf0]), Reason::Truncated),
        ("TCP from port 0", patched(tcp4(), 20, &[0, 0]), Reason::Malformed),
        ("TCP to port 0", patched(tcp4(), 22, &[0, 0]), Reason::Malformed),
        ("UDP to port 0", patched(udp(v4(), b"x"), 22, &[0, 0]), Reason::Malformed),
        ("UDP length 7", patched(udp(v4(), b"x"), 24, &[0, 7]), Reason::Malformed),
        ("UDP length 0", patched(udp(v6(), b"x"), 44, &[0, 0]), Reason::Malformed),
        ("UDP length beyond the packet", patched(udp(v4(), b"x"), 24, &[0, 10]), Reason::Truncated),
    ];
    for (name, bytes, reason) in table {
        assert_eq!(check(&bytes), Err(reason), "{name}");
    }
    // The checksum does not cover what follows a datagram in its packet (RFC 9868).
    let inner = udp(v4(), b"x");
    let longer = [&inner[20..], b"options"].concat();
    let bytes = build::packet(v4().0, v4().1, Protocol(200), &longer).unwrap();
    check(&fixed(patched(bytes, 9, &[17]))).unwrap();
}

#[test]
fn sctp_has_ports_and_its_own_checksum() {
    // Computed by another program, bit by bit from the polynomial 0x1edc6f41 of RFC 9260 appendix A.
    const KNOWN_SUM: [u8; 4] = [0x08, 0xff, 0xeb, 0x94];
    let chunk: Vec<u8> = (0..20).collect();
    for ends in [v4(), v6()] {
        let at = if ends.0.is_v4() { 20 } else { 40 };
        let good = sctp(ends, &chunk);
        assert_eq!(good[at + 8..at + 12], KNOWN_SUM);
        for (what, bytes) in
            [("sum", patched(good.clone(), at + 9, &[1])), ("tag", patched(good.clone(), at + 4, &[9]))]
        {
            assert_eq!(parse(&bytes, Checksum::Complete), Err(Reason::BadChecksum), "{what}");
            parse(&bytes, Checksum::Verified).unwrap();
            parse(&bytes, Checksum::Partial).unwrap();
        }
        for field in [0, 2] {
            assert_eq!(check(&patched(good.clone(), at + field, &[0, 0])), Err(Reason::Malformed), "port 0");
        }
        let short = build::packet(ends.0, ends.1, Protocol::SCTP, &[1; 11]).unwrap();
        assert_eq!(check(&short), Err(Reason::Truncated));
        // A partial checksum is completed, as the kernel would do it.
        let mut partial = patched(good.clone(), at + 8, &[1, 2, 3, 4]);
        complete_sctp(&mut partial[at..]);
        assert_eq!(partial, good);
    }
    complete_sctp(&mut [0; 11]);
    // The checksum of a fragment cannot be verified. A first fragment has the whole header.
    let part = |bytes: Vec<u8>| fixed(patched(bytes, 6, &[0x20, 0]));
    assert_eq!(check(&part(patched(sctp(v4(), &[0; 12]), 28, &[9; 4]))).map(|p| p.kind), Ok(Kind::Sctp));
    let tiny = build::packet(v4().0, v4().1, Protocol::SCTP, &[1; 8]).unwrap();
    assert_eq!(check(&part(tiny)), Err(Reason::Fragment));
}

#[test]
fn icmp_types_are_read() {
    for ends in [v4(), v6()] {
        let v4 = ends.0.is_v4();
        let about = udp((ends.1, ends.0), b"x");
        for kind in 0..=255u8 {
            for code in [0, 1, 16, 255] {
                let result = check(&build::icmp(ends.0, ends.1, kind, code, 0, &about).unwrap()).map(|p| p.kind);
                let passes = matches!(
                    (v4, kind, code),
                    (true, 0 | 3 | 8 | 11 | 12, 0)
                        | (true, 3 | 11 | 12, 1)
                        | (false, 1..=4 | 128 | 129, 0)
                        | (false, 1 | 3 | 4, 1)
                );
                match result {
                    Ok(_) => assert!(passes, "{kind}/{code}"),
                    Err(reason) => assert_eq!((passes, reason), (false, Reason::IcmpType), "{kind}/{code}"),
                }
            }
        }
    }
}

#[test]
fn ethernet_frames_are_read() {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let plain = Frame {
        destination: [2, 0, 0, 0, 0, 1],
        source: [2, 0, 0, 0, 0, 2],
        tags: [None, None],
        ethertype: Frame::IPV4,
        offset: 14,
    };
    assert_eq!(frame(&bytes), Ok(plain));
    assert!(!plain.is_group());
    assert!(Frame { destination: [0xff; 6], ..plain }.is_group());
    assert_eq!(frame(&bytes[..13]), Err(Reason::Truncated));
    bytes[12..].copy_from_slice(&[0x88, 0xa8]);
    bytes.extend([0x20, 5, 0x81, 0, 0, 7, 0x86, 0xdd]);
    let tagged = frame(&bytes).unwrap();
    assert_eq!((tagged.tags, tagged.offset), ([Some(0x2005), Some(7)], 22));
    assert_eq!((tagged.vlan(), tagged.ethertype), (Some(5), Frame::IPV6));
    for length in 14..22 {
        assert_eq!(frame(&bytes[..length]), Err(Reason::Truncated));
    }
    // A third tag; a length instead of a type.
    bytes[20..].copy_from_slice(&[0x81, 0]);
    assert_eq!(frame(&bytes), Err(Reason::Malformed));
    bytes[12..14].copy_from_slice(&[0, 60]);
    assert_eq!(frame(&bytes), Err(Reason::Malformed));
}

#[test]
fn reject_of_a_segment_is_the_rst_of_a_closed_port() {
    let mut out = [0; rejection::MAX_LENGTH];
    for ends in [v4(), v6()] {
        let mut reply = |header: &Tcp, payload: &[u8]| {
            let bytes = tcp(ends, header, payload);
            let length = rejection::build(&bytes, &check(&bytes).unwrap(), None, &mut out)?;
            let packet = check(&out[..length]).unwrap();
            assert_eq!(
                (packet.tuple, packet.length as usize),
                (tuple(ends, Protocol::TCP, 40000, 443).inverse(), length)
            );
            match packet.kind {
                Kind::Tcp(tcp) => Some((tcp.seq, tcp.ack, tcp.flags)),
                kind => unreachable!("{kind:?}"),
            }
        };
        // A SYN counts one.
        assert_eq!(reply(&syn(), b""), Some((0, 8, Tcp::RST | Tcp::ACK)));
        assert_eq!(reply(&syn(), b"early"), Some((0, 13, Tcp::RST | Tcp::ACK)));
        assert_eq!(reply(&ack(5), b"hello"), Some((9, 0, Tcp::RST)));
        assert_eq!(reply(&Tcp { flags: Tcp::RST, ..ack(0) }, b""), None);
        assert_eq!(reply(&Tcp { flags: Tcp::RST | Tcp::ACK, ..ack(0) }, b""), None);
    }
}

#[test]
fn reject_of_other_packets_is_an_icmp_error() {
    let mut out = [0; rejection::MAX_LENGTH];
    for (ends, router, most) in [(v4(), ip("203.0.113.9"), 576), (v6(), ip("2001:db8:9::9"), 1280)] {
        let (src, dst) = ends;
        let icmp = if src.is_v4() { Protocol::ICMP } else { Protocol::ICMPV6 };
        for payload in [0, 1, 7, 500, 1400] {
            let bytes = udp(ends, &vec![7; payload]);
            let packet = check(&bytes).unwrap();
            for (from, expected) in [(Some(router), router), (None, dst)] {
                let length = rejection::build(&bytes, &packet, from, &mut out).unwrap();
                let headers = if src.is_v4() { 28 } else { 48 };
                assert_eq!(length, (headers + bytes.len()).min(most));
                let error = check(&out[..length]).unwrap();
                assert_eq!(error.tuple, tuple((expected, src), icmp, 0, 0));
                assert_eq!(error.kind, Kind::IcmpError(Embedded { tuple: packet.tuple, seq: None }));
                let at = usize::from(error.transport);
                assert_eq!(out[at..at + 2], if src.is_v4() { [3, 13] } else { [1, 1] });
                // No reply to the reply, and none without room for it.
                assert_eq!(rejection::build(&out[..length], &error, None, &mut [0; rejection::MAX_LENGTH]), None);
                assert_eq!(rejection::build(&bytes, &packet, from, &mut out[..length - 1]), None);
            }
        }
    }
    let fragment = fixed(patched(udp(v4(), &[0; 16]), 6, &[0, 3]));
    assert_eq!(rejection::build(&fragment, &check(&fragment).unwrap(), None, &mut out), None);
}

/// The invariants of every packet that passes.
fn sound(bytes: &[u8], checksum: Checksum) -> Result<(), TestCaseError> {
    let Ok(packet) = parse(bytes, checksum) else { return Ok(()) };
    prop_assert!(packet.length as usize <= bytes.len());
    prop_assert!(u32::from(packet.transport) <= packet.length);
    prop_assert_eq!(packet.tuple.src.is_v4(), packet.tuple.dst.is_v4());
    // Parsing only its own bytes gives the same.
    prop_assert_eq!(parse(&bytes[..packet.length as usize], checksum), Ok(packet));
    let mut out = [0; rejection::MAX_LENGTH];
    if let Some(length) = rejection::build(bytes, &packet, None, &mut out) {
        let answer = parse(&out[..length], Checksum::Complete);
        prop_assert!(answer.is_ok(), "{:?}", answer);
    }
    Ok(())
}

fn checksums() -> impl Strategy<Value = Checksum> {
    prop_oneof![Just(Checksum::Complete), Just(Checksum::Verified), Just(Checksum::Partial)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// No bytes make the parser panic.
    #[test]
    fn parser_survives_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..160), checksum in checksums()) {
        sound(&bytes, checksum)?;
        let _ = frame(&bytes);
    }

    /// Random bytes behind a version and with a valid IPv4 header checksum, so that more of them is read.
    #[test]
    fn parser_survives_random_bytes_behind_a_header(
        mut bytes in prop::collection::vec(any::<u8>(), 60..160),
        checksum in checksums(),
        options in 5..=15u8,
        v4: bool,
        protocol in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 50, 58, 60, 132]),
    ) {
        let length = bytes.len();
        if v4 {
            bytes[0] = 0x40 | options;
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = protocol;
            bytes[20..usize::from(options) * 4].fill(1);
            bytes = fixed(bytes);
        } else {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(length as u16 - 40).to_be_bytes());
            bytes[6] = protocol;
        }
        sound(&bytes, checksum)?;
    }

    /// Correct packets with a few bytes changed.
    #[test]
    fn parser_survives_damaged_packets(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        checksum in checksums(),
    ) {
        let all = samples();
        let mut bytes = which.get(&all).clone();
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        sound(&bytes, checksum)?;
        if bytes[0] == 0x45 {
            sound(&fixed(bytes), checksum)?;
        }
    }
}
