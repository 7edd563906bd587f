//! UDP, SCTP, ICMP echo, protocols without ports, ICMP errors, IPv4 options.

use super::cluster::*;
use crate::event::{Event, Hint};
use crate::id::SessionId;
use crate::parse::{Embedded, IpOption, Kind, Packet};
use crate::replica::Outcome;
use crate::testing::{CLIENT, INSIDE, OUTSIDE, SERVER};
use crate::timeouts::{Timeout, Timeouts};
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
fn udp_session_becomes_assured_without_holding_packets() {
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
fn udp_reply_before_hint_is_held_and_denied_packet_is_not() {
    let mut k = Cluster::new();
    let (ask, reply) = (other(udp(7), Kind::Udp), other(udp(7).inverse(), Kind::Udp));
    k.pass(A, ask);
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched));
    k.deliver();
    assert_eq!(k.members[B].woken.0.len(), 1);
    assert_eq!(k.pass(B, reply), FORWARD);

    let forbidden = other(Tuple { dst_port: 54, ..udp(7) }, Kind::Udp);
    assert_eq!(k.pass(B, forbidden), Verdict::Drop(Reason::Policy), "it is a reply of nothing that the policy allows");
}

#[test]
fn half_open_sessions_in_opposite_directions_merge_to_the_lower_id() {
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
fn icmp_echo_request_opens_a_session_and_reply_does_not() {
    let mut k = Cluster::new();
    let (request, reply) = (other(echo(9), Kind::EchoRequest), other(echo(9).inverse(), Kind::EchoReply));
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched), "a reply opens no session");
    k.hints.clear();
    assert_eq!(k.pass(A, request), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.pass(B, other(echo(9).inverse(), Kind::EchoRequest)), Verdict::Drop(Reason::NoSession));
    let denied = other(Tuple { src: SERVER, dst: CLIENT, ..echo(4) }, Kind::EchoRequest);
    assert_eq!(k.pass(A, denied), Verdict::Drop(Reason::Policy), "a request is not a reply");
}

fn error(embedded: Tuple, seq: Option<u32>) -> Packet {
    let router = crate::addr::Ip::V4([10, 0, 2, 99]);
    let tuple = Tuple { src: router, dst: embedded.src, src_port: 0, dst_port: 0, protocol: Protocol::ICMP };
    other(tuple, Kind::IcmpError(Embedded { tuple: embedded, seq }))
}

#[test]
fn icmp_error_is_forwarded_only_for_a_packet_that_was_sent() {
    let (mut k, c) = established(1);
    let unrelated = Verdict::Drop(Reason::IcmpUnrelated);
    assert_eq!(k.pass(B, error(c.tuple, Some(c.client + 1))), FORWARD);
    assert_eq!(k.pass(B, error(c.tuple, Some(c.client + (1 << 30)))), unrelated);
    // The hint of the embedded session may be in flight, so the error is held; if no member knows it, it is dropped.
    let strange = error(Conn::new(2).tuple, Some(1));
    assert_eq!(k.pass(B, strange).held(), Some(HoldClass::Unmatched));
    k.ask();
    assert!(k.asks() > 0);
    k.deliver();
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(B, strange), unrelated);
    // Here the hint arrives in time.
    let (asked, refused) = (Conn::new(3).syn(), error(Conn::new(3).tuple, Some(Conn::new(3).client)));
    assert_eq!(k.pass(C, refused).held(), Some(HoldClass::Unmatched));
    assert_eq!(k.pass(A, asked), FORWARD);
    k.deliver();
    assert_eq!(k.pass(C, refused), FORWARD);
    assert_eq!(k.process(B, 0, OUTSIDE, &error(c.tuple, Some(c.client + 1))), Verdict::Drop(Reason::WrongZone));
    let mut elsewhere = error(c.tuple, Some(c.client + 1));
    elsewhere.tuple.dst = SERVER;
    assert_eq!(k.process(B, 0, INSIDE, &elsewhere), unrelated);

    let half = Conn::new(3);
    k.pass(A, half.syn());
    assert_eq!(
        k.pass(A, error(half.tuple, Some(half.client))),
        FORWARD,
        "the SYN is too big, or the host is unreachable"
    );
    assert_eq!(k.pass(A, error(half.tuple, Some(half.client - 1))), unrelated);

    k.pass(A, other(udp(7), Kind::Udp));
    assert_eq!(k.pass(A, error(udp(7), None)), FORWARD);
    assert!(k.members[A].engine.counts().sessions.iter().all(|s| s.0 != Protocol::ICMP), "an error opens no session");
}

