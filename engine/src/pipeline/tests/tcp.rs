//! TCP through three members.

use super::cluster::*;
use crate::engine::Standing;
use crate::event::{HandshakeState, Hint, Proposal};
use crate::parse::Tcp;
use crate::replica::{CloseCause, Command, Outcome};
use crate::testing::POLICY;
use crate::tuple::Direction;
use crate::verdict::{HoldClass, Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;
const FIN: u8 = Tcp::FIN | Tcp::ACK;

fn drop_for(reason: Reason) -> Verdict {
    Verdict::Drop(reason)
}

fn class(verdict: Verdict) -> HoldClass {
    match verdict {
        Verdict::Hold(_, class) => class,
        other => panic!("not held: {other:?}"),
    }
}

#[test]
fn syn_at_a_syn_ack_at_b_ack_at_c_data_at_a() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    assert_eq!(k.states(A), ["SYN_SENT"]);
    k.deliver();
    assert_eq!(k.states(C), ["SYN_SENT"]);
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.deliver();
    assert_eq!(k.states(A), ["SYN_RECV"]);
    assert_eq!(class(k.pass(C, c.ack())), HoldClass::Matched);
    assert_eq!(class(k.pass(C, c.data())), HoldClass::Matched);
    assert_eq!(k.proposals.len(), 1, "once, not for each packet");
    k.commit();
    assert_eq!(k.apply(C), [Outcome::Accepted]);
    let woken = &k.members[C].woken.0;
    assert_eq!(woken.len(), 1);
    assert_eq!(woken[0].0, 1 << 5, "the worker that holds, and no other");
    assert_eq!(k.pass(C, c.ack()), FORWARD);
    // A has not applied it yet.
    assert_eq!(class(k.pass(A, c.data())), HoldClass::Matched);
    assert_eq!(class(k.pass(B, c.of_server(Tcp::ACK, 0, 500, 1000))), HoldClass::Matched);
    k.apply_all();
    assert_eq!(k.pass(A, c.data()), FORWARD);
    assert_eq!(k.pass(B, c.of_server(Tcp::ACK, 0, 500, 1000)), FORWARD);
    for m in [A, B, C] {
        assert_eq!(k.states(m), ["ESTABLISHED"]);
    }
    // B was asked to prove nothing: its held packet was not the client's.
    assert!(k.proposals.iter().all(|(by, _)| *by == A));
}

#[test]
fn syn_ack_before_the_hint_is_held_and_woken_by_it() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    assert_eq!(class(k.pass(B, c.syn_ack())), HoldClass::Unmatched);
    assert_eq!(k.asks(), 0, "the hint may be under way");
    k.ask();
    assert_eq!(k.asks(), 1);
    assert_eq!(class(k.pass(B, c.syn_ack())), HoldClass::Unmatched);
    k.ask();
    assert_eq!(k.asks(), 1, "asked once");
    k.deliver();
    let key = match k.pass(B, c.syn_ack()) {
        FORWARD => k.members[B].woken.0.first().copied(),
        other => panic!("{other:?}"),
    };
    assert_eq!(key.map(|(workers, _)| workers), Some(1 << 5));
}

#[test]
fn a_lost_hint_is_asked_for() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    k.hints.clear();
    assert_eq!(class(k.pass(B, c.syn_ack())), HoldClass::Unmatched);
    k.deliver();
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.hints.clear();
    // C knows the SYN, from the answer, but not the SYN-ACK.
    assert_eq!(class(k.pass(C, c.ack())), HoldClass::Matched);
    assert!(k.proposals.is_empty());
    k.deliver();
    assert_eq!(k.members[C].woken.0.len(), 1);
    assert_eq!(class(k.pass(C, c.ack())), HoldClass::Matched);
    assert_eq!(k.proposals.len(), 1);
}

