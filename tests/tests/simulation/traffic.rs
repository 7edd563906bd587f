//! The traffic: TCP endpoints on both sides of the members (RFC 9293, as far as a firewall can tell them from real ones),
//! each of whose packets passes through any member; and what must not pass.

use std::collections::BTreeMap;

use palisade_engine::parse::{Tcp, build};
use palisade_engine::{Ip, Protocol, Tuple};
use palisade_lab::random::Random;

use crate::network::{MS, Nanos, SECOND};

/// The first retransmission of a SYN and SYN-ACK (RFC 6298 section 2.1), and of all else on a path as short as this.
pub(crate) const FIRST_TIMEOUT: Nanos = SECOND;
const TIMEOUT: Nanos = 250 * MS;
const LONGEST_TIMEOUT: Nanos = SECOND;
/// Bytes under way. Windows are fixed, and not scaled.
const UNDER_WAY: u64 = 3_000;
const WINDOW: u16 = 64_240;
const CLIENT: u8 = 0;

/// The ports of the servers: allowed, allowed by every second policy, never allowed.
pub(crate) const WEB: u16 = 80;
pub(crate) const ALTERNATE: u16 = 81;
pub(crate) const FORBIDDEN: u16 = 23;

/// What a packet is, as only the simulation knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Kind {
    /// An endpoint sent it.
    Legitimate,
    /// Somebody who does not know the connection's numbers sent it: both are wrong by 2^29 at least.
    Blind,
    /// As that, but of one who knows one number, and the other one to some megabytes.
    Near,
    /// A SYN that nobody will complete, or its SYN-ACK.
    Flood,
    /// No policy allows it.
    Forbidden,
}

/// A packet on its way.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) kind: Kind,
    /// The connection that it is of, or pretends to be of.
    pub(crate) connection: Option<usize>,
    /// The client's is 0.
    pub(crate) from: usize,
    pub(crate) tuple: Tuple,
    pub(crate) header: Tcp,
    /// Offsets from the initial sequence number, for the endpoints.
    at: u64,
    ack: u64,
}

impl Segment {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let tuple = if self.from == 0 { self.tuple } else { self.tuple.inverse() };
        let payload = vec![0; self.header.payload as usize];
        build::tcp(&tuple, &self.header, &payload).unwrap_or_default()
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.header.flags & flag != 0
    }

    pub(crate) fn is_syn(&self) -> bool {
        self.has(Tcp::SYN) && !self.has(Tcp::ACK)
    }

    fn end(&self) -> u64 {
        self.at + u64::from(self.header.payload) + u64::from(self.has(Tcp::SYN) || self.has(Tcp::FIN))
    }
}

#[derive(Debug, Default)]
pub(crate) struct End {
    isn: u32,
    pub(crate) open: bool,
    next: u64,
    unacked: u64,
    received: u64,
    fin: Option<u64>,
    their_fin: bool,
    timeout: Nanos,
    timer: u64,
    /// When the other end last acknowledged something new.
    pub(crate) progress: Nanos,
}

/// A connection, as its ends know it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) tuple: Tuple,
    pub(crate) opened: Nanos,
    /// When the server had the client's acknowledgement: all three packets have passed.
    pub(crate) completed: Option<Nanos>,
    /// How often one of them was sent again. (Data that overtake data on their way out are sent again too.)
    pub(crate) again: u32,
    pub(crate) ends: [End; 2],
    random: Random,
    /// It ends after this many bytes of the client.
    closes: Option<u64>,
}

impl Connection {
    /// Neither end has begun to end it.
    pub(crate) fn lives(&self) -> bool {
        self.completed.is_some() && self.ends.iter().all(|end| end.fin.is_none())
    }

    pub(crate) fn port(&self) -> u16 {
        self.tuple.dst_port
    }
}

#[derive(Clone, Copy, Debug)]
enum Timer {
    Open(usize),
    Speak(usize, usize),
    Retransmit(usize, usize, u64),
}

pub(crate) struct Traffic {
    pub(crate) connections: Vec<Connection>,
    random: Random,
    timers: BTreeMap<(Nanos, u64), Timer>,
    number: u64,
    /// What the endpoints send.
    pub(crate) out: Vec<Segment>,
}

impl Traffic {
    pub(crate) fn new(random: Random) -> Traffic {
        Traffic { connections: Vec::new(), random, timers: BTreeMap::new(), number: 0, out: Vec::new() }
    }

    fn at(&mut self, time: Nanos, timer: Timer) {
        self.number += 1;
        self.timers.insert((time, self.number), timer);
    }

