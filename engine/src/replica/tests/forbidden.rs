//! Sessions that the policy in force forbids: which ones the sweep finds, and how they end.

use super::*;
use crate::session::EndCause;
use crate::sweep::Sweep;

/// Zones 1 to 3. What comes from outside may go to port 80 inside.
const NARROW: &str = "zone outside, inside, uplink\n\
    accept \"web\" from outside to inside: any -> any tcp/80\n";
/// The same, but by the uplink.
const BY_UPLINK: &str = "zone outside, inside, uplink\n\
    accept \"web\" from outside to uplink: any -> any tcp/80\n";
const NOTHING: &str = "zone outside, inside, uplink\n";

impl Fixture {
    /// The forbidden sessions of a whole sweep, and how many were judged.
    fn swept(&self) -> (Vec<u64>, u64) {
        let engine = &self.replica.engine;
        let (mut sweep, mut found) = (engine.begin_sweep().unwrap(), Vec::new());
        while sweep.step(engine, &mut found) {}
        assert!(!sweep.step(engine, &mut found), "it is over");
        assert_eq!(sweep.generation(), engine.generation());
        let mut found: Vec<u64> = found.iter().map(|id| id.counter).collect();
        found.sort_unstable();
        (found, sweep.judged())
    }

    fn revoke(&mut self, generation: u64, sessions: &[u64]) -> Applied {
        let sessions = sessions.iter().copied().map(id).collect();
        let command = Command::RevokeForbidden(ForbiddenSessions { generation: Generation(generation), sessions });
        let batch = batch(self.next, self.next, vec![command]);
        self.next += 1;
        self.replica.apply(NOW, &batch, &mut NoWaiters).remove(0)
    }

    /// Two members, the second one with an interface in `zone` besides.
    fn with_two_members(zone: Option<&str>) -> Fixture {
        let mut b = Fixture::new();
        let init = MemberChange::Init { cluster_id: "c".to_owned(), member: named("fw1"), level: Level::FIRST };
        b.one(Command::Member(init));
        b.another(named("fw2"));
        for n in [1, 2] {
            let more = zone.filter(|_| n == 2);
            let zones = ["outside", "inside"].into_iter().chain(more).map(str::to_owned).collect();
            let change = MemberChange::Zones { member: MemberId(n), zones };
            assert_eq!(b.one(Command::Member(change)), Outcome::Accepted);
        }
        b
    }
}

#[test]
fn sweep_finds_open_sessions_of_older_policies_that_are_forbidden() {
    let mut b = Fixture::new();
    for n in 1..=3 {
        b.one(add(establish(n, n as u16)));
    }
    let other_port = |n: u64, generation| {
        let mut other = Establish { generation: Generation(generation), ..establish(n, n as u16) };
        other.original.dst_port = 8080;
        Establish { reply: other.original.inverse(), ..other }
    };
    b.one(add(other_port(4, 1)));
    b.one(close(3));
    assert_eq!(b.swept(), (vec![], 0), "all were opened under the policy in force");
    assert_eq!(b.policy(1, NARROW), Outcome::Policy(Generation(2)));
    assert_eq!(b.one(add(other_port(5, 2))), Outcome::Accepted);
    assert_eq!(b.swept(), (vec![4], 3), "neither the closed one nor that of the new policy was judged");
    assert_eq!(b.policy(2, NOTHING), Outcome::Policy(Generation(3)));
    assert_eq!(b.swept(), (vec![1, 2, 4, 5], 4));
}

#[test]
fn sweep_without_rules_is_none() {
    let engine = Engine::new(Config::new(MemberId(1), 1, 9));
    assert!(engine.generation_to_sweep().is_none() && engine.begin_sweep().is_none());
}

