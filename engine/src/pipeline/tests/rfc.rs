//! The requirements of the standards, by document and section.

use super::cluster::*;
use crate::event::Proposal;
use crate::parse::{Kind, Packet, Tcp};
use crate::progress::TakeoverCounts;
use crate::replica::Outcome;
use crate::session::HandshakeState;
use crate::verdict::{HoldClass, Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;
const RST_ACK: u8 = Tcp::RST | Tcp::ACK;

fn with(mut packet: Packet, change: impl Fn(&mut Tcp)) -> Packet {
    if let Kind::Tcp(tcp) = &mut packet.kind {
        change(tcp);
    }
    packet
}

/// A restarted client's SYN meets the old connection. The server's challenge ACK passes, the client's RST in reply is exact and
/// ends the old connection, and the retransmitted SYN opens the new one.
#[test]
fn rfc5961_section_4_syn_on_an_established_connection() {
    let (mut cluster, conn) = established(1);
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
    let next = Conn { client: conn.client.wrapping_add(1 << 30), server: 77, ..conn };
    assert_eq!(cluster.pass(A, next.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.states(A), ["ESTABLISHED", "SYN_SENT"], "the SYN changes nothing");
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 100, 0)), FORWARD, "the challenge ACK");
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::RST, 100, 0, 0)), FORWARD, "its answer");
    cluster.deliver();
    assert!(cluster.settle().contains(&Outcome::Accepted));
    cluster.now = cluster.now + 1000 * MS;
    assert_eq!(cluster.pass(A, next.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, next.syn_ack()), FORWARD);
    cluster.deliver();
    assert!(cluster.pass(A, next.ack()).held().is_some());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(A, next.ack()), FORWARD);
}

#[test]
fn rfc5961_section_3_2_a_rst_must_be_exact() {
    for flags in [Tcp::RST, RST_ACK] {
        let (mut cluster, conn) = established(1);
        assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
        for seq in [99, 101, 5000] {
            assert_eq!(cluster.pass(A, conn.of_client(flags, seq, 0, 0)), Verdict::Drop(Reason::TcpRst), "{seq}");
        }
        assert_eq!(cluster.pass(A, conn.of_client(flags, 100, 0, 0)), FORWARD);
    }
}

#[test]
fn rfc5961_section_5_2_acknowledgements() {
    let (mut cluster, conn) = established(1);
    // Numbers that were never sent, or are older than two windows (2^31: the other half of the sequence space).
    for ack in [1 << 30, 1 << 31, 3 << 30] {
        assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, ack, 1)), Verdict::Drop(Reason::TcpWindow));
    }
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 0, 1)), FORWARD);
}

#[test]
fn rfc9293_section_3_10_7_3_a_stale_syn_ack_is_not_forwarded() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    let stale = with(conn.syn_ack(), |tcp| tcp.ack = tcp.ack.wrapping_sub(100_000));
    assert_eq!(cluster.pass(A, stale).held(), Some(HoldClass::Unmatched), "another SYN's hint may be under way");
    cluster.deliver();
    assert_eq!(cluster.pass(A, stale).held(), Some(HoldClass::Unmatched));
    assert_eq!(cluster.states(A), ["SYN_SENT"]);
    assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD);
}

#[test]
fn rfc9293_section_3_10_7_3_a_rst_answers_a_syn_only_if_it_acknowledges_it() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::RST, 0, 0, 0)), Verdict::Drop(Reason::TcpRst));
    let wrong = with(conn.of_server(RST_ACK, 0, 0, 0), |tcp| tcp.ack = tcp.ack.wrapping_sub(2));
    assert_eq!(cluster.pass(B, wrong), Verdict::Drop(Reason::TcpRst));
    assert_eq!(cluster.states(B), ["SYN_SENT"]);
    assert_eq!(cluster.pass(B, conn.of_server(RST_ACK, 0, 0, 0)), FORWARD);
    assert!(cluster.states(B).is_empty());
}

#[test]
fn rfc7413_section_4_the_syn_may_carry_data() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    let syn = with(conn.syn(), |tcp| tcp.payload = 700);
    let syn_ack = with(conn.syn_ack(), |tcp| tcp.ack = tcp.ack.wrapping_add(700));
    assert_eq!(cluster.pass(A, syn), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, syn_ack), FORWARD);
    cluster.deliver();
    assert!(cluster.pass(C, conn.of_client(Tcp::ACK, 700, 0, 0)).held().is_some());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(C, conn.of_client(Tcp::ACK, 700, 0, 0)), FORWARD);
    assert_eq!(cluster.pass(B, syn_ack), FORWARD, "a late copy");
}

