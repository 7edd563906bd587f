//! IPv4 and IPv6 themselves: fragments, options, extension headers, addresses.

use palisade_engine::{Protocol, Tuple};

use super::{Conn, Entry};
use crate::packet::{SYN, Side, fragment, udp, with_extension, with_ip, with_options};
use crate::play::Play;

pub(super) const ALL: &[Entry] = &[
    ("fragments in order", |p| fragments(p, &[(0, 400), (400, 800), (800, 1008)])),
    ("fragments, the last two in reverse", |p| fragments(p, &[(0, 400), (800, 1008), (400, 800)])),
    ("fragments, the first comes last", |p| fragments(p, &[(400, 800), (800, 1008), (0, 400)])),
    ("fragments, one of them twice", |p| fragments(p, &[(0, 400), (400, 800), (400, 800), (800, 1008)])),
    ("fragments, one is missing", |p| fragments(p, &[(0, 400), (800, 1008)])),
    ("fragments that overlap", |p| fragments(p, &[(0, 400), (392, 800), (800, 1008), (400, 800)])),
    ("fragments, the first is tiny", |p| fragments(p, &[(0, 8), (8, 800), (800, 1008)])),
    ("fragments of a SYN, its flags in the second", tiny_syn),
    ("an atomic fragment", atomic),
    ("a fragment beyond the longest packet", beyond),
    ("IPv4 options", ipv4_options),
    ("the reserved bit", reserved_bit),
    ("a wrong header checksum", header_checksum),
    ("extension headers", extensions),
    ("too many extension headers", many_extensions),
    ("to oneself", land),
    ("a spoofed source", spoofed),
    ("without a flow label, and with one", flow_label),
];

fn datagram(play: &Play<'_>) -> Vec<u8> {
    udp(&play.tuple(Protocol::UDP, 5000, 53), &[b'x'; 1000])
}

/// A datagram of 1008 bytes in pieces, and then the answer to it.
fn fragments(play: &mut Play<'_>, pieces: &[(usize, usize)]) {
    let whole = datagram(play);
    let pieces: Vec<_> = pieces.iter().map(|&(b, e)| fragment(&whole, 4711, b, e, e < 1008)).collect();
    play.datagram(Side::Client, &pieces);
}

fn tiny_syn(play: &mut Play<'_>) {
    let c = Conn::new(play);
    let syn = c.segment(Side::Client, SYN, -1, 0, 100).packet(&c.tuple);
    let body = syn.len() - if play.v4() { 20 } else { 40 };
    play.datagram(Side::Client, &[fragment(&syn, 5, 0, 8, true), fragment(&syn, 5, 8, body, false)]);
}

fn atomic(play: &mut Play<'_>) {
    let whole = datagram(play);
    play.datagram(Side::Client, &[fragment(&whole, 9, 0, 1008, false)]);
}

fn beyond(play: &mut Play<'_>) {
    let whole = datagram(play);
    let mut last = fragment(&whole, 11, 0, 400, false);
    let field = if play.v4() { 6 } else { 42 };
    let offset = if play.v4() { 0x1fff_u16 } else { 0xfff8 };
    last[field..field + 2].copy_from_slice(&offset.to_be_bytes());
    let last = with_ip(last, |_| {});
    play.datagram(Side::Client, &[fragment(&whole, 11, 0, 400, true), last]);
}

fn ipv4_options(play: &mut Play<'_>) {
    if !play.v4() {
        return;
    }
    for (port, options) in [
        // Padding only, and what follows the end of the list.
        &[1, 1, 1, 0][..],
        &[0, 1, 2, 3],
        // Record route, timestamp, loose and strict source routing, router alert, stream identifier, one unknown.
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[131, 7, 4, 10, 2, 0, 9, 0],
        &[137, 7, 4, 10, 2, 0, 9, 0],
        &[148, 4, 0, 0],
        &[136, 4, 0, 1],
        &[222, 4, 0, 0],
        // Lengths that do not fit.
        &[7, 40, 4, 0],
        &[7, 1, 4, 0],
    ]
    .into_iter()
    .enumerate()
    {
        let packet = udp(&play.tuple(Protocol::UDP, 6000 + port as u16, 53), b"question");
        play.give(Side::Client, &with_options(packet, options));
    }
}

