//! A reference model: two simple TCP endpoints, and a network between them that loses, duplicates and reorders. Every
//! segment that they send according to RFC 9293 must be forwarded, by any member. Forwarding after a hold counts.
//!
//! Not legitimate, so not counted: packets of a connection that was reset, a RST whose number is not the next expected one,
//! duplicates older than a whole window, duplicates of the handshake after the end, and a simultaneous open if every RST of
//! an earlier connection was lost (`docs/security.md`).

use std::collections::VecDeque;
use std::env;

use super::cluster::*;
use crate::parse::{IpOptions, Kind, Packet, RoutingClass, Tcp};
use crate::testing::tuple;
use crate::tuple::Tuple;
use crate::verdict::Verdict;

/// A random number generator: xorshift64*.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A segment of an endpoint. Offsets count from its SYN, which is 0, and never wrap.
#[derive(Clone, Copy, Debug)]
struct Segment {
    flags: u8,
    at: u64,
    length: u64,
    ack: u64,
    window: u16,
    scale: Option<u8>,
}

impl Segment {
    fn end(&self) -> u64 {
        self.at + self.length + u64::from(self.flags & (Tcp::SYN | Tcp::FIN) != 0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EndpointState {
    Closed,
    Opening,
    Open,
    Dead,
}

/// A TCP endpoint.
#[derive(Debug)]
struct Endpoint {
    isn: u32,
    offered: Option<u8>,
    /// Whether both endpoints offered window scaling.
    scaled: bool,
    state: EndpointState,
    next: u64,
    unacked: u64,
    /// The right edge of the other endpoint's window.
    right: u64,
    fin: Option<u64>,
    /// The end of the data received without a gap.
    received: u64,
    beyond: Vec<(u64, u64)>,
    their_fin: Option<u64>,
    buffer: u64,
    unread: u64,
    /// The right edge of the advertised window. It never shrinks.
    granted: u64,
}

impl Endpoint {
    fn new(random: &mut Random, isn: u32) -> Endpoint {
        let offered = (!random.one_in(3)).then(|| random.below(15) as u8);
        let max_window = 65_535 << offered.unwrap_or(0);
        Endpoint {
            isn,
            offered,
            scaled: false,
            state: EndpointState::Closed,
            next: 0,
            unacked: 0,
            right: 0,
            fin: None,
            received: 0,
            beyond: Vec::new(),
            their_fin: None,
            buffer: if random.one_in(2) { max_window } else { 1 + random.below(max_window) },
            unread: 0,
            granted: 0,
        }
    }

    fn shift(&self) -> u32 {
        if self.scaled { self.offered.unwrap_or(0).into() } else { 0 }
    }

    fn segment(&mut self, flags: u8, at: u64, length: u64) -> Segment {
        let shift = if flags & Tcp::SYN != 0 { 0 } else { self.shift() };
        let free = (self.buffer - self.unread.min(self.buffer)).max(self.granted.saturating_sub(self.received));
        let window = (free >> shift).min(65_535);
        self.granted = self.granted.max(self.received + (window << shift));
        Segment { flags, at, length, ack: self.received, window: window as u16, scale: self.offered }
    }

    /// The largest window that it may advertise.
    fn max_window(&self) -> u64 {
        self.buffer.min(65_535 << self.shift())
    }

    /// The end of the data, which is the offset of the FIN.
    fn data_end(&self) -> u64 {
        self.fin.unwrap_or(self.next)
    }

    /// A random segment that an open endpoint may send.
    fn speak(&mut self, random: &mut Random) -> Option<Segment> {
        let size = [1, 536, 1460, 9000, 65_000][random.below(5) as usize];
        let length = 1 + random.below(size);
        match random.below(12) {
            0..=3 if self.fin.is_none() => {
                let length = length.min(self.right.saturating_sub(self.next));
                self.next += length;
                (length > 0).then(|| self.segment(Tcp::ACK | Tcp::PSH, self.next - length, length))
            }
            // A retransmission, from the first unacknowledged byte or from a hole that SACK reported.
            4 | 5 => {
                let waiting = self.data_end().saturating_sub(self.unacked.max(1));
                let from = self.unacked.max(1) + if random.one_in(2) { 0 } else { random.below(waiting) };
                let length = length.min(self.data_end().saturating_sub(from));
                let flags = Tcp::ACK;
                match self.fin {
                    Some(fin) if from + length == fin && self.unacked <= fin => {
                        Some(self.segment(flags | Tcp::FIN, from, length))
                    }
                    _ => (length > 0).then(|| self.segment(flags, from, length)),
                }
            }
            // A keep-alive, with and without a byte (RFC 9293 section 3.8.4).
            6 if self.unacked == self.next && self.next > 1 => {
                Some(self.segment(Tcp::ACK, self.next - 1, random.below(2) * u64::from(self.fin.is_none())))
            }
            // A window probe (RFC 9293 section 3.8.6.1).
            7 if self.fin.is_none() && self.right == self.next => {
                self.next += 1;
                Some(self.segment(Tcp::ACK, self.next - 1, 1))
            }
            8 if self.fin.is_none() && random.one_in(8) => {
                self.fin = Some(self.next);
                self.next += 1;
                Some(self.segment(Tcp::ACK | Tcp::FIN, self.next - 1, 0))
            }
            9 => {
                self.unread = if random.one_in(2) { 0 } else { self.unread / 2 };
                Some(self.segment(Tcp::ACK, self.next, 0))
            }
            10 if random.one_in(100) => {
                self.state = EndpointState::Dead;
                let flags = if random.one_in(2) { Tcp::RST } else { Tcp::RST | Tcp::ACK };
                Some(self.segment(flags, self.next, 0))
            }
            _ => Some(self.segment(Tcp::ACK, self.next, 0)),
        }
    }

    /// Receives a segment of an open connection and returns the reply.
    fn receive(&mut self, segment: &Segment, their_shift: u32) -> Option<Segment> {
        if segment.flags & Tcp::RST != 0 {
            if segment.at == self.received {
                self.state = EndpointState::Dead;
            }
            return None;
        }
        if self.state == EndpointState::Dead {
            return Some(Segment { at: segment.ack, ..self.segment(Tcp::RST, 0, 0) });
        }
        if segment.flags & Tcp::SYN != 0 {
            return Some(self.segment(Tcp::ACK, self.next, 0));
        }
        if segment.ack <= self.next {
            self.unacked = self.unacked.max(segment.ack);
            self.right = self.right.max(segment.ack + (u64::from(segment.window) << their_shift));
        }
        if segment.flags & Tcp::FIN != 0 {
            self.their_fin = Some(segment.end() - 1);
        }
        let before = self.received;
        // The byte of a window probe is not accepted.
        let end = segment.end().min(self.granted + u64::from(segment.flags & Tcp::FIN != 0));
        if segment.at < end {
            self.beyond.push((segment.at, end));
            while let Some(n) = self.beyond.iter().position(|(at, _)| *at <= self.received) {
                let (_, end) = self.beyond.swap_remove(n);
                self.received = self.received.max(end);
            }
        }
        self.unread = (self.unread + self.received - before).min(self.buffer);
        (segment.length > 0 || segment.flags & Tcp::FIN != 0).then(|| self.segment(Tcp::ACK, self.next, 0))
    }

    fn done(&self) -> bool {
        self.state == EndpointState::Dead
            || self.fin.is_some_and(|fin| self.unacked > fin) && self.their_fin.is_some_and(|fin| self.received > fin)
    }
}

/// The paths of the packets through the members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Paths {
    One,
    Asymmetric,
    Changing,
    Sprayed,
}

struct History<'a> {
    cluster: &'a mut Cluster,
    random: Random,
    tuple: Tuple,
    ends: [Endpoint; 2],
    /// Segments in flight to the firewall; `after`: from there to the receiver.
    before: [VecDeque<Segment>; 2],
    after: [VecDeque<Segment>; 2],
    paths: Paths,
    path: [usize; 2],
    /// The highest forwarded offset.
    passed: [u64; 2],
    /// Whether a RST was forwarded.
    reset: bool,
    /// Whether the firewall still has an earlier connection of the tuple, because its RSTs were lost.
    left_open: bool,
    trace: Vec<String>,
    verbose: bool,
    /// The trace, if a legitimate packet was dropped.
    dropped: Option<String>,
    packets: u64,
    held: u64,
}

impl History<'_> {
    fn packet(&self, from: usize, s: &Segment) -> Packet {
        let (us, them) = (&self.ends[from], &self.ends[1 - from]);
        let ack = s.flags & Tcp::ACK != 0;
        let syn = s.flags & Tcp::SYN != 0;
        let tcp = Tcp {
            seq: us.isn.wrapping_add(s.at as u32),
            ack: if ack { them.isn.wrapping_add(s.ack as u32) } else { 0 },
            flags: s.flags,
            window: s.window,
            payload: s.length as u32,
            wscale: s.scale.filter(|_| syn),
            sack_permitted: syn,
        };
        Packet {
            tuple: if from == 0 { self.tuple } else { self.tuple.inverse() },
            length: 40 + s.length as u32,
            transport: 20,
            kind: Kind::Tcp(tcp),
            fragment: None,
            options: IpOptions::NONE,
            class: RoutingClass::default(),
        }
    }

