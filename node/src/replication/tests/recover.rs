//! The majority is lost for good: a survivor goes on alone, with everything that it has.

use std::collections::BTreeMap;

use palisade_lab::lateness::Lateness;

use super::*;

/// All sessions with their tuples.
fn sessions(node: &Node) -> BTreeMap<SessionId, Tuple> {
    let mut found = BTreeMap::new();
    let engine = node.run().engine();
    for n in 0..400 {
        found.extend(engine.session(clock::now(), session(n)).map(|s| (s.id, s.original)));
    }
    found
}

async fn refused(options: &Options) -> RecoverError {
    match Recovery::prepare(options).await {
        Err(error) => error,
        Ok(recovery) => panic!("it would go on alone: {:?}", recovery.plan()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovered_survivor_goes_on_alone_and_the_old_cluster_disturbs_nothing() {
    // Short, so that there are a snapshot, a purged part and a rest of the log.
    let mut nodes = cluster_with(|n| n.options.log = LogSize::every(8 << 10)).await;
    let policy = "zone a, b\ndefault drop\naccept \"x\" from a to b: any -> any tcp/80\n";
    assert_eq!(nodes[0].policy(Generation(0), policy).await, Generation(1));
    for n in 0..250 {
        let establish = Establish { generation: Generation(1), ..establish(n) };
        let outcome = nodes[1].run().command(Command::Establish(Box::new(establish)), LONG).await;
        assert_eq!(outcome, Ok(Outcome::Accepted));
    }
    until("all have all", || nodes.iter().all(|n| has(n, 249))).await;
    let token = nodes[2].run().token(LONG).await.unwrap();
    until("its log has lost its beginning", || nodes[2].run().status().purged > Some(100)).await;
    let old = nodes[2].run().status();
    let before = sessions(&nodes[2]);

    // Nothing is lost yet; and it is still in use.
    assert!(matches!(refused(&nodes[2].options).await, RecoverError::Identity(IdentityError::Locked(_))));
    nodes[2].stop().await;
    assert!(matches!(refused(&nodes[2].options).await, RecoverError::Majority { voters: 3, .. }));

    crash(&mut nodes[0]);
    crash(&mut nodes[1]);
    nodes[0].released().await;
    nodes[1].released().await;
    let recovery = Recovery::prepare(&nodes[2].options).await.unwrap();
    let plan = recovery.plan().clone();
    println!("{plan:?}");
    assert_eq!((plan.cluster.as_str(), plan.member), (old.cluster.as_str(), MemberId(3)));
    let names: Vec<&str> = plan.removed.iter().map(|l| l.info.name.as_str()).collect();
    assert_eq!(names, ["fw1", "fw2"]);
    assert!(plan.removed.iter().all(|l| l.voter && !l.answers));
    assert_eq!((plan.policy, plan.sessions), (Generation(1), 250));
    assert!(plan.last_log >= old.last_log.unwrap() && plan.committed <= plan.last_log);
    // A plan that is dropped has changed nothing.
    drop(recovery);
    let recovered = Recovery::prepare(&nodes[2].options).await.unwrap().carry_out().await.unwrap();
    assert_eq!(recovered.member, MemberId(3));
    assert_ne!(recovered.cluster, old.cluster);
    assert!(recovered.old_store.exists());

    nodes[2].start().await;
    until("it leads alone", || nodes[2].has_valid_lease()).await;
    let alone = nodes[2].run().status();
    assert_eq!((alone.cluster.as_str(), alone.members.len()), (recovered.cluster.as_str(), 1));
    assert!(alone.term > old.term && alone.last_log > old.last_log, "{alone:?}");
    assert_eq!(sessions(&nodes[2]), before, "the sessions are those that were there");
    assert_eq!(nodes[2].run().engine().generation(), Generation(1));
    assert!((0..250).all(|n| has(&nodes[2], n)));
    assert_eq!(nodes[2].run().command(command_of(1, 300), LONG).await, Ok(Outcome::Accepted));

    // A token of the old cluster lets nobody in. Two new machines join, under ids and names of their own.
    let mut new = [Node::new("fw4"), Node::new("fw1")];
    let let_in = join(&new[0].options, &token).await;
    assert!(matches!(let_in, Err(MembershipError::Refused(_))), "{let_in:?}");
    for (n, node) in new.iter_mut().enumerate() {
        let token = nodes[2].run().token(LONG).await.unwrap();
        let identity = join(&node.options, &token).await.unwrap();
        assert_eq!(identity.member, MemberId(4 + n as u64), "old ids are not given again");
        node.start().await;
        until("it has a valid lease", || node.has_valid_lease()).await;
    }
    until("all three vote", || nodes[2].run().status().members.iter().filter(|m| m.voter).count() == 3).await;
    assert!(new.iter().all(|n| has(n, 249) && has(n, 300)));

    // One of the old cluster comes back, where it was: refused, never with a valid lease, and nobody is disturbed.
    let late = Lateness::watch(nodes[2].dir.path()).unwrap();
    let term = nodes[2].run().status().term;
    let misaddressed = nodes[2].run().metrics().wrong_destination_requests.get();
    nodes[0].start().await;
    until("it is refused", || nodes[2].run().metrics().wrong_destination_requests.get() > misaddressed + 5).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!nodes[0].has_valid_lease());
    assert_eq!(nodes[0].run().status().cluster, old.cluster);
    if late.excuses(ELECTION_TIMEOUT).is_none() {
        assert_eq!(nodes[2].run().status().term, term, "no election because of it");
    }
    until("all have valid leases", || nodes[2].has_valid_lease() && new.iter().all(Node::has_valid_lease)).await;
    assert_eq!(new[0].run().command(command_of(1, 301), LONG).await, Ok(Outcome::Accepted));
    // The survivor may die now like any other.
    nodes[2].stop().await;
    let outcome = new[1].run().command(command_of(1, 302), LONG).await;
    assert_eq!(outcome, Ok(Outcome::Accepted));
    nodes[2].start().await;
    until("it is back", || nodes[2].has_valid_lease() && has(&nodes[2], 302)).await;
}

fn command_of(generation: u64, n: u16) -> Command {
    Command::Establish(Box::new(Establish { generation: Generation(generation), ..establish(n) }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_is_refused_where_there_is_nothing_to_recover() {
    let mut node = Node::new("fw1");
    assert!(matches!(refused(&node.options).await, RecoverError::NotMember));
    init(&node.options).await.unwrap();
    node.start().await;
    until("it has a valid lease", || node.has_valid_lease()).await;
    node.stop().await;
    assert!(matches!(refused(&node.options).await, RecoverError::Alone));
    std::fs::remove_dir_all(node.dir.path().join("data/raft")).unwrap();
    assert!(matches!(refused(&node.options).await, RecoverError::LostLog(MemberId(1))));
}
