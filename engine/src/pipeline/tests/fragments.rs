//! Fragments, in any order and through any member.

use super::cluster::*;
use crate::addr::Ip;
use crate::event::{FragmentKey, Hint};
use crate::parse::{Fragment, IpOption, Kind, Packet};
use crate::testing::{CLIENT, INSIDE, OUTSIDE, SERVER};
use crate::tuple::{Protocol, Tuple};
use crate::types::LeaseState;
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};
use crate::worker_set::WorkerSet;

const FORWARD: Verdict = Verdict::Forward;
const DROP: Verdict = Verdict::Drop(Reason::Fragment);

fn udp(dst_port: u16) -> Tuple {
    Tuple { src: CLIENT, dst: SERVER, src_port: 7, dst_port, protocol: Protocol::UDP }
}

/// The first fragment of a datagram to a port: 1480 bytes of it.
fn first(id: u32, dst_port: u16) -> Packet {
    let part = Fragment { id, offset: 0, length: 1480, more: true };
    Packet { fragment: Some(part), ..other(udp(dst_port), Kind::Udp) }
}

/// The fragment at a byte offset; the one at 2960 is the last.
fn follows(id: u32, offset: u16) -> Packet {
    let part = Fragment { id, offset, length: 1480, more: offset != 2960 };
    let tuple = Tuple { src_port: 0, dst_port: 0, ..udp(0) };
    other(tuple, Kind::Fragment(part))
}

/// The key of a verdict that holds a fragment.
fn held(verdict: Verdict) -> HoldKey {
    match verdict {
        Verdict::Hold(key, HoldClass::Fragment) => key,
        other => panic!("{other:?}"),
    }
}

fn hints(k: &Cluster) -> Vec<&Hint> {
    k.hints.iter().filter(|(_, _, hint)| hint.is_low_priority()).map(|(_, _, hint)| hint).collect()
}

#[test]
fn fragment_gets_the_verdict_of_the_first() {
    let mut k = Cluster::new();
    assert_eq!(k.pass(A, first(1, 53)), FORWARD);
    assert_eq!(k.pass(A, first(1, 53)), DROP, "a second first fragment overlaps");
    assert_eq!(k.pass(A, follows(1, 2960)), FORWARD);
    assert_eq!(k.pass(A, follows(1, 2960)), DROP, "a duplicate");
    assert_eq!(k.pass(A, follows(1, 1472)), DROP, "it overlaps the first fragment");
    assert_eq!(k.process(A, 5, INSIDE, &follows(1, 1480)).held(), Some(HoldClass::Fragment), "from another zone");
    assert_eq!(k.pass(A, follows(1, 1480)), FORWARD);
    k.now = k.now + 30_001 * MS;
    held(k.pass(A, follows(1, 1480)));
}

#[test]
fn fragment_before_the_first_is_held_until_it_arrives() {
    let mut k = Cluster::new();
    let key = held(k.process(A, 2, OUTSIDE, &follows(1, 2960)));
    assert_eq!(held(k.process(A, 4, OUTSIDE, &follows(1, 1480))), key);
    held(k.process(A, 4, OUTSIDE, &follows(2, 1480)));
    assert!(k.members[A].woken.0.is_empty());
    assert_eq!(k.pass(A, first(1, 53)), FORWARD);
    assert_eq!(k.members[A].woken.0, [(WorkerSet::from([2, 4]), key)]);
    assert_eq!(k.pass(A, follows(1, 2960)), FORWARD);
    assert_eq!(k.pass(A, follows(1, 1480)), FORWARD);
}

#[test]
fn fragment_after_dropped_first_is_dropped() {
    let mut k = Cluster::new();
    let key = held(k.process(A, 2, OUTSIDE, &follows(1, 1480)));
    let denied = first(1, 9);
    assert_eq!(k.pass(A, denied), Verdict::Drop(Reason::Policy));
    assert_eq!(k.members[A].woken.0, [(WorkerSet::of(2), key)]);
    assert_eq!(k.pass(A, follows(1, 1480)), DROP);
    // The first fragment is rejected, or has an option that the policy does not allow.
    let rejected = first(2, 23);
    let tcp = Conn { tuple: Tuple { protocol: Protocol::TCP, ..rejected.tuple }, ..Conn::new(1) }.syn();
    let rejected = Packet { fragment: rejected.fragment, ..tcp };
    assert_eq!(k.pass(A, rejected), Verdict::Reject(Reason::PolicyReject));
    let part = follows(2, 1480);
    let of_tcp = Packet { tuple: Tuple { protocol: Protocol::TCP, ..part.tuple }, ..part };
    assert_eq!(k.pass(A, of_tcp), DROP);
    let option = Packet { options: [IpOption::Timestamp].into_iter().collect(), ..first(3, 53) };
    assert_eq!(k.pass(A, option), Verdict::Drop(Reason::IpOption));
    assert_eq!(k.pass(A, follows(3, 1480)), DROP);
    // A forged first fragment that is dropped does not affect the true one, before or after it.
    assert_eq!(k.pass(A, first(3, 53)), FORWARD);
    assert_eq!(k.pass(A, option), Verdict::Drop(Reason::IpOption));
    assert_eq!(k.pass(A, follows(3, 1480)), FORWARD);
    assert!(hints(&k).len() == 2, "a dropped first fragment sends no hint");
}

