//! Random histories: two TCP endpoints, slow and simple, a network that loses, repeats and reorders, and now and then a
//! segment from somebody who guesses. What Palisade forwards arrives; it all ends where the trackers part.

use std::collections::VecDeque;

use palisade_engine::{Protocol, Tuple};
use palisade_lab::random::Random;

use crate::catalogue::Conn;
use crate::ours::Number;
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment, Side};
use crate::play::{Arena, Play};

/// Chances, as shares of this many.
const SHARES: usize = 100;

/// Steps of one history.
const STEPS: usize = 60;

/// Plays `count` histories from seed `first` on.
pub(crate) fn histories(arena: &mut Arena, first: u64, count: u64) {
    for seed in first..first + count {
        arena.play(&format!("PALISADE_SEED={seed}"), seed % 2 == 0, |play| {
            let mut network = Network::new(play, Random(seed));
            for _ in 0..STEPS {
                if network.play.parted() {
                    return;
                }
                network.step();
            }
        });
    }
}

/// A connection with scale 7, and segments of its client with random numbers.
pub(crate) fn blind(play: &mut Play<'_>, count: u64) {
    let c = Conn::new(play);
    c.open(play);
    let mut random = Random(1);
    for _ in 0..count {
        let (seq, ack) = (random.number() as u32, random.number() as u32);
        let window = random.number() as u16;
        c.send(play, Side::Client, &Segment { flags: ACK, seq, ack, window, data: 10, ..Segment::default() });
    }
}

/// What an endpoint sends. Offsets count from its SYN, which is 0, and do not wrap.
#[derive(Clone, Copy)]
struct Said {
    flags: u8,
    at: u64,
    data: u64,
    ack: u64,
    window: u64,
}