#[test]
fn retransmissions_are_hinted_again_with_the_same_id() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    k.deliver();
    assert_eq!(k.pass(B, c.syn()), FORWARD);
    let Some((_, _, Hint::HalfOpen(open))) = k.hints.first() else { panic!("no hint") };
    assert_eq!(open.id.member.0, 1);
    k.deliver();
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.hints.clear();
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    assert_eq!(k.hints.len(), 2);
    assert_eq!(k.members[A].engine.counts().half_open, 1);
}

#[test]
fn two_members_that_saw_copies_of_one_syn_agree() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(B, c.syn());
    k.pass(A, c.syn());
    k.hints.reverse();
    k.deliver();
    for m in [A, B, C] {
        let mut ids = Vec::new();
        k.members[m].engine.half_opens(&mut |h| ids.push(h.id.member.0));
        assert_eq!(ids, [1], "the lower id, at {m}");
    }
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.deliver();
    k.pass(C, c.ack());
    assert_eq!(k.settle(), [Outcome::Accepted]);
}

#[test]
fn two_proposals_of_one_connection_under_two_ids_make_one_session() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    for m in [A, B] {
        k.pass(m, c.syn());
        k.pass(m, c.syn_ack());
        k.hints.clear();
        assert_eq!(class(k.pass(m, c.ack())), HoldClass::Matched);
    }
    assert_eq!(k.settle(), [Outcome::Accepted, Outcome::Conflict]);
    for m in [A, B, C] {
        assert_eq!(k.pass(m, c.data()), FORWARD);
        assert_eq!(k.members[m].engine.counts().half_open, 0);
    }
    assert!(k.proposals.is_empty());
}

#[test]
fn the_ack_chooses_by_the_servers_isn() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    let second = Conn { server: 123, ..c };
    assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
    assert_eq!(k.pass(A, second.syn_ack()), FORWARD);
    k.deliver();
    assert_eq!(k.members[B].engine.counts().half_open, 2);
    k.pass(B, second.ack());
    let [(B, Proposal::Establish(e))] = &k.proposals[..] else { panic!("{:?}", k.proposals) };
    assert!(matches!(e.protocol, HandshakeState::Tcp { server: Some(s), .. } if s.isn == 123));
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(C, second.data()), FORWARD);
    assert_eq!(k.pass(C, c.of_client(Tcp::ACK, 0, 1 << 30, 0)), drop_for(Reason::TcpWindow));
}

#[test]
fn implausible_packets_of_a_half_open_session_are_dropped() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    k.pass(A, c.syn_ack());
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 1 << 30, 0, 0)), drop_for(Reason::TcpWindow));
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 1 << 30, 0)), drop_for(Reason::TcpWindow));
    assert_eq!(k.pass(A, c.of_client(Tcp::FIN, 0, 0, 0)), drop_for(Reason::TcpFlags));
    assert_eq!(k.pass(A, c.of_server(Tcp::RST, 7, 0, 0)), drop_for(Reason::TcpRst));
    assert!(k.proposals.is_empty());
    let wrong = crate::testing::INSIDE;
    assert_eq!(k.process(A, 0, wrong, &c.ack()), drop_for(Reason::WrongZone));
}

#[test]
fn a_rst_that_answers_the_syn_ends_it() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    k.deliver();
    assert_eq!(k.pass(B, c.of_server(Tcp::RST | Tcp::ACK, 0, 1 << 20, 0)), drop_for(Reason::TcpRst));
    assert_eq!(k.pass(B, c.of_server(Tcp::RST | Tcp::ACK, 0, 0, 0)), FORWARD);
    k.deliver();
    for m in [A, B, C] {
        assert_eq!(k.members[m].engine.counts().half_open, 0);
    }
}

