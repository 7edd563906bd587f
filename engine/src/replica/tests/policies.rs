//! Policies in two steps: apply never compiles, and says the same whatever a member has compiled.

use std::fmt::Write as _;
use std::time::Instant;

use super::*;
use crate::id::ZoneId;
use crate::policy::{Policy, PolicyHash};
use crate::policy_slots::CompileRefusal;

/// A policy that takes long to compile.
fn large(rules: usize, ranges: usize) -> String {
    let mut text = "zone inside, outside\n".to_owned();
    for rule in 0..rules {
        let numbers = (0..ranges).map(|n| rule * ranges + n);
        let list: Vec<String> = numbers.map(|n| format!("10.{}.{}.{}", n >> 15, n >> 7 & 255, (n & 127) * 2)).collect();
        writeln!(text, "accept \"r{rule}\" from outside to inside: {} -> any tcp/80", list.join(", ")).unwrap();
    }
    text
}

fn change(base: u64, text: &str) -> PolicyChange {
    PolicyChange::new(Generation(base), text.to_owned(), "me".to_owned())
}

fn propose(change: &PolicyChange) -> Command {
    Command::Policy(Box::new(change.clone()))
}

fn enact(change: &PolicyChange) -> Command {
    Command::Enact(Box::new(change.enactment()))
}

/// A text that is valid and says nothing but its number.
fn text(n: u64) -> String {
    format!("{POLICY}# {n}\n")
}

#[test]
fn apply_never_takes_as_long_as_compiling() {
    let mut b = Fixture::new();
    let text = large(1000, 16);
    let begin = Instant::now();
    drop(Policy::parse("policy", &text).unwrap().compile(&mut |_| ZoneId(1)));
    let compiling = begin.elapsed();
    let change = change(1, &text);
    let longest = |b: &mut Fixture, command| {
        let begin = Instant::now();
        let outcome = b.one(command);
        (begin.elapsed(), outcome)
    };
    let (first, outcome) = longest(&mut b, propose(&change));
    assert_eq!(outcome, Outcome::Accepted);
    b.replica.engine.compile_policies();
    let (second, outcome) = longest(&mut b, enact(&change));
    assert_eq!(outcome, Outcome::Policy(Generation(2)));
    assert!(b.replica.engine.is_policy_compiled());
    let pause = first.max(second);
    assert!(pause * 10 < compiling, "apply stood still for {pause:?}; compiling takes {compiling:?}");
}

#[test]
fn candidate_changes_nothing_until_it_is_enacted() {
    let mut b = Fixture::new();
    let engine = b.replica.engine.clone();
    let change = change(1, "zone dmz, outside\ndefault drop\n");
    assert_eq!(b.one(propose(&change)), Outcome::Accepted);
    assert_eq!(engine.generation(), Generation(1));
    let dmz = engine.zone("dmz");
    assert_ne!(dmz, ZoneId::UNKNOWN, "members compile it with its zones' numbers");
    assert_eq!(engine.policy_report(), None);
    engine.compile_policies();
    let report = engine.policy_report().unwrap();
    assert_eq!((report.hash, report.refused), (change.hash, None));
    assert_eq!(engine.generation(), Generation(1));
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Accepted, "by the policy in force");
    assert_eq!(b.one(enact(&change)), Outcome::Policy(Generation(2)));
    assert_eq!((engine.generation(), engine.zone("dmz")), (Generation(2), dmz));
    assert!(engine.cluster_state().candidate.is_none());
    assert_eq!(b.one(add(establish(2, 2))), Outcome::Stale(Generation(2)));
    assert_eq!(b.one(enact(&change)), Outcome::Stale(Generation(2)), "twice");
}

