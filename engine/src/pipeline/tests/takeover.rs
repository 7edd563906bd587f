//! A member dies: what the others were told of its sessions, and what of their packets passes elsewhere.

use std::time::Duration;

use super::cluster::*;
use super::history::Random;
use crate::event::Progress;
use crate::id::MemberId;
use crate::parse::{Kind, Packet, Tcp};
use crate::progress::TakeoverCounts;
use crate::time::Time;
use crate::verdict::{Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;

/// All members tell all others; the moment up to which `A` did.
pub(super) fn tell(k: &mut Cluster) -> Time {
    let mut until = Time::ZERO;
    for from in 0..k.members.len() {
        let mut told: Vec<Progress> = Vec::new();
        let complete =
            k.members[from].engine.collect_progress(k.now, 1000, true, &mut |progress| told.push(progress.clone()));
        if from == A {
            until = complete;
        }
        for to in (0..k.members.len()).filter(|to| *to != from) {
            told.iter().for_each(|p| k.members[to].engine.merge_progress(k.now, MemberId(from as u64 + 1), p));
        }
    }
    until
}

/// `A` is dead: the others know nothing of what it passed since `told`, and do not ask it.
pub(super) fn dies(k: &mut Cluster, told: Time) {
    for at in [B, C] {
        let member = &mut k.members[at];
        member.engine.mark_blind(told, k.now);
        member.engine.set_silent_peers(1, &mut member.woken);
    }
}

/// Both directions go through `A`, `bytes` a round of 10 ms from the client; the numbers of both ends then.
fn talk(k: &mut Cluster, c: &Conn, from: (u32, u32), rounds: u32, bytes: u32) -> (u32, u32) {
    let (mut sent, mut back) = from;
    for _ in 0..rounds {
        k.now = k.now + 10 * MS;
        for _ in 0..bytes / 50_000 {
            assert_eq!(k.pass(A, c.of_client(Tcp::ACK, sent, back, 50_000)), FORWARD);
            sent = sent.wrapping_add(50_000);
        }
        assert_eq!(k.pass(A, c.of_server(Tcp::ACK, back, sent, 1)), FORWARD);
        back += 1;
    }
    (sent, back)
}

pub(super) fn cluster() -> (Cluster, Conn) {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.register();
    open(&mut k, &c);
    (k, c)
}

#[test]
fn a_bulk_transfer_goes_on_at_once() {
    let (mut k, c) = cluster();
    let at = talk(&mut k, &c, (0, 0), 100, 1_000_000);
    let told = tell(&mut k);
    assert_eq!(told, k.now);
    // 25 MB more, of which nobody hears.
    let (sent, back) = talk(&mut k, &c, at, 25, 1_000_000);
    k.now = k.now + 100 * MS;
    dies(&mut k, told);
    assert_eq!(k.pass(B, c.of_client(Tcp::ACK, sent, back, 1000)), FORWARD);
    assert_eq!(k.pass(C, c.of_server(Tcp::ACK, back, sent + 1000, 1)), FORWARD);
    assert_eq!(k.members[B].engine.takeover_counts(), TakeoverCounts { within_bound: 1, provisional: 0 });
    assert_eq!(k.asks(), 0);
}

#[test]
fn what_is_told_is_complete_up_to_a_moment_and_told_once() {
    let (mut k, _) = cluster();
    for port in 2..20 {
        open(&mut k, &Conn::new(port));
    }
    let engine = k.members[C].engine.clone();
    let (mut told, mut rounds) = (std::collections::BTreeSet::new(), 0);
    while engine.collect_progress(k.now, 2, false, &mut |p| assert!(told.insert(p.id), "told twice: {p:?}")) < k.now {
        rounds += 1;
    }
    assert_eq!((told.len(), rounds > 7), (19, true), "{rounds}");
    engine.collect_progress(k.now, 100, true, &mut |p| panic!("there is nothing new: {p:?}"));
}

#[test]
fn traffic_and_idle_times_are_everybodys() {
    let (mut k, c) = cluster();
    talk(&mut k, &c, (0, 0), 10, 100_000);
    tell(&mut k);
    k.now = k.now + 60_000 * MS;
    let shown = |k: &Cluster, at: usize| {
        let mut all = Vec::new();
        k.members[at].engine.sessions(k.now, &mut |s| {
            all.push((s.traffic, s.idle.as_secs_f64().round() as u64));
            true
        });
        all
    };
    // The handshake's last packet passed at C.
    let [(traffic, idle)] = shown(&k, A)[..] else { panic!("one session") };
    assert_eq!((traffic.original.packets, traffic.reply.packets), (21, 10));
    assert_eq!(idle, 60, "seconds");
    assert_eq!(shown(&k, A), shown(&k, B));
}

/// A connection that was idle, and a forged segment that happens to be within what may have passed unseen: the connection
/// goes on all the same, and what is forged does not become the others' knowledge.
#[test]
fn a_forged_jump_cuts_nobody_off() {
    for client in [true, false] {
        let (mut k, c) = cluster();
        let (sent, back) = talk(&mut k, &c, (0, 0), 10, 100_000);
        let told = tell(&mut k);
        k.now = k.now + 250 * MS;
        dies(&mut k, told);
        let far = sent.wrapping_add(1 << 27);
        let forged = if client { c.of_client(Tcp::ACK, far, back, 1) } else { c.of_server(Tcp::ACK, back, far, 1) };
        assert_eq!(k.pass(B, forged), FORWARD, "it can not be known better");
        tell(&mut k);
        for n in 0..10 {
            k.now = k.now + 10 * MS;
            assert_eq!(k.pass(B, c.of_client(Tcp::ACK, sent + n * 1000, back, 1000)), FORWARD, "{client} {n}");
            assert_eq!(k.pass(B, c.of_server(Tcp::ACK, back, sent + n * 1000, 0)), FORWARD, "{client} {n}");
            assert_eq!(k.pass(C, c.of_server(Tcp::ACK, back, sent + n * 1000, 0)), FORWARD, "{client} {n}");
            tell(&mut k);
        }
    }
}

#[test]
fn it_is_strict_again_as_soon_as_both_directions_have_spoken() {
    let (mut k, c) = cluster();
    let (sent, back) = talk(&mut k, &c, (0, 0), 10, 100_000);
    let told = tell(&mut k);
    k.now = k.now + 250 * MS;
    dies(&mut k, told);
    let jump = 1 << 27;
    assert_eq!(k.pass(B, c.of_client(Tcp::ACK, sent + jump, back, 1)), FORWARD);
    k.now = k.now + MS;
    assert_eq!(k.pass(C, c.of_server(Tcp::ACK, back, sent + jump + 1, 0)), FORWARD);
    tell(&mut k);
    k.hints.clear();
    for at in [B, C] {
        for seq in [0, sent, sent + 3 * jump] {
            let verdict = k.pass(at, c.of_client(Tcp::ACK, seq, back, 1));
            assert!(verdict.held().is_some(), "{at} {seq}: {verdict:?}");
            k.deliver();
            assert_eq!(k.pass(at, c.of_client(Tcp::ACK, seq, back, 1)), Verdict::Drop(Reason::TcpWindow), "{at} {seq}");
            k.now = k.now + 300 * MS;
        }
    }
}

/// Of 100,000 segments of a blind attacker in the first second after the takeover.
#[test]
fn a_blind_attacker_gains_little_by_a_takeover() {
    for (idle, scale) in [(false, 7), (true, 7), (true, 10), (false, 0)] {
        let (mut k, c) = (Cluster::new(), Conn::new(1));
        k.register();
        let scaled = |mut packet: Packet| {
            if let Kind::Tcp(tcp) = &mut packet.kind {
                tcp.wscale = Some(scale);
            }
            packet
        };
        k.pass(A, scaled(c.syn()));
        k.pass(A, scaled(c.syn_ack()));
        k.deliver();
        k.pass(A, c.ack());
        k.settle();
        let (mut sent, back) = talk(&mut k, &c, (0, 0), 10, 50_000);
        let told = tell(&mut k);
        k.now = k.now + 250 * MS;
        dies(&mut k, told);
        let mut random = Random::new(u64::from(scale) + 7);
        let (count, mut passed) = (100_000, 0);
        for n in 0..count {
            k.now = k.now + Duration::from_micros(10);
            if !idle && n % 1000 == 0 {
                assert_eq!(k.pass(B, c.of_client(Tcp::ACK, sent, back, 1000)), FORWARD, "{n}");
                sent += 1000;
                assert_eq!(k.pass(B, c.of_server(Tcp::ACK, back, sent, 0)), FORWARD, "{n}");
            }
            let flags = [Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::ACK | Tcp::FIN, Tcp::RST, Tcp::RST | Tcp::ACK][n % 5];
            let mut packet =
                if random.one_in(2) { c.of_client(flags, 0, 0, 100) } else { c.of_server(flags, 0, 0, 100) };
            if let Kind::Tcp(tcp) = &mut packet.kind {
                (tcp.seq, tcp.ack, tcp.window) = (random.next() as u32, random.next() as u32, random.next() as u16);
            }
            let mut verdict = k.pass(B, packet);
            k.hints.retain(|(from, to, _)| ![*from, *to].contains(&A));
            k.deliver();
            if verdict.held().is_some() {
                verdict = k.pass(B, packet);
            }
            passed += u32::from(verdict == FORWARD);
        }
        println!("idle {idle}, scale {scale}: {passed} of {count}");
        assert!(passed <= 100, "idle {idle}, scale {scale}: {passed} of {count} passed");
    }
}

/// All members lost power. A blind attacker is first at each of them and does not stop; one number of his is even right.
#[test]
fn after_the_loss_of_all_nobody_is_cut_off_by_forged_words() {
    for tries in 1..=100 {
        let (mut k, c) = cluster();
        let far = (1_u32 << 31, 1_u32 << 30);
        for at in [A, B, C] {
            k.restart(at);
        }
        k.register();
        // As the datapath does it: what is held is judged again when an answer has come.
        let pass = |k: &mut Cluster, at: usize, packet: Packet| {
            let verdict = k.pass(at, packet);
            k.deliver();
            if verdict.held().is_some() { k.pass(at, packet) } else { verdict }
        };
        let forged = |n: u32| {
            let (seq, ack) = (far.0.wrapping_add(n << 26), far.1.wrapping_add(n << 27));
            [
                c.of_client(Tcp::ACK, seq, ack, 100),
                // Who stood on both sides could agree with himself.
                c.of_server(Tcp::ACK, ack, seq.wrapping_add(1 << 25), 100),
                c.of_client(Tcp::ACK, far.0, ack, 100),
                c.of_client(Tcp::RST, seq, 0, 0),
                c.of_client(Tcp::RST | Tcp::ACK, seq, far.1, 0),
            ]
        };
        let mut random = Random::new(tries);
        let mut words = 0;
        let mut attack = |k: &mut Cluster, random: &mut Random| {
            for _ in 0..3 {
                let packet = forged(1 + random.next() as u32 % 30)[random.next() as usize % 5];
                let passed = pass(k, [A, B, C][random.next() as usize % 3], packet) == FORWARD;
                let Kind::Tcp(tcp) = &packet.kind else { panic!("it is TCP") };
                assert!(!passed || !tcp.has(Tcp::RST), "{tcp:?}");
                words += u32::from(passed);
            }
        };
        // The client sends until it is answered; the server answers whatever reaches it, also forged.
        let (mut heard, mut rounds) = (false, 0);
        while !heard {
            rounds += 1;
            assert!(rounds <= 10, "it does not go on");
            k.now = k.now + 300 * MS;
            attack(&mut k, &mut random);
            if pass(&mut k, A, c.of_client(Tcp::ACK, far.0, far.1, 1000)) == FORWARD || rounds % 2 == 0 {
                attack(&mut k, &mut random);
                heard = pass(&mut k, B, c.of_server(Tcp::ACK, far.1, far.0 + 1000, 0)) == FORWARD;
            }
        }
        for n in 1..10 {
            k.now = k.now + 300 * MS;
            attack(&mut k, &mut random);
            assert_eq!(pass(&mut k, C, c.of_client(Tcp::ACK, far.0 + n * 1000, far.1, 1000)), FORWARD, "{n}");
            assert_eq!(pass(&mut k, B, c.of_server(Tcp::ACK, far.1, far.0 + (n + 1) * 1000, 0)), FORWARD, "{n}");
        }
        assert!(words < 60, "{tries}: {words} forged ones passed");
    }
}
