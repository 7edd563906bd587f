//! What an attacker who sends from one side only must not reach where members have lost what they knew of a connection: that its
//! honest ends can not go on.

use std::time::Duration;

use super::cluster::*;
use super::history::Random;
use super::takeover::{cluster, dies, tell};
use crate::parse::{Kind, Packet, Tcp};
use crate::testing::{INSIDE, OUTSIDE};
use crate::time::Time;
use crate::verdict::Verdict;

const FORWARD: Verdict = Verdict::Forward;

fn all_restart(k: &mut Cluster) {
    for at in [A, B, C] {
        k.restart(at);
    }
    k.register();
}

/// What is held is judged again when answers have come. Hints from and to `dead` are lost.
fn pass(k: &mut Cluster, at: usize, packet: Packet, dead: Option<usize>) -> Verdict {
    let verdict = k.pass(at, packet);
    k.hints.retain(|(from, to, _)| Some(*from) != dead && Some(*to) != dead);
    while !k.hints.is_empty() {
        k.deliver_one();
        k.hints.retain(|(from, to, _)| Some(*from) != dead && Some(*to) != dead);
    }
    if verdict.held().is_some() { k.pass(at, packet) } else { verdict }
}

/// The client sends its data again and again through `up`, the server answers through `down` what reaches it.
fn goes_on(k: &mut Cluster, c: &Conn, (up, down): (usize, usize), at: (u32, u32), dead: Option<usize>) -> bool {
    (0..12).any(|n| {
        k.now = k.now + (300 << n.min(5)) * MS;
        pass(k, up, c.of_client(Tcp::ACK, at.0, at.1, 1000), dead) == FORWARD && {
            k.now = k.now + 20 * MS;
            pass(k, down, c.of_server(Tcp::ACK, at.1, at.0.wrapping_add(1000), 0), dead) == FORWARD
        }
    })
}

/// `A` carries the connection and dies, told of last so long ago.
fn lost(k: &mut Cluster, before: Duration) -> Time {
    let told = tell(k);
    k.now = k.now + before;
    dies(k, told);
    told
}

#[test]
fn hits_near_the_handshake_after_the_loss_of_all() {
    let (mut k, c) = cluster();
    all_restart(&mut k);
    k.now = k.now + 5000 * MS;
    assert_eq!(pass(&mut k, A, c.of_client(Tcp::ACK, 100, 100, 10), None), FORWARD);
    k.now = k.now + 1000 * MS;
    assert_eq!(pass(&mut k, A, c.of_client(Tcp::ACK, 5000, 77, 10), None), FORWARD);
    tell(&mut k);
    assert!(goes_on(&mut k, &c, (B, C), (1 << 31, 1 << 30), None));
}

#[test]
fn a_flood_of_random_segments_after_the_loss_of_all() {
    let (mut k, c) = cluster();
    all_restart(&mut k);
    let mut random = Random::new(3);
    let mut passed = 0;
    for n in 0..100_000 {
        k.now = k.now + Duration::from_micros(40);
        let mut packet = c.of_client(Tcp::ACK, 0, 0, 100);
        if let Kind::Tcp(tcp) = &mut packet.kind {
            (tcp.seq, tcp.ack, tcp.window) = (random.next() as u32, random.next() as u32, random.next() as u16);
        }
        passed += u32::from(pass(&mut k, A, packet, None) == FORWARD);
        if n % 2500 == 0 {
            tell(&mut k);
        }
    }
    assert!(passed <= 30, "{passed}");
    assert!(goes_on(&mut k, &c, (B, C), (1 << 31, 1 << 30), None));
}

#[test]
fn a_hit_at_the_one_member_that_restarted() {
    let (mut k, c) = cluster();
    // More than half of what can be compared past its handshake.
    let (end, piece) = (0x6000_0000, 1 << 20);
    for at in (0..end).step_by(piece as usize) {
        k.now = k.now + MS;
        assert_eq!(k.pass(B, c.of_client(Tcp::ACK, at, at, piece)), FORWARD);
        assert_eq!(k.pass(B, c.of_server(Tcp::ACK, at, at + piece, piece)), FORWARD);
    }
    tell(&mut k);
    k.restart(A);
    k.register();
    k.now = k.now + 60_000 * MS;
    pass(&mut k, A, c.of_client(Tcp::ACK, 100, 100, 10), None);
    tell(&mut k);
    assert!(goes_on(&mut k, &c, (B, B), (end, end), None));
}

#[test]
fn a_hit_after_a_takeover_does_not_end_the_doubt() {
    for forged in [None, Some(0), Some(1 << 27)] {
        let (mut k, c) = cluster();
        lost(&mut k, 2000 * MS);
        if let Some(seq) = forged {
            assert_eq!(pass(&mut k, B, c.of_client(Tcp::ACK, seq, 0, 1), Some(A)), FORWARD);
            tell(&mut k);
        }
        assert!(goes_on(&mut k, &c, (B, C), (1 << 29, 1 << 29), Some(A)), "{forged:?}");
    }
}

