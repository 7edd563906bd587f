//! Settings: what a change needs, and that nothing local decides.

use super::snapshots::written;
use super::*;
use crate::level::Capabilities;

/// A member whose node.toml, seed and start differ from those of [`Fixture::new`].
fn other() -> Fixture {
    Fixture::with(Config { affordable_sessions: 1_000_000, ..Config::new(MemberId(2), 5, 77) })
}

fn in_force(b: &Fixture) -> SettingsRecord {
    b.replica.engine.cluster_state().settings.clone()
}

/// The refusal of an outcome.
fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Invalid(why) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_decide_how_many_sessions_there_are_and_node_toml_does_not() {
    let (mut a, mut b) = (Fixture::new(), other());
    for member in [&mut a, &mut b] {
        assert_eq!(member.settings(0, &["table.sessions=3"]), Outcome::Accepted);
        let outcomes: Vec<Outcome> = (1..=5).map(|n| member.one(add(establish(n, n as u16)))).collect();
        assert_eq!(outcomes[2..], [Outcome::Accepted, Outcome::Full, Outcome::Full]);
    }
    assert_eq!((a.sessions(), a.replica.digest()), (b.sessions(), b.replica.digest()));
}

#[test]
fn settings_go_with_a_snapshot() {
    let mut a = Fixture::new();
    a.settings(
        0,
        &["table.sessions=300000", "table.half_open=5000", "table.half_open_per_source=500", "lease.grace=1m"],
    );
    for n in 1..=5 {
        a.one(add(establish(n, n as u16)));
    }
    let bytes = written(a.replica.begin_snapshot());
    let mut b = other();
    b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters).unwrap();
    assert_eq!((a.replica.digest(), in_force(&a)), (b.replica.digest(), in_force(&b)));
    assert_eq!(b.replica.engine.grace().get(), std::time::Duration::from_secs(60));
    b.next = a.next;
    for change in [["table.sessions=5"], ["level.raise=after 1h"], ["level.raise=manual"]] {
        let base = in_force(&a).revision;
        assert_eq!(a.settings(base, &change), Outcome::Accepted);
        assert_eq!(b.settings(base, &change), Outcome::Accepted);
        assert_eq!(b.one(add(establish(9, 9))), a.one(add(establish(9, 9))));
        assert_eq!(a.replica.digest(), b.replica.digest());
    }
}

#[test]
fn snapshot_of_settings_that_a_member_does_not_afford_is_refused_with_the_numbers() {
    let mut a = Fixture::new();
    a.settings(0, &["table.sessions=1000001"]);
    let bytes = written(a.replica.begin_snapshot());
    let mut b = other();
    let before = b.replica.digest();
    let restored = b.replica.restore(NOW, &mut &bytes[..], &mut NoWaiters);
    let Err(RestoreError::Unaffordable { needed, affords }) = restored else { panic!("{restored:?}") };
    assert_eq!((needed, affords), (1_000_001, 1_000_000));
    assert_eq!(b.replica.digest(), before);
}

#[test]
fn settings_change_is_compare_and_swap() {
    let mut b = Fixture::new();
    assert_eq!(b.settings(0, &["members.voters=3"]), Outcome::Accepted);
    assert!(refused(b.settings(0, &["members.voters=7"])).contains("revision 1"), "another was faster");
    assert!(refused(b.settings(2, &["members.voters=7"])).contains("revision 1"), "from the future");
    assert_eq!(b.settings(1, &["lease.grace=90s"]), Outcome::Accepted);
    let now = in_force(&b);
    assert_eq!((now.revision, now.values.max_voters()), (2, 3));
    let last = now.history.last().unwrap();
    assert_eq!((last.author.as_str(), last.unix_ms, last.values.as_slice()), ("me", 1000, &[(4, 90_000)][..]));
}

#[test]
fn settings_change_is_checked_as_a_whole() {
    let mut b = Fixture::new();
    for n in 1..=5 {
        b.one(add(establish(n, n as u16)));
    }
    let before = (b.replica.state.register_digest(), in_force(&b));
    let mut change = |values: &[(u16, u64)]| {
        let change = SettingsChange { base: 0, values: values.to_vec(), without: Vec::new(), author: String::new() };
        refused(b.one(Command::Settings(Box::new(change))))
    };
    let sessions = SettingKey::TableSessions.tag();
    for (values, why) in [
        (&[][..], "from 1 to 64 values"),
        (&[(99, 1)], "no setting with the number 99"),
        (&[(6, 3), (6, 4)], "twice"),
        (&[(6, 0)], "members.voters cannot be 0"),
        (&[(6, 3), (sessions, u64::MAX)], "table.sessions cannot be"),
        (&[(sessions, 4)], "there are 5 sessions now"),
        (&[(2, 300)], "one source could take the whole table"),
        (&[(8, 1)], "level.raise cannot be 1"),
    ] {
        let refusal = change(values);
        assert!(refusal.contains(why), "{values:?}: {refusal}");
    }
    let too_many: Vec<(u16, u64)> = (0..65).map(|n| (n, 1)).collect();
    assert!(change(&too_many).contains("values"));
    assert_eq!((b.replica.state.register_digest(), in_force(&b)), before);
    assert_eq!(
        b.settings(0, &["table.sessions=5", "table.half_open=300", "table.half_open_per_source=300"]),
        Outcome::Accepted
    );
}