/// GRE, ESP and AH have no ports: one session per address pair, which ends when idle.
#[test]
fn portless_protocol_has_one_session_per_address_pair() {
    let mut k = Cluster::new();
    k.policy(
        "zone outside, inside\naccept \"tunnels\" from outside to inside: any -> any proto/47, proto/50, proto/51\n",
    );
    for protocol in [47, 50, 51].map(Protocol) {
        let tuple = Tuple { src: CLIENT, dst: SERVER, src_port: 0, dst_port: 0, protocol };
        let (ask, reply) = (other(tuple, Kind::Other), other(tuple.inverse(), Kind::Other));
        assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched), "{protocol} opens no session from inside");
        assert_eq!(k.pass(A, ask), FORWARD);
        k.deliver();
        assert_eq!(k.pass(B, reply), FORWARD);
        k.deliver();
        assert_eq!(k.pass(C, ask), FORWARD);
        assert_eq!(k.settle(), [Outcome::Accepted]);
        for (member, packet) in [(A, ask), (B, reply), (C, reply)] {
            assert_eq!(k.pass(member, packet), FORWARD);
        }
    }
    assert_eq!(k.states(A), ["ASSURED"; 3]);
    let other_protocol = Tuple { src: CLIENT, dst: SERVER, src_port: 0, dst_port: 0, protocol: Protocol(4) };
    assert_ne!(k.pass(A, other(other_protocol, Kind::Other)), FORWARD);
    // All members are idle for longer than the timeouts; GRE has its own.
    let engine = |k: &Cluster, m: usize| k.members[m].engine.clone();
    let opened = k.now;
    let mut idle = Vec::new();
    for (timeout, found) in [(Timeout::GreAssured, 1), (Timeout::Generic, 3)] {
        let timeout = Timeouts::DEFAULT.get(timeout);
        k.now = opened + timeout - MS;
        k.tick();
        idle.clear();
        engine(&k, A).idle(k.now, 10, &mut idle);
        assert!(idle.len() < found, "{timeout:?}: {idle:?}");
        // The resolutions of the timer wheel and of the stamps.
        k.now = opened + timeout + 500 * MS;
        k.tick();
        idle.clear();
        engine(&k, A).idle(k.now, 10, &mut idle);
        assert!(idle.len() <= found && !idle.is_empty(), "{idle:?}");
    }
    let mut idle: Vec<SessionId> = Vec::new();
    k.members[A].engine.sessions(k.now, &mut |session| {
        idle.push(session.id);
        true
    });
    assert_eq!(idle.len(), 3);
    for m in [B, C] {
        engine(&k, m).confirm_idle(k.now, &mut idle);
    }
    k.append(A, vec![crate::replica::Command::Expire(idle)]);
    k.settle();
    for m in [A, B, C] {
        assert!(k.states(m).is_empty());
    }
}