#[test]
fn fragment_is_forwarded_by_member_that_learned_of_the_first_from_a_hint() {
    let mut k = Cluster::new();
    let key = held(k.process(B, 3, OUTSIDE, &follows(1, 1480)));
    assert_eq!(k.pass(A, first(1, 53)), FORWARD);
    let datagram = FragmentKey { src: CLIENT, dst: SERVER, protocol: Protocol::UDP, id: 1, ingress: OUTSIDE };
    assert_eq!(hints(&k), [&Hint::FirstFragment { datagram, end: 1480, egress: INSIDE }; 2]);
    k.deliver();
    assert_eq!(k.members[B].woken.0, [(WorkerSet::of(3), key)]);
    assert_eq!(k.pass(B, follows(1, 1480)), FORWARD);
    assert_eq!(k.pass(C, follows(1, 1472)), DROP, "every member knows where the first fragment ends");
    assert_eq!(k.pass(C, first(1, 53)), DROP, "and that it was forwarded");
    assert_eq!(k.process(C, 5, INSIDE, &follows(1, 2960)).held(), Some(HoldClass::Fragment), "from another zone");
    assert_eq!(k.pass(C, follows(1, 2960)), FORWARD);
}

#[test]
fn fragment_query_is_sent_once_after_a_lost_hint() {
    let mut k = Cluster::new();
    assert_eq!(k.pass(A, first(1, 53)), FORWARD);
    k.hints.clear();
    let key = held(k.process(B, 3, OUTSIDE, &follows(1, 1480)));
    held(k.process(B, 3, OUTSIDE, &follows(1, 2960)));
    k.tick();
    assert!(k.hints.is_empty(), "the hint may be in flight");
    k.now = k.now + 20 * MS;
    k.tick();
    k.tick();
    assert!(matches!(hints(&k)[..], [Hint::FragmentQuery(_), Hint::FragmentQuery(_)]));
    k.deliver();
    assert_eq!(k.members[B].woken.0, [(WorkerSet::of(3), key)]);
    assert_eq!(k.pass(B, follows(1, 1480)), FORWARD);
    assert_eq!(k.pass(B, follows(1, 2960)), FORWARD);
    // No member replies about an unknown or expired first fragment.
    k.now = k.now + 30_001 * MS;
    held(k.process(B, 3, OUTSIDE, &follows(1, 1480)));
    k.now = k.now + 20 * MS;
    k.tick();
    assert_eq!(hints(&k).len(), 2);
    k.deliver();
    assert!(k.hints.is_empty() && k.members[B].woken.0.len() == 1);
}

/// RFC 8200 section 4.5: only addresses and identification form the key. The next header counts only in the first fragment,
/// which may have destination options after its fragment header.
#[test]
fn fragment_key_ignores_ipv6_next_header() {
    let mut k = Cluster::new();
    k.policy("zone outside, inside\naccept \"all\" from any to any: any -> any\n");
    let (src, dst) = (Ip::V6([0x20; 16]), Ip::V6([0x21; 16]));
    let v6 = |packet: Packet| Packet { tuple: Tuple { src, dst, ..packet.tuple }, ..packet };
    let next = |protocol, packet: Packet| Packet { tuple: Tuple { protocol, ..packet.tuple }, ..packet };
    let pass = |k: &mut Cluster, at: usize, packet: &Packet| {
        let mut context = crate::types::Context {
            now: k.now,
            worker: 0,
            ingress: OUTSIDE,
            antispoof: false,
            lease: LeaseState::Valid,
            routes: &mut AnyDestinationInside,
        };
        let mut events = Vec::new();
        let verdict = k.members[at].engine.process(packet, &mut context, &mut events);
        let hints = events.into_iter().filter_map(|event| match event {
            crate::event::Event::Hint(hint) => Some(hint),
            _ => None,
        });
        k.hints.extend(hints.map(|hint| (at, B, hint)));
        verdict
    };
    assert_eq!(pass(&mut k, A, &v6(first(1, 53))), FORWARD);
    k.deliver();
    assert_eq!(pass(&mut k, A, &next(Protocol(60), v6(follows(1, 1480)))), FORWARD);
    assert_eq!(pass(&mut k, B, &next(Protocol(60), v6(follows(1, 2960)))), FORWARD);
    // For IPv4 the protocol is part of the key: every fragment's header has it (RFC 791 section 3.2).
    assert_eq!(k.pass(A, first(1, 53)), FORWARD);
    held(k.pass(A, next(Protocol::TCP, follows(1, 1480))));
}

