//! UDP, and protocols without a tracker of their own at Palisade.

use palisade_engine::parse::build;
use palisade_engine::{Protocol, Tuple};

use super::Entry;
use crate::packet::{Side, udp};
use crate::play::Play;

pub(super) const ALL: &[Entry] = &[
    ("a question and its answer", question),
    ("many questions, no answer", unreplied),
    ("both send on", stream),
    ("from the server's side", from_the_server),
    ("an answer from another port", other_port),
    ("without a checksum", no_checksum),
    ("a wrong checksum", bad_checksum),
    ("lengths that do not fit", lengths),
    ("port zero", port_zero),
    ("ESP and GRE", others),
    ("SCTP that does not begin with INIT", sctp),
];

fn tuple(play: &Play<'_>) -> Tuple {
    play.tuple(Protocol::UDP, 5000, 53)
}

fn question(play: &mut Play<'_>) {
    let t = tuple(play);
    play.give(Side::Client, &udp(&t, b"question"));
    play.give(Side::Server, &udp(&t.inverse(), b"answer"));
    play.give(Side::Server, &udp(&t.inverse(), b"answer again"));
}

fn unreplied(play: &mut Play<'_>) {
    let t = tuple(play);
    for _ in 0..5 {
        play.give(Side::Client, &udp(&t, b"question"));
    }
}

fn stream(play: &mut Play<'_>) {
    let t = tuple(play);
    for _ in 0..5 {
        play.give(Side::Client, &udp(&t, b"there"));
        play.give(Side::Server, &udp(&t.inverse(), b"back"));
    }
}

fn from_the_server(play: &mut Play<'_>) {
    let t = tuple(play);
    play.give(Side::Server, &udp(&t.inverse(), b"unasked"));
    play.give(Side::Client, &udp(&t, b"answer"));
    play.give(Side::Server, &udp(&t.inverse(), b"now it was asked"));
}

fn other_port(play: &mut Play<'_>) {
    let t = tuple(play);
    play.give(Side::Client, &udp(&t, b"question"));
    play.give(Side::Server, &udp(&Tuple { src_port: 54, ..t.inverse() }, b"answer"));
    play.give(Side::Server, &udp(&Tuple { dst_port: 5001, ..t.inverse() }, b"answer"));
}

/// A datagram changed after it was built.
fn changed(play: &mut Play<'_>, t: &Tuple, change: impl FnOnce(&mut [u8])) {
    let mut packet = udp(t, b"question");
    let at = if play.v4() { 20 } else { 40 };
    change(&mut packet[at..]);
    play.give(Side::Client, &packet);
}

fn no_checksum(play: &mut Play<'_>) {
    let t = tuple(play);
    changed(play, &t, |udp| udp[6..8].fill(0));
}

fn bad_checksum(play: &mut Play<'_>) {
    let t = tuple(play);
    changed(play, &t, |udp| udp[6] ^= 0x55);
}

/// Sets the length; the checksum stays right, because the pseudo-header's length is another one, too.
fn with_length(play: &mut Play<'_>, length: u16) {
    let t = Tuple { src_port: 5000 + length, ..tuple(play) };
    changed(play, &t, |udp| {
        let mut sum = u32::from(u16::from_be_bytes([udp[6], udp[7]]));
        // What the shorter datagram does not cover.
        let rest = crate::packet::sum(&udp[usize::from(length).clamp(8, udp.len())..]);
        sum += u32::from(rest) + 2 * (16 - u32::from(length).min(16));
        sum = (sum & 0xffff) + (sum >> 16);
        udp[4..6].copy_from_slice(&length.to_be_bytes());
        udp[6..8].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
    });
}

fn lengths(play: &mut Play<'_>) {
    // Too long, too short for itself, and shorter than the packet, which leaves room for options (RFC 9868).
    for length in [17, 7, 0, 12] {
        with_length(play, length);
    }
}

fn port_zero(play: &mut Play<'_>) {
    let t = tuple(play);
    play.give(Side::Client, &udp(&Tuple { src_port: 0, ..t }, b"no answer wanted"));
    play.give(Side::Client, &udp(&Tuple { dst_port: 0, ..t }, b"to nobody"));
}

fn others(play: &mut Play<'_>) {
    let t = tuple(play);
    for protocol in [50, 47] {
        // A GRE header without options, version 0, that carries IPv4.
        let body = [0, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        for _ in 0..2 {
            play.give(Side::Client, &build::packet(t.src, t.dst, Protocol(protocol), &body).unwrap());
            play.give(Side::Server, &build::packet(t.dst, t.src, Protocol(protocol), &body).unwrap());
        }
    }
}

fn sctp(play: &mut Play<'_>) {
    let t = tuple(play);
    // Ports, verification tag, checksum, and a SACK chunk.
    let mut body = [0x13, 0x88, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 3, 0, 0, 16, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0];
    let sum = crc32c(&body);
    body[8..12].copy_from_slice(&sum.to_le_bytes());
    play.give(Side::Client, &build::packet(t.src, t.dst, Protocol(132), &body).unwrap());
}

/// SCTP's checksum (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 })
    })
}
