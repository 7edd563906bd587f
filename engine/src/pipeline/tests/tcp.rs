//! TCP through three members.

use super::cluster::*;
use crate::addr::Ip;
use crate::event::{Hint, Proposal};
use crate::parse::Tcp;
use crate::replica::{Command, Outcome};
use crate::session::{CloseCause, HandshakeState};
use crate::testing::POLICY;
use crate::tuple::{Direction, Tuple};
use crate::types::LeaseState;
use crate::verdict::{HoldClass, Reason, Verdict};
use crate::worker_set::WorkerSet;

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
fn handshake_over_three_members_needs_no_retransmission() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    assert_eq!(cluster.states(A), ["SYN_SENT"]);
    cluster.deliver();
    assert_eq!(cluster.states(C), ["SYN_SENT"]);
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.states(A), ["SYN_RECV"]);
    assert_eq!(class(cluster.pass(C, conn.ack())), HoldClass::Matched);
    assert_eq!(class(cluster.pass(C, conn.data())), HoldClass::Matched);
    assert_eq!(cluster.proposals.len(), 1, "one proposal, not one for each packet");
    cluster.commit();
    assert_eq!(cluster.apply(C), [Outcome::Accepted]);
    let woken = &cluster.members[C].woken.0;
    assert_eq!(woken.len(), 1);
    assert_eq!(woken[0].0, WorkerSet::of(5), "only the worker that holds packets");
    assert_eq!(cluster.pass(C, conn.ack()), FORWARD);
    // A has not applied it yet.
    assert_eq!(class(cluster.pass(A, conn.data())), HoldClass::Matched);
    assert_eq!(class(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 500, 1000))), HoldClass::Matched);
    cluster.apply_all();
    assert_eq!(cluster.pass(A, conn.data()), FORWARD);
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 500, 1000)), FORWARD);
    for m in [A, B, C] {
        assert_eq!(cluster.states(m), ["ESTABLISHED"]);
    }
    // B proposes nothing: the packet that it held was not the client's.
    assert!(cluster.proposals.iter().all(|(by, _)| *by == A));
}

#[test]
fn syn_ack_before_the_hint_is_held_and_woken_by_it() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    assert_eq!(class(cluster.pass(B, conn.syn_ack())), HoldClass::Unmatched);
    assert_eq!(cluster.asks(), 0, "the hint may be under way");
    cluster.ask();
    assert_eq!(cluster.asks(), 1);
    assert_eq!(class(cluster.pass(B, conn.syn_ack())), HoldClass::Unmatched);
    cluster.ask();
    assert_eq!(cluster.asks(), 1, "queried once");
    cluster.deliver();
    let key = match cluster.pass(B, conn.syn_ack()) {
        FORWARD => cluster.members[B].woken.0.first().copied(),
        other => panic!("{other:?}"),
    };
    assert_eq!(key.map(|(workers, _)| workers), Some(WorkerSet::of(5)));
}

#[test]
fn hint_that_was_lost_is_queried() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    cluster.hints.clear();
    assert_eq!(class(cluster.pass(B, conn.syn_ack())), HoldClass::Unmatched);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.hints.clear();
    // C knows the SYN from the reply, but not the SYN-ACK.
    assert_eq!(class(cluster.pass(C, conn.ack())), HoldClass::Matched);
    assert!(cluster.proposals.is_empty());
    cluster.deliver();
    assert_eq!(cluster.members[C].woken.0.len(), 1);
    assert_eq!(class(cluster.pass(C, conn.ack())), HoldClass::Matched);
    assert_eq!(cluster.proposals.len(), 1);
}

#[test]
fn syn_retransmissions_are_hinted_with_the_same_id() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn()), FORWARD);
    let Some((_, _, Hint::HalfOpen(open))) = cluster.hints.first() else { panic!("no hint") };
    assert_eq!(open.id.member.0, 1);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.hints.clear();
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    assert_eq!(cluster.hints.len(), 2);
    assert_eq!(cluster.members[A].engine.counts().half_open, 1);
}