#[test]
fn enact_is_a_compare_and_swap() {
    let mut b = Fixture::new();
    let (first, second) = (change(1, &text(1)), change(1, &text(2)));
    assert!(matches!(b.one(enact(&first)), Outcome::Invalid(_)), "no candidate");
    assert_eq!(b.one(propose(&change(0, &text(1)))), Outcome::Stale(Generation(1)));
    assert_eq!(b.one(propose(&first)), Outcome::Accepted);
    assert_eq!(b.one(propose(&second)), Outcome::Accepted, "the next one supersedes it");
    assert!(matches!(b.one(enact(&first)), Outcome::Invalid(_)), "superseded");
    let late = crate::replica::Enact { base: Generation(0), ..second.enactment() };
    assert_eq!(b.one(Command::Enact(Box::new(late))), Outcome::Stale(Generation(1)));
    let withdraw =
        |change: &PolicyChange| Command::Withdraw(crate::replica::Withdraw { hash: change.hash, base: change.base });
    assert!(matches!(b.one(withdraw(&first)), Outcome::Invalid(_)));
    assert_eq!(b.one(withdraw(&second)), Outcome::Accepted);
    assert!(matches!(b.one(enact(&second)), Outcome::Invalid(_)), "withdrawn");
    assert_eq!(b.replica.engine.generation(), Generation(1));
    // In one batch: no member could have compiled it before it applies the batch.
    let batch = batch(b.next, b.next, vec![propose(&first), enact(&first)]);
    b.next += 2;
    assert!(matches!(b.apply(&batch)[..], [Outcome::Accepted, Outcome::Invalid(_)]));
    assert!(b.replica.is_ready(&batch));
    assert_eq!(b.one(enact(&first)), Outcome::Policy(Generation(2)));
}

#[test]
fn state_is_the_same_whatever_a_member_has_compiled() {
    let (mut a, mut b) = (Fixture::new(), Fixture::new());
    // One that no member of this version can compile, one with a wrong hash, one with a wrong list of zones.
    let broken = change(1, "zone outside\nfoo\n");
    let forged = PolicyChange { hash: PolicyHash([7; 32]), ..change(1, &text(1)) };
    let zones = PolicyChange { zones: vec!["other".to_owned()], ..change(1, &text(1)) };
    for (n, change) in [broken, forged, zones].into_iter().enumerate() {
        let change = PolicyChange { base: Generation(1 + n as u64), ..change };
        for fixture in [&mut a, &mut b] {
            assert_eq!(fixture.one(propose(&change)), Outcome::Accepted);
        }
        a.replica.engine.compile_policies();
        let refused = a.replica.engine.policy_report().unwrap().refused.unwrap();
        assert!(
            ["line 2: ", "hash is not", "list of zones is not"].iter().any(|why| refused.contains(why)),
            "{refused}"
        );
        assert_eq!(a.replica.digest(), b.replica.digest());
        for fixture in [&mut a, &mut b] {
            assert_eq!(fixture.one(enact(&change)), Outcome::Policy(Generation(2 + n as u64)));
            assert!(!fixture.replica.engine.is_policy_compiled());
        }
        assert_eq!(a.replica.digest(), b.replica.digest());
    }
    // Both have what they need to go on with the next one.
    assert_eq!(a.policy(4, POLICY), Outcome::Policy(Generation(5)));
    assert!(a.replica.engine.is_policy_compiled());
}

#[test]
fn late_member_waits_while_packets_pass_and_goes_on_closed_when_none_does() {
    let mut b = Fixture::new();
    let engine = b.replica.engine.clone();
    assert!(engine.set_packets_pass(true));
    let first = change(1, &text(1));
    b.one(propose(&first));
    let batch = batch(b.next, b.next, vec![add(establish(1, 1)), enact(&first)]);
    b.next += 2;
    assert!(!b.replica.is_ready(&batch), "it has not compiled it");
    // Too little memory is a reason that may pass.
    let task = engine.policy_to_compile().unwrap();
    let refused = task.compile(Some(1000));
    assert!(matches!(refused, Err(CompileRefusal::Memory { available: 1000, .. })));
    engine.policy_compiled(&task, refused);
    assert!(engine.policy_report().unwrap().refused.unwrap().contains("memory"));
    assert!(engine.policy_to_compile().is_none());
    assert!(!b.replica.is_ready(&batch));
    engine.retry_policies();
    engine.compile_policies();
    assert!(b.replica.is_ready(&batch));
    assert_eq!(b.apply(&batch), [Outcome::Accepted, Outcome::Policy(Generation(2))]);
    assert!(engine.set_packets_pass(true));

    let second = change(2, &text(2));
    b.one(propose(&second));
    let batch = super::batch(b.next, b.next, vec![enact(&second)]);
    b.next += 1;
    assert!(!b.replica.is_ready(&batch));
    assert!(!engine.set_packets_pass(false));
    assert!(b.replica.is_ready(&batch), "its lease is over");
    assert_eq!(b.apply(&batch), [Outcome::Policy(Generation(3))]);
    assert_eq!(engine.generation(), Generation(3));
    assert!(!engine.is_policy_compiled());
    assert!(!engine.set_packets_pass(true), "no lease before it is compiled");
    // Meanwhile others enact another one, which it need not compile this one for.
    let third = change(3, &text(3));
    b.one(propose(&third));
    b.one(enact(&third));
    engine.compile_policies();
    assert!(engine.set_packets_pass(true));
    assert_eq!(b.one(add(Establish { generation: Generation(4), ..establish(9, 9) })), Outcome::Accepted);
}

