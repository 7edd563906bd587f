//! What the standards demand, by document and section.

use super::cluster::*;
use crate::event::{HandshakeState, Proposal};
use crate::parse::{Kind, Packet, Tcp};
use crate::progress::TakeoverCounts;
use crate::replica::Outcome;
use crate::verdict::{HoldClass, Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;
const RST_ACK: u8 = Tcp::RST | Tcp::ACK;

fn with(mut packet: Packet, change: impl Fn(&mut Tcp)) -> Packet {
    if let Kind::Tcp(tcp) = &mut packet.kind {
        change(tcp);
    }
    packet
}

/// The client restarted, and its new SYN meets the old connection: the server's challenge ACK passes, the client's RST that
/// answers it is exact and ends the old connection, and the SYN, sent again, opens the new one.
#[test]
fn rfc5961_section_4_syn_on_an_established_connection() {
    let (mut k, c) = established(1);
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
    let next = Conn { client: c.client.wrapping_add(1 << 30), server: 77, ..c };
    assert_eq!(k.pass(A, next.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.states(A), ["ESTABLISHED", "SYN_SENT"], "the SYN changes nothing");
    assert_eq!(k.pass(B, c.of_server(Tcp::ACK, 0, 100, 0)), FORWARD, "the challenge ACK");
    assert_eq!(k.pass(A, c.of_client(Tcp::RST, 100, 0, 0)), FORWARD, "its answer");
    k.deliver();
    assert!(k.settle().contains(&Outcome::Accepted));
    k.now = k.now + 1000 * MS;
    assert_eq!(k.pass(A, next.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, next.syn_ack()), FORWARD);
    k.deliver();
    assert!(k.pass(A, next.ack()).held().is_some());
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(A, next.ack()), FORWARD);
}

#[test]
fn rfc5961_section_3_2_a_rst_must_be_exact() {
    for flags in [Tcp::RST, RST_ACK] {
        let (mut k, c) = established(1);
        assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
        for seq in [99, 101, 5000] {
            assert_eq!(k.pass(A, c.of_client(flags, seq, 0, 0)), Verdict::Drop(Reason::TcpRst), "{seq}");
        }
        assert_eq!(k.pass(A, c.of_client(flags, 100, 0, 0)), FORWARD);
    }
}

#[test]
fn rfc5961_section_5_2_acknowledgements() {
    let (mut k, c) = established(1);
    // Neither what was never sent, nor what is older than two windows (2^31 here: the other half of the numbers).
    for ack in [1 << 30, 1 << 31, 3 << 30] {
        assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, ack, 1)), Verdict::Drop(Reason::TcpWindow));
    }
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 0, 1)), FORWARD);
}

#[test]
fn rfc9293_section_3_10_7_3_a_stale_syn_ack_is_not_forwarded() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    let stale = with(c.syn_ack(), |tcp| tcp.ack = tcp.ack.wrapping_sub(100_000));
    assert_eq!(k.pass(A, stale).held(), Some(HoldClass::Unmatched), "another SYN's hint may be under way");
    k.deliver();
    assert_eq!(k.pass(A, stale).held(), Some(HoldClass::Unmatched));
    assert_eq!(k.states(A), ["SYN_SENT"]);
    assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
}

#[test]
fn rfc9293_section_3_10_7_3_a_rst_answers_a_syn_only_if_it_acknowledges_it() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, c.of_server(Tcp::RST, 0, 0, 0)), Verdict::Drop(Reason::TcpRst));
    let wrong = with(c.of_server(RST_ACK, 0, 0, 0), |tcp| tcp.ack = tcp.ack.wrapping_sub(2));
    assert_eq!(k.pass(B, wrong), Verdict::Drop(Reason::TcpRst));
    assert_eq!(k.states(B), ["SYN_SENT"]);
    assert_eq!(k.pass(B, c.of_server(RST_ACK, 0, 0, 0)), FORWARD);
    assert!(k.states(B).is_empty());
}

#[test]
fn rfc7413_section_4_the_syn_may_carry_data() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    let syn = with(c.syn(), |tcp| tcp.payload = 700);
    let syn_ack = with(c.syn_ack(), |tcp| tcp.ack = tcp.ack.wrapping_add(700));
    assert_eq!(k.pass(A, syn), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, syn_ack), FORWARD);
    k.deliver();
    assert!(k.pass(C, c.of_client(Tcp::ACK, 700, 0, 0)).held().is_some());
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(C, c.of_client(Tcp::ACK, 700, 0, 0)), FORWARD);
    assert_eq!(k.pass(B, syn_ack), FORWARD, "a late copy");
}

