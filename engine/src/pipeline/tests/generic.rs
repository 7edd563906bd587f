//! UDP, echo, ICMP errors, fragments.

use super::cluster::*;
use crate::event::{Event, Hint};
use crate::parse::{Embedded, Fragment, Kind, Packet};
use crate::replica::Outcome;
use crate::testing::{CLIENT, INSIDE, OUTSIDE, SERVER};
use crate::tuple::{Protocol, Tuple};
use crate::verdict::{HoldClass, Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;

fn udp(port: u16) -> Tuple {
    Tuple { src: CLIENT, dst: SERVER, src_port: port, dst_port: 53, protocol: Protocol::UDP }
}

fn echo(id: u16) -> Tuple {
    Tuple { src: CLIENT, dst: SERVER, src_port: id, dst_port: 0, protocol: Protocol::ICMP }
}

#[test]
fn udp_becomes_assured_and_waits_for_nothing() {
    let mut k = Cluster::new();
    let (ask, reply) = (other(udp(7), Kind::Udp), other(udp(7).inverse(), Kind::Udp));
    assert_eq!(k.pass(A, ask), FORWARD);
    k.deliver();
    assert_eq!(k.states(B), ["UNREPLIED"]);
    assert_eq!(k.pass(A, ask), FORWARD);
    assert!(k.hints.is_empty() && k.proposals.is_empty());
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.hints.len(), 2);
    k.deliver();
    assert_eq!(k.states(A), ["REPLIED"]);
    assert_eq!(k.pass(C, ask), FORWARD);
    assert_eq!(k.pass(C, ask), FORWARD);
    assert_eq!(k.proposals.len(), 1);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.states(A), ["ASSURED"]);
    assert_eq!(k.pass(A, reply), FORWARD);
    assert_eq!(k.pass(B, ask), FORWARD);
}

#[test]
fn a_reply_before_the_hint_is_held_and_a_forbidden_packet_is_held_once() {
    let mut k = Cluster::new();
    let (ask, reply) = (other(udp(7), Kind::Udp), other(udp(7).inverse(), Kind::Udp));
    k.pass(A, ask);
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched));
    k.deliver();
    assert_eq!(k.members[B].woken.0.len(), 1);
    assert_eq!(k.pass(B, reply), FORWARD);

    let forbidden = other(Tuple { dst_port: 54, ..udp(7) }, Kind::Udp);
    assert_eq!(k.pass(B, forbidden).held(), Some(HoldClass::Unmatched));
    k.deliver();
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(B, forbidden), Verdict::Drop(Reason::Policy));
}

#[test]
fn opposite_half_opens_merge_to_the_lower_id() {
    let mut k = Cluster::new();
    k.policy(&format!("{}accept \"back\" from inside to outside: any -> any udp\n", crate::testing::POLICY));
    let (ask, reply) = (other(udp(7), Kind::Udp), other(udp(7).inverse(), Kind::Udp));
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.pass(A, ask), FORWARD);
    k.deliver();
    for m in [A, B, C] {
        let mut all = Vec::new();
        k.members[m].engine.half_opens(&mut |h| all.push((h.id.member.0, h.original)));
        assert_eq!(all, [(1, udp(7))], "at {m}");
    }
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.pass(A, ask), FORWARD);
    assert_eq!(k.settle(), [Outcome::Accepted]);
}

#[test]
fn echo_requests_ask_and_replies_answer() {
    let mut k = Cluster::new();
    let (request, reply) = (other(echo(9), Kind::EchoRequest), other(echo(9).inverse(), Kind::EchoReply));
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched), "a reply opens nothing");
    k.hints.clear();
    assert_eq!(k.pass(A, request), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.pass(B, other(echo(9).inverse(), Kind::EchoRequest)), Verdict::Drop(Reason::NoSession));
    let denied = other(Tuple { src: SERVER, dst: CLIENT, ..echo(4) }, Kind::EchoRequest);
    assert_eq!(k.pass(A, denied), Verdict::Drop(Reason::Policy), "a request is nobody's reply");
}

