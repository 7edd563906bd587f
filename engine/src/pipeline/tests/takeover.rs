//! Progress and takeover: what members publish of their sessions, and which packets pass elsewhere after a member died.

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

/// All members publish their progress to all others. Returns up to when `A`'s is complete.
pub(super) fn publish_progress(cluster: &mut Cluster) -> Time {
    let mut until = Time::ZERO;
    for from in 0..cluster.members.len() {
        let mut published: Vec<Progress> = Vec::new();
        let complete = cluster.members[from]
            .engine
            .collect_progress(cluster.now, 1000, true, &mut |progress| published.push(progress.clone()));
        if from == A {
            until = complete;
        }
        for to in (0..cluster.members.len()).filter(|to| *to != from) {
            published
                .iter()
                .for_each(|p| cluster.members[to].engine.merge_progress(cluster.now, MemberId(from as u64 + 1), p));
        }
    }
    until
}

/// `A` is dead. The others know nothing of what it forwarded after `published_until`, and do not query it.
pub(super) fn member_a_dies(cluster: &mut Cluster, published_until: Time) {
    for at in [B, C] {
        let member = &mut cluster.members[at];
        member.engine.mark_blind(published_until, cluster.now);
        member.engine.set_silent_peers(1, &mut member.woken);
    }
}

/// Transfers `bytes` from the client in each round of 10 ms, both directions through `A`. Returns the offsets of both ends.
fn transfer(cluster: &mut Cluster, conn: &Conn, from: (u32, u32), rounds: u32, bytes: u32) -> (u32, u32) {
    let (mut sent, mut back) = from;
    for _ in 0..rounds {
        cluster.now = cluster.now + 10 * MS;
        for _ in 0..bytes / 50_000 {
            assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, sent, back, 50_000)), FORWARD);
            sent = sent.wrapping_add(50_000);
        }
        assert_eq!(cluster.pass(A, conn.of_server(Tcp::ACK, back, sent, 1)), FORWARD);
        back += 1;
    }
    (sent, back)
}

pub(super) fn connected_cluster() -> (Cluster, Conn) {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.register();
    open(&mut cluster, &conn);
    (cluster, conn)
}

#[test]
fn takeover_of_a_bulk_transfer_passes_within_the_bound() {
    let (mut cluster, conn) = connected_cluster();
    let at = transfer(&mut cluster, &conn, (0, 0), 100, 1_000_000);
    let published_until = publish_progress(&mut cluster);
    assert_eq!(published_until, cluster.now);
    // 25 MB more that `A` does not publish.
    let (sent, back) = transfer(&mut cluster, &conn, at, 25, 1_000_000);
    cluster.now = cluster.now + 100 * MS;
    member_a_dies(&mut cluster, published_until);
    assert_eq!(cluster.pass(B, conn.of_client(Tcp::ACK, sent, back, 1000)), FORWARD);
    assert_eq!(cluster.pass(C, conn.of_server(Tcp::ACK, back, sent + 1000, 1)), FORWARD);
    assert_eq!(cluster.members[B].engine.takeover_counts(), TakeoverCounts { within_bound: 1, provisional: 0 });
    assert_eq!(cluster.asks(), 0);
}

#[test]
fn progress_is_complete_up_to_a_moment_and_published_once() {
    let (mut cluster, _) = connected_cluster();
    for port in 2..20 {
        open(&mut cluster, &Conn::new(port));
    }
    let engine = cluster.members[C].engine.clone();
    let (mut published, mut batches) = (std::collections::BTreeSet::new(), 0);
    while engine
        .collect_progress(cluster.now, 2, false, &mut |p| assert!(published.insert(p.id), "published twice: {p:?}"))
        < cluster.now
    {
        batches += 1;
    }
    assert_eq!(published.len(), 19);
    assert!(batches > 7, "{batches}");
    engine.collect_progress(cluster.now, 100, true, &mut |p| panic!("there is nothing new: {p:?}"));
}

#[test]
fn progress_merges_traffic_and_idle_times_at_all_members() {
    let (mut cluster, conn) = connected_cluster();
    transfer(&mut cluster, &conn, (0, 0), 10, 100_000);
    publish_progress(&mut cluster);
    cluster.now = cluster.now + 60_000 * MS;
    let shown = |cluster: &Cluster, at: usize| {
        let mut all = Vec::new();
        cluster.members[at].engine.sessions(cluster.now, &mut |s| {
            all.push((s.traffic, s.idle.as_secs_f64().round() as u64));
            true
        });
        all
    };
    // The handshake's last packet passed at C.
    let [(traffic, idle)] = shown(&cluster, A)[..] else { panic!("one session") };
    assert_eq!((traffic.original.packets, traffic.reply.packets), (21, 10));
    assert_eq!(idle, 60, "seconds");
    assert_eq!(shown(&cluster, A), shown(&cluster, B));
}