impl Said {
    fn end(&self) -> u64 {
        self.at + self.data + u64::from(self.flags & (SYN | FIN) != 0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Listens,
    Opens,
    Open,
    Dead,
}

struct Endpoint {
    isn: u32,
    offered: Option<u8>,
    shift: u8,
    life: Life,
    /// Next to send, first not acknowledged, and what may be sent is below.
    next: u64,
    unacked: u64,
    right: u64,
    fin: Option<u64>,
    /// Received without a gap, received beyond a gap.
    received: u64,
    beyond: Vec<(u64, u64)>,
    /// Unscaled, as the header has it.
    window: u64,
}

impl Endpoint {
    fn new(random: &mut Random, life: Life) -> Endpoint {
        let isn = if random.below(4) == 0 { u32::MAX - random.below(20_000) as u32 } else { random.number() as u32 };
        let window = [500, 5000, 29_200, 65_535][random.below(4)];
        let offered = (random.below(3) > 0).then(|| random.below(10) as u8);
        Endpoint {
            isn,
            offered,
            shift: 0,
            life,
            next: 0,
            unacked: 0,
            right: 0,
            fin: None,
            received: 0,
            beyond: Vec::new(),
            window,
        }
    }

    fn say(&self, flags: u8, at: u64, data: u64) -> Said {
        Said { flags, at, data, ack: self.received, window: self.window }
    }

    /// Something that an open endpoint may say.
    fn speak(&mut self, random: &mut Random) -> Said {
        let size = [1, 100, 1400][random.below(3)];
        let room = self.right.saturating_sub(self.next);
        match random.below(16) {
            0..8 if self.fin.is_none() && room > 0 => {
                let data = room.min(size);
                self.next += data;
                self.say(ACK | PSH, self.next - data, data)
            }
            8..11 if self.unacked < self.next => {
                let end = self.fin.unwrap_or(self.next);
                let data = end.saturating_sub(self.unacked).min(size);
                let fin = if self.fin == Some(self.unacked + data) { FIN } else { 0 };
                self.say(ACK | fin, self.unacked, data)
            }
            // Keep-alive; window probe.
            11 if self.unacked == self.next && self.next > 1 => self.say(ACK, self.next - 1, 0),
            12 if room == 0 && self.fin.is_none() => {
                self.next += 1;
                self.say(ACK, self.next - 1, 1)
            }
            13 if self.fin.is_none() && random.below(3) == 0 => {
                self.fin = Some(self.next);
                self.next += 1;
                self.say(ACK | FIN, self.next - 1, 0)
            }
            14 if random.below(20) == 0 => {
                self.life = Life::Dead;
                self.say(RST, self.next, 0)
            }
            15 => {
                // A window is opened or closed, but what was allowed is not taken back.
                self.window = [0, 1000, 20_000, 65_535][random.below(4)].max(self.window);
                self.say(ACK, self.next, 0)
            }
            _ => self.say(ACK, self.next, 0),
        }
    }

    /// Takes what came, and answers.
    fn hear(&mut self, said: &Said, their_shift: u8) -> Option<Said> {
        if said.flags & RST != 0 {
            if said.at == self.received {
                self.life = Life::Dead;
            }
            return None;
        }
        if self.life == Life::Dead {
            return Some(Said { at: said.ack, ..self.say(RST, 0, 0) });
        }
        if said.flags & SYN != 0 {
            return Some(self.say(ACK, self.next, 0));
        }
        if said.ack <= self.next {
            self.unacked = self.unacked.max(said.ack);
            self.right = self.right.max(said.ack + (said.window << their_shift));
        }
        if said.end() > said.at {
            self.beyond.push((said.at, said.end()));
            while let Some(n) = self.beyond.iter().position(|(at, _)| *at <= self.received) {
                let (_, end) = self.beyond.swap_remove(n);
                self.received = self.received.max(end);
            }
            return Some(self.say(ACK, self.next, 0));
        }
        None
    }
}

struct Network<'a, 'b> {
    play: &'a mut Play<'b>,
    random: Random,
    tuple: Tuple,
    ends: [Endpoint; 2],
    /// On the way to the firewall.
    way: [VecDeque<Said>; 2],
    /// At the firewall: whatever was given to it, by number.
    given: Vec<(Number, Side, Said)>,
    count: Number,
    last: [Option<Said>; 2],
}

impl<'a, 'b> Network<'a, 'b> {
    fn new(play: &'a mut Play<'b>, mut random: Random) -> Network<'a, 'b> {
        let tuple = play.tuple(Protocol::TCP, 1024 + random.below(60_000) as u16, 443);
        let mut ends = [Endpoint::new(&mut random, Life::Opens), Endpoint::new(&mut random, Life::Listens)];
        ends[0].next = 1;
        let syn = ends[0].say(SYN, 0, 0);
        let way = [VecDeque::from([syn]), VecDeque::new()];
        Network { play, random, tuple, ends, way, given: Vec::new(), count: 0, last: [None; 2] }
    }

    fn chance(&mut self, shares: usize) -> bool {
        self.random.below(SHARES) < shares
    }

    fn step(&mut self) {
        let side = if self.chance(50) { Side::Client } else { Side::Server };
        let n = side.index();
        if self.chance(4) {
            return self.guess(side);
        }
        if let Some(said) = self.pick(n) {
            return self.arrive(side, said);
        }
        match self.ends[n].life {
            Life::Open => {
                let said = self.ends[n].speak(&mut self.random);
                self.way[n].push_back(said);
            }
            // The handshake again.
            Life::Opens => self.way[n].extend(self.last[n]),
            Life::Listens | Life::Dead => {}
        }
    }

    /// What reaches the firewall next, unless it is lost.
    fn pick(&mut self, n: usize) -> Option<Said> {
        let late = if self.chance(15) { self.random.below(3) } else { 0 };
        let said = self.way[n].remove(late.min(self.way[n].len().saturating_sub(1)))?;
        if self.chance(5) {
            self.way[n].push_back(said);
        }
        (!self.chance(5)).then_some(said)
    }

    fn arrive(&mut self, from: Side, said: Said) {
        if self.ends[from.index()].life == Life::Opens {
            self.last[from.index()] = Some(said);
        }
        let segment = self.segment(from, &said);
        self.given.push((self.count, from, said));
        self.give(from, &segment);
    }

    fn segment(&self, from: Side, said: &Said) -> Segment {
        let (us, them) = (&self.ends[from.index()], &self.ends[from.other().index()]);
        let syn = said.flags & SYN != 0;
        Segment {
            flags: said.flags,
            seq: us.isn.wrapping_add(said.at as u32),
            ack: if said.flags & ACK == 0 { 0 } else { them.isn.wrapping_add(said.ack as u32) },
            window: said.window as u16,
            options: us.offered.filter(|_| syn).map_or(Vec::new(), |shift| vec![3, 3, shift]),
            data: said.data as usize,
        }
    }

    fn give(&mut self, from: Side, segment: &Segment) {
        self.count += 1;
        let tuple = if from == Side::Client { self.tuple } else { self.tuple.inverse() };
        for number in self.play.give(from, &segment.packet(&tuple)) {
            let Some(at) = self.given.iter().position(|(n, ..)| *n == number) else { continue };
            let (_, from, said) = self.given.remove(at);
            if !self.chance(5) {
                self.deliver(from, &said);
            }
        }
    }

    /// The other endpoint gets it.
    fn deliver(&mut self, from: Side, said: &Said) {
        let (us, to) = (from.index(), from.other().index());
        let both = self.ends.iter().all(|e| e.offered.is_some());
        let shift = |end: &Endpoint| end.offered.filter(|_| both).unwrap_or(0);
        let their_shift = self.ends[us].shift;
        let end = &mut self.ends[to];
        let answer = match end.life {
            Life::Listens if said.flags == SYN => {
                (end.life, end.shift) = (Life::Opens, shift(end));
                (end.received, end.next, end.right) = (1, 1, 1 + said.window);
                Some(end.say(SYN | ACK, 0, 0))
            }
            Life::Opens if said.flags == SYN | ACK && to == 0 => {
                (end.life, end.shift) = (Life::Open, shift(end));
                (end.received, end.unacked, end.right) = (1, 1, said.ack + said.window);
                Some(end.say(ACK, 1, 0))
            }
            Life::Opens if to == 1 && said.flags == SYN => Some(end.say(SYN | ACK, 0, 0)),
            Life::Opens if to == 1 && said.flags & ACK != 0 => {
                (end.life, end.unacked) = (Life::Open, 1);
                end.hear(said, their_shift)
            }
            Life::Open | Life::Dead => end.hear(said, their_shift),
            Life::Listens | Life::Opens => None,
        };
        self.way[to].extend(answer);
    }

    /// A segment of somebody who knows the addresses and ports, and more or less of the numbers.
    fn guess(&mut self, from: Side) {
        let (us, them) = (&self.ends[from.index()], &self.ends[from.other().index()]);
        let flags = [ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, FIN][self.random.below(8)];
        let near = |random: &mut Random, n: u32| match random.below(6) {
            0 => n,
            1 => n.wrapping_add(random.below(1000) as u32),
            2 => n.wrapping_sub(random.below(1000) as u32),
            3 => n.wrapping_add(random.below(1 << 20) as u32),
            4 => n.wrapping_sub(random.below(1 << 20) as u32),
            _ => random.number() as u32,
        };
        let seq = near(&mut self.random, us.isn.wrapping_add(us.next as u32));
        let ack = near(&mut self.random, them.isn.wrapping_add(them.next as u32));
        let data = if flags & (SYN | RST) == 0 { self.random.below(3) * 500 } else { 0 };
        let segment = Segment { flags, seq, ack, window: self.random.number() as u16, options: Vec::new(), data };
        // The endpoints do not believe it: what it leads to is the trackers' affair alone.
        self.give(from, &segment);
    }
}
