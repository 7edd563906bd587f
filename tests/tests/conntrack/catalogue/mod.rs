//! Histories written by hand, each with a name.

mod forged;
mod icmp;
mod ip;
mod tcp;
mod udp;

use palisade_engine::{Protocol, Tuple};

use crate::packet::{ACK, SYN, Segment, Side};
use crate::play::{Arena, Play};

/// A name and what happens.
type Entry = (&'static str, fn(&mut Play<'_>));

/// Plays all of them, over IPv4 and over IPv6.
pub(crate) fn all(arena: &mut Arena) {
    for (name, history) in [tcp::ALL, forged::ALL, udp::ALL, icmp::ALL, ip::ALL].concat() {
        for v4 in [true, false] {
            arena.play(&format!("{name}, {}", if v4 { "IPv4" } else { "IPv6" }), v4, history);
        }
    }
}

/// A TCP connection as its packets are written by hand: numbers count from the first byte of data.
#[derive(Clone)]
pub(crate) struct Conn {
    pub(crate) tuple: Tuple,
    pub(crate) isn: [u32; 2],
    pub(crate) window: [u16; 2],
    /// Options of the SYNs.
    pub(crate) options: [Vec<u8>; 2],
}

/// Maximum segment size 1460, SACK permitted, window scale 7.
const USUAL: [u8; 9] = [2, 4, 5, 180, 4, 2, 3, 3, 7];

impl Conn {
    pub(crate) fn new(play: &Play<'_>) -> Conn {
        Conn {
            tuple: play.tuple(Protocol::TCP, 40_000, 80),
            isn: [1_000_000, 3_000_000_000],
            window: [64_240, 65_160],
            options: [USUAL.to_vec(), USUAL.to_vec()],
        }
    }

    /// Without scale: windows are what the header says.
    pub(crate) fn unscaled(play: &Play<'_>) -> Conn {
        let mss = vec![2, 4, 5, 180];
        Conn { window: [20_000, 20_000], options: [mss.clone(), mss], ..Conn::new(play) }
    }

    pub(crate) fn segment(&self, from: Side, flags: u8, seq: i64, ack: i64, data: usize) -> Segment {
        let (us, them) = (from.index(), from.other().index());
        let number = |end: usize, n: i64| self.isn[end].wrapping_add(1).wrapping_add(n as u32);
        Segment {
            flags,
            seq: number(us, seq),
            ack: if flags & ACK == 0 { 0 } else { number(them, ack) },
            window: self.window[us],
            options: if flags & SYN == 0 { Vec::new() } else { self.options[us].clone() },
            data,
        }
    }

    pub(crate) fn send(&self, play: &mut Play<'_>, from: Side, segment: &Segment) -> bool {
        let tuple = if from == Side::Client { self.tuple } else { self.tuple.inverse() };
        !play.give(from, &segment.packet(&tuple)).is_empty()
    }

    /// A segment of the client.
    pub(crate) fn c(&self, play: &mut Play<'_>, flags: u8, seq: i64, ack: i64, data: usize) -> bool {
        self.send(play, Side::Client, &self.segment(Side::Client, flags, seq, ack, data))
    }

    /// A segment of the server.
    pub(crate) fn s(&self, play: &mut Play<'_>, flags: u8, seq: i64, ack: i64, data: usize) -> bool {
        self.send(play, Side::Server, &self.segment(Side::Server, flags, seq, ack, data))
    }

    pub(crate) fn syn(&self, play: &mut Play<'_>) -> bool {
        self.c(play, SYN, -1, 0, 0)
    }

    pub(crate) fn syn_ack(&self, play: &mut Play<'_>) -> bool {
        self.s(play, SYN | ACK, -1, 0, 0)
    }

    /// The handshake.
    pub(crate) fn open(&self, play: &mut Play<'_>) {
        assert!(self.syn(play) && self.syn_ack(play) && self.c(play, ACK, 0, 0, 0), "a handshake passes");
    }
}
