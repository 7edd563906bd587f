//! The bytes of each value, so that neither openraft nor a changed struct changes the disk silently.

use openraft::EntryPayload;
use palisade_engine::replica::{Batch, Command};
use palisade_engine::{Close, CloseCause, SessionId};

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn position(index: u64) -> LogId {
    LogId { leader_id: Leader::new(3, MemberId(2)), index }
}

pub(crate) fn membership() -> Membership<MemberId, MemberInfo> {
    let info = |name: &str, role| MemberInfo { name: name.to_owned(), address: format!("{name}:7946"), role };
    let nodes = BTreeMap::from([
        (MemberId(1), info("fw1", Role::Firewall)),
        (MemberId(2), info("fw2", Role::Firewall)),
        (MemberId(300), info("w", Role::Witness)),
    ]);
    let voters = |ids: &[u64]| ids.iter().copied().map(MemberId).collect::<BTreeSet<_>>();
    Membership::new(vec![voters(&[1, 2]), voters(&[1, 300])], nodes).unwrap()
}

pub(crate) fn batch() -> Batch {
    let id = SessionId { member: MemberId(3), counter: 7 };
    Batch {
        proposer: MemberId(2),
        first_serial: (5 << 40) | 17,
        lowest_outstanding: 5 << 40,
        unix_ms: 1,
        commands: vec![
            Command::Close(Close { id, cause: CloseCause::Rst }),
            Command::Expire(vec![id]),
            Command::Resume,
        ],
    }
}

/// Encoded as these bytes, and decoded from them.
fn golden<T: Encoded + PartialEq + std::fmt::Debug>(value: &T, bytes: &str) {
    let encoded = value.encode(Level::FIRST).unwrap();
    assert_eq!(hex(&encoded), bytes);
    assert_eq!(T::decode(Thing::Record("test"), &encoded).unwrap(), *value);
}

#[test]
fn entries_have_these_bytes() {
    golden(&Entry::new(position(258), EntryPayload::Blank), "010302820200");
    golden(
        &Entry::new(position(258), EntryPayload::Normal(batch())),
        "01030282020120010011029180808080a0018080808080a0010103040103070104020103070108",
    );
    golden(
        &Entry::new(position(258), EntryPayload::Membership(membership())),
        "010302820202020201020201ac02030103667731086677313a37393436010203667732086677323a3739343601ac02017706773a3739343602",
    );
}

#[test]
fn votes_and_positions_have_these_bytes() {
    golden(&Vote { leader_id: Leader::new(300, MemberId(2)), committed: true }, "01ac020201");
    golden(&Vote { leader_id: Leader::new(300, MemberId(2)), committed: false }, "01ac020200");
    golden(&position(258), "0103028202");
    golden(&Some(position(258)), "010103028202");
    golden(&None::<LogId>, "0100");
}

#[test]
fn owner_and_numbers_have_these_bytes() {
    golden(&StoreOwner { cluster: "c1".to_owned(), member: MemberId(300) }, "01026331ac02");
    golden(&4u32, "04");
    golden(&300u64, "ac02");
}

#[test]
fn snapshot_metas_have_these_bytes() {
    let last_membership = StoredMembership::new(Some(position(200)), membership());
    golden(
        &SnapshotMeta { last_log_id: Some(position(258)), last_membership },
        "010103028202010302c801020201020201ac02030103667731086677313a37393436010203667732086677323a3739343601ac02017706773a3739343602",
    );
    golden(&SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() }, "0100000000");
}

fn decoded(bytes: &[u8]) -> io::Error {
    Entry::decode(Thing::Entry(258), bytes).unwrap_err()
}

#[test]
fn entry_of_another_level_or_layout_is_unreadable_and_nothing_else() {
    let entry = Entry::new(position(258), EntryPayload::Normal(batch())).encode(Level::FIRST).unwrap();
    let unreadable = |bytes: &[u8]| Unreadable::find(&decoded(bytes)).cloned().map(|found| found.unknown);

    // Version, position (1 + 1 + 2 bytes), kind, length, then the level.
    let level = 7;
    assert_eq!(entry[level..level + 2], [1, 0]);
    let mut newer = entry.clone();
    newer[level] = 77;
    assert_eq!(unreadable(&newer), Some(Unknown::Level(Level(77))));
    let mut layout = entry.clone();
    layout[0] = 2;
    assert_eq!(unreadable(&layout), Some(Unknown::Layout(2)));

    // A command that this program does not know, though it knows the level.
    let mut command = entry.clone();
    let resume = command.len() - 1;
    command[resume] = 0x7f;
    assert!(
        matches!(unreadable(&command), Some(Unknown::Content { level: Some(Level(1)), .. })),
        "{:?}",
        unreadable(&command)
    );

    assert_eq!(decoded(&entry[..level - 2]).kind(), io::ErrorKind::InvalidData, "damage");
    assert_eq!(decoded(&[&entry[..], &[0]].concat()).kind(), io::ErrorKind::InvalidData, "damage");
    assert_eq!(decoded(&[]).kind(), io::ErrorKind::InvalidData, "damage");
}

#[test]
fn membership_with_an_unknown_role_is_an_error() {
    let mut bytes = Entry::new(position(258), EntryPayload::Membership(membership())).encode(Level::FIRST).unwrap();
    *bytes.last_mut().unwrap() = 3;
    assert!(Unreadable::find(&decoded(&bytes)).unwrap().to_string().contains("unknown role 3"));
}