fn reserved_bit(play: &mut Play<'_>) {
    if play.v4() {
        let packet = with_ip(datagram(play), |p| p[6] |= 0x80);
        play.give(Side::Client, &packet);
    }
}

fn header_checksum(play: &mut Play<'_>) {
    if play.v4() {
        let mut packet = datagram(play);
        packet[10] ^= 1;
        play.give(Side::Client, &packet);
    }
}

fn extensions(play: &mut Play<'_>) {
    if play.v4() {
        return;
    }
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let with = |play: &Play<'_>, port: u16, chain: &[(u8, &[u8])]| {
        let packet = udp(&play.tuple(Protocol::UDP, port, 53), b"question");
        chain.iter().rev().fold(packet, |packet, (kind, header)| with_extension(packet, *kind, header))
    };
    let pad: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    let chains: [&[(u8, &[u8])]; 13] = [
        &[(HOP_BY_HOP, pad)],
        &[(DESTINATION, pad)],
        &[(HOP_BY_HOP, pad), (DESTINATION, pad)],
        &[(DESTINATION, &[0, 0, 4, 1, 4, 1, 1, 0])],
        // Router alert; an unknown option that may be skipped, and one that may not; home address.
        &[(HOP_BY_HOP, &[0, 0, 5, 2, 0, 0, 1, 0])],
        &[(HOP_BY_HOP, &[0, 0, 0x1e, 4, 0, 0, 0, 0])],
        &[(HOP_BY_HOP, &[0, 0, 0x5e, 4, 0, 0, 0, 0])],
        &[(DESTINATION, &[0, 0, 0x1e, 4, 0, 0, 0, 0])],
        // Hop-by-hop options that do not come first.
        &[(DESTINATION, pad), (HOP_BY_HOP, pad)],
        // Routing headers: type 0, type 2 with one left, type 4 with none left.
        &[(ROUTING, &[0, 2, 0, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
        &[(ROUTING, &[0, 2, 2, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
        &[(ROUTING, &[0, 0, 4, 0, 0, 0, 0, 0])],
        // A length that does not fit.
        &[(DESTINATION, &[0, 200, 1, 4, 0, 0, 0, 0])],
    ];
    for (port, chain) in chains.into_iter().enumerate() {
        let packet = with(play, 6000 + port as u16, chain);
        play.give(Side::Client, &packet);
    }
}

fn many_extensions(play: &mut Play<'_>) {
    if play.v4() {
        return;
    }
    let pad: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    for count in [8, 9, 20] {
        let packet = udp(&play.tuple(Protocol::UDP, 6000 + count, 53), b"question");
        let packet = (0..count).fold(packet, |packet, _| with_extension(packet, 60, pad));
        play.give(Side::Client, &packet);
    }
}

fn land(play: &mut Play<'_>) {
    let t = play.tuple(Protocol::UDP, 53, 53);
    play.give(Side::Client, &udp(&Tuple { src: t.dst, ..t }, b"land"));
}

fn spoofed(play: &mut Play<'_>) {
    let t = play.tuple(Protocol::UDP, 5000, 53);
    let src = crate::packet::host(Side::Server, 8, play.v4());
    play.give(Side::Client, &udp(&Tuple { src, ..t }, b"from whom?"));
}

fn flow_label(play: &mut Play<'_>) {
    if !play.v4() {
        let mut packet = datagram(play);
        play.give(Side::Client, &packet);
        packet[3] = 7;
        play.give(Side::Client, &packet);
    }
}