/// The server still holds a connection that the cluster has forgotten. The client must receive the challenge ACK and reset that
/// connection; then it can open a new one.
#[test]
fn rfc9293_section_3_5_1_a_half_open_connection_is_discovered() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    let ack = with(conn.of_server(Tcp::ACK, 7, 0, 0), |tcp| tcp.ack = 3_000_000_000);
    assert_eq!(cluster.pass(B, ack), FORWARD);
    let other = with(ack, |tcp| tcp.ack += 1);
    assert_eq!(cluster.pass(B, other), Verdict::Drop(Reason::TcpWindow), "one number for each SYN");
    cluster.deliver();
    assert_eq!(cluster.pass(C, other), Verdict::Drop(Reason::TcpWindow));
    let rst = with(conn.of_client(Tcp::RST, 0, 0, 0), |tcp| tcp.seq = 3_000_000_000);
    assert_eq!(cluster.pass(C, rst), FORWARD);
    let forged = with(rst, |tcp| tcp.seq += 1);
    assert_eq!(cluster.pass(C, forged), Verdict::Drop(Reason::TcpRst));
    cluster.deliver();
    assert_eq!(cluster.states(A), ["SYN_SENT"]);
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.deliver();
    assert!(cluster.pass(A, conn.ack()).held().is_some());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(A, conn.ack()), FORWARD);
}

/// A FIN that ends before the end of its sender's data is not genuine, and stops no connection.
#[test]
fn rfc9293_section_3_10_7_4_a_fin_before_the_end_of_the_data_has_no_effect() {
    let (mut cluster, conn) = established(1);
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 0, 5000)), FORWARD);
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK | Tcp::FIN, 1000, 0, 0)), FORWARD);
    cluster.deliver();
    for at in [A, B] {
        assert_eq!(cluster.pass(at, conn.of_client(Tcp::ACK, 5000, 0, 1000)), FORWARD);
        assert_eq!(cluster.states(at), ["ESTABLISHED"]);
    }
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 6000, 0)), FORWARD);
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK | Tcp::FIN, 6000, 0, 0)), FORWARD);
    assert_eq!(cluster.states(A), ["FIN_WAIT"]);
}

/// Another SYN and SYN-ACK with numbers close to the connection's delay none of its packets, and end nothing.
#[test]
fn half_open_session_close_by_takes_nothing_from_the_connection() {
    let (mut cluster, conn) = established(1);
    let near = Conn { client: conn.client + 100, server: conn.server + 100, ..conn };
    assert_eq!(cluster.pass(A, near.syn()), FORWARD);
    assert_eq!(cluster.pass(A, near.syn_ack()), FORWARD);
    cluster.deliver();
    for n in 0..5 {
        assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, n * 500, n * 500, 500)), FORWARD, "{n}");
        assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, n * 500, n * 500 + 500, 500)), FORWARD, "{n}");
    }
    assert!(cluster.proposals.is_empty());
    assert_eq!(cluster.pass(A, conn.of_client(Tcp::RST, 2500, 2500, 0)), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert!(cluster.states(B).contains(&"CLOSE"), "{:?}", cluster.states(B));
}

/// After two SYN-ACKs, the client's acknowledgement chooses the one that it acknowledges, whichever came last.
#[test]
fn half_open_session_is_chosen_by_the_exact_acknowledgement() {
    for higher in [true, false] {
        let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
        let other = Conn { server: if higher { conn.server + 50 } else { conn.server - 50 }, ..conn };
        assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
        assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD);
        assert_eq!(cluster.pass(A, other.syn_ack()), FORWARD);
        cluster.deliver();
        assert!(cluster.pass(B, conn.ack()).held().is_some());
        let [(B, Proposal::Establish(e))] = &cluster.proposals[..] else { panic!("{:?}", cluster.proposals) };
        assert!(matches!(e.protocol, HandshakeState::Tcp { server: Some(s), .. } if s.isn == conn.server));
    }
}

/// A RST ended the handshake, perhaps a forged one or one that was lost later. The same handshake starts again.
#[test]
fn handshake_that_was_reset_may_start_again() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    for again in [false, true] {
        assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
        cluster.deliver();
        assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
        cluster.deliver();
        if !again {
            assert_eq!(cluster.pass(C, conn.of_server(Tcp::RST, 0, 0, 0)), FORWARD);
            cluster.deliver();
        }
    }
    assert!(cluster.pass(C, conn.ack()).held().is_some());
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    cluster.tick();
    assert!(cluster.proposals.is_empty(), "{:?}", cluster.proposals);
    assert_eq!(cluster.pass(A, conn.data()), FORWARD);
    assert_eq!(cluster.states(A), ["ESTABLISHED"]);
}

