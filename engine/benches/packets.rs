//! The cost of a packet, by kind: `cargo bench -p palisade-engine --bench packets`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench reads the clock, and fails by panicking"
)]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::{Connection, INSIDE, MANY, Member, OUTSIDE, connections, policy};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use palisade_engine::parse::{Checksum, build, parse};
use palisade_engine::policy::Policy;
use palisade_engine::replica::{Command, Outcome};
use palisade_engine::{
    Establish, Generation, HandshakeState, Ip, MemberId, Protocol, RuleId, SessionId, SynParams, Tuple, Verdict, ZoneId,
};

fn parsing(c: &mut Criterion) {
    let connection = Connection::new(1);
    let v6 = |last| Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let mut tuple = connection.tuple;
    (tuple.src, tuple.dst) = (v6(1), v6(2));
    let packets = [
        ("tcp v4 syn", connection.syn),
        ("tcp v4 100 B", connection.data),
        ("udp v4 1400 B", build::udp(&connection.tuple, &[7; 1400]).unwrap()),
        ("udp v6 100 B", build::udp(&tuple, &[7; 100]).unwrap()),
    ];
    let mut group = c.benchmark_group("parse");
    for (name, bytes) in &packets {
        group.bench_function(*name, |b| b.iter(|| parse(black_box(bytes), Checksum::Complete).unwrap()));
    }
    group.bench_function("udp v4 1400 B, checksum verified by the device", |b| {
        b.iter(|| parse(black_box(&packets[2].1), Checksum::Verified).unwrap());
    });
    group.finish();
}

/// A packet of an established session, parsing included.
fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("hit");
    for count in [1_000, 100_000] {
        let all = connections(count);
        let mut member = Member::with_rules(10, 1 << 17);
        for some in all.chunks(1000) {
            member.establish(some);
        }
        let mut next = all.iter().cycle();
        group.bench_function(BenchmarkId::new("sessions", count), |b| {
            b.iter(|| {
                let verdict = member.packet(OUTSIDE, &next.next().unwrap().data);
                assert_eq!(verdict, Verdict::Forward);
            });
        });
    }
    group.finish();
}

/// Only the decision of the policy.
fn decide(c: &mut Criterion) {
    let all = connections(1 << 14);
    let mut group = c.benchmark_group("decide");
    for rules in [10, MANY] {
        let policy = Policy::parse("bench", &policy(rules)).unwrap();
        let compiled = policy.compile(&mut |name| ZoneId(if name == "outside" { 1 } else { 2 }));
        let mut next = all.iter().cycle();
        group.bench_function(BenchmarkId::new("rules", rules), |b| {
            b.iter(|| compiled.decide(OUTSIDE, INSIDE, black_box(&next.next().unwrap().tuple)));
        });
    }
    group.finish();
}

/// A SYN that opens a session: parsing, lookup miss, source check, route, policy, half-open session, and eviction of the
/// oldest one.
fn miss(c: &mut Criterion) {
    let all = connections(1 << 16);
    let mut group = c.benchmark_group("miss");
    for rules in [10, MANY] {
        let mut member = Member::with_rules(rules, 1 << 13);
        let mut next = all.iter().cycle();
        group.bench_function(BenchmarkId::new("rules", rules), |b| {
            b.iter(|| {
                assert_eq!(member.packet(OUTSIDE, &next.next().unwrap().syn), Verdict::Forward);
                member.events.clear();
            });
        });
    }
    group.finish();
}

/// The establishment of connections: three packets each, and apply in batches of 64.
fn establish(c: &mut Criterion) {
    const BATCH: usize = 64;
    let all = connections(1 << 14);
    let mut group = c.benchmark_group("establish");
    for rules in [10, MANY] {
        let mut member = Member::with_rules(rules, 1 << 16);
        let mut batches = all.chunks_exact(BATCH).cycle();
        group.bench_function(BenchmarkId::new("rules", rules), |b| {
            b.iter_custom(|connections| {
                let mut time = Duration::ZERO;
                for _ in 0..connections.div_ceil(BATCH as u64) {
                    let batch = batches.next().unwrap();
                    let start = Instant::now();
                    member.establish(batch);
                    time += start.elapsed();
                    member.clear();
                }
                time.mul_f64(connections as f64 / (connections.div_ceil(BATCH as u64) * BATCH as u64) as f64)
            });
        });
    }
    group.finish();
}