#[test]
fn sweep_keeps_what_some_member_may_carry_by_another_uplink() {
    for (zone, expected) in [(Some("uplink"), vec![]), (None, vec![1])] {
        let mut b = Fixture::with_two_members(zone);
        b.one(add(establish(1, 1)));
        assert_eq!(b.policy(1, BY_UPLINK), Outcome::Policy(Generation(2)));
        assert_eq!(b.swept().0, expected, "{zone:?}");
    }
    // A member that has not named its zones may have an interface in any.
    let mut b = Fixture::with_two_members(None);
    b.another(named("fw3"));
    b.one(add(establish(1, 1)));
    b.policy(1, BY_UPLINK);
    assert_eq!(b.swept().0, [0; 0]);
    // One that has joined and never come carries nothing.
    let mut b = Fixture::with_two_members(None);
    assert!(matches!(b.one(Command::Member(join(200, 77, "ghost"))), Outcome::Member(_)));
    b.one(add(establish(1, 1)));
    b.policy(1, BY_UPLINK);
    assert_eq!(b.swept().0, [1]);
    // A witness carries nothing.
    let mut b = Fixture::with_two_members(None);
    let witness =
        MemberInfo { name: "w".to_owned(), role: crate::cluster_state::Role::Witness, ..MemberInfo::default() };
    b.another(witness);
    b.one(add(establish(1, 1)));
    b.policy(1, BY_UPLINK);
    assert_eq!(b.swept().0, [1]);
}

#[test]
fn sweep_judges_a_session_by_the_zone_that_it_came_from() {
    let mut b = Fixture::with_two_members(None);
    b.one(add(establish(1, 1)));
    let back = Establish { ingress: INSIDE, egress: OUTSIDE, ..establish(2, 2) };
    b.one(add(back));
    let from_inside = "zone outside, inside\naccept \"out\" from inside to any: any -> any\n";
    assert_eq!(b.policy(1, from_inside), Outcome::Policy(Generation(2)));
    assert_eq!(b.swept(), (vec![1], 2));
}

#[test]
fn sweep_reads_a_table_of_any_size_in_pieces() {
    let mut b = Fixture::new();
    for n in 0..20_000 {
        b.one(add(establish(n, n as u16)));
    }
    b.policy(1, NOTHING);
    let engine = b.replica.engine.clone();
    let (mut sweep, mut found): (Sweep, _) = (engine.begin_sweep().unwrap(), Vec::new());
    let mut before = 0;
    while sweep.step(&engine, &mut found) {
        assert!(sweep.judged() - before <= 64);
        before = sweep.judged();
    }
    assert_eq!((sweep.judged(), found.len()), (20_000, 20_000));
}

#[test]
fn revoked_by_a_policy_is_only_what_an_older_one_allowed_and_only_while_it_is_in_force() {
    let mut b = Fixture::new();
    for n in 1..=3 {
        b.one(add(establish(n, n as u16)));
    }
    b.one(close(3));
    b.policy(1, POLICY);
    b.one(add(Establish { generation: Generation(2), ..establish(4, 4) }));
    let stale = b.revoke(1, &[1, 2, 3, 4]);
    assert_eq!((stale.outcome, stale.changed), (Outcome::Stale(Generation(2)), false));
    let revoked = b.revoke(2, &[1, 3, 4, 99]);
    assert_eq!((revoked.outcome, revoked.removed), (Outcome::Accepted, vec![id(1)]));
    let [ended] = revoked.ended[..] else { panic!("{:?}", revoked.ended) };
    assert_eq!((ended.id, ended.cause, ended.rule.0), (id(1), EndCause::Forbidden(Generation(2)), Generation(1)));
    assert_eq!(b.sessions(), 3);
    assert!(!b.revoke(2, &[1, 3, 4]).changed, "a sweep that was begun anew");
    let again = Establish { generation: Generation(2), ..establish(1, 1) };
    assert_eq!(b.one(add(again)), Outcome::Conflict, "a late copy of its establishment does not bring it back");
    assert_eq!(b.sessions(), 3);
}