#[test]
fn sctp_session_has_ports() {
    let mut k = Cluster::new();
    k.policy("zone outside, inside\naccept \"s1ap\" from outside to inside: any -> any sctp/36412\n");
    let of = |port, dst_port| Tuple { src: CLIENT, dst: SERVER, src_port: port, dst_port, protocol: Protocol::SCTP };
    let (ask, reply) = (other(of(7, 36412), Kind::Sctp), other(of(7, 36412).inverse(), Kind::Sctp));
    assert_eq!(k.pass(A, ask), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, other(of(8, 36412).inverse(), Kind::Sctp)).held(), Some(HoldClass::Unmatched), "another port");
    assert_eq!(k.pass(B, reply), FORWARD);
    k.deliver();
    assert_eq!(k.pass(C, ask), FORWARD);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(B, reply), FORWARD);
    assert_eq!(k.pass(B, error(of(7, 36412), None)), FORWARD);
    assert_eq!(k.pass(B, error(of(9, 36412), None)).held(), Some(HoldClass::Unmatched), "another port");
    let counts = k.members[A].engine.counts();
    assert_eq!(counts.sessions, [(Protocol::SCTP, "ASSURED", 1)]);
    assert_eq!(Protocol::SCTP.to_string(), "sctp");
    k.deliver();
    k.now = k.now + 250 * MS;
    let forbidden = other(of(7, 36413), Kind::Sctp);
    k.pass(B, forbidden);
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(B, forbidden), Verdict::Drop(Reason::Policy));
}

/// The current policy decides about the IPv4 options of every packet, also of existing sessions.
#[test]
fn ip_options_are_filtered_by_the_current_policy() {
    let mut k = Cluster::new();
    let with = |options: &[IpOption], packet| Packet { options: options.iter().copied().collect(), ..packet };
    let ask = other(udp(7), Kind::Udp);
    let dropped = Verdict::Drop(Reason::IpOption);
    assert_eq!(k.pass(A, with(&[IpOption::RouterAlert], ask)), dropped, "none is allowed by default");
    assert_eq!(k.members[A].engine.counts().half_open, 0);
    assert!(k.hints.is_empty());
    k.policy(&format!("{}ip-options router-alert, timestamp\n", crate::testing::POLICY));
    assert_eq!(k.pass(A, with(&[IpOption::RouterAlert], ask)), FORWARD);
    assert_eq!(k.pass(A, with(&[IpOption::Timestamp, IpOption::RouterAlert], ask)), FORWARD);
    for option in [IpOption::LooseSourceRoute, IpOption::StrictSourceRoute, IpOption::RecordRoute] {
        assert_eq!(k.pass(A, with(&[option], ask)), dropped);
        assert_eq!(k.pass(A, with(&[IpOption::Timestamp, option], ask)), dropped);
    }
    let about = error(udp(7), None);
    assert_eq!(k.pass(A, with(&[IpOption::RecordRoute], about)), dropped, "also for an ICMP error");
    assert_eq!(k.pass(A, with(&[IpOption::Timestamp], about)), FORWARD);
    let tcp = Conn::new(1);
    assert_eq!(k.pass(A, with(&[IpOption::RouterAlert], tcp.syn())), FORWARD);
    k.policy(&format!("{}ip-options lsrr\n", crate::testing::POLICY));
    assert_eq!(k.pass(A, with(&[IpOption::RouterAlert], ask)), dropped, "also for an existing session");
    assert_eq!(k.pass(A, with(&[IpOption::LooseSourceRoute], ask)), FORWARD);
    assert_eq!(k.pass(A, ask), FORWARD);
}

#[test]
fn hint_with_inconsistent_session_is_ignored() {
    let mut k = Cluster::new();
    let mut open = crate::testing::half_open(crate::testing::tuple(1), 7);
    open.reply = open.original;
    k.hints.push((A, B, Hint::HalfOpen(Box::new(open))));
    let mut open = crate::testing::half_open(udp(7), 8);
    open.id.counter = 9;
    k.hints.push((A, B, Hint::HalfOpen(Box::new(open))));
    k.hints.push((A, B, Hint::Abort(open.id)));
    k.hints.push((A, B, Hint::Rst { id: open.id }));
    k.hints.push((A, B, Hint::Query(udp(1))));
    k.deliver();
    assert_eq!(k.members[B].engine.counts().half_open, 0);
    let mut events: Vec<Event> = Vec::new();
    k.members[B].engine.tick(k.now, &mut events);
    assert!(events.is_empty());
}