#[test]
fn syn_copies_at_two_members_get_one_id() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(B, conn.syn());
    cluster.pass(A, conn.syn());
    cluster.hints.reverse();
    cluster.deliver();
    for m in [A, B, C] {
        let mut ids = Vec::new();
        cluster.members[m].engine.half_opens(&mut |h| ids.push(h.id.member.0));
        assert_eq!(ids, [1], "the lower id, at {m}");
    }
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.deliver();
    cluster.pass(C, conn.ack());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
}

#[test]
fn establish_proposed_under_two_ids_makes_one_session() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    for m in [A, B] {
        cluster.pass(m, conn.syn());
        cluster.pass(m, conn.syn_ack());
        cluster.hints.clear();
        assert_eq!(class(cluster.pass(m, conn.ack())), HoldClass::Matched);
    }
    assert_eq!(cluster.settle(), [Outcome::Accepted, Outcome::Conflict]);
    for m in [A, B, C] {
        assert_eq!(cluster.pass(m, conn.data()), FORWARD);
        assert_eq!(cluster.members[m].engine.counts().half_open, 0);
    }
    assert!(cluster.proposals.is_empty());
}

#[test]
fn half_open_session_is_chosen_by_the_servers_isn() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    let second = Conn { server: 123, ..conn };
    assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD);
    assert_eq!(cluster.pass(A, second.syn_ack()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.members[B].engine.counts().half_open, 2);
    cluster.pass(B, second.ack());
    let [(B, Proposal::Establish(e))] = &cluster.proposals[..] else { panic!("{:?}", cluster.proposals) };
    assert!(matches!(e.protocol, HandshakeState::Tcp { server: Some(s), .. } if s.isn == 123));
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(C, second.data()), FORWARD);
    assert_eq!(cluster.pass(C, conn.of_client(Tcp::ACK, 0, 1 << 30, 0)), drop_for(Reason::TcpWindow));
}

#[test]
fn half_open_session_drops_implausible_packets() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    cluster.pass(A, conn.syn_ack());
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 1 << 30, 0, 0)), drop_for(Reason::TcpWindow));
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 1 << 30, 0)), drop_for(Reason::TcpWindow));
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::FIN, 0, 0, 0)), drop_for(Reason::TcpFlags));
    assert_eq!(cluster.pass(A, conn.of_server(Tcp::RST, 7, 0, 0)), drop_for(Reason::TcpRst));
    assert!(cluster.proposals.is_empty());
    let wrong = crate::testing::INSIDE;
    assert_eq!(cluster.process(A, 0, wrong, &conn.ack()), drop_for(Reason::WrongZone));
}

#[test]
fn half_open_session_ends_with_a_rst_that_answers_the_syn() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::RST | Tcp::ACK, 0, 1 << 20, 0)), drop_for(Reason::TcpRst));
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::RST | Tcp::ACK, 0, 0, 0)), FORWARD);
    cluster.deliver();
    for m in [A, B, C] {
        assert_eq!(cluster.members[m].engine.counts().half_open, 0);
    }
}

#[test]
fn rst_during_the_commit_closes_the_session() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.pass(A, conn.syn());
    cluster.pass(A, conn.syn_ack());
    cluster.deliver();
    cluster.pass(C, conn.ack());
    // B does not know of C's proposal.
    assert_eq!(cluster.pass(B, conn.of_client(Tcp::RST, 0, 0, 0)), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    cluster.tick();
    assert!(!cluster.proposals.is_empty());
    assert!(cluster.settle().iter().all(|o| *o == Outcome::Accepted));
    assert_eq!(cluster.states(A), ["CLOSE"]);
}

