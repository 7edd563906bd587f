//! IPv4 options, IPv6 extension headers, fragments.

use super::*;

/// An IPv4 UDP packet with options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let plain = udp(v4(), b"x");
    let mut bytes = [&plain[..20], options, &plain[20..]].concat();
    bytes[0] += u8::try_from(options.len() / 4).unwrap();
    bytes[3] += u8::try_from(options.len()).unwrap();
    fixed(bytes)
}

#[test]
fn ipv4_options_are_classified() {
    use IpOption::*;
    let table: &[(&[u8], &[IpOption])] = &[
        (&[1, 1, 1, 1], &[]),
        (&[1, 0, 0, 0], &[]),
        (&[0; 4], &[]),
        (&[1; 40], &[]),
        (&[7, 7, 4, 0, 0, 0, 0, 1], &[RecordRoute]),
        (&[7, 3, 4, 1], &[RecordRoute]),
        (&[25, 8, 0, 0, 0, 0, 0, 0], &[QuickStart]),
        (&[68, 8, 5, 0, 0, 0, 0, 0], &[Timestamp]),
        (&[68, 12, 13, 0xf1, 10, 0, 0, 1, 0, 0, 0, 9], &[Timestamp]),
        (&[130, 3, 0x55, 0], &[Security]),
        (&[131, 7, 4, 192, 0, 2, 9, 0], &[LooseSourceRoute]),
        (&[133, 3, 1, 133, 3, 2, 1, 0], &[ExtendedSecurity]),
        (&[134, 10, 0, 0, 0, 3, 2, 4, 0, 1, 0, 0], &[Cipso]),
        (&[1, 137, 7, 8, 192, 0, 2, 9], &[StrictSourceRoute]),
        (&[148, 4, 0, 0], &[RouterAlert]),
        (&[148, 4, 0, 0, 1, 131, 3, 4, 0, 0, 0, 0], &[RouterAlert, LooseSourceRoute]),
    ];
    for (list, expected) in table {
        let packet = check(&with_options(list)).unwrap();
        assert_eq!((packet.kind, usize::from(packet.transport)), (Kind::Udp, 20 + list.len()));
        for option in IpOption::ALL {
            assert_eq!(packet.options.has(*option), expected.contains(option), "{option} in {list:?}");
        }
        assert_eq!(packet.options.is_empty(), expected.is_empty());
        assert!(IpOptions::from_iter(expected.iter().copied()).covers(packet.options), "{list:?}");
    }
    assert_eq!(check(&udp(v4(), b"x")).unwrap().options, IpOptions::NONE);
    // Stream ID, MTU probe, traceroute, selective directed broadcast (all obsolete), experiments, unassigned numbers.
    for number in [136, 11, 82, 149, 30, 222, 2, 255] {
        let packet = check(&with_options(&[number, 4, 0, 0])).unwrap();
        assert!(!packet.options.is_empty());
        assert!(!IpOptions::from_iter(IpOption::ALL.iter().copied()).covers(packet.options), "{number}");
    }
    assert!(!IpOptions::from_iter([Timestamp]).covers(IpOptions::from_iter([Timestamp, RecordRoute])));
    let malformed: &[(&str, &[u8])] = &[
        ("behind the end of the list", &[0, 1, 0, 0]),
        ("behind the end of the list", &[1, 1, 0, 131]),
        ("no length", &[1, 1, 1, 7]),
        ("length 0", &[1, 68, 0, 0]),
        ("length 1", &[200, 1, 0, 0]),
        ("longer than the header", &[148, 5, 0, 0]),
        ("longer than the header", &[200, 5, 0, 0]),
        ("half an address", &[7, 5, 4, 0, 0, 0, 0, 0]),
        ("a pointer into the header of the option", &[7, 7, 3, 0, 0, 0, 0, 1]),
        ("a pointer between addresses", &[131, 7, 5, 192, 0, 2, 9, 0]),
        ("no pointer", &[131, 2, 0, 0]),
        ("a timestamp's pointer", &[68, 8, 4, 0, 0, 0, 0, 0]),
        ("a timestamp's flags", &[68, 8, 5, 2, 0, 0, 0, 0]),
        ("a timestamp's length", &[68, 6, 5, 0, 0, 0, 0, 0]),
        ("router alert of another length", &[148, 3, 0, 0]),
        ("quick-start of another length", &[25, 4, 0, 0]),
        ("security without a level", &[130, 2, 0, 0]),
        ("a label without a domain", &[134, 4, 0, 0]),
        ("two source routes", &[131, 3, 4, 131, 3, 4, 0, 0]),
        ("two timestamps", &[68, 8, 5, 0, 0, 0, 0, 0, 68, 8, 5, 0, 0, 0, 0, 0]),
    ];
    for (name, list) in malformed {
        assert_eq!(check(&with_options(list)), Err(Reason::Malformed), "{name}: {list:?}");
    }
    // The options of later fragments count as well: they may differ from the first fragment's.
    let fragment = check(&fixed(patched(with_options(&[148, 4, 0, 0]), 6, &[0, 3]))).unwrap();
    assert!(matches!(fragment.kind, Kind::Fragment(_)) && fragment.options.has(RouterAlert));
}

