//! A drained member does not lead, unless nobody else can.

use palisade_lab::lateness::Lateness;

use super::*;

fn leads(nodes: &[Node]) -> Option<usize> {
    nodes.iter().position(|n| n.role() == Some(RaftRole::Leader))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_member_leads_only_if_nobody_else_can() {
    let mut nodes = cluster().await;
    let drained = leader(&nodes);
    nodes[drained].run().set_election_priority(ElectionPriority::LastResort);
    until("another one leads", || leads(&nodes).is_some_and(|n| n != drained)).await;
    assert!(!nodes[drained].run().is_replaceable_leader());
    let outcome = nodes[drained].run().command(command(1), LONG).await;
    assert_eq!(outcome, Ok(Outcome::Accepted), "it still votes and proposes");

    // Leadership is not transferred to it, though its log is as long as any.
    let second = leader(&nodes);
    let third = (0..3).find(|n| *n != drained && *n != second).unwrap();
    let transferred = timeout(LONG, async {
        while leads(&nodes) != Some(third) {
            if let Some(lead) = leads(&nodes) {
                // One that has led for a short time only, or no longer, may refuse.
                let _ = nodes[lead].run().transfer_leadership(None).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_ne!(leads(&nodes), Some(drained), "leadership was transferred to a drained member");
        }
    });
    transferred.await.unwrap();

    // Nor does it take it when the leader dies, though its turn would be first.
    crash(&mut nodes[third]);
    until("the undrained one leads", || leads(&nodes) == Some(second)).await;

    // Both that are left are drained: it stays where it is, and does not go back and forth.
    nodes[second].run().set_election_priority(ElectionPriority::LastResort);
    let late = Lateness::watch(nodes[second].dir.path()).unwrap();
    let term = nodes[second].run().status().term;
    tokio::time::sleep(Duration::from_secs(2)).await;
    if late.excuses(ELECTION_TIMEOUT).is_none() {
        assert_eq!((leads(&nodes), nodes[second].run().status().term), (Some(second), term));
    }

    // One that goes for good gives it to a drained one rather than to nobody.
    nodes[second].run().set_election_priority(ElectionPriority::Never);
    until("the drained one leads", || leads(&nodes) == Some(drained)).await;
    // And gets rid of it as soon as there is somebody.
    nodes[second].run().set_election_priority(ElectionPriority::Normal);
    until("it has transferred leadership", || leads(&nodes) == Some(second)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_members_elect_a_leader_where_all_are_drained() {
    let mut nodes = cluster().await;
    nodes.iter().for_each(|n| n.run().set_election_priority(ElectionPriority::LastResort));
    let old = leader(&nodes);
    crash(&mut nodes[old]);
    until("somebody leads", || leads(&nodes).is_some_and(|n| n != old)).await;
    let new = leader(&nodes);
    assert_eq!(nodes[new].run().command(command(1), LONG).await, Ok(Outcome::Accepted));
}