#[test]
fn half_open_sessions_are_bounded_and_expire() {
    let mut cluster = Cluster::with(&["table.half_open=256", "table.half_open_per_source=256"]);
    for port in 0..5000_u16 {
        let tuple = Tuple { src: Ip::V4([10, 0, 1, port as u8]), ..Conn::new(port).tuple };
        cluster.pass(A, Conn { tuple, ..Conn::new(port) }.syn());
    }
    let counts = cluster.members[A].engine.counts();
    assert!(counts.half_open <= 256);
    assert_eq!(counts.half_open + counts.half_open_evicted, 5000);
    assert!(cluster.proposals.is_empty());
    cluster.now = cluster.now + 119_999 * MS;
    cluster.tick();
    assert_eq!(cluster.members[A].engine.counts().half_open, counts.half_open);
    cluster.now = cluster.now + MS;
    cluster.tick();
    assert_eq!(cluster.members[A].engine.counts().half_open, 0);
}

#[test]
fn establish_of_a_stale_policy_is_judged_again() {
    for allowed in [true, false] {
        let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
        cluster.pass(A, conn.syn());
        cluster.pass(A, conn.syn_ack());
        cluster.deliver();
        cluster.pass(C, conn.ack());
        let proposals = std::mem::take(&mut cluster.proposals);
        let text = if allowed { POLICY.to_owned() } else { POLICY.replace("tcp/80", "tcp/81") };
        assert!(matches!(cluster.policy(&text)[..], [Outcome::Policy(_)]));
        cluster.proposals = proposals;
        assert!(matches!(cluster.settle()[..], [Outcome::Stale(_)]));
        assert_eq!(cluster.members[C].woken.0.len(), 1);
        let verdict = cluster.pass(C, conn.ack());
        if allowed {
            assert_eq!(class(verdict), HoldClass::Matched);
            assert_eq!(cluster.settle(), [Outcome::Accepted]);
            assert_eq!(cluster.pass(C, conn.ack()), FORWARD);
        } else {
            assert_eq!(verdict, drop_for(Reason::Policy));
            assert!(cluster.proposals.is_empty());
        }
    }
}

#[test]
fn policy_change_stops_established_sessions_at_once() {
    let (mut cluster, conn) = established(1);
    cluster.policy(&POLICY.replace("tcp/80", "tcp/81"));
    for m in [A, B, C] {
        assert_eq!(cluster.pass(m, conn.data()), drop_for(Reason::Policy));
        assert_eq!(cluster.pass(m, conn.of_server(Tcp::ACK, 0, 0, 10)), drop_for(Reason::Policy));
    }
    cluster.policy(POLICY);
    assert_eq!(cluster.pass(A, conn.data()), FORWARD);
}

#[test]
fn establish_in_a_full_table_is_reported() {
    let mut cluster = Cluster::with(&["table.sessions=1"]);
    open(&mut cluster, &Conn::new(1));
    let conn = Conn::new(2);
    cluster.pass(A, conn.syn());
    cluster.pass(A, conn.syn_ack());
    cluster.pass(A, conn.ack());
    assert_eq!(cluster.settle(), [Outcome::Full]);
    assert_eq!(cluster.pass(A, conn.ack()), drop_for(Reason::TableFull));
    let mut id = None;
    cluster.members[A].engine.sessions(cluster.now, &mut |s| {
        id = id.or((!s.half_open).then_some(s.id));
        true
    });
    cluster.append(B, vec![Command::Expire(id.into_iter().collect())]);
    cluster.apply_all();
    assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD, "the server tries again");
    cluster.pass(A, conn.ack());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
}