    /// A segment in flight arrives at the firewall.
    fn firewall(&mut self, from: usize) {
        if self.before[from].is_empty() {
            return;
        }
        // Reordering: takes any of the first few.
        let n = if self.random.one_in(4) { self.random.below(4.min(self.before[from].len() as u64)) } else { 0 };
        let Some(segment) = self.before[from].remove(n as usize) else { return };
        match self.random.below(20) {
            0 => return,
            1 => self.before[from].push_back(segment),
            _ => {}
        }
        match self.paths {
            Paths::Changing if self.random.one_in(40) => self.path[from] = self.random.below(3) as usize,
            Paths::Sprayed => self.path[from] = self.random.below(3) as usize,
            _ => {}
        }
        let at = self.path[from];
        let packet = self.packet(from, &segment);
        let mut verdict = self.cluster.pass(at, packet);
        for _ in 0..4 {
            self.cluster.deliver();
            if self.random.one_in(2) || matches!(verdict, Verdict::Hold(..)) {
                self.cluster.settle();
            }
            if !matches!(verdict, Verdict::Hold(..)) {
                break;
            }
            self.held += 1;
            self.cluster.now = self.cluster.now + MS;
            verdict = self.cluster.pass(at, packet);
        }
        self.cluster.deliver();
        self.packets += 1;
        if self.verbose || verdict != Verdict::Forward {
            self.trace.push(format!("{:?} {from} at {at}: {segment:?} {verdict:?}", self.cluster.now));
        }
        if verdict == Verdict::Forward {
            self.passed[from] = self.passed[from].max(segment.end());
            self.reset |= segment.flags & Tcp::RST != 0;
            self.after[from].push_back(segment);
            return;
        }
        let rst = segment.flags & Tcp::RST != 0;
        let inexact =
            rst && (segment.at != self.passed[from] || self.ends.iter().any(|e| e.state != EndpointState::Open));
        // Duplicates of the handshake after the end.
        let late = segment.flags & Tcp::SYN != 0 && self.ends.iter().all(|e| e.fin.is_some());
        // Duplicates older than a whole window, which no endpoint expects any more.
        let old = segment.at + self.ends[1 - from].max_window() + 1 < self.passed[from]
            || segment.ack + 2 * self.ends[from].max_window() + 1 < self.passed[1 - from];
        if !self.reset && !inexact && !late && !old {
            panic!(
                "a legitimate packet was not forwarded: {:?}\n{}\n{:#?}",
                self.paths,
                self.trace.join("\n"),
                self.ends
            );
        }
    }

