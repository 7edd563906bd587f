//! The packet path allocates nothing on a hit: neither for an established session, nor for its fragments in any order, nor for
//! a held packet, nor for a packet that is dropped.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]
#![allow(unsafe_code, reason = "counting allocations needs a global allocator, which is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use palisade_engine::event::{Opening, TcpEnd};
use palisade_engine::parse::{Fragment, IpOptions, Kind, Packet, Tcp};
use palisade_engine::replica::{Batch, Command, Establish, Outcome, PolicyChange, Replica};
use palisade_engine::{
    Config, Context, Direction, Engine, Generation, HoldKey, Ip, MemberId, Protocol, Routes, RuleId, SessionId,
    Standing, Time, Tuple, Verdict, Wake, ZoneId,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system's allocator unchanged; the counter neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` with this layout, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

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

struct Nobody;

impl Wake for Nobody {
    fn wake(&mut self, _: u64, _: HoldKey) {}
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
    Packet { tuple, length: 140, transport: 20, kind: Kind::Tcp(tcp), fragment: None, options: IpOptions::NONE }
}

/// The first fragment of a datagram of a session, or the one that follows it.
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
    let engine = Engine::new(Config::new(MemberId(1), 1, 5));
    let mut replica = Replica::new(engine.clone());
    let change = PolicyChange { base: Generation(0), text: POLICY.to_owned(), author: String::new() };
    let mut commands = vec![Command::Policy(Box::new(change))];
    commands.extend((0..sessions).map(|n| {
        let end = |isn| TcpEnd { isn, window: 64240, wscale: Some(7), sack: true };
        Command::Establish(Box::new(Establish {
            id: SessionId { member: MemberId(1), counter: u64::from(n) },
            original: tuple(n),
            reply: tuple(n).inverse(),
            ingress: ZoneId(1),
            egress: ZoneId(2),
            generation: Generation(1),
            rule: RuleId(1),
            supersedes: None,
            protocol: Opening::Tcp { client: end(99), server: Some(end(199)) },
        }))
    }));
    let batch = Batch { proposer: MemberId(1), first: 0, floor: 0, unix_ms: 0, commands };
    let outcomes = replica.apply(Time(1), &batch, &mut Nobody);
    assert!(outcomes.iter().skip(1).all(|o| *o == Outcome::Accepted));
    engine
}

#[test]
fn hits_holds_and_drops_allocate_nothing() {
    const SESSIONS: u32 = 20_000;
    let engine = engine(SESSIONS);
    let mut events = Vec::with_capacity(16);
    let mut judge = |at: u64, packet: &Packet| {
        let mut context = Context {
            now: Time(at),
            worker: 1,
            ingress: if packet.tuple.dst == tuple(0).dst { ZoneId(1) } else { ZoneId(2) },
            antispoof: true,
            standing: Standing::Current,
            routes: &mut Net,
        };
        events.clear();
        engine.process(packet, &mut context, &mut events)
    };
    // What a thread or a shard allocates once.
    for n in 0..SESSIONS {
        assert_eq!(judge(2, &packet(n, Direction::Original, 100, 200)), Verdict::Forward);
    }
    let stray = packet(SESSIONS + 1, Direction::Reply, 1, 1);
    assert!(judge(2, &stray).held().is_some());
    // This member knows the sessions from the log alone, so that it asks.
    let far = packet(7, Direction::Original, 1 << 31, 200);
    assert!(judge(2, &far).held().is_some());
    // As many datagrams as a shard keeps, and as many as wait there.
    for id in 0..200 {
        judge(2, &fragment(7, id, true));
        judge(2, &fragment(7, 1000 + id, false));
    }
    let before = ALLOCATIONS.with(Cell::get);
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
    assert!(judge(20_000_000, &far).held().is_some());
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
}