/// Packets that came before the SYN-ACK at the same member are judged again when the SYN-ACK comes.
#[test]
fn syn_ack_wakes_packets_that_overtook_it() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert!(cluster.pass(A, conn.syn_ack()).held().is_some());
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    assert_eq!(cluster.members[A].woken.0.len(), 1);
    assert!(cluster.pass(A, conn.ack()).held().is_some());
    assert!(cluster.proposals.is_empty());
    assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD);
    assert_eq!(cluster.members[A].woken.0.len(), 2);
    assert!(cluster.pass(A, conn.ack()).held().is_some());
    assert_eq!(cluster.proposals.len(), 1);
}

/// The server's SYN of a simultaneous open.
fn crossing(conn: &Conn) -> Packet {
    with(conn.syn_ack(), |tcp| (tcp.flags, tcp.ack) = (Tcp::SYN, 0))
}

/// The client's SYN-ACK in reply.
fn crossing_ack(conn: &Conn) -> Packet {
    with(conn.syn(), |tcp| (tcp.flags, tcp.ack) = (Tcp::SYN | Tcp::ACK, conn.server.wrapping_add(1)))
}

/// RFC 9293 figure 7. The rule for the client's direction suffices, and only the handshake passes before the commit.
#[test]
fn rfc9293_section_3_5_simultaneous_open() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(
        cluster.pass(B, crossing(&conn)),
        Verdict::Drop(Reason::Policy),
        "without the client's SYN it is not of a handshake"
    );
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(B, crossing(&conn)), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(C, crossing(&conn)), FORWARD, "a copy");
    assert_eq!(cluster.pass(A, crossing_ack(&conn)).held(), Some(HoldClass::Matched));
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(A, crossing_ack(&conn)), FORWARD);
    assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 0, 100)), FORWARD);
    assert_eq!(cluster.pass(C, conn.of_client(Tcp::ACK, 0, 100, 100)), FORWARD);
    assert_eq!(cluster.states(C), ["ESTABLISHED"]);
}

/// If rules allow both directions and no hint has come yet, each end's SYN opens a half-open session. One session remains,
/// whichever member proposes first.
#[test]
fn rfc9293_section_3_5_simultaneous_open_under_two_rules() {
    for first in [A, B] {
        let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
        cluster.policy("zone outside, inside\naccept \"all\" from any to any: any -> any\n");
        assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
        assert_eq!(cluster.pass(B, crossing(&conn)), FORWARD);
        cluster.deliver();
        assert_eq!(cluster.members[C].engine.counts().half_open, 2);
        // Each of the two SYN-ACKs completes what the other end opened.
        let (one, other) =
            if first == A { (crossing_ack(&conn), conn.syn_ack()) } else { (conn.syn_ack(), crossing_ack(&conn)) };
        assert_eq!(cluster.pass(first, one), FORWARD);
        cluster.deliver();
        assert_eq!(cluster.pass(C, other).held(), Some(HoldClass::Matched));
        assert_eq!(cluster.settle(), [Outcome::Accepted]);
        assert_eq!(cluster.pass(C, other), FORWARD);
        assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, 0, 0, 100)), FORWARD);
        assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, 0, 100, 100)), FORWARD);
        for at in [A, B, C] {
            assert_eq!(cluster.states(at), ["ESTABLISHED"]);
        }
    }
}

/// Two members propose, each the connection that the SYN at it opened.
#[test]
fn rfc9293_section_3_5_simultaneous_open_proposed_twice() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.policy("zone outside, inside\naccept \"all\" from any to any: any -> any\n");
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    assert_eq!(cluster.pass(B, crossing(&conn)), FORWARD);
    cluster.hints.clear();
    assert_eq!(cluster.pass(A, conn.syn_ack()), FORWARD);
    assert_eq!(cluster.pass(B, crossing_ack(&conn)), FORWARD);
    let data = [conn.of_client(Tcp::ACK, 0, 0, 100), conn.of_server(Tcp::ACK, 0, 0, 100)];
    assert_eq!(cluster.pass(A, data[0]).held(), Some(HoldClass::Matched));
    assert_eq!(cluster.pass(B, data[1]).held(), Some(HoldClass::Matched));
    assert_eq!(cluster.settle(), [Outcome::Accepted, Outcome::Conflict]);
    cluster.deliver();
    for at in [A, B, C] {
        assert_eq!(cluster.pass(at, data[0]), FORWARD);
        assert_eq!(cluster.pass(at, data[1]), FORWARD);
        assert_eq!(cluster.states(at), ["ESTABLISHED"]);
    }
    assert!(cluster.proposals.is_empty());
}