    fn arrive(&mut self, from: usize) {
        let to = 1 - from;
        let n = if self.random.one_in(4) { self.random.below(4.min(self.after[from].len() as u64)) } else { 0 };
        let Some(segment) = self.after[from].remove(n as usize) else { return };
        if self.random.one_in(20) {
            return;
        }
        let both = self.ends[0].offered.is_some() && self.ends[1].offered.is_some();
        let their_shift = if both { u32::from(self.ends[from].offered.unwrap_or(0)) } else { 0 };
        let us = &mut self.ends[to];
        let answer = match us.state {
            EndpointState::Closed if segment.flags == Tcp::SYN => {
                us.state = EndpointState::Opening;
                us.scaled = both;
                // Fast Open: the server accepts or ignores the data (RFC 7413).
                us.received = if self.random.one_in(2) { segment.end() } else { 1 };
                us.next = 1;
                us.right = 1 + u64::from(segment.window);
                Some(us.segment(Tcp::SYN | Tcp::ACK, 0, 0))
            }
            // A duplicate, or a simultaneous open (RFC 9293 section 3.5).
            EndpointState::Opening if segment.flags == Tcp::SYN => {
                if us.received == 0 {
                    us.scaled = both;
                    us.received = 1;
                    us.right = 1 + u64::from(segment.window);
                }
                Some(us.segment(Tcp::SYN | Tcp::ACK, 0, 0))
            }
            EndpointState::Opening if segment.flags == Tcp::SYN | Tcp::ACK => {
                us.state = EndpointState::Open;
                us.scaled = both;
                us.received = us.received.max(1);
                us.unacked = segment.ack;
                us.right = segment.ack + u64::from(segment.window);
                Some(us.segment(Tcp::ACK, us.next, 0))
            }
            EndpointState::Opening if us.received > 0 && segment.flags & (Tcp::SYN | Tcp::RST) == 0 => {
                us.state = EndpointState::Open;
                us.unacked = 1;
                us.receive(&segment, their_shift)
            }
            EndpointState::Open | EndpointState::Dead => us.receive(&segment, their_shift),
            EndpointState::Closed | EndpointState::Opening => None,
        };
        self.before[to].extend(answer);
    }