/// The server still has a connection that the cluster has forgotten: the client must hear of it, reset it, and can then open.
#[test]
fn rfc9293_section_3_5_1_a_half_open_connection_is_discovered() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    let ack = with(c.of_server(Tcp::ACK, 7, 0, 0), |tcp| tcp.ack = 3_000_000_000);
    assert_eq!(k.pass(B, ack), FORWARD);
    let other = with(ack, |tcp| tcp.ack += 1);
    assert_eq!(k.pass(B, other), Verdict::Drop(Reason::TcpWindow), "one number for each SYN");
    k.deliver();
    assert_eq!(k.pass(C, other), Verdict::Drop(Reason::TcpWindow));
    let rst = with(c.of_client(Tcp::RST, 0, 0, 0), |tcp| tcp.seq = 3_000_000_000);
    assert_eq!(k.pass(C, rst), FORWARD);
    let forged = with(rst, |tcp| tcp.seq += 1);
    assert_eq!(k.pass(C, forged), Verdict::Drop(Reason::TcpRst));
    k.deliver();
    assert_eq!(k.states(A), ["SYN_SENT"]);
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.deliver();
    assert!(k.pass(A, c.ack()).held().is_some());
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(A, c.ack()), FORWARD);
}

/// A FIN that ends before what its sender has sent is a copy of nothing: it stops no connection.
#[test]
fn rfc9293_section_3_10_7_4_a_fin_before_the_end_of_the_data_has_no_effect() {
    let (mut k, c) = established(1);
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 0, 5000)), FORWARD);
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK | Tcp::FIN, 1000, 0, 0)), FORWARD);
    k.deliver();
    for at in [A, B] {
        assert_eq!(k.pass(at, c.of_client(Tcp::ACK, 5000, 0, 1000)), FORWARD);
        assert_eq!(k.states(at), ["ESTABLISHED"]);
    }
    assert_eq!(k.pass(B, c.of_server(Tcp::ACK, 0, 6000, 0)), FORWARD);
    assert_eq!(k.pass(A, c.of_client(Tcp::ACK | Tcp::FIN, 6000, 0, 0)), FORWARD);
    assert_eq!(k.states(A), ["FIN_WAIT"]);
}

/// Another SYN and SYN-ACK with numbers close to the connection's own hold up none of its packets, and end nothing.
#[test]
fn a_half_open_session_close_by_takes_nothing_from_the_connection() {
    let (mut k, c) = established(1);
    let near = Conn { client: c.client + 100, server: c.server + 100, ..c };
    assert_eq!(k.pass(A, near.syn()), FORWARD);
    assert_eq!(k.pass(A, near.syn_ack()), FORWARD);
    k.deliver();
    for n in 0..5 {
        assert_eq!(k.pass(A, c.of_client(Tcp::ACK, n * 500, n * 500, 500)), FORWARD, "{n}");
        assert_eq!(k.pass(B, c.of_server(Tcp::ACK, n * 500, n * 500 + 500, 500)), FORWARD, "{n}");
    }
    assert!(k.proposals.is_empty());
    assert_eq!(k.pass(A, c.of_client(Tcp::RST, 2500, 2500, 0)), FORWARD);
    k.deliver();
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert!(k.states(B).contains(&"CLOSE"), "{:?}", k.states(B));
}

/// Of two SYN-ACKs, the client's acknowledgement chooses the one that it acknowledges, whichever came last.
#[test]
fn the_acknowledgement_chooses_exactly() {
    for higher in [true, false] {
        let (mut k, c) = (Cluster::new(), Conn::new(1));
        let other = Conn { server: if higher { c.server + 50 } else { c.server - 50 }, ..c };
        assert_eq!(k.pass(A, c.syn()), FORWARD);
        assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
        assert_eq!(k.pass(A, other.syn_ack()), FORWARD);
        k.deliver();
        assert!(k.pass(B, c.ack()).held().is_some());
        let [(B, Proposal::Establish(e))] = &k.proposals[..] else { panic!("{:?}", k.proposals) };
        assert!(matches!(e.protocol, HandshakeState::Tcp { server: Some(s), .. } if s.isn == c.server));
    }
}

/// A RST ended the handshake, perhaps a forged one or one that was lost later; the same handshake begins anew.
#[test]
fn a_handshake_that_was_reset_may_begin_anew() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    for again in [false, true] {
        assert_eq!(k.pass(A, c.syn()), FORWARD);
        k.deliver();
        assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
        k.deliver();
        if !again {
            assert_eq!(k.pass(C, c.of_server(Tcp::RST, 0, 0, 0)), FORWARD);
            k.deliver();
        }
    }
    assert!(k.pass(C, c.ack()).held().is_some());
    assert_eq!(k.settle(), [Outcome::Accepted]);
    k.tick();
    assert!(k.proposals.is_empty(), "{:?}", k.proposals);
    assert_eq!(k.pass(A, c.data()), FORWARD);
    assert_eq!(k.states(A), ["ESTABLISHED"]);
}

