//! Settings: changed by the log, and nothing that one member's node.toml says decides.

use palisade_engine::replica::{InvalidReason, MemberChange, SettingsChange, SettingsRefusal};

use super::*;

fn change(base: u64, values: &[&str], without: &[u64]) -> Command {
    let values = Assignment::parse_all(values.iter().copied()).unwrap();
    let without = without.iter().copied().map(MemberId).collect();
    Command::Settings(Box::new(SettingsChange::new(base, &values, without, "test".to_owned())))
}

async fn set(node: &Node, base: u64, values: &[&str]) -> Outcome {
    node.run().command(change(base, values, &[]), LONG).await.unwrap()
}

/// Waits until all have applied as much, and returns the digests there.
async fn digests(nodes: &[Node]) -> Vec<u64> {
    let index = nodes.iter().filter_map(|n| n.run().status().applied).max().unwrap();
    until("all have applied it", || nodes.iter().all(|n| n.run().status().applied >= Some(index))).await;
    nodes.iter().map(|n| n.run().digest_at(index).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_with_unequal_node_toml_have_equal_states_and_settings_are_set_through_a_follower() {
    let affords = |node: &mut Node| {
        let n = node.options.listen.port();
        node.options.engine.affordable_sessions = 1_000_000 + u64::from(n);
        node.options.progress_rate = 10_000 + u64::from(n);
        node.settings = vec!["table.sessions=3", "lease.grace=10s"];
    };
    let nodes = cluster_with(affords).await;
    for n in 1..=5 {
        let outcome = nodes[usize::from(n) % 3].run().command(command(n), LONG).await;
        assert_eq!(outcome, Ok(if n <= 3 { Outcome::Accepted } else { Outcome::Full }), "{n}");
    }
    let all = digests(&nodes).await;
    assert!(all.iter().all(|digest| *digest == all[0]), "{all:?}");

    let follower = (leader(&nodes) + 1) % 3;
    let stale = set(&nodes[follower], 0, &["table.sessions=4"]).await;
    assert_eq!(stale, Outcome::Invalid(InvalidReason::Settings(SettingsRefusal::Base(1))));
    assert_eq!(set(&nodes[follower], 1, &["table.sessions=4", "lease.grace=20s"]).await, Outcome::Accepted);
    until("all have them", || nodes.iter().all(|n| n.run().engine().settings().max_sessions() == 4)).await;
    assert!(nodes.iter().all(|n| n.run().lease.grace() == Duration::from_secs(20)), "leases go by the setting");
    assert_eq!(nodes[follower].run().command(command(4), LONG).await, Ok(Outcome::Accepted));
    assert_eq!(nodes[follower].run().command(command(5), LONG).await, Ok(Outcome::Full));
    let all = digests(&nodes).await;
    assert!(all.iter().all(|digest| *digest == all[0]), "{all:?}");
    assert!(nodes.iter().all(|n| n.run().metrics().state_suspect.get() == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_affords_less_refuses_settings_by_name_and_does_not_start_with_them() {
    let mut nodes = cluster().await;
    // What each has registered: as at a start of the daemon.
    for (n, node) in nodes.iter().enumerate() {
        let capabilities = palisade_engine::Capabilities::of_program(if n == 1 { 2_000_000 } else { 5_000_000 }, "1");
        let member = MemberId(n as u64 + 1);
        let registered = Command::Member(MemberChange::Capabilities { member, capabilities });
        assert_eq!(node.run().command(registered, LONG).await, Ok(Outcome::Accepted));
    }
    let refused = set(&nodes[0], 0, &["table.sessions=2500000"]).await;
    let why = SettingsRefusal::Unaffordable { member: MemberId(2), affords: 2_000_000, needed: 2_500_000 };
    assert_eq!(refused, Outcome::Invalid(InvalidReason::Settings(why)));

    // Nor is a machine admitted that affords less than is needed.
    let mut fourth = Node::new("fw4");
    fourth.options.engine.affordable_sessions = 999_999;
    let token = nodes[0].run().token(LONG).await.unwrap();
    let error = join(&fourth.options, &token).await.unwrap_err().to_string();
    assert!(error.contains("room for 1000000 sessions") && error.contains("1024000000"), "{error}");
    assert_eq!(nodes[0].run().status().members.len(), 3);

    // It starts with less than the settings in force: it says what is needed, and the others go on.
    nodes[1].stop().await;
    nodes[1].options.engine.affordable_sessions = 999_999;
    let (_hints, hints) = mpsc::channel(1);
    let (_proposals, proposals) = mpsc::channel(1);
    let opened = Replication::open(nodes[1].options.clone(), hints, proposals, Woken::default(), Arc::default()).await;
    let Err(OpenError::Unaffordable(error)) = opened else { panic!("it started, or failed otherwise") };
    assert_eq!((error.needed, error.affords), (1_000_000, 999_999));
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    assert!(help.contains("1024000000 bytes"), "{help}");
    assert_eq!(nodes[0].run().command(change(0, &["table.sessions=900000"], &[]), LONG).await, Ok(Outcome::Accepted));
    nodes[1].options.engine.affordable_sessions = error.needed;
    nodes[1].start().await;
    until("it is back", || nodes[1].has_valid_lease()).await;

    // Overridden by name, the others go on with settings that it does not afford.
    let over = change(1, &["table.sessions=2500000"], &[2]);
    assert_eq!(nodes[0].run().command(over, LONG).await, Ok(Outcome::Accepted));
}
