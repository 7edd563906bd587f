//! The register of zones.

use super::*;
use crate::cluster_state::ClusterState;
use crate::id::ZoneId;

/// A cluster of members 1 to `members`, under the usual policy: zones `outside` (1) and `inside` (2).
fn cluster(members: u64) -> Fixture {
    let mut b = Fixture::new();
    b.one(Command::Member(MemberChange::Init {
        cluster_id: "c".to_owned(),
        member: named("fw1"),
        level: Level::FIRST,
    }));
    b.one(Command::Member(token(1, u64::MAX)));
    for n in 2..=members {
        let join = join(1, n as u8, &format!("fw{n}"));
        assert_eq!(b.one(Command::Member(join)), Outcome::Member(MemberId(n)));
    }
    b
}

impl Fixture {
    fn zones(&mut self, member: u64, zones: &[&str]) -> Outcome {
        let zones = zones.iter().map(|&zone| zone.to_owned()).collect();
        self.one(Command::Member(MemberChange::Zones { member: MemberId(member), zones }))
    }

    fn state(&self) -> Arc<ClusterState> {
        self.replica.engine.cluster_state()
    }

    fn zone(&self, name: &str) -> u16 {
        let number = self.replica.engine.zone(name);
        assert_eq!(number, self.state().zone(name));
        number.0
    }
}

fn written(b: &mut Fixture) -> Vec<u8> {
    let mut bytes = Vec::new();
    b.replica.begin_snapshot().write(&mut bytes).unwrap();
    bytes
}

#[test]
fn zones_of_members_and_policies_have_numbers_of_their_own() {
    let mut b = cluster(2);
    assert_eq!(b.zones(1, &["mgmt", "inside", "backup", "inside"]), Outcome::Accepted);
    assert_eq!(b.state().member_zones[&MemberId(1)], ["backup", "inside", "mgmt"]);
    assert_eq!(["outside", "inside", "backup", "mgmt", "dmz", ""].map(|zone| b.zone(zone)), [1, 2, 3, 4, 0, 0]);
    assert_eq!(b.zones(2, &["mgmt", "dmz"]), Outcome::Accepted);
    assert_eq!(["backup", "mgmt", "dmz"].map(|zone| b.zone(zone)), [3, 4, 5]);
    // A policy that names them, and others, changes no number.
    let version = b.replica.engine.zones_version();
    b.policy(1, "zone dmz, guest, backup\n");
    assert_eq!(["backup", "mgmt", "dmz", "guest"].map(|zone| b.zone(zone)), [3, 4, 5, 6]);
    assert_eq!(b.replica.engine.zones_version(), version + 1);
    b.policy(2, "zone dmz\n");
    assert_eq!(b.replica.engine.zones_version(), version + 1, "nothing has changed");
}

#[test]
fn zones_that_nobody_names_are_forgotten() {
    let mut b = cluster(2);
    b.zones(1, &["insdie", "outside"]);
    b.zones(2, &["insdie", "backup"]);
    assert_eq!(["backup", "insdie"].map(|zone| b.zone(zone)), [4, 3]);
    b.zones(1, &["inside", "outside"]);
    assert_eq!(b.zone("insdie"), 3, "another member has it");
    b.zones(2, &["backup"]);
    assert_eq!(["outside", "inside", "insdie", "backup"].map(|zone| b.zone(zone)), [1, 2, 0, 4]);
    assert_eq!(b.zones(2, &["backup", "guest"]), Outcome::Accepted);
    assert_eq!(b.zone("guest"), 5, "the number of a forgotten zone may be in sessions");
    assert_eq!(b.one(Command::Member(MemberChange::Leave(MemberId(2)))), Outcome::Accepted);
    assert_eq!(["backup", "guest"].map(|zone| b.zone(zone)), [0, 0]);
    // The policies of the history count, for they may come back.
    b.policy(1, "zone dmz\n");
    b.policy(2, "zone outside\n");
    assert_eq!(b.zone("dmz"), 6);
    for n in 3..40 {
        b.policy(n, "zone outside\n");
    }
    assert_eq!(["outside", "inside", "dmz"].map(|zone| b.zone(zone)), [1, 2, 0], "inside is member 1's");
}

#[test]
fn zones_are_in_digest_and_snapshot() {
    let (mut a, mut b) = (cluster(2), cluster(2));
    assert_eq!(a.replica.digest(), b.replica.digest());
    a.zones(1, &["mgmt"]);
    assert_ne!(a.replica.digest(), b.replica.digest());
    b.zones(1, &["mgmt"]);
    assert_eq!(a.replica.digest(), b.replica.digest());
    // The same names, by another member.
    a.zones(1, &["mgmt", "guest"]);
    a.zones(1, &["mgmt"]);
    b.zones(2, &["guest"]);
    b.zones(2, &[]);
    assert_ne!(a.replica.digest(), b.replica.digest());

    let bytes = written(&mut a);
    let mut again = Fixture { replica: Replica::new(Engine::new(Config::new(MemberId(2), 1, 7))), next: a.next };
    again.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(again.replica.digest(), a.replica.digest());
    assert_eq!(again.zone("mgmt"), a.zone("mgmt"));
    assert_eq!(again.replica.engine.zone("guest"), ZoneId::UNKNOWN);
    for b in [&mut again, &mut a] {
        b.zones(2, &["guest", "new"]);
    }
    assert_eq!(again.replica.digest(), a.replica.digest());
}

#[test]
fn zones_are_refused_that_cannot_be() {
    let mut b = cluster(1);
    for names in [vec!["any"], vec![""], vec!["2nd"], vec!["a b"], vec!["x"; 5000]] {
        assert!(matches!(b.zones(1, &names), Outcome::Invalid(_)), "{names:?}");
    }
    assert!(matches!(b.zones(1, &[&"x".repeat(64)]), Outcome::Invalid(_)));
    assert!(matches!(b.zones(7, &["inside"]), Outcome::Invalid(_)), "no member");
    let register = |b: &Fixture| (b.state().zones.clone(), b.state().member_zones.clone());
    assert_eq!(register(&b), register(&cluster(1)));
    assert_eq!(b.zones(1, &[&"x".repeat(63)]), Outcome::Accepted);
}

#[test]
fn zone_numbers_are_given_again_when_all_have_been_given() {
    let mut b = cluster(16);
    let names = |member: u64, count: usize| (0..count).map(|n| format!("z{member}-{n:04}")).collect::<Vec<_>>();
    let register = |b: &mut Fixture, member: u64, count: usize| {
        let zones = names(member, count);
        b.one(Command::Member(MemberChange::Zones { member: MemberId(member), zones }))
    };
    for member in 1..16 {
        assert_eq!(register(&mut b, member, 4096), Outcome::Accepted);
    }
    // outside and inside are the policy's.
    let left = 65_534 - 2 - 15 * 4096;
    assert!(matches!(register(&mut b, 16, left + 1), Outcome::Invalid(_)));
    assert_eq!(register(&mut b, 16, left), Outcome::Accepted);
    assert_eq!(b.zone(&format!("z16-{:04}", left - 1)), 65_534);
    let freed = b.zone("z3-0000");
    b.zones(3, &[]);
    assert_eq!(b.zones(3, &["new"]), Outcome::Accepted);
    assert_eq!(b.zone("new"), freed, "the first of the forgotten ones");
    assert_eq!(["outside", "inside"].map(|zone| b.zone(zone)), [1, 2]);
    let bytes = written(&mut b);
    let mut again = Fixture { replica: Replica::new(Engine::new(Config::new(MemberId(2), 1, 7))), next: b.next };
    again.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!(again.replica.digest(), b.replica.digest());
}