/// What came before the SYN-ACK at the same member is judged again when that comes.
#[test]
fn a_syn_ack_wakes_what_overtook_it() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert!(k.pass(A, c.syn_ack()).held().is_some());
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    assert_eq!(k.members[A].woken.0.len(), 1);
    assert!(k.pass(A, c.ack()).held().is_some());
    assert!(k.proposals.is_empty());
    assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
    assert_eq!(k.members[A].woken.0.len(), 2);
    assert!(k.pass(A, c.ack()).held().is_some());
    assert_eq!(k.proposals.len(), 1);
}

/// The server's SYN, which crosses the client's.
fn crossing(c: &Conn) -> Packet {
    with(c.syn_ack(), |tcp| (tcp.flags, tcp.ack) = (Tcp::SYN, 0))
}

/// The client's answer to it.
fn crossing_ack(c: &Conn) -> Packet {
    with(c.syn(), |tcp| (tcp.flags, tcp.ack) = (Tcp::SYN | Tcp::ACK, c.server.wrapping_add(1)))
}

/// Figure 7: the client's rule is enough, and nothing but the handshake passes before the commit.
#[test]
fn rfc9293_section_3_5_simultaneous_open() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(
        k.pass(B, crossing(&c)),
        Verdict::Drop(Reason::Policy),
        "without the client's SYN it is not of a handshake"
    );
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(B, crossing(&c)), FORWARD);
    k.deliver();
    assert_eq!(k.pass(C, crossing(&c)), FORWARD, "a copy");
    assert_eq!(k.pass(A, crossing_ack(&c)).held(), Some(HoldClass::Matched));
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(A, crossing_ack(&c)), FORWARD);
    assert_eq!(k.pass(B, c.of_server(Tcp::ACK, 0, 0, 100)), FORWARD);
    assert_eq!(k.pass(C, c.of_client(Tcp::ACK, 0, 100, 100)), FORWARD);
    assert_eq!(k.states(C), ["ESTABLISHED"]);
}

/// Where a rule allows either direction and no hint is there yet, each end's SYN opens a half-open session; one session
/// remains, whoever proposes first.
#[test]
fn rfc9293_section_3_5_simultaneous_open_under_two_rules() {
    for first in [A, B] {
        let (mut k, c) = (Cluster::new(), Conn::new(1));
        k.policy("zone outside, inside\naccept \"all\" from any to any: any -> any\n");
        assert_eq!(k.pass(A, c.syn()), FORWARD);
        assert_eq!(k.pass(B, crossing(&c)), FORWARD);
        k.deliver();
        assert_eq!(k.members[C].engine.counts().half_open, 2);
        // Each of the two SYN-ACKs completes what the other end opened.
        let (one, other) = if first == A { (crossing_ack(&c), c.syn_ack()) } else { (c.syn_ack(), crossing_ack(&c)) };
        assert_eq!(k.pass(first, one), FORWARD);
        k.deliver();
        assert_eq!(k.pass(C, other).held(), Some(HoldClass::Matched));
        assert_eq!(k.settle(), [Outcome::Accepted]);
        assert_eq!(k.pass(C, other), FORWARD);
        assert_eq!(k.pass(A, c.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
        assert_eq!(k.pass(B, c.of_server(Tcp::ACK, 0, 100, 100)), FORWARD);
        for at in [A, B, C] {
            assert_eq!(k.states(at), ["ESTABLISHED"]);
        }
    }
}

/// Both members propose, each the connection that its own end opened.
#[test]
fn rfc9293_section_3_5_simultaneous_open_proposed_twice() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.policy("zone outside, inside\naccept \"all\" from any to any: any -> any\n");
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    assert_eq!(k.pass(B, crossing(&c)), FORWARD);
    k.hints.clear();
    assert_eq!(k.pass(A, c.syn_ack()), FORWARD);
    assert_eq!(k.pass(B, crossing_ack(&c)), FORWARD);
    let data = [c.of_client(Tcp::ACK, 0, 0, 100), c.of_server(Tcp::ACK, 0, 0, 100)];
    assert_eq!(k.pass(A, data[0]).held(), Some(HoldClass::Matched));
    assert_eq!(k.pass(B, data[1]).held(), Some(HoldClass::Matched));
    assert_eq!(k.settle(), [Outcome::Accepted, Outcome::Conflict]);
    k.deliver();
    for at in [A, B, C] {
        assert_eq!(k.pass(at, data[0]), FORWARD);
        assert_eq!(k.pass(at, data[1]), FORWARD);
        assert_eq!(k.states(at), ["ESTABLISHED"]);
    }
    assert!(k.proposals.is_empty());
}

/// A forged crossing SYN costs the true handshake nothing, and only one of many is believed.
#[test]
fn a_forged_crossing_syn_spoils_nothing() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    assert_eq!(k.pass(A, c.syn()), FORWARD);
    k.deliver();
    let forged = Conn { server: 4711, ..c };
    assert_eq!(k.pass(B, crossing(&forged)), FORWARD);
    // Any other SYN is the policy's to judge.
    assert_eq!(k.pass(B, crossing(&Conn { server: 4712, ..c })), Verdict::Drop(Reason::Policy));
    k.deliver();
    assert_eq!(k.pass(B, c.syn_ack()), FORWARD);
    k.deliver();
    assert_eq!(k.pass(C, c.ack()).held(), Some(HoldClass::Matched));
    assert_eq!(k.settle(), [Outcome::Accepted]);
    assert_eq!(k.pass(C, c.ack()), FORWARD);
    // A live connection is not opened anew.
    assert_eq!(k.pass(A, crossing(&forged)), Verdict::Drop(Reason::Policy));
}

