//! Members have lost their knowledge of a connection, and an attacker sends from one side. He must not lock the honest ends out.

use std::time::Duration;

use super::cluster::*;
use super::history::Random;
use super::takeover::{connected_cluster, member_a_dies, publish_progress};
use crate::parse::{Kind, Packet, Tcp};
use crate::testing::{INSIDE, OUTSIDE};
use crate::time::Time;
use crate::verdict::Verdict;
use crate::worker_set::WorkerSet;

const FORWARD: Verdict = Verdict::Forward;

fn all_restart(cluster: &mut Cluster) {
    for at in [A, B, C] {
        cluster.restart(at);
    }
    cluster.register();
}

/// Judges a packet, and judges it again if it was held, after replies have come. Hints from and to `dead` are lost.
fn pass(cluster: &mut Cluster, at: usize, packet: Packet, dead: Option<usize>) -> Verdict {
    let verdict = cluster.pass(at, packet);
    cluster.hints.retain(|(from, to, _)| Some(*from) != dead && Some(*to) != dead);
    while !cluster.hints.is_empty() {
        cluster.deliver_one();
        cluster.hints.retain(|(from, to, _)| Some(*from) != dead && Some(*to) != dead);
    }
    if verdict.held().is_some() { cluster.pass(at, packet) } else { verdict }
}

/// Whether the connection continues: the client retransmits its data through `up`, the server answers through `down` what
/// reaches it.
fn connection_continues(
    cluster: &mut Cluster,
    conn: &Conn,
    (up, down): (usize, usize),
    at: (u32, u32),
    dead: Option<usize>,
) -> bool {
    (0..12).any(|n| {
        cluster.now = cluster.now + (300 << n.min(5)) * MS;
        pass(cluster, up, conn.of_client(Tcp::ACK, at.0, at.1, 1000), dead) == FORWARD && {
            cluster.now = cluster.now + 20 * MS;
            pass(cluster, down, conn.of_server(Tcp::ACK, at.1, at.0.wrapping_add(1000), 0), dead) == FORWARD
        }
    })
}

/// `A` carries the connection and dies. Its last progress is `before` old.
fn member_a_is_lost(cluster: &mut Cluster, before: Duration) -> Time {
    let published_until = publish_progress(cluster);
    cluster.now = cluster.now + before;
    member_a_dies(cluster, published_until);
    published_until
}

#[test]
fn forged_segments_near_the_handshake_after_the_loss_of_all_do_not_lock_out() {
    let (mut cluster, conn) = connected_cluster();
    all_restart(&mut cluster);
    cluster.now = cluster.now + 5000 * MS;
    assert_eq!(pass(&mut cluster, A, conn.of_client(Tcp::ACK, 100, 100, 10), None), FORWARD);
    cluster.now = cluster.now + 1000 * MS;
    assert_eq!(pass(&mut cluster, A, conn.of_client(Tcp::ACK, 5000, 77, 10), None), FORWARD);
    publish_progress(&mut cluster);
    assert!(connection_continues(&mut cluster, &conn, (B, C), (1 << 31, 1 << 30), None));
}

#[test]
fn forged_flood_after_the_loss_of_all_does_not_lock_out() {
    let (mut cluster, conn) = connected_cluster();
    all_restart(&mut cluster);
    let mut random = Random::new(3);
    let mut passed = 0;
    for n in 0..100_000 {
        cluster.now = cluster.now + Duration::from_micros(40);
        let mut packet = conn.of_client(Tcp::ACK, 0, 0, 100);
        if let Kind::Tcp(tcp) = &mut packet.kind {
            (tcp.seq, tcp.ack, tcp.window) = (random.next() as u32, random.next() as u32, random.next() as u16);
        }
        passed += u32::from(pass(&mut cluster, A, packet, None) == FORWARD);
        if n % 2500 == 0 {
            publish_progress(&mut cluster);
        }
    }
    assert!(passed <= 30, "{passed}");
    assert!(connection_continues(&mut cluster, &conn, (B, C), (1 << 31, 1 << 30), None));
}

#[test]
fn forged_segment_at_the_restarted_member_does_not_lock_out() {
    let (mut cluster, conn) = connected_cluster();
    // Beyond the handshake by more than half of the distance at which numbers are comparable.
    let (end, piece) = (0x6000_0000, 1 << 20);
    for at in (0..end).step_by(piece as usize) {
        cluster.now = cluster.now + MS;
        assert_eq!(cluster.pass(B, conn.of_client(Tcp::ACK, at, at, piece)), FORWARD);
        assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, at, at + piece, piece)), FORWARD);
    }
    publish_progress(&mut cluster);
    cluster.restart(A);
    cluster.register();
    cluster.now = cluster.now + 60_000 * MS;
    pass(&mut cluster, A, conn.of_client(Tcp::ACK, 100, 100, 10), None);
    publish_progress(&mut cluster);
    assert!(connection_continues(&mut cluster, &conn, (B, B), (end, end), None));
}

#[test]
fn forged_segment_after_a_takeover_does_not_confirm_both_directions() {
    for forged in [None, Some(0), Some(1 << 27)] {
        let (mut cluster, conn) = connected_cluster();
        member_a_is_lost(&mut cluster, 2000 * MS);
        if let Some(seq) = forged {
            assert_eq!(pass(&mut cluster, B, conn.of_client(Tcp::ACK, seq, 0, 1), Some(A)), FORWARD);
            publish_progress(&mut cluster);
        }
        assert!(connection_continues(&mut cluster, &conn, (B, C), (1 << 29, 1 << 29), Some(A)), "{forged:?}");
    }
}