    /// A connection that will open at `time`.
    pub(crate) fn plan(&mut self, time: Nanos, port: u16) {
        let number = self.connections.len();
        let source = u16::try_from(number).unwrap_or(0);
        let tuple = Tuple {
            src: Ip::V4([10, 0, 1, 2 + self.byte(100)]),
            dst: Ip::V4([10, 0, 2, 3]),
            src_port: 2000 + source,
            dst_port: port,
            protocol: Protocol::TCP,
        };
        let mut end = || End { isn: self.random.number() as u32, timeout: FIRST_TIMEOUT, ..End::default() };
        let ends = [end(), end()];
        let closes = (self.random.below(2) == 0).then(|| 500 + self.random.number() % 20_000);
        let random = Random(self.random.number());
        self.connections.push(Connection { tuple, opened: time, completed: None, again: 0, ends, random, closes });
        self.at(time, Timer::Open(number));
    }

    fn byte(&mut self, below: usize) -> u8 {
        u8::try_from(self.random.below(below)).unwrap_or(0)
    }

    /// What is due until `now`.
    pub(crate) fn advance(&mut self, now: Nanos) {
        while let Some(first) = self.timers.first_entry()
            && first.key().0 <= now
        {
            match first.remove() {
                Timer::Open(number) => {
                    self.send(number, 0, Tcp::SYN, 0, 0);
                    self.connections[number].ends[0].next = 1;
                    self.arm(number, 0, now);
                }
                Timer::Speak(number, end) => self.speak(number, end, now),
                Timer::Retransmit(number, end, timer) if self.connections[number].ends[end].timer == timer => {
                    self.retransmit(number, end, now);
                }
                Timer::Retransmit(..) => {}
            }
        }
    }

    fn arm(&mut self, number: usize, end: usize, now: Nanos) {
        self.number += 1;
        let one = &mut self.connections[number].ends[end];
        one.timer = self.number;
        if one.unacked < one.next {
            let timer = Timer::Retransmit(number, end, one.timer);
            let due = now + one.timeout;
            self.at(due, timer);
        }
    }

    fn send(&mut self, number: usize, end: usize, flags: u8, at: u64, length: u64) {
        let connection = &self.connections[number];
        let (us, them) = (&connection.ends[end], &connection.ends[1 - end]);
        let syn = flags & Tcp::SYN != 0;
        let ack = if flags & Tcp::ACK != 0 { us.received } else { 0 };
        let header = Tcp {
            seq: us.isn.wrapping_add(at as u32),
            ack: if flags & Tcp::ACK != 0 { them.isn.wrapping_add(ack as u32) } else { 0 },
            flags,
            window: WINDOW,
            payload: length as u32,
            wscale: None,
            sack_permitted: syn,
        };
        let (tuple, connection) = (connection.tuple, Some(number));
        self.out.push(Segment { kind: Kind::Legitimate, connection, from: end, tuple, header, at, ack });
    }

    fn retransmit(&mut self, number: usize, end: usize, now: Nanos) {
        let connection = &mut self.connections[number];
        let one = &mut connection.ends[end];
        if one.unacked >= one.next {
            return;
        }
        connection.again += u32::from(connection.completed.is_none());
        one.timeout = (2 * one.timeout).min(LONGEST_TIMEOUT.max(FIRST_TIMEOUT));
        let (from, data_end) = (one.unacked, one.fin.unwrap_or(one.next));
        match from {
            0 if end == 0 => self.send(number, end, Tcp::SYN, 0, 0),
            0 => self.send(number, end, Tcp::SYN | Tcp::ACK, 0, 0),
            _ if from < data_end => self.send(number, end, Tcp::ACK, from, (data_end - from).min(1000)),
            _ => self.send(number, end, Tcp::ACK | Tcp::FIN, from, 0),
        }
        self.arm(number, end, now);
    }

    /// Sends some data, or ends.
    fn speak(&mut self, number: usize, end: usize, now: Nanos) {
        let connection = &mut self.connections[number];
        let length = 1 + connection.random.number() % 1000;
        let pause = 20 * MS + connection.random.number() % (150 * MS);
        let closes = connection.closes;
        let one = &mut connection.ends[end];
        if one.fin.is_some() {
            return;
        }
        let idle = one.unacked == one.next;
        let ends = match end {
            0 => closes.is_some_and(|most| one.next > most),
            _ => one.their_fin,
        };
        if ends {
            one.fin = Some(one.next);
            one.next += 1;
            let at = one.next - 1;
            self.send(number, end, Tcp::ACK | Tcp::FIN, at, 0);
        } else if one.next - one.unacked < UNDER_WAY {
            one.next += length;
            let at = one.next - length;
            self.send(number, end, Tcp::ACK | Tcp::PSH, at, length);
        }
        if idle {
            self.arm(number, end, now);
        }
        self.at(now + pause, Timer::Speak(number, end));
    }

