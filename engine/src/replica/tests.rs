use std::sync::Arc;

use super::*;
use crate::cluster_state::{JoinRequest, MemberInfo};
use crate::id::{Generation, RuleId, SessionId};
use crate::level::Level;
use crate::session::{Close, CloseCause, Establish, HandshakeState};
use crate::testing::{INSIDE, OUTSIDE, POLICY, end, tuple};
use crate::types::Config;
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

mod forbidden;
mod idempotent;
mod levels;
mod local_facts;
mod members;
mod policies;
mod scrub;
mod settings;
mod snapshots;
mod zones;

const NOW: Time = Time(1_000_000_000);

struct NoWaiters;

impl Wake for NoWaiters {
    fn wake(&mut self, _: WorkerSet, _: HoldKey) {
        panic!("no worker waits");
    }
}

/// A replica with a policy (generation 1), and a proposer with its next serial number.
struct Fixture {
    replica: Replica,
    next: u64,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(Config::new(MemberId(1), 1, 9))
    }

    fn with(config: Config) -> Fixture {
        let mut bench = Fixture { replica: Replica::new(Engine::new(config)), next: 0 };
        assert_eq!(bench.policy(0, POLICY), Outcome::Policy(Generation(1)));
        bench
    }

    fn one(&mut self, command: Command) -> Outcome {
        let batch = batch(self.next, self.next, vec![command]);
        self.next += 1;
        self.apply(&batch).remove(0)
    }

    fn apply(&mut self, batch: &Batch) -> Vec<Outcome> {
        Applied::outcomes(&self.replica.apply(NOW, batch, &mut NoWaiters))
    }

    /// Puts a policy in force, in its two steps.
    fn policy(&mut self, base: u64, text: &str) -> Outcome {
        let change = PolicyChange::new(Generation(base), text.to_owned(), "me".to_owned());
        let enact = Command::Enact(Box::new(change.enactment()));
        match self.one(Command::Policy(Box::new(change))) {
            Outcome::Accepted => {}
            refused => return refused,
        }
        self.replica.engine.compile_policies();
        self.one(enact)
    }

    fn settings(&mut self, base: u64, values: &[&str]) -> Outcome {
        let values = Assignment::parse_all(values.iter().copied()).unwrap();
        self.one(Command::Settings(Box::new(SettingsChange::new(base, &values, Vec::new(), "me".to_owned()))))
    }

    fn sessions(&self) -> usize {
        let mut count = 0;
        self.replica.engine.sessions(NOW, &mut |_| {
            count += 1;
            true
        });
        assert_eq!(count, self.replica.state.sessions());
        count
    }
}

fn batch(first: u64, lowest_outstanding: u64, commands: Vec<Command>) -> Batch {
    Batch { proposer: MemberId(1), first_serial: first, lowest_outstanding, unix_ms: 1000, commands }
}

fn id(counter: u64) -> SessionId {
    SessionId { member: MemberId(2), counter }
}

/// An establishment of session `counter` on the tuple of `port`.
fn establish(counter: u64, port: u16) -> Establish {
    Establish {
        id: id(counter),
        original: tuple(port),
        reply: tuple(port).inverse(),
        ingress: OUTSIDE,
        egress: INSIDE,
        generation: Generation(1),
        rule: RuleId(1),
        supersedes: None,
        #[cfg(feature = "next-level")]
        tag: 0,
        protocol: HandshakeState::Tcp { client: end(counter as u32), server: Some(end(7)) },
    }
}

fn add(establish: Establish) -> Command {
    Command::Establish(Box::new(establish))
}

fn close(counter: u64) -> Command {
    Command::Close(Close { id: id(counter), cause: CloseCause::Fin })
}

#[test]
fn establish_has_each_outcome() {
    let mut b = Fixture::new();
    assert_eq!(b.settings(0, &["table.sessions=2"]), Outcome::Accepted);
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Accepted);
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Accepted, "the same id again");
    assert_eq!(b.one(add(establish(2, 1))), Outcome::Conflict);
    assert_eq!(b.one(add(establish(1, 2))), Outcome::Conflict, "its id is taken");
    let inverse = Establish { original: tuple(1).inverse(), reply: tuple(1), ..establish(3, 1) };
    assert_eq!(b.one(add(inverse)), Outcome::Conflict, "the reply tuple is taken");
    let old = Establish { generation: Generation(0), ..establish(4, 4) };
    assert_eq!(b.one(add(old)), Outcome::Stale(Generation(1)));
    let translated = Establish { reply: tuple(5), ..establish(5, 5) };
    assert!(matches!(b.one(add(translated)), Outcome::Invalid(_)));
    let endless = Establish { protocol: HandshakeState::Tcp { client: end(1), server: None }, ..establish(5, 5) };
    assert!(matches!(b.one(add(endless)), Outcome::Invalid(_)));
    let generic = Establish { protocol: HandshakeState::Generic { replied: true }, ..establish(5, 5) };
    assert!(matches!(b.one(add(generic)), Outcome::Invalid(_)));
    assert_eq!(b.one(add(establish(6, 6))), Outcome::Accepted);
    assert_eq!(b.one(add(establish(7, 7))), Outcome::Full);
    assert_eq!(b.one(Command::Revoke(vec![id(6), id(999)])), Outcome::Accepted);
    assert_eq!(b.one(add(establish(7, 7))), Outcome::Accepted);
    assert_eq!(b.sessions(), 2);
}