#[test]
fn forged_second_jump_keeps_what_was_confirmed_before_the_first() {
    let (mut cluster, conn) = connected_cluster();
    let published_until = member_a_is_lost(&mut cluster, 250 * MS);
    assert_eq!(pass(&mut cluster, B, conn.of_client(Tcp::ACK, 1 << 27, 0, 1), Some(A)), FORWARD);
    cluster.now = cluster.now + 200 * MS;
    member_a_dies(&mut cluster, published_until);
    assert_eq!(pass(&mut cluster, B, conn.of_client(Tcp::ACK, (1 << 27) + (1 << 25), 0, 1), Some(A)), FORWARD);
    publish_progress(&mut cluster);
    cluster.now = cluster.now + 2000 * MS;
    assert!(connection_continues(&mut cluster, &conn, (B, B), (0, 0), Some(A)));
}

#[test]
fn forged_segment_widens_no_window_at_other_members() {
    for client in [true, false] {
        let (mut cluster, conn) = connected_cluster();
        member_a_is_lost(&mut cluster, 250 * MS);
        let far = 1 << 27;
        let forged = if client { conn.of_client(Tcp::ACK, far, 0, 1) } else { conn.of_server(Tcp::ACK, 0, far, 1) };
        assert_eq!(pass(&mut cluster, B, forged, Some(A)), FORWARD);
        publish_progress(&mut cluster);
        cluster.now = cluster.now + 300 * MS;
        assert_eq!(pass(&mut cluster, C, conn.of_client(Tcp::ACK, 0, 0, 10), Some(A)), FORWARD);
        assert_eq!(pass(&mut cluster, C, conn.of_server(Tcp::ACK, 0, 10, 10), Some(A)), FORWARD);
        assert_eq!(pass(&mut cluster, C, conn.of_client(Tcp::ACK, 10, 10, 0), Some(A)), FORWARD);
        cluster.now = cluster.now + 300 * MS;
        assert_ne!(pass(&mut cluster, C, conn.of_client(Tcp::ACK, 1 << 26, 0, 1), Some(A)), FORWARD, "{client}");
        assert!(connection_continues(&mut cluster, &conn, (C, C), (10, 10), Some(A)), "{client}");
    }
}

#[test]
fn restart_of_the_carrying_member_loses_no_connection() {
    for wait in [100, 5000] {
        let (mut cluster, conn) = connected_cluster();
        let (mut at, mut published_until) = ((0_u32, 0_u32), Time::ZERO);
        for n in 0..125 {
            if n == 100 {
                publish_progress(&mut cluster);
                published_until = cluster.now;
            }
            cluster.now = cluster.now + 10 * MS;
            assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, at.0, at.1, 1_000_000)), FORWARD);
            at.0 += 1_000_000;
            assert_eq!(cluster.pass(A, conn.of_server(Tcp::ACK, at.1, at.0, 1)), FORWARD);
            at.1 += 1;
        }
        cluster.restart(A);
        cluster.register();
        cluster.now = cluster.now + wait * MS;
        for m in [B, C] {
            cluster.members[m].engine.mark_blind(published_until, cluster.now);
        }
        assert!(connection_continues(&mut cluster, &conn, (A, A), at, None), "after {wait} ms");
    }
}

#[test]
fn provisional_segments_suffice_if_one_member_does_not_reply() {
    let (mut cluster, conn) = connected_cluster();
    all_restart(&mut cluster);
    assert!(connection_continues(&mut cluster, &conn, (A, A), (1 << 31, 1 << 30), Some(C)));
}

/// All members found the session idle. A packet that has to wait for the log corroborates its numbers.
#[test]
fn corroboration_wakes_other_workers_although_the_session_expires() {
    let (mut cluster, conn) = connected_cluster();
    all_restart(&mut cluster);
    cluster.now = cluster.now + Duration::from_secs(10 * 86_400);
    let mut ids = Vec::new();
    cluster.members[A].engine.sessions(cluster.now, &mut |info| {
        ids.push(info.id);
        true
    });
    assert_eq!(cluster.members[A].engine.probe_idle(cluster.now, &ids).ids().count(), 1);
    let at = (1 << 31, 1 << 30);
    let provisional = conn.of_client(Tcp::ACK, at.0, at.1, 1000);
    // It passes at B, which was not asked whether the session is idle.
    assert_eq!(pass(&mut cluster, B, provisional, None), FORWARD);
    let next = conn.of_client(Tcp::ACK, at.0 + 1000, at.1, 1000);
    let answer = conn.of_server(Tcp::ACK, at.1, at.0 + 1000, 0);
    assert!(cluster.process(A, 1, INSIDE, &answer).held().is_some());
    cluster.deliver();
    cluster.members[A].woken.0.clear();
    for worker in [2, 3] {
        assert!(cluster.process(A, worker, OUTSIDE, &next).held().is_some());
        assert!(cluster.process(A, worker, OUTSIDE, &next).held().is_some());
    }
    assert!(cluster.process(A, 1, INSIDE, &answer).held().is_some(), "until the Refresh is committed");
    cluster.settle();
    let woken = cluster.members[A].woken.0.iter().fold(WorkerSet::EMPTY, |all, (workers, _)| all | *workers);
    assert!([1, 2, 3].into_iter().all(|worker| woken.contains(worker)), "{woken:?}");
}
