//! Members' states are compared; one that differs is found, told of and repaired.

use super::*;

/// Changes one member's state past the log: a command that the others never saw.
fn plant(node: &Node, n: u16) {
    let batch = Batch {
        proposer: MemberId(7),
        first_serial: u64::from(n),
        lowest_outstanding: 0,
        unix_ms: 0,
        commands: vec![command(n)],
    };
    let applied = node.run().auditor.meddle(|replica| replica.apply(clock::now(), &batch, &mut Woken::default()));
    assert_eq!(applied[0].outcome, Outcome::Accepted);
    assert!(has(node, n));
}

/// The digests of all members at the newest index that all have applied.
fn digests(nodes: &[Node]) -> Vec<Option<u64>> {
    let index = nodes.iter().filter_map(|n| n.run().status().applied).min().unwrap();
    nodes.iter().map(|n| n.run().digest_at(index)).collect()
}

fn equal(nodes: &[Node]) -> bool {
    let digests = digests(nodes);
    digests[0].is_some() && digests.iter().all(|d| *d == digests[0])
}

fn sound(node: &Node) -> bool {
    (0..=u8::MAX).all(|part| node.run().engine().scrub(part))
}

fn different(nodes: &[Node]) -> u64 {
    nodes.iter().map(|n| n.run().metrics().audits.divergent.get()).sum()
}