#[test]
fn establish_replaces_only_the_closed_session_it_supersedes() {
    let mut b = Fixture::new();
    let next = |supersedes| add(Establish { supersedes, ..establish(2, 1) });
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Accepted);
    assert_eq!(b.one(next(Some(id(1)))), Outcome::Conflict, "the session is not closed");
    assert_eq!(b.one(close(1)), Outcome::Accepted);
    assert_eq!(b.one(close(77)), Outcome::Accepted, "unknown");
    assert_eq!(b.one(next(None)), Outcome::Conflict);
    assert_eq!(b.one(next(Some(id(5)))), Outcome::Conflict);
    assert_eq!(b.one(next(Some(id(1)))), Outcome::Accepted);
    assert_eq!(b.sessions(), 1);
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Conflict, "a late duplicate does not restore the session");
}

#[test]
fn establish_does_not_restore_a_removed_session() {
    let mut b = Fixture::new();
    b.one(add(establish(1, 1)));
    b.one(Command::Expire(vec![id(1), id(1)]));
    assert_eq!(b.sessions(), 0);
    assert_eq!(b.one(add(establish(1, 1))), Outcome::Conflict);
    assert_eq!(b.sessions(), 0);
}

#[test]
fn dedup_keeps_outcomes_from_lowest_outstanding_on() {
    let mut b = Fixture::new();
    let first = b.next;
    let commands = vec![add(establish(1, 1)), add(establish(2, 1)), close(1)];
    let expected = [Outcome::Accepted, Outcome::Conflict, Outcome::Accepted];
    assert_eq!(b.apply(&batch(first, first, commands.clone())), expected);
    let digest = b.replica.digest();
    assert_eq!(b.apply(&batch(first, first, commands.clone())), expected);
    assert_eq!(b.replica.digest(), digest, "a duplicate has no effect");
    let later = batch(first + 3, first + 2, vec![close(9)]);
    assert_eq!(b.apply(&later), [Outcome::Accepted]);
    let expected = [Outcome::SerialExpired, Outcome::SerialExpired, Outcome::Accepted];
    assert_eq!(b.apply(&batch(first, first, commands)), expected);
    let far = batch(u64::MAX, first, vec![close(1), close(1)]);
    assert!(b.apply(&far).iter().all(|o| matches!(o, Outcome::Invalid(_))));
}

#[test]
fn replica_reports_a_change_only_for_commands_with_effect() {
    let mut b = Fixture::new();
    let mut first = b.next;
    let mut changed = |commands: Vec<Command>| {
        let batch = batch(first, first, commands);
        first += batch.commands.len() as u64;
        let once = b.replica.apply(NOW, &batch, &mut NoWaiters);
        let again = b.replica.apply(NOW, &batch, &mut NoWaiters);
        assert!(again.iter().all(|copy| !copy.changed), "a duplicate changed something: {batch:?}");
        assert_eq!(Applied::outcomes(&again), Applied::outcomes(&once), "a duplicate has the same outcomes");
        once.iter().map(|applied| applied.changed).collect::<Vec<_>>()
    };
    // Two members propose the same session, another session has the tuple, and two members see the end.
    let proposed = vec![add(establish(1, 1)), add(establish(1, 1)), add(establish(2, 1)), close(1), close(1)];
    assert_eq!(changed(proposed), [true, false, false, true, false]);
    let ended = vec![Command::Revoke(vec![id(9), id(1)]), Command::Expire(vec![id(1)]), add(establish(1, 1))];
    assert_eq!(changed(ended), [true, false, false]);
    let left = Command::Member(MemberChange::Leave(MemberId(7)));
    let policy = |base, text: &str| {
        let change = PolicyChange::new(Generation(base), text.to_owned(), String::new());
        Command::Policy(Box::new(change))
    };
    assert_eq!(changed(vec![left, policy(0, POLICY), policy(1, POLICY)]), [false, false, true]);
}