#[test]
fn close_by_fins_at_different_members() {
    let (mut cluster, conn) = established(1);
    assert_eq!(cluster.pass(A, conn.of_client(FIN, 0, 0, 0)), FORWARD);
    let hinted = cluster.hints.iter().any(|(_, _, h)| matches!(h, Hint::Fin { direction: Direction::Original, .. }));
    assert!(hinted);
    cluster.deliver();
    assert_eq!(cluster.states(C), ["FIN_WAIT"]);
    assert_eq!(cluster.pass(A, conn.of_client(FIN, 0, 0, 0)), FORWARD);
    assert_eq!(cluster.hints.len(), 2, "hinted again");
    assert_eq!(cluster.pass(B, conn.of_server(FIN, 0, 1, 0)), FORWARD);
    cluster.deliver();
    let [(B, Proposal::Close(close))] = &cluster.proposals[..] else { panic!("{:?}", cluster.proposals) };
    assert_eq!(close.cause, CloseCause::Fin);
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.states(C), ["TIME_WAIT"]);
    assert_eq!(cluster.pass(C, conn.of_client(Tcp::ACK, 1, 1, 0)), FORWARD, "the last ACK");
    assert_eq!(cluster.pass(A, conn.of_server(FIN, 0, 1, 0)), FORWARD, "a FIN again");
}

#[test]
fn close_that_is_overdue_is_proposed_by_every_member() {
    let (mut cluster, conn) = established(1);
    cluster.pass(A, conn.of_client(FIN, 0, 0, 0));
    cluster.deliver();
    cluster.pass(B, conn.of_server(FIN, 0, 1, 0));
    cluster.deliver();
    cluster.proposals.clear();
    cluster.now = cluster.now + 1999 * MS;
    cluster.tick();
    assert!(cluster.proposals.is_empty());
    cluster.now = cluster.now + MS;
    cluster.tick();
    assert_eq!(cluster.proposals.len(), 3);
    assert_eq!(cluster.settle(), vec![Outcome::Accepted; 3]);
    assert_eq!(cluster.states(A), ["TIME_WAIT"]);
}

#[test]
fn close_by_rst() {
    let (mut cluster, conn) = established(1);
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::RST, 100, 0, 0)), drop_for(Reason::TcpRst));
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::RST, 0, 0, 0)), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.proposals.len(), 1);
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.states(C), ["CLOSE"]);
    assert_eq!(cluster.pass(C, conn.data()).held(), Some(HoldClass::Unmatched), "a new segment does not belong to it");
}

#[test]
fn closed_session_gives_its_tuple_to_a_new_handshake() {
    let (mut cluster, conn) = established(1);
    cluster.pass(A, conn.of_server(Tcp::RST, 0, 0, 0));
    cluster.deliver();
    cluster.settle();
    // Close enough to the old numbers to fit both connections.
    let next = Conn { client: conn.client + 1000, server: conn.server + 1000, ..conn };
    assert_eq!(cluster.pass(B, next.syn_ack()).held(), Some(HoldClass::Unmatched), "before the hint");
    assert_eq!(cluster.pass(A, next.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, next.syn_ack()), FORWARD);
    cluster.deliver();
    assert_eq!(class(cluster.pass(C, next.ack())), HoldClass::Matched);
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.states(A), ["ESTABLISHED"]);
    assert_eq!(cluster.pass(B, next.data()), FORWARD);
}

#[test]
fn syn_changes_nothing_of_a_live_session() {
    let (mut cluster, conn) = established(1);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn()), FORWARD, "a late copy");
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD, "a late copy");
    assert!(cluster.hints.is_empty());
    for isn in 1..100_u32 {
        let forged = Conn { client: isn << 16, ..conn };
        let expected = if isn == 1 { FORWARD } else { drop_for(Reason::TcpWindow) };
        assert_eq!(cluster.pass(A, forged.syn()), expected, "one SYN a second");
    }
    cluster.now = cluster.now + 1000 * MS;
    assert_eq!(cluster.pass(A, Conn { client: 7, ..conn }.syn()), FORWARD);
    cluster.deliver();
    for m in [A, B, C] {
        assert_eq!(cluster.pass(m, conn.data()), FORWARD);
        assert_eq!(cluster.pass(m, conn.of_server(Tcp::ACK, 0, 500, 700)), FORWARD);
        assert!(cluster.members[m].engine.counts().half_open <= 4);
    }
    assert!(cluster.proposals.is_empty());
}