/// The expiry of a half-open session, with a small and a large session table.
fn expire(c: &mut Criterion) {
    const BATCH: u32 = 1000;
    let mut group = c.benchmark_group("expire");
    group.throughput(Throughput::Elements(u64::from(BATCH)));
    for sessions in [0, 100_000] {
        let all = connections(sessions + BATCH);
        let (open, established) = all.split_at(BATCH as usize);
        let mut member = Member::with_rules(10, 1 << 17);
        for some in established.chunks(1000) {
            member.establish(some);
        }
        group.bench_function(BenchmarkId::new("1000 half-open beside sessions", sessions), |b| {
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    for connection in open {
                        assert_eq!(member.packet(OUTSIDE, &connection.syn), Verdict::Forward);
                    }
                    member.events.clear();
                    member.now = member.now + Duration::from_secs(121);
                    let start = Instant::now();
                    member.engine.tick(member.now, &mut member.events);
                    time += start.elapsed();
                    assert_eq!(member.engine.counts().half_open, 0);
                }
                time
            });
        });
    }
    group.finish();
}

/// The search for idle sessions on the leader: without any, and with 1000 UDP sessions that expire among others.
fn idle(c: &mut Criterion) {
    const BATCH: u32 = 1000;
    let mut group = c.benchmark_group("idle");
    group.sample_size(20);
    let mut member = Member::with_rules(10, 1 << 10);
    let text = format!("{}timeout udp.assured 1s, tcp.established 30d\n", policy(10));
    assert_eq!(member.policy(1, text), Outcome::Policy(Generation(2)));
    let mut beside = 0;
    let mut number = 0;
    for sessions in [0, 100_000, 1_000_000] {
        while beside < sessions {
            let some: Vec<Command> = (beside..beside + 1000).map(|n| session(n, Protocol::TCP)).collect();
            assert!(member.apply(some).iter().all(|outcome| *outcome == Outcome::Accepted));
            beside += 1000;
        }
        let (mut events, mut found) = (Vec::new(), Vec::new());
        member.engine.tick(member.now, &mut events);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("nothing beside sessions", sessions), |b| {
            b.iter(|| {
                // Advances the timer wheel, too.
                member.now = member.now + Duration::from_millis(1);
                member.engine.tick(member.now, &mut events);
                assert!(!member.engine.idle(member.now, 4096, &mut found));
            });
        });
        assert!(found.is_empty());
        group.throughput(Throughput::Elements(BATCH.into()));
        // First only the report; then with the command that ends them, as every member applies it.
        for (name, applied) in [("1000 found beside sessions", false), ("1000 ended beside sessions", true)] {
            let mut measure = |rounds: u64| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let some: Vec<Command> = (0..BATCH).map(|n| session(number + n, Protocol::UDP)).collect();
                    number += BATCH;
                    assert!(member.apply(some).iter().all(|outcome| *outcome == Outcome::Accepted));
                    member.now = member.now + Duration::from_secs(2);
                    found.clear();
                    let start = Instant::now();
                    member.engine.tick(member.now, &mut events);
                    assert!(!member.engine.idle(member.now, 4096, &mut found));
                    let looked = start.elapsed();
                    let ids = std::mem::take(&mut found);
                    assert_eq!(ids.len(), BATCH as usize);
                    member.apply(vec![Command::Expire(ids)]);
                    time += if applied { start.elapsed() } else { looked };
                }
                time
            };
            group.bench_function(BenchmarkId::new(name, sessions), |b| b.iter_custom(&mut measure));
        }
    }
    group.finish();
}

/// The command that establishes a session of any protocol.
fn session(n: u32, protocol: Protocol) -> Command {
    let [a, b, c, d] = n.to_be_bytes();
    let end = SynParams { isn: n, window: 64240, wscale: Some(7), sack: true };
    let (client, server) = (Ip::V4([10, b, c, d]), Ip::V4([172, 16, a, 1]));
    let original = Tuple { src: client, dst: server, src_port: 1024, dst_port: 443, protocol };
    Command::Establish(Box::new(Establish {
        id: SessionId { member: MemberId(2), counter: u64::from(n) << 8 | u64::from(protocol.0) },
        original,
        reply: original.inverse(),
        ingress: OUTSIDE,
        egress: INSIDE,
        generation: Generation(2),
        rule: RuleId(1),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: match protocol {
            Protocol::TCP => HandshakeState::Tcp { client: end, server: Some(end) },
            _ => HandshakeState::Generic { replied: true },
        },
    }))
}

criterion_group!(benches, parsing, hit, decide, miss, establish, expire, idle);
criterion_main!(benches);