fn error(embedded: Tuple, seq: Option<u32>) -> Packet {
    let router = crate::addr::Ip::V4([10, 0, 2, 99]);
    let tuple = Tuple { src: router, dst: embedded.src, src_port: 0, dst_port: 0, protocol: Protocol::ICMP };
    other(tuple, Kind::IcmpError(Embedded { tuple: embedded, seq }))
}

#[test]
fn errors_are_related_to_what_was_sent() {
    let (mut k, c) = established(1);
    let unrelated = Verdict::Drop(Reason::IcmpUnrelated);
    assert_eq!(k.pass(B, error(c.tuple, Some(c.client + 1))), FORWARD);
    assert_eq!(k.pass(B, error(c.tuple, Some(c.client + (1 << 30)))), unrelated);
    assert_eq!(k.pass(B, error(Conn::new(2).tuple, Some(1))), unrelated);
    assert_eq!(k.process(B, 0, OUTSIDE, &error(c.tuple, Some(c.client + 1))), Verdict::Drop(Reason::WrongZone));
    let mut elsewhere = error(c.tuple, Some(c.client + 1));
    elsewhere.tuple.dst = SERVER;
    assert_eq!(k.process(B, 0, INSIDE, &elsewhere), unrelated);

    let half = Conn::new(3);
    k.pass(A, half.syn());
    assert_eq!(k.pass(A, error(half.tuple, Some(half.client))), FORWARD, "a SYN that is too big, or has no host");
    assert_eq!(k.pass(A, error(half.tuple, Some(half.client - 1))), unrelated);

    k.pass(A, other(udp(7), Kind::Udp));
    assert_eq!(k.pass(A, error(udp(7), None)), FORWARD);
    assert!(k.members[A].engine.counts().sessions.iter().all(|s| s.0 != Protocol::ICMP), "an error opens nothing");
}

#[test]
fn following_fragments_share_the_fate_of_the_first() {
    let mut k = Cluster::new();
    let id = |id| Fragment { id, offset: 0, more: true };
    let follows = |n| {
        let tuple = Tuple { src_port: 0, dst_port: 0, ..udp(0) };
        other(tuple, Kind::Fragment(Fragment { offset: 1480, more: false, ..id(n) }))
    };
    assert_eq!(k.pass(A, follows(1)), Verdict::Drop(Reason::Fragment));
    let first = Packet { fragment: Some(id(1)), ..other(udp(7), Kind::Udp) };
    assert_eq!(k.pass(A, first), FORWARD);
    assert_eq!(k.pass(A, first), Verdict::Drop(Reason::Fragment), "a second first one overlaps");
    assert_eq!(k.pass(A, follows(1)), FORWARD);
    assert_eq!(k.pass(A, follows(1)), Verdict::Drop(Reason::Fragment), "a copy");
    assert_eq!(k.pass(A, follows(2)), Verdict::Drop(Reason::Fragment));
    let denied = Packet { fragment: Some(id(3)), ..other(Tuple { dst_port: 9, ..udp(7) }, Kind::Udp) };
    assert_ne!(k.pass(A, denied), FORWARD);
    assert_eq!(k.pass(A, follows(3)), Verdict::Drop(Reason::Fragment));
    k.now = k.now + 30_001 * MS;
    assert_eq!(k.pass(A, follows(1)), Verdict::Drop(Reason::Fragment));
}

#[test]
fn hints_that_make_no_sense_are_ignored() {
    let mut k = Cluster::new();
    let mut open = crate::testing::half_open(crate::testing::tuple(1), 7);
    open.reply = open.original;
    k.hints.push((A, B, Hint::HalfOpen(Box::new(open))));
    let mut open = crate::testing::half_open(udp(7), 8);
    open.id.counter = 9;
    k.hints.push((A, B, Hint::HalfOpen(Box::new(open))));
    k.hints.push((A, B, Hint::Abort(open.id)));
    k.hints.push((A, B, Hint::Rst { id: open.id }));
    k.hints.push((A, B, Hint::Ask(udp(1))));
    k.deliver();
    assert_eq!(k.members[B].engine.counts().half_open, 0);
    let mut events: Vec<Event> = Vec::new();
    k.members[B].engine.tick(k.now, &mut events);
    assert!(events.is_empty());
}
