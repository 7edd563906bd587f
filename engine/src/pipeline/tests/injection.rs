//! A blind attacker: knows both addresses and ports, guesses numbers and flags. What of it passes?

use super::cluster::*;
use super::history::Random;
use crate::parse::{Kind, Packet, Tcp};
use crate::verdict::Verdict;

/// Where the attacker's packets arrive, and what that member has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    /// Both directions.
    Full,
    /// The client's direction; the server's passes elsewhere.
    OneSided,
    /// Nothing: the client's direction came here a moment ago from a member that died.
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

/// Of `count` packets, those that passed, by flags.
fn inject(view: View, phase: Phase, scale: u8, count: u32) -> [u32; 7] {
    let mut k = Cluster::new();
    k.register();
    let c = Conn::new(1);
    let scaled = move |mut packet: Packet| {
        if let Kind::Tcp(tcp) = &mut packet.kind {
            tcp.wscale = tcp.wscale.filter(|_| tcp.has(Tcp::SYN)).map(|_| scale);
            if !tcp.has(Tcp::SYN) {
                // 16 MiB, as far as the scale allows: no end's default is more.
                tcp.window = 64_240.min((1_u32 << 24 >> scale) as u16);
            }
        }
        packet
    };
    k.pass(A, scaled(c.syn()));
    k.deliver();
    k.pass(B, scaled(c.syn_ack()));
    k.deliver();
    k.pass(A, scaled(c.ack()));
    k.settle();
    let (there, back) = match view {
        View::Full => (A, A),
        View::OneSided => (A, B),
        View::TakenOver => (C, B),
    };
    let mut sent = 0;
    for n in 0..2000 {
        k.now = k.now + MS;
        assert_eq!(k.pass(there, scaled(c.of_client(Tcp::ACK, sent, n, 1000))), Verdict::Forward, "{n}");
        sent += 1000;
        assert_eq!(k.pass(back, scaled(c.of_server(Tcp::ACK, n, sent, 1))), Verdict::Forward, "{n}");
        k.hints.clear();
    }
    if phase == Phase::HalfClosed {
        k.pass(there, scaled(c.of_client(Tcp::ACK | Tcp::FIN, sent, 2000, 0)));
        k.deliver();
    }
    let target = if view == View::TakenOver { A } else { there };
    // The member that died says nothing any more.
    let deliver = |k: &mut Cluster| {
        while !k.hints.is_empty() {
            k.hints.retain(|(from, to, _)| view != View::TakenOver || ![*from, *to].contains(&C));
            if !k.hints.is_empty() {
                k.deliver_one();
            }
        }
    };
    let mut random = Random::new(u64::from(scale) + 1);
    let mut passed = [0; 7];
    for n in 0..count {
        // 100,000 packets a second.
        k.now = k.now + MS / 100;
        if n % 1000 == 0 && (phase == Phase::HalfClosed || view == View::TakenOver) {
            // The server goes on, unless a forgery hit.
            let acked = if phase == Phase::HalfClosed { sent + 1 } else { sent };
            k.pass(back, scaled(c.of_server(Tcp::ACK, 2000, acked, 0)));
        } else if n % 1000 == 0 {
            // The connection goes on.
            let number = 2000 + i64::from(n / 1000);
            k.pass(there, scaled(c.of_client(Tcp::ACK, sent, number as u32, 1000)));
            sent += 1000;
            k.pass(back, scaled(c.of_server(Tcp::ACK, number as u32, sent, 1)));
        }
        let what = n as usize % FLAGS.len();
        let flags = FLAGS[what];
        let client = random.one_in(2);
        let mut packet = if client { c.of_client(flags, 0, 0, 0) } else { c.of_server(flags, 0, 0, 0) };
        if let Kind::Tcp(tcp) = &mut packet.kind {
            tcp.seq = random.next() as u32;
            tcp.ack = random.next() as u32;
            tcp.window = random.next() as u16;
            tcp.payload = if flags & (Tcp::RST | Tcp::SYN) == 0 { random.below(1400) as u32 } else { 0 };
        }
        let mut verdict = k.pass(target, packet);
        deliver(&mut k);
        for _ in 0..2 {
            if verdict.held().is_some() {
                verdict = k.pass(target, packet);
                deliver(&mut k);
            }
        }
        passed[what] += u32::from(verdict == Verdict::Forward);
        k.proposals.clear();
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
fn of_a_blind_attackers_packets_hardly_one_passes() {
    measure(7000);
}

#[test]
#[ignore = "takes minutes"]
fn of_a_million_packets_of_a_blind_attacker_hardly_one_passes() {
    measure(1_000_000);
}