struct AnyDestinationInside;

impl crate::types::Routes for AnyDestinationInside {
    fn zone(&mut self, _: Ip) -> Option<crate::id::ZoneId> {
        Some(INSIDE)
    }
}

#[test]
fn fragment_hint_is_ignored_without_valid_lease() {
    let mut k = Cluster::new();
    assert_eq!(k.pass(B, first(1, 53)), FORWARD);
    assert_eq!(k.pass(A, first(2, 53)), FORWARD);
    k.deliver();
    k.members[B].lease = LeaseState::Grace;
    assert_eq!(k.pass(B, follows(2, 1480)), Verdict::Drop(Reason::LeaseGrace));
    assert_eq!(k.pass(B, follows(1, 1480)), FORWARD, "a first fragment that it forwarded itself still counts");
    k.members[B].lease = LeaseState::Expired;
    assert_eq!(k.pass(B, follows(1, 2960)), Verdict::Drop(Reason::LeaseExpired));
}

#[test]
fn fragment_hint_with_inconsistent_content_is_ignored() {
    let mut k = Cluster::new();
    let datagram = FragmentKey { src: CLIENT, dst: SERVER, protocol: Protocol::UDP, id: 1, ingress: OUTSIDE };
    let mixed = FragmentKey { dst: Ip::V6([1; 16]), ..datagram };
    k.hints.push((A, B, Hint::FirstFragment { datagram, end: 0, egress: INSIDE }));
    k.hints.push((A, B, Hint::FirstFragment { datagram: mixed, end: 8, egress: INSIDE }));
    k.hints.push((A, B, Hint::FragmentQuery(mixed)));
    k.deliver();
    held(k.pass(B, follows(1, 1480)));
    // A hint that contradicts local state has no effect.
    assert_eq!(k.pass(B, first(2, 53)), FORWARD);
    k.hints.clear();
    k.hints.push((A, B, Hint::FirstFragment { datagram: FragmentKey { id: 2, ..datagram }, end: 8, egress: INSIDE }));
    k.deliver();
    assert_eq!(k.pass(B, follows(2, 8)), DROP);
}

/// A flood of fragments without a first one: the number of held packets is bounded, and other traffic is not affected.
#[test]
fn fragment_flood_is_bounded_and_displaces_nothing_else() {
    let mut k = Cluster::new();
    k.register();
    let reply = Conn::new(1).syn_ack();
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched));
    k.hints.clear();
    // Half of them have the same addresses, so the same shard; the others have many sources.
    let mut pending = 0;
    for id in 0..20_000u32 {
        let flood = follows(id, 1480);
        let [_, a, b, c] = id.to_be_bytes();
        let spoofed = Packet { tuple: Tuple { src: Ip::V4([20 + a, b, c, 1]), ..flood.tuple }, ..flood };
        for packet in [flood, spoofed] {
            match k.process(B, 5, OUTSIDE, &packet) {
                Verdict::Hold(_, HoldClass::Fragment) => pending += 1,
                verdict => assert_eq!(verdict, Verdict::Drop(Reason::HoldFull)),
            }
        }
    }
    let max_pending = crate::table::SHARDS * crate::table::fragments::MAX_PENDING;
    assert!((max_pending / 2..=max_pending).contains(&pending), "{pending}");
    assert!(k.hints.is_empty());
    k.now = k.now + 20 * MS;
    k.tick();
    assert!(hints(&k).len() <= 2 * max_pending, "each is queried at most once");
    k.hints.clear();
    // The SYN of the held SYN-ACK, at another member: its hint still wakes the SYN-ACK.
    assert_eq!(k.pass(A, Conn::new(1).syn()), FORWARD);
    k.deliver();
    assert_eq!(k.members[B].woken.0.iter().map(|(workers, _)| *workers).collect::<Vec<_>>(), [WorkerSet::of(5)]);
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.members[B].engine.counts().half_open, 1);
}