/// A path changes after gigabytes: the member that knows nothing holds the packet, asks, and goes on where the other was.
#[test]
fn a_taken_over_connection_goes_on_where_it_was() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.register();
    open(&mut k, &c);
    let mut at = 0_u32;
    for n in 0..3000 {
        k.now = k.now + MS;
        assert_eq!(k.pass(A, c.of_client(Tcp::ACK, at, n, 1_000_000)), FORWARD);
        at = at.wrapping_add(1_000_000);
        assert_eq!(k.pass(B, c.of_server(Tcp::ACK, n, at, 1)), FORWARD);
    }
    k.hints.clear();
    k.members[C].woken.0.clear();
    let packet = c.of_client(Tcp::ACK, at, 3000, 1000);
    assert_eq!(k.pass(C, packet).held(), Some(HoldClass::Unmatched));
    assert!(k.asks() > 0);
    k.deliver();
    assert_eq!(k.members[C].woken.0.len(), 1);
    assert_eq!(k.pass(C, packet), FORWARD);
    assert_eq!(k.pass(C, c.of_client(Tcp::ACK, at.wrapping_add(1 << 30), 3000, 1)).held(), Some(HoldClass::Unmatched));
    k.deliver();
    let forged = c.of_client(Tcp::ACK, at.wrapping_add(1 << 30), 3000, 1);
    assert_eq!(k.pass(C, forged), Verdict::Drop(Reason::TcpWindow));
}

/// All who knew are gone: after a quarter of a second without an answer, one packet passes at its word, and the other direction's
/// answer shows that it was right.
#[test]
fn a_connection_survives_the_member_that_carried_it() {
    let (mut k, c) = (Cluster::new(), Conn::new(1));
    k.register();
    open(&mut k, &c);
    k.now = k.now + 5000 * MS;
    let packet = c.of_client(Tcp::ACK, 1 << 31, 1 << 30, 1000);
    let ask = |k: &mut Cluster| {
        // B, which carried both directions, is dead; A never saw any of it.
        k.hints.retain(|(from, to, _)| ![*from, *to].contains(&B));
        while !k.hints.is_empty() {
            k.deliver_one();
            k.hints.retain(|(from, to, _)| ![*from, *to].contains(&B));
        }
    };
    assert!(k.pass(C, packet).held().is_some());
    ask(&mut k);
    assert!(k.pass(C, packet).held().is_some(), "one is missing");
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(C, packet), FORWARD);
    let next = c.of_client(Tcp::ACK, (1 << 31) + 1000, 1 << 30, 1000);
    assert!(k.pass(C, next).held().is_some(), "nothing is believed yet");
    ask(&mut k);
    let answer = c.of_server(Tcp::ACK, 1 << 30, (1 << 31) + 1000, 0);
    assert!(k.pass(A, answer).held().is_some());
    ask(&mut k);
    k.now = k.now + 250 * MS;
    assert_eq!(k.pass(A, answer), FORWARD);
    ask(&mut k);
    assert_eq!(k.pass(C, next), FORWARD);
    let forged = c.of_client(Tcp::ACK, 0, 1 << 29, 1000);
    assert!(k.pass(C, forged).held().is_some());
    assert_eq!(k.members[C].engine.takeover_counts(), TakeoverCounts { within_bound: 0, provisional: 1 });
}
