//! The level in force, and what members register that they can.

use super::*;
use crate::level::Capabilities;

fn can(lowest: u16, highest: u16) -> Capabilities {
    Capabilities { lowest: Level(lowest), highest: Level(highest), max_sessions: 1 << 20, program: "1.2.3".to_owned() }
}

impl Fixture {
    /// A cluster of members 1 to `members`.
    fn with_members(members: u64) -> Fixture {
        let mut b = Fixture::new();
        let init = MemberChange::Init { cluster_id: "c".to_owned(), member: named("fw1"), level: Level::FIRST };
        b.one(Command::Member(init));
        b.one(Command::Member(token(1, u64::MAX)));
        for n in 2..=members {
            let join = join(1, n as u8, &format!("fw{n}"));
            assert_eq!(b.one(Command::Member(join)), Outcome::Member(MemberId(n)));
        }
        b
    }

    fn registers(&mut self, member: u64, capabilities: Capabilities) -> Outcome {
        self.one(Command::Member(MemberChange::Capabilities { member: MemberId(member), capabilities }))
    }

    fn level(&self) -> Level {
        self.replica.engine.cluster_state().level
    }
}

#[test]
fn level_is_raised_only_when_every_member_can() {
    let mut b = Fixture::with_members(3);
    let raise = || Command::Level(Level(2));
    let refused = |reason| Outcome::Invalid(reason);
    assert_eq!(b.one(raise()), refused(InvalidReason::NoCapabilities(MemberId(1))));
    for member in [1, 2] {
        assert_eq!(b.registers(member, can(1, 2)), Outcome::Accepted);
    }
    assert_eq!(b.one(raise()), refused(InvalidReason::NoCapabilities(MemberId(3))), "it has joined only");
    assert_eq!(b.registers(3, can(1, 1)), Outcome::Accepted);
    let reason = InvalidReason::LevelBeyondMember { member: MemberId(3), lowest: Level(1), highest: Level(1) };
    assert_eq!(b.one(raise()), refused(reason));
    assert_eq!(reason.to_string(), "the program of member 3 knows level 1");
    assert_eq!(b.level(), Level(1));
    assert_eq!(b.registers(3, can(1, 3)), Outcome::Accepted);
    assert_eq!(b.one(raise()), Outcome::Accepted);
    assert_eq!(b.level(), Level(2));
    // The same again changes nothing; it neither falls nor jumps.
    let digest = b.replica.digest();
    assert_eq!(
        b.replica.apply(NOW, &batch(b.next, b.next, vec![raise()]), &mut NoWaiters)[0].outcome,
        Outcome::Accepted
    );
    b.next += 1;
    assert_eq!(b.level(), Level(2));
    for asked in [0, 1, 4, u16::MAX] {
        let reason = InvalidReason::LevelNotNext { in_force: Level(2), asked: Level(asked) };
        assert_eq!(b.one(Command::Level(Level(asked))), refused(reason));
    }
    assert_ne!(b.replica.digest(), digest, "outcomes are part of the state");
    // One that cannot read it any longer does not register, and one that has left does not count.
    let reason =
        InvalidReason::LevelUnknown { member: MemberId(2), lowest: Level(1), highest: Level(1), level: Level(2) };
    assert_eq!(b.registers(2, can(1, 1)), refused(reason));
    assert_eq!(b.registers(2, can(2, 1)), refused(InvalidReason::Capabilities));
    assert_eq!(
        b.registers(2, Capabilities { program: "x".repeat(65), ..can(1, 2) }),
        refused(InvalidReason::Capabilities)
    );
    assert_eq!(b.registers(9, can(1, 2)), refused(InvalidReason::NoMember(MemberId(9))));
    for member in [1, 3] {
        assert_eq!(b.registers(member, can(2, 3)), Outcome::Accepted);
    }
    assert!(matches!(b.one(Command::Level(Level(3))), Outcome::Invalid(InvalidReason::LevelBeyondMember { .. })));
    assert_eq!(b.one(Command::Member(MemberChange::Leave(MemberId(2)))), Outcome::Accepted);
    assert_eq!(b.one(Command::Level(Level(3))), Outcome::Accepted);
}

