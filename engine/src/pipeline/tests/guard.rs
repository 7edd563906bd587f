//! Sources, routes, policy; sizes.

use super::cluster::*;
use crate::addr::Ip;
use crate::table::session::Session;
use crate::testing::{INSIDE, OUTSIDE, SERVER, tuple};
use crate::tuple::Tuple;
use crate::types::{Context, LeaseState};
use crate::verdict::{Reason, Verdict};

#[test]
fn source_route_and_policy_are_asked_in_this_order() {
    let mut k = Cluster::new();
    let syn = |tuple: Tuple| Conn { tuple, ..Conn::new(1) }.syn();
    let to = |dst: Ip, port: u16| syn(Tuple { dst, dst_port: port, ..tuple(1) });
    assert_eq!(k.process(A, 0, INSIDE, &to(SERVER, 80)), Verdict::Drop(Reason::Antispoof));
    assert_eq!(k.process(A, 0, OUTSIDE, &to(Ip::V4([9, 9, 9, 9]), 80)), Verdict::Drop(Reason::NoRoute));
    assert_eq!(k.process(A, 0, OUTSIDE, &to(SERVER, 81)), Verdict::Drop(Reason::Policy));
    assert_eq!(k.process(A, 0, OUTSIDE, &to(SERVER, 23)), Verdict::Reject(Reason::PolicyReject));
    assert_eq!(k.process(A, 0, OUTSIDE, &to(SERVER, 80)), Verdict::Forward);

    let mut context = Context {
        now: k.now,
        worker: 0,
        ingress: INSIDE,
        antispoof: false,
        lease: LeaseState::Valid,
        routes: &mut Net,
    };
    let verdict = k.members[A].engine.process(&to(SERVER, 443), &mut context, &mut Vec::new());
    assert_eq!(verdict, Verdict::Drop(Reason::Policy), "antispoof is off");
}

#[test]
fn the_policy_of_a_new_cluster_drops_all() {
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
fn a_source_has_its_share_of_the_half_open_table() {
    let mut k = Cluster::with(|config| config.max_half_open_per_source = 3);
    for n in 1..=3 {
        assert_eq!(k.pass(A, Conn::new(n).syn()), Verdict::Forward);
    }
    assert_eq!(k.pass(A, Conn::new(4).syn()), Verdict::Drop(Reason::HalfOpenFull));
    assert_eq!(k.pass(A, Conn::new(3).syn()), Verdict::Forward, "a SYN again is no other session");
    let neighbour = Tuple { src: Ip::V4([10, 0, 1, 77]), ..tuple(5) };
    assert_eq!(k.pass(A, Conn { tuple: neighbour, ..Conn::new(5) }.syn()), Verdict::Forward);
    k.deliver();
    assert_eq!(k.pass(B, Conn::new(4).syn()), Verdict::Drop(Reason::HalfOpenFull), "hints count");
    k.now = k.now + std::time::Duration::from_secs(120);
    let engine = k.members[A].engine.clone();
    engine.tick(k.now, &mut Vec::new());
    assert_eq!(engine.counts().half_open, 0);
    assert_eq!(k.pass(A, Conn::new(4).syn()), Verdict::Forward);
}

#[test]
fn a_session_fits_in_256_bytes_with_its_share_of_the_indices() {
    // Two index entries: 5 and 9 bytes (a tag each), in tables that are at least 7/16 full.
    let indices = (5 + 9) * 16 / 7;
    let size = size_of::<Option<Session>>() + indices;
    assert!(size <= 256, "{size}");
}
