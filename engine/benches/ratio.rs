//! The cost of a new connection with 10,000 rules relative to 10 rules. Both are measured alternately, so that other load on
//! the machine affects both equally. `cargo bench -p palisade-engine --bench ratio`
//!
//! Also the cost of counting the sessions, with few and with many of them.
//!
//! Prints the medians of many short rounds. Fails if the total cost of a new connection is more than 1.2 times as high, if
//! one lookup takes a microsecond, or if the cost of counting depends on the number of sessions.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "and reads the clock")]

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{Connection, INSIDE, MANY, Member, OUTSIDE, connections, policy};
use palisade_engine::policy::{Compiled, Policy};
use palisade_engine::{Verdict, ZoneId};

const ROUNDS: usize = 401;
const BATCH: usize = 512;

/// The median of times in nanoseconds.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Measures `part` alternately with 10 and 10,000 rules, with `BATCH` connections per round. Returns nanoseconds per
/// connection.
fn measure<T>(pair: &mut [T; 2], all: &[Connection], mut part: impl FnMut(&mut T, &[Connection]) -> f64) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let mut batches = all.chunks_exact(BATCH).cycle();
    for round in 0..ROUNDS {
        let batch = batches.next().unwrap();
        // The first one finds fewer of the connections in the cache, so the order alternates.
        for which in [round % 2, 1 - round % 2] {
            times[which].push(part(&mut pair[which], batch) / BATCH as f64);
        }
    }
    times.map(median)
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e9
}

/// The cost of counting the sessions of a member that has few, and of one that has many.
fn counting(all: &[Connection]) -> [f64; 2] {
    let members = [BATCH, all.len()].map(|n| {
        let mut member = Member::with_rules(10, 1 << 16);
        for batch in all[..n].chunks(BATCH) {
            member.establish(batch);
        }
        assert_eq!(member.engine.counts().sessions.iter().map(|(.., n)| *n).sum::<u64>(), n as u64);
        member
    });
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for which in [round % 2, 1 - round % 2] {
            times[which].push(timed(|| drop(black_box(members[which].engine.counts()))));
        }
    }
    times.map(median)
}

fn main() {
    let all = connections(1 << 14);
    let mut policies: [Compiled; 2] = [10, MANY].map(|rules| {
        let policy = Policy::parse("bench", &policy(rules)).unwrap();
        policy.compile(&mut |name| ZoneId(if name == "outside" { 1 } else { 2 }))
    });
    let lookup = measure(&mut policies, &all, |policy, batch| {
        timed(|| {
            for connection in batch {
                black_box(policy.decide(OUTSIDE, INSIDE, &connection.tuple));
            }
        })
    });
    let mut members = [10, MANY].map(|rules| Member::with_rules(rules, 1 << 13));
    let first = measure(&mut members, &all, |member, batch| {
        let time = timed(|| {
            for connection in batch {
                assert_eq!(member.packet(OUTSIDE, &connection.syn), Verdict::Forward);
            }
        });
        member.events.clear();
        time
    });
    let mut members = [10, MANY].map(|rules| Member::with_rules(rules, 1 << 16));
    let whole = measure(&mut members, &all, |member, batch| {
        let time = timed(|| member.establish(batch));
        member.clear();
        time
    });
    println!("{:44} {:>9} {:>9} {:>6}", "nanoseconds, medians", "10 rules", "10,000", "ratio");
    for (name, [few, many]) in [
        ("policy lookup", lookup),
        ("first packet: parse, miss, policy, half-open", first),
        ("whole connection: 3 packets, commit applied", whole),
    ] {
        println!("{name:44} {few:9.0} {many:9.0} {:6.2}", many / few);
    }
    let counted = counting(&all);
    println!(
        "{:44} {:9.0} {:9.0} {:6.2}",
        "counting 512 and 16,384 sessions",
        counted[0],
        counted[1],
        counted[1] / counted[0]
    );
    assert!(counted[1] / counted[0] <= 1.5, "the cost of counting depends on the number of sessions");
    assert!(lookup[1] < 1000.0, "a lookup takes {} ns", lookup[1]);
    assert!(whole[1] / whole[0] <= 1.2, "a new connection costs too much with many rules");
}