/// An IPv6 packet whose body begins with extension headers.
fn with_extensions(first: u8, extensions: &[&[u8]], body: &[u8]) -> Vec<u8> {
    let all = [&extensions.concat(), body].concat();
    build::packet(v6().0, v6().1, Protocol(first), &all).unwrap()
}

#[test]
fn ipv6_extension_headers_are_read() {
    let udp = &udp(v6(), b"x")[40..];
    let pad = [17, 0, 1, 4, 0, 0, 0, 0];
    let then = |next: u8| patched(pad.to_vec(), 0, &[next]);
    type Case<'a> = (&'a str, u8, Vec<&'a [u8]>, Result<Kind, Reason>);
    let (to_60, to_44, to_0) = (then(60), then(44), then(0));
    let table: Vec<Case<'_>> = vec![
        ("padding", 0, vec![&pad], Ok(Kind::Udp)),
        ("only Pad1", 60, vec![&[17, 0, 0, 0, 0, 0, 0, 0]], Ok(Kind::Udp)),
        ("hop-by-hop, destination", 0, vec![&to_60, &pad], Ok(Kind::Udp)),
        ("encapsulation limit", 60, vec![&[17, 0, 4, 1, 4, 1, 1, 0]], Ok(Kind::Udp)),
        ("... not hop-by-hop", 0, vec![&[17, 0, 4, 1, 4, 1, 1, 0]], Err(Reason::IpOption)),
        ("router alert", 0, vec![&[17, 0, 5, 2, 0, 0, 1, 0]], Err(Reason::IpOption)),
        ("unknown hop-by-hop option", 0, vec![&[17, 0, 0x1e, 4, 0, 0, 0, 0]], Err(Reason::IpOption)),
        ("home address", 60, vec![&[17, 0, 0xc9, 4, 0, 0, 0, 0]], Err(Reason::IpOption)),
        ("jumbo option", 0, vec![&[17, 0, 0xc2, 4, 0, 1, 0, 0]], Err(Reason::Malformed)),
        ("option beyond its header", 0, vec![&[17, 0, 1, 5, 0, 0, 0, 0]], Err(Reason::Malformed)),
        ("option without length", 0, vec![&[17, 0, 1, 3, 0, 0, 0, 1]], Err(Reason::Malformed)),
        ("hop-by-hop twice", 0, vec![&to_0, &pad], Err(Reason::Malformed)),
        ("hop-by-hop not first", 60, vec![&to_0, &pad], Err(Reason::Malformed)),
        ("routing type 0", 43, vec![&[17, 0, 0, 0, 0, 0, 0, 0]], Err(Reason::IpOption)),
        ("routing type 4, done", 43, vec![&[17, 0, 4, 0, 0, 0, 0, 0]], Ok(Kind::Udp)),
        ("routing type 4, one left", 43, vec![&[17, 0, 4, 1, 0, 0, 0, 0]], Err(Reason::IpOption)),
        ("longer than the packet", 60, vec![&[17, 255, 1, 4, 0, 0, 0, 0]], Err(Reason::Truncated)),
        ("atomic fragment", 44, vec![&[17, 0, 0, 0, 0, 0, 0, 9]], Ok(Kind::Udp)),
        ("eight headers", 60, vec![&to_60, &to_60, &to_60, &to_60, &to_60, &to_60, &to_60, &pad], Ok(Kind::Udp)),
        (
            "nine headers",
            60,
            vec![&to_60, &to_60, &to_60, &to_60, &to_60, &to_60, &to_60, &to_60, &pad],
            Err(Reason::IpOption),
        ),
        ("two fragment headers", 60, vec![&to_44, &[44, 0, 0, 1, 0, 0, 0, 9], &[17, 0, 0, 1, 0, 0, 0, 9]], {
            Err(Reason::Malformed)
        }),
    ];
    for (name, first, extensions, expected) in table {
        // UDP's checksum does not cover extension headers. The length of a fragment must be a multiple of 8.
        let body = if name.contains("fragment headers") { &udp[..8] } else { udp };
        assert_eq!(check(&with_extensions(first, &extensions, body)).map(|p| p.kind), expected, "{name}");
    }
    // Many bytes in few headers.
    let long = [vec![60, 63, 1, 255], vec![0; 255], vec![1, 251], vec![0; 251]].concat();
    assert_eq!(long.len(), 512);
    let last = [vec![17, 0, 1, 4], vec![0; 4]].concat();
    assert_eq!(check(&with_extensions(60, &[&long, &last], udp)).map(|p| p.kind), Ok(Kind::Udp));
    assert_eq!(check(&with_extensions(60, &[&long, &to_60, &last], udp)), Err(Reason::IpOption));
}