#[test]
fn a_reset_during_the_commit_closes_the_session() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.pass(A, c.syn());
    k.pass(A, c.syn_ack());
    k.deliver();
    k.pass(C, c.ack());
    // B does not know of C's proposal.
    assert_eq!(k.pass(B, c.of_client(Tcp::RST, 0, 0, 0)), FORWARD);
    k.deliver();
    assert_eq!(k.settle(), [Outcome::Accepted]);
    k.tick();
    assert!(!k.proposals.is_empty());
    assert!(k.settle().iter().all(|o| *o == Outcome::Accepted));
    assert_eq!(k.states(A), ["CLOSE"]);
}

#[test]
fn half_opens_are_bounded_and_end() {
    let mut k = Cluster::with(|config| config.max_half_open = 256);
    for port in 0..5000 {
        k.pass(A, Conn::new(port).syn());
    }
    let counts = k.members[A].engine.counts();
    assert!(counts.half_open <= 256);
    assert_eq!(counts.half_open + counts.half_open_evicted, 5000);
    assert!(k.proposals.is_empty());
    k.now = k.now + 119_999 * MS;
    k.tick();
    assert_eq!(k.members[A].engine.counts().half_open, counts.half_open);
    k.now = k.now + MS;
    k.tick();
    assert_eq!(k.members[A].engine.counts().half_open, 0);
}

#[test]
fn stale_is_judged_again() {
    for allowed in [true, false] {
        let (mut k, c) = (Cluster::new(), Conn::new(1));
        k.pass(A, c.syn());
        k.pass(A, c.syn_ack());
        k.deliver();
        k.pass(C, c.ack());
        let proposals = std::mem::take(&mut k.proposals);
        let text = if allowed { POLICY.to_owned() } else { POLICY.replace("tcp/80", "tcp/81") };
        assert!(matches!(k.policy(&text)[..], [Outcome::Policy(_)]));
        k.proposals = proposals;
        assert!(matches!(k.settle()[..], [Outcome::Stale(_)]));
        assert_eq!(k.members[C].woken.0.len(), 1);
        let verdict = k.pass(C, c.ack());
        if allowed {
            assert_eq!(class(verdict), HoldClass::Matched);
            assert_eq!(k.settle(), [Outcome::Accepted]);
            assert_eq!(k.pass(C, c.ack()), FORWARD);
        } else {
            assert_eq!(verdict, drop_for(Reason::Policy));
            assert!(k.proposals.is_empty());
        }
    }
}

#[test]
fn a_new_policy_stops_established_sessions_at_once() {
    let (mut k, c) = established(1);
    k.policy(&POLICY.replace("tcp/80", "tcp/81"));
    for m in [A, B, C] {
        assert_eq!(k.pass(m, c.data()), drop_for(Reason::Policy));
        assert_eq!(k.pass(m, c.of_server(Tcp::ACK, 0, 0, 10)), drop_for(Reason::Policy));
    }
    k.policy(POLICY);
    assert_eq!(k.pass(A, c.data()), FORWARD);
}

#[test]
fn full_and_conflict_are_told() {
    let mut k = Cluster::with(|config| config.max_sessions = 1);
    open(&mut k, &Conn::new(1));
    let c = Conn::new(2);
    k.pass(A, c.syn());
    k.pass(A, c.syn_ack());
    k.pass(A, c.ack());
    assert_eq!(k.settle(), [Outcome::Full]);
    assert_eq!(k.pass(A, c.ack()), drop_for(Reason::TableFull));
    let mut id = None;
    k.members[A].engine.sessions(k.now, &mut |s| {
        id = id.or((!s.half_open).then_some(s.id));
        true
    });
    k.append(B, vec![Command::Expire(id.into_iter().collect())]);
    k.apply_all();
    assert_eq!(k.pass(A, c.syn_ack()), FORWARD, "the server tries again");
    k.pass(A, c.ack());
    assert_eq!(k.settle(), [Outcome::Accepted]);
}

