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

/// How many of `count` packets pass, by flags.
fn inject(view: View, phase: Phase, scale: u8, count: u32) -> [u32; 7] {
    let mut cluster = Cluster::new();
    cluster.register();
    let conn = Conn::new(1);
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
    cluster.pass(A, scaled(conn.syn()));
    cluster.deliver();
    cluster.pass(B, scaled(conn.syn_ack()));
    cluster.deliver();
    cluster.pass(A, scaled(conn.ack()));
    cluster.settle();
    let (there, back) = match view {
        View::Full => (A, A),
        View::OneSided => (A, B),
        View::TakenOver => (C, B),
    };
    let mut sent = 0;
    for n in 0..2000 {
        cluster.now = cluster.now + MS;
        assert_eq!(cluster.pass(there, scaled(conn.of_client(Tcp::ACK, sent, n, 1000))), Verdict::Forward, "{n}");
        sent += 1000;
        assert_eq!(cluster.pass(back, scaled(conn.of_server(Tcp::ACK, n, sent, 1))), Verdict::Forward, "{n}");
        cluster.hints.clear();
    }
    if phase == Phase::HalfClosed {
        cluster.pass(there, scaled(conn.of_client(Tcp::ACK | Tcp::FIN, sent, 2000, 0)));
        cluster.deliver();
    }
    let target = if view == View::TakenOver { A } else { there };
    // The dead member sends and receives no hints.
    let deliver = |cluster: &mut Cluster| {
        while !cluster.hints.is_empty() {
            cluster.hints.retain(|(from, to, _)| view != View::TakenOver || ![*from, *to].contains(&C));
            if !cluster.hints.is_empty() {
                cluster.deliver_one();
            }
        }
    };
    let mut random = Random::new(u64::from(scale) + 1);
    let mut passed = [0; 7];
    for n in 0..count {
        // 100,000 packets a second.
        cluster.now = cluster.now + MS / 100;
        if n % 1000 == 0 && (phase == Phase::HalfClosed || view == View::TakenOver) {
            // The server continues, unless a forged segment has reset the connection.
            let acked = if phase == Phase::HalfClosed { sent + 1 } else { sent };
            cluster.pass(back, scaled(conn.of_server(Tcp::ACK, 2000, acked, 0)));
        } else if n % 1000 == 0 {
            // The connection continues.
            let number = 2000 + i64::from(n / 1000);
            cluster.pass(there, scaled(conn.of_client(Tcp::ACK, sent, number as u32, 1000)));
            sent += 1000;
            cluster.pass(back, scaled(conn.of_server(Tcp::ACK, number as u32, sent, 1)));
        }
        let what = n as usize % FLAGS.len();
        let flags = FLAGS[what];
        let client = random.one_in(2);
        let mut packet = if client { conn.of_client(flags, 0, 0, 0) } else { conn.of_server(flags, 0, 0, 0) };
        if let Kind::Tcp(tcp) = &mut packet.kind {
            tcp.seq = random.next() as u32;
            tcp.ack = random.next() as u32;
            tcp.window = random.next() as u16;
            tcp.payload = if flags & (Tcp::RST | Tcp::SYN) == 0 { random.below(1400) as u32 } else { 0 };
        }
        let mut verdict = cluster.pass(target, packet);
        deliver(&mut cluster);
        for _ in 0..2 {
            if verdict.held().is_some() {
                verdict = cluster.pass(target, packet);
                deliver(&mut cluster);
            }
        }
        passed[what] += u32::from(verdict == Verdict::Forward);
        cluster.proposals.clear();
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