#[test]
fn fragments_are_read() {
    // IPv4: the flags and offset are at 6.
    let part = |bytes: Vec<u8>, units: u16, more: bool| {
        fixed(patched(patched(bytes, 4, &[0x12, 0x34]), 6, &(units | u16::from(more) << 13).to_be_bytes()))
    };
    let datagram = || udp(v4(), &[0; 16]);
    // The first fragment has the checksum and the length of the whole datagram.
    let first = patched(part(datagram(), 0, true), 24, &[4, 0, 0x12, 0x34]);
    let packet = check(&first).unwrap();
    assert_eq!((packet.kind, packet.tuple), (Kind::Udp, tuple(v4(), Protocol::UDP, 5000, 53)));

    let packet = check(&part(datagram(), 3, true)).unwrap();
    assert_eq!(packet.kind, Kind::Fragment(Fragment { id: 0x1234, offset: 24, length: 24, more: true }));
    assert_eq!(packet.tuple, tuple(v4(), Protocol::UDP, 0, 0));
    let last = check(&part(udp(v4(), b"odd"), 3, false)).unwrap();
    assert_eq!(last.kind, Kind::Fragment(Fragment { id: 0x1234, offset: 24, length: 11, more: false }));

    let short =
        |bytes: Vec<u8>, length: u8| part(patched(bytes[..usize::from(length)].to_vec(), 3, &[length]), 0, true);
    let table = [
        ("not a multiple of 8", part(udp(v4(), b"odd"), 3, true)),
        ("empty", fixed(patched(part(datagram()[..20].to_vec(), 3, true), 3, &[20]))),
        ("beyond 64 KiB", part(datagram(), 8190, false)),
        ("TCP flags in the second", part(tcp(v4(), &ack(4), b"1234"), 1, true)),
        ("tiny first", short(tcp(v4(), &ack(4), b"1234"), 28)),
        ("TCP options cut", short(tcp(v4(), &syn(), b""), 44)),
    ];
    for (name, bytes) in table {
        assert_eq!(check(&bytes), Err(Reason::Fragment), "{name}");
    }

    // IPv6: behind its own header.
    let body = &udp(v6(), &[0; 16])[40..];
    let packet = check(&with_extensions(44, &[&[17, 0, 0, 0x19, 1, 2, 3, 4]], body)).unwrap();
    assert_eq!(packet.kind, Kind::Fragment(Fragment { id: 0x0102_0304, offset: 24, length: 24, more: true }));
    let packet = check(&with_extensions(44, &[&[17, 0, 0, 1, 1, 2, 3, 4]], body)).unwrap();
    assert_eq!((packet.kind, packet.transport), (Kind::Udp, 48));
    // The first fragment must have all headers (RFC 7112).
    let chain = with_extensions(44, &[&[60, 0, 0, 1, 1, 2, 3, 4], &[17, 1, 1, 4, 0, 0, 0, 0]], b"");
    assert_eq!(check(&chain), Err(Reason::Fragment));
    let error = [&[3, 3, 0, 0, 0, 0, 0, 0], &tcp((v4().1, v4().0), &ack(0), b"")[..]].concat();
    let error = build::packet(v4().0, v4().1, Protocol::ICMP, &error[..48]).unwrap();
    assert_eq!(check(&part(error, 0, true)), Err(Reason::Fragment));
}

