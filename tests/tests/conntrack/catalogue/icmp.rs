//! ICMP and ICMPv6: echo, and errors about what the sessions sent.

use palisade_engine::parse::build::{self, Echo};
use palisade_engine::{Ip, Protocol, Tuple};

use super::{Conn, Entry};
use crate::packet::{ACK, Side, fragment, host, udp};
use crate::play::Play;

pub(super) const ALL: &[Entry] = &[
    ("echo", echo),
    ("echo from the server's side", echo_from_the_server),
    ("echo replies that nobody asked for", echo_unasked),
    ("echo with identifier 0, both ways", echo_zero),
    ("a wrong ICMP checksum", echo_checksum),
    ("all types, not as an answer", types),
    ("errors of all types about TCP", |p| errors(p, tcp_sent)),
    ("errors of all types about UDP", |p| errors(p, udp_sent)),
    ("errors of all types about echo", |p| errors(p, echo_sent)),
    ("errors about what the server sent", errors_to_the_server),
    ("errors about half-open connections", half_open),
    ("errors about what nobody sent", unrelated),
    ("errors about numbers that were never sent", wrong_numbers),
    ("errors to somebody else", to_another),
    ("errors by the wrong interface", wrong_interface),
    ("errors with less than eight bytes of the packet", truncated),
    ("errors about errors", about_errors),
    ("errors in fragments", fragmented),
    ("path MTU discovery", path_mtu),
    ("errors from a router on the way", from_a_router),
];

const SEQ: u16 = 7;

fn ends(play: &Play<'_>) -> (Ip, Ip) {
    let t = play.tuple(Protocol::UDP, 0, 0);
    (t.src, t.dst)
}

fn echo(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    for seq in 1..4 {
        play.give(Side::Client, &build::echo(c, s, Echo::Request, SEQ, seq, b"abcdefgh").unwrap());
        play.give(Side::Server, &build::echo(s, c, Echo::Reply, SEQ, seq, b"abcdefgh").unwrap());
        play.give(Side::Server, &build::echo(s, c, Echo::Reply, SEQ, seq, b"abcdefgh").unwrap());
    }
}

fn echo_from_the_server(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    play.give(Side::Server, &build::echo(s, c, Echo::Request, SEQ, 1, b"").unwrap());
    play.give(Side::Client, &build::echo(c, s, Echo::Reply, SEQ, 1, b"").unwrap());
}

fn echo_unasked(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    play.give(Side::Client, &build::echo(c, s, Echo::Reply, SEQ, 1, b"").unwrap());
    play.give(Side::Client, &build::echo(c, s, Echo::Request, SEQ, 1, b"").unwrap());
    play.give(Side::Server, &build::echo(s, c, Echo::Reply, SEQ + 1, 1, b"").unwrap());
    play.give(Side::Client, &build::echo(c, s, Echo::Reply, SEQ, 1, b"").unwrap());
}

fn echo_zero(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    play.give(Side::Client, &build::echo(c, s, Echo::Request, 0, 1, b"").unwrap());
    play.give(Side::Server, &build::echo(s, c, Echo::Request, 0, 1, b"").unwrap());
    play.give(Side::Client, &build::echo(c, s, Echo::Reply, 0, 1, b"").unwrap());
    play.give(Side::Server, &build::echo(s, c, Echo::Reply, 0, 1, b"").unwrap());
}

fn echo_checksum(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    let mut packet = build::echo(c, s, Echo::Request, SEQ, 1, b"abcd").unwrap();
    let last = packet.len() - 1;
    packet[last] ^= 1;
    play.give(Side::Client, &packet);
}

fn types(play: &mut Play<'_>) {
    let (c, s) = ends(play);
    // Neither echo nor errors: neighbour discovery is between neighbours, and the kernel does not forward multicast
    // listener reports.
    for kind in (4..=255).filter(|kind| ![8, 128].contains(kind)) {
        play.give(Side::Client, &build::icmp(c, s, kind, 0, 0x0007_0001, &[0; 24]).unwrap());
        play.give(Side::Server, &build::icmp(s, c, kind, 0, 0x0007_0001, &[0; 24]).unwrap());
    }
}