    fn run(&mut self) {
        let data = if self.random.one_in(8) { 1 + self.random.below(1400) } else { 0 };
        let crossing = self.random.one_in(4) && !self.left_open;
        self.ends[0].state = EndpointState::Opening;
        self.ends[0].next = 1 + data;
        let syn = self.ends[0].segment(Tcp::SYN, 0, data);
        self.before[0].push_back(syn);
        for _ in 0..200 + self.random.below(400) {
            let pause = match self.random.below(400) {
                0 => 3_600_000,
                1..5 => self.random.below(5000),
                5..50 => self.random.below(50),
                _ => 0,
            };
            self.cluster.now = self.cluster.now + MS * pause as u32 + MS / 20;
            let side = self.random.below(2) as usize;
            match self.random.below(8) {
                0..=2 => self.firewall(side),
                3..=5 => self.arrive(side),
                _ if self.ends[side].state == EndpointState::Open => {
                    let sent = self.ends[side].speak(&mut self.random);
                    self.before[side].extend(sent);
                }
                _ if side == 0 && self.ends[0].state == EndpointState::Opening && self.random.one_in(3) => {
                    self.before[0].push_back(syn);
                }
                // The server opens, too, while the client's SYN is in flight.
                _ if side == 1 && crossing && self.passed[0] > 0 && self.ends[1].state == EndpointState::Closed => {
                    let end = &mut self.ends[1];
                    (end.state, end.next) = (EndpointState::Opening, 1);
                    let syn = end.segment(Tcp::SYN, 0, 0);
                    self.before[1].push_back(syn);
                }
                _ => {}
            }
            if self.dropped.is_some()
                || self.ends.iter().all(Endpoint::done) && self.before.iter().all(VecDeque::is_empty)
            {
                break;
            }
        }
        self.cluster.tick();
        self.cluster.deliver();
        self.cluster.settle();
    }
}

/// Runs histories. Returns the number of packets judged, and of those held before they were forwarded.
fn histories(first: u64, count: u64) -> (u64, u64) {
    let first = env::var("PALISADE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(first);
    let (mut packets, mut held) = (0, 0);
    let mut dropped = Vec::new();
    let mut cluster = Cluster::new();
    cluster.register();
    for seed in first..first + count {
        if seed % 64 == 63 {
            cluster = Cluster::new();
            cluster.register();
        }
        let mut random = Random::new(seed);
        let paths = [Paths::One, Paths::Asymmetric, Paths::Changing, Paths::Sprayed][random.below(4) as usize];
        let mut isn = || if random.one_in(4) { u32::MAX - random.below(100_000) as u32 } else { random.next() as u32 };
        let isns = [isn(), isn()];
        // A tuple may be used twice in a row, by a later SYN (RFC 9293 section 3.6.1).
        let reuses = 1 + u64::from(random.one_in(4));
        let mut left_open = false;
        for round in 0..reuses {
            let isns = isns.map(|isn| isn.wrapping_add((round as u32).wrapping_mul(0x1000_0000)));
            let ends = isns.map(|isn| Endpoint::new(&mut random, isn));
            let mut history = History {
                cluster: &mut cluster,
                tuple: tuple((seed % 60_000) as u16),
                ends,
                before: Default::default(),
                after: Default::default(),
                paths,
                path: if paths == Paths::One { [A, A] } else { [A, B] },
                passed: [0; 2],
                reset: false,
                left_open,
                trace: vec![format!("seed {seed}, round {round}")],
                verbose: env::var_os("PALISADE_TRACE").is_some(),
                dropped: None,
                packets: 0,
                held: 0,
                random: Random::new(random.next()),
            };
            history.run();
            left_open = !history.reset && history.ends.iter().any(|end| end.state == EndpointState::Dead);
            packets += history.packets;
            held += history.held;
            dropped.extend(history.dropped.take());
            if !history.ends.iter().all(Endpoint::done) {
                break;
            }
        }
    }
    let some = dropped.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n\n");
    assert!(dropped.is_empty(), "{} legitimate packets were not forwarded:\n{some}", dropped.len());
    (packets, held)
}

#[test]
fn history_of_legitimate_segments_is_forwarded() {
    let (packets, _) = histories(0, 2000);
    assert!(packets > 50_000, "{packets}");
}

/// Runs `PALISADE_HISTORIES` histories (default 100,000).
#[test]
#[ignore = "takes minutes"]
fn history_of_legitimate_segments_is_forwarded_long_run() {
    let count = env::var("PALISADE_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let (packets, held) = histories(1_000_000, count);
    println!("{count} histories, {packets} packets, {held} held for a while, 0 legitimate ones dropped");
}