/// A chain of all kinds of extension headers, none of them empty.
fn all_extensions(fragment: [u8; 8]) -> (Vec<u8>, usize) {
    let hop_by_hop = [60, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0];
    let destination = [43, 0, 4, 1, 4, 1, 1, 0];
    let routing = [44, 2, 4, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    let last = [17, 0, 1, 4, 0, 0, 0, 0];
    let behind = 40 + hop_by_hop.len() + destination.len() + routing.len() + fragment.len();
    let udp = &udp(v6(), &[7; 8])[40..];
    (with_extensions(0, &[&hop_by_hop, &destination, &routing, &fragment, &last], udp), behind)
}

/// `bytes` cut short, as a packet of that length.
fn cut(bytes: &[u8], length: usize) -> Vec<u8> {
    let payload = u16::try_from(length - 40).unwrap();
    patched(bytes[..length].to_vec(), 4, &payload.to_be_bytes())
}

#[test]
fn extension_header_chains_that_are_truncated_are_errors() {
    let (atomic, _) = all_extensions([60, 0, 0, 0, 1, 2, 3, 4]);
    let packet = check(&atomic).unwrap();
    assert_eq!(
        (packet.kind, usize::from(packet.transport), packet.fragment),
        (Kind::Udp, 40 + 16 + 8 + 24 + 8 + 8, None)
    );
    let (first, behind) = all_extensions([60, 0, 0, 1, 1, 2, 3, 4]);
    let packet = check(&first).unwrap();
    // Behind the fragment header is the datagram: destination options and UDP.
    let part = Fragment { id: 0x0102_0304, offset: 0, length: 8 + 16, more: true };
    assert_eq!((packet.kind, packet.fragment), (Kind::Udp, Some(part)));
    for length in 41..first.len() {
        assert_eq!(check(&first[..length]), Err(Reason::Truncated), "{length} of the bytes");
        // RFC 7112: the first fragment must have the whole chain and the transport header.
        let reason = match length {
            _ if length < behind => Reason::Truncated,
            _ if length >= behind + 8 + 8 && (length - behind).is_multiple_of(8) => continue,
            _ => Reason::Fragment,
        };
        assert_eq!(check(&cut(&first, length)), Err(reason), "{length}");
        // Without a fragment header the packet is truncated.
        assert!(check(&cut(&atomic, length)).is_err(), "{length}");
    }
}

#[test]
fn hop_by_hop_options_that_are_unknown_never_pass() {
    let udp = &udp(v6(), b"x")[40..];
    // The two highest bits are for nodes that do not know the option: skip it, discard the packet, or discard it with an ICMP error
    // (RFC 8200 section 4.2). Packets with options to be skipped are dropped, too.
    for kind in 0..=255u8 {
        let extension = [17, 0, kind, 4, 0, 0, 0, 0];
        let expected = match kind {
            // Pad1, then one of kind 4 with length 0 …
            0 => Err(Reason::IpOption),
            1 => Ok(Kind::Udp),
            0xc2 => Err(Reason::Malformed),
            _ => Err(Reason::IpOption),
        };
        assert_eq!(check(&with_extensions(0, &[&extension], udp)).map(|p| p.kind), expected, "{kind:#04x}");
    }
}

#[test]
fn routing_headers_pass_only_without_segments_left() {
    let udp = &udp(v6(), b"x")[40..];
    for kind in 0..=255u8 {
        for left in [0, 1, 255] {
            let passes = kind != 0 && left == 0;
            let packet = check(&with_extensions(43, &[&[17, 0, kind, left, 0, 0, 0, 0]], udp)).map(|p| p.kind);
            assert_eq!(packet, if passes { Ok(Kind::Udp) } else { Err(Reason::IpOption) }, "{kind}, {left} left");
        }
    }
}

#[test]
fn fragment_header_is_followed_by_the_transport_header() {
    let udp = &udp(v6(), &[0; 16])[40..];
    let first = |next: u8| [next, 0, 0, 1, 0, 0, 0, 9];
    let pad = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let kind =
        |first_header: u8, extensions: &[&[u8]]| check(&with_extensions(first_header, extensions, udp)).map(|p| p.kind);
    assert_eq!(kind(60, &[&pad(44), &first(60), &pad(17)]), Ok(Kind::Udp), "destination options before and behind");
    assert_eq!(kind(43, &[&[44, 0, 4, 0, 0, 0, 0, 0], &first(17)]), Ok(Kind::Udp), "routing before");
    assert_eq!(kind(44, &[&first(0), &pad(17)]), Err(Reason::Malformed), "hop-by-hop is for every router on the way");
    assert_eq!(kind(44, &[&first(44), &first(17)]), Err(Reason::Malformed), "a fragment of a fragment");
    assert_eq!(kind(44, &[&first(60), &[17, 0, 0xc9, 4, 0, 0, 0, 0]]), Err(Reason::IpOption), "home address");
    // In later fragments, data follows, whatever it looks like. Their next header is what the sender wrote.
    for next in [0, 6, 17, 43, 44, 60] {
        let packet = check(&with_extensions(44, &[&[next, 0, 0, 0x19, 0, 0, 0, 9]], udp)).unwrap();
        let part = Fragment { id: 9, offset: 24, length: 24, more: true };
        assert_eq!((packet.kind, packet.fragment, packet.tuple.protocol), (Kind::Fragment(part), None, Protocol(next)));
    }
}

#[test]
fn extension_header_chain_ends_with_protocols_without_ports() {
    // ESP, AH, no next header, mobility, HIP: tracked by addresses.
    for protocol in [50, 51, 59, 135, 139] {
        let packet = check(&with_extensions(60, &[&[protocol, 0, 1, 4, 0, 0, 0, 0]], b"12345678")).unwrap();
        assert_eq!((packet.kind, packet.tuple), (Kind::Other, tuple(v6(), Protocol(protocol), 0, 0)));
    }
    // An error that quotes a packet with extension headers yields its ports, although that packet would not pass.
    let about = with_extensions(0, &[&[60, 0, 5, 2, 0, 0, 1, 0], &[17, 0, 1, 4, 0, 0, 0, 0]], &udp(v6(), b"x")[40..]);
    let error = build::icmp(ip("2001:db8:9::9"), v6().0, 3, 0, 0, &about).unwrap();
    let expected = Embedded { tuple: tuple(v6(), Protocol::UDP, 5000, 53), seq: None };
    assert_eq!(check(&error).map(|p| p.kind), Ok(Kind::IcmpError(expected)));
}