#[test]
fn close_by_fins_at_different_members() {
    let (mut k, c) = established(1);
    assert_eq!(k.pass(A, c.of_client(FIN, 0, 0, 0)), FORWARD);
    let hinted = k.hints.iter().any(|(_, _, h)| matches!(h, Hint::Fin { direction: Direction::Original, .. }));
    assert!(hinted);
    k.deliver();
    assert_eq!(k.states(C), ["FIN_WAIT"]);
    assert_eq!(k.pass(A, c.of_client(FIN, 0, 0, 0)), FORWARD);
    assert_eq!(k.hints.len(), 2, "hinted again");
    assert_eq!(k.pass(B, c.of_server(FIN, 0, 1, 0)), FORWARD);
    k.deliver();
    let [(B, Proposal::Close(close))] = &k.proposals[..] else { panic!("{:?}", k.proposals) };
    assert_eq!(close.cause, CloseCause::Fin);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.states(C), ["TIME_WAIT"]);
    assert_eq!(k.pass(C, c.of_client(Tcp::ACK, 1, 1, 0)), FORWARD, "the last ACK");
    assert_eq!(k.pass(A, c.of_server(FIN, 0, 1, 0)), FORWARD, "a FIN again");
}

#[test]
fn an_overdue_close_is_proposed_by_whoever_knows() {
    let (mut k, c) = established(1);
    k.pass(A, c.of_client(FIN, 0, 0, 0));
    k.deliver();
    k.pass(B, c.of_server(FIN, 0, 1, 0));
    k.deliver();
    k.proposals.clear();
    k.now = k.now + 1999 * MS;
    k.tick();
    assert!(k.proposals.is_empty());
    k.now = k.now + MS;
    k.tick();
    assert_eq!(k.proposals.len(), 3);
    assert_eq!(k.settle(), vec![Outcome::Accepted; 3]);
    assert_eq!(k.states(A), ["TIME_WAIT"]);
}

#[test]
fn close_by_rst() {
    let (mut k, c) = established(1);
    assert_eq!(k.pass(B, c.of_server(Tcp::RST, 100, 0, 0)), drop_for(Reason::TcpRst));
    assert_eq!(k.pass(B, c.of_server(Tcp::RST, 0, 0, 0)), FORWARD);
    k.deliver();
    assert_eq!(k.proposals.len(), 1);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.states(C), ["CLOSE"]);
    assert_eq!(k.pass(C, c.data()).held(), Some(HoldClass::Unmatched), "nothing new belongs to it");
}

#[test]
fn a_closed_tuple_is_taken_over() {
    let (mut k, c) = established(1);
    k.pass(A, c.of_server(Tcp::RST, 0, 0, 0));
    k.deliver();
    k.settle();
    // Close enough to the old numbers to be mistaken for them.
    let next = Conn { client: c.client + 1000, server: c.server + 1000, ..c };
    assert_eq!(k.pass(B, next.syn_ack()).held(), Some(HoldClass::Unmatched), "before the hint");
    assert_eq!(k.pass(A, next.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, next.syn_ack()), FORWARD);
    k.deliver();
    assert_eq!(class(k.pass(C, next.ack())), HoldClass::Matched);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.states(A), ["ESTABLISHED"]);
    assert_eq!(k.pass(B, next.data()), FORWARD);
}

#[test]
fn a_syn_changes_nothing_of_a_live_session() {
    let (mut k, c) = established(1);
    k.deliver();
    assert_eq!(k.pass(B, c.syn()), FORWARD, "a late copy");
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD, "a late copy");
    assert!(k.hints.is_empty());
    for isn in 1..100_u32 {
        let forged = Conn { client: isn << 16, ..c };
        let expected = if isn == 1 { FORWARD } else { drop_for(Reason::TcpWindow) };
        assert_eq!(k.pass(A, forged.syn()), expected, "one a second");
    }
    k.now = k.now + 1000 * MS;
    assert_eq!(k.pass(A, Conn { client: 7, ..c }.syn()), FORWARD);
    k.deliver();
    for m in [A, B, C] {
        assert_eq!(k.pass(m, c.data()), FORWARD);
        assert_eq!(k.pass(m, c.of_server(Tcp::ACK, 0, 500, 700)), FORWARD);
        assert!(k.members[m].engine.counts().half_open <= 4);
    }
    assert!(k.proposals.is_empty());
}