#[test]
fn level_raise_changes_no_hash_of_what_exists() {
    let mut b = Fixture::with_members(1);
    b.registers(1, can(1, 2));
    for n in 0..100 {
        b.one(add(establish(n, n as u16)));
    }
    let raise = batch(b.next, b.next, vec![Command::Level(Level(2))]);
    let (sessions, register) = (b.replica.state.sessions_digest(), b.replica.state.register_digest());
    assert_eq!(b.apply(&raise), [Outcome::Accepted]);
    assert_eq!(b.replica.state.sessions_digest(), sessions);
    let added = crate::digest::element(crate::digest::Kind::Level, &Level(2));
    assert_eq!(b.replica.state.register_digest(), register.wrapping_add(added), "the level alone is added");
    assert!((0..=u8::MAX).all(|shard| b.replica.engine.scrub(shard)));
}

#[test]
fn snapshot_restores_level_and_capabilities() {
    let mut b = Fixture::with_members(2);
    b.registers(1, can(1, 2));
    b.registers(2, can(1, 7));
    b.one(Command::Level(Level(2)));
    let mut bytes = Vec::new();
    b.replica.begin_snapshot().write(&mut bytes).unwrap();
    let mut again = Replica::new(Engine::new(Config::new(MemberId(2), 1, 1234)));
    let restored = again.restore(NOW, &mut &bytes[..], &mut NoWaiters);
    if Level::HIGHEST < Level(2) {
        assert!(matches!(restored, Err(RestoreError::Level(unknown)) if unknown.level == Level(2)), "{restored:?}");
        return;
    }
    restored.unwrap();
    assert_eq!(again.digest(), b.replica.digest());
    let cluster = again.engine.cluster_state();
    assert_eq!(cluster.level, Level(2));
    assert_eq!(cluster.capabilities, [(MemberId(1), can(1, 2)), (MemberId(2), can(1, 7))].into());
}

/// A batch of level 2 with one command, as `next_level.rs` of this crate's tests makes them: `Note(5)`.
const OF_LEVEL_2: &[u8] = &[2, 0, 5, 1, 0, 0, 0, 1, 2, 14, 5];

#[test]
fn batch_of_a_later_level_is_refused_with_that_level() {
    let decoded = Batch::decode(OF_LEVEL_2);
    #[cfg(feature = "next-level")]
    assert_eq!(decoded, Ok(Batch { unix_ms: 0, ..batch(0, 0, vec![Command::Note(5)]) }));
    #[cfg(not(feature = "next-level"))]
    {
        let error = decoded.unwrap_err();
        assert!(
            matches!(error, crate::encoding::DecodeError::Level(unknown) if unknown.level == Level(2)),
            "{error:?}"
        );
        assert_eq!(error.to_string(), "it is of level 2, and this program knows level 1");
    }
}

/// The numbers are those of the first program that had levels. Another one, whatever else it knows, must have the same, or the
/// members of a cluster that is being upgraded differ.
#[test]
fn level_1_has_the_same_bytes_and_digests_in_every_program() {
    let mut b = Fixture::with_members(2);
    for n in [1, 2] {
        assert_eq!(b.registers(n, can(1, 2)), Outcome::Accepted);
    }
    let mut bytes = crc32fast::Hasher::new();
    for n in 0..50 {
        let commands = vec![add(establish(n, n as u16)), close(n / 2), Command::Refresh(vec![id(n)])];
        let batch = batch(b.next, b.next, commands);
        b.next += 3;
        bytes.update(&batch.encode(Level::FIRST).unwrap());
        b.apply(&batch);
    }
    b.one(Command::Expire((0..10).map(id).collect()));
    b.settings(0, &["table.sessions=1000"]);
    assert_eq!(b.policy(1, "zone dmz, inside\ndefault drop\n"), Outcome::Policy(Generation(2)));
    assert_eq!(b.sessions(), 40);
    let digests = [b.replica.state.sessions_digest(), b.replica.state.register_digest(), b.replica.digest()];
    assert_eq!(
        (bytes.finalize(), digests),
        (2_869_634_878, [11_698_580_176_637_593_151, 5_260_972_479_997_295_839, 17_164_749_888_737_502_543])
    );
}