#[test]
fn policy_change_needs_the_current_generation_as_base() {
    let mut b = Fixture::new();
    assert_eq!(b.policy(0, POLICY), Outcome::Stale(Generation(1)));
    assert_eq!(b.replica.engine.generation(), Generation(1));
    assert_eq!(b.policy(1, "zone dmz, inside\ndefault drop\n"), Outcome::Policy(Generation(2)));
    let engine = b.replica.engine.clone();
    assert_eq!(engine.generation(), Generation(2));
    let zones = ["outside", "inside", "dmz", "foo"].map(|z| engine.zone(z).0);
    assert_eq!(zones, [1, 2, 3, 0], "zone numbers do not change");
    for n in 2..50 {
        assert_eq!(b.policy(n, POLICY), Outcome::Policy(Generation(n + 1)));
    }
    let cluster = engine.cluster_state();
    assert_eq!(cluster.policies.len(), 32);
    assert_eq!(cluster.policies.last().map(|p| (p.generation, p.unix_ms)), Some((Generation(50), 1000)));
}

#[test]
fn member_ids_are_never_reused() {
    let mut b = Fixture::new();
    let mut member = |change| b.one(Command::Member(change));
    let join = |number, name| join(2, number, name);
    assert!(matches!(member(join(1, "b")), Outcome::Invalid(_)), "before Init");
    let init =
        |cluster: &str| MemberChange::Init { cluster_id: cluster.to_owned(), member: named("a"), level: Level::FIRST };
    assert!(matches!(member(init("")), Outcome::Invalid(_)));
    assert_eq!(member(init("c1")), Outcome::Member(MemberId(1)));
    assert_eq!(member(init("c2")), Outcome::Conflict);
    assert_eq!(member(token(1, 999)), Outcome::Accepted);
    assert_eq!(member(token(2, 2000)), Outcome::Accepted);
    assert_eq!(member(join(1, "a")), Outcome::Conflict);
    assert_eq!(member(join(1, "b")), Outcome::Member(MemberId(2)));
    assert_eq!(member(MemberChange::Leave(MemberId(2))), Outcome::Accepted);
    assert!(matches!(member(MemberChange::Leave(MemberId(2))), Outcome::Invalid(_)));
    assert_eq!(member(join(1, "b")), Outcome::Member(MemberId(3)));
    assert_eq!(b.replica.engine.cluster_state().tokens, [(vec![2], 2000)], "expired tokens are removed");
    let late = Batch { proposer: MemberId(2), ..batch(0, 0, vec![add(establish(1, 1))]) };
    assert!(matches!(b.apply(&late)[..], [Outcome::Invalid(_)]));
    assert_eq!(b.sessions(), 0);
}

impl Fixture {
    /// Another member joins, and comes.
    fn another(&mut self, info: MemberInfo) -> MemberId {
        self.one(Command::Member(token(200, u64::MAX)));
        let address = format!("{}.example:7946", info.name);
        let member = MemberInfo { address, ..info };
        let request = JoinRequest(u128::from(self.next).to_be_bytes());
        let join = Join { request, secret_digest: vec![200], member };
        let Outcome::Member(id) = self.one(Command::Member(MemberChange::Join(Box::new(join)))) else {
            panic!("it is not admitted");
        };
        let resume = Batch { proposer: id, ..batch(0, 0, vec![Command::Resume]) };
        assert_eq!(self.apply(&resume), [Outcome::Accepted]);
        id
    }
}

fn named(name: &str) -> MemberInfo {
    MemberInfo { name: name.to_owned(), address: format!("{name}.example:7946"), ..MemberInfo::default() }
}

fn token(secret: u8, expires_unix_ms: u64) -> MemberChange {
    MemberChange::Token { secret_digest: vec![secret], expires_unix_ms }
}

fn join(secret: u8, request: u8, name: &str) -> MemberChange {
    let request = JoinRequest([request; 16]);
    MemberChange::Join(Box::new(Join { request, secret_digest: vec![secret], member: named(name) }))
}

#[test]
fn idle_sessions_are_reported_in_bounded_batches() {
    let mut b = Fixture::new();
    for n in 0..3000 {
        b.one(add(establish(n, n as u16)));
    }
    for n in 0..1000 {
        b.one(close(n));
    }
    let engine = b.replica.engine.clone();
    let at = |secs| NOW + std::time::Duration::from_secs(secs);
    let mut found = Vec::new();
    engine.tick(at(119), &mut Vec::new());
    assert!(!engine.idle(at(119), 10_000, &mut found));
    assert!(found.is_empty());
    // The delay is the resolution of the stamp plus that of the wheel.
    engine.tick(at(121), &mut Vec::new());
    assert!(engine.idle(at(121), 300, &mut found), "there are more");
    assert_eq!(found.len(), 300);
    assert!(!engine.idle(at(121), 10_000, &mut found));
    let all: std::collections::HashSet<SessionId> = found.iter().copied().collect();
    assert_eq!((found.len(), all), (1000, (0..1000).map(id).collect()), "each once");
    let mut ids: Vec<SessionId> = [1, 2000, 99_999].map(id).to_vec();
    engine.confirm_idle(at(121), &mut ids);
    assert_eq!(ids, [id(1), id(99_999)], "idle or unknown");
    b.one(Command::Expire(found));
    assert_eq!(b.sessions(), 2000);
}
