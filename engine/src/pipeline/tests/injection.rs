//! How many packets pass of a blind attacker, who knows both addresses and ports and guesses numbers and flags.

use super::cluster::*;
use super::history::Random;
use crate::parse::{Kind, Packet, Tcp};
use crate::verdict::Verdict;

/// What the member has seen at which the attacker's packets arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    /// Both directions.
    Full,
    /// The client's direction. The server's passes at another member.
    OneSided,
    /// Nothing. The member died that carried the client's direction until a moment ago.
    TakenOver,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    HalfClosed,
}

/// Segments with these flags are injected in turn.
const FLAGS: [u8; 7] =
    [Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::ACK | Tcp::FIN, Tcp::RST, Tcp::RST | Tcp::ACK, Tcp::SYN, Tcp::SYN | Tcp::ACK];

/// The connection under attack.
struct Target {
    cluster: Cluster,
    conn: Conn,
    scale: u8,
    view: View,
    phase: Phase,
    /// The members that carry the client's direction, and the server's.
    paths: (usize, usize),
    /// The offset of the client's next byte.
    sent: u32,
}

impl Target {
    /// Opens a connection and transfers 2000 segments.
    fn new(view: View, phase: Phase, scale: u8) -> Target {
        let paths = match view {
            View::Full => (A, A),
            View::OneSided => (A, B),
            View::TakenOver => (C, B),
        };
        let mut target = Target { cluster: Cluster::new(), conn: Conn::new(1), scale, view, phase, paths, sent: 0 };
        target.cluster.register();
        let handshake = [(A, target.conn.syn()), (B, target.conn.syn_ack()), (A, target.conn.ack())];
        for (at, packet) in handshake {
            target.pass(at, packet);
            target.cluster.deliver();
        }
        target.cluster.settle();
        for n in 0..2000 {
            target.cluster.now = target.cluster.now + MS;
            let data = target.conn.of_client(Tcp::ACK, target.sent, n, 1000);
            assert_eq!(target.pass(paths.0, data), Verdict::Forward, "{n}");
            target.sent += 1000;
            let answer = target.conn.of_server(Tcp::ACK, n, target.sent, 1);
            assert_eq!(target.pass(paths.1, answer), Verdict::Forward, "{n}");
            target.cluster.hints.clear();
        }
        if phase == Phase::HalfClosed {
            let fin = target.conn.of_client(Tcp::ACK | Tcp::FIN, target.sent, 2000, 0);
            target.pass(paths.0, fin);
            target.cluster.deliver();
        }
        target
    }

    /// Passes a packet of the connection, with the scale of its windows.
    fn pass(&mut self, at: usize, mut packet: Packet) -> Verdict {
        if let Kind::Tcp(tcp) = &mut packet.kind {
            tcp.wscale = tcp.wscale.filter(|_| tcp.has(Tcp::SYN)).map(|_| self.scale);
            if !tcp.has(Tcp::SYN) {
                // 16 MiB, as far as the scale allows: no end's default is more.
                tcp.window = 64_240.min((1_u32 << 24 >> self.scale) as u16);
            }
        }
        self.cluster.pass(at, packet)
    }

    /// Delivers the hints, except those from and to a dead member.
    fn deliver(&mut self) {
        let dead = (self.view == View::TakenOver).then_some(C);
        let is_lost = |from: usize, to: usize| dead.is_some_and(|dead| from == dead || to == dead);
        self.cluster.hints.retain(|(from, to, _)| !is_lost(*from, *to));
        while !self.cluster.hints.is_empty() {
            self.cluster.deliver_one();
            self.cluster.hints.retain(|(from, to, _)| !is_lost(*from, *to));
        }
    }

    /// The honest ends continue. `n`: how often they have done so during the attack.
    fn continue_honestly(&mut self, n: u32) {
        if self.phase == Phase::HalfClosed || self.view == View::TakenOver {
            // The server continues, unless a forged segment has reset the connection.
            let acked = if self.phase == Phase::HalfClosed { self.sent + 1 } else { self.sent };
            self.pass(self.paths.1, self.conn.of_server(Tcp::ACK, 2000, acked, 0));
            return;
        }
        self.pass(self.paths.0, self.conn.of_client(Tcp::ACK, self.sent, 2000 + n, 1000));
        self.sent += 1000;
        self.pass(self.paths.1, self.conn.of_server(Tcp::ACK, 2000 + n, self.sent, 1));
    }

    /// Passes a forged packet, and judges it again while it is held.
    fn attack(&mut self, packet: Packet) -> Verdict {
        let at = if self.view == View::TakenOver { A } else { self.paths.0 };
        let mut verdict = self.cluster.pass(at, packet);
        self.deliver();
        for _ in 0..2 {
            if verdict.held().is_some() {
                verdict = self.cluster.pass(at, packet);
                self.deliver();
            }
        }
        self.cluster.proposals.clear();
        verdict
    }
}

/// How many of `count` packets pass, by flags.
fn inject(view: View, phase: Phase, scale: u8, count: u32) -> [u32; 7] {
    let mut target = Target::new(view, phase, scale);
    let mut random = Random::new(u64::from(scale) + 1);
    let mut passed = [0; 7];
    for n in 0..count {
        // 100,000 packets a second.
        target.cluster.now = target.cluster.now + MS / 100;
        if n % 1000 == 0 {
            target.continue_honestly(n / 1000);
        }
        let what = n as usize % FLAGS.len();
        let flags = FLAGS[what];
        let from_client = random.one_in(2);
        let conn = &target.conn;
        let mut packet = if from_client { conn.of_client(flags, 0, 0, 0) } else { conn.of_server(flags, 0, 0, 0) };
        if let Kind::Tcp(tcp) = &mut packet.kind {
            tcp.seq = random.next() as u32;
            tcp.ack = random.next() as u32;
            tcp.window = random.next() as u16;
            tcp.payload = if flags & (Tcp::RST | Tcp::SYN) == 0 { random.below(1400) as u32 } else { 0 };
        }
        passed[what] += u32::from(target.attack(packet) == Verdict::Forward);
    }
    passed
}

fn measure(count: u32) {
    for scale in [14, 7, 0, 10] {
        for view in [View::Full, View::OneSided, View::TakenOver] {
            for phase in [Phase::Open, Phase::HalfClosed] {
                let passed = inject(view, phase, scale, count);
                let all: u32 = passed.iter().sum();
                println!("scale {scale:2}, {view:?}, {phase:?}: {all} of {count} passed, by flags {passed:?}");
                assert!(f64::from(all) <= f64::from(count) * 0.001, "{scale} {view:?} {phase:?} {passed:?}");
            }
        }
    }
}

#[test]
fn blind_attackers_packets_hardly_ever_pass() {
    measure(7000);
}

#[test]
#[ignore = "takes minutes"]
fn blind_attackers_million_packets_hardly_ever_pass() {
    measure(1_000_000);
}