#[test]
fn a_second_hit_does_not_hide_what_was_known_before_the_first() {
    let (mut k, c) = cluster();
    let told = lost(&mut k, 250 * MS);
    assert_eq!(pass(&mut k, B, c.of_client(Tcp::ACK, 1 << 27, 0, 1), Some(A)), FORWARD);
    k.now = k.now + 200 * MS;
    dies(&mut k, told);
    assert_eq!(pass(&mut k, B, c.of_client(Tcp::ACK, (1 << 27) + (1 << 25), 0, 1), Some(A)), FORWARD);
    tell(&mut k);
    k.now = k.now + 2000 * MS;
    assert!(goes_on(&mut k, &c, (B, B), (0, 0), Some(A)));
}

#[test]
fn a_hit_widens_nothing_at_the_others() {
    for client in [true, false] {
        let (mut k, c) = cluster();
        lost(&mut k, 250 * MS);
        let far = 1 << 27;
        let forged = if client { c.of_client(Tcp::ACK, far, 0, 1) } else { c.of_server(Tcp::ACK, 0, far, 1) };
        assert_eq!(pass(&mut k, B, forged, Some(A)), FORWARD);
        tell(&mut k);
        k.now = k.now + 300 * MS;
        assert_eq!(pass(&mut k, C, c.of_client(Tcp::ACK, 0, 0, 10), Some(A)), FORWARD);
        assert_eq!(pass(&mut k, C, c.of_server(Tcp::ACK, 0, 10, 10), Some(A)), FORWARD);
        assert_eq!(pass(&mut k, C, c.of_client(Tcp::ACK, 10, 10, 0), Some(A)), FORWARD);
        k.now = k.now + 300 * MS;
        assert_ne!(pass(&mut k, C, c.of_client(Tcp::ACK, 1 << 26, 0, 1), Some(A)), FORWARD, "{client}");
        assert!(goes_on(&mut k, &c, (C, C), (10, 10), Some(A)), "{client}");
    }
}

#[test]
fn the_member_that_carries_it_restarts_and_goes_on_carrying_it() {
    for wait in [100, 5000] {
        let (mut k, c) = cluster();
        let (mut at, mut told) = ((0_u32, 0_u32), Time::ZERO);
        for n in 0..125 {
            if n == 100 {
                tell(&mut k);
                told = k.now;
            }
            k.now = k.now + 10 * MS;
            assert_eq!(k.pass(A, c.of_client(Tcp::ACK, at.0, at.1, 1_000_000)), FORWARD);
            at.0 += 1_000_000;
            assert_eq!(k.pass(A, c.of_server(Tcp::ACK, at.1, at.0, 1)), FORWARD);
            at.1 += 1;
        }
        k.restart(A);
        k.register();
        k.now = k.now + wait * MS;
        for m in [B, C] {
            k.members[m].engine.mark_blind(told, k.now);
        }
        assert!(goes_on(&mut k, &c, (A, A), at, None), "after {wait} ms");
    }
}

#[test]
fn one_member_does_not_answer() {
    let (mut k, c) = cluster();
    all_restart(&mut k);
    assert!(goes_on(&mut k, &c, (A, A), (1 << 31, 1 << 30), Some(C)));
}

/// All have found it idle; its numbers become known by a packet that has to wait for the log.
#[test]
fn what_other_workers_hold_is_woken_though_the_session_expires() {
    let (mut k, c) = cluster();
    all_restart(&mut k);
    k.now = k.now + Duration::from_secs(10 * 86_400);
    let mut ids = Vec::new();
    k.members[A].engine.sessions(k.now, &mut |info| {
        ids.push(info.id);
        true
    });
    assert_eq!(k.members[A].engine.inquiry(k.now, &ids).ids().count(), 1);
    let at = (1 << 31, 1 << 30);
    let word = c.of_client(Tcp::ACK, at.0, at.1, 1000);
    // It passes at B, which was not asked.
    assert_eq!(pass(&mut k, B, word, None), FORWARD);
    let next = c.of_client(Tcp::ACK, at.0 + 1000, at.1, 1000);
    let answer = c.of_server(Tcp::ACK, at.1, at.0 + 1000, 0);
    assert!(k.process(A, 1, INSIDE, &answer).held().is_some());
    k.deliver();
    k.members[A].woken.0.clear();
    for worker in [2, 3] {
        assert!(k.process(A, worker, OUTSIDE, &next).held().is_some());
        assert!(k.process(A, worker, OUTSIDE, &next).held().is_some());
    }
    assert!(k.process(A, 1, INSIDE, &answer).held().is_some(), "until the log has it");
    k.settle();
    let woken = k.members[A].woken.0.iter().fold(0, |all, (workers, _)| all | workers);
    assert_eq!(woken & 0b1110, 0b1110, "{woken:b}");
}