async fn some_sessions(nodes: &[Node]) {
    for n in 0..20 {
        assert_eq!(nodes[0].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
    }
    until("all have all", || nodes.iter().all(|n| (0..20).all(|s| has(n, s)))).await;
}

/// Plants a difference in one member's state, in an idle log, and waits until it is gone.
async fn found_and_repaired(nodes: &[Node], odd: usize) {
    let metrics = nodes[odd].run().metrics();
    let planted = clock::now();
    plant(&nodes[odd], 500);
    assert!(!equal(nodes) || metrics.repairs.done.get() > 0);
    until("the member has no valid lease while its state is known to be wrong, or is repaired already", || {
        metrics.repairs.done.get() > 0 || (metrics.state_suspect.get() == 1 && !nodes[odd].has_valid_lease())
    })
    .await;
    until("it is repaired", || metrics.repairs.done.get() == 1).await;
    let took = clock::now().since(planted);
    println!("found, told of and repaired after {took:?}");
    assert!(different(nodes) >= 1, "no leader counted it");
    assert_eq!(metrics.state_suspect.get(), 0);
    assert!(!has(&nodes[odd], 500) && (0..20).all(|n| has(&nodes[odd], n)));
    until("all are equal and have valid leases", || equal(nodes) && nodes.iter().all(Node::has_valid_lease)).await;
    assert!(nodes.iter().all(sound));
    let others = nodes.iter().map(|n| n.run().metrics().repairs.done.get()).sum::<u64>();
    assert_eq!(others, 1, "a member whose state was right was replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_finds_and_repairs_a_follower_also_when_nothing_is_committed() {
    let mut nodes = cluster().await;
    some_sessions(&nodes).await;
    let odd = (leader(&nodes) + 1) % 3;
    found_and_repaired(&nodes, odd).await;
    // It goes on with the log as the others do, and the old state does not come back from its disk.
    assert_eq!(nodes[odd].run().command(command(21), LONG).await, Ok(Outcome::Accepted));
    nodes[odd].stop().await;
    nodes[odd].start().await;
    until("it is back", || nodes[odd].has_valid_lease() && has(&nodes[odd], 21)).await;
    assert!(!has(&nodes[odd], 500) && equal(&nodes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_has_a_leader_that_differs_transfer_leadership_and_repairs_it() {
    let nodes = cluster().await;
    some_sessions(&nodes).await;
    let odd = leader(&nodes);
    found_and_repaired(&nodes, odd).await;
    assert_ne!(leader(&nodes), odd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_transfers_leadership_to_no_drained_member() {
    let nodes = cluster().await;
    some_sessions(&nodes).await;
    let odd = leader(&nodes);
    // Of two logs of equal length, the newer member's would be chosen.
    let drained = (0..3).rfind(|n| *n != odd).unwrap();
    nodes[drained].run().set_election_priority(ElectionPriority::LastResort);
    let accepts = |n: usize| nodes[odd].run().transfer.accepts_leadership(nodes[n].run().identity().member);
    until("the leader knows it", || (0..3).all(|n| n == odd || accepts(n) == Some(n != drained))).await;
    let leads = |n: usize| nodes[n].role() == Some(RaftRole::Leader);
    plant(&nodes[odd], 500);
    until("it is repaired", || {
        assert!(!leads(drained), "a repair transferred leadership to a drained member");
        nodes[odd].run().metrics().repairs.done.get() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_repairs_a_table_that_is_not_what_commands_made_it() {
    let nodes = cluster().await;
    some_sessions(&nodes).await;
    let odd = (leader(&nodes) + 1) % 3;
    let metrics = nodes[odd].run().metrics();
    assert!(nodes[odd].run().engine().damage(session(3)));
    assert!(equal(&nodes), "no digest shows it");
    until("it is repaired", || metrics.repairs.done.get() == 1).await;
    assert!(metrics.scrubs.damaged.get() >= 1);
    assert!(sound(&nodes[odd]) && equal(&nodes));
    until("its lease is valid again", || nodes[odd].has_valid_lease()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_repairs_a_difference_while_the_log_is_busy() {
    let nodes = cluster().await;
    some_sessions(&nodes).await;
    let lead = leader(&nodes);
    let (odd, busy) = ((lead + 1) % 3, (lead + 2) % 3);
    let requests = nodes[busy].run().replication.requests.clone();
    let load = tokio::spawn(async move {
        for n in 1000..u16::MAX {
            assert_eq!(propose_and_wait(&requests, command(n), LONG).await, Ok(Outcome::Accepted));
        }
    });
    let metrics = nodes[odd].run().metrics();
    plant(&nodes[odd], 500);
    until("it is repaired", || metrics.repairs.done.get() == 1).await;
    // Some more, applied by the log to what the snapshot brought.
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.abort();
    assert!(load.await.unwrap_err().is_cancelled());
    assert_eq!(nodes[odd].run().command(command(999), LONG).await, Ok(Outcome::Accepted));
    until("all are equal and have applied the same", || {
        let applied: Vec<_> = nodes.iter().map(|n| n.run().status().applied).collect();
        applied.iter().all(|a| *a == applied[0]) && equal(&nodes)
    })
    .await;
    assert!(!has(&nodes[odd], 500) && nodes.iter().all(|n| has(n, 999) && sound(n)));
    assert_eq!(nodes.iter().map(|n| n.run().metrics().repairs.done.get()).sum::<u64>(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_finds_no_difference_after_a_member_was_away() {
    let mut nodes = cluster().await;
    some_sessions(&nodes).await;
    let away = (leader(&nodes) + 1) % 3;
    let here = (away + 1) % 3;
    nodes[away].stop().await;
    for n in 100..140 {
        assert_eq!(nodes[here].run().command(command(n), LONG).await, Ok(Outcome::Accepted));
    }
    let revoke = Command::Revoke((0..10).map(session).collect());
    assert_eq!(nodes[here].run().command(revoke, LONG).await, Ok(Outcome::Accepted));
    nodes[away].start().await;
    until("it has caught up", || nodes[away].has_valid_lease() && has(&nodes[away], 139)).await;
    assert!(equal(&nodes), "{:x?}", digests(&nodes));
    let lead = leader(&nodes);
    let index = nodes[lead].run().status().applied.unwrap();
    until("the leader has compared all", || nodes[lead].run().metrics().audited_index.get() >= index).await;
    assert_eq!(different(&nodes), 0);
    assert!(nodes.iter().all(|n| n.run().metrics().repairs.done.get() == 0));
}