/// A forged segment of an idle connection happens to be within the takeover bound. The connection continues, and
/// other members do not learn the forged number.
#[test]
fn forged_jump_does_not_lock_out() {
    for client in [true, false] {
        let (mut cluster, conn) = connected_cluster();
        let (sent, back) = transfer(&mut cluster, &conn, (0, 0), 10, 100_000);
        let published_until = publish_progress(&mut cluster);
        cluster.now = cluster.now + 250 * MS;
        member_a_dies(&mut cluster, published_until);
        let far = sent.wrapping_add(1 << 27);
        let forged =
            if client { conn.of_client(Tcp::ACK, far, back, 1) } else { conn.of_server(Tcp::ACK, back, far, 1) };
        assert_eq!(cluster.pass(B, forged), FORWARD, "no member knows better");
        publish_progress(&mut cluster);
        for n in 0..10 {
            cluster.now = cluster.now + 10 * MS;
            assert_eq!(cluster.pass(B, conn.of_client(Tcp::ACK, sent + n * 1000, back, 1000)), FORWARD, "{client} {n}");
            assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, back, sent + n * 1000, 0)), FORWARD, "{client} {n}");
            assert_eq!(cluster.pass(C, conn.of_server(Tcp::ACK, back, sent + n * 1000, 0)), FORWARD, "{client} {n}");
            publish_progress(&mut cluster);
        }
    }
}

#[test]
fn takeover_bound_ends_once_both_directions_are_confirmed() {
    let (mut cluster, conn) = connected_cluster();
    let (sent, back) = transfer(&mut cluster, &conn, (0, 0), 10, 100_000);
    let published_until = publish_progress(&mut cluster);
    cluster.now = cluster.now + 250 * MS;
    member_a_dies(&mut cluster, published_until);
    let jump = 1 << 27;
    assert_eq!(cluster.pass(B, conn.of_client(Tcp::ACK, sent + jump, back, 1)), FORWARD);
    cluster.now = cluster.now + MS;
    assert_eq!(cluster.pass(C, conn.of_server(Tcp::ACK, back, sent + jump + 1, 0)), FORWARD);
    publish_progress(&mut cluster);
    cluster.hints.clear();
    for at in [B, C] {
        for seq in [0, sent, sent + 3 * jump] {
            let verdict = cluster.pass(at, conn.of_client(Tcp::ACK, seq, back, 1));
            assert!(verdict.held().is_some(), "{at} {seq}: {verdict:?}");
            cluster.deliver();
            assert_eq!(
                cluster.pass(at, conn.of_client(Tcp::ACK, seq, back, 1)),
                Verdict::Drop(Reason::TcpWindow),
                "{at} {seq}"
            );
            cluster.now = cluster.now + 300 * MS;
        }
    }
}

/// Counts how many of 100,000 segments of a blind attacker pass in the first second after the takeover.
#[test]
fn blind_attacker_gains_little_from_a_takeover() {
    for (idle, scale) in [(false, 7), (true, 7), (true, 10), (false, 0)] {
        let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
        cluster.register();
        let scaled = |mut packet: Packet| {
            if let Kind::Tcp(tcp) = &mut packet.kind {
                tcp.wscale = Some(scale);
            }
            packet
        };
        cluster.pass(A, scaled(conn.syn()));
        cluster.pass(A, scaled(conn.syn_ack()));
        cluster.deliver();
        cluster.pass(A, conn.ack());
        cluster.settle();
        let (mut sent, back) = transfer(&mut cluster, &conn, (0, 0), 10, 50_000);
        let published_until = publish_progress(&mut cluster);
        cluster.now = cluster.now + 250 * MS;
        member_a_dies(&mut cluster, published_until);
        let mut random = Random::new(u64::from(scale) + 7);
        let (count, mut passed) = (100_000, 0);
        for n in 0..count {
            cluster.now = cluster.now + Duration::from_micros(10);
            if !idle && n % 1000 == 0 {
                assert_eq!(cluster.pass(B, conn.of_client(Tcp::ACK, sent, back, 1000)), FORWARD, "{n}");
                sent += 1000;
                assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, back, sent, 0)), FORWARD, "{n}");
            }
            let flags = [Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::ACK | Tcp::FIN, Tcp::RST, Tcp::RST | Tcp::ACK][n % 5];
            let mut packet =
                if random.one_in(2) { conn.of_client(flags, 0, 0, 100) } else { conn.of_server(flags, 0, 0, 100) };
            if let Kind::Tcp(tcp) = &mut packet.kind {
                (tcp.seq, tcp.ack, tcp.window) = (random.next() as u32, random.next() as u32, random.next() as u16);
            }
            let mut verdict = cluster.pass(B, packet);
            cluster.hints.retain(|(from, to, _)| ![*from, *to].contains(&A));
            cluster.deliver();
            if verdict.held().is_some() {
                verdict = cluster.pass(B, packet);
            }
            passed += u32::from(verdict == FORWARD);
        }
        println!("idle {idle}, scale {scale}: {passed} of {count}");
        assert!(passed <= 100, "idle {idle}, scale {scale}: {passed} of {count} passed");
    }
}

