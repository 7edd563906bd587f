//! What an established session takes, measured: its entry, its share of the indices, of the slab's spare places, and of what
//! the replica keeps, local and replicated parts together.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]
#![allow(unsafe_code, reason = "counting bytes needs a global allocator, which is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use palisade_engine::event::{Opening, TcpEnd};
use palisade_engine::replica::{Batch, Command, Establish, Outcome, PolicyChange, Replica};
use palisade_engine::{
    Config, Engine, Generation, HoldKey, Ip, MemberId, Protocol, RuleId, SessionId, Time, Tuple, Wake, ZoneId,
};

struct Counting;

thread_local! {
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system's allocator unchanged; the counter neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.with(|n| n.set(n.get() + layout.size() as i64));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.with(|n| n.set(n.get() - layout.size() as i64));
        // SAFETY: `at` came from `System` with this layout, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

struct Nobody;

impl Wake for Nobody {
    fn wake(&mut self, _: u64, _: HoldKey) {}
}

fn establish(n: u32) -> Command {
    let [a, b, c, d] = n.to_be_bytes();
    let end = |isn| TcpEnd { isn, window: 64240, wscale: Some(7), sack: true };
    let original = Tuple {
        src: Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        dst: Ip::V6([0x20, 1, 0xd, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        src_port: 1024,
        dst_port: 443,
        protocol: Protocol::TCP,
    };
    Command::Establish(Box::new(Establish {
        id: SessionId { member: MemberId(1), counter: u64::from(n) },
        original,
        reply: original.inverse(),
        ingress: ZoneId(1),
        egress: ZoneId(2),
        generation: Generation(1),
        rule: RuleId(1),
        supersedes: None,
        protocol: Opening::Tcp { client: end(99), server: Some(end(199)) },
    }))
}

#[test]
fn an_established_session_takes_at_most_256_bytes() {
    // The indices double at powers of two: soon after that they have the most spare room.
    const MEASURED: [u32; 6] = [88_000, 92_000, 118_000, 122_000, 150_000, 200_000];
    const BATCH: u32 = 1000;
    let engine = Engine::new(Config::new(MemberId(1), 1, 5));
    let mut replica = Replica::new(engine.clone());
    let mut next = 0;
    let mut apply = |commands: Vec<Command>| {
        let first = next;
        next += commands.len() as u64;
        let batch = Batch { proposer: MemberId(1), first, floor: first, unix_ms: 0, commands };
        replica.apply(Time(1), &batch, &mut Nobody)
    };
    let text = "zone outside, inside\naccept \"all\" from any to any: any -> any\n".to_owned();
    let change = PolicyChange { base: Generation(0), text, author: String::new() };
    assert_eq!(apply(vec![Command::Policy(Box::new(change))]), [Outcome::Policy(Generation(1))]);
    let before = BYTES.with(Cell::get);
    for first in (0..MEASURED[5]).step_by(BATCH as usize) {
        let outcomes = apply((first..first + BATCH).map(establish).collect());
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
        let sessions = first + BATCH;
        if MEASURED.contains(&sessions) {
            let each = (BYTES.with(Cell::get) - before) as f64 / f64::from(sessions);
            println!("{each:.1} bytes a session, of {sessions}");
            assert!(each <= 256.0, "{each:.1} bytes a session");
        }
    }
}
