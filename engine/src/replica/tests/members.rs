//! The register of members: joins that are repeated, members that never come, names and addresses that change.

use super::*;
use crate::cluster_state::ClusterState;
use crate::cluster_state::Role;

impl Fixture {
    /// A cluster of member 1, `fw1`, with a token that is good for ever.
    fn founded() -> Fixture {
        let mut b = Fixture::new();
        b.one(Command::Member(MemberChange::Init {
            cluster_id: "c".to_owned(),
            member: named("fw1"),
            level: Level::FIRST,
        }));
        b.one(Command::Member(token(1, u64::MAX)));
        b
    }

    fn member(&mut self, change: MemberChange) -> Outcome {
        self.one(Command::Member(change))
    }

    fn cluster(&self) -> Arc<ClusterState> {
        self.replica.engine.cluster_state()
    }

    fn update(&mut self, member: u64, name: Option<&str>, address: Option<&str>) -> Outcome {
        let (name, address) = (name.map(str::to_owned), address.map(str::to_owned));
        self.member(MemberChange::Update { member: MemberId(member), name, address })
    }

    /// The first time that `member` resumes.
    fn comes(&mut self, member: u64) {
        let batch = Batch { proposer: MemberId(member), ..batch(0, 0, vec![Command::Resume]) };
        assert_eq!(self.apply(&batch), [Outcome::Accepted]);
    }
}

#[test]
fn join_that_is_repeated_is_the_same_member() {
    let mut b = Fixture::founded();
    assert_eq!(b.member(join(1, 7, "fw2")), Outcome::Member(MemberId(2)));
    let once = b.replica.digest();
    assert_eq!(b.member(join(1, 7, "fw2")), Outcome::Member(MemberId(2)), "its answer was lost");
    // The outcomes of commands are in the digest, the register is as before.
    assert_ne!(b.replica.digest(), once);
    assert_eq!(b.cluster().members.len(), 2);

    // Its node.toml was changed meanwhile, and the token has ended: it is the same machine.
    b.member(token(1, 0));
    assert_eq!(b.member(join(1, 7, "fw1")), Outcome::Conflict, "that one is there");
    assert_eq!(b.member(join(1, 7, "edge")), Outcome::Member(MemberId(2)));
    assert_eq!(b.cluster().members[&MemberId(2)], named("edge"));

    // Another machine.
    b.member(token(1, u64::MAX));
    assert_eq!(b.member(join(1, 8, "edge")), Outcome::Conflict);
    let moved = MemberInfo { name: "fw3".to_owned(), ..named("edge") };
    let same_address = Join { request: JoinRequest([8; 16]), secret_digest: vec![1], member: moved };
    assert_eq!(b.member(MemberChange::Join(Box::new(same_address))), Outcome::Conflict, "one address, one member");
    assert_eq!(b.member(join(1, 8, "fw3")), Outcome::Member(MemberId(3)));
}

#[test]
fn join_needs_a_token_that_is_valid_when_it_is_applied() {
    let mut b = Fixture::founded();
    // The clock of these batches shows 1000.
    b.member(token(2, 1000));
    b.member(token(3, 1001));
    assert!(matches!(b.member(join(2, 7, "fw2")), Outcome::Invalid(_)), "ended");
    assert!(matches!(b.member(join(9, 7, "fw2")), Outcome::Invalid(_)), "unknown");
    assert_eq!(b.cluster().members.len(), 1);
    assert_eq!(b.member(join(3, 7, "fw2")), Outcome::Member(MemberId(2)));
}

#[test]
fn member_forwards_from_its_first_resumption_on() {
    let mut b = Fixture::founded();
    b.member(join(1, 7, "fw2"));
    b.member(join(1, 8, "fw3"));
    let joining = |b: &Fixture| b.cluster().joining.keys().map(|id| id.0).collect::<Vec<_>>();
    assert_eq!(joining(&b), [2, 3], "the first member of a cluster is there from the beginning");
    let forwards = |b: &Fixture| [1, 2, 3, 4].map(|id| b.cluster().may_forward(MemberId(id)));
    assert_eq!(forwards(&b), [true, false, false, false]);
    b.comes(2);
    assert_eq!(joining(&b), [3]);
    assert_eq!(forwards(&b), [true, true, false, false]);
    // Its request is over: who asks with it is not it.
    assert_eq!(b.member(join(1, 7, "fw2")), Outcome::Conflict);
    // One that never came is removed, and may come after all: as another member.
    assert_eq!(b.member(MemberChange::Leave(MemberId(3))), Outcome::Accepted);
    assert_eq!(joining(&b), [0; 0]);
    assert_eq!(b.member(join(1, 8, "fw3")), Outcome::Member(MemberId(4)));
}

#[test]
fn joins_under_way_are_in_snapshots_and_end_with_a_forced_new_cluster() {
    let mut b = Fixture::founded();
    b.member(join(1, 7, "fw2"));
    let mut bytes = Vec::new();
    b.replica.begin_snapshot().write(&mut bytes).unwrap();
    let mut copy = Fixture { replica: Replica::new(Engine::new(Config::new(MemberId(2), 1, 5))), next: b.next };
    copy.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(copy.cluster().joining, b.cluster().joining);
    assert_eq!(copy.member(join(1, 7, "fw2")), b.member(join(1, 7, "fw2")));
    assert_eq!(copy.replica.digest(), b.replica.digest());
    copy.replica.force_new_cluster("d", MemberId(2));
    assert!(copy.cluster().joining.is_empty());
}

#[test]
fn member_gets_another_name_and_another_address() {
    let mut b = Fixture::founded();
    b.member(join(1, 7, "fw2"));
    b.comes(2);
    let info = |b: &Fixture| b.cluster().members[&MemberId(2)].clone();
    assert_eq!(b.update(2, Some("edge"), None), Outcome::Accepted);
    assert_eq!(b.update(2, None, Some("192.0.2.7:1")), Outcome::Accepted);
    let moved = MemberInfo { name: "edge".to_owned(), address: "192.0.2.7:1".to_owned(), role: Role::Firewall };
    assert_eq!(info(&b), moved);
    assert_eq!(b.update(2, Some("edge"), Some("192.0.2.7:1")), Outcome::Accepted, "as it is");
    assert_eq!(b.update(2, Some("fw1"), None), Outcome::Conflict);
    assert_eq!(b.update(2, None, Some(&named("fw1").address)), Outcome::Conflict);
    let long = "x".repeat(64);
    for name in ["", "a\nb", &*long] {
        assert!(matches!(b.update(2, Some(name), None), Outcome::Invalid(_)), "{name:?}");
    }
    for address in ["", "192.0.2.7", "192.0.2.7:", ":7946", "192.0.2.7:0", "192.0.2.7:65536"] {
        assert!(matches!(b.update(2, None, Some(address)), Outcome::Invalid(_)), "{address:?}");
    }
    assert!(matches!(b.update(9, Some("x"), None), Outcome::Invalid(_)), "no such member");
    assert_eq!(info(&b), moved);
}