/// All members lost power. A blind attacker is first at each of them and does not stop; one of his numbers is even right.
#[test]
fn forged_provisional_segments_after_the_loss_of_all_do_not_lock_out() {
    for tries in 1..=100 {
        let (mut cluster, conn) = connected_cluster();
        let far = (1_u32 << 31, 1_u32 << 30);
        for at in [A, B, C] {
            cluster.restart(at);
        }
        cluster.register();
        // As in the datapath: a held packet is judged again when a reply has come.
        let pass = |cluster: &mut Cluster, at: usize, packet: Packet| {
            let verdict = cluster.pass(at, packet);
            cluster.deliver();
            if verdict.held().is_some() { cluster.pass(at, packet) } else { verdict }
        };
        let forged = |n: u32| {
            let (seq, ack) = (far.0.wrapping_add(n << 26), far.1.wrapping_add(n << 27));
            [
                conn.of_client(Tcp::ACK, seq, ack, 100),
                // An attacker on both sides could corroborate his own segments.
                conn.of_server(Tcp::ACK, ack, seq.wrapping_add(1 << 25), 100),
                conn.of_client(Tcp::ACK, far.0, ack, 100),
                conn.of_client(Tcp::RST, seq, 0, 0),
                conn.of_client(Tcp::RST | Tcp::ACK, seq, far.1, 0),
            ]
        };
        let mut random = Random::new(tries);
        let mut forged_passed = 0;
        let mut attack = |cluster: &mut Cluster, random: &mut Random| {
            for _ in 0..3 {
                let packet = forged(1 + random.next() as u32 % 30)[random.next() as usize % 5];
                let passed = pass(cluster, [A, B, C][random.next() as usize % 3], packet) == FORWARD;
                let Kind::Tcp(tcp) = &packet.kind else { panic!("it is TCP") };
                assert!(!passed || !tcp.has(Tcp::RST), "{tcp:?}");
                forged_passed += u32::from(passed);
            }
        };
        // The client sends until it is answered. The server answers whatever reaches it, forged segments too.
        let (mut answered, mut rounds) = (false, 0);
        while !answered {
            rounds += 1;
            assert!(rounds <= 10, "the connection does not continue");
            cluster.now = cluster.now + 300 * MS;
            attack(&mut cluster, &mut random);
            if pass(&mut cluster, A, conn.of_client(Tcp::ACK, far.0, far.1, 1000)) == FORWARD || rounds % 2 == 0 {
                attack(&mut cluster, &mut random);
                answered = pass(&mut cluster, B, conn.of_server(Tcp::ACK, far.1, far.0 + 1000, 0)) == FORWARD;
            }
        }
        for n in 1..10 {
            cluster.now = cluster.now + 300 * MS;
            attack(&mut cluster, &mut random);
            assert_eq!(pass(&mut cluster, C, conn.of_client(Tcp::ACK, far.0 + n * 1000, far.1, 1000)), FORWARD, "{n}");
            assert_eq!(
                pass(&mut cluster, B, conn.of_server(Tcp::ACK, far.1, far.0 + (n + 1) * 1000, 0)),
                FORWARD,
                "{n}"
            );
        }
        assert!(forged_passed < 60, "{tries}: {forged_passed} forged segments passed");
    }
}
