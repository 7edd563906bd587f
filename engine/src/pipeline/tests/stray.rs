//! Packets that match nothing: held only if a session may explain them, judged when their hold is over, and what is logged and
//! counted of denied ones.

use super::cluster::*;
use crate::event::{ConnectionDecision, LoggedDecision};
use crate::id::{Generation, RuleId, SessionId, ZonePair};
use crate::parse::{Kind, Packet, Tcp};
use crate::replica::{Command, Outcome};
use crate::testing::{CLIENT, INSIDE, OUTSIDE, POLICY, SERVER};
use crate::tuple::{Protocol, Tuple};
use crate::verdict::{HoldClass, Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;

fn udp(from: u16, to: u16) -> Tuple {
    Tuple { src: CLIENT, dst: SERVER, src_port: from, dst_port: to, protocol: Protocol::UDP }
}

/// [`POLICY`] with another default.
fn with_default(default: &str) -> Cluster {
    let mut k = Cluster::new();
    k.policy(&POLICY.replace("default drop", default));
    k
}

/// Decisions for the connection log since the last call.
fn logged(k: &mut Cluster) -> Vec<(usize, ConnectionDecision)> {
    std::mem::take(&mut k.logged).into_iter().map(|(at, logged)| (at, logged.decision)).collect()
}

#[test]
fn stray_udp_is_held_only_as_a_possible_reply_and_then_denied_by_the_policy() {
    let mut k = with_default("default reject log");
    let rejected = Verdict::Reject(Reason::PolicyReject);
    assert_eq!(
        k.pass(A, other(udp(7, 54), Kind::Udp)),
        rejected,
        "a reply of nothing that is allowed: answered at once"
    );
    assert_eq!(logged(&mut k), [(A, ConnectionDecision::Rejected(Reason::PolicyReject))]);
    let stray = other(udp(7, 53).inverse(), Kind::Udp);
    assert_eq!(k.pass(A, stray).held(), Some(HoldClass::Unmatched), "a query's hint may be under way");
    assert_eq!(logged(&mut k), []);
    k.now = k.now + 250 * MS;
    assert_eq!(k.expire(A, stray), Some(Verdict::Drop(Reason::NoSession)), "its session may be committed");
    assert_eq!(logged(&mut k), []);
    assert_eq!(
        k.pass(A, stray).held(),
        Some(HoldClass::Unmatched),
        "no other member knew it, but this one may be late"
    );
    k.members[A].engine.set_applied_as_of(k.now);
    k.now = k.now + 250 * MS;
    assert_eq!(k.expire(A, stray), Some(rejected));
    assert_eq!(logged(&mut k), [(A, ConnectionDecision::Rejected(Reason::PolicyReject))]);
    let (generation, hits) = k.members[A].engine.rule_hits(10);
    assert_eq!(
        (generation, hits[0].name.as_str(), hits[0].hits, hits[0].last),
        (Generation(2), "default", 2, Some(k.now))
    );

    // What has become known meanwhile only came too late.
    let (ask, reply) = (other(udp(8, 53), Kind::Udp), other(udp(8, 53).inverse(), Kind::Udp));
    assert_eq!(k.pass(B, reply).held(), Some(HoldClass::Unmatched));
    k.pass(A, ask);
    k.deliver();
    assert_eq!(k.expire(B, reply), None);
}

#[test]
fn stray_segment_is_answered_if_the_default_rejects() {
    let none = Verdict::Drop(Reason::NoSession);
    for (default, answer) in [("default reject", Verdict::Reject(Reason::NoSession)), ("default drop", none)] {
        let mut k = with_default(default);
        let c = Conn::new(1);
        open(&mut k, &c);
        let id = session(&k, A);
        k.append(A, vec![Command::Revoke(vec![id])]);
        assert_eq!(k.apply_all(), [Outcome::Accepted]);
        // Both ends, at any member.
        for (at, packet) in [(A, c.data()), (B, c.of_server(Tcp::ACK, 0, 0, 100)), (C, c.ack())] {
            assert_eq!(k.pass(at, packet).held(), Some(HoldClass::Unmatched), "an establishment may be under way");
            assert_eq!(k.expire(at, packet), Some(none), "this member may be late");
            k.members[at].engine.set_applied_as_of(k.now);
            assert_eq!(k.expire(at, packet), Some(answer), "{default}");
        }
        // Nothing that the policy allows. No answer, unless this member has applied what was committed when it came.
        let elsewhere = |port, tuple: Tuple| Conn { tuple: Tuple { dst_port: port, ..tuple }, ..c }.data();
        k.now = k.now + 1000 * MS;
        for (port, answer) in [(81, answer), (23, Verdict::Reject(Reason::NoSession))] {
            let packet = elsewhere(port, c.tuple);
            if answer == none {
                assert_eq!(k.pass(A, packet), none);
                continue;
            }
            assert_eq!(k.pass(A, packet).held(), Some(HoldClass::Unmatched));
            assert_eq!(k.expire(A, packet), Some(none));
            k.members[A].engine.set_applied_as_of(k.now);
            assert_eq!(k.expire(A, packet), Some(answer));
            k.now = k.now + 1000 * MS;
        }
        // What was committed when an earlier packet came says nothing of a connection that was opened since.
        let again = elsewhere(23, c.tuple);
        assert_eq!(k.pass(A, again).held(), Some(HoldClass::Unmatched));
        k.members[A].engine.set_applied_as_of(k.now);
        k.now = k.now + 300 * MS;
        assert_eq!(k.pass(A, again).held(), Some(HoldClass::Unmatched));
        assert_eq!(k.expire(A, again), Some(none));
        let spoofed = elsewhere(81, Tuple { src: SERVER, ..c.tuple });
        assert_eq!(k.process(A, 0, OUTSIDE, &spoofed), none, "no answer to somebody else");
    }
    let mut k = with_default("default reject");
    k.policy(&format!(
        "{}drop \"silent\" from outside to inside: any -> any tcp/81\n",
        POLICY.replace("default drop", "default reject")
    ));
    let c = Conn::new(1);
    assert_eq!(k.pass(A, Conn { tuple: Tuple { dst_port: 81, ..c.tuple }, ..c }.data()), none, "the rule drops");
}

#[test]
fn session_that_a_policy_rejects_is_answered() {
    let (mut k, c) = established(1);
    k.policy(&POLICY.replace("accept \"web\"", "reject \"web\""));
    let rejected = Verdict::Reject(Reason::PolicyReject);
    assert_eq!((k.pass(A, c.data()), k.pass(B, c.of_server(Tcp::ACK, 0, 0, 9))), (rejected, rejected));
    k.policy(&POLICY.replace("accept \"web\"", "drop \"web\""));
    assert_eq!(k.pass(A, c.data()), Verdict::Drop(Reason::Policy));
}

/// The only session.
fn session(k: &Cluster, at: usize) -> SessionId {
    let mut found = None;
    k.members[at].engine.sessions(k.now, &mut |info| {
        found = Some(info.id);
        true
    });
    found.unwrap()
}

#[test]
fn decision_of_a_rule_with_log_is_logged_by_one_member() {
    let mut k = Cluster::new();
    let with_log =
        POLICY.replace("udp/53\n", "udp/53 log\n").replace("tcp/80\n", "tcp/80 log\n").replace("drop\n", "drop log\n");
    assert_ne!(with_log, POLICY);
    k.policy(&with_log);
    let ask = other(udp(7, 53), Kind::Udp);
    k.pass(A, ask);
    k.deliver();
    k.pass(B, ask);
    k.pass(B, other(udp(7, 53).inverse(), Kind::Udp));
    k.deliver();
    let [(A, LoggedDecision { tuple, zones, generation, rule, decision: ConnectionDecision::Opened(id) })] =
        k.logged[..]
    else {
        panic!("{:?}", k.logged)
    };
    assert_eq!((tuple, zones), (udp(7, 53), ZonePair { ingress: OUTSIDE, egress: INSIDE }));
    assert_eq!((generation, rule, id.member.0), (Generation(2), RuleId(2), 1));
    k.logged.clear();
    k.now = k.now + 31_000 * MS;
    k.tick();
    assert_eq!(logged(&mut k), [(A, ConnectionDecision::Unestablished(id))]);
    // TCP: nothing before the establishment is applied.
    open(&mut k, &Conn::new(1));
    assert_eq!(logged(&mut k), []);
    let denied: Packet = Conn { tuple: Tuple { dst_port: 22, ..Conn::new(1).tuple }, ..Conn::new(1) }.syn();
    assert_eq!(k.pass(C, denied), Verdict::Drop(Reason::Policy));
    assert_eq!(logged(&mut k), [(C, ConnectionDecision::Dropped(Reason::Policy))]);
    // A rule without it.
    assert_eq!(
        k.pass(A, other(Tuple { dst_port: 0, protocol: Protocol::ICMP, ..udp(9, 0) }, Kind::EchoRequest)),
        FORWARD
    );
    assert_eq!(logged(&mut k), []);
}

#[test]
fn hits_follow_a_rule_by_its_name() {
    let mut k = Cluster::new();
    for port in [1, 2] {
        k.pass(A, Conn::new(port).syn());
    }
    let hits = |k: &Cluster| -> Vec<(String, u64)> {
        k.members[A].engine.rule_hits(10).1.into_iter().map(|rule| (rule.name, rule.hits)).collect()
    };
    let named =
        |all: &[(&str, u64)]| -> Vec<(String, u64)> { all.iter().map(|(n, h)| ((*n).to_owned(), *h)).collect() };
    assert_eq!(hits(&k), named(&[("default", 0), ("web", 2), ("dns", 0), ("ping", 0), ("telnet", 0)]));
    k.policy(
        "zone outside, inside\naccept \"default\" from inside to outside: any -> any\n\
              accept \"web\" from outside to inside: any -> any tcp/80\n",
    );
    k.pass(A, Conn::new(3).syn());
    k.pass(A, Conn { tuple: Tuple { dst_port: 22, ..Conn::new(1).tuple }, ..Conn::new(1) }.syn());
    assert_eq!(hits(&k), named(&[("default", 1), ("default", 0), ("web", 3)]));
    assert_eq!(k.members[A].engine.rule_hits_beyond(2), 3);
}
