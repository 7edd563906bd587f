//! Checks on packets that open a session: source, route, policy, limits. The size of a session.

use super::cluster::*;
use crate::addr::Ip;
use crate::table::session::Session;
use crate::testing::{INSIDE, OUTSIDE, SERVER, tuple};
use crate::tuple::Tuple;
use crate::types::{Context, LeaseState};
use crate::verdict::{Reason, Verdict};

#[test]
fn new_packet_is_checked_by_source_then_route_then_policy() {
    let mut cluster = Cluster::new();
    let syn = |tuple: Tuple| Conn { tuple, ..Conn::new(1) }.syn();
    let to = |dst: Ip, port: u16| syn(Tuple { dst, dst_port: port, ..tuple(1) });
    assert_eq!(cluster.process(A, 0, INSIDE, &to(SERVER, 80)), Verdict::Drop(Reason::Antispoof));
    assert_eq!(cluster.process(A, 0, OUTSIDE, &to(Ip::V4([9, 9, 9, 9]), 80)), Verdict::Drop(Reason::NoRoute));
    assert_eq!(cluster.process(A, 0, OUTSIDE, &to(SERVER, 81)), Verdict::Drop(Reason::Policy));
    assert_eq!(cluster.process(A, 0, OUTSIDE, &to(SERVER, 23)), Verdict::Reject(Reason::PolicyReject));
    assert_eq!(cluster.process(A, 0, OUTSIDE, &to(SERVER, 80)), Verdict::Forward);

    let mut context = Context {
        now: cluster.now,
        worker: 0,
        ingress: INSIDE,
        antispoof: false,
        lease: LeaseState::Valid,
        routes: &mut Net,
    };
    let verdict = cluster.members[A].engine.process(&to(SERVER, 443), &mut context, &mut Vec::new());
    assert_eq!(verdict, Verdict::Drop(Reason::Policy), "antispoof is off");
}

#[test]
fn policy_of_a_new_cluster_drops_all() {
    let engine = crate::Engine::new(crate::Config::new(crate::MemberId(1), 1, 0));
    let mut context = Context {
        now: crate::Time(1),
        worker: 0,
        ingress: OUTSIDE,
        antispoof: true,
        lease: LeaseState::Valid,
        routes: &mut Net,
    };
    let verdict = engine.process(&Conn::new(1).syn(), &mut context, &mut Vec::new());
    assert_eq!(verdict, Verdict::Drop(Reason::Policy));
}

#[test]
fn half_open_sessions_of_one_source_are_bounded() {
    let mut cluster = Cluster::with(&["table.half_open_per_source=3"]);
    for n in 1..=3 {
        assert_eq!(cluster.pass(A, Conn::new(n).syn()), Verdict::Forward);
    }
    assert_eq!(cluster.pass(A, Conn::new(4).syn()), Verdict::Drop(Reason::HalfOpenFull));
    assert_eq!(cluster.pass(A, Conn::new(3).syn()), Verdict::Forward, "a retransmitted SYN opens no other session");
    let neighbour = Tuple { src: Ip::V4([10, 0, 1, 77]), ..tuple(5) };
    assert_eq!(cluster.pass(A, Conn { tuple: neighbour, ..Conn::new(5) }.syn()), Verdict::Forward);
    cluster.deliver();
    assert_eq!(cluster.pass(B, Conn::new(4).syn()), Verdict::Drop(Reason::HalfOpenFull), "hints count");
    cluster.now = cluster.now + std::time::Duration::from_secs(120);
    let engine = cluster.members[A].engine.clone();
    engine.tick(cluster.now, &mut Vec::new());
    assert_eq!(engine.counts().half_open, 0);
    assert_eq!(cluster.pass(A, Conn::new(4).syn()), Verdict::Forward);
}

#[test]
#[cfg_attr(feature = "next-level", ignore = "the field of level 2 is for tests: nobody has made room for it")]
fn session_fits_in_256_bytes_with_its_share_of_the_indices() {
    // Two index entries: 5 and 9 bytes (a tag each), in tables that are at least 7/16 full.
    let indices = (5 + 9) * 16 / 7;
    let size = size_of::<Option<Session>>() + indices;
    assert!(size <= 256, "{size}");
}