    /// A segment arrives at its receiver.
    pub(crate) fn hear(&mut self, segment: &Segment, now: Nanos) {
        let Some(number) = segment.connection.filter(|_| segment.kind == Kind::Legitimate) else { return };
        let end = 1 - segment.from;
        let connection = &mut self.connections[number];
        let one = &mut connection.ends[end];
        if segment.has(Tcp::SYN) {
            let answers = one.received == 0;
            one.received = one.received.max(1);
            if segment.has(Tcp::ACK) {
                one.unacked = one.unacked.max(1);
                if !one.open {
                    (one.open, one.timeout, one.progress) = (true, TIMEOUT, now);
                    self.arm(number, end, now);
                    self.at(now + MS, Timer::Speak(number, end));
                }
                let next = self.connections[number].ends[end].next;
                self.send(number, end, Tcp::ACK, next, 0);
            } else if answers || !one.open {
                one.next = one.next.max(1);
                self.send(number, end, Tcp::SYN | Tcp::ACK, 0, 0);
                if answers {
                    self.arm(number, end, now);
                }
            }
            return;
        }
        if one.received == 0 {
            return;
        }
        if segment.ack > one.unacked && segment.ack <= one.next {
            (one.unacked, one.progress, one.timeout) = (segment.ack, now, TIMEOUT);
            let opens = end != usize::from(CLIENT) && !one.open;
            if opens {
                one.open = true;
                connection.completed = Some(now);
                self.at(now + 5 * MS, Timer::Speak(number, end));
            }
            self.arm(number, end, now);
        }
        let one = &mut self.connections[number].ends[end];
        if segment.end() > segment.at {
            if segment.at <= one.received && segment.end() > one.received {
                one.received = segment.end();
                one.their_fin |= segment.has(Tcp::FIN);
            }
            let next = one.next;
            self.send(number, end, Tcp::ACK, next, 0);
        }
    }

    /// A segment's numbers, counted from the initial ones: for people.
    pub(crate) fn relative(&self, segment: &Segment) -> String {
        let Some(connection) = segment.connection.and_then(|n| self.connections.get(n)) else { return String::new() };
        let [us, them] = [segment.from, 1 - segment.from].map(|end| connection.ends[end].isn);
        let (seq, ack) = (segment.header.seq.wrapping_sub(us), segment.header.ack.wrapping_sub(them));
        format!("seq {seq} ack {ack} length {}", segment.header.payload)
    }

    fn living(&mut self) -> Option<usize> {
        let living: Vec<usize> = (0..self.connections.len()).filter(|n| self.connections[*n].lives()).collect();
        (!living.is_empty()).then(|| living[self.random.below(living.len())])
    }

    /// Somebody sends a packet into a connection whose numbers he does not know.
    pub(crate) fn forge(&mut self, kind: Kind) {
        let Some(number) = self.living() else { return };
        let from = self.random.below(2);
        let connection = &self.connections[number];
        let (us, them) = (&connection.ends[from], &connection.ends[1 - from]);
        let far = (1 << 29) + self.random.number() % (1 << 30);
        let (wrong, wrong_ack) = match kind {
            Kind::Near => ((1 << 20) + far % (1 << 24), 0),
            _ => (far, (1 << 29) + self.random.number() % (1 << 30)),
        };
        let flags = [Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::RST, Tcp::RST | Tcp::ACK][self.random.below(4)];
        let header = Tcp {
            seq: us.isn.wrapping_add((us.next + wrong) as u32),
            ack: them.isn.wrapping_add((us.received + wrong_ack) as u32),
            flags,
            window: WINDOW,
            payload: if flags & Tcp::RST == 0 { 100 } else { 0 },
            wscale: None,
            sack_permitted: false,
        };
        let (tuple, at, ack) = (connection.tuple, 0, 0);
        self.out.push(Segment { kind, connection: Some(number), from, tuple, header, at, ack });
    }

    /// Sends SYNs that are never completed, though they are answered; or SYNs to a port that is not allowed.
    pub(crate) fn flood(&mut self, kind: Kind, count: usize) {
        for _ in 0..count {
            let tuple = Tuple {
                src: Ip::V4([10, 0, 1, 150 + self.byte(100)]),
                dst: Ip::V4([10, 0, 2, 3]),
                src_port: self.random.number() as u16,
                dst_port: if kind == Kind::Forbidden { FORBIDDEN } else { WEB },
                protocol: Protocol::TCP,
            };
            let isn = self.random.number() as u32;
            let mut header = Tcp {
                seq: isn,
                ack: 0,
                flags: Tcp::SYN,
                window: WINDOW,
                payload: 0,
                wscale: (self.random.below(2) == 0).then_some(self.random.below(15) as u8),
                sack_permitted: true,
            };
            let segment = Segment { kind, connection: None, from: 0, tuple, header, at: 0, ack: 0 };
            self.out.push(segment.clone());
            if self.random.below(2) == 0 {
                header.seq = self.random.number() as u32;
                header.ack = isn.wrapping_add(1);
                header.flags = Tcp::SYN | Tcp::ACK;
                self.out.push(Segment { from: 1, header, ..segment.clone() });
                // And an acknowledgement of another number than the server's, often nearly right: what is nearer could be one
                // of data that came with the SYN-ACK.
                let near = 17 + self.random.below(13);
                header.ack = header.seq.wrapping_add((1 << 17) + self.random.number() as u32 % (1 << near));
                header.seq = isn.wrapping_add(1);
                header.flags = Tcp::ACK;
                self.out.push(Segment { header, ..segment });
            }
        }
    }
}
