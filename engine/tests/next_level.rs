//! A program that knows level 2: below it, it does what the program before does; at it, what is new has an effect, and the
//! program before reads none of it. What that one says of these bytes: `replica/tests/levels.rs`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use palisade_engine::replica::{Batch, Command, InvalidReason, MemberChange, Outcome, PolicyChange, Replica};
use palisade_engine::{
    Capabilities, Config, DecodeError, EncodeError, Engine, Establish, Generation, Level, MemberId, MemberInfo, Time,
    Tuple,
};

use common::{Member, established};

const FIRST: &str = "zone outside, inside\naccept \"all\" from outside to inside: any -> any\n";
const KEYWORD: &str = "zone outside, inside\nnext-level\n";

/// A cluster at level 1, of one member whose program knows level 2.
fn cluster() -> Member {
    let mut member = Member::new(Config::new(MemberId(1), 1, 5));
    let info = MemberInfo { name: "fw1".to_owned(), address: "fw1.example:7946".to_owned(), ..MemberInfo::default() };
    let init = MemberChange::Init { cluster_id: "c".to_owned(), member: info, level: Level::FIRST };
    assert_eq!(member.apply(vec![Command::Member(init)]), [Outcome::Member(MemberId(1))]);
    let capabilities = Capabilities::of_program(1 << 20, "2");
    member.accept(vec![Command::Member(MemberChange::Capabilities { member: MemberId(1), capabilities })]);
    assert_eq!(member.policy(0, FIRST.to_owned()), Outcome::Policy(Generation(1)));
    member
}

fn plain(n: u16) -> Command {
    established(n.into(), tuple(n))
}

fn tuple(port: u16) -> Tuple {
    let [src, dst] = ["192.0.2.1", "198.51.100.1"].map(|text| text.parse::<std::net::IpAddr>().unwrap().into());
    Tuple { src, dst, src_port: port, dst_port: 443, protocol: palisade_engine::Protocol::TCP }
}

fn tagged(n: u16) -> Command {
    let Command::Establish(establish) = plain(n) else { unreachable!() };
    Command::Establish(Box::new(Establish { tag: 7, ..*establish }))
}

fn snapshot(of: &mut Member) -> Vec<u8> {
    let mut bytes = Vec::new();
    of.replica.begin_snapshot().write(&mut bytes).unwrap();
    bytes
}

/// Another member with the state of a snapshot.
fn restored(bytes: &[u8]) -> (Replica, Arc<Engine>) {
    let engine = Engine::new(Config::new(MemberId(2), 1, 1234));
    let mut replica = Replica::new(engine.clone());
    replica.restore(Time(7), &mut &bytes[..], &mut ()).unwrap();
    (replica, engine)
}

fn batch(commands: Vec<Command>) -> Batch {
    Batch { proposer: MemberId(1), first_serial: 0, lowest_outstanding: 0, unix_ms: 0, commands }
}

#[test]
fn next_level_command_and_field_are_refused_with_a_code_until_it_is_in_force() {
    let mut member = cluster();
    let needs = Outcome::Invalid(InvalidReason::NeedsLevel(Level(2)));
    assert_eq!(member.apply(vec![Command::Note(5), tagged(1)]), [needs.clone(), needs]);
    assert_eq!(member.engine.counts().sessions.iter().map(|(_, _, n)| n).sum::<u64>(), 0);
    assert_eq!(snapshot(&mut member)[8..10], [1, 0]);

    member.accept(vec![Command::Level(Level(2)), Command::Note(5), tagged(1), plain(2)]);
    assert_eq!(member.engine.cluster_state().note, 5);
    let ids = [tagged(1), plain(2)].map(|command| match command {
        Command::Establish(establish) => establish.id,
        _ => unreachable!(),
    });
    assert_eq!(ids.map(|id| member.engine.next_level_tag_of(id)), [Some(7), Some(0)]);
    let lowered = InvalidReason::LevelNotNext { in_force: Level(2), asked: Level(1) };
    assert_eq!(member.apply(vec![Command::Level(Level(1))]), [Outcome::Invalid(lowered)]);
    let digest = member.replica.digest();

    let bytes = snapshot(&mut member);
    assert_eq!(bytes[8..10], [2, 0], "the level is in front");
    let (again, engine) = restored(&bytes);
    assert_eq!(again.digest(), digest, "field and note are in the snapshot");
    assert!((0..=u8::MAX).all(|shard| engine.scrub(shard) && member.engine.scrub(shard)));
    assert_eq!(engine.cluster_state().note, 5);
    assert_eq!(ids.map(|id| engine.next_level_tag_of(id)), [Some(7), Some(0)]);
}

/// The keyword is not the log's business: each member's compiler says the same.
#[test]
fn next_level_keyword_is_refused_by_every_member_until_it_is_in_force() {
    let mut member = cluster();
    let change = |text: &str| PolicyChange::new(Generation(1), text.to_owned(), "me".to_owned());
    member.accept(vec![Command::Policy(Box::new(change(KEYWORD)))]);
    member.engine.compile_policies();
    let refused = member.engine.policy_report().unwrap().refused.unwrap();
    assert!(refused.contains("line 2") && refused.contains("`next-level`"), "{refused}");
    assert_eq!(member.engine.generation(), Generation(1));

    member.accept(vec![Command::Level(Level(2))]);
    assert_eq!(member.policy(1, KEYWORD.to_owned()), Outcome::Policy(Generation(2)));
    assert!(member.engine.is_policy_compiled());
    let (_, engine) = restored(&snapshot(&mut member));
    engine.compile_policies();
    assert!(engine.is_policy_compiled(), "{:?}", engine.policy_refused());
}

#[test]
fn next_level_is_written_only_with_its_level_in_front() {
    for (commands, level) in [
        (vec![plain(1)], Level(1)),
        (vec![tagged(1)], Level(2)),
        (vec![Command::Note(1)], Level(2)),
        (vec![plain(1), tagged(2)], Level(2)),
    ] {
        let batch = batch(commands);
        assert_eq!(batch.level(), level);
        let bytes = batch.encode(Level::FIRST).unwrap();
        assert_eq!(Batch::level_of(&bytes), Ok(level), "whatever the writer has applied");
        assert_eq!(Batch::decode(&bytes), Ok(batch));
    }
    let unknown = batch(vec![tagged(1)]).encode(Level(3));
    assert!(matches!(unknown, Err(EncodeError::Level(unknown)) if unknown.level == Level(3)), "{unknown:?}");
    let mut bytes = batch(vec![tagged(1)]).encode(Level::FIRST).unwrap();
    // The extension: its tag, its length, its value.
    let at = bytes.len() - 3;
    assert_eq!(bytes[at..], [1, 1, 7]);
    bytes[at] = 9;
    assert_eq!(Batch::decode(&bytes), Err(DecodeError::Tag(9)), "an unknown field is never skipped");
}