#[test]
fn only_the_last_policy_and_the_candidate_are_compiled_after_a_replay() {
    let mut log = Fixture::new();
    for n in 1..20 {
        assert_eq!(log.policy(n, &text(n)), Outcome::Policy(Generation(n + 1)));
    }
    let last = change(20, &text(20));
    log.one(propose(&last));
    let mut bytes = Vec::new();
    log.replica.begin_snapshot().write(&mut bytes).unwrap();
    let compiled = |replica: &Replica| {
        let mut compiled = Vec::new();
        while let Some(task) = replica.engine.policy_to_compile() {
            compiled.push((task.hash(), task.is_in_force()));
            replica.engine.policy_compiled(&task, task.compile(None));
        }
        compiled
    };
    let expected = [(PolicyHash::of(&text(19)), true), (last.hash, false)];

    let mut again = Replica::new(Engine::new(Config::new(MemberId(2), 1, 7)));
    again.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(again.digest(), log.replica.digest());
    assert!(!again.engine.is_policy_compiled());
    assert_eq!(compiled(&again), expected);
    // A snapshot with the policy that is active needs no compiler, and closes nothing.
    again.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert!(again.engine.is_policy_compiled());
    assert_eq!(compiled(&again), [(last.hash, false)]);

    // The log.
    let mut replay = Fixture { replica: Replica::new(Engine::new(Config::new(MemberId(3), 1, 7))), next: 0 };
    assert_eq!(replay.one(propose(&change(0, POLICY))), Outcome::Accepted);
    assert_eq!(replay.one(enact(&change(0, POLICY))), Outcome::Policy(Generation(1)));
    for n in 1..20 {
        replay.one(propose(&change(n, &text(n))));
        replay.one(enact(&change(n, &text(n))));
    }
    replay.one(propose(&last));
    assert_eq!(compiled(&replay.replica), expected);
    assert_eq!(replay.replica.digest(), log.replica.digest());
}

#[test]
fn candidate_is_in_digest_and_snapshot_and_keeps_its_zones() {
    let (mut a, mut b) = (Fixture::new(), Fixture::new());
    a.one(propose(&change(1, "zone dmz\n")));
    assert_ne!(a.replica.digest(), b.replica.digest());
    b.one(propose(&change(1, "zone dmz\n")));
    assert_eq!(a.replica.digest(), b.replica.digest());
    assert_eq!(a.replica.engine.zone("dmz"), ZoneId(3));
    a.one(propose(&change(1, "zone guest\n")));
    assert_eq!(a.replica.engine.zone("dmz"), ZoneId::UNKNOWN, "nobody names it any longer");
    assert_eq!(a.replica.engine.zone("guest"), ZoneId(4));
    for bad in ["any", "a b", ""] {
        let change = PolicyChange { zones: vec![bad.to_owned()], ..change(1, &text(1)) };
        assert!(matches!(a.one(propose(&change)), Outcome::Invalid(_)), "{bad:?}");
    }
    let mut bytes = Vec::new();
    a.replica.begin_snapshot().write(&mut bytes).unwrap();
    let mut again = Replica::new(Engine::new(Config::new(MemberId(2), 1, 7)));
    again.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(again.digest(), a.replica.digest());
    let candidate = again.engine.cluster_state().candidate.clone().unwrap();
    assert_eq!((&*candidate.text, candidate.base), ("zone guest\n", Generation(1)));
}
