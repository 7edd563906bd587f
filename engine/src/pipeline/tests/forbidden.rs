//! A session that a new policy forbids: its packets are dropped at once, and it does not come back with a later policy.

use super::cluster::*;
use crate::parse::{Embedded, Kind, Packet};
use crate::replica::{Command, ForbiddenSessions, Outcome};
use crate::testing::POLICY;
use crate::verdict::{Reason, Verdict};

const BLOCKED: &str = "zone outside, inside\ndrop \"web\" from any to any: any -> any tcp/80\n";

/// Has a leader sweep the table, and the result applied. Returns the number of forbidden sessions.
fn sweep(k: &mut Cluster, leader: usize) -> usize {
    let engine = k.members[leader].engine.clone();
    let (mut sweep, mut sessions) = (engine.begin_sweep().unwrap(), Vec::new());
    while sweep.step(&engine, &mut sessions) {}
    let (found, generation) = (sessions.len(), sweep.generation());
    k.append(leader, vec![Command::RevokeForbidden(ForbiddenSessions { generation, sessions })]);
    assert_eq!(k.apply_all(), [Outcome::Accepted]);
    found
}

/// An ICMP error about a segment of the client.
fn unreachable(conn: &Conn) -> Packet {
    let quoted = Embedded { tuple: conn.tuple, seq: Some(conn.client.wrapping_add(1)) };
    let mut tuple = conn.tuple.inverse();
    tuple.protocol = crate::tuple::Protocol::ICMP;
    other(tuple, Kind::IcmpError(quoted))
}

#[test]
fn forbidden_session_is_dropped_in_both_directions_and_does_not_come_back() {
    let (mut k, conn) = established(1);
    assert_eq!(k.pass(A, unreachable(&conn)), Verdict::Forward);
    k.policy(BLOCKED);
    for at in [A, B, C] {
        assert_eq!(k.pass(at, conn.data()), Verdict::Drop(Reason::Policy));
        assert_eq!(k.pass(at, conn.of_server(crate::parse::Tcp::ACK, 0, 0, 0)), Verdict::Drop(Reason::Policy));
        assert_eq!(k.pass(at, unreachable(&conn)), Verdict::Drop(Reason::Policy));
        assert_eq!(k.states(at), ["ESTABLISHED"], "it stays until it is revoked");
    }
    // Whoever leads finds it, and once it is gone nobody finds it again.
    assert_eq!([A, B, C].map(|leader| sweep(&mut k, leader)), [1, 0, 0]);
    k.policy(POLICY);
    for at in [A, B, C] {
        assert!(k.states(at).is_empty());
        assert_ne!(k.pass(at, conn.data()), Verdict::Forward, "at {at}");
        assert_ne!(k.pass(at, unreachable(&conn)), Verdict::Forward, "at {at}");
    }
}

#[test]
fn session_of_the_new_policy_survives_the_sweep() {
    let (mut k, conn) = established(1);
    k.policy(POLICY);
    let new = Conn::new(2);
    open(&mut k, &new);
    assert_eq!(sweep(&mut k, B), 0);
    for at in [A, B, C] {
        assert_eq!(k.states(at), ["ESTABLISHED", "ESTABLISHED"]);
        assert_eq!(k.pass(at, conn.data()), Verdict::Forward);
        assert_eq!(k.pass(at, new.data()), Verdict::Forward);
    }
}