#[test]
fn a_forged_syn_near_the_live_numbers_diverts_nothing() {
    let (mut k, c) = established(1);
    let forged = Conn { client: c.client - 100, ..c };
    assert_eq!(k.pass(A, forged.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(A, c.data()), FORWARD);
    assert_eq!(k.pass(B, c.data()), FORWARD);
}

#[test]
fn a_restarted_client_takes_its_tuple_over_from_a_dead_session() {
    let (mut k, c) = established(1);
    k.now = k.now + 60_000 * MS;
    let next = Conn { client: 77_000_000, server: 88_000_000, ..c };
    assert_eq!(k.pass(A, next.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, next.syn_ack()), FORWARD);
    k.deliver();
    assert_eq!(class(k.pass(C, next.ack())), HoldClass::Matched);
    assert_eq!(k.settle(), [Outcome::Accepted, Outcome::Accepted], "close the old one, establish the new one");
    assert_eq!(k.states(B), ["ESTABLISHED"]);
    assert_eq!(k.pass(B, next.data()), FORWARD);
}

#[test]
fn standing_decides_what_may_pass() {
    let (mut k, c) = established(1);
    k.pass(A, Conn::new(2).syn());
    k.pass(A, Conn::new(2).syn_ack());
    for standing in [Standing::CutOff, Standing::Expired] {
        k.members[A].standing = standing;
        let expired = standing == Standing::Expired;
        let nothing_new = drop_for(if expired { Reason::CutOff } else { Reason::NotCurrent });
        assert_eq!(k.pass(A, Conn::new(3).syn()), nothing_new);
        assert_eq!(k.pass(A, Conn::new(2).ack()), nothing_new);
        assert_eq!(k.pass(A, Conn::new(4).syn_ack()), nothing_new);
        assert_eq!(k.pass(A, c.data()), if expired { drop_for(Reason::CutOff) } else { FORWARD });
    }
    k.members[A].standing = Standing::CutOff;
    assert_eq!(k.pass(A, c.of_client(Tcp::RST, 500, 0, 0)), FORWARD);
    assert!(k.proposals.is_empty(), "nothing is proposed by a member that is not current");
}

#[test]
fn what_no_session_knows() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(
        class(k.pass(A, c.of_client(Tcp::RST, 0, 0, 0))),
        HoldClass::Unmatched,
        "its SYN's hint may be under way"
    );
    assert_eq!(k.pass(A, c.of_client(Tcp::PSH, 0, 0, 0)), drop_for(Reason::TcpFlags));
    assert_eq!(class(k.pass(A, c.data())), HoldClass::Unmatched);
    assert_eq!(class(k.pass(A, c.of_client(FIN, 0, 0, 0))), HoldClass::Unmatched);
    k.ask();
    assert_eq!(k.asks(), 1);
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(A, c.of_client(Tcp::RST, 0, 0, 0)), drop_for(Reason::NoSession), "nobody answered");
}

#[test]
fn a_refusal_that_overtakes_the_hint_is_held() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    let refusal = c.of_server(Tcp::RST | Tcp::ACK, 0, 0, 0);
    assert_eq!(class(k.pass(B, refusal)), HoldClass::Unmatched);
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, refusal), FORWARD);
}

#[test]
fn a_session_keeps_to_its_zones() {
    let (mut k, c) = established(1);
    assert_eq!(k.process(A, 0, crate::testing::INSIDE, &c.data()), drop_for(Reason::WrongZone));
    assert_eq!(k.process(A, 0, crate::testing::OUTSIDE, &c.of_server(Tcp::ACK, 0, 0, 0)), drop_for(Reason::WrongZone));
}
