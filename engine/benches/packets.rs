//! What a packet costs, by what it is: `cargo bench -p palisade-engine --bench packets`.
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
use palisade_engine::event::Event;
use palisade_engine::parse::{Checksum, build, parse};
use palisade_engine::policy::Policy;
use palisade_engine::{Ip, Time, Verdict, ZoneId};

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

/// The policy's decision alone.
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

/// A SYN that opens a session: parse, miss, source, route, policy, half-open session, and the eviction of the oldest one.
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

/// Three packets and the apply of a batch of 64, for each connection.
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

/// What one half-open session's expiry costs, with a small and a large table beside it.
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
        group.bench_function(BenchmarkId::new("1000 beside sessions", sessions), |b| {
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    for connection in open {
                        assert_eq!(member.packet(OUTSIDE, &connection.syn), Verdict::Forward);
                    }
                    member.events.clear();
                    member.now = Time(member.now.0 + 31_000_000_000);
                    let start = Instant::now();
                    member.engine.tick(member.now, &mut member.events);
                    time += start.elapsed();
                    assert_eq!(member.engine.counts().half_open, 0);
                }
                time
            });
        });
        let mut events: Vec<Event> = Vec::new();
        group.bench_function(BenchmarkId::new("nothing beside sessions", sessions), |b| {
            b.iter(|| member.engine.tick(member.now, &mut events));
        });
    }
    group.finish();
}

criterion_group!(benches, parsing, hit, decide, miss, establish, expire);
criterion_main!(benches);