/// A packet that the client sent and all forwarded.
type Sent = fn(&mut Play<'_>) -> Vec<u8>;

fn tcp_sent(play: &mut Play<'_>) -> Vec<u8> {
    let c = Conn::new(play);
    c.open(play);
    let packet = c.segment(Side::Client, ACK, 0, 0, 100).packet(&c.tuple);
    play.give(Side::Client, &packet);
    packet
}

fn udp_sent(play: &mut Play<'_>) -> Vec<u8> {
    let packet = udp(&play.tuple(Protocol::UDP, 5000, 53), b"question");
    play.give(Side::Client, &packet);
    packet
}

fn echo_sent(play: &mut Play<'_>) -> Vec<u8> {
    let (c, s) = ends(play);
    let packet = build::echo(c, s, Echo::Request, SEQ, 1, b"abcdefgh").unwrap();
    play.give(Side::Client, &packet);
    packet
}

/// An error about a packet, to its sender, with `most` bytes of it.
fn error(from: Ip, kind: u8, code: u8, rest: u32, packet: &[u8], most: usize) -> Vec<u8> {
    let (to, _) = crate::packet::addresses(packet).unwrap();
    build::icmp(from, to, kind, code, rest, &packet[..packet.len().min(most)]).unwrap()
}

/// Types that are errors, source quench and redirect included, and one code more than each has.
const ERRORS_V4: [(u8, u8); 5] = [(3, 17), (4, 1), (5, 4), (11, 3), (12, 4)];
const ERRORS_V6: [(u8, u8); 4] = [(1, 10), (2, 2), (3, 3), (4, 12)];

fn errors(play: &mut Play<'_>, sent: Sent) {
    let packet = sent(play);
    let (_, server) = ends(play);
    let all: &[(u8, u8)] = if play.v4() { &ERRORS_V4 } else { &ERRORS_V6 };
    for (kind, codes) in all {
        for code in 0..*codes {
            play.give(Side::Server, &error(server, *kind, code, 0, &packet, 500));
        }
    }
}

/// Destination unreachable, port: type and code.
fn unreachable(play: &Play<'_>) -> (u8, u8) {
    if play.v4() { (3, 3) } else { (1, 4) }
}

fn errors_to_the_server(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.open(play);
    let packet = c.segment(Side::Server, ACK, 0, 0, 100).packet(&c.tuple.inverse());
    play.give(Side::Server, &packet);
    let (kind, code) = unreachable(play);
    let (client, _) = ends(play);
    play.give(Side::Client, &error(client, kind, code, 0, &packet, 500));
}

fn half_open(play: &mut Play<'_>) {
    let c = Conn::new(play);
    c.syn(play);
    let syn = c.segment(Side::Client, crate::packet::SYN, -1, 0, 0).packet(&c.tuple);
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    play.give(Side::Server, &error(server, kind, code, 0, &syn, 500));
    c.syn_ack(play);
    play.give(Side::Server, &error(server, kind, code, 0, &syn, 500));
}

fn unrelated(play: &mut Play<'_>) {
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    let packet = udp(&play.tuple(Protocol::UDP, 5000, 53), b"never sent");
    play.give(Side::Server, &error(server, kind, code, 0, &packet, 500));
    tcp_sent(play);
    let c = Conn::new(play);
    let other = Tuple { src_port: 40_001, ..c.tuple };
    let packet = c.segment(Side::Client, ACK, 0, 0, 100).packet(&other);
    play.give(Side::Server, &error(server, kind, code, 0, &packet, 500));
}

fn wrong_numbers(play: &mut Play<'_>) {
    tcp_sent(play);
    let c = Conn::new(play);
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    for seq in [100, 0, 1000, 1 << 20, 1 << 28, 1 << 30, -(1 << 28)] {
        let packet = c.segment(Side::Client, ACK, seq, 0, 100).packet(&c.tuple);
        play.give(Side::Server, &error(server, kind, code, 0, &packet, 500));
    }
}

fn to_another(play: &mut Play<'_>) {
    let packet = udp_sent(play);
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    let another = host(Side::Client, 4, play.v4());
    play.give(Side::Server, &build::icmp(server, another, kind, code, 0, &packet).unwrap());
}

fn wrong_interface(play: &mut Play<'_>) {
    let packet = udp_sent(play);
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    play.give(Side::Client, &error(server, kind, code, 0, &packet, 500));
}

fn truncated(play: &mut Play<'_>) {
    let header = if play.v4() { 20 } else { 40 };
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    for sent in [tcp_sent, udp_sent, echo_sent] {
        let packet = sent(play);
        for most in [0, 8, header - 1, header, header + 3, header + 4, header + 7, header + 8, header + 19] {
            play.give(Side::Server, &error(server, kind, code, 0, &packet, most));
        }
    }
}

fn about_errors(play: &mut Play<'_>) {
    let packet = udp_sent(play);
    let (kind, code) = unreachable(play);
    let (client, server) = ends(play);
    let first = error(server, kind, code, 0, &packet, 500);
    play.give(Side::Server, &first);
    play.give(Side::Client, &error(client, kind, code, 0, &first, 500));
}

fn fragmented(play: &mut Play<'_>) {
    let packet = udp_sent(play);
    let (kind, code) = unreachable(play);
    let (_, server) = ends(play);
    let error = error(server, kind, code, 0, &packet, 500);
    let body = error.len() - if play.v4() { 20 } else { 40 };
    let pieces = [fragment(&error, 77, 0, 16, true), fragment(&error, 77, 16, body, false)];
    play.datagram(Side::Server, &pieces);
}

fn path_mtu(play: &mut Play<'_>) {
    let packet = tcp_sent(play);
    let (kind, code) = if play.v4() { (3, 4) } else { (2, 0) };
    let router = host(Side::Server, 5, play.v4());
    for mtu in [1400, 68, 0, 65_535] {
        play.give(Side::Server, &error(router, kind, code, mtu, &packet, 500));
    }
}

fn from_a_router(play: &mut Play<'_>) {
    let packet = udp_sent(play);
    let router = host(Side::Server, 6, play.v4());
    let (kind, code) = if play.v4() { (11, 0) } else { (3, 0) };
    play.give(Side::Server, &error(router, kind, code, 0, &packet, 28));
    play.give(Side::Server, &error(router, kind, code, 0, &packet, 500));
}