#[test]
fn syn_forged_near_the_live_numbers_diverts_nothing() {
    let (mut cluster, conn) = established(1);
    let forged = Conn { client: conn.client - 100, ..conn };
    assert_eq!(cluster.pass(A, forged.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(A, conn.data()), FORWARD);
    assert_eq!(cluster.pass(B, conn.data()), FORWARD);
}

#[test]
fn handshake_of_a_restarted_client_supersedes_the_dead_session() {
    let (mut cluster, conn) = established(1);
    cluster.now = cluster.now + 60_000 * MS;
    let next = Conn { client: 77_000_000, server: 88_000_000, ..conn };
    assert_eq!(cluster.pass(A, next.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, next.syn_ack()), FORWARD);
    cluster.deliver();
    assert_eq!(class(cluster.pass(C, next.ack())), HoldClass::Matched);
    assert_eq!(cluster.settle(), [Outcome::Accepted, Outcome::Accepted], "close the old one, establish the new one");
    assert_eq!(cluster.states(B), ["ESTABLISHED"]);
    assert_eq!(cluster.pass(B, next.data()), FORWARD);
}

#[test]
fn lease_state_decides_what_may_pass() {
    let (mut cluster, conn) = established(1);
    cluster.pass(A, Conn::new(2).syn());
    cluster.pass(A, Conn::new(2).syn_ack());
    for lease in [LeaseState::Grace, LeaseState::Expired] {
        cluster.members[A].lease = lease;
        let expired = lease == LeaseState::Expired;
        let nothing_new = drop_for(if expired { Reason::LeaseExpired } else { Reason::LeaseGrace });
        assert_eq!(cluster.pass(A, Conn::new(3).syn()), nothing_new);
        assert_eq!(cluster.pass(A, Conn::new(2).ack()), nothing_new);
        assert_eq!(cluster.pass(A, Conn::new(4).syn_ack()), nothing_new);
        assert_eq!(cluster.pass(A, conn.data()), if expired { drop_for(Reason::LeaseExpired) } else { FORWARD });
    }
    cluster.members[A].lease = LeaseState::Grace;
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::RST, 500, 0, 0)), FORWARD);
    assert!(cluster.proposals.is_empty(), "nothing is proposed by a member without a valid lease");
}

#[test]
fn unknown_packets_are_held_then_dropped() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(
        class(cluster.pass(A, conn.of_client(Tcp::RST, 0, 0, 0))),
        HoldClass::Unmatched,
        "its SYN's hint may be under way"
    );
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::PSH, 0, 0, 0)), drop_for(Reason::TcpFlags));
    assert_eq!(class(cluster.pass(A, conn.data())), HoldClass::Unmatched);
    assert_eq!(class(cluster.pass(A, conn.of_client(FIN, 0, 0, 0))), HoldClass::Unmatched);
    cluster.ask();
    assert_eq!(cluster.asks(), 1);
    cluster.now = cluster.now + 250 * MS;
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::RST, 0, 0, 0)), drop_for(Reason::NoSession), "no member replied");
}

#[test]
fn rst_that_overtakes_the_hint_is_held() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    let refusal = conn.of_server(Tcp::RST | Tcp::ACK, 0, 0, 0);
    assert_eq!(class(cluster.pass(B, refusal)), HoldClass::Unmatched);
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, refusal), FORWARD);
}

#[test]
fn session_keeps_to_its_zones() {
    let (mut cluster, conn) = established(1);
    assert_eq!(cluster.process(A, 0, crate::testing::INSIDE, &conn.data()), drop_for(Reason::WrongZone));
    assert_eq!(
        cluster.process(A, 0, crate::testing::OUTSIDE, &conn.of_server(Tcp::ACK, 0, 0, 0)),
        drop_for(Reason::WrongZone)
    );
}
