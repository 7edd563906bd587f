//! The reasons are narrow: no class explains a verdict that would be plainly wrong. Needs no kernel.

use palisade_engine::parse::build::{self, Echo};
use palisade_engine::parse::{self, Checksum};
use palisade_engine::{Protocol, Reason, Tuple};

use crate::classes::{View, explanation};
use crate::facts::Facts;
use crate::kernel::State;
use crate::ours::Ours;
use crate::packet::{ACK, FIN, RST, SYN, Segment, Side, host, udp};

const ISN: [u32; 2] = [1000, 9_000_000];

fn tuple(protocol: Protocol) -> Tuple {
    let (src, dst) = (host(Side::Client, 99, true), host(Side::Server, 99, true));
    Tuple { src, dst, src_port: 4000, dst_port: 80, protocol }
}

/// A segment, its numbers from the first byte of data on. No scale; windows of 10,000 bytes.
fn segment(from: Side, flags: u8, seq: i64, ack: i64, data: usize) -> (Side, Vec<u8>) {
    let number = |side: Side, n: i64| ISN[side.index()].wrapping_add(1).wrapping_add(n as u32);
    let (seq, ack) = (number(from, seq), number(from.other(), ack));
    let segment = Segment { flags, seq, ack, window: 10_000, data, ..Segment::default() };
    let tuple = tuple(Protocol::TCP);
    (from, segment.packet(&if from == Side::Client { tuple } else { tuple.inverse() }))
}

fn facts(history: &[(Side, Vec<u8>)]) -> Facts {
    let mut facts = Facts::default();
    for (_, bytes) in history {
        let packet = parse::parse(bytes, Checksum::Complete).unwrap();
        facts.seen(&packet, [State::Established; 2]);
        facts.take(&packet);
    }
    facts
}

fn reason(facts: &Facts, (from, bytes): &(Side, Vec<u8>), state: State, ours: Ours) -> Option<&'static str> {
    let packet = parse::parse(bytes, Checksum::Complete);
    let of = |loose| {
        let view = View {
            from: *from,
            packets: std::slice::from_ref(bytes),
            packet: packet.as_ref().map_err(|reason| *reason),
            facts,
            now: facts,
            loose,
            state,
            ours,
        };
        explanation(&view).map(|class| class.name)
    };
    of(true).or(of(false))
}

/// All reasons that there are, and to be held in vain.
fn all_drops() -> impl Iterator<Item = Ours> {
    Reason::ALL.iter().flat_map(|reason| [Ours::Drop(*reason), Ours::LateDrop(*reason)])
}

fn must_pass(history: &[(Side, Vec<u8>)], packet: &(Side, Vec<u8>)) {
    let facts = facts(history);
    for ours in all_drops() {
        // Classes about one header or another look at it, not at the reason alone; those of the zone at the interface.
        let reason = reason(&facts, packet, State::Established, ours);
        assert_eq!(reason, None, "{ours:?} after {} packets", history.len());
    }
}

fn must_not_pass(history: &[(Side, Vec<u8>)], packet: &(Side, Vec<u8>)) {
    let facts = facts(history);
    assert_eq!(reason(&facts, packet, State::Invalid, Ours::Forward), None, "after {} packets", history.len());
}

use Side::{Client, Server};

fn opened() -> Vec<(Side, Vec<u8>)> {
    vec![
        segment(Client, SYN, -1, 0, 0),
        segment(Server, SYN | ACK, -1, 0, 0),
        segment(Client, ACK, 0, 0, 0),
        segment(Client, ACK, 0, 0, 500),
        segment(Server, ACK, 0, 500, 500),
    ]
}

fn closed() -> Vec<(Side, Vec<u8>)> {
    let mut history = opened();
    history.extend([
        segment(Client, FIN | ACK, 500, 500, 0),
        segment(Server, FIN | ACK, 500, 501, 0),
        segment(Client, ACK, 501, 501, 0),
    ]);
    history
}

#[test]
fn no_class_explains_that_a_right_packet_is_dropped() {
    let syn = &opened()[..1];
    must_pass(&[], &syn[0]);
    must_pass(syn, &opened()[1]);
    must_pass(syn, &segment(Server, RST | ACK, 0, 0, 0));
    must_pass(&opened()[..2], &opened()[2]);
    must_pass(&opened()[..2], &opened()[3]);
    for packet in [
        segment(Client, ACK, 500, 500, 0),
        segment(Client, ACK, 500, 500, 1000),
        segment(Client, ACK, 500, 500, 10_000),
        segment(Client, ACK, 0, 500, 500),
        segment(Client, ACK, 499, 500, 0),
        segment(Client, ACK | FIN, 500, 500, 0),
        segment(Server, ACK, 500, 500, 1000),
        segment(Server, ACK, 500, 0, 0),
        segment(Client, RST, 500, 0, 0),
        segment(Server, RST | ACK, 500, 500, 0),
        segment(Client, SYN, -1, 0, 0),
        segment(Server, SYN | ACK, -1, 0, 0),
    ] {
        must_pass(&opened(), &packet);
    }
    for packet in [
        segment(Client, ACK, 501, 501, 0),
        segment(Server, FIN | ACK, 500, 501, 0),
        segment(Client, FIN | ACK, 500, 500, 0),
        segment(Server, ACK, 501, 501, 0),
    ] {
        must_pass(&closed(), &packet);
    }
    let question = udp(&tuple(Protocol::UDP), b"question");
    must_pass(&[], &(Client, question));
    let t = tuple(Protocol::ICMP);
    must_pass(&[], &(Client, build::echo(t.src, t.dst, Echo::Request, 1, 1, b"").unwrap()));
}

#[test]
fn no_class_explains_that_a_wrong_packet_passes() {
    for packet in [
        segment(Client, ACK, 1 << 30, 500, 100),
        segment(Client, ACK, 5_000_000, 500, 100),
        segment(Client, ACK, -(1 << 30), 500, 100),
        segment(Client, ACK, 500, 1 << 30, 0),
        segment(Client, ACK, 500, 5_000_000, 0),
        segment(Client, RST, 501, 0, 0),
        segment(Client, RST, 5000, 0, 0),
        segment(Server, RST | ACK, 499, 500, 0),
        segment(Server, SYN | ACK, 4000, 1 << 20, 0),
        segment(Client, SYN | ACK, 4000, 4000, 0),
        segment(Server, SYN, 4000, 0, 0),
    ] {
        must_not_pass(&opened(), &packet);
    }
    let syn = &opened()[..1];
    for packet in [
        segment(Server, SYN | ACK, -1, -1, 0),
        segment(Server, SYN | ACK, -1, 1 << 20, 0),
        segment(Server, RST, 0, 0, 0),
        segment(Server, RST | ACK, 0, -1, 0),
        segment(Server, ACK, 0, 0, 100),
        segment(Client, ACK, 0, 0, 100),
    ] {
        must_not_pass(syn, &packet);
    }
    must_not_pass(&[], &segment(Client, ACK, 0, 0, 100));
    must_not_pass(&[], &segment(Server, SYN | ACK, 0, 0, 0));
    must_not_pass(&[], &segment(Client, RST, 0, 0, 0));
    for packet in [segment(Client, ACK, 501, 501, 100), segment(Client, RST, 1 << 20, 0, 0)] {
        must_not_pass(&closed(), &packet);
    }
}
