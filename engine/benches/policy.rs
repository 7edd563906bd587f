//! A policy of 65,535 rules with 2^21 ranges: how long apply stands still, and how long compiling takes beside it. `cargo bench -p
//! palisade-engine --bench policy`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "and reads the clock")]

mod common;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use common::Member;
use palisade_engine::policy::Policy;
use palisade_engine::replica::{Command, Outcome, PolicyChange};
use palisade_engine::{Config, Generation, MemberId};

const RULES: u32 = 65_535;
/// Together with the destination and the service: 32 a rule.
const SOURCES: u32 = 30;
const MAX_PAUSE: Duration = Duration::from_millis(10);

fn text(last: &str) -> String {
    let nets: Vec<String> = (0..SOURCES).map(|n| format!("10.{}.0.0/16", n * 2)).collect();
    let mut text = format!("zone outside, inside\nset s = {}\n", nets.join(", "));
    for n in 0..RULES {
        let [_, a, b, c] = n.to_be_bytes();
        writeln!(text, "accept \"{n}\" from outside to inside: @s -> 11.{a}.{b}.{c} tcp/80").unwrap();
    }
    text + last
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let result = work();
    println!("{what}: {:?}", begin.elapsed());
    (begin.elapsed(), result)
}

/// The kernel's count of this process, in MiB.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

fn main() {
    let mut member = Member::new(Config::new(MemberId(1), 1, 7));
    let before = memory("VmRSS:");
    let mut longest = Duration::ZERO;
    for base in 0..3 {
        let change = PolicyChange::new(Generation(base), text(&format!("# {base}\n")), String::new());
        if base == 0 {
            let cost = Policy::parse("p", &change.text).unwrap().cost();
            println!("{cost:?}: at most {} MiB", cost.bytes() >> 20);
        }
        let enact = Command::Enact(Box::new(change.enactment()));
        let propose = Command::Policy(Box::new(change));
        let (proposed, outcomes) = timed("apply the candidate", || member.apply(vec![propose]));
        assert_eq!(outcomes, [Outcome::Accepted]);
        timed("compile it beside", || member.engine.compile_policies());
        let (enacted, outcomes) = timed("apply its enactment", || member.apply(vec![enact]));
        assert_eq!(outcomes, [Outcome::Policy(Generation(base + 1))]);
        timed("free the one before", || member.engine.free_policies());
        longest = longest.max(proposed).max(enacted);
    }
    println!("memory: {} MiB more, at most {} MiB", memory("VmRSS:") - before, memory("VmHWM:") - before);
    assert!(longest <= MAX_PAUSE, "apply stood still for {longest:?}");
}