/// A forged SYN of the server does not harm the genuine handshake, and only one of many is accepted.
#[test]
fn simultaneous_open_forged_syn_spoils_nothing() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    assert_eq!(cluster.pass(A, conn.syn()), FORWARD);
    cluster.deliver();
    let forged = Conn { server: 4711, ..conn };
    assert_eq!(cluster.pass(B, crossing(&forged)), FORWARD);
    // Policy judges any other SYN.
    assert_eq!(cluster.pass(B, crossing(&Conn { server: 4712, ..conn })), Verdict::Drop(Reason::Policy));
    cluster.deliver();
    assert_eq!(cluster.pass(B, conn.syn_ack()), FORWARD);
    cluster.deliver();
    assert_eq!(cluster.pass(C, conn.ack()).held(), Some(HoldClass::Matched));
    assert_eq!(cluster.settle(), [Outcome::Accepted]);
    assert_eq!(cluster.pass(C, conn.ack()), FORWARD);
    // A live connection is not opened again.
    assert_eq!(cluster.pass(A, crossing(&forged)), Verdict::Drop(Reason::Policy));
}

/// A path changes after gigabytes. The member that knows nothing holds the packet, queries its peers, and accepts what follows.
#[test]
fn path_change_after_gigabytes_is_resolved_by_a_query() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.register();
    open(&mut cluster, &conn);
    let mut at = 0_u32;
    for n in 0..3000 {
        cluster.now = cluster.now + MS;
        assert_eq!(cluster.pass(A, conn.of_client(Tcp::ACK, at, n, 1_000_000)), FORWARD);
        at = at.wrapping_add(1_000_000);
        assert_eq!(cluster.pass(B, conn.of_server(Tcp::ACK, n, at, 1)), FORWARD);
    }
    cluster.hints.clear();
    cluster.members[C].woken.0.clear();
    let packet = conn.of_client(Tcp::ACK, at, 3000, 1000);
    assert_eq!(cluster.pass(C, packet).held(), Some(HoldClass::Unmatched));
    assert!(cluster.asks() > 0);
    cluster.deliver();
    assert_eq!(cluster.members[C].woken.0.len(), 1);
    assert_eq!(cluster.pass(C, packet), FORWARD);
    assert_eq!(
        cluster.pass(C, conn.of_client(Tcp::ACK, at.wrapping_add(1 << 30), 3000, 1)).held(),
        Some(HoldClass::Unmatched)
    );
    cluster.deliver();
    let forged = conn.of_client(Tcp::ACK, at.wrapping_add(1 << 30), 3000, 1);
    assert_eq!(cluster.pass(C, forged), Verdict::Drop(Reason::TcpWindow));
}

/// No live member knows the connection. After 250 ms without all replies one segment passes provisionally, and a segment of
/// the opposite direction corroborates it.
#[test]
fn provisional_segments_save_the_connection_of_a_lost_member() {
    let (mut cluster, conn) = (Cluster::new(), Conn::new(1));
    cluster.register();
    open(&mut cluster, &conn);
    cluster.now = cluster.now + 5000 * MS;
    let packet = conn.of_client(Tcp::ACK, 1 << 31, 1 << 30, 1000);
    let exchange_hints = |cluster: &mut Cluster| {
        // B, which carried both directions, is dead. A never saw the connection.
        cluster.hints.retain(|(from, to, _)| ![*from, *to].contains(&B));
        while !cluster.hints.is_empty() {
            cluster.deliver_one();
            cluster.hints.retain(|(from, to, _)| ![*from, *to].contains(&B));
        }
    };
    assert!(cluster.pass(C, packet).held().is_some());
    exchange_hints(&mut cluster);
    assert!(cluster.pass(C, packet).held().is_some(), "a reply is missing");
    cluster.now = cluster.now + 250 * MS;
    assert_eq!(cluster.pass(C, packet), FORWARD);
    let next = conn.of_client(Tcp::ACK, (1 << 31) + 1000, 1 << 30, 1000);
    assert!(cluster.pass(C, next).held().is_some(), "nothing is corroborated yet");
    exchange_hints(&mut cluster);
    let answer = conn.of_server(Tcp::ACK, 1 << 30, (1 << 31) + 1000, 0);
    assert!(cluster.pass(A, answer).held().is_some());
    exchange_hints(&mut cluster);
    cluster.now = cluster.now + 250 * MS;
    assert_eq!(cluster.pass(A, answer), FORWARD);
    exchange_hints(&mut cluster);
    assert_eq!(cluster.pass(C, next), FORWARD);
    let forged = conn.of_client(Tcp::ACK, 0, 1 << 29, 1000);
    assert!(cluster.pass(C, forged).held().is_some());
    assert_eq!(cluster.members[C].engine.takeover_counts(), TakeoverCounts { within_bound: 0, provisional: 1 });
}