#[test]
fn settings_that_a_member_does_not_afford_are_refused_with_its_number() {
    let mut b = Fixture::new();
    b.one(Command::Member(MemberChange::Init { cluster_id: "c".to_owned(), member: named("a"), level: Level::FIRST }));
    b.another(named("b"));
    let registered = |member, max_sessions| {
        let capabilities = Capabilities::of_program(max_sessions, "1");
        Command::Member(MemberChange::Capabilities { member: MemberId(member), capabilities })
    };
    b.one(registered(1, 5_000_000));
    let refusal = refused(b.settings(0, &["table.sessions=1000001"]));
    assert!(refusal.contains("member 2 has not said yet"), "{refusal}");
    b.one(registered(2, 2_000_000));
    let refusal = refused(b.settings(0, &["table.sessions=2000001"]));
    assert!(
        refusal.contains("member 2 affords 2000000 sessions") && refusal.contains("2000001 are needed"),
        "{refusal}"
    );
    let refusal = refused(b.settings(0, &["table.half_open=2000001"]));
    assert!(refusal.contains("member 2 affords 2000000 sessions"), "{refusal}");
    assert_eq!(b.settings(0, &["table.sessions=2000000"]), Outcome::Accepted);
    // It affords less from its next start on: no reason against other changes, or less.
    b.one(registered(2, 1_500_000));
    assert_eq!(b.settings(1, &["lease.grace=1m"]), Outcome::Accepted);
    assert_eq!(b.settings(2, &["table.sessions=1900000"]), Outcome::Accepted);
    let mut without = |without: &[u64]| {
        let values = Assignment::parse_all(["table.sessions=3000000"]).unwrap();
        let without = without.iter().copied().map(MemberId).collect();
        b.one(Command::Settings(Box::new(SettingsChange::new(3, &values, without, "me".to_owned()))))
    };
    assert!(refused(without(&[1])).contains("member 2"));
    assert_eq!(without(&[2]), Outcome::Accepted);
    let last = in_force(&b).history.last().unwrap().clone();
    assert_eq!((last.revision, last.without.as_slice()), (4, &[MemberId(2)][..]));
}

#[test]
fn settings_at_their_defaults_leave_nothing_behind() {
    let mut b = Fixture::new();
    let default = in_force(&b).values;
    b.settings(0, &["table.sessions=9", "level.raise=after 2h"]);
    assert_ne!(in_force(&b).values, default);
    b.settings(1, &["level.raise=manual", "table.sessions=1000000"]);
    assert_eq!(in_force(&b).values, default);
}

#[test]
fn settings_keep_the_largest_grace_and_the_last_changes() {
    let mut b = Fixture::new();
    b.one(Command::Member(MemberChange::Init { cluster_id: "c".to_owned(), member: named("a"), level: Level::FIRST }));
    let secs = |b: &Fixture| in_force(b).largest_grace.as_secs();
    assert_eq!(secs(&b), 300);
    b.settings(0, &["lease.grace=10s"]);
    assert_eq!(secs(&b), 10, "no other member could go by the old one");
    b.another(named("b"));
    for (base, (grace, largest)) in [("1h", 3600), ("20s", 3600), ("2h", 7200), ("1s", 7200)].into_iter().enumerate() {
        let set = format!("lease.grace={grace}");
        assert_eq!(b.settings(base as u64 + 1, &[&set]), Outcome::Accepted);
        assert_eq!(secs(&b), largest, "{grace}");
    }
    for base in 5..45 {
        b.settings(base, &["members.voters=3"]);
    }
    let record = in_force(&b);
    assert_eq!((record.history.len(), record.history[0].revision, record.revision), (32, 14, 45));
}

#[test]
fn assignment_says_what_it_expected() {
    for key in SettingKey::ALL {
        let text = format!("{}={}", key.name(), key.text(key.default()));
        assert_eq!(Assignment::parse(&text), Ok(Assignment { key, value: key.default() }), "{text}");
        assert_eq!(Assignment::parse(&text).unwrap().to_string(), text);
        assert_eq!(SettingKey::from_tag(key.tag()), Some(key));
    }
    assert_eq!(Assignment::parse("level.raise=after 90m").unwrap().to_string(), "level.raise=after 90m");
    assert_eq!(Assignment::parse("table.sessions = 2_000_000").unwrap().value, 2_000_000);
    for (text, why) in [
        ("table.sessions", "is no KEY=VALUE"),
        ("table.session=5", "there is no setting `table.session`; the settings are table.sessions, "),
        ("table.sessions=0", "table.sessions: expected a number from 1 to 100000000 (sessions), found `0`"),
        ("table.sessions=many", "found `many`"),
        ("lease.grace=300", "lease.grace: expected a time from 1s to 1d, such as 90s, 10m, 1h, found `300`"),
        ("lease.grace=2d", "expected a time from 1s to 1d"),
        ("members.voters=10", "from 1 to 9"),
        ("level.raise=after", "`manual`, or `after` and a time from 1m to 30d"),
        ("level.raise=after 0s", "found `after 0s`"),
    ] {
        let error = Assignment::parse(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    let twice = Assignment::parse_all(["members.voters=3", "members.voters=5"]);
    assert_eq!(twice, Err(AssignmentError::Twice(SettingKey::MembersVoters)));
}
