//! The sweep of 1,000,000 sessions by a policy of 10,000 rules that forbids one of them. `cargo bench -p palisade-engine --bench sweep`
//!
//! Prints the cost of a judgement, the longest piece (it holds the lock of a shard for a part of that), and the time from the policy to
//! the end of the forbidden session, without the log. Fails if that is more than a second.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "and reads the clock")]

mod common;

use std::time::{Duration, Instant};

use common::{Connection, INSIDE, MANY, Member, OUTSIDE, policy};
use palisade_engine::replica::{Command, ForbiddenSessions, Outcome};
use palisade_engine::{
    Establish, Generation, HandshakeState, Ip, MemberId, RuleId, SessionId, SynParams, Tuple, Verdict,
};

const SESSIONS: u32 = 1_000_000;
const BATCH: u32 = 1000;

/// Session `n`: most of the tuples of [`Connection`] are distinct, and the source port makes all so.
fn session(n: u32) -> Command {
    let rule = (u64::from(n) * 7_919 % u64::from(MANY)) as u32;
    let (a, b) = ((rule >> 8) as u8, (rule & 255) as u8);
    let original = Tuple {
        src: Ip::V4([10, a, b, (n / MANY % 100) as u8 + 1]),
        dst: Ip::V4([172, 16, a, b]),
        src_port: 1024,
        dst_port: (rule % 10 + 1) as u16,
        protocol: palisade_engine::Protocol::TCP,
    };
    let end = |isn| SynParams { isn, window: 64240, wscale: Some(7), sack: true };
    Command::Establish(Box::new(Establish {
        id: SessionId { member: MemberId(1), counter: u64::from(n) },
        original,
        reply: original.inverse(),
        ingress: OUTSIDE,
        egress: INSIDE,
        generation: Generation(1),
        rule: RuleId(rule + 1),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: HandshakeState::Tcp { client: end(n), server: Some(end(!n)) },
    }))
}

fn main() {
    let mut member = Member::with_rules(MANY, 1 << 13);
    for first in (0..SESSIONS).step_by(BATCH as usize) {
        member.accept((first..first + BATCH).map(session).collect());
    }
    let Command::Establish(forbidden) = session(SESSIONS / 2) else { return };
    let block = format!("drop \"block\" from any to any: {} -> any\n", forbidden.original.src);
    let text = policy(MANY).replace("default drop\n", &format!("default drop\n{block}"));
    assert_eq!(member.policy(1, text), Outcome::Policy(Generation(2)));
    // From here on the policy is in force.
    let began = Instant::now();
    let (mut sweep, mut sessions) = (member.engine.begin_sweep().unwrap(), Vec::new());
    let (mut longest, mut more) = (Duration::ZERO, true);
    while more {
        let piece = Instant::now();
        more = sweep.step(&member.engine, &mut sessions);
        longest = longest.max(piece.elapsed());
    }
    let judged = began.elapsed();
    let (found, generation) = (sessions.len(), sweep.generation());
    member.accept(vec![Command::RevokeForbidden(ForbiddenSessions { generation, sessions })]);
    let gone = began.elapsed();
    assert!(member.engine.session(member.now, forbidden.id).is_none() && found < 101, "{found}");
    // The others go on.
    let next = Connection::new(3);
    assert_eq!(member.packet(OUTSIDE, &next.syn), Verdict::Forward);
    println!("{:44} {:9}", "sessions judged", sweep.judged());
    println!("{:44} {:9.0}", "nanoseconds a judgement", judged.as_secs_f64() * 1e9 / f64::from(SESSIONS));
    println!("{:44} {:9.1}", "microseconds of the longest piece", longest.as_secs_f64() * 1e6);
    println!("{:44} {:9.1}", "milliseconds until the session was gone", gone.as_secs_f64() * 1e3);
    assert!(gone < Duration::from_secs(1), "a forbidden session was there for {gone:?}");
}
