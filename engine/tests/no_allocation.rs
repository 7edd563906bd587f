//! The packet path does not allocate for a packet of an established session, for its fragments in any order, for a held
//! packet, or for a dropped packet.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

mod common;
#[path = "common/counting.rs"]
#[expect(dead_code, reason = "another test counts bytes")]
mod counting;

use common::{Member, established};
use counting::allocations;
use palisade_engine::parse::{Fragment, IpOptions, Kind, Packet, RoutingClass, Tcp};
use palisade_engine::{
    Config, Context, Direction, Engine, Ip, LeaseState, MemberId, Protocol, Routes, Time, Tuple, Verdict, ZoneId,
};

struct Net;

impl Routes for Net {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        match destination {
            Ip::V4([10, 0, 1, _]) => Some(ZoneId(1)),
            Ip::V4([10, 0, 2, _]) => Some(ZoneId(2)),
            _ => None,
        }
    }
}

const POLICY: &str = "zone outside, inside\ndefault drop\naccept \"web\" from outside to inside: any -> any tcp/80\n";

fn tuple(n: u32) -> Tuple {
    let [_, _, high, low] = n.to_be_bytes();
    Tuple {
        src: Ip::V4([10, 0, 1, high]),
        dst: Ip::V4([10, 0, 2, 1]),
        src_port: 1024 + u16::from(low),
        dst_port: 80,
        protocol: Protocol::TCP,
    }
}

fn packet(n: u32, direction: Direction, seq: u32, ack: u32) -> Packet {
    let tcp = Tcp { seq, ack, flags: Tcp::ACK, window: 500, payload: 100, wscale: None, sack_permitted: false };
    let tuple = match direction {
        Direction::Original => tuple(n),
        Direction::Reply => tuple(n).inverse(),
    };
    let (options, class) = (IpOptions::NONE, RoutingClass::default());
    Packet { tuple, length: 140, transport: 20, kind: Kind::Tcp(tcp), fragment: None, options, class }
}

/// The first or second fragment of a datagram of a session.
fn fragment(n: u32, id: u32, first: bool) -> Packet {
    let whole = packet(n, Direction::Original, 100, 200);
    let offset = if first { 0 } else { 120 };
    let part = Fragment { id, offset, length: 120, more: first };
    match first {
        true => Packet { fragment: Some(part), ..whole },
        false => {
            let tuple = Tuple { src_port: 0, dst_port: 0, ..whole.tuple };
            Packet { tuple, kind: Kind::Fragment(part), ..whole }
        }
    }
}

fn engine(sessions: u32) -> std::sync::Arc<Engine> {
    let mut member = Member::with_policy(Config::new(MemberId(1), 1, 5), POLICY.to_owned());
    member.accept((0..sessions).map(|n| established(n, tuple(n))).collect());
    member.engine
}

#[test]
fn packet_path_hits_holds_and_drops_do_not_allocate() {
    const SESSIONS: u32 = 20_000;
    let engine = engine(SESSIONS + 1);
    let mut events = Vec::with_capacity(16);
    let mut judge = |at: u64, packet: &Packet| {
        let mut context = Context {
            now: Time(at),
            worker: 1,
            ingress: if packet.tuple.dst == tuple(0).dst { ZoneId(1) } else { ZoneId(2) },
            antispoof: true,
            lease: LeaseState::Valid,
            routes: &mut Net,
        };
        events.clear();
        engine.process(packet, &mut context, &mut events)
    };
    // Lets each thread and shard make its one-time allocations.
    for n in 0..SESSIONS {
        assert_eq!(judge(2, &packet(n, Direction::Original, 100, 200)), Verdict::Forward);
    }
    let stray = packet(SESSIONS + 1, Direction::Reply, 1, 1);
    assert!(judge(2, &stray).held().is_some());
    // This member knows the sessions only from the log, and has no peers to query.
    let far = |n: u32| packet(SESSIONS, Direction::Original, n << 28, 200);
    assert_eq!(judge(1_000_000_000, &far(8)), Verdict::Forward);
    assert!(judge(1_000_000_000, &far(5)).held().is_some(), "one passes provisionally");
    // As many datagrams as a shard can keep, and as many as can wait there.
    for id in 0..200 {
        judge(2, &fragment(7, id, true));
        judge(2, &fragment(7, 1000 + id, false));
    }
    let before = allocations();
    for id in 2000..2100 {
        let now = u64::from(id) * 1_000_000_000;
        assert!(judge(now, &fragment(7, id, false)).held().is_some());
        assert_eq!(judge(now, &fragment(7, id, true)), Verdict::Forward);
        assert_eq!(judge(now, &fragment(7, id, false)), Verdict::Forward);
        assert_eq!(judge(now, &fragment(7, id + 1000, true)), Verdict::Forward);
        assert!(judge(now, &fragment(7, id + 5000, false)).held().is_some());
    }
    for round in 1..20 {
        for n in 0..SESSIONS {
            let verdict = judge(round * 1_000_000, &packet(n, Direction::Original, 100 + 100 * round as u32, 200));
            assert_eq!(verdict, Verdict::Forward);
            assert_eq!(judge(round * 1_000_000, &packet(n, Direction::Reply, 200, 200)), Verdict::Forward);
        }
    }
    assert!(judge(20_000_000, &stray).held().is_some());
    assert!(judge(1_020_000_000, &far(5)).held().is_some());
    assert_eq!(judge(2_000_000_000, &far(5)), Verdict::Forward);
    assert_eq!(allocations(), before);
}
