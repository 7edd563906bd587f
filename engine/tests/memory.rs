//! The measured memory of an established session, local and replicated: its entry, and its share of the indices, of the
//! spare capacity of the slab, and of the replica's state.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

mod common;
#[path = "common/counting.rs"]
#[expect(dead_code, reason = "another test counts allocations")]
mod counting;

use common::{Member, established};
use counting::bytes;
use palisade_engine::replica::Command;
use palisade_engine::{Config, Ip, MemberId, Protocol, Tuple};

fn establish(n: u32) -> Command {
    let [a, b, c, d] = n.to_be_bytes();
    let original = Tuple {
        src: Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        dst: Ip::V6([0x20, 1, 0xd, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        src_port: 1024,
        dst_port: 443,
        protocol: Protocol::TCP,
    };
    established(n, original)
}

#[test]
fn memory_of_established_session_is_at_most_268_bytes() {
    // The indices double at powers of two; shortly after that their spare capacity is largest.
    const MEASURED: [u32; 6] = [88_000, 92_000, 118_000, 122_000, 150_000, 200_000];
    const BATCH: u32 = 1000;
    let policy = "zone outside, inside\naccept \"all\" from any to any: any -> any\n".to_owned();
    let mut member = Member::with_policy(Config::new(MemberId(1), 1, 5), policy);
    let before = bytes();
    for first in (0..MEASURED[5]).step_by(BATCH as usize) {
        member.accept((first..first + BATCH).map(establish).collect());
        let sessions = first + BATCH;
        if MEASURED.contains(&sessions) {
            let each = (bytes() - before) as f64 / f64::from(sessions);
            println!("{each:.1} bytes a session, of {sessions}");
            assert!(each <= 268.0, "{each:.1} bytes a session");
        }
    }
}
